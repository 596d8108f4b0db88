"""The life of the index key: made when first needed, one for a database, the same for
good; and nothing is compared by a key that is not the one in colcrypt.key."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import decryptor
import psycopg
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg.errors import (
    DataCorrupted,
    InsufficientPrivilege,
    InternalError_,
    InvalidParameterValue,
    ObjectNotInPrerequisiteState,
)

from conftest import MakeCluster
from harness import (
    BIN,
    SUPERUSER,
    Cluster,
    Database,
    fetch,
    key_id,
    new_key,
    run_as_server,
    wait_until,
)

CREATE = "SELECT colcrypt.create_index_key()"
CREATE_FOR = "SELECT colcrypt.create_index_key(%s)"
REWRAP = "SELECT colcrypt.rewrap_keys()"
SET_KEY = "SELECT set_config('colcrypt.key', %s, false)"
IDS = "SELECT COALESCE(array_agg(key_id), '{}') FROM colcrypt.key WHERE kind = 'index'"
WRAPPED_BY = "SELECT wrapped_by FROM colcrypt.key WHERE kind = 'index'"
WRAPPED = "SELECT encode(wrapped, 'hex') FROM colcrypt.key WHERE kind = 'index'"
CHANGE = "UPDATE colcrypt.key SET {} WHERE kind = 'index'"
# 100 rows, 10 values.
TABLE = """
    CREATE TABLE t (id int, secret encrypted_text);
    INSERT INTO t SELECT i, 'v' || i % 10 FROM generate_series(1, 100) i;"""
# By hash or sort: an index in order needs only `=`, and so no index key.
DISTINCT = """
    WITH m AS MATERIALIZED (SELECT secret FROM t)
    SELECT count(*) FROM (SELECT DISTINCT secret FROM m) AS s"""
LOOKUP = "SELECT count(*) FROM t WHERE secret = 'v3'"
BY_INDEX = {"options": "-c enable_seqscan=off"}

Host = Database | Cluster


@pytest.fixture
def session(db: Database) -> Iterator[psycopg.Connection]:
    with db.connect(**BY_INDEX) as session:
        session.execute(TABLE)
        yield session


@pytest.fixture
def other(db: Database) -> Iterator[psycopg.Connection]:
    with db.connect(**BY_INDEX) as session:
        yield session


def ids(session: psycopg.Connection) -> list[str]:
    return fetch(session, IDS)


def assert_works(*sessions: psycopg.Connection) -> None:
    """Grouping and looking up by the index on t are right."""
    for session in sessions:
        plan = session.execute("EXPLAIN " + LOOKUP).fetchall()
        assert any("Index" in line for (line,) in plan), plan
        assert (fetch(session, DISTINCT), fetch(session, LOOKUP)) == (10, 10)


def assert_refused(
    session: psycopg.Connection, error: type[psycopg.Error], *, naming: str = ""
) -> None:
    """Neither grouping nor looking up by the index gives a result."""
    for sql in (DISTINCT, LOOKUP):
        with pytest.raises(error) as refused:
            session.execute(sql)
        assert naming in refused.value.diag.message_primary


# When it is made


def test_there_is_none_until_it_is_needed(session: psycopg.Connection) -> None:
    # A plain comparison looks at the plaintexts.
    assert fetch(session, "SELECT count(secret::text) FROM t") == 100
    assert fetch(session, LOOKUP) == 10
    assert fetch(session, "SELECT count(*) FROM t WHERE secret <> %s", "v3") == 90
    assert fetch(session, "SELECT count(*) FROM t WHERE secret = %s::text", "v3") == 10
    assert fetch(session, "SELECT count(*) FROM t WHERE secret IN ('v1', 'v2')") == 20
    session.execute("SET enable_hashjoin = off; SET enable_mergejoin = off")
    joined = "SELECT count(*) FROM t a JOIN t b ON a.secret = b.secret AND a.id < b.id"
    assert fetch(session, joined) == 450
    session.execute("ANALYZE t")
    session.execute("UPDATE t SET secret = 'x' WHERE secret = 'v1'")
    session.execute("SELECT rotate_column('t', 'secret')")
    assert ids(session) == []


@pytest.mark.parametrize(
    "need",
    [
        CREATE,
        "CREATE INDEX ON t (secret)",
        "CREATE INDEX ON t USING hash (secret)",
        "CREATE INDEX ON empty (secret)",
        "CREATE TABLE u (secret encrypted_text PRIMARY KEY)",
        "ALTER TABLE empty ADD EXCLUDE USING hash (secret WITH =)",
        "CREATE UNIQUE INDEX CONCURRENTLY ON empty (secret)",
        "SELECT secret, count(*) FROM t GROUP BY secret",
        "SELECT FROM t ORDER BY secret",
        "SELECT count(*) FROM t a JOIN t b USING (secret)",
        "SELECT secret FROM t UNION SELECT secret FROM t",
        "SELECT encrypted_text_hash('x'::text)",
    ],
)
def test_what_needs_it_makes_one(
    session: psycopg.Connection, other: psycopg.Connection, server: Cluster, need: str
) -> None:
    session.execute("CREATE TABLE empty (secret encrypted_text)")
    assert ids(session) == []
    session.execute(need)
    made = ids(session)
    assert len(made) == 1
    ring = (server.dir / "ring.keys").read_text()
    rows = session.execute(
        "SELECT kind, state, name, suite, wrapped_by, octet_length(wrapped),"
        " created_at BETWEEN now() - interval '1 minute' AND now() FROM colcrypt.key"
        " WHERE kind <> 'ring'"
    ).fetchall()
    row = ("index", "active", None, "aes-256-cmac", key_id(ring), 60, True)
    assert rows == [row]
    # Needed again, it is the same.
    session.execute("CREATE INDEX ON t (secret)")
    assert_works(session, other)
    assert [fetch(each, CREATE) for each in (session, other, session)] == made * 3
    assert ids(session) == made


def test_two_databases_have_two(db: Database, server: Cluster) -> None:
    ids = [server.psql(CREATE, db=name) for name in (db.name, "postgres")]
    assert len(set(ids)) == 2


# Its algorithm

ALGORITHMS = ("aes-256-cmac", "hmac-sha-256")


def make_for_suite(
    session: psycopg.Connection, ring_key: bytes, suite: str | None
) -> None:
    """Makes an index key without colcrypt."""
    key, nonce = os.urandom(32), os.urandom(12)
    aad = decryptor.wrap_aad(decryptor.key_id(key), "index", "", suite or "")
    wrapped = AESGCM(decryptor.subkey(ring_key, "wrap")).encrypt(nonce, key, aad)
    ids = [decryptor.id_in_hex(key), decryptor.id_in_hex(ring_key)]
    session.execute(
        "INSERT INTO colcrypt.key (key_id, kind, suite, state, wrapped_by, wrapped)"
        " VALUES (%s, 'index', %s, 'active', %s, %s)",
        [ids[0], suite, ids[1], nonce + wrapped],
    )


def assert_tags_are_by(
    session: psycopg.Connection, ring_key: bytes, algorithm: str
) -> None:
    names = ("key_id", "wrapped_by", "kind", "suite")
    row = session.execute(
        "SELECT wrapped, key_id, wrapped_by, kind, COALESCE(suite, '')"
        " FROM colcrypt.key WHERE kind = 'index'"
    ).fetchone()
    assert row is not None
    key = decryptor.unwrap_key(row[0], [ring_key], **dict(zip(names, row[1:])))
    for text in ("", "v3", "x" * 100):
        tag = decryptor.index_tag(key, text, algorithm)
        for value in ("%s::text", "encrypt(%s)"):
            code = fetch(session, f"SELECT encrypted_text_hash({value})", text)
            assert code % 2**32 == decryptor.hash_code(tag)


def assert_joins_by(session: psycopg.Connection, index: str, table: str) -> None:
    """Looking up each row of t in another table by an index finds it."""
    session.execute("SET enable_hashjoin = off; SET enable_mergejoin = off")
    query = f"SELECT count(*) FROM t JOIN {table} USING (secret)"
    plan = [line for (line,) in session.execute("EXPLAIN " + query).fetchall()]
    assert any(index in line for line in plan), plan
    assert fetch(session, query) == fetch(session, "SELECT count(*) FROM t")
    session.execute("RESET enable_hashjoin; RESET enable_mergejoin")


UNIQUE = {
    "btree": "CREATE UNIQUE INDEX by_btree ON {} (secret)",
    "hash": "ALTER TABLE {} ADD CONSTRAINT by_hash EXCLUDE USING hash (secret WITH =)",
}


@pytest.mark.parametrize("suite", [*ALGORITHMS, None])
def test_indexes_work_whatever_makes_the_tags(
    cluster: Cluster, suite: str | None
) -> None:
    ring_key = decryptor.ring_key((cluster.dir / "ring.keys").read_text())
    algorithm = suite or "hmac-sha-256"
    (other,) = {*ALGORITHMS} - {algorithm}
    with cluster.connect() as session:
        if suite is None:
            # As the first ones were.
            make_for_suite(session, ring_key, None)
        else:
            session.execute(CREATE_FOR, [suite])
        made = ids(session)
        session.execute(TABLE + "CREATE INDEX ON t (secret)")
        for method, unique in UNIQUE.items():
            session.execute(f"CREATE TABLE {method} (secret encrypted_text)")
            session.execute(unique.format(method))
            session.execute(f"INSERT INTO {method} SELECT DISTINCT secret FROM t")
    for restarted in (False, True):
        if restarted:
            cluster.restart()
        with cluster.connect(**BY_INDEX) as session:
            assert_works(session)
            assert_tags_are_by(session, ring_key, algorithm)
            for method in UNIQUE:
                assert_joins_by(session, f"by_{method}", method)
                with pytest.raises(psycopg.errors.IntegrityError, match=f"by_{method}"):
                    session.execute(f"INSERT INTO {method} VALUES ('v3')")
                session.execute(f"INSERT INTO {method} VALUES ('{restarted}')")
            # It keeps its algorithm.
            with pytest.raises(ObjectNotInPrerequisiteState) as refused:
                session.execute(CREATE_FOR, [other])
            assert f"already, for {algorithm}" in str(refused.value)
            for wanted in (algorithm, None):
                assert [fetch(session, CREATE_FOR, wanted)] == made
            assert ids(session) == made
            kept = "SELECT suite FROM colcrypt.key WHERE kind = 'index'"
            assert fetch(session, kept) == suite


def test_a_key_for_an_algorithm_that_this_library_does_not_know_is_not_used(
    session: psycopg.Connection, server: Cluster
) -> None:
    ring_key = decryptor.ring_key((server.dir / "ring.keys").read_text())
    make_for_suite(session, ring_key, "hmac-sha3-512")
    for sql in (CREATE, DISTINCT, "CREATE INDEX ON t (secret)"):
        with pytest.raises(InternalError_, match="in a way that this library does not"):
            session.execute(sql)


@pytest.mark.parametrize("name", ["", "hmac", "AES-256-CMAC", "xaes-256-gcm"])
def test_an_algorithm_that_there_is_not_is_refused(
    session: psycopg.Connection, name: str
) -> None:
    for made in (False, True):
        with pytest.raises(InvalidParameterValue, match="hmac-sha-256"):
            session.execute(CREATE_FOR, [name])
        assert len(ids(session)) == made
        session.execute(CREATE)


# Transactions


@contextmanager
def waiting(
    work: Callable[[], object], session: psycopg.Connection
) -> Iterator[Future[object]]:
    """Work in another session that waits for a lock of `session`'s transaction."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        blocked = (
            "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
            " WHERE NOT granted AND datname = current_database()"
        )
        wait_until(lambda: fetch(session, blocked) == 1, "the other session")
        assert not future.done()
        yield future


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
@pytest.mark.parametrize("need", [CREATE, DISTINCT, "CREATE INDEX ON t (secret)"])
def test_two_sessions_that_need_it_first_get_one(
    session: psycopg.Connection, other: psycopg.Connection, need: str, end: str
) -> None:
    session.execute("BEGIN")
    first = fetch(session, CREATE)
    assert fetch(session, DISTINCT) == 10
    with waiting(lambda: other.execute(need), session) as waited:
        session.execute(end)
        waited.result(timeout=30)
    made = ids(other)
    assert len(made) == 1 and (made == [first]) == (end == "COMMIT")
    other.execute("CREATE INDEX ON t (secret)")
    assert [fetch(each, CREATE) for each in (session, other)] == made * 2
    assert_works(session, other)


