//! `scruple classify`: texts or images to classes, and how many are right where the data says.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use scruple_compress::{
    Error,
    data::cifar::{CHANNELS, CLASSES, Cifar10, SIDE},
    model::{
        any::{AnyModel, Kind},
        encoder::SentenceEncoder,
        labels::{Labels, Scores, argmax},
        vit::{Images, pixel_statistics},
    },
};
use scruple_weights::{Checkpoint, hub::Origin};
use serde::Serialize;

use super::{
    classify_weights,
    embed::{Texts, tokenise},
    eval::blame,
};
use crate::{
    printer::{self, Progress, Table},
    record::{self, Run},
    source,
};

/// Images run at a time.
const BATCH: usize = 100;

/// Mean and deviation of ImageNet's channels, which residual nets for CIFAR-10 are commonly trained with too.
const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder or file of the model, or `org/name[@revision]` of a hub: a text classifier, a vision transformer with a
    /// head, or a residual net; with `--registry` one or more models of any kind
    #[arg(required = true)]
    model: Vec<PathBuf>,
    #[command(flatten)]
    weights: classify_weights::Options,
    #[command(flatten)]
    texts: Texts,
    /// CIFAR-10 images in their binary form, gzipped or not
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "stdin"])]
    images: Option<PathBuf>,
    /// Classify the first so many only
    #[arg(long)]
    limit: Option<usize>,
    /// Means of the red, green and blue of pixels from 0 to 1 the model was trained with, where no
    /// preprocessor_config.json says; ImageNet's without it
    #[arg(long, value_name = "R,G,B", value_delimiter = ',', requires = "images")]
    mean: Option<Vec<f32>>,
    /// Their deviations
    #[arg(long, value_name = "R,G,B", value_delimiter = ',', requires = "images")]
    std: Option<Vec<f32>>,
    /// Print a record as JSON
    #[arg(long)]
    json: bool,
    /// Write `classify.json` and `run.json` into this folder, and with `--registry` the page `card.html` and a picture of
    /// each of the first models (`card.png`)
    #[arg(short, long)]
    output: Option<PathBuf>,
}

impl Arguments {
    /// The model that sorts texts or images.
    fn model(&self) -> &Path {
        &self.model[0]
    }
}

/// What a model says of one text or image.
#[derive(Debug, Serialize)]
struct Answer {
    /// The class of the largest score.
    label: String,
    /// Its score: a probability, or the number itself of a regression.
    score: f32,
    /// What it is, where the data says.
    #[serde(skip_serializing_if = "Option::is_none")]
    truth: Option<String>,
    /// One a class.
    scores: Vec<f32>,
}

/// How many of the answers are right.
#[derive(Debug, Serialize)]
struct Accuracy {
    right: usize,
    of: usize,
    accuracy: f64,
    /// Wilson's interval of 95 %.
    interval: (f64, f64),
}

/// What was found, the same for the same data and model.
#[derive(Debug, Serialize)]
struct Record {
    kind: &'static str,
    labels: Vec<String>,
    scores: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy: Option<Accuracy>,
    /// Texts whose end was cut off.
    #[serde(skip_serializing_if = "Option::is_none")]
    cut: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<Origin>,
    answers: Vec<Answer>,
}

