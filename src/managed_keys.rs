//! Keys that the database keeps, wrapped by a key of the ring: table
//! `colcrypt.key`.
//!
//! What a backend knows of the table is dropped through PostgreSQL's relation
//! cache: a trigger on the table sends an invalidation with every change, which
//! reaches other backends with the commit and standbys with the WAL, and comes
//! back when a transaction is rolled back.

use core::cell::Cell;

use colcrypt_core::{IndexKey, KeyId, KeyIdentity, SecretKey, fingerprint, unwrap_key, wrap_key};
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;

use crate::backend_local::BackendLocal;
use crate::error::Error;
use crate::types::datum::{Call, per_value_function};
use crate::{compat, keyring};

/// `kind` of the key of the blind indexes.
const INDEX: &str = "index";

/// What this backend knows of the table.
struct Known {
    /// Its OID, once looked up.
    table: Cell<pg_sys::Oid>,
    /// How often it has changed, as far as this backend was told.
    changes: Cell<u64>,
    /// Whether this backend asks to be told.
    listens: Cell<bool>,
    /// What `changes` was when there was an index key.
    index_key_at: Cell<Option<u64>>,
}

static KNOWN: BackendLocal<Known> = BackendLocal::new(Known {
    table: Cell::new(pg_sys::InvalidOid),
    changes: Cell::new(0),
    listens: Cell::new(false),
    index_key_at: Cell::new(None),
});

/// Counts the changes of the key table that this backend was told of: what was
/// read from it holds as long as the number does.
pub(crate) fn changes() -> u64 {
    KNOWN.changes.get()
}

/// The key of this database's blind indexes. Made if there is none yet and the
/// transaction can write.
///
/// # Errors
/// [`Error::NoIndexKey`]; [`Error::NoKeyRing`], [`Error::UnknownKey`] or
/// [`Error::DamagedKey`] when it cannot be unwrapped.
pub(crate) fn index_key() -> Result<IndexKey, Error> {
    let row = match read_index_row()? {
        Some(row) => row,
        None => make_index_key()?,
    };
    row.unwrap().map(|key| IndexKey::new(&key))
}

/// Makes the index key if this is the time for it: before PostgreSQL goes into
/// a state where nothing can be written, a parallel query or index build.
/// Whatever is in the way will be an error when the key is needed; nothing is
/// waited for, because the query may be about something else.
pub(crate) fn prepare_index_key() -> Result<(), Error> {
    if KNOWN.index_key_at.get() == Some(changes())
        || compat::collects_statistics()
        || compat::in_vacuum()
        || cannot_write().is_some()
        || keyring::current().wrapping_key().is_err()
        || table().is_err()
    {
        return Ok(());
    }
    let made = match read_index_row() {
        Ok(Some(_)) => true,
        Ok(None) => try_make_index_key()?.is_some(),
        Err(_) => false,
    };
    KNOWN.index_key_at.set(made.then(changes));
    Ok(())
}

fn read_index_row() -> Result<Option<KeyRow>, Error> {
    Ok(read_rows()?.into_iter().find(|row| row.kind == INDEX))
}

const KEY_TABLE_LOCK: pg_sys::LOCKMODE = pg_sys::ShareRowExclusiveLock as pg_sys::LOCKMODE;

/// Makes the index key, or waits for another session that does.
fn make_index_key() -> Result<KeyRow, Error> {
    // SAFETY: reads a variable of this backend.
    if unsafe { pg_sys::InterruptHoldoffCount } > 0 {
        // An index compares while it holds a page. Who waits for a transaction now
        // could not be cancelled, and no deadlock would be found.
        return try_make_index_key()?.ok_or(Error::NoIndexKey {
            reason: "Another session is making it.",
        });
    }
    let wrapping = wrapping_id()?;
    // Two sessions that need it first: the second one waits here, and then finds
    // the key of the first, or makes one if the first rolled back.
    let table = table()?;
    // SAFETY: the lock is held until the transaction ends.
    unsafe { pg_sys::LockRelationOid(table, KEY_TABLE_LOCK) };
    make_index_key_locked(table, wrapping)
}

/// Makes the index key unless another session is about to.
fn try_make_index_key() -> Result<Option<KeyRow>, Error> {
    let wrapping = wrapping_id()?;
    let table = table()?;
    // SAFETY: the lock is held until the transaction ends.
    if unsafe { pg_sys::ConditionalLockRelationOid(table, KEY_TABLE_LOCK) } {
        make_index_key_locked(table, wrapping).map(Some)
    } else {
        Ok(None)
    }
}

