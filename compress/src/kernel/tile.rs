//! The inner kernel of the products and the solvers: matrices held in tiles of 48 rows.
//!
//! A tile holds 48 rows column by column: element (row, column) of a matrix lies at
//! `(row / 48 · columns + column) · 48 + row mod 48`. One 512-bit core keeps 48 × 8 results in 24 registers and needs 11
//! loads for 24 multiply-adds; the same layout serves as left and as right operand.
//!
//! Every result is one chain of fused multiply-adds over the inner dimension, cut at fixed places: all instruction sets
//! give the same bits.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Rows of a tile.
pub const TILE: usize = 48;

/// Columns of results computed at once.
pub const SLIVER: usize = 8;

/// Inner dimension between two visits to the results.
pub const DEPTH: usize = 256;

/// Tiles on the right of one product: with [`DEPTH`] they take 288 KiB, so that these, the next, and two of the tiles on
/// the left with their results stay in a second-level cache of 1 MiB.
pub const PANEL_TILES: usize = 6;

/// `c[j][row] += factor · Σ_l a[l][row] · b[l][j]` for 48 rows and 8 columns j, `c_step` values apart, `l` in `0..depth`;
/// the last three name what to bring closer meanwhile, `depth / 16` lines each.
type Micro = unsafe fn(
    depth: usize,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    c_step: usize,
    factor: f32,
    ahead: [*const f32; 3],
);

/// The kernel for this processor.
#[derive(Clone, Copy)]
pub(crate) struct Kernel(Micro);

/// The operands of [`Kernel::panel`]: tiles of rows on the left, and their results.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    /// The first tile's (depth, 48).
    pub(crate) a: *const f32,
    /// Values from one tile's to the next's.
    pub(crate) a_stride: usize,
    /// The first tile's results (8 · slivers, 48).
    pub(crate) c: *mut f32,
    /// Values from one tile's to the next's.
    pub(crate) c_stride: usize,
    /// Values from one column of results to the next: 48 if they lie in tiles.
    pub(crate) c_step: usize,
    /// How many.
    pub(crate) tiles: usize,
}

/// The operand on the right of [`Kernel::panel`]: eight-column slivers of neighbouring tiles.
#[derive(Clone, Copy)]
pub(crate) struct Columns {
    /// The first tile's (depth, 48).
    pub(crate) b: *const f32,
    /// Values from one tile's to the next's.
    pub(crate) b_stride: usize,
    /// The first column, a multiple of 8, counted from the first tile's.
    pub(crate) first: usize,
    /// How many times eight columns.
    pub(crate) slivers: usize,
}

impl Kernel {
    /// Picks the kernel once.
    pub(crate) fn new() -> Self {
        #[cfg(target_arch = "x86_64")]
        match super::isa() {
            super::Isa::Avx512 => return Self(micro_avx512),
            super::Isa::Avx2 => return Self(micro_avx2),
            super::Isa::Baseline => {}
        }
        Self(micro_portable)
    }

    /// `c[j][row] += factor · Σ_l a[l][row] · b[l][j]`: one sliver.
    ///
    /// # Safety
    /// `a` points to depth · 48 readable values; `b` to (depth − 1) · 48 + 8; `c` to 8 · 48 writable ones that overlap
    /// neither.
    #[inline(always)]
    pub(crate) unsafe fn sliver(self, depth: usize, a: *const f32, b: *const f32, c: *mut f32, factor: f32) {
        // SAFETY: the caller's contract; the instruction set was detected in `new`.
        unsafe { (self.0)(depth, a, b, c, TILE, factor, [a, b, c]) }
    }

    /// `c += factor · a bᵀ` for whole tiles of rows against a panel of columns of at most [`PANEL_TILES`]. Each tile's operands
    /// are fetched while the tile before is worked on, and so is the panel that follows in the inner dimension.
    ///
    /// # Safety
    /// For every tile and sliver the pointers are as [`Self::sliver`] asks, columns of `c` being `c_step` apart.
    pub(crate) unsafe fn panel(self, depth: usize, rows: Rows, columns: Columns, factor: f32) {
        for tile in 0..rows.tiles {
            let next = (tile + 1).min(rows.tiles - 1);
            for sliver in 0..columns.slivers {
                let column = columns.first + sliver * SLIVER;
                let of_c = sliver * SLIVER * rows.c_step;
                // The next tile's left operand in as many parts as there are slivers, in whole lines.
                let of_a = depth * (TILE / 16) * sliver / columns.slivers * 16;
                // The next panel in as many parts as there are calls.
                let panel_lines = columns.slivers.div_ceil(TILE / SLIVER) * depth * (TILE / 16);
                let of_b = panel_lines * (tile * columns.slivers + sliver) / (rows.tiles * columns.slivers) * 16;
                let of_b = of_b / (depth * TILE) * columns.b_stride + of_b % (depth * TILE) + depth * TILE;
                // SAFETY: the caller's contract; what is brought closer may lie anywhere.
                unsafe {
                    (self.0)(
                        depth,
                        rows.a.add(tile * rows.a_stride),
                        columns.b.add(column / TILE * columns.b_stride + column % TILE),
                        rows.c.add(tile * rows.c_stride + of_c),
                        rows.c_step,
                        factor,
                        [
                            rows.a.wrapping_add(next * rows.a_stride + of_a),
                            columns.b.wrapping_add(of_b),
                            rows.c.wrapping_add(next * rows.c_stride + of_c),
                        ],
                    );
                }
            }
        }
    }
}

