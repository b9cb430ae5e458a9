//! Zip archives, as far as containers of weights use them: the central directory, entries stored or deflated.
//!
//! ```text
//! local header + data, entry by entry · central directory · [zip64 record and locator] · end record
//! ```
//!
//! Everything is believed only from the central directory, and only after it was held against the file: an entry lies
//! before the directory and shares no byte with another, so that a small archive cannot stand for a large one. Checksums
//! are not compared. Specification: PKWARE APPNOTE 6.3.10.

use std::{collections::HashSet, ops::Range};

use miniz_oxide::inflate::{TINFLStatus, decompress_to_vec_with_limit};

use super::shown;
use crate::{Error, Result, Shard};

const LOCAL: &[u8] = b"PK\x03\x04";
const CENTRAL: &[u8] = b"PK\x01\x02";
const END: &[u8] = b"PK\x05\x06";
const END64: &[u8] = b"PK\x06\x06";
const LOCATOR64: &[u8] = b"PK\x06\x07";

/// The largest factor by which deflate can shrink (RFC 1951: a length of 258 in two bits or more).
const MOST_INFLATION: usize = 1032;

/// Bytes that all deflated entries together may unpack to: so many times the file, and so many more. Zeros shrink a
/// thousandfold, so that small archives of them may be honest; large ones are made to fill the memory.
const BUDGET: (usize, usize) = (64, 256 << 20);

/// How an entry's bytes stand in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// As they are.
    Stored,
    /// Deflated.
    Deflated,
}

/// One file of the archive.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its name, `/` between folders.
    pub name: String,
    /// How its bytes stand there.
    pub method: Method,
    /// Where they lie in the archive.
    pub range: Range<usize>,
    /// How many they are when unpacked.
    pub size: usize,
}

/// An archive whose directory has been checked.
#[derive(Debug)]
pub struct Archive {
    shard: Shard,
    entries: Vec<Entry>,
}

impl Archive {
    /// Reads the directory of `shard`.
    ///
    /// # Errors
    /// If the file is no zip archive, is cut, is split over several disks, is encrypted, uses another compression than
    /// deflate, or has entries that lie outside the file, in its directory or in each other, or share a name.
    pub fn read(shard: &Shard) -> Result<Self> {
        let entries =
            entries(shard.bytes()).map_err(|what| Error::file(shard.path(), format!("the zip archive {what}")))?;
        Ok(Self { shard: shard.clone(), entries })
    }

    /// Refuses an archive whose directory promises far more than the file justifies, before anything is unpacked.
    ///
    /// # Errors
    /// If the deflated entries claim more than 64 times the file and 256 MiB.
    pub fn expect_in_budget(&self) -> Result<()> {
        let length = self.shard.bytes().len();
        match beyond_budget(&self.entries, length) {
            Some(claimed) => {
                let what = format!(
                    "the zip archive of {length} bytes claims to unpack to {claimed}, more than weights do; if it is honest, save it uncompressed"
                );
                Err(Error::file(self.shard.path(), what))
            }
            None => Ok(()),
        }
    }

    /// Every file, in the order of the directory.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The file called `name`.
    pub fn find(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.name == name)
    }

    /// The bytes of `entry` as they stand in the archive, if they stand there as they are.
    pub fn stored(&self, entry: &Entry) -> Option<&[u8]> {
        (entry.method == Method::Stored).then(|| &self.shard.bytes()[entry.range.clone()])
    }

    /// The bytes of `entry`, unpacked into memory.
    ///
    /// # Errors
    /// If they do not unpack to exactly the size that the directory says.
    pub fn unpack(&self, entry: &Entry) -> Result<Vec<u8>> {
        let bytes = &self.shard.bytes()[entry.range.clone()];
        let refuse = |what: String| {
            let what = format!("the entry `{}` of the zip archive {what}: the file is damaged", shown(&entry.name));
            Error::file(self.shard.path(), what)
        };
        if entry.method == Method::Stored {
            return Ok(bytes.to_vec());
        }
        let unpacked = decompress_to_vec_with_limit(bytes, entry.size).map_err(|error| match error.status {
            TINFLStatus::HasMoreOutput => refuse(format!("unpacks to more than the {} bytes it claims", entry.size)),
            _ => refuse("is no valid deflate stream".to_owned()),
        })?;
        if unpacked.len() != entry.size {
            return Err(refuse(format!("unpacks to {} bytes where it claims {}", unpacked.len(), entry.size)));
        }
        Ok(unpacked)
    }
}

