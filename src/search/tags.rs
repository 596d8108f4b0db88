//! The tags that this backend has made lately, for as long as the key ring and
//! the key table stay as they are.

use core::cell::RefCell;

use colcrypt_core::{Payload, TagMemory};

use super::with_opened;
use crate::backend_local::BackendLocal;
use crate::error::Error;
use crate::managed_keys::{self, Basis};

/// One for each encrypted type, because a Fernet token may be a value of any. With what
/// it depends on: it is dropped when that has changed, so that nothing is compared with
/// a key that the session has no more.
static MEMORIES: BackendLocal<[Memory; Payload::ALL.len()]> =
    BackendLocal::new([const { RefCell::new(None) }; Payload::ALL.len()]);

type Memory = RefCell<Option<(Basis, TagMemory)>>;

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
    if let Some((made, memory)) = place.borrow_mut().as_mut()
        && *made == basis
    {
        return work(memory);
    }
    place.replace(None);
    let key = managed_keys::index_key()?;
    // Reading the key may have brought news of changes, but only of those before.
    let basis = Basis::now();
    let mut memory = TagMemory::new(key);
    let result = work(&mut memory);
    place.replace(Some((basis, memory)));
    result
}

/// Wipes the plaintexts that are held: a transaction is over.
pub(crate) fn forget_plaintexts() {
    for place in &*MEMORIES {
        // If an error came out of the memory's use, it is dropped.
        if let Ok(Some((_, memory))) = place.try_borrow_mut().as_deref_mut() {
            memory.forget_plaintexts();
        }
    }
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
    let Some((made, memory)) = memory.as_mut() else {
        return Ok(None);
    };
    if *made != basis {
        return Ok(None);
    }
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
