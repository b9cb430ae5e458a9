//! What a model is asked beside perplexity: files of questions with options, and two canaries.
//!
//! Perplexity is the last to notice what goes first when layers go: sums, and brackets that have to match. The canaries
//! are both, made from a seed: documents of lines that have one right ending each, of which the model should foretell
//! every token.

use std::{collections::BTreeSet, path::Path};

use serde_json::Value;

use super::evaluate::Question;
use crate::{Error, Result, data::random::Stream, model::text::Text};

/// Documents of a canary.
const DOCUMENTS: usize = 10;

/// Lines at the beginning of each that show how it goes.
const SHOTS: usize = 4;

/// Lines behind those, whose endings the model should foretell.
const ASKED: usize = 8;

/// A question in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// What comes before the options, without a blank at its end.
    pub prompt: String,
    /// The options, each set after a blank.
    pub options: Vec<String>,
    /// The right one.
    pub right: usize,
}

impl Asked {
    /// The question as tokens; `None` where the tokenizer cannot tell the options apart.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode(&self, text: &Text) -> Result<Option<Question>> {
        let whole = |option: &String| text.encode(&format!("{} {option}", self.prompt), false);
        let sequences: Vec<Vec<u32>> = self.options.iter().map(whole).collect::<Result<_>>()?;
        let mut shared = text.encode(&self.prompt, false)?.len();
        for ids in &sequences {
            shared = shared.min(ids.iter().zip(&sequences[0]).take_while(|(a, b)| a == b).count()).min(ids.len());
        }
        // An option that is the beginning of another leaves it a token of what they share.
        let shortest = sequences.iter().map(Vec::len).min().unwrap_or(0);
        shared = shared.min(shortest.saturating_sub(1));
        let options: Vec<Vec<u32>> = sequences.iter().map(|ids| ids[shared..].to_vec()).collect();
        let same = (0..options.len()).any(|a| (0..a).any(|b| options[a] == options[b]));
        if shared == 0 || same || options.len() < 2 {
            return Ok(None);
        }
        Ok(Some(Question { prompt: sequences[0][..shared].to_vec(), options, right: self.right }))
    }
}

