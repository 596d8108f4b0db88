//! What differs between PostgreSQL majors, and PostgreSQL functions that pgrx
//! has no binding for.

mod majors;

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

pub(crate) use majors::{
    SKIPS_COLUMNS, UpdateIndexes, analyze_delay_point, attributes, compare_unsigned,
    executor_run_hook, fire_before_update, guc_malloc, insert_index_tuples, local_transaction,
    owns_relation, queue_after_update, reserve_setting_prefix, set_updated_column,
};

mod raw {
    use pgrx::pg_sys;

    unsafe extern "C-unwind" {
        // src/include/utils/palloc.h
        pub(super) fn palloc_extended(size: usize, flags: i32) -> *mut core::ffi::c_void;
        // src/include/executor/nodeModifyTable.h
        pub(super) fn ExecComputeStoredGenerated(
            result: *mut pg_sys::ResultRelInfo,
            executor: *mut pg_sys::EState,
            slot: *mut pg_sys::TupleTableSlot,
            command: pg_sys::CmdType::Type,
        );

        // src/include/executor/executor.h
        pub(crate) fn standard_ExecutorRun(
            query: *mut pg_sys::QueryDesc,
            direction: pg_sys::ScanDirection::Type,
            count: u64,
            #[cfg(not(feature = "pg18"))] execute_once: bool,
        );
        pub(crate) fn standard_ExecutorFinish(query: *mut pg_sys::QueryDesc);
        // src/include/tcop/utility.h
        pub(crate) fn standard_ProcessUtility(
            statement: *mut pg_sys::PlannedStmt,
            text: *const core::ffi::c_char,
            read_only: bool,
            context: pg_sys::ProcessUtilityContext::Type,
            parameters: pg_sys::ParamListInfo,
            environment: *mut pg_sys::QueryEnvironment,
            destination: *mut pg_sys::DestReceiver,
            completion: *mut pg_sys::QueryCompletion,
        );
        // src/include/optimizer/planner.h
        pub(crate) fn standard_planner(
            query: *mut pg_sys::Query,
            text: *const core::ffi::c_char,
            options: i32,
            parameters: pg_sys::ParamListInfo,
        ) -> *mut pg_sys::PlannedStmt;
        // src/include/tcop/tcopprot.h
        pub(super) fn die(signal: i32);
        // src/include/postmaster/interrupt.h
        pub(super) fn SignalHandlerForConfigReload(signal: i32);
        // src/include/utils/datum.h
        pub(super) fn datumIsEqual(
            left: pg_sys::Datum,
            right: pg_sys::Datum,
            by_value: bool,
            length: i32,
        ) -> bool;
        // src/include/miscadmin.h
        pub(super) fn InSecurityRestrictedOperation() -> bool;
        // src/include/nodes/nodeFuncs.h; since 16 these are macros around others
        #[cfg_attr(
            not(any(feature = "pg14", feature = "pg15")),
            link_name = "query_tree_walker_impl"
        )]
        pub(super) fn query_tree_walker(
            query: *mut pg_sys::Query,
            walker: super::Walker<pg_sys::Node>,
            context: *mut core::ffi::c_void,
            flags: i32,
        ) -> bool;
        #[cfg_attr(
            not(any(feature = "pg14", feature = "pg15")),
            link_name = "expression_tree_walker_impl"
        )]
        pub(super) fn expression_tree_walker(
            node: *mut pg_sys::Node,
            walker: super::Walker<pg_sys::Node>,
            context: *mut core::ffi::c_void,
        ) -> bool;
        #[cfg_attr(
            not(any(feature = "pg14", feature = "pg15")),
            link_name = "planstate_tree_walker_impl"
        )]
        pub(super) fn planstate_tree_walker(
            state: *mut pg_sys::PlanState,
            walker: super::Walker<pg_sys::PlanState>,
            context: *mut core::ffi::c_void,
        ) -> bool;
        // src/include/catalog/pg_inherits.h
        pub(super) fn find_all_inheritors(
            parent: pg_sys::Oid,
            lockmode: pg_sys::LOCKMODE,
            numparents: *mut *mut pg_sys::List,
        ) -> *mut pg_sys::List;
    }
}

