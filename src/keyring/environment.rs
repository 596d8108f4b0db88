//! Ring text in the environment. It is taken out of there, so that no program that
//! the server starts inherits it (`COPY … TO PROGRAM`, `archive_command`).

use core::ffi::CStr;
use std::os::unix::fs::FileExt;

use colcrypt_core::{SecretText, SourceError};
use zeroize::Zeroizing;

/// Takes a variable out of the environment of this process; `None` if it is not
/// there.
///
/// # Errors
/// [`SourceError::TooLarge`], [`SourceError::NotUtf8`].
pub(super) fn take(name: &CStr) -> Option<Result<SecretText, SourceError>> {
    // SAFETY: a NUL-terminated name; the value that it gives is NUL-terminated, and
    // nobody else in this process, which has one thread, uses it.
    let taken = unsafe {
        let value = libc::getenv(name.as_ptr());
        if value.is_null() {
            return None;
        }
        Zeroizing::new(CStr::from_ptr(value).to_bytes().to_vec())
    };
    wipe_initial(name.to_bytes());
    wipe_all(name.to_bytes());
    // SAFETY: as above.
    unsafe { libc::unsetenv(name.as_ptr()) };
    Some(SecretText::from_source(taken.to_vec()))
}

/// Wipes the values of a variable in the environment; it may be there twice.
fn wipe_all(name: &[u8]) {
    // SAFETY: a list of NUL-terminated strings that ends with a null, which nobody else
    // in this process, with its one thread, uses.
    unsafe {
        let mut entry = libc_environ();
        while let Some(text) = entry.as_ref().and_then(|text| text.as_mut()) {
            let len = CStr::from_ptr(text).count_bytes();
            let bytes =
                core::slice::from_raw_parts_mut(core::ptr::from_mut(text).cast::<u8>(), len);
            if let Some(value) = value_of(bytes, name) {
                value.fill(0);
                // The compiler may not leave the wiping away.
                core::hint::black_box(value.as_ptr());
            }
            entry = entry.add(1);
        }
    }
}

/// The environment of this process (environ(7)).
fn libc_environ() -> *mut *mut core::ffi::c_char {
    unsafe extern "C" {
        static mut environ: *mut *mut core::ffi::c_char;
    }
    // SAFETY: reads a variable of the C library.
    unsafe { environ }
}

/// The value in an entry, if it is of this name.
fn value_of<'a>(entry: &'a mut [u8], name: &[u8]) -> Option<&'a mut [u8]> {
    let (found, value) = entry.split_at_mut_checked(name.len() + 1)?;
    (found.starts_with(name) && found.ends_with(b"=")).then_some(value)
}

/// Wipes the values where the kernel put them when the program was started: PostgreSQL
/// copies its environment (`save_ps_display_args()` of ps_status.c), but the postmaster
/// leaves the original, which `/proc` shows. Does what it can.
fn wipe_initial(name: &[u8]) -> Option<()> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field may hold anything, in parentheses; env_start and env_end are
    // fields 50 and 51 (proc(5)).
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split_whitespace().skip(47);
    let (start, end) = (
        fields.next()?.parse().ok()?,
        fields.next()?.parse::<u64>().ok()?,
    );
    let memory = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/proc/self/mem")
        .ok()?;
    let len = usize::try_from(end.checked_sub(start)?).ok()?;
    let mut initial = Zeroizing::new(vec![0; len.min(4 << 20)]);
    memory.read_exact_at(&mut initial, start).ok()?;
    for entry in initial.split_mut(|byte| *byte == 0) {
        if let Some(value) = value_of(entry, name) {
            value.fill(0);
        }
    }
    memory.write_all_at(&initial, start).ok()
}
