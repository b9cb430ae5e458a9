//! The rival of removing layers: thinner blocks. What goes are filters between the two convolutions of each block (outputs
//! of the first, inputs of the second), so that no shape outside of the block changes.
//!
//! Each block keeps the same share of its filters, at least one. Which of them stay is a criterion's matter; how many is one of
//! three matchings with a layer ticket: as many filters gone as the ticket's blocks have (two convolutions a block, as the paper
//! counts), or the fewest filters gone with which the net has no more multiply-adds than the ticket, or takes no more time.

use serde::{Deserialize, Serialize};

use super::{blocks::Stages, scene::Scene};
use crate::{
    Error, Result,
    data::random::Stream,
    nn::{
        Architecture, Spec, Weights,
        saliency::{self, Criterion as Saliency, GRASP_TEMPERATURE},
    },
};

/// How a filter ticket is made as large as a layer ticket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Matching {
    /// As many filters gone.
    Count,
    /// No more multiply-adds.
    Macs,
    /// No more time a step, by a clock: what it comes to depends on the machine.
    Time,
}

impl Matching {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Macs => "macs",
            Self::Time => "time",
        }
    }
}

/// By what filters are chosen to stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FilterCriterion {
    /// By nothing.
    Random,
    /// Σ |θ| of the first convolution's filter.
    L1,
    /// Σ |θ g|.
    Snip,
    /// Σ −θ (H g), the highest go.
    Grasp,
}

impl FilterCriterion {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::L1 => "l1",
            Self::Snip => "snip",
            Self::Grasp => "grasp",
        }
    }
}

/// The net of convolutions with these inner widths.
fn with_inner(dense: &Spec, widths: Vec<Vec<usize>>) -> Result<Spec> {
    let mut spec = dense.clone();
    match &mut spec.architecture {
        Architecture::ResNet { inner, .. } => *inner = widths,
        _ => return Err(Error::Recipe("filters can be taken out of residual nets of convolutions alone".into())),
    }
    Ok(spec)
}

/// Inner widths of the dense net.
fn full(dense: &Spec) -> Result<Vec<Vec<usize>>> {
    match &dense.architecture {
        Architecture::ResNet { blocks, width, inner, .. } if inner.is_empty() => {
            Ok(blocks.iter().enumerate().map(|(stage, &count)| vec![width << stage; count]).collect())
        }
        Architecture::ResNet { inner, .. } => Ok(inner.clone()),
        _ => Err(Error::Recipe("filters can be taken out of residual nets of convolutions alone".into())),
    }
}

/// `widths` with `gone` filters fewer, spread over the blocks by their widths: one after the other from the block of which the
/// largest share is left, of equals the earliest.
fn thinned(widths: &[Vec<usize>], gone: usize) -> Option<Vec<Vec<usize>>> {
    let mut left = widths.to_vec();
    for _ in 0..gone {
        let mut best: Option<(usize, usize)> = None;
        for (stage, block) in (0..left.len()).flat_map(|stage| (0..left[stage].len()).map(move |block| (stage, block)))
        {
            if left[stage][block] < 2 {
                continue;
            }
            // left / widths of one against the other, without rounding.
            let more = |(s, b): (usize, usize)| left[stage][block] * widths[s][b] > left[s][b] * widths[stage][block];
            if best.is_none_or(more) {
                best = Some((stage, block));
            }
        }
        let (stage, block) = best?;
        left[stage][block] -= 1;
    }
    Some(left)
}

/// The filter ticket of `dense` that has as many filters gone as the layer ticket `layers`; `None` where there are not as many
/// between convolutions, one a block left out.
///
/// # Errors
/// If the nets are not residual nets of convolutions.
pub fn of_equal_count(dense: &Spec, layers: &Spec) -> Result<Option<Spec>> {
    let filters = |spec: &Spec| -> Result<usize> {
        let (inner, stages) = (full(spec)?, Stages::of(spec)?);
        let Architecture::ResNet { width, .. } = &spec.architecture else { return Ok(0) };
        let outer: usize = stages.blocks.iter().enumerate().map(|(stage, &count)| (width << stage) * count).sum();
        Ok(outer + inner.iter().flatten().sum::<usize>())
    };
    let gone = filters(dense)?.saturating_sub(filters(layers)?);
    thinned(&full(dense)?, gone).map(|widths| with_inner(dense, widths)).transpose()
}

