"""Each encrypted type takes what its plain type takes, by every way in and out, and
nothing else; and no error quotes a value."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
import decryptor
import pg8000.dbapi
import psycopg
import pytest
from psycopg.errors import (
    CheckViolation,
    InvalidBinaryRepresentation,
    InvalidTextRepresentation,
    NotNullViolation,
    UndefinedFunction,
)

from harness import Cluster, Database, fetch
from kinds import (
    CANARY,
    CANARY_FORMS,
    KINDS,
    PREFIX,
    Kind,
    Sample,
    every_kind,
    every_sample,
    quoted,
)

INSERT = "INSERT INTO t (secret) VALUES (%s)"
SELECT = "SELECT secret FROM t ORDER BY n"

both_formats = pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])


@pytest.fixture(scope="module")
def home(server: Cluster) -> Iterator[Database]:
    """A database for all of these tests: each has the schema of its path to itself."""
    server.psql(
        "CREATE DATABASE every_type TEMPLATE with_colcrypt;"
        "ALTER DATABASE every_type SET search_path = work, public"
    )
    yield Database(server, "every_type")
    server.psql("DROP DATABASE every_type WITH (FORCE)")


@pytest.fixture
def session(home: Database, kind: Kind) -> Iterator[psycopg.Connection]:
    """With a table of the type, and one of its plain type."""
    with home.connect() as session:
        session.execute(
            "CREATE SCHEMA work;"
            f"CREATE TABLE t (n serial, secret {kind.type});"
            f"CREATE TABLE p (n serial, secret {kind.plain})"
        )
        yield session
        session.execute("SET client_min_messages = warning; DROP SCHEMA work CASCADE")


def column(session: psycopg.Connection, query: str) -> list[Any]:
    return [value for (value,) in session.execute(query).fetchall()]


def fill(session: psycopg.Connection, kind: Kind, table: str = "t") -> None:
    """All samples, in their order, and a NULL."""
    rows = ", ".join(f"({sample.literal})" for sample in kind.samples)
    session.execute(f"INSERT INTO {table} (secret) VALUES {rows}, (NULL)")


def ring_of(cluster: Cluster) -> list[bytes]:
    text = (cluster.dir / "ring.keys").read_text()
    return [decryptor.ring_key(key) for key in text.split(",")]


def assert_sealed(session: psycopg.Connection, kind: Kind, server: Cluster) -> None:
    """The table t holds the samples and a NULL, and each is encrypted as what it is."""
    forms = column(session, "SELECT ciphertext(secret) FROM t ORDER BY n")
    ring = ring_of(server)
    opened = [decryptor.decrypt_bytes(form, ring, kind.plain) for form in forms[:-1]]
    assert opened == [sample.sealed for sample in kind.samples]
    assert forms[-1] is None


def test_every_type_of_the_extension_is_described(db: Database) -> None:
    there = db.psql(
        "SELECT typname FROM pg_type WHERE typname ~ '^encrypted_' AND typtype = 'b'"
        " ORDER BY 1"
    )
    assert there.split() == sorted(kind.type for kind in KINDS)


# One value


@every_sample
def test_a_literal_is_what_it_is_for_the_plain_type(
    session: psycopg.Connection, server: Cluster, kind: Kind, sample: Sample
) -> None:
    session.execute(f"INSERT INTO t (secret) VALUES ({sample.literal})")
    session.execute(f"INSERT INTO p (secret) VALUES ({sample.literal})")
    shown = fetch(session, "SELECT secret FROM t")
    assert shown == sample.text
    assert kind.parse(shown) == sample.value
    assert fetch(session, f"SELECT secret::{kind.plain} FROM t") == sample.value
    assert fetch(session, "SELECT decrypt(secret) FROM t") == sample.value
    assert fetch(
        session,
        f"SELECT t.secret::{kind.plain} = p.secret AND t.secret = p.secret"
        f" AND p.secret = t.secret AND t.secret = {sample.literal}"
        f" AND t.secret = {sample.literal}::{kind.type} AND NOT t.secret <> p.secret"
        " FROM t, p",
    )
    inspect = "SELECT i.plaintext_bytes FROM t, colcrypt.inspect(secret) AS i"
    assert fetch(session, inspect) == len(sample.sealed)
    form = fetch(session, "SELECT ciphertext(secret) FROM t")
    ring = ring_of(server)
    assert decryptor.decrypt_bytes(form, ring, kind.plain) == sample.sealed


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
@pytest.mark.parametrize("placeholder", ["%s", "%t", "%b"])
@pytest.mark.parametrize("prepare", [False, True], ids=["", "prepared"])
@every_kind
def test_psycopg_writes_and_reads_what_it_does_with_the_plain_type(
    session: psycopg.Connection,
    server: Cluster,
    kind: Kind,
    binary: bool,
    placeholder: str,
    prepare: bool,
) -> None:
    insert = INSERT.replace("%s", placeholder)
    for sample in kind.samples:
        session.execute(insert, [sample.parameter], prepare=prepare)
    session.execute(insert, [None], prepare=prepare)
    assert_sealed(session, kind, server)
    cursor = session.cursor(binary=binary)
    shown = [value for (value,) in cursor.execute(SELECT, prepare=prepare).fetchall()]
    if binary:
        # What psycopg gives of a type it does not know.
        assert shown[:-1] == [kind.binary(sample) for sample in kind.samples]
    else:
        assert shown[:-1] == [sample.text for sample in kind.samples]
    assert shown[-1] is None
    cast = SELECT.replace("secret", f"secret::{kind.plain}")
    values = [value for (value,) in cursor.execute(cast, prepare=prepare).fetchall()]
    assert values == [*(sample.value for sample in kind.samples), None]


@every_kind
def test_psycopg_executemany_and_pipeline(
    session: psycopg.Connection, server: Cluster, kind: Kind
) -> None:
    parameters = [[sample.parameter] for sample in kind.samples] + [[None]]
    with session.cursor() as cursor:
        cursor.executemany(INSERT, parameters)
    assert_sealed(session, kind, server)
    session.execute("TRUNCATE t")
    with session.pipeline():
        for each in parameters:
            session.execute(INSERT, each)
        cursor = session.execute(SELECT)
        shown = [value for (value,) in cursor.fetchall()]
    assert shown == [*(sample.text for sample in kind.samples), None]


@both_formats
@every_kind
def test_a_server_side_cursor(
    session: psycopg.Connection, kind: Kind, binary: bool
) -> None:
    made = kind.holding_sql("'v' || i")
    session.execute(
        f"INSERT INTO t (secret) SELECT {made} FROM generate_series(1, 300) i"
    )
    expected = [kind.holding(f"v{i}") for i in range(1, 301)]
    with session.transaction(), session.cursor("c", binary=binary) as cursor:
        cursor.itersize = 100
        cursor.execute(SELECT)
        found = [value for (value,) in cursor]
    if binary:
        assert found == [kind.binary(sample) for sample in expected]
    else:
        assert found == [sample.text for sample in expected]


@every_kind
def test_parameters_of_the_plain_type_and_of_the_encrypted_type_find_a_value(
    session: psycopg.Connection, kind: Kind
) -> None:
    fill(session, kind)
    for place, sample in enumerate(kind.samples, 1):
        for cast in ("", f"::{kind.plain}", f"::{kind.type}"):
            query = f"SELECT n FROM t WHERE secret = %t{cast}"
            assert column_of(session, query, sample.text) == [place]
        query = f"SELECT n FROM t WHERE secret = %s::{kind.plain}"
        assert column_of(session, query, sample.parameter) == [place]
        query = "SELECT n FROM t WHERE decrypt(secret) = %s"
        assert column_of(session, query, sample.parameter) == [place]


def column_of(session: psycopg.Connection, query: str, *parameters: Any) -> list[Any]:
    return [value for (value,) in session.execute(query, parameters).fetchall()]


@every_kind
def test_asyncpg_writes_and_reads(
    session: psycopg.Connection, server: Cluster, home: Database, kind: Kind
) -> None:
    async def run() -> None:
        address = server.address() | {"database": home.name}
        del address["dbname"]
        connection = await asyncpg.connect(**address)
        try:
            # asyncpg has a text for each type that it does not know, and for jsonb.
            natural = "text" if isinstance(kind.one.value, str) else kind.plain
            values = [s.value if natural == "bytea" else s.text for s in kind.samples]
            for sql, parameters in {
                "INSERT INTO t (secret) VALUES ($1)": [s.text for s in kind.samples],
                f"INSERT INTO t (secret) VALUES ($1::{natural})": values,
            }.items():
                await connection.execute("TRUNCATE t RESTART IDENTITY")
                insert = await connection.prepare(sql)
                for parameter in [*parameters, None]:
                    await insert.fetch(parameter)
                assert_sealed(session, kind, server)
            shown = [row[0] for row in await connection.fetch(SELECT)]
            assert shown == [*(s.text for s in kind.samples), None]
            # Without an empty text, for which asyncpg 0.x crashes.
            array = "SELECT array_agg(secret ORDER BY n) FROM t WHERE n < 3"
            assert await connection.fetchval(array) == shown[:2]
        finally:
            await connection.close()

    asyncio.run(run())


@every_kind
def test_pg8000_writes_and_reads(
    session: psycopg.Connection, server: Cluster, home: Database, kind: Kind
) -> None:
    connection = pg8000.dbapi.connect(
        user="postgres",
        unix_sock=str(server.dir / ".s.PGSQL.5432"),
        database=home.name,
    )
    try:
        cursor = connection.cursor()
        for sample in kind.samples:
            # It binds bytes as bytea; all else as text of no type.
            raw = isinstance(sample.value, bytes)
            cursor.execute(INSERT, (sample.value if raw else sample.text,))
        cursor.execute(INSERT, (None,))
        connection.commit()
        assert_sealed(session, kind, server)
        cursor.execute(SELECT)
        shown = [row[0] for row in cursor.fetchall()]
        assert shown == [*(sample.text for sample in kind.samples), None]
    finally:
        connection.close()


# COPY

FORMATS = ["text", "csv", "csv, FORCE_QUOTE (secret)", "binary"]


def copy_out(session: psycopg.Connection, source: str, form: str) -> bytes:
    sql = f"COPY {source} TO STDOUT (FORMAT {form})"
    with session.cursor() as cursor, cursor.copy(sql.encode()) as copy:
        return b"".join(bytes(part) for part in copy)


def copy_in(session: psycopg.Connection, target: str, form: str, data: bytes) -> None:
    sql = f"COPY {target} FROM STDIN (FORMAT {form.partition(',')[0]})"
    with session.cursor() as cursor, cursor.copy(sql.encode()) as copy:
        copy.write(data)


@pytest.mark.parametrize("form", FORMATS)
@every_kind
def test_copy_gives_and_takes_what_it_does_of_the_plain_type(
    session: psycopg.Connection, server: Cluster, kind: Kind, form: str
) -> None:
    fill(session, kind)
    fill(session, kind, "p")
    out = copy_out(session, "t", form)
    assert out == copy_out(session, "p", form)
    session.execute("TRUNCATE t")
    copy_in(session, "t", form, out)
    assert_sealed(session, kind, server)
    assert column(session, "SELECT DISTINCT n FROM t EXCEPT SELECT n FROM p") == []


@pytest.mark.parametrize("output", ["hex", "escape"])
@every_kind
def test_output_follows_the_settings_of_the_plain_type(
    session: psycopg.Connection, server: Cluster, kind: Kind, output: str
) -> None:
    fill(session, kind)
    fill(session, kind, "p")
    session.execute(f"SET bytea_output = '{output}'")
    query = "SELECT secret::text FROM {} ORDER BY n"
    raw = "SELECT secret FROM {} ORDER BY n"
    for form in (query, raw):
        shown = printed(session, form.format("t"))
        assert shown == printed(session, form.format("p"))
    # What was printed is taken again.
    session.execute("TRUNCATE t")
    for text in shown:
        session.execute("INSERT INTO t (secret) VALUES (%t)", [text])
    assert_sealed(session, kind, server)


def printed(session: psycopg.Connection, query: str) -> list[str | None]:
    """The values of a column as they come over the wire, in text form."""
    result = session.pgconn.exec_(query.encode())
    return [
        None if value is None else value.decode()
        for value in (result.get_value(row, 0) for row in range(result.ntuples))
    ]


# Raw bytes to the receive function


def send(session: psycopg.Connection, type_: str, raw: bytes) -> None:
    table = "p" if not type_.startswith("encrypted") else "t"
    oid = fetch(session, "SELECT %s::regtype::oid::int", type_)
    result = session.pgconn.exec_params(
        f"INSERT INTO {table} (secret) VALUES ($1)".encode(),
        [raw],
        [oid],
        [psycopg.pq.Format.BINARY],
    )
    if result.status == psycopg.pq.ExecStatus.FATAL_ERROR:
        raise psycopg.errors.error_from_result(result)


def send_by_copy(session: psycopg.Connection, type_: str, raw: bytes) -> None:
    table = "p" if not type_.startswith("encrypted") else "t"
    row = struct.pack("!hi", 1, len(raw)) + raw
    data = b"PGCOPY\n\xff\r\n\0" + bytes(8) + row + struct.pack("!h", -1)
    copy_in(session, f"{table} (secret)", "binary", data)


by_both_ways = pytest.mark.parametrize("way", [send, send_by_copy])
Way = Callable[[psycopg.Connection, str, bytes], None]


@by_both_ways
@every_kind
def test_the_binary_form_is_that_of_the_plain_type(
    session: psycopg.Connection, server: Cluster, kind: Kind, way: Way
) -> None:
    for sample in kind.samples:
        way(session, kind.type, kind.binary(sample))
        way(session, kind.plain, kind.binary(sample))
    session.execute("INSERT INTO t (secret) VALUES (NULL)")
    assert_sealed(session, kind, server)
    send = f"SELECT {kind.type}_send(secret) FROM t ORDER BY n"
    assert column(session, send)[:-1] == [kind.binary(s) for s in kind.samples]


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


# Errors


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
        assert (
            error.diag.message_primary == f"invalid input syntax for type {kind.type}"
        )
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
        assert_quotes_nothing(error)
    assert_logs_nothing(server, start)
    assert column(session, "SELECT secret FROM t") == [None]


@pytest.mark.xfail(
    strict=True, reason="the hint names from_ciphertext(), which makes encrypted_text"
)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.suffix], ids=str)
def test_the_hint_names_the_function_that_makes_the_type(
    session: psycopg.Connection, kind: Kind
) -> None:
    error = refused_by(session, f"SELECT {kind.reserved[0]}::{kind.type}")
    assert f"from_ciphertext{kind.suffix}()" in str(error.diag.message_hint)


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


def ciphertexts(session: psycopg.Connection, kind: Kind) -> list[str]:
    fill(session, kind)
    forms = column(session, "SELECT ciphertext(secret) FROM t ORDER BY n")
    session.execute("TRUNCATE t RESTART IDENTITY")
    return forms


@every_kind
def test_ciphertext_is_taken_in_as_it_is_where_a_superuser_asks_for_it(
    session: psycopg.Connection, kind: Kind
) -> None:
    forms = ciphertexts(session, kind)
    expected = [*(sample.text for sample in kind.samples), None]
    session.execute("SET colcrypt.input = 'ciphertext'")
    ways: list[Callable[[str], object]] = [
        lambda form: session.execute("INSERT INTO t (secret) VALUES (%t)", [form]),
        lambda form: session.execute(f"INSERT INTO t (secret) VALUES ('{form}')"),
        lambda form: session.execute(
            f"INSERT INTO t (secret) VALUES ({quoted(kind.shown(form))}::{kind.plain})"
        ),
        lambda form: copy_in(session, "t (secret)", "text", form.encode() + b"\n"),
        lambda form: copy_in(session, "t (secret)", "csv", form.encode() + b"\n"),
        lambda form: send(session, kind.type, kind.to_binary(form.encode())),
        lambda form: send_by_copy(session, kind.type, kind.to_binary(form.encode())),
        # What the cast to the plain type gives.
        lambda form: session.execute(
            "INSERT INTO t (secret) VALUES (%t)",
            [form if kind.shown(form).startswith("\\x") else kind.shown(form)],
        ),
    ]
    for way in ways:
        session.execute("TRUNCATE t RESTART IDENTITY")
        for form in forms[:-1]:
            way(form)
        session.execute("INSERT INTO t (secret) VALUES (NULL)")
        assert column(session, "SELECT ciphertext(secret) FROM t ORDER BY n") == forms
        assert column(session, SELECT) == expected


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


# Columns, expressions, statements


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
