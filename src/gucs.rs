//! The settings, and the hooks between PostgreSQL's setting machinery and the
//! key ring.

use core::cell::{Cell, RefCell};
use core::ffi::{CStr, c_char, c_void};
use std::ffi::CString;

use colcrypt_core::Suite;
use pgrx::guc::{GucContext, GucEnum, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use pgrx::prelude::*;

use crate::backend_local::BackendLocal;
use crate::compat;
use crate::keyring::{self, Origin};

/// `colcrypt.algorithm`.
#[derive(Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
enum Algorithm {
    #[name = c"xaes-256-gcm"]
    Xaes256Gcm,
    #[name = c"aes-256-gcm"]
    Aes256Gcm,
    #[name = c"fernet"]
    Fernet,
    #[name = c"envelope"]
    Envelope,
}

/// `colcrypt.input`: what text that comes in as a value is.
#[derive(Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub(crate) enum Input {
    #[name = c"plaintext"]
    Plaintext,
    #[name = c"ciphertext"]
    Ciphertext,
}

/// `colcrypt.access`: what a session sees of encrypted values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub(crate) enum Access {
    #[name = c"full"]
    Full,
    #[name = c"masked"]
    Masked,
    #[name = c"ciphertext"]
    Ciphertext,
}

impl Access {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Masked => "masked",
            Self::Ciphertext => "ciphertext",
        }
    }

    /// As PostgreSQL reads it.
    pub(crate) fn from_name(name: &[u8]) -> Option<Self> {
        let all = [Self::Full, Self::Masked, Self::Ciphertext];
        all.into_iter()
            .find(|access| access.name().as_bytes().eq_ignore_ascii_case(name))
    }

    /// What shows less.
    pub(crate) fn stricter(self, other: Self) -> Self {
        match (self, other) {
            (Self::Masked, _) | (_, Self::Masked) => Self::Masked,
            (Self::Ciphertext, _) | (_, Self::Ciphertext) => Self::Ciphertext,
            (Self::Full, Self::Full) => Self::Full,
        }
    }
}

/// `colcrypt.undecryptable`: what is shown of a value that cannot be decrypted.
#[derive(Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub(crate) enum Undecryptable {
    #[name = c"error"]
    Error,
    #[name = c"placeholder"]
    Placeholder,
}

/// `colcrypt.audit_log`: what of the use of keys is logged.
#[derive(Clone, Copy, PartialEq, Eq, PostgresGucEnum)]
pub(crate) enum AuditLog {
    #[name = c"off"]
    Off,
    #[name = c"failures"]
    Failures,
    #[name = c"access"]
    Access,
}

impl AuditLog {
    fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Failures => "failures",
            Self::Access => "access",
        }
    }
}

static KEY: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
static KEY_FILE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
/// The settings that name sources, as their assign hooks were told: those read the
/// sources, and PostgreSQL changes the variables only after that.
static SOURCES: BackendLocal<RefCell<Sources>> = BackendLocal::new(RefCell::new(Sources {
    key_file: None,
    key_command: None,
    key_env: None,
    dev_mode: false,
}));

/// The settings that name sources; a text that is empty is none.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) key_file: Option<CString>,
    pub(crate) key_command: Option<CString>,
    pub(crate) key_env: Option<CString>,
    pub(crate) dev_mode: bool,
}

static KEY_COMMAND: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
static REQUIRE_KEY: GucSetting<bool> = GucSetting::<bool>::new(false);
static DEV_MODE: GucSetting<bool> = GucSetting::<bool>::new(false);
static AUDIT_LOG: GucSetting<AuditLog> = GucSetting::<AuditLog>::new(AuditLog::Off);
static KEY_ENV: GucSetting<Option<CString>> =
    GucSetting::<Option<CString>>::new(Some(c"COLCRYPT_KEY"));
