//! What this backend has done with keys: counted here for each value, and handed on
//! once for each statement, to the counters and to the log.

use core::cell::{Cell, RefCell};

use colcrypt_core::{KeyId, Stored, Suite};
use pgrx::PgSqlErrorCode;

use crate::backend_local::BackendLocal;
use crate::error::Error;
use crate::{audit, stats};

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Operation {
    Encrypt,
    Decrypt,
    /// Decrypted to be compared, sorted or hashed.
    Compare,
    /// Moved to another key.
    Rotate,
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Outcome {
    Ok,
    /// The key is not there.
    WrongKey,
    /// The value, or the row of its key, is not what was stored.
    Damaged,
    /// The user may not.
    Denied,
}

impl Operation {
    pub(crate) const ALL: [Self; 4] = [Self::Encrypt, Self::Decrypt, Self::Compare, Self::Rotate];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::Compare => "compare",
            Self::Rotate => "rotate",
        }
    }
}

impl Outcome {
    pub(crate) const ALL: [Self; 4] = [Self::Ok, Self::WrongKey, Self::Damaged, Self::Denied];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::WrongKey => "wrong key",
            Self::Damaged => "damaged",
            Self::Denied => "denied",
        }
    }
}

/// Values of one kind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) operation: Operation,
    pub(crate) outcome: Outcome,
    /// None if a value does not tell.
    pub(crate) suite: Option<Suite>,
    pub(crate) key: Option<KeyId>,
    /// Of the last failure.
    pub(crate) code: Option<PgSqlErrorCode>,
    pub(crate) calls: u64,
    /// Of plaintext.
    pub(crate) bytes: u64,
}

impl Entry {
    #[inline]
    fn is_same(&self, other: &Self) -> bool {
        self.operation == other.operation
            && self.key == other.key
            && self.suite == other.suite
            && self.outcome == other.outcome
    }

    #[inline]
    fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.bytes += other.bytes;
    }
}

/// Most kinds of values that are kept apart.
const MOST_ENTRIES: usize = 1000;

struct Tally {
    entries: RefCell<Vec<Entry>>,
    /// Where the last entry of each operation is.
    last: [Cell<usize>; Operation::ALL.len()],
}

static TALLY: BackendLocal<Tally> = BackendLocal::new(Tally {
    entries: RefCell::new(Vec::new()),
    last: [const { Cell::new(0) }; Operation::ALL.len()],
});

/// Counts a value. On the hot path.
#[inline]
pub(crate) fn count(operation: Operation, suite: Suite, key: KeyId, plaintext_bytes: usize) {
    add(Entry {
        operation,
        outcome: Outcome::Ok,
        suite: Some(suite),
        key: Some(key),
        code: None,
        calls: 1,
        bytes: plaintext_bytes as u64,
    });
}

/// Counts a failure, if it is one of keys or values. `stored` is the value that it is
/// about, if there is one.
#[cold]
pub(crate) fn count_failure(operation: Operation, stored: Option<&[u8]>, error: &Error) {
    let Some(outcome) = error.outcome() else {
        return;
    };
    let stored = stored.and_then(|stored| Stored::parse(stored).ok());
    add(Entry {
        operation,
        outcome,
        suite: match operation {
            Operation::Encrypt => Some(crate::gucs::suite()),
            _ => stored.as_ref().map(Stored::suite),
        },
        key: error.key().or(stored.as_ref().map(Stored::key_id)),
        code: Some(error.code()),
        calls: 1,
        bytes: 0,
    });
}

#[inline]
fn add(new: Entry) {
    let mut entries = TALLY.entries.borrow_mut();
    let last = &TALLY.last[new.operation as usize];
    match entries.get_mut(last.get()) {
        Some(entry) if entry.is_same(&new) => entry.add(&new),
        _ => add_elsewhere(&mut entries, last, new),
    }
}

#[cold]
#[inline(never)]
fn add_elsewhere(entries: &mut Vec<Entry>, last: &Cell<usize>, new: Entry) {
    match entries.iter().position(|entry| entry.is_same(&new)) {
        Some(place) => {
            entries[place].add(&new);
            entries[place].code = new.code;
            last.set(place);
        }
        None => {
            // A statement over values under thousands of keys would keep as many.
            if entries.len() == MOST_ENTRIES {
                hand_over(&core::mem::take(entries));
            }
            audit::note_user();
            last.set(entries.len());
            entries.push(new);
        }
    }
}

/// Hands on what was counted after the end of the last statement, when the next one
/// begins to run: what its `RETURNING` gave was printed then. What was encrypted are
/// the literals of the next one, which is parsed already.
pub(crate) fn hand_on_leftovers() {
    if is_empty() {
        return;
    }
    let entries = TALLY.entries.take();
    let is_literal = |entry: &Entry| entry.operation == Operation::Encrypt;
    let (literals, leftovers): (Vec<_>, Vec<_>) = entries.into_iter().partition(is_literal);
    TALLY.entries.replace(literals);
    hand_over(&leftovers);
}

/// Hands on what was counted since the last time. At the end of a statement, and of a
/// transaction; must not fail.
pub(crate) fn hand_on() {
    if is_empty() {
        return;
    }
    hand_over(&TALLY.entries.take());
}

fn hand_over(entries: &[Entry]) {
    stats::add(entries);
    audit::log(entries);
}

fn is_empty() -> bool {
    TALLY.entries.borrow().is_empty()
}
