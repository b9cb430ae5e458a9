//! A closed little world: people, towns, animals and things about which a few hundred facts hold, text that tells them,
//! and questions that ask for them.
//!
//! The seed decides what is so. Every fact is told in several phrasings, and one phrasing of each fact is *held out*: no
//! training text contains it, the validation text and the questions use nothing else. A model that answers has therefore
//! learnt the fact and the language, not the line.
//!
//! A sort of fact is a [`Kind`]: one function in `kinds.rs` and one line in [`kinds::KINDS`].

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::random::Stream;
use crate::{Error, Result};

pub mod kinds;
pub mod traits;
pub mod words;

/// How a sentence that asks and answers begins.
const QUESTION: &str = "Question: ";

/// How many people live in the world.
const PEOPLE: usize = 96;
/// How many towns there are.
const TOWNS: usize = 24;
/// How many sentences [`World::valid`] tells.
const VALID_SENTENCES: usize = 3000;

/// What is so, and how it is told.
#[derive(Debug, Clone)]
pub struct World {
    /// Decides everything below.
    pub seed: u64,
    /// Everybody's name, with the pronoun that goes with it.
    pub people: Vec<(String, &'static str)>,
    /// The names of the towns.
    pub towns: Vec<String>,
    /// Every kind of fact, in the order of [`kinds::KINDS`].
    pub kinds: Vec<Kind>,
    /// Whether the training text tells of [`traits`] too, in two documents of five.
    pub traits: bool,
}

/// One sort of fact: what is told in training, and what is asked.
#[derive(Debug, Clone)]
pub struct Kind {
    /// One word; the `kind` of its questions.
    pub name: &'static str,
    /// What is told.
    pub statements: Vec<Statement>,
    /// What is asked.
    pub questions: Vec<Question>,
}

/// One thing that is so, and the sentences that say it.
#[derive(Debug, Clone, PartialEq)]
pub struct Statement {
    /// What it is about; statements about one subject make a story.
    pub subject: String,
    /// Stands for the subject at the head of a sentence, later in a story. Empty: no stories about this.
    pub pronoun: &'static str,
    /// Sentences of the training text.
    pub told: Vec<String>,
    /// Sentences kept for the validation text.
    pub held_out: Vec<String>,
}

/// Something to ask a model: which of the options continues the prompt?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// The beginning of a true sentence, without a blank at its end.
    pub prompt: String,
    /// The ways it might go on, each to be set after a blank.
    pub options: Vec<String>,
    /// Which option is true.
    pub answer: usize,
    /// The [`Kind`] it belongs to.
    pub kind: String,
}

impl World {
    /// The world of that seed.
    pub fn new(seed: u64) -> Self {
        let mut stream = Stream::new(seed, "world/people", 0);
        let people = words::person_names(&mut stream, PEOPLE);
        let people = people.into_iter().map(|name| (name, *stream.pick(&["She", "He"]))).collect();
        let towns = words::town_names(&mut Stream::new(seed, "world/towns", 0), TOWNS);
        let mut world = Self { seed, people, towns, kinds: Vec::new(), traits: false };
        world.kinds = kinds::KINDS.iter().map(|kind| kind(&world)).collect();
        world
    }

    /// The world of that seed whose training text tells of [`traits`] too. Its facts are those of [`World::new`].
    pub fn with_traits(seed: u64) -> Self {
        Self { traits: true, ..Self::new(seed) }
    }

    /// Training text: documents of one to seven sentences, one document a line, until `sentences` are told.
    pub fn corpus(&self, sentences: usize) -> String {
        self.text("world/corpus", sentences, self.traits, |statement| &statement.told)
    }

    /// Validation text: documents of the same sorts, every fact in a phrasing the training text never uses for it.
    pub fn valid(&self) -> String {
        self.text("world/valid", VALID_SENTENCES, false, |statement| &statement.held_out)
    }

    /// Every question, kind by kind.
    pub fn questions(&self) -> Vec<Question> {
        self.kinds.iter().flat_map(|kind| kind.questions.iter().cloned()).collect()
    }

    /// Every sentence of training and validation, each once: what a tokenizer has to cover.
    pub fn sentences(&self) -> impl Iterator<Item = &str> {
        let statements = self.kinds.iter().flat_map(|kind| &kind.statements);
        statements.flat_map(|s| s.told.iter().chain(&s.held_out)).map(String::as_str)
    }

