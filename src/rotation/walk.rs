//! Walks a table and replaces the stale values of one column, row by row, below
//! SQL: as an UPDATE would (PostgreSQL's `nodeModifyTable.c`), but without
//! triggers, rules and privileges.
//!
//! Whatever is open when an error is raised is closed by the abort of the
//! transaction.

use core::ffi::CStr;

use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use pgrx::prelude::*;
use zeroize::Zeroizing;

use super::fresh::Fresh;
use super::scan::Scan;
use super::target::Table;
use super::waiting;
use crate::compat;
use crate::error::Error;
use crate::migration::in_step::{self, Pair};
use crate::relations::relation_name;
use crate::sealing::{self, Sealer};
use crate::types::datum::{Varlena, VarlenaBuf};

/// What became of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It has a new value.
    Rotated,
    /// Nothing to do: fresh by now, NULL, or deleted.
    Skipped,
    /// Somebody else has it locked.
    Locked,
}

/// What a column is to hold.
enum New {
    Value(VarlenaBuf),
    /// What the trigger puts in place of NULL.
    ByTrigger,
}

/// What to do about a row that somebody else has locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Wait until it is free.
    Endless,
    /// Wait so many milliseconds at most. Not while other rows are locked here: then
    /// whom it waits for could wait for them.
    Milliseconds(i32),
    /// Leave it.
    None,
}

/// How a table is walked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manner {
    /// The blocks, from the first to before the second; None is the whole table.
    pub(super) blocks: Option<(u32, u32)>,
    /// Whether each new value is opened before it replaces the old one.
    pub(super) verifies: bool,
    /// Which of the table's triggers fire.
    pub(super) fires: Fires,
}

/// Triggers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fires {
    Nothing,
    /// Those that users made.
    Users,
    /// The one that keeps an encrypted column in step with a plaintext one.
    InStep,
}

/// A table with all that updating it needs.
pub(super) struct Walk {
    table: Table,
    manner: Manner,
    relation: pg_sys::Relation,
    executor: *mut pg_sys::EState,
    result: *mut pg_sys::ResultRelInfo,
    snapshot: pg_sys::Snapshot,
    /// Gives the rows as they are.
    scan: Scan,
    /// The row as it will be.
    new: *mut pg_sys::TupleTableSlot,
    command: pg_sys::CommandId,
    /// Whether it has a row locked that somebody may wait for.
    holds_rows: bool,
    /// How a row is locked.
    lock_mode: pg_sys::LockTupleMode::Type,
    /// Memory of one row's work.
    row_memory: pg_sys::MemoryContext,
    caller_memory: pg_sys::MemoryContext,
    caller: pg_sys::Oid,
    caller_security: i32,
}

