"""Rotation in batches, and whoever is at work on the same rows and tables meanwhile:
nothing is lost or left behind, nobody is in a deadlock, nobody waits for long.

What pg_test/specs can show is there. Here is what needs a clock, threads, a background
worker, or the moment between two batches.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.errors import (
    DatatypeMismatch,
    InsufficientPrivilege,
    ObjectNotInPrerequisiteState,
    QueryCanceled,
    UndefinedColumn,
    UndefinedTable,
)

from conftest import MakeCluster
from harness import Cluster, Database, fetch, key_id, new_key, wait_until

NEW = new_key()

STALE = (
    "SELECT COALESCE(sum(rows), 0) FROM colcrypt.key_usage(%s, 'secret') WHERE stale"
)
USED = "SELECT array_agg(DISTINCT key_id) FROM colcrypt.key_usage(%s, 'secret')"
BEGIN_JOB = """
    SELECT colcrypt.begin_rotation(
        %s, 'secret', %s, '0', make_interval(secs => %s), NULL, NULL, %s, false)"""
BATCH = "SELECT colcrypt.rotation_step(%s)"
CALL = "CALL rotate_column_online('t', 'secret'"
WAITS = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
PROGRESS = """
    SELECT state, phase, rows_rotated, rows_skipped, blocks_done
    FROM colcrypt.rotation_progress WHERE relation = %s::regclass"""

Session = psycopg.Connection


class Job:
    """A rotation whose batches the test runs, as rotate_column_online() does."""

    def __init__(
        self,
        session: Session,
        table: str = "t",
        *,
        batch_size: int = 1000,
        lock_timeout: float = 1,
        fire_triggers: bool = False,
    ) -> None:
        self.session = session
        options = (batch_size, lock_timeout, fire_triggers)
        self.id = fetch(session, BEGIN_JOB, table, *options)

    def batch(self) -> bool:
        """Runs a batch; whether there is another one."""
        return fetch(self.session, BATCH, self.id) is not None

    def batches_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert self.batch(), "the rotation was over too soon"

    def is_checking(self) -> bool:
        """Whether its last batch was one of a second pass."""
        query = (
            "SELECT phase, blocks_done FROM colcrypt.rotation_progress WHERE job = %s"
        )
        row = self.session.execute(query, [self.id]).fetchone()
        return row is not None and row[0] == "checking" and row[1] > 0

    def is_finishing(self) -> bool:
        """Whether it is about to look at all rows at one moment."""
        return progress(self.session)[1] == "finishing"

    def end(self) -> None:
        while self.batch():
            pass


class Running:
    """A statement that runs in a thread, in a session of its own."""

    def __init__(self, session: Session, sql: str) -> None:
        self.session = session
        self.sql = sql
        self.pid = session.info.backend_pid
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.session.execute(self.sql)
        except Exception as error:
            self.error = error

    def is_over(self) -> bool:
        return not self.thread.is_alive()

    def wait_for_lock(self, other: Session) -> None:
        """Waits until it waits for somebody else's lock."""
        wait_until(lambda: fetch(other, WAITS, self.pid), "its waiting for a lock")

    def end(self) -> None:
        """Waits for its end; raises its error."""
        self.thread.join(timeout=60)
        assert self.is_over(), "it hangs"
        if self.error is not None:
            raise self.error


def open_session(db: Database) -> Session:
    """A session in which no test waits without end."""
    session = db.connect()
    session.execute("SET lock_timeout = '20s'")
    return session


@pytest.fixture
def app(db: Database) -> Iterator[Session]:
    """The application: it has the server's key only, which is the old one."""
    with closing(open_session(db)) as session:
        yield session


@pytest.fixture
def other(db: Database) -> Iterator[Session]:
    with closing(open_session(db)) as session:
        yield session


@pytest.fixture
def dba(db: Database) -> Iterator[Session]:
    """Who rotates: a new key is in front."""
    with closing(open_session(db)) as session:
        use_key(session, NEW)
        yield session


@pytest.fixture
def watcher(db: Database) -> Iterator[Session]:
    """Looks on, with both keys."""
    with closing(open_session(db)) as session:
        use_key(session, NEW)
        yield session


@pytest.fixture
def run(db: Database) -> Iterator[Callable[..., Running]]:
    """Starts statements in threads; those that still run at the end are ended."""
    started: list[Running] = []

    def run(session: Session, sql: str) -> Running:
        started.append(Running(session, sql))
        return started[-1]

    yield run
    with db.connect() as session:
        for running in started:
            if not running.is_over():
                session.execute("SELECT pg_terminate_backend(%s)", [running.pid])
            running.thread.join(timeout=60)


def use_key(session: Session, key: str) -> None:
    session.execute("SELECT set_config('colcrypt.key', %s, false)", [key])


def fill(session: Session, rows: int = 3, *, clauses: str = "") -> None:
    session.execute(
        "CREATE TABLE t (id int PRIMARY KEY, secret encrypted_text, note text)"
        + clauses
    )
    insert(session, rows)


def insert(session: Session, rows: int, table: str = "t") -> None:
    session.execute(
        f"INSERT INTO {table} (id, secret, note) SELECT i, 'value ' || i, 'note'"
        f" FROM generate_series(1, {rows}) AS i"
    )


