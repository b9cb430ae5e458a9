//! Answers as columns: the finished lines of a `--jsonl` file as one Parquet file.
//!
//! The file's columns are the lines' fields, nested as they are there (Melnik et al. 2010, "Dremel": each value comes with
//! how much of its path is there, and at which list it begins a new entry). It is made in one go, from all lines and in
//! their order, and put in its place whole: the same lines give the same bytes, and a file that is there is complete.

use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result};
use parquet::{
    basic::{Compression, ConvertedType, Repetition, Type as Physical, ZstdLevel},
    data_type::{ByteArray, ByteArrayType, DoubleType, FloatType},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::{
        parser::parse_message_type,
        types::{Type, TypePtr},
    },
};
use serde_json::Value;

/// Answers of one row group: what is held in memory at a time.
const GROUP: usize = 4096;

/// The fields of a line. An answer has no `error`; of a model that could not be read there is nothing else.
const SCHEMA: &str = "message answer {
    REQUIRED BYTE_ARRAY model (UTF8);
    OPTIONAL BYTE_ARRAY error (UTF8);
    OPTIONAL BYTE_ARRAY tree (UTF8);
    OPTIONAL BYTE_ARRAY unknown (UTF8);
    OPTIONAL BYTE_ARRAY assumed (UTF8);
    OPTIONAL GROUP distances (LIST) { REPEATED GROUP list { REQUIRED GROUP element {
        REQUIRED BYTE_ARRAY tree (UTF8);
        REQUIRED BYTE_ARRAY label (UTF8);
        REQUIRED BYTE_ARRAY layer (UTF8);
        OPTIONAL DOUBLE distance;
        REQUIRED DOUBLE limit;
    } } }
    OPTIONAL GROUP findings (LIST) { REPEATED GROUP list { REQUIRED GROUP element {
        REQUIRED BYTE_ARRAY label (UTF8);
        REQUIRED BYTE_ARRAY layer (UTF8);
        REQUIRED GROUP predicted (LIST) { REPEATED GROUP list { REQUIRED BYTE_ARRAY element (UTF8); } }
        REQUIRED GROUP set (LIST) { REPEATED GROUP list { REQUIRED BYTE_ARRAY element (UTF8); } }
        REQUIRED GROUP probabilities (LIST) { REPEATED GROUP list { REQUIRED GROUP element {
            REQUIRED BYTE_ARRAY label (UTF8);
            REQUIRED FLOAT probability;
        } } }
        REQUIRED GROUP nearest (LIST) { REPEATED GROUP list { REQUIRED GROUP element {
            REQUIRED BYTE_ARRAY model (UTF8);
            REQUIRED FLOAT distance;
            REQUIRED GROUP labels (LIST) { REPEATED GROUP list { REQUIRED BYTE_ARRAY element (UTF8); } }
        } } }
        REQUIRED GROUP vote (LIST) { REPEATED GROUP list { REQUIRED BYTE_ARRAY element (UTF8); } }
        REQUIRED GROUP belongs (LIST) { REPEATED GROUP list { REQUIRED GROUP element {
            REQUIRED BYTE_ARRAY label (UTF8);
            REQUIRED FLOAT distance;
            REQUIRED DOUBLE p;
        } } }
        REQUIRED DOUBLE expert_accuracy;
        REQUIRED BYTE_ARRAY expert_judged_on (UTF8);
    } } }
}";

/// Values of a column.
enum Values {
    Texts(Vec<ByteArray>),
    Singles(Vec<f32>),
    Doubles(Vec<f64>),
}

/// One column of a row group.
struct Column {
    values: Values,
    /// Of each entry, how many of the optional and repeated fields on its path are there.
    definitions: Vec<i16>,
    /// Of each entry, the list it is a new entry of; 0 begins a row.
    repetitions: Vec<i16>,
}

/// How deep an entry stands: what is defined above it, which list it begins an entry of, and how many lists it is in.
#[derive(Clone, Copy)]
struct Place {
    definition: i16,
    repetition: i16,
    lists: i16,
}

impl Column {
    fn new(physical: Physical) -> Self {
        let values = match physical {
            Physical::FLOAT => Values::Singles(Vec::new()),
            Physical::DOUBLE => Values::Doubles(Vec::new()),
            _ => Values::Texts(Vec::new()),
        };
        Self { values, definitions: Vec::new(), repetitions: Vec::new() }
    }

    fn level(&mut self, place: Place) {
        self.definitions.push(place.definition);
        self.repetitions.push(place.repetition);
    }

    fn value(&mut self, field: &str, value: &Value) -> Result<(), String> {
        let taken = match &mut self.values {
            Values::Texts(texts) => value.as_str().map(|text| texts.push(text.into())),
            Values::Singles(numbers) => value.as_f64().map(|number| numbers.push(number as f32)),
            Values::Doubles(numbers) => value.as_f64().map(|number| numbers.push(number)),
        };
        taken.ok_or_else(|| format!("`{field}` is {value}"))
    }
}

