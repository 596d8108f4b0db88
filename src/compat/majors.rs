//! What differs between PostgreSQL majors: one item for each difference, which says since
//! when.

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

mod raw {
    use pgrx::pg_sys;

    unsafe extern "C-unwind" {
        // src/include/utils/relfilenodemap.h; since 16 relfilenumbermap.h
        #[cfg_attr(
            not(any(feature = "pg14", feature = "pg15")),
            link_name = "RelidByRelfilenumber"
        )]
        pub(super) fn RelidByRelfilenode(tablespace: pg_sys::Oid, file: pg_sys::Oid)
        -> pg_sys::Oid;
        // src/include/utils/sortsupport.h
        #[cfg(not(feature = "pg14"))]
        pub(super) fn ssup_datum_unsigned_cmp(
            left: pg_sys::Datum,
            right: pg_sys::Datum,
            support: pg_sys::SortSupport,
        ) -> i32;
    }
}

/// Allocates `size` bytes in the way in which the GUC machinery frees a check hook's
/// `extra`; null if there is no memory. Since 16 that is memory of a context of its own.
pub(crate) fn guc_malloc(size: usize) -> *mut core::ffi::c_void {
    #[cfg(any(feature = "pg14", feature = "pg15"))]
    // SAFETY: malloc has no precondition.
    unsafe {
        libc::malloc(size)
    }
    #[cfg(not(any(feature = "pg14", feature = "pg15")))]
    // SAFETY: raises nothing at this level.
    unsafe {
        pg_sys::guc_malloc(pg_sys::LOG as i32, size)
    }
}

/// Refuses other settings whose names begin with `prefix`. 14 only warns of those that are
/// there already.
pub(crate) fn reserve_setting_prefix(prefix: &core::ffi::CStr) {
    // SAFETY: a NUL-terminated string, which is copied.
    unsafe {
        #[cfg(feature = "pg14")]
        pg_sys::EmitWarningsOnPlaceholders(prefix.as_ptr());
        #[cfg(not(feature = "pg14"))]
        pg_sys::MarkGUCPrefixReserved(prefix.as_ptr());
    }
}

/// Whether the current user owns a relation, as superusers do. Since 16 one function asks
/// for objects of all kinds.
pub(crate) fn owns_relation(oid: pg_sys::Oid) -> bool {
    // SAFETY: the relation exists and is locked.
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        return pg_sys::pg_class_ownercheck(oid, pg_sys::GetUserId());
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        return pg_sys::object_ownercheck(pg_sys::RelationRelationId, oid, pg_sys::GetUserId());
    }
}

/// Whether the current user may execute a function; since 16 as [`owns_relation`].
pub(super) fn may_execute_function(function: pg_sys::Oid) -> bool {
    let mode = pg_sys::AclMode::from(pg_sys::ACL_EXECUTE);
    // SAFETY: a catalog look-up.
    let checked = unsafe {
        let user = pg_sys::GetUserId();
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        {
            pg_sys::pg_proc_aclcheck(function, user, mode)
        }
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        {
            pg_sys::object_aclcheck(pg_sys::ProcedureRelationId, function, user, mode)
        }
    };
    checked == pg_sys::AclResult::ACLCHECK_OK
}

/// PostgreSQL's comparison of abbreviated keys as unsigned numbers. By this address
/// PostgreSQL knows that it may use its specialized sort (tuplesort.c). 14 has neither.
pub(crate) fn compare_unsigned()
-> unsafe extern "C-unwind" fn(pg_sys::Datum, pg_sys::Datum, pg_sys::SortSupport) -> i32 {
    #[cfg(feature = "pg14")]
    {
        unsafe extern "C-unwind" fn compare(
            left: pg_sys::Datum,
            right: pg_sys::Datum,
            _support: pg_sys::SortSupport,
        ) -> i32 {
            left.value().cmp(&right.value()) as i32
        }
        compare
    }
    #[cfg(not(feature = "pg14"))]
    raw::ssup_datum_unsigned_cmp
}

/// The number of a relation's file. Since 16 a file has a locator in place of a node.
///
/// # Safety
/// The relation is open.
pub(super) unsafe fn file_of(relation: pg_sys::Relation) -> pg_sys::Oid {
    // SAFETY: by the caller's word.
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        return (*relation).rd_node.relNode;
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        return (*relation).rd_locator.relNumber;
    }
}

/// The relation of a page in the shared buffers; invalid if there is none. Since 16 as
/// [`file_of`].
///
/// # Safety
/// The buffer is pinned.
pub(super) unsafe fn relation_of_buffer(buffer: pg_sys::Buffer) -> pg_sys::Oid {
    let (mut fork, mut block) = (0, 0);
    // SAFETY: by the caller's word.
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        let (space, file) = {
            let mut file = pg_sys::RelFileNode::default();
            pg_sys::BufferGetTag(buffer, &raw mut file, &raw mut fork, &raw mut block);
            (file.spcNode, file.relNode)
        };
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        let (space, file) = {
            let mut file = pg_sys::RelFileLocator::default();
            pg_sys::BufferGetTag(buffer, &raw mut file, &raw mut fork, &raw mut block);
            (file.spcOid, file.relNumber)
        };
        pg_guard_ffi_boundary(|| raw::RelidByRelfilenode(space, file))
    }
}

