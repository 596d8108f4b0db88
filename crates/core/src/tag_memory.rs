//! Tags that were made lately, so that what is compared again and again, the
//! upper pages of a btree or the groups of a GROUP BY, is opened and hashed once.
//!
//! Two direct-mapped tables of bounded size: by the whole stored value, so that a
//! changed value is never taken for the genuine one; and by a keyed hash of the
//! plaintext, so that no plaintext stays in memory.

use core::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher24};

use crate::blind_index::{IndexKey, Tag};
use crate::nonce::RandomError;

/// Slots of each table, a power of two.
const SLOTS: usize = 4096;

/// Longest stored value that is remembered, in bytes.
const LONGEST: usize = 512;

/// An index key with the tags it made last. At most about 2.5 MB.
pub struct TagMemory {
    key: IndexKey,
    /// SipHash-2-4 with 128 bits of output under a random key: two plaintexts
    /// share a hash with probability 2^-128.
    hasher: SipHasher24,
    by_stored: Box<[Option<(Box<[u8]>, Tag)>]>,
    by_plaintext: Box<[Option<(u128, Tag)>]>,
}

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
            hasher: SipHasher24::new_with_key(&hash_key),
            by_stored: (0..SLOTS).map(|_| None).collect(),
            by_plaintext: (0..SLOTS).map(|_| None).collect(),
        })
    }

    /// The tag of a plaintext.
    pub fn tag(&mut self, plaintext: &[u8]) -> Tag {
        let mut hasher = self.hasher;
        hasher.write(plaintext);
        let hash = hasher.finish128().as_u128();
        let slot = &mut self.by_plaintext[hash as usize % SLOTS];
        match slot {
            Some((known, tag)) if *known == hash => *tag,
            _ => slot.insert((hash, self.key.tag(plaintext))).1,
        }
    }

    /// The tag of a stored value, if it is remembered.
    pub fn recall(&self, stored: &[u8]) -> Option<Tag> {
        match &self.by_stored[slot(stored)] {
            Some((known, tag)) if **known == *stored => Some(*tag),
            _ => None,
        }
    }

    /// Remembers the tag of a stored value that was opened.
    pub fn remember(&mut self, stored: &[u8], tag: Tag) {
        if stored.len() > LONGEST {
            return;
        }
        match &mut self.by_stored[slot(stored)] {
            Some((known, old)) if known.len() == stored.len() => {
                known.copy_from_slice(stored);
                *old = tag;
            }
            other => *other = Some((stored.into(), tag)),
        }
    }
}

/// A stored value ends in an authentication tag, which is as good as a hash.
fn slot(stored: &[u8]) -> usize {
    let last = stored.last_chunk().copied().unwrap_or_default();
    u64::from_le_bytes(last) as usize % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::SecretKey;

    fn key() -> IndexKey {
        IndexKey::new(&SecretKey::take(&mut [7; 32]))
    }

    #[test]
    fn a_remembered_tag_is_the_tag() {
        let key = key();
        let mut memory = TagMemory::new(self::key()).expect("random bytes");
        // More than there are slots, each twice.
        for round in 0..2 {
            for i in 0..3 * SLOTS as u64 {
                let plaintext = i.to_be_bytes();
                assert_eq!(memory.tag(&plaintext), key.tag(&plaintext), "round {round}");
            }
        }
        assert_eq!(memory.tag(b""), key.tag(b""));
    }

    #[test]
    fn only_the_same_stored_bytes_are_recalled() {
        let mut memory = TagMemory::new(key()).expect("random bytes");
        let tag = memory.tag(b"x");
        let stored = [9; 100];
        assert_eq!(memory.recall(&stored), None);
        memory.remember(&stored, tag);
        assert_eq!(memory.recall(&stored), Some(tag));
        for byte in 0..stored.len() {
            let mut changed = stored;
            changed[byte] ^= 1;
            assert_eq!(memory.recall(&changed), None);
        }
        assert_eq!(memory.recall(&stored[1..]), None);
        // Another value in the same slot takes its place.
        let mut other = stored;
        other[0] ^= 1;
        let other_tag = memory.tag(b"y");
        memory.remember(&other, other_tag);
        assert_eq!(memory.recall(&stored), None);
        assert_eq!(memory.recall(&other), Some(other_tag));
        memory.remember(&other[2..], tag);
        assert_eq!(memory.recall(&other[2..]), Some(tag));
        assert_eq!(memory.recall(b""), None);
    }

    #[test]
    fn long_values_are_not_kept() {
        let mut memory = TagMemory::new(key()).expect("random bytes");
        let tag = memory.tag(b"x");
        memory.remember(&[1; LONGEST + 1], tag);
        assert_eq!(memory.recall(&[1; LONGEST + 1]), None);
    }
}