/// The filter ticket of `dense` with the fewest filters gone that `fits`, which thinner nets do where thicker ones do; `None`
/// where one filter a block is still too much.
///
/// # Errors
/// If the net is not a residual net of convolutions, and what `fits` has.
pub fn largest_that(dense: &Spec, mut fits: impl FnMut(&Spec) -> Result<bool>) -> Result<Option<Spec>> {
    let widths = full(dense)?;
    let (mut low, mut high) = (0, widths.iter().flatten().map(|&width| width - 1).sum::<usize>());
    let mut fitting = |gone: usize| -> Result<Option<Spec>> {
        let Some(widths) = thinned(&widths, gone) else { return Ok(None) };
        let spec = with_inner(dense, widths)?;
        Ok(fits(&spec)?.then_some(spec))
    };
    let Some(mut best) = fitting(high)? else { return Ok(None) };
    while low < high {
        let middle = low + (high - low) / 2;
        match fitting(middle)? {
            Some(spec) => (best, high) = (spec, middle),
            None => low = middle + 1,
        }
    }
    Ok(Some(best))
}

/// Which filters of each block stay: the best of it, in their order.
///
/// # Errors
/// If `thin` is not a thinner form of the scene's net, or an output is not finite.
pub fn choose(criterion: FilterCriterion, scene: &mut Scene<'_>, thin: &Spec) -> Result<Vec<Vec<usize>>> {
    let (widths, wanted) = (full(scene.spec)?, full(thin)?);
    if widths.iter().map(Vec::len).ne(wanted.iter().map(Vec::len)) {
        return Err(Error::Recipe("a filter ticket has as many blocks as the dense net".into()));
    }
    let mut worth: Vec<f64> = match criterion {
        FilterCriterion::Random => Vec::new(),
        FilterCriterion::L1 => scene.weights.values.iter().map(|&w| f64::from(w.abs())).collect(),
        FilterCriterion::Snip => {
            saliency::scores(Saliency::Snip, &mut scene.net, scene.weights, scene.images, scene.scaling)?
        }
        FilterCriterion::Grasp => {
            let grasp = Saliency::Grasp { temperature: GRASP_TEMPERATURE };
            saliency::scores(grasp, &mut scene.net, scene.weights, scene.images, scene.scaling)?
        }
    };
    if criterion == FilterCriterion::Random {
        let mut stream = Stream::new(scene.seed, "lottery/filters", 0);
        worth = scene.weights.values.iter().map(|_| stream.unit()).collect();
    }
    let layout = scene.net.graph().layout();
    let mut chosen = Vec::new();
    for block in &scene.blocks {
        let name = format!("{}conv1.weight", scene.stages.prefix(block.stage, block.index));
        let entry = layout.entry(&name).ok_or_else(|| Error::Recipe(format!("the net has no tensor `{name}`")))?;
        let filters = entry.shape[0];
        let each = entry.values() / filters;
        let score = |filter: usize| worth[entry.offset + filter * each..][..each].iter().sum::<f64>();
        let scores: Vec<f64> = (0..filters).map(score).collect();
        let mut order: Vec<usize> = (0..filters).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        order.truncate(wanted[block.stage][block.index]);
        order.sort_unstable();
        chosen.push(order);
    }
    Ok(chosen)
}

/// The thin net's weights: the chosen filters of the dense net's, all else as it is.
///
/// # Errors
/// If the filters are not those of `thin`.
pub fn weights(dense: &Spec, from: &Weights, thin: &Spec, chosen: &[Vec<usize>]) -> Result<Weights> {
    let (graph, stages) = (dense.graph()?, Stages::of(dense)?);
    let target = thin.graph()?;
    let number = |stage: usize, block: usize| stages.blocks[..stage].iter().sum::<usize>() + block;
    let take = |from_layout: &crate::nn::graph::Layout,
                values: &[f32],
                to: &crate::nn::graph::Layout|
     -> Result<Vec<f32>> {
        let mut out = Vec::with_capacity(to.len());
        for entry in to.entries() {
            let source = from_layout
                .entry(&entry.name)
                .ok_or_else(|| Error::Recipe(format!("the dense net has no tensor `{}`", entry.name)))?;
            let values = &values[source.range()];
            let before = out.len();
            match stages.place(&entry.name) {
                // Outputs of the first convolution and its norm.
                Some((stage, block, rest)) if rest.starts_with("conv1.") || rest.starts_with("bn1.") => {
                    let each = source.values() / source.shape[0];
                    let rows = &chosen[number(stage, block)];
                    rows.iter().for_each(|&row| out.extend_from_slice(&values[row * each..][..each]));
                }
                // Inputs of the second.
                Some((stage, block, rest)) if rest.starts_with("conv2.") => {
                    let taps: usize = source.shape[2..].iter().product();
                    for filter in values.chunks_exact(source.shape[1] * taps) {
                        let columns = &chosen[number(stage, block)];
                        columns.iter().for_each(|&column| out.extend_from_slice(&filter[column * taps..][..taps]));
                    }
                }
                _ => out.extend_from_slice(values),
            }
            if out.len() - before != entry.values() {
                return Err(Error::Recipe(format!("the filters chosen do not make the thin net's `{}`", entry.name)));
            }
        }
        Ok(out)
    };
    Ok(Weights {
        values: take(graph.layout(), &from.values, target.layout())?,
        running: take(graph.running(), &from.running, target.running())?,
    })
}
