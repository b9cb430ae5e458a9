//! A Hugging Face folder as the content of a GGUF file: names, row order, metadata, tokenizer, and the type of each tensor.
//!
//! ```text
//! config.json, tokenizer.json … ─ plan ─► Plan { metadata, tensors: name, shape, type, row order }
//! ```
//!
//! The same tables as in the other direction ([`gguf_to_hf`](crate::gguf_to_hf)) serve here, and what a reader would make
//! of the metadata is compared with `config.json`: a setting that GGUF has no place for is refused by name. Nothing
//! is decoded; whoever writes the file asks [`PlannedTensor::read_rows`] for rows, so a model larger than memory converts.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    path::Path,
};

use serde_json::Value as Json;

use crate::{
    Dtype, Error, Problem, Result, TensorSpec,
    gguf_to_hf::{RowOrder, architecture::ROPE_FREQS},
    writer::gguf::GgufMetadata,
};

mod config;
mod scheme;
mod tokenizer;

pub use scheme::Scheme;

/// What a GGUF file of the model holds.
#[derive(Debug, Clone)]
pub struct Plan {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// Every key, in a fixed order.
    pub metadata: GgufMetadata,
    /// Every tensor, in the order of the network.
    pub tensors: Vec<PlannedTensor>,
    /// What a reader should know and GGUF cannot say, one sentence each.
    pub remarks: Vec<String>,
}

/// One tensor of the file to be.
#[derive(Debug, Clone)]
pub struct PlannedTensor {
    /// Its name in GGUF.
    pub name: String,
    /// Its name in the folder; empty for a tensor that is made from the configuration.
    pub hf: String,
    /// Its shape, slowest dimension first, the same on both sides.
    pub shape: Vec<usize>,
    /// What it is written as.
    pub dtype: Dtype,
    /// The type that was asked for, where the rows do not fill its blocks.
    pub instead_of: Option<Dtype>,
    order: RowOrder,
    shift: f32,
    made: Vec<f32>,
}

impl PlannedTensor {
    /// Name, type and shape.
    pub fn spec(&self) -> TensorSpec {
        TensorSpec { name: self.name.clone(), dtype: self.dtype, shape: self.shape.clone() }
    }

    /// (rows, row length): all dimensions but the last, and the last. A vector is (1, n).
    pub fn rows(&self) -> (usize, usize) {
        match self.shape.split_last() {
            None => (1, 1),
            Some((&last, rest)) => (rest.iter().product(), last),
        }
    }

    /// Whether the file has the folder's numbers as they are, only its rows perhaps in another order.
    pub fn is_unchanged(&self) -> bool {
        self.shift == 0.0 && self.made.is_empty()
    }

    /// The folder's row that is row `row` of the file.
    pub fn source_row(&self, row: usize) -> usize {
        if self.shape.len() < 2 { row } else { self.order.hf_row(row) }
    }

    /// Rows `rows` of the file into `out` (rows.len() × row length): asks `read` for the folder's rows, and puts them in
    /// order.
    ///
    /// # Errors
    /// Whatever `read` gives.
    ///
    /// # Panics
    /// If `out` has another length, or the rows lie outside the tensor.
    pub fn read_rows<E>(
        &self,
        rows: Range<usize>,
        out: &mut [f32],
        read: impl Fn(Range<usize>, &mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (_, length) = self.rows();
        assert_eq!(out.len(), rows.len() * length, "rows {rows:?} of `{}` were asked for elsewhere", self.name);
        if !self.made.is_empty() {
            out.copy_from_slice(&self.made[rows.start * length..rows.end * length]);
        } else if self.order == RowOrder::Same {
            read(rows, out)?;
        } else if self.shape.len() < 2 {
            // A bias: its elements are the rows.
            let mut stored = vec![0.0; out.len()];
            read(rows, &mut stored)?;
            for (at, out) in out.iter_mut().enumerate() {
                *out = stored[self.order.hf_row(at)];
            }
        } else {
            for (row, out) in rows.zip(out.chunks_exact_mut(length)) {
                let row = self.order.hf_row(row);
                read(row..row + 1, out)?;
            }
        }
        if self.shift != 0.0 {
            out.iter_mut().for_each(|value| *value -= self.shift);
        }
        Ok(())
    }
}

/// The texts beside the weights.
#[derive(Debug, Clone, Copy)]
pub struct Folder<'a> {
    /// Where it is.
    pub path: &'a Path,
    /// `config.json`.
    pub config: &'a Json,
}

