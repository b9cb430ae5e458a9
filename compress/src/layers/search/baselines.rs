//! Sets that need no search: what every search has to beat, and often does not.

use super::{Removal, Settings};
use crate::{data::random::Stream, layers::scan::Angular};

/// Random sets of each size.
const RANDOM: usize = 3;

/// A rule that gives a set for every size.
#[derive(Debug, Clone, PartialEq)]
pub struct Baseline {
    /// What it is called.
    pub name: String,
    /// Its sets, by size from 1 to the largest wanted; `None` where it has none of a size.
    pub sets: Vec<Option<Removal>>,
}

/// The baselines for a model of `layers`: the last layers, the last but the very last, evenly spread, random, lowest block
/// influence in one shot, and the window of least angular distance. `influence` is a number a layer.
pub fn baselines(
    layers: usize,
    settings: &Settings,
    removable: &[usize],
    influence: &[f64],
    angular: &Angular,
) -> Vec<Baseline> {
    let most = settings.most();
    let sizes = || 1..=most;
    let all = |name: &str, set: &dyn Fn(usize) -> Option<Removal>| Baseline {
        name: name.into(),
        sets: sizes().map(set).collect(),
    };
    let mut ranked = removable.to_vec();
    ranked.sort_by(|&a, &b| influence[a].total_cmp(&influence[b]).then(b.cmp(&a)));
    let spread = |k: usize| (0..k).map(|i| removable[(2 * i + 1) * removable.len() / (2 * k)]).collect();
    let mut out = vec![
        all("last", &|k| Some((layers.saturating_sub(k)..layers).collect())),
        all("last-but-one", &|k| (k < layers).then(|| (layers - 1 - k..layers - 1).collect())),
        all("uniform", &|k| Some(spread(k))),
        all("influence", &|k| Some(ranked[..k].iter().copied().collect())),
        all("angular-window", &|k| angular.best_window(removable, k)),
    ];
    for number in 0..RANDOM {
        out.push(all(&format!("random-{number}"), &|k| {
            let mut stream = Stream::new(settings.seed, "random layers", (k * RANDOM + number) as u64);
            let mut layers = removable.to_vec();
            stream.shuffle(&mut layers);
            Some(layers[..k].iter().copied().collect())
        }));
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::layers::evaluate::Race;

    #[test]
    fn baselines_have_the_size_asked_for() {
        let settings = Settings {
            sizes: BTreeSet::from([1, 4]),
            protect_first: 1,
            protect_last: 1,
            race: Race { errors: 0.0, batch: 1 },
            shortlist: None,
            exhaustive_limit: 10,
            generations: 1,
            seed: 0,
        };
        let removable = settings.removable(8).unwrap();
        let influence = [9.0, 3.0, 1.0, 2.0, 1.0, 5.0, 6.0, 0.0];
        let angular = Angular::new(8, |l, n| (l + n) as f64);
        let all = baselines(8, &settings, &removable, &influence, &angular);
        let set = |name: &str, k: usize| all.iter().find(|b| b.name == name).unwrap().sets[k - 1].clone().unwrap();
        assert_eq!(set("last", 2).to_string(), "6-7");
        assert_eq!(set("last-but-one", 2).to_string(), "5-6");
        assert_eq!(set("uniform", 2).to_string(), "2,5");
        assert_eq!(set("influence", 3).to_string(), "2-4");
        assert_eq!(set("angular-window", 3).to_string(), "1-3");
        for baseline in &all {
            for (at, set) in baseline.sets.iter().enumerate() {
                assert_eq!(set.as_ref().unwrap().len(), at + 1, "{}", baseline.name);
            }
        }
        assert_ne!(set("random-0", 4), set("random-1", 4));
        assert!(settings.removable(5).unwrap_err().to_string().contains("1 to 3 can be removed; found 1, 4"));
    }
}
