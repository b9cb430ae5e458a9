//! Dense arithmetic where a general tensor library is far from the machine.
//!
//! Every routine splits its work by the shapes alone, never by the number of threads, and each piece is computed by one
//! thread: the bytes that come out do not depend on how many cores there are. Beside each fast form stands a plain twin
//! that is its definition; the tests hold one to the other.

pub mod tensor;

pub mod gemm;

pub mod gemv;

pub mod rtn_pack;

pub(crate) mod tile;

pub(crate) mod cholesky;

pub mod dense;

pub mod packed;

pub mod activation;

pub mod attention;

pub mod conv;

/// Compiles one body for each instruction set and picks at run time.
///
/// `dispatch! { pub fn name(a: T, …) -> R = body }` makes `name` call the `#[inline(always)]` function `body`, which the
/// compiler vectorises for AVX-512, for AVX2 with FMA, or for the baseline. `f32::mul_add` in a body is one instruction
/// on the first two and a (slow, equal) library call on the last, so all three give the same bits.
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
pub(crate) use dispatch;

/// The instruction sets a [`dispatch!`] body is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// AVX2 and FMA.
    Avx2,
    /// What every processor of the target has.
    Baseline,
}

/// The best instruction set of this processor.
#[inline]
pub(crate) fn isa() -> Isa {
    #[cfg(target_arch = "x86_64")]
    {
        let v3 = std::is_x86_feature_detected!("avx2")
            && std::is_x86_feature_detected!("fma")
            && std::is_x86_feature_detected!("f16c")
            && std::is_x86_feature_detected!("bmi2");
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

/// A pointer that threads may share because each writes a part of its own.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<T>(*mut T);

// SAFETY: the pointer is only dereferenced through `get`, whose callers write disjoint elements.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    /// Shares `values` between threads that each touch elements of their own.
    pub(crate) fn new(values: &mut [T]) -> Self {
        Self(values.as_mut_ptr())
    }

    /// The address of element `offset`.
    ///
    /// # Safety
    /// `offset` lies inside the slice, the slice outlives the use, and no other thread touches the elements used.
    pub(crate) unsafe fn at(self, offset: usize) -> *mut T {
        // SAFETY: `offset` is inside the slice by this function's contract.
        unsafe { self.0.add(offset) }
    }
}

/// Seeded numbers for the tests of this crate's arithmetic (SplitMix64; Steele, Lea and Flood 2014).
#[cfg(test)]
pub(crate) mod test_values {
    /// `n` values in −1..1, the same for the same seed.
    pub(crate) fn uniform(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
                let mut z = state;
                z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
                z ^= z >> 31;
                (z >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }
}
