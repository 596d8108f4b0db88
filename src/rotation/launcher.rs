//! Takes up the rotations that were interrupted by a crash or a restart: a worker that
//! looks into each database when the server has started, one after the other. Needs
//! `shared_preload_libraries`.

use std::time::Duration;

use pgrx::bgworkers::{BackgroundWorker, BackgroundWorkerBuilder, BgWorkerStartTime};
use pgrx::prelude::*;

use super::job;
use super::worker;
use crate::{compat, own_tables};

/// Has the postmaster start the launcher, when there is no recovery any more, and again
/// after a crash.
pub(crate) fn register() {
    BackgroundWorkerBuilder::new("colcrypt rotation launcher")
        .set_type("colcrypt rotation launcher")
        .set_library("colcrypt")
        .set_function("colcrypt_rotation_launcher")
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(Some(Duration::from_secs(1)))
        .enable_spi_access()
        .load();
}

/// The launcher. It sees the list of databases, and is in none.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn colcrypt_rotation_launcher(_argument: pg_sys::Datum) {
    compat::handle_worker_signals();
    BackgroundWorker::connect_worker_to_spi(None, None);
    // SAFETY: outside of a transaction; an error ends the worker.
    let databases = unsafe {
        pg_sys::StartTransactionCommand();
        let databases = compat::databases();
        pg_sys::CommitTransactionCommand();
        databases
    };
    for database in databases {
        look_into(database);
    }
    // A worker that ended would not be started again after a crash.
    loop {
        compat::sleep(None);
        pgrx::check_for_interrupts!();
    }
}

/// Has a worker look for rotations in a database, and waits for it.
fn look_into(database: pg_sys::Oid) {
    // SAFETY: reads a variable of this process.
    let own_pid = unsafe { pg_sys::MyProcPid };
    let worker = BackgroundWorkerBuilder::new("colcrypt rotation search")
        .set_type("colcrypt rotation search")
        .set_library("colcrypt")
        .set_function("colcrypt_rotation_search")
        .set_argument(Some(pg_sys::Datum::from(database)))
        .set_notify_pid(own_pid)
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(None)
        .enable_spi_access()
        .load_dynamic();
    match worker {
        // However it ended.
        Ok(worker) => drop(worker.wait_for_shutdown()),
        Err(_) => pgrx::log!(
            "colcrypt: no background worker is free to look for interrupted rotations in database {}",
            database.to_u32()
        ),
    }
}

/// Starts the workers of one database.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn colcrypt_rotation_search(argument: pg_sys::Datum) {
    compat::handle_worker_signals();
    let database = (argument.value() as u32).into();
    BackgroundWorker::connect_worker_to_spi_by_oid(Some(database), None);
    // SAFETY: outside of a transaction; an error ends the worker.
    unsafe {
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        if own_tables::is_installed(c"rotation") {
            let jobs = job::left_over().unwrap_or_else(|error| error.raise());
            for id in jobs {
                pgrx::log!("colcrypt: going on with rotation {id}");
                if let Err(error) = worker::start(id) {
                    pgrx::log!("colcrypt: rotation {id}: {error}");
                }
            }
        }
        pg_sys::PopActiveSnapshot();
        pg_sys::CommitTransactionCommand();
    }
}
