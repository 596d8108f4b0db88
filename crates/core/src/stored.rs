//! The stored form of a value, version 1: parsing and writing. See
//! `docs/format.md`. What the bytes mean cryptographically is in [`suites`].
//!
//! [`suites`]: crate::suites

use crate::aead::{NONCE_LEN, TAG_LEN};
use crate::key::KeyId;
use crate::suites::Suite;

/// Version of the stored format that this code writes and reads.
pub const FORMAT_VERSION: u8 = 1;

/// Length of the format byte and the key id.
pub(crate) const HEADER_LEN: usize = 5;
/// Length of an XAES-256-GCM nonce.
pub(crate) const XAES_NONCE_LEN: usize = 24;
/// Length of a wrapped data key: 32 bytes and their tag.
pub(crate) const WRAPPED_LEN: usize = 32 + TAG_LEN;
/// What a Fernet token has besides its ciphertext: 0x80, time, IV, HMAC.
pub(crate) const FERNET_FRAME_LEN: usize = 1 + 8 + 16 + 32;
/// AES block, to a multiple of which Fernet pads.
pub(crate) const FERNET_BLOCK_LEN: usize = 16;

const FERNET_VERSION: u8 = 0x80;

/// The bytes are no stored value of any format this code knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not a value of a known format")]
pub struct Malformed;

/// What the plaintext is: part of the AAD, so that one type's value does not
/// pass as another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Payload {
    /// UTF-8 text.
    Text = 1,
    /// Any bytes.
    Bytea = 2,
    /// A JSON document in UTF-8, as PostgreSQL prints a `jsonb`; in a Fernet token
    /// that was made elsewhere, in any other form.
    Jsonb = 3,
}

impl Payload {
    /// All, in the order of [`Payload::index`].
    pub const ALL: [Self; 3] = [Self::Text, Self::Bytea, Self::Jsonb];

    /// Its place in [`Payload::ALL`].
    pub const fn index(self) -> usize {
        self as usize - 1
    }

    /// The name of the SQL type of the plaintext.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Bytea => "bytea",
            Self::Jsonb => "jsonb",
        }
    }

    /// Whether plaintexts are text, and so have an encoding.
    pub const fn is_text(self) -> bool {
        match self {
            Self::Text | Self::Jsonb => true,
            Self::Bytea => false,
        }
    }
}

/// A stored value, taken apart: `header | body`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored<'a> {
    header: &'a [u8; HEADER_LEN],
    pub(crate) body: Body<'a>,
}

/// The body, by suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body<'a> {
    Xaes256Gcm {
        nonce: &'a [u8; XAES_NONCE_LEN],
        ciphertext: &'a [u8],
        tag: &'a [u8; TAG_LEN],
    },
    Aes256Gcm {
        nonce: &'a [u8; NONCE_LEN],
        ciphertext: &'a [u8],
        tag: &'a [u8; TAG_LEN],
    },
    /// The raw token: 0x80, time (8), IV (16), ciphertext, HMAC (32).
    Fernet { token: &'a [u8] },
    Envelope {
        wrap_nonce: &'a [u8; NONCE_LEN],
        wrapped_key: &'a [u8; WRAPPED_LEN],
        nonce: &'a [u8; NONCE_LEN],
        ciphertext: &'a [u8],
        tag: &'a [u8; TAG_LEN],
    },
}

/// The header of a value under `suite` and `key_id`.
pub(crate) fn header(suite: Suite, key_id: KeyId) -> [u8; HEADER_LEN] {
    let [a, b, c, d] = key_id.0;
    [suite as u8, a, b, c, d]
}

impl<'a> Stored<'a> {
    /// How many bytes [`Stored::parse_header`] needs.
    pub const HEADER_LEN: usize = HEADER_LEN;

    /// Takes a stored value apart, without any key.
    ///
    /// # Errors
    /// [`Malformed`] for an unknown format byte or a value too short for its
    /// suite. Every byte belongs to exactly one part, so parsing and writing
    /// again gives the same bytes.
    #[inline]
    pub fn parse(stored: &'a [u8]) -> Result<Self, Malformed> {
        let (header, body) = stored.split_first_chunk().ok_or(Malformed)?;
        let (suite, _) = Self::parse_header(header)?;
        let body = match suite {
            Suite::Xaes256Gcm => {
                let (nonce, rest) = body.split_first_chunk().ok_or(Malformed)?;
                let (ciphertext, tag) = rest.split_last_chunk().ok_or(Malformed)?;
                Body::Xaes256Gcm {
                    nonce,
                    ciphertext,
                    tag,
                }
            }
            Suite::Aes256Gcm => {
                let (nonce, rest) = body.split_first_chunk().ok_or(Malformed)?;
                let (ciphertext, tag) = rest.split_last_chunk().ok_or(Malformed)?;
                Body::Aes256Gcm {
                    nonce,
                    ciphertext,
                    tag,
                }
            }
            Suite::Fernet => {
                check_fernet(body)?;
                Body::Fernet { token: body }
            }
            Suite::Envelope => {
                let (wrap_nonce, rest) = body.split_first_chunk().ok_or(Malformed)?;
                let (wrapped_key, rest) = rest.split_first_chunk().ok_or(Malformed)?;
                let (nonce, rest) = rest.split_first_chunk().ok_or(Malformed)?;
                let (ciphertext, tag) = rest.split_last_chunk().ok_or(Malformed)?;
                Body::Envelope {
                    wrap_nonce,
                    wrapped_key,
                    nonce,
                    ciphertext,
                    tag,
                }
            }
        };
        Ok(Self { header, body })
    }

