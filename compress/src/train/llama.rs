//! The Llama network as its definition reads, differentiable and unhurried: the model we train, and the oracle the fast
//! decoder is held to.
//!
//! For hidden states `x` (b, t, h), each of the blocks adds
//! ```text
//! x += Wo · attention(rope(Wq n), rope(Wk n), Wv n)      n = rms_norm(x)
//! x += Wdown (silu(Wgate n) ⊙ Wup n)                     n = rms_norm(x)
//! ```
//! and `logits = Whead · rms_norm(x)` (Touvron et al. 2023, "LLaMA"; grouped queries: Ainslie et al. 2023). Only candle
//! operations that carry a gradient are used: its fused softmax, norm and rope drop it without a word.

use std::collections::HashMap;

use candle_core::{D, DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::data::random::Stream;
use crate::{Error, Result};

/// What of a Hugging Face `config.json` this network needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // Hugging Face's names
pub struct LlamaConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub max_position_embeddings: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub tie_word_embeddings: bool,
}

impl LlamaConfig {
    /// Names and shapes of all tensors, as Hugging Face writes them: in the order a token meets them.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (h, i) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let mut tensors = vec![("model.embed_tokens.weight".to_string(), vec![self.vocab_size, h])];
        for block in 0..self.num_hidden_layers {
            let shapes = [
                ("input_layernorm", vec![h]),
                ("self_attn.q_proj", vec![q, h]),
                ("self_attn.k_proj", vec![kv, h]),
                ("self_attn.v_proj", vec![kv, h]),
                ("self_attn.o_proj", vec![h, q]),
                ("post_attention_layernorm", vec![h]),
                ("mlp.gate_proj", vec![i, h]),
                ("mlp.up_proj", vec![i, h]),
                ("mlp.down_proj", vec![h, i]),
            ];
            tensors.extend(shapes.map(|(name, shape)| (format!("model.layers.{block}.{name}.weight"), shape)));
        }
        tensors.push(("model.norm.weight".into(), vec![h]));
        if !self.tie_word_embeddings {
            tensors.push(("lm_head.weight".into(), vec![self.vocab_size, h]));
        }
        tensors
    }

    /// Numbers in the model.
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Fresh weights in f32. Matrices are normal with deviation 1/√in, those that write to the residual stream smaller by
    /// √(2 · blocks) (Radford et al. 2019), embeddings and head with deviation 0.02; norms are one.
    pub fn init(&self, seed: u64) -> Result<HashMap<String, Tensor>> {
        let residual = (2.0 * self.num_hidden_layers as f64).sqrt();
        let tensor = |(number, (name, shape)): (usize, (String, Vec<usize>))| {
            let deviation = match name.as_str() {
                name if shape.len() == 1 => {
                    return Ok((name.to_string(), Tensor::ones(shape, DType::F32, &Device::Cpu)?));
                }
                "model.embed_tokens.weight" | "lm_head.weight" => 0.02,
                name if name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") => {
                    1.0 / (shape[1] as f64).sqrt() / residual
                }
                _ => 1.0 / (shape[1] as f64).sqrt(),
            };
            let stream = &mut Stream::new(seed, "train/init", number as u64);
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| (deviation * stream.normal()) as f32).collect();
            Ok((name, Tensor::from_vec(values, shape, &Device::Cpu)?))
        };
        self.tensors().into_iter().enumerate().map(tensor).collect()
    }
}

/// Logits of one text: `ids` (t) to (t, vocab), in f32 whatever the weights are stored in.
///
/// `weights` has Hugging Face's names; nothing is cached, fused or reordered.
pub fn reference_forward(weights: &HashMap<String, Tensor>, config: &LlamaConfig, ids: &[u32]) -> Result<Tensor> {
    let device = tensor(weights, "model.embed_tokens.weight")?.device().clone();
    let ids = Tensor::from_slice(ids, (1, ids.len()), &device)?;
    Ok(forward(weights, config, &ids)?.squeeze(0)?)
}

