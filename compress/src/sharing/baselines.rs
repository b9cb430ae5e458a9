//! What the methods before the fold choose as slots, and how each divides the gradient of a slot: to be compared with.
//!
//! * **HashedNets** (Chen et al. 2015): every weight on its own.
//! * **ROAST** (Desai, Zhou and Shrivastava 2023): tiles of a matrix, each a run of slots. With the weight (in, out), tiles
//!   Bk × Bn, and a, b the tile's row and column (b counted from the number of rows on):
//!   `base = ((a r₀ + b r₁ + r₂) mod P) mod (m − Bk Bn)`, `slot = base + (k mod Bk) Bn + n mod Bn`.
//! * **ROBE** (Desai, Chou and Shrivastava 2022), for embeddings: chunks of Z values of a row,
//!   `slot = ((A r + B ⌊e / Z⌋ + C) mod P) mod (m − Z + 1) + e mod Z`.
//!
//! P = 2038074743. All of them leave slots unused and others crowded: at m = n a share of 1/e ≈ 0.37 is never read.

use crate::{Error, Result, sharing::fold::Words};

/// The prime of ROAST's and ROBE's hashes.
const PRIME: u128 = 2_038_074_743;

/// A method before the fold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Each weight by a hash of its own.
    HashedNet,
    /// Tiles of (in, out).
    Roast {
        /// Bk and Bn.
        tile: (usize, usize),
    },
    /// Chunks of rows.
    Robe {
        /// Z.
        chunk: usize,
    },
}

/// A matrix among all: (out, in) of a linear, (rows, values) of an embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix {
    /// Rows.
    pub rows: usize,
    /// Values a row.
    pub columns: usize,
    /// The flat position of its first weight, and for ROBE the rows of all tables before it.
    pub offset: usize,
}

/// A method with its pool and its random numbers.
#[derive(Debug, Clone, Copy)]
pub struct Baseline {
    method: Method,
    slots: usize,
    random: [u128; 3],
    words: Words,
}

impl Baseline {
    /// `method` over a pool of `slots`.
    ///
    /// # Errors
    /// If a tile or a chunk is empty or does not fit into the pool.
    pub fn new(method: Method, slots: usize, seed: u64) -> Result<Self> {
        let piece = match method {
            Method::HashedNet => 1,
            Method::Roast { tile: (rows, columns) } => rows.saturating_mul(columns),
            Method::Robe { chunk } => chunk,
        };
        // ROAST's range is m − Bk Bn, which must not be empty.
        let needs = piece.saturating_add(usize::from(matches!(method, Method::Roast { .. })));
        if piece == 0 || needs > slots {
            return Err(Error::Recipe(format!(
                "pieces of {piece} weights do not fit into a pool of {slots} slots, {method:?} needs {needs} or more"
            )));
        }
        let words = Words::new(seed, 3);
        let draw = |number: usize| u128::from(words.word(number)) % PRIME;
        // ROAST's factors are odd.
        let odd = u128::from(matches!(method, Method::Roast { .. }));
        Ok(Self { method, slots, random: [draw(0) | odd, draw(1) | odd, draw(2)], words: Words::new(seed, 4) })
    }

    /// The slot of one weight of `matrix`.
    pub fn slot(&self, matrix: Matrix, row: usize, column: usize) -> usize {
        let [a, b, c] = self.random;
        let hash = |x: usize, y: usize| (x as u128 * a + y as u128 * b + c) % PRIME;
        match self.method {
            Method::HashedNet => self.words.below(matrix.offset + row * matrix.columns + column, self.slots),
            Method::Roast { tile: (high, wide) } => {
                // The weight is (in, out) there: its rows are the columns of (out, in).
                let (k, n) = (column, row);
                let number = hash(k / high + matrix.offset, n / wide + matrix.offset + matrix.columns);
                (number % (self.slots - high * wide) as u128) as usize + (k % high) * wide + n % wide
            }
            Method::Robe { chunk } => {
                let number = hash(row + matrix.offset, column / chunk);
                (number % (self.slots - chunk + 1) as u128) as usize + column % chunk
            }
        }
    }
}

/// What the gradient of a slot is divided by, of its bucket's scales: v1 to v5 of the published code.
///
/// Only [`V1`](Self::V1) and [`V5`](Self::V5) make a step of gradient descent independent of the size the pool was begun
/// at, and only V5 is never longer than the dense step: it is the dense gradient projected on the weights that can be
/// expressed. The coordinates of [`parametrise`](super::parametrise) have V5 built in, for every optimiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GradientScale {
    /// (Σ λ)² / count.
    V1,
    /// Σ λ.
    V2,
    /// Σ λ / count.
    V3,
    /// √Σ λ².
    V4,
    /// Σ λ².
    V5,
}

