"""Where the server's key ring comes from, what a broken source does, and reload."""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import decryptor
import psycopg
import pytest
from psycopg.errors import (
    CantChangeRuntimeParam,
    ObjectNotInPrerequisiteState,
)

from conftest import MakeCluster
from harness import Cluster, fetch, key_id, new_key

SEALED_UNDER = "SELECT (colcrypt.inspect(encrypt('x'))).key_id"
# Lets a ring that has no key of the one before it pass the guard against the wrong key.
ACCEPT = "SELECT colcrypt.accept_key()"
PRELOADS = ["shared_preload_libraries", "session_preload_libraries"]
# What stands in a bad ring, and must not come back in a message.
CANARY = "canaryCANARYcanary"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
with_preload = pytest.mark.parametrize("preload", PRELOADS)


@pytest.fixture(scope="module")
def host(base: Path, template: Path) -> Iterator[Cluster]:
    """A server whose key file the tests replace: none may rely on another's."""
    cluster = Cluster(base, template, ring=new_key())
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt")
    yield cluster
    cluster.destroy()


def missing_key(session: psycopg.Connection, sql: str) -> psycopg.errors.Diagnostic:
    with pytest.raises(ObjectNotInPrerequisiteState) as refused:
        session.execute(sql)
    return refused.value.diag


def refusal_of(host: Cluster, path: Path) -> psycopg.errors.Diagnostic:
    """What a new session says when colcrypt.key_file names this."""
    host.conf({"colcrypt.key_file": str(path)})
    host.reload()
    with host.connect() as session:
        diag = missing_key(session, "SELECT encrypt('x')")
    assert diag.message_primary == "no encryption key is configured"
    assert diag.message_detail.startswith(f'colcrypt.key_file "{path}": ')
    return diag


def use_ring(host: Cluster, text: str, *sessions: psycopg.Connection) -> None:
    host.set_ring(text)
    host.reload(*sessions)


def use_another_ring(host: Cluster, text: str) -> None:
    """A ring that has nothing to do with those of the tests before."""
    use_ring(host, text)
    host.psql(ACCEPT)


# No key


