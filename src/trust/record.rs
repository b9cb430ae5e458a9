//! What models answered, kept: JSON lines, a file a dimension.
//!
//! The first line is a [`Header`] with the circumstances of the answers; then one line an item, in the items' order.
//! No line tells of times or machines. A file that holds the answers asked for is read instead of running the model; under
//! another rule they can be judged again. While a model runs, each finished chunk becomes a line of `FILE.journal`, from which
//! a run that was killed goes on.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use scruple_weights::digest::sha256;
use serde::{Deserialize, Serialize};

use super::{
    dimension::Rule,
    item::{Answer, Item, Outcome},
};
use crate::record::write_whole;

/// Changes when lines do.
const FORMAT: u32 = 1;

/// A rule's name and version, as a file holds them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleName {
    /// See [`Rule::name`].
    pub name: String,
    /// See [`Rule::version`].
    pub version: u32,
}

impl From<Rule> for RuleName {
    fn from(rule: Rule) -> Self {
        Self { name: rule.name.into(), version: rule.version }
    }
}

/// What a model is: SHA-256 each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelHashes {
    /// Names, types, shapes and bytes of the tensors.
    pub tensors: String,
    /// Of `config.json`, and of `generation_config.json`, which may name the tokens that end a text.
    pub config: String,
    /// Of `tokenizer.json`.
    pub tokenizer: String,
    /// Of the files that may hold the chat template, where it is used.
    pub chat_template: Option<String>,
}

impl ModelHashes {
    /// Those of `checkpoint`; `chat_template` where prompts go through one.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn of(checkpoint: &scruple_weights::Checkpoint, chat_template: bool) -> Result<Self> {
        let files = |names: &[&str]| -> Result<String> {
            let mut all = String::new();
            for name in names {
                let path = checkpoint.dir().join(name);
                match fs::read(&path) {
                    Ok(bytes) => all += &format!("{name} {}\n", sha256(&bytes)),
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => {
                        return Err(error).with_context(|| format!("{}: cannot read the file", path.display()));
                    }
                }
            }
            Ok(sha256(all.as_bytes()))
        };
        let template = ["chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json"];
        Ok(Self {
            tensors: scruple_weights::digest::fingerprint(checkpoint.tensors()),
            config: files(&["config.json", "generation_config.json"])?,
            // The special tokens stand in for one that the text has none of.
            tokenizer: files(&["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])?,
            chat_template: chat_template.then(|| files(&template)).transpose()?,
        })
    }
}

/// The circumstances of one dimension's answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Version of this format.
    pub trust_records: u32,
    /// The program that ran the model.
    pub scruple: String,
    /// The dimension.
    pub dimension: String,
    /// What the answers were judged by.
    pub rule: RuleName,
    /// The model that answered.
    pub model: ModelHashes,
    /// The suite's name.
    pub suite: String,
    /// Hash of all its items.
    pub suite_sha256: String,
    /// Items of this dimension.
    pub items: usize,
    /// Their hash.
    pub items_sha256: String,
}

impl Header {
    /// The header of the answers of `model` to `items`.
    pub fn new(
        dimension: &str,
        rule: impl Into<RuleName>,
        model: ModelHashes,
        (suite, suite_sha256): (&str, &str),
        items: &[Item],
    ) -> Result<Self> {
        let mut lines = String::new();
        for item in items {
            lines += &serde_json::to_string(item)?;
            lines.push('\n');
        }
        Ok(Self {
            trust_records: FORMAT,
            scruple: env!("CARGO_PKG_VERSION").into(),
            dimension: dimension.into(),
            rule: rule.into(),
            model,
            suite: suite.into(),
            suite_sha256: suite_sha256.into(),
            items: items.len(),
            items_sha256: sha256(lines.as_bytes()),
        })
    }

    /// Whether both are about the same answers, whatever they were judged by and whatever suite the items came with.
    fn same_answers(&self, other: &Self) -> bool {
        let about = |header: &Self| {
            let own = (header.trust_records, header.items, header.model.clone());
            (own, header.scruple.clone(), header.dimension.clone(), header.items_sha256.clone())
        };
        about(self) == about(other)
    }

