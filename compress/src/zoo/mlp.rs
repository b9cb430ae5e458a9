//! The networks of a zoo: two hidden layers with ReLU, trained by AdamW, one network a thread.
//!
//! ```text
//! a = relu(x W1ᵀ + b1)      c = relu(a W2ᵀ + b2)      y = c W3ᵀ + b3      cost: cross-entropy
//! ```

use scruple_weights::{dispatch, probex::file::NamedArray};

use super::pictures::Rows;
use crate::{
    data::random::Stream,
    nn::linear::{Shape, forward, grad_input, grad_weight},
};

/// β₁, β₂ and ε of AdamW.
const BETAS: (f32, f32) = (0.9, 0.999);
const EPSILON: f32 = 1e-8;

/// Deviation of a fresh head's weights.
const HEAD_DEVIATION: f64 = 0.05;

/// The layers' names, as torch-trained nets of the `nn` module have them.
pub const LAYERS: [&str; 3] = ["fc1", "fc2", "linear"];

/// Sides of the layers: inputs, hidden, hidden, classes.
pub type Widths = [usize; 4];

/// A network's numbers: W1, b1, W2, b2, W3, b3, one after the other.
#[derive(Debug, Clone, PartialEq)]
pub struct Mlp {
    /// Sides.
    pub widths: Widths,
    /// All numbers.
    pub values: Vec<f32>,
}

/// A low-rank change of the first two layers: B₁ A₁ and B₂ A₂.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// Inner size.
    pub rank: usize,
    /// A of each layer (rank, inputs).
    pub down: [Vec<f32>; 2],
    /// B of each layer (outputs, rank).
    pub up: [Vec<f32>; 2],
}

/// How a network learns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tuning {
    /// Steps.
    pub steps: usize,
    /// Rows a step.
    pub batch: usize,
    /// Step size.
    pub rate: f32,
    /// Decay of matrices.
    pub decay: f32,
}

/// Where W and b of layer `layer` lie.
fn places(widths: Widths, layer: usize) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
    let start: usize = (0..layer).map(|layer| widths[layer + 1] * (widths[layer] + 1)).sum();
    let weight = start..start + widths[layer + 1] * widths[layer];
    (weight.clone(), weight.end..weight.end + widths[layer + 1])
}

impl Mlp {
    /// Before training: uniform within ± 1/√inputs, as torch starts linears.
    pub fn start(widths: Widths, stream: &mut Stream) -> Self {
        let mut values = Vec::new();
        for layer in 0..3 {
            let bound = 1.0 / (widths[layer] as f64).sqrt();
            let count = widths[layer + 1] * (widths[layer] + 1);
            values.extend((0..count).map(|_| stream.between(-bound, bound) as f32));
        }
        Self { widths, values }
    }

    /// The same first two layers, with a fresh head for `classes`.
    pub fn with_head(&self, classes: usize, stream: &mut Stream) -> Self {
        let mut widths = self.widths;
        let kept = places(widths, 2).0.start;
        widths[3] = classes;
        let mut values = self.values[..kept].to_vec();
        values.extend((0..classes * widths[2]).map(|_| (HEAD_DEVIATION * stream.normal()) as f32));
        values.resize(values.len() + classes, 0.0);
        Self { widths, values }
    }

    /// W of layer `layer` (outputs, inputs).
    pub fn weight(&self, layer: usize) -> &[f32] {
        &self.values[places(self.widths, layer).0]
    }

    /// W of layer `layer`, to change.
    pub fn weight_mut(&mut self, layer: usize) -> &mut [f32] {
        let place = places(self.widths, layer).0;
        &mut self.values[place]
    }

