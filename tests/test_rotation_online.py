"""rotate_column_online() and rotate_column_background(): who may, when, what becomes of
a rotation that is paused, cancelled, interrupted or fails, and what its view says."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import (
    ActiveSqlTransaction,
    DatatypeMismatch,
    FeatureNotSupported,
    InsufficientPrivilege,
    InvalidParameterValue,
    InvalidTransactionTermination,
    ObjectInUse,
    ObjectNotInPrerequisiteState,
    QueryCanceled,
    ReadOnlySqlTransaction,
    SerializationFailure,
    UndefinedColumn,
    UndefinedObject,
    UndefinedTable,
    WrongObjectType,
)
from psycopg.rows import dict_row

from harness import (
    SUPERUSER,
    Cluster,
    Database,
    fetch,
    key_id,
    new_key,
    wait_until,
)
from kinds import Kind, every_kind

SUITES = ("xaes-256-gcm", "aes-256-gcm", "fernet", "envelope")
OLD, NEW = "aes-256-gcm", "xaes-256-gcm"

CALL = "CALL rotate_column_online('t', 'secret')"
BACKGROUND = "SELECT colcrypt.rotate_column_background('t', 'secret')"
# Does one batch, a block, and waits for an hour.
SLOW = """
    SELECT colcrypt.rotate_column_background('t', 'secret', batch_size => 1,
                                             pause => '1 hour')"""
BEGIN = (
    "SELECT colcrypt.begin_rotation('t', 'secret', 100, '0', '1 s', NULL, NULL, false,"
    " false)"
)
STEP = "SELECT colcrypt.rotation_step(%s)"
PAUSE = "SELECT colcrypt.pause_rotation(%s)"
RESUME = "SELECT colcrypt.resume_rotation(%s)"
CANCEL = "SELECT colcrypt.cancel_rotation(%s)"
JOBS = "SELECT count(*) FROM colcrypt.rotation_progress"
WORKERS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE backend_type = 'colcrypt rotation' AND datname = current_database()"""

numbers = itertools.count(1)


Session = psycopg.Connection[Any]


@pytest.fixture(scope="module")
def host(base: Path, template: Path) -> Iterator[Cluster]:
    cluster = Cluster(base, template, ring=new_key())
    cluster.conf(
        shared_preload_libraries="colcrypt",
        autovacuum=False,
        max_worker_processes=16,
        max_connections=60,
        colcrypt__audit_log="access",
    )
    cluster.start()
    try:
        cluster.psql("CREATE DATABASE with_colcrypt")
        cluster.psql("CREATE EXTENSION colcrypt", db="with_colcrypt")
        cluster.psql(
            "GRANT CREATE ON SCHEMA public TO PUBLIC;"
            "CREATE ROLE owner LOGIN; CREATE ROLE app LOGIN;"
            "CREATE ROLE member LOGIN IN ROLE owner; CREATE ROLE admin LOGIN SUPERUSER;"
            "CREATE ROLE silent NOLOGIN; GRANT silent TO app",
            db="with_colcrypt",
        )
        yield cluster
    finally:
        cluster.destroy()


@pytest.fixture
def shop(host: Cluster) -> Iterator[Database]:
    """A database of the test's own."""
    name = f"shop_{next(numbers)}"
    host.psql(f"CREATE DATABASE {name} TEMPLATE with_colcrypt")
    yield Database(host, name)
    host.psql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def session(shop: Database) -> Iterator[Session]:
    with connect(shop) as session:
        yield session


@pytest.fixture
def other(shop: Database) -> Iterator[Session]:
    with connect(shop) as session:
        yield session


@pytest.fixture
def owner(shop: Database) -> Iterator[Session]:
    with connect(shop, user="owner") as session:
        yield session


@pytest.fixture
def app(shop: Database) -> Iterator[Session]:
    with connect(shop, user="app") as session:
        yield session


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as threads:
        yield threads


def connect(place: Database | Cluster, **options: Any) -> Session:
    return place.connect(prepare_threshold=None, **options)


def superuser(session: Session) -> Session:
    """In the same database: others do not see what a process is."""
    place = {"host": session.info.host, "dbname": session.info.dbname}
    return psycopg.connect(**place, user=SUPERUSER, autocommit=True)


def fill(
    session: Session,
    rows: int = 100,
    table: str = "t",
    create: str = "CREATE TABLE {} (id int PRIMARY KEY, n int, secret encrypted_text)",
) -> None:
    """A table with rows under the old algorithm."""
    if create:
        session.execute(create.format(table).encode())
    with session.transaction():
        session.execute(f"SET LOCAL colcrypt.algorithm = '{OLD}'".encode())
        session.execute(
            f"INSERT INTO {table} (id, n, secret)"
            f" SELECT i, 0, 'value ' || i FROM generate_series(1, {rows}) AS i".encode()
        )


def suites(session: Session, table: str = "t") -> dict[str, int]:
    """How many values are sealed with each algorithm."""
    query = (
        f"SELECT (colcrypt.inspect(secret)).suite, count(*) FROM {table}"
        " WHERE secret IS NOT NULL GROUP BY 1"
    )
    return dict(session.execute(query.encode()).fetchall())


def keys(session: Session, table: str = "t") -> set[str]:
    query = f"SELECT DISTINCT (colcrypt.inspect(secret)).key_id FROM {table}"
    return {key for (key,) in session.execute(query.encode()).fetchall()}


def wrong(session: Session, table: str = "t") -> int:
    """Rows that do not hold what fill() has written."""
    query = (
        f"SELECT count(*) FROM {table}"
        " WHERE secret::text IS DISTINCT FROM 'value ' || id"
    )
    return fetch(session, query)


def progress(session: Session, job: int) -> dict[str, Any]:
    rows = session.cursor(row_factory=dict_row)
    rows.execute("SELECT * FROM colcrypt.rotation_progress WHERE job = %s", [job])
    row = rows.fetchone()
    assert row is not None
    return row


def only_job(session: Session) -> int:
    return fetch(session, "SELECT job FROM colcrypt.rotation_progress")


def wait_for(
    session: Session, job: int, state: str, phase: str | None = None
) -> dict[str, Any]:
    """Waits until a rotation is in a state and phase; gives its row."""
    seen: list[dict[str, Any]] = []

    def reached() -> bool:
        seen.append(progress(session, job))
        row = seen[-1]
        ended = row["state"] in ("failed", "done", "cancelled")
        assert not ended or row["state"] == state, row
        return row["state"] == state and phase in (None, row["phase"])

    wait_until(reached, f"a rotation that is {state} {phase or ''}")
    return seen[-1]


def wait_for_rest(session: Session, workers: int = 0) -> None:
    """Waits until no worker is left."""
    with superuser(session) as all_seeing:
        wait_until(lambda: fetch(all_seeing, WORKERS) <= workers, "the workers' end")


def run_slow(session: Session) -> int:
    """Starts a rotation that stands still in its middle."""
    job = fetch(session, SLOW)
    row = progress(session, job)

    def has_begun() -> bool:
        nonlocal row
        row = progress(session, job)
        return row["rows_rotated"] > 0

    wait_until(has_begun, "the first batch")
    return job


def finish(session: Session, job: int) -> None:
    """Has a rotation taken up at full speed, and waits for its end."""
    wait_until(lambda: take_up(session), "whoever was at work on the rotation")
    assert suites(session).keys() <= {NEW}


def take_up(session: Session) -> bool:
    try:
        session.execute(CALL.encode())
    except ObjectInUse:
        return False
    return True


def call(threads: ThreadPoolExecutor, session: Session, sql: str = CALL) -> Future[Any]:
    return threads.submit(session.execute, sql.encode())


def is_waiting(session: Session, job: int, phase: str) -> bool:
    return progress(session, job)["phase"] == phase


# Parameters

