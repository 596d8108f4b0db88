"""Rotation in batches with clients at work, who get no error and lose nothing; and with
crashes, after which it goes on where it stopped.

What the clients do, and how it is checked, is in load.py. scripts/rotation_load.py
measures the same at full size.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from psycopg.errors import OperationalError, QueryCanceled

from harness import Cluster, Database, fetch, key_id, new_key, wait_until
from load import (
    ALL,
    ONLY_TOUCH,
    ROTATED_AND_NEW,
    STALE,
    Clients,
    count_different,
    index_errors,
    make_accounts,
)

ROWS = 60_000
# Where there are more tests of a kind.
FEWER_ROWS = 24_000
# For crashes at random moments; another one by COLCRYPT_TEST_SEED.
SEED = int(os.environ.get("COLCRYPT_TEST_SEED", time.time_ns() % 1_000_000))

# Slow enough that clients, too, get something done meanwhile.
PACE = "batch_size => 200, max_rows_per_second => 8000"
CALL = f"CALL rotate_column_online('accounts', 'secret', {PACE})"
BACKGROUND = f"""
    SELECT colcrypt.rotate_column_background('accounts', 'secret', {PACE})"""
# So slow that not much is done while somebody looks at it.
SLOW = "batch_size => 50, max_rows_per_second => 2000"
SLOW_BACKGROUND = f"""
    SELECT colcrypt.rotate_column_background('accounts', 'secret', {SLOW})"""
PROGRESS = """
    SELECT state, phase, rows_rotated, last_error FROM colcrypt.rotation_progress
    WHERE relation = 'accounts'::regclass"""
WORKER = """
    SELECT max(pid) FROM pg_stat_activity
    WHERE backend_type = 'colcrypt rotation' AND datname = current_database()"""
CALLER = """
    SELECT max(pid) FROM pg_stat_activity
    WHERE state = 'active' AND query LIKE 'CALL%' AND datname = current_database()"""
WAITING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE (backend_type = 'colcrypt rotation' OR query LIKE 'CALL%')
          AND wait_event_type = 'Lock' AND datname = current_database()"""
WRITTEN = "SELECT count(*) FROM ledger"
TEXTS = """
    SELECT count(*), md5(string_agg(id || ':' || secret::text, ',' ORDER BY id))
    FROM accounts"""
# Remembers what is under a key; gives rows that were under it before, otherwise sealed.
SEEN_AND_NEW = """
    WITH now AS MATERIALIZED (
        SELECT id, md5(ciphertext(secret)) AS sealed FROM accounts
        WHERE (colcrypt.inspect(secret)).key_id = %s
    ), added AS (
        INSERT INTO seen SELECT * FROM now ON CONFLICT DO NOTHING
    )
    SELECT seen.* FROM seen LEFT JOIN now USING (id, sealed) WHERE now IS NULL"""

Rotate = Callable[[Database], None]

numbers = itertools.count(1)


