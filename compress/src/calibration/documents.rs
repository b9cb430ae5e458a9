//! The documents of a calibration file: plain text, JSON lines, a JSON array, or Parquet, told by content.
//!
//! | file | a document is |
//! |---|---|
//! | Parquet (`PAR1` at both ends) | the text column of a row |
//! | JSON lines (every line an object) | the `text` field of a line, or its `messages` by the chat template |
//! | a JSON array | an entry: a text, or an object as in a line |
//! | any other JSON | refused: it is no text that anyone reads |
//! | anything else | the whole file |

use std::{fs::File, path::Path};

use parquet::{
    file::reader::SerializedFileReader,
    record::{Field, Row},
};
use serde_json::Value;

use crate::{
    Error, Result,
    model::text::{Message, Text},
};

/// Fields that hold a document's text where none is named, in order of preference.
const TEXT_FIELDS: [&str; 4] = ["text", "content", "document", "prompt"];

/// Fields that hold a conversation.
const MESSAGE_FIELDS: [&str; 2] = ["messages", "conversations"];

/// One document.
#[derive(Debug, Clone, PartialEq)]
pub enum Document {
    /// Text as it stands.
    Text(String),
    /// A conversation: (role, content).
    Messages(Vec<(String, String)>),
}

impl Document {
    /// Bytes of its texts.
    fn bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Messages(turns) => turns.iter().map(|(_, content)| content.len()).sum(),
        }
    }

    /// The document as text for the tokenizer; conversations by the checkpoint's chat template, and so plain texts too
    /// where `chat` asks for it: each is then what a user says.
    ///
    /// # Errors
    /// If there is no template, or it refuses the messages.
    pub fn render(self, text: &Text, chat: bool) -> Result<String> {
        let turn = |role: String, content: String| Message { role, content };
        match self {
            Self::Text(content) if !chat => Ok(content),
            Self::Text(content) => text.conversation(&[turn("user".into(), content)]),
            Self::Messages(turns) => {
                let turns: Vec<Message> = turns.into_iter().map(|(role, content)| turn(role, content)).collect();
                text.conversation(&turns)
            }
        }
    }
}

fn fail(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::Text(format!("{}: {what}", path.display()))
}

/// The documents in `path`; `field` names the text's field or column, and without it one of the usual names is taken.
/// At most `limit` bytes of text are read of a file of many documents.
///
/// # Errors
/// A file that cannot be read, is not UTF-8, or has no such field, with those it has.
pub fn read(path: &Path, field: Option<&str>, limit: usize) -> Result<Vec<Document>> {
    let mut magic = [0; 4];
    let mut file = File::open(path).map_err(|error| fail(path, format!("cannot read the text: {error}")))?;
    let begins = std::io::Read::read(&mut file, &mut magic)
        .map_err(|error| fail(path, format!("cannot read the text: {error}")))?;
    if &magic[..begins] == b"PAR1" {
        return parquet(path, field, limit);
    }
    let bytes = std::fs::read(path).map_err(|error| fail(path, format!("cannot read the text: {error}")))?;
    let text = String::from_utf8(bytes)
        .map_err(|error| fail(path, format!("the text is not UTF-8 at byte {}", error.utf8_error().valid_up_to())))?;
    let documents = match json_lines(path, &text, field, limit)? {
        None => json_array(path, &text, field, limit)?,
        lines => lines,
    };
    match documents {
        Some(documents) => Ok(documents),
        None if field.is_some() => Err(fail(
            path,
            "a text field was named, but the file is neither JSON lines, a JSON array nor Parquet; leave the field away",
        )),
        None => Ok(vec![Document::Text(text)]),
    }
}

/// The documents of a text that is one JSON array; `None` if it is no JSON at all.
fn json_array(path: &Path, text: &str, field: Option<&str>, limit: usize) -> Result<Option<Vec<Document>>> {
    if !text.trim_start().starts_with(['[', '{']) {
        return Ok(None); // parsed, it would take several times its bytes
    }
    let Ok(value) = serde_json::from_str::<Value>(text) else { return Ok(None) };
    let Value::Array(entries) = value else {
        let what =
            "the text is one JSON object over several lines; write JSON lines, an object with a `text` on each line";
        return Err(fail(path, what));
    };
    let (mut documents, mut bytes) = (Vec::new(), 0);
    for (number, entry) in entries.into_iter().enumerate() {
        let document = match entry {
            Value::String(text) if field.is_none() => Ok(Document::Text(text)),
            entry @ Value::Object(_) => of_object(&entry, field),
            _ if field.is_some() => Err("is no object, and a field was named".into()),
            _ => Err("is neither an object nor a text; write JSON lines, an object with a `text` on each line".into()),
        };
        let document = document.map_err(|what| fail(path, format!("entry {} of the JSON array {what}", number + 1)))?;
        bytes += document.bytes();
        documents.push(document);
        if bytes >= limit {
            break;
        }
    }
    Ok(Some(documents))
}

