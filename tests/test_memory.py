"""What a core file holds: no key, in none of its forms, and nothing of plaintexts that
colcrypt has had in hands. What is still in memory after a key is gone: nothing."""

from __future__ import annotations

import base64
import os
import re
import secrets
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import decryptor
import psycopg
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from conftest import MakeCluster
from harness import (
    Cluster,
    Setting,
    children,
    command_line,
    fetch,
    new_key,
    processes,
)

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="memory of another user's process"),
    pytest.mark.skipif(shutil.which("gcore") is None, reason="gcore is not installed"),
]

PRELOAD: dict[str, Setting] = {"shared_preload_libraries": "colcrypt"}
SUITES = ["xaes-256-gcm", "aes-256-gcm", "fernet", "envelope"]
PT_LOAD = 1
# What is derived of a key for good.
DERIVED = ["xaes-256-gcm", "aes-256-gcm", "envelope", "wrap", "aes-256-cmac"]
USE_KEY = "SELECT set_config('colcrypt.key', %s, false)"
ALL_KEYS = """
    SELECT key_id, kind, coalesce(name, ''), coalesce(suite, ''), wrapped_by, wrapped
    FROM colcrypt.key WHERE wrapped IS NOT NULL"""


# Looking into memory


def core_of(pid: int, folder: Path) -> bytes:
    """A core file, as a crash would leave it."""
    command = ["gcore", "-o", str(folder / "core"), str(pid)]
    subprocess.run(command, check=True, capture_output=True)
    path = folder / f"core.{pid}"
    core = path.read_bytes()
    path.unlink()
    return core


def memory_of(core: bytes) -> Iterator[tuple[int, bytes]]:
    """What a core file has of the memory, by address, without the registers."""
    (table,) = struct.unpack_from("<Q", core, 32)
    size, count = struct.unpack_from("<HH", core, 54)
    for entry in range(table, table + size * count, size):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", core, entry)
        if kind == PT_LOAD:
            yield address, core[offset : offset + length]


def find_in_core(pid: int, core: bytes, needles: Mapping[str, bytes]) -> list[str]:
    found = []
    for address, content in memory_of(core):
        for what, needle in needles.items():
            if (at := content.find(needle)) >= 0:
                around = content[max(0, at - 32) : at + 64]
                where = f"{command_line(pid)}{name_at(pid, address + at)}"
                found.append(f"{what} at {address + at:x} in {where}: {around!r}")
    return found


def name_at(pid: int, address: int) -> str:
    """The mapping that an address is in."""
    for start, end, name, _ in mappings(pid):
        if start <= address < end:
            return name
    return "nothing any more"


def mappings(pid: int) -> Iterator[tuple[int, int, str, set[str]]]:
    """Start, end, name and flags of what a process has mapped."""
    text = Path(f"/proc/{pid}/smaps").read_text()
    for part in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", text):
        if not part:
            continue
        head, flags = part.partition("\n")[0].split(), part.rpartition("VmFlags:")[2]
        start, end = (int(number, 16) for number in head[0].split("-"))
        yield start, end, " ".join([*head[1:2], *head[5:]]), set(flags.split())


def find(pid: int, needles: Mapping[str, bytes]) -> list[str]:
    """Where in all the memory of a process these bytes are."""
    found = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for start, end, name, _ in mappings(pid):
            with suppress(OSError, ValueError, OverflowError):
                memory.seek(start)
                content = memory.read(end - start)
                for what, needle in needles.items():
                    if (at := content.find(needle)) >= 0:
                        around = content[max(0, at - 32) : at + 64]
                        found.append(f"{what} at {start + at:x} in {name}: {around!r}")
    return found


def forms(key: bytes) -> dict[str, bytes]:
    """A key, and all that is derived of it for good, as it could be in memory. An
    AES-256 key schedule starts with the key itself."""
    keys = {"key": key} | {suite: decryptor.subkey(key, suite) for suite in DERIVED}
    found = {}
    for name, each in keys.items():
        found |= {
            f"{name}": each,
            f"half of {name}": each[16:],
            f"{name} in base64": base64.b64encode(each)[:40],
            f"{name} in base64url": base64.urlsafe_b64encode(each)[:40],
            f"{name} in hex": each.hex().encode(),
            f"{name} in HEX": each.hex().upper().encode(),
        }
    # Fernet signs with the first half and encrypts with the second.
    return found | {"first half of key": key[:16]}


