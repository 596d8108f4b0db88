//! `colcrypt.key_command`.

use core::ffi::CStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::time::Duration;

use colcrypt_core::{SecretText, SourceError, redact, run_key_command};

use super::keeper;

/// How long it may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Runs the command, and gives what it printed. What it wrote to standard error goes
/// to the log.
///
/// # Errors
/// [`SourceError`].
pub(super) fn run(command: &CStr) -> Result<SecretText, SourceError> {
    let output = run_key_command(
        &command.to_string_lossy(),
        TIMEOUT,
        |shell| {
            // SAFETY: what is called between fork and exec is safe there.
            unsafe { shell.pre_exec(clean_up) };
        },
        keeper::is_to_stop,
    );
    for line in output
        .messages
        .lines()
        .filter(|line| !line.trim().is_empty())
    {
        let line = redact(line).unwrap_or_else(|| line.to_owned());
        pgrx::log!("colcrypt: key_command: {line}");
    }
    output.text
}

/// The postmaster blocks all signals, and has files open that are not for others.
fn clean_up() -> io::Result<()> {
    // SAFETY: system calls with valid arguments. An old kernel does not know the last
    // one; then the files stay open, as in other programs that PostgreSQL
    // starts.
    unsafe {
        let mut none = core::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, core::ptr::null_mut());
        // Should the worker be killed, the shell does not outlive it.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        libc::syscall(
            libc::SYS_close_range,
            3,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        );
    }
    Ok(())
}
