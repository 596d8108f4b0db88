//! Makes the index key in time, where it will be needed and PostgreSQL lets
//! nothing be written any more: in parallel queries and parallel index builds.

use core::cell::Cell;

use pgrx::prelude::*;

use crate::backend_local::BackendLocal;
use crate::error::Error;
use crate::types::datum::per_value_function;
use crate::{compat, managed_keys};

type RunHook = pg_sys::ExecutorRun_hook_type;

static NEXT: BackendLocal<Cell<RunHook>> = BackendLocal::new(Cell::new(None));

/// Installs the hook. By the time it is asked, the executor has looked up the
/// functions that a query compares with, and so loaded this library.
pub(crate) fn install() {
    // SAFETY: hooks are set when a library is loaded, in the only thread.
    unsafe {
        NEXT.set(pg_sys::ExecutorRun_hook);
        pg_sys::ExecutorRun_hook = Some(executor_run);
    }
}

/// Passes on unguarded: this frame has nothing that an error could leave behind.
unsafe extern "C-unwind" fn executor_run(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
    execute_once: bool,
) {
    // SAFETY: PostgreSQL passes a query that is started.
    unsafe {
        if (*(*query).plannedstmt).parallelModeNeeded {
            before_parallel_query(query);
        }
        match NEXT.get() {
            Some(next) => next(query, direction, count, execute_once),
            None => compat::standard_executor_run(query, direction, count, execute_once),
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn before_parallel_query(query: *mut pg_sys::QueryDesc) {
    // SAFETY: the query is started, its relations are open and locked.
    if unsafe { reads_encrypted_column(query) } {
        Error::unwrap_or_raise(managed_keys::prepare_index_key());
    }
}

/// # Safety
/// The query is started.
unsafe fn reads_encrypted_column(query: *mut pg_sys::QueryDesc) -> bool {
    // SAFETY: by the caller's word the executor's arrays are filled.
    let relations = unsafe {
        let executor = (*query).estate;
        if (*executor).es_relations.is_null() {
            return false;
        }
        let count = (*executor).es_range_table_size as usize;
        core::slice::from_raw_parts((*executor).es_relations, count)
    };
    let encrypted_text = compat::encrypted_text_oid();
    let mut open = relations.iter().filter(|relation| !relation.is_null());
    open.any(|relation| {
        // SAFETY: an open relation has a descriptor with as many columns as it says.
        unsafe {
            let descriptor = (**relation).rd_att;
            let columns = (*descriptor).attrs.as_slice((*descriptor).natts as usize);
            columns
                .iter()
                .any(|column| column.atttypid == encrypted_text && !column.attisdropped)
        }
    })
}

// The "options" support function of the operator classes. They have no options;
// PostgreSQL calls it when an index is made (index_opclass_options()), before a
// parallel build begins.
per_value_function!("encrypted_text_index_options", |call| {
    // SAFETY: declared as (internal), a local_relopts. PostgreSQL keeps what is
    // made of it as a varlena, so there must be room for a length word.
    unsafe { pg_sys::init_local_reloptions(call.internal(0), pg_sys::VARHDRSZ) };
    Error::unwrap_or_raise(managed_keys::prepare_index_key());
    pg_sys::Datum::null()
});