    /// Where a cache keeps these answers, below its folder.
    pub fn place(&self) -> Result<PathBuf> {
        let about =
            serde_json::to_vec(&(self.trust_records, &self.scruple, &self.dimension, &self.model, &self.items_sha256))?;
        Ok(PathBuf::from(format!("{}-{}.jsonl", self.dimension, &sha256(&about)[..32])))
    }
}

/// An item as a model read it, and what it answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered {
    /// SHA-256 of the prompt as rendered.
    pub prompt_sha256: String,
    /// The prompt's beginning did not fit into the model's context.
    pub cut: bool,
    /// The answer.
    pub answer: Answer,
}

/// One item of a file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: String,
    prompt_sha256: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    cut: bool,
    answer: Answer,
    outcome: Outcome,
}

/// Writes the answers to `items` with their outcomes as `file`, as a whole, and removes what a killed run may have left.
///
/// # Errors
/// If the file cannot be written.
pub fn write(file: &Path, header: &Header, items: &[Item], answers: &[Answered], outcomes: &[Outcome]) -> Result<()> {
    let mut bytes = serde_json::to_vec(header)?;
    bytes.push(b'\n');
    for ((item, answered), outcome) in items.iter().zip(answers).zip(outcomes) {
        let Answered { prompt_sha256, cut, answer } = answered.clone();
        let line = Line { id: item.id.clone(), prompt_sha256, cut, answer, outcome: outcome.clone() };
        serde_json::to_writer(&mut bytes, &line)?;
        bytes.push(b'\n');
    }
    make_folder(file)?;
    write_whole(file, &bytes)?;
    match fs::remove_file(journal_of(file)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{}: cannot remove the file", journal_of(file).display()))
        }
        _ => Ok(()),
    }
}

/// The answers to `items` in `file`, if it is there and about them.
///
/// # Errors
/// A damaged file (the line is named); answers judged by another rule than `header` says, unless they are to be
/// judged again (`rejudge`).
pub fn read(file: &Path, header: &Header, items: &[Item], rejudge: bool) -> Result<Option<Vec<Answered>>> {
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("{}: cannot read the records", file.display())),
    };
    let mut lines = text.lines();
    let damaged = |number: usize, what: &str| {
        anyhow::anyhow!("{}: line {number}: {what}; delete the file to ask the model again", file.display())
    };
    let first = lines.next().unwrap_or_default();
    let found: Header = match serde_json::from_str(first) {
        Ok(found) => found,
        // Of another format or program, hence other answers.
        Err(_) if is_other_format(first) => return Ok(None),
        Err(error) => return Err(damaged(1, &format!("not a header of trust records: {error}"))),
    };
    if !found.same_answers(header) {
        return Ok(None);
    }
    let (had, wanted) = (&found.rule, &header.rule);
    anyhow::ensure!(
        rejudge || had == wanted,
        "{}: the records are judged by rule `{}` version {}, and `{}` version {} was asked for; scores compare only under \
         one rule: give --rejudge to judge the stored answers again",
        file.display(),
        had.name,
        had.version,
        wanted.name,
        wanted.version
    );
    let mut answers = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let number = index + 2;
        let Some(line) = lines.next() else {
            return Err(damaged(number, &format!("the file ends, expected {} items", items.len())));
        };
        let line: Line =
            serde_json::from_str(line).map_err(|error| damaged(number, &format!("not a record: {error}")))?;
        if line.id != item.id {
            return Err(damaged(number, &format!("found item `{}`, expected `{}`", line.id, item.id)));
        }
        answers.push(Answered { prompt_sha256: line.prompt_sha256, cut: line.cut, answer: line.answer });
    }
    match lines.next() {
        Some(_) => Err(damaged(items.len() + 2, &format!("there is more than the {} items", items.len()))),
        None => Ok(Some(answers)),
    }
}

