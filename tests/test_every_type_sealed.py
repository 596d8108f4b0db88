"""Values of each encrypted type in every suite: what opens them, here and elsewhere, what
takes them in, and that none is changed, or passes as one of another type, unnoticed."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator
from typing import Any

import decryptor
import psycopg
import pytest
from cryptography.fernet import Fernet
from psycopg.errors import (
    DataCorrupted,
    InsufficientPrivilege,
    InvalidParameterValue,
    InvalidTextRepresentation,
    ObjectNotInPrerequisiteState,
    StatementTooComplex,
)

from harness import Cluster, Database, fetch, key_id, new_key
from kinds import (
    CANARY,
    CANARY_FORMS,
    KINDS,
    PREFIX,
    Kind,
    every_kind,
    every_pair_of_kinds,
)
from test_every_type_io import column

SUITES = ("xaes-256-gcm", "aes-256-gcm", "fernet", "envelope")
SET_KEY = "SELECT set_config('colcrypt.key', %s, false)"
# How a reader comes by a value, over the column `secret`; each of them needs the key.
READINGS = {
    "output": "SELECT secret FROM t",
    "cast": "SELECT secret::{plain} FROM t",
    "text": "SELECT secret::text FROM t",
    "function": "SELECT decrypt(secret) FROM t",
    "send": "SELECT {type}_send(secret) FROM t",
    "COPY": "COPY t TO '/dev/null'",
    "binary COPY": "COPY t TO '/dev/null' (FORMAT binary)",
    "comparison": "SELECT * FROM t WHERE secret = {literal}",
    "comparison with plain": "SELECT * FROM t WHERE secret = {literal}::{plain}",
    "grouping": "SELECT count(*) FROM (SELECT DISTINCT secret FROM t) AS s",
    "sorting": "SELECT 1 FROM (TABLE t UNION ALL TABLE t) AS t ORDER BY secret",
    "hash index": "CREATE INDEX ON t USING hash (secret)",
    "json": "SELECT to_json(secret) FROM t",
    "array": "SELECT array_agg(secret)::text FROM t",
    "row": "SELECT t::text FROM t",
}

every_suite = pytest.mark.parametrize("suite", SUITES)
# A Fernet token is bound to its key only.
bound_suites = pytest.mark.parametrize("suite", [s for s in SUITES if s != "fernet"])


@pytest.fixture(scope="module")
def home(server: Cluster) -> Iterator[Database]:
    """A database for all of these tests: each has the schema of its path to itself."""
    server.psql(
        "CREATE DATABASE every_type_sealed TEMPLATE with_colcrypt;"
        "ALTER DATABASE every_type_sealed SET search_path = work, public"
    )
    home = Database(server, "every_type_sealed")
    # As if the bytes of one type's value had got into a column of another's.
    for kind, other in itertools.permutations(KINDS, 2):
        home.psql(f"CREATE CAST ({kind.type} AS {other.type}) WITHOUT FUNCTION")
    yield home
    server.psql("DROP DATABASE every_type_sealed WITH (FORCE)")


@pytest.fixture
def session(home: Database) -> Iterator[psycopg.Connection]:
    with home.connect(prepare_threshold=None) as session:
        session.execute("CREATE SCHEMA work; SELECT encrypt('x'::text)")
        yield session
        session.execute("SET client_min_messages = warning; DROP SCHEMA work CASCADE")


@pytest.fixture(scope="module")
def ring(server: Cluster) -> list[bytes]:
    text = (server.dir / "ring.keys").read_text()
    return [decryptor.ring_key(key) for key in text.split(",")]


@pytest.fixture(scope="module")
def fernet(ring: list[bytes]) -> Fernet:
    """Python's own library, with the server's key."""
    return Fernet(base64.urlsafe_b64encode(ring[0]))


def text_form(stored: bytes | bytearray) -> str:
    return PREFIX + base64.urlsafe_b64encode(stored).decode().rstrip("=")


def fill(session: psycopg.Connection, kind: Kind, suite: str) -> None:
    """A table of all samples under the suite."""
    session.execute(f"CREATE TABLE t (n serial, secret {kind.type})")
    session.execute(f"SET colcrypt.algorithm = '{suite}'")
    for sample in kind.samples:
        session.execute(f"INSERT INTO t (secret) VALUES ({sample.literal})")
    session.execute("RESET colcrypt.algorithm")


def assert_quotes_nothing(error: psycopg.Error) -> None:
    for form in (*CANARY_FORMS, PREFIX):
        assert form not in str(error.diag.message_primary)
        assert form not in str(error.diag.message_detail)
        assert form not in str(error.diag.context)
    assert CANARY not in str(error.diag.message_hint)


# There and back


@every_suite
@every_kind
def test_every_sample_is_opened_in_every_suite_and_without_colcrypt(
    session: psycopg.Connection, ring: list[bytes], kind: Kind, suite: str
) -> None:
    fill(session, kind, suite)
    assert set(column(session, "SELECT (colcrypt.inspect(secret)).suite FROM t")) == {
        suite
    }
    shown = column(session, "SELECT secret FROM t ORDER BY n")
    assert shown == [sample.text for sample in kind.samples]
    for function in ("decrypt", "try_decrypt"):
        values = column(session, f"SELECT {function}(secret) FROM t ORDER BY n")
        assert values == [sample.value for sample in kind.samples]
        typed = f"SELECT DISTINCT pg_typeof({function}(secret))::text FROM t"
        assert fetch(session, typed) == kind.plain
    forms = column(session, "SELECT ciphertext(secret) FROM t ORDER BY n")
    opened = [decryptor.decrypt_bytes(form, ring, kind.plain) for form in forms]
    assert opened == [sample.sealed for sample in kind.samples]
    again = kind.from_ciphertext("ciphertext(secret)")
    same = f"SELECT every(ciphertext({again}) = ciphertext(secret)) FROM t"
    assert fetch(session, same) is True


@every_suite
@every_kind
def test_inspect_tells_what_is_stored_without_a_key(
    session: psycopg.Connection, server: Cluster, kind: Kind, suite: str
) -> None:
    fill(session, kind, suite)
    session.execute(SET_KEY, [new_key()])
    session.execute("SET colcrypt.undecryptable = 'placeholder'")
    rows = session.execute(
        "SELECT i.format, i.suite, i.key_id, i.plaintext_bytes, i.stored_bytes,"
        " i.sealed_at IS NOT NULL FROM t, colcrypt.inspect(secret) AS i ORDER BY n"
    ).fetchall()
    own = key_id((server.dir / "ring.keys").read_text())
    forms = column(session, "SELECT ciphertext(secret) FROM t ORDER BY n")
    for row, sample, form in zip(rows, kind.samples, forms, strict=True):
        length = None if suite == "fernet" else len(sample.sealed)
        stored = len(decryptor.stored_bytes(form))
        assert row == (1, suite, own, length, stored, suite == "fernet")


@every_kind
def test_everyday_functions_give_null_for_null_and_their_own_type(
    session: psycopg.Connection, kind: Kind
) -> None:
    null, plain_null = f"NULL::{kind.type}", f"NULL::{kind.plain}"
    for call in (
        f"encrypt({plain_null})",
        f"encrypt({plain_null}, 'pii')",
        f"decrypt({null})",
        f"try_decrypt({null})",
        f"ciphertext({null})",
        f"fernet_token({null})",
        f"colcrypt.inspect({null})",
        kind.from_ciphertext("NULL"),
        kind.from_fernet("NULL"),
    ):
        assert fetch(session, f"SELECT {call} IS NULL") is True, call
    literal = kind.one.literal
    for call in (
        f"encrypt({literal}::{kind.plain})",
        kind.from_ciphertext(f"ciphertext({literal}::{kind.type})"),
    ):
        assert fetch(session, f"SELECT pg_typeof({call})::text") == kind.type
        assert fetch(session, f"SELECT {call}") == kind.one.text
    twice = f"encrypt({literal}::{kind.plain})"
    assert fetch(session, f"SELECT ciphertext({twice}) <> ciphertext({twice})")


@every_kind
def test_an_untyped_call_is_of_text_as_it_was(
    session: psycopg.Connection, kind: Kind
) -> None:
    # Of the functions of one name the one that takes text wins for a literal.
    for call, type_ in {
        "encrypt('x')": "encrypted_text",
        "encrypt('x'::varchar)": "encrypted_text",
        "decrypt(encrypt('x'))": "text",
        "ciphertext('x')": "text",
    }.items():
        assert fetch(session, f"SELECT pg_typeof({call})::text") == type_
    typed = f"SELECT pg_typeof(encrypt(secret))::text FROM (SELECT {kind.one.literal}::{kind.plain}) AS s (secret)"
    assert fetch(session, typed) == kind.type


# Fernet


@every_kind
def test_tokens_open_with_pythons_library_and_come_back(
    session: psycopg.Connection, fernet: Fernet, kind: Kind
) -> None:
    fill(session, kind, "fernet")
    tokens = column(session, "SELECT fernet_token(secret) FROM t ORDER BY n")
    assert [fernet.decrypt(t) for t in tokens] == [s.sealed for s in kind.samples]
    for token, sample in zip(tokens, kind.samples, strict=True):
        call = kind.from_fernet("%s")
        row = session.execute(
            f"SELECT s::text, fernet_token(s) FROM (SELECT {call} OFFSET 0) AS x (s)",
            [token],
        ).fetchone()
        plain_text = f"SELECT {sample.literal}::{kind.plain}::text"
        assert row == (fetch(session, plain_text), token)


@every_kind
def test_tokens_of_pythons_library_are_taken_in(
    session: psycopg.Connection, fernet: Fernet, ring: list[bytes], kind: Kind
) -> None:
    session.execute(f"CREATE TABLE t (n serial, secret {kind.type})")
    insert = f"INSERT INTO t (secret) VALUES ({kind.from_fernet('%s')})"
    for sample in kind.samples:
        session.execute(insert, [fernet.encrypt(sample.sealed).decode()])
    assert column(session, "SELECT secret FROM t ORDER BY n") == [
        sample.text for sample in kind.samples
    ]
    values = column(session, f"SELECT secret::{kind.plain} FROM t ORDER BY n")
    assert values == [sample.value for sample in kind.samples]
    for place, sample in enumerate(kind.samples, 1):
        found = f"SELECT n FROM t WHERE secret = {sample.literal}"
        assert column(session, found) == [place]


# As an application may have written it; what jsonb makes of each.
FOREIGN = {
    '{"b":1,"a":[1,2]}': '{"a": [1, 2], "b": 1}',
    ' {"k" : 1e2 , "k": 1.50}\n': '{"k": 1.50}',
    json.dumps({"é": "🔑"}): '{"é": "🔑"}',
    "\t[ ]\r\n": "[]",
    '"\\u0041"': '"A"',
    "-0": "0",
}


@pytest.mark.parametrize("document", FOREIGN)
def test_a_token_of_json_in_another_form_is_what_jsonb_makes_of_it(
    session: psycopg.Connection, fernet: Fernet, ring: list[bytes], document: str
) -> None:
    token = fernet.encrypt(document.encode()).decode()
    session.execute("CREATE TABLE t (n int, secret encrypted_jsonb)")
    session.execute("INSERT INTO t VALUES (1, from_fernet_jsonb(%s))", [token])
    normal = FOREIGN[document]

    def shown() -> list[Any]:
        row = session.execute(
            "SELECT secret, secret::jsonb::text, secret::json::text, decrypt(secret)::text,"
            " encode(encrypted_jsonb_send(secret), 'escape'), to_jsonb(secret)::text,"
            " secret = %s, secret = %s::jsonb, secret = %s::encrypted_jsonb FROM t",
            [document] * 3,
        ).fetchone()
        return list(row or ())

    binary = fetch(
        session, "SELECT encode(%b::bytea, 'escape')", b"\1" + normal.encode()
    )
    expected = [normal] * 4 + [binary, normal] + [True] * 3
    assert shown() == expected
    # The token stays the one that came in.
    assert fetch(session, "SELECT fernet_token(secret) FROM t") == token
    # Other suites hold the form that jsonb prints.
    assert fetch(session, "SELECT rotate_column('t', 'secret')") == 1
    form = fetch(session, "SELECT ciphertext(secret) FROM t")
    assert decryptor.decrypt(form, ring, "jsonb") == normal
    assert shown() == expected
    inspect = "SELECT (colcrypt.inspect(secret)).plaintext_bytes FROM t"
    assert fetch(session, inspect) == len(normal.encode())


NOT_OF_THE_TYPE = {
    "text": [b"\xff", b"a\0b", b"\xed\xa0\x80"],
    "bytea": [],
    "jsonb": [
        CANARY.encode(),
        b"",
        f'{{"{CANARY}":'.encode(),
        f'"{CANARY}" x'.encode(),
        f'"{CANARY}'.encode() + b'\xff"',
        f'"{CANARY}\\u0000"'.encode(),
        f'"{CANARY}'.encode() + b'\0"',
        f'["{CANARY}", 1e1000000]'.encode(),
    ],
}


@pytest.mark.parametrize("way", ["from_fernet", "from_ciphertext", "input"])
@pytest.mark.parametrize(
    "kind", [k for k in KINDS if NOT_OF_THE_TYPE[k.plain]], ids=str
)
def test_a_token_that_holds_no_value_of_the_type_is_refused(
    session: psycopg.Connection,
    server: Cluster,
    fernet: Fernet,
    ring: list[bytes],
    kind: Kind,
    way: str,
) -> None:
    session.execute(f"CREATE TABLE t (n serial, secret {kind.type})")
    start = len(server.log())
    for content in NOT_OF_THE_TYPE[kind.plain]:
        token = fernet.encrypt(content).decode()
        form = text_form(fernet_value(token, ring))
        sql, given = {
            "from_fernet": (kind.from_fernet("%s"), token),
            "from_ciphertext": (kind.from_ciphertext("%s"), form),
            "input": (f"%t::{kind.type}", form),
        }[way]
        if way == "input":
            session.execute("SET colcrypt.input = 'ciphertext'")
        with pytest.raises(DataCorrupted) as refused:
            session.execute(f"INSERT INTO t (secret) VALUES ({sql})".encode(), [given])
        assert_quotes_nothing(refused.value)
    assert_not_logged(server, start)
    assert fetch(session, "SELECT count(*) FROM t") == 0


COMPARING = {
    "comparison",
    "comparison with plain",
    "grouping",
    "sorting",
    "hash index",
}


def is_no_text(content: bytes) -> bool:
    try:
        return "\0" in content.decode() and not content.startswith(b'"')
    except UnicodeDecodeError:
        return True


def fernet_value(token: str, ring: list[bytes]) -> bytes:
    """The stored bytes of a token under the server's primary."""
    return b"\x03" + decryptor.key_id(ring[0]) + base64.urlsafe_b64decode(token)


