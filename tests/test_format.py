"""docs/format.md is true: a decryptor written from it opens what colcrypt wrote.

Needs no server.
"""

import base64
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import decryptor
import pytest
from decryptor import Refused, decrypt

ROOT = Path(__file__).parent.parent
VECTORS = json.loads(
    (ROOT / "crates/core/tests/vectors/format.json").read_text("utf-8")
)
ALL_VALUES = VECTORS["values"]
VALUES = [value for value in ALL_VALUES if "type" not in value]
OTHER_VALUES = [value for value in ALL_VALUES if "type" in value]
KEY = decryptor.ring_key(VECTORS["key"])
PAGE = (ROOT / "docs/format.md").read_text("utf-8")
SUITES = ["xaes-256-gcm", "aes-256-gcm", "fernet", "envelope"]

every_value = pytest.mark.parametrize(
    "value", VALUES, ids=lambda value: f"{value['suite']}-{len(value['plaintext'])}"
)
every_suite = pytest.mark.parametrize(
    "value",
    [value for value in VALUES if value["plaintext"] == "hello"],
    ids=lambda value: value["suite"],
)


def text_form(stored: bytes) -> str:
    return decryptor.PREFIX + base64.urlsafe_b64encode(stored).decode().rstrip("=")


def printed(name: str) -> str:
    """What the page's worked example gives for `name`."""
    found = re.findall(rf"^    {re.escape(name)}  +(.+)$", PAGE, re.MULTILINE)
    assert len(found) == 1, f"{name} is there {len(found)} times"
    return found[0]


@every_value
def test_the_independent_decryptor_opens_what_colcrypt_sealed(
    value: dict[str, str],
) -> None:
    assert decrypt(value["text_form"], [bytes(32), KEY]) == value["plaintext"]


@pytest.mark.parametrize(
    "value", OTHER_VALUES, ids=lambda value: f"{value['suite']}-{value['type']}"
)
def test_the_independent_decryptor_opens_values_of_every_type(
    value: dict[str, str],
) -> None:
    text, type_ = value["text_form"], value["type"]
    if type_ == "bytea":
        plaintext = bytes.fromhex(value["plaintext_hex"])
    else:
        plaintext = value["plaintext"].encode()
    assert decryptor.decrypt_bytes(text, [KEY], type_) == plaintext
    for other in decryptor.PAYLOADS.keys() - {type_}:
        if value["suite"] == "fernet":
            assert decryptor.decrypt_bytes(text, [KEY], other) == plaintext
        else:
            with pytest.raises(Refused, match="^authentication failed$"):
                decryptor.decrypt_bytes(text, [KEY], other)


@every_suite
def test_every_changed_bit_is_refused(value: dict[str, str]) -> None:
    stored = decryptor.stored_bytes(value["text_form"])
    for bit in range(8 * len(stored)):
        changed = bytearray(stored)
        changed[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(Refused):
            decrypt(text_form(bytes(changed)), [KEY])


@every_suite
def test_a_value_cut_off_or_extended_is_refused(value: dict[str, str]) -> None:
    stored = decryptor.stored_bytes(value["text_form"])
    for end in range(len(stored)):
        with pytest.raises(Refused):
            decrypt(text_form(stored[:end]), [KEY])
    with pytest.raises(Refused):
        decrypt(text_form(stored + b"\0"), [KEY])


@every_suite
def test_a_key_that_is_not_there_is_named(value: dict[str, str]) -> None:
    with pytest.raises(Refused, match=f"^needs key {VECTORS['key_id']}$"):
        decrypt(value["text_form"], [bytes(32)])


@every_suite
def test_another_key_under_the_same_id_does_not_open(
    value: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        decryptor, "key_id", lambda key: bytes.fromhex(VECTORS["key_id"])
    )
    with pytest.raises(Refused, match="^authentication failed$"):
        decrypt(value["text_form"], [bytes(32)])


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + "=",
        lambda text: text + "\n",
        lambda text: " " + text,
        lambda text: text.replace("colcrypt:v1:", "colcrypt:v2:"),
        lambda text: text.replace("colcrypt:v1:", ""),
        lambda text: text.replace("_", "/"),
        lambda text: text[:20] + "é" + text[20:],
        # The unused bits of the last character.
        lambda text: text[:-1] + chr(ord(text[-1]) + 1),
        lambda text: text + "A" * (5 - (len(text) - len("colcrypt:v1:")) % 4),
    ],
)
def test_a_text_form_that_is_not_canonical_is_refused(
    change: Callable[[str], str],
) -> None:
    value = VALUES[1]["text_form"]
    assert decrypt(value, [KEY])
    assert change(value) != value
    with pytest.raises(Refused):
        decrypt(change(value), [KEY])


