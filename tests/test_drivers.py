"""To a driver the type is text, in both of PostgreSQL's formats."""

from __future__ import annotations

import asyncio
import io
import struct
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import asyncpg
import pg8000.dbapi
import psycopg
import pytest
from psycopg.errors import (
    CharacterNotInRepertoire,
    InvalidBinaryRepresentation,
)

from harness import Database, fetch

VALUES = [None, "", "plain", "Grüße 🔑👩‍👩‍👧", "a\nb\tc\\N,\"'", "m" * 1_000_000]
INSERT = "INSERT INTO t (secret) VALUES (%s)"
SELECT = "SELECT secret FROM t ORDER BY n"
COPY_IN = "COPY t (secret) FROM STDIN"
COPY_OUT = "COPY (SELECT secret FROM t ORDER BY n) TO STDOUT"

both_formats = pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])


@pytest.fixture
def table(db: Database) -> Database:
    db.psql("CREATE TABLE t (n serial, secret encrypted_text)")
    return db


@pytest.fixture
def session(table: Database) -> Iterator[psycopg.Connection]:
    with table.connect() as session:
        yield session


def is_sealed(session: psycopg.Connection) -> bool:
    rows = session.execute("SELECT ciphertext(secret) FROM t").fetchall()
    return all(text is None or text.startswith("colcrypt:v1:") for (text,) in rows)


def type_oid(session: psycopg.Connection) -> int:
    return fetch(session, "SELECT 'encrypted_text'::regtype::oid::int")


def strings(rows: list[tuple[Any]]) -> list[str | None]:
    # psycopg gives a type it does not know as bytes when it is in binary form.
    return [row[0].decode() if isinstance(row[0], bytes) else row[0] for row in rows]


# psycopg


@both_formats
@pytest.mark.parametrize("placeholder", ["%s", "%t", "%b"])
@pytest.mark.parametrize("prepare", [False, True], ids=["", "prepared"])
def test_psycopg_writes_and_reads_text(
    session: psycopg.Connection, binary: bool, placeholder: str, prepare: bool
) -> None:
    insert = INSERT.replace("%s", placeholder)
    for value in VALUES:
        session.execute(insert, [value], prepare=prepare)
    cursor = session.cursor(binary=binary)
    rows = cursor.execute(SELECT, prepare=prepare).fetchall()
    assert strings(rows) == VALUES
    assert is_sealed(session)


def test_psycopg_gives_str(session: psycopg.Connection) -> None:
    session.execute(INSERT, ["x"])
    assert session.execute(SELECT).fetchone() == ("x",)


def test_psycopg_executemany(session: psycopg.Connection) -> None:
    with session.cursor() as cursor:
        cursor.executemany(INSERT, [[value] for value in VALUES])
    assert strings(session.execute(SELECT).fetchall()) == VALUES


def test_psycopg_pipeline(session: psycopg.Connection) -> None:
    with session.pipeline():
        for value in VALUES:
            session.execute(INSERT, [value])
        cursor = session.execute(SELECT)
        assert strings(cursor.fetchall()) == VALUES


@both_formats
def test_psycopg_server_side_cursor(session: psycopg.Connection, binary: bool) -> None:
    session.execute(
        "INSERT INTO t (secret) SELECT 'v' || i FROM generate_series(1, 500) i"
    )
    with session.transaction(), session.cursor("c", binary=binary) as cursor:
        cursor.itersize = 100
        cursor.execute(SELECT)
        assert strings(list(cursor)) == [f"v{i}" for i in range(1, 501)]


def test_psycopg_declares_parameters_as_the_type(session: psycopg.Connection) -> None:
    for value in ("x", b"y"):
        send(session, value if isinstance(value, bytes) else value.encode())
    assert strings(session.execute(SELECT).fetchall()) == ["x", "y"]


def test_psycopg_copies_text(session: psycopg.Connection) -> None:
    with session.cursor() as cursor:
        with cursor.copy(COPY_IN) as copy:
            for value in VALUES:
                copy.write_row([value])
        with cursor.copy(COPY_OUT) as copy:
            assert [row[0] for row in copy.rows()] == VALUES
    assert is_sealed(session)


def test_psycopg_copies_binary(session: psycopg.Connection) -> None:
    with session.cursor() as cursor:
        with cursor.copy(COPY_IN + " (FORMAT binary)") as copy:
            copy.set_types(["text"])
            for value in VALUES:
                copy.write_row([value])
        with cursor.copy(COPY_OUT + " (FORMAT binary)") as copy:
            copy.set_types(["text"])
            assert [row[0] for row in copy.rows()] == VALUES
    assert is_sealed(session)


