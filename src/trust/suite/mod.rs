//! Suites: the items of several dimensions that belong together. Two are embedded: [`general`], plain English for any model,
//! and [`world`], about the closed little world that the model which comes with the program was trained on.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::item::{Ask, Item};

mod general;
mod world;

pub use general::general;
pub use world::world;

/// Items by dimension.
#[derive(Debug, Clone, PartialEq)]
pub struct Suite {
    /// One word.
    pub name: String,
    /// The names of [`DIMENSIONS`](super::dimension::DIMENSIONS) that have items here, in that order, with their items.
    pub dimensions: Vec<(String, Vec<Item>)>,
}

/// Makes a suite.
pub type Maker = fn() -> Suite;

/// The embedded suites, by name.
pub const SUITES: &[(&str, Maker)] = &[("general", general), ("world", world)];

/// The embedded suite of that name.
pub fn named(name: &str) -> Option<Suite> {
    SUITES.iter().find(|(its, _)| *its == name).map(|(_, make)| make())
}

impl Suite {
    /// SHA-256, in hexadecimal digits, of every dimension's name and its items as JSON lines: the same items in the same
    /// order have the same hash, whatever the suite is called and wherever it came from.
    pub fn hash(&self) -> String {
        let mut hash = Sha256::new();
        for (name, items) in &self.dimensions {
            hash.update(format!("{name} {}\n", items.len()));
            for item in items {
                hash.update(json_line(item));
            }
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        self.dimensions.iter().map(|(_, items)| items.len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The suite with at most `most` items a dimension; see [`limit`].
    pub fn limit(&self, most: usize) -> Self {
        let dimensions = self.dimensions.iter().map(|(name, items)| (name.clone(), limit(items, most))).collect();
        Self { name: self.name.clone(), dimensions }
    }
}

/// An item as a line of JSON, with the line's end.
pub fn json_line(item: &Item) -> String {
    let line = serde_json::to_string(item).expect("an item has neither maps with odd keys nor values that can fail");
    line + "\n"
}

/// At most `most` of the items, in their order; the same always.
///
/// Clusters are kept whole, because conditions are compared within them. One cluster after the other is taken, always of
/// the part that has the fewest items so far, there of the right answer that has the fewest, and among those evenly spread
/// over the list: first the one at its beginning, then that in the middle, then the quarters. A cluster that does not fit is
/// passed over, but for the first: there is always one.
pub fn limit(items: &[Item], most: usize) -> Vec<Item> {
    if items.len() <= most {
        return items.to_vec();
    }
    // Clusters in order of appearance, in strata by the part and right answer of their first item.
    let mut clusters: Vec<Vec<usize>> = Vec::new();
    let mut known: BTreeMap<&str, usize> = BTreeMap::new();
    for (at, item) in items.iter().enumerate() {
        let cluster = *known.entry(&item.cluster).or_insert_with(|| {
            clusters.push(Vec::new());
            clusters.len() - 1
        });
        clusters[cluster].push(at);
    }
    let mut strata: BTreeMap<(&str, Option<usize>), Vec<&Vec<usize>>> = BTreeMap::new();
    for cluster in &clusters {
        let first = &items[cluster[0]];
        strata.entry((&first.part, right(first))).or_default().push(cluster);
    }
    for stratum in strata.values_mut() {
        let order = spread(stratum.len());
        *stratum = order.into_iter().rev().map(|at| stratum[at]).collect(); // the next one is popped off the end
    }

    let mut taken: Vec<usize> = Vec::new();
    let mut by_part: BTreeMap<&str, usize> = BTreeMap::new();
    let mut by_stratum: BTreeMap<(&str, Option<usize>), usize> = BTreeMap::new();
    while let Some(&stratum) = strata
        .iter()
        .filter(|(_, left)| !left.is_empty())
        .map(|(stratum, _)| stratum)
        .min_by_key(|stratum| (by_part.get(stratum.0).copied(), by_stratum.get(stratum).copied()))
    {
        let Some(cluster) = strata.get_mut(&stratum).and_then(Vec::pop) else { break };
        if taken.is_empty() || taken.len() + cluster.len() <= most {
            taken.extend(cluster);
            *by_part.entry(stratum.0).or_default() += cluster.len();
            *by_stratum.entry(stratum).or_default() += cluster.len();
        }
    }
    taken.sort_unstable();
    taken.into_iter().map(|at| items[at].clone()).collect()
}

fn right(item: &Item) -> Option<usize> {
    match &item.ask {
        Ask::Choose { gold, .. } => *gold,
        Ask::Continue { .. } => None,
    }
}

/// The numbers below `count` in an order whose every beginning is evenly spread: with their bits read backwards (van der
/// Corput 1935).
fn spread(count: usize) -> Vec<usize> {
    let bits = count.next_power_of_two().trailing_zeros();
    let reversed = |n: usize| if bits == 0 { 0 } else { n.reverse_bits() >> (usize::BITS - bits) };
    (0..1usize << bits).map(reversed).filter(|&n| n < count).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};

    use super::super::dimension::{DIMENSIONS, named as dimension};
    use super::super::dimensions::averages::is_other_condition;
    use super::super::item::Prompt;
    use super::*;

    /// How far from an even share the right answers may stand at one place.
    const UNEVEN: f64 = 0.10;

    fn all() -> Vec<Suite> {
        SUITES.iter().map(|(_, make)| make()).collect()
    }

    #[test]
    fn embedded_suites_cover_every_dimension_with_a_hundred_items() {
        for suite in all() {
            let names: Vec<&str> = suite.dimensions.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, DIMENSIONS.iter().map(|dimension| dimension.name()).collect::<Vec<_>>());
            for (name, items) in &suite.dimensions {
                let scored = items.iter().filter(|item| !is_other_condition(&item.part)).count();
                assert!(scored >= 96 && items.len() >= 100, "{}: {name}: {scored} of {}", suite.name, items.len());
            }
        }
    }

    #[test]
    fn items_are_well_formed() {
        for suite in all() {
            for (name, items) in &suite.dimensions {
                let ids: HashSet<&str> = items.iter().map(|item| item.id.as_str()).collect();
                assert_eq!(ids.len(), items.len(), "{name}: ids are not unique");
                let mut seen = HashSet::new();
                for item in items {
                    let at = format!("{}: {name}: {}", suite.name, item.id);
                    let word = |text: &str| !text.is_empty() && !text.contains(char::is_whitespace);
                    assert!(word(&item.id) && word(&item.part) && word(&item.cluster), "{at}");
                    let Prompt::Plain(prompt) = &item.prompt else { panic!("{at}: not plain") };
                    assert!(!prompt.is_empty() && prompt.trim() == prompt, "{at}: blanks around the prompt");
                    let ask = serde_json::to_string(&item.ask).unwrap();
                    assert!(seen.insert((prompt.clone(), ask)), "{at}: asked twice");
                    match &item.ask {
                        Ask::Choose { options, before, gold } => {
                            let distinct: BTreeSet<&String> = options.iter().collect();
                            assert!(options.len() >= 2 && distinct.len() == options.len(), "{at}: {options:?}");
                            assert!(options.iter().all(|option| option.starts_with(' ')), "{at}: {options:?}");
                            assert!(gold.is_none_or(|gold| gold < options.len()), "{at}: gold {gold:?}");
                            assert!(before.is_empty(), "{at}");
                        }
                        Ask::Continue { max_tokens, .. } => assert!((4..=64).contains(max_tokens), "{at}"),
                    }
                }
            }
        }
    }

    #[test]
    fn right_answers_stand_everywhere_equally_often() {
        for suite in all() {
            for (name, items) in &suite.dimensions {
                let mut places: BTreeMap<usize, BTreeMap<usize, usize>> = BTreeMap::new();
                for item in items {
                    if let Ask::Choose { options, gold: Some(gold), .. } = &item.ask {
                        *places.entry(options.len()).or_default().entry(*gold).or_default() += 1;
                    }
                }
                for (options, counts) in places {
                    let all: usize = counts.values().sum();
                    for place in 0..options {
                        let share = *counts.get(&place).unwrap_or(&0) as f64 / all as f64;
                        let even = 1.0 / options as f64;
                        assert!((share - even).abs() <= UNEVEN, "{}: {name}: {share} of {options}", suite.name);
                    }
                }
            }
        }
    }

    #[test]
    fn a_model_that_draws_its_answers_scores_at_chance() {
        for suite in all() {
            for (name, items) in &suite.dimensions {
                let dimension = dimension(name).unwrap();
                for &rule in dimension.rules() {
                    // Where texts are asked for there may be no chance level; then that of the items with options.
                    let choices: Vec<Item> =
                        items.iter().filter(|item| matches!(item.ask, Ask::Choose { .. })).cloned().collect();
                    let chance = dimension.chance(rule, items).or_else(|| dimension.chance(rule, &choices));
                    let chance = chance.unwrap_or_else(|| panic!("{name}: no chance level"));
                    assert!((5.0..=95.0).contains(&chance), "{}: {name}: {chance}", suite.name);
                }
            }
        }
    }

    #[test]
    fn conditions_of_a_comparison_share_a_cluster() {
        for suite in all() {
            for (name, items) in &suite.dimensions {
                let mut parts: BTreeMap<&str, BTreeSet<bool>> = BTreeMap::new();
                for item in items {
                    parts.entry(&item.cluster).or_default().insert(is_other_condition(&item.part));
                }
                if items.iter().any(|item| is_other_condition(&item.part)) {
                    assert!(parts.values().all(|both| both.len() == 2), "{}: {name}", suite.name);
                }
            }
        }
    }

    #[test]
    fn suites_are_the_same_bytes_always() {
        for (name, make) in SUITES {
            let (one, other) = (make(), make());
            assert_eq!((one.name.as_str(), one.hash()), (*name, other.hash()));
            let mut less = one.clone();
            less.dimensions[0].1.pop();
            assert_ne!(less.hash(), one.hash());
            for item in one.dimensions.iter().flat_map(|(_, items)| items) {
                assert_eq!(&serde_json::from_str::<Item>(&json_line(item)).unwrap(), item);
            }
        }
    }

    #[test]
    fn a_limit_keeps_clusters_whole_and_parts_and_answers_even() {
        for suite in all() {
            for most in [1, 10, 37, 60] {
                let limited = suite.limit(most);
                assert_eq!(limited, suite.limit(most));
                for ((name, less), (_, all)) in limited.dimensions.iter().zip(&suite.dimensions) {
                    let at = format!("{}: {name}: {} of at most {most}", suite.name, less.len());
                    let first = less.iter().filter(|item| item.cluster == less[0].cluster).count();
                    assert!(!less.is_empty() && less.len() <= most.max(first), "{at}");
                    let clusters: HashSet<&str> = less.iter().map(|item| item.cluster.as_str()).collect();
                    let whole: Vec<&Item> =
                        all.iter().filter(|item| clusters.contains(item.cluster.as_str())).collect();
                    assert_eq!(less.iter().collect::<Vec<_>>(), whole, "{at}");
                    if most == 60 {
                        assert!(less.len() >= 45, "{at}");
                        let parts =
                            |items: &[Item]| items.iter().map(|item| item.part.clone()).collect::<BTreeSet<_>>();
                        if name != "stereotype" {
                            assert_eq!(parts(less), parts(all), "{at}");
                        }
                        let binary: Vec<usize> = less
                            .iter()
                            .filter(|item| matches!(&item.ask, Ask::Choose { options, .. } if options.len() == 2))
                            .filter_map(right)
                            .collect();
                        let ones = binary.iter().sum::<usize>() as f64 / binary.len() as f64;
                        assert!(binary.len() < 10 || (0.3..=0.7).contains(&ones), "{at}: {ones}");
                    }
                }
                assert!(suite.limit(usize::MAX) == suite);
            }
        }
    }

    #[test]
    fn beginnings_of_the_spread_are_even() {
        assert_eq!(spread(1), [0]);
        assert_eq!(spread(8), [0, 4, 2, 6, 1, 5, 3, 7]);
        assert_eq!(spread(5), [0, 4, 2, 1, 3]);
        for count in 0..40 {
            let mut order = spread(count);
            order.sort_unstable();
            assert_eq!(order, (0..count).collect::<Vec<_>>());
        }
    }
}
