//! JSON documents by PostgreSQL's own `jsonb` (src/backend/utils/adt/jsonb.c). No
//! error quotes a document, and no copy of one is left in memory of ours.

use core::cell::Cell;
use std::ffi::CStr;

use colcrypt_core::{Payload, in_utf8_order};
use pgrx::prelude::*;
use zeroize::Zeroizing;

use super::datum::{Detoasted, VarlenaBuf};
use super::plain::{Plain, read_literal};
use crate::backend_local::BackendLocal;
use crate::encoding;
use crate::error::Error;

/// A document as `jsonb` prints it, of one in any form. Both in the encoding of the
/// database.
///
/// # Errors
/// [`Error::InvalidLiteral`].
pub(crate) fn normalized(text: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
    let _scratch = Scratch::enter();
    let parsed = parse(text)?;
    // SAFETY: a jsonb.
    let printed = print_here(&unsafe { Detoasted::from_raw(parsed) });
    // SAFETY: palloc'd by `parse`, and not used any more.
    unsafe { VarlenaBuf::from_raw(parsed.cast_mut_ptr()) }.wipe();
    Ok(printed)
}

/// As [`normalized`], of a document in UTF-8, in the form that is sealed.
///
/// # Errors
/// [`Error::InvalidLiteral`], [`Error::Unrepresentable`].
pub(crate) fn normalized_utf8(text: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
    if encoding::is_utf8() {
        return normalized(text);
    }
    let printed = normalized(&encoding::from_utf8(text)?)?;
    Ok(to_utf8(&printed).into_zeroizing())
}

/// A document that `jsonb` printed, in the form that is sealed: UTF-8, with members in
/// the order that `jsonb` has there.
pub(crate) fn to_utf8(printed: &[u8]) -> Plain<'_> {
    if encoding::is_utf8() {
        return Plain::Borrowed(printed);
    }
    let converted = Zeroizing::new(encoding::to_utf8(printed).into_owned());
    Plain::Made(in_utf8_order(&converted))
}

/// The `jsonb` of a document in text form.
///
/// # Errors
/// [`Error::InvalidLiteral`]: PostgreSQL's own message quotes the document.
pub(crate) fn parse(text: &[u8]) -> Result<pg_sys::Datum, Error> {
    let terminated = terminated(text);
    let literal = CStr::from_bytes_with_nul(&terminated).map_err(|_| Error::InvalidLiteral {
        payload: Payload::Jsonb,
        code: PgSqlErrorCode::ERRCODE_INVALID_TEXT_REPRESENTATION,
    })?;
    read_literal(Payload::Jsonb, pg_sys::F_JSONB_IN, literal)
}

/// A copy with a terminating NUL.
fn terminated(text: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut copy = Zeroizing::new(Vec::with_capacity(text.len() + 1));
    copy.extend_from_slice(text);
    copy.push(0);
    copy
}

/// A `jsonb` in text form.
pub(crate) fn print(document: &Detoasted<'_>) -> Zeroizing<Vec<u8>> {
    let _scratch = Scratch::enter();
    print_here(document)
}

fn print_here(document: &Detoasted<'_>) -> Zeroizing<Vec<u8>> {
    // A container is read as 32-bit words; one with a short length word is not
    // aligned for that.
    let mut words;
    let container = if document.as_ptr().cast::<u32>().is_aligned() {
        document.as_ptr()
    } else {
        words = Zeroizing::new(vec![0_u32; document.len().div_ceil(size_of::<u32>())]);
        let room: *mut u8 = words.as_mut_ptr().cast();
        // SAFETY: there is room for as many bytes.
        unsafe { core::ptr::copy_nonoverlapping(document.as_ptr(), room, document.len()) };
        room.cast_const()
    };
    // SAFETY: the container of a jsonb, aligned; the result is a palloc'd string.
    unsafe {
        let len = i32::try_from(document.len()).expect("a value is below 1 GB");
        let container = container.cast_mut().cast();
        let text = pg_sys::JsonbToCString(core::ptr::null_mut(), container, len);
        Zeroizing::new(encoding::take_over(text))
    }
}

/// A text as a JSON string. Both in the encoding of the database.
pub(crate) fn string(text: &[u8]) -> Zeroizing<Vec<u8>> {
    let terminated = terminated(text);
    // SAFETY: both strings are NUL-terminated; the buffer is PostgreSQL's own.
    unsafe {
        let quoted = pg_sys::makeStringInfo();
        pg_sys::escape_json(quoted, terminated.as_ptr().cast());
        let copy = Zeroizing::new(encoding::take_over((*quoted).data));
        pg_sys::pfree(quoted.cast());
        copy
    }
}

/// Ciphertext in text form, which a document may be: as it is, or as a JSON string.
/// Other documents come back as they are.
fn unquoted(text: &[u8]) -> &[u8] {
    let inner = text.trim_ascii().strip_prefix(b"\"");
    inner
        .and_then(|inner| inner.strip_suffix(b"\""))
        .unwrap_or(text)
}

/// As [`unquoted`], where a plaintext is a document.
pub(crate) fn unquoted_if(payload: Payload, text: &[u8]) -> &[u8] {
    match payload {
        Payload::Jsonb => unquoted(text),
        Payload::Text | Payload::Bytea => text,
    }
}

/// A memory context for what PostgreSQL allocates on the way to a result, and freed with
/// it: an index compares in one that lives as long as the statement.
struct Scratch {
    context: pg_sys::MemoryContext,
    outer: pg_sys::MemoryContext,
}

impl Scratch {
    /// Not to be nested: the inner one would free the memory of the outer.
    fn enter() -> Self {
        static CONTEXT: BackendLocal<Cell<pg_sys::MemoryContext>> =
            BackendLocal::new(Cell::new(core::ptr::null_mut()));
        // SAFETY: a context below the top one lives as long as the backend.
        unsafe {
            if CONTEXT.get().is_null() {
                CONTEXT.set(pg_sys::AllocSetContextCreateExtended(
                    pg_sys::TopMemoryContext,
                    c"colcrypt documents".as_ptr(),
                    pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                    pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                    pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
                ));
            }
            let (context, outer) = (CONTEXT.get(), pg_sys::CurrentMemoryContext);
            pg_sys::CurrentMemoryContext = context;
            Self { context, outer }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // SAFETY: the context that was entered; nothing in it is used any more. After an
        // error PostgreSQL may be in another one.
        unsafe {
            pg_sys::CurrentMemoryContext = self.outer;
            pg_sys::MemoryContextReset(self.context);
        }
    }
}