impl GradientScale {
    /// Γ of a slot read with the scales `scales`; 10⁻⁶ is added to it in the published code.
    pub fn of(self, scales: &[f64]) -> f64 {
        let count = scales.len().max(1) as f64;
        let sum: f64 = scales.iter().sum();
        let squares: f64 = scales.iter().map(|scale| scale * scale).sum();
        match self {
            Self::V1 => sum * sum / count,
            Self::V2 => sum,
            Self::V3 => sum / count,
            Self::V4 => squares.sqrt(),
            Self::V5 => squares,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sharing::{Fold, fold::ALIGN};

    /// The MLP 196-128-64-10.
    const MATRICES: [Matrix; 3] = [
        Matrix { rows: 128, columns: 196, offset: 0 },
        Matrix { rows: 64, columns: 128, offset: 25_088 },
        Matrix { rows: 10, columns: 64, offset: 33_280 },
    ];

    const WEIGHTS: usize = 33_920;

    /// Share of slots used, and weights of the fullest.
    fn load(slots: usize, slot: &dyn Fn(Matrix, usize, usize) -> usize) -> (f64, usize) {
        let mut counts = vec![0usize; slots];
        for matrix in MATRICES {
            for at in 0..matrix.rows * matrix.columns {
                counts[slot(matrix, at / matrix.columns, at % matrix.columns)] += 1;
            }
        }
        let used = counts.iter().filter(|&&count| count > 0).count();
        (used as f64 / slots as f64, counts.into_iter().max().unwrap())
    }

    #[test]
    fn hashes_leave_slots_unused_where_the_fold_uses_all() {
        for rate in [1, 2, 4, 8] {
            let slots = WEIGHTS / rate;
            let hashed = Baseline::new(Method::HashedNet, slots, 1).unwrap();
            let (used, fullest) = load(slots, &|matrix, row, column| hashed.slot(matrix, row, column));
            let expected = 1.0 - (-(rate as f64)).exp(); // 1 − (1 − 1/m)ⁿ
            assert!((used - expected).abs() < 0.01 && fullest > rate + 3, "{rate}: {used}, {fullest}");
            let tiles = Baseline::new(Method::Roast { tile: (16, 8) }, slots, 1).unwrap();
            let (used, _) = load(slots, &|matrix, row, column| tiles.slot(matrix, row, column));
            // Few pieces, and slots near both ends are in fewer of them.
            assert!((used - expected).abs() < 0.1 && used < 1.0, "{rate}: {used}");
            let fold = Fold::new(WEIGHTS, slots, ALIGN, 1).unwrap();
            let found = load(slots, &|matrix, row, column| fold.slot(matrix.offset + row * matrix.columns + column));
            assert_eq!(found, (1.0, rate));
        }
    }

    #[test]
    fn pieces_are_runs_of_slots() {
        let slots = 1_000;
        let table = Matrix { rows: 50, columns: 64, offset: 7 };
        let robe = Baseline::new(Method::Robe { chunk: 16 }, slots, 2).unwrap();
        let roast = Baseline::new(Method::Roast { tile: (8, 4) }, slots, 2).unwrap();
        for row in 0..table.rows {
            for column in 0..table.columns {
                let slot = robe.slot(table, row, column);
                assert!(slot < slots && slot == robe.slot(table, row, column / 16 * 16) + column % 16);
                let slot = roast.slot(table, row, column);
                let base = roast.slot(table, row / 4 * 4, column / 8 * 8);
                assert!(slot < slots && slot == base + (column % 8) * 4 + row % 4);
            }
        }
        for (method, part) in [
            (Method::Roast { tile: (8, 0) }, "pieces of 0 weights"),
            (Method::Roast { tile: (40, 25) }, "needs 1001 or more"),
            (Method::Robe { chunk: 1_001 }, "pool of 1000 slots"),
        ] {
            let error = Baseline::new(method, slots, 0).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn only_two_gradient_scales_make_the_step_independent_of_the_pools_size() {
        use GradientScale::{V1, V2, V3, V4, V5};
        let weights = [0.3, 0.02, 0.02];
        for (scale, independent) in [(V1, true), (V2, false), (V3, false), (V4, false), (V5, true)] {
            // λ = std / C. A slot's gradient is Σ λ g; the weight moves by λ times that over Γ.
            let step = |c: f64| {
                let scales = weights.map(|std| std / c);
                scales[0] * scales.iter().sum::<f64>() / scale.of(&scales)
            };
            let ratio = step(0.001) / step(5.0);
            assert_eq!((ratio - 1.0).abs() < 1e-9, independent, "{scale:?}: {ratio}");
        }
        let scales = [0.3, 0.02];
        assert!(V1.of(&scales) < V5.of(&scales)); // Cauchy and Schwarz: equal only where the scales are
        assert!((V1.of(&[0.5, 0.5, 0.5]) - V5.of(&[0.5, 0.5, 0.5])).abs() < 1e-12);
    }
}
