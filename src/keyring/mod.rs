//! The key ring of this backend: where it comes from, when it is read again,
//! and what a session adds to it.
//!
//! No PostgreSQL function that can raise an error is called while the state is
//! borrowed.

mod command;
mod environment;
mod keeper;
mod parsed;
mod preload;
mod published;
mod server;
mod setting;

use core::cell::{Cell, RefCell};
use core::ffi::CStr;
use std::rc::Rc;

use colcrypt_core::{Key, KeyId, KeyRing, RingKey};
use pgrx::prelude::*;

use crate::backend_local::BackendLocal;
use crate::compat::HeldInterrupts;
use crate::error::Error;
use parsed::Parsed;
use server::{Environment, ServerRing, ServerSetting};

pub(crate) use preload::{is_preloaded, note_preload, start};
pub(crate) use server::Source;
pub(crate) use setting::{Origin, assign_setting, check_setting, note_defined, setting_ids};

/// The keys in force: the session's in front of the server's.
pub(crate) struct ActiveRing {
    session: Option<Rc<KeyRing>>,
    server: Option<Rc<KeyRing>>,
    /// Where the server's ring comes from.
    source: Option<Source>,
    /// Why there is no server ring.
    reason: Option<String>,
    /// Another number than any ring before it in this backend.
    generation: u64,
}

impl ActiveRing {
    /// The key that a new value is sealed under.
    ///
    /// # Errors
    /// [`Error::NoKeyRing`].
    pub(crate) fn primary(&self) -> Result<&Key, Error> {
        let ring = self.session.as_ref().or(self.server.as_ref());
        ring.map(|ring| ring.primary())
            .ok_or_else(|| Error::NoKeyRing {
                reason: self.reason.clone(),
            })
    }

    /// The key with this id.
    ///
    /// # Errors
    /// [`Error::UnknownKey`], or [`Error::NoKeyRing`] if there is none at all.
    pub(crate) fn find(&self, id: KeyId) -> Result<&Key, Error> {
        self.get(id).ok_or_else(|| self.missing(id))
    }

    /// The key with this id, if it is in the ring.
    #[inline]
    pub(crate) fn get(&self, id: KeyId) -> Option<&Key> {
        let session = self.session.as_ref().and_then(|ring| ring.find(id));
        session.or_else(|| self.server.as_ref()?.find(id))
    }

    /// Whether new values are sealed under a key that the session brought.
    #[inline]
    pub(crate) fn is_session_s(&self) -> bool {
        self.session.is_some()
    }

    /// The id of the primary of the server's ring, if it has one.
    pub(crate) fn server_primary(&self) -> Option<KeyId> {
        self.server.as_ref().map(|ring| ring.primary().id())
    }

    /// Where the key that new values are sealed under comes from: a source of the
    /// server's, or `session`.
    pub(crate) fn source_name(&self) -> Option<&'static str> {
        match &self.session {
            Some(_) => Some("session"),
            None => self.server_source_name(),
        }
    }

    /// Whether the server's ring is a random one, which no other start of the server
    /// has.
    pub(crate) fn is_dev_mode_s(&self) -> bool {
        self.source == Some(Source::DevMode)
    }

    /// Where the server's ring comes from.
    pub(crate) fn server_source_name(&self) -> Option<&'static str> {
        self.source.map(Source::name)
    }

    /// Whether the server's ring has this key.
    pub(crate) fn server_has(&self, id: KeyId) -> bool {
        let server = self.server.as_ref();
        server.is_some_and(|ring| ring.find(id).is_some())
    }

    /// Why there is no such key.
    #[cold]
    pub(crate) fn missing(&self, id: KeyId) -> Error {
        match self.primary() {
            Ok(_) => Error::UnknownKey {
                needed: id,
                loaded: self.ids(),
                dev_mode: self.is_dev_mode_s(),
            },
            Err(no_ring) => no_ring,
        }
    }

    /// The key that wraps what all sessions share: the server's primary, or the
    /// session's where the server has none.
    ///
    /// # Errors
    /// [`Error::NoKeyRing`].
    pub(crate) fn wrapping_key(&self) -> Result<&Key, Error> {
        match &self.server {
            Some(ring) => Ok(ring.primary()),
            None => self.primary(),
        }
    }

    /// Tells this ring from those before it.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Every key, the primary first.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &Key> {
        let rings = self.session.iter().chain(&self.server);
        rings.flat_map(|ring| ring.keys())
    }

    /// Every key with its name, the primary first, and whether it is the server's.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&RingKey, bool)> {
        let session = self.session.iter().flat_map(|ring| ring.entries());
        let server = self.server.iter().flat_map(|ring| ring.entries());
        session
            .map(|key| (key, false))
            .chain(server.map(|key| (key, true)))
    }

    fn ids(&self) -> Vec<KeyId> {
        let mut ids: Vec<_> = Vec::new();
        for key in self.keys() {
            if !ids.contains(&key.id()) {
                ids.push(key.id());
            }
        }
        ids
    }
}

