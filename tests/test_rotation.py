"""rotate_column() on a live server: writers, crashes, key retirement, encodings."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.errors import (
    CharacterNotInRepertoire,
    InsufficientPrivilege,
    ObjectNotInPrerequisiteState,
    UntranslatableCharacter,
)

from harness import Cluster, fetch, key_id, new_key, wait_until

ROTATE = "SELECT rotate_column('t', 'secret')"
KEYS = """
    SELECT string_agg(DISTINCT (colcrypt.inspect(secret)).key_id, ',') FROM t"""


class Host:
    """A server with the old key, for which a new one is at hand."""

    def __init__(self, cluster: Cluster, old: str) -> None:
        self.cluster = cluster
        self.old = old
        self.new = new_key()

    def bring_new_key(self) -> None:
        self.cluster.set_ring(f"{self.new},{self.old}")
        self.cluster.reload()

    def retire_old_key(self) -> None:
        self.cluster.set_ring(self.new)
        self.cluster.restart()


@pytest.fixture
def host(make_cluster: Callable[..., Cluster]) -> Host:
    old = new_key()
    return Host(make_cluster(ring=old), old)


@pytest.fixture
def session(host: Host) -> Iterator[psycopg.Connection]:
    with host.cluster.connect() as session:
        yield session


def fill(cluster: Cluster, rows: int) -> None:
    cluster.psql(
        "CREATE TABLE t (id int PRIMARY KEY, version int, secret encrypted_text);"
        "INSERT INTO t SELECT i, 0, i || ':' || 0 || repeat('.', 40)"
        f" FROM generate_series(1, {rows}) i"
    )


def count_wrong(cluster: Cluster) -> int:
    """Rows whose value is not the one last written."""
    return int(
        cluster.psql(
            "SELECT count(*) FROM t"
            " WHERE secret::text IS DISTINCT FROM id || ':' || version || repeat('.', 40)"
        )
    )


def count(cluster: Cluster) -> int:
    return int(cluster.psql("SELECT count(*) FROM t"))


# Writers

UPDATE = """\\set id random(1, 3000)
UPDATE t SET version = version + 1,
    secret = (id || ':' || (version + 1) || repeat('.', 40)) WHERE id = :id;
"""
INSERT = """INSERT INTO t
    SELECT nextval('ids'), 7, currval('ids') || ':7' || repeat('.', 40);