/// The columns under `field`, in the schema's order.
fn columns(field: &Type, out: &mut Vec<Column>) {
    match field.is_primitive() {
        true => out.push(Column::new(field.get_physical_type())),
        false => field.get_fields().iter().for_each(|field| columns(field, out)),
    }
}

/// Puts `value` of `field` into the next columns.
fn put(
    field: &Type,
    value: &Value,
    mut place: Place,
    next: &mut std::slice::IterMut<'_, Column>,
) -> Result<(), String> {
    match field.get_basic_info().repetition() {
        Repetition::REQUIRED if value.is_null() => return Err(format!("`{}` is missing", field.name())),
        Repetition::REQUIRED => {}
        Repetition::OPTIONAL if value.is_null() => return absent(field, place, next),
        Repetition::OPTIONAL => place.definition += 1,
        Repetition::REPEATED => {
            let list = value.as_array().ok_or_else(|| format!("a list is {value}"))?;
            if list.is_empty() {
                return absent(field, place, next);
            }
            place.lists += 1;
            place.definition += 1;
            // Every entry goes into the same columns.
            let here = std::mem::take(next).into_slice();
            let mut after = 0;
            for (at, entry) in list.iter().enumerate() {
                let mut columns = here.iter_mut();
                let repetition = if at == 0 { place.repetition } else { place.lists };
                inside(field, entry, Place { repetition, ..place }, &mut columns)?;
                after = columns.len();
            }
            let used = here.len() - after;
            *next = here[used..].iter_mut();
            return Ok(());
        }
    }
    inside(field, value, place, next)
}

/// The same where `value` is known to be there.
fn inside(field: &Type, value: &Value, place: Place, next: &mut std::slice::IterMut<'_, Column>) -> Result<(), String> {
    if field.is_primitive() {
        let column = next.next().ok_or("there are too few columns")?;
        column.level(place);
        return column.value(field.name(), value);
    }
    // The fields `list` and `element` stand in the schema alone: their value is that of the field around them.
    let info = field.get_basic_info();
    let is_wrapped = info.converted_type() == ConvertedType::LIST || info.repetition() == Repetition::REPEATED;
    field.get_fields().iter().try_for_each(|field| {
        let value = if is_wrapped { value } else { value.get(field.name()).unwrap_or(&Value::Null) };
        put(field, value, place, next)
    })
}

/// Says in every column under `field` that nothing is there.
fn absent(field: &Type, place: Place, next: &mut std::slice::IterMut<'_, Column>) -> Result<(), String> {
    if field.is_primitive() {
        next.next().ok_or("there are too few columns")?.level(place);
        return Ok(());
    }
    field.get_fields().iter().try_for_each(|field| absent(field, place, next))
}

/// Writes the finished answers `lines` as the Parquet file `out`.
///
/// # Errors
/// If a line is no answer, or the file cannot be written.
pub fn write(lines: &Path, out: &Path) -> Result<()> {
    let mut name = out.file_name().unwrap_or_default().to_os_string();
    name.push(".part");
    let part = out.with_file_name(name);
    let written = write_part(lines, &part).and_then(|()| {
        std::fs::rename(&part, out).with_context(|| format!("{}: cannot put the file in its place", out.display()))
    });
    written.inspect_err(|_| drop(std::fs::remove_file(&part)))
}

fn write_part(lines: &Path, part: &Path) -> Result<()> {
    let fail = || format!("{}: cannot write the answers", part.display());
    let source = File::open(lines).with_context(|| format!("{}: cannot read the answers", lines.display()))?;
    let schema: TypePtr = Arc::new(parse_message_type(SCHEMA).context("the schema is not understood")?);
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let file = File::create(part).with_context(fail)?;
    let mut writer =
        SerializedFileWriter::new(BufWriter::new(file), schema.clone(), Arc::new(properties)).with_context(fail)?;
    let (mut group, mut rows) = (Vec::new(), 0);
    for (number, line) in BufReader::new(source).lines().enumerate() {
        let at = || format!("{}: line {} is no answer", lines.display(), number + 1);
        let line = line.with_context(at)?;
        let value: Value = serde_json::from_str(&line).with_context(at)?;
        if group.is_empty() {
            columns(&schema, &mut group);
        }
        let start = Place { definition: 0, repetition: 0, lists: 0 };
        let mut next = group.iter_mut();
        let filled = schema
            .get_fields()
            .iter()
            .try_for_each(|field| put(field, value.get(field.name()).unwrap_or(&Value::Null), start, &mut next));
        filled.map_err(anyhow::Error::msg).with_context(at)?;
        rows += 1;
        if rows == GROUP {
            write_group(&mut writer, std::mem::take(&mut group)).with_context(fail)?;
            rows = 0;
        }
    }
    if rows > 0 {
        write_group(&mut writer, group).with_context(fail)?;
    }
    let file = writer.into_inner().with_context(fail)?;
    file.into_inner().map_err(std::io::IntoInnerError::into_error).and_then(|file| file.sync_all()).with_context(fail)
}