def test_without_a_key_the_error_names_the_settings(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    with cluster.connect() as session:
        session.execute("CREATE TABLE t (secret encrypted_text)")
        diag = missing_key(session, "INSERT INTO t VALUES ('x')")
    for setting in ("colcrypt.key_file", "colcrypt.key_env", "colcrypt.key for"):
        assert setting in diag.message_hint
    assert "COLCRYPT_KEY" in diag.message_hint


def test_without_a_key_values_that_are_there_are_not_read(cluster: Cluster) -> None:
    cluster.psql("CREATE TABLE t (secret encrypted_text)")
    cluster.psql("INSERT INTO t VALUES ('x'), (NULL)")
    cluster.conf({"colcrypt.key_file": None})
    cluster.restart()
    with cluster.connect() as session:
        diag = missing_key(session, "SELECT secret FROM t")
        assert "colcrypt.key_file" in diag.message_hint
        # What needs no key works on, so that a DBA can look around.
        assert fetch(session, "SELECT count(*) FROM t WHERE secret IS NULL") == 1
        assert fetch(session, "SELECT ciphertext(secret) FROM t LIMIT 1")
        assert fetch(session, "SELECT try_decrypt(secret) FROM t LIMIT 1") is None


def test_a_session_finds_the_key_that_comes_later(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    key = new_key()
    with cluster.connect() as session:
        missing_key(session, "SELECT encrypt('x')")
        use_ring(cluster, key, session)
        assert fetch(session, SEALED_UNDER) == key_id(key)


# Each source


@with_preload
def test_key_in_the_configuration_file(make_cluster: MakeCluster, preload: str) -> None:
    key = new_key()
    cluster = make_cluster(conf={preload: "colcrypt", "colcrypt.key": key})
    with cluster.connect() as session:
        assert fetch(session, SEALED_UNDER) == key_id(key)


@with_preload
def test_the_configured_key_is_never_shown(
    make_cluster: MakeCluster, preload: str
) -> None:
    new, old = new_key(), new_key()
    ring = f"{new},{old}"
    cluster = make_cluster(conf={preload: "colcrypt", "colcrypt.key": ring})
    with cluster.connect() as session:
        ids = f"{key_id(new)}, {key_id(old)}"
        assert fetch(session, "SHOW colcrypt.key") == ids
        assert fetch(session, "SELECT current_setting('colcrypt.key')") == ids
        settings = "SELECT coalesce(string_agg(s::text, ' '), '') FROM pg_settings s"
        assert new not in fetch(session, settings)
        assert new not in str(session.execute("SHOW ALL").fetchall())


def test_without_preload_the_configured_key_is_passed_over(
    make_cluster: MakeCluster,
) -> None:
    key = new_key()
    cluster = make_cluster(conf={"colcrypt.key": key})
    with cluster.connect() as session:
        diag = missing_key(session, "SELECT encrypt('x')")
        assert "shared_preload_libraries" in diag.message_detail
        assert key not in str(session.execute("SHOW colcrypt.key").fetchall())
        assert key not in fetch(session, "SELECT current_setting('colcrypt.key')")
        assert key not in str(session.execute("SHOW ALL").fetchall())
        session.execute("RESET colcrypt.key")
        assert fetch(session, "SHOW colcrypt.key") == ""
        missing_key(session, "SELECT encrypt('x')")
    assert key not in cluster.log()


def test_what_is_passed_over_leaves_the_next_source(make_cluster: MakeCluster) -> None:
    in_file = new_key()
    cluster = make_cluster(ring=in_file, conf={"colcrypt.key": new_key()})
    with cluster.connect() as session:
        assert fetch(session, SEALED_UNDER) == key_id(in_file)


@pytest.mark.parametrize("preload", [*PRELOADS, None])
def test_key_on_the_servers_command_line(
    make_cluster: MakeCluster, preload: str | None
) -> None:
    key = new_key()
    conf = {preload: "colcrypt"} if preload else {}
    cluster = make_cluster(conf=conf, start=False)
    cluster.start(f"-c colcrypt.key={key}")
    cluster.psql("CREATE EXTENSION colcrypt")
    with cluster.connect() as session:
        if preload:
            assert fetch(session, SEALED_UNDER) == key_id(key)
        else:
            assert "preload" in missing_key(session, SEALED_UNDER).message_detail
        assert key not in fetch(session, "SHOW colcrypt.key")


def test_key_in_the_environment(make_cluster: MakeCluster) -> None:
    key = new_key()
    cluster = make_cluster(env={"COLCRYPT_KEY": key})
    assert cluster.psql(SEALED_UNDER) == key_id(key)


def test_key_in_another_environment_variable(make_cluster: MakeCluster) -> None:
    key = new_key()
    cluster = make_cluster(
        env={"COLCRYPT_KEY": new_key(), "APP_SECRET": key},
        conf={"colcrypt.key_env": "APP_SECRET"},
    )
    assert cluster.psql(SEALED_UNDER) == key_id(key)


def test_a_bad_ring_in_the_environment_is_told_without_its_content(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(env={"COLCRYPT_KEY": f"{new_key()},{CANARY}"})
    with cluster.connect() as session:
        diag = missing_key(session, SEALED_UNDER)
    assert diag.message_detail.startswith("environment variable COLCRYPT_KEY: key 2: ")
    assert CANARY not in str(diag.message_detail) + cluster.log()


def test_the_key_setting_wins_over_the_file_and_the_file_over_the_environment(
    make_cluster: MakeCluster,
) -> None:
    setting, file, environment = new_key(), new_key(), new_key()
    cluster = make_cluster(
        ring=file,
        env={"COLCRYPT_KEY": environment},
        conf={"shared_preload_libraries": "colcrypt", "colcrypt.key": setting},
    )
    with cluster.connect() as session:
        assert fetch(session, SEALED_UNDER) == key_id(setting)
        cluster.conf({"colcrypt.key": None})
        cluster.reload(session)
        assert fetch(session, ACCEPT) == key_id(file)
        assert fetch(session, SEALED_UNDER) == key_id(file)
        cluster.conf({"colcrypt.key_file": None})
        cluster.reload(session)
        assert fetch(session, ACCEPT) == key_id(environment)
        assert fetch(session, SEALED_UNDER) == key_id(environment)


def test_a_broken_source_does_not_give_way_to_the_next(
    make_cluster: MakeCluster,
) -> None:
    # Else a typo in the path would have values sealed under a forgotten key.
    cluster = make_cluster(env={"COLCRYPT_KEY": new_key()})
    cluster.conf({"colcrypt.key_file": "/nowhere/ring.keys"})
    cluster.reload()
    with cluster.connect() as session:
        missing_key(session, SEALED_UNDER)


def test_values_read_while_the_key_moves_from_setting_to_file_to_environment(
    make_cluster: MakeCluster,
) -> None:
    key = new_key()
    cluster = make_cluster(
        conf={"shared_preload_libraries": "colcrypt", "colcrypt.key": key}
    )
    cluster.psql("CREATE TABLE t (secret encrypted_text)")
    cluster.psql("INSERT INTO t VALUES ('by setting')")
    cluster.conf({"colcrypt.key": None, "shared_preload_libraries": None})
    cluster.set_ring(key)
    cluster.restart()
    cluster.psql("INSERT INTO t VALUES ('by file')")
    cluster.conf({"colcrypt.key_file": None})
    cluster.set_env({"COLCRYPT_KEY": key})
    cluster.restart()
    assert cluster.psql("SELECT secret FROM t") == "by setting\nby file"


def test_the_file_settings_are_not_for_sessions(host: Cluster) -> None:
    # A role that could set them would read files of the server's user.
    with host.connect() as session:
        session.execute("LOAD 'colcrypt'")
        for setting in ("colcrypt.key_file", "colcrypt.key_env"):
            with pytest.raises(CantChangeRuntimeParam):
                session.execute(f"SET {setting} = 'x'")


def test_alter_system_does_not_take_a_key(host: Cluster) -> None:
    key = new_key()
    with host.connect() as session:
        session.execute("LOAD 'colcrypt'")
        with pytest.raises(CantChangeRuntimeParam) as refused:
            session.execute(f"ALTER SYSTEM SET colcrypt.key = '{key}'")
    assert key not in str(refused.value)
    assert key not in (host.datadir / "postgresql.auto.conf").read_text()


# Ring text


def test_a_json_ring_names_its_primary(host: Cluster) -> None:
    first, second = new_key(), new_key()
    ring = json.dumps({"primary": "b", "keys": {"a": first, "b": second}})
    use_another_ring(host, ring)
    assert host.psql(SEALED_UNDER) == key_id(second)


def test_comments_newlines_hex_and_base64url(host: Cluster) -> None:
    raw = secrets.token_bytes(32)
    base64url = base64.urlsafe_b64encode(raw).decode()
    lines = f"# the new one\n{base64url} # since May\n\n{secrets.token_hex(32)}\n"
    use_another_ring(host, lines)
    assert host.psql(SEALED_UNDER) == decryptor.key_id(raw).hex()


def test_a_passphrase_is_a_key(host: Cluster) -> None:
    passphrase = "correct-horse-battery-staple-of-thirty-two"
    use_another_ring(host, f"passphrase:{passphrase}")
    sealed = host.psql("SELECT ciphertext(encrypt('x'))")
    assert decryptor.decrypt(sealed, [decryptor.passphrase_key(passphrase)]) == "x"


BAD_RINGS = {
    "31 bytes": (base64.b64encode(bytes(31)).decode(), "key 1: 31 bytes, must be 32"),
    "second of two": (f"{new_key()},{CANARY}", "key 2: neither"),
    "empty": ("", "holds no key"),
    "only a comment": ("# soon\n", "holds no key"),
    "same key twice": ("{0}\n{0}".format(new_key()), "key 1 and key 2 are the same"),
    "short passphrase": (f"passphrase:{CANARY}", "must be at least 32"),
    "unknown member": (
        json.dumps({"primary": "a", "keys": {"a": new_key()}, CANARY: CANARY}),
        "exactly the members",
    ),
    "unknown primary": (
        json.dumps({"primary": CANARY, "keys": {"a": new_key()}}),
        "the primary is none of the keys",
    ),
    "bad key in JSON": (
        json.dumps({"primary": "a", "keys": {"a": CANARY}}),
        'key "a": neither',
    ),
    "not JSON": ('{"primary": ' + CANARY, "not valid JSON"),
    "too large": ("# " + CANARY * 4000 + "\n" + new_key(), "larger than 64 KiB"),
}


@pytest.mark.parametrize("text, reason", BAD_RINGS.values(), ids=BAD_RINGS)
def test_a_bad_ring_is_refused_with_the_reason_and_without_its_content(
    host: Cluster, text: str, reason: str
) -> None:
    diag = refusal_of(host, host.write_file("bad.keys", text))
    assert reason in diag.message_detail
    assert CANARY not in host.log() + diag.message_detail


# The file itself


def test_a_key_file_that_others_can_read_is_refused(host: Cluster) -> None:
    path = host.write_file("open.keys", new_key(), mode=0o644)
    assert "mode 0644" in refusal_of(host, path).message_detail


@as_root
def test_a_key_file_of_another_user_is_refused(host: Cluster) -> None:
    path = host.write_file("nobodys.keys", new_key(), mode=0o640)
    os.chown(path, 65534, path.stat().st_gid)
    assert "must be owned by" in refusal_of(host, path).message_detail


@as_root
def test_a_key_file_of_root_that_the_servers_group_reads_is_taken(
    host: Cluster,
) -> None:
    key = new_key()
    path = host.write_file("roots.keys", key, mode=0o640)
    os.chown(path, 0, path.stat().st_gid)
    host.conf({"colcrypt.key_file": str(path)})
    host.reload()
    host.psql(ACCEPT)
    assert host.psql(SEALED_UNDER) == key_id(key)


def test_a_link_to_a_key_file_is_followed(host: Cluster) -> None:
    # That is how Kubernetes mounts a secret.
    key = new_key()
    link = host.dir / "link.keys"
    link.symlink_to(host.write_file("target.keys", key))
    host.conf({"colcrypt.key_file": str(link)})
    host.reload()
    host.psql(ACCEPT)
    assert host.psql(SEALED_UNDER) == key_id(key)


def test_a_key_file_that_is_not_there_is_said_to_be_missing(host: Cluster) -> None:
    diag = refusal_of(host, host.dir / "nowhere.keys")
    assert "No such file" in diag.message_detail


def test_a_folder_is_no_key_file(host: Cluster) -> None:
    assert "not a regular file" in refusal_of(host, host.datadir).message_detail


def test_a_named_pipe_is_refused_without_waiting_for_a_writer(host: Cluster) -> None:
    pipe = host.dir / "pipe.keys"
    os.mkfifo(pipe, 0o600)
    if os.geteuid() == 0:
        os.chown(pipe, host.datadir.stat().st_uid, -1)
    assert "not a regular file" in refusal_of(host, pipe).message_detail


def test_binary_garbage_is_no_key_file(host: Cluster) -> None:
    path = host.write_file("binary.keys", "")
    path.write_bytes(b"\xff\x00" * 16)
    assert "not UTF-8" in refusal_of(host, path).message_detail


# Reload


def vanish(path: Path) -> None:
    path.unlink()


def open_to_all(path: Path) -> None:
    path.chmod(0o644)


def garble(path: Path) -> None:
    path.write_text(CANARY)


@pytest.mark.parametrize(
    "break_it, reason",
    [(vanish, "No such file"), (open_to_all, "mode 0644"), (garble, "key 1: neither")],
)
def test_a_file_that_breaks_before_a_reload_costs_old_sessions_nothing(
    host: Cluster, break_it: Callable[[Path], None], reason: str
) -> None:
    key = new_key()
    use_another_ring(host, key)
    with host.connect() as old:
        sealed = fetch(old, "SELECT ciphertext(encrypt('x'))")
        log_before = len(host.log())
        break_it(host.dir / "ring.keys")
        host.reload(old)
        assert fetch(old, SEALED_UNDER) == key_id(key)
        assert fetch(old, "SELECT from_ciphertext(%s)::text", sealed) == "x"
        assert "the old one stays in force" in host.log()[log_before:]
        assert reason in host.log()[log_before:]
        with host.connect() as new:
            assert reason in missing_key(new, SEALED_UNDER).message_detail
    assert CANARY not in host.log()


def test_a_bad_key_setting_at_reload_leaves_the_old_ring(
    make_cluster: MakeCluster,
) -> None:
    key = new_key()
    cluster = make_cluster(
        conf={"shared_preload_libraries": "colcrypt", "colcrypt.key": key}
    )
    with cluster.connect() as old:
        assert fetch(old, SEALED_UNDER) == key_id(key)
        cluster.conf({"colcrypt.key": CANARY})
        cluster.reload(old)
        assert fetch(old, SEALED_UNDER) == key_id(key)
        # The postmaster refused the new text, so its children have the old.
        assert cluster.psql(SEALED_UNDER) == key_id(key)
    assert "invalid key ring in colcrypt.key" in cluster.log()
    assert CANARY not in cluster.log()


def test_reload_brings_the_new_primary_into_an_open_session(host: Cluster) -> None:
    old, new = new_key(), new_key()
    use_another_ring(host, old)
    with host.connect() as session:
        sealed = fetch(session, "SELECT ciphertext(encrypt('x'))")
        use_ring(host, f"{new},{old}", session)
        assert fetch(session, SEALED_UNDER) == key_id(new)
        assert fetch(session, "SELECT from_ciphertext(%s)::text", sealed) == "x"


def test_reload_reaches_a_session_with_keys_of_its_own(host: Cluster) -> None:
    old, new, own = new_key(), new_key(), new_key()
    use_another_ring(host, old)
    with host.connect() as session:
        session.execute("SELECT set_config('colcrypt.key', %s, false)", [own])
        assert fetch(session, SEALED_UNDER) == key_id(own)
        use_ring(host, f"{new},{old}", session)
        assert fetch(session, SEALED_UNDER) == key_id(own)
        sealed = host.psql("SELECT ciphertext(encrypt('x'))")
        assert fetch(session, "SELECT from_ciphertext(%s)::text", sealed) == "x"
        session.execute("RESET colcrypt.key")
        assert fetch(session, SEALED_UNDER) == key_id(new)


def test_reload_of_the_key_setting_reaches_a_session_with_keys_of_its_own(
    make_cluster: MakeCluster,
) -> None:
    old, new, own = new_key(), new_key(), new_key()
    cluster = make_cluster(
        conf={"shared_preload_libraries": "colcrypt", "colcrypt.key": old}
    )
    with cluster.connect() as session:
        session.execute("SELECT set_config('colcrypt.key', %s, false)", [own])
        assert fetch(session, SEALED_UNDER) == key_id(own)
        cluster.conf({"colcrypt.key": f"{new},{old}"})
        cluster.reload(session)
        sealed = cluster.psql("SELECT ciphertext(encrypt('x'))")
        assert fetch(session, "SELECT from_ciphertext(%s)::text", sealed) == "x"
        session.execute("RESET colcrypt.key")
        assert fetch(session, SEALED_UNDER) == key_id(new)


def test_literals_in_prepared_statements_follow_a_reload(host: Cluster) -> None:
    # A literal is sealed when its statement is parsed, which was before the reload.
    old, new = new_key(), new_key()
    use_another_ring(host, old)
    with host.connect() as session:
        literals_follow(
            session, old, new, lambda: use_ring(host, f"{new},{old}", session)
        )


def test_literals_in_prepared_statements_follow_a_reload_of_the_key_setting(
    make_cluster: MakeCluster,
) -> None:
    old, new = new_key(), new_key()
    preload = {"shared_preload_libraries": "colcrypt"}
    cluster = make_cluster(conf=preload | {"colcrypt.key": old})
    with cluster.connect() as session:

        def rotate() -> None:
            cluster.conf({"colcrypt.key": f"{new},{old}"})
            cluster.reload(session)

        literals_follow(session, old, new, rotate)


def literals_follow(
    session: psycopg.Connection, old: str, new: str, rotate: Callable[[], None]
) -> None:
    session.execute("CREATE TEMP TABLE t (n serial, secret encrypted_text)")
    session.execute("SET plan_cache_mode = force_generic_plan")
    session.execute("PREPARE p AS INSERT INTO t (secret) VALUES ('literal')")
    session.execute("EXECUTE p")
    session.execute("EXECUTE p")
    rotate()
    session.execute("EXECUTE p")
    ids = "SELECT (colcrypt.inspect(secret)).key_id FROM t ORDER BY n"
    found = [row[0] for row in session.execute(ids).fetchall()]
    assert found == [key_id(old), key_id(old), key_id(new)]


# The wrong key


def test_the_wrong_key_names_what_is_needed_and_what_is_loaded(host: Cluster) -> None:
    old, new, newer = new_key(), new_key(), new_key()
    use_another_ring(host, old)
    host.psql("CREATE TABLE w (secret encrypted_text); INSERT INTO w VALUES ('x')")
    use_ring(host, f"{newer},{new}")
    with host.connect() as session:
        diag = missing_key(session, "SELECT secret FROM w")
        writing = [
            missing_key(session, sql)
            for sql in (
                "INSERT INTO w VALUES ('y')",
                "INSERT INTO w SELECT 'y' || i FROM generate_series(1, 3) i",
                SEALED_UNDER,
            )
        ]
    assert (
        diag.message_primary == f"encryption key {key_id(old)} is not in the key ring"
    )
    assert diag.message_detail == f"Keys in the ring: {key_id(newer)}, {key_id(new)}."
    assert diag.message_hint
    for refused in writing:
        assert refused.message_primary.endswith(f", primary {key_id(newer)}")
        assert key_id(old) in refused.message_detail
        assert ACCEPT in refused.message_hint
    # Nothing of the refused ring is remembered, and with the old key behind it the
    # new one is that of a rotation.
    known = "SELECT key_id FROM colcrypt.key"
    assert not {key_id(newer), key_id(new)} & set(host.psql(known).split())
    use_ring(host, f"{newer},{old}")
    assert host.psql("INSERT INTO w VALUES ('y'); SELECT secret FROM w") == "x\ny"
    assert key_id(newer) in host.psql(known)
    host.psql("DROP TABLE w")


@pytest.mark.parametrize("session_key", [False, True])
def test_a_session_that_starts_with_a_parallel_query_has_its_keys(
    make_cluster: MakeCluster, session_key: bool
) -> None:
    """PostgreSQL loads the library in the middle of it, to print the first row."""
    cluster = make_cluster(ring=new_key())
    own = new_key()
    with cluster.connect() as session:
        session.execute("CREATE TABLE t (secret encrypted_text)")
        if session_key:
            session.execute("SELECT set_config('colcrypt.key', %s, false)", [own])
        session.execute("INSERT INTO t SELECT i::text FROM generate_series(1, 99) i")
    options = "-c parallel_setup_cost=0 -c parallel_tuple_cost=0"
    options += " -c min_parallel_table_scan_size=0"
    for leader in ("on", "off"):
        leads = f" -c parallel_leader_participation={leader}"
        with cluster.connect(options=options + leads) as session:
            if session_key:
                session.execute("SELECT set_config('colcrypt.key', %s, false)", [own])
            query = "SELECT secret FROM t WHERE ctid IS NOT NULL"
            plan = session.execute("EXPLAIN " + query).fetchall()
            assert any("Gather" in line for (line,) in plan), plan
            notices: list[str] = []
            session.add_notice_handler(
                lambda notice: notices.append(notice.message_primary or "")
            )
            found = {value for (value,) in session.execute(query).fetchall()}
            assert found == {str(i) for i in range(1, 100)}
            assert notices == []
            # And from then on.
            assert fetch(session, "SELECT count(secret::text) FROM t") == 99
            assert fetch(session, "SELECT decrypt(encrypt('x'))") == "x"
    assert "cannot be set during a parallel operation" not in cluster.log()
