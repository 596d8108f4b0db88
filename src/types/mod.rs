//! The encrypted types. What they have in common is in `functions.rs`, and in SQL
//! in `sql/types.sql` and `sql/search.sql`; each has a small file for what is its
//! own.

pub(crate) mod datum;
mod encrypted_bytea;
mod encrypted_jsonb;
mod encrypted_text;
pub(crate) mod functions;
pub(crate) mod json;
pub(crate) mod plain;
mod typmod;

use core::ffi::CStr;

use colcrypt_core::Payload;
use pgrx::pg_sys;

use crate::access::Shown;
use crate::error::Error;
use datum::{Detoasted, VarlenaBuf};
use plain::Plain;

/// A type whose values are encrypted wherever they are stored, in place of those of a
/// plain type.
pub(crate) trait EncryptedType: 'static {
    /// What it is in the stored format.
    const PAYLOAD: Payload;

    /// The plaintext that a literal stands for; ciphertext in text form stays what it
    /// is.
    ///
    /// # Errors
    /// [`Error::InvalidLiteral`].
    fn read(literal: &CStr) -> Result<Plain<'_>, Error>;

    /// The same of a message in binary form: that of the plain type.
    ///
    /// # Errors
    /// As [`EncryptedType::read`]; PostgreSQL's own for a message that is none.
    ///
    /// # Safety
    /// A message that PostgreSQL passes to a receive function.
    unsafe fn receive(message: pg_sys::StringInfo) -> Result<Plain<'static>, Error>;

    /// The plaintext of a value of the plain type.
    fn take<'a>(value: &'a Detoasted<'_>) -> Plain<'a>;

    /// The result of the output function for a stored value, a C string.
    ///
    /// # Errors
    /// As [`access::print`](crate::access::print).
    fn print(stored: &[u8]) -> Result<pg_sys::Datum, Box<Error>>;

    /// What is shown, as a message in binary form.
    fn send(shown: &[u8]) -> VarlenaBuf;

    /// What is shown, as a value of the plain type.
    ///
    /// # Errors
    /// [`Error::InvalidLiteral`].
    fn give(shown: Shown<VarlenaBuf>) -> Result<pg_sys::Datum, Error>;
}