/// One sliver with 512-bit registers.
///
/// # Safety
/// The contract of [`Kernel::sliver`], on a processor with AVX-512 F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn micro_avx512(
    depth: usize,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    c_step: usize,
    factor: f32,
    ahead: [*const f32; 3],
) {
    use std::arch::x86_64::{
        __m512, _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mul_ps,
        _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };
    /// Steps between two prefetches.
    const STRIDE: usize = 16;

    /// One step of the inner dimension.
    ///
    /// # Safety
    /// 48 values of `a` and 8 of `b` are readable.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn step(a: *const f32, b: *const f32, sums: &mut [[__m512; 3]; SLIVER]) {
        // SAFETY: the contract.
        unsafe {
            let rows = [_mm512_loadu_ps(a), _mm512_loadu_ps(a.add(16)), _mm512_loadu_ps(a.add(32))];
            for j in 0..SLIVER {
                let column = _mm512_set1_ps(*b.add(j));
                for v in 0..3 {
                    sums[j][v] = _mm512_fmadd_ps(rows[v], column, sums[j][v]);
                }
            }
        }
    }

    // SAFETY: all accesses stay within depth · 48 values of `a`, the rows of 8 of `b` and 384 of `c`, by the contract of
    // `Kernel::sliver`; prefetching may name any address.
    unsafe {
        for j in 0..SLIVER {
            for v in 0..3 {
                _mm_prefetch::<_MM_HINT_T0>(c.add(j * c_step + v * 16).cast());
            }
        }
        let mut sums = [[_mm512_setzero_ps(); 3]; SLIVER];
        let (mut a, mut b) = (a, b);
        for stride in 0..depth / STRIDE {
            for ahead in ahead {
                _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(stride * 16).cast());
            }
            for _ in 0..STRIDE {
                step(a, b, &mut sums);
                a = a.add(TILE);
                b = b.add(TILE);
            }
        }
        for _ in 0..depth % STRIDE {
            step(a, b, &mut sums);
            a = a.add(TILE);
            b = b.add(TILE);
        }
        let factor = _mm512_set1_ps(factor);
        for j in 0..SLIVER {
            for v in 0..3 {
                let at = c.add(j * c_step + v * 16);
                _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), _mm512_mul_ps(sums[j][v], factor)));
            }
        }
    }
}

/// One sliver with 256-bit registers.
///
/// # Safety
/// The contract of [`Kernel::sliver`], on a processor with AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn micro_avx2(
    depth: usize,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    c_step: usize,
    factor: f32,
    _: [*const f32; 3],
) {
    // SAFETY: the contract of `Kernel::sliver` is that of `micro_body`.
    unsafe { micro_body(depth, a, b, c, c_step, factor) }
}

/// One sliver with whatever the compiler makes of it.
///
/// # Safety
/// The contract of [`Kernel::sliver`].
unsafe fn micro_portable(
    depth: usize,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    c_step: usize,
    factor: f32,
    _: [*const f32; 3],
) {
    // SAFETY: the contract of `Kernel::sliver` is that of `micro_body`.
    unsafe { micro_body(depth, a, b, c, c_step, factor) }
}

/// The sliver in blocks of 16 rows × 4 columns, which fit sixteen 256-bit registers.
///
/// # Safety
/// As [`Kernel::sliver`].
#[inline(always)]
unsafe fn micro_body(depth: usize, a: *const f32, b: *const f32, c: *mut f32, c_step: usize, factor: f32) {
    const ROWS: usize = 16;
    const COLUMNS: usize = 4;
    for row in (0..TILE).step_by(ROWS) {
        for column in (0..SLIVER).step_by(COLUMNS) {
            let mut sums = [[0.0f32; ROWS]; COLUMNS];
            for l in 0..depth {
                // SAFETY: row + 16 ≤ 48 and column + 4 ≤ 8 at step l < depth: inside the contract's ranges.
                let (a, b) = unsafe {
                    (&*a.add(l * TILE + row).cast::<[f32; ROWS]>(), &*b.add(l * TILE + column).cast::<[f32; COLUMNS]>())
                };
                for j in 0..COLUMNS {
                    for i in 0..ROWS {
                        sums[j][i] = a[i].mul_add(b[j], sums[j][i]);
                    }
                }
            }
            for j in 0..COLUMNS {
                // SAFETY: column + j < 8 and row + 16 ≤ 48: inside the 8 · 48 values of c.
                let c = unsafe { &mut *c.add((column + j) * c_step + row).cast::<[f32; ROWS]>() };
                for i in 0..ROWS {
                    c[i] += sums[j][i] * factor;
                }
            }
        }
    }
}

