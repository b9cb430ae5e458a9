//! Energies of the rows and columns of a matrix, gathered while it streams by.
//!
//! A row's energy is summed in f32 lanes, a column's in f32 over [`FLUSH`] rows and in f64 beyond. Rows whose energy is
//! no ordinary f32 (NaN, infinite, tiny or zero) are summed in f64 without the numbers that are not finite, so nothing
//! overflows or vanishes.

use super::moments::fold;

/// Sums of a row kept apart, the same on every processor.
const LANES: usize = 64;
use crate::kernel::dispatch;

/// Rows whose columns are summed in f32 before they are added to the f64 sums.
const FLUSH: usize = 64;

/// Energies (sums of squares) within this range lose nothing to f32's limits.
const ORDINARY: std::ops::Range<f32> = 1e-30..1e30;

/// Sums of squares of consecutive rows of a matrix.
#[derive(Debug, Clone)]
pub(super) struct Energies {
    /// Of each row so far.
    pub rows: Vec<f64>,
    /// Sum of each row so far (not its squares), to tell rows apart; 0 for rows out of the ordinary.
    pub sums: Vec<f32>,
    /// Of each column over these rows.
    pub columns: Vec<f64>,
    /// Of each column over the rows since the last flush.
    recent: Vec<f32>,
    pending: usize,
}

impl Energies {
    pub fn new(columns: usize) -> Self {
        Self { rows: Vec::new(), sums: Vec::new(), columns: vec![0.0; columns], recent: vec![0.0; columns], pending: 0 }
    }

    /// Adds whole rows.
    pub fn add(&mut self, values: &[f32]) {
        for row in values.chunks_exact(self.columns.len()) {
            let (energy, sum) = square_row(row);
            if ORDINARY.contains(&energy) {
                self.rows.push(f64::from(energy));
                self.sums.push(sum);
                square_columns(row, &mut self.recent);
                self.pending += 1;
                if self.pending == FLUSH {
                    self.flush();
                }
            } else {
                let mut energy = 0.0;
                for (column, &x) in self.columns.iter_mut().zip(row) {
                    let square = if x.is_finite() { f64::from(x) * f64::from(x) } else { 0.0 };
                    *column += square;
                    energy += square;
                }
                self.rows.push(energy);
                self.sums.push(0.0);
            }
        }
    }

    fn flush(&mut self) {
        for (column, recent) in self.columns.iter_mut().zip(&mut self.recent) {
            *column += f64::from(std::mem::take(recent));
        }
        self.pending = 0;
    }

    /// Ends a part.
    pub fn finish(&mut self) {
        self.flush();
        self.recent = Vec::new();
    }

    /// Appends the rows that follow, as another (finished) part summed them.
    pub fn merge(&mut self, following: Self) {
        self.rows.extend(following.rows);
        self.sums.extend(following.sums);
        for (column, other) in self.columns.iter_mut().zip(following.columns) {
            *column += other;
        }
    }
}

dispatch! {
    /// Σx² and Σx.
    fn square_row(row: &[f32]) -> (f32, f32) = square_row_body
}

#[inline(always)]
fn square_row_body(row: &[f32]) -> (f32, f32) {
    let (mut squares, mut sums) = ([0f32; LANES], [0f32; LANES]);
    let (lines, rest) = row.as_chunks::<LANES>();
    for line in lines {
        for i in 0..LANES {
            squares[i] = line[i].mul_add(line[i], squares[i]);
            sums[i] += line[i];
        }
    }
    for (i, x) in rest.iter().enumerate() {
        squares[i] = x.mul_add(*x, squares[i]);
        sums[i] += x;
    }
    (fold(squares, |a, b| a + b), fold(sums, |a, b| a + b))
}

dispatch! {
    fn square_columns(row: &[f32], columns: &mut [f32]) = square_columns_body
}

#[inline(always)]
fn square_columns_body(row: &[f32], columns: &mut [f32]) {
    for (column, x) in columns.iter_mut().zip(row) {
        *column = x.mul_add(*x, *column);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::statistics::moments::tests::number;

    proptest! {
        #[test]
        fn energies_agree_with_the_definition(
            columns in 1usize..70, values in proptest::collection::vec(number(), 0..10_000), cut in 0usize..150,
        ) {
            let values = &values[..values.len() / columns * columns];
            let rows = values.len() / columns;
            // In two parts, as two threads would.
            let (first, second) = values.split_at(cut.min(rows) * columns);
            let mut energies = Energies::new(columns);
            energies.add(first);
            energies.finish();
            let mut rest = Energies::new(columns);
            rest.add(second);
            rest.finish();
            energies.merge(rest);

            let square = |x: f32| if x.is_finite() { f64::from(x) * f64::from(x) } else { 0.0 };
            prop_assert_eq!(energies.rows.len(), rows);
            for (row, found) in energies.rows.iter().enumerate() {
                let exact: f64 = values[row * columns..][..columns].iter().map(|&x| square(x)).sum();
                prop_assert!((found - exact).abs() <= 1e-5 * exact, "row {row}: {found} {exact}");
                prop_assert_eq!(*found == 0.0, exact == 0.0);
            }
            for (column, found) in energies.columns.iter().enumerate() {
                let exact: f64 = values.iter().skip(column).step_by(columns).map(|&x| square(x)).sum();
                prop_assert!((found - exact).abs() <= 1e-5 * exact + 1e-36, "column {column}: {found} {exact}");
            }
        }

        #[test]
        fn every_instruction_set_gives_the_same_bits(row in proptest::collection::vec(number(), 0..300)) {
            let (fast, plain) = (square_row(&row), square_row_body(&row));
            for (fast, plain) in [(fast.0, plain.0), (fast.1, plain.1)] {
                prop_assert!(fast.to_bits() == plain.to_bits() || fast.is_nan() && plain.is_nan());
            }
        }
    }
}