REFUSED: dict[str, tuple[str, type[psycopg.Error]]] = {
    "relation": ("NULL, 'secret'", InvalidParameterValue),
    "column": ("'t', NULL", InvalidParameterValue),
    "no relation": ("0::regclass, 'secret'", UndefinedTable),
    "no column": ("'t', 'absent'", UndefinedColumn),
    "another type": ("'t', 'n'", DatatypeMismatch),
    "system column": ("'t', 'ctid'", UndefinedColumn),
    "view": ("'v', 'secret'", WrongObjectType),
    "index": ("'t_pkey', 'id'", WrongObjectType),
    "batch_size NULL": ("'t', 'secret', batch_size => NULL", InvalidParameterValue),
    "batch_size 0": ("'t', 'secret', batch_size => 0", InvalidParameterValue),
    "batch_size < 0": ("'t', 'secret', batch_size => -1", InvalidParameterValue),
    "pause NULL": ("'t', 'secret', pause => NULL", InvalidParameterValue),
    "pause < 0": ("'t', 'secret', pause => '-1 second'", InvalidParameterValue),
    "pause long": ("'t', 'secret', pause => '100 years'", InvalidParameterValue),
    "pause longest": (
        "'t', 'secret', pause => make_interval(0, 2147483647, 0, 2147483647)",
        InvalidParameterValue,
    ),
    "lock NULL": ("'t', 'secret', lock_timeout => NULL", InvalidParameterValue),
    "lock < 0": ("'t', 'secret', lock_timeout => '-1 ms'", InvalidParameterValue),
    "lock long": ("'t', 'secret', lock_timeout => '1 month'", InvalidParameterValue),
    "rate 0": ("'t', 'secret', max_rows_per_second => 0", InvalidParameterValue),
    "rate < 0": ("'t', 'secret', max_rows_per_second => -5", InvalidParameterValue),
    "lag < 0": ("'t', 'secret', max_lag_bytes => -1", InvalidParameterValue),
    "triggers NULL": ("'t', 'secret', fire_triggers => NULL", InvalidParameterValue),
}
VERBS = {
    "online": "CALL rotate_column_online({})",
    "background": "SELECT colcrypt.rotate_column_background({})",
}
every_verb = pytest.mark.parametrize("verb", VERBS.values(), ids=list(VERBS))


@every_verb
@pytest.mark.parametrize(
    ("arguments", "error"), REFUSED.values(), ids=[name for name in REFUSED]
)
def test_what_makes_no_sense_is_refused_and_leaves_nothing_behind(
    session: Session, verb: str, arguments: str, error: type[psycopg.Error]
) -> None:
    fill(session, 3)
    session.execute("CREATE VIEW v AS SELECT * FROM t")
    with pytest.raises(error) as refused:
        session.execute(verb.format(arguments).encode())
    assert refused.value.sqlstate == error.sqlstate
    if error is InvalidParameterValue and "=>" in arguments:
        name = arguments.split(" =>")[0].rpartition(" ")[2]
        assert name in (refused.value.diag.message_primary or "")
    assert fetch(session, JOBS) == 0 and suites(session) == {OLD: 3}


@every_verb
@pytest.mark.parametrize(
    "arguments",
    [
        "batch_size => 2147483647",
        "pause => '0.000001 seconds'",
        "pause => '-1 day 24 hours 1 ms'",
        "lock_timeout => '0'",
        "lock_timeout => '11 days'",
        "max_rows_per_second => 9223372036854775807",
        "max_lag_bytes => 0",
        "max_lag_bytes => 9223372036854775807",
        "fire_triggers => true",
    ],
)
def test_the_extremes_that_make_sense_work(
    session: Session, verb: str, arguments: str
) -> None:
    fill(session, 50)
    session.execute(verb.format(f"'t', 'secret', {arguments}").encode())
    wait_for(session, only_job(session), "done")
    assert suites(session) == {NEW: 50} and wrong(session) == 0


@pytest.mark.parametrize("value", ["'-1 s'", "'178000000 years'", "NULL"])
@pytest.mark.parametrize("place", [3, 4], ids=["pause", "lock_timeout"])
def test_begin_rotation_takes_no_time_that_is_none(
    session: Session, place: int, value: str
) -> None:
    fill(session, 3)
    arguments = ["'t'", "'secret'", "10", "'0'", "'1 s'", "NULL", "NULL", "false", "false"]
    arguments[place] = value
    with pytest.raises(InvalidParameterValue):
        session.execute(f"SELECT colcrypt.begin_rotation({', '.join(arguments)})")
    assert fetch(session, JOBS) == 0


@pytest.mark.parametrize("verb", [PAUSE, RESUME, CANCEL, STEP])
@pytest.mark.parametrize("job", [0, -1, 4711, 2147483647])
def test_a_rotation_that_does_not_exist_is_an_error(
    session: Session, verb: str, job: int
) -> None:
    with pytest.raises(UndefinedObject):
        session.execute(verb, [job])


@pytest.mark.parametrize("verb", [PAUSE, RESUME, CANCEL, STEP])
def test_no_rotation_is_null(session: Session, verb: str) -> None:
    assert fetch(session, verb, None) is None


def test_names_of_any_kind_are_found(session: Session) -> None:
    fill(session, 30)
    name = 'sécret "x" % $$ \\'
    column = sql.Identifier(name)
    session.execute(sql.SQL("ALTER TABLE t RENAME secret TO {}").format(column))
    table = sql.Identifier('T "ä" %s')
    session.execute(sql.SQL("ALTER TABLE t RENAME TO {}").format(table))
    oid = fetch(session, "SELECT oid FROM pg_class WHERE relname ~ '^T \"'")
    session.execute("CALL rotate_column_online(%s::oid, %s)", [oid, name])
    row = progress(session, only_job(session))
    assert row["state"] == "done" and row["rows_rotated"] == 30
    assert row["column_name"] == name and row["relation"] == '"T ""ä"" %s"'


# Where it may run


@pytest.mark.parametrize(
    "begin",
    ["BEGIN", "BEGIN; SAVEPOINT s", "BEGIN ISOLATION LEVEL SERIALIZABLE"],
)
def test_a_transaction_block_is_refused(session: Session, begin: str) -> None:
    fill(session, 3)
    session.execute(begin.encode())
    with pytest.raises(ActiveSqlTransaction):
        session.execute(CALL)
    session.execute("ROLLBACK")
    assert fetch(session, JOBS) == 0 and suites(session) == {OLD: 3}


def test_an_implicit_transaction_block_is_refused(session: Session) -> None:
    fill(session, 3)
    with pytest.raises(ActiveSqlTransaction):
        session.execute(f"SELECT 1; {CALL}".encode())
    assert fetch(session, JOBS) == 0 and suites(session) == {OLD: 3}


def test_a_do_block_is_no_obstacle(session: Session) -> None:
    fill(session, 300)
    session.execute(
        "DO $$ BEGIN CALL rotate_column_online('t', 'secret', 10);"
        " CALL rotate_column_online('t', 'secret', 10); END $$"
    )
    assert suites(session) == {NEW: 300}


ATOMIC = {
    "function": "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$"
    " BEGIN CALL rotate_column_online('t', 'secret'); END $$",
    "exception block": "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$"
    " BEGIN BEGIN CALL rotate_column_online('t', 'secret');"
    " EXCEPTION WHEN division_by_zero THEN NULL; END; END $$",
    "security definer": "CREATE PROCEDURE f() LANGUAGE plpgsql SECURITY DEFINER AS $$"
    " BEGIN CALL rotate_column_online('t', 'secret'); END $$",
    "with a setting": "CREATE PROCEDURE f() LANGUAGE plpgsql SET work_mem = '1MB' AS $$"
    " BEGIN CALL rotate_column_online('t', 'secret'); END $$",
}


@pytest.mark.parametrize("wrapper", ATOMIC.values(), ids=list(ATOMIC))
def test_what_cannot_commit_is_refused_and_leaves_nothing_behind(
    session: Session, wrapper: str
) -> None:
    fill(session, 3)
    session.execute(wrapper.encode())
    with pytest.raises((InvalidTransactionTermination, ActiveSqlTransaction)):
        session.execute("CALL f()" if "PROCEDURE" in wrapper else "SELECT f()")
    assert fetch(session, JOBS) == 0 and suites(session) == {OLD: 3}
    session.execute(CALL)
    assert suites(session) == {NEW: 3}


@pytest.mark.parametrize("sql", [CALL, BACKGROUND, BEGIN])
def test_a_read_only_session_is_refused(session: Session, sql: str) -> None:
    fill(session, 3)
    session.execute("SET default_transaction_read_only = on")
    with pytest.raises(ReadOnlySqlTransaction):
        session.execute(sql.encode())
    session.execute("SET default_transaction_read_only = off")
    assert fetch(session, JOBS) == 0 and suites(session) == {OLD: 3}


@pytest.mark.parametrize("verb", [PAUSE, RESUME, CANCEL])
def test_a_read_only_session_says_nothing_of_a_rotation(
    session: Session, verb: str
) -> None:
    fill(session, 500)
    job = run_slow(session)
    session.execute("SET default_transaction_read_only = on")
    with pytest.raises(ReadOnlySqlTransaction):
        session.execute(verb, [job])
    assert progress(session, job)["state"] == "running"


def test_a_worker_in_a_database_that_is_read_only_by_default_does_its_work_or_says_why(
    session: Session, shop: Database
) -> None:
    """The session that asks may have overridden the default."""
    fill(session, 30)
    read_only = "SET default_transaction_read_only = on"
    session.execute(f"ALTER DATABASE {shop.name} {read_only}".encode())
    job = fetch(session, BACKGROUND)
    wait_for_rest(session)
    assert progress(session, job)["state"] in ("done", "failed", "interrupted")


