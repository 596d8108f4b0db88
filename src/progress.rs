//! How far each session is with `colcrypt.verify_column()`: in pages that all share, if
//! the postmaster has loaded the library.

use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use pgrx::iter::TableIterator;
use pgrx::prelude::*;

use crate::backend_local::BackendLocal;

/// Sessions that are seen at a time: what one page has room for.
const PLACES: usize = 64;
/// Words of a place.
const WORDS: usize = 8;

// The words of a place; the process is 0 if it is free.
const PROCESS: usize = 0;
const DATABASE: usize = 1;
const RELATION: usize = 2;
const ATTRIBUTE: usize = 3;
const DONE: usize = 4;
const EXPECTED: usize = 5;
const STARTED: usize = 6;

static SHARED: OnceLock<&'static [AtomicU64]> = OnceLock::new();
static OWN: [AtomicU64; PLACES * WORDS] = [const { AtomicU64::new(0) }; PLACES * WORDS];

/// Makes the places that all processes share. To be called by the postmaster before
/// it forks.
///
/// # Errors
/// No memory.
pub(crate) fn install() -> std::io::Result<()> {
    let words = colcrypt_memory::shared_words(PLACES * WORDS)?;
    // A second call would find them there.
    let _ = SHARED.set(words);
    Ok(())
}

fn places() -> impl Iterator<Item = &'static [AtomicU64]> {
    let words: &'static [AtomicU64] = SHARED.get().copied().unwrap_or(&OWN);
    words.chunks_exact(WORDS).take(PLACES)
}

fn read(place: &[AtomicU64], word: usize) -> u64 {
    place[word].load(Ordering::Relaxed)
}

/// Says when it is time for the next message.
#[derive(Clone, Copy)]
pub(crate) struct Ticker(Instant);

impl Default for Ticker {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Ticker {
    pub(crate) fn is_due(&mut self) -> bool {
        /// Between the messages about long work.
        const INTERVAL: Duration = Duration::from_secs(10);
        let is_due = self.0.elapsed() >= INTERVAL;
        if is_due {
            self.0 = Instant::now();
        }
        is_due
    }
}

/// Counts values, and says from time to time how many there were.
#[derive(Clone, Copy)]
pub(crate) struct Counter {
    pub(crate) values: u64,
    ticker: Option<Ticker>,
}

impl Counter {
    pub(crate) const fn new() -> Self {
        Self {
            values: 0,
            ticker: None,
        }
    }

    pub(crate) fn count(&mut self) {
        self.values += 1;
        if self.values % 1024 == 1 && self.ticker.get_or_insert_default().is_due() {
            pgrx::notice!("{} values so far", self.values);
        }
    }
}

static CURRENT: BackendLocal<Cell<Option<Current>>> = BackendLocal::new(Cell::new(None));

#[derive(Clone, Copy)]
struct Current {
    place: Option<&'static [AtomicU64]>,
    counter: Counter,
}

/// Work that others can see, until it is dropped.
pub(crate) struct Watched(());

impl Watched {
    /// Begins to go through the rows of a column. Where all places are taken, nobody
    /// sees it.
    pub(crate) fn begin(relation: pg_sys::Oid, attribute: i16, expected: f32) -> Self {
        // SAFETY: read the state of this backend.
        let (process, database, now) = unsafe {
            let now = pg_sys::GetCurrentTimestamp();
            (pg_sys::MyProcPid, pg_sys::MyDatabaseId, now)
        };
        let place = places().find(|place| take(place, process as u64));
        if let Some(place) = place {
            let set = |word: usize, value: u64| place[word].store(value, Ordering::Relaxed);
            set(DATABASE, database.to_u32().into());
            set(ATTRIBUTE, attribute as u64);
            set(DONE, 0);
            set(EXPECTED, expected.max(0.0) as u64);
            set(STARTED, now as u64);
            // What makes it seen comes last.
            place[RELATION].store(relation.to_u32().into(), Ordering::Release);
        }
        CURRENT.set(Some(Current {
            place,
            counter: Counter::new(),
        }));
        Self(())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(place) = CURRENT.take().and_then(|current| current.place) {
            place[RELATION].store(0, Ordering::Relaxed);
            place[PROCESS].store(0, Ordering::Release);
        }
    }
}

/// Takes a place that is free, or whose process has ended.
fn take(place: &[AtomicU64], process: u64) -> bool {
    let now = read(place, PROCESS);
    // SAFETY: looks through the array of processes.
    let is_free = now == 0 || unsafe { pg_sys::BackendPidGetProc(now as i32).is_null() };
    is_free
        && place[PROCESS]
            .compare_exchange(now, process, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
}

/// What a parallel worker adds to: the place of its leader.
#[cold]
fn leaders() -> Option<Current> {
    // SAFETY: the leader outlives its workers.
    let leader = unsafe {
        let own = pg_sys::MyProc.as_ref()?;
        own.lockGroupLeader.as_ref()?.pid as u64
    };
    Some(Current {
        place: places().find(|place| read(place, PROCESS) == leader),
        counter: Counter::new(),
    })
}

/// Counts a row.
pub(crate) fn count_row() {
    let Some(mut current) = CURRENT.get().or_else(leaders) else {
        return;
    };
    current.counter.count();
    if let Some(place) = current.place {
        place[DONE].fetch_add(1, Ordering::Relaxed);
    }
    CURRENT.set(Some(current));
}

/// The places that are taken, of the current database.
#[pg_extern(sql = false)]
fn colcrypt_verifications() -> TableIterator<
    'static,
    (
        name!(pid, i32),
        name!(relation, pg_sys::Oid),
        name!(attribute, i16),
        name!(rows_done, i64),
        name!(rows_expected, i64),
        name!(started_at, TimestampWithTimeZone),
    ),
> {
    // SAFETY: reads a variable of this backend.
    let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
    let taken = places().filter(move |place| {
        let process = read(place, PROCESS);
        place[RELATION].load(Ordering::Acquire) != 0
            && read(place, DATABASE) == u64::from(database)
            // SAFETY: looks through the array of processes.
            && !unsafe { pg_sys::BackendPidGetProc(process as i32).is_null() }
    });
    let rows = taken.filter_map(|place| {
        Some((
            read(place, PROCESS) as i32,
            pg_sys::Oid::from(read(place, RELATION) as u32),
            read(place, ATTRIBUTE) as i16,
            read(place, DONE) as i64,
            read(place, EXPECTED) as i64,
            TimestampWithTimeZone::try_from(read(place, STARTED) as i64).ok()?,
        ))
    });
    TableIterator::new(rows.collect::<Vec<_>>())
}
