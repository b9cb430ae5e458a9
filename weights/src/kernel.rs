//! One body of arithmetic, compiled for several instruction sets.

/// Compiles one body for each instruction set and picks at run time.
///
/// `dispatch! { fn name(a: T, …) -> R = body }` makes `name` call the `#[inline(always)]` function `body`, which the
/// compiler vectorises for AVX-512, for AVX2 with FMA, or for the baseline. `f32::mul_add` in a body is one instruction
/// on the first two and a (slow, equal) library call on the last, so all three give the same bits.
#[macro_export]
#[doc(hidden)]
macro_rules! dispatch {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:path) => {
        $(#[$doc])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c,bmi2")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body($($arg),*)
                }
                match $crate::kernel::isa() {
                    // SAFETY: `isa` returns Avx512 only where every feature named above was detected.
                    $crate::kernel::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above, for AVX2, FMA, F16C and BMI2.
                    $crate::kernel::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::kernel::Isa::Baseline => {}
                }
            }
            $body($($arg),*)
        }
    };
}
pub use crate::dispatch;

/// The instruction sets a [`dispatch!`] body is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// AVX2 and FMA.
    Avx2,
    /// What every processor of the target has.
    Baseline,
}

/// The best instruction set of this processor.
#[inline]
pub fn isa() -> Isa {
    #[cfg(target_arch = "x86_64")]
    {
        let v3 = std::is_x86_feature_detected!("avx2")
            && std::is_x86_feature_detected!("fma")
            && std::is_x86_feature_detected!("f16c")
            && std::is_x86_feature_detected!("bmi2")
            && std::is_x86_feature_detected!("popcnt");
        let v4 = std::is_x86_feature_detected!("avx512f")
            && std::is_x86_feature_detected!("avx512bw")
            && std::is_x86_feature_detected!("avx512dq")
            && std::is_x86_feature_detected!("avx512vl");
        if v3 && v4 {
            return Isa::Avx512;
        }
        if v3 {
            return Isa::Avx2;
        }
    }
    Isa::Baseline
}
