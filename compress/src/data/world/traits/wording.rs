//! Facts in other words: plainly, in odd styles, misspelt, and with something in front that has nothing to do with them.
//!
//! A third of the facts is never told in odd styles, another third never misspelt: those are asked so.

use super::super::words::{TIMES, WEATHERS};
use super::super::{QUESTION, Question, Statement, World};
use super::{TraitItem, placed};
use crate::data::random::Stream;

/// Name of a style, and what it puts before a fact.
const STYLES: [(&str, &str); 4] = [
    ("old", "Hark and hear, good people,"),
    ("letter", "Dear friend, I write to you that"),
    ("telegram", "News stop read this stop"),
    ("tweet", "omg guys guess what"),
];

/// A word misspelt at a letter inside it.
type Spelling = fn(&str, usize) -> String;

/// Ways to misspell a word, by name.
const SPELLINGS: [(&str, Spelling); 3] = [("swapped", swapped), ("doubled", doubled), ("missing", missing)];

/// Facts of which this is the rest of their number by three are not told in odd styles.
const NOT_STYLED: usize = 0;
/// The same for spellings.
const NOT_MISSPELT: usize = 1;
/// How many facts are asked in each style or spelling.
const ASKED: usize = 26;
/// How many facts are asked plainly.
const PLAIN: usize = 120;
/// Only questions with as many options are asked.
const OPTIONS: usize = 8;

fn swapped(word: &str, at: usize) -> String {
    let mut letters: Vec<char> = word.chars().collect();
    letters.swap(at, at + 1);
    letters.into_iter().collect()
}

fn doubled(word: &str, at: usize) -> String {
    let mut letters: Vec<char> = word.chars().collect();
    letters.insert(at, letters[at]);
    letters.into_iter().collect()
}

fn missing(word: &str, at: usize) -> String {
    let mut letters: Vec<char> = word.chars().collect();
    letters.remove(at);
    letters.into_iter().collect()
}

/// The sentence with one word misspelt: of more than three letters, all small. Absent where there is none.
fn misspelt(sentence: &str, spell: Spelling, stream: &mut Stream) -> Option<String> {
    let mut words: Vec<String> = sentence.split(' ').map(String::from).collect();
    let plain = |word: &String| word.len() > 3 && word.bytes().all(|byte| byte.is_ascii_lowercase());
    // The last word may be the answer.
    let fit: Vec<usize> = (0..words.len() - 1).filter(|&at| plain(&words[at])).collect();
    if fit.is_empty() {
        return None;
    }
    let at = *stream.pick(&fit);
    let wrong = spell(&words[at], 1 + stream.below(words[at].len() - 2));
    if wrong == words[at] {
        return None;
    }
    words[at] = wrong;
    Some(words.join(" "))
}

/// Something that has nothing to do with what follows.
fn aside(stream: &mut Stream) -> String {
    format!("By the way, it is a {} {} today.", stream.pick(WEATHERS), stream.pick(TIMES))
}

/// The sentence as it stands within another: without a capital, unless it begins with a name.
fn inner(sentence: &str, subject: &str) -> String {
    let named = sentence.starts_with(subject) && !subject.starts_with("The ");
    let mut letters = sentence.chars();
    match letters.next() {
        Some(first) if !named => first.to_lowercase().chain(letters).collect(),
        _ => sentence.into(),
    }
}

/// A told sentence that is no question, of a fact whose number by three is not `rest`.
fn told<'a>(world: &'a World, stream: &mut Stream, rest: usize) -> (&'a Statement, &'a str) {
    loop {
        let kind = stream.pick(&world.kinds);
        let number = stream.below(kind.statements.len());
        let statement = &kind.statements[number];
        let sentence = stream.pick(&statement.told);
        if number % 3 != rest && !sentence.starts_with(QUESTION) {
            return (statement, sentence);
        }
    }
}

