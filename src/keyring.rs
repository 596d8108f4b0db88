//! The key ring of this backend: where it comes from, when it is read again,
//! and what a session adds to it.
//!
//! No PostgreSQL function that can raise an error is called while the state is
//! borrowed.

use core::cell::{Cell, RefCell};
use core::ffi::CStr;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use colcrypt_core::{
    Key, KeyId, KeyRing, RingKey, SecretText, SourceError, read_environment, read_key_file,
};
use pgrx::prelude::*;

use crate::backend_local::BackendLocal;
use crate::error::Error;
use crate::gucs;

/// Whose a value of `colcrypt.key` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Origin {
    /// The built-in default: not set.
    Default,
    /// The configuration file or the server's command line.
    Server,
    /// `SET`, `set_config()`, or the client's connection options.
    Session,
}

impl Origin {
    pub(crate) fn from_tag(tag: u8) -> Self {
        match tag {
            1 => Self::Server,
            2 => Self::Session,
            _ => Self::Default,
        }
    }
}

/// Why a value of `colcrypt.key` is refused.
pub(crate) struct Refusal {
    pub(crate) code: PgSqlErrorCode,
    pub(crate) message: &'static str,
    pub(crate) detail: String,
    pub(crate) hint: &'static str,
}

/// The keys in force: the session's in front of the server's.
pub(crate) struct ActiveRing {
    session: Option<Rc<KeyRing>>,
    server: Option<Rc<KeyRing>>,
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

/// What the configuration says of `colcrypt.key`.
#[derive(Default, PartialEq, Eq)]
enum ServerSetting {
    #[default]
    Unset,
    /// Used only with preload, which is asked when the ring is read.
    Text(SecretText),
    /// Refused when the setting was defined; there is no older one to fall back
    /// on.
    Refused(String),
}

#[derive(Default)]
struct State {
    /// `colcrypt.key` as the session set it.
    session: Option<SecretText>,
    /// Why the value that the session had set before the library was loaded is
    /// refused. Until it sets or resets it, no other key may stand in.
    session_refused: Option<String>,
    /// `colcrypt.key` as the configuration has it.
    server_setting: ServerSetting,
    /// What the check hook was last shown of the configuration. While a session
    /// has a value of its own PostgreSQL does not assign what a reload brings;
    /// it is taken from here.
    candidate: Option<ServerSetting>,
    /// Rings by their text, so that a passphrase is not derived twice.
    parsed: Vec<(SecretText, Rc<KeyRing>)>,
    /// The server's ring as last read without error.
    server: Option<Rc<KeyRing>>,
    /// Whether the server's sources must be read again.
    server_stale: bool,
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
    static SHARED_PRELOAD: Cell<bool> = const { Cell::new(false) };
    /// Whether the settings are still being defined: values from before are
    /// judged then.
    static DEFINING: Cell<bool> = const { Cell::new(true) };
}

static ACTIVE: BackendLocal<Active> = BackendLocal::new(Active {
    ring: RefCell::new(None),
    seen_reload: Cell::new(0),
    failed_statement: Cell::new(None),
    generation: Cell::new(0),
});

/// The ring in force and until when it is.
struct Active {
    ring: RefCell<Option<Rc<ActiveRing>>>,
    /// `PgReloadTime` when the ring was made.
    seen_reload: Cell<i64>,
    /// If there are no keys: the statement that found none. The next one looks
    /// again.
    failed_statement: Cell<Option<i64>>,
    /// How many rings there were.
    generation: Cell<u64>,
}

/// Rings that are kept parsed: the server's, the session's, and two that `SET
/// LOCAL` may come back to.
const PARSED_RINGS: usize = 4;

/// Notes whether the library is loaded by `shared_preload_libraries`. Backends
/// inherit the note when they are forked.
pub(crate) fn note_preload() {
    // SAFETY: reads a variable of the postmaster or backend.
    SHARED_PRELOAD.set(unsafe { pg_sys::process_shared_preload_libraries_in_progress });
}

/// Notes that the settings are defined.
pub(crate) fn note_defined() {
    DEFINING.set(false);
}

fn is_worker() -> bool {
    // SAFETY: reads a variable of this backend.
    unsafe { pg_sys::ParallelWorkerNumber >= 0 }
}

/// The keys in force. Cheap unless something changed.
#[inline]
pub(crate) fn current() -> Rc<ActiveRing> {
    with_current(Rc::clone)
}

/// Lends the keys in force to `work`, which does not look for them itself.
#[inline]
pub(crate) fn with_current<T>(work: impl FnOnce(&Rc<ActiveRing>) -> T) -> T {
    // SAFETY: reads a variable that only this backend writes.
    let reload = unsafe { pg_sys::PgReloadTime };
    let fresh = ACTIVE.seen_reload.get() == reload
        && (ACTIVE.failed_statement.get().is_none() || !ACTIVE.failed_earlier())
        && ACTIVE.ring.borrow().is_some();
    if !fresh {
        refresh(reload);
    }
    work(ACTIVE.ring.borrow().as_ref().expect("refreshed"))
}

impl Active {
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
fn refresh(reload: i64) {
    let reloaded = ACTIVE.seen_reload.replace(reload) != reload;
    let sources = Sources::from_settings();
    let (mut active, failure) = STATE.with_borrow_mut(|state| state.refresh(&sources, reloaded));
    active.generation = ACTIVE.generation.get() + 1;
    ACTIVE.generation.set(active.generation);
    let active = Rc::new(active);
    if let Some(reason) = failure {
        // A message ends with a look at pending interrupts, which would leave this
        // function, and those above it, by a jump.
        // SAFETY: this backend's own counter, as HOLD_INTERRUPTS() has it.
        unsafe { pg_sys::InterruptHoldoffCount += 1 };
        pgrx::log!("colcrypt: key ring not reloaded, the old one stays in force: {reason}");
        // SAFETY: as above.
        unsafe { pg_sys::InterruptHoldoffCount -= 1 };
    }
    // SAFETY: as in `failed_earlier`.
    let statement = unsafe { pg_sys::GetCurrentStatementStartTimestamp() };
    let failed_statement = active.primary().is_err().then_some(statement);
    ACTIVE.failed_statement.set(failed_statement);
    let before = ACTIVE.ring.replace(Some(Rc::clone(&active)));
    if before.is_some_and(|before| primary_id(&before) != primary_id(&active)) {
        forget_plans();
    }
}

fn primary_id(ring: &ActiveRing) -> Option<KeyId> {
    ring.primary().ok().map(Key::id)
}

/// The settings that name sources, copied so that the state can be borrowed.
struct Sources {
    key_file: Option<std::ffi::CString>,
    key_env: Option<std::ffi::CString>,
    server_user: u32,
    preloaded: bool,
}

impl Sources {
    fn from_settings() -> Self {
        Self {
            key_file: gucs::key_file(),
            key_env: gucs::key_env(),
            // SAFETY: geteuid has no precondition and cannot fail.
            server_user: unsafe { libc::geteuid() },
            preloaded: preloaded(),
        }
    }
}

impl State {
    fn assign_server(&mut self, setting: ServerSetting) {
        if self.server_setting != setting {
            self.server_setting = setting;
            self.server_stale = true;
        }
    }

