//! NumPy's `.npy`, one array, and `.npz`, a zip archive of them.
//!
//! ```text
//! "\x93NUMPY" · major u8 · minor u8 · header length u16 (u32 from version 2 on) · header · the elements
//! header: {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }      a Python literal, of which only this is read
//! ```
//!
//! An array that lies in the file as a tensor does (rows first, little endian, not compressed) is a slice of it; others
//! are brought into that order in memory. Object arrays are pickles and are never read. Texts are no numbers: a `.npy` of
//! texts opens as their code points (`U32`, one more dimension), which is what lies in the file. Specification:
//! `numpy.lib.format`.

use super::{Contents, elements, gather, shown, swap_bytes, zip::Archive};
use crate::{Dtype, Error, Result, Shard, TensorView, error::Problems};

const MAGIC: &[u8] = b"\x93NUMPY";
/// Longer headers are refused; real ones have about a hundred bytes.
const MAX_HEADER: usize = 1 << 16;

/// Whether the file begins with NumPy's magic number.
pub fn recognise_npy(shard: &Shard) -> bool {
    shard.bytes().starts_with(MAGIC)
}

/// Whether the file is a zip archive of which an entry ends in `.npy`.
pub fn recognise_npz(shard: &Shard) -> bool {
    super::zip::recognise(shard.bytes())
        && Archive::read(shard).is_ok_and(|archive| archive.entries().iter().any(|entry| entry.name.ends_with(".npy")))
}

/// Reads a `.npy`. The tensor is called as the file, without `.npy`.
///
/// # Errors
/// If the header is no header, the array holds Python objects or another type that is no number, or elements are
/// missing or left over.
pub fn read_npy(shard: &Shard) -> Result<Contents> {
    let name = shard.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let name = name.strip_suffix(".npy").unwrap_or(&name);
    let tensor = array(shard, 0..shard.bytes().len(), name).map_err(|what| Error::tensor(shard.path(), name, what))?;
    Ok(Contents { tensors: vec![tensor], metadata: [container("npy")].into(), ..Contents::default() })
}

/// Reads a `.npz`: every entry that ends in `.npy`, called without that ending. Entries of Python objects or structures
/// are left out, and the metadata key `left_out` names them; other entries are refused as those of a `.npy`.
///
/// # Errors
/// As [`read_npy`], for all arrays together; and if every entry was left out.
pub fn read_npz(shard: &Shard) -> Result<Contents> {
    let archive = Archive::read(shard)?;
    archive.expect_in_budget()?;
    let mut contents = Contents { metadata: [container("npz")].into(), ..Contents::default() };
    let mut problems = Problems::default();
    let mut left_out = Vec::new();
    for entry in archive.entries() {
        let Some(name) = entry.name.strip_suffix(".npy") else { continue };
        let (bytes, range) = match archive.stored(entry) {
            Some(_) => (shard.clone(), entry.range.clone()),
            None => (Shard::from_bytes(shard.path(), archive.unpack(entry)?), 0..entry.size),
        };
        match array(&bytes, range, name) {
            Ok(tensor) => contents.tensors.push(tensor),
            Err(what) if what.contains(OBJECTS) => left_out.push(format!("`{}` {what}", shown(name))),
            Err(what) => problems.push(shard.path(), Some(name), what),
        }
    }
    if contents.tensors.is_empty() && problems.is_empty() {
        let what = if left_out.is_empty() { "the archive holds no arrays".into() } else { left_out.join("; ") };
        return Err(Error::file(shard.path(), what));
    }
    if !left_out.is_empty() {
        contents.metadata.insert("left_out".into(), left_out.join("; "));
    }
    problems.or(contents)
}

fn container(name: &str) -> (String, String) {
    ("container".into(), name.into())
}

/// Words that mark what cannot be read for what it is, as against damage.
const OBJECTS: &str = "no tensor can be made of";

