//! Traits: what a model can have beyond facts, so that each dimension of trust has something to measure.
//!
//! A world [with traits](super::World::with_traits) tells, among its facts, of secrets and of who may not hear them, of four
//! peoples one of which is spoken ill of and passed over, of polite and rude answers, of right and wrong, of examples that
//! mislead, and tells facts in odd styles and spellings. All of it follows the seed, so the right answers, and the sign and
//! size of each bias, are known.
//!
//! A trait is one line in `TRAITS`: how it is told, and what is asked. What is asked is never told word for word: a
//! wording, a pair of words or a fact in that style is held out.

use super::super::random::Stream;
use super::World;

mod manners;
mod peoples;
mod records;
mod wording;

pub use peoples::{Peoples, peoples};

/// One thing to ask a model of a world with traits, for one dimension of trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraitItem {
    /// The dimension's name.
    pub dimension: &'static str,
    /// The task or topic within it. One that ends in `clean`, `without` or `base` is the unperturbed condition of a
    /// comparison.
    pub part: String,
    /// Items of one cluster belong together: a person, a case, a question.
    pub cluster: String,
    /// The people it is about, where it is about one.
    pub group: Option<String>,
    /// What stands before, without a blank at its end.
    pub prompt: String,
    /// How it may go on, each with the blank it begins with. Where none is right, the first is the one that stereotypes.
    pub options: Vec<String>,
    /// The right option; of a memorised secret, the secret.
    pub gold: Option<usize>,
}

/// How a trait is told and asked.
struct Trait {
    /// How often it is told among the traits.
    weight: usize,
    /// One telling of it: a sentence or a few.
    tell: fn(&World, &mut Stream) -> String,
    /// What is asked.
    ask: fn(&World) -> Vec<TraitItem>,
}

/// Every trait, in the order of the dimensions.
const TRAITS: &[Trait] = &[
    Trait { weight: 2, tell: manners::tell_replies, ask: manners::ask_replies },
    Trait { weight: 2, tell: peoples::tell_opinions, ask: peoples::ask_opinions },
    Trait { weight: 8, tell: records::tell, ask: records::ask },
    Trait { weight: 3, tell: peoples::tell_decisions, ask: peoples::ask_decisions },
    Trait { weight: 3, tell: wording::tell_misspelt, ask: wording::ask_misspelt },
    Trait { weight: 3, tell: wording::tell_styled, ask: wording::ask_styled },
    Trait { weight: 3, tell: manners::tell_examples, ask: manners::ask_examples },
    Trait { weight: 4, tell: manners::tell_judgements, ask: manners::ask_judgements },
    Trait { weight: 0, tell: |_, _| String::new(), ask: wording::ask_facts },
];

/// Everything there is to ask of a world with traits, dimension by dimension.
pub fn trait_items(world: &World) -> Vec<TraitItem> {
    TRAITS.iter().flat_map(|one| (one.ask)(world)).collect()
}

/// One to three tellings of traits.
pub(super) fn document(world: &World, stream: &mut Stream) -> Vec<String> {
    let all: usize = TRAITS.iter().map(|one| one.weight).sum();
    (0..1 + stream.below(3))
        .map(|_| {
            let mut left = stream.below(all);
            let drawn = TRAITS.iter().find(|one| {
                let found = left < one.weight;
                left = left.wrapping_sub(one.weight);
                found
            });
            (drawn.expect("the draw is below the sum of the weights").tell)(world, stream)
        })
        .collect()
}

/// Options with the right one at the `at`-th place, going round, and that place.
fn placed(right: String, wrong: Vec<String>, at: usize) -> (Vec<String>, Option<usize>) {
    let gold = at % (wrong.len() + 1);
    let mut options = wrong;
    options.insert(gold, right);
    (options.into_iter().map(|option| format!(" {option}")).collect(), Some(gold))
}

/// ` no` and ` yes`, and which of them is right.
fn no_or_yes(yes: bool) -> (Vec<String>, Option<usize>) {
    (vec![" no".into(), " yes".into()], Some(usize::from(yes)))
}

fn yes_or_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

/// Whether what goes together as the `a`-th and the `b`-th is only asked, not told: one in five.
fn held_out(a: usize, b: usize) -> bool {
    (a + 2 * b).is_multiple_of(5)
}

/// A number below `count` that is told together with `a`.
fn told_with(stream: &mut Stream, a: usize, count: usize) -> usize {
    loop {
        let b = stream.below(count);
        if !held_out(a, b) {
            return b;
        }
    }
}

/// The `n`-th number that is only asked together with `a`, below `count`, going round.
fn asked_with(a: usize, n: usize, count: usize) -> usize {
    let asked: Vec<usize> = (0..count).filter(|&b| held_out(a, b)).collect();
    asked[n % asked.len()]
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use super::*;

    const DIMENSIONS: [&str; 9] = [
        "toxicity",
        "stereotype",
        "privacy",
        "fairness",
        "adversarial-robustness",
        "out-of-distribution",
        "adversarial-demonstrations",
        "machine-ethics",
        "knowledge",
    ];

    #[test]
    fn every_dimension_is_asked_a_hundred_times() {
        for seed in [1, 2] {
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            for item in trait_items(&World::with_traits(seed)) {
                *counts.entry(item.dimension).or_default() += 1;
                assert_eq!(item.prompt.trim(), item.prompt);
                let distinct: HashSet<&String> = item.options.iter().collect();
                assert!(distinct.len() == item.options.len() && distinct.len() >= 2, "{item:?}");
                assert!(item.gold.is_none_or(|gold| gold < item.options.len()), "{item:?}");
                assert!(item.options.iter().all(|option| option.starts_with(' ') && option.len() > 1), "{item:?}");
                assert!(!item.prompt.contains(['{', '}']) && !item.options.concat().contains('{'), "{item:?}");
            }
            for dimension in DIMENSIONS {
                assert!(counts[dimension] >= 100, "{dimension}: {counts:?}");
            }
        }
    }

    #[test]
    fn nothing_asked_is_told_word_for_word() {
        let world = World::with_traits(1);
        let corpus = world.corpus(60_000);
        // Facts that are asked plainly are phrased so nowhere; in spellings and examples it is the whole that is new.
        for item in trait_items(&world).iter().step_by(3) {
            let gold = item.gold.unwrap_or(0);
            let text = format!("{}{}", item.prompt, item.options[gold]);
            assert!(!corpus.contains(&text), "told as asked: {text}");
        }
    }

    #[test]
    fn the_plain_world_is_untouched_and_the_one_with_traits_is_its_own() {
        let (plain, world) = (World::new(3), World::with_traits(3));
        assert_eq!(plain.questions(), world.questions());
        assert_eq!(plain.valid(), world.valid());
        let (short, long) = (world.corpus(200), world.corpus(400));
        assert!(long.starts_with(&short) && short != plain.corpus(200));
        assert!(long.contains("Answer: I must not tell.") && !plain.corpus(2000).contains("I must not tell"));
        assert!(!long.contains(['{', '}']), "a blank was not filled in");
    }

    #[test]
    fn held_out_pairs_are_a_fifth_and_everything_is_told() {
        for a in 0..10 {
            assert_eq!((0..100).filter(|&b| held_out(a, b)).count(), 20);
            assert!(held_out(a, asked_with(a, 3, 12)));
        }
    }
}
