"""Values leave and come back: the independent decryptor, files, Fernet libraries."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterator
from pathlib import Path

import decryptor
import psycopg
import pytest
from cryptography.fernet import Fernet, MultiFernet
from psycopg.errors import (
    DataCorrupted,
    InsufficientPrivilege,
    InvalidParameterValue,
    InvalidTextRepresentation,
    ObjectNotInPrerequisiteState,
)

from harness import Cluster, fetch, key_id, new_key

SUITES = ["xaes-256-gcm", "aes-256-gcm", "fernet", "envelope"]
TEXTS = [
    "",
    "a",
    "Grüße 🔑",
    "line\nbreak\tand \\ and ,\"'",
    "x" * 15,
    "y" * 16,
    "z" * 70_000,
]

every_suite = pytest.mark.parametrize("suite", SUITES)


class Host:
    """A server whose ring the tests know."""

    def __init__(self, cluster: Cluster, ring: list[str]) -> None:
        self.cluster = cluster
        self.ring = ring
        self.raw_ring = [decryptor.ring_key(key) for key in ring]

    def fernet(self, place: int) -> Fernet:
        return Fernet(base64.urlsafe_b64encode(self.raw_ring[place]))


@pytest.fixture(scope="module")
def host(base: Path, template: Path) -> Iterator[Host]:
    ring = [new_key(), new_key()]
    cluster = Cluster(base, template, ring=",".join(ring))
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt; CREATE ROLE app LOGIN")
    yield Host(cluster, ring)
    cluster.destroy()


@pytest.fixture
def session(host: Host) -> Iterator[psycopg.Connection]:
    with host.cluster.connect() as session:
        yield session


def fill(session: psycopg.Connection, suite: str) -> None:
    session.execute(f"SET colcrypt.algorithm = '{suite}'")
    session.execute("DROP TABLE IF EXISTS t")
    session.execute("CREATE TABLE t (n serial, secret encrypted_text)")
    for text in TEXTS:
        session.execute("INSERT INTO t (secret) VALUES (%s)", [text])


def column(session: psycopg.Connection, expression: str) -> list[str]:
    rows = session.execute(f"SELECT {expression} FROM t ORDER BY n").fetchall()
    return [row[0] for row in rows]


@every_suite
def test_the_independent_decryptor_opens_a_tables_values(
    host: Host, session: psycopg.Connection, suite: str
) -> None:
    fill(session, suite)
    assert set(column(session, "(colcrypt.inspect(secret)).suite")) == {suite}
    sealed = column(session, "ciphertext(secret)")
    assert [decryptor.decrypt(text, host.raw_ring) for text in sealed] == TEXTS


@every_suite
def test_the_independent_decryptor_opens_values_under_an_older_key(
    host: Host, session: psycopg.Connection, suite: str
) -> None:
    session.execute("SELECT set_config('colcrypt.key', %s, false)", [host.ring[1]])
    fill(session, suite)
    sealed = column(session, "ciphertext(secret)")
    assert [decryptor.decrypt(text, host.raw_ring) for text in sealed] == TEXTS
    with pytest.raises(decryptor.Refused, match=f"needs key {key_id(host.ring[1])}"):
        decryptor.decrypt(sealed[0], host.raw_ring[:1])


@every_suite
def test_ciphertext_written_to_a_file_and_taken_back_reads_the_same(
    host: Host, session: psycopg.Connection, suite: str, tmp_path: Path
) -> None:
    fill(session, suite)
    before = column(session, "ciphertext(secret)")
    path = tmp_path / "values"
    host.cluster.psql(
        f"\\copy (SELECT ciphertext(secret) FROM t ORDER BY n) TO '{path}'"
    )
    assert path.read_text().splitlines() == before
    host.cluster.psql(
        "CREATE TEMP TABLE loaded (n serial, line text);\n"
        f"\\copy loaded (line) FROM '{path}'\n"
        "TRUNCATE t;"
        "INSERT INTO t SELECT n, from_ciphertext(line) FROM loaded;"
    )
    assert column(session, "secret") == TEXTS
    assert column(session, "ciphertext(secret)") == before


@every_suite
def test_a_changed_bit_on_the_way_is_refused(
    host: Host, session: psycopg.Connection, suite: str
) -> None:
    session.execute(f"SET colcrypt.algorithm = '{suite}'")
    stored = decryptor.stored_bytes(fetch(session, "SELECT ciphertext(encrypt('x'))"))
    for bit in range(8 * 5, 8 * len(stored), 7):
        changed = bytearray(stored)
        changed[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises((DataCorrupted, InvalidTextRepresentation)):
            session.execute("SELECT from_ciphertext(%s)", [text_form(changed)])


def text_form(stored: bytes | bytearray) -> str:
    encoded = base64.urlsafe_b64encode(stored).decode().rstrip("=")
    return decryptor.PREFIX + encoded


# Fernet, out


def test_a_fernet_token_opens_with_pythons_library(
    host: Host, session: psycopg.Connection
) -> None:
    fill(session, "fernet")
    tokens = column(session, "fernet_token(secret)")
    assert all(token.startswith("gAAAAA") for token in tokens)
    assert [host.fernet(0).decrypt(token).decode() for token in tokens] == TEXTS
    multi = MultiFernet([host.fernet(1), host.fernet(0)])
    assert [multi.decrypt(token).decode() for token in tokens] == TEXTS


def test_other_suites_have_no_fernet_token(session: psycopg.Connection) -> None:
    with pytest.raises(InvalidParameterValue):
        session.execute("SELECT fernet_token(encrypt('x'))")


def test_a_key_that_colcrypt_makes_is_one_for_fernet(
    session: psycopg.Connection,
) -> None:
    key = fetch(session, "SELECT colcrypt.generate_key()")
    assert len(key) == 44
    session.execute("SELECT set_config('colcrypt.key', %s, false)", [key])
    session.execute("SET colcrypt.algorithm = 'fernet'")
    token = fetch(session, "SELECT fernet_token(encrypt('x'))")
    assert Fernet(key).decrypt(token) == b"x"


# Fernet, in


@pytest.mark.parametrize("place", [0, 1])
def test_tokens_of_pythons_library_are_taken_in_under_any_key_of_the_ring(
    host: Host, session: psycopg.Connection, place: int
) -> None:
    for text in TEXTS:
        token = host.fernet(place).encrypt(text.encode()).decode()
        assert fetch(session, "SELECT from_fernet(%s)::text", token) == text
        assert fetch(session, "SELECT fernet_token(from_fernet(%s))", token) == token
        inspect = "SELECT (colcrypt.inspect(from_fernet(%s))).key_id"
        assert fetch(session, inspect, token) == key_id(host.ring[place])


def test_a_ring_means_what_multifernet_means(
    host: Host, session: psycopg.Connection
) -> None:
    # "new,old": the first encrypts, all decrypt, rotation moves to the first.
    multi = MultiFernet([host.fernet(0), host.fernet(1)])
    old = host.fernet(1).encrypt(b"x")
    rotated = multi.rotate(old).decode()
    inspect = "SELECT (colcrypt.inspect(from_fernet(%s))).key_id"
    assert fetch(session, inspect, rotated) == key_id(host.ring[0])
    session.execute("SET colcrypt.algorithm = 'fernet'")
    session.execute("DROP TABLE IF EXISTS t")
    session.execute("CREATE TABLE t (n serial, secret encrypted_text)")
    session.execute("INSERT INTO t (secret) VALUES (from_fernet(%s))", [old.decode()])
    assert fetch(session, "SELECT rotate_column('t', 'secret')") == 1
    token = fetch(session, "SELECT fernet_token(secret) FROM t")
    assert host.fernet(0).decrypt(token) == b"x"


@pytest.mark.parametrize(
    "content",
    [
        b"a\0b",
        b"\0",
        b"\xff\xfe",
        b"caf\xe9",
        b"\xed\xa0\x80",
        secrets.token_bytes(64) + b"\xff",
    ],
    ids=["NUL inside", "NUL", "0xff", "LATIN1", "surrogate", "random"],
)
def test_a_token_that_holds_no_text_is_refused(
    host: Host, session: psycopg.Connection, content: bytes
) -> None:
    # Authentic, but PostgreSQL trusts a text to be valid.
    token = host.fernet(0).encrypt(content).decode()
    with pytest.raises(DataCorrupted) as refused:
        session.execute("SELECT from_fernet(%s)", [token])
    assert refused.value.sqlstate == "XX001"
    assert token not in str(refused.value)


def test_a_token_under_a_foreign_key_is_refused(session: psycopg.Connection) -> None:
    token = Fernet(Fernet.generate_key()).encrypt(b"x").decode()
    with pytest.raises(DataCorrupted) as refused:
        session.execute("SELECT from_fernet(%s)", [token])
    assert refused.value.sqlstate == "XX001"
    assert token not in str(refused.value)


def test_a_changed_token_is_refused(host: Host, session: psycopg.Connection) -> None:
    raw = base64.urlsafe_b64decode(host.fernet(0).encrypt(b"x"))
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 1
        token = base64.urlsafe_b64encode(changed).decode()
        with pytest.raises((DataCorrupted, InvalidTextRepresentation)):
            session.execute("SELECT from_fernet(%s)", [token])


@pytest.mark.parametrize("text", ["", "gAAAAA", "no token", "gAAAAA" + "=" * 94])
def test_what_is_no_token_is_refused(session: psycopg.Connection, text: str) -> None:
    with pytest.raises(InvalidTextRepresentation):
        session.execute("SELECT from_fernet(%s)", [text])


# Who may bring ciphertext in


@pytest.mark.parametrize("function", ["from_fernet", "from_ciphertext"])
def test_a_role_without_the_right_cannot_use_the_server_as_a_decryption_oracle(
    host: Host, function: str
) -> None:
    with host.cluster.connect(user="app") as app, pytest.raises(InsufficientPrivilege):
        app.execute(f"SELECT {function}('x')")


def test_a_role_without_the_right_has_no_other_way_either(host: Host) -> None:
    sealed = host.cluster.psql("SELECT ciphertext(encrypt('x'))")
    with host.cluster.connect(user="app") as app:
        app.execute("SELECT encrypt('x')")
        for sql in (
            "SELECT encrypt(%s)",
            "SELECT %s::text::encrypted_text",
            "SELECT %s::encrypted_text",
            "SELECT encrypted_text_in(%s::cstring, 0, -1)",
        ):
            with pytest.raises(InvalidTextRepresentation):
                app.execute(sql, [sealed])
        with pytest.raises(InsufficientPrivilege):
            app.execute("SET colcrypt.input = 'ciphertext'")


def test_the_right_can_be_granted(host: Host) -> None:
    sealed = host.cluster.psql("SELECT ciphertext(encrypt('x'))")
    host.cluster.psql("GRANT EXECUTE ON FUNCTION from_ciphertext(text) TO app")
    with host.cluster.connect(user="app") as app:
        assert fetch(app, "SELECT from_ciphertext(%s)::text", sealed) == "x"
    host.cluster.psql("REVOKE EXECUTE ON FUNCTION from_ciphertext(text) FROM app")


def test_a_superuser_takes_ciphertext_in_as_input(
    host: Host, session: psycopg.Connection
) -> None:
    # What a restore does.
    sealed = fetch(session, "SELECT ciphertext(encrypt('x'))")
    session.execute("SET colcrypt.input = 'ciphertext'")
    assert fetch(session, "SELECT ciphertext(%s::encrypted_text)", sealed) == sealed
    with pytest.raises(InvalidTextRepresentation):
        session.execute("SELECT 'plaintext'::encrypted_text")


def test_ciphertext_of_a_key_that_is_not_there_is_taken_in_unread(
    host: Host, session: psycopg.Connection
) -> None:
    # A dump is restored before its keys arrive.
    session.execute("SELECT set_config('colcrypt.key', %s, false)", [new_key()])
    sealed = fetch(session, "SELECT ciphertext(encrypt('x'))")
    session.execute("RESET colcrypt.key")
    assert fetch(session, "SELECT ciphertext(from_ciphertext(%s))", sealed) == sealed
    with pytest.raises(ObjectNotInPrerequisiteState):
        session.execute("SELECT from_ciphertext(%s)::text", [sealed])
