"""colcrypt.verify_column(): every value is opened; what cannot be opened is counted by
key and suite and told with its place and a reason; and nobody learns more from it than
he could read."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator

import decryptor
import psycopg
import pytest
from cryptography.fernet import Fernet
from psycopg.errors import (
    FeatureNotSupported,
    InsufficientPrivilege,
    QueryCanceled,
    UndefinedColumn,
)

from conftest import MakeCluster
from harness import Cluster, Database, fetch, key_id, new_key
from kinds import (
    CANARY,
    CANARY_FORMS,
    JSONB,
    KINDS,
    PREFIX,
    TEXT,
    Kind,
    every_kind,
    every_pair_of_kinds,
)

VERIFY = "SELECT * FROM colcrypt.verify_column('t', 'secret')"
SET_KEY = "SELECT set_config('colcrypt.key', %s, false)"
SUITES = ("xaes-256-gcm", "aes-256-gcm", "fernet", "envelope")
DEFAULT_SUITE = SUITES[0]
DAMAGED = "encrypted value could not be authenticated under key {}"
MALFORMED = "stored value is not in a format that this version of colcrypt knows"
MISSING = "encryption key {} is not in the key ring"
NOT_TEXT = "encrypted value does not hold valid text"
NOT_JSON = "encrypted value does not hold a JSON document"
TOO_DEEP = "document is nested too deep for this session"
READER = "verify_reader"

# key_id, suite, ok, failed, first_failure, reason
Row = tuple[str | None, str | None, int, int, str | None, str | None]

RAW_CASTS = "".join(
    f"CREATE CAST ({source} AS {target}) WITHOUT FUNCTION;"
    for source, target in [
        ("bytea", "encrypted_text"),
        *itertools.permutations([kind.type for kind in KINDS], 2),
    ]
)

every_suite = pytest.mark.parametrize("suite", SUITES)


@pytest.fixture(scope="module")
def home(server: Cluster) -> Iterator[Database]:
    """A database for all of these tests: each has the schema of its path to itself."""
    server.psql(
        "CREATE DATABASE verify TEMPLATE with_colcrypt;"
        "ALTER DATABASE verify SET search_path = work, public;"
        f"CREATE ROLE {READER} LOGIN"
    )
    home = Database(server, "verify")
    # As if somebody had written into the table's file.
    home.psql(RAW_CASTS)
    yield home
    server.psql(f"DROP DATABASE verify WITH (FORCE); DROP ROLE {READER}")


@pytest.fixture
def session(home: Database) -> Iterator[psycopg.Connection]:
    with home.connect(prepare_threshold=None) as session:
        session.execute(
            f"CREATE SCHEMA work; GRANT ALL ON SCHEMA work TO {READER};"
            "SELECT encrypt('x'::text); SET bytea_output = 'hex'"
        )
        yield session
        session.execute("ROLLBACK; RESET ROLE; SET client_min_messages = error")
        session.execute("DROP SCHEMA work CASCADE")


@pytest.fixture(scope="module")
def key(server: Cluster) -> str:
    return (server.dir / "ring.keys").read_text()


@pytest.fixture(scope="module")
def primary(key: str) -> str:
    return key_id(key)


@pytest.fixture(scope="module")
def fernet(key: str) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(decryptor.ring_key(key)))


def verified(session: psycopg.Connection, table: str = "t") -> list[Row]:
    """What the function tells. It never quotes a value."""
    rows = session.execute(
        "SELECT key_id, suite, ok, failed, first_failure::text, reason"
        " FROM colcrypt.verify_column(%s, 'secret')",
        [table],
    ).fetchall()
    for row in rows:
        for form in (*CANARY_FORMS, PREFIX):
            assert form not in str(row)
    return [tuple(row) for row in rows]


def place(session: psycopg.Connection, condition: str, table: str = "t") -> str:
    return fetch(
        session,
        f"SELECT ctid::text FROM {table} WHERE {condition} ORDER BY ctid LIMIT 1",
    )


def store(session: psycopg.Connection, kind: Kind, raw: bytes, id: int = 1) -> None:
    """Puts bytes into the table as they are."""
    # By way of a type that does not encrypt bytea that is cast to it.
    value = f"%b::bytea::encrypted_text::{kind.type}"
    session.execute(f"INSERT INTO t VALUES (%s, {value})", [id, raw])


def stored(session: psycopg.Connection, kind: Kind, literal: str) -> bytearray:
    """The bytes of a new value."""
    form = fetch(session, f"SELECT ciphertext(encrypt({literal}::{kind.plain}))")
    return bytearray(decryptor.stored_bytes(form))


def make(session: psycopg.Connection, kind: Kind, *, values: bool = True) -> None:
    session.execute(f"CREATE TABLE t (id int, secret {kind.type})")
    if values:
        session.execute(
            f"INSERT INTO t VALUES (10, {kind.one.literal}), (11, NULL),"
            f" (12, {kind.two.literal})"
        )


# What is well


def test_its_shape(session: psycopg.Connection) -> None:
    make(session, TEXT)
    described = session.execute(VERIFY).description or []
    types = [fetch(session, "SELECT %s::regtype::text", c.type_code) for c in described]
    assert dict(zip([c.name for c in described], types, strict=True)) == {
        "key_id": "text",
        "suite": "text",
        "ok": "bigint",
        "failed": "bigint",
        "first_failure": "tid",
        "reason": "text",
    }


@every_suite
@every_kind
def test_every_sample_is_well(
    session: psycopg.Connection, primary: str, kind: Kind, suite: str
) -> None:
    make(session, kind, values=False)
    session.execute(f"SET colcrypt.algorithm = '{suite}'")
    for sample in kind.samples:
        session.execute(f"INSERT INTO t VALUES (1, {sample.literal}), (2, NULL)")
    assert verified(session) == [(primary, suite, len(kind.samples), 0, None, None)]


@every_kind
def test_where_there_is_no_value_there_is_no_row(
    session: psycopg.Connection, kind: Kind
) -> None:
    make(session, kind, values=False)
    assert verified(session) == []
    session.execute("INSERT INTO t SELECT FROM generate_series(1, 100)")
    assert verified(session) == []
    # Nor where nothing is asked.
    for arguments in ("NULL, 'secret'", "'t', NULL"):
        asked = f"SELECT * FROM colcrypt.verify_column({arguments})"
        assert session.execute(asked).fetchall() == []


def test_there_is_a_row_for_each_key_and_suite(
    session: psycopg.Connection, primary: str
) -> None:
    make(session, TEXT, values=False)
    own = new_key()
    expected: list[Row] = []
    for id, ring in {primary: None, key_id(own): own}.items():
        session.execute(SET_KEY, [ring or ""])
        for count, suite in enumerate(SUITES, 1):
            session.execute(f"SET colcrypt.algorithm = '{suite}'")
            session.execute(
                f"INSERT INTO t SELECT 1, 'v' || i FROM generate_series(1, {count}) i"
            )
            expected.append((id, suite, count, 0, None, None))
    rows = verified(session)
    assert rows == sorted(expected, key=lambda row: row[:2])


@every_kind
def test_large_values_are_opened(
    session: psycopg.Connection, primary: str, kind: Kind
) -> None:
    make(session, kind, values=False)
    large = kind.holding_sql(
        "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 100000) i)"
    )
    session.execute(f"INSERT INTO t SELECT i, {large} FROM generate_series(1, 3) i")
    assert verified(session) == [(primary, DEFAULT_SUITE, 3, 0, None, None)]
    # One bit, somewhere in the middle of the third.
    session.execute(
        "CREATE TABLE damaged AS SELECT decode(translate(substr(ciphertext(secret), 13),"
        " '-_', '+/') || repeat('=', (-length(ciphertext(secret)) % 4 + 4) % 4), 'base64')"
        " AS raw FROM t LIMIT 1"
    )
    raw = bytearray(fetch(session, "SELECT raw FROM damaged"))
    raw[len(raw) // 2] ^= 4
    store(session, kind, bytes(raw), 4)
    at = place(session, "id = 4")
    assert verified(session) == [
        (primary, DEFAULT_SUITE, 3, 1, at, DAMAGED.format(primary))
    ]


# What is not


@every_suite
@every_kind
def test_each_byte_that_was_changed_is_noticed(
    session: psycopg.Connection, primary: str, kind: Kind, suite: str
) -> None:
    session.execute(f"SET colcrypt.algorithm = '{suite}'")
    good = stored(session, kind, kind.canary.literal)
    make(session, kind)
    # Behind the header; of a token behind its version, without which it is none.
    changed = [6, 20, len(good) // 2, len(good) - 17, len(good) - 1]
    for number, offset in enumerate(changed):
        bad = bytearray(good)
        bad[offset] ^= 0x40
        store(session, kind, bytes(bad), number)
    at = place(session, "id = 0")
    reason = DAMAGED.format(primary)
    assert verified(session) == [(primary, suite, 2, len(changed), at, reason)]


@every_kind
def test_values_of_a_key_that_is_not_there_are_told(
    session: psycopg.Connection, primary: str, kind: Kind
) -> None:
    make(session, kind)
    own = new_key()
    session.execute(SET_KEY, [own])
    session.execute(f"INSERT INTO t SELECT 1, {kind.canary.literal}")
    session.execute(f"INSERT INTO t SELECT 2, {kind.canary.literal}")
    session.execute("RESET colcrypt.key")
    missing = (
        key_id(own),
        DEFAULT_SUITE,
        0,
        2,
        place(session, "id = 1"),
        MISSING.format(key_id(own)),
    )
    assert sorted(verified(session)) == sorted(
        [(primary, DEFAULT_SUITE, 2, 0, None, None), missing]
    )
    # A placeholder is for who looks, not for who asks whether all is well.
    session.execute("SET colcrypt.undecryptable = 'placeholder'")
    assert missing in verified(session)
    session.execute(SET_KEY, [own])
    assert (key_id(own), DEFAULT_SUITE, 2, 0, None, None) in verified(session)


MALFORMED_VALUES = {
    "nothing": b"",
    "a byte": b"\x01",
    "half a header": b"\x01\x02\x03",
    "a header": b"\x01\x02\x03\x04\x05",
    "an unknown format": b"\x7f" + bytes(100),
    "zeros": bytes(100),
    "plaintext": CANARY.encode() * 10,
    "text form": (PREFIX + CANARY).encode() * 5,
}


@pytest.mark.parametrize("raw", MALFORMED_VALUES.values(), ids=list(MALFORMED_VALUES))
@every_kind
def test_what_is_no_value_is_told_without_key_and_suite(
    session: psycopg.Connection, primary: str, kind: Kind, raw: bytes
) -> None:
    make(session, kind)
    store(session, kind, raw)
    bad = (None, None, 0, 1, place(session, "id = 1"), MALFORMED)
    assert bad in verified(session)
    assert (primary, DEFAULT_SUITE, 2, 0, None, None) in verified(session)


@every_suite
@every_pair_of_kinds
def test_a_value_of_another_type_is_told(
    session: psycopg.Connection, primary: str, kind: Kind, other: Kind, suite: str
) -> None:
    make(session, kind, values=False)
    session.execute(f"SET colcrypt.algorithm = '{suite}'")
    value = other.holding(f"{CANARY}é")
    sealed = f"encrypt({value.literal}::{other.plain})"
    session.execute(f"INSERT INTO t SELECT 1, {sealed}::{kind.type}")
    at = "(0,1)"
    if suite != "fernet":
        # Bound to its type.
        reason = DAMAGED.format(primary)
        assert verified(session) == [(primary, suite, 0, 1, at, reason)]
    elif kind == JSONB:
        # A token is bound to its key only: what matters is what is in it.
        assert verified(session) == [(primary, suite, 0, 1, at, NOT_JSON)]
    else:
        assert verified(session) == [(primary, suite, 1, 0, None, None)]


@pytest.mark.parametrize("kind", [TEXT, JSONB], ids=str)
@pytest.mark.parametrize(
    "plain", [b"\xff\xfe", b"a\0b", b'"\xed\xa0\x80"', CANARY.encode() + b"\xc3"]
)
def test_a_token_that_holds_no_text_is_told(
    session: psycopg.Connection, primary: str, fernet: Fernet, kind: Kind, plain: bytes
) -> None:
    make(session, kind, values=False)
    token = fernet.encrypt(plain).decode()
    session.execute(
        f"INSERT INTO t SELECT 1, from_fernet_bytea(%s)::{kind.type}", [token]
    )
    assert verified(session) == [(primary, "fernet", 0, 1, "(0,1)", NOT_TEXT)]


@pytest.mark.parametrize(
    "plain",
    [
        CANARY.encode(),
        b"",
        b" ",
        f'{{"{CANARY}":'.encode(),
        f'"{CANARY}" x'.encode(),
        f'"{CANARY}\\u0000"'.encode(),
        rf'"{CANARY}\ud800"'.encode(),
        f'["{CANARY}", 1e1000000]'.encode(),
        f'["{CANARY}",]'.encode(),
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=lambda plain: repr(plain[:20]),
)
def test_a_token_that_holds_no_document_is_told(
    session: psycopg.Connection, primary: str, fernet: Fernet, plain: bytes
) -> None:
    make(session, JSONB)
    token = fernet.encrypt(plain).decode()
    session.execute(
        "INSERT INTO t SELECT 1, from_fernet_bytea(%s)::encrypted_jsonb", [token]
    )
    session.execute(
        "INSERT INTO t SELECT 2, from_fernet_jsonb(%s)",
        [fernet.encrypt(b' {"a" : 1.50 } ').decode()],
    )
    rows = verified(session)
    assert (primary, DEFAULT_SUITE, 2, 0, None, None) in rows
    told = [row for row in rows if row[1] == "fernet"][0]
    assert told[:5] == (primary, "fernet", 1, 1, place(session, "id = 1"))
    assert told[5] == (TOO_DEEP if len(plain) > 50_000 else NOT_JSON)


def test_the_first_failure_and_its_reason_belong_together(
    session: psycopg.Connection, primary: str, fernet: Fernet
) -> None:
    make(session, JSONB, values=False)
    session.execute("SET colcrypt.algorithm = 'fernet'")
    session.execute("INSERT INTO t SELECT 0, '1' FROM generate_series(1, 500)")
    no_text = fernet.encrypt(b"\xff").decode()
    no_json = fernet.encrypt(b"x").decode()
    insert = "INSERT INTO t SELECT %s, from_fernet_bytea(%s)::encrypted_jsonb"
    session.execute(insert, [1, no_text])
    session.execute(insert, [2, no_json])
    session.execute("INSERT INTO t SELECT 0, '1' FROM generate_series(1, 500)")
    session.execute(insert, [3, no_text])
    session.execute(insert, [4, no_json])
    for id, reason in {1: NOT_TEXT, 2: NOT_JSON, 3: NOT_TEXT, 4: NOT_JSON}.items():
        rows = verified(session)
        at = place(session, f"id = {id}")
        assert rows == [(primary, "fernet", 1000, 5 - id, at, reason)]
        session.execute("DELETE FROM t WHERE id = %s", [id])
    assert verified(session) == [(primary, "fernet", 1000, 0, None, None)]


# Keys


@every_kind
def test_values_under_a_managed_key_and_a_destroyed_one(
    session: psycopg.Connection, kind: Kind
) -> None:
    name = f"doomed {kind}"
    managed = fetch(session, "SELECT colcrypt.create_key(%s)", name)
    session.execute(f"CREATE TABLE t (id int, secret {kind.type}('{name}'))")
    session.execute(f"INSERT INTO t VALUES (1, {kind.canary.literal})")
    second = fetch(session, "SELECT colcrypt.rotate_key(%s)", name)
    session.execute(f"INSERT INTO t VALUES (2, {kind.canary.literal})")
    well = [(id, DEFAULT_SUITE, 1, 0, None, None) for id in (managed, second)]
    assert verified(session) == sorted(well)
    session.execute("SELECT colcrypt.shred_key(%s)", [name])
    rows = verified(session)
    assert sorted(rows) == sorted(
        (id, DEFAULT_SUITE, 0, 1, f"(0,{n})", f"encryption key {id} was destroyed")
        for n, id in enumerate((managed, second), 1)
    )


def test_values_under_a_key_that_is_not_granted(
    home: Database, session: psycopg.Connection, primary: str
) -> None:
    closed = fetch(session, "SELECT colcrypt.create_key('closed')")
    session.execute("SELECT colcrypt.grant_key('closed', 'pg_monitor')")
    make(session, TEXT)
    session.execute("SET colcrypt.write_key = 'closed'")
    session.execute(f"INSERT INTO t VALUES (1, '{CANARY}')")
    session.execute(f"GRANT SELECT ON t TO {READER}")
    denied = f"permission denied for encryption key {closed}"
    with home.connect(user=READER) as reader:
        assert sorted(verified(reader)) == sorted(
            [
                (primary, DEFAULT_SUITE, 2, 0, None, None),
                (closed, DEFAULT_SUITE, 0, 1, place(session, "id = 1"), denied),
            ]
        )
        session.execute(f"SELECT colcrypt.grant_key('closed', '{READER}')")
        assert (closed, DEFAULT_SUITE, 1, 0, None, None) in verified(reader)
        session.execute(f"SELECT colcrypt.revoke_key('closed', '{READER}')")


def test_values_under_a_managed_key_that_cannot_be_unwrapped(db: Database) -> None:
    with db.connect(prepare_threshold=None) as session:
        damaged = fetch(session, "SELECT colcrypt.create_key('damaged')")
        session.execute("SELECT encrypt('x'::text)")
        ring = new_key()
        make(session, TEXT, values=False)
        session.execute("SET colcrypt.write_key = 'damaged'")
        session.execute(f"INSERT INTO t VALUES (1, '{CANARY}')")
        session.execute("RESET colcrypt.write_key")
        before = fetch(
            session, "SELECT wrapped FROM colcrypt.key WHERE name = 'damaged'"
        )
        session.execute(
            "UPDATE colcrypt.key SET wrapped = set_byte(wrapped, 30, 255 -"
            " get_byte(wrapped, 30)) WHERE name = 'damaged'"
        )
        row = verified(session)[0]
        assert row[:5] == (damaged, DEFAULT_SUITE, 0, 1, "(0,1)")
        assert "could not be unwrapped" in str(row[5])
        session.execute(
            "UPDATE colcrypt.key SET wrapped = %s, wrapped_by = %s WHERE name = 'damaged'",
            [before, key_id(ring)],
        )
        row = verified(session)[0]
        assert row[:4] == (damaged, DEFAULT_SUITE, 0, 1)
        assert f"is wrapped by key {key_id(ring)}" in str(row[5])


def test_without_a_ring_nothing_can_be_read(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    with cluster.connect(prepare_threshold=None) as session:
        own = new_key()
        session.execute(SET_KEY, [own])
        make(session, TEXT)
        session.execute("RESET colcrypt.key")
        reason = "no encryption key is configured"
        told = [(key_id(own), DEFAULT_SUITE, 0, 2, "(0,1)", reason)]
        assert verified(session) == told
        # A new session, too, that has never had one.
        with cluster.connect(prepare_threshold=None) as another:
            assert verified(another) == told


# Tables


def test_all_partitions_and_children_are_read(
    session: psycopg.Connection, primary: str
) -> None:
    session.execute(
        "CREATE TABLE p (id int, secret encrypted_text) PARTITION BY LIST (id);"
        "CREATE TABLE a PARTITION OF p FOR VALUES IN (1);"
        "CREATE TABLE b (secret encrypted_text, junk int, id int);"
        "ALTER TABLE b DROP junk; ALTER TABLE p ATTACH PARTITION b DEFAULT;"
        "INSERT INTO p SELECT i, 'v' FROM generate_series(1, 5) i;"
        "INSERT INTO p VALUES (9, '\\x00'::bytea::encrypted_text);"
        "CREATE TABLE h (id int, secret encrypted_text);"
        "CREATE TABLE c () INHERITS (h); INSERT INTO c VALUES (1, 'v');"
        "INSERT INTO h VALUES (1, 'v')"
    )
    well = (primary, DEFAULT_SUITE, 5, 0, None, None)
    bad = (None, None, 0, 1, "(0,5)", MALFORMED)
    assert verified(session, "p") == [well, bad]
    assert verified(session, "a") == [(primary, DEFAULT_SUITE, 1, 0, None, None)]
    assert verified(session, "b") == [
        (primary, DEFAULT_SUITE, 4, 0, None, None),
        bad,
    ]
    assert verified(session, "h") == [(primary, DEFAULT_SUITE, 2, 0, None, None)]


def test_places_that_are_told_are_where_the_values_are(
    session: psycopg.Connection,
) -> None:
    make(session, TEXT, values=False)
    session.execute("INSERT INTO t SELECT i, 'v' FROM generate_series(1, 1000) i")
    session.execute(
        "UPDATE t SET secret = '\\x01'::bytea::encrypted_text WHERE id > 997"
    )
    first = verified(session)[1][4]
    found = f"SELECT id FROM t WHERE ctid = '{first}'"
    assert fetch(session, found) == 998
    # Whoever repairs one is told the next.
    session.execute(f"DELETE FROM t WHERE ctid = '{first}'")
    assert verified(session)[1][3:5] == (2, place(session, "id = 999"))


@pytest.mark.parametrize(
    "definition",
    [
        "CREATE UNLOGGED TABLE t (id int, secret encrypted_text)",
        "CREATE TEMP TABLE t (id int, secret encrypted_text)",
        "CREATE TABLE t (a int, id int, secret encrypted_text); ALTER TABLE t DROP a",
        "CREATE DOMAIN d AS encrypted_text; CREATE TABLE t (id int, secret d)",
        "CREATE TABLE t (id int, secret encrypted_text) WITH (fillfactor = 10)",
        'CREATE TABLE "T" (id int, secret encrypted_text); ALTER TABLE "T" RENAME TO t',
    ],
)
def test_tables_of_every_kind_are_read(
    session: psycopg.Connection, primary: str, definition: str
) -> None:
    session.execute(definition + "; INSERT INTO t (id, secret) VALUES (1, 'v')")
    assert verified(session) == [(primary, DEFAULT_SUITE, 1, 0, None, None)]


def test_a_materialized_view_is_read(session: psycopg.Connection, primary: str) -> None:
    make(session, TEXT)
    session.execute("CREATE MATERIALIZED VIEW m AS SELECT secret FROM t")
    assert verified(session, "m") == [(primary, DEFAULT_SUITE, 2, 0, None, None)]


NOT_COLUMNS = {
    "'v', 'secret'": "42809",
    "'s', 'last_value'": "42809",
    "'i', 'secret'": "42809",
    "'row_type', 'secret'": "42809",
    "'t', 'nothing'": "42703",
    "'t', 'ctid'": "42703",
    "'t', 'gone'": "42703",
    "'t', 'id'": "42804",
    "'t', 'plain'": "42804",
    "'t', 'list'": "42804",
    "'t', 'whole'": "42804",
    "0, 'secret'": "42P01",
    "4000000000, 'secret'": "42P01",
    "'pg_class', 'relname'": "42804",
}


@pytest.mark.parametrize(("arguments", "sqlstate"), NOT_COLUMNS.items())
def test_what_is_no_encrypted_column_is_refused(
    session: psycopg.Connection, arguments: str, sqlstate: str
) -> None:
    session.execute(
        "CREATE TYPE row_type AS (secret encrypted_text);"
        "CREATE TABLE t (id int, secret encrypted_text, plain text, gone encrypted_text,"
        "  list encrypted_text[], whole row_type);"
        "ALTER TABLE t DROP gone; CREATE VIEW v AS SELECT * FROM t;"
        "CREATE SEQUENCE s; CREATE INDEX i ON t (secret)"
    )
    with pytest.raises(psycopg.Error) as refused:
        session.execute(f"SELECT colcrypt.verify_column({arguments})")
    assert refused.value.sqlstate == sqlstate


@pytest.mark.parametrize(
    "name", ["Größe", "select", 'a"b', "a'b", "%s", "x y", "v", "place", "rows", "s"]
)
def test_names_are_taken_for_what_they_are(
    session: psycopg.Connection, primary: str, name: str
) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    session.execute(
        f"CREATE SCHEMA IF NOT EXISTS {quoted};"
        f"CREATE TABLE {quoted}.{quoted} ({quoted} encrypted_text);"
        f"INSERT INTO {quoted}.{quoted} VALUES ('x')"
    )
    try:
        rows = session.execute(
            "SELECT * FROM colcrypt.verify_column(%s::text::regclass, %s)",
            [f"{quoted}.{quoted}", name],
        ).fetchall()
        assert rows == [(primary, DEFAULT_SUITE, 1, 0, None, None)]
    finally:
        session.execute("SET client_min_messages = error")
        session.execute(f"DROP SCHEMA {quoted} CASCADE")


@pytest.fixture
def latin(server: Cluster) -> Iterator[Database]:
    server.psql("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    home = Database(server, "latin")
    home.psql("CREATE EXTENSION colcrypt")
    yield home
    server.psql("DROP DATABASE latin WITH (FORCE)")


def test_names_in_another_encoding(latin: Database) -> None:
    with latin.connect(client_encoding="UTF8", prepare_threshold=None) as session:
        session.execute(
            'CREATE TABLE "tö" ("Spaß" encrypted_text);'
            "INSERT INTO \"tö\" VALUES ('Grüße')"
        )
        told = "SELECT ok FROM colcrypt.verify_column('\"tö\"', 'Spaß')"
        assert fetch(session, told) == 1


@pytest.mark.xfail(strict=True, reason="names are taken for UTF-8 in every database")
def test_messages_have_names_in_another_encoding(latin: Database) -> None:
    with latin.connect(client_encoding="UTF8", prepare_threshold=None) as session:
        session.execute('CREATE TABLE "tüte" ("Spaß" encrypted_text)')
        with pytest.raises(UndefinedColumn, match='"Spaß2" of relation "tüte"'):
            session.execute("SELECT colcrypt.verify_column('\"tüte\"', 'Spaß2')")


@pytest.mark.parametrize("kind", [TEXT, JSONB], ids=str)
def test_a_value_that_the_encoding_cannot_show_is_told(
    latin: Database, home: Database, kind: Kind
) -> None:
    literal = {"text": f"'{CANARY} 🔑'", "jsonb": f"""'["{CANARY} 🔑"]'"""}[kind.plain]
    with home.connect() as session:
        form = fetch(session, f"SELECT ciphertext(encrypt({literal}::{kind.plain}))")
    with latin.connect(client_encoding="UTF8", prepare_threshold=None) as session:
        session.execute(
            f"CREATE TABLE t (id int, secret {kind.type}); INSERT INTO t"
            f" VALUES (1, {kind.one.literal})"
        )
        # It came in while its key was not there; or was restored.
        raw = decryptor.stored_bytes(form)
        session.execute(RAW_CASTS)
        store(session, kind, raw, 2)
        [row] = verified(session)
        assert row[2:4] == (1, 1)
        assert row[5] == (
            "decrypted value has a character that the database encoding cannot represent"
        )


# Who may ask


@pytest.mark.parametrize("access", ["masked", "ciphertext"])
@every_kind
def test_a_masked_session_may_not_ask(
    session: psycopg.Connection, kind: Kind, access: str
) -> None:
    # What fails and what does not would tell it which values are genuine.
    make(session, kind, values=False)
    session.execute(f"SET colcrypt.access = '{access}'")
    with pytest.raises(InsufficientPrivilege, match=access):
        verified(session)
    session.execute(f"INSERT INTO t VALUES (1, {kind.canary.literal})")
    with pytest.raises(InsufficientPrivilege, match=access):
        session.execute("SELECT (colcrypt.verify_value(secret)).failure FROM t")


def test_only_who_may_read_the_rows_may_ask(
    home: Database, session: psycopg.Connection, primary: str
) -> None:
    make(session, TEXT)
    with home.connect(user=READER) as reader:
        with pytest.raises(InsufficientPrivilege):
            verified(reader)
        # The place of a row is a column as well.
        session.execute(f"GRANT SELECT (secret) ON t TO {READER}")
        with pytest.raises(InsufficientPrivilege):
            verified(reader)
        session.execute(f"GRANT SELECT ON t TO {READER}")
        assert verified(reader) == [(primary, DEFAULT_SUITE, 2, 0, None, None)]


def test_who_does_not_see_all_rows_is_told_so(
    home: Database, session: psycopg.Connection, primary: str
) -> None:
    make(session, TEXT)
    session.execute(
        f"GRANT SELECT ON t TO {READER}; ALTER TABLE t ENABLE ROW LEVEL SECURITY;"
        "CREATE POLICY part ON t USING (id = 10)"
    )
    well = [(primary, DEFAULT_SUITE, 2, 0, None, None)]
    with home.connect(user=READER) as reader:
        with pytest.raises(InsufficientPrivilege, match="row-level security"):
            verified(reader)
        # An owner sees all, until he forces it upon himself.
        session.execute(f"ALTER TABLE t OWNER TO {READER}")
        assert verified(reader) == well
        session.execute("ALTER TABLE t FORCE ROW LEVEL SECURITY")
        with pytest.raises(InsufficientPrivilege, match="row-level security"):
            verified(reader)
        session.execute(f"ALTER ROLE {READER} BYPASSRLS")
        try:
            assert verified(reader) == well
        finally:
            session.execute(f"ALTER ROLE {READER} NOBYPASSRLS")
    # A superuser does, too.
    assert verified(session) == well


def test_what_the_search_path_leads_to_is_not_called(
    session: psycopg.Connection, primary: str
) -> None:
    make(session, TEXT)
    session.execute(
        "CREATE FUNCTION no() RETURNS int8 LANGUAGE plpgsql"
        "  AS $$BEGIN RAISE 'evil was called'; END$$;"
        "CREATE FUNCTION count() RETURNS int8 LANGUAGE sql AS 'SELECT no()';"
        "CREATE FUNCTION sum(int8) RETURNS int8 LANGUAGE sql AS 'SELECT no()';"
        "CREATE FUNCTION min(tid) RETURNS text LANGUAGE sql AS 'SELECT no()::text';"
        "CREATE FUNCTION array_agg(text) RETURNS text LANGUAGE sql AS 'SELECT no()::text';"
        "CREATE FUNCTION same(text, text) RETURNS bool LANGUAGE sql AS 'SELECT no() = 1';"
        "CREATE OPERATOR = (FUNCTION = same, LEFTARG = text, RIGHTARG = text);"
        "CREATE OPERATOR < (FUNCTION = same, LEFTARG = text, RIGHTARG = text);"
        "CREATE DOMAIN int8 AS pg_catalog.int8 CHECK (no() = 1);"
        "CREATE TABLE failure (rows int)"
    )
    session.execute("SET search_path = work, pg_catalog, public")
    rows = session.execute(VERIFY).fetchall()
    assert rows == [(primary, DEFAULT_SUITE, 2, 0, None, None)]


# How it runs


def test_it_takes_no_lock_that_disturbs_and_writes_nothing(
    home: Database, session: psycopg.Connection, primary: str
) -> None:
    make(session, TEXT)
    session.execute("BEGIN; UPDATE t SET secret = 'new'; DELETE FROM t WHERE id = 10")
    with home.connect(prepare_threshold=None) as other:
        other.execute(
            "SET lock_timeout = '5s'; BEGIN ISOLATION LEVEL SERIALIZABLE," " READ ONLY"
        )
        well = [(primary, DEFAULT_SUITE, 2, 0, None, None)]
        assert verified(other) == well
        session.execute("COMMIT")
        # As of its snapshot.
        assert verified(other) == well
        other.execute("COMMIT")
        assert verified(other)[0][2] == 2


def test_another_sessions_temporary_table_is_out_of_reach(
    home: Database, session: psycopg.Connection
) -> None:
    session.execute("CREATE TEMP TABLE t AS SELECT encrypt('x'::text) AS secret")
    oid = fetch(session, "SELECT 't'::regclass::oid::bigint")
    with home.connect() as other, pytest.raises(FeatureNotSupported):
        other.execute("SELECT colcrypt.verify_column(%s::oid, 'secret')", [oid])


@pytest.fixture
def parallel(session: psycopg.Connection) -> list[str]:
    """Has the planner use workers wherever it may; the plans of what is run."""
    plans: list[str] = []
    session.add_notice_handler(lambda notice: plans.append(str(notice.message_primary)))
    session.execute(
        "LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0;"
        "SET auto_explain.log_analyze = on; SET auto_explain.log_nested_statements = on;"
        "SET client_min_messages = log; SET parallel_setup_cost = 0;"
        "SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;"
        "SET max_parallel_workers_per_gather = 2"
    )
    return plans


@every_kind
def test_workers_tell_the_same(
    session: psycopg.Connection, parallel: list[str], primary: str, kind: Kind
) -> None:
    make(session, kind, values=False)
    managed = fetch(session, "SELECT colcrypt.create_key(%s)", f"parallel {kind}")
    own, lost = new_key(), new_key()
    value = kind.holding_sql("'v' || i")
    insert = f"INSERT INTO t SELECT i, {value} FROM generate_series(1, 2000) i"
    session.execute(insert)
    session.execute(f"SET colcrypt.write_key = 'parallel {kind}'")
    session.execute(insert)
    session.execute("RESET colcrypt.write_key")
    session.execute(SET_KEY, [lost])
    session.execute(insert)
    session.execute(SET_KEY, [own])
    session.execute(insert)
    store(session, kind, CANARY.encode(), 5000)
    store(session, kind, CANARY.encode(), 5001)
    of_lost = f"(colcrypt.inspect(secret)).key_id = '{key_id(lost)}'"
    first = place(session, f"id = 1 AND {of_lost}")
    bad = place(session, "id = 5000")
    del parallel[:]
    rows = verified(session)
    launched = [plan for plan in parallel if "Workers Launched" in plan]
    assert launched and "verify_value" in launched[0]
    missing = MISSING.format(key_id(lost))
    expected: list[Row] = [
        (primary, DEFAULT_SUITE, 2000, 0, None, None),
        (managed, DEFAULT_SUITE, 2000, 0, None, None),
        (key_id(own), DEFAULT_SUITE, 2000, 0, None, None),
        (key_id(lost), DEFAULT_SUITE, 0, 2000, first, missing),
    ]
    assert rows == [
        *sorted(expected, key=lambda row: str(row[0])),
        (None, None, 0, 2, bad, MALFORMED),
    ]
    session.execute("SELECT colcrypt.shred_key(%s)", [f"parallel {kind}"])


def test_a_cancel_is_no_failure_of_a_value(
    session: psycopg.Connection, fernet: Fernet
) -> None:
    # Documents that are foreign are parsed, in parts of PostgreSQL that can be cancelled.
    make(session, JSONB, values=False)
    document = ("[" + ",".join(['{"a":  1.50}'] * 100_000) + "]").encode()
    session.execute(
        "INSERT INTO t SELECT 1, from_fernet_jsonb(%s)",
        [fernet.encrypt(document).decode()],
    )
    for _ in range(6):
        session.execute("INSERT INTO t SELECT * FROM t")
    session.execute("SET statement_timeout = '200ms'")
    with pytest.raises(QueryCanceled):
        verified(session)


def test_failures_are_not_logged_with_values(
    session: psycopg.Connection, server: Cluster, fernet: Fernet
) -> None:
    make(session, JSONB, values=False)
    tokens = [fernet.encrypt(f"{CANARY} is no document".encode()).decode()] * 2
    for token in tokens:
        session.execute(
            "INSERT INTO t SELECT 1, from_fernet_bytea(%s)::encrypted_jsonb", [token]
        )
    store(session, JSONB, CANARY.encode(), 3)
    start = len(server.log())
    session.execute("SET colcrypt.audit_log = 'access'; SET log_min_messages = debug1")
    assert sum(row[3] for row in verified(session)) == 3
    log = server.log()[start:]
    for form in (*CANARY_FORMS, PREFIX, tokens[0]):
        assert form not in log


def test_a_function_around_it_asks_with_its_owners_rights(
    home: Database, session: psycopg.Connection, primary: str
) -> None:
    make(session, TEXT)
    session.execute(
        "CREATE FUNCTION report() RETURNS SETOF record LANGUAGE sql SECURITY DEFINER"
        f" SET search_path = work AS $$ {VERIFY} $$; GRANT EXECUTE ON FUNCTION report()"
        f" TO {READER}"
    )
    with home.connect(user=READER) as reader:
        with pytest.raises(InsufficientPrivilege):
            verified(reader)
        asked = (
            "SELECT key_id, ok FROM report() AS (key_id text, suite text, ok bigint,"
        )
        asked += " failed bigint, first_failure tid, reason text)"
        assert reader.execute(asked).fetchall() == [(primary, 2)]