/// `MaxAllocSize` of src/include/utils/memutils.h: 1 GB less one byte.
const MAX_ALLOC_SIZE: usize = 0x3fff_ffff;

/// `size` zeroed bytes in the current memory context.
///
/// pgrx's `palloc0` saves the machine's registers on every call (sigsetjmp), in
/// case the call raises an error. This asks for memory in a way that cannot
/// raise one, and only after a refusal in the way that does.
#[inline]
pub(crate) fn palloc0(size: usize) -> core::ptr::NonNull<core::ffi::c_void> {
    let flags = (pg_sys::MCXT_ALLOC_NO_OOM | pg_sys::MCXT_ALLOC_ZERO) as i32;
    let memory = if size <= MAX_ALLOC_SIZE {
        // SAFETY: with MCXT_ALLOC_NO_OOM and a size within MaxAllocSize the call
        // returns null instead of raising an error (mcxt.c), so nothing jumps
        // over Rust frames.
        unsafe { raw::palloc_extended(size, flags) }
    } else {
        core::ptr::null_mut()
    };
    core::ptr::NonNull::new(memory).unwrap_or_else(|| {
        // SAFETY: gives memory or raises PostgreSQL's own error.
        unsafe { core::ptr::NonNull::new_unchecked(pg_sys::palloc0(size)) }
    })
}

/// OIDs of `parent` and all that inherits from it, locked in `lockmode`, in an
/// order that cannot deadlock with another caller.
pub(crate) fn find_all_inheritors(
    parent: pg_sys::Oid,
    lockmode: pg_sys::LOCKMODE,
) -> Vec<pg_sys::Oid> {
    // SAFETY: called in a transaction, from the backend's one thread; the list
    // of OIDs that comes back is palloc'd and copied before anything frees it.
    unsafe {
        let list = pg_guard_ffi_boundary(|| {
            raw::find_all_inheritors(parent, lockmode, core::ptr::null_mut())
        });
        let length = usize::try_from((*list).length).unwrap_or(0);
        let cells = core::slice::from_raw_parts((*list).elements, length);
        let oids = cells.iter().map(|cell| cell.oid_value).collect();
        pg_sys::list_free(list);
        oids
    }
}

/// Computes the stored generated columns of the row in `slot` that depend on what is
/// updated.
///
/// # Safety
/// The arguments are live, and `slot` holds a row of the result relation.
pub(crate) unsafe fn compute_stored_generated(
    result: *mut pg_sys::ResultRelInfo,
    executor: *mut pg_sys::EState,
    slot: *mut pg_sys::TupleTableSlot,
) {
    // SAFETY: by the caller's word.
    unsafe {
        pg_guard_ffi_boundary(|| {
            raw::ExecComputeStoredGenerated(result, executor, slot, pg_sys::CmdType::CMD_UPDATE);
        });
    }
}

/// The name of a type, without its schema.
pub(crate) fn type_name(oid: pg_sys::Oid) -> Option<String> {
    // SAFETY: a syscache look-up; the tuple stays until it is released.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::TYPEOID as i32;
        let tuple = pg_sys::SearchSysCache1(cache, oid.into());
        if tuple.is_null() {
            return None;
        }
        let form: *mut pg_sys::FormData_pg_type = pg_sys::GETSTRUCT(tuple).cast();
        let name = core::ffi::CStr::from_ptr((*form).typname.data.as_ptr());
        let name = name.to_string_lossy().into_owned();
        pg_sys::ReleaseSysCache(tuple);
        Some(name)
    }
}

/// What PostgreSQL itself plans and runs statements with, for hooks to pass on to. An
/// error jumps over the caller's frame, which must have nothing to clean up.
pub(crate) use raw::{
    standard_ExecutorFinish, standard_ExecutorRun, standard_ProcessUtility, standard_planner,
};

