"""Throw-away PostgreSQL servers for the tests.

A server listens on a Unix socket in its own folder, below one base folder for the
whole run. PostgreSQL refuses to run as root: for root it runs as the user postgres,
while psql and the drivers run as the caller.
"""

from __future__ import annotations

import base64
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import decryptor
import psycopg

Setting = str | int | float | bool | None

DEBIAN_PG_CONFIG = "/usr/lib/postgresql/15/bin/pg_config"
PG_CONFIG = os.environ.get("PG_CONFIG", DEBIAN_PG_CONFIG)


def pg_config(option: str, program: str = PG_CONFIG) -> str:
    return subprocess.check_output([program, option], text=True).strip()


BIN = Path(pg_config("--bindir"))
# "PostgreSQL 15.20 (Debian …)" is 15.
MAJOR = int(re.sub(r"\D+(\d+).*", r"\1", pg_config("--version")))

# Makes PostgreSQL plan in parallel what it can. 16 renamed it.
FORCE_PARALLEL = "debug_parallel_query" if MAJOR >= 16 else "force_parallel_mode"

# A superuser's name, the same whoever runs the tests.
SUPERUSER = "postgres"
PORT = 5432
SOCKET_LOCK = f".s.PGSQL.{PORT}.lock"
# What Cluster.conf() writes; postgresql.conf includes it at its end.
TEST_CONF = "test.conf"

RELOADED_AT = "SELECT pg_conf_load_time()"

# RUST_BACKTRACE: pgrx adds backtraces to the DETAIL of errors where they are asked for.
FOREIGN = ("COLCRYPT_KEY", "RUST_BACKTRACE")

# Nothing of the caller's may reach a server or lead a client elsewhere. Messages are
# in English.
for name in [n for n in os.environ if n.startswith("PG") or n in FOREIGN]:
    del os.environ[name]
os.environ["LC_ALL"] = "C.UTF-8"

DEFAULTS: dict[str, Setting] = {
    "listen_addresses": "",
    "fsync": False,
    "shared_buffers": "16MB",
    "max_connections": 30,
    "log_line_prefix": "%m [%p] %q%u@%d ",
}


class PsqlError(Exception):
    """One of PostgreSQL's programs failed; the text is its standard error."""


def new_key() -> str:
    """A random key in the form that `openssl rand -base64 32` prints."""
    return base64.b64encode(secrets.token_bytes(32)).decode()


def key_id(key: str) -> str:
    """The id under which colcrypt shows a key: by the independent formula."""
    return decryptor.key_id(decryptor.ring_key(key)).hex()


def fetch(session: psycopg.Connection, sql: str, *parameters: object) -> Any:
    """The one value that a query gives."""
    row = session.execute(sql, parameters or None).fetchone()
    assert row is not None and len(row) == 1
    return row[0]


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Polls the condition; fails, saying what was waited for, when the time is up."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"timed out waiting for {what}")
        time.sleep(0.02)


