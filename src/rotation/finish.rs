//! The end of a rotation in batches. That a pass has met nothing stale proves nothing: an
//! UPDATE by somebody else may have moved a row from what was still to come to what was
//! through, and a transaction that is still open may have written under the old key. So
//! whoever has written to the tables must have ended, as for CREATE INDEX CONCURRENTLY, and
//! then one look at all rows at one moment finds nothing stale.

use core::cell::RefCell;

use pgrx::prelude::*;

use super::fresh::Fresh;
use super::scan::Scan;
use super::target::{Table, Target};
use crate::backend_local::BackendLocal;
use crate::compat;
use crate::error::Error;
use crate::own_tables;
use crate::progress::{self, Watched};

/// A transaction that has written to one of the tables, or may have.
struct Writer {
    /// As `pg_locks` names it.
    transaction: String,
    process: Option<i32>,
}

/// Those that were there when this session began to wait for them.
struct Writers {
    job: i32,
    left: Vec<Writer>,
}

static WRITERS: BackendLocal<RefCell<Option<Writers>>> = BackendLocal::new(RefCell::new(None));

/// Whether none of those who had written to the tables when this was asked first is left.
///
/// # Errors
/// [`Error::OwnTable`].
pub(super) fn writers_have_ended(job: i32, parts: &[pg_sys::Oid]) -> Result<bool, Error> {
    let now = writers(parts)?;
    let mut known = WRITERS.borrow_mut();
    match known.as_mut() {
        Some(known) if known.job == job => {
            let is_left =
                |writer: &Writer| now.iter().any(|now| now.transaction == writer.transaction);
            known.left.retain(is_left);
        }
        _ => {
            if !now.is_empty() {
                let mut processes: Vec<_> =
                    now.iter().filter_map(|writer| writer.process).collect();
                processes.sort_unstable();
                processes.dedup();
                pgrx::notice!(
                    "waiting for transactions that have written to the table, of processes {processes:?}"
                );
            }
            *known = Some(Writers { job, left: now });
        }
    }
    Ok(known.as_ref().is_none_or(|known| known.left.is_empty()))
}

/// What was known of writers is of no use any more.
pub(super) fn forget_writers() {
    WRITERS.take();
}

/// The transactions that have one of the tables locked in a way that lets them write. Of
/// one that is prepared the process is not known.
fn writers(parts: &[pg_sys::Oid]) -> Result<Vec<Writer>, Error> {
    own_tables::as_owner(|| {
        Spi::connect(|client| {
            let rows = client.select(
                "SELECT DISTINCT virtualtransaction, pid FROM pg_locks
                 WHERE locktype = 'relation' AND relation = ANY ($1) AND granted
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                   AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
                   AND pid IS DISTINCT FROM pg_backend_pid()",
                None,
                &[parts.to_vec().into()],
            )?;
            rows.map(|row| {
                Ok(Writer {
                    transaction: row.get(1)?.unwrap_or_default(),
                    process: row.get(2)?,
                })
            })
            .collect()
        })
    })
}

/// Whether no value is stale, at one moment, in any of the tables; None if somebody has
/// one of them locked.
///
/// # Errors
/// As [`Fresh::sealer_if_stale`].
pub(super) fn is_all_fresh(target: &Target<'_>) -> Result<Option<bool>, Error> {
    let mut tables = Vec::new();
    for part in target.parts() {
        match target.try_table(part)? {
            Some(table) => tables.push(table),
            None => return Ok(None),
        }
    }
    // SAFETY: in a transaction; the snapshot is active until it is popped, or the
    // transaction fails.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let snapshot = pg_sys::GetActiveSnapshot();
        for table in tables {
            if has_stale_value(table, snapshot)? {
                pg_sys::PopActiveSnapshot();
                return Ok(Some(false));
            }
        }
        pg_sys::PopActiveSnapshot();
    }
    Ok(Some(true))
}

/// # Safety
/// In a transaction, with the table locked and the snapshot active.
unsafe fn has_stale_value(table: Table, snapshot: pg_sys::Snapshot) -> Result<bool, Error> {
    let expected = compat::estimated_rows(table.oid);
    let _watched = Watched::begin(table.oid, table.attribute, expected);
    let mut fresh = Fresh::new(table.modifier);
    let mut found = false;
    // SAFETY: the table is closed again, after the scan, or by the abort of the transaction;
    // `row_memory` has what is fetched of a value that is stored elsewhere.
    unsafe {
        let relation = pg_sys::table_open(table.oid, pg_sys::NoLock as pg_sys::LOCKMODE);
        let row_memory = compat::new_row_memory();
        let caller_memory = pg_sys::CurrentMemoryContext;
        let mut scan = Scan::begin(relation, snapshot, None)?;
        while !found && scan.next_row() {
            pg_sys::CurrentMemoryContext = row_memory;
            if let Some(value) = scan.value(table.attribute) {
                found = fresh.sealer_if_stale(value)?.is_some();
            }
            pg_sys::CurrentMemoryContext = caller_memory;
            pg_sys::MemoryContextReset(row_memory);
            progress::count_row();
        }
        scan.end();
        pg_sys::MemoryContextDelete(row_memory);
        pg_sys::table_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
    }
    Ok(found)
}
