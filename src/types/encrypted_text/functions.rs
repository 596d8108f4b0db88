//! The everyday functions of `encrypted_text`.

use colcrypt_core::{Stored, encode_text, fernet_raw, is_reserved};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::{EncryptedText, EncryptedTextBuf, Text, TextBuf};
use crate::error::{Error, Wire};
use crate::sealing::{NO_MODIFIER, Sealer};
use crate::tally::{self, Operation};
use crate::types::datum::Output;
use crate::{access, keyring, sealing};

#[pg_extern(sql = false)]
fn encrypted_text_encrypt(text: Text<'_>) -> Result<EncryptedTextBuf, ErrorReport> {
    Ok(sealing::take_in(&text, NO_MODIFIER, Wire::Text)?)
}

/// Encrypts under the managed key of this name.
#[pg_extern(sql = false)]
fn encrypted_text_encrypt_under(
    text: Text<'_>,
    key: &core::ffi::CStr,
) -> Result<EncryptedTextBuf, ErrorReport> {
    let sealer = Sealer::named(&key.to_string_lossy());
    let sealer =
        sealer.inspect_err(|error| tally::count_failure(Operation::Encrypt, None, error))?;
    Ok(sealing::take_in_under(&text, Wire::Text, || Ok(sealer))?)
}

#[pg_extern(sql = false)]
fn encrypted_text_decrypt(value: EncryptedText<'_>) -> Result<TextBuf, ErrorReport> {
    access::check_decrypt()?;
    Ok(sealing::open(&value)?)
}

/// NULL when the value cannot be read, unless that is for want of a right.
#[pg_extern(sql = false)]
fn encrypted_text_try_decrypt(value: EncryptedText<'_>) -> Result<Option<TextBuf>, ErrorReport> {
    access::check_decrypt()?;
    match sealing::open(&value).map_err(|error| *error) {
        Ok(text) => Ok(Some(text)),
        Err(error @ Error::KeyNotGranted { .. }) => Err(error.into()),
        Err(_) => Ok(None),
    }
}

/// The stored bytes in text form. Needs no key.
#[pg_extern(sql = false)]
fn encrypted_text_ciphertext(value: EncryptedText<'_>) -> Result<TextBuf, ErrorReport> {
    access::check_ciphertext(&value)?;
    Ok(TextBuf::copy_of(encode_text(&value).as_bytes()))
}

#[pg_extern(sql = false)]
fn encrypted_text_from_ciphertext(text: Text<'_>) -> Result<EncryptedTextBuf, ErrorReport> {
    Ok(sealing::admit_ciphertext(&text, Wire::Text)?)
}

/// The Fernet token inside a value of that suite. Needs no key.
#[pg_extern(sql = false)]
fn encrypted_text_fernet_token(value: EncryptedText<'_>) -> Result<TextBuf, ErrorReport> {
    access::check_ciphertext(&value)?;
    let stored = Stored::parse(&value).map_err(Error::from)?;
    let token = colcrypt_core::fernet_token(&stored).ok_or(Error::NotFernet)?;
    Ok(TextBuf::copy_of(token.as_bytes()))
}

/// Takes in a token that a key of the ring opens.
#[pg_extern(sql = false)]
fn encrypted_text_from_fernet(token: Text<'_>) -> Result<EncryptedTextBuf, ErrorReport> {
    let raw = fernet_raw(&token).map_err(|reason| Error::BadFernetToken { reason })?;
    let ring = keyring::current();
    ring.primary()?;
    let stored = ring
        .keys()
        .find_map(|key| key.adopt_fernet(&raw).ok())
        .ok_or(Error::ForeignFernetToken)?;
    // Authentic, but is it a text that input would take?
    let mut text: TextBuf = sealing::open(&stored)?;
    if is_reserved(text.bytes_mut()) {
        return Err(Error::ReservedPrefix(Wire::Text).into());
    }
    Ok(EncryptedTextBuf::copy_of(&stored))
}
