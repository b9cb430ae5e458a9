//! A trained model on disk: `model.safetensors` in bf16 and `config.json`, in Hugging Face's names.

use std::collections::HashMap;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use half::bf16;
use serde_json::{Map, Value, json};

use super::llama::LlamaConfig;
use crate::data::tokenizer::{BOS, EOS, PAD};
use crate::{Error, Result};

/// Writes `model.safetensors` and `config.json` into `folder`. `note` goes into the file's metadata, a word on where the
/// weights come from.
pub fn write(folder: &Path, config: &LlamaConfig, weights: &HashMap<String, Tensor>, note: &str) -> Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ "format": "pt", "note": note }));
    let mut end = 0;
    for (name, shape) in config.tensors() {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(name, json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] }));
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len())); // the data begins aligned

    let path = folder.join("model.safetensors");
    let partial = folder.join("model.safetensors.partial");
    let fail = |source: std::io::Error| {
        Error::Weights(scruple_weights::Error::Io { file: path.clone(), action: "write the model".into(), source })
    };
    let mut file = BufWriter::new(fs::File::create(&partial).map_err(fail)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(fail)?;
    file.write_all(header.as_bytes()).map_err(fail)?;
    for (name, shape) in config.tensors() {
        let weight = weights.get(&name).filter(|weight| weight.dims() == shape).ok_or_else(|| {
            Error::Model(format!("tensor `{name}` of shape {shape:?} is not among the weights to be written"))
        })?;
        let values: Vec<bf16> = weight.to_dtype(DType::BF16)?.flatten_all()?.to_vec1()?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        file.write_all(&bytes).map_err(fail)?;
    }
    file.flush().map_err(fail)?;
    file.get_ref().sync_all().map_err(fail)?;
    fs::rename(&partial, &path).map_err(fail)?;

    let mut json = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "rope_scaling": null,
        "torch_dtype": "bfloat16",
        "use_cache": true,
    });
    let own = serde_json::to_value(config).map_err(|error| Error::Model(error.to_string()))?;
    for (name, value) in own.as_object().expect("a struct") {
        json[name] = value.clone();
    }
    let text = serde_json::to_string_pretty(&json).map_err(|error| Error::Model(error.to_string()))?;
    fs::write(folder.join("config.json"), text + "\n").map_err(fail)
}

/// The weights and config of a folder [`write()`] made, as stored.
pub fn open(folder: &Path) -> Result<(LlamaConfig, HashMap<String, Tensor>)> {
    let path = folder.join("config.json");
    let text = fs::read_to_string(&path).map_err(|error| Error::Model(format!("{}: {error}", path.display())))?;
    let config = serde_json::from_str(&text).map_err(|error| Error::Model(format!("{}: {error}", path.display())))?;
    Ok((config, candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu)?))
}