def assert_not_logged(server: Cluster, start: int) -> None:
    log = server.log()[start:]
    assert "ERROR:  " in log
    assert not any(form in log for form in CANARY_FORMS)


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize(
    "kind", [k for k in KINDS if NOT_OF_THE_TYPE[k.plain]], ids=str
)
def test_a_token_that_holds_no_value_of_the_type_is_never_shown(
    session: psycopg.Connection,
    server: Cluster,
    fernet: Fernet,
    kind: Kind,
    reading: str,
) -> None:
    session.execute(f"CREATE TABLE t (secret {kind.type})")
    sql = READINGS[reading].format(
        type=kind.type, plain=kind.plain, literal=kind.two.literal
    )
    for content in NOT_OF_THE_TYPE[kind.plain]:
        # Anything is bytes. Moved to where the type is taken for another.
        token = fernet.encrypt(content).decode()
        session.execute("TRUNCATE t")
        session.execute(
            f"INSERT INTO t SELECT from_fernet_bytea(%s)::{kind.type}", [token]
        )
        start = len(server.log())
        if reading in COMPARING and is_no_text(content):
            # What compares bytes needs no text. That shows nothing.
            with session.transaction(force_rollback=True):
                session.execute(sql.encode())
            continue
        with pytest.raises(DataCorrupted) as refused:
            session.execute(sql.encode())
        assert refused.value.sqlstate == "XX001"
        assert_quotes_nothing(refused.value)
        assert_not_logged(server, start)
        assert fetch(session, "SELECT try_decrypt(secret) IS NULL FROM t") is True
        with session.transaction():
            session.execute("SET LOCAL colcrypt.undecryptable = 'placeholder'")
            shown = fetch(session, "SELECT secret FROM t")
            id = fetch(session, "SELECT (colcrypt.inspect(secret)).key_id FROM t")
            assert shown == kind.shown(f"<undecryptable: key {id}>")


