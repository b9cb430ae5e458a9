//! A tiny model with seeded weights, and the program run as a user runs it.
#![allow(dead_code, clippy::print_stderr)] // every test target uses its own part; tests may talk

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use scruple_weights::{Checkpoint, CheckpointWriter, Dtype, TensorSpec, WriterOptions};
use serde_json::{Value, json};

/// A folder for one test: inputs lie in it, results in its sub-folder `out`.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("out")).unwrap();
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where a result called `name` goes.
    pub fn out(&self, name: &str) -> PathBuf {
        self.path("out").join(name)
    }

    /// Names of everything that lies where results go, hidden files too.
    pub fn results(&self) -> Vec<String> {
        names(&self.path("out"))
    }

    /// A file of `bytes`.
    pub fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// A text of `words` words of the tiny model's vocabulary.
    pub fn text(&self, name: &str, words: usize) -> PathBuf {
        self.file(name, text(words, 1))
    }
}

/// Names in `folder`, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Every file of `folder` but `run.json`, which tells of times and of the machine.
pub fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = names(folder).into_iter().filter(|name| name != "run.json");
    names.map(|name| (name.clone(), fs::read(folder.join(name)).unwrap())).collect()
}

#[track_caller]
pub fn assert_same_files(a: &Path, b: &Path) {
    let (a, b) = (contents(a), contents(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    let differing: Vec<_> = a.iter().filter(|(name, bytes)| b[*name] != **bytes).map(|(name, _)| name).collect();
    assert!(differing.is_empty(), "these files differ: {differing:?}");
}

pub fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).unwrap()
}

/// Numbers in −1 to 1 that only depend on `name` and their place.
pub fn values(name: &str, count: usize) -> Vec<f32> {
    let start = name.bytes().fold(2_166_136_261, |hash: u32, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619));
    let number = |i: u32| {
        let mut x = start.wrapping_add(i).wrapping_mul(0x9e37_79b9);
        x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
        x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
        ((x ^ (x >> 16)) >> 8) as f32 / 2f32.powi(23) - 1.0
    };
    (0..count as u32).map(number).collect()
}

/// Words of the tiny model's vocabulary.
pub fn text(words: usize, seed: u32) -> String {
    let numbers = values(&format!("text {seed}"), words);
    let words: Vec<_> = numbers.iter().map(|x| format!("w{}", ((x + 1.0) * 31.0) as usize)).collect();
    words.join(" ")
}

pub const VOCAB: usize = 64;

/// A decoder of the Llama layout in the making; two blocks, 64 wide, with an MLP of 96.
#[derive(Clone)]
pub struct Model {
    pub config: Value,
    pub tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
    pub dtype: Dtype,
    pub tokens: usize,
}

impl Model {
    pub fn tiny() -> Self {
        Self::sized(2, 64, 96)
    }

    pub fn sized(blocks: usize, hidden: usize, intermediate: usize) -> Self {
        let config = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": blocks,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": VOCAB,
            "max_position_embeddings": 128,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": false,
        });
        let mut model = Self { config, tensors: Vec::new(), dtype: Dtype::F32, tokens: VOCAB };
        model.push("model.embed_tokens.weight", &[VOCAB, hidden]);
        for block in 0..blocks {
            for (name, shape) in [
                ("input_layernorm", &[hidden][..]),
                ("self_attn.q_proj", &[hidden, hidden]),
                ("self_attn.k_proj", &[hidden / 2, hidden]),
                ("self_attn.v_proj", &[hidden / 2, hidden]),
                ("self_attn.o_proj", &[hidden, hidden]),
                ("post_attention_layernorm", &[hidden]),
                ("mlp.gate_proj", &[intermediate, hidden]),
                ("mlp.up_proj", &[intermediate, hidden]),
                ("mlp.down_proj", &[hidden, intermediate]),
            ] {
                model.push(&format!("model.layers.{block}.{name}.weight"), shape);
            }
        }
        model.push("model.norm.weight", &[hidden]);
        model.push("lm_head.weight", &[VOCAB, hidden]);
        model
    }

    fn push(&mut self, name: &str, shape: &[usize]) {
        let numbers = values(name, shape.iter().product());
        let numbers = match shape {
            [_] => numbers.iter().map(|x| 1.0 + 0.1 * x).collect(),
            [_, inputs] if !name.contains("embed") => {
                numbers.iter().map(|x| x * (3.0 / *inputs as f32).sqrt()).collect()
            }
            _ => numbers,
        };
        self.tensors.push((name.into(), shape.into(), numbers));
    }

    /// The same with `key` of its configuration set to `value`.
    pub fn config(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.config[key] = value.into();
        self
    }

    /// The same with the numbers of tensor `name` changed.
    pub fn edit(mut self, name: &str, change: impl FnOnce(&mut [f32])) -> Self {
        let tensor = self.tensors.iter_mut().find(|(known, ..)| known == name);
        change(&mut tensor.unwrap_or_else(|| panic!("no {name}")).2);
        self
    }

    /// The same with `value` as element `at` of tensor `name`.
    pub fn set(self, name: &str, at: usize, value: f32) -> Self {
        self.edit(name, |numbers| numbers[at] = value)
    }

    pub fn without(mut self, name: &str) -> Self {
        self.tensors.retain(|(known, ..)| known != name);
        self
    }

    /// The same with tensor `name` in another shape.
    pub fn shape(mut self, name: &str, shape: &[usize]) -> Self {
        self.tensors.retain(|(known, ..)| known != name);
        self.push(name, shape);
        self
    }

    pub fn dtype(mut self, dtype: Dtype) -> Self {
        self.dtype = dtype;
        self
    }

    /// Writes the folder `path`.
    pub fn write(&self, path: PathBuf) -> PathBuf {
        let spec = |(name, shape, _): &(String, Vec<usize>, Vec<f32>)| TensorSpec::new(name, self.dtype, shape.clone());
        let specs = self.tensors.iter().map(spec).collect();
        let mut writer = CheckpointWriter::create(&path, specs, WriterOptions::default()).unwrap();
        for (name, _, values) in &self.tensors {
            let bytes: Vec<u8> = match self.dtype {
                Dtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
                Dtype::Bf16 => values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect(),
                Dtype::F16 => values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect(),
                other => panic!("no tiny model of {other}"),
            };
            writer.write(name, &bytes).unwrap();
        }
        writer.add_file("config.json", self.config.to_string().as_bytes()).unwrap();
        writer.add_file("tokenizer.json", tokenizer(self.tokens).to_string().as_bytes()).unwrap();
        writer.add_file("README.md", b"---\nlicense: mit\n---\n# Tiny\n").unwrap();
        writer.finish().unwrap();
        path
    }
}

