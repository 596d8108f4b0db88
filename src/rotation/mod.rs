//! `rotate_column()`: moves a column's values to the primary key and the
//! current algorithm.
//!
//! Rotation is no change of data: it fires no trigger, is no concern of rules,
//! row-level security, foreign keys and CHECK constraints, and needs no
//! privilege but ownership.

mod indexes;
mod rewrite;
mod target;

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::error::Error;
use rewrite::Rotation;
use target::Target;

#[pg_extern(sql = false)]
fn rotate_column(
    relation: Option<pg_sys::Oid>,
    column_name: Option<&core::ffi::CStr>,
    batch_size: Option<i32>,
    max_rows: Option<i64>,
) -> Result<i64, ErrorReport> {
    let not_null = |what| {
        move || Error::Parameter {
            what,
            bound: "given",
        }
    };
    let relation = relation.ok_or_else(not_null("relation"))?;
    let column = column_name.ok_or_else(not_null("column_name"))?;
    let batch_size = match batch_size {
        Some(size @ 1..) => i64::from(size),
        _ => {
            return Err(Error::Parameter {
                what: "batch_size",
                bound: "1 or more",
            }
            .into());
        }
    };
    if max_rows.is_some_and(|rows| rows < 0) {
        return Err(Error::Parameter {
            what: "max_rows",
            bound: "0 or more",
        }
        .into());
    }
    // SAFETY: raises an error in a read-only transaction and on a standby.
    unsafe { pg_sys::PreventCommandIfReadOnly(c"rotate_column()".as_ptr()) };

    let target = Target::resolve(relation, column)?;
    let mut rotation = Rotation::new(batch_size, max_rows)?;
    for table in target.tables() {
        if rotation.is_done() {
            break;
        }
        let before = rotation.rows();
        rotation.rotate_table(table)?;
        if rotation.rows() > before {
            indexes::tell_of_btrees(table);
        }
    }
    Ok(rotation.rows())
}