fn write_group(
    writer: &mut SerializedFileWriter<BufWriter<File>>,
    columns: Vec<Column>,
) -> parquet::errors::Result<()> {
    let mut group = writer.next_row_group()?;
    for column in columns {
        let Some(mut out) = group.next_column()? else { break };
        let levels = (Some(column.definitions.as_slice()), Some(column.repetitions.as_slice()));
        match &column.values {
            Values::Texts(values) => out.typed::<ByteArrayType>().write_batch(values, levels.0, levels.1),
            Values::Singles(values) => out.typed::<FloatType>().write_batch(values, levels.0, levels.1),
            Values::Doubles(values) => out.typed::<DoubleType>().write_batch(values, levels.0, levels.1),
        }?;
        out.close()?;
    }
    group.close()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use parquet::{
        file::reader::{FileReader, SerializedFileReader},
        record::{Field, Row},
    };
    use serde_json::json;

    use super::*;

    /// A row as the lines have it.
    fn plain(row: &Row) -> Value {
        let field = |field: &Field| match field {
            Field::Null => Value::Null,
            Field::Str(text) => json!(text),
            Field::Float(number) => json!(number),
            Field::Double(number) => json!(number),
            Field::Group(row) => plain(row),
            Field::ListInternal(list) => list.elements().iter().map(in_list).collect(),
            other => panic!("{other:?} is in no answer"),
        };
        row.get_column_iter().map(|(name, value)| (name.clone(), field(value))).collect()
    }

    fn in_list(field: &Field) -> Value {
        match field {
            Field::Group(row) => plain(row),
            Field::Str(text) => json!(text),
            other => panic!("{other:?} is in no list of an answer"),
        }
    }

    /// `value` without what is null.
    fn known(value: &Value) -> Value {
        match value {
            Value::Object(fields) => {
                let kept = fields.iter().filter(|(_, value)| !value.is_null());
                kept.map(|(name, value)| (name.clone(), known(value))).collect()
            }
            Value::Array(entries) => entries.iter().map(known).collect(),
            other => other.clone(),
        }
    }

    #[test]
    fn what_is_written_is_read_back_with_empty_and_missing_lists() {
        let near = |labels: &[&str]| json!({ "model": "n", "distance": 0.1f32, "labels": labels });
        let finding = |nearest: Vec<Value>, set: &[&str]| {
            json!({
                "label": "is", "layer": "w", "predicted": ["a", "b"], "set": set,
                "probabilities": [{ "label": "a", "probability": 0.3f32 }, { "label": "b", "probability": 1e-9f32 }],
                "nearest": nearest, "vote": ["a"], "belongs": [{ "label": "b", "distance": 2.5f32, "p": 0.25 }],
                "expert_accuracy": 0.975, "expert_judged_on": "test"
            })
        };
        let distance =
            |d: Option<f64>| json!({ "tree": "t", "label": "is", "layer": "w", "distance": d, "limit": 0.3 });
        let lines = [
            json!({ "model": "é\n", "tree": "t", "distances": [distance(Some(0.1)), distance(None)], "findings": [
                finding(vec![near(&["a"]), near(&[]), near(&["a", "b"])], &[]), finding(vec![], &["b"]) ] }),
            json!({ "model": "unknown", "tree": null, "unknown": "far", "distances": [distance(Some(7.5))], "findings": [] }),
            json!({ "model": "broken", "error": "is no model" }),
        ];
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("a.jsonl"), folder.path().join("a.parquet"));
        // More than one row group, and the same bytes again.
        let text: String = lines.iter().cycle().take(GROUP + 5).map(|line| format!("{line}\n")).collect();
        std::fs::write(&from, text).unwrap();
        write(&from, &to).unwrap();
        let bytes = std::fs::read(&to).unwrap();
        write(&from, &to).unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), bytes);
        let reader = SerializedFileReader::new(File::open(&to).unwrap()).unwrap();
        assert_eq!(reader.num_row_groups(), 2);
        let mut count = 0;
        for (row, expected) in reader.into_iter().zip(lines.iter().cycle()) {
            assert_eq!(known(&plain(&row.unwrap())).to_string(), known(expected).to_string());
            count += 1;
        }
        assert_eq!(count, GROUP + 5);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside the two files");
    }

    #[test]
    fn what_is_no_answer_is_named_by_its_line_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("a.jsonl"), folder.path().join("a.parquet"));
        for (line, words) in [
            ("{\"model\": 3}", "`model` is 3"),
            ("{}", "`model` is missing"),
            ("{\"model\": \"a\", \"findings\": 1}", "a list is 1"),
            ("{\"model\": \"a\", \"distances\": [{}]}", "`tree` is missing"),
        ] {
            std::fs::write(&from, format!("{{\"model\":\"a\"}}\n{line}\n")).unwrap();
            let error = format!("{:#}", write(&from, &to).unwrap_err());
            assert!(error.contains("a.jsonl: line 2 is no answer") && error.contains(words), "{error}");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }
}
