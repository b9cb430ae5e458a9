//! A file as rows with named fields, whatever it is written in.

use std::{
    fmt::Display,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{
    super::item::{Ask, Item, Prompt},
    Limits,
};

/// What a file is written in, by the end of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One JSON value a line.
    Lines,
    /// One JSON value, or one a line.
    Json,
    /// Values with commas between.
    Commas,
    /// Values with tabs between.
    Tabs,
    /// Lines of text.
    Text,
}

impl Kind {
    /// Of a file of that name, gzipped or not.
    pub fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_lowercase();
        let name = name.strip_suffix(".gz").unwrap_or(&name);
        let ends = [
            (".jsonl", Self::Lines),
            (".json", Self::Json),
            (".csv", Self::Commas),
            (".tsv", Self::Tabs),
            (".txt", Self::Text),
            (".txt.dev", Self::Text),
            (".txt.test", Self::Text),
        ];
        ends.into_iter().find(|(end, _)| name.ends_with(end)).map(|(_, kind)| kind)
    }
}

/// The name of a file without its ends.
pub fn stem(file: &str) -> &str {
    let ends = [".json", ".csv", ".tsv", ".txt"];
    ends.iter().find_map(|end| file.split_once(end)).map_or(file, |(stem, _)| stem)
}

/// A file that was read.
#[derive(Debug)]
pub struct Source {
    /// Where it lies.
    pub path: PathBuf,
    /// The path as errors show it.
    pub name: String,
    /// File name without folder and ends.
    pub stem: String,
    /// The name of the folder it lies in, where it has one.
    pub folder: Option<String>,
    /// What it says.
    pub content: Content,
    limits: Limits,
}

/// What a file says.
#[derive(Debug)]
pub enum Content {
    /// Values with the number of their line, from 1.
    Lines(Vec<(usize, Value)>),
    /// One value.
    Json(Value),
    /// Cells with the number of the line they begin in; a header is the first row.
    Table(Vec<(usize, Vec<String>)>),
    /// Lines of text, without the empty ones.
    Text(Vec<(usize, String)>),
}

impl Source {
    /// Reads a file.
    ///
    /// # Errors
    /// Where it cannot be read, is larger than the limit, is not UTF-8, or not what its name says.
    pub fn open(path: &Path, limits: Limits) -> Result<Self> {
        let name = path.display().to_string();
        let kind = Kind::of(path).with_context(|| {
            format!("{name}: expected a file that ends in .jsonl, .json, .csv, .tsv or .txt, gzipped (.gz) or not")
        })?;
        let file = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let stem = stem(file).to_string();
        let folder = path.parent().and_then(|folder| folder.file_name()).and_then(|name| name.to_str());
        let text = read(path, &name, limits)?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let content = match kind {
            Kind::Lines => Content::Lines(lines(&name, text)?),
            Kind::Json => match serde_json::from_str(text) {
                Ok(value) => Content::Json(value),
                // One value a line under the other name; if that is not it either, the first fault says more.
                Err(error) => match lines(&name, text) {
                    Ok(lines) if lines.len() > 1 => Content::Lines(lines),
                    _ => anyhow::bail!("{name}: not JSON: {error}"),
                },
            },
            Kind::Commas => Content::Table(table(&name, text, b',')?),
            Kind::Tabs => Content::Table(table(&name, text, b'\t')?),
            Kind::Text => {
                let numbered = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
                Content::Text(numbered.map(|(at, line)| (at + 1, line.to_string())).collect())
            }
        };
        Ok(Self { path: path.to_path_buf(), name, stem, folder: folder.map(str::to_string), content, limits })
    }

    /// The file of that name beside this one, or gzipped.
    ///
    /// # Errors
    /// Where there is none, which names it, or it cannot be read.
    pub fn beside(&self, file: &str) -> Result<Self> {
        let plain = self.path.with_file_name(file);
        let packed = self.path.with_file_name(format!("{file}.gz"));
        match [plain, packed].into_iter().find(|path| path.is_file()) {
            Some(path) => Self::open(&path, self.limits),
            None => anyhow::bail!("{}: `{file}` should lie beside it, and does not", self.name),
        }
    }

