"""Any input goes into an encrypted_jsonb column and comes out of it as with jsonb.

Shown with the inputs of PostgreSQL's own regression tests of jsonb, and some more. The
tables of_jsonb and of_encrypted_jsonb differ in their column's type only; every input
is written to both in every way there is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

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


# The script makes this one with repeat(), and two that are nested too deeply.
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
    '"' + "x" * 20_000 + '"',
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
    '{"' + "k" * 9000 + '":1}',
    "{" + ",".join(f'"k{n}":{n}' for n in range(1000, 0, -1)) + "}",
    # Arrays.
    "[,]",
    "[1,,2]",
    "[1 2]",
    "[1]]",
    "]",
    "[" * 200 + "]" * 200,
    '{"a":' * 200 + "1" + "}" * 200,
    "[" * 200 + "]" * 199,
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


# The ways to write a document: by COPY, as a literal, and bound to a parameter; of
# these the expression, the parameter's type and the format. {type} is the column's.
COPIED = ["COPY text", "COPY csv", "COPY binary"]
LITERAL = ("{literal}", "unknown", Format.TEXT)
BOUND = {
    "untyped": ("${n}", "unknown", Format.TEXT),
    "typed": ("${n}", "{type}", Format.TEXT),
    "typed, binary": ("${n}", "{type}", Format.BINARY),
    "text, cast": ("${n}::{type}", "text", Format.TEXT),
    "array": ("(${n}::{type}[])[1]", "unknown", Format.TEXT),
    "jsonb": ("${n}", "jsonb", Format.TEXT),
    "jsonb, binary": ("${n}", "jsonb", Format.BINARY),
    "jsonb, cast": ("${n}::{type}", "jsonb", Format.TEXT),
    "json": ("${n}", "json", Format.TEXT),
    "json, binary": ("${n}", "json", Format.BINARY),
    "json, cast": ("${n}::{type}", "json", Format.TEXT),
}
WAYS = ["literal", *COPIED, *BOUND]
# Of the others, it is jsonb or json that reads the document, and refuses it.
READ_BY_THE_TYPE = [way for way in WAYS if not way.startswith("json")]

# What a value is looked at as, besides what the type sends.
FORMS = [
    "doc",
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

# What the binary form of a document begins with.
VERSION = b"\1"
# In COPY's text format.
ESCAPED = str.maketrans({"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"})

TOO_DEEP = ("[" * 10_000, '{"a":' * 10_000)

CANARY = "kanarienvogel"


@dataclass
class Outcome:
    """What became of a document."""

    # By the way it was written: what is read then, or the SQLSTATE.
    read: dict[str, list[bytes | None]] = field(default_factory=dict)
    sqlstates: dict[str, str] = field(default_factory=dict)
    # What a client gets with the errors: each field's text.
    errors: dict[str, dict[str, str]] = field(default_factory=dict)


class Writer:
    """A session that writes documents to the two tables."""

    def __init__(self, db: Database) -> None:
        self.session = db.connect()
        self.oids = {"unknown": 0}
        for type in (PLAIN, SEALED, "json", "text"):
            oid = fetch(self.session, "SELECT %s::regtype::oid::bigint", type)
            self.oids[type] = oid
        for type in (PLAIN, SEALED):
            self.session.execute(
                f"CREATE TABLE of_{type} (n int, way text, doc {type})"
            )

    def outcomes(
        self, type: str, documents: list[str], ways: list[str]
    ) -> dict[str, Outcome]:
        """Writes each document to the type's table in each way, and reads what is
        there then."""
        self.session.execute(f"TRUNCATE of_{type}")
        outcomes = [Outcome() for _ in documents]
        rows = list(enumerate(documents))
        # One statement for those that should be accepted saves time.
        together = [row for row in rows if row[1] in ACCEPTED]
        for way in ways:
            alone = rows
            if together and self.refusal(type, way, together) is None:
                alone = [row for row in rows if row not in together]
            for n, document in alone:
                refused = self.refusal(type, way, [(n, document)])
                if refused is not None:
                    error = error_fields(refused)
                    outcomes[n].errors[way] = error
                    outcomes[n].sqlstates[way] = error["SQLSTATE"]
        for format, forms in ((Format.TEXT, FORMS), (Format.BINARY, ["doc"])):
            query = f"SELECT n::text, way, {', '.join(forms)} FROM of_{type}"
            for n, way, *values in self.result(query, format):
                outcomes[int(n)].read.setdefault(way.decode(), []).extend(values)
        return dict(zip(documents, outcomes))

    def result(self, query: str, format: Format) -> Iterator[list[Any]]:
        """A query's rows, as they are sent."""
        result = self.session.pgconn.exec_params(
            query.encode(), [], result_format=format
        )
        assert result.status == ExecStatus.TUPLES_OK, result.error_message
        for row in range(result.ntuples):
            yield [result.get_value(row, column) for column in range(result.nfields)]

    def refusal(
        self, type: str, way: str, rows: list[tuple[int, str]]
    ) -> PGresult | None:
        """Writes numbered documents in one statement; the error, if there is one."""
        if way in COPIED:
            return self.copy(type, way, rows)
        expression, parameter, format = BOUND.get(way, LITERAL)
        parameter = parameter.format(type=type)
        values, bound = [], []
        for place, (n, document) in enumerate(rows, start=1):
            literal = sql.Literal(document).as_string(self.session)
            value = expression.format(type=type, n=place, literal=literal)
            values.append(f"({n}, '{way}', {value})")
            bound.append(sent(way, parameter, format, document))
        if way == "literal":
            bound = []
        done = self.session.pgconn.exec_params(
            f"INSERT INTO of_{type} VALUES {', '.join(values)}".encode(),
            bound,
            [self.oids[parameter]] * len(bound),
            [format] * len(bound),
        )
        return None if done.status == ExecStatus.COMMAND_OK else done

    def copy(self, type: str, way: str, rows: list[tuple[int, str]]) -> PGresult | None:
        format = way.removeprefix("COPY ")
        command = f"COPY of_{type} FROM STDIN (FORMAT {format})"
        try:
            with self.session.cursor().copy(command) as copy:
                copy.write(copied(format, way, rows))
        except psycopg.Error as error:
            return error.pgresult
        return None