def assert_no_key(pid: int, folder: Path, *keys: bytes, text: bool = True) -> None:
    """With text=False, but for the text, which PostgreSQL may keep."""
    core = core_of(pid, folder)
    assert len(core) > 1_000_000
    for key in keys:
        needles = {n: v for n, v in forms(key).items() if "in base64" not in n or text}
        assert find_in_core(pid, core, needles) == []


def raw(key: str) -> bytes:
    return decryptor.ring_key(key)


def wrapped_keys(session: psycopg.Connection, *ring: str) -> list[bytes]:
    """The managed keys and the index key of a database."""
    return [
        decryptor.unwrap_key(
            wrapped,
            [raw(key) for key in ring],
            key_id=key_id,
            wrapped_by=wrapped_by,
            kind=kind,
            name=name,
            suite=suite,
        )
        for key_id, kind, name, suite, wrapped_by, wrapped in session.execute(ALL_KEYS)
    ]


def key_of_value(session: psycopg.Connection, key: bytes, suite: str) -> bytes:
    """The key that a value is under that was just sealed and opened."""
    session.execute(f"SET colcrypt.algorithm = '{suite}'")
    text = fetch(session, "SELECT ciphertext(encrypt('x'))")
    assert fetch(session, "SELECT from_ciphertext(%s)::text", text) == "x"
    session.execute("RESET colcrypt.algorithm")
    session.execute("SELECT 1")
    stored, subkey = decryptor.stored_bytes(text), decryptor.subkey(key, suite)
    if suite == "xaes-256-gcm":
        return decryptor.xaes_key(subkey, stored[5:17])
    assert suite == "envelope"
    return AESGCM(subkey).decrypt(stored[5:17], stored[17:65], stored[:5])


def use_everything(session: psycopg.Connection) -> None:
    """All that keys are used for. No plaintext is anywhere but in parameters."""
    suffix = secrets.token_hex(4)
    session.execute(f"CREATE SCHEMA s{suffix}; SET search_path = s{suffix}, public")
    session.execute("CREATE TABLE t (n serial, secret encrypted_text)")
    for suite in SUITES:
        session.execute(f"SET colcrypt.algorithm = '{suite}'")
        session.execute(
            "INSERT INTO t (secret) SELECT %s || i FROM generate_series(1, 30) i",
            ["value"],
        )
    session.execute("RESET colcrypt.algorithm")
    session.execute("CREATE INDEX ON t (secret); CREATE INDEX ON t USING hash (secret)")
    session.execute("SET enable_seqscan = off")
    found = fetch(session, "SELECT count(*) FROM t WHERE secret = %s", "value7")
    assert found == len(SUITES)
    session.execute("SET enable_seqscan = on")
    session.execute("SELECT secret, count(*) FROM t GROUP BY 1 ORDER BY secret::text")
    session.execute("SELECT count(DISTINCT secret) FROM t")
    session.execute(f"SELECT colcrypt.create_key('k{suffix}')")
    session.execute(f"CREATE TABLE u (secret encrypted_text(k{suffix}))")
    session.execute("INSERT INTO u SELECT secret::text FROM t")
    session.execute("SELECT count(*) FROM u JOIN t ON t.secret = u.secret")
    session.execute("SELECT rotate_column('t', 'secret')")
    session.execute("SELECT colcrypt.rewrap_keys()")
    sealed = fetch(session, "SELECT ciphertext(secret) FROM t LIMIT 1")
    session.execute("SELECT from_ciphertext(%s)::text", [sealed])
    for bad in (sealed[:-6] + "AAAAAA", "colcrypt:v1:AAAA"):
        with pytest.raises(psycopg.Error):
            session.execute("SELECT from_ciphertext(%s)::text", [bad])
    session.execute("SELECT 1")


def keepers(cluster: Cluster) -> list[int]:
    """Processes of colcrypt's own."""
    pids = children(cluster.postmaster_pid())
    return [pid for pid in pids if "colcrypt" in command_line(pid).partition(" -D ")[0]]


# Keys of the server

FORMS = {
    "base64": lambda key: key,
    "hex": lambda key: raw(key).hex(),
    "json": lambda key: f'{{"primary": "a", "keys": {{"a": "{key}"}}}}',
    "escaped json": lambda key: (
        f'{{"primary": "a", "keys": {{"a": "\\u{ord(key[0]):04x}{key[1:]}"}}}}'
    ),
    "two": lambda key: f"# keys\n{key} # primary\n{new_key()}\n",
}


