//! `shared_preload_libraries = 'colcrypt'`: the postmaster reads the ring, at its start
//! and at every reload, and its children have it from there.

use core::cell::Cell;

use colcrypt_core::KeyRing;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::server::{Run, Settings};
use super::{ACTIVE, STATE, ServerRing, Source, published, setting};
use crate::backend_local::BackendLocal;
use crate::error::Error;
use crate::{gucs, stats};

struct Preload {
    /// Whether the library is loaded by `shared_preload_libraries`. Backends inherit
    /// it when they are forked.
    preloaded: Cell<bool>,
    /// The process that has last locked the memory for keys.
    locked_by: Cell<i32>,
}

static PRELOAD: BackendLocal<Preload> = BackendLocal::new(Preload {
    preloaded: Cell::new(false),
    locked_by: Cell::new(0),
});

/// Notes whether the library is loaded by `shared_preload_libraries`.
pub(crate) fn note_preload() {
    // SAFETY: reads a variable of the postmaster or backend.
    let preloaded = unsafe { pg_sys::process_shared_preload_libraries_in_progress };
    PRELOAD.preloaded.set(preloaded);
}

/// Whether the library is loaded by `shared_preload_libraries`.
pub(crate) fn is_preloaded() -> bool {
    PRELOAD.preloaded.get()
}

fn is_postmaster() -> bool {
    // SAFETY: reads variables that are set when the process starts.
    unsafe { pg_sys::IsPostmasterEnvironment && !pg_sys::IsUnderPostmaster }
}

/// Whether this process has the ring from its postmaster. Where the file is named on
/// the command line, the postmaster is not told of reloads: then each process reads it.
pub(super) fn takes_published() -> bool {
    is_preloaded()
        && !is_postmaster()
        && published::generation() > 0
        && !gucs::key_file_is_on_command_line()
}

/// Reads the ring when the server starts, and says so in the log.
pub(crate) fn start() {
    if !is_preloaded() {
        return;
    }
    if let Err(error) = published::install().and_then(|()| stats::install()) {
        Error::NoSharedMemory(error.to_string()).raise();
    }
    // Also if another source wins: no child is to inherit it.
    if let Some(variable) = gucs::sources().key_env {
        STATE.with_borrow_mut(|state| state.environment.take(&variable).is_some());
    }
    read(Run::Yes);
    STATE.with_borrow(|state| announce(&state.server));
}

fn announce(server: &ServerRing) {
    match (&server.ring, server.source) {
        (Some(ring), Some(source)) => {
            warn_of_dev_mode(source);
            let ring = describe(ring, source);
            pgrx::log!("colcrypt: encryption enabled, {ring}");
        }
        _ => {
            let error = Error::NotLoaded {
                reason: server.why_none.clone(),
                required: gucs::require_key(),
            };
            let level = match (gucs::require_key(), &server.last_error) {
                (true, _) => PgLogLevel::FATAL,
                (false, Some(_)) => PgLogLevel::WARNING,
                (false, None) => PgLogLevel::LOG,
            };
            ErrorReport::from(error).report(level);
        }
    }
}

fn describe(ring: &KeyRing, source: Source) -> String {
    let count = ring.keys().count();
    let keys = if count == 1 { "key" } else { "keys" };
    let (primary, source) = (ring.primary().id(), source.name());
    format!("{count} {keys}, primary {primary}, from {source}")
}

fn warn_of_dev_mode(source: Source) {
    if source == Source::DevMode {
        ErrorReport::new(
            PgSqlErrorCode::ERRCODE_WARNING,
            "colcrypt: dev_mode has made a random encryption key, because none is configured",
            "colcrypt",
        )
        .set_detail("What is encrypted now cannot be read after the next start of the server.")
        .report(PgLogLevel::WARNING);
    }
}

/// To be called when a source was assigned: at every reload, for those that are set
/// in a configuration file.
pub(super) fn reload_if_postmaster(run: Run) {
    if !is_preloaded() || !is_postmaster() || !setting::are_defined() {
        return;
    }
    let ids = || {
        STATE.with_borrow(|state| {
            let ring = state.server.ring.as_ref();
            ring.map(|ring| ring.keys().map(colcrypt_core::Key::id).collect::<Vec<_>>())
        })
    };
    let before = ids();
    read(run);
    STATE.with_borrow(|state| {
        if let Some(reason) = &state.server.last_error {
            log_failure(reason);
        }
    });
    if before != ids() {
        STATE.with_borrow(|state| announce_change(&state.server));
    }
}

fn announce_change(server: &ServerRing) {
    match (&server.ring, server.source) {
        (Some(ring), Some(source)) => {
            warn_of_dev_mode(source);
            let ring = describe(ring, source);
            pgrx::log!("colcrypt: key ring reloaded, {ring}");
        }
        _ => pgrx::log!("colcrypt: no key ring is configured any more"),
    }
}

/// Says that the ring could not be read again.
pub(super) fn log_failure(reason: &str) {
    pgrx::log!("colcrypt: key ring not reloaded, the old one stays in force: {reason}");
}

/// Reads the sources in the postmaster, and shows its children what it has found.
fn read(run: Run) {
    let settings = Settings::now(true);
    STATE.with_borrow_mut(|state| {
        state.read_server(&settings, run);
        if let Err(error) = published::publish(&state.server) {
            state.server.ring = None;
            state.server.source = None;
            state.server.why_none = Some(format!("{error}."));
            state.server.last_error = state.server.why_none.clone();
            // Without a ring it is small enough.
            let _ = published::publish(&state.server);
        }
        state.server.generation = published::generation();
    });
    ACTIVE.ring.replace(None);
    STATE.with_borrow_mut(|state| state.parsed.drop_unused());
}

/// Locks the memory for keys: a process that was forked does not inherit the locks.
pub(super) fn lock_memory() {
    // SAFETY: reads a variable that is set when the process starts.
    let process = unsafe { pg_sys::MyProcPid };
    if PRELOAD.locked_by.replace(process) != process {
        colcrypt_memory::lock_again();
    }
}
