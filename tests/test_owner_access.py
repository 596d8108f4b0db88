"""What others maintain runs what the owner wrote: no owner sees more by it than in
sessions of his own, and what they maintain is in order."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege

from conftest import MakeCluster
from harness import SUPERUSER, Cluster, PsqlError, fetch, new_key, wait_until

WORD = "w0rd-s3cret!"
WRONG = "n0t-th3-word"
MASK = "********"
PREFIX = "colcrypt:v1:"
TOKEN = re.compile(r"colcrypt:v1:[\w+/=-]+")

numbers = itertools.count(1)

# What sessions of these roles begin with; and what they are shown of WORD.
OWNERS = {"masked": MASK, "cipher": PREFIX, "normal": WORD}
MODES = {"masked": "masked", "cipher": "ciphertext"}
STRICT = list(MODES)
every_owner = pytest.mark.parametrize("owner", OWNERS)
every_strict_owner = pytest.mark.parametrize("owner", STRICT)


def prepare(cluster: Cluster) -> None:
    """A database to copy, and roles: one for each mode; `member` of all of them, and
    `stranger`, both unrestricted."""
    cluster.psql("CREATE DATABASE copied")
    cluster.psql(
        "CREATE EXTENSION colcrypt; CREATE TABLE vault (secret encrypted_text);"
        f"INSERT INTO vault VALUES ('{WORD}'); GRANT SELECT ON vault TO PUBLIC;"
        "GRANT CREATE ON SCHEMA public TO PUBLIC",
        db="copied",
    )
    cluster.psql(
        "CREATE ROLE masked LOGIN; ALTER ROLE masked SET colcrypt.access = 'masked';"
        "CREATE ROLE cipher LOGIN;"
        "ALTER ROLE cipher SET colcrypt.access = 'ciphertext';"
        "CREATE ROLE normal LOGIN; CREATE ROLE stranger LOGIN;"
        "CREATE ROLE member LOGIN IN ROLE masked, cipher, normal;"
        f"ALTER ROLE {SUPERUSER} SET colcrypt.access = 'full'"
    )


@pytest.fixture(scope="module")
def host(base: Path, template: Path) -> Iterator[Cluster]:
    cluster = Cluster(base, template, ring=new_key())
    cluster.conf(
        shared_preload_libraries="colcrypt",
        autovacuum=False,
        autovacuum_naptime=1,
        jit=False,
        max_worker_processes=8,
    )
    cluster.start()
    try:
        prepare(cluster)
        yield cluster
    finally:
        cluster.destroy()


@pytest.fixture(scope="module")
def lazy(base: Path, template: Path) -> Iterator[Cluster]:
    """Sessions load the library when they need it."""
    cluster = Cluster(base, template, ring=new_key())
    cluster.conf(autovacuum=False, autovacuum_naptime=1, jit=False)
    cluster.start()
    try:
        prepare(cluster)
        yield cluster
    finally:
        cluster.destroy()


@pytest.fixture(scope="module")
def shared(host: Cluster) -> str:
    """The database in which most tests have a schema of their own."""
    host.psql("CREATE DATABASE shared TEMPLATE copied")
    return "shared"


@pytest.fixture
def path(host: Cluster, shared: str) -> Iterator[str]:
    """A schema in which everybody may do everything."""
    schema = f"s{next(numbers)}"
    host.psql(
        f"CREATE SCHEMA {schema}; GRANT ALL ON SCHEMA {schema} TO PUBLIC", db=shared
    )
    yield schema
    host.psql(
        f"SET client_min_messages = warning; DROP SCHEMA {schema} CASCADE", db=shared
    )


def connect(
    host: Cluster, path: str, user: str = SUPERUSER, db: str = "shared"
) -> psycopg.Connection:
    options = f"-c search_path={path},public"
    return host.connect(user=user, dbname=db, options=options, prepare_threshold=None)


@pytest.fixture
def session(host: Cluster, path: str) -> Iterator[psycopg.Connection]:
    """The superuser."""
    with connect(host, path) as session:
        yield session


def texts(session: psycopg.Connection, query: str) -> list[str]:
    return [text for (text,) in session.execute(query.encode()).fetchall()]


def execute_all(session: psycopg.Connection, *statements: str) -> None:
    for statement in statements:
        session.execute(statement.encode())


# Where the mode of a role stands

SETTINGS = {
    "role": (["ALTER ROLE {r} SET colcrypt.access = 'masked'"], MASK),
    "ciphertext": (["ALTER ROLE {r} SET colcrypt.access = 'ciphertext'"], PREFIX),
    "case": (["ALTER ROLE {r} SET ColCrypt.ACCESS = 'Masked'"], MASK),
    "among others": (
        [
            "ALTER ROLE {r} SET work_mem = '1MB'",
            "ALTER ROLE {r} SET colcrypt.mask = 'colcrypt.access=full ü'",
            "ALTER ROLE {r} SET colcrypt.access = 'masked'",
            "ALTER ROLE {r} SET application_name = 'x'",
        ],
        None,
    ),
    "role in database": (
        ["ALTER ROLE {r} IN DATABASE {d} SET colcrypt.access = 'masked'"],
        MASK,
    ),
    "database": (["ALTER DATABASE {d} SET colcrypt.access = 'masked'"], MASK),
    "all": (["ALTER ROLE ALL SET colcrypt.access = 'masked'"], MASK),
    "configuration": (["CONF masked"], MASK),
    "none": ([], WORD),
    "reset": (
        [
            "ALTER ROLE {r} SET colcrypt.access = 'masked'",
            "ALTER ROLE {r} RESET colcrypt.access",
        ],
        WORD,
    ),
    "another role": (["ALTER ROLE other SET colcrypt.access = 'masked'"], WORD),
    "another database": (
        ["ALTER ROLE {r} IN DATABASE copied SET colcrypt.access = 'masked'"],
        WORD,
    ),
    "role over database": (
        [
            "ALTER DATABASE {d} SET colcrypt.access = 'masked'",
            "ALTER ROLE {r} SET colcrypt.access = 'full'",
        ],
        WORD,
    ),
    "role over database, masked": (
        [
            "ALTER DATABASE {d} SET colcrypt.access = 'full'",
            "ALTER ROLE {r} SET colcrypt.access = 'masked'",
        ],
        MASK,
    ),
    "role in database over role": (
        [
            "ALTER ROLE {r} SET colcrypt.access = 'masked'",
            "ALTER ROLE {r} IN DATABASE {d} SET colcrypt.access = 'full'",
        ],
        WORD,
    ),
    "role in database over role, masked": (
        [
            "ALTER ROLE {r} SET colcrypt.access = 'full'",
            "ALTER ROLE {r} IN DATABASE {d} SET colcrypt.access = 'masked'",
        ],
        MASK,
    ),
    "database over all": (
        [
            "ALTER ROLE ALL SET colcrypt.access = 'masked'",
            "ALTER DATABASE {d} SET colcrypt.access = 'full'",
        ],
        WORD,
    ),
    "all over configuration": (
        ["CONF masked", "ALTER ROLE ALL SET colcrypt.access = 'ciphertext'"],
        PREFIX,
    ),
    "role over configuration": (
        ["CONF masked", "ALTER ROLE {r} SET colcrypt.access = 'full'"],
        WORD,
    ),
    "another setting of the role": (
        [
            "ALTER DATABASE {d} SET colcrypt.access = 'masked'",
            "ALTER ROLE {r} SET work_mem = '1MB'",
        ],
        MASK,
    ),
}


def shown_after_refresh(
    cluster: Cluster, settings: list[str]
) -> tuple[list[str], list[str]]:
    """What an owner with these settings sees in his own session; and what is in his
    materialized view when the superuser, in a new session, has refreshed it."""
    number = next(numbers)
    names = {"r": f"owner_{number}", "d": f"d{number}"}
    cluster.psql("CREATE DATABASE {d} TEMPLATE copied".format(**names))
    cluster.psql("CREATE ROLE {r} LOGIN; CREATE ROLE other".format(**names))
    configured = [s.removeprefix("CONF ") for s in settings if s.startswith("CONF ")]
    try:
        if configured:
            cluster.conf({"colcrypt.access": configured[0]})
            cluster.reload()
        for statement in settings:
            if not statement.startswith("CONF "):
                cluster.psql(statement.format(**names))
        with cluster.connect(user=names["r"], dbname=names["d"]) as owner:
            owner.execute(
                "CREATE MATERIALIZED VIEW m AS SELECT secret::text AS shown FROM vault"
                " WITH NO DATA"
            )
            own = texts(owner, "SELECT secret::text FROM vault")
        cluster.psql("REFRESH MATERIALIZED VIEW m", db=names["d"])
        with cluster.connect(dbname=names["d"]) as superuser:
            assert fetch(superuser, "SHOW colcrypt.access") == "full"
            return own, texts(superuser, "SELECT shown FROM m")
    finally:
        cluster.psql("ALTER ROLE ALL RESET ALL")
        cluster.psql("DROP DATABASE {d} WITH (FORCE)".format(**names))
        cluster.psql("DROP ROLE {r}; DROP ROLE other".format(**names))
        if configured:
            cluster.conf({"colcrypt.access": None})
            cluster.reload()


@pytest.mark.parametrize("name", SETTINGS)
def test_an_owner_is_shown_what_his_own_sessions_begin_with(
    host: Cluster, name: str
) -> None:
    settings, expected = SETTINGS[name]
    own, shown = shown_after_refresh(host, settings)
    assert len(shown) == 1
    if expected is None:
        # The mask is that of the session.
        assert own == ["colcrypt.access=full ü"] and shown == [MASK]
    else:
        assert shown == own and shown[0].startswith(expected)


UNKNOWN_THERE = pytest.mark.xfail(
    strict=True,
    reason="without preload, a mode in postgresql.conf is not known where a role's own"
    " setting came over it",
)


@pytest.mark.parametrize(
    "name",
    [
        *("role", "ciphertext", "database", "all", "none", "role over database"),
        pytest.param("configuration", marks=UNKNOWN_THERE),
    ],
)
def test_an_owner_is_shown_the_same_where_the_library_is_not_preloaded(
    lazy: Cluster, name: str
) -> None:
    settings, expected = SETTINGS[name]
    own, shown = shown_after_refresh(lazy, settings)
    assert expected is not None
    assert shown == own and shown[0].startswith(expected)


def test_a_mode_that_is_changed_holds_from_the_next_transaction_on(
    host: Cluster, session: psycopg.Connection, path: str
) -> None:
    session.execute("CREATE ROLE changing LOGIN")
    try:
        with connect(host, path, "changing") as owner:
            owner.execute(
                "CREATE MATERIALIZED VIEW m AS SELECT secret::text AS shown FROM vault"
            )
        seen = []
        # From one transaction to the next.
        for access in ("masked", "full", "ciphertext", "full"):
            session.execute(f"ALTER ROLE changing SET colcrypt.access = '{access}'")
            session.execute("REFRESH MATERIALIZED VIEW m")
            [shown] = texts(session, "SELECT left(shown, 12) FROM m")
            seen.append(shown)
        assert seen == [MASK, WORD, PREFIX, WORD]
    finally:
        execute_all(session, "DROP OWNED BY changing", "DROP ROLE changing")


def test_a_mode_that_is_changed_holds_at_once_in_the_same_transaction(
    host: Cluster, session: psycopg.Connection, path: str
) -> None:
    """As a script does that makes the roles and fills the views in one go."""
    session.execute("CREATE ROLE changing LOGIN")
    try:
        with connect(host, path, "changing") as owner:
            owner.execute(
                "CREATE MATERIALIZED VIEW m AS SELECT secret::text AS shown FROM vault"
            )
        execute_all(
            session,
            "BEGIN",
            "REFRESH MATERIALIZED VIEW m",
            "ALTER ROLE changing SET colcrypt.access = 'masked'",
            "REFRESH MATERIALIZED VIEW m",
            "COMMIT",
        )
        assert texts(session, "SELECT shown FROM m") == [MASK]
    finally:
        execute_all(session, "DROP OWNED BY changing", "DROP ROLE changing")


# What is maintained, and by whom

# Made by the owner before rows are there; hear() writes down what it is given.
OWN = (
    "CREATE TABLE own (id int PRIMARY KEY, secret encrypted_text)",
    "CREATE TABLE heard (what text)",
    "CREATE FUNCTION hear(text) RETURNS void LANGUAGE plpgsql"
    " SET search_path FROM CURRENT AS 'BEGIN INSERT INTO heard VALUES ($1); END'",
    "CREATE FUNCTION tells(value encrypted_text) RETURNS int LANGUAGE plpgsql"
    " IMMUTABLE SET search_path FROM CURRENT"
    " AS 'BEGIN PERFORM hear(value::text); RETURN 1; END'",
    "INSERT INTO own SELECT 1, secret FROM vault",
)

INDEX = "CREATE INDEX told ON own (tells(secret))"
VIEW = "CREATE MATERIALIZED VIEW m AS SELECT id, tells(secret) FROM own"
UNIQUE_VIEW = f"{VIEW}; CREATE UNIQUE INDEX ON m (id)"

# What the owner prepares, and what is done to it.
MAINTENANCE = {
    "ANALYZE, index": (INDEX, ["ANALYZE own"]),
    "ANALYZE, partial index": (
        "CREATE INDEX ON own ((id + 1)) WHERE tells(secret) = 1",
        ["ANALYZE own"],
    ),
    "ANALYZE, statistics": (
        "CREATE STATISTICS s ON (tells(secret)) FROM own",
        ["ANALYZE own"],
    ),
    "ANALYZE, all": (INDEX, ["ANALYZE"]),
    "VACUUM ANALYZE": (INDEX, ["VACUUM (ANALYZE) own"]),
    "CREATE STATISTICS": (
        "",
        ["CREATE STATISTICS s ON (tells(secret)), id FROM own", "ANALYZE own"],
    ),
    "REINDEX INDEX": (INDEX, ["REINDEX INDEX told"]),
    "REINDEX TABLE": (INDEX, ["REINDEX TABLE own"]),
    "REINDEX CONCURRENTLY": (INDEX, ["REINDEX INDEX CONCURRENTLY told"]),
    "CREATE INDEX": ("", [INDEX]),
    "CREATE INDEX, predicate": (
        "",
        ["CREATE INDEX ON own (id) WHERE tells(secret) = 1"],
    ),
    "CREATE INDEX CONCURRENTLY": (
        "",
        ["CREATE INDEX CONCURRENTLY ON own (tells(secret))"],
    ),
    "VACUUM FULL": (INDEX, ["VACUUM FULL own"]),
    "CLUSTER": (INDEX, ["CLUSTER own USING own_pkey"]),
    "CLUSTER, index": (INDEX, ["CLUSTER own USING told"]),
    "REFRESH": (VIEW, ["REFRESH MATERIALIZED VIEW m"]),
    "REFRESH CONCURRENTLY": (
        UNIQUE_VIEW,
        ["REFRESH MATERIALIZED VIEW CONCURRENTLY m"],
    ),
    "rotate_column": (
        INDEX,
        [
            "SET colcrypt.algorithm = 'aes-256-gcm'",
            "SELECT rotate_column('own', 'secret')",
        ],
    ),
    "DO": (INDEX, ["DO 'BEGIN ANALYZE own; END'"]),
    "DO, EXECUTE": (INDEX, ["DO $$ BEGIN EXECUTE 'REINDEX TABLE own'; END $$"]),
    "DO, caught": (
        INDEX,
        [
            "DO $$ BEGIN BEGIN PERFORM 1 / 0; EXCEPTION WHEN division_by_zero THEN"
            " END; ANALYZE own; END $$"
        ],
    ),
    "function": (
        INDEX,
        [
            "CREATE FUNCTION does() RETURNS void LANGUAGE plpgsql"
            " AS 'BEGIN REINDEX TABLE own; END'",
            "SELECT does()",
        ],
    ),
    "function with its definer's rights": (
        VIEW,
        [
            "CREATE FUNCTION does() RETURNS void LANGUAGE plpgsql SECURITY DEFINER"
            " AS 'BEGIN REFRESH MATERIALIZED VIEW m; END'",
            "SELECT does()",
        ],
    ),
    "procedure": (
        INDEX,
        [
            "CREATE PROCEDURE does() LANGUAGE plpgsql"
            " AS 'BEGIN ANALYZE own; COMMIT; REINDEX TABLE own; END'",
            "CALL does()",
        ],
    ),
    "SET LOCAL": (
        INDEX,
        ["BEGIN", "SET LOCAL work_mem = '1MB'", "ANALYZE own", "COMMIT"],
    ),
    "savepoint": (
        INDEX,
        ["BEGIN", "SAVEPOINT a", "REINDEX TABLE own", "RELEASE a", "COMMIT"],
    ),
    "after a query of the same": (
        INDEX,
        ["BEGIN", "SELECT secret, secret = 'x' FROM own", "ANALYZE own", "COMMIT"],
    ),
    "after a rollback": (
        INDEX,
        [
            "BEGIN",
            "SAVEPOINT a",
            "ANALYZE own",
            "ROLLBACK TO a",
            "ANALYZE own",
            "COMMIT",
        ],
    ),
}


def maintain(
    host: Cluster, path: str, owner: str, name: str, maintainer: str
) -> list[str]:
    """What was written down for the owner."""
    prepared, statements = MAINTENANCE[name]
    with connect(host, path, owner) as role:
        execute_all(role, *OWN, *([prepared] if prepared else []), "DELETE FROM heard")
    with connect(host, path, maintainer) as session:
        execute_all(session, *statements)
    with connect(host, path) as session:
        return texts(session, "SELECT what FROM heard")


@pytest.mark.parametrize("name", MAINTENANCE)
@every_owner
def test_what_a_superuser_maintains_shows_the_owner_what_he_may_see(
    host: Cluster, path: str, owner: str, name: str
) -> None:
    heard = maintain(host, path, owner, name, SUPERUSER)
    assert heard and all(what.startswith(OWNERS[owner]) for what in heard)


@pytest.mark.parametrize(
    "name",
    ["ANALYZE, index", "REINDEX TABLE", "CREATE INDEX", "REFRESH", "rotate_column"]
    + ["VACUUM FULL", "DO", "CLUSTER", "REFRESH CONCURRENTLY", "function"],
)
@every_owner
def test_what_a_member_maintains_shows_the_owner_what_he_may_see(
    host: Cluster, path: str, owner: str, name: str
) -> None:
    heard = maintain(host, path, owner, name, "member")
    assert heard and all(what.startswith(OWNERS[owner]) for what in heard)


@every_owner
def test_what_the_owner_of_the_database_analyzes_shows_no_more(
    host: Cluster, path: str, owner: str
) -> None:
    host.psql("ALTER DATABASE shared OWNER TO stranger")
    try:
        heard = maintain(host, path, owner, "ANALYZE, index", "stranger")
    finally:
        host.psql(f"ALTER DATABASE shared OWNER TO {SUPERUSER}")
    assert heard and all(what.startswith(OWNERS[owner]) for what in heard)


@every_owner
def test_the_superuser_in_the_role_of_a_member_shows_no_more(
    host: Cluster, path: str, session: psycopg.Connection, owner: str
) -> None:
    with connect(host, path, owner) as role:
        execute_all(role, *OWN, INDEX, "DELETE FROM heard")
    execute_all(session, "SET ROLE member", "ANALYZE own", f"SET ROLE {owner}")
    execute_all(session, "REINDEX TABLE own", "RESET ROLE")
    heard = texts(session, "SELECT what FROM heard")
    assert len(heard) == 2
    assert all(what.startswith(OWNERS[owner]) for what in heard)


@every_owner
def test_a_masked_session_that_maintains_shows_the_mask_to_every_owner(
    host: Cluster, path: str, session: psycopg.Connection, owner: str
) -> None:
    with connect(host, path, owner) as role:
        execute_all(role, *OWN, INDEX, "DELETE FROM heard")
    execute_all(session, "SET colcrypt.access = 'masked'", "ANALYZE own")
    assert texts(session, "SELECT what FROM heard") == [MASK]
    execute_all(session, "DELETE FROM heard", "SET colcrypt.access = 'ciphertext'")
    execute_all(session, "ANALYZE own")
    [what] = texts(session, "SELECT what FROM heard")
    assert what.startswith(MASK if owner == "masked" else PREFIX)


@pytest.mark.parametrize("track_activities", [True, False])
@pytest.mark.parametrize("cluster_name", ["host", "lazy"])
def test_autovacuum_shows_owners_what_they_may_see(
    request: pytest.FixtureRequest, cluster_name: str, track_activities: bool
) -> None:
    cluster: Cluster = request.getfixturevalue(cluster_name)
    db = f"vacuumed_{next(numbers)}"
    cluster.psql(f"CREATE DATABASE {db} TEMPLATE copied")
    cluster.conf(autovacuum=True, track_activities=track_activities)
    try:
        for owner in OWNERS:
            cluster.psql(f"CREATE SCHEMA {owner} AUTHORIZATION {owner}", db=db)
            with connect(cluster, owner, owner, db) as role:
                execute_all(
                    role,
                    *OWN,
                    INDEX,
                    "ALTER TABLE own SET (autovacuum_analyze_threshold = 0,"
                    " autovacuum_analyze_scale_factor = 0)",
                    "INSERT INTO own SELECT 2, secret FROM vault",
                    "DELETE FROM heard",
                )
        cluster.reload()
        with cluster.connect(dbname=db) as session:
            for owner, shown in OWNERS.items():
                heard = f"SELECT what FROM {owner}.heard"
                wait_until(lambda: bool(texts(session, heard)), "autovacuum")
                assert all(what.startswith(shown) for what in texts(session, heard))
    finally:
        cluster.conf(autovacuum=False, track_activities=None)
        cluster.reload()
        cluster.psql(f"DROP DATABASE {db} WITH (FORCE)")


@every_owner
def test_parallel_workers_that_build_an_index_show_no_more(
    host: Cluster, path: str, session: psycopg.Connection, owner: str
) -> None:
    with connect(host, path, owner) as role:
        execute_all(
            role,
            "CREATE TABLE own (id int, secret encrypted_text)",
            "INSERT INTO own SELECT i, secret FROM vault, generate_series(1, 2000) i",
            "ALTER TABLE own SET (parallel_workers = 2)",
            "CREATE FUNCTION tells(value encrypted_text) RETURNS int LANGUAGE plpgsql"
            " IMMUTABLE PARALLEL SAFE AS $$ BEGIN RAISE NOTICE '%', value::text;"
            " RETURN 1; END $$",
        )
    told: set[str] = set()
    contexts: set[str] = set()

    def note(diagnostic: psycopg.errors.Diagnostic) -> None:
        told.add(str(diagnostic.message_primary)[:12])
        contexts.add(str(diagnostic.context).rpartition("\n")[2])

    session.add_notice_handler(note)
    execute_all(
        session,
        "SET min_parallel_table_scan_size = 0; SET maintenance_work_mem = '512MB';"
        "SET max_parallel_maintenance_workers = 2; SET client_min_messages = notice",
        "CREATE INDEX ON own (tells(secret))",
    )
    assert told == {OWNERS[owner][:12]}
    assert "parallel worker" in contexts


def test_what_an_owner_may_see_is_asked_of_the_owner_of_each_table(
    host: Cluster, path: str, session: psycopg.Connection
) -> None:
    """One transaction, several owners, to and fro."""
    for owner in OWNERS:
        with connect(host, path, owner) as role:
            execute_all(
                role,
                f"CREATE MATERIALIZED VIEW {owner} AS"
                " SELECT secret::text AS shown FROM vault",
            )
    session.execute("BEGIN")
    for owner in [*OWNERS, *reversed(OWNERS), *OWNERS]:
        session.execute(f"REFRESH MATERIALIZED VIEW {owner}")
        [shown] = texts(session, f"SELECT shown FROM {owner}")
        assert shown.startswith(OWNERS[owner])
        assert texts(session, "SELECT secret::text FROM vault") == [WORD]
    session.execute("COMMIT")


# What the owner could try from within. Each is the body of a function with `value` and
# `told`; {g} stands for the guess as a literal.

BOTH = "INSERT INTO both_ VALUES (value), ({g})"
PAIR = "(VALUES (value), ({g}::encrypted_text)) AS v(s)"

ATTACKS: dict[str, tuple[str, str]] = {
    # Reading
    "cast": ("", "told := value::text;"),
    "assignment": ("", "told := value;"),
    "format": ("", "told := format('%s %L', value, value);"),
    "concat": ("", "told := concat(value, 'x');"),
    "||": ("", "told := value || 'x';"),
    "json": ("", "told := to_json(value);"),
    "row to text": ("", "told := row(value)::text;"),
    "array to text": ("", "told := array_to_string(ARRAY[value], ',');"),
    "length": ("", "told := length(value::text);"),
    "LIKE": ("", "told := value LIKE {g} || '%';"),
    "::text =": ("", "told := value::text = {g};"),
    "send": ("", "told := convert_from(encrypted_text_send(value), 'UTF8');"),
    "xml": ("", "told := query_to_xml('SELECT secret FROM own', true, true, '');"),
    "insert": (
        "CREATE TABLE plain (t text)",
        "INSERT INTO plain VALUES (value) RETURNING t INTO told;",
    ),
    "decrypt": ("", "told := decrypt(value);"),
    "try_decrypt": ("", "told := try_decrypt(value);"),
    "trigger": (
        "CREATE TABLE both_ (s encrypted_text);"
        "CREATE FUNCTION fires() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM hear(NEW.s::text); RETURN NULL; END';"
        "CREATE TRIGGER t AFTER INSERT ON both_ FOR EACH ROW EXECUTE FUNCTION fires()",
        "INSERT INTO both_ VALUES (value);",
    ),
    "generated": (
        "CREATE FUNCTION immutable(encrypted_text) RETURNS text LANGUAGE plpgsql"
        " IMMUTABLE AS 'BEGIN RETURN $1::text; END';"
        "CREATE TABLE both_ (s encrypted_text,"
        " t text GENERATED ALWAYS AS (immutable(s)) STORED)",
        "INSERT INTO both_ VALUES (value) RETURNING t INTO told;",
    ),
    "refresh": (
        "CREATE MATERIALIZED VIEW inner_ AS SELECT secret::text FROM own",
        "REFRESH MATERIALIZED VIEW inner_; SELECT * INTO told FROM inner_;",
    ),
    "table as": (
        "",
        "EXECUTE 'CREATE TABLE made AS SELECT secret::text AS s FROM own';"
        "EXECUTE 'SELECT s FROM made' INTO told;",
    ),
    "alter type": (
        "CREATE TABLE both_ (s encrypted_text)",
        "INSERT INTO both_ VALUES (value);"
        "EXECUTE 'ALTER TABLE both_ ALTER s TYPE text';"
        "EXECUTE 'SELECT s FROM both_' INTO told;",
    ),
    "raise": ("", "RAISE EXCEPTION '%', value;"),
    # Changing what may be seen
    "pg_dump": (
        "",
        "PERFORM set_config('application_name', 'pg_dump', false);"
        "told := value::text;",
    ),
    "pg_dump of plaintext": (
        "",
        "PERFORM set_config('application_name', 'pg_dump', false);"
        "PERFORM set_config('colcrypt.dump_plaintext', 'on', false);"
        "told := value::text;",
    ),
    "SET": ("", "SET colcrypt.access = 'full'; told := value::text;"),
    "set_config": (
        "",
        "PERFORM set_config('colcrypt.access', 'full', true); told := value::text;",
    ),
    "RESET": ("", "RESET colcrypt.access; told := value::text;"),
    "RESET ALL": ("", "RESET ALL; told := value::text;"),
    "SET on a function": (
        "",
        "EXECUTE 'CREATE FUNCTION f(encrypted_text) RETURNS text LANGUAGE plpgsql"
        " SET colcrypt.access = full AS $x$ BEGIN RETURN $1::text; END $x$';"
        "EXECUTE 'SELECT f($1)' INTO told USING value;",
    ),
    "ALTER ROLE": (
        "",
        "EXECUTE format('ALTER ROLE %I RESET ALL', current_user);"
        "told := value::text;",
    ),
    "ALTER ROLE SET": (
        "",
        "EXECUTE format('ALTER ROLE %I SET colcrypt.access = full', current_user);"
        "told := value::text;",
    ),
    "SET ROLE": ("", "SET ROLE postgres; told := value::text;"),
    "SESSION AUTHORIZATION": (
        "",
        "RESET SESSION AUTHORIZATION; told := value::text;",
    ),
    # Comparing, without a query
    "=": ("", "told := value = {g};"),
    "= encrypted": ("", "told := value = {g}::encrypted_text;"),
    "<>": ("", "told := {g} <> value;"),
    "IF": ("", "IF value = {g} THEN told := 'yes'; ELSE told := 'no'; END IF;"),
    "CASE": ("", "told := CASE value WHEN {g} THEN 'yes' ELSE 'no' END;"),
    "IN": ("", "told := value IN ({g}, 'x');"),
    "ANY": ("", "told := value = ANY (ARRAY['x', {g}]::encrypted_text[]);"),
    "DISTINCT FROM": ("", "told := value IS DISTINCT FROM {g}::encrypted_text;"),
    "NULLIF": ("", "told := NULLIF(value, {g}) IS NULL;"),
    "row": ("", "told := row(value) = row({g}::encrypted_text);"),
    "row <": (
        "",
        "told := (row(value) <= row({g}::encrypted_text))"
        " AND (row(value) >= row({g}::encrypted_text));",
    ),
    "array": ("", "told := ARRAY[value] = ARRAY[{g}]::encrypted_text[];"),
    "array <=": (
        "",
        "told := ARRAY[value] <= ARRAY[{g}]::encrypted_text[]"
        " AND ARRAY[value] >= ARRAY[{g}]::encrypted_text[];",
    ),
    "array @>": ("", "told := ARRAY[value] @> ARRAY[{g}]::encrypted_text[];"),
    "array_position": (
        "",
        "told := array_position(ARRAY[value], {g}::encrypted_text);",
    ),
    "hash_array": (
        "",
        "told := hash_array(ARRAY[value]) ="
        " hash_array(ARRAY[{g}]::encrypted_text[]);",
    ),
    "hash_record": (
        "",
        "told := hash_record(row(value)) = hash_record(row({g}::encrypted_text));",
    ),
    "greatest": (
        "",
        "told := (greatest(value, {g})::text = value::text)::text"
        " || (least(value, {g})::text = value::text)::text;",
    ),
    # ANALYZE may use an order of its own, by the bytes, which are others each time.
    "width_bucket": (
        "",
        "told := 'equal'; FOR i IN 1 .. 20 LOOP"
        " IF width_bucket(value, ARRAY[encrypt({g})]) = 0"
        " OR width_bucket(encrypt({g}), ARRAY[value]) = 0"
        " THEN told := 'differs'; END IF; END LOOP;",
    ),
    "SQL function": (
        "CREATE FUNCTION same(encrypted_text, encrypted_text) RETURNS bool"
        " IMMUTABLE LANGUAGE sql AS 'SELECT $1 = $2'",
        "told := same(value, {g});",
    ),
    "domain": (
        "CREATE DOMAIN guess AS encrypted_text CHECK (VALUE <> {g})",
        "told := value::guess IS NULL;",
    ),
    "support function": ("", "told := encrypted_text_eq_ep(value, {g});"),
    # Comparing in queries
    "query": ("", "SELECT count(*) INTO told FROM own WHERE secret = {g};"),
    "order": (
        "",
        "SELECT string_agg(n::text, ',') INTO told FROM (SELECT n FROM (VALUES"
        " (1, {g}::encrypted_text), (2, value), (3, {g})) v(n, s) ORDER BY s, n) q;",
    ),
    "order, cursor": (
        "",
        "FOR told IN SELECT coalesce(told, '') || n FROM (VALUES (1,"
        " {g}::encrypted_text), (2, value), (3, {g})) v(n, s) ORDER BY s, n LOOP"
        " PERFORM hear(told); END LOOP;",
    ),
    "group": ("", f"SELECT count(*) INTO told FROM (SELECT FROM {PAIR} GROUP BY s) q;"),
    "hash group": (
        "",
        "SET LOCAL enable_sort = off;"
        f"SELECT count(*) INTO told FROM (SELECT FROM {PAIR} GROUP BY s) q;",
    ),
    "distinct": (
        "",
        f"SELECT count(*) INTO told FROM (SELECT DISTINCT s FROM {PAIR}) q;",
    ),
    "count distinct": ("", f"SELECT count(DISTINCT s) INTO told FROM {PAIR};"),
    "distinct row": ("", f"SELECT count(DISTINCT row(s)) INTO told FROM {PAIR};"),
    "distinct array": ("", f"SELECT count(DISTINCT ARRAY[s]) INTO told FROM {PAIR};"),
    "union": (
        "",
        "SELECT count(*) INTO told FROM"
        " (SELECT value UNION SELECT {g}::encrypted_text) q;",
    ),
    "window": (
        "",
        f"SELECT max(n) INTO told FROM (SELECT rank() OVER (ORDER BY s) n FROM {PAIR})"
        " q;",
    ),
    "join": (
        "",
        "SELECT count(*) INTO told FROM own JOIN"
        " (SELECT {g}::encrypted_text AS secret) q USING (secret);",
    ),
    # Writing
    "unique": (
        "CREATE TABLE both_ (s encrypted_text UNIQUE)",
        f"{BOTH}; told := 'done';",
    ),
    "unique, deferred": (
        "CREATE TABLE both_ (s encrypted_text UNIQUE DEFERRABLE INITIALLY DEFERRED)",
        f"{BOTH}; SET CONSTRAINTS ALL IMMEDIATE; told := 'done';",
    ),
    "unique, deferrable": (
        "CREATE TABLE both_ (s encrypted_text UNIQUE DEFERRABLE)",
        f"{BOTH}; told := 'done';",
    ),
    "unique, one by one": (
        "CREATE TABLE both_ (s encrypted_text UNIQUE);"
        "INSERT INTO both_ VALUES ({g})",
        "INSERT INTO both_ VALUES (value); told := 'done';",
    ),
    "unique, expression": (
        "CREATE TABLE both_ (s encrypted_text);"
        "CREATE UNIQUE INDEX ON both_ ((ARRAY[s]))",
        f"{BOTH}; told := 'done';",
    ),
    "on conflict": (
        "CREATE TABLE both_ (s encrypted_text UNIQUE)",
        f"{BOTH} ON CONFLICT DO NOTHING; SELECT count(*) INTO told FROM both_;",
    ),
    "on conflict of a column": (
        "CREATE TABLE both_ (s encrypted_text UNIQUE)",
        f"{BOTH} ON CONFLICT (s) DO NOTHING; SELECT count(*) INTO told FROM both_;",
    ),
    "exclude, hash": (
        "CREATE TABLE both_ (s encrypted_text, EXCLUDE USING hash (s WITH =))",
        f"{BOTH}; told := 'done';",
    ),
    "exclude, btree": (
        "CREATE TABLE both_ (s encrypted_text, EXCLUDE (s WITH =))",
        f"{BOTH}; told := 'done';",
    ),
    "hash partitions": (
        # Salted: two values meet in one partition by chance, but not with each salt.
        "CREATE TABLE both_ (s encrypted_text, salt int) PARTITION BY HASH (s, salt);"
        + "".join(
            f"CREATE TABLE p{n} PARTITION OF both_ FOR VALUES WITH"
            f" (MODULUS 97, REMAINDER {n});"
            for n in range(97)
        ),
        "FOR n IN 1..4 LOOP INSERT INTO both_ VALUES (value, n), ({g}, n); END LOOP;"
        "SELECT max(n) INTO told FROM"
        " (SELECT count(DISTINCT tableoid) AS n FROM both_ GROUP BY salt) counted;",
    ),
    "list partitions": (
        "CREATE TABLE both_ (s encrypted_text) PARTITION BY LIST (s);"
        "CREATE TABLE p PARTITION OF both_ FOR VALUES IN ({g})",
        "INSERT INTO both_ VALUES (value); told := 'done';",
    ),
    "foreign key": (
        "CREATE TABLE one (s encrypted_text UNIQUE); INSERT INTO one VALUES ({g});"
        "CREATE TABLE both_ (s encrypted_text REFERENCES one (s))",
        "INSERT INTO both_ VALUES (value); told := 'done';",
    ),
    "check": (
        "CREATE TABLE both_ (s encrypted_text CHECK (s <> {g}))",
        "INSERT INTO both_ VALUES (value); told := 'done';",
    ),
    "trigger's condition": (
        "CREATE TABLE both_ (s encrypted_text);"
        "CREATE FUNCTION fires() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM hear('fired'); RETURN NULL; END $$;"
        "CREATE TRIGGER t AFTER INSERT ON both_ FOR EACH ROW WHEN (NEW.s = {g})"
        " EXECUTE FUNCTION fires()",
        "INSERT INTO both_ VALUES (value); told := 'done';",
    ),
    "index inside": (
        "CREATE TABLE both_ (s encrypted_text)",
        f"{BOTH}; EXECUTE 'CREATE UNIQUE INDEX ON both_ (s)'; told := 'done';",
    ),
    "constraint inside": (
        "CREATE TABLE both_ (s encrypted_text)",
        f"{BOTH}; EXECUTE 'ALTER TABLE both_ ADD UNIQUE (s)'; told := 'done';",
    ),
    "REINDEX inside": (
        "CREATE TABLE both_ (s encrypted_text); CREATE INDEX i ON both_ (s)",
        f"{BOTH}; EXECUTE 'REINDEX TABLE both_'; told := 'done';",
    ),
    "CLUSTER inside": (
        "CREATE TABLE both_ (n serial, s encrypted_text);",
        "INSERT INTO both_ (s) VALUES ({g}), (value), ({g});"
        "EXECUTE 'CREATE INDEX i ON both_ (s, n)'; EXECUTE 'CLUSTER both_ USING i';"
        "SELECT string_agg(n::text, ',' ORDER BY ctid) INTO told FROM both_;",
    ),
    "ANALYZE inside": (
        "CREATE TABLE both_ (s encrypted_text)",
        f"{BOTH}; ANALYZE both_; SELECT n_distinct INTO told FROM pg_stats"
        " WHERE tablename = 'both_' AND schemaname = current_schema;",
    ),
    "statistics inside": (
        "CREATE TABLE both_ (s encrypted_text, n int);"
        "CREATE STATISTICS x (ndistinct) ON s, n FROM both_",
        "INSERT INTO both_ VALUES (value, 1), ({g}, 1);"
        "ANALYZE both_; SELECT n_distinct INTO told FROM pg_stats_ext"
        " WHERE statistics_name = 'x' AND statistics_schemaname = current_schema;",
    ),
}

ATTACKED = {"ANALYZE": ["ANALYZE own"], "REINDEX": ["REINDEX TABLE own"]}


def attack(
    host: Cluster, path: str, owner: str, name: str, guess: str, by: list[str]
) -> list[str]:
    """What is told to the owner, without the ciphertext."""
    prepared, body = ATTACKS[name]
    prepared, body = (text.replace("{g}", f"'{guess}'") for text in (prepared, body))
    schema = f"{path}_{next(numbers)}"
    with connect(host, path) as session:
        session.execute(
            f"CREATE SCHEMA {schema} AUTHORIZATION {owner};"
            f"SET search_path = {schema}, public"
        )
        try:
            function = (
                "CREATE OR REPLACE FUNCTION attack(value encrypted_text) RETURNS text"
                " LANGUAGE plpgsql AS $f$ DECLARE told text; BEGIN {} RETURN told;"
                " EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE || ' ' || SQLERRM;"
                " END $f$"
            )
            with connect(host, schema, owner) as role:
                execute_all(role, *OWN[:-1], function.format(""))
                execute_all(
                    role,
                    "CREATE OR REPLACE FUNCTION tells(value encrypted_text) RETURNS int"
                    " LANGUAGE plpgsql IMMUTABLE SET search_path FROM CURRENT AS"
                    " 'BEGIN PERFORM hear(attack(value)); RETURN 1; END'",
                    INDEX,
                    OWN[-1],
                    *([prepared] if prepared else []),
                    function.replace("{}", body),
                    "DELETE FROM heard",
                )
            execute_all(session, *by)
            heard = texts(session, "SELECT coalesce(what, 'nothing') FROM heard")
        finally:
            session.execute(
                f"SET client_min_messages = warning; DROP SCHEMA {schema} CASCADE"
            )
    return [TOKEN.sub("TOKEN", what) for what in heard]


# What an owner who sees everything may not do either; what tells nobody anything.
DENIED_TO_ALL = {
    *("pg_dump", "pg_dump of plaintext", "SET", "set_config", "RESET"),
    *("SET on a function", "ALTER ROLE SET", "SET ROLE", "SESSION AUTHORIZATION"),
    *("support function", "unique, deferred", "REINDEX inside", "row <"),
    # Whose mode the check has is not known.
    "foreign key",
}


@pytest.mark.parametrize("by", ATTACKED)
@pytest.mark.parametrize("name", ATTACKS)
@every_strict_owner
def test_an_owner_learns_nothing_by_what_others_run_for_him(
    host: Cluster, path: str, owner: str, name: str, by: str
) -> None:
    if (name, by) == ("array <=", "ANALYZE"):
        pytest.skip("without tags, sealed values have an order of their own there")
    right = attack(host, path, owner, name, WORD, ATTACKED[by])
    wrong = attack(host, path, owner, name, WRONG, ATTACKED[by])
    assert right and right == wrong
    assert WORD not in str(right)
    # Nor has he changed what his sessions begin with.
    config = host.psql(f"SELECT rolconfig FROM pg_roles WHERE rolname = '{owner}'")
    assert config == f"{{colcrypt.access={MODES[owner]}}}"


@pytest.mark.parametrize(
    "name", [name for name in ATTACKS if name not in DENIED_TO_ALL]
)
def test_an_owner_who_sees_everything_learns_it(
    host: Cluster, path: str, name: str
) -> None:
    """What the test above asks can be answered, by one way or the other."""
    by = [statement for way in ATTACKED.values() for statement in way]
    right = attack(host, path, "normal", name, WORD, by)
    wrong = attack(host, path, "normal", name, WRONG, by)
    assert right != wrong or any(WORD in what for what in right) or name == "length"


@pytest.mark.parametrize("name", ["=", "cast", "count distinct", "decrypt"])
@every_strict_owner
def test_what_the_session_has_run_unrestricted_before_does_not_help(
    host: Cluster, path: str, owner: str, name: str
) -> None:
    """Expressions, plans and tags that the session remembers are of another mode."""
    by = [
        "BEGIN",
        "CREATE FUNCTION mine(encrypted_text) RETURNS text LANGUAGE plpgsql AS"
        " 'BEGIN RETURN attack($1); END'",
        "SELECT mine(secret), mine(secret) FROM own",
        "REINDEX TABLE own",
        "SELECT mine(secret) FROM own",
        "ANALYZE own",
        "COMMIT",
    ]
    right = attack(host, path, owner, name, WORD, by)
    wrong = attack(host, path, owner, name, WRONG, by)
    assert len(right) == 2 and right == wrong and WORD not in str(right)


def test_the_session_goes_on_as_it_was(
    host: Cluster, path: str, session: psycopg.Connection
) -> None:
    """After the owner's function has failed, or what called it."""
    with connect(host, path, "masked") as role:
        execute_all(
            role,
            *OWN,
            "CREATE FUNCTION fails(encrypted_text) RETURNS text LANGUAGE plpgsql"
            " IMMUTABLE AS 'BEGIN RETURN public.decrypt($1); END'",
        )
    with pytest.raises(InsufficientPrivilege):
        session.execute("CREATE INDEX ON own (fails(secret))")
    assert texts(session, f"SELECT secret FROM own WHERE secret = '{WORD}'")
    session.execute("BEGIN; SAVEPOINT a")
    with pytest.raises(InsufficientPrivilege):
        session.execute("CREATE INDEX ON own (fails(secret))")
    session.execute("ROLLBACK TO a")
    assert texts(session, f"SELECT secret FROM own WHERE secret = '{WORD}'")
    execute_all(session, "CREATE UNIQUE INDEX u ON own (secret)", "COMMIT")
    session.execute("SET enable_seqscan = off")
    found = f"SELECT decrypt(secret) FROM own WHERE secret = '{WORD}'"
    assert texts(session, found) == [WORD]


