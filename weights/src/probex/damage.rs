//! Compressed copies of a layer: what a probe meets when the models it reads were made small.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::random::Stream;

/// Of the share that is asked for, what a copy drawn anew may have: from this
const LEAST: f64 = 0.5;
/// to this.
const MOST: f64 = 1.2;

/// One way to make a layer small; the result is the decoded layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Damage {
    /// Rounded to the nearest of 2^bits − 1 levels, symmetric, with a scale a row.
    Bits(u32),
    /// The share (in percent) of the smallest elements set to zero, over the whole layer.
    Prune(u32),
}

impl Damage {
    /// `x` (rows of `columns`), made small in place.
    pub fn apply(self, x: &mut [f32], columns: usize) {
        match self {
            Self::Bits(bits) => round(x, columns, bits, |x| x.round_ties_even()),
            Self::Prune(percent) => prune(x, x.len() * percent as usize / 100),
        }
    }

    /// The same as another model of its kind might have had it: rounded up or down by chance, each as often as its nearness
    /// says; a share near the one named. A probe that learns from such copies cannot learn one copy's errors by heart.
    pub fn apply_anew(self, x: &mut [f32], columns: usize, stream: &mut Stream) {
        match self {
            Self::Bits(bits) => round(x, columns, bits, |x| (x + stream.unit() as f32).floor()),
            Self::Prune(percent) => {
                let share = stream.between(LEAST, MOST) * f64::from(percent) / 100.0;
                prune(x, ((x.len() as f64 * share) as usize).min(x.len().saturating_sub(1)));
            }
        }
    }
}

/// Rounds each row to multiples of its largest element over 2^(bits − 1) − 1, by `whole`.
fn round(x: &mut [f32], columns: usize, bits: u32, mut whole: impl FnMut(f32) -> f32) {
    let top = ((1u32 << (bits - 1)) - 1) as f32;
    for row in x.chunks_exact_mut(columns) {
        let scale = row.iter().fold(0.0f32, |most, x| most.max(x.abs())) / top;
        if scale > 0.0 {
            row.iter_mut().for_each(|x| *x = whole(*x / scale).clamp(-top, top) * scale);
        }
    }
}

/// Sets the `count` smallest elements to zero.
fn prune(x: &mut [f32], count: usize) {
    if count == 0 {
        return;
    }
    let mut sizes: Vec<f32> = x.iter().map(|x| x.abs()).collect();
    let (_, &mut limit, _) = sizes.select_nth_unstable_by(count - 1, f32::total_cmp);
    // Of elements as large as the limit, the first ones go, so that the count is exact.
    let below = x.iter().filter(|x| x.abs() < limit).count();
    let mut ties = count - below;
    for x in x.iter_mut() {
        if x.abs() < limit || (x.abs() == limit && ties > 0) {
            ties -= usize::from(x.abs() == limit);
            *x = 0.0;
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bits(bits) => write!(f, "int{bits}"),
            Self::Prune(percent) => write!(f, "prune{percent}"),
        }
    }
}

impl FromStr for Damage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |rest: &str| rest.parse::<u32>().ok();
        if let Some(bits) = text.strip_prefix("int").and_then(number)
            && (2..=16).contains(&bits)
        {
            return Ok(Self::Bits(bits));
        }
        if let Some(percent) = text.strip_prefix("prune").and_then(number)
            && percent < 100
        {
            return Ok(Self::Prune(percent));
        }
        Err(format!("`{text}` is no compression; expected int2 to int16, or prune0 to prune99 (percent)"))
    }
}

impl TryFrom<String> for Damage {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Damage> for String {
    fn from(damage: Damage) -> Self {
        damage.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_rounded_with_scales_of_their_own() {
        let mut x = [7.0, 3.4, -0.4, 0.0, 0.07, 0.0, 0.0, 0.0];
        Damage::Bits(4).apply(&mut x, 4);
        assert_eq!(x, [7.0, 3.0, -0.0, 0.0, 0.07, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn exactly_the_share_is_pruned() {
        let mut x = [1.0, -1.0, 1.0, 1.0, 5.0, 0.5, -3.0, 1.0];
        Damage::Prune(50).apply(&mut x, 4);
        assert_eq!(x, [0.0, 0.0, 0.0, 1.0, 5.0, 0.0, -3.0, 1.0]);
    }

    #[test]
    fn copies_drawn_anew_differ_and_are_right_on_average() {
        let mut stream = Stream::new(3, "test", 0);
        let x = [7.0, 3.25, -0.5, 0.0];
        let mut sums = [0.0; 4];
        for _ in 0..4000 {
            let mut copy = x;
            Damage::Bits(4).apply_anew(&mut copy, 4, &mut stream);
            assert!(
                copy[0] == 7.0 && copy[3] == 0.0 && [3.0, 4.0].contains(&copy[1]) && [-1.0, 0.0].contains(&copy[2])
            );
            sums.iter_mut().zip(copy).for_each(|(sum, x)| *sum += x / 4000.0);
        }
        // Deviations of a mean of 4,000 draws between two neighbouring levels are below 0.008.
        assert!(sums.iter().zip(x).all(|(mean, x)| (mean - x).abs() < 0.03), "{sums:?}");
        let counts: Vec<usize> = (0..200)
            .map(|_| {
                let mut copy: Vec<f32> = (1..=1000).map(|x| x as f32).collect();
                Damage::Prune(50).apply_anew(&mut copy, 10, &mut stream);
                copy.iter().filter(|x| **x == 0.0).count()
            })
            .collect();
        assert!(counts.iter().all(|count| (250..=600).contains(count)));
        assert!(counts.iter().any(|count| *count < 300) && counts.iter().any(|count| *count > 550));
        let mut all = [1.0, 2.0];
        Damage::Prune(99).apply_anew(&mut all, 2, &mut stream);
        assert_ne!(all, [0.0, 0.0], "something is left");
    }

    #[test]
    fn names_are_read_back() {
        for name in ["int8", "int4", "prune50"] {
            assert_eq!(name.parse::<Damage>().unwrap().to_string(), name);
        }
        for wrong in ["int1", "int99", "prune100", "int", "low"] {
            assert!(wrong.parse::<Damage>().is_err(), "{wrong}");
        }
    }
}
