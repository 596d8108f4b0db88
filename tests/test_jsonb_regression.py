"""Any input goes into an encrypted_jsonb column and comes out of it as with jsonb.

Shown with the inputs of PostgreSQL's own regression tests of jsonb, and some more. The
tables `jsonb` and `encrypted_jsonb` differ in their column's type only; every input is
written to both in every way there is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.pq import DiagnosticField, ExecStatus, Format
from psycopg.pq.abc import PGresult

from harness import Cluster, Database, fetch

PLAIN, SEALED = "jsonb", "encrypted_jsonb"

INPUTS = Path(__file__).parent / "data" / "jsonb_regress.txt"
STANDS_FOR = {"␤": "\n", "␉": "\t", "␠": " ", "∅": ""}


def inputs(section: str) -> list[str]:
    text = INPUTS.read_text().split(f"\n== {section} ==\n")[1].split("\n== ")[0]
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [line.translate(str.maketrans(STANDS_FOR)) for line in lines]


# The script makes this one with repeat().
LONG_KEY = '{"' + "xyzzy" * 500 + '": "bar"}'
ACCEPTED = [*inputs("accepted"), LONG_KEY]
REFUSED = inputs("refused")

# What PostgreSQL's scripts do not try; jsonb accepts some and refuses others.
OTHERS = [
    # Numbers.
    "-0",
    "-0.0",
    "0e0",
    "1E+2",
    "1e-2",
    "1.10",
    "100.00",
    "0.000000001",
    "1e-400",
    "1e400",
    "12345678901234567890123456789.000",
    "1" * 300 + "." + "2" * 300,
    "1e131071",
    "1e131072",
    "1e9999999999",
    "-1e-16383",
    "[1e-16384]",
    "+1",
    ".5",
    "1.",
    "0x10",
    "-",
    "NaN",
    "Infinity",
    "1_000",
    # Strings.
    '"\\u00e9é\\u00C9"',
    '"e\\u0301"',
    '"\\ud83d\\udd11🔑"',
    '"\\uD834\\uDD1E"',
    '"\\u007f\x7f\\u0080"',
    '"\\b\\f\\n\\r\\t\\/\\\\\\""',
    '"\\u0001\\u001f"',
    '"\x01"',
    '"\x1f"',
    '"a\tb"',
    '"\\x41"',
    '"\\U0041"',
    '"\\',
    '"\\"',
    '"\\u12',
    '"\\u1F60G"',
    '"\u2028\u2029\ufeff\u00a0"',
    "'a'",
    '"\\\'"',
    '"it\'s $$ %s %(x)s \\\\N \\\\."',
    "\\N",
    "\\.",
    '"' + "x" * 100_000 + '"',
    '"' + '\\"' * 3000 + '"',
    # White space.
    " \t\r\n{ \t\r\n} \t\r\n",
    "\u00a01",
    "\ufeff1",
    "\x0b1",
    "\x0c1",
    "1 \\n",
    # Words.
    "True",
    "NULL",
    "nul",
    "nulll",
    "true1",
    "undefined",
    # Objects: order, duplicates, odd keys.
    '{"b":1,"aa":2,"a":3,"B":4,"":5}',
    '{"a":1,"a":2,"a":{"b":1,"b":2}}',
    '{"a":1,"\\u0061":2}',
    '{"é":1,"e":2,"ée":3,"zz":4}',
    '{"1":1,"10":2,"9":3,"-1":4}',
    '{" ":1,"\\n":2,"\\u0000":3}',
    '{"a":1,}',
    '{,"a":1}',
    '{"a":1 "b":2}',
    '{"a" "b"}',
    "{null:1}",
    '{"a":1}}',
    '{"a":1}{"a":1}',
    '{"' + "k" * 70_000 + '":1}',
    "{" + ",".join(f'"k{n}":{n}' for n in range(1000, 0, -1)) + "}",
    # Arrays.
    "[,]",
    "[1,,2]",
    "[1 2]",
    "[1]]",
    "]",
    "[" * 1000 + "]" * 1000,
    '{"a":' * 1000 + "1" + "}" * 1000,
    "[" * 1000 + "]" * 999,
    "[" + "1," * 5000 + "1]",
    "[[],{},[{}],{}]",
    # Not JSON.
    "// c\n1",
    "/**/1",
    "\\x00",
    "(1,2)",
    "{1,2}",
    # What only resembles ciphertext.
    '"colcrypt:v"',
    '"Colcrypt:v1:"',
    '{"colcrypt:v1:":"colcrypt:v1:AQ"}',
    '["colcrypt:v1:AQ"]',
]


# The ways to write a document: as a literal, by COPY, and bound to a parameter. Of that,
# the expression, the parameter's type and the format; {type} is the column's type.
COPIED = ["COPY text", "COPY csv", "COPY binary"]
BOUND = {
    "untyped": ("$1", "unknown", Format.TEXT),
    "typed": ("$1", "{type}", Format.TEXT),
    "typed, binary": ("$1", "{type}", Format.BINARY),
    "text, cast": ("$1::{type}", "text", Format.TEXT),
    "array": ("($1::{type}[])[1]", "unknown", Format.TEXT),
    "jsonb": ("$1", "jsonb", Format.TEXT),
    "jsonb, binary": ("$1", "jsonb", Format.BINARY),
    "jsonb, cast": ("$1::{type}", "jsonb", Format.TEXT),
    "json": ("$1", "json", Format.TEXT),
    "json, binary": ("$1", "json", Format.BINARY),
    "json, cast": ("$1::{type}", "json", Format.TEXT),
}
WAYS = ["literal", *COPIED, *BOUND]
# Of the others, it is jsonb or json that reads the document, and refuses it.
READ_BY_THE_TYPE = [way for way in WAYS if not way.startswith("json")]

# What a value is looked at as, besides what the type itself prints and sends.
FORMS = [
    "doc::text",
    "doc::jsonb::text",
    "doc::json::text",
    "jsonb_pretty(doc)",
    "jsonb_typeof(doc)",
    "format('%s', doc)",
    "to_json(doc)::text",
    "to_jsonb(doc)::text",
    "row_to_json(ROW(doc))::text",
    "ARRAY[doc]::text",
    "ROW(doc)::text",
]

UNLIMITED_DEPTH = ("[" * 10_000, '{"a":' * 10_000)

CANARY = "kanarienvogel"


@dataclass
class Outcome:
    """What became of a document."""

    # By the way it was written: what is read then, or the SQLSTATE.
    read: dict[str, list[bytes | None]] = field(default_factory=dict)
    sqlstates: dict[str, str] = field(default_factory=dict)
    # Every text that a client gets with the errors.
    texts: list[str] = field(default_factory=list)


class Writer:
    """A session that writes documents to the two tables."""

    def __init__(self, db: Database) -> None:
        self.session = db.connect()
        self.oids = {"unknown": 0}
        for type in (PLAIN, SEALED, "json", "text"):
            oid = fetch(self.session, "SELECT %s::regtype::oid::bigint", type)
            self.oids[type] = oid
        for type in (PLAIN, SEALED):
            self.session.execute(f"CREATE TABLE {type} (n int, way text, doc {type})")

    def outcomes(
        self, type: str, documents: list[str], ways: list[str]
    ) -> dict[str, Outcome]:
        """Writes each document to the type's table in each way, and reads what is
        there then."""
        self.session.execute(f"TRUNCATE {type}")
        outcomes = [Outcome() for _ in documents]
        for n, document in enumerate(documents):
            for way in ways:
                refused = self.refusal(type, n, way, document)
                if refused is not None:
                    texts = map(refused.error_field, DiagnosticField)
                    sqlstate = refused.error_field(DiagnosticField.SQLSTATE)
                    outcomes[n].sqlstates[way] = sqlstate.decode()
                    outcomes[n].texts += [text.decode() for text in texts if text]
        query = f"SELECT n::text, way, doc, {', '.join(FORMS)} FROM {type}"
        for format in (Format.TEXT, Format.BINARY):
            for n, way, *values in self.rows(query, format):
                outcomes[int(n)].read.setdefault(way.decode(), []).extend(values)
        return dict(zip(documents, outcomes))

    def rows(self, query: str, format: Format) -> Iterator[list[Any]]:
        """The rows of a result, as they are sent."""
        result = self.session.pgconn.exec_params(
            query.encode(), [], result_format=format
        )
        assert result.status == ExecStatus.TUPLES_OK, result.error_message
        for row in range(result.ntuples):
            yield [result.get_value(row, column) for column in range(result.nfields)]

    def refusal(self, type: str, n: int, way: str, document: str) -> PGresult | None:
        """Writes a document; the error, if there is one."""
        if way in COPIED:
            return self.copy(type, n, way, document)
        insert = f"INSERT INTO {type} VALUES ({n}, '{way}', "
        if way == "literal":
            literal = sql.Literal(document).as_string(self.session)
            done = self.session.pgconn.exec_(f"{insert}{literal})".encode())
        else:
            expression, parameter, format = BOUND[way]
            parameter = parameter.format(type=type)
            done = self.session.pgconn.exec_params(
                f"{insert}{expression.format(type=type)})".encode(),
                [sent(way, parameter, format, document)],
                [self.oids[parameter]],
                [format],
            )
        return None if done.status == ExecStatus.COMMAND_OK else done

    def copy(self, type: str, n: int, way: str, document: str) -> PGresult | None:
        format = way.removeprefix("COPY ")
        command = f"COPY {type} FROM STDIN (FORMAT {format})"
        try:
            with self.session.cursor().copy(command) as copy:
                copy.write(copied(format, [str(n), way, document]))
        except psycopg.Error as error:
            return error.pgresult
        return None


def sent(way: str, parameter: str, format: Format, document: str) -> bytes:
    """A document as it is bound to a parameter."""
    if way == "array":
        escaped = document.replace("\\", "\\\\").replace('"', '\\"')
        return f'{{"{escaped}"}}'.encode()
    version = b"\1" if format == Format.BINARY and parameter != "json" else b""
    return version + document.encode()


def copied(format: str, row: list[str]) -> bytes:
    """A row of (int, text, document) as COPY takes it."""
    n, way, document = row
    if format == "csv":
        document = document.replace('"', '""')
        return f'{n},"{way}","{document}"\n'.encode()
    if format == "text":
        for special, escape in (("\\", "\\\\"), ("\n", "\\n"), ("\t", "\\t"), ("\r", "\\r")):
            document = document.replace(special, escape)
        return f"{n}\t{way}\t{document}\n".encode()
    fields = [struct.pack("!i", int(n)), way.encode(), b"\1" + document.encode()]
    packed = b"".join(struct.pack("!i", len(field)) + field for field in fields)
    header = b"PGCOPY\n\xff\r\n\0" + struct.pack("!iih", 0, 0, len(fields))
    return header + packed + struct.pack("!h", -1)


@pytest.fixture(scope="module")
def database(server: Cluster) -> Iterator[Database]:
    server.psql("CREATE DATABASE jsonb_regression TEMPLATE with_colcrypt")
    yield Database(server, "jsonb_regression")
    server.psql("DROP DATABASE jsonb_regression WITH (FORCE)")


@pytest.fixture(scope="module")
def writer(database: Database) -> Writer:
    return Writer(database)


Outcomes = dict[str, dict[str, Outcome]]


@pytest.fixture(scope="module")
def outcomes(writer: Writer) -> Outcomes:
    """What became of every input, by type."""
    every = [*ACCEPTED, *REFUSED, *OTHERS]
    return {type: writer.outcomes(type, every, WAYS) for type in (PLAIN, SEALED)}


@pytest.mark.parametrize("document", ACCEPTED)
def test_what_jsonb_accepts_comes_back_as_from_jsonb(
    outcomes: Outcomes, document: str
) -> None:
    plain, sealed = outcomes[PLAIN][document], outcomes[SEALED][document]
    assert set(plain.read) == set(WAYS)
    assert sealed.sqlstates == {}
    assert sealed.read == plain.read


@pytest.mark.parametrize("document", REFUSED)
def test_what_jsonb_refuses_is_refused_with_the_same_sqlstate(
    outcomes: Outcomes, document: str
) -> None:
    plain, sealed = outcomes[PLAIN][document], outcomes[SEALED][document]
    assert set(plain.sqlstates) >= set(READ_BY_THE_TYPE)
    assert sealed.sqlstates == plain.sqlstates
    assert sealed.read == plain.read


@pytest.mark.parametrize("document", OTHERS, ids=lambda document: repr(document[:40]))
def test_inputs_beyond_the_script_fare_as_with_jsonb(
    outcomes: Outcomes, document: str
) -> None:
    plain, sealed = outcomes[PLAIN][document], outcomes[SEALED][document]
    assert sealed.sqlstates == plain.sqlstates
    assert sealed.read == plain.read
