//! Runs of f32 values in one register: the same kernel for every instruction set.
//!
//! A kernel is written once over `Lane` and compiled three times by `paths!`: with AVX-512, with AVX2 and FMA, and with
//! what every processor of the target has. Each compilation gets a wide and a narrow run; the narrow one holds eight
//! values, to which all images are padded.

use super::super::Isa;

/// Values in a narrow run: what the channels of an image are padded to.
pub const NARROW: usize = 8;

/// Which compilation of the kernels runs. Only instruction sets this processor has can be named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path(Isa);

impl Path {
    /// The fastest on this processor.
    pub fn best() -> Self {
        Self(super::super::isa())
    }

    /// All this processor has, the fastest first.
    pub fn all() -> Vec<Self> {
        let every = [Isa::Avx512, Isa::Avx2, Isa::Baseline];
        let first = every.iter().position(|&isa| isa == super::super::isa()).unwrap_or(2);
        every[first..].iter().map(|&isa| Self(isa)).collect()
    }

    /// The instruction set.
    pub fn isa(self) -> Isa {
        self.0
    }
}

/// A run of f32 values.
///
/// # Safety
/// Every function needs the instruction set of its implementation, and pointers to as many values as it names.
pub(super) trait Lane: Copy {
    /// How many values.
    const LANES: usize;
    /// Registers to hold results in, of those there are: what is left serves operands.
    const RESULTS: usize;
    /// Rows of an image worked on at once: in two halves of a register where the channels fill no more.
    const ROWS: usize = 1;
    /// Runs of [`NARROW`] channels in as many rows as a register holds.
    type Rows: Lane;

    /// `LANES` values from `at`, at any alignment.
    unsafe fn load(at: *const f32) -> Self;
    /// To `at`, at any alignment.
    unsafe fn store(self, at: *mut f32);
    /// The one value at `at`, everywhere.
    unsafe fn splat(at: *const f32) -> Self;
    /// `value` everywhere.
    unsafe fn all(value: f32) -> Self;
    /// self · by + to; in one rounding where the instruction set has that.
    unsafe fn fma(self, by: Self, to: Self) -> Self;
    /// self + other.
    unsafe fn add(self, other: Self) -> Self;
    /// self − other.
    unsafe fn sub(self, other: Self) -> Self;
    /// The larger of self and 0; a NaN stays one, so that it is noticed.
    unsafe fn positive(self) -> Self;
    /// self where `of` is above 0, else 0.
    unsafe fn where_positive(self, of: Self) -> Self;

    /// [`Self::splat`], of each row its value; rows lie `apart` values apart.
    #[inline(always)]
    unsafe fn splat_rows(at: *const f32, _apart: usize) -> Self {
        // SAFETY: the trait's contract.
        unsafe { Self::splat(at) }
    }

    /// [`Self::load`], of each row its values.
    #[inline(always)]
    unsafe fn load_rows(at: *const f32, _apart: usize) -> Self {
        // SAFETY: the trait's contract.
        unsafe { Self::load(at) }
    }

    /// [`Self::store`], to each row its values.
    #[inline(always)]
    unsafe fn store_rows(self, at: *mut f32, _apart: usize) {
        // SAFETY: the trait's contract.
        unsafe { self.store(at) }
    }
}

/// Eight values in whatever the compiler makes of them.
#[derive(Clone, Copy)]
pub(super) struct Plain([f32; NARROW]);

