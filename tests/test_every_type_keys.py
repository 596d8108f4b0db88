"""Keys of values of each encrypted type: managed keys and their grants, rotation, keys of
a session."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import decryptor
import psycopg
import pytest
from cryptography.fernet import Fernet
from psycopg.errors import (
    DataCorrupted,
    InsufficientPrivilege,
    ObjectNotInPrerequisiteState,
    UndefinedObject,
    UniqueViolation,
)

from harness import Cluster, Database, fetch, key_id, new_key
from kinds import CANARY_FORMS, Kind, every_kind

SUITES = ("xaes-256-gcm", "aes-256-gcm", "fernet", "envelope")
SET_KEY = "SELECT set_config('colcrypt.key', %s, false)"
ROTATE = "SELECT rotate_column('t', 'secret')"
# Whoever may not use a key sees this; JSON and hexadecimal have to write it otherwise.
MASK = 'a "mask" \\ ü'


@pytest.fixture(scope="module")
def host(base: Path, template: Path) -> Iterator[Cluster]:
    cluster = Cluster(base, template, ring=new_key())
    cluster.conf(
        {
            "shared_preload_libraries": "colcrypt",
            "colcrypt.mask": MASK,
            # Nobody else is to count or log anything.
            "autovacuum": False,
        }
    )
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt; SELECT colcrypt.create_index_key()")
    cluster.psql(
        "CREATE ROLE hr LOGIN; CREATE ROLE outsider LOGIN; CREATE ROLE clerk LOGIN"
    )
    cluster.psql("ALTER ROLE clerk SET colcrypt.access = 'masked'")
    yield cluster
    cluster.destroy()


@pytest.fixture(scope="module")
def home(host: Cluster) -> Database:
    """A database for all of these tests: each has the schema of its path to itself, and
    its own managed keys."""
    host.psql("ALTER DATABASE postgres SET search_path = work, public")
    return Database(host, "postgres")


@pytest.fixture
def clean(home: Database) -> Iterator[psycopg.Connection]:
    with home.connect(prepare_threshold=None) as session:
        session.execute("CREATE SCHEMA work; GRANT ALL ON SCHEMA work TO PUBLIC")
        yield session
    home.psql(
        "SET client_min_messages = warning; DROP SCHEMA work CASCADE;"
        "DELETE FROM colcrypt.key WHERE kind = 'data'; TRUNCATE colcrypt.key_grant"
    )


@pytest.fixture
def session(clean: psycopg.Connection, kind: Kind) -> psycopg.Connection:
    """With a table of the type, empty, and one of its plain type with the samples."""
    clean.execute(
        f"CREATE TABLE t (n serial, secret {kind.type});"
        f"CREATE TABLE p (n serial, secret {kind.plain})"
    )
    for sample in kind.samples:
        clean.execute(f"INSERT INTO p (secret) VALUES ({sample.literal})")
    return clean


def column(session: psycopg.Connection, query: str, *parameters: Any) -> list[Any]:
    return [row[0] for row in session.execute(query, parameters or None).fetchall()]


def fill(session: psycopg.Connection) -> None:
    session.execute("INSERT INTO t TABLE p ORDER BY n")


def primary(host: Cluster) -> str:
    return key_id((host.dir / "ring.keys").read_text())


def keys_of(session: psycopg.Connection, table: str = "t") -> set[tuple[str, str]]:
    """Suite and key id of the table's values."""
    query = (
        f"SELECT DISTINCT i.suite, i.key_id FROM {table}, colcrypt.inspect(secret) AS i"
        " WHERE secret IS NOT NULL"
    )
    return set(session.execute(query).fetchall())


def assert_reads(session: psycopg.Connection, kind: Kind, table: str = "t") -> None:
    shown = column(session, f"SELECT secret FROM {table} ORDER BY n")
    assert shown == [sample.text for sample in kind.samples]


