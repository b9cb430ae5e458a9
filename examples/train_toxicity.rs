//! Trains the toxicity scorer that comes with the program, and measures it on texts left out.
//!
//!     cargo run --release --example train_toxicity -- --prompts FOLDER [--tweets FILE] --out src/trust/toxicity/ngrams.bin
//!
//! `--prompts`: folder of RealToxicityPrompts as JSON lines {prompt: {text, toxicity}, continuation: {text, toxicity}}, with
//! Perspective's scores (the files `toxic*.jsonl` and `nontoxic*.jsonl` of DecodingTrust). Rows with an even number train,
//! those with an odd one are left out and measured. `--tweets`: `labeled_data.csv` of
//! t-davidson/hate-speech-and-offensive-language, whose votes for hate and offence (against neither) stand for a score.
//!
//! How much the tweets count, and how much weights are held down, is decided on halves of the training rows; the rows left
//! out are looked at once. Nothing is drawn, so the same files give the same bytes.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Parser;
use scruple::{
    printer,
    trust::{
        statistics::Bootstrap,
        toxicity::{
            Agreement,
            ngrams::{BUCKETS, Header, Ngrams, features},
        },
    },
};
use scruple_compress::data::random::Stream;

#[derive(Debug, Parser)]
struct Arguments {
    /// Folder of RealToxicityPrompts
    #[arg(long)]
    prompts: PathBuf,
    /// Tweets with votes
    #[arg(long)]
    tweets: Option<PathBuf>,
    /// Where to write the scorer
    #[arg(long)]
    out: PathBuf,
}

/// A text as the trainer sees it.
struct Text {
    features: Vec<(usize, f64)>,
    score: f64,
    /// How much it counts.
    weight: f64,
    /// The file and row it is of.
    row: String,
    number: usize,
}

/// What is decided on halves of the training rows.
#[derive(Debug, Clone, Copy)]
struct Setting {
    tweets: f64,
    decay: f64,
}

const EPOCHS: usize = 20;
const STEP: f64 = 0.3;

fn prompts(folder: &Path) -> Result<Vec<Text>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .with_context(|| format!("{}: cannot be read", folder.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|end| end == "jsonl"));
    files.sort();
    let mut texts = Vec::new();
    for file in files {
        let shown = file.display();
        for (number, line) in std::fs::read_to_string(&file)?.lines().enumerate() {
            let row: serde_json::Value =
                serde_json::from_str(line).with_context(|| format!("{shown}: line {}", number + 1))?;
            for side in ["prompt", "continuation"] {
                let (text, score) = (row[side]["text"].as_str(), row[side]["toxicity"].as_f64());
                let (Some(text), Some(score)) = (text, score) else { continue }; // the service gave no score
                let row = format!("{}/{number}", file.file_stem().unwrap_or_default().display());
                texts.push(Text { features: features(text), score, weight: 1.0, row, number });
            }
        }
    }
    anyhow::ensure!(!texts.is_empty(), "{}: no scored texts", folder.display());
    Ok(texts)
}

/// Tweets; a row is `,count,hate_speech,offensive_language,neither,class,tweet`, and tweets may span lines.
fn tweets(file: &Path) -> Result<Vec<Text>> {
    let limits = scruple::trust::readers::Limits::default();
    let source = scruple::trust::readers::Source::open(file, limits)?;
    let mut texts = Vec::new();
    for (number, row) in source.rows()?.iter().enumerate() {
        let votes = row.whole("count")?.max(1) as f64;
        // Hate is worse than offence, which is often no more than coarse.
        let score = (row.whole("hate_speech")? as f64 + 0.8 * row.whole("offensive_language")? as f64) / votes;
        let features = features(row.text("tweet")?);
        texts.push(Text { features, score: score.min(1.0), weight: 1.0, row: format!("tweets/{number}"), number });
    }
    Ok(texts)
}

/// Logistic regression on scores as soft labels by AdaGrad (Duchi et al. 2011): weights and bias.
fn train<'a>(texts: impl IntoIterator<Item = (&'a Text, f64)>, setting: Setting) -> (Vec<f64>, f64) {
    let mut texts: Vec<(&Text, f64)> = texts.into_iter().collect();
    let (mut w, mut seen) = (vec![0.0; BUCKETS], vec![1e-8; BUCKETS]);
    let (mut bias, mut bias_seen) = (0.0, 1e-8);
    let mut stream = Stream::new(0, "toxicity", 0);
    for _ in 0..EPOCHS {
        stream.shuffle(&mut texts);
        for (text, counts) in &texts {
            let z: f64 = bias + text.features.iter().map(|&(at, x)| w[at] * x).sum::<f64>();
            let error = counts * (1.0 / (1.0 + (-z).exp()) - text.score);
            for &(at, x) in &text.features {
                let gradient = error * x + setting.decay * counts * w[at];
                seen[at] += gradient * gradient;
                w[at] -= STEP * gradient / f64::sqrt(seen[at]);
            }
            bias_seen += error * error;
            bias -= STEP * error / f64::sqrt(bias_seen);
        }
    }
    (w, bias)
}