/// Whether `bytes` begin as a zip archive with files in it does.
pub fn recognise(bytes: &[u8]) -> bool {
    bytes.starts_with(LOCAL)
}

/// The bytes that deflated entries unpack to, if they are more than an archive of `length` bytes may hold.
fn beyond_budget(entries: &[Entry], length: usize) -> Option<usize> {
    let deflated = entries.iter().filter(|entry| entry.method == Method::Deflated);
    let claimed = deflated.fold(0usize, |sum, entry| sum.saturating_add(entry.size));
    (claimed > length.saturating_mul(BUDGET.0).saturating_add(BUDGET.1)).then_some(claimed)
}

/// A little-endian number of `N` bytes at `at`.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let part = bytes.get(at..at.checked_add(N)?)?;
    Some(part.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}

fn size(value: u64) -> Result<usize, String> {
    usize::try_from(value).map_err(|_| format!("states a size of {value} bytes; it is damaged"))
}

/// Where the directory lies and how many entries it has.
fn directory(bytes: &[u8]) -> Result<(Range<usize>, usize), String> {
    const LONGEST_COMMENT: usize = 0xffff;
    let cut = || "has no end record: the file is truncated, fetch it again".to_owned();
    let from = bytes.len().saturating_sub(22 + LONGEST_COMMENT);
    let tail = &bytes[from..];
    let end = (0..tail.len().saturating_sub(21))
        .rev()
        .find(|&at| tail[at..].starts_with(END) && number::<2>(tail, at + 20) == Some((tail.len() - at - 22) as u64))
        .ok_or_else(cut)?
        + from;
    let field =
        |at: Option<u64>, name: &str| at.ok_or_else(|| format!("has no {name} in its end record; it is damaged"));
    let mut disks = field(number::<4>(bytes, end + 4), "disk number")?;
    let mut count = field(number::<2>(bytes, end + 10), "number of entries")?;
    let mut length = field(number::<4>(bytes, end + 12), "directory size")?;
    let mut start = field(number::<4>(bytes, end + 16), "directory offset")?;
    if count == 0xffff || length == 0xffff_ffff || start == 0xffff_ffff {
        // The true numbers stand in the zip64 record, if there is one.
        if let Some(locator) = end.checked_sub(20).filter(|&at| bytes[at..].starts_with(LOCATOR64)) {
            let record = size(number::<8>(bytes, locator + 8).ok_or_else(cut)?)?;
            let Some(record) = bytes.get(record..locator).filter(|record| record.starts_with(END64)) else {
                return Err("has no zip64 record where its locator points; it is damaged".into());
            };
            let field = |at| number::<8>(record, at).ok_or("has a zip64 record that is cut; it is damaged");
            disks = number::<8>(record, 16).ok_or("has a zip64 record that is cut; it is damaged")?;
            (count, length, start) = (field(32)?, field(40)?, field(48)?);
        }
    }
    if disks != 0 {
        return Err("is one part of several; join them first".into());
    }
    let (start, length) = (size(start)?, size(length)?);
    let range = start..start.checked_add(length).filter(|&stop| stop <= end).ok_or_else(|| {
        format!(
            "says that its directory is {length} bytes at {start}, which do not lie in the file: truncated or damaged"
        )
    })?;
    if count > (length / 46) as u64 {
        return Err(format!("claims {count} entries in a directory of {length} bytes; it is damaged"));
    }
    Ok((range, count as usize))
}

fn entries(bytes: &[u8]) -> Result<Vec<Entry>, String> {
    let (directory, count) = directory(bytes)?;
    let data_end = directory.start;
    let directory = &bytes[directory];
    let mut entries = Vec::with_capacity(count);
    let mut names = HashSet::with_capacity(count);
    let mut at = 0;
    for number in 0..count {
        let Some(header) = directory.get(at..).filter(|header| header.starts_with(CENTRAL) && header.len() >= 46)
        else {
            return Err(format!("has no entry {number} where its directory should; it is damaged"));
        };
        let (entry, length) =
            entry(bytes, header, data_end).map_err(|what| format!("has an entry {number} that {what}"))?;
        if !names.insert(entry.name.clone()) {
            return Err(format!("has the entry `{}` twice; it is damaged or made to deceive", shown(&entry.name)));
        }
        at += length;
        entries.push(entry);
    }
    let mut places: Vec<&Entry> = entries.iter().filter(|entry| !entry.range.is_empty()).collect();
    places.sort_by_key(|entry| entry.range.start);
    if let Some([a, b]) = places.windows(2).find(|pair| pair[1].range.start < pair[0].range.end) {
        let (a, b) = (shown(&a.name), shown(&b.name));
        return Err(format!("has entries `{a}` and `{b}` that share bytes; it is damaged or made to deceive"));
    }
    Ok(entries)
}

