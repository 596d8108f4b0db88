//! AES-256-GCM with a random 96-bit nonce (NIST SP 800-38D section 8.2.2).

use crate::aead::{Aes256Gcm, NONCE_LEN};
use crate::suites::Aad;

/// Writes `nonce | ciphertext | tag`.
pub(crate) fn seal(
    cipher: &Aes256Gcm,
    nonce: &[u8; NONCE_LEN],
    aad: &Aad,
    plaintext: &[u8],
    body: &mut [u8],
) {
    let (out_nonce, rest) = body.split_at_mut(NONCE_LEN);
    let (ciphertext, tag) = rest.split_at_mut(plaintext.len());
    out_nonce.copy_from_slice(nonce);
    tag.copy_from_slice(&cipher.seal(nonce, aad, plaintext, ciphertext));
}
