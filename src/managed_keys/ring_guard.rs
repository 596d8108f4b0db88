//! The guard against the wrong key: a database remembers the ids of the ring's
//! keys that have encrypted in it. If none of them is in the ring, the ring is a
//! development key's in production, or a key was lost, and nothing is encrypted.

use core::cell::Cell;

use colcrypt_core::KeyId;
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;

use super::table::{self, Basis, Kind};
use crate::backend_local::BackendLocal;
use crate::error::Error;
use crate::keyring::{self, ActiveRing};
use crate::own_tables;
use crate::types::datum::{Call, per_value_function};

/// What a key of the ring is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// To seal values.
    Seal,
    /// To wrap what all sessions share.
    Wrap,
}

struct Memo {
    /// The ring and the table in which its primary was found.
    passed: Cell<Option<Basis>>,
    /// As `passed`, and the statement in which the primary could not be remembered.
    not_remembered: Cell<Option<(Basis, i64)>>,
}

static MEMO: BackendLocal<Memo> = BackendLocal::new(Memo {
    passed: Cell::new(None),
    not_remembered: Cell::new(None),
});

/// Whether values may be sealed under the primary without another look.
#[inline]
pub(crate) fn passed(ring: &ActiveRing) -> bool {
    MEMO.passed.get() == Some(Basis::with(ring)) || ring.is_session_s()
}

/// Judges the ring before its key is used, and remembers the key. Not the keys
/// that a session brings for itself.
///
/// # Errors
/// [`Error::UnknownPrimary`], [`Error::NoKeyRing`].
pub(crate) fn check(purpose: Use) -> Result<(), Error> {
    let ring = keyring::current();
    let Some(primary) = ring.server_primary() else {
        // Nobody but the session can say whether its keys are the right ones.
        return ring.primary().map(|_| ());
    };
    if purpose == Use::Seal && ring.is_session_s() {
        return Ok(());
    }
    // Reading the tables may bring news of changes.
    let basis = || Basis::with(&ring);
    // SAFETY: reads a variable of this backend.
    let statement = unsafe { pg_sys::GetCurrentStatementStartTimestamp() };
    if MEMO.passed.get() == Some(basis()) || MEMO.not_remembered.get() == Some((basis(), statement))
    {
        return Ok(());
    }
    let remembered = remembered()?;
    if remembered.contains(&primary) {
        MEMO.passed.set(Some(basis()));
        return Ok(());
    }
    if !remembered.is_empty() && !remembered.iter().any(|id| ring.server_has(*id)) {
        let error = Error::UnknownPrimary {
            primary,
            remembered,
        };
        if !ring.is_dev_mode_s() {
            return Err(error);
        }
        error.warn();
    }
    if !remember_if_possible(primary)? {
        MEMO.not_remembered.set(Some((basis(), statement)));
    }
    Ok(())
}

fn remembered() -> Result<Vec<KeyId>, Error> {
    let rows = table::read_rows()?.into_iter();
    let ring = rows.filter(|row| row.kind == Kind::Ring);
    Ok(ring.map(|row| row.id).collect())
}

/// Stores the id, unless nothing can be written now or another session is about
/// to: encrypting does not wait. Then the next one stores it.
fn remember_if_possible(id: KeyId) -> Result<bool, Error> {
    if table::cannot_write().is_some() || !table::try_lock()? {
        return Ok(false);
    }
    // Another session may have stored it meanwhile, or accepted another.
    if !remembered()?.contains(&id) {
        remember(id)?;
    }
    Ok(true)
}

fn remember(id: KeyId) -> Result<(), Error> {
    own_tables::as_owner(|| {
        Spi::run_with_args(
            "INSERT INTO colcrypt.key (key_id, kind, state) VALUES ($1, 'ring', 'active')",
            &[DatumWithOid::from(id.to_string())],
        )
    })
}

/// Remembers the primary of the server's ring, whatever the guard says of it.
///
/// # Errors
/// [`Error::NoKeyRing`], [`Error::KeyTable`].
pub(super) fn accept() -> Result<KeyId, Error> {
    table::lock(c"colcrypt.accept_key()")?;
    let ring = keyring::current();
    let id = match ring.server_primary() {
        Some(id) => id,
        None => ring.primary()?.id(),
    };
    if !remembered()?.contains(&id) {
        remember(id)?;
    }
    Ok(id)
}

// Trigger BEFORE INSERT on the key table, for keys of the ring: what is remembered
// already is not stored again. A dump or a publisher may bring it after this
// database has remembered it by itself.
per_value_function!("colcrypt_ring_key_remembered", |call| {
    let call: Call<'_> = call;
    // SAFETY: fired as the table's trigger is defined: before an INSERT of a row.
    let row = call.trigger().map(|trigger| unsafe {
        let descriptor = (*trigger.tg_relation).rd_att;
        // The first column, which is not null.
        let id = pg_sys::nocachegetattr(trigger.tg_trigtuple, 1, descriptor);
        (trigger.tg_trigtuple, String::from_datum(id, false))
    });
    match row {
        Some((row, Some(id))) => {
            let remembered = Error::unwrap_or_raise(remembered());
            if remembered.iter().any(|known| known.to_string() == id) {
                pg_sys::Datum::null()
            } else {
                row.into()
            }
        }
        _ => pg_sys::Datum::null(),
    }
});