def assert_quotes_nothing(error: psycopg.Error) -> None:
    for form in CANARY_FORMS:
        assert form not in str(error.diag.message_primary)
        assert form not in str(error.diag.message_detail)
        assert form not in str(error.diag.message_hint)


# Managed keys


@pytest.mark.parametrize("suite", SUITES)
@every_kind
def test_a_column_that_names_a_key_has_nothing_but_values_under_it(
    session: psycopg.Connection, kind: Kind, suite: str
) -> None:
    made = fetch(session, "SELECT colcrypt.create_key('My key', %s)", suite)
    session.execute("SELECT colcrypt.create_key('other')")
    session.execute(f'ALTER TABLE t ALTER secret TYPE {kind.type}("My key")')
    shown = "SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'secret'"
    assert fetch(session, shown) == f'{kind.type}("My key")'
    one, parameter = kind.one.literal, kind.one.parameter
    session.execute(f"ALTER TABLE t ALTER secret SET DEFAULT {one}")
    ways: list[tuple[str, list[Any]]] = [
        (f"INSERT INTO t (secret) VALUES ({one})", []),
        (f"INSERT INTO t (secret) VALUES ({one}::{kind.plain})", []),
        (f"INSERT INTO t (secret) VALUES ({one}::{kind.type})", []),
        (f"INSERT INTO t (secret) VALUES (encrypt({one}::{kind.plain}))", []),
        (f"INSERT INTO t (secret) VALUES (encrypt({one}::{kind.plain}, 'other'))", []),
        ("INSERT INTO t (secret) VALUES (%s)", [parameter]),
        ("INSERT INTO t (secret) VALUES (%t)", [kind.one.text]),
        ("INSERT INTO t DEFAULT VALUES", []),
        ("INSERT INTO t (secret) SELECT secret FROM t LIMIT 1", []),
        (f"UPDATE t SET secret = {one} WHERE n = 1", []),
        (f"UPDATE t SET secret = encrypt({one}::{kind.plain}) WHERE n = 2", []),
    ]
    for algorithm in SUITES[:2]:
        session.execute(f"SET colcrypt.algorithm = '{algorithm}'")
        for statement, parameters in ways:
            session.execute(statement.encode(), parameters or None)
        session.execute("SET colcrypt.write_key = 'other'")
    for form in ("", " (FORMAT binary)"):
        with session.cursor() as cursor:
            with cursor.copy(f"COPY t (secret) TO STDOUT{form}") as copy:
                data = b"".join(bytes(part) for part in copy)
            with cursor.copy(f"COPY t (secret) FROM STDIN{form}") as copy:
                copy.write(data)
    assert keys_of(session) == {(suite, made)}
    assert set(column(session, "SELECT secret FROM t")) == {kind.one.text}
    literal = f'SELECT (colcrypt.inspect({one}::{kind.type}("My key"))).key_id'
    assert fetch(session, literal) == made


@every_kind
def test_writing_under_a_key_that_there_is_not_is_refused_and_null_needs_none(
    session: psycopg.Connection, kind: Kind
) -> None:
    session.execute(f"CREATE TABLE m (n int, secret {kind.type}(nobody))")
    one = kind.one.literal
    for value in (
        one,
        f"{one}::{kind.plain}",
        f"{one}::{kind.type}",
        f"encrypt({one}::{kind.plain})",
    ):
        with pytest.raises(UndefinedObject):
            session.execute(f"INSERT INTO m VALUES (1, {value})")
    for call in (
        f"SELECT encrypt({one}::{kind.plain}, 'nobody')",
        f"SELECT {one}::{kind.type}(nobody)",
        "SELECT set_config('colcrypt.write_key', 'nobody', false),"
        f" encrypt({one}::{kind.plain})",
    ):
        with pytest.raises(UndefinedObject, match="nobody|#"):
            session.execute(call)
        session.execute("RESET colcrypt.write_key")
    session.execute(
        f"INSERT INTO m VALUES (1, NULL), (2, NULL::{kind.plain}), (3, NULL::{kind.type})"
    )
    assert column(session, "SELECT secret FROM m") == [None] * 3
    for bad in ("''", "a, b", "'#1'", "'" + "x" * 64 + "'"):
        with pytest.raises(psycopg.Error) as refused:
            session.execute(f"CREATE TABLE bad (secret {kind.type}({bad}))")
        assert refused.value.sqlstate == "22023", bad


