//! Files that `torch.save` and TorchScript wrote: a pickle that says how tensors are made from storages, and the
//! storages.
//!
//! ```text
//! zip (since torch 1.6)   NAME/data.pkl · NAME/data/KEY, one file a storage · NAME/byteorder
//! before                  magic number · protocol · system · the pickle · list of keys · (length i64 · bytes) a storage
//! ```
//!
//! The pickle is read by a machine of our own that calls nothing (the module `pickle`). Dictionaries, lists and the
//! objects of TorchScript are walked, and a tensor is called by its way through them, dots between: a training
//! checkpoint has `optimizer.state.0.exp_avg`. One dictionary is looked through: the one that holds the model's tensors
//! where training loops keep them (`state_dict`, `model`, …); metadata say which. Where several tensors share one
//! storage, each is a view of the same bytes of the file; a tensor whose elements do not lie rows first is gathered into
//! memory.

use std::collections::HashMap;

use super::{Contents, Metadata, elements, gather, row_strides, shown, zip::Archive};
use crate::{Dtype, Error, Result, Shard, TensorView, error::Problems};

mod callable;
mod calls;
mod legacy;
mod names;
mod pickle;
mod value;

use value::{Built, Node, Storage, Tensor, Value};

/// Where the bytes of a storage lie.
#[derive(Debug, Clone)]
struct Place {
    shard: Shard,
    range: std::ops::Range<usize>,
}

/// Whether the file is a zip archive with one `data.pkl`, or begins with the magic number of the older form.
pub fn recognise(shard: &Shard) -> bool {
    let bytes = shard.bytes();
    legacy::recognise(bytes)
        || super::zip::recognise(bytes) && Archive::read(shard).is_ok_and(|archive| prefix(&archive).is_some())
}

/// Reads either form.
///
/// # Errors
/// [`Error::File`] if the archive or the pickle is damaged, or if the pickle asks for any callable or instruction that a
/// tensor does not need: the message names it, and nothing was run. [`Error::Malformed`] with every tensor whose storage
/// is missing or too short, or whose type is not read.
pub fn read(shard: &Shard) -> Result<Contents> {
    if super::zip::recognise(shard.bytes()) { read_zip(shard) } else { legacy::read(shard) }
}

/// What stands before `data.pkl` in the names of the archive: one folder at most.
fn prefix(archive: &Archive) -> Option<&str> {
    let prefixes = archive.entries().iter().filter_map(|entry| entry.name.strip_suffix("data.pkl"));
    let mut prefixes = prefixes.filter(|prefix| prefix.is_empty() || prefix.find('/') == Some(prefix.len() - 1));
    prefixes.next().filter(|_| prefixes.next().is_none())
}

fn read_zip(shard: &Shard) -> Result<Contents> {
    let refuse = |what: String| Error::file(shard.path(), what);
    let archive = Archive::read(shard)?;
    archive.expect_in_budget()?;
    let prefix = prefix(&archive)
        .ok_or_else(|| refuse("the zip archive holds no PyTorch pickle (`data.pkl`), or several".into()))?;
    let file = |name: &str| archive.find(&format!("{prefix}{name}"));
    if let Some(order) = file("byteorder")
        && order.size < 100
        && archive.unpack(order)?.starts_with(b"big")
    {
        return Err(refuse(
            "the file was written on a big-endian machine; save it again on a little-endian one".into(),
        ));
    }
    let script = file("constants.pkl").is_some();
    let program = file("data.pkl").ok_or_else(|| refuse("the zip archive has lost its `data.pkl`".into()))?;
    if program.size > pickle::MAX_PROGRAM {
        return Err(refuse(format!("the pickle takes {} bytes, more than any checkpoint needs", program.size)));
    }
    let unpacked;
    let program = match archive.stored(program) {
        Some(bytes) => bytes,
        None => {
            unpacked = archive.unpack(program)?;
            &unpacked
        }
    };
    let built = pickle::run(program).map_err(refuse)?;

    let folder = format!("{prefix}data/");
    let files: HashMap<&str, &super::zip::Entry> =
        archive.entries().iter().filter_map(|entry| Some((entry.name.strip_prefix(&folder)?, entry))).collect();
    let mut unpacked: HashMap<&str, Place> = HashMap::new();
    let mut find = |key: &str, promised: Option<usize>| -> Result<Option<Place>> {
        let Some((&key, entry)) = files.get_key_value(key) else { return Ok(None) };
        if archive.stored(entry).is_some() {
            return Ok(Some(Place { shard: shard.clone(), range: entry.range.clone() }));
        }
        if let Some(place) = unpacked.get(key) {
            return Ok(Some(place.clone()));
        }
        if promised != Some(entry.size) {
            return Err(refuse(format!(
                "the storage `{}` has {} bytes where the pickle promises {}: truncated or damaged",
                shown(key),
                entry.size,
                promised.map_or("a number that is none".into(), |promised| promised.to_string())
            )));
        }
        let place = Place { shard: Shard::from_bytes(shard.path(), archive.unpack(entry)?), range: 0..entry.size };
        unpacked.insert(key, place.clone());
        Ok(Some(place))
    };
    contents(shard, &built, if script { "TorchScript" } else { "PyTorch" }, &mut find)
}

