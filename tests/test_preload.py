"""The library in shared_preload_libraries: the postmaster reads the key ring at its
start, a background worker at every reload, and all sessions have it from there."""

from __future__ import annotations

import ctypes
import json
import os
import re
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import decryptor
import psycopg
import pytest
from psycopg.errors import (
    CantChangeRuntimeParam,
    InsufficientPrivilege,
    ObjectNotInPrerequisiteState,
)

from conftest import MakeCluster
from harness import (
    BIN,
    SOCKET_LOCK,
    SUPERUSER,
    Cluster,
    PsqlError,
    Setting,
    children,
    command_line,
    fetch,
    is_running,
    key_id,
    new_key,
    processes,
    run_as_server,
    server_ids,
    wait_until,
)

SEALED_UNDER = "SELECT (colcrypt.inspect(encrypt('x'))).key_id"
SEAL = "SELECT ciphertext(encrypt('x'))"
OPEN = "SELECT from_ciphertext(%s)::text"
ACCEPT = "SELECT colcrypt.accept_key()"
SET_KEY = "SELECT set_config('colcrypt.key', %s, false)"
LAST_ERROR = "SELECT last_error FROM colcrypt.status()"
SOURCE = "SELECT source FROM colcrypt.status()"
KEY_IDS = "SELECT DISTINCT (colcrypt.inspect(secret)).key_id FROM t"
PRELOAD: dict[str, Setting] = {"shared_preload_libraries": "colcrypt"}
SOURCES = ["key", "key_file", "key_command", "environment"]
# What stands in a bad ring, and must not come back in a message.
CANARY = "canaryCANARYcanary"
# How long commands of this run sleep that are to be killed: how they are known.
SECONDS = f"{secrets.randbelow(10**6) + 10**6}"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="/proc of another user")
from_source = pytest.mark.parametrize("source", SOURCES)

Start = Callable[..., Cluster]


def bug(reason: str) -> pytest.MarkDecorator:
    return pytest.mark.xfail(strict=True, reason=reason)


@pytest.fixture
def start(make_cluster: MakeCluster) -> Start:
    """Makes servers that have the library preloaded."""

    def start(conf: Mapping[str, Setting] | None = None, **options: Any) -> Cluster:
        return make_cluster(conf=PRELOAD | dict(conf or {}), **options)

    return start


@pytest.fixture(scope="module")
def commander(base: Path, template: Path) -> Iterator[Cluster]:
    """A server whose colcrypt.key_command is a script that the tests replace."""
    cluster = Cluster(base, template)
    script(cluster, f"echo {new_key()}")
    cluster.conf(PRELOAD | {"colcrypt.key_command": f"sh {cluster.dir / 'script'}"})
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt")
    yield cluster
    cluster.destroy()


@pytest.fixture(scope="module")
def host(base: Path, template: Path) -> Iterator[Cluster]:
    """A server whose sources the tests replace: none may rely on another's."""
    cluster = Cluster(base, template, ring=new_key())
    cluster.conf(PRELOAD)
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt")
    cluster.psql("CREATE ROLE app LOGIN")
    yield cluster
    cluster.destroy()


def use_source(cluster: Cluster, source: str | None, ring: str) -> None:
    """Makes this the server's one source, from the next start or reload on. The
    environment is a matter of the start."""
    conf: dict[str, Setting] = dict.fromkeys(
        ["colcrypt.key", "colcrypt.key_file", "colcrypt.key_command"]
    )
    if source == "key":
        conf["colcrypt.key"] = ring
    elif source == "key_file":
        conf["colcrypt.key_file"] = str(cluster.write_file("ring.keys", ring))
    elif source == "key_command":
        conf["colcrypt.key_command"] = f"cat {cluster.write_file('printed', ring)}"
    elif source == "environment":
        cluster.set_env({"COLCRYPT_KEY": ring})
    cluster.conf(conf)


def script(cluster: Cluster, text: str) -> Path:
    return cluster.write_file("script", text)


def use_ring(host: Cluster, ring: str, *sessions: psycopg.Connection) -> None:
    use_source(host, "key_file", ring)
    host.reload(*sessions)


def use_another_ring(host: Cluster, ring: str) -> None:
    """A ring that has nothing to do with those of the tests before."""
    use_ring(host, ring)
    assert host.psql(LAST_ERROR) == ""
    host.psql(ACCEPT)


def status(session: psycopg.Connection) -> dict[str, Any]:
    cursor = session.execute("SELECT * FROM colcrypt.status()")
    assert cursor.description is not None
    names = [column.name for column in cursor.description]
    (row,) = cursor.fetchall()
    return dict(zip(names, row, strict=True))


def missing_key(session: psycopg.Connection, sql: str) -> psycopg.errors.Diagnostic:
    with pytest.raises(ObjectNotInPrerequisiteState) as refused:
        session.execute(sql)
    return refused.value.diag


def new_lines(cluster: Cluster, before: str) -> str:
    return cluster.log()[len(before) :]


def assert_no_key_material(text: str, *rings: str) -> None:
    """Also not a part of it."""
    for key in ",".join(rings).split(","):
        for start in range(0, len(key) - 15, 4):
            assert key[start : start + 16] not in text
    assert CANARY not in text


def environment_of(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_text(errors="replace")


# Starting without a usable key


def command(text: str) -> Callable[[Cluster], None]:
    return lambda cluster: cluster.conf({"colcrypt.key_command": text})


def setting(name: str, value: str) -> Callable[[Cluster], None]:
    return lambda cluster: cluster.conf({f"colcrypt.{name}": value})


def file(text: str, mode: int = 0o600) -> Callable[[Cluster], None]:
    def configure(cluster: Cluster) -> None:
        path = cluster.write_file("bad.keys", text, mode)
        cluster.conf({"colcrypt.key_file": str(path)})

    return configure


def variable(text: str) -> Callable[[Cluster], None]:
    return lambda cluster: cluster.set_env({"COLCRYPT_KEY": text})


PRINTED = new_key()
BROKEN: dict[str, tuple[Callable[[Cluster], None], str]] = {
    "bad key": (setting("key", f"{PRINTED},{CANARY}"), "colcrypt.key: key 2: neither"),
    "no file": (setting("key_file", "/nowhere/ring"), "No such file"),
    "a folder": (setting("key_file", "/tmp"), "not a regular file"),
    "open file": (file(PRINTED, 0o644), "mode 0644"),
    "bad file": (file(CANARY), "key 1: neither"),
    "empty file": (file(""), "holds no key"),
    "bad variable": (
        variable(f"{PRINTED} {CANARY}"),
        "environment variable COLCRYPT_KEY: key 2: neither",
    ),
    "command fails": (command(f"echo {PRINTED}; exit 3"), "failed with exit status: 3"),
    "no command": (command("/no/such/command"), "failed with exit status: 127"),
    "command is killed": (command(f"echo {PRINTED}; kill -9 $$"), "signal: 9"),
    "command crashes": (command("kill -SEGV $$"), "signal: 11"),
    "too much": (command("yes"), "larger than 64 KiB"),
    "too much by one": (
        command(f"echo {PRINTED}; head -c 65492 /dev/zero | tr '\\0' '#'"),
        "larger than 64 KiB",
    ),
    "not UTF-8": (command(f"echo {PRINTED}; printf '#\\377'"), "not UTF-8"),
    "nothing": (command("true"), "holds no key"),
    "only stderr": (command("echo no >&2"), "holds no key"),
    "bad text": (command(f"echo {CANARY}"), "colcrypt.key_command: key 1: neither"),
    "NUL": (command(f"echo {PRINTED}; printf '\\0\\0'"), "key 2: neither"),
}
broken = pytest.mark.parametrize("configure, reason", BROKEN.values(), ids=BROKEN)


@broken
def test_a_broken_source_is_warned_of_and_nothing_is_encrypted(
    server: Cluster,
    start: Start,
    configure: Callable[[Cluster], None],
    reason: str,
) -> None:
    cluster = start(start=False)
    configure(cluster)
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt")
    log = cluster.log()
    assert "WARNING:  colcrypt: encryption is not enabled" in log
    assert reason in log.partition("WARNING:  colcrypt: encryption is not enabled")[2]
    assert_not_usable(cluster, server.psql(SEAL), reason)
    assert_no_key_material(cluster.log().replace(f"echo {PRINTED}", ""), PRINTED)


def assert_not_usable(cluster: Cluster, sealed: str, reason: str) -> None:
    with cluster.connect() as session:
        for sql in ("SELECT encrypt('x')", f"SELECT from_ciphertext('{sealed}')::text"):
            diag = missing_key(session, sql)
            assert diag.message_primary == "no encryption key is configured"
            assert reason in diag.message_detail
            assert "colcrypt.key_file" in diag.message_hint
        now = status(session)
    assert (now["enabled"], now["primary_key"], now["source"]) == (False, None, None)
    assert (now["keys"], now["preloaded"], now["loaded_at"]) == (0, True, None)
    assert reason in now["last_error"]


@broken
def test_require_key_refuses_to_start_with_a_broken_source(
    start: Start, configure: Callable[[Cluster], None], reason: str
) -> None:
    cluster = start(
        {"colcrypt.require_key": True, "log_line_prefix": "%e "}, start=False
    )
    configure(cluster)
    assert_refuses_to_start(cluster, reason)
    assert_no_key_material(cluster.log(), PRINTED)


def assert_refuses_to_start(cluster: Cluster, reason: str) -> None:
    with pytest.raises(PsqlError):
        cluster.start()
    assert not cluster.is_running()
    log = cluster.log()
    fatal = log.partition("F0000 FATAL:  colcrypt.require_key is on, but ")[2]
    assert fatal.startswith("no encryption key could be loaded\n")
    assert reason in fatal
    hint = fatal.partition("HINT:")[2]
    for name in ("key_file", "key_command", "key_env", "key."):
        assert f"colcrypt.{name}" in hint


def test_without_any_source_the_server_starts_and_says_so(
    server: Cluster, start: Start
) -> None:
    cluster = start()
    assert "LOG:  colcrypt: encryption is not enabled" in cluster.log()
    assert "WARNING" not in cluster.log()
    with cluster.connect() as session:
        missing_key(session, SEAL)
        missing_key(session, f"SELECT from_ciphertext('{server.psql(SEAL)}')::text")
        now = status(session)
        assert (now["enabled"], now["keys"], now["last_error"]) == (False, 0, None)


def test_require_key_refuses_to_start_without_any_source(start: Start) -> None:
    conf = {"colcrypt.require_key": True, "log_line_prefix": "%e "}
    cluster = start(conf, start=False)
    assert_refuses_to_start(cluster, "No source of a key ring is set.")
    # And starts once there is one.
    cluster.set_ring(new_key())
    cluster.start()


def test_require_key_is_of_no_effect_in_a_running_server(start: Start) -> None:
    key = new_key()
    cluster = start({"colcrypt.require_key": True}, ring=key)
    cluster.set_ring(CANARY)
    cluster.reload()
    assert cluster.psql(SEALED_UNDER) == key_id(key)
    cluster.conf({"colcrypt.key_file": None})
    cluster.reload()
    with cluster.connect() as session:
        missing_key(session, SEAL)
    cluster.set_ring(key)
    cluster.reload()
    assert cluster.psql(SEALED_UNDER) == key_id(key)


def sleepers(seconds: str) -> list[int]:
    return [
        pid
        for pid in processes()
        if f"sleep {seconds}" in command_line(pid) and is_running(pid)
    ]


def test_a_command_that_hangs_is_killed_after_half_a_minute(
    server: Cluster, start: Start
) -> None:
    # All at once: each takes its time.
    hangs = f"echo {PRINTED}; (trap '' TERM; sleep {SECONDS}; true) & sleep {SECONDS}"
    key = new_key()
    lenient = start({"colcrypt.key_command": hangs}, start=False)
    strict = start(
        {
            "colcrypt.key_command": hangs,
            "colcrypt.require_key": True,
            "log_line_prefix": "%e ",
        },
        start=False,
    )
    running = start(start=False)
    path = script(running, f"echo {key}")
    running.conf({"colcrypt.key_command": f"sh {path}"})
    running.start()
    running.psql("CREATE EXTENSION colcrypt")

    def starts() -> float:
        began = time.monotonic()
        lenient.start()
        return time.monotonic() - began

    def refuses() -> None:
        assert_refuses_to_start(strict, "it did not end within 30 seconds")

    def goes_on() -> None:
        with running.connect() as fresh, running.connect() as session:
            sealed = fetch(session, SEAL)
            script(running, hangs)
            session.execute("SELECT pg_reload_conf()")
            rounds = 0
            while "the old one stays in force" not in running.log():
                # Sessions that are there need no postmaster.
                assert fetch(session, SEALED_UNDER) == key_id(key)
                assert fetch(session, OPEN, sealed) == "x"
                if rounds == 100:
                    assert fetch(fresh, SEALED_UNDER) == key_id(key)
                rounds += 1
                assert rounds < 2500
                time.sleep(0.02)
            assert rounds > 100
            wait_until(
                lambda: "30 seconds" in (fetch(session, LAST_ERROR) or ""),
                "what went wrong",
            )
            assert fetch(session, SEALED_UNDER) == key_id(key)
        assert running.psql(SEALED_UNDER) == key_id(key)

    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(work) for work in (starts, refuses, goes_on)]
        time.sleep(3)
        assert len(sleepers(SECONDS)) >= 3
        for future in futures:
            future.result(timeout=100)
    assert 29 < futures[0].result() < 45
    wait_until(lambda: sleepers(SECONDS) == [], "the command's end", seconds=3)
    lenient.psql("CREATE EXTENSION colcrypt")
    reason = "colcrypt.key_command: it did not end within 30 seconds"
    assert reason in lenient.log()
    assert_not_usable(lenient, server.psql(SEAL), reason)
    for cluster in (lenient, strict, running):
        log = cluster.log().replace(hangs, "")
        assert_no_key_material(log, PRINTED, key)


