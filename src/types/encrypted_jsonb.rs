//! `encrypted_jsonb`: JSON documents that are encrypted wherever they are stored.
//!
//! What is sealed is the document as `jsonb` prints it, not the bytes that PostgreSQL
//! would store: any program can decrypt it and read it. A mask and ciphertext in
//! place of a document are JSON strings where JSON is asked for.

use core::ffi::CStr;

use colcrypt_core::{Payload, is_reserved};
use pgrx::prelude::*;

use super::datum::{CStringBuf, Call, Detoasted, Output, VarlenaBuf, per_value_function};
use super::functions::{encrypted_type, message_of, message_text, sealed};
use super::plain::Plain;
use super::{EncryptedType, json};
use crate::access::{self, Shown};
use crate::error::Error;
use crate::gucs::{self, Input};
use crate::migration;

/// What `jsonb_send()` begins a message with.
const MESSAGE_VERSION: u8 = 1;

struct EncryptedJsonb;

encrypted_type!("encrypted_jsonb", EncryptedJsonb);

impl EncryptedType for EncryptedJsonb {
    const PAYLOAD: Payload = Payload::Jsonb;

    fn read(literal: &CStr) -> Result<Plain<'_>, Error> {
        document(literal.to_bytes())
    }

    unsafe fn receive(message: pg_sys::StringInfo) -> Result<Plain<'static>, Error> {
        // SAFETY: by the caller's word.
        unsafe {
            if pg_sys::pq_getmsgint(message, 1) as u8 != MESSAGE_VERSION {
                return Err(Error::InvalidLiteral {
                    payload: Self::PAYLOAD,
                    code: PgSqlErrorCode::ERRCODE_INVALID_BINARY_REPRESENTATION,
                });
            }
            document(message_text(message))
        }
    }

    fn take<'a>(value: &'a Detoasted<'_>) -> Plain<'a> {
        Plain::Made(json::print(value))
    }

    fn print(stored: &[u8]) -> Result<pg_sys::Datum, Box<Error>> {
        let shown: Shown<CStringBuf> = access::print(Self::PAYLOAD, stored)?;
        Ok(shown.bytes.into_raw())
    }

    fn send(shown: &[u8]) -> VarlenaBuf {
        message_of(|message| {
            // SAFETY: an initialized buffer; the text is valid.
            unsafe {
                pg_sys::pq_sendint8(message, MESSAGE_VERSION);
                pg_sys::pq_sendtext(message, shown.as_ptr().cast(), shown.len() as i32);
            }
        })
    }

    fn give(mut shown: Shown<VarlenaBuf>) -> Result<pg_sys::Datum, Error> {
        let document = json_text(&mut shown);
        let document = json::parse(&document);
        shown.bytes.wipe();
        document
    }
}

/// A document in the form that is sealed.
fn document(text: &[u8]) -> Result<Plain<'_>, Error> {
    if gucs::input() == Input::Ciphertext || is_reserved(text) {
        return Ok(Plain::Borrowed(text));
    }
    json::normalized(text).map(Plain::Made)
}

/// What is shown, as a document.
fn json_text(shown: &mut Shown<VarlenaBuf>) -> Plain<'_> {
    let text = shown.bytes.bytes_mut();
    if shown.is_ciphertext {
        Plain::Made(json::string(text))
    } else {
        Plain::Borrowed(text)
    }
}

// For to_json(), row_to_json() and the like, which look for such a cast.
per_value_function!("encrypted_jsonb_to_json", |call| {
    // SAFETY: declared as (encrypted_jsonb), strict.
    let stored = unsafe { call.varlena(0) };
    let mut shown = Error::unwrap_or_raise(access::show(Payload::Jsonb, &stored));
    let text = VarlenaBuf::copy_of(&json_text(&mut shown));
    shown.bytes.wipe();
    text.into_raw()
});

per_value_function!("encrypted_jsonb_from_json", |call| from_json(&call));

// `encrypt_value(json, integer)` of `sql/migration.sql`
per_value_function!("encrypted_jsonb_encrypt_json", |call| {
    migration::count_row();
    from_json(&call)
});

fn from_json(call: &Call<'_>) -> pg_sys::Datum {
    // SAFETY: declared as (json, integer), strict.
    let (text, modifier) = unsafe { (call.varlena(0), call.int4(1)) };
    let document = Error::unwrap_or_raise(json::normalized(&text));
    sealed::<EncryptedJsonb>(&document, modifier)
}
