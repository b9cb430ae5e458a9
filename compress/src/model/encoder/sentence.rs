//! Text to one vector: an encoder with its tokenizer, pooling and normalisation, as the files of sentence-transformers
//! say (`modules.json`, `1_Pooling/config.json`, `sentence_bert_config.json`, `config_sentence_transformers.json`).

use std::path::{Path, PathBuf};

use scruple_weights::Checkpoint;
use serde::Serialize;
use serde_json::Value;

use super::Encoder;
use crate::{
    Result,
    kernel::tensor::with_f32,
    model::{fields::Fields, text::Text},
};

/// Tokens run at a time: enough to fill the matrix products, few enough that activations stay small.
const BATCH_TOKENS: usize = 4096;

/// How hidden states (tokens, hidden) become one vector (Reimers & Gurevych 2019, section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The mean over all tokens.
    Mean,
    /// The sum over all tokens by the root of their number.
    MeanSqrtLen,
    /// The largest value of each feature.
    Max,
    /// The first token's.
    Cls,
}

impl Pooling {
    const KEYS: [(&'static str, &'static str, Self); 4] = [
        ("pooling_mode_mean_tokens", "mean", Self::Mean),
        ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens", Self::MeanSqrtLen),
        ("pooling_mode_max_tokens", "max", Self::Max),
        ("pooling_mode_cls_token", "cls", Self::Cls),
    ];

    fn read(fields: &Fields<'_>) -> Result<Self> {
        if let Some(mode) = fields.get("pooling_mode") {
            let known = Self::KEYS.iter().find(|(_, name, _)| mode.as_str() == Some(name));
            let names: Vec<_> = Self::KEYS.iter().map(|(_, name, _)| *name).collect();
            let wrong = || fields.refuse(format!("`pooling_mode` should be one of {}, found {mode}", names.join(", ")));
            return known.map(|(_, _, pooling)| *pooling).ok_or_else(wrong);
        }
        let keys = fields.object.as_object().into_iter().flatten();
        let on: Vec<&str> = keys
            .filter(|(key, value)| key.starts_with("pooling_mode_") && value.as_bool() == Some(true))
            .map(|(key, _)| key.as_str())
            .collect();
        match on.as_slice() {
            [one] => Self::KEYS.iter().find(|(key, _, _)| key == one).map(|(_, _, pooling)| *pooling),
            _ => None,
        }
        .ok_or_else(|| {
            let names: Vec<_> = Self::KEYS.iter().map(|(key, _, _)| *key).collect();
            fields.refuse(format!(
                "exactly one of {} should be true, found true: [{}]",
                names.join(", "),
                on.join(", ")
            ))
        })
    }

    /// `states` (tokens, hidden) to `out` (hidden). Sums are in f64.
    fn pool(self, states: &[f32], out: &mut [f32]) {
        let hidden = out.len();
        let tokens = states.len() / hidden;
        match self {
            Self::Cls => out.copy_from_slice(&states[..hidden]),
            Self::Max => {
                out.copy_from_slice(&states[..hidden]);
                for row in states.chunks_exact(hidden) {
                    out.iter_mut().zip(row).for_each(|(out, x)| *out = if *x > *out { *x } else { *out });
                }
            }
            Self::Mean | Self::MeanSqrtLen => {
                let divisor = if self == Self::Mean { tokens as f64 } else { (tokens as f64).sqrt() };
                let mut sums = vec![0.0f64; hidden];
                for row in states.chunks_exact(hidden) {
                    sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
                }
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = (sum / divisor) as f32);
            }
        }
    }
}

/// An encoder that turns texts into vectors.
#[derive(Debug)]
pub struct SentenceEncoder {
    encoder: Encoder,
    text: Text,
    pooling: Pooling,
    normalise: bool,
    max_tokens: usize,
    lowercase: bool,
    prompt: String,
}

/// A text as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// With the special tokens around it.
    pub ids: Vec<u32>,
    /// The text was longer than the model takes, and its end is missing.
    pub cut: bool,
}

impl SentenceEncoder {
    /// Opens a checkpoint. Without sentence-transformers' files, vectors are the mean over all tokens, of length 1.
    ///
    /// # Errors
    /// As [`Encoder::open`] and [`Text::open`]; a module, pooling or prompt that is not supported.
    pub fn open(checkpoint: &Checkpoint) -> Result<Self> {
        let encoder = Encoder::open(checkpoint)?;
        let mut text = Text::open(checkpoint)?;
        let dir = checkpoint.dir();
        let (pooling, normalise) = modules(dir)?;
        let mut max_tokens = encoder.config().max_tokens();
        let mut lowercase = false;
        if let Some((file, object)) = read(dir.join("sentence_bert_config.json"))? {
            let fields = Fields::new(&file, &object);
            max_tokens = max_tokens.min(fields.count_or("max_seq_length", Some(max_tokens))?);
            lowercase = fields.flag_or("do_lower_case", false)?;
        }
        text.truncate_to(max_tokens)?;
        let prompt = prompt(dir)?;
        Ok(Self { encoder, text, pooling, normalise, max_tokens, lowercase, prompt })
    }