def make_partitions(session: Session) -> None:
    """Two rows in each of two partitions, of which "a" was made first."""
    session.execute(
        "CREATE TABLE t (id int, secret encrypted_text, region text, note text)"
        " PARTITION BY LIST (region)"
    )
    for region in ("a", "b"):
        session.execute(
            f"CREATE TABLE {region} PARTITION OF t FOR VALUES IN ('{region}')"
        )
    session.execute(
        "INSERT INTO t SELECT i, 'value ' || i, r FROM generate_series(1, 4) AS i,"
        " substr('aabb', i, 1) AS r"
    )


def texts(session: Session) -> list[tuple[int, str]]:
    return session.execute("SELECT id, secret FROM t ORDER BY id").fetchall()


def values(rows: int) -> list[tuple[int, str]]:
    return [(i, f"value {i}") for i in range(1, rows + 1)]


def progress(session: Session) -> Any:
    """State, phase, rows rotated and skipped, blocks done; None before it begins."""
    return session.execute(PROGRESS, ["t"]).fetchone() or (None,) * 5


def state(session: Session) -> str:
    return progress(session)[0]


def wait_for_rotated(session: Session, rows: int, seconds: float = 30) -> None:
    """Waits for a rotation to have done all but the rows that are locked."""
    done = ("running", "checking", rows)
    wait_until(lambda: progress(session)[:3] == done, f"{rows} rows", seconds)


def assert_rotated(session: Session, table: str = "t") -> None:
    assert fetch(session, STALE, table) == 0
    assert fetch(session, USED, table) == [key_id(NEW)]


# Nothing is left behind


def test_a_row_that_moves_behind_the_last_pass_is_not_forgotten(
    app: Session, dba: Session
) -> None:
    make_partitions(app)
    app.execute("BEGIN")
    app.execute("SELECT FROM t WHERE id = 4 FOR UPDATE")
    job = Job(dba)
    # The first pass leaves row 4; the second has been through partition a.
    job.batches_until(job.is_checking)
    app.execute("UPDATE t SET region = 'a' WHERE id = 4")
    app.execute("COMMIT")
    job.end()
    assert texts(dba) == values(4)
    assert_rotated(dba)


def test_a_row_that_moves_behind_the_first_pass_is_not_forgotten(
    app: Session, dba: Session
) -> None:
    make_partitions(app)
    job = Job(dba)
    job.batch()
    app.execute("UPDATE t SET region = 'a' WHERE id = 4")
    job.end()
    assert texts(dba) == values(4)
    assert_rotated(dba)


def test_a_row_that_moves_to_another_partition_is_waited_for(
    app: Session, dba: Session, other: Session, run: Callable[..., Running]
) -> None:
    make_partitions(app)
    app.execute("BEGIN")
    app.execute("UPDATE t SET region = 'b' WHERE id = 1")
    rotation = run(dba, CALL + ", lock_timeout => '1 minute')")
    rotation.wait_for_lock(other)
    app.execute("COMMIT")
    rotation.end()
    assert texts(dba) == values(4)
    assert_rotated(dba)


def test_rows_inserted_under_the_old_key_between_batches_are_rotated(
    app: Session, dba: Session
) -> None:
    fill(app)
    job = Job(dba)
    job.batches_until(job.is_finishing)
    app.execute("INSERT INTO t VALUES (4, 'value 4')")
    job.end()
    assert texts(dba) == values(4)
    assert_rotated(dba)


def test_what_a_transaction_has_written_that_is_still_open_is_rotated_too(
    app: Session, dba: Session, watcher: Session, run: Callable[..., Running]
) -> None:
    fill(app)
    app.execute("BEGIN")
    app.execute("INSERT INTO t VALUES (4, 'value 4')")
    rotation = run(dba, CALL + ")")
    waits = ("running", "waiting for older transactions", 3)
    wait_until(lambda: progress(watcher)[:3] == waits, "the rotation")
    app.execute("COMMIT")
    rotation.end()
    assert texts(dba) == values(4)
    assert_rotated(dba)


def test_a_third_key_in_the_middle_becomes_the_key_of_all(
    app: Session, dba: Session
) -> None:
    fill(app, 3000)
    job = Job(dba, batch_size=100)
    for _ in range(5):
        job.batch()
    third = new_key()
    use_key(dba, f"{third},{NEW}")
    job.end()
    assert fetch(dba, USED, "t") == [key_id(third)]
    assert texts(dba) == values(3000)


def test_another_algorithm_in_the_middle_becomes_that_of_all(
    app: Session, dba: Session
) -> None:
    fill(app, 3000)
    job = Job(dba, batch_size=100)
    for _ in range(5):
        job.batch()
    dba.execute("SET colcrypt.algorithm = 'envelope'")
    job.end()
    suites = "SELECT array_agg(DISTINCT (colcrypt.inspect(secret)).suite) FROM t"
    assert fetch(dba, suites) == ["envelope"]
    assert_rotated(dba)
    assert texts(dba) == values(3000)


def test_without_the_new_key_a_rotation_stops_and_goes_on_when_it_is_back(
    app: Session, dba: Session, watcher: Session
) -> None:
    fill(app, 1000)
    job = Job(dba, batch_size=100)
    job.batches_until(lambda: progress(watcher)[2] >= 500)
    dba.execute("RESET colcrypt.key")
    with pytest.raises(ObjectNotInPrerequisiteState) as refused:
        # The values that are under the new key cannot be read any more.
        job.end()
    assert key_id(NEW) in str(refused.value)
    assert texts(watcher) == values(1000)
    use_key(dba, NEW)
    dba.execute(CALL + ")")
    assert state(dba) == "done"
    assert_rotated(dba)
    assert texts(dba) == values(1000)


