//! Secret values: wiped when dropped, never printed, never cloned.

use core::fmt;

use colcrypt_memory::{Guarded, clear_vector_registers};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use crate::nonce::RandomError;

/// 32 secret bytes: a ring key, a data key or a subkey.
///
/// It stays where it is when it is moved, in memory that is left out of core dumps,
/// and is wiped when dropped. It has no `Clone`, `PartialEq` or serialization.
pub struct SecretKey(Guarded<[u8; Self::LEN]>);

impl SecretKey {
    /// Length of every key, in bytes.
    pub const LEN: usize = 32;

    /// Takes the bytes over; `bytes` is wiped.
    pub fn take(bytes: &mut [u8; Self::LEN]) -> Self {
        let mut key = Self(Guarded::new([0; Self::LEN]));
        key.0.copy_from_slice(bytes);
        bytes.zeroize();
        key
    }

    /// A random key from the operating system's generator.
    ///
    /// # Errors
    /// [`RandomError`] when the generator fails.
    pub fn random() -> Result<Self, RandomError> {
        let mut key = Self(Guarded::new([0; Self::LEN]));
        getrandom::fill(key.0.as_mut_slice()).map_err(|_| RandomError)?;
        Ok(key)
    }

    /// The bytes, to be used at once and not kept.
    pub(crate) fn expose(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// The key in the form that people keep: 44 characters of base64url, which
    /// Fernet libraries accept as well.
    pub fn to_base64url(&self) -> SecretText {
        use base64::Engine as _;
        SecretText::new(base64::engine::general_purpose::URL_SAFE.encode(self.expose()))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// Text that holds secrets: ring text, a passphrase, a key in base64.
#[derive(Default, PartialEq, Eq)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Takes the text over.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text, to be used at once and not kept.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Tells this text from others: SHA-256. As secret as the text is, if that can be
    /// guessed.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(..)")
    }
}

impl<'de> serde::Deserialize<'de> for SecretText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

/// Puts what `make` makes of a key into guarded memory, and wipes the part of the
/// stack that it has used.
pub(crate) fn guard<T>(make: impl FnOnce() -> T) -> Guarded<T> {
    without_traces(|| Guarded::new(make()))
}

/// Runs `work`, and wipes the part of the stack that it has used, and the vector
/// registers: what is made of a key is moved about there, and left behind.
pub fn without_traces<T>(work: impl FnOnce() -> T) -> T {
    #[inline(never)]
    fn run<T>(work: impl FnOnce() -> T) -> T {
        work()
    }
    #[inline(never)]
    fn wipe() {
        let mut stack = [0_u8; 16 * 1024];
        stack.zeroize();
        core::hint::black_box(&mut stack);
    }
    let result = run(work);
    wipe();
    clear_vector_registers();
    result
}

/// Overwrites what a library has freed of this size, a moment ago and without wiping
/// it: an allocator gives out first what came back last.
pub(crate) fn wipe_freed(len: usize) {
    let room = |len| {
        let mut room = Vec::with_capacity(len);
        // Not zeros: zeroed memory is asked for in another way, and comes from elsewhere.
        room.resize(len, 0xff_u8);
        core::hint::black_box(room)
    };
    // What was at hand may have been one step larger than needed.
    let rooms = |len| [(); 16].map(|()| room(len));
    drop((rooms(len), rooms(len + 16)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_shows_no_secret() {
        let mut bytes = [0x41; 32];
        let key = SecretKey::take(&mut bytes);
        assert_eq!(bytes, [0; 32], "the source is wiped");
        assert_eq!(format!("{key:?}"), "SecretKey(..)");
        assert_eq!(format!("{:?}", key.to_base64url()), "SecretText(..)");
        assert_eq!(key.to_base64url().expose().len(), 44);
    }
}
