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
    sync::Arc,
};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::{Contents, Entry, Metadata, elements, foreign};
use crate::{Dtype, Error, Result, Shard, TensorView, error::Problems};

/// Longer headers are refused, as the reference implementation does: 100 MB.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The header key that holds string metadata, so no tensor may have this name.
pub const METADATA_KEY: &str = "__metadata__";

/// Whether the file begins as this container does: a believable length, then `{`.
pub fn recognise(shard: &Shard) -> bool {
    let bytes = shard.bytes();
    let length = bytes.first_chunk().map(|&length| u64::from_le_bytes(length));
    length.is_some_and(|length| length <= MAX_HEADER_BYTES) && bytes.get(8) == Some(&b'{')
}

/// [`read`] as every container is read.
///
/// # Errors
/// As [`read`].
pub fn contents(shard: &Shard) -> Result<Contents> {
    let (entries, metadata) = read(shard)?;
    let view = |Entry { name, dtype, shape, range }| TensorView { name, dtype, shape, shard: shard.clone(), range };
    Ok(Contents { tensors: entries.into_iter().map(view).collect(), metadata, ..Contents::default() })
}

/// Reads and checks the header of `shard`. The entries come in the order of their data.
///
/// # Errors
/// [`Error::File`] if the file is something else or its header is no JSON object; [`Error::Malformed`] with every
/// fault found otherwise.
pub fn read(shard: &Shard) -> Result<(Vec<Entry>, Metadata)> {
    let (reader, data_start) = read_header(shard.path(), shard.bytes())?;
    shard.release(0..data_start); // a header of many tensors is as large as what was made of it
    reader.finish(data_start, shard.bytes().len() - data_start)
}

/// [`read`] for bytes in memory: `bytes` is the whole file, `path` only names it in errors.
///
/// # Errors
/// As [`read`].
pub fn parse(path: &Path, bytes: &[u8]) -> Result<(Vec<Entry>, Metadata)> {
    let (reader, data_start) = read_header(path, bytes)?;
    reader.finish(data_start, bytes.len() - data_start)
}

fn read_header<'a>(path: &'a Path, bytes: &[u8]) -> Result<(Reader<'a>, usize)> {
    let (header, data_start) = header(path, bytes)?;
    let mut reader = Reader { path, entries: Vec::new(), metadata: None, problems: Problems::default() };
    let mut json = serde_json::Deserializer::from_str(header);
    if let Err(error) = json.deserialize_map(&mut reader).and_then(|()| json.end()) {
        let what = format!("the header is not valid safetensors JSON: {error}");
        if reader.problems.is_empty() {
            return Err(Error::file(path, what));
        }
        reader.problems.push(path, None, what);
    }
    Ok((reader, data_start))
}

/// The header's text and where the data begins.
fn header<'a>(path: &Path, bytes: &'a [u8]) -> Result<(&'a str, usize)> {
    let refuse = |what: String| Error::file(path, what);
    if bytes.is_empty() {
        return Err(refuse("the file is empty (0 bytes); fetch or write it again".into()));
    }
    if let Some(what) = foreign(path, bytes) {
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

/// Reads the header key by key. A tensor's value stays text until its name is known, so that a fault in it names the
/// tensor and the next one is read too.
struct Reader<'a> {
    path: &'a Path,
    /// Their ranges count from the start of the data.
    entries: Vec<Entry>,
    metadata: Option<Metadata>,
    problems: Problems,
}

impl<'de> Visitor<'de> for &mut Reader<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map from tensor names to dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((Name(name), value)) = map.next_entry::<Name<'de>, &RawValue>()? {
            if name == METADATA_KEY {
                self.metadata(value);
            } else {
                match entry(value) {
                    Ok((dtype, shape, range)) => {
                        self.entries.push(Entry { name: name.into(), dtype, shape, range });
                    }
                    Err(what) => self.problems.push(self.path, Some(&name), what),
                }
            }
            if self.problems.is_full() {
                return Err(de::Error::custom("too many faults to read on"));
            }
        }
        Ok(())
    }
}