def test_binary_copy_is_that_of_a_text_column(session: psycopg.Connection) -> None:
    session.execute("CREATE TABLE plain (n serial, secret text)")
    for value in VALUES:
        session.execute(INSERT, [value])
        session.execute(INSERT.replace("INTO t", "INTO plain"), [value])
    query = COPY_OUT + " (FORMAT binary)"
    assert copied(session, query) == copied(
        session, query.replace("FROM t", "FROM plain")
    )


def copied(session: psycopg.Connection, query: str) -> bytes:
    with session.cursor() as cursor, cursor.copy(query) as copy:
        return b"".join(bytes(part) for part in copy)


# Raw bytes


def send(session: psycopg.Connection, raw: bytes) -> None:
    """The bytes as a binary parameter of the type itself: they go to its receive
    function."""
    result = session.pgconn.exec_params(
        b"INSERT INTO t (secret) VALUES ($1)",
        [raw],
        [type_oid(session)],
        [psycopg.pq.Format.BINARY],
    )
    raise_error_of(session, result)


def copy_in(session: psycopg.Connection, raw: bytes) -> None:
    """The same by binary COPY."""
    row = struct.pack("!hi", 1, len(raw)) + raw
    data = b"PGCOPY\n\xff\r\n\0" + bytes(8) + row + struct.pack("!h", -1)
    with session.cursor() as cursor:
        with cursor.copy(COPY_IN + " (FORMAT binary)") as copy:
            copy.write(data)


def raise_error_of(session: psycopg.Connection, result: psycopg.pq.PGresult) -> None:
    if result.status == psycopg.pq.ExecStatus.FATAL_ERROR:
        raise psycopg.errors.error_from_result(result)


by_both_ways = pytest.mark.parametrize("way", [send, copy_in])
Way = Callable[[psycopg.Connection, bytes], None]


@by_both_ways
@pytest.mark.parametrize(
    "raw",
    [
        b"\xff",
        b"a\0b",
        b"\0",
        b"caf\xe9",
        b"\xed\xa0\x80",
        b"\xc0\xaf",
        b"x" * 5000 + b"\xf0\x9f",
    ],
    ids=["0xff", "NUL inside", "NUL", "LATIN1", "surrogate", "overlong", "cut off"],
)
def test_invalid_utf8_is_refused_and_not_stored(
    session: psycopg.Connection, way: Way, raw: bytes
) -> None:
    with pytest.raises(CharacterNotInRepertoire) as refused:
        way(session, raw)
    assert refused.value.sqlstate == "22021"
    assert fetch(session, "SELECT count(*) FROM t") == 0


@by_both_ways
def test_an_error_that_postgresql_raises_inside_shows_no_backtrace(
    session: psycopg.Connection, way: Way
) -> None:
    with pytest.raises(CharacterNotInRepertoire) as refused:
        way(session, b"\xff")
    assert refused.value.diag.message_detail is None


@by_both_ways
@pytest.mark.parametrize("raw", ["x".encode(), "".encode(), "🔑".encode() * 10_000])
def test_valid_utf8_in_binary_is_stored(
    session: psycopg.Connection, way: Way, raw: bytes
) -> None:
    way(session, raw)
    assert fetch(session, SELECT) == raw.decode()


@by_both_ways
def test_binary_plaintext_with_the_reserved_prefix_is_refused(
    session: psycopg.Connection, way: Way
) -> None:
    with pytest.raises(InvalidBinaryRepresentation) as refused:
        way(session, b"colcrypt:v1:AAAA")
    assert "colcrypt.input" in refused.value.diag.message_hint
    assert fetch(session, "SELECT count(*) FROM t") == 0


@by_both_ways
@pytest.mark.parametrize(
    "raw",
    [b"", b"plaintext", b"colcrypt:v1:", b"colcrypt:v1:!!!!", b"colcrypt:v1:Ad_1c6I"],
)
def test_malformed_ciphertext_in_binary_is_refused(
    session: psycopg.Connection, way: Way, raw: bytes
) -> None:
    session.execute("SET colcrypt.input = 'ciphertext'")
    with pytest.raises(InvalidBinaryRepresentation) as refused:
        way(session, raw)
    assert refused.value.sqlstate == "22P03"
    assert fetch(session, "SELECT count(*) FROM t") == 0