/// The columns of a row type, those that are dropped as well. Since 18 they follow another
/// array.
///
/// # Safety
/// The row type lives for as long as the result is used.
pub(crate) unsafe fn attributes<'a>(
    descriptor: pg_sys::TupleDesc,
) -> &'a [pg_sys::FormData_pg_attribute] {
    // SAFETY: by the caller's word.
    unsafe {
        let count = usize::try_from((*descriptor).natts).unwrap_or(0);
        #[cfg(not(feature = "pg18"))]
        return (*descriptor).attrs.as_slice(count);
        #[cfg(feature = "pg18")]
        return if count == 0 {
            &[]
        } else {
            core::slice::from_raw_parts(pg_sys::TupleDescAttr(descriptor, 0), count)
        };
    }
}

/// What tells this backend's transactions apart. Since 17 it is a part of something.
pub(crate) fn local_transaction() -> pg_sys::LocalTransactionId {
    // SAFETY: a backend's PGPROC, of which only it writes this.
    unsafe {
        let process = pg_sys::MyProc.as_ref();
        #[cfg(any(feature = "pg14", feature = "pg15", feature = "pg16"))]
        return process.map_or(0, |process| process.lxid);
        #[cfg(not(any(feature = "pg14", feature = "pg15", feature = "pg16")))]
        return process.map_or(0, |process| process.vxid.lxid);
    }
}

/// Lets ANALYZE be cancelled and throttled. Since 18 VACUUM and ANALYZE tell who they are.
pub(crate) fn analyze_delay_point() {
    // SAFETY: called where an error may be raised.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        pg_sys::vacuum_delay_point();
        #[cfg(feature = "pg18")]
        pg_sys::vacuum_delay_point(true);
    }
}

/// Whether a search in a btree by a later column compares the values of those before it
/// ("skip scan", since 18).
pub(crate) const SKIPS_COLUMNS: bool = cfg!(feature = "pg18");

/// Sets the handler of a signal. Since 18 the server's function has a name of its own.
#[cfg(not(feature = "pg18"))]
pub(super) use pg_sys::pqsignal;
#[cfg(feature = "pg18")]
pub(super) use pg_sys::pqsignal_be as pqsignal;

/// Gives an executor a range table of one relation, of which one column is updated. Since
/// 16 columns are listed with the permissions, apart from the range table; since 18
/// relations are told that no pruning takes away.
///
/// # Safety
/// Both live; the relation has the column.
pub(crate) unsafe fn set_updated_column(
    executor: *mut pg_sys::EState,
    relation: pg_sys::Relation,
    attribute: i16,
) {
    // SAFETY: by the caller's word; as create_edata_for_relation() of worker.c.
    unsafe {
        let size = size_of::<pg_sys::RangeTblEntry>();
        let entry: *mut pg_sys::RangeTblEntry = pg_sys::palloc0(size).cast();
        (*entry).type_ = pg_sys::NodeTag::T_RangeTblEntry;
        (*entry).rtekind = pg_sys::RTEKind::RTE_RELATION;
        (*entry).relid = (*relation).rd_id;
        (*entry).relkind = (*(*relation).rd_rel).relkind;
        (*entry).rellockmode = pg_sys::AccessShareLock as i32;
        let member = i32::from(attribute) - pg_sys::FirstLowInvalidHeapAttributeNumber;
        let updated = pg_sys::bms_make_singleton(member);
        let entries = pg_sys::lappend(core::ptr::null_mut(), entry.cast());
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        {
            (*entry).updatedCols = updated;
            pg_sys::ExecInitRangeTable(executor, entries);
        }
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        {
            let mut permissions = core::ptr::null_mut();
            let permission = pg_sys::addRTEPermissionInfo(&raw mut permissions, entry);
            (*permission).updatedCols = updated;
            #[cfg(not(feature = "pg18"))]
            pg_sys::ExecInitRangeTable(executor, entries, permissions);
            #[cfg(feature = "pg18")]
            pg_sys::ExecInitRangeTable(
                executor,
                entries,
                permissions,
                pg_sys::bms_make_singleton(1),
            );
        }
    }
}

/// Which indexes an update has to enter the new version of a row in, as
/// table_tuple_update() says. Since 16 there are those that need nothing but a summary.
#[cfg(any(feature = "pg14", feature = "pg15"))]
pub(crate) type UpdateIndexes = bool;
#[cfg(not(any(feature = "pg14", feature = "pg15")))]
pub(crate) type UpdateIndexes = pg_sys::TU_UpdateIndexes::Type;

