//! What a checkpoint is: family, sizes and quantisation, from its configuration where there is one, and from names and
//! shapes where there is none. What was guessed says so.

use std::{collections::BTreeMap, path::Path};

use serde::Serialize;
use serde_json::Value;

use crate::{Checkpoint, Dtype, Place, Shard, TensorView, format::gguf, place};

/// A fact, and whether it was told or guessed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fact<T> {
    /// The fact.
    pub value: T,
    /// Whether names and shapes suggest it, rather than a configuration saying so.
    pub guess: bool,
}

impl<T> Fact<T> {
    fn told(value: T) -> Self {
        Self { value, guess: false }
    }

    fn guessed(value: T) -> Self {
        Self { value, guess: true }
    }
}

/// How weights are stored other than as plain numbers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Quantisation {
    /// `gptq`, `awq`, `compressed-tensors`, `fp8`, `mxfp4`, `bitsandbytes`, `gguf`, or the configuration's own word.
    pub method: String,
    /// Bits, group size, block types: whatever is known.
    pub details: String,
    /// Linears stored that way, by the names of their tensors; 0 if only the configuration speaks of it.
    pub linears: usize,
    /// `config` or `tensors`: what tells.
    pub seen_in: String,
}

/// The tokenizer that lies with the weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tokenizer {
    /// `BPE`, `WordPiece`, `Unigram`, `SentencePiece`, or GGUF's word for it.
    pub kind: String,
    /// Tokens, added ones too; unknown where only a binary model lies there.
    pub vocabulary: Option<usize>,
    /// The file.
    pub file: String,
}

/// A model's build.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Anatomy {
    /// Such as `llama` or `bert`; a guess is a kind of network, such as `decoder with a gated MLP`.
    pub family: Option<Fact<String>>,
    /// The configuration's class, such as `LlamaForCausalLM`.
    pub architecture: Option<String>,
    /// Elements of all tensors as stored (packed codes count as the words they lie in).
    pub elements: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Bytes by type.
    pub dtypes: BTreeMap<String, u64>,
    /// Blocks of each stack, in order of their names.
    pub stacks: Vec<Stack>,
    /// Blocks of the longest stack, or as the configuration says.
    pub blocks: Option<Fact<usize>>,
    /// Width of the residual stream.
    pub hidden_size: Option<Fact<usize>>,
    /// Attention heads.
    pub heads: Option<Fact<usize>>,
    /// Heads of keys and values.
    pub kv_heads: Option<Fact<usize>>,
    /// Rows of the embedding.
    pub vocabulary: Option<Fact<usize>>,
    /// Experts of a block.
    pub experts: Option<Fact<usize>>,
    /// Whether the output shares the embedding's tensor.
    pub tied_embeddings: Option<Fact<bool>>,
    /// What of it is quantised.
    pub quantisation: Vec<Quantisation>,
    /// The tokenizer beside the weights.
    pub tokenizer: Option<Tokenizer>,
}

/// A list of blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stack {
    /// Its prefix, see [`Place::stack`].
    pub name: String,
    /// Blocks that have tensors.
    pub blocks: usize,
}

