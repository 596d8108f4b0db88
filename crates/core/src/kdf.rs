//! Everything that is derived from a key or a passphrase. Nothing else in the
//! project derives keys.

use argon2::{Algorithm, Argon2, Params, Version};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::key::KeyId;
use crate::secret::{SecretKey, without_traces};

const KEY_ID_LABEL: &[u8] = b"colcrypt v1 key id";
const SUBKEY_LABEL: &str = "colcrypt v1 ";
const PASSPHRASE_SALT: &[u8] = b"colcrypt v1 passphrase";

/// `HMAC-SHA-256(key, "colcrypt v1 key id")[..4]` (RFC 2104): the fingerprint
/// that a stored value names its key by. The same key has the same id on every
/// server.
pub(crate) fn key_id(key: &SecretKey) -> KeyId {
    let [a, b, c, d, ..] = without_traces(|| hmac_sha_256(key.expose(), KEY_ID_LABEL));
    KeyId([a, b, c, d])
}

/// `HKDF-SHA-256(key, salt = none, info = "colcrypt v1 " | purpose)`, 32 bytes
/// (RFC 5869). One subkey for each suite, so that a key is never used raw for
/// two things.
pub(crate) fn subkey(key: &SecretKey, purpose: &str) -> SecretKey {
    let info = [SUBKEY_LABEL.as_bytes(), purpose.as_bytes()];
    without_traces(|| {
        let mut okm = [0; SecretKey::LEN];
        hkdf_sha_256(key.expose(), None, &info, &mut okm)
            .expect("32 bytes are within HKDF-SHA-256's limit of 8160");
        SecretKey::take(&mut okm)
    })
}

/// `Argon2id(passphrase, salt = "colcrypt v1 passphrase")`, version 0x13,
/// 64 MiB, 3 passes, 1 lane, 32 bytes (RFC 9106). The salt is fixed because
/// there is nowhere to keep one before there is a key.
///
/// Takes tenths of a second, on purpose.
pub(crate) fn passphrase_key(passphrase: &str) -> SecretKey {
    let params = Params::new(64 * 1024, 3, 1, Some(SecretKey::LEN))
        .expect("the parameters are within Argon2's limits");
    let mut key = [0; SecretKey::LEN];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.as_bytes(), PASSPHRASE_SALT, &mut key)
        .expect("passphrase and salt are within Argon2's limits");
    SecretKey::take(&mut key)
}

/// `HMAC-SHA-256(key, message)` (RFC 2104).
pub(crate) fn hmac_sha_256(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

/// `HKDF-SHA-256(ikm, salt, info)` (RFC 5869): fills `okm`. The parts of `info`
/// are concatenated.
pub(crate) fn hkdf_sha_256(
    ikm: &[u8],
    salt: Option<&[u8]>,
    info: &[&[u8]],
    okm: &mut [u8],
) -> Result<(), hkdf::InvalidLength> {
    Hkdf::<Sha256>::new(salt, ikm).expand_multi_info(info, okm)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with Python: `hmac.new(k, b"colcrypt v1 key id", "sha256")`,
    /// `cryptography`'s HKDF and argon2-cffi's `hash_secret_raw`.
    #[test]
    fn derivations_are_frozen() {
        let key = SecretKey::take(&mut core::array::from_fn(|i| i as u8));
        assert_eq!(key_id(&key).to_string(), KEY_ID);
        assert_eq!(hex::encode(subkey(&key, "xaes-256-gcm").expose()), SUBKEY);
        assert_eq!(
            hex::encode(passphrase_key("correct horse battery staple of thirty-two").expose()),
            PASSPHRASE
        );
    }

    const KEY_ID: &str = "dff573a2";
    const SUBKEY: &str = "a60aef90f768e9354c6c44a96591b1f23c6f1a72b0dd045dd181065fdab0dd5f";
    const PASSPHRASE: &str = "f120d9e18af9f5b2e4970cf3e949c7a83dd468d6a6ddfa39f2309092a1253dc4";
}
