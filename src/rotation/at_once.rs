//! `rotate_column()`: the whole column in one transaction.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use zeroize::Zeroizing;

use super::fresh::Fresh;
use super::indexes;
use super::target::{Table, Target};
use super::walk::{Fires, Manner, Outcome, Patience, Walk};
use crate::compat;
use crate::error::Error;
use crate::keyring;
use crate::progress::Ticker;
use crate::relations::relation_name;

#[pg_extern(sql = false)]
fn rotate_column(
    relation: Option<pg_sys::Oid>,
    column_name: Option<&core::ffi::CStr>,
    batch_size: Option<i32>,
    max_rows: Option<i64>,
) -> Result<i64, ErrorReport> {
    let relation = relation.ok_or(Error::not_given("relation"))?;
    let column = column_name.ok_or(Error::not_given("column_name"))?;
    let batch_size = Error::at_least(1, "batch_size", batch_size.map(i64::from))?;
    if let Some(rows) = max_rows {
        Error::at_least(0, "max_rows", Some(rows))?;
    }
    compat::prevent_if_read_only(c"rotate_column()");

    let target = Target::resolve(relation, column)?;
    let mut rotation = Rotation::new(batch_size, max_rows)?;
    for table in target.tables()? {
        if rotation.is_done() {
            break;
        }
        let before = rotation.rows;
        rotation.rotate_table(table)?;
        if rotation.rows > before {
            indexes::tell_of_btrees(table.oid, table.attribute);
        }
    }
    Ok(rotation.rows)
}

/// A rotation under way, and how much was done.
struct Rotation {
    batch_size: i64,
    max_rows: Option<i64>,
    rows: i64,
    ticker: Ticker,
}

impl Rotation {
    /// # Errors
    /// [`Error::NoKeyRing`].
    fn new(batch_size: i64, max_rows: Option<i64>) -> Result<Self, Error> {
        keyring::current().primary()?;
        Ok(Self {
            batch_size,
            max_rows,
            rows: 0,
            ticker: Ticker::default(),
        })
    }

    /// Whether as many rows were done as were asked for.
    fn is_done(&self) -> bool {
        self.max_rows.is_some_and(|most| self.rows >= most)
    }

    /// Rotates one table, which is locked.
    ///
    /// # Errors
    /// What reading or sealing a value gives; then nothing stays changed.
    fn rotate_table(&mut self, table: Table) -> Result<(), Error> {
        let manner = Manner {
            blocks: None,
            verifies: false,
            fires: Fires::Nothing,
        };
        let mut fresh = Fresh::new(table.modifier);
        let mut rooms = <[Zeroizing<Vec<u8>>; 2]>::default();
        // SAFETY: in a transaction, with the table locked.
        unsafe {
            let mut walk = Walk::begin(table, manner)?;
            while !self.is_done() && walk.next_row() {
                let outcome = walk.rotate_row(&mut fresh, Patience::Endless, &mut rooms)?;
                if outcome == Outcome::Rotated {
                    self.rows += 1;
                    if self.rows % self.batch_size == 0 {
                        self.report(table, walk.block());
                    }
                }
            }
            walk.end();
        }
        Ok(())
    }

    fn report(&mut self, table: Table, block: u32) {
        if self.ticker.is_due() {
            pgrx::notice!(
                "rotated {} rows so far, at block {block} of \"{}\"",
                self.rows,
                relation_name(table.oid).unwrap_or_default()
            );
        }
    }
}