/// Looks at names, shapes and side files; no weight is read.
pub fn anatomy(checkpoint: &Checkpoint) -> Anatomy {
    let names = Names::of(checkpoint);
    let config = configuration(checkpoint);
    let config = config.as_ref();
    let number = |keys: &[&str]| config.and_then(|config| keys.iter().find_map(|key| usize_of(config, key)));
    let fact = |keys: &[&str], guess: Option<usize>| number(keys).map(Fact::told).or(guess.map(Fact::guessed));
    let hidden_size = fact(&["hidden_size", "n_embd", "d_model", "dim", "embedding_length"], names.hidden());
    let heads = fact(
        &["num_attention_heads", "n_head", "n_heads", "num_heads", "head_count"],
        hidden_size.as_ref().and_then(|hidden| names.heads(hidden.value)),
    );
    let kv_heads = fact(
        &["num_key_value_heads", "num_kv_heads", "head_count_kv"],
        hidden_size.as_ref().zip(heads.as_ref()).and_then(|(hidden, heads)| names.kv_heads(hidden.value, heads.value)),
    );
    let mut dtypes = BTreeMap::new();
    for view in checkpoint.tensors() {
        *dtypes.entry(view.dtype().to_string()).or_insert(0) += view.bytes().len() as u64;
    }
    let stacks = names.stacks();
    let longest = stacks.iter().map(|stack| stack.blocks).max();
    let told = |key: &str| config.and_then(|config| config.get(key)?.as_str().map(str::to_owned));
    let output = names.find(&["lm_head.weight", "output.weight", "embed_out.weight"]);
    let tied = config.and_then(|config| config.get("tie_word_embeddings")?.as_bool()).map(Fact::told);
    let embedding = names.embedding();
    Anatomy {
        family: told("model_type").map(Fact::told).or_else(|| names.family().map(Fact::guessed)),
        architecture: config.and_then(|config| config.get("architectures")?.get(0)?.as_str().map(str::to_owned)),
        elements: checkpoint.parameters(),
        bytes: checkpoint.bytes(),
        dtypes,
        blocks: fact(&["num_hidden_layers", "n_layer", "num_layers", "n_layers", "block_count"], longest),
        stacks,
        hidden_size,
        heads,
        kv_heads,
        vocabulary: fact(&["vocab_size"], embedding.map(|view| view.shape()[0])),
        experts: fact(
            &["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "expert_count"],
            names.experts(),
        ),
        tied_embeddings: tied
            .or_else(|| Some(Fact::guessed(embedding.is_some() && output.is_none())))
            .filter(|_| embedding.is_some()),
        quantisation: quantisation(&names, config),
        tokenizer: tokenizer(checkpoint),
    }
}

/// A number of the configuration, also of the language model inside a multimodal one.
fn usize_of(config: &Value, key: &str) -> Option<usize> {
    let at = |config: &Value| config.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    at(config)
        .or_else(|| ["text_config", "llm_config", "language_config"].iter().find_map(|part| at(config.get(part)?)))
}

/// `config.json`, or for a GGUF file its metadata in the same form: the architecture as `model_type`, and the numbers
/// that are called `ARCHITECTURE.NAME` there as `NAME`.
fn configuration(checkpoint: &Checkpoint) -> Option<Value> {
    if let Some(file) = gguf_file(checkpoint) {
        let architecture = file.get("general.architecture")?.as_str()?;
        let mut config = serde_json::Map::new();
        config.insert("model_type".into(), architecture.into());
        for (key, value) in file.metadata() {
            if let Some(name) = key.strip_prefix(architecture).and_then(|key| key.strip_prefix('.'))
                && let Some(number) = value.as_u64()
            {
                config.insert(name.replace("attention.", ""), number.into());
            }
        }
        return Some(config.into());
    }
    checkpoint.config().ok().filter(|config| config.is_object()).cloned()
}

fn gguf_file(checkpoint: &Checkpoint) -> Option<gguf::Gguf> {
    let [shard] = checkpoint.shards() else { return None };
    shard.path().extension().filter(|ending| *ending == "gguf")?;
    gguf::read(shard).ok()
}

/// Every tensor with its place.
struct Names<'a> {
    tensors: Vec<(Place, &'a TensorView)>,
}

impl<'a> Names<'a> {
    fn of(checkpoint: &'a Checkpoint) -> Self {
        Self { tensors: checkpoint.tensors().map(|view| (place(view.name()), view)).collect() }
    }

    fn stacks(&self) -> Vec<Stack> {
        let mut stacks: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (place, _) in &self.tensors {
            if let Some(block) = place.block {
                stacks.entry(&place.stack).or_default().push(block);
            }
        }
        stacks
            .into_iter()
            .map(|(name, mut blocks)| {
                blocks.sort_unstable();
                blocks.dedup();
                Stack { name: name.to_owned(), blocks: blocks.len() }
            })
            .collect()
    }

    /// The tensor outside of blocks whose name ends in one of `endings`, at a dot.
    fn find(&self, endings: &[&str]) -> Option<&'a TensorView> {
        let ends = |name: &str, ending: &str| {
            name.strip_suffix(ending).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        endings.iter().find_map(|ending| {
            let mut outside = self.tensors.iter().filter(|(place, _)| place.block.is_none());
            outside.find(|(_, view)| ends(view.name(), ending)).map(|(_, view)| *view)
        })
    }

    /// The tensor of the first block whose kind holds one of `words`.
    fn in_block(&self, words: &[&str]) -> Option<&'a TensorView> {
        words.iter().find_map(|word| {
            let held = |kind: &str| kind.strip_suffix(".weight").is_some_and(|module| module.ends_with(word));
            self.tensors.iter().find(|(place, _)| place.block.is_some() && held(&place.kind)).map(|(_, view)| *view)
        })
    }

    fn embedding(&self) -> Option<&'a TensorView> {
        const NAMES: [&str; 7] = [
            "embed_tokens.weight",
            "word_embeddings.weight",
            "wte.weight",
            "token_embd.weight",
            "embed_in.weight",
            "tok_embeddings.weight",
            "shared.weight",
        ];
        self.find(&NAMES).filter(|view| view.shape().len() == 2)
    }

    fn hidden(&self) -> Option<usize> {
        let query = || self.in_block(&["q_proj", "query", "c_attn", "qkv", "query_key_value"]);
        self.embedding().map(|view| view.shape()[1]).or_else(|| {
            let view = query().filter(|view| view.shape().len() == 2)?;
            // GPT-2 stores (in, out), everything else (out, in); the input is the residual stream.
            Some(if view.name().contains("c_attn") { view.shape()[0] } else { view.shape()[1] })
        })
    }

    /// Sizes of heads are 64 or 128 nearly everywhere: 128 in wide models, 64 where they are narrow; below that the
    /// width gives no hint.
    fn head_size(&self, hidden: usize) -> Option<usize> {
        // Norms of queries have the size of a head.
        if let Some(norm) = self.in_block(&["q_norm", "query_layernorm"])
            && norm.shape().len() == 1
            && norm.shape()[0] < hidden
        {
            return Some(norm.shape()[0]);
        }
        let size = if hidden >= 3072 { 128 } else { 64 };
        (hidden >= 256 && hidden.is_multiple_of(size)).then_some(size)
    }

    fn heads(&self, hidden: usize) -> Option<usize> {
        let query = self.in_block(&["q_proj", "query", "attn_q", "q_lin"]);
        let width = query.filter(|view| view.shape().len() == 2).map_or(hidden, |view| view.shape()[0]);
        let attends =
            query.is_some() || self.in_block(&["c_attn", "qkv", "query_key_value", "Wqkv", "qkv_proj"]).is_some();
        self.head_size(hidden).filter(|size| attends && width.is_multiple_of(*size)).map(|size| width / size)
    }

    fn kv_heads(&self, hidden: usize, heads: usize) -> Option<usize> {
        let key = self.in_block(&["k_proj", "key", "attn_k", "k_lin"]).filter(|view| view.shape().len() == 2)?;
        let query = self.in_block(&["q_proj", "query", "attn_q", "q_lin"]).filter(|view| view.shape().len() == 2);
        let size = query.map_or(hidden, |view| view.shape()[0]).checked_div(heads)?;
        key.shape()[0].checked_div(size).filter(|kv_heads| *kv_heads > 0)
    }

    fn experts(&self) -> Option<usize> {
        self.tensors.iter().filter_map(|(place, _)| place.expert).max().map(|last| last + 1)
    }

    fn family(&self) -> Option<String> {
        let has = |words: &[&str]| self.in_block(words).is_some();
        let experts = if self.experts().is_some() { " of experts" } else { "" };
        let family = if has(&["attn.c_attn"]) {
            "gpt2-like decoder"
        } else if has(&["query_key_value"]) {
            "neox-like decoder"
        } else if has(&["gate_proj", "ffn_gate", "experts.*.w1", "gate_up_proj"])
            && has(&["q_proj", "attn_q", "qkv_proj"])
        {
            return Some(format!("llama-like decoder with a gated MLP{experts}"));
        } else if has(&["attention.self.query"]) {
            "bert-like encoder"
        } else if has(&["SelfAttention.q"]) {
            "t5-like encoder and decoder"
        } else if has(&["mixer.in_proj", "mixer.x_proj"]) {
            "mamba-like state space model"
        } else if has(&["attn.qkv"]) && self.find(&["patch_embed.proj.weight"]).is_some() {
            "vision transformer"
        } else if has(&["fc1"]) && has(&["q_proj"]) {
            "opt-like transformer"
        } else if has(&["conv1", "conv2"]) {
            "residual convolutional network"
        } else if self.tensors.iter().any(|(_, view)| view.shape().len() == 4) {
            "convolutional network"
        } else if self.tensors.iter().any(|(_, view)| view.name().contains("lstm") || view.name().contains("weight_hh"))
        {
            "recurrent network"
        } else if self.tensors.iter().any(|(_, view)| view.shape().len() == 2) {
            "multilayer perceptron or other network of linears"
        } else {
            return None;
        };
        Some(family.to_owned())
    }

    fn count(&self, ending: &str) -> usize {
        self.tensors.iter().filter(|(_, view)| view.name().ends_with(ending)).count()
    }
}