impl Walk {
    /// # Safety
    /// In a transaction that may write, with the table locked.
    ///
    /// # Errors
    /// [`Error::Rotation`] if only a part is to be walked and the table's access method
    /// cannot do that.
    pub(super) unsafe fn begin(table: Table, manner: Manner) -> Result<Self, Error> {
        // SAFETY: the sequence is that of PostgreSQL's own apply worker
        // (worker.c, create_edata_for_relation) and table scans (tableam.h).
        unsafe {
            let relation = pg_sys::table_open(table.oid, pg_sys::NoLock as pg_sys::LOCKMODE);
            pg_sys::CheckCmdReplicaIdentity(relation, pg_sys::CmdType::CMD_UPDATE);

            // As the owner and restricted, like any maintenance command: an index
            // expression is the owner's code, and the caller may be a superuser.
            let (mut caller, mut caller_security) = (pg_sys::InvalidOid, 0);
            pg_sys::GetUserIdAndSecContext(&raw mut caller, &raw mut caller_security);
            pg_sys::SetUserIdAndSecContext(
                (*(*relation).rd_rel).relowner,
                caller_security | pg_sys::SECURITY_RESTRICTED_OPERATION as i32,
            );

            // See what earlier commands did, an earlier rotation in the same
            // statement included.
            pg_sys::CommandCounterIncrement();
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            let snapshot = pg_sys::GetActiveSnapshot();

            let executor = pg_sys::CreateExecutorState();
            let result: *mut pg_sys::ResultRelInfo =
                pg_sys::palloc0(size_of::<pg_sys::ResultRelInfo>()).cast();
            (*result).type_ = pg_sys::NodeTag::T_ResultRelInfo;
            if manner.fires != Fires::Nothing || has_generated_columns(relation) {
                // Triggers and generated columns may be concerned with this column only, or
                // not.
                compat::set_updated_column(executor, relation, table.attribute);
                pg_sys::InitResultRelInfo(result, relation, 1, core::ptr::null_mut(), 0);
            } else {
                // No range table: the index code then takes all columns for
                // unchanged, which they are to everyone who cannot see ciphertext.
                pg_sys::InitResultRelInfo(result, relation, 0, core::ptr::null_mut(), 0);
            }
            let kept = keep_triggers((*result).ri_TrigDesc, manner.fires);
            if manner.fires == Fires::InStep && !kept {
                let relation = relation_name(table.oid).unwrap_or_default();
                return Err(Error::OutOfStep { relation });
            }
            pg_sys::ExecOpenIndices(result, false);
            pg_sys::AfterTriggerBeginQuery();

            let scan = Scan::begin(relation, snapshot, manner.blocks)?;
            Ok(Self {
                table,
                manner,
                relation,
                executor,
                result,
                snapshot,
                scan,
                new: pg_sys::table_slot_create(relation, core::ptr::null_mut()),
                command: pg_sys::GetCurrentCommandId(true),
                holds_rows: false,
                lock_mode: lock_mode_of(relation, table.attribute),
                row_memory: compat::new_row_memory(),
                caller_memory: pg_sys::CurrentMemoryContext,
                caller,
                caller_security,
            })
        }
    }

    /// Goes to the next row; false at the end of the table.
    ///
    /// # Safety
    /// As `begin`.
    pub(super) unsafe fn next_row(&mut self) -> bool {
        // SAFETY: by the caller's word.
        unsafe { self.scan.next_row() }
    }

    /// Whether somebody may wait for a row that this walk has locked.
    pub(super) fn holds_rows(&self) -> bool {
        self.holds_rows
    }

    /// The block of the row under way.
    pub(super) fn block(&self) -> u32 {
        self.scan.block()
    }

    /// Gives the row a new value if it is stale. `rooms` are for plaintexts.
    ///
    /// # Safety
    /// As `begin`; after `next_row` has found a row.
    ///
    /// # Errors
    /// What reading or sealing a value gives; [`Error::Serialization`].
    pub(super) unsafe fn rotate_row(
        &mut self,
        fresh: &mut Fresh,
        patience: Patience,
        rooms: &mut [Zeroizing<Vec<u8>>; 2],
    ) -> Result<Outcome, Error> {
        // SAFETY: `row_memory` is live; it is left before the next row resets it.
        unsafe {
            pg_sys::MemoryContextReset(self.row_memory);
            pg_sys::CurrentMemoryContext = self.row_memory;
            let outcome = self.update_row(fresh, patience, rooms);
            pg_sys::CurrentMemoryContext = self.caller_memory;
            outcome
        }
    }