# Statistics, order and constraints that others' work makes of the owner's own rows


def told_by_statistics(
    host: Cluster, path: str, owner: str, kinds: str, guess: str
) -> list[str]:
    """What the owner reads in the catalogs when the superuser has analyzed a table
    that holds the value and a guess."""
    with connect(host, path, owner) as role, connect(host, path) as session:
        execute_all(
            role,
            "DROP TABLE IF EXISTS own",
            "CREATE TABLE own (n int, secret encrypted_text)",
            "INSERT INTO own SELECT i % 2, secret FROM vault, generate_series(1, 9) i",
            f"INSERT INTO own SELECT i % 2, '{guess}' FROM generate_series(1, 9) i",
            f"CREATE STATISTICS x ({kinds}) ON n, secret FROM own" if kinds else "",
        )
        session.execute("ANALYZE own")
        told = "SELECT n_distinct::text FROM pg_stats WHERE schemaname = %s"
        told += " AND attname = 'secret' UNION ALL SELECT concat(n_distinct,"
        told += " dependencies, most_common_freqs, most_common_base_freqs)"
        told += " FROM pg_stats_ext WHERE schemaname = %s"
        return [text for (text,) in role.execute(told, [path, path]).fetchall()]


EXTENDED = ("ndistinct", "dependencies", "mcv")


