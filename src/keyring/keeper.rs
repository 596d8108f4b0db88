//! The background worker that reads the ring again when the configuration is reloaded.
//!
//! Not the postmaster, whose hooks are told of one setting after the other, and of none
//! that stands on its command line, and which must not wait for a command. Not each
//! backend, because they would not all find the same.

use core::cell::Cell;
use std::time::Duration;

use colcrypt_core::KeyRing;
use pgrx::bgworkers::{
    BackgroundWorker, BackgroundWorkerBuilder, BgWorkerStartTime, SignalWakeFlags,
};
use pgrx::prelude::*;

use super::preload::{describe, warn_of_dev_mode};
use super::server::ServerRing;
use super::{ACTIVE, STATE, published};
use crate::backend_local::BackendLocal;

static STOPS: BackendLocal<Cell<bool>> = BackendLocal::new(Cell::new(false));

/// Has the postmaster start the worker, with everything else and again after a crash.
pub(super) fn register() {
    BackgroundWorkerBuilder::new("colcrypt key ring")
        .set_type("colcrypt key ring")
        .set_library("colcrypt")
        .set_function("colcrypt_keeper")
        .set_start_time(BgWorkerStartTime::PostmasterStart)
        .set_restart_time(Some(Duration::from_secs(1)))
        .enable_shmem_access(None)
        .load();
}

/// The worker. It has no database.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn colcrypt_keeper(_argument: pg_sys::Datum) {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    // What a command leaves behind comes to this process instead of the postmaster,
    // should that be process 1, as in a container.
    // SAFETY: changes a flag of this process.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    published::note_keeper(true);
    if let Some(server) = published::take() {
        // SAFETY: reads a variable that the postmaster has handed down.
        let missed = unsafe { pg_sys::PgReloadTime } > server.tried_at;
        STATE.with_borrow_mut(|state| state.server = server);
        if missed {
            // There was a reload while there was no worker.
            reload();
        }
    }
    // Each takes the news of a signal away.
    while !is_to_stop() && BackgroundWorker::wait_latch(None) {
        if BackgroundWorker::sighup_received() {
            reload();
        }
    }
    published::note_keeper(false);
    // Whoever returns is not started again: nor would he be who was told to end by
    // somebody else than the postmaster.
    // SAFETY: ends the process as PostgreSQL's own workers do.
    unsafe { pg_sys::proc_exit(1) };
}

/// Whether the worker is to end. Also asked while it waits for a command.
pub(super) fn is_to_stop() -> bool {
    // SAFETY: read variables and the state of this process.
    let (is_worker, is_orphan) = unsafe {
        let is_worker = !pg_sys::MyBgworkerEntry.is_null();
        (is_worker, libc::getppid() != pg_sys::PostmasterPid)
    };
    if is_worker && (is_orphan || BackgroundWorker::sigterm_received()) {
        // Asking takes the news away.
        STOPS.set(true);
    }
    STOPS.get()
}

fn reload() {
    STATE.with_borrow_mut(|state| state.candidate = None);
    // SAFETY: as every process does when it is told to.
    unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
    let line = STATE.with_borrow_mut(|state| {
        state.take_configured_key();
        state.read_server();
        if let Err(error) = published::publish(&state.server) {
            state.server.last_error = Some(format!("{error}."));
        }
        state.server.generation = published::generation();
        ACTIVE.ring.replace(None);
        state.parsed.drop_unused();
        say(&state.server)
    });
    pgrx::log!("colcrypt: {line}");
    STATE.with_borrow(|state| state.server.source.map(warn_of_dev_mode));
}

/// How the reload went. There is one line for each.
fn say(server: &ServerRing) -> String {
    let now = |ring: &KeyRing| match server.source {
        Some(source) => describe(ring, source),
        None => String::new(),
    };
    match (&server.ring, &server.last_error) {
        (Some(ring), None) => format!("key ring reloaded, {}", now(ring)),
        (Some(_), Some(error)) => {
            format!("key ring not reloaded, the old one stays in force: {error}")
        }
        (None, Some(error)) => format!("key ring not reloaded, there is none: {error}"),
        (None, None) => {
            let why = server.why_none.as_deref().unwrap_or("no source is set");
            format!("key ring reloaded, there is none any more: {why}")
        }
    }
}
