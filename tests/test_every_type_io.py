"""Each encrypted type takes and gives what its plain type does, by every way in and
out."""

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

from harness import FORCE_PARALLEL, Cluster, Database, fetch
from kinds import (
    KINDS,
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


def column(session: psycopg.Connection, query: str, *parameters: Any) -> list[Any]:
    return [row[0] for row in session.execute(query, parameters or None).fetchall()]


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
            assert column(session, query, sample.text) == [place]
        query = f"SELECT n FROM t WHERE secret = %s::{kind.plain}"
        assert column(session, query, sample.parameter) == [place]
        query = "SELECT n FROM t WHERE decrypt(secret) = %s"
        assert column(session, query, sample.parameter) == [place]


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


@every_kind
def test_parallel_workers_read_what_their_leader_reads(
    session: psycopg.Connection, kind: Kind
) -> None:
    fill(session, kind)
    values = [*(sample.value for sample in kind.samples), None]
    session.execute(
        f"SET {FORCE_PARALLEL} = on; SET parallel_setup_cost = 0;"
        "SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0"
    )
    for expression in (f"secret::{kind.plain}", "decrypt(secret)"):
        query = f"SELECT {expression} FROM t ORDER BY n"
        plan = column(session, f"EXPLAIN {query}")
        assert any("Gather" in line for line in plan)
        assert column(session, query) == values
    session.execute("SET colcrypt.access = 'masked'")
    shown, null = column(session, "SELECT DISTINCT secret::text FROM t ORDER BY 1")
    assert null is None
    masks = column(session, f"SELECT secret::{kind.plain} FROM t WHERE n < 3")
    assert masks == [kind.parse(kind.shown("********"))] * 2


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
