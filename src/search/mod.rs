//! Equality search: values are compared, ordered and hashed by their tags
//! (`colcrypt_core::Tag`), so that operators, indexes and constraints work and
//! an index says nothing to those who have no key.

mod analyze;
pub(crate) mod comparisons;
pub(crate) mod operators;
pub(crate) mod prepare;
mod sort;
mod tags;

pub(crate) use analyze::typanalyze;
pub(crate) use operators::search_functions;
pub(crate) use sort::sort_support;
pub(crate) use tags::forget_plaintexts;

use core::cell::RefCell;
use core::cmp::Ordering;
use core::marker::PhantomData;

use colcrypt_core::{Payload, Tag, TagMemory, with_canonical_numbers};
use zeroize::Zeroizing;

use crate::access;
use crate::backend_local::BackendLocal;
use crate::compat;
use crate::encoding;
use crate::error::Error;
use crate::sealing;
use crate::tally::{self, Operation};
use crate::types::EncryptedType;
use crate::types::datum::Detoasted;
use crate::types::json;

/// One side of a comparison.
pub(crate) enum Operand<'a> {
    /// A stored value.
    Sealed(Payload, Detoasted<'a>),
    /// A value of the plain type.
    Plain(Payload, Detoasted<'a>),
}

/// The type of an operand, for functions that are declared for it.
pub(crate) trait Side {
    const PAYLOAD: Payload;
    /// Whether it is the plain type.
    const IS_PLAIN: bool;

    fn operand(value: Detoasted<'_>) -> Operand<'_>;
}

/// An encrypted type.
pub(crate) struct Sealed<T>(PhantomData<T>);
/// Its plain type.
pub(crate) struct Plain<T>(PhantomData<T>);

impl<T: EncryptedType> Side for Sealed<T> {
    const PAYLOAD: Payload = T::PAYLOAD;
    const IS_PLAIN: bool = false;

    #[inline]
    fn operand(value: Detoasted<'_>) -> Operand<'_> {
        Operand::Sealed(T::PAYLOAD, value)
    }
}

impl<T: EncryptedType> Side for Plain<T> {
    const PAYLOAD: Payload = T::PAYLOAD;
    const IS_PLAIN: bool = true;

    #[inline]
    fn operand(value: Detoasted<'_>) -> Operand<'_> {
        Operand::Plain(T::PAYLOAD, value)
    }
}

/// Where plaintexts are put for as long as they are looked at, one for each side.
/// Not palloc'd: an index compares in a memory context that lives as long as the
/// statement.
static ROOMS: BackendLocal<[RefCell<Room>; 2]> =
    BackendLocal::new([const { RefCell::new(None) }; 2]);

type Room = Option<Zeroizing<Vec<u8>>>;

/// Room that is kept between values, in bytes.
const KEPT_ROOM: usize = 8192;

/// Lends the plaintext of a stored value, which is wiped afterwards: in the form that
/// equal values share, in UTF-8 if it is text.
///
/// # Errors
/// As [`sealing::open_utf8`].
fn with_opened<T>(
    side: usize,
    payload: Payload,
    stored: &[u8],
    work: impl FnOnce(&[u8]) -> T,
) -> Result<T, Error> {
    let mut room = ROOMS[side].borrow_mut();
    let room = Wiped {
        room: room.get_or_insert_with(Zeroizing::default),
        // No plaintext is longer.
        used: stored.len(),
    };
    let plaintext = sealing::open_utf8(Some(Operation::Compare), payload, stored, room.room)?;
    Ok(with_canonical(payload, &plaintext, work))
}

/// Lends a plaintext in the form that equal ones share.
#[inline]
fn with_canonical<T>(payload: Payload, plaintext: &[u8], work: impl FnOnce(&[u8]) -> T) -> T {
    match payload {
        Payload::Text | Payload::Bytea => work(plaintext),
        Payload::Jsonb => match with_canonical_numbers(plaintext) {
            Some(canonical) => work(&canonical),
            None => work(plaintext),
        },
    }
}

/// Wipes what was used of a room, also if an error unwinds.
struct Wiped<'a> {
    room: &'a mut Zeroizing<Vec<u8>>,
    used: usize,
}

impl Drop for Wiped<'_> {
    fn drop(&mut self) {
        if self.room.len() > KEPT_ROOM {
            *self.room = Zeroizing::default();
        } else {
            let used = self.used.min(self.room.len());
            self.room[..used].fill(0);
            // The compiler may not leave the wiping away.
            core::hint::black_box(self.room.as_ptr());
        }
    }
}

impl Operand<'_> {
    fn payload(&self) -> Payload {
        let (Self::Sealed(payload, _) | Self::Plain(payload, _)) = self;
        *payload
    }

    fn with_plaintext<T>(&self, side: usize, work: impl FnOnce(&[u8]) -> T) -> Result<T, Error> {
        match self {
            Self::Plain(Payload::Text, text) => Ok(work(&encoding::to_utf8(text))),
            Self::Plain(Payload::Bytea, bytes) => Ok(work(bytes)),
            Self::Plain(Payload::Jsonb, document) => {
                let printed = json::print(document);
                let utf8 = json::to_utf8(&printed);
                Ok(with_canonical(Payload::Jsonb, &utf8, work))
            }
            Self::Sealed(payload, stored) => with_opened(side, *payload, stored, work),
        }
    }

    /// The tag of a value that is looked at once: to hash it, or to sort by it.
    fn tag(&self, purpose: Purpose) -> Result<Tag, Error> {
        self.check(purpose)
            .and_then(|()| self.made_tag())
            .or_else(|error| self.stand_in(error))
    }

    /// Whether it may be compared.
    #[inline]
    fn check(&self, purpose: Purpose) -> Result<(), Error> {
        if purpose == Purpose::Free || access::compares_all()? {
            return Ok(());
        }
        match self {
            Self::Sealed(_, stored) => access::check_compare_value(stored),
            Self::Plain(..) => access::check_compare(),
        }
    }

    /// What ANALYZE sorts and counts, extended statistics and arrays, need not be in
    /// an order that anything else agrees with. Nor what pg_upgrade does. Everywhere
    /// else there is no stand-in for a tag.
    fn stand_in(&self, error: Error) -> Result<Tag, Error> {
        if !compat::order_is_free() {
            self.count_failure(&error);
            return Err(error);
        }
        let (Self::Sealed(_, bytes) | Self::Plain(_, bytes)) = self;
        Ok(Tag::stand_in(bytes))
    }

    fn count_failure(&self, error: &Error) {
        let stored = match self {
            Self::Sealed(_, stored) => Some(&**stored),
            Self::Plain(..) => None,
        };
        tally::count_failure(Operation::Compare, stored, error);
    }

    fn made_tag(&self) -> Result<Tag, Error> {
        tags::with_memory(self.payload(), |memory| {
            let tag = self.with_plaintext(0, |plaintext| memory.tag(plaintext))?;
            // Next, a hash table compares it with what it has.
            if let Self::Sealed(_, stored) = self {
                memory.hold(0, false, stored, tag);
                memory.hold(1, false, stored, tag);
            }
            Ok(tag)
        })
    }

    /// The tag of a value that is compared again and again: in an index, or as
    /// what is looked for there.
    fn remembered_tag(&self, side: usize, memory: &mut TagMemory) -> Result<Tag, Error> {
        let (plain, bytes) = match self {
            Self::Plain(_, bytes) => (true, bytes),
            Self::Sealed(_, stored) => (false, stored),
        };
        if let Some(tag) = memory.held(side, plain, bytes) {
            return Ok(tag);
        }
        let tag = if plain {
            self.with_plaintext(side, |text| memory.tag(text))?
        } else {
            match memory.recall(bytes) {
                Some(tag) => tag,
                None => {
                    let tag = self.with_plaintext(side, |plaintext| memory.tag(plaintext))?;
                    memory.remember(bytes, tag);
                    tag
                }
            }
        };
        // On the right side an index has what it looks for.
        if side == 1 {
            memory.hold(side, plain, bytes, tag);
        }
        Ok(tag)
    }
}

/// What values are compared for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// For somebody: then the rules of `access` hold.
    Query,
    /// For nobody, to keep an index or a partitioned table in order, whoever writes
    /// to it; or for somebody who compares whatever he likes.
    Free,
}