impl Lane for Plain {
    const LANES: usize = NARROW;
    const RESULTS: usize = 4;
    type Rows = Self;

    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: eight readable values, by the contract.
        Self(unsafe { at.cast::<[f32; NARROW]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: eight writable values, by the contract.
        unsafe { at.cast::<[f32; NARROW]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn splat(at: *const f32) -> Self {
        // SAFETY: one readable value, by the contract.
        Self([unsafe { *at }; NARROW])
    }

    #[inline(always)]
    unsafe fn all(value: f32) -> Self {
        Self([value; NARROW])
    }

    #[inline(always)]
    unsafe fn fma(self, by: Self, to: Self) -> Self {
        // A fused one is a call into the C library where the target has no instruction for it.
        Self(std::array::from_fn(|i| match cfg!(target_arch = "aarch64") {
            true => self.0[i].mul_add(by.0[i], to.0[i]),
            false => self.0[i] * by.0[i] + to.0[i],
        }))
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }

    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] - other.0[i]))
    }

    #[inline(always)]
    unsafe fn positive(self) -> Self {
        Self(self.0.map(|value| if value < 0.0 { 0.0 } else { value }))
    }

    #[inline(always)]
    unsafe fn where_positive(self, of: Self) -> Self {
        Self(std::array::from_fn(|i| if of.0[i] > 0.0 { self.0[i] } else { 0.0 }))
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Ymm, Zmm};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Lane, NARROW};

    /// Eight values in a 256-bit register; AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Ymm(__m256);

    // SAFETY (all below): the trait's contract is that of the instructions.
    impl Lane for Ymm {
        const LANES: usize = NARROW;
        const RESULTS: usize = 8;
        type Rows = Self;

        #[inline(always)]
        unsafe fn load(at: *const f32) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { _mm256_loadu_ps(at) })
        }

        #[inline(always)]
        unsafe fn store(self, at: *mut f32) {
            // SAFETY: the trait's contract.
            unsafe { _mm256_storeu_ps(at, self.0) }
        }

        #[inline(always)]
        unsafe fn splat(at: *const f32) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { _mm256_set1_ps(*at) })
        }

        #[inline(always)]
        unsafe fn all(value: f32) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { _mm256_set1_ps(value) })
        }

        #[inline(always)]
        unsafe fn fma(self, by: Self, to: Self) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { _mm256_fmadd_ps(self.0, by.0, to.0) })
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { _mm256_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { _mm256_sub_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn positive(self) -> Self {
            // SAFETY: the trait's contract. The second operand is what a NaN gives.
            Self(unsafe { _mm256_max_ps(_mm256_setzero_ps(), self.0) })
        }

        #[inline(always)]
        unsafe fn where_positive(self, of: Self) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { _mm256_and_ps(self.0, _mm256_cmp_ps::<_CMP_GT_OQ>(of.0, _mm256_setzero_ps())) })
        }
    }

    /// Sixteen values in a 512-bit register; AVX-512 F.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Zmm(__m512);

    impl Lane for Zmm {
        const LANES: usize = 16;
        const RESULTS: usize = 16;
        type Rows = TwoRows;

        #[inline(always)]
        unsafe fn load(at: *const f32) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { _mm512_loadu_ps(at) })
        }

        #[inline(always)]
        unsafe fn store(self, at: *mut f32) {
            // SAFETY: the trait's contract.
            unsafe { _mm512_storeu_ps(at, self.0) }
        }

        #[inline(always)]
        unsafe fn splat(at: *const f32) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { _mm512_set1_ps(*at) })
        }

        #[inline(always)]
        unsafe fn all(value: f32) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { _mm512_set1_ps(value) })
        }

        #[inline(always)]
        unsafe fn fma(self, by: Self, to: Self) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { _mm512_fmadd_ps(self.0, by.0, to.0) })
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { _mm512_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { _mm512_sub_ps(self.0, other.0) })
        }

        #[inline(always)]
        unsafe fn positive(self) -> Self {
            // SAFETY: the trait's contract. The second operand is what a NaN gives.
            Self(unsafe { _mm512_max_ps(_mm512_setzero_ps(), self.0) })
        }

        #[inline(always)]
        unsafe fn where_positive(self, of: Self) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(of.0, _mm512_setzero_ps()), self.0) })
        }
    }

    /// Eight values of each of two rows in a 512-bit register; AVX-512 F and DQ. What is loaded without a word on rows is
    /// the same in both.
    #[derive(Clone, Copy)]
    pub(in super::super) struct TwoRows(Zmm);

    impl Lane for TwoRows {
        const LANES: usize = NARROW;
        const RESULTS: usize = 16;
        const ROWS: usize = 2;
        type Rows = Self;

        #[inline(always)]
        unsafe fn load(at: *const f32) -> Self {
            // SAFETY: the trait's contract.
            Self(Zmm(unsafe { _mm512_broadcast_f32x8(_mm256_loadu_ps(at)) }))
        }

        #[inline(always)]
        unsafe fn store(self, at: *mut f32) {
            // SAFETY: the trait's contract; the first row.
            unsafe { _mm256_storeu_ps(at, _mm512_castps512_ps256(self.0.0)) }
        }

        #[inline(always)]
        unsafe fn splat(at: *const f32) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { Zmm::splat(at) })
        }

        #[inline(always)]
        unsafe fn all(value: f32) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { Zmm::all(value) })
        }

        #[inline(always)]
        unsafe fn fma(self, by: Self, to: Self) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { self.0.fma(by.0, to.0) })
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { self.0.add(other.0) })
        }

        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { self.0.sub(other.0) })
        }

        #[inline(always)]
        unsafe fn positive(self) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { self.0.positive() })
        }

        #[inline(always)]
        unsafe fn where_positive(self, of: Self) -> Self {
            // SAFETY: the trait's contract.
            Self(unsafe { self.0.where_positive(of.0) })
        }

        #[inline(always)]
        unsafe fn splat_rows(at: *const f32, apart: usize) -> Self {
            // SAFETY: the trait's contract; a value in each row.
            Self(Zmm(unsafe {
                _mm512_mask_broadcastss_ps(_mm512_set1_ps(*at), 0xff00, _mm_load_ss(at.wrapping_add(apart)))
            }))
        }

        #[inline(always)]
        unsafe fn load_rows(at: *const f32, apart: usize) -> Self {
            // SAFETY: the trait's contract; eight values in each row.
            Self(Zmm(unsafe {
                _mm512_insertf32x8::<1>(
                    _mm512_castps256_ps512(_mm256_loadu_ps(at)),
                    _mm256_loadu_ps(at.wrapping_add(apart)),
                )
            }))
        }

        #[inline(always)]
        unsafe fn store_rows(self, at: *mut f32, apart: usize) {
            // SAFETY: the trait's contract; eight values in each row.
            unsafe {
                _mm256_storeu_ps(at, _mm512_castps512_ps256(self.0.0));
                _mm256_storeu_ps(at.wrapping_add(apart), _mm512_extractf32x8_ps::<1>(self.0.0));
            }
        }
    }
}

/// Defines a function that runs `body::<Wide, Narrow>` compiled for the instruction set of a [`Path`].
macro_rules! paths {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$doc])*
        $vis fn $name(path: $crate::kernel::image::lane::Path, $($arg: $ty),*) $(-> $ret)? {
            use $crate::kernel::image::lane;
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: the instruction set is enabled here.
                    unsafe { $body::<lane::Zmm, lane::Ymm>($($arg),*) }
                }
                #[target_feature(enable = "avx2,fma,f16c,bmi2")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: the instruction set is enabled here.
                    unsafe { $body::<lane::Ymm, lane::Ymm>($($arg),*) }
                }
                match path.isa() {
                    // SAFETY: a path is only made where every feature named above was detected.
                    $crate::kernel::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::kernel::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::kernel::Isa::Baseline => {}
                }
            }
            let _ = path;
            // SAFETY: plain values need no instruction set.
            unsafe { $body::<lane::Plain, lane::Plain>($($arg),*) }
        }
    };
}
pub(super) use paths;
