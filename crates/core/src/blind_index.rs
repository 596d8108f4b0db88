//! The blind index: a keyed tag of the plaintext stands for it where values are
//! compared, ordered and hashed, so that an index tells those who have no key
//! nothing of what it indexes.

use core::fmt;

use aes::Aes256Enc;
use cmac::Cmac;
use colcrypt_memory::Guarded;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::kdf;
use crate::key::KeyId;
use crate::secret::{SecretKey, guard};

/// 16 bytes that a [`TagFunction`] makes of a plaintext: equal tags are equal
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

/// How an index key makes tags: a property of the key, because an index is in the
/// order of the tags it was built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TagFunction {
    /// AES-256-CMAC (NIST SP 800-38B) under the key's own subkey: a tenth of the
    /// time of HMAC-SHA-256 on a CPU without SHA instructions.
    #[default]
    Aes256Cmac,
    /// HMAC-SHA-256 (RFC 2104) under the key itself, cut to 16 bytes.
    HmacSha256,
}

impl TagFunction {
    /// Both, the default first.
    pub const ALL: [Self; 2] = [Self::Aes256Cmac, Self::HmacSha256];

    /// The name, as in the key table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes256Cmac => "aes-256-cmac",
            Self::HmacSha256 => "hmac-sha-256",
        }
    }

    /// The function with this name. The first index keys were HMAC-SHA-256 keys
    /// and had no name for it.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "" => Some(Self::HmacSha256),
            name => Self::ALL.into_iter().find(|known| known.name() == name),
        }
    }
}

/// The key of a database's blind indexes, ready to make tags.
pub struct IndexKey {
    id: KeyId,
    mac: Prf,
}

enum Prf {
    Cmac(Guarded<Cmac<Aes256Enc>>),
    Hmac(Guarded<Hmac<Sha256>>),
}

impl IndexKey {
    /// Takes the key, which is wiped; the state made of it is kept.
    pub fn new(key: &SecretKey, function: TagFunction) -> Self {
        const ANY: &str = "a MAC takes a key of 32 bytes";
        let mac = match function {
            TagFunction::Aes256Cmac => {
                let subkey = kdf::subkey(key, function.name());
                Prf::Cmac(guard(|| {
                    KeyInit::new_from_slice(subkey.expose()).expect(ANY)
                }))
            }
            TagFunction::HmacSha256 => {
                Prf::Hmac(guard(|| KeyInit::new_from_slice(key.expose()).expect(ANY)))
            }
        };
        Self {
            id: kdf::key_id(key),
            mac,
        }
    }

    /// The key's fingerprint.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The tag of a plaintext of any length, in UTF-8 if it is text.
    pub fn tag(&mut self, plaintext: &[u8]) -> Tag {
        match &mut self.mac {
            // Copying the key schedule, as for HMAC, would take as long again.
            Prf::Cmac(mac) => {
                mac.update(plaintext);
                let tag = Tag(mac.finalize_reset().into_bytes().into());
                // The last block of the plaintext is still in its buffer.
                mac.update(&[0; Tag::LEN]);
                Mac::reset(&mut **mac);
                tag
            }
            Prf::Hmac(mac) => {
                let mut mac = (**mac).clone();
                mac.update(plaintext);
                let full: [u8; 32] = mac.finalize().into_bytes().into();
                let (tag, _) = full.split_first_chunk().expect("32 bytes have a first 16");
                Tag(*tag)
            }
        }
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

    fn key(function: TagFunction) -> IndexKey {
        IndexKey::new(
            &SecretKey::take(&mut core::array::from_fn(|i| i as u8)),
            function,
        )
    }

    /// Made with Python: `hmac.new(bytes(range(32)), b"alice@example.com",
    /// "sha256").digest()[:16]`, and `cryptography`'s HKDF and CMAC as
    /// `docs/format.md` has it.
    #[test]
    fn tags_are_frozen() {
        for (function, expected) in [
            (TagFunction::HmacSha256, "a59fc578d4cb46faab1d6eb348e7c74b"),
            (TagFunction::Aes256Cmac, CMAC),
        ] {
            let mut key = key(function);
            for _ in 0..2 {
                assert_eq!(hex::encode(key.tag(b"alice@example.com").0), expected);
            }
        }
        let tag = key(TagFunction::HmacSha256).tag(b"alice@example.com");
        assert_eq!(format!("{:08x}", tag.hash()), "a59fc578");
        assert_eq!(tag.hash_extended(0) as u32, tag.hash());
        assert_eq!(tag.hash_extended(7), 0xfb74_0d38_27a8_81fc);
        assert_ne!(tag.hash_extended(7), tag.hash_extended(8));
    }

    #[test]
    fn functions_are_found_by_name_and_nothing_else_is() {
        for function in TagFunction::ALL {
            assert_eq!(TagFunction::from_name(function.name()), Some(function));
        }
        assert_eq!(TagFunction::from_name(""), Some(TagFunction::HmacSha256));
        assert_eq!(TagFunction::from_name("crc32"), None);
    }

    #[test]
    fn stand_ins_tell_values_apart_as_far_as_their_ends_differ() {
        assert_eq!(Tag::stand_in(b""), Tag::ZERO);
        assert_eq!(Tag::stand_in(&[1; 16]), Tag::stand_in(&[1; 17]));
        assert_ne!(Tag::stand_in(b"a"), Tag::stand_in(b"b"));
    }

    #[test]
    fn the_prefix_orders_as_the_tag_does() {
        let mut key = key(TagFunction::default());
        let mut tags: Vec<_> = (0u32..1000).map(|i| key.tag(&i.to_be_bytes())).collect();
        tags.sort_by_key(Tag::prefix);
        assert!(tags.is_sorted());
    }

    #[test]
    fn debug_output_shows_no_tag() {
        for function in TagFunction::ALL {
            assert_eq!(format!("{:?}", key(function).tag(b"x")), "Tag(..)");
            assert_eq!(format!("{:?}", key(function)), "IndexKey(dff573a2)");
        }
    }

    const CMAC: &str = "cc5f0e9f61e8087adeb835121c6bc7eb";
}
