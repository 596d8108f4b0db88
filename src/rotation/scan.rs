//! A scan of a table, or of some of its blocks, below SQL (PostgreSQL's tableam.h).
//!
//! What is open when an error is raised is closed by the abort of the transaction.

use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use pgrx::prelude::*;

use crate::error::Error;
use crate::relations::relation_name;

/// Rows of a table as a snapshot has them.
pub(super) struct Scan {
    pub(super) methods: *const pg_sys::TableAmRoutine,
    /// The row under way.
    pub(super) row: *mut pg_sys::TupleTableSlot,
    scan: pg_sys::TableScanDesc,
    /// Whether it scans some of the blocks only.
    in_range: bool,
}

impl Scan {
    /// `blocks` are the first and the one after the last; None is the whole table.
    ///
    /// # Safety
    /// The relation is a table that is open and locked, the snapshot is active; both stay
    /// so until `end`.
    ///
    /// # Errors
    /// [`Error::Rotation`] if only a part is to be scanned and the table's access method
    /// cannot do that.
    pub(super) unsafe fn begin(
        relation: pg_sys::Relation,
        snapshot: pg_sys::Snapshot,
        blocks: Option<(u32, u32)>,
    ) -> Result<Self, Error> {
        // SAFETY: by the caller's word; the arguments are those that tableam.h documents.
        unsafe {
            let methods = (*relation).rd_tableam;
            let flags = match blocks {
                None => pg_sys::ScanOptions::SO_TYPE_SEQSCAN | pg_sys::ScanOptions::SO_ALLOW_STRAT,
                Some(_) => pg_sys::ScanOptions::SO_TYPE_TIDRANGESCAN,
            } | pg_sys::ScanOptions::SO_ALLOW_PAGEMODE;
            let scan_begin = (*methods).scan_begin.expect("every table method scans");
            let none = core::ptr::null_mut();
            let scan = pg_guard_ffi_boundary(|| {
                scan_begin(relation, snapshot, 0, core::ptr::null_mut(), none, flags)
            });
            if let Some((first, end)) = blocks {
                let Some(set_range) = (*methods).scan_set_tidrange else {
                    return Err(Error::Rotation {
                        relation: relation_name((*relation).rd_id).unwrap_or_default(),
                        why: "its access method cannot walk a part of it",
                    });
                };
                let mut least = place(first, 0);
                let mut most = place(end.saturating_sub(1), u16::MAX);
                pg_guard_ffi_boundary(|| set_range(scan, &raw mut least, &raw mut most));
            }
            Ok(Self {
                methods,
                row: pg_sys::table_slot_create(relation, core::ptr::null_mut()),
                scan,
                in_range: blocks.is_some(),
            })
        }
    }

    /// Goes to the next row; false at the end.
    ///
    /// # Safety
    /// As `begin`.
    pub(super) unsafe fn next_row(&mut self) -> bool {
        pgrx::check_for_interrupts!();
        // SAFETY: the scan is open, and `row` is a slot for the table's rows.
        unsafe {
            let next = if self.in_range {
                (*self.methods).scan_getnextslot_tidrange
            } else {
                (*self.methods).scan_getnextslot
            };
            let next = next.expect("the scan could be begun");
            let forward = pg_sys::ScanDirection::ForwardScanDirection;
            pg_guard_ffi_boundary(|| next(self.scan, forward, self.row))
        }
    }

    /// The block of the row under way.
    pub(super) fn block(&self) -> u32 {
        // SAFETY: the slot lives as long as `self`.
        let id = unsafe { (*self.row).tts_tid.ip_blkid };
        u32::from(id.bi_hi) << 16 | u32::from(id.bi_lo)
    }

    /// A column of the row under way.
    ///
    /// # Safety
    /// There is a row, and it has the column.
    pub(super) unsafe fn value(&self, attribute: i16) -> Option<pg_sys::Datum> {
        let mut is_null = false;
        // SAFETY: by the caller's word.
        let value = unsafe { pg_sys::slot_getattr(self.row, attribute.into(), &raw mut is_null) };
        (!is_null).then_some(value)
    }

    /// # Safety
    /// As `begin`.
    pub(super) unsafe fn end(self) {
        // SAFETY: undoes `begin`.
        unsafe {
            let scan_end = (*self.methods).scan_end.expect("every table method scans");
            pg_guard_ffi_boundary(|| scan_end(self.scan));
            pg_sys::ExecDropSingleTupleTableSlot(self.row);
        }
    }
}

fn place(block: u32, offset: u16) -> pg_sys::ItemPointerData {
    pg_sys::ItemPointerData {
        ip_blkid: pg_sys::BlockIdData {
            bi_hi: (block >> 16) as u16,
            bi_lo: block as u16,
        },
        ip_posid: offset,
    }
}