static ALGORITHM: GucSetting<Algorithm> = GucSetting::<Algorithm>::new(Algorithm::Xaes256Gcm);
static INPUT: GucSetting<Input> = GucSetting::<Input>::new(Input::Plaintext);
static ACCESS: GucSetting<Access> = GucSetting::<Access>::new(Access::Full);
/// The last value that came from postgresql.conf or the command line, or the default.
static CONFIGURED_ACCESS: BackendLocal<Cell<Access>> = BackendLocal::new(Cell::new(Access::Full));
/// How often `colcrypt.access` and `colcrypt.audit_log` were assigned, while that is
/// counted.
static ACCESS_ASSIGNED: BackendLocal<Cell<u32>> = BackendLocal::new(Cell::new(0));
static AUDIT_ASSIGNED: BackendLocal<Cell<u32>> = BackendLocal::new(Cell::new(0));
static MASK: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(Some(c"********"));
static UNDECRYPTABLE: GucSetting<Undecryptable> =
    GucSetting::<Undecryptable>::new(Undecryptable::Error);
static DUMP_PLAINTEXT: GucSetting<bool> = GucSetting::<bool>::new(false);
static WRITE_KEY: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);

/// The suite that new values are sealed with.
pub(crate) fn suite() -> Suite {
    // SAFETY: reads this backend's own setting, without the check for the right
    // thread that `get` makes.
    match Algorithm::from_ordinal(unsafe { *ALGORITHM.as_ptr() }) {
        Algorithm::Xaes256Gcm => Suite::Xaes256Gcm,
        Algorithm::Aes256Gcm => Suite::Aes256Gcm,
        Algorithm::Fernet => Suite::Fernet,
        Algorithm::Envelope => Suite::Envelope,
    }
}

/// What incoming text is taken for.
pub(crate) fn input() -> Input {
    // SAFETY: as in `suite`.
    Input::from_ordinal(unsafe { *INPUT.as_ptr() })
}

/// What this session sees of encrypted values.
#[inline]
pub(crate) fn access() -> Access {
    // SAFETY: as in `suite`.
    Access::from_ordinal(unsafe { *ACCESS.as_ptr() })
}

/// The value of `colcrypt.access` for sessions whose role and database have none: of the
/// configuration, as far as this library has seen it. Without preload it has not, where
/// the settings of a role came over it.
pub(crate) fn configured_access() -> Access {
    CONFIGURED_ACCESS.get()
}

/// What is shown in place of a value that may not be seen.
pub(crate) fn mask() -> CString {
    MASK.get().unwrap_or_default()
}

/// Whether a value that cannot be decrypted is shown as a placeholder.
pub(crate) fn shows_placeholders() -> bool {
    UNDECRYPTABLE.get() == Undecryptable::Placeholder
}

/// Whether dumps and replication streams get plaintext.
pub(crate) fn dump_plaintext() -> bool {
    DUMP_PLAINTEXT.get()
}

/// `colcrypt.write_key`, if set: the name of the key that new values are sealed
/// under.
#[inline]
pub(crate) fn write_key<'a>() -> Option<&'a CStr> {
    // SAFETY: as in `suite`; a NUL-terminated string or null, which stays until the
    // setting is assigned again.
    let name = unsafe {
        (*WRITE_KEY.as_ptr())
            .as_ref()
            .map(|name| CStr::from_ptr(name))
    };
    name.filter(|name| !name.is_empty())
}

/// Sets what new values are sealed with in this session: `colcrypt.algorithm` and
/// `colcrypt.write_key`.
pub(crate) fn seal_with(algorithm: &str, write_key: &str) {
    let now = self::write_key().map_or_else(Default::default, CStr::to_string_lossy);
    for (name, value, differs) in [
        (
            c"colcrypt.algorithm",
            algorithm,
            suite().name() != algorithm,
        ),
        (c"colcrypt.write_key", write_key, now != write_key),
    ] {
        let Ok(value) = CString::new(value) else {
            continue;
        };
        if differs {
            set(name, &value, pg_sys::GucSource::PGC_S_SESSION);
        }
    }
}