class Host:
    """A server with a ring that grows by a key for each rotation."""

    def __init__(self, cluster: Cluster, key: str) -> None:
        self.cluster = cluster
        self.keys = [key]

    def bring_new_key(self) -> None:
        self.keys.insert(0, new_key())
        self.cluster.set_ring(",".join(self.keys))
        self.cluster.reload()

    def retire_old_keys(self) -> None:
        del self.keys[1:]
        self.cluster.set_ring(self.keys[0])
        self.cluster.restart()

    @property
    def primary(self) -> str:
        return key_id(self.keys[0])

    @contextmanager
    def accounts(self, rows: int) -> Iterator[Database]:
        """A database with load.py's table."""
        name = f"load_{next(numbers)}"
        self.cluster.psql(f"CREATE DATABASE {name}")
        place = Database(self.cluster, name)
        place.psql("CREATE EXTENSION colcrypt")
        make_accounts(place, rows)
        yield place
        self.cluster.psql(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def hosted(base: Path, template: Path, *, preload: bool) -> Iterator[Host]:
    key = new_key()
    cluster = Cluster(base, template, ring=key)
    cluster.conf(
        shared_preload_libraries="colcrypt" if preload else "",
        shared_buffers="64MB",
        max_wal_size="2GB",
        max_worker_processes=16,
        autovacuum_naptime="1s",
    )
    try:
        cluster.start()
        yield Host(cluster, key)
    finally:
        cluster.destroy()


@pytest.fixture(scope="module")
def host(base: Path, template: Path) -> Iterator[Host]:
    with hosted(base, template, preload=True) as host:
        yield host


@pytest.fixture(scope="module")
def plain_host(base: Path, template: Path) -> Iterator[Host]:
    """Not preloaded: nobody takes up what was interrupted."""
    with hosted(base, template, preload=False) as host:
        yield host


@pytest.fixture
def place(host: Host) -> Iterator[Database]:
    with host.accounts(ROWS) as place:
        yield place


@pytest.fixture
def small(host: Host) -> Iterator[Database]:
    with host.accounts(2000) as place:
        yield place


@pytest.fixture
def fewer(host: Host) -> Iterator[Database]:
    with host.accounts(FEWER_ROWS) as place:
        yield place


@pytest.fixture
def plain_place(plain_host: Host) -> Iterator[Database]:
    with plain_host.accounts(FEWER_ROWS) as place:
        yield place


@pytest.fixture
def clients(tmp_path: Path) -> Iterator[Callable[..., Clients]]:
    """Starts clients; those that are still at work at the end are stopped."""
    started: list[Clients] = []

    def start(*arguments: object, **options: object) -> Clients:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        started.append(Clients(arguments[0], folder, *arguments[1:], **options).start())
        return started[-1]

    yield start
    for clients in started:
        clients.stopping.set()
    for clients in started:
        clients.thread.join(timeout=60)


class Thread:
    """Work beside the test, whose error is raised when it is waited for."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.error: Exception | None = None
        self.work = work
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.work()
        except Exception as error:
            self.error = error

    def is_over(self) -> bool:
        return not self.thread.is_alive()

    def end(self) -> None:
        self.thread.join(timeout=120)
        assert self.is_over(), "it hangs"
        if self.error is not None:
            raise self.error


# Two ways to rotate


def rotate_by_call(place: Database) -> None:
    with place.connect() as session:
        session.execute(CALL)


def rotate_by_worker(place: Database) -> None:
    place.psql(BACKGROUND)
    wait_for_end(place)


every_way = pytest.mark.parametrize(
    "rotate", [rotate_by_call, rotate_by_worker], ids=["call", "worker"]
)


def ask(place: Database, sql: str) -> Any:
    """The row that a query gives. Cheaper than psql, for what is polled."""
    with place.connect() as session:
        return session.execute(sql).fetchone()


def progress(place: Database) -> Any:
    return ask(place, PROGRESS) or ("", "", 0, None)


def is_done(place: Database) -> bool:
    row = progress(place)
    assert row[0] in ("running", "interrupted", "done"), row
    return row[0] == "done"


def wait_for_end(place: Database) -> None:
    wait_until(lambda: is_done(place), "the rotation's end", 120)


def rows_rotated(place: Database) -> int:
    return progress(place)[2]


def written(place: Database) -> int:
    """What clients have done."""
    return ask(place, WRITTEN)[0]


def wait_for_writes(place: Database, more: int = 100) -> None:
    least = written(place) + more
    wait_until(lambda: written(place) >= least, "the clients", 60)


def end_of_log(cluster: Cluster) -> int:
    return len(cluster.log())


def complaints(cluster: Cluster, since: int) -> list[str]:
    words = ("ERROR:", "FATAL:", "PANIC:")
    lines = cluster.log()[since:].splitlines()
    return [line for line in lines if any(word in line for word in words)]


def assert_sound(place: Database, host: Host) -> None:
    """All rows are what was written, under the primary key, and in the indexes."""
    with place.connect() as session:
        assert count_different(session) == 0
        assert fetch(session, STALE) == 0
        keys = "SELECT array_agg(key_id) FROM colcrypt.key_usage('accounts', 'secret')"
        assert fetch(session, keys) == [host.primary]
        assert index_errors(session) == []


# The check


LOST = {
    "update": "UPDATE accounts SET touched = 0 WHERE id = 3",
    "write of the secret": (
        "UPDATE accounts SET version = 1, secret = plain(2000, 0) WHERE id = 2000"
    ),
    "plaintext": "UPDATE accounts SET secret = plain(8, 0) WHERE id = 7",
    "row": "DELETE FROM accounts WHERE id = 1999",
    "insert": "INSERT INTO ledger VALUES (1, 2001, 'insert')",
    "delete": "INSERT INTO ledger VALUES (1, 7, 'delete')",
}


def test_the_check_finds_what_is_lost(small: Database) -> None:
    with small.connect() as session:
        assert count_different(session) == 0
        session.execute("UPDATE accounts SET touched = 1 WHERE id = 3")
        session.execute("INSERT INTO ledger VALUES (1, 3, 'touch')")
        for statement in LOST.values():
            with session.transaction(force_rollback=True):
                session.execute(statement)
                assert count_different(session) == 1, statement
        assert count_different(session) == 0


# Clients


@every_way
def test_clients_get_no_error_and_lose_nothing(
    host: Host, place: Database, clients: Callable[..., Clients], rotate: Rotate
) -> None:
    since = end_of_log(host.cluster)
    at_work = clients(place)
    wait_for_writes(place)
    host.bring_new_key()
    before = written(place)
    rotate(place)
    done_meanwhile = written(place) - before
    # While the clients are at it.
    assert place.psql(STALE) == "0"
    at_work.stop()
    assert done_meanwhile > 100, "the clients did next to nothing meanwhile"
    with place.connect() as session:
        assert at_work.ledger_errors(session) == []
    assert_sound(place, host)
    assert rows_rotated(place) > ROWS / 2
    assert complaints(host.cluster, since) == []


def test_when_it_is_over_the_old_key_can_go(
    plain_host: Host, plain_place: Database, clients: Callable[..., Clients]
) -> None:
    place = plain_place
    at_work = clients(place)
    plain_host.bring_new_key()
    wait_for_writes(place)
    rotate_by_call(place)
    # As its notice says; and the index key is wrapped by the old key.
    place.psql("REINDEX INDEX CONCURRENTLY by_btree")
    place.psql("SELECT colcrypt.rewrap_keys()")
    at_work.stop()
    plain_host.retire_old_keys()
    assert_sound(place, plain_host)
    later = clients(place)
    wait_for_writes(place)
    later.stop()
    assert_sound(place, plain_host)


@every_way
def test_rows_that_are_always_locked_are_rotated_in_the_end(
    host: Host, small: Database, clients: Callable[..., Clients], rotate: Rotate
) -> None:
    """Each client waits for the others: hardly ever is one of the rows free."""
    at_work = clients(small, {"hot": 1}, clients=8)
    wait_for_writes(small)
    host.bring_new_key()
    rotate(small)
    assert small.psql(STALE) == "0"
    wait_for_writes(small)
    at_work.stop()
    assert rows_rotated(small) == 2000
    with small.connect() as session:
        assert at_work.ledger_errors(session) == []
    assert_sound(small, host)


# None that these clients write to.
LOCKED = (3, 19_000, 22_000)


@every_way
def test_who_keeps_rows_locked_holds_up_the_rotation_but_no_client(
    host: Host, fewer: Database, clients: Callable[..., Clients], rotate: Rotate
) -> None:
    # All but the hot row 3, for which clients would wait.
    at_work = clients(fewer, {"read": 4, "find": 4, "change": 1, "insert": 1})
    with fewer.connect() as holder, fewer.connect(autocommit=False) as client:
        client.execute("SET lock_timeout = '10s'")
        holder.execute("BEGIN")
        for row in LOCKED:
            holder.execute("SELECT FROM accounts WHERE id = %s FOR UPDATE", [row])
        # It changes one of them, whose old value is seen until it commits.
        holder.execute("UPDATE accounts SET touched = 1 WHERE id = %s", LOCKED[:1])
        holder.execute("INSERT INTO ledger VALUES (-1, %s, 'touch')", LOCKED[:1])
        host.bring_new_key()
        rotation = Thread(lambda: rotate(fewer))
        phase = "waiting for locked rows"
        wait_until(lambda: progress(fewer)[1] == phase, "the waiting", 60)
        stale = int(fewer.psql(STALE))
        assert len(LOCKED) - 1 <= stale <= len(LOCKED) + 8
        # The neighbours of a locked row are free, while it waits for that.
        for row in LOCKED:
            for near in (row - 1, row + 1):
                change = "UPDATE accounts SET touched = touched + 1 WHERE id = %s"
                client.execute(change, [near])
                client.execute("INSERT INTO ledger VALUES (-1, %s, 'touch')", [near])
                client.commit()
        wait_for_writes(fewer)
        assert not rotation.is_over() and progress(fewer)[0] == "running"
        holder.execute("COMMIT")
        rotation.end()
    assert fewer.psql(STALE) == "0"
    at_work.stop()
    assert_sound(fewer, host)


def wait_for_lock(place: Database) -> None:
    """Until a rotation waits for a row."""
    wait_until(lambda: ask(place, WAITING) == (1,), "the waiting", 60)


@every_way
def test_a_row_that_is_waited_for_may_go_to_another_page(
    host: Host, small: Database, rotate: Rotate
) -> None:
    host.bring_new_key()
    with small.connect() as holder:
        holder.execute("BEGIN")
        holder.execute("UPDATE accounts SET touched = 1 WHERE id = 3")
        holder.execute("INSERT INTO ledger VALUES (-1, 3, 'touch')")
        rotation = Thread(lambda: rotate(small))
        wait_for_lock(small)
        holder.execute("COMMIT")
    rotation.end()
    assert_sound(small, host)


def test_a_call_that_is_cancelled_while_it_waits_leaves_a_session_that_works(
    host: Host, small: Database
) -> None:
    host.bring_new_key()
    with small.connect() as holder, small.connect() as dba:
        holder.execute("BEGIN; SELECT FROM accounts WHERE id = 3 FOR UPDATE")
        rotation = Thread(lambda: dba.execute(CALL))
        wait_for_lock(small)
        small.psql(f"SELECT pg_cancel_backend({dba.info.backend_pid})")
        with pytest.raises(QueryCanceled):
            rotation.end()
        assert fetch(dba, "SELECT 1") == 1
        held = f"SELECT count(*) FROM pg_locks WHERE pid = {dba.info.backend_pid}"
        assert small.psql(held) == "0"
        holder.execute("COMMIT")
        dba.execute(CALL)
    assert_sound(small, host)


def test_old_snapshots_see_the_same_throughout(
    host: Host, fewer: Database, clients: Callable[..., Clients]
) -> None:
    at_work = clients(fewer)
    with fewer.connect() as first, fewer.connect() as second:
        begin = "BEGIN ISOLATION LEVEL REPEATABLE READ"
        first.execute(begin)
        wait_for_writes(fewer)
        seen = first.execute(TEXTS).fetchone()
        host.bring_new_key()
        rotation = Thread(lambda: rotate_by_call(fewer))
        wait_until(
            lambda: rows_rotated(fewer) > FEWER_ROWS / 5, "a part of the rotation"
        )
        second.execute(begin)
        seen_later = second.execute(TEXTS).fetchone()
        looks = 0
        while not rotation.is_over():
            assert first.execute(TEXTS).fetchone() == seen
            assert second.execute(TEXTS).fetchone() == seen_later
            looks += 1
        rotation.end()
        at_work.stop()
        fewer.psql("VACUUM accounts")
        assert first.execute(TEXTS).fetchone() == seen
        assert second.execute(TEXTS).fetchone() == seen_later
        assert looks > 0 and seen != seen_later
    fewer.psql("VACUUM accounts")
    assert_sound(fewer, host)


MAINTENANCE = {
    "vacuum": ["VACUUM accounts", "VACUUM (FREEZE, INDEX_CLEANUP on) accounts"],
    "reindex": [
        f"REINDEX INDEX CONCURRENTLY {name}" for name in ("by_hash", "by_btree")
    ],
    "analyze": ["ANALYZE accounts", "ALTER TABLE accounts SET (fillfactor = 70)"],
    "rewrite": ["VACUUM FULL accounts", "CLUSTER accounts USING accounts_pkey"],
}


@pytest.mark.parametrize("statements", MAINTENANCE.values(), ids=list(MAINTENANCE))
def test_maintenance_meanwhile_disturbs_nobody(
    host: Host,
    fewer: Database,
    clients: Callable[..., Clients],
    statements: list[str],
) -> None:
    since = end_of_log(host.cluster)
    at_work = clients(fewer)
    host.bring_new_key()
    rotation = Thread(lambda: rotate_by_worker(fewer))
    rounds = 0
    while not rotation.is_over() and rounds < 6:
        for statement in statements:
            fewer.psql(statement)
        rounds += 1
    rotation.end()
    at_work.stop()
    assert rounds > 0
    assert_sound(fewer, host)
    assert complaints(host.cluster, since) == []


def test_a_dump_meanwhile_is_of_one_moment(
    host: Host, fewer: Database, clients: Callable[..., Clients], tmp_path: Path
) -> None:
    at_work = clients(fewer)
    wait_for_writes(fewer)
    host.bring_new_key()
    rotation = Thread(lambda: rotate_by_worker(fewer))
    wait_until(lambda: rows_rotated(fewer) > FEWER_ROWS / 5, "a part of the rotation")
    options = {"db": fewer.name}
    dump = str(tmp_path / "dump")
    host.cluster.run("pg_dump", "-Fc", "-f", dump, **options)
    halfway = not rotation.is_over()
    rotation.end()
    at_work.stop()
    copy = Database(host.cluster, f"{fewer.name}_copy")
    host.cluster.psql(f"CREATE DATABASE {copy.name}")
    try:
        host.cluster.run("pg_restore", "--exit-on-error", "-d", copy.name, dump)
        with copy.connect() as session:
            assert count_different(session) == 0
            assert index_errors(session) == []
            assert 0 < fetch(session, STALE) < FEWER_ROWS
            # The copy can be rotated, too.
            session.execute(CALL)
        assert_sound(copy, host)
    finally:
        host.cluster.psql(f"DROP DATABASE {copy.name} WITH (FORCE)")
    assert halfway, "the rotation was over too soon"


# Crashes


class Witness:
    """Remembers what the rotation has sealed. All that is under the new key is its own,
    for the clients seal nothing."""

    def __init__(self, place: Database, host: Host) -> None:
        self.place = place
        self.host = host
        place.psql("CREATE TABLE seen (id bigint PRIMARY KEY, sealed text)")

    def look(self) -> int:
        """Checks that each row was counted once, and that none was done again; gives
        their number."""
        with self.place.connect() as session:
            row = session.execute(ROTATED_AND_NEW, [self.host.primary]).fetchone()
            assert row is not None
            rotated, new = row
            assert (rotated or 0) == new
            again = session.execute(SEEN_AND_NEW, [self.host.primary]).fetchall()
            assert again == []
        return new

    def look_at_the_end(self) -> None:
        assert self.look() == FEWER_ROWS
        assert_sound(self.place, self.host)


class Interrupted:
    """Has a rotation interrupted ten times at random moments, and looks on."""

    TIMES = 10
    LEAST = 5

    def __init__(
        self, place: Database, host: Host, worker: bool, background: str = BACKGROUND
    ) -> None:
        self.place = place
        self.host = host
        self.worker = worker
        self.background = background
        self.rotation: Thread | None = None
        self.witness = Witness(place, host)
        self.random = random.Random(SEED)
        print(f"COLCRYPT_TEST_SEED={SEED}")

    def begin(self) -> None:
        """Starts the rotation, or takes it up again."""
        if self.worker:
            self.place.psql(self.background)
        else:
            self.rotation = Thread(lambda: rotate_by_call(self.place))

    def wait_for_moment(self) -> int | None:
        """Waits until it has done some more, and a bit; gives who is at work on it, if
        it is not over."""
        least = rows_rotated(self.place) + self.random.randint(1, 600)
        wait_until(
            lambda: rows_rotated(self.place) >= least or is_done(self.place),
            f"{least} rows to be rotated",
            60,
        )
        time.sleep(self.random.uniform(0, 0.03))
        return ask(self.place, WORKER if self.worker else CALLER)[0]

    def run(self, interrupt: Callable[[int], None], *, by_itself: bool = False) -> None:
        """With `by_itself`, somebody takes it up again without being told."""
        self.host.bring_new_key()
        self.begin()
        times, rows = 0, 0
        while times < self.TIMES and (pid := self.wait_for_moment()) is not None:
            interrupt(pid)
            times += 1
            self.end_call()
            then = self.witness.look()
            assert then > rows, "what was done is lost"
            rows = then
            if not by_itself:
                wait_until(self.is_interrupted, "its interruption")
                assert rows_rotated(self.place) == rows, "somebody went on with it"
                self.begin()
        assert times >= self.LEAST, "it was over too soon"
        if self.rotation is not None:
            self.rotation.end()
        wait_for_end(self.place)

    def end_call(self) -> None:
        """Waits for the end of the caller's session, which gets an error."""
        if self.rotation is not None:
            with pytest.raises(OperationalError):
                self.rotation.end()
            self.rotation = None

    def is_interrupted(self) -> bool:
        return progress(self.place)[0] == "interrupted"


def stop_and_start(cluster: Cluster) -> Callable[[int], None]:
    def stop(_pid: int) -> None:
        cluster.stop("immediate")
        cluster.start()

    return stop


def test_after_crashes_of_the_server_a_worker_goes_on_by_itself(
    host: Host, fewer: Database, clients: Callable[..., Clients]
) -> None:
    at_work = clients(fewer, ONLY_TOUCH, clients=2, crashes=True)
    wait_for_writes(fewer)
    rotation = Interrupted(fewer, host, True, SLOW_BACKGROUND)
    rotation.run(stop_and_start(host.cluster), by_itself=True)
    at_work.stop()
    rotation.witness.look_at_the_end()
    with fewer.connect() as session:
        assert at_work.ledger_errors(session) == []


@pytest.mark.parametrize("worker", [False, True], ids=["call", "worker"])
def test_after_crashes_of_the_server_it_goes_on_when_it_is_asked_for_again(
    plain_host: Host,
    plain_place: Database,
    clients: Callable[..., Clients],
    worker: bool,
) -> None:
    at_work = clients(plain_place, ONLY_TOUCH, clients=2, crashes=True)
    wait_for_writes(plain_place)
    rotation = Interrupted(plain_place, plain_host, worker)
    rotation.run(stop_and_start(plain_host.cluster))
    at_work.stop()
    rotation.witness.look_at_the_end()
    with plain_place.connect() as session:
        assert at_work.ledger_errors(session) == []


def test_after_crashes_of_the_worker_another_goes_on(
    host: Host, fewer: Database, clients: Callable[..., Clients]
) -> None:
    at_work = clients(fewer, ONLY_TOUCH, clients=2, crashes=True)
    wait_for_writes(fewer)
    rotation = Interrupted(fewer, host, True, SLOW_BACKGROUND)
    rotation.run(host.cluster.kill_backend, by_itself=True)
    at_work.stop()
    rotation.witness.look_at_the_end()
    with fewer.connect() as session:
        assert at_work.ledger_errors(session) == []


@pytest.mark.parametrize("worker", [False, True], ids=["call", "worker"])
def test_who_is_terminated_stops_cleanly_and_disturbs_no_client(
    host: Host, fewer: Database, clients: Callable[..., Clients], worker: bool
) -> None:
    at_work = clients(fewer, ONLY_TOUCH, clients=2)
    wait_for_writes(fewer)
    rotation = Interrupted(fewer, host, worker)

    def terminate(pid: int) -> None:
        assert fewer.psql(f"SELECT pg_terminate_backend({pid}, 10000)") == "t"

    rotation.run(terminate)
    at_work.stop()
    rotation.witness.look_at_the_end()
    with fewer.connect() as session:
        assert at_work.ledger_errors(session) == []


def test_after_crashes_all_that_clients_were_told_is_there(
    host: Host, fewer: Database, clients: Callable[..., Clients]
) -> None:
    """With clients who write secrets, too, so that both give rows new values."""
    at_work = clients(fewer, ALL, crashes=True)
    wait_for_writes(fewer)
    moments = random.Random(SEED)
    print(f"COLCRYPT_TEST_SEED={SEED}")
    host.bring_new_key()
    fewer.psql(SLOW_BACKGROUND)
    for _ in range(5):
        least = rows_rotated(fewer) + moments.randint(1, 600)
        wait_until(lambda: rows_rotated(fewer) >= least, "some rows", 60)
        host.cluster.stop("immediate")
        host.cluster.start()
        with fewer.connect() as session:
            assert fetch(session, STALE) > 0, "it was over too soon"
    wait_for_end(fewer)
    at_work.stop()
    with fewer.connect() as session:
        assert at_work.ledger_errors(session) == []
    assert_sound(fewer, host)
