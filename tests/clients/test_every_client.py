"""To every driver the column is a column of text: the same statements, in the mode that
the driver is in by itself, with what docs/clients.md says that some need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clients import (
    ACCOUNTS,
    ASYNCPG,
    ASYNCPG_CODEC,
    CLIENTS,
    JDBC_CLIENT,
    NODE,
    NODE_NAMED,
    PSYCOPG,
    PSYCOPG_BINARY,
    SQLX,
    TOKIO_POSTGRES,
    VALUES,
    Client,
    Failure,
    Step,
    by_index,
)
from harness import Cluster, Database, fetch

# Some drivers prepare a statement at its fifth execution, and the server makes a generic
# plan at the sixth of a prepared one.
OFTEN = 12
GENERIC_PLANS = "SELECT max(generic_plans)::int FROM pg_prepared_statements"
LOOKUP = "SELECT id, {email} FROM accounts WHERE email = {1}"

every_client = pytest.mark.parametrize("client", CLIENTS, ids=str)


def email(number: int) -> str:
    return f"user{number}@example.com"


@pytest.fixture
def accounts(db: Database) -> Database:
    db.psql(ACCOUNTS)
    return db


@pytest.fixture(scope="module")
def unchanged(server: Cluster) -> Iterator[Database]:
    """The same, for all the tests that change nothing."""
    server.psql("CREATE DATABASE unchanged TEMPLATE with_colcrypt")
    db = Database(server, "unchanged")
    db.psql(ACCOUNTS)
    yield db
    server.psql("DROP DATABASE unchanged WITH (FORCE)")


@every_client
def test_values_come_back_as_they_went_in(db: Database, client: Client) -> None:
    db.psql("CREATE TABLE t (id int, secret encrypted_text)")
    insert = "INSERT INTO t (id, secret) VALUES ($1, {2})"
    steps = [Step(insert, (number, value)) for number, value in enumerate(VALUES)]
    *inserted, read = client.execute(
        db, *steps, Step("SELECT {secret} FROM t ORDER BY id")
    )
    assert inserted == [[]] * len(VALUES)
    assert read == [[value] for value in VALUES]
    with db.connect() as session:
        assert fetch(
            session,
            "SELECT bool_and(ciphertext(secret) LIKE 'colcrypt:v1:%') FROM t",
        )


@every_client
@pytest.mark.parametrize(
    "condition", ["email = {1}", "{1} = email", "email IN ({1}, {1})"]
)
def test_a_bound_parameter_finds_its_row_by_the_index(
    unchanged: Database, client: Client, condition: str
) -> None:
    sql = f"SELECT id, {{email}} FROM accounts WHERE {condition}"
    steps = [Step(sql, (email(number),)) for number in range(1, OFTEN + 1)]
    with by_index(unchanged, OFTEN):
        *results, [[plans]] = client.execute(unchanged, *steps, Step(GENERIC_PLANS))
    assert results == [[[number, email(number)]] for number in range(1, OFTEN + 1)]
    assert (plans is not None and plans >= 1) == client.prepares


@every_client
def test_a_bound_array_finds_its_rows_by_the_index(
    unchanged: Database, client: Client
) -> None:
    sql = "SELECT id FROM accounts WHERE email = ANY ({1[]}) ORDER BY id"
    steps = [
        Step(sql, ([email(n), "nobody", email(n + 1)],)) for n in range(1, OFTEN + 1)
    ]
    with by_index(unchanged, len(steps)):
        results = client.execute(unchanged, *steps)
    assert results == [[[n], [n + 1]] for n in range(1, OFTEN + 1)]


@every_client
def test_an_empty_array_finds_nothing(unchanged: Database, client: Client) -> None:
    sql = "SELECT id FROM accounts WHERE email = ANY ({1[]})"
    assert client.query(unchanged, sql, []) == []


@every_client
def test_updates_and_deletes_find_their_rows_by_the_index(
    accounts: Database, client: Client
) -> None:
    update = "UPDATE accounts SET note = {1} WHERE email = {2} RETURNING id, {note}"
    delete = "DELETE FROM accounts WHERE email = {1} RETURNING id"
    steps = [Step(update, (f"n{n}", email(n))) for n in range(1, OFTEN + 1)]
    steps += [Step(delete, (email(n),)) for n in range(1, OFTEN + 1)]
    with by_index(accounts, 2 * OFTEN):
        results = client.execute(accounts, *steps)
    assert results[:OFTEN] == [[[n, f"n{n}"]] for n in range(1, OFTEN + 1)]
    assert results[OFTEN:] == [[[n]] for n in range(1, OFTEN + 1)]


@every_client
def test_a_row_is_returned_as_it_was_written(
    accounts: Database, client: Client
) -> None:
    sql = """
        INSERT INTO accounts (email, note) VALUES ({1}, {2})
        ON CONFLICT (email) DO UPDATE SET note = EXCLUDED.note
        RETURNING id, {email}, {note}"""
    results = client.execute(
        accounts,
        Step(sql, ("new@example.com", "first")),
        Step(sql, ("new@example.com", "second")),
        Step(sql, (email(7), None)),
    )
    assert results == [
        [[5001, "new@example.com", "first"]],
        [[5001, "new@example.com", "second"]],
        [[7, email(7), None]],
    ]


@every_client
def test_nothing_is_equal_to_null(unchanged: Database, client: Client) -> None:
    assert client.query(unchanged, LOOKUP, None) == []


@every_client
@pytest.mark.parametrize(
    ("sql", "value", "code"),
    [
        ("INSERT INTO accounts (email) VALUES ({1})", email(1), "23505"),
        ("INSERT INTO accounts (email) VALUES ({1})", "m" * 3000, "54000"),
        ("SELECT id FROM accounts WHERE email < {1}", "canary", "0A000"),
    ],
    ids=["duplicate", "too large for the index", "order"],
)
def test_an_error_has_its_sqlstate_and_the_connection_goes_on(
    unchanged: Database, client: Client, sql: str, value: str, code: str
) -> None:
    failure, found = client.execute(
        unchanged, Step(sql, (value,)), Step(LOOKUP, (email(1),))
    )
    assert isinstance(failure, Failure)
    assert failure.code == code
    assert value not in failure.message or code == "23505"
    assert found == [[1, email(1)]]


@every_client
def test_ciphertext_is_not_taken_for_plaintext(
    unchanged: Database, client: Client
) -> None:
    insert = Step("INSERT INTO accounts (email) VALUES ({1})", ("colcrypt:v1:AAAA",))
    [failure] = client.execute(unchanged, insert)
    assert isinstance(failure, Failure)
    # By the text or by the binary form of the type.
    assert failure.code in ("22P02", "22P03")
    assert "AAAA" not in failure.message


# What is made of the type


@every_client
def test_a_domain_over_the_type_is_a_domain_over_text(
    db: Database, client: Client
) -> None:
    db.psql("""
        CREATE DOMAIN address AS encrypted_text CHECK (VALUE::text LIKE '%@%');
        CREATE TABLE people (id int, address address);
        CREATE UNIQUE INDEX people_address ON people (address)""")
    insert = "INSERT INTO people VALUES ($1, {2})"
    rows = [(number, email(number)) for number in range(1, OFTEN + 1)]
    *_, refused = client.execute(
        db, *(Step(insert, row) for row in rows), Step(insert, (99, "nowhere"))
    )
    assert isinstance(refused, Failure) and refused.code == "23514"
    db.psql("""
        INSERT INTO people SELECT n, 'more' || n || '@' FROM generate_series(1, 5000) n;
        ANALYZE people""")
    lookup = "SELECT id, {address} FROM people WHERE address = {1}"
    with by_index(db, OFTEN, "people_address"):
        results = client.execute(db, *(Step(lookup, (row[1],)) for row in rows))
    assert results == [[list(row)] for row in rows]


@every_client
def test_an_array_of_the_type_is_read_as_an_array(
    unchanged: Database, client: Client
) -> None:
    emails = client.array_column.format("array_agg(email ORDER BY id)")
    sql = f"SELECT {emails} FROM accounts WHERE id < 4"
    assert client.query(unchanged, sql) == [[[email(1), email(2), email(3)]]]


@every_client
def test_an_array_column_takes_and_gives_arrays(db: Database, client: Client) -> None:
    db.psql("CREATE TABLE codes (id int, codes encrypted_text[])")
    value = ["", "Grüße 🔑", 'a,b{}"\\', "NULL"]
    column = client.array_column.format("codes")
    _, result = client.execute(
        db,
        Step("INSERT INTO codes VALUES (1, {1[]})", (value,)),
        Step(f"SELECT {column} FROM codes"),
    )
    assert result == [[value]]


@every_client
def test_composite_values_and_json_hold_the_plaintext(
    unchanged: Database, client: Client
) -> None:
    sql = """
        SELECT row_to_json(a)::text, (to_jsonb(a) ->> 'email'), (a).email::text, a::text
        FROM accounts AS a WHERE email = {1}"""
    [row] = client.query(unchanged, sql, email(1))
    assert row == [
        f'{{"id":1,"email":"{email(1)}","note":null}}',
        email(1),
        email(1),
        f"(1,{email(1)},)",
    ]


@every_client
def test_a_composite_type_takes_and_gives_a_parameter(
    db: Database, client: Client
) -> None:
    db.psql("""
        CREATE TYPE login AS (name text, password encrypted_text);
        CREATE TABLE logins (id int, login login)""")
    column = client.column.format("(login).password")
    _, result = client.execute(
        db,
        Step("INSERT INTO logins VALUES (1, ROW('ann', {1}))", ("s3cret",)),
        Step(f"SELECT (login).name, {column} FROM logins"),
    )
    assert result == [["ann", "s3cret"]]


@every_client
def test_functions_and_triggers_take_and_give_parameters(
    accounts: Database, client: Client
) -> None:
    accounts.psql("""
        CREATE TABLE history (old encrypted_text, new encrypted_text);
        CREATE FUNCTION remember() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                INSERT INTO history VALUES (OLD.email, NEW.email);
                NEW.note := 'was ' || OLD.email;
                RETURN NEW;
            END $$;
        CREATE TRIGGER remember BEFORE UPDATE ON accounts
            FOR EACH ROW WHEN (OLD.email <> NEW.email) EXECUTE FUNCTION remember();
        CREATE FUNCTION rename(wanted encrypted_text, new_name encrypted_text)
            RETURNS encrypted_text LANGUAGE plpgsql AS $$
            DECLARE
                found accounts;
                result encrypted_text;
            BEGIN
                SELECT * INTO found FROM accounts WHERE email = wanted;
                UPDATE accounts SET email = new_name WHERE id = found.id
                    RETURNING email INTO result;
                RETURN result;
            END $$""")
    # With a cast: for a parameter that the driver declares as text there is no function.
    call = "rename({1}::encrypted_text, {2}::encrypted_text)"
    function = client.column.format(client.sql(call))
    steps = [
        Step(f"SELECT {function}", (email(n), f"renamed{n}"))
        for n in range(1, OFTEN + 1)
    ]
    with by_index(accounts, OFTEN):
        *renamed, note, history = client.execute(
            accounts,
            *steps,
            Step("SELECT {note} FROM accounts WHERE email = {1}", ("renamed1",)),
            Step("SELECT {old}, {new} FROM history LIMIT 1"),
        )
    assert renamed == [[[f"renamed{n}"]] for n in range(1, OFTEN + 1)]
    assert note == [[f"was {email(1)}"]]
    assert history == [[email(1), "renamed1"]]


# While clients are connected


# What they have prepared gives a column of another type then, which PostgreSQL refuses.
# These prepare anew by themselves, do not prepare, or cast the column.
GO_ON = (ASYNCPG, ASYNCPG_CODEC, NODE, JDBC_CLIENT, TOKIO_POSTGRES, SQLX)
FAIL = (PSYCOPG, PSYCOPG_BINARY, NODE_NAMED)


@pytest.mark.parametrize("client", GO_ON + FAIL, ids=str)
def test_a_column_is_encrypted_while_clients_are_connected(
    db: Database, client: Client
) -> None:
    db.psql("""
        CREATE TABLE accounts (id int, email text UNIQUE);
        INSERT INTO accounts SELECT n, 'user' || n || '@example.com'
            FROM generate_series(1, 100) AS n""")
    lookups = [Step(LOOKUP, (email(n),)) for n in range(1, OFTEN)]
    encrypt = Step("SELECT encrypt_column('accounts', 'email')::int")
    *before, count, after, again = client.execute(
        db, *lookups, encrypt, lookups[0], lookups[1]
    )
    assert before == [[[n, email(n)]] for n in range(1, OFTEN)]
    assert count == [[100]]
    if client in GO_ON:
        assert [after, again] == before[:2]
    else:
        assert [type(after), type(again)] == [Failure, Failure]
        assert after[0] == again[0] == "0A000"
    assert client.query(db, LOOKUP, email(1)) == before[0]


# Where a driver needs a word: that it does, and what it says without


@pytest.mark.parametrize(
    "client", [TOKIO_POSTGRES, SQLX], ids=["tokio-postgres", "sqlx"]
)
def test_a_driver_that_checks_types_reads_no_string_without_a_cast(
    unchanged: Database, client: Client
) -> None:
    [failure] = client._replace(column="{}").execute(
        unchanged, Step("SELECT {email} FROM accounts WHERE id = $1", (1,))
    )
    assert isinstance(failure, Failure) and failure.code == "client"
    assert "encrypted_text" in failure.message


def test_tokio_postgres_binds_no_string_without_a_cast(unchanged: Database) -> None:
    client = TOKIO_POSTGRES._replace(parameter="{}")
    [failure] = client.execute(unchanged, Step(LOOKUP, (email(1),)))
    assert isinstance(failure, Failure) and failure.code == "client"
    assert "error serializing parameter 0" in failure.message


@pytest.mark.parametrize("client", [PSYCOPG, NODE], ids=str)
def test_a_driver_that_does_not_know_the_type_gives_its_array_as_a_string(
    db: Database, client: Client
) -> None:
    sql = "SELECT ARRAY['a', 'b,c', NULL]::encrypted_text[]"
    assert client.query(db, sql) == [['{a,"b,c",NULL}']]
