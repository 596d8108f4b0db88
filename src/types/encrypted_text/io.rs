//! Text and binary input and output. The binary form is that of `text`, so that
//! binary drivers and binary COPY see text.

use pgrx::prelude::*;

use super::{ByteaBuf, EncryptedText, EncryptedTextBuf, TextBuf};
use crate::error::{Error, Wire};
use crate::types::datum::{CStringBuf, Output, per_value_function};
use crate::{access, sealing};

per_value_function!("encrypted_text_in", |call| {
    // SAFETY: declared as (cstring, oid, integer), strict.
    let (text, modifier) = unsafe { (call.cstring(0), call.int4(2)) };
    let sealed: EncryptedTextBuf =
        Error::unwrap_or_raise(sealing::take_in(text.to_bytes(), modifier, Wire::Text));
    sealed.into_raw()
});

per_value_function!("encrypted_text_out", |call| {
    // SAFETY: declared as (encrypted_text), strict.
    let value: EncryptedText<'_> = unsafe { call.varlena(0) };
    let text: CStringBuf = Error::unwrap_or_raise(access::print(&value));
    text.into_raw()
});

#[pg_extern(sql = false)]
fn encrypted_text_recv(
    mut message: pgrx::Internal,
    _element: pg_sys::Oid,
    modifier: i32,
) -> EncryptedTextBuf {
    // SAFETY: PostgreSQL calls a receive function with a StringInfo; what
    // pq_getmsgtext() gives is palloc'd and as long as it says.
    let text = unsafe {
        let message = message
            .get_mut::<pg_sys::StringInfoData>()
            .expect("PostgreSQL passes the message");
        let rest = message.len - message.cursor;
        let mut len = 0;
        let text = pg_sys::pq_getmsgtext(message, rest, &raw mut len);
        core::slice::from_raw_parts(text.cast::<u8>(), usize::try_from(len).unwrap_or(0))
    };
    Error::unwrap_or_raise(sealing::take_in(text, modifier, Wire::Binary))
}

#[pg_extern(sql = false)]
fn encrypted_text_send(value: EncryptedText<'_>) -> ByteaBuf {
    let mut text: TextBuf = Error::unwrap_or_raise(access::show(&value));
    let text = text.bytes_mut();
    let len = i32::try_from(text.len()).expect("a value is below 1 GB");
    // SAFETY: the buffer is initialized by pq_begintypsend(); the text is valid
    // for `len` bytes; the result is a palloc'd bytea.
    unsafe {
        let mut message = pg_sys::StringInfoData::default();
        pg_sys::pq_begintypsend(&raw mut message);
        pg_sys::pq_sendtext(&raw mut message, text.as_ptr().cast(), len);
        ByteaBuf::from_raw(pg_sys::pq_endtypsend(&raw mut message))
    }
}
