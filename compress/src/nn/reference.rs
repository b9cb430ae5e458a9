//! The definition of a net, one number at a time in f64: what the fast arithmetic is held to, and what finite differences
//! are taken of.

use super::{
    graph::{Around, Graph, Op},
    net::{Mode, NORM_EPSILON},
};

/// What every slot holds of `count` images, (count, height, width, channels) each, as its readers see it.
fn slots(
    graph: &Graph,
    weights: &[f64],
    running: &[f64],
    (images, count): (&[f64], usize),
    mode: Mode,
) -> Vec<Vec<f64>> {
    let mut seen: Vec<Vec<f64>> = vec![Vec::new(); graph.slots.len()]; // (count, height, width, channels)
    seen[0] = images.to_vec();
    for op in &graph.ops {
        let to = op.to();
        let slot = &graph.slots[to];
        let (rows, columns, channels) = (slot.size.0, slot.size.1, slot.channels);
        let mut z = vec![0.0; count * rows * columns * channels];
        let weight = |entry: usize| &weights[graph.layout().entries()[entry].range()];
        for (at, z) in z.iter_mut().enumerate() {
            let channel = at % channels;
            let (column, row) = (at / channels % columns, at / channels / columns % rows);
            let image = at / channels / columns / rows;
            let x = |slot: usize, row: usize, column: usize, channel: usize| {
                let from = &graph.slots[slot];
                seen[slot][((image * from.size.0 + row) * from.size.1 + column) * from.channels + channel]
            };
            *z = match *op {
                Op::Conv { from, conv, weight: entry, .. } => {
                    let (size, w, k) = (graph.slots[from].size, weight(entry), conv.kernel);
                    let mut sum = 0.0;
                    for (a, b) in (0..k * k).map(|tap| (tap / k, tap % k)) {
                        let (Some(i), Some(j)) =
                            ((conv.stride * row + a).checked_sub(k / 2), (conv.stride * column + b).checked_sub(k / 2))
                        else {
                            continue;
                        };
                        if i < size.0 && j < size.1 {
                            for c in 0..conv.inputs {
                                sum += x(from, i, j, c) * w[((channel * conv.inputs + c) * k + a) * k + b];
                            }
                        }
                    }
                    sum
                }
                Op::Linear { from, weight: entry, bias, .. } => {
                    let w = weight(entry);
                    let inputs = w.len() / channels;
                    let x = &seen[from][image * inputs..][..inputs];
                    let sum: f64 = x.iter().zip(&w[channel * inputs..]).map(|(x, w)| x * w).sum();
                    sum + bias.map_or(0.0, |bias| weight(bias)[channel])
                }
                Op::Join { main, around, way, .. } => {
                    let side = match way {
                        Around::Same => x(around, row, column, channel),
                        Around::Slice { stride, below } => match channel.checked_sub(below) {
                            Some(c) if c < graph.slots[around].channels => x(around, stride * row, stride * column, c),
                            _ => 0.0,
                        },
                    };
                    (x(main, row, column, channel) + side).max(0.0)
                }
                Op::Pool { from, .. } => {
                    let size = graph.slots[from].size;
                    let places = (0..size.0 * size.1).map(|at| x(from, at / size.1, at % size.1, channel));
                    places.sum::<f64>() / (size.0 * size.1) as f64
                }
            };
        }
        if let Some(norm) = slot.norm.map(|norm| graph.norms[norm]) {
            for channel in 0..channels {
                let values: Vec<f64> = z.iter().skip(channel).step_by(channels).copied().collect();
                let stored = |entry: usize| running[graph.running().entries()[entry].offset + channel];
                let (mean, variance) = match mode {
                    Mode::Evaluate => (stored(norm.mean), stored(norm.variance)),
                    Mode::Train => {
                        let mean = values.iter().sum::<f64>() / values.len() as f64;
                        (mean, values.iter().map(|z| (z - mean).powi(2)).sum::<f64>() / values.len() as f64)
                    }
                };
                let (gamma, beta) = (weight(norm.gamma)[channel], weight(norm.beta)[channel]);
                for z in z.iter_mut().skip(channel).step_by(channels) {
                    *z = gamma * (*z - mean) / (variance + NORM_EPSILON).sqrt() + beta;
                }
            }
        }
        if slot.relu {
            z.iter_mut().for_each(|z| *z = z.max(0.0));
        }
        seen[to] = z;
    }
    seen
}

/// What each residual block makes of `count` images, (count, height, width, channels) each.
pub(crate) fn blocks(
    graph: &Graph,
    weights: &[f64],
    running: &[f64],
    images: (&[f64], usize),
    mode: Mode,
) -> Vec<Vec<f64>> {
    let mut seen = slots(graph, weights, running, images, mode);
    let joins = graph.ops.iter().filter(|op| matches!(op, Op::Join { .. }));
    joins.map(|op| std::mem::take(&mut seen[op.to()])).collect()
}

/// Mean cost of `images` (count, height, width, channels) against `labels`, and the class outputs of each.
pub(crate) fn loss(
    graph: &Graph,
    weights: &[f64],
    running: &[f64],
    images: &[f64],
    (labels, smoothing): (&[u8], f64),
    mode: Mode,
) -> (f64, Vec<f64>) {
    let count = labels.len();
    let logits = slots(graph, weights, running, (images, count), mode).pop().expect("class outputs");
    let classes = logits.len() / count;
    let mut total = 0.0;
    for (logits, &label) in logits.chunks_exact(classes).zip(labels) {
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = most + logits.iter().map(|x| (x - most).exp()).sum::<f64>().ln();
        for (class, x) in logits.iter().enumerate() {
            let own = if class == usize::from(label) { 1.0 - smoothing } else { 0.0 };
            total -= (own + smoothing / classes as f64) * (x - log_sum) / count as f64;
        }
    }
    (total, logits)
}
