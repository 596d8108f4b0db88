//! Refuses to load on a CPU that lacks what this build was compiled for: an
//! error message instead of SIGILL in the middle of a query.

use crate::error::Error;

/// The CPU features that `.cargo/config.toml` compiles for, by CPUID bit. The
/// standard library's detection is of no use here: it answers at compile time
/// for a feature that the build already assumes.
#[cfg(all(target_arch = "x86_64", target_feature = "avx2"))]
mod required {
    pub(super) use core::arch::x86_64::CpuidResult;
    use core::arch::x86_64::{__cpuid, __cpuid_count, __get_cpuid_max};

    /// What CPUID says, as far as it matters here.
    pub(super) struct Cpuid {
        pub(super) basic: CpuidResult,
        pub(super) extended: CpuidResult,
        pub(super) amd: CpuidResult,
    }

    const ABSENT: CpuidResult = CpuidResult {
        eax: 0,
        ebx: 0,
        ecx: 0,
        edx: 0,
    };

    impl Cpuid {
        pub(super) fn read() -> Self {
            let amd_leaf = 0x8000_0001;
            Self {
                basic: __cpuid(1),
                extended: if __get_cpuid_max(0).0 >= 7 {
                    __cpuid_count(7, 0)
                } else {
                    ABSENT
                },
                amd: if __get_cpuid_max(0x8000_0000).0 >= amd_leaf {
                    __cpuid(amd_leaf)
                } else {
                    ABSENT
                },
            }
        }

        /// Names of the missing features: x86-64-v3 as in the psABI, AES-NI and
        /// PCLMULQDQ.
        pub(super) fn missing(&self) -> Vec<&'static str> {
            let features = [
                ("sse3", self.basic.ecx, 0),
                ("pclmulqdq", self.basic.ecx, 1),
                ("ssse3", self.basic.ecx, 9),
                ("fma", self.basic.ecx, 12),
                ("sse4.1", self.basic.ecx, 19),
                ("sse4.2", self.basic.ecx, 20),
                ("movbe", self.basic.ecx, 22),
                ("popcnt", self.basic.ecx, 23),
                ("aes", self.basic.ecx, 25),
                ("osxsave", self.basic.ecx, 27),
                ("avx", self.basic.ecx, 28),
                ("f16c", self.basic.ecx, 29),
                ("bmi1", self.extended.ebx, 3),
                ("avx2", self.extended.ebx, 5),
                ("bmi2", self.extended.ebx, 8),
                ("lzcnt", self.amd.ecx, 5),
            ];
            let is_missing = |&&(_, register, bit): &&(_, u32, u32)| register >> bit & 1 == 0;
            features
                .iter()
                .filter(is_missing)
                .map(|feature| feature.0)
                .collect()
        }
    }
}

/// Raises an error if the CPU lacks a feature of this build.
#[inline(never)]
pub(crate) fn check() {
    #[cfg(all(target_arch = "x86_64", target_feature = "avx2"))]
    {
        let missing = required::Cpuid::read().missing();
        if !missing.is_empty() {
            Error::Cpu {
                missing: missing.join(", "),
            }
            .raise();
        }
    }
}
