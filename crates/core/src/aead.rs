//! AES-256-GCM (NIST SP 800-38D) with 96-bit nonces and 128-bit tags, behind
//! the two calls that the suites need. The cipher itself is the `aes-gcm`
//! crate's.

use core::hint::black_box;

use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{AeadInOut, KeyInit};

/// Length of a nonce, in bytes.
pub(crate) const NONCE_LEN: usize = 12;
/// Length of an authentication tag, in bytes.
pub(crate) const TAG_LEN: usize = 16;

/// The value is not what was sealed under this key. Says no more on purpose:
/// a wrong key and tampering look the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AuthenticationFailed;

/// A key schedule, ready to seal and open. Generic over the AAD, so that code is
/// made for its length where that is known: it is a tenth of a short value's time.
pub(crate) struct Aes256Gcm(aes_gcm::Aes256Gcm);

impl Aes256Gcm {
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        Self(aes_gcm::Aes256Gcm::new(key.into()))
    }

    /// `seal[k, nonce, aad](p)`: writes the ciphertext to `out`, which is as
    /// long as `plaintext`, and gives the tag.
    pub(crate) fn seal<A: AsRef<[u8]> + ?Sized>(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &A,
        plaintext: &[u8],
        out: &mut [u8],
    ) -> [u8; TAG_LEN] {
        let buffer = InOutBuf::new(plaintext, out).expect("out is as long as plaintext");
        self.0
            .encrypt_inout_detached(nonce.into(), aad.as_ref(), buffer)
            .expect("a PostgreSQL value is below AES-GCM's limit of 64 GiB")
            .into()
    }

    /// `open[k, nonce, aad](c, tag)`: writes the plaintext to `out`, which is
    /// as long as `ciphertext`; leaves it alone if the tag does not match.
    pub(crate) fn open<A: AsRef<[u8]> + ?Sized>(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &A,
        ciphertext: &[u8],
        tag: &[u8; TAG_LEN],
        out: &mut [u8],
    ) -> Result<(), AuthenticationFailed> {
        let buffer = InOutBuf::new(ciphertext, out).map_err(|_| AuthenticationFailed)?;
        self.0
            .decrypt_inout_detached(nonce.into(), aad.as_ref(), buffer, tag.into())
            .map_err(|_| AuthenticationFailed)
    }
}

impl Drop for Aes256Gcm {
    /// Writes the schedule of a zero key over this one. The crate can wipe
    /// itself ("zeroize"), but then wipes a copy in every call too.
    fn drop(&mut self) {
        self.0 = aes_gcm::Aes256Gcm::new(&[0; 32].into());
        black_box(&self.0);
    }
}
