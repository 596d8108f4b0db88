//! `encrypted_bytea`: bytes that are encrypted wherever they are stored.

use core::ffi::CStr;

use colcrypt_core::Payload;
use pgrx::prelude::*;
use zeroize::Zeroizing;

use super::EncryptedType;
use super::datum::{CStringBuf, Detoasted, Output, VarlenaBuf};
use super::functions::{encrypted_type, message_of};
use super::plain::{Plain, read_literal};
use crate::access::{self, Shown};
use crate::error::Error;

struct EncryptedBytea;

encrypted_type!("encrypted_bytea", EncryptedBytea);

impl EncryptedType for EncryptedBytea {
    const PAYLOAD: Payload = Payload::Bytea;

    /// Ciphertext in text form is bytes in the escape format.
    fn read(literal: &CStr) -> Result<Plain<'_>, Error> {
        let bytes = read_literal(Self::PAYLOAD, pg_sys::F_BYTEAIN, literal)?;
        // SAFETY: byteain() gives a palloc'd bytea.
        let mut bytes = unsafe { VarlenaBuf::from_raw(bytes.cast_mut_ptr()) };
        let copy = Zeroizing::new(bytes.bytes_mut().to_vec());
        bytes.wipe();
        Ok(Plain::Made(copy))
    }

    unsafe fn receive(message: pg_sys::StringInfo) -> Result<Plain<'static>, Error> {
        // SAFETY: by the caller's word; what comes back is as long as was asked for.
        unsafe {
            let rest = (*message).len - (*message).cursor;
            let bytes = pg_sys::pq_getmsgbytes(message, rest).cast::<u8>();
            let bytes = core::slice::from_raw_parts(bytes, usize::try_from(rest).unwrap_or(0));
            Ok(Plain::Borrowed(bytes))
        }
    }

    fn take<'a>(value: &'a Detoasted<'_>) -> Plain<'a> {
        Plain::Borrowed(value)
    }

    fn print(stored: &[u8]) -> Result<pg_sys::Datum, Box<Error>> {
        let mut shown: Shown<VarlenaBuf> = access::print(Self::PAYLOAD, stored)?;
        if shown.is_ciphertext {
            let text = CStringBuf::copy_of(shown.bytes.bytes_mut());
            return Ok(text.into_raw());
        }
        // SAFETY: byteaout() takes a bytea; it is not used any more afterwards.
        Ok(unsafe {
            let bytes = shown.bytes.into_raw();
            let function = pg_sys::Oid::from(pg_sys::F_BYTEAOUT);
            let text = pg_sys::OidFunctionCall1Coll(function, pg_sys::InvalidOid, bytes);
            VarlenaBuf::from_raw(bytes.cast_mut_ptr()).wipe();
            text
        })
    }

    fn send(shown: &[u8]) -> VarlenaBuf {
        message_of(|message| {
            // SAFETY: an initialized buffer; the bytes are valid.
            unsafe { pg_sys::pq_sendbytes(message, shown.as_ptr().cast(), shown.len() as i32) };
        })
    }

    fn give(shown: Shown<VarlenaBuf>) -> Result<pg_sys::Datum, Error> {
        Ok(shown.bytes.into_raw())
    }
}
