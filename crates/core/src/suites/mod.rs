//! The four ways to seal a value. Each suite has a file; this one chooses.

pub(crate) mod aes_256_gcm;
pub(crate) mod envelope;
pub(crate) mod fernet;
pub(crate) mod xaes_256_gcm;

use crate::aead::{AuthenticationFailed, NONCE_LEN, TAG_LEN};
use crate::key::Key;
use crate::nonce::{Nonces, RandomError};
use crate::stored::{
    Body, FERNET_BLOCK_LEN, FERNET_FRAME_LEN, HEADER_LEN, Payload, Stored, WRAPPED_LEN,
    XAES_NONCE_LEN, header,
};

/// A cipher suite, numbered as in the stored format byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Suite {
    /// XAES-256-GCM (C2SP), the default.
    Xaes256Gcm = 0x01,
    /// AES-256-GCM with random nonces (NIST SP 800-38D), for those who must
    /// decrypt elsewhere with a plain AES-GCM library. At most 2^32 values a key.
    Aes256Gcm = 0x02,
    /// Fernet tokens (github.com/fernet/spec).
    Fernet = 0x03,
    /// A data key for each value, wrapped by the ring's key.
    Envelope = 0x04,
}

/// Sealing failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// No random bytes.
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// Opening failed: wrong key material or a changed value, which cannot be told
/// apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("authentication failed")]
pub struct OpenError;

impl From<AuthenticationFailed> for OpenError {
    fn from(_: AuthenticationFailed) -> Self {
        Self
    }
}

/// `AAD = header | payload type byte`. The context that DESIGN leaves room for
/// is empty in every value written so far.
pub(crate) type Aad = [u8; HEADER_LEN + 1];

impl Suite {
    /// Every suite, the default first.
    pub const ALL: [Self; 4] = [
        Self::Xaes256Gcm,
        Self::Aes256Gcm,
        Self::Fernet,
        Self::Envelope,
    ];

    /// The suite's name in settings, views and key derivation.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xaes256Gcm => "xaes-256-gcm",
            Self::Aes256Gcm => "aes-256-gcm",
            Self::Fernet => "fernet",
            Self::Envelope => "envelope",
        }
    }

    /// The suite that [`Suite::name`] names.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.name() == name)
    }

    pub(crate) const fn from_format_byte(byte: u8) -> Option<Self> {
        match byte {
            0x01 => Some(Self::Xaes256Gcm),
            0x02 => Some(Self::Aes256Gcm),
            0x03 => Some(Self::Fernet),
            0x04 => Some(Self::Envelope),
            _ => None,
        }
    }

    /// Length in bytes of a sealed value of `plaintext_len` bytes.
    pub const fn sealed_len(self, plaintext_len: usize) -> usize {
        HEADER_LEN
            + match self {
                Self::Xaes256Gcm => XAES_NONCE_LEN + plaintext_len + TAG_LEN,
                Self::Aes256Gcm => NONCE_LEN + plaintext_len + TAG_LEN,
                // PKCS #7 always pads: a full last block gets a whole one more.
                Self::Fernet => {
                    FERNET_FRAME_LEN + (plaintext_len / FERNET_BLOCK_LEN + 1) * FERNET_BLOCK_LEN
                }
                Self::Envelope => NONCE_LEN + WRAPPED_LEN + NONCE_LEN + plaintext_len + TAG_LEN,
            }
    }
}

impl Key {
    /// Seals `plaintext` into `out`, which is [`Suite::sealed_len`] bytes long.
    ///
    /// # Errors
    /// [`SealError::Random`] when the operating system gives no random bytes.
    ///
    /// # Panics
    /// If `out` has another length.
    #[inline]
    pub fn seal(
        &self,
        suite: Suite,
        payload: Payload,
        plaintext: &[u8],
        mut nonces: Nonces<'_>,
        out: &mut [u8],
    ) -> Result<(), SealError> {
        assert_eq!(
            out.len(),
            suite.sealed_len(plaintext.len()),
            "out has the sealed length"
        );
        let header = header(suite, self.id());
        let aad = aad(header, payload);
        let (out_header, body) = out.split_at_mut(HEADER_LEN);
        out_header.copy_from_slice(&header);
        match suite {
            Suite::Xaes256Gcm => {
                xaes_256_gcm::seal(self.xaes(), &nonces.xaes()?, &aad, plaintext, body);
            }
            Suite::Aes256Gcm => {
                aes_256_gcm::seal(self.aes(), &nonces.random()?, &aad, plaintext, body);
            }
            Suite::Fernet => fernet::seal(self.fernet(), plaintext, body),
            Suite::Envelope => {
                envelope::seal(self.wrap(), &mut nonces, &header, &aad, plaintext, body)?;
            }
        }
        Ok(())
    }

    /// Opens a stored value into `out`, which is
    /// [`Stored::plaintext_capacity`] bytes long, and gives the plaintext's
    /// length. The caller chose this key by [`Stored::key_id`].
    ///
    /// # Errors
    /// [`OpenError`] when the value is not what was sealed under this key, or
    /// names another one; `out` then holds nothing of the plaintext.
    #[inline]
    pub fn open(
        &self,
        stored: &Stored<'_>,
        payload: Payload,
        out: &mut [u8],
    ) -> Result<usize, OpenError> {
        // The AAD covers the key id, but Fernet has none.
        if stored.key_id() != self.id() {
            return Err(OpenError);
        }
        let header = stored.header();
        let aad = aad(*header, payload);
        match stored.body {
            Body::Xaes256Gcm {
                nonce,
                ciphertext,
                tag,
            } => {
                self.xaes().open(nonce, &aad, ciphertext, tag, out)?;
                Ok(ciphertext.len())
            }
            Body::Aes256Gcm {
                nonce,
                ciphertext,
                tag,
            } => {
                self.aes().open(nonce, &aad, ciphertext, tag, out)?;
                Ok(ciphertext.len())
            }
            Body::Fernet { token } => fernet::open(self.fernet(), token, out),
            Body::Envelope {
                wrap_nonce,
                wrapped_key,
                nonce,
                ciphertext,
                tag,
            } => {
                let data_key = envelope::unwrap(self.wrap(), wrap_nonce, header, wrapped_key)?;
                data_key.open(nonce, &aad, ciphertext, tag, out)?;
                Ok(ciphertext.len())
            }
        }
    }
}

fn aad(header: [u8; HEADER_LEN], payload: Payload) -> Aad {
    let [format, a, b, c, d] = header;
    [format, a, b, c, d, payload as u8]
}