@pytest.mark.parametrize(
    ("owner", "kinds"),
    [
        *((owner, kinds) for owner in OWNERS for kinds in ("", *EXTENDED)),
    ],
)
def test_statistics_of_own_rows_do_not_test_guesses(
    host: Cluster, path: str, owner: str, kinds: str
) -> None:
    right = told_by_statistics(host, path, owner, kinds, WORD)
    wrong = told_by_statistics(host, path, owner, kinds, WRONG)
    assert right and (right == wrong) == (owner != "normal")


@every_strict_owner
@pytest.mark.xfail(
    strict=True,
    reason="rows lie in the order of tags where somebody who may compare sorts them",
)
def test_the_order_in_which_others_store_rows_does_not_test_guesses(
    host: Cluster, path: str, owner: str
) -> None:
    """After a REINDEX of an index that the owner could not build, the superuser runs
    CLUSTER. Equal values, made to alternate, then alternate."""

    def order(guess: str) -> list[str]:
        with connect(host, path, owner) as role, connect(host, path) as session:
            execute_all(
                role,
                "DROP TABLE IF EXISTS own",
                "CREATE TABLE own (n int, secret encrypted_text)",
                f"INSERT INTO own VALUES (1, '{guess}')",
                "INSERT INTO own SELECT 2, secret FROM vault",
                f"INSERT INTO own VALUES (3, '{guess}')",
            )
            with pytest.raises(InsufficientPrivilege):
                role.execute("CREATE INDEX CONCURRENTLY i ON own (secret)")
            session.execute("REINDEX TABLE own")
            role.execute("ALTER TABLE own CLUSTER ON i")
            session.execute("CLUSTER own")
            return texts(role, "SELECT n FROM own ORDER BY ctid")

    assert order(WORD) == order(WRONG)


