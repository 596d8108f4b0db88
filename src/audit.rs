//! `colcrypt.audit_log`, and the lines about failures: one for each statement and key,
//! never a value.

use core::cell::{Cell, RefCell};
use core::ffi::CStr;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::backend_local::BackendLocal;
use crate::compat::HeldInterrupts;
use crate::gucs::{self, AuditLog};
use crate::tally::{Entry, Operation, Outcome};
use crate::{encoding, relations};

/// Most relations that are named.
const MOST_RELATIONS: usize = 8;

struct Statement {
    /// Who runs it, as far as it was looked at. When it is logged, nothing can be
    /// looked up: the transaction may have failed.
    who: RefCell<Option<Who>>,
    /// The relations with encrypted columns that it is about.
    relations: RefCell<Vec<String>>,
    /// Whether it is about more relations.
    more: Cell<bool>,
}

struct Who {
    user: String,
    role: String,
    database: String,
}

static STATEMENT: BackendLocal<Statement> = BackendLocal::new(Statement {
    who: RefCell::new(None),
    relations: RefCell::new(Vec::new()),
    more: Cell::new(false),
});

/// Whether statements are looked at.
pub(crate) fn is_on() -> bool {
    gucs::audit_log() != AuditLog::Off
}

/// A statement begins. In a transaction.
pub(crate) fn begin() {
    STATEMENT.relations.take();
    STATEMENT.more.set(false);
    let who = who();
    STATEMENT.who.replace(Some(who));
}

/// The statement, or one that is part of it, is about those of these relations that
/// have encrypted columns. In a transaction.
pub(crate) fn add_relations(relations: impl Iterator<Item = pg_sys::Oid>) {
    add_tables(relations.filter(|relation| relations::has_encrypted_column(*relation)));
}

/// As [`add_relations`], also those whose columns may be encrypted when it is over.
pub(crate) fn add_tables(relations: impl Iterator<Item = pg_sys::Oid>) {
    let mut names = STATEMENT.relations.take();
    for relation in relations {
        if relations::is_table(relation)
            && let Some(name) = relations::qualified_name(relation)
            && !names.contains(&name)
        {
            if names.len() == MOST_RELATIONS {
                STATEMENT.more.set(true);
                break;
            }
            names.push(name);
        }
    }
    STATEMENT.relations.replace(names);
}

/// Notes who runs the statement, if it is not known yet. In a transaction.
pub(crate) fn note_user() {
    if is_on() && STATEMENT.who.borrow().is_none() {
        let who = who();
        STATEMENT.who.replace(Some(who));
    }
}

/// A transaction is over: the next statement may be another user's.
pub(crate) fn end() {
    STATEMENT.who.take();
    STATEMENT.relations.take();
    STATEMENT.more.set(false);
}

fn who() -> Who {
    // SAFETY: catalog look-ups; palloc'd strings, or null for what is not there.
    unsafe {
        let text = |text: *mut core::ffi::c_char| {
            let text = text.as_ref().map(|text| CStr::from_ptr(text));
            text.map_or_else(String::new, encoding::to_string)
        };
        Who {
            user: text(pg_sys::GetUserNameFromId(pg_sys::GetSessionUserId(), true)),
            role: text(pg_sys::GetUserNameFromId(pg_sys::GetUserId(), true)),
            database: text(pg_sys::get_database_name(pg_sys::MyDatabaseId)),
        }
    }
}

/// Logs what was done. Looks nothing up.
pub(crate) fn log(entries: &[Entry]) {
    // A cancel would leave the rest of the lines unwritten.
    let _held = HeldInterrupts::hold();
    for entry in entries {
        if matches!(entry.outcome, Outcome::WrongKey | Outcome::Damaged) {
            write(failure(entry));
        }
        let audited = match gucs::audit_log() {
            AuditLog::Off => false,
            AuditLog::Failures => entry.outcome != Outcome::Ok,
            AuditLog::Access => true,
        };
        if audited {
            write(audit(entry));
        }
    }
}

/// Not for the client, whatever it asks to see: he is who is watched.
fn write(line: String) {
    ErrorReport::new(
        PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
        line,
        "colcrypt",
    )
    .report(PgLogLevel::LOG_SERVER_ONLY);
}

fn failure(entry: &Entry) -> String {
    let verb = match entry.operation {
        Operation::Encrypt => "encrypt",
        Operation::Decrypt | Operation::Compare => "decrypt",
        Operation::Rotate => "rotate",
    };
    let values = if entry.calls == 1 { "value" } else { "values" };
    let key = match entry.key {
        Some(key) => format!(" under key {key}"),
        None => String::new(),
    };
    let code = entry.code.map(sqlstate).unwrap_or_default();
    let outcome = entry.outcome.name();
    format!(
        "colcrypt: failed to {verb} {} {values}{key}: {outcome}, SQLSTATE {code}",
        entry.calls
    )
}

fn audit(entry: &Entry) -> String {
    let statement = STATEMENT.who.borrow();
    let unknown = String::new();
    let (user, role, database) = match statement.as_ref() {
        Some(who) => (&who.user, &who.role, &who.database),
        None => (&unknown, &unknown, &unknown),
    };
    let key = entry.key.map(|key| key.to_string()).unwrap_or_default();
    let suite = entry.suite.map_or("", colcrypt_core::Suite::name);
    let mut relations = STATEMENT.relations.borrow().join(", ");
    if STATEMENT.more.get() {
        relations.push_str(", ...");
    }
    let outcome = entry.outcome.name().replace(' ', "_");
    let [user, role, database, application, relations] =
        [user, role, database, &application(), &relations].map(|name| quoted(name));
    format!(
        "colcrypt audit: operation={} outcome={outcome} key={key} suite={suite} values={} \
         bytes={} user={user} role={role} database={database} application={application} \
         relation={relations}",
        entry.operation.name(),
        entry.calls,
        entry.bytes,
    )
}

/// A name as Rust quotes text: it cannot pass for another field, or begin a new line.
/// In ASCII, unless that is what the database is in.
fn quoted(name: &str) -> String {
    if encoding::is_utf8() {
        format!("{name:?}")
    } else {
        format!("\"{}\"", name.escape_default())
    }
}

fn application() -> String {
    // SAFETY: null or NUL-terminated; only this backend changes it.
    unsafe {
        let name = pg_sys::application_name.as_ref();
        // PostgreSQL leaves nothing but ASCII in it.
        let name = name.map(|name| CStr::from_ptr(name).to_string_lossy().into_owned());
        name.unwrap_or_default()
    }
}

/// The five characters of an error code (`MAKE_SQLSTATE` of elog.h).
fn sqlstate(code: PgSqlErrorCode) -> String {
    let code = code as u32;
    (0..5)
        .map(|place| char::from((((code >> (6 * place)) & 0x3f) as u8) + b'0'))
        .collect()
}
