//! Tags that were made lately, so that what is compared again and again, the
//! upper pages of a btree or the groups of a GROUP BY, is opened once.
//!
//! Found by the whole stored value, so that a changed value is never taken for the
//! genuine one. No plaintext is kept, but for the last one looked for.

use zeroize::Zeroizing;

use crate::blind_index::{IndexKey, Tag};

/// Slots for copies of stored values: 2 MB, so that they stay in the CPU's caches.
/// Making a tag costs not much more than memory that is not there.
const COPIES: usize = 1 << 14;
/// So many bytes of a stored value are beside its tag, in two lines of the cache: all of
/// a plaintext of 64 bytes.
const HEAD: usize = 110;
/// Longest stored value that is copied, in bytes.
const LONGEST_COPY: usize = 512;
/// Longest value of which a copy is held, in bytes.
const LONGEST_HELD: usize = 4096;

/// An index key with the tags it made last.
pub struct TagMemory {
    key: IndexKey,
    /// What is in each slot, and whether it is used; apart from the copies, because
    /// most values that are looked for are not there, and so little stays in the
    /// nearest cache.
    slots: Vec<Slot>,
    records: Vec<Record>,
    /// What does not fit into each copy; empty until there is something.
    rests: Vec<Box<[u8]>>,
    /// The last value on each side of a comparison.
    held: [Held; 2],
}

/// Tells a value from most others by some of its bytes.
#[derive(Clone, Copy, Default)]
struct Slot {
    check: [u8; 7],
    uses: Uses,
}

/// The tag of a stored value, and the value's first bytes; its length is 0 if the slot
/// is free.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Record {
    tag: Tag,
    len: u16,
    head: [u8; HEAD],
}

impl Record {
    const FREE: Self = Self {
        tag: Tag::ZERO,
        len: 0,
        head: [0; HEAD],
    };
}

/// A stored value in two: what is in a [`Record`], and the rest.
fn split(stored: &[u8]) -> (&[u8], &[u8]) {
    stored.split_at(stored.len().min(HEAD))
}

/// A value with its tag.
#[derive(Default)]
struct Held {
    bytes: Zeroizing<Vec<u8>>,
    tag: Option<Tag>,
    /// Whether it is a plaintext: what the query looks for, given by its client.
    plain: bool,
}

impl TagMemory {
    /// An empty memory.
    pub fn new(key: IndexKey) -> Self {
        Self {
            key,
            slots: Vec::new(),
            records: Vec::new(),
            rests: Vec::new(),
            held: Default::default(),
        }
    }

    /// The tag of a plaintext.
    pub fn tag(&mut self, plaintext: &[u8]) -> Tag {
        self.key.tag(plaintext)
    }

    /// The tag of a stored value, if it is remembered.
    pub fn recall(&mut self, stored: &[u8]) -> Option<Tag> {
        let (number, check) = place(stored);
        let slot = self.slots.get_mut(number)?;
        if slot.check != check {
            return None;
        }
        let record = &self.records[number];
        let (head, rest) = split(stored);
        if stored.is_empty()
            || usize::from(record.len) != stored.len()
            || record.head[..head.len()] != *head
            || (!rest.is_empty() && *self.rests[number] != *rest)
        {
            return None;
        }
        slot.uses.found();
        Some(record.tag)
    }

    /// Remembers the tag of a stored value that was opened, unless another one is
    /// in its place that is used more.
    pub fn remember(&mut self, stored: &[u8], tag: Tag) {
        if stored.is_empty() || stored.len() > LONGEST_COPY {
            return;
        }
        if self.records.is_empty() {
            self.records = vec![Record::FREE; COPIES];
            self.slots = vec![Slot::default(); COPIES];
        }
        let (number, check) = place(stored);
        let slot = &mut self.slots[number];
        if !slot.uses.give_way() {
            return;
        }
        slot.check = check;
        let (head, rest) = split(stored);
        if !rest.is_empty() && self.rests.is_empty() {
            self.rests = vec![Box::default(); COPIES];
        }
        if let Some(kept) = self.rests.get_mut(number) {
            *kept = rest.into();
        }
        let record = &mut self.records[number];
        record.tag = tag;
        // `LONGEST_COPY` fits.
        record.len = stored.len() as u16;
        record.head[..head.len()].copy_from_slice(head);
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

    /// Wipes plaintexts that are held: what was looked for is over.
    pub fn forget_plaintexts(&mut self) {
        for held in self.held.iter_mut().filter(|held| held.plain) {
            held.bytes.fill(0);
            held.bytes.clear();
            held.tag = None;
        }
    }
}

/// Where a value is put, and what tells it from most others there: bytes that
/// differ from value to value in every suite, nonce or ciphertext, and are near
/// the start, which the reader has just looked at.
fn place(stored: &[u8]) -> (usize, [u8; 7]) {
    let (number, check) = match stored
        .get(21..36)
        .and_then(|bytes| bytes.split_first_chunk())
    {
        Some((number, check)) => (*number, check.try_into().unwrap_or_default()),
        None => Default::default(),
    };
    (u64::from_be_bytes(number) as usize % COPIES, check)
}

/// How often something was found lately. What is found often stays: each collision
/// only takes one of its uses away.
#[derive(Clone, Copy, Default)]
struct Uses(u8);

impl Uses {
    /// After as many collisions without a find the most used entry goes.
    const MOST: u8 = 8;

