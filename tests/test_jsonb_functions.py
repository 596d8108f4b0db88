"""Operators and functions of jsonb give on encrypted_jsonb what they give on jsonb.

The schemas `plain` and `sealed` have the same tables with the same rows, with columns
of type jsonb here and encrypted_jsonb there. Whatever is done in both must come to the
same values of the same types, or to the same error.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Json, Jsonb

from harness import FORCE_PARALLEL, Cluster, Database, fetch
from test_jsonb_regression import ACCEPTED
from test_leakage import files_with

SCHEMAS = {"plain": "jsonb", "sealed": "encrypted_jsonb"}

# docs has every input that PostgreSQL's regression script gives to jsonb; events has
# flat objects of the sort that it loads from a file.
TABLES = """
    CREATE SCHEMA {schema};
    SET search_path = {schema}, public;
    CREATE TABLE docs (id int PRIMARY KEY, doc {type});
    CREATE TABLE events (id int PRIMARY KEY, doc {type});
    CREATE TABLE records (id int PRIMARY KEY, name text, doc {type} DEFAULT '{{}}');
    CREATE TYPE pair AS (a text, b int);
    -- What an expression over `doc` comes to: type and value, or the error.
    CREATE FUNCTION create_outcome(expression text) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        EXECUTE format('CREATE OR REPLACE FUNCTION outcome(row_id int) RETURNS text
            LANGUAGE plpgsql AS $f$
            BEGIN
                RETURN (SELECT format(''%%s %%s'', pg_typeof(value),
                        COALESCE(value::text, ''NULL''))
                    FROM (SELECT %s AS value FROM docs WHERE id = row_id) AS computed);
            EXCEPTION WHEN OTHERS THEN
                RETURN ''error '' || SQLSTATE || '' '' || SQLERRM;
            END $f$', expression);
    END $$;
"""

EVENT_MEMBERS: dict[str, list[Any]] = {
    "age": [25, 25.0, 31],
    "wait": ["CC", "AB", None],
    "public": [True, False],
    "disabled": [True, False],
    "status": list(range(0, 100, 7)),
    "title": ["AA", "CBC", "ACB"],
    "array": [["foo"], ["bar", 5], [5], []],
    "node": [{"id": 1}, {"id": 2, "up": {"id": 1}}],
}


def events(rows: int) -> list[dict[str, Any]]:
    draw = random.Random(15)
    return [
        {
            name: draw.choice(values)
            for name, values in EVENT_MEMBERS.items()
            if draw.random() < 0.4
        }
        for _ in range(rows)
    ]


@pytest.fixture(scope="module")
def database(server: Cluster) -> Iterator[Database]:
    server.psql("CREATE DATABASE jsonb_functions TEMPLATE with_colcrypt")
    yield Database(server, "jsonb_functions")
    server.psql("DROP DATABASE jsonb_functions WITH (FORCE)")


Twins = dict[str, psycopg.Connection]


@pytest.fixture(scope="module")
def twins(database: Database) -> Iterator[Twins]:
    """A session in each schema."""
    with database.connect() as plain, database.connect() as sealed:
        twins = {"plain": plain, "sealed": sealed}
        for schema, session in twins.items():
            session.execute(TABLES.format(schema=schema, type=SCHEMAS[schema]))
            documents = {"docs": ACCEPTED, "events": map(Jsonb, events(600))}
            for table, rows in documents.items():
                session.cursor().executemany(
                    f"INSERT INTO {table} VALUES (%s, %s)", list(enumerate(rows))
                )
            session.execute(
                "INSERT INTO records SELECT id, 'n' || id, doc FROM docs WHERE id < 50;"
                " INSERT INTO records (id, doc) VALUES (50, NULL); ANALYZE"
            )
        yield twins


# Expressions over one document, each over every document there is

EXPRESSIONS = """
    doc -> 'a'
    doc -> 'field6'
    doc -> ''
    doc -> 0
    doc -> 1
    doc -> -1
    doc -> 99
    doc -> NULL::text
    doc -> NULL::int
    doc -> 'a' -> 'b'
    doc -> 'd' -> '1' -> 0
    doc -> 3 -> 1
    (doc -> 'a') IS NULL
    doc ->> 'a'
    doc ->> 'field6'
    doc ->> 1
    doc ->> -2
    doc ->> NULL::text
    doc -> 'a' ->> 'b'
    (doc ->> 'a') IS NULL
    doc #> '{}'
    doc #> '{a}'
    doc #> '{a,b,c}'
    doc #> '{a,1,b}'
    doc #> '{c,-1}'
    doc #> ARRAY['a', NULL]
    doc #> ARRAY['f4', 'f6']
    doc #>> '{}'
    doc #>> '{a,b}'
    doc #>> '{4,5}'
    doc #>> ARRAY['f2', '0']
    doc @> '{"a":"b"}'
    doc @> '{"a":[1,2]}'
    doc @> '{"a":[{"x":4},1]}'
    doc @> '[1]'
    doc @> '1'
    doc @> '{}'
    doc @> '[]'
    doc @> doc
    doc @> (doc -> 'a')
    doc <@ doc
    doc <@ '{"a":"b","b":1,"c":null}'
    doc <@ '[1,2,3]'
    '{"a":"b"}' <@ doc
    '[1,2,3]'::jsonb @> doc
    '[1,2,3]'::jsonb <@ doc
    doc ? 'a'
    doc ? ''
    doc ? 'foo'
    doc ? 'a'::varchar
    doc ?| ARRAY['a', 'foo']
    doc ?| '{}'
    doc ?& ARRAY['a', 'b']
    doc ?& '{}'
    doc || '{"z":1}'
    doc || '["z"]'
    doc || '"z"'
    doc || 'null'
    doc || '{}'
    doc || NULL
    doc || doc
    doc || '{"z":1}'::jsonb
    doc || jsonb_build_object('z', doc)
    doc || (doc -> 'a')
    '{"z":1}' || doc
    '["z"]' || doc
    '[]'::jsonb || doc
    doc || '{"z":1}' || '{"y":2}'
    doc - 'a'
    doc - ''
    doc - 0
    doc - -1
    doc - 'a' - 'b'
    doc - ARRAY['a', 'b']
    doc - '{b}'::text[]
    doc - '{}'::text[]
    doc - 'a'::varchar
    doc #- '{}'
    doc #- '{a}'
    doc #- '{a,b}'
    doc #- '{b,-1}'
    doc #- '{b,-1e}'
    doc #- '{0}'
    doc #- ARRAY['a', NULL]
    doc @? '$'
    doc @? '$.a'
    doc @? 'strict $.a'
    doc @? '$[*] ? (@ > 1)'
    doc @? '$.** ? (@.b == 1)'
    doc @? '$.a ? (@ like_regex "^b")'
    doc @@ '$.a == 1'
    doc @@ '$[*] == "a"'
    doc @@ 'exists($.a)'
    doc @@ '$'
    doc = doc
    doc = '{}'
    doc = '{"a":1.0}'
    doc = '{"b":2,"a":1}'::jsonb
    '{"b":2,"a":1}'::jsonb = doc
    doc = (doc - 'a')
    doc <> '{"a":1}'
    doc <> doc
    doc IS NULL
    doc IS NOT DISTINCT FROM '[]'
    doc IN ('1', '[]', '{"a": 1}')
    doc NOT IN ('1', '{}')
    doc = ANY (ARRAY['1', '[]']::jsonb[])
    doc::jsonb < '{"a":1}'
    jsonb_typeof(doc)
    jsonb_pretty(doc)
    jsonb_strip_nulls(doc)
    jsonb_array_length(doc)
    jsonb_contains(doc, '{"a":"b"}')
    jsonb_contained(doc, '{"a":"b","b":1}')
    jsonb_contained('{"a":"b"}', doc)
    jsonb_exists(doc, 'a')
    jsonb_exists_any(doc, ARRAY['a', 'b'])
    jsonb_exists_all(doc, ARRAY['a', 'b'])
    jsonb_concat(doc, '{"z":1}')
    jsonb_concat('{"z":1}', doc)
    jsonb_delete(doc, 'a')
    jsonb_delete(doc, 0)
    jsonb_delete(doc, VARIADIC ARRAY['a', 'b'])
    jsonb_delete_path(doc, '{a,b}')
    jsonb_object_field(doc, 'a')
    jsonb_array_element(doc, 1)
    jsonb_extract_path(doc, 'f4', 'f6')
    jsonb_extract_path(doc, VARIADIC ARRAY['a'])
    jsonb_extract_path_text(doc, 'a', '0')
    jsonb_set(doc, '{a}', '{"new":1}')
    jsonb_set(doc, '{a}', '1', false)
    jsonb_set(doc, '{b,-1}', '[1,2]')
    jsonb_set(doc, '{b,33}', '"x"')
    jsonb_set(doc, '{a,b,c}', 'null')
    jsonb_set(doc, '{d,NULL,0}', '1')
    jsonb_set(doc, '{a,non_integer}', '1')
    jsonb_set(doc, '{0}', '1')
    jsonb_set(doc, '{a}', doc)
    jsonb_set(doc, '{a}', doc -> 'b')
    jsonb_set(doc, '{a}', to_jsonb('text'::text))
    jsonb_set('{"x":{}}', '{x,y}', doc)
    jsonb_set_lax(doc, '{b}', NULL)
    jsonb_set_lax(doc, '{b}', NULL, true, 'delete_key')
    jsonb_set_lax(doc, '{b}', NULL, true, 'return_target')
    jsonb_set_lax(doc, '{b}', NULL, null_value_treatment => 'use_json_null')
    jsonb_insert(doc, '{a}', '1')
    jsonb_insert(doc, '{a,1}', '"new"')
    jsonb_insert(doc, '{a,1}', '"new"', true)
    jsonb_insert(doc, '{0}', doc)
    jsonb_path_exists(doc, '$.a')
    jsonb_path_exists(doc, 'strict $.a')
    jsonb_path_exists(doc, 'strict $.a', silent => true)
    jsonb_path_exists(doc, '$[*] ? (@ > $x)', '{"x":1}')
    jsonb_path_exists('[1,2]', '$[*] ? (@ == $a)', doc)
    jsonb_path_match(doc, '$.a == 1')
    jsonb_path_match(doc, '$', silent => true)
    jsonb_path_query_array(doc, '$.*')
    jsonb_path_query_array(doc, '$[*] ? (@ >= $min && @ <= $max)', '{"min":1,"max":4}')
    jsonb_path_query_array(doc, '$.keyvalue()')
    jsonb_path_query_array(doc, 'strict $[*].a')
    jsonb_path_query_array(doc, '$[*].type()')
    jsonb_path_query_array(doc, '$.double()')
    jsonb_path_query_array(doc, '$.size()')
    jsonb_path_query_first(doc, '$[*]')
    jsonb_path_query_first(doc, '$.a[*] ? (@ > 1)')
    jsonb_path_query_first_tz(doc, '$.a')
    ARRAY(SELECT jsonb_path_query(doc, '$.**'))
    ARRAY(SELECT jsonb_path_query(doc, '$[*].a ? (@ > 1)'))
    ARRAY(SELECT jsonb_object_keys(doc))
    ARRAY(SELECT jsonb_each(doc))
    ARRAY(SELECT jsonb_each_text(doc))
    ARRAY(SELECT jsonb_array_elements(doc))
    ARRAY(SELECT jsonb_array_elements_text(doc))
    ARRAY(SELECT e FROM jsonb_array_elements(doc) WITH ORDINALITY AS e)
    ARRAY(SELECT key FROM jsonb_each(doc) WHERE value = '1')
    ARRAY(SELECT r FROM jsonb_to_record(doc) AS r (a int, b text, c jsonb, x numeric))
    ARRAY(SELECT r FROM jsonb_to_record(doc) AS r (a jsonb, ia int[], ca char(2)[]))
    ARRAY(SELECT r FROM jsonb_to_recordset(doc) AS r (a text, b int))
    ARRAY(SELECT jsonb_populate_recordset(NULL::pair, doc))
    jsonb_populate_record(NULL::pair, doc)
    jsonb_populate_record(ROW('x', 3)::pair, doc)
    to_json(doc)
    to_jsonb(doc)
    to_jsonb(ARRAY[doc, doc])
    to_jsonb(ROW(doc, 1))
    row_to_json(ROW(doc, doc))
    array_to_json(ARRAY[doc, doc])
    json_build_array(doc, 1)
    json_build_object('x', doc)
    jsonb_build_array(doc, 1, doc)
    jsonb_build_array(VARIADIC ARRAY[doc, doc])
    jsonb_build_object('x', doc, 'y', doc -> 'a')
    (SELECT json_agg(doc))
    (SELECT jsonb_agg(doc))
    (SELECT json_object_agg('k', doc))
    (SELECT jsonb_object_agg('k', doc))
    doc::jsonb
    doc::json
    doc::text
    doc::varchar
    doc::jsonb::text
    doc::json -> 'a'
    json_typeof(doc::json)
    doc::jsonb::bool
    doc::jsonb::int
    doc::jsonb::numeric
    doc::jsonb::float8
    (doc -> 'a')::int
    (doc::jsonb)['a']
    (doc::jsonb)['a']['b'][0]
    (doc::jsonb)[0]
    doc::text LIKE '%a%'
    length(doc::text)
    doc || ''::text
    ''::text || doc
    concat(doc, '!', doc)
    format('%s', doc)
    quote_literal(doc)
    quote_nullable(doc)
    COALESCE(doc, '{}'::jsonb)
    COALESCE('{}'::jsonb, doc)
    CASE WHEN doc ? 'a' THEN doc ELSE '{}'::jsonb END
    to_tsvector(doc)
    to_tsvector('simple', doc)
    jsonb_to_tsvector('simple', doc, '["string", "numeric"]')
    jsonb_to_tsvector('english', doc, '"all"')
    jsonb_to_tsvector('english', doc, doc)
    ts_headline('simple', doc, 'aaa & bbb'::tsquery)
    ts_headline(doc, 'aaa'::tsquery, 'StartSel = <, StopSel = >')
"""
EXPRESSIONS = [line.strip() for line in EXPRESSIONS.splitlines() if line.strip()]


def outcomes(session: psycopg.Connection, expression: str) -> list[tuple[Any, ...]]:
    """What an expression comes to, for every document."""
    session.execute("SELECT create_outcome(%s)", [expression])
    query = "SELECT doc::text, outcome(id) FROM docs ORDER BY id"
    return session.execute(query).fetchall()


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_comes_to_the_same_value_type_or_error(
    twins: Twins, expression: str
) -> None:
    plain, sealed = (outcomes(session, expression) for session in twins.values())
    assert not all(outcome.startswith("error") for _, outcome in plain), plain[0]
    assert sealed == plain


REFUSED = [
    "jsonb_set_lax(doc, '{b}', NULL, true, 'raise_exception')",
    "json_build_object(doc, 1)",
    "jsonb_build_object(doc, 1)",
    "(SELECT jsonb_object_agg(doc, 1))",
    "doc || 1",
    "doc || ARRAY['a']",
    "doc - 1::bigint",
    "doc ? 1",
    "length(doc)",
    "doc LIKE '%a%'",
    "doc + 1",
]


@pytest.mark.parametrize("expression", REFUSED)
def test_what_jsonb_always_refuses_is_refused_with_the_same_sqlstate(
    twins: Twins, expression: str
) -> None:
    plain, sealed = (
        [
            (document, outcome[:11])
            for document, outcome in outcomes(session, expression)
        ]
        for session in twins.values()
    )
    assert {outcome[:6] for _, outcome in plain} == {"error "}
    assert sealed == plain


# What an expression that only passes the document on comes to is still encrypted.
PASSED_ON = [
    "doc",
    "COALESCE(doc, '{}')",
    "NULLIF(doc, '[]')",
    "NULLIF(doc, '{\"a\":1.0}'::jsonb)",
    "CASE WHEN doc ? 'a' THEN doc ELSE '{}' END",
    "CASE doc WHEN '[]' THEN '1' ELSE doc END",
    "(ARRAY[doc, '{}'])[1]",
    "(ARRAY(SELECT doc))[1]",
    "(SELECT d FROM (VALUES (doc)) AS v (d))",
]


@pytest.mark.parametrize("expression", PASSED_ON)
def test_a_document_that_is_passed_on_stays_encrypted(
    twins: Twins, expression: str
) -> None:
    plain, sealed = (outcomes(session, expression) for session in twins.values())
    assert plain[0][1].startswith("jsonb ")
    assert sealed == [
        (document, outcome.replace("jsonb ", "encrypted_jsonb ", 1))
        for document, outcome in plain
    ]


SUBSCRIPTS = ["doc['a']", "doc['a']['b']", "doc[0]", "doc['f4']['f6']"]


@pytest.mark.xfail(strict=True, reason="encrypted_jsonb cannot be subscripted")
@pytest.mark.parametrize("expression", SUBSCRIPTS)
def test_a_subscript_reads_what_it_reads_of_jsonb(
    twins: Twins, expression: str
) -> None:
    plain, sealed = (outcomes(session, expression) for session in twins.values())
    assert sealed == plain


@pytest.mark.parametrize("type", ["bool", "int", "bigint", "numeric", "float8"])
def test_a_scalar_is_cast_as_from_jsonb(twins: Twins, type: str) -> None:
    plain, sealed = (outcomes(session, f"doc::{type}") for session in twins.values())
    assert sealed == plain


# Queries over many documents. {} is where a parameter may stand.

QUERIES = {
    "filter by containment": 'SELECT id FROM events WHERE doc @> \'{"wait":"CC"}\'',
    "by two members": "SELECT id FROM events"
    ' WHERE doc @> \'{"wait":"CC","public":true}\'',
    "by a number": """SELECT count(*) FROM events WHERE doc @> '{"age":25}'""",
    "by a number with zeros": "SELECT count(*) FROM events"
    " WHERE doc @> '{\"age\":25.0}'",
    "by null": """SELECT count(*) FROM events WHERE doc @> '{"wait":null}'""",
    "by an array": """SELECT count(*) FROM events WHERE doc @> '{"array":["bar"]}'""",
    "by a key": "SELECT count(*) FROM events WHERE doc ? 'public'",
    "by any key": "SELECT count(*) FROM events WHERE doc ?| ARRAY['public','disabled']",
    "by all keys": "SELECT count(*) FROM events WHERE doc ?&"
    " ARRAY['public','disabled']",
    "in an array": "SELECT count(*) FROM events WHERE doc -> 'array' ? 'bar'",
    "by a path": "SELECT count(*) FROM events WHERE doc @@ '$.age == 25'",
    "by a path that exists": "SELECT count(*) FROM events WHERE doc @? '$.wait ? (@ =="
    " null)'",
    "by a nested path": "SELECT count(*) FROM events WHERE doc #>> '{node,up,id}' ="
    " '1'",
    "by a cast member": "SELECT count(*) FROM events WHERE (doc ->> 'status')::int >"
    " 40",
    "by equality": "SELECT id FROM events WHERE doc = '{}' ORDER BY id",
    "by inequality": "SELECT count(*) FROM events WHERE doc <> '{}'",
    "by a list": "SELECT id FROM events"
    " WHERE doc IN ('{}', '{\"age\": 31}') ORDER BY id",
    "by a subquery": "SELECT id FROM events WHERE doc IN (SELECT doc FROM docs) ORDER"
    " BY id",
    "ORDER BY a member": "SELECT id, doc -> 'status' FROM events ORDER BY doc ->"
    " 'status', id",
    "ORDER BY a member's text": "SELECT id FROM events ORDER BY doc ->> 'title' DESC,"
    " id",
    "ORDER BY as jsonb": "SELECT id FROM events ORDER BY doc::jsonb, id",
    "GROUP BY a member": "SELECT doc ->> 'wait', count(*) FROM events GROUP BY 1 ORDER"
    " BY 1",
    "GROUP BY the document": "SELECT min(id), count(*) FROM events GROUP BY doc ORDER"
    " BY 1",
    "DISTINCT": "SELECT count(DISTINCT doc), count(doc) FROM events",
    "DISTINCT ON": "SELECT DISTINCT ON (doc -> 'age') id FROM events ORDER BY doc ->"
    " 'age', id",
    "HAVING": "SELECT doc -> 'age' FROM events GROUP BY 1 HAVING count(*) > 20 ORDER"
    " BY 1",
    "keys": "SELECT key, count(*) FROM events, jsonb_each(doc) GROUP BY key ORDER BY 1",
    "elements": "SELECT e, count(*) FROM events, jsonb_array_elements(doc -> 'array')"
    " AS e GROUP BY e ORDER BY 1",
    "records": "SELECT id, r.* FROM events, jsonb_to_record(doc) AS r (age numeric,"
    " wait text) ORDER BY id",
    "a record's row": "SELECT jsonb_populate_record(NULL::pair, doc) FROM events ORDER"
    " BY id",
    "a self-join": "SELECT a.id, b.id FROM docs AS a JOIN docs AS b ON a.doc = b.doc"
    " WHERE a.id < b.id ORDER BY 1, 2",
    "a join by containment": "SELECT a.id, b.id FROM docs AS a JOIN docs AS b ON a.doc"
    " @> b.doc ORDER BY 1, 2",
    "a join by a member": "SELECT count(*) FROM events AS a JOIN events AS b"
    " ON a.doc -> 'title' = b.doc -> 'wait'",
    "a left join": "SELECT count(*), count(b.doc) FROM events AS a LEFT JOIN docs AS b"
    " USING (doc)",
    "UNION": "SELECT count(*) FROM (SELECT doc FROM events UNION SELECT doc FROM docs)"
    " AS u",
    "EXCEPT": "SELECT count(*) FROM (SELECT doc FROM events EXCEPT SELECT doc FROM"
    " docs) AS u",
    "UNION ALL with jsonb": "SELECT doc FROM records WHERE id = 1"
    " UNION ALL SELECT '{\"x\":1}'::jsonb",
    "jsonb_agg": "SELECT jsonb_agg(doc ORDER BY id) FROM docs",
    "json_agg": "SELECT json_agg(doc ORDER BY id) FROM docs",
    "jsonb_object_agg": "SELECT jsonb_object_agg(id, doc) FROM docs",
    "json_object_agg": "SELECT json_object_agg(id, doc ORDER BY id) FROM docs",
    "jsonb_agg of rows": "SELECT jsonb_agg(records ORDER BY id) FROM records",
    "json_agg of rows": "SELECT json_agg(records ORDER BY id) FROM records",
    "row_to_json": "SELECT row_to_json(records) FROM records ORDER BY id",
    "row_to_json of a subquery": "SELECT row_to_json(r, true) FROM"
    " (SELECT doc, doc -> 'a' AS a FROM docs ORDER BY id) AS r",
    "to_jsonb of rows": "SELECT to_jsonb(records) - 'id' FROM records ORDER BY id",
    "to_jsonb of an array": "SELECT to_jsonb(array_agg(doc ORDER BY id)) FROM docs",
    "jsonb_agg DISTINCT": "SELECT jsonb_array_length(jsonb_agg(DISTINCT doc)) FROM"
    " events",
    "FILTER": "SELECT jsonb_agg(doc -> 'age' ORDER BY id) FILTER (WHERE doc ? 'age')"
    " FROM events",
    "a window": "SELECT id, lag(doc) OVER (ORDER BY id) -> 'age' FROM events ORDER BY"
    " id",
    "a CTE": "WITH c AS MATERIALIZED (SELECT id, doc FROM events)"
    " SELECT id, doc -> 'age' FROM c WHERE doc ? 'age' ORDER BY id",
    "a recursive CTE": "WITH RECURSIVE r AS (SELECT 1 AS n, doc || '{}' AS doc FROM"
    " docs WHERE id = 7"
    " UNION ALL SELECT n + 1, jsonb_build_array(doc) FROM r WHERE n < 4) SELECT * FROM"
    " r",
    "EXISTS": "SELECT id FROM events AS a WHERE EXISTS"
    " (SELECT FROM docs AS b WHERE b.doc <@ a.doc AND b.id > 100) ORDER BY id",
    "a scalar subquery": "SELECT (SELECT doc FROM docs WHERE id = 1) -> 'a'",
}


def rows(session: psycopg.Connection, query: str, *parameters: Any) -> Any:
    """A result's rows, in the text that is sent, and its columns' types."""
    cursor = session.execute(query, parameters or None)
    named = "SELECT %s::regtype::text"
    types = [fetch(session, named, column.type_code) for column in cursor.description]
    return types, cursor.fetchall()


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_a_query_gives_the_same_rows(twins: Twins, query: str) -> None:
    plain, sealed = (rows(session, query) for session in twins.values())
    assert plain[1]
    assert sealed == plain


@pytest.mark.parametrize(
    "setting", ["enable_hashjoin", "enable_sort", "enable_hashagg"]
)
@pytest.mark.parametrize(
    "query", ["a self-join", "GROUP BY the document", "DISTINCT", "UNION"]
)
def test_a_query_gives_the_same_rows_by_another_plan(
    twins: Twins, query: str, setting: str
) -> None:
    sealed = twins["sealed"]
    expected = rows(twins["plain"], QUERIES[query])
    with sealed.transaction(force_rollback=True):
        sealed.execute(f"SET LOCAL {setting} = off")
        assert rows(sealed, QUERIES[query]) == expected


def test_parallel_workers_give_the_same_rows(twins: Twins) -> None:
    queries = ["by a path", "keys", "by containment", "GROUP BY a member", "by a key"]
    sealed = twins["sealed"]
    with sealed.transaction(force_rollback=True):
        sealed.execute(
            f"SET LOCAL {FORCE_PARALLEL} = on; SET LOCAL parallel_setup_cost = 0;"
            "SET LOCAL min_parallel_table_scan_size = 0"
        )
        for query in [query for query in queries if query in QUERIES]:
            assert rows(sealed, QUERIES[query]) == rows(twins["plain"], QUERIES[query])


# Parameters

# Where an operand's type is open, and what jsonb makes of it. Of the same type as the
# document, it is encrypted on its way in.
OPERANDS = {
    "doc -> $1": "text",
    "doc -> ($1 + 1)": "integer",
    "doc ->> $1": "text",
    "doc #> $1": "text[]",
    "doc #>> $1": "text[]",
    "doc @> $1": "jsonb",
    "doc <@ $1": "jsonb",
    "$1 @> doc": "jsonb",
    "doc ? $1": "text",
    "doc ?| $1": "text[]",
    "doc ?& $1": "text[]",
    "doc - $1": "text",
    "doc #- $1": "text[]",
    "doc @? $1": "jsonpath",
    "doc @@ $1": "jsonpath",
    "doc || $1": "{type}",
    "$1 || doc": "{type}",
    "doc = $1": "{type}",
    "$1 <> doc": "{type}",
    "doc IN ($1)": "{type}",
    "doc = ANY ($1)": "{type}[]",
    "COALESCE(doc, $1)": "{type}",
    "jsonb_set(doc, $1, '1')": "text[]",
    "jsonb_set(doc, '{{a}}', $1)": "jsonb",
    "jsonb_path_query_array(doc, '$', $1)": "jsonb",
    "jsonb_populate_record(NULL::pair, $1)": "jsonb",
}


@pytest.mark.parametrize(("expression", "expected"), OPERANDS.items(), ids=OPERANDS)
def test_an_untyped_parameter_is_taken_for_what_it_is_with_jsonb(
    twins: Twins, expression: str, expected: str
) -> None:
    expression = expression.format()
    for schema, session in twins.items():
        session.execute(f"PREPARE operand AS SELECT {expression} FROM docs")
        query = "SELECT parameter_types[1]::text FROM pg_prepared_statements"
        found = fetch(session, f"{query} WHERE name = 'operand'")
        session.execute("DEALLOCATE operand")
        assert found == expected.format(type=SCHEMAS[schema]), schema


# What drivers bind: text without a type, jsonb, json, arrays, numbers.
BOUND = [
    ("doc -> %s", "a"),
    ("doc -> %s", 1),
    ("doc ->> %s::int", 1),
    ("doc #>> %s", ["a", "b"]),
    ("doc @> %s", '{"a": "b"}'),
    ("doc @> %s", Jsonb({"a": "b"})),
    ("doc @> %s", Json({"a": "b"})),
    ("doc <@ %s", Jsonb([1, 2, 3])),
    ("doc ? %s", "a"),
    ("doc ?| %s", ["a", "b"]),
    ("doc || %s", '{"z": 1}'),
    ("doc || %s", Jsonb({"z": 1})),
    ("doc || %s", Json({"z": 1})),
    ("%s || doc", Jsonb(["z"])),
    ("doc - %s", "a"),
    ("doc - %s", 0),
    ("doc - %s", ["a", "b"]),
    ("doc #- %s", ["a", "b"]),
    ("doc @? %s", "$.a"),
    ("doc = %s", '{"b": 2, "a": 1.0}'),
    ("doc = %s", Jsonb({"b": 2, "a": 1})),
    ("doc = %s", Json({"b": 2, "a": 1})),
    ("%s <> doc", Jsonb({"b": 2, "a": 1})),
    ("doc = ANY (%s)", [Jsonb({"a": 1}), Jsonb([])]),
    ("doc = ANY (%s)", ['{"a": 1}', "[]"]),
    ("doc IN (%s)", Jsonb({})),
    ("COALESCE(doc -> 'a', %s)", Jsonb({})),
    ("jsonb_set(doc, '{a}', %s)", '"new"'),
    ("jsonb_set(doc, '{a}', %s)", Jsonb({"new": None})),
    ("jsonb_set(doc, %s, '1')", ["a"]),
    ("jsonb_path_query_array(doc, '$[*] ? (@ > $x)', %s)", Jsonb({"x": 1})),
]


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
@pytest.mark.parametrize(
    ("expression", "parameter"),
    BOUND,
    ids=lambda value: value if isinstance(value, str) else str(value)[:40],
)
def test_a_bound_parameter_does_what_it_does_with_jsonb(
    twins: Twins, expression: str, parameter: Any, binary: bool
) -> None:
    placeholder = "%b" if binary else "%t"
    expression = expression.replace("%s", placeholder)
    query = f"SELECT id, {expression} FROM events ORDER BY id"
    plain, sealed = (attempt(session, query, parameter) for session in twins.values())
    assert sealed == plain


def attempt(session: psycopg.Connection, query: str, *parameters: Any) -> Any:
    """The rows and their types, or the SQLSTATE."""
    try:
        return rows(session, query, *parameters)
    except psycopg.Error as error:
        return error.sqlstate


# Writing


WRITES = {
    "set": "UPDATE records SET doc = jsonb_set(doc, '{a}', '{\"new\":1}')"
    " WHERE jsonb_typeof(doc) = 'object'",
    "set from another": "UPDATE records SET doc = jsonb_set(d.doc, '{a}',"
    " to_jsonb(name))"
    " FROM docs AS d WHERE d.id = records.id + 5 AND jsonb_typeof(d.doc) = 'object'",
    "merge": "UPDATE records SET doc = doc || '{\"x\":1}' WHERE doc ? 'a'",
    "merge itself": "UPDATE records SET doc = doc || doc",
    "remove": "UPDATE records SET doc = doc - 'a' WHERE jsonb_typeof(doc) = 'object'",
    "remove a path": "UPDATE records SET doc = doc #- '{a,0}'"
    " WHERE jsonb_typeof(doc -> 'a') = 'array'",
    "insert an element": "UPDATE records SET doc = jsonb_insert(doc, '{0}',"
    " '\"first\"') WHERE jsonb_typeof(doc) = 'array'",
    "a member": "UPDATE records SET doc = doc -> 'a'",
    "build": "UPDATE records SET doc = jsonb_build_object('id', id, 'was', doc)",
    "a json": "UPDATE records SET doc = json_build_object('id', id, 'was', doc)",
    "row_to_json": "UPDATE records SET doc = row_to_json(records)",
    "a literal": 'UPDATE records SET doc = \' { "b" : 1, "a" : 2 } \'',
    "to NULL": "UPDATE records SET doc = NULL WHERE doc @> '1'",
    "to the default": "UPDATE records SET doc = DEFAULT",
    "several": "UPDATE records SET (name, doc) = (SELECT doc ->> 'a', doc || '{}')"
    " WHERE jsonb_typeof(doc) = 'object'",
    "insert": "INSERT INTO records SELECT id + 100, doc ->> 0, doc || '[1]' FROM docs",
    "insert a default": "INSERT INTO records (id) VALUES (100), (101)",
    "insert a recordset": "INSERT INTO records SELECT * FROM jsonb_populate_recordset("
    'NULL::records, \'[{"id":100,"doc":{"b":1,"a":[]}},{"id":101,"doc":[1]},'
    '{"id":102}]\')',
    "insert a json recordset": "INSERT INTO records SELECT * FROM"
    " json_populate_recordset("
    'NULL::records, \'[{"id":100,"doc":{"b":1,  "a":[]}},{"id":101,"doc":2.50}]\')',
    "insert its own rows": "INSERT INTO records SELECT r.* FROM records AS s,"
    " jsonb_populate_record(NULL::records, to_jsonb(s) || jsonb_build_object('id', id"
    " + 100)) AS r WHERE jsonb_typeof(s.doc) <> 'string'",
    "upsert": "INSERT INTO records SELECT id, 'again', '{\"x\":1}' FROM docs WHERE id"
    " < 60 ON CONFLICT (id) DO UPDATE SET doc = records.doc || EXCLUDED.doc",
    "MERGE": "MERGE INTO records AS r USING docs AS d ON r.id = d.id"
    " WHEN MATCHED AND d.doc ? 'a' THEN UPDATE SET doc = d.doc - 'a'"
    " WHEN NOT MATCHED THEN INSERT VALUES (d.id, d.doc ->> 'a', d.doc)",
    "delete": "DELETE FROM records WHERE doc @? '$.a'",
    "a CTE": "WITH gone AS (DELETE FROM records WHERE doc ? 'a' RETURNING *)"
    " INSERT INTO records SELECT id, 'back', doc || '{\"back\":true}' FROM gone",
    "PL/pgSQL": "DO $$ DECLARE r records; BEGIN FOR r IN SELECT * FROM records"
    " WHERE jsonb_typeof(doc) = 'object' LOOP r.doc := r.doc || '{\"x\":1}';"
    " r.doc := jsonb_set(r.doc, '{y}', r.doc); r.doc = r.doc - 'a';"
    " UPDATE records SET doc = r.doc WHERE id = r.id; END LOOP; END $$",
    "a trigger": "CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    " IF NEW.doc ? 'a' AND NEW.doc IS DISTINCT FROM OLD.doc THEN"
    " NEW.doc := jsonb_set(NEW.doc, '{was}', COALESCE(OLD.doc -> 'a', 'null'));"
    " END IF; RETURN NEW; END $$;"
    " CREATE TRIGGER stamp BEFORE UPDATE ON records FOR EACH ROW EXECUTE FUNCTION"
    " stamp();"
    " UPDATE records SET doc = doc || '{\"a\":2}' WHERE jsonb_typeof(doc) = 'object'",
    "a view": "CREATE VIEW named AS SELECT id, doc FROM records WHERE doc ? 'a'"
    " WITH CHECK OPTION; UPDATE named SET doc = doc || '{\"x\":1}';"
    " INSERT INTO named VALUES (100, '{\"a\":1}')",
    "a constraint": "DELETE FROM records WHERE jsonb_typeof(doc) <> 'object';"
    " ALTER TABLE records ADD CHECK (jsonb_typeof(doc) = 'object' AND NOT doc ? 'zz');"
    " UPDATE records SET doc = doc || '{\"x\":1}'",
    "a policy": "ALTER TABLE records ENABLE ROW LEVEL SECURITY;"
    " ALTER TABLE records FORCE ROW LEVEL SECURITY;"
    " CREATE POLICY with_a ON records USING (doc ? 'a') WITH CHECK (doc ? 'a');"
    " UPDATE records SET doc = doc || '{\"x\":1}'",
    "a function": "CREATE FUNCTION grown(jsonb) RETURNS jsonb LANGUAGE sql"
    " AS 'SELECT jsonb_build_array($1)'; UPDATE records SET doc = grown(doc)",
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_leaves_what_it_leaves_with_jsonb(twins: Twins, write: str) -> None:
    content = "SELECT id, name, doc, doc::text FROM records ORDER BY id"
    left = {}
    for schema, session in twins.items():
        with session.transaction(force_rollback=True):
            before = session.execute(content).fetchall()
            session.execute(write.encode())
            left[schema] = [row[::3] + row[1:2] for row in session.execute(content)]
            assert left[schema] != [row[::3] + row[1:2] for row in before]
    assert left["sealed"] == left["plain"]


REFUSED_WRITES = {
    "a constraint": "ALTER TABLE records ADD CHECK (jsonb_typeof(doc) = 'object')",
    "text": "UPDATE records SET doc = name",
    "text that is JSON": "UPDATE records SET doc = '{}'::text",
    "a number": "UPDATE records SET doc = 1",
    "no JSON": "UPDATE records SET doc = '{'",
    "a check option": "CREATE VIEW v AS SELECT * FROM records WHERE doc ? 'a' WITH"
    " CHECK OPTION; INSERT INTO v VALUES (100, 'x', '{}')",
    "a path through a scalar": "UPDATE records SET doc = jsonb_set('1', '{a}', doc)",
    "an element that is there": "UPDATE records SET doc = jsonb_insert(doc, '{a}', '1')"
    " WHERE doc ? 'a'",
}


@pytest.mark.parametrize("write", REFUSED_WRITES.values(), ids=REFUSED_WRITES)
def test_a_write_that_fails_with_jsonb_fails_with_the_same_sqlstate(
    twins: Twins, write: str
) -> None:
    sqlstates = []
    for session in twins.values():
        with pytest.raises(psycopg.Error) as refused, session.transaction():
            session.execute(write.encode())
        sqlstates.append(refused.value.sqlstate)
    assert sqlstates[0] == sqlstates[1]


SUBSCRIPTED_WRITES = [
    "UPDATE records SET doc['a'] = '1' WHERE jsonb_typeof(doc) = 'object'",
    "UPDATE records SET doc['n']['m'] = to_jsonb(name) WHERE doc ? 'b'",
]


@pytest.mark.xfail(strict=True, reason="encrypted_jsonb cannot be subscripted")
@pytest.mark.parametrize("write", SUBSCRIPTED_WRITES)
def test_a_write_to_a_subscript_does_what_it_does_with_jsonb(
    twins: Twins, write: str
) -> None:
    test_a_write_leaves_what_it_leaves_with_jsonb(twins, write)


@pytest.mark.parametrize("function", ["jsonb_to_record", "json_to_record"])
def test_a_string_in_a_record_is_taken_for_the_text_of_a_document(
    twins: Twins, function: str
) -> None:
    # PostgreSQL hands jsonb the JSON string, any other type the text inside it.
    record = '{"s": "{\\"a\\": 1}", "o": {"b": "x"}}'
    query = f"SELECT s::jsonb, o::jsonb FROM {function}(%s) AS r (s {{0}}, o {{0}})"
    as_plain, as_sealed = (
        fetch_row(twins[schema], query.format(type), record)
        for schema, type in SCHEMAS.items()
    )
    assert as_plain == ('{"a": 1}', {"b": "x"})
    assert as_sealed == ({"a": 1}, {"b": "x"})


def fetch_row(session: psycopg.Connection, query: str, *parameters: Any) -> Any:
    return session.execute(query, parameters).fetchone()


# What is written when one element changes


# Ways to change one member of a document; %s is its new value, a text.
CHANGES = {
    "set": "UPDATE {} SET doc = jsonb_set(doc, '{{token}}', to_jsonb(%s::text))",
    "merged": "UPDATE {} SET doc = doc || jsonb_build_object('token', %s::text)",
    "inserted": "UPDATE {} SET doc = jsonb_insert(doc, '{{old,0}}',"
    " to_jsonb(%s::text))",
    "appended": "UPDATE {} SET doc = jsonb_set(doc, '{{old,99}}', to_jsonb(%s::text))",
    "from a row": "UPDATE {} AS t SET doc = jsonb_set(t.doc, '{{token}}',"
    " to_jsonb(v.token)) FROM (VALUES (%s::text)) AS v (token)",
    "upserted": "INSERT INTO {0} AS t SELECT id, jsonb_build_object('token', %s::text)"
    " FROM {0} ON CONFLICT (id) DO UPDATE SET doc = t.doc || EXCLUDED.doc",
    "merged in": "MERGE INTO {} AS t USING (VALUES (%s::text)) AS v (token) ON true"
    " WHEN MATCHED THEN UPDATE SET doc = t.doc || jsonb_build_object('token', v.token)",
    "in a CTE": "WITH new AS MATERIALIZED (SELECT %s::text AS token) UPDATE {} SET doc"
    " = jsonb_set(doc, '{{token}}', (SELECT to_jsonb(token) FROM new))",
    "in PL/pgSQL": "SELECT change('{}', %s)",
}
LASTING = [*CHANGES, "rolled back", "removed"]

CHANGE_FUNCTION = """
    CREATE FUNCTION change(name regclass, token text) RETURNS void
    LANGUAGE plpgsql AS $$
    DECLARE
        r record;
    BEGIN
        FOR r IN EXECUTE format('SELECT * FROM %s', name) LOOP
            r.doc := jsonb_set(r.doc, '{token}', to_jsonb(token));
            EXECUTE format('UPDATE %s SET doc = $1 WHERE id = $2', name)
                USING r.doc, r.id;
        END LOOP;
    END $$;
"""


def canary(table: str, way: str) -> str:
    return f"canary-{table}-{way.replace(' ', '-')}-of-colcrypt-tests"


@pytest.fixture(scope="module")
def changed(database: Database) -> psycopg.Connection:
    """Documents, small and large, in the tables doc_plain and doc_sealed, of which one
    member was changed in each of the ways."""
    session = database.connect()
    session.execute(CHANGE_FUNCTION)
    for schema, type in SCHEMAS.items():
        table = f"doc_{schema}"
        # Stored alike: pglz would break the canaries up.
        session.execute(
            f"CREATE TABLE {table} (id int PRIMARY KEY, doc {type});"
            f" ALTER TABLE {table} ALTER doc SET STORAGE external"
        )
        for id, length in enumerate((10, 1500, 20_000)):
            document = {"old": [1], "filler": secrets.token_hex(length)}
            insert = f"INSERT INTO {table} VALUES (%s, %s)"
            session.execute(insert, [id, Jsonb(document)])
        for way, change in CHANGES.items():
            session.execute(change.format(table), [canary(table, way)])
        with session.transaction(force_rollback=True):
            session.execute(
                CHANGES["set"].format(table), [canary(table, "rolled back")]
            )
        session.execute(CHANGES["set"].format(table), [canary(table, "removed")])
        session.execute(f"ANALYZE {table}")
        session.execute(f"UPDATE {table} SET doc = doc - 'token'")
    session.execute("CHECKPOINT")
    return session


@pytest.mark.parametrize("way", LASTING)
def test_changing_an_element_writes_no_plaintext(
    server: Cluster, changed: psycopg.Connection, way: str
) -> None:
    found = files_with(server.datadir, canary("doc_sealed", way).encode())
    assert found == []


@pytest.mark.parametrize("way", LASTING)
def test_the_same_search_finds_what_is_changed_in_jsonb(
    server: Cluster, changed: psycopg.Connection, way: str
) -> None:
    # So that the search above can fail.
    found = files_with(server.datadir, canary("doc_plain", way).encode())
    assert any("pg_wal" in path.parts for path in found)
    heap, toast = heap_and_toast(server, changed, "doc_plain")
    assert heap in found and toast in found


def test_the_changes_were_made_in_heap_and_toast(
    server: Cluster, changed: psycopg.Connection
) -> None:
    query = "SELECT (doc #>> '{old,0}', doc #>> '{old,-1}')::text FROM doc_sealed"
    first, last = (canary("doc_sealed", way) for way in ("inserted", "appended"))
    expected = f"({first},{last})"
    assert changed.execute(query).fetchall() == 3 * [(expected,)]
    for path in heap_and_toast(server, changed, "doc_sealed"):
        assert path.stat().st_size > 0


def heap_and_toast(
    server: Cluster, session: psycopg.Connection, table: str
) -> tuple[Path, Path]:
    query = (
        "SELECT pg_relation_filepath(oid), pg_relation_filepath(reltoastrelid)"
        " FROM pg_class WHERE relname = %s"
    )
    heap, toast = session.execute(query, [table]).fetchone()
    return server.datadir / heap, server.datadir / toast


def test_changing_many_elements_makes_no_temporary_file(
    server: Cluster, changed: psycopg.Connection
) -> None:
    with changed.transaction(force_rollback=True):
        changed.execute(
            "CREATE TEMP TABLE many (n float, doc encrypted_jsonb);"
            "INSERT INTO many SELECT random(), jsonb_build_object('n', i) FROM"
            " generate_series(1, 5000) AS i;"
            "SET LOCAL work_mem = '64kB'; SET LOCAL log_temp_files = 0"
        )
        start = len(server.log())
        changed.execute(
            "UPDATE many SET doc = jsonb_set(doc, '{token}', '\"canary-temporary\"')"
        )
        assert "temporary file" not in server.log()[start:]
        # As the log says where there is one; and that holds ciphertext.
        changed.execute("SELECT n, doc FROM many ORDER BY n")
        assert "temporary file" in server.log()[start:]
        changed.execute("DECLARE c CURSOR FOR SELECT n, doc FROM many ORDER BY n")
        changed.execute("FETCH 10 FROM c")
        spilled = server.datadir / "base" / "pgsql_tmp"
        assert any(spilled.iterdir()), "nothing was spilled"
        assert files_with(spilled, b"canary-temporary") == []
