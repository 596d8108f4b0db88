//! The hook that PostgreSQL calls with every message for the log, before it is
//! written, and before it is sent to the client as well.
//!
//! It keeps plaintext and key material out of the log, and adds a hint where
//! PostgreSQL's own does not help.

mod row_values;

use core::cell::Cell;
use core::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use colcrypt_core::{REDACTED, redact, sets_key};
use pgrx::prelude::*;

use crate::backend_local::BackendLocal;

type LogHook = pg_sys::emit_log_hook_type;

static NEXT: BackendLocal<Cell<LogHook>> = BackendLocal::new(Cell::new(None));
/// Whether rows for a table with encrypted columns are being copied in.
static COPIES_IN: BackendLocal<Cell<bool>> = BackendLocal::new(Cell::new(false));

/// What messages of ours have as function, by which they are known.
const OURS: &[u8] = b"colcrypt";

/// The functions of PostgreSQL that refuse a value too large for an index page
/// (nbtutils.c, indextuple.c). They say nothing that helps, or point to an index
/// on a hash of the value, which must not exist for an encrypted one.
const TOO_LARGE: [&[u8]; 2] = [b"_bt_check_third_page", b"index_form_tuple"];
const TOO_LARGE_HINT: &CStr = c"Values larger than 1/3 of a buffer page cannot be indexed by a \
    btree.\nAn encrypted column of any length can have a hash index: CREATE INDEX ... USING hash; \
    and EXCLUDE USING hash (column WITH =) in place of UNIQUE.";

/// Installs the hook.
pub(crate) fn install() {
    // SAFETY: hooks are set when a library is loaded, in the only thread.
    unsafe {
        NEXT.set(pg_sys::emit_log_hook);
        pg_sys::emit_log_hook = Some(on_message);
    }
}

/// Notes whether rows for a table with encrypted columns are being copied in: the
/// context of an error shows them as they came.
pub(crate) fn note_copy(copies: bool) {
    COPIES_IN.set(copies);
}

/// Raises nothing: an error may be under way.
unsafe extern "C-unwind" fn on_message(message: *mut pg_sys::ErrorData) {
    // SAFETY: PostgreSQL passes the message, which is this hook's to change.
    let data = unsafe { &mut *message };
    // SAFETY: its strings are NUL-terminated or null.
    let cleaned = catch_unwind(AssertUnwindSafe(|| unsafe { clean(data) }));
    if cleaned.is_err() {
        // Better nothing in the log than a secret.
        data.output_to_server = false;
    }
    if let Some(next) = NEXT.get() {
        // SAFETY: as PostgreSQL calls hooks.
        unsafe { next(message) };
    }
}

/// # Safety
/// The strings are NUL-terminated or null.
unsafe fn clean(data: &mut pg_sys::ErrorData) {
    // SAFETY: by the caller's word.
    unsafe {
        let function = text(data.funcname).unwrap_or_default();
        if function == OURS {
            data.hide_stmt = true;
            data.hide_ctx = true;
            data.internalquery = core::ptr::null_mut();
            data.internalpos = 0;
        }
        if COPIES_IN.get() {
            data.hide_ctx = true;
        }
        if data.elevel == PgLogLevel::ERROR as i32
            && TOO_LARGE.iter().any(|name| function.starts_with(name))
        {
            data.hint = TOO_LARGE_HINT.as_ptr().cast_mut();
        }
        hide_keys(data);
        if function != OURS
            && let Some(detail) = row_values::hide(data)
        {
            data.detail_log = copy(data, &detail);
        }
    }
}

