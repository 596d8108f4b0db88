//! Values of encrypted columns in what PostgreSQL itself says of a row that violates
//! a constraint: `Key (email)=(…) already exists`, `Failing row contains (…)`. The
//! client, who sent the row, is told; the log is not. Since 18 a subscription's worker
//! also logs the rows of a conflict, one that is no error as well.

use core::ffi::{CStr, c_char};
use std::ffi::CString;

use colcrypt_core::REDACTED;
use pgrx::prelude::*;

use super::shown;
use crate::relations;

/// The detail for the log, if PostgreSQL's own must not be there.
///
/// Looks into the catalogs: such an error is raised where a row is stored, in a
/// transaction that is not yet aborted, with nothing locked that would be in the way.
///
/// # Safety
/// The strings of the message are NUL-terminated or null.
pub(super) unsafe fn hide(data: &pg_sys::ErrorData) -> Option<String> {
    if data.detail.is_null() {
        return None;
    }
    // SAFETY: by the caller's word.
    unsafe {
        if super::text(data.funcname) == Some(CONFLICT) {
            return hide_conflict(data);
        }
    }
    if !is_violation(data.sqlerrcode) {
        return None;
    }
    // SAFETY: by the caller's word; asks for the state of this backend.
    let (detail, table) = unsafe {
        let in_transaction = pg_sys::IsTransactionState();
        let table = || find_table(data.schema_name, data.table_name);
        (shown(data.detail), in_transaction.then(table).flatten())
    };
    let parsed = parse(&detail);
    match (table, &parsed) {
        (Some(table), _) if !relations::has_encrypted_column(table) => return None,
        // What is said of a foreign key may be about the columns of either table.
        (Some(table), Some((_, Some(columns)))) if !FOREIGN_KEY.contains(&data.sqlerrcode) => {
            let may_be_encrypted = |column: &&str| relations::may_be_encrypted(table, column);
            if !columns.iter().any(may_be_encrypted) {
                return None;
            }
        }
        (Some(_), _) => {}
        // A view's CHECK OPTION does not say of which table; what is not told by
        // PostgreSQL but by somebody's RAISE is left alone.
        (None, Some((_, None))) => {}
        (None, _) if data.sqlerrcode == CHECK_OPTION => {}
        (None, _) => return None,
    }
    Some(match parsed {
        Some((before, _)) => format!("{before}({REDACTED})."),
        // In another language, perhaps.
        None => REDACTED.to_owned(),
    })
}

/// The function of PostgreSQL that logs conflicts (conflict.c).
const CONFLICT: &[u8] = b"ReportApplyConflict";

/// As [`hide`], for a conflict: of the detail the first line stays, which says what it is
/// about. Rows follow it, in the words of a language.
///
/// # Safety
/// As [`hide`].
unsafe fn hide_conflict(data: &pg_sys::ErrorData) -> Option<String> {
    // SAFETY: by the caller's word; asks for the state of this backend.
    let (message, detail, looks_up) = unsafe {
        let looks_up = pg_sys::IsTransactionState();
        (shown(data.message), shown(data.detail), looks_up)
    };
    if looks_up && names_plain_table(&message) {
        return None;
    }
    let told = detail.split_once('\n').map_or("", |(told, _)| told);
    Some(format!("{told}\n{REDACTED}"))
}

/// Whether the table that a message names as `"schema.table"` has no encrypted column.
fn names_plain_table(message: &str) -> bool {
    let (Some(begin), Some(end)) = (message.find('"'), message.rfind('"')) else {
        return false;
    };
    let name = message.get(begin + 1..end).unwrap_or_default();
    // A name may have dots of its own.
    let tables = name.match_indices('.').filter_map(|(dot, _)| {
        let schema = CString::new(&name[..dot]).ok()?;
        let table = CString::new(&name[dot + 1..]).ok()?;
        // SAFETY: NUL-terminated; the caller has asked whether anything can be looked up.
        unsafe { find_table(schema.as_ptr(), table.as_ptr()) }
    });
    let tables: Vec<_> = tables.collect();
    !tables.is_empty() && !tables.into_iter().any(relations::has_encrypted_column)
}

const CHECK_OPTION: i32 = PgSqlErrorCode::ERRCODE_WITH_CHECK_OPTION_VIOLATION as i32;
/// The second is since 18 that of `ON DELETE RESTRICT` and `ON UPDATE RESTRICT`.
const FOREIGN_KEY: [i32; 2] = [
    PgSqlErrorCode::ERRCODE_FOREIGN_KEY_VIOLATION as i32,
    PgSqlErrorCode::ERRCODE_RESTRICT_VIOLATION as i32,
];

/// Whether an error is of a row that violates something: class 23, or a view's CHECK
/// OPTION (as elog.h tells classes).
fn is_violation(code: i32) -> bool {
    const CATEGORY: i32 = (1 << 12) - 1;
    const INTEGRITY: i32 = PgSqlErrorCode::ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION as i32;
    code & CATEGORY == INTEGRITY & CATEGORY || code == CHECK_OPTION
}

/// What stands before the values, and the names of their columns if it is not a whole
/// row.
fn parse(detail: &str) -> Option<(&str, Option<Vec<&str>>)> {
    const ROW: &str = "Failing row contains ";
    if detail.starts_with(ROW) {
        return Some((ROW, None));
    }
    // "Key (a, b)=(…) …", "Partition key of the failing row contains (a, b) = (…)."
    let names = detail.find('(')? + 1;
    let separator = [")=(", ") = ("]
        .into_iter()
        .filter_map(|separator| Some((detail[names..].find(separator)? + names, separator)))
        .min()?;
    let (end, separator) = separator;
    let columns = detail[names..end].split(", ").collect();
    Some((&detail[..end + separator.len() - 1], Some(columns)))
}

/// # Safety
/// NUL-terminated or null.
unsafe fn find_table(schema: *const c_char, table: *const c_char) -> Option<pg_sys::Oid> {
    // SAFETY: by the caller's word; catalog look-ups.
    unsafe {
        let (schema, table) = (schema.as_ref()?, table.as_ref()?);
        let schema = pg_sys::get_namespace_oid(CStr::from_ptr(schema).as_ptr(), true);
        let found = pg_sys::get_relname_relid(CStr::from_ptr(table).as_ptr(), schema);
        (found != pg_sys::InvalidOid).then_some(found)
    }
}