    /// The arrays of a file: `fc1.weight` and so on.
    pub fn arrays(&self) -> Vec<NamedArray<'_>> {
        let mut arrays: Vec<NamedArray<'_>> = Vec::new();
        for (layer, name) in LAYERS.iter().enumerate() {
            let (weight, bias) = places(self.widths, layer);
            let (outputs, inputs) = (self.widths[layer + 1], self.widths[layer]);
            arrays.push((format!("{name}.weight"), vec![outputs, inputs], &self.values[weight]));
            arrays.push((format!("{name}.bias"), vec![outputs], &self.values[bias]));
        }
        arrays
    }

    /// Share of rows whose class is found.
    pub fn accuracy(&self, rows: &Rows, classes: &[usize]) -> f64 {
        let chosen: Vec<usize> = (0..rows.len()).filter(|&at| classes.contains(&rows.labels[at])).collect();
        let mut run = Run::new(self.widths, chosen.len());
        run.load(rows, &chosen);
        run.forward(self);
        let right = run.y.chunks_exact(self.widths[3]).zip(&chosen).filter(|(y, at)| {
            let best = (0..y.len()).max_by(|&a, &b| y[a].total_cmp(&y[b]).then(b.cmp(&a)));
            best.is_some_and(|best| classes[best] == rows.labels[**at])
        });
        right.count() as f64 / chosen.len().max(1) as f64
    }

    /// Trains on the rows `chosen` of `rows`; output `i` stands for the class `classes[i]`. With an adapter the first two
    /// layers stay as they are, and the adapter and the head learn.
    pub fn train(
        &mut self,
        rows: &Rows,
        (chosen, classes): (&[usize], &[usize]),
        tuning: &Tuning,
        mut adapter: Option<&mut Adapter>,
        stream: &mut Stream,
    ) {
        let place: Vec<usize> = {
            let mut place = vec![usize::MAX; rows.classes];
            classes.iter().enumerate().for_each(|(at, &class)| place[class] = at);
            place
        };
        let frozen = self.clone();
        let mut run = Run::new(self.widths, tuning.batch.min(chosen.len()));
        let mut adam = Adam::new(self.values.len());
        let mut small = adapter.as_ref().map(|adapter| Adam::new(adapter.len()));
        let mut order = chosen.to_vec();
        let mut next = order.len();
        let mut gradient = vec![0.0; self.values.len()];
        let mut labels = vec![0usize; run.rows];
        for _ in 0..tuning.steps {
            if next + run.rows > order.len() {
                stream.shuffle(&mut order);
                next = 0;
            }
            let batch = &order[next..next + run.rows];
            next += run.rows;
            run.load(rows, batch);
            labels.iter_mut().zip(batch).for_each(|(label, &at)| *label = place[rows.labels[at]]);
            run.forward(self);
            run.cost(&labels);
            gradient.fill(0.0);
            run.back(self, &mut gradient);
            match (&mut adapter, &mut small) {
                (Some(adapter), Some(small)) => {
                    let pulled = adapter.pull(&gradient, self.widths);
                    let mut values = adapter.flat();
                    let all = values.len();
                    small.step(&mut values, &pulled, tuning, std::slice::from_ref(&(0..all)), &[]);
                    adapter.set(&values);
                    // The head alone moves with the network's own step.
                    let head = places(self.widths, 2);
                    adam.step(&mut self.values, &gradient, tuning, &[head.0], &[head.1]);
                    self.values[..frozen.values.len()][..places(self.widths, 2).0.start]
                        .copy_from_slice(&frozen.values[..places(self.widths, 2).0.start]);
                    adapter.merge(self);
                }
                _ => {
                    let layers = [0, 1, 2].map(|layer| places(self.widths, layer));
                    let (weights, biases) = (layers.clone().map(|l| l.0), layers.map(|l| l.1));
                    adam.step(&mut self.values, &gradient, tuning, &weights, &biases);
                }
            }
        }
    }
}