@pytest.mark.parametrize(
    "kind", [k for k in KINDS if NOT_OF_THE_TYPE[k.plain]], ids=str
)
def test_a_token_that_holds_no_value_of_the_type_is_not_lost(
    session: psycopg.Connection, fernet: Fernet, kind: Kind
) -> None:
    content = NOT_OF_THE_TYPE[kind.plain][0]
    token = fernet.encrypt(content).decode()
    session.execute(
        f"CREATE TABLE t AS SELECT from_fernet_bytea(%s)::{kind.type} AS secret",
        [token],
    )
    if kind.plain != "text":
        # A text is moved byte by byte; a document is brought into its form.
        with pytest.raises(DataCorrupted) as refused:
            session.execute("SELECT rotate_column('t', 'secret')")
        assert_quotes_nothing(refused.value)
    session.execute("VACUUM FULL t")
    session.execute("ANALYZE t; CREATE TABLE u AS TABLE t")
    assert fetch(session, "SELECT fernet_token(secret) FROM u") == token
    assert fetch(session, "SELECT decrypt(secret::encrypted_bytea) FROM u") == content


@pytest.mark.parametrize("reading", READINGS)
def test_a_token_of_a_document_that_is_nested_too_deep_is_not_shown_and_not_lost(
    session: psycopg.Connection, server: Cluster, fernet: Fernet, reading: str
) -> None:
    token = fernet.encrypt(b"[" * 100_000 + CANARY.encode()).decode()
    start = len(server.log())
    with pytest.raises(StatementTooComplex) as refused:
        session.execute("SELECT from_fernet_jsonb(%s)", [token])
    assert_quotes_nothing(refused.value)
    session.execute(
        "CREATE TABLE t AS SELECT from_fernet_bytea(%s)::encrypted_jsonb AS secret",
        [token],
    )
    sql = READINGS[reading].format(type="encrypted_jsonb", plain="jsonb", literal="'1'")
    with pytest.raises(StatementTooComplex) as refused:
        session.execute(sql.encode())
    assert_quotes_nothing(refused.value)
    assert_not_logged(server, start)
    assert fetch(session, "SELECT try_decrypt(secret) IS NULL FROM t") is True
    assert fetch(session, "SELECT fernet_token(secret) FROM t") == token


