//! Waiting for somebody else, but not for ever.

use core::panic::AssertUnwindSafe;

use pgrx::prelude::*;

/// What `work` gives; None if it had to wait for one lock longer than so many
/// milliseconds. Then whatever it did is undone.
pub(super) fn at_most<T>(milliseconds: i32, work: impl FnOnce() -> T) -> Option<T> {
    // SAFETY: a subtransaction, as PL/pgSQL makes one for a block that handles errors
    // (exec_stmt_block() of pl_exec.c); its end puts memory and resources back.
    unsafe {
        let (memory, owner) = (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner);
        let timeout = pg_sys::LockTimeout;
        pg_sys::BeginInternalSubTransaction(core::ptr::null());
        pg_sys::CurrentMemoryContext = memory;
        pg_sys::LockTimeout = milliseconds;
        let result = PgTryBuilder::new(AssertUnwindSafe(|| Some(work())))
            .catch_when(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, |_| None)
            .finally(|| pg_sys::LockTimeout = timeout)
            .execute();
        if result.is_some() {
            pg_sys::ReleaseCurrentSubTransaction();
        } else {
            pg_sys::RollbackAndReleaseCurrentSubTransaction();
        }
        pg_sys::CurrentMemoryContext = memory;
        pg_sys::CurrentResourceOwner = owner;
        result
    }
}
