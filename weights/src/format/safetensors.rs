//! The safetensors container, read with total validation.
//!
//! A file is `n` (u64, little endian), `n` bytes of JSON, then the data. The JSON maps each tensor's name to its
//! `dtype`, `shape` and `data_offsets` (begin and end in the data), and may map `__metadata__` to strings. Everything
//! that can be wrong is decided here, once: offsets must cover the data exactly (no hole, no overlap, nothing after
//! the last tensor), every length must be what type and shape demand, no name may come twice. All faults of a file
//! are reported together.

use std::{
    borrow::Cow,
    collections::{HashSet, btree_map},
    fmt,
    ops::Range,
    path::Path,
};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{Entry, Metadata, elements, not_safetensors};
use crate::{Dtype, Error, Problem, Result, Shard};

/// Longer headers are refused, as the reference implementation does: 100 MB.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The header key that holds string metadata, so no tensor may have this name.
pub const METADATA_KEY: &str = "__metadata__";

/// Reads and checks the header of `shard`. The entries come in the order of their data.
///
/// # Errors
/// [`Error::File`] if the file is something else or its header is no JSON object; [`Error::Malformed`] with every
/// fault found otherwise.
pub fn read(shard: &Shard) -> Result<(Vec<Entry>, Metadata)> {
    parse(shard.path(), shard.bytes())
}

/// [`read`] for bytes in memory: `bytes` is the whole file, `path` only names it in errors.
///
/// # Errors
/// As [`read`].
pub fn parse(path: &Path, bytes: &[u8]) -> Result<(Vec<Entry>, Metadata)> {
    let (header, data_start) = header(path, bytes)?;
    let parsed: Header<'_> = serde_json::from_str(header)
        .map_err(|error| Error::file(path, format!("the header is not valid safetensors JSON: {error}")))?;
    let data_len = bytes.len() - data_start;
    validate(path, parsed, data_start, data_len)
}

/// The header's text and where the data begins.
fn header<'a>(path: &Path, bytes: &'a [u8]) -> Result<(&'a str, usize)> {
    let refuse = |what: String| Error::file(path, what);
    if bytes.is_empty() {
        return Err(refuse("the file is empty (0 bytes); fetch or write it again".into()));
    }
    if let Some(what) = not_safetensors(path, bytes) {
        return Err(refuse(what));
    }
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(refuse(format!(
            "expected a safetensors file, found {} bytes where the header length alone takes 8: the file is truncated, fetch it again",
            bytes.len()
        )));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(refuse(format!(
            "the header claims {length} bytes, more than the {MAX_HEADER_BYTES} allowed: this is not a safetensors file, or it is damaged"
        )));
    }
    let length = length as usize; // at most 100 million
    let Some(header) = rest.get(..length) else {
        return Err(refuse(format!(
            "the header should have {length} bytes, but {} are missing: the file is truncated, fetch it again",
            length - rest.len()
        )));
    };
    let header = std::str::from_utf8(header).map_err(|error| {
        refuse(format!("the header is not UTF-8 text (byte {}): the file is damaged", 8 + error.valid_up_to()))
    })?;
    if !header.starts_with('{') {
        return Err(refuse("the header does not begin with `{`: the file is damaged or not safetensors".into()));
    }
    Ok((header, 8 + length))
}

/// What the header says, before it is believed. A tensor's value stays text until its name is known, so that a fault in
/// it names the tensor and the next one is read too.
struct Header<'a> {
    tensors: Vec<(String, &'a RawValue)>,
    metadata: Vec<&'a RawValue>,
}

impl<'de> Deserialize<'de> for Header<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Header<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from tensor names to dtype, shape and data_offsets")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header<'de>, A::Error> {
                let mut header = Header { tensors: Vec::new(), metadata: Vec::new() };
                while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                    if name == METADATA_KEY {
                        header.metadata.push(value);
                    } else {
                        header.tensors.push((name, value));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// The value of one tensor in the header.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Info<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// `__metadata__`: strings, and whatever key came twice.
struct Strings {
    map: Metadata,
    twice: Vec<String>,
}

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Strings;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strings, A::Error> {
                let mut strings = Strings { map: Metadata::new(), twice: Vec::new() };
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    match strings.map.entry(key) {
                        btree_map::Entry::Occupied(entry) => strings.twice.push(entry.key().clone()),
                        btree_map::Entry::Vacant(entry) => _ = entry.insert(value),
                    }
                }
                Ok(strings)
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// Serde's sentence without its position, which would count from the tensor's value and mislead.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rfind(" at line ").map_or(text.as_str(), |end| &text[..end]).to_string()
}