    /// Suite and key of a value, from its first 5 bytes alone.
    ///
    /// # Errors
    /// [`Malformed`] for an unknown format byte.
    pub fn parse_header(header: &[u8; HEADER_LEN]) -> Result<(Suite, KeyId), Malformed> {
        let [format, a, b, c, d] = *header;
        let suite = Suite::from_format_byte(format).ok_or(Malformed)?;
        Ok((suite, KeyId([a, b, c, d])))
    }

    /// The suite the value is sealed with.
    pub fn suite(&self) -> Suite {
        match self.body {
            Body::Xaes256Gcm { .. } => Suite::Xaes256Gcm,
            Body::Aes256Gcm { .. } => Suite::Aes256Gcm,
            Body::Fernet { .. } => Suite::Fernet,
            Body::Envelope { .. } => Suite::Envelope,
        }
    }

    /// The key the value is sealed under.
    pub fn key_id(&self) -> KeyId {
        let [_, a, b, c, d] = *self.header;
        KeyId([a, b, c, d])
    }

    /// The format byte and the key id.
    pub(crate) fn header(&self) -> &'a [u8; HEADER_LEN] {
        self.header
    }

    /// Length of the plaintext in bytes; `None` for Fernet, whose padding hides
    /// it from those who have no key.
    pub fn plaintext_len(&self) -> Option<usize> {
        match self.body {
            Body::Xaes256Gcm { ciphertext, .. }
            | Body::Aes256Gcm { ciphertext, .. }
            | Body::Envelope { ciphertext, .. } => Some(ciphertext.len()),
            Body::Fernet { .. } => None,
        }
    }

    /// An upper bound of the plaintext's length, and for all suites but Fernet
    /// the length itself: what a buffer for [`Key::open`] must hold.
    ///
    /// [`Key::open`]: crate::Key::open
    pub fn plaintext_capacity(&self) -> usize {
        match self.body {
            Body::Xaes256Gcm { ciphertext, .. }
            | Body::Aes256Gcm { ciphertext, .. }
            | Body::Envelope { ciphertext, .. } => ciphertext.len(),
            Body::Fernet { token } => token.len() - FERNET_FRAME_LEN,
        }
    }

    /// When a Fernet token was made, in seconds since 1970-01-01 UTC, as its
    /// maker's clock said. The other suites do not tell.
    pub fn sealed_at(&self) -> Option<u64> {
        match self.body {
            Body::Fernet { token } => token
                .get(1..)
                .and_then(<[u8]>::first_chunk)
                .map(|time| u64::from_be_bytes(*time)),
            _ => None,
        }
    }

    /// The raw bytes of a Fernet token; `None` for other suites.
    pub fn fernet_token(&self) -> Option<&'a [u8]> {
        match self.body {
            Body::Fernet { token } => Some(token),
            _ => None,
        }
    }

    /// Writes the value out again.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.header.to_vec();
        match self.body {
            Body::Xaes256Gcm {
                nonce,
                ciphertext,
                tag,
            } => {
                out.extend_from_slice(nonce);
                out.extend_from_slice(ciphertext);
                out.extend_from_slice(tag);
            }
            Body::Aes256Gcm {
                nonce,
                ciphertext,
                tag,
            } => {
                out.extend_from_slice(nonce);
                out.extend_from_slice(ciphertext);
                out.extend_from_slice(tag);
            }
            Body::Fernet { token } => out.extend_from_slice(token),
            Body::Envelope {
                wrap_nonce,
                wrapped_key,
                nonce,
                ciphertext,
                tag,
            } => {
                out.extend_from_slice(wrap_nonce);
                out.extend_from_slice(wrapped_key);
                out.extend_from_slice(nonce);
                out.extend_from_slice(ciphertext);
                out.extend_from_slice(tag);
            }
        }
        out
    }
}

/// Fernet specification, "Token Format": version, and a ciphertext that is a
/// whole number of AES blocks, at least one.
pub(crate) fn check_fernet(token: &[u8]) -> Result<(), Malformed> {
    let ciphertext_len = token.len().checked_sub(FERNET_FRAME_LEN).ok_or(Malformed)?;
    let whole_blocks = ciphertext_len > 0 && ciphertext_len.is_multiple_of(FERNET_BLOCK_LEN);
    (token[0] == FERNET_VERSION && whole_blocks)
        .then_some(())
        .ok_or(Malformed)
}
