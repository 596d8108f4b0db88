//! The background worker of a rotation, and the functions that start and stop it.

use core::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use pgrx::bgworkers::{BackgroundWorker, BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::pg_sys::panic::{CaughtError, ErrorReport};
use pgrx::prelude::*;

use super::job::{self, Asked, Job};
use super::online::{self, Next, RETRY};
use super::{target, waiting};
use crate::compat;
use crate::error::Error;
use crate::gucs;
use crate::relations::relation_name;
use crate::tally;

/// How often in a row a batch that has failed in passing is tried again.
const MOST_RETRIES: u32 = 10;
/// How long it takes at most until somebody's wish is heard.
const NAP: Duration = Duration::from_secs(1);

/// What became of a rotation that another session is at work on.
const TAKEN: &str = "taken up elsewhere";

/// Starts a worker. It begins its work once this transaction is committed.
///
/// # Errors
/// [`Error::NoWorker`].
pub(super) fn start(id: i32) -> Result<(), Error> {
    // SAFETY: read the state of this backend.
    let (database, transaction) =
        unsafe { (pg_sys::MyDatabaseId, pg_sys::GetTopTransactionIdIfAny()) };
    BackgroundWorkerBuilder::new(&format!("colcrypt rotation {id}"))
        .set_type("colcrypt rotation")
        .set_library("colcrypt")
        .set_function("colcrypt_rotation_worker")
        .set_argument(Some(pg_sys::Datum::from(id)))
        .set_extra(&format!("{} {transaction}", database.to_u32()))
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        // What was interrupted is taken up by the launcher, or by whoever asks for it.
        .set_restart_time(None)
        .enable_spi_access()
        .load_dynamic()
        .map_err(|_| Error::NoWorker)?;
    Ok(())
}

/// The worker.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn colcrypt_rotation_worker(argument: pg_sys::Datum) {
    let id = argument.value() as i32;
    compat::handle_worker_signals();
    let extra = BackgroundWorker::get_extra();
    let mut numbers = extra.split(' ').map(|number| number.parse().unwrap_or(0));
    let database: u32 = numbers.next().unwrap_or(0);
    let transaction: u32 = numbers.next().unwrap_or(0);
    BackgroundWorker::connect_worker_to_spi_by_oid(Some(database.into()), None);
    gucs::work_by_default();
    // SAFETY: asks whether a transaction is under way.
    while transaction != 0 && unsafe { pg_sys::TransactionIdIsInProgress(transaction.into()) } {
        sleep(Duration::from_millis(100));
    }
    run(id);
}

fn run(id: i32) {
    let mut failures = 0;
    // The transaction that has asked for it may not have let go yet.
    let mut patience = 10;
    loop {
        match attempt(|| step(id)) {
            Ok(Next::Wait(time)) => {
                failures = 0;
                wait(id, time);
            }
            Ok(Next::Done) => {
                pgrx::log!("colcrypt: rotation {id} is done");
                return;
            }
            Ok(Next::Stopped(how)) if how == TAKEN && patience > 0 => {
                patience -= 1;
                sleep(Duration::from_millis(100));
            }
            Ok(Next::Stopped(how)) => {
                pgrx::log!("colcrypt: rotation {id} was {how}");
                return;
            }
            Err(failure) => {
                pgrx::log!("colcrypt: rotation {id}: {}", failure.message);
                failures += 1;
                if !waiting::IN_PASSING.contains(&failure.code) || failures > MOST_RETRIES {
                    let message = failure.message;
                    let noted =
                        attempt(|| job::change_state(id, &["running"], "failed", Some(&message)));
                    if noted.is_err() {
                        pgrx::log!("colcrypt: the error of rotation {id} could not be stored");
                    }
                    return;
                }
                sleep(RETRY);
            }
        }
    }
}

/// A batch, with the rights of who has asked for the rotation.
fn step(id: i32) -> Result<Next, Error> {
    let asked = match job::find(id) {
        Ok(asked) => asked,
        // It was rolled back, or removed since.
        Err(Error::NoRotation { .. }) => return Ok(Next::Stopped("removed".to_owned())),
        Err(error) => return Err(error),
    };
    gucs::seal_with(&asked.algorithm, &asked.write_key);
    // SAFETY: as the extension does for its tables; an abort puts it back.
    unsafe {
        let (mut user, mut security) = (pg_sys::InvalidOid, 0);
        pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut security);
        let local = pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32;
        pg_sys::SetUserIdAndSecContext(asked.role, security | local);
        let next = online::step(id);
        // It is the role's doing.
        tally::hand_on();
        pg_sys::SetUserIdAndSecContext(user, security);
        match next {
            Err(Error::RotationRuns { .. }) => Ok(Next::Stopped(TAKEN.to_owned())),
            next => next,
        }
    }
}