# What the log says


def described(ring: str, source: str) -> str:
    keys = ring.split(",")
    count = "1 key" if len(keys) == 1 else f"{len(keys)} keys"
    return f"{count}, primary {key_id(keys[0])}, from {source}"


def enabled_line(ring: str, source: str) -> str:
    return f"LOG:  colcrypt: encryption enabled, {described(ring, source)}\n"


def reloaded(ring: str, source: str) -> str:
    return f"key ring reloaded, {described(ring, source)}"


def ring_lines(cluster: Cluster, before: str = "") -> list[str]:
    """What the reloads since then have come to: there is a line for each."""
    lines = new_lines(cluster, before)
    return re.findall("LOG:  colcrypt: (key ring .*)", lines)


@from_source
@pytest.mark.parametrize("keys", [1, 3])
def test_the_start_is_logged_for_each_source(
    start: Start, source: str, keys: int
) -> None:
    ring = ",".join(new_key() for _ in range(keys))
    # From debug3 on PostgreSQL itself prints its environment, before it loads us.
    level = "debug2" if source == "environment" else "debug5"
    cluster = start({"log_min_messages": level}, start=False)
    use_source(cluster, source, ring)
    cluster.start()
    assert cluster.log().count("colcrypt: encryption enabled") == 1
    assert enabled_line(ring, source) in cluster.log()
    cluster.psql("CREATE EXTENSION colcrypt")
    with cluster.connect() as session:
        assert fetch(session, SEALED_UNDER) == key_id(ring.split(",")[0])
        cluster.reload(session)
        now = status(session)
    assert (now["enabled"], now["keys"], now["source"]) == (True, keys, source)
    assert now["primary_key"] == key_id(ring.split(",")[0])
    # Also if nothing has changed.
    assert ring_lines(cluster) == [reloaded(ring, source)]
    cluster.stop()
    assert_no_key_material(cluster.log(), ring)


def test_the_order_of_the_sources(start: Start) -> None:
    rings = {source: new_key() for source in SOURCES}
    cluster = start(
        {
            "colcrypt.key": rings["key"],
            "colcrypt.key_command": "cat printed",
            "colcrypt.dev_mode": True,
        },
        ring=rings["key_file"],
        env={"COLCRYPT_KEY": rings["environment"]},
        start=False,
    )
    path = cluster.write_file("printed", rings["key_command"])
    path.rename(cluster.datadir / "printed")
    for source in SOURCES:
        cluster.start()
        assert enabled_line(rings[source], source) in cluster.log()
        cluster.stop()
        cluster.conf({f"colcrypt.{source}": None})
        if source == "environment":
            cluster.conf({"colcrypt.environment": None})
    cluster.set_env({})
    cluster.start()
    assert re.search(r"enabled, 1 key, primary \w{8}, from dev_mode\n", cluster.log())