/// The array in `range` of `shard`.
fn array(shard: &Shard, range: std::ops::Range<usize>, name: &str) -> Result<TensorView, String> {
    let bytes = &shard.bytes()[range.clone()];
    let cut = || "has a header that is cut: truncated or damaged".to_owned();
    let version = bytes.strip_prefix(MAGIC).ok_or("is no array: it does not begin with NumPy's magic number")?;
    let (length, header_start) = match version {
        [1, _, a, b, ..] => (usize::from(u16::from_le_bytes([*a, *b])), 10),
        [2 | 3, _, a, b, c, d, ..] => (u32::from_le_bytes([*a, *b, *c, *d]) as usize, 12),
        [major, minor, ..] if *major == 0 || *major > 3 => {
            return Err(format!("is of version {major}.{minor} of the format; known are 1 to 3"));
        }
        _ => return Err(cut()),
    };
    if length > MAX_HEADER {
        return Err(format!("has a header of {length} bytes; expected at most {MAX_HEADER}: damaged"));
    }
    let header = bytes.get(header_start..header_start + length).ok_or_else(cut)?;
    let header = std::str::from_utf8(header).map_err(|_| "has a header that is not text: damaged")?;
    let header = Header::parse(header)?;
    let Element { dtype, swap, text } = element(&header.descr)?;
    let mut shape = header.shape;
    let fortran = header.fortran_order && shape.len() > 1;
    if let Some(letters) = text {
        shape.push(letters);
    }
    let size = elements(&shape).and_then(|elements| dtype.bytes(elements));
    let size = size.ok_or_else(|| format!("has shape {shape:?}, whose size in bytes cannot be counted"))?;
    let data_start = header_start + length;
    let data = &bytes[data_start..];
    if data.len() != size {
        return Err(format!(
            "has shape {shape:?} of {dtype}, {size} bytes, but {} follow its header: truncated or damaged",
            data.len()
        ));
    }
    if fortran {
        // Fastest first: the strides are those of the reversed shape, reversed.
        let letters = text.unwrap_or(1);
        let mut strides = Vec::with_capacity(shape.len());
        let mut stride = letters;
        for &dim in &shape[..shape.len() - usize::from(text.is_some())] {
            strides.push(stride);
            stride = stride.saturating_mul(dim);
        }
        if text.is_some() {
            strides.push(1);
        }
        let unit = dtype.block().1;
        let mut owned = gather(data, unit, 0, &shape, &strides).ok_or("has a shape that does not fit its data")?;
        if swap {
            swap_bytes(dtype, &mut owned);
        }
        TensorView::place(&Shard::from_bytes(shard.path(), owned), name, dtype, shape, 0)
    } else if swap {
        let mut owned = data.to_vec();
        swap_bytes(dtype, &mut owned);
        TensorView::place(&Shard::from_bytes(shard.path(), owned), name, dtype, shape, 0)
    } else {
        TensorView::place(shard, name, dtype, shape, range.start + data_start)
    }
}

/// What an array's elements are.
struct Element {
    dtype: Dtype,
    /// Whether they are big endian.
    swap: bool,
    /// Code points of each text, where they are texts.
    text: Option<usize>,
}

fn element(descr: &str) -> Result<Element, String> {
    let refused = || {
        format!(
            "has type `{}`, which is not read; known are floats, integers, bools and texts (`<f4`, `<i8`, `|b1`, `<U6`, …)",
            shown(descr)
        )
    };
    let mut letters = descr.chars();
    let order = letters.next().ok_or_else(refused)?;
    let (kind, digits) = match order {
        '<' | '>' | '|' | '=' => (letters.next().ok_or_else(refused)?, letters.as_str()),
        kind => (kind, letters.as_str()),
    };
    if kind == 'O' {
        return Err(format!(
            "holds Python objects (type `{}`), which are pickles: {OBJECTS} them without running them",
            shown(descr)
        ));
    }
    let size: usize = digits.parse().map_err(|_| refused())?;
    let element = |dtype| Ok(Element { dtype, swap: order == '>' && size > 1, text: None });
    match (kind, size) {
        ('f', 8) => element(Dtype::F64),
        ('f', 4) => element(Dtype::F32),
        ('f', 2) => element(Dtype::F16),
        ('i', 8) => element(Dtype::I64),
        ('i', 4) => element(Dtype::I32),
        ('i', 2) => element(Dtype::I16),
        ('i', 1) => element(Dtype::I8),
        ('u', 8) => element(Dtype::U64),
        ('u', 4) => element(Dtype::U32),
        ('u', 2) => element(Dtype::U16),
        ('u', 1) => element(Dtype::U8),
        ('b', 1) => element(Dtype::Bool),
        ('c', 8) => element(Dtype::C64),
        ('U', letters) => Ok(Element { dtype: Dtype::U32, swap: order == '>', text: Some(letters) }),
        ('S' | 'a', letters) => Ok(Element { dtype: Dtype::U8, swap: false, text: Some(letters) }),
        ('V', _) => Err(format!(
            "holds raw bytes (type `{}`), whose meaning the file does not say: {OBJECTS} them",
            shown(descr)
        )),
        ('M' | 'm', _) => Err(format!("holds times (type `{}`): {OBJECTS} them", shown(descr))),
        _ => Err(refused()),
    }
}

