//! What `colcrypt.doctor()` finds in the server and its host; what it finds in the
//! catalogs is in `sql/doctor.sql`.

use core::ffi::CStr;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use pgrx::iter::TableIterator;
use pgrx::prelude::*;

use crate::{gucs, keyring};

/// How bad it is.
#[derive(Debug, Clone, Copy)]
enum Severity {
    /// Data is in danger, or readable by those who should not.
    Critical,
    Warning,
    Info,
}

impl Severity {
    fn name(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

type Finding = (Severity, String, &'static str);

/// `colcrypt.server_findings()`: (severity, finding, advice).
#[pg_extern(sql = false)]
fn colcrypt_server_findings() -> TableIterator<
    'static,
    (
        name!(severity, &'static str),
        name!(finding, String),
        name!(advice, &'static str),
    ),
> {
    let findings = [ring(), preload(), key_file(), host()].concat();
    TableIterator::new(
        findings
            .into_iter()
            .map(|(severity, finding, advice)| (severity.name(), finding, advice)),
    )
}

fn ring() -> Vec<Finding> {
    let mut findings = Vec::new();
    let status = keyring::server_status();
    let ring = keyring::current();
    match (ring.server_primary(), status.last_error) {
        (None, error) => findings.push((
            Severity::Critical,
            match error {
                Some(error) => format!("the server has no encryption key: {error}"),
                None => "the server has no encryption key".to_owned(),
            },
            "Set colcrypt.key_file, colcrypt.key_command or the environment variable that \
             colcrypt.key_env names.",
        )),
        (Some(_), Some(error)) => findings.push((
            Severity::Warning,
            format!(
                "an older key ring is in force, because the last one could not be read: {error}"
            ),
            "Mend the source of the key ring and reload the configuration: the server would not \
             have this ring after a restart.",
        )),
        (Some(_), None) => {}
    }
    if ring.is_dev_mode_s() {
        findings.push((
            Severity::Critical,
            "the key is a random one of colcrypt.dev_mode: nothing can be read after a restart"
                .to_owned(),
            "Configure a key before any data is written that matters.",
        ));
    } else if gucs::sources().dev_mode {
        findings.push((
            Severity::Warning,
            "colcrypt.dev_mode is on: should the key ever be missing, a random one takes its place"
                .to_owned(),
            "Set colcrypt.dev_mode = off.",
        ));
    }
    if ring.server_source_name() == Some("key") {
        findings.push((
            Severity::Warning,
            "the key is in the configuration file, which base backups and pg_file_settings show"
                .to_owned(),
            "Move it to a file of its own, outside of the data directory, and name that in \
             colcrypt.key_file.",
        ));
    }
    findings
}

fn preload() -> Vec<Finding> {
    if !keyring::is_preloaded() {
        let mut findings = vec![(
            Severity::Warning,
            "colcrypt is not in shared_preload_libraries".to_owned(),
            "Add it and restart the server: then the key is checked at the start, counters are \
             for the whole server, and key material is kept out of the log of every session.",
        )];
        let sources = gucs::sources();
        for (name, is_set) in [
            ("key_command", sources.key_command.is_some()),
            ("require_key", gucs::require_key()),
            ("dev_mode", sources.dev_mode),
        ] {
            if is_set {
                findings.push((
                    Severity::Warning,
                    format!("colcrypt.{name} is set, and has no effect"),
                    "It needs shared_preload_libraries = 'colcrypt'.",
                ));
            }
        }
        return findings;
    }
    let mut findings = Vec::new();
    if keyring::lacks_keeper() {
        findings.push((
            Severity::Warning,
            "the background worker that reads the key ring again does not run".to_owned(),
            "Raise max_worker_processes and restart the server: until then a reload changes no \
             key.",
        ));
    }
    if !gucs::require_key() {
        findings.push((
            Severity::Info,
            "the server would start without a key".to_owned(),
            "Set colcrypt.require_key = on.",
        ));
    }
    findings
}

fn key_file() -> Vec<Finding> {
    let Some(path) = gucs::sources().key_file else {
        return Vec::new();
    };
    // SAFETY: a NUL-terminated string that is set when the server starts, or null.
    let data = unsafe { pg_sys::DataDir.as_ref().map(|data| CStr::from_ptr(data)) };
    let real = |path: &CStr| Path::new(OsStr::from_bytes(path.to_bytes())).canonicalize();
    let inside = data.is_some_and(|data| match (real(&path), real(data)) {
        (Ok(path), Ok(data)) => path.starts_with(data),
        _ => false,
    });
    if !inside {
        return Vec::new();
    }
    vec![(
        Severity::Critical,
        "the key file is inside of the data directory: every base backup holds the key".to_owned(),
        "Move it elsewhere, name the new place in colcrypt.key_file, and rotate the key, which \
         is in the backups made so far.",
    )]
}

fn host() -> Vec<Finding> {
    let mut findings = Vec::new();
    let variable = gucs::sources().key_env;
    let variable = variable
        .as_ref()
        .map(|name| OsStr::from_bytes(name.to_bytes()));
    // This backend may have taken it from its own environment, but not from others'.
    let is_source = keyring::current().server_source_name() == Some("environment");
    if (is_source && !keyring::is_preloaded())
        || variable.is_some_and(|name| std::env::var_os(name).is_some())
    {
        findings.push((
            Severity::Warning,
            "the key is in the environment, which every program that the server starts inherits"
                .to_owned(),
            "Add colcrypt to shared_preload_libraries, which takes it out of there, or use \
             colcrypt.key_file.",
        ));
    }
    if makes_core_dumps() {
        findings.push((
            Severity::Warning,
            "core dumps are on: a crash would write plaintexts of that moment to disk".to_owned(),
            "Limit the size of core files to 0 (ulimit -c 0, LimitCORE=0), or to 1 where \
             kernel.core_pattern names a program, which gets them otherwise.",
        ));
    }
    if !colcrypt_memory::is_locked() {
        findings.push((
            Severity::Info,
            "memory with keys could not be locked: it may be written to swap space".to_owned(),
            "Raise the limit of locked memory (ulimit -l, LimitMEMLOCK), or encrypt the swap space.",
        ));
    }
    findings
}

/// Whether a crash of this process would leave a core file, or hand one to a program.
fn makes_core_dumps() -> bool {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: writes to the structure.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit) } == 0;
    let to_program = || {
        let pattern = std::fs::read("/proc/sys/kernel/core_pattern");
        pattern.is_ok_and(|pattern| pattern.starts_with(b"|"))
    };
    // A program is given the dump whatever the limit, unless that is 1 (core(5)); a file
    // of one byte is not written.
    known && limit.rlim_cur != 1 && (limit.rlim_cur > 0 || to_program())
}