/// A tokenizer of words: `w0`, `w1`, …, and one for all others.
pub fn tokenizer(tokens: usize) -> Value {
    let words = (0..tokens - 1).map(|id| (format!("w{id}"), Value::from(id)));
    let vocab: serde_json::Map<String, Value> = words.chain([("<unk>".into(), Value::from(tokens - 1))]).collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "post_processor": null,
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" },
    })
}

/// Copies the files of the folder `from`.
pub fn copy_folder(from: &Path, to: PathBuf) -> PathBuf {
    fs::create_dir(&to).unwrap();
    for name in names(from) {
        fs::copy(from.join(&name), to.join(name)).unwrap();
    }
    to
}

/// Turns around the lowest bit of the first byte of `tensor`.
pub fn flip(folder: &Path, tensor: &str) {
    let file = folder.join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let start = header[tensor]["data_offsets"][0].as_u64().unwrap_or_else(|| panic!("no {tensor}"));
    bytes[8 + length + start as usize] ^= 1;
    fs::write(file, bytes).unwrap();
}

/// Numbers of a tensor on disk.
pub fn numbers(folder: &Path, tensor: &str) -> Vec<f32> {
    Checkpoint::open(folder).unwrap().tensor(tensor).unwrap().to_f32().unwrap()
}

/// What one run of the program did.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    command: String,
}

pub fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_scruple"))
}

/// What becomes one or more arguments of a program: a text is split at its blanks, a path or `String` is one argument.
pub trait Arguments {
    fn push_to(&self, list: &mut Vec<OsString>);
}

impl Arguments for &str {
    fn push_to(&self, list: &mut Vec<OsString>) {
        list.extend(self.split_whitespace().map(OsString::from));
    }
}

macro_rules! one_argument {
    ($($kind:ty),*) => {
        $(impl Arguments for $kind {
            fn push_to(&self, list: &mut Vec<OsString>) {
                list.push(self.into());
            }
        })*
    };
}

one_argument!(String, PathBuf, &PathBuf, &Path);

/// Texts and paths as the arguments of a program.
#[macro_export]
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => {{
        let mut list = Vec::new();
        $($crate::support::Arguments::push_to(&$argument, &mut list);)*
        list
    }};
}

/// Runs the program: `scruple!["eval --json", model, "--text", file]`.
#[macro_export]
macro_rules! scruple {
    ($($argument:expr),* $(,)?) => {
        $crate::support::run(&$crate::arguments![$($argument),*])
    };
}

pub fn run(arguments: &[OsString]) -> Run {
    Run::of(program().args(arguments))
}

impl Run {
    pub fn of(command: &mut Command) -> Self {
        let Output { status, stdout, stderr } = command.output().unwrap();
        let [stdout, stderr] = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        Self { code: status.code(), stdout, stderr, command: format!("{command:?}") }
    }

    #[track_caller]
    pub fn succeeds(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        assert!(!self.stderr.contains("error:"), "{self:#?}");
        self
    }

    #[track_caller]
    pub fn json(self) -> Value {
        let run = self.succeeds();
        serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error} in {run:#?}"))
    }

    /// Ended with 2 and one line, the last, that begins with `error:` and holds all `words`; no data, no panic.
    #[track_caller]
    pub fn refuses(self, words: &[&str]) -> Self {
        eprint!("{}", self.stderr); // shown on failure, or by `-- --nocapture`
        assert_eq!(self.code, Some(2), "{self:#?}");
        assert_eq!(self.stdout, "", "{self:#?}");
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
        let errors: Vec<&str> = self.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{self:#?}");
        assert_eq!(self.stderr.lines().next_back(), Some(errors[0]), "more than a sentence: {self:#?}");
        for word in words {
            assert!(errors[0].contains(word), "`{word}` is not in: {}\nof {}", errors[0], self.command);
        }
        self
    }

    /// As [`refuses`](Self::refuses) for what the command line's own rules refuse: a usage line may follow.
    #[track_caller]
    pub fn refuses_the_arguments(self, words: &[&str]) {
        assert_eq!(self.code, Some(2), "{self:#?}");
        assert_eq!(self.stderr.matches("error: ").count(), 1, "{self:#?}");
        for word in words {
            assert!(self.stderr.contains(word), "`{word}` is not in: {}", self.stderr);
        }
    }
}