    /// The bytes of the file of that name beside this one.
    ///
    /// # Errors
    /// Where there is none, which names it, or it cannot be read.
    pub fn bytes_beside(&self, file: &str) -> Result<(String, Vec<u8>)> {
        let path = self.path.with_file_name(file);
        anyhow::ensure!(path.is_file(), "{}: `{file}` should lie beside it, and does not", self.name);
        let name = path.display().to_string();
        let mut bytes = Vec::new();
        let file = File::open(&path).with_context(|| format!("{name}: cannot be read"))?;
        file.take(self.limits.bytes).read_to_end(&mut bytes).with_context(|| format!("{name}: cannot be read"))?;
        Ok((name, bytes))
    }

    /// Whether the rows have all these fields, by the first one.
    pub fn has(&self, fields: &[&str]) -> bool {
        match &self.content {
            Content::Lines(lines) => {
                lines.first().is_some_and(|(_, value)| fields.iter().all(|field| value.get(field).is_some()))
            }
            Content::Table(rows) => {
                rows.first().is_some_and(|(_, header)| fields.iter().all(|field| header.iter().any(|x| x == field)))
            }
            Content::Json(_) | Content::Text(_) => false,
        }
    }

    /// The rows by their fields; of a table without the header.
    ///
    /// # Errors
    /// Where a row of a table has another number of cells than the header.
    pub fn rows(&self) -> Result<Vec<Row>> {
        match &self.content {
            Content::Lines(lines) => {
                Ok(lines.iter().map(|(line, value)| self.row(format!("line {line}"), value.clone())).collect())
            }
            Content::Table(rows) => {
                let Some(((_, header), rows)) = rows.split_first() else { return Ok(Vec::new()) };
                let of = |(line, cells): &(usize, Vec<String>)| {
                    anyhow::ensure!(
                        cells.len() == header.len(),
                        "{}: line {line} has {} cells, expected the {} of the header",
                        self.name,
                        cells.len(),
                        header.len()
                    );
                    let fields = header.iter().zip(cells).map(|(name, cell)| (name.clone(), cell.as_str().into()));
                    Ok(self.row(format!("line {line}"), Value::Object(fields.collect::<Map<_, _>>())))
                };
                rows.iter().map(of).collect()
            }
            Content::Json(_) | Content::Text(_) => Ok(Vec::new()),
        }
    }

    /// A row of this file, at a place that errors name.
    pub fn row(&self, place: String, value: Value) -> Row {
        Row { file: self.name.clone(), place, value }
    }
}

/// One row of a file.
#[derive(Debug)]
pub struct Row {
    file: String,
    place: String,
    value: Value,
}

impl Row {
    /// An error that names file and place.
    pub fn fault(&self, what: impl Display) -> anyhow::Error {
        anyhow::anyhow!("{}: {}: {what}", self.file, self.place)
    }

    /// The whole row.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// A field.
    pub fn get(&self, field: &str) -> Result<&Value> {
        self.value.get(field).ok_or_else(|| self.fault(format_args!("the field `{field}` is missing")))
    }

    /// A field that is itself a row.
    pub fn inner(&self, field: &str) -> Result<Self> {
        let value = self.get(field)?;
        match value.is_object() {
            true => Ok(Self { file: self.file.clone(), place: self.place.clone(), value: value.clone() }),
            false => Err(self.fault(format_args!("`{field}` should be an object"))),
        }
    }

    /// A field of text with something in it, without blanks at its ends.
    pub fn text(&self, field: &str) -> Result<&str> {
        match self.get(field)?.as_str().map(str::trim) {
            Some("") => Err(self.fault(format_args!("`{field}` is empty"))),
            Some(text) => Ok(text),
            None => Err(self.fault(format_args!("`{field}` should be text"))),
        }
    }

    /// A field with a whole number from 0, as a number or in digits.
    pub fn whole(&self, field: &str) -> Result<usize> {
        let value = self.get(field)?;
        let number = match value.as_str() {
            Some(text) => text.trim().parse().ok(),
            None => value.as_u64().and_then(|number| usize::try_from(number).ok()),
        };
        number.ok_or_else(|| self.fault(format_args!("`{field}` should be a whole number from 0")))
    }

    /// A field with a list of texts.
    pub fn texts(&self, field: &str) -> Result<Vec<&str>> {
        let texts = self.get(field)?.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        texts.ok_or_else(|| self.fault(format_args!("`{field}` should be a list of texts")))
    }

