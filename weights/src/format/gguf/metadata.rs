//! GGUF's metadata values: scalars, strings, and flat arrays of either, kept about as compactly as in the file.

use super::Cursor;

/// A metadata value. Integers are widened, floats keep their width (an `f32` 1e-5 is not an `f64` 1e-5).
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `true` or `false`.
    Bool(bool),
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// A number of four bytes.
    F32(f32),
    /// A number of eight bytes.
    F64(f64),
    /// Text.
    String(String),
    /// An array of text.
    Strings(Strings),
    /// An array of numbers or booleans.
    Numbers(Numbers),
}

/// The types of GGUF's values, by their numbers in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// Bytes of a scalar; for the others, the least they take.
    const fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }

    fn read(cursor: &mut Cursor<'_>, what: &str) -> Result<Self, String> {
        let id = cursor.u32(what)?;
        Self::ALL
            .get(id as usize)
            .copied()
            .ok_or_else(|| format!("{what} has the type {id}, expected 0 to 12; the file is damaged"))
    }

    /// One scalar of `bytes().len()` bytes.
    fn scalar(self, raw: &[u8]) -> Value {
        let mut wide = [0; 8];
        wide[..raw.len()].copy_from_slice(raw);
        let bits = u64::from_le_bytes(wide);
        match self {
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => Value::Unsigned(bits),
            Self::I8 => Value::Signed(i64::from(bits as i8)),
            Self::I16 => Value::Signed(i64::from(bits as i16)),
            Self::I32 => Value::Signed(i64::from(bits as i32)),
            Self::I64 => Value::Signed(bits as i64),
            Self::F32 => Value::F32(f32::from_bits(bits as u32)),
            Self::F64 => Value::F64(f64::from_bits(bits)),
            Self::Bool => Value::Bool(bits != 0),
            Self::String | Self::Array => unreachable!("read before scalars are"),
        }
    }
}

impl Value {
    /// Reads a type and a value. The outer error ends the reading of the file, the inner one only spoils this value.
    pub(super) fn read(cursor: &mut Cursor<'_>, what: &str) -> Result<Result<Self, String>, String> {
        match Kind::read(cursor, what)? {
            Kind::String => Ok(cursor.string(what)?.map(|text| Self::String(text.to_owned()))),
            Kind::Array => {
                let kind = Kind::read(cursor, what)?;
                let count = cursor.count(kind.bytes(), what)?;
                match kind {
                    Kind::Array => Err(format!("{what} is an array of arrays, which no known writer makes")),
                    Kind::String => Ok(Strings::read(cursor, count, what)?.map(Self::Strings)),
                    _ => {
                        let raw = cursor.take(count * kind.bytes(), what)?;
                        Ok(booleans(kind, raw, what).map(|()| Self::Numbers(Numbers { kind, raw: raw.into() })))
                    }
                }
            }
            kind => {
                let raw = cursor.take(kind.bytes(), what)?;
                Ok(booleans(kind, raw, what).map(|()| kind.scalar(raw)))
            }
        }
    }

    /// The value as a non-negative integer, whatever integer type it has.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::Unsigned(value) => Some(value),
            Self::Signed(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// The value as a number. An `f32` becomes the `f64` of the same shortest decimal form: 1e-5 stays 1e-5.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::Unsigned(value) => Some(value as f64),
            Self::Signed(value) => Some(value as f64),
            Self::F32(value) => value.to_string().parse().ok(),
            Self::F64(value) => Some(value),
            _ => None,
        }
    }

    /// The value as a boolean.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// The value as text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The value as an array of text.
    pub fn as_strings(&self) -> Option<&Strings> {
        match self {
            Self::Strings(strings) => Some(strings),
            _ => None,
        }
    }

    /// The value as an array of numbers or booleans.
    pub fn as_numbers(&self) -> Option<&Numbers> {
        match self {
            Self::Numbers(numbers) => Some(numbers),
            _ => None,
        }
    }

    /// What it is, in a few words, for messages: `the number 3`, `an array of 7 strings`.
    pub fn summary(&self) -> String {
        match self {
            Self::Bool(value) => value.to_string(),
            Self::Unsigned(value) => format!("the number {value}"),
            Self::Signed(value) => format!("the number {value}"),
            Self::F32(value) => format!("the number {value}"),
            Self::F64(value) => format!("the number {value}"),
            Self::String(text) => format!("the text `{}`", super::shown(text)),
            Self::Strings(strings) => format!("an array of {} strings", strings.len()),
            Self::Numbers(numbers) => format!("an array of {} numbers", numbers.len()),
        }
    }
}

/// Booleans are bytes 0 and 1 and nothing else.
fn booleans(kind: Kind, raw: &[u8], what: &str) -> Result<(), String> {
    match raw.iter().find(|&&byte| kind == Kind::Bool && byte > 1) {
        Some(byte) => Err(format!("{what} holds the byte {byte} as a boolean, expected 0 or 1")),
        None => Ok(()),
    }
}

/// An array of text in one allocation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Strings {
    text: String,
    /// Where each string ends; the header's largest size fits u32.
    ends: Vec<u32>,
}

impl Strings {
    /// Reads `count` strings, which the caller found to fit the file.
    fn read(cursor: &mut Cursor<'_>, count: usize, what: &str) -> Result<Result<Self, String>, String> {
        let mut strings = Self { text: String::new(), ends: Vec::with_capacity(count) };
        let mut fault = None;
        for _ in 0..count {
            match cursor.string(what)? {
                Ok(text) => strings.text.push_str(text),
                Err(what) => fault = fault.or(Some(what)),
            }
            strings.ends.push(strings.text.len() as u32);
        }
        Ok(fault.map_or(Ok(strings), Err))
    }

    /// How many strings there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// String number `at`.
    pub fn get(&self, at: usize) -> Option<&str> {
        let end = *self.ends.get(at)? as usize;
        let start = if at == 0 { 0 } else { self.ends[at - 1] as usize };
        Some(&self.text[start..end])
    }

    /// All strings, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|at| self.get(at).unwrap_or_default())
    }
}

/// An array of numbers or booleans, as the file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbers {
    kind: Kind,
    raw: Box<[u8]>,
}

impl Numbers {
    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.raw.len() / self.kind.bytes()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// Number `at`, as a scalar value.
    pub fn get(&self, at: usize) -> Option<Value> {
        let size = self.kind.bytes();
        let raw = self.raw.chunks_exact(size).nth(at)?;
        Some(self.kind.scalar(raw))
    }

    /// All numbers, in order, as scalar values.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Value> {
        self.raw.chunks_exact(self.kind.bytes()).map(|raw| self.kind.scalar(raw))
    }
}
