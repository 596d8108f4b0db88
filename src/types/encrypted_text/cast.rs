//! Casts that need code; the others go through input and output (`sql/`).

use pgrx::prelude::*;

use super::{EncryptedText, EncryptedTextBuf, Text, TextBuf};
use crate::error::{Error, Wire};
use crate::types::datum::per_value_function;
use crate::{access, sealing};

// What the session gets to see: to text, and so to varchar and bpchar.
per_value_function!("encrypted_text_to_text", |call| {
    // SAFETY: declared as (encrypted_text), strict.
    let value: EncryptedText<'_> = unsafe { call.varlena(0) };
    let text: TextBuf = Error::unwrap_or_raise(access::show(&value));
    text.into_raw()
});

per_value_function!("encrypted_text_from_text", |call| {
    // SAFETY: declared as (text, integer), strict.
    let (text, modifier): (Text<'_>, _) = unsafe { (call.varlena(0), call.int4(1)) };
    take_in(&text, modifier).into_raw()
});

/// Without the padding, as a cast to text gives it (`rtrim1()` in PostgreSQL).
#[pg_extern(sql = false)]
fn encrypted_text_from_bpchar(text: Text<'_>, modifier: i32) -> EncryptedTextBuf {
    let end = text
        .iter()
        .rposition(|byte| *byte != b' ')
        .map_or(0, |last| last + 1);
    take_in(&text[..end], modifier)
}

/// `true` and `false`, as a cast to text gives, not `t` and `f`.
#[pg_extern(sql = false)]
fn encrypted_text_from_bool(value: bool, modifier: i32) -> EncryptedTextBuf {
    let text = if value { "true" } else { "false" };
    take_in(text.as_bytes(), modifier)
}

/// With its mask, as a cast to text gives it; output leaves a full one away.
#[pg_extern(sql = false)]
fn encrypted_text_from_inet(call: pg_sys::FunctionCallInfo) -> EncryptedTextBuf {
    // SAFETY: the SQL function takes (inet, integer) and is strict, so both
    // arguments are there; text(inet) gives a text.
    let (text, modifier) = unsafe {
        let arguments = (*call).args.as_slice(2);
        let text = pg_sys::OidFunctionCall1Coll(
            pg_sys::Oid::from(pg_sys::F_TEXT_INET),
            pg_sys::InvalidOid,
            arguments[0].value,
        );
        (Text::from_raw(text), arguments[1].value.value() as i32)
    };
    take_in(&text, modifier)
}

fn take_in(text: &[u8], modifier: i32) -> EncryptedTextBuf {
    Error::unwrap_or_raise(sealing::take_in(text, modifier, Wire::Text))
}
