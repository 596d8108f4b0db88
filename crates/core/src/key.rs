//! One key with everything that is derived from it.

use core::cell::OnceCell;
use core::fmt;
use core::str::FromStr;

use colcrypt_memory::Guarded;

use crate::aead::Aes256Gcm;
use crate::kdf;
use crate::secret::{SecretKey, guard, wipe_freed};
use crate::suites::{Suite, xaes_256_gcm::Xaes256Gcm};

/// The fingerprint of a key: 4 bytes, shown as 8 hex digits. Stored values name
/// their key by it. Not secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub [u8; 4]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

/// Text that is not 8 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key id has 8 hex digits")]
pub struct NoKeyId;

impl FromStr for KeyId {
    type Err = NoKeyId;

    fn from_str(text: &str) -> Result<Self, NoKeyId> {
        if text.len() != 8 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NoKeyId);
        }
        let id = u32::from_str_radix(text, 16).map_err(|_| NoKeyId)?;
        Ok(Self(id.to_be_bytes()))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// Characters of a Fernet key, less the padding.
const FERNET_KEY_TEXT: usize = 43;

/// A 32-byte key: a key of the ring or a data key. Subkeys and cipher schedules
/// are made when first needed and kept.
pub struct Key {
    id: KeyId,
    secret: SecretKey,
    xaes: OnceCell<Guarded<Xaes256Gcm>>,
    aes: OnceCell<Guarded<Aes256Gcm>>,
    wrap: OnceCell<Guarded<Aes256Gcm>>,
    key_wrap: OnceCell<Guarded<Aes256Gcm>>,
    fernet: OnceCell<Guarded<fernet::Fernet>>,
}

impl Key {
    /// Makes a usable key of 32 secret bytes.
    pub fn new(secret: SecretKey) -> Self {
        Self {
            id: kdf::key_id(&secret),
            secret,
            xaes: OnceCell::new(),
            aes: OnceCell::new(),
            wrap: OnceCell::new(),
            key_wrap: OnceCell::new(),
            fernet: OnceCell::new(),
        }
    }

    /// The key's fingerprint.
    pub fn id(&self) -> KeyId {
        self.id
    }

    pub(crate) fn secret(&self) -> &SecretKey {
        &self.secret
    }

    pub(crate) fn xaes(&self) -> &Xaes256Gcm {
        self.xaes
            .get_or_init(|| guard(|| Xaes256Gcm::new(&self.subkey(Suite::Xaes256Gcm))))
    }

    pub(crate) fn aes(&self) -> &Aes256Gcm {
        self.aes
            .get_or_init(|| guard(|| Aes256Gcm::new(self.subkey(Suite::Aes256Gcm).expose())))
    }

    /// The cipher that wraps the data keys of the envelope suite.
    pub(crate) fn wrap(&self) -> &Aes256Gcm {
        self.wrap
            .get_or_init(|| guard(|| Aes256Gcm::new(self.subkey(Suite::Envelope).expose())))
    }

    /// The cipher that wraps managed keys.
    pub(crate) fn key_wrap(&self) -> &Aes256Gcm {
        self.key_wrap
            .get_or_init(|| guard(|| Aes256Gcm::new(kdf::subkey(&self.secret, "wrap").expose())))
    }

    /// Fernet takes the 32 bytes as they are: it must interoperate.
    pub(crate) fn fernet(&self) -> &fernet::Fernet {
        self.fernet.get_or_init(|| {
            let fernet = guard(|| {
                fernet::Fernet::new(self.secret.to_base64url().expose())
                    .expect("a Fernet key is 32 bytes in base64url")
            });
            // The crate decodes the key into memory of its own: as much as base64
            // without padding may hold.
            wipe_freed(FERNET_KEY_TEXT.div_ceil(4) * 3);
            fernet
        })
    }

    fn subkey(&self, suite: Suite) -> SecretKey {
        kdf::subkey(&self.secret, suite.name())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_shown() {
        let id = KeyId([0x0a, 0xbc, 0, 0xff]);
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in [
            "",
            "abc00ff",
            "00abc00ff",
            "+abc00ff",
            "0abc00fg",
            "0abc\u{e9}0f",
        ] {
            assert_eq!(text.parse::<KeyId>(), Err(NoKeyId), "{text}");
        }
    }
}
