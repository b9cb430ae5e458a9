//! GGUF, the container of llama.cpp: typed metadata, then tensors, plain or in ggml's blocks.
//!
//! ```text
//! "GGUF" · version u32 · tensors u64 · keys u64                     little endian throughout
//! key:    name string · type u32 · value                            string = length u64 · UTF-8
//! tensor: name string · dimensions u32 · their sizes u64… · type u32 · offset u64
//! padding to `general.alignment` (32 if absent) · data              offsets count from here
//! ```
//!
//! Dimensions stand fastest first in the file; a [`TensorView`]'s shape is slowest first, so a linear weight reads
//! (out_features, in_features) as everywhere else here.
//!
//! [`read`] decides all structural trust at once: every count and length is compared with what is left of the file
//! before anything is allocated for it, and afterwards a tensor's bytes are known to lie in the file, alone.
//!
//! Specification: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use super::{Contents, shown};
use crate::{Dtype, Error, Problem, Result, Shard, TensorView};

mod blocks;
mod metadata;

pub use blocks::dequantize;
pub use metadata::{Numbers, Strings, Value};

/// Metadata and tensor table together may take this much; real files stay below 20 MB.
const MAX_HEADER: usize = 100 << 20;
/// Real files have tens of keys.
const MAX_KEYS: u64 = 1 << 16;
/// Real files have hundreds to thousands of tensors.
const MAX_TENSORS: u64 = 1 << 18;
/// What ggml itself supports.
const MAX_DIMENSIONS: u32 = 4;
/// Collecting stops here, so that a file of nothing but faults costs little.
const MAX_PROBLEMS: usize = 1000;
const DEFAULT_ALIGNMENT: usize = 32;

/// A GGUF file whose structure has been checked. Tensors are views of the mapped file; metadata is owned.
#[derive(Debug, Clone)]
pub struct Gguf {
    shard: Shard,
    version: u32,
    metadata: Vec<(String, Value)>,
    keys: HashMap<String, usize>,
    tensors: Vec<TensorView>,
    names: HashMap<String, usize>,
}

impl Gguf {
    /// The file.
    pub fn file(&self) -> &Path {
        self.shard.path()
    }

    /// The container's version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// All keys with their values, in file order.
    pub fn metadata(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of `key`, if the file has it.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).map(|&at| &self.metadata[at].1)
    }

    /// All tensors, in file order, under their GGUF names.
    pub fn tensors(&self) -> &[TensorView] {
        &self.tensors
    }

    /// The tensor called `name`, if the file has it.
    pub fn tensor(&self, name: &str) -> Option<&TensorView> {
        self.names.get(name).map(|&at| &self.tensors[at])
    }
}

/// Reads the header of a GGUF file (version 2 or 3, little endian) and checks the whole structure.
///
/// # Errors
/// [`Error::File`] if the file is something else, [`Error::Malformed`] with every fault found otherwise: bad counts and
/// lengths, truncation, metadata that is no UTF-8, duplicate keys and tensors, an alignment that is not a power of two,
/// tensor types that are not read (named), shapes that overflow or leave a block unfilled, data that is misaligned,
/// outside the file or shared by two tensors.
pub fn read(shard: &Shard) -> Result<Gguf> {
    refuse_others(shard)?;
    let mut reader = Reader { shard, problems: Vec::new() };
    match reader.read() {
        Ok(gguf) if reader.problems.is_empty() => Ok(gguf),
        Ok(_) => Err(Error::Malformed(reader.problems)),
        Err(Fault { tensor, what }) => {
            reader.problem(tensor.as_deref(), what);
            Err(Error::Malformed(reader.problems))
        }
    }
}

/// Whether the file begins with GGUF's magic number.
pub fn recognise(shard: &Shard) -> bool {
    shard.bytes().starts_with(b"GGUF")
}