def test_the_page_prints_the_frozen_values() -> None:
    on_page = re.findall(
        r"^`([a-z0-9-]+)`:\n\n    (colcrypt:v1:[A-Za-z0-9_-]+)$", PAGE, re.MULTILINE
    )
    frozen = [
        (value["suite"], value["text_form"])
        for value in VALUES
        if value["plaintext"] == "hello"
    ]
    assert [suite for suite, _ in frozen] == SUITES
    assert on_page == frozen
    assert "all with the plaintext `hello`" in PAGE
    # No other value has slipped in, where nothing checks it.
    assert len(re.findall(r"colcrypt:v1:[A-Za-z0-9_-]{8}", PAGE)) == len(frozen)


def test_the_page_prints_the_derived_keys() -> None:
    assert bytes.fromhex(printed("key")) == bytes(range(32)) == KEY
    assert printed("in base64") == VECTORS["key"]
    assert printed("key id") == VECTORS["key_id"] == decryptor.key_id(KEY).hex()
    for suite in ("xaes-256-gcm", "aes-256-gcm", "envelope"):
        assert printed(f"subkey {suite}") == decryptor.subkey(KEY, suite).hex()


def test_the_page_takes_its_first_value_apart() -> None:
    parts = [printed(name) for name in ("header", "nonce", "ciphertext", "tag")]
    assert "".join(parts) == decryptor.stored_bytes(VALUES[1]["text_form"]).hex()
    assert printed("AAD") == printed("header") + "01"
    derived = decryptor.xaes_key(
        decryptor.subkey(KEY, "xaes-256-gcm"), bytes.fromhex(printed("nonce"))[:12]
    )
    assert printed("Kx") == derived.hex()


def test_the_page_prints_a_passphrases_key() -> None:
    key = decryptor.passphrase_key(printed("passphrase"))
    assert printed("its key") == key.hex()
    assert printed("its key id") == decryptor.key_id(key).hex()


def printed_key_row() -> dict[str, str]:
    """The row of colcrypt.key that the worked example unwraps."""
    return {
        "key_id": printed("index key id"),
        "wrapped_by": printed("wrapped_by"),
        "kind": printed("kind"),
        "suite": printed("suite"),
    }


def test_the_page_unwraps_an_index_key() -> None:
    row = printed_key_row()
    wrapped = bytes.fromhex(printed("wrapped"))
    assert decryptor.subkey(KEY, "wrap").hex() == printed("subkey wrap")
    key_id = bytes.fromhex(row["key_id"])
    aad = decryptor.wrap_aad(key_id, row["kind"], "", row["suite"])
    assert aad.hex() == printed("AAD of the wrapping")
    index_key = decryptor.unwrap_key(wrapped, [bytes(32), KEY], **row)
    assert index_key.hex() == printed("index key")
    assert decryptor.key_id(index_key).hex() == row["key_id"]
    assert row["wrapped_by"] == decryptor.key_id(KEY).hex()