"""
DELETE = """\\set id random(3001, 4000)
DELETE FROM t WHERE id = :id;
"""


def test_rotation_and_writers_do_not_disturb_each_other(
    host: Host, tmp_path: Path
) -> None:
    cluster = host.cluster
    fill(cluster, 4000)
    cluster.psql("CREATE SEQUENCE ids START 100000")
    scripts: list[str] = []
    for name, text, weight in (("u", UPDATE, 8), ("i", INSERT, 2), ("d", DELETE, 1)):
        (tmp_path / name).write_text(text)
        scripts += ["-f", f"{tmp_path / name}@{weight}"]
    output: list[str] = []

    def write() -> None:
        arguments = ["-n", "-c", "4", "-j", "2", "-T", "4", "-M", "prepared"]
        output.append(cluster.run("pgbench", *arguments, *scripts, check=False))

    writers = threading.Thread(target=write)
    writers.start()
    wait_until(lambda: cluster.psql("SELECT max(version) FROM t") > "3", "the writers")
    host.bring_new_key()
    rotated = []
    while writers.is_alive():
        rotated.append(int(cluster.psql(ROTATE)))
    writers.join()
    assert rotated[0] > 1000
    assert "number of failed transactions: 0 " in output[0]
    assert "ERROR" not in output[0] and "aborted" not in output[0]
    assert "ERROR" not in cluster.log()
    cluster.psql(ROTATE)
    assert cluster.psql(KEYS) == key_id(host.new)
    assert cluster.psql(ROTATE) == "0"
    assert count_wrong(cluster) == 0
    host.retire_old_key()
    assert count_wrong(cluster) == 0


def test_rotation_waits_for_a_row_and_keeps_what_its_writer_wrote(
    host: Host, session: psycopg.Connection
) -> None:
    cluster = host.cluster
    fill(cluster, 10)
    host.bring_new_key()
    session.execute("BEGIN")
    session.execute(
        "UPDATE t SET version = 1, secret = '5:1' || repeat('.', 40) WHERE id = 5"
    )
    session.execute("DELETE FROM t WHERE id = 6")
    done: list[str] = []
    rotation = threading.Thread(target=lambda: done.append(cluster.psql(ROTATE)))
    rotation.start()
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'transactionid'"
    wait_until(lambda: cluster.psql(waiting) == "1", "the rotation at the locked row")
    session.execute("COMMIT")
    rotation.join(timeout=60)
    assert not rotation.is_alive()
    # The updated row has the new key already: from the writer, after the reload.
    assert done == ["8"]
    assert count(cluster) == 9 and count_wrong(cluster) == 0
    assert cluster.psql(KEYS) == key_id(host.new)


def test_two_rotations_at_once_rotate_each_row_once(host: Host) -> None:
    cluster = host.cluster
    fill(cluster, 20_000)
    host.bring_new_key()
    done: list[int] = []
    threads = [
        threading.Thread(target=lambda: done.append(int(cluster.psql(ROTATE))))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 2 and sum(done) == 20_000
    assert count(cluster) == 20_000 and count_wrong(cluster) == 0


# Crashes


def start_rotation(cluster: Cluster) -> int:
    """Starts a rotation that nobody waits for; gives its process once it has
    written a good part."""
    size = "SELECT pg_relation_size('t')"
    before = int(cluster.psql(size))
    pids: list[int] = []

    def rotate() -> None:
        try:
            with cluster.connect() as session:
                pids.append(fetch(session, "SELECT pg_backend_pid()"))
                session.execute(ROTATE)
        except psycopg.OperationalError:
            pass

    threading.Thread(target=rotate).start()
    wait_until(lambda: int(cluster.psql(size)) > before * 1.2, "a rotation under way")
    state = f"SELECT state FROM pg_stat_activity WHERE pid = {pids[0]}"
    assert cluster.psql(state) == "active", "the rotation was over too soon"
    return pids[0]


def kill_server(cluster: Cluster, _pid: int) -> None:
    cluster.kill()
    cluster.start()


def kill_backend(cluster: Cluster, pid: int) -> None:
    cluster.kill_backend(pid)


@pytest.mark.parametrize("interrupt", [kill_server, kill_backend])
def test_a_crash_in_the_middle_of_a_rotation_loses_nothing(
    host: Host, interrupt: Callable[[Cluster, int], None]
) -> None:
    cluster = host.cluster
    fill(cluster, 200_000)
    cluster.psql("CHECKPOINT")
    host.bring_new_key()
    interrupt(cluster, start_rotation(cluster))
    assert count(cluster) == 200_000 and count_wrong(cluster) == 0
    assert cluster.psql(KEYS) == key_id(host.old)
    assert cluster.psql(ROTATE) == "200000"
    assert cluster.psql(KEYS) == key_id(host.new)
    host.retire_old_key()
    assert count(cluster) == 200_000 and count_wrong(cluster) == 0


def test_a_rotation_can_be_cancelled(host: Host) -> None:
    cluster = host.cluster
    fill(cluster, 200_000)
    host.bring_new_key()
    pid = start_rotation(cluster)
    with cluster.connect() as session:
        session.execute("SELECT pg_cancel_backend(%s)", [pid])
    idle = (
        f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND state = 'active'"
    )
    wait_until(lambda: cluster.psql(idle) == "0", "the cancellation")
    assert "canceling statement due to user request" in cluster.log()
    assert cluster.psql(KEYS) == key_id(host.old)
    assert count_wrong(cluster) == 0


# Keys


def test_after_a_rotation_the_old_key_can_go(host: Host) -> None:
    cluster = host.cluster
    fill(cluster, 100)
    host.bring_new_key()
    cluster.psql(ROTATE)
    host.retire_old_key()
    assert count(cluster) == 100 and count_wrong(cluster) == 0


def test_a_rotation_without_the_old_key_says_which_and_changes_nothing(
    host: Host,
) -> None:
    cluster = host.cluster
    fill(cluster, 100)
    host.bring_new_key()
    cluster.psql("UPDATE t SET secret = secret::text WHERE id <= 50")
    cluster.set_ring(host.new)
    cluster.restart()
    before = cluster.psql("SELECT ctid, ciphertext(secret) FROM t ORDER BY id")
    with cluster.connect() as session:
        with pytest.raises(ObjectNotInPrerequisiteState) as refused:
            session.execute(ROTATE)
    assert key_id(host.old) in refused.value.diag.message_primary
    assert cluster.psql("SELECT ctid, ciphertext(secret) FROM t ORDER BY id") == before
    cluster.set_ring(f"{host.new},{host.old}")
    cluster.reload()
    assert cluster.psql(ROTATE) == "50"
    assert count_wrong(cluster) == 0


def test_rotation_moves_to_the_current_algorithm(
    host: Host, session: psycopg.Connection
) -> None:
    fill(host.cluster, 100)
    for suite in ("aes-256-gcm", "fernet", "envelope", "xaes-256-gcm"):
        session.execute(f"SET colcrypt.algorithm = '{suite}'")
        assert fetch(session, ROTATE) == 100
        assert fetch(session, ROTATE) == 0
        suites = "SELECT DISTINCT (colcrypt.inspect(secret)).suite FROM t"
        assert session.execute(suites).fetchall() == [(suite,)]
        assert count_wrong(host.cluster) == 0


def test_a_role_without_rights_rotates_nothing(host: Host) -> None:
    cluster = host.cluster
    fill(cluster, 10)
    cluster.psql("CREATE ROLE app LOGIN; GRANT ALL ON t TO app")
    host.bring_new_key()
    with cluster.connect(user="app") as app, pytest.raises(InsufficientPrivilege):
        app.execute(ROTATE)
    assert cluster.psql(KEYS) == key_id(host.old)
    cluster.psql("ALTER TABLE t OWNER TO app")
    assert cluster.psql(ROTATE, user="app") == "10"


# Values


def test_a_large_value_is_rotated(host: Host, session: psycopg.Connection) -> None:
    value = os.urandom(10 * 1024 * 1024).hex()
    session.execute("CREATE TABLE t (secret encrypted_text)")
    session.execute("INSERT INTO t VALUES (%s), ('small'), (NULL), ('')", [value])
    host.bring_new_key()
    assert host.cluster.psql(ROTATE) == "3"
    assert host.cluster.psql(KEYS) == key_id(host.new)
    host.retire_old_key()
    with host.cluster.connect() as after:
        rows = [row[0] for row in after.execute("SELECT secret FROM t").fetchall()]
    assert sorted(rows, key=lambda row: (row is None, row)) == sorted(
        [value, "small", ""]
    ) + [None]


def test_a_published_table_without_replica_identity_is_refused_like_an_update(
    host: Host,
) -> None:
    cluster = host.cluster
    cluster.psql("CREATE TABLE t (secret encrypted_text); INSERT INTO t VALUES ('x')")
    cluster.psql("CREATE PUBLICATION p FOR TABLE t")
    host.bring_new_key()
    with cluster.connect() as session:
        with pytest.raises(ObjectNotInPrerequisiteState) as refused:
            session.execute(ROTATE)
        with pytest.raises(ObjectNotInPrerequisiteState) as refused_update:
            session.execute("UPDATE t SET secret = 'y'")
    messages = [e.value.diag.message_primary for e in (refused, refused_update)]
    assert messages[0] == messages[1]
    assert cluster.psql("SELECT secret FROM t") == "x"
    cluster.psql("ALTER TABLE t REPLICA IDENTITY FULL")
    assert cluster.psql(ROTATE) == "1"


# Encodings


@pytest.fixture(scope="module")
def encodings(base: Path, template: Path) -> Iterator[Cluster]:
    cluster = Cluster(base, template, ring=new_key())
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt")
    for name, encoding in (("latin1", "LATIN1"), ("ascii", "SQL_ASCII")):
        cluster.psql(
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'"
        )
        cluster.psql("CREATE EXTENSION colcrypt", db=name)
    yield cluster
    cluster.destroy()


@pytest.mark.parametrize("name", ["postgres", "latin1", "ascii"])
def test_an_accent_round_trips_in_every_encoding(encodings: Cluster, name: str) -> None:
    with encodings.connect(dbname=name, client_encoding="UTF8") as session:
        session.execute("CREATE TEMP TABLE t (secret encrypted_text)")
        session.execute("INSERT INTO t VALUES ('é as literal'), (%s)", ["é bound"])
        session.execute("INSERT INTO t SELECT 'é of ' || 'text'")
        rows = session.execute("SELECT secret FROM t").fetchall()
        assert [row[0] for row in rows] == ["é as literal", "é bound", "é of text"]
        # In LATIN1 a character is a byte; in SQL_ASCII length() counts bytes.
        length = fetch(session, "SELECT length(secret) FROM t LIMIT 1")
        assert length == (13 if name == "ascii" else 12)
        binary = session.cursor(binary=True).execute("SELECT secret FROM t").fetchone()
        assert binary is not None and binary[0].decode() == "é as literal"
        with session.transaction():
            session.execute("SET LOCAL colcrypt.algorithm = 'envelope'")
            assert fetch(session, ROTATE) == 3
        rows = session.execute("SELECT secret FROM t").fetchall()
        assert [row[0] for row in rows] == ["é as literal", "é bound", "é of text"]


@pytest.mark.parametrize("source", ["postgres", "latin1", "ascii"])
@pytest.mark.parametrize("target", ["postgres", "latin1", "ascii"])
def test_ciphertext_moves_between_databases_of_different_encodings(
    encodings: Cluster, source: str, target: str
) -> None:
    with encodings.connect(dbname=source, client_encoding="UTF8") as session:
        sealed = fetch(session, "SELECT ciphertext(encrypt(%s))", "café")
    with encodings.connect(dbname=target, client_encoding="UTF8") as session:
        assert fetch(session, "SELECT from_ciphertext(%s)::text", sealed) == "café"


def test_a_character_that_the_database_lacks_is_told_without_the_text(
    encodings: Cluster,
) -> None:
    sealed = encodings.psql("SELECT ciphertext(encrypt('canary 🔑'))")
    with encodings.connect(dbname="latin1", client_encoding="UTF8") as session:
        with pytest.raises(UntranslatableCharacter) as refused:
            session.execute("SELECT from_ciphertext(%s)::text", [sealed])
        assert refused.value.sqlstate == "22P05"
        told = str(refused.value) + str(refused.value.diag.context)
        for trace in ("canary", "f0 9f", "0xf0", "🔑"):
            assert trace not in told


def test_a_value_that_the_database_cannot_show_is_not_lost(encodings: Cluster) -> None:
    # It came in while its key was not there, so nobody could look.
    key = new_key()
    use_key = "SELECT set_config('colcrypt.key', %s, false)"
    with encodings.connect() as session:
        session.execute(use_key, [key])
        sealed = fetch(session, "SELECT ciphertext(encrypt('🔑'))")
    with encodings.connect(dbname="latin1", client_encoding="UTF8") as session:
        session.execute("CREATE TEMP TABLE t (secret encrypted_text)")
        session.execute("INSERT INTO t VALUES (from_ciphertext(%s)), ('é')", [sealed])
        session.execute(use_key, [key])
        with pytest.raises(UntranslatableCharacter):
            session.execute("SELECT secret FROM t")
        rows = session.execute("SELECT try_decrypt(secret) FROM t").fetchall()
        assert rows == [(None,), ("é",)]
        session.execute("SET colcrypt.algorithm = 'envelope'")
        assert fetch(session, ROTATE) == 2
        sealed = fetch(session, "SELECT ciphertext(secret) FROM t LIMIT 1")
    with encodings.connect() as session:
        session.execute(use_key, [key])
        assert fetch(session, "SELECT from_ciphertext(%s)::text", sealed) == "🔑"


def test_bytes_that_are_no_text_do_not_enter_a_database_without_an_encoding(
    encodings: Cluster,
) -> None:
    # SQL_ASCII takes any byte for text; what is sealed is UTF-8 in every database.
    with encodings.connect(dbname="ascii", client_encoding="SQL_ASCII") as session:
        for sql in (
            "SELECT encrypt(E'caf\\xe9')",
            "SELECT E'caf\\xe9'::encrypted_text",
        ):
            with pytest.raises(CharacterNotInRepertoire):
                session.execute(sql)
