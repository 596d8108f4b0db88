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
    let value = unsafe {
        let value = libc::getenv(name.as_ptr());
        if value.is_null() {
            return None;
        }
        let len = CStr::from_ptr(value).count_bytes();
        core::slice::from_raw_parts_mut(value.cast::<u8>(), len)
    };
    let taken = Zeroizing::new(value.to_vec());
    wipe_initial(name.to_bytes(), &taken);
    value.fill(0);
    // The compiler may not leave the wiping away.
    core::hint::black_box(value.as_ptr());
    // SAFETY: as above.
    unsafe { libc::unsetenv(name.as_ptr()) };
    Some(SecretText::from_source(taken.to_vec()))
}

/// Wipes a value where the kernel put it when the program was started: PostgreSQL
/// copies its environment (`save_ps_display_args()` of ps_status.c), but the postmaster
/// leaves the original, which `/proc` shows. Does what it can.
fn wipe_initial(name: &[u8], value: &[u8]) -> Option<()> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field may hold anything, in parentheses; env_start and env_end are
    // fields 50 and 51 (proc(5)).
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ').skip(47);
    let (start, end) = (
        fields.next()?.parse().ok()?,
        fields.next()?.trim().parse::<u64>().ok()?,
    );
    let memory = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/proc/self/mem")
        .ok()?;
    let len = usize::try_from(end.checked_sub(start)?).ok()?;
    let mut initial = Zeroizing::new(vec![0; len.min(4 << 20)]);
    memory.read_exact_at(&mut initial, start).ok()?;
    let entry = Zeroizing::new([name, b"=", value, b"\0"].concat());
    let at = initial
        .windows(entry.len())
        .position(|part| part == entry.as_slice())?;
    let place = start + (at + name.len() + 1) as u64;
    memory.write_all_at(&vec![0; value.len()], place).ok()
}
