//! The checkpoints of llama2.c, version 0: seven numbers and the weights of a Llama in f32.
//!
//! ```text
//! dim, hidden_dim, layers, heads, kv_heads, vocab (negative: the output has its own matrix), seq_len      i32 each
//! token embedding (vocab, dim) · attention norms (layers, dim) · q, k, v, o of all layers, kind by kind ·
//! feed-forward norms · w1, w2, w3 of all layers · final norm · two tables of rope (seq_len, head_dim/2), unused here ·
//! [output (vocab, dim)]
//! ```
//!
//! The tensors are presented as a Llama of Hugging Face holds them, under its names. The one difference in values is the
//! order of the rows of q and k: llama2.c rotates adjacent pairs of a head's elements, `(x_2i, x_2i+1)`, and Hugging
//! Face `(x_i, x_i+n/2)` for heads of n. Row 2i of a head moves to row i, and row 2i+1 to row i + n/2; scores are dot
//! products, so a permutation common to q and k changes nothing else. These rows are copied, all else is a slice of the
//! file. The format is recognised by its size alone, which the seven numbers must explain to the byte.

use std::{ops::Range, path::Path};

use serde_json::json;

use super::Contents;
use crate::{Dtype, Error, Result, Shard, TensorView};

const HEADER: usize = 7 * 4;

/// The seven numbers, and where the parts that follow lie.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shape {
    dim: usize,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
    seq_len: usize,
    /// Whether the output matrix is the token embedding.
    tied: bool,
}

impl Shape {
    /// The numbers at the start of `bytes`, if they are those of a transformer.
    fn read(bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(..HEADER)?;
        let mut numbers = [0i32; 7];
        for (number, &b) in numbers.iter_mut().zip(header.as_chunks::<4>().0) {
            *number = i32::from_le_bytes(b);
        }
        let [dim, hidden, layers, heads, kv_heads, vocab, seq_len] = numbers;
        let tied = vocab > 0;
        let numbers = [dim, hidden, layers, heads, kv_heads, vocab.checked_abs()?, seq_len];
        if numbers.iter().any(|&number| number <= 0) {
            return None;
        }
        let [dim, hidden, layers, heads, kv_heads, vocab, seq_len] = numbers.map(|number| number as usize);
        let sensible = dim % heads == 0 && heads % kv_heads == 0 && (dim / heads) % 2 == 0;
        sensible.then_some(Self { dim, hidden, layers, heads, kv_heads, vocab, seq_len, tied })
    }

    /// Bytes of the whole file, or `None` if they cannot be counted.
    fn file_len(&self) -> Option<usize> {
        let product =
            |factors: &[usize]| factors.iter().try_fold(4usize, |product, &factor| product.checked_mul(factor));
        let kv_dim = self.kv_heads * (self.dim / self.heads); // at most dim
        let tables = if self.tied { 1 } else { 2 };
        [
            product(&[tables, self.vocab, self.dim])?,
            product(&[2, self.layers, self.dim])?,
            product(&[2, self.layers, self.dim, self.dim])?,
            product(&[2, self.layers, kv_dim, self.dim])?,
            product(&[3, self.layers, self.hidden, self.dim])?,
            product(&[self.dim])?,
            product(&[self.seq_len, self.dim / self.heads])?,
        ]
        .iter()
        .try_fold(HEADER, |sum, &part| sum.checked_add(part))
    }
}

/// Whether the file's first seven numbers explain its size exactly.
pub fn recognise(shard: &Shard) -> bool {
    Shape::read(shard.bytes()).is_some_and(|shape| shape.file_len() == Some(shard.bytes().len()))
}

