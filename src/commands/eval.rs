//! `scruple eval`: perplexity of a model on a text, and its distance to a dense model.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use scruple_compress::{
    export,
    measure::{self, Against, DenseCache, Evaluation, Windows},
    model::{Decoder, decoder::expect_ids, text::Text},
    sequential::nonfinite,
};
use scruple_weights::{Checkpoint, hub::Origin, source::Located};
use serde::Serialize;

use crate::{
    printer::{self, Progress, Table},
    record::{self, Run},
    source,
};

/// Likeliest tokens a position keeps in a cached dense run.
const DEFAULT_TOP_K: usize = 256;

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder or file of the model, or `org/name[@revision][:file]` of a hub
    model: PathBuf,
    /// Text file to predict, as it stands
    #[arg(long)]
    text: PathBuf,
    /// Dense model to compare with, named like the model: KL divergence and same-top-token share
    #[arg(long)]
    against: Option<PathBuf>,
    /// Predicted tokens of a window; each window is run on its own
    #[arg(long, default_value_t = 512)]
    window: usize,
    /// Predict at most this many tokens of the text
    #[arg(long)]
    max_tokens: Option<usize>,
    /// Keep the dense run's likeliest tokens in this folder, and use them when they are there
    #[arg(long, requires = "against")]
    dense_cache: Option<PathBuf>,
    /// Likeliest tokens a position keeps in --dense-cache
    #[arg(long, default_value_t = DEFAULT_TOP_K)]
    top_k: usize,
    /// Print the record as JSON
    #[arg(long)]
    json: bool,
    /// Write `eval.json` and `run.json` into this folder
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// A record of an evaluation: the same bytes for the same inputs.
#[derive(Debug, Serialize)]
pub struct EvalRecord {
    /// The figures.
    #[serde(flatten)]
    pub evaluation: Evaluation,
    /// Bytes of the model's tensors on disk.
    pub model_bytes: u64,
    /// Bits a weight of the blocks' linears takes on disk, scales included.
    pub bits_per_weight: f64,
    /// Where a model of a hub came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Origin>,
    /// Where a dense model of a hub came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against_source: Option<Origin>,
}

/// Tokens of the text in `file`, by the model's tokenizer, nothing added.
pub fn tokens_of(text: &Text, file: &Path) -> Result<(Vec<u32>, String)> {
    let bytes = std::fs::read(file).with_context(|| format!("{}: cannot read the text", file.display()))?;
    let string = String::from_utf8(bytes).map_err(|error| {
        anyhow::anyhow!("{}: the text is not UTF-8 at byte {}", file.display(), error.utf8_error().valid_up_to())
    })?;
    let ids = text.encode(&string, false)?;
    Ok((ids, string))
}

/// Bytes of the text that the targets of `ids[..=targets]` cover.
pub fn predicted_bytes(text: &Text, ids: &[u32], targets: usize, whole: &str) -> Option<usize> {
    let first = text.decode(&ids[..1]).ok()?.len();
    if targets + 1 == ids.len() {
        return whole.len().checked_sub(first);
    }
    text.decode(&ids[..=targets]).ok()?.len().checked_sub(first)
}

/// Refuses a text that [`evaluate`] would refuse, before the long work that comes first.
pub fn expect_text(checkpoint: &Checkpoint, file: &Path, vocab: usize) -> Result<()> {
    let (ids, _) = tokens_of(&Text::open(checkpoint)?, file)?;
    Windows::new(&ids, 1, None).with_context(|| file.display().to_string())?;
    Ok(expect_ids(checkpoint.path(), &ids, vocab)?)
}

/// `error`; or, where a model's numbers went wrong, the first of its tensors that holds one which is not finite.
pub fn blame(error: scruple_compress::Error, checkpoint: &Checkpoint) -> anyhow::Error {
    blame_any(error, [checkpoint])
}

/// The same where several models took part.
pub fn blame_any<'a>(
    error: scruple_compress::Error,
    checkpoints: impl IntoIterator<Item = &'a Checkpoint>,
) -> anyhow::Error {
    let numeric = matches!(error, scruple_compress::Error::Numeric(_));
    let mut tensors = checkpoints.into_iter().filter(|_| numeric).flat_map(Checkpoint::tensors);
    match tensors.find_map(nonfinite) {
        Some(what) => anyhow::Error::msg(what),
        None => error.into(),
    }
}

/// Tells what running the weights of a quantised model alone leaves out.
pub fn note_quantisation(checkpoint: &Checkpoint) -> Result<()> {
    if let Some(note) = export::detect(checkpoint)?.and_then(|quantization| quantization.note()) {
        printer::warn(format!("{}: {note}", checkpoint.path().display()));
    }
    Ok(())
}