    /// The ring of now, and why the server's was not replaced, if it was not.
    fn refresh(&mut self, sources: &Sources, reloaded: bool) -> (ActiveRing, Option<String>) {
        if reloaded && self.session.is_some() {
            match self.candidate.take() {
                None | Some(ServerSetting::Refused(_)) => {}
                Some(setting) => self.assign_server(setting),
            }
        }
        let mut failure = None;
        let mut reason = None;
        // A session that sets a key of its own does not make the server's file
        // be read again: that is for a reload to do.
        if reloaded || self.server_stale || self.server.is_none() {
            match self.read_server_ring(sources) {
                Ok(ring) => self.server = Some(ring),
                Err(NotLoaded::Unset(why)) => {
                    self.server = None;
                    reason = why;
                }
                Err(NotLoaded::Broken(why)) => match self.server {
                    Some(_) => failure = Some(why),
                    None => reason = Some(why),
                },
            }
            self.server_stale = false;
        }
        let session = match self.session.take() {
            None => match &self.session_refused {
                None => Ok(None),
                Some(reason) => Err(reason.clone()),
            },
            Some(text) => {
                let ring = self.parse(&text);
                self.session = Some(text);
                ring.map(Some).map_err(|error| error.to_string())
            }
        };
        let active = match session {
            Ok(session) => ActiveRing {
                session,
                server: self.server.clone(),
                reason,
                generation: 0,
            },
            // The server's keys must not stand in for the session's.
            Err(error) => ActiveRing {
                session: None,
                server: None,
                reason: Some(format!("colcrypt.key of the session: {error}.")),
                generation: 0,
            },
        };
        (active, failure)
    }