def test_who_waited_is_told_that_it_is_for_another_algorithm(
    session: psycopg.Connection, other: psycopg.Connection
) -> None:
    session.execute("BEGIN")
    first = fetch(session, CREATE_FOR, "hmac-sha-256")
    with waiting(lambda: fetch(other, CREATE_FOR, "aes-256-cmac"), session) as waited:
        session.execute("COMMIT")
        with pytest.raises(ObjectNotInPrerequisiteState, match="already"):
            waited.result(timeout=30)
    assert ids(other) == [first] == [fetch(other, CREATE)]


def test_many_sessions_that_need_it_at_once_get_one(db: Database) -> None:
    db.psql(TABLE)
    sessions = [db.connect() for _ in range(8)]
    barrier = threading.Barrier(len(sessions))

    def need(session: psycopg.Connection) -> object:
        barrier.wait()
        return fetch(session, CREATE)

    with ThreadPoolExecutor(len(sessions)) as pool:
        made = list(pool.map(need, sessions))
    assert [made[0]] * 8 == made and [made[0]] == ids(sessions[0])
    for session in sessions:
        session.close()


FORGET = {
    "transaction": ("BEGIN", "ROLLBACK"),
    "savepoint": ("BEGIN; SAVEPOINT s", "ROLLBACK TO s"),
    "released savepoint": (
        "BEGIN; SAVEPOINT s; SAVEPOINT r",
        "RELEASE r; ROLLBACK TO s",
    ),
}