/// Runs the evaluation the options describe.
pub fn evaluate(
    model: &Path,
    against: Option<&Path>,
    file: &Path,
    window: usize,
    max_tokens: Option<usize>,
    cache: Option<(&Path, usize)>,
) -> Result<EvalRecord> {
    let checkpoint = Checkpoint::open(model)?;
    let decoder = Decoder::open(&checkpoint)?;
    note_quantisation(&checkpoint)?;
    let text = Text::open(&checkpoint)?;
    let (ids, string) = tokens_of(&text, file)?;
    let windows = Windows::new(&ids, window, max_tokens).with_context(|| file.display().to_string())?;
    let bytes = predicted_bytes(&text, &ids, windows.targets(), &string);
    drop(string);
    let total = windows.targets() as u64;

    let dense_checkpoint = against.map(Checkpoint::open).transpose()?;
    let dense = dense_checkpoint.as_ref().map(Decoder::open).transpose()?;
    if let Some((dense, checkpoint)) = dense.as_ref().zip(dense_checkpoint.as_ref()) {
        let same = Text::open(checkpoint)?.encode("The quick brown fox, 12 of them.", false)?
            == text.encode("The quick brown fox, 12 of them.", false)?;
        anyhow::ensure!(
            same && dense.config().vocab_size == decoder.config().vocab_size,
            "{}: its tokenizer or vocabulary differs from that of {}; only models of one tokenizer can be compared",
            against.unwrap_or(model).display(),
            model.display()
        );
    }
    let kept = match (&dense, cache) {
        (Some(dense), Some((folder, k))) => {
            if !folder.exists() {
                let mut progress = Progress::new("dense run", total);
                measure::cache_dense(dense, &windows, k, folder, &mut |done| progress.at(done as u64, "tokens"))?;
            }
            Some(DenseCache::open(folder, &windows, decoder.config().vocab_size)?)
        }
        _ => None,
    };
    let side = match (&kept, &dense) {
        (Some(cache), _) => Some(Against::Cache(cache)),
        (None, Some(dense)) => Some(Against::Model(dense)),
        (None, None) => None,
    };
    let mut progress = Progress::new("eval", total);
    let evaluation = measure::evaluate(&decoder, side, &windows, bytes, &mut |done| progress.at(done as u64, "tokens"))
        .map_err(|error| blame(error, &checkpoint))?;
    progress.finish();
    checkpoint.expect_unchanged()?;
    let (bits, weights) = decoder.linear_bits();
    Ok(EvalRecord {
        evaluation,
        model_bytes: checkpoint.bytes(),
        bits_per_weight: bits as f64 / weights as f64,
        source: None,
        against_source: None,
    })
}

fn with_error(value: f64, stderr: Option<f64>, digits: usize) -> String {
    match stderr {
        Some(stderr) => format!("{value:.digits$} ± {stderr:.digits$}"),
        None => format!("{value:.digits$}"),
    }
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut clock = Run::start("eval");
    anyhow::ensure!(arguments.window > 0, "--window should be at least 1, found 0");
    anyhow::ensure!(arguments.max_tokens != Some(0), "--max-tokens should be at least 1, found 0");
    anyhow::ensure!(arguments.top_k > 0, "--top-k should be at least 1, found 0");
    let cache = arguments.dense_cache.as_deref().map(|folder| (folder, arguments.top_k));
    let model = source::locate(&arguments.model)?;
    let against = arguments.against.as_deref().map(source::locate).transpose()?;
    let mut record = evaluate(
        model.path(),
        against.as_ref().map(Located::path),
        &arguments.text,
        arguments.window,
        arguments.max_tokens,
        cache,
    )?;
    record.source = model.origin().cloned();
    record.against_source = against.and_then(|against| against.origin().cloned());
    clock.extra.insert("model".into(), arguments.model.display().to_string().into());
    if let Some(out) = &arguments.output {
        record::save(out, "eval", &record, &clock)?;
    }
    if arguments.json {
        printer::json(&record)?;
        return Ok(ExitCode::SUCCESS);
    }
    let e = &record.evaluation;
    let mut table = Table::new(["figure", "value ± standard error"]);
    table.row(["perplexity".into(), with_error(e.perplexity, e.perplexity_stderr, 4)]);
    table.row(["nats a token".into(), with_error(e.nll.value, e.nll.stderr, 5)]);
    if let Some(bits) = e.bits_per_byte {
        table.row(["bits a byte".into(), format!("{bits:.4}")]);
    }
    table.row(["tokens".into(), format!("{} in {} windows of {}", e.tokens, e.windows, e.window)]);
    table.row(["bits a weight (linears)".into(), format!("{:.3}", record.bits_per_weight)]);
    if let Some(c) = &e.against {
        table.row(["dense perplexity".into(), format!("{:.4}", c.dense_perplexity)]);
        table.row(["nats a token over dense".into(), with_error(c.nll_increase.value, c.nll_increase.stderr, 5)]);
        table.row([format!("KL mean ({})", c.kl_kind), with_error(c.kl_mean.value, c.kl_mean.stderr, 5)]);
        table.row(["KL median".into(), with_error(c.kl_p50.value, c.kl_p50.stderr, 5)]);
        table.row(["KL 90 %".into(), with_error(c.kl_p90.value, c.kl_p90.stderr, 5)]);
        table.row(["KL 99 %".into(), with_error(c.kl_p99.value, c.kl_p99.stderr, 5)]);
        let percent = |value: f64| 100.0 * value;
        let stderr = c.same_top.stderr.map(percent);
        table.row(["same top token, %".into(), with_error(percent(c.same_top.value), stderr, 2)]);
    }
    table.print();
    Ok(ExitCode::SUCCESS)
}