RESERVED = {
    "text": [b"colcrypt:v1:", b"colcrypt:v9"],
    "bytea": [b"colcrypt:v1:", b"colcrypt:v9", b"colcrypt:v1:\xff\0"],
    "jsonb": [
        b'"colcrypt:v1:"',
        b' "colcrypt:v9" ',
        rb'"\u0063olcrypt:v1:AA"',
        rb'"colcrypt\u003av1:AA"',
    ],
}


@every_kind
def test_a_token_of_what_could_be_taken_for_ciphertext_is_refused(
    session: psycopg.Connection, fernet: Fernet, kind: Kind
) -> None:
    for content in RESERVED[kind.plain]:
        token = fernet.encrypt(content).decode()
        with pytest.raises(InvalidTextRepresentation, match="reserved prefix"):
            session.execute(f"SELECT {kind.from_fernet('%s')}".encode(), [token])


@every_kind
def test_what_is_no_token_or_no_token_of_ours_is_refused(
    session: psycopg.Connection, server: Cluster, fernet: Fernet, kind: Kind
) -> None:
    call = f"SELECT {kind.from_fernet('%s')}".encode()
    start = len(server.log())
    foreign = Fernet(Fernet.generate_key()).encrypt(kind.canary.sealed)
    raw = base64.urlsafe_b64decode(fernet.encrypt(kind.canary.sealed))
    changed = [
        base64.urlsafe_b64encode(
            raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
        )
        for place in range(len(raw))
    ]
    for token in [foreign, *changed]:
        with pytest.raises((DataCorrupted, InvalidTextRepresentation)) as refused:
            session.execute(call, [token.decode()])
        assert_quotes_nothing(refused.value)
        assert token.decode() not in str(refused.value)
    for text in ("", "gAAAAA", CANARY, "gAAAAA" + "=" * 94):
        with pytest.raises(InvalidTextRepresentation) as refused:
            session.execute(call, [text])
        assert_quotes_nothing(refused.value)
    with pytest.raises(InvalidParameterValue):
        session.execute(f"SELECT fernet_token({kind.one.literal}::{kind.type})")
    assert_not_logged(server, start)