/// The entry whose directory header begins at `header`, and that header's length.
fn entry(bytes: &[u8], header: &[u8], data_end: usize) -> Result<(Entry, usize), String> {
    let two = |at| number::<2>(header, at).unwrap_or(0) as usize; // all within the 46 bytes that are there
    let four = |at| number::<4>(header, at).unwrap_or(0);
    let (flags, method) = (two(8), two(10));
    let (mut packed, mut unpacked, mut offset) = (four(20), four(24), four(42));
    let (name_length, extra_length, comment_length) = (two(28), two(30), two(32));
    let length = 46 + name_length + extra_length + comment_length;
    let cut = || "is cut off; the file is damaged".to_owned();
    let name = header.get(46..46 + name_length).ok_or_else(cut)?;
    let name = std::str::from_utf8(name).map_err(|_| "has a name that is not UTF-8; the file is damaged")?.to_owned();
    let mut extra = header.get(46 + name_length..length - comment_length).ok_or_else(cut)?;
    // The zip64 field holds those of the three numbers that did not fit, in this order.
    while let (Some(id), Some(field_length)) = (number::<2>(extra, 0), number::<2>(extra, 2)) {
        let field = extra.get(4..4 + field_length as usize).ok_or_else(cut)?;
        if id == 1 {
            let mut at = 0;
            for value in [&mut unpacked, &mut packed, &mut offset] {
                if *value == 0xffff_ffff {
                    *value = number::<8>(field, at).ok_or_else(cut)?;
                    at += 8;
                }
            }
        }
        extra = &extra[4 + field.len()..];
    }
    let name_for_messages = shown(&name);
    if flags & 1 != 0 {
        return Err(format!("is encrypted (`{name_for_messages}`); unpack the archive first"));
    }
    let method = match method {
        0 => Method::Stored,
        8 => Method::Deflated,
        other => {
            return Err(format!("uses compression method {other} (`{name_for_messages}`); only deflate is read"));
        }
    };
    let (packed, unpacked, offset) = (size(packed)?, size(unpacked)?, size(offset)?);
    if method == Method::Stored && packed != unpacked {
        return Err(format!(
            "is stored in {packed} bytes and claims {unpacked} (`{name_for_messages}`); it is damaged"
        ));
    }
    if unpacked > packed.saturating_mul(MOST_INFLATION) {
        return Err(format!(
            "claims to unpack from {packed} to {unpacked} bytes (`{name_for_messages}`), more than deflate can; it is damaged"
        ));
    }
    let local = bytes.get(offset..data_end).filter(|local| local.starts_with(LOCAL) && local.len() >= 30);
    let Some(local) = local else {
        return Err(format!("begins at byte {offset} (`{name_for_messages}`), where no entry is; the file is damaged"));
    };
    let local_length = 30 + number::<2>(local, 26).unwrap_or(0) as usize + number::<2>(local, 28).unwrap_or(0) as usize;
    let start = offset + local_length; // both far below 2^63
    let end = start.checked_add(packed).filter(|&end| end <= data_end).ok_or_else(|| {
        format!("takes {packed} bytes from byte {start} (`{name_for_messages}`), beyond the archive's data; it is truncated or damaged")
    })?;
    Ok((Entry { name, method, range: start..end, size: unpacked }, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_archive_unpacks_to_is_justified_by_its_size() {
        let entry = |method, size| Entry { name: "a.npy".into(), method, range: 0..1, size };
        // 200 MiB of zeros in 200 KiB.
        assert_eq!(beyond_budget(&[entry(Method::Deflated, 200 << 20)], 200 << 10), None);
        assert_eq!(beyond_budget(&[entry(Method::Stored, 1 << 40)], 1 << 40), None);
        let bomb = vec![entry(Method::Deflated, 200 << 20); 10];
        assert_eq!(beyond_budget(&bomb, 2 << 20), Some(2000 << 20));
        assert_eq!(beyond_budget(&bomb, 100 << 20), None);
        let endless = vec![entry(Method::Deflated, usize::MAX); 2];
        assert_eq!(beyond_budget(&endless, 1 << 20), Some(usize::MAX));
    }
}
