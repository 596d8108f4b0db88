"""postgres_fdw: a foreign table of an encrypted one. Plaintext goes over the connection,
and each database seals with its own keys."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import psycopg
import pytest

from clients import ACCOUNTS, VALUES, by_index
from harness import PORT, SUPERUSER, Cluster, Database, fetch

numbers = itertools.count(1)

KNOWN = ", extensions 'colcrypt'"


@pytest.fixture
def remote(server: Cluster) -> Iterator[Database]:
    """Another database of the same server, with an index key of its own."""
    name = f"remote_{next(numbers)}"
    server.psql(f"CREATE DATABASE {name} TEMPLATE with_colcrypt")
    remote = Database(server, name)
    remote.psql(ACCOUNTS)
    yield remote
    server.psql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def session(db: Database, remote: Database) -> Iterator[psycopg.Connection]:
    """A session in the one that has a foreign table for each way to declare it."""
    address = f"host '{remote.cluster.dir}', port '{PORT}', dbname '{remote.name}'"
    for server, more in (("plain", ""), ("known", KNOWN)):
        db.psql(f"""
            CREATE EXTENSION IF NOT EXISTS postgres_fdw;
            CREATE SERVER {server} FOREIGN DATA WRAPPER postgres_fdw
                OPTIONS ({address}, use_remote_estimate 'true'{more});
            CREATE USER MAPPING FOR {SUPERUSER} SERVER {server}
                OPTIONS (user '{SUPERUSER}')""")
    for table, server, type in (
        ("accounts", "plain", "encrypted_text"),
        ("known_accounts", "known", "encrypted_text"),
        ("text_accounts", "plain", "text"),
    ):
        db.psql(f"""
            CREATE FOREIGN TABLE {table} (id int, email {type}, note {type})
                SERVER {server} OPTIONS (table_name 'accounts')""")
    with db.connect() as session:
        yield session


EVERY_TABLE = ["accounts", "known_accounts", "text_accounts"]
every_table = pytest.mark.parametrize("table", EVERY_TABLE)


def email(number: int) -> str:
    return f"user{number}@example.com"


@every_table
def test_values_go_there_and_come_back(
    session: psycopg.Connection, remote: Database, table: str
) -> None:
    for number, value in enumerate(VALUES):
        session.execute(
            f"INSERT INTO {table} (id, note) VALUES (%s, %s)", [6000 + number, value]
        )
    sql = f"SELECT note FROM {table} WHERE id >= 6000 ORDER BY id"
    assert [value for (value,) in session.execute(sql)] == VALUES
    assert remote.psql("""
        SELECT bool_and(ciphertext(note) LIKE 'colcrypt:v1:%') FROM accounts""") == "t"


@every_table
def test_rows_are_returned_changed_and_deleted(
    session: psycopg.Connection, table: str
) -> None:
    sql = f"UPDATE {table} SET note = 'n' WHERE email = %s RETURNING id, email, note"
    assert session.execute(sql, [email(3)]).fetchall() == [(3, email(3), "n")]
    sql = f"DELETE FROM {table} WHERE email = %s RETURNING email"
    assert session.execute(sql, [email(3)]).fetchall() == [(email(3),)]
    assert session.execute(sql, [email(3)]).fetchall() == []


def remote_sql(session: psycopg.Connection, query: str) -> str:
    plan = session.execute(f"EXPLAIN (VERBOSE, COSTS off) {query}").fetchall()
    [sql] = [line for (line,) in plan if "Remote SQL" in line]
    return sql


@every_table
def test_a_lookup_finds_its_row(session: psycopg.Connection, table: str) -> None:
    for number in range(1, 9):
        sql = f"SELECT id FROM {table} WHERE email = %s"
        assert fetch(session, sql, email(number)) == number
        sql = f"SELECT array_agg(id ORDER BY id) FROM {table} WHERE email = ANY (%s)"
        assert fetch(session, sql, [email(number), email(9)]) == [number, 9]


def test_a_condition_is_evaluated_here_by_default(session: psycopg.Connection) -> None:
    sql = remote_sql(session, "SELECT id FROM accounts WHERE email = 'x'")
    assert "WHERE" not in sql


def test_a_condition_is_sent_if_the_extension_is_named(
    session: psycopg.Connection,
) -> None:
    sql = remote_sql(session, "SELECT id FROM known_accounts WHERE email = 'x'")
    assert "WHERE ((email OPERATOR(public.=) 'x'))" in sql


def test_a_condition_that_is_sent_uses_the_index_there(
    db: Database, session: psycopg.Connection, remote: Database
) -> None:
    session.close()
    with by_index(remote, 16), db.connect() as session:
        for number in range(1, 9):
            sql = "SELECT id FROM known_accounts WHERE email = %s"
            assert fetch(session, sql, email(number)) == number
            sql = "SELECT id FROM known_accounts WHERE email = %s OR email = %s"
            assert fetch(session, sql, email(number), "x") == number


def test_a_condition_with_a_parameter_of_text_is_evaluated_here(
    session: psycopg.Connection,
) -> None:
    """The operator across types is STABLE; postgres_fdw sends what is IMMUTABLE."""
    session.execute(
        "PREPARE q (text) AS SELECT id FROM known_accounts WHERE email = $1"
    )
    assert "WHERE" not in remote_sql(session, "EXECUTE q ('x')")
    session.execute("PREPARE p AS SELECT id FROM known_accounts WHERE email = $1")
    assert "WHERE" in remote_sql(session, "EXECUTE p ('x')")


def test_a_condition_with_an_array_is_evaluated_here(
    session: psycopg.Connection,
) -> None:
    """postgres_fdw takes no array type for one of an extension, citext[] neither."""
    sql = remote_sql(session, "SELECT id FROM known_accounts WHERE email IN ('x', 'y')")
    assert "WHERE" not in sql


def test_a_foreign_column_of_text_is_compared_as_text_there(
    session: psycopg.Connection,
) -> None:
    """Right, but by pg_catalog's operator, which decrypts every row."""
    sql = remote_sql(session, "SELECT id FROM text_accounts WHERE email = 'x'")
    assert "WHERE ((email = 'x'" in sql