/// Whether the key can be made at all, asked before anything is locked.
fn wrapping_id() -> Result<KeyId, Error> {
    match cannot_write() {
        Some(reason) => Err(Error::NoIndexKey { reason }),
        None => Ok(keyring::current().wrapping_key()?.id()),
    }
}

fn make_index_key_locked(table: pg_sys::Oid, wrapping: KeyId) -> Result<KeyRow, Error> {
    if let Some(row) = read_index_row()? {
        return Ok(row);
    }
    let key = SecretKey::random()?;
    let identity = KeyIdentity {
        id: fingerprint(&key),
        kind: INDEX,
        name: "",
        suite: "",
    };
    let ring = keyring::current();
    let wrapped = wrap_key(ring.find(wrapping)?, &identity, &key)?;
    as_owner(table, || {
        Spi::run_with_args(
            "INSERT INTO colcrypt.key (key_id, kind, state, wrapped_by, wrapped)
             VALUES ($1, 'index', 'active', $2, $3)",
            &[
                DatumWithOid::from(identity.id.to_string()),
                DatumWithOid::from(wrapping.to_string()),
                DatumWithOid::from(wrapped.as_slice()),
            ],
        )
    })?;
    read_index_row()?.ok_or(Error::KeyTable("the new index key is not there"))
}

/// Why nothing can be written now.
fn cannot_write() -> Option<&'static str> {
    // SAFETY: read the state of this backend.
    unsafe {
        if pg_sys::RecoveryInProgress() {
            Some("A standby cannot make one.")
        } else if pg_sys::HistoricSnapshotActive() {
            Some("Logical decoding cannot make one.")
        } else if pg_sys::IsInParallelMode() {
            Some("A parallel operation cannot make one.")
        } else if pg_sys::XactReadOnly {
            Some("A read-only transaction cannot make one.")
        } else {
            None
        }
    }
}

/// A row of the key table.
struct KeyRow {
    id: KeyId,
    kind: String,
    name: String,
    suite: String,
    wrapped_by: KeyId,
    wrapped: Vec<u8>,
}

impl KeyRow {
    fn identity(&self) -> KeyIdentity<'_> {
        KeyIdentity {
            id: self.id,
            kind: &self.kind,
            name: &self.name,
            suite: &self.suite,
        }
    }

    fn unwrap(&self) -> Result<SecretKey, Error> {
        let ring = keyring::current();
        let wrapping = ring.find(self.wrapped_by).map_err(|error| match error {
            Error::UnknownKey { needed, .. } => Error::UnknownWrappingKey {
                key: self.id,
                wrapping: needed,
            },
            error => error,
        })?;
        unwrap_key(wrapping, &self.identity(), &self.wrapped).map_err(|_| Error::DamagedKey {
            key: self.id,
            wrapping: wrapping.id(),
        })
    }
}

