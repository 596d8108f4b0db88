//! Tags that were made lately, so that what is compared again and again, the
//! upper pages of a btree or the groups of a GROUP BY, is opened and hashed once.
//!
//! Found by a keyed 128-bit hash over the whole stored value, so that a changed
//! value is never taken for the genuine one; and over the plaintext, so that equal
//! plaintexts need one tag and none is kept, but for the last one looked for.

use core::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher13};

use zeroize::Zeroizing;

use crate::blind_index::{IndexKey, Tag};
use crate::nonce::RandomError;

/// Most entries of the table of stored values: 5 MB.
const MOST_STORED: usize = 1 << 17;
/// Most entries of the table of plaintexts: 0.3 MB.
const MOST_PLAINTEXTS: usize = 1 << 13;
/// Slots for copies of stored values that were recalled: 0.7 MB with values of 64
/// bytes, so that they stay in the CPU's cache.
const COPIES: usize = 1 << 12;
/// After as many collisions without a find the most used entry goes.
const MOST_USES: u8 = 8;
/// Longest stored value that is copied, in bytes.
const LONGEST_COPY: usize = 256;
/// Longest value of which a copy is held, in bytes.
const LONGEST_HELD: usize = 4096;

/// An index key with the tags it made last.
pub struct TagMemory {
    key: IndexKey,
    /// SipHash-1-3 with 128 bits of output, under a random key.
    hasher: SipHasher13,
    by_stored: Table,
    by_plaintext: Table,
    /// What is recalled again and again, found without hashing it.
    copies: Vec<Copy>,
    /// The last value on each side of a comparison.
    held: [Held; 2],
}

/// A stored value with its tag; empty if the slot is free.
#[derive(Clone)]
struct Copy {
    /// Eight of the bytes: tells most other values apart without following the
    /// pointer.
    check: [u8; 8],
    /// As in the tables: what is found often stays.
    uses: u8,
    tag: Tag,
    stored: Vec<u8>,
}

/// A value with its tag.
#[derive(Default)]
struct Held {
    bytes: Zeroizing<Vec<u8>>,
    tag: Option<Tag>,
    /// Whether it is a plaintext: what the query looks for, given by its client.
    plain: bool,
}

/// The hash of a stored value that is not remembered.
#[derive(Debug, Clone, Copy)]
pub struct Unknown([u64; 2]);

impl TagMemory {
    /// An empty memory.
    ///
    /// # Errors
    /// [`RandomError`] when the operating system gives no random bytes.
    pub fn new(key: IndexKey) -> Result<Self, RandomError> {
        let mut hash_key = [0; 16];
        getrandom::fill(&mut hash_key).map_err(|_| RandomError)?;
        Ok(Self {
            key,
            hasher: SipHasher13::new_with_key(&hash_key),
            by_stored: Table::new(MOST_STORED),
            by_plaintext: Table::new(MOST_PLAINTEXTS),
            copies: Vec::new(),
            held: Default::default(),
        })
    }

    /// The tag of a plaintext.
    pub fn tag(&mut self, plaintext: &[u8]) -> Tag {
        let hash = self.hash(plaintext);
        self.by_plaintext.find(hash).unwrap_or_else(|| {
            let tag = self.key.tag(plaintext);
            self.by_plaintext.insert(hash, tag);
            tag
        })
    }

    /// The tag of a plaintext, if it is remembered: cheaper than comparing with
    /// another value that is still closed.
    pub fn recall_plaintext(&mut self, plaintext: &[u8]) -> Option<Tag> {
        let hash = self.hash(plaintext);
        self.by_plaintext.find(hash)
    }

