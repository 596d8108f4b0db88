"""Who sees what: roles with each access mode, and without a grant on the key, at each
door that shows or compares encrypted values.

The schemas `open`, `pii` and `keyed` hold the same tables and values: under the primary
key of the ring, under the key that the column's type names, and under one that
colcrypt.write_key named. The schemas `clear`, `masks` and `tokens` hold them as text:
what a role may see of them. So a query by a role must give what it gives to anybody in
the schema of that role's view.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege, UniqueViolation

from conftest import MakeCluster
from harness import FORCE_PARALLEL, MAJOR, Cluster, fetch, new_key
from observed import Observed, observe

MASK = "********"
DENIED = "42501"
VALUES = {1: "canary-amber", 2: "canary-basalt", 3: "canary-basalt", 4: None}
# One that is there, and one of the same length that is not.
RIGHT, WRONG = "canary-amber", "canary-amble"
# As PostgreSQL cuts it off in "Failing row contains".
TOKEN = re.compile(r"colcrypt:v1:[-\w]+(\.\.\.)?")

SEALED = {"open": "encrypted_text", "pii": "encrypted_text(pii)"}
SEALED["keyed"] = "encrypted_text"
VIEWS = {
    "clear": "secret::text",
    "masks": f"CASE WHEN secret IS NOT NULL THEN '{MASK}' END",
    "tokens": "ciphertext(secret)",
}


class Reader(NamedTuple):
    """A role: the mode that it is given, the tables that it reads, and what it sees."""

    access: str | None
    schema: str
    sees: str
    granted: bool = False

    @property
    def is_restricted(self) -> bool:
        return self.sees != "clear"


READERS = {
    "full": Reader(None, "open", "clear"),
    "granted": Reader("full", "pii", "clear", granted=True),
    "granted_keyed": Reader(None, "keyed", "clear", granted=True),
    "masked": Reader("masked", "open", "masks"),
    "masked_granted": Reader("masked", "pii", "masks", granted=True),
    "ciphertext": Reader("ciphertext", "open", "tokens"),
    "ciphertext_granted": Reader("ciphertext", "keyed", "tokens", granted=True),
    "no_grant": Reader(None, "pii", "masks"),
    "no_grant_keyed": Reader(None, "keyed", "masks"),
    "ciphertext_no_grant": Reader("ciphertext", "pii", "masks"),
}
RESTRICTED = [name for name, reader in READERS.items() if reader.is_restricted]
UNRESTRICTED = [name for name in READERS if name not in RESTRICTED]
WRITERS = [*READERS, "write_only"]

# t has no index, b a btree, h a hash index, u a constraint of each kind.
TABLES = """
    CREATE TABLE t (id int PRIMARY KEY, secret {type}, n int DEFAULT 0 CHECK (n < 100));
    INSERT INTO t SELECT id, secret FROM public.origin;
    CREATE TABLE b AS TABLE t;
    CREATE INDEX ON b USING btree (secret);
    CREATE TABLE h AS TABLE t;
    CREATE INDEX ON h USING hash (secret);
    CREATE TABLE u (id int, secret {type} NOT NULL UNIQUE, n int CHECK (n < 100));
    INSERT INTO u SELECT id, secret, 0 FROM t WHERE id < 3;
    CREATE TYPE pair AS (secret {type}, n int);
    CREATE TABLE r (id int, pair pair);
    INSERT INTO r SELECT id, row(secret, n)::pair FROM t;
    CREATE INDEX ON r (pair);
    CREATE TABLE a (id int, list {type}[]);
    INSERT INTO a SELECT id, array[secret] FROM t;
    CREATE INDEX ON a (list);
    CREATE INDEX ON a USING gin (list);
    CREATE VIEW v AS SELECT id, secret FROM t;
    CREATE VIEW grouped AS SELECT secret, count(*) FROM t GROUP BY secret;
"""
# Where things are written, by the kind of order that is kept there.
KEPT_IN_ORDER = """
    CREATE TABLE wt (id int, secret {type});
    CREATE TABLE wb (id int, secret {type} UNIQUE);
    CREATE TABLE wi (id int, secret {type});
    CREATE INDEX ON wi USING btree (secret);
    CREATE INDEX ON wi USING hash (secret);
    CREATE TABLE wx (id int, secret {type}, EXCLUDE USING hash (secret WITH =));
    CREATE TABLE wh (id int, secret {type} UNIQUE) PARTITION BY HASH (secret);
    CREATE TABLE wh0 PARTITION OF wh FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE wh1 PARTITION OF wh FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    CREATE TABLE wl (id int, secret {type}) PARTITION BY LIST (secret);
    CREATE TABLE wl0 PARTITION OF wl FOR VALUES IN ('new-1', 'new-2');
    CREATE TABLE wl1 PARTITION OF wl DEFAULT;
    CREATE TABLE wr (id int, secret {type}) PARTITION BY RANGE (secret);
    CREATE TABLE wr0 PARTITION OF wr FOR VALUES FROM (MINVALUE) TO (MAXVALUE);
