"""The encrypted types, each described once: what tests need to know to run for all.

    @every_kind
    def test_…(db: Database, kind: Kind) -> None:
        db.psql(f"CREATE TABLE t (secret {kind.type})")
        for sample in kind.samples:
            db.psql(f"INSERT INTO t VALUES ({sample.literal})")

A further type costs one more entry in KINDS, and nothing in the tests.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from psycopg.types.json import Jsonb

# What a test looks for where no plaintext may be; and how it could look there.
CANARY = "k4n4ry"
CANARY_FORMS = (CANARY, CANARY.encode().hex(), "azRuNHJ5")

PREFIX = "colcrypt:v1:"


def quoted(text: str) -> str:
    """A text as an SQL literal."""
    if "\\" in text:
        return "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
    return "'" + text.replace("'", "''") + "'"


@dataclass(frozen=True)
class Sample:
    """A plaintext."""

    name: str
    # As an SQL literal with its quotation marks, without a type.
    literal: str
    # What the plain type prints of it, with bytea_output = 'hex'.
    text: str
    # The bytes that are encrypted: for a document, what jsonb prints, in UTF-8.
    sealed: bytes
    # In Python: str, bytes or a document.
    value: Any
    # What psycopg binds to a parameter.
    parameter: Any

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Kind:
    """An encrypted type."""

    # 'encrypted_text' and 'text'.
    type: str
    plain: str
    # Its byte in the AAD.
    payload: int
    # from_ciphertext{suffix}(text), from_fernet{suffix}(text)
    suffix: str
    # Plain types that an assignment casts from; the plain type is the first.
    assignable: tuple[str, ...]
    # Various plaintexts, all different. The first two are short and simple, the last
    # one is 1 MB.
    samples: tuple[Sample, ...]
    # Literals that are equal though written differently; that differ though alike.
    equal: tuple[tuple[str, str], ...]
    different: tuple[tuple[str, str], ...]
    # Literals that the plain type refuses, with its SQLSTATE. Each holds the CANARY.
    invalid: tuple[tuple[str, str], ...]
    # The same in binary form. Not each holds the CANARY.
    invalid_binary: tuple[tuple[bytes, str], ...]
    # Literals of plaintexts that begin with the reserved prefix, each with the CANARY.
    reserved: tuple[str, ...]
    # The plaintext that has a text in it; holding_sql: the same as an SQL expression of
    # the plain type over an SQL expression of type text.
    holding: Callable[[str], Sample]
    holding_sql: Callable[[str], str]
    # How a text is printed that stands for a value: a mask, a placeholder; and
    # ciphertext, where it is cast to the plain type. (Output prints ciphertext as it
    # is.)
    shown: Callable[[str], str]
    # The binary form of what is sealed; that of the plain type and of the encrypted.
    to_binary: Callable[[bytes], bytes]
    # The Python value of what the type prints.
    parse: Callable[[str], Any]

    def __str__(self) -> str:
        return self.plain

    @property
    def one(self) -> Sample:
        return self.samples[0]

    @property
    def two(self) -> Sample:
        return self.samples[1]

    @property
    def large(self) -> Sample:
        return self.samples[-1]

    @property
    def canary(self) -> Sample:
        return self.holding(CANARY)

    def binary(self, sample: Sample) -> bytes:
        return self.to_binary(sample.sealed)

    def from_ciphertext(self, text: str) -> str:
        """The call, over an SQL expression."""
        return f"from_ciphertext{self.suffix}({text})"

    def from_fernet(self, token: str) -> str:
        return f"from_fernet{self.suffix}({token})"


# encrypted_text


def text_sample(name: str, text: str) -> Sample:
    return Sample(name, quoted(text), text, text.encode(), text, text)


TEXT = Kind(
    type="encrypted_text",
    plain="text",
    payload=1,
    suffix="",
    assignable=("text", "varchar", "bpchar", "name"),
    samples=(
        text_sample("one", "one"),
        text_sample("two", "two's"),
        text_sample("empty", ""),
        text_sample("spaces", "  "),
        text_sample("unicode", "Grüße 🔑👩‍👩‍👧"),
        text_sample("control", "a\nb\tc\\N,\"'\r\x01"),
        text_sample("like hex", "\\x6162"),
        text_sample("like JSON", '{"a": 1}'),
        text_sample("like null", "null"),
        text_sample("almost reserved", "colcrypt:v"),
        text_sample("large", "m" * 1_000_000),
    ),
    equal=(("'abc'", "E'\\141bc'"), ("'é'", "U&'\\00e9'")),
    different=(
        ("'a'", "'a '"),
        ("'a'", "'A'"),
        ("''", "' '"),
        ("'é'", "U&'e\\0301'"),
        ("'1'", "'1.0'"),
    ),
    invalid=(),
    invalid_binary=(
        (CANARY.encode() + b"\xff", "22021"),
        (CANARY.encode() + b"\0", "22021"),
        (CANARY.encode() + b"\xed\xa0\x80", "22021"),
    ),
    reserved=(
        f"'colcrypt:v1:{CANARY}'",
        f"'colcrypt:v9{CANARY}'",
        f"E'\\143olcrypt:v1:{CANARY}'",
    ),
    holding=lambda text: text_sample(text[:20], text),
    holding_sql=lambda text: f"({text})",
    shown=str,
    to_binary=bytes,
    parse=str,
)


# encrypted_bytea


def bytea_sample(name: str, raw: bytes, literal: str | None = None) -> Sample:
    text = "\\x" + raw.hex()
    return Sample(name, literal or f"'{text}'", text, raw, raw, raw)


def escape_literal(raw: bytes) -> str:
    """A bytea literal in the escape format, every byte by its number."""
    return "'" + "".join(f"\\{byte:03o}" for byte in raw) + "'"


# Every byte, once more.
BACKWARDS = bytes(range(255, -1, -1))
RESERVED_BYTES = f"colcrypt:v1:{CANARY}".encode()

BYTEA = Kind(
    type="encrypted_bytea",
    plain="bytea",
    payload=2,
    suffix="_bytea",
    assignable=("bytea",),
    samples=(
        bytea_sample("one", b"\xde\xad\xbe\xef"),
        bytea_sample("two", b"two's", "'two''s'"),
        bytea_sample("empty", b""),
        bytea_sample("NUL", b"\0"),
        bytea_sample("NULs", b"a\0b\0"),
        bytea_sample("every byte", bytes(range(256))),
        bytea_sample("every byte, escaped", BACKWARDS, escape_literal(BACKWARDS)),
        bytea_sample("backslashes", b"\\x\\\\", r"'\\x\\\\'"),
        bytea_sample("unicode", "Grüße 🔑".encode()),
        bytea_sample("like JSON", b'{"a": 1}'),
        bytea_sample("almost reserved", b"colcrypt:v"),
        bytea_sample("large", b"m\0\xff\\" * 250_000),
    ),
    equal=(
        (r"'\x6162'", "'ab'"),
        (r"'\x6162'", r"'\141\142'"),
        (r"'\xab'", r"'\xAB'"),
        (r"'\x6162'", r"'\x61 62'"),
        (r"'\x5c'", r"'\\'"),
        (r"'\x'", "''"),
    ),
    different=(
        (r"'\x'", r"'\x00'"),
        (r"'\x00'", r"'\x0000'"),
        (r"'\x6100'", r"'\x61'"),
        (r"'\x61'", r"'\x41'"),
        (r"'\x0061'", r"'\x0062'"),
        (r"'\xff'", r"'\x7f'"),
    ),
    invalid=(
        (rf"'\x{CANARY}'", "22023"),
        (rf"'\x{CANARY.encode().hex()}zz'", "22023"),
        (rf"'\x{CANARY.encode().hex()}6'", "22023"),
        (rf"'{CANARY}\q'", "22P02"),
        (rf"'{CANARY}\8'", "22P02"),
        (rf"'{CANARY}\'", "22P02"),
        (rf"'{CANARY}\400'", "22P02"),
    ),
    invalid_binary=(),
    reserved=(
        f"'{RESERVED_BYTES.decode()}'",
        f"'\\x{RESERVED_BYTES.hex()}'",
        f"'\\x{RESERVED_BYTES.hex().upper()}'",
        escape_literal(RESERVED_BYTES),
        f"'colcrypt:v9{CANARY}\\377\\000'",
    ),
    holding=lambda text: bytea_sample(text[:20], text.encode()),
    holding_sql=lambda text: f"convert_to({text}, 'UTF8')",
    shown=lambda text: "\\x" + text.encode().hex(),
    to_binary=bytes,
    parse=lambda text: bytes.fromhex(text.removeprefix("\\x")),
)


# encrypted_jsonb


def jsonb_sample(name: str, literal: str, text: str | None = None) -> Sample:
    """Of a document in text form; `text` is what jsonb prints, where it differs."""
    text = text or literal
    document = json.loads(literal)
    parameter = Jsonb(literal, dumps=str)
    return Sample(name, quoted(literal), text, text.encode(), document, parameter)


def printed(document: Any) -> str:
    """As jsonb prints it; an object's members must be in its order."""
    return json.dumps(document, ensure_ascii=False)