def test_a_temporary_table_is_for_its_session_only(
    session: Session, other: Session
) -> None:
    create = "CREATE TEMP TABLE {} (id int, n int, secret encrypted_text)"
    fill(session, 30, create=create)
    with pytest.raises(FeatureNotSupported):
        session.execute(BACKGROUND)
    oid = fetch(session, "SELECT 't'::regclass::oid")
    with pytest.raises(FeatureNotSupported):
        other.execute("CALL rotate_column_online(%s::oid, 'secret')", [oid])
    session.execute(CALL)
    assert suites(session) == {NEW: 30} and wrong(session) == 0
    with pytest.raises(FeatureNotSupported):
        session.execute(RESUME, [only_job(session)])


def test_a_generated_column_is_refused(session: Session) -> None:
    session.execute(
        "CREATE TABLE t (id int, secret encrypted_text, copy encrypted_text"
        " GENERATED ALWAYS AS (secret) STORED)"
    )
    with pytest.raises(psycopg.errors.GeneratedAlways):
        session.execute("CALL rotate_column_online('t', 'copy')")
    assert fetch(session, JOBS) == 0


# Who may


@pytest.mark.parametrize("statement", [CALL, BACKGROUND, BEGIN])
def test_a_role_that_does_not_own_the_table_is_refused(
    owner: Session, app: Session, statement: str
) -> None:
    fill(owner, 3)
    owner.execute("GRANT ALL ON t TO app")
    with pytest.raises(InsufficientPrivilege):
        app.execute(statement.encode())
    assert fetch(owner, JOBS) == 0 and suites(owner) == {OLD: 3}


@every_verb
@pytest.mark.parametrize("user", ["owner", "member", "admin"])
def test_owner_member_and_superuser_may(
    shop: Database, owner: Session, verb: str, user: str
) -> None:
    fill(owner, 30)
    with connect(shop, user=user) as session:
        session.execute(verb.format("'t', 'secret'").encode())
    wait_for(owner, only_job(owner), "done")
    assert suites(owner) == {NEW: 30} and wrong(owner) == 0


@every_verb
def test_a_role_that_cannot_log_in_may_own(
    session: Session, app: Session, verb: str
) -> None:
    session.execute("GRANT CREATE ON SCHEMA public TO silent")
    app.execute("SET ROLE silent")
    fill(app, 30)
    app.execute(verb.format("'t', 'secret'").encode())
    job = only_job(app)
    wait_for(app, job, "done")
    assert suites(app) == {NEW: 30}
    asked = "SELECT role::regrole::text FROM colcrypt.rotation WHERE job = %s"
    assert fetch(session, asked, job) == "silent"


@pytest.mark.parametrize("verb", [PAUSE, RESUME, CANCEL, STEP])
def test_a_stranger_says_nothing_of_a_rotation(
    owner: Session, app: Session, verb: str
) -> None:
    fill(owner, 500)
    owner.execute("GRANT ALL ON t TO app")
    job = run_slow(owner)
    with pytest.raises((InsufficientPrivilege, ObjectInUse)):
        app.execute(verb, [job])
    assert progress(owner, job)["state"] == "running"
    # Not, either, of one that nobody is at work on.
    assert fetch(owner, PAUSE, job)
    wait_for_rest(owner)
    with pytest.raises((InsufficientPrivilege, QueryCanceled)):
        app.execute(verb, [job])
    assert progress(owner, job)["state"] == "paused"
    finish(owner, job)


@pytest.mark.parametrize("user", ["member", "admin"])
def test_a_member_of_the_owner_and_a_superuser_say_what_becomes_of_it(
    shop: Database, owner: Session, user: str
) -> None:
    fill(owner, 500)
    job = run_slow(owner)
    with connect(shop, user=user) as session:
        assert fetch(session, PAUSE, job)
        wait_for_rest(session)
        assert fetch(session, RESUME, job)
        assert fetch(session, CANCEL, job)
    assert progress(owner, job)["state"] == "cancelled"


def test_the_owner_stops_what_a_superuser_has_started(
    session: Session, owner: Session
) -> None:
    fill(owner, 500)
    job = run_slow(session)
    assert fetch(owner, CANCEL, job)
    assert progress(owner, job)["state"] == "cancelled"


def test_one_who_sets_an_owner_s_work_going_need_not_own_the_table(
    session: Session, owner: Session, app: Session
) -> None:
    """By a SECURITY DEFINER function, in which the owner asks."""
    fill(owner, 30)
    owner.execute(
        "CREATE FUNCTION rotate() RETURNS int LANGUAGE sql SECURITY DEFINER"
        " AS $$SELECT colcrypt.rotate_column_background('t', 'secret')$$"
    )
    job = fetch(app, "SELECT rotate()")
    wait_for(owner, job, "done")
    assert suites(owner) == {NEW: 30}
    asked = "SELECT role::regrole::text FROM colcrypt.rotation WHERE job = %s"
    assert fetch(session, asked, job) == "owner"


def test_a_stranger_takes_no_rotation_out_of_the_owner_s_hands(
    owner: Session, app: Session
) -> None:
    """An error that is caught must not leave the rotation held by whoever caught it."""
    fill(owner, 500)
    job = run_slow(owner)
    fetch(owner, PAUSE, job)
    wait_for_rest(owner)
    app.execute(
        f"DO $$ BEGIN PERFORM colcrypt.rotation_step({job});"
        " EXCEPTION WHEN OTHERS OR query_canceled THEN NULL; END $$"
    )
    owner.execute(CALL)
    assert progress(owner, job)["state"] == "done"


def test_a_stranger_does_not_hold_a_rotation_while_the_table_is_locked(
    session: Session, owner: Session, app: Session
) -> None:
    fill(owner, 500)
    job = fetch(owner, BEGIN)
    session.execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
    with pytest.raises(InsufficientPrivilege):
        app.execute(STEP, [job])
    session.execute("ROLLBACK")
    owner.execute(CALL)
    assert progress(owner, job)["state"] == "done"


def test_the_functions_below_the_procedure_work_for_the_owner(owner: Session) -> None:
    fill(owner, 500)
    job = fetch(owner, BEGIN)
    steps = 0
    while fetch(owner, STEP, job) is not None:
        steps += 1
    assert 3 < steps < 100
    assert suites(owner) == {NEW: 500} and progress(owner, job)["state"] == "done"
    with pytest.raises(QueryCanceled):
        owner.execute(STEP, [job])


def change_owner(session: Session, _job: int) -> None:
    session.execute("ALTER TABLE t OWNER TO app")


def take_back_superuser(session: Session, job: int) -> None:
    session.execute("CREATE ROLE late LOGIN")
    session.execute("UPDATE colcrypt.rotation SET role = 'late'::regrole")
    session.execute("DROP ROLE late")


@pytest.mark.parametrize("lose", [change_owner, take_back_superuser])
def test_a_role_that_lost_its_right_does_no_further_batch(
    session: Session, owner: Session, lose: Callable[[Session, int], None]
) -> None:
    fill(owner, 2000)
    job = fetch(owner, SLOW.replace("1 hour", "1 second"))
    wait_until(lambda: progress(session, job)["rows_rotated"] > 0, "the first batch")
    lose(session, job)
    row = wait_for(session, job, "failed")
    assert "must be owner of relation t" in row["last_error"]
    assert 0 < suites(session)[OLD] and wrong(session) == 0
    # A superuser takes it up with his own rights.
    session.execute(CALL)
    assert progress(session, job)["state"] == "done"
    assert suites(session) == {NEW: 2000} and wrong(session) == 0


def test_everybody_sees_progress_and_nobody_the_table(
    session: Session, owner: Session, app: Session
) -> None:
    fill(owner, 30)
    owner.execute(CALL)
    assert progress(app, only_job(app))["state"] == "done"
    for statement in (
        "SELECT * FROM colcrypt.rotation",
        "UPDATE colcrypt.rotation SET state = 'done'",
        "DELETE FROM colcrypt.rotation",
        "INSERT INTO colcrypt.rotation DEFAULT VALUES",
        "UPDATE colcrypt.rotation_progress SET state = 'done'",
        "SELECT nextval('colcrypt.rotation_job_seq')",
    ):
        with pytest.raises((InsufficientPrivilege, ObjectNotInPrerequisiteState)):
            app.execute(statement.encode())


def test_last_error_shows_no_plaintext_to_others(
    owner: Session, app: Session
) -> None:
    """The message of a failed trigger may hold plaintext, which is the owner's."""
    fill(owner, 3)
    owner.execute(
        "CREATE FUNCTION cast_it() RETURNS trigger LANGUAGE plpgsql AS $$"
        " BEGIN RETURN NULLIF(NEW, NULL::t) WHERE NEW.secret::text::int > 0; END $$"
    )
    owner.execute(
        "CREATE TRIGGER b BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION cast_it()"
    )
    job = fetch(owner, BACKGROUND.replace(")", ", fire_triggers => true)"))
    wait_for(owner, job, "failed")
    assert "value " not in str(progress(app, job)["last_error"])


# Hostile search paths

