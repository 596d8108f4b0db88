//! Administration: schema `colcrypt`.

use colcrypt_core::{FORMAT_VERSION, SecretKey, Stored};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::error::Error;
use crate::types::datum::{Record, per_value_function};

/// A new random key, 44 characters of base64url, which Fernet libraries take as
/// well.
#[pg_extern(sql = false)]
fn colcrypt_generate_key() -> Result<String, ErrorReport> {
    let key = SecretKey::random().map_err(Error::from)?;
    Ok(key.to_base64url().expose().to_owned())
}

// What a stored value of any encrypted type tells without a key: format, suite, key
// id, plaintext and stored length in bytes, and when a Fernet token was made.
per_value_function!("colcrypt_inspect", |call| {
    // SAFETY: declared with an encrypted value, strict.
    let value = unsafe { call.varlena(0) };
    let stored = Error::unwrap_or_raise(Stored::parse(&value));
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
    unsafe { Record::new(call.raw(), columns) }.into_raw()
});

/// Seconds since 1970 as a timestamp; `None` for a time that PostgreSQL has not.
fn timestamp(unix_seconds: u64) -> Option<TimestampWithTimeZone> {
    // PostgreSQL counts microseconds from 2000-01-01.
    const POSTGRES_EPOCH: i64 = 946_684_800;
    let seconds = i64::try_from(unix_seconds)
        .ok()?
        .checked_sub(POSTGRES_EPOCH)?;
    TimestampWithTimeZone::try_from(seconds.checked_mul(1_000_000)?).ok()
}
