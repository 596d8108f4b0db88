//! Where PostgreSQL plans and runs statements.

use core::cell::{Cell, RefCell};
use core::ffi::c_void;

use pgrx::prelude::*;

use crate::backend_local::BackendLocal;
use crate::search::{self, comparisons, prepare};
use crate::{audit, compat, log_hook, managed_keys, relations, rotation, tally};

struct Next {
    relation: Cell<pg_sys::get_relation_info_hook_type>,
    planner: Cell<pg_sys::planner_hook_type>,
    run: Cell<pg_sys::ExecutorRun_hook_type>,
    finish: Cell<pg_sys::ExecutorFinish_hook_type>,
    utility: Cell<pg_sys::ProcessUtility_hook_type>,
}

static NEXT: BackendLocal<Next> = BackendLocal::new(Next {
    relation: Cell::new(None),
    planner: Cell::new(None),
    run: Cell::new(None),
    finish: Cell::new(None),
    utility: Cell::new(None),
});

/// How many statements run inside each other that began in a security-restricted
/// operation: they are of the owner's making.
static OWNERS: BackendLocal<Cell<u32>> = BackendLocal::new(Cell::new(0));
/// How many statements run inside each other, of any kind.
static NESTING: BackendLocal<Cell<u32>> = BackendLocal::new(Cell::new(0));
/// What both were when each open subtransaction began. An error does not pass through
/// the hooks, so it is where a subtransaction ends that they are set right.
static SAVED: BackendLocal<RefCell<Vec<(u32, u32)>>> = BackendLocal::new(RefCell::new(Vec::new()));

/// Installs the hooks.
pub(crate) fn install() {
    // SAFETY: hooks are set when a library is loaded, in the only thread.
    unsafe {
        // The library may be loaded by what an owner has written, in statements of which
        // nothing is known: then they count until the transaction ends.
        if !compat::is_at_maintenance() {
            begin_owners();
        }
        NEXT.relation.set(pg_sys::get_relation_info_hook);
        pg_sys::get_relation_info_hook = Some(relation_info);
        pg_sys::RegisterXactCallback(Some(at_end), core::ptr::null_mut());
        NEXT.planner.set(pg_sys::planner_hook);
        pg_sys::planner_hook = Some(plan);
        NEXT.run.set(pg_sys::ExecutorRun_hook);
        pg_sys::ExecutorRun_hook = Some(run);
        NEXT.finish.set(pg_sys::ExecutorFinish_hook);
        pg_sys::ExecutorFinish_hook = Some(finish);
        pg_sys::RegisterSubXactCallback(Some(at_subtransaction), core::ptr::null_mut());
        NEXT.utility.set(pg_sys::ProcessUtility_hook);
        pg_sys::ProcessUtility_hook = Some(utility);
    }
}