@every_kind
def test_altering_the_type_moves_the_values_to_its_key(
    session: psycopg.Connection, host: Cluster, kind: Kind
) -> None:
    a = fetch(session, "SELECT colcrypt.create_key('a')")
    b = fetch(session, "SELECT colcrypt.create_key('b', 'fernet')")
    fill(session)
    session.execute("CREATE INDEX ON t USING hash (secret)")
    for type_, expected in {
        f"{kind.type}(a)": ("xaes-256-gcm", a),
        f"{kind.type}(b)": ("fernet", b),
        # It stays where it is.
        kind.type: ("fernet", b),
    }.items():
        session.execute(f"ALTER TABLE t ALTER secret TYPE {type_}")
        assert keys_of(session) == {expected}
        assert_reads(session, kind)
    session.execute(f"ALTER TABLE p ALTER secret TYPE {kind.type}(a)")
    assert keys_of(session, "p") == {("xaes-256-gcm", a)}
    same = "SELECT count(*) FROM t JOIN p USING (n, secret)"
    assert fetch(session, same) == len(kind.samples)


@every_kind
def test_write_key_and_a_key_by_name_choose_the_key_of_new_values(
    session: psycopg.Connection, host: Cluster, kind: Kind
) -> None:
    a = fetch(session, "SELECT colcrypt.create_key('a', 'envelope')")
    one = kind.one.literal
    prepared = f"PREPARE s AS INSERT INTO t (secret) VALUES ({one})"
    session.execute(f"SET plan_cache_mode = force_generic_plan; {prepared}; EXECUTE s")
    assert keys_of(session) == {("xaes-256-gcm", primary(host))}
    session.execute("TRUNCATE t; SET colcrypt.write_key = 'a'; EXECUTE s")
    fill(session)
    session.execute("INSERT INTO t (secret) VALUES (%s)", [kind.one.parameter])
    assert keys_of(session) == {("envelope", a)}
    session.execute("TRUNCATE t; RESET colcrypt.write_key; EXECUTE s")
    assert keys_of(session) == {("xaes-256-gcm", primary(host))}
    session.execute(
        "TRUNCATE t; INSERT INTO t (n, secret)"
        " SELECT n, encrypt(secret, 'a') FROM p ORDER BY n"
    )
    assert keys_of(session) == {("envelope", a)}
    assert_reads(session, kind)


@pytest.mark.parametrize("suite", SUITES)
@every_kind
def test_a_managed_key_opens_values_without_colcrypt(
    session: psycopg.Connection, host: Cluster, kind: Kind, suite: str
) -> None:
    session.execute("SELECT colcrypt.create_key('pii', %s)", [suite])
    session.execute("SET colcrypt.write_key = 'pii'")
    fill(session)
    row = session.execute(
        "SELECT wrapped, key_id, wrapped_by, kind, name, suite FROM colcrypt.key"
        " WHERE name = 'pii'"
    ).fetchone()
    assert row is not None
    names = ("key_id", "wrapped_by", "kind", "name", "suite")
    ring = [decryptor.ring_key((host.dir / "ring.keys").read_text())]
    key = decryptor.unwrap_key(row[0], ring, **dict(zip(names, row[1:])))
    forms = column(session, "SELECT ciphertext(secret) FROM t ORDER BY n")
    opened = [decryptor.decrypt_bytes(form, [key], kind.plain) for form in forms]
    assert opened == [sample.sealed for sample in kind.samples]


