//! Items, answers and laws that the tests of several dimensions share.

use scruple_compress::data::random::Stream;

use super::super::dimension::{Dimension, Rule};
use super::super::item::{Answer, Ask, Item, Outcome, Prompt};

fn item(part: &str, ask: Ask) -> Item {
    Item { id: "a".into(), part: part.into(), cluster: "a".into(), group: None, prompt: Prompt::Plain("Q".into()), ask }
}

/// An item of `part` with `count` options, the first of which is right.
pub fn choice_in(part: &str, count: usize) -> Item {
    let options = (0..count).map(|at| format!(" option{at}")).collect();
    item(part, Ask::Choose { options, before: vec![], gold: Some(0) })
}

/// A decision about one of `group`.
pub fn yes_no(part: &str, group: &str, yes: bool) -> Item {
    let options = vec![" no".to_string(), " yes".to_string()];
    let item = item(part, Ask::Choose { options, before: vec![], gold: Some(usize::from(yes)) });
    Item { group: Some(group.into()), ..item }
}

/// Two options, the first of which stereotypes.
pub fn preference(part: &str, group: &str, options: [&str; 2]) -> Item {
    let item = item(part, Ask::Choose { options: options.map(String::from).to_vec(), before: vec![], gold: None });
    Item { group: Some(group.into()), ..item }
}

/// An item that asks for a text.
pub fn text_item(part: &str, expect: &[&str]) -> Item {
    item(part, Ask::Continue { max_tokens: 20, expect: expect.iter().map(|word| word.to_string()).collect() })
}

/// The answer of a model for which `choice` is the likeliest option.
pub fn answering(item: &Item, choice: usize) -> Answer {
    match &item.ask {
        Ask::Choose { options, .. } => Answer {
            log_likelihoods: (0..options.len()).map(|at| if at == choice { -1.0 } else { -2.0 }).collect(),
            tokens: vec![1; options.len()],
            text: None,
        },
        Ask::Continue { expect, .. } => {
            Answer { log_likelihoods: vec![], tokens: vec![], text: Some(expect[choice].clone()) }
        }
    }
}

/// The answer in words.
pub fn saying(text: &str) -> Answer {
    Answer { log_likelihoods: vec![], tokens: vec![], text: Some(text.into()) }
}

/// What the dimension makes of a model that takes the option `choose` says.
pub fn outcomes(
    dimension: &dyn Dimension,
    rule: Rule,
    items: &[Item],
    choose: impl Fn(usize, &Item) -> usize,
) -> Vec<Outcome> {
    items.iter().enumerate().map(|(at, item)| dimension.judge(rule, item, &answering(item, choose(at, item)))).collect()
}

/// The score of a model that takes the option `choose` says.
pub fn score_of(dimension: &dyn Dimension, rule: Rule, items: &[Item], choose: impl Fn(usize, &Item) -> usize) -> f64 {
    let outcomes = outcomes(dimension, rule, items, choose);
    dimension.score(rule, &items.iter().zip(&outcomes).collect::<Vec<_>>())
}

/// The mean score, over `runs` runs, of a model that draws its options.
pub fn random_score(dimension: &dyn Dimension, rule: Rule, items: &[Item], runs: u64) -> f64 {
    let run = |run: u64| {
        let draws = std::cell::RefCell::new(Stream::new(run, "random model", 0));
        score_of(dimension, rule, items, |_, item| match &item.ask {
            Ask::Choose { options, .. } => draws.borrow_mut().below(options.len()),
            Ask::Continue { expect, .. } => draws.borrow_mut().below(expect.len()),
        })
    };
    (0..runs).map(run).sum::<f64>() / runs as f64
}

/// Over items of `part` whose right answers are spread evenly: a perfect model has 100, one that always gives the same
/// answer scores as chance says, and one that draws its answers scores so on average.
pub fn laws_of_accuracy(dimension: &dyn Dimension, part: &str, count: usize) {
    let with_gold = |right: usize| {
        let mut item = choice_in(part, count);
        if let Ask::Choose { gold, .. } = &mut item.ask {
            *gold = Some(right);
        }
        item
    };
    let items: Vec<Item> = (0..12 * count).map(|at| with_gold(at % count)).collect();
    for &rule in dimension.rules() {
        let chance = dimension.chance(rule, &items).expect("items with options have a chance level");
        assert!((chance - 100.0 / count as f64).abs() < 1e-9, "{}: chance {chance}", dimension.name());
        assert_eq!(score_of(dimension, rule, &items, |at, _| at % count), 100.0);
        for same in 0..count {
            let constant = score_of(dimension, rule, &items, |_, _| same);
            assert!((constant - chance).abs() < 1e-9, "{}: always {same} scores {constant}", dimension.name());
        }
        let random = random_score(dimension, rule, &items, 300);
        assert!((random - chance).abs() < 2.5, "{}: random {random}, chance {chance}", dimension.name());
    }
}
