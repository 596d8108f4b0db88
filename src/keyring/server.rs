//! The server's ring: its sources, and what was read from them.

use core::ffi::CStr;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use colcrypt_core::{KeyRing, read_key_file};
use pgrx::prelude::*;

use super::parsed::Parsed;
use super::{command, environment, is_preloaded};
use crate::gucs;

/// Where a ring comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Source {
    Key = 1,
    KeyFile,
    KeyCommand,
    Environment,
    DevMode,
}

impl Source {
    const ALL: [Self; 5] = [
        Self::Key,
        Self::KeyFile,
        Self::KeyCommand,
        Self::Environment,
        Self::DevMode,
    ];

    /// The name in views and logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::KeyFile => "key_file",
            Self::KeyCommand => "key_command",
            Self::Environment => "environment",
            Self::DevMode => "dev_mode",
        }
    }

    pub(super) fn from_tag(tag: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|source| *source as u8 == tag)
    }
}

/// What the configuration says of `colcrypt.key`.
#[derive(Default)]
pub(super) enum ServerSetting {
    #[default]
    Unset,
    /// Passed over: any user could have seen it.
    WithoutPreload,
    Ring(Rc<KeyRing>),
    /// Refused when the setting was defined; there is no older one to fall back
    /// on.
    Refused(String),
}

impl ServerSetting {
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Unset, Self::Unset) | (Self::WithoutPreload, Self::WithoutPreload) => true,
            (Self::Ring(a), Self::Ring(b)) => Rc::ptr_eq(a, b),
            (Self::Refused(a), Self::Refused(b)) => a == b,
            _ => false,
        }
    }
}

/// The server's ring as this process has it.
#[derive(Default)]
pub(super) struct ServerRing {
    pub(super) ring: Option<Rc<KeyRing>>,
    /// Where it comes from, if there is one.
    pub(super) source: Option<Source>,
    /// When it was read, in PostgreSQL's microseconds.
    pub(super) loaded_at: i64,
    /// When that was last tried.
    pub(super) tried_at: i64,
    /// Why there is no ring, if more can be said than that no source is set.
    pub(super) why_none: Option<String>,
    /// Why the last attempt to read it failed; an older one may be in force.
    pub(super) last_error: Option<String>,
    /// Which of the published rings it is, if it is one of those.
    pub(super) generation: u64,
}

/// Why there is no ring from the sources.
enum NotLoaded {
    /// No source is set.
    Unset(Option<String>),
    /// The first source that is set gives no ring.
    Broken(String),
}

/// What was in environment variables that were taken from the environment.
#[derive(Default)]
pub(super) struct Environment(Vec<(CString, Result<Rc<KeyRing>, String>)>);

impl Environment {
    /// Takes a variable, if it is there, and keeps the ring that was in it.
    pub(super) fn take(
        &mut self,
        name: &CStr,
        parsed: &mut Parsed,
    ) -> Option<Result<Rc<KeyRing>, String>> {
        if let Some(taken) = environment::take(name) {
            self.0.retain(|(known, _)| known.as_c_str() != name);
            self.0.push((name.to_owned(), parsed.parse_source(taken)));
        }
        let found = self.0.iter().find(|(known, _)| known.as_c_str() == name);
        found.map(|(_, taken)| taken.clone())
    }
}

impl ServerRing {
    /// Reads the ring from the first source that is set. What cannot be read leaves
    /// the ring as it is, and [`ServerRing::last_error`] says why.
    pub(super) fn read(
        &mut self,
        setting: &ServerSetting,
        environment: &mut Environment,
        parsed: &mut Parsed,
    ) {
        let read = self.read_sources(setting, environment, parsed);
        self.last_error = None;
        // SAFETY: asks for the time.
        self.tried_at = unsafe { pg_sys::GetCurrentTimestamp() };
        match read {
            Ok(None) => {}
            Ok(Some((ring, source))) => {
                self.ring = Some(ring);
                self.source = Some(source);
                self.why_none = None;
                self.loaded_at = self.tried_at;
            }
            Err(NotLoaded::Unset(why)) => {
                self.ring = None;
                self.source = None;
                self.why_none = why;
            }
            Err(NotLoaded::Broken(why)) => {
                if self.ring.is_none() {
                    self.why_none = Some(why.clone());
                }
                self.last_error = Some(why);
            }
        }
    }

    /// None if what there is stays.
    fn read_sources(
        &self,
        setting: &ServerSetting,
        environment: &mut Environment,
        parsed: &mut Parsed,
    ) -> Result<Option<(Rc<KeyRing>, Source)>, NotLoaded> {
        let sources = gucs::sources();
        let mut passed_over = Vec::new();
        match setting {
            ServerSetting::Unset => {}
            ServerSetting::WithoutPreload => passed_over.push(
                "colcrypt.key in the configuration is not used, because without \
                 shared_preload_libraries or session_preload_libraries = 'colcrypt' any user \
                 could have seen it.",
            ),
            ServerSetting::Ring(ring) => return Ok(Some((Rc::clone(ring), Source::Key))),
            ServerSetting::Refused(reason) => return Err(NotLoaded::Broken(reason.clone())),
        }
        let found = |name: &str, ring: Result<Rc<KeyRing>, String>, source| match ring {
            Ok(ring) => Ok(Some((ring, source))),
            Err(error) => Err(NotLoaded::Broken(format!("{name}: {error}."))),
        };
        if let Some(path) = &sources.key_file {
            let name = format!("colcrypt.key_file \"{}\"", path.to_string_lossy());
            let path = Path::new(OsStr::from_bytes(path.to_bytes()));
            // SAFETY: geteuid has no precondition and cannot fail.
            let server_user = unsafe { libc::geteuid() };
            let ring = parsed.parse_source(read_key_file(path, server_user));
            return found(&name, ring, Source::KeyFile);
        }
        if let Some(shell_command) = &sources.key_command {
            if is_preloaded() {
                let ring = parsed.parse_source(command::run(shell_command));
                return found("colcrypt.key_command", ring, Source::KeyCommand);
            }
            passed_over.push(
                "colcrypt.key_command is not used, because it needs shared_preload_libraries = \
                 'colcrypt'.",
            );
        }
        if let Some(variable) = &sources.key_env
            && let Some(ring) = environment.take(variable, parsed)
        {
            let name = format!("environment variable {}", variable.to_string_lossy());
            return found(&name, ring, Source::Environment);
        }
        if sources.dev_mode {
            if is_preloaded() {
                // One for as long as the server runs, and never in the place of another
                // that was taken away.
                if self.source == Some(Source::DevMode) {
                    return Ok(None);
                }
                if self.loaded_at == 0 {
                    return match KeyRing::random() {
                        Ok(ring) => Ok(Some((Rc::new(ring), Source::DevMode))),
                        Err(error) => Err(NotLoaded::Broken(format!("{error}."))),
                    };
                }
                return Err(NotLoaded::Unset(Some(
                    "colcrypt.dev_mode makes a key only where there was none since the server \
                     started."
                        .to_owned(),
                )));
            }
            passed_over.push(
                "colcrypt.dev_mode has no effect, because it needs shared_preload_libraries = \
                 'colcrypt'.",
            );
        }
        let passed_over = passed_over.join(" ");
        Err(NotLoaded::Unset(
            (!passed_over.is_empty()).then_some(passed_over),
        ))
    }
}