"""
ORDERED = ["wt", "wb", "wi", "wx", "wh", "wl", "wr"]
UNIQUE = ["wb", "wx", "wh"]


def make_schema(session: psycopg.Connection, name: str) -> None:
    session.execute(f"CREATE SCHEMA {name}; SET search_path = {name}, public")


def make_tables(host: Cluster) -> None:
    with host.connect() as session:
        for key in ("pii", "tenant"):
            session.execute("SELECT colcrypt.create_key(%s)", [key])
        session.execute("CREATE TABLE origin (id int, secret text)")
        for row in VALUES.items():
            session.execute("INSERT INTO origin VALUES (%s, %s)", row)
        for schema, type in SEALED.items():
            # Not before the partition bounds and whatever else is in the catalog.
            make_schema(session, schema)
            session.execute(KEPT_IN_ORDER.format(type=type))
            key = "tenant" if schema == "keyed" else ""
            session.execute(f"SET colcrypt.write_key = '{key}'")
            session.execute(TABLES.format(type=type))
            session.execute("RESET colcrypt.write_key; ANALYZE t, b, h, u")
        for schema, seen in VIEWS.items():
            make_schema(session, schema)
            for sealed in SEALED:
                session.execute(
                    f"CREATE TABLE {sealed}_t AS SELECT id, {seen} AS secret, n"
                    f" FROM {sealed}.t"
                )
        # So that each view has the tables of the role that is looked at.
        for role, reader in [*READERS.items(), ("write_only", Reader(None, "pii", ""))]:
            session.execute(f"CREATE ROLE {role} LOGIN")
            rights = "INSERT" if role == "write_only" else "ALL"
            session.execute(
                f"GRANT USAGE ON SCHEMA {reader.schema} TO {role};"
                f"GRANT {rights} ON ALL TABLES IN SCHEMA {reader.schema} TO {role}"
            )
            if reader.access is not None:
                setting = f"colcrypt.access = {reader.access}"
                session.execute(f"ALTER ROLE {role} SET {setting}")
        # A key is open to all until the first grant.
        for role, reader in READERS.items():
            for key in ("pii", "tenant"):
                if reader.granted:
                    session.execute(f"SELECT colcrypt.grant_key('{key}', '{role}')")
        session.execute("CREATE SCHEMA scratch; GRANT ALL ON SCHEMA scratch TO PUBLIC")


@pytest.fixture(scope="module")
def host(base: Path, template: Path) -> Iterator[Cluster]:
    cluster = Cluster(base, template, ring=new_key())
    cluster.conf(autovacuum=False, log_error_verbosity="verbose")
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt")
    try:
        make_tables(cluster)
        yield cluster
    finally:
        cluster.destroy()


@pytest.fixture(scope="module")
def sessions(host: Cluster) -> Iterator[dict[str, psycopg.Connection]]:
    """A session of each role, and of the superuser, in which the library is loaded."""
    opened = {role: connect(host, role) for role in [*WRITERS, "postgres"]}
    yield opened
    for session in opened.values():
        session.close()


def connect(host: Cluster, role: str, **options: Any) -> psycopg.Connection:
    # psycopg would DEALLOCATE ALL after a ROLLBACK.
    session = host.connect(user=role, prepare_threshold=None, **options)
    session.execute("SELECT 'load'::encrypted_text")
    schema = READERS[role].schema if role in READERS else "pii"
    session.execute(f"SET search_path = {schema}, public")
    return session


class Outcome(Observed):
    def without(self, guess: str) -> str:
        """What is left to tell one guess from another."""
        told = repr(self[:3]).replace(guess, "GUESS")
        return TOKEN.sub("TOKEN", told)

    def reveals(self, guess: str = RIGHT) -> bool:
        """Whether it shows a value that the client did not send itself."""
        return "canary" in f"{self}".replace(guess, "GUESS")


run = partial(observe, Outcome)


def guesses(
    host: Cluster, session: psycopg.Connection, *statements: str
) -> tuple[Outcome, Outcome]:
    """What comes of statements with a right guess in them and with a wrong one."""
    right, wrong = (
        run(host, session, *(text.replace("{g}", guess) for text in statements))
        for guess in (RIGHT, WRONG)
    )
    return right, wrong


def assert_indistinguishable(outcomes: tuple[Outcome, Outcome]) -> None:
    right, wrong = outcomes
    assert right.without(RIGHT) == wrong.without(WRONG)
    assert not right.reveals(RIGHT)
    assert not wrong.reveals(WRONG)


# What is shown

IN_ORDER = "FROM t ORDER BY id"
READS = {
    "select": f"SELECT secret {IN_ORDER}",
    "row": f"SELECT t.* {IN_ORDER}",
    "record": f"SELECT row(id, secret) {IN_ORDER}",
    "whole row": f"SELECT (t).secret {IN_ORDER}",
    "cast to text": f"SELECT secret::text {IN_ORDER}",
    "cast to varchar": f"SELECT secret::varchar(6) {IN_ORDER}",
    "cast to bpchar": f"SELECT secret::char(30) {IN_ORDER}",
    "cast to name": f"SELECT secret::name {IN_ORDER}",
    "cast to bytea": f"SELECT secret::text::bytea {IN_ORDER}",
    "cast to array": "SELECT array_agg(secret ORDER BY id)::text[] FROM t",
    "cast of record": f"SELECT row(secret)::text {IN_ORDER}",
    "concatenate": f"SELECT 'a' || secret || 'b', concat(secret, id) {IN_ORDER}",
    "format": f"SELECT format('%s %L %I', secret, secret, secret) {IN_ORDER}",
    "quote": f"SELECT quote_literal(secret), quote_nullable(secret) {IN_ORDER}",
    "substring": f"SELECT substr(secret, 3, 4), left(secret, 2) {IN_ORDER}",
    "length": f"SELECT length(secret), octet_length(secret) {IN_ORDER}",
    "upper": f"SELECT upper(secret), reverse(secret) {IN_ORDER}",
    "position": f"SELECT position('amber' IN secret) {IN_ORDER}",
    "digest": f"SELECT md5(secret), sha256(secret::text::bytea) {IN_ORDER}",
    "hash of text": f"SELECT hashtext(secret), hashtextextended(secret, 1) {IN_ORDER}",
    "encode": f"SELECT encode(convert_to(secret, 'utf8'), 'hex') {IN_ORDER}",
    "ascii": f"SELECT ascii(secret) {IN_ORDER}",
    "like": f"SELECT secret LIKE 'canary-am%', secret ILIKE '%AMBER' {IN_ORDER}",
    "like any": f"SELECT secret LIKE ANY ('{{%amber,%*%}}') {IN_ORDER}",
    "regular expression": f"SELECT secret ~ 'amber', secret SIMILAR TO '%r' {IN_ORDER}",
    "equal as text": f"SELECT secret::text = '{RIGHT}', secret::text > 'b' {IN_ORDER}",
    "order by text": "SELECT id FROM t ORDER BY secret::text, id",
    "group by text": "SELECT count(*) FROM t GROUP BY secret::text ORDER BY 1",
    "min and max": "SELECT min(secret), max(secret), count(secret) FROM t",
    "string_agg": "SELECT string_agg(secret, ',' ORDER BY id) FROM t",
    "string_agg distinct": "SELECT string_agg(DISTINCT secret::text, ',') FROM t",
    "array_to_string": "SELECT array_to_string(array_agg(secret ORDER BY id), ',')"
    " FROM t",
    "array text": "SELECT array_agg(secret ORDER BY id)::text FROM t",
    "unnest": "SELECT unnest(array_agg(secret ORDER BY id)) FROM t",
    "coalesce": f"SELECT coalesce(secret, 'none'::text) {IN_ORDER}",
    "case": f"SELECT CASE WHEN id > 1 THEN secret ELSE 'none'::text END {IN_ORDER}",
    "is null": f"SELECT secret IS NULL {IN_ORDER}",
    "window": f"SELECT lag(secret) OVER (ORDER BY id) {IN_ORDER}",
    "row_to_json": f"SELECT row_to_json(t) {IN_ORDER}",
    "to_jsonb": f"SELECT to_jsonb(secret), to_json(secret) {IN_ORDER}",
    "jsonb_build_object": f"SELECT jsonb_build_object('k', secret) {IN_ORDER}",
    "json_agg": "SELECT json_agg(secret ORDER BY id) FROM t",
    "json object key": "SELECT jsonb_object_agg(id, secret) FROM t",
    "xml": f"SELECT xmlforest(secret)::text {IN_ORDER}",
    "query_to_xml": f"SELECT query_to_xml('SELECT secret {IN_ORDER}', true, true, '')"
    "::text",
    "to_tsvector": f"SELECT to_tsvector('simple', secret) {IN_ORDER}",
    "split": f"SELECT string_to_array(secret, '-') {IN_ORDER}",
    "rows from": "SELECT regexp_split_to_table(secret, '-') FROM t WHERE id = 1",
    "send": f"SELECT textsend(secret) {IN_ORDER}",
    "record_out": f"SELECT record_out(row(secret)) {IN_ORDER}",
    "copy": f"COPY (SELECT secret {IN_ORDER}) TO STDOUT",
    "copy csv": f"COPY (SELECT secret {IN_ORDER}) TO STDOUT (FORMAT csv)",
    "copy binary": f"COPY (SELECT id, secret {IN_ORDER}) TO STDOUT (FORMAT binary)",
    "copy table": "COPY t (id, secret) TO STDOUT",
    "copy table binary": "COPY t (id, secret) TO STDOUT (FORMAT binary)",
    "subquery": "SELECT (SELECT secret FROM t WHERE id = 1)",
    "CTE": "WITH c AS MATERIALIZED (SELECT * FROM t) SELECT secret FROM c ORDER BY id",
    "limit": f"SELECT secret {IN_ORDER} LIMIT 2 OFFSET 1",
    "update returning": "UPDATE t SET n = 1 WHERE id = 1 RETURNING secret, md5(secret)",
    "delete returning": "DELETE FROM t WHERE id = 1 RETURNING secret, secret LIKE 'c%'",
    "union all": "SELECT secret FROM t WHERE id = 1 UNION ALL SELECT secret FROM t"
    " WHERE id = 2",
}
SEQUENCES = {
    "cursor": [
        f"DECLARE c SCROLL CURSOR FOR SELECT secret, secret::text {IN_ORDER}",
        "FETCH 2 FROM c",
        "FETCH BACKWARD 1 FROM c",
        "FETCH ALL FROM c",
    ],
    "prepared": [
        "PREPARE reading AS SELECT secret FROM t WHERE id = $1",
        "EXECUTE reading (1)",
        "EXECUTE reading (2)",
        "DEALLOCATE reading",
    ],
    "notice": [
        "DO $$ DECLARE s text; BEGIN SELECT secret INTO s FROM t WHERE id = 1;"
        " RAISE NOTICE 'it is %', s; END $$",
    ],
    "raised": [
        "DO $$ DECLARE s record; BEGIN SELECT * INTO s FROM t WHERE id = 1;"
        " RAISE EXCEPTION 'it is %', s USING DETAIL = s.secret, HINT = s; END $$",
    ],
    "cast error": ["SELECT secret::text::int FROM t WHERE id = 1"],
    "cast error of json": ["SELECT secret::text::json FROM t WHERE id = 1"],
    "cast error of a function": ["SELECT to_number(secret, '9') FROM t WHERE id = 1"],
    "check violation": ["UPDATE t SET n = 100 WHERE id = 1"],
    "check of one's own": [
        "CREATE TEMP TABLE own (id int, s text CHECK (s = 'x'))",
        "INSERT INTO own SELECT id, secret FROM t WHERE id = 1",
    ],
    "copies": [
        "CREATE TEMP TABLE own AS SELECT id, secret FROM t",
        "SELECT secret FROM own ORDER BY id",
        "SELECT secret::text FROM own ORDER BY id",
    ],
    "copies of text": [
        "CREATE TEMP TABLE own AS SELECT id, secret::text FROM t",
        "SELECT secret FROM own ORDER BY id",
    ],
    "trigger of one's own": [
        "CREATE TEMP TABLE own AS SELECT id, secret FROM t",
        "CREATE FUNCTION pg_temp.tell() RETURNS trigger LANGUAGE plpgsql AS $$"
        " BEGIN RAISE NOTICE '% %', OLD.secret, NEW; RETURN NEW; END $$",
        "CREATE TRIGGER tell BEFORE UPDATE ON own FOR EACH ROW"
        " EXECUTE FUNCTION pg_temp.tell()",
        "UPDATE own SET id = 9 WHERE id = 1",
    ],
}
SEQUENCES |= {name: [statement] for name, statement in READS.items()}


@pytest.mark.parametrize("role", READERS)
@pytest.mark.parametrize("name", SEQUENCES)
def test_a_role_is_shown_its_view(
    host: Cluster, sessions: dict[str, psycopg.Connection], role: str, name: str
) -> None:
    reader = READERS[role]
    seen = run(host, sessions[role], *SEQUENCES[name])
    # In the same words, but from the view.
    control = sessions["postgres"]
    control.execute(
        f"CREATE TABLE {reader.sees}.t AS TABLE {reader.sees}.{reader.schema}_t;"
        f"ALTER TABLE {reader.sees}.t ADD CONSTRAINT t_n_check CHECK (n < 100);"
        f"SET search_path = {reader.sees}, public"
    )
    try:
        expected = run(host, control, *SEQUENCES[name])
    finally:
        control.execute(f"DROP TABLE {reader.sees}.t; RESET search_path")
    assert without_context(seen) == without_context(expected)
    if reader.is_restricted:
        assert not seen.reveals()


def without_context(outcome: Outcome) -> tuple[Any, ...]:
    return outcome.results, outcome.error[:-1], [told[:-1] for told in outcome.notices]


@pytest.mark.parametrize("role", READERS)
def test_a_binary_result_is_the_view_as_well(
    sessions: dict[str, psycopg.Connection], role: str
) -> None:
    reader = READERS[role]
    with sessions[role].cursor(binary=True) as cursor:
        shown = cursor.execute(f"SELECT secret::text, secret {IN_ORDER}").fetchall()
    view = f"SELECT secret FROM {reader.sees}.{reader.schema}_t ORDER BY id"
    values = [value for (value,) in sessions["postgres"].execute(view)]
    raw = [None if value is None else value.encode() for value in values]
    assert shown == list(zip(values, raw))


@pytest.mark.parametrize("role", READERS)
@pytest.mark.parametrize("function", ["decrypt", "try_decrypt", "ciphertext"])
def test_functions_by_name_refuse_where_the_output_hides(
    host: Cluster, sessions: dict[str, psycopg.Connection], role: str, function: str
) -> None:
    sees = READERS[role].sees
    call = f"SELECT {function}(secret) FROM t WHERE id = 1"
    outcome = run(host, sessions[role], call)
    if sees == "clear" or (function == "ciphertext" and sees == "tokens"):
        assert not outcome.error
        [[(value,)]] = outcome.results
        assert value.startswith("colcrypt:v1:" if function == "ciphertext" else RIGHT)
    else:
        assert outcome.sqlstate == DENIED
        assert not outcome.reveals()


@pytest.mark.parametrize("role", ["full", "masked", "ciphertext"])
def test_a_fernet_token_is_ciphertext(
    sessions: dict[str, psycopg.Connection], role: str
) -> None:
    session = sessions[role]
    session.execute("SET colcrypt.algorithm = 'fernet'")
    token = "SELECT fernet_token('x'::text::encrypted_text)"
    try:
        if role == "masked":
            with pytest.raises(InsufficientPrivilege):
                session.execute(token)
        else:
            assert fetch(session, token).startswith("gAAAAA")
    finally:
        session.execute("RESET colcrypt.algorithm")


# What compares

WHERE = {
    "= literal": "secret = '{g}'",
    "= text": "secret = '{g}'::text",
    "= varchar": "secret = '{g}'::varchar",
    "= name": "secret = '{g}'::name",
    "= subquery": "secret = (SELECT '{g}'::text)",
    "commuted": "'{g}'::text = secret",
    "commuted name": "'{g}'::name = secret",
    "<>": "secret <> '{g}'",
    "<> name": "secret <> '{g}'::name",
    "not": "NOT secret = '{g}'",
    "in one": "secret IN ('{g}')",
    "in": "secret IN ('{g}', 'x')",
    "in column": "secret IN ('{g}', id::text)",
    "not in": "secret NOT IN ('{g}', 'x')",
    "in query": "secret IN (SELECT '{g}'::text UNION ALL SELECT 'x')",
    "in values": "secret IN (VALUES ('{g}'::encrypted_text), ('x'))",
    "not in query": "secret NOT IN (SELECT '{g}'::encrypted_text)",
    "any": "secret = ANY ('{{g},x}')",
    "any text": "secret = ANY ('{{g},x}'::text[])",
    "any column": "secret = ANY (ARRAY['{g}', id::text])",
    "any of values": "'{g}'::text = ANY (ARRAY[secret, secret])",
    "all": "secret <> ALL ('{{g},x}')",
    "distinct from": "secret IS DISTINCT FROM '{g}'",
    "not distinct from": "secret IS NOT DISTINCT FROM '{g}'::text",
    "or": "id < 0 OR secret = '{g}'",
    "by tag": "secret <~ '{g}'",
    "by tag of text": "'{g}'::text >=~ secret",
    "between by tag": "secret >=~ '{g}' AND secret <=~ '{g}'",
    "row": "(secret, id) = ('{g}', 1)",
    "row <>": "(secret, id) <> ('{g}', 1)",
    "row in": "(id, secret) IN ((1, '{g}'), (2, '{g}'))",
    "row in query": "(id, secret) IN (SELECT 1, '{g}'::text)",
    "record": "row(secret) = row('{g}'::encrypted_text)",
    "record in": "row(secret) IN (row('{g}'::encrypted_text), row(NULL))",
    "record distinct": "row(secret) IS DISTINCT FROM row('{g}'::encrypted_text)",
    "record <": "row(secret)::record < row('{g}'::encrypted_text)::record",
    "record function": "record_eq(row(secret), row('{g}'::encrypted_text))",
    "record order": "btrecordcmp(row(secret), row('{g}'::encrypted_text)) = 0",
    "record hash": "hash_record(row(secret)) = hash_record(row('{g}'::encrypted_text))",
    "array": "array[secret] = array['{g}'::encrypted_text]",
    "array <": "array[secret] < array['{g}'::encrypted_text]",
    "array &&": "array[secret] && array['{g}'::encrypted_text]",
    "array @>": "array[secret] @> array['{g}'::encrypted_text]",
    "array order": "btarraycmp(array[secret], array['{g}'::encrypted_text]) = 0",
    "array hash": "hash_array(array[secret])"
    " = hash_array(array['{g}'::encrypted_text])",
    "array hash 64": "hash_array_extended(array[secret], 0) <> 0",
    "array_position": "array_position(array[secret], '{g}'::encrypted_text) = 1",
    "array_positions": "array_positions(array[secret], '{g}'::encrypted_text) = '{1}'",
    "array_remove": "array_remove(array[secret], '{g}'::encrypted_text) = '{}'",
    "array_replace": "cardinality(array_replace(array[secret], '{g}', 'x')) = 1",
    "array_larger": "array_larger(array[secret], array['{g}'::encrypted_text])"
    "::text LIKE 'x'",
    "width_bucket": "width_bucket(secret, array['{g}'::encrypted_text]) = 1",
    "greatest": "greatest(secret, '{g}')::text LIKE 'x'",
    "least": "least(secret, '{g}'::encrypted_text) IS NULL",
    "nullif": "nullif(secret, '{g}') IS NULL",
    "nullif text": "nullif(secret, '{g}'::text) IS NULL",
    "case": "CASE secret WHEN '{g}' THEN true ELSE false END",
    "function": "encrypted_text_eq(secret, '{g}'::encrypted_text)",
    "function of text": "encrypted_text_eq(secret, '{g}'::text)",
    "function of name": "encrypted_text_ne('{g}'::name, secret)",
    "function by tag": "encrypted_text_lt(secret, '{g}'::text)",
    "operator by name": "secret OPERATOR(public.=) '{g}'",
    "exists": "EXISTS (SELECT FROM t o WHERE o.secret = t.secret AND o.id <> t.id)",
    "lateral": "(SELECT o.secret = t.secret FROM t o WHERE o.id = 1)",
    "domain": "secret::scratch.forty = '{g}'",
}
QUERIES = {
    "join": "SELECT a.id FROM t a JOIN t b ON a.secret = b.secret",
    "join using": "SELECT a.id FROM t a JOIN t b USING (secret)",
    # OFFSET because 18 does without a join of a table with itself, and compares nothing.
    "natural join": "SELECT id FROM t NATURAL JOIN"
    " (SELECT id, secret FROM t OFFSET 0) b",
    "left join": "SELECT a.id FROM t a LEFT JOIN t b ON b.secret = a.secret::text",
    "full join": "SELECT a.id FROM t a FULL JOIN t b ON a.secret = b.secret",
    "join text": "SELECT id FROM t JOIN (VALUES ('{g}')) x(x) ON secret = x",
    "join indexed": "SELECT a.id FROM t a JOIN b ON a.secret = b.secret",
    "semijoin": "SELECT id FROM t WHERE secret IN (SELECT secret FROM b)",
    "antijoin": "SELECT id FROM t WHERE NOT EXISTS (SELECT FROM b"
    " WHERE b.secret = t.secret)",
    "group by": "SELECT count(*) FROM t GROUP BY secret",
    "group by record": "SELECT count(*) FROM t GROUP BY row(secret)",
    "group by array": "SELECT count(*) FROM t GROUP BY array[secret]",
    "group by row": "SELECT count(*) FROM t GROUP BY t",
    "rollup": "SELECT count(*) FROM t GROUP BY ROLLUP (secret, id)",
    "having": "SELECT max(id) FROM t HAVING count(DISTINCT secret) > 1",
    "distinct": "SELECT DISTINCT secret FROM t",
    "distinct on": "SELECT DISTINCT ON (secret) id FROM t",
    "distinct record": "SELECT DISTINCT row(secret) FROM t",
    "union": "SELECT secret FROM t UNION SELECT '{g}'",
    "intersect": "SELECT secret FROM t INTERSECT SELECT '{g}'",
    "except": "SELECT secret FROM t EXCEPT SELECT '{g}'",
    "except all": "SELECT secret FROM t EXCEPT ALL SELECT secret FROM b",
    "recursion": "WITH RECURSIVE r AS (SELECT secret FROM t UNION SELECT secret FROM r)"
    " SELECT count(*) FROM r",
    "cycle": "WITH RECURSIVE r AS (SELECT secret, 1 AS step FROM t UNION ALL"
    " SELECT t.secret, step + 1 FROM r, t WHERE step < 3)"
    " CYCLE secret SET seen USING path SELECT count(*) FROM r",
    "count distinct": "SELECT count(DISTINCT secret) FROM t",
    "count distinct record": "SELECT count(DISTINCT row(secret)) FROM t",
    "array_agg distinct": "SELECT array_agg(DISTINCT secret) FROM t",
    "array_agg order by": "SELECT array_agg(id ORDER BY secret) FROM t",
    "mode": "SELECT mode() WITHIN GROUP (ORDER BY secret) FROM t",
    "percentile": "SELECT percentile_disc(0) WITHIN GROUP (ORDER BY secret) FROM t",
    "rank": "SELECT rank('{g}'::encrypted_text) WITHIN GROUP (ORDER BY secret) FROM t",
    "partition by": "SELECT count(*) OVER (PARTITION BY secret) FROM t",
    "window order": "SELECT rank() OVER (ORDER BY secret) FROM t",
    "window frame": "SELECT count(*) OVER (ORDER BY secret GROUPS CURRENT ROW) FROM t",
    "order by": "SELECT id FROM t ORDER BY secret",
    "order by using": "SELECT id FROM t ORDER BY secret USING >~",
    "order by record": "SELECT id FROM t ORDER BY row(secret)",
    "order by array": "SELECT id FROM t ORDER BY array[secret]",
    "top": "SELECT id FROM t ORDER BY secret DESC LIMIT 1",
    "compared and shown": "SELECT secret = '{g}' FROM t",
    "view": "SELECT id FROM v WHERE secret = '{g}'",
    "view that groups": "SELECT * FROM grouped",
    "in a CTE": "WITH c AS MATERIALIZED (SELECT id FROM t WHERE secret = '{g}')"
    " TABLE c",
    "in a function's query": "SELECT query_to_xml('SELECT id FROM t"
    " WHERE secret = ''{g}''', true, true, '')::text",
    "lateral function": "SELECT id FROM t, LATERAL encrypted_text_eq(secret, '{g}') e"
    " WHERE e",
    "limit": "SELECT 1 FROM t LIMIT (SELECT count(DISTINCT secret) FROM t)",
    "explain": "EXPLAIN (ANALYZE, VERBOSE, TIMING off, SUMMARY off, COSTS off)"
    " SELECT id FROM t WHERE secret = '{g}'",
    "explain group": "EXPLAIN (ANALYZE, TIMING off, SUMMARY off)"
    " SELECT count(*) FROM t GROUP BY secret",
    "update where": "UPDATE t SET n = 1 WHERE secret = '{g}'",
    "update set": "UPDATE t SET n = CASE WHEN secret = '{g}' THEN 1 ELSE 0 END",
    "update from": "UPDATE t SET n = 1 FROM b WHERE t.secret = b.secret",
    "delete where": "DELETE FROM t WHERE secret = '{g}'",
    "returning": "UPDATE t SET n = 1 RETURNING secret = '{g}'",
    "insert select": "INSERT INTO t SELECT id + 10, secret FROM t WHERE secret = '{g}'",
    "on conflict where": "INSERT INTO t (id) VALUES (1) ON CONFLICT (id) DO UPDATE"
    " SET n = 1 WHERE t.secret = '{g}'",
    "merge": "MERGE INTO t USING (VALUES ('{g}')) x(x) ON secret = x"
    " WHEN MATCHED THEN DELETE",
    "merge when": "MERGE INTO t USING b ON t.id = b.id"
    " WHEN MATCHED AND t.secret = '{g}' THEN DELETE",
    "copy query": "COPY (SELECT id FROM t WHERE secret = '{g}') TO STDOUT",
    "copy query in order": "COPY (SELECT id FROM b ORDER BY secret) TO STDOUT",
    "create table as": "CREATE TEMP TABLE own AS SELECT id FROM t WHERE secret = '{g}'",
    "materialized": "CREATE MATERIALIZED VIEW scratch.own AS SELECT id FROM t"
    " WHERE secret = '{g}'",
}
QUERIES |= {name: f"SELECT id FROM t WHERE {where}" for name, where in WHERE.items()}
DO = (
    "DO $$ DECLARE a encrypted_text; b bool; BEGIN"
    " SELECT secret INTO a FROM t WHERE id = 1; {} RAISE NOTICE '%', b; END $$"
)
COMPARISONS = {name: [query] for name, query in QUERIES.items()} | {
    "cursor": ["DECLARE c CURSOR FOR SELECT id FROM t WHERE secret = '{g}'", "FETCH c"],
    "cursor in order": [
        "DECLARE c CURSOR FOR SELECT id FROM b ORDER BY secret",
        "FETCH c",
    ],
    "prepared": [
        "DEALLOCATE ALL",
        "PREPARE comparing (text) AS SELECT id FROM t WHERE secret = $1",
        "EXECUTE comparing ('{g}')",
    ],
    "expression": [DO.format("b := a = '{g}';")],
    "expression of text": [DO.format("b := a = '{g}'::text;")],
    "expression of record": [DO.format("b := row(a) = row('{g}'::encrypted_text);")],
    "if": [DO.format("IF a <> '{g}' THEN b := true; END IF;")],
    "case": [DO.format("CASE a WHEN '{g}' THEN b := true; ELSE b := false; END CASE;")],
    "assert": [DO.format("ASSERT a = '{g}';")],
    "dynamic": [DO.format("EXECUTE 'SELECT $1 = $2' INTO b USING a, '{g}'::text;")],
    "caught": [
        DO.format(
            "BEGIN b := a = '{g}'; EXCEPTION WHEN invalid_text_representation"
            " THEN b := NULL; END;"
        )
    ],
    "SQL function": [
        "CREATE FUNCTION pg_temp.same(encrypted_text, text) RETURNS bool LANGUAGE sql"
        " AS 'SELECT $1 = $2'",
        "SELECT pg_temp.same(secret, '{g}') FROM t",
    ],
    "operator of one's own": [
        "CREATE OPERATOR scratch.=== (LEFTARG = encrypted_text,"
        " RIGHTARG = encrypted_text, FUNCTION = encrypted_text_eq)",
        "SELECT id FROM t WHERE secret OPERATOR(scratch.===) '{g}'",
    ],
    "domain of one's own": [
        "CREATE DOMAIN scratch.own AS encrypted_text CHECK (VALUE = '{g}')",
        "SELECT secret::scratch.own FROM t WHERE id = 1",
    ],
    "range of one's own": [
        "CREATE TYPE scratch.own AS RANGE (subtype = encrypted_text)",
        "SELECT scratch.own(secret, '{g}', '[]') FROM t WHERE id = 1",
    ],
    "multirange": [
        "CREATE TYPE scratch.own AS RANGE (subtype = encrypted_text,"
        " multirange_type_name = scratch.owns)",
        "SELECT scratch.owns(scratch.own(secret, secret, '[]')) FROM t WHERE id = 1",
    ],
    "aggregate of one's own": [
        "CREATE FUNCTION scratch.same(bool, encrypted_text) RETURNS bool LANGUAGE sql"
        " AS 'SELECT $1 OR $2 = ''{g}'''",
        "CREATE AGGREGATE scratch.any_same(encrypted_text)"
        " (sfunc = scratch.same, stype = bool, initcond = false)",
        "SELECT scratch.any_same(secret) FROM t",
    ],
    "generated column": [
        "CREATE TEMP TABLE own (secret encrypted_text, same bool"
        " GENERATED ALWAYS AS (secret = '{g}'::encrypted_text) STORED)",
        "INSERT INTO own SELECT secret FROM t RETURNING same",
    ],
    "check of one's own": [
        "CREATE TEMP TABLE own (secret encrypted_text CHECK (secret <> '{g}'))",
        "INSERT INTO own SELECT secret FROM t",
    ],
    "check that is added": [
        "CREATE TEMP TABLE own AS SELECT secret FROM t",
        "ALTER TABLE own ADD CHECK (secret <> '{g}')",
    ],
    "index on a comparison": [
        "CREATE TEMP TABLE own (secret encrypted_text)",
        "CREATE INDEX ON own ((secret = '{g}'::encrypted_text))",
        "INSERT INTO own SELECT secret FROM t",
    ],
    "partial index": [
        "CREATE TEMP TABLE own (secret encrypted_text)",
        "CREATE UNIQUE INDEX ON own ((1)) WHERE secret = '{g}'::encrypted_text",
        "INSERT INTO own SELECT secret FROM t",
    ],
    "trigger condition": [
        "CREATE TEMP TABLE own AS SELECT secret FROM t",
        "CREATE FUNCTION pg_temp.tell() RETURNS trigger LANGUAGE plpgsql AS $$"
        " BEGIN RAISE NOTICE 'same'; RETURN NEW; END $$",
        "CREATE TRIGGER tell BEFORE UPDATE ON own FOR EACH ROW"
        " WHEN (OLD.secret = '{g}') EXECUTE FUNCTION pg_temp.tell()",
        "UPDATE own SET secret = secret",
    ],
    "rule": [
        "CREATE TEMP TABLE own AS SELECT secret FROM t",
        "CREATE RULE tell AS ON UPDATE TO own WHERE OLD.secret = '{g}'"
        " DO INSTEAD NOTHING",
        "UPDATE own SET secret = secret",
    ],
    "policy": [
        "CREATE TEMP VIEW own WITH (security_barrier) AS SELECT id FROM t"
        " WHERE secret = '{g}'",
        "SELECT * FROM own",
    ],
    "partition that is attached": [
        "CREATE TEMP TABLE whole (secret encrypted_text) PARTITION BY LIST (secret)",
        "CREATE TEMP TABLE part AS SELECT secret::encrypted_text FROM t WHERE id = 1",
        "ALTER TABLE whole ATTACH PARTITION part FOR VALUES IN ('{g}')",
    ],
    "hash of a partition": [
        "CREATE TEMP TABLE own (secret encrypted_text) PARTITION BY HASH (secret)",
        "SELECT satisfies_hash_partition('own'::regclass, 2, 0, secret) FROM t",
    ],
    "btree index on values that are there": [
        "CREATE TEMP TABLE own AS SELECT secret FROM t",
        "CREATE INDEX ON own (secret)",
    ],
    "without hashing": [
        "SET LOCAL enable_hashagg = off; SET LOCAL enable_hashjoin = off",
        "SELECT a.secret FROM t a JOIN t b USING (secret) GROUP BY a.secret",
    ],
    "without sorting": [
        "SET LOCAL enable_sort = off; SET LOCAL enable_mergejoin = off",
        "SELECT a.secret FROM t a JOIN t b USING (secret) GROUP BY a.secret",
    ],
}
SETTINGS = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = {}"
INDEXED = ["= '{g}'", "= '{g}'::text", "IN ('{g}', 'x')", "= ANY ('{{g}}'::text[])"]
for table in ("b", "h"):
    for bitmap in ("off", "on"):
        for condition in INDEXED:
            COMPARISONS[f"index {table} {condition} bitmap {bitmap}"] = [
                SETTINGS.format(bitmap),
                f"SELECT id FROM {table} WHERE secret {condition}",
            ]
    COMPARISONS[f"nested loop {table}"] = [
        SETTINGS.format("off"),
        "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off",
        f"SELECT {table}.id FROM (VALUES ('{{g}}')) x(x) JOIN {table} ON secret = x",
    ]
COMPARISONS |= {
    "index order": [SETTINGS.format("off"), "SELECT id FROM b ORDER BY secret"],
    "index order backward": [
        SETTINGS.format("off"),
        "SELECT id FROM b ORDER BY secret DESC LIMIT 1",
    ],
    "index only": [SETTINGS.format("off"), "SELECT secret FROM b WHERE secret = '{g}'"],
    "index only order": [
        SETTINGS.format("off"),
        "SELECT secret FROM b ORDER BY secret",
    ],
    "index by tag": [SETTINGS.format("off"), "SELECT id FROM b WHERE secret <~ '{g}'"],
    "index group": [SETTINGS.format("off"), "SELECT count(*) FROM b GROUP BY secret"],
    "index order of rows": [SETTINGS.format("off"), "SELECT id FROM r ORDER BY pair"],
    "index of rows": [
        SETTINGS.format("off"),
        "SELECT id FROM r WHERE pair = row('{g}'::encrypted_text, 0)",
    ],
    "index order of arrays": [
        SETTINGS.format("off"),
        "SELECT id FROM a ORDER BY list",
    ],
    "index of arrays": [
        SETTINGS.format("off"),
        "SELECT id FROM a WHERE list = array['{g}'::encrypted_text]",
    ],
    "index of members": [
        SETTINGS.format("on"),
        "SELECT id FROM a WHERE list @> array['{g}'::encrypted_text]",
    ],
    "merge join": [
        SETTINGS.format("off"),
        "SET LOCAL enable_hashjoin = off; SET LOCAL enable_nestloop = off",
        "SELECT x.id FROM b x JOIN b y USING (secret)",
    ],
}


@pytest.fixture(scope="module", autouse=True)
def domain(host: Cluster) -> None:
    host.psql("CREATE DOMAIN scratch.forty AS encrypted_text CHECK (VALUE LIKE '%')")


@pytest.mark.parametrize("role", UNRESTRICTED)
@pytest.mark.parametrize("name", COMPARISONS)
def test_whoever_sees_values_compares_them(
    host: Cluster, sessions: dict[str, psycopg.Connection], role: str, name: str
) -> None:
    # What they ask for may be a violation, or an empty range.
    allowed = {None, "22000", "23505", "23514", "P0004"}
    for outcome in guesses(host, sessions[role], *COMPARISONS[name]):
        assert outcome.sqlstate in allowed, outcome.error


@pytest.mark.parametrize("role", RESTRICTED)
@pytest.mark.parametrize("name", COMPARISONS)
def test_comparing_is_refused_whether_the_guess_is_right_or_wrong(
    host: Cluster, sessions: dict[str, psycopg.Connection], role: str, name: str
) -> None:
    outcomes = guesses(host, sessions[role], *COMPARISONS[name])
    assert [outcome.sqlstate for outcome in outcomes] == [DENIED, DENIED]
    assert_indistinguishable(outcomes)


SUPPORT = [
    "encrypted_text_cmp(secret, '{g}'::encrypted_text)",
    "encrypted_text_cmp(secret, '{g}'::text)",
    "encrypted_text_cmp('{g}'::text, secret)",
    "encrypted_text_hash(secret)",
    "encrypted_text_hash('{g}'::text)",
    "encrypted_text_hash_extended(secret, 0)",
    "encrypted_text_hash_extended('{g}'::text, 0)",
]


@pytest.mark.parametrize("role", READERS)
@pytest.mark.parametrize("call", SUPPORT)
def test_support_functions_are_for_nobody_to_call(
    host: Cluster, sessions: dict[str, psycopg.Connection], role: str, call: str
) -> None:
    outcomes = guesses(host, sessions[role], f"SELECT {call} FROM t")
    assert [outcome.sqlstate for outcome in outcomes] == [DENIED, DENIED]
    assert_indistinguishable(outcomes)


PARALLEL = (
    f"SET LOCAL {FORCE_PARALLEL} = on; SET LOCAL parallel_setup_cost = 0;"
    "SET LOCAL parallel_tuple_cost = 0; SET LOCAL min_parallel_table_scan_size = 0;"
    "SET LOCAL min_parallel_index_scan_size = 0;"
    "SET LOCAL parallel_leader_participation = off"
)
IN_WORKERS = {
    "equal": "SELECT id FROM t WHERE secret = '{g}'",
    "equal text": "SELECT id FROM t WHERE secret = '{g}'::text",
    "record": "SELECT id FROM t WHERE row(secret) = row('{g}'::encrypted_text)",
    "join": "SELECT a.id FROM t a JOIN t b USING (secret)",
    "group": "SELECT count(*) FROM t GROUP BY secret",
    "order": "SELECT id FROM t ORDER BY secret",
}


@pytest.mark.parametrize("role", RESTRICTED)
@pytest.mark.parametrize("name", IN_WORKERS)
def test_a_parallel_worker_refuses_as_well(
    host: Cluster, sessions: dict[str, psycopg.Connection], role: str, name: str
) -> None:
    outcomes = guesses(host, sessions[role], PARALLEL, IN_WORKERS[name])
    assert [outcome.sqlstate for outcome in outcomes] == [DENIED, DENIED]
    assert_indistinguishable(outcomes)


@pytest.mark.parametrize("role", READERS)
def test_a_parallel_worker_shows_the_view(
    host: Cluster, sessions: dict[str, psycopg.Connection], role: str
) -> None:
    reader = READERS[role]
    query = "SELECT secret::text FROM t WHERE secret LIKE '%'"
    outcome = run(host, sessions[role], PARALLEL, query, f"EXPLAIN {query}")
    view = f"SELECT secret FROM {reader.sees}.{reader.schema}_t WHERE id < 4"
    expected = sessions["postgres"].execute(view).fetchall()
    assert sorted(outcome.results[1]) == sorted(expected)
    assert "Workers Planned" in str(outcome.results[2])


# What must not tell, whether it is refused or not

TELLTALES = {
    "estimate": ["EXPLAIN SELECT id FROM t WHERE secret = '{g}'"],
    "estimate of an index": [
        "SET LOCAL enable_seqscan = off",
        "EXPLAIN SELECT id FROM b WHERE secret = '{g}'",
    ],
    "estimate of an order": ["EXPLAIN SELECT id FROM b WHERE secret <~ '{g}'"],
    "image": [
        "SELECT row(secret)::record *= row('{g}'::encrypted_text)::record FROM t"
    ],
    "statistics": ["SELECT most_common_vals, histogram_bounds FROM pg_stats"],
    "extended statistics": [
        "CREATE TEMP TABLE own AS SELECT secret, id FROM t",
        "CREATE STATISTICS scratch.own (mcv, ndistinct) ON secret, (id % 2) FROM own",
        "INSERT INTO own VALUES ('{g}', 7)",
        "ANALYZE own",
        "SELECT cardinality(most_common_vals), most_common_freqs, n_distinct"
        " FROM pg_stats_ext WHERE tablename = 'own'",
    ],
    "number of distinct values": [
        "CREATE TEMP TABLE own (secret encrypted_text)",
        "INSERT INTO own SELECT secret FROM t WHERE id = 1",
        "INSERT INTO own VALUES ('{g}')",
        "ANALYZE own",
        "SELECT n_distinct FROM pg_stats WHERE tablename = 'own'",
    ],
    "number of distinct values, from an estimate": [
        "CREATE TEMP TABLE own (secret encrypted_text)",
        "INSERT INTO own SELECT secret FROM t WHERE id = 1",
        "INSERT INTO own VALUES ('{g}')",
        "ANALYZE own",
        "EXPLAIN SELECT FROM own WHERE secret = 'x'",
    ],
    "function that runs in ANALYZE": [
        "CREATE TEMP TABLE own (secret encrypted_text)",
        "CREATE FUNCTION pg_temp.same(a encrypted_text) RETURNS text LANGUAGE plpgsql"
        " IMMUTABLE AS $$ BEGIN RETURN a = '{g}'; EXCEPTION WHEN OTHERS THEN"
        " RETURN SQLSTATE; END $$",
        "CREATE INDEX ON own (pg_temp.same(secret))",
        "INSERT INTO own SELECT secret FROM t WHERE id = 1",
        "INSERT INTO own SELECT secret FROM t WHERE id = 1",
        "ANALYZE own",
        "SELECT most_common_vals, n_distinct FROM pg_stats WHERE tablename LIKE 'own%'",
    ],
    "hash index on values that are there": [
        "CREATE TEMP TABLE own AS SELECT secret FROM t",
        "INSERT INTO own VALUES ('{g}')",
        "CREATE INDEX ON own USING hash (secret)",
    ],
    "sorted by an index": [
        "CREATE TEMP TABLE own (id int, secret encrypted_text)",
        "CREATE INDEX own_b ON own (secret)",
        "INSERT INTO own VALUES (1, '{g}')",
        "INSERT INTO own SELECT 2, secret FROM t WHERE id = 1",
        "INSERT INTO own VALUES (3, '{g}')",
        "SET LOCAL enable_sort = off; SET LOCAL enable_seqscan = off",
        "CLUSTER own USING own_b",
        "SELECT id FROM own ORDER BY ctid",
    ],
    # With equal tags the order is that of rows: the first of 1 and 2 is then 1, and
    # the first of 2 and 3 is 2.
    "aggregate that an index gives": [
        "CREATE TEMP TABLE own (id int, secret encrypted_text)",
        "CREATE INDEX ON own (secret)",
        "INSERT INTO own VALUES (1, '{g}')",
        "INSERT INTO own SELECT 2, secret FROM t WHERE id = 1",
        "INSERT INTO own VALUES (3, '{g}')",
        "CREATE TYPE pg_temp.one AS (secret encrypted_text)",
        "CREATE FUNCTION scratch.first(encrypted_text, encrypted_text)"
        " RETURNS encrypted_text LANGUAGE sql AS 'SELECT $1'",
        "CREATE AGGREGATE scratch.first(encrypted_text) (sfunc = scratch.first,"
        " stype = encrypted_text, sortop = OPERATOR(public.<~))",
        "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off",
        *(
            "SELECT id FROM own, (SELECT scratch.first(secret) f FROM own"
            f" WHERE id IN {ids}) q WHERE id IN {ids}"
            " AND row(f)::pg_temp.one *= row(secret)::pg_temp.one"
            for ids in ("(1, 2)", "(2, 3)")
        ),
    ],
    **{
        f"order of a scan of {index}": [
            "CREATE TEMP TABLE own (id int, secret encrypted_text, one int DEFAULT 1)",
            f"CREATE INDEX ON own {index}",
            "INSERT INTO own VALUES (1, '{g}')",
            "INSERT INTO own SELECT 2, secret FROM t WHERE id = 1",
            "INSERT INTO own VALUES (3, '{g}')",
            "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off",
            f"SELECT id FROM own WHERE {condition}",
        ]
        for index, condition in {
            "(secret) INCLUDE (id)": "true",
            "(secret) WHERE one = 1": "one = 1",
            "(one, secret)": "one = 1",
        }.items()
    },
    "copy from where": ["COPY t FROM PROGRAM 'x' WHERE secret = '{g}'"],
}
# A table of one's own keeps order in its owner's stead. Whoever can copy a value into
# it must not learn from it what the value is.
OWN = "CREATE TEMP TABLE own (secret encrypted_text{}"
WHERE_TO = "RETURNING tableoid::regclass"
COPIED = f"INSERT INTO own SELECT secret FROM t WHERE id = 1 {WHERE_TO}"
GUESSED = f"INSERT INTO own VALUES ('{{g}}') {WHERE_TO}"
TELLTALES |= {
    f"own table with {constraint}": [OWN.format(definition), COPIED, GUESSED]
    for constraint, definition in {
        "UNIQUE": " UNIQUE)",
        "PRIMARY KEY": " PRIMARY KEY)",
        "EXCLUDE btree": ", EXCLUDE (secret WITH =))",
        "EXCLUDE hash": ", EXCLUDE USING hash (secret WITH =))",
        "UNIQUE that is deferred": " UNIQUE DEFERRABLE INITIALLY DEFERRED)",
    }.items()
}
TELLTALES |= {
    "own table with arrays": [
        "CREATE TEMP TABLE own (list encrypted_text[] UNIQUE)",
        "INSERT INTO own SELECT array[secret] FROM t WHERE id = 1",
        "INSERT INTO own VALUES (array['{g}'::encrypted_text])",
    ],
    "own table with an index of members": [
        "CREATE TEMP TABLE own (list encrypted_text[])",
        "CREATE INDEX ON own USING gin (list) WITH (fastupdate = off)",
        "INSERT INTO own SELECT array[secret] FROM t WHERE id = 1",
        "INSERT INTO own VALUES (array['{g}'::encrypted_text])",
        "SELECT pg_relation_size('own_list_idx')",
    ],
    "own table with UNIQUE, ON CONFLICT": [
        OWN.format(" UNIQUE)"),
        COPIED,
        "INSERT INTO own VALUES ('{g}') ON CONFLICT DO NOTHING",
    ],
    "own table with a constraint that is added": [
        OWN.format(")"),
        COPIED,
        GUESSED,
        "ALTER TABLE own ADD EXCLUDE USING hash (secret WITH =)",
    ],
    "own table with hash partitions": [
        OWN.format(") PARTITION BY HASH (secret)"),
        *(
            f"CREATE TEMP TABLE own{part} PARTITION OF own"
            f" FOR VALUES WITH (MODULUS 64, REMAINDER {part})"
            for part in range(64)
        ),
        COPIED,
        GUESSED,
    ],
    "own table with list partitions": [
        OWN.format(") PARTITION BY LIST (secret)"),
        "CREATE TEMP TABLE own1 PARTITION OF own FOR VALUES IN ('{g}')",
        "CREATE TEMP TABLE own2 PARTITION OF own DEFAULT",
        COPIED,
    ],
    "own table with range partitions": [
        OWN.format(") PARTITION BY RANGE (secret)"),
        "CREATE TEMP TABLE own1 PARTITION OF own FOR VALUES FROM (MINVALUE) TO ('{g}')",
        "CREATE TEMP TABLE own2 PARTITION OF own FOR VALUES FROM ('{g}') TO (MAXVALUE)",
        COPIED,
    ],
    "own table with a foreign key": [
        OWN.format(" PRIMARY KEY)"),
        COPIED,
        "CREATE TEMP TABLE child (secret encrypted_text REFERENCES own)",
        "INSERT INTO child VALUES ('{g}')",
    ],
}


@pytest.mark.parametrize("role", RESTRICTED)
@pytest.mark.parametrize("name", TELLTALES)
def test_a_right_guess_looks_like_a_wrong_one(
    host: Cluster, sessions: dict[str, psycopg.Connection], role: str, name: str
) -> None:
    assert_indistinguishable(guesses(host, sessions[role], *TELLTALES[name]))


@pytest.mark.parametrize("type", ["encrypted_text", "scratch.ssn"])
@pytest.mark.parametrize("method", ["btree", "hash"])
def test_an_index_shared_with_others_does_not_tell_of_their_values(
    host: Cluster, method: str, type: str
) -> None:
    """Most values are the role's to read, so a search in the index need not meet the
    one that is not."""
    if type == "scratch.ssn":
        host.psql("CREATE DOMAIN scratch.ssn AS encrypted_text(pii)")
    with host.connect() as owner, connect(host, "no_grant_keyed") as session:
        owner.execute(
            f"CREATE TABLE scratch.shared (id int, secret {type});"
            "GRANT ALL ON scratch.shared TO PUBLIC"
        )
        try:
            owner.execute("SET colcrypt.write_key = 'tenant'")
            owner.execute("INSERT INTO scratch.shared VALUES (0, %s::text)", [RIGHT])
            owner.execute("RESET colcrypt.write_key")
            if type == "encrypted_text":
                owner.execute(
                    "INSERT INTO scratch.shared SELECT i, 'own' || i"
                    " FROM generate_series(1, 500) i"
                )
            owner.execute(f"CREATE INDEX ON scratch.shared USING {method} (secret)")
            owner.execute("ANALYZE scratch.shared")
            session.execute("SET enable_seqscan = off")
            query = "SELECT id FROM scratch.shared WHERE secret = '{}'"
            right = run(host, session, query.format(RIGHT)).without(RIGHT)
            for number in range(20):
                wrong = f"canary-ambl{number}"
                assert run(host, session, query.format(wrong)).without(wrong) == right
        finally:
            owner.execute("DROP TABLE scratch.shared")
            owner.execute("DROP DOMAIN IF EXISTS scratch.ssn")


@pytest.mark.parametrize("role", ["masked", "ciphertext", "no_grant_keyed"])
def test_an_index_shared_with_others_does_not_put_guesses_beside_their_values(
    host: Cluster, role: str
) -> None:
    """Entries with equal values are in the order of (secret, id): a guess with a lower
    id and one with a higher id have the value between them, if it is the same."""
    with host.connect() as owner, connect(host, role) as session:
        owner.execute(
            "CREATE TABLE scratch.shared (id int, secret encrypted_text);"
            "CREATE INDEX ON scratch.shared (secret, id);"
            "INSERT INTO scratch.shared SELECT i, 'x' || i"
            " FROM generate_series(9, 99) i;"
            "SET colcrypt.write_key = 'tenant';"
            "GRANT ALL ON scratch.shared TO PUBLIC"
        )
        try:
            owner.execute("INSERT INTO scratch.shared VALUES (2, %s::text)", [RIGHT])
            outcomes = guesses(
                host,
                session,
                "INSERT INTO scratch.shared VALUES (1, '{g}'), (3, '{g}')",
                "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off",
                "SELECT id FROM scratch.shared",
            )
            beside = [", ".join(map(str, outcome.results[-1])) for outcome in outcomes]
            assert "(1,), (2,), (3,)" not in beside[0]
        finally:
            owner.execute("DROP TABLE scratch.shared")


# Before and after a change of mode or user in the same session

PLANNED = {
    "scan": "SELECT id FROM t WHERE secret = $1",
    "btree": "SELECT id FROM b WHERE secret = $1",
    "hash": "SELECT id FROM h WHERE secret = $1",
    "any": "SELECT id FROM b WHERE secret = ANY (ARRAY[$1])",
    "record": "SELECT id FROM t WHERE row(secret) = row($1::encrypted_text)",
    "join": "SELECT a.id FROM t a JOIN b ON a.secret = b.secret WHERE a.secret <> $1",
    "group": "SELECT count(*) FROM t WHERE id::text <> $1 GROUP BY secret",
    "order": "SELECT id FROM t WHERE id::text <> $1 ORDER BY secret",
    "index order": "SELECT id FROM b WHERE id::text <> $1 ORDER BY secret",
}
CHANGES = {
    "masked": ("open", "SET colcrypt.access = 'masked'"),
    "ciphertext": ("open", "SET colcrypt.access = 'ciphertext'"),
    "local": ("open", "SET LOCAL colcrypt.access = 'masked'"),
    "function": ("open", "SELECT set_config('colcrypt.access', 'masked', false)"),
    "user": ("pii", "SET SESSION AUTHORIZATION no_grant"),
    "user, keyed": ("keyed", "SET SESSION AUTHORIZATION no_grant_keyed"),
    "role": ("pii", "SET ROLE no_grant"),
}


@pytest.mark.parametrize("generic", [True, False], ids=["generic", "custom"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", PLANNED)
def test_what_was_prepared_before_is_refused_after(
    host: Cluster, name: str, change: str, generic: bool
) -> None:
    schema, statement = CHANGES[change]
    mode = "force_generic_plan" if generic else "force_custom_plan"
    with connect(host, "postgres") as session:
        session.execute(f"SET search_path = {schema}, public")
        session.execute(f"SET plan_cache_mode = {mode}")
        session.execute("SET enable_seqscan = off; SET enable_sort = off")
        session.execute(f"PREPARE q (text) AS {PLANNED[name]}")
        for _ in range(7):
            session.execute(f"EXECUTE q ('{RIGHT}')")
        outcomes = guesses(host, session, statement, "EXECUTE q ('{g}')")
        assert [outcome.sqlstate for outcome in outcomes] == [DENIED, DENIED]
        assert_indistinguishable(outcomes)
        assert session.execute(f"EXECUTE q ('{RIGHT}')").fetchall()


@pytest.mark.parametrize("change", [name for name in CHANGES if name != "local"])
@pytest.mark.parametrize(
    "query",
    [
        "SELECT id FROM t WHERE secret = '{g}'",
        "SELECT id FROM b WHERE secret = '{g}'",
        "SELECT id FROM h WHERE secret = '{g}'",
    ],
)
def test_a_cursor_that_was_opened_before_is_refused_after(
    host: Cluster, change: str, query: str
) -> None:
    schema, statement = CHANGES[change]
    with host.connect() as session:
        session.execute(f"SET search_path = {schema}, public; SET enable_seqscan = off")
        declare = f"DECLARE c CURSOR FOR {query}"
        outcomes = guesses(host, session, declare, statement, "FETCH ALL FROM c")
        assert [outcome.sqlstate for outcome in outcomes] == [DENIED, DENIED]
        assert_indistinguishable(outcomes)


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_prepared_or_opened_before_shows_what_is_seen_after(
    host: Cluster, change: str
) -> None:
    schema, statement = CHANGES[change]
    with connect(host, "postgres") as session:
        session.execute(f"SET search_path = {schema}, public")
        query = f"SELECT secret, secret::text {IN_ORDER}"
        session.execute(f"PREPARE q AS {query}; EXECUTE q")
        outcome = run(
            host,
            session,
            f"DECLARE c CURSOR FOR {query}",
            statement,
            "FETCH 1 FROM c",
            "EXECUTE q",
        )
        assert not outcome.error
        assert not outcome.reveals("no guess")
        shown = "TOKEN" if change == "ciphertext" else MASK
        assert outcome.without("no guess").count(f"('{shown}', '{shown}')") == 4
        [(first, _), *_] = session.execute("EXECUTE q").fetchall()
        assert first == RIGHT


def test_an_expression_of_plpgsql_is_refused_after_the_mode_changed(
    host: Cluster,
) -> None:
    with host.connect() as session:
        session.execute("SET search_path = open, public")
        session.execute(
            "CREATE FUNCTION pg_temp.same(a encrypted_text, b text) RETURNS bool"
            " LANGUAGE plpgsql AS $$ DECLARE x bool; BEGIN x := a = b; RETURN x; END $$"
        )
        call = "SELECT pg_temp.same(secret, '{g}') FROM t WHERE id = 1"
        for _ in range(7):
            assert fetch(session, call.replace("{g}", RIGHT)) is True
        outcomes = guesses(host, session, "SET colcrypt.access = 'masked'", call)
        assert [outcome.sqlstate for outcome in outcomes] == [DENIED, DENIED]
        assert_indistinguishable(outcomes)


@pytest.mark.parametrize("access", ["masked", "ciphertext"])
def test_set_role_does_not_change_the_mode_of_a_session(
    host: Cluster, access: str
) -> None:
    with host.connect() as owner:
        owner.execute("CREATE ROLE boss; CREATE ROLE clerk LOGIN IN ROLE boss")
        owner.execute("GRANT USAGE ON SCHEMA open TO boss")
        owner.execute("GRANT SELECT ON open.t TO boss")
        owner.execute(f"ALTER ROLE clerk SET colcrypt.access = {access}")
        try:
            with host.connect(user="clerk") as session:
                session.execute("SET ROLE boss; SET search_path = open, public")
                shown = fetch(session, "SELECT secret FROM t WHERE id = 1")
                assert shown.startswith(MASK if access == "masked" else "colcrypt:v1:")
                with pytest.raises(InsufficientPrivilege):
                    session.execute(f"SELECT id FROM t WHERE secret = '{RIGHT}'")
        finally:
            owner.execute("DROP OWNED BY boss; DROP ROLE clerk, boss")


# What messages say

MESSAGES = {
    "unique violation": (
        "INSERT INTO u VALUES (9, '{g}', 0)",
        "23505",
        "Key (secret)=({shown}) already exists.",
    ),
    "check violation": (
        "INSERT INTO u VALUES (9, '{g}', 100)",
        "23514",
        "Failing row contains (9, {shown}, 100).",
    ),
    "check violation of an update": (
        "UPDATE u SET n = 100 WHERE id = 1",
        "23514",
        "Failing row contains (1, {shown}, 100).",
    ),
    "not null violation": (
        "UPDATE u SET id = 7, secret = NULL WHERE id = 1",
        "23502",
        "Failing row contains (7, null, 0).",
    ),
}


@pytest.mark.parametrize("role", READERS)
@pytest.mark.parametrize("name", MESSAGES)
def test_an_error_shows_the_view_and_its_log_line_no_value(
    host: Cluster, sessions: dict[str, psycopg.Connection], role: str, name: str
) -> None:
    statement, sqlstate, detail = MESSAGES[name]
    session, sees = sessions[role], READERS[role].sees
    # Under the key that the values of these tables are under, where it may be chosen.
    if role == "ciphertext_granted":
        session.execute("SET colcrypt.write_key = 'tenant'")
    outcome = run(host, session, statement.replace("{g}", RIGHT))
    session.execute("RESET colcrypt.write_key")
    assert outcome.sqlstate == sqlstate
    own = role == "no_grant_keyed" and "'{g}'" in statement
    shown = {"clear": RIGHT, "masks": RIGHT if own else MASK, "tokens": "TOKEN"}[sees]
    expected = detail.format(shown=shown)
    assert expected in outcome.without("no guess")
    log = TOKEN.sub("TOKEN", "\n".join(outcome.log))
    before = detail.partition("(" if name != "unique violation" else "({shown}")[0]
    assert f"{before}(********)." in log and expected not in log
    if sees != "clear" and not own:
        assert not outcome.reveals("no guess")


@pytest.mark.parametrize("role", READERS)
def test_statistics_hold_no_values(
    host: Cluster, sessions: dict[str, psycopg.Connection], role: str
) -> None:
    where = "(tablename, attname) = ('t', 'secret')"
    query = f"SELECT s::text FROM pg_stats s WHERE {where}"
    outcome = run(host, sessions[role], query)
    assert outcome.results[0]
    assert not outcome.reveals("no guess")
    assert MASK not in str(outcome) and "colcrypt:v1" not in str(outcome)


@pytest.mark.parametrize("role", [r for r in RESTRICTED if READERS[r].access])
def test_catalogs_show_the_view_of_what_is_written_in_them(
    host: Cluster, sessions: dict[str, psycopg.Connection], role: str
) -> None:
    """As documented: to a role without a grant, a constant that was sealed under the
    primary key is no secret, wherever it is to be stored."""
    schema = READERS[role].schema
    with host.connect() as owner:
        owner.execute(f"SET search_path = {schema}, public")
        if schema == "keyed":
            owner.execute("SET colcrypt.write_key = 'tenant'")
        owner.execute(
            f"CREATE TABLE told (secret {SEALED[schema]} DEFAULT 'canary-default'"
            " CHECK (secret <> 'canary-check'));"
            "CREATE VIEW teller AS SELECT FROM told WHERE secret = 'canary-view'"
        )
        try:
            outcome = run(
                host,
                sessions[role],
                "SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef",
                "SELECT pg_get_constraintdef(oid) FROM pg_constraint",
                "SELECT definition FROM pg_views",
                "SELECT column_default FROM information_schema.columns",
            )
        finally:
            owner.execute("DROP TABLE told CASCADE")
    assert not outcome.error
    assert not outcome.reveals("no guess")


# Writing


def stored(session: psycopg.Connection, schema: str, table: str) -> list[Any]:
    query = f"SELECT id, secret::text FROM {schema}.{table} ORDER BY id, secret::text"
    return session.execute(query).fetchall()


@pytest.fixture
def written(host: Cluster) -> Iterator[psycopg.Connection]:
    """The superuser, who afterwards empties the tables that were written to."""
    with host.connect() as session:
        yield session
        for schema in SEALED:
            tables = ", ".join(f"{schema}.{table}" for table in ORDERED)
            session.execute(f"TRUNCATE {tables}")


# Who may not compare cannot write where PostgreSQL itself compares with an
# expression: it checks the constraint of a DEFAULT partition, and that of every
# partition when a row is updated, and rechecks an exclusion constraint with the
# operator. docs/reference.md says so.
LIMITED = [
    "masked",
    "masked_granted",
    "ciphertext",
    "ciphertext_granted",
    "no_grant",
    "ciphertext_no_grant",
    "write_only",
]


def is_refused(session: psycopg.Connection, statement: str) -> bool:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        session.execute(statement)
    return True


def schema_of(role: str) -> str:
    return READERS[role].schema if role in READERS else "pii"


@pytest.mark.parametrize("role", WRITERS)
@pytest.mark.parametrize("table", ORDERED)
def test_every_role_writes_where_an_order_is_kept(
    sessions: dict[str, psycopg.Connection],
    written: psycopg.Connection,
    role: str,
    table: str,
) -> None:
    rows = [(number, f"new-{number}") for number in range(1, 40)]
    if table == "wl" and role in LIMITED:
        rows = rows[:2]
        assert is_refused(sessions[role], "INSERT INTO wl VALUES (3, 'new-3')")
    for row in rows[:3]:
        sessions[role].execute(f"INSERT INTO {table} VALUES (%s, %s)", row)
    with sessions[role].cursor().copy(f"COPY {table} FROM STDIN") as copy:
        for row in rows[3:]:
            copy.write_row(row)
    assert stored(written, schema_of(role), table) == rows


@pytest.mark.parametrize("role", READERS)
@pytest.mark.parametrize("table", ORDERED)
def test_every_role_updates_and_deletes_where_an_order_is_kept(
    sessions: dict[str, psycopg.Connection],
    written: psycopg.Connection,
    role: str,
    table: str,
) -> None:
    session = sessions[role]
    if table in ("wh", "wl") and role in LIMITED:
        session.execute(f"INSERT INTO {table} VALUES (1, 'new-1')")
        assert is_refused(session, f"UPDATE {table} SET id = id + 100")
        assert stored(written, schema_of(role), table) == [(1, "new-1")]
        return
    rows = [(number, f"new-{number}") for number in range(1, 20)]
    for row in rows:
        session.execute(f"INSERT INTO {table} VALUES (%s, %s)", row)
    session.execute(f"UPDATE {table} SET id = id + 100")
    session.execute(f"UPDATE {table} SET secret = 'newer-' || id WHERE id > 110")
    session.execute(f"DELETE FROM {table} WHERE id = 101")
    kept = [(n + 100, s if n <= 10 else f"newer-{n + 100}") for n, s in rows if n > 1]
    assert stored(written, schema_of(role), table) == kept


@pytest.mark.parametrize("role", WRITERS)
@pytest.mark.parametrize("table", UNIQUE)
def test_a_constraint_holds_whoever_writes(
    sessions: dict[str, psycopg.Connection],
    written: psycopg.Connection,
    role: str,
    table: str,
) -> None:
    session = sessions[role]
    session.execute(f"INSERT INTO {table} VALUES (1, 'new-1'), (2, 'new-2')")
    if table == "wx" and role in LIMITED:
        assert is_refused(session, "INSERT INTO wx VALUES (3, 'new-1')")
        return
    with pytest.raises(psycopg.errors.IntegrityError) as refused:
        session.execute(f"INSERT INTO {table} VALUES (3, 'new-1')")
    assert refused.value.sqlstate == ("23P01" if table == "wx" else "23505")
    ignore = "ON CONFLICT DO NOTHING"
    session.execute(f"INSERT INTO {table} VALUES (3, 'new-1'), (4, 'new-4') {ignore}")
    rows = [(1, "new-1"), (2, "new-2"), (4, "new-4")]
    assert stored(written, schema_of(role), table) == rows


@pytest.mark.parametrize("role", READERS)
@pytest.mark.parametrize("table", ["wb", "wh"])
def test_on_conflict_meets_the_row_whoever_writes(
    sessions: dict[str, psycopg.Connection],
    written: psycopg.Connection,
    role: str,
    table: str,
) -> None:
    if table == "wh" and role in LIMITED:
        sessions[role].execute("INSERT INTO wh VALUES (1, 'new-1')")
        update = "ON CONFLICT (secret) DO UPDATE SET id = 2"
        assert is_refused(
            sessions[role], f"INSERT INTO wh VALUES (1, 'new-1') {update}"
        )
        return
    for _ in range(3):
        sessions[role].execute(
            f"INSERT INTO {table} AS w VALUES (1, 'new-1'), (10, 'new-2')"
            " ON CONFLICT (secret) DO UPDATE SET id = w.id + 1"
        )
    rows = [(3, "new-1"), (12, "new-2")]
    assert stored(written, schema_of(role), table) == rows


def test_a_key_is_chosen_by_those_who_may_use_it(
    host: Cluster, sessions: dict[str, psycopg.Connection]
) -> None:
    choices = [
        ["SELECT encrypt('x', 'pii')"],
        ["SET LOCAL colcrypt.write_key = 'pii'", "SELECT 'x'::encrypted_text"],
        ["SET LOCAL colcrypt.write_key = 'pii'", "SELECT encrypt('x')"],
        ["SET LOCAL colcrypt.write_key = 'pii'", "INSERT INTO t VALUES (9, 'x'::text)"],
    ]
    for role, reader in READERS.items():
        for statements in choices:
            outcome = run(host, sessions[role], *statements)
            refused = not reader.granted
            if statements[-1].startswith("INSERT") and reader.schema == "pii":
                refused = False
            assert outcome.sqlstate == (DENIED if refused else None), (role, statements)


@pytest.mark.parametrize("role", ["no_grant", "no_grant_keyed", "ciphertext_no_grant"])
def test_a_value_does_not_become_readable_by_moving_it(
    host: Cluster, sessions: dict[str, psycopg.Connection], role: str
) -> None:
    host.psql(
        "SELECT colcrypt.create_key('mine') WHERE NOT EXISTS"
        " (SELECT FROM colcrypt.key WHERE name = 'mine')"
    )
    moves = [
        ["SELECT secret::encrypted_text(mine) FROM t WHERE id = 1"],
        [
            "CREATE TEMP TABLE own (secret encrypted_text(mine))",
            "INSERT INTO own SELECT secret FROM t WHERE id = 1",
        ],
        [
            "CREATE TEMP TABLE own AS SELECT secret FROM t WHERE id = 1",
            "ALTER TABLE own ALTER secret TYPE encrypted_text(mine)",
        ],
        [
            "CREATE TYPE pg_temp.one AS (secret encrypted_text(mine))",
            "SELECT row(secret)::pg_temp.one FROM t WHERE id = 1",
        ],
        [
            "CREATE DOMAIN scratch.own AS encrypted_text(mine)",
            "SELECT secret::scratch.own FROM t WHERE id = 1",
        ],
    ]
    for statements in moves:
        outcome = run(host, sessions[role], *statements)
        assert outcome.sqlstate == DENIED, statements
        assert not outcome.reveals()
    outcome = run(
        host,
        sessions[role],
        "CREATE TEMP TABLE own AS SELECT secret::encrypted_text FROM t WHERE id = 1",
        "SET LOCAL colcrypt.write_key = 'mine'",
        "SELECT rotate_column('own', 'secret')",
        "SELECT secret FROM own",
    )
    assert not outcome.reveals()


# What is refused on purpose, as documented


@pytest.mark.parametrize("role", ["masked", "ciphertext"])
def test_a_foreign_key_is_not_checked_for_those_who_may_not_compare(
    host: Cluster, sessions: dict[str, psycopg.Connection], role: str
) -> None:
    with host.connect() as owner:
        owner.execute(
            "CREATE TABLE open.parent (secret encrypted_text PRIMARY KEY);"
            "CREATE TABLE open.child (secret encrypted_text REFERENCES open.parent);"
            f"INSERT INTO open.parent VALUES ('{RIGHT}');"
            "GRANT ALL ON open.parent, open.child TO PUBLIC"
        )
        try:
            for statement in (
                "INSERT INTO child VALUES ('{g}')",
                "DELETE FROM parent WHERE secret::text <> '{g}'",
            ):
                outcomes = guesses(host, sessions[role], statement)
                assert [outcome.sqlstate for outcome in outcomes] == [DENIED, DENIED]
                assert_indistinguishable(outcomes)
        finally:
            owner.execute("DROP TABLE open.child, open.parent")


# Indexes and the owner


def test_index_maintenance_does_not_ask_for_the_owner_s_grant(host: Cluster) -> None:
    """PostgreSQL makes an index as the table's owner, whoever asks for it: also when a
    superuser restores a dump."""
    with host.connect() as session:
        session.execute("CREATE ROLE deployer; CREATE TABLE owned AS TABLE pii.t")
        session.execute("ALTER TABLE owned OWNER TO deployer")
        try:
            session.execute("CREATE INDEX owned_h ON owned USING hash (secret)")
            session.execute("CREATE INDEX owned_b ON owned (secret)")
            session.execute("REINDEX TABLE owned; ANALYZE owned")
            session.execute("VACUUM FULL owned")
            session.execute("CLUSTER owned USING owned_b")
        finally:
            session.execute("DROP TABLE owned; DROP ROLE deployer")


# Grants


@pytest.fixture
def hr(host: Cluster) -> Iterator[psycopg.Connection]:
    """The superuser, with a key `hr` for role `hr` only, and a table under it."""
    with host.connect() as session:
        session.execute(
            "CREATE ROLE hr; CREATE ROLE alice LOGIN;"
            "SELECT colcrypt.create_key('hr') WHERE NOT EXISTS"
            " (SELECT FROM colcrypt.key WHERE name = 'hr');"
            "SELECT colcrypt.grant_key('hr', 'hr');"
            "CREATE TABLE staff (secret encrypted_text(hr));"
            f"INSERT INTO staff VALUES ('{RIGHT}'); GRANT ALL ON staff TO PUBLIC"
        )
        yield session
        session.execute("RESET ROLE; DROP TABLE staff")
        for role in ("hr", "people", "alice"):
            session.execute(f"DROP ROLE IF EXISTS {role}")
        # A grant to a role that is gone keeps a key closed.
        session.execute("DELETE FROM colcrypt.key_grant WHERE name = 'hr'")


def reads(session: psycopg.Connection) -> bool:
    """Whether a session reads and compares what is under the key; never one of both."""
    shown = fetch(session, "SELECT secret FROM staff")
    found = None
    try:
        found = fetch(session, f"SELECT count(*) FROM staff WHERE secret = '{RIGHT}'")
    except InsufficientPrivilege:
        assert shown == MASK
    else:
        assert (shown, found) == (RIGHT, 1)
    return found is not None


def test_a_grant_follows_membership(host: Cluster, hr: psycopg.Connection) -> None:
    with host.connect(user="alice") as alice:
        assert not reads(alice)
        for _ in range(2):
            hr.execute("GRANT hr TO alice")
            assert reads(alice)
            hr.execute("REVOKE hr FROM alice")
            assert not reads(alice)
        hr.execute("SELECT colcrypt.grant_key('hr', 'alice')")
        assert reads(alice)
        assert fetch(hr, "SELECT colcrypt.revoke_key('hr', 'alice')")
        assert not reads(alice)
        hr.execute("ALTER ROLE alice SUPERUSER")
        assert reads(alice)
        hr.execute("ALTER ROLE alice NOSUPERUSER")
        assert not reads(alice)


def test_a_grant_follows_indirect_membership_and_inherit(
    host: Cluster, hr: psycopg.Connection
) -> None:
    hr.execute("CREATE ROLE people IN ROLE hr; GRANT people TO alice")
    with host.connect(user="alice") as alice:
        assert reads(alice)
        # Since 16 that is a matter of the membership.
        hr.execute(
            "GRANT hr TO people WITH INHERIT FALSE"
            if MAJOR >= 16
            else "ALTER ROLE people NOINHERIT"
        )
        assert not reads(alice)
        alice.execute("SET ROLE hr")
        assert reads(alice)
        alice.execute("RESET ROLE")
        assert not reads(alice)


def test_a_grant_and_a_membership_that_are_rolled_back_give_nothing(
    host: Cluster, hr: psycopg.Connection
) -> None:
    for statement in ("GRANT hr TO alice", "SELECT colcrypt.grant_key('hr', 'alice')"):
        with hr.transaction(force_rollback=True):
            hr.execute(statement)
            hr.execute("SET LOCAL SESSION AUTHORIZATION alice")
            assert reads(hr)
            hr.execute("RESET SESSION AUTHORIZATION")
        hr.execute("SET SESSION AUTHORIZATION alice")
        assert not reads(hr)
        hr.execute("RESET SESSION AUTHORIZATION")


def test_a_key_stays_closed_when_its_role_is_dropped(
    host: Cluster, hr: psycopg.Connection
) -> None:
    hr.execute("DROP ROLE hr")
    with host.connect(user="alice") as alice:
        assert not reads(alice)
        hr.execute("CREATE ROLE hr; GRANT hr TO alice")
        assert not reads(alice)
    assert reads(hr)


def test_a_grant_follows_the_role_through_a_new_name(
    host: Cluster, hr: psycopg.Connection
) -> None:
    hr.execute("GRANT hr TO alice; ALTER ROLE hr RENAME TO people; CREATE ROLE hr")
    with host.connect(user="alice") as alice:
        assert reads(alice)
        hr.execute("REVOKE people FROM alice; GRANT hr TO alice")
        assert not reads(alice)


def test_a_key_without_grants_is_open_and_losing_the_last_one_warns(
    host: Cluster, hr: psycopg.Connection
) -> None:
    warnings: list[str] = []
    hr.add_notice_handler(lambda told: warnings.append(str(told.message_primary)))
    assert fetch(hr, "SELECT colcrypt.revoke_key('hr', 'hr')")
    assert ["every role may use it" in warning for warning in warnings] == [True]
    with host.connect(user="alice") as alice:
        assert reads(alice)


def test_the_current_user_decides_so_security_definer_works(
    host: Cluster, hr: psycopg.Connection
) -> None:
    hr.execute(
        "CREATE FUNCTION staff_secret() RETURNS text LANGUAGE sql SECURITY DEFINER"
        " AS 'SELECT secret::text FROM staff';"
        "CREATE FUNCTION is_secret(text) RETURNS bool LANGUAGE plpgsql SECURITY DEFINER"
        " AS 'BEGIN RETURN (SELECT secret = $1 FROM staff); END';"
        "CREATE FUNCTION sealed() RETURNS encrypted_text LANGUAGE sql SECURITY DEFINER"
        " AS 'SELECT secret FROM staff';"
        "CREATE VIEW staff_view AS SELECT secret FROM staff;"
        "GRANT SELECT ON staff_view TO PUBLIC"
    )
    functions = "staff_secret(), is_secret(text), sealed()"
    try:
        for owner, allowed in (("hr", True), ("alice", False)):
            for function in functions.split(", "):
                hr.execute(f"ALTER FUNCTION {function} OWNER TO {owner}")
            with host.connect(user="alice") as alice:
                assert fetch(alice, "SELECT sealed()") == MASK
                assert fetch(alice, "SELECT secret FROM staff_view") == MASK
                if allowed:
                    assert fetch(alice, "SELECT staff_secret()") == RIGHT
                    assert fetch(alice, f"SELECT is_secret('{RIGHT}')") is True
                else:
                    assert fetch(alice, "SELECT staff_secret()") == MASK
                    with pytest.raises(InsufficientPrivilege):
                        alice.execute(f"SELECT is_secret('{RIGHT}')")
        # The mode is the session's, whoever owns the function.
        hr.execute("ALTER FUNCTION staff_secret() OWNER TO hr")
        hr.execute("SET colcrypt.access = 'masked'")
        assert fetch(hr, "SELECT staff_secret()") == MASK
        hr.execute("RESET colcrypt.access")
    finally:
        hr.execute(f"DROP FUNCTION {functions}; DROP VIEW staff_view")


# Tenants


@pytest.mark.parametrize("index", ["(secret)", "(tenant, secret)"])
def test_tenants_share_a_table_and_its_indexes(host: Cluster, index: str) -> None:
    tenants = ("acme", "bolt")
    with host.connect() as owner:
        owner.execute(
            "CREATE TABLE account (tenant name DEFAULT current_user, n int,"
            " secret encrypted_text);"
            f"CREATE UNIQUE INDEX account_u ON account {index};"
            "CREATE INDEX ON account (secret);"
            "CREATE INDEX ON account USING hash (secret);"
            "ALTER TABLE account ENABLE ROW LEVEL SECURITY;"
            "CREATE POLICY own ON account USING (tenant = current_user);"
            "GRANT ALL ON account TO PUBLIC"
        )
        for tenant in tenants:
            owner.execute(
                f"CREATE ROLE {tenant} LOGIN; SELECT colcrypt.create_key('{tenant}')"
                " WHERE NOT EXISTS (SELECT FROM colcrypt.key"
                f" WHERE name = '{tenant}');"
                f"SELECT colcrypt.grant_key('{tenant}', '{tenant}');"
                f"ALTER ROLE {tenant} SET colcrypt.write_key = '{tenant}'"
            )
        sessions = {tenant: host.connect(user=tenant) for tenant in tenants}
        try:
            for n in range(200):
                for tenant, session in sessions.items():
                    row = [n, f"{tenant}-{n}"]
                    insert = "INSERT INTO account (n, secret) VALUES (%s, %s)"
                    session.execute(insert, row)
            owner.execute("ANALYZE account")
            for tenant, session in sessions.items():
                other = next(name for name in tenants if name != tenant)
                session.execute("SET enable_seqscan = off")
                rows = session.execute("SELECT secret FROM account").fetchall()
                assert sorted(rows) == sorted((f"{tenant}-{n}",) for n in range(200))
                for n in (0, 99, 199):
                    find = "SELECT n FROM account WHERE secret = %s"
                    assert session.execute(find, [f"{tenant}-{n}"]).fetchall() == [(n,)]
                    assert session.execute(find, [f"{other}-{n}"]).fetchall() == []
                    assert session.execute(find, [f"none-{n}"]).fetchall() == []
                count = "SELECT count(DISTINCT secret), count(*) FROM account"
                assert session.execute(count).fetchall() == [(200, 200)]
                with pytest.raises(UniqueViolation):
                    session.execute(
                        "INSERT INTO account (secret) VALUES (%s)", [f"{tenant}-7"]
                    )
                change = "UPDATE account SET secret = secret || '!' WHERE n < 50"
                assert session.execute(change).rowcount == 50
                delete = "DELETE FROM account WHERE secret = %s"
                assert session.execute(delete, [f"{tenant}-60"]).rowcount == 1
                assert fetch(session, "SELECT count(*) FROM account") == 199
            # Nobody's key opens the other's values, also where no policy hides them.
            owner.execute("ALTER TABLE account DISABLE ROW LEVEL SECURITY")
            for tenant, session in sessions.items():
                rows = session.execute("SELECT tenant, secret FROM account").fetchall()
                assert len(rows) == 398
                for whose, secret in rows:
                    assert (secret == MASK) == (whose != tenant)
                    assert secret == MASK or secret.startswith(tenant)
                own = f"tenant = '{tenant}'"
                other = f"tenant <> '{tenant}'"
                group = "SELECT count(*) FROM account WHERE {} GROUP BY secret"
                assert len(session.execute(group.format(own)).fetchall()) == 199
                with pytest.raises(InsufficientPrivilege):
                    session.execute(group.format(other))
            # The owner has both.
            assert fetch(owner, "SELECT count(DISTINCT secret) FROM account") == 398
        finally:
            for session in sessions.values():
                session.close()
            owner.execute("DROP TABLE account")
            for tenant in tenants:
                owner.execute(f"DROP ROLE {tenant}")


# The setting itself

ATTEMPTS = [
    "SET colcrypt.access = 'full'",
    "SET colcrypt.access = full; BEGIN; SET LOCAL colcrypt.access = 'full'; COMMIT",
    "SELECT set_config('colcrypt.access', 'full', false)",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE; RESET colcrypt.access",
    "RESET ALL",
    "DISCARD ALL",
    "SET colcrypt.access TO DEFAULT",
    "SET colcrypt.mask = 'x'",
    "SET colcrypt.undecryptable = 'placeholder'",
    "SET colcrypt.dump_plaintext = on; SET application_name = 'pg_dump'",
    "SET application_name = 'pg_dump'",
    "SET application_name = 'pg_restore'",
    "SET colcrypt.input = 'ciphertext'",
    "ALTER ROLE CURRENT_USER SET colcrypt.access = 'full'",
    "ALTER ROLE CURRENT_USER RESET colcrypt.access",
    "ALTER ROLE CURRENT_USER RESET ALL",
    "ALTER ROLE ALL RESET colcrypt.access",
    "UPDATE pg_settings SET setting = 'full' WHERE name = 'colcrypt.access'",
    "CREATE FUNCTION pg_temp.f() RETURNS text LANGUAGE sql SET colcrypt.access = 'full'"
    " AS 'SELECT secret::text FROM open.t WHERE id = 1'; SELECT pg_temp.f()",
]
ASKED_FOR = ["full", "masked", "ciphertext", "x", ""]


def masked_looks(session: psycopg.Connection) -> set[Any]:
    """What a session gets to see, however it looks."""
    seen: set[Any] = set()
    for query in (
        "SELECT secret FROM open.t WHERE id = 1",
        "SELECT secret::text FROM open.t WHERE id = 1",
        "SELECT decrypt(secret) FROM open.t WHERE id = 1",
        "SELECT ciphertext(secret) FROM open.t WHERE id = 1",
        f"SELECT id FROM open.t WHERE secret = '{RIGHT}'",
        "SELECT array_agg(id) FROM (SELECT id FROM open.b ORDER BY secret) q",
    ):
        try:
            seen.add(fetch(session, query))
        except psycopg.Error as refused:
            seen.add(refused.sqlstate)
    return seen


@pytest.fixture(scope="module", params=["lazy", "session preload", "shared preload"])
def loading(
    request: pytest.FixtureRequest, base: Path, template: Path
) -> Iterator[Cluster]:
    cluster = Cluster(base, template, ring=new_key())
    if request.param != "lazy":
        name = request.param.replace(" ", "_")
        cluster.conf({f"{name}_libraries": "colcrypt"})
    cluster.start()
    cluster.psql(
        "CREATE EXTENSION colcrypt; CREATE SCHEMA open;"
        "CREATE ROLE masked LOGIN; ALTER ROLE masked SET colcrypt.access = 'masked';"
        "CREATE TABLE open.t (id int, secret encrypted_text);"
        f"INSERT INTO open.t VALUES (1, '{RIGHT}');"
        "CREATE TABLE open.b AS TABLE open.t; CREATE INDEX ON open.b (secret);"
        "INSERT INTO open.b SELECT i, 'x' || i FROM generate_series(2, 100) i;"
        "ANALYZE open.b;"
        "GRANT USAGE ON SCHEMA open TO PUBLIC;"
        "GRANT SELECT ON ALL TABLES IN SCHEMA open TO PUBLIC"
    )
    yield cluster
    cluster.destroy()


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_masked_role_stays_masked(
    loading: Cluster, attempt: str, before: bool
) -> None:
    """Before and after the library is loaded in its session, and in its next one."""
    with loading.connect(user="masked") as session:
        if not before:
            assert fetch(session, "SELECT secret FROM open.t") == MASK
        try:
            session.execute(attempt)
        except psycopg.Error:
            session.execute("ROLLBACK")
        seen = masked_looks(session)
    assert seen <= {MASK, DENIED}
    with loading.connect(user="masked") as session:
        assert masked_looks(session) == {MASK, DENIED}


@pytest.mark.parametrize("access", ASKED_FOR)
def test_a_masked_role_stays_masked_whatever_it_asks_for_when_it_connects(
    loading: Cluster, access: str
) -> None:
    try:
        session = loading.connect(
            user="masked", options=f"-c colcrypt.access={access}"
        )
    except psycopg.OperationalError:
        return
    with session:
        assert masked_looks(session) == {MASK, DENIED}


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT id FROM open.b ORDER BY secret",
        "SELECT id FROM open.b ORDER BY secret DESC LIMIT 1",
        "SELECT count(*) FROM open.b GROUP BY secret",
        "SELECT DISTINCT ON (secret) id FROM open.b",
        "SELECT rank() OVER (ORDER BY secret) FROM open.b",
        "SELECT x.id FROM open.b x JOIN open.b y USING (secret)",
        f"SELECT id FROM open.b WHERE secret = '{RIGHT}'",
        f"SELECT id FROM open.b WHERE secret = '{RIGHT}'::text",
    ],
)
def test_the_first_statement_of_a_session_is_refused_like_any_other(
    loading: Cluster, statement: str
) -> None:
    settings = "-c enable_seqscan=off -c enable_sort=off -c enable_hashagg=off"
    with loading.connect(user="masked", options=settings) as session:
        with pytest.raises(InsufficientPrivilege):
            session.execute(statement)


def test_a_restricted_role_has_no_way_to_the_keys(
    host: Cluster, sessions: dict[str, psycopg.Connection]
) -> None:
    statements = [
        "SELECT * FROM colcrypt.key",
        "SELECT * FROM colcrypt.key_grant",
        "SELECT * FROM colcrypt.keys",
        "SELECT colcrypt.grant_key('pii', 'no_grant')",
        "SELECT colcrypt.revoke_key('pii', 'granted')",
        "SELECT colcrypt.create_key('x')",
        "SELECT colcrypt.rotate_key('pii')",
        "SELECT colcrypt.shred_key('pii')",
        "SELECT colcrypt.rewrap_keys()",
        "SELECT colcrypt.accept_key()",
        "SELECT * FROM colcrypt.ring_keys()",
        "SELECT from_ciphertext('colcrypt:v1:AAAA')",
        "SELECT from_fernet('gAAAAA')",
    ]
    for role in READERS:
        for statement in statements:
            assert run(host, sessions[role], statement).sqlstate == DENIED, statement


def test_a_masked_role_cannot_dump(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(ring=new_key())
    cluster.psql(
        "CREATE TABLE t (secret encrypted_text); INSERT INTO t VALUES ('canary');"
        "CREATE ROLE masked LOGIN; ALTER ROLE masked SET colcrypt.access = 'masked';"
        "CREATE ROLE cipher LOGIN;"
        "ALTER ROLE cipher SET colcrypt.access = 'ciphertext';"
        "GRANT SELECT ON t TO PUBLIC"
    )
    with pytest.raises(Exception, match="masks"):
        cluster.run("pg_dump", "-t", "t", user="masked")
    for user in ("cipher", "postgres"):
        dump = cluster.run("pg_dump", "-t", "t", user=user)
        assert "colcrypt:v1:" in dump and "canary" not in dump