@every_strict_owner
@pytest.mark.xfail(
    strict=True,
    reason="whether a unique index can be built tells whether two values are equal",
)
def test_a_unique_index_that_others_build_does_not_test_guesses(
    host: Cluster, path: str, owner: str
) -> None:
    def built(guess: str) -> list[str]:
        with connect(host, path, owner) as role, connect(host, path) as session:
            execute_all(
                role,
                "DROP TABLE IF EXISTS own",
                "CREATE TABLE own (secret encrypted_text)",
                "INSERT INTO own SELECT secret FROM vault",
                f"INSERT INTO own VALUES ('{guess}')",
            )
            with pytest.raises(InsufficientPrivilege):
                role.execute("CREATE UNIQUE INDEX CONCURRENTLY i ON own (secret)")
            try:
                session.execute("REINDEX TABLE own")
            except psycopg.errors.UniqueViolation:
                pass
            return texts(
                role,
                "SELECT indisvalid::text FROM pg_index"
                " WHERE indrelid = 'own'::regclass",
            )

    assert built(WORD) == built(WRONG)


# Others who are at work inside


def told_by(host: Cluster, path: str, owner: str, body: str, *others: str) -> list[str]:
    """What an owner is told by the superuser's ANALYZE when his function calls what
    `others` is: statements of the superuser."""
    ATTACKS["at hand"] = ("", body)
    with connect(host, path) as session:
        execute_all(session, *others)
    return attack(host, path, owner, "at hand", WORD, ["ANALYZE own"])


