//! What `encrypt_column()` and `decrypt_column()` (`sql/migration.sql`) do with each
//! value, and count; and what keeps two columns in step for `encrypt_column_online()`.

pub(crate) mod in_step;

use core::cell::Cell;

use colcrypt_core::modifier_from_name;
use pgrx::prelude::*;

use crate::backend_local::BackendLocal;
use crate::error::Error;
use crate::managed_keys;
use crate::progress::Counter;
use crate::types::datum::{Call, Record, per_value_function};
use crate::types::{EncryptedType, functions};

/// What a Fernet token begins with: version 0x80 and a time before the year 2106, in
/// base64url.
const TOKEN_START: &[u8] = b"gAAAAA";

static COUNTS: BackendLocal<Counts> = BackendLocal::new(Counts {
    values: Cell::new(Counter::new()),
    adopted: Cell::new(0),
    lookalikes: Cell::new(0),
});

/// Of this session, since they were asked for last.
struct Counts {
    values: Cell<Counter>,
    /// Values that are Fernet tokens of the key ring.
    adopted: Cell<i64>,
    /// Values that look like Fernet tokens, and were encrypted.
    lookalikes: Cell<i64>,
}

/// Counts a value that is encrypted or decrypted.
pub(crate) fn count_row() {
    let mut values = COUNTS.values.get();
    values.count();
    COUNTS.values.set(values);
}

/// `encrypt_value(plain type, integer)`
pub(crate) fn encrypt_value<T: EncryptedType>(call: &Call<'_>) -> pg_sys::Datum {
    // SAFETY: as declared.
    let (value, modifier) = unsafe { (call.detoasted(0), call.int4(1)) };
    let plain = T::take(&value);
    count_row();
    if plain.starts_with(TOKEN_START) {
        COUNTS.lookalikes.set(COUNTS.lookalikes.get() + 1);
    }
    functions::sealed::<T>(&plain, modifier)
}

/// `decrypt_value(type)`
pub(crate) fn decrypt_value<T: EncryptedType>(call: &Call<'_>) -> pg_sys::Datum {
    count_row();
    functions::decrypt::<T>(call)
}

/// `is_own_token(plain type)`
pub(crate) fn is_own_token<T: EncryptedType>(call: &Call<'_>) -> pg_sys::Datum {
    // SAFETY: as declared.
    let value = unsafe { call.detoasted(0) };
    let plain = T::take(&value);
    let is_own =
        plain.starts_with(TOKEN_START) && functions::adopt_fernet(T::PAYLOAD, &plain).is_ok();
    if is_own {
        count_row();
        COUNTS.adopted.set(COUNTS.adopted.get() + 1);
    }
    is_own.into()
}

per_value_function!("colcrypt_migration_counts", |call| {
    let values = COUNTS.values.replace(Counter::new()).values as i64;
    let counts = [values, COUNTS.adopted.take(), COUNTS.lookalikes.take()];
    let columns = counts.map(IntoDatum::into_datum);
    // SAFETY: the SQL function returns a record of these types, in this order.
    unsafe { Record::new(call.raw(), columns) }.into_raw()
});

// The type modifier that names a managed key, which there is.
per_value_function!("colcrypt_modifier_of_key", |call| {
    // SAFETY: declared as (name), strict; a name is NUL-terminated.
    let name = unsafe { call.cstring(0) }.to_string_lossy();
    Error::unwrap_or_raise(managed_keys::active_by_name(&name).map_err(Box::new));
    modifier_from_name(&name).into()
});