/// The first two characters of a SQLSTATE, as ERRCODE_TO_CATEGORY() of elog.h has them.
const CLASS: i32 = (1 << 12) - 1;
const DATA_EXCEPTION: i32 = PgSqlErrorCode::ERRCODE_DATA_EXCEPTION as i32;

/// An error that was caught.
struct Failure {
    code: PgSqlErrorCode,
    message: String,
}

/// Runs `work` in a transaction, which is aborted if it fails.
fn attempt<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Failure> {
    let transaction = AssertUnwindSafe(|| {
        let work = AssertUnwindSafe(work);
        // SAFETY: outside of a transaction; an error ends it below.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            let result = { work }.0().unwrap_or_else(|error| error.raise());
            pg_sys::PopActiveSnapshot();
            pg_sys::CommitTransactionCommand();
            pg_sys::pgstat_report_stat(true);
            Ok(result)
        }
    });
    PgTryBuilder::new(transaction)
        .catch_others(|error| {
            let (CaughtError::PostgresError(report)
            | CaughtError::ErrorReport(report)
            | CaughtError::RustPanic {
                ereport: report, ..
            }) = error;
            // SAFETY: as PostgreSQL's own workers do when they have caught an error.
            unsafe { pg_sys::AbortCurrentTransaction() };
            let code = report.sql_error_code();
            let message = if code as i32 & CLASS == DATA_EXCEPTION & CLASS {
                // Of a trigger or an expression. It may quote a value.
                "invalid data, in what a trigger or an expression makes of a row".to_owned()
            } else {
                report.message().to_owned()
            };
            Err(Failure { code, message })
        })
        .execute()
}

/// Waits between batches, or until the rotation is not to go on.
fn wait(id: i32, time: Duration) {
    let started = Instant::now();
    loop {
        let left = time.saturating_sub(started.elapsed());
        sleep(left.min(NAP));
        if left <= NAP {
            return;
        }
        let state = attempt(|| Ok(Job::load(id)?.state));
        // The next step says what has happened.
        if !state.is_ok_and(|state| state == "running") {
            return;
        }
    }
}

/// Sleeps outside of a transaction, or until there is news.
pub(super) fn sleep(time: Duration) {
    compat::sleep(Some(time));
    pgrx::check_for_interrupts!();
    // SAFETY: outside of a transaction, as PostgreSQL's own workers do.
    unsafe {
        if pg_sys::ConfigReloadPending != 0 {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

/// Whether the current user may say what becomes of a rotation.
fn check_rights(id: i32) -> Result<(), Error> {
    let Asked { relation, role, .. } = job::find(id)?;
    let name = relation_name(relation);
    // SAFETY: catalog look-ups.
    let is_own = unsafe {
        let user = pg_sys::GetUserId();
        pg_sys::superuser()
            || pg_sys::has_privs_of_role(user, role)
            || (name.is_some() && compat::owns_relation(relation))
    };
    if is_own {
        return Ok(());
    }
    let relation = name.unwrap_or_default();
    Err(Error::NotOwner { relation })
}

#[pg_extern(sql = false)]
fn colcrypt_pause_rotation(job: i32) -> Result<bool, ErrorReport> {
    compat::prevent_if_read_only(c"colcrypt.pause_rotation()");
    check_rights(job)?;
    Ok(job::change_state(job, &["running"], "paused", None)?)
}

#[pg_extern(sql = false)]
fn colcrypt_cancel_rotation(job: i32) -> Result<bool, ErrorReport> {
    compat::prevent_if_read_only(c"colcrypt.cancel_rotation()");
    check_rights(job)?;
    let unfinished = ["running", "paused", "failed"];
    Ok(job::change_state(job, &unfinished, "cancelled", None)?)
}

#[pg_extern(sql = false)]
fn colcrypt_resume_rotation(job: i32) -> Result<bool, ErrorReport> {
    compat::prevent_if_read_only(c"colcrypt.resume_rotation()");
    check_rights(job)?;
    let asked = job::find(job)?;
    if asked.encrypts {
        return Err(Error::Encryption { job }.into());
    }
    if target::is_temporary(asked.relation) {
        return Err(Error::TemporaryTable.into());
    }
    // One that was stopped a moment ago may still be about to hear of it.
    let started = Instant::now();
    while job::is_held_elsewhere(job)? {
        if asked.state == "running" || started.elapsed() > 5 * NAP {
            return Err(Error::RotationRuns { job }.into());
        }
        compat::sleep(Some(Duration::from_millis(50)));
        pgrx::check_for_interrupts!();
    }
    let unfinished = ["running", "paused", "failed"];
    let resumed = job::change_state(job, &unfinished, "running", None)?;
    if resumed {
        start(job)?;
    }
    Ok(resumed)
}
