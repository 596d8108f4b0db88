"""What a thief of the log finds: no key, and no plaintext that colcrypt or a violated
constraint put there."""

from __future__ import annotations

import base64
import os
import secrets
import socket
import struct
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import decryptor
import psycopg
import pytest
from psycopg.errors import (
    CheckViolation,
    InvalidParameterValue,
    ObjectNotInPrerequisiteState,
    UniqueViolation,
)

from conftest import MakeCluster
from harness import (
    PORT,
    SUPERUSER,
    Cluster,
    Setting,
    fetch,
    give_to_server,
    is_running,
    new_key,
    wait_until,
)

PRELOAD: dict[str, Setting] = {"shared_preload_libraries": "colcrypt"}
CANARY = "canaryCANARYcanary"
PASSPHRASE = "passphrase:"

# All that PostgreSQL writes into, at once.
DESTINATIONS: dict[str, Setting] = {
    "logging_collector": True,
    "log_destination": "stderr,csvlog,jsonlog",
    "log_directory": "logs",
    "log_filename": "log",
    "log_rotation_age": 0,
    "log_rotation_size": 0,
}
LOUD: dict[str, Setting] = {
    "log_min_messages": "debug5",
    "log_error_verbosity": "verbose",
    "log_min_error_statement": "debug5",
    "log_connections": True,
    "log_disconnections": True,
}
AUTO_EXPLAIN: dict[str, Setting] = {
    "auto_explain.log_min_duration": 0,
    "auto_explain.log_nested_statements": True,
    "auto_explain.log_verbose": True,
    "auto_explain.log_analyze": True,
}
VARIANTS: dict[str, dict[str, Setting]] = {
    "statements": PRELOAD
    | {
        "log_statement": "all",
        "log_parameter_max_length": -1,
        "log_parameter_max_length_on_error": -1,
    },
    "durations": AUTO_EXPLAIN
    | {
        "shared_preload_libraries": "colcrypt, auto_explain",
        "log_min_duration_statement": 0,
        "log_parameter_max_length": 20,
        "log_parameter_max_length_on_error": 20,
    },
    "trees": AUTO_EXPLAIN
    | {
        "shared_preload_libraries": "auto_explain, colcrypt",
        "log_statement": "all",
        "log_duration": True,
        "log_parameter_max_length": 30,
        "log_parameter_max_length_on_error": 30,
        "debug_print_parse": True,
        "debug_print_rewritten": True,
        "debug_print_plan": True,
    },
}


class Log:
    """What a server with DESTINATIONS logs from now on."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        folder = cluster.datadir / "logs"
        self.files = [folder / name for name in ("log", "log.csv", "log.json")]
        self.starts = [path.stat().st_size for path in self.files]

    def text(self) -> str:
        """All of it, of all destinations."""
        return "".join(self.parts())

    def parts(self) -> list[str]:
        """For each destination, once everything has arrived there."""
        end = f"end-{secrets.token_hex(8)}"
        self.cluster.psql(f"DO $$ BEGIN RAISE LOG '%', '{end}'; END $$")
        wait_until(lambda: all(end in part for part in self._read()), "the log", 20)
        return self._read()

    def stderr(self) -> str:
        return self.parts()[0]

    def _read(self) -> list[str]:
        read = []
        for path, start in zip(self.files, self.starts, strict=True):
            with path.open("rb") as file:
                file.seek(start)
                read.append(file.read().decode(errors="replace"))
        return read


def start_server(
    base: Path, template: Path, conf: Mapping[str, Setting], ring: str | None
) -> Cluster:
    cluster = Cluster(base, template, ring=ring)
    cluster.conf(DESTINATIONS | dict(conf))
    cluster.start()
    cluster.psql("CREATE EXTENSION colcrypt; CREATE ROLE app LOGIN")
    return cluster


@pytest.fixture(scope="module", params=VARIANTS)
def loud(
    base: Path, template: Path, request: pytest.FixtureRequest
) -> Iterator[Cluster]:
    """A server that logs as much as it can."""
    ring = new_key()
    cluster = start_server(base, template, LOUD | VARIANTS[request.param], ring)
    cluster.psql(PREPARATIONS)
    yield cluster
    cluster.destroy()


@pytest.fixture(scope="module")
def quiet(base: Path, template: Path) -> Iterator[Cluster]:
    """A server that logs what PostgreSQL logs by default."""
    cluster = start_server(base, template, PRELOAD, new_key())
    yield cluster
    cluster.destroy()


@pytest.fixture
def session(quiet: Cluster) -> Iterator[psycopg.Connection]:
    name = f"s{secrets.token_hex(4)}"
    with quiet.connect() as session:
        session.execute(f"CREATE SCHEMA {name}; SET search_path = {name}, public")
        yield session
    quiet.psql(f"SET client_min_messages = warning; DROP SCHEMA {name} CASCADE")


def texts_of(key: str) -> list[str]:
    """A key in the forms that a log could show it in."""
    raw = decryptor.ring_key(key)
    url = base64.urlsafe_b64encode(raw).decode()
    return [base64.b64encode(raw).decode(), url, raw.hex(), raw.hex().upper()]


def assert_no_key(log: str, *keys: str) -> None:
    """Nor any part of one that would help to guess the rest."""
    for key in keys:
        for text in texts_of(key):
            for start in range(0, len(text) - 11, 4):
                part = text[start : start + 12]
                assert part not in log, lines_with(log, part)


def assert_not_logged(log: str, *secret: str) -> None:
    for each in secret:
        assert each not in log, lines_with(log, each)


def lines_with(log: str, part: str) -> str:
    found = [line[:600] for line in log.splitlines() if part in line]
    return "\n".join(found[:5])


def attempt(
    cluster: Cluster, *statements: str, parameters: list[str] | None = None
) -> None:
    """Runs statements in a session of their own, whatever comes of it."""
    with cluster.connect() as session:
        for statement in statements:
            try:
                session.execute(statement.encode(), parameters)
            except psycopg.Error:
                pass


# Keys that are set, or were meant to be

PREPARATIONS = """
    CREATE TABLE settings (name text, value text);
    CREATE TABLE t (name text, secret encrypted_text);
    CREATE FUNCTION sets_it(text, boolean) RETURNS text LANGUAGE plpgsql
        AS $$ BEGIN RETURN set_config('colcrypt.key', $1, $2); END $$;
    CREATE FUNCTION sets_it_by_text(text) RETURNS void LANGUAGE plpgsql
        AS $$ BEGIN EXECUTE format('SET colcrypt.key = %L', $1); END $$;
    CREATE FUNCTION sets_it_in_sql(text) RETURNS text LANGUAGE sql
        AS $$ SELECT set_config('colcrypt.key', $1, false) $$;