impl Adapter {
    /// B is 0 and A uniform, as adapters start.
    pub fn start(widths: Widths, rank: usize, stream: &mut Stream) -> Self {
        let mut down = |layer: usize| -> Vec<f32> {
            let bound = 1.0 / (widths[layer] as f64).sqrt();
            (0..rank * widths[layer]).map(|_| stream.between(-bound, bound) as f32).collect()
        };
        let down = [down(0), down(1)];
        Self { rank, down, up: [0, 1].map(|layer| vec![0.0; widths[layer + 1] * rank]) }
    }

    fn len(&self) -> usize {
        self.down.iter().chain(&self.up).map(Vec::len).sum()
    }

    fn flat(&self) -> Vec<f32> {
        self.down.iter().chain(&self.up).flatten().copied().collect()
    }

    fn set(&mut self, mut values: &[f32]) {
        for part in self.down.iter_mut().chain(&mut self.up) {
            let here;
            (here, values) = values.split_at(part.len());
            part.copy_from_slice(here);
        }
    }

    /// From the gradients of the weights to those of A (Bᵀ ∂W) and B (∂W Aᵀ).
    fn pull(&self, gradient: &[f32], widths: Widths) -> Vec<f32> {
        let (mut downs, mut ups) = (Vec::new(), Vec::new());
        for layer in 0..2 {
            let (inputs, outputs, rank) = (widths[layer], widths[layer + 1], self.rank);
            let dw = &gradient[places(widths, layer).0];
            let mut down = vec![0.0; rank * inputs];
            grad_weight(
                Shape { rows: outputs, inputs, outputs: rank },
                (&self.up[layer], rank),
                (dw, inputs),
                &mut down,
            );
            let mut up = vec![0.0; outputs * rank];
            forward(Shape { rows: outputs, inputs, outputs: rank }, (dw, inputs), &self.down[layer], (&mut up, rank));
            downs.extend(down);
            ups.extend(up);
        }
        [downs, ups].concat()
    }

    /// Adds B A to the first two layers.
    fn merge(&self, net: &mut Mlp) {
        for layer in 0..2 {
            let (inputs, outputs) = (net.widths[layer], net.widths[layer + 1]);
            let shape = Shape { rows: outputs, inputs, outputs: self.rank };
            grad_input(shape, (&self.up[layer], self.rank), &self.down[layer], (net.weight_mut(layer), inputs), true);
        }
    }

    /// The arrays of a file: `fc1.lora_A.weight` and so on.
    pub fn arrays(&self, widths: Widths) -> Vec<NamedArray<'_>> {
        let mut arrays: Vec<NamedArray<'_>> = Vec::new();
        for layer in 0..2 {
            let name = LAYERS[layer];
            arrays.push((format!("{name}.lora_A.weight"), vec![self.rank, widths[layer]], &self.down[layer]));
            arrays.push((format!("{name}.lora_B.weight"), vec![widths[layer + 1], self.rank], &self.up[layer]));
        }
        arrays
    }
}

/// Values of a batch on their way.
struct Run {
    widths: Widths,
    rows: usize,
    x: Vec<f32>,
    a: Vec<f32>,
    c: Vec<f32>,
    y: Vec<f32>,
    da: Vec<f32>,
    dc: Vec<f32>,
}

impl Run {
    fn new(widths: Widths, rows: usize) -> Self {
        let of = |layer: usize| vec![0.0; rows * widths[layer]];
        Self { widths, rows, x: of(0), a: of(1), c: of(2), y: of(3), da: of(1), dc: of(2) }
    }

    fn load(&mut self, rows: &Rows, chosen: &[usize]) {
        let to = self.x.chunks_exact_mut(rows.width);
        to.zip(chosen).for_each(|(to, &at)| to.copy_from_slice(rows.row(at)));
    }