def make_server(
    make_cluster: MakeCluster,
    source: str,
    ring: str,
    conf: Mapping[str, Setting] | None = None,
) -> Cluster:
    conf = PRELOAD | dict(conf or {})
    if source == "environment":
        return make_cluster(conf=conf, env={"COLCRYPT_KEY": ring})
    if source == "key":
        return make_cluster(conf=conf | {"colcrypt.key": ring})
    cluster = make_cluster(conf=conf, start=False)
    path = cluster.write_file("ring.keys", ring)
    value = f"cat {path}" if source == "key_command" else str(path)
    cluster.conf({f"colcrypt.{source}": value})
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt")
    return cluster


CASES = [
    *(("key_file", form) for form in FORMS),
    *((source, "base64") for source in ("key_command", "environment", "key")),
]


@pytest.mark.parametrize(("source", "form"), CASES)
def test_core_files_hold_no_key_of_the_server(
    make_cluster: MakeCluster, tmp_path: Path, source: str, form: str
) -> None:
    key = new_key()
    cluster = make_server(make_cluster, source, FORMS[form](key))
    with cluster.connect() as session:
        use_everything(session)
        keys = [raw(key), *wrapped_keys(session, key)]
        assert len(keys) == 3
        keys.append(key_of_value(session, raw(key), "xaes-256-gcm"))
        # The text of a setting is PostgreSQL's to keep.
        text = source != "key"
        assert_no_key(session.info.backend_pid, tmp_path, *keys, text=text)
    for pid in [cluster.postmaster_pid(), *keepers(cluster)]:
        assert_no_key(pid, tmp_path, raw(key), text=text)


@pytest.mark.parametrize("library", [None, "session_preload_libraries"])
def test_core_files_hold_no_key_that_a_backend_reads_for_itself(
    make_cluster: MakeCluster, tmp_path: Path, library: str | None
) -> None:
    key = new_key()
    cluster = make_cluster(ring=key, conf={library: "colcrypt"} if library else {})
    with cluster.connect() as session:
        use_everything(session)
        keys = [raw(key), *wrapped_keys(session, key)]
        assert_no_key(session.info.backend_pid, tmp_path, *keys)


