//! What all points of a sweep are measured by: the items, the texts and the dense model; and one model measured.

use std::{cell::OnceCell, path::PathBuf};

use anyhow::{Context, Result};
use scruple_compress::{methods, recipe::Recipe, sharing::Rps};
use scruple_weights::{digest::sha256, source::Located};
use serde_json::{Value, json};

use super::{
    data::{Dense, DenseDimension, FORMAT, Point, Reference},
    point::{self, DenseFound, PointFound, ReferenceFound},
    sweep::{Asked, Sweep, TextKeys},
};
use crate::{
    commands::{compress::Provenance, verify},
    printer::Progress,
    trust::{
        evaluate::{self, Keeping, Reply, Side},
        language_model::Counts,
        paired::Summary,
        questions::{self, Questions, Topic},
        statistics,
        suite::Suite,
    },
};

/// A text that points need, with the hash of its bytes.
#[derive(Debug)]
pub struct TextFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Of its bytes.
    pub sha256: String,
}

impl TextFile {
    /// Reads it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(path: PathBuf) -> Result<Self> {
        let bytes = std::fs::read(&path).with_context(|| format!("{}: cannot read the text", path.display()))?;
        Ok(Self { sha256: sha256(&bytes), path })
    }
}

/// The items a sweep asks for; whether all come with the program; and the files that were passed over.
///
/// # Errors
/// A source that cannot be read, or holds nothing of what is wanted of it.
pub fn suite_of(sweep: &Sweep) -> Result<(Suite, bool, Vec<String>)> {
    let (mut all, mut warnings) = (Vec::new(), Vec::new());
    for (index, source) in sweep.sources.iter().enumerate() {
        let context = || format!("suite {} of the sweep", index + 1);
        let mut read = Questions::open(&source.path).with_context(context)?;
        let known: Vec<&str> = read.dimensions.iter().map(|(name, _)| name.as_str()).collect();
        if let Some(name) = source.dimensions.iter().find(|name| !known.contains(&name.as_str())) {
            anyhow::bail!("{}: {} holds no `{name}`, it holds {}", context(), read.name, known.join(", "));
        }
        if !source.dimensions.is_empty() {
            read.retain(|name| source.dimensions.iter().any(|wanted| wanted == name));
        }
        if !source.parts.is_empty() {
            let filter = scruple_weights::PathFilter::new(source.parts.clone(), Vec::new()).with_context(context)?;
            for (_, items) in &mut read.dimensions {
                items.retain(|item| filter.matches(&item.part));
            }
            read.dimensions.retain(|(_, items)| !items.is_empty());
            anyhow::ensure!(
                !read.dimensions.is_empty(),
                "{}: {} holds no part called {}",
                context(),
                read.name,
                source.parts.join(" or ")
            );
        }
        if let Some(most) = source.items {
            for (_, items) in &mut read.dimensions {
                *items = crate::trust::suite::limit(items, most);
            }
        }
        for file in &read.unknown {
            let name = file.file_name().unwrap_or(file.as_os_str()).to_string_lossy();
            warnings.push(format!("{name}: of no format that is read; it was passed over"));
        }
        all.push(read);
    }
    let embedded = all.iter().all(|one| one.embedded);
    let mut suite = questions::join(all)?;
    if let Some(name) = &sweep.name {
        suite.name.clone_from(name);
    }
    Ok((suite, embedded, warnings))
}

/// What all points are measured by.
#[derive(Debug)]
pub struct Bench<'a> {
    /// What is asked.
    pub sweep: &'a Sweep,
    /// What the dense model is called.
    pub name: &'a str,
    /// The dense model.
    pub dense: Side,
    /// Name and hash of the items.
    pub suite: (&'a str, &'a str),
    /// The items.
    pub topics: &'a [Topic<'a>],
    /// The items come with the program.
    pub embedded: bool,
    /// The text whose perplexity is measured.
    pub text: Option<(TextFile, &'a TextKeys)>,
    /// The calibration text.
    pub calibration: Option<TextFile>,
    /// Where answers are kept.
    pub keeping: Keeping,
    /// The dense model's answers, once a point is compared with them.
    pub replies: OnceCell<Vec<Reply>>,
}