def test_a_changed_row_of_the_key_table_does_not_unwrap() -> None:
    row = printed_key_row()
    wrapped = bytes.fromhex(printed("wrapped"))
    for bit in range(8 * len(wrapped)):
        changed = bytearray(wrapped)
        changed[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(Refused, match="^authentication failed$"):
            decryptor.unwrap_key(bytes(changed), [KEY], **row)
    others = [{"key_id": VECTORS["key_id"]}, {"kind": "data"}]
    suites = [{"suite": "hmac-sha-256"}, {"suite": ""}]
    for other in [*others, {"name": "pii"}, *suites]:
        with pytest.raises(Refused, match="^authentication failed$"):
            decryptor.unwrap_key(wrapped, [KEY], **(row | other))
    with pytest.raises(Refused, match="^not a wrapped key$"):
        decryptor.unwrap_key(wrapped[:-1], [KEY], **row)
    with pytest.raises(Refused, match=f"^needs key {VECTORS['key_id']}$"):
        decryptor.unwrap_key(wrapped, [bytes(32)], **row)


def test_the_core_unwraps_what_is_wrapped_as_the_page_says() -> None:
    """The core's own test holds this value, and the key that is in it."""
    source = (ROOT / "crates/core/src/wrapping.rs").read_text("utf-8")
    wrapped = re.search(r'const WRAPPED: &str = "([0-9a-f]+)";', source)
    ring_key, key = bytes([1]) * 32, bytes([2]) * 32
    row = {
        "key_id": decryptor.key_id(key).hex(),
        "wrapped_by": decryptor.key_id(ring_key).hex(),
        "kind": "data",
        "name": "pii",
        "suite": "xaes-256-gcm",
    }
    assert decryptor.unwrap_key(bytes.fromhex(wrapped[1]), [ring_key], **row) == key


def test_the_page_prints_a_tag_and_its_hash_codes() -> None:
    index_key = bytes.fromhex(printed("index key"))
    suite, plaintext = printed("suite"), printed("plaintext")
    assert decryptor.subkey(index_key, suite).hex() == printed(f"subkey {suite}")
    tag = decryptor.index_tag(index_key, plaintext, suite)
    assert tag.hex() == printed("tag of the plaintext")
    code = decryptor.hash_code(tag)
    assert signed(code, 32) == int(printed("hash code"))
    for seed in (0, 7):
        extended = decryptor.hash_extended(tag, seed)
        assert signed(extended, 64) == int(printed(f"extended, seed {seed}"))
    assert decryptor.hash_extended(tag, 0) % 2**32 == code
    for suite in ("hmac-sha-256", ""):
        tag = decryptor.index_tag(index_key, plaintext, suite)
        assert tag.hex() == printed("tag by hmac-sha-256")
    with pytest.raises(Refused, match="^makes tags in an unknown way$"):
        decryptor.index_tag(index_key, plaintext, "xaes-256-gcm")


def test_the_core_makes_the_tags_that_the_page_describes() -> None:
    source = (ROOT / "crates/core/src/blind_index.rs").read_text("utf-8")
    tag = decryptor.index_tag(KEY, "alice@example.com", "aes-256-cmac")
    assert f'const CMAC: &str = "{tag.hex()}";' in source
    tag = decryptor.index_tag(KEY, "alice@example.com", "hmac-sha-256")
    assert f'(TagFunction::HmacSha256, "{tag.hex()}")' in source
    extended = f"{decryptor.hash_extended(tag, 7):016x}"
    groups = "_".join(extended[i : i + 4] for i in range(0, 16, 4))
    assert f"assert_eq!(tag.hash_extended(7), 0x{groups});" in source


def signed(number: int, bits: int) -> int:
    """As PostgreSQL shows a number of so many bits."""
    return number - 2**bits if number >= 2 ** (bits - 1) else number


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value["suite"])
def test_the_page_states_the_lengths(value: dict[str, str]) -> None:
    stored = decryptor.stored_bytes(value["text_form"])
    plaintext = len(value["plaintext"].encode())
    row = re.search(rf"^\| `0x{stored[0]:02x}` \| `(.+?)` \| (\d+)", PAGE, re.MULTILINE)
    assert row.group(1) == value["suite"]
    if value["suite"] == "fernet":
        assert len(stored) == 62 + (plaintext // 16 + 1) * 16
    else:
        assert len(stored) - plaintext == int(row.group(2))


def test_the_command_line_decrypts_lines_and_reports_failures() -> None:
    values = [value["text_form"] for value in VALUES]
    run = subprocess.run(
        [sys.executable, decryptor.__file__, "--key", VECTORS["key"]],
        input="\n".join([*values, "colcrypt:v1:AAAA"]),
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={"PYTHONUTF8": "1"},
    )
    plaintexts = [json.loads(line) for line in run.stdout.splitlines()]
    assert plaintexts == [value["plaintext"] for value in VALUES]
    assert run.stderr == f"line {len(values) + 1}: not a value of a known format\n"
    assert run.returncode == 1


def test_the_command_line_does_not_show_a_key_that_it_refuses() -> None:
    for key in ("hunter2hunter2", VECTORS["key"][:-4], "zz" * 32):
        run = subprocess.run(
            [sys.executable, decryptor.__file__, "--key", key],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 2
        assert "a key is 32 bytes" in run.stderr
        assert key not in run.stderr