    fn forward(&mut self, net: &Mlp) {
        let shape =
            |layer: usize| Shape { rows: self.rows, inputs: self.widths[layer], outputs: self.widths[layer + 1] };
        let shapes = [0, 1, 2].map(shape);
        for (layer, shape) in shapes.into_iter().enumerate() {
            let (from, to) = match layer {
                0 => (&self.x, &mut self.a),
                1 => (&self.a, &mut self.c),
                _ => (&self.c, &mut self.y),
            };
            let (weight, bias) = places(self.widths, layer);
            forward(shape, (from, shape.inputs), &net.values[weight], (to, shape.outputs));
            let bias = &net.values[bias];
            for row in to.chunks_exact_mut(shape.outputs) {
                row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
                if layer < 2 {
                    row.iter_mut().for_each(|y| *y = y.max(0.0));
                }
            }
        }
    }

    /// ∂ cost / ∂ y in place of y.
    fn cost(&mut self, labels: &[usize]) {
        let share = 1.0 / self.rows as f32;
        for (y, &label) in self.y.chunks_exact_mut(self.widths[3]).zip(labels) {
            let most = y.iter().fold(f32::NEG_INFINITY, |most, &y| most.max(y));
            y.iter_mut().for_each(|y| *y = (*y - most).exp());
            let total: f32 = y.iter().sum();
            y.iter_mut().for_each(|y| *y *= share / total);
            y[label] -= share;
        }
    }

    fn back(&mut self, net: &Mlp, gradient: &mut [f32]) {
        for layer in (0..3).rev() {
            let shape = Shape { rows: self.rows, inputs: self.widths[layer], outputs: self.widths[layer + 1] };
            let (weight, bias) = places(self.widths, layer);
            let (from, dy): (&[f32], &[f32]) = match layer {
                0 => (&self.x, &self.da),
                1 => (&self.a, &self.dc),
                _ => (&self.c, &self.y),
            };
            grad_weight(shape, (dy, shape.outputs), (from, shape.inputs), &mut gradient[weight.clone()]);
            let sums = &mut gradient[bias];
            dy.chunks_exact(shape.outputs).for_each(|row| sums.iter_mut().zip(row).for_each(|(s, d)| *s += d));
            let w = &net.values[weight];
            let masked = |dx: &mut [f32], seen: &[f32]| {
                dx.iter_mut().zip(seen).for_each(|(d, x)| *d = if *x > 0.0 { *d } else { 0.0 });
            };
            if layer == 2 {
                grad_input(shape, (&self.y, shape.outputs), w, (&mut self.dc, shape.inputs), false);
                masked(&mut self.dc, &self.c);
            } else if layer == 1 {
                grad_input(shape, (&self.dc, shape.outputs), w, (&mut self.da, shape.inputs), false);
                masked(&mut self.da, &self.a);
            }
        }
    }
}

/// AdamW's memory.
struct Adam {
    mean: Vec<f32>,
    square: Vec<f32>,
    steps: i32,
}

impl Adam {
    fn new(count: usize) -> Self {
        Self { mean: vec![0.0; count], square: vec![0.0; count], steps: 0 }
    }

    /// One step of the numbers in `decayed` and `plain`.
    fn step(
        &mut self,
        values: &mut [f32],
        gradient: &[f32],
        tuning: &Tuning,
        decayed: &[std::ops::Range<usize>],
        plain: &[std::ops::Range<usize>],
    ) {
        self.steps += 1;
        let (one, two) = (1.0 - BETAS.0.powi(self.steps), 1.0 - BETAS.1.powi(self.steps));
        let scale = (tuning.rate / one, 1.0 / two.sqrt());
        let kept = 1.0 - tuning.rate * tuning.decay;
        for (range, kept) in decayed.iter().map(|r| (r, kept)).chain(plain.iter().map(|r| (r, 1.0))) {
            let (m, v) = (&mut self.mean[range.clone()], &mut self.square[range.clone()]);
            adamw(&mut values[range.clone()], &gradient[range.clone()], m, v, (scale.0, scale.1, kept));
        }
    }
}