/// Logits of a batch: `ids` (b, t) to (b, t, vocab). Gradients flow to every weight that is a variable.
pub fn forward(weights: &HashMap<String, Tensor>, config: &LlamaConfig, ids: &Tensor) -> Result<Tensor> {
    let (b, t) = ids.dims2()?;
    let h = config.hidden_size;
    let embeddings = tensor(weights, "model.embed_tokens.weight")?; // (vocab, h)
    let rope = Rope::new(config, t, ids.device())?;
    let mask = causal_mask(t, ids.device())?;

    let mut x = embeddings.index_select(&ids.flatten_all()?, 0)?.reshape((b, t, h))?;
    for block in 0..config.num_hidden_layers {
        let weight = |name: &str| tensor(weights, &format!("model.layers.{block}.{name}.weight"));
        let n = rms_norm(&x, &weight("input_layernorm")?, config.rms_norm_eps)?;
        x = (x + attention(&n, config, &rope, &mask, weight)?)?;
        let n = rms_norm(&x, &weight("post_attention_layernorm")?, config.rms_norm_eps)?;
        let gate = linear(&n, &weight("mlp.gate_proj")?)?.silu()?; // (b, t, i)
        let up = linear(&n, &weight("mlp.up_proj")?)?;
        x = (x + linear(&(gate * up)?, &weight("mlp.down_proj")?)?)?;
    }
    let x = rms_norm(&x, &tensor(weights, "model.norm.weight")?, config.rms_norm_eps)?;
    let head = if config.tie_word_embeddings { embeddings } else { tensor(weights, "lm_head.weight")? };
    linear(&x, &head)
}

fn tensor(weights: &HashMap<String, Tensor>, name: &str) -> Result<Tensor> {
    let tensor = weights.get(name).ok_or_else(|| Error::Model(format!("the model has no tensor `{name}`")))?;
    Ok(tensor.to_dtype(DType::F32)?)
}

/// `x` (b, t, in) times `weight` (out, in) transposed: (b, t, out).
fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (b, t, inner) = x.dims3()?;
    let y = x.reshape((b * t, inner))?.matmul(&weight.t()?)?;
    Ok(y.reshape((b, t, weight.dim(0)?))?)
}

/// `x / √(mean(x²) + eps) ⊙ weight` over the last axis.
fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    Ok(x.broadcast_mul(&scale)?.broadcast_mul(weight)?)
}

/// Softmax over the last axis. The maximum is a constant to the gradient, which it does not change.
fn softmax(x: &Tensor) -> Result<Tensor> {
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    Ok(e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?)
}

/// 0 where a query (row) may see a key (column), -∞ where the key comes later: (t, t).
fn causal_mask(t: usize, device: &Device) -> Result<Tensor> {
    let values: Vec<f32> = (0..t * t).map(|n| if n % t > n / t { f32::NEG_INFINITY } else { 0.0 }).collect();
    Ok(Tensor::from_vec(values, (t, t), device)?)
}

/// Causal grouped-query attention over normed states `n` (b, t, h): (b, t, h).
fn attention(
    n: &Tensor,
    config: &LlamaConfig,
    rope: &Rope,
    mask: &Tensor,
    weight: impl Fn(&str) -> Result<Tensor>,
) -> Result<Tensor> {
    let (b, t, _) = n.dims3()?;
    let (heads, kv_heads, d) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
    let split = |x: Tensor, heads: usize| x.reshape((b, t, heads, d))?.transpose(1, 2)?.contiguous();
    let q = rope.apply(&split(linear(n, &weight("self_attn.q_proj")?)?, heads)?)?; // (b, heads, t, d)
    let k = rope.apply(&split(linear(n, &weight("self_attn.k_proj")?)?, kv_heads)?)?; // (b, kv_heads, t, d)
    let v = split(linear(n, &weight("self_attn.v_proj")?)?, kv_heads)?; // (b, kv_heads, t, d)

    // Query heads that share a key head are stacked along time, so that keys need not be repeated.
    let shared = heads / kv_heads;
    let q = (q * (1.0 / (d as f64).sqrt()))?.reshape((b, kv_heads, shared * t, d))?;
    let scores = q.matmul(&k.t()?)?.reshape((b, heads, t, t))?;
    let p = softmax(&scores.broadcast_add(mask)?)?;
    let y = p.reshape((b, kv_heads, shared * t, t))?.matmul(&v)?; // (b, kv_heads, shared · t, d)
    let y = y.reshape((b, heads, t, d))?.transpose(1, 2)?.reshape((b, t, heads * d))?;
    linear(&y, &weight("self_attn.o_proj")?)
}

/// Rotary positions (Su et al. 2021) as Hugging Face lays them out: the two numbers that turn together are `d / 2` apart.
struct Rope {
    cos: Tensor, // (t, d)
    sin: Tensor, // (t, d)
}

impl Rope {
    fn new(config: &LlamaConfig, t: usize, device: &Device) -> Result<Self> {
        let d = config.head_dim;
        let angle = |n: usize| {
            let (position, i) = (n / d, n % d % (d / 2));
            position as f64 / config.rope_theta.powf(2.0 * i as f64 / d as f64)
        };
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = (0..t * d).map(|n| f(angle(n)) as f32).collect();
            Tensor::from_vec(values, (t, d), device)
        };
        Ok(Self { cos: table(f64::cos)?, sin: table(f64::sin)? })
    }

    /// `x` (b, heads, t, d) turned by its positions.
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let half = x.dim(D::Minus1)? / 2;
        let (first, second) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
        let turned = Tensor::cat(&[&second.neg()?, &first], D::Minus1)?;
        Ok((x.broadcast_mul(&self.cos)? + turned.broadcast_mul(&self.sin)?)?)
    }
}

