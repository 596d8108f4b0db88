"""Managed keys: made, named by columns, sessions and calls, rotated, wrapped anew and
destroyed; and no row of colcrypt.key that was changed gives wrong plaintext."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import decryptor
import psycopg
import pytest
from psycopg.errors import (
    DataCorrupted,
    DuplicateObject,
    InsufficientPrivilege,
    InvalidName,
    InvalidParameterValue,
    ObjectNotInPrerequisiteState,
    ReadOnlySqlTransaction,
    SerializationFailure,
    UndefinedObject,
)

from conftest import MakeCluster
from harness import Cluster, Database, fetch, key_id, new_key, wait_until
from test_index_key import SET_KEY, standby, waiting

__all__ = ["standby"]

SUITES = ("xaes-256-gcm", "aes-256-gcm", "fernet", "envelope")
CREATE = "SELECT colcrypt.create_key(%s)"
ROTATE = "SELECT colcrypt.rotate_key(%s)"
SHRED = "SELECT colcrypt.shred_key(%s)"
REWRAP = "SELECT colcrypt.rewrap_keys()"
ROTATE_COLUMN = "SELECT rotate_column(%s, 'secret')"
SET_WRITE_KEY = "SELECT set_config('colcrypt.write_key', %s, false)"
ROWS = """
    SELECT key_id, wrapped_by, kind, name, suite, wrapped, state
    FROM colcrypt.key WHERE kind = 'data' ORDER BY created_at, key_id"""


@pytest.fixture
def session(db: Database) -> Iterator[psycopg.Connection]:
    with db.connect(prepare_threshold=None) as session:
        yield session


@pytest.fixture
def other(db: Database) -> Iterator[psycopg.Connection]:
    with db.connect(prepare_threshold=None) as session:
        yield session


@pytest.fixture
def app(db: Database) -> Iterator[psycopg.Connection]:
    """A session of a role that may create tables, and nothing more."""
    role = f"app_{db.name}"
    db.psql(f"CREATE ROLE {role} LOGIN; GRANT CREATE ON SCHEMA public TO {role}")
    with db.connect(user=role) as session:
        yield session
    db.psql(f"DROP OWNED BY {role}; DROP ROLE {role}")


def ring_keys(cluster: Cluster) -> list[bytes]:
    text = (cluster.dir / "ring.keys").read_text()
    return [decryptor.ring_key(key) for key in text.split(",")]


def data_keys(session: psycopg.Connection, cluster: Cluster) -> dict[str, bytes]:
    """The managed keys by id, unwrapped without colcrypt."""
    names = ("key_id", "wrapped_by", "kind", "name", "suite")
    ring = ring_keys(cluster)
    return {
        row[0]: decryptor.unwrap_key(row[5], ring, **dict(zip(names, row)))
        for row in session.execute(ROWS).fetchall()
        if row[5] is not None
    }


def sealed(session: psycopg.Connection, value: str, *parameters: object) -> list[str]:
    """Suite and key id that a value is sealed with."""
    query = f"SELECT i.suite, i.key_id FROM colcrypt.inspect({value}) AS i"
    row = session.execute(query, parameters or None).fetchone()
    assert row is not None
    return list(row)


def ids(session: psycopg.Connection, table: str = "t", where: str = "true") -> set[str]:
    """The keys that a column's values are under."""
    query = (
        "SELECT array_agg(DISTINCT (colcrypt.inspect(secret)).key_id)"
        f" FROM {table} WHERE {where}"
    )
    return set(fetch(session, query) or ())


def texts(session: psycopg.Connection, table: str = "t") -> list[str]:
    query = f"SELECT secret FROM {table} ORDER BY id"
    return [value for (value,) in session.execute(query).fetchall()]


def states(session: psycopg.Connection, name: str) -> list[str]:
    query = "SELECT state FROM colcrypt.key WHERE name = %s ORDER BY 1"
    return [state for (state,) in session.execute(query, [name]).fetchall()]


