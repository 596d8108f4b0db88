//! Where PostgreSQL plans and runs queries: the hooks of the search.

use core::cell::Cell;
use core::ffi::c_void;

use pgrx::prelude::*;

use super::{comparisons, prepare};
use crate::backend_local::BackendLocal;
use crate::gucs::{self, Access};
use crate::{compat, managed_keys};

struct Next {
    relation: Cell<pg_sys::get_relation_info_hook_type>,
    planner: Cell<pg_sys::planner_hook_type>,
    run: Cell<pg_sys::ExecutorRun_hook_type>,
}

static NEXT: BackendLocal<Next> = BackendLocal::new(Next {
    relation: Cell::new(None),
    planner: Cell::new(None),
    run: Cell::new(None),
});

/// How many queries run inside each other.
static DEPTH: BackendLocal<Cell<u32>> = BackendLocal::new(Cell::new(0));

/// Installs the hooks.
pub(super) fn install() {
    // SAFETY: hooks are set when a library is loaded, in the only thread.
    unsafe {
        NEXT.relation.set(pg_sys::get_relation_info_hook);
        pg_sys::get_relation_info_hook = Some(relation_info);
        pg_sys::RegisterXactCallback(Some(at_end), core::ptr::null_mut());
        NEXT.planner.set(pg_sys::planner_hook);
        pg_sys::planner_hook = Some(plan);
        NEXT.run.set(pg_sys::ExecutorRun_hook);
        pg_sys::ExecutorRun_hook = Some(run);
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
        match NEXT.planner.get() {
            Some(next) => next(query, text, options, parameters),
            None => compat::standard_planner(query, text, options, parameters),
        }
    }
}

/// As `plan`.
unsafe extern "C-unwind" fn run(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
    execute_once: bool,
) {
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
        // After an error it stays too high until the transaction ends.
        DEPTH.set(DEPTH.get() + 1);
        match NEXT.run.get() {
            Some(next) => next(query, direction, count, execute_once),
            None => compat::standard_executor_run(query, direction, count, execute_once),
        }
        DEPTH.set(DEPTH.get().saturating_sub(1));
    }
}

unsafe extern "C-unwind" fn at_end(event: pg_sys::XactEvent::Type, _: *mut c_void) {
    use pg_sys::XactEvent as Event;
    if [
        Event::XACT_EVENT_COMMIT,
        Event::XACT_EVENT_ABORT,
        Event::XACT_EVENT_PREPARE,
    ]
    .contains(&event)
    {
        DEPTH.set(0);
    }
}

/// Whether an index is being built for somebody who may compare everything, by the
/// owner of the table, who may not: PostgreSQL builds as the owner. No query runs
/// inside of it, as one of the owner's functions might.
pub(super) fn builds_for_another() -> bool {
    // SAFETY: reads the state of this backend.
    let restricted = unsafe { pg_sys::InSecurityRestrictedOperation() };
    restricted
        && DEPTH.get() == 0
        && gucs::access() == Access::Full
        // SAFETY: as above.
        && unsafe { pg_sys::superuser_arg(pg_sys::GetOuterUserId()) }
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