@pytest.mark.parametrize("definer", [SUPERUSER, "stranger"])
@every_strict_owner
@pytest.mark.xfail(
    strict=True,
    reason="a function with its definer's rights has its definer's mode there",
)
def test_a_function_with_the_rights_of_another_does_not_help(
    host: Cluster, path: str, owner: str, definer: str
) -> None:
    """In the owner's own session it shows the mask."""
    function = (
        f"CREATE FUNCTION {path}.opens(encrypted_text) RETURNS text LANGUAGE plpgsql"
        " SECURITY DEFINER AS 'BEGIN RETURN $1::text; END';"
        f"ALTER FUNCTION {path}.opens OWNER TO {definer}"
    )
    told = told_by(host, path, owner, f"told := {path}.opens(value);", function)
    with connect(host, path, owner) as role:
        own = texts(role, "SELECT opens(secret) FROM vault")
    assert [TOKEN.sub("TOKEN", text) for text in own] == told


@every_strict_owner
def test_a_function_with_the_rights_of_another_of_the_kind_does_not_help(
    host: Cluster, path: str, owner: str
) -> None:
    function = (
        f"CREATE FUNCTION {path}.opens(encrypted_text) RETURNS text LANGUAGE plpgsql"
        " SECURITY DEFINER AS 'BEGIN RETURN $1::text; END';"
        f"ALTER FUNCTION {path}.opens OWNER TO masked"
    )
    told = told_by(host, path, owner, f"told := {path}.opens(value);", function)
    assert told == [MASK]