class Cluster:
    """One server with its data folder. Make one with the fixtures in conftest.py."""

    live: list[Cluster] = []

    def __init__(
        self, base: Path, template: Path, *, ring: str | None = None, bin: Path = BIN
    ) -> None:
        """Copies the template's data folder; `ring` is a key file's text, `bin` where
        PostgreSQL's programs are."""
        self.bin = bin
        self.dir = Path(tempfile.mkdtemp(prefix="c", dir=base))
        give_to_server(self.dir)
        self.datadir = self.dir / "data"
        self.logfile = self.dir / "log"
        self.settings = DEFAULTS | {"unix_socket_directories": str(self.dir)}
        self.raw_conf = ""
        self.env: dict[str, str] = {}
        run_as_server(["cp", "-a", str(template), str(self.datadir)])
        self.conf()
        if ring is not None:
            self.set_ring(ring)
        Cluster.live.append(self)

    # Starting and stopping

    def start(self, command_line: str | None = None) -> None:
        """Starts the server, with options on its command line if there are any."""
        options = [] if command_line is None else ["-o", command_line]
        try:
            self._pg_ctl("start", "-l", str(self.logfile), *options)
        except PsqlError as error:
            raise PsqlError(f"{error}\n{self.log()}") from None

    def stop(self, mode: str = "fast") -> None:
        self._pg_ctl("stop", "-m", mode)

    def restart(self) -> None:
        self.stop()
        self.start()

    def reload(self, *sessions: psycopg.Connection) -> None:
        """Has the configuration read again, and waits until new sessions see it, and
        the given ones, and the key ring is read again."""
        rings = self._count_reloaded_rings()
        seen_by: list[Callable[[], object]] = [partial(self.psql, RELOADED_AT)]
        seen_by += [partial(fetch, session, RELOADED_AT) for session in sessions]
        before = [(seen, seen()) for seen in seen_by]
        self.psql("SELECT pg_reload_conf()")
        wait_until(lambda: all(seen() != then for seen, then in before), "the reload")
        if self._keeps_ring():
            wait_until(lambda: self._count_reloaded_rings() > rings, "the ring", 60)

    def _keeps_ring(self) -> bool:
        """Whether a background worker reads the ring, and says so in the log."""
        if self.settings.get("logging_collector"):
            return False
        titles = map(command_line, children(self.postmaster_pid()))
        return any("colcrypt key ring" in title for title in titles)

    def _count_reloaded_rings(self) -> int:
        return self.log().count("colcrypt: key ring ")

    def kill(self) -> None:
        """Crashes the server: all its processes die at once, by SIGKILL."""
        pids = [self.postmaster_pid(), *children(self.postmaster_pid())]
        for pid in pids:
            # A process may end by itself meanwhile.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda: not any(is_running(pid) for pid in pids), "the killed server's end"
        )
        # The process may stay a zombie, which would pass for a running server.
        for lock in (self.datadir / "postmaster.pid", self.dir / SOCKET_LOCK):
            lock.unlink()

    def kill_backend(self, pid: int) -> None:
        """Crashes one backend. The postmaster lives on, ends its other children and
        forks new ones."""
        postmaster, crashes = self.postmaster_pid(), self._count_crashes()
        os.kill(pid, signal.SIGKILL)
        # Until it has noticed, the postmaster accepts sessions that it then ends.
        wait_until(lambda: self._count_crashes() > crashes, "the crash")
        wait_until(self.accepts_sessions, "the recovery")
        assert self.postmaster_pid() == postmaster

    def accepts_sessions(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _count_crashes(self) -> int:
        return self.log().count("all server processes terminated; reinitializing")

    def destroy(self) -> None:
        """Stops the server if it runs, and removes its files."""
        if self.is_running():
            self.stop("immediate")
        Cluster.live.remove(self)
        shutil.rmtree(self.dir)

    def is_running(self) -> bool:
        return (self.datadir / "postmaster.pid").exists() and is_running(
            self.postmaster_pid()
        )

    def postmaster_pid(self) -> int:
        return int((self.datadir / "postmaster.pid").read_text().split("\n", 1)[0])

    # Configuration. Takes effect with start(), restart() or reload().

    def conf(
        self, settings: Mapping[str, Setting] | None = None, /, **more: Setting
    ) -> None:
        """Sets settings; None takes one out. The keyword a__b is the setting a.b."""
        self.settings |= dict(settings or {})
        self.settings |= {
            name.replace("__", "."): value for name, value in more.items()
        }
        lines = [
            f"{k} = {quote_setting(v)}\n"
            for k, v in self.settings.items()
            if v is not None
        ]
        text = "".join(lines) + self.raw_conf
        self._write(self.datadir / TEST_CONF, text, 0o600)

    def append_conf(self, text: str) -> None:
        """Adds raw configuration lines, which win over what conf() sets."""
        self.raw_conf += text.rstrip("\n") + "\n"
        self.conf()

    def set_env(self, env: Mapping[str, str]) -> None:
        """Variables for the server's environment, from its next start on."""
        self.env = dict(env)

    def set_ring(self, text: str) -> None:
        """Makes a key file of the text and names it in colcrypt.key_file."""
        self.conf({"colcrypt.key_file": str(self.write_file("ring.keys", text))})

    def write_file(self, name: str, text: str, mode: int = 0o600) -> Path:
        """A file of the server's user in the cluster's folder."""
        path = self.dir / name
        self._write(path, text, mode)
        return path

    # Clients

    def connect(self, **options: Any) -> psycopg.Connection:
        """A connection by psycopg, as superuser and in autocommit mode by default."""
        return psycopg.connect(**(self.address() | {"autocommit": True} | options))

    def address(self) -> dict[str, Any]:
        """What a driver needs to connect."""
        return {
            "host": str(self.dir),
            "port": PORT,
            "user": SUPERUSER,
            "dbname": "postgres",
        }

    def psql(
        self,
        sql: str,
        *,
        db: str = "postgres",
        user: str = SUPERUSER,
        env: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> str:
        """Standard output of psql, unaligned and without headings. Fails at the first
        error; with check=False goes on, and the errors are in the result, too."""
        stop = ["-v", "ON_ERROR_STOP=1"] if check else []
        options = {"input": sql, "check": check, "db": db, "user": user, "env": env}
        return self.run("psql", "-XAtq", *stop, **options).removesuffix("\n")

    def psql_error(self, sql: str, **options: Any) -> str:
        """What psql writes to standard error, SQLSTATE included, for SQL that must
        fail."""
        try:
            output = self.psql("\\set VERBOSITY verbose\n" + sql, **options)
        except PsqlError as error:
            return str(error)
        raise AssertionError(f"no error, but: {output}")

    def run(
        self,
        program: str,
        *args: str,
        input: str | None = None,
        check: bool = True,
        db: str = "postgres",
        user: str = SUPERUSER,
        env: Mapping[str, str] | None = None,
    ) -> str:
        """Standard output of one of PostgreSQL's client programs, led to this server;
        with check=False, standard error as well."""
        target = {
            "PGHOST": str(self.dir),
            "PGPORT": str(PORT),
            "PGUSER": user,
            "PGDATABASE": db,
        }
        done = subprocess.run(
            [str(self.bin / program), *args],
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if check else subprocess.STDOUT,
            env=os.environ | target | dict(env or {}),
            text=True,
        )
        if check and done.returncode != 0:
            raise PsqlError(done.stderr)
        return done.stdout

    # What lies on disk

    def log(self) -> str:
        return self.logfile.read_text(errors="replace") if self.logfile.exists() else ""

    def relation_path(self, table: str, *, db: str = "postgres") -> Path:
        """The first file of a table or index. Do a CHECKPOINT before reading it."""
        name = table.replace("'", "''")
        return self.datadir / self.psql(
            f"SELECT pg_relation_filepath('{name}'::regclass)", db=db
        )

    def _pg_ctl(self, action: str, *args: str) -> None:
        command = [
            str(self.bin / "pg_ctl"),
            "-s",
            "-w",
            "-D",
            str(self.datadir),
            action,
            *args,
        ]
        run_as_server(command, env=os.environ | self.env)

    def _write(self, path: Path, text: str, mode: int) -> None:
        # As a whole: a server that reads it at this moment sees the old or the new.
        new = path.with_name(path.name + ".new")
        new.write_text(text)
        new.chmod(mode)
        give_to_server(new)
        new.rename(path)


class Database:
    """One database of a cluster that has the extension; what the fixture `db` gives."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name

    def psql(self, sql: str, **options: Any) -> str:
        return self.cluster.psql(sql, db=self.name, **options)

    def psql_error(self, sql: str, **options: Any) -> str:
        return self.cluster.psql_error(sql, db=self.name, **options)

    def connect(self, **options: Any) -> psycopg.Connection:
        return self.cluster.connect(**({"dbname": self.name} | options))

    def relation_path(self, table: str) -> Path:
        return self.cluster.relation_path(table, db=self.name)


def make_template(base: Path, *more: str, bin: Path = BIN) -> Path:
    """A data folder to copy: initdb takes a second, a copy a tenth. `more` are options
    for initdb."""
    template = Path(tempfile.mkdtemp(prefix="template", dir=base))
    give_to_server(template)
    options = ["--auth=trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", *more]
    run_as_server([str(bin / "initdb"), "-D", str(template), "-U", SUPERUSER, *options])
    with (template / "postgresql.conf").open("a") as conf:
        conf.write(f"include '{TEST_CONF}'\n")
    return template


def run_as_server(command: list[str], env: Mapping[str, str] | None = None) -> None:
    """Runs a command as the user that servers run as."""
    # Not into pipes: a server that pg_ctl starts would keep them open. From /, because
    # that user may not be able to read the caller's folder.
    with tempfile.TemporaryFile("w+") as output:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=env,
            **server_ids(),
        )
        if done.returncode != 0:
            output.seek(0)
            raise PsqlError(f"{' '.join(command)}: {output.read()}")


def server_ids() -> dict[str, Any]:
    """How subprocess is to change users: to postgres for root, else not at all."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("postgres")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def give_to_server(path: Path) -> None:
    ids = server_ids()
    if ids:
        os.chown(path, ids["user"], ids["group"])


def quote_setting(value: Setting) -> str:
    """A value as postgresql.conf wants it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    text = str(value).replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n")
    return f"'{text}'"


def postmasters(base: Path) -> list[int]:
    """The servers that run on a data folder below base."""
    return [
        pid
        for pid in processes()
        if f"{base}/" in command_line(pid) and is_running(pid)
    ]


def children(parent: int) -> list[int]:
    return [pid for pid in processes() if parent_pid(pid) == parent]


def processes() -> Iterable[int]:
    return (
        int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()
    )


def command_line(pid: int) -> str:
    return read_proc(pid, "cmdline").replace("\0", " ")


def is_running(pid: int) -> bool:
    """Whether there is such a process, and not only its zombie."""
    return stat_fields(pid)[0] not in ("", "Z", "X")


def parent_pid(pid: int) -> int:
    return int(stat_fields(pid)[1])


def stat_fields(pid: int) -> tuple[str, str]:
    """State and parent of a process; ("", "0") if there is none."""
    # They follow the name, which is in parentheses and may hold anything: proc(5).
    fields = read_proc(pid, "stat").rpartition(")")[2].split()
    return (fields[0], fields[1]) if fields else ("", "0")


def read_proc(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""
