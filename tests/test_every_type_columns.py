"""Columns of each encrypted type: constraints, domains, arrays and composites, casts,
views, functions, and the statements that move values."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg.errors import CheckViolation, NotNullViolation, UndefinedFunction

from harness import Cluster, Database, fetch
from kinds import KINDS, PREFIX, Kind, every_kind, quoted
from test_every_type_io import (
    assert_sealed,
    column,
    copy_in,
    copy_out,
    fill,
    home,
    session,
)
from test_every_type_refused import refused_by

__all__ = ["home", "session"]

# Casts


@every_kind
def test_assignment_casts_from_each_type_give_what_the_plain_column_gets(
    session: psycopg.Connection, server: Cluster, kind: Kind
) -> None:
    # char(n) and name have limits of their own.
    samples = [s for s in kind.samples if len(s.sealed) < 60 and s.name != "spaces"]
    for type_ in kind.assignable:
        session.execute("TRUNCATE t, p")
        for sample in samples:
            for table in ("t", "p"):
                session.execute(
                    f"INSERT INTO {table} (secret) SELECT x FROM"
                    f" (SELECT {sample.literal}::{type_} OFFSET 0) AS s (x)"
                )
                session.execute(
                    f"INSERT INTO {table} (secret) SELECT x::{kind.plain} FROM"
                    f" (SELECT {sample.literal}::{type_} OFFSET 0) AS s (x)"
                )
        query = "SELECT secret::text FROM {} ORDER BY n"
        expected = column(session, query.format("p"))
        assert column(session, query.format("t")) == expected
        assert len(expected) == 2 * len(samples)
        null = f"SELECT NULL::{type_}::{kind.type} IS NULL"
        assert fetch(session, null) is True


SOURCES = {
    "text": "'1'",
    "varchar": "'1'",
    "bytea": "'1'",
    "json": "'1'",
    "jsonb": "'1'",
    "integer": "1",
    "boolean": "true",
    "text[]": "'{1}'",
    "regclass": "'pg_class'",
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.suffix], ids=str)
def test_columns_take_and_give_on_assignment_what_columns_of_the_plain_type_do(
    session: psycopg.Connection, kind: Kind
) -> None:
    # encrypted_text takes a value of any type, as a text column takes it.
    def outcome(sql: str) -> str:
        try:
            session.execute(sql)
        except psycopg.Error as error:
            return str(error.sqlstate)
        return "taken"

    session.execute("CREATE DOMAIN dom AS " + kind.plain)
    for type_, literal in (SOURCES | {"dom": "'1'"}).items():
        take = "INSERT INTO {} (secret) SELECT x FROM (SELECT {}::{} OFFSET 0) s (x)"
        assert outcome(take.format("t", literal, type_)) == outcome(
            take.format("p", literal, type_)
        ), type_
        session.execute(f"CREATE TABLE to_fill (x {type_})")
        give = "INSERT INTO to_fill SELECT secret FROM {} LIMIT 0"
        assert outcome(give.format("t")) == outcome(give.format("p")), type_
        session.execute("DROP TABLE to_fill")


@every_kind
def test_nothing_becomes_encrypted_where_nobody_asked_for_it(
    session: psycopg.Connection, kind: Kind
) -> None:
    session.execute(
        f"CREATE FUNCTION takes_encrypted({kind.type}) RETURNS {kind.plain}"
        f" LANGUAGE sql AS 'SELECT $1::{kind.plain}';"
        f"CREATE FUNCTION takes_plain({kind.plain}) RETURNS {kind.plain}"
        " LANGUAGE sql AS 'SELECT $1'"
    )
    literal, value = kind.one.literal, kind.one.value
    for call in (
        f"takes_encrypted({literal})",
        f"takes_encrypted({literal}::{kind.plain}::{kind.type})",
        f"takes_plain({literal}::{kind.type})",
        f"takes_plain({literal})",
    ):
        assert fetch(session, f"SELECT {call}") == value
    with pytest.raises(UndefinedFunction):
        session.execute(f"SELECT takes_encrypted({literal}::{kind.plain})")
    mixed = f"COALESCE(NULL::{kind.type}, {literal}::{kind.plain})"
    case = (
        f"CASE WHEN true THEN {literal}::{kind.type} ELSE {literal}::{kind.plain} END"
    )
    union = (
        f"(SELECT {literal}::{kind.type} UNION ALL SELECT {literal}::{kind.plain}"
        " LIMIT 1)"
    )
    for expression in (mixed, case, union):
        assert fetch(session, f"SELECT {expression}") == value
        typed = fetch(session, f"SELECT pg_typeof({expression})::text")
        assert typed == kind.plain


@every_kind
def test_a_value_and_a_literal_stay_encrypted(
    session: psycopg.Connection, kind: Kind
) -> None:
    literal = kind.one.literal
    for expression in (
        f"COALESCE(NULL::{kind.type}, {literal})",
        f"CASE WHEN true THEN {literal} ELSE NULL::{kind.type} END",
        f"(SELECT {literal}::{kind.type} UNION ALL SELECT {literal} LIMIT 1)",
        f"nullif({literal}::{kind.type}, {kind.two.literal})",
        f"(ARRAY[{literal}::{kind.type}, {kind.two.literal}])[1]",
        f"(VALUES ({literal}::{kind.type}), ({literal}) LIMIT 1)",
    ):
        assert fetch(session, f"SELECT {expression}") == kind.one.text
        assert fetch(session, f"SELECT pg_typeof({expression})::text") == kind.type


@every_kind
def test_defaults_and_constraints(session: psycopg.Connection, kind: Kind) -> None:
    one, two = kind.one, kind.two
    third = kind.holding("third").literal
    session.execute(
        f"CREATE TABLE d (n int PRIMARY KEY, a {kind.type} NOT NULL DEFAULT {one.literal}"
        f" CHECK (a <> {two.literal}), b {kind.type} DEFAULT {kind.holding_sql('now()::text')},"
        f" CONSTRAINT plain CHECK (b::{kind.plain} <> {two.literal}))"
    )
    session.execute("INSERT INTO d VALUES (1)")
    session.execute(f"INSERT INTO d VALUES (2, {third}, DEFAULT), (3, DEFAULT, NULL)")
    shown = session.execute("SELECT a, b IS NULL FROM d ORDER BY n").fetchall()
    third_text = kind.holding("third").text
    assert shown == [(one.text, False), (third_text, False), (one.text, True)]
    for sql, error in {
        f"INSERT INTO d VALUES (4, {two.literal})": CheckViolation,
        f"INSERT INTO d VALUES (4, DEFAULT, {two.literal})": CheckViolation,
        f"UPDATE d SET b = {two.literal}": CheckViolation,
        "INSERT INTO d VALUES (4, NULL)": NotNullViolation,
        "UPDATE d SET a = NULL": NotNullViolation,
    }.items():
        with pytest.raises(error):
            session.execute(sql)
    session.execute(f"ALTER TABLE d ADD c {kind.type} DEFAULT {two.literal}")
    session.execute("CREATE TABLE e (LIKE d INCLUDING ALL); INSERT INTO e TABLE d")
    assert column(session, "SELECT DISTINCT c::text FROM e") == [
        fetch(session, f"SELECT {two.literal}::{kind.plain}::text")
    ]
    with pytest.raises(CheckViolation):
        session.execute(f"INSERT INTO e (n, a) VALUES (9, {two.literal})")
    # The catalog holds the constants sealed.
    trees = column(
        session,
        "SELECT adbin::text FROM pg_attrdef WHERE adrelid = 'd'::regclass"
        " UNION ALL SELECT conbin::text FROM pg_constraint"
        " WHERE conrelid = 'd'::regclass AND conbin IS NOT NULL",
    )
    for sample in (one, two):
        as_bytes = " ".join(str(b if b < 128 else b - 256) for b in sample.sealed)
        # The constraint by the plain type is the one to show it.
        assert sum(f" {as_bytes} " in tree for tree in trees) == (
            1 if sample is two and kind.plain != "jsonb" else 0
        )


@every_kind
def test_a_plain_column_becomes_encrypted_and_plain_again(
    session: psycopg.Connection, server: Cluster, kind: Kind
) -> None:
    fill(session, kind, "p")
    before = column(session, "SELECT secret::text FROM p ORDER BY n")
    session.execute(
        f"ALTER TABLE p ALTER secret SET DEFAULT {kind.one.literal};"
        f"DROP TABLE t; ALTER TABLE p ALTER secret TYPE {kind.type};"
        "ALTER TABLE p RENAME TO t"
    )
    assert_sealed(session, kind, server)
    storage = "SELECT attstorage FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'secret'"
    assert fetch(session, storage) == "e"
    added = "INSERT INTO t (n) VALUES (99) RETURNING secret"
    assert fetch(session, added) == kind.one.text
    session.execute(f"ALTER TABLE t ALTER secret TYPE {kind.plain}")
    after = column(session, "SELECT secret::text FROM t ORDER BY n")
    assert after == [*before[: len(before)], kind.one.text]
    assert fetch(session, "SELECT pg_typeof(secret)::text FROM t LIMIT 1") == kind.plain


@every_kind
def test_the_plaintext_is_neither_indexed_nor_stored(
    session: psycopg.Connection, kind: Kind
) -> None:
    for sql in (
        f"CREATE INDEX ON t ((secret::{kind.plain}))",
        "CREATE INDEX ON t ((decrypt(secret)))",
        "CREATE INDEX ON t ((secret::text))",
        f"CREATE INDEX ON t (n) WHERE secret::{kind.plain} = {kind.one.literal}",
        f"ALTER TABLE t ADD x {kind.plain}"
        f" GENERATED ALWAYS AS (secret::{kind.plain}) STORED",
        f"ALTER TABLE t ADD x {kind.type} GENERATED ALWAYS AS"
        f" (encrypt({kind.one.literal}::{kind.plain})) STORED",
        f"CREATE TABLE x (secret {kind.type}) PARTITION BY RANGE ((secret::{kind.plain}))",
    ):
        assert refused_by(session, sql).sqlstate == "42P17", sql
    for sql, sqlstate in {
        f'CREATE TABLE x (secret {kind.type} COLLATE "C")': "42804",
        "CREATE INDEX ON t USING gin (secret)": "42704",
        "CREATE INDEX ON t USING gist (secret)": "42704",
        "CREATE INDEX ON t USING brin (secret)": "42704",
    }.items():
        assert refused_by(session, sql).sqlstate == sqlstate, sql


@every_kind
def test_domains_arrays_and_composites(session: psycopg.Connection, kind: Kind) -> None:
    one, two = kind.one, kind.two
    session.execute(
        f"CREATE DOMAIN d AS {kind.type} CHECK (VALUE <> {two.literal}) NOT NULL;"
        f"CREATE TYPE c AS (x int, secret {kind.type});"
        f"CREATE TABLE m (n serial, d d, a {kind.type}[], c c, cs c[])"
    )
    session.execute(
        f"INSERT INTO m (d, a, c, cs) VALUES ({one.literal},"
        f" ARRAY[{one.literal}, {two.literal}, NULL]::{kind.type}[], ROW(1, {one.literal}),"
        f" ARRAY[ROW(1, {one.literal}), ROW(2, {two.literal})]::c[])"
    )
    # In text form and back, and in binary form.
    for form in ("text", "csv", "binary"):
        rows = copy_out(session, "m", form)
        copy_in(session, "m", form, rows)
        again = copy_out(session, "(SELECT * FROM m ORDER BY ctid DESC LIMIT 1)", form)
        assert again == rows
        session.execute("DELETE FROM m WHERE ctid <> (SELECT min(ctid) FROM m)")
    shown = session.execute(
        "SELECT d, a[1], a[2], a[3], (c).secret, (cs[2]).secret FROM m"
    ).fetchone()
    assert shown == (one.text, one.text, two.text, None, one.text, two.text)
    typed = f"SELECT a::{kind.plain}[] = ARRAY[{one.literal}, {two.literal}, NULL]::{kind.plain}[] FROM m"
    assert fetch(session, typed)
    sealed = "SELECT every(ciphertext(s) LIKE %s) FROM m, unnest(a || (c).secret) AS s"
    assert fetch(session, sealed, PREFIX + "%")
    for sql, error in {
        f"INSERT INTO m (d) VALUES ({two.literal})": CheckViolation,
        f"INSERT INTO m (d) VALUES ({two.literal}::{kind.plain})": CheckViolation,
        "INSERT INTO m (d) VALUES (NULL)": NotNullViolation,
        f"SELECT {two.literal}::d": CheckViolation,
    }.items():
        with pytest.raises(error):
            session.execute(sql)
    session.execute(
        f"UPDATE m SET a[1] = {two.literal}, c.secret = {two.literal},"
        f" d = {kind.holding_sql(quoted('third'))}"
    )
    shown = session.execute("SELECT d, a[1], (c).secret FROM m").fetchone()
    assert shown == (kind.holding("third").text, two.text, two.text)
    extended = (
        f"SELECT array_append(a, {one.literal}) || {one.literal}::{kind.type} FROM m"
    )
    assert len(kind_list(session, extended)) == 5
    assert fetch(
        session,
        f"SELECT ARRAY[{one.literal}]::{kind.type}[] = ARRAY[{one.literal}]::{kind.type}[]"
        f" AND ROW({one.literal}::{kind.type}, 1) = ROW({one.literal}::{kind.type}, 1)"
        f" AND ROW({one.literal}::{kind.type}, 1) <> ROW({two.literal}::{kind.type}, 1)"
        f" AND {one.literal}::{kind.type} = ANY (ARRAY[{two.literal}, {one.literal}]::{kind.type}[])",
    )


def kind_list(session: psycopg.Connection, query: str) -> list[Any]:
    return column(session, f"SELECT unnest(x) FROM ({query}) AS s (x)")


@every_kind
def test_rows_become_json_as_rows_of_the_plain_type_do(
    session: psycopg.Connection, kind: Kind
) -> None:
    fill(session, kind)
    fill(session, kind, "p")
    for expression in (
        "to_json(x)",
        "to_jsonb(x)",
        "row_to_json(x)",
        "to_json(x.secret)",
        "to_jsonb(x.secret)",
        "json_build_object('k', x.secret)",
        "jsonb_build_object('k', x.secret)",
        "json_build_array(x.secret, 1)",
        "jsonb_build_array(x.secret, 1)",
        "to_jsonb(ARRAY[x.secret])",
        "array_to_json(ARRAY[x.secret])",
        "concat(x.secret, '')",
        "format('%s', x.secret)",
        "format('%L', x.secret)",
        "quote_nullable(x.secret::text)",
        "x.secret::text",
        "ROW(x.secret)::text",
        "xmlelement(name a, x.secret::text)",
    ):
        query = f"SELECT {expression}::text FROM {{}} AS x ORDER BY n"
        made = column(session, query.format("t"))
        assert made == column(session, query.format("p")), expression
    for expression in ("json_agg(x ORDER BY n)", "jsonb_agg(x.secret ORDER BY n)"):
        query = f"SELECT {expression}::text FROM {{}} AS x"
        made = column(session, query.format("t"))
        assert made == column(session, query.format("p")), expression


@every_kind
def test_statements_that_move_values_between_columns(
    session: psycopg.Connection, server: Cluster, kind: Kind
) -> None:
    fill(session, kind, "p")
    texts = column(session, "SELECT secret::text FROM p ORDER BY n")
    returned = column(
        session,
        "INSERT INTO t (secret) SELECT secret FROM p ORDER BY n RETURNING secret",
    )
    assert returned == [*(sample.text for sample in kind.samples), None]
    assert_sealed(session, kind, server)
    session.execute("CREATE TABLE u AS TABLE t")
    same = "SELECT count(*) FROM t JOIN u USING (n) WHERE ciphertext(t.secret) = ciphertext(u.secret)"
    assert fetch(session, same) == len(kind.samples)
    one, two = kind.one, kind.two
    updated = session.execute(
        f"UPDATE t SET secret = {two.literal} WHERE secret = {one.literal}"
        " RETURNING n, secret"
    ).fetchall()
    assert updated == [(1, two.text)]
    merged = session.execute(
        "MERGE INTO t USING (SELECT n, secret FROM p UNION ALL"
        f" SELECT 100, {one.literal}::{kind.plain}) AS s ON t.n = s.n"
        f" WHEN MATCHED AND t.secret = {two.literal} AND t.n = 1"
        "  THEN UPDATE SET secret = s.secret"
        " WHEN MATCHED AND t.secret IS NULL THEN DELETE"
        " WHEN NOT MATCHED THEN INSERT (n, secret) VALUES (s.n, s.secret)"
    ).rowcount
    assert merged == 3
    assert column(session, "SELECT secret::text FROM t ORDER BY n") == [
        *texts[:-1],
        fetch(session, f"SELECT {one.literal}::{kind.plain}::text"),
    ]
    deleted = f"DELETE FROM t WHERE secret = {one.literal} AND n = 100 RETURNING secret"
    assert fetch(session, deleted) == one.text
    session.execute("UPDATE p SET secret = t.secret FROM t WHERE t.n = p.n - 1")
    assert column(session, "SELECT secret::text FROM p ORDER BY n")[1:] == texts[:-1]


@every_kind
def test_views_and_row_level_security(
    session: psycopg.Connection, home: Database, kind: Kind
) -> None:
    fill(session, kind)
    role = "reader_of_every_type"
    session.execute(
        f"CREATE VIEW v AS SELECT n, secret, secret::{kind.plain} AS plain,"
        f" {kind.one.literal}::{kind.type} AS constant FROM t"
        f" WHERE secret <> {kind.two.literal};"
        "CREATE MATERIALIZED VIEW k AS SELECT n, secret FROM t;"
        f"CREATE POLICY own ON t USING (secret = {kind.one.literal});"
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY;"
        f"CREATE ROLE {role} LOGIN; GRANT SELECT, INSERT ON t TO {role};"
        f"GRANT USAGE ON SEQUENCE t_n_seq TO {role}; GRANT USAGE ON SCHEMA work TO {role}"
    )
    expected = [sample for sample in kind.samples if sample is not kind.two]
    rows = session.execute(
        "SELECT secret, plain, constant FROM v ORDER BY n"
    ).fetchall()
    assert rows == [(s.text, s.value, kind.one.text) for s in expected]
    session.execute(f"UPDATE v SET secret = {kind.two.literal} WHERE n = 1")
    assert fetch(session, "SELECT secret FROM t WHERE n = 1") == kind.two.text
    assert fetch(session, "SELECT secret FROM k WHERE n = 1") == kind.one.text
    session.execute("REFRESH MATERIALIZED VIEW k")
    assert fetch(session, "SELECT secret FROM k WHERE n = 1") == kind.two.text
    session.execute(f"UPDATE t SET secret = {kind.one.literal} WHERE n = 3")
    with home.connect(user=role) as reader:
        assert column(reader, "SELECT secret FROM t") == [kind.one.text]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            reader.execute(f"INSERT INTO t (secret) VALUES ({kind.two.literal})")
        reader.execute(f"INSERT INTO t (secret) VALUES ({kind.one.literal})")
    session.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


PLPGSQL = """
    CREATE FUNCTION work(given {type} DEFAULT {one}, OUT o {type}, INOUT io {type}
        DEFAULT {two}) LANGUAGE plpgsql AS $$
    DECLARE
        literal {type} := {one};
        plain {plain};
        from_column t.secret%TYPE;
        whole t%ROWTYPE;
        anything record;
        list {type}[] := '{{}}';
        dynamic {plain};
    BEGIN
        ASSERT given = {one} AND io = {two} AND literal = given;
        plain := literal;
        literal := plain;
        SELECT secret INTO from_column FROM t WHERE n = 2;
        ASSERT from_column = {two} AND from_column::{plain} = {two}::{plain};
        SELECT * INTO whole FROM t WHERE n = 1;
        whole.secret := from_column;
        ASSERT whole.secret = {two};
        FOR anything IN SELECT * FROM t WHERE n < 3 ORDER BY n LOOP
            list := list || anything.secret;
        END LOOP;
        ASSERT cardinality(list) = 2 AND list[1] = {one} AND list[2] = {two};
        EXECUTE 'SELECT $1::{plain}' INTO dynamic USING literal;
        ASSERT dynamic = {one}::{plain};
        EXECUTE 'UPDATE t SET secret = $1 WHERE n = $2' USING dynamic, 2;
        o := dynamic;
        io := (SELECT secret FROM t WHERE n = 2);
    END
    $$;
    CREATE FUNCTION each_secret() RETURNS SETOF {type} LANGUAGE sql
        AS 'SELECT secret FROM t ORDER BY n';
    CREATE FUNCTION same(anyelement) RETURNS anyelement LANGUAGE sql AS 'SELECT $1';
    CREATE TABLE noted (secret {plain}, old {plain});
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO noted VALUES (NEW.secret, OLD.secret);
        IF OLD.secret IS DISTINCT FROM NEW.secret THEN
            NEW.secret := OLD.secret;
        END IF;
        RETURN NEW;
    END
    $$;