@by_both_ways
def test_ciphertext_in_binary_is_stored_as_it_is(
    session: psycopg.Connection, way: Way
) -> None:
    sealed = fetch(session, "SELECT ciphertext(encrypt('x'))")
    session.execute("SET colcrypt.input = 'ciphertext'")
    way(session, sealed.encode())
    assert fetch(session, "SELECT ciphertext(secret) FROM t") == sealed
    assert fetch(session, SELECT) == "x"


# asyncpg


Work = Callable[[asyncpg.Connection], Awaitable[None]]


def with_asyncpg(db: Database, work: Work) -> None:
    address = db.cluster.address()
    address["database"] = db.name
    del address["dbname"]

    async def run() -> None:
        connection = await asyncpg.connect(**address)
        try:
            await work(connection)
        finally:
            await connection.close()

    asyncio.run(run())


def test_asyncpg_writes_and_reads_text(table: Database) -> None:
    async def work(connection: asyncpg.Connection) -> None:
        insert = await connection.prepare("INSERT INTO t (secret) VALUES ($1)")
        for value in VALUES:
            await insert.fetch(value)
        rows = await connection.fetch(SELECT)
        assert [row["secret"] for row in rows] == VALUES
        one = await connection.fetchval(
            "SELECT secret FROM t WHERE secret::text = $1", "plain"
        )
        assert one == "plain"

    with_asyncpg(table, work)


def test_asyncpg_executemany(table: Database) -> None:
    async def work(connection: asyncpg.Connection) -> None:
        rows = [(value,) for value in VALUES]
        await connection.executemany("INSERT INTO t (secret) VALUES ($1)", rows)
        found = await connection.fetch(SELECT)
        assert [row["secret"] for row in found] == VALUES

    with_asyncpg(table, work)


def test_asyncpg_with_a_binary_codec(table: Database) -> None:
    async def work(connection: asyncpg.Connection) -> None:
        # Its own copy_records_to_table() is binary only, and wants to know the type.
        await use_binary(connection)
        records = [(value,) for value in VALUES]
        await connection.copy_records_to_table("t", records=records, columns=["secret"])
        rows = await connection.fetch(SELECT)
        assert [row["secret"] for row in rows] == VALUES

    with_asyncpg(table, work)


async def use_binary(connection: asyncpg.Connection) -> None:
    await connection.set_type_codec(
        "encrypted_text",
        encoder=str.encode,
        decoder=bytes.decode,
        format="binary",
    )


@both_formats
def test_asyncpg_copies_from_a_query(table: Database, binary: bool) -> None:
    async def work(connection: asyncpg.Connection) -> None:
        await connection.execute(
            "INSERT INTO t (secret) VALUES ('first'), ('zweite 🔑')"
        )
        out = io.BytesIO()
        form = "binary" if binary else "text"
        await connection.copy_from_query(SELECT, output=out, format=form)
        if not binary:
            assert out.getvalue().decode() == "first\nzweite 🔑\n"
        assert "zweite 🔑".encode() in out.getvalue()
        out.seek(0)
        await connection.copy_to_table("t", source=out, columns=["secret"], format=form)
        rows = await connection.fetch(SELECT)
        assert [row["secret"] for row in rows] == ["first", "zweite 🔑"] * 2

    with_asyncpg(table, work)


def test_asyncpg_reads_arrays_of_the_type(table: Database) -> None:
    async def work(connection: asyncpg.Connection) -> None:
        await connection.execute("INSERT INTO t (secret) VALUES ('a'), (NULL), ('🔑')")
        sql = "SELECT array_agg(secret ORDER BY n) FROM t"
        assert await connection.fetchval(sql) == ["a", None, "🔑"]

    with_asyncpg(table, work)


# pg8000


def test_pg8000_writes_and_reads_text(table: Database) -> None:
    cluster = table.cluster
    connection = pg8000.dbapi.connect(
        user="postgres",
        unix_sock=str(cluster.dir / ".s.PGSQL.5432"),
        database=table.name,
    )
    try:
        cursor = connection.cursor()
        for value in VALUES:
            cursor.execute(INSERT, (value,))
        cursor.execute(SELECT)
        assert [row[0] for row in cursor.fetchall()] == VALUES
        cursor.execute("SELECT n FROM t WHERE secret::text = %s", ("plain",))
        assert list(cursor.fetchall()) == [[3]] or cursor.rowcount == 1
        connection.commit()
    finally:
        connection.close()