def error_fields(refused: PGresult) -> dict[str, str]:
    fields = {field.name: refused.error_field(field) for field in DiagnosticField}
    return {name: text.decode() for name, text in fields.items() if text}


def sent(way: str, parameter: str, format: Format, document: str) -> bytes:
    """A document as it is bound to a parameter."""
    if way == "array":
        escaped = document.replace("\\", "\\\\").replace('"', '\\"')
        return f'{{"{escaped}"}}'.encode()
    version = VERSION if format == Format.BINARY and parameter != "json" else b""
    return version + document.encode()


def copied(format: str, way: str, rows: list[tuple[int, str]]) -> bytes:
    """Rows (int, text, document) as COPY takes them."""
    if format == "text":
        lines = [f"{n}\t{way}\t{document.translate(ESCAPED)}\n" for n, document in rows]
        return "".join(lines).encode()
    if format == "csv":
        quoted = [(n, document.replace('"', '""')) for n, document in rows]
        return "".join(f'{n},{way},"{document}"\n' for n, document in quoted).encode()
    data = b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)
    for n, document in rows:
        fields = [struct.pack("!i", n), way.encode(), VERSION + document.encode()]
        data += struct.pack("!h", len(fields))
        data += b"".join(struct.pack("!i", len(field)) + field for field in fields)
    return data + struct.pack("!h", -1)


@pytest.fixture(scope="module")
def database(server: Cluster) -> Iterator[Database]:
    server.psql("CREATE DATABASE jsonb_regression TEMPLATE with_colcrypt")
    yield Database(server, "jsonb_regression")
    server.psql("DROP DATABASE jsonb_regression WITH (FORCE)")


@pytest.fixture(scope="module")
def writer(database: Database) -> Iterator[Writer]:
    writer = Writer(database)
    yield writer
    writer.session.close()


def abridged(document: str) -> str:
    """A document's name as a parameter."""
    return document[:60] or "empty"


Outcomes = dict[str, dict[str, Outcome]]


@pytest.fixture(scope="module")
def outcomes(writer: Writer) -> Outcomes:
    """What became of every input, by type."""
    every = [*ACCEPTED, *REFUSED, *OTHERS]
    return {type: writer.outcomes(type, every, WAYS) for type in (PLAIN, SEALED)}


