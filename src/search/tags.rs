//! The tags that this backend has made lately, for as long as the key ring and
//! the key table stay as they are.

use core::cell::RefCell;

use colcrypt_core::TagMemory;

use crate::backend_local::BackendLocal;
use crate::error::Error;
use crate::{keyring, managed_keys};

/// What a memory depends on: it is dropped when one of these has changed, so that
/// nothing is compared with a key that the session has no more.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Basis {
    ring: u64,
    managed_keys: u64,
}

static MEMORY: BackendLocal<RefCell<Option<(Basis, TagMemory)>>> =
    BackendLocal::new(RefCell::new(None));

impl Basis {
    fn now() -> Self {
        Self {
            ring: keyring::with_current(|ring| ring.generation()),
            managed_keys: managed_keys::changes(),
        }
    }
}

/// Lends the memory to `work`; reads or makes the index key if need be.
///
/// # Errors
/// As [`managed_keys::index_key`].
pub(super) fn with_memory<T>(
    work: impl FnOnce(&mut TagMemory) -> Result<T, Error>,
) -> Result<T, Error> {
    let basis = Basis::now();
    if let Some((made, memory)) = MEMORY.borrow_mut().as_mut()
        && *made == basis
    {
        return work(memory);
    }
    MEMORY.replace(None);
    let key = managed_keys::index_key()?;
    let mut memory = TagMemory::new(key)?;
    let result = work(&mut memory);
    // Reading the key may itself have brought news of changes: those before it.
    MEMORY.replace(Some((Basis::now(), memory)));
    result
}

/// Whether two stored values are equal, if the tags of both are remembered.
pub(super) fn recall_both(left: &[u8], right: &[u8]) -> Option<bool> {
    let memory = MEMORY.borrow();
    let (made, memory) = memory.as_ref()?;
    if *made != Basis::now() {
        return None;
    }
    Some(memory.recall(left)? == memory.recall(right)?)
}
