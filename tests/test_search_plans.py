"""A condition on an encrypted column uses its index, however a client writes it.

The table is large enough for the planner to choose the index by cost: nothing here
sets enable_*.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from harness import SUPERUSER, Cluster, Database, fetch
from kinds import BYTEA, JSONB, KINDS, TEXT, Kind

# Each value v0, v1, … is in two rows. current_user's name is in one.
VALUES = 10_000
SETUP = """
    CREATE TABLE people (id int, secret {type});
    INSERT INTO people SELECT i, {value} FROM generate_series(0, {last}) i;
    INSERT INTO people VALUES ({last} + 1, {user});
    INSERT INTO people SELECT {last} + 1 + i, NULL FROM generate_series(1, 100) i;
    CREATE TABLE probe (sealed {type}, plain {plain}, word text);
    INSERT INTO probe SELECT v, v, word
        FROM unnest('{{v7,v8,absent,NULL}}'::text[]) word,
        LATERAL (SELECT CASE WHEN word IS NOT NULL THEN {of_word} END) AS o (v);
    CREATE FUNCTION of_argument({plain}) RETURNS SETOF int LANGUAGE sql STABLE
        AS 'SELECT id FROM people WHERE secret = $1';
"""
# What only text has.
TEXT_SETUP = """
    ALTER TABLE probe ADD short varchar(9), ADD role name;
    UPDATE probe SET short = plain, role = plain;
