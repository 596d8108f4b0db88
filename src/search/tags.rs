//! The tags that this backend has made lately, for as long as the key ring and
//! the key table stay as they are.

use core::cell::RefCell;
use core::cmp::Ordering;

use colcrypt_core::{Payload, TagMemory};

use super::with_opened;
use crate::access;
use crate::backend_local::BackendLocal;
use crate::error::Error;
use crate::managed_keys::{self, Basis};

/// One for each encrypted type, because a Fernet token may be a value of any. With what
/// it depends on: it is dropped when that has changed, so that nothing is compared with
/// a key that the session has no more.
static MEMORIES: BackendLocal<[Memory; Payload::ALL.len()]> =
    BackendLocal::new([const { RefCell::new(None) }; Payload::ALL.len()]);

type Memory = RefCell<Option<Made>>;

struct Made {
    basis: Basis,
    /// Whether some may not compare values under some keys.
    has_grants: bool,
    tags: TagMemory,
}

/// Lends the memory to `work`; reads or makes the index key if need be.
///
/// # Errors
/// As [`managed_keys::index_key`].
pub(super) fn with_memory<T>(
    payload: Payload,
    work: impl FnOnce(&mut TagMemory) -> Result<T, Error>,
) -> Result<T, Error> {
    let place = &MEMORIES[payload.index()];
    let basis = Basis::now();
    if let Some(made) = place.borrow_mut().as_mut()
        && made.basis == basis
    {
        return work(&mut made.tags);
    }
    place.replace(None);
    let key = managed_keys::index_key()?;
    let has_grants = managed_keys::any_grants()?;
    // Reading the key may have brought news of changes, but only of those before.
    let basis = Basis::now();
    let mut tags = TagMemory::new(key);
    let result = work(&mut tags);
    place.replace(Some(Made {
        basis,
        has_grants,
        tags,
    }));
    result
}

/// Wipes the plaintexts that are held: a transaction is over.
pub(crate) fn forget_plaintexts() {
    for place in &*MEMORIES {
        // If an error came out of the memory's use, it is dropped.
        if let Ok(Some(made)) = place.try_borrow_mut().as_deref_mut() {
            made.tags.forget_plaintexts();
        }
    }
}

/// How a stored value in an index and what is looked for there are ordered, if both
/// tags are at hand and this session compares whatever it likes: most comparisons of a
/// search are with values of the upper pages, which were there for the one before.
///
/// Reads nothing that is not at hand, does not fail and does not panic.
#[inline]
pub(super) fn known_order(
    payload: Payload,
    stored: &[u8],
    sought_is_plain: bool,
    sought: &[u8],
) -> Option<Ordering> {
    if !access::is_plainly_full() {
        return None;
    }
    let mut memory = MEMORIES[payload.index()].try_borrow_mut().ok()?;
    let made = memory.as_mut()?;
    if made.has_grants || Basis::known() != Some(made.basis) {
        return None;
    }
    let sought = made.tags.held(1, sought_is_plain, sought)?;
    let stored = made.tags.recall(stored)?;
    Some(stored.cmp(&sought))
}

/// Whether two stored values are equal, if the tag of one is at hand because a
/// hash table or a sort has just asked for it: the other one is then likely to be
/// remembered.
///
/// # Errors
/// As [`sealing::open_utf8`](crate::sealing::open_utf8).
pub(super) fn equal_if_known(
    payload: Payload,
    left: &[u8],
    right: &[u8],
) -> Result<Option<bool>, Error> {
    let basis = Basis::now();
    let mut memory = MEMORIES[payload.index()].borrow_mut();
    let Some(Made { tags: memory, .. }) = memory.as_mut().filter(|made| made.basis == basis) else {
        return Ok(None);
    };
    let (tag, other) = match (memory.held(0, false, left), memory.held(1, false, right)) {
        (Some(tag), _) => (tag, right),
        (None, Some(tag)) => (tag, left),
        (None, None) => return Ok(None),
    };
    let known = match memory.recall(other) {
        Some(known) => known,
        None => {
            let known = with_opened(0, payload, other, |plaintext| memory.tag(plaintext))?;
            memory.remember(other, known);
            known
        }
    };
    Ok(Some(known == tag))
}
