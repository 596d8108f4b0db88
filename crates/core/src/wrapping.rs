//! Managed keys at rest: a key of the database, wrapped by a key of the ring.
//!
//! AES-256-GCM (NIST SP 800-38D) with a random nonce, under the ring key's own
//! subkey for this purpose. Everything that says what the wrapped key is belongs
//! to the AAD, so a row of the key table that was edited, or wrapped material
//! that was moved to another row, does not unwrap.

use zeroize::Zeroizing;

use crate::aead::{NONCE_LEN, TAG_LEN};
use crate::kdf;
use crate::key::{Key, KeyId};
use crate::nonce::RandomError;
use crate::secret::SecretKey;

/// Length of a wrapped key: nonce, 32 bytes of ciphertext, tag.
pub const WRAPPED_KEY_LEN: usize = NONCE_LEN + SecretKey::LEN + TAG_LEN;

const LABEL: &[u8] = b"colcrypt v1 key";

/// What a row of the key table says of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyIdentity<'a> {
    /// Fingerprint of the wrapped key.
    pub id: KeyId,
    /// `data` or `index`.
    pub kind: &'a str,
    /// Name that it was made with; empty for an index key.
    pub name: &'a str,
    /// The suite that values are sealed with under it; of an index key the
    /// function that makes its tags.
    pub suite: &'a str,
}

/// The wrapped key is not what was wrapped for this identity under this key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the wrapped key could not be authenticated")]
pub struct UnwrapError;

impl KeyIdentity<'_> {
    /// `label | id | length | kind | length | name | length | suite`, lengths as
    /// 4 bytes big-endian.
    fn aad(&self) -> Vec<u8> {
        let mut aad = [LABEL, &self.id.0].concat();
        for part in [self.kind, self.name, self.suite] {
            let len = u32::try_from(part.len()).expect("a name is short");
            aad.extend_from_slice(&len.to_be_bytes());
            aad.extend_from_slice(part.as_bytes());
        }
        aad
    }
}

/// The fingerprint of a key, by the same formula for ring and managed keys.
pub fn fingerprint(key: &SecretKey) -> KeyId {
    kdf::key_id(key)
}

/// Wraps `key` under `wrapping_key`: `nonce | ciphertext | tag`.
///
/// # Errors
/// [`RandomError`] when the operating system gives no random bytes.
///
/// # Panics
/// If `identity` does not have the key's fingerprint.
pub fn wrap_key(
    wrapping_key: &Key,
    identity: &KeyIdentity<'_>,
    key: &SecretKey,
) -> Result<[u8; WRAPPED_KEY_LEN], RandomError> {
    assert_eq!(identity.id, kdf::key_id(key), "the identity is the key's");
    let mut wrapped = [0; WRAPPED_KEY_LEN];
    let (nonce, rest) = wrapped
        .split_first_chunk_mut::<NONCE_LEN>()
        .expect("a wrapped key starts with a nonce");
    getrandom::fill(nonce).map_err(|_| RandomError)?;
    let (ciphertext, tag) = rest.split_at_mut(SecretKey::LEN);
    let sealed = wrapping_key
        .key_wrap()
        .seal(nonce, &identity.aad(), key.expose(), ciphertext);
    tag.copy_from_slice(&sealed);
    Ok(wrapped)
}

/// Unwraps what [`wrap_key`] gave.
///
/// # Errors
/// [`UnwrapError`] for another wrapping key, another identity, or changed bytes.
pub fn unwrap_key(
    wrapping_key: &Key,
    identity: &KeyIdentity<'_>,
    wrapped: &[u8],
) -> Result<SecretKey, UnwrapError> {
    let wrapped: &[u8; WRAPPED_KEY_LEN] = wrapped.try_into().map_err(|_| UnwrapError)?;
    let (nonce, rest) = wrapped.split_first_chunk().ok_or(UnwrapError)?;
    let (ciphertext, tag) = rest.split_last_chunk().ok_or(UnwrapError)?;
    let mut key = Zeroizing::new([0; SecretKey::LEN]);
    wrapping_key
        .key_wrap()
        .open(nonce, &identity.aad(), ciphertext, tag, key.as_mut_slice())
        .map_err(|_| UnwrapError)?;
    let key = SecretKey::take(&mut key);
    // A wrapped key carries its id in the AAD; that it is the id of this key was
    // true when it was wrapped.
    (kdf::key_id(&key) == identity.id)
        .then_some(key)
        .ok_or(UnwrapError)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(byte: u8) -> SecretKey {
        SecretKey::take(&mut [byte; 32])
    }

    fn identity(key: &SecretKey) -> KeyIdentity<'static> {
        KeyIdentity {
            id: fingerprint(key),
            kind: "data",
            name: "pii",
            suite: "xaes-256-gcm",
        }
    }

    #[test]
    fn a_wrapped_key_comes_back() {
        let ring_key = Key::new(secret(1));
        let wrapped = wrap_key(&ring_key, &identity(&secret(2)), &secret(2)).expect("wraps");
        let key = unwrap_key(&ring_key, &identity(&secret(2)), &wrapped).expect("unwraps");
        assert_eq!(key.expose(), secret(2).expose());
    }

    /// Made by `tests/decryptor.py` from the text of `docs/format.md`.
    #[test]
    fn the_form_is_frozen() {
        let wrapped = hex::decode(WRAPPED).expect("hex");
        let key = unwrap_key(&Key::new(secret(1)), &identity(&secret(2)), &wrapped);
        assert!(key.is_ok());
    }

    #[test]
    fn every_flipped_bit_and_every_other_identity_is_refused() {
        let ring_key = Key::new(secret(1));
        let original = identity(&secret(2));
        let wrapped = wrap_key(&ring_key, &original, &secret(2)).expect("wraps");
        for bit in 0..wrapped.len() * 8 {
            let mut changed = wrapped;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(unwrap_key(&ring_key, &original, &changed).is_err());
        }
        for len in 0..wrapped.len() {
            assert!(unwrap_key(&ring_key, &original, &wrapped[..len]).is_err());
        }
        let others = [
            KeyIdentity {
                id: fingerprint(&secret(3)),
                ..original
            },
            KeyIdentity {
                kind: "index",
                ..original
            },
            KeyIdentity {
                name: "pi",
                suite: "ixaes-256-gcm",
                ..original
            },
            KeyIdentity {
                suite: "aes-256-gcm",
                ..original
            },
        ];
        for other in others {
            assert!(unwrap_key(&ring_key, &other, &wrapped).is_err());
        }
        assert!(unwrap_key(&Key::new(secret(9)), &original, &wrapped).is_err());
    }

    const WRAPPED: &str = "000102030405060708090a0b9e90d8f8426a0e211d8e9d216e4be191723ebad3baa021f3d71c4b5d871755faf21c42d7a06b064ff5f70955cb3bc48c";
}
