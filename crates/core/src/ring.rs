//! The key ring: keys in order, the first one primary.

use core::fmt;

use zeroize::Zeroizing;

use crate::key::{Key, KeyId};
use crate::nonce::RandomError;
use crate::ring_text::{self, RingTextError};
use crate::secret::{SecretKey, without_traces};

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
        without_traces(|| ring_text::parse(text).map(Self))
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

/// How a process hands its ring to those that it has forked before it read the ring:
/// for each key 32 bytes, the length of its name in one byte, 0 for none, and the
/// name.
impl KeyRing {
    /// The ring as bytes, wiped when dropped.
    pub fn to_image(&self) -> Zeroizing<Vec<u8>> {
        let name = |entry: &RingKey| entry.name.as_ref().map_or(0, String::len);
        let len = self.0.iter().map(|entry| SecretKey::LEN + 1 + name(entry));
        // One allocation of the final size: growing would leave copies behind.
        let mut image = Zeroizing::new(Vec::with_capacity(len.sum()));
        for entry in &self.0 {
            let name = entry.name.as_deref().unwrap_or_default();
            image.extend_from_slice(entry.key.secret().expose());
            image.push(u8::try_from(name.len()).expect("a name has at most 124 bytes"));
            image.extend_from_slice(name.as_bytes());
        }
        image
    }

    /// The ring that an image is of; `None` if it is of none.
    pub fn from_image(image: &[u8]) -> Option<Self> {
        let mut rest = image;
        let mut keys = Vec::new();
        while !rest.is_empty() {
            let (key, after) = rest.split_first_chunk::<{ SecretKey::LEN }>()?;
            let (len, after) = after.split_first()?;
            let (name, after) = after.split_at_checked(usize::from(*len))?;
            let name = core::str::from_utf8(name).ok()?;
            let mut key = Zeroizing::new(*key);
            keys.push(RingKey {
                name: (!name.is_empty()).then(|| name.to_owned()),
                key: Key::new(SecretKey::take(&mut key)),
            });
            rest = after;
        }
        (!keys.is_empty()).then_some(Self(keys))
    }

    /// A ring of one random key.
    ///
    /// # Errors
    /// [`RandomError`].
    pub fn random() -> Result<Self, RandomError> {
        let key = Key::new(SecretKey::random()?);
        Ok(Self(vec![RingKey { name: None, key }]))
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_gives_the_same_ring() {
        let key = |byte: u8| hex::encode([byte; 32]);
        let named = format!(
            r#"{{"primary": "näme", "keys": {{"old": "{}", "näme": "{}"}}}}"#,
            key(1),
            key(2)
        );
        for text in [key(1), format!("{},{}", key(2), key(1)), named] {
            let ring = KeyRing::parse(&text).expect("a ring");
            let again = KeyRing::from_image(&ring.to_image()).expect("an image");
            assert_eq!(again.entries().len(), ring.entries().len());
            for (a, b) in again.entries().iter().zip(ring.entries()) {
                assert_eq!(a.key.secret().expose(), b.key.secret().expose());
                assert_eq!((a.key.id(), &a.name), (b.key.id(), &b.name));
            }
        }
    }

    #[test]
    fn what_is_no_image_gives_no_ring() {
        let image = KeyRing::random().expect("random bytes").to_image();
        assert!(KeyRing::from_image(&[]).is_none());
        for len in 1..image.len() {
            assert!(KeyRing::from_image(&image[..len]).is_none());
        }
        let mut named = image.to_vec();
        *named.last_mut().expect("a length") = 1;
        assert!(KeyRing::from_image(&named).is_none());
        named.push(0xff);
        assert!(KeyRing::from_image(&named).is_none());
    }

    #[test]
    fn random_rings_differ() {
        let ids = [(); 8].map(|()| KeyRing::random().expect("random bytes").primary().id());
        assert!(ids.windows(2).any(|pair| pair[0] != pair[1]));
    }
}