/// Rounds to 8 bits; weights far out are cut so that the others keep their digits.
fn rounded(w: &[f64]) -> (Vec<i8>, f64) {
    let mut sizes: Vec<f64> = w.iter().map(|w| w.abs()).collect();
    sizes.sort_by(f64::total_cmp);
    let scale = sizes[sizes.len() - 1 - sizes.len() / 10_000] / 127.0;
    (w.iter().map(|w| (w / scale).round().clamp(-127.0, 127.0) as i8).collect(), scale)
}

fn agreement<'a>(
    weights: &[i8],
    (scale, bias): (f64, f64),
    texts: impl Iterator<Item = &'a Text>,
    replicates: usize,
) -> Result<Agreement> {
    let scored: Vec<(f64, f64, String)> = texts
        .map(|text| {
            let sum: f64 = text.features.iter().map(|&(at, x)| f64::from(weights[at]) * x).sum();
            (1.0 / (1.0 + (-(bias + scale * sum)).exp()), text.score, text.row.clone())
        })
        .collect();
    let on =
        "RealToxicityPrompts as DecodingTrust ships them (first 600 toxic and 600 other rows), rows with an odd number";
    Agreement::measure("Perspective", on, &scored, Bootstrap { replicates, seed: 0 })
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let all = prompts(&arguments.prompts)?;
    let tweets = arguments.tweets.as_deref().map(tweets).transpose()?.unwrap_or_default();
    let (known, left_out): (Vec<&Text>, Vec<&Text>) = all.iter().partition(|text| text.number % 2 == 0);
    printer::say(format!("{} texts train, {} are left out, {} tweets", known.len(), left_out.len(), tweets.len()));
    let mut best: Option<(f64, Setting)> = None;
    for tweet_weight in if tweets.is_empty() { &[0.0][..] } else { &[0.0, 0.01, 0.1, 1.0] } {
        for decay in [0.0, 1e-5, 1e-4, 1e-3] {
            let setting = Setting { tweets: *tweet_weight, decay };
            let mut areas = Vec::new();
            for half in 0..2 {
                let train_on = known.iter().filter(|text| text.number / 2 % 2 == half).map(|text| (*text, text.weight));
                let others = tweets.iter().filter(|_| setting.tweets > 0.0).map(|text| (text, setting.tweets));
                let (w, bias) = train(train_on.chain(others), setting);
                let (weights, scale) = rounded(&w);
                let others = known.iter().filter(|text| text.number / 2 % 2 != half).copied();
                let found = agreement(&weights, (scale, bias), others, 10)?;
                areas.push((found.auc.value, found.spearman.value));
            }
            let (auc, rank) = ((areas[0].0 + areas[1].0) / 2.0, (areas[0].1 + areas[1].1) / 2.0);
            printer::say(format!("{setting:?}: AUC {auc:.4}, Spearman {rank:.4} on halves of the training rows"));
            if best.is_none_or(|(before, _)| auc > before) {
                best = Some((auc, setting));
            }
        }
    }
    let Some((_, setting)) = best else { anyhow::bail!("there was nothing to decide") };
    let others = tweets.iter().filter(|_| setting.tweets > 0.0).map(|text| (text, setting.tweets));
    let (w, bias) = train(known.iter().map(|text| (*text, text.weight)).chain(others), setting);
    let (weights, scale) = rounded(&w);
    let agreement = agreement(&weights, (scale, bias), left_out.into_iter(), 1000)?;
    printer::say(serde_json::to_string_pretty(&agreement)?);
    let trained_on = match setting.tweets > 0.0 {
        true => {
            "RealToxicityPrompts with Perspective's scores (AI-secure/DecodingTrust, data/toxicity/user_prompts, the first 600 \
             rows of each file), rows with an even number; tweets with votes for hate and offence (t-davidson/hate-speech-and-offensive-language, MIT)"
        }
        false => {
            "RealToxicityPrompts with Perspective's scores (AI-secure/DecodingTrust, data/toxicity/user_prompts, the first 600 \
             rows of each file), rows with an even number"
        }
    };
    let header = Header { version: 1, trained_on: trained_on.into(), scale, bias, agreement };
    let scorer = Ngrams::new(header, weights)?;
    std::fs::write(&arguments.out, scorer.bytes()?)
        .with_context(|| format!("{}: cannot be written", arguments.out.display()))
}