/// Finds a storage by its name and, where its record says so, the bytes it has to have.
type Finder<'a> = dyn FnMut(&str, Option<usize>) -> Result<Option<Place>> + 'a;

/// Names the tensors of `built` and finds their bytes by `find`, which knows where a storage lies that should have so many bytes.
fn contents(shard: &Shard, built: &Built<'_>, container: &str, find: &mut Finder<'_>) -> Result<Contents> {
    let named = names::name(built).map_err(|what| Error::file(shard.path(), what))?;
    let mut metadata: Metadata = named.metadata;
    metadata.insert("container".into(), container.into());
    let mut problems = Problems::default();
    // What is gathered is justified by the file: twice its size is more than any honest file needs.
    let mut budget = shard.bytes().len().saturating_mul(2).saturating_add(1 << 20);
    let mut tensors = Vec::with_capacity(named.tensors.len());
    for (name, tensor) in named.tensors {
        match view(shard, built, &name, tensor, find, &mut budget) {
            Ok(view) => tensors.push(view),
            Err(Error::Tensor { file, tensor, what }) => problems.push(&file, Some(&tensor), what),
            Err(error) => return Err(error),
        }
        if problems.is_full() {
            break;
        }
    }
    problems.or(Contents { tensors, metadata, ..Contents::default() })
}

/// What the elements of torch's type `name` are here.
fn dtype(name: &str) -> Option<Dtype> {
    Some(match name {
        "float64" => Dtype::F64,
        "float32" => Dtype::F32,
        "float16" => Dtype::F16,
        "bfloat16" => Dtype::Bf16,
        "int64" => Dtype::I64,
        "int32" => Dtype::I32,
        "int16" => Dtype::I16,
        "int8" => Dtype::I8,
        "uint64" => Dtype::U64,
        "uint32" => Dtype::U32,
        "uint16" => Dtype::U16,
        "uint8" => Dtype::U8,
        "bool" => Dtype::Bool,
        "complex64" => Dtype::C64,
        "float8_e4m3fn" => Dtype::F8E4M3,
        "float8_e5m2" => Dtype::F8E5M2,
        "float8_e4m3fnuz" => Dtype::F8E4M3Fnuz,
        "float8_e5m2fnuz" => Dtype::F8E5M2Fnuz,
        "float8_e8m0fnu" => Dtype::F8E8M0,
        "float4_e2m1fn_x2" => Dtype::F4,
        _ => return None,
    })
}