/// # Safety
/// As [`clean`].
unsafe fn hide_keys(data: &mut pg_sys::ErrorData) {
    // SAFETY: by the caller's word; the statement is NUL-terminated or null.
    unsafe {
        // Looked at once, and only if something depends on it.
        let shows_statement =
            !data.hide_stmt && is_logged_at(data.elevel, pg_sys::log_min_error_statement);
        let has_more = !data.detail.is_null() || !data.context.is_null();
        let statement = if shows_statement || has_more {
            shown(pg_sys::debug_query_string)
        } else {
            "".into()
        };
        let texts = [data.message, data.detail, data.context];
        let sets = sets_key(&statement) || texts.iter().any(|text| sets_key(&shown(*text)));
        let has_key = sets || (shows_statement && redact(&statement).is_some());
        if has_key {
            data.hide_stmt = true;
        }
        if has_key && data.sqlerrcode == PgSqlErrorCode::ERRCODE_SYNTAX_ERROR as i32 {
            // It quotes a part of the statement, perhaps of the key.
            data.message = copy(data, "syntax error in a statement with key material");
        }
        if sets {
            // Parameters are in details and contexts, parse trees in details, and in what
            // is logged of an EXECUTE.
            data.hide_ctx = true;
            if sets_key(&shown(data.detail)) {
                let message = shown(data.message);
                let end = message.find(['\'', '$']).unwrap_or(message.len());
                data.message = copy(data, &format!("{} {REDACTED}", &message[..end]));
            }
            if !data.detail.is_null() && data.elevel < PgLogLevel::WARNING as i32 {
                data.detail_log = copy(data, REDACTED);
            }
        }
        if text(data.funcname) == Some(TREE)
            && (sets || redact(&statement).is_some() || tree_has_key(&shown(data.detail)))
        {
            data.detail_log = copy(data, REDACTED);
        }
        if data.detail_log.is_null()
            && let Some(detail) = redact(&shown(data.detail))
        {
            data.detail_log = copy(data, &detail);
        }
        for place in [
            &raw mut data.message,
            &raw mut data.hint,
            &raw mut data.context,
            &raw mut data.internalquery,
        ] {
            if let Some(text) = redact(&shown(*place)) {
                *place = copy(data, &text);
            }
        }
    }
}

/// The function of PostgreSQL that logs a statement's tree as a detail (print.c).
const TREE: &[u8] = b"elog_node_display";

/// Whether a tree may tell of a key. Since 16 those of all statements can be printed, with
/// the texts in them: special characters behind a backslash, and lines broken anywhere.
fn tree_has_key(tree: &str) -> bool {
    let lines = tree.lines().map(str::trim_start);
    let text = lines.collect::<String>().replace('\\', "");
    text.contains("colcrypt.key") || redact(&text).is_some()
}

/// Whether a message of a level is above a threshold for the log
/// (`is_log_level_output()` of elog.c).
fn is_logged_at(level: i32, threshold: i32) -> bool {
    let log = PgLogLevel::LOG as i32;
    if level == log || level == PgLogLevel::LOG_SERVER_ONLY as i32 {
        threshold == log || threshold <= PgLogLevel::ERROR as i32
    } else if threshold == log {
        level >= PgLogLevel::FATAL as i32
    } else {
        level >= threshold
    }
}

/// # Safety
/// `place` is null, or NUL-terminated for as long as the result is used.
unsafe fn text<'a>(place: *const c_char) -> Option<&'a [u8]> {
    // SAFETY: by the caller's word.
    unsafe { place.as_ref() }.map(|place| unsafe { CStr::from_ptr(place) }.to_bytes())
}

/// The text, whatever its encoding is; empty for none.
///
/// # Safety
/// As [`text`].
unsafe fn shown<'a>(place: *const c_char) -> std::borrow::Cow<'a, str> {
    // SAFETY: by the caller's word.
    String::from_utf8_lossy(unsafe { text(place) }.unwrap_or_default())
}

/// A copy that PostgreSQL frees with the message. Without memory the message is not
/// logged.
///
/// # Safety
/// The message's context is a memory context.
unsafe fn copy(data: &mut pg_sys::ErrorData, text: &str) -> *mut c_char {
    // SAFETY: room for the text and its end, or null; without memory no error is
    // raised, and a log line has less than 1 GB.
    unsafe {
        let flags = pg_sys::MCXT_ALLOC_NO_OOM as i32;
        let place: *mut c_char =
            pg_sys::MemoryContextAllocExtended(data.assoc_context, text.len() + 1, flags).cast();
        if place.is_null() {
            data.output_to_server = false;
            return place;
        }
        core::ptr::copy_nonoverlapping(text.as_ptr().cast(), place, text.len());
        *place.add(text.len()) = 0;
        place
    }
}
