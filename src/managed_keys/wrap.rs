//! Keys of the database under keys of the ring.

use colcrypt_core::{KeyIdentity, SecretKey, wrap_key};
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::{ring_guard, table};
use crate::error::Error;
use crate::keyring;
use crate::own_tables;

/// Whether there is a key to wrap under.
///
/// # Errors
/// [`Error::NoKeyRing`], [`Error::UnknownPrimary`].
pub(super) fn can_wrap() -> Result<(), Error> {
    keyring::current().wrapping_key()?;
    ring_guard::check(ring_guard::Use::Wrap)
}

/// Stores a new, active key, wrapped under the ring's primary. `restricted` as in
/// the table.
///
/// # Errors
/// [`Error::NoKeyRing`], [`Error::UnknownPrimary`], [`Error::KeyTable`].
pub(super) fn insert(
    identity: &KeyIdentity<'_>,
    key: &SecretKey,
    restricted: bool,
) -> Result<(), Error> {
    can_wrap()?;
    let ring = keyring::current();
    let wrapping = ring.wrapping_key()?;
    let wrapped = wrap_key(wrapping, identity, key)?;
    own_tables::as_owner(|| {
        Spi::run_with_args(
            "INSERT INTO colcrypt.key
                 (key_id, name, kind, suite, state, wrapped_by, wrapped, restricted)
             VALUES ($1, $2, $3, $4, 'active', $5, $6, $7)",
            &[
                DatumWithOid::from(identity.id.to_string()),
                DatumWithOid::from(table::null_if_empty(identity.name)),
                DatumWithOid::from(identity.kind),
                DatumWithOid::from(identity.suite),
                DatumWithOid::from(wrapping.id().to_string()),
                DatumWithOid::from(wrapped.as_slice()),
                DatumWithOid::from(restricted),
            ],
        )
    })
}

/// `colcrypt.rewrap_keys()`: wraps every managed key under the ring's primary, and
/// gives how many were under another key.
#[pg_extern(sql = false)]
fn colcrypt_rewrap_keys() -> Result<i64, ErrorReport> {
    table::lock(c"colcrypt.rewrap_keys()")?;
    can_wrap()?;
    let ring = keyring::current();
    let wrapping = ring.wrapping_key()?;
    let is_stale = |row: &table::Row| {
        let wrapped = row.wrapped.as_ref();
        wrapped.is_some_and(|wrapped| wrapped.by != wrapping.id())
    };
    let mut rewrapped = 0;
    for row in table::read_rows()?.iter().filter(|row| is_stale(row)) {
        let key = row.unwrap()?;
        let wrapped = wrap_key(wrapping, &row.identity(), &key).map_err(Error::from)?;
        own_tables::as_owner(|| {
            Spi::run_with_args(
                "UPDATE colcrypt.key SET wrapped_by = $3, wrapped = $4
                 WHERE kind = $1 AND key_id = $2",
                &[
                    DatumWithOid::from(row.kind.name()),
                    DatumWithOid::from(row.id.to_string()),
                    DatumWithOid::from(wrapping.id().to_string()),
                    DatumWithOid::from(wrapped.as_slice()),
                ],
            )
        })?;
        rewrapped += 1;
    }
    // A row that is newer than the transaction's snapshot was read, but not
    // updated. Nobody may take the old key away on the strength of this result.
    if table::read_rows()?.iter().any(is_stale) {
        return Err(Error::Serialization.into());
    }
    Ok(rewrapped)
}