EVIL = """
    CREATE SCHEMA evil AUTHORIZATION app; GRANT USAGE ON SCHEMA evil TO PUBLIC;
    CREATE TABLE evil.caught (by text, what text); GRANT ALL ON evil.caught TO PUBLIC;
    CREATE FUNCTION evil.catch(what text) RETURNS text LANGUAGE sql
        AS $$INSERT INTO evil.caught VALUES (current_user, what) RETURNING what$$;
    CREATE FUNCTION evil.date_part(text, interval) RETURNS float8 LANGUAGE sql
        AS $$SELECT evil.catch('date_part'); SELECT 0::float8$$;
    CREATE FUNCTION evil.pg_sleep(float8) RETURNS text LANGUAGE sql
        AS $$SELECT evil.catch('pg_sleep')$$;
    CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql
        AS $$SELECT evil.catch('clock'); SELECT now()$$;
    CREATE FUNCTION evil.namein(cstring) RETURNS name LANGUAGE internal AS 'namein';
    CREATE FUNCTION evil.same(text, text) RETURNS bool LANGUAGE sql
        AS $$SELECT evil.catch('text = text'); SELECT false$$;
    CREATE OPERATOR evil.= (FUNCTION = evil.same, LEFTARG = text, RIGHTARG = text);
    CREATE FUNCTION evil.same(oid, oid) RETURNS bool LANGUAGE sql
        AS $$SELECT evil.catch('oid = oid'); SELECT false$$;
    CREATE OPERATOR evil.= (FUNCTION = evil.same, LEFTARG = oid, RIGHTARG = oid);
    CREATE FUNCTION evil.same(int, int) RETURNS bool LANGUAGE sql
        AS $$SELECT evil.catch('int = int'); SELECT false$$;
    CREATE OPERATOR evil.= (FUNCTION = evil.same, LEFTARG = int, RIGHTARG = int);
    CREATE FUNCTION evil.plus(timestamptz, interval) RETURNS timestamptz LANGUAGE sql
        AS $$SELECT evil.catch('plus'); SELECT $1$$;
    CREATE OPERATOR evil.+ (FUNCTION = evil.plus, LEFTARG = timestamptz,
                            RIGHTARG = interval);
    CREATE FUNCTION evil.begin_rotation(regclass, name, int, interval, interval, bigint,
                                        bigint, bool, bool) RETURNS int LANGUAGE sql
        AS $$SELECT evil.catch('begin'); SELECT 1$$;
    CREATE DOMAIN evil.float8 AS pg_catalog.float8 CHECK (VALUE > 1e9);
    CREATE DOMAIN evil.int4 AS pg_catalog.int4 CHECK (VALUE > 1e9);
    CREATE VIEW evil.pg_class AS SELECT 0::oid AS oid;
    CREATE VIEW evil.pg_stat_replication AS
        SELECT evil.catch('replication'), '0/0'::pg_lsn AS replay_lsn;
"""


@every_verb
def test_nothing_on_the_search_path_is_called(
    session: Session, owner: Session, other: Session, verb: str
) -> None:
    fill(owner, 300)
    session.execute(EVIL.encode())
    # An operator of one's own is found before PostgreSQL's.
    other.execute("SET search_path = evil, pg_catalog, public")
    assert other.execute("SELECT 1 = 1").fetchone() == (False,)
    caught = "SELECT * FROM evil.caught"
    assert session.execute(caught).fetchall() == [(SUPERUSER, "int = int")]
    session.execute("TRUNCATE evil.caught")
    arguments = "'t', 'secret', 10, pause => '1 ms', max_lag_bytes => 0"
    other.execute(verb.format(arguments).encode())
    job = fetch(session, "SELECT max(job) FROM colcrypt.rotation_progress")
    wait_for(session, job, "done")
    assert not fetch(other, PAUSE, job)
    other.execute("TABLE colcrypt.rotation_progress")
    assert session.execute(caught).fetchall() == []
    assert suites(owner) == {NEW: 300}


@every_verb
def test_an_index_expression_of_the_owner_s_runs_as_the_owner(
    session: Session, owner: Session, verb: str
) -> None:
    owner.execute(
        "CREATE TABLE seen (who text);"
        "CREATE FUNCTION see() RETURNS void LANGUAGE sql AS"
        " $$INSERT INTO public.seen VALUES (current_user)$$;"
        "CREATE FUNCTION f(encrypted_text) RETURNS text LANGUAGE plpgsql IMMUTABLE"
        " AS $$BEGIN PERFORM public.see(); RETURN 'x'; END $$"
    )
    fill(owner, 30)
    owner.execute("CREATE INDEX ON t (f(secret))")
    owner.execute("TRUNCATE seen")
    session.execute(verb.format("'t', 'secret'").encode())
    wait_for(session, only_job(session), "done")
    assert session.execute("SELECT DISTINCT who FROM seen").fetchall() == [("owner",)]


EVERY_TRIGGER = """
    CREATE TABLE seen (who text, what text);
    CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO public.seen VALUES (current_user, TG_NAME || ' ' || TG_WHEN);
        RETURN NEW;
    END $$;
    CREATE TRIGGER plain BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION see();
    CREATE TRIGGER plain_after AFTER UPDATE ON t FOR EACH ROW EXECUTE FUNCTION see();
    CREATE CONSTRAINT TRIGGER soon AFTER UPDATE ON t DEFERRABLE
        FOR EACH ROW EXECUTE FUNCTION see();
"""
DEFERRED = """
    CREATE CONSTRAINT TRIGGER later AFTER UPDATE ON t DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION see()"""


@every_verb
@pytest.mark.parametrize("user", ["owner", "admin"])
@pytest.mark.parametrize("deferred", [False, True], ids=["", "deferred"])
def test_triggers_run_as_the_owner_and_as_nobody_else(
    shop: Database, owner: Session, verb: str, user: str, deferred: bool
) -> None:
    fill(owner, 3)
    owner.execute((EVERY_TRIGGER + (DEFERRED if deferred else "")).encode())
    with connect(shop, user=user) as session, suppress(InsufficientPrivilege):
        session.execute(verb.format("'t', 'secret', fire_triggers => true").encode())
    wait_for_rest(owner)
    who = owner.execute("SELECT DISTINCT who FROM seen").fetchall()
    assert who in ([("owner",)], [])
    if not deferred:
        assert suites(owner) == {NEW: 3}


# Isolation

LEVELS = ["read committed", "repeatable read", "serializable"]


def write(session: Session, stop: threading.Event) -> int:
    """Updates rows until it is told to stop; gives how often. Half of them keep their
    secret, which takes the old value along."""
    done = 0
    while not stop.is_set():
        with suppress(SerializationFailure):
            session.execute(
                "UPDATE t SET n = n + 1, secret ="
                " CASE WHEN id % 2 = 0 THEN secret ELSE ('value ' || id) END"
                f" WHERE id = {random.randint(1, 3000)}".encode()
            )
            done += 1
    return done


@every_verb
@pytest.mark.parametrize("level", LEVELS)
def test_writers_lose_nothing_whatever_the_isolation_level(
    shop: Database, session: Session, threads: ThreadPoolExecutor, verb: str, level: str
) -> None:
    fill(session, 3000)
    session.execute(
        f"ALTER DATABASE {shop.name} SET default_transaction_isolation = '{level}'"
    )
    stop = threading.Event()
    with connect(shop) as one, connect(shop) as two, connect(shop) as caller:
        assert fetch(one, "SHOW default_transaction_isolation") == level
        writers = [threads.submit(write, writer, stop) for writer in (one, two)]
        try:
            wait_until(lambda: is_accepted(caller, verb), "a call without conflict", 60)
            row = wait_for(session, only_job(session), "done")
        finally:
            stop.set()
        done = sum(writer.result() for writer in writers)
    assert suites(session) == {NEW: 3000} and wrong(session) == 0
    assert fetch(session, "SELECT sum(n) FROM t") == done > 0
    assert row["last_error"] is None


def is_accepted(session: Session, verb: str) -> bool:
    """A procedure cannot try again by itself what has failed to serialize."""
    try:
        session.execute(verb.format("'t', 'secret', 20").encode())
    except SerializationFailure:
        return False
    return True


@pytest.mark.parametrize("level", LEVELS)
def test_a_pause_is_told_as_one_whatever_the_isolation_level(
    shop: Database, session: Session, threads: ThreadPoolExecutor, level: str
) -> None:
    fill(session, 1000)
    options = f"-c default_transaction_isolation={level.replace(' ', chr(92) + ' ')}"
    with connect(shop, options=options) as caller:
        statement = CALL.replace(")", ", 1, pause => '200 ms')")
        called = call(threads, caller, statement)
        wait_until(lambda: fetch(session, JOBS) == 1, "the rotation")
        job = only_job(session)
        wait_until(lambda: progress(session, job)["rows_rotated"] > 0, "a batch")
        assert fetch(session, PAUSE, job)
        with pytest.raises(QueryCanceled) as stopped:
            called.result(30)
    assert stopped.value.diag.message_primary == f"rotation {job} was paused"
    assert progress(session, job)["state"] == "paused"