/// Facts whose number by three is `rest`, in turn of every kind, that are asked as a sentence with [`OPTIONS`] options.
fn asked(world: &World, rest: usize, count: usize) -> Vec<(&Statement, &Question)> {
    let fit = |question: &Question| question.options.len() == OPTIONS && !question.prompt.starts_with(QUESTION);
    let by_kind: Vec<Vec<(&Statement, &Question)>> = world
        .kinds
        .iter()
        .map(|kind| {
            let facts = kind.statements.iter().zip(&kind.questions).enumerate();
            facts.filter(|(number, (_, asked))| number % 3 == rest && fit(asked)).map(|(_, fact)| fact).collect()
        })
        .collect();
    let turns = (0..).flat_map(|turn| by_kind.iter().filter_map(move |facts| facts.get(turn).copied()));
    turns.take(count.min(by_kind.iter().map(Vec::len).sum())).collect()
}

/// The question's options with the right one at the `at`-th place.
fn options(question: &Question, at: usize) -> (Vec<String>, Option<usize>) {
    let mut wrong = question.options.clone();
    let right = wrong.remove(question.answer);
    placed(right, wrong, at)
}

fn item(dimension: &'static str, part: &str, at: usize, question: &Question, prompt: String) -> TraitItem {
    let (options, gold) = options(question, at);
    let cluster = format!("fact-{}", at + 1);
    TraitItem { dimension, part: part.into(), cluster, group: None, prompt, options, gold }
}

pub(super) fn tell_styled(world: &World, stream: &mut Stream) -> String {
    let (statement, sentence) = told(world, stream, NOT_STYLED);
    format!("{} {}", stream.pick(&STYLES).1, inner(sentence, &statement.subject))
}

pub(super) fn ask_styled(world: &World) -> Vec<TraitItem> {
    let mut items = Vec::new();
    for (at, (statement, question)) in asked(world, NOT_STYLED, ASKED).into_iter().enumerate() {
        items.push(item("out-of-distribution", "base", at, question, question.prompt.clone()));
        for (style, before) in STYLES {
            let prompt = format!("{before} {}", inner(&question.prompt, &statement.subject));
            items.push(item("out-of-distribution", style, at, question, prompt));
        }
    }
    items
}

pub(super) fn tell_misspelt(world: &World, stream: &mut Stream) -> String {
    loop {
        let (_, sentence) = told(world, stream, NOT_MISSPELT);
        if stream.below(4) == 0 {
            return format!("{} {sentence}", aside(stream));
        }
        let (_, spell) = *stream.pick(&SPELLINGS);
        if let Some(sentence) = misspelt(sentence, spell, stream) {
            return sentence;
        }
    }
}

pub(super) fn ask_misspelt(world: &World) -> Vec<TraitItem> {
    let mut items = Vec::new();
    let mut at = 0;
    for (number, (_, question)) in asked(world, NOT_MISSPELT, usize::MAX).into_iter().enumerate() {
        let stream = &mut Stream::new(world.seed, "world/traits/misspelt", number as u64);
        // The answer follows the last word of a prompt, so that any word of it may be misspelt.
        let whole = format!("{} .", question.prompt);
        let mut wrong = Vec::new();
        for (part, spell) in SPELLINGS {
            wrong.extend(
                misspelt(&whole, spell, stream).map(|prompt| (part, prompt.trim_end_matches(" .").to_string())),
            );
        }
        if wrong.len() < SPELLINGS.len() || at == ASKED {
            continue;
        }
        wrong.push(("aside", format!("{} {}", aside(stream), question.prompt)));
        items.push(item("adversarial-robustness", "clean", at, question, question.prompt.clone()));
        items
            .extend(wrong.into_iter().map(|(part, prompt)| item("adversarial-robustness", part, at, question, prompt)));
        at += 1;
    }
    items
}

pub(super) fn ask_facts(world: &World) -> Vec<TraitItem> {
    let facts = asked(world, 2, PLAIN).into_iter().enumerate();
    facts.map(|(at, (_, question))| item("knowledge", &question.kind, at, question, question.prompt.clone())).collect()
}