impl Bench<'_> {
    /// Hash of what is asked of `what`.
    ///
    /// # Errors
    /// If it cannot be written as JSON.
    pub fn key(&self, what: &Value) -> Result<String> {
        let rules: Vec<_> = self.topics.iter().map(|topic| (topic.dimension.name(), topic.rule_name())).collect();
        let text = self.text.as_ref().map(|(file, keys)| json!([file.sha256, keys.window, keys.windows]));
        let asked = json!({
            "curve": FORMAT,
            "version": env!("CARGO_PKG_VERSION"),
            "what": what,
            "dense": [json!(self.dense.hashes), json!(self.name)],
            "suite": self.suite,
            "embedded": self.embedded,
            "rules": rules,
            "chat": self.sweep.chat,
            "statistics": statistics::VERSION,
            "bootstrap": self.sweep.bootstrap,
            "text": text,
        });
        Ok(sha256(&serde_json::to_vec(&asked)?))
    }

    /// What a recipe's result depends on: the recipe, and the calibration text where a method reads one.
    ///
    /// # Errors
    /// An unknown method or parameter.
    pub fn made_from(&self, recipe: &Recipe) -> Result<Value> {
        let text = self.calibration.as_ref().filter(|_| reads_text(recipe).unwrap_or(true));
        Ok(json!({ "recipe": recipe, "calibration": text.map(|file| &file.sha256) }))
    }

    /// The answers of `side` to all topics.
    fn ask(&self, side: &Side, counts: &mut Counts) -> Result<Vec<Reply>> {
        let total: usize = self.topics.iter().map(|topic| topic.items.len()).sum();
        let mut progress = Progress::new(side.name, total as u64);
        let mut done = 0;
        let mut replies = Vec::new();
        for topic in self.topics {
            let put = side.put(topic)?;
            let mut tell = |items: usize| {
                done += items as u64;
                progress.at(done, topic.dimension.name());
            };
            replies.push(evaluate::reply(side, topic, put, self.suite, &self.keeping, counts, &mut tell)?);
        }
        Ok(replies)
    }

    /// The dense model's answers, asked for once.
    fn dense_replies(&self, counts: &mut Counts) -> Result<&[Reply]> {
        if let Some(replies) = self.replies.get() {
            return Ok(replies);
        }
        let replies = self.ask(&self.dense, counts)?;
        Ok(self.replies.get_or_init(|| replies))
    }

    /// Perplexity of `side` on the sweep's text, and its divergence from the dense model where that is given.
    fn perplexity(&self, side: &Side, dense: Option<&Side>) -> Result<(Option<f64>, Option<f64>)> {
        let Some((file, keys)) = &self.text else { return Ok((None, None)) };
        let window = keys.window.min(side.model.decoder().config().max_positions);
        let most = keys.windows.map(|windows| windows.saturating_mul(window));
        let found = evaluate::perplexity(side, dense, &file.path, window, most)?;
        Ok((Some(found.perplexity), found.against.map(|against| against.kl_mean.value)))
    }

    /// One model by itself: its dimensions, and what to know of them.
    fn alone(&self, who: &str, replies: &[Reply]) -> Result<(Vec<DenseDimension>, Vec<String>)> {
        let (mut dimensions, mut warnings) = (Vec::new(), Vec::new());
        for (topic, reply) in self.topics.iter().zip(replies) {
            let single = evaluate::alone(topic, reply, self.sweep.bootstrap)?;
            warnings.extend(reply.warning(who, topic));
            let constant = single.measured.constant;
            warnings.extend(evaluate::constant(single.dimension, &format!("the {who} model"), constant));
            dimensions.push(point::dense_dimension(topic, &single));
        }
        Ok((dimensions, warnings))
    }

    /// The dense model.
    ///
    /// # Errors
    /// If it cannot be run, or changes meanwhile.
    pub fn measure_dense(&self, counts: &mut Counts) -> Result<DenseFound> {
        let (dimensions, warnings) = self.alone("dense", self.dense_replies(counts)?)?;
        let (perplexity, _) = self.perplexity(&self.dense, None)?;
        let Side { checkpoint, hashes, .. } = &self.dense;
        checkpoint.expect_unchanged()?;
        let dense = Dense {
            name: self.name.into(),
            tensors_sha256: hashes.tensors.clone(),
            parameters: checkpoint.parameters(),
            tensor_bytes: checkpoint.bytes(),
            bits_per_weight: bits_per_weight(&self.dense),
            perplexity,
        };
        Ok(DenseFound { dense, dimensions, warnings })
    }

    /// Another dense model at `located`, called `name`.
    ///
    /// # Errors
    /// If it cannot be run, or changes meanwhile.
    pub fn measure_reference(&self, name: &str, located: &Located, counts: &mut Counts) -> Result<ReferenceFound> {
        let side = Side::open("reference", located, self.sweep.chat)?;
        let (dimensions, warnings) = self.alone(name, &self.ask(&side, counts)?)?;
        let (perplexity, _) = self.perplexity(&side, None)?;
        side.checkpoint.expect_unchanged()?;
        let reference = Reference {
            name: name.into(),
            tensor_bytes: side.checkpoint.bytes(),
            parameters: side.checkpoint.parameters(),
            perplexity,
            dimensions,
        };
        Ok(ReferenceFound { reference, warnings })
    }

    /// The compressed model at `located`, beside the dense one; `of` is the fingerprint of the model it was made from, where
    /// that is another than the dense one.
    ///
    /// # Errors
    /// If it is of another model, cannot be run, or changes meanwhile.
    pub fn measure_point(
        &self,
        asked: &Asked,
        located: &Located,
        of: Option<&str>,
        counts: &mut Counts,
    ) -> Result<PointFound> {
        let side = Side::open("model", located, self.sweep.chat)?;
        let provenance = match located.folder().join("scruple.json").is_file() {
            true => Some(verify::provenance(located.folder())?),
            false => None,
        };
        self.expect_kin(&side, provenance.as_ref(), of)?;
        let replies = self.ask(&side, counts)?;
        let dense = self.dense_replies(counts)?;
        let (mut dimensions, mut warnings, mut comparisons) = (Vec::new(), Vec::new(), Vec::new());
        for ((topic, before), after) in self.topics.iter().zip(dense).zip(&replies) {
            let (paired, same_tokens) = evaluate::compare(topic, before, after, self.sweep.bootstrap)?;
            if !same_tokens {
                let name = topic.dimension.name();
                warnings
                    .push(format!("{name}: the items were read as other tokens than the dense model's; no label KL"));
            }
            dimensions.push(point::point_dimension(topic, &paired.comparison, (before, after), self.embedded));
            comparisons.push(paired.comparison);
        }
        let linears = provenance.as_ref().map_or(&[][..], |provenance| &provenance.linears);
        for (count, what) in [
            (
                linears.iter().filter(|one| !one.report.escalations.is_empty()).count(),
                "needed more dampening than asked",
            ),
            (
                linears.iter().filter(|one| one.warning.is_some()).count(),
                "saw fewer calibration tokens than they have inputs",
            ),
        ] {
            if count > 0 {
                warnings.push(format!("{count} of {} linears {what}", linears.len()));
            }
        }
        let (perplexity, kl) = self.perplexity(&side, Some(&self.dense))?;
        side.checkpoint.expect_unchanged()?;
        let summary = Summary::over(&comparisons);
        let bits = bits_per_weight(&side);
        let (whole, left) = (self.dense.model.decoder().blocks().len(), side.model.decoder().blocks().len());
        let point = Point {
            name: asked.name.clone(),
            series: asked.series.clone(),
            rate: asked.rate.clone().unwrap_or_else(|| format!("{bits:.2} bits")),
            kind: asked.kind,
            bits_per_weight: Some(bits),
            sparsity: provenance.as_ref().map(zeros).transpose()?.flatten(),
            layers_dropped: whole.checked_sub(left).filter(|&dropped| dropped > 0),
            tensor_bytes: side.checkpoint.bytes(),
            calibration_seed: asked.seed,
            tensors_sha256: side.hashes.tensors.clone(),
            perplexity,
            kl,
            dimensions,
            worst: summary.as_ref().map(|summary| (summary.worst.clone(), summary.worst_delta)),
            mean_absolute: summary.as_ref().map(|summary| summary.mean_absolute),
        };
        Ok(PointFound { point, warnings })
    }

    /// Refuses a model that was not made from the dense one.
    fn expect_kin(&self, side: &Side, provenance: Option<&Provenance>, of: Option<&str>) -> Result<()> {
        let path = side.checkpoint.path().display();
        let (own, dense) = (side.model.decoder(), self.dense.model.decoder());
        let (vocabulary, expected) = (own.config().vocab_size, dense.config().vocab_size);
        anyhow::ensure!(
            vocabulary == expected,
            "{path}: its vocabulary has {vocabulary} tokens, that of {} {expected}; a point should be made from the dense \
             model of the sweep",
            self.name
        );
        let source = provenance.and_then(Provenance::dense_fingerprint);
        let expected = of.unwrap_or(&self.dense.hashes.tensors);
        if let Some(source) = source.filter(|source| *source != expected) {
            anyhow::bail!(
                "{path}: its scruple.json says that it was made from a model whose tensors have SHA-256 {source}, those of {} \
                 have {expected}",
                self.name
            );
        }
        let (own_blocks, blocks) = (own.blocks(), dense.blocks());
        anyhow::ensure!(
            own_blocks.len() <= blocks.len(),
            "{path}: it has {} blocks, {} has {}",
            own_blocks.len(),
            self.name,
            blocks.len()
        );
        // Where blocks were taken out, which ones is not known; all of a model are alike in shape.
        for (at, (own, dense)) in own_blocks.iter().zip(blocks).enumerate() {
            let shapes = |block: &scruple_compress::model::block::Block| -> Vec<(usize, usize)> {
                block.all_linears().iter().map(|linear| linear.shape()).collect()
            };
            let (own, dense) = (shapes(own), shapes(dense));
            anyhow::ensure!(
                own == dense,
                "{path}: the linears of block {at} have shapes {own:?}, those of {} {dense:?}; a point should be made from \
                 the dense model of the sweep",
                self.name
            );
        }
        Ok(())
    }
}

/// Whether a method of `recipe` reads a calibration text.
///
/// # Errors
/// An unknown method or parameter.
pub fn reads_text(recipe: &Recipe) -> Result<bool> {
    match Rps::of(recipe)? {
        Some((method, _)) => Ok(method.steps > 0),
        None => Ok(recipe.methods()?.iter().any(|method| method.needs().any())),
    }
}

/// Bits a weight of the blocks' linears takes in the file, with everything that is stored with it.
fn bits_per_weight(side: &Side) -> f64 {
    let (bits, weights) = side.model.decoder().linear_bits();
    bits as f64 / weights as f64
}

/// Share of zeros, where a method that prunes made any.
fn zeros(provenance: &Provenance) -> Result<Option<f64>> {
    let prunes = provenance.recipe.methods()?.iter().any(|method| method.kind() == methods::Kind::Prune);
    let (zeros, weights) = provenance
        .linears
        .iter()
        .fold((0, 0), |(zeros, weights), linear| (zeros + linear.zeros, weights + linear.weights));
    Ok((prunes && weights > 0).then(|| zeros as f64 / weights as f64))
}