@pytest.mark.parametrize("document", ACCEPTED, ids=abridged)
def test_what_jsonb_accepts_comes_back_as_from_jsonb(
    outcomes: Outcomes, document: str
) -> None:
    plain, sealed = outcomes[PLAIN][document], outcomes[SEALED][document]
    assert set(plain.read) == set(WAYS)
    assert sealed.sqlstates == {}
    assert sealed.read == plain.read


@pytest.mark.parametrize("document", REFUSED, ids=abridged)
def test_what_jsonb_refuses_is_refused_with_the_same_sqlstate(
    outcomes: Outcomes, document: str
) -> None:
    plain, sealed = outcomes[PLAIN][document], outcomes[SEALED][document]
    assert set(plain.sqlstates) >= set(READ_BY_THE_TYPE)
    assert sealed.sqlstates == plain.sqlstates
    assert sealed.read == plain.read


@pytest.mark.parametrize("document", OTHERS, ids=abridged)
def test_inputs_beyond_the_script_fare_as_with_jsonb(
    outcomes: Outcomes, document: str
) -> None:
    plain, sealed = outcomes[PLAIN][document], outcomes[SEALED][document]
    assert sealed.sqlstates == plain.sqlstates
    assert sealed.read == plain.read


# All inputs together


@pytest.fixture(scope="module")
def pairs(writer: Writer) -> psycopg.Connection:
    """A session with each accepted input, as a document of both types, in `pairs`."""
    session = writer.session
    session.execute(f"CREATE TABLE pairs (n int, plain {PLAIN}, sealed {SEALED})")
    rows = [(n, each, each) for n, each in enumerate(ACCEPTED)]
    session.cursor().executemany("INSERT INTO pairs VALUES (%s, %s, %s)", rows)
    return session


@pytest.mark.parametrize("format", ["text", "csv", "binary"])
def test_copy_out_gives_the_bytes_that_jsonb_gives(
    pairs: psycopg.Connection, format: str
) -> None:
    plain, sealed = (
        copied_out(pairs, f"SELECT {column} FROM pairs ORDER BY n", format)
        for column in ("plain", "sealed")
    )
    assert len(plain) > 10_000
    assert sealed == plain


def copied_out(session: psycopg.Connection, query: str, format: str) -> bytes:
    with session.cursor().copy(f"COPY ({query}) TO STDOUT (FORMAT {format})") as copy:
        return b"".join(copy)


COMPARED = {
    "sealed": "a.sealed = b.sealed",
    "plain right": "a.sealed = b.plain",
    "plain left": "a.plain = b.sealed",
    "unequal": "NOT a.sealed <> b.sealed",
}


@pytest.mark.parametrize("condition", COMPARED.values(), ids=COMPARED)
def test_inputs_are_equal_where_jsonb_says_so(
    pairs: psycopg.Connection, condition: str
) -> None:
    join = "FROM pairs AS a JOIN pairs AS b ON"
    ids = f"SELECT a.n, b.n {join} {{}} ORDER BY 1, 2"
    equal = pairs.execute(ids.format("a.plain = b.plain")).fetchall()
    assert len(equal) > len(ACCEPTED)
    # Once by an index of the join's own, once pair by pair.
    assert pairs.execute(ids.format(condition)).fetchall() == equal
    differ = f"SELECT count(*) {join} ({condition}) <> (a.plain = b.plain)"
    assert fetch(pairs, differ) == 0


GROUPINGS = {
    "DISTINCT": "SELECT count(DISTINCT {}) FROM pairs",
    "GROUP BY": "SELECT array_agg(c ORDER BY c) FROM"
    " (SELECT count(*) AS c FROM pairs GROUP BY {}) AS groups",
    "UNION": "SELECT count(*) FROM (SELECT {0} FROM pairs UNION SELECT {0} FROM pairs)"
    " AS united",
    "EXCEPT": "SELECT count(*) FROM (SELECT {0} FROM pairs EXCEPT SELECT {0} FROM pairs"
    " WHERE n % 2 = 0) AS left_over",
}


@pytest.mark.parametrize("query", GROUPINGS.values(), ids=GROUPINGS)
def test_inputs_are_grouped_as_with_jsonb(
    pairs: psycopg.Connection, query: str
) -> None:
    assert fetch(pairs, query.format("sealed")) == fetch(pairs, query.format("plain"))


