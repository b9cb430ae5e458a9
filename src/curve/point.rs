//! One model of a sweep as it is measured, and the record it lands as.

use std::{collections::HashSet, fs, io::ErrorKind, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::data::{Band, Dense, DenseDimension, FORMAT, Flip, Point, PointDimension, Reference};
use crate::trust::{
    evaluate::{Reply, Single},
    item::{Ask, Item, Prompt, Role},
    paired::Comparison,
    questions::Topic,
    statistics::Interval,
};

/// Items shown of those that a model lost, and of those it gained.
const SHOWN_FLIPS: [usize; 2] = [3, 2];

/// A record of a sweep's folder: what was found, and the key of what was asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept<T> {
    /// [`FORMAT`].
    pub curve: u32,
    /// Hash of what was asked: model, recipe, items, rules, texts and program.
    pub key: String,
    /// What was found.
    pub found: T,
}

/// What was found of the dense model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseFound {
    /// The model.
    pub dense: Dense,
    /// Its dimensions.
    pub dimensions: Vec<DenseDimension>,
    /// What a reader should know.
    pub warnings: Vec<String>,
}

/// What was found of a compressed model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointFound {
    /// The model; p values are not adjusted yet.
    pub point: Point,
    /// What a reader should know.
    pub warnings: Vec<String>,
}

/// What was found of another dense model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceFound {
    /// The model.
    pub reference: Reference,
    /// What a reader should know.
    pub warnings: Vec<String>,
}

fn band(interval: Option<Interval>) -> Option<Band> {
    interval.map(|Interval { low, high }| Band { low, high })
}

/// Clusters of a topic's items.
fn clusters(items: &[Item]) -> usize {
    items.iter().map(|item| item.cluster.as_str()).collect::<HashSet<_>>().len()
}

/// A dense model on one dimension.
pub fn dense_dimension(topic: &Topic<'_>, single: &Single) -> DenseDimension {
    let rule = topic.rule_name();
    DenseDimension {
        name: single.dimension.into(),
        rule: format!("{} {}", rule.name, rule.version),
        items: single.items,
        clusters: clusters(&topic.items),
        chance: single.chance,
        score: single.measured.score,
        interval: band(single.measured.interval),
        refusal_rate: single.measured.refusal_rate,
        unparsable_rate: single.measured.unparsable_rate,
        informative: single.informative,
        constant: single.measured.constant.is_some(),
    }
}

/// A compressed model on one dimension; texts of items are shown where they come with the program.
pub fn point_dimension(
    topic: &Topic<'_>,
    comparison: &Comparison,
    (dense, other): (&Reply, &Reply),
    embedded: bool,
) -> PointDimension {
    let measured = &comparison.other;
    PointDimension {
        name: comparison.dimension.into(),
        score: measured.score,
        interval: band(measured.interval),
        delta: comparison.delta,
        delta_interval: band(comparison.interval),
        p: comparison.p,
        p_adjusted: None,
        lost: comparison.lost,
        gained: comparison.gained,
        kl: comparison.kl,
        refusal_rate: measured.refusal_rate,
        unparsable_rate: measured.unparsable_rate,
        refusal_shift: comparison.refusal_shift,
        constant: measured.constant.is_some(),
        flips: flips(topic, dense, other, embedded),
    }
}

/// The first few items that one of the two models alone has right: those lost, then those gained.
fn flips(topic: &Topic<'_>, dense: &Reply, other: &Reply, embedded: bool) -> Vec<Flip> {
    let right = |reply: &Reply, at: usize| reply.outcomes[at].value > 0.5;
    let mut flips = Vec::new();
    for (lost, most) in [true, false].into_iter().zip(SHOWN_FLIPS) {
        let turned = (0..topic.items.len()).filter(|&at| right(dense, at) == lost && right(other, at) != lost);
        flips.extend(turned.take(most).map(|at| {
            let item = &topic.items[at];
            Flip {
                item: item.id.clone(),
                prompt: embedded.then(|| prompt(&item.prompt)),
                dense: answer(item, dense, at).filter(|_| embedded),
                other: answer(item, other, at).filter(|_| embedded),
                lost,
            }
        }));
    }
    flips
}

/// A prompt as a reader sees it.
fn prompt(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Plain(text) => text.clone(),
        Prompt::Turns(turns) => {
            let who = |role| match role {
                Role::System => "system",
                Role::User => "user",
                Role::Assistant => "assistant",
            };
            turns.iter().map(|turn| format!("{}: {}", who(turn.role), turn.text)).collect::<Vec<_>>().join("\n")
        }
    }
}

/// What a model said: the option it took, or its text.
fn answer(item: &Item, reply: &Reply, at: usize) -> Option<String> {
    match (&item.ask, &reply.answers[at].answer.text) {
        (_, Some(text)) => Some(text.trim().to_string()),
        (Ask::Choose { options, .. }, None) => {
            reply.outcomes[at].choice.and_then(|choice| options.get(choice)).map(|option| option.trim().to_string())
        }
        (Ask::Continue { .. }, None) => None,
    }
}

/// Reads the record in `file`, if it is there, whole, of this format and of the key `key`.
///
/// # Errors
/// If there is a file that cannot be read.
pub fn read<T: serde::de::DeserializeOwned>(file: &Path, key: Option<&str>) -> Result<Option<Kept<T>>> {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("{}: cannot read the record", file.display())),
    };
    // Records land whole; one that cannot be read is of another program, or was damaged, and is made anew.
    let kept: Option<Kept<T>> = serde_json::from_slice(&bytes).ok();
    Ok(kept.filter(|kept| kept.curve == FORMAT && key.is_none_or(|key| kept.key == key)))
}
