"""colcrypt.stat agrees with what was done, by whichever process, and whatever became of
the transaction; it is the whole server's if the library is preloaded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import decryptor
import psycopg
import pytest
from psycopg.errors import (
    DataCorrupted,
    DivisionByZero,
    InsufficientPrivilege,
    ObjectNotInPrerequisiteState,
    UniqueViolation,
)

from conftest import MakeCluster
from harness import Cluster, Database, fetch, new_key, wait_until
from test_index_key import SET_KEY, standby

__all__ = ["standby"]

SUITES = ("xaes-256-gcm", "aes-256-gcm", "fernet", "envelope")
OUTCOMES = ("ok", "wrong key", "damaged", "denied")
OPERATIONS = ("encrypt", "decrypt", "compare", "rotate")
PRELOAD = {"shared_preload_libraries": "colcrypt"}
RESET = "SELECT colcrypt.reset_stat()"
# Nine values of seven bytes.
TABLE = """
    CREATE TABLE plain AS SELECT i AS id, 'value ' || i AS v
        FROM generate_series(1, 9) i;
    CREATE TABLE t (id int, secret encrypted_text);
    INSERT INTO t TABLE plain;
    CREATE TABLE empty (secret encrypted_text, id int);"""
COUNTS = """
    SELECT concat_ws(' ', operation, suite, outcome), calls, bytes
    FROM colcrypt.stat WHERE calls > 0 OR bytes > 0"""
READ = "SELECT count(secret::text) FROM t"

Counts = dict[str, tuple[int, int]]

numbers = itertools.count(1)


def counts(session: psycopg.Connection) -> Counts:
    """Calls and bytes by operation, suite and outcome, where there are any."""
    rows = session.execute(COUNTS).fetchall()
    return {kind: (calls, size) for kind, calls, size in rows}


def xaes(**expected: tuple[int, int]) -> Counts:
    """What is expected of the default suite, all of it well."""
    return {f"{name} xaes-256-gcm ok": value for name, value in expected.items()}


@pytest.fixture(scope="module")
def host(base: Path, template: Path) -> Iterator[Cluster]:
    cluster = Cluster(base, template, ring=new_key())
    # Nobody else is to count anything.
    cluster.conf(PRELOAD | {"autovacuum": False, "wal_level": "logical"})
    cluster.conf(max_prepared_transactions=2)
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt; CREATE DATABASE with_colcrypt")
    cluster.psql("CREATE EXTENSION colcrypt", db="with_colcrypt")
    yield cluster
    cluster.destroy()


@pytest.fixture
def shop(host: Cluster) -> Iterator[Database]:
    """A database with the tables; nothing is counted yet."""
    name = f"shop_{next(numbers)}"
    host.psql(f"CREATE DATABASE {name} TEMPLATE with_colcrypt")
    database = Database(host, name)
    database.psql(TABLE)
    database.psql(RESET)
    yield database
    host.psql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def session(shop: Database) -> Iterator[psycopg.Connection]:
    with shop.connect(prepare_threshold=None) as session:
        yield session


@pytest.fixture
def monitor(host: Cluster) -> Iterator[psycopg.Connection]:
    """A session in another database, which does nothing but look."""
    with host.connect() as session:
        yield session


# What is counted

WORK: dict[str, tuple[str, Counts]] = {
    "literals": (
        "INSERT INTO empty VALUES ('x'), ('yz'), (NULL), ('')",
        xaes(encrypt=(3, 3)),
    ),
    "INSERT SELECT": (
        "INSERT INTO empty SELECT v FROM plain",
        xaes(encrypt=(9, 63)),
    ),
    "stored values": ("INSERT INTO empty SELECT secret FROM t", {}),
    "a literal for all rows": ("UPDATE t SET secret = 'x'", xaes(encrypt=(1, 1))),
    "UPDATE": ("UPDATE t SET secret = id::text", xaes(encrypt=(9, 9))),
    "DELETE": ("DELETE FROM t", {}),
    "encrypt()": (
        "SELECT colcrypt.inspect(encrypt(v)) FROM plain",
        xaes(encrypt=(9, 63)),
    ),
    "SELECT": ("SELECT * FROM t", xaes(decrypt=(9, 63))),
    "SELECT of some": ("SELECT secret FROM t LIMIT 2", xaes(decrypt=(2, 14))),
    "SELECT of a column twice": (
        "SELECT secret, secret FROM t",
        xaes(decrypt=(18, 126)),
    ),
    "SELECT of another column": ("SELECT id FROM t", {}),
    "ciphertext()": ("SELECT ciphertext(secret) FROM t", {}),
    "a cast": (READ, xaes(decrypt=(9, 63))),
    "LIKE": (
        "SELECT count(*) FROM t WHERE secret LIKE '%3'",
        xaes(decrypt=(9, 63)),
    ),
    "decrypt()": ("SELECT decrypt(secret) FROM t", xaes(decrypt=(9, 63))),
    "try_decrypt()": ("SELECT try_decrypt(secret) FROM t", xaes(decrypt=(9, 63))),
    "RETURNING": (
        "UPDATE t SET id = 0 WHERE id < 4 RETURNING secret",
        xaes(decrypt=(3, 21)),
    ),
    "COPY TO": ("COPY t TO '/dev/null'", xaes(decrypt=(9, 63))),
    "COPY of a query": (
        "COPY (SELECT secret FROM t) TO '/dev/null'",
        xaes(decrypt=(9, 63)),
    ),
    "a cursor": (
        "BEGIN; DECLARE c CURSOR FOR SELECT secret FROM t; FETCH 3 FROM c;"
        " FETCH 2 FROM c; COMMIT",
        xaes(decrypt=(5, 35)),
    ),
    "a cursor that outlives its transaction": (
        "DECLARE c CURSOR WITH HOLD FOR SELECT secret FROM t; FETCH 4 FROM c",
        xaes(decrypt=(4, 28)),
    ),
    "a loop": (
        "DO $$ DECLARE r record; s text; BEGIN"
        " FOR r IN SELECT secret FROM t LOOP s := r.secret; END LOOP; END $$",
        xaes(decrypt=(9, 63)),
    ),
    "CREATE TABLE AS": (
        "CREATE TABLE u AS SELECT secret::text FROM t",
        xaes(decrypt=(9, 63)),
    ),
    "ALTER TABLE": (
        "ALTER TABLE plain ALTER v TYPE encrypted_text",
        xaes(encrypt=(9, 63)),
    ),
    "EXPLAIN": (f"EXPLAIN {READ}", {}),
    "EXPLAIN ANALYZE": (f"EXPLAIN ANALYZE {READ}", xaes(decrypt=(9, 63))),
    "an index build": ("CREATE INDEX ON t (secret)", xaes(compare=(9, 63))),
    "GROUP BY": (
        "SELECT count(*) FROM t GROUP BY secret",
        xaes(compare=(9, 63)),
    ),
    "VACUUM": ("VACUUM FULL t", {}),
    "rotation of fresh values": ("SELECT rotate_column('t', 'secret')", {}),
    "dropping": ("DROP TABLE t", {}),
}

@pytest.mark.parametrize("work", WORK)
def test_the_counts_agree_with_what_was_done(
    session: psycopg.Connection, monitor: psycopg.Connection, work: str
) -> None:
    sql, expected = WORK[work]
    session.execute(sql)
    assert counts(monitor) == expected
    # Reading them counts nothing.
    assert counts(session) == expected


def test_bound_parameters_are_counted(
    session: psycopg.Connection, monitor: psycopg.Connection
) -> None:
    for prepare in (False, True):
        for value in ("x", "Füße", None, "y" * 10_000):
            insert = "INSERT INTO empty VALUES (%s)"
            session.execute(insert, [value], prepare=prepare)
    # In UTF-8.
    assert counts(monitor) == xaes(encrypt=(6, 2 * 10_007))


def test_copied_rows_are_counted(
    session: psycopg.Connection, monitor: psycopg.Connection
) -> None:
    with session.cursor() as cursor, cursor.copy("COPY empty FROM STDIN") as copy:
        for value in ("x", "\\N", "yz"):
            copy.write(f"{value}\t1\n")
    assert counts(monitor) == xaes(encrypt=(2, 3))
    with session.cursor() as cursor, cursor.copy("COPY t TO STDOUT") as copy:
        assert len(list(copy)) == 9
    assert counts(monitor) == xaes(encrypt=(2, 3), decrypt=(9, 63))


def test_each_value_that_a_comparison_opens_is_counted(
    session: psycopg.Connection, monitor: psycopg.Connection
) -> None:
    # A literal is opened with each row.
    session.execute("SELECT count(*) FROM t WHERE secret = 'value 3'")
    assert counts(monitor) == xaes(encrypt=(1, 7), compare=(18, 126))
    monitor.execute(RESET)
    # Text needs no opening.
    session.execute("SELECT count(*) FROM t WHERE secret = 'value 3'::text")
    assert counts(monitor) == xaes(compare=(9, 63))


def test_a_remembered_tag_is_not_counted_again(
    session: psycopg.Connection, monitor: psycopg.Connection
) -> None:
    session.execute("CREATE INDEX ON t (secret); SET enable_seqscan = off")
    look_up = "SELECT count(*) FROM t WHERE secret = 'value 3'::text"
    for _ in range(20):
        assert fetch(session, look_up) == 1
    monitor.execute(RESET)
    for _ in range(20):
        assert fetch(session, look_up) == 1
    # What is found, to see that it is equal; not what is passed on the way.
    assert counts(monitor)["compare xaes-256-gcm ok"][0] <= 2 * 20


def test_a_unique_column_counts_comparisons(
    session: psycopg.Connection, monitor: psycopg.Connection
) -> None:
    session.execute("CREATE UNIQUE INDEX ON t (secret)")
    monitor.execute(RESET)
    session.execute("INSERT INTO t VALUES (10, 'new')")
    found = counts(monitor)
    assert found["encrypt xaes-256-gcm ok"] == (1, 3)
    assert found["compare xaes-256-gcm ok"][0] >= 1
    with pytest.raises(UniqueViolation):
        session.execute("INSERT INTO t VALUES (11, 'value 1')")
    assert counts(monitor)["encrypt xaes-256-gcm ok"] == (2, 10)


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("managed", [False, True], ids=["ring", "managed"])
def test_each_suite_is_counted_by_its_own(
    session: psycopg.Connection,
    monitor: psycopg.Connection,
    suite: str,
    managed: bool,
) -> None:
    if managed:
        session.execute("SELECT colcrypt.create_key('pii', %s)", [suite])
        session.execute("SET colcrypt.write_key = 'pii'")
    else:
        session.execute(f"SET colcrypt.algorithm = '{suite}'")
    session.execute("INSERT INTO empty SELECT v FROM plain")
    session.execute("SELECT secret FROM empty")
    session.execute("SELECT count(*) FROM empty WHERE secret = 'value 3'::text")
    session.execute("TRUNCATE t")
    kinds = ("encrypt", "decrypt", "compare")
    expected = {f"{kind} {suite} ok": (9, 63) for kind in kinds}
    assert counts(monitor) == expected
    # A rotation is counted by what the value is under then.
    session.execute("RESET colcrypt.write_key")
    other = "envelope" if suite != "envelope" else "fernet"
    if managed:
        session.execute("SELECT colcrypt.rotate_key('pii')")
        other = suite
    session.execute(f"SET colcrypt.algorithm = '{other}'")
    assert fetch(session, "SELECT rotate_column('empty', 'secret')") == 9
    assert counts(monitor) == expected | {f"rotate {other} ok": (9, 63)}


def test_moving_to_a_column_under_a_key_is_a_rotation(
    session: psycopg.Connection, monitor: psycopg.Connection
) -> None:
    session.execute("SELECT colcrypt.create_key('pii')")
    session.execute("CREATE TABLE u (secret encrypted_text(pii))")
    session.execute("INSERT INTO u SELECT secret FROM t")
    assert counts(monitor) == xaes(rotate=(9, 63))


def test_a_damaged_or_unknown_value_fails_to_rotate(
    session: psycopg.Connection, monitor: psycopg.Connection
) -> None:
    insert_foreign(session, new_key())
    monitor.execute(RESET)
    with pytest.raises(ObjectNotInPrerequisiteState):
        session.execute("SELECT rotate_column('empty', 'secret')")
    assert counts(monitor) == {"rotate xaes-256-gcm wrong key": (1, 0)}


def test_many_keys_in_one_statement_are_counted(
    session: psycopg.Connection, monitor: psycopg.Connection
) -> None:
    session.execute(
        "DO $$ BEGIN FOR i IN 1..1100 LOOP"
        " PERFORM colcrypt.create_key('k' || i); END LOOP; END $$"
    )
    # In this order each is met again after all others.
    session.execute(
        "INSERT INTO empty SELECT encrypt('x', 'k' || i)"
        " FROM generate_series(1, 2) n, generate_series(1, 1100) i ORDER BY n, i"
    )
    assert counts(monitor) == xaes(encrypt=(2200, 2200))
    session.execute("SELECT secret FROM empty")
    assert counts(monitor) == xaes(encrypt=(2200, 2200), decrypt=(2200, 2200))


# Outcomes


def insert_foreign(session: psycopg.Connection, key: str, damage: bool = False) -> None:
    """Puts a value under the key, which is not in the ring then, into `empty`."""
    session.execute(SET_KEY, [key])
    text = fetch(session, "SELECT ciphertext(encrypt('foreign'))")
    session.execute("RESET colcrypt.key")
    if damage:
        text = text[:-8] + "AAAAAAAA"
    session.execute("SET colcrypt.input = 'ciphertext'")
    session.execute("INSERT INTO empty VALUES (%s, 1)", [text])
    session.execute("RESET colcrypt.input")


READS = {
    "output": "SELECT secret FROM empty",
    "cast": "SELECT count(secret::text) FROM empty",
    "decrypt()": "SELECT decrypt(secret) FROM empty",
    "COPY": "COPY empty TO '/dev/null'",
}


@pytest.mark.parametrize("sql", READS.values(), ids=READS)
def test_a_value_whose_key_is_not_there_counts_as_of_a_wrong_key(
    session: psycopg.Connection, monitor: psycopg.Connection, sql: str
) -> None:
    insert_foreign(session, new_key())
    monitor.execute(RESET)
    for times in (1, 2):
        with pytest.raises(ObjectNotInPrerequisiteState):
            session.execute(sql)
        assert counts(monitor) == {"decrypt xaes-256-gcm wrong key": (times, 0)}


@pytest.mark.parametrize("sql", READS.values(), ids=READS)
def test_a_changed_value_counts_as_damaged(
    session: psycopg.Connection, monitor: psycopg.Connection, sql: str
) -> None:
    key = new_key()
    insert_foreign(session, key, damage=True)
    session.execute(SET_KEY, [key])
    monitor.execute(RESET)
    with pytest.raises(DataCorrupted):
        session.execute(sql)
    assert counts(monitor) == {"decrypt xaes-256-gcm damaged": (1, 0)}


def test_a_failed_comparison_counts_as_that(
    session: psycopg.Connection, monitor: psycopg.Connection
) -> None:
    key = new_key()
    insert_foreign(session, key, damage=True)
    for sql in (
        "SELECT count(*) FROM empty WHERE secret = 'x'::text",
        "SELECT count(*) FROM empty GROUP BY secret",
        "CREATE INDEX ON empty (secret, id)",
    ):
        if "INDEX" in sql:
            # One value alone is compared with nothing.
            insert_foreign(session, key, damage=True)
        for setting, outcome, error in (
            ("RESET colcrypt.key", "wrong key", ObjectNotInPrerequisiteState),
            (f"SET colcrypt.key = '{key}'", "damaged", DataCorrupted),
        ):
            session.execute(setting)
            monitor.execute(RESET)
            with pytest.raises(error):
                session.execute(sql)
            found = counts(monitor)
            assert found == {f"compare xaes-256-gcm {outcome}": (1, 0)}
        session.execute("RESET colcrypt.key")


def test_a_bit_that_flips_on_disk_counts_as_damage(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(ring=new_key(), conf=PRELOAD | {"autovacuum": False})
    cluster.psql("CREATE TABLE t (secret encrypted_text); INSERT INTO t VALUES ('x')")
    text = cluster.psql("SELECT ciphertext(secret) FROM t")
    heap = cluster.relation_path("t")
    cluster.stop()
    stored, pages = decryptor.stored_bytes(text), heap.read_bytes()
    assert pages.count(stored) == 1
    heap.write_bytes(pages.replace(stored, stored[:-1] + bytes([stored[-1] ^ 1])))
    cluster.start()
    with cluster.connect() as session:
        with pytest.raises(DataCorrupted):
            session.execute("SELECT * FROM t")
        assert counts(session) == {"decrypt xaes-256-gcm damaged": (1, 0)}
        session.execute("SET colcrypt.undecryptable = 'placeholder'")
        session.execute("SELECT * FROM t")
        assert counts(session) == {"decrypt xaes-256-gcm damaged": (2, 0)}


def test_placeholders_and_nulls_in_place_of_values_count_each(
    session: psycopg.Connection, monitor: psycopg.Connection
) -> None:
    for _ in range(3):
        insert_foreign(session, new_key())
    session.execute("INSERT INTO empty VALUES ('read')")
    session.execute("SET colcrypt.undecryptable = 'placeholder'")
    for sql in (
        "SELECT secret FROM empty",
        "SELECT secret::text FROM empty",
        "SELECT try_decrypt(secret) FROM empty",
    ):
        monitor.execute(RESET)
        assert len(session.execute(sql).fetchall()) == 4
        assert counts(monitor) == {
            "decrypt xaes-256-gcm ok": (1, 4),
            "decrypt xaes-256-gcm wrong key": (3, 0),
        }


def test_without_any_key_encrypting_counts_as_of_a_wrong_key(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(conf=PRELOAD)
    with cluster.connect() as session:
        for sql in ("SELECT encrypt('x')", "SELECT 'x'::encrypted_text"):
            session.execute(RESET)
            with pytest.raises(ObjectNotInPrerequisiteState):
                session.execute(sql)
            assert counts(session) == {"encrypt xaes-256-gcm wrong key": (1, 0)}


def test_a_destroyed_key_counts_as_a_wrong_one(
    session: psycopg.Connection, monitor: psycopg.Connection
) -> None:
    session.execute("SELECT colcrypt.create_key('pii', 'envelope')")
    session.execute("INSERT INTO empty SELECT encrypt(v, 'pii') FROM plain")
    session.execute("SELECT colcrypt.shred_key('pii')")
    monitor.execute(RESET)
    with pytest.raises(ObjectNotInPrerequisiteState):
        session.execute("SELECT secret FROM empty")
    assert counts(monitor) == {"decrypt envelope wrong key": (1, 0)}


@pytest.fixture
def app(shop: Database) -> Iterator[psycopg.Connection]:
    """A session of a role that may read the tables, but not use the key `pii`."""
    role = f"app_{shop.name}"
    shop.psql(
        f"CREATE ROLE {role} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role};"
        "SELECT colcrypt.create_key('pii');"
        "SELECT colcrypt.grant_key('pii', 'postgres');"
        "INSERT INTO empty SELECT encrypt(v, 'pii') FROM plain;"
        "SELECT colcrypt.reset_stat()"
    )
    with shop.connect(user=role) as session:
        yield session
    shop.psql(f"DROP OWNED BY {role}; DROP ROLE {role}")


DENIED = {
    "decrypt()": ("SELECT decrypt(secret) FROM empty", "decrypt xaes-256-gcm denied"),
    "ciphertext()": (
        "SELECT ciphertext(secret) FROM empty",
        "decrypt xaes-256-gcm denied",
    ),
    "comparison": (
        "SELECT count(*) FROM empty WHERE secret = 'x'::text",
        "compare xaes-256-gcm denied",
    ),
    "GROUP BY": (
        "SELECT count(*) FROM empty GROUP BY secret",
        "compare xaes-256-gcm denied",
    ),
}


@pytest.mark.parametrize("sql, kind", DENIED.values(), ids=DENIED)
def test_who_may_not_use_the_key_is_counted_as_denied(
    app: psycopg.Connection, monitor: psycopg.Connection, sql: str, kind: str
) -> None:
    with pytest.raises(InsufficientPrivilege):
        app.execute(sql)
    assert counts(monitor) == {kind: (1, 0)}


def test_values_that_are_masked_for_want_of_a_grant_count_as_denied(
    app: psycopg.Connection, monitor: psycopg.Connection
) -> None:
    assert set(app.execute("SELECT secret FROM empty").fetchall()) == {("********",)}
    assert counts(monitor) == {"decrypt xaes-256-gcm denied": (9, 0)}


@pytest.mark.parametrize(
    "sql, operation",
    [
        ("SET colcrypt.write_key = 'pii'; SELECT encrypt('x')", "encrypt"),
        ("SELECT encrypt('x', 'pii')", "encrypt"),
        (
            "CREATE TEMP TABLE u (secret encrypted_text(other));"
            "INSERT INTO u SELECT secret FROM empty",
            "rotate",
        ),
    ],
    ids=["write_key", "encrypt()", "another column"],
)
def test_a_key_that_is_named_without_a_right_counts_as_denied(
    shop: Database,
    app: psycopg.Connection,
    monitor: psycopg.Connection,
    sql: str,
    operation: str,
) -> None:
    shop.psql("SELECT colcrypt.create_key('other')")
    with pytest.raises(InsufficientPrivilege):
        app.execute(sql)
    assert counts(monitor) == {f"{operation} xaes-256-gcm denied": (1, 0)}


MASKED_REFUSALS = {
    "decrypt()": ("SELECT decrypt(secret) FROM t", "decrypt"),
    "ciphertext()": ("SELECT ciphertext(secret) FROM t", "decrypt"),
    "comparison": ("SELECT count(*) FROM t WHERE secret = 'x'::text", "compare"),
    "GROUP BY": ("SELECT count(*) FROM t GROUP BY secret", "compare"),
    "ORDER BY": ("SELECT id FROM t ORDER BY secret", "compare"),
}


@pytest.mark.parametrize(
    "sql, operation", MASKED_REFUSALS.values(), ids=MASKED_REFUSALS
)
def test_what_the_access_mode_refuses_is_counted_as_denied(
    session: psycopg.Connection,
    monitor: psycopg.Connection,
    sql: str,
    operation: str,
) -> None:
    session.execute("SET colcrypt.access = 'masked'")
    session.execute("SELECT secret FROM t")
    # A mask is no use of a key.
    assert counts(monitor) == {}
    with pytest.raises(InsufficientPrivilege):
        session.execute(sql)
    found = counts(monitor)
    assert {kind.split()[0] for kind in found} == {operation}
    assert [kind.split()[-1] for kind in found] == ["denied"]
    assert list(found.values()) == [(1, 0)]


# Transactions


def test_what_is_rolled_back_was_done_all_the_same(
    session: psycopg.Connection, monitor: psycopg.Connection
) -> None:
    with session.transaction(force_rollback=True):
        session.execute("INSERT INTO empty SELECT v FROM plain")
    assert counts(monitor) == xaes(encrypt=(9, 63))
    with pytest.raises(DivisionByZero):
        session.execute(f"{READ} WHERE 1 / (id - 9) < 1 AND secret::text <> ''")
    found = counts(monitor)["decrypt xaes-256-gcm ok"]
    assert found[0] > 0


def test_savepoints_make_no_difference(
    session: psycopg.Connection, monitor: psycopg.Connection
) -> None:
    with session.transaction():
        with session.transaction(force_rollback=True):
            session.execute(READ)
        with pytest.raises(DivisionByZero), session.transaction():
            session.execute("SELECT count(secret::text), 1 / count(*) - 1 FROM empty")
        with session.transaction():
            session.execute(READ)
    assert counts(monitor) == xaes(decrypt=(18, 126))


def test_an_exception_block_makes_no_difference(
    session: psycopg.Connection, monitor: psycopg.Connection
) -> None:
    session.execute(
        "DO $$ BEGIN FOR i IN 1..5 LOOP BEGIN"
        " PERFORM secret::text, 1 / (id - 9) FROM t;"
        " EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$"
    )
    assert counts(monitor) == xaes(decrypt=(45, 315))


@pytest.mark.parametrize(
    "failure",
    [
        "SAVEPOINT s; SELECT 1 / 0 FROM t; ROLLBACK TO s",
        "DO $$ BEGIN PERFORM 1 / (id - 1) FROM t;"
        " EXCEPTION WHEN division_by_zero THEN NULL; END $$",
    ],
    ids=["savepoint", "exception block"],
)
def test_after_a_caught_error_statements_count_when_they_end(
    session: psycopg.Connection, monitor: psycopg.Connection, failure: str
) -> None:
    with session.transaction():
        for sql in failure.split("; ") if "SAVEPOINT" in failure else [failure]:
            try:
                session.execute(sql.replace("1 / 0", "1 / (id - 1)"))
            except DivisionByZero:
                pass
        session.execute(READ)
        assert counts(monitor) == xaes(decrypt=(9, 63))


def test_a_statement_counts_when_it_ends_and_not_before(
    session: psycopg.Connection, monitor: psycopg.Connection, shop: Database
) -> None:
    waiting = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    )
    with (
        shop.connect() as other,
        ThreadPoolExecutor(1) as pool,
        session.transaction(),
    ):
        other.execute("SELECT pg_advisory_lock(7)")
        running = pool.submit(
            session.execute,
            f"WITH m AS MATERIALIZED ({READ})"
            " SELECT pg_advisory_xact_lock(7) FROM m WHERE count = 9",
        )
        wait_until(lambda: fetch(other, waiting) == 1, "the lock")
        assert counts(monitor) == {}
        other.execute("SELECT pg_advisory_unlock(7)")
        running.result()
        # In a transaction that is still open.
        assert counts(monitor) == xaes(decrypt=(9, 63))
    assert counts(monitor) == xaes(decrypt=(9, 63))


def test_a_prepared_transaction_has_counted(
    session: psycopg.Connection, monitor: psycopg.Connection
) -> None:
    session.execute("BEGIN; INSERT INTO empty VALUES ('x'); PREPARE TRANSACTION 'p'")
    assert counts(monitor) == xaes(encrypt=(1, 1))
    session.execute("ROLLBACK PREPARED 'p'")
    assert counts(monitor) == xaes(encrypt=(1, 1))


@pytest.mark.parametrize("end", ["close", "terminate", "cancel"])
def test_a_statement_that_is_cut_off_counts(
    session: psycopg.Connection, monitor: psycopg.Connection, shop: Database, end: str
) -> None:
    with shop.connect(application_name="cut off") as victim:
        victim.execute("BEGIN; DECLARE c CURSOR FOR SELECT secret FROM t")
        victim.execute("FETCH ALL FROM c")
        if end == "close":
            victim.close()
        elif end == "terminate":
            with pytest.raises(psycopg.OperationalError):
                victim.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        else:
            with pytest.raises(psycopg.errors.QueryCanceled):
                victim.execute("SET statement_timeout = 50; SELECT pg_sleep(60)")
        gone = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name = 'cut off'"
        )
        if end != "cancel":
            wait_until(lambda: fetch(monitor, gone) == 0, "the end of the session")
        assert counts(monitor) == xaes(decrypt=(9, 63))


# Processes

PARALLEL = {
    "min_parallel_table_scan_size": 0,
    "parallel_setup_cost": 0,
    "parallel_tuple_cost": 0,
    "parallel_leader_participation": "off",
    "max_parallel_workers_per_gather": 2,
    "max_parallel_maintenance_workers": 2,
    "maintenance_work_mem": "128MB",
}
BIG = "INSERT INTO t SELECT 7, 'value 7' FROM generate_series(1, 1991)"


def make_parallel(session: psycopg.Connection) -> None:
    for name, value in PARALLEL.items():
        session.execute(f"SET {name} = '{value}'")
    session.execute("ALTER TABLE t SET (parallel_workers = 2)")


def plan(session: psycopg.Connection, sql: str) -> str:
    lines = session.execute("EXPLAIN (ANALYZE, COSTS OFF) " + sql).fetchall()
    return "\n".join(line for (line,) in lines)


def test_parallel_workers_count(
    session: psycopg.Connection, monitor: psycopg.Connection
) -> None:
    session.execute(BIG)
    make_parallel(session)
    monitor.execute(RESET)
    assert "Workers Launched: 2" in plan(session, READ)
    assert counts(monitor) == xaes(decrypt=(2000, 14_000))
    same = "SELECT count(*) FROM t WHERE secret = 'value 7'::text"
    monitor.execute(RESET)
    assert "Workers Launched: 2" in plan(session, same)
    assert counts(monitor) == xaes(compare=(2000, 14_000))
    # Also of a transaction that is rolled back.
    monitor.execute(RESET)
    with session.transaction(force_rollback=True):
        session.execute(READ)
    assert counts(monitor) == xaes(decrypt=(2000, 14_000))


def test_parallel_workers_that_fail_count(
    session: psycopg.Connection, monitor: psycopg.Connection
) -> None:
    session.execute(BIG)
    make_parallel(session)
    session.execute(SET_KEY, [new_key()])
    session.execute("INSERT INTO t VALUES (10, 'x')")
    session.execute("RESET colcrypt.key")
    session.execute("SET colcrypt.undecryptable = 'placeholder'")
    monitor.execute(RESET)
    assert "Workers Launched: 2" in plan(session, READ)
    assert counts(monitor) == {
        "decrypt xaes-256-gcm ok": (2000, 14_000),
        "decrypt xaes-256-gcm wrong key": (1, 0),
    }
    session.execute("RESET colcrypt.undecryptable")
    monitor.execute(RESET)
    with pytest.raises(ObjectNotInPrerequisiteState):
        session.execute(READ)
    assert counts(monitor)["decrypt xaes-256-gcm wrong key"] == (1, 0)


def test_a_parallel_index_build_counts_in_all_its_processes(
    session: psycopg.Connection, monitor: psycopg.Connection
) -> None:
    session.execute(BIG)
    make_parallel(session)
    monitor.execute(RESET)
    session.execute("CREATE INDEX ON t (secret)")
    calls, size = counts(monitor)["compare xaes-256-gcm ok"]
    assert calls >= 2000 and size == 7 * calls


def test_sessions_at_once_add_up(shop: Database, monitor: psycopg.Connection) -> None:
    def work(number: int) -> None:
        with shop.connect() as session:
            for _ in range(50):
                session.execute("INSERT INTO empty VALUES (%s)", [str(number)])
            for _ in range(20):
                session.execute(READ)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert counts(monitor) == xaes(encrypt=(200, 200), decrypt=(720, 5040))


def test_autovacuum_neither_fails_nor_logs(
    session: psycopg.Connection, host: Cluster, monitor: psycopg.Connection
) -> None:
    key = new_key()
    insert_foreign(session, key)
    insert_foreign(session, key, damage=True)
    session.execute("INSERT INTO empty SELECT v FROM plain")
    session.execute("ALTER TABLE empty SET (autovacuum_analyze_threshold = 1)")
    monitor.execute(RESET)
    start = len(host.log())
    host.conf(autovacuum=True, autovacuum_naptime="1s")
    host.reload()
    analyzed = (
        "SELECT autoanalyze_count > 0 FROM pg_stat_user_tables WHERE relname = 'empty'"
    )
    wait_until(lambda: fetch(session, analyzed), "autovacuum")
    host.conf(autovacuum=False)
    host.reload()
    # What is not compared, is not counted as a failure.
    found = counts(monitor)
    assert set(found) == {"compare xaes-256-gcm ok"}
    assert found["compare xaes-256-gcm ok"][0] >= 9
    assert "colcrypt: failed" not in host.log()[start:]


SLOT = "SELECT pg_create_logical_replication_slot('slot', 'test_decoding')"
CHANGES = "SELECT data FROM pg_logical_slot_peek_changes('slot', NULL, NULL)"


def test_logical_decoding_counts_what_it_decrypts(
    session: psycopg.Connection, monitor: psycopg.Connection, shop: Database
) -> None:
    fetch(session, SLOT)
    session.execute("INSERT INTO empty SELECT v FROM plain")
    monitor.execute(RESET)
    assert "colcrypt:v1:" in str(session.execute(CHANGES).fetchall())
    assert counts(monitor) == {}
    session.execute("SET colcrypt.dump_plaintext = on")
    assert "value 3" in str(session.execute(CHANGES).fetchall())
    assert counts(monitor) == xaes(decrypt=(9, 63))
    # In a walsender, too.
    end = fetch(session, "SELECT pg_current_wal_lsn()")
    receive = ("--slot=slot", "--start", "--no-loop", f"--endpos={end}", "--file=-")
    env = {"PGOPTIONS": "-c colcrypt.dump_plaintext=on"}
    program = ("pg_recvlogical", f"--dbname={shop.name}", *receive)
    received = shop.cluster.run(*program, env=env)
    assert "value 3" in received
    fetch(session, "SELECT pg_drop_replication_slot('slot')::text")
    assert counts(monitor) == xaes(decrypt=(18, 126))


def test_an_apply_worker_counts(
    session: psycopg.Connection, shop: Database, monitor: psycopg.Connection
) -> None:
    # From one database to another one of the same server.
    host = shop.cluster
    fetch(session, SLOT.replace("test_decoding", "pgoutput"))
    session.execute("CREATE PUBLICATION p FOR TABLE empty")
    address = " ".join(f"{k}={v}" for k, v in host.address().items() if k != "dbname")
    monitor.execute("CREATE TABLE empty (secret encrypted_text, id int)")
    monitor.execute("SELECT colcrypt.create_index_key()")
    monitor.execute("CREATE UNIQUE INDEX ON empty (secret)")
    monitor.execute(
        f"CREATE SUBSCRIPTION s CONNECTION '{address} dbname={shop.name}' PUBLICATION p"
        " WITH (slot_name = slot, create_slot = false, copy_data = false)"
    )
    try:
        monitor.execute(RESET)
        session.execute("INSERT INTO empty SELECT v FROM plain")
        arrived = "SELECT count(*) FROM empty"
        wait_until(lambda: fetch(monitor, arrived) == 9, "the subscriber")
        found = counts(monitor)
        assert found["encrypt xaes-256-gcm ok"] == (9, 63)
        assert found["compare xaes-256-gcm ok"][0] >= 9
        assert set(found) == {"encrypt xaes-256-gcm ok", "compare xaes-256-gcm ok"}
    finally:
        monitor.execute("DROP SUBSCRIPTION s")
        monitor.execute("DROP TABLE empty")


def test_the_counters_survive_crashes_and_not_restarts(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(ring=new_key(), conf=PRELOAD | {"autovacuum": False})
    cluster.psql(TABLE)
    cluster.psql(RESET)
    with cluster.connect() as victim:
        victim.execute(READ)
        cluster.kill_backend(victim.info.backend_pid)
    with cluster.connect() as session:
        assert counts(session) == xaes(decrypt=(9, 63))
        session.execute(READ)
        assert counts(session) == xaes(decrypt=(18, 126))
    cluster.restart()
    with cluster.connect() as session:
        assert counts(session) == {}
        session.execute(READ)
        assert counts(session) == xaes(decrypt=(9, 63))


def test_a_standby_counts_for_itself(cluster: Cluster, standby: Cluster) -> None:
    cluster.psql(TABLE)
    for each in (cluster, standby):
        each.conf(PRELOAD | {"autovacuum": False})
        each.restart()
    arrived = "SELECT count(*) FROM pg_class WHERE relname = 'empty'"
    wait_until(lambda: standby.psql(arrived) == "1", "the standby")
    with cluster.connect() as session, standby.connect() as reader:
        reader.execute(READ)
        assert counts(reader) == xaes(decrypt=(9, 63))
        assert counts(session) == {}
        session.execute("INSERT INTO empty VALUES ('x')")
        assert counts(session) == xaes(encrypt=(1, 1))
        reader.execute(RESET)
        assert counts(reader) == {}


# The view


def test_there_is_a_row_for_everything_that_can_be(
    session: psycopg.Connection,
) -> None:
    rows = session.execute("SELECT * FROM colcrypt.stat")
    expected = {
        (operation, suite, outcome, 0, 0)
        for operation in OPERATIONS
        for suite in SUITES
        for outcome in OUTCOMES
    }
    found = rows.fetchall()
    assert set(found) == expected and len(found) == len(expected)
    assert [column.name for column in rows.description or ()] == [
        "operation",
        "suite",
        "outcome",
        "calls",
        "bytes",
    ]


def test_a_reset_is_seen_by_all(
    session: psycopg.Connection, monitor: psycopg.Connection
) -> None:
    session.execute(READ)
    monitor.execute(RESET)
    assert counts(session) == counts(monitor) == {}
    session.execute(READ)
    assert counts(monitor) == xaes(decrypt=(9, 63))


def test_what_the_reading_statement_did_itself_is_in_it(
    session: psycopg.Connection,
) -> None:
    calls = fetch(
        session,
        f"WITH m AS MATERIALIZED ({READ})"
        " SELECT sum(calls)::int FROM colcrypt.stat, m WHERE m.count = 9",
    )
    assert calls in (0, 9)
    assert counts(session) == xaes(decrypt=(9, 63))


def test_the_view_is_for_monitoring_roles(shop: Database) -> None:
    names = [f"{name}_{shop.name}" for name in ("watcher", "app", "reader")]
    watcher, app, reader = names
    shop.psql("".join(f"CREATE ROLE {name} LOGIN;" for name in names))
    shop.psql(f"GRANT pg_monitor TO {watcher}")
    shop.psql(f"GRANT SELECT ON colcrypt.stat TO {reader}")
    look = "SELECT count(*) FROM colcrypt.stat"
    try:
        assert int(shop.psql(look, user=watcher)) == 64
        for user, sql in (
            (app, look),
            (app, "SELECT * FROM colcrypt.stat_counters()"),
            (reader, look),
            (app, RESET),
            (watcher, RESET),
        ):
            assert "42501" in shop.psql_error(sql, user=user), (user, sql)
    finally:
        for name in names:
            shop.psql(f"DROP OWNED BY {name}; DROP ROLE {name}")


# Without preload

ONLY_THIS_SESSION = "these are the counts of this session only"


def test_without_preload_a_session_counts_for_itself_and_says_so(db: Database) -> None:
    db.psql(TABLE)
    notices: list[str] = []
    with db.connect() as session, db.connect() as other:
        session.add_notice_handler(
            lambda notice: notices.append(f"{notice.severity} {notice.message_primary}")
        )
        session.execute(READ)
        other.execute("INSERT INTO empty VALUES ('x')")
        assert counts(session) == xaes(decrypt=(9, 63))
        assert len(notices) == 1
        assert notices[0].startswith(f"NOTICE {ONLY_THIS_SESSION}")
        assert counts(other) == xaes(encrypt=(1, 1))
        other.execute(RESET)
        assert counts(other) == {}
        assert counts(session) == xaes(decrypt=(9, 63))


def test_with_preload_there_is_no_notice(session: psycopg.Connection) -> None:
    notices: list[str | None] = []
    session.add_notice_handler(lambda notice: notices.append(notice.message_primary))
    counts(session)
    assert notices == []
