//! A box in guarded pages.

use core::alloc::Layout;
use core::fmt;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use linked_list_allocator::Heap;
use rustix::mm::MapFlags;
use zeroize::Zeroize;

use crate::pages::Pages;

/// Bytes of each mapping: some hundreds of keys.
const ARENA: usize = 256 * 1024;

/// A value in memory of its own: not in core dumps, not in swap space as far as the
/// process may lock memory, wiped when it is dropped.
pub struct Guarded<T>(NonNull<T>);

// SAFETY: as a Box, it owns what it points to.
unsafe impl<T: Send> Send for Guarded<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Guarded<T> {}

struct Arena {
    heap: Heap,
    pages: Pages,
    locked: bool,
}

static ARENAS: Mutex<Vec<Arena>> = Mutex::new(Vec::new());

/// Whether all that is guarded is locked into memory.
pub fn is_locked() -> bool {
    let arenas = ARENAS.lock().unwrap_or_else(PoisonError::into_inner);
    arenas.iter().all(|arena| arena.locked)
}

/// Locks the pages in a process that was forked: it does not inherit the locks.
pub fn lock_again() {
    let mut arenas = ARENAS.lock().unwrap_or_else(PoisonError::into_inner);
    for arena in arenas.iter_mut() {
        arena.locked = arena.pages.lock();
    }
}

impl<T> Guarded<T> {
    /// Moves `value` into guarded memory. The caller sees to it that no copy is left
    /// where it was.
    ///
    /// # Panics
    /// If there is no memory, or `value` is larger than some hundreds of keys.
    pub fn new(value: T) -> Self {
        let layout = Layout::new::<T>();
        assert!(layout.size() > 0, "nothing to guard");
        let mut arenas = ARENAS.lock().unwrap_or_else(PoisonError::into_inner);
        let found = arenas
            .iter_mut()
            .find_map(|arena| arena.heap.allocate_first_fit(layout).ok());
        let place = found.unwrap_or_else(|| {
            let mut arena = Arena::new();
            let place = arena.heap.allocate_first_fit(layout);
            arenas.push(arena);
            place.expect("a new arena has room")
        });
        let place = place.cast::<T>();
        // SAFETY: the allocation has the layout of T, and is nobody else's.
        unsafe { place.write(value) };
        Self(place)
    }
}

impl Arena {
    fn new() -> Self {
        let pages = Pages::new(ARENA, MapFlags::PRIVATE).expect("memory for keys");
        // SAFETY: the pages are never given back, and used by this heap only.
        let heap = unsafe { Heap::new(pages.start.as_ptr(), pages.len) };
        let locked = pages.lock();
        Self {
            heap,
            pages,
            locked,
        }
    }

    fn has(&self, place: NonNull<u8>) -> bool {
        let start = self.pages.start.addr().get();
        (start..start + self.pages.len).contains(&place.addr().get())
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        let place = self.0.cast::<u8>();
        let layout = Layout::new::<T>();
        // SAFETY: it was written by `new`, and is not used after this. Its bytes are
        // ours until they go back to the heap.
        unsafe {
            self.0.drop_in_place();
            core::slice::from_raw_parts_mut(
                place.as_ptr().cast::<core::mem::MaybeUninit<u8>>(),
                layout.size(),
            )
            .zeroize();
        }
        let mut arenas = ARENAS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(arena) = arenas.iter_mut().find(|arena| arena.has(place)) {
            // SAFETY: it came from this heap, with this layout.
            unsafe { arena.heap.deallocate(place, layout) };
        }
    }
}

impl<T> Deref for Guarded<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: written by `new`, and owned.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for Guarded<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and borrowed exclusively.
        unsafe { self.0.as_mut() }
    }
}

impl<T> fmt::Debug for Guarded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guarded(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_there_until_they_are_dropped() {
        let mut kept: Vec<_> = (0..20_000_u64).map(|i| Guarded::new([i; 9])).collect();
        kept.retain(|value| value[0] % 3 == 0);
        kept.extend((0..20_000_u64).map(|i| Guarded::new([i; 9])));
        assert!(
            kept.iter()
                .all(|value| value.iter().all(|word| *word == value[0]))
        );
    }

    #[test]
    fn alignment_is_kept() {
        #[repr(align(64))]
        struct Wide([u8; 64]);
        let kept: Vec<_> = (0..100)
            .map(|i| (Guarded::new(i), Guarded::new(Wide([i; 64]))))
            .collect();
        assert!(kept.iter().all(|(i, wide)| (**wide).0 == [**i; 64]));
        assert!(
            kept.iter()
                .all(|(_, wide)| (**wide).0.as_ptr().addr() % 64 == 0)
        );
    }

    #[test]
    fn what_was_dropped_is_wiped() {
        let value = Guarded::new([0x5a_u8; 4096]);
        let place = value.as_ptr();
        drop(value);
        // The heap may have put its own notes at the beginning.
        // SAFETY: the pages are never given back.
        let left = unsafe { core::slice::from_raw_parts(place, 4096) };
        assert!(!left.windows(8).any(|bytes| bytes == [0x5a; 8]));
    }

    #[test]
    fn the_pages_are_left_out_of_core_dumps() {
        let value = Guarded::new([1_u8; 32]);
        let address = value.as_ptr().addr();
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("on Linux");
        let mut inside = false;
        let flags = maps.lines().find_map(|line| {
            let range = line
                .split(' ')
                .next()
                .and_then(|range| range.split_once('-'));
            if let Some((from, to)) = range
                && let (Ok(from), Ok(to)) = (
                    usize::from_str_radix(from, 16),
                    usize::from_str_radix(to, 16),
                )
            {
                inside = (from..to).contains(&address);
            }
            inside.then(|| line.strip_prefix("VmFlags:")).flatten()
        });
        assert!(
            flags.is_some_and(|flags| flags.contains(" dd")),
            "{flags:?}"
        );
    }
}