/// Has this process begin transactions as a rotation wants them, whatever the settings of
/// the database.
pub(crate) fn work_by_default() {
    for (name, value) in [
        (c"default_transaction_read_only", c"off"),
        (c"default_transaction_isolation", c"read committed"),
        (c"default_transaction_deferrable", c"off"),
    ] {
        set(name, value, pg_sys::GucSource::PGC_S_SESSION);
    }
}

/// The settings that name sources.
pub(crate) fn sources() -> Sources {
    SOURCES.borrow().clone()
}

/// Whether the server must not start without a key ring.
pub(crate) fn require_key() -> bool {
    REQUIRE_KEY.get()
}

/// What of the use of keys is logged.
pub(crate) fn audit_log() -> AuditLog {
    AUDIT_LOG.get()
}

/// Defines the settings. Called once, when the library is loaded.
pub(crate) fn define() {
    let asked_access = asked(c"colcrypt.access");
    let asked_audit = asked(c"colcrypt.audit_log");
    // SAFETY: every hook is `#[pg_guard]`ed and lives as long as the library,
    // which PostgreSQL never unloads.
    unsafe {
        GucRegistry::define_string_guc_with_hooks(
            c"colcrypt.key",
            c"Key ring text: keys that encrypt and decrypt, the first one primary.",
            c"In the configuration file it needs shared_preload_libraries or \
              session_preload_libraries. Set by a session, its keys stand in front of the \
              server's, for that session only. Shown as key ids, never as keys.",
            &KEY,
            GucContext::Userset,
            GucFlags::NO_SHOW_ALL | GucFlags::DISALLOW_IN_AUTO_FILE,
            Some(check_key),
            Some(assign_key),
            Some(show_key),
        );
        GucRegistry::define_string_guc_with_hooks(
            c"colcrypt.key_file",
            c"File that holds the key ring text.",
            c"It must be owned by the server's user or by root and not be accessible to others.",
            &KEY_FILE,
            GucContext::Sighup,
            GucFlags::SUPERUSER_ONLY,
            None,
            Some(assign_key_file),
            None,
        );
        GucRegistry::define_string_guc_with_hooks(
            c"colcrypt.key_command",
            c"Shell command that prints the key ring text.",
            c"Run when the server starts and when the configuration is reloaded. It needs \
              shared_preload_libraries.",
            &KEY_COMMAND,
            GucContext::Sighup,
            GucFlags::SUPERUSER_ONLY,
            None,
            Some(assign_command),
            None,
        );
        GucRegistry::define_bool_guc(
            c"colcrypt.require_key",
            c"Whether the server refuses to start without a key ring.",
            c"It needs shared_preload_libraries.",
            &REQUIRE_KEY,
            GucContext::Sighup,
            GucFlags::empty(),
        );
        GucRegistry::define_bool_guc_with_hooks(
            c"colcrypt.dev_mode",
            c"Whether the server makes a random key when none is configured.",
            c"For development: what is encrypted cannot be read after the next start. It needs \
              shared_preload_libraries.",
            &DEV_MODE,
            GucContext::Sighup,
            GucFlags::empty(),
            None,
            Some(assign_dev_mode),
            None,
        );
        GucRegistry::define_enum_guc_with_hooks(
            c"colcrypt.audit_log",
            c"What of the use of keys is logged.",
            c"\"off\": nothing. \"failures\": what was refused or could not be decrypted. \
              \"access\": everything. One line for each statement and key.",
            &AUDIT_LOG,
            GucContext::Suset,
            GucFlags::empty(),
            None,
            Some(assign_audit_log),
            None,
        );
        GucRegistry::define_string_guc_with_hooks(
            c"colcrypt.key_env",
            c"Name of the environment variable of the server that holds the key ring text.",
            c"Used when none of colcrypt.key, colcrypt.key_file and colcrypt.key_command is \
              configured.",
            &KEY_ENV,
            GucContext::Sighup,
            GucFlags::empty(),
            None,
            Some(assign_key_env),
            None,
        );
        GucRegistry::define_enum_guc_with_hooks(
            c"colcrypt.algorithm",
            c"Cipher suite that new values are encrypted with.",
            c"Values of every suite can be read at any time.",
            &ALGORITHM,
            GucContext::Userset,
            GucFlags::empty(),
            None,
            Some(assign_algorithm),
            None,
        );
        GucRegistry::define_enum_guc_with_hooks(
            c"colcrypt.input",
            c"Whether text that comes in as an encrypted value is plaintext or ciphertext.",
            c"\"ciphertext\" is for restoring dumps that hold ciphertext; nothing else is then \
              accepted.",
            &INPUT,
            GucContext::Suset,
            GucFlags::empty(),
            None,
            Some(assign_input),
            None,
        );
        GucRegistry::define_string_guc_with_hooks(
            c"colcrypt.write_key",
            c"Name of the managed key that new values are encrypted under.",
            c"For columns whose type names no key. Empty: the primary key of the ring. It takes a \
              right on the key, if it is granted to some roles only.",
            &WRITE_KEY,
            GucContext::Userset,
            GucFlags::empty(),
            None,
            Some(assign_write_key),
            None,
        );
        GucRegistry::define_enum_guc_with_hooks(
            c"colcrypt.access",
            c"What this session sees of encrypted values.",
            c"\"full\": plaintext. \"masked\": colcrypt.mask; comparing is refused. \"ciphertext\": \
              ciphertext in text form; comparing is refused. Typically set for a role.",
            &ACCESS,
            GucContext::Suset,
            GucFlags::empty(),
            Some(check_access),
            Some(assign_access),
            None,
        );
        GucRegistry::define_string_guc(
            c"colcrypt.mask",
            c"What is shown in place of an encrypted value that may not be seen.",
            c"",
            &MASK,
            GucContext::Suset,
            GucFlags::empty(),
        );
        GucRegistry::define_enum_guc(
            c"colcrypt.undecryptable",
            c"What is shown of a value that cannot be decrypted.",
            c"\"error\": an error. \"placeholder\": a text that names the key, so that the other \
              rows can be read.",
            &UNDECRYPTABLE,
            GucContext::Suset,
            GucFlags::empty(),
        );
        GucRegistry::define_bool_guc(
            c"colcrypt.dump_plaintext",
            c"Whether pg_dump and logical replication get plaintext.",
            c"By default they get ciphertext in text form.",
            &DUMP_PLAINTEXT,
            GucContext::Suset,
            GucFlags::empty(),
        );
        // Assigned once: the default.
        let is_refused = |asked: Option<String>, assigned: &Cell<u32>, now: &str| {
            asked.is_some_and(|asked| assigned.get() == 1 || !asked.eq_ignore_ascii_case(now))
        };
        if is_refused(asked_access, &ACCESS_ASSIGNED, access().name()) {
            override_setting(c"colcrypt.access", c"masked");
        }
        if is_refused(asked_audit, &AUDIT_ASSIGNED, audit_log().name()) {
            override_setting(c"colcrypt.audit_log", c"access");
        }
        keyring::note_defined();
        compat::reserve_setting_prefix(c"colcrypt");
    }
}