/// Passes on unguarded: this frame has nothing that an error could leave behind.
unsafe extern "C-unwind" fn plan(
    query: *mut pg_sys::Query,
    text: *const core::ffi::c_char,
    options: i32,
    parameters: pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt {
    // SAFETY: as the planner is called.
    unsafe {
        if comparisons::is_watched() {
            comparisons::check_query(query);
        }
        let next = NEXT.planner.get().unwrap_or(compat::standard_planner);
        next(query, text, options, parameters)
    }
}

compat::executor_run_hook!(run, run_with, NEXT.run.get());

/// As `plan`; `next` runs the query.
unsafe fn run_with(query: *mut pg_sys::QueryDesc, next: impl FnOnce()) {
    // SAFETY: PostgreSQL passes a query that is started.
    unsafe {
        if (*(*query).plannedstmt).parallelModeNeeded {
            prepare::before_parallel_query();
        }
        if managed_keys::may_have_data_keys() {
            hear_of_changes();
        }
        if comparisons::is_watched() {
            comparisons::check_plan((*query).planstate);
        }
        begin_query(query);
        let owners = begin_owners();
        NESTING.set(NESTING.get() + 1);
        next();
        end_owners(owners);
        end_statement();
    }
}

/// As `plan`. Triggers that fire after the rows of a query run here.
unsafe extern "C-unwind" fn finish(query: *mut pg_sys::QueryDesc) {
    // SAFETY: PostgreSQL passes a query that has run.
    unsafe {
        NESTING.set(NESTING.get() + 1);
        let next = NEXT.finish.get().unwrap_or(compat::standard_ExecutorFinish);
        next(query);
        end_statement();
    }
}

/// As `plan`.
unsafe extern "C-unwind" fn utility(
    statement: *mut pg_sys::PlannedStmt,
    text: *const core::ffi::c_char,
    read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: as PostgreSQL calls it.
    unsafe {
        let node = (*statement).utilityStmt;
        let copies = (*node).type_ == pg_sys::NodeTag::T_CopyStmt;
        begin_utility(node);
        let owners = begin_owners();
        NESTING.set(NESTING.get() + 1);
        let next = NEXT
            .utility
            .get()
            .unwrap_or(compat::standard_ProcessUtility);
        next(
            statement,
            text,
            read_only,
            context,
            parameters,
            environment,
            destination,
            completion,
        );
        if copies {
            log_hook::note_copy(false);
        }
        end_owners(owners);
        end_statement();
    }
}

/// Counts a statement of an owner's. After an error it stays counted until the
/// (sub)transaction ends.
fn begin_owners() -> u32 {
    let count = u32::from(compat::in_restricted_operation());
    OWNERS.set(OWNERS.get() + count);
    count
}

/// Not all statements end in the transaction in which they began.
fn end_owners(count: u32) {
    OWNERS.set(OWNERS.get().saturating_sub(count));
}

#[pg_guard]
unsafe extern "C-unwind" fn begin_query(query: *mut pg_sys::QueryDesc) {
    let is_part = NESTING.get() > 0;
    if !is_part {
        tally::hand_on_leftovers();
    }
    if !audit::is_on() {
        return;
    }
    // SAFETY: a query that is started, with its list of relations.
    unsafe {
        let entries = relations::members((*(*query).plannedstmt).rtable);
        let relations = entries.filter_map(|entry| {
            let entry = &*entry.cast::<pg_sys::RangeTblEntry>();
            (entry.rtekind == pg_sys::RTEKind::RTE_RELATION).then_some(entry.relid)
        });
        if !is_part {
            audit::begin();
        }
        audit::add_relations(relations);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn begin_utility(statement: *mut pg_sys::Node) {
    let is_part = NESTING.get() > 0;
    if !is_part {
        tally::hand_on_leftovers();
    }
    // SAFETY: the tag says what a node is. COPY locks the relation later; one that is
    // not there is no error here.
    unsafe {
        let copies = (*statement).type_ == pg_sys::NodeTag::T_CopyStmt;
        if !copies && !audit::is_on() {
            return;
        }
        let relation = match (*statement).type_ {
            pg_sys::NodeTag::T_CopyStmt => (*statement.cast::<pg_sys::CopyStmt>()).relation,
            pg_sys::NodeTag::T_IndexStmt => (*statement.cast::<pg_sys::IndexStmt>()).relation,
            pg_sys::NodeTag::T_AlterTableStmt => {
                (*statement.cast::<pg_sys::AlterTableStmt>()).relation
            }
            // Whoever begins or ends a transaction does nothing else, and there may be
            // none in which anything could be looked up.
            pg_sys::NodeTag::T_TransactionStmt => return,
            _ => core::ptr::null_mut(),
        };
        let oid = (!relation.is_null() && pg_sys::IsTransactionState()).then(|| {
            let none = core::ptr::null_mut();
            let missing_ok = pg_sys::RVROption::RVR_MISSING_OK;
            let lock = pg_sys::NoLock as pg_sys::LOCKMODE;
            pg_sys::RangeVarGetRelidExtended(relation, lock, missing_ok, None, none)
        });
        let oid = oid.filter(|oid| *oid != pg_sys::InvalidOid);
        if copies {
            log_hook::note_copy(oid.is_some_and(relations::has_encrypted_column));
        }
        let looks_up = pg_sys::IsTransactionState() && !pg_sys::IsAbortedTransactionBlockState();
        if audit::is_on() && looks_up {
            if !is_part {
                audit::begin();
            }
            audit::add_tables(oid.into_iter());
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn end_statement() {
    NESTING.set(NESTING.get().saturating_sub(1));
    if NESTING.get() == 0 {
        tally::hand_on();
    }
}

/// Runs `work`, whose statements are part of what is under way: what was counted until
/// now is not theirs.
pub(crate) fn as_part<T>(work: impl FnOnce() -> T) -> T {
    // After an error it stays too high until the (sub)transaction ends.
    NESTING.set(NESTING.get() + 1);
    let result = work();
    NESTING.set(NESTING.get().saturating_sub(1));
    result
}

/// Subtransactions begin and end inside each other.
#[pg_guard]
unsafe extern "C-unwind" fn at_subtransaction(
    event: pg_sys::SubXactEvent::Type,
    _own: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _nothing: *mut c_void,
) {
    use pg_sys::SubXactEvent as Event;
    match event {
        Event::SUBXACT_EVENT_START_SUB => {
            SAVED.borrow_mut().push((OWNERS.get(), NESTING.get()));
        }
        Event::SUBXACT_EVENT_COMMIT_SUB => {
            SAVED.borrow_mut().pop();
        }
        Event::SUBXACT_EVENT_ABORT_SUB => {
            let saved = SAVED.borrow_mut().pop();
            if let Some((owners, nesting)) = saved {
                OWNERS.set(owners);
                NESTING.set(nesting);
                // A statement of its own has failed.
                if nesting == 0 {
                    log_hook::note_copy(false);
                    tally::hand_on();
                }
            }
        }
        _ => {}
    }
}

/// A transaction ends, or that of a parallel worker.
#[pg_guard]
unsafe extern "C-unwind" fn at_end(event: pg_sys::XactEvent::Type, _nothing: *mut c_void) {
    use pg_sys::XactEvent as Event;
    match event {
        Event::XACT_EVENT_COMMIT | Event::XACT_EVENT_ABORT | Event::XACT_EVENT_PREPARE => {
            if event == Event::XACT_EVENT_ABORT {
                rotation::let_go();
            }
            OWNERS.set(0);
            NESTING.set(0);
            SAVED.take();
            search::forget_plaintexts();
            log_hook::note_copy(false);
            tally::hand_on();
            audit::end();
        }
        Event::XACT_EVENT_PARALLEL_COMMIT | Event::XACT_EVENT_PARALLEL_ABORT => tally::hand_on(),
        _ => {}
    }
}

/// Whether PostgreSQL itself is at work on what belongs to the current user, in the
/// session of somebody else: no statement runs inside of it, as one of the owner's
/// functions might.
pub(crate) fn maintains() -> bool {
    compat::in_restricted_operation() && OWNERS.get() == 0
}

/// As `plan`.
unsafe extern "C-unwind" fn relation_info(
    root: *mut pg_sys::PlannerInfo,
    relation: pg_sys::Oid,
    is_parent: bool,
    info: *mut pg_sys::RelOptInfo,
) {
    // SAFETY: as the planner calls it.
    unsafe {
        if comparisons::is_watched() {
            comparisons::hide_indexes(relation, info);
        }
        if let Some(next) = NEXT.relation.get() {
            next(root, relation, is_parent, info);
        }
    }
}

/// A statement that was prepared locks nothing anew in a transaction that has its
/// locks, and so PostgreSQL would not hear that a key was destroyed or taken back.
#[pg_guard]
unsafe extern "C-unwind" fn hear_of_changes() {
    // SAFETY: a query is about to run, which may lock something at any time, and so
    // do the same.
    unsafe { pg_sys::AcceptInvalidationMessages() };
}