#[derive(Default)]
struct State {
    /// `colcrypt.key` as the session set it, or why that is refused: until the session
    /// sets or resets it, no other key may stand in.
    session: Option<Result<Rc<KeyRing>, String>>,
    /// `colcrypt.key` as the configuration has it.
    server_setting: ServerSetting,
    /// What the check hook was last shown of the configuration. While a session
    /// has a value of its own PostgreSQL does not assign what a reload brings;
    /// it is taken from here.
    candidate: Option<ServerSetting>,
    parsed: Parsed,
    environment: Environment,
    /// The server's ring as last read.
    server: ServerRing,
    /// Whether the server's sources must be read again.
    server_stale: bool,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
}

static ACTIVE: BackendLocal<Active> = BackendLocal::new(Active {
    ring: RefCell::new(None),
    seen_reload: Cell::new(0),
    seen_published: Cell::new(0),
    failed_statement: Cell::new(None),
    generation: Cell::new(0),
});

/// The ring in force and until when it is.
struct Active {
    ring: RefCell<Option<Rc<ActiveRing>>>,
    /// `PgReloadTime` when the ring was made.
    seen_reload: Cell<i64>,
    /// What the keeper had published then.
    seen_published: Cell<u64>,
    /// If there are no keys: the statement that found none. The next one looks
    /// again.
    failed_statement: Cell<Option<i64>>,
    /// How many rings there were.
    generation: Cell<u64>,
}

/// The keys in force. Cheap unless something changed.
#[inline]
pub(crate) fn current() -> Rc<ActiveRing> {
    with_current(Rc::clone)
}

/// Lends the keys in force to `work`, which does not look for them itself.
#[inline]
pub(crate) fn with_current<T>(work: impl FnOnce(&Rc<ActiveRing>) -> T) -> T {
    if !ACTIVE.is_fresh() {
        refresh();
    }
    work(ACTIVE.ring.borrow().as_ref().expect("refreshed"))
}

/// The generation of the keys in force, unless something changed. Reads nothing, and
/// does not fail.
#[inline]
pub(crate) fn known_generation() -> Option<u64> {
    ACTIVE.is_fresh().then(|| ACTIVE.generation.get())
}

impl Active {
    #[inline]
    fn is_fresh(&self) -> bool {
        // SAFETY: reads a variable that only this backend writes.
        let reload = unsafe { pg_sys::PgReloadTime };
        self.seen_reload.get() == reload
            && self.seen_published.get() == published::generation()
            && (self.failed_statement.get().is_none() || !self.failed_earlier())
            && self.ring.borrow().is_some()
    }

    /// Whether the last attempt to find a ring failed in an earlier statement.
    #[cold]
    fn failed_earlier(&self) -> bool {
        self.failed_statement.get().is_some_and(|statement| {
            // SAFETY: reads a variable of this backend.
            statement != unsafe { pg_sys::GetCurrentStatementStartTimestamp() }
        })
    }
}

/// Reads the sources again.
#[cold]
fn refresh() {
    // SAFETY: as in `is_fresh`.
    let reload = unsafe { pg_sys::PgReloadTime };
    let reloaded = ACTIVE.seen_reload.replace(reload) != reload;
    ACTIVE.seen_published.set(published::generation());
    let (mut active, failure) = STATE.with_borrow_mut(|state| {
        let failure = state.refresh_server(reloaded);
        (state.activate(), failure)
    });
    active.generation = ACTIVE.generation.get() + 1;
    ACTIVE.generation.set(active.generation);
    let active = Rc::new(active);
    if let Some(reason) = failure {
        let _held = HeldInterrupts::hold();
        pgrx::log!("colcrypt: key ring not reloaded, the old one stays in force: {reason}");
    }
    // SAFETY: as in `failed_earlier`.
    let statement = unsafe { pg_sys::GetCurrentStatementStartTimestamp() };
    let failed_statement = active.primary().is_err().then_some(statement);
    ACTIVE.failed_statement.set(failed_statement);
    let before = ACTIVE.ring.replace(Some(Rc::clone(&active)));
    if before.is_some_and(|before| primary_id(&before) != primary_id(&active)) {
        forget_plans();
    }
    // Keys that are in no ring any more are wiped.
    STATE.with_borrow_mut(|state| state.parsed.drop_unused());
    preload::lock_memory();
}