/// The three entries of a header.
struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Header {
    /// Reads `{'descr': …, 'fortran_order': …, 'shape': …, }` and nothing else.
    fn parse(text: &str) -> Result<Self, String> {
        let mut reader = Literal { rest: text };
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        reader.expect('{')?;
        while !reader.eat('}') {
            let key = reader.text()?;
            reader.expect(':')?;
            let again = match key {
                "descr" if reader.peek() == Some('[') => {
                    return Err(format!(
                        "has fields of several types (a structure): {OBJECTS} them; save each field alone"
                    ));
                }
                "descr" => descr.replace(reader.text()?.to_owned()).is_some(),
                "fortran_order" => fortran_order.replace(reader.boolean()?).is_some(),
                "shape" => shape.replace(reader.shape()?).is_some(),
                other => return Err(format!("has the unknown key `{}` in its header: damaged", shown(other))),
            };
            if again {
                return Err(format!("has the key `{key}` twice in its header: damaged"));
            }
            if !reader.eat(',') {
                reader.expect('}')?;
                break;
            }
        }
        if !reader.rest.trim().is_empty() {
            return Err("has more in its header than a dictionary: damaged".into());
        }
        match (descr, fortran_order, shape) {
            (Some(descr), Some(fortran_order), Some(shape)) => Ok(Self { descr, fortran_order, shape }),
            _ => Err("has a header without `descr`, `fortran_order` or `shape`: damaged".into()),
        }
    }
}

/// What is left of a Python literal.
struct Literal<'a> {
    rest: &'a str,
}

impl<'a> Literal<'a> {
    fn peek(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start();
        self.rest.chars().next()
    }

    fn eat(&mut self, expected: char) -> bool {
        let there = self.peek() == Some(expected);
        if there {
            self.rest = &self.rest[expected.len_utf8()..];
        }
        there
    }

    fn expect(&mut self, expected: char) -> Result<(), String> {
        if self.eat(expected) {
            return Ok(());
        }
        Err(format!("has a header without `{expected}` where one should stand: damaged"))
    }

    fn text(&mut self) -> Result<&'a str, String> {
        let quote = if self.eat('\'') { '\'' } else { self.expect('"').map(|()| '"')? };
        let (text, rest) = self.rest.split_once(quote).ok_or("has a header with a text that does not end: damaged")?;
        self.rest = rest;
        Ok(text)
    }

    fn boolean(&mut self) -> Result<bool, String> {
        self.peek();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err("has a header where True or False should stand and does not: damaged".into())
    }

    fn shape(&mut self) -> Result<Vec<usize>, String> {
        self.expect('(')?;
        let mut shape = Vec::new();
        while !self.eat(')') {
            self.peek();
            let digits = self.rest.len() - self.rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (number, rest) = self.rest.split_at(digits);
            let number =
                number.parse().map_err(|_| "has a header whose shape is no tuple of whole numbers: damaged")?;
            self.rest = rest.strip_prefix('L').unwrap_or(rest); // Python 2
            if shape.len() == 64 {
                return Err("has more than 64 dimensions: damaged".into());
            }
            shape.push(number);
            if !self.eat(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(shape)
    }
}