/// Works out the GGUF file of a folder. `tensors` are the names of its weights with their shapes (of a quantised linear,
/// the shape of the weight it stands for).
///
/// # Errors
/// [`Error::Malformed`] with every reason why the model cannot be written faithfully: a family, tokenizer or setting that
/// GGUF's readers do not have, missing, surplus or wrongly shaped tensors. [`Error::Io`] or [`Error::File`] if a file beside
/// the weights cannot be read.
pub fn plan(folder: Folder<'_>, tensors: &[(String, Vec<usize>)], scheme: Scheme) -> Result<Plan> {
    let mut notes = Notes { folder, problems: Vec::new(), remarks: Vec::new() };
    let shapes: HashMap<&str, &[usize]> =
        tensors.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
    let shape = |name: &str| shapes.get(name).copied();
    let Some(network) = config::network(&mut notes, &shape) else {
        return Err(Error::Malformed(notes.problems));
    };
    let mut metadata = GgufMetadata::default();
    metadata.text("general.architecture", network.family.gguf);
    metadata.text("general.type", "model");
    metadata.u32("general.file_type", scheme.file_type());
    metadata.u32("general.quantization_version", 2);
    let divisors = config::metadata(&mut notes, &network, &mut metadata);
    let ids = tokenizer::metadata(&mut notes, network.vocab_size, &mut metadata)?;
    config::compare(&mut notes, &network, &ids.unwrap_or_default());

    let mut planned = Vec::new();
    if let Some(divisors) = divisors {
        planned.push(PlannedTensor {
            name: ROPE_FREQS.into(),
            hf: String::new(),
            shape: vec![divisors.len()],
            dtype: Dtype::F32,
            instead_of: None,
            order: RowOrder::Same,
            shift: 0.0,
            made: divisors,
        });
    }
    let places = network.places();
    for place in &places {
        match shape(&place.hf) {
            None => notes.problem(Some(&place.hf), format!("is missing, expected with shape {:?}", place.shape)),
            Some(found) if found != place.shape => {
                notes.problem(Some(&place.hf), format!("has shape {found:?}, expected {:?}", place.shape));
            }
            Some(_) => {}
        }
        let (dtype, instead_of) = scheme.dtype(&place.gguf, &place.shape, &network);
        planned.push(PlannedTensor {
            name: place.gguf.clone(),
            hf: place.hf.clone(),
            shape: place.shape.clone(),
            dtype,
            instead_of,
            order: place.order,
            shift: place.shift,
            made: Vec::new(),
        });
    }
    let placed: HashSet<&str> = places.iter().map(|place| place.hf.as_str()).collect();
    for (name, _) in tensors {
        // Old checkpoints carry the frequencies of rope, which follow from the configuration; a tied head may be there twice.
        let known = name.ends_with("rotary_emb.inv_freq") || (network.tied && name == "lm_head.weight");
        if !known && !placed.contains(name.as_str()) {
            notes.problem(Some(name), format!("has no place in GGUF's architecture `{}`", network.family.gguf));
        }
    }
    if !notes.problems.is_empty() {
        return Err(Error::Malformed(notes.problems));
    }
    Ok(Plan { architecture: network.family.gguf, metadata, tensors: planned, remarks: notes.remarks })
}

/// What was found on the way.
struct Notes<'a> {
    folder: Folder<'a>,
    problems: Vec<Problem>,
    remarks: Vec<String>,
}

impl Notes<'_> {
    fn problem(&mut self, tensor: Option<&str>, what: impl Into<String>) {
        self.problem_in("config.json", tensor, what);
    }

    fn problem_in(&mut self, file: &str, tensor: Option<&str>, what: impl Into<String>) {
        const MOST: usize = 1000;
        if self.problems.len() < MOST {
            let file = if tensor.is_some() { self.folder.path.to_path_buf() } else { self.folder.path.join(file) };
            self.problems.push(Problem { file, tensor: tensor.map(crate::format::shown), what: what.into() });
        }
    }

    /// A JSON file beside the weights, or `None` if there is none of that name.
    fn file(&self, name: &str) -> Result<Option<Json>> {
        let path = self.folder.path.join(name);
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|error| Error::file(path, format!("is not valid JSON: {error}"))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(path, "read the file", error)),
        }
    }
}
