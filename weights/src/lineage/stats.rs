//! What one walk over a pair tells: how many elements agree, in which sense, and the moments of both and of their
//! difference.

use super::{
    pair::{Pair, Piece},
    side::Precision,
};
use crate::Result;

/// Counts and sums over the elements of a pair. Elements of which one is not finite are in no sum.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stats {
    pub elements: usize,
    /// The same bits once both are f32.
    pub identical: usize,
    /// B is A rounded to nearest in B's type.
    pub b_rounds_a: usize,
    /// A is B rounded to nearest in A's type.
    pub a_rounds_b: usize,
    /// B is A with its last digits cut off.
    pub b_cuts_a: usize,
    /// A or B is NaN or infinite, and they differ.
    pub nonfinite: usize,
    pub zeros_a: usize,
    pub zeros_b: usize,
    /// B is not zero and is A, or A rounded.
    pub kept_in_b: usize,
    /// A is not zero and is B, or B rounded.
    pub kept_in_a: usize,
    /// Rows in which an element differs.
    pub rows_changed: usize,
    pub sum_a: f64,
    pub sum_b: f64,
    pub aa: f64,
    pub bb: f64,
    pub ab: f64,
    /// Σ (b − a)².
    pub dd: f64,
    pub largest: f64,
    /// Expected Σ (b − a)² if nothing but the rounding of both to their types had changed them: a rounding error is
    /// spread evenly over a spacing h, which makes its variance h²/12.
    pub rounding: f64,
    /// The part of it that B's rounding makes, and an upper bound of A's once A is scaled to B's size.
    pub rounding_scaled: f64,
}

impl Stats {
    pub fn of(pair: &Pair<'_>) -> Result<Self> {
        let (a, b) = (pair.a.array.precision(), pair.b.array.precision());
        let columns = pair.columns;
        let mut all = Self::default();
        pair.walk(|piece| Self::of_piece(piece, columns, a, b), |part| all.add(&part))?;
        Ok(all)
    }

    fn of_piece(piece: &Piece<'_>, columns: usize, pa: Precision, pb: Precision) -> Self {
        let mut s = Self::default();
        let relative_a = (2.0 * pa.unit()).powi(2);
        for (row_a, row_b) in piece.a.chunks_exact(columns).zip(piece.b.chunks_exact(columns)) {
            let before = s.identical;
            for (&a, &b) in row_a.iter().zip(row_b) {
                s.zeros_a += usize::from(a == 0.0);
                s.zeros_b += usize::from(b == 0.0);
                let same = a.to_bits() == b.to_bits() || a == b; // +0 and −0 are one number
                s.identical += usize::from(same);
                if !(a.is_finite() && b.is_finite()) {
                    s.nonfinite += usize::from(!same);
                    continue;
                }
                let (spacing_a, spacing_b) = (pa.spacing(a), pb.spacing(b));
                let (x, y) = (f64::from(a), f64::from(b));
                let d = y - x;
                let to_b = same || pb.round(a).map_or(d.abs() <= 0.5 * spacing_b, |rounded| rounded == b);
                let to_a = same || pa.round(b).map_or(d.abs() <= 0.5 * spacing_a, |rounded| rounded == a);
                s.b_rounds_a += usize::from(to_b);
                s.a_rounds_b += usize::from(to_a);
                s.b_cuts_a += usize::from(same || (y.abs() < x.abs() && d.abs() < spacing_b && x * y >= 0.0));
                s.kept_in_b += usize::from(to_b && b != 0.0);
                s.kept_in_a += usize::from(to_a && a != 0.0);
                s.sum_a += x;
                s.sum_b += y;
                s.aa += x * x;
                s.bb += y * y;
                s.ab += x * y;
                s.dd += d * d;
                s.largest = s.largest.max(d.abs());
                s.rounding += (spacing_a * spacing_a + spacing_b * spacing_b) / 12.0;
                s.rounding_scaled += (spacing_b * spacing_b + y * y * relative_a) / 12.0;
            }
            s.rows_changed += usize::from(s.identical - before < columns);
        }
        s.elements = piece.a.len();
        s
    }

    fn add(&mut self, other: &Self) {
        self.elements += other.elements;
        self.identical += other.identical;
        self.b_rounds_a += other.b_rounds_a;
        self.a_rounds_b += other.a_rounds_b;
        self.b_cuts_a += other.b_cuts_a;
        self.nonfinite += other.nonfinite;
        self.zeros_a += other.zeros_a;
        self.zeros_b += other.zeros_b;
        self.kept_in_b += other.kept_in_b;
        self.kept_in_a += other.kept_in_a;
        self.rows_changed += other.rows_changed;
        self.sum_a += other.sum_a;
        self.sum_b += other.sum_b;
        self.aa += other.aa;
        self.bb += other.bb;
        self.ab += other.ab;
        self.dd += other.dd;
        self.largest = self.largest.max(other.largest);
        self.rounding += other.rounding;
        self.rounding_scaled += other.rounding_scaled;
    }

    /// ‖B − A‖ / ‖A‖; `None` if A is all zero.
    pub fn relative(&self) -> Option<f64> {
        (self.aa > 0.0).then(|| (self.dd / self.aa).sqrt())
    }

    /// Cosine of the angle between A and B; `None` if one is all zero.
    pub fn cosine(&self) -> Option<f64> {
        let norms = (self.aa * self.bb).sqrt();
        (norms > 0.0).then(|| (self.ab / norms).clamp(-1.0, 1.0))
    }

    /// Pearson's correlation of the elements of A and B; `None` if one is constant.
    pub fn correlation(&self) -> Option<f64> {
        let n = (self.elements - self.nonfinite) as f64;
        let variance = |sum: f64, squares: f64| squares - sum * sum / n;
        let (va, vb) = (variance(self.sum_a, self.aa), variance(self.sum_b, self.bb));
        // What is left of a constant array is the error of the subtraction.
        let varies = |variance: f64, squares: f64| variance > 1e-12 * squares;
        (n > 1.0 && varies(va, self.aa) && varies(vb, self.bb))
            .then(|| ((self.ab - self.sum_a * self.sum_b / n) / (va * vb).sqrt()).clamp(-1.0, 1.0))
    }
}