@every_kind
def test_rotate_key_and_rotate_column_move_the_values(
    session: psycopg.Connection, kind: Kind
) -> None:
    old = fetch(session, "SELECT colcrypt.create_key('pii', 'aes-256-gcm')")
    session.execute(
        f"ALTER TABLE t ALTER secret TYPE {kind.type}(pii), ADD UNIQUE (n);"
        "CREATE INDEX ON t USING hash (secret)"
    )
    fill(session)
    new = fetch(session, "SELECT colcrypt.rotate_key('pii')")
    assert keys_of(session) == {("aes-256-gcm", old)}
    usage = "SELECT key_id, suite, rows, stale FROM colcrypt.key_usage('t', 'secret')"
    count = len(kind.samples)
    assert session.execute(usage).fetchall() == [(old, "aes-256-gcm", count, True)]
    assert fetch(session, ROTATE) == count
    assert fetch(session, ROTATE) == 0
    assert session.execute(usage).fetchall() == [(new, "aes-256-gcm", count, False)]
    assert_reads(session, kind)
    session.execute("SET enable_seqscan = off")
    for place, sample in enumerate(kind.samples, 1):
        found = f"SELECT n FROM t WHERE secret = {sample.literal}"
        assert column(session, found) == [place]
    session.execute("RESET enable_seqscan")
    droppable = "SELECT key_id FROM colcrypt.droppable_keys() WHERE may_be_dropped"
    assert column(session, droppable) == [old]


@every_kind
def test_what_was_under_a_destroyed_key_is_gone_and_says_so(
    session: psycopg.Connection, kind: Kind
) -> None:
    made = fetch(session, "SELECT colcrypt.create_key('pii')")
    session.execute("SET colcrypt.write_key = 'pii'")
    fill(session)
    session.execute("RESET colcrypt.write_key")
    session.execute(f"INSERT INTO t (n, secret) VALUES (1000, {kind.canary.literal})")
    assert fetch(session, "SELECT colcrypt.shred_key('pii')") == 1
    for reading in (
        "secret",
        f"secret::{kind.plain}",
        "secret::text",
        "decrypt(secret)",
        f"{kind.type}_send(secret)",
        f"secret = {kind.one.literal}",
        "to_jsonb(secret)",
    ):
        with pytest.raises(ObjectNotInPrerequisiteState, match=made) as refused:
            session.execute(f"SELECT {reading} FROM t")
        assert_quotes_nothing(refused.value)
    tried = column(session, "SELECT try_decrypt(secret) FROM t ORDER BY n")
    assert tried == [*[None] * len(kind.samples), kind.canary.value]
    session.execute("SET colcrypt.undecryptable = 'placeholder'")
    text = f"<undecryptable: key {made}>"
    shown = kind.shown(text)
    for query, expected in {
        "SELECT secret FROM t WHERE n = 1": shown,
        f"SELECT secret::{kind.plain} FROM t WHERE n = 1": kind.parse(shown),
        f"SELECT {kind.type}_send(secret) FROM t WHERE n = 1": (
            kind.binary(kind.holding(text))
            if kind.plain != "jsonb"
            else kind.to_binary(shown.encode())
        ),
        "SELECT secret FROM t WHERE n = 1000": kind.canary.text,
    }.items():
        assert fetch(session, query) == expected
    # The rest can be rotated.
    session.execute("SET colcrypt.algorithm = 'envelope'")
    assert fetch(session, ROTATE) == 1


@pytest.fixture
def granted(session: psycopg.Connection, kind: Kind) -> psycopg.Connection:
    """With a table m of the samples, under a key that only hr may use."""
    session.execute(
        "SELECT colcrypt.create_key('pii'), colcrypt.grant_key('pii', 'hr'),"
        " colcrypt.create_key('open');"
        f"CREATE TABLE m (n serial, secret {kind.type}(pii));"
        "INSERT INTO m TABLE p ORDER BY n; GRANT ALL ON m, t TO PUBLIC;"
        "GRANT ALL ON SEQUENCE m_n_seq, t_n_seq TO PUBLIC"
    )
    return session