/// Looks at a node of a tree, and says whether to stop.
pub(crate) type Walker<T> = unsafe extern "C-unwind" fn(*mut T, *mut core::ffi::c_void) -> bool;

/// Shows `walker` the parts of a query; whether it stopped.
///
/// # Safety
/// An analyzed query; `context` is what `walker` takes.
pub(crate) unsafe fn query_tree_walker(
    query: *mut pg_sys::Query,
    walker: Walker<pg_sys::Node>,
    context: *mut core::ffi::c_void,
) -> bool {
    // SAFETY: by the caller's word.
    unsafe { pg_guard_ffi_boundary(|| raw::query_tree_walker(query, walker, context, 0)) }
}

/// Shows `walker` the parts of an expression; whether it stopped.
///
/// # Safety
/// A node of an expression; `context` is what `walker` takes.
pub(crate) unsafe fn expression_tree_walker(
    node: *mut pg_sys::Node,
    walker: Walker<pg_sys::Node>,
    context: *mut core::ffi::c_void,
) -> bool {
    // SAFETY: by the caller's word.
    unsafe { pg_guard_ffi_boundary(|| raw::expression_tree_walker(node, walker, context)) }
}

/// Shows `walker` the states below the state of a plan; whether it stopped.
///
/// # Safety
/// The state of a plan that is started; `context` is what `walker` takes.
pub(crate) unsafe fn planstate_tree_walker(
    state: *mut pg_sys::PlanState,
    walker: Walker<pg_sys::PlanState>,
    context: *mut core::ffi::c_void,
) -> bool {
    // SAFETY: by the caller's word.
    unsafe { pg_guard_ffi_boundary(|| raw::planstate_tree_walker(state, walker, context)) }
}

/// Whether a row that was updated is in another partition now
/// (`ItemPointerIndicatesMovedPartitions()` of itemptr.h).
pub(crate) fn has_moved(next: &pg_sys::ItemPointerData) -> bool {
    const MOVED: u16 = 0xfffd;
    next.ip_posid == MOVED && next.ip_blkid.bi_hi == u16::MAX && next.ip_blkid.bi_lo == u16::MAX
}

/// Whether two values of an attribute are the same bytes.
///
/// # Safety
/// Values of its type.
pub(crate) unsafe fn is_same_datum(
    attribute: &pg_sys::FormData_pg_attribute,
    left: pg_sys::Datum,
    right: pg_sys::Datum,
) -> bool {
    let (by_value, length) = (attribute.attbyval, attribute.attlen.into());
    // SAFETY: by the caller's word.
    unsafe { pg_guard_ffi_boundary(|| raw::datumIsEqual(left, right, by_value, length)) }
}

/// Whether this backend runs a VACUUM that is not a VACUUM FULL.
pub(crate) fn in_vacuum() -> bool {
    // SAFETY: a backend has a PGPROC, whose flags only it writes.
    unsafe {
        pg_sys::MyProc
            .as_ref()
            .is_some_and(|process| u32::from(process.statusFlags) & pg_sys::PROC_IN_VACUUM != 0)
    }
}

/// `DbRoleSettingRelationId` (src/include/catalog/pg_db_role_setting.h).
pub(crate) const PG_DB_ROLE_SETTING: u32 = 2964;

/// The number of blocks of a relation, which is locked, and its file.
pub(crate) fn size_and_file(oid: pg_sys::Oid) -> (u32, pg_sys::Oid) {
    let lock = pg_sys::NoLock as pg_sys::LOCKMODE;
    // SAFETY: the relation is there; opened and closed again.
    unsafe {
        let relation = pg_sys::relation_open(oid, lock);
        let main = pg_sys::ForkNumber::MAIN_FORKNUM;
        let blocks = pg_sys::RelationGetNumberOfBlocksInFork(relation, main);
        let file = majors::file_of(relation);
        pg_sys::relation_close(relation, lock);
        (blocks, file)
    }
}

