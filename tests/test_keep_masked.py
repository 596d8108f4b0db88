"""colcrypt.keep_masked(): a form that sends the mask back changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from harness import Database

MASK = "********"
KEEP = "EXECUTE FUNCTION colcrypt.keep_masked"
BEFORE_UPDATE = f"CREATE TRIGGER keep BEFORE UPDATE ON t FOR EACH ROW {KEEP}"


@pytest.fixture
def session(db: Database) -> Iterator[psycopg.Connection]:
    """The superuser, with a table that clerks may write to."""
    with db.connect() as session:
        session.execute(
            "CREATE TABLE t (id int, gone int, a encrypted_text, n int DEFAULT 0,"
            " b encrypted_text, c text);"
            "ALTER TABLE t DROP gone;"
            "INSERT INTO t VALUES (1, 'one', 0, 'eins', 'x'), (2, 'two', 0, NULL, 'x'),"
            " (3, NULL, 0, 'drei', 'x');"
            "GRANT ALL ON t TO PUBLIC"
        )
        yield session


def rows(session: psycopg.Connection) -> list[tuple[object, ...]]:
    return session.execute("SELECT a::text, b::text FROM t ORDER BY id").fetchall()


BEFORE = [("one", "eins"), ("two", None), (None, "drei")]
UPDATES = {
    f"a = '{MASK}'": [("one", "eins"), ("two", None), (None, "drei")],
    f"a = '{MASK}'::text": [("one", "eins"), ("two", None), (None, "drei")],
    f"a = '{MASK}', b = '{MASK}'": [("one", "eins"), ("two", None), (None, "drei")],
    f"a = 'new', b = '{MASK}'": [("new", "eins"), ("new", None), ("new", "drei")],
    f"a = '{MASK}', b = NULL": [("one", None), ("two", None), (None, None)],
    "a = 'new', b = 'neu'": [("new", "neu")] * 3,
    "a = b": [("eins", "eins"), (None, None), ("drei", "drei")],
    f"a = '{MASK}*'": [(f"{MASK}*", "eins"), (f"{MASK}*", None), (f"{MASK}*", "drei")],
    "a = ''": [("", "eins"), ("", None), ("", "drei")],
    f"n = 1, c = '{MASK}'": [("one", "eins"), ("two", None), (None, "drei")],
}


@pytest.mark.parametrize("update", UPDATES)
def test_the_old_value_stays_where_the_new_one_is_the_mask(
    session: psycopg.Connection, update: str
) -> None:
    session.execute(f"{BEFORE_UPDATE}('a', 'b')")
    assert session.execute(f"UPDATE t SET {update}").rowcount == 3
    assert rows(session) == UPDATES[update]


def test_columns_that_are_not_named_take_the_mask(session: psycopg.Connection) -> None:
    session.execute(f"{BEFORE_UPDATE}('b')")
    masks = ", ".join(f"{column} = '{MASK}'" for column in "abc")
    session.execute(f"UPDATE t SET {masks} WHERE id = 1")
    row = session.execute("SELECT a::text, b::text, c FROM t WHERE id = 1").fetchone()
    assert row == (MASK, "eins", MASK)


@pytest.mark.parametrize("access", ["masked", "full", "ciphertext"])
def test_a_role_sends_back_what_it_was_shown(
    db: Database, session: psycopg.Connection, access: str
) -> None:
    session.execute(
        f"{BEFORE_UPDATE}('a', 'b');"
        f"CREATE ROLE clerk LOGIN; ALTER ROLE clerk SET colcrypt.access = {access}"
    )
    try:
        with db.connect(user="clerk") as clerk:
            shown = clerk.execute("SELECT id, a::text, b::text FROM t").fetchall()
            for id, a, b in shown if access != "ciphertext" else []:
                update = "UPDATE t SET a = %s, b = %s, c = 'y' WHERE id = %s"
                clerk.execute(update, [a, b, id])
            clerk.execute("UPDATE t SET n = n + 1")
        # What was NULL was shown as NULL and stays so.
        assert rows(session) == BEFORE
        assert session.execute("SELECT sum(n) FROM t").fetchall() == [(3,)]
    finally:
        session.execute("DROP OWNED BY clerk; DROP ROLE clerk")


def test_a_role_without_a_grant_sends_back_what_it_was_shown(
    db: Database, session: psycopg.Connection
) -> None:
    session.execute(
        "SELECT colcrypt.create_key('pii');"
        "ALTER TABLE t ALTER a TYPE encrypted_text(pii);"
        f"{BEFORE_UPDATE}('a', 'b');"
        "CREATE ROLE clerk LOGIN; CREATE ROLE hr;"
        "SELECT colcrypt.grant_key('pii', 'hr')"
    )
    try:
        with db.connect(user="clerk") as clerk:
            shown = clerk.execute("SELECT id, a::text, b::text FROM t").fetchall()
            assert [a for _, a, _ in sorted(shown)] == [MASK, MASK, None]
            for id, a, b in shown:
                clerk.execute("UPDATE t SET a = %s, b = %s WHERE id = %s", [a, b, id])
        assert rows(session) == BEFORE
    finally:
        session.execute("DROP OWNED BY clerk; DROP ROLE clerk, hr")


def test_the_mask_is_the_one_in_force(session: psycopg.Connection) -> None:
    session.execute(f"{BEFORE_UPDATE}('a'); SET colcrypt.mask = '(hidden)'")
    session.execute("UPDATE t SET a = '(hidden)' WHERE id = 1")
    session.execute(f"UPDATE t SET a = '{MASK}' WHERE id = 2")
    assert rows(session)[:2] == [("one", "eins"), (MASK, None)]


def test_the_value_that_stays_is_the_stored_one(session: psycopg.Connection) -> None:
    stored = "SELECT ciphertext(a), ciphertext(b) FROM t ORDER BY id"
    session.execute("UPDATE t SET b = repeat('long', 5000) WHERE id = 1")
    before = session.execute(stored).fetchall()
    session.execute(f"{BEFORE_UPDATE}('a', 'b')")
    session.execute(f"UPDATE t SET a = '{MASK}', b = '{MASK}'")
    assert session.execute(stored).fetchall() == before


def test_it_works_with_domains_partitions_and_on_conflict(
    session: psycopg.Connection,
) -> None:
    session.execute(
        "CREATE DOMAIN ssn AS encrypted_text;"
        "CREATE TABLE p (id int PRIMARY KEY, s ssn) PARTITION BY RANGE (id);"
        # Its columns stand elsewhere.
        "CREATE TABLE p1 (s ssn, gone int, id int NOT NULL); ALTER TABLE p1 DROP gone;"
        "ALTER TABLE p ATTACH PARTITION p1 FOR VALUES FROM (0) TO (9);"
        f"CREATE TRIGGER keep BEFORE UPDATE ON p FOR EACH ROW {KEEP}('s');"
        "INSERT INTO p VALUES (1, 'one')"
    )
    upsert = "INSERT INTO p VALUES (1, %s::text) ON CONFLICT (id) DO UPDATE"
    session.execute(f"{upsert} SET s = excluded.s", [MASK])
    assert session.execute("SELECT s::text FROM p").fetchall() == [("one",)]
    session.execute(f"UPDATE p SET s = '{MASK}', id = 2")
    assert session.execute("SELECT s::text FROM p").fetchall() == [("one",)]
    session.execute(f"{upsert} SET s = excluded.s", ["two"])
    assert session.execute("SELECT count(*) FROM p").fetchall() == [(2,)]


def test_a_value_that_cannot_be_opened_is_not_the_mask(db: Database) -> None:
    with db.connect() as session, db.connect() as other:
        session.execute("CREATE TABLE t (a encrypted_text)")
        session.execute(f"{BEFORE_UPDATE}('a')")
        key = "SELECT set_config('colcrypt.key', colcrypt.generate_key(), false)"
        session.execute(key)
        session.execute("INSERT INTO t VALUES ('x')")
        assert other.execute("UPDATE t SET a = a").rowcount == 1
        assert session.execute("SELECT a FROM t").fetchall() == [("x",)]


ROW = "FOR EACH ROW"
WRONG = {
    "no column": (f"BEFORE UPDATE ON t {ROW}", "()", "39P01"),
    "no such column": (f"BEFORE UPDATE ON t {ROW}", "('a', 'x')", "42703"),
    "dropped column": (f"BEFORE UPDATE ON t {ROW}", "('gone')", "42703"),
    "system column": (f"BEFORE UPDATE ON t {ROW}", "('ctid')", "42703"),
    "text": (f"BEFORE UPDATE ON t {ROW}", "('c')", "42804"),
    "number": (f"BEFORE UPDATE ON t {ROW}", "('n')", "42804"),
    "after": (f"AFTER UPDATE ON t {ROW}", "('a')", "39P01"),
    "statement": ("BEFORE UPDATE ON t FOR EACH STATEMENT", "('a')", "39P01"),
    "after statement": ("AFTER UPDATE ON t FOR EACH STATEMENT", "('a')", "39P01"),
    "insert": (f"BEFORE INSERT ON t {ROW}", "('a')", "39P01"),
    "delete": (f"BEFORE DELETE ON t {ROW}", "('a')", "39P01"),
    "truncate": ("BEFORE TRUNCATE ON t FOR EACH STATEMENT", "('a')", "39P01"),
    "instead of": (f"INSTEAD OF UPDATE ON v {ROW}", "('a')", "39P01"),
}
COMMANDS = ["INSERT INTO t (id) VALUES (9)", "DELETE FROM t", "TRUNCATE t"]


@pytest.mark.parametrize("name", WRONG)
def test_a_trigger_of_another_kind_or_column_is_an_error(
    session: psycopg.Connection, name: str
) -> None:
    kind, arguments, sqlstate = WRONG[name]
    session.execute("CREATE VIEW v AS SELECT * FROM t")
    session.execute(f"CREATE TRIGGER keep {kind} {KEEP}{arguments}")
    target = "v" if " ON v " in kind else "t"
    commands = [f"UPDATE {target} SET a = 'x' WHERE id = 1", *COMMANDS]
    [command] = [text for text in commands if text.split()[0] in kind.split()]
    with pytest.raises(psycopg.Error) as refused:
        session.execute(command)
    assert refused.value.sqlstate == sqlstate
    assert rows(session) == BEFORE


def test_it_is_not_for_calling(session: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.TriggerProtocolViolated):
        session.execute("SELECT colcrypt.keep_masked()")
