//! Runs of several seeds in one figure: their mean, and Student's interval about it.

use serde::Serialize;

/// Quantiles of 97.5 % of Student's distribution with 1, 2, … degrees of freedom.
const STUDENT: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// Most runs an interval is made of.
pub const MOST: usize = STUDENT.len() + 1;

/// The mean of some runs, with where it lies in 95 % of repetitions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Interval {
    /// Mean.
    pub mean: f64,
    /// Mean − t s / √n, absent with one run.
    pub low: Option<f64>,
    /// Mean + t s / √n.
    pub high: Option<f64>,
    /// The runs.
    pub runs: Vec<f64>,
}

impl Interval {
    /// Of runs that differ in their seed alone; absent without any.
    ///
    /// # Panics
    /// With more than [`MOST`] runs.
    pub fn of(runs: Vec<f64>) -> Option<Self> {
        assert!(runs.len() <= MOST, "{} runs, at most {MOST} are summed up", runs.len());
        let count = runs.len() as f64;
        let mean = (!runs.is_empty()).then(|| runs.iter().sum::<f64>() / count)?;
        let half = (runs.len() > 1).then(|| {
            let squares: f64 = runs.iter().map(|run| (run - mean).powi(2)).sum();
            STUDENT[runs.len() - 2] * (squares / (count - 1.0) / count).sqrt()
        });
        Some(Self { mean, low: half.map(|half| mean - half), high: half.map(|half| mean + half), runs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_students() {
        // 0.9 ± 4.302653 · 0.02 / √3
        let found = Interval::of(vec![0.88, 0.9, 0.92]).unwrap();
        let (low, high) = (found.low.unwrap(), found.high.unwrap());
        assert!((low - 0.850_317).abs() < 1e-5 && (high - 0.949_683).abs() < 1e-5, "{found:?}");
        let one = Interval::of(vec![0.5]).unwrap();
        assert!(one.mean == 0.5 && one.low.is_none() && Interval::of(Vec::new()).is_none());
        assert!(STUDENT.iter().rev().is_sorted());
    }
}
