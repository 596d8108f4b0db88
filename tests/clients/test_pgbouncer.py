"""PgBouncer in transaction mode: clients share server connections, one transaction at a
time. What a session sets for colcrypt stays in the shared connection."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import asyncpg
import psycopg
import pytest

from clients import ACCOUNTS, VALUES, by_index
from harness import (
    PORT,
    SUPERUSER,
    Database,
    fetch,
    give_to_server,
    is_running,
    key_id,
    new_key,
    run_as_server,
    wait_until,
)

BOUNCER_PORT = 6432


class Bouncer:
    """A pool with a single server connection for each user, so that clients do meet."""

    def __init__(self, db: Database, **settings: str) -> None:
        self.db = db
        self.folder = db.cluster.dir / f"bouncer.{db.name}"
        self.folder.mkdir()
        self.pidfile = self.folder / "pid"
        users = self.folder / "users"
        users.write_text('"postgres" ""\n"analyst" ""\n')
        settings = {
            "listen_port": str(BOUNCER_PORT),
            "unix_socket_dir": str(self.folder),
            "auth_type": "trust",
            "auth_file": str(users),
            "pidfile": str(self.pidfile),
            "logfile": str(self.folder / "log"),
            "default_pool_size": "1",
        } | settings
        lines = [f"{name} = {value}" for name, value in settings.items()]
        ini = self.folder / "ini"
        ini.write_text(
            f"[databases]\n* = host={db.cluster.dir} port={PORT}\n"
            "[pgbouncer]\n" + "\n".join(lines) + "\n"
        )
        for path in (self.folder, users, ini):
            give_to_server(path)
        run_as_server(["/usr/sbin/pgbouncer", "-q", "-d", str(ini)])
        wait_until(self.pidfile.exists, "PgBouncer")

    def connect(self, user: str = SUPERUSER, **options: object) -> psycopg.Connection:
        # What PgBouncer needs with any type: no prepared statements.
        options = {"autocommit": True, "prepare_threshold": None} | options
        return psycopg.connect(
            host=str(self.folder),
            port=BOUNCER_PORT,
            user=user,
            dbname=self.db.name,
            **options,
        )

    def stop(self) -> None:
        pid = int(self.pidfile.read_text())
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not is_running(pid), "PgBouncer's end")


@pytest.fixture
def make_bouncer(db: Database) -> Iterator[Callable[..., Bouncer]]:
    with ExitStack() as stack:

        def make(**settings: str) -> Bouncer:
            bouncer = Bouncer(db, **settings)
            stack.callback(bouncer.stop)
            return bouncer

        yield make


@pytest.fixture
def bouncer(make_bouncer: Callable[..., Bouncer]) -> Bouncer:
    bouncer = make_bouncer(pool_mode="transaction")
    bouncer.db.psql(ACCOUNTS)
    return bouncer


def test_clients_write_and_read_by_turns(bouncer: Bouncer) -> None:
    with bouncer.connect() as one, bouncer.connect() as two:
        assert backend(one) == backend(two)
        for value in VALUES:
            one.execute("INSERT INTO accounts (note) VALUES (%s)", [value])
            sql = "SELECT note FROM accounts ORDER BY id DESC LIMIT 1"
            assert fetch(two, sql) == value


def backend(session: psycopg.Connection) -> int:
    return fetch(session, "SELECT pg_backend_pid()")


def test_a_bound_parameter_uses_the_index(bouncer: Bouncer) -> None:
    with bouncer.connect() as session:
        pid = backend(session)
        bouncer.db.psql(f"SELECT pg_terminate_backend({pid})")
    with by_index(bouncer.db, 16):
        with bouncer.connect() as session:
            sql = "SELECT id FROM accounts WHERE email = %s"
            for number in range(1, 9):
                assert fetch(session, sql, f"user{number}@example.com") == number
            sql = "SELECT id FROM accounts WHERE email = ANY (%s)"
            for number in range(1, 9):
                assert fetch(session, sql, [f"user{number}@example.com"]) == number
            pid = backend(session)
        bouncer.db.psql(f"SELECT pg_terminate_backend({pid})")


def test_asyncpg_without_its_cache_of_statements(bouncer: Bouncer) -> None:
    async def run() -> None:
        connections = [
            await asyncpg.connect(
                host=str(bouncer.folder),
                port=BOUNCER_PORT,
                user=SUPERUSER,
                database=bouncer.db.name,
                statement_cache_size=0,
            )
            for _ in range(2)
        ]
        for number in range(1, 9):
            for connection in connections:
                row = await connection.fetchrow(
                    "SELECT id, email FROM accounts WHERE email = $1",
                    f"user{number}@example.com",
                )
                assert tuple(row) == (number, f"user{number}@example.com")
        for connection in connections:
            await connection.close()

    asyncio.run(run())


# What a session sets


def used_key(session: psycopg.Connection) -> str:
    """The id of the key under which a new value comes."""
    return fetch(session, "SELECT key_id FROM colcrypt.inspect(encrypt('x'))")


def set_key(session: psycopg.Connection, key: str, is_local: bool) -> None:
    session.execute("SELECT set_config('colcrypt.key', %s, %s)", [key, is_local])


def test_a_session_key_reaches_other_clients(bouncer: Bouncer) -> None:
    """As every SET does there: docs/clients.md warns of it."""
    key = new_key()
    with bouncer.connect() as one, bouncer.connect() as two:
        set_key(one, key, is_local=False)
        assert used_key(two) == key_id(key)


def test_the_key_of_a_transaction_reaches_nobody_else(bouncer: Bouncer) -> None:
    key = new_key()
    with bouncer.connect() as one, bouncer.connect() as two:
        servers = used_key(two)
        with one.transaction():
            set_key(one, key, is_local=True)
            assert used_key(one) == key_id(key)
            one.execute("INSERT INTO accounts (note) VALUES ('mine') RETURNING id")
            assert fetch(one, "SELECT note FROM accounts WHERE id > 5000") == "mine"
        assert used_key(two) == used_key(one) == servers
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
            two.execute("SELECT note FROM accounts WHERE id > 5000")
        two.execute("INSERT INTO accounts (note) VALUES ('of all')")


def test_the_write_key_of_a_transaction_reaches_nobody_else(bouncer: Bouncer) -> None:
    bouncer.db.psql("SELECT colcrypt.create_key('tenant')")
    with bouncer.connect() as one, bouncer.connect() as two:
        servers = used_key(two)
        with one.transaction():
            one.execute("SET LOCAL colcrypt.write_key = 'tenant'")
            tenants = used_key(one)
        assert tenants != servers
        assert used_key(two) == servers


def test_discard_all_drops_a_session_key(make_bouncer: Callable[..., Bouncer]) -> None:
    """What PgBouncer does in session mode, when a client leaves."""
    bouncer = make_bouncer(pool_mode="session")
    with bouncer.connect() as one:
        servers = used_key(one)
        set_key(one, new_key(), is_local=False)
        pid = backend(one)
    with bouncer.connect() as two:
        assert backend(two) == pid
        assert used_key(two) == servers


def test_a_reset_after_each_transaction_drops_a_session_key(
    make_bouncer: Callable[..., Bouncer],
) -> None:
    bouncer = make_bouncer(
        pool_mode="transaction",
        server_reset_query_always="1",
        server_reset_query="RESET colcrypt.key; RESET colcrypt.write_key",
    )
    bouncer.db.psql("SELECT colcrypt.create_key('tenant')")
    with bouncer.connect() as one, bouncer.connect() as two:
        servers = used_key(two)
        set_key(one, new_key(), is_local=False)
        one.execute("SET colcrypt.write_key = 'tenant'")
        assert used_key(two) == used_key(one) == servers


def test_the_access_mode_of_a_role_holds(bouncer: Bouncer) -> None:
    bouncer.db.psql("""
        CREATE ROLE analyst LOGIN;
        GRANT SELECT ON accounts TO analyst;
        ALTER ROLE analyst SET colcrypt.access = 'masked'""")
    try:
        with bouncer.connect() as owner, bouncer.connect(user="analyst") as analyst:
            for session, email in [(owner, "user1@example.com"), (analyst, "********")]:
                sql = "SELECT email FROM accounts WHERE id = 1"
                assert fetch(session, sql) == email
    finally:
        bouncer.db.psql("DROP OWNED BY analyst; DROP ROLE analyst")


def test_settings_are_not_taken_from_the_connection_string(bouncer: Bouncer) -> None:
    with pytest.raises(psycopg.OperationalError, match="unsupported startup parameter"):
        bouncer.connect(options="-c colcrypt.algorithm=fernet")
