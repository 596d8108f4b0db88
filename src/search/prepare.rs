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
/// functions that a query compares with, and so loaded this library. Whether a
/// parallel query compares encrypted values is not asked: that can be deep inside
/// of arrays, rows and domains. A key that is made too early is in the way only of
/// one that is restored or replicated into the database.
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
            before_parallel_query();
        }
        match NEXT.get() {
            Some(next) => next(query, direction, count, execute_once),
            None => compat::standard_executor_run(query, direction, count, execute_once),
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn before_parallel_query() {
    Error::unwrap_or_raise(managed_keys::prepare_index_key());
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
