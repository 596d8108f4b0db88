//! colcrypt without PostgreSQL: the cipher suites, the stored format, key ring
//! text and its sources.
//!
//! Nothing here knows a datum, a setting or a transaction, so all of it can be
//! unit-tested, fuzzed and measured by itself. `docs/format.md` describes what
//! is written to disk, to the byte.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod aead;
mod blind_index;
mod json_form;
mod kdf;
mod key;
mod modifier;
mod nonce;
mod redact;
mod ring;
mod ring_text;
mod secret;
mod source;
mod stored;
pub mod suites;
mod tag_memory;
mod text_form;
#[cfg(test)]
mod vectors;
mod wrapping;

pub use blind_index::{IndexKey, Tag, TagFunction};
pub use json_form::{in_utf8_order, with_canonical_numbers};
pub use key::{Key, KeyId, NoKeyId};
pub use modifier::{is_key_name, modifier_from_name, parse_modifier, show_modifier};
pub use nonce::{NonceSource, Nonces, RandomError};
pub use redact::{REDACTED, redact, sets_key};
pub use ring::{KeyRing, RingKey};
pub use ring_text::{Entry, RingTextError};
pub use secret::{SecretKey, SecretText, without_traces};
pub use source::{CommandOutput, MAX_RING_TEXT, SourceError, read_key_file, run_key_command};
pub use stored::{FORMAT_VERSION, Malformed, Payload, Stored};
pub use suites::{OpenError, SealError, Suite};
pub use tag_memory::TagMemory;
pub use text_form::{
    PREFIX as TEXT_PREFIX, TextFormError, decode as decode_text, encode as encode_text, fernet_raw,
    fernet_token, is_reserved,
};
pub use wrapping::{KeyIdentity, UnwrapError, WRAPPED_KEY_LEN, fingerprint, unwrap_key, wrap_key};