/// What a setting was set to before it was defined: by the configuration, a role's
/// settings, or the client.
fn asked(name: &CStr) -> Option<String> {
    // SAFETY: gives a NUL-terminated string, or null if it was never set.
    unsafe {
        let value = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        let value = value.as_ref().map(|value| CStr::from_ptr(value));
        value.map(|value| value.to_string_lossy().into_owned())
    }
}

/// Sets what nobody but a superuser should have been able to set. PostgreSQL has
/// refused another value with a warning, because there is no such value, or because the
/// user may not set it, and left the default: not a role's, which a client's option
/// stands in front of.
fn override_setting(name: &CStr, value: &CStr) {
    set(name, value, pg_sys::GucSource::PGC_S_OVERRIDE);
}

/// Sets what there is, with this value among others, with a superuser's rights.
fn set(name: &CStr, value: &CStr, source: pg_sys::GucSource::Type) {
    let context = pg_sys::GucContext::PGC_SUSET;
    // SAFETY: NUL-terminated strings, which are copied.
    unsafe { pg_sys::SetConfigOption(name.as_ptr(), value.as_ptr(), context, source) };
}

/// What PostgreSQL keeps with a value of `colcrypt.key` for the assign hook: the
/// [`Origin`], and after it the digest of the ring text if it is the server's.
///
/// The server's text is not left in the setting: a reload would log it (`parameter
/// "colcrypt.key" changed to …`, guc-file.l) whenever the setting changes, settings are
/// handed to parallel workers, and they are in core dumps.
struct Extra;

