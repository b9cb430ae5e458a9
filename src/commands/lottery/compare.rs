//! Differences over paired seeds, and the words for them.
//!
//! Two arms of one seed share weights, order and augmentation, so what they have in common cancels in their difference. Over R
//! seeds the mean difference has the interval mean ± t(R − 1) · s / √R (Student), and the words go by the interval:
//!
//! ```text
//! wins       all of it above 0
//! matches    all of it above −ξ          not inferior by the margin
//! loses      all of it below −ξ
//! undecided  anything else; with one or two seeds always
//! ```

use serde::{Deserialize, Serialize};

use crate::trust::statistics::{deviation, mcnemar};

/// Fewer seeds decide nothing.
pub const LEAST_SEEDS: usize = 3;

/// A mean over seeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// One a seed.
    pub values: Vec<f64>,
    /// Their mean.
    pub mean: f64,
    /// 95 % of the mean; absent with one seed.
    pub interval: Option<(f64, f64)>,
}

impl Spread {
    /// Of one value a seed.
    pub fn of(values: Vec<f64>) -> Self {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count.max(1.0);
        let reach = deviation(&values).map(|spread| t_quantile(values.len() - 1) * spread / count.sqrt());
        Self { interval: reach.map(|reach| (mean - reach, mean + reach)), mean, values }
    }

    /// `101.2 [99.7, 102.7]`, with so many digits.
    pub fn around(&self, digits: usize) -> String {
        match self.interval {
            Some((low, high)) => format!("{:.digits$} [{low:.digits$}, {high:.digits$}]", self.mean),
            None => format!("{:.digits$} [one seed]", self.mean),
        }
    }

    /// `+1.2 [−0.3, +2.7]`.
    pub fn told(&self) -> String {
        match self.interval {
            Some((low, high)) => format!("{:+.2} [{:+.2}, {:+.2}]", self.mean, low, high),
            None => format!("{:+.2} [one seed, no interval]", self.mean),
        }
    }
}

/// What a comparison comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Better.
    Wins,
    /// Not worse by the margin.
    Matches,
    /// Nobody can say.
    Undecided,
    /// Worse by the margin.
    Loses,
}

impl Verdict {
    /// Of a difference in points, margin ξ.
    pub fn of(difference: &Spread, margin: f64) -> Self {
        match difference.interval {
            _ if difference.values.len() < LEAST_SEEDS => Self::Undecided,
            Some((low, _)) if low > 0.0 => Self::Wins,
            Some((low, _)) if low > -margin => Self::Matches,
            Some((_, high)) if high < -margin => Self::Loses,
            _ => Self::Undecided,
        }
    }

    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Wins => "wins",
            Self::Matches => "matches",
            Self::Undecided => "undecided",
            Self::Loses => "loses",
        }
    }
}

/// McNemar's exact test on the answers of all seeds together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pooled {
    /// Right by the first alone.
    pub lost: usize,
    /// Right by the second alone.
    pub gained: usize,
    /// Two-sided. Answers of different seeds to one image count as independent, which makes it too small.
    pub p: f64,
}

impl Pooled {
    /// Of pairs (before, after).
    pub fn of(pairs: impl Iterator<Item = (bool, bool)>) -> Self {
        let (mut lost, mut gained) = (0, 0);
        for (before, after) in pairs {
            lost += usize::from(before && !after);
            gained += usize::from(!before && after);
        }
        Self { lost, gained, p: mcnemar(lost, gained) }
    }
}

/// The quantile .975 of Student's t.
fn t_quantile(freedom: usize) -> f64 {
    let nu = freedom.max(1) as f64;
    // Bisection on the distribution function, which rises.
    let (mut low, mut high) = (0.0, 1e3);
    for _ in 0..200 {
        let middle = (low + high) / 2.0;
        if t_upper(middle, nu) > 0.025 { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

/// P(T > t) of `nu` degrees of freedom, by the integral of the density from 0 to t in u = atan(t / √ν), where it is a power of
/// a cosine: Γ((ν+1)/2) / (√π Γ(ν/2)) ∫ cos^{ν−1}.
fn t_upper(t: f64, nu: f64) -> f64 {
    let end = (t / nu.sqrt()).atan();
    const STEPS: usize = 2000;
    let width = end / STEPS as f64;
    let at = |step: usize| (width * step as f64).cos().powf(nu - 1.0);
    // Simpson.
    let inner: f64 = (1..STEPS).map(|step| if step % 2 == 1 { 4.0 } else { 2.0 } * at(step)).sum();
    let integral = width / 3.0 * (at(0) + inner + at(STEPS));
    // The same integral up to π / 2, in closed form by its recursion I(n) = (n − 1) / n · I(n − 2).
    let mut whole = if (nu as usize - 1).is_multiple_of(2) { std::f64::consts::FRAC_PI_2 } else { 1.0 };
    let mut n = if (nu as usize - 1).is_multiple_of(2) { 2 } else { 3 };
    while n < nu as usize {
        whole *= (n - 1) as f64 / n as f64;
        n += 2;
    }
    0.5 * (1.0 - integral / whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn students_quantiles_are_those_of_tables() {
        for (freedom, expected) in [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (30, 2.0423)] {
            let found = t_quantile(freedom);
            assert!((found - expected).abs() < 2e-4 * expected, "{freedom}: {found}");
        }
    }

    #[test]
    fn words_go_by_the_interval() {
        // Half-widths: 4.303 · 0.1 / √3 = 0.248 about each mean.
        let around = |mean: f64| Spread::of(vec![mean - 0.1, mean, mean + 0.1]);
        for (mean, word) in [(0.5, "wins"), (0.1, "matches"), (-0.7, "matches"), (-0.9, "undecided"), (-1.3, "loses")] {
            assert_eq!(Verdict::of(&around(mean), 1.0).word(), word, "{mean}");
        }
        assert_eq!(Verdict::of(&Spread::of(vec![5.0, 5.1]), 1.0), Verdict::Undecided);
        assert_eq!(Spread::of(vec![1.0]).interval, None);
        let pooled = Pooled::of([(true, false), (false, true), (false, true), (true, true)].into_iter());
        assert_eq!((pooled.lost, pooled.gained, pooled.p), (1, 2, 1.0));
    }
}
