//! Variables of a backend.

use core::ops::Deref;

/// A variable that one backend has for itself. What `thread_local!` would do,
/// without the call that each access to one costs in a shared library.
pub(crate) struct BackendLocal<T>(T);

impl<T> BackendLocal<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(value)
    }
}

impl<T> Deref for BackendLocal<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

// SAFETY: a backend has one thread. This library starts no other, and pgrx
// refuses calls from any but the one that PostgreSQL runs in.
unsafe impl<T> Sync for BackendLocal<T> {}