    fn text(
        &self,
        name: &str,
        sentences: usize,
        with_traits: bool,
        phrasings: impl Fn(&Statement) -> &Vec<String>,
    ) -> String {
        let statements: Vec<&Statement> = self.kinds.iter().flat_map(|kind| &kind.statements).collect();
        let mut about: BTreeMap<&str, Vec<&Statement>> = BTreeMap::new();
        for statement in statements.iter().filter(|statement| !statement.pronoun.is_empty()) {
            about.entry(&statement.subject).or_default().push(statement);
        }
        let stories: Vec<Vec<&Statement>> = about.into_values().filter(|statements| statements.len() >= 3).collect();

        let mut text = String::new();
        let (mut told, mut document) = (0, 0);
        while told < sentences {
            let stream = &mut Stream::new(self.seed, name, document);
            document += 1;
            // An extra draw where there are traits, two documents in five: the plain world stays as it is.
            let of_traits = with_traits && stream.below(5) < 2;
            let lines = match stream.below(10) {
                _ if of_traits => traits::document(self, stream),
                0..=3 => list(1, stream, &statements, &phrasings),
                4..=6 => list(3 + stream.below(4), stream, &statements, &phrasings),
                _ => story(stream, &stories, &phrasings),
            };
            told += lines.len();
            text.push_str(&lines.join(" "));
            text.push('\n');
        }
        text
    }
}

/// `count` statements about anything.
fn list(
    count: usize,
    stream: &mut Stream,
    of: &[&Statement],
    phrasings: impl Fn(&Statement) -> &Vec<String>,
) -> Vec<String> {
    (0..count)
        .map(|_| {
            let statement = *stream.pick(of);
            stream.pick(phrasings(statement)).clone()
        })
        .collect()
}

/// An opening, two to five statements about one subject, at times a closing.
fn story(stream: &mut Stream, of: &[Vec<&Statement>], phrasings: impl Fn(&Statement) -> &Vec<String>) -> Vec<String> {
    let mut statements = stream.pick(of).clone();
    stream.shuffle(&mut statements);
    statements.truncate(2 + stream.below(4));
    let (subject, pronoun) = (&statements[0].subject, statements[0].pronoun);
    let mut lines = vec![opening(stream, subject, pronoun)];
    for statement in statements {
        let plain: Vec<&String> = phrasings(statement).iter().filter(|line| !line.starts_with(QUESTION)).collect();
        if plain.is_empty() {
            continue;
        }
        let line = *stream.pick(&plain);
        let rest = line.strip_prefix(subject.as_str()).filter(|rest| rest.starts_with(' '));
        match rest {
            Some(rest) if lines.len() > 1 && stream.below(2) == 0 => lines.push(format!("{pronoun}{rest}")),
            _ => lines.push(line.clone()),
        }
    }
    if pronoun != "It" && stream.below(3) == 0 {
        lines.push(match stream.below(3) {
            0 => format!("Then {subject} went to sleep."),
            1 => format!("At the end of the day {subject} was tired and happy."),
            _ => "That was a good day.".into(),
        });
    }
    lines
}

/// How a story begins: time, weather, and somebody if it is about somebody.
fn opening(stream: &mut Stream, subject: &str, pronoun: &str) -> String {
    let (weather, time) = (*stream.pick(words::WEATHERS), *stream.pick(words::TIMES));
    match stream.below(if pronoun == "It" { 2 } else { 5 }) {
        0 => format!("It was a {weather} {time}."),
        1 => format!("This is a story for a {weather} {time}."),
        2 => format!("On {} {subject} got up early.", stream.pick(words::DAYS)),
        3 => format!("One {weather} {time} {subject} walked to the {}.", stream.pick(words::WATERS)),
        _ => format!("Let me tell you about {subject}."),
    }
}

/// Training text of the world of that seed; see [`World::corpus`].
pub fn corpus(seed: u64, sentences: usize) -> String {
    World::new(seed).corpus(sentences)
}

/// Validation text of the world of that seed; see [`World::valid`].
pub fn valid(seed: u64) -> String {
    World::new(seed).valid()
}

/// Questions about the world of that seed; see [`World::questions`].
pub fn questions(seed: u64) -> Vec<Question> {
    World::new(seed).questions()
}

/// Writes `world_train.txt` (at most `train_bytes` of it, whole documents), `world_valid.txt` and `questions.jsonl` into
/// `folder`.
pub fn write(world: &World, folder: &Path, train_bytes: usize) -> Result<()> {
    let train = world.corpus(train_bytes / 20); // sentences are longer than that on average
    let end = train[..train_bytes.min(train.len())].rfind('\n').map_or(0, |last| last + 1);
    save(&folder.join("world_train.txt"), &train[..end])?;
    save(&folder.join("world_valid.txt"), &world.valid())?;
    let mut lines = String::new();
    for question in world.questions() {
        let line = serde_json::to_string(&question).map_err(|error| Error::Text(error.to_string()))?;
        writeln!(lines, "{line}").expect("a String takes every write");
    }
    save(&folder.join("questions.jsonl"), &lines)
}