/// [`read`] as every container is read: GGUF's metadata is typed, of which only the texts fit here. Whoever converts
/// the file reads the rest there.
///
/// # Errors
/// As [`read`].
pub fn contents(shard: &Shard) -> Result<Contents> {
    let Gguf { mut tensors, metadata, .. } = read(shard)?;
    tensors.sort_by_key(|tensor| tensor.range.start);
    let text = |(key, value): (String, Value)| value.as_str().map(str::to_owned).map(|text| (key, text));
    Ok(Contents { tensors, metadata: metadata.into_iter().filter_map(text).collect(), ..Contents::default() })
}

/// Refuses files that are not GGUF at all, by what they look like instead.
fn refuse_others(shard: &Shard) -> Result<()> {
    let bytes = shard.bytes();
    let found = match bytes {
        [b'G', b'G', b'U', b'F', ..] => return Ok(()),
        [b'v', b'e', b'r', b's', b'i', b'o', b'n', b' ', b'h', b't', b't', b'p', ..] => {
            "a Git LFS pointer, not the file itself: run `git lfs pull` or download the file"
        }
        [b'<', ..] => "an HTML or XML page, perhaps a download that asked to log in: download the file again",
        [b'P', b'K', 3, 4, ..] => "a zip archive (a torch checkpoint is one), which needs its own reader",
        [_, _, _, _, _, _, 0, 0, b'{', ..] => "what looks like a safetensors file",
        [b't' | b'l', b'j' | b'm', b'g', b'g', ..] => "a GGML file from before GGUF: convert it with llama.cpp first",
        _ if bytes.iter().all(|&byte| byte == 0) => "only zeros: the download or copy did not finish, fetch it again",
        _ => "something else",
    };
    Err(Error::file(shard.path(), format!("expected a GGUF file (it begins with `GGUF`), found {found}")))
}

/// A fault after which the rest of the header cannot be read.
struct Fault {
    tensor: Option<String>,
    what: String,
}

impl From<String> for Fault {
    fn from(what: String) -> Self {
        Self { tensor: None, what }
    }
}

/// The bytes not read yet of the header, and where they begin.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The whole file's length, for messages.
    file: usize,
}

impl<'a> Cursor<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes: &bytes[..bytes.len().min(MAX_HEADER)], at: 0, file: bytes.len() }
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The sentence for `count` things that need `needed` bytes or more (`None`: more than can be counted).
    fn too_short(&self, what: &str, needed: Option<usize>) -> String {
        let needed = needed.map_or_else(|| "more than 2^64 bytes".to_owned(), |needed| format!("{needed} bytes"));
        if self.file > MAX_HEADER {
            format!("{what} at byte {} takes {needed}, but metadata may only reach to byte {MAX_HEADER}", self.at)
        } else {
            let left = self.left();
            format!("{what} at byte {} takes {needed}, but the file ends after {left}: truncated or damaged", self.at)
        }
    }

    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], String> {
        if count > self.left() {
            return Err(self.too_short(what, Some(count)));
        }
        let taken = &self.bytes[self.at..self.at + count];
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let taken = self.take(N, what)?;
        Ok(*taken.first_chunk().expect("take returns N bytes"))
    }

    fn u32(&mut self, what: &str) -> Result<u32, String> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, String> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things of at least `least` bytes each: refused if the file cannot hold them.
    fn count(&mut self, least: usize, what: &str) -> Result<usize, String> {
        let count = self.u64(what)?;
        let needed = usize::try_from(count).ok().and_then(|count| count.checked_mul(least));
        match needed {
            Some(needed) if needed <= self.left() => Ok(count as usize),
            _ => Err(self.too_short(&format!("{what} ({count})"), needed)),
        }
    }

    /// A string, or `Ok(Err(…))` if its bytes are there but are no UTF-8.
    fn string(&mut self, what: &str) -> Result<Result<&'a str, String>, String> {
        let length = self.count(1, what)?;
        let start = self.at;
        let bytes = self.take(length, what)?;
        Ok(std::str::from_utf8(bytes).map_err(|_| format!("{what} at byte {start} is not UTF-8")))
    }
}

