// SPDX-License-Identifier: MIT OR Apache-2.0
//! candle's forward pass of a Hugging Face Llama folder, in f32: the mean NLL over all
//! positions and the CPU seconds of the forward passes, as one JSON line.
//!
//! ```text
//! RAYON_NUM_THREADS=1 cargo run --release -- MODEL_DIR WINDOWS.json [N]
//! ```
//!
//! WINDOWS.json is a list of lists of token ids; of each list, all but the last are the
//! inputs and all but the first the targets (`goldens.py --dump-windows` writes such a
//! file). N limits the number of windows.
//!
//! How it gets all logits: candle-transformers' `llama::Llama::forward` applies the head
//! to the last position only and keeps its blocks private. `smol::smollm3::Model` is
//! public, returns the normalised hidden states of all positions, reads the same tensor
//! names, and with no NoPE layers and no biases is the very same network. So the network
//! is run through that, and the head is applied to all positions here with candle-nn's
//! `Linear`. The first window is run once before the clock starts, and its last position
//! is compared with what `llama::Llama::forward` gives: `max_diff_last_logits`. That
//! model is timed too (`cpu_seconds_llama_last_only`, one window, head on one position).
//!
//! Timed: ids to logits, on the process's CPU clock. Not timed: loading, the loss.

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure, Context, Result};
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{Activation, Linear, VarBuilder};
use candle_transformers::models::llama;
use candle_transformers::models::smol::smollm3;
use serde::Deserialize;

#[derive(Deserialize)]
struct RopeParameters {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
}

/// The fields of `config.json` that matter here.
#[derive(Deserialize)]
struct HfConfig {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_parameters: Option<RopeParameters>,
    rope_scaling: Option<RopeParameters>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

impl HfConfig {
    fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let cfg: Self = serde_json::from_str(&text)?;
        ensure!(cfg.model_type == "llama", "model_type {}", cfg.model_type);
        ensure!(!cfg.attention_bias && !cfg.mlp_bias, "biases");
        let head_dim = cfg.hidden_size / cfg.num_attention_heads;
        ensure!(cfg.head_dim.unwrap_or(head_dim) == head_dim, "head_dim");
        for rope in [&cfg.rope_parameters, &cfg.rope_scaling]
            .into_iter()
            .flatten()
        {
            let kind = rope.rope_type.as_deref().unwrap_or("default");
            ensure!(kind == "default", "rope_type {kind}");
        }
        Ok(cfg)
    }

    fn theta(&self) -> f64 {
        let nested = self.rope_parameters.as_ref().and_then(|r| r.rope_theta);
        self.rope_theta.or(nested).unwrap_or(10_000.0)
    }

    fn kv_heads(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn smollm3(&self) -> smollm3::Config {
        smollm3::Config {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.kv_heads(),
            max_position_embeddings: self.max_position_embeddings,
            tie_word_embeddings: self.tie_word_embeddings,
            rope_theta: self.theta(),
            rms_norm_eps: self.rms_norm_eps,
            hidden_act: Activation::Silu,
            attention_bias: Some(false),
            attention_dropout: None,
            mlp_bias: Some(false),
            sliding_window: None,
            use_sliding_window: Some(false),
            rope_scaling: None,
            bos_token_id: None,
            eos_token_id: None,
            pad_token_id: None,
            max_window_layers: None,
            no_rope_layers: None,
            no_rope_layer_interval: None,
        }
    }

    fn llama(&self) -> llama::Config {
        llama::Config {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            vocab_size: self.vocab_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.kv_heads(),
            use_flash_attn: false,
            rms_norm_eps: self.rms_norm_eps,
            rope_theta: self.theta() as f32,
            bos_token_id: None,
            eos_token_id: None,
            rope_scaling: None,
            max_position_embeddings: self.max_position_embeddings,
            tie_word_embeddings: self.tie_word_embeddings,
        }
    }
}

fn weight_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)?
        .map(|e| e.map(|e| e.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    files.retain(|p| p.extension().is_some_and(|e| e == "safetensors"));
    files.sort();
    ensure!(!files.is_empty(), "no safetensors in {}", dir.display());
    Ok(files)
}

/// User and system time of all threads of this process, in seconds.
fn cpu_seconds() -> f64 {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `t` is a valid, writable timespec.
    let rc = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut t) };
    assert_eq!(rc, 0, "clock_gettime");
    t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9
}

