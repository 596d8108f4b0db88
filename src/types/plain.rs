//! Plaintexts on their way in: as bytes to seal, in the encoding of the database.

use core::ops::Deref;
use std::ffi::CStr;

use colcrypt_core::Payload;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;
use zeroize::Zeroizing;

use crate::error::Error;

/// The bytes of a plaintext.
pub(crate) enum Plain<'a> {
    Borrowed(&'a [u8]),
    /// Made of what came in.
    Made(Zeroizing<Vec<u8>>),
}

impl Plain<'_> {
    /// The bytes in memory of their own.
    pub(crate) fn into_zeroizing(self) -> Zeroizing<Vec<u8>> {
        match self {
            Self::Borrowed(bytes) => Zeroizing::new(bytes.to_vec()),
            Self::Made(bytes) => bytes,
        }
    }
}

impl Deref for Plain<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Made(bytes) => bytes,
        }
    }
}

/// What an input function of PostgreSQL makes of a literal. Its errors quote the
/// value, so ours stands in for them.
///
/// # Errors
/// [`Error::InvalidLiteral`], [`Error::DeepDocument`].
pub(super) fn read_literal(
    payload: Payload,
    function: u32,
    literal: &CStr,
) -> Result<pg_sys::Datum, Error> {
    let literal = core::panic::AssertUnwindSafe(literal);
    let read = move || {
        // SAFETY: input functions take a C string, and only look at it.
        Ok(unsafe {
            pg_sys::OidFunctionCall1Coll(
                pg_sys::Oid::from(function),
                pg_sys::InvalidOid,
                literal.as_ptr().into(),
            )
        })
    };
    // One handler for all: pgrx keeps each in memory of its own.
    PgTryBuilder::new(read)
        .catch_others(move |error| match code_of_literal(&error) {
            Some(PgSqlErrorCode::ERRCODE_STATEMENT_TOO_COMPLEX) => Err(Error::DeepDocument),
            Some(code) => Err(Error::InvalidLiteral { payload, code }),
            None => error.rethrow(),
        })
        .execute()
}

/// The error's code, if it is about the literal.
fn code_of_literal(error: &CaughtError) -> Option<PgSqlErrorCode> {
    use PgSqlErrorCode as Code;
    let CaughtError::PostgresError(report) = error else {
        return None;
    };
    let code = report.sql_error_code();
    let of_literal = matches!(
        code,
        Code::ERRCODE_INVALID_TEXT_REPRESENTATION
            | Code::ERRCODE_INVALID_PARAMETER_VALUE
            | Code::ERRCODE_UNTRANSLATABLE_CHARACTER
            | Code::ERRCODE_CHARACTER_NOT_IN_REPERTOIRE
            | Code::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE
            | Code::ERRCODE_PROGRAM_LIMIT_EXCEEDED
            | Code::ERRCODE_STATEMENT_TOO_COMPLEX
            | Code::ERRCODE_FEATURE_NOT_SUPPORTED
    );
    of_literal.then_some(code)
}