    /// As `ExecUpdate()` in PostgreSQL's nodeModifyTable.c: a row that somebody
    /// else updated meanwhile is locked in its latest version and looked at again.
    unsafe fn update_row(
        &mut self,
        fresh: &mut Fresh,
        patience: Patience,
        rooms: &mut [Zeroizing<Vec<u8>>; 2],
    ) -> Result<Outcome, Error> {
        use pg_sys::TM_Result as Result;
        let mut waits = patience == Patience::Endless;
        let mut locked = false;
        // SAFETY: relation, slots and snapshot are live; the arguments are those
        // that table_tuple_update() documents.
        unsafe {
            let update = (*self.scan.methods)
                .tuple_update
                .expect("every table method updates");
            loop {
                let Some(new) = self.new_value(fresh, rooms)? else {
                    return Ok(Outcome::Skipped);
                };
                if self.manner.fires != Fires::Nothing && !locked {
                    // Triggers see the row that will be updated, and are fired for it as it
                    // is: there is nothing to look at it again with.
                    let (row, mode) = ((*self.scan.row).tts_tid, self.lock_mode);
                    match self.lock_row(row, mode, patience) {
                        Result::TM_Ok => {}
                        Result::TM_Deleted if !sees_one_snapshot() => {
                            return Ok(Outcome::Skipped);
                        }
                        Result::TM_WouldBlock => return Ok(Outcome::Locked),
                        _ if patience != Patience::Endless => return Ok(Outcome::Locked),
                        _ => return Err(Error::Serialization),
                    }
                    (locked, waits) = (true, true);
                    continue;
                }
                self.fill_new_row(new);
                let mut row = (*self.scan.row).tts_tid;
                let mut failure = pg_sys::TM_FailureData::default();
                if self.manner.fires != Fires::Nothing && !self.fire_before(row, &mut failure) {
                    let relation = relation_name(self.table.oid).unwrap_or_default();
                    return Err(Error::TriggerRefuses { relation });
                }
                self.compute_generated_columns();
                if self.manner.fires == Fires::Users {
                    self.check_changes()?;
                }
                let mut lock_mode = self.lock_mode;
                let mut update_indexes = compat::UpdateIndexes::default();
                let updated = pg_guard_ffi_boundary(|| {
                    update(
                        self.relation,
                        &raw mut row,
                        self.new,
                        self.command,
                        self.snapshot,
                        core::ptr::null_mut(),
                        waits,
                        &raw mut failure,
                        &raw mut lock_mode,
                        &raw mut update_indexes,
                    )
                });
                match updated {
                    Result::TM_Ok => {
                        self.holds_rows = true;
                        self.after_update((*self.scan.row).tts_tid, update_indexes);
                        return Ok(Outcome::Rotated);
                    }
                    Result::TM_Updated | Result::TM_Deleted if sees_one_snapshot() => {
                        return match patience {
                            Patience::Endless => Err(Error::Serialization),
                            // The next transaction sees it.
                            _ => Ok(Outcome::Locked),
                        };
                    }
                    Result::TM_Deleted => return Ok(Outcome::Skipped),
                    // It is met again where it went.
                    Result::TM_Updated
                        if patience != Patience::Endless && compat::has_moved(&failure.ctid) =>
                    {
                        return Ok(Outcome::Locked);
                    }
                    Result::TM_Updated | Result::TM_BeingModified => {
                        match self.lock_row(row, lock_mode, patience) {
                            Result::TM_Ok => {}
                            Result::TM_Deleted => return Ok(Outcome::Skipped),
                            Result::TM_WouldBlock => return Ok(Outcome::Locked),
                            Result::TM_Updated if sees_one_snapshot() => {
                                return Ok(Outcome::Locked);
                            }
                            _ => return Err(self.failed("it was changed meanwhile")),
                        }
                        // For those only who have it locked in a way that lets us in.
                        waits = true;
                    }
                    _ => return Err(self.failed("the same statement changed it")),
                }
            }
        }
    }

    /// Locks the latest version of a row, and fills `old` with it.
    unsafe fn lock_row(
        &mut self,
        row: pg_sys::ItemPointerData,
        mode: pg_sys::LockTupleMode::Type,
        patience: Patience,
    ) -> pg_sys::TM_Result::Type {
        // SAFETY: by the caller's word.
        let locked = unsafe { self.lock_row_or_not(row, mode, patience) };
        self.holds_rows |= locked == pg_sys::TM_Result::TM_Ok;
        locked
    }

    unsafe fn lock_row_or_not(
        &self,
        row: pg_sys::ItemPointerData,
        mode: pg_sys::LockTupleMode::Type,
        patience: Patience,
    ) -> pg_sys::TM_Result::Type {
        use pg_sys::LockWaitPolicy::{LockWaitBlock, LockWaitSkip};
        use pg_sys::TM_Result::TM_WouldBlock;
        // SAFETY: as the caller of `begin` promises.
        unsafe {
            match patience {
                Patience::Endless => self.try_lock_row(row, mode, LockWaitBlock, self.scan.row),
                Patience::None => self.try_lock_row(row, mode, LockWaitSkip, self.scan.row),
                Patience::Milliseconds(most) => {
                    let locked = self.try_lock_row(row, mode, LockWaitSkip, self.scan.row);
                    if locked != TM_WouldBlock {
                        return locked;
                    }
                    let waited = waiting::at_most(most, || {
                        let slot = pg_sys::table_slot_create(self.relation, core::ptr::null_mut());
                        let locked = self.try_lock_row(row, mode, LockWaitBlock, slot);
                        pg_sys::ExecDropSingleTupleTableSlot(slot);
                        locked
                    });
                    if waited.is_none() {
                        return TM_WouldBlock;
                    }
                    // Nobody else has it now.
                    self.try_lock_row(row, mode, LockWaitSkip, self.scan.row)
                }
            }
        }
    }

