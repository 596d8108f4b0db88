//! What ANALYZE keeps of an encrypted column: how many values are NULL, how wide
//! they are and how many distinct ones there are. Never a value: statistics are in
//! a catalog, and so in dumps of it. Never an error for want of a key: autovacuum
//! must work in a server that has none.
//!
//! The estimates are those of PostgreSQL's `compute_distinct_stats()`
//! (src/backend/commands/analyze.c).

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use colcrypt_core::Payload;
use pgrx::prelude::*;

use super::{Operand, Purpose};
use crate::compat;
use crate::types::EncryptedType;
use crate::types::datum::{Call, Detoasted, stored_size};

/// Wider values are taken for distinct and not opened, as PostgreSQL does.
const WIDTH_THRESHOLD: usize = 1024;

/// `_typanalyze(internal)`
pub(crate) fn typanalyze<T: EncryptedType>(call: &Call<'_>) -> pg_sys::Datum {
    // SAFETY: declared so, with a VacAttrStats, for ANALYZE to call.
    let keep = unsafe {
        let stats: *mut pg_sys::VacAttrStats = call.internal(0);
        // For the number of rows to sample.
        let keep = pg_sys::std_typanalyze(stats);
        (*stats).compute_stats = Some(compute_stats::<T>);
        keep
    };
    keep.into()
}

/// What a sample of rows tells.
#[derive(Default)]
struct Sample {
    nulls: usize,
    values: usize,
    bytes: usize,
    wide: usize,
    /// How often each value that could be opened occurs, by a hash under a random
    /// key.
    seen: HashMap<u64, u32>,
    /// Values that could not be opened.
    closed: usize,
}

#[pg_guard]
unsafe extern "C-unwind" fn compute_stats<T: EncryptedType>(
    stats: pg_sys::VacAttrStatsP,
    fetch: pg_sys::AnalyzeAttrFetchFunc,
    sample_rows: i32,
    total_rows: f64,
) {
    let fetch = fetch.expect("ANALYZE passes a function that fetches values");
    let hasher = RandomState::new();
    let mut sample = Sample::default();
    for row in 0..sample_rows {
        // SAFETY: as ANALYZE asks of such functions; values stay where they are
        // until all are looked at.
        unsafe {
            compat::analyze_delay_point();
            let mut is_null = false;
            let value = fetch(stats, row, &raw mut is_null);
            if is_null {
                sample.nulls += 1;
            } else {
                sample.add(T::PAYLOAD, value, &hasher);
            }
        }
    }
    // SAFETY: ANALYZE's own record of the column.
    let stats = unsafe { &mut *stats };
    if sample.nulls + sample.values > 0 {
        stats.stats_valid = true;
        stats.stanullfrac = sample.null_fraction() as f32;
        stats.stawidth = sample.width();
        stats.stadistinct = sample.distinct(total_rows) as f32;
    }
}

impl Sample {
    /// # Safety
    /// `value` is a stored value.
    unsafe fn add(&mut self, payload: Payload, value: pg_sys::Datum, hasher: &RandomState) {
        self.values += 1;
        // SAFETY: by the caller's word.
        let size = unsafe { stored_size(value) };
        self.bytes += size;
        if size > WIDTH_THRESHOLD {
            self.wide += 1;
            return;
        }
        // SAFETY: by the caller's word.
        let operand = Operand::Sealed(payload, unsafe { Detoasted::from_raw(value) });
        // Who may not compare does not count what is equal either.
        let opened = operand
            .check(Purpose::Query)
            .and_then(|()| operand.with_plaintext(0, |plaintext| hasher.hash_one(plaintext)));
        match opened {
            Ok(hash) => *self.seen.entry(hash).or_default() += 1,
            Err(_) => self.closed += 1,
        }
    }

    fn null_fraction(&self) -> f64 {
        self.nulls as f64 / (self.nulls + self.values) as f64
    }

    /// Average width in bytes.
    fn width(&self) -> i32 {
        (self.bytes / self.values.max(1)) as i32
    }

    /// As in `pg_statistic.stadistinct`: a number, or if it grows with the table,
    /// the negated fraction of rows. 0 is "unknown".
    fn distinct(&self, total_rows: f64) -> f64 {
        if self.values == 0 {
            return 0.0;
        }
        if self.closed == self.values - self.wide && self.closed > 0 {
            // Nothing could be opened: there is no telling.
            return 0.0;
        }
        // What is not opened is taken for distinct.
        let unopened = self.wide + self.closed;
        let once = self.seen.values().filter(|count| **count == 1).count() + unopened;
        let distinct = self.seen.len() + unopened;
        let non_null = 1.0 - self.null_fraction();
        if once == distinct {
            return -non_null;
        }
        if once == 0 {
            return in_rows(distinct as f64, total_rows);
        }
        // Haas and Stokes, IBM research report RJ 10025, as PostgreSQL has it.
        let (n, d, f1) = (self.values as f64, distinct as f64, once as f64);
        let rows = total_rows * non_null;
        let estimate = if rows > 0.0 {
            n * d / ((n - f1) + f1 * n / rows)
        } else {
            0.0
        };
        let estimate = estimate.max(d).min(rows.max(d));
        in_rows((estimate + 0.5).floor(), total_rows)
    }
}

/// A count of more than a tenth of the rows is taken to grow with the table.
fn in_rows(distinct: f64, total_rows: f64) -> f64 {
    if distinct > 0.1 * total_rows {
        -(distinct / total_rows)
    } else {
        distinct
    }
}