# Nobody is in a deadlock with it


def test_a_row_found_fresh_is_not_kept_locked_while_another_is_waited_for(
    app: Session,
    other: Session,
    dba: Session,
    watcher: Session,
    run: Callable[..., Running],
) -> None:
    fill(app)
    app.execute("BEGIN")
    use_key(app, NEW)
    app.execute("UPDATE t SET secret = 'fresh' WHERE id = 1")
    other.execute("BEGIN")
    other.execute("UPDATE t SET note = 'changed' WHERE id = 2")
    rotation = run(dba, CALL + ", lock_timeout => '1 minute')")
    # In the second pass for row 1, then for row 2.
    rotation.wait_for_lock(watcher)
    app.execute("COMMIT")
    blocked_by = "SELECT pg_blocking_pids(%s)"
    wait_until(
        lambda: fetch(watcher, blocked_by, rotation.pid) == [other.info.backend_pid],
        "the rotation at row 2",
    )
    other.execute("SELECT FROM t WHERE id = 1 FOR UPDATE NOWAIT")
    other.execute("COMMIT")
    rotation.end()
    assert_rotated(dba)


@pytest.mark.parametrize("ddl", ["ALTER TABLE t ADD COLUMN added int", "TRUNCATE t"])
@pytest.mark.parametrize("impatient", ["dba", "app"])
@pytest.mark.xfail(
    strict=False, reason="it waits for a row while it has the table locked"
)
def test_whom_it_waits_for_may_lock_the_table(
    app: Session,
    dba: Session,
    watcher: Session,
    run: Callable[..., Running],
    ddl: str,
    impatient: str,
) -> None:
    """The same if it is the first to look for deadlocks, and if it is the last."""
    fill(app)
    for name, session in (("dba", dba), ("app", app)):
        timeout = "500ms" if name == impatient else "1min"
        session.execute(f"SET deadlock_timeout = '{timeout}'")
    app.execute("SET lock_timeout = '4s'")
    app.execute("BEGIN")
    app.execute("UPDATE t SET note = 'changed' WHERE id = 2")
    rotation = run(dba, CALL + ", lock_timeout => '2 seconds')")
    rotation.wait_for_lock(watcher)
    app.execute(ddl)
    app.execute("COMMIT")
    rotation.end()
    assert fetch(dba, STALE, "t") == 0


@pytest.mark.xfail(
    strict=True, reason="whoever began to wait last finds it, and that is the CALL"
)
def test_a_deferred_unique_constraint_makes_no_deadlock(
    app: Session, dba: Session, watcher: Session, run: Callable[..., Running]
) -> None:
    fill(app, clauses="; ALTER TABLE t ADD n int UNIQUE DEFERRABLE INITIALLY DEFERRED")
    app.execute("UPDATE t SET n = id")
    # No update is HOT.
    app.execute("CREATE INDEX ON t USING hash (secret)")
    app.execute("BEGIN")
    app.execute("INSERT INTO t VALUES (4, 'value 4', 'note', 1)")
    rotation = run(dba, CALL + ")")
    wait_until(
        lambda: rotation.is_over() or fetch(watcher, WAITS, rotation.pid),
        "the rotation",
    )
    app.execute("UPDATE t SET n = 4 WHERE id = 4")
    app.execute("UPDATE t SET note = 'changed' WHERE id = 2")
    app.execute("COMMIT")
    rotation.end()
    dba.execute(CALL + ")")
    assert texts(dba) == values(4)
    assert_rotated(dba)


def test_transactions_that_take_rows_in_any_order_do_not_fail(
    db: Database, app: Session, dba: Session
) -> None:
    rows = 2000
    fill(app, rows)
    errors: list[Exception] = []
    over = threading.Event()

    old = (db.cluster.dir / "ring.keys").read_text()

    def write(seed: int) -> None:
        """Takes rows in descending order, so that writers do not meet each other."""
        numbers = random.Random(seed)
        try:
            with db.connect() as session:
                use_key(session, f"{old},{NEW}")
                while not over.is_set():
                    ids = sorted(numbers.sample(range(1, rows + 1), 5), reverse=True)
                    with session.transaction():
                        for row in ids:
                            session.execute(
                                "UPDATE t SET secret = secret::text,"
                                " note = 'changed' WHERE id = %s",
                                [row],
                            )
        except Exception as error:
            errors.append(error)

    writers = [threading.Thread(target=write, args=[seed]) for seed in range(3)]
    for writer in writers:
        writer.start()
    changed = "SELECT count(*) FROM t WHERE note = 'changed'"
    wait_until(lambda: fetch(dba, changed) > 50, "the writers")
    try:
        # The writers have the old key: there is always something to rotate.
        job = Job(dba, batch_size=100)
        for _ in range(200):
            if not job.batch():
                job = Job(dba, batch_size=100)
    finally:
        over.set()
        for writer in writers:
            writer.join()
    assert errors == []
    dba.execute(CALL + ")")
    assert texts(dba) == values(rows)
    assert_rotated(dba)


# What ends its waiting