# What it moves to


@pytest.mark.parametrize("source", SUITES)
@pytest.mark.parametrize("target", SUITES)
def test_every_suite_moves_to_every_other(
    session: Session, source: str, target: str
) -> None:
    session.execute(f"SET colcrypt.algorithm = '{source}'".encode())
    session.execute("CREATE TABLE t (id int, n int, secret encrypted_text)")
    session.execute(
        "INSERT INTO t SELECT i, 0, 'value ' || i FROM generate_series(1, 300) AS i"
    )
    session.execute(f"SET colcrypt.algorithm = '{target}'".encode())
    session.execute(CALL)
    row = progress(session, only_job(session))
    assert suites(session) == {target: 300} and wrong(session) == 0
    assert row["rows_rotated"] == (0 if source == target else 300)


@pytest.mark.parametrize("target", SUITES)
def test_a_worker_seals_as_its_caller_would(session: Session, target: str) -> None:
    fill(session, 300)
    session.execute(f"SET colcrypt.algorithm = '{target}'".encode())
    job = fetch(session, BACKGROUND)
    # What the caller does afterwards is another matter.
    session.execute("RESET colcrypt.algorithm")
    wait_for(session, job, "done")
    assert suites(session) == {target: 300} and wrong(session) == 0


def test_a_worker_seals_with_the_key_that_its_caller_writes_with(
    session: Session,
) -> None:
    fill(session, 30)
    fill(session, 30, "u")
    session.execute("SELECT colcrypt.create_key('tenant')")
    session.execute("SET colcrypt.write_key = 'tenant'")
    job = fetch(session, BACKGROUND)
    session.execute("SELECT rotate_column('u', 'secret')")
    wait_for(session, job, "done")
    assert keys(session) == keys(session, "u") and wrong(session) == 0
    assert suites(session) == suites(session, "u")


@every_verb
def test_a_column_s_own_key_is_rotated_to_its_newest_version(
    session: Session, verb: str
) -> None:
    session.execute("SELECT colcrypt.create_key('pii')")
    create = "CREATE TABLE {} (id int, n int, secret encrypted_text(pii))"
    fill(session, 300, create=create)
    (old,) = keys(session)
    new = fetch(session, "SELECT colcrypt.rotate_key('pii')")
    assert new != old
    session.execute(verb.format("'t', 'secret'").encode())
    wait_for(session, only_job(session), "done")
    assert keys(session) == {new} and wrong(session) == 0


@every_verb
def test_an_owner_rotates_what_he_may_not_read(
    session: Session, owner: Session, verb: str
) -> None:
    session.execute("SELECT colcrypt.create_key('pii')")
    session.execute("SELECT colcrypt.grant_key('pii', 'member')")
    create = "CREATE TABLE {} (id int, n int, secret encrypted_text(pii))"
    fill(session, 30, create=create)
    session.execute("ALTER TABLE t OWNER TO owner")
    new = fetch(session, "SELECT colcrypt.rotate_key('pii')")
    owner.execute(verb.format("'t', 'secret'").encode())
    wait_for(session, only_job(session), "done")
    assert keys(session) == {new} and wrong(session) == 0
    assert fetch(owner, "SELECT min(secret::text) FROM t") == "********"


@every_verb
def test_values_under_a_shredded_key_stay(session: Session, verb: str) -> None:
    fill(session, 30)
    session.execute("SELECT colcrypt.create_key('gone')")
    session.execute(
        "INSERT INTO t SELECT i, 0, encrypt('x', 'gone')"
        " FROM generate_series(31, 40) AS i"
    )
    gone = "SELECT array_agg(ciphertext(secret) ORDER BY id) FROM t WHERE id > 30"
    before = fetch(session, gone)
    session.execute("SELECT colcrypt.shred_key('gone')")
    session.execute(verb.format("'t', 'secret'").encode())
    row = wait_for(session, only_job(session), "done")
    assert row["rows_rotated"] == 30 and fetch(session, gone) == before


def test_call_moves_to_the_session_s_own_key_and_a_worker_is_refused(
    session: Session, other: Session
) -> None:
    fill(session, 300)
    (old,) = keys(session)
    key = new_key()
    session.execute("SELECT set_config('colcrypt.key', %s, false)", [key])
    with pytest.raises(ObjectNotInPrerequisiteState):
        session.execute(BACKGROUND)
    assert fetch(session, JOBS) == 0
    session.execute(CALL.replace(")", ", 10)"))
    assert keys(session) == {key_id(key)} and wrong(session) == 0
    # Back, which takes both keys.
    with pytest.raises(ObjectNotInPrerequisiteState):
        other.execute(CALL)
    assert keys(session) == {key_id(key)} and wrong(session) == 0
    assert old != key_id(key)


def test_a_worker_cannot_go_on_with_a_session_s_key_and_says_so(
    session: Session, other: Session, threads: ThreadPoolExecutor
) -> None:
    fill(session, 1000)
    key = new_key()
    session.execute("SELECT set_config('colcrypt.key', %s, false)", [key])
    called = call(threads, session, CALL.replace(")", ", 1, pause => '200 ms')"))
    wait_until(lambda: fetch(other, JOBS) == 1, "the rotation")
    job = only_job(other)
    wait_until(lambda: progress(other, job)["rows_rotated"] > 200, "two batches")
    assert fetch(other, PAUSE, job)
    with pytest.raises(QueryCanceled):
        called.result(30)
    with suppress(ObjectNotInPrerequisiteState):
        fetch(other, RESUME, job)
        row = wait_for(other, job, "failed")
        assert key_id(key) in row["last_error"]
    assert wrong(session) == 0
    session.execute(CALL)
    assert keys(session) == {key_id(key)} and wrong(session) == 0


# Values


@every_verb
@every_kind
def test_values_of_every_type_are_moved_and_not_changed(
    session: Session, kind: Kind, verb: str
) -> None:
    session.execute(
        f"CREATE DOMAIN d AS {kind.type};"
        f"CREATE TABLE t (id int, n d, secret {kind.type});"
        f"SET colcrypt.algorithm = '{OLD}'".encode()
    )
    for number, sample in enumerate(kind.samples):
        row = f"({number}, {sample.literal}, {sample.literal})"
        session.execute(f"INSERT INTO t VALUES {row}".encode())
    session.execute("INSERT INTO t SELECT i FROM generate_series(100, 200) AS i")
    session.execute("RESET colcrypt.algorithm")
    everything = "SELECT id, n, secret FROM t ORDER BY id"
    before = session.execute(everything).fetchall()
    for column in ("n", "secret"):
        session.execute(verb.format(f"'t', '{column}', 2").encode())
        query = "SELECT max(job) FROM colcrypt.rotation_progress"
        row = wait_for(session, fetch(session, query), "done")
        assert row["rows_rotated"] == len(kind.samples)
    assert suites(session) == {NEW: len(kind.samples)}
    assert session.execute(everything).fetchall() == before
    failed = "SELECT sum(failed) FROM colcrypt.verify_column('t', 'n')"
    assert fetch(session, failed) == 0


@every_verb
@pytest.mark.parametrize("rows", ["", "INSERT INTO t SELECT 1, 1, NULL", "fresh"])
def test_where_nothing_is_stale_nothing_is_done(
    session: Session, verb: str, rows: str
) -> None:
    session.execute("CREATE TABLE t (id int, n int, secret encrypted_text UNIQUE)")
    insert = "INSERT INTO t SELECT i, 0, 'v' || i FROM generate_series(1, 500) AS i"
    session.execute((insert if rows == "fresh" else rows or "SELECT 1").encode())
    before = session.execute("SELECT ctid, ciphertext(secret) FROM t").fetchall()
    told: list[str] = []
    session.add_notice_handler(lambda notice: told.append(str(notice.message_primary)))
    session.execute(verb.format("'t', 'secret'").encode())
    row = wait_for(session, only_job(session), "done")
    assert row["rows_rotated"] == 0 and row["blocks_done"] == row["blocks_total"]
    assert told == []
    after = session.execute("SELECT ctid, ciphertext(secret) FROM t").fetchall()
    assert after == before


PARTITIONED = """
    CREATE TABLE t (id int, n int, secret encrypted_text) PARTITION BY RANGE (id)"""


@every_verb
def test_three_hundred_partitions_are_moved(session: Session, verb: str) -> None:
    session.execute(PARTITIONED)
    session.execute(
        "DO $$ BEGIN FOR i IN 0..299 LOOP EXECUTE format('CREATE TABLE p%s PARTITION OF"
        " t FOR VALUES FROM (%s) TO (%s)', i, i * 10, i * 10 + 10); END LOOP; END $$"
    )
    fill(session, 2999, create="")
    session.execute(verb.format("'t', 'secret'").encode())
    row = wait_for(session, only_job(session), "done")
    assert suites(session) == {NEW: 2999} and wrong(session) == 0
    assert row["rows_rotated"] == 2999 and row["blocks_done"] == 300