impl Extra {
    const DIGEST: usize = 32;

    /// An allocation that PostgreSQL frees; null if there is no memory.
    fn allocate(origin: Origin, digest: Option<[u8; Self::DIGEST]>) -> *mut c_void {
        let extra: *mut u8 = compat::guc_malloc(2 + Self::DIGEST).cast();
        if !extra.is_null() {
            // SAFETY: room for two bytes and a digest was allocated.
            unsafe {
                *extra = origin as u8;
                *extra.add(1) = u8::from(digest.is_some());
                let digest = digest.unwrap_or_default();
                core::ptr::copy_nonoverlapping(digest.as_ptr(), extra.add(2), Self::DIGEST);
            }
        }
        extra.cast()
    }

    /// What `allocate` put there; nothing for the null that goes with a default.
    ///
    /// # Safety
    /// `extra` is null or came from `allocate`.
    unsafe fn read(extra: *mut c_void) -> (Origin, Option<[u8; Self::DIGEST]>) {
        if extra.is_null() {
            return (Origin::Default, None);
        }
        let extra: *mut u8 = extra.cast();
        // SAFETY: two bytes and a digest are there.
        unsafe {
            let digest = (*extra.add(1) != 0).then(|| *extra.add(2).cast());
            (Origin::from_tag(*extra), digest)
        }
    }
}

/// Judges a new value of `colcrypt.key`.
#[pg_guard]
unsafe extern "C-unwind" fn check_key(
    newval: *mut *mut c_char,
    extra: *mut *mut c_void,
    source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: PostgreSQL passes the address of a NUL-terminated string or null,
    // allocated as it allocates setting values.
    let text = unsafe { (*newval).as_ref().map(|text| CStr::from_ptr(text)) };
    match keyring::check_setting(text, source) {
        Ok((origin, digest)) => {
            let allocated = Extra::allocate(origin, digest);
            if allocated.is_null() {
                return false;
            }
            // SAFETY: `extra` is where PostgreSQL wants it, and the value is the
            // hook's to change; it gets no longer.
            unsafe {
                *extra = allocated;
                if digest.is_some() {
                    core::ptr::write_bytes(*newval, 0, CStr::from_ptr(*newval).count_bytes());
                }
            }
            true
        }
        Err(refusal) => {
            // SAFETY: these variables are for check hooks to set; the strings
            // live in ErrorContext, like those that GUC_check_errmsg() makes.
            unsafe {
                pg_sys::GUC_check_errcode(refusal.code as i32);
                pg_sys::GUC_check_errmsg_string = in_error_context(refusal.message);
                pg_sys::GUC_check_errdetail_string = in_error_context(&refusal.detail);
                pg_sys::GUC_check_errhint_string = in_error_context(refusal.hint);
            }
            false
        }
    }
}

/// A copy of `text` in ErrorContext.
///
/// # Safety
/// ErrorContext exists: PostgreSQL is running.
unsafe fn in_error_context(text: &str) -> *mut c_char {
    let text = CString::new(text).unwrap_or_default();
    // SAFETY: both are valid for the call.
    unsafe { pg_sys::MemoryContextStrdup(pg_sys::ErrorContext, text.as_ptr()) }
}