@pytest.mark.parametrize("end", ["timeout", "cancel"])
def test_a_session_whose_waiting_is_cancelled_has_nothing_locked(
    app: Session,
    dba: Session,
    watcher: Session,
    run: Callable[..., Running],
    end: str,
) -> None:
    fill(app)
    app.execute("BEGIN")
    app.execute("UPDATE t SET note = 'changed' WHERE id = 2")
    if end == "timeout":
        dba.execute("SET statement_timeout = '1s'")
    rotation = run(dba, CALL + ", lock_timeout => '1 minute')")
    rotation.wait_for_lock(watcher)
    if end == "cancel":
        watcher.execute("SELECT pg_cancel_backend(%s)", [rotation.pid])
    with pytest.raises(QueryCanceled):
        rotation.end()
    locks = "SELECT count(*) FROM pg_locks WHERE pid = %s AND locktype <> 'virtualxid'"
    assert fetch(watcher, locks, rotation.pid) == 0
    app.execute("COMMIT")
    dba.execute(CALL + ")")
    assert_rotated(dba)


@pytest.mark.parametrize("end", ["cancel", "terminate"])
def test_a_worker_whose_waiting_is_cancelled_leaves_nothing_behind(
    make_cluster: MakeCluster, end: str
) -> None:
    """On a server of its own: DROP DATABASE loops for ever, and cannot be cancelled, if
    the worker has left a page pinned."""
    cluster = make_cluster(ring=new_key(), extension=False)
    cluster.psql("CREATE DATABASE d")
    db = Database(cluster, "d")
    db.psql("CREATE EXTENSION colcrypt")
    pids = (
        "SELECT COALESCE(max(pid), 0) FROM pg_stat_activity"
        " WHERE backend_type = 'colcrypt rotation'{}"
    )
    at_a_row = pids.format(" AND wait_event_type = 'Lock'")
    with closing(open_session(db)) as app, closing(open_session(db)) as asker:
        asker.execute(f"SET colcrypt.algorithm = '{SUITE}'")
        fill(app)
        app.execute("BEGIN")
        app.execute("UPDATE t SET note = 'changed' WHERE id = 2")
        job = start(asker, ", lock_timeout => '1 minute'")
        wait_until(lambda: fetch(asker, at_a_row) > 0, "its waiting")
        asker.execute(f"SELECT pg_{end}_backend(%s)", [fetch(asker, at_a_row)])
        wait_until(lambda: fetch(asker, pids.format("")) == 0, "its end", seconds=10)
        app.execute("COMMIT")
        assert state(asker) == ("failed" if end == "cancel" else "interrupted")
        assert fetch(asker, "SELECT colcrypt.resume_rotation(%s)", job) is True
        wait_for_state(asker, job, "done")
        assert fetch(asker, SUITES) == [SUITE]
    cluster.psql("DROP DATABASE d")


# It waits for nobody for long


def test_locked_rows_are_left_until_they_are_free(
    app: Session, other: Session, dba: Session, run: Callable[..., Running]
) -> None:
    fill(app, 100)
    app.execute("BEGIN")
    app.execute("SELECT FROM t WHERE id IN (1, 50, 100) FOR UPDATE")
    rotation = run(dba, CALL + ", lock_timeout => '100 milliseconds')")
    wait_for_rotated(other, 97)
    # Nobody has to wait for the rows that are done.
    other.execute("SELECT FROM t WHERE id NOT IN (1, 50, 100) FOR UPDATE NOWAIT")
    app.execute("COMMIT")
    rotation.end()
    assert texts(dba) == values(100)
    assert_rotated(dba)


def test_with_a_lock_timeout_of_zero_it_waits_for_no_row(
    app: Session, dba: Session
) -> None:
    fill(app)
    app.execute("BEGIN")
    app.execute("SELECT FROM t WHERE id = 2 FOR UPDATE")
    job = Job(dba, lock_timeout=0)
    dba.execute("SET lock_timeout = '1ms'")
    for _ in range(10):
        assert job.batch()
    assert fetch(dba, STALE, "t") == 1
    app.execute("COMMIT")
    job.end()
    assert_rotated(dba)


def test_the_sessions_own_lock_timeout_does_not_end_a_rotation(
    app: Session, dba: Session, other: Session, run: Callable[..., Running]
) -> None:
    fill(app)
    app.execute("BEGIN")
    app.execute("SELECT FROM t WHERE id = 2 FOR UPDATE")
    dba.execute("SET lock_timeout = '10ms'")
    rotation = run(dba, CALL + ", lock_timeout => '200 milliseconds')")
    wait_for_rotated(other, 2)
    rotation.wait_for_lock(other)
    app.execute("COMMIT")
    rotation.end()
    assert fetch(dba, "SHOW lock_timeout") == "10ms"
    assert_rotated(dba)


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_in_a_strict_isolation_level_a_changed_row_is_tried_again(
    app: Session,
    dba: Session,
    other: Session,
    run: Callable[..., Running],
    isolation: str,
) -> None:
    fill(app)
    dba.execute(f"SET default_transaction_isolation = '{isolation}'")
    app.execute("BEGIN")
    app.execute("UPDATE t SET note = 'changed' WHERE id = 2")
    app.execute("DELETE FROM t WHERE id = 3")
    rotation = run(dba, CALL + ", lock_timeout => '1 minute')")
    rotation.wait_for_lock(other)
    app.execute("COMMIT")
    rotation.end()
    assert texts(dba) == values(2)
    assert_rotated(dba)