/// Everything that speaks of quantised weights.
fn quantisation(names: &Names<'_>, config: Option<&Value>) -> Vec<Quantisation> {
    let mut found = Vec::new();
    let told = config.and_then(|config| {
        config.get("quantization_config").or_else(|| config.get("text_config")?.get("quantization_config"))
    });
    if let Some(told) = told {
        let text = |key: &str| told.get(key).and_then(Value::as_str);
        let number = |key: &str| told.get(key).and_then(Value::as_u64);
        let mut details = Vec::new();
        for key in ["bits", "w_bit", "num_bits"] {
            details.extend(number(key).map(|bits| format!("{bits} bits")));
        }
        for key in ["group_size", "q_group_size"] {
            details.extend(number(key).map(|size| format!("groups of {size}")));
        }
        for (flag, word) in [("load_in_4bit", "4 bits"), ("load_in_8bit", "8 bits"), ("desc_act", "activation order")] {
            details.extend(told.get(flag).and_then(Value::as_bool).filter(|set| *set).map(|_| word.to_owned()));
        }
        for key in ["format", "fmt", "activation_scheme", "bnb_4bit_quant_type"] {
            details.extend(text(key).map(str::to_owned));
        }
        if let Some(groups) = told.get("config_groups").and_then(Value::as_object) {
            for weights in groups.values().filter_map(|group| group.get("weights")) {
                let bits = weights.get("num_bits").and_then(Value::as_u64);
                let size = weights.get("group_size").and_then(Value::as_u64);
                details.extend(bits.map(|bits| format!("{bits} bits")));
                details.extend(size.map(|size| format!("groups of {size}")));
            }
        }
        found.push(Quantisation {
            method: text("quant_method").unwrap_or("unnamed").to_owned(),
            details: details.join(", "),
            linears: 0,
            seen_in: "config".into(),
        });
    }
    let mut tensors = |method: &str, linears: usize, details: String| {
        if linears > 0 {
            found.push(Quantisation { method: method.into(), details, linears, seen_in: "tensors".into() });
        }
    };
    let packed = names.count(".qweight");
    // GPTQ packs along the input, (in / 8, out); AWQ along the output, (in, out / 8). AWQ has no g_idx, and its zeros
    // have as many columns as its weight.
    let awq = names.tensors.iter().filter(|(_, view)| view.name().ends_with(".qweight")).filter(|(_, view)| {
        let stem = view.name().trim_end_matches(".qweight");
        let zeros = names
            .tensors
            .iter()
            .find(|(_, other)| other.name().strip_suffix(".qzeros").is_some_and(|other| other == stem));
        zeros.is_some_and(|(_, zeros)| zeros.shape().get(1) == view.shape().get(1))
    });
    let awq = if packed > 0 && names.count(".g_idx") == 0 { awq.count() } else { 0 };
    tensors("awq", awq, "packed along the output".into());
    tensors("gptq", packed - awq, "packed along the input".into());
    tensors("compressed-tensors", names.count(".weight_packed"), "packed weights with scales".into());
    let fp8 = |(_, view): &&(Place, &TensorView)| {
        matches!(view.dtype(), Dtype::F8E4M3 | Dtype::F8E5M2) && view.shape().len() >= 2
    };
    let fp8 = names.tensors.iter().filter(fp8).count();
    let scales = names.count(".weight_scale") + names.count(".weight_scale_inv");
    tensors("fp8", fp8, if scales > 0 { "with scales".into() } else { "without scales".into() });
    tensors("mxfp4", names.count("_blocks").min(names.count("_scales")), "blocks of 32 with shared exponents".into());
    tensors(
        "bitsandbytes",
        names.count(".weight.absmax").max(names.count(".SCB")),
        "blocks with absolute maxima".into(),
    );
    let mut blocks: BTreeMap<String, usize> = BTreeMap::new();
    for (_, view) in &names.tensors {
        if view.dtype().block().0 > 1 {
            *blocks.entry(view.dtype().to_string()).or_default() += 1;
        }
    }
    let kinds: Vec<String> = blocks.iter().map(|(dtype, count)| format!("{count} {dtype}")).collect();
    tensors("gguf", blocks.values().sum(), kinds.join(", "));
    found
}

