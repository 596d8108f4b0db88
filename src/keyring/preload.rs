//! `shared_preload_libraries = 'colcrypt'`: the postmaster reads the ring when it
//! starts, the [`keeper`] at every reload, and backends have it from there.

use core::cell::Cell;

use colcrypt_core::KeyRing;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::{ACTIVE, STATE, ServerRing, Source, keeper, published};
use crate::backend_local::BackendLocal;
use crate::error::Error;
use crate::{gucs, progress, rotation, stats};

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

/// Takes what is in the environment variable out of it: no child is to inherit it, also
/// if another source wins.
pub(super) fn take_environment() {
    if is_preloaded()
        && let Some(variable) = gucs::sources().key_env
    {
        STATE.with_borrow_mut(|state| {
            let _ = state.environment.take(&variable, &mut state.parsed);
        });
    }
}

/// Reads the ring when the server starts, and says so in the log.
pub(crate) fn start() {
    if !is_preloaded() {
        return;
    }
    if let Err(error) = published::install()
        .and_then(|()| stats::install())
        .and_then(|()| progress::install())
    {
        Error::NoSharedMemory(error.to_string()).raise();
    }
    take_environment();
    STATE.with_borrow_mut(|state| {
        state.read_server();
        if let Err(error) = published::publish(&state.server) {
            state.server.ring = None;
            state.server.last_error = Some(format!("{error}."));
            state.server.why_none.clone_from(&state.server.last_error);
        }
    });
    STATE.with_borrow(|state| announce(&state.server));
    // Backends find it where it was published: what they inherited would stay with
    // them when it is in force no more.
    STATE.with_borrow_mut(|state| {
        state.server = ServerRing::default();
        state.parsed.drop_unused();
    });
    ACTIVE.ring.replace(None);
    keeper::register();
    rotation::register();
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

pub(super) fn describe(ring: &KeyRing, source: Source) -> String {
    let count = ring.keys().count();
    let keys = if count == 1 { "key" } else { "keys" };
    let (primary, source) = (ring.primary().id(), source.name());
    format!("{count} {keys}, primary {primary}, from {source}")
}

pub(super) fn warn_of_dev_mode(source: Source) {
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

/// Locks the memory for keys: a process that was forked does not inherit the locks.
pub(super) fn lock_memory() {
    // SAFETY: reads a variable that is set when the process starts.
    let process = unsafe { pg_sys::MyProcPid };
    if PRELOAD.locked_by.replace(process) != process {
        colcrypt_memory::lock_again();
    }
}