@pytest.mark.parametrize("begin, rollback", FORGET.values(), ids=FORGET)
def test_a_key_that_was_rolled_back_is_not_used(
    session: psycopg.Connection,
    other: psycopg.Connection,
    begin: str,
    rollback: str,
) -> None:
    session.execute(begin)
    forgotten = fetch(session, CREATE)
    session.execute("CREATE TABLE gone (secret encrypted_text UNIQUE)")
    session.execute("INSERT INTO gone SELECT DISTINCT secret FROM t")
    session.execute(rollback)
    assert ids(session) == []
    session.execute("CREATE INDEX ON t (secret); CREATE INDEX ON t USING hash (secret)")
    session.execute("COMMIT")
    made = ids(session)
    assert len(made) == 1 and made != [forgotten]
    assert fetch(other, CREATE) == made[0]
    assert_works(session, other)


def test_an_exception_block_that_made_it_forgets_it(
    session: psycopg.Connection, other: psycopg.Connection
) -> None:
    session.execute(
        "DO $$ BEGIN"
        " BEGIN PERFORM DISTINCT secret FROM t; PERFORM 1 / 0;"
        " EXCEPTION WHEN division_by_zero THEN"
        "   IF EXISTS (SELECT FROM colcrypt.key WHERE kind = 'index')"
        "     THEN RAISE 'still there'; END IF;"
        " END;"
        " CREATE INDEX ON t (secret); END $$"
    )
    assert_works(session, other)
    assert len(ids(session)) == 1


def test_a_failed_statement_that_made_it_forgets_it(
    session: psycopg.Connection, other: psycopg.Connection
) -> None:
    with pytest.raises(psycopg.errors.UniqueViolation):
        session.execute("CREATE UNIQUE INDEX ON t (secret)")
    assert ids(session) == []
    other.execute("CREATE INDEX ON t (secret)")
    assert_works(session, other)


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_snapshot_older_than_the_key_does_not_hide_it(
    session: psycopg.Connection, other: psycopg.Connection, level: str
) -> None:
    session.execute(f"BEGIN ISOLATION LEVEL {level}")
    assert fetch(session, "SELECT count(*) FROM t") == 100
    other.execute("CREATE INDEX ON t (secret)")
    made = ids(other)
    assert ids(session) == [], "the snapshot is newer than the key"
    assert fetch(session, CREATE) == made[0]
    assert fetch(session, DISTINCT) == 10 and fetch(session, LOOKUP) == 10
    session.execute("INSERT INTO t VALUES (101, 'v3')")
    session.execute("COMMIT")
    assert ids(session) == made
    for each in (session, other):
        assert fetch(each, LOOKUP) == 11