@pytest.mark.parametrize("fire_triggers", ["false", "true"])
def test_a_key_that_is_shared_is_waited_for_if_the_column_is_one(
    app: Session,
    other: Session,
    dba: Session,
    run: Callable[..., Running],
    fire_triggers: str,
) -> None:
    """Of the encrypted column as a key: FOR KEY SHARE is in the way of changing it."""
    fill(app, clauses="; ALTER TABLE t ADD UNIQUE (secret)")
    app.execute("BEGIN")
    app.execute("SELECT FROM t WHERE id = 2 FOR KEY SHARE")
    options = f", lock_timeout => '100 milliseconds', fire_triggers => {fire_triggers})"
    rotation = run(dba, CALL + options)
    wait_for_rotated(other, 2, seconds=10)
    other.execute("SELECT FROM t WHERE id = 1 FOR UPDATE NOWAIT")
    app.execute("COMMIT")
    rotation.end()
    assert texts(dba) == values(3)
    assert_rotated(dba)


@pytest.mark.parametrize(
    "lock",
    ["ACCESS EXCLUSIVE", "EXCLUSIVE", "SHARE ROW EXCLUSIVE", "SHARE"],
)
def test_a_locked_table_is_waited_for_without_queueing(
    app: Session, other: Session, dba: Session, lock: str
) -> None:
    fill(app, 1000)
    job = Job(dba, batch_size=100)
    job.batch()
    app.execute("BEGIN")
    app.execute(f"LOCK TABLE t IN {lock} MODE")
    dba.execute("SET lock_timeout = '1ms'")
    assert job.batch()
    assert progress(other)[:2] == ("running", "waiting for a lock")
    assert progress(other)[2] < 1000
    app.execute("COMMIT")
    dba.execute("RESET lock_timeout")
    job.end()
    assert_rotated(dba)


@pytest.mark.parametrize("lock", ["SHARE UPDATE EXCLUSIVE", "ROW SHARE", "ACCESS SHARE"])
def test_locks_that_let_an_update_through_do_not_stop_it(
    app: Session, dba: Session, lock: str
) -> None:
    fill(app, 1000)
    app.execute("BEGIN")
    app.execute(f"LOCK TABLE t IN {lock} MODE")
    dba.execute("SET lock_timeout = '1ms'")
    dba.execute(CALL + ", batch_size => 100)")
    assert_rotated(dba)


def test_who_waits_to_lock_the_table_comes_first(
    app: Session,
    other: Session,
    dba: Session,
    watcher: Session,
    run: Callable[..., Running],
) -> None:
    fill(app, 1000)
    job = Job(dba, batch_size=100)
    job.batch()
    app.execute("BEGIN")
    app.execute("SELECT count(*) FROM t")
    alter = run(other, "ALTER TABLE t ADD COLUMN added int")
    alter.wait_for_lock(watcher)
    dba.execute("SET lock_timeout = '1ms'")
    assert job.batch()
    assert progress(watcher)[:2] == ("running", "waiting for a lock")
    app.execute("COMMIT")
    alter.end()
    dba.execute("RESET lock_timeout")
    job.end()
    assert texts(dba) == values(1000)
    assert_rotated(dba)


def test_a_locked_partition_holds_up_nothing_but_itself(
    app: Session, other: Session, dba: Session
) -> None:
    make_partitions(app)
    job = Job(dba)
    app.execute("BEGIN")
    app.execute("LOCK TABLE a")
    dba.execute("SET lock_timeout = '1ms'")
    for _ in range(3):
        assert job.batch()
    assert progress(other)[1] == "waiting for a lock"
    app.execute("COMMIT")
    job.end()
    assert texts(dba) == values(4)
    assert_rotated(dba)


def test_two_columns_of_a_table_are_rotated_at_once(
    db: Database, app: Session, dba: Session, run: Callable[..., Running]
) -> None:
    rows = 3000
    fill(app, rows, clauses="; ALTER TABLE t ADD twin encrypted_text")
    app.execute("UPDATE t SET twin = 'twin ' || id")
    with db.connect() as second:
        use_key(second, NEW)
        rotations = [
            run(dba, CALL + ", batch_size => 100)"),
            run(second, "CALL rotate_column_online('t', 'twin', batch_size => 100)"),
        ]
        for rotation in rotations:
            rotation.end()
    assert texts(dba) == values(rows)
    wrong = "SELECT count(*) FROM t WHERE twin::text IS DISTINCT FROM 'twin ' || id"
    assert fetch(dba, wrong) == 0
    assert_rotated(dba)
    twins = "SELECT array_agg(key_id) FROM colcrypt.key_usage('t', 'twin')"
    assert fetch(dba, twins) == [key_id(NEW)]


def test_at_once_and_online_get_along(
    db: Database, app: Session, dba: Session, run: Callable[..., Running]
) -> None:
    rows = 3000
    fill(app, rows)
    with db.connect() as second:
        use_key(second, NEW)
        rotations = [
            run(dba, CALL + ", batch_size => 100)"),
            run(second, "SELECT rotate_column('t', 'secret')"),
        ]
        for rotation in rotations:
            rotation.end()
    assert texts(dba) == values(rows)
    assert_rotated(dba)


