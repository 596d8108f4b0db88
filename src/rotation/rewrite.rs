//! Walks a table and replaces the stale values of one column, row by row, below
//! SQL: as an UPDATE would (PostgreSQL's `nodeModifyTable.c`), but without
//! triggers, rules and privileges.
//!
//! Whatever is open when an error is raised is closed by the abort of the
//! transaction.

use std::time::{Duration, Instant};

use colcrypt_core::{KeyId, Stored, Suite};
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use pgrx::prelude::*;
use zeroize::Zeroizing;

use super::target::Table;
use crate::error::Error;
use crate::relations::relation_name;
use crate::sealing::{self, Sealer};
use crate::types::datum::{Varlena, VarlenaBuf, first_bytes};
use crate::{compat, keyring};

/// How often a long rotation says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// A rotation under way, and how much was done.
pub(super) struct Rotation {
    batch_size: i64,
    max_rows: Option<i64>,
    rows: i64,
    reported: Instant,
}

/// What became of one row.
enum Outcome {
    /// It has a new value.
    Rotated,
    /// Nothing to do: fresh by now, NULL, or deleted.
    Skipped,
}

impl Rotation {
    /// # Errors
    /// [`Error::NoKeyRing`].
    pub(super) fn new(batch_size: i64, max_rows: Option<i64>) -> Result<Self, Error> {
        keyring::current().primary()?;
        Ok(Self {
            batch_size,
            max_rows,
            rows: 0,
            reported: Instant::now(),
        })
    }

    pub(super) fn rows(&self) -> i64 {
        self.rows
    }

    /// Whether as many rows were done as were asked for.
    pub(super) fn is_done(&self) -> bool {
        self.max_rows.is_some_and(|most| self.rows >= most)
    }

    /// Rotates one table, which is locked.
    ///
    /// # Errors
    /// What reading or sealing a value gives; then nothing stays changed.
    pub(super) fn rotate_table(&mut self, table: Table) -> Result<(), Error> {
        // SAFETY: in a transaction, with the table locked.
        unsafe {
            let mut walk = Walk::begin(table);
            let mut fresh = Fresh::new(table.modifier);
            let mut plaintext = Zeroizing::new(Vec::new());
            while !self.is_done() && walk.next_row() {
                if let Outcome::Rotated = walk.rotate_row(&mut fresh, &mut plaintext)? {
                    self.rows += 1;
                    if self.rows % self.batch_size == 0 {
                        self.report(&walk);
                    }
                }
            }
            walk.end();
        }
        Ok(())
    }

    fn report(&mut self, walk: &Walk) {
        if self.reported.elapsed() >= PROGRESS_INTERVAL {
            self.reported = Instant::now();
            pgrx::notice!(
                "rotated {} rows so far, at block {} of \"{}\"",
                self.rows,
                walk.block(),
                relation_name(walk.table.oid).unwrap_or_default()
            );
        }
    }
}

/// A key, with the header of what is sealed under it.
type Target = (Sealer, (Suite, KeyId));

/// What the values of a column are to be sealed under.
struct Fresh {
    modifier: i32,
    /// The last key that was asked for.
    last: Option<(KeyId, Option<Target>)>,
    /// Destroyed keys that were told of.
    destroyed: Vec<KeyId>,
}

impl Fresh {
    fn new(modifier: i32) -> Self {
        Self {
            modifier,
            last: None,
            destroyed: Vec::new(),
        }
    }

    /// What a value with this header is to be sealed under, if not as it is.
    ///
    /// # Errors
    /// As [`Sealer::of_stored_value`].
    fn sealer_if_stale(&mut self, header: (Suite, KeyId)) -> Result<Option<&Sealer>, Error> {
        let (_, id) = header;
        if self.last.as_ref().is_none_or(|(known, _)| *known != id) {
            let sealer = Sealer::of_stored_value(id, self.modifier)?;
            let fresh = match sealer {
                Some(sealer) => {
                    let fresh = sealer.header()?;
                    Some((sealer, fresh))
                }
                None => {
                    if !self.destroyed.contains(&id) {
                        pgrx::notice!(
                            "values under destroyed encryption key {id} stay as they are"
                        );
                        self.destroyed.push(id);
                    }
                    None
                }
            };
            self.last = Some((id, fresh));
        }
        let last = self.last.as_ref().and_then(|(_, last)| last.as_ref());
        Ok(last.and_then(|(sealer, fresh)| (*fresh != header).then_some(sealer)))
    }
}

