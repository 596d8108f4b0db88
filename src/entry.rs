//! Where PostgreSQL enters the library.

use pgrx::prelude::*;

use crate::{gucs, keyring, log_hook, search};

/// Called by `src/cpu.c` once the CPU is known to be good enough.
#[pg_guard]
#[unsafe(no_mangle)]
extern "C-unwind" fn colcrypt_init() {
    keyring::note_preload();
    gucs::define();
    search::install();
    log_hook::install();
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