# Where it cannot be made


def assert_told(session: psycopg.Connection, sql: str) -> None:
    with pytest.raises(ObjectNotInPrerequisiteState) as refused:
        session.execute(sql)
    assert refused.value.sqlstate == "55000"
    assert "no index key" in refused.value.diag.message_primary
    assert "colcrypt.create_index_key()" in (refused.value.diag.message_hint or "")


@pytest.mark.parametrize("need", [CREATE, DISTINCT, "SELECT FROM t ORDER BY secret"])
def test_a_read_only_transaction_says_how_to_make_it(
    session: psycopg.Connection, other: psycopg.Connection, need: str
) -> None:
    session.execute("SET default_transaction_read_only = on")
    assert_told(session, need)
    assert fetch(session, LOOKUP) == 10
    other.execute(CREATE)
    assert session.execute(need).rowcount > 0
    session.execute("SET default_transaction_read_only = off")
    assert len(ids(session)) == 1


@pytest.fixture
def standby(cluster: Cluster, base: Path) -> Iterator[Cluster]:
    """A hot standby of `cluster`."""
    backup = base / f"{cluster.dir.name}-backup"
    address = ["-h", str(cluster.dir), "-U", SUPERUSER]
    options = ["-D", str(backup), "-R", "-c", "fast", "--no-sync"]
    run_as_server([str(BIN / "pg_basebackup"), *address, *options])
    standby = Cluster(base, backup, ring=(cluster.dir / "ring.keys").read_text())
    standby.start()
    yield standby
    standby.destroy()


def test_a_standby_says_how_to_make_it_and_learns_of_it(
    cluster: Cluster, standby: Cluster
) -> None:
    cluster.psql(TABLE)

    def replayed() -> bool:
        sent = cluster.psql("SELECT pg_current_wal_lsn()")
        caught_up = f"SELECT pg_last_wal_replay_lsn() >= '{sent}'"
        return standby.psql(caught_up) == "t"

    wait_until(replayed, "the standby")
    with standby.connect(**BY_INDEX) as session:
        for need in (CREATE, DISTINCT):
            assert_told(session, need)
        assert fetch(session, LOOKUP) == 10
        made = cluster.psql(CREATE)
        cluster.psql("CREATE INDEX ON t (secret)")
        wait_until(replayed, "the standby")
        assert fetch(session, CREATE) == made
        assert_works(session)
        # A changed row reaches the session that knows the key.
        flip = CHANGE.format(FLIP.format(20))
        cluster.psql(flip)
        wait_until(replayed, "the standby")
        assert_refused(session, DataCorrupted)
        cluster.psql(flip)
        wait_until(replayed, "the standby")
        assert_works(session)


# Parallel work

PARALLEL = {
    "min_parallel_table_scan_size": 0,
    "min_parallel_index_scan_size": 0,
    "parallel_setup_cost": 0,
    "parallel_tuple_cost": 0,
    "parallel_leader_participation": "off",
    "max_parallel_workers_per_gather": 2,
    "max_parallel_maintenance_workers": 2,
    "maintenance_work_mem": "128MB",
}
BIG = """
    CREATE DOMAIN own AS encrypted_text;
    CREATE TYPE pair AS (id int, secret encrypted_text);
    CREATE TABLE big (id int, plain text, secret encrypted_text);
    INSERT INTO big
        SELECT i, v, v FROM generate_series(1, 2000) i, CONCAT('v', i % 10) v;
    CREATE TABLE texts AS SELECT id, plain FROM big;
    CREATE TABLE domains AS SELECT id, secret::own FROM big;
    CREATE TABLE arrays AS SELECT id, ARRAY[secret] AS secret FROM big;
    CREATE TABLE pairs AS SELECT id, (1, secret)::pair AS secret FROM big;
    CREATE MATERIALIZED VIEW m AS SELECT * FROM big;
    ANALYZE big, texts, domains, m;"""


@pytest.fixture
def parallel(db: Database) -> Iterator[psycopg.Connection]:
    """A session that has not used the extension yet, for which all is parallel."""
    db.psql(BIG)
    options = " ".join(f"-c {name}={value}" for name, value in PARALLEL.items())
    with db.connect(options=options) as session:
        yield session


@pytest.mark.parametrize(
    "query",
    [
        "SELECT count(*) FROM big GROUP BY secret",
        "SELECT count(*) FROM m GROUP BY secret",
        "SELECT count(*) FROM big a JOIN (SELECT DISTINCT secret FROM big) b"
        " USING (secret) GROUP BY a.secret",
        "SELECT count(*) FROM domains GROUP BY secret",
        "SELECT count(*) FROM texts GROUP BY encrypt(plain)",
    ],
)
def test_a_parallel_query_makes_it_before_it_starts(
    parallel: psycopg.Connection, query: str
) -> None:
    assert ids(parallel) == []
    plan = [line for (line,) in parallel.execute("EXPLAIN " + query).fetchall()]
    assert any("Workers Planned: 2" in line for line in plan), plan
    assert parallel.execute(query).fetchall() == [(200,)] * 10
    assert len(ids(parallel)) == 1


def test_a_prepared_parallel_query_makes_it(parallel: psycopg.Connection) -> None:
    parallel.execute(
        "PREPARE p (int) AS SELECT count(*) FROM big WHERE id > $1 GROUP BY secret"
    )
    assert parallel.execute("EXECUTE p (0)").fetchall() == [(200,)] * 10