@pytest.fixture
def local_rows(session: psycopg.Connection) -> None:
    session.execute("CREATE TABLE local (email encrypted_text)")
    session.execute("""
        INSERT INTO local SELECT 'user' || n || '@example.com'
        FROM generate_series(1, 5000) AS n""")
    session.execute("ANALYZE local")


JOIN = "SELECT count(*) FROM local JOIN {} AS foreign_rows USING (email)"


MERGED = ("known_accounts", "mergejoin")
OTHER_ORDER = pytest.mark.xfail(
    strict=True,
    reason="the order of tags is sent for, and is another one there",
)


@pytest.mark.usefixtures("local_rows")
@pytest.mark.parametrize(
    ("table", "method"),
    [
        pytest.param(
            table, method, marks=OTHER_ORDER if (table, method) == MERGED else ()
        )
        for table in EVERY_TABLE
        for method in ("hashjoin", "mergejoin", "nestloop")
    ],
)
def test_a_join_with_a_local_table_finds_every_row(
    session: psycopg.Connection, table: str, method: str
) -> None:
    for other in {"hashjoin", "mergejoin", "nestloop"} - {method}:
        session.execute(f"SET enable_{other} = off")
    if method == "nestloop":
        session.execute("DELETE FROM local WHERE email NOT LIKE '%%99@example.com'")
        session.execute("ANALYZE local")
    expected = fetch(session, "SELECT count(*) FROM local")
    assert fetch(session, JOIN.format(table)) == expected
    if table != "text_accounts":
        sql = f"SELECT count(*) FROM local JOIN {table} AS f ON local.email = f.email"
        assert fetch(session, sql) == expected


@pytest.fixture
def family(session: psycopg.Connection) -> psycopg.Connection:
    """A table with a foreign child, and the same values in both."""
    session.execute("CREATE TABLE family (id int, email encrypted_text, note text)")
    session.execute("ALTER FOREIGN TABLE known_accounts ALTER note TYPE text")
    session.execute("ALTER FOREIGN TABLE known_accounts INHERIT family")
    session.execute("""
        INSERT INTO family SELECT n, 'user' || n || '@example.com'
        FROM generate_series(1, 5000) AS n""")
    session.execute("CREATE INDEX ON family (email)")
    session.execute("ANALYZE family")
    session.execute("SET enable_hashagg = off")
    session.execute("SET enable_sort = off")
    return session


GROUPS = "SELECT count(*) FROM (SELECT email FROM family GROUP BY email) AS groups"


@OTHER_ORDER
def test_groups_over_a_foreign_child_are_those_of_values(
    family: psycopg.Connection,
) -> None:
    assert fetch(family, GROUPS) == 5000


def test_one_index_key_on_both_sides_is_one_order(
    db: Database, remote: Database, request: pytest.FixtureRequest
) -> None:
    """The remedy of docs/clients.md: before an index key is made here, copy that one."""
    file = f"{db.cluster.dir}/index_key.{db.name}"
    remote.psql(f"COPY (SELECT * FROM colcrypt.key WHERE kind = 'index') TO '{file}'")
    db.psql(f"COPY colcrypt.key FROM '{file}'")
    family = request.getfixturevalue("family")
    assert "Merge Append" in str(family.execute(f"EXPLAIN {GROUPS}").fetchall())
    assert fetch(family, GROUPS) == 5000
    for method in ("hashjoin", "nestloop"):
        family.execute(f"SET enable_{method} = off")
    join = "SELECT count(*) FROM ONLY family JOIN known_accounts USING (email)"
    assert "Merge Join" in str(family.execute(f"EXPLAIN {join}").fetchall())
    assert fetch(family, join) == 5000


def test_a_masked_session_writes_the_mask(
    db: Database, session: psycopg.Connection, remote: Database
) -> None:
    """postgres_fdw sends what the session would read: docs/clients.md warns of it."""
    session.execute("SET colcrypt.access = 'masked'")
    session.execute("INSERT INTO accounts (id, note) VALUES (6000, 'n')")
    session.execute("SET colcrypt.access = 'full'")
    assert remote.psql("SELECT note FROM accounts WHERE id = 6000") == "********"


def test_a_session_that_reads_ciphertext_cannot_write(
    session: psycopg.Connection,
) -> None:
    session.execute("SET colcrypt.access = 'ciphertext'")
    with pytest.raises(psycopg.errors.InvalidTextRepresentation):
        session.execute("INSERT INTO accounts (id, note) VALUES (6000, 'n')")


def test_import_foreign_schema_declares_the_type(
    session: psycopg.Connection,
) -> None:
    session.execute("CREATE SCHEMA there")
    session.execute(
        "IMPORT FOREIGN SCHEMA public LIMIT TO (accounts) FROM SERVER plain INTO there"
    )
    sql = "SELECT note IS NULL FROM there.accounts WHERE email = %s"
    assert fetch(session, sql, email(1)) is True
    sql = """
        SELECT atttypid::regtype FROM pg_attribute
        WHERE attrelid = 'there.accounts'::regclass AND attname = 'email'"""
    assert fetch(session, sql) == "encrypted_text"