fn check_both(left: &Operand<'_>, right: &Operand<'_>, purpose: Purpose) -> Result<(), Error> {
    left.check(purpose)?;
    right.check(purpose)
}

/// Whether two values have the same plaintext. Needs no index key.
fn equal(left: &Operand<'_>, right: &Operand<'_>, purpose: Purpose) -> Result<bool, Error> {
    match check_both(left, right, purpose).and_then(|()| equal_plaintexts(left, right)) {
        // As in `Operand::stand_in`.
        Err(_) if compat::order_is_free() => Ok(left.tag(purpose)? == right.tag(purpose)?),
        equal => equal.inspect_err(|error| left.count_failure(error)),
    }
}

fn equal_plaintexts(left: &Operand<'_>, right: &Operand<'_>) -> Result<bool, Error> {
    if let (Operand::Sealed(payload, a), Operand::Sealed(_, b)) = (left, right)
        && let Some(equal) = tags::equal_if_known(*payload, a, b)?
    {
        return Ok(equal);
    }
    left.with_plaintext(0, |a| right.with_plaintext(1, |b| a == b))?
}

/// Orders two values by their tags.
fn compare(left: &Operand<'_>, right: &Operand<'_>, purpose: Purpose) -> Result<Ordering, Error> {
    let ordering = check_both(left, right, purpose).and_then(|()| {
        tags::with_memory(left.payload(), |memory| {
            let left = left.remembered_tag(0, memory)?;
            Ok(left.cmp(&right.remembered_tag(1, memory)?))
        })
    });
    match ordering {
        // As in `Operand::stand_in`; one by one, so that there is one order.
        Err(_) if compat::order_is_free() => Ok(left.tag(purpose)?.cmp(&right.tag(purpose)?)),
        ordering => ordering.inspect_err(|error| left.count_failure(error)),
    }
}
