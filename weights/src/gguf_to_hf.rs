//! A GGUF file as the content of a Hugging Face folder: names, row order, `config.json`, tokenizer, chat template.
//!
//! ```text
//! Gguf ─ convert ─► HfModel { config, tensors: rows on demand, files: tokenizer.json … }
//! ```
//!
//! Nothing is decoded until [`HfTensor::read_rows_f32`] asks for rows, so a model larger than memory converts too.
//!
//! What is not certain is refused by name rather than guessed: architectures, pre-tokenizers, kinds of rope scaling and
//! tensors that the tables here do not have, and metadata that would change the mathematics. A folder that loads and
//! answers wrongly is the worst result.

use std::ops::Range;

use serde_json::json;

use crate::{
    Dtype, Error, Problem, Result, TensorView,
    format::{
        gguf::{Gguf, Value, dequantize},
        shown,
    },
};

pub(crate) mod architecture;
pub(crate) mod rope;
pub(crate) mod tokenizer;

/// What a Hugging Face folder of the model holds.
#[derive(Debug, Clone)]
pub struct HfModel {
    /// `config.json`, except `torch_dtype`, which whoever writes the weights knows.
    pub config: serde_json::Value,
    /// The weights under their Hugging Face names, in the order of the network.
    pub tensors: Vec<HfTensor>,
    /// Names and contents of the other files: `generation_config.json`, `tokenizer.json`, `tokenizer_config.json` (with
    /// the chat template) and `special_tokens_map.json`.
    pub files: Vec<(String, Vec<u8>)>,
}

/// One weight: a GGUF tensor under its Hugging Face name, with its rows in Hugging Face order.
#[derive(Debug, Clone)]
pub struct HfTensor {
    /// The name transformers knows, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// The tensor in the GGUF file; its shape is right, its rows may stand in another order.
    pub source: TensorView,
    order: RowOrder,
    /// Added to each value: −1 where the file stores 1 + w.
    shift: f32,
}

/// How Hugging Face's rows lie in the GGUF tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// As they are.
    Same,
    /// Rotary embedding turns pairs of rows of a head. Hugging Face pairs row k with row k + head_dim/2, GGUF's llama
    /// architecture puts the partners side by side, at 2 k and 2 k + 1.
    AdjacentPairs {
        /// Rows of one head; even.
        head_dim: usize,
    },
}

impl RowOrder {
    /// The row of the GGUF tensor that is Hugging Face's row `row`.
    fn source_row(self, row: usize) -> usize {
        match self {
            Self::Same => row,
            Self::AdjacentPairs { head_dim } => {
                let (head, within) = (row / head_dim, row % head_dim);
                let (partner, k) = (within / (head_dim / 2), within % (head_dim / 2));
                head * head_dim + 2 * k + partner
            }
        }
    }

    /// The row of Hugging Face's tensor that is the GGUF tensor's row `row`: the inverse.
    pub(crate) fn hf_row(self, row: usize) -> usize {
        match self {
            Self::Same => row,
            Self::AdjacentPairs { head_dim } => {
                let (head, within) = (row / head_dim, row % head_dim);
                head * head_dim + within % 2 * (head_dim / 2) + within / 2
            }
        }
    }
}

impl HfTensor {
    /// Its shape, slowest dimension first: a linear weight is (out_features, in_features).
    pub fn shape(&self) -> &[usize] {
        self.source.shape()
    }

    /// Its type in the GGUF file.
    pub fn source_dtype(&self) -> Dtype {
        self.source.dtype()
    }

    /// (rows, row length): all dimensions but the last, and the last. A vector is (1, n).
    pub fn rows(&self) -> (usize, usize) {
        self.source.rows()
    }

    /// Decodes rows `rows` (in Hugging Face order) into `out` (rows.len() × row length, f32).
    ///
    /// # Errors
    /// If the rows lie outside the tensor, or `out` has another length.
    pub fn read_rows_f32(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (count, length) = self.rows();
        let fault = |what| Err(Error::tensor(self.source.file(), self.source.name(), what));
        if rows.start > rows.end || rows.end > count {
            return fault(format!("has {count} rows, but rows {rows:?} were asked for"));
        }
        if rows.len().checked_mul(length) != Some(out.len()) {
            return fault(format!("gives {} rows of {length} values, not {} values", rows.len(), out.len()));
        }
        let dtype = self.source.dtype();
        let Some(row_bytes) = dtype.bytes(length) else {
            return fault(format!("has rows of {length} values, which do not fill blocks of {dtype}"));
        };
        let bytes = self.source.bytes();
        if self.shape().len() < 2 && self.order != RowOrder::Same {
            // A bias: its elements are the rows.
            let mut stored = vec![0.0; out.len()];
            dequantize(dtype, &bytes[rows.start * row_bytes..rows.end * row_bytes], &mut stored);
            for (at, out) in out.iter_mut().enumerate() {
                *out = stored[self.order.source_row(at)];
            }
        } else if self.order == RowOrder::Same {
            dequantize(dtype, &bytes[rows.start * row_bytes..rows.end * row_bytes], out);
        } else {
            for (row, out) in rows.zip(out.chunks_exact_mut(length)) {
                let start = self.order.source_row(row) * row_bytes;
                dequantize(dtype, &bytes[start..start + row_bytes], out);
            }
        }
        if self.shift != 0.0 {
            out.iter_mut().for_each(|value| *value += self.shift);
        }
        Ok(())
    }

