//! The wire format of protobuf, walked in place: fields of a message, one after the other, nothing allocated.
//!
//! A field is a varint `number << 3 | kind` and a value of that kind: a varint, 8 bytes, a length and that many bytes,
//! or 4 bytes. Specification: the protobuf documentation, "Encoding".

use std::ops::Range;

/// One field's value. Bytes are given by their place in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Varint(u64),
    Fixed64(u64),
    Bytes(Range<usize>),
    Fixed32(u32),
}

/// The fields of the message that lies in a range of the file.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    file: &'a [u8],
    range: Range<usize>,
}

impl<'a> Fields<'a> {
    /// `range` must lie in `file`.
    pub fn new(file: &'a [u8], range: Range<usize>) -> Self {
        Self { file, range }
    }

    fn take(&mut self, count: u64) -> Result<Range<usize>, String> {
        if count > self.range.len() as u64 {
            let (at, left) = (self.range.start, self.range.len());
            return Err(format!("wants {count} bytes at byte {at}, where {left} are left: truncated or damaged"));
        }
        let start = self.range.start;
        self.range.start += count as usize;
        Ok(start..self.range.start)
    }

    fn varint(&mut self) -> Result<u64, String> {
        let (value, len) = varint(&self.file[self.range.clone()])?;
        self.range.start += len;
        Ok(value)
    }

    fn field(&mut self) -> Result<(u32, Value), String> {
        let at = self.range.start;
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|&number| number > 0);
        let number = number.ok_or_else(|| format!("has no field at byte {at}: damaged or no protobuf"))?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => {
                let place = self.take(8)?;
                Value::Fixed64(self.file[place].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
            }
            2 => {
                let len = self.varint()?;
                Value::Bytes(self.take(len)?)
            }
            5 => {
                let place = self.take(4)?;
                Value::Fixed32(self.file[place].iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte)))
            }
            kind => return Err(format!("has a field of kind {kind} at byte {at}: damaged or no protobuf")),
        };
        Ok((number, value))
    }
}

impl Iterator for Fields<'_> {
    type Item = Result<(u32, Value), String>;

    /// The next field; nothing comes after a fault.
    fn next(&mut self) -> Option<Self::Item> {
        if self.range.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.range.start = self.range.end;
        }
        Some(field)
    }
}

/// The varint at the start of `bytes`, and its length.
fn varint(bytes: &[u8]) -> Result<(u64, usize), String> {
    let mut value = 0u64;
    for (at, &byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok((value, at + 1));
        }
    }
    Err("has a number that does not end: truncated or damaged".into())
}

/// The varints that `bytes` are.
pub(super) fn varints(mut bytes: &[u8]) -> impl Iterator<Item = Result<u64, String>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        match varint(bytes) {
            Ok((value, len)) => {
                bytes = &bytes[len..];
                Some(Ok(value))
            }
            Err(what) => {
                bytes = &[];
                Some(Err(what))
            }
        }
    })
}
