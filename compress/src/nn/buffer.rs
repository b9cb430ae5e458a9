//! Memory that the pieces of a batch share: allocated once, each piece written by one thread.

use std::{cell::UnsafeCell, ops::Range};

use crate::kernel::tile::Aligned;

/// Rows of as many values each; a row belongs to one image or one piece of a batch.
#[derive(Debug)]
pub(super) struct Buffer {
    memory: Aligned,
    each: usize,
}

impl Buffer {
    /// `rows` rows of `each` zeros.
    pub fn zeros(rows: usize, each: usize) -> Self {
        Self { memory: Aligned::zeros(rows * each), each }
    }

    /// Values of a row.
    pub fn each(&self) -> usize {
        self.each
    }

    /// Rows to read.
    pub fn rows(&self, rows: Range<usize>) -> &[f32] {
        &self.memory[rows.start * self.each..rows.end * self.each]
    }

    /// Rows to write, by their only owner.
    pub fn rows_mut(&mut self, rows: Range<usize>) -> &mut [f32] {
        &mut self.memory[rows.start * self.each..rows.end * self.each]
    }

    /// Rows to write while other threads write others.
    ///
    /// # Safety
    /// Until the borrow ends nothing else reads or writes these rows.
    #[allow(clippy::mut_from_ref, reason = "the contract is what a lock would otherwise enforce")]
    pub unsafe fn rows_shared(&self, rows: Range<usize>) -> &mut [f32] {
        assert!(rows.start <= rows.end && rows.end * self.each <= self.memory.len(), "rows {rows:?} are not all there");
        // SAFETY: inside the memory, as asserted, and untouched by others, by the contract.
        unsafe {
            let start = self.memory.address().add(rows.start * self.each);
            std::slice::from_raw_parts_mut(start, rows.len() * self.each)
        }
    }
}

/// Sums of the pieces of a batch, in f64; row by row like [`Buffer`].
#[derive(Debug)]
pub(super) struct Sums {
    memory: Box<[UnsafeCell<f64>]>,
    each: usize,
}

// SAFETY: shared writes go through `row_shared`, whose callers touch rows of their own.
unsafe impl Sync for Sums {}

impl Sums {
    /// `rows` rows of `each` zeros.
    pub fn zeros(rows: usize, each: usize) -> Self {
        Self { memory: (0..rows * each).map(|_| UnsafeCell::new(0.0)).collect(), each }
    }

    /// All of them zero.
    pub fn clear(&mut self) {
        self.memory.iter_mut().for_each(|sum| *sum.get_mut() = 0.0);
    }

    /// A row, by the sums' only owner.
    pub fn row(&mut self, row: usize) -> &[f64] {
        // SAFETY: nobody else has the sums.
        unsafe { self.row_shared(row) }
    }

    /// A row to write while other threads write others.
    ///
    /// # Safety
    /// Until the borrow ends nothing else reads or writes this row.
    #[allow(clippy::mut_from_ref, reason = "the contract is what a lock would otherwise enforce")]
    pub unsafe fn row_shared(&self, row: usize) -> &mut [f64] {
        let cells = &self.memory[row * self.each..][..self.each];
        // SAFETY: cells may be written through a shared borrow, and nobody else touches these, by the contract.
        unsafe { std::slice::from_raw_parts_mut(UnsafeCell::raw_get(cells.as_ptr()), self.each) }
    }
}