    /// The arguments are those that table_tuple_lock() documents.
    unsafe fn try_lock_row(
        &self,
        mut row: pg_sys::ItemPointerData,
        mode: pg_sys::LockTupleMode::Type,
        policy: pg_sys::LockWaitPolicy::Type,
        slot: *mut pg_sys::TupleTableSlot,
    ) -> pg_sys::TM_Result::Type {
        let mut failure = pg_sys::TM_FailureData::default();
        // SAFETY: relation, slot and snapshot are live.
        unsafe {
            let lock = (*self.scan.methods)
                .tuple_lock
                .expect("every table method locks");
            pg_guard_ffi_boundary(|| {
                lock(
                    self.relation,
                    &raw mut row,
                    self.snapshot,
                    slot,
                    self.command,
                    mode,
                    policy,
                    pg_sys::TUPLE_LOCK_FLAG_FIND_LAST_VERSION as u8,
                    &raw mut failure,
                )
            })
        }
    }

    fn failed(&self, why: &'static str) -> Error {
        let relation = relation_name(self.table.oid).unwrap_or_default();
        Error::Rotation { relation, why }
    }

    /// The row's value, if it is not under what it belongs under, with that; judged
    /// by its header alone.
    unsafe fn stale_value<'a>(
        &self,
        fresh: &'a mut Fresh,
    ) -> Result<Option<(Varlena<'_>, &'a Sealer)>, Error> {
        // SAFETY: there is a row; the attribute is of an encrypted type.
        unsafe {
            let Some(value) = self.scan.value(self.table.attribute) else {
                return Ok(None);
            };
            let sealer = fresh.sealer_if_stale(value)?;
            Ok(sealer.map(|sealer| (Varlena::from_raw(value), sealer)))
        }
    }

    /// What is to be in the column in place of what is there, if anything.
    unsafe fn new_value(
        &self,
        fresh: &mut Fresh,
        rooms: &mut [Zeroizing<Vec<u8>>; 2],
    ) -> Result<Option<New>, Error> {
        // SAFETY: the scan has a row.
        unsafe {
            if let Some(pair) = &self.table.pair {
                let is_due = self.is_out_of_step(pair, rooms)?;
                return Ok(is_due.then_some(New::ByTrigger));
            }
            let Some((value, sealer)) = self.stale_value(fresh)? else {
                return Ok(None);
            };
            let payload = self.table.payload;
            let resealed = if self.manner.verifies {
                sealing::reseal_verified(payload, &value, sealer, rooms)?
            } else {
                sealing::reseal(payload, &value, sealer, &mut rooms[0])?
            };
            Ok(Some(New::Value(resealed)))
        }
    }

    /// Whether the encrypted column lacks what the plaintext one has. What it has is
    /// looked at if the walk verifies.
    unsafe fn is_out_of_step(
        &self,
        pair: &Pair,
        rooms: &mut [Zeroizing<Vec<u8>>; 2],
    ) -> Result<bool, Error> {
        // SAFETY: the scan has a row, which has both columns.
        unsafe {
            match (self.scan.value(pair.source), self.scan.value(pair.target)) {
                (None, None) => Ok(false),
                (Some(_), None) | (None, Some(_)) => Ok(true),
                (Some(source), Some(target)) => {
                    Ok(self.manner.verifies && !pair.is_in_step(source, target, rooms)?)
                }
            }
        }
    }

    /// Fills `new` with the row of `old` and the new value.
    unsafe fn fill_new_row(&self, value: New) {
        // SAFETY: both slots have the table's columns; what `new` borrows from
        // `old` and from row memory lives until the update has copied it.
        unsafe {
            pg_sys::slot_getallattrs(self.scan.row);
            pg_sys::ExecClearTuple(self.new);
            let descriptor = (*self.relation).rd_att;
            let count = (*descriptor).natts as usize;
            let (old, new) = (&*self.scan.row, &*self.new);
            core::ptr::copy_nonoverlapping(old.tts_values, new.tts_values, count);
            core::ptr::copy_nonoverlapping(old.tts_isnull, new.tts_isnull, count);
            for (column, attribute) in compat::attributes(descriptor).iter().enumerate() {
                if attribute.attisdropped {
                    *new.tts_isnull.add(column) = true;
                }
            }
            let column = usize::try_from(self.table.attribute).expect("a user column") - 1;
            match value {
                New::Value(value) => *new.tts_values.add(column) = value.into_raw(),
                New::ByTrigger => *new.tts_isnull.add(column) = true,
            }
            pg_sys::ExecStoreVirtualTuple(self.new);
        }
    }

    /// Generated columns may tell of the stored bytes, through inspect() or
    /// ciphertext().
    unsafe fn compute_generated_columns(&self) {
        // SAFETY: `new` holds a row.
        unsafe {
            if has_generated_columns(self.relation) {
                compat::compute_stored_generated(self.result, self.executor, self.new);
            }
        }
    }

    /// Fires the triggers that come before; whether the row is to be updated.
    unsafe fn fire_before(
        &mut self,
        row: pg_sys::ItemPointerData,
        failure: &mut pg_sys::TM_FailureData,
    ) -> bool {
        // SAFETY: the row is locked, so that there is no need of an EPQState.
        unsafe {
            let triggers = (*self.result).ri_TrigDesc.as_ref();
            triggers.is_none_or(|triggers| !triggers.trig_update_before_row)
                || compat::fire_before_update(self.executor, self.result, row, self.new, failure)
        }
    }

    /// What triggers have made of the row must be right.
    unsafe fn check_changes(&mut self) -> Result<(), Error> {
        // SAFETY: both slots hold a row of the table.
        unsafe {
            let descriptor = (*self.relation).rd_att;
            let kind = pg_sys::IndexAttrBitmapKind::INDEX_ATTR_BITMAP_KEY;
            let keys = pg_sys::RelationGetIndexAttrBitmap(self.relation, kind);
            for attribute in compat::attributes(descriptor) {
                let number = attribute.attnum;
                let member = i32::from(number) - pg_sys::FirstLowInvalidHeapAttributeNumber;
                if number == self.table.attribute || !pg_sys::bms_is_member(member, keys) {
                    continue;
                }
                let get = |slot| {
                    let mut is_null = false;
                    let value = pg_sys::slot_getattr(slot, number.into(), &raw mut is_null);
                    (!is_null).then_some(value)
                };
                let is_same = match (get(self.scan.row), get(self.new)) {
                    (Some(old), Some(new)) => compat::is_same_datum(attribute, old, new),
                    (None, None) => true,
                    _ => false,
                };
                // Others may refer to it, and the row is not locked for that.
                if !is_same {
                    let relation = relation_name(self.table.oid).unwrap_or_default();
                    return Err(Error::TriggerChangesKey { relation });
                }
            }
            if !(*descriptor).constr.is_null() {
                pg_sys::ExecConstraints(self.result, self.new, self.executor);
            }
            if (*(*self.relation).rd_rel).relispartition {
                pg_sys::ExecPartitionCheck(self.result, self.new, self.executor, true);
            }
        }
        Ok(())
    }

    /// Enters the new row version in the indexes, unless it is a HOT update, and sees to
    /// the triggers that come after.
    unsafe fn after_update(
        &mut self,
        old_row: pg_sys::ItemPointerData,
        update_indexes: compat::UpdateIndexes,
    ) {
        // SAFETY: `new` was just stored, so it has its place.
        unsafe {
            let recheck =
                compat::insert_index_tuples(self.result, self.new, self.executor, update_indexes);
            // A deferred unique constraint looks at the new version later.
            if !recheck.is_null() || self.manner.fires == Fires::Users {
                compat::queue_after_update(self.executor, self.result, old_row, self.new, recheck);
            }
            if let Some(expressions) = (*self.executor).es_per_tuple_exprcontext.as_ref() {
                pg_sys::MemoryContextReset(expressions.ecxt_per_tuple_memory);
            }
        }
    }

    /// Closes everything; what was done is visible to the next command.
    ///
    /// # Safety
    /// As `begin`.
    pub(super) unsafe fn end(self) {
        // SAFETY: undoes `begin` in the reverse order.
        unsafe {
            self.scan.end();
            pg_sys::ExecDropSingleTupleTableSlot(self.new);
            // Only the checks of deferred constraints may be left to the end of the
            // transaction, where the caller has his rights again: no trigger of a user.
            if self.manner.fires != Fires::Users {
                pg_sys::SetUserIdAndSecContext(self.caller, self.caller_security);
            }
            pg_sys::AfterTriggerEndQuery(self.executor);
            pg_sys::SetUserIdAndSecContext(self.caller, self.caller_security);
            pg_sys::ExecCloseIndices(self.result);
            // What triggers have opened.
            pg_sys::ExecCloseResultRelations(self.executor);
            pg_sys::ExecResetTupleTable((*self.executor).es_tupleTable, false);
            pg_sys::FreeExecutorState(self.executor);
            pg_sys::PopActiveSnapshot();
            pg_sys::MemoryContextDelete(self.row_memory);
            pg_sys::table_close(self.relation, pg_sys::NoLock as pg_sys::LOCKMODE);
            pg_sys::CommandCounterIncrement();
        }
    }
}