/// Sum of -log softmax(logits)[target] over the rows, in f64.
fn sum_nll(logits: &Tensor, targets: &[u32]) -> Result<f64> {
    let (rows, vocab) = logits.dims2()?;
    ensure!(rows == targets.len(), "rows");
    let flat = logits.flatten_all()?.to_vec1::<f32>()?;
    let mut sum = 0.0;
    for (row, &target) in flat.chunks_exact(vocab).zip(targets) {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
        let total: f64 = row.iter().map(|&v| (v as f64 - top).exp()).sum();
        sum += top + total.ln() - row[target as usize] as f64;
    }
    Ok(sum)
}

fn run(dir: &Path, windows: &[Vec<u32>]) -> Result<serde_json::Value> {
    let device = Device::Cpu;
    let cfg = HfConfig::read(dir)?;
    for w in windows {
        ensure!(w.len() >= 2, "a window needs two ids");
        ensure!(w.len() - 1 <= cfg.max_position_embeddings, "window length");
        ensure!(w.iter().all(|&i| (i as usize) < cfg.vocab_size), "token id");
    }
    let files = weight_files(dir)?;
    // SAFETY: the files are not written to while this process has them mapped.
    let vb = unsafe { VarBuilder::from_mmaped_safetensors(&files, DType::F32, &device)? };

    let mut model = smollm3::Model::new(&cfg.smollm3(), vb.clone())?;
    let head_name = if cfg.tie_word_embeddings {
        "model.embed_tokens"
    } else {
        "lm_head"
    };
    let head = vb.get(
        (cfg.vocab_size, cfg.hidden_size),
        &format!("{head_name}.weight"),
    )?;
    let head = Linear::new(head, None);
    let mut forward = |ids: &[u32]| -> Result<Tensor> {
        let ids = Tensor::new(ids, &device)?.unsqueeze(0)?;
        model.clear_kv_cache();
        Ok(head.forward(&model.forward(&ids, 0)?)?.squeeze(0)?)
    };

    // Warm-up, and the comparison with candle's own Llama.
    let first = &windows[0][..windows[0].len() - 1];
    let (max_diff, llama_seconds) = {
        let llama_cfg = cfg.llama();
        let peer = llama::Llama::load(vb.clone(), &llama_cfg)?;
        let ids = Tensor::new(first, &device)?.unsqueeze(0)?;
        let mut seconds = f64::INFINITY;
        let mut theirs = Vec::new();
        for _ in 0..2 {
            let mut cache = llama::Cache::new(false, DType::F32, &llama_cfg, &device)?;
            let start = cpu_seconds();
            let out = peer.forward(&ids, 0, &mut cache)?;
            seconds = seconds.min(cpu_seconds() - start);
            theirs = out.flatten_all()?.to_vec1::<f32>()?;
        }
        let ours = forward(first)?.get(first.len() - 1)?.to_vec1::<f32>()?;
        let diff = ours
            .iter()
            .zip(&theirs)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0f32, f32::max);
        ensure!(diff < 1e-2, "the two models differ by {diff}");
        (diff, seconds)
    };

    let (mut nll, mut tokens, mut seconds) = (0.0, 0usize, 0.0);
    let mut window_nll = Vec::new();
    for w in windows {
        let (inputs, targets) = (&w[..w.len() - 1], &w[1..]);
        let start = cpu_seconds();
        let logits = forward(inputs)?;
        seconds += cpu_seconds() - start;
        let sum = sum_nll(&logits, targets)?;
        window_nll.push(sum / targets.len() as f64);
        nll += sum;
        tokens += targets.len();
    }
    Ok(serde_json::json!({
        "nll": nll / tokens as f64,
        "perplexity": (nll / tokens as f64).exp(),
        "window_nll": window_nll,
        "tokens": tokens,
        "windows": windows.len(),
        "cpu_seconds_forward": seconds,
        "tokens_per_cpu_second": tokens as f64 / seconds,
        "cpu_seconds_llama_last_only": llama_seconds,
        "max_diff_last_logits": max_diff,
        "threads": std::env::var("RAYON_NUM_THREADS").ok(),
        "candle": "0.11.1",
    }))
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (dir, ids, limit) = match args.as_slice() {
        [dir, ids] => (dir, ids, usize::MAX),
        [dir, ids, n] => (dir, ids, n.parse().context("N")?),
        _ => bail!("usage: peers-candle MODEL_DIR WINDOWS.json [N]"),
    };
    let text = std::fs::read_to_string(ids).with_context(|| ids.clone())?;
    let mut windows: Vec<Vec<u32>> = serde_json::from_str(&text)?;
    windows.truncate(limit);
    ensure!(!windows.is_empty(), "no windows");
    println!("{}", run(Path::new(dir), &windows)?);
    Ok(())
}
