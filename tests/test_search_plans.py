"""A condition on an encrypted column uses its index, however a client writes it.

The table is large enough for the planner to choose the index by cost: nothing here
sets enable_*.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from harness import SUPERUSER, Cluster, Database, fetch

# Each value v0, v1, … is in two rows. current_user's name is in one.
VALUES = 10_000
SETUP = f"""
    CREATE TABLE people (id int, secret encrypted_text);
    INSERT INTO people SELECT i, 'v' || i % {VALUES} FROM generate_series(0, {2 * VALUES - 1}) i;
    INSERT INTO people VALUES ({2 * VALUES}, '{SUPERUSER}');
    INSERT INTO people SELECT {2 * VALUES} + i, NULL FROM generate_series(1, 100) i;
    CREATE TABLE probe (sealed encrypted_text, word text, short varchar(9), role name);
    INSERT INTO probe SELECT v, v, v, v FROM unnest('{{v7,v8,absent,NULL}}'::text[]) v;
    CREATE FUNCTION of_argument(text) RETURNS SETOF int LANGUAGE sql STABLE
        AS 'SELECT id FROM people WHERE secret = $1';
"""


def holders(*values: str) -> list[int]:
    """The rows that hold the values."""
    numbers = sorted(int(value[1:]) for value in values)
    return numbers + [VALUES + number for number in numbers]


@pytest.fixture(scope="module", params=["btree", "hash"])
def method(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def people(server: Cluster, method: str) -> Iterator[Database]:
    db = Database(server, f"plans_{method}")
    server.psql(f"CREATE DATABASE {db.name} TEMPLATE with_colcrypt")
    db.psql(SETUP + f"CREATE INDEX people_secret ON people USING {method} (secret)")
    db.psql("VACUUM ANALYZE")
    yield db
    server.psql(f"DROP DATABASE {db.name}")


@pytest.fixture
def session(people: Database) -> Iterator[psycopg.Connection]:
    with people.connect() as session:
        yield session


@pytest.fixture(params=["force_custom_plan", "force_generic_plan"])
def mode(request: pytest.FixtureRequest, session: psycopg.Connection) -> str:
    session.execute(f"SET plan_cache_mode = {request.param}")
    return request.param


def index_scans(session: psycopg.Connection, query: str) -> set[str]:
    """The ways in which the query's plan looks up keys in the index of `people`."""
    plan = fetch(session, f"EXPLAIN (FORMAT JSON) {query}")
    return {
        node["Node Type"]
        for node in nodes(plan[0]["Plan"])
        if node.get("Index Name") == "people_secret" and "secret" in node["Index Cond"]
    }


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def ids(session: psycopg.Connection, query: str) -> list[int]:
    return sorted(row[0] for row in session.execute(query).fetchall())


V7 = holders("v7")
BOTH = holders("v7", "v8")
OWN = [2 * VALUES]

