//! HDF5 as Keras writes it: a tree of groups, with the arrays in one piece each.
//!
//! ```text
//! superblock (version 0 or 1) ─► root group: B-tree of names ─► symbol nodes ─► object headers
//! object header (version 1): messages, among them dataspace (shape), datatype, data layout, or another group's B-tree
//! ```
//!
//! Of the format's many forms this reads the one that `h5py` writes by default, and refuses the others by their names:
//! newer superblocks and object headers, chunked or compressed arrays, compound types. An array is a slice of the file,
//! called by its path. Attributes, links to other files and texts are passed over. Specification: "HDF5 File Format
//! Specification", version 3.0, sections II, III and IV.

use std::{cell::Cell, collections::HashSet};

use super::{Contents, shown};
use crate::{Dtype, Error, Result, Shard, TensorView, error::Problems};

const MAGIC: &[u8] = b"\x89HDF\r\n\x1a\n";

/// "There is no such thing" among addresses.
const UNDEFINED: u64 = u64::MAX;

/// Deeper trees are refused; Keras nests four groups.
const MAX_DEPTH: usize = 64;

/// Longer names are refused.
const MAX_NAME: usize = 4096;

/// Messages of object headers.
const DATASPACE: u16 = 0x0001;
const DATATYPE: u16 = 0x0003;
const LAYOUT: u16 = 0x0008;
const CONTINUATION: u16 = 0x0010;
const SYMBOL_TABLE: u16 = 0x0011;

/// Whether the file begins with HDF5's signature.
pub fn recognise(shard: &Shard) -> bool {
    shard.bytes().starts_with(MAGIC)
}

/// Reads the arrays of numbers of the file; the metadata key `left_out` names those of texts and structures.
///
/// # Errors
/// If the file is of a form that is not read, or damaged: every array at fault is named.
pub fn read(shard: &Shard) -> Result<Contents> {
    let budget = Cell::new(shard.bytes().len() / 8);
    let file = File { bytes: shard.bytes(), budget: &budget };
    let (tree, heap) = file.root().map_err(|what| Error::file(shard.path(), what))?;
    let mut walk = Walk {
        file,
        shard,
        seen: HashSet::new(),
        problems: Problems::default(),
        left_out: Vec::new(),
        found: Vec::new(),
    };
    walk.group(tree, heap, "", 0);
    let Walk { problems, left_out, found, .. } = walk;
    let mut contents = problems.or(Contents { tensors: found, ..Contents::default() })?;
    contents.metadata.insert("container".into(), "HDF5".into());
    if !left_out.is_empty() {
        contents.metadata.insert("left_out".into(), left_out.join("; "));
    }
    if contents.tensors.is_empty() {
        return Err(Error::file(shard.path(), "the HDF5 file holds no arrays of numbers; name one that does"));
    }
    Ok(contents)
}

/// The bytes, and how numbers are taken from them.
#[derive(Clone, Copy)]
struct File<'a> {
    bytes: &'a [u8],
    /// Messages that may still be read: a file has at most one in eight bytes, so more are headers read again and again.
    budget: &'a Cell<usize>,
}

