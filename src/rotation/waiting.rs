//! Waiting for somebody else, but not for ever.

use core::panic::AssertUnwindSafe;

use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;

/// What may succeed the next time, and is not worth waiting for now: a lock that others
/// keep, one who waits for us, and a row that has moved to another partition.
pub(super) const IN_PASSING: [PgSqlErrorCode; 3] = [
    PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
    PgSqlErrorCode::ERRCODE_T_R_DEADLOCK_DETECTED,
    PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
];

/// What `work` gives; None if it had to wait for one lock longer than so many
/// milliseconds. Then whatever it did is undone, as it is if it fails. It must not keep
/// what belongs to a subtransaction, like the pin of a buffer.
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
            .catch_others(|error| {
                pg_sys::CurrentMemoryContext = memory;
                pg_sys::RollbackAndReleaseCurrentSubTransaction();
                pg_sys::CurrentMemoryContext = memory;
                pg_sys::CurrentResourceOwner = owner;
                match &error {
                    CaughtError::PostgresError(report)
                        if IN_PASSING.contains(&report.sql_error_code()) =>
                    {
                        None
                    }
                    _ => error.rethrow(),
                }
            })
            .finally(|| pg_sys::LockTimeout = timeout)
            .execute();
        if result.is_some() {
            pg_sys::ReleaseCurrentSubTransaction();
            pg_sys::CurrentMemoryContext = memory;
            pg_sys::CurrentResourceOwner = owner;
        }
        result
    }
}
