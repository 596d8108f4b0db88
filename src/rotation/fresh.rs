//! Which values are stale, and what they are to be sealed under instead.

use colcrypt_core::{KeyId, Stored, Suite};
use pgrx::prelude::*;

use crate::error::Error;
use crate::sealing::Sealer;
use crate::types::datum::first_bytes;

/// A key, with the header of what is sealed under it.
type Target = (Sealer, (Suite, KeyId));

/// What the values of a column are to be sealed under.
pub(super) struct Fresh {
    modifier: i32,
    /// The last key that was asked for.
    last: Option<(KeyId, Option<Target>)>,
    /// Destroyed keys that were told of.
    destroyed: Vec<KeyId>,
}

impl Fresh {
    pub(super) fn new(modifier: i32) -> Self {
        Self {
            modifier,
            last: None,
            destroyed: Vec::new(),
        }
    }

    /// What a stored value is to be sealed under, if not as it is; judged by its header
    /// alone.
    ///
    /// # Safety
    /// The value is of an encrypted type.
    ///
    /// # Errors
    /// [`Error::Malformed`]; as [`Sealer::of_stored_value`].
    #[inline]
    pub(super) unsafe fn sealer_if_stale(
        &mut self,
        value: pg_sys::Datum,
    ) -> Result<Option<&Sealer>, Error> {
        // SAFETY: by the caller's word.
        let bytes = unsafe { first_bytes::<{ Stored::HEADER_LEN }>(value) };
        let header = Stored::parse_header(&bytes.ok_or(Error::Malformed)?)?;
        let (_, id) = header;
        if self.last.as_ref().is_none_or(|(known, _)| *known != id) {
            let sealer = Sealer::of_stored_value(id, self.modifier)?;
            let fresh = match sealer {
                Some(sealer) => {
                    let fresh = sealer.header()?;
                    Some((sealer, fresh))
                }
                None => {
                    if !self.destroyed.contains(&id) {
                        pgrx::notice!(
                            "values under destroyed encryption key {id} stay as they are"
                        );
                        self.destroyed.push(id);
                    }
                    None
                }
            };
            self.last = Some((id, fresh));
        }
        let last = self.last.as_ref().and_then(|(_, last)| last.as_ref());
        Ok(last.and_then(|(sealer, fresh)| (*fresh != header).then_some(sealer)))
    }
}