def make_parts(session: Session, rows_of_second: int = 300) -> None:
    """Two partitions; the first is gone through first."""
    session.execute(PARTITIONED)
    session.execute("CREATE TABLE p1 PARTITION OF t FOR VALUES FROM (0) TO (301)")
    session.execute("CREATE TABLE p2 PARTITION OF t FOR VALUES FROM (301) TO (1000)")
    fill(session, 300 + rows_of_second, create="")


# Progress


def test_the_numbers_of_a_running_rotation_make_sense(session: Session) -> None:
    fill(session, 3000)
    job = fetch(session, BACKGROUND.replace(")", ", 100, pause => '20 ms')"))
    rows: list[dict[str, Any]] = []

    def is_done() -> bool:
        rows.append(progress(session, job))
        return rows[-1]["state"] == "done"

    wait_until(is_done, "the end")
    assert {row["state"] for row in rows} <= {"running", "done"}
    assert len({row["rows_rotated"] for row in rows}) > 3
    for row in rows:
        assert row["relation"] == "t" and row["column_name"] == "secret"
        begun = row["phase"] != "starting"
        assert not begun or 0 <= row["blocks_done"] <= row["blocks_total"]
        assert 0 <= row["rows_rotated"] <= 3000 and row["rows_skipped"] == 0
        assert row["started_at"] <= row["updated_at"] and row["last_error"] is None
    rotated = [row["rows_rotated"] for row in rows]
    assert rotated == sorted(rotated) and rotated[-1] == 3000
    amid = [row for row in rows if row["state"] == "running" and row["rows_rotated"]]
    assert any(row["estimated_end"] is not None for row in amid)
    assert all(row["rows_per_second"] > 0 for row in amid if row["phase"] == "rotating")
    last = rows[-1]
    assert last["phase"] == "done" and last["estimated_end"] is None
    assert last["blocks_done"] == last["blocks_total"] > 0


def terminate(session: Session, _job: int) -> None:
    session.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE backend_type = 'colcrypt rotation' AND datname = current_database()"
    )


def pause(session: Session, job: int) -> None:
    assert fetch(session, PAUSE, job)


def cancel(session: Session, job: int) -> None:
    assert fetch(session, CANCEL, job)


ENDS = {"interrupted": terminate, "paused": pause, "cancelled": cancel}


@pytest.mark.parametrize("state", ENDS)
def test_a_rotation_that_does_not_run_has_no_estimated_end(
    session: Session, state: str
) -> None:
    fill(session, 2000)
    job = run_slow(session)
    assert progress(session, job)["estimated_end"] is not None
    ENDS[state](session, job)
    wait_for_rest(session)
    row = progress(session, job)
    assert row["state"] == state and 0 < row["rows_rotated"] < 2000
    assert row["estimated_end"] is None


def test_a_rotation_that_has_failed_has_no_estimated_end(session: Session) -> None:
    fill(session, 2000)
    insert_unreadable(session, 1500)
    job = fetch(session, BACKGROUND.replace(")", ", 1)"))
    row = wait_for(session, job, "failed")
    assert row["rows_rotated"] > 0 and row["estimated_end"] is None


def test_what_happened_to_the_worker_is_not_hidden(session: Session) -> None:
    """pg_cancel_backend() on the worker, between two batches."""
    fill(session, 2000)
    job = run_slow(session)
    session.execute(
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
        " WHERE backend_type = 'colcrypt rotation' AND datname = current_database()"
    )
    wait_for_rest(session)
    assert progress(session, job)["state"] in ("interrupted", "failed", "cancelled")
    session.execute(CALL)
    assert progress(session, job)["state"] == "done"


@pytest.mark.parametrize("state", ["interrupted", "paused", "failed"])
@pytest.mark.parametrize("how", ["resume", "background", "call"])
def test_what_did_not_end_is_taken_up_where_it_stopped(
    session: Session, state: str, how: str
) -> None:
    fill(session, 2000)
    if state == "failed":
        session.execute("UPDATE t SET secret = NULL WHERE id = 1500")
        insert_unreadable(session, 1500)
        job = fetch(session, BACKGROUND.replace(")", ", 1)"))
        row = wait_for(session, job, "failed")
        assert row["last_error"]
        session.execute("UPDATE t SET secret = 'value 1500' WHERE id = 1500")
    else:
        job = run_slow(session)
        ENDS[state](session, job)
    wait_for_rest(session)
    before = progress(session, job)
    assert before["state"] == state and before["rows_rotated"] > 0
    # Nobody looks again at what is done.
    session.execute("UPDATE t SET n = 1 WHERE ctid < '(1,0)'")
    if how == "resume":
        session.execute("UPDATE colcrypt.rotation SET pause = 0")
        assert fetch(session, RESUME, job) is True
    else:
        session.execute((BACKGROUND if how == "background" else CALL).encode())
    row = wait_for(session, job, "done")
    assert row["started_at"] == before["started_at"] and row["last_error"] is None
    assert suites(session) == {NEW: 2000} and wrong(session) == 0
    assert row["rows_rotated"] == 2000 - (state == "failed")
    assert fetch(session, JOBS) == 1


def insert_unreadable(session: Session, row: int) -> None:
    """A value whose key no one has any more."""
    with session.transaction():
        key = new_key()
        session.execute("SELECT set_config('colcrypt.key', %s, true)", [key])
        session.execute("UPDATE t SET secret = 'canary' || id WHERE id = %s", [row])


def test_a_call_that_fails_at_once_is_not_shown_as_running(session: Session) -> None:
    fill(session, 10)
    insert_unreadable(session, 1)
    with pytest.raises(ObjectNotInPrerequisiteState):
        session.execute(CALL)
    row = progress(session, only_job(session))
    assert row["state"] in ("failed", "interrupted") and row["rows_rotated"] == 0


def test_a_worker_that_never_came_to_work_is_not_shown_as_running(
    session: Session, shop: Database
) -> None:
    fill(session, 30)
    cluster = shop.cluster
    before = cluster.log().count("is not currently accepting connections")
    cluster.psql(f"ALTER DATABASE {shop.name} ALLOW_CONNECTIONS false")
    job = fetch(session, BACKGROUND)
    wait_until(
        lambda: cluster.log().count("is not currently accepting connections") > before,
        "the worker's end",
    )
    cluster.psql(f"ALTER DATABASE {shop.name} ALLOW_CONNECTIONS true")
    wait_until(
        lambda: progress(session, job)["state"] in ("interrupted", "failed", "done"),
        "the news of the worker's end",
    )


@pytest.mark.parametrize("verb", [PAUSE, CANCEL, RESUME])
@pytest.mark.parametrize("state", ["done", "cancelled"])
def test_what_has_ended_stays_ended(session: Session, verb: str, state: str) -> None:
    fill(session, 500)
    if state == "done":
        session.execute(CALL)
        job = only_job(session)
    else:
        job = run_slow(session)
        cancel(session, job)
        wait_for_rest(session)
    before = progress(session, job)
    assert fetch(session, verb, job) is False
    assert progress(session, job) == before and before["state"] == state


def test_what_has_ended_is_replaced_by_a_new_one(session: Session) -> None:
    fill(session, 500)
    first = run_slow(session)
    cancel(session, first)
    session.execute(CALL)
    second = only_job(session)
    assert second != first
    session.execute(CALL)
    assert only_job(session) not in (first, second)
    assert progress(session, only_job(session))["rows_rotated"] == 0


def test_pausing_twice_and_pausing_what_failed_is_false(session: Session) -> None:
    fill(session, 500)
    job = run_slow(session)
    assert fetch(session, PAUSE, job) is True
    assert fetch(session, PAUSE, job) is False
    assert fetch(session, CANCEL, job) is True
    assert fetch(session, CANCEL, job) is False


def test_a_pause_that_is_rolled_back_is_none(session: Session) -> None:
    fill(session, 500)
    job = run_slow(session)
    with session.transaction(force_rollback=True):
        assert fetch(session, PAUSE, job) is True
    assert progress(session, job)["state"] == "running"
    assert fetch(session, WORKERS) == 1


def test_call_tells_of_a_pause_and_goes_on_in_the_background(
    session: Session, other: Session, threads: ThreadPoolExecutor
) -> None:
    fill(session, 1000)
    called = call(threads, other, CALL.replace(")", ", 1, pause => '100 ms')"))
    wait_until(lambda: fetch(session, JOBS) == 1, "the rotation")
    job = only_job(session)
    wait_until(lambda: progress(session, job)["rows_rotated"] > 0, "a batch")
    pause(session, job)
    with pytest.raises(QueryCanceled):
        called.result(30)
    assert fetch(session, RESUME, job) is True
    wait_for(session, job, "done")
    assert suites(session) == {NEW: 1000} and wrong(session) == 0