impl Reader<'_> {
    fn metadata(&mut self, value: &RawValue) {
        let mut problem = |what: String| self.problems.push(self.path, None, what);
        let strings = match serde_json::from_str::<Strings>(value.get()) {
            Ok(strings) => strings,
            Err(error) => return problem(format!("`{METADATA_KEY}` is not a map of strings: {}", reason(&error))),
        };
        for key in strings.twice {
            problem(format!("`{METADATA_KEY}` has the key `{key}` twice"));
        }
        if self.metadata.replace(strings.map).is_some() {
            problem(format!("`{METADATA_KEY}` stands in the header twice"));
        }
    }

    /// Checks what concerns all tensors together, and makes their ranges count from the start of the file.
    fn finish(mut self, data_start: usize, data_len: usize) -> Result<(Vec<Entry>, Metadata)> {
        unique_names(self.path, &self.entries, &mut self.problems);
        self.entries.sort_by_key(|entry| (entry.range.start, entry.range.end));
        // A tensor without a place would show up again as a hole, so the cover is checked when every one has a place.
        if self.problems.is_empty() {
            cover(self.path, &self.entries, data_len, &mut self.problems);
        }
        let (mut entries, metadata) = self.problems.or((self.entries, self.metadata.unwrap_or_default()))?;
        for entry in &mut entries {
            entry.range = data_start + entry.range.start..data_start + entry.range.end;
        }
        Ok((entries, metadata))
    }
}

/// A tensor's name, borrowed from the header where it stands there without escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

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

/// Type, shape and offsets of one tensor.
type Placed = (Dtype, Arc<[usize]>, Range<usize>);

/// Type, shape and offsets of one tensor, consistent with each other.
fn entry(value: &RawValue) -> Result<Placed, String> {
    if let Some((dtype, shape, range)) = compact(value.get())
        && range.start <= range.end
        && elements(&shape).and_then(|elements| dtype.bytes(elements)) == Some(range.len())
    {
        return Ok((dtype, shape, range));
    }
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
    Ok((dtype, info.shape.into(), begin..end))
}

/// Reads a value that is written as every writer writes it, keys in this order and no spaces, in a third of the time.
/// `None` says nothing about the value: it is then read as JSON.
fn compact(text: &str) -> Option<Placed> {
    const MOST: usize = 8; // dimensions read this way
    let (dtype, rest) = text.strip_prefix("{\"dtype\":\"")?.split_once('"')?;
    let (shape, rest) = rest.strip_prefix(",\"shape\":[")?.split_once(']')?;
    let offsets = rest.strip_prefix(",\"data_offsets\":[")?.strip_suffix("]}")?;
    let number = |digits: &str| match digits.as_bytes() {
        [b'0'] => Some(0),
        [b'1'..=b'9', ..] if digits.bytes().all(|digit| digit.is_ascii_digit()) => digits.parse::<usize>().ok(),
        _ => None,
    };
    let (mut dims, mut count) = ([0; MOST], 0);
    if !shape.is_empty() {
        for dim in shape.split(',') {
            *dims.get_mut(count)? = number(dim)?;
            count += 1;
        }
    }
    let (begin, end) = offsets.split_once(',')?;
    Some((Dtype::from_safetensors_name(dtype)?, dims[..count].into(), number(begin)?..number(end)?))
}

fn supported() -> String {
    Dtype::SAFETENSORS.map(|dtype| dtype.to_string()).join(", ")
}

fn unique_names(path: &Path, entries: &[Entry], problems: &mut Problems) {
    let mut seen = HashSet::with_capacity(entries.len());
    for entry in entries {
        if !seen.insert(&*entry.name) {
            problems.push(path, Some(&entry.name), "stands in the header more than once");
        }
    }
}

/// Checks that `entries`, sorted by offset, cover `data_len` bytes without hole, overlap or rest.
fn cover(path: &Path, entries: &[Entry], data_len: usize, problems: &mut Problems) {
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
            problems.push(path, Some(&entry.name), what);
        } else if start > end {
            let what = format!(
                "begins at data byte {start}, expected {end}: {} bytes after {} belong to no tensor",
                start - end,
                name(before)
            );
            problems.push(path, Some(&entry.name), what);
        }
        if stop >= end {
            end = stop;
            before = Some(&entry.name);
        }
    }
    if end > data_len {
        problems.push(path, None, format!(
            "the tensors take {end} bytes of data and the file holds {data_len}: it is truncated, {} bytes are missing; fetch it again",
            end - data_len
        ));
    } else if end < data_len {
        problems.push(path, None, format!("{} bytes after the last tensor belong to no tensor", data_len - end));
    }
}