# The condition, the arguments of EXECUTE if there are parameters, and what is found.
CONDITIONS = [
    ("secret = 'v7'", "", V7),
    ("'v7' = secret", "", V7),
    ("secret = 'v7'::text", "", V7),
    ("secret = 'v7'::char(9)", "", V7),
    ("secret = $1", "('v7')", V7),
    ("secret = $1::encrypted_text", "('v7')", V7),
    ("secret = $1::text", "('v7')", V7),
    ("secret = $1::varchar", "('v7')", V7),
    ("secret = $1::varchar(5)", "('v7')", V7),
    ("secret = $1::char(5)", "('v7')", V7),
    ("secret = $1::name", "('v7')", V7),
    ("$1 = secret", "('v7')", V7),
    ("$1::text = secret", "('v7')", V7),
    ("$1::varchar = secret", "('v7')", V7),
    ("$1::name = secret", "('v7')", V7),
    ("secret = lower($1)", "('V7')", V7),
    ("secret = (SELECT word FROM probe WHERE word = $1)", "('v7')", V7),
    ("secret = (SELECT sealed FROM probe WHERE word = $1)", "('v7')", V7),
    ("secret IN ('v7', 'v8')", "", BOTH),
    ("secret IN ('v7'::text, 'v8')", "", BOTH),
    ("secret IN ($1, $2)", "('v7', 'v8')", BOTH),
    ("secret IN ($1::text, $2)", "('v7', 'v8')", BOTH),
    ("secret IN ($1::varchar, $2::varchar)", "('v7', 'v8')", BOTH),
    ("secret = $1 OR secret = $2::text", "('v7', 'v8')", BOTH),
    ("secret = ANY ('{v7,v8}')", "", BOTH),
    ("secret = ANY ('{v7,v8,NULL}'::text[])", "", BOTH),
    ("secret = ANY (ARRAY['v7', 'v8'])", "", BOTH),
    ("secret = ANY ($1)", "('{v7,v8}')", BOTH),
    ("secret = ANY ($1::encrypted_text[])", "('{v7,v8,NULL}')", BOTH),
    ("secret = ANY ($1::text[])", "('{v7,v8}')", BOTH),
    ("secret = ANY ($1::varchar[])", "('{v7,v8}')", BOTH),
    ("secret = current_user", "", OWN),
    ("current_user = secret", "", OWN),
    ("secret = session_user::text", "", OWN),
    ("(secret, id) = ($1, 7)", "('v7')", [7]),
]


@pytest.mark.parametrize(
    "condition, arguments, found", CONDITIONS, ids=[case[0] for case in CONDITIONS]
)
def test_a_condition_uses_the_index(
    session: psycopg.Connection,
    mode: str,
    condition: str,
    arguments: str,
    found: list[int],
) -> None:
    session.execute(f"PREPARE q AS SELECT id FROM people WHERE {condition}")
    execute = f"EXECUTE q{arguments}"
    assert index_scans(session, execute)
    assert ids(session, execute) == found
    if arguments:
        made = "SELECT generic_plans, custom_plans FROM pg_prepared_statements"
        custom = mode == "force_custom_plan"
        assert session.execute(made).fetchall() == [(0, 2) if custom else (2, 0)]


@pytest.mark.parametrize(
    "condition",
    [
        f"{left} = {right}"
        for column in ("sealed", "word", "short", "role")
        for left, right in [("p.secret", column), (column, "p.secret")]
    ],
)
@pytest.mark.parametrize(
    "query",
    [
        "SELECT id FROM probe JOIN people p ON {}",
        "SELECT id FROM probe LEFT JOIN people p ON {} WHERE id IS NOT NULL",
        "SELECT found.id FROM probe, LATERAL (SELECT id FROM people p WHERE {}) found",
    ],
    ids=["join", "left join", "lateral"],
)
def test_a_join_looks_rows_up_in_the_index(
    session: psycopg.Connection, query: str, condition: str
) -> None:
    query = query.format(condition)
    assert index_scans(session, query)
    assert ids(session, query) == BOTH


def test_a_join_of_two_encrypted_columns_uses_the_index_on_either_side(
    session: psycopg.Connection,
) -> None:
    # Only one of the two can lead the nested loop: the one that is narrowed down.
    for one, other in (("a", "b"), ("b", "a")):
        query = (
            "SELECT a.id FROM people a JOIN people b ON a.secret = b.secret"
            f" WHERE {one}.id = 7 AND {other}.id <> 7"
        )
        assert index_scans(session, query)
        assert ids(session, query) == [7 if one == "a" else VALUES + 7]


@pytest.mark.parametrize("column", ["sealed", "word"])
def test_a_text_index_serves_a_join_that_casts_to_text(
    session: psycopg.Connection, column: str
) -> None:
    with session.transaction(force_rollback=True):
        session.execute(
            "CREATE TEMP TABLE words AS SELECT id, 'v' || id AS word FROM people"
        )
        session.execute("CREATE INDEX word ON words (word)")
        session.execute("ANALYZE words")
        query = f"SELECT id FROM probe JOIN words ON words.word = probe.{column}::text"
        plan = fetch(session, f"EXPLAIN (FORMAT JSON) {query}")
        assert any(node.get("Index Name") == "word" for node in nodes(plan[0]["Plan"]))
        assert ids(session, query) == [7, 8]