    /// The tag of a stored value, if it is remembered.
    ///
    /// # Errors
    /// [`Unknown`], with which it can be remembered.
    pub fn recall(&mut self, stored: &[u8]) -> Result<Tag, Unknown> {
        let (slot, check) = slot(stored);
        if let Some(copy) = self.copies.get_mut(slot)
            && copy.check == check
            && !copy.stored.is_empty()
            && *copy.stored == *stored
        {
            copy.uses = MOST_USES.min(copy.uses + 1);
            return Ok(copy.tag);
        }
        let hash = self.hash(stored);
        let tag = self.by_stored.find(hash).ok_or(Unknown(hash))?;
        self.copy(slot, check, stored, tag);
        Ok(tag)
    }

    fn copy(&mut self, slot: usize, check: [u8; 8], stored: &[u8], tag: Tag) {
        if stored.is_empty() || stored.len() > LONGEST_COPY {
            return;
        }
        if self.copies.is_empty() {
            let free = Copy {
                check: [0; 8],
                uses: 0,
                tag: Tag::ZERO,
                stored: Vec::new(),
            };
            self.copies = vec![free; COPIES];
        }
        let copy = &mut self.copies[slot];
        if copy.uses > 0 {
            copy.uses -= 1;
            return;
        }
        copy.check = check;
        copy.tag = tag;
        copy.stored.clear();
        copy.stored.extend_from_slice(stored);
    }

    /// Remembers the tag of a stored value that was opened.
    pub fn remember(&mut self, unknown: Unknown, tag: Tag) {
        self.by_stored.insert(unknown.0, tag);
    }

    /// The tag of a value, if it is the one that is held on this side.
    #[inline]
    pub fn held(&self, side: usize, plain: bool, value: &[u8]) -> Option<Tag> {
        let held = &self.held[side];
        if held.plain == plain && *held.bytes == value {
            held.tag
        } else {
            None
        }
    }

    /// Holds a stored value or a plaintext with its tag, until the next one on
    /// this side.
    pub fn hold(&mut self, side: usize, plain: bool, value: &[u8], tag: Tag) {
        let held = &mut self.held[side];
        held.bytes.fill(0);
        held.bytes.clear();
        held.plain = plain;
        held.tag = (value.len() <= LONGEST_HELD).then(|| {
            held.bytes.extend_from_slice(value);
            tag
        });
    }

    fn hash(&self, bytes: &[u8]) -> [u64; 2] {
        let mut hasher = self.hasher;
        hasher.write(bytes);
        let hash = hasher.finish128();
        [hash.h1, hash.h2]
    }
}

/// A stored value ends in an authentication tag, which is as good as a hash: its
/// last 8 bytes choose the slot, those before them are the check.
fn slot(stored: &[u8]) -> (usize, [u8; 8]) {
    let (rest, last) = stored.split_last_chunk().unwrap_or((&[], &[0; 8]));
    let check = rest.last_chunk().copied().unwrap_or_default();
    (u64::from_le_bytes(*last) as usize % COPIES, check)
}

/// A direct-mapped table from hashes to tags that grows up to a bound. What is
/// found often stays: each collision only takes one of its uses away.
struct Table {
    entries: Vec<Entry>,
    inserted: usize,
    most: usize,
}

#[derive(Clone, Copy)]
struct Entry {
    /// Zero if the entry is free. In halves, which need no alignment to 16.
    hash: [u64; 2],
    tag: Tag,
    uses: u8,
}

impl Table {
    const FEWEST: usize = 256;
    const FREE: Entry = Entry {
        hash: [0; 2],
        tag: Tag::ZERO,
        uses: 0,
    };
    fn new(most: usize) -> Self {
        Self {
            entries: vec![Self::FREE; Self::FEWEST],
            inserted: 0,
            most,
        }
    }

    fn find(&mut self, hash: [u64; 2]) -> Option<Tag> {
        let entry = self.entry(hash);
        if entry.hash != hash {
            return None;
        }
        entry.uses = MOST_USES.min(entry.uses + 1);
        Some(entry.tag)
    }