/// The interval of 95 % for a share of `right` among `of` (Wilson 1927): where a share of p would be seen as far off at
/// 1.96 standard errors.
fn wilson(right: usize, of: usize) -> (f64, f64) {
    const Z: f64 = 1.959_963_984_540_054;
    let (n, p) = (of as f64, right as f64 / of as f64);
    let centre = p + Z * Z / (2.0 * n);
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    (((centre - half) / scale).max(0.0), ((centre + half) / scale).min(1.0))
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.weights.registry.is_some() {
        let output = arguments.output.as_deref();
        return classify_weights::run(&arguments.model, &arguments.weights, arguments.json, output);
    }
    let models = arguments.model.len();
    anyhow::ensure!(models == 1, "one model at a time sorts texts or images, found {models}; --registry takes many");
    let mut clock = Run::start("classify");
    anyhow::ensure!(arguments.limit != Some(0), "--limit should be at least 1, found 0");
    let located = source::locate(arguments.model())?;
    let checkpoint = located.open()?;
    let model = AnyModel::open(&checkpoint)?;
    let mut record = match (&model, &arguments.images) {
        (AnyModel::Encoder(_), None) => classify_texts(arguments, &checkpoint)?,
        (AnyModel::Vit(_) | AnyModel::ResNet(_), Some(_)) => classify_images(arguments, &checkpoint, &model)?,
        (AnyModel::Encoder(_), Some(_)) => refuse(arguments, model.kind(), "give texts by --text or --stdin")?,
        (AnyModel::Vit(_) | AnyModel::ResNet(_), None) => refuse(arguments, model.kind(), "give images by --images")?,
        (AnyModel::Decoder(_), _) => refuse(arguments, model.kind(), "it has no classes")?,
    };
    record.source = located.origin().cloned();
    clock.extra.insert("model".into(), arguments.model().display().to_string().into());
    if let Some(out) = &arguments.output {
        record::save(out, "classify", &record, &clock)?;
    }
    if arguments.json {
        printer::json(&record)?;
        return Ok(ExitCode::SUCCESS);
    }
    match &record.accuracy {
        Some(accuracy) => {
            let mut table = Table::new(["figure", "value"]);
            let percent = |x: f64| format!("{:.2}", 100.0 * x);
            table.row(["right".into(), format!("{} of {}", accuracy.right, accuracy.of)]);
            table.row(["accuracy, %".into(), percent(accuracy.accuracy)]);
            let (low, high) = accuracy.interval;
            table.row(["95 % interval (Wilson)".into(), format!("{} to {}", percent(low), percent(high))]);
            table.print();
        }
        None => {
            record.answers.iter().for_each(|answer| printer::data(format!("{}\t{:.4}", answer.label, answer.score)))
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn refuse(arguments: &Arguments, kind: Kind, what: &str) -> Result<Record> {
    anyhow::bail!("{}: the model is {}; {what}", arguments.model().display(), kind.describe())
}

/// The record of rows of class outputs.
fn record(
    kind: Kind,
    labels: &Labels,
    logits: &[Vec<f32>],
    truths: Option<&[u8]>,
    checkpoint: &Checkpoint,
) -> Result<Record> {
    let mut answers = Vec::with_capacity(logits.len());
    let mut right = 0;
    for (index, logits) in logits.iter().enumerate() {
        if logits.iter().any(|x| !x.is_finite()) {
            let what = format!("the class outputs of item {} are not finite", index + 1);
            return Err(blame(Error::Numeric(what), checkpoint));
        }
        let (scores, best) = (labels.scores(logits), argmax(logits));
        let truth = truths.map(|truths| CLASSES[usize::from(truths[index])].to_string());
        right += usize::from(truth.as_ref() == Some(&labels.names[best]));
        answers.push(Answer { label: labels.names[best].clone(), score: scores[best], truth, scores });
    }
    let of = answers.len();
    let accuracy =
        truths.map(|_| Accuracy { right, of, accuracy: right as f64 / of as f64, interval: wilson(right, of) });
    Ok(Record {
        kind: kind.describe(),
        labels: labels.names.clone(),
        scores: match labels.scores {
            Scores::Softmax | Scores::Sigmoid => "probabilities",
            Scores::Identity => "numbers",
        },
        accuracy,
        cut: None,
        source: None,
        answers,
    })
}

fn classify_texts(arguments: &Arguments, checkpoint: &Checkpoint) -> Result<Record> {
    let Some(texts) = arguments.texts.read(arguments.limit)? else {
        return refuse(arguments, Kind::Encoder, "give texts by --text or --stdin");
    };
    let model = SentenceEncoder::open(checkpoint)?;
    let labels = model.encoder().labels().ok_or_else(|| {
        anyhow::anyhow!(
            "{}: the model has no classification head; `scruple embed` gives its embeddings",
            arguments.model().display()
        )
    })?;
    let (ids, cut) = tokenise(&model, &texts)?;
    let mut progress = Progress::new("classify", ids.len() as u64);
    let logits = model.classify(&ids, |done| progress.at(done as u64, "texts"))?;
    progress.finish();
    Ok(Record { cut: Some(cut), ..record(Kind::Encoder, labels, &logits, None, checkpoint)? })
}

/// Three numbers of an option.
fn three(name: &str, given: Option<&[f32]>, positive: bool) -> Result<Option<[f32; 3]>> {
    let Some(given) = given else { return Ok(None) };
    match <[f32; 3]>::try_from(given) {
        Ok(three) if three.iter().all(|x| x.is_finite() && (*x > 0.0 || !positive)) => Ok(Some(three)),
        _ => anyhow::bail!(
            "--{name} should be three {}numbers with commas between, found {given:?}",
            if positive { "positive " } else { "" }
        ),
    }
}

fn classify_images(arguments: &Arguments, checkpoint: &Checkpoint, model: &AnyModel) -> Result<Record> {
    let Some(file) = &arguments.images else { return refuse(arguments, model.kind(), "give images by --images") };
    let (mut mean, mut deviation) = IMAGENET;
    let labels = match model {
        AnyModel::Vit(vit) => {
            let shown = arguments.model().display();
            let size = vit.config().image_size;
            anyhow::ensure!(
                size == (SIDE, SIDE),
                "{shown}: the model takes images of {} × {} pixels, those of CIFAR-10 have {SIDE} × {SIDE}",
                size.0,
                size.1
            );
            if let Some(statistics) = pixel_statistics(checkpoint)? {
                (mean, deviation) = statistics;
            }
            let Some(labels) = vit.labels() else { anyhow::bail!("{shown}: the model has no classification head") };
            labels.clone()
        }
        AnyModel::ResNet(net) => Labels {
            names: (0..net.classes()).map(|class| format!("LABEL_{class}")).collect(),
            scores: Scores::Softmax,
        },
        AnyModel::Decoder(_) | AnyModel::Encoder(_) => return refuse(arguments, model.kind(), "it takes no images"),
    };
    let labels = with_classes(labels, arguments)?;
    mean = three("mean", arguments.mean.as_deref(), false)?.unwrap_or(mean);
    deviation = three("std", arguments.std.as_deref(), true)?.unwrap_or(deviation);
    let images = Cifar10::read(file, arguments.limit)?;
    let mut logits: Vec<Vec<f32>> = Vec::with_capacity(images.len());
    let mut progress = Progress::new("classify", images.len() as u64);
    while logits.len() < images.len() {
        let range = logits.len()..(logits.len() + BATCH).min(images.len());
        let pixels = images.normalised(range, mean, deviation);
        let batch = Images { pixels: &pixels, channels: CHANNELS, size: (SIDE, SIDE) };
        logits.extend(match model {
            AnyModel::Vit(vit) => vit.logits(batch)?.to_vec2()?,
            AnyModel::ResNet(net) => net.logits(batch)?,
            AnyModel::Decoder(_) | AnyModel::Encoder(_) => {
                return refuse(arguments, model.kind(), "it takes no images");
            }
        });
        progress.at(logits.len() as u64, "images");
    }
    progress.finish();
    record(model.kind(), &labels, &logits, Some(images.labels()), checkpoint)
}

/// `labels` under CIFAR-10's names: a model without names of its own has them in the data's order.
fn with_classes(labels: Labels, arguments: &Arguments) -> Result<Labels> {
    let nameless = labels.names.iter().enumerate().all(|(class, name)| *name == format!("LABEL_{class}"));
    let names: Vec<String> = match nameless {
        true => CLASSES[..labels.names.len().min(CLASSES.len())].iter().map(|name| (*name).to_string()).collect(),
        false => labels.names.iter().map(|name| name.to_lowercase()).collect(),
    };
    let all_there = CLASSES.iter().all(|class| names.iter().any(|name| name == class));
    anyhow::ensure!(
        labels.names.len() == CLASSES.len() && all_there,
        "{}: the model's {} classes ({}) are not CIFAR-10's",
        arguments.model().display(),
        labels.names.len(),
        labels.names.iter().take(3).cloned().collect::<Vec<_>>().join(", ")
    );
    Ok(Labels { names, ..labels })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilsons_interval_is_the_published_one() {
        // Newcombe (1998), table I, Wilson's score method: 81 of 263; 15 of 148; 0 of 20; 1 of 29.
        for (right, of, low, high) in
            [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)]
        {
            let found = wilson(right, of);
            assert!((found.0 - low).abs() < 5e-5 && (found.1 - high).abs() < 5e-5, "{right} of {of}: {found:?}");
        }
        assert_eq!(wilson(20, 20).1, 1.0);
    }

    #[test]
    fn three_numbers_are_three() {
        assert_eq!(three("mean", None, false).unwrap(), None);
        assert_eq!(three("mean", Some(&[0.0, 0.5, 1.0]), false).unwrap(), Some([0.0, 0.5, 1.0]));
        for (given, positive) in [(&[0.5f32, 0.5][..], false), (&[0.5, 0.5, f32::NAN], false), (&[0.5, 0.0, 0.5], true)]
        {
            assert!(three("std", Some(given), positive).unwrap_err().to_string().starts_with("--std should be three"));
        }
    }
}
