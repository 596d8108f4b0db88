//! Rows of small tables, read below SQL.

use pgrx::prelude::*;

use crate::error::Error;

/// The columns of one row.
pub(crate) struct Columns<'a> {
    values: &'a [pg_sys::Datum],
    nulls: &'a [bool],
}

impl Columns<'_> {
    /// The value of a column, of which `T` is the type; None for NULL.
    pub(crate) fn get<T: FromDatum>(&self, number: usize) -> Option<T> {
        // SAFETY: callers know the table, whose number of columns was checked, and
        // ask for each column by its type.
        unsafe { T::from_datum(self.values[number], self.nulls[number]) }
    }
}

/// Shows each row of a table with `N` columns to `work`, which copies what it
/// needs; whatever the rights of the current user.
///
/// # Errors
/// [`Error::KeyTable`] if it has another number of columns.
pub(crate) fn for_each_row<const N: usize>(
    table: pg_sys::Oid,
    mut work: impl FnMut(&Columns<'_>),
) -> Result<(), Error> {
    let lock = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
    // SAFETY: the sequence is that of PostgreSQL's own reads of catalogs
    // (genam.h).
    unsafe {
        let relation = pg_sys::table_open(table, lock);
        let descriptor = (*relation).rd_att;
        if (*descriptor).natts as usize != N {
            pg_sys::table_close(relation, lock);
            return Err(Error::KeyTable(
                "it has other columns than this library knows",
            ));
        }
        let scan = pg_sys::systable_beginscan(
            relation,
            pg_sys::InvalidOid,
            false,
            core::ptr::null_mut(),
            0,
            core::ptr::null_mut(),
        );
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let mut values = [pg_sys::Datum::null(); N];
            let mut nulls = [true; N];
            pg_sys::heap_deform_tuple(tuple, descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
            work(&Columns {
                values: &values,
                nulls: &nulls,
            });
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, lock);
    }
    Ok(())
}
