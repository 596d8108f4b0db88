//! `colcrypt.key`: what PostgreSQL's setting machinery asks and tells.

use core::cell::Cell;
use core::ffi::CStr;
use std::rc::Rc;

use colcrypt_core::{Key, KeyRing, SecretText};
use pgrx::prelude::*;

use super::server::ServerSetting;
use super::{ACTIVE, STATE, State, forget_plans, preloaded};
use crate::backend_local::BackendLocal;

/// Whether the settings are still being defined: values from before are judged then.
static DEFINING: BackendLocal<Cell<bool>> = BackendLocal::new(Cell::new(true));

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

/// Whether the server has a value from its command line.
static ON_COMMAND_LINE: BackendLocal<Cell<bool>> = BackendLocal::new(Cell::new(false));

/// Whether `colcrypt.key` stands on the server's command line, where a reload does not
/// change it.
pub(super) fn is_on_command_line() -> bool {
    ON_COMMAND_LINE.get()
}

/// Notes that the settings are defined.
pub(crate) fn note_defined() {
    DEFINING.set(false);
}

fn is_worker() -> bool {
    // SAFETY: reads a variable of this backend.
    unsafe { pg_sys::ParallelWorkerNumber >= 0 }
}

/// The check hook of `colcrypt.key`. Gives whose the value is, and the digest of the
/// server's text.
///
/// # Errors
/// [`Refusal`], without what was refused.
pub(crate) fn check_setting(
    text: Option<&CStr>,
    source: pg_sys::GucSource::Type,
) -> Result<(Origin, Option<[u8; 32]>), Refusal> {
    let origin = origin(source)?;
    if source == pg_sys::GucSource::PGC_S_ARGV {
        ON_COMMAND_LINE.set(true);
    }
    let text = match text {
        Some(text) if !text.is_empty() => text,
        _ => {
            if origin == Origin::Server {
                offer(ServerSetting::Unset);
            }
            return Ok((origin, None));
        }
    };
    if origin == Origin::Server && !preloaded() {
        offer(ServerSetting::WithoutPreload);
        return Ok((origin, Some([0; 32])));
    }
    if origin == Origin::Session && is_worker() {
        // Its leader has judged it.
        return Ok((origin, None));
    }
    match STATE.with_borrow_mut(|state| state.parse_setting(text)) {
        Ok((ring, digest)) => {
            if origin == Origin::Server {
                offer(ServerSetting::Ring(ring));
            }
            Ok((origin, (origin == Origin::Server).then_some(digest)))
        }
        Err(error) => {
            match origin {
                Origin::Server => offer(ServerSetting::Refused(format!("colcrypt.key: {error}."))),
                // Later, a refused SET is an error and changes nothing. Now it
                // would be a warning.
                Origin::Session if DEFINING.get() => {
                    STATE.with_borrow_mut(|state| state.session = Some(Err(error.clone())));
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

/// The assign hook of `colcrypt.key`: must not fail.
pub(crate) fn assign_setting(text: Option<&CStr>, origin: Origin, digest: Option<[u8; 32]>) {
    let text = text.filter(|text| !text.is_empty());
    STATE.with_borrow_mut(|state| {
        state.session = None;
        match (origin, digest) {
            (Origin::Session, _) => {
                let ring = text.map(|text| state.parse_setting(text));
                state.session = ring.map(|ring| ring.map(|(ring, _)| ring));
            }
            (Origin::Server, Some(_)) if !preloaded() => {
                state.assign_server(ServerSetting::WithoutPreload);
            }
            (Origin::Server, Some(digest)) => {
                // The check hook has parsed it, and what the setting may come back to is
                // kept.
                let lost = || ServerSetting::Refused("colcrypt.key: reload it.".to_owned());
                let ring = state.parsed.find(&digest).map(ServerSetting::Ring);
                state.assign_server(ring.unwrap_or_else(lost));
            }
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
    });
    ACTIVE.ring.replace(None);
    // What the session no longer holds is dropped, and so wiped.
    STATE.with_borrow_mut(|state| state.parsed.drop_unused());
    forget_plans();
}

/// The ids of the keys in `colcrypt.key`, for SHOW.
pub(crate) fn setting_ids() -> String {
    let ids = STATE.with_borrow(|state| {
        let ring = match (&state.session, &state.server_setting) {
            (Some(Ok(ring)), _) | (None, ServerSetting::Ring(ring)) => ring,
            _ => return Vec::new(),
        };
        ring.keys().map(Key::id).collect()
    });
    let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    ids.join(", ")
}

impl State {
    /// The ring of a value, and the digest of its text.
    fn parse_setting(&mut self, text: &CStr) -> Result<(Rc<KeyRing>, [u8; 32]), String> {
        let text = SecretText::from_source(text.to_bytes().to_vec());
        let text = text.map_err(|error| error.to_string())?;
        let ring = self
            .parsed
            .parse(&text)
            .map_err(|error| error.to_string())?;
        Ok((ring, text.digest()))
    }

    fn assign_server(&mut self, setting: ServerSetting) {
        if !self.server_setting.is_same(&setting) {
            self.server_setting = setting;
            self.server_stale = true;
        }
    }
}
