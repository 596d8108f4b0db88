//! Makes the index key in time, where it will be needed and PostgreSQL lets
//! nothing be written any more: in parallel queries and parallel index builds.

use pgrx::prelude::*;

use crate::error::Error;
use crate::managed_keys;
use crate::types::datum::per_value_function;

/// To be called when a parallel query is about to run. By then the executor has
/// looked up the functions that the query compares with, and so loaded this library.
/// Whether it compares encrypted values is not asked: that can be deep inside of
/// arrays, rows and domains. A key that is made too early is in the way only of one
/// that is restored or replicated into the database.
#[pg_guard]
pub(crate) unsafe extern "C-unwind" fn before_parallel_query() {
    Error::unwrap_or_raise(managed_keys::prepare_index_key());
}

// The "options" support function of the operator classes. They have no options;
// PostgreSQL calls it when an index is made (index_opclass_options()), before a
// parallel build begins.
per_value_function!("encrypted_index_options", |call| {
    // SAFETY: declared as (internal), a local_relopts. PostgreSQL keeps what is
    // made of it as a varlena, so there must be room for a length word.
    unsafe { pg_sys::init_local_reloptions(call.internal(0), pg_sys::VARHDRSZ) };
    Error::unwrap_or_raise(managed_keys::prepare_index_key());
    pg_sys::Datum::null()
});