fn view(
    shard: &Shard,
    built: &Built<'_>,
    name: &str,
    tensor: Tensor,
    find: &mut Finder<'_>,
    budget: &mut usize,
) -> Result<TensorView> {
    let refuse = |what: String| Error::tensor(shard.path(), name, what);
    let Some(Node::Storage(storage)) = built.node(Value::Node(tensor.storage)) else {
        return Err(refuse("has no storage: the file is damaged".into()));
    };
    let stored = tensor.dtype.name();
    let dtype =
        dtype(stored).ok_or_else(|| refuse(format!("has type `{stored}`, which is not read; cast it first")))?;
    // A pair of packed elements is one element to torch.
    let size = if dtype == Dtype::F4 { 1 } else { dtype.block().1 };
    let numbers = |node: u32| -> Option<Vec<usize>> {
        let number = |value: &Value| if let Value::Int(value) = value { usize::try_from(*value).ok() } else { None };
        // torch has at most 64 dimensions
        built.items(Value::Node(node)).filter(|items| items.len() <= 64)?.iter().map(number).collect()
    };
    let (Some(mut shape), Some(strides)) = (numbers(tensor.size), numbers(tensor.strides)) else {
        return Err(refuse("has a shape or strides that are no whole numbers: the file is damaged".into()));
    };
    if shape.len() != strides.len() {
        return Err(refuse(format!(
            "has {} dimensions and {} strides: the file is damaged",
            shape.len(),
            strides.len()
        )));
    }
    let key = built.text(storage.key);
    let promised = bytes(storage);
    let place = find(key, promised)?
        .ok_or_else(|| refuse(format!("lies in storage `{}`, which the file does not hold", shown(key))))?;
    if promised.is_none_or(|promised| promised > place.range.len()) {
        let what = format!(
            "lies in storage `{}`, which should have {} elements and has {} bytes: truncated or damaged",
            shown(key),
            storage.len,
            place.range.len()
        );
        return Err(refuse(what));
    }
    let storage_bytes = &place.shard.bytes()[place.range.clone()];
    let beyond = || {
        format!(
            "has shape {shape:?} with strides {strides:?} from element {}, beyond the {} bytes of its storage: the file is damaged",
            tensor.offset,
            storage_bytes.len()
        )
    };
    let count = elements(&shape).ok_or_else(|| refuse(beyond()))?;
    let offset = usize::try_from(tensor.offset).map_err(|_| refuse(beyond()))?;
    let rows_first = row_strides(&shape);
    let in_order = shape.iter().zip(&strides).zip(&rows_first).all(|((&dim, a), b)| dim == 1 || a == b);
    if count == 0 || in_order {
        let start = if count == 0 { Some(0) } else { offset.checked_mul(size) };
        let end = start.and_then(|start| start.checked_add(count.checked_mul(size)?));
        if end.is_none_or(|end| end > storage_bytes.len()) {
            return Err(refuse(beyond()));
        }
        let start = place.range.start + start.unwrap_or(0);
        double_packed(dtype, &mut shape);
        return TensorView::new(&place.shard, name, dtype, shape, start);
    }
    let needed = count.saturating_mul(size);
    if needed > *budget {
        let what = format!(
            "has shape {shape:?} with strides {strides:?}, {needed} bytes when written out, more than the file justifies; save it after `.contiguous()`"
        );
        return Err(refuse(what));
    }
    *budget -= needed;
    let bytes = gather(storage_bytes, size, offset, &shape, &strides).ok_or_else(|| refuse(beyond()))?;
    double_packed(dtype, &mut shape);
    TensorView::owned(shard, name, dtype, shape, bytes)
}

/// The shape in elements of a tensor whose elements torch counts in pairs.
fn double_packed(dtype: Dtype, shape: &mut [usize]) {
    if dtype == Dtype::F4
        && let Some(last) = shape.last_mut()
    {
        *last = last.saturating_mul(2);
    }
}

/// How many bytes a storage has, or `None` if it is of an unknown type or the number is beyond the computer.
fn bytes(storage: &Storage) -> Option<usize> {
    let size = match storage.dtype.map(|stored| stored.name()) {
        None => 1,
        Some("complex128") => 16,
        Some(stored) => dtype(stored)?.block().1,
    };
    usize::try_from(storage.len).ok()?.checked_mul(size)
}