# One has no grant, the other sees masks everywhere.
without_right = pytest.mark.parametrize("user", ["outsider", "clerk"])


@without_right
@every_kind
def test_who_may_not_use_the_key_sees_the_mask(
    granted: psycopg.Connection, home: Database, kind: Kind, user: str
) -> None:
    shown = kind.shown(MASK)
    as_text = fetch(granted, f"SELECT %t::{kind.plain}::text", shown)
    sent = kind.to_binary(raw_of(kind, shown)).hex()
    with home.connect(user=user) as other:
        for query, expected in {
            "SELECT secret FROM m": shown,
            f"SELECT secret::{kind.plain} FROM m": kind.parse(shown),
            "SELECT secret::text FROM m": as_text,
            f"SELECT secret::{kind.plain}::text FROM m": as_text,
            f"SELECT encode({kind.type}_send(secret), 'hex') FROM m": sent,
        }.items():
            values = column(other, query)
            assert values == [expected] * len(kind.samples), query
        with other.cursor() as cursor, cursor.copy("COPY m TO STDOUT") as copy:
            assert {row[1] for row in copy.rows()} == {shown}
    with home.connect(user="hr") as hr:
        assert_reads(hr, kind, "m")


@without_right
@every_kind
def test_who_may_not_use_the_key_asks_and_compares_in_vain(
    granted: psycopg.Connection, home: Database, kind: Kind, user: str
) -> None:
    with home.connect(user=user) as other:
        for query in (
            "SELECT decrypt(secret) FROM m",
            "SELECT try_decrypt(secret) FROM m",
            "SELECT ciphertext(secret) FROM m",
            f"SELECT * FROM m WHERE secret = {kind.one.literal}",
            f"SELECT * FROM m WHERE secret = {kind.one.literal}::{kind.plain}",
            "SELECT DISTINCT secret FROM m",
            "SELECT rotate_column('m', 'secret')",
        ):
            with pytest.raises(InsufficientPrivilege) as refused:
                other.execute(query.encode())
            assert_quotes_nothing(refused.value)


@without_right
@every_kind
def test_who_may_write_may_write_and_moves_nothing_to_where_it_can_be_read(
    granted: psycopg.Connection, home: Database, kind: Kind, user: str
) -> None:
    with home.connect(user=user) as other:
        other.execute(f"INSERT INTO m VALUES (1000, {kind.canary.literal})")
        moved = f"INSERT INTO t (secret) SELECT secret::{kind.type}(open) FROM m"
        with pytest.raises(InsufficientPrivilege):
            other.execute(moved.encode())
        other.execute("INSERT INTO t (secret) SELECT secret FROM m WHERE n = 1000")
        own = (
            "SELECT DISTINCT secret::text FROM t WHERE ctid = (SELECT max(ctid) FROM t)"
        )
        assert column(other, own) == [
            fetch(granted, f"SELECT %t::{kind.plain}::text", kind.shown(MASK))
        ]
    with home.connect(user="hr") as hr:
        added = "SELECT secret FROM m WHERE n = 1000"
        assert column(hr, added) == [kind.canary.text]


def raw_of(kind: Kind, shown: str) -> bytes:
    value = kind.parse(shown)
    return value if isinstance(value, bytes) else shown.encode()


@every_kind
def test_a_form_that_sends_the_mask_back_changes_nothing(
    session: psycopg.Connection, home: Database, kind: Kind
) -> None:
    fill(session)
    session.execute(
        "CREATE TRIGGER keep BEFORE UPDATE ON t FOR EACH ROW"
        " EXECUTE FUNCTION colcrypt.keep_masked('secret');"
        "GRANT ALL ON t TO PUBLIC; ALTER TABLE t ADD note text"
    )
    before = column(session, "SELECT ciphertext(secret) FROM t ORDER BY n")
    with home.connect(user="clerk") as clerk:
        seen = fetch(clerk, "SELECT secret FROM t WHERE n = 1")
        assert seen == kind.shown(MASK)
        clerk.execute("UPDATE t SET secret = %t, note = 'x'", [seen])
        clerk.execute(f"UPDATE t SET secret = %t::{kind.plain}", [seen])
        clerk.execute(f"UPDATE t SET secret = secret::{kind.plain}, note = 'y'")
        assert column(session, "SELECT ciphertext(secret) FROM t ORDER BY n") == before
        clerk.execute(f"UPDATE t SET secret = {kind.canary.literal} WHERE n = 1")
    assert fetch(session, "SELECT secret FROM t WHERE n = 1") == kind.canary.text
    assert column(session, "SELECT DISTINCT note FROM t") == ["y"]