@pytest.mark.parametrize(
    "table, what",
    [
        ("big", "secret"),
        ("big", "id, secret DESC"),
        ("domains", "secret"),
        ("m", "secret"),
    ],
)
def test_a_parallel_index_build_makes_it_before_it_starts(
    parallel: psycopg.Connection, table: str, what: str
) -> None:
    parallel.execute("CREATE EXTENSION amcheck")
    notices: list[str] = []
    parallel.add_notice_handler(
        lambda notice: notices.append(notice.message_primary or "")
    )
    assert ids(parallel) == []
    parallel.execute("SET client_min_messages = debug1")
    parallel.execute(f"CREATE INDEX built ON {table} ({what})")
    parallel.execute("RESET client_min_messages")
    assert any(
        "with request for 2 parallel workers" in each for each in notices
    ), notices
    parallel.execute("SELECT bt_index_parent_check('built', true, true)")
    assert len(ids(parallel)) == 1


@pytest.mark.parametrize("table", ["arrays", "pairs"])
@pytest.mark.parametrize(
    "work", ["SELECT count(*) FROM {} GROUP BY secret", "CREATE INDEX ON {} (secret)"]
)
def test_inside_arrays_and_rows_a_parallel_session_says_how_to_make_it(
    parallel: psycopg.Connection, work: str, table: str
) -> None:
    """PostgreSQL looks up the functions of members when the first are compared."""
    with pytest.raises(ObjectNotInPrerequisiteState) as error:
        parallel.execute(work.format(table))
    assert CREATE in (error.value.diag.message_hint or "")
    parallel.execute(CREATE)
    parallel.execute(work.format(table))


# Rights