fn is_other_format(line: &str) -> bool {
    let header: Option<serde_json::Value> = serde_json::from_str(line).ok();
    let format = header.and_then(|header| header.get("trust_records")?.as_u64());
    format.is_some_and(|format| format != u64::from(FORMAT))
}

/// Where the journal of a file's answers is: beside the file that its answers are written to whole, `FILE.part`.
fn journal_of(file: &Path) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_os_string();
    name.push(".journal");
    file.with_file_name(name)
}

fn make_folder(file: &Path) -> Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("{}: cannot create the folder", folder.display()))
}

/// The answers of each finished chunk of a run, a line each behind the header.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens what a killed run has left of `file`, or begins it: the journal, and the answers of the first chunks, as many
    /// as were finished. `chunks` are how many items each has. A journal of other answers is begun anew.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn open(file: &Path, header: &Header, chunks: &[usize]) -> Result<(Self, Vec<Vec<Answer>>)> {
        let path = journal_of(file);
        make_folder(&path)?;
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).with_context(|| format!("{}: cannot read the journal", path.display())),
        };
        // A line without its end was being written.
        let mut lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let found: Option<Header> = lines.next().and_then(|line| serde_json::from_str(line).ok());
        let mut done: Vec<Vec<Answer>> = Vec::new();
        if found.is_some_and(|found| found.same_answers(header)) {
            for (line, &items) in lines.zip(chunks) {
                match serde_json::from_str::<Vec<Answer>>(line) {
                    Ok(answers) if answers.len() == items => done.push(answers),
                    _ => break,
                }
            }
        }
        let mut bytes = line(header)?;
        for answers in &done {
            bytes.extend(line(answers)?);
        }
        write_whole(&path, &bytes)?;
        let opened = OpenOptions::new().append(true).open(&path);
        let file = opened.with_context(|| format!("{}: cannot open the journal", path.display()))?;
        Ok((Self { path, file }, done))
    }

    /// Adds the answers of the next chunk.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn push(&mut self, answers: &[Answer]) -> Result<()> {
        let line = line(&answers)?;
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        written.with_context(|| format!("{}: cannot write to the journal", self.path.display()))
    }
}

