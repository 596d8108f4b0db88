"""COPY in text, CSV and binary, by drivers: what they do with a column of text."""

from __future__ import annotations

import io
from collections.abc import Callable

import asyncpg
import pytest

from clients import (
    VALUES,
    Step,
    in_asyncpg,
    run_java,
    rust,
    tcp_door,
    with_program,
)
from harness import SUPERUSER, Database, fetch

Copy = Callable[[Database, str, bytes], bytes]

every_format = pytest.mark.parametrize("format", ["text", "csv", "binary"])


def by_psycopg(db: Database, sql: str, data: bytes) -> bytes:
    with db.connect() as session, session.cursor() as cursor, cursor.copy(sql) as copy:
        if data:
            copy.write(data)
            return b""
        return b"".join(bytes(part) for part in copy)


def by_asyncpg(db: Database, sql: str, data: bytes) -> bytes:
    # Its methods name the table; the formats are those of COPY.
    form = sql.split()[-1].strip(")")

    async def work(connection: asyncpg.Connection) -> bytes:
        if data:
            await connection.copy_to_table("t", source=io.BytesIO(data), format=form)
            return b""
        output = io.BytesIO()
        await connection.copy_from_query("TABLE t", output=output, format=form)
        return output.getvalue()

    return in_asyncpg(db, work)


def by_jdbc(db: Database, sql: str, data: bytes) -> bytes:
    with tcp_door(db) as port:
        url = f"jdbc:postgresql://127.0.0.1:{port}/{db.name}?user={SUPERUSER}"
        return run_java("Copy", [url, "in" if data else "out", sql], data)


def by_psql(db: Database, sql: str, data: bytes) -> bytes:
    # A file, for psql's output is text.
    file = db.cluster.dir / f"copy.{db.name}"
    file.write_bytes(data)
    place = "STDIN" if data else "STDOUT"
    db.psql("\\" + sql.replace(place, f"'{file}'").replace("COPY", "copy", 1))
    return b"" if data else file.read_bytes()


@every_format
@pytest.mark.parametrize("copy", [by_psql, by_psycopg, by_asyncpg, by_jdbc])
def test_what_a_table_of_text_gives_an_encrypted_one_takes_and_gives(
    db: Database, copy: Copy, format: str
) -> None:
    db.psql("CREATE TABLE plain (n int, secret text); CREATE TABLE t (LIKE plain)")
    with db.connect() as session, session.cursor() as cursor:
        rows = list(enumerate(VALUES))
        cursor.executemany("INSERT INTO plain VALUES (%s, %s)", rows)
        wanted = by_psycopg(db, f"COPY plain TO STDOUT (FORMAT {format})", b"")
        session.execute("ALTER TABLE t ALTER secret TYPE encrypted_text")
        copy(db, f"COPY t FROM STDIN (FORMAT {format})", wanted)
        assert copy(db, f"COPY t TO STDOUT (FORMAT {format})", b"") == wanted
        assert session.execute("SELECT * FROM t ORDER BY n").fetchall() == rows
        sql = "SELECT bool_and(ciphertext(secret) LIKE 'colcrypt:v1:%') FROM t"
        assert fetch(session, sql)


def test_options_of_csv_work(db: Database) -> None:
    db.psql("CREATE TABLE t (n int, secret encrypted_text)")
    options = "FORMAT csv, HEADER, NULL '-', DELIMITER ';'"
    data = b'n;secret\n"1";"a;""b"""\n"2";-\n"3";""\n'
    by_psycopg(db, f"COPY t FROM STDIN ({options})", data)
    out = f"COPY t TO STDOUT ({options}, FORCE_QUOTE *)"
    assert by_psycopg(db, out, b"") == data


# Rows of a driver's own values


def test_asyncpg_copies_no_records_of_a_type_it_does_not_know(db: Database) -> None:
    db.psql("CREATE TABLE t (n int, secret encrypted_text)")

    async def work(connection: asyncpg.Connection) -> None:
        await connection.copy_records_to_table("t", records=[(1, "x")])

    # docs/clients.md has the codec; test_drivers.py runs this with it.
    with pytest.raises(asyncpg.InternalClientError, match="no binary format encoder"):
        in_asyncpg(db, work)


def test_tokio_postgres_copies_rows_of_text(db: Database) -> None:
    db.psql("CREATE TABLE t (n serial, secret encrypted_text)")
    run = with_program(rust("tokio-postgres-copy"))
    sql = "COPY t (secret) FROM STDIN (FORMAT binary)"
    assert run(db, [Step(sql, tuple(VALUES))]) == [[]]
    with db.connect() as session:
        rows = session.execute("SELECT secret FROM t ORDER BY n").fetchall()
    assert [value for (value,) in rows] == VALUES
