//! What luck alone does to scores that are no plain means: exact distributions of rates under fair coins.
//!
//! A rate is `X / n` with `X ~ Binomial(n, p)`. The gap of several independent rates is the highest less the lowest; its
//! distribution comes from
//!
//! ```text
//! P(min = a, max = b) = Π P(a ≤ R ≤ b) − Π P(a < R ≤ b) − Π P(a ≤ R < b) + Π P(a < R < b)   for a < b,
//! ```
//!
//! over all values `a`, `b` that a rate can take.

/// The most values that rates can take together for which [`gap`] is worked out (its square is the work).
const MOST_VALUES: usize = 4096;

/// `P(X = k)` for `k` from 0 to `n`.
///
/// Worked outwards from the mode and normalised, so that nothing underflows that matters.
pub fn binomial(n: usize, p: f64) -> Vec<f64> {
    if p <= 0.0 || p >= 1.0 {
        return (0..=n).map(|k| f64::from(k == if p <= 0.0 { 0 } else { n })).collect();
    }
    let mut weights = vec![1.0; n + 1];
    let odds = p / (1.0 - p);
    let mode = ((n + 1) as f64 * p).floor().min(n as f64) as usize;
    for k in mode + 1..=n {
        weights[k] = weights[k - 1] * odds * (n - k + 1) as f64 / k as f64;
    }
    for k in (0..mode).rev() {
        weights[k] = weights[k + 1] * (k + 1) as f64 / ((n - k) as f64 * odds);
    }
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}

/// The distribution of the highest less the lowest of `X_g / n_g` with `X_g ~ Binomial(n_g, p)`: values with their
/// probabilities. Absent where fewer than two groups have members, or too many for an exact answer.
pub fn gap(sizes: &[usize], p: f64) -> Option<Vec<(f64, f64)>> {
    if sizes.len() < 2 || sizes.contains(&0) || sizes.iter().sum::<usize>() > MOST_VALUES {
        return None;
    }
    let mut values: Vec<f64> = sizes.iter().flat_map(|&n| (0..=n).map(move |k| k as f64 / n as f64)).collect();
    values.sort_by(f64::total_cmp);
    values.dedup();
    // For each group, the probability of a rate below each of the values; the last is 1.
    let below: Vec<Vec<f64>> = sizes
        .iter()
        .map(|&n| {
            let masses = binomial(n, p);
            let (mut k, mut sum, mut below) = (0, 0.0, vec![0.0]);
            for &value in &values {
                while k <= n && k as f64 / n as f64 <= value {
                    sum += masses[k];
                    k += 1;
                }
                below.push(sum);
            }
            below
        })
        .collect();
    // All rates at values[from..to].
    let within = |from: usize, to: usize| -> f64 {
        if from >= to { 0.0 } else { below.iter().map(|below| below[to] - below[from]).product() }
    };
    let mut gaps = Vec::new();
    for low in 0..values.len() {
        gaps.push((0.0, within(low, low + 1)));
        for high in low + 1..values.len() {
            let mass = within(low, high + 1) - within(low + 1, high + 1) - within(low, high) + within(low + 1, high);
            gaps.push((values[high] - values[low], mass));
        }
    }
    Some(gaps)
}

/// The mean of a distribution.
pub fn expectation(distribution: &[(f64, f64)]) -> f64 {
    distribution.iter().map(|(value, mass)| value * mass).sum()
}

/// The mean of the higher of two independent draws.
pub fn expected_higher(a: &[(f64, f64)], b: &[(f64, f64)]) -> f64 {
    // E max = Σ over the draws of a of value · P(b ≤ value), and the same for b with <.
    let part = |a: &[(f64, f64)], b: &[(f64, f64)], with_equal: bool| -> f64 {
        let (mut a, mut b) = (a.to_vec(), b.to_vec());
        a.sort_by(|x, y| x.0.total_cmp(&y.0));
        b.sort_by(|x, y| x.0.total_cmp(&y.0));
        let (mut at, mut sum, mut mean) = (0, 0.0, 0.0);
        for (value, mass) in a {
            while at < b.len() && (b[at].0 < value || (with_equal && b[at].0 == value)) {
                sum += b[at].1;
                at += 1;
            }
            mean += value * mass * sum;
        }
        mean
    };
    part(a, b, true) + part(b, a, false)
}

/// `E |2 X / n − 1|` with `X ~ Binomial(n, ½)`: how far from even a fair coin lands.
pub fn unevenness(n: usize) -> f64 {
    binomial(n, 0.5).iter().enumerate().map(|(k, mass)| mass * (2.0 * k as f64 / n as f64 - 1.0).abs()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coins_by_hand() {
        for (got, expected) in binomial(3, 0.5).iter().zip([0.125, 0.375, 0.375, 0.125]) {
            assert!((got - expected).abs() < 1e-15);
        }
        assert_eq!(binomial(2, 0.0), [1.0, 0.0, 0.0]);
        assert_eq!(binomial(2, 1.0), [0.0, 0.0, 1.0]);
        let large = binomial(3000, 0.5);
        assert!((large.iter().sum::<f64>() - 1.0).abs() < 1e-12 && large.iter().all(|mass| mass.is_finite()));
        assert!((unevenness(2) - 0.5).abs() < 1e-15, "both alike in half of the cases");
    }

    #[test]
    fn gaps_by_hand_and_by_enumeration() {
        // One coin each: they differ in half of the cases.
        assert!((expectation(&gap(&[1, 1], 0.5).unwrap()) - 0.5).abs() < 1e-15);
        // Every outcome of three groups, one by one.
        let (sizes, p) = ([2usize, 3, 1], 0.3);
        let mut naive = 0.0;
        for i in 0..=2 {
            for j in 0..=3 {
                for k in 0..=1 {
                    let rates = [i as f64 / 2.0, j as f64 / 3.0, k as f64];
                    let mass = binomial(2, p)[i] * binomial(3, p)[j] * binomial(1, p)[k];
                    naive += mass
                        * (rates.iter().fold(0.0f64, |a, &b| a.max(b)) - rates.iter().fold(1.0f64, |a, &b| a.min(b)));
                }
            }
        }
        let exact = gap(&sizes, p).unwrap();
        assert!((expectation(&exact) - naive).abs() < 1e-12);
        assert!((exact.iter().map(|(_, mass)| mass).sum::<f64>() - 1.0).abs() < 1e-12);
        assert!(gap(&[3], 0.5).is_none() && gap(&[3, 0], 0.5).is_none() && gap(&[3000, 3000], 0.5).is_none());
    }

    #[test]
    fn the_higher_of_two_by_enumeration() {
        let (a, b) = (gap(&[2, 3], 0.5).unwrap(), gap(&[4, 4], 0.5).unwrap());
        let naive: f64 = a.iter().flat_map(|x| b.iter().map(move |y| x.0.max(y.0) * x.1 * y.1)).sum();
        assert!((expected_higher(&a, &b) - naive).abs() < 1e-12);
    }
}
