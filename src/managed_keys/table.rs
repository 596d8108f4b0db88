//! The table `colcrypt.key` and the grants beside it, as this backend reads and
//! writes them.
//!
//! What a backend knows of them is dropped through PostgreSQL's relation cache: a
//! trigger on both sends an invalidation of `colcrypt.key` with every change,
//! which reaches other backends with the commit and standbys with the WAL, and
//! comes back when a transaction is rolled back.

use core::cell::Cell;

use colcrypt_core::{KeyId, KeyIdentity, SecretKey, unwrap_key};
use pgrx::prelude::*;

use crate::backend_local::BackendLocal;
use crate::error::Error;
use crate::keyring::{self, ActiveRing};
use crate::own_tables;
use crate::rows::{Columns, for_each_row};
use crate::types::datum::{Call, per_value_function};

/// `kind` of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A key of the ring that has encrypted in this database; only its id is here.
    Ring,
    /// A key that values are sealed under.
    Data,
    /// The key of the blind indexes.
    Index,
}

/// `state` of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Seals new values.
    Active,
    /// Opens values that it sealed.
    Retired,
    /// Its wrapped material is gone.
    Destroyed,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Ring, Self::Data, Self::Index];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Data => "data",
            Self::Index => "index",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl State {
    const ALL: [Self; 3] = [Self::Active, Self::Retired, Self::Destroyed];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Retired => "retired",
            Self::Destroyed => "destroyed",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// A row of `colcrypt.key`.
pub(super) struct Row {
    pub(super) id: KeyId,
    /// Empty unless it is a data key.
    pub(super) name: String,
    pub(super) kind: Kind,
    /// Empty for a key of the ring.
    pub(super) suite: String,
    pub(super) state: State,
    /// None for a key of the ring and a destroyed one.
    pub(super) wrapped: Option<Wrapped>,
    /// Whether only the roles that it is granted to may use it.
    pub(super) restricted: bool,
}

/// Wrapped key material.
pub(super) struct Wrapped {
    /// The key of the ring that it is wrapped under.
    pub(super) by: KeyId,
    pub(super) key: Vec<u8>,
}

impl Row {
    pub(super) fn identity(&self) -> KeyIdentity<'_> {
        KeyIdentity {
            id: self.id,
            kind: self.kind.name(),
            name: &self.name,
            suite: &self.suite,
        }
    }

    /// # Errors
    /// [`Error::DestroyedKey`], [`Error::UnknownWrappingKey`],
    /// [`Error::DamagedKey`], [`Error::NoKeyRing`].
    pub(super) fn unwrap(&self) -> Result<SecretKey, Error> {
        let wrapped = self
            .wrapped
            .as_ref()
            .ok_or(Error::DestroyedKey { key: self.id })?;
        let ring = keyring::current();
        let wrapping = ring.find(wrapped.by).map_err(|error| match error {
            Error::UnknownKey { needed, .. } => Error::UnknownWrappingKey {
                key: self.id,
                wrapping: needed,
            },
            error => error,
        })?;
        unwrap_key(wrapping, &self.identity(), &wrapped.key).map_err(|_| Error::DamagedKey {
            key: self.id,
            wrapping: wrapping.id(),
        })
    }
}

/// What this backend knows of the table.
struct Known {
    /// Its OID, once looked up.
    table: Cell<pg_sys::Oid>,
    /// How often it has changed, as far as this backend was told.
    changes: Cell<u64>,
    /// Whether this backend asks to be told.
    listens: Cell<bool>,
}

static KNOWN: BackendLocal<Known> = BackendLocal::new(Known {
    table: Cell::new(pg_sys::InvalidOid),
    changes: Cell::new(0),
    listens: Cell::new(false),
});

/// Counts the changes of the tables that this backend was told of: what was read
/// from them holds as long as the number does.
#[inline]
pub(crate) fn changes() -> u64 {
    KNOWN.changes.get()
}

/// What anything that was found out about keys depends on: the ring and the
/// tables. It holds for as long as this stays the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Basis {
    ring: u64,
    changes: u64,
}

impl Basis {
    pub(crate) fn now() -> Self {
        keyring::with_current(|ring| Self::with(ring))
    }

    /// As `now`, unless the ring has to be looked at again. Reads nothing, and does not
    /// fail.
    #[inline]
    pub(crate) fn known() -> Option<Self> {
        keyring::known_generation().map(|ring| Self {
            ring,
            changes: changes(),
        })
    }

    /// As `now`, with the ring at hand.
    #[inline]
    pub(crate) fn with(ring: &ActiveRing) -> Self {
        Self {
            ring: ring.generation(),
            changes: changes(),
        }
    }

    /// Whether the tables have changed since.
    pub(super) fn has_old_tables(self) -> bool {
        self.changes != changes()
    }
}