/// The documents of JSON lines; `None` if the first line is no JSON object.
fn json_lines(path: &Path, text: &str, field: Option<&str>, limit: usize) -> Result<Option<Vec<Document>>> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).peekable();
    let is_object = |line: &str| line.trim_start().starts_with('{') && serde_json::from_str::<Value>(line).is_ok();
    if !lines.peek().is_some_and(|(_, line)| is_object(line)) {
        return Ok(None);
    }
    let (mut documents, mut bytes) = (Vec::new(), 0);
    for (number, line) in lines {
        let value: Value = serde_json::from_str(line)
            .map_err(|error| fail(path, format!("line {} is not valid JSON: {error}", number + 1)))?;
        let document = of_object(&value, field).map_err(|what| fail(path, format!("line {} {what}", number + 1)))?;
        bytes += line.len();
        documents.push(document);
        if bytes >= limit {
            break;
        }
    }
    Ok(Some(documents))
}

/// The document in one JSON object.
fn of_object(value: &Value, field: Option<&str>) -> Result<Document, String> {
    let known = || {
        let names: Vec<&str> =
            value.as_object().into_iter().flat_map(|object| object.keys().map(String::as_str)).collect();
        names.join(", ")
    };
    let candidates: Vec<&str> = match field {
        Some(field) => vec![field],
        None => MESSAGE_FIELDS.into_iter().chain(TEXT_FIELDS).collect(),
    };
    match candidates.iter().find_map(|name| value.get(name)) {
        Some(Value::String(text)) => Ok(Document::Text(text.clone())),
        Some(Value::Array(turns)) => messages(turns),
        Some(other) => Err(format!("holds {other} where a text or a list of messages was expected")),
        None => Err(format!("has none of the fields {} (it has {})", candidates.join(", "), known())),
    }
}

/// The turns of a conversation: `role` and `content`, or `from` and `value` as ShareGPT has them.
fn messages(turns: &[Value]) -> Result<Document, String> {
    let turn = |turn: &Value| {
        let get = |names: [&str; 2]| names.iter().find_map(|name| turn.get(name)?.as_str());
        let (role, content) = (get(["role", "from"]), get(["content", "value"]));
        let role = role.map(|role| match role {
            "human" => "user",
            "gpt" => "assistant",
            other => other,
        });
        match (role, content) {
            (Some(role), Some(content)) => Ok((role.to_string(), content.to_string())),
            _ => Err(format!("holds a message without `role` and `content`: {turn}")),
        }
    };
    Ok(Document::Messages(turns.iter().map(turn).collect::<Result<_, _>>()?))
}

/// The documents of a Parquet file.
fn parquet(path: &Path, field: Option<&str>, limit: usize) -> Result<Vec<Document>> {
    let file = File::open(path).map_err(|error| fail(path, error))?;
    let reader =
        SerializedFileReader::new(file).map_err(|error| fail(path, format!("not a readable Parquet file: {error}")))?;
    let (mut documents, mut bytes) = (Vec::new(), 0);
    for (number, row) in reader.into_iter().enumerate() {
        let row = row.map_err(|error| fail(path, format!("row {number} cannot be read: {error}")))?;
        let text = column(&row, field).map_err(|what| fail(path, format!("row {number} {what}")))?;
        bytes += text.len();
        documents.push(Document::Text(text));
        if bytes >= limit {
            break;
        }
    }
    Ok(documents)
}

