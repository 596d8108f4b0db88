//! Pages from the operating system.

use core::ffi::c_void;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU64;
use std::io;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous};

/// Zeroed pages that are never given back.
pub(crate) struct Pages {
    pub(crate) start: NonNull<u8>,
    pub(crate) len: usize,
}

// SAFETY: plain memory, which is no thread's own.
unsafe impl Send for Pages {}

impl Pages {
    /// `len` bytes, a multiple of the page size, left out of core dumps.
    ///
    /// # Errors
    /// No memory.
    pub(crate) fn new(len: usize, sharing: MapFlags) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at an address that the system chooses.
        let start =
            unsafe { mmap_anonymous(core::ptr::null_mut(), len, access, sharing) }?.cast::<u8>();
        // SAFETY: of the mapping that was just made. Where the system does not know
        // the advice the pages are there nevertheless.
        let _ = unsafe { madvise(start.cast(), len, Advice::LinuxDontDump) };
        let start = NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    /// Keeps the pages from being written to swap space, as far as the process may
    /// (`RLIMIT_MEMLOCK`). A forked process must ask again.
    pub(crate) fn lock(&self) -> bool {
        // SAFETY: the mapping is never given back.
        unsafe { mlock(self.start.as_ptr().cast::<c_void>(), self.len) }.is_ok()
    }
}

/// `len` zeroed words, a multiple of the page size, that this process and all that
/// it forks from now on see as one. Locked, and left out of core dumps, as far as
/// the system lets them.
///
/// # Errors
/// No memory.
pub fn shared_words(len: usize) -> io::Result<&'static [AtomicU64]> {
    let pages = Pages::new(len * size_of::<AtomicU64>(), MapFlags::SHARED)?;
    pages.lock();
    // SAFETY: as many zeroed words as asked for, aligned to a page, which are never
    // given back and only ever used as atomics.
    Ok(unsafe { core::slice::from_raw_parts(pages.start.as_ptr().cast(), len) })
}