def test_a_ring_of_as_many_keys_as_fit(start: Start) -> None:
    # 44 characters a key, and a separator.
    keys = [new_key() for _ in range(65536 // 45)]
    cluster = start(ring=",".join(keys))
    assert f"encryption enabled, {len(keys)} keys" in cluster.log()
    with cluster.connect() as session:
        assert fetch(session, SEALED_UNDER) == key_id(keys[0])
        sealed = fetch(session, SEAL)
        keys = keys[1:] + keys[:1]
        cluster.set_ring("\n".join(keys))
        cluster.reload(session)
        assert fetch(session, SEALED_UNDER) == key_id(keys[0])
        assert fetch(session, OPEN, sealed) == "x"
        assert status(session)["keys"] == len(keys)


def test_names_of_keys_reach_the_sessions(start: Start) -> None:
    def ring(primary: str) -> str:
        return json.dumps({"primary": primary, "keys": keys}, ensure_ascii=False)

    keys = {"2026-05": new_key(), "2026-11": new_key(), "n" * 20 + "ä": new_key()}
    cluster = start(ring=ring("2026-05"))
    names = "SELECT coalesce(array_agg(name ORDER BY name), '{}') FROM colcrypt.keys"
    with cluster.connect() as session:
        found = [fetch(session, f"{names} WHERE loaded")]
        cluster.set_ring(ring("2026-11"))
        cluster.reload(session)
        found.append(fetch(session, f"{names} WHERE loaded"))
        assert fetch(session, SEALED_UNDER) == key_id(keys["2026-11"])
    assert found == [sorted(keys)] * 2


# The command


def test_a_command_runs_like_one_from_a_shell(start: Start) -> None:
    key = new_key()
    cluster = start(
        {"colcrypt.key_env": "THE_KEY"},
        start=False,
        env={"THE_KEY": new_key(), "REGION": "eu-north-1"},
    )
    printed = cluster.write_file("printed", key)
    told = cluster.dir / "told"
    text = f"""
        pwd > {told}
        grep -h -e SigBlk -e SigIgn /proc/self/status >> {told}
        echo "stdin: $(readlink /proc/self/fd/0)" >> {told}
        echo "region: $REGION, key: $THE_KEY." >> {told}
        ls /proc/self/fd > {told}.fds
        tr '\\0' '\\n' < /proc/self/environ > {told}.env
        echo helped >&2
        cat {printed}"""
    cluster.conf({"colcrypt.key_command": f"sh {script(cluster, text)}"})

    def check() -> None:
        lines = told.read_text().splitlines()
        assert lines[0] == str(cluster.datadir)
        assert lines[1] == "SigBlk:\t0000000000000000"
        # A command in a pipe must be told that nobody reads on.
        assert int(lines[2].split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0
        assert "stdin: /dev/null" in lines
        assert "region: eu-north-1, key: ." in lines
        # The fourth is what ls reads.
        assert Path(f"{told}.fds").read_text().split() == ["0", "1", "2", "3"]
        assert "THE_KEY" not in Path(f"{told}.env").read_text()
        told.unlink()

    cluster.start()
    check()
    cluster.reload()
    check()
    assert cluster.log().count("LOG:  colcrypt: key_command: helped\n") == 2
    cluster.psql("CREATE EXTENSION colcrypt")
    assert cluster.psql(SEALED_UNDER) == key_id(key)
    assert_no_key_material(cluster.log(), key)


@pytest.mark.parametrize("ok", [True, False])
def test_the_command_runs_once_for_each_start_and_reload(
    start: Start, ok: bool
) -> None:
    """Whatever other settings there are, and never in a session."""
    cluster = start(start=False)
    runs = cluster.dir / "runs"
    printed = cluster.write_file("printed", new_key() if ok else CANARY)
    cluster.conf(
        {
            "colcrypt.key_env": "OTHER_NAME",
            "colcrypt.key_command": f"echo run >> {runs}; cat {printed}",
            "colcrypt.dev_mode": False,
        }
    )
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt")
    with cluster.connect() as session:
        session.execute(SET_KEY, [new_key()])
        session.execute(SEAL)
        session.execute("RESET colcrypt.key")
        session.execute("SELECT colcrypt.status()")
        assert runs.read_text() == "run\n"
        cluster.reload(session)
        session.execute("SELECT colcrypt.status()")
        assert runs.read_text() == "run\n" * 2


@as_root
def test_the_command_leaves_neither_files_nor_zombies_in_the_postmaster(
    commander: Cluster,
) -> None:
    postmaster = commander.postmaster_pid()

    def held() -> tuple[int, int]:
        zombies = [pid for pid in children(postmaster) if not is_running(pid)]
        return len(os.listdir(f"/proc/{postmaster}/fd")), len(zombies)

    with commander.connect() as session:
        before = held()
        for text in (f"echo {new_key()}", "exit 3", "yes", "kill -9 $$", "no-such"):
            script(commander, text)
            commander.reload(session)
        # One by one, psql's own backends end.
        wait_until(lambda: held() == before, "the end of what was started")


KEY_SHAPES = {
    "base64": new_key(),
    "base64url": new_key().replace("+", "-").replace("/", "_"),
    "hex": secrets.token_hex(32),
    "passphrase": "passphrase:" + CANARY * 2,
    "quoted": f'{{"a": "{new_key()}"}}',
}


@pytest.mark.parametrize("shape", KEY_SHAPES.values(), ids=KEY_SHAPES)
@pytest.mark.parametrize("exit_status", [0, 1])
def test_what_looks_like_a_key_in_the_commands_messages_is_redacted(
    commander: Cluster, shape: str, exit_status: int
) -> None:
    key = new_key()
    before = commander.log()
    text = f"line one\nhelper: {shape}\n\nthe end\n"
    messages = commander.write_file("messages", text)
    script(commander, f"cat {messages} >&2; echo {key}; exit {exit_status}")
    commander.reload()
    log = new_lines(commander, before)
    assert "LOG:  colcrypt: key_command: line one\n" in log
    assert "LOG:  colcrypt: key_command: the end\n" in log
    assert re.search(r"key_command: helper: .*\*{8}", log)
    secret = shape.removeprefix('{"a": "').removesuffix('"}')
    assert_no_key_material(log, secret.removeprefix("passphrase:"), key)


def test_a_key_in_messages_that_are_cut_off_is_redacted(commander: Cluster) -> None:
    key, secret = new_key(), new_key()
    before = commander.log()
    # 4096 bytes are kept.
    messages = commander.write_file("messages", "." * 3 + ".\n" * 2026 + secret * 2)
    script(commander, f"cat {messages} >&2; echo {key}")
    commander.reload()
    assert "key_command: ." in new_lines(commander, before)
    assert_no_key_material(new_lines(commander, before), secret)


def test_messages_that_are_no_text_are_logged(commander: Cluster) -> None:
    key = new_key()
    before = commander.log()
    messages = b"a\xffb\x1b[31m%s%n\n" + b"why\n" * 100_000
    commander.write_file("messages", "").write_bytes(messages)
    script(commander, f"cat {commander.dir / 'messages'} >&2; echo {key}")
    commander.reload()
    log = new_lines(commander, before)
    assert "key_command: a\ufffdb" in log and "%s%n" in log
    assert 100 < log.count("key_command: why") < 2000
    commander.psql(ACCEPT)
    assert commander.psql(SEALED_UNDER) == key_id(key)


def test_what_a_command_leaves_running_ends_with_it(commander: Cluster) -> None:
    key = new_key()
    script(commander, f"echo {key}; (trap '' TERM; sleep {SECONDS}1; true) &")
    began = time.monotonic()
    commander.reload()
    assert time.monotonic() - began < 10
    commander.psql(ACCEPT)
    assert commander.psql(SEALED_UNDER) == key_id(key)
    wait_until(lambda: sleepers(f"{SECONDS}1") == [], "the command's end", seconds=3)


def adopt_orphans() -> None:
    """As the first process of a container, which the server is in a Docker image."""
    pr_set_child_subreaper = 36
    assert ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0) == 0


def start_as_init(cluster: Cluster) -> subprocess.Popen[bytes]:
    log = cluster.logfile.open("ab")
    process = subprocess.Popen(
        [str(BIN / "postgres"), "-D", str(cluster.datadir)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd="/",
        env=os.environ | cluster.env,
        preexec_fn=adopt_orphans,
        **server_ids(),
    )
    wait_until(cluster.accepts_sessions, "the server")
    return process


@pytest.mark.parametrize("ends", ["cat ../printed", "yes", "exit 3", "kill -9 $$"])
def test_what_a_command_leaves_behind_is_not_taken_for_a_crash(
    start: Start, ends: str
) -> None:
    """Where the server is the first process of its container it inherits what the
    command has started, and sees it end by SIGKILL."""
    key = new_key()
    cluster = start(start=False)
    path = script(cluster, f"echo {key}")
    cluster.conf({"colcrypt.key_command": f"sh {path}"})
    process = start_as_init(cluster)
    try:
        cluster.psql("CREATE EXTENSION colcrypt")
        with cluster.connect() as session:
            cluster.write_file("printed", key)
            script(cluster, f"sleep {SECONDS}2 & {ends}")
            session.execute("SELECT pg_reload_conf()")
            wait_until(lambda: ring_lines(cluster) != [], "the reload")
            wait_until(lambda: sleepers(f"{SECONDS}2") == [], "the end of the child")
            # The server looks after its children.
            time.sleep(0.5)
            assert fetch(session, SEALED_UNDER) == key_id(key)
        assert "terminat" not in cluster.log()
    finally:
        cluster.stop("immediate")
        process.wait()


def test_the_command_is_not_for_sessions_to_set_or_see(host: Cluster) -> None:
    names = ["key_file", "key_command", "key_env", "dev_mode", "require_key"]
    with host.connect(user="app") as app, host.connect() as session:
        for name in names:
            for sql in (
                f"SET colcrypt.{name} = 'on'",
                f"ALTER ROLE app SET colcrypt.{name} = 'on'",
                f"ALTER DATABASE postgres SET colcrypt.{name} = 'on'",
            ):
                with pytest.raises((CantChangeRuntimeParam, InsufficientPrivilege)):
                    app.execute(sql)
                with pytest.raises(CantChangeRuntimeParam):
                    session.execute(sql)
            options = f"-c colcrypt.{name}=on"
            with pytest.raises(psycopg.OperationalError):
                host.connect(options=options)
        for name in names[:2]:
            with pytest.raises(InsufficientPrivilege):
                app.execute(f"SHOW colcrypt.{name}")
    assert host.psql(LAST_ERROR) == ""


# dev_mode


def test_dev_mode_makes_a_key_for_one_start(start: Start) -> None:
    cluster = start({"colcrypt.dev_mode": True, "colcrypt.require_key": True})
    assert "WARNING:  colcrypt: dev_mode has made a random" in cluster.log()
    cluster.psql("CREATE TABLE t (secret encrypted_text); INSERT INTO t VALUES ('x')")
    with cluster.connect() as session:
        now = status(session)
        assert (now["enabled"], now["source"], now["keys"]) == (True, "dev_mode", 1)
        # For the whole start: other sessions, reloads and a crash change nothing.
        cluster.reload(session)
        assert fetch(session, SEALED_UNDER) == now["primary_key"]
        pid = fetch(session, "SELECT pg_backend_pid()")
        cluster.kill_backend(pid)
    assert cluster.psql("SELECT secret FROM t") == "x"
    assert cluster.psql(SEALED_UNDER) == now["primary_key"]
    cluster.restart()
    with cluster.connect() as session:
        again = status(session)
        assert again["primary_key"] != now["primary_key"]
        diag = missing_key(session, "SELECT secret FROM t")
        assert now["primary_key"] in diag.message_primary
        assert again["primary_key"] in diag.message_detail
        assert "colcrypt.dev_mode" in diag.message_detail
        heard: list[str] = []
        session.add_notice_handler(
            lambda notice: heard.append(f"{notice.severity}: {notice.message_primary}")
        )
        session.execute("INSERT INTO t VALUES ('y')")
        session.execute("INSERT INTO t VALUES ('z')")
        # Once: then it is remembered.
        assert len(heard) == 1 and heard[0].startswith("WARNING: ")
        assert again["primary_key"] in heard[0]
        assert fetch(session, "SELECT count(try_decrypt(secret)) FROM t") == 2


@pytest.mark.parametrize(
    "name", ["bad key", "no file", "empty file", "bad variable", "command fails"]
)
def test_dev_mode_does_not_stand_in_for_a_broken_source(
    server: Cluster, start: Start, name: str
) -> None:
    configure, reason = BROKEN[name]
    cluster = start({"colcrypt.dev_mode": True}, start=False)
    configure(cluster)
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt")
    assert_not_usable(cluster, server.psql(SEAL), reason)
    assert "random encryption key" not in cluster.log()


def test_dev_mode_gives_way_to_a_key_that_comes_later(start: Start) -> None:
    cluster = start({"colcrypt.dev_mode": True})
    key = new_key()
    with cluster.connect() as session:
        session.execute(SEAL)
        cluster.set_ring(key)
        cluster.reload(session)
        assert fetch(session, SOURCE) == "key_file"
        # A real ring is guarded against, too.
        diag = missing_key(session, SEAL)
        assert key_id(key) in diag.message_primary
        fetch(session, ACCEPT)
        assert fetch(session, SEALED_UNDER) == key_id(key)


def test_dev_mode_that_comes_with_a_reload_is_warned_of(start: Start) -> None:
    cluster = start()
    with cluster.connect() as session:
        missing_key(session, SEAL)
        before = cluster.log()
        cluster.conf({"colcrypt.dev_mode": True})
        cluster.reload(session)
        now = status(session)
        assert (now["enabled"], now["source"]) == (True, "dev_mode")
        assert "WARNING:  colcrypt: dev_mode" in new_lines(cluster, before)
        primary = now["primary_key"]
        (line,) = ring_lines(cluster, before)
        assert line == f"key ring reloaded, 1 key, primary {primary}, from dev_mode"
        # It stays the same, but does not come back.
        cluster.reload(session)
        assert fetch(session, SEALED_UNDER) == primary
        for dev_mode in (None, True):
            cluster.conf({"colcrypt.dev_mode": dev_mode})
            cluster.reload(session)
            missing_key(session, SEAL)


def test_dev_mode_does_not_stand_in_for_a_ring_that_was_taken_away(
    host: Cluster,
) -> None:
    use_another_ring(host, new_key())
    before = host.log()
    use_source(host, None, "")
    host.conf({"colcrypt.dev_mode": True})
    try:
        host.reload()
        assert host.psql(SOURCE) == ""
        with host.connect() as session:
            detail = missing_key(session, SEAL).message_detail or ""
        assert "colcrypt.dev_mode makes a key only where there was none" in detail
        (line,) = ring_lines(host, before)
        why = "key ring reloaded, there is none any more: colcrypt.dev_mode makes"
        assert line.startswith(why)
        assert "WARNING" not in new_lines(host, before)
    finally:
        host.conf({"colcrypt.dev_mode": None})
    host.reload()
    assert host.psql(SOURCE) == ""


@pytest.mark.parametrize(
    "name, value", [("dev_mode", "on"), ("key_command", f"echo {PRINTED}")]
)
def test_without_preload_what_needs_it_says_so(
    make_cluster: MakeCluster, name: str, value: str
) -> None:
    cluster = make_cluster(conf={f"colcrypt.{name}": value})
    with cluster.connect() as session:
        detail = missing_key(session, SEAL).message_detail
        assert f"colcrypt.{name}" in detail
        assert "shared_preload_libraries" in detail
        now = status(session)
        assert (now["enabled"], now["preloaded"]) == (False, False)
        assert f"colcrypt.{name}" in now["last_error"]
        # And leaves the next source.
        key = new_key()
        cluster.set_ring(key)
        cluster.reload(session)
        assert fetch(session, SEALED_UNDER) == key_id(key)


# The environment


def environments(cluster: Cluster) -> str:
    """Those of all its processes."""
    postmaster = cluster.postmaster_pid()
    texts = [environment_of(postmaster)]
    for pid in children(postmaster):
        # It may end meanwhile.
        with suppress(ProcessLookupError, FileNotFoundError):
            texts.append(environment_of(pid))
    assert len(texts) > 4
    return "\n".join(texts)


def copied_environment(cluster: Cluster) -> str:
    path = cluster.dir / "env"
    # It reads what it gets: else PostgreSQL may find the pipe broken.
    cluster.psql(f"COPY (SELECT 1) TO PROGRAM 'cat > /dev/null; env > {path}'")
    return path.read_text()


@as_root
@pytest.mark.parametrize("name", ["COLCRYPT_KEY", "APP_SECRET"])
@pytest.mark.parametrize("winner", ["environment", "key_file", "key"])
def test_the_variable_is_taken_out_of_the_environment(
    start: Start, name: str, winner: str
) -> None:
    key, other = new_key(), new_key()
    cluster = start(
        {"colcrypt.key_env": name},
        env={name: key, f"{name}_FILE": "stays", "BEFORE": "stays too"},
        start=False,
    )
    if winner != "environment":
        use_source(cluster, winner, other)
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt")

    def assert_gone() -> None:
        for text in (environments(cluster), copied_environment(cluster)):
            assert key not in text
            assert f"{name}_FILE=stays" in text and "BEFORE=stays too" in text

    with cluster.connect() as session:
        expected = key if winner == "environment" else other
        assert fetch(session, SEALED_UNDER) == key_id(expected)
        assert_gone()
        assert f"{name}=" not in copied_environment(cluster)
        # It stays usable.
        cluster.reload(session)
        assert fetch(session, SEALED_UNDER) == key_id(expected)
        cluster.kill_backend(fetch(session, "SELECT pg_backend_pid()"))
    assert_gone()
    assert cluster.psql(SEALED_UNDER) == key_id(expected)
    with cluster.connect() as session:
        use_source(cluster, None, "")
        cluster.reload(session)
        if winner != "environment":
            session.execute(ACCEPT)
        assert fetch(session, SEALED_UNDER) == key_id(key)
        assert fetch(session, SOURCE) == "environment"
    assert cluster.psql(SEALED_UNDER) == key_id(key)
    assert_gone()
    assert_no_key_material(cluster.log(), key)


@as_root
def test_a_broken_variable_is_taken_out_as_well(start: Start) -> None:
    cluster = start(env={"COLCRYPT_KEY": f"{PRINTED},{CANARY}"})
    for text in (environments(cluster), copied_environment(cluster)):
        assert CANARY not in text and PRINTED not in text


@as_root
def test_a_variable_that_a_reload_names_is_taken_out_of_the_environment(
    start: Start,
) -> None:
    first, second = new_key(), new_key()
    cluster = start(env={"COLCRYPT_KEY": first, "APP_SECRET": f"{second},{first}"})
    with cluster.connect() as session:
        assert fetch(session, SEALED_UNDER) == key_id(first)
        cluster.conf({"colcrypt.key_env": "APP_SECRET"})
        cluster.reload(session)
        assert fetch(session, SEALED_UNDER) == key_id(second)
        assert second not in environment_of(cluster.postmaster_pid())
    assert second not in copied_environment(cluster)
    assert cluster.psql(SEALED_UNDER) == key_id(second)
    # And back: what was taken is kept.
    cluster.conf({"colcrypt.key_env": None})
    cluster.reload()
    assert cluster.psql(SEALED_UNDER) == key_id(first)


@as_root
def test_a_variable_that_a_reload_names_is_taken_out_also_if_a_file_wins(
    start: Start,
) -> None:
    key = new_key()
    cluster = start(ring=new_key(), env={"APP_SECRET": key})
    cluster.conf({"colcrypt.key_env": "APP_SECRET"})
    cluster.reload()
    assert key not in environment_of(cluster.postmaster_pid())
    assert key not in copied_environment(cluster)


# Reload


def test_a_reload_reaches_every_kind_of_session(host: Cluster) -> None:
    old, new, own = new_key(), new_key(), new_key()
    use_another_ring(host, old)
    with (
        host.connect() as idle,
        host.connect() as fresh,
        host.connect(autocommit=False) as within,
        host.connect() as prepared,
        host.connect() as bearer,
    ):
        idle.execute("DROP TABLE IF EXISTS t; CREATE TABLE t (secret encrypted_text)")
        sealed = fetch(idle, SEAL)
        within.execute("INSERT INTO t VALUES ('before')")
        prepared.execute("SET plan_cache_mode = force_generic_plan")
        prepared.execute("PREPARE p AS INSERT INTO t VALUES ('literal'), ($1)")
        prepared.execute("PREPARE q AS SELECT secret FROM t ORDER BY secret::text")
        prepared.execute("EXECUTE p('parameter')")
        assert prepared.execute("EXECUTE q").fetchall()
        bearer.execute(SET_KEY, [own])
        assert fetch(bearer, SEALED_UNDER) == key_id(own)
        use_ring(host, f"{new},{old}", idle, fresh, within, prepared, bearer)
        for session in (idle, fresh, within, prepared):
            assert fetch(session, SEALED_UNDER) == key_id(new)
            assert fetch(session, OPEN, sealed) == "x"
            now = status(session)
            assert (now["keys"], now["source"]) == (2, "key_file")
        within.execute("INSERT INTO t VALUES ('after')")
        within.commit()
        idle.execute("TRUNCATE t")
        prepared.execute("EXECUTE p('parameter')")
        assert prepared.execute("EXECUTE q").fetchall() == [
            ("literal",),
            ("parameter",),
        ]
        assert prepared.execute(KEY_IDS).fetchall() == [(key_id(new),)]
        assert fetch(bearer, SEALED_UNDER) == key_id(own)
        assert fetch(bearer, OPEN, fetch(idle, SEAL)) == "x"
        bearer.execute("RESET colcrypt.key")
        assert fetch(bearer, SEALED_UNDER) == key_id(new)
    assert host.psql(SEALED_UNDER) == key_id(new)


def test_a_cursor_that_was_open_before_a_reload_is_read_on(host: Cluster) -> None:
    old, new = new_key(), new_key()
    use_another_ring(host, old)
    with host.connect() as session:
        session.execute("CREATE TEMP TABLE c (secret encrypted_text)")
        session.execute("INSERT INTO c SELECT i::text FROM generate_series(1, 9) i")
        session.execute("BEGIN; DECLARE d CURSOR FOR SELECT secret FROM c")
        assert fetch(session, "FETCH d") == "1"
        use_ring(host, f"{new},{old}", session)
        assert fetch(session, "FETCH d") == "2"
        use_ring(host, new, session)
        diag = missing_key(session, "FETCH d")
        assert key_id(old) in diag.message_primary
        session.execute("ROLLBACK")
        use_ring(host, f"{new},{old}", session)
        assert fetch(session, "SELECT count(secret::text) FROM c") == 9


BREAKAGES: dict[str, tuple[Callable[[Cluster], None], str]] = {
    **{
        name: BROKEN[name]
        for name in ("no file", "open file", "bad file", "command fails", "bad text")
    },
    "bad variable": (setting("key_env", "NOT_A_RING"), "variable NOT_A_RING: key 1"),
}


@pytest.mark.parametrize("name", ["vanished", "open", "garbled", "empty", "too large"])
def test_a_file_that_breaks_leaves_the_old_ring_for_all_and_is_logged_once(
    host: Cluster, name: str
) -> None:
    key = new_key()
    use_another_ring(host, key)
    path = host.dir / "ring.keys"
    reason = {
        "vanished": "No such file",
        "open": "mode 0644",
        "garbled": "key 1: neither",
        "empty": "holds no key",
        "too large": "larger than 64 KiB",
    }[name]
    sessions = [host.connect() for _ in range(4)]
    try:
        sealed = [fetch(session, SEAL) for session in sessions[:3]][0]
        loaded_at = status(sessions[0])["loaded_at"]
        before = host.log()
        if name == "vanished":
            path.unlink()
        elif name == "open":
            path.chmod(0o644)
        else:
            texts = {"garbled": CANARY, "empty": "", "too large": "#" * 70000}
            host.write_file("ring.keys", texts[name])
        host.reload(*sessions)
        sessions.append(host.connect())
        for session in sessions:
            assert fetch(session, SEALED_UNDER) == key_id(key)
            assert fetch(session, OPEN, sealed) == "x"
            now = status(session)
            assert reason in now["last_error"]
            assert now["loaded_at"] == loaded_at
            assert (now["enabled"], now["source"]) == (True, "key_file")
        log = new_lines(host, before)
        assert log.count("the old one stays in force") == 1
        assert reason in log and CANARY not in log
        host.write_file("ring.keys", key)
        host.reload(*sessions)
        for session in sessions:
            now = status(session)
            assert (now["last_error"], now["primary_key"]) == (None, key_id(key))
            assert now["loaded_at"] > loaded_at
        assert new_lines(host, before).count("the old one stays in force") == 1
    finally:
        for session in sessions:
            session.close()


def test_a_file_that_breaks_is_logged_once_whatever_else_is_set(start: Start) -> None:
    # A reload assigns each of them anew.
    conf = {"colcrypt.key_env": "NO_SUCH", "colcrypt.dev_mode": False}
    cluster = start(conf, ring=new_key())
    (cluster.dir / "ring.keys").unlink()
    cluster.reload()
    (line,) = ring_lines(cluster)
    assert line.startswith("key ring not reloaded, the old one stays in force: ")


def test_a_file_that_was_changed_is_used_from_the_reload_on(host: Cluster) -> None:
    old, new = new_key(), new_key()
    use_another_ring(host, old)
    with host.connect() as session:
        host.write_file("ring.keys", f"{new},{old}")
        assert fetch(session, SEALED_UNDER) == key_id(old)
        # Nor by what makes a session look for its keys.
        session.execute(SET_KEY, [new_key()])
        session.execute(SEAL)
        session.execute("DISCARD ALL")
        assert fetch(session, SEALED_UNDER) == key_id(old)
        assert host.psql(SEALED_UNDER) == key_id(old)
        (host.dir / "ring.keys").unlink()
        assert host.psql(SEALED_UNDER) == key_id(old)
        host.write_file("ring.keys", f"{new},{old}")
        host.reload(session)
        assert fetch(session, SEALED_UNDER) == key_id(new)
    assert host.psql(SEALED_UNDER) == key_id(new)


def test_a_file_on_the_command_line_is_read_again_at_a_reload(start: Start) -> None:
    old, new = new_key(), new_key()
    cluster = start(start=False)
    path = cluster.write_file("cli.keys", old)
    cluster.start(f"-c colcrypt.key_file={path}")
    assert enabled_line(old, "key_file") in cluster.log()
    cluster.psql("CREATE EXTENSION colcrypt")
    with cluster.connect() as session, cluster.connect() as fresh:
        sealed = fetch(session, SEAL)
        cluster.write_file("cli.keys", f"{new},{old}")
        assert fetch(session, SEALED_UNDER) == key_id(old)
        cluster.reload(session, fresh)
        for each in (session, fresh):
            assert fetch(each, SEALED_UNDER) == key_id(new)
            assert fetch(each, OPEN, sealed) == "x"
        assert cluster.psql(SEALED_UNDER) == key_id(new)
        # What breaks costs nothing, neither old sessions nor new ones.
        path.unlink()
        cluster.reload(session, fresh)
        for each in (session, fresh):
            assert fetch(each, SEALED_UNDER) == key_id(new)
            assert "No such file" in fetch(each, LAST_ERROR)
        assert cluster.psql(SEALED_UNDER) == key_id(new)


def test_a_changed_file_on_the_command_line_waits_for_the_reload(start: Start) -> None:
    old, new = new_key(), new_key()
    cluster = start(start=False)
    path = cluster.write_file("cli.keys", old)
    cluster.start(f"-c colcrypt.key_file={path}")
    cluster.psql("CREATE EXTENSION colcrypt")
    assert cluster.psql(SEALED_UNDER) == key_id(old)
    cluster.write_file("cli.keys", f"{new},{old}")
    assert cluster.psql(SEALED_UNDER) == key_id(old)


def test_a_command_on_the_command_line_is_run_again_at_a_reload(start: Start) -> None:
    # Where a container has its settings.
    old, new = new_key(), new_key()
    cluster = start(start=False)
    path = cluster.write_file("printed", old)
    cluster.start(f"-c colcrypt.key_command='cat {path}'")
    cluster.psql("CREATE EXTENSION colcrypt")
    with cluster.connect() as session:
        assert fetch(session, SEALED_UNDER) == key_id(old)
        cluster.write_file("printed", f"{new},{old}")
        cluster.reload(session)
        assert fetch(session, SEALED_UNDER) == key_id(new)


def test_what_the_command_prints_is_taken_anew_at_a_reload(
    commander: Cluster,
) -> None:
    old, new = new_key(), new_key()
    script(commander, f"echo {old}")
    commander.reload()
    commander.psql(ACCEPT)
    with commander.connect() as session:
        sealed = fetch(session, SEAL)
        script(commander, f"echo {new},{old}")
        assert fetch(session, SEALED_UNDER) == key_id(old)
        commander.reload(session)
        assert fetch(session, SEALED_UNDER) == key_id(new)
        assert fetch(session, OPEN, sealed) == "x"
        # Then it fails, and recovers.
        script(commander, "exit 3")
        commander.reload(session)
        assert "exit status: 3" in fetch(session, LAST_ERROR)
        assert fetch(session, SEALED_UNDER) == key_id(new)
        assert commander.psql(SEALED_UNDER) == key_id(new)
        script(commander, f"echo {old},{new}")
        commander.reload(session)
        assert fetch(session, LAST_ERROR) is None
        assert fetch(session, SEALED_UNDER) == key_id(old)


@pytest.mark.parametrize("other", ["key_env", "dev_mode"])
def test_why_the_command_failed_is_told_whatever_else_is_set(
    start: Start, other: str
) -> None:
    key = new_key()
    cluster = start(start=False)
    use_source(cluster, "key_command", key)
    # After the command: in this order a reload assigns them.
    value = {"key_env": "NO_SUCH", "dev_mode": False}[other]
    cluster.conf({f"colcrypt.{other}": value})
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt")
    (cluster.dir / "printed").unlink()
    cluster.reload()
    assert cluster.psql(SEALED_UNDER) == key_id(key)
    assert "exit status: 1" in cluster.psql(LAST_ERROR)
    assert cluster.log().count("the old one stays in force") == 1


def test_the_sources_are_switched_by_reloads(start: Start) -> None:
    rings = {source: new_key() for source in SOURCES}
    cluster = start(start=False, env={"COLCRYPT_KEY": rings["environment"]})
    use_source(cluster, "key_file", rings["key_file"])
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt")
    order = ["key_command", "environment", "key", "key_file", "key", "key_command"]
    with cluster.connect() as session, cluster.connect() as other:
        other.execute(SET_KEY, [new_key()])
        assert fetch(session, SOURCE) == "key_file"
        assert fetch(other, SOURCE) == "session"
        for source in order:
            use_source(cluster, source, rings[source])
            cluster.reload(session, other)
            fetch(session, ACCEPT)
            expected = (source, key_id(rings[source]), 1, None)
            names = ("source", "primary_key", "keys", "last_error")
            now = status(session)
            assert tuple(now[name] for name in names) == expected
            assert fetch(session, SEALED_UNDER) == key_id(rings[source])
            assert cluster.psql(SEALED_UNDER) == key_id(rings[source])
            assert fetch(other, SOURCE) == "session"
            assert fetch(other, "SELECT keys FROM colcrypt.status()") == 2
        cluster.conf({"colcrypt.key_env": ""})
        use_source(cluster, None, "")
        cluster.reload(session, other)
        missing_key(session, SEAL)
        assert fetch(session, SOURCE) is None
        assert fetch(other, "SELECT keys FROM colcrypt.status()") == 1
        other.execute("RESET colcrypt.key")
        missing_key(other, SEAL)
    assert ring_lines(cluster) == [
        *(reloaded(rings[source], source) for source in order),
        "key ring reloaded, there is none any more: no source is set",
    ]
    assert_no_key_material(cluster.log(), *rings.values())


def test_the_log_tells_of_a_switch_once(start: Start) -> None:
    old, new = new_key(), new_key()
    cluster = start(ring=old, env={"COLCRYPT_KEY": new_key()})
    before = cluster.log()
    use_source(cluster, "key_command", f"{new},{old}")
    cluster.reload()
    assert ring_lines(cluster, before) == [reloaded(f"{new},{old}", "key_command")]


SWITCHES = [
    ("key", "bad file"),
    ("key_file", "command fails"),
    ("key_file", "bad variable"),
    ("key_command", "no file"),
    ("key_command", "bad text"),
    ("environment", "open file"),
]


@pytest.mark.parametrize("before, after", SWITCHES)
def test_a_switch_to_a_broken_source_leaves_the_old_ring(
    start: Start, before: str, after: str
) -> None:
    configure, reason = BREAKAGES[after]
    # The old source is taken out of the configuration at the same time.
    key = new_key()
    env = {"NOT_A_RING": CANARY}
    cluster = start(start=False)
    use_source(cluster, before, key)
    cluster.set_env(cluster.env | env)
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt")
    with cluster.connect() as session:
        assert fetch(session, SEALED_UNDER) == key_id(key)
        use_source(cluster, None, "")
        configure(cluster)
        cluster.reload(session)
        now = status(session)
        assert reason in (now["last_error"] or "")
        assert (now["enabled"], now["source"]) == (True, before)
        assert fetch(session, SEALED_UNDER) == key_id(key)
    assert cluster.psql(SEALED_UNDER) == key_id(key)


@pytest.mark.parametrize("behind", [None, "environment", "dev_mode"])
def test_no_session_sees_what_a_switch_goes_through(
    start: Start, behind: str | None
) -> None:
    """From a file to a command that takes its time: the file's entry has gone first."""
    old, new = new_key(), new_key()
    conf = {"colcrypt.dev_mode": True} if behind == "dev_mode" else {}
    env = {"COLCRYPT_KEY": new_key()} if behind == "environment" else {}
    cluster = start(conf, ring=old, env=env)
    printed = cluster.write_file("printed", f"{new},{old}")
    with cluster.connect() as session:
        assert fetch(session, SEALED_UNDER) == key_id(old)
        use_source(cluster, None, "")
        started = cluster.dir / "started"
        cluster.conf(
            {"colcrypt.key_command": f"touch {started}; sleep 1; cat {printed}"}
        )
        session.execute("SELECT pg_reload_conf()")
        wait_until(started.exists, "the command", seconds=5)
        seen = set()
        deadline = time.monotonic() + 3
        while key_id(new) not in seen and time.monotonic() < deadline:
            # That makes it look for its keys.
            session.execute(SET_KEY, [new_key()])
            session.execute("RESET colcrypt.key")
            seen.add(fetch(session, "SELECT primary_key FROM colcrypt.status()"))
            time.sleep(0.01)
    assert seen == {key_id(old), key_id(new)}
    assert "no key ring is configured" not in cluster.log()
    assert "from dev_mode" not in cluster.log()
    assert "from environment" not in cluster.log()


def test_a_bad_key_setting_at_a_reload_is_told_by_status(start: Start) -> None:
    key = new_key()
    cluster = start({"colcrypt.key": key})
    with cluster.connect() as session:
        cluster.conf({"colcrypt.key": CANARY})
        cluster.reload(session)
        assert fetch(session, SEALED_UNDER) == key_id(key)
        assert cluster.psql(SEALED_UNDER) == key_id(key)
        assert CANARY not in cluster.log()
        assert "key 1: neither" in (fetch(session, LAST_ERROR) or "")
        assert "key 1: neither" in cluster.psql(LAST_ERROR)
        cluster.conf({"colcrypt.key": key})
        cluster.reload(session)
        assert fetch(session, LAST_ERROR) is None


@pytest.mark.parametrize("place", ["before the file", "after the file"])
def test_a_bad_key_setting_that_is_taken_out_again_is_forgotten(
    start: Start, place: str
) -> None:
    old, new = new_key(), new_key()
    cluster = start(ring=old)
    in_front = place == "before the file"
    with cluster.connect() as session:
        assert fetch(session, SEALED_UNDER) == key_id(old)
        path = cluster.settings.pop("colcrypt.key_file")
        conf = {"colcrypt.key_file": path, "colcrypt.key": CANARY}
        cluster.conf(dict(reversed(conf.items())) if in_front else conf)
        cluster.reload(session)
        # Fail closed, as at the start: the old ring, not the file's new one.
        assert fetch(session, SEALED_UNDER) == key_id(old)
        assert "key 1: neither" in (fetch(session, LAST_ERROR) or "")
        cluster.conf({"colcrypt.key": None})
        cluster.set_ring(f"{new},{old}")
        cluster.reload(session)
        assert fetch(session, LAST_ERROR) is None
        assert fetch(session, SEALED_UNDER) == key_id(new)
        assert cluster.psql(SEALED_UNDER) == key_id(new)
    assert CANARY not in cluster.log()


def test_a_server_that_started_with_a_bad_key_setting_recovers(start: Start) -> None:
    key = new_key()
    cluster = start({"colcrypt.key": CANARY})
    with cluster.connect() as session:
        missing_key(session, SEAL)
        cluster.conf({"colcrypt.key": None})
        cluster.set_ring(key)
        cluster.reload(session)
        assert fetch(session, SEALED_UNDER) == key_id(key)
        assert fetch(session, LAST_ERROR) is None
    assert cluster.psql(SEALED_UNDER) == key_id(key)


def test_a_syntax_error_in_the_configuration_changes_no_source(host: Cluster) -> None:
    old, new, other = new_key(), new_key(), new_key()
    use_another_ring(host, old)
    with host.connect() as session:
        before = host.log()
        path = host.settings["colcrypt.key_file"]
        try:
            host.conf({"colcrypt.key_file": str(host.write_file("other.keys", other))})
            host.append_conf("this is no setting")
            # What pg_conf_load_time() says stays as it is.
            session.execute("SELECT pg_reload_conf()")
            wait_until(lambda: ring_lines(host, before) != [], "the refused reload")
            assert "syntax error" in new_lines(host, before)
            assert fetch(session, SEALED_UNDER) == key_id(old)
            # The source that stays is read as at any reload.
            host.write_file("ring.keys", f"{new},{old}")
            session.execute("SELECT pg_reload_conf()")
            wait_until(lambda: len(ring_lines(host, before)) == 2, "the second one")
            assert fetch(session, SEALED_UNDER) == key_id(new)
        finally:
            host.raw_conf = ""
            host.conf({"colcrypt.key_file": path})
        host.reload(session)
        assert fetch(session, SEALED_UNDER) == key_id(new)
    assert ring_lines(host, before) == [
        reloaded(old, "key_file"),
        *[reloaded(f"{new},{old}", "key_file")] * 2,
    ]


def test_alter_system_names_a_key_file(host: Cluster) -> None:
    old, new = new_key(), new_key()
    use_another_ring(host, old)
    path = host.write_file("system.keys", f"{new},{old}")
    with host.connect() as session:
        session.execute(f"ALTER SYSTEM SET colcrypt.key_file = '{path}'")
        try:
            host.reload(session)
            assert fetch(session, SEALED_UNDER) == key_id(new)
        finally:
            session.execute("ALTER SYSTEM RESET colcrypt.key_file")
        host.reload(session)
        assert fetch(session, SEALED_UNDER) == key_id(old)


def test_passphrases_are_reloaded(host: Cluster) -> None:
    phrases = [f"correct-horse-battery-staple-number-{i:06}" for i in range(2)]
    ids = [decryptor.key_id(decryptor.passphrase_key(text)).hex() for text in phrases]
    use_another_ring(host, f"passphrase:{phrases[0]}")
    with host.connect() as session:
        sealed = fetch(session, SEAL)
        assert fetch(session, SEALED_UNDER) == ids[0]
        use_ring(host, f"passphrase:{phrases[1]}\npassphrase:{phrases[0]}", session)
        # No session derives the keys again: that takes a tenth of a second.
        began = time.process_time()
        assert fetch(session, SEALED_UNDER) == ids[1]
        assert fetch(session, OPEN, sealed) == "x"
        assert time.process_time() - began < 1
    assert host.psql(SEALED_UNDER) == ids[1]
    for phrase in phrases:
        assert phrase not in host.log()


def test_a_reload_of_a_broken_command_without_a_ring_does_not_claim_an_old_one(
    start: Start,
) -> None:
    cluster = start({"colcrypt.key_command": "exit 3"})
    before = cluster.log()
    cluster.reload()
    assert ring_lines(cluster, before) == [
        "key ring not reloaded, there is none: colcrypt.key_command:"
        " it failed with exit status: 3."
    ]


def test_each_reload_has_its_line_in_the_log(host: Cluster) -> None:
    key = new_key()
    use_another_ring(host, key)
    before = host.log()
    for _ in range(3):
        host.reload()
    assert ring_lines(host, before) == [reloaded(key, "key_file")] * 3


def test_nothing_is_sealed_under_a_random_key_while_sources_are_switched(
    start: Start,
) -> None:
    """It would be lost: nobody has that key once the switch is done."""
    old, new = new_key(), new_key()
    cluster = start({"colcrypt.dev_mode": True}, ring=old)
    cluster.psql("CREATE TABLE t (secret encrypted_text); INSERT INTO t VALUES ('x')")
    started = cluster.dir / "started"
    text = f"touch {started}; sleep 1; echo {new},{old}"
    path = script(cluster, text)
    with cluster.connect() as session, cluster.connect() as fresh:
        assert fetch(session, "SELECT count(*) FROM t") == 1
        use_source(cluster, None, "")
        cluster.conf({"colcrypt.key_command": f"sh {path}"})
        session.execute("SELECT pg_reload_conf()")
        wait_until(started.exists, "the command", seconds=5)
        # A session whose first use of a key falls into that second.
        fresh.execute("INSERT INTO t VALUES ('y')")
        wait_until(lambda: fetch(session, SOURCE) == "key_command", "the reload")
        assert fetch(session, "SELECT count(try_decrypt(secret)) FROM t") == 2


# Crashes


def test_a_crash_of_a_backend_does_not_lose_a_ring_of_a_reload(host: Cluster) -> None:
    old, new = new_key(), new_key()
    use_another_ring(host, old)
    sealed = host.psql(SEAL)
    use_ring(host, f"{new},{old}")
    for _ in range(2):
        with host.connect() as session:
            assert fetch(session, SEALED_UNDER) == key_id(new)
            host.kill_backend(fetch(session, "SELECT pg_backend_pid()"))
        with host.connect() as session:
            assert fetch(session, SEALED_UNDER) == key_id(new)
            assert fetch(session, OPEN, sealed) == "x"
    newer = new_key()
    with host.connect() as session:
        use_ring(host, f"{newer},{new}", session)
        assert fetch(session, SEALED_UNDER) == key_id(newer)


@pytest.mark.parametrize("source", [*SOURCES, "dev_mode"])
def test_every_source_survives_a_crash_of_a_backend(start: Start, source: str) -> None:
    cluster = start({"colcrypt.dev_mode": source == "dev_mode"}, start=False)
    use_source(cluster, source, new_key())
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt")
    with cluster.connect() as session:
        before = status(session)
        assert before["source"] == source
        sealed = fetch(session, SEAL)
        # Neither the file nor the command are asked again.
        for name in ("ring.keys", "printed"):
            (cluster.dir / name).unlink(missing_ok=True)
        cluster.kill_backend(fetch(session, "SELECT pg_backend_pid()"))
    with cluster.connect() as session:
        assert status(session) == before
        assert fetch(session, OPEN, sealed) == "x"


# The worker


def titles(cluster: Cluster) -> dict[int, str]:
    """What the server's processes call themselves."""
    pids = children(cluster.postmaster_pid())
    return {pid: command_line(pid).strip() for pid in pids if is_running(pid)}


def keeper(cluster: Cluster) -> int | None:
    """The process that reads the ring again, if there is one."""
    title = "postgres: colcrypt key ring"
    pids = [pid for pid, found in titles(cluster).items() if found == title]
    assert len(pids) < 2
    return pids[0] if pids else None


def running_keeper(cluster: Cluster) -> int:
    wait_until(lambda: keeper(cluster) is not None, "the worker", seconds=10)
    pid = keeper(cluster)
    assert pid is not None
    return pid


@pytest.fixture
def hanging() -> Iterator[Callable[..., None]]:
    """Has a reload begin whose command does not end; the test sees to its end."""
    seconds = f"{SECONDS}3"

    def hang(cluster: Cluster, more: str = "") -> None:
        # With and without a shell above it, and deaf to a gentle signal.
        deaf = f"(trap '' TERM; sleep {seconds}; true) &"
        script(cluster, f"{more}\n{deaf} sleep {seconds}")
        cluster.psql("SELECT pg_reload_conf()")
        wait_until(lambda: len(sleepers(seconds)) >= 2, "the command")

    yield hang
    for pid in sleepers(seconds):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def hanging_processes() -> list[int]:
    return sleepers(f"{SECONDS}3")


def scripted(start: Start, ring: str, **options: Any) -> Cluster:
    """A server of the test's own whose command is a script."""
    cluster = start(start=False, **options)
    path = script(cluster, f"echo {ring}")
    cluster.conf({"colcrypt.key_command": f"sh {path}"})
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt")
    return cluster


def test_the_worker_is_back_after_a_crash_of_a_backend(host: Cluster) -> None:
    old, new = new_key(), new_key()
    use_another_ring(host, old)
    before = running_keeper(host)
    with host.connect() as session:
        host.kill_backend(fetch(session, "SELECT pg_backend_pid()"))
    assert running_keeper(host) != before
    use_ring(host, f"{new},{old}")
    assert host.psql(SEALED_UNDER) == key_id(new)


def test_the_worker_is_back_after_it_was_killed(host: Cluster) -> None:
    old, new = new_key(), new_key()
    use_another_ring(host, old)
    sealed = host.psql(SEAL)
    use_ring(host, f"{new},{old}")
    for _ in range(2):
        with host.connect() as session:
            loaded_at = status(session)["loaded_at"]
        before = running_keeper(host)
        log = host.log()
        # Not even a file that is gone takes the ring away.
        (host.dir / "ring.keys").unlink(missing_ok=True)
        host.kill_backend(before)
        assert running_keeper(host) != before
        with host.connect() as session:
            assert fetch(session, SEALED_UNDER) == key_id(new)
            assert fetch(session, OPEN, sealed) == "x"
            now = status(session)
            assert (now["last_error"], now["loaded_at"]) == (None, loaded_at)
        assert ring_lines(host, log) == []
    newer = new_key()
    with host.connect() as session:
        use_ring(host, f"{newer},{new}", session)
        assert fetch(session, SEALED_UNDER) == key_id(newer)


def test_the_worker_is_back_after_it_was_told_to_end(start: Start) -> None:
    cluster = start(ring=new_key())
    before = running_keeper(cluster)
    os.kill(before, signal.SIGTERM)
    wait_until(lambda: not is_running(before), "its end")
    # It is to be started again after a second.
    wait_until(lambda: keeper(cluster) is not None, "the next one", seconds=5)


def test_doctor_tells_that_the_worker_is_missing(start: Start) -> None:
    finding = "the background worker that reads the key ring again does not run"
    findings = f"SELECT severity FROM colcrypt.doctor() WHERE finding = '{finding}'"
    cluster = start(ring=new_key())
    assert cluster.psql(findings) == ""
    cluster.conf(max_worker_processes=0)
    cluster.restart()
    assert keeper(cluster) is None
    assert cluster.psql(findings) == "warning"


def test_without_room_for_the_worker_the_ring_of_the_start_is_used(
    start: Start,
) -> None:
    key, new = new_key(), new_key()
    cluster = start({"max_worker_processes": 0}, ring=key)
    assert enabled_line(key, "key_file") in cluster.log()
    assert "too many background workers" in cluster.log()
    with cluster.connect() as session:
        sealed = fetch(session, SEAL)
        loaded = fetch(session, "SELECT pg_conf_load_time()")
        before = status(session)
        cluster.set_ring(new)
        session.execute("SELECT pg_reload_conf()")
        wait_until(
            lambda: fetch(session, "SELECT pg_conf_load_time()") != loaded, "the reload"
        )
        assert fetch(session, SEALED_UNDER) == key_id(key)
        assert status(session) == before
        pid = fetch(session, "SELECT pg_backend_pid()")
        cluster.kill_backend(pid)
    with cluster.connect() as session:
        assert status(session) == before
        assert fetch(session, OPEN, sealed) == "x"
    assert ring_lines(cluster) == []
    cluster.restart()
    assert enabled_line(new, "key_file") in cluster.log()


def test_a_reload_while_there_is_no_worker_is_made_up_for(start: Start) -> None:
    old, new = new_key(), new_key()
    cluster = start(ring=old)
    cluster.psql(SEAL)
    worker, postmaster = running_keeper(cluster), cluster.postmaster_pid()
    cluster.set_ring(f"{new},{old}")
    # The postmaster hears of both at once.
    os.kill(postmaster, signal.SIGSTOP)
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not is_running(worker), "the worker's end")
    os.kill(postmaster, signal.SIGHUP)
    os.kill(postmaster, signal.SIGCONT)
    wait_until(lambda: "reinitializing" in cluster.log(), "the crash")
    wait_until(cluster.accepts_sessions, "the recovery")
    assert "received SIGHUP" in cluster.log()
    running_keeper(cluster)
    wait_until(lambda: ring_lines(cluster) != [], "the ring", seconds=3)
    assert cluster.psql(SEALED_UNDER) == key_id(new)


def test_a_reload_while_the_command_runs_has_it_run_again(start: Start) -> None:
    old, new, newer = new_key(), new_key(), new_key()
    cluster = scripted(start, old)
    started, go_on = cluster.dir / "started", cluster.dir / "go_on"
    waits = f"touch {started}; until test -e {go_on}; do sleep 0.05; done"
    script(cluster, f"{waits}; echo {new},{old}")
    with cluster.connect() as session:
        session.execute("SELECT pg_reload_conf()")
        wait_until(started.exists, "the command")
        script(cluster, f"echo {newer},{new},{old}")
        session.execute("SELECT pg_reload_conf()")
        cluster.write_file("go_on", "")
        wait_until(lambda: len(ring_lines(cluster)) == 2, "both")
        assert fetch(session, SEALED_UNDER) == key_id(newer)
    assert ring_lines(cluster) == [
        reloaded(f"{new},{old}", "key_command"),
        reloaded(f"{newer},{new},{old}", "key_command"),
    ]


def test_a_command_that_hangs_at_a_reload_holds_nobody_up(
    start: Start, hanging: Callable[..., None]
) -> None:
    key = new_key()
    cluster = scripted(start, key)
    with cluster.connect() as session, cluster.connect() as fresh:
        sealed = fetch(session, SEAL)
        hanging(cluster)
        began = time.monotonic()
        for each in (session, fresh):
            assert fetch(each, SEALED_UNDER) == key_id(key)
            assert fetch(each, OPEN, sealed) == "x"
        for _ in range(5):
            assert cluster.psql(SEALED_UNDER) == key_id(key)
        # Other settings are in force, and workers are started.
        cluster.conf(work_mem="5MB")
        session.execute("SELECT pg_reload_conf()")
        wait_until(lambda: fetch(session, "SHOW work_mem") == "5MB", "it", seconds=5)
        session.execute("CREATE TABLE p AS SELECT generate_series(1, 9) AS i")
        session.execute(PARALLEL)
        plan = session.execute("EXPLAIN ANALYZE SELECT sum(i) FROM p").fetchall()
        assert "Workers Launched: 2" in str(plan)
        assert time.monotonic() - began < 10
        assert hanging_processes()
    assert ring_lines(cluster) == []


@pytest.mark.parametrize("mode", [signal.SIGTERM, signal.SIGINT], ids=["smart", "fast"])
def test_a_command_that_hangs_does_not_hold_up_a_shutdown(
    start: Start, hanging: Callable[..., None], mode: signal.Signals
) -> None:
    key = new_key()
    cluster = scripted(start, key)
    hanging(cluster)
    worker, postmaster = running_keeper(cluster), cluster.postmaster_pid()
    # PostgreSQL signals a child and its group. Often both come as one; here always.
    os.kill(worker, signal.SIGSTOP)
    os.kill(postmaster, mode)
    wait_until(lambda: "launcher" not in str(titles(cluster)), "the others' end")
    os.kill(worker, signal.SIGCONT)
    wait_until(lambda: not is_running(postmaster), "the shutdown", seconds=5)
    assert "database system is shut down" in cluster.log()
    # Nothing of it is left to keep the server from starting.
    script(cluster, f"echo {key}")
    cluster.start()
    assert cluster.psql(SEALED_UNDER) == key_id(key)


# Who kills a process group is the process that has started it.
orphan = bug("a worker that is killed, or told to quit, leaves its command running")


@orphan
def test_a_command_does_not_outlive_an_immediate_shutdown(
    start: Start, hanging: Callable[..., None]
) -> None:
    cluster = scripted(start, new_key())
    hanging(cluster)
    cluster.stop("immediate")
    wait_until(lambda: hanging_processes() == [], "the command's end", seconds=3)


@pytest.mark.parametrize("victim", ["worker", "backend"])
def test_a_crash_while_the_command_runs_is_recovered_from(
    start: Start, hanging: Callable[..., None], victim: str
) -> None:
    old, new = new_key(), new_key()
    cluster = scripted(start, old)
    hanging(cluster, f"echo {new}")
    with cluster.connect() as session:
        pid = fetch(session, "SELECT pg_backend_pid()")
        cluster.kill_backend(running_keeper(cluster) if victim == "worker" else pid)
    assert cluster.psql(SEALED_UNDER) == key_id(old)
    running_keeper(cluster)
    script(cluster, f"echo {new},{old}")
    cluster.reload()
    # The worker may still be at work on what it had read before.
    wait_until(lambda: cluster.psql(SEALED_UNDER) == key_id(new), "the new ring")
    postmaster = cluster.postmaster_pid()
    wait_until(lambda: all(map(is_running, children(postmaster))), "zombies' end")


@orphan
@pytest.mark.parametrize("victim", ["worker", "backend"])
def test_a_crash_while_the_command_runs_leaves_nothing_of_it(
    start: Start, hanging: Callable[..., None], victim: str
) -> None:
    cluster = scripted(start, new_key())
    hanging(cluster)
    with cluster.connect() as session:
        pid = fetch(session, "SELECT pg_backend_pid()")
        cluster.kill_backend(running_keeper(cluster) if victim == "worker" else pid)
    wait_until(lambda: hanging_processes() == [], "the command's end", seconds=3)


@orphan
def test_a_crash_while_the_command_runs_does_not_lead_to_another(
    start: Start, hanging: Callable[..., None]
) -> None:
    """Where the server is the first process of its container it inherits the command,
    and takes its end for that of a backend."""
    cluster = scripted(start, new_key())
    cluster.stop()
    process = start_as_init(cluster)
    try:
        hanging(cluster)
        with cluster.connect() as session:
            cluster.kill_backend(fetch(session, "SELECT pg_backend_pid()"))
        for pid in hanging_processes():
            os.kill(pid, signal.SIGKILL)
        with cluster.connect() as session:
            # The server looks after its children.
            time.sleep(0.5)
            assert fetch(session, "SELECT true")
        assert cluster.log().count("all server processes terminated") == 1
    finally:
        cluster.stop("immediate")
        process.wait()


def test_the_worker_ends_with_its_postmaster_while_the_command_runs(
    start: Start, hanging: Callable[..., None]
) -> None:
    # Until then the server cannot be started again: its memory is in use.
    cluster = scripted(start, new_key())
    hanging(cluster)
    worker, postmaster = running_keeper(cluster), cluster.postmaster_pid()
    others = [pid for pid in children(postmaster) if pid != worker]
    try:
        os.kill(postmaster, signal.SIGKILL)
        wait_until(lambda: not any(map(is_running, others)), "the others' end")
        wait_until(lambda: not is_running(worker), "the worker's end", seconds=3)
        wait_until(lambda: hanging_processes() == [], "the command's", seconds=3)
    finally:
        if is_running(worker):
            os.kill(worker, signal.SIGKILL)
        # The process may stay a zombie, which would pass for a running server.
        (cluster.datadir / "postmaster.pid").unlink()
        (cluster.dir / SOCKET_LOCK).unlink()


# Under load

BENCH = """
    \\set i random(1, 1000000)
    INSERT INTO bench (secret) VALUES ('v' || :i::text) RETURNING id \\gset
    SELECT secret FROM bench WHERE id = :id;
    SELECT count(*) FROM bench WHERE secret = 'v' || :i::text AND id = :id;
    UPDATE bench SET secret = secret || '!' WHERE id = :id - 1;
"""


def test_a_key_is_changed_under_load_without_an_error(
    start: Start, tmp_path: Path
) -> None:
    old, new = new_key(), new_key()
    cluster = start(ring=old)
    cluster.psql(
        "CREATE TABLE bench (id bigserial PRIMARY KEY, secret encrypted_text,"
        " at timestamptz DEFAULT clock_timestamp(), pid int DEFAULT pg_backend_pid())"
    )
    path = tmp_path / "bench.sql"
    path.write_text(BENCH)
    options = ["-n", "-M", "prepared", "-c", "6", "-j", "2", "-T", "6"]
    with ThreadPoolExecutor() as pool:
        bench = pool.submit(
            cluster.run, "pgbench", *options, "-f", str(path), check=False
        )
        wait_until(
            lambda: int(cluster.psql("SELECT count(DISTINCT pid) FROM bench")) == 6,
            "the load",
        )
        time.sleep(1)
        cluster.set_ring(f"{new},{old}")
        changed = cluster.psql("SELECT clock_timestamp(); SELECT pg_reload_conf()")
        output = bench.result()
    changed = changed.split("\n")[0]
    assert "ERROR" not in output and "FATAL" not in output and "abort" not in output
    assert re.search(r"number of failed transactions: 0\b", output), output
    late = f"at > '{changed}'::timestamptz + interval '1 second'"
    with cluster.connect() as session:
        key = "(colcrypt.inspect(secret)).key_id"
        keys = session.execute(f"SELECT DISTINCT {key} FROM bench").fetchall()
        assert sorted(keys) == sorted([(key_id(old),), (key_id(new),)])
        # A row that was inserted late was sealed late, whether it was updated or not.
        late_keys = session.execute(
            f"SELECT {key}, count(DISTINCT pid) FROM bench WHERE {late} GROUP BY 1"
        ).fetchall()
        assert late_keys == [(key_id(new), 6)]
        assert fetch(session, "SELECT count(DISTINCT pid) FROM bench") == 6
        assert fetch(session, "SELECT bool_and(secret LIKE 'v%%') FROM bench")
    assert "ERROR" not in cluster.log()
    assert_no_key_material(cluster.log(), old, new)


def test_many_reloads_in_a_row_tear_no_ring(start: Start) -> None:
    keys = [new_key() for _ in range(400)]
    sizes = [400, 2, 100, 3]
    cluster = start(ring=",".join(keys))
    ids = {key_id(key) for key in keys[:2]}
    done = threading.Event()
    errors: list[Exception] = []
    rounds = [0] * 4

    def work(number: int) -> None:
        try:
            with cluster.connect() as session:
                sealed = [fetch(session, SEAL)]
                while not done.is_set():
                    if number % 2:
                        session.execute(SET_KEY, [keys[2]])
                        session.execute("RESET colcrypt.key")
                    now = status(session)
                    assert now["primary_key"] in ids
                    assert now["keys"] in sizes
                    assert now["last_error"] is None
                    assert fetch(session, SEALED_UNDER) in ids
                    sealed = [*sealed[-10:], fetch(session, SEAL)]
                    assert fetch(session, OPEN, secrets.choice(sealed)) == "x"
                    rounds[number] += 1
        except Exception as error:
            errors.append(error)

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(work, number) for number in range(4)]
        with cluster.connect() as session:
            for i in range(200):
                ring = keys[: sizes[i % len(sizes)]]
                if i % 3:
                    ring[:2] = ring[1::-1]
                cluster.set_ring("\n".join(ring))
                session.execute("SELECT pg_reload_conf()")
                time.sleep(0.01)
        done.set()
        for worker in workers:
            worker.result()
    assert errors == []
    assert min(rounds) > 10
    assert "ERROR" not in cluster.log()


# status()


def test_status_of_a_session_with_keys_of_its_own(host: Cluster) -> None:
    key, own = new_key(), new_key()
    use_another_ring(host, key)
    with host.connect() as session:
        server = status(session)
        session.execute(SET_KEY, [own])
        now = status(session)
        assert now["primary_key"] == key_id(own)
        assert (now["source"], now["keys"], now["enabled"]) == ("session", 2, True)
        assert now["loaded_at"] == server["loaded_at"]
        session.execute("RESET colcrypt.key")
        assert status(session) == server


def test_status_is_for_everybody_and_says_nothing_secret(host: Cluster) -> None:
    key = new_key()
    use_another_ring(host, key)
    with host.connect(user="app") as app:
        now = status(app)
        assert (now["enabled"], now["primary_key"]) == (True, key_id(key))
        assert (now["preloaded"], now["source"]) == (True, "key_file")
        assert now["version"] == host.psql(
            "SELECT extversion FROM pg_extension WHERE extname = 'colcrypt'"
        )
        assert now["format"] == 1
        assert key not in str(now)
        age = "SELECT now() - loaded_at BETWEEN '0' AND '1 min' FROM colcrypt.status()"
        assert fetch(app, age)
        # A masked role may be a probe, too.
        host.psql("ALTER ROLE app SET colcrypt.access = 'masked'")
        try:
            with host.connect(user="app") as masked:
                assert status(masked) == now
        finally:
            host.psql("ALTER ROLE app RESET colcrypt.access")


def test_status_without_preload(cluster: Cluster) -> None:
    with cluster.connect() as session:
        now = status(session)
    assert (now["preloaded"], now["enabled"]) == (False, True)
    assert (now["source"], now["keys"], now["last_error"]) == ("key_file", 1, None)
    assert now["loaded_at"] is not None


def test_a_standby_has_a_ring_of_its_own(start: Start, base: Path) -> None:
    old, new = new_key(), new_key()
    primary = start(ring=old)
    primary.psql("CREATE TABLE t (secret encrypted_text); INSERT INTO t VALUES ('x')")
    backup = base / f"{primary.dir.name}-backup"
    address = ["-h", str(primary.dir), "-U", SUPERUSER]
    options = ["-D", str(backup), "-R", "-c", "fast", "--no-sync"]
    run_as_server([str(BIN / "pg_basebackup"), *address, *options])
    standby = Cluster(base, backup)
    try:
        standby.conf(PRELOAD)
        use_source(standby, "key_command", old)
        standby.start()
        with standby.connect() as session:
            now = status(session)
            assert (now["source"], now["primary_key"]) == ("key_command", key_id(old))
            assert fetch(session, "SELECT secret FROM t") == "x"
            primary.set_ring(f"{new},{old}")
            primary.reload()
            primary.psql("TRUNCATE t; INSERT INTO t VALUES ('y')")
            standby.write_file("printed", f"{new},{old}")
            standby.reload(session)
            assert status(session)["primary_key"] == key_id(new)
            wait_until(
                lambda: session.execute("SELECT secret FROM t").fetchall() == [("y",)],
                "the standby",
            )
            worker = running_keeper(standby)
            session.execute("SELECT pg_promote()")
            session.execute("INSERT INTO t VALUES ('z')")
            assert keeper(standby) == worker
            assert fetch(session, "SELECT count(secret::text) FROM t") == 2
            standby.reload(session)
            assert fetch(session, SEALED_UNDER) == key_id(new)
    finally:
        standby.destroy()


# Other processes


@pytest.mark.parametrize("source", [*SOURCES, "dev_mode"])
def test_the_single_user_mode_has_the_ring(start: Start, source: str) -> None:
    key = new_key()
    cluster = start({"colcrypt.dev_mode": source == "dev_mode"}, start=False)
    use_source(cluster, source, key)
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt")
    sealed = cluster.psql(SEAL)
    cluster.stop()
    statements = [SEALED_UNDER, f"SELECT from_ciphertext('{sealed}')::text", SOURCE]
    done = subprocess.run(
        [str(BIN / "postgres"), "--single", "-D", str(cluster.datadir), "postgres"],
        input="".join(f"{sql}\n" for sql in statements),
        capture_output=True,
        text=True,
        cwd="/",
        env=os.environ | cluster.env,
        **server_ids(),
    )
    values = re.findall(r'= "(.*?)"\t', done.stdout)
    if source == "dev_mode":
        assert values[1] == "dev_mode"
        assert "is not in the key ring" in done.stderr
    else:
        assert values == [key_id(key), "x", source]
    assert_no_key_material(done.stdout + done.stderr, key)
    assert done.returncode == 0
    cluster.start()


def test_the_single_user_mode_is_refused_without_a_required_key(start: Start) -> None:
    cluster = start({"colcrypt.require_key": True}, start=False)
    done = subprocess.run(
        [str(BIN / "postgres"), "--single", "-D", str(cluster.datadir), "postgres"],
        input="SELECT 1\n",
        capture_output=True,
        text=True,
        cwd="/",
        **server_ids(),
    )
    assert done.returncode != 0
    assert "FATAL:  colcrypt.require_key is on" in done.stderr


PARALLEL = """
    SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;
    SET min_parallel_table_scan_size = 0; SET max_parallel_workers_per_gather = 2;
    SET parallel_leader_participation = off"""
SUM = "SELECT sum(length(secret)) FROM t"


@pytest.mark.parametrize("source", ["key", "key_command", "environment", "dev_mode"])
def test_parallel_workers_have_the_ring_of_a_start_and_of_a_reload(
    start: Start, source: str
) -> None:
    old, new = new_key(), new_key()
    cluster = start({"colcrypt.dev_mode": source == "dev_mode"}, start=False)
    use_source(cluster, source, old)
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt; CREATE TABLE t (secret encrypted_text)")
    cluster.psql("INSERT INTO t SELECT 'v' || i FROM generate_series(1, 5000) i")
    with cluster.connect() as session:
        session.execute(PARALLEL)
        sum_in_python = sum(len(f"v{i}") for i in range(1, 5001))
        plan = session.execute(f"EXPLAIN (ANALYZE, COSTS OFF) {SUM}").fetchall()
        assert "Workers Launched: 2" in str(plan)
        assert fetch(session, SUM) == sum_in_python
        if source in ("key", "key_command"):
            use_source(cluster, source, f"{new},{old}")
        cluster.reload(session)
        assert fetch(session, SUM) == sum_in_python
        sealed = "SELECT DISTINCT (colcrypt.inspect(encrypt(length(secret)::text)))"
        found = session.execute(f"{sealed}.key_id FROM t").fetchall()
        assert found == [(fetch(session, SEALED_UNDER),)]
        if source in ("key", "key_command"):
            assert found == [(key_id(new),)]


def test_autovacuum_works_without_a_key(start: Start) -> None:
    cluster = start(
        {
            "autovacuum_naptime": "1s",
            "autovacuum_vacuum_threshold": 1,
            "autovacuum_analyze_threshold": 1,
        },
        ring=new_key(),
    )
    cluster.psql(
        "CREATE TABLE t (id int, secret encrypted_text)"
        " WITH (autovacuum_enabled = off);"
        "CREATE INDEX ON t USING hash (secret); CREATE INDEX ON t (secret);"
        "INSERT INTO t SELECT i, i::text FROM generate_series(1, 1000) i"
    )
    cluster.conf({"colcrypt.key_file": None})
    cluster.restart()
    cluster.psql(
        "DELETE FROM t WHERE id % 2 = 0; ALTER TABLE t RESET (autovacuum_enabled)"
    )
    counts = (
        "SELECT autovacuum_count > 0 AND autoanalyze_count > 0"
        " FROM pg_stat_user_tables WHERE relname = 't'"
    )
    wait_until(lambda: cluster.psql(counts) == "t", "autovacuum")
    assert "ERROR" not in cluster.log()


def test_other_servers_of_the_host_are_not_told(start: Start) -> None:
    # Two servers share nothing, though they run the same library.
    one, two = new_key(), new_key()
    first, second = start(ring=one), start(ring=two)
    for cluster, key in ((first, one), (second, two)):
        cluster.reload()
        assert cluster.psql(SEALED_UNDER) == key_id(key)