# Who may bring ciphertext in


@every_kind
def test_ciphertext_is_brought_in_only_by_those_who_may(
    session: psycopg.Connection, home: Database, kind: Kind
) -> None:
    form = fetch(session, f"SELECT ciphertext({kind.one.literal}::{kind.type})")
    role = "bringer_of_every_type"
    session.execute(f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA work TO {role}")
    try:
        with home.connect(user=role) as app:
            for call in (kind.from_ciphertext("%s"), kind.from_fernet("%s")):
                with pytest.raises(InsufficientPrivilege):
                    app.execute(f"SELECT {call}".encode(), [form])
            for sql in (
                f"SELECT %t::{kind.type}",
                f"SELECT %b::text::{kind.type}",
                f"SELECT %t::{kind.plain}::{kind.type}",
                f"SELECT encrypt(%t::{kind.plain})",
                f"SELECT {kind.type}_in(%b::text::cstring, 0, -1)",
            ):
                with pytest.raises(InvalidTextRepresentation):
                    app.execute(sql.encode(), [form])
            with pytest.raises(InsufficientPrivilege):
                app.execute("SET colcrypt.input = 'ciphertext'")
            session.execute(
                f"GRANT EXECUTE ON FUNCTION from_ciphertext{kind.suffix}(text) TO {role}"
            )
            call = f"SELECT {kind.from_ciphertext('%s')}"
            assert fetch(app, call, form) == kind.one.text
            # And of this type only.
            for other in KINDS:
                if other is not kind:
                    with pytest.raises(InsufficientPrivilege):
                        app.execute(
                            f"SELECT {other.from_ciphertext('%s')}".encode(), [form]
                        )
    finally:
        session.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@every_suite
@every_kind
def test_ciphertext_under_a_key_that_is_not_there_is_taken_in_unread(
    session: psycopg.Connection, kind: Kind, suite: str
) -> None:
    own = new_key()
    session.execute(SET_KEY, [own])
    fill(session, kind, suite)
    forms = column(session, "SELECT ciphertext(secret) FROM t ORDER BY n")
    session.execute("RESET colcrypt.key")
    session.execute(f"CREATE TABLE u (n serial, secret {kind.type})")
    insert = f"INSERT INTO u (secret) VALUES ({kind.from_ciphertext('%s')})"
    for form in forms:
        session.execute(insert, [form])
    assert column(session, "SELECT ciphertext(secret) FROM u ORDER BY n") == forms
    with pytest.raises(ObjectNotInPrerequisiteState, match=key_id(own)):
        session.execute("SELECT secret FROM u")
    assert column(session, "SELECT DISTINCT try_decrypt(secret) FROM u") == [None]
    session.execute("SET colcrypt.undecryptable = 'placeholder'")
    placeholder = kind.shown(f"<undecryptable: key {key_id(own)}>")
    assert column(session, "SELECT DISTINCT secret::text FROM u") == [
        fetch(session, f"SELECT %t::{kind.plain}::text", placeholder)
    ]
    # As a value of the plain type as well.
    cast = f"SELECT DISTINCT secret::{kind.plain} FROM u"
    assert column(session, cast) == [kind.parse(placeholder)]
    session.execute(SET_KEY, [own])
    shown = column(session, "SELECT secret FROM u ORDER BY n")
    assert shown == [sample.text for sample in kind.samples]


# Changed values

OUTCOMES = """
    CREATE FUNCTION outcome(form text) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM decrypt(from_ciphertext{suffix}(form));
        RETURN 'read';
    EXCEPTION WHEN OTHERS THEN
        RETURN SQLSTATE;
    END
    $$;
    CREATE FUNCTION shown(secret {type}) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN
        RETURN secret::text;
    EXCEPTION WHEN OTHERS THEN
        RETURN SQLSTATE;
    END
    $$"""


@every_suite
@every_kind
def test_every_changed_bit_and_every_other_length_is_noticed(
    session: psycopg.Connection, kind: Kind, suite: str
) -> None:
    own = new_key()
    session.execute(SET_KEY, [own])
    session.execute(OUTCOMES.format(suffix=kind.suffix, type=kind.type))
    session.execute(f"SET colcrypt.algorithm = '{suite}'")
    stored = decryptor.stored_bytes(
        fetch(session, f"SELECT ciphertext({kind.two.literal}::{kind.type})")
    )
    changed = [bytearray(stored) for _ in range(8 * len(stored))]
    for bit, each in enumerate(changed):
        each[bit // 8] ^= 1 << (bit % 8)
    changed += [bytearray(stored[:length]) for length in range(len(stored))]
    changed += [bytearray(stored + tail) for tail in (b"\0", bytes(16), b"\x10" * 16)]
    forms = [text_form(each) for each in changed]
    outcomes = "SELECT outcome(form) FROM unnest(%s::text[]) AS form"
    found = session.execute(outcomes, [forms]).fetchall()
    # 22P02: no value of any suite. 55000: the key's id was changed. XX001: not authentic.
    assert {outcome for (outcome,) in found} == {"22P02", "55000", "XX001"}
    assert sum(outcome == "55000" for (outcome,) in found) <= 32 + 8
    assert fetch(session, "SELECT outcome(%s)", text_form(stored)) == "read"

    # The same, brought in while the key was away.
    session.execute("RESET colcrypt.key")
    session.execute(f"CREATE TABLE t (form text, secret {kind.type})")
    well_formed = [form for form, (outcome,) in zip(forms, found) if outcome != "22P02"]
    session.execute(
        f"INSERT INTO t SELECT form, {kind.from_ciphertext('form')}"
        " FROM unnest(%s::text[]) AS form",
        [well_formed],
    )
    session.execute(SET_KEY, [own])
    shown = "SELECT DISTINCT shown(secret) FROM t"
    assert set(column(session, shown)) == {"55000", "XX001"}
    assert fetch(session, "SELECT count(try_decrypt(secret)) FROM t") == 0
    session.execute("SET colcrypt.undecryptable = 'placeholder'")
    placeholders = "SELECT count(*) FROM t WHERE shown(secret) ~ %s"
    # In hexadecimal for bytes.
    beginning = kind.shown("<undecryptable: key ").strip('"')
    pattern = beginning.replace("\\", "\\\\")
    assert fetch(session, placeholders, pattern) == len(well_formed)


# One type's value as another's


@bound_suites
@every_pair_of_kinds
def test_ciphertext_of_one_type_is_not_taken_for_another_s(
    session: psycopg.Connection, kind: Kind, other: Kind, suite: str
) -> None:
    fill(session, kind, suite)
    forms = column(session, "SELECT ciphertext(secret) FROM t")
    session.execute(f"CREATE TABLE u (secret {other.type})")
    for form in forms:
        with pytest.raises(DataCorrupted) as refused:
            session.execute(f"SELECT {other.from_ciphertext('%s')}", [form])
        assert_quotes_nothing(refused.value)
    session.execute("SET colcrypt.input = 'ciphertext'")
    for form in forms:
        with pytest.raises(DataCorrupted):
            session.execute("INSERT INTO u VALUES (%t)", [form])
        with pytest.raises(DataCorrupted), session.cursor() as cursor:
            with cursor.copy("COPY u FROM STDIN") as copy:
                copy.write(form + "\n")
    assert fetch(session, "SELECT count(*) FROM u") == 0


@bound_suites
@every_pair_of_kinds
def test_stored_bytes_of_one_type_do_not_read_as_another_s(
    session: psycopg.Connection, kind: Kind, other: Kind, suite: str
) -> None:
    # As if the bytes had been moved in the files.
    fill(session, kind, suite)
    session.execute(
        "ALTER TABLE t RENAME TO genuine;"
        f"CREATE TABLE t AS SELECT n, secret::{other.type} FROM genuine"
    )
    for reading, sql in READINGS.items():
        query = sql.format(
            type=other.type, plain=other.plain, literal=other.one.literal
        )
        with pytest.raises(DataCorrupted) as refused:
            session.execute(query.encode())
        assert refused.value.sqlstate == "XX001", reading
        assert_quotes_nothing(refused.value)
    for sql in (
        "SELECT rotate_column('t', 'secret')",
        f"ALTER TABLE t ALTER secret TYPE {other.plain}",
        "CREATE INDEX ON t (secret)",
        f"SELECT s.secret = t.secret FROM t, (SELECT {other.one.literal}::{other.type}) AS s (secret)",
    ):
        if "rotate" in sql:
            session.execute("SELECT set_config('colcrypt.algorithm', 'fernet', false)")
        with pytest.raises(DataCorrupted):
            session.execute(sql.encode())
        session.execute("RESET colcrypt.algorithm")
    assert column(session, "SELECT DISTINCT try_decrypt(secret) FROM t") == [None]
    session.execute("SET colcrypt.undecryptable = 'placeholder'")
    shown = column(session, "SELECT DISTINCT secret::text FROM t")
    assert len(shown) == 1
    session.execute("RESET colcrypt.undecryptable")
    # Nothing was changed: in its own place each still reads.
    back = f"SELECT secret::{kind.type} FROM t ORDER BY n"
    assert column(session, back) == [sample.text for sample in kind.samples]


@bound_suites
@every_pair_of_kinds
def test_remembered_tags_of_one_type_do_not_serve_another(
    session: psycopg.Connection, kind: Kind, other: Kind, suite: str
) -> None:
    # A backend remembers the tags of stored values that it has compared.
    fill(session, kind, suite)
    count = "SELECT count(DISTINCT secret) FROM t"
    assert fetch(session, count) == len(kind.samples)
    assert fetch(session, count) == len(kind.samples)
    moved = f"SELECT count(DISTINCT secret::{other.type}) FROM t"
    with pytest.raises(DataCorrupted):
        session.execute(moved)
    equal = (
        f"SELECT secret = {kind.one.literal}, secret::{other.type} ="
        f" {other.one.literal} FROM t"
    )
    with pytest.raises(DataCorrupted):
        session.execute(equal)


@every_pair_of_kinds
def test_a_token_is_a_value_of_each_type_that_it_can_be(
    session: psycopg.Connection, fernet: Fernet, kind: Kind, other: Kind
) -> None:
    content = b'{"b": 1, "a": [2.50]}'
    token = fernet.encrypt(content).decode()
    raw = f"{kind.from_fernet('%s')}::{other.type}"
    made = f"SELECT s, fernet_token(s) FROM (SELECT {raw} OFFSET 0) AS x (s)"
    expected = {
        "text": content.decode(),
        "bytea": "\\x" + content.hex(),
        "jsonb": '{"a": [2.50], "b": 1}',
    }
    row = session.execute(made.encode(), [token]).fetchone()
    assert row == (expected[other.plain], token)
    # Even if its tag as one of the other type is remembered.
    session.execute(
        f"CREATE TABLE t AS SELECT {kind.from_fernet('%s')} AS secret", [token]
    )
    session.execute("INSERT INTO t TABLE t; INSERT INTO t TABLE t")
    for _ in range(2):
        for each in (kind, other):
            literal = {
                "text": f"'{content.decode()}'",
                "bytea": f"'{content.decode()}'",
                "jsonb": """'{"a": [2.5], "b": 1.0}'""",
            }[each.plain]
            found = session.execute(
                f"SELECT count(*), count(DISTINCT secret::{each.type}) FROM t"
                f" WHERE secret::{each.type} = {literal}"
            ).fetchone()
            assert found == (4, 1)