/// The text column of a row.
fn column(row: &Row, field: Option<&str>) -> Result<String, String> {
    let named = |name: &str| row.get_column_iter().find(|(column, _)| *column == name);
    let found = match field {
        Some(field) => named(field),
        None => TEXT_FIELDS.iter().find_map(|name| named(name)),
    };
    match found {
        Some((_, Field::Str(text))) => Ok(text.clone()),
        Some((_, Field::Null)) => Ok(String::new()),
        Some((name, _)) => Err(format!("holds something else than text in column `{name}`")),
        None => {
            let columns: Vec<&str> = row.get_column_iter().map(|(name, _)| name.as_str()).collect();
            let wanted = field.map_or(TEXT_FIELDS.join(", "), str::to_string);
            Err(format!("has none of the columns {wanted} (it has {})", columns.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(name: &str, bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    fn text(documents: &[Document]) -> Vec<&str> {
        fn text(document: &Document) -> &str {
            match document {
                Document::Text(text) => text,
                other => panic!("{other:?} is no text"),
            }
        }
        documents.iter().map(text).collect()
    }

    #[test]
    fn plain_text_is_one_document() {
        let (_folder, path) = write("a.txt", "one\n\ntwo {\n".as_bytes());
        assert_eq!(text(&read(&path, None, usize::MAX).unwrap()), ["one\n\ntwo {\n"]);
        let error = read(&path, Some("text"), usize::MAX).unwrap_err().to_string();
        assert!(error.contains("a.txt") && error.contains("neither JSON lines, a JSON array nor Parquet"), "{error}");
        let (_folder, path) = write("b.txt", b"ab\xff");
        assert!(read(&path, None, usize::MAX).unwrap_err().to_string().contains("not UTF-8 at byte 2"));
    }

    #[test]
    fn json_lines_hold_texts_or_conversations() {
        let lines = "{\"text\": \"a\\nb\", \"id\": 1}\n\n{\"content\": \"c\"}\n";
        let (_folder, path) = write("a.jsonl", lines.as_bytes());
        assert_eq!(text(&read(&path, None, usize::MAX).unwrap()), ["a\nb", "c"]);
        assert_eq!(read(&path, None, 5).unwrap().len(), 1, "the limit ends the reading");
        let error = read(&path, Some("body"), usize::MAX).unwrap_err().to_string();
        assert!(error.contains("line 1") && error.contains("body") && error.contains("text, id"), "{error}");
        let lines = "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n\
                     {\"conversations\": [{\"from\": \"human\", \"value\": \"ho\"}, {\"from\": \"gpt\", \"value\": \"he\"}]}\n";
        let (_folder, path) = write("c.jsonl", lines.as_bytes());
        let pair = |role: &str, content: &str| (role.to_string(), content.to_string());
        let expected =
            [vec![pair("user", "hi")], vec![pair("user", "ho"), pair("assistant", "he")]].map(Document::Messages);
        assert_eq!(read(&path, None, usize::MAX).unwrap(), expected);
        for (line, words) in [
            ("{\"text\": \"a\"}\n{broken", "line 2 is not valid JSON"),
            ("{\"text\": 3}", "line 1 holds 3"),
            ("{\"messages\": [{\"role\": \"user\"}]}", "without `role` and `content`"),
        ] {
            let (_folder, path) = write("d.jsonl", line.as_bytes());
            let error = read(&path, None, usize::MAX).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("d.jsonl"), "{error}");
        }
    }

    #[test]
    fn a_json_array_holds_texts_or_objects() {
        for array in ["[\n  {\"text\": \"a\"},\n  \"b\"\n]\n", "[{\"text\": \"a\"}, \"b\"]"] {
            let (_folder, path) = write("a.json", array.as_bytes());
            assert_eq!(text(&read(&path, None, usize::MAX).unwrap()), ["a", "b"]);
            assert_eq!(read(&path, None, 1).unwrap().len(), 1, "the limit ends the reading");
        }
        for (json, field, words) in [
            ("{\n  \"text\": \"a\"\n}\n", None, "JSON lines"),
            ("[1, 2]", None, "entry 1 of the JSON array is neither an object nor a text; write JSON lines"),
            ("[{\"text\": \"a\"}, {\"id\": 3}]", None, "entry 2 of the JSON array has none of the fields"),
            ("[\"a\"]", Some("body"), "entry 1 of the JSON array is no object"),
        ] {
            let (_folder, path) = write("b.json", json.as_bytes());
            let error = read(&path, field, usize::MAX).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("b.json"), "{error}");
        }
        let (_folder, path) = write("c.txt", b"[1] A note, and no JSON.\n");
        assert_eq!(text(&read(&path, None, usize::MAX).unwrap()), ["[1] A note, and no JSON.\n"]);
    }

    #[test]
    fn parquet_columns_are_read_and_named() {
        use parquet::{
            data_type::{ByteArray, ByteArrayType},
            file::{properties::WriterProperties, writer::SerializedFileWriter},
            schema::parser::parse_message_type,
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let schema =
            parse_message_type("message m { REQUIRED BYTE_ARRAY id (UTF8); OPTIONAL BYTE_ARRAY text (UTF8); }");
        let properties = WriterProperties::builder().set_compression(parquet::basic::Compression::SNAPPY).build();
        let file = File::create(&path).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema.unwrap().into(), properties.into()).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let values = |texts: &[&str]| texts.iter().map(|text| ByteArray::from(*text)).collect::<Vec<_>>();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values(&["1", "2", "3"]), None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values(&["eins", "drei"]), Some(&[1, 0, 1]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
        assert_eq!(text(&read(&path, None, usize::MAX).unwrap()), ["eins", "", "drei"]);
        assert_eq!(text(&read(&path, Some("id"), usize::MAX).unwrap()), ["1", "2", "3"]);
        let error = read(&path, Some("body"), usize::MAX).unwrap_err().to_string();
        assert!(error.contains("body") && error.contains("id, text"), "{error}");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 10]).unwrap();
        let error = read(&path, None, usize::MAX).unwrap_err().to_string();
        assert!(error.contains("not a readable Parquet file"), "{error}");
    }
}