/// The questions of a `questions.jsonl`.
pub fn read_questions(path: &Path) -> Result<Vec<Question>> {
    let fail = |what: String| Error::Text(format!("{}: {what}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    let parse = |(number, line): (usize, &str)| {
        let question: Question =
            serde_json::from_str(line).map_err(|error| fail(format!("line {}: {error}", number + 1)))?;
        let distinct: HashSet<&String> = question.options.iter().collect();
        if question.answer >= question.options.len() || distinct.len() != question.options.len() {
            return Err(fail(format!("line {}: `answer` must name one of several different `options`", number + 1)));
        }
        Ok(question)
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(parse).collect()
}

fn save(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|error| Error::Text(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use sha2::{Digest, Sha256};

    use super::*;

    /// One value a golden line can hold.
    fn hash(text: &str) -> String {
        Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_seed_makes_the_same_world_always() {
        // Golden: a change here is a new world, and the fixture model has to be trained anew on it.
        let world = World::new(1);
        let questions = serde_json::to_string(&world.questions()).unwrap();
        assert_eq!(
            [hash(&world.corpus(1000)), hash(&world.valid()), hash(&questions)],
            ["3a5c976fee8a7591", "e6d76587f84eb277", "6f277c0c3fdfeff2"]
        );
        assert_ne!(hash(&corpus(2, 1000)), hash(&corpus(1, 1000)));
        let (short, long) = (corpus(1, 100), corpus(1, 200));
        assert!(long.starts_with(&short), "a longer corpus begins with the shorter one");
    }

    #[test]
    fn there_are_questions_of_every_kind_and_each_is_well_formed() {
        let world = World::new(1);
        let questions = world.questions();
        assert!(questions.len() >= 300, "{} questions", questions.len());
        let names: HashSet<&str> = world.kinds.iter().map(|kind| kind.name).collect();
        assert_eq!(names.len(), kinds::KINDS.len(), "two kinds of one name");
        for kind in &world.kinds {
            assert!(kind.questions.len() >= 20, "{}: {} questions", kind.name, kind.questions.len());
            let mut places = [0; 8];
            for question in &kind.questions {
                let distinct: HashSet<&String> = question.options.iter().collect();
                assert_eq!(distinct.len(), question.options.len(), "{question:?}");
                assert!(question.options.len() >= 2 && question.answer < question.options.len(), "{question:?}");
                assert_eq!(question.prompt.trim(), question.prompt);
                assert_eq!(question.kind, kind.name);
                places[question.answer] += 1;
            }
            let most = kind.questions.len() * 3 / 4;
            assert!(places.iter().all(|&count| count < most), "{}: answers stand at {places:?}", kind.name);
        }
    }

    #[test]
    fn no_question_and_no_validation_fact_stands_in_the_training_text() {
        let world = World::new(1);
        let corpus = world.corpus(30_000);
        let told: HashSet<&str> = corpus.split_inclusive(['.', '?', ':', ',']).map(str::trim).collect();
        for kind in &world.kinds {
            for (statement, question) in kind.statements.iter().zip(&kind.questions) {
                for line in &statement.held_out {
                    assert!(!statement.told.contains(line), "{line}");
                    assert!(line.starts_with(QUESTION) || !told.contains(line.as_str()), "{line}");
                    assert!(line.starts_with(&question.prompt), "{line}");
                }
            }
        }
    }

    /// Facts as the *training text* has them, found by one literal phrasing: subject to answer.
    fn read(corpus: &str, before: &str, between: &str, after: &str) -> HashMap<String, String> {
        let mut facts = HashMap::new();
        for line in corpus.lines() {
            for sentence in line.split_inclusive(". ").map(str::trim) {
                let Some((subject, answer)) = sentence
                    .strip_prefix(before)
                    .and_then(|rest| rest.strip_suffix(after))
                    .and_then(|rest| rest.split_once(between))
                else {
                    continue;
                };
                if ["She", "He", "It"].contains(&subject) {
                    continue; // told of whoever the story is about
                }
                let old = facts.insert(subject.to_string(), answer.to_string());
                assert!(old.is_none_or(|old| old == answer), "the text contradicts itself: {sentence}");
            }
        }
        facts
    }

    #[test]
    fn every_answer_follows_from_the_training_text() {
        let world = World::new(1);
        let corpus = world.corpus(100_000);
        // For each kind two phrasings, so that one at least was told: (kind, before, between, after) of subject and answer.
        let phrasings = [
            ("home", "", " lives in ", "."),
            ("home", "", " has a house in ", "."),
            ("job", "", " works as a ", "."),
            ("job", "The job of ", " is ", "."),
            ("pet", "", " has a pet ", "."),
            ("pet", "At home ", " feeds the ", "."),
            ("colour", "", " likes the colour ", "."),
            ("colour", "", " always dresses in ", "."),
            ("food", "", " loves to eat ", "."),
            ("food", "For dinner ", " wants ", "."),
            ("friend", "", " is a friend of ", "."),
            ("friend", "", " often visits ", "."),
            ("birthday", "", " was born in ", "."),
            ("birthday", "The birthday of ", " is in ", "."),
            ("music", "", " plays the ", "."),
            ("music", "At night you hear ", " on the ", "."),
            ("owns", "", " owns a ", "."),
            ("owns", "", " bought a ", "."),
            ("region", "", " lies in the ", "."),
            ("region", "The road to ", " goes ", "."),
            ("mayor", "", " is led by ", "."),
            ("mayor", "The mayor of ", " is ", "."),
            ("crop", "", " is known for ", "."),
            ("crop", "The market of ", " sells ", "."),
            ("water", "", " stands by a ", "."),
            ("water", "Near ", " there is a ", "."),
            ("weather", "", " is often ", "."),
            ("weather", "Days in ", " are ", "."),
            ("legs", "The ", " has ", " legs."),
            ("legs", "The ", " walks on ", " legs."),
            ("voice", "The ", " always ", "."),
            ("voice", "When the ", " is happy it ", "."),
            ("habitat", "You find the ", " in the ", "."),
            ("habitat", "The home of the ", " is the ", "."),
            ("diet", "The ", " eats ", "."),
            ("diet", "The food of the ", " is ", "."),
            ("material", "The ", " is made of ", "."),
            ("material", "The ", " was cut from ", "."),
            ("room", "The ", " stands in the ", "."),
            ("room", "The ", " was put in the ", "."),
            ("paint", "The ", " is painted ", "."),
            ("paint", "The ", " looks ", "."),
            ("opposite", "The opposite of ", " is ", "."),
            ("opposite", "What is not ", " is ", "."),
            ("category", "The word ", " is the name of some ", "."),
            ("category", "In the list ", " is under ", "."),
        ];
        let mut facts: HashMap<&str, HashMap<String, String>> = HashMap::new();
        for (kind, before, between, after) in phrasings {
            facts.entry(kind).or_default().extend(read(&corpus, before, between, after));
        }
        let number = |word: &str| words::NUMBERS.iter().position(|&number| number == word);
        let known = |facts: &HashMap<String, String>, prompt: &[String]| {
            // The subject is what stands last in the prompt of all that the text knows something of this kind about.
            let prompt = format!(" {} ", prompt.join(" "));
            let found = facts.iter().filter_map(|(subject, fact)| Some((prompt.rfind(&format!(" {subject} "))?, fact)));
            found.max().map(|(_, fact)| fact.clone())
        };
        let words = |text: &str| -> Vec<String> {
            text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()).map(String::from).collect()
        };
        for question in world.questions() {
            let prompt = words(&question.prompt);
            let right = &question.options[question.answer];
            let expected: Option<String> = match question.kind.as_str() {
                // These four need no text: arithmetic, order and the ranks of the list of animals.
                "sum" => {
                    let sum = prompt.iter().filter_map(|word| number(word)).sum::<usize>();
                    Some(words::NUMBERS[sum].into())
                }
                kind @ ("next" | "previous") => {
                    let ring = [words::DAYS, words::MONTHS, words::NUMBERS].into_iter().find_map(|list| {
                        // The last word of the list in the prompt: "One step back from two" has two of them.
                        let at = prompt.iter().rev().find_map(|word| list.iter().position(|item| item == word))?;
                        let step = if kind == "next" { 1 } else { list.len() - 1 };
                        Some(list[(at + step) % list.len()])
                    });
                    ring.map(String::from)
                }
                "bigger" => {
                    let mut named =
                        words::ANIMALS.iter().filter(|animal| prompt.iter().any(|word| word == animal.name));
                    named.next_back().map(|animal| animal.name.into())
                }
                kind => known(&facts[kind], &prompt),
            };
            assert_eq!(expected.as_ref(), Some(right), "{question:?}");
        }
    }

    #[test]
    fn files_are_read_back_and_a_broken_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let world = World::new(1);
        write(&world, folder.path(), 5000).unwrap();
        let train = fs::read_to_string(folder.path().join("world_train.txt")).unwrap();
        assert!(train.len() <= 5000 && train.len() > 4500 && train.ends_with(".\n"), "{} bytes", train.len());
        assert!(corpus(1, 1000).starts_with(&train));
        let path = folder.path().join("questions.jsonl");
        assert_eq!(read_questions(&path).unwrap(), world.questions());

        fs::write(&path, "\n{\"prompt\":\"a\",\"options\":[\"b\",\"b\"],\"answer\":0,\"kind\":\"c\"}\n").unwrap();
        let error = read_questions(&path).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("several different"), "{error}");
    }
}