@every_strict_owner
def test_a_foreign_key_to_the_table_of_another_does_not_test_guesses(
    host: Cluster, path: str, owner: str
) -> None:
    """In the owner's own session it is refused."""
    with connect(host, path) as session:
        execute_all(
            session,
            "CREATE TABLE pins (secret encrypted_text PRIMARY KEY)",
            "INSERT INTO pins SELECT secret FROM vault",
            "GRANT REFERENCES ON pins TO PUBLIC",
        )
    with connect(host, path, owner) as role:
        role.execute("CREATE TABLE guessed (secret encrypted_text REFERENCES pins)")
        role.execute("GRANT ALL ON guessed TO PUBLIC")
        with pytest.raises(InsufficientPrivilege):
            role.execute(f"INSERT INTO guessed VALUES ('{WORD}')")
    body = f"INSERT INTO {path}.guessed VALUES ('{{g}}'); told := 'there';"
    right = told_by(host, path, owner, body.replace("{g}", WORD))
    wrong = told_by(host, path, owner, body.replace("{g}", WRONG))
    assert right == wrong


@pytest.mark.xfail(
    strict=True,
    reason="what a masked role makes in the name of a role that is not, is that role's",
)
def test_a_masked_member_of_an_owner_learns_nothing(
    host: Cluster, path: str, session: psycopg.Connection
) -> None:
    """Owners are often groups, which nobody can log in as and nobody has masked."""
    role_name = f"masked_member_{next(numbers)}"
    session.execute(
        f"CREATE ROLE team_{role_name}; CREATE ROLE {role_name} LOGIN IN ROLE"
        f" team_{role_name}; ALTER ROLE {role_name} SET colcrypt.access = 'masked';"
        f"GRANT ALL ON SCHEMA {path} TO team_{role_name}"
    )
    try:
        with connect(host, path, role_name) as role:
            execute_all(
                role,
                f"SET ROLE team_{role_name}",
                "CREATE MATERIALIZED VIEW m AS SELECT secret::text AS shown FROM vault",
            )
            session.execute("REFRESH MATERIALIZED VIEW m")
            assert texts(role, "SELECT shown FROM m") == [MASK]
    finally:
        for name in (role_name, f"team_{role_name}"):
            session.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