/// The tokenizer of the folder, or of the GGUF file.
fn tokenizer(checkpoint: &Checkpoint) -> Option<Tokenizer> {
    if let Some(file) = gguf_file(checkpoint) {
        let kind = file.get("tokenizer.ggml.model")?.as_str()?.to_owned();
        let vocabulary =
            file.get("tokenizer.ggml.tokens").and_then(|tokens| tokens.as_strings()).map(|list| list.len());
        return Some(Tokenizer { kind, vocabulary, file: name_of(file.file()) });
    }
    let there = |name: &str| Some(checkpoint.dir().join(name)).filter(|path| path.is_file());
    if let Some(path) = there("tokenizer.json") {
        let parsed: Option<Value> = Shard::open(&path).ok().and_then(|file| serde_json::from_slice(file.bytes()).ok());
        let Some(parsed) = parsed else {
            return Some(Tokenizer { kind: "unreadable".into(), vocabulary: None, file: name_of(&path) });
        };
        let model = &parsed["model"];
        // Pairs of token and id, or for Unigram a list.
        let mut ids: Vec<u64> = match &model["vocab"] {
            Value::Object(vocab) => vocab.values().filter_map(Value::as_u64).collect(),
            Value::Array(vocab) => (0..vocab.len() as u64).collect(),
            _ => Vec::new(),
        };
        let added = parsed["added_tokens"].as_array();
        ids.extend(added.into_iter().flatten().filter_map(|token| token["id"].as_u64()));
        ids.sort_unstable();
        ids.dedup();
        let kind = model["type"].as_str().unwrap_or("of an unnamed kind").to_owned();
        return Some(Tokenizer { kind, vocabulary: Some(ids.len()), file: name_of(&path) });
    }
    if let Some(path) = there("vocab.txt") {
        let lines =
            std::fs::read(&path).ok().map(|bytes| bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()).count());
        return Some(Tokenizer { kind: "WordPiece".into(), vocabulary: lines, file: name_of(&path) });
    }
    let binary = ["tokenizer.model", "spiece.model"].iter().find_map(|name| there(name))?;
    Some(Tokenizer { kind: "SentencePiece".into(), vocabulary: None, file: name_of(&binary) })
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