# Rotation


@pytest.mark.parametrize("after", SUITES)
@pytest.mark.parametrize("before", SUITES)
@every_kind
def test_rotation_moves_values_between_keys_and_suites(
    session: psycopg.Connection, kind: Kind, before: str, after: str
) -> None:
    old, new = new_key(), new_key()
    session.execute(SET_KEY, [old])
    session.execute(f"SET colcrypt.algorithm = '{before}'")
    fill(session)
    session.execute("INSERT INTO t (n) VALUES (1000)")
    assert keys_of(session) == {(before, key_id(old))}
    session.execute(SET_KEY, [f"{new},{old}"])
    session.execute(f"SET colcrypt.algorithm = '{after}'")
    assert fetch(session, ROTATE) == len(kind.samples)
    assert keys_of(session) == {(after, key_id(new))}
    assert fetch(session, ROTATE) == 0
    session.execute(SET_KEY, [new])
    shown = column(session, "SELECT secret FROM t ORDER BY n")
    assert shown == [*(sample.text for sample in kind.samples), None]
    forms = column(session, "SELECT ciphertext(secret) FROM t ORDER BY n")[:-1]
    ring = [decryptor.ring_key(new)]
    opened = [decryptor.decrypt_bytes(form, ring, kind.plain) for form in forms]
    assert opened == [sample.sealed for sample in kind.samples]


@pytest.mark.parametrize("after", SUITES)
def test_rotation_brings_documents_of_foreign_tokens_into_form(
    clean: psycopg.Connection, after: str
) -> None:
    # Made by an application, in its own form.
    old, new = new_key(), new_key()
    fernet = Fernet(base64.urlsafe_b64encode(decryptor.ring_key(old)))
    documents = [' {"b":1 ,"a":"\\u00e9", "b":2.50}', "[1,2]", "1e2", '"x"', "\t{}\n"]
    normal = ['{"a": "é", "b": 2.50}', "[1, 2]", "100", '"x"', "{}"]
    session = clean
    session.execute(SET_KEY, [f"{new},{old}"])
    session.execute(f"SET colcrypt.algorithm = '{after}'")
    session.execute(
        "CREATE TABLE t (n serial, secret encrypted_jsonb UNIQUE);"
        "CREATE INDEX ON t USING hash (secret)"
    )
    for document in documents:
        session.execute(
            "INSERT INTO t (secret) VALUES (from_fernet_jsonb(%s))",
            [fernet.encrypt(document.encode()).decode()],
        )
    assert fetch(session, ROTATE) == len(documents)
    assert keys_of(session) == {(after, key_id(new))}
    # Pages of a btree still have the old values.
    session.execute("REINDEX TABLE t")
    session.execute(SET_KEY, [new])
    assert column(session, "SELECT secret FROM t ORDER BY n") == normal
    forms = column(session, "SELECT ciphertext(secret) FROM t ORDER BY n")
    ring = [decryptor.ring_key(new)]
    assert [decryptor.decrypt(form, ring, "jsonb") for form in forms] == normal
    session.execute("SET enable_seqscan = off")
    for place, document in enumerate(documents, 1):
        found = "SELECT n FROM t WHERE secret = %s"
        assert column(session, found, document) == [place]
        with pytest.raises(UniqueViolation):
            session.execute("INSERT INTO t (secret) VALUES (%s)", [document])