    /// The encoder.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// Takes out every block that is not among `kept`; see [`Encoder::keep_blocks`].
    ///
    /// # Errors
    /// As there.
    pub fn keep_blocks(&mut self, kept: &[usize]) -> Result<()> {
        self.encoder.keep_blocks(kept)
    }

    /// How hidden states become one vector.
    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// Whether vectors are scaled to length 1.
    pub fn normalised(&self) -> bool {
        self.normalise
    }

    /// Numbers in a vector.
    pub fn dimensions(&self) -> usize {
        self.encoder.config().hidden_size
    }

    /// Most tokens of a text, those around it included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// The token ids of `text`, with what the tokenizer puts around it, cut to what the model takes.
    ///
    /// # Errors
    /// If the text cannot be tokenised, or gives no tokens at all.
    pub fn tokens(&self, text: &str) -> Result<Tokens> {
        let mut whole = format!("{}{text}", self.prompt);
        if self.lowercase {
            whole = whole.to_lowercase();
        }
        let (ids, cut) = self.text.encode_cut(&whole)?;
        Ok(Tokens { ids, cut })
    }

    /// One vector a text, (texts, dimensions) flat.
    ///
    /// # Errors
    /// As [`Encoder::hidden`].
    pub fn embed<S: AsRef<[u32]>>(&self, texts: &[S], mut progress: impl FnMut(usize)) -> Result<Vec<f32>> {
        let hidden = self.dimensions();
        let mut out = vec![0.0; texts.len() * hidden];
        let mut done = 0;
        while done < texts.len() {
            let batch = &texts[done..done + batch(&texts[done..])];
            let states = self.encoder.hidden(batch)?;
            with_f32(&states, |states| {
                let mut at = 0;
                for (ids, out) in batch.iter().zip(out[done * hidden..].chunks_exact_mut(hidden)) {
                    let tokens = ids.as_ref().len();
                    self.pooling.pool(&states[at * hidden..(at + tokens) * hidden], out);
                    at += tokens;
                    if self.normalise {
                        normalise(out);
                    }
                }
            })?;
            done += batch.len();
            progress(done);
        }
        Ok(out)
    }

    /// Class outputs of each text.
    ///
    /// # Errors
    /// As [`Encoder::logits`].
    pub fn classify<S: AsRef<[u32]>>(&self, texts: &[S], mut progress: impl FnMut(usize)) -> Result<Vec<Vec<f32>>> {
        let mut out = Vec::with_capacity(texts.len());
        while out.len() < texts.len() {
            let rest = &texts[out.len()..];
            out.extend(self.encoder.logits(&rest[..batch(rest)])?.to_vec2::<f32>()?);
            progress(out.len());
        }
        Ok(out)
    }
}

/// How many of `texts` are run together.
fn batch<S: AsRef<[u32]>>(texts: &[S]) -> usize {
    let mut tokens = 0;
    let fits = |ids: &&S| {
        tokens += ids.as_ref().len();
        tokens <= BATCH_TOKENS
    };
    texts.iter().take_while(fits).count().max(1)
}

/// `x` scaled to length 1; a vector of zeros stays.
fn normalise(x: &mut [f32]) {
    let length = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    // The bound is torch's, so that the shortest vectors come out alike.
    x.iter_mut().for_each(|x| *x = (f64::from(*x) / length.max(1e-12)) as f32);
}

/// A JSON file that may be absent.
fn read(file: PathBuf) -> Result<Option<(PathBuf, Value)>> {
    let bytes = match std::fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(scruple_weights::Error::io(file, "read the file", error).into()),
    };
    match serde_json::from_slice(&bytes) {
        Ok(value) => Ok(Some((file, value))),
        Err(error) => Err(scruple_weights::Error::file(file, format!("not valid JSON: {error}")).into()),
    }
}