@pytest.mark.parametrize("owner", [*OWNERS])
def test_an_owner_does_not_bring_ciphertext_in_by_what_others_run_for_him(
    host: Cluster, path: str, owner: str
) -> None:
    with connect(host, path) as session:
        token = fetch(session, "SELECT ciphertext(secret) FROM vault")
    taken = (
        "PERFORM set_config('application_name', 'pg_restore', false);"
        f"told := length(('{token[:14]}' || '{token[14:]}')"
        "::text::encrypted_text::text)"
    )
    [told] = told_by(host, path, owner, f"{taken};")
    assert told.startswith("22P02"), told


# Where the library is not preloaded: what the first statement of a session is


FIRST = {
    "count distinct": "SELECT count(DISTINCT s)::text AS told FROM both_",
    "sort": "SELECT string_agg(n::text, ',') AS told FROM"
    " (SELECT n FROM both_ ORDER BY s, n) q",
    "group": "SELECT count(*)::text AS told FROM (SELECT FROM both_ GROUP BY s) q",
    "join": "SELECT count(*)::text AS told FROM both_ a JOIN both_ b USING (s)",
    "cast": "SELECT min(s::text) AS told FROM both_",
}


@pytest.mark.parametrize(
    ("name", "library"),
    [
        *((name, "host") for name in FIRST),
        *((name, "lazy") for name in FIRST),
    ],
)
@every_strict_owner
def test_the_first_statement_of_a_session_tells_an_owner_nothing(
    request: pytest.FixtureRequest, owner: str, name: str, library: str
) -> None:
    """The superuser refreshes a view, and does nothing else."""
    cluster: Cluster = request.getfixturevalue(library)
    db = f"first_{next(numbers)}"

    def told(guess: str) -> list[str]:
        cluster.psql(f"CREATE DATABASE {db} TEMPLATE copied")
        try:
            with cluster.connect(dbname=db, user=owner) as role:
                execute_all(
                    role,
                    "CREATE TABLE both_ (n int, s encrypted_text)",
                    f"INSERT INTO both_ VALUES (1, '{guess}')",
                    "INSERT INTO both_ SELECT 2, secret FROM vault",
                    f"INSERT INTO both_ VALUES (3, '{guess}')",
                    f"CREATE MATERIALIZED VIEW m AS {FIRST[name]} WITH NO DATA",
                )
            try:
                cluster.psql("REFRESH MATERIALIZED VIEW m", db=db)
            except PsqlError as error:
                return [str(error)]
            return cluster.psql("SELECT left(told, 12) FROM m", db=db).split("\n")
        finally:
            cluster.psql(f"DROP DATABASE {db} WITH (FORCE)")

    right, wrong = told(WORD), told(WRONG)
    assert right == wrong and WORD not in str(right)


@pytest.mark.parametrize("library", ["lazy", "host"])
def test_autovacuum_of_a_table_without_encrypted_columns_tells_nothing(
    request: pytest.FixtureRequest, library: str
) -> None:
    """Its index's function is what first meets an encrypted value."""
    cluster: Cluster = request.getfixturevalue(library)
    db = f"vacuumed_{next(numbers)}"
    cluster.psql(f"CREATE DATABASE {db} TEMPLATE copied")
    guesses = {"s_right": WORD, "s_wrong": WRONG}
    try:
        for schema, guess in guesses.items():
            cluster.psql(f"CREATE SCHEMA {schema} AUTHORIZATION masked", db=db)
            with connect(cluster, schema, "masked", db) as role:
                execute_all(
                    role,
                    *OWN[1:3],
                    "CREATE TABLE both_ (n int, s encrypted_text)",
                    f"INSERT INTO both_ VALUES (1, '{guess}'), (3, '{guess}')",
                    "INSERT INTO both_ SELECT n, secret FROM vault,"
                    " (VALUES (2), (4)) v(n)",
                    "ALTER TABLE both_ SET (autovacuum_enabled = off)",
                    "CREATE TABLE own (n int)",
                    "CREATE FUNCTION tells(int) RETURNS int LANGUAGE plpgsql IMMUTABLE"
                    " SET search_path FROM CURRENT AS $$ BEGIN PERFORM hear(("
                    f"{FIRST['sort']})); RETURN 1; EXCEPTION WHEN"
                    " insufficient_privilege THEN PERFORM hear('refused'); RETURN 1;"
                    " END $$",
                    "CREATE INDEX ON own (tells(n))",
                    "ALTER TABLE own SET (autovacuum_analyze_threshold = 0,"
                    " autovacuum_analyze_scale_factor = 0)",
                    "INSERT INTO own VALUES (1)",
                    "DELETE FROM heard",
                )
        cluster.conf(autovacuum=True)
        cluster.reload()
        with cluster.connect(dbname=db) as session:
            for schema in guesses:
                heard = f"SELECT what FROM {schema}.heard"
                wait_until(lambda: bool(texts(session, heard)), "autovacuum")
                # By the bytes, the two copies lie beside each other.
                assert "1,2,3,4" not in texts(session, heard)
    finally:
        cluster.conf(autovacuum=False)
        cluster.reload()
        cluster.psql(f"DROP DATABASE {db} WITH (FORCE)")


# What has to go on

KEPT = {
    "btree": "CREATE INDEX b ON own (secret)",
    "hash": "CREATE INDEX b ON own USING hash (secret)",
    "unique": "CREATE UNIQUE INDEX b ON own (secret)",
    "two columns": "CREATE INDEX b ON own (secret DESC, id)",
}

UPKEEP = {
    "rotate_column": ["SELECT rotate_column('own', 'secret')"],
    "REINDEX": ["REINDEX TABLE own"],
    "REINDEX CONCURRENTLY": ["REINDEX TABLE CONCURRENTLY own"],
    "VACUUM FULL": ["VACUUM FULL own"],
    "VACUUM ANALYZE": ["DELETE FROM own WHERE id > 80", "VACUUM (ANALYZE) own"],
    "CLUSTER": ["CLUSTER own USING own_pkey"],
    "CREATE UNIQUE INDEX": ["CREATE UNIQUE INDEX ON own (secret)"],
    "CREATE INDEX CONCURRENTLY": [
        "CREATE UNIQUE INDEX CONCURRENTLY ON own (secret)",
        "CREATE INDEX CONCURRENTLY ON own USING hash (secret)",
    ],
    "UNIQUE": ["ALTER TABLE own ADD UNIQUE (secret)"],
    "ALTER TYPE": ["ALTER TABLE own ALTER id TYPE bigint"],
    "key_usage": ["SELECT * FROM colcrypt.key_usage('own', 'secret')"],
    "DO": [
        "DO $$ BEGIN REINDEX TABLE own; PERFORM rotate_column('own', 'secret');"
        " CREATE UNIQUE INDEX ON own (secret); CLUSTER own USING own_pkey; END $$"
    ],
    "function": [
        "CREATE FUNCTION does() RETURNS void LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM rotate_column('own', 'secret'); EXECUTE 'REINDEX INDEX b'; BEGIN"
        " PERFORM 1 / 0; EXCEPTION WHEN division_by_zero THEN REINDEX TABLE own; END;"
        " END $$",
        "SELECT does()",
    ],
    "one transaction": [
        "BEGIN",
        "SELECT rotate_column('own', 'secret')",
        "SAVEPOINT a",
        "REINDEX TABLE own",
        "ROLLBACK TO a",
        "REINDEX TABLE own",
        "COMMIT",
    ],
}


def make_own(host: Cluster, path: str, owner: str, index: str, type: str) -> None:
    """A table of a hundred values, that belongs to the owner."""
    with connect(host, path) as session:
        execute_all(
            session,
            "SET colcrypt.algorithm = 'aes-256-gcm'",
            f"CREATE TABLE own (id int PRIMARY KEY, secret {type})",
            "INSERT INTO own SELECT i, 'v' || i FROM generate_series(1, 100) i",
            index,
            f"ALTER TABLE own OWNER TO {owner}",
        )


