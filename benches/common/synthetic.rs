//! Checkpoints of the size of real ones, made in seconds.

use std::path::Path;

use half::bf16;
use scruple_weights::{CheckpointWriter, Dtype, TensorSpec, WriterOptions};
use serde_json::json;

use super::Random;

const HIDDEN: usize = 2048;
const INTERMEDIATE: usize = 5632;
const HEADS: usize = 32;
const KV_HEADS: usize = 4;
const VOCAB: usize = 32_000;

fn tensors(blocks: usize) -> Vec<(String, Vec<usize>)> {
    let kv = HIDDEN / HEADS * KV_HEADS;
    let mut list = vec![("model.embed_tokens.weight".to_string(), vec![VOCAB, HIDDEN])];
    for block in 0..blocks {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.k_proj", vec![kv, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.v_proj", vec![kv, HIDDEN]),
        ] {
            list.push((format!("model.layers.{block}.{name}.weight"), shape));
        }
    }
    list.push(("model.norm.weight".into(), vec![HIDDEN]));
    list.push(("lm_head.weight".into(), vec![VOCAB, HIDDEN]));
    list
}

/// Writes a Llama checkpoint of `blocks` blocks (22: 1.1 B parameters, 2.2 GB of bf16): normal weights, norms of one.
pub fn synthesise(folder: &Path, blocks: usize) {
    let list = tensors(blocks);
    let specs = list.iter().map(|(name, shape)| TensorSpec::new(name.clone(), Dtype::Bf16, shape.clone())).collect();
    let mut writer = CheckpointWriter::create(folder, specs, WriterOptions::default()).expect("a new folder");
    // A million numbers of noise, begun at another place for each row of a tensor: no two rows are alike, at the speed of
    // the disk.
    const NUMBERS: usize = 1 << 20;
    let mut random = Random(7);
    let mut noise: Vec<u8> = (0..NUMBERS).flat_map(|_| bf16::from_f32(random.normal() * 0.02).to_le_bytes()).collect();
    noise.extend_from_within(..2 * INTERMEDIATE);
    for (index, (name, shape)) in list.iter().enumerate() {
        let &[rows, columns] = shape.as_slice() else {
            writer.write(name, &bf16::ONE.to_le_bytes().repeat(shape[0])).expect("room");
            continue;
        };
        let mut part = Vec::new();
        for first in (0..rows).step_by(1024) {
            part.clear();
            for row in first..rows.min(first + 1024) {
                // An odd step meets every place before it meets one again.
                let from = 2 * ((index * 7919 + row * 40_503) % NUMBERS);
                part.extend_from_slice(&noise[from..from + 2 * columns]);
            }
            writer.write_at(name, (2 * first * columns) as u64, &part).expect("room");
        }
    }
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": blocks, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "vocab_size": VOCAB, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 2048, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    });
    writer.add_file("config.json", config.to_string().as_bytes()).expect("room");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-world");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        writer.copy_file(&fixture.join(name)).expect("the embedded model's tokenizer");
    }
    writer.finish().expect("a written checkpoint");
}
