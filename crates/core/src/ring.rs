//! The key ring: keys in order, the first one primary.

use core::fmt;

use crate::key::{Key, KeyId};
use crate::ring_text::{self, RingTextError};

/// One key of a ring, with the name that a JSON ring gave it.
pub struct RingKey {
    /// For people and views; selects nothing.
    pub name: Option<String>,
    /// The key.
    pub key: Key,
}

/// At least one key, no two with the same id; the first is the primary, which
/// encrypts.
pub struct KeyRing(Vec<RingKey>);

impl KeyRing {
    /// Reads ring text: a list of keys or a JSON document, see
    /// `docs/reference.md`. Takes tenths of a second for each passphrase.
    ///
    /// # Errors
    /// [`RingTextError`], which names the entry and never quotes it.
    pub fn parse(text: &str) -> Result<Self, RingTextError> {
        ring_text::parse(text).map(Self)
    }

    /// The key that encrypts.
    pub fn primary(&self) -> &Key {
        &self.0.first().expect("a ring holds at least one key").key
    }

    /// The key with this id.
    #[inline]
    pub fn find(&self, id: KeyId) -> Option<&Key> {
        self.keys().find(|key| key.id() == id)
    }

    /// All keys, the primary first.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.0.iter().map(|entry| &entry.key)
    }

    /// All keys with their names, the primary first.
    pub fn entries(&self) -> &[RingKey] {
        &self.0
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys()).finish()
    }
}
