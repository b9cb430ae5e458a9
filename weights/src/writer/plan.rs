//! Which tensor goes where: shards, headers and byte positions, all known before the first byte is written.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use serde_json::{Value, json};

use super::{TensorSpec, WriterOptions};
use crate::{
    Error, Result, digest,
    error::Problems,
    format::{self, Metadata, safetensors},
};

/// The place of one tensor.
#[derive(Debug)]
pub(super) struct Place {
    pub name: String,
    /// Which shard.
    pub shard: usize,
    /// Its first byte, counted from the start of the shard's file.
    pub start: u64,
    /// Its bytes.
    pub len: u64,
}

/// One file to be.
#[derive(Debug)]
pub(super) struct ShardPlan {
    pub name: String,
    /// Length field and padded JSON.
    pub header: Vec<u8>,
    /// Bytes of the whole file.
    pub len: u64,
}

#[derive(Debug)]
pub(super) struct Plan {
    /// In the order the caller gave them.
    pub places: Vec<Place>,
    pub by_name: HashMap<String, usize>,
    pub shards: Vec<ShardPlan>,
    /// The text of `model.safetensors.index.json`, if there are several shards.
    pub index: Option<String>,
}

impl Plan {
    /// Bytes of all shards.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.len).sum()
    }

    /// One hash of everything that decides where bytes go.
    pub fn fingerprint(&self) -> String {
        let shards: Vec<String> =
            self.shards.iter().map(|shard| format!("{} {}", shard.name, digest::sha256(&shard.header))).collect();
        digest::sha256(shards.join("\n").as_bytes())
    }

    /// Lays out `tensors` in their order; a new shard begins where one would exceed `max_shard_bytes` of tensor data.
    pub fn new(out: &Path, tensors: &[TensorSpec], options: &WriterOptions) -> Result<Self> {
        let sizes = sizes(out, tensors)?;
        let shards = split(&sizes, options.max_shard_bytes);
        let count = shards.len();
        let mut metadata = options.metadata.clone();
        metadata.entry("format".into()).or_insert("pt".into()); // transformers refuses files without it

        let mut plan = Self { places: Vec::new(), by_name: HashMap::new(), shards: Vec::new(), index: None };
        plan.places.extend(tensors.iter().zip(&sizes).map(|(t, &len)| Place {
            name: t.name.clone(),
            shard: 0,
            start: 0,
            len,
        }));
        plan.by_name.extend(tensors.iter().enumerate().map(|(index, tensor)| (tensor.name.clone(), index)));
        for (number, members) in shards.into_iter().enumerate() {
            let members = aligned_order(members, tensors, &sizes);
            let (header, data) = header(out, &members, tensors, &sizes, &metadata)?;
            let mut position = header.len() as u64;
            for &index in &members {
                plan.places[index].shard = number;
                plan.places[index].start = position;
                position += sizes[index]; // no overflow: `sizes` checked the sum
            }
            let name = match count {
                1 => format!("{}.safetensors", options.stem),
                _ => format!("{}-{:05}-of-{count:05}.safetensors", options.stem, number + 1),
            };
            plan.shards.push(ShardPlan { name, len: header.len() as u64 + data, header });
        }
        if count > 1 {
            plan.index = Some(plan.index_text(sizes.iter().sum()));
        }
        Ok(plan)
    }

    fn index_text(&self, total_size: u64) -> String {
        let weight_map: BTreeMap<&str, &str> =
            self.places.iter().map(|place| (place.name.as_str(), self.shards[place.shard].name.as_str())).collect();
        let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
        format!("{index:#}\n")
    }
}

/// Bytes of every tensor, or every reason why they cannot be written.
fn sizes(out: &Path, tensors: &[TensorSpec]) -> Result<Vec<u64>> {
    let mut problems = Problems::default();
    let mut problem = |tensor: &TensorSpec, what: String| problems.push(out, Some(&tensor.name), what);
    let mut names = HashMap::new();
    let mut sizes = Vec::with_capacity(tensors.len());
    let mut total = 0u64;
    for tensor in tensors {
        if tensor.name == safetensors::METADATA_KEY {
            problem(tensor, "has a name that safetensors reserves for its metadata".into());
        }
        if names.insert(tensor.name.as_str(), ()).is_some() {
            problem(tensor, "is to be written twice".into());
        }
        if tensor.dtype.safetensors_name().is_none() {
            problem(tensor, format!("has dtype {}, which safetensors cannot hold", tensor.dtype));
            continue;
        }
        let size = format::elements(&tensor.shape).and_then(|elements| tensor.dtype.bytes(elements));
        match size.and_then(|size| Some((size as u64, total.checked_add(size as u64)?))) {
            Some((size, sum)) => {
                sizes.push(size);
                total = sum;
            }
            None => problem(tensor, format!("has shape {:?}, whose size in bytes overflows", tensor.shape)),
        }
    }
    if total > i64::MAX as u64 {
        return Err(Error::file(out, format!("{total} bytes of tensors are more than a file system can hold")));
    }
    problems.or(sizes)
}

/// Consecutive tensors, shard by shard; at least one shard, and at least one tensor in each if there are any.
fn split(sizes: &[u64], max_shard_bytes: u64) -> Vec<Vec<usize>> {
    let mut shards = vec![Vec::new()];
    let mut filled = 0;
    for (index, &size) in sizes.iter().enumerate() {
        if size > max_shard_bytes.saturating_sub(filled) && shards.last().is_some_and(|shard| !shard.is_empty()) {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += size;
        shards.last_mut().expect("there is always one").push(index);
    }
    shards
}

/// The order of one shard's tensors in its file: the given one if every tensor then starts at a multiple of its element
/// size (which other readers rely on), otherwise larger elements first, which guarantees it.
fn aligned_order(mut members: Vec<usize>, tensors: &[TensorSpec], sizes: &[u64]) -> Vec<usize> {
    // Packed elements are read byte by byte.
    let width = |index: usize| match tensors[index].dtype.block() {
        (1, width) => width as u64,
        _ => 1,
    };
    let mut position = 0;
    let aligned = members.iter().all(|&index| {
        let fits = position % width(index) == 0;
        position += sizes[index];
        fits
    });
    if !aligned {
        members.sort_by_key(|&index| std::cmp::Reverse(width(index)));
    }
    members
}

/// The header of a shard, padded with spaces so that the data begins at a multiple of 8, and the data's length.
fn header(
    out: &Path,
    members: &[usize],
    tensors: &[TensorSpec],
    sizes: &[u64],
    metadata: &Metadata,
) -> Result<(Vec<u8>, u64)> {
    let quote = |text: &str| Value::from(text).to_string();
    let mut json = format!("{{{}:{}", quote(safetensors::METADATA_KEY), json!(metadata));
    let mut offset = 0;
    for &index in members {
        let TensorSpec { name, dtype, shape } = &tensors[index];
        let end = offset + sizes[index];
        json += &format!(
            ",{}:{{\"dtype\":\"{dtype}\",\"shape\":{},\"data_offsets\":[{offset},{end}]}}",
            quote(name),
            json!(shape)
        );
        offset = end;
    }
    json.push('}');
    while json.len() % 8 != 0 {
        json.push(' ');
    }
    if json.len() as u64 > safetensors::MAX_HEADER_BYTES {
        return Err(Error::file(
            out,
            format!(
                "a shard of {} tensors needs a header of {} bytes, more than the {} that readers allow; write smaller shards",
                members.len(),
                json.len(),
                safetensors::MAX_HEADER_BYTES
            ),
        ));
    }
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend_from_slice(json.as_bytes());
    Ok((header, offset))
}