    /// A choice among `options`, each with a blank before it, where option `gold` is right.
    ///
    /// # Errors
    /// With fewer than two options or an empty one, or where `gold` is none of them.
    pub fn choice<S: AsRef<str>>(&self, options: &[S], gold: Option<usize>) -> Result<Ask> {
        let options: Vec<String> = options.iter().map(|option| format!(" {}", option.as_ref().trim())).collect();
        if options.len() < 2 {
            return Err(self.fault(format_args!("there should be at least 2 options, found {}", options.len())));
        }
        if let Some(at) = options.iter().position(|option| option.trim().is_empty()) {
            return Err(self.fault(format_args!("option {at} is empty")));
        }
        match gold {
            Some(gold) if gold >= options.len() => {
                let all = options.len();
                Err(self.fault(format_args!("the right answer is option {gold}, expected 0 to {}", all - 1)))
            }
            _ => Ok(Ask::Choose { options, before: Vec::new(), gold }),
        }
    }
}

/// An item without a group.
pub fn item(id: String, part: impl Into<String>, cluster: String, prompt: impl Into<String>, ask: Ask) -> Item {
    Item { id, part: part.into(), cluster, group: None, prompt: Prompt::Plain(prompt.into()), ask }
}

/// Text that is the same wherever the same text stands: names a cluster of rows about the same thing.
pub fn fingerprint(text: &str) -> String {
    Sha256::digest(text.trim().as_bytes())[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Words joined by `-`, as names of parts are written.
pub fn hyphenated(words: &str) -> String {
    let words = words.trim().to_lowercase();
    words.split(|c: char| c.is_whitespace() || c == '_').filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-")
}

fn read(path: &Path, name: &str, limits: Limits) -> Result<String> {
    let context = || format!("{name}: cannot be read");
    let file = File::open(path).with_context(context)?;
    let mut bytes = Vec::new();
    let most = limits.bytes.saturating_add(1);
    let gzipped = path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gz"));
    match gzipped {
        true => flate2::read::MultiGzDecoder::new(file).take(most).read_to_end(&mut bytes),
        false => file.take(most).read_to_end(&mut bytes),
    }
    .with_context(context)?;
    anyhow::ensure!(
        bytes.len() as u64 <= limits.bytes,
        "{name}: larger than {} bytes, the most that is read",
        limits.bytes
    );
    String::from_utf8(bytes)
        .map_err(|error| anyhow::anyhow!("{name}: not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
}

fn lines(name: &str, text: &str) -> Result<Vec<(usize, Value)>> {
    let numbered = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parse = |(at, line): (usize, &str)| {
        let value = serde_json::from_str(line).map_err(|error| {
            // serde counts from the line's own start; its line is always 1.
            anyhow::anyhow!("{name}: line {}: not JSON at column {}", at + 1, error.column())
        })?;
        Ok((at + 1, value))
    };
    numbered.map(parse).collect()
}

/// The rows of a table, each with the number of the line it begins in (RFC 4180: a cell in quotes may hold delimiters, line
/// breaks, and quotes doubled). Only cells with commas between are quoted; empty lines are no rows.
fn table(name: &str, text: &str, delimiter: u8) -> Result<Vec<(usize, Vec<String>)>> {
    let (delimiter, quotes) = (char::from(delimiter), delimiter == b',');
    let (mut rows, mut row, mut cell) = (Vec::new(), Vec::new(), String::new());
    let (mut line, mut begins) = (1, 1);
    let mut quoted = None; // the line in which a quote was opened that is not closed yet
    let mut closed = false;
    let mut characters = text.chars().peekable();
    loop {
        let next = characters.next();
        line += usize::from(next == Some('\n'));
        match (next, quoted) {
            (None, Some(opened)) => anyhow::bail!("{name}: line {opened}: a quote is opened and never closed"),
            (Some('"'), Some(_)) if characters.next_if_eq(&'"').is_some() => cell.push('"'),
            (Some('"'), Some(_)) => (quoted, closed) = (None, true),
            (Some(other), Some(_)) => cell.push(other),
            (Some('"'), None) if quotes && cell.is_empty() && !closed => quoted = Some(line),
            (Some('\r'), None) if characters.peek() == Some(&'\n') => {}
            (Some('\n') | None, None) => {
                if !(row.is_empty() && cell.is_empty() && !closed) {
                    row.push(std::mem::take(&mut cell));
                    rows.push((begins, std::mem::take(&mut row)));
                }
                (begins, closed) = (line, false);
                if next.is_none() {
                    return Ok(rows);
                }
            }
            (Some(other), None) if other == delimiter => {
                row.push(std::mem::take(&mut cell));
                closed = false;
            }
            (Some(_), None) if closed => anyhow::bail!("{name}: line {line}: text after the end of a quoted cell"),
            (Some(other), None) => cell.push(other),
        }
    }
}

/// The strings or whole numbers of a NumPy file of one axis: types `<U…`, `<i8`, `|b1`, as text.
///
/// # Errors
/// Where the file is not one, of another type or order, or cut off.
pub fn numpy(name: &str, bytes: &[u8]) -> Result<Vec<String>> {
    let fault = |what: &str| anyhow::anyhow!("{name}: {what}");
    let rest = bytes.strip_prefix(b"\x93NUMPY").ok_or_else(|| fault("not a NumPy file"))?;
    let length = match rest {
        [1, _, low, high, ..] => usize::from(u16::from_le_bytes([*low, *high])),
        _ => return Err(fault("expected a NumPy file of version 1")),
    };
    let header = rest.get(4..4 + length).and_then(|header| std::str::from_utf8(header).ok());
    let header = header.ok_or_else(|| fault("the NumPy header is cut off"))?;
    let data = &rest[4 + length..];
    let between = |start: &str, end: char| {
        let (_, rest) = header.split_once(start)?;
        Some(rest.trim_start().split(end).next()?.trim().trim_matches('\'').to_string())
    };
    let (kind, shape) = (between("'descr':", ',').unwrap_or_default(), between("'shape': (", ')').unwrap_or_default());
    let count: usize = shape
        .trim_end_matches(',')
        .parse()
        .map_err(|_| fault(&format!("expected one axis, found the shape ({shape})")))?;
    let size = match (kind.as_str(), kind.strip_prefix("<U").and_then(|length| length.parse::<usize>().ok())) {
        (_, Some(length)) => length.checked_mul(4),
        ("<i8", _) => Some(8),
        ("|b1", _) => Some(1),
        _ => return Err(fault(&format!("expected text (<U…) or whole numbers (<i8), found type {kind}"))),
    };
    let size = size.filter(|size| *size > 0).ok_or_else(|| fault("the type has no size"))?;
    if size.checked_mul(count) != Some(data.len()) {
        return Err(fault(&format!("expected {count} values of {size} bytes, found {} bytes", data.len())));
    }
    let value = |bytes: &[u8]| match kind.as_str() {
        "<i8" => bytes.try_into().map(|bytes| i64::from_le_bytes(bytes).to_string()).ok(),
        "|b1" => Some(u8::from(bytes != [0]).to_string()),
        _ => bytes
            .chunks_exact(4)
            .map(|code| u32::from_le_bytes([code[0], code[1], code[2], code[3]]))
            .take_while(|code| *code != 0)
            .map(char::from_u32)
            .collect(),
    };
    data.chunks_exact(size).map(|bytes| value(bytes).ok_or_else(|| fault("a value is not text"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(text: &str) -> Vec<(usize, Vec<String>)> {
        table("t.csv", text, b',').unwrap()
    }

    fn row(line: usize, cells: &[&str]) -> (usize, Vec<String>) {
        (line, cells.iter().map(|cell| (*cell).to_string()).collect())
    }

    #[test]
    fn tables_may_quote_commas_breaks_and_quotes() {
        assert_eq!(cells("a,b\r\n1,2\r\n"), [row(1, &["a", "b"]), row(2, &["1", "2"])]);
        let text = "\"a, b\",\"one\ntwo\"\n\n\"say \"\"so\"\"\",\n\"\"\n,,";
        let expected =
            [row(1, &["a, b", "one\ntwo"]), row(4, &["say \"so\"", ""]), row(5, &[""]), row(6, &["", "", ""])];
        assert_eq!(cells(text), expected);
        assert_eq!(cells("5\" long,x"), [row(1, &["5\" long", "x"])]);
        assert_eq!(cells(""), []);
        let error = table("t.csv", "a\n\"b\nc", b',').unwrap_err().to_string();
        assert_eq!(error, "t.csv: line 2: a quote is opened and never closed");
        let error = table("t.csv", "\"b\"c", b',').unwrap_err().to_string();
        assert_eq!(error, "t.csv: line 1: text after the end of a quoted cell");
        assert_eq!(table("t.tsv", "\"a\tb\"", b'\t').unwrap(), [row(1, &["\"a", "b\""])]);
    }
}