    fn found(&mut self) {
        self.0 = Self::MOST.min(self.0 + 1);
    }

    /// Whether another one takes the place.
    fn give_way(&mut self) -> bool {
        let unused = self.0 == 0;
        self.0 = self.0.saturating_sub(1);
        unused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blind_index::TagFunction;
    use crate::secret::SecretKey;

    fn memory() -> TagMemory {
        let key = SecretKey::take(&mut [7; 32]);
        TagMemory::new(IndexKey::new(&key, TagFunction::default()))
    }

    #[test]
    fn only_the_same_stored_bytes_are_recalled() {
        only_the_same_are_recalled([9; 100]);
        only_the_same_are_recalled([9; HEAD]);
        only_the_same_are_recalled([9; HEAD + 1]);
        only_the_same_are_recalled([9; LONGEST_COPY]);
    }

    fn only_the_same_are_recalled<const N: usize>(stored: [u8; N]) {
        let mut memory = memory();
        let tag = memory.tag(b"x");
        assert_eq!(memory.recall(&stored), None, "an empty memory");
        memory.remember(&stored, tag);
        memory.hold(1, false, &stored, tag);
        assert_eq!(memory.recall(&stored), Some(tag));
        assert_eq!(memory.held(1, false, &stored), Some(tag));
        assert_eq!(memory.held(0, false, &stored), None);
        assert_eq!(memory.held(1, true, &stored), None, "stored is not plain");
        memory.forget_plaintexts();
        assert_eq!(memory.held(1, false, &stored), Some(tag));
        for byte in 0..stored.len() {
            let mut changed = stored;
            changed[byte] ^= 1;
            assert_eq!(memory.recall(&changed), None);
            assert_eq!(memory.held(1, false, &changed), None);
        }
        assert_eq!(memory.recall(&stored[1..]), None);
        assert_eq!(memory.recall(&stored[..HEAD.min(N - 1)]), None);
        // A short value takes the place of a long one, and the other way round.
        for other in [&stored[..50], &stored] {
            for _ in 0..=Uses::MOST {
                memory.remember(other, tag);
            }
            assert_eq!(memory.recall(other), Some(tag));
        }
        assert_eq!(memory.recall(&stored[..50]), None);
        assert_eq!(memory.recall(b""), None);
    }

    #[test]
    fn values_too_long_or_empty_are_neither_remembered_nor_held() {
        let mut memory = memory();
        let tag = memory.tag(b"x");
        for value in [vec![], vec![1; LONGEST_COPY + 1]] {
            memory.remember(&value, tag);
            assert_eq!(memory.recall(&value), None);
        }
        assert_eq!(memory.held(1, false, b""), None);
        memory.hold(1, false, &[1; LONGEST_HELD + 1], tag);
        assert_eq!(memory.held(1, false, &[1; LONGEST_HELD + 1]), None);
        assert_eq!(memory.held(1, false, b""), None);
    }

    #[test]
    fn the_memory_is_bounded_and_keeps_what_is_used() {
        let mut memory = memory();
        let (often, others) = ([7; 45], memory.tag(b"others"));
        let tag = memory.tag(b"often");
        memory.remember(&often, tag);
        let value = |i: u64| {
            let mut value = [0; 45];
            value[21..29].copy_from_slice(&i.to_be_bytes());
            value
        };
        let count = 8 * COPIES as u64;
        for i in 0..count {
            assert_eq!(memory.recall(&often), Some(tag));
            memory.remember(&value(i), others);
        }
        assert_eq!(memory.records.len(), COPIES);
        let recalled = (0..count).filter(|i| memory.recall(&value(*i)).is_some());
        assert!(
            recalled.count() > COPIES / 2,
            "others are remembered as well"
        );
    }

    #[test]
    fn another_value_in_its_place_takes_it_once_it_is_not_used() {
        let mut memory = memory();
        let (old, new) = (memory.tag(b"old"), memory.tag(b"new"));
        let stored = [9; 100];
        let mut other = stored;
        other[0] ^= 1;
        memory.remember(&stored, old);
        assert_eq!(memory.recall(&stored), Some(old));
        memory.remember(&other, new);
        assert_eq!(memory.recall(&stored), Some(old), "it was used");
        for _ in 0..=Uses::MOST {
            memory.remember(&other, new);
        }
        assert_eq!(memory.recall(&other), Some(new));
        assert_eq!(memory.recall(&stored), None);
    }
}