/// The rows of `colcrypt.key` as they are now, whatever the snapshot of the
/// transaction.
///
/// # Errors
/// [`Error::KeyTable`].
pub(super) fn read_rows() -> Result<Vec<Row>, Error> {
    // SAFETY: reads a variable of this backend.
    if unsafe { pg_sys::HistoricSnapshotActive() } {
        return Err(Error::KeyTable("logical decoding does not read it"));
    }
    let mut rows = Vec::new();
    for_each_row::<9>(table()?, |columns| {
        let kind = text(columns, 2).and_then(|name| Kind::from_name(&name));
        let state = text(columns, 4).and_then(|name| State::from_name(&name));
        if let (Some(id), Some(kind), Some(state)) = (key_id(columns, 0), kind, state) {
            let wrapped = key_id(columns, 5).zip(columns.get::<Vec<u8>>(6));
            rows.push(Row {
                id,
                name: text(columns, 1).unwrap_or_default(),
                kind,
                suite: text(columns, 3).unwrap_or_default(),
                state,
                wrapped: wrapped.map(|(by, key)| Wrapped { by, key }),
                restricted: columns.get(8).unwrap_or(true),
            });
        }
    })?;
    Ok(rows)
}

/// The grants: names of keys, each with a role that may use it.
///
/// # Errors
/// [`Error::KeyTable`].
pub(super) fn read_grants() -> Result<Vec<(String, pg_sys::Oid)>, Error> {
    let mut grants = Vec::new();
    for_each_row::<2>(own_tables::oid(c"key_grant")?, |columns| {
        let role = columns.get::<pg_sys::Oid>(1);
        grants.extend(text(columns, 0).zip(role));
    })?;
    Ok(grants)
}

fn text(columns: &Columns<'_>, number: usize) -> Option<String> {
    columns.get(number)
}

fn key_id(columns: &Columns<'_>, number: usize) -> Option<KeyId> {
    text(columns, number)?.parse().ok()
}

/// The OID of `colcrypt.key`. From here on this backend is told of its changes.
///
/// # Errors
/// [`Error::KeyTable`].
pub(super) fn table() -> Result<pg_sys::Oid, Error> {
    if !KNOWN.listens.replace(true) {
        // SAFETY: the callback stays registered as long as the backend lives, and
        // the library is never unloaded.
        unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(on_change), pg_sys::Datum::null()) };
    }
    let known = KNOWN.table.get();
    if known != pg_sys::InvalidOid {
        return Ok(known);
    }
    let table = own_tables::oid(c"key")?;
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
        if table != pg_sys::InvalidOid {
            // Constants in plans are sealed under what was active.
            keyring::forget_plans();
        }
    }
}

const LOCK: pg_sys::LOCKMODE = pg_sys::ShareRowExclusiveLock as pg_sys::LOCKMODE;

/// Waits until no other transaction writes the table, and keeps others from it
/// until this one ends. Raises PostgreSQL's own error where nothing can be written.
///
/// # Errors
/// [`Error::KeyTable`].
pub(super) fn lock(command: &core::ffi::CStr) -> Result<(), Error> {
    lock_in(LOCK, command)
}

/// As [`lock`], and keeps readers away as well.
///
/// # Errors
/// [`Error::KeyTable`].
pub(super) fn lock_for_rewrite(command: &core::ffi::CStr) -> Result<(), Error> {
    // Whoever waits for the second lock has all readers wait behind him: so the
    // first one is for those who write, perhaps in long transactions.
    lock(command)?;
    lock_in(pg_sys::AccessExclusiveLock as pg_sys::LOCKMODE, command)
}

fn lock_in(mode: pg_sys::LOCKMODE, command: &core::ffi::CStr) -> Result<(), Error> {
    // SAFETY: the lock is held until the transaction ends.
    unsafe {
        pg_sys::PreventCommandIfReadOnly(command.as_ptr());
        pg_sys::PreventCommandIfParallelMode(command.as_ptr());
        pg_sys::LockRelationOid(table()?, mode);
    }
    Ok(())
}

/// As [`lock`], unless it would have to wait.
///
/// # Errors
/// [`Error::KeyTable`].
pub(super) fn try_lock() -> Result<bool, Error> {
    let table = table()?;
    // SAFETY: the lock is held until the transaction ends.
    Ok(unsafe { pg_sys::ConditionalLockRelationOid(table, LOCK) })
}

/// Why nothing can be written now.
pub(super) fn cannot_write() -> Option<&'static str> {
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

/// How an empty name or suite is stored.
pub(super) fn null_if_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

// The trigger on both tables.
per_value_function!("colcrypt_key_changed", |call| {
    let call: Call<'_> = call;
    if call.trigger().is_some() {
        let table = Error::unwrap_or_raise(table());
        // SAFETY: the table exists.
        unsafe { pg_sys::CacheInvalidateRelcacheByRelid(table) };
    }
    // What an AFTER trigger gives is not looked at.
    pg_sys::Datum::null()
});
