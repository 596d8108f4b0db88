//! A data key for each value: it is wrapped with AES-256-GCM under the suite's
//! subkey (AAD: the header), and the value is sealed with AES-256-GCM under it.

use zeroize::Zeroizing;

use crate::aead::{Aes256Gcm, AuthenticationFailed, NONCE_LEN};
use crate::nonce::{Nonces, RandomError};
use crate::stored::{HEADER_LEN, WRAPPED_LEN};
use crate::suites::{Aad, aes_256_gcm};

/// Writes `nonce | wrapped data key | nonce | ciphertext | tag`.
pub(crate) fn seal(
    wrap: &Aes256Gcm,
    nonces: &mut Nonces<'_>,
    header: &[u8; HEADER_LEN],
    aad: &Aad,
    plaintext: &[u8],
    body: &mut [u8],
) -> Result<(), RandomError> {
    let mut data_key = Zeroizing::new([0; 32]);
    nonces.fill(data_key.as_mut_slice())?;
    let wrap_nonce = nonces.random()?;

    let (out_nonce, rest) = body.split_at_mut(NONCE_LEN);
    let (wrapped, sealed) = rest.split_at_mut(WRAPPED_LEN);
    let (wrapped_key, tag) = wrapped.split_at_mut(data_key.len());
    out_nonce.copy_from_slice(&wrap_nonce);
    tag.copy_from_slice(&wrap.seal(&wrap_nonce, header, data_key.as_slice(), wrapped_key));

    let cipher = Aes256Gcm::new(&data_key);
    aes_256_gcm::seal(&cipher, &nonces.random()?, aad, plaintext, sealed);
    Ok(())
}

/// The cipher under the data key that `wrapped` holds.
pub(crate) fn unwrap(
    wrap: &Aes256Gcm,
    nonce: &[u8; NONCE_LEN],
    header: &[u8; HEADER_LEN],
    wrapped: &[u8; WRAPPED_LEN],
) -> Result<Aes256Gcm, AuthenticationFailed> {
    let (wrapped_key, tag) = wrapped.split_last_chunk().ok_or(AuthenticationFailed)?;
    let mut data_key = Zeroizing::new([0; 32]);
    wrap.open(nonce, header, wrapped_key, tag, data_key.as_mut_slice())?;
    Ok(Aes256Gcm::new(&data_key))
}