fn line(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::super::item::{Ask, Prompt};
    use super::*;

    const RULE: Rule = Rule { name: "likelihood", version: 1 };

    fn items(count: usize) -> Vec<Item> {
        let item = |i: usize| Item {
            id: format!("i{i}"),
            part: "part".into(),
            cluster: format!("c{i}"),
            group: None,
            prompt: Prompt::Plain(format!("prompt {i}")),
            ask: Ask::Choose { options: vec![" a".into(), " b".into()], before: vec![], gold: Some(0) },
        };
        (0..count).map(item).collect()
    }

    fn header(rule: Rule, items: &[Item]) -> Header {
        let hash = |name: &str| sha256(name.as_bytes());
        let model = ModelHashes { tensors: hash("t"), config: hash("c"), tokenizer: hash("k"), chat_template: None };
        Header::new("stereotype", rule, model, ("own", "0"), items).unwrap()
    }

    fn answered(i: usize) -> Answered {
        let answer = Answer { log_likelihoods: vec![-0.1 - i as f64 / 3.0, -2.5], tokens: vec![1, 2], text: None };
        Answered { prompt_sha256: sha256(&[i as u8]), cut: i == 1, answer }
    }

    fn outcome() -> Outcome {
        Outcome {
            choice: Some(0),
            value: 1.0,
            refused: false,
            unparsable: false,
            margin: Some(0.25),
            probabilities: vec![0.75, 0.25],
        }
    }

    #[test]
    fn answers_come_back_to_the_last_bit_and_only_for_what_they_answer() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sub/stereotype.jsonl");
        let items = items(3);
        let head = header(RULE, &items);
        assert_eq!(read(&file, &head, &items, false).unwrap(), None);
        let answers: Vec<Answered> = (0..3).map(answered).collect();
        write(&file, &head, &items, &answers, &vec![outcome(); 3]).unwrap();
        assert_eq!(read(&file, &head, &items, false).unwrap(), Some(answers.clone()));
        // Of another suite's name, the same; of other items or another model, nothing.
        let renamed = Header { suite: "other".into(), ..head.clone() };
        assert_eq!(read(&file, &renamed, &items, false).unwrap(), Some(answers.clone()));
        assert_eq!(read(&file, &header(RULE, &items[..2]), &items[..2], false).unwrap(), None);
        let mut other = head.clone();
        other.model.tensors = sha256(b"other");
        assert_eq!(read(&file, &other, &items, false).unwrap(), None);
        assert_ne!(other.place().unwrap(), head.place().unwrap());
        // Another rule's are refused, or judged again.
        for rule in [Rule { version: 2, ..RULE }, Rule { name: "per-byte", ..RULE }] {
            let head = header(rule, &items);
            let error = read(&file, &head, &items, false).unwrap_err().to_string();
            for word in ["stereotype.jsonl", "`likelihood` version 1", "--rejudge"] {
                assert!(error.contains(word), "{error}");
            }
            assert_eq!(read(&file, &head, &items, true).unwrap(), Some(answers.clone()));
        }
    }

    #[test]
    fn damaged_files_are_refused_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("d.jsonl");
        let items = items(3);
        let head = header(RULE, &items);
        let answers: Vec<Answered> = (0..3).map(answered).collect();
        write(&file, &head, &items, &answers, &vec![outcome(); 3]).unwrap();
        let whole = fs::read_to_string(&file).unwrap();
        let lines: Vec<&str> = whole.lines().collect();
        for (text, words) in [
            (String::new(), ["line 1", "header"]),
            (lines[..3].join("\n"), ["line 4", "ends"]),
            ([lines[0], lines[2], lines[1], lines[3]].join("\n"), ["line 2", "found item `i1`"]),
            ([lines[0], lines[1], "{}", lines[3]].join("\n"), ["line 3", "not a record"]),
            ([whole.as_str(), lines[1]].concat(), ["line 5", "more than the 3 items"]),
        ] {
            fs::write(&file, text).unwrap();
            let error = read(&file, &head, &items, false).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
        fs::write(&file, lines[0].replace("\"trust_records\":1", "\"trust_records\":2,\"more\":0")).unwrap();
        assert_eq!(read(&file, &head, &items, false).unwrap(), None);
    }

    #[test]
    fn a_journal_gives_back_whole_chunks_wherever_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("d.jsonl");
        let items = items(5);
        let head = header(RULE, &items);
        let sizes = [2, 1, 2];
        let answers = |from: usize, count: usize| (from..from + count).map(|i| answered(i).answer).collect::<Vec<_>>();
        let chunks = [answers(0, 2), answers(2, 1), answers(3, 2)];
        let (mut journal, done) = Journal::open(&file, &head, &sizes).unwrap();
        assert!(done.is_empty());
        chunks.iter().for_each(|chunk| journal.push(chunk).unwrap());
        drop(journal);
        let whole = fs::read(journal_of(&file)).unwrap();
        let ends: Vec<usize> = (0..whole.len()).filter(|&at| whole[at] == b'\n').map(|at| at + 1).collect();
        for length in 0..=whole.len() {
            fs::write(journal_of(&file), &whole[..length]).unwrap();
            let (_, done) = Journal::open(&file, &head, &sizes).unwrap();
            let expected = ends.iter().filter(|&&end| end <= length).count().saturating_sub(1);
            assert_eq!(done, chunks[..expected], "{length} bytes");
        }
        // Of other items, or other chunks, nothing.
        fs::write(journal_of(&file), &whole).unwrap();
        let (_, done) = Journal::open(&file, &head, &[1, 2, 2]).unwrap();
        assert!(done.is_empty());
        fs::write(journal_of(&file), &whole).unwrap();
        let (_, done) = Journal::open(&file, &header(RULE, &items[..4]), &sizes).unwrap();
        assert!(done.is_empty());
    }
}