/// Pooling and whether vectors are normalised, as `modules.json` lists them.
fn modules(dir: &Path) -> Result<(Pooling, bool)> {
    let Some((file, listed)) = read(dir.join("modules.json"))? else { return Ok((Pooling::Mean, true)) };
    let fields = Fields::new(&file, &listed);
    let modules = listed.as_array().ok_or_else(|| fields.refuse("expected a list of modules"))?;
    let (mut pooling, mut normalise) = (Pooling::Mean, false);
    for module in modules {
        let kind = module.get("type").and_then(Value::as_str).unwrap_or_default();
        let path = module.get("path").and_then(Value::as_str).unwrap_or_default();
        match kind.rsplit('.').next() {
            Some("Transformer") if path.is_empty() => {}
            Some("Normalize") => normalise = true,
            Some("Pooling") => {
                // A path that leads out of the folder is no module's.
                if Path::new(path).components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
                    return Err(fields.refuse(format!("the module path `{}` leaves the folder", path.escape_debug())));
                }
                let (file, object) = read(dir.join(path).join("config.json"))?
                    .ok_or_else(|| fields.refuse(format!("the file `{path}/config.json` it names is missing")))?;
                pooling = Pooling::read(&Fields::new(&file, &object))?;
            }
            _ => {
                return Err(fields.refuse(format!(
                    "the module `{}` is not supported; only Transformer, Pooling and Normalize are",
                    kind.escape_debug()
                )));
            }
        }
    }
    Ok((pooling, normalise))
}

/// The prompt that stands before every text, where the model has one by default.
fn prompt(dir: &Path) -> Result<String> {
    let Some((file, object)) = read(dir.join("config_sentence_transformers.json"))? else { return Ok(String::new()) };
    let fields = Fields::new(&file, &object);
    let Some(name) = fields.get("default_prompt_name") else { return Ok(String::new()) };
    let prompt = name.as_str().and_then(|name| object.get("prompts")?.get(name)?.as_str());
    prompt
        .map(str::to_string)
        .ok_or_else(|| fields.refuse(format!("`default_prompt_name` is {name}, of which there is no prompt")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pooling_is_what_its_name_says() {
        let states = [1.0, -2.0, 3.0, 4.0, 5.0, 0.5];
        for (pooling, expected) in [
            (Pooling::Mean, [3.0, 2.5 / 3.0]),
            (Pooling::MeanSqrtLen, [9.0, 2.5].map(|sum: f64| (sum / 3f64.sqrt()) as f32)),
            (Pooling::Max, [5.0, 4.0]),
            (Pooling::Cls, [1.0, -2.0]),
        ] {
            let mut out = [0.0; 2];
            pooling.pool(&states, &mut out);
            assert_eq!(out, expected, "{pooling:?}");
        }
        let mut x = [3.0, 4.0];
        normalise(&mut x);
        assert_eq!(x, [0.6, 0.8]);
        let mut zeros = [0.0; 3];
        normalise(&mut zeros);
        assert_eq!(zeros, [0.0; 3]);
    }

    #[test]
    fn the_files_decide_and_what_is_not_supported_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        assert_eq!(modules(dir).unwrap(), (Pooling::Mean, true));
        let write = |name: &str, value: Value| std::fs::write(dir.join(name), value.to_string()).unwrap();
        let module =
            |kind: &str, path: &str| json!({ "type": format!("sentence_transformers.models.{kind}"), "path": path });
        std::fs::create_dir(dir.join("1_Pooling")).unwrap();
        write("modules.json", json!([module("Transformer", ""), module("Pooling", "1_Pooling")]));
        write("1_Pooling/config.json", json!({ "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false }));
        assert_eq!(modules(dir).unwrap(), (Pooling::Cls, false));
        write("1_Pooling/config.json", json!({ "pooling_mode": "max" }));
        assert_eq!(modules(dir).unwrap().0, Pooling::Max);
        for (pooling, part) in [
            (json!({ "pooling_mode_lasttoken": true }), "found true: [pooling_mode_lasttoken]"),
            (json!({ "pooling_mode_cls_token": true, "pooling_mode_max_tokens": true }), "exactly one of"),
            (json!({ "pooling_mode": "lasttoken" }), "found \"lasttoken\""),
        ] {
            write("1_Pooling/config.json", pooling);
            let error = modules(dir).unwrap_err().to_string();
            assert!(error.contains("1_Pooling/config.json: ") && error.contains(part), "{error}");
        }
        for (module, part) in [
            (module("Dense", "2_Dense"), "`sentence_transformers.models.Dense` is not supported"),
            (module("Pooling", "../elsewhere"), "`../elsewhere` leaves the folder"),
            (module("Pooling", "3_Pooling"), "`3_Pooling/config.json` it names is missing"),
        ] {
            write("modules.json", json!([module]));
            let error = modules(dir).unwrap_err().to_string();
            assert!(error.contains("modules.json: ") && error.contains(part), "{error}");
        }
        assert_eq!(prompt(dir).unwrap(), "");
        write(
            "config_sentence_transformers.json",
            json!({ "default_prompt_name": "q", "prompts": { "q": "query: " } }),
        );
        assert_eq!(prompt(dir).unwrap(), "query: ");
        write("config_sentence_transformers.json", json!({ "default_prompt_name": "p", "prompts": {} }));
        assert!(prompt(dir).unwrap_err().to_string().contains("`default_prompt_name` is \"p\""));
    }
}