/// Turns the header into entries, or into the list of everything that is wrong with it.
fn validate(path: &Path, header: Header<'_>, data_start: usize, data_len: usize) -> Result<(Vec<Entry>, Metadata)> {
    let mut faults = Faults { path, problems: Vec::new() };
    let metadata = metadata(&header.metadata, &mut faults);
    let mut entries = Vec::with_capacity(header.tensors.len());
    for (name, value) in header.tensors {
        match entry(value) {
            // Offsets count from the start of the data until their sum with `data_start` is known to be in the file.
            Ok((dtype, shape, range)) => entries.push(Entry { name, dtype, shape, range }),
            Err(what) => faults.tensor(name, what),
        }
    }
    unique_names(&entries, &mut faults);
    entries.sort_by_key(|entry| (entry.range.start, entry.range.end));
    // A tensor without a place would only show up again as a hole, so the cover is checked when every one has a place.
    if faults.problems.is_empty() {
        cover(&entries, data_len, &mut faults);
    }
    if !faults.problems.is_empty() {
        return Err(Error::Malformed(faults.problems));
    }
    for entry in &mut entries {
        entry.range = data_start + entry.range.start..data_start + entry.range.end;
    }
    Ok((entries, metadata))
}

struct Faults<'a> {
    path: &'a Path,
    problems: Vec<Problem>,
}

impl Faults<'_> {
    fn file(&mut self, what: String) {
        self.problems.push(Problem { file: self.path.to_path_buf(), tensor: None, what });
    }

    fn tensor(&mut self, name: String, what: String) {
        self.problems.push(Problem { file: self.path.to_path_buf(), tensor: Some(name), what });
    }
}

fn metadata(values: &[&RawValue], faults: &mut Faults<'_>) -> Metadata {
    if values.len() > 1 {
        faults.file(format!("`{METADATA_KEY}` stands in the header {} times, expected once", values.len()));
    }
    let mut all = Metadata::new();
    for value in values {
        match serde_json::from_str::<Strings>(value.get()) {
            Ok(strings) => {
                for key in strings.twice {
                    faults.file(format!("`{METADATA_KEY}` has the key `{key}` twice"));
                }
                all.extend(strings.map);
            }
            Err(error) => faults.file(format!("`{METADATA_KEY}` is not a map of strings: {}", reason(&error))),
        }
    }
    all
}

/// Type, shape and offsets of one tensor, consistent with each other.
fn entry(value: &RawValue) -> Result<(Dtype, Vec<usize>, Range<usize>), String> {
    let info: Info<'_> = serde_json::from_str(value.get())
        .map_err(|error| format!("has a malformed entry in the header: {}", reason(&error)))?;
    let dtype = Dtype::from_safetensors_name(&info.dtype).ok_or_else(|| {
        format!("has dtype `{}`, which is not supported; supported are {}", info.dtype.escape_debug(), supported())
    })?;
    let (begin, end) = info.data_offsets;
    if begin > end {
        return Err(format!("has data_offsets [{begin}, {end}], which end before they begin"));
    }
    let expected = elements(&info.shape)
        .and_then(|elements| dtype.bytes(elements))
        .ok_or_else(|| format!("has shape {:?}, whose size in bytes overflows", info.shape))?;
    if end - begin != expected {
        return Err(format!(
            "has data_offsets [{begin}, {end}], {} bytes, where {dtype} of shape {:?} takes {expected}",
            end - begin,
            info.shape
        ));
    }
    Ok((dtype, info.shape, begin..end))
}

fn supported() -> String {
    Dtype::SAFETENSORS.map(|dtype| dtype.to_string()).join(", ")
}

fn unique_names(entries: &[Entry], faults: &mut Faults<'_>) {
    let mut seen = HashSet::with_capacity(entries.len());
    for entry in entries {
        if !seen.insert(entry.name.as_str()) {
            faults.tensor(entry.name.clone(), "stands in the header more than once".into());
        }
    }
}

/// Checks that `entries`, sorted by offset, cover `data_len` bytes without hole, overlap or rest.
fn cover(entries: &[Entry], data_len: usize, faults: &mut Faults<'_>) {
    let mut end = 0;
    let mut before: Option<&str> = None;
    let name = |name: Option<&str>| name.map_or("the header".into(), |name| format!("`{name}`"));
    for entry in entries {
        let Range { start, end: stop } = entry.range;
        if start < end {
            let what = format!(
                "overlaps {}: it begins at data byte {start}, expected {end} ({} bytes are shared)",
                name(before),
                end.min(stop) - start
            );
            faults.tensor(entry.name.clone(), what);
        } else if start > end {
            let what = format!(
                "begins at data byte {start}, expected {end}: {} bytes after {} belong to no tensor",
                start - end,
                name(before)
            );
            faults.tensor(entry.name.clone(), what);
        }
        if stop >= end {
            end = stop;
            before = Some(&entry.name);
        }
    }
    if end > data_len {
        faults.file(format!(
            "the tensors take {end} bytes of data and the file holds {data_len}: it is truncated, {} bytes are missing; fetch it again",
            end - data_len
        ));
    } else if end < data_len {
        faults.file(format!("{} bytes after the last tensor belong to no tensor", data_len - end));
    }
}
