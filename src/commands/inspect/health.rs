//! What is odd about a model's tensors, in words: each on its own, and beside its like in the other blocks.

use std::collections::BTreeMap;

use scruple_weights::{
    Place, TensorView, place,
    spectrum::Spectrum,
    statistics::{Found, Lines, TensorStatistics},
};
use serde::Serialize;

/// Tensors of a kind that are needed before one of them can be called unlike the others.
const LEAST_ALIKE: usize = 4;

/// Robust standard deviations from the median of its kind from which a tensor is flagged.
pub const FLAGGED_DEVIATION: f64 = 8.0;

/// Share of the energy that outlying columns or rows carry when it is worth a flag.
const FLAGGED_ENERGY: f64 = 0.1;

/// One tensor's health.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub place: Place,
    /// Its type on disk.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its bytes on disk.
    pub bytes: u64,
    /// What one pass told.
    pub statistics: TensorStatistics,
    /// With `--spectra`, for matrices.
    pub spectrum: Option<Spectrum>,
    /// How far it lies from the median of its kind, in robust standard deviations: the larger one of those of ln std
    /// (for vectors: ln rms) and ln kurtosis. None where fewer than four are alike.
    pub deviation: Option<f64>,
    /// What is odd about it.
    pub flags: Vec<Flag>,
}

/// Something odd.
#[derive(Debug, Clone, Serialize)]
pub struct Flag {
    /// `nonfinite`, `zero`, `dead-rows`, `dead-columns`, `duplicated-rows`, `outlier-columns`, `outlier-rows`, `spread`
    /// or `kurtosis`.
    pub what: &'static str,
    /// Whether a network cannot be right with it, rather than be unusual.
    pub fault: bool,
    /// The reason in words.
    pub reason: String,
}

impl Entry {
    /// The entry of `view`, not yet compared with others.
    pub fn new(view: &TensorView, statistics: TensorStatistics, spectrum: Option<Spectrum>) -> Self {
        let mut entry = Self {
            name: view.name().to_owned(),
            place: place(view.name()),
            dtype: view.dtype().to_string(),
            shape: view.shape().to_vec(),
            bytes: view.bytes().len() as u64,
            statistics,
            spectrum,
            deviation: None,
            flags: Vec::new(),
        };
        if view.dtype().is_float() {
            entry.flags = entry.own_flags();
        }
        entry
    }

    /// Share of the energy in the most energetic 1 % of the columns.
    pub fn top_energy(&self) -> Option<f64> {
        self.statistics.columns.as_ref().map(|columns| columns.top_energy)
    }

    /// The exponent of its spectrum's tail.
    pub fn alpha(&self) -> Option<f64> {
        Some(self.spectrum.as_ref()?.tail?.alpha)
    }

    fn is_matrix(&self) -> bool {
        self.shape.len() >= 2
    }

    /// The figure that tells how wide the numbers lie: the standard deviation of a matrix; the root mean square of a
    /// vector, whose mean matters.
    fn spread(&self) -> f64 {
        let moments = &self.statistics.moments;
        if self.is_matrix() { moments.std } else { moments.l2 / (moments.count.max(1) as f64).sqrt() }
    }

    fn own_flags(&self) -> Vec<Flag> {
        let mut flags = Vec::new();
        let mut flag = |what, fault, reason| flags.push(Flag { what, fault, reason });
        let moments = &self.statistics.moments;
        if moments.nan + moments.infinite > 0 {
            let mut kinds = Vec::new();
            if moments.nan > 0 {
                kinds.push(format!("{} NaN", moments.nan));
            }
            if moments.infinite > 0 {
                kinds.push(format!("{} infinite", moments.infinite));
            }
            let at = self.statistics.first_nonfinite.map_or(String::new(), |at| format!(", the first {}", self.at(at)));
            flag("nonfinite", true, format!("{}{at}", kinds.join(" and ")));
        }
        if moments.count > 0 && moments.zeros == moments.count {
            if self.is_matrix() {
                flag("zero", true, "all zeros".into());
            }
            return flags;
        }
        for (what, one, many, lines) in [
            ("dead-rows", "row", "rows", &self.statistics.rows),
            ("dead-columns", "column", "columns", &self.statistics.columns),
        ] {
            if let Some(lines) = lines.as_ref().filter(|lines| lines.dead.count > 0) {
                let word = if lines.dead.count == 1 { one } else { many };
                flag(
                    what,
                    false,
                    format!("{} dead {word} of {} ({})", lines.dead.count, lines.count, first(&lines.dead)),
                );
            }
        }
        if let Some(rows) = self.statistics.rows.as_ref().filter(|rows| rows.duplicated.count > 0) {
            let word = if rows.duplicated.count == 1 { "row repeats an" } else { "rows repeat an" };
            let pair = format!("{} is {}", rows.duplicated.first[0], rows.originals[0]);
            flag("duplicated-rows", false, format!("{} {word} earlier one (row {pair})", rows.duplicated.count));
        }
        for (what, word, lines) in
            [("outlier-columns", "columns", &self.statistics.columns), ("outlier-rows", "rows", &self.statistics.rows)]
        {
            if let Some(lines) = lines.as_ref().filter(|lines| lines.outlier_energy >= FLAGGED_ENERGY) {
                flag(what, false, outliers(word, lines));
            }
        }
        flags
    }

