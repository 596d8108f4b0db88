//! Registers, which are in core dumps as well.

/// Clears the vector registers, in which ciphers have keys. Where the CPU has none of
/// AVX, or the build is for one without, it does nothing.
#[inline]
pub fn clear_vector_registers() {
    #[cfg(all(target_arch = "x86_64", target_feature = "avx"))]
    // SAFETY: an instruction of AVX, which this is compiled for; whatever it changes is
    // said.
    unsafe {
        core::arch::asm!(
            "vzeroall",
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
            out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nomem, nostack, preserves_flags),
        );
    }
}
