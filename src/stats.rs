//! The counters behind `colcrypt.stat`: in pages that all backends share, if the
//! postmaster has loaded the library; else of this session only. Added to once for
//! each transaction or statement, so that backends do not wait for each other's caches.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;

use colcrypt_core::Suite;
use pgrx::iter::TableIterator;
use pgrx::prelude::*;

use crate::keyring;
use crate::tally::{self, Entry, Operation, Outcome};

/// Suites, and values that do not tell theirs.
const SUITES: usize = Suite::ALL.len() + 1;
const COUNTERS: usize = Operation::ALL.len() * SUITES * Outcome::ALL.len();
/// Calls and bytes for each, in whole pages.
const WORDS: usize = (2 * COUNTERS).next_multiple_of(512);

static SHARED: OnceLock<&'static [AtomicU64]> = OnceLock::new();
static OWN: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];

/// Makes the counters that all backends share. To be called by the postmaster before
/// it forks.
///
/// # Errors
/// No memory.
pub(crate) fn install() -> std::io::Result<()> {
    let words = colcrypt_memory::shared_words(WORDS)?;
    // A second call would find them there.
    let _ = SHARED.set(words);
    Ok(())
}

fn words() -> &'static [AtomicU64] {
    SHARED.get().copied().unwrap_or(&OWN)
}

/// Where the counters of a kind are.
fn place(operation: Operation, suite: Option<Suite>, outcome: Outcome) -> usize {
    let suite = suite.and_then(|suite| Suite::ALL.iter().position(|known| *known == suite));
    let suite = suite.unwrap_or(SUITES - 1);
    2 * ((operation as usize * SUITES + suite) * Outcome::ALL.len() + outcome as usize)
}

/// Adds what was counted.
pub(crate) fn add(entries: &[Entry]) {
    let words = words();
    for entry in entries {
        let place = place(entry.operation, entry.suite, entry.outcome);
        words[place].fetch_add(entry.calls, Ordering::Relaxed);
        words[place + 1].fetch_add(entry.bytes, Ordering::Relaxed);
    }
}

/// `colcrypt.stat`: every kind, used or not, so that there is something to compare
/// with; but for values of an unknown suite.
#[pg_extern(sql = false)]
fn colcrypt_stat_counters() -> TableIterator<
    'static,
    (
        name!(operation, &'static str),
        name!(suite, Option<&'static str>),
        name!(outcome, &'static str),
        name!(calls, i64),
        name!(bytes, i64),
    ),
> {
    if !keyring::is_preloaded() {
        pgrx::notice!(
            "these are the counts of this session only, because colcrypt is not in \
             shared_preload_libraries"
        );
    }
    // What this session has done counts as well.
    tally::hand_on();
    let read = |place: usize| words()[place].load(Ordering::Relaxed).cast_signed();
    let suites = || Suite::ALL.into_iter().map(Some).chain([None]);
    let mut rows = Vec::new();
    for operation in Operation::ALL {
        for suite in suites() {
            for outcome in Outcome::ALL {
                let place = place(operation, suite, outcome);
                let (calls, bytes) = (read(place), read(place + 1));
                if suite.is_some() || calls > 0 {
                    let suite = suite.map(Suite::name);
                    rows.push((operation.name(), suite, outcome.name(), calls, bytes));
                }
            }
        }
    }
    TableIterator::new(rows)
}

/// `colcrypt.reset_stat()`: counts from zero again.
#[pg_extern(sql = false)]
fn colcrypt_reset_stat() {
    tally::hand_on();
    for word in words() {
        word.store(0, Ordering::Relaxed);
    }
}