fn primary_id(ring: &ActiveRing) -> Option<KeyId> {
    ring.primary().ok().map(Key::id)
}

impl State {
    /// Gets the server's ring anew if need be. Gives why an older one stays in force,
    /// if it is for this process to say.
    fn refresh_server(&mut self, reloaded: bool) -> Option<String> {
        if published::generation() > 0 {
            if self.server.generation != published::generation()
                && let Some(server) = published::take()
            {
                self.server = server;
            }
            self.server_stale = false;
            return None;
        }
        if reloaded && self.session.is_some() {
            match self.candidate.take() {
                None | Some(ServerSetting::Refused(_)) => {}
                Some(setting) => {
                    self.server_setting = setting;
                }
            }
        }
        // A session that sets a key of its own does not make the server's file
        // be read again: that is for a reload to do.
        if !(reloaded || self.server_stale || self.server.ring.is_none()) {
            return None;
        }
        self.read_server();
        let failure = self.server.last_error.clone();
        failure.filter(|_| self.server.ring.is_some())
    }

    fn read_server(&mut self) {
        self.server_stale = false;
        self.server.read(
            &self.server_setting,
            &mut self.environment,
            &mut self.parsed,
        );
    }

    /// What the configuration file says now of `colcrypt.key`, as the check hook was
    /// shown it: a value that is refused is not assigned, and one that never was is not
    /// taken back.
    fn take_configured_key(&mut self) {
        match self.candidate.take() {
            Some(setting) => self.server_setting = setting,
            None if !setting::is_on_command_line() => self.server_setting = ServerSetting::Unset,
            None => {}
        }
    }

    /// The keys in force.
    fn activate(&self) -> ActiveRing {
        match &self.session {
            // The server's keys must not stand in for the session's.
            Some(Err(error)) => ActiveRing {
                session: None,
                server: None,
                source: None,
                reason: Some(format!("colcrypt.key of the session: {error}.")),
                generation: 0,
            },
            session => ActiveRing {
                session: session
                    .as_ref()
                    .and_then(|ring| ring.as_ref().ok())
                    .cloned(),
                server: self.server.ring.clone(),
                source: self.server.source,
                reason: self.server.why_none.clone(),
                generation: 0,
            },
        }
    }
}

/// What `colcrypt.status()` says of the server's ring.
pub(crate) struct ServerStatus {
    pub(crate) loaded_at: Option<i64>,
    pub(crate) last_error: Option<String>,
}

/// How reading the server's ring went.
pub(crate) fn server_status() -> ServerStatus {
    // What a reload has brought.
    with_current(|_| {});
    STATE.with_borrow(|state| ServerStatus {
        loaded_at: state.server.ring.as_ref().map(|_| state.server.loaded_at),
        last_error: state
            .server
            .last_error
            .clone()
            .or_else(|| state.server.why_none.clone()),
    })
}

/// Whether the library was there before any user of this session could look at
/// the settings.
fn preloaded() -> bool {
    // SAFETY: a NUL-terminated string or null, which only this backend changes.
    let session_preload = unsafe {
        pg_sys::session_preload_libraries_string
            .as_ref()
            .map(|list| CStr::from_ptr(list).to_string_lossy())
    };
    is_preloaded() || session_preload.is_some_and(|list| lists_colcrypt(&list))
}

/// Whether a list of libraries names this one, with or without a folder.
fn lists_colcrypt(list: &str) -> bool {
    list.split(',').any(|library| {
        let library = library.trim().trim_matches('"');
        let file = library.rsplit('/').next().unwrap_or(library);
        file.strip_suffix(".so").unwrap_or(file) == "colcrypt"
    })
}

/// A setting that names a source was assigned.
pub(crate) fn sources_changed() {
    STATE.with_borrow_mut(|state| state.server_stale = true);
    ACTIVE.ring.replace(None);
    forget_plans();
}

/// `colcrypt.key_env` was assigned.
pub(crate) fn environment_changed() {
    sources_changed();
    preload::take_environment();
}

/// Whether nobody notices when the configuration is reloaded.
pub(crate) fn lacks_keeper() -> bool {
    is_preloaded() && !published::has_keeper()
}

/// Makes PostgreSQL parse and plan prepared statements again: constants in them
/// were sealed under what was in force when they were parsed.
pub(crate) fn forget_plans() {
    // SAFETY: marks this backend's cached plans invalid; reads no catalog, so it
    // may be called at any time (as assign_session_replication_role() does).
    unsafe { pg_sys::ResetPlanCache() };
}
