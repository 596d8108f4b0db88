"""The guard against the wrong key: a database remembers which keys of the ring have
encrypted in it, and nothing is encrypted under a ring that has none of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg.errors import (
    InsufficientPrivilege,
    ObjectNotInPrerequisiteState,
    ReadOnlySqlTransaction,
)

from conftest import MakeCluster
from harness import Cluster, Database, fetch, key_id, new_key, wait_until
from test_index_key import PARALLEL, SET_KEY, standby

__all__ = ["standby"]

REMEMBERED = """
    SELECT COALESCE(array_agg(key_id ORDER BY created_at, key_id), '{}')
    FROM colcrypt.key WHERE kind = 'ring'"""
SEAL = "SELECT encrypt('x')"
ACCEPT = "SELECT colcrypt.accept_key()"
TABLE = "CREATE TABLE t (id int, secret encrypted_text)"
NO_WAITING = "-c lock_timeout=3s -c statement_timeout=10s"


@pytest.fixture
def session(db: Database) -> Iterator[psycopg.Connection]:
    with db.connect(prepare_threshold=None) as session:
        session.execute(TABLE)
        yield session


@pytest.fixture
def app(db: Database) -> Iterator[psycopg.Connection]:
    """A session of a role that may write t, and nothing more."""
    role = f"app_{db.name}"
    db.psql(f"CREATE ROLE {role} LOGIN")
    with db.connect(user=role) as session:
        yield session
    db.psql(f"DROP OWNED BY {role}; DROP ROLE {role}")


def remembered(session: psycopg.Connection) -> list[str]:
    return fetch(session, REMEMBERED)


def primary_of(cluster: Cluster) -> str:
    return key_id((cluster.dir / "ring.keys").read_text().split(",")[0])


def use_ring(cluster: Cluster, ring: str, *sessions: psycopg.Connection) -> None:
    cluster.set_ring(ring)
    cluster.reload(*sessions)


def copy_in(session: psycopg.Connection, *rows: tuple[int, str]) -> None:
    with session.cursor().copy("COPY t FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def run(sql: str) -> Callable[[psycopg.Connection], object]:
    return lambda session: session.execute(sql)


# Every way to use the primary.
USES: dict[str, Callable[[psycopg.Connection], object]] = {
    "literal": run("INSERT INTO t VALUES (1, 'x')"),
    "select of a literal": run("SELECT 'x'::encrypted_text"),
    "text": run("INSERT INTO t SELECT i, i::text FROM generate_series(1, 100) i"),
    "parameter": lambda s: s.execute("INSERT INTO t VALUES (1, %s)", ["x"]),
    "text parameter": lambda s: s.execute("INSERT INTO t VALUES (1, %s::text)", ["x"]),
    "encrypt()": run(SEAL),
    "copy": lambda s: copy_in(s, (1, "x"), (2, "y")),
    "default": run("CREATE TEMP TABLE u (id int, secret encrypted_text DEFAULT 'x')"),
    "check": run("CREATE TEMP TABLE u (secret encrypted_text CHECK (secret <> 'x'))"),
    "prepare": run("PREPARE p AS INSERT INTO t VALUES (1, 'x')"),
    "explain": run("EXPLAIN INSERT INTO t VALUES (1, 'x')"),
    "cursor": run("BEGIN; DECLARE c CURSOR FOR SELECT encrypt('x'); FETCH c; COMMIT"),
    "cursor with hold": run("DECLARE c CURSOR WITH HOLD FOR SELECT encrypt('x')"),
    "create table as": run("CREATE TEMP TABLE u AS SELECT encrypt('x') AS secret"),
    "materialized view": run(
        "CREATE MATERIALIZED VIEW u AS SELECT encrypt('x') AS secret;"
        "REFRESH MATERIALIZED VIEW u"
    ),
    "plpgsql": run("DO $$ BEGIN INSERT INTO t VALUES (1, 'x'); END $$"),
    "plpgsql expression": run("DO $$ DECLARE v encrypted_text := 'x'; BEGIN END $$"),
    "plpgsql, after a commit": run("DO $$ BEGIN COMMIT; PERFORM encrypt('x'); END $$"),
    "stable function": run(
        "CREATE FUNCTION pg_temp.f() RETURNS encrypted_text STABLE LANGUAGE plpgsql"
        " AS $$ BEGIN RETURN encrypt('x'); END $$; SELECT pg_temp.f()"
    ),
    "trigger": run(
        "CREATE FUNCTION pg_temp.f() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.secret := encrypt('x'); RETURN NEW; END $$;"
        "CREATE TRIGGER f BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION pg_temp.f();"
        "INSERT INTO t VALUES (1)"
    ),
    "alter type": run(
        "CREATE TEMP TABLE u AS SELECT 'x'::text AS secret;"
        "ALTER TABLE u ALTER secret TYPE encrypted_text"
    ),
    "deferred": run(
        "CREATE FUNCTION pg_temp.f() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM encrypt('x'); RETURN NULL; END $$;"
        "CREATE TEMP TABLE u (id int);"
        "CREATE CONSTRAINT TRIGGER f AFTER INSERT ON u DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION pg_temp.f(); INSERT INTO u VALUES (1)"
    ),
    "create_key": run("SELECT colcrypt.create_key('pii')"),
    "create_index_key": run("SELECT colcrypt.create_index_key()"),
    "index": run("CREATE INDEX ON t (secret)"),
    "unique": run("CREATE TEMP TABLE u (secret encrypted_text PRIMARY KEY)"),
}


# Remembering


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_the_first_use_is_remembered(
    session: psycopg.Connection,
    server: Cluster,
    use: Callable[[psycopg.Connection], object],
) -> None:
    assert remembered(session) == []
    for _ in range(2):
        use(session)
        assert remembered(session) == [primary_of(server)]
        session.execute("DISCARD ALL")
        session.execute("DROP MATERIALIZED VIEW IF EXISTS u")
        session.execute("DELETE FROM colcrypt.key WHERE kind = 'data'")
    row = session.execute(
        "SELECT name, suite, state, wrapped, wrapped_by FROM colcrypt.key"
        " WHERE kind = 'ring'"
    ).fetchone()
    assert row == (None, None, "active", None, None)


@pytest.mark.parametrize(
    "use",
    [
        "SELECT count(*) FROM t WHERE secret IS NULL",
        "INSERT INTO t VALUES (1, NULL)",
        "SELECT * FROM colcrypt.keys",
        "SELECT * FROM colcrypt.columns",
        "SELECT * FROM colcrypt.key_usage('t', 'secret')",
        "SELECT count(from_ciphertext('colcrypt:v1:AQAAAAA' || repeat('A', 60)))",
        "VACUUM t",
        "ANALYZE t",
        "SELECT rotate_column('t', 'secret')",
    ],
)
def test_what_encrypts_nothing_is_not_remembered(
    session: psycopg.Connection, use: str
) -> None:
    session.execute(use)
    assert remembered(session) == []


@pytest.mark.parametrize(
    "use", [use for name, use in USES.items() if name in ("literal", "copy", "text")]
)
def test_a_role_without_rights_has_it_remembered(
    session: psycopg.Connection,
    app: psycopg.Connection,
    server: Cluster,
    use: Callable[[psycopg.Connection], object],
) -> None:
    session.execute(f"GRANT INSERT ON t TO {app.info.user}")
    use(app)
    assert remembered(session) == [primary_of(server)]
    assert fetch(app, "SELECT current_user") == app.info.user


def test_objects_of_the_caller_do_not_run_with_the_owner_s_rights(
    session: psycopg.Connection, app: psycopg.Connection, server: Cluster
) -> None:
    session.execute(f"GRANT CREATE ON SCHEMA public TO {app.info.user}")
    app.execute(
        """CREATE FUNCTION public.trap(text, text) RETURNS boolean LANGUAGE plpgsql
        AS $$ BEGIN RAISE 'trapped'; END $$;
        CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = trap);
        CREATE OPERATOR public.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = trap);
        CREATE OPERATOR public.~ (LEFTARG = text, RIGHTARG = text, FUNCTION = trap);
        CREATE FUNCTION public.now() RETURNS timestamptz LANGUAGE plpgsql
        AS $$ BEGIN RAISE 'trapped'; END $$;
        SET search_path = public, pg_catalog"""
    )
    app.execute(SEAL)
    app.execute("SELECT colcrypt.create_index_key()")
    assert remembered(session) == [primary_of(server)]


def test_it_is_remembered_in_a_security_restricted_function(
    session: psycopg.Connection, app: psycopg.Connection, server: Cluster
) -> None:
    session.execute(
        "CREATE FUNCTION f() RETURNS encrypted_text LANGUAGE sql SECURITY DEFINER"
        " SET search_path = pg_catalog, public AS $$ SELECT encrypt('x') $$"
    )
    app.execute("SELECT f()")
    assert remembered(session) == [primary_of(server)]


FORGET = {
    "transaction": ("BEGIN", "ROLLBACK"),
    "savepoint": ("BEGIN; SAVEPOINT s", "ROLLBACK TO s"),
    "released savepoint": (
        "BEGIN; SAVEPOINT s; SAVEPOINT r",
        "RELEASE r; ROLLBACK TO s",
    ),
}


@pytest.mark.parametrize("use", ["literal", "text", "copy", "encrypt()"])
@pytest.mark.parametrize("begin, rollback", FORGET.values(), ids=FORGET)
def test_what_was_rolled_back_is_remembered_by_the_next(
    session: psycopg.Connection, server: Cluster, begin: str, rollback: str, use: str
) -> None:
    session.execute(begin)
    USES[use](session)
    assert remembered(session) == [primary_of(server)]
    session.execute(rollback)
    assert remembered(session) == []
    USES[use](session)
    session.execute("COMMIT")
    assert remembered(session) == [primary_of(server)]


def test_a_statement_that_fails_is_not_what_remembers(
    session: psycopg.Connection, server: Cluster
) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        session.execute(
            "INSERT INTO t SELECT 1 / (3 - i), i::text FROM generate_series(1, 5) i"
        )
    assert remembered(session) == []
    session.execute(
        "DO $$ BEGIN"
        " BEGIN PERFORM encrypt('x'); PERFORM 1 / 0;"
        " EXCEPTION WHEN division_by_zero THEN NULL; END;"
        " IF EXISTS (SELECT FROM colcrypt.key) THEN RAISE 'still there'; END IF;"
        " PERFORM encrypt('x'); END $$"
    )
    assert remembered(session) == [primary_of(server)]


def test_a_prepared_transaction_remembers_and_holds_nobody_up(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(ring=new_key(), conf={"max_prepared_transactions": 2})
    with cluster.connect() as session, cluster.connect(options=NO_WAITING) as other:
        session.execute(TABLE)
        session.execute("BEGIN; INSERT INTO t VALUES (1, 'x'); PREPARE TRANSACTION 'p'")
        other.execute("INSERT INTO t VALUES (2, 'y')")
        assert remembered(other) == []
        session.execute("COMMIT PREPARED 'p'")
        assert remembered(other) == [primary_of(cluster)]
        other.execute("INSERT INTO t VALUES (3, 'z')")
        assert remembered(other) == [primary_of(cluster)]


def test_after_a_commit_it_is_done_once(
    session: psycopg.Connection, db: Database
) -> None:
    session.execute(SEAL)
    row = "SELECT ctid, xmin FROM colcrypt.key"
    before = session.execute(row).fetchall()
    for each in (session, db.connect()):
        copy_in(each, (1, "x"))
        each.execute("INSERT INTO t VALUES (1, 'x')")
    assert session.execute(row).fetchall() == before


# Where nothing is written

READ_ONLY = {
    "default": "SET default_transaction_read_only = on",
    "begin": "BEGIN READ ONLY",
    "set": "BEGIN; SET TRANSACTION READ ONLY",
}


@pytest.mark.parametrize("begin", READ_ONLY.values(), ids=READ_ONLY)
def test_a_read_only_transaction_seals_and_does_not_write(
    session: psycopg.Connection, db: Database, server: Cluster, begin: str
) -> None:
    session.execute(begin)
    for _ in range(3):
        assert fetch(session, "SELECT decrypt(encrypt('x'))") == "x"
        assert fetch(session, "SELECT count(*) FROM t WHERE secret = 'x'") == 0
    session.execute("COMMIT; RESET default_transaction_read_only")
    assert remembered(session) == []
    session.execute(SEAL)
    assert remembered(session) == [primary_of(server)]


def test_a_transaction_that_becomes_read_only_after_a_use_keeps_it(
    session: psycopg.Connection, server: Cluster
) -> None:
    session.execute("BEGIN")
    session.execute(SEAL)
    session.execute("SET TRANSACTION READ ONLY")
    session.execute(SEAL)
    session.execute("COMMIT")
    assert remembered(session) == [primary_of(server)]


def test_a_standby_seals_and_does_not_write(cluster: Cluster, standby: Cluster) -> None:
    cluster.psql(TABLE)

    def replayed() -> bool:
        sent = cluster.psql("SELECT pg_current_wal_lsn()")
        caught_up = f"SELECT pg_last_wal_replay_lsn() >= '{sent}'"
        return standby.psql(caught_up) == "t"

    wait_until(replayed, "the standby")
    with standby.connect() as reader:
        for _ in range(2):
            assert fetch(reader, "SELECT decrypt(encrypt('x'))") == "x"
            assert fetch(reader, "SELECT count(*) FROM t WHERE secret = 'x'") == 0
        assert remembered(reader) == []
        with pytest.raises((ReadOnlySqlTransaction, ObjectNotInPrerequisiteState)):
            reader.execute(ACCEPT)
        cluster.psql("INSERT INTO t VALUES (1, 'x')")
        wait_until(replayed, "the standby")
        assert remembered(reader) == [primary_of(cluster)]
        # Judged as on the primary.
        use_ring(standby, new_key(), reader)
        with pytest.raises(ObjectNotInPrerequisiteState, match="not encrypted"):
            reader.execute(SEAL)
        use_ring(standby, (cluster.dir / "ring.keys").read_text(), reader)
        assert fetch(reader, "SELECT secret FROM t") == "x"
    standby.stop()
    (standby.datadir / "standby.signal").unlink()
    standby.start()
    standby.psql("INSERT INTO t VALUES (2, 'y')")
    assert standby.psql("SELECT secret FROM t ORDER BY id") == "x\ny"


@pytest.mark.parametrize("leader", ["on", "off"])
@pytest.mark.parametrize(
    "query",
    [
        "SELECT count(decrypt(encrypt(plain))) FROM big",
        "SELECT count(plain::encrypted_text) FROM big",
        "SELECT count(*) FROM big WHERE 'x' <> plain::encrypted_text",
    ],
)
def test_parallel_workers_seal_and_do_not_write(
    db: Database, query: str, leader: str
) -> None:
    db.psql(
        "CREATE TABLE big AS SELECT i::text AS plain FROM generate_series(1, 2000) i;"
        "ANALYZE big"
    )
    settings = PARALLEL | {"parallel_leader_participation": leader}
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    with db.connect(options=options) as session:
        plan = [line for (line,) in session.execute("EXPLAIN " + query).fetchall()]
        assert any("Workers Planned: 2" in line for line in plan), plan
        for _ in range(2):
            assert fetch(session, query) == 2000
    with db.connect(options=options) as session:
        session.execute(
            "DELETE FROM colcrypt.key; INSERT INTO colcrypt.key (key_id, kind, state)"
            " VALUES ('ffffffff', 'ring', 'active')"
        )
        with pytest.raises(ObjectNotInPrerequisiteState, match="not encrypted"):
            session.execute(query)


# Never waiting

HOLDERS = {
    "it is about to be remembered": SEAL,
    "a key is being made": "SELECT colcrypt.create_key('pii')",
    "keys are being rewrapped": "SELECT colcrypt.rewrap_keys()",
    "the table is locked": "LOCK TABLE colcrypt.key IN SHARE ROW EXCLUSIVE MODE",
    "the table is locked exclusively": "LOCK TABLE colcrypt.key IN EXCLUSIVE MODE",
    "the row is there, uncommitted": "INSERT INTO colcrypt.key (key_id, kind, state)"
    " VALUES ('{primary}', 'ring', 'active')",
    "it is being accepted": ACCEPT,
}


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
def test_sealing_waits_for_no_other_session(
    db: Database, session: psycopg.Connection, server: Cluster, holder: str
) -> None:
    session.execute("BEGIN")
    session.execute(holder.replace("{primary}", primary_of(server)))
    with db.connect(options=NO_WAITING) as other:
        for use in ("literal", "text", "copy", "encrypt()", "prepare"):
            USES[use](other)
        assert fetch(other, "SELECT count(secret::text) FROM t") == 103
    session.execute("ROLLBACK")
    with db.connect(options=NO_WAITING) as other:
        other.execute(SEAL)
        assert remembered(other) == [primary_of(server)]


def test_sealing_does_not_queue_behind_one_who_waits_to_destroy_a_key(
    db: Database, session: psycopg.Connection
) -> None:
    session.execute("SELECT colcrypt.create_key('gone')")
    session.execute("BEGIN; SELECT colcrypt.create_key('pii')")
    with db.connect() as destroyer, db.connect(options=NO_WAITING) as other:
        pid = destroyer.info.backend_pid
        destroyer.execute("SET statement_timeout = '20s'")
        with ThreadPoolExecutor(1) as pool:
            shred = pool.submit(
                lambda: destroyer.execute("SELECT colcrypt.shred_key('gone')")
            )
            waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = %s"
            wait_until(lambda: fetch(session, waits, pid) == 1, "the other session")
            try:
                other.execute(SEAL)
            finally:
                session.execute("COMMIT")
                shred.result(timeout=30)


def test_bulk_work_is_not_slow_while_another_session_holds_the_table(
    db: Database, session: psycopg.Connection
) -> None:
    """What could not be remembered now is not looked for with every value."""
    for number in range(30):
        session.execute("SELECT colcrypt.create_key(%s)", [f"k{number}"])
    session.execute("DELETE FROM colcrypt.key WHERE kind = 'ring'")
    bulk = "INSERT INTO t SELECT i, i::text FROM generate_series(1, 20000) i"
    times = []
    with db.connect(options="-c max_parallel_workers_per_gather=0") as other:
        for lock in ("SELECT 1", "LOCK TABLE colcrypt.key IN SHARE ROW EXCLUSIVE MODE"):
            session.execute("DELETE FROM colcrypt.key WHERE kind = 'ring'")
            session.execute(f"BEGIN; {lock}")
            start = time.monotonic()
            other.execute(bulk)
            times.append(time.monotonic() - start)
            session.execute("ROLLBACK")
    assert times[1] < 5 * times[0] + 0.1, times


# Judging


class Wrong:
    """A server whose ring is not the one that its database was encrypted with."""

    def __init__(self, cluster: Cluster, right: str) -> None:
        self.cluster, self.right, self.wrong = cluster, right, new_key()
        cluster.psql(TABLE + "; INSERT INTO t VALUES (0, 'right')")
        use_ring(cluster, self.wrong)


@pytest.fixture
def wrong(make_cluster: MakeCluster) -> Wrong:
    right = new_key()
    return Wrong(make_cluster(ring=right), right)


def assert_refused(
    wrong: Wrong,
    session: psycopg.Connection,
    use: Callable[[psycopg.Connection], object],
) -> None:
    with pytest.raises(ObjectNotInPrerequisiteState) as refused:
        use(session)
    session.rollback()
    diag = refused.value.diag
    assert refused.value.sqlstate == "55000"
    message = f"{diag.message_primary} {diag.message_detail}"
    assert key_id(wrong.wrong) in message and key_id(wrong.right) in message
    assert "colcrypt.accept_key()" in (diag.message_hint or "")


def test_a_ring_with_none_of_the_remembered_keys_encrypts_nothing(wrong: Wrong) -> None:
    with wrong.cluster.connect(prepare_threshold=None) as session:
        for name, use in USES.items():
            # An index over no rows needs no key yet.
            if name != "unique":
                assert_refused(wrong, session, use)
        assert_refused(wrong, session, run("UPDATE t SET secret = 'x'"))
        assert_refused(wrong, session, run("SELECT colcrypt.rewrap_keys()"))
        assert fetch(session, "SELECT count(*) FROM t") == 1
        assert fetch(session, "SELECT count(*) FROM colcrypt.key") == 1
        assert remembered(session) == [key_id(wrong.right)]
        for name in ("u", "p"):
            assert fetch(session, "SELECT to_regclass(%s)", name) is None
        # Reading says what it needs.
        with pytest.raises(ObjectNotInPrerequisiteState) as refused:
            session.execute("SELECT secret FROM t")
        assert key_id(wrong.right) in (refused.value.diag.message_primary or "")
        assert key_id(wrong.wrong) in (refused.value.diag.message_detail or "")
        # What has to do with neither works.
        session.execute("VACUUM FULL t")
        session.execute("ANALYZE t; INSERT INTO t VALUES (1, NULL); DELETE FROM t")


def test_a_wrong_ring_does_not_rotate_or_rewrap(make_cluster: MakeCluster) -> None:
    right, wrong = new_key(), new_key()
    cluster = make_cluster(ring=right)
    with cluster.connect() as session:
        session.execute(TABLE + "; INSERT INTO t VALUES (1, 'x')")
        session.execute("SELECT colcrypt.create_key('pii')")
        row = "SELECT wrapped FROM colcrypt.key WHERE name = 'pii'"
        before = fetch(session, row)
        use_ring(cluster, wrong, session)
        for sql in (
            "SELECT rotate_column('t', 'secret')",
            "SELECT colcrypt.rewrap_keys()",
            "SELECT colcrypt.rotate_key('pii')",
        ):
            with pytest.raises(ObjectNotInPrerequisiteState):
                session.execute(sql)
        assert fetch(session, row) == before
        use_ring(cluster, right, session)
        assert fetch(session, "SELECT secret FROM t") == "x"


def test_the_right_ring_works_again_at_once(wrong: Wrong) -> None:
    cluster = wrong.cluster
    with cluster.connect() as session:
        assert_refused(wrong, session, run(SEAL))
        use_ring(cluster, wrong.right, session)
        session.execute("INSERT INTO t VALUES (1, 'x')")
        use_ring(cluster, wrong.wrong, session)
        assert_refused(wrong, session, run(SEAL))
        # Plans from when the ring was right do not get past it.
        use_ring(cluster, wrong.right, session)
        session.execute(
            "SET plan_cache_mode = force_generic_plan;"
            "PREPARE p AS INSERT INTO t VALUES (2, 'x'); EXECUTE p;"
            "PREPARE q (text) AS INSERT INTO t VALUES (3, $1); EXECUTE q ('x')"
        )
        use_ring(cluster, wrong.wrong, session)
        for sql in ("EXECUTE p", "EXECUTE q ('x')"):
            assert_refused(wrong, session, run(sql))
        assert remembered(session) == [key_id(wrong.right)]
        assert fetch(session, "SELECT count(*) FROM t") == 4


def test_with_a_remembered_key_in_the_ring_it_is_a_rotation(wrong: Wrong) -> None:
    cluster, newer = wrong.cluster, new_key()
    with cluster.connect() as session:
        use_ring(cluster, f"{wrong.wrong},{wrong.right}", session)
        session.execute("INSERT INTO t VALUES (1, 'x')")
        assert remembered(session) == [key_id(wrong.right), key_id(wrong.wrong)]
        session.execute("SELECT rotate_column('t', 'secret')")
        # The next one follows from the last, without the first.
        use_ring(cluster, f"{newer},{wrong.wrong}", session)
        session.execute("INSERT INTO t VALUES (2, 'y')")
        assert remembered(session)[2:] == [key_id(newer)]
        for ring in (newer, f"{newer},{new_key()}", f"{new_key()},{wrong.right}"):
            use_ring(cluster, ring, session)
            session.execute(SEAL)


def test_a_rewrapping_remembers_the_new_key(make_cluster: MakeCluster) -> None:
    old, new = new_key(), new_key()
    cluster = make_cluster(ring=old)
    cluster.psql("SELECT colcrypt.create_key('pii')")
    use_ring(cluster, f"{new},{old}")
    assert cluster.psql("SELECT colcrypt.rewrap_keys()") == "1"
    cluster.set_ring(new)
    cluster.restart()
    assert cluster.psql("SELECT decrypt(encrypt('x', 'pii')), decrypt(encrypt('y'))")
    with cluster.connect() as session:
        assert remembered(session) == [key_id(old), key_id(new)]


def test_a_superuser_can_accept_a_key(wrong: Wrong) -> None:
    cluster = wrong.cluster
    with cluster.connect() as session, cluster.connect() as other:
        for each in (session, other):
            assert_refused(wrong, each, run(SEAL))
        with session.transaction(force_rollback=True):
            assert fetch(session, ACCEPT) == key_id(wrong.wrong)
            session.execute(SEAL)
        for each in (session, other):
            assert_refused(wrong, each, run(SEAL))
        assert [fetch(session, ACCEPT) for _ in range(2)] == [key_id(wrong.wrong)] * 2
        for each in (session, other):
            each.execute("INSERT INTO t VALUES (1, 'x')")
            ids = [key_id(wrong.right), key_id(wrong.wrong)]
            assert remembered(each) == ids
        with pytest.raises(ObjectNotInPrerequisiteState, match=key_id(wrong.right)):
            session.execute("SELECT secret FROM t WHERE id = 0")
        assert fetch(session, "SELECT secret FROM t WHERE id = 1 LIMIT 1") == "x"


def test_nobody_else_can_accept_a_key(wrong: Wrong) -> None:
    cluster = wrong.cluster
    cluster.psql(
        "CREATE ROLE app LOGIN CREATEDB CREATEROLE;"
        "GRANT ALL ON t TO app; GRANT pg_write_all_data TO app"
    )
    with cluster.connect(user="app") as app:
        for grant in ("", "GRANT EXECUTE ON FUNCTION colcrypt.accept_key() TO app"):
            if grant:
                cluster.psql(grant)
            with pytest.raises(InsufficientPrivilege):
                app.execute(ACCEPT)
            assert_refused(wrong, app, run("INSERT INTO t VALUES (1, 'x')"))
        # Through a function of a superuser it is the superuser who accepts.
        cluster.psql(
            "CREATE FUNCTION accept() RETURNS text LANGUAGE sql SECURITY DEFINER"
            " AS 'SELECT colcrypt.accept_key()'"
        )
        assert fetch(app, "SELECT accept()") == key_id(wrong.wrong)
        app.execute("INSERT INTO t VALUES (1, 'x')")


def test_without_a_ring_there_is_nothing_to_accept(make_cluster: MakeCluster) -> None:
    with make_cluster().connect() as session:
        with pytest.raises(ObjectNotInPrerequisiteState, match="no encryption key"):
            session.execute(ACCEPT)
        assert remembered(session) == []


# Whose keys are judged


def test_a_session_s_own_keys_are_neither_judged_nor_remembered(wrong: Wrong) -> None:
    cluster, own = wrong.cluster, new_key()
    with cluster.connect() as session:
        session.execute(SET_KEY, [own])
        for use in ("literal", "text", "copy", "encrypt()", "prepare"):
            USES[use](session)
        assert remembered(session) == [key_id(wrong.right)]
        assert fetch(session, "SELECT secret FROM t WHERE id = 2 LIMIT 1") == "2"
        # What all share is not wrapped under the session's key, and the server's is
        # judged.
        for use in ("create_key", "create_index_key"):
            assert_refused(wrong, session, USES[use])
        session.execute("RESET colcrypt.key")
        assert_refused(wrong, session, run(SEAL))
        session.execute("BEGIN; SELECT set_config('colcrypt.key', '', true)")
        session.rollback()
        # Nor does the session's key make a rotation of the server's wrong ring.
        session.execute(SET_KEY, [f"{own},{wrong.right}"])
        assert fetch(session, "SELECT secret FROM t WHERE id = 0") == "right"
        assert_refused(wrong, session, USES["create_key"])


def test_without_a_ring_of_the_server_a_session_s_is_not_remembered(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster()
    with cluster.connect() as session:
        session.execute(TABLE)
        for _ in range(2):
            session.execute(SET_KEY, [new_key()])
            session.execute("INSERT INTO t VALUES (1, 'x')")
        assert remembered(session) == []


def test_a_session_s_own_key_in_front_of_an_unused_ring_remembers_nothing(
    session: psycopg.Connection, server: Cluster
) -> None:
    session.execute(SET_KEY, [new_key()])
    session.execute("INSERT INTO t VALUES (1, 'x')")
    assert remembered(session) == []
    session.execute("RESET colcrypt.key")
    session.execute("INSERT INTO t VALUES (1, 'x')")
    assert remembered(session) == [primary_of(server)]


def test_databases_judge_each_for_itself(wrong: Wrong) -> None:
    cluster = wrong.cluster
    cluster.psql("CREATE DATABASE two")
    with cluster.connect(dbname="template1") as session:
        session.execute("CREATE DATABASE copy TEMPLATE postgres")
    cluster.psql("CREATE EXTENSION colcrypt", db="two")
    with cluster.connect(dbname="two") as two, cluster.connect() as one:
        two.execute(SEAL)
        assert remembered(two) == [key_id(wrong.wrong)]
        assert_refused(wrong, one, run(SEAL))
        assert remembered(one) == [key_id(wrong.right)]
        # A copy of a database remembers what the original did.
        with cluster.connect(dbname="copy") as copy:
            assert remembered(copy) == [key_id(wrong.right)]
            assert_refused(wrong, copy, run(SEAL))
            copy.execute(ACCEPT)
            copy.execute(SEAL)
        assert_refused(wrong, one, run(SEAL))


def test_a_row_that_is_added_or_deleted_counts_at_once(
    session: psycopg.Connection, db: Database, server: Cluster
) -> None:
    with db.connect() as other:
        for each in (session, other):
            each.execute(SEAL)
        foreign = (
            "DELETE FROM colcrypt.key WHERE kind = 'ring';"
            "INSERT INTO colcrypt.key (key_id, kind, state)"
            " VALUES ('ffffffff', 'ring', 'active')"
        )
        session.execute(foreign)
        for each in (session, other):
            with pytest.raises(ObjectNotInPrerequisiteState, match="primary"):
                each.execute(SEAL)
        session.execute("TRUNCATE colcrypt.key")
        for each in (session, other):
            each.execute(SEAL)
            assert remembered(each) == [primary_of(server)]


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_snapshot_older_than_the_memory_neither_hides_nor_doubles_it(
    session: psycopg.Connection, db: Database, server: Cluster, level: str
) -> None:
    with db.connect() as other:
        session.execute(f"BEGIN ISOLATION LEVEL {level}")
        session.execute("SELECT count(*) FROM t")
        other.execute(SEAL)
        session.execute("INSERT INTO t VALUES (1, 'x')")
        session.execute("COMMIT")
        for each in (session, other):
            assert remembered(each) == [primary_of(server)]


def test_many_sessions_that_encrypt_first_remember_it_once(
    db: Database, session: psycopg.Connection, server: Cluster
) -> None:
    sessions = [db.connect(options=NO_WAITING) for _ in range(8)]
    with ThreadPoolExecutor(len(sessions)) as pool:
        list(pool.map(lambda each: each.execute(SEAL), sessions))
    session.execute(SEAL)
    assert remembered(session) == [primary_of(server)]
    for each in sessions:
        each.close()


def test_maintenance_does_not_ask(session: psycopg.Connection) -> None:
    session.execute(
        "INSERT INTO t VALUES (1, 'x'); CREATE INDEX ON t USING hash (secret);"
        "UPDATE colcrypt.key SET key_id = 'ffffffff' WHERE kind = 'ring'"
    )
    for sql in ("VACUUM t", "ANALYZE t", "VACUUM FULL t", "REINDEX TABLE t", "TABLE t"):
        session.execute(sql)
    assert remembered(session) == ["ffffffff"]