def test_a_job_under_way_is_not_taken_up_by_others(
    session: Session, other: Session
) -> None:
    fill(session, 500)
    job = run_slow(session)
    for statement in (CALL, BACKGROUND, RESUME.replace("%s", str(job)), BEGIN):
        with pytest.raises(ObjectInUse):
            other.execute(statement.encode())
    assert progress(session, job)["state"] == "running"
    assert fetch(session, JOBS) == 1 and fetch(session, WORKERS) == 1


def test_a_cancelled_call_is_interrupted_and_free_for_others(
    session: Session, other: Session, threads: ThreadPoolExecutor
) -> None:
    fill(session, 500)
    pid = fetch(other, "SELECT pg_backend_pid()")
    called = call(threads, other, CALL.replace(")", ", 1, pause => '1 hour')"))
    wait_until(lambda: fetch(session, JOBS) == 1, "the rotation")
    job = only_job(session)
    wait_until(lambda: progress(session, job)["rows_rotated"] > 0, "a batch")
    with pytest.raises(ObjectInUse):
        session.execute(CALL)
    session.execute("SELECT pg_cancel_backend(%s)", [pid])
    with pytest.raises(QueryCanceled):
        called.result(30)
    assert progress(session, job)["state"] == "interrupted"
    session.execute(CALL)
    row = progress(session, job)
    assert row["state"] == "done" and row["rows_rotated"] == 500


def test_of_two_calls_at_once_one_works_and_the_other_says_so(
    session: Session, other: Session, threads: ThreadPoolExecutor
) -> None:
    fill(session, 3000)
    calls = [call(threads, s, CALL.replace(")", ", 10)")) for s in (session, other)]
    errors = [called.exception(60) for called in calls]
    assert None in errors
    assert all(e is None or isinstance(e, ObjectInUse) for e in errors), errors
    assert suites(session) == {NEW: 3000} and wrong(session) == 0
    assert progress(session, only_job(session))["rows_rotated"] in (0, 3000)


@every_verb
def test_jobs_on_a_parent_and_on_its_child_do_not_disturb_each_other(
    session: Session, other: Session, threads: ThreadPoolExecutor, verb: str
) -> None:
    make_parts(session)
    child = call(threads, other, verb.format("'p2', 'secret', 1"))
    session.execute(verb.format("'t', 'secret', 1").encode())
    assert child.exception(60) is None
    jobs = session.execute("SELECT job FROM colcrypt.rotation_progress").fetchall()
    rows = [wait_for(session, job, "done") for (job,) in jobs]
    assert {row["relation"] for row in rows} == {"t", "p2"}
    assert sum(row["rows_rotated"] for row in rows) == 600
    assert suites(session) == {NEW: 600} and wrong(session) == 0


def test_who_is_at_work_on_a_rotation_keeps_it_when_a_trigger_catches_an_error(
    session: Session, other: Session
) -> None:
    """The end of a subtransaction must not let go of the rotation."""
    fill(session, 500)
    session.execute(
        "CREATE FUNCTION catch() RETURNS trigger LANGUAGE plpgsql AS $$"
        " BEGIN PERFORM 1 / 0; RETURN NEW;"
        " EXCEPTION WHEN division_by_zero THEN RETURN NEW; END $$;"
        "CREATE TRIGGER b BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION catch()"
    )
    job = fetch(session, SLOW.replace("'1 hour'", "'1 hour', fire_triggers => true"))
    wait_until(lambda: progress(session, job)["rows_rotated"] > 0, "the first batch")
    assert fetch(session, WORKERS) == 1
    assert progress(session, job)["state"] == "running"
    with pytest.raises(ObjectInUse):
        other.execute(CALL)


def test_who_waits_for_locked_rows_is_at_work(session: Session, other: Session) -> None:
    fill(session, 500)
    other.execute("BEGIN; SELECT * FROM t WHERE id = 250 FOR UPDATE")
    job = fetch(session, BACKGROUND.replace(")", ", lock_timeout => '10 ms')"))
    wait_until(
        lambda: is_waiting(session, job, "waiting for locked rows"), "the locked row"
    )
    changes, states = set(), set()

    def looked_on() -> bool:
        row = progress(session, job)
        changes.add(row["updated_at"])
        states.add(row["state"])
        return len(changes) >= 6

    wait_until(looked_on, "some passes")
    assert fetch(session, WORKERS) == 1
    other.execute("COMMIT")
    wait_for_rest(session)
    assert suites(session) == {NEW: 500} and states == {"running"}


def test_a_row_that_is_locked_holds_up_no_one_who_wants_to_stop_it(
    session: Session, other: Session
) -> None:
    fill(session, 500)
    other.execute("BEGIN; SELECT * FROM t WHERE id = 250 FOR UPDATE")
    job = fetch(session, BACKGROUND.replace(")", ", lock_timeout => '1 hour')"))
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND database IS NULL"
    wait_until(lambda: fetch(session, waiting) > 0, "the wait for the row")
    try:
        with session.transaction():
            session.execute("SET LOCAL statement_timeout = '5 s'")
            assert fetch(session, CANCEL, job) is True
    finally:
        other.execute("ROLLBACK")


def wait_for_a_row(session: Session, job: int, rows: int) -> None:
    """Until a rotation has so many rows done, and waits for one that is locked."""
    wait_until(lambda: progress(session, job)["rows_rotated"] == rows, "the free rows")
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND database IS NULL"
    wait_until(lambda: fetch(session, waiting) > 0, "the wait for the row")


def test_a_call_does_what_it_has_waited_for(
    shop: Database, session: Session, other: Session, threads: ThreadPoolExecutor
) -> None:
    fill(session, 500)
    told: list[str] = []
    # Not closed by a COMMIT, which the server may not survive.
    caller = connect(shop)
    caller.add_notice_handler(lambda notice: told.append(str(notice.message_primary)))
    try:
        other.execute("BEGIN; UPDATE t SET n = 7 WHERE id IN (250, 400)")
        long = CALL.replace(")", ", lock_timeout => '1 minute')")
        called = call(threads, caller, long)
        wait_until(lambda: fetch(session, JOBS) == 1, "the rotation")
        wait_for_a_row(session, only_job(session), 498)
        other.execute("COMMIT")
        error = called.exception(60)
    finally:
        caller.close()
    assert error is None, error
    row = progress(session, only_job(session))
    assert row["rows_rotated"] == 500 and row["rows_skipped"] == 0
    assert suites(session) == {NEW: 500} and wrong(session) == 0
    assert fetch(session, "SELECT count(*) FROM t WHERE n = 7") == 2
    assert "2 rows were locked by others, and are tried again" in told


def test_a_worker_does_what_it_has_waited_for(session: Session, other: Session) -> None:
    fill(session, 500)
    other.execute("BEGIN; UPDATE t SET n = 7 WHERE id = 250")
    job = fetch(session, BACKGROUND.replace(")", ", lock_timeout => '1 minute')"))
    wait_for_a_row(session, job, 499)
    other.execute("COMMIT")
    wait_for_rest(session)
    row = progress(session, job)
    assert row["state"] == "done" and row["rows_rotated"] == 500
    assert suites(session) == {NEW: 500} and wrong(session) == 0


def test_a_session_that_is_cancelled_while_it_waits_for_a_row_is_in_order(
    shop: Database, session: Session, other: Session, threads: ThreadPoolExecutor
) -> None:
    fill(session, 500)
    other.execute("BEGIN; SELECT * FROM t WHERE id = 250 FOR UPDATE")
    caller = connect(shop)
    try:
        long = CALL.replace(")", ", lock_timeout => '1 minute')")
        called = call(threads, caller, long)
        wait_until(lambda: fetch(session, JOBS) == 1, "the rotation")
        wait_for_a_row(session, only_job(session), 499)
        session.execute("SELECT pg_cancel_backend(%s)", [caller.info.backend_pid])
        with pytest.raises(QueryCanceled):
            called.result(30)
        other.execute("ROLLBACK")
        assert fetch(caller, "SELECT 1") == 1
        caller.execute(CALL)
    finally:
        caller.close()
    assert suites(session) == {NEW: 500} and wrong(session) == 0


# Nothing is missed


def test_a_row_that_moves_behind_the_rotation_is_not_missed(
    session: Session, other: Session
) -> None:
    """It is the only stale one, and goes to a partition that is through."""
    make_parts(session)
    session.execute("SELECT rotate_column('t', 'secret')")
    session.execute("DELETE FROM t WHERE id = 350")
    with session.transaction():
        session.execute(f"SET LOCAL colcrypt.algorithm = '{OLD}'")
        session.execute("INSERT INTO t VALUES (350, 0, 'value ' || 350)")
        session.execute("DELETE FROM p1 WHERE id = 100")
    job = start_at_locked_second(session, other)
    other.execute("UPDATE t SET id = 100 WHERE id = 350; COMMIT")
    wait_for(session, job, "done")
    assert suites(session) == {NEW: 599}


