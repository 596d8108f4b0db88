"""Keys that a session brings along: theirs alone, never shown, never stored."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.errors import (
    InvalidParameterValue,
    ObjectNotInPrerequisiteState,
)

from conftest import MakeCluster
from harness import Cluster, Database, fetch, key_id, new_key

SEALED_UNDER = "SELECT (colcrypt.inspect(encrypt('x'))).key_id"
CANARY = "canaryCANARYcanary"


@pytest.fixture
def session(db: Database) -> Iterator[psycopg.Connection]:
    with db.connect() as session:
        yield session


@pytest.fixture
def role(server: Cluster) -> Iterator[str]:
    server.psql("CREATE ROLE app LOGIN")
    yield "app"
    server.psql("DROP ROLE app")


def use_keys(session: psycopg.Connection, ring: str, *, local: bool = False) -> str:
    """As the documentation tells clients to: by a bound parameter."""
    sql = "SELECT set_config('colcrypt.key', %s, %s)"
    row = session.execute(sql, [ring, local]).fetchone()
    assert row is not None
    return row[0]


def warnings_of(session: psycopg.Connection) -> list[str]:
    heard: list[str] = []
    session.add_notice_handler(
        lambda diag: heard.append(f"{diag.message_primary} {diag.message_detail}")
    )
    return heard


def server_key_id(db: Database) -> str:
    return db.psql(SEALED_UNDER)


# Whose keys they are


def test_a_bound_parameter_sets_keys_and_gives_ids_only(
    session: psycopg.Connection,
) -> None:
    first, second = new_key(), new_key()
    session.execute("LOAD 'colcrypt'")
    ids = f"{key_id(first)}, {key_id(second)}"
    assert use_keys(session, f"{first},{second}") == ids
    assert fetch(session, SEALED_UNDER) == key_id(first)


def test_session_keys_stand_in_front_of_the_servers(
    db: Database, session: psycopg.Connection
) -> None:
    db.psql("CREATE TABLE t (secret encrypted_text); INSERT INTO t VALUES ('servers')")
    own = new_key()
    use_keys(session, own)
    session.execute("INSERT INTO t VALUES ('own')")
    assert fetch(session, SEALED_UNDER) == key_id(own)
    found = session.execute("SELECT secret FROM t").fetchall()
    assert found == [("servers",), ("own",)]


def test_another_session_cannot_read_and_is_told_which_key_it_needs(
    db: Database, session: psycopg.Connection
) -> None:
    own = new_key()
    use_keys(session, own)
    session.execute("CREATE TABLE t (secret encrypted_text)")
    session.execute("INSERT INTO t VALUES ('own')")
    with db.connect() as other, pytest.raises(ObjectNotInPrerequisiteState) as refused:
        other.execute("SELECT secret FROM t")
    diag = refused.value.diag
    assert (
        diag.message_primary == f"encryption key {key_id(own)} is not in the key ring"
    )
    assert diag.message_detail == f"Keys in the ring: {server_key_id(db)}."


def test_session_keys_work_without_any_server_ring(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    own = new_key()
    with cluster.connect() as session:
        use_keys(session, own)
        assert fetch(session, SEALED_UNDER) == key_id(own)
        session.execute("RESET colcrypt.key")
        with pytest.raises(ObjectNotInPrerequisiteState):
            session.execute(SEALED_UNDER)


@pytest.mark.parametrize(
    "command",
    ["DISCARD ALL", "RESET colcrypt.key", "RESET ALL", "SET colcrypt.key = ''"],
)
def test_a_pooled_connection_hands_no_key_on(
    db: Database, session: psycopg.Connection, command: str
) -> None:
    own = new_key()
    use_keys(session, own)
    sealed = fetch(session, "SELECT ciphertext(encrypt('x'))")
    session.execute(command)
    assert fetch(session, SEALED_UNDER) == server_key_id(db)
    with pytest.raises(ObjectNotInPrerequisiteState):
        session.execute("SELECT from_ciphertext(%s)::text", [sealed])


def test_literals_in_prepared_statements_follow_the_clients_keys(
    db: Database, session: psycopg.Connection
) -> None:
    # Else a constant sealed for one tenant would be written for the next.
    session.execute("CREATE TABLE t (n serial, secret encrypted_text)")
    session.execute("SET plan_cache_mode = force_generic_plan")
    session.execute("PREPARE p AS INSERT INTO t (secret) VALUES ('literal')")
    one, two = new_key(), new_key()
    for key in (one, two, ""):
        use_keys(session, key)
        session.execute("EXECUTE p")
    ids = "SELECT (colcrypt.inspect(secret)).key_id FROM t ORDER BY n"
    found = [row[0] for row in session.execute(ids).fetchall()]
    assert found == [key_id(one), key_id(two), server_key_id(db)]


def test_literals_in_functions_follow_the_clients_keys(
    session: psycopg.Connection,
) -> None:
    session.execute("CREATE TABLE t (n serial, secret encrypted_text)")
    session.execute(
        "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$"
        " DECLARE x encrypted_text := 'initial';"
        " BEGIN INSERT INTO t (secret) VALUES ('literal'), (x);"
        " x := 'assigned'; INSERT INTO t (secret) VALUES (x); END $$"
    )
    session.execute(
        "CREATE FUNCTION g() RETURNS void LANGUAGE sql"
        " AS $$ INSERT INTO t (secret) VALUES ('literal') $$"
    )
    for key in (new_key(), new_key()):
        use_keys(session, key)
        # More than the five custom plans that come before a generic one.
        for _ in range(7):
            session.execute("SELECT f(), g()")
        ids = session.execute(
            "SELECT (colcrypt.inspect(secret)).key_id FROM t"
        ).fetchall()
        assert ids == [(key_id(key),)] * 28
        session.execute("TRUNCATE t")


def test_set_role_keeps_the_keys_of_the_session(
    db: Database, session: psycopg.Connection, role: str
) -> None:
    own = new_key()
    use_keys(session, own)
    session.execute(f"SET ROLE {role}")
    assert fetch(session, SEALED_UNDER) == key_id(own)
    assert fetch(session, "SHOW colcrypt.key") == key_id(own)
    session.execute("RESET ROLE")


def test_an_ordinary_role_sets_keys(db: Database, role: str) -> None:
    own = new_key()
    with db.connect(user=role) as session:
        use_keys(session, own)
        assert fetch(session, SEALED_UNDER) == key_id(own)


def test_keys_in_connection_options(db: Database) -> None:
    own = new_key()
    with db.connect(options=f"-c colcrypt.key={own}") as session:
        assert fetch(session, SEALED_UNDER) == key_id(own)
        assert fetch(session, "SHOW colcrypt.key") == key_id(own)
        # What a pool resets to is what its connection was opened with.
        session.execute("DISCARD ALL")
        assert fetch(session, SEALED_UNDER) == key_id(own)
    assert db.psql(SEALED_UNDER, env={"PGOPTIONS": f"-c colcrypt.key={own}"}) == key_id(
        own
    )


# Transactions


def test_keys_set_locally_end_with_the_transaction(
    db: Database, session: psycopg.Connection
) -> None:
    own = new_key()
    with session.transaction():
        use_keys(session, own, local=True)
        assert fetch(session, SEALED_UNDER) == key_id(own)
    assert fetch(session, SEALED_UNDER) == server_key_id(db)


def test_a_rolled_back_transaction_gives_the_old_keys_back(
    session: psycopg.Connection,
) -> None:
    before, inside = new_key(), new_key()
    use_keys(session, before)
    with session.transaction(force_rollback=True):
        use_keys(session, inside)
        assert fetch(session, SEALED_UNDER) == key_id(inside)
    assert fetch(session, SEALED_UNDER) == key_id(before)


def test_a_rolled_back_savepoint_gives_the_old_keys_back(
    session: psycopg.Connection,
) -> None:
    outer, inner = new_key(), new_key()
    session.execute("BEGIN")
    use_keys(session, outer)
    session.execute("SAVEPOINT s")
    use_keys(session, inner)
    assert fetch(session, SEALED_UNDER) == key_id(inner)
    session.execute("ROLLBACK TO SAVEPOINT s")
    assert fetch(session, SEALED_UNDER) == key_id(outer)
    session.execute("COMMIT")
    assert fetch(session, SEALED_UNDER) == key_id(outer)


def test_a_failed_set_leaves_the_old_value(session: psycopg.Connection) -> None:
    own = new_key()
    use_keys(session, own)
    # Not before: it is the library that judges, and nothing has needed it yet.
    assert fetch(session, SEALED_UNDER) == key_id(own)
    with pytest.raises(InvalidParameterValue) as refused:
        use_keys(session, CANARY)
    assert refused.value.sqlstate == "22023"
    assert refused.value.diag.message_detail.startswith("Key 1: neither")
    assert CANARY not in str(refused.value)
    assert fetch(session, SEALED_UNDER) == key_id(own)
    assert fetch(session, "SHOW colcrypt.key") == key_id(own)


def test_no_other_key_stands_in_for_a_bad_ring_from_before_the_library_was_loaded(
    db: Database, session: psycopg.Connection
) -> None:
    heard = warnings_of(session)
    use_keys(session, CANARY)
    with pytest.raises(ObjectNotInPrerequisiteState) as refused:
        fetch(session, SEALED_UNDER)
    assert "colcrypt.key of the session" in str(refused.value.diag.message_detail)
    assert heard and CANARY not in str(heard)
    assert CANARY not in str(refused.value)
    assert fetch(session, "SHOW colcrypt.key") == ""
    session.execute("RESET colcrypt.key")
    assert fetch(session, SEALED_UNDER) == server_key_id(db)
    assert CANARY not in db.cluster.log()


@pytest.mark.parametrize("preload", [None, "shared_preload_libraries"])
def test_a_bad_ring_in_connection_options_is_not_echoed(
    make_cluster: MakeCluster, preload: str | None
) -> None:
    cluster = make_cluster(
        ring=new_key(), conf={preload: "colcrypt"} if preload else {}
    )
    options = f"-c colcrypt.key={CANARY}"
    if preload:
        with pytest.raises(psycopg.OperationalError) as refused:
            cluster.connect(options=options)
        assert "invalid key ring" in str(refused.value)
        assert CANARY not in str(refused.value)
    else:
        error = cluster.psql_error(SEALED_UNDER, env={"PGOPTIONS": options})
        assert "55000" in error and CANARY not in error
    assert CANARY not in cluster.log()


# Showing


def test_no_view_of_settings_shows_a_key_to_anyone(
    db: Database, session: psycopg.Connection, role: str
) -> None:
    own = new_key()
    use_keys(session, own)
    session.execute("LOAD 'colcrypt'")
    for user in (role, "postgres"):
        session.execute(f"SET ROLE {user}")
        shown = [
            fetch(session, "SHOW colcrypt.key"),
            fetch(session, "SELECT current_setting('colcrypt.key')"),
            session.execute("SHOW ALL").fetchall(),
            session.execute("SELECT s::text FROM pg_settings s").fetchall(),
            session.execute("SELECT s::text FROM pg_show_all_settings() s").fetchall(),
            session.execute("SELECT s::text FROM pg_db_role_setting s").fetchall(),
            session.execute("SELECT s::text FROM pg_file_settings s").fetchall()
            if user == "postgres"
            else "",
        ]
        assert own not in str(shown)
        assert shown[0] == shown[1] == key_id(own)


# Not in a catalog

STORING = [
    "ALTER ROLE app SET colcrypt.key = '{}'",
    "ALTER ROLE ALL SET colcrypt.key = '{}'",
    "ALTER DATABASE {db} SET colcrypt.key = '{}'",
    "ALTER ROLE app IN DATABASE {db} SET colcrypt.key = '{}'",
    "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET colcrypt.key = '{}' AS 'SELECT 1'",
]


@pytest.mark.parametrize("statement", STORING)
def test_a_key_is_not_stored_in_a_catalog(
    db: Database, session: psycopg.Connection, role: str, statement: str
) -> None:
    key = new_key()
    session.execute("LOAD 'colcrypt'")
    with pytest.raises(InvalidParameterValue) as refused:
        session.execute(statement.replace("{}", key).replace("{db}", db.name))
    assert (
        refused.value.diag.message_primary
        == "colcrypt.key cannot be stored in a catalog"
    )
    assert key not in str(refused.value)
    assert no_catalog_has(session, key)


@pytest.mark.parametrize("statement", STORING)
def test_from_current_does_not_store_it_either(
    db: Database, session: psycopg.Connection, role: str, statement: str
) -> None:
    key = new_key()
    use_keys(session, key)
    session.execute("LOAD 'colcrypt'")
    from_current = statement.replace("= '{}'", "FROM CURRENT").replace("{db}", db.name)
    with pytest.raises(InvalidParameterValue):
        session.execute(from_current)
    assert no_catalog_has(session, key)


def no_catalog_has(session: psycopg.Connection, key: str) -> bool:
    settings = "SELECT coalesce(string_agg(s::text, ' '), '') FROM pg_db_role_setting s"
    functions = (
        "SELECT count(*) FROM pg_proc WHERE proconfig::text LIKE '%%' || %s || '%%'"
    )
    return key not in fetch(session, settings) and fetch(session, functions, key) == 0


@pytest.mark.parametrize(
    "target", ["ROLE app", "ROLE ALL", "DATABASE {db}", "ROLE app IN DATABASE {db}"]
)
@pytest.mark.parametrize("way", ["at first use", "session_preload_libraries"])
def test_a_key_stored_before_the_library_was_loaded_takes_no_effect(
    db: Database, role: str, target: str, way: str
) -> None:
    # PostgreSQL lets a superuser store a setting that it does not know yet.
    key = new_key()
    target = target.replace("{db}", db.name)
    db.cluster.psql(f"ALTER {target} SET colcrypt.key = '{key}'")
    options = {} if way == "at first use" else {"options": f"-c {way}=colcrypt"}
    try:
        user = "postgres" if options else role
        with db.connect(user=user, **options) as session:
            heard = warnings_of(session)
            assert fetch(session, SEALED_UNDER) == server_key_id(db)
            assert fetch(session, "SHOW colcrypt.key") == ""
            assert key not in str(heard)
            session.execute("DISCARD ALL")
            assert fetch(session, SEALED_UNDER) == server_key_id(db)
    finally:
        db.cluster.psql(f"ALTER {target} RESET colcrypt.key")
    assert key not in db.cluster.log().replace(f"SET colcrypt.key = '{key}'", "")


# Parallel query

PARALLEL = """
    SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;
    SET min_parallel_table_scan_size = 0; SET max_parallel_workers_per_gather = 2;
    SET parallel_leader_participation = off"""
SUM = "SELECT sum(length(secret)) + sum(substr(secret, 2)::int) FROM t"


@pytest.mark.parametrize("preload", [None, "shared_preload_libraries"])
@pytest.mark.parametrize(
    "source", ["session", "SET LOCAL", "options", "file", "setting"]
)
def test_parallel_workers_read_what_their_leader_reads(
    make_cluster: MakeCluster, source: str, preload: str | None
) -> None:
    key = new_key()
    conf = {"max_worker_processes": 8} | ({preload: "colcrypt"} if preload else {})
    if source == "setting":
        conf |= {"colcrypt.key": key} | (
            {} if preload else {"session_preload_libraries": "colcrypt"}
        )
    # A server ring of its own must not hide that the session's did not arrive.
    ring = {"file": key, "setting": None}.get(source, new_key())
    cluster = make_cluster(ring=ring, conf=conf)
    options = {"options": f"-c colcrypt.key={key}"} if source == "options" else {}
    with cluster.connect(autocommit=False, **options) as session:
        if source in ("session", "SET LOCAL"):
            use_keys(session, key, local=source == "SET LOCAL")
        session.execute("CREATE TABLE t (secret encrypted_text)")
        session.execute("INSERT INTO t SELECT 'v' || i FROM generate_series(1, 5000) i")
        assert fetch(
            session, "SELECT DISTINCT (colcrypt.inspect(secret)).key_id FROM t"
        ) == key_id(key)
        session.execute("SET LOCAL max_parallel_workers_per_gather = 0")
        serial = fetch(session, SUM)
        session.execute(PARALLEL)
        plan = session.execute(f"EXPLAIN (ANALYZE, COSTS OFF) {SUM}").fetchall()
        assert "Workers Launched: 2" in str(plan)
        assert fetch(session, SUM) == serial
        session.execute("CREATE TABLE u (secret encrypted_text)")
        session.execute("INSERT INTO u SELECT secret FROM t WHERE secret LIKE 'v1%'")
        session.execute("CREATE TABLE w AS SELECT secret || '!' AS secret FROM t")
        assert fetch(session, "SELECT count(*) FROM u WHERE secret LIKE 'v1%%'") == 1111
        assert fetch(session, "SELECT count(*) FROM w WHERE secret LIKE 'v%%!'") == 5000


def test_parallel_workers_seal_under_the_keys_of_their_leader(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(ring=new_key())
    key = new_key()
    with cluster.connect() as session:
        use_keys(session, key)
        session.execute(
            "CREATE TABLE t AS SELECT i::text FROM generate_series(1, 5000) i"
        )
        session.execute(PARALLEL)
        sql = "SELECT DISTINCT (colcrypt.inspect(encrypt(i))).key_id FROM t"
        assert "Workers Launched: 2" in str(
            session.execute(f"EXPLAIN (ANALYZE, COSTS OFF) {sql}").fetchall()
        )
        assert session.execute(sql).fetchall() == [(key_id(key),)]
