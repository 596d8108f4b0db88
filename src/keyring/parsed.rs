//! Rings by their text, so that a passphrase is not derived twice. The texts
//! themselves are not kept.

use std::rc::Rc;

use colcrypt_core::{KeyRing, RingTextError, SecretText, SourceError};

/// Rings that are kept: the server's, the session's, and two that `SET LOCAL` may
/// come back to.
const LEN: usize = 4;

#[derive(Default)]
pub(super) struct Parsed(Vec<([u8; 32], Rc<KeyRing>)>);

impl Parsed {
    /// # Errors
    /// [`RingTextError`].
    pub(super) fn parse(&mut self, text: &SecretText) -> Result<Rc<KeyRing>, RingTextError> {
        let digest = text.digest();
        if let Some(ring) = self.find(&digest) {
            return Ok(ring);
        }
        let ring = Rc::new(KeyRing::parse(text.expose())?);
        if self.0.len() == LEN {
            self.0.remove(0);
        }
        self.0.push((digest, Rc::clone(&ring)));
        Ok(ring)
    }

    /// What a source gave.
    ///
    /// # Errors
    /// Why there is no ring, as text.
    pub(super) fn parse_source(
        &mut self,
        text: Result<SecretText, SourceError>,
    ) -> Result<Rc<KeyRing>, String> {
        let text = text.map_err(|error| error.to_string())?;
        self.parse(&text).map_err(|error| error.to_string())
    }

    /// The ring whose text has this digest, if it is kept.
    pub(super) fn find(&self, digest: &[u8; 32]) -> Option<Rc<KeyRing>> {
        let found = self.0.iter().find(|(known, _)| known == digest);
        found.map(|(_, ring)| Rc::clone(ring))
    }

    /// Drops, and so wipes, those that nobody else has.
    pub(super) fn drop_unused(&mut self) {
        self.0.retain(|(_, ring)| Rc::strong_count(ring) > 1);
    }
}