/// The questions in the JSON lines of `path`: `prompt`, `query` or `context`; `options` or `choices`; `answer`, `gold` or
/// `label`, a number from 0 or one of the options.
///
/// # Errors
/// A file that cannot be read, or a line without these; the line is named.
pub fn read(path: &Path) -> Result<Vec<Asked>> {
    let fail = |what: String| Error::Text(format!("{}: {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|error| fail(format!("cannot read the questions: {error}")))?;
    let mut all = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let at = |what: &str| fail(format!("line {}: {what}", number + 1));
        let value: Value = serde_json::from_str(line).map_err(|error| at(&format!("not JSON: {error}")))?;
        let one_of = |names: &[&str]| names.iter().find_map(|name| value.get(*name));
        let prompt = one_of(&["prompt", "query", "context"]).and_then(Value::as_str);
        let prompt = prompt.ok_or_else(|| at("expected `prompt`, `query` or `context`, a text"))?;
        let options = one_of(&["options", "choices"]).and_then(Value::as_array);
        let options: Option<Vec<String>> =
            options.and_then(|list| list.iter().map(|option| option.as_str().map(|o| o.trim().to_owned())).collect());
        let options = options.filter(|options| options.len() > 1);
        let options = options.ok_or_else(|| at("expected `options` or `choices`, a list of two texts or more"))?;
        let right = match one_of(&["answer", "gold", "label"]) {
            Some(Value::String(text)) => options.iter().position(|option| option == text.trim()),
            Some(value) => value.as_u64().and_then(|n| usize::try_from(n).ok()),
            None => None,
        };
        let right = right.filter(|&right| right < options.len());
        let right = right.ok_or_else(|| at("expected `answer`, `gold` or `label`, which of the options is right"))?;
        all.push(Asked { prompt: prompt.trim_end().to_owned(), options, right });
    }
    if all.is_empty() {
        return Err(fail("there are no questions".into()));
    }
    Ok(all)
}

/// Lines that have one right ending each: the beginning, and the ending.
pub type Lines = Vec<(String, String)>;

/// A document as tokens, and the positions at which it is scored.
pub type Scored = (Vec<u32>, Vec<usize>);

/// Sums of two numbers of two digits, in documents.
pub fn sums(seed: u64) -> Vec<Lines> {
    let mut stream = Stream::new(seed, "sums", 0);
    let mut number = || 10 + stream.below(45);
    let mut line = || {
        let (a, b) = (number(), number());
        (format!("{a} + {b} ="), format!(" {}", a + b))
    };
    (0..DOCUMENTS).map(|_| (0..SHOTS + ASKED).map(|_| line()).collect()).collect()
}

/// Rows of brackets of three kinds that have to be closed in the right order, in documents.
pub fn brackets(seed: u64) -> Vec<Lines> {
    const KINDS: [(&str, &str); 3] = [("(", ")"), ("[", "]"), ("{", "}")];
    let mut stream = Stream::new(seed, "brackets", 0);
    let mut line = || {
        // Two kinds next to each other differ, so that the order can be told.
        let mut kinds = vec![stream.below(3)];
        while kinds.len() < 4 {
            let next = stream.below(3);
            if kinds.last() != Some(&next) {
                kinds.push(next);
            }
        }
        let open: Vec<&str> = kinds.iter().map(|&kind| KINDS[kind].0).collect();
        let close: Vec<&str> = kinds.iter().rev().map(|&kind| KINDS[kind].1).collect();
        (open.join(" "), format!(" {}", close.join(" ")))
    };
    (0..DOCUMENTS).map(|_| (0..SHOTS + ASKED).map(|_| line()).collect()).collect()
}

/// Documents as tokens, with the positions at which an ending is foretold: those of the lines behind the first few. `None`
/// where the tokenizer joins beginnings and endings, or has one token for all of these.
///
/// # Errors
/// If the tokenizer fails.
pub fn canary(text: &Text, documents: &[Lines]) -> Result<Option<Vec<Scored>>> {
    let mut all = Vec::with_capacity(documents.len());
    let mut targets = BTreeSet::new();
    for lines in documents {
        let whole: String = lines.iter().map(|(first, rest)| format!("{first}{rest}\n")).collect();
        let ids = text.encode(&whole, false)?;
        let (mut before, mut rows) = (String::new(), Vec::new());
        for (number, (first, rest)) in lines.iter().enumerate() {
            before.push_str(first);
            let start = text.encode(&before, false)?;
            before.push_str(rest);
            let end = text.encode(&before, false)?;
            before.push('\n');
            if number < SHOTS {
                continue;
            }
            if start.is_empty() || start.len() >= end.len() || !ids.starts_with(&start) || !ids.starts_with(&end) {
                return Ok(None);
            }
            rows.extend(start.len() - 1..end.len() - 1);
            targets.extend(ids[start.len()..end.len()].iter().copied());
        }
        all.push((ids, rows));
    }
    Ok((targets.len() > 1).then_some(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canaries_have_one_right_ending() {
        for (first, rest) in sums(1).concat() {
            let numbers: Vec<usize> = first.split([' ', '+', '=']).filter_map(|part| part.parse().ok()).collect();
            assert_eq!(rest.trim(), (numbers[0] + numbers[1]).to_string());
        }
        for (first, rest) in brackets(1).concat() {
            let mut open = Vec::new();
            let fits = format!("{first}{rest}").split(' ').all(|bracket| match bracket {
                ")" => open.pop() == Some("(".to_string()),
                "]" => open.pop() == Some("[".to_string()),
                "}" => open.pop() == Some("{".to_string()),
                opens => {
                    open.push(opens.to_string());
                    true
                }
            });
            assert!(fits && open.is_empty(), "{first}{rest}");
        }
        assert_eq!((sums(1), brackets(1)), (sums(1), brackets(1)));
        assert_ne!(sums(1), sums(2));
    }

    #[test]
    fn questions_are_read_in_the_usual_forms() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tasks.jsonl");
        std::fs::write(
            &path,
            "{\"prompt\":\"a\",\"options\":[\"b\",\"c\"],\"answer\":1}\n\n{\"query\":\"a\",\"choices\":[\"b\",\"c\"],\"gold\":\"b\"}\n",
        )
        .unwrap();
        let all = read(&path).unwrap();
        assert_eq!((all[0].right, all[1].right), (1, 0));
        std::fs::write(&path, "{\"prompt\":\"a\",\"options\":[\"b\",\"c\"],\"answer\":2}\n").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("line 1: expected `answer`"));
    }
}
