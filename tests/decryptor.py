"""Decrypts colcrypt's values without colcrypt.

Written from docs/format.md alone, with Python's standard library and the
`cryptography` package, so that nobody's data depends on the extension:

    psql -c 'SELECT ciphertext(secret) FROM t' -At | python decryptor.py --key BASE64

Each line of standard input is one value in text form; each line of output is its
plaintext: a text as a JSON string, for it may hold newlines, a document as it is, bytes
in hexadecimal (--type).

It also unwraps the keys of table colcrypt.key, and makes the tags that indexes go by.
"""

import argparse
import base64
import hmac
import json
import re
import sys

from cryptography.exceptions import InvalidTag
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.cmac import CMAC

PREFIX = "colcrypt:v1:"
HEADER_LEN = 5
PAYLOADS = {"text": b"\x01", "bytea": b"\x02", "jsonb": b"\x03"}
WRAPPED_KEY_LEN = 60


class Refused(ValueError):
    """The value is malformed, names a key that is not there, or is not authentic."""


def key_id(key: bytes) -> bytes:
    return hmac.digest(key, b"colcrypt v1 key id", "sha256")[:4]


def subkey(key: bytes, suite: str) -> bytes:
    """HKDF-SHA-256 without salt: one block of output is all of the 32 bytes."""
    prk = hmac.digest(bytes(32), key, "sha256")
    return hmac.digest(prk, f"colcrypt v1 {suite}".encode() + b"\x01", "sha256")


def passphrase_key(passphrase: str) -> bytes:
    """The ring key that `passphrase:…` in ring text stands for."""
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    kdf = Argon2id(
        salt=b"colcrypt v1 passphrase",
        length=32,
        iterations=3,
        lanes=1,
        memory_cost=64 * 1024,
    )
    return kdf.derive(passphrase.encode())


def xaes_key(key: bytes, prefix: bytes) -> bytes:
    """The AES-256-GCM key for all nonces that start with these 12 bytes."""
    halves = [cmac(key, n + b"X\x00" + prefix) for n in (b"\x00\x01", b"\x00\x02")]
    return b"".join(halves)


def cmac(key: bytes, data: bytes) -> bytes:
    mac = CMAC(AES(key))
    mac.update(data)
    return mac.finalize()


def stored_bytes(text_form: str) -> bytes:
    """The bytes of a text form, of which there is exactly one for each value."""
    encoded = text_form.removeprefix(PREFIX)
    if encoded == text_form or not re.fullmatch(r"[A-Za-z0-9_-]*", encoded, re.ASCII):
        raise Refused("not the text form of a value")
    try:
        stored = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    except ValueError:
        raise Refused("not base64url") from None
    if base64.urlsafe_b64encode(stored).decode().rstrip("=") != encoded:
        raise Refused("not canonical base64url")
    return stored


def decrypt(text_form: str, ring: list[bytes], type_: str = "text") -> str:
    """The plaintext of a value in text form, under whichever key of `ring` it names.
    That of an encrypted_jsonb is a JSON document."""
    return decrypt_bytes(text_form, ring, type_).decode()


def decrypt_bytes(text_form: str, ring: list[bytes], type_: str = "bytea") -> bytes:
    """As decrypt(), for the bytes of an encrypted_bytea, or those of another type's
    plaintext."""
    stored = stored_bytes(text_form)
    header, body = stored[:HEADER_LEN], stored[HEADER_LEN:]
    if len(header) < HEADER_LEN or header[0] not in SUITES:
        raise Refused("not a value of a known format")
    keys = [key for key in ring if key_id(key) == header[1:]]
    if not keys:
        raise Refused(f"needs key {header[1:].hex()}")
    try:
        return SUITES[header[0]](keys[0], header, body, PAYLOADS[type_])
    except (InvalidTag, InvalidToken):
        raise Refused("authentication failed") from None


def open_xaes_256_gcm(key: bytes, header: bytes, body: bytes, payload: bytes) -> bytes:
    nonce, sealed = split(body, 24)
    derived = xaes_key(subkey(key, "xaes-256-gcm"), nonce[:12])
    return AESGCM(derived).decrypt(nonce[12:], sealed, header + payload)


def open_aes_256_gcm(key: bytes, header: bytes, body: bytes, payload: bytes) -> bytes:
    nonce, sealed = split(body, 12)
    return AESGCM(subkey(key, "aes-256-gcm")).decrypt(nonce, sealed, header + payload)


def open_fernet(key: bytes, header: bytes, body: bytes, payload: bytes) -> bytes:
    # No AAD, so no payload type. Without a ttl the library does not look at the token's time; nor does colcrypt.
    return Fernet(base64.urlsafe_b64encode(key)).decrypt(base64.urlsafe_b64encode(body))


