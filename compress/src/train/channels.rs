//! Channels of unequal size, as large models have them, without changing what the model computes.
//!
//! In a trained large model a few input channels of each linear are many times larger than the rest, and this is what
//! makes low bit widths hurt (Dettmers et al. 2022, "LLM.int8()"; Lin et al. 2024, "AWQ", section 3.1). A small model
//! trained for minutes has no such channels. Where a linear `W` reads `x`, channel `j` may be moved between the two:
//! ```text
//! y = W x = (W diag(s)⁻¹) (diag(s) x)        s_j = 2^k_j,  k_j = round(spread · normal)
//! ```
//! with `diag(s)` folded into what makes `x`: the norm's weight, the rows of `v_proj`, or the rows of `up_proj`. Powers of
//! two make every product the same number as before, so the logits are equal bit for bit.

use std::collections::HashMap;

use candle_core::{Device, Tensor};

use super::llama::LlamaConfig;
use crate::data::random::Stream;
use crate::{Error, Result};

/// Spreads the channels of every block; a `spread` of 0 changes nothing.
pub fn spread(weights: &mut HashMap<String, Tensor>, config: &LlamaConfig, seed: u64, spread: f64) -> Result<()> {
    let shared = config.num_attention_heads / config.num_key_value_heads;
    for block in 0..config.num_hidden_layers {
        let mut stream = Stream::new(seed, "train/channels", block as u64);
        let mut draw = |count: usize| -> Vec<f32> {
            (0..count).map(|_| ((spread * stream.normal()).round() as f32).exp2()).collect()
        };
        let mut scale = |name: &str, along: Along, s: &[f32]| -> Result<()> {
            let name = format!("model.layers.{block}.{name}.weight");
            let weight =
                weights.get_mut(&name).ok_or_else(|| Error::Model(format!("the model has no tensor `{name}`")))?;
            *weight = match along {
                Along::Rows if weight.rank() == 1 => weight.mul(&Tensor::new(s, &Device::Cpu)?)?,
                Along::Rows => weight.broadcast_mul(&Tensor::new(s, &Device::Cpu)?.unsqueeze(1)?)?,
                Along::Columns => weight.broadcast_div(&Tensor::new(s, &Device::Cpu)?)?,
            };
            Ok(())
        };

        for (norm, readers) in [
            ("input_layernorm", &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"][..]),
            ("post_attention_layernorm", &["mlp.gate_proj", "mlp.up_proj"]),
        ] {
            let s = draw(config.hidden_size);
            scale(norm, Along::Rows, &s)?;
            readers.iter().try_for_each(|reader| scale(reader, Along::Columns, &s))?;
        }

        let s = draw(config.num_key_value_heads * config.head_dim);
        scale("self_attn.v_proj", Along::Rows, &s)?;
        // Each value head is read by `shared` heads in a row.
        let read: Vec<f32> = s.chunks_exact(config.head_dim).flat_map(|head| head.repeat(shared)).collect();
        scale("self_attn.o_proj", Along::Columns, &read)?;

        let s = draw(config.intermediate_size);
        scale("mlp.up_proj", Along::Rows, &s)?;
        scale("mlp.down_proj", Along::Columns, &s)?;
    }
    Ok(())
}

/// Which way a weight (out, in) is scaled: rows are multiplied, columns divided.
#[derive(Debug, Clone, Copy)]
enum Along {
    Rows,
    Columns,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::reference_forward;

    #[test]
    fn the_weights_change_and_no_logit_does() {
        let config = LlamaConfig {
            vocab_size: 19,
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 4,
            max_position_embeddings: 16,
            rms_norm_eps: 1e-5,
            rope_theta: 1e4,
            tie_word_embeddings: true,
        };
        let dense = config.init(1).unwrap();
        let mut wide = dense.clone();
        spread(&mut wide, &config, 1, 1.5).unwrap();
        let values = |weights: &HashMap<String, Tensor>, name: &str| -> Vec<f32> {
            weights[name].flatten_all().unwrap().to_vec1().unwrap()
        };
        for (name, _) in config.tensors().iter().filter(|(name, _)| name.contains("layers.1")) {
            assert_ne!(values(&dense, name), values(&wide, name), "{name}");
        }
        let logits = |weights| -> Vec<Vec<f32>> {
            reference_forward(weights, &config, &[1, 5, 18, 5, 0]).unwrap().to_vec2().unwrap()
        };
        assert_eq!(logits(&dense), logits(&wide));
    }
}