    /// The server's ring from the first source that is set.
    fn read_server_ring(&mut self, sources: &Sources) -> Result<Rc<KeyRing>, NotLoaded> {
        let mut passed_over = false;
        match &self.server_setting {
            ServerSetting::Unset => {}
            ServerSetting::Text(_) if !sources.preloaded => passed_over = true,
            ServerSetting::Text(text) => {
                let text = SecretText::new(text.expose().to_owned());
                return self.load("colcrypt.key", &text);
            }
            ServerSetting::Refused(reason) => return Err(NotLoaded::Broken(reason.clone())),
        }
        if let Some(path) = &sources.key_file {
            let name = format!("colcrypt.key_file \"{}\"", path.to_string_lossy());
            let path = Path::new(OsStr::from_bytes(path.to_bytes()));
            return match read_key_file(path, sources.server_user) {
                Ok(text) => self.load(&name, &text),
                Err(error) => Err(broken_source(&name, &error)),
            };
        }
        if let Some(variable) = &sources.key_env {
            let name = format!("environment variable {}", variable.to_string_lossy());
            match read_environment(&variable.to_string_lossy()) {
                Ok(Some(text)) => return self.load(&name, &text),
                Ok(None) => {}
                Err(error) => return Err(broken_source(&name, &error)),
            }
        }
        Err(NotLoaded::Unset(passed_over.then(|| {
            "colcrypt.key in the configuration is not used, because without \
             shared_preload_libraries or session_preload_libraries = 'colcrypt' any user could \
             have seen it."
                .to_owned()
        })))
    }

    fn load(&mut self, source: &str, text: &SecretText) -> Result<Rc<KeyRing>, NotLoaded> {
        self.parse(text)
            .map_err(|error| NotLoaded::Broken(format!("{source}: {error}.")))
    }