/// A tensor's entry in the table, before its place in the file is known to be good.
struct Entry {
    name: String,
    /// `None` if the type is not read.
    dtype: Option<Dtype>,
    shape: Vec<usize>,
    /// `None` if type or shape is at fault.
    bytes: Option<usize>,
    offset: u64,
}

struct Reader<'a> {
    shard: &'a Shard,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn problem(&mut self, tensor: Option<&str>, what: impl Into<String>) {
        if self.problems.len() < MAX_PROBLEMS {
            let (file, tensor) = (self.shard.path().to_owned(), tensor.map(shown));
            self.problems.push(Problem { file, tensor, what: what.into() });
        }
    }

    fn read(&mut self) -> Result<Gguf, Fault> {
        let shard = self.shard.clone();
        let cursor = &mut Cursor::new(shard.bytes());
        cursor.take(4, "the magic number")?;
        let version = cursor.u32("the version")?;
        match version {
            2 | 3 => {}
            _ if matches!(version.swap_bytes(), 1..=3) => {
                return Err("the file is big endian; convert it to little endian".to_owned().into());
            }
            _ => {
                return Err(format!("GGUF version {version} is not read, only 2 and 3; convert the model again").into());
            }
        }
        let n_tensors = cursor.u64("the number of tensors")?;
        let n_keys = cursor.u64("the number of metadata keys")?;
        let n_tensors = believable(n_tensors, "tensors", MAX_TENSORS, 24, cursor.left())?;
        let n_keys = believable(n_keys, "metadata keys", MAX_KEYS, 13, cursor.left())?;

        let (metadata, keys) = self.metadata(cursor, n_keys)?;
        let alignment = self.alignment(&metadata, &keys);
        let entries = self.entries(cursor, n_tensors)?;
        let (tensors, names) = match alignment {
            Some(alignment) => self.place(entries, cursor.at, alignment),
            None => Default::default(),
        };
        Ok(Gguf { shard, version, metadata, keys, tensors, names })
    }

    /// Reads `count` keys with their values.
    #[allow(clippy::type_complexity)] // a list and its index
    fn metadata(
        &mut self,
        cursor: &mut Cursor<'_>,
        count: usize,
    ) -> Result<(Vec<(String, Value)>, HashMap<String, usize>), Fault> {
        let (mut metadata, mut index) = (Vec::new(), HashMap::new());
        for number in 0..count {
            let key = match cursor.string(&format!("the name of metadata key {number}"))? {
                Ok(key) => key.to_owned(),
                Err(what) => {
                    self.problem(None, what);
                    format!("#{number}")
                }
            };
            let label = format!("the value of metadata key `{}`", shown(&key));
            let value = match Value::read(cursor, &label)? {
                Ok(value) => value,
                Err(what) => {
                    self.problem(None, what);
                    continue;
                }
            };
            if index.insert(key.clone(), metadata.len()).is_some() {
                self.problem(None, format!("metadata key `{}` occurs twice", shown(&key)));
            }
            metadata.push((key, value));
        }
        Ok((metadata, index))
    }

    /// `general.alignment`, or `None` (and a problem) if it is no alignment.
    fn alignment(&mut self, metadata: &[(String, Value)], keys: &HashMap<String, usize>) -> Option<usize> {
        let Some(&at) = keys.get("general.alignment") else { return Some(DEFAULT_ALIGNMENT) };
        let value = &metadata[at].1;
        match value.as_u64() {
            Some(alignment) if alignment.is_power_of_two() && alignment <= 1 << 31 => Some(alignment as usize),
            _ => {
                let found = value.summary();
                self.problem(None, format!("`general.alignment` is {found}, expected a power of two below 2^32"));
                None
            }
        }
    }

    /// Reads the tensor table: `count` entries, faults of single tensors collected.
    fn entries(&mut self, cursor: &mut Cursor<'_>, count: usize) -> Result<Vec<Entry>, Fault> {
        let mut entries = Vec::new();
        for number in 0..count {
            let name = match cursor.string(&format!("the name of tensor {number}"))? {
                Ok("") => {
                    self.problem(None, format!("tensor {number} has an empty name"));
                    format!("#{number}")
                }
                Ok(name) => name.to_owned(),
                Err(what) => {
                    self.problem(None, what);
                    format!("#{number}")
                }
            };
            match self.entry(cursor, &name) {
                Ok(entry) => entries.push(entry),
                Err(what) => return Err(Fault { tensor: Some(name), what }),
            }
        }
        Ok(entries)
    }

    fn entry(&mut self, cursor: &mut Cursor<'_>, name: &str) -> Result<Entry, String> {
        let n_dimensions = cursor.u32("has a number of dimensions that")?;
        if n_dimensions > MAX_DIMENSIONS {
            return Err(format!("has {n_dimensions} dimensions, expected at most {MAX_DIMENSIONS}"));
        }
        let mut sizes = Vec::with_capacity(n_dimensions as usize);
        for _ in 0..n_dimensions {
            sizes.push(cursor.u64("has a size that")?);
        }
        sizes.reverse(); // fastest first in the file, slowest first from here on
        let type_id = cursor.u32("has a type that")?;
        let offset = cursor.u64("has an offset that")?;

        let dtype = match ggml_type(type_id) {
            Ok(dtype) => Some(dtype),
            Err(known) => {
                self.problem(
                    Some(name),
                    format!(
                        "has the type {known} ({type_id}), which is not read; quantise the model to one of F32, F16, \
                         BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K"
                    ),
                );
                None
            }
        };
        let shape: Vec<usize> = sizes.iter().map(|&size| usize::try_from(size).unwrap_or(usize::MAX)).collect();
        let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
        let bytes = match (elements, dtype) {
            _ if sizes.contains(&0) => {
                self.problem(Some(name), format!("has shape {sizes:?}, with nothing in it"));
                None
            }
            (None, _) => {
                self.problem(Some(name), format!("has shape {sizes:?}, more elements than can be counted"));
                None
            }
            (Some(_), None) => None,
            (Some(elements), Some(dtype)) => {
                let row = shape.last().copied().unwrap_or(1);
                let bytes = dtype.bytes(row).and(dtype.bytes(elements));
                if bytes.is_none() {
                    let block = dtype.block().0;
                    self.problem(
                        Some(name),
                        format!("has shape {sizes:?}, expected rows of a multiple of {block} elements for {dtype}"),
                    );
                }
                bytes
            }
        };
        Ok(Entry { name: name.to_owned(), dtype, shape, bytes, offset })
    }

    /// Checks where each tensor's data lies, and makes views of those that are good.
    fn place(
        &mut self,
        entries: Vec<Entry>,
        header_end: usize,
        alignment: usize,
    ) -> (Vec<TensorView>, HashMap<String, usize>) {
        let file = self.shard.bytes().len();
        // Both are far below 2^63, so the sum cannot overflow.
        let data = header_end.next_multiple_of(alignment);
        let mut tensors: Vec<TensorView> = Vec::with_capacity(entries.len());
        let mut names = HashMap::with_capacity(entries.len());
        let mut twice = HashSet::new();
        for Entry { name, dtype, shape, bytes, offset } in entries {
            if names.insert(name.clone(), tensors.len()).is_some() && twice.insert(name.clone()) {
                self.problem(Some(&name), "occurs twice");
            }
            if !offset.is_multiple_of(alignment as u64) {
                self.problem(Some(&name), format!("has offset {offset}, expected a multiple of {alignment}"));
            }
            let (Some(dtype), Some(bytes)) = (dtype, bytes) else { continue };
            let start = usize::try_from(offset).ok().and_then(|offset| data.checked_add(offset));
            let end = start.and_then(|start| start.checked_add(bytes));
            match (start, end) {
                (Some(start), Some(end)) if end <= file => {
                    tensors.push(TensorView {
                        name: name.into(),
                        dtype,
                        shape: shape.into(),
                        shard: self.shard.clone(),
                        range: start..end,
                    });
                }
                _ => self.problem(
                    Some(&name),
                    format!(
                        "takes {bytes} bytes from byte {data} + {offset}, but the file has {file} bytes: it is \
                         truncated or damaged, fetch it again"
                    ),
                ),
            }
        }
        self.overlaps(&tensors);
        (tensors, names)
    }

    /// Reports tensors that share bytes.
    fn overlaps(&mut self, tensors: &[TensorView]) {
        let mut by_place: Vec<&TensorView> = tensors.iter().collect();
        by_place.sort_by_key(|tensor| (tensor.range.start, tensor.range.end));
        let mut furthest: Option<&TensorView> = None;
        for tensor in by_place {
            if let Some(other) = furthest.filter(|other| tensor.range.start < other.range.end) {
                let (ours, theirs) = (&tensor.range, &other.range);
                self.problem(
                    Some(&tensor.name),
                    format!("lies at bytes {ours:?}, within those of tensor `{}`, {theirs:?}", shown(&other.name)),
                );
            }
            if furthest.is_none_or(|other| tensor.range.end > other.range.end) {
                furthest = Some(tensor);
            }
        }
    }
}