/// A table with all that updating it needs.
struct Walk {
    table: Table,
    relation: pg_sys::Relation,
    methods: *const pg_sys::TableAmRoutine,
    executor: *mut pg_sys::EState,
    result: *mut pg_sys::ResultRelInfo,
    snapshot: pg_sys::Snapshot,
    scan: pg_sys::TableScanDesc,
    /// The row as it is.
    old: *mut pg_sys::TupleTableSlot,
    /// The row as it will be.
    new: *mut pg_sys::TupleTableSlot,
    command: pg_sys::CommandId,
    /// Memory of one row's work.
    row_memory: pg_sys::MemoryContext,
    caller_memory: pg_sys::MemoryContext,
    caller: pg_sys::Oid,
    caller_security: i32,
}

impl Walk {
    /// # Safety
    /// In a transaction that may write, with the table locked.
    unsafe fn begin(table: Table) -> Self {
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
            // No range table: the index code then takes all columns for
            // unchanged, which they are to everyone who cannot see ciphertext.
            pg_sys::InitResultRelInfo(result, relation, 0, core::ptr::null_mut(), 0);
            keep_only_recheck_triggers((*result).ri_TrigDesc);
            pg_sys::ExecOpenIndices(result, false);
            pg_sys::AfterTriggerBeginQuery();

            let methods = (*relation).rd_tableam;
            let flags = pg_sys::ScanOptions::SO_TYPE_SEQSCAN
                | pg_sys::ScanOptions::SO_ALLOW_STRAT
                | pg_sys::ScanOptions::SO_ALLOW_PAGEMODE;
            let scan_begin = (*methods).scan_begin.expect("every table method scans");
            let scan = pg_guard_ffi_boundary(|| {
                scan_begin(
                    relation,
                    snapshot,
                    0,
                    core::ptr::null_mut(),
                    core::ptr::null_mut(),
                    flags,
                )
            });
            let row_memory = pg_sys::AllocSetContextCreateExtended(
                pg_sys::CurrentMemoryContext,
                c"colcrypt rotation of a row".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            );
            Self {
                table,
                relation,
                methods,
                executor,
                result,
                snapshot,
                scan,
                old: pg_sys::table_slot_create(relation, core::ptr::null_mut()),
                new: pg_sys::table_slot_create(relation, core::ptr::null_mut()),
                command: pg_sys::GetCurrentCommandId(true),
                row_memory,
                caller_memory: pg_sys::CurrentMemoryContext,
                caller,
                caller_security,
            }
        }
    }

    /// Goes to the next row; false at the end of the table.
    unsafe fn next_row(&mut self) -> bool {
        pgrx::check_for_interrupts!();
        // SAFETY: the scan is open, and `old` is a slot for the table's rows.
        unsafe {
            let next = (*self.methods)
                .scan_getnextslot
                .expect("every table method scans");
            pg_guard_ffi_boundary(|| {
                next(
                    self.scan,
                    pg_sys::ScanDirection::ForwardScanDirection,
                    self.old,
                )
            })
        }
    }

    /// The block of the row under way.
    fn block(&self) -> u32 {
        // SAFETY: the slot lives as long as `self`.
        let id = unsafe { (*self.old).tts_tid.ip_blkid };
        u32::from(id.bi_hi) << 16 | u32::from(id.bi_lo)
    }

    /// Gives the row a new value if it is stale.
    unsafe fn rotate_row(
        &mut self,
        fresh: &mut Fresh,
        plaintext: &mut Zeroizing<Vec<u8>>,
    ) -> Result<Outcome, Error> {
        // SAFETY: `row_memory` is live; it is left before the next row resets it.
        unsafe {
            pg_sys::MemoryContextReset(self.row_memory);
            pg_sys::CurrentMemoryContext = self.row_memory;
            let outcome = self.update_row(fresh, plaintext);
            pg_sys::CurrentMemoryContext = self.caller_memory;
            outcome
        }
    }

    /// As `ExecUpdate()` in PostgreSQL's nodeModifyTable.c: a row that somebody
    /// else updated meanwhile is locked in its latest version and looked at again.
    unsafe fn update_row(
        &mut self,
        fresh: &mut Fresh,
        plaintext: &mut Zeroizing<Vec<u8>>,
    ) -> Result<Outcome, Error> {
        use pg_sys::TM_Result as Result;
        // SAFETY: relation, slots and snapshot are live; the arguments are those
        // that table_tuple_update() and table_tuple_lock() document.
        unsafe {
            let update = (*self.methods)
                .tuple_update
                .expect("every table method updates");
            let lock = (*self.methods)
                .tuple_lock
                .expect("every table method locks");
            loop {
                let Some((value, sealer)) = self.stale_value(fresh)? else {
                    return Ok(Outcome::Skipped);
                };
                self.fill_new_row(sealing::reseal(
                    self.table.payload,
                    &value,
                    sealer,
                    plaintext,
                )?);
                self.compute_generated_columns();
                let mut row = (*self.old).tts_tid;
                let mut failure = pg_sys::TM_FailureData::default();
                let mut lock_mode = pg_sys::LockTupleMode::LockTupleNoKeyExclusive;
                let mut update_indexes = false;
                let updated = pg_guard_ffi_boundary(|| {
                    update(
                        self.relation,
                        &raw mut row,
                        self.new,
                        self.command,
                        self.snapshot,
                        core::ptr::null_mut(),
                        true,
                        &raw mut failure,
                        &raw mut lock_mode,
                        &raw mut update_indexes,
                    )
                });
                match updated {
                    Result::TM_Ok => {
                        if update_indexes {
                            self.insert_index_entries(row);
                        }
                        return Ok(Outcome::Rotated);
                    }
                    Result::TM_Updated | Result::TM_Deleted if sees_one_snapshot() => {
                        return Err(Error::Serialization);
                    }
                    Result::TM_Deleted => return Ok(Outcome::Skipped),
                    Result::TM_Updated => {
                        let locked = pg_guard_ffi_boundary(|| {
                            lock(
                                self.relation,
                                &raw mut row,
                                self.snapshot,
                                self.old,
                                self.command,
                                lock_mode,
                                pg_sys::LockWaitPolicy::LockWaitBlock,
                                pg_sys::TUPLE_LOCK_FLAG_FIND_LAST_VERSION as u8,
                                &raw mut failure,
                            )
                        });
                        match locked {
                            Result::TM_Ok => {}
                            Result::TM_Deleted => return Ok(Outcome::Skipped),
                            _ => return Err(self.failed("it was changed meanwhile")),
                        }
                    }
                    _ => return Err(self.failed("the same statement changed it")),
                }
            }
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
        // SAFETY: `old` holds a row; the attribute is of an encrypted type.
        unsafe {
            let mut is_null = false;
            let attribute = i32::from(self.table.attribute);
            let datum = pg_sys::slot_getattr(self.old, attribute, &raw mut is_null);
            if is_null {
                return Ok(None);
            }
            let header = first_bytes::<{ Stored::HEADER_LEN }>(datum).ok_or(Error::Malformed)?;
            let sealer = fresh.sealer_if_stale(Stored::parse_header(&header)?)?;
            Ok(sealer.map(|sealer| (Varlena::from_raw(datum), sealer)))
        }
    }

    /// Fills `new` with the row of `old` and the new value.
    unsafe fn fill_new_row(&self, value: VarlenaBuf) {
        // SAFETY: both slots have the table's columns; what `new` borrows from
        // `old` and from row memory lives until the update has copied it.
        unsafe {
            pg_sys::slot_getallattrs(self.old);
            pg_sys::ExecClearTuple(self.new);
            let descriptor = (*self.relation).rd_att;
            let count = (*descriptor).natts as usize;
            let (old, new) = (&*self.old, &*self.new);
            core::ptr::copy_nonoverlapping(old.tts_values, new.tts_values, count);
            core::ptr::copy_nonoverlapping(old.tts_isnull, new.tts_isnull, count);
            for (column, attribute) in (*descriptor).attrs.as_slice(count).iter().enumerate() {
                if attribute.attisdropped {
                    *new.tts_isnull.add(column) = true;
                }
            }
            let column = usize::try_from(self.table.attribute).expect("a user column") - 1;
            *new.tts_values.add(column) = value.into_raw();
            pg_sys::ExecStoreVirtualTuple(self.new);
        }
    }

    /// Generated columns may tell of the stored bytes, through inspect() or
    /// ciphertext().
    unsafe fn compute_generated_columns(&self) {
        // SAFETY: `new` holds a row. As if for an INSERT, so that every column is
        // computed: there is no list of updated columns to go by.
        unsafe {
            let constraints = (*(*self.relation).rd_att).constr.as_ref();
            if constraints.is_some_and(|constraints| constraints.has_generated_stored) {
                compat::compute_stored_generated(self.result, self.executor, self.new);
            }
        }
    }

    /// Enters the new row version in the indexes, when it is not a HOT update.
    unsafe fn insert_index_entries(&mut self, mut old_row: pg_sys::ItemPointerData) {
        // SAFETY: `new` was just stored, so it has its place; arguments as in
        // ExecUpdateEpilogue() of nodeModifyTable.c.
        unsafe {
            let recheck = pg_sys::ExecInsertIndexTuples(
                self.result,
                self.new,
                self.executor,
                true,
                false,
                core::ptr::null_mut(),
                core::ptr::null_mut(),
            );
            if !recheck.is_null() {
                // A deferred unique constraint looks at the new version later.
                pg_sys::ExecARUpdateTriggers(
                    self.executor,
                    self.result,
                    core::ptr::null_mut(),
                    core::ptr::null_mut(),
                    &raw mut old_row,
                    core::ptr::null_mut(),
                    self.new,
                    recheck,
                    core::ptr::null_mut(),
                    false,
                );
            }
            if let Some(expressions) = (*self.executor).es_per_tuple_exprcontext.as_ref() {
                pg_sys::MemoryContextReset(expressions.ecxt_per_tuple_memory);
            }
        }
    }

    /// Closes everything; what was done is visible to the next command.
    unsafe fn end(self) {
        // SAFETY: undoes `begin` in the reverse order.
        unsafe {
            let scan_end = (*self.methods).scan_end.expect("every table method scans");
            pg_guard_ffi_boundary(|| scan_end(self.scan));
            pg_sys::ExecDropSingleTupleTableSlot(self.old);
            pg_sys::ExecDropSingleTupleTableSlot(self.new);
            pg_sys::SetUserIdAndSecContext(self.caller, self.caller_security);
            pg_sys::AfterTriggerEndQuery(self.executor);
            pg_sys::ExecCloseIndices(self.result);
            pg_sys::FreeExecutorState(self.executor);
            pg_sys::PopActiveSnapshot();
            pg_sys::MemoryContextDelete(self.row_memory);
            pg_sys::table_close(self.relation, pg_sys::NoLock as pg_sys::LOCKMODE);
            pg_sys::CommandCounterIncrement();
        }
    }
}

/// Whether this transaction sees one snapshot from beginning to end
/// (`IsolationUsesXactSnapshot()`), so that a concurrent change is an error.
fn sees_one_snapshot() -> bool {
    // SAFETY: reads this transaction's isolation level.
    unsafe { pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as i32 }
}

/// Leaves of a table's triggers those that check a deferred unique or exclusion
/// constraint again. Nothing that a user or a foreign key would notice happens in
/// a rotation.
///
/// # Safety
/// `triggers` is null or this backend's own copy, as in a ResultRelInfo.
unsafe fn keep_only_recheck_triggers(triggers: *mut pg_sys::TriggerDesc) {
    // SAFETY: `numtriggers` members are there; the order is kept.
    unsafe {
        let Some(triggers) = triggers.as_mut() else {
            return;
        };
        let all = core::slice::from_raw_parts_mut(
            triggers.triggers,
            usize::try_from(triggers.numtriggers).unwrap_or(0),
        );
        let mut kept = 0;
        for n in 0..all.len() {
            if all[n].tgfoid.to_u32() == pg_sys::F_UNIQUE_KEY_RECHECK {
                all[kept] = all[n];
                kept += 1;
            }
        }
        triggers.numtriggers = kept as i32;
    }
}
