//! Administration: schema `colcrypt`.

use colcrypt_core::{FORMAT_VERSION, SecretKey, Stored};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::error::Error;
use crate::types::datum::Record;
use crate::types::encrypted_text::EncryptedText;

/// A new random key, 44 characters of base64url, which Fernet libraries take as
/// well.
#[pg_extern(sql = false)]
fn colcrypt_generate_key() -> Result<String, ErrorReport> {
    let key = SecretKey::random().map_err(Error::from)?;
    Ok(key.to_base64url().expose().to_owned())
}

/// What a stored value tells without a key: format, suite, key id, plaintext and
/// stored length in bytes, and when a Fernet token was made.
#[pg_extern(sql = false)]
fn colcrypt_inspect(
    value: EncryptedText<'_>,
    call: pg_sys::FunctionCallInfo,
) -> Result<Record, ErrorReport> {
    let stored = Stored::parse(&value).map_err(Error::from)?;
    let columns = [
        i32::from(FORMAT_VERSION).into_datum(),
        stored.suite().name().into_datum(),
        stored.key_id().to_string().into_datum(),
        stored
            .plaintext_len()
            .and_then(|len| (len as i32).into_datum()),
        (value.len() as i32).into_datum(),
        stored
            .sealed_at()
            .and_then(timestamp)
            .and_then(IntoDatum::into_datum),
    ];
    // SAFETY: the SQL function returns a record of these types, in this order.
    Ok(unsafe { Record::new(call, columns) })
}

/// Seconds since 1970 as a timestamp; `None` for a time that PostgreSQL has not.
fn timestamp(unix_seconds: u64) -> Option<TimestampWithTimeZone> {
    // PostgreSQL counts microseconds from 2000-01-01.
    const POSTGRES_EPOCH: i64 = 946_684_800;
    let seconds = i64::try_from(unix_seconds)
        .ok()?
        .checked_sub(POSTGRES_EPOCH)?;
    TimestampWithTimeZone::try_from(seconds.checked_mul(1_000_000)?).ok()
}