impl<'a> File<'a> {
    fn at(self, address: u64, len: usize) -> Result<&'a [u8], String> {
        let start = usize::try_from(address).ok();
        let part = start.and_then(|start| self.bytes.get(start..start.checked_add(len)?));
        part.ok_or_else(|| {
            format!("the file has no {len} bytes at byte {address}: truncated or damaged, fetch it again")
        })
    }

    fn number(self, address: u64, len: usize) -> Result<u64, String> {
        Ok(self.at(address, len)?.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    fn expect(self, address: u64, signature: &[u8]) -> Result<(), String> {
        if self.at(address, signature.len())? == signature {
            return Ok(());
        }
        let name = String::from_utf8_lossy(signature);
        Err(format!("expected `{name}` at byte {address}, found something else: the file is damaged, fetch it again"))
    }

    /// B-tree and heap of the root group.
    fn root(self) -> Result<(u64, u64), String> {
        let version = self.number(8, 1)?;
        // Version 1 has four bytes more before the addresses.
        let shift = match version {
            0 => 0,
            1 => 4,
            other => {
                return Err(format!(
                    "the HDF5 file has a superblock of version {other}, read are 0 and 1; write it again with h5py's \
                     defaults (libver='earliest'), or save the weights as safetensors"
                ));
            }
        };
        let (offsets, lengths) = (self.number(13, 1)?, self.number(14, 1)?);
        if (offsets, lengths) != (8, 8) {
            return Err(format!(
                "the HDF5 file has addresses of {offsets} and sizes of {lengths} bytes, read are 8 and 8"
            ));
        }
        let base = self.number(24 + shift, 8)?;
        if base != 0 {
            return Err(format!("the HDF5 file begins at byte {base} of its addresses, expected 0"));
        }
        let header = self.number(64 + shift, 8)?;
        match self.object(header)? {
            Object { table: Some(table), .. } => Ok(table),
            _ => Err("the HDF5 file's root is no group: damaged, fetch it again".into()),
        }
    }

    /// What the object header at `address` says.
    fn object(self, address: u64) -> Result<Object, String> {
        let version = self.number(address, 1)?;
        if version != 1 {
            return Err(
                "has an object header of a newer HDF5 form, which is not read; save the weights as safetensors".into(),
            );
        }
        let count = self.number(address + 2, 2)?;
        let size = self.number(address + 8, 4)?;
        // Blocks of messages: the header's own, and those it continues in.
        let mut blocks = vec![(address.saturating_add(16), size)];
        let (mut object, mut read, mut next) = (Object::default(), 0, 0);
        while let Some(&(start, size)) = blocks.get(next) {
            next += 1;
            let block = self.at(start, usize::try_from(size).map_err(|_| "has an endless object header")?)?;
            let mut at = 0;
            while at + 8 <= block.len() && read < count {
                let left = self.budget.get().checked_sub(1);
                self.budget.set(left.ok_or("is one of objects that share their headers: damaged or made to deceive")?);
                let kind = u16::from_le_bytes([block[at], block[at + 1]]);
                let size = usize::from(u16::from_le_bytes([block[at + 2], block[at + 3]]));
                let data = start + at as u64 + 8;
                if at + 8 + size > block.len() {
                    return Err(
                        "has a message that reaches beyond its object header: damaged, fetch the file again".into()
                    );
                }
                match kind {
                    DATASPACE => object.shape = Some(self.dataspace(data, size)?),
                    DATATYPE => object.dtype = Some(self.datatype(data)?),
                    LAYOUT => object.layout = Some(self.layout(data)?),
                    SYMBOL_TABLE => object.table = Some((self.number(data, 8)?, self.number(data + 8, 8)?)),
                    // A header lists each of its blocks once, and each holds at least one message.
                    CONTINUATION if (blocks.len() as u64) <= count => {
                        blocks.push((self.number(data, 8)?, self.number(data + 8, 8)?));
                    }
                    CONTINUATION => return Err("has an object header that goes round in circles: damaged".into()),
                    _ => {}
                }
                at += 8 + size;
                read += 1;
            }
        }
        Ok(object)
    }

    fn dataspace(self, at: u64, size: usize) -> Result<Vec<usize>, String> {
        let (version, rank) = (self.number(at, 1)?, self.number(at + 1, 1)?);
        let first = match version {
            1 => 8,
            2 => 4,
            other => return Err(format!("has a dataspace of version {other}, read are 1 and 2")),
        };
        if first + 8 * rank as usize > size {
            return Err(format!("has {rank} dimensions in a message of {size} bytes: damaged, fetch the file again"));
        }
        let dimension = |index: u64| {
            let size = self.number(at + first as u64 + 8 * index, 8)?;
            usize::try_from(size).map_err(|_| format!("has a dimension of {size}, which this machine cannot address"))
        };
        (0..rank).map(dimension).collect()
    }

    /// The element type; `None` for what is no plain number.
    fn datatype(self, at: u64) -> Result<Option<Dtype>, String> {
        let class = self.number(at, 1)? & 15;
        let (bits, size) = (self.number(at + 1, 1)?, self.number(at + 4, 4)?);
        let (big_endian, signed) = (bits & 1 == 1, bits & 8 != 0);
        if big_endian && class <= 1 && size > 1 {
            return Err("has big-endian numbers, which are not read here; save the weights as safetensors".into());
        }
        Ok(match (class, size, signed) {
            (1, 8, _) => Some(Dtype::F64),
            (1, 4, _) => Some(Dtype::F32),
            (1, 2, _) => Some(Dtype::F16),
            (0, 8, true) => Some(Dtype::I64),
            (0, 4, true) => Some(Dtype::I32),
            (0, 2, true) => Some(Dtype::I16),
            (0, 1, true) => Some(Dtype::I8),
            (0, 8, false) => Some(Dtype::U64),
            (0, 4, false) => Some(Dtype::U32),
            (0, 2, false) => Some(Dtype::U16),
            (0, 1, false) => Some(Dtype::U8),
            _ => None,
        })
    }

    fn layout(self, at: u64) -> Result<Layout, String> {
        let version = self.number(at, 1)?;
        if !(3..=4).contains(&version) {
            return Err(format!("has a data layout of version {version}, read are 3 and 4"));
        }
        Ok(match self.number(at + 1, 1)? {
            0 => Layout::Piece { start: at + 4, len: self.number(at + 2, 2)? },
            1 => Layout::Piece { start: self.number(at + 2, 8)?, len: self.number(at + 10, 8)? },
            _ => Layout::Chunked,
        })
    }

    /// The name at `offset` of the local heap at `heap`.
    fn name(self, heap: u64, offset: u64) -> Result<&'a str, String> {
        self.expect(heap, b"HEAP")?;
        let (len, data) = (self.number(heap + 8, 8)?, self.number(heap + 24, 8)?);
        let rest = usize::try_from(len.saturating_sub(offset)).unwrap_or(0).min(MAX_NAME);
        let bytes = self.at(data.checked_add(offset).ok_or("has a name outside the file")?, rest)?;
        let end = bytes.iter().position(|&byte| byte == 0);
        let end = end.ok_or_else(|| format!("has a name that does not end at byte {data} + {offset}: damaged"))?;
        std::str::from_utf8(&bytes[..end])
            .map_err(|_| format!("has a name at byte {data} + {offset} that is not UTF-8"))
    }
}