/// # Safety
/// The relation is open.
unsafe fn has_generated_columns(relation: pg_sys::Relation) -> bool {
    // SAFETY: by the caller's word.
    let constraints = unsafe { (*(*relation).rd_att).constr.as_ref() };
    constraints.is_some_and(|constraints| constraints.has_generated_stored)
}

/// How an UPDATE of a column locks a row: others may refer to what is in a key.
///
/// # Safety
/// The relation is open, and has the column.
unsafe fn lock_mode_of(relation: pg_sys::Relation, attribute: i16) -> pg_sys::LockTupleMode::Type {
    let kind = pg_sys::IndexAttrBitmapKind::INDEX_ATTR_BITMAP_KEY;
    let member = i32::from(attribute) - pg_sys::FirstLowInvalidHeapAttributeNumber;
    // SAFETY: by the caller's word.
    if unsafe { pg_sys::bms_is_member(member, pg_sys::RelationGetIndexAttrBitmap(relation, kind)) }
    {
        pg_sys::LockTupleMode::LockTupleExclusive
    } else {
        pg_sys::LockTupleMode::LockTupleNoKeyExclusive
    }
}

/// Whether this transaction sees one snapshot from beginning to end
/// (`IsolationUsesXactSnapshot()`), so that a concurrent change is an error.
fn sees_one_snapshot() -> bool {
    // SAFETY: reads this transaction's isolation level.
    unsafe { pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as i32 }
}