/// Reads the file as a Hugging Face Llama, with the configuration that goes with it.
///
/// # Errors
/// If the seven numbers are none of a transformer's, or the file has another size than they demand.
pub fn read(shard: &Shard) -> Result<Contents> {
    let refuse = |what: String| Error::file(shard.path(), what);
    let shape = Shape::read(shard.bytes())
        .ok_or_else(|| refuse("the first seven numbers are not those of a llama2.c checkpoint".into()))?;
    let len = shard.bytes().len();
    if shape.file_len() != Some(len) {
        return Err(refuse(format!(
            "the file has {len} bytes, which is not what its first seven numbers demand: {shape:?}"
        )));
    }
    let Shape { dim, hidden, layers, heads, kv_heads, vocab, seq_len, tied } = shape;
    let head_dim = dim / heads;
    let kv_dim = kv_heads * head_dim;
    let embedding = TensorView::new(shard, "model.embed_tokens.weight", Dtype::F32, [vocab, dim], HEADER)?;
    let mut tensors = vec![embedding];
    let mut cursor = HEADER + 4 * vocab * dim;
    // A part for each layer, one behind the other.
    let mut kind = |name: &str, rows: Option<usize>, columns: usize, permuted: Option<usize>| -> Result<()> {
        for layer in 0..layers {
            let name = format!("model.layers.{layer}.{name}.weight");
            let dims: Vec<usize> = rows.into_iter().chain([columns]).collect();
            let len = 4 * rows.unwrap_or(1) * columns;
            let view = TensorView::new(shard, name, Dtype::F32, dims, cursor)?;
            tensors.push(match permuted {
                Some(heads) => half_split(shard, &view, heads)?,
                None => view,
            });
            cursor += len;
        }
        Ok(())
    };
    kind("input_layernorm", None, dim, None)?;
    kind("self_attn.q_proj", Some(dim), dim, Some(heads))?;
    kind("self_attn.k_proj", Some(kv_dim), dim, Some(kv_heads))?;
    kind("self_attn.v_proj", Some(kv_dim), dim, None)?;
    kind("self_attn.o_proj", Some(dim), dim, None)?;
    kind("post_attention_layernorm", None, dim, None)?;
    kind("mlp.gate_proj", Some(hidden), dim, None)?;
    kind("mlp.down_proj", Some(dim), hidden, None)?;
    kind("mlp.up_proj", Some(hidden), dim, None)?;
    tensors.push(TensorView::new(shard, "model.norm.weight", Dtype::F32, [dim], cursor)?);
    if !tied {
        let start = cursor + 4 * dim + 4 * seq_len * head_dim;
        tensors.push(TensorView::new(shard, "lm_head.weight", Dtype::F32, [vocab, dim], start)?);
    }
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
        "max_position_embeddings": seq_len,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    });
    let metadata = [("container".to_owned(), "llama2.c".to_owned())].into();
    Ok(Contents { tensors, metadata, config: Some(config), ..Contents::default() })
}

/// The rows of `view` from adjacent-pair order to half-split order, head by head.
fn half_split(shard: &Shard, view: &TensorView, heads: usize) -> Result<TensorView> {
    let (rows, columns) = view.rows();
    let (head_dim, row) = (rows / heads, 4 * columns);
    let bytes = view.bytes();
    let mut out = Vec::with_capacity(bytes.len());
    for head in bytes.chunks_exact(head_dim * row) {
        for parity in 0..2 {
            for pair in 0..head_dim / 2 {
                let from = (2 * pair + parity) * row;
                out.extend_from_slice(&head[from..from + row]);
            }
        }
    }
    TensorView::owned(shard, view.name(), Dtype::F32, view.shape(), out)
}

/// The vocabulary of a llama2.c tokenizer file.
///
/// Byte-pair encoding by score: a text begins as single characters (or, for those not in the vocabulary, bytes, as the
/// tokens from 3 on), and the pair of neighbours whose joined token has the highest score is joined until there is none.
/// Tokens 0, 1 and 2 are unknown, begin and end; a token `<0x0A>` stands for that byte.
#[derive(Debug, Clone, PartialEq)]
pub struct Vocabulary {
    /// Bytes of the longest token, as the file states it.
    pub longest: usize,
    /// Every token's bytes and score, by number.
    pub tokens: Vec<(Vec<u8>, f32)>,
}

/// Reads a tokenizer file: `i32` longest token, then per token `f32` score, `i32` length, bytes, up to the file's end.
/// The file does not say how many tokens there are; the model's `vocab_size` must equal what is found.
///
/// # Errors
/// If the file cannot be read, is cut, or has a token of no or impossible length.
pub fn read_vocabulary(path: &Path) -> Result<Vocabulary> {
    let shard = Shard::open(path)?;
    let bytes = shard.bytes();
    let refuse = |at: usize, what: &str| {
        let what =
            format!("expected a llama2.c tokenizer, found {what} at byte {at}: truncated, damaged or another file");
        Error::file(path, what)
    };
    let word = |at: usize| bytes.get(at..at + 4).and_then(|part| part.first_chunk::<4>()).copied();
    let length = |at: usize| word(at).map(i32::from_le_bytes);
    let longest = length(0).and_then(|longest| usize::try_from(longest).ok()).ok_or_else(|| refuse(0, "no length"))?;
    let mut tokens = Vec::new();
    let mut at = 4;
    while at < bytes.len() {
        let score = word(at).map(f32::from_le_bytes).ok_or_else(|| refuse(at, "a score that is cut"))?;
        let token_len = length(at + 4).ok_or_else(|| refuse(at, "a length that is cut"))?;
        let token_len = usize::try_from(token_len).ok().filter(|&len| len <= bytes.len());
        let token_len = token_len.ok_or_else(|| refuse(at + 4, "an impossible length"))?;
        let place: Range<usize> = at + 8..at + 8 + token_len;
        let token = bytes.get(place.clone()).ok_or_else(|| refuse(at, "a token that is cut"))?;
        tokens.push((token.to_vec(), score));
        at = place.end;
    }
    Ok(Vocabulary { longest, tokens })
}