"""


def lit(kind: Kind, name: str) -> str:
    """The SQL literal of a value."""
    return kind.holding(name).literal


def array(kind: Kind, *names: str) -> str:
    """The SQL literal of an array of values, of which NULL is no value."""
    texts = [kind.holding(name).text for name in names if name != "NULL"]
    quoted = ['"' + re.sub(r'(["\\])', r"\\\1", text) + '"' for text in texts]
    nulls = ["NULL"] * names.count("NULL")
    return "'{" + ",".join(quoted + nulls) + "}'"


def holders(*values: str) -> list[int]:
    """The rows that hold the values."""
    numbers = sorted(int(value[1:]) for value in values)
    return numbers + [VALUES + number for number in numbers]


@pytest.fixture(
    scope="module",
    params=[(kind, method) for kind in KINDS for method in ("btree", "hash")],
    ids=lambda param: f"{param[0]}-{param[1]}",
)
def indexed(request: pytest.FixtureRequest) -> tuple[Kind, str]:
    return request.param


@pytest.fixture(scope="module")
def kind(indexed: tuple[Kind, str]) -> Kind:
    return indexed[0]


@pytest.fixture(scope="module")
def method(indexed: tuple[Kind, str]) -> str:
    return indexed[1]


@pytest.fixture(scope="module")
def people(server: Cluster, kind: Kind, method: str) -> Iterator[Database]:
    db = Database(server, f"plans_{kind}_{method}")
    server.psql(f"CREATE DATABASE {db.name} TEMPLATE with_colcrypt")
    setup = SETUP.format(
        type=kind.type,
        plain=kind.plain,
        value=kind.holding_sql(f"'v' || i % {VALUES}"),
        of_word=kind.holding_sql("word"),
        last=2 * VALUES - 1,
        user=lit(kind, SUPERUSER),
    )
    db.psql(setup + (TEXT_SETUP if kind is TEXT else ""))
    db.psql(f"CREATE INDEX people_secret ON people USING {method} (secret)")
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


def on_values(kind: Kind, template: str) -> str:
    """A query with the values of this kind in it."""
    return template.format(
        type=kind.type,
        plain=kind.plain,
        v7=lit(kind, "v7"),
        v8=lit(kind, "v8"),
        both=array(kind, "v7", "v8"),
        both_and_null=array(kind, "v7", "v8", "NULL"),
        of_word=kind.holding_sql("$1::text"),
        of_user=kind.holding_sql("current_user::text"),
    )


def with_index(kind: Kind) -> pytest.MarkDecorator:
    """For tests of what one kind has of its own."""
    both = [(kind, "btree"), (kind, "hash")]
    return pytest.mark.parametrize(
        "indexed", both, ids=["btree", "hash"], indirect=True, scope="module"
    )


def check_condition(
    session: psycopg.Connection,
    mode: str,
    condition: str,
    arguments: str,
    found: list[int],
) -> None:
    """The index is used for a condition, in a plan of this mode."""
    session.execute(f"PREPARE q AS SELECT id FROM people WHERE {condition}")
    execute = f"EXECUTE q{arguments}"
    assert index_scans(session, execute)
    assert ids(session, execute) == found
    if arguments:
        made = "SELECT generic_plans, custom_plans FROM pg_prepared_statements"
        custom = mode == "force_custom_plan"
        assert session.execute(made).fetchall() == [(0, 2) if custom else (2, 0)]


# The condition, the arguments of EXECUTE if there are parameters, and what is found.
CONDITIONS = [
    ("secret = {v7}", "", V7),
    ("{v7} = secret", "", V7),
    ("secret = {v7}::{plain}", "", V7),
    ("{v7}::{plain} = secret", "", V7),
    ("secret = {v7}::{type}", "", V7),
    ("secret = $1", "({v7})", V7),
    ("secret = $1::{type}", "({v7})", V7),
    ("secret = $1::{plain}", "({v7})", V7),
    ("$1 = secret", "({v7})", V7),
    ("$1::{plain} = secret", "({v7})", V7),
    ("secret = {of_word}", "('v7')", V7),
    ("secret = (SELECT plain FROM probe WHERE word = $1)", "('v7')", V7),
    ("secret = (SELECT sealed FROM probe WHERE word = $1)", "('v7')", V7),
    ("secret IN ({v7}, {v8})", "", BOTH),
    ("secret IN ({v7}::{plain}, {v8})", "", BOTH),
    ("secret IN ($1, $2)", "({v7}, {v8})", BOTH),
    ("secret IN ($1::{plain}, $2)", "({v7}, {v8})", BOTH),
    ("secret IN ($1::{plain}, $2::{plain})", "({v7}, {v8})", BOTH),
    ("secret = $1 OR secret = $2::{plain}", "({v7}, {v8})", BOTH),
    ("secret = ANY ({both})", "", BOTH),
    ("secret = ANY ({both_and_null}::{plain}[])", "", BOTH),
    ("secret = ANY (ARRAY[{v7}::{plain}, {v8}])", "", BOTH),
    ("secret = ANY ($1)", "({both})", BOTH),
    ("secret = ANY ($1::{type}[])", "({both_and_null})", BOTH),
    ("secret = ANY ($1::{plain}[])", "({both})", BOTH),
    ("secret = {of_user}", "", OWN),
    ("{of_user} = secret", "", OWN),
    ("(secret, id) = ($1, 7)", "({v7})", [7]),
]


@pytest.mark.parametrize(
    "condition, arguments, found", CONDITIONS, ids=[case[0] for case in CONDITIONS]
)
def test_a_condition_uses_the_index(
    session: psycopg.Connection,
    kind: Kind,
    mode: str,
    condition: str,
    arguments: str,
    found: list[int],
) -> None:
    condition, arguments = on_values(kind, condition), on_values(kind, arguments)
    check_condition(session, mode, condition, arguments, found)


TEXT_CONDITIONS = [
    ("secret = 'v7'::char(9)", "", V7),
    ("secret = $1::varchar", "('v7')", V7),
    ("secret = $1::varchar(5)", "('v7')", V7),
    ("secret = $1::char(5)", "('v7')", V7),
    ("secret = $1::name", "('v7')", V7),
    ("$1::varchar = secret", "('v7')", V7),
    ("$1::name = secret", "('v7')", V7),
    ("secret = lower($1)", "('V7')", V7),
    ("secret IN ($1::varchar, $2::varchar)", "('v7', 'v8')", BOTH),
    ("secret = ANY (ARRAY['v7', 'v8'])", "", BOTH),
    ("secret = ANY ($1::varchar[])", "('{v7,v8}')", BOTH),
    ("secret = current_user", "", OWN),
    ("current_user = secret", "", OWN),
    ("secret = session_user::text", "", OWN),
]


@with_index(TEXT)
@pytest.mark.parametrize(
    "condition, arguments, found",
    TEXT_CONDITIONS,
    ids=[case[0] for case in TEXT_CONDITIONS],
)
def test_a_condition_with_what_passes_for_text_uses_the_index(
    session: psycopg.Connection,
    mode: str,
    condition: str,
    arguments: str,
    found: list[int],
) -> None:
    check_condition(session, mode, condition, arguments, found)


@with_index(BYTEA)
@pytest.mark.parametrize("form", [r"\x7637", r"\x76 37", r"\166\067", r"v\067"])
def test_bytes_are_found_however_they_are_written(
    session: psycopg.Connection, mode: str, form: str
) -> None:
    check_condition(session, mode, "secret = $1", f"('{form}')", V7)


@with_index(JSONB)
@pytest.mark.parametrize(
    "form", ['{ "v" :\t"v7" }', r'{"\u0076":"v\u0037"}', '{"v":0,"v":"v7"}']
)
@pytest.mark.parametrize("type", ["encrypted_jsonb", "jsonb"])
def test_a_document_is_found_however_it_is_written(
    session: psycopg.Connection, mode: str, type: str, form: str
) -> None:
    check_condition(session, mode, f"secret = $1::{type}", f"('{form}')", V7)


JOINS = [
    "SELECT id FROM probe JOIN people p ON {}",
    "SELECT id FROM probe LEFT JOIN people p ON {} WHERE id IS NOT NULL",
    "SELECT found.id FROM probe, LATERAL (SELECT id FROM people p WHERE {}) found",
]
each_join = pytest.mark.parametrize(
    "query", JOINS, ids=["join", "left join", "lateral"]
)


@pytest.mark.parametrize(
    "condition",
    [
        "p.secret = sealed",
        "sealed = p.secret",
        "p.secret = plain",
        "plain = p.secret",
    ],
)
@each_join
def test_a_join_looks_rows_up_in_the_index(
    session: psycopg.Connection, query: str, condition: str
) -> None:
    query = query.format(condition)
    assert index_scans(session, query)
    assert ids(session, query) == BOTH


@with_index(TEXT)
@pytest.mark.parametrize(
    "condition",
    ["p.secret = short", "short = p.secret", "p.secret = role", "role = p.secret"],
)
@each_join
def test_a_join_with_what_passes_for_text_looks_rows_up_in_the_index(
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


@pytest.mark.parametrize("column", ["sealed", "plain"])
def test_a_plain_index_serves_a_join_that_casts_to_the_plain_type(
    session: psycopg.Connection, kind: Kind, column: str
) -> None:
    value = kind.holding_sql("'v' || id")
    with session.transaction(force_rollback=True):
        session.execute(
            f"CREATE TEMP TABLE plains AS SELECT id, {value} AS value FROM people"
        )
        session.execute("CREATE INDEX value ON plains (value)")
        session.execute("ANALYZE plains")
        query = (
            f"SELECT id FROM probe JOIN plains ON value = probe.{column}::{kind.plain}"
        )
        plan = fetch(session, f"EXPLAIN (FORMAT JSON) {query}")
        assert any(node.get("Index Name") == "value" for node in nodes(plan[0]["Plan"]))
        assert ids(session, query) == [7, 8]


@pytest.mark.parametrize("argument", ["{v7}", "{v7}::{plain}", "$1"])
def test_an_index_only_scan_gives_the_value_from_a_btree(
    session: psycopg.Connection, kind: Kind, method: str, argument: str
) -> None:
    v7 = kind.holding("v7")
    argument = on_values(kind, argument)
    session.execute(f"PREPARE q AS SELECT secret FROM people WHERE secret = {argument}")
    execute = "EXECUTE q" + (f"({v7.literal})" if argument == "$1" else "")
    scans = index_scans(session, execute)
    assert ("Index Only Scan" in scans) if method == "btree" else scans
    assert session.execute(execute).fetchall() == [(v7.text,), (v7.text,)]


@pytest.mark.parametrize(
    "command",
    [
        "UPDATE people SET id = -id WHERE secret = $1 RETURNING -id",
        "DELETE FROM people WHERE secret = $1 RETURNING id",
        "SELECT id FROM people WHERE secret = $1 FOR UPDATE",
        "UPDATE people SET id = -id FROM probe"
        " WHERE secret = sealed AND plain = $1 RETURNING -id",
    ],
)
@pytest.mark.parametrize("encrypted", [False, True])
def test_a_writing_command_uses_the_index(
    session: psycopg.Connection, kind: Kind, command: str, encrypted: bool
) -> None:
    type = kind.type if encrypted else kind.plain
    with session.transaction(force_rollback=True):
        session.execute(f"PREPARE q ({type}) AS {command}")
        execute = f"EXECUTE q({lit(kind, 'v7')})"
        assert index_scans(session, execute)
        assert ids(session, execute) == V7


def test_a_condition_in_an_inlined_function_uses_the_index(
    session: psycopg.Connection, kind: Kind
) -> None:
    query = f"SELECT * FROM of_argument({lit(kind, 'v7')}) AS id"
    assert index_scans(session, query)
    assert ids(session, query) == V7


def test_a_policy_that_compares_with_current_user_uses_the_index(
    session: psycopg.Connection, kind: Kind
) -> None:
    user = "current_user" if kind is TEXT else on_values(kind, "{of_user}")
    with session.transaction(force_rollback=True):
        session.execute(
            "CREATE ROLE v7; GRANT SELECT ON people TO v7;"
            "ALTER TABLE people ENABLE ROW LEVEL SECURITY;"
            f"CREATE POLICY own ON people USING (secret = {user})"
        )
        session.execute("SET LOCAL ROLE v7")
        assert index_scans(session, "SELECT id FROM people")
        assert ids(session, "SELECT id FROM people") == V7


# A driver that prepares on the server and binds.


each_format = pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])


@each_format
@pytest.mark.parametrize(
    "condition, many",
    [
        ("secret = %", False),
        ("% = secret", False),
        ("secret = %::{plain}", False),
        ("secret = %::{type}", False),
        ("secret = ANY (%)", True),
        ("secret = ANY (%::{plain}[])", True),
        ("secret = ANY (%::{type}[])", True),
    ],
)
def test_psycopg_uses_the_index_with_bound_parameters(
    session: psycopg.Connection, kind: Kind, condition: str, binary: bool, many: bool
) -> None:
    values = [kind.holding(name).parameter for name in ("v7", "v8")]
    check_bound(
        session,
        on_values(kind, condition),
        values if many else values[0],
        binary,
        on_values(kind, "{both}" if many else "{v7}"),
        BOTH if many else V7,
    )


@with_index(TEXT)
@each_format
def test_psycopg_uses_the_index_with_a_varchar(
    session: psycopg.Connection, binary: bool
) -> None:
    check_bound(session, "secret = %::varchar", "v7", binary, "'v7'", V7)


def check_bound(
    session: psycopg.Connection,
    condition: str,
    value: Any,
    binary: bool,
    argument: str,
    found: list[int],
) -> None:
    """The index is used for a condition on what a driver binds; `argument` is the same
    in SQL."""
    condition = condition.replace("%", "%b" if binary else "%t")
    query = f"SELECT id FROM people WHERE {condition}"
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
    assert index_scans(session, f"EXECUTE {name}({argument})")
