//! Plaintext is UTF-8 in every stored value, whatever the database's encoding,
//! so that ciphertext can move between databases. In a UTF-8 database, which
//! is nearly every one, nothing is converted.

use core::cell::Cell;
use std::borrow::Cow;

use pgrx::prelude::*;

use crate::backend_local::BackendLocal;
use crate::error::Error;

/// Whether text of this database is UTF-8 already.
#[inline]
pub(crate) fn is_utf8() -> bool {
    /// A backend never changes its database.
    static IS_UTF8: BackendLocal<Cell<Option<bool>>> = BackendLocal::new(Cell::new(None));
    #[cold]
    fn ask() -> bool {
        // SAFETY: reads a variable that is set when the backend connects.
        let encoding = unsafe { pg_sys::GetDatabaseEncoding() };
        let is_utf8 = encoding == pg_sys::pg_enc::PG_UTF8 as i32;
        IS_UTF8.set(Some(is_utf8));
        is_utf8
    }
    match IS_UTF8.get() {
        Some(is_utf8) => is_utf8,
        None => ask(),
    }
}

/// Text of the database as UTF-8.
///
/// Raises PostgreSQL's error for text that has no UTF-8 form.
pub(crate) fn to_utf8(text: &[u8]) -> Cow<'_, [u8]> {
    if is_utf8() {
        return Cow::Borrowed(text);
    }
    // SAFETY: the pointer is valid for `length` bytes; what comes back is that
    // pointer or a palloc'd, NUL-terminated string.
    unsafe {
        let converted = pg_sys::pg_server_to_any(
            text.as_ptr().cast(),
            length(text),
            pg_sys::pg_enc::PG_UTF8 as i32,
        );
        if converted.cast_const() == text.as_ptr().cast() {
            Cow::Borrowed(text)
        } else {
            Cow::Owned(take_over(converted))
        }
    }
}

/// Copies a palloc'd string, wipes and frees it: the memory context may live long.
///
/// # Safety
/// `string` is palloc'd and NUL-terminated.
pub(crate) unsafe fn take_over(string: *mut core::ffi::c_char) -> Vec<u8> {
    // SAFETY: by the caller's word.
    unsafe {
        let copy = core::ffi::CStr::from_ptr(string).to_bytes().to_vec();
        core::ptr::write_bytes(string, 0, copy.len());
        core::hint::black_box(string);
        pg_sys::pfree(string.cast());
        copy
    }
}

/// UTF-8 as text of a database that is not UTF-8.
///
/// # Errors
/// [`Error::Unrepresentable`]: PostgreSQL's own message would show the bytes.
pub(crate) fn from_utf8(text: &[u8]) -> Result<Cow<'_, [u8]>, Error> {
    let length = length(text);
    let (start, text) = (text.as_ptr(), core::panic::AssertUnwindSafe(text));
    let converted = PgTryBuilder::new(move || {
        // SAFETY: as in `to_utf8`.
        unsafe {
            let converted =
                pg_sys::pg_any_to_server(start.cast(), length, pg_sys::pg_enc::PG_UTF8 as i32);
            if converted.cast_const() == start.cast() {
                None
            } else {
                Some(take_over(converted))
            }
        }
    })
    .catch_when(PgSqlErrorCode::ERRCODE_UNTRANSLATABLE_CHARACTER, |_| {
        Some(Vec::new())
    })
    .execute();
    match converted {
        None => Ok(Cow::Borrowed(text.0)),
        // No text but the empty one, which is never converted, becomes empty.
        Some(converted) if converted.is_empty() => Err(Error::Unrepresentable),
        Some(converted) => Ok(Cow::Owned(converted)),
    }
}

fn length(text: &[u8]) -> i32 {
    i32::try_from(text.len()).expect("a value is below 1 GB")
}

/// A name as an identifier, quoted if need be.
pub(crate) fn quoted_identifier(name: &str) -> String {
    let name = std::ffi::CString::new(name).unwrap_or_default();
    // SAFETY: gives the string itself or a palloc'd one.
    let quoted = unsafe { core::ffi::CStr::from_ptr(pg_sys::quote_identifier(name.as_ptr())) };
    quoted.to_string_lossy().into_owned()
}

/// Text of the database, for messages.
pub(crate) fn to_string(text: &core::ffi::CStr) -> String {
    String::from_utf8_lossy(&to_utf8(text.to_bytes())).into_owned()
}