dispatch! {
    /// AdamW on a run of numbers; `scale` is (η / (1 − β₁ᵗ), 1 / √(1 − β₂ᵗ), 1 − η λ).
    fn adamw(w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], scale: (f32, f32, f32)) -> () = adamw_body
}

#[inline(always)]
fn adamw_body(w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], (rate, unbias, kept): (f32, f32, f32)) {
    let n = w.len();
    assert!(g.len() == n && m.len() == n && v.len() == n);
    for at in 0..n {
        m[at] = BETAS.0 * m[at] + (1.0 - BETAS.0) * g[at];
        v[at] = BETAS.1 * v[at] + (1.0 - BETAS.1) * g[at] * g[at];
        w[at] = w[at] * kept - rate * m[at] / (v[at].sqrt() * unbias + EPSILON);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two classes by the sign of the first number.
    fn rows() -> Rows {
        let mut stream = Stream::new(2, "zoo/mlp/test", 0);
        let values: Vec<f32> = (0..200 * 6).map(|_| stream.normal() as f32).collect();
        let labels = values.chunks_exact(6).map(|row| usize::from(row[0] > 0.0)).collect();
        Rows { values, labels, width: 6, classes: 2 }
    }

    #[test]
    fn gradients_match_differences() {
        let (rows, widths) = (rows(), [6, 5, 4, 2]);
        let net = Mlp::start(widths, &mut Stream::new(1, "zoo/mlp/test", 1));
        let chosen: Vec<usize> = (0..16).collect();
        let cost = |net: &Mlp| -> f64 {
            let mut run = Run::new(widths, 16);
            run.load(&rows, &chosen);
            run.forward(net);
            let of = |(y, &at): (&[f32], &usize)| {
                let total: f64 = y.iter().map(|&y| f64::from(y).exp()).sum();
                total.ln() - f64::from(y[rows.labels[at]])
            };
            run.y.chunks_exact(2).zip(&chosen).map(of).sum::<f64>() / 16.0
        };
        let mut run = Run::new(widths, 16);
        run.load(&rows, &chosen);
        run.forward(&net);
        run.cost(&rows.labels[..16]);
        let mut gradient = vec![0.0; net.values.len()];
        run.back(&net, &mut gradient);
        for at in 0..net.values.len() {
            let at_distance = |step: f32| {
                let mut moved = net.clone();
                moved.values[at] += step;
                cost(&moved)
            };
            let expected = (at_distance(1e-2) - at_distance(-1e-2)) / 2e-2;
            assert!((f64::from(gradient[at]) - expected).abs() < 2e-3, "{at}: {} {expected}", gradient[at]);
        }
    }

    #[test]
    fn a_network_and_an_adapter_learn() {
        let (rows, widths) = (rows(), [6, 16, 8, 2]);
        let chosen: Vec<usize> = (0..150).collect();
        let tuning = Tuning { steps: 150, batch: 32, rate: 1e-2, decay: 1e-3 };
        let start = Mlp::start(widths, &mut Stream::new(1, "zoo/mlp/test", 2));
        let mut net = start.clone();
        net.train(&rows, (&chosen, &[0, 1]), &tuning, None, &mut Stream::new(1, "zoo/mlp/test", 3));
        assert!(net.accuracy(&rows, &[0, 1]) > 0.95);

        let mut tuned = start.clone();
        let mut adapter = Adapter::start(widths, 2, &mut Stream::new(1, "zoo/mlp/test", 4));
        let stream = &mut Stream::new(1, "zoo/mlp/test", 3);
        tuned.train(&rows, (&chosen, &[0, 1]), &tuning, Some(&mut adapter), stream);
        assert!(tuned.accuracy(&rows, &[0, 1]) > 0.9);
        let mut merged = start.clone();
        adapter.merge(&mut merged);
        for layer in 0..2 {
            assert_eq!(merged.weight(layer), tuned.weight(layer), "the base and the adapter make the layer");
            assert_ne!(start.weight(layer), tuned.weight(layer));
        }
    }
}
