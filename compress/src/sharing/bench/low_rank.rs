//! Matrices as products of two thin ones, W (o, i) = U (o, r) · V (r, i), both trained from a random start.
//!
//! A convolution counts as a matrix of its outputs by all it reads. Ranks are the same share of each matrix's sides,
//! 1 at least, as many as fit.

use std::{ops::Range, sync::Mutex};

use crate::{
    data::random::Stream,
    nn::{graph::Layout, parametrise::Parametrise},
};

/// Ranks that are tried: shares of the shorter side in this many steps.
const STEPS: usize = 4096;

/// One matrix.
#[derive(Debug, Clone, PartialEq)]
struct Factors {
    place: Range<usize>,
    rows: usize,
    columns: usize,
    rank: usize,
    /// Standard deviation both factors begin with: that of the product is the weights'.
    deviation: f64,
}

impl Factors {
    fn values(&self) -> usize {
        self.rank * (self.rows + self.columns)
    }
}

/// The matrices of a net in factors.
#[derive(Debug)]
pub struct LowRank {
    factors: Vec<Factors>,
    rest: Vec<Range<usize>>,
    seed: u64,
    /// What was last expanded.
    expanded: Mutex<Vec<f32>>,
}

impl LowRank {
    /// The matrices of `layout` in factors of at most `values` numbers together, to begin as large as `weights`; absent
    /// where not even rank 1 fits.
    pub fn new(layout: &Layout, weights: &[f32], values: usize, seed: u64) -> Option<Self> {
        let of_share = |step: usize| {
            let (mut factors, mut rest) = (Vec::new(), Vec::new());
            for entry in layout.entries() {
                let place = entry.range();
                if entry.shape.len() < 2 {
                    rest.push(place);
                    continue;
                }
                let (rows, columns) = (entry.shape[0], entry.values() / entry.shape[0]);
                let rank = (rows.min(columns) * step / STEPS).max(1);
                let sum: f64 = weights[place.clone()].iter().map(|&w| f64::from(w).powi(2)).sum();
                let deviation = (sum / entry.values() as f64 / rank as f64).powf(0.25);
                factors.push(Factors { place, rows, columns, rank, deviation });
            }
            Self { factors, rest, seed, expanded: Mutex::default() }
        };
        (1..=STEPS).rev().map(of_share).find(|found| found.values() <= values)
    }

    /// Numbers in all factors.
    pub fn values(&self) -> usize {
        self.factors.iter().map(Factors::values).sum()
    }
}

impl Parametrise for LowRank {
    fn identity(&self) -> String {
        let ranks: Vec<String> = self.factors.iter().map(|factors| factors.rank.to_string()).collect();
        format!("low rank {} seed {}", ranks.join(" "), self.seed)
    }

    /// Random factors, whatever the weights; the rest from the weights.
    fn start(&self, weights: &[f32]) -> Vec<f32> {
        let mut out = Vec::new();
        for (number, factors) in self.factors.iter().enumerate() {
            let mut stream = Stream::new(self.seed, "bench/low-rank", number as u64);
            out.extend((0..factors.values()).map(|_| (factors.deviation * stream.normal()) as f32));
        }
        self.rest.iter().for_each(|range| out.extend_from_slice(&weights[range.clone()]));
        out
    }

    fn expand(&self, trainable: &[f32], weights: &mut [f32]) {
        {
            let mut expanded = self.expanded.lock().expect("nothing panics while it holds the factors");
            expanded.clear();
            expanded.extend_from_slice(trainable);
        }
        let mut left = trainable;
        for Factors { place, rows, columns, rank, .. } in &self.factors {
            let (u, rest) = left.split_at(rows * rank);
            let (v, rest) = rest.split_at(rank * columns);
            left = rest;
            for (u, w) in u.chunks_exact(*rank).zip(weights[place.clone()].chunks_exact_mut(*columns)) {
                w.fill(0.0);
                for (u, v) in u.iter().zip(v.chunks_exact(*columns)) {
                    w.iter_mut().zip(v).for_each(|(w, v)| *w += u * v);
                }
            }
        }
        for range in &self.rest {
            let (from, rest) = left.split_at(range.len());
            weights[range.clone()].copy_from_slice(from);
            left = rest;
        }
    }

    /// ∂U = ∂W Vᵀ, ∂V = Uᵀ ∂W at the factors last expanded: a product, unlike the other maps, has no one gradient.
    fn fold(&self, gradient: &[f32], of_trainable: &mut [f32]) {
        let expanded = self.expanded.lock().expect("nothing panics while it holds the factors");
        let (mut of, mut left) = (of_trainable, expanded.as_slice());
        for Factors { place, rows, columns, rank, .. } in &self.factors {
            let (u, rest) = left.split_at(rows * rank);
            let (v, rest) = rest.split_at(rank * columns);
            left = rest;
            let (of_u, rest) = std::mem::take(&mut of).split_at_mut(rows * rank);
            let (of_v, rest) = rest.split_at_mut(rank * columns);
            of = rest;
            of_v.fill(0.0);
            let of_w = gradient[place.clone()].chunks_exact(*columns);
            for ((u, of_u), of_w) in u.chunks_exact(*rank).zip(of_u.chunks_exact_mut(*rank)).zip(of_w) {
                let v = v.chunks_exact(*columns).zip(of_v.chunks_exact_mut(*columns));
                for ((u, of_u), (v, of_v)) in u.iter().zip(of_u).zip(v) {
                    *of_u = of_w.iter().zip(v).map(|(g, v)| g * v).sum();
                    of_v.iter_mut().zip(of_w).for_each(|(of_v, g)| *of_v += u * g);
                }
            }
        }
        for range in &self.rest {
            let (to, rest) = std::mem::take(&mut of).split_at_mut(range.len());
            to.copy_from_slice(&gradient[range.clone()]);
            of = rest;
        }
    }
}
