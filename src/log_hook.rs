//! The hook that PostgreSQL calls with every message for the log, before it is
//! sent to the client as well.

use core::cell::Cell;
use core::ffi::CStr;

use pgrx::prelude::*;

use crate::backend_local::BackendLocal;

type LogHook = pg_sys::emit_log_hook_type;

static NEXT: BackendLocal<Cell<LogHook>> = BackendLocal::new(Cell::new(None));

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

/// Allocates nothing and raises nothing: an error is under way.
unsafe extern "C-unwind" fn on_message(message: *mut pg_sys::ErrorData) {
    // SAFETY: PostgreSQL passes the message, whose strings are NUL-terminated. A
    // hint of an ERROR is not freed by itself, so it may be a constant.
    unsafe {
        let data = &mut *message;
        let is_error = data.elevel == PgLogLevel::ERROR as i32;
        if is_error && !data.funcname.is_null() {
            let raised_in = CStr::from_ptr(data.funcname).to_bytes();
            if TOO_LARGE.iter().any(|name| raised_in.starts_with(name)) {
                data.hint = TOO_LARGE_HINT.as_ptr().cast_mut();
            }
        }
        if let Some(next) = NEXT.get() {
            next(message);
        }
    }
}
