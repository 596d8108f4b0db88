"""What is no value of a type is refused as its plain type refuses it, and so is what
could be taken for ciphertext; and no error quotes a value."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from psycopg.errors import InvalidBinaryRepresentation, InvalidTextRepresentation

from harness import Cluster, fetch
from kinds import CANARY, CANARY_FORMS, KINDS, PREFIX, Kind, every_kind
from test_every_type_io import (
    Way,
    by_both_ways,
    ciphertexts,
    column,
    copy_in,
    home,
    send,
    session,
)

__all__ = ["home", "session"]


def assert_quotes_nothing(error: psycopg.Error) -> None:
    """In no part, but for the context that PostgreSQL itself makes of a line of COPY."""
    diag = error.diag
    assert diag.message_primary and diag.sqlstate
    assert not (diag.context or "").count(CANARY) or "COPY t" in diag.context
    for part in (diag.message_primary, diag.message_detail, diag.message_hint):
        for form in CANARY_FORMS:
            assert form not in (part or "")
    # pgrx would add a backtrace.
    assert "backtrace" not in (diag.message_detail or "")


def assert_logs_nothing(server: Cluster, start: int) -> None:
    log = server.log()[start:]
    assert "ERROR:  " in log
    for form in CANARY_FORMS:
        assert form not in log


# Literals


# As SQL over a literal, and the same for the plain type with its name in place.
LITERAL_WAYS = {
    "INSERT": "INSERT INTO t (secret) VALUES ({literal})",
    "cast": "SELECT {literal}::{type}",
    "CAST": "SELECT CAST({literal} AS {type})",
    "typed literal": "SELECT {type} {literal}",
    "UPDATE": "UPDATE t SET secret = {literal}",
    "comparison": "SELECT * FROM t WHERE secret = {literal}",
    "IN": "SELECT * FROM t WHERE secret IN ({literal}, NULL)",
    "DEFAULT": "ALTER TABLE t ALTER secret SET DEFAULT {literal}",
    "CHECK": "ALTER TABLE t ADD CHECK (secret <> {literal})",
    "COALESCE": "SELECT COALESCE(secret, {literal}) FROM t",
    "CASE": "SELECT CASE WHEN n = 1 THEN {literal} ELSE secret END FROM t",
    "view": "CREATE VIEW v AS SELECT {literal}::{type} AS secret",
    "PREPARE": "PREPARE s AS INSERT INTO t (secret) VALUES ({literal})",
    "text": "SELECT {literal}::text::{type}",
    "text in a row": "SELECT x::{type} FROM (SELECT {literal}::text OFFSET 0) AS s (x)",
    "input function": "SELECT {type}_in({literal}::cstring, 0, -1)",
    "array": "SELECT ARRAY[{literal}]::{type}[]",
    "VALUES": "INSERT INTO t (secret) SELECT * FROM (VALUES ({literal}::{type})) AS v",
    "DO": "DO $x$ DECLARE v {type} := {literal}; BEGIN END $x$",
    "PERFORM": "DO $x$ BEGIN UPDATE t SET secret = {literal}; END $x$",
    "assignment": (
        "DO $x$ DECLARE v {type}; s text := {literal}; BEGIN v := s::{type}; END $x$"
    ),
    "json_populate_record": (
        "SELECT * FROM json_populate_record(NULL::t,"
        " json_build_object('secret', {literal}::text))"
    ),
}
# PostgreSQL knows json and jsonb by their numbers there: for another type a JSON string
# is what its input function gets, without the quotation marks.
ENCRYPTED_ONLY = {"input function", "json_populate_record"}


def refused_by(
    session: psycopg.Connection, sql: str, parameters: Any = None
) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as refused:
        session.execute(sql.encode(), parameters)
    return refused.value


@pytest.mark.parametrize("way", LITERAL_WAYS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.invalid], ids=str)
def test_an_invalid_literal_is_refused_as_by_the_plain_type_without_a_quote(
    session: psycopg.Connection, server: Cluster, kind: Kind, way: str
) -> None:
    session.execute("INSERT INTO t (secret) SELECT NULL; INSERT INTO p TABLE t")
    start = len(server.log())
    sql = LITERAL_WAYS[way]
    for literal, sqlstate in kind.invalid:
        error = refused_by(session, sql.format(literal=literal, type=kind.type))
        assert error.sqlstate == sqlstate
        message = f"invalid input syntax for type {kind.type}"
        if sqlstate == "54001":
            message = "document is nested too deep for this session"
        assert error.diag.message_primary == message
        assert_quotes_nothing(error)
    assert_logs_nothing(server, start)
    assert column(session, "SELECT secret FROM t") == [None]
    if way not in ENCRYPTED_ONLY:
        plain = sql.replace(" t ", " p ").replace("::t,", "::p,")
        for literal, sqlstate in kind.invalid:
            error = refused_by(session, plain.format(literal=literal, type=kind.plain))
            assert error.sqlstate == sqlstate


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.invalid], ids=str)
def test_an_invalid_parameter_or_line_is_refused_without_a_quote(
    session: psycopg.Connection, server: Cluster, kind: Kind
) -> None:
    session.execute(
        f"CREATE DOMAIN d AS {kind.type}; CREATE TYPE c AS (x int, secret {kind.type})"
    )
    for literal, sqlstate in kind.invalid:
        text = fetch(session, f"SELECT {literal}::text")
        start = len(server.log())
        for sql in (
            "INSERT INTO t (secret) VALUES (%t)",
            "SELECT %t::d",
            "SELECT %b::text::d",
            "SELECT * FROM t WHERE secret = %t",
            f"SELECT array_in(array_out(ARRAY[%b::text]), '{kind.type}'::regtype, -1)",
            f"SELECT array_to_string(ARRAY[%b::text], '')::{kind.type}",
            "SELECT textin(textout(ROW(1, %b::text)::text))::c",
            "SELECT ROW(1, %b::text)::text::c",
            "SELECT jsonb_populate_record(NULL::t, jsonb_build_object('secret', %b::text))",
            "SELECT * FROM json_to_record(json_build_object('x', %b::text)) AS (x d)",
        ):
            error = refused_by(session, sql, [text])
            assert error.sqlstate == sqlstate, sql
            assert_quotes_nothing(error)
        assert_logs_nothing(server, start)


@pytest.mark.parametrize("form", ["text", "csv"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.invalid], ids=str)
def test_an_invalid_line_of_copy_is_not_in_the_log(
    session: psycopg.Connection, server: Cluster, kind: Kind, form: str
) -> None:
    for literal, sqlstate in kind.invalid:
        sql = f"COPY (SELECT {literal}::text) TO STDOUT (FORMAT {form})"
        with session.cursor() as cursor, cursor.copy(sql.encode()) as copy:
            line = b"".join(bytes(part) for part in copy)
        start = len(server.log())
        with pytest.raises(psycopg.Error) as refused:
            copy_in(session, "t (secret)", form, line)
        assert refused.value.sqlstate == sqlstate
        assert "COPY t, line 1, column secret" in str(refused.value.diag.context)
        assert_quotes_nothing(refused.value)
        assert_logs_nothing(server, start)
    assert fetch(session, "SELECT count(*) FROM t") == 0


# Binary


@by_both_ways
@pytest.mark.parametrize(
    ("kind", "raw", "sqlstate"),
    [(kind, *invalid) for kind in KINDS for invalid in kind.invalid_binary],
)
def test_invalid_binary_is_refused_as_by_the_plain_type_without_a_quote(
    session: psycopg.Connection,
    server: Cluster,
    kind: Kind,
    way: Way,
    raw: bytes,
    sqlstate: str,
) -> None:
    with pytest.raises(psycopg.Error) as plain:
        way(session, kind.plain, raw)
    start = len(server.log())
    with pytest.raises(psycopg.Error) as refused:
        way(session, kind.type, raw)
    assert refused.value.sqlstate == sqlstate
    # An internal error of PostgreSQL's is not worth copying.
    assert plain.value.sqlstate in (sqlstate, "XX000")
    assert_quotes_nothing(refused.value)
    assert_logs_nothing(server, start)
    assert fetch(session, "SELECT count(*) FROM t") == 0


# The reserved prefix


@pytest.mark.parametrize("way", LITERAL_WAYS)
@every_kind
def test_a_literal_with_the_reserved_prefix_is_refused(
    session: psycopg.Connection, server: Cluster, kind: Kind, way: str
) -> None:
    session.execute("INSERT INTO t (secret) VALUES (NULL)")
    start = len(server.log())
    for literal in kind.reserved:
        sql = LITERAL_WAYS[way].format(literal=literal, type=kind.type)
        error = refused_by(session, sql)
        assert isinstance(error, InvalidTextRepresentation)
        assert "reserved prefix" in str(error.diag.message_primary)
        assert "colcrypt.input" in str(error.diag.message_hint)
        assert "from_ciphertext() or its like" in str(error.diag.message_hint)
        assert_quotes_nothing(error)
    assert_logs_nothing(server, start)
    assert column(session, "SELECT secret FROM t") == [None]


@every_kind
def test_a_value_of_the_plain_type_with_the_reserved_prefix_is_refused(
    session: psycopg.Connection, server: Cluster, kind: Kind
) -> None:
    session.execute(
        "SELECT colcrypt.create_key('pii')"
        " WHERE NOT EXISTS (SELECT FROM colcrypt.keys WHERE name = 'pii')"
    )
    start = len(server.log())
    values = []
    for literal in kind.reserved:
        try:
            values.append(fetch(session, f"SELECT {literal}::{kind.plain}::text"))
        except InvalidTextRepresentation:
            # As a literal of jsonb it is none.
            start = len(server.log())
    assert len(set(values)) > 1
    for text in values:
        for sql in (
            "INSERT INTO t (secret) VALUES (%t::{plain})",
            "INSERT INTO t (secret) SELECT secret FROM p",
            "SELECT %t::{plain}::{type}",
            "SELECT encrypt(%t::{plain})",
            "SELECT encrypt(%t::{plain}, 'pii')",
            "SELECT %t::{plain}::{type}(pii)",
            "UPDATE t SET secret = %t::{plain}",
            "DO $$ DECLARE s {plain}; e {type}; BEGIN"
            " s := (SELECT secret FROM p); e := s; END $$",
            "ALTER TABLE p ALTER secret TYPE {type}",
        ):
            session.execute("TRUNCATE p, t")
            session.execute("INSERT INTO t (secret) VALUES (NULL)")
            session.execute("INSERT INTO p (secret) VALUES (%t)", [text])
            parameters = [text] if "%t" in sql else None
            sql = sql.format(plain=kind.plain, type=kind.type)
            error = refused_by(session, sql, parameters)
            assert isinstance(error, InvalidTextRepresentation), sql
            assert_quotes_nothing(error)
    assert_logs_nothing(server, start)


@pytest.mark.parametrize("form", ["text", "csv"])
@every_kind
def test_a_line_of_copy_with_the_reserved_prefix_is_refused(
    session: psycopg.Connection, server: Cluster, kind: Kind, form: str
) -> None:
    for literal in kind.reserved:
        sql = f"COPY (SELECT {literal}::text) TO STDOUT (FORMAT {form})"
        with session.cursor() as cursor, cursor.copy(sql.encode()) as copy:
            line = b"".join(bytes(part) for part in copy)
        start = len(server.log())
        with pytest.raises(InvalidTextRepresentation) as refused:
            copy_in(session, "t (secret)", form, line)
        assert_quotes_nothing(refused.value)
        assert_logs_nothing(server, start)


@by_both_ways
@every_kind
def test_binary_with_the_reserved_prefix_is_refused(
    session: psycopg.Connection, server: Cluster, kind: Kind, way: Way
) -> None:
    start = len(server.log())
    for literal in kind.reserved:
        # A document comes in any form, as text.
        type_ = kind.plain if isinstance(kind.one.value, bytes) else "text"
        raw = fetch(session, f"SELECT {literal}::{type_}")
        raw = raw if isinstance(raw, bytes) else raw.encode()
        with pytest.raises(InvalidBinaryRepresentation) as refused:
            way(session, kind.type, kind.to_binary(raw))
        assert "colcrypt.input" in str(refused.value.diag.message_hint)
        assert_quotes_nothing(refused.value)
    assert_logs_nothing(server, start)


# colcrypt.input = 'ciphertext'


@every_kind
def test_nothing_but_ciphertext_is_taken_in_then(
    session: psycopg.Connection, server: Cluster, kind: Kind
) -> None:
    genuine = ciphertexts(session, kind)[0]
    session.execute("SET colcrypt.input = 'ciphertext'")
    start = len(server.log())
    literals = [*(s.literal for s in kind.samples), *kind.reserved, kind.canary.literal]
    for literal in literals:
        error = refused_by(session, f"INSERT INTO t (secret) VALUES ({literal})")
        assert error.sqlstate == "22P02"
        assert_quotes_nothing(error)
    for literal, _ in kind.invalid:
        error = refused_by(session, f"INSERT INTO t (secret) VALUES ({literal})")
        assert error.sqlstate in ("22P02", "22023")
        assert_quotes_nothing(error)
    for form in (
        genuine.replace("v1:", "v2:"),
        genuine + "A",
        genuine[:-1],
        genuine + "=",
        genuine.upper(),
        " " + genuine,
        PREFIX,
        PREFIX + "AQ",
    ):
        error = refused_by(session, "INSERT INTO t (secret) VALUES (%t)", [form])
        assert error.sqlstate in ("22P02", "XX001")
        with pytest.raises(psycopg.Error) as refused:
            send(session, kind.type, kind.to_binary(form.encode()))
        assert refused.value.sqlstate in ("22P03", "XX001")
    assert_logs_nothing(server, start)
    assert fetch(session, "SELECT count(*) FROM t") == 0
