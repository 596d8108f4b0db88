//! The blind index: a keyed tag of the plaintext stands for it where values are
//! compared, ordered and hashed, so that an index tells those who have no key
//! nothing of what it indexes.

use core::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::kdf;
use crate::key::KeyId;
use crate::secret::SecretKey;

/// `HMAC-SHA-256(index key, plaintext)[..16]` (RFC 2104): equal tags are equal
/// plaintexts. Orders as bytes do; the order means nothing without the key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag([u8; Tag::LEN]);

impl Tag {
    /// Length of a tag, in bytes.
    pub const LEN: usize = 16;

    /// No plaintext's tag, but with probability 2^-128.
    pub(crate) const ZERO: Self = Self([0; Self::LEN]);

    /// What stands for the tag of a stored value that cannot be opened, where the
    /// order does not matter as long as there is one: its last 16 bytes.
    pub fn stand_in(stored: &[u8]) -> Self {
        let mut tag = [0; Self::LEN];
        let last = &stored[stored.len().saturating_sub(Self::LEN)..];
        tag[..last.len()].copy_from_slice(last);
        Self(tag)
    }

    /// The first 8 bytes, big-endian: orders as the tag does, but for ties.
    pub fn prefix(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }

    /// 32 bits of the tag, its first 4 bytes big-endian: what a hash index
    /// stores.
    pub fn hash(&self) -> u32 {
        (self.prefix() >> 32) as u32
    }

    /// 64 bits that depend on a seed, for hash partitioning. With seed 0 the low
    /// 32 bits are [`Tag::hash`], as PostgreSQL asks of extended hash functions
    /// (`src/backend/access/hash/hashfunc.c`).
    pub fn hash_extended(&self, seed: u64) -> u64 {
        let hash = self.prefix().rotate_left(32);
        if seed == 0 {
            return hash;
        }
        // hash_combine64() of src/include/common/hashfn.h. The input is uniform
        // already; frozen, because partitions depend on it.
        let mixed = seed
            .wrapping_add(0x49a0_f4dd_15e5_a8e3)
            .wrapping_add(hash << 54)
            .wrapping_add(hash >> 7);
        (hash ^ mixed).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// The key of a database's blind indexes, ready to make tags.
pub struct IndexKey {
    id: KeyId,
    mac: Hmac<Sha256>,
}

impl IndexKey {
    /// Takes the key, which is wiped; its HMAC state is kept.
    pub fn new(key: &SecretKey) -> Self {
        Self {
            id: kdf::key_id(key),
            mac: Hmac::new_from_slice(key.expose()).expect("HMAC takes a key of any length"),
        }
    }

    /// The key's fingerprint.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The tag of a plaintext of any length, in UTF-8 if it is text.
    pub fn tag(&self, plaintext: &[u8]) -> Tag {
        let mut mac = self.mac.clone();
        mac.update(plaintext);
        let full: [u8; 32] = mac.finalize().into_bytes().into();
        let (tag, _) = full.split_first_chunk().expect("32 bytes have a first 16");
        Tag(*tag)
    }
}

impl fmt::Debug for IndexKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IndexKey({})", self.id)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tag(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> IndexKey {
        IndexKey::new(&SecretKey::take(&mut core::array::from_fn(|i| i as u8)))
    }

    /// Made with Python: `hmac.new(bytes(range(32)), b"alice@example.com",
    /// "sha256").digest()[:16]`.
    #[test]
    fn tags_are_frozen() {
        let tag = key().tag(b"alice@example.com");
        assert_eq!(hex::encode(tag.0), TAG);
        assert_eq!(format!("{:08x}", tag.hash()), TAG[..8]);
        assert_eq!(tag.hash_extended(0) as u32, tag.hash());
        assert_eq!(tag.hash_extended(7), EXTENDED);
        assert_ne!(tag.hash_extended(7), tag.hash_extended(8));
    }

    #[test]
    fn stand_ins_tell_values_apart_as_far_as_their_ends_differ() {
        assert_eq!(Tag::stand_in(b""), Tag::ZERO);
        assert_eq!(Tag::stand_in(&[1; 16]), Tag::stand_in(&[1; 17]));
        assert_ne!(Tag::stand_in(b"a"), Tag::stand_in(b"b"));
    }

    #[test]
    fn the_prefix_orders_as_the_tag_does() {
        let key = key();
        let mut tags: Vec<_> = (0u32..1000).map(|i| key.tag(&i.to_be_bytes())).collect();
        tags.sort_by_key(Tag::prefix);
        assert!(tags.is_sorted());
    }

    #[test]
    fn debug_output_shows_no_tag() {
        assert_eq!(format!("{:?}", key().tag(b"x")), "Tag(..)");
        assert_eq!(format!("{:?}", key()), "IndexKey(dff573a2)");
    }

    const TAG: &str = "a59fc578d4cb46faab1d6eb348e7c74b";
    const EXTENDED: u64 = 0xfb74_0d38_27a8_81fc;
}