@pytest.mark.parametrize("caller", ["procedure", "worker"])
def test_a_row_that_is_waited_for_may_move_to_another_page(
    make_cluster: MakeCluster, run: Callable[..., Running], caller: str
) -> None:
    """As most updated rows do in a table that is full. On a server of its own, as pages
    may stay pinned."""
    cluster = make_cluster(ring=new_key())
    db = Database(cluster, "postgres")
    with closing(open_session(db)) as app, closing(open_session(db)) as dba:
        fill(app, 1000)
        place = "SELECT (ctid::text::point)[0] FROM t WHERE id = 2"
        assert fetch(app, place) == 0
        app.execute("BEGIN")
        app.execute("UPDATE t SET note = 'changed' WHERE id = 2")
        assert fetch(app, place) > 0
        dba.execute(f"SET colcrypt.algorithm = '{SUITE}'")
        waits = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'transactionid'"
        )
        if caller == "worker":
            start(dba, ", lock_timeout => '1 minute'")
        else:
            rotation = run(dba, CALL + ", lock_timeout => '1 minute')")
        wait_until(lambda: cluster.psql(waits) == "1", "its waiting")
        app.execute("COMMIT")
        if caller == "procedure":
            rotation.end()
        wait_until(lambda: state(app) == "done", "its end")
        assert texts(app) == values(1000)
        assert fetch(app, SUITES) == [SUITE]


def test_a_queue_reader_that_skips_locked_rows_meets_them_again(
    app: Session, dba: Session
) -> None:
    fill(app)
    job = Job(dba)
    take = "SELECT count(*) FROM (SELECT FROM t FOR UPDATE SKIP LOCKED) AS q"
    with dba.transaction():
        job.batch()
        assert fetch(app, take) == 0
    assert fetch(app, take) == 3


# What others do to the table between two batches


@pytest.mark.parametrize(
    "maintenance",
    [
        "VACUUM t",
        "VACUUM (FULL) t",
        "VACUUM (FREEZE, DISABLE_PAGE_SKIPPING) t",
        "ANALYZE t",
        "CLUSTER t USING t_pkey",
        "REINDEX TABLE CONCURRENTLY t",
        "CREATE INDEX CONCURRENTLY ON t (secret)",
        "ALTER TABLE t SET UNLOGGED",
        "ALTER TABLE t ADD added text DEFAULT clock_timestamp()::text",
        "ALTER TABLE t ADD added text DEFAULT 'added'",
        "ALTER TABLE t DROP note",
        "ALTER TABLE t RENAME TO renamed; CREATE VIEW t AS SELECT * FROM renamed",
        "ALTER TABLE t ALTER id TYPE bigint",
        "ALTER TABLE t SET (fillfactor = 10)",
        "DELETE FROM t WHERE id % 2 = 0; VACUUM t; INSERT INTO t (id, secret)"
        " SELECT i, 'value ' || i FROM generate_series(2, 3000, 2) AS i",
        "CREATE TEMP TABLE kept AS SELECT * FROM t; TRUNCATE t;"
        " INSERT INTO t SELECT * FROM kept",
    ],
)
def test_maintenance_between_batches_is_survived(
    app: Session, dba: Session, watcher: Session, maintenance: str
) -> None:
    fill(app, 3000)
    job = Job(dba, batch_size=100)
    for _ in range(10):
        job.batch()
    # To build an index takes the keys.
    session = watcher if "INDEX" in maintenance else app
    for statement in maintenance.split(";"):
        session.execute(statement)
    job.end()
    assert texts(dba) == values(3000)
    table = "renamed" if "renamed" in maintenance else "t"
    assert_rotated(dba, table)
    app.execute("CREATE EXTENSION amcheck")
    app.execute("SELECT bt_index_check('t_pkey', true)")
    heap = "SELECT count(*) FROM verify_heapam(%s::regclass)"
    assert fetch(app, heap, table) == 0


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("DROP TABLE t", UndefinedTable),
        ("ALTER TABLE t DROP secret", UndefinedColumn),
        ("ALTER TABLE t RENAME secret TO renamed", UndefinedColumn),
        ("ALTER TABLE t ALTER secret TYPE text USING secret::text", DatatypeMismatch),
        (
            "ALTER TABLE t DROP secret; ALTER TABLE t ADD secret text",
            DatatypeMismatch,
        ),
    ],
)
def test_what_makes_it_pointless_stops_it_with_a_clear_error(
    app: Session,
    dba: Session,
    watcher: Session,
    change: str,
    error: type[Exception],
) -> None:
    fill(app, 1000)
    job = Job(dba, batch_size=100)
    job.batch()
    for statement in change.split(";"):
        watcher.execute(statement)
    with pytest.raises(error):
        job.end()
    jobs = "SELECT state FROM colcrypt.rotation_progress WHERE job = %s"
    assert fetch(dba, jobs, job.id) == "interrupted"
    # It can be put away, even if there is no table any more.
    assert fetch(dba, "SELECT colcrypt.cancel_rotation(%s)", job.id) is True


def test_a_dropped_tables_rotation_is_forgotten(app: Session, dba: Session) -> None:
    fill(app, 1000)
    job = Job(dba, batch_size=100)
    job.batch()
    app.execute("DROP TABLE t")
    fill(app, 10)
    again = Job(dba)
    again.end()
    assert_rotated(dba)
    jobs = "SELECT array_agg(job) FROM colcrypt.rotation_progress"
    assert fetch(dba, jobs) == [again.id]


def test_a_rotation_ends_for_who_does_not_own_the_table_any_more(
    db: Database, app: Session
) -> None:
    role = f"owner_{db.name}"
    app.execute(f"CREATE ROLE {role} LOGIN")
    try:
        fill(app, 1000)
        app.execute(f"ALTER TABLE t OWNER TO {role}")
        with db.connect(user=role) as owner:
            use_key(owner, NEW)
            job = Job(owner, batch_size=100)
            assert job.batch()
            app.execute("ALTER TABLE t OWNER TO postgres")
            app.execute(f"GRANT ALL ON t TO {role}")
            with pytest.raises(InsufficientPrivilege):
                job.batch()
            assert texts(owner) == values(1000)
    finally:
        app.execute(f"DROP OWNED BY {role}")
        app.execute(f"DROP ROLE {role}")


