//! `encrypted_text`: a text that is encrypted wherever it is stored.

use core::ffi::CStr;

use colcrypt_core::Payload;
use pgrx::prelude::*;

use super::EncryptedType;
use super::datum::{CStringBuf, Detoasted, VarlenaBuf, per_value_function};
use super::functions::{encrypted_type, message_of, message_text, sealed};
use super::plain::Plain;
use crate::access::{self, Shown};
use crate::error::Error;

struct EncryptedText;

encrypted_type!("encrypted_text", EncryptedText);

impl EncryptedType for EncryptedText {
    const PAYLOAD: Payload = Payload::Text;

    #[inline]
    fn read(literal: &CStr) -> Result<Plain<'_>, Error> {
        Ok(Plain::Borrowed(literal.to_bytes()))
    }

    unsafe fn receive(message: pg_sys::StringInfo) -> Result<Plain<'static>, Error> {
        // SAFETY: by the caller's word.
        Ok(Plain::Borrowed(unsafe { message_text(message) }))
    }

    #[inline]
    fn take<'a>(value: &'a Detoasted<'_>) -> Plain<'a> {
        Plain::Borrowed(value)
    }

    #[inline]
    fn print(stored: &[u8]) -> Result<pg_sys::Datum, Box<Error>> {
        let shown: Shown<CStringBuf> = access::print(Self::PAYLOAD, stored)?;
        Ok(shown.bytes.into_raw())
    }

    fn send(shown: &[u8]) -> VarlenaBuf {
        message_of(|message| {
            // SAFETY: an initialized buffer; the text is valid.
            unsafe { pg_sys::pq_sendtext(message, shown.as_ptr().cast(), shown.len() as i32) };
        })
    }

    #[inline]
    fn give(shown: Shown<VarlenaBuf>) -> Result<pg_sys::Datum, Error> {
        Ok(shown.bytes.into_raw())
    }
}

// Casts from types whose output is not what a cast to text gives; the others go
// through output and input (`sql/encrypted_text.sql`).

// Without the padding, as a cast to text gives it (`rtrim1()` in PostgreSQL).
per_value_function!("encrypted_text_from_bpchar", |call| {
    // SAFETY: declared as (bpchar, integer), strict.
    let (text, modifier) = unsafe { (call.varlena(0), call.int4(1)) };
    let end = text
        .iter()
        .rposition(|byte| *byte != b' ')
        .map_or(0, |last| last + 1);
    sealed::<EncryptedText>(&text[..end], modifier)
});

// `true` and `false`, as a cast to text gives, not `t` and `f`.
per_value_function!("encrypted_text_from_bool", |call| {
    // SAFETY: declared as (boolean, integer), strict.
    let (value, modifier) = unsafe { (call.bool(0), call.int4(1)) };
    let text = if value { "true" } else { "false" };
    sealed::<EncryptedText>(text.as_bytes(), modifier)
});

// With its mask, as a cast to text gives it; output leaves a full one away.
per_value_function!("encrypted_text_from_inet", |call| {
    // SAFETY: declared as (inet, integer), strict; text(inet) gives a text.
    let (text, modifier) = unsafe {
        let function = pg_sys::Oid::from(pg_sys::F_TEXT_INET);
        let address = call.pointer(0).into();
        let text = pg_sys::OidFunctionCall1Coll(function, pg_sys::InvalidOid, address);
        (Detoasted::from_raw(text), call.int4(1))
    };
    sealed::<EncryptedText>(&text, modifier)
});