#[pg_guard]
unsafe extern "C-unwind" fn assign_key(newval: *const c_char, extra: *mut c_void) {
    // SAFETY: `extra` is null for the built-in default, or what `check_key` made;
    // the value is a NUL-terminated string or null.
    let (origin, digest, text) = unsafe {
        let (origin, digest) = Extra::read(extra);
        let text = newval.as_ref().map(|value| CStr::from_ptr(value));
        (origin, digest, text)
    };
    keyring::assign_setting(text, origin, digest);
}

#[pg_guard]
unsafe extern "C-unwind" fn show_key() -> *const c_char {
    let ids = CString::new(keyring::setting_ids()).unwrap_or_default();
    // SAFETY: copies into the current memory context; the caller copies again.
    unsafe { pg_sys::pstrdup(ids.as_ptr()) }
}

// A source setting is assigned at every reload too, if it is in the configuration
// file, changed or not.

#[pg_guard]
unsafe extern "C-unwind" fn assign_key_file(newval: *const c_char, _extra: *mut c_void) {
    // SAFETY: as `assigned` asks.
    SOURCES.borrow_mut().key_file = unsafe { assigned(newval) };
    keyring::sources_changed();
}

#[pg_guard]
unsafe extern "C-unwind" fn assign_key_env(newval: *const c_char, _extra: *mut c_void) {
    // SAFETY: as `assigned` asks.
    SOURCES.borrow_mut().key_env = unsafe { assigned(newval) };
    keyring::environment_changed();
}

#[pg_guard]
unsafe extern "C-unwind" fn assign_command(newval: *const c_char, _extra: *mut c_void) {
    // SAFETY: as `assigned` asks.
    SOURCES.borrow_mut().key_command = unsafe { assigned(newval) };
    keyring::sources_changed();
}

#[pg_guard]
unsafe extern "C-unwind" fn assign_dev_mode(newval: bool, _extra: *mut c_void) {
    SOURCES.borrow_mut().dev_mode = newval;
    keyring::sources_changed();
}

/// # Safety
/// A NUL-terminated string or null.
unsafe fn assigned(newval: *const c_char) -> Option<CString> {
    // SAFETY: by the caller's word.
    let text = unsafe { newval.as_ref().map(|newval| CStr::from_ptr(newval)) };
    text.filter(|text| !text.is_empty()).map(CStr::to_owned)
}

#[pg_guard]
unsafe extern "C-unwind" fn assign_algorithm(newval: i32, _extra: *mut c_void) {
    // SAFETY: reads this backend's own setting.
    if newval != unsafe { *ALGORITHM.as_ptr() } {
        keyring::forget_plans();
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn assign_input(newval: i32, _extra: *mut c_void) {
    // SAFETY: reads this backend's own setting.
    if newval != unsafe { *INPUT.as_ptr() } {
        keyring::forget_plans();
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn check_access(
    newval: *mut i32,
    _extra: *mut *mut c_void,
    source: pg_sys::GucSource::Type,
) -> bool {
    if source <= pg_sys::GucSource::PGC_S_ARGV {
        // SAFETY: one of the values that the setting takes.
        CONFIGURED_ACCESS.set(Access::from_ordinal(unsafe { *newval }));
    }
    true
}

#[pg_guard]
unsafe extern "C-unwind" fn assign_access(newval: i32, _extra: *mut c_void) {
    ACCESS_ASSIGNED.set(ACCESS_ASSIGNED.get().saturating_add(1));
    // SAFETY: reads this backend's own setting.
    if newval != unsafe { *ACCESS.as_ptr() } {
        // What was planned may compare what may not be compared now.
        keyring::forget_plans();
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn assign_audit_log(_newval: i32, _extra: *mut c_void) {
    AUDIT_ASSIGNED.set(AUDIT_ASSIGNED.get().saturating_add(1));
}

#[pg_guard]
unsafe extern "C-unwind" fn assign_write_key(_newval: *const c_char, _extra: *mut c_void) {
    keyring::forget_plans();
}
