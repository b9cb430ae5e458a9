//! Many experts in one folder, and which of them knows a model.
//!
//! Every expert gives the distance of a model's layer to its tree's centroid, as a share of the distance it accepts. The
//! least share decides; above 1 the tree is unknown. Predictions hold inside a registered tree only.
//!
//! An adapter has no base in it and its centroid is 0, so nothing but its size can speak against a tree: where the experts of
//! several trees of adapters accept it, none is named, and where those of one do, that tree is assumed.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{
    expert::Expert,
    layer::{Layer, Values},
};
use crate::{Checkpoint, Error, Result};

/// Shares closer to one another than this are equal.
const TIE: f64 = 1e-6;

/// The folder's experts.
#[derive(Debug)]
pub struct Registry {
    /// File and expert, by file name.
    pub experts: Vec<(PathBuf, Expert)>,
}

/// How far a model lies from an expert's tree.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Distance {
    /// The tree.
    pub tree: String,
    /// The expert's label.
    pub label: String,
    /// The layer looked at.
    pub layer: String,
    /// ‖X − centroid‖; none where the model has no such layer of that shape.
    pub distance: Option<f64>,
    /// Distances up to this are accepted.
    pub limit: f64,
}

impl Distance {
    /// The distance as a share of the accepted one.
    pub fn share(&self) -> Option<f64> {
        let limit = self.limit.max(f64::MIN_POSITIVE);
        self.distance.map(|distance| distance / limit)
    }
}

/// Where a model belongs.
#[derive(Debug)]
pub struct Route {
    /// Of every expert, in the registry's order.
    pub distances: Vec<Distance>,
    /// The experts of the tree it belongs to, with the layer each reads; empty where the tree is unknown.
    pub known: Vec<(usize, Values)>,
    /// Why the tree is unknown, as a sentence.
    pub why: Option<String>,
    /// Why the tree is assumed and not told, as a sentence.
    pub assumed: Option<String>,
}

impl Registry {
    /// Reads every expert in `folder`.
    ///
    /// # Errors
    /// If there is none, or one cannot be read.
    pub fn open(folder: &Path) -> Result<Self> {
        let entries = std::fs::read_dir(folder).map_err(|source| Error::io(folder, "open the registry", source))?;
        let mut files = Vec::new();
        for entry in entries {
            let path = entry.map_err(|source| Error::io(folder, "list the registry", source))?.path();
            if path.extension().is_some_and(|ending| ending == "safetensors") {
                files.push(path);
            }
        }
        files.sort();
        if files.is_empty() {
            return Err(Error::file(folder, "holds no experts; train one by `scruple probe train ZOO -o` this folder"));
        }
        let read = |path: PathBuf| Ok((path.clone(), Expert::read(&path)?));
        Ok(Self { experts: files.into_iter().map(read).collect::<Result<_>>()? })
    }

    /// Where the model `checkpoint` belongs.
    ///
    /// # Errors
    /// If a layer that an expert reads cannot be decoded.
    pub fn route(&self, checkpoint: &Checkpoint) -> Result<Route> {
        let mut distances = Vec::with_capacity(self.experts.len());
        // Experts of several trees and labels often read one layer: it is read once.
        let mut layers: Vec<(&Layer, Option<Values>)> = Vec::new();
        let mut place = Vec::with_capacity(self.experts.len());
        for (_, expert) in &self.experts {
            let layer = &expert.about.layer;
            let known = layers.iter().position(|(other, _)| *other == layer).unwrap_or(layers.len());
            if known == layers.len() {
                layers.push((layer, layer.is_in(checkpoint).then(|| layer.read(checkpoint)).transpose()?));
            }
            place.push(known);
            let values = &layers[known].1;
            distances.push(Distance {
                tree: expert.about.tree.clone(),
                label: expert.about.label.clone(),
                layer: layer.name.clone(),
                distance: values.as_ref().map(|values| expert.distance(values)),
                limit: expert.about.radius.limit,
            });
        }
        let mut order: Vec<(f64, usize)> =
            distances.iter().enumerate().filter_map(|(at, d)| Some((d.share()?, at))).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let unknown = |why: String| (Vec::new(), Some(why));
        let mut assumed = None;
        let (known, why) = match order.first() {
            None => {
                let asked: Vec<String> = self.experts.iter().map(|(_, expert)| expert.about.layer.shown()).collect();
                unknown(format!("the model has none of the layers the experts read: {}", asked.join(", ")))
            }
            Some(&(share, best)) if share > 1.0 => {
                let d = &distances[best];
                unknown(format!(
                    "the nearest tree `{}` is {:.4} away at `{}`, and accepts up to {:.4}",
                    d.tree,
                    d.distance.unwrap_or(f64::NAN),
                    d.layer.escape_debug(),
                    d.limit
                ))
            }
            Some(&(share, best)) => {
                let tree = &distances[best].tree;
                let is_adapter = |at: usize| self.experts[at].1.about.layer.adapter;
                let of_others = || order.iter().filter(|(_, at)| distances[*at].tree != *tree);
                let twin = of_others().find(|(other, _)| other - share <= TIE);
                let adapters = of_others().find(|(other, at)| *other <= 1.0 && is_adapter(best) && is_adapter(*at));
                match (adapters, twin) {
                    (Some((_, other)), _) => unknown(format!(
                        "an adapter does not say what it was trained on, and experts of adapters of the trees `{tree}` and `{}` \
                         both accept it; keep the experts of one of them in a registry",
                        distances[*other].tree
                    )),
                    (None, Some((_, twin))) => unknown(format!(
                        "trees `{tree}` and `{}` are equally near, so neither is named; keep one of the two experts",
                        distances[*twin].tree
                    )),
                    (None, None) => {
                        if is_adapter(best) {
                            assumed = Some(format!(
                                "an adapter does not say what it was trained on; `{tree}` is the only tree with adapters like it in \
                                 the registry"
                            ));
                        }
                        let near = |at: &usize| {
                            distances[*at].tree == *tree && distances[*at].share().is_some_and(|share| share <= 1.0)
                        };
                        let near: Vec<usize> = (0..distances.len()).filter(near).collect();
                        let mut known: Vec<(usize, Values)> = Vec::new();
                        for (number, &at) in near.iter().enumerate() {
                            let is_read_again = near[number + 1..].iter().any(|&later| place[later] == place[at]);
                            let values = &mut layers[place[at]].1;
                            let values = if is_read_again { values.clone() } else { values.take() };
                            known.extend(values.map(|values| (at, values)));
                        }
                        (known, None)
                    }
                }
            }
        };
        Ok(Route { distances, known, why, assumed })
    }
}