def test_a_partition_may_come_and_go(app: Session, dba: Session) -> None:
    # Of the old tables' numbers, one is less than those of the partitions.
    app.execute("CREATE TABLE early (gone int, id int, secret encrypted_text)")
    app.execute("ALTER TABLE early DROP gone, ADD region text, ADD note text")
    app.execute("INSERT INTO early VALUES (5, 'value 5', 'c')")
    make_partitions(app)
    job = Job(dba)
    job.batch()
    app.execute("ALTER TABLE t ATTACH PARTITION early FOR VALUES IN ('c')")
    app.execute("CREATE TABLE late PARTITION OF t DEFAULT")
    app.execute("INSERT INTO t VALUES (6, 'value 6', 'd')")
    app.execute("ALTER TABLE t DETACH PARTITION b")
    job.end()
    assert texts(dba) == [row for row in values(6) if row[0] not in (3, 4)]
    assert_rotated(dba)
    # Who has left is left alone.
    assert fetch(dba, STALE, "b") == 2


@pytest.mark.parametrize(
    "change",
    [
        "DROP TABLE b",
        "ALTER TABLE t DETACH PARTITION b",
        "TRUNCATE b",
        "ALTER TABLE b RENAME TO other",
        "CREATE SCHEMA s; ALTER TABLE b SET SCHEMA s",
    ],
)
def test_the_partition_whose_turn_it_is_may_change(
    app: Session, dba: Session, change: str
) -> None:
    make_partitions(app)
    job = Job(dba)
    job.batch()
    for statement in change.split(";"):
        app.execute(statement)
    job.end()
    expected = values(4) if "RENAME" in change or "SCHEMA" in change else values(2)
    assert texts(dba) == expected
    assert_rotated(dba)


def test_a_partition_that_is_just_being_detached_is_left(
    app: Session,
    other: Session,
    dba: Session,
    watcher: Session,
    run: Callable[..., Running],
) -> None:
    make_partitions(app)
    app.execute("BEGIN")
    app.execute("SELECT count(*) FROM t")
    detaching = run(other, "ALTER TABLE t DETACH PARTITION b CONCURRENTLY")
    detaching.wait_for_lock(watcher)
    Job(dba).end()
    app.execute("COMMIT")
    detaching.end()
    assert texts(dba) == values(2)
    assert_rotated(dba)


# A background worker. It takes the server's key ring: another algorithm makes values
# stale.

START = "SELECT colcrypt.rotate_column_background('t', 'secret', batch_size => 100{})"
SUITES = "SELECT array_agg(DISTINCT (colcrypt.inspect(secret)).suite) FROM t"
SUITE = "aes-256-gcm"


@pytest.fixture
def asker(db: Database) -> Iterator[Session]:
    with db.connect() as session:
        session.execute(f"SET colcrypt.algorithm = '{SUITE}'")
        yield session


def start(session: Session, options: str = "") -> int:
    return fetch(session, START.format(options))


def wait_for_state(session: Session, job: int, state: str) -> None:
    query = "SELECT state FROM colcrypt.rotation_progress WHERE job = %s"
    wait_until(lambda: fetch(session, query, job) == state, f"a job that is {state}")


def last_error(session: Session, job: int) -> str:
    query = "SELECT last_error FROM colcrypt.rotation_progress WHERE job = %s"
    return fetch(session, query, job)


def test_a_worker_leaves_locked_rows_until_they_are_free(
    app: Session, asker: Session
) -> None:
    fill(app, 1000)
    app.execute("BEGIN")
    app.execute("UPDATE t SET note = 'changed' WHERE id = 500")
    job = start(asker, ", lock_timeout => '50 milliseconds'")
    wait_for_rotated(asker, 999)
    app.execute("COMMIT")
    wait_for_state(asker, job, "done")
    assert fetch(asker, SUITES) == [SUITE]
    assert texts(asker) == values(1000)


def test_a_worker_waits_for_who_locks_the_table(app: Session, asker: Session) -> None:
    fill(app, 1000)
    job = start(asker, ", max_rows_per_second => 500")
    wait_until(lambda: progress(asker)[2] > 0, "its first batch")
    with app.transaction():
        app.execute("ALTER TABLE t ADD COLUMN added text DEFAULT clock_timestamp()")
        wait_until(lambda: progress(asker)[1] == "waiting for a lock", "its waiting")
    wait_for_state(asker, job, "done")
    assert fetch(asker, SUITES) == [SUITE]
    assert texts(asker) == values(1000)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("DROP TABLE t", "does not exist"),
        ("ALTER TABLE t DROP secret", 'column "secret" of relation "t" does not exist'),
        (
            "ALTER TABLE t ALTER secret TYPE text USING secret::text",
            'column "secret" of relation "t" is of type text, which is not encrypted',
        ),
    ],
)
def test_a_worker_says_why_it_cannot_go_on(
    app: Session, asker: Session, change: str, told: str
) -> None:
    fill(app, 1000)
    job = start(asker, ", max_rows_per_second => 300")
    wait_until(lambda: progress(asker)[2] > 0, "its first batch")
    app.execute(change)
    wait_for_state(asker, job, "failed")
    assert told in last_error(asker, job)


