"""What a thief of the disk, the WAL or the log finds: no plaintext and no key."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import decryptor
import psycopg
import pytest

from conftest import MakeCluster
from harness import Cluster, new_key

MASK = "canary-{}-of-colcrypt-tests"
TWIN_MASK = "twins-{}-of-colcrypt-tests"

SHAPES: dict[str, Callable[[str], str]] = {
    "short": lambda canary: canary,
    "long-in-line": lambda canary: canary + "x" * 1500,
    "compressible": lambda canary: canary + "y" * 200_000,
    "incompressible": lambda canary: secrets.token_hex(4) + canary + noise(200_000),
}
ROWS = [*SHAPES, "updated-before", "updated-after", "deleted", "rolled-back"]


def noise(length: int) -> str:
    return base64.b64encode(secrets.token_bytes(length * 3 // 4)).decode()


@pytest.fixture(scope="module")
def host(base: Path, template: Path) -> Iterator[Cluster]:
    cluster = Cluster(base, template, ring=new_key())
    # Also full page images and old row versions, for logical replication.
    cluster.conf(wal_level="logical", autovacuum=False)
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt")
    cluster.psql("CREATE TABLE t (name text, secret encrypted_text)")
    cluster.psql("CREATE TABLE twin (name text, secret text)")
    # Stored as encrypted_text is: pglz would break the canary up.
    cluster.psql("ALTER TABLE twin ALTER secret SET STORAGE external")
    for table in ("t", "twin"):
        cluster.psql(f"ALTER TABLE {table} REPLICA IDENTITY FULL; CHECKPOINT")
    with cluster.connect() as session:
        write_canaries(session, "t", MASK)
        write_canaries(session, "twin", TWIN_MASK)
        session.execute("CHECKPOINT")
    yield cluster
    cluster.destroy()


def write_canaries(session: psycopg.Connection, table: str, mask: str) -> None:
    insert = f"INSERT INTO {table} VALUES (%s, %s)"
    for name in ROWS:
        shape = SHAPES.get(name, SHAPES["short"])
        if name not in ("updated-after", "rolled-back"):
            session.execute(insert, [name, shape(mask.format(name))])
    session.execute(
        f"UPDATE {table} SET secret = %s WHERE name = 'updated-before'",
        [mask.format("updated-after")],
    )
    session.execute(f"DELETE FROM {table} WHERE name = 'deleted'")
    with session.transaction(force_rollback=True):
        session.execute(insert, ["rolled-back", mask.format("rolled-back")])


def files_with(folder: Path, *needles: bytes) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [
        path for path in files if any(needle in path.read_bytes() for needle in needles)
    ]


def heap_and_toast(host: Cluster, table: str) -> tuple[Path, Path]:
    toast = host.psql(
        f"SELECT reltoastrelid::regclass FROM pg_class WHERE relname = '{table}'"
    )
    return host.relation_path(table), host.relation_path(toast)


@pytest.mark.parametrize("name", ROWS)
def test_no_file_of_the_server_holds_plaintext(host: Cluster, name: str) -> None:
    needle = MASK.format(name).encode()
    assert files_with(host.datadir, needle) == []


@pytest.mark.parametrize("name", ROWS)
def test_the_same_search_finds_plain_text_in_table_and_wal(
    host: Cluster, name: str
) -> None:
    # So that the search above can fail.
    found = files_with(host.datadir, TWIN_MASK.format(name).encode())
    assert found_in(found, host.datadir / "pg_wal")
    assert found_in(found, host.datadir / "base")


def test_the_same_search_finds_plain_text_in_heap_and_toast(host: Cluster) -> None:
    heap, toast = heap_and_toast(host, "twin")
    assert TWIN_MASK.format("short").encode() in heap.read_bytes()
    assert TWIN_MASK.format("incompressible").encode() in toast.read_bytes()


def test_heap_and_toast_hold_ciphertext(host: Cluster) -> None:
    heap, toast = heap_and_toast(host, "t")
    assert heap.stat().st_size > 0
    assert toast.stat().st_size > 400_000
    for path in (heap, toast):
        assert b"of-colcrypt-tests" not in path.read_bytes()


def found_in(files: list[Path], folder: Path) -> bool:
    return any(folder in path.parents for path in files)


def test_a_compressible_value_is_not_compressed(host: Cluster) -> None:
    # Else its stored length would tell of its content.
    stored = "SELECT pg_column_size(secret) FROM t WHERE name = 'compressible'"
    assert int(host.psql(stored)) > 200_000


def test_no_file_of_the_data_folder_holds_a_key(host: Cluster) -> None:
    server_key = (host.dir / "ring.keys").read_text()
    session_key = new_key()
    with host.connect() as session:
        session.execute("SELECT set_config('colcrypt.key', %s, false)", [session_key])
        session.execute("INSERT INTO t VALUES ('own key', 'x')")
        session.execute("CHECKPOINT")
        for key in (server_key, session_key):
            assert files_with(host.datadir, *forms(key)) == []
    host.restart()
    for key in (server_key, session_key):
        assert files_with(host.datadir, *forms(key)) == []
    assert host.dir / "ring.keys" in files_with(host.dir, *forms(server_key))


def forms(key: str) -> list[bytes]:
    """A key, and all that is derived of it for good, in the forms it could be in."""
    raw = decryptor.ring_key(key)
    suites = ("xaes-256-gcm", "aes-256-gcm", "envelope")
    keys = [raw, *(decryptor.subkey(raw, suite) for suite in suites)]
    found: list[bytes] = []
    for each in keys:
        found += [each, base64.b64encode(each), base64.urlsafe_b64encode(each)]
        found += [each.hex().encode(), each.hex().upper().encode()]
    return found


def test_spilled_sorts_and_hashes_of_stored_values_hold_ciphertext(
    host: Cluster,
) -> None:
    # A sort by another column carries the values as they are stored.
    with host.connect() as session:
        session.execute("CREATE TABLE spill (n float, secret encrypted_text)")
        session.execute(
            "INSERT INTO spill SELECT random(), 'canary-spilled-of-colcrypt-tests' || i"
            " FROM generate_series(1, 20000) i"
        )
        session.execute("SET work_mem = '64kB'")
        with session.transaction():
            session.execute("DECLARE c CURSOR FOR SELECT * FROM spill ORDER BY n")
            session.execute("FETCH 10 FROM c")
            spilled = host.datadir / "base" / "pgsql_tmp"
            assert any(spilled.iterdir()), "nothing was spilled"
            assert files_with(spilled, b"canary-spilled") == []


def test_failures_log_neither_key_nor_plaintext(host: Cluster) -> None:
    # Parameters are bound: text in a statement is PostgreSQL's to log.
    key = new_key()
    bad_key = noise(60)
    host.conf({"log_min_messages": "debug5", "log_statement": "none"})
    host.reload()
    start = len(host.log())
    plaintext = "canary-logged-of-colcrypt-tests"
    with host.connect() as session:
        session.execute("CREATE TABLE logged (secret encrypted_text)")
        insert = "INSERT INTO logged VALUES (%s)"
        keys = "SELECT set_config('colcrypt.key', %s, false)"
        session.execute(insert, [plaintext])
        session.execute(keys, [key])
        session.execute(insert, [plaintext])
        sealed = session.execute("SELECT ciphertext(secret) FROM logged").fetchall()
        fails(session, keys, [bad_key])
        fails(session, keys, [key + "," + bad_key])
        fails(session, insert, ["colcrypt:v1:" + plaintext])
        fails(session, "SELECT encrypt(%s)", ["colcrypt:v1:" + plaintext])
        fails(session, "SELECT from_ciphertext(%s)", ["colcrypt:v1:" + plaintext])
        fails(session, "SELECT from_fernet(%s)", [plaintext])
        damaged = [text[:-8] + "AAAAAAAA" for (text,) in sealed]
        for text in damaged:
            fails(session, "SELECT from_ciphertext(%s)", [text])
        session.execute("RESET colcrypt.key")
        fails(session, "SELECT secret FROM logged", [])
    host.conf({"log_min_messages": None})
    host.reload()
    log = host.log()[start:]
    assert "DEBUG" in log and "could not be authenticated" in log
    server_key = (host.dir / "ring.keys").read_text()
    for secret in (plaintext, key, bad_key, server_key, *damaged):
        assert secret not in log


def fails(session: psycopg.Connection, sql: str, parameters: list[str]) -> None:
    with pytest.raises(psycopg.Error) as refused:
        session.execute(sql, parameters)
    for parameter in parameters:
        assert parameter not in str(refused.value)


def test_a_reload_does_not_log_the_key_setting(make_cluster: MakeCluster) -> None:
    # PostgreSQL logs what a reload changes: parameter "…" changed to "…".
    old, new = new_key(), new_key()
    preload = {"shared_preload_libraries": "colcrypt"}
    cluster = make_cluster(conf=preload | {"colcrypt.key": old})
    with cluster.connect() as session:
        session.execute("SELECT encrypt('x')")
        cluster.conf({"colcrypt.key": f"{new},{old}"})
        cluster.reload(session)
        session.execute("SELECT encrypt('x')")
    cluster.stop()
    assert new not in cluster.log() and old not in cluster.log()


@pytest.mark.parametrize("key", [True, False], ids=["reserved prefix", "no key"])
def test_a_failed_copy_logs_no_value(make_cluster: MakeCluster, key: bool) -> None:
    # PostgreSQL adds the value as CONTEXT, unless the error asks it not to.
    cluster = make_cluster(ring=new_key() if key else None)
    canary = ("colcrypt:v1:" if key else "") + "canary-copied"
    with cluster.connect() as session:
        session.execute("CREATE TABLE t (secret encrypted_text)")
        with pytest.raises(psycopg.Error), session.cursor() as cursor:
            with cursor.copy("COPY t FROM STDIN") as copy:
                copy.write(canary + "\n")
    assert "ERROR:  " in cluster.log()
    assert canary not in cluster.log()