def assert_in_order(session: psycopg.Connection) -> None:
    """Every index finds what is there, and only that."""
    execute_all(session, "SET enable_seqscan = off; SET enable_sort = off")
    values = set(texts(session, "SELECT decrypt(secret) FROM own"))
    assert values >= {f"v{i}" for i in range(1, 81)}
    found = "SELECT string_agg(id::text, ',') FROM own WHERE secret = %s"
    for i in (1, 17, 80):
        assert fetch(session, found, f"v{i}") == str(i)
    assert fetch(session, found, "v") is None
    arrays = "SELECT id::text FROM own"
    arrays += " WHERE ARRAY[secret] = ARRAY['v9'::encrypted_text]"
    assert texts(session, arrays) == ["9"]
    assert fetch(session, "SELECT bool_and(indisvalid) FROM pg_index") is True
    btrees = "SELECT count(bt_index_check(c.oid, true)) FROM pg_class c"
    btrees += " JOIN pg_index i ON i.indexrelid = c.oid JOIN pg_am a ON a.oid = relam"
    btrees += " WHERE amname = 'btree' AND indrelid = 'own'::regclass"
    session.execute("CREATE EXTENSION IF NOT EXISTS amcheck SCHEMA public")
    assert fetch(session, btrees) > 0


@pytest.mark.parametrize("maintainer", [SUPERUSER, "member"])
@pytest.mark.parametrize("name", UPKEEP)
@pytest.mark.parametrize("index", KEPT)
def test_indexes_of_a_masked_owner_are_kept_in_order(
    host: Cluster, path: str, index: str, name: str, maintainer: str
) -> None:
    make_own(host, path, "masked", KEPT[index], "encrypted_text")
    with connect(host, path, maintainer) as session:
        execute_all(session, *UPKEEP[name])
    with connect(host, path) as session:
        assert_in_order(session)
        if "rotate" in str(UPKEEP[name]):
            suites = "SELECT DISTINCT (colcrypt.inspect(secret)).suite FROM own"
            assert texts(session, suites) == ["xaes-256-gcm"]


@pytest.mark.parametrize("maintainer", [SUPERUSER, "member"])
@pytest.mark.parametrize(
    "name", ["rotate_column", "REINDEX", "VACUUM FULL", "CLUSTER", "DO"]
)
@pytest.mark.parametrize("expression", ["(ARRAY[secret])", "(row(secret, id)::pair)"])
@pytest.mark.xfail(
    strict=True,
    reason="an index of arrays or rows compares as a query does, and is refused",
)
def test_indexes_of_arrays_and_rows_are_kept_in_order(
    host: Cluster, path: str, expression: str, name: str, maintainer: str
) -> None:
    index = "CREATE TYPE pair AS (secret encrypted_text, id int);"
    index += f"CREATE INDEX b ON own ({expression})"
    make_own(host, path, "masked", index, "encrypted_text")
    with connect(host, path, maintainer) as session:
        execute_all(session, *UPKEEP[name])
    with connect(host, path) as session:
        assert_in_order(session)


def test_upkeep_in_parallel(
    host: Cluster, path: str, session: psycopg.Connection
) -> None:
    make_own(host, path, "masked", "SELECT", "encrypted_text")
    execute_all(
        session,
        "INSERT INTO own SELECT i, 'v' || i FROM generate_series(101, 3000) i",
        "ALTER TABLE own SET (parallel_workers = 2)",
        "SET min_parallel_table_scan_size = 0; SET maintenance_work_mem = '512MB'",
        "SET max_parallel_maintenance_workers = 2",
        "CREATE UNIQUE INDEX ON own (secret)",
        "REINDEX TABLE own",
    )
    assert_in_order(session)


@every_strict_owner
def test_a_superuser_who_takes_the_session_of_the_owner_shows_no_more(
    host: Cluster, path: str, session: psycopg.Connection, owner: str
) -> None:
    """As pg_restore --use-set-session-authorization does."""
    with connect(host, path, owner) as role:
        role.execute(
            "CREATE MATERIALIZED VIEW m AS SELECT secret::text AS shown FROM vault"
        )
    execute_all(
        session,
        f"SET SESSION AUTHORIZATION {owner}",
        "REFRESH MATERIALIZED VIEW m",
        "RESET SESSION AUTHORIZATION",
    )
    [shown] = texts(session, "SELECT shown FROM m")
    assert shown.startswith(OWNERS[owner])


@every_strict_owner
def test_a_table_of_such_an_owner_is_dumped_and_restored(
    host: Cluster, path: str, owner: str, tmp_path: Path
) -> None:
    make_own(host, path, owner, KEPT["unique"], "encrypted_text")
    with connect(host, path, owner) as role:
        role.execute("CREATE MATERIALIZED VIEW m AS SELECT secret::text FROM own")
    file = str(tmp_path / "dump")
    host.run("pg_dump", "-Fc", "-n", path, "-f", file, db="shared")
    host.psql(f"DROP SCHEMA {path} CASCADE", db="shared")
    host.run("pg_restore", "-d", "shared", "--exit-on-error", file)
    with connect(host, path) as session:
        assert_in_order(session)
        shown = texts(session, "SELECT DISTINCT left(secret, 8) FROM m")
        assert shown == [OWNERS[owner][:8]]


@pytest.mark.parametrize("way", ["refresh", "concurrently", "function", "definer"])
@pytest.mark.parametrize("maintainer", [SUPERUSER, "member"])
def test_the_view_of_an_owner_who_sees_everything_keeps_plaintext(
    host: Cluster, path: str, maintainer: str, way: str
) -> None:
    with connect(host, path, "normal") as role:
        execute_all(
            role,
            "CREATE MATERIALIZED VIEW m AS SELECT secret::text AS shown,"
            " count(*) FROM vault GROUP BY secret WITH NO DATA",
            "CREATE UNIQUE INDEX ON m (shown)",
            "CREATE FUNCTION does() RETURNS void LANGUAGE plpgsql"
            " AS 'BEGIN REFRESH MATERIALIZED VIEW m; END'",
            "REFRESH MATERIALIZED VIEW m" if way == "concurrently" else "",
            "ALTER FUNCTION does() SECURITY DEFINER" if way == "definer" else "",
        )
    statement = {
        "refresh": "REFRESH MATERIALIZED VIEW m",
        "concurrently": "REFRESH MATERIALIZED VIEW CONCURRENTLY m",
    }.get(way, "SELECT does()")
    with connect(host, path, maintainer) as session:
        session.execute(statement)
        assert texts(session, "SELECT shown FROM m") == [WORD]


# Keys with grants


@pytest.fixture
def keyed(host: Cluster, session: psycopg.Connection) -> Iterator[str]:
    """A key that is granted to the owners, and to `member`; in a database of its own,
    for it changes what everybody may compare."""
    db = f"keyed_{next(numbers)}"
    host.psql(f"CREATE DATABASE {db} TEMPLATE copied")
    host.psql(
        "SELECT colcrypt.create_key('pii');"
        "SELECT colcrypt.grant_key('pii', r) FROM (VALUES ('masked'::regrole),"
        " ('cipher'), ('member')) v(r);"
        "CREATE TABLE keyed (secret encrypted_text(pii));"
        f"INSERT INTO keyed VALUES ('{WORD}'); GRANT SELECT ON keyed TO PUBLIC",
        db=db,
    )
    yield db
    host.psql(f"DROP DATABASE {db} WITH (FORCE)")


@pytest.mark.parametrize("maintainer", [SUPERUSER, "member"])
@every_owner
def test_a_grant_does_not_unmask_and_full_access_is_no_grant(
    host: Cluster, keyed: str, owner: str, maintainer: str
) -> None:
    with connect(host, "public", owner, keyed) as role:
        role.execute("CREATE MATERIALIZED VIEW m AS SELECT secret::text FROM keyed")
    with connect(host, "public", maintainer, keyed) as session:
        session.execute("REFRESH MATERIALIZED VIEW m")
    shown = host.psql("SELECT secret FROM m", db=keyed)
    # `normal` has no grant.
    assert shown.startswith(PREFIX if owner == "cipher" else MASK)


@pytest.mark.parametrize("index", KEPT)
@pytest.mark.parametrize(
    "name", [name for name in UPKEEP if name not in ("key_usage", "ALTER TYPE")]
)
def test_indexes_of_values_under_granted_keys_are_kept_in_order(
    host: Cluster, keyed: str, index: str, name: str
) -> None:
    host.psql("GRANT ALL ON SCHEMA public TO PUBLIC", db=keyed)
    with host.connect(dbname=keyed, prepare_threshold=None) as session:
        execute_all(
            session,
            "CREATE TABLE own (id int PRIMARY KEY, secret encrypted_text(pii))",
            "INSERT INTO own SELECT i, 'v' || i FROM generate_series(1, 100) i",
            KEPT[index],
            "ALTER TABLE own OWNER TO masked",
            "SELECT colcrypt.rotate_key('pii')",
            *UPKEEP[name],
        )
        assert_in_order(session)
