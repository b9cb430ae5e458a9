//! Dense arithmetic where a general tensor library is far from the machine.
//!
//! Every routine splits its work by the shapes alone, never by the number of threads, and each piece is computed by one
//! thread: the bytes that come out do not depend on how many cores there are. Beside each fast form stands a plain twin
//! that is its definition; the tests hold one to the other.

pub mod tensor;

pub mod gemm;

pub mod gemv;

pub mod loss;

pub mod rtn_pack;

pub(crate) mod tile;

pub(crate) mod cholesky;

pub mod dense;

pub mod packed;

pub mod activation;

pub mod attention;

pub mod conv;

pub mod image;

pub(crate) use scruple_weights::kernel::{Isa, dispatch, isa};

/// Bytes ahead of a product that weights are asked for where they are read once: the machine itself follows a row only to
/// the end of its page.
pub(crate) const AHEAD: usize = 4096;

/// Asks for the cache lines [`AHEAD`] of those of `values`, whether or not anything lies there.
#[inline(always)]
pub(crate) fn prefetch<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..size_of_val(values)).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 has SSE, and a prefetch of any address is allowed.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(values.as_ptr().cast::<i8>().wrapping_add(AHEAD + line)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
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