@every_kind
def test_a_rotation_without_the_old_key_or_of_a_damaged_value_changes_nothing(
    session: psycopg.Connection, kind: Kind
) -> None:
    old = new_key()
    fill(session)
    session.execute(SET_KEY, [old])
    session.execute(f"INSERT INTO t (n, secret) VALUES (1000, {kind.canary.literal})")
    stored = bytearray(
        decryptor.stored_bytes(
            fetch(session, "SELECT ciphertext(secret) FROM t WHERE n = 1000")
        )
    )
    session.execute("RESET colcrypt.key; SET colcrypt.algorithm = 'envelope'")
    forms = "SELECT ciphertext(secret) FROM t ORDER BY n"
    before = column(session, forms)
    with pytest.raises(ObjectNotInPrerequisiteState, match=key_id(old)):
        session.execute(ROTATE)
    assert column(session, forms) == before
    stored[-1] ^= 1
    damaged = "colcrypt:v1:" + base64.urlsafe_b64encode(stored).decode().rstrip("=")
    damage = f"UPDATE t SET secret = {kind.from_ciphertext('%s')} WHERE n = 1000"
    session.execute(damage, [damaged])
    before = column(session, forms)
    session.execute(SET_KEY, [old])
    with pytest.raises(DataCorrupted) as refused:
        session.execute(ROTATE)
    assert_quotes_nothing(refused.value)
    assert column(session, forms) == before


@every_kind
def test_rotation_of_partitions_and_large_tables_in_steps(
    session: psycopg.Connection, host: Cluster, kind: Kind
) -> None:
    made = kind.holding_sql("'v' || i")
    session.execute(
        f"CREATE TABLE parts (i int, secret {kind.type}) PARTITION BY RANGE (i);"
        "CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO (100);"
        "CREATE TABLE high PARTITION OF parts DEFAULT;"
        f"INSERT INTO parts SELECT i, {made} FROM generate_series(1, 300) i;"
        "SET colcrypt.algorithm = 'aes-256-gcm'"
    )
    rotate = "SELECT rotate_column('parts', 'secret', batch_size => 7, max_rows => 200)"
    assert [fetch(session, rotate) for _ in range(3)] == [200, 100, 0]
    assert keys_of(session, "parts") == {("aes-256-gcm", primary(host))}
    read = f"SELECT count(*) FROM parts WHERE decrypt(secret) = {made}"
    assert fetch(session, read) == 300


# Keys of a session


@every_kind
def test_values_under_a_session_s_key_are_for_that_session(
    session: psycopg.Connection, home: Database, kind: Kind
) -> None:
    own, one = new_key(), kind.one.literal
    session.execute(
        f"CREATE FUNCTION f() RETURNS void LANGUAGE sql BEGIN ATOMIC"
        f" INSERT INTO t (n, secret) VALUES (3, {one}); END;"
        f"CREATE FUNCTION g() RETURNS void LANGUAGE plpgsql AS $$"
        f" DECLARE x {kind.type} := {one};"
        f" BEGIN INSERT INTO t (n, secret) VALUES (1, x), (2, {one}); END $$;"
        f"PREPARE s AS INSERT INTO t (n, secret) VALUES (4, {one});"
        "SET plan_cache_mode = force_generic_plan; SELECT g(); EXECUTE s; TRUNCATE t"
    )
    for key in (own, new_key()):
        session.execute(SET_KEY, [key])
        session.execute("SELECT g(); EXECUTE s")
        fill(session)
        assert keys_of(session) == {("xaes-256-gcm", key_id(key))}
        with home.connect() as other:
            with pytest.raises(ObjectNotInPrerequisiteState, match=key_id(key)):
                other.execute("SELECT secret FROM t")
            other.execute(SET_KEY, [key])
            assert len(column(other, "SELECT secret FROM t")) == len(kind.samples) + 3
        session.execute("TRUNCATE t")
