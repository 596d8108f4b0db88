//! Equality search: values are compared, ordered and hashed by their tags
//! (`colcrypt_core::Tag`), so that operators, indexes and constraints work and
//! an index says nothing to those who have no key.

mod analyze;
mod operators;
mod prepare;
mod sort;
mod tags;

pub(crate) use prepare::install;

use core::cell::RefCell;
use core::cmp::Ordering;

use colcrypt_core::Tag;
use zeroize::Zeroizing;

use crate::backend_local::BackendLocal;
use crate::encoding;
use crate::error::Error;
use crate::sealing;
use crate::types::datum::Detoasted;

/// One side of a comparison.
enum Operand<'a> {
    /// A stored value.
    Sealed(Detoasted<'a>),
    /// Text of the database.
    Plain(Detoasted<'a>),
}

/// Where plaintexts are put for as long as they are looked at, one for each side.
/// Not palloc'd: an index compares in a memory context that lives as long as the
/// statement.
static ROOMS: BackendLocal<[RefCell<Option<Zeroizing<Vec<u8>>>>; 2]> =
    BackendLocal::new([RefCell::new(None), RefCell::new(None)]);

/// Room that is kept between values, in bytes.
const KEPT_ROOM: usize = 8192;

impl Operand<'_> {
    /// Lends the plaintext in UTF-8, which is wiped afterwards.
    fn with_plaintext<T>(&self, side: usize, work: impl FnOnce(&[u8]) -> T) -> Result<T, Error> {
        match self {
            Self::Plain(text) => Ok(work(&encoding::to_utf8(text))),
            Self::Sealed(stored) => {
                let mut room = ROOMS[side].borrow_mut();
                let room = room.get_or_insert_with(Zeroizing::default);
                let plaintext = sealing::open_utf8(stored, room)?;
                let len = plaintext.len();
                let result = work(plaintext);
                room[..len].fill(0);
                // The compiler may not leave the wiping away.
                core::hint::black_box(room.as_ptr());
                if room.len() > KEPT_ROOM {
                    *room = Zeroizing::default();
                }
                Ok(result)
            }
        }
    }

    fn tag(&self) -> Result<Tag, Error> {
        tags::with_memory(|memory| match self {
            Self::Plain(_) => self.with_plaintext(0, |plaintext| memory.tag(plaintext)),
            Self::Sealed(stored) => {
                if let Some(tag) = memory.recall(stored) {
                    return Ok(tag);
                }
                let tag = self.with_plaintext(0, |plaintext| memory.tag(plaintext))?;
                memory.remember(stored, tag);
                Ok(tag)
            }
        })
    }
}

/// Whether two values have the same plaintext. Needs no index key.
fn equal(left: &Operand<'_>, right: &Operand<'_>) -> Result<bool, Error> {
    if let (Operand::Sealed(a), Operand::Sealed(b)) = (left, right)
        && let Some(equal) = tags::recall_both(a, b)
    {
        return Ok(equal);
    }
    left.with_plaintext(0, |a| right.with_plaintext(1, |b| a == b))?
}

/// Orders two values by their tags.
fn compare(left: &Operand<'_>, right: &Operand<'_>) -> Result<Ordering, Error> {
    Ok(left.tag()?.cmp(&right.tag()?))
}
