//! Where PostgreSQL enters the library.

use pgrx::prelude::*;

use crate::error::Error;
use crate::{compat, gucs, hooks, keyring, log_hook};

/// Called by `src/cpu.c` once the CPU is known to be good enough.
#[pg_guard]
#[unsafe(no_mangle)]
extern "C-unwind" fn colcrypt_init() {
    // SAFETY: reads a variable that is set when the server starts.
    if unsafe { pg_sys::IsBinaryUpgrade } {
        // pg_upgrade moves catalogs and files. Nothing is encrypted or decrypted,
        // so there is nothing to set and no query to look at.
        return;
    }
    keyring::note_preload();
    outside_parallel_mode(gucs::define);
    hooks::install();
    log_hook::install();
    keyring::start();
}

/// PostgreSQL looks up functions late: those that print a column when its first
/// row is there, those that compare the members of arrays when the first are
/// compared. If that is in the middle of a parallel operation, it refuses to give
/// our settings the values that the configuration and the session have for them
/// (`set_config_option()` of guc.c), with warnings: there would be no key, or
/// another one than the session's. The reason for that rule, that all processes
/// must have the same settings, does not apply: each has these values already.
fn outside_parallel_mode(work: impl FnOnce()) {
    /// Puts the level back, also if an error unwinds: the abort of a transaction
    /// ends the parallel operation only if it is in parallel mode.
    struct Levels(u32);
    impl Drop for Levels {
        fn drop(&mut self) {
            for _ in 0..self.0 {
                // SAFETY: counts up what was counted down.
                unsafe { pg_sys::EnterParallelMode() };
            }
        }
    }
    let mut levels = Levels(0);
    // SAFETY: `work` starts no parallel operation and ends none.
    unsafe {
        // A server that is built with assertions would not have it.
        if pg_sys::IsInParallelMode() && compat::has_assertions() {
            Error::LoadedTooLate.raise();
        }
        while pg_sys::IsInParallelMode() {
            pg_sys::ExitParallelMode();
            levels.0 += 1;
        }
    }
    work();
}

// PostgreSQL calls `_PG_init` when it loads the library. It is one jump, so that
// no instruction of this build runs before `src/cpu.c` has looked at the CPU.

/// # Safety
/// For PostgreSQL to call.
#[cfg(target_arch = "x86_64")]
#[allow(non_snake_case)]
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C-unwind" fn _PG_init() {
    core::arch::naked_asm!("jmp {load}", load = sym colcrypt_load)
}

/// # Safety
/// For PostgreSQL to call.
#[cfg(not(target_arch = "x86_64"))]
#[allow(non_snake_case)]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn _PG_init() {
    // SAFETY: the C function has no precondition.
    unsafe { colcrypt_load() }
}

#[link(name = "colcrypt_cpu", kind = "static")]
unsafe extern "C-unwind" {
    fn colcrypt_load();
}