    /// Where element `index` of the flattened tensor lies.
    fn at(&self, index: u64) -> String {
        let mut rest = index as usize;
        let mut place: Vec<String> = Vec::new();
        for dim in self.shape.iter().rev() {
            place.push((rest % dim).to_string());
            rest /= dim;
        }
        place.reverse();
        format!("at [{}]", place.join(", "))
    }
}

fn first(found: &Found) -> String {
    let list: Vec<String> = found.first.iter().take(4).map(usize::to_string).collect();
    format!("{}{}", list.join(", "), if found.count > 4 { ", …" } else { "" })
}

fn outliers(word: &str, lines: &Lines) -> String {
    format!(
        "{} of the {word} carry {} of the energy ({})",
        percent(lines.outliers.count as f64 / lines.count as f64),
        percent(lines.outlier_energy),
        first(&lines.outliers)
    )
}

/// A share as a reader wants it: `0.4 %`, `60 %`.
pub fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    if percent >= 9.95 { format!("{percent:.0} %") } else { format!("{} %", figure(percent)) }
}

/// A number with two or three figures.
pub fn figure(x: f64) -> String {
    match x.abs() {
        0.0 => "0".into(),
        size if !(1e-4..1e6).contains(&size) => format!("{x:.1e}"),
        size if size >= 100.0 => format!("{x:.0}"),
        size if size >= 10.0 => format!("{x:.1}"),
        size => {
            // Two figures after the leading zeros.
            let digits = (1.0 - size.log10().floor()).max(1.0) as usize;
            format!("{x:.digits$}")
        }
    }
}

/// Compares each tensor with the others of its kind in its stack, and flags those that stand out.
pub fn compare(entries: &mut [Entry]) {
    for alike in kinds(entries).into_values() {
        let alike: Vec<usize> = alike.into_iter().filter(|&at| entries[at].statistics.moments.std > 0.0).collect();
        if alike.len() < LEAST_ALIKE {
            continue;
        }
        // Spreads within 5 % and kurtoses within 10 % of the median are always usual.
        let spread = robust(&alike.iter().map(|&at| entries[at].spread().ln()).collect::<Vec<_>>(), 0.05);
        let kurtosis =
            robust(&alike.iter().map(|&at| entries[at].statistics.moments.kurtosis.ln()).collect::<Vec<_>>(), 0.1);
        for at in alike {
            let entry = &mut entries[at];
            let moments = &entry.statistics.moments;
            let by_spread = spread.deviation(entry.spread().ln());
            let by_kurtosis = if entry.is_matrix() { kurtosis.deviation(moments.kurtosis.ln()) } else { 0.0 };
            entry.deviation = Some(by_spread.abs().max(by_kurtosis.abs()));
            let ratio = entry.spread() / spread.median.exp();
            if by_spread.abs() >= FLAGGED_DEVIATION && !(0.5..2.0).contains(&ratio) {
                let name = if entry.is_matrix() { "std" } else { "rms" };
                let reason = format!(
                    "{name} {}, the median of this kind is {}",
                    figure(entry.spread()),
                    figure(spread.median.exp())
                );
                entry.flags.push(Flag { what: "spread", fault: false, reason });
            }
            if by_kurtosis >= FLAGGED_DEVIATION && moments.kurtosis >= 10.0 {
                let (found, usual) = (figure(moments.kurtosis), figure(kurtosis.median.exp()));
                let reason = format!("kurtosis {found}, the median of this kind is {usual}");
                entry.flags.push(Flag { what: "kurtosis", fault: false, reason });
            }
        }
    }
}

/// Indices of entries by (stack, kind), those outside of blocks left out.
pub fn kinds(entries: &[Entry]) -> BTreeMap<(String, String), Vec<usize>> {
    let mut kinds: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (at, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.place.block.is_some()) {
        kinds.entry((entry.place.stack.clone(), entry.place.kind.clone())).or_default().push(at);
    }
    kinds
}

/// Median, and the spread around it that a few odd values do not change.
struct Robust {
    median: f64,
    deviation: f64,
}

impl Robust {
    fn deviation(&self, value: f64) -> f64 {
        (value - self.median) / self.deviation
    }
}

/// The median, and 1.4826 times the median absolute deviation (the standard deviation of normal values), at least `least`.
fn robust(values: &[f64], least: f64) -> Robust {
    let middle = median(values);
    let distances: Vec<f64> = values.iter().map(|value| (value - middle).abs()).collect();
    Robust { median: middle, deviation: (1.4826 * median(&distances)).max(least) }
}

/// The middle value, or the mean of the two; 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (n, half) if n % 2 == 0 => (sorted[half - 1] + sorted[half]) / 2.0,
        (_, half) => sorted[half],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (x, text) in [
            (0.0, "0"),
            (0.0213, "0.021"),
            (1.0, "1.0"),
            (-0.5, "-0.50"),
            (12.34, "12.3"),
            (210.4, "210"),
            (3e-7, "3.0e-7"),
            (4.2e7, "4.2e7"),
            (0.99, "0.99"),
        ] {
            assert_eq!(figure(x), text);
        }
        assert_eq!((percent(0.004), percent(0.6), percent(0.0312)), ("0.40 %".into(), "60 %".into(), "3.1 %".into()));
    }

    #[test]
    fn medians_and_deviations_withstand_outliers() {
        let values = [1.0, 1.1, 0.9, 1.05, 50.0];
        let robust = robust(&values, 0.01);
        assert_eq!(robust.median, 1.05);
        assert!(robust.deviation(50.0) > 100.0 && robust.deviation(0.9).abs() < 3.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
    }
}