    fn insert(&mut self, hash: [u64; 2], tag: Tag) {
        self.inserted += 1;
        if self.inserted > self.entries.len() && self.entries.len() < self.most {
            let larger = vec![Self::FREE; self.most.min(self.entries.len() * 4)];
            let smaller = core::mem::replace(&mut self.entries, larger);
            for entry in smaller {
                *self.entry(entry.hash) = entry;
            }
        }
        let entry = self.entry(hash);
        if entry.uses > 0 {
            entry.uses -= 1;
        } else {
            *entry = Entry { hash, tag, uses: 0 };
        }
    }

    fn entry(&mut self, hash: [u64; 2]) -> &mut Entry {
        let slot = hash[0] as usize % self.entries.len();
        &mut self.entries[slot]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::SecretKey;

    fn key() -> IndexKey {
        IndexKey::new(&SecretKey::take(&mut [7; 32]))
    }

    fn memory() -> TagMemory {
        TagMemory::new(key()).expect("random bytes")
    }

    #[test]
    fn a_remembered_tag_is_the_tag() {
        let mut memory = memory();
        // More than there is room for, each twice.
        for _ in 0..2 {
            for i in 0..2 * MOST_PLAINTEXTS as u64 {
                let plaintext = i.to_be_bytes();
                assert_eq!(memory.tag(&plaintext), key().tag(&plaintext));
                if let Some(tag) = memory.recall_plaintext(&plaintext) {
                    assert_eq!(tag, key().tag(&plaintext));
                }
            }
        }
        assert_eq!(memory.tag(b""), key().tag(b""));
        assert_eq!(memory.recall_plaintext(b"new"), None);
    }

    #[test]
    fn only_the_same_stored_bytes_are_recalled() {
        let mut memory = memory();
        let tag = memory.tag(b"x");
        let stored = [9; 100];
        let unknown = memory.recall(&stored).expect_err("an empty memory");
        memory.remember(unknown, tag);
        memory.hold(1, false, &stored, tag);
        // From the table, and then from the copy.
        for _ in 0..2 {
            assert_eq!(memory.recall(&stored).ok(), Some(tag));
        }
        assert_eq!(memory.held(1, false, &stored), Some(tag));
        assert_eq!(memory.held(0, false, &stored), None);
        assert_eq!(memory.held(1, true, &stored), None, "stored is not plain");
        for byte in 0..stored.len() {
            let mut changed = stored;
            changed[byte] ^= 1;
            assert!(memory.recall(&changed).is_err());
            assert_eq!(memory.held(1, false, &changed), None);
        }
        assert!(memory.recall(&stored[1..]).is_err());
        assert!(memory.recall(b"").is_err());
        // Another value in the slot of the copy takes its place, and back.
        let mut other = stored;
        other[0] ^= 1;
        let other_tag = memory.tag(b"y");
        let unknown = memory.recall(&other).expect_err("another value");
        memory.remember(unknown, other_tag);
        for _ in 0..2 {
            assert_eq!(memory.recall(&other).ok(), Some(other_tag));
            assert_eq!(memory.recall(&stored).ok(), Some(tag));
        }
        assert_eq!(memory.held(1, false, b""), None);
        memory.hold(1, false, &[1; LONGEST_HELD + 1], tag);
        assert_eq!(memory.held(1, false, &[1; LONGEST_HELD + 1]), None);
        assert_eq!(
            memory.held(1, false, b""),
            None,
            "what is not held is not empty"
        );
    }

    #[test]
    fn the_table_is_bounded_and_keeps_what_is_used() {
        let mut memory = memory();
        let tag = memory.tag(b"often");
        let often = memory.recall(b"often").expect_err("an empty memory");
        memory.remember(often, tag);
        let mut kept = 0;
        for i in 0..4 * MOST_STORED as u64 {
            kept += usize::from(memory.recall(b"often").is_ok());
            if let Err(unknown) = memory.recall(&i.to_be_bytes()) {
                memory.remember(unknown, tag);
            }
        }
        assert_eq!(kept, 4 * MOST_STORED, "each time");
        assert_eq!(memory.by_stored.entries.len(), MOST_STORED);
    }
}