/// The databases that can be connected to.
pub(crate) fn databases() -> Vec<pg_sys::Oid> {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    let mut databases = Vec::new();
    // SAFETY: as get_database_list() of autovacuum.c.
    unsafe {
        let relation = pg_sys::table_open(pg_sys::DatabaseRelationId, lock);
        let scan = pg_sys::table_beginscan_catalog(relation, 0, core::ptr::null_mut());
        loop {
            let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
            if tuple.is_null() {
                break;
            }
            let database: *mut pg_sys::FormData_pg_database = pg_sys::GETSTRUCT(tuple).cast();
            if (*database).datallowconn {
                databases.push((*database).oid);
            }
        }
        let end = (*(*relation).rd_tableam)
            .scan_end
            .expect("every table method scans");
        pg_guard_ffi_boundary(|| end(scan));
        pg_sys::table_close(relation, lock);
    }
    databases
}

/// Has a background worker handle signals as PostgreSQL's own do: told to end, it ends at
/// the next occasion.
pub(crate) fn handle_worker_signals() {
    // SAFETY: PostgreSQL's own handlers.
    unsafe {
        majors::pqsignal(libc::SIGHUP, Some(raw::SignalHandlerForConfigReload));
        majors::pqsignal(libc::SIGTERM, Some(raw::die));
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

/// Waits so long, or until this process is told of something.
pub(crate) fn sleep(time: Option<core::time::Duration>) {
    let milliseconds = time.map(|time| {
        time.as_millis()
            .try_into()
            .unwrap_or(core::ffi::c_long::MAX)
    });
    let mut events = pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH;
    if milliseconds.is_some() {
        events |= pg_sys::WL_TIMEOUT;
    }
    // SAFETY: the latch is this process's own.
    unsafe {
        let timeout = milliseconds.unwrap_or(-1);
        pg_sys::WaitLatch(
            pg_sys::MyLatch,
            events as i32,
            timeout,
            pg_sys::PG_WAIT_EXTENSION,
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
}

/// Flag of a scan key: the column is descending (src/include/access/nbtree.h).
pub(crate) const SK_BT_DESC: i32 = (pg_sys::INDOPTION_DESC as i32) << 24;

/// The relation whose page in the shared buffers a pointer leads into; None for any
/// other pointer, into a page of a temporary table as well.
pub(crate) fn relation_of_page(pointer: *const u8) -> Option<pg_sys::Oid> {
    // SAFETY: the shared buffers are one array that stays where it is. The caller
    // holds a pin on the page that it reads, so the buffer keeps its tag.
    unsafe {
        let start = pg_sys::BufferBlocks as usize;
        let number = (pointer as usize).checked_sub(start)? / pg_sys::BLCKSZ as usize;
        if number >= usize::try_from(pg_sys::NBuffers).ok()? {
            return None;
        }
        let relation = majors::relation_of_buffer(number as i32 + 1);
        (relation != pg_sys::InvalidOid).then_some(relation)
    }
}

/// The owners of all relations with this name.
pub(crate) fn owners_of_relations(name: &core::ffi::CStr) -> Vec<pg_sys::Oid> {
    let mut key = pg_sys::NameData::default();
    // SAFETY: both are names; `pg_class` has such rows.
    unsafe {
        pg_sys::namestrcpy(&raw mut key, name.as_ptr());
        rows_by_name(
            pg_sys::SysCacheIdentifier::RELNAMENSP as i32,
            &key,
            |class: &pg_sys::FormData_pg_class| Some(class.relowner),
        )
    }
}

/// What `read` finds in the rows of a catalog that have this name, in the first column of
/// the key of a syscache.
///
/// # Safety
/// The syscache has rows of type `R`.
unsafe fn rows_by_name<R, T>(
    cache: i32,
    name: &pg_sys::NameData,
    read: impl Fn(&R) -> Option<T>,
) -> Vec<T> {
    // SAFETY: a look-up; the rows are read before the list is released.
    unsafe {
        let none = pg_sys::Datum::null();
        let name = pg_sys::Datum::from(core::ptr::from_ref(name));
        let list = pg_sys::SearchSysCacheList(cache, 1, name, none, none);
        let count = usize::try_from((*list).n_members).unwrap_or(0);
        let found = (*list).members.as_slice(count).iter().filter_map(|member| {
            let tuple = &raw mut (**member).tuple;
            read(&*pg_sys::GETSTRUCT(tuple).cast::<R>())
        });
        let found = found.collect();
        pg_sys::ReleaseCatCacheList(list);
        found
    }
}

/// A function with one argument.
pub(crate) struct UnaryFunction {
    oid: pg_sys::Oid,
    pub(crate) schema: pg_sys::Oid,
    pub(crate) argument: pg_sys::Oid,
    returned: pg_sys::Oid,
}

/// The functions with this name and one argument, in all schemas.
pub(crate) fn unary_functions(name: &core::ffi::CStr) -> Vec<UnaryFunction> {
    let mut key = pg_sys::NameData::default();
    // SAFETY: both are names; `pg_proc` has such rows, with as many types as arguments.
    unsafe {
        pg_sys::namestrcpy(&raw mut key, name.as_ptr());
        rows_by_name(
            pg_sys::SysCacheIdentifier::PROCNAMEARGSNSP as i32,
            &key,
            |function: &pg_sys::FormData_pg_proc| {
                (function.pronargs == 1).then(|| UnaryFunction {
                    oid: function.oid,
                    schema: function.pronamespace,
                    argument: *function.proargtypes.values.as_ptr(),
                    returned: function.prorettype,
                })
            },
        )
    }
}

/// Whether values may be compared by something else than their tags, where these
/// cannot be made: ANALYZE must not fail for want of a key; and pg_upgrade only
/// builds the catalogs, with the bounds of partitions, and reads no row.
pub(crate) fn order_is_free() -> bool {
    // SAFETY: reads a variable that is set when the server starts.
    collects_statistics() || unsafe { pg_sys::IsBinaryUpgrade }
}

/// Whether this backend collects statistics, as autovacuum or as an ANALYZE that
/// reports its progress (`track_activities`, on by default).
pub(crate) fn collects_statistics() -> bool {
    // SAFETY: the entry is this backend's own, and only it writes it.
    is_autovacuum()
        || unsafe {
            pg_sys::MyBEEntry.as_ref().is_some_and(|entry| {
                entry.st_progress_command == pg_sys::ProgressCommandType::PROGRESS_COMMAND_ANALYZE
            })
        }
}

/// Whether the server is built with assertions.
pub(crate) fn has_assertions() -> bool {
    // SAFETY: a setting that every server has; gives a NUL-terminated string.
    unsafe {
        let value = pg_sys::GetConfigOption(c"debug_assertions".as_ptr(), false, false);
        core::ffi::CStr::from_ptr(value) == c"on"
    }
}

/// Raises an error in a read-only transaction and on a standby; `what` is a function's name
/// for the message.
pub(crate) fn prevent_if_read_only(what: &core::ffi::CStr) {
    // SAFETY: reads the state of this backend.
    unsafe { pg_sys::PreventCommandIfReadOnly(what.as_ptr()) };
}

/// Whether this is an autovacuum worker.
pub(crate) fn is_autovacuum() -> bool {
    // SAFETY: reads a variable of this backend.
    unsafe { pg_sys::MyBackendType == pg_sys::BackendType::B_AUTOVAC_WORKER }
}

/// Whether the owner of something is at work with his own code in the session of
/// whoever maintains it: ANALYZE, REINDEX, REFRESH MATERIALIZED VIEW, autovacuum.
///
/// Asked for every value, so not through pgrx's guard.
#[inline]
pub(crate) fn in_restricted_operation() -> bool {
    // SAFETY: tests a flag of this backend (miscinit.c), and raises nothing.
    unsafe { raw::InSecurityRestrictedOperation() }
}

/// Whether what the client has sent is one command that keeps a table or index in order,
/// and is itself at work: no function in whose name errors would be reported has been
/// called by it (elog.h). REFRESH is none, for its query is the owner's.
pub(crate) fn is_at_maintenance() -> bool {
    // SAFETY: variables of this backend; a portal that runs has its statements.
    unsafe {
        let Some(portal) = pg_sys::ActivePortal.as_ref() else {
            return false;
        };
        pg_sys::error_context_stack.is_null()
            && crate::relations::members(portal.stmts).all(|statement| {
                use pg_sys::NodeTag as Tag;
                let statement = statement.cast::<pg_sys::PlannedStmt>();
                let utility = (*statement).utilityStmt.as_ref();
                utility.is_some_and(|node| {
                    matches!(
                        node.type_,
                        Tag::T_IndexStmt
                            | Tag::T_ReindexStmt
                            | Tag::T_ClusterStmt
                            | Tag::T_VacuumStmt
                            | Tag::T_AlterTableStmt
                    )
                })
            })
    }
}

/// Whether the current user may execute a function with one argument, in the schema of
/// the type that it returns.
pub(crate) fn may_execute(
    name: &core::ffi::CStr,
    returned: pg_sys::Oid,
    argument: pg_sys::Oid,
) -> bool {
    let functions = unary_functions(name);
    let mut wanted = functions
        .iter()
        .filter(|function| function.returned == returned && function.argument == argument);
    wanted
        .next()
        .is_some_and(|function| majors::may_execute_function(function.oid))
}

/// How many rows a relation and what belongs to it are believed to have.
pub(crate) fn estimated_rows(oid: pg_sys::Oid) -> f32 {
    let all = find_all_inheritors(oid, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
    let rows = all.into_iter().filter_map(|oid| {
        with_class(oid, |class| {
            // A partitioned table has the sum of its partitions; -1 is not known.
            let is_whole = class.relkind as u8 == pg_sys::RELKIND_PARTITIONED_TABLE;
            if is_whole {
                0.0
            } else {
                class.reltuples.max(0.0)
            }
        })
    });
    rows.sum()
}

/// The owner of a relation; invalid if there is none.
pub(crate) fn relation_owner(oid: pg_sys::Oid) -> pg_sys::Oid {
    with_class(oid, |class| class.relowner).unwrap_or(pg_sys::InvalidOid)
}

/// What `read` finds in the row of `pg_class` of a relation; None if there is none.
fn with_class<T>(
    oid: pg_sys::Oid,
    read: impl FnOnce(&pg_sys::FormData_pg_class) -> T,
) -> Option<T> {
    // SAFETY: a syscache look-up; the row is read before it is released.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::RELOID as i32, oid.into());
        if tuple.is_null() {
            return None;
        }
        let class: pg_sys::Form_pg_class = pg_sys::GETSTRUCT(tuple).cast();
        let found = read(&*class);
        pg_sys::ReleaseSysCache(tuple);
        Some(found)
    }
}

/// Memory for the work on one row, to be reset after each.
pub(crate) fn new_row_memory() -> pg_sys::MemoryContext {
    // SAFETY: a child of the current context, with its usual sizes.
    unsafe {
        pg_sys::AllocSetContextCreateExtended(
            pg_sys::CurrentMemoryContext,
            c"colcrypt: a row".as_ptr(),
            pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
        )
    }
}

/// Keeps interrupts waiting until it is dropped. A message ends with a look at them,
/// which would leave the function that logs, and those above it, by a jump.
pub(crate) struct HeldInterrupts(());

impl HeldInterrupts {
    pub(crate) fn hold() -> Self {
        // SAFETY: this backend's own counter, as HOLD_INTERRUPTS() has it.
        unsafe { pg_sys::InterruptHoldoffCount += 1 };
        Self(())
    }
}

impl Drop for HeldInterrupts {
    fn drop(&mut self) {
        // SAFETY: as in `hold`.
        unsafe { pg_sys::InterruptHoldoffCount -= 1 };
    }
}