"""

# Statements that have the key as text; {} is for a ring of any form.
STATEMENTS: dict[str, str] = {
    "SET": "SET colcrypt.key = '{}'",
    "SET TO": "set session colcrypt.key to '{}'",
    "SET LOCAL": "BEGIN; SET LOCAL colcrypt.key = '{}'; COMMIT",
    "quoted names": 'SET "colcrypt"."key" = \'{}\'',
    "escapes": "SET colcrypt.key = E'{}'",
    "unicode escapes": "SET colcrypt.key = U&'{}'",
    "a double-quoted value": 'SET colcrypt.key = "{}"',
    "a list": "SET colcrypt.key = '{}', '{}'",
    "comments between the tokens": "SET/**/colcrypt.key/*x*/=/* y */'{}'",
    "comments to the end of the line": "SET -- c\n colcrypt -- c\n . key -- c\n= '{}'",
    "many lines": "SET\n\tcolcrypt\n.\nkey\nTO\n'{}'\n;",
    "continued text": "SET colcrypt.key = ''\n'{}'",
    "before others": "SET colcrypt.key = '{}'; SELECT 1; SELECT 1/0",
    "behind others": "SELECT 1; SET colcrypt.key = '{}'",
    "upper case": "SET COLCRYPT.KEY TO '{}'",
    "ALTER SYSTEM": "ALTER SYSTEM SET colcrypt.key = '{}'",
    "ALTER ROLE": "ALTER ROLE app SET colcrypt.key = '{}'",
    "ALTER ROLE IN DATABASE": (
        "ALTER ROLE app IN DATABASE postgres SET colcrypt.key TO '{}'"
    ),
    "ALTER DATABASE": "ALTER DATABASE postgres SET colcrypt.key = '{}'",
    "function with SET": (
        "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql"
        " SET colcrypt.key = '{}' AS 'SELECT 1'"
    ),
    "ALTER FUNCTION": "ALTER FUNCTION sets_it SET colcrypt.key = '{}'",
    "set_config": "SELECT set_config('colcrypt.key', '{}', false)",
    "set_config, dollar quotes": (
        "SELECT pg_catalog.set_config($$colcrypt.key$$, $k${}$k$, false)"
    ),
    "set_config, named arguments": (
        "SELECT set_config(new_value => '{}', setting_name => 'colcrypt.key',"
        " is_local => false)"
    ),
    "set_config, a column": (
        "SELECT set_config(n, v, false) FROM (VALUES ('{}', 'colcrypt.key')) x (v, n)"
    ),
    "pg_settings": "UPDATE pg_settings SET setting = '{}' WHERE name = 'colcrypt.key'",
    "PREPARE": (
        "PREPARE p AS SELECT set_config('colcrypt.key', '{}', false); EXECUTE p"
    ),
    "EXECUTE": (
        "PREPARE p AS SELECT set_config('colcrypt.key', $1, false); EXECUTE p('{}')"
    ),
    "EXECUTE alone": "PREPARE p AS SELECT sets_it($1, true); EXECUTE p('{}')",
    "DO": (
        "DO $do$ BEGIN EXECUTE format('SET colcrypt.key = %L', '{}');"
        " PERFORM 1/0; END $do$"
    ),
    "DO, PERFORM": (
        "DO $do$ BEGIN PERFORM set_config('colcrypt.key', '{}', true);"
        " RAISE 'oops'; END $do$"
    ),
    "DO, variable": (
        "DO $do$ DECLARE k text := '{}'; BEGIN"
        " PERFORM set_config('colcrypt.key', k, true); RAISE 'not %', k; END $do$"
    ),
    "RAISE": "DO $do$ BEGIN RAISE LOG 'key: %', '{}'; END $do$",
    "RAISE, all fields": (
        "DO $do$ BEGIN RAISE EXCEPTION 'x' USING MESSAGE = 'm {}', DETAIL = 'd {}',"
        " HINT = 'h {}'; END $do$"
    ),
    "a function": "SELECT sets_it('{}', false)",
    "a function, by text": "SELECT sets_it_by_text('{}')",
    "a function in SQL": "SELECT sets_it_in_sql('{}')",
    "a function's body": (
        "CREATE OR REPLACE FUNCTION g() RETURNS void LANGUAGE plpgsql AS $f$ BEGIN"
        " PERFORM set_config('colcrypt.key', '{}', true); PERFORM 1/0; END $f$;"
        " SELECT g()"
    ),
    "a cursor": (
        "BEGIN; DECLARE c CURSOR FOR SELECT set_config('colcrypt.key', '{}', true);"
        " FETCH c; COMMIT"
    ),
    "EXPLAIN": (
        "EXPLAIN (ANALYZE, VERBOSE) SELECT set_config('colcrypt.key', '{}', true)"
    ),
    "a syntax error behind": "SET colcrypt.key = '{}' please",
    "a syntax error before": "SETT colcrypt.key = '{}'",
    "a syntax error at the key": "SELECT set_config('colcrypt.key' '{}', false)",
    "an open quote": "SET colcrypt.key = '{}",
    "no quotes": "SET colcrypt.key = {}",
    "misuse: SELECT": "SELECT '{}'",
    "misuse: a column": 'SELECT "{}"',
    "misuse: a function": 'SELECT "{}"()',
    "misuse: a table": 'SELECT * FROM "{}"',
    "misuse: a number": "SELECT '{}'::int",
    "misuse: a comment": "SELECT 1 -- {}",
    "misuse: a comment of many": "/* the key is {} */ SELECT 1/0",
    "misuse: a value": "INSERT INTO settings VALUES ('key', '{}')",
    "misuse: a value of encrypted_text": "INSERT INTO t VALUES ('key', '{}')",
    "misuse: another setting": "SET colcrypt.write_key = '{}'",
    "misuse: the file's setting": "ALTER SYSTEM SET colcrypt.key_file = '{}'",
    "misuse: an unknown setting": "SET colcrypt.keys = '{}'",
    "misuse: encrypt's key": "SELECT encrypt('x', '{}')",
    "misuse: a key's name": "SELECT colcrypt.create_key('{}')",
    "misuse: a role's password": "ALTER ROLE app PASSWORD '{}'",
    "misuse: decode": "SELECT 1/length(decode('{}', 'base64'))::int - 44",
    "misuse: bytes": "SELECT convert_to('{}', 'UTF8') / 0",
}

FORMS: dict[str, Callable[[str], str]] = {
    "base64": lambda key: key,
    "base64url": lambda key: key.replace("+", "-").replace("/", "_"),
    "hex": lambda key: decryptor.ring_key(key).hex(),
}


UNSEEN = "the name of the setting is found in its plainest forms only"


def name_like_key() -> str:
    """A key that could be a name, in hex digits and, but for its end, in base64."""
    while True:
        key = new_key()
        if decryptor.ring_key(key)[0] >= 0xA0 and key[:-1].isalnum():
            return key


@pytest.mark.parametrize("name", STATEMENTS)
def test_no_statement_puts_a_key_into_the_log(
    loud: Cluster, name: str
) -> None:
    log = Log(loud)
    keys = [name_like_key() for _ in FORMS]
    for key, form in zip(keys, FORMS.values(), strict=True):
        attempt(loud, STATEMENTS[name].replace("{}", form(key)))
    assert_no_key(log.text(), *keys)


def passphrase() -> str:
    return " ".join(secrets.token_hex(5) for _ in range(4))


def words_of(text: str) -> list[str]:
    return [text[start : start + 8] for start in range(0, len(text) - 7, 4)]


@pytest.mark.parametrize("name", STATEMENTS)
def test_no_statement_puts_a_passphrase_into_the_log(
    loud: Cluster, name: str
) -> None:
    log = Log(loud)
    end = " " if "comment" in name else "\n"
    secret = f"{passphrase()}, it''s{end}{passphrase()}"
    short = passphrase()[:20]
    ring = f'{{"primary": "a", "keys": {{"a": "passphrase:{secret}"}}}}'
    for text in (f"passphrase:{secret}", ring, f"PassPhrase:{short}"):
        attempt(loud, STATEMENTS[name].replace("{}", text))
    assert_not_logged(log.text(), *words_of(short), *words_of(secret))


# A key without its last character, a passphrase without its prefix, and the like.
HIDES_ALL = [
    "SET",
    "SET TO",
    "SET LOCAL",
    "quoted names",
    "escapes",
    "unicode escapes",
    "a list",
    "comments between the tokens",
    "comments to the end of the line",
    "many lines",
    "continued text",
    "before others",
    "behind others",
    "upper case",
    "ALTER SYSTEM",
    "ALTER ROLE",
    "ALTER ROLE IN DATABASE",
    "ALTER DATABASE",
    "function with SET",
    "ALTER FUNCTION",
    "set_config",
    "set_config, dollar quotes",
    "set_config, named arguments",
    "pg_settings",
    "PREPARE",
    "EXECUTE",
    "DO",
    "DO, PERFORM",
    "a function's body",
    "a cursor",
    "a syntax error behind",
    "an open quote",
]


@pytest.mark.parametrize("name", HIDES_ALL)
def test_no_statement_puts_a_refused_value_into_the_log(
    loud: Cluster, name: str
) -> None:
    log = Log(loud)
    key = new_key()
    typos = [key[:-1], key[1:], key[:-2] + "!="]
    for typo in (*typos, CANARY):
        attempt(loud, STATEMENTS[name].replace("{}", typo))
    text = log.text()
    assert_no_key(text, key[:-4] + "AAA=")
    assert_not_logged(text, CANARY)


# {} is a parameter; what psycopg sends as $1.
BOUND: dict[str, str] = {
    "set_config": "SELECT set_config('colcrypt.key', {}, false)",
    "both": "SELECT set_config({name}, {}, false)",
    "both, cast": "SELECT set_config({name}::text, {}::text, false)",
    "value first": (
        "SELECT set_config(new_value => {}, setting_name => {name}, is_local => false)"
    ),
    "value first, name in the statement": (
        "SELECT set_config(new_value => {}, setting_name => 'colcrypt.key',"
        " is_local => false)"
    ),
    "dollar quotes": "SELECT set_config($$colcrypt.key$$, {}, false)",
    "escapes": "SELECT set_config(E'colcrypt\\x2ekey', {}, false)",
    "a comment": "SELECT set_config('colcrypt.key' /* key */, {}, false)",
    "pg_settings": "UPDATE pg_settings SET setting = {} WHERE name = 'colcrypt.key'",
    "an error": "SELECT set_config('colcrypt.key', {}, false), 1/0",
    "a join": (
        "SELECT set_config(s.name, {}, false) FROM pg_settings s"
        " WHERE s.name = 'colcrypt.key'"
    ),
}


@pytest.mark.parametrize("prepare", [False, True], ids=["unnamed", "prepared"])
@pytest.mark.parametrize("name", BOUND)
def test_no_bound_parameter_puts_a_key_into_the_log(
    request: pytest.FixtureRequest, loud: Cluster, name: str, prepare: bool
) -> None:
    if name == "escapes":
        request.applymarker(pytest.mark.xfail(strict=True, reason=UNSEEN))
    log = Log(loud)
    keys = [new_key() for _ in FORMS]
    words = passphrase()
    rings = [form(key) for key, form in zip(keys, FORMS.values(), strict=True)]
    rings += [f"passphrase:{words}", CANARY * 2]
    rings += [f'{{"primary": "a", "keys": {{"a": "{keys[0]}"}}}}']
    statement = BOUND[name].replace("{name}", "%(name)s").replace("{}", "%(ring)s")
    for ring in rings:
        parameters = {"name": "colcrypt.key", "ring": ring}
        with loud.connect() as session:
            for _ in range(2):
                try:
                    session.execute(statement.encode(), parameters, prepare=prepare)
                except psycopg.Error:
                    pass
    text = log.text()
    assert_no_key(text, *keys)
    assert_not_logged(text, *words_of(words), CANARY)


with_whole_parameters = pytest.mark.parametrize("loud", ["statements"], indirect=True)
MISUSED = [
    "SELECT sets_it(%s, false)",
    "SELECT sets_it_by_text(%s)",
    "SELECT sets_it_in_sql(%s)",
    "INSERT INTO settings VALUES ('key', %s)",
    "INSERT INTO t VALUES ('key', %s)",
    "SELECT encrypt(%s)",
    "SELECT %s::text::int",
    "SELECT 1/length(left(%s, 0))",
    "SELECT encrypt('x', %s)",
]


@with_whole_parameters
@pytest.mark.parametrize("statement", MISUSED)
def test_no_parameter_that_is_a_key_is_logged(loud: Cluster, statement: str) -> None:
    log = Log(loud)
    keys = [new_key() for _ in FORMS]
    for key, form in zip(keys, FORMS.values(), strict=True):
        attempt(loud, statement, parameters=[form(key)])
    with loud.connect() as session:
        for key in keys:
            try:
                raw = decryptor.ring_key(key)
                as_bytes = "INSERT INTO settings VALUES (encode(%s, 'hex'))"
                session.execute(as_bytes, [raw])
                session.execute(statement.encode(), [key], binary=True)
            except psycopg.Error:
                pass
    assert_no_key(log.text(), *keys)


@pytest.mark.xfail(strict=True, reason="the STATEMENT of an EXECUTE names no setting")
def test_execute_puts_no_refused_value_into_the_log(loud: Cluster) -> None:
    log = Log(loud)
    prepare = "PREPARE p AS SELECT set_config('colcrypt.key', $1, false)"
    attempt(loud, prepare, f"EXECUTE p('{CANARY}')")
    assert_not_logged(log.text(), CANARY)


def test_the_same_statements_log_other_values(loud: Cluster) -> None:
    # So that the tests above can fail.
    log = Log(loud)
    attempt(loud, f"SET colcrypt.write_key = '{CANARY}'", "SELECT 'visible' || 1/0")
    attempt(loud, "SELECT %s::text AS seen", parameters=["parameter"])
    for part in log.parts():
        assert CANARY in part and "'visible'" in part and "'parameter'" in part


@pytest.mark.parametrize("loud", ["trees"], indirect=True)
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT '{}'",
        "INSERT INTO settings VALUES ('k', '{}')",
        "SELECT set_config('colcrypt.key', '{}', false)",
        "SELECT g()",
    ],
)
def test_trees_do_not_show_a_key_byte_by_byte(loud: Cluster, statement: str) -> None:
    key = new_key()
    body = STATEMENTS["a function's body"].partition("; SELECT")[0]
    attempt(loud, body.replace("{}", key))
    log = Log(loud)
    attempt(loud, statement.replace("{}", key))
    assert " ".join(str(ord(letter)) for letter in key[:12]) not in log.text()


@pytest.mark.parametrize("statement", ["{}", "SET colcrypt.key {}"])
def test_a_key_that_was_pasted_without_quotes_is_not_quoted(
    loud: Cluster, statement: str
) -> None:
    log = Log(loud)
    key = name_like_key()
    attempt(loud, statement.replace("{}", key))
    text = log.text()
    assert "syntax error" in text
    assert key[:-1].lower() not in text.lower()


# Keys that come with a connection

OPTIONS = [
    "-c colcrypt.key={}",
    "-ccolcrypt.key={}",
    "--colcrypt.key={}",
    "--colcrypt.key {}",
    "-c colcrypt.key {}",
    "-c Colcrypt.Key={} -c nonsense",
    "-c colcrypt.write_key={}",
    "-c no.such_setting={}",
    "-c nonsense={}",
    "{}",
]


@pytest.mark.parametrize("options", OPTIONS)
def test_no_connection_option_puts_a_key_into_the_log(
    loud: Cluster, options: str
) -> None:
    log = Log(loud)
    keys = [new_key() for _ in FORMS]
    for key, form in zip(keys, FORMS.values(), strict=True):
        text = options.replace("{}", form(key))
        try:
            loud.connect(options=text).close()
        except psycopg.OperationalError:
            pass
        loud.psql("SELECT 1", env={"PGOPTIONS": text}, check=False)
    assert_no_key(log.text(), *keys)


@pytest.mark.parametrize("options", OPTIONS[:3])
def test_no_connection_option_puts_a_refused_key_into_the_log(
    loud: Cluster, options: str
) -> None:
    log = Log(loud)
    loud.psql("SELECT 1", env={"PGOPTIONS": options.replace("{}", CANARY)}, check=False)
    assert_not_logged(log.text(), CANARY)


@pytest.mark.parametrize("form", ["key", "refused", "passphrase"])
def test_no_parameter_of_the_startup_packet_is_logged(loud: Cluster, form: str) -> None:
    log = Log(loud)
    key = new_key()
    value = {"key": key, "refused": CANARY, "passphrase": PASSPHRASE + CANARY}[form]
    fields = ["user", SUPERUSER, "database", "postgres", "colcrypt.key", value]
    body = struct.pack("!I", 196608) + b"\0".join(f.encode() for f in fields) + b"\0\0"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(loud.dir / f".s.PGSQL.{PORT}"))
        client.sendall(struct.pack("!I", len(body) + 4) + body)
        client.recv(4096)
    text = log.text()
    assert_no_key(text, key)
    assert_not_logged(text, CANARY)


def test_psql_puts_no_key_into_the_log(loud: Cluster) -> None:
    log = Log(loud)
    key, bound = new_key(), new_key()
    loud.psql(f"\\set key '{key}'\nSET colcrypt.key = :'key';\nSELECT encrypt('x')")
    loud.psql(
        "PREPARE p AS SELECT set_config('colcrypt.key', $1, false);\n"
        f"EXECUTE p('{bound}');\nSELECT 1/0;",
        check=False,
    )
    assert_no_key(log.text(), key, bound)


# What colcrypt itself causes

LITERALS = {
    "the reserved prefix": "INSERT INTO t (secret) VALUES ('colcrypt:v1:{}')",
    "not ciphertext": "SELECT from_ciphertext('colcrypt:v1:{}')",
    "not a token": "SELECT from_fernet('{}')",
    "an unknown key": "SELECT encrypt('{}', 'no such key')",
    "a key's name": "SELECT colcrypt.create_key('#{}')",
    "nested": (
        "DO $$ BEGIN INSERT INTO t (secret) VALUES ('colcrypt:v1:' || '{}'); END $$"
    ),
    "in a function": "SELECT writes('{}')",
    "COPY": "COPY t (secret) FROM PROGRAM 'echo colcrypt:v1:{}'",
}
CONTEXTS = """
    CREATE TABLE t (n serial, secret encrypted_text);
    CREATE FUNCTION writes(x text) RETURNS void LANGUAGE plpgsql AS $$
        BEGIN EXECUTE format('INSERT INTO t (secret) VALUES (%L)', 'colcrypt:v1:' || x);
        END $$