    fn parse(&mut self, text: &SecretText) -> Result<Rc<KeyRing>, colcrypt_core::RingTextError> {
        if let Some((_, ring)) = self.parsed.iter().find(|(known, _)| known == text) {
            return Ok(Rc::clone(ring));
        }
        let ring = Rc::new(KeyRing::parse(text.expose())?);
        if self.parsed.len() == PARSED_RINGS {
            self.parsed.remove(0);
        }
        let text = SecretText::new(text.expose().to_owned());
        self.parsed.push((text, Rc::clone(&ring)));
        Ok(ring)
    }
}

/// Why there is no ring from the sources.
enum NotLoaded {
    /// No source is set.
    Unset(Option<String>),
    /// The first source that is set gives no ring.
    Broken(String),
}

fn broken_source(name: &str, error: &SourceError) -> NotLoaded {
    NotLoaded::Broken(format!("{name}: {error}."))
}

/// The check hook of `colcrypt.key`.
///
/// # Errors
/// [`Refusal`], without what was refused.
pub(crate) fn check_setting(
    text: Option<&CStr>,
    source: pg_sys::GucSource::Type,
) -> Result<Origin, Refusal> {
    let origin = origin(source)?;
    let text = match text {
        Some(text) if !text.is_empty() => text,
        _ => {
            if origin == Origin::Server {
                offer(ServerSetting::Unset);
            }
            return Ok(origin);
        }
    };
    // A parallel worker takes what its leader has already judged, and without
    // preload nobody will use the server's.
    if is_worker() || (origin == Origin::Server && !preloaded()) {
        if origin == Origin::Server {
            offer(ServerSetting::Text(SecretText::new(
                text.to_string_lossy().into_owned(),
            )));
        }
        return Ok(origin);
    }
    let parsed = match text.to_str() {
        Ok(text) => {
            let text = SecretText::new(text.to_owned());
            STATE.with_borrow_mut(|state| {
                let result = state.parse(&text);
                result.map(|_| text).map_err(|error| error.to_string())
            })
        }
        Err(_) => Err("the key ring is not UTF-8".to_owned()),
    };
    match parsed {
        Ok(text) => {
            if origin == Origin::Server {
                offer(ServerSetting::Text(text));
            }
            Ok(origin)
        }
        Err(error) => {
            match origin {
                Origin::Server => offer(ServerSetting::Refused(format!("colcrypt.key: {error}."))),
                // Later, a refused SET is an error and changes nothing. Now it
                // would be a warning.
                Origin::Session if DEFINING.get() => {
                    STATE.with_borrow_mut(|state| state.session_refused = Some(error.clone()));
                }
                _ => {}
            }
            Err(Refusal {
                code: PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                message: "invalid key ring in colcrypt.key",
                detail: sentence(&error),
                hint: "A key is 32 bytes in base64: \"SELECT colcrypt.generate_key()\" or \
                       \"openssl rand -base64 32\" makes one.",
            })
        }
    }
}

/// Notes what the configuration says now.
fn offer(setting: ServerSetting) {
    STATE.with_borrow_mut(|state| {
        if let (ServerSetting::Unset, ServerSetting::Refused(reason)) =
            (&state.server_setting, &setting)
        {
            // PostgreSQL will not assign it, and it must not look unset.
            state.server_setting = ServerSetting::Refused(reason.clone());
        }
        state.candidate = Some(setting);
    });
}

fn origin(source: pg_sys::GucSource::Type) -> Result<Origin, Refusal> {
    use pg_sys::GucSource as Source;
    match source {
        Source::PGC_S_DEFAULT | Source::PGC_S_DYNAMIC_DEFAULT => Ok(Origin::Default),
        Source::PGC_S_ENV_VAR | Source::PGC_S_FILE | Source::PGC_S_ARGV => Ok(Origin::Server),
        Source::PGC_S_GLOBAL
        | Source::PGC_S_DATABASE
        | Source::PGC_S_USER
        | Source::PGC_S_DATABASE_USER
        | Source::PGC_S_TEST => Err(Refusal {
            code: PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            message: "colcrypt.key cannot be stored in a catalog",
            detail: "Settings of roles, databases and functions are readable by every user."
                .to_owned(),
            hint: "Name a file in colcrypt.key_file, or have the session SET colcrypt.key.",
        }),
        _ => Ok(Origin::Session),
    }
}

fn sentence(error: &str) -> String {
    let mut sentence = error.to_owned();
    if let Some(first) = sentence.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    sentence.push('.');
    sentence
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
    SHARED_PRELOAD.get() || session_preload.is_some_and(|list| lists_colcrypt(&list))
}

/// Whether a list of libraries names this one, with or without a folder.
fn lists_colcrypt(list: &str) -> bool {
    list.split(',').any(|library| {
        let library = library.trim().trim_matches('"');
        let file = library.rsplit('/').next().unwrap_or(library);
        file.strip_suffix(".so").unwrap_or(file) == "colcrypt"
    })
}

/// The assign hook of `colcrypt.key`: must not fail.
pub(crate) fn assign_setting(text: Option<&CStr>, origin: Origin) {
    let text = text
        .filter(|text| !text.is_empty())
        .map(|text| SecretText::new(text.to_string_lossy().into_owned()));
    STATE.with_borrow_mut(|state| {
        state.session = None;
        state.session_refused = None;
        match (origin, text) {
            (Origin::Session, text) => state.session = text,
            (Origin::Server, Some(text)) => state.assign_server(ServerSetting::Text(text)),
            // A worker has the server's setting from its postmaster or from its own
            // configuration: its leader does not hand it on.
            (Origin::Server | Origin::Default, None) if is_worker() => {}
            (Origin::Server, None) => state.assign_server(ServerSetting::Unset),
            // A refused setting of the server leaves the default in place.
            (Origin::Default, _) => {
                if !matches!(state.server_setting, ServerSetting::Refused(_)) {
                    state.assign_server(ServerSetting::Unset);
                }
            }
        }
        // What the session no longer holds is dropped, and so wiped.
        let State {
            session,
            server,
            parsed,
            ..
        } = state;
        parsed.retain(|(text, ring)| {
            session.as_ref() == Some(text)
                || server
                    .as_ref()
                    .is_some_and(|server| Rc::ptr_eq(server, ring))
        });
    });
    ACTIVE.ring.replace(None);
    forget_plans();
}

/// A setting that names a source was assigned.
pub(crate) fn sources_changed() {
    STATE.with_borrow_mut(|state| state.server_stale = true);
    ACTIVE.ring.replace(None);
    forget_plans();
}

/// Makes PostgreSQL parse and plan prepared statements again: constants in them
/// were sealed under what was in force when they were parsed.
pub(crate) fn forget_plans() {
    // SAFETY: marks this backend's cached plans invalid; reads no catalog, so it
    // may be called at any time (as assign_session_replication_role() does).
    unsafe { pg_sys::ResetPlanCache() };
}

/// The ids of the keys in `colcrypt.key`, for SHOW.
pub(crate) fn setting_ids() -> String {
    let server_counts = preloaded();
    let ids = STATE.with_borrow_mut(|state| {
        let text = match (&state.session, &state.server_setting) {
            (Some(text), _) => SecretText::new(text.expose().to_owned()),
            (None, ServerSetting::Text(text)) if server_counts => {
                SecretText::new(text.expose().to_owned())
            }
            _ => return Vec::new(),
        };
        let ring = state.parse(&text);
        ring.map_or_else(|_| Vec::new(), |ring| ring.keys().map(Key::id).collect())
    });
    ids.iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