/// Leaves of a table's triggers those that check a deferred unique or exclusion
/// constraint again, and those that users made if they are to fire. What foreign keys do
/// when a row is changed that others refer to is not for a rotation. Whether any is left
/// that is to fire.
///
/// # Safety
/// `triggers` is null or this backend's own copy, as in a ResultRelInfo.
unsafe fn keep_triggers(triggers: *mut pg_sys::TriggerDesc, fires: Fires) -> bool {
    // SAFETY: `numtriggers` members are there; the order is kept.
    unsafe {
        let Some(triggers) = triggers.as_mut() else {
            return false;
        };
        let mut any = false;
        let all = core::slice::from_raw_parts_mut(
            triggers.triggers,
            usize::try_from(triggers.numtriggers).unwrap_or(0),
        );
        let mut kept = 0;
        for n in 0..all.len() {
            let rechecks = all[n].tgfoid.to_u32() == pg_sys::F_UNIQUE_KEY_RECHECK;
            let fires_too = match fires {
                Fires::Nothing => false,
                // A trigger may change what refers to another table.
                Fires::Users => {
                    !all[n].tgisinternal || all[n].tgfoid.to_u32() == pg_sys::F_RI_FKEY_CHECK_UPD
                }
                Fires::InStep => {
                    let name = CStr::from_ptr(all[n].tgname).to_bytes();
                    let is_disabled = all[n].tgenabled as u8 == pg_sys::TRIGGER_DISABLED;
                    name.starts_with(in_step::TRIGGER) && !is_disabled
                }
            };
            any |= fires_too;
            if rechecks || fires_too {
                all[kept] = all[n];
                kept += 1;
            }
        }
        triggers.numtriggers = kept as i32;
        any
    }
}