def test_a_worker_is_not_stopped_by_rows_that_change_partitions(
    db: Database, app: Session, asker: Session
) -> None:
    """Each move that it waits for costs a retry that is noted as an error."""
    make_partitions(app)
    app.execute("BEGIN")
    app.execute("UPDATE t SET region = 'b' WHERE id = 1")
    job = start(asker, ", lock_timeout => '1 minute'")
    waits = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE backend_type = 'colcrypt rotation' AND wait_event_type = 'Lock'"
    )
    wait_until(lambda: fetch(asker, waits) == 1, "its waiting")
    app.execute("COMMIT")
    wait_for_state(asker, job, "done")
    assert texts(asker) == values(4)
    assert fetch(asker, SUITES) == [SUITE]
    assert f"rotation {job}: tuple to be locked" not in db.cluster.log()


# Two-phase commit and the server's own ring


class Host:
    """A server with the old key, for which new ones are at hand."""

    def __init__(self, cluster: Cluster, old: str) -> None:
        self.cluster = cluster
        self.old = old
        self.numbers = 0

    def use(self, *keys: str) -> None:
        self.cluster.set_ring(",".join(keys))
        self.cluster.reload()


@pytest.fixture(scope="module")
def host(base: Path, template: Path) -> Iterator[Host]:
    old = new_key()
    cluster = Cluster(base, template, ring=old)
    cluster.conf(max_prepared_transactions=5)
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt")
    yield Host(cluster, old)
    cluster.destroy()


@pytest.fixture
def host_session(host: Host) -> Iterator[Session]:
    host.use(host.old)
    with host.cluster.connect() as session:
        yield session
        session.execute("DROP TABLE IF EXISTS t")


@pytest.mark.parametrize("end", ["COMMIT PREPARED 'p'", "ROLLBACK PREPARED 'p'"])
def test_a_prepared_transaction_is_waited_for(
    host: Host, host_session: Session, end: str
) -> None:
    fill(host_session, 100)
    host_session.execute("BEGIN")
    host_session.execute("UPDATE t SET note = 'changed' WHERE id = 50")
    host_session.execute("SELECT FROM t WHERE id = 51 FOR UPDATE")
    host_session.execute("PREPARE TRANSACTION 'p'")
    with closing(host.cluster.connect()) as dba:
        use_key(dba, NEW)
        rotation = Running(dba, CALL + ", lock_timeout => '50 milliseconds')")
        wait_for_rotated(host_session, 98)
        host_session.execute(end)
        rotation.end()
        assert texts(dba) == values(100)
        assert_rotated(dba)
        note = "SELECT note FROM t WHERE id = 50"
        changed = end.startswith("COMMIT")
        assert fetch(dba, note) == ("changed" if changed else "note")


@pytest.mark.parametrize("end", ["COMMIT PREPARED 'p'", "ROLLBACK PREPARED 'p'"])
def test_a_rotation_may_be_part_of_a_prepared_transaction(
    host: Host, host_session: Session, end: str
) -> None:
    fill(host_session, 100)
    use_key(host_session, NEW)
    host_session.execute("BEGIN")
    assert fetch(host_session, "SELECT rotate_column('t', 'secret')") == 100
    host_session.execute("PREPARE TRANSACTION 'p'")
    host_session.execute(end)
    stale = 0 if end.startswith("COMMIT") else 100
    assert fetch(host_session, STALE, "t") == stale
    assert texts(host_session) == values(100)


def test_keys_that_are_reloaded_in_the_middle_become_the_key_of_all(
    host: Host, host_session: Session
) -> None:
    new, third = new_key(), new_key()
    fill(host_session, 3000)
    host.use(new, host.old)
    job = Job(host_session, batch_size=100)
    for _ in range(5):
        job.batch()
    host.use(third, new, host.old)
    job.end()
    assert fetch(host_session, USED, "t") == [key_id(third)]
    assert texts(host_session) == values(3000)
    host.use(third)
    with host.cluster.connect() as session:
        assert texts(session) == values(3000)


def test_an_old_key_that_goes_too_soon_stops_it_and_when_it_is_back_it_goes_on(
    host: Host, host_session: Session
) -> None:
    new = new_key()
    fill(host_session, 3000)
    host.use(new, host.old)
    job = Job(host_session, batch_size=100)
    for _ in range(5):
        job.batch()
    host.use(new)
    with pytest.raises(ObjectNotInPrerequisiteState) as refused:
        job.end()
    assert key_id(host.old) in refused.value.diag.message_primary
    host.use(new, host.old)
    host_session.execute(CALL + ")")
    assert fetch(host_session, USED, "t") == [key_id(new)]
    assert texts(host_session) == values(3000)


def test_a_worker_whose_key_goes_fails_and_can_be_resumed(
    host: Host, host_session: Session
) -> None:
    new = new_key()
    fill(host_session, 3000)
    host.use(new, host.old)
    job = start(host_session, ", max_rows_per_second => 500")
    wait_until(lambda: progress(host_session)[2] > 0, "its first batch")
    host.use(new)
    wait_for_state(host_session, job, "failed")
    assert key_id(host.old) in last_error(host_session, job)
    host.use(new, host.old)
    assert fetch(host_session, "SELECT colcrypt.resume_rotation(%s)", job) is True
    wait_for_state(host_session, job, "done")
    assert fetch(host_session, USED, "t") == [key_id(new)]
    assert texts(host_session) == values(3000)