/// `count` things of at least `least` bytes each, if `left` bytes can hold them.
fn believable(count: u64, what: &str, most: u64, least: usize, left: usize) -> Result<usize, String> {
    if count > most {
        Err(format!("the file claims to have {count} {what}, expected at most {most}; it is damaged"))
    } else if count as usize > left / least {
        Err(format!("the file claims to have {count} {what}, but only {left} bytes follow: truncated or damaged"))
    } else {
        Ok(count as usize)
    }
}

/// ggml's number of a type, or `None` if it has none.
pub fn ggml_number(dtype: Dtype) -> Option<u32> {
    (0..64).find(|&number| ggml_type(number) == Ok(dtype))
}

/// The type behind ggml's number, or its name if it is not read.
fn ggml_type(id: u32) -> Result<Dtype, &'static str> {
    Ok(match id {
        0 => Dtype::F32,
        1 => Dtype::F16,
        2 => Dtype::Q4_0,
        3 => Dtype::Q4_1,
        6 => Dtype::Q5_0,
        7 => Dtype::Q5_1,
        8 => Dtype::Q8_0,
        10 => Dtype::Q2K,
        11 => Dtype::Q3K,
        12 => Dtype::Q4K,
        13 => Dtype::Q5K,
        14 => Dtype::Q6K,
        24 => Dtype::I8,
        25 => Dtype::I16,
        26 => Dtype::I32,
        27 => Dtype::I64,
        28 => Dtype::F64,
        30 => Dtype::Bf16,
        4 => return Err("Q4_2"),
        5 => return Err("Q4_3"),
        9 => return Err("Q8_1"),
        15 => return Err("Q8_K"),
        16 => return Err("IQ2_XXS"),
        17 => return Err("IQ2_XS"),
        18 => return Err("IQ3_XXS"),
        19 => return Err("IQ1_S"),
        20 => return Err("IQ4_NL"),
        21 => return Err("IQ3_S"),
        22 => return Err("IQ2_S"),
        23 => return Err("IQ4_XS"),
        29 => return Err("IQ1_M"),
        31..=33 => return Err("Q4_0 interleaved for ARM"),
        34 => return Err("TQ1_0"),
        35 => return Err("TQ2_0"),
        36..=38 => return Err("IQ4_NL interleaved"),
        39 => return Err("MXFP4"),
        40 => return Err("NVFP4"),
        41 => return Err("Q1_0"),
        _ => return Err("unknown to this program"),
    })
}
