//! An inspection as a heat map.

use std::collections::BTreeMap;

use super::{Entry, Inspection, Quantity, health, size};
use crate::plot::heatmap::{Cell, Heatmap, Mark, Stack};

/// Deviations from here on all look alike: far out is far out.
const LARGEST_DEVIATION: f64 = 10.0;

/// Kinds drawn; a picture of more has no room for their names.
const MOST_KINDS: usize = 48;

impl Quantity {
    fn of(self, entry: &Entry) -> Option<f64> {
        let moments = &entry.statistics.moments;
        match self {
            Self::Deviation => entry.deviation,
            Self::Std => Some(moments.std).filter(|std| *std > 0.0),
            Self::Kurtosis => Some(moments.kurtosis).filter(|kurtosis| *kurtosis > 0.0),
            Self::Outliers => entry.top_energy().filter(|share| *share > 0.0),
            Self::Alpha => entry.alpha(),
        }
    }

    const fn sentence(self) -> &'static str {
        match self {
            Self::Deviation => {
                "How far std or kurtosis lies from the median of its kind, in robust standard deviations"
            }
            Self::Std => "Standard deviation of the weights",
            Self::Kurtosis => "Kurtosis of the weights: 3 for normal numbers, more for heavy tails",
            Self::Outliers => "Share of the energy that the strongest 1 % of the columns carry",
            Self::Alpha => "Power-law exponent of the spectrum's tail: 2 to 6 in most trained layers",
        }
    }
}

/// The picture of `inspection`. Where no tensor has enough of its kind to be compared with, kurtosis stands in for
/// deviation.
pub fn heatmap(inspection: &Inspection, quantity: Quantity) -> Heatmap {
    let nothing = inspection.tensors.iter().all(|entry| quantity.of(entry).is_none());
    let quantity = if quantity == Quantity::Deviation && nothing { Quantity::Kurtosis } else { quantity };
    let mut kinds: Vec<String> = Vec::new();
    let mut stacks: BTreeMap<&str, BTreeMap<usize, BTreeMap<&str, Cell>>> = BTreeMap::new();
    let mut outside = Vec::new();
    let mut entries: Vec<&Entry> = inspection.tensors.iter().collect();
    // Whatever the order of the list is.
    entries.sort_by(|a, b| {
        (&a.place.stack, &a.place.kind, a.place.block).cmp(&(&b.place.stack, &b.place.kind, b.place.block))
    });
    let drawn =
        |entry: &Entry| quantity == Quantity::Deviation || quantity.of(entry).is_some() || !entry.flags.is_empty();
    for entry in entries.into_iter().filter(|entry| drawn(entry)) {
        let cell = Cell { value: quantity.of(entry), mark: mark(entry) };
        let kind = entry.place.kind.strip_suffix(".weight").unwrap_or(&entry.place.kind);
        let Some(block) = entry.place.block else {
            outside.push((kind.to_owned(), cell));
            continue;
        };
        if !kinds.iter().any(|known| known == kind) {
            kinds.push(kind.to_owned());
        }
        let cells = stacks.entry(&entry.place.stack).or_default().entry(block).or_default();
        // Experts share a cell: the oddest of them shows.
        let known = cells.entry(kind).or_insert(cell);
        known.mark = known.mark.max(cell.mark);
        known.value = match (known.value, cell.value) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        };
    }
    kinds.truncate(MOST_KINDS);
    let stacks: Vec<Stack> = stacks
        .into_iter()
        .map(|(name, blocks)| Stack {
            name: name.to_owned(),
            blocks: blocks
                .into_iter()
                .map(|(block, cells)| (block, kinds.iter().map(|kind| cells.get(kind.as_str()).copied()).collect()))
                .collect(),
        })
        .collect();
    let cells = || {
        let inside = stacks.iter().flat_map(|stack| stack.blocks.iter().flat_map(|(_, cells)| cells.iter().flatten()));
        inside.chain(outside.iter().map(|(_, cell)| cell)).filter_map(|cell| cell.value)
    };
    let (low, high) = cells().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
    let range = match quantity {
        Quantity::Deviation => (0.0, LARGEST_DEVIATION),
        Quantity::Outliers => (0.01, 1.0),
        _ if low.is_finite() => (low, high),
        _ => (0.0, 1.0),
    };
    let types: Vec<&str> = {
        let mut types: Vec<_> = inspection.anatomy.dtypes.iter().collect();
        types.sort_by(|a, b| b.1.cmp(a.1));
        types.into_iter().take(2).map(|(dtype, _)| dtype.as_str()).collect()
    };
    let flagged = inspection.tensors.iter().filter(|entry| !entry.flags.is_empty()).count();
    Heatmap {
        title: format!("{}: {}, {}", inspection.model, size(&inspection.anatomy), types.join(" and ")),
        subtitle: format!("{}; {flagged} of {} tensors flagged", quantity.sentence(), inspection.tensors.len()),
        kinds,
        stacks,
        outside,
        range,
        logarithmic: matches!(quantity, Quantity::Std | Quantity::Kurtosis | Quantity::Outliers),
        open_ended: quantity == Quantity::Deviation,
        legend: &[(Mark::Flag, "unusual"), (Mark::Fault, "broken")],
    }
}

fn mark(entry: &Entry) -> Mark {
    entry
        .flags
        .iter()
        .map(|flag: &health::Flag| if flag.fault { Mark::Fault } else { Mark::Flag })
        .max()
        .unwrap_or(Mark::No)
}