/// What an object header tells.
#[derive(Default)]
struct Object {
    shape: Option<Vec<usize>>,
    /// Known, but `None` inside for what is no plain number.
    dtype: Option<Option<Dtype>>,
    layout: Option<Layout>,
    /// B-tree and heap of a group.
    table: Option<(u64, u64)>,
}

/// Where an array's bytes lie.
#[derive(Clone, Copy)]
enum Layout {
    Piece { start: u64, len: u64 },
    Chunked,
}

/// The way through the groups.
struct Walk<'a> {
    file: File<'a>,
    shard: &'a Shard,
    /// Addresses of nodes that were read: a tree that holds itself ends here.
    seen: HashSet<u64>,
    problems: Problems,
    left_out: Vec<String>,
    found: Vec<TensorView>,
}

impl Walk<'_> {
    fn group(&mut self, node: u64, heap: u64, path: &str, depth: usize) {
        if let Err(what) = self.nodes(node, heap, path, depth) {
            let path = if path.is_empty() { "/" } else { path };
            self.problems.push(self.shard.path(), Some(&shown(path)), what);
        }
    }

    /// A node of a group's B-tree, and all below it.
    fn nodes(&mut self, node: u64, heap: u64, path: &str, depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err(format!("is a group within more than {MAX_DEPTH} others: damaged or made to deceive"));
        }
        if node == UNDEFINED {
            return Ok(()); // an empty group
        }
        if !self.seen.insert(node) {
            return Err(format!("is a group whose tree meets byte {node} twice: damaged or made to deceive"));
        }
        let file = self.file;
        file.expect(node, b"TREE")?;
        let (level, entries) = (file.number(node + 5, 1)?, file.number(node + 6, 2)?);
        for entry in 0..entries {
            // Keys and children take turns: key 0, child 0, key 1 …
            let child = file.number(node + 24 + 16 * entry + 8, 8)?;
            match level {
                0 => self.symbols(child, heap, path, depth)?,
                _ => self.nodes(child, heap, path, depth + 1)?,
            }
        }
        Ok(())
    }

    /// A leaf of the tree: names, and the headers of what they name.
    fn symbols(&mut self, node: u64, heap: u64, path: &str, depth: usize) -> Result<(), String> {
        if !self.seen.insert(node) {
            return Err(format!("is a group whose tree meets byte {node} twice: damaged or made to deceive"));
        }
        self.file.expect(node, b"SNOD")?;
        for symbol in 0..self.file.number(node + 6, 2)? {
            if self.problems.is_full() {
                return Ok(());
            }
            let entry = node + 8 + 40 * symbol;
            let name = self.file.name(heap, self.file.number(entry, 8)?)?;
            let path = if path.is_empty() { name.to_string() } else { format!("{path}/{name}") };
            if path.len() > MAX_NAME {
                return Err(format!("has paths of more than {MAX_NAME} bytes: damaged or made to deceive"));
            }
            let header = self.file.number(entry + 8, 8)?;
            if header == UNDEFINED {
                continue; // a soft link: it only gives a second name
            }
            match self.file.object(header) {
                Ok(Object { table: Some((tree, heap)), .. }) => self.group(tree, heap, &path, depth + 1),
                Ok(object) => self.array(object, &path),
                Err(what) => self.problems.push(self.shard.path(), Some(&shown(&path)), what),
            }
        }
        Ok(())
    }

    fn array(&mut self, object: Object, path: &str) {
        let Object { shape: Some(shape), dtype: Some(dtype), layout: Some(layout), .. } = object else {
            return; // a named type, or another object without data
        };
        let placed = match (dtype, layout) {
            (None, _) => return self.left_out.push(format!("`{}` is no array of plain numbers", shown(path))),
            (_, Layout::Chunked) => Err(
                "is stored in chunks, which are not read; write it without chunks or compression, or save the weights \
                     as safetensors"
                    .to_string(),
            ),
            (Some(dtype), Layout::Piece { start, len }) => {
                let bytes = super::elements(&shape).and_then(|elements| dtype.bytes(elements));
                match bytes {
                    // Nothing was written yet, or there is nothing to write.
                    Some(0) => TensorView::place(self.shard, path, dtype, shape, 0),
                    Some(_) if start == UNDEFINED => Err("was never written".to_string()),
                    Some(bytes) if bytes as u64 > len => {
                        Err(format!("has shape {shape:?}, which as {dtype} takes {bytes} bytes, but {len} are stored"))
                    }
                    _ => match usize::try_from(start) {
                        Ok(start) => TensorView::place(self.shard, path, dtype, shape, start),
                        Err(_) => Err(format!("lies at byte {start}, outside the file")),
                    },
                }
            }
        };
        match placed {
            Ok(view) => self.found.push(view),
            Err(what) => self.problems.push(self.shard.path(), Some(&shown(path)), what),
        }
    }
}