@pytest.mark.parametrize("argument", ["'v7'", "'v7'::text", "$1"])
def test_an_index_only_scan_gives_the_value_from_a_btree(
    session: psycopg.Connection, method: str, argument: str
) -> None:
    session.execute(f"PREPARE q AS SELECT secret FROM people WHERE secret = {argument}")
    execute = "EXECUTE q" + ("('v7')" if argument == "$1" else "")
    scans = index_scans(session, execute)
    assert ("Index Only Scan" in scans) if method == "btree" else scans
    assert session.execute(execute).fetchall() == [("v7",), ("v7",)]


@pytest.mark.parametrize(
    "command",
    [
        "UPDATE people SET id = -id WHERE secret = $1 RETURNING -id",
        "DELETE FROM people WHERE secret = $1 RETURNING id",
        "SELECT id FROM people WHERE secret = $1 FOR UPDATE",
        "UPDATE people SET id = -id FROM probe"
        " WHERE secret = sealed AND word = $1 RETURNING -id",
    ],
)
@pytest.mark.parametrize("type", ["text", "encrypted_text"])
def test_a_writing_command_uses_the_index(
    session: psycopg.Connection, command: str, type: str
) -> None:
    with session.transaction(force_rollback=True):
        session.execute(f"PREPARE q ({type}) AS {command}")
        assert index_scans(session, "EXECUTE q('v7')")
        assert ids(session, "EXECUTE q('v7')") == V7


def test_a_condition_in_an_inlined_function_uses_the_index(
    session: psycopg.Connection,
) -> None:
    query = "SELECT * FROM of_argument('v7') AS id"
    assert index_scans(session, query)
    assert ids(session, query) == V7


def test_a_policy_that_compares_with_current_user_uses_the_index(
    people: Database, session: psycopg.Connection
) -> None:
    with session.transaction(force_rollback=True):
        session.execute(
            "CREATE ROLE v7; GRANT SELECT ON people TO v7;"
            "ALTER TABLE people ENABLE ROW LEVEL SECURITY;"
            "CREATE POLICY own ON people USING (secret = current_user)"
        )
        session.execute("SET LOCAL ROLE v7")
        assert index_scans(session, "SELECT id FROM people")
        assert ids(session, "SELECT id FROM people") == V7


# A driver that prepares on the server and binds.


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
@pytest.mark.parametrize(
    "condition, value, found",
    [
        ("secret = {}", "v7", V7),
        ("{} = secret", "v7", V7),
        ("secret = {}::text", "v7", V7),
        ("secret = {}::varchar", "v7", V7),
        ("secret = {}::encrypted_text", "v7", V7),
        ("secret = ANY ({})", ["v7", "v8"], BOTH),
        ("secret = ANY ({}::text[])", ["v7", "v8"], BOTH),
        ("secret = ANY ({}::encrypted_text[])", ["v7", "v8"], BOTH),
    ],
)
def test_psycopg_uses_the_index_with_bound_parameters(
    session: psycopg.Connection,
    condition: str,
    binary: bool,
    value: str | list[str],
    found: list[int],
) -> None:
    query = "SELECT id FROM people WHERE " + condition.format("%b" if binary else "%t")
    cursor = session.cursor(binary=binary)
    # More often than PostgreSQL makes custom plans before it considers a generic one.
    for _ in range(8):
        rows = cursor.execute(query, [value], prepare=True).fetchall()
        assert sorted(row[0] for row in rows) == found
    name, executions = session.execute(
        "SELECT name, generic_plans + custom_plans FROM pg_prepared_statements"
        " WHERE NOT from_sql AND statement LIKE 'SELECT id FROM people%'"
    ).fetchone()
    assert executions == 8
    argument = "'{v7,v8}'" if isinstance(value, list) else "'v7'"
    assert index_scans(session, f"EXECUTE {name}({argument})")
