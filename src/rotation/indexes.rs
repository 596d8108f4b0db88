//! What a rotation leaves behind in indexes.

use core::ffi::CStr;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

/// Says which btree indexes still need the old key. A btree copies values from
/// its leaves into the pages above, and keeps entries of old row versions until
/// VACUUM: a lookup that meets one has to open it. Nothing in this transaction
/// could change that, for others still see the old rows.
pub(super) fn tell_of_btrees(table: pg_sys::Oid, attribute: i16) {
    for index in btrees(table, attribute) {
        let notice = ErrorReport::new(
            PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
            format!("index {index} still holds values under other keys"),
            "colcrypt",
        )
        .set_hint(format!(
            "REINDEX INDEX CONCURRENTLY {index}; once this is committed and before a key leaves \
             the key ring."
        ));
        notice.report(PgLogLevel::NOTICE);
    }
}

/// The quoted names of the btree indexes that hold the column.
fn btrees(table: pg_sys::Oid, attribute: i16) -> Vec<String> {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    let mut names = Vec::new();
    // SAFETY: the table is locked; its indexes are opened and closed one by one.
    unsafe {
        let relation = pg_sys::table_open(table, pg_sys::NoLock as pg_sys::LOCKMODE);
        let list = pg_sys::RelationGetIndexList(relation);
        let count = if list.is_null() { 0 } else { (*list).length };
        for number in 0..count {
            let index = pg_sys::index_open(pg_sys::list_nth_oid(list, number), lock);
            let columns = (*(*index).rd_index)
                .indkey
                .values
                .as_slice(usize::try_from((*(*index).rd_index).indnatts).unwrap_or_default());
            let is_btree = (*(*index).rd_rel).relam == pg_sys::BTREE_AM_OID;
            if is_btree && columns.contains(&attribute) {
                let class = (*index).rd_rel;
                let name = pg_sys::quote_qualified_identifier(
                    pg_sys::get_namespace_name((*class).relnamespace),
                    (*class).relname.data.as_ptr(),
                );
                names.push(CStr::from_ptr(name).to_string_lossy().into_owned());
            }
            pg_sys::index_close(index, lock);
        }
        pg_sys::table_close(relation, pg_sys::NoLock as pg_sys::LOCKMODE);
    }
    names
}