/// Enters the new version of a row in the indexes that need it; those in which a deferred
/// constraint is to be checked again.
///
/// # Safety
/// The result relation's indexes are open; `slot` has the new version, just stored.
pub(crate) unsafe fn insert_index_tuples(
    result: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
    executor: *mut pg_sys::EState,
    update_indexes: UpdateIndexes,
) -> *mut pg_sys::List {
    #[cfg(any(feature = "pg14", feature = "pg15"))]
    let is_any = update_indexes;
    #[cfg(not(any(feature = "pg14", feature = "pg15")))]
    let is_any = update_indexes != pg_sys::TU_UpdateIndexes::TU_None;
    if !is_any {
        return core::ptr::null_mut();
    }
    let none = core::ptr::null_mut();
    let no_list = core::ptr::null_mut();
    // SAFETY: by the caller's word; arguments as in ExecUpdateEpilogue() of
    // nodeModifyTable.c.
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        return pg_sys::ExecInsertIndexTuples(result, slot, executor, true, false, none, no_list);
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        return pg_sys::ExecInsertIndexTuples(
            result,
            slot,
            executor,
            true,
            false,
            none,
            no_list,
            update_indexes == pg_sys::TU_UpdateIndexes::TU_Summarizing,
        );
    }
}

/// Fires the triggers that come before the update of a row; whether the row is to be
/// updated. Since 15 they tell what became of the row, since 16 in more words, and since 18
/// they are told of MERGE.
///
/// # Safety
/// The row is locked, so that there is no need of an EPQState; `slot` has the row as it
/// will be.
pub(crate) unsafe fn fire_before_update(
    executor: *mut pg_sys::EState,
    result: *mut pg_sys::ResultRelInfo,
    mut row: pg_sys::ItemPointerData,
    slot: *mut pg_sys::TupleTableSlot,
    failure: &mut pg_sys::TM_FailureData,
) -> bool {
    let (state, foreign) = (core::ptr::null_mut(), core::ptr::null_mut());
    let row = &raw mut row;
    // SAFETY: by the caller's word.
    unsafe {
        #[cfg(feature = "pg14")]
        return {
            let _ = failure;
            pg_sys::ExecBRUpdateTriggers(executor, state, result, row, foreign, slot)
        };
        #[cfg(feature = "pg15")]
        return pg_sys::ExecBRUpdateTriggers(executor, state, result, row, foreign, slot, failure);
        #[cfg(any(feature = "pg16", feature = "pg17"))]
        return pg_sys::ExecBRUpdateTriggers(
            executor,
            state,
            result,
            row,
            foreign,
            slot,
            core::ptr::null_mut(),
            failure,
        );
        #[cfg(feature = "pg18")]
        return pg_sys::ExecBRUpdateTriggers(
            executor,
            state,
            result,
            row,
            foreign,
            slot,
            core::ptr::null_mut(),
            failure,
            false,
        );
    }
}

/// Has the triggers fired that come after the update of a row, once the query ends. Since
/// 15 they are told of rows that move between partitions.
///
/// # Safety
/// `slot` has the new version, just stored; `recheck` are the indexes in which a deferred
/// constraint is to be checked.
pub(crate) unsafe fn queue_after_update(
    executor: *mut pg_sys::EState,
    result: *mut pg_sys::ResultRelInfo,
    mut old_row: pg_sys::ItemPointerData,
    slot: *mut pg_sys::TupleTableSlot,
    recheck: *mut pg_sys::List,
) {
    let (foreign, transition) = (core::ptr::null_mut(), core::ptr::null_mut());
    let row = &raw mut old_row;
    // SAFETY: by the caller's word.
    unsafe {
        #[cfg(feature = "pg14")]
        pg_sys::ExecARUpdateTriggers(executor, result, row, foreign, slot, recheck, transition);
        #[cfg(not(feature = "pg14"))]
        pg_sys::ExecARUpdateTriggers(
            executor,
            result,
            core::ptr::null_mut(),
            core::ptr::null_mut(),
            row,
            foreign,
            slot,
            recheck,
            transition,
            false,
        );
    }
}

/// Makes an ExecutorRun_hook of `$run`, which is given the query and what runs it: `$next`
/// or else PostgreSQL itself. Since 18 nobody tells whether a query runs only once.
///
/// An error jumps over the frames of all of them, which must have nothing to clean up.
macro_rules! executor_run_hook {
    ($hook:ident, $run:ident, $next:expr) => {
        #[cfg(not(feature = "pg18"))]
        unsafe extern "C-unwind" fn $hook(
            query: *mut pg_sys::QueryDesc,
            direction: pg_sys::ScanDirection::Type,
            count: u64,
            execute_once: bool,
        ) {
            // SAFETY: as PostgreSQL calls it.
            unsafe {
                $run(query, || {
                    let next = $next.unwrap_or(crate::compat::standard_ExecutorRun);
                    next(query, direction, count, execute_once);
                });
            }
        }
        #[cfg(feature = "pg18")]
        unsafe extern "C-unwind" fn $hook(
            query: *mut pg_sys::QueryDesc,
            direction: pg_sys::ScanDirection::Type,
            count: u64,
        ) {
            // SAFETY: as PostgreSQL calls it.
            unsafe {
                $run(query, || {
                    let next = $next.unwrap_or(crate::compat::standard_ExecutorRun);
                    next(query, direction, count);
                });
            }
        }
    };
}
pub(crate) use executor_run_hook;