"""


@every_kind
def test_functions_variables_and_triggers(
    session: psycopg.Connection, kind: Kind
) -> None:
    fill(session, kind)
    one, two = kind.one, kind.two
    session.execute(
        PLPGSQL.format(
            type=kind.type, plain=kind.plain, one=one.literal, two=two.literal
        )
    )
    assert session.execute("SELECT o, io FROM work()").fetchone() == (
        one.text,
        one.text,
    )
    assert column(session, "SELECT * FROM each_secret()")[:2] == [one.text] * 2
    assert fetch(session, "SELECT same(secret) FROM t WHERE n = 1") == one.text
    session.execute(
        "CREATE TRIGGER note BEFORE UPDATE ON t FOR EACH ROW"
        f" WHEN (NEW.secret = {two.literal}) EXECUTE FUNCTION note()"
    )
    session.execute(f"UPDATE t SET secret = {two.literal} WHERE n = 1")
    session.execute(f"UPDATE t SET secret = {kind.canary.literal} WHERE n = 2")
    noted = session.execute("SELECT secret, old FROM noted").fetchall()
    assert noted == [(two.value, one.value)]
    shown = column(session, "SELECT secret FROM t WHERE n < 3 ORDER BY n")
    assert shown == [one.text, kind.canary.text]


# Literals


@every_kind
def test_a_literal_is_sealed_once_and_values_of_columns_one_by_one(
    session: psycopg.Connection, kind: Kind
) -> None:
    literal = kind.one.literal
    for source, distinct in {
        f"SELECT {literal}::{kind.type} FROM generate_series(1, 3)": 1,
        f"SELECT {literal} FROM generate_series(1, 3)": 1,
        f"SELECT {literal}::{kind.plain} FROM generate_series(1, 3)": 3,
        f"SELECT encrypt({literal}::{kind.plain}) FROM generate_series(1, 3)": 3,
        f"VALUES ({literal}), ({literal}), ({literal})": 3,
    }.items():
        session.execute(f"TRUNCATE t; INSERT INTO t (secret) {source}")
        counts = session.execute(
            "SELECT count(*), count(DISTINCT ciphertext(secret)) FROM t"
        ).fetchone()
        assert counts == (3, distinct), source