def start_at_locked_second(session: Session, other: Session) -> int:
    """A rotation that is through with p1 and waits for p2, which `other` has locked in
    a transaction. To begin a rotation locks all tables, so it begins with p1 alone."""
    session.execute("ALTER TABLE t DETACH PARTITION p2")
    job = fetch(session, BEGIN)
    session.execute("ALTER TABLE t ATTACH PARTITION p2 FOR VALUES FROM (301) TO (1000)")
    other.execute("BEGIN; LOCK TABLE p2 IN ACCESS EXCLUSIVE MODE")
    assert fetch(session, RESUME, job) is True
    row = wait_for(session, job, "running", "waiting for a lock")
    assert row["blocks_done"] > 0
    return job


def test_a_rotation_with_nothing_to_do_so_far_is_taken_up_for_another_algorithm(
    session: Session, other: Session
) -> None:
    make_parts(session, rows_of_second=0)
    session.execute("SELECT rotate_column('t', 'secret')")
    job = start_at_locked_second(session, other)
    pause(session, job)
    other.execute("COMMIT")
    wait_for_rest(session)
    session.execute("SET colcrypt.algorithm = 'fernet'")
    session.execute(CALL)
    assert suites(session) == {"fernet": 300}


# Triggers

COUNT = """
    CREATE TABLE seen (what text);
    CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO public.seen VALUES (TG_NAME); RETURN NEW; END $$;
    CREATE TRIGGER before_row BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION see();
    CREATE TRIGGER after_row AFTER UPDATE ON t FOR EACH ROW EXECUTE FUNCTION see();
    CREATE TRIGGER of_secret AFTER UPDATE OF secret ON t
        FOR EACH ROW EXECUTE FUNCTION see();
    CREATE TRIGGER of_n BEFORE UPDATE OF n ON t FOR EACH ROW EXECUTE FUNCTION see();
    CREATE TRIGGER distinct_before BEFORE UPDATE ON t FOR EACH ROW
        WHEN (OLD.secret IS DISTINCT FROM NEW.secret) EXECUTE FUNCTION see();
    CREATE TRIGGER distinct_row AFTER UPDATE ON t FOR EACH ROW
        WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION see();
    CREATE TRIGGER disabled AFTER UPDATE ON t FOR EACH ROW EXECUTE FUNCTION see();
    ALTER TABLE t DISABLE TRIGGER disabled;
    CREATE TRIGGER inserted AFTER INSERT OR DELETE ON t
        FOR EACH ROW EXECUTE FUNCTION see();
"""
FIRING = "'t', 'secret', fire_triggers => true"


@every_verb
@pytest.mark.parametrize("fires", ["true", "false"])
def test_triggers_fire_when_asked_to_as_for_an_update_of_the_column(
    session: Session, verb: str, fires: str
) -> None:
    fill(session, 300)
    session.execute(COUNT.encode())
    arguments = f"'t', 'secret', 10, fire_triggers => {fires}"
    session.execute(verb.format(arguments).encode())
    wait_for(session, only_job(session), "done")
    seen = "SELECT what, count(*) FROM seen GROUP BY what"
    once = {"before_row": 300, "after_row": 300, "of_secret": 300}
    assert dict(session.execute(seen).fetchall()) == (once if fires == "true" else {})
    assert suites(session) == {NEW: 300} and wrong(session) == 0


def set_trigger(session: Session, body: str, table: str = "t") -> None:
    session.execute(
        f"CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body};"
        f" RETURN NEW; END $$; CREATE TRIGGER change BEFORE UPDATE ON {table}"
        " FOR EACH ROW EXECUTE FUNCTION change()".encode()
    )


def test_a_trigger_that_lets_no_row_be_updated_is_told_of_and_loses_nothing(
    session: Session,
) -> None:
    fill(session, 300)
    set_trigger(session, "RETURN NULL")
    with pytest.raises(ObjectInUse, match="trigger"):
        session.execute(VERBS["online"].format(FIRING).encode())
    assert suites(session) == {OLD: 300} and wrong(session) == 0
    session.execute(CALL)
    assert suites(session) == {NEW: 300} and wrong(session) == 0


def test_a_trigger_that_raises_makes_a_worker_fail_with_its_message(
    session: Session,
) -> None:
    fill(session, 300)
    set_trigger(session, "RAISE EXCEPTION 'not today'")
    job = fetch(session, VERBS["background"].format(FIRING))
    assert wait_for(session, job, "failed")["last_error"] == "not today"
    assert suites(session) == {OLD: 300} and wrong(session) == 0


def test_what_a_trigger_changes_is_stored_and_indexed(session: Session) -> None:
    fill(session, 300)
    session.execute("CREATE INDEX ON t (n)")
    set_trigger(session, "NEW.n := NEW.id * 2; NEW.secret := 'new ' || NEW.id")
    session.execute(VERBS["online"].format(FIRING).encode())
    session.execute("SET enable_seqscan = off")
    assert fetch(session, "SELECT id FROM t WHERE n = 300") == 150
    assert fetch(session, "SELECT secret FROM t WHERE n = 300") == "new 150"
    assert suites(session) == {NEW: 300}


CONSTRAINED = """
    CREATE TABLE ref (id int PRIMARY KEY); INSERT INTO ref VALUES (0);
    CREATE TABLE t (id int, n int NOT NULL CHECK (n >= 0) REFERENCES ref,
                    secret encrypted_text)
        PARTITION BY LIST (id);
    CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1);
    CREATE TABLE t2 PARTITION OF t FOR VALUES IN (2);
"""


@pytest.mark.parametrize(
    "change", ["NEW.n := NULL", "NEW.n := -1", "NEW.n := 55", "NEW.id := 2"]
)
def test_what_a_trigger_changes_is_held_to_the_table_s_constraints(
    session: Session, change: str
) -> None:
    """NOT NULL, CHECK, FOREIGN KEY, and the bound of the partition."""
    session.execute(CONSTRAINED.encode())
    fill(session, 1, create="")
    set_trigger(session, change)
    with suppress(psycopg.errors.IntegrityError, FeatureNotSupported, ObjectInUse):
        session.execute(VERBS["online"].format(FIRING).encode())
    broken = """
        SELECT count(*) FROM t
        WHERE n IS NULL OR n <> 0 OR (tableoid = 't1'::regclass) <> (id = 1)"""
    assert fetch(session, broken) == 0


def test_a_trigger_that_changes_a_row_leaks_nothing(
    session: Session, host: Cluster
) -> None:
    fill(session, 30)
    set_trigger(session, "NEW.n := 1")
    before = len(host.log())
    session.execute(VERBS["online"].format(FIRING).encode())
    assert "leak" not in host.log()[before:]


@every_verb
@pytest.mark.parametrize("action", ["CASCADE", "SET NULL", "RESTRICT", "NO ACTION"])
@pytest.mark.parametrize("fires", ["true", "false"])
def test_a_foreign_key_notices_nothing(
    session: Session, verb: str, action: str, fires: str
) -> None:
    session.execute(
        "CREATE TABLE t (id int, n int, secret encrypted_text PRIMARY KEY);"
        "CREATE TABLE c (secret encrypted_text REFERENCES t"
        f" ON UPDATE {action})".encode()
    )
    fill(session, 100, create="")
    session.execute("INSERT INTO c SELECT secret::text FROM t")
    before = session.execute("SELECT ctid FROM c").fetchall()
    session.execute(verb.format(f"'t', 'secret', fire_triggers => {fires}").encode())
    wait_for(session, only_job(session), "done")
    assert session.execute("SELECT ctid FROM c").fetchall() == before
    assert fetch(session, "SELECT count(*) FROM c JOIN t USING (secret)") == 100


@every_verb
@pytest.mark.parametrize("fires", ["true", "false"])
def test_a_deferred_unique_constraint_is_no_obstacle(
    session: Session, verb: str, fires: str
) -> None:
    create = (
        "CREATE TABLE {} (id int, n int,"
        " secret encrypted_text UNIQUE DEFERRABLE INITIALLY DEFERRED)"
    )
    fill(session, 100, create=create)
    session.execute(verb.format(f"'t', 'secret', fire_triggers => {fires}").encode())
    wait_for(session, only_job(session), "done")
    assert suites(session) == {NEW: 100} and wrong(session) == 0


# The log


@every_verb
def test_the_audit_log_says_who_has_rotated(
    owner: Session, host: Cluster, verb: str
) -> None:
    fill(owner, 30)
    before = len(host.log())
    owner.execute(verb.format("'t', 'secret'").encode())
    wait_for(owner, only_job(owner), "done")
    wait_for_rest(owner)
    lines = [
        line
        for line in host.log()[before:].splitlines()
        if "audit: operation=rotate" in line
    ]
    assert lines and all('role="owner"' in line for line in lines), lines