def open_envelope(key: bytes, header: bytes, body: bytes, payload: bytes) -> bytes:
    wrap_nonce, rest = split(body, 12)
    wrapped, rest = split(rest, 48)
    nonce, sealed = split(rest, 12)
    data_key = AESGCM(subkey(key, "envelope")).decrypt(wrap_nonce, wrapped, header)
    return AESGCM(data_key).decrypt(nonce, sealed, header + payload)


def split(data: bytes, length: int) -> tuple[bytes, bytes]:
    """`length` bytes and a rest that has room for a tag."""
    if len(data) < length + 16:
        raise Refused("too short")
    return data[:length], data[length:]


SUITES = {
    0x01: open_xaes_256_gcm,
    0x02: open_aes_256_gcm,
    0x03: open_fernet,
    0x04: open_envelope,
}


def wrap_aad(key_id: bytes, kind: str, name: str, suite: str) -> bytes:
    """What the wrapping of a managed key authenticates: its row of colcrypt.key."""
    texts = [text.encode() for text in (kind, name, suite)]
    parts = [len(text).to_bytes(4, "big") + text for text in texts]
    return b"colcrypt v1 key" + key_id + b"".join(parts)


def unwrap_key(
    wrapped: bytes,
    ring: list[bytes],
    *,
    key_id: str,
    wrapped_by: str,
    kind: str,
    name: str = "",
    suite: str = "",
) -> bytes:
    """The key in a row of colcrypt.key; a column that is NULL is the empty string."""
    if len(wrapped) != WRAPPED_KEY_LEN:
        raise Refused("not a wrapped key")
    keys = [key for key in ring if id_in_hex(key) == wrapped_by]
    if not keys:
        raise Refused(f"needs key {wrapped_by}")
    nonce, sealed = split(wrapped, 12)
    aad = wrap_aad(bytes.fromhex(key_id), kind, name, suite)
    try:
        key = AESGCM(subkey(keys[0], "wrap")).decrypt(nonce, sealed, aad)
    except InvalidTag:
        raise Refused("authentication failed") from None
    if id_in_hex(key) != key_id:
        raise Refused("authentication failed")
    return key


def id_in_hex(key: bytes) -> str:
    return key_id(key).hex()


def index_tag(index_key: bytes, plaintext: str, suite: str) -> bytes:
    """The blind index tag: equal for equal plaintexts, and what indexes order by.

    `suite` is that of the index key's row; NULL is the empty string.
    """
    if suite == "aes-256-cmac":
        return cmac(subkey(index_key, suite), plaintext.encode())
    if suite in ("hmac-sha-256", ""):
        return hmac.digest(index_key, plaintext.encode(), "sha256")[:16]
    raise Refused("makes tags in an unknown way")


def hash_code(tag: bytes) -> int:
    """The 32 bits that a hash index stores, unsigned."""
    return int.from_bytes(tag[:4], "big")


def hash_extended(tag: bytes, seed: int) -> int:
    """The 64 bits that hash partitioning goes by, unsigned; so is the seed."""
    code = int.from_bytes(tag[4:8] + tag[:4], "big")
    if seed == 0:
        return code
    mixed = seed + 0x49A0F4DD15E5A8E3 + (code << 54) % 2**64 + (code >> 7)
    return (code ^ mixed % 2**64) * 0x9E3779B97F4A7C15 % 2**64


def ring_key(text: str) -> bytes:
    """The 32 bytes of a key as ring text has it."""
    if len(text) == 64:
        return bytes.fromhex(text)
    key = base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    if len(key) != 32:
        raise ValueError("not 32 bytes")
    return key


def shown(plaintext: bytes, type_: str) -> str:
    if type_ == "bytea":
        return f"\\x{plaintext.hex()}"
    # A document is JSON already, but may hold newlines if it came as a Fernet token.
    text = plaintext.decode()
    return json.dumps(json.loads(text) if type_ == "jsonb" else text, ensure_ascii=False)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Decrypts colcrypt values in text form, one a line."
    )
    parser.add_argument(
        "--key", action="append", default=[], help="a key, as in ring text"
    )
    parser.add_argument(
        "--passphrase", action="append", default=[], help="or a passphrase"
    )
    parser.add_argument(
        "--type",
        choices=PAYLOADS,
        default="text",
        help="of the column, without encrypted_; bytea is printed as PostgreSQL does",
    )
    options = parser.parse_args()
    try:
        ring = [ring_key(key) for key in options.key]
    except ValueError:
        parser.error("a key is 32 bytes in base64 or base64url, or 64 hex digits")
    ring += [passphrase_key(passphrase) for passphrase in options.passphrase]
    if not ring:
        parser.error("give at least one key")
    failed = False
    for number, line in enumerate(sys.stdin, 1):
        try:
            plaintext = decrypt_bytes(line.rstrip("\n"), ring, options.type)
            print(shown(plaintext, options.type))
        except Refused as reason:
            print(f"line {number}: {reason}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