@pytest.mark.parametrize("method", ["btree", "hash"])
def test_an_index_finds_what_jsonb_finds(
    pairs: psycopg.Connection, method: str
) -> None:
    with pairs.transaction(force_rollback=True):
        pairs.execute(f"CREATE INDEX ON pairs USING {method} (sealed)")
        pairs.execute("SET LOCAL enable_seqscan = off")
        explained = "EXPLAIN SELECT n FROM pairs WHERE sealed = '1'::jsonb"
        plan = pairs.execute(explained).fetchall()
        assert "pairs_sealed_idx" in str(plan)
        found = "SELECT array_agg(n ORDER BY n) FROM pairs AS b WHERE {} = a.plain"
        count = fetch(
            pairs,
            f"SELECT count(*) FROM pairs AS a WHERE ({found.format('b.sealed')})"
            f" IS DISTINCT FROM ({found.format('b.plain')})",
        )
        assert count == 0


# Depth


@pytest.mark.parametrize("way", READ_BY_THE_TYPE)
@pytest.mark.parametrize("document", TOO_DEEP, ids=["arrays", "objects"])
def test_a_document_that_is_nested_too_deeply_is_refused_as_by_jsonb(
    writer: Writer, document: str, way: str
) -> None:
    # As PostgreSQL's script has it.
    writer.session.execute("SET max_stack_depth = '100kB'")
    try:
        plain, sealed = (
            writer.outcomes(type, [document], [way])[document]
            for type in (PLAIN, SEALED)
        )
    finally:
        writer.session.execute("RESET max_stack_depth")
    assert plain.sqlstates == {way: "54001"}
    assert sealed.sqlstates == plain.sqlstates
    assert quoting(sealed, document[:10]) == []
    assert not writer.outcomes(SEALED, ["[[1]]"], [way])["[[1]]"].sqlstates


# Errors


class Told(NamedTuple):
    """What was told of refused documents, to the client and in the log."""

    outcomes: dict[str, Outcome]
    log: str


def with_canary(document: str) -> str:
    """A document that is refused as that one is, and begins with the canary."""
    return f'{{"{CANARY}": {document}'


@pytest.fixture(scope="module")
def told(server: Cluster, writer: Writer) -> dict[str, Told]:
    told = {}
    documents = [with_canary(document) for document in REFUSED]
    for type in (PLAIN, SEALED):
        start = len(server.log())
        outcomes = writer.outcomes(type, documents, READ_BY_THE_TYPE)
        told[type] = Told(outcomes, server.log()[start:])
    return told


def quoting(outcome: Outcome, text: str) -> list[tuple[str, str]]:
    """The fields of errors that have the text in them; not the CONTEXT that COPY gives
    to whoever sent the line."""
    return [
        (way, name)
        for way, fields in outcome.errors.items()
        for name, value in fields.items()
        if text in value and (way not in COPIED or name != "CONTEXT")
    ]


@pytest.mark.parametrize("document", REFUSED, ids=abridged)
def test_an_error_does_not_quote_the_document(
    told: dict[str, Told], document: str
) -> None:
    plain, sealed = (
        told[type].outcomes[with_canary(document)] for type in (PLAIN, SEALED)
    )
    assert set(plain.sqlstates) == set(READ_BY_THE_TYPE)
    assert sealed.sqlstates == plain.sqlstates
    assert quoting(sealed, CANARY) == []


def test_the_log_does_not_quote_refused_documents(told: dict[str, Told]) -> None:
    log = told[SEALED].log
    assert log.count("ERROR:  ") == len(REFUSED) * len(READ_BY_THE_TYPE)
    assert CANARY not in log


def test_the_same_search_finds_documents_in_what_jsonb_tells(
    told: dict[str, Told],
) -> None:
    found = [quoting(each, CANARY) for each in told[PLAIN].outcomes.values()]
    assert sum(map(bool, found)) > len(REFUSED) / 2
    assert CANARY in told[PLAIN].log


def test_an_error_says_what_was_expected(
    told: dict[str, Told],
) -> None:
    sealed = told[SEALED].outcomes[with_canary("1f2")].errors["untyped"]
    assert sealed["MESSAGE_PRIMARY"] == "invalid input syntax for type encrypted_jsonb"
    assert sealed["MESSAGE_HINT"].startswith("The value is not shown. ")
