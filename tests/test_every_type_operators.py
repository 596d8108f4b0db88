"""An operator or function that is given an encrypted value does what it does with a
plain one, whatever is on the other side and whatever PostgreSQL makes of a literal.

The schemas `sealed` and `plain` have the same tables, named after the plain types, with
the same values in v and w. An expression has one outcome in each: a type and values, or
an SQLSTATE.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from harness import Cluster, Database, fetch
from kinds import BYTEA, JSONB, KINDS, Kind, every_kind

# For each row, if some values make an error.
OUTCOME = """
CREATE FUNCTION outcome(path text, expression text, relation text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    query text := format('SELECT concat_ws('': '', min(pg_typeof(x)::text),'
        ' string_agg(coalesce(x::text, ''NULL''), '' | ''))'
        ' FROM (SELECT (%s) AS x FROM %I', expression, relation);
    outcomes text[];
    outcome text;
    row_id int;
BEGIN
    PERFORM set_config('search_path', path, true);
    BEGIN
        EXECUTE query || ') s' INTO outcome;
        RETURN replace(outcome, 'encrypted_', '');
    EXCEPTION WHEN OTHERS THEN
        IF SQLSTATE LIKE '42%' THEN
            RETURN SQLSTATE;
        END IF;
    END;
    FOR row_id IN EXECUTE format('SELECT id FROM %I', relation) LOOP
        BEGIN
            EXECUTE query || format(' WHERE id = %s) s', row_id) INTO outcome;
            outcomes := outcomes || replace(outcome, 'encrypted_', '');
        EXCEPTION WHEN OTHERS THEN
            outcomes := outcomes || SQLSTATE::text;
        END;
    END LOOP;
    RETURN array_to_string(outcomes, ' | ');
END
$$;
"""

MORE: dict[str, tuple[str, ...]] = {
    "text": ("'a'", "'1'"),
    "bytea": ("'a'", r"'  ab\\c  '", "'%'"),
    "jsonb": (
        """'{"a": 1, "b": [1, 2, {"c": null}], "n": {"k": "v"}}'""",
        """'[1, "a", {"a": 2}, 2.50, null]'""",
        """'[["a", "b"], ["c", "d"]]'""",
        """'"a"'""",
    ),
}


def literals(kind: Kind) -> list[str]:
    most = [s.literal for s in kind.samples if len(s.literal) < 1000]
    return [*MORE[kind.plain], *most]


@pytest.fixture(scope="module")
def session(server: Cluster) -> Iterator[psycopg.Connection]:
    db = Database(server, "operators")
    server.psql(f"CREATE DATABASE {db.name} TEMPLATE with_colcrypt")
    with db.connect(prepare_threshold=None) as session:
        session.execute(OUTCOME)
        for schema, prefix in (("sealed", "encrypted_"), ("plain", "")):
            session.execute(
                f"CREATE SCHEMA {schema}; SET search_path = {schema}, public"
            )
            session.execute("CREATE TYPE pair AS (a text, b jsonb)")
            session.execute(
                f"CREATE TABLE other (t {prefix}text, b {prefix}bytea,"
                f" j {prefix}jsonb);"
                "INSERT INTO other VALUES ('a', 'a', '1')"
            )
            for kind in KINDS:
                values = literals(kind)
                session.execute(
                    f"CREATE TABLE {kind.plain}"
                    f" (id int, v {prefix}{kind.plain}, w {prefix}{kind.plain})"
                )
                for id, literal in enumerate(values):
                    w = values[(id * 3 + 1) % len(values)]
                    session.execute(
                        f"INSERT INTO {kind.plain} VALUES ({id}, {literal}, {w})"
                    )
        session.execute("RESET search_path")
        yield session
    server.psql(f"DROP DATABASE {db.name}")


def outcomes(
    session: psycopg.Connection, kind: Kind, expressions: list[str]
) -> dict[str, tuple[str, str]]:
    """Of each expression, on plain and on encrypted values."""
    rows = session.execute(
        "SELECT e, outcome('plain, public', e, %(table)s),"
        " outcome('sealed, public', e, %(table)s) FROM unnest(%(all)s::text[]) e",
        {"table": kind.plain, "all": expressions},
    ).fetchall()
    return {expression: (plain, sealed) for expression, plain, sealed in rows}


def operands(kind: Kind) -> list[str]:
    """What may stand on the other side of an operator."""
    one, two = kind.one.literal, kind.two.literal
    return [
        # Literals without a type: for PostgreSQL to make something of.
        *(one, two, "''", "'a'", "'1'", "'{a}'", "'{}'", "'[1]'", r"'\x61'", "'$.a'"),
        *("'\"a\"'", "NULL"),
        # Values of the plain type, and of others.
        *(f"{one}::{kind.plain}", f"NULL::{kind.plain}", f"ARRAY[{one}::{kind.plain}]"),
        *("'a'::text", "'a'::varchar", "'a'::char(3)", "'a'::name", "'{a,b}'::text[]"),
        *("'a'::bytea", "'1'::jsonb", "'1'::json", "'$.a'::jsonpath", "'{1}'::jsonb[]"),
        *("1", "1::bigint", "1.5", "true", "'2020-01-01'::date", "ARRAY[1]"),
        *("'a'::tsquery", "'127.0.0.1'::inet", "B'1'", "current_user"),
        # Encrypted values, of this type and of others.
        *("v", "w", "ARRAY[v, w]", "(SELECT t FROM other)", "(SELECT b FROM other)"),
        "(SELECT j FROM other)",
    ]


# Refused, as the order of the plaintexts.
ORDER = ("<", "<=", ">=", ">")


@every_kind
def test_every_operator_does_with_every_other_side_what_it_does_on_plain_values(
    session: psycopg.Connection, kind: Kind
) -> None:
    names = session.execute(
        "SELECT DISTINCT oprname FROM pg_operator WHERE oprkind = 'b'"
    ).fetchall()
    expressions = [
        f"{left} OPERATOR({name}) {right}"
        for (name,) in names
        for operand in operands(kind)
        for left, right in (("v", operand), (operand, "v"))
    ]
    found = outcomes(session, kind, expressions)
    assert sum(not plain.startswith("42") for plain, _ in found.values()) > 500
    different = {
        expression: both
        for expression, both in found.items()
        if both[0] != both[1] and not is_refused(expression, both[1])
    }
    assert different == {}


def is_refused(expression: str, outcome: str) -> bool:
    """Whether it is refused as a comparison by order. Of name, PostgreSQL may not know
    whether to take it for text."""
    ordered = any(f"OPERATOR({name})" in expression for name in ORDER)
    return ordered and set(outcome.split(" | ")) <= {"0A000", "42725"}


# Functions that take the plain type, with an argument for each other type.
ARGUMENTS = {
    "text": "'a'::text",
    "text[]": "'{a}'::text[]",
    "integer": "1",
    "bigint": "1::bigint",
    "boolean": "true",
    "name": "'UTF8'::name",
    "json": "'[1]'::json",
    "jsonpath": "'$.a'::jsonpath",
    "regconfig": "'simple'::regconfig",
    "tsquery": "'a'::tsquery",
    "anyelement": "NULL::pair",
}
FUNCTIONS = """
    SELECT proname, proargtypes::oid[]::regtype[]::text[] FROM pg_proc
    WHERE prokind IN ('f', 'a') AND pronamespace = 'pg_catalog'::regnamespace
        AND provolatile <> 'v' AND %s::regtype = ANY (proargtypes::oid[])
        AND NOT proargtypes::oid[] && '{internal,cstring}'::regtype[]::oid[]
"""


# There are too many functions of text: some show a whole database as XML.
@pytest.mark.parametrize("kind", [BYTEA, JSONB], ids=str)
def test_every_function_of_the_plain_type_does_what_it_does_on_plain_values(
    session: psycopg.Connection, kind: Kind
) -> None:
    """With each argument encrypted, beside a literal, a plain or an encrypted value."""
    expressions = set()
    for name, types in session.execute(FUNCTIONS, [kind.plain]).fetchall():
        places = [place for place, type in enumerate(types) if type == kind.plain]
        for encrypted in [*([place] for place in places), places]:
            for rest in (kind.one.literal, f"{kind.one.literal}::{kind.plain}", "w"):
                values = ARGUMENTS | {kind.plain: rest}
                call = [
                    "v" if place in encrypted else values[type]
                    for place, type in enumerate(types)
                ]
                expressions.add(f'"{name}"({", ".join(call)})')
    found = outcomes(session, kind, sorted(expressions))
    assert sum(not plain.startswith("42") for plain, _ in found.values()) > 90
    different = {
        expression: both for expression, both in found.items() if both[0] != both[1]
    }
    assert different == {}


# What is written otherwise than with operators and functions; {x} and {y} are literals.

EVERY = r"""
    v::text | CAST(v AS {plain}) | v::varchar | v::name | v::{plain}::text | v IS NULL
    v IS DISTINCT FROM NULL | v IS DISTINCT FROM {x} | v IS NOT DISTINCT FROM w
    COALESCE(v, {x}) | COALESCE(v, {x}::{plain}) | COALESCE({x}::{plain}, v)
    COALESCE(NULL, v) | COALESCE(v, w) | COALESCE(NULL, v, {x}::{plain}, w)
    NULLIF(v, {x}) | NULLIF({x}, v) | NULLIF(v, {x}::{plain}) | NULLIF({x}::{plain}, v)
    NULLIF(v, w) | NULLIF(v, NULL) | CASE WHEN id > 1 THEN v ELSE {x} END
    CASE WHEN id > 1 THEN {x} ELSE v END | CASE WHEN id > 1 THEN v ELSE {x}::{plain} END
    CASE WHEN id > 1 THEN v ELSE w END
    CASE v WHEN {x} THEN 1 WHEN {y} THEN 2 ELSE 3 END | CASE v WHEN w THEN 1 END
    CASE v WHEN {x}::{plain} THEN 1 WHEN {y} THEN 2 END | CASE {x} WHEN v THEN 1 END
    CASE {x}::{plain} WHEN v THEN 1 WHEN w THEN 2 END | v IN ({x}, {y})
    v IN ({x}::{plain}, {y}) | v IN ({x}, {y}::{plain}) | v IN (w, {x})
    v NOT IN ({x}, {y}) | v NOT IN ({x}::{plain}, w) | {x} IN (v, w) | v IN (NULL, {x})
    {x}::{plain} IN (v, w) | {x}::{plain} NOT IN (v, {y}) | v = ANY (ARRAY[{x}, {y}])
    v = ANY (ARRAY[{x}::{plain}, {y}]) | v = ANY (ARRAY[v, w])
    v <> ALL (ARRAY[{x}, {y}]) | v <> ALL (ARRAY[{x}::{plain}]) | v <> ALL (ARRAY[w])
    {x} = ANY (ARRAY[v, w]) | {x}::{plain} = ANY (ARRAY[v, w]) | v = ANY (ARRAY[w, {x}])
    v = ANY ('{{}}') | v = ANY ('{{}}'::{plain}[]) | v = ALL ('{{}}') | v = ANY (NULL)
    v = ANY ('{{1,2}}') | v = ANY ('{{1,2}}'::{plain}[]) | '1' <> ALL (ARRAY[v])
    (v, w) = (w, v) | (v, w) = ({x}, {y}) | (v, 1) = ({x}::{plain}, 1)
    (v, w) <> (w, v) | (v, w) IS DISTINCT FROM (w, v) | ROW (v, 1) = ROW ({x}, 1)
    (v, w) IN (({x}, w)) | (v, w) IN (SELECT w, v FROM {plain})
    v IN (SELECT w FROM {plain}) | v IN (SELECT {x}) | v IN (SELECT {x}::{plain})
    {x}::{plain} IN (SELECT v) | v = (SELECT {x}) | v = (SELECT {x}::{plain})
    (SELECT v) = {x} | (SELECT v) || {x}
    EXISTS (SELECT FROM {plain} AS o WHERE o.w = {plain}.v AND o.id <> {plain}.id)
    ARRAY[v, w] | ARRAY[v, {x}] | ARRAY[v, {x}::{plain}] | ARRAY[{x}, v]
    ARRAY[NULL, v] | ARRAY[{x}::{plain}, v] | ARRAY[[v], [w]] | ARRAY[v] || w
    ARRAY[v] || ARRAY[w] | ARRAY[v] || {x}::{plain} | {x}::{plain} || ARRAY[v]
    v || ARRAY[w] | ARRAY[v] || '{{1}}' | array_append(ARRAY[v], w)
    array_append(ARRAY[v], {x}) | array_append('{{}}', v)
    array_append(ARRAY[v], {x}::{plain}) | array_prepend(v, ARRAY[w])
    array_fill(v, ARRAY[2]) | array_position(ARRAY[v, w], {x})
    array_position(ARRAY[v, w], {x}::{plain}) | array_positions(ARRAY[v, w, v], v)
    array_remove(ARRAY[v, w], {x}) | array_remove(ARRAY[v, w], v)
    array_replace(ARRAY[v, w], v, {x}) | array_agg(v)
    array_replace(ARRAY[v, w], w, {x}::{plain}) | array_to_string(ARRAY[v, w], ',')
    array_cat(ARRAY[v], ARRAY[w]) | ARRAY[v] = ARRAY[w] | ARRAY[v] && ARRAY[w]
    ARRAY[v] @> ARRAY[w] | ARRAY[v] <> '{{}}' | '{{1}}' && ARRAY[v]
    ARRAY[v, w] <@ ARRAY[w, v] | ARRAY[v] = '{{1}}' | (ARRAY[v, w])[2]
    unnest(ARRAY[v, w]) | cardinality(ARRAY[v]) | ARRAY[v]::{plain}[] | ARRAY[v]::text[]
    ARRAY[v]::text
    ARRAY[{x}::{plain}]::encrypted_{plain}[]::{plain}[] = ARRAY[{x}::{plain}] | count(v)
    count(DISTINCT v) | count(DISTINCT (v, w)) | bool_or(v = w)
    count(*) FILTER (WHERE v = {x}) | (mode() WITHIN GROUP (ORDER BY v) IS NOT NULL)
    lag(v) OVER (ORDER BY id) | lag(v, 1, {x}) OVER (ORDER BY id) | min(v) | max(v)
    lag(v, 1, {x}::{plain}) OVER (ORDER BY id) | first_value(v) OVER (ORDER BY id)
    count(*) OVER (PARTITION BY v) | row_number() OVER (PARTITION BY v ORDER BY id)
    format('%s', v) | format('%s %L', v, w) | concat(v, w) | concat('a', v)
    num_nulls(v) | concat_ws(',', v, {x}) | quote_literal(v) | quote_nullable(v)
    quote_literal(v::text) | to_json(v) | to_jsonb(v) | to_json(ARRAY[v, w])
    to_jsonb(ROW (v, 1)) | json_agg(v) | row_to_json(ROW (v, w)) | to_jsonb({plain})
    row_to_json({plain}) | jsonb_agg(v) | json_build_object('k', v)
    jsonb_build_object('k', v, 'l', w) | json_build_array(v, 1)
    jsonb_build_array(v, w) | json_object_agg(id, v) | jsonb_object_agg(id, v)
    array_to_json(ARRAY[v, w]) | to_json({plain}.*) | md5(v) | length(v) | lower(v)
    length(v::text) | md5(v::text) | upper(v::text) | v::text || 'x' | v::text = w::text
    v::text < w::text | v::{plain} < w::{plain} | v LIKE 'a%' | v ~ 'a' | v::text ~ 'a'
    v ILIKE '%a%' | v SIMILAR TO 'a' | starts_with(v, 'a') | substr(v, 1)
    v::text LIKE '%a%' | v::date | v::bytea | v::jsonb | v::json | v::char(3)
    v::bit(8) | v::uuid | (SELECT count(*) FROM (SELECT v UNION SELECT w) s)
    (SELECT count(*) FROM (SELECT v UNION SELECT {x}) s)
    (SELECT count(*) FROM (SELECT v UNION SELECT {x}::{plain}) s)
    (SELECT count(*) FROM (SELECT {x}::{plain} INTERSECT SELECT v) s)
    (SELECT c FROM (SELECT v AS c UNION ALL SELECT {x}::{plain}) s LIMIT 1)
    (SELECT c FROM (VALUES ({x}::{plain}), (v)) s (c) LIMIT 1)
    (SELECT c FROM (VALUES (v), ({x}), (w)) s (c) LIMIT 1)
    (WITH c AS (SELECT v AS c) SELECT c || {x} FROM c) | GREATEST(v, v) | LEAST(v, NULL)
    {x} || v || {y} | v || {x} || w | v || NULL | NULL || v | v || {x}::{plain} || {y}
    {x}::{plain} || {y} || v | (v || w) || v | v || (w || {x}) | v || v
"""
OWN = {
    "text": "",
    "bytea": r"""
    trim('a' from v) | trim(both 'a'::bytea from v) | trim(v) | trim(both v from w)
    trim(leading w from v) | substring(v from 1 for 2) | substring(v from 2)
    position('a' in v) | position(v in 'abc') | position(v in w)
    overlay(v placing 'x' from 1) | bit_length(v) | overlay('abc' placing v from 1)
    overlay(v placing w from 1 for 1) | char_length(v) | v LIKE '%b%' ESCAPE 'x'
    'abc' LIKE v | 'abc'::bytea LIKE v | v NOT LIKE 'a%' | v LIKE w
    v LIKE ANY (ARRAY['a%', 'b%']) | v LIKE ALL (ARRAY['%'::bytea])
    v || '\x00' || '\xff' | encode(v, 'hex') || 'x'
    decode(encode(v, 'hex'), 'hex') = v | v = decode('61', 'hex')
    ('\x' || encode(v, 'hex'))::bytea = v | v = sha256('a')
    v = convert_to('a', 'UTF8') | string_agg(v, '') | string_agg(v, '\x00' ORDER BY id)
    string_agg(v, w) | v = 'a'::text | string_agg(v, ''::bytea)
    string_agg(encode(v, 'hex'), ',') | v || 'a'::varchar
    (SELECT string_agg(x, ',') FROM unnest(ARRAY[v, w]) x) | hashtext(encode(v, 'hex'))
    """,
    "jsonb": r"""
    v -> 'a' | v -> 0 | v ->> 'a' | v -> 'b' -> 2 -> 'c' | v #>> '{{n,k}}'
    v -> 'a' = '1' | v -> 'a' = w | w = v -> 'a' | (v -> 'a') = v
    v -> 'a' IN (SELECT w FROM jsonb) | (v -> 'a')::int | (v ->> 'a') || 'x'
    v ->> 'a' = '1' | COALESCE(v -> 'a', '1') | COALESCE(v -> 'a', v)
    COALESCE(v, v -> 'a') | COALESCE(v ->> 'a', v ->> 0, 'none')
    CASE WHEN v ? 'a' THEN v -> 'a' ELSE v END | v - 'a' - 'b' | v - 0
    v - '{{a,b}}'::text[] | v #- '{{n,k}}' || '{{}}' | v || '{{"z": 1}}' || w
    '{{"z": 1}}' || v || '[1]' | v || jsonb_build_object('a', 2)
    jsonb_build_object('a', 2) || v | v || to_jsonb(1) | v @> '{{"a": 1}}'
    '{{"a": 1}}' <@ v | v @> ANY (ARRAY['{{}}'::jsonb, w]) | v @> '1' = true
    jsonb_set(v, '{{a}}', '9') | jsonb_set(v, '{{a}}', w)
    jsonb_set(v, '{{a}}', v -> 'n') | jsonb_set('{{"a": 1}}', '{{a}}', v)
    jsonb_set(v, '{{x,y}}', '1', false)
    jsonb_set_lax(v, '{{a}}', NULL, true, 'delete_key')
    jsonb_insert(v, '{{b,0}}', w, true) | jsonb_extract_path(v, 'b', '2')
    jsonb_extract_path_text(v, 'n', 'k') | jsonb_delete(v, 'a', 'b')
    jsonb_extract_path(v, VARIADIC ARRAY['b', '2'])
    jsonb_path_query_array(v, '$[*] ? (@ > $x)', '{{"x": 1}}')
    v @? '$.a' AND v @@ '$.a == 1'
    jsonb_path_query_first(v, '$.a', vars => w, silent => true)
    jsonb_typeof(v) = 'object'
    (SELECT string_agg(x::text, ',') FROM jsonb_array_elements(v -> 'b') x)
    (SELECT string_agg(k || e::text, ',') FROM jsonb_each(v) AS x (k, e))
    (SELECT string_agg(k, ',') FROM jsonb_object_keys(v) AS x (k))
    (SELECT r.a FROM jsonb_to_record(v) AS r (a text)) | to_tsvector('simple', v)
    (SELECT string_agg(r.a, ',') FROM jsonb_to_recordset(v) AS r (a text))
    jsonb_populate_record(NULL::pair, v) | (jsonb_populate_record(NULL::pair, v)).b
    jsonb_populate_record(NULL::pair, COALESCE(v, '{{}}')) | json_strip_nulls(v::json)
    json_typeof(v::json) | v::json -> 'a' | v::json #>> '{{n,k}}'
    json_array_length(v::json) | jsonb_object_agg(COALESCE(v ->> 'a', id::text), v)
    jsonb_agg(v ORDER BY id) -> 0 | row_to_json((SELECT x FROM (SELECT v, w) x))
    jsonb_agg(jsonb.*) | v::text::jsonb = v | int4(v) | "numeric"(v) | bool(v)
    v::int | v::smallint | v::bigint | v::numeric | v::real | v::float8 | v::boolean
    v::jsonb::int | (v::jsonb)['a'] | (v -> 'n')['k'] | v = '1.00' | v = '1e0'::jsonb
    v = 'null' | v = '"a"' | v = '' | v = 'a' | v = '{{"a" :1}}'
    """,
}


def expressions(kind: Kind) -> list[str]:
    x, y = MORE[kind.plain][0], kind.two.literal
    every = listed(EVERY) + listed(OWN[kind.plain])
    return [each.format(x=x, y=y, plain=kind.plain) for each in every]


def listed(text: str) -> list[str]:
    lines = text.strip().splitlines()
    return [each for line in lines for each in line.strip().split(" | ")]


@every_kind
def test_an_expression_gives_what_it_gives_on_plain_values(
    session: psycopg.Connection, kind: Kind
) -> None:
    found = outcomes(session, kind, expressions(kind))
    # Few are there to be refused.
    assert sum(":" in plain for plain, _ in found.values()) > 190
    different = {
        expression: both for expression, both in found.items() if both[0] != both[1]
    }
    assert different == {}


# With what is on the right an encrypted value does what it does not do by itself.
DIFFERENT = {
    "jsonb": {
        "v['a']": "(v::jsonb)['a']",
        "jsonb(v)": "v::jsonb",
        "v < w": "v::jsonb < w::jsonb",
        "v BETWEEN '0' AND '9'": "v::jsonb BETWEEN '0' AND '9'",
        "v > ANY (ARRAY['0'::jsonb])": "v::jsonb > ANY (ARRAY['0'::jsonb])",
    },
    "bytea": {
        "bytea(v)": "v::bytea",
        "v < w": "v::bytea < w::bytea",
        "v BETWEEN 'a' AND 'b'": "v::bytea BETWEEN 'a' AND 'b'",
        "xmlelement(name a, v)": "xmlelement(name a, v::bytea)",
    },
}


@pytest.mark.parametrize(
    "plain, expression",
    [(plain, expression) for plain in DIFFERENT for expression in DIFFERENT[plain]],
)
def test_a_cast_gives_what_an_encrypted_value_does_not(
    session: psycopg.Connection, plain: str, expression: str
) -> None:
    kind = next(kind for kind in KINDS if kind.plain == plain)
    cast = DIFFERENT[plain][expression]
    found = outcomes(session, kind, [expression, cast])
    assert found[cast][0] == found[cast][1]
    assert found[expression][0] == found[cast][0] != found[expression][1]


# Parameters


PARAMETERS = {
    "text": "v || $1 | v = $1 | v LIKE $1",
    "bytea": """
    v || $1 | $1 || v | v || $1::text | v LIKE $1 | $1 LIKE v | position($1 in v)
    overlay(v placing $1 from 1) | btrim(v, $1) | encode(v, $1) | get_byte(v, $1)
    substring(v from $1) | string_agg(v, $1) | convert_from(v, $1) | v || $1::bytea
    """,
    "jsonb": """
    v -> $1 | v ->> $1 | v #> $1 | v #>> $1 | v @> $1 | v <@ $1 | $1 @> v | v ? $1
    v ?| $1 | v || $1 | $1 || v | v - $1 | v #- $1 | v @? $1 | v @@ $1 | v -> $1::int
    jsonb_set(v, $1, $2) | jsonb_set($1, '{a}', v) | jsonb_path_query_first(v, $1)
    jsonb_extract_path(v, $1) | v || $1::jsonb | v || $1::text | to_tsvector($1, v)
    """,
}
EVERY_PARAMETER = """
    v = $1 | $1 = v | v <> $1 | v IN ($1, $2) | v = ANY ($1) | $1 = ANY (ARRAY[v])
    COALESCE(v, $1) | NULLIF(v, $1) | NULLIF($1, v) | CASE v WHEN $1 THEN 1 END
    v IS DISTINCT FROM $1 | (v, w) = ($1, $2) | ARRAY[v] || $1 | $1 || ARRAY[v] | v ~ $1
    v::{0} = $1 | v = $1::{0} | $1::{0} = v | v <> ALL ($1::{0}[]) | v || $1 || w | $1
"""


@every_kind
def test_a_parameter_is_of_the_type_that_it_is_on_plain_values(
    session: psycopg.Connection, kind: Kind
) -> None:
    """Of the plain type, or of the encrypted type in place of it: a driver that sends
    either form, sends one that both read."""

    def types(schema: str, expression: str) -> str:
        session.execute(f"SET search_path = {schema}, public")
        try:
            session.execute(f"PREPARE q AS SELECT {expression} AS x FROM {kind.plain}")
        except psycopg.Error as error:
            return error.sqlstate or ""
        named = "SELECT parameter_types::text FROM pg_prepared_statements"
        found = fetch(session, named).replace("encrypted_", "")
        session.execute("DEALLOCATE q")
        return found

    every = listed(PARAMETERS[kind.plain]) + listed(EVERY_PARAMETER)
    for expression in (each.replace("{0}", kind.plain) for each in every):
        assert types("sealed", expression) == types("plain", expression), expression


# What is about plain values


@every_kind
def test_the_extension_changes_nothing_for_plain_values(
    session: psycopg.Connection, kind: Kind
) -> None:
    """Its operators and functions are not taken for those of PostgreSQL."""
    everything = expressions(kind) + [
        f"{left} {name} {right}"
        for name in (
            "=",
            "<>",
            "<",
            ">=",
            "||",
            "-",
            "->",
            "@>",
            "?",
            "LIKE",
            "~",
            "&&",
            "+",
        )
        for operand in operands(kind)
        for left, right in (
            ("v", operand),
            (operand, "v"),
            (operand, kind.two.literal),
            (kind.two.literal, operand),
            (operand, f"{kind.two.literal}::{kind.plain}"),
        )
    ]
    rows = session.execute(
        "SELECT e, public.outcome('plain', e, %(table)s),"
        " public.outcome('plain, public', e, %(table)s) FROM unnest(%(all)s::text[]) e"
        " WHERE e !~ 'encrypted_'",
        {"table": kind.plain, "all": everything},
    ).fetchall()
    assert len(rows) > 1000
    assert [row for row in rows if row[1] != row[2]] == []