WIDE = printed({f"k{number:05}": number for number in range(10_000)})
DEEP = "[" * 300 + "]" * 300

JSONB = Kind(
    type="encrypted_jsonb",
    plain="jsonb",
    payload=3,
    suffix="_jsonb",
    assignable=("jsonb", "json"),
    samples=(
        jsonb_sample("one", '{"token": "one"}'),
        jsonb_sample("two", '["two\'s", 2]'),
        jsonb_sample("empty object", "{}"),
        jsonb_sample("empty array", "[]"),
        jsonb_sample("empty string", '""'),
        jsonb_sample("null", "null"),
        jsonb_sample("true", "true"),
        jsonb_sample("string of null", '"null"'),
        jsonb_sample("number", "-12.50"),
        jsonb_sample("exponent", "1.5e10", "15000000000"),
        jsonb_sample("many digits", "1" * 200 + "." + "2" * 200),
        jsonb_sample(
            "to be put in order",
            '{"bb" : 1,"a":[ 1 ,null],\n"a":2, "B":{"y":0.10,"x":1e1}}',
            '{"B": {"x": 10, "y": 0.10}, "a": 2, "bb": 1}',
        ),
        jsonb_sample("unicode", '{"Grüße 🔑": "👩‍👩‍👧"}'),
        jsonb_sample(
            "escapes",
            r'"\u00e9\ud83d\udd11\/\\\"\n\t\u0001 \\u0000"',
            '"é🔑/\\\\\\"\\n\\t\\u0001 \\\\u0000"',
        ),
        jsonb_sample("almost reserved", '"colcrypt:v"'),
        jsonb_sample("reserved inside", f'{{"x": "{PREFIX}{CANARY}"}}'),
        jsonb_sample("deep", DEEP),
        jsonb_sample("wide", WIDE),
        jsonb_sample("large", printed({"v": "m" * 1_000_000})),
    ),
    equal=(
        ("""'{"a":1,"b":[2]}'""", """' { "b" : [ 2 ] , "a" : 1 } '"""),
        ("""'{"a":1,"a":2}'""", """'{"a":2}'"""),
        ("'1.0'", "'1.00'"),
        ("'1'", "'1.000'"),
        ("'1e2'", "'100'"),
        ("'1E-1'", "'0.10'"),
        ("'-0'", "'0'"),
        ("'0.0'", "'-0.000'"),
        ("""'[1.50,{"x":2.0}]'""", """'[1.5,{"x":2}]'"""),
        (
            """'{"b":1.0,"aa":{"d":"1.0","c":10.0}}'""",
            """'{"aa":{"c":10,"d":"1.0"},"b":1}'""",
        ),
        (r"""'"\u00e9"'""", """'"é"'"""),
        (r"""'"\/"'""", """'"/"'"""),
        ("'true'", "E'\\ttrue\\n'"),
    ),
    different=(
        ("'[1,2]'", "'[2,1]'"),
        ("'1'", "'[1]'"),
        ("""'"a"'""", """'["a"]'"""),
        ("'[[]]'", "'[]'"),
        ("'{}'", "'[]'"),
        ("""'{"a":null}'""", "'{}'"),
        ("'1'", """'"1"'"""),
        ("'null'", """'"null"'"""),
        ("'0'", "'false'"),
        ("'1'", "'10'"),
        ("'1.10'", "'1.01'"),
        ("'1'", "'-1'"),
        ("""'"1.0"'""", """'"1.00"'"""),
        ("""'{"1.0":1}'""", """'{"1.00":1}'"""),
        (r"""'"\"1.0"'""", r"""'"\"1.00"'"""),
        (r"""'"\\"'""", r"""'"\\\\"'"""),
        ("""'"a"'""", """'"A"'"""),
        ("""'"a"'""", """'"a "'"""),
        ("""'{"a":"b"}'""", """'["a","b"]'"""),
    ),
    invalid=(
        (f"""'{CANARY}'""", "22P02"),
        (f"""'"{CANARY}'""", "22P02"),
        (f"""'{{"{CANARY}":'""", "22P02"),
        (f"""'{{"{CANARY}": {CANARY}}}'""", "22P02"),
        (f"""'["{CANARY}",]'""", "22P02"),
        (f"""'["{CANARY}"] "{CANARY}"'""", "22P02"),
        (f"""'"{CANARY}" x'""", "22P02"),
        (f"""E'"{CANARY}\\n"'""", "22P02"),
        (rf"""'"{CANARY}\q"'""", "22P02"),
        (rf"""'"{CANARY}\ud800"'""", "22P02"),
        (rf"""'"{CANARY}\u0000"'""", "22P05"),
        (f"""'["{CANARY}", 1e1000000]'""", "22003"),
        ("""'["{}", {}'""".format(CANARY, "[" * 100_000), "54001"),
    ),
    invalid_binary=(
        (b"", "08P01"),
        # The plain type has XX000 here, an internal error.
        (b"\2" + f'"{CANARY}"'.encode(), "22P03"),
        (b"\1" + CANARY.encode(), "22P02"),
        (b"\1" + f'"{CANARY}'.encode() + b'\xff"', "22021"),
        (b"\1" + rf'"{CANARY}\u0000"'.encode(), "22P05"),
    ),
    reserved=(
        f"""'"colcrypt:v1:{CANARY}"'""",
        f"""'"colcrypt:v9{CANARY}"'""",
        f"""'colcrypt:v1:{CANARY}'""",
        f"""' "colcrypt:v1:{CANARY}" '""",
        rf"""'"\u0063olcrypt:v1:{CANARY}"'""",
        rf"""'"colcrypt:v\u0031:{CANARY}"'""",
    ),
    holding=lambda text: jsonb_sample(text[:20], printed({"v": text})),
    holding_sql=lambda text: f"jsonb_build_object('v', {text})",
    shown=printed,
    to_binary=lambda document: b"\1" + document,
    parse=json.loads,
)


KINDS = (TEXT, BYTEA, JSONB)

every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)

# Each type with each of the others.
every_pair_of_kinds = pytest.mark.parametrize(
    ("kind", "other"),
    [
        pytest.param(*pair, id="-".join(map(str, pair)))
        for pair in itertools.permutations(KINDS, 2)
    ],
)

every_sample = pytest.mark.parametrize(
    ("kind", "sample"),
    [
        pytest.param(kind, sample, id=f"{kind}-{sample}")
        for kind in KINDS
        for sample in kind.samples
    ],
)