def modifier(name: str) -> int:
    digest = hashlib.sha256(b"colcrypt v1 key name" + name.encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def primary_of(cluster: Cluster) -> str:
    return decryptor.id_in_hex(ring_keys(cluster)[0])


# Making them


@pytest.mark.parametrize("suite", SUITES)
def test_a_key_of_each_suite_seals_what_others_can_open_without_colcrypt(
    session: psycopg.Connection,
    other: psycopg.Connection,
    server: Cluster,
    suite: str,
) -> None:
    made = fetch(session, "SELECT colcrypt.create_key('pii', %s)", suite)
    # The suite is the key's, not the session's.
    for algorithm in SUITES:
        session.execute(f"SET colcrypt.algorithm = '{algorithm}'")
        assert sealed(session, "encrypt('x', 'pii')") == [suite, made]
        assert sealed(session, "encrypt('x')") == [algorithm, primary_of(server)]
    text = fetch(session, "SELECT ciphertext(encrypt('Füße', 'pii'))")
    keys = data_keys(session, server)
    assert list(keys) == [made]
    assert decryptor.decrypt(text, list(keys.values())) == "Füße"
    assert fetch(other, "SELECT decrypt(from_ciphertext(%s))", text) == "Füße"
    row = (
        "SELECT key_id, kind, suite, state, wrapped_by, octet_length(wrapped),"
        " created_at = now() FROM colcrypt.key WHERE name = 'late'"
    )
    session.execute("BEGIN")
    late = fetch(session, "SELECT colcrypt.create_key('late', %s)", suite)
    found = session.execute(row).fetchone()
    session.execute("COMMIT")
    assert found == (late, "data", suite, "active", primary_of(server), 60, True)


def test_by_default_a_key_is_for_xaes(session: psycopg.Connection) -> None:
    made = fetch(session, CREATE, "pii")
    assert sealed(session, "encrypt('x', 'pii')") == ["xaes-256-gcm", made]


NAMES = ["a" * 63, "My key", 'a"b', "it's", "a,b", "a(b)", "1", "select", " ", "\\"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_needs_quotes_works_everywhere(
    session: psycopg.Connection, db: Database, name: str
) -> None:
    made = fetch(session, CREATE, name)
    quoted = fetch(session, "SELECT quote_ident(%s)", name)
    session.execute(f"CREATE TABLE t (id int, secret encrypted_text({quoted}))")
    session.execute("INSERT INTO t VALUES (1, 'x')")
    shown = fetch(
        session,
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = 't'::regclass AND attname = 'secret'",
    )
    assert shown == f"encrypted_text({quoted})"
    assert shown in db.psql("\\d t")
    session.execute(f"CREATE TABLE u (id int, secret {shown})")
    session.execute("INSERT INTO u TABLE t")
    assert sealed(session, "encrypt('x', %s)", name)[1] == made
    session.execute(SET_WRITE_KEY, [name])
    assert sealed(session, "encrypt('x')")[1] == made
    assert ids(session) == ids(session, "u") == {made}
    assert fetch(session, ROTATE, name) != made
    assert fetch(session, SHRED, name) == 2


@pytest.mark.parametrize("name", ["", "#x", "#305385e2", "ä", "a" * 64, "a\nb", "\x7f"])
def test_a_bad_name_is_refused(session: psycopg.Connection, name: str) -> None:
    with pytest.raises(InvalidName):
        session.execute(CREATE, [name])
    assert session.execute(ROWS).fetchall() == []


def test_a_name_that_is_taken_is_refused(session: psycopg.Connection) -> None:
    made = fetch(session, CREATE, "pii")
    fetch(session, ROTATE, "pii")
    for suite in SUITES[:2]:
        with pytest.raises(DuplicateObject) as refused:
            session.execute("SELECT colcrypt.create_key('pii', %s)", [suite])
        assert "rotate_key" in (refused.value.diag.message_hint or "")
    # Names have capitals.
    assert fetch(session, CREATE, "PII") != made


@pytest.mark.parametrize("suite", ["", "XAES-256-GCM", "aes-256-cmac", "none"])
def test_an_unknown_algorithm_is_refused(
    session: psycopg.Connection, suite: str
) -> None:
    with pytest.raises(InvalidParameterValue, match="xaes-256-gcm"):
        session.execute("SELECT colcrypt.create_key('pii', %s)", [suite])


def colliding_names() -> tuple[str, str]:
    seen: dict[int, str] = {}
    number = 0
    while True:
        name = f"tenant_{number}"
        first = seen.setdefault(modifier(name), name)
        if first != name:
            return first, name
        number += 1


def test_a_name_that_a_modifier_cannot_tell_from_another_is_refused(
    session: psycopg.Connection,
) -> None:
    first, second = colliding_names()
    session.execute(f"CREATE TABLE t (id int, secret encrypted_text({second}))")
    made = fetch(session, CREATE, first)
    with pytest.raises(DuplicateObject, match=first):
        session.execute(CREATE, [second])
    # The column is under the key that there is.
    session.execute("INSERT INTO t VALUES (1, 'x')")
    assert ids(session) == {made}
    # Not after it was destroyed either: columns may be under it still.
    session.execute(SHRED, [first])
    with pytest.raises(DuplicateObject, match=first):
        session.execute(CREATE, [second])


UNKNOWN_NAME = {
    "rotate": ROTATE,
    "shred": SHRED,
    "grant": "SELECT colcrypt.grant_key(%s, 'postgres')",
    "revoke": "SELECT colcrypt.revoke_key(%s, 'postgres')",
    "encrypt": "SELECT encrypt('x', %s)",
    "write_key": SET_WRITE_KEY + "::text || encrypt('x')",
}


@pytest.mark.parametrize("sql", UNKNOWN_NAME.values(), ids=UNKNOWN_NAME)
@pytest.mark.parametrize("name", ["pi", "PII", "#305385e2", "x" * 60])
def test_a_name_that_there_is_not_is_said_to_be_unknown(
    session: psycopg.Connection, sql: str, name: str
) -> None:
    fetch(session, CREATE, "pii")
    with pytest.raises(UndefinedObject, match=name) as refused:
        session.execute(sql, [name])
    assert "create_key" in (refused.value.diag.message_hint or "")


def test_null_gives_null(session: psycopg.Connection) -> None:
    for call in ("create_key(NULL)", "rotate_key(NULL)", "shred_key(NULL)"):
        assert fetch(session, f"SELECT colcrypt.{call}") is None
    fetch(session, CREATE, "pii")
    for call in ("encrypt(NULL, 'pii')", "encrypt('x', NULL)"):
        assert fetch(session, f"SELECT {call}") is None


def test_ids_of_keys_are_unique(session: psycopg.Connection) -> None:
    made = [fetch(session, CREATE, f"k{number}") for number in range(20)]
    made += [fetch(session, ROTATE, f"k{number}") for number in range(20)]
    assert len(set(made)) == 40
    with pytest.raises(psycopg.errors.UniqueViolation):
        session.execute(
            "INSERT INTO colcrypt.key SELECT key_id, 'x', kind, suite, state,"
            " wrapped_by, wrapped FROM colcrypt.key WHERE name = 'k0' LIMIT 1"
        )


def test_without_a_ring_there_is_nothing_to_wrap_under(
    make_cluster: MakeCluster,
) -> None:
    cluster, own = make_cluster(), new_key()
    with cluster.connect() as session:
        with pytest.raises(ObjectNotInPrerequisiteState, match="no encryption key"):
            session.execute(CREATE, ["pii"])
        session.execute(SET_KEY, [own])
        session.execute(CREATE, ["pii"])
        assert fetch(session, "SELECT wrapped_by FROM colcrypt.key") == key_id(own)
        text = fetch(session, "SELECT ciphertext(encrypt('x', 'pii'))")
        # What the session knows goes with its key.
        session.execute("RESET colcrypt.key")
        for sql in ("SELECT decrypt(from_ciphertext(%s))", "SELECT encrypt(%s, 'pii')"):
            with pytest.raises(ObjectNotInPrerequisiteState):
                session.execute(sql, [text if "decrypt" in sql else "x"])


def test_a_session_s_own_key_does_not_wrap_what_all_share(
    session: psycopg.Connection, other: psycopg.Connection, server: Cluster
) -> None:
    session.execute(SET_KEY, [new_key()])
    fetch(session, CREATE, "pii")
    fetch(session, ROTATE, "pii")
    assert {row[1] for row in session.execute(ROWS)} == {primary_of(server)}
    text = fetch(session, "SELECT ciphertext(encrypt('x', 'pii'))")
    assert fetch(other, "SELECT decrypt(from_ciphertext(%s))", text) == "x"


@pytest.mark.parametrize("call", ["create_key('new')", "rotate_key('pii')"])
def test_what_is_rolled_back_did_not_happen(
    session: psycopg.Connection, other: psycopg.Connection, call: str
) -> None:
    made = fetch(session, CREATE, "pii")
    name = call.split("'")[1]
    use = "encrypt('x', %s)"
    for begin, rollback in (
        ("BEGIN", "ROLLBACK"),
        ("BEGIN; SAVEPOINT s", "ROLLBACK TO s"),
    ):
        session.execute(begin)
        forgotten = fetch(session, f"SELECT colcrypt.{call}")
        assert sealed(session, use, name)[1] == forgotten
        if name == "pii":
            assert sealed(other, use, name)[1] == made
        session.execute(rollback)
        for each in (session, other):
            if name == "pii":
                assert sealed(each, use, name)[1] == made
            else:
                with pytest.raises(UndefinedObject), each.transaction():
                    each.execute(f"SELECT {use}", [name])
        session.execute("COMMIT")
    assert states(session, "pii") == ["active"] and states(session, "new") == []


@pytest.mark.parametrize(
    "call", ["create_key('new')", "rotate_key('pii')", "shred_key('pii')"]
)
def test_a_read_only_transaction_changes_no_key(
    session: psycopg.Connection, call: str
) -> None:
    fetch(session, CREATE, "pii")
    session.execute("SET default_transaction_read_only = on")
    with pytest.raises(ReadOnlySqlTransaction):
        session.execute(f"SELECT colcrypt.{call}")
    # Sealing works and writes nothing.
    assert fetch(session, "SELECT decrypt(encrypt('x', 'pii'))") == "x"
    assert states(session, "pii") == ["active"]


# Rights

ADMINISTRATION = [
    "SELECT colcrypt.create_key('x')",
    "SELECT colcrypt.create_key('x', 'fernet')",
    "SELECT colcrypt.rotate_key('pii')",
    "SELECT colcrypt.rewrap_keys()",
    "SELECT colcrypt.shred_key('pii')",
    "SELECT colcrypt.grant_key('pii', current_user::regrole)",
    "SELECT colcrypt.revoke_key('pii', current_user::regrole)",
    "SELECT colcrypt.accept_key()",
    "SELECT colcrypt.droppable_keys()",
    "SELECT * FROM colcrypt.key",
    "SELECT name FROM colcrypt.key",
    "SELECT * FROM colcrypt.key_grant",
    "INSERT INTO colcrypt.key_grant VALUES ('pii', current_user::regrole)",
    "UPDATE colcrypt.key SET state = 'retired'",
    "DELETE FROM colcrypt.key",
    "TRUNCATE colcrypt.key",
    "LOCK TABLE colcrypt.key IN ACCESS SHARE MODE",
    "SELECT colcrypt.key_changed()",
]


def test_ordinary_roles_use_keys_and_do_not_administer_them(
    session: psycopg.Connection, app: psycopg.Connection
) -> None:
    made = fetch(session, CREATE, "pii")
    before = session.execute(ROWS).fetchall()
    app.execute("CREATE TABLE t (id int, secret encrypted_text(pii))")
    app.execute("INSERT INTO t VALUES (1, 'x')")
    app.execute("SET colcrypt.write_key = 'pii'")
    app.execute("CREATE TABLE u (id int, secret encrypted_text)")
    app.execute("INSERT INTO u VALUES (1, 'x')")
    assert ids(app) == ids(app, "u") == {made}
    assert texts(app) == texts(app, "u") == ["x"]
    for sql in ADMINISTRATION:
        with pytest.raises((InsufficientPrivilege, psycopg.errors.FeatureNotSupported)):
            with app.transaction():
                app.execute(sql)
    assert session.execute(ROWS).fetchall() == before


def test_execute_on_the_functions_is_enough_to_administer(
    session: psycopg.Connection, app: psycopg.Connection
) -> None:
    role = app.info.user
    for function in (
        "create_key(text, text)",
        "rotate_key(text)",
        "rewrap_keys()",
        "shred_key(text)",
    ):
        session.execute(f"GRANT EXECUTE ON FUNCTION colcrypt.{function} TO {role}")
    # What runs with the owner's rights does not look at the caller's objects.
    app.execute(
        """CREATE FUNCTION public.trap(text, text) RETURNS boolean LANGUAGE plpgsql
        AS $$ BEGIN RAISE 'trapped'; END $$;
        CREATE OPERATOR public.= (LEFTARG = text, RIGHTARG = text, FUNCTION = trap);
        SET search_path = public, pg_catalog"""
    )
    for sql, names in ((CREATE, ["pii"]), (ROTATE, ["pii"]), (REWRAP, [])):
        app.execute(sql, names)
    assert fetch(app, "SELECT decrypt(encrypt('x', 'pii'))") == "x"
    assert fetch(app, SHRED, "pii") == 2
    assert fetch(app, "SELECT current_user") == role


# The type modifier


def column_type(session: psycopg.Connection, table: str) -> str:
    query = (
        "SELECT format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attname = 'secret'"
    )
    return fetch(session, query, table)


COPIES = {
    "like": "CREATE TABLE u (LIKE t)",
    "as": "CREATE TABLE u AS TABLE t",
    "inherits": "CREATE TABLE u () INHERITS (t)",
    "partition": "CREATE TABLE p (LIKE t) PARTITION BY LIST (id);"
    "CREATE TABLE u PARTITION OF p DEFAULT",
    "materialized view": "CREATE MATERIALIZED VIEW u AS TABLE t",
    "view": "CREATE VIEW u AS TABLE t",
    "type": "CREATE TYPE pair AS (id int, secret encrypted_text(pii));"
    "CREATE TABLE u OF pair",
    "alter": "CREATE TABLE u (id int, secret text);"
    "ALTER TABLE u ALTER secret TYPE encrypted_text(pii)",
    "add": "CREATE TABLE u (id int); ALTER TABLE u ADD secret encrypted_text(pii)",
}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
def test_what_copies_a_column_s_type_keeps_the_modifier(
    session: psycopg.Connection, db: Database, copy: str, known: bool
) -> None:
    session.execute("CREATE TABLE t (id int, secret encrypted_text(pii))")
    session.execute(copy)
    if known:
        session.execute(CREATE, ["pii"])
    name = "pii" if known else f"'#{modifier('pii'):08x}'"
    shown = f"encrypted_text({name})"
    assert column_type(session, "u") == column_type(session, "t") == shown
    assert shown in db.psql("\\d u")
    # What is shown is taken again.
    session.execute(f"CREATE TABLE again (id int, secret {shown})")
    session.execute("ALTER TABLE again ADD PRIMARY KEY (id)")
    assert column_type(session, "again") == shown
    if not known:
        session.execute(CREATE, ["pii"])
        assert column_type(session, "again") == "encrypted_text(pii)"


@pytest.mark.parametrize(
    "bad",
    ["'#'", "'#1'", "'#ffffffff'", "'#+000001'", "''", "a, b", f"'{'x' * 64}'", "NULL"],
)
def test_a_bad_modifier_is_refused(session: psycopg.Connection, bad: str) -> None:
    with pytest.raises((InvalidParameterValue, psycopg.errors.SyntaxError)):
        session.execute(f"CREATE TABLE t (secret encrypted_text({bad}))")


# Every way in which a value comes into a column.
WAYS_IN = {
    "literal": "INSERT INTO t VALUES (1, 'x')",
    "literal without columns": "INSERT INTO t (secret, id) SELECT 'x', 1",
    "several rows": "INSERT INTO t VALUES (1, 'x'), (2, 'y')",
    "text": "INSERT INTO t VALUES (1, 'x'::text)",
    "varchar": "INSERT INTO t VALUES (1, 'x'::varchar)",
    "bpchar": "INSERT INTO t VALUES (1, 'x'::char(9))",
    "number": "INSERT INTO t VALUES (1, 42)",
    "boolean": "INSERT INTO t VALUES (1, true)",
    "inet": "INSERT INTO t VALUES (1, '::1'::inet)",
    "json": "INSERT INTO t SELECT 1, to_jsonb(42)",
    "another encrypted column": "INSERT INTO t TABLE plain",
    "a literal of the type": "INSERT INTO t VALUES (1, 'x'::encrypted_text)",
    "encrypt()": "INSERT INTO t VALUES (1, encrypt('x'))",
    "update": "INSERT INTO t VALUES (1, NULL); UPDATE t SET secret = 'x'",
    "update from": "INSERT INTO t VALUES (1, NULL);"
    "UPDATE t SET secret = plain.secret FROM plain",
    "merge": "MERGE INTO t USING plain ON false"
    " WHEN NOT MATCHED THEN INSERT VALUES (1, plain.secret)",
    "default": "ALTER TABLE t ALTER secret SET DEFAULT 'x'; INSERT INTO t VALUES (1)",
    "coalesce": "INSERT INTO t SELECT 1, coalesce(NULL, secret) FROM plain",
    "union": "INSERT INTO t SELECT id, secret FROM plain UNION ALL TABLE plain",
    "plpgsql": "DO $$ DECLARE v t.secret%TYPE; BEGIN"
    " v := 'x'; INSERT INTO t VALUES (1, v); END $$",
    "plpgsql row": "DO $$ DECLARE r t; BEGIN"
    " r.id := 1; r.secret := 'x'; INSERT INTO t SELECT r.*; END $$",
    "sql function": "CREATE FUNCTION f(encrypted_text) RETURNS void LANGUAGE sql"
    " AS 'INSERT INTO t VALUES (1, $1)'; SELECT f('x')",
    "trigger": "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN NEW.secret := 'x'; RETURN NEW; END $$;"
    "CREATE TRIGGER f BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f();"
    "INSERT INTO t VALUES (1)",
    "rule": "CREATE RULE r AS ON INSERT TO plain DO INSTEAD"
    " INSERT INTO t VALUES (NEW.id, NEW.secret);"
    "INSERT INTO plain VALUES (1, 'x')",
    "view": "CREATE VIEW v AS TABLE t; INSERT INTO v VALUES (1, 'x')",
    "record": "INSERT INTO t"
    " SELECT * FROM json_populate_record(NULL::t, '{\"id\": 1, \"secret\": \"x\"}')",
    "copy text": "COPY t FROM STDIN",
    "copy binary": "COPY t FROM STDIN (FORMAT binary)",
    "unknown parameter": "INSERT INTO t VALUES (1, %s)",
    "text parameter": "INSERT INTO t VALUES (1, %s::text)",
    "binary parameter": "INSERT INTO t VALUES (1, %b)",
    "typed parameter": "INSERT INTO t VALUES (1, %s::encrypted_text)",
    "execute": "DEALLOCATE ALL; PREPARE p (encrypted_text)"
    " AS INSERT INTO t VALUES (1, $1); EXECUTE p ('x')",
}


def bring_in(session: psycopg.Connection, sql: str) -> None:
    """Does one of the ways in."""
    if sql.startswith("COPY"):
        with session.cursor().copy(sql) as copy:
            if "binary" in sql:
                copy.set_types(["int4", "text"])
            copy.write_row((1, "x"))
    else:
        session.execute(sql, ["x"] if "%s" in sql or "%b" in sql else None)


def make_plain(session: psycopg.Connection) -> None:
    session.execute(
        "CREATE TABLE plain (id int, secret encrypted_text);"
        "INSERT INTO plain VALUES (1, 'x')"
    )


OF_COLUMN = {
    "column": "CREATE TABLE t (id int, secret encrypted_text(pii))",
    "domain": "CREATE DOMAIN pii AS encrypted_text(pii);"
    "CREATE TABLE t (id int, secret pii)",
    "domain over domain": "CREATE DOMAIN a AS encrypted_text(pii);"
    "CREATE DOMAIN b AS a NOT NULL; ALTER DOMAIN b DROP NOT NULL;"
    "CREATE TABLE t (id int, secret b)",
}


@pytest.mark.parametrize("table", OF_COLUMN.values(), ids=OF_COLUMN)
@pytest.mark.parametrize("way", WAYS_IN.values(), ids=WAYS_IN)
def test_a_column_with_a_modifier_takes_nothing_but_values_under_its_key(
    session: psycopg.Connection, way: str, table: str
) -> None:
    make_plain(session)
    session.execute(table)
    with pytest.raises(UndefinedObject) as refused, session.transaction():
        bring_in(session, way)
    assert f"#{modifier('pii'):08x}" in str(refused.value)
    assert fetch(session, "SELECT count(*) FROM t") == 0
    made = fetch(session, CREATE, "pii")
    bring_in(session, way)
    assert ids(session) == {made}
    assert texts(session)[0] in ("x", "42", "true", "::1/128")


def test_null_needs_no_key(session: psycopg.Connection) -> None:
    session.execute(OF_COLUMN["column"] + "; INSERT INTO t VALUES (1, NULL)")
    session.execute("UPDATE t SET secret = NULL")
    assert texts(session) == [None]


def test_altering_the_type_moves_the_values(
    session: psycopg.Connection, server: Cluster
) -> None:
    made = {name: fetch(session, CREATE, name) for name in ("pii", "pci")}
    made["primary"] = primary_of(server)
    session.execute("CREATE TABLE t (id int, secret text UNIQUE)")
    session.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, NULL)")
    for type, name in (
        ("encrypted_text", "primary"),
        ("encrypted_text(pii)", "pii"),
        ("encrypted_text(pci)", "pci"),
        # No key is named: the values stay where they are.
        ("encrypted_text", "pci"),
        ("encrypted_text(pii)", "pii"),
    ):
        session.execute(f"ALTER TABLE t ALTER secret TYPE {type}")
        assert column_type(session, "t") == type
        assert ids(session, where="secret IS NOT NULL") == {made[name]}
        assert texts(session) == ["a", "b", None]
        assert fetch(session, "SELECT id FROM t WHERE secret = 'b'") == 2
    with pytest.raises(UndefinedObject):
        session.execute("ALTER TABLE t ALTER secret TYPE encrypted_text(nobody)")
    session.execute("ALTER TABLE t ALTER secret TYPE text")
    assert texts(session) == ["a", "b", None]


def test_values_under_different_keys_are_equal(session: psycopg.Connection) -> None:
    for name in ("pii", "pci"):
        session.execute(CREATE, [name])
    session.execute(
        "CREATE TABLE t (id int, secret encrypted_text);"
        "INSERT INTO t VALUES (1, encrypt('x', 'pii')), (2, encrypt('x', 'pci')),"
        " (3, 'x'), (4, encrypt('y', 'pii'))"
    )
    session.execute("SET enable_seqscan = off")
    for ddl in (
        "ANALYZE t",
        "CREATE INDEX i ON t (secret)",
        "DROP INDEX i; CREATE INDEX i ON t USING hash (secret)",
    ):
        session.execute(ddl)
        assert fetch(session, "SELECT count(*) FROM t WHERE secret = 'x'") == 3
    grouped = "SELECT count(*) FROM t GROUP BY secret ORDER BY 1"
    assert session.execute(grouped).fetchall() == [(1,), (3,)]


# colcrypt.write_key


@pytest.mark.parametrize("way", [w for w in WAYS_IN if w != "plpgsql row"])
def test_write_key_chooses_the_key_of_new_values(
    session: psycopg.Connection, way: str, server: Cluster
) -> None:
    made = fetch(session, CREATE, "tenant")
    make_plain(session)
    session.execute("CREATE TABLE t (id int, secret encrypted_text)")
    session.execute(SET_WRITE_KEY, ["tenant"])
    bring_in(session, WAYS_IN[way])
    stays = "plain" in WAYS_IN[way] and way not in ("rule",)
    assert ids(session) == {primary_of(server) if stays else made}
    # And none of them gets at a key that there is not.
    session.execute(SET_WRITE_KEY, ["nobody"])
    if not stays and way not in ("sql function", "trigger", "rule", "view", "execute"):
        with pytest.raises(UndefinedObject, match="nobody"), session.transaction():
            bring_in(session, WAYS_IN[way])


# What PostgreSQL makes a value of the type before it looks at the column.
OF_NO_COLUMN = (
    "literal, literal without columns, several rows, number, json,"
    " a literal of the type, encrypt(), update, default, plpgsql, plpgsql row,"
    " sql function, trigger, rule, view, unknown parameter, typed parameter, execute"
).split(", ")


@pytest.mark.parametrize(
    "way, write_key",
    [
        (way, write_key)
        for way in WAYS_IN
        for write_key in ("tenant", "nobody", "destroyed")
        if write_key == "tenant" or way not in OF_NO_COLUMN
    ],
)
def test_write_key_is_no_concern_of_a_column_with_a_modifier(
    session: psycopg.Connection, way: str, write_key: str
) -> None:
    made = fetch(session, CREATE, "pii")
    for name in ("tenant", "destroyed"):
        session.execute(CREATE, [name])
    session.execute(SHRED, ["destroyed"])
    make_plain(session)
    session.execute(OF_COLUMN["column"])
    session.execute(SET_WRITE_KEY, [write_key])
    bring_in(session, WAYS_IN[way])
    assert ids(session) == {made}


def seal_key(session: psycopg.Connection) -> str:
    return sealed(session, "encrypt('x')")[1]


def test_write_key_comes_and_goes_like_any_setting(
    db: Database, session: psycopg.Connection, app: psycopg.Connection, server: Cluster
) -> None:
    a, b = (fetch(session, CREATE, name) for name in "ab")
    primary = primary_of(server)
    role = app.info.user
    app.execute("SET colcrypt.write_key = 'a'")
    assert seal_key(app) == a
    with app.transaction():
        app.execute("SET LOCAL colcrypt.write_key = 'b'")
        assert seal_key(app) == b
    assert seal_key(app) == a
    with app.transaction(force_rollback=True):
        app.execute("SET colcrypt.write_key = 'b'")
        assert seal_key(app) == b
    assert seal_key(app) == a
    for reset in (
        "SET colcrypt.write_key = ''",
        "SET colcrypt.write_key TO DEFAULT",
        "RESET colcrypt.write_key",
        "RESET ALL",
        "DISCARD ALL",
    ):
        app.execute(reset)
        assert seal_key(app) == primary, reset
        app.execute("SET colcrypt.write_key = 'a'")
        assert seal_key(app) == a
    with app.transaction(force_rollback=True):
        app.execute("SET LOCAL colcrypt.write_key = 'nobody'")
        with pytest.raises(UndefinedObject):
            seal_key(app)
    app.execute(
        "CREATE FUNCTION f() RETURNS text LANGUAGE sql SET colcrypt.write_key = 'b'"
        " AS $$ SELECT (colcrypt.inspect(encrypt('x'))).key_id $$"
    )
    assert fetch(app, "SELECT f()") == b and seal_key(app) == a
    with db.connect(options="-c colcrypt.write_key=b") as new:
        assert seal_key(new) == b
    session.execute(f"ALTER ROLE {role} SET colcrypt.write_key = 'a'")
    with db.connect(user=role) as new:
        new.execute("CREATE TABLE t (id int, secret encrypted_text)")
        new.execute("INSERT INTO t VALUES (1, 'x')")
        assert ids(new) == {a}


PREPARED = {
    "literal": "INSERT INTO t VALUES ($1, 'x')",
    "update": "UPDATE t SET secret = 'y' WHERE id >= $1",
    "select": "INSERT INTO t SELECT $1, 'x' FROM generate_series(1, 3)",
    "encrypt": "INSERT INTO t VALUES ($1, encrypt('x'))",
    "cast": "INSERT INTO t VALUES ($1, 'x'::encrypted_text)",
    "default": "INSERT INTO t (id, secret) VALUES ($1, coalesce(NULL, 'x'))",
}


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan", "auto"])
@pytest.mark.parametrize("insert", PREPARED.values(), ids=PREPARED)
def test_a_plan_from_before_seals_under_the_key_of_now(
    session: psycopg.Connection,
    other: psycopg.Connection,
    server: Cluster,
    insert: str,
    mode: str,
) -> None:
    a, b = (fetch(session, CREATE, name) for name in "ab")
    session.execute("CREATE TABLE t (id int, secret encrypted_text)")
    session.execute(f"SET plan_cache_mode = {mode}; PREPARE p (int) AS {insert}")
    session.execute(
        "CREATE FUNCTION f(int) RETURNS void LANGUAGE plpgsql AS"
        f" $$ BEGIN {insert}; END $$"
    )
    turn = 0

    def expect(key: str) -> None:
        nonlocal turn
        for call in ("EXECUTE p (%s)", "SELECT f(%s)"):
            for _ in range(2):
                turn += 1
                if insert.startswith("UPDATE"):
                    session.execute("INSERT INTO t VALUES (%s, NULL)", [turn])
                session.execute(call.replace("%s", str(turn)))
                assert ids(session, where=f"id = {turn}") == {key}

    expect(primary_of(server))
    for name, key in (("a", a), ("b", b), ("", primary_of(server)), ("a", a)):
        session.execute(SET_WRITE_KEY, [name])
        expect(key)
    session.execute("BEGIN; SET LOCAL colcrypt.write_key = 'b'")
    expect(b)
    session.execute("COMMIT")
    expect(a)
    expect_rotated = fetch(session, ROTATE, "a")
    expect(expect_rotated)
    expect_rotated = fetch(other, ROTATE, "a")
    expect(expect_rotated)
    session.execute(SET_WRITE_KEY, ["nobody"])
    with pytest.raises(UndefinedObject):
        session.execute("EXECUTE p (1)")


# Rotation


def test_after_a_rotation_new_values_are_under_the_new_version(
    session: psycopg.Connection, other: psycopg.Connection
) -> None:
    first = fetch(session, CREATE, "pii")
    for each in (session, other):
        each.execute("SET plan_cache_mode = force_generic_plan")
    session.execute("CREATE TABLE t (id int, secret encrypted_text(pii) DEFAULT 'd')")
    for each in (session, other):
        each.execute(
            "PREPARE literal AS INSERT INTO t VALUES (1, 'x');"
            "PREPARE parameter (text) AS INSERT INTO t VALUES (1, $1);"
            "PREPARE by_default AS INSERT INTO t (id) VALUES (1);"
            "PREPARE by_name AS INSERT INTO t VALUES (1, encrypt('x', 'pii'))"
        )
    statements = (
        "EXECUTE literal",
        "EXECUTE parameter ('x')",
        "EXECUTE by_default",
        "EXECUTE by_name",
        "INSERT INTO t VALUES (1, 'x')",
    )

    def expect(key: str) -> None:
        for each in (session, other):
            for statement in statements:
                each.execute("TRUNCATE t")
                each.execute(statement)
                assert ids(each) == {key}, statement

    expect(first)
    second = fetch(session, ROTATE, "pii")
    expect(second)
    expect(third := fetch(other, ROTATE, "pii"))
    assert len({first, second, third}) == 3
    assert [(row[0], row[6]) for row in session.execute(ROWS)] == [
        (first, "retired"),
        (second, "retired"),
        (third, "active"),
    ]
    # In the transaction that rotated.
    session.execute("BEGIN; TRUNCATE t")
    fourth = fetch(session, ROTATE, "pii")
    session.execute("EXECUTE literal; EXECUTE by_default")
    assert ids(session) == {fourth}
    session.execute("ROLLBACK")
    expect(third)


@pytest.mark.parametrize("suite", SUITES)
def test_rotate_key_and_rotate_column_move_the_values(
    session: psycopg.Connection, other: psycopg.Connection, suite: str
) -> None:
    first = fetch(session, "SELECT colcrypt.create_key('pii', %s)", suite)
    session.execute("CREATE TABLE t (id int, secret encrypted_text(pii))")
    session.execute("INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 99) i")
    assert fetch(session, ROTATE_COLUMN, "t") == 0
    second = fetch(session, ROTATE, "pii")
    session.execute("INSERT INTO t VALUES (100, 'v100')")
    for each in (session, other):
        assert ids(each) == {first, second}
        assert texts(each) == [f"v{i}" for i in range(1, 101)]
    # The algorithm of the session is no concern of a managed key.
    session.execute("SET colcrypt.algorithm = 'envelope'")
    assert fetch(session, ROTATE_COLUMN, "t") == 99
    assert fetch(session, ROTATE_COLUMN, "t") == 0
    assert ids(other) == {second}
    suites = "SELECT array_agg(DISTINCT (colcrypt.inspect(secret)).suite) FROM t"
    assert fetch(session, suites) == [suite]
    assert texts(other) == [f"v{i}" for i in range(1, 101)]


TENANTS = """
    CREATE TABLE t (id int, secret encrypted_text);
    INSERT INTO t VALUES (1, encrypt('a', 'a')), (2, encrypt('b', 'b')), (3, 'p')"""


def rows(session: psycopg.Connection, table: str = "t") -> list[str]:
    query = f"SELECT (colcrypt.inspect(secret)).key_id FROM {table} ORDER BY id"
    return [key for (key,) in session.execute(query).fetchall()]


def test_without_a_modifier_a_tenant_s_values_stay_with_its_key(
    session: psycopg.Connection, server: Cluster
) -> None:
    a, b = (fetch(session, CREATE, name) for name in "ab")
    primary = primary_of(server)
    session.execute(TENANTS)
    assert rows(session) == [a, b, primary]
    # Neither another algorithm nor another tenant's session moves them.
    session.execute("SET colcrypt.algorithm = 'aes-256-gcm'")
    assert fetch(session, ROTATE_COLUMN, "t") == 1
    new = fetch(session, ROTATE, "a")
    assert fetch(session, ROTATE_COLUMN, "t") == 1
    assert rows(session) == [new, b, primary]
    session.execute(SET_WRITE_KEY, ["b"])
    assert fetch(session, ROTATE_COLUMN, "t") == 1
    assert rows(session) == [new, b, b]
    assert texts(session) == ["a", "b", "p"]
    # A copy into another column that names no key keeps the keys as well.
    session.execute("CREATE TABLE u (LIKE t); INSERT INTO u TABLE t")
    assert rows(session, "u") == [new, b, b]


def test_with_a_modifier_all_values_move_to_its_key(
    session: psycopg.Connection,
) -> None:
    a, b = (fetch(session, CREATE, name) for name in "ab")
    session.execute(TENANTS)
    # As after a restore, which stores ciphertext as it is.
    session.execute(
        "CREATE TABLE v (id int, secret encrypted_text(a));"
        "SET colcrypt.input = 'ciphertext'"
    )
    texts_of_t = "SELECT id, ciphertext(secret) FROM t"
    for row in session.execute(texts_of_t).fetchall():
        with session.cursor().copy("COPY v FROM STDIN") as copy:
            copy.write_row(row)
    session.execute("RESET colcrypt.input")
    assert rows(session, "v") == rows(session)
    assert fetch(session, ROTATE_COLUMN, "v") == 2
    assert rows(session, "v") == [a] * 3
    assert texts(session, "v") == ["a", "b", "p"]
    session.execute("ALTER TABLE v ALTER secret TYPE encrypted_text(b)")
    assert rows(session, "v") == [b] * 3


def test_rotation_of_partitions_goes_by_the_modifier(
    session: psycopg.Connection,
) -> None:
    session.execute(CREATE, ["pii"])
    session.execute(
        "CREATE TABLE t (id int, secret encrypted_text(pii)) PARTITION BY RANGE (id);"
        "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE t2 PARTITION OF t DEFAULT;"
        "INSERT INTO t SELECT i, i FROM generate_series(1, 20) i"
    )
    new = fetch(session, ROTATE, "pii")
    assert fetch(session, ROTATE_COLUMN, "t") == 20
    assert ids(session) == {new}


# A row that was changed

FLIP = "wrapped = set_byte(wrapped, {0}, get_byte(wrapped, {0}) # 1)"
SWAP = """
    UPDATE colcrypt.key k SET {0} FROM colcrypt.key o
    WHERE k.kind = 'data' AND o.kind = 'data' AND k.key_id <> o.key_id
    AND k.name IN ('a', 'b') AND o.name IN ('a', 'b') AND k.state = o.state"""
OF_A = "UPDATE colcrypt.key SET {} WHERE name = 'a'"
FROM_INDEX = "(SELECT {} FROM colcrypt.key WHERE kind = 'index')"
# Swapped by name too, a row is the other one as a whole, but for its id.
TAMPERING = {
    **{f"byte {n}": OF_A.format(FLIP.format(n)) for n in (0, 11, 12, 43, 44, 59)},
    "id": OF_A.format("key_id = 'ffffffff'"),
    "suite": OF_A.format("suite = 'aes-256-gcm'"),
    "unknown suite": OF_A.format("suite = 'rot13'"),
    "name": OF_A.format("name = 'c'"),
    "names": "UPDATE colcrypt.key SET state = 'retired' WHERE kind = 'data';"
    + SWAP.format("name = o.name"),
    "wrapped": SWAP.format("wrapped = o.wrapped"),
    "wrapped under another": SWAP.format(
        "wrapped = o.wrapped, wrapped_by = o.wrapped_by"
    ),
    "wrapped and suite": SWAP.format("wrapped = o.wrapped, suite = o.suite"),
    "of the index key": OF_A.format(f"wrapped = {FROM_INDEX.format('wrapped')}"),
    "unknown wrapping key": OF_A.format("wrapped_by = 'ffffffff'"),
    "another wrapping key": OF_A.format("wrapped_by = '{second}'"),
    "random": OF_A.format("wrapped = decode(repeat('5a', 60), 'hex')"),
    "kind": "DELETE FROM colcrypt.key WHERE kind = 'index';"
    + "ALTER TABLE colcrypt.key DROP CONSTRAINT key_check;"
    + OF_A.format("kind = 'index', name = NULL"),
    "to data": "DELETE FROM colcrypt.key WHERE name = 'a';"
    "UPDATE colcrypt.key SET kind = 'data', name = 'a', suite = 'fernet'"
    " WHERE kind = 'index'",
    "deleted": "DELETE FROM colcrypt.key WHERE name = 'a'",
    "truncated": "TRUNCATE colcrypt.key",
}


@pytest.mark.parametrize("replica", [False, True])
@pytest.mark.parametrize("change", TAMPERING.values(), ids=TAMPERING)
def test_a_changed_row_gives_errors_and_no_wrong_plaintext(
    make_cluster: MakeCluster, change: str, replica: bool
) -> None:
    rings = [new_key(), new_key()]
    cluster = make_cluster(ring=",".join(rings), conf={"log_min_messages": "debug2"})
    with cluster.connect() as session, cluster.connect() as other:
        session.execute("SELECT colcrypt.create_index_key()")
        for name in "ab":
            session.execute("SELECT colcrypt.create_key(%s, 'fernet')", [name])
        session.execute(TENANTS)
        keys = data_keys(session, cluster)
        wrapped = [row[5] for row in session.execute(ROWS)]
        for each in (session, other):
            assert texts(each) == ["a", "b", "p"]
        if replica:
            session.execute("SET session_replication_role = replica")
        session.execute(change.replace("{second}", key_id(rings[1])))
        said: list[str] = []
        for each in (session, other, cluster.connect()):
            for sql in (
                "SELECT secret FROM t WHERE id = 1",
                "SELECT decrypt(secret) FROM t WHERE id = 1",
                "SELECT encrypt('x', 'a')",
                ROTATE.replace("%s", "'a'"),
            ):
                with pytest.raises(psycopg.Error) as refused:
                    each.execute(sql)
                expected = ("XX001", "55000", "42704", "XX000")
                assert refused.value.sqlstate in expected, sql
                # An internal error is only for what the library does not know.
                assert refused.value.sqlstate != "XX000" or "rot13" in change
                diag = refused.value.diag
                said += filter(
                    None,
                    (diag.message_primary, diag.message_detail, diag.message_hint),
                )
            assert fetch(each, "SELECT try_decrypt(secret) FROM t WHERE id = 1") is None
            assert fetch(each, "SELECT secret FROM t WHERE id = 3") == "p"
        shown = "\n".join(said) + cluster.log()
    for secret in [*keys.values(), *wrapped]:
        for form in (secret.hex(), base64.b64encode(secret).decode()):
            assert form not in shown


@pytest.mark.parametrize(
    "change",
    [
        "name = NULL",
        "suite = NULL",
        "state = 'destroyed'",
        "wrapped = NULL",
        "wrapped_by = NULL",
        "wrapped = NULL, wrapped_by = NULL",
        "wrapped = '\\x00'",
        "wrapped_by = 'none'",
        "key_id = 'FFFFFFFF'",
        "state = 'lost'",
        "kind = 'ring'",
        "kind = 'index'",
        "created_at = NULL",
    ],
)
def test_a_row_that_no_key_has_is_refused(
    session: psycopg.Connection, change: str
) -> None:
    session.execute(CREATE, ["a"])
    with pytest.raises(psycopg.errors.IntegrityError):
        session.execute(OF_A.format(change))


def test_two_active_versions_are_refused(session: psycopg.Connection) -> None:
    session.execute(CREATE, ["a"])
    session.execute(ROTATE, ["a"])
    with pytest.raises(psycopg.errors.UniqueViolation, match="one_active_version"):
        session.execute(OF_A.format("state = 'active'"))


# A new key of the ring


class Ring:
    """A server with values under managed keys; a new key of the ring is at hand."""

    def __init__(self, cluster: Cluster, old: str) -> None:
        self.cluster, self.old, self.new = cluster, old, new_key()
        with cluster.connect() as session:
            for name in ("a", "b", "gone"):
                session.execute(CREATE, [name])
            session.execute(
                "CREATE TABLE t (id int, secret encrypted_text(a));"
                "INSERT INTO t SELECT i, 'a' || i FROM generate_series(1, 50) i;"
                "CREATE TABLE u (id int, secret encrypted_text);"
                "SET colcrypt.write_key = 'b';"
                "INSERT INTO u SELECT i, 'b' || i FROM generate_series(1, 50) i;"
                "CREATE INDEX ON t (secret); CREATE INDEX ON u USING hash (secret)"
            )
            session.execute(ROTATE, ["a"])
            session.execute("INSERT INTO t VALUES (51, 'a51')")
            session.execute(SHRED, ["gone"])

    def bring_new_key(self, *sessions: psycopg.Connection) -> None:
        self.cluster.set_ring(f"{self.new},{self.old}")
        self.cluster.reload(*sessions)

    def retire_old_key(self) -> None:
        self.cluster.set_ring(self.new)
        self.cluster.restart()

    def stored(self) -> str:
        """Every row as it is stored, with the transaction that wrote it."""
        row = "SELECT id, xmin, ctid, ciphertext(secret) FROM {} ORDER BY id"
        return "".join(self.cluster.psql(row.format(table)) for table in "tu")

    def wrapped_by(self) -> str:
        return self.cluster.psql(
            "SELECT string_agg(DISTINCT wrapped_by, ',') FROM colcrypt.key"
        )


@pytest.fixture
def ring(make_cluster: MakeCluster) -> Ring:
    old = new_key()
    return Ring(make_cluster(ring=old), old)


def assert_reads(*sessions: psycopg.Connection) -> None:
    for session in sessions:
        assert texts(session) == [f"a{i}" for i in range(1, 52)]
        assert texts(session, "u") == [f"b{i}" for i in range(1, 51)]
        session.execute("SET enable_seqscan = off")
        assert fetch(session, "SELECT id FROM t WHERE secret = 'a9'") == 9
        assert fetch(session, "SELECT id FROM u WHERE secret = 'b9'") == 9


def test_rewrapping_lets_the_old_key_go_without_touching_a_row(ring: Ring) -> None:
    cluster, before = ring.cluster, ring.stored()
    with cluster.connect() as session:
        assert_reads(session)
        ring.bring_new_key(session)
        assert_reads(session)
        # Two versions of a, b and the index key; what was destroyed has nothing.
        assert [fetch(session, REWRAP) for _ in range(2)] == [4, 0]
        assert_reads(session)
    assert ring.wrapped_by() == key_id(ring.new)
    ring.retire_old_key()
    assert ring.stored() == before
    with cluster.connect() as session, cluster.connect() as other:
        assert_reads(session, other)
        new = fetch(session, ROTATE, "a")
        assert fetch(session, ROTATE_COLUMN, "t") == 51
        assert ids(session) == {new}
        assert_reads(session, other)
        assert states(session, "gone") == ["destroyed"]


def test_without_rewrapping_the_error_names_the_key_that_is_needed(ring: Ring) -> None:
    ring.bring_new_key()
    ring.cluster.psql("SELECT encrypt('x')")
    ring.retire_old_key()
    with ring.cluster.connect() as session:
        for sql in (
            "TABLE t",
            "TABLE u",
            "SELECT encrypt('x', 'a')",
            "INSERT INTO t VALUES (1, 'x')",
            REWRAP,
            ROTATE.replace("%s", "'a'"),
        ):
            with pytest.raises(ObjectNotInPrerequisiteState, match=key_id(ring.old)):
                session.execute(sql)
        assert states(session, "a") == ["active", "retired"]
        assert fetch(session, "SELECT count(*) FROM t") == 51
        ring.bring_new_key(session)
        assert_reads(session)


def test_a_rewrapping_that_is_rolled_back_changes_nothing(ring: Ring) -> None:
    ring.bring_new_key()
    with ring.cluster.connect() as session:
        with session.transaction(force_rollback=True):
            assert fetch(session, REWRAP) == 4
            assert_reads(session)
        assert ring.wrapped_by() == key_id(ring.old)
        assert_reads(session)


# Destroying


def assert_gone(session: psycopg.Connection, key: str) -> None:
    """The value of row 1 cannot be read; those of 2 and 3 can."""
    for sql in (
        "SELECT secret FROM t WHERE id = 1",
        "SELECT secret::text FROM t WHERE id = 1",
        "SELECT decrypt(secret) FROM t WHERE id = 1",
        "SELECT count(*) FROM t WHERE secret = 'a'",
    ):
        with pytest.raises(ObjectNotInPrerequisiteState, match=key) as refused:
            with session.transaction():
                session.execute(sql)
        assert "destroyed" in (refused.value.diag.message_primary or "")
    assert fetch(session, "SELECT try_decrypt(secret) FROM t WHERE id = 1") is None
    with session.transaction(force_rollback=True):
        session.execute("SET LOCAL colcrypt.undecryptable = 'placeholder'")
        assert texts(session) == [f"<undecryptable: key {key}>", "b", "p"]
    for id, text in ((2, "b"), (3, "p")):
        assert fetch(session, f"SELECT secret FROM t WHERE id = {id}") == text


@pytest.fixture
def tenants(session: psycopg.Connection) -> dict[str, str]:
    """The keys of a table with the values of two tenants and of none."""
    keys = {name: fetch(session, CREATE, name) for name in "ab"}
    session.execute(TENANTS)
    return keys


def test_what_was_under_a_destroyed_key_is_gone_and_the_rest_is_not(
    db: Database,
    session: psycopg.Connection,
    other: psycopg.Connection,
    tenants: dict[str, str],
) -> None:
    kept = """
        SELECT k::text FROM colcrypt.key k
        WHERE name IS DISTINCT FROM 'a' ORDER BY 1"""
    before = db.psql(kept)
    second = fetch(session, ROTATE, "a")
    for each in (session, other):
        assert texts(each) == ["a", "b", "p"]
        assert sealed(each, "encrypt('x', 'a')")[1] == second
    assert [fetch(session, SHRED, "a") for _ in range(2)] == [2, 0]
    with db.connect() as new:
        for each in (session, other, new):
            assert_gone(each, tenants["a"])
            for sql in ("encrypt('x', 'a')", "'x'::encrypted_text(a)"):
                with pytest.raises(ObjectNotInPrerequisiteState, match="destroyed"):
                    each.execute(f"SELECT {sql}")
            with pytest.raises(ObjectNotInPrerequisiteState, match="destroyed"):
                each.execute(ROTATE, ["a"])
    assert db.psql(kept) == before
    assert states(session, "a") == ["destroyed"] * 2
    left = """
        SELECT count(wrapped) + count(wrapped_by) FROM colcrypt.key WHERE name = 'a'"""
    assert fetch(session, left) == 0
    # The constraints and triggers are as they were.
    assert fetch(session, ROTATE, "b") != tenants["b"]
    assert fetch(other, "SELECT decrypt(encrypt('x', 'b'))") == "x"


@pytest.mark.parametrize(
    "statement", ["read", "write", "call", "cursor", "query", "literal"]
)
@pytest.mark.parametrize("level", ["READ COMMITTED", "SERIALIZABLE"])
def test_a_transaction_that_has_used_the_key_cannot_use_it_any_more(
    session: psycopg.Connection,
    other: psycopg.Connection,
    tenants: dict[str, str],
    level: str,
    statement: str,
) -> None:
    statements = {
        "read": "PREPARE read AS SELECT secret FROM t WHERE id = 1; EXECUTE read",
        "write": "PREPARE write (text) AS INSERT INTO u VALUES (1, $1);"
        " EXECUTE write ('x')",
        "call": "PREPARE call AS SELECT encrypt(id::text, 'a') FROM t; EXECUTE call",
        "cursor": "DECLARE c CURSOR FOR"
        " SELECT secret FROM t, generate_series(1, 9) WHERE id = 1; FETCH c",
        "query": "SELECT secret FROM t WHERE id = 1",
        "literal": "INSERT INTO u VALUES (1, 'x')",
    }
    session.execute("CREATE TABLE u (id int, secret encrypted_text(a))")
    # Such a plan takes no lock that the transaction has not got already, and so
    # gives PostgreSQL no occasion to bring news.
    other.execute("SET plan_cache_mode = force_generic_plan")
    other.execute(f"BEGIN ISOLATION LEVEL {level}")
    assert texts(other) == ["a", "b", "p"]
    other.execute(statements[statement])
    again = statements[statement].rpartition("; ")[2]
    other.execute(again)
    session.execute(SHRED, ["a"])
    with pytest.raises(ObjectNotInPrerequisiteState):
        other.execute(again)
    other.execute("ROLLBACK")
    assert_gone(other, tenants["a"])


def test_a_new_key_of_the_name_opens_nothing_of_the_old(
    session: psycopg.Connection, other: psycopg.Connection, tenants: dict[str, str]
) -> None:
    session.execute("CREATE TABLE u (id int, secret encrypted_text(a))")
    session.execute("INSERT INTO u VALUES (1, 'x')")
    session.execute(SHRED, ["a"])
    new = fetch(session, CREATE, "a")
    assert new != tenants["a"]
    for each in (session, other):
        assert sealed(each, "encrypt('x', 'a')")[1] == new
        assert_gone(each, tenants["a"])
        each.execute("INSERT INTO u VALUES (2, 'y')")
    assert ids(session, "u", "id = 2") == {new}
    assert states(session, "a") == ["active", "destroyed"]
    assert fetch(session, SHRED, "a") == 1
    with pytest.raises(ObjectNotInPrerequisiteState, match=new):
        session.execute("SELECT secret FROM u WHERE id = 2")


def test_a_destroyed_tenant_does_not_stand_in_the_way_of_rotating_the_others(
    session: psycopg.Connection, tenants: dict[str, str], server: Cluster
) -> None:
    new = fetch(session, ROTATE, "b")
    session.execute(SHRED, ["a"])
    assert fetch(session, ROTATE_COLUMN, "t") == 1
    assert rows(session) == [tenants["a"], new, primary_of(server)]
    assert_gone(session, tenants["a"])


def test_the_rest_of_the_key_table_survives(
    session: psycopg.Connection, tenants: dict[str, str]
) -> None:
    """Ring keys, the index key and grants, and how they are protected."""
    session.execute("CREATE INDEX ON t (secret)")
    session.execute("SELECT colcrypt.grant_key('b', 'postgres')")
    shape = """
        SELECT (SELECT array_agg(concat(tgname, tgenabled) ORDER BY tgname)
                FROM pg_trigger WHERE tgrelid = 'colcrypt.key'::regclass)::text
            || (SELECT array_agg(concat(indexrelid::regclass, indisvalid) ORDER BY 1)
                FROM pg_index WHERE indrelid = 'colcrypt.key'::regclass)::text
            || (SELECT concat(relacl, relreplident, relowner) FROM pg_class
                WHERE oid = 'colcrypt.key'::regclass)"""
    data = """
        SELECT array_agg(k ORDER BY key_id)::text FROM colcrypt.key k
        WHERE name IS DISTINCT FROM 'a'"""
    grants = "SELECT array_agg(g)::text FROM colcrypt.key_grant g"
    queries = (shape, data, grants)
    before = [fetch(session, query) for query in queries]
    session.execute(SHRED, ["a"])
    assert [fetch(session, query) for query in queries] == before


@pytest.mark.parametrize(
    "begin, rollback",
    [("BEGIN", "ROLLBACK"), ("BEGIN; SAVEPOINT s", "ROLLBACK TO s")],
)
def test_a_destruction_that_is_rolled_back_destroys_nothing(
    session: psycopg.Connection,
    other: psycopg.Connection,
    tenants: dict[str, str],
    begin: str,
    rollback: str,
) -> None:
    table = "SELECT array_agg(k ORDER BY key_id)::text FROM colcrypt.key k"
    before = fetch(session, table)
    session.execute(begin)
    assert fetch(session, SHRED, "a") == 1
    assert_gone(session, tenants["a"])
    session.execute(rollback)
    assert texts(session) == ["a", "b", "p"]
    session.execute("COMMIT")
    assert fetch(session, table) == before
    for each in (session, other):
        assert texts(each) == ["a", "b", "p"]
        assert sealed(each, "encrypt('x', 'a')")[1] == tenants["a"]


def files_with(cluster: Cluster, canaries: list[bytes]) -> set[str]:
    """The files of the server's data, its WAL and the log aside, with one of these."""
    cluster.psql("CHECKPOINT")
    found = set()
    for path in cluster.datadir.rglob("*"):
        if path.is_file() and "pg_wal" not in path.parts:
            content = path.read_bytes()
            if any(canary in content for canary in canaries):
                found.add(str(path.relative_to(cluster.datadir)))
    return found


def test_no_version_of_a_destroyed_key_lingers_in_a_file(ring: Ring) -> None:
    cluster = ring.cluster
    wrapped = "SELECT wrapped FROM colcrypt.key WHERE name = 'a'"
    canaries: list[bytes] = []

    def key_table() -> str:
        path = cluster.relation_path("colcrypt.key")
        return str(path.relative_to(cluster.datadir))

    with cluster.connect() as session:
        session.execute("ALTER TABLE colcrypt.key SET (autovacuum_enabled = off)")
        ring.bring_new_key(session)
        for step in ("", REWRAP, ROTATE.replace("%s", "'a'"), "VACUUM colcrypt.key"):
            if step:
                session.execute(step)
            canaries += [bytes(row[0]) for row in session.execute(wrapped).fetchall()]
            if "VACUUM" not in step:
                # The search can find it.
                for canary in canaries:
                    assert files_with(cluster, [canary]) == {key_table()}
        assert len(set(canaries)) == 5
        b = bytes(fetch(session, "SELECT wrapped FROM colcrypt.key WHERE name = 'b'"))
        assert fetch(session, SHRED, "a") == 3
    assert files_with(cluster, canaries) == set()
    assert files_with(cluster, [b]) == {key_table()}


def test_two_destructions_in_one_statement_and_one_transaction(
    session: psycopg.Connection, tenants: dict[str, str]
) -> None:
    with session.transaction(force_rollback=True):
        row = session.execute(
            "SELECT colcrypt.shred_key('a'), colcrypt.create_key('c'),"
            " colcrypt.shred_key('c'), colcrypt.rotate_key('b'),"
            " colcrypt.shred_key('b')"
        ).fetchone()
        assert row is not None and (row[0], row[2], row[4]) == (1, 1, 2)
        assert fetch(session, "SELECT secret FROM t WHERE id = 3") == "p"
    # By name from a list, as a script would.
    session.execute(
        "DO $$ DECLARE n text; BEGIN"
        " FOREACH n IN ARRAY ARRAY['a', 'b'] LOOP"
        "   PERFORM colcrypt.shred_key(n); END LOOP;"
        " END $$"
    )
    assert states(session, "a") + states(session, "b") == ["destroyed"] * 2


@pytest.mark.parametrize("wal_level", ["replica", "minimal"])
@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("crash", ["kill", "immediate"])
def test_a_crash_undoes_no_destruction_and_does_none(
    make_cluster: MakeCluster, crash: str, committed: bool, wal_level: str
) -> None:
    conf = {"wal_level": wal_level, "max_wal_senders": 0}
    cluster = make_cluster(ring=new_key(), conf=conf)
    session = cluster.connect()
    keys = {name: fetch(session, CREATE, name) for name in "ab"}
    session.execute(TENANTS)
    session.execute("CREATE INDEX ON t (secret)")
    session.execute("CHECKPOINT; BEGIN")
    session.execute(SHRED, ["a"])
    session.execute("SELECT pg_switch_wal()")
    if committed:
        session.execute("COMMIT")
    if crash == "kill":
        cluster.kill()
    else:
        cluster.stop("immediate")
    session.close()
    cluster.start()
    with cluster.connect() as session:
        if committed:
            assert_gone(session, keys["a"])
        else:
            assert texts(session) == ["a", "b", "p"]
        assert fetch(session, SHRED, "b") == 1
        assert fetch(session, CREATE, "c") not in keys.values()


def test_a_standby_loses_the_key_too(cluster: Cluster, standby: Cluster) -> None:
    def replayed() -> bool:
        sent = cluster.psql("SELECT pg_current_wal_lsn()")
        caught_up = f"SELECT pg_last_wal_replay_lsn() >= '{sent}'"
        return standby.psql(caught_up) == "t"

    with cluster.connect() as session, standby.connect() as reader:
        keys = {name: fetch(session, CREATE, name) for name in "ab"}
        session.execute(TENANTS)
        wait_until(replayed, "the standby")
        assert texts(reader) == ["a", "b", "p"]
        # A literal is sealed without a write.
        assert sealed(reader, "encrypt('x', 'a')")[1] == keys["a"]
        new = fetch(session, ROTATE, "a")
        wait_until(replayed, "the standby")
        assert sealed(reader, "encrypt('x', 'a')")[1] == new
        canaries = [bytes(row[5]) for row in session.execute(ROWS) if row[3] == "a"]
        inside = standby.connect()
        inside.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        assert texts(inside) == ["a", "b", "p"]
        session.execute(SHRED, ["a"])
        wait_until(replayed, "the standby")
        for each in (reader, inside, standby.connect()):
            assert_gone(each, keys["a"])
        inside.close()
        session.execute("CHECKPOINT")
        wait_until(replayed, "the standby")
        for host in (cluster, standby):
            assert files_with(host, canaries) == set()
        for call in (SHRED, ROTATE, CREATE):
            with pytest.raises((ReadOnlySqlTransaction, ObjectNotInPrerequisiteState)):
                reader.execute(call, ["b"])


# Two sessions

CALLS = {
    "create": "SELECT colcrypt.create_key('c')",
    "rotate": "SELECT colcrypt.rotate_key('a')",
    "rewrap": REWRAP,
    "shred": "SELECT colcrypt.shred_key('a')",
}
# What the second one says when the first one commits.
SECOND = {
    ("create", "create"): DuplicateObject,
    ("shred", "rotate"): ObjectNotInPrerequisiteState,
}


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
@pytest.mark.parametrize("second", CALLS)
@pytest.mark.parametrize("first", CALLS)
def test_of_two_that_change_keys_the_second_waits(
    session: psycopg.Connection,
    other: psycopg.Connection,
    tenants: dict[str, str],
    first: str,
    second: str,
    end: str,
) -> None:
    session.execute("BEGIN")
    done = fetch(session, CALLS[first])
    with waiting(lambda: fetch(other, CALLS[second]), session) as waited:
        session.execute(end)
        error = SECOND.get((first, second)) if end == "COMMIT" else None
        if error:
            with pytest.raises(error):
                waited.result(timeout=30)
        else:
            result = waited.result(timeout=30)
            if first == second == "shred":
                assert (done, result) == (1, 0 if end == "COMMIT" else 1)
            elif first == second and first != "rewrap":
                assert result != done
    undone = [first] if end == "ROLLBACK" else []
    rotations = [first, second].count("rotate") - undone.count("rotate")
    shredded = second == "shred" or (first == "shred" and end == "COMMIT")
    if not shredded:
        assert states(session, "a") == ["active"] + ["retired"] * rotations
        for each in (session, other):
            assert texts(each) == ["a", "b", "p"]
            assert fetch(each, "SELECT decrypt(encrypt('x', 'a'))") == "x"
    else:
        assert set(states(session, "a")) == {"destroyed"}
        for each in (session, other):
            assert_gone(each, tenants["a"])


def test_many_rotations_at_once_leave_one_active_version(
    db: Database, session: psycopg.Connection, tenants: dict[str, str]
) -> None:
    sessions = [db.connect() for _ in range(6)]

    def work(each: psycopg.Connection) -> None:
        for _ in range(5):
            fetch(each, ROTATE, "a")
            assert fetch(each, "SELECT decrypt(encrypt('x', 'a'))") == "x"
            assert texts(each) == ["a", "b", "p"]

    with ThreadPoolExecutor(len(sessions)) as pool:
        list(pool.map(work, sessions))
    assert states(session, "a") == ["active"] + ["retired"] * 30
    for each in sessions:
        each.close()


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize(
    "theirs, ours, error",
    [
        (CALLS["rotate"], CALLS["rotate"], SerializationFailure),
        (CALLS["create"], CALLS["create"], DuplicateObject),
        (CALLS["create"], "SELECT colcrypt.rotate_key('c')", SerializationFailure),
        (CALLS["shred"], CALLS["rotate"], ObjectNotInPrerequisiteState),
        (CALLS["create"], "SELECT decrypt(encrypt('x', 'c'))", None),
        (CALLS["rotate"], "SELECT decrypt(encrypt('x', 'a'))", None),
        (CALLS["rotate"], CALLS["shred"], SerializationFailure),
        (CALLS["create"], "SELECT colcrypt.shred_key('c')", SerializationFailure),
    ],
)
def test_a_snapshot_older_than_a_key_neither_hides_it_nor_doubles_it(
    session: psycopg.Connection,
    other: psycopg.Connection,
    tenants: dict[str, str],
    theirs: str,
    ours: str,
    error: type[psycopg.Error] | None,
    level: str,
) -> None:
    session.execute(f"BEGIN ISOLATION LEVEL {level}")
    assert texts(session) == ["a", "b", "p"]
    other.execute(theirs)
    if error:
        with pytest.raises(error):
            session.execute(ours)
        session.execute("ROLLBACK")
    else:
        session.execute(ours)
        session.execute("COMMIT")
    for name in "abc":
        assert states(session, name).count("active") <= 1
    # Nothing was lost on the way.
    assert states(session, "b") == ["active"]
    assert ("c" in theirs.split("'")) == bool(states(session, "c"))
    assert fetch(other, "SELECT secret FROM t WHERE id = 2") == "b"