/// The rows that hold wrapped keys, as they are now, whatever the snapshot of the
/// transaction.
fn read_rows() -> Result<Vec<KeyRow>, Error> {
    const COLUMNS: usize = 8;
    let table = table()?;
    let mut rows = Vec::new();
    // SAFETY: the sequence is that of PostgreSQL's own reads of catalogs
    // (genam.h). The values are copied before the scan ends.
    unsafe {
        let relation = pg_sys::table_open(table, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        let descriptor = (*relation).rd_att;
        if (*descriptor).natts as usize != COLUMNS {
            pg_sys::table_close(relation, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
            return Err(Error::KeyTable(
                "it has other columns than this library knows",
            ));
        }
        let scan = pg_sys::systable_beginscan(
            relation,
            pg_sys::InvalidOid,
            false,
            core::ptr::null_mut(),
            0,
            core::ptr::null_mut(),
        );
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let mut values = [pg_sys::Datum::null(); COLUMNS];
            let mut nulls = [true; COLUMNS];
            pg_sys::heap_deform_tuple(tuple, descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
            let text = |column: usize| String::from_datum(values[column], nulls[column]);
            let key_id = |column| text(column).and_then(|id| parse_id(&id));
            let row = (
                key_id(0),
                text(2),
                key_id(5),
                Vec::<u8>::from_datum(values[6], nulls[6]),
            );
            // Rows without wrapped material: ids of ring keys, destroyed keys.
            if let (Some(id), Some(kind), Some(wrapped_by), Some(wrapped)) = row {
                rows.push(KeyRow {
                    id,
                    kind,
                    name: text(1).unwrap_or_default(),
                    suite: text(3).unwrap_or_default(),
                    wrapped_by,
                    wrapped,
                });
            }
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
    }
    Ok(rows)
}

fn parse_id(text: &str) -> Option<KeyId> {
    let id = u32::from_str_radix(text, 16).ok()?;
    (text.len() == 8).then(|| KeyId(id.to_be_bytes()))
}

/// The OID of the key table. From here on this backend is told of its changes.
fn table() -> Result<pg_sys::Oid, Error> {
    if !KNOWN.listens.replace(true) {
        // SAFETY: the callback stays registered as long as the backend lives, and
        // the library is never unloaded.
        unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(on_change), pg_sys::Datum::null()) };
    }
    let known = KNOWN.table.get();
    if known != pg_sys::InvalidOid {
        return Ok(known);
    }
    // SAFETY: catalog look-ups by name.
    let table = unsafe {
        match pg_sys::get_namespace_oid(c"colcrypt".as_ptr(), true) {
            pg_sys::InvalidOid => pg_sys::InvalidOid,
            schema => pg_sys::get_relname_relid(c"key".as_ptr(), schema),
        }
    };
    if table == pg_sys::InvalidOid {
        return Err(Error::KeyTable("it does not exist"));
    }
    KNOWN.table.set(table);
    Ok(table)
}

/// Called by PostgreSQL when a relation changed; with no relation, when all may
/// have. Must not fail.
unsafe extern "C-unwind" fn on_change(_: pg_sys::Datum, relation: pg_sys::Oid) {
    // While its OID is not known every change may be one of the key table.
    let table = KNOWN.table.get();
    if [pg_sys::InvalidOid, relation].contains(&table) || relation == pg_sys::InvalidOid {
        KNOWN.changes.set(KNOWN.changes.get() + 1);
        // It may have been dropped with the extension and made again.
        KNOWN.table.set(pg_sys::InvalidOid);
    }
}

/// Runs `work` with the rights of the table's owner: what the extension does in
/// its own table does not depend on the caller's.
fn as_owner<T>(
    table: pg_sys::Oid,
    work: impl FnOnce() -> Result<T, pgrx::spi::Error>,
) -> Result<T, Error> {
    // SAFETY: if an error is raised in between, the abort of the (sub)transaction
    // puts the user back.
    unsafe {
        let (mut user, mut security) = (pg_sys::InvalidOid, 0);
        pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut security);
        pg_sys::SetUserIdAndSecContext(
            compat::relation_owner(table),
            security | (pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_NOFORCE_RLS) as i32,
        );
        let result = work();
        pg_sys::SetUserIdAndSecContext(user, security);
        result.map_err(|_| Error::KeyTable("it could not be written"))
    }
}

/// `colcrypt.create_index_key()`: gives the id of the index key, which is made if
/// there is none.
#[pg_extern(sql = false)]
fn colcrypt_create_index_key() -> Result<String, pgrx::pg_sys::panic::ErrorReport> {
    Ok(index_key()?.id().to_string())
}

/// `colcrypt.rewrap_keys()`: wraps every managed key under the ring's primary, and
/// gives how many were under another key.
#[pg_extern(sql = false)]
fn colcrypt_rewrap_keys() -> Result<i64, pgrx::pg_sys::panic::ErrorReport> {
    let table = table()?;
    // SAFETY: the lock is held until the transaction ends.
    unsafe {
        pg_sys::LockRelationOid(table, KEY_TABLE_LOCK);
    }
    let ring = keyring::current();
    let wrapping = ring.wrapping_key()?;
    let stale = read_rows()?
        .into_iter()
        .filter(|row| row.wrapped_by != wrapping.id());
    let mut rewrapped = 0;
    for row in stale {
        let key = row.unwrap()?;
        let wrapped = wrap_key(wrapping, &row.identity(), &key).map_err(Error::from)?;
        as_owner(table, || {
            Spi::run_with_args(
                "UPDATE colcrypt.key SET wrapped_by = $3, wrapped = $4
                 WHERE kind OPERATOR(pg_catalog.=) $1 AND key_id OPERATOR(pg_catalog.=) $2",
                &[
                    DatumWithOid::from(row.kind.as_str()),
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
    if read_rows()?
        .iter()
        .any(|row| row.wrapped_by != wrapping.id())
    {
        return Err(Error::Serialization.into());
    }
    Ok(rewrapped)
}

// The trigger on the key table.
per_value_function!("colcrypt_key_changed", |call| {
    let call: Call<'_> = call;
    if let Some(trigger) = call.trigger() {
        // SAFETY: the relation that the trigger is on is open.
        unsafe { pg_sys::CacheInvalidateRelcache(trigger.tg_relation) };
    }
    // What an AFTER trigger gives is not looked at.
    pg_sys::Datum::null()
});