def test_core_files_hold_no_passphrase(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    words = secrets.token_hex(24)
    cluster = make_server(make_cluster, "key_file", f"passphrase:{words}")
    key = decryptor.passphrase_key(words)
    with cluster.connect() as session:
        use_everything(session)
        for pid in (session.info.backend_pid, cluster.postmaster_pid()):
            assert_no_key(pid, tmp_path, key)
            assert words.encode() not in core_of(pid, tmp_path)


def test_the_same_search_finds_keys_in_all_of_the_memory(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    # So that the search above can fail.
    key = new_key()
    cluster = make_server(make_cluster, "key_file", key)
    text = new_key()
    with cluster.connect() as session:
        use_everything(session)
        for pid in (session.info.backend_pid, cluster.postmaster_pid()):
            assert find(pid, {"key": raw(key)})
        keys = wrapped_keys(session, key)
        assert all(find(session.info.backend_pid, forms(key)) for key in keys)
        subkey = decryptor.subkey(raw(key), "xaes-256-gcm")
        assert find(session.info.backend_pid, {"subkey": subkey})
        # A core file holds what PostgreSQL has.
        session.execute("SELECT set_config('a.b', %s, false)", [text])
        assert text.encode() in core_of(session.info.backend_pid, tmp_path)


def test_pages_with_keys_are_locked_and_left_out_of_dumps(
    make_cluster: MakeCluster,
) -> None:
    key = new_key()
    cluster = make_server(make_cluster, "key_file", key)
    with cluster.connect() as session:
        use_everything(session)
        backend = session.info.backend_pid
        for pid in (backend, cluster.postmaster_pid()):
            guarded = [each for each in mappings(pid) if has_key(pid, each, key)]
            assert guarded
            for _, _, name, flags in guarded:
                assert "dd" in flags, name
                # What processes share is locked by the postmaster for all of them.
                assert "lo" in flags or (pid == backend and "sh" in flags), name


def has_key(pid: int, mapping: tuple[int, int, str, set[str]], key: str) -> bool:
    start, end, _, _ = mapping
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        with suppress(OSError, ValueError, OverflowError):
            memory.seek(start)
            return raw(key) in memory.read(end - start)
    return False


# Keys that are gone


def gone(pid: int, key: bytes, text: bool = True) -> list[str]:
    """Where a key is, in all of the memory, that should not be there any more."""
    needles = {n: v for n, v in forms(key).items() if "in base64" not in n or text}
    return find(pid, needles)


@pytest.mark.parametrize("source", ["key_file", "key_command", "key"])
def test_a_reload_wipes_the_old_keys(
    make_cluster: MakeCluster, tmp_path: Path, source: str
) -> None:
    old, new = new_key(), new_key()
    cluster = make_server(make_cluster, source, old)
    with cluster.connect() as session:
        session.execute("CREATE TABLE t (secret encrypted_text)")
        session.execute("INSERT INTO t VALUES (%s)", ["x"])
        for ring in (f"{new},{old}", new):
            if source == "key":
                cluster.conf({"colcrypt.key": ring})
            else:
                cluster.write_file("ring.keys", ring)
            cluster.reload(session)
            session.execute("SELECT rotate_column('t', 'secret')")
        assert fetch(session, "SELECT secret::text FROM t") == "x"
        backend, postmaster = session.info.backend_pid, cluster.postmaster_pid()
        # The text of a setting is PostgreSQL's to keep.
        text = source != "key"
        assert_no_key(backend, tmp_path, raw(old), raw(new), text=text)
        assert gone(backend, raw(old), text) == []
        assert gone(postmaster, raw(old), text) == []
        assert find(backend, {"key": raw(new)}) and find(postmaster, {"key": raw(new)})


@pytest.mark.xfail(strict=True, reason="a backend drops keys when it next needs one")
@pytest.mark.parametrize("used", [True, False], ids=["used", "never used"])
def test_an_idle_backend_forgets_the_old_keys_too(
    make_cluster: MakeCluster, used: bool
) -> None:
    old, new = new_key(), new_key()
    cluster = make_server(make_cluster, "key_file", old)
    with cluster.connect() as idle:
        if used:
            idle.execute("SELECT encrypt('x')")
        idle.execute("SELECT 1")
        cluster.write_file("ring.keys", new)
        cluster.reload(idle)
        assert gone(idle.info.backend_pid, raw(old)) == []


def test_processes_of_the_server_forget_the_old_keys_too(
    make_cluster: MakeCluster,
) -> None:
    old, new = new_key(), new_key()
    cluster = make_server(make_cluster, "key_file", old)
    cluster.write_file("ring.keys", new)
    cluster.reload()
    cluster.psql("CHECKPOINT")
    left = {
        command_line(pid): found
        for pid in children(cluster.postmaster_pid())
        if (found := gone(pid, raw(old)))
    }
    assert left == {}


def test_keys_are_in_guarded_pages_of_every_process(make_cluster: MakeCluster) -> None:
    key = new_key()
    cluster = make_server(make_cluster, "key_file", key)
    cluster.psql("CHECKPOINT")
    for pid in children(cluster.postmaster_pid()):
        # One may end meanwhile.
        with suppress(FileNotFoundError):
            for mapping in mappings(pid):
                if has_key(pid, mapping, key):
                    assert "dd" in mapping[3], command_line(pid)


@pytest.mark.parametrize(
    "drop", ["RESET colcrypt.key", "DISCARD ALL", "SET colcrypt.key = ''", "ROLLBACK"]
)
def test_a_key_of_the_session_is_wiped_when_it_is_dropped(
    make_cluster: MakeCluster, drop: str
) -> None:
    cluster = make_server(make_cluster, "key_file", new_key())
    own = new_key()
    with cluster.connect() as session:
        session.execute("SELECT encrypt('x')")
        if drop == "ROLLBACK":
            session.execute("BEGIN")
        session.execute(USE_KEY, [own])
        for suite in SUITES:
            session.execute(f"SET colcrypt.algorithm = '{suite}'")
            session.execute("SELECT encrypt('x')::text")
        pid = session.info.backend_pid
        assert find(pid, {"key": raw(own)})
        session.execute(drop)
        session.execute("SELECT encrypt('x')::text")
        # PostgreSQL may keep the text of the parameter and of the setting.
        assert gone(pid, raw(own), text=False) == []


# Not strict: whether a copy is left on the stack is up to the compiler.
@pytest.mark.xfail(strict=False, reason="the cipher of a value's key is moved about")
def test_core_files_hold_no_key_of_an_envelope(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    key = new_key()
    cluster = make_server(make_cluster, "key_file", key)
    with cluster.connect() as session:
        data_key = key_of_value(session, raw(key), "envelope")
        assert_no_key(session.info.backend_pid, tmp_path, data_key)


def test_a_key_that_fernet_was_used_with_is_wiped(make_cluster: MakeCluster) -> None:
    cluster = make_server(make_cluster, "key_file", new_key())
    own = new_key()
    with cluster.connect() as session:
        session.execute("SET colcrypt.algorithm = 'fernet'")
        session.execute(USE_KEY, [own])
        session.execute("SELECT encrypt('x')::text")
        session.execute("RESET colcrypt.key")
        session.execute("SELECT encrypt('x')::text")
        assert gone(session.info.backend_pid, raw(own), text=False) == []


@pytest.mark.parametrize("suite", SUITES)
def test_registers_and_stack_hold_no_part_of_a_key_that_was_just_used(
    make_cluster: MakeCluster, tmp_path: Path, suite: str
) -> None:
    key = new_key()
    cluster = make_server(make_cluster, "key_file", key)
    with cluster.connect() as session:
        session.execute(f"SET colcrypt.algorithm = '{suite}'")
        session.execute("SELECT encrypt('x')::text")
        session.execute("SELECT 1")
        core = core_of(session.info.backend_pid, tmp_path)
        used = [raw(key), decryptor.subkey(raw(key), suite)]
        halves = [half for key in used for half in (key[:16], key[16:])]
        assert not any(half in core for half in halves)


def test_a_key_of_a_session_that_is_set_is_not_in_its_core_file(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster = make_server(make_cluster, "key_file", new_key())
    own = new_key()
    with cluster.connect() as session:
        session.execute(USE_KEY, [own])
        use_everything(session)
        # But for the text, which PostgreSQL keeps as the value of the setting.
        assert_no_key(session.info.backend_pid, tmp_path, raw(own), text=False)


def test_a_destroyed_key_is_wiped(make_cluster: MakeCluster) -> None:
    key = new_key()
    cluster = make_server(make_cluster, "key_file", key)
    with cluster.connect() as session, cluster.connect() as other:
        session.execute("SELECT colcrypt.create_key('pii')")
        (managed,) = wrapped_keys(session, key)
        session.execute("CREATE TABLE t (secret encrypted_text(pii))")
        session.execute("INSERT INTO t VALUES (%s)", ["x"])
        for each in (session, other):
            assert fetch(each, "SELECT secret::text FROM t") == "x"
            assert find(each.info.backend_pid, {"key": managed})
        session.execute("SELECT colcrypt.shred_key('pii')")
        for each in (session, other):
            with pytest.raises(psycopg.Error):
                fetch(each, "SELECT secret::text FROM t")
            assert gone(each.info.backend_pid, managed) == []


@pytest.mark.xfail(strict=True, reason="the schedule of the index key stays")
def test_the_keys_of_a_dropped_extension_are_wiped(make_cluster: MakeCluster) -> None:
    key = new_key()
    cluster = make_server(make_cluster, "key_file", key)
    with cluster.connect() as session:
        use_everything(session)
        keys = wrapped_keys(session, key)
        session.execute("DROP EXTENSION colcrypt CASCADE")
        session.execute("SELECT 1")
        for each in keys:
            assert gone(session.info.backend_pid, each) == []


def test_the_text_of_a_ring_is_not_kept(make_cluster: MakeCluster) -> None:
    name, key = f"name-{secrets.token_hex(8)}"[:31], new_key()
    ring = f'{{"primary": "{name}", "keys": {{"{name}": "{key}"}}}}'
    cluster = make_server(make_cluster, "key_file", ring)
    with cluster.connect() as session:
        session.execute("SELECT encrypt('x')")
        for pid in (cluster.postmaster_pid(), session.info.backend_pid):
            text = {"text": f'"{name}": "'.encode(), "key": key.encode()}
            assert find(pid, text) == []


def test_the_environment_is_wiped_in_every_process(make_cluster: MakeCluster) -> None:
    key = new_key()
    cluster = make_server(make_cluster, "environment", key)
    with cluster.connect() as session:
        session.execute("SELECT encrypt('x')")
        for pid in [cluster.postmaster_pid(), *children(cluster.postmaster_pid())]:
            assert find(pid, {"text": key.encode()}) == [], command_line(pid)
            assert key not in Path(f"/proc/{pid}/environ").read_text()


def test_no_other_process_has_the_key(make_cluster: MakeCluster) -> None:
    # The shell of key_command has ended, and none of its output is left.
    key = new_key()
    cluster = make_server(make_cluster, "key_command", key)
    ring = str(cluster.dir / "ring.keys")
    assert not [pid for pid in processes() if f"cat {ring}" in command_line(pid)]


# Plaintexts

QUERIES = {
    "equal": "SELECT count(*) FROM {} WHERE secret = {canary}",
    "index": (
        "SET enable_seqscan = off; SELECT count(*) FROM {} WHERE secret = {canary}"
    ),
    "unequal": "SELECT count(*) FROM {} WHERE secret <> {canary}",
    "sort": "SELECT secret FROM {} ORDER BY secret",
    "group": "SELECT secret, count(*) FROM {} GROUP BY secret",
    "distinct": "SELECT DISTINCT secret FROM {}",
    "join": "SELECT count(*) FROM {} a JOIN {} b USING (secret)",
    "merge join": (
        "SET enable_hashjoin = off; SET enable_nestloop = off;"
        " SELECT count(*) FROM {} a JOIN {} b USING (secret)"
    ),
    "build": "CREATE INDEX ON {} (secret); CREATE INDEX ON {} USING hash (secret)",
    "analyze": "ANALYZE {}",
    "unique": "CREATE UNIQUE INDEX ON {} (secret)",
    "rotate": "SELECT rotate_column('{}', 'secret')",
}


@pytest.fixture(scope="module")
def host(base: Path, template: Path) -> Iterator[Cluster]:
    cluster = Cluster(base, template, ring=new_key())
    # What one query has freed, no other is to find.
    cluster.conf(PRELOAD | {"jit": False, "autovacuum": False})
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt; CREATE EXTENSION IF NOT EXISTS plpgsql")
    yield cluster
    cluster.destroy()


@pytest.mark.parametrize(
    ("name", "suite"),
    [
        *((name, "xaes-256-gcm") for name in QUERIES),
        *((name, suite) for name in ("index", "sort") for suite in SUITES[1:]),
    ],
)
def test_no_plaintext_of_a_finished_query_stays(
    host: Cluster, tmp_path: Path, name: str, suite: str
) -> None:
    table = f"t{secrets.token_hex(4)}"
    mark = secrets.token_hex(8)
    # Another session has written the values: this one has only colcrypt's word.
    with host.connect() as session:
        session.execute(f"SET colcrypt.algorithm = '{suite}'")
        session.execute(f"CREATE TABLE {table} (n int, secret encrypted_text)")
        session.execute(
            f"INSERT INTO {table} SELECT i, %s || i FROM generate_series(1, 40) i",
            [f"canary-{mark}-"],
        )
        if name == "index":
            session.execute(f"CREATE INDEX ON {table} (secret)")
    parts = QUERIES[name].replace("{}", table).split(";")
    with host.connect() as session:
        # Without parameters and results: those are in buffers of PostgreSQL's.
        for part in parts:
            statement = part.replace("{canary}", f"encrypt('other-{mark}')")
            if "FROM" in statement:
                statement = f"SELECT count(*) FROM ({statement}) AS q"
            session.execute(statement.encode())
        session.execute("SELECT 1")
        core = core_of(session.info.backend_pid, tmp_path)
        if f"canary-{mark}".encode() in core:
            needle = {"plaintext": f"canary-{mark}".encode()}
            raise AssertionError(find(session.info.backend_pid, needle))


PARAMETERS = {
    "equal": "SELECT count(*) FROM {} WHERE secret = %s",
    "index": "SELECT count(*) FROM {} WHERE secret = %s",
    "in": "SELECT count(*) FROM {} WHERE secret IN (%s, 'x')",
    "distinct from": "SELECT count(*) FROM {} WHERE secret IS DISTINCT FROM %s",
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_is_in_memory_no_longer_than_for_a_column_of_text(
    host: Cluster, tmp_path: Path, name: str
) -> None:
    counts = []
    for column in ("text", "encrypted_text"):
        table, mark = f"t{secrets.token_hex(4)}", secrets.token_hex(8)
        with host.connect() as session:
            session.execute(f"CREATE TABLE {table} (n int, secret {column})")
            session.execute(
                f"INSERT INTO {table} SELECT i, 'v' || i FROM generate_series(1, 40) i"
            )
            if name == "index":
                session.execute(f"CREATE INDEX ON {table} (secret)")
                session.execute("SET enable_seqscan = off")
            statement = PARAMETERS[name].replace("{}", table)
            session.execute(statement.encode(), [f"canary-{mark}"])
            session.execute("SELECT 1")
            core = core_of(session.info.backend_pid, tmp_path)
            counts.append(core.count(f"canary-{mark}".encode()))
    assert counts[1] <= counts[0]