@pytest.fixture
def app(db: Database, server: Cluster) -> Iterator[psycopg.Connection]:
    """A session of a role that may use t and create tables, and nothing more."""
    role = f"app_{db.name}"
    server.psql(f"CREATE ROLE {role} LOGIN")
    db.psql(
        TABLE + f"GRANT ALL ON t TO {role}; GRANT CREATE ON SCHEMA public TO {role}"
    )
    with db.connect(user=role, **BY_INDEX) as session:
        yield session
    db.psql(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize(
    "need", [CREATE, DISTINCT, "CREATE TABLE own (secret encrypted_text UNIQUE)"]
)
def test_a_role_without_rights_on_the_table_can_make_and_use_it(
    db: Database, app: psycopg.Connection, need: str
) -> None:
    user = fetch(app, "SELECT current_user")
    app.execute(need)
    assert fetch(app, "SELECT current_user") == user
    with db.connect(**BY_INDEX) as owner:
        assert len(ids(owner)) == 1
        owner.execute("CREATE INDEX ON t (secret)")
        assert fetch(app, CREATE) == ids(owner)[0]
        app.execute("INSERT INTO t VALUES (0, 'v3'); DELETE FROM t WHERE id = 13")
        assert_works(app, owner)


def test_a_role_without_rights_does_not_get_at_the_table(
    app: psycopg.Connection,
) -> None:
    made = fetch(app, CREATE)
    for sql in (
        "SELECT wrapped FROM colcrypt.key",
        "SELECT count(*) FROM colcrypt.key",
        "UPDATE colcrypt.key SET key_id = '00000000'",
        "DELETE FROM colcrypt.key",
        "TRUNCATE colcrypt.key",
        "INSERT INTO colcrypt.key (key_id, kind, state) VALUES ('', 'index', 'active')",
        "BEGIN; LOCK TABLE colcrypt.key IN SHARE MODE",
        "CREATE TRIGGER x AFTER INSERT ON colcrypt.key"
        " EXECUTE FUNCTION colcrypt.key_changed()",
        REWRAP,
    ):
        with pytest.raises(InsufficientPrivilege):
            app.execute(sql)
        app.rollback()
    assert fetch(app, CREATE) == made


def test_objects_of_the_caller_do_not_run_with_the_owner_s_rights(
    db: Database, app: psycopg.Connection
) -> None:
    # What writes keys runs as the table's owner, whatever the search path says.
    user = fetch(app, "SELECT current_user")
    db.psql(
        "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA colcrypt"
        f" TO {user}; DELETE FROM colcrypt.key"
    )
    app.execute(
        """CREATE FUNCTION public.trap(text, text) RETURNS boolean LANGUAGE plpgsql
        AS $$ BEGIN RAISE 'trapped'; END $$;
        CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = trap);
        CREATE OPERATOR public.~ (LEFTARG = text, RIGHTARG = text, FUNCTION = trap);
        CREATE FUNCTION public.now() RETURNS timestamptz LANGUAGE plpgsql
        AS $$ BEGIN RAISE 'trapped'; END $$;
        SET search_path = public, pg_catalog"""
    )
    with pytest.raises(psycopg.errors.RaiseException):
        app.execute("SELECT 'a'::text = 'b'::text")
    # Remembers the ring's key.
    app.execute("SELECT encrypt('x')")
    assert len(fetch(app, CREATE)) == 8
    for work in (
        "create_key('k')",
        "rotate_key('k')",
        f"grant_key('k', '{user}')",
        f"revoke_key('k', '{user}')",
        "rewrap_keys()",
        "shred_key('k')",
    ):
        app.execute(f"SELECT colcrypt.{work}")


# Rewrapping


class Ring:
    """A server with rows and an index under its old key; a new key is at hand."""

    def __init__(self, cluster: Cluster, old: str) -> None:
        self.cluster, self.old, self.new = cluster, old, new_key()
        cluster.psql(TABLE + "CREATE INDEX i ON t (secret); CREATE EXTENSION amcheck")
        self.index_key = cluster.psql(CREATE)

    def bring_new_key(self, *sessions: psycopg.Connection) -> None:
        self.cluster.set_ring(f"{self.new},{self.old}")
        self.cluster.reload(*sessions)
        # The index, too, holds values under the old key until it is built again.
        self.cluster.psql("SELECT rotate_column('t', 'secret'); REINDEX TABLE t")

    def retire_old_key(self) -> None:
        self.cluster.set_ring(self.new)
        self.cluster.restart()


@pytest.fixture
def ring(make_cluster: MakeCluster) -> Ring:
    old = new_key()
    return Ring(make_cluster(ring=old), old)


def test_a_rewrapped_key_outlives_the_key_that_wrapped_it(ring: Ring) -> None:
    cluster = ring.cluster
    with cluster.connect(**BY_INDEX) as before:
        assert_works(before)
        ring.bring_new_key(before)
        assert_works(before)
        assert cluster.psql(WRAPPED_BY) == key_id(ring.old)
        wrapped = cluster.psql(WRAPPED)
        assert [cluster.psql(REWRAP) for _ in range(2)] == ["1", "0"]
        assert cluster.psql(WRAPPED) != wrapped
        assert_works(before)
    ring.retire_old_key()
    assert cluster.psql(WRAPPED_BY) == key_id(ring.new)
    assert cluster.psql(CREATE) == ring.index_key
    with cluster.connect(**BY_INDEX) as after:
        assert_works(after)
        after.execute("SELECT bt_index_parent_check('i', true, true)")


def test_a_key_that_was_not_rewrapped_names_the_key_that_it_needs(ring: Ring) -> None:
    ring.bring_new_key()
    ring.retire_old_key()
    with ring.cluster.connect(**BY_INDEX) as session:
        assert_refused(session, ObjectNotInPrerequisiteState, naming=key_id(ring.old))
        with pytest.raises(ObjectNotInPrerequisiteState):
            session.execute(REWRAP)
        assert fetch(session, "SELECT count(secret::text) FROM t") == 100
        ring.cluster.set_ring(f"{ring.new},{ring.old}")
        ring.cluster.reload(session)
        assert_works(session)
        assert fetch(session, REWRAP) == 1
    ring.retire_old_key()
    with ring.cluster.connect(**BY_INDEX) as session:
        assert_works(session)


def test_a_rewrapping_that_is_rolled_back_changes_nothing(ring: Ring) -> None:
    ring.bring_new_key()
    with ring.cluster.connect(**BY_INDEX) as session:
        with session.transaction(force_rollback=True):
            assert fetch(session, REWRAP) == 1
            assert fetch(session, WRAPPED_BY) == key_id(ring.new)
            assert_works(session)
        assert fetch(session, WRAPPED_BY) == key_id(ring.old)
        assert_works(session)
        assert fetch(session, REWRAP) == 1


def test_two_rewrappings_at_once_rewrap_once(ring: Ring) -> None:
    ring.bring_new_key()
    with ring.cluster.connect() as one, ring.cluster.connect() as two:
        one.execute("BEGIN")
        assert fetch(one, REWRAP) == 1
        with waiting(lambda: fetch(two, REWRAP), one) as waited:
            one.execute("COMMIT")
            assert waited.result(timeout=30) == 0


def test_a_session_s_own_key_does_not_wrap_what_all_share(ring: Ring) -> None:
    ring.bring_new_key()
    with ring.cluster.connect(**BY_INDEX) as session:
        session.execute(SET_KEY, [new_key()])
        assert fetch(session, REWRAP) == 1
        assert fetch(session, WRAPPED_BY) == key_id(ring.new)
        session.execute("DELETE FROM colcrypt.key WHERE kind = 'index'")
        session.execute(CREATE)
        assert fetch(session, WRAPPED_BY) == key_id(ring.new)
    ring.cluster.psql("REINDEX TABLE t")
    with ring.cluster.connect(**BY_INDEX) as session:
        assert_works(session)


def test_where_the_server_has_no_key_a_session_s_wraps(
    make_cluster: MakeCluster,
) -> None:
    cluster, key, another = make_cluster(), new_key(), new_key()
    sessions = [cluster.connect(**BY_INDEX) for _ in range(3)]
    for session, keys in zip(sessions, (key, key, another)):
        session.execute(SET_KEY, [keys])
    one, two, stranger = sessions
    one.execute(TABLE + "CREATE INDEX ON t (secret)")
    assert fetch(one, WRAPPED_BY) == key_id(key)
    assert_works(one, two)
    assert_refused(stranger, ObjectNotInPrerequisiteState, naming=key_id(key))
    # What a session knows goes with its key.
    two.execute("RESET colcrypt.key")
    for sql in (CREATE, DISTINCT, LOOKUP):
        with pytest.raises(ObjectNotInPrerequisiteState, match="no encryption key"):
            two.execute(sql)
    two.execute(SET_KEY, [f"{another},{key}"])
    assert_works(two)
    assert fetch(two, REWRAP) == 1
    assert fetch(one, WRAPPED_BY) == key_id(another)
    with pytest.raises(ObjectNotInPrerequisiteState, match=key_id(another)):
        one.execute(DISTINCT)
    for session in sessions:
        session.close()


# A row that was changed

FLIP = "wrapped = set_byte(wrapped, {0}, get_byte(wrapped, {0}) # 1)"


@pytest.mark.parametrize(
    "change, error",
    [
        *((FLIP.format(byte), DataCorrupted) for byte in (0, 12, 59)),
        ("key_id = 'ffffffff'", DataCorrupted),
        ("suite = 'hmac-sha-256'", DataCorrupted),
        ("suite = NULL", DataCorrupted),
        ("suite = 'xaes-256-gcm'", DataCorrupted),
        ("wrapped_by = 'ffffffff'", ObjectNotInPrerequisiteState),
    ],
)
def test_a_changed_row_gives_errors_and_no_wrong_result(
    session: psycopg.Connection,
    other: psycopg.Connection,
    change: str,
    error: type[psycopg.Error],
) -> None:
    session.execute(
        "CREATE INDEX ON t (secret); CREATE TEMP TABLE k (LIKE colcrypt.key)"
    )
    session.execute("INSERT INTO k SELECT * FROM colcrypt.key WHERE kind = 'index'")
    assert_works(session, other)
    session.execute("SET session_replication_role = replica")
    session.execute(CHANGE.format(change))
    for each in (session, other):
        assert_refused(each, error)
        with pytest.raises(psycopg.Error):
            each.execute("INSERT INTO t VALUES (101, 'v3')")
    # The row as it was works at once.
    session.execute("DELETE FROM colcrypt.key WHERE kind = 'index'")
    session.execute("INSERT INTO colcrypt.key TABLE k")
    assert_works(session, other)


@pytest.mark.parametrize(
    "change",
    [
        "kind = 'data'",
        "kind = 'ring', wrapped = NULL, wrapped_by = NULL, name = 'x'",
        "name = 'x'",
        "wrapped = NULL",
        "wrapped = '\\x00'",
        "wrapped_by = NULL",
        "wrapped_by = 'none'",
        "key_id = NULL",
        "state = 'lost'",
    ],
)
def test_a_row_that_no_key_has_is_refused(
    session: psycopg.Connection, other: psycopg.Connection, change: str
) -> None:
    session.execute("CREATE INDEX ON t (secret)")
    with pytest.raises(psycopg.errors.IntegrityError):
        session.execute(CHANGE.format(change))
    assert_works(session, other)


def test_a_changed_row_that_is_rolled_back_did_not_change(
    session: psycopg.Connection, other: psycopg.Connection
) -> None:
    session.execute("CREATE INDEX ON t (secret)")
    with session.transaction(force_rollback=True):
        session.execute(CHANGE.format(FLIP.format(20)))
        assert_works(other)
        with pytest.raises(DataCorrupted), session.transaction():
            session.execute(DISTINCT)
    assert_works(session, other)


@pytest.mark.parametrize(
    "delete", ["DELETE FROM colcrypt.key", "TRUNCATE colcrypt.key"]
)
def test_after_a_deletion_another_is_made_in_all_sessions(
    session: psycopg.Connection, other: psycopg.Connection, delete: str
) -> None:
    # Indexes are by the old one then: that is what deleting it means.
    session.execute("CREATE INDEX i ON t (secret)")
    old = fetch(session, CREATE)
    assert_works(session, other)
    session.execute(delete)
    for each in (session, other):
        assert fetch(each, DISTINCT) == 10
    made = ids(session)
    assert len(made) == 1 and made != [old]
    assert fetch(other, CREATE) == made[0]
    session.execute("REINDEX INDEX i")
    assert_works(session, other)


def test_truncating_and_reindexing_again_and_again_does_no_harm(db: Database) -> None:
    """What PostgreSQL keeps of the classes' (no) options must be a valid value."""
    for _ in range(20):
        with db.connect() as session:
            session.execute(
                "CREATE TABLE again (secret encrypted_text UNIQUE);"
                "CREATE INDEX ON again USING hash (secret);"
                "INSERT INTO again VALUES ('a'); TRUNCATE again; REINDEX TABLE again;"
                "INSERT INTO again VALUES ('a'); DROP TABLE again"
            )


def test_a_second_index_key_is_refused(session: psycopg.Connection) -> None:
    session.execute(CREATE)
    second = """INSERT INTO colcrypt.key (key_id, kind, state, wrapped_by, wrapped)
        SELECT '00000000', kind, state, wrapped_by, wrapped FROM colcrypt.key
        WHERE kind = 'index'"""
    with pytest.raises(psycopg.errors.UniqueViolation, match="one_index_key"):
        session.execute(second)


# Extension and dump


def test_a_new_extension_in_the_same_session_makes_its_own(
    session: psycopg.Connection, other: psycopg.Connection
) -> None:
    session.execute("CREATE INDEX ON t (secret)")
    old = fetch(session, CREATE)
    assert_works(session, other)
    for each in (session, other):
        session.execute("DROP EXTENSION colcrypt CASCADE; DROP TABLE t")
        session.execute("CREATE EXTENSION colcrypt")
        session.execute(TABLE + "CREATE INDEX ON t (secret)")
        assert len(ids(session)) == 1 and ids(session) != [old]
        assert fetch(each, CREATE) == ids(session)[0]
        assert_works(session, other)


CIPHERTEXT = {"PGOPTIONS": "-c colcrypt.input=ciphertext"}
# In "app", which sorts before colcrypt, rows are restored before the key.
DUMPED = {
    "index": "CREATE TABLE app.u AS TABLE t; CREATE UNIQUE INDEX ON app.u (secret, id)",
    "constraint": "CREATE TABLE app.u (secret encrypted_text PRIMARY KEY);"
    "INSERT INTO app.u SELECT DISTINCT secret FROM t",
    "partitions": "CREATE TABLE app.u (secret encrypted_text)"
    " PARTITION BY HASH (secret);"
    "CREATE TABLE app.u0 PARTITION OF app.u FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
    "CREATE TABLE app.u1 PARTITION OF app.u FOR VALUES WITH (MODULUS 2, REMAINDER 1);"
    "INSERT INTO app.u SELECT secret FROM t",
}


@pytest.mark.parametrize(
    "what",
    [
        DUMPED["index"],
        DUMPED["constraint"],
        # Documented: the rows of colcrypt.key must be restored first.
        pytest.param(DUMPED["partitions"], marks=pytest.mark.xfail(strict=True)),
    ],
    ids=DUMPED,
)
def test_a_dump_brings_the_key_along(
    session: psycopg.Connection, db: Database, server: Cluster, what: str
) -> None:
    session.execute("CREATE INDEX ON t (secret); CREATE SCHEMA app")
    session.execute(what)
    row = (
        "SELECT key_id, kind, state, wrapped_by, wrapped, suite, created_at"
        " FROM colcrypt.key ORDER BY kind"
    )
    kept = db.psql(row)
    assert [line.split("|")[1] for line in kept.split("\n")] == ["index", "ring"]
    dump = server.run("pg_dump", db=db.name)
    assert kept.split("|")[4].removeprefix("\\x") in dump
    name = f"{db.name}_restored"
    server.psql(f"CREATE DATABASE {name}")
    try:
        server.psql(dump, db=name, env=CIPHERTEXT)
        assert server.psql(row, db=name) == kept
        with server.connect(dbname=name, **BY_INDEX) as restored:
            assert_works(restored)
            assert fetch(restored, "SELECT count(DISTINCT secret) FROM app.u") == 10
            found = "SELECT count(*) > 0 FROM app.u WHERE secret = 'v3'"
            assert fetch(restored, found)
    finally:
        server.psql(f"DROP DATABASE {name} WITH (FORCE)")


def test_the_wrapped_key_is_never_logged(make_cluster: MakeCluster) -> None:
    old, new = new_key(), new_key()
    cluster = make_cluster(
        ring=old,
        conf={
            "log_min_messages": "debug5",
            "log_statement": "all",
            "log_duration": True,
            "log_parameter_max_length": -1,
        },
    )
    with cluster.connect(**BY_INDEX) as session:
        session.execute(TABLE + "CREATE INDEX ON t (secret)")
        secrets = [fetch(session, WRAPPED)]
        cluster.set_ring(f"{new},{old}")
        cluster.reload(session)
        assert fetch(session, REWRAP) == 1
        secrets.append(fetch(session, WRAPPED))
        session.execute(CHANGE.format(FLIP.format(20)))
        assert_refused(session, DataCorrupted)
        secrets.append(fetch(session, WRAPPED))
    log = cluster.log()
    assert len(set(secrets)) == 3 and "could not be unwrapped" in log and "DEBUG" in log
    assert "rewrap_keys" in log
    assert [secret for secret in secrets if secret in log] == []


def test_a_key_that_the_snapshot_does_not_see_is_not_said_to_be_rewrapped(
    make_cluster: MakeCluster,
) -> None:
    old, new = new_key(), new_key()
    cluster = make_cluster(ring=old)
    with cluster.connect() as session, cluster.connect() as other:
        session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        session.execute("SELECT count(*) FROM pg_class")
        other.execute(CREATE)
        cluster.set_ring(f"{new},{old}")
        cluster.reload(session, other)
        with pytest.raises(psycopg.errors.SerializationFailure):
            session.execute(REWRAP)
        session.execute("ROLLBACK")
        assert fetch(session, REWRAP) == 1


@pytest.mark.parametrize("ring", [True, False])
def test_parallel_queries_do_not_wait_for_each_other(
    make_cluster: MakeCluster, ring: bool
) -> None:
    cluster = make_cluster(
        ring=new_key() if ring else None,
        conf={"shared_preload_libraries": "colcrypt"},
    )
    options = " ".join(f"-c {name}={value}" for name, value in PARALLEL.items())
    options += " -c lock_timeout=5s"
    query = "SELECT count(*) FROM plain"
    with (
        cluster.connect(options=options) as session,
        cluster.connect(options=options) as other,
    ):
        session.execute("CREATE TABLE plain AS SELECT generate_series(1, 5000) AS i")
        plan = session.execute("EXPLAIN " + query).fetchall()
        assert any("Gather" in line for (line,) in plan), plan
        session.execute("BEGIN")
        assert fetch(session, query) == 5000
        locked = """SELECT count(*) FROM pg_locks WHERE relation = 'colcrypt.key'::regclass
            AND mode = 'ShareRowExclusiveLock'"""
        assert fetch(session, locked) == (1 if ring else 0)
        assert fetch(other, query) == 5000
        session.execute("COMMIT")
        assert len(ids(session)) == (1 if ring else 0)


def test_logical_decoding_neither_needs_nor_makes_it(make_cluster: MakeCluster) -> None:
    """To find a replica identity it opens indexes, in a snapshot of the past."""
    cluster = make_cluster(ring=new_key(), conf={"wal_level": "logical"})
    changes = """SELECT count(*) FROM pg_logical_slot_get_binary_changes(
        's', NULL, NULL, 'proto_version', '1', 'publication_names', 'p')"""
    with cluster.connect() as session, cluster.connect() as decoder:
        session.execute("CREATE PUBLICATION p FOR ALL TABLES")
        session.execute("SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
        with session.transaction():
            session.execute("CREATE TABLE t (secret encrypted_text PRIMARY KEY)")
            session.execute("INSERT INTO t VALUES ('a'), ('b')")
            session.execute("UPDATE t SET secret = 'c' WHERE secret = 'b'")
        made = ids(session)
        session.execute(REWRAP)
        session.execute("DELETE FROM t WHERE secret = 'a'")
        assert len(made) == 1
        assert fetch(decoder, changes) > 5
        assert ids(session) == made