/// Mean of `-log p(target)` over all positions: `logits` (b, t, vocab) or (n, vocab), as many `targets`.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let targets = targets.flatten_all()?; // (n)
    let logits = logits.reshape((targets.elem_count(), logits.dim(D::Minus1)?))?; // (n, vocab)
    let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?;
    let log_sum = shifted.exp()?.sum_keepdim(1)?.log()?; // (n, 1)
    let picked = shifted.gather(&targets.unsqueeze(1)?, 1)?; // (n, 1)
    Ok((log_sum - picked)?.mean_all()?)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    pub(crate) fn tiny(tie: bool) -> LlamaConfig {
        LlamaConfig {
            vocab_size: 11,
            hidden_size: 8,
            intermediate_size: 12,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 4,
            max_position_embeddings: 16,
            rms_norm_eps: 1e-5,
            rope_theta: 100.0,
            tie_word_embeddings: tie,
        }
    }

    fn loss(weights: &HashMap<String, Tensor>, config: &LlamaConfig) -> Tensor {
        let ids = Tensor::new(&[[1u32, 5, 2, 9, 3], [4, 4, 10, 0, 7]], &Device::Cpu).unwrap();
        let targets = Tensor::new(&[[5u32, 2, 9, 3, 8], [4, 10, 0, 7, 6]], &Device::Cpu).unwrap();
        cross_entropy(&forward(weights, config, &ids).unwrap(), &targets).unwrap()
    }

    #[test]
    fn gradients_equal_finite_differences() {
        // A loss of about 3 in f32 carries 3e-7 of rounding or less: 1e-4 in the slope over such a step.
        const STEP: f32 = 1e-2;
        const LARGEST_DIFFERENCE: f32 = 1e-3;
        for tie in [true, false] {
            let config = tiny(tie);
            let mut weights = config.init(3).unwrap();
            for (name, tensor) in &mut weights {
                // Fresh embeddings are so small that the first norm bends within one step.
                let scale = if name.contains("embed") || name.contains("lm_head") { 30.0 } else { 1.5 };
                *tensor = Var::from_tensor(&(tensor.clone() * scale).unwrap()).unwrap().into_inner();
            }
            let grads = loss(&weights, &config).backward().unwrap();
            for (name, shape) in config.tensors() {
                let grad = grads.get(&weights[&name]).unwrap_or_else(|| panic!("`{name}` has no gradient"));
                let grad: Vec<f32> = grad.flatten_all().unwrap().to_vec1().unwrap();
                let values: Vec<f32> = weights[&name].flatten_all().unwrap().to_vec1().unwrap();
                for index in [0, values.len() / 2, values.len() - 1] {
                    let at = |step: f32| {
                        let mut values = values.clone();
                        values[index] += step;
                        let mut weights = weights.clone();
                        weights.insert(name.clone(), Tensor::from_vec(values, shape.clone(), &Device::Cpu).unwrap());
                        loss(&weights, &config).to_scalar::<f32>().unwrap()
                    };
                    // Five points, so that what remains is of the step's fourth power.
                    let (near, far) = (at(STEP) - at(-STEP), at(2.0 * STEP) - at(-2.0 * STEP));
                    let slope = (8.0 * near - far) / (12.0 * STEP);
                    let difference = (slope - grad[index]).abs();
                    assert!(difference < LARGEST_DIFFERENCE, "{name}[{index}]: {} but slope {slope}", grad[index]);
                }
            }
        }
    }

    #[test]
    fn a_later_token_changes_no_earlier_logit() {
        let config = tiny(true);
        let weights = config.init(1).unwrap();
        let logits =
            |ids: &[u32]| -> Vec<Vec<f32>> { reference_forward(&weights, &config, ids).unwrap().to_vec2().unwrap() };
        let (a, b) = (logits(&[1, 2, 3, 4]), logits(&[1, 2, 3, 9]));
        assert_eq!(a[..3], b[..3]);
        assert_ne!(a[3], b[3]);
    }

    #[test]
    fn a_missing_tensor_is_named() {
        let config = tiny(true);
        let mut weights = config.init(1).unwrap();
        weights.remove("model.layers.1.mlp.up_proj.weight");
        let error = reference_forward(&weights, &config, &[1]).unwrap_err().to_string();
        assert_eq!(error, "the model has no tensor `model.layers.1.mlp.up_proj.weight`");
    }
}