"""


@pytest.mark.parametrize("name", LITERALS)
def test_errors_of_colcrypt_come_without_statement_and_context(
    quiet: Cluster, session: psycopg.Connection, name: str
) -> None:
    session.execute(CONTEXTS)
    log = Log(quiet)
    with pytest.raises(psycopg.Error):
        session.execute(LITERALS[name].replace("{}", CANARY).encode())
    text = log.text()
    assert "ERROR:  " in text
    assert_not_logged(text, CANARY)


def test_the_client_is_shown_the_context(
    quiet: Cluster, session: psycopg.Connection
) -> None:
    session.execute(CONTEXTS)
    with pytest.raises(psycopg.Error) as refused:
        session.execute("SELECT writes('x')")
    assert "PL/pgSQL function writes" in str(refused.value.diag.context)


def test_nothing_is_logged_of_what_succeeds_or_fails_by_parameter(
    loud: Cluster,
) -> None:
    conf = {"log_statement": "none", "log_min_duration_statement": -1}
    conf |= {"log_min_error_statement": "panic", "log_duration": False}
    conf |= {"auto_explain.log_min_duration": -1}
    conf |= {"log_parameter_max_length_on_error": 0}
    trees = {"debug_print_parse", "debug_print_rewritten", "debug_print_plan"}
    options = " ".join(
        f"-c {name}={int(value) if isinstance(value, bool) else value}"
        for name, value in (conf | dict.fromkeys(trees, False)).items()
    )
    name = f"s{secrets.token_hex(4)}"
    log = Log(loud)
    with loud.connect(options=options) as session:
        session.execute(f"CREATE TABLE {name} (n int, secret encrypted_text UNIQUE)")
        insert = f"INSERT INTO {name} VALUES (%s, %s)"
        session.execute(insert, [1, CANARY])
        session.execute(f"INSERT INTO {name} VALUES (2, '{CANARY}2')")
        for value in (CANARY, f"colcrypt:v1:{CANARY}"):
            with pytest.raises(psycopg.Error):
                session.execute(insert, [3, value])
        for query in ("secret = %s", "secret::text = %s", "secret LIKE %s"):
            session.execute(f"SELECT * FROM {name} WHERE {query}".encode(), [CANARY])
        with pytest.raises(psycopg.Error), session.cursor() as cursor:
            with cursor.copy(f"COPY {name} FROM STDIN") as copy:
                copy.write(f"4\t{CANARY}4\n5\tcolcrypt:v1:{CANARY}\n6\t{CANARY}\n")
        with session.cursor() as cursor:
            with cursor.copy(f"COPY {name} TO STDOUT") as copy:
                assert CANARY in b"".join(copy).decode()
        sealed = fetch(session, f"SELECT ciphertext(secret) FROM {name} WHERE n = 1")
        session.execute("SELECT set_config('colcrypt.key', %s, false)", [new_key()])
        with pytest.raises(psycopg.Error):
            damaged = sealed[:-9] + "AAAAAAAAA"
            session.execute("SELECT from_ciphertext(%s)::text", [damaged])
        session.execute(f"DROP TABLE {name}")
    text = log.text()
    assert "DEBUG" in text and "duplicate key" in text
    assert_not_logged(text, CANARY, sealed[12:40])


# COPY

COPIES = {
    "a bad number": "{}\tx",
    "too many columns": "{}\t1\tx",
    "too few columns": "{}",
    "the reserved prefix": "colcrypt:v1:{}\t1",
    "invalid bytes": "{}\\x80\t1",
    "a duplicate": "{}\t1\n{}\t1",
}


def copy_in(session: psycopg.Connection, target: str, text: str) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as refused, session.cursor() as cursor:
        with cursor.copy(f"COPY {target} FROM STDIN".encode()) as copy:
            copy.write(text.replace("{}", CANARY) + "\n")
    return refused.value


@pytest.mark.parametrize("name", COPIES)
def test_a_failed_copy_logs_no_line_of_it(
    quiet: Cluster, session: psycopg.Connection, name: str
) -> None:
    session.execute("CREATE TABLE t (secret encrypted_text UNIQUE, n int)")
    log = Log(quiet)
    error = copy_in(session, "t", COPIES[name])
    assert "COPY t, line " in str(error.diag.context)
    text = log.text()
    assert "ERROR" in text
    assert_not_logged(text, CANARY)


TARGETS = {
    "an array": "CREATE TABLE t (n int, secret encrypted_text[])",
    "a domain": "CREATE DOMAIN d AS encrypted_text; CREATE TABLE t (n int, secret d)",
    "a partitioned table": (
        "CREATE TABLE t (n int, secret encrypted_text) PARTITION BY RANGE (n);"
        " CREATE TABLE t1 PARTITION OF t DEFAULT"
    ),
    "a composite": (
        "CREATE TYPE c AS (x encrypted_text); CREATE TABLE t (n int, secret c)"
    ),
    "a view": (
        "CREATE TABLE b (n int, secret encrypted_text); CREATE VIEW t AS TABLE b;"
        " CREATE FUNCTION i() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN RETURN NULL; END';"
        " CREATE TRIGGER i INSTEAD OF INSERT ON t FOR EACH ROW EXECUTE FUNCTION i()"
    ),
    "a trigger that runs a query": (
        "CREATE TABLE t (n int, secret encrypted_text);"
        " CREATE FUNCTION i() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN PERFORM count(*) FROM pg_class; RETURN NEW; END';"
        " CREATE TRIGGER i BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION i()"
    ),
    "a trigger that runs a command": (
        "CREATE TABLE t (n int, secret encrypted_text);"
        " CREATE FUNCTION i() RETURNS trigger LANGUAGE plpgsql"
        " AS 'BEGIN SET LOCAL work_mem = 100; RETURN NEW; END';"
        " CREATE TRIGGER i BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION i()"
    ),
    "a default that runs a query": (
        "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql"
        " AS 'BEGIN RETURN (SELECT count(*) FROM pg_class); END';"
        " CREATE TABLE t (n int, secret encrypted_text, x int DEFAULT f())"
    ),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_failed_copy_into_anything_with_values_logs_no_line_of_it(
    quiet: Cluster, session: psycopg.Connection, name: str
) -> None:
    session.execute(TARGETS[name].encode())
    log = Log(quiet)
    lines = "\\N\t1\n\\N\t2\n{}\t3\tx"
    error = copy_in(session, "t (secret, n)", lines)
    assert CANARY in str(error.diag.context)
    text = log.text()
    assert "extra data after last expected column" in text
    assert_not_logged(text, CANARY)


def test_a_failed_copy_into_another_table_logs_its_line(
    quiet: Cluster, session: psycopg.Connection
) -> None:
    session.execute("CREATE TABLE t (secret encrypted_text, n int)")
    session.execute("CREATE TABLE u (plain text, n int)")
    log = Log(quiet)
    copy_in(session, "t", "x")
    copy_in(session, "u", "{}")
    assert f'COPY u, line 1: "{CANARY}"' in log.stderr()


# Rows that violate something

MAKE = """CREATE TABLE t (n int, secret encrypted_text);
    CREATE FUNCTION f(encrypted_text) RETURNS text IMMUTABLE LANGUAGE plpgsql
    AS 'BEGIN RETURN lower($1::text) || $1::text; END'"""
INSERTS = "CREATE FUNCTION inserts(x text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN "
VIOLATIONS: dict[str, tuple[str, str]] = {
    "unique": (
        "CREATE TABLE t (secret encrypted_text UNIQUE); INSERT INTO t VALUES ({})",
        "INSERT INTO t VALUES ({})",
    ),
    "primary key of several columns": (
        "CREATE TABLE t (n int, secret encrypted_text, PRIMARY KEY (n, secret));"
        " INSERT INTO t VALUES (1, {})",
        "UPDATE t SET n = 1; INSERT INTO t VALUES (1, {})",
    ),
    "quoted names": (
        'CREATE TABLE "T "" t" ("a, ""b"")=(c" encrypted_text UNIQUE);'
        ' INSERT INTO "T "" t" VALUES ({})',
        'INSERT INTO "T "" t" VALUES ({})',
    ),
    "upper case": (
        'CREATE TABLE t ("Secret" encrypted_text UNIQUE); INSERT INTO t VALUES ({})',
        "INSERT INTO t VALUES ({})",
    ),
    "hash exclusion": (
        "CREATE TABLE t (secret encrypted_text, EXCLUDE USING hash (secret WITH =));"
        " INSERT INTO t VALUES ({})",
        "INSERT INTO t VALUES ({})",
    ),
    "an exclusion is added": (
        f"{MAKE}; INSERT INTO t VALUES (1, {{}}), (2, {{}})",
        "ALTER TABLE t ADD EXCLUDE USING hash (secret WITH =)",
    ),
    "a unique index is built": (
        f"{MAKE}; INSERT INTO t VALUES (1, {{}}), (2, {{}})",
        "CREATE UNIQUE INDEX ON t (secret)",
    ),
    "a unique index is built concurrently": (
        f"{MAKE}; INSERT INTO t VALUES (1, {{}}), (2, {{}})",
        "CREATE UNIQUE INDEX CONCURRENTLY ON t (secret)",
    ),
    "an expression is indexed": (
        f"{MAKE}; CREATE UNIQUE INDEX ON t (f(secret));"
        " INSERT INTO t VALUES (1, {})",
        "INSERT INTO t VALUES (2, {})",
    ),
    "an expression of several": (
        f"{MAKE}; CREATE UNIQUE INDEX ON t (n, replace(f(secret), ', ', ')=('));"
        " INSERT INTO t VALUES (1, {})",
        "INSERT INTO t VALUES (1, {})",
    ),
    "check": (
        "CREATE TABLE t (n int CHECK (n > 0), secret encrypted_text)",
        "INSERT INTO t VALUES (0, {})",
    ),
    "check on the value": (
        "CREATE TABLE t (secret encrypted_text CHECK (length(secret) < 3))",
        "INSERT INTO t VALUES ({})",
    ),
    "check that is added": (
        f"{MAKE}; INSERT INTO t VALUES (0, {{}})",
        "ALTER TABLE t ADD CHECK (n > 0)",
    ),
    "not null": (
        "CREATE TABLE t (n int NOT NULL, secret encrypted_text)",
        "INSERT INTO t VALUES (NULL, {})",
    ),
    "not null behind a dropped column": (
        "CREATE TABLE t (x int, n int NOT NULL, secret encrypted_text);"
        " ALTER TABLE t DROP x",
        "INSERT INTO t VALUES (NULL, {})",
    ),
    "no partition": (
        "CREATE TABLE t (secret encrypted_text) PARTITION BY HASH (secret)",
        "INSERT INTO t VALUES ({})",
    ),
    "no partition for an expression": (
        f"{MAKE}; CREATE TABLE u (secret encrypted_text) PARTITION BY LIST (f(secret))",
        "INSERT INTO u VALUES ({})",
    ),
    "another partition": (
        "CREATE TABLE t (n int, secret encrypted_text) PARTITION BY RANGE (n);"
        " CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (1) TO (2)",
        "INSERT INTO t1 VALUES (5, {})",
    ),
    "unique in a partition": (
        "CREATE TABLE t (n int, secret encrypted_text, UNIQUE (n, secret))"
        " PARTITION BY RANGE (n); CREATE TABLE t1 PARTITION OF t DEFAULT;"
        " INSERT INTO t VALUES (1, {})",
        "INSERT INTO t VALUES (1, {})",
    ),
    "check option": (
        f"{MAKE}; CREATE VIEW v AS SELECT * FROM t WHERE n > 0 WITH CHECK OPTION",
        "INSERT INTO v VALUES (0, {})",
    ),
    "check of a domain": (
        "CREATE DOMAIN d AS encrypted_text;"
        " CREATE TABLE t (n int CHECK (n > 0), secret d)",
        "INSERT INTO t VALUES (0, {})",
    ),
    "unique of a domain": (
        "CREATE DOMAIN d AS encrypted_text; CREATE TABLE t (secret d UNIQUE);"
        " INSERT INTO t VALUES ({})",
        "INSERT INTO t VALUES ({})",
    ),
    "check of an array": (
        "CREATE TABLE t (n int CHECK (n > 0), secret encrypted_text[])",
        "INSERT INTO t VALUES (0, ARRAY[{}])",
    ),
    "check of a domain of an array": (
        "CREATE DOMAIN d AS encrypted_text[];"
        " CREATE TABLE t (n int CHECK (n > 0), secret d)",
        "INSERT INTO t VALUES (0, ARRAY[{}])",
    ),
    "check of a composite": (
        "CREATE TYPE c AS (x encrypted_text);"
        " CREATE TABLE t (n int CHECK (n > 0), secret c)",
        "INSERT INTO t VALUES (0, ROW({}))",
    ),
    "unique of an array": (
        "CREATE TABLE t (secret encrypted_text[] UNIQUE);"
        " INSERT INTO t VALUES (ARRAY[{}])",
        "INSERT INTO t VALUES (ARRAY[{}])",
    ),
    "unique of an array of a domain": (
        "CREATE DOMAIN d AS encrypted_text; CREATE TABLE t (secret d[] UNIQUE);"
        " INSERT INTO t VALUES (ARRAY[{}::d])",
        "INSERT INTO t VALUES (ARRAY[{}::d])",
    ),
    "unique of a composite": (
        "CREATE TYPE c AS (x encrypted_text); CREATE TABLE t (secret c UNIQUE);"
        " INSERT INTO t VALUES (ROW({}))",
        "INSERT INTO t VALUES (ROW({}))",
    ),
    "no such parent": (
        "CREATE TABLE p (id encrypted_text PRIMARY KEY);"
        " CREATE TABLE t (ref encrypted_text REFERENCES p)",
        "INSERT INTO t VALUES ({})",
    ),
    "still a child": (
        "CREATE TABLE p (secret encrypted_text PRIMARY KEY);"
        " CREATE TABLE t (ref encrypted_text REFERENCES p);"
        " INSERT INTO p VALUES ({}); INSERT INTO t VALUES ({})",
        "DELETE FROM p",
    ),
    "still a child that has such a column itself": (
        "CREATE TABLE p (id encrypted_text PRIMARY KEY);"
        " CREATE TABLE t (id int, ref encrypted_text REFERENCES p);"
        " INSERT INTO p VALUES ({}); INSERT INTO t VALUES (1, {})",
        "DELETE FROM p",
    ),
    "a foreign key is added": (
        "CREATE TABLE p (id encrypted_text PRIMARY KEY);"
        " CREATE TABLE t (ref encrypted_text); INSERT INTO t VALUES ({})",
        "ALTER TABLE t ADD FOREIGN KEY (ref) REFERENCES p",
    ),
    "at COMMIT": (
        "CREATE TABLE t (secret encrypted_text UNIQUE DEFERRABLE INITIALLY DEFERRED);"
        " INSERT INTO t VALUES ({})",
        "BEGIN; INSERT INTO t VALUES ({}); COMMIT",
    ),
    "in PL/pgSQL": (
        "CREATE TABLE t (secret encrypted_text UNIQUE); INSERT INTO t VALUES ({});"
        f"{INSERTS} INSERT INTO t VALUES (x); END $$",
        "SELECT inserts({})",
    ),
    "in PL/pgSQL, raised again": (
        "CREATE TABLE t (secret encrypted_text UNIQUE); INSERT INTO t VALUES ({});"
        f"{INSERTS} INSERT INTO t VALUES (x);"
        " EXCEPTION WHEN unique_violation THEN RAISE; END $$",
        "SELECT inserts({})",
    ),
    "a temporary table": (
        "CREATE TEMP TABLE t (secret encrypted_text UNIQUE); INSERT INTO t VALUES ({})",
        "INSERT INTO t VALUES ({})",
    ),
    "a type that is changed": (
        "CREATE TABLE t (secret text); INSERT INTO t VALUES ({}), ({} || ' ')",
        "ALTER TABLE t ALTER secret TYPE encrypted_text USING rtrim(secret),"
        " ADD UNIQUE (secret)",
    ),
    "a table made in the transaction": (
        "SELECT 1",
        "BEGIN; CREATE TABLE t (secret encrypted_text UNIQUE);"
        " INSERT INTO t VALUES ({}); INSERT INTO t VALUES ({})",
    ),
    "a table renamed in the transaction": (
        "CREATE TABLE t (secret encrypted_text UNIQUE); INSERT INTO t VALUES ({})",
        "BEGIN; ALTER TABLE t RENAME TO u; INSERT INTO u VALUES ({})",
    ),
}


def violate(session: psycopg.Connection, name: str) -> psycopg.errors.Diagnostic:
    before, statement = VIOLATIONS[name]
    literal = f"'{CANARY}'"
    session.execute(before.replace("{}", literal).encode())
    with pytest.raises(psycopg.errors.Error) as refused:
        session.execute(statement.replace("{}", literal).encode())
    return refused.value.diag


@pytest.mark.parametrize("name", VIOLATIONS)
def test_the_log_has_no_value_of_a_row_that_violates_something(
    quiet: Cluster, session: psycopg.Connection, name: str
) -> None:
    # The statement is PostgreSQL's to log.
    session.execute("SET log_min_error_statement = panic")
    log = Log(quiet)
    diag = violate(session, name)
    # The client is told.
    assert name == "check that is added" or CANARY in str(diag.message_detail)
    for part in log.parts():
        assert diag.sqlstate in part or "ERROR:  " in part
        assert_not_logged(part, CANARY)
        assert ("********" in part) == (diag.message_detail is not None)


def test_a_parallel_build_logs_no_value(
    quiet: Cluster, session: psycopg.Connection
) -> None:
    session.execute(
        "CREATE TABLE t (secret encrypted_text) WITH (parallel_workers = 2);"
        "INSERT INTO t SELECT 'x' || i FROM generate_series(1, 20000) i"
    )
    session.execute("INSERT INTO t VALUES (%s), (%s)".encode(), [CANARY, CANARY])
    log = Log(quiet)
    session.execute("SET maintenance_work_mem = '128MB'")
    session.execute("SET max_parallel_maintenance_workers = 2")
    session.execute("SET client_min_messages = debug1")
    heard: list[str] = []
    session.add_notice_handler(lambda diag: heard.append(str(diag.message_primary)))
    with pytest.raises(UniqueViolation) as refused:
        session.execute("CREATE UNIQUE INDEX ON t (secret)")
    assert CANARY in str(refused.value.diag.message_detail)
    assert any("with request for 2 parallel workers" in line for line in heard)
    assert_not_logged(log.text(), CANARY)


ORDINARY: dict[str, tuple[str, str]] = {
    "unique": ("CREATE TABLE t (x text UNIQUE)", "VALUES ('a'), ('a')"),
    "beside an encrypted column": (
        "CREATE TABLE t (x text UNIQUE, secret encrypted_text)",
        "VALUES ('a'), ('a')",
    ),
    "several": (
        'CREATE TABLE t (x text, "Y" int, PRIMARY KEY (x, "Y"))',
        "VALUES ('a', 1), ('a', 1)",
    ),
    "check": ("CREATE TABLE t (x text, n int CHECK (n > 0))", "VALUES ('a', 0)"),
    "not null": ("CREATE TABLE t (x text, n int NOT NULL)", "VALUES ('a')"),
    "no partition": (
        "CREATE TABLE t (x text) PARTITION BY LIST (x)",
        "VALUES ('a')",
    ),
    "exclusion": (
        "CREATE TABLE t (x text, EXCLUDE USING hash (x WITH =))",
        "VALUES ('a'), ('a')",
    ),
    "expression": (
        "CREATE TABLE t (x text); CREATE UNIQUE INDEX ON t (lower(x))",
        "VALUES ('a'), ('a')",
    ),
    "dropped column": (
        "CREATE TABLE t (y int, x text, n int NOT NULL); ALTER TABLE t DROP y",
        "VALUES ('a')",
    ),
    "dropped column, unique": (
        "CREATE TABLE t (y int, x text UNIQUE); ALTER TABLE t DROP y",
        "VALUES ('a'), ('a')",
    ),
    "parent": (
        "CREATE TABLE p (id text PRIMARY KEY); CREATE TABLE t (x text REFERENCES p)",
        "VALUES ('a')",
    ),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_details_of_other_tables_stay(
    quiet: Cluster, session: psycopg.Connection, name: str
) -> None:
    before, values = ORDINARY[name]
    session.execute(before.encode())
    log = Log(quiet)
    with pytest.raises(psycopg.Error) as refused:
        session.execute(f"INSERT INTO t {values}".encode())
    detail = refused.value.diag.message_detail
    assert detail is not None and "a" in detail
    assert f"DETAIL:  {detail}" in log.stderr()


@pytest.mark.parametrize("secret", ["", ", secret encrypted_text"])
def test_rows_are_copied_into_a_table_with_a_dropped_column(
    session: psycopg.Connection, secret: str
) -> None:
    session.execute(f"CREATE TABLE t (x int, n int{secret}); ALTER TABLE t DROP x")
    session.execute("COPY t (n) FROM PROGRAM 'echo 1'")
    assert fetch(session, "SELECT n FROM t") == 1


def test_the_log_is_of_no_concern_to_those_who_may_not_use_the_schema(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(ring=new_key(), conf=PRELOAD)
    cluster.psql(
        "CREATE ROLE app LOGIN; REVOKE ALL ON SCHEMA colcrypt FROM PUBLIC;"
        "CREATE TABLE t (n int CHECK (n > 0)); GRANT ALL ON t TO app"
    )
    with cluster.connect(user="app") as session:
        with pytest.raises(CheckViolation) as refused:
            session.execute("INSERT INTO t VALUES (0)")
        assert "violates check" in str(refused.value.diag.message_primary)
        with session.cursor() as cursor, cursor.copy("COPY t FROM STDIN") as copy:
            copy.write("1\n")


def test_values_are_hidden_in_other_languages(base: Path, template: Path) -> None:
    locales = base / "locales"
    locales.mkdir()
    give_to_server(locales)
    command = ["localedef", "-i", "de_DE", "-f", "UTF-8", str(locales / "de_DE.UTF-8")]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("no sources of locales")
    cluster = Cluster(base, template, ring=new_key())
    try:
        cluster.conf(PRELOAD | {"lc_messages": "de_DE.UTF-8"})
        cluster.set_env({"LOCPATH": str(locales)})
        cluster.start()
        cluster.psql("CREATE EXTENSION colcrypt")
        cluster.psql("CREATE TABLE t (n int CHECK (n > 0), secret encrypted_text)")
        with cluster.connect() as session, pytest.raises(CheckViolation) as refused:
            session.execute("INSERT INTO t VALUES (0, %s)", [CANARY])
        if "violates" in str(refused.value):
            pytest.skip("no German messages")
        assert_not_logged(cluster.log(), CANARY)
    finally:
        cluster.destroy()


# The server must not suffer from it


@pytest.mark.parametrize(
    "conf", [{"log_statement": "all"}, {"log_min_duration_statement": 0}], ids=str
)
def test_a_logged_parameter_does_not_crash_the_server(
    make_cluster: MakeCluster, conf: dict[str, Setting]
) -> None:
    cluster = make_cluster(ring=new_key(), conf=PRELOAD | conf)
    postmaster = cluster.postmaster_pid()
    with cluster.connect() as session:
        for prepare in (False, True):
            for _ in range(3):
                session.execute(
                    "SELECT set_config('colcrypt.key', %s, false)",
                    [new_key()],
                    prepare=prepare,
                )
        assert fetch(session, "SELECT 1") == 1
    assert cluster.postmaster_pid() == postmaster


def test_the_postmaster_survives_a_crash_while_a_key_is_set(
    make_cluster: MakeCluster,
) -> None:
    # It logs what the process was running.
    cluster = make_cluster(ring=new_key(), conf=PRELOAD)
    key = new_key()
    with cluster.connect() as session, ThreadPoolExecutor(1) as threads:
        sleep = f"SELECT set_config('colcrypt.key', '{key}', false), pg_sleep(60)"
        running = threads.submit(session.execute, sleep.encode())
        is_asleep = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        wait_until(lambda: cluster.psql(is_asleep) == "1", "the statement")
        postmaster = cluster.postmaster_pid()
        os.kill(session.info.backend_pid, signal.SIGKILL)
        with pytest.raises(psycopg.OperationalError):
            running.result()
    ended = "was terminated by signal 9"
    wait_until(lambda: ended in cluster.log(), "the crash")
    # It dies within milliseconds, or not at all.
    time.sleep(0.5)
    assert is_running(postmaster)
    wait_until(cluster.accepts_sessions, "the recovery")
    assert_no_key(cluster.log(), key)


BIG = {
    "words": lambda: "lorem ipsum " * 90_000,
    "hex": lambda: secrets.token_hex(500_000),
    "base64": lambda: base64.b64encode(secrets.token_bytes(750_000)).decode(),
    "one letter": lambda: "a" * 1_000_000,
    "almost keys": lambda: "Aa0" * 14 + " ",
    "equals signs": lambda: "=" * 1_000_000,
    "the name": lambda: "colcrypt." * 110_000,
    "settings": lambda: "set colcrypt " * 77_000,
}


@pytest.mark.parametrize("name", BIG)
def test_big_statements_are_logged_quickly(
    quiet: Cluster, session: psycopg.Connection, name: str
) -> None:
    text = BIG[name]()
    text *= 1_000_000 // len(text)
    session.execute("SET log_statement = 'all'; SET log_parameter_max_length = -1")
    start = cpu_seconds(session)
    session.execute(f"SELECT length('{text}')".encode())
    session.execute("SELECT length(%s)", [text])
    assert cpu_seconds(session) - start < 1.5


def cpu_seconds(session: psycopg.Connection) -> float:
    """What its backend has used so far."""
    stat = Path(f"/proc/{session.info.backend_pid}/stat").read_text()
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def test_a_big_statement_is_not_searched_for_every_message(
    quiet: Cluster, session: psycopg.Connection
) -> None:
    do = "DO $$ BEGIN FOR i IN 1..200 LOOP RAISE LOG 'x'; END LOOP; END $$"
    start = cpu_seconds(session)
    session.execute(f"{do} -- {secrets.token_hex(50_000)}".encode())
    assert cpu_seconds(session) - start < 1.5


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_other_encodings_are_logged_as_they_are(quiet: Cluster, encoding: str) -> None:
    name = f"db_{encoding.lower()}"
    options = f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    quiet.psql(f"DROP DATABASE IF EXISTS {name}")
    quiet.psql(f"CREATE DATABASE {name} {options}")
    quiet.psql("CREATE EXTENSION colcrypt", db=name)
    log = Log(quiet)
    key = new_key()
    with quiet.connect(dbname=name, client_encoding=encoding) as session:
        session.execute("SET log_statement = 'all'")
        session.execute(b"SELECT 'caf\xe9 1'")
        session.execute(b"SELECT 'caf\xe9 2', '" + key.encode() + b"', 'caf\xe9 3'")
        session.execute(b"SET colcrypt.key = '" + key.encode() + b"' -- caf\xe9")
        session.execute(
            b'CREATE TABLE "t\xe9" ("\xe9" text UNIQUE, "s\xe9" encrypted_text UNIQUE)'
        )
        session.execute("SET log_statement = 'none'")
        session.execute("SET log_min_error_statement = panic")
        plain = b'INSERT INTO "t\xe9" ("\xe9") VALUES (\'visible\')'
        secret = b'INSERT INTO "t\xe9" ("s\xe9") VALUES (\'' + CANARY.encode() + b"')"
        for statement in (plain, secret):
            session.execute(statement)
            with pytest.raises(UniqueViolation):
                session.execute(statement)
        assert fetch(session, "SELECT 1") == 1
    text = log.text()
    assert b"SELECT 'caf\xe9 1'" in (quiet.datadir / "logs" / "log").read_bytes()
    assert_no_key(text, key)
    assert_not_logged(text, CANARY)


@pytest.mark.xfail(strict=True, reason="what is redacted is taken for UTF-8")
def test_what_is_left_of_a_redacted_statement_stays_as_it_is(quiet: Cluster) -> None:
    quiet.psql("DROP DATABASE IF EXISTS latin1")
    options = "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    quiet.psql(f"CREATE DATABASE latin1 {options}")
    with quiet.connect(dbname="latin1", client_encoding="LATIN1") as session:
        session.execute("SET log_statement = 'all'")
        session.execute(b"SELECT 'caf\xe9 4', '" + new_key().encode() + b"'")
    Log(quiet).text()
    assert b"caf\xe9 4" in (quiet.datadir / "logs" / "log").read_bytes()


def test_details_of_other_tables_stay_in_other_encodings(quiet: Cluster) -> None:
    quiet.psql("DROP DATABASE IF EXISTS latin2")
    options = "ENCODING 'LATIN2' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    quiet.psql(f"CREATE DATABASE latin2 {options}")
    quiet.psql("CREATE EXTENSION colcrypt", db="latin2")
    log = Log(quiet)
    with quiet.connect(dbname="latin2", client_encoding="LATIN2") as session:
        session.execute(b'CREATE TABLE t ("\xe9" text UNIQUE)')
        session.execute("SET log_min_error_statement = panic")
        with pytest.raises(UniqueViolation):
            session.execute("INSERT INTO t VALUES ('visible'), ('visible')")
    assert "visible" in log.text()


# Without the hook from the start


@pytest.fixture
def late(make_cluster: MakeCluster) -> Cluster:
    """A server without the library in shared_preload_libraries."""
    cluster = make_cluster(ring=new_key())
    cluster.psql("CREATE TABLE t (n int, secret encrypted_text UNIQUE)")
    return cluster


def test_without_preload_errors_of_colcrypt_come_without_statement(
    late: Cluster,
) -> None:
    attempt(late, f"INSERT INTO t VALUES (1, 'colcrypt:v1:{CANARY}')")
    copied = f"COPY t (secret) FROM PROGRAM 'echo colcrypt:v1:{CANARY}'"
    attempt(late, "LOAD 'colcrypt'", copied)
    assert late.log().count("ERROR:  value starts with the reserved prefix") == 2
    assert_not_logged(late.log(), CANARY)


def test_without_preload_keys_are_hidden_once_the_library_is_loaded(
    late: Cluster,
) -> None:
    key, before = new_key(), new_key()
    with late.connect() as session:
        session.execute("SET log_statement = 'all'")
        session.execute(f"SET colcrypt.key = '{before}'".encode())
        session.execute("SELECT encrypt('x')")
        session.execute(f"SET colcrypt.key = '{key}'".encode())
        session.execute("INSERT INTO t VALUES (1, %s)", ["value"])
        with pytest.raises(UniqueViolation):
            session.execute("INSERT INTO t VALUES (1, %s)", ["value"])
    assert_no_key(late.log(), key)
    # This is why the documentation asks for the preload.
    assert before in late.log()
    assert "Key (secret)=(********)" in late.log()


def test_without_preload_a_refused_key_is_logged(late: Cluster) -> None:
    with late.connect() as session:
        session.execute("LOAD 'colcrypt'")
        with pytest.raises(InvalidParameterValue):
            session.execute(f"SET colcrypt.key = '{CANARY}'".encode())
    assert_not_logged(late.log(), CANARY)
    with late.connect() as session:
        session.execute(f"SET colcrypt.key = '{CANARY}'".encode())
        with pytest.raises(ObjectNotInPrerequisiteState):
            session.execute("SELECT encrypt('x')")
    assert_not_logged(late.log(), CANARY)