/// Zeroed f32 values that begin on a cache line, so that no register is loaded from two.
///
/// Large ones ask the system for huge pages: a factor is walked in steps of whole tiles, and page faults and address
/// translation would otherwise cost up to a third of the arithmetic.
pub(crate) struct Aligned {
    values: NonNull<f32>,
    len: usize,
}

/// Bytes from which a buffer is mapped on its own: two huge pages.
#[cfg(target_os = "linux")]
const MAPPED: usize = 4 << 20;

impl Aligned {
    /// `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        if len == 0 {
            return Self { values: NonNull::dangling(), len };
        }
        let layout = Self::layout(len);
        #[cfg(target_os = "linux")]
        if layout.size() >= MAPPED {
            // SAFETY: a fresh private mapping without a file touches nothing else.
            let values = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    layout.size(),
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            if values == libc::MAP_FAILED {
                handle_alloc_error(layout);
            }
            // SAFETY: the mapping just made. Advice only; a system without huge pages refuses, and nothing is lost.
            unsafe { libc::madvise(values, layout.size(), libc::MADV_HUGEPAGE) };
            let values = NonNull::new(values.cast()).unwrap_or_else(|| handle_alloc_error(layout));
            return Self { values, len };
        }
        // SAFETY: the layout is not empty.
        let values = unsafe { alloc_zeroed(layout) };
        let values = NonNull::new(values.cast()).unwrap_or_else(|| handle_alloc_error(layout));
        Self { values, len }
    }

    /// The first value's address, for threads that each write values of their own.
    pub(crate) fn address(&self) -> *mut f32 {
        self.values.as_ptr()
    }

    fn layout(len: usize) -> Layout {
        Layout::array::<f32>(len).and_then(|layout| layout.align_to(64)).expect("a buffer that fits the address space")
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        if self.len == 0 {
            return;
        }
        let layout = Self::layout(self.len);
        #[cfg(target_os = "linux")]
        if layout.size() >= MAPPED {
            // SAFETY: mapped in `zeros` with this very length, which alone decides between the two kinds.
            unsafe { libc::munmap(self.values.as_ptr().cast(), layout.size()) };
            return;
        }
        // SAFETY: allocated in `zeros` with this very layout.
        unsafe { dealloc(self.values.as_ptr().cast(), layout) }
    }
}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `values` points to `len` initialised values (or dangles with len 0) that live as long as self.
        unsafe { std::slice::from_raw_parts(self.values.as_ptr(), self.len) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.values.as_ptr(), self.len) }
    }
}

// SAFETY: an owned buffer of plain numbers.
unsafe impl Send for Aligned {}
// SAFETY: shared access only reads.
unsafe impl Sync for Aligned {}

impl std::fmt::Debug for Aligned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Aligned({} values)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_values::uniform;
    use super::*;

    #[test]
    fn buffers_are_zero_aligned_and_writable_at_any_size() {
        for len in [0, 1, 1000, (4 << 20) / 4 - 1, (4 << 20) / 4, 3_000_001] {
            let mut buffer = Aligned::zeros(len);
            assert_eq!(buffer.len(), len);
            assert!(buffer.iter().all(|&value| value == 0.0));
            if let Some(last) = buffer.last_mut() {
                *last = 1.0;
                assert_eq!(buffer.as_ptr().align_offset(64), 0);
            }
        }
    }

    #[test]
    fn the_instruction_sets_give_the_same_bits_and_match_the_definition() {
        for depth in [0, 1, 7, 100] {
            let (a, b) = (uniform(depth * TILE, 1), uniform(depth * TILE + SLIVER, 2));
            let start = uniform(TILE * SLIVER, 3);
            for sign in [1.0, -1.0] {
                let (mut fast, mut plain) = (start.clone(), start.clone());
                // SAFETY: the buffers have the lengths the kernel asks for.
                unsafe {
                    Kernel::new().sliver(depth, a.as_ptr(), b.as_ptr(), fast.as_mut_ptr(), sign);
                    micro_portable(depth, a.as_ptr(), b.as_ptr(), plain.as_mut_ptr(), TILE, sign, [a.as_ptr(); 3]);
                }
                assert_eq!(fast, plain);
                for j in 0..SLIVER {
                    for row in 0..TILE {
                        let sum = (0..depth).fold(0.0f32, |sum, l| a[l * TILE + row].mul_add(b[l * TILE + j], sum));
                        assert_eq!(fast[j * TILE + row], start[j * TILE + row] + sum * sign);
                    }
                }
            }
        }
    }
}