    /// Decodes the whole tensor.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.source.elements()];
        self.read_rows_f32(0..self.rows().0, &mut out)?;
        Ok(out)
    }
}

/// Works out the Hugging Face folder of `gguf`: llama (also Mistral, SmolLM and others of the same layout), qwen2,
/// qwen3, gemma3.
///
/// # Errors
/// [`Error::Malformed`] with every reason why the model cannot be converted faithfully: an architecture, tokenizer,
/// pre-tokenizer or rope scaling that is not supported (the supported ones are listed), missing or contradictory
/// metadata, missing, surplus or wrongly shaped tensors.
pub fn convert(gguf: &Gguf) -> Result<HfModel> {
    let mut facts = Facts { gguf, problems: Vec::new() };
    let network = architecture::network(&mut facts);
    let tokenizer = match &network {
        Some(network) => tokenizer::tokenizer(&mut facts, network.vocab_size, network.context_length),
        // Another architecture has another tokenizer, too: one refusal is enough.
        None => None,
    };
    match (network, tokenizer) {
        (Some(network), Some(tokenizer)) if facts.problems.is_empty() => {
            let config = network.config(&tokenizer.ids);
            let mut files = vec![("generation_config.json".to_owned(), pretty(&generation_config(&tokenizer.ids)))];
            files.extend(tokenizer.files);
            Ok(HfModel { config, tensors: network.tensors, files })
        }
        _ => Err(Error::Malformed(facts.problems)),
    }
}

/// The tokens generation needs, by id.
#[derive(Debug, Clone, Default)]
pub(crate) struct TokenIds {
    pub(crate) bos: Option<u64>,
    pub(crate) eos: Option<u64>,
    pub(crate) pad: Option<u64>,
    /// All that end an answer: `eos` first, then the end of a turn or message where they differ.
    pub(crate) ends: Vec<u64>,
}

fn generation_config(ids: &TokenIds) -> serde_json::Value {
    let mut config = serde_json::Map::new();
    if let Some(bos) = ids.bos {
        config.insert("bos_token_id".to_owned(), json!(bos));
    }
    match ids.ends[..] {
        [] => {}
        [end] => drop(config.insert("eos_token_id".to_owned(), json!(end))),
        _ => drop(config.insert("eos_token_id".to_owned(), json!(ids.ends))),
    }
    if let Some(pad) = ids.pad {
        config.insert("pad_token_id".to_owned(), json!(pad));
    }
    config.into()
}

/// A JSON file as people like to read it, with a final newline.
pub(crate) fn pretty(value: &serde_json::Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

/// The file's metadata, asked for by key; what is missing or wrong is noted and asked on.
pub(crate) struct Facts<'a> {
    gguf: &'a Gguf,
    problems: Vec<Problem>,
}

impl<'a> Facts<'a> {
    fn problem(&mut self, tensor: Option<&str>, what: impl Into<String>) {
        // A damaged file can have more faults than anyone reads.
        const MOST: usize = 1000;
        if self.problems.len() < MOST {
            let (file, tensor) = (self.gguf.file().to_owned(), tensor.map(shown));
            self.problems.push(Problem { file, tensor, what: what.into() });
        }
    }

    /// The value of `key` as `get` takes it, or `None` if it is absent or (with a problem) something else.
    fn optional<T>(&mut self, key: &str, expected: &str, get: impl Fn(&'a Value) -> Option<T>) -> Option<T> {
        let value = self.gguf.get(key)?;
        let got = get(value);
        if got.is_none() {
            self.problem(None, format!("metadata `{key}` is {}, expected {expected}", value.summary()));
        }
        got
    }

    /// As [`optional`](Self::optional), but its absence is a problem.
    fn required<T>(&mut self, key: &str, expected: &str, get: impl Fn(&'a Value) -> Option<T>) -> Option<T> {
        if self.gguf.get(key).is_none() {
            self.problem(None, format!("metadata `{key}` is missing, expected {expected}"));
        }
        self.optional(key, expected, get)
    }

    /// A size: an integer from 1 to 2^31 − 1, so that a product of two is safe.
    fn size(&mut self, key: &str) -> Option<usize> {
        self.required(key, "a positive integer", as_size)
    }

    fn optional_size(&mut self, key: &str) -> Option<usize> {
        self.optional(key, "a positive integer", as_size)
    }

    fn optional_positive(&mut self, key: &str) -> Option<f64> {
        self.optional(key, "a positive number", as_positive)
    }
}

fn as_size(value: &Value) -> Option<usize> {
    value.as_u64().filter(|&value| value > 0 && value <= i32::MAX as u64).map(|value| value as usize)
}

fn as_positive(value: &Value) -> Option<f64> {
    value.as_f64().filter(|value| *value > 0.0 && value.is_finite())
}
