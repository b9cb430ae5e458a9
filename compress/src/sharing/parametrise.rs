//! A pool behind the weights of a net in training, in coordinates that no choice of scales can spoil.
//!
//! The optimiser moves φ, one number a slot, and the tensors that do not share:
//!
//! ```text
//! φ_j = √d_j · ψ_j,     w_i = g_i · (λ_i / √d_j) · φ_j
//! ```
//!
//! The map φ → w has orthonormal columns. So plain descent in φ is the dense step projected on the weights that can be
//! expressed, whatever λ are (the published method divides the gradient in ψ by d to the same end; Adam would undo that);
//! every step that is safe for the dense net is safe here; momentum, decay and Adam behave as they do on weights; and with
//! as many slots as weights, training is dense training.

use std::ops::Range;

use super::{
    modules::{Choice, Scales, Sharing, Size},
    pool::{accumulate, recover},
};
use crate::{
    Error, Result,
    data::random::Stream,
    nn::{graph::Layout, parametrise::Parametrise},
};

/// The weights of a net, some of them read from a pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Shared {
    sharing: Sharing,
    roots: Vec<f32>,
    /// Where each module lies in the net's weights.
    places: Vec<Range<usize>>,
    /// What lies between them, in order.
    rest: Vec<Range<usize>>,
    /// All weights of the net.
    weights: usize,
}

impl Shared {
    /// Shares those tensors of `layout` that `choice` takes, with scales from `weights`, the net's weights before training
    /// or after. A tensor of zeros gets the scale 1 / √(values a row).
    ///
    /// # Errors
    /// If a pattern matches nothing, nothing is left to share, or the size does not suit.
    ///
    /// # Panics
    /// If the weights are not the layout's.
    pub fn new(
        layout: &Layout,
        weights: &[f32],
        choice: &Choice,
        scales: Scales,
        size: Size,
        align: usize,
        seed: u64,
    ) -> Result<Self> {
        assert_eq!(weights.len(), layout.len(), "the weights are of another net");
        choice.check(&layout.entries().iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>())?;
        let taken = layout.entries().iter().filter(|entry| choice.takes(&entry.name, &entry.shape));
        let tensors = taken.map(|entry| {
            let squares: f64 = weights[entry.range()].iter().map(|&value| f64::from(value).powi(2)).sum();
            let rms = match squares > 0.0 {
                true => (squares / entry.values() as f64).sqrt(),
                false => (entry.shape[0] as f64 / entry.values() as f64).sqrt(),
            };
            (entry.name.clone(), entry.shape.clone(), scales.of(rms))
        });
        Self::over(Sharing::new(tensors.collect(), size, align, seed)?, layout)
    }

    /// Shares as `sharing` says; its modules are tensors of `layout`, in any order.
    ///
    /// # Errors
    /// If the layout lacks a module or has it in another shape, or a tensor would share twice.
    pub fn over(sharing: Sharing, layout: &Layout) -> Result<Self> {
        let mut places = Vec::with_capacity(sharing.modules.len());
        for module in &sharing.modules {
            let Some(entry) = layout.entry(&module.name) else {
                return Err(Error::Recipe(format!("the net has no tensor `{}`, which shares the pool", module.name)));
            };
            if entry.shape != module.shape {
                return Err(Error::Recipe(format!(
                    "tensor `{}` has shape {:?} in the net and {:?} in the pool",
                    module.name, entry.shape, module.shape
                )));
            }
            places.push(entry.range());
        }
        let mut taken: Vec<(&Range<usize>, &str)> =
            places.iter().zip(sharing.modules.iter().map(|module| module.name.as_str())).collect();
        taken.sort_by_key(|(place, _)| place.start);
        let (mut rest, mut end) = (Vec::new(), 0);
        for (place, name) in taken {
            if place.start < end {
                return Err(Error::Recipe(format!("tensor `{name}` would share the pool twice")));
            }
            rest.push(end..place.start);
            end = place.end;
        }
        rest.push(end..layout.len());
        rest.retain(|range| !range.is_empty());
        Ok(Self { roots: sharing.roots(), sharing, places, rest, weights: layout.len() })
    }

    /// Tensors, scales and fold.
    pub fn sharing(&self) -> &Sharing {
        &self.sharing
    }

    /// Fills the shared tensors among `weights` as a pool of standard normal numbers makes them: where the scales are root
    /// mean squares, as widely spread as the weights those were taken of. A projection of independent weights would be
    /// smaller by √(n/m).
    pub fn begin(&self, weights: &mut [f32], seed: u64) {
        let mut stream = Stream::new(seed, "sharing/pool", 0);
        let pool: Vec<f32> = (0..self.sharing.fold.slots()).map(|_| stream.normal() as f32).collect();
        self.spread(&pool, weights);
    }

    /// What is trained where the pool is `psi` and what does not share stands in `weights`, which are all of the net's.
    ///
    /// # Panics
    /// If the pool or the weights are of another net.
    pub fn trainable(&self, psi: &[f32], weights: &[f32]) -> Vec<f32> {
        assert_eq!((psi.len(), weights.len()), (self.roots.len(), self.weights), "another net's");
        let phi = psi.iter().zip(&self.roots).map(|(psi, root)| psi * root);
        phi.chain(self.rest.iter().flat_map(|range| &weights[range.clone()]).copied()).collect()
    }

    /// ψ of what is trained: what goes on disk.
    ///
    /// # Panics
    /// If `trainable` is of another net.
    pub fn pool(&self, trainable: &[f32]) -> Vec<f32> {
        let slots = self.sharing.fold.slots();
        assert_eq!(trainable.len(), slots + self.rest.iter().map(Range::len).sum::<usize>(), "another net's");
        trainable[..slots].iter().zip(&self.roots).map(|(phi, root)| phi / root).collect()
    }

    fn spread(&self, pool: &[f32], weights: &mut [f32]) {
        for (module, place) in self.sharing.modules.iter().zip(&self.places) {
            recover(&self.sharing.fold, pool, module.scale, module.offset, &mut weights[place.clone()]);
        }
    }

    /// Sᵀ of the shared tensors among `weights`, over √d; then the rest.
    fn gather(&self, weights: &[f32], out: &mut [f32]) {
        assert_eq!(weights.len(), self.weights, "the weights are of another net");
        let (phi, mut tail) = out.split_at_mut(self.sharing.fold.slots());
        phi.fill(0.0);
        for (module, place) in self.sharing.modules.iter().zip(&self.places) {
            accumulate(&self.sharing.fold, &weights[place.clone()], module.scale, module.offset, phi);
        }
        phi.iter_mut().zip(&self.roots).for_each(|(phi, root)| *phi /= root);
        for range in &self.rest {
            let (to, left) = tail.split_at_mut(range.len());
            to.copy_from_slice(&weights[range.clone()]);
            tail = left;
        }
        assert!(tail.is_empty(), "what is trained is another net's");
    }
}

impl Parametrise for Shared {
    fn identity(&self) -> String {
        let fold = &self.sharing.fold;
        let modules: Vec<String> = self
            .sharing
            .modules
            .iter()
            .map(|module| format!("{}*{:08x}", module.name, module.scale.to_bits()))
            .collect();
        let (n, m, align, seed) = (fold.weights(), fold.slots(), fold.align(), fold.seed());
        let apart = if fold.is_apart() { " apart" } else { "" };
        format!("shared {n} over {m}{apart} aligned {align} seed {seed}: {}", modules.join(" "))
    }

    /// The least-squares projection: the weights among those that can be expressed that are nearest to `weights`.
    fn start(&self, weights: &[f32]) -> Vec<f32> {
        let rest: usize = self.rest.iter().map(Range::len).sum();
        let mut out = vec![0.0; self.sharing.fold.slots() + rest];
        self.gather(weights, &mut out);
        out
    }

    fn expand(&self, trainable: &[f32], weights: &mut [f32]) {
        self.spread(&self.pool(trainable), weights);
        let mut tail = &trainable[self.sharing.fold.slots()..];
        for range in &self.rest {
            let (from, left) = tail.split_at(range.len());
            weights[range.clone()].copy_from_slice(from);
            tail = left;
        }
    }

    fn fold(&self, gradient: &[f32], of_trainable: &mut [f32]) {
        self.gather(gradient, of_trainable);
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::{
        data::{glyphs::glyphs, images::ImageSet},
        nn::{
            Architecture, Input, Net, Recipe, Spec, Trainer, Weights, evaluate,
            optimiser::{Curve, Rule, Schedule},
            train::Augmentation,
        },
        sharing::fold::ALIGN,
    };

    fn spec() -> Spec {
        let architecture = Architecture::Mlp { hidden: vec![40, 24], norm: false };
        Spec { architecture, input: Input { height: 16, width: 16, channels: 1 }, classes: 10 }
    }

    fn recipe(images: &ImageSet, epochs: u64, rule: Rule, peak: f64) -> Recipe {
        Recipe {
            seed: 1,
            epochs,
            batch: 32,
            rule,
            decay_vectors: true, // as everything behind the weights decays
            schedule: Schedule { peak, warmup_epochs: 0.0, curve: Curve::Cosine },
            label_smoothing: 0.0,
            augmentation: Augmentation::default(),
            scaling: images.scaling(),
        }
    }

    const SGD: Rule = Rule::Sgd { momentum: 0.9, nesterov: false, weight_decay: 1e-4 };
    const ADAMW: Rule = Rule::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 1e-2 };

    /// All matrices of the net shared, the scales divided by `c`.
    fn shared(rate: f64, scales: Scales, c: f64) -> (Shared, Weights) {
        let graph = spec().graph().unwrap();
        let mut start = Weights::start(&graph, 3);
        let choice = Choice { least_values: 1, ..Choice::default() };
        let new = |sharing: Sharing| Shared::over(sharing, graph.layout()).unwrap();
        let shared = Shared::new(graph.layout(), &start.values, &choice, scales, Size::Rate(rate), ALIGN, 9).unwrap();
        shared.begin(&mut start.values, 5);
        let mut sharing = shared.sharing().clone();
        sharing.modules.iter_mut().for_each(|module| module.scale = (f64::from(module.scale) / c) as f32);
        (new(sharing), start)
    }

    /// The weights after a run, or what stopped it.
    fn train(images: &ImageSet, recipe: Recipe, start: &Weights, with: Option<&dyn Parametrise>) -> Result<Weights> {
        let mut trainer = Trainer::from_weights(&spec(), recipe, images, start.clone(), with)?;
        trainer.run(u64::MAX, &mut |_| ControlFlow::Continue(()))?;
        Ok(trainer.weights().clone())
    }

    fn relative(a: &[f32], b: &[f32]) -> f64 {
        let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
        let difference = squares(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
        (difference / squares(&mut b.iter().map(|&b| f64::from(b)))).sqrt()
    }

    #[test]
    fn at_rate_1_training_is_dense_training() {
        let images = ImageSet::of_glyphs(glyphs(1, 320, 16));
        let test = ImageSet::of_glyphs(glyphs(2, 500, 16));
        for (rule, peak, most) in [(SGD, 0.02, 1e-4), (ADAMW, 0.002, 1e-3)] {
            let recipe = recipe(&images, 101, rule, peak); // 1,010 steps
            for scales in [Scales::PowerOfTwo, Scales::Rms] {
                let (shared, start) = shared(1.0, scales, 1.0);
                let dense = train(&images, recipe.clone(), &start, None).unwrap();
                let pooled = train(&images, recipe.clone(), &start, Some(&shared)).unwrap();
                let difference = relative(&pooled.values, &dense.values);
                assert!(difference < most, "{rule:?}, {scales:?}: {difference}");
                if scales == Scales::PowerOfTwo {
                    // Signs and powers of two are exact in every step.
                    assert_eq!(pooled.values, dense.values);
                }
                assert!(relative(&dense.values, &start.values) > 0.1, "the run went nowhere");
                let mut net = Net::new(&spec(), 100).unwrap();
                let mut accuracy =
                    |weights: &Weights| evaluate(&mut net, weights, &test, &recipe.scaling).unwrap().accuracy();
                let (dense, pooled) = (accuracy(&dense), accuracy(&pooled));
                assert!((dense - pooled).abs() <= 0.002 && dense > 0.5, "{dense} and {pooled}"); // of ten signs
            }
        }
    }

    /// ψ itself as what is trained: the method without its coordinates.
    struct Plain(Shared);

    impl Plain {
        fn times_roots(&self, mut trainable: Vec<f32>, power: i32) -> Vec<f32> {
            trainable.iter_mut().zip(&self.0.roots).for_each(|(value, root)| *value *= root.powi(power));
            trainable
        }
    }

    impl Parametrise for Plain {
        fn identity(&self) -> String {
            format!("plain {}", self.0.identity())
        }

        fn start(&self, weights: &[f32]) -> Vec<f32> {
            self.times_roots(self.0.start(weights), -1)
        }

        fn expand(&self, trainable: &[f32], weights: &mut [f32]) {
            self.0.expand(&self.times_roots(trainable.to_vec(), 1), weights);
        }

        fn fold(&self, gradient: &[f32], of_trainable: &mut [f32]) {
            self.0.fold(gradient, of_trainable);
            of_trainable.copy_from_slice(&self.times_roots(of_trainable.to_vec(), 1));
        }
    }

    #[test]
    fn the_size_the_pool_is_begun_at_does_not_matter_and_would_without_the_coordinates() {
        let images = ImageSet::of_glyphs(glyphs(1, 320, 16));
        let test = ImageSet::of_glyphs(glyphs(2, 500, 16));
        for (rule, peak) in [(SGD, 0.05), (ADAMW, 0.005)] {
            let recipe = recipe(&images, 12, rule, peak);
            let accuracy = |c: f64| {
                let (shared, start) = shared(8.0, Scales::Rms, c);
                let weights = train(&images, recipe.clone(), &start, Some(&shared)).unwrap();
                let mut net = Net::new(&spec(), 100).unwrap();
                evaluate(&mut net, &weights, &test, &recipe.scaling).unwrap().accuracy()
            };
            let found = [0.001, 0.05, 1.0, 5.0].map(accuracy);
            let (least, most) = found.iter().fold((1.0f64, 0.0f64), |(l, m), &a| (l.min(a), m.max(a)));
            assert!(most - least < 0.01 && least > 0.25, "{rule:?}: {found:?}"); // 0.1 by chance
        }
        let (shared, start) = shared(8.0, Scales::Rms, 0.001);
        let plain = train(&images, recipe(&images, 12, SGD, 0.05), &start, Some(&Plain(shared)));
        let error = plain.unwrap_err().to_string();
        assert!(error.starts_with("step ") && error.contains("loss"), "{error}");
    }

    #[test]
    fn the_coordinates_are_orthonormal_and_the_start_is_the_nearest_point() {
        let (shared, start) = shared(3.3, Scales::Rms, 1.0);
        let random = |len: usize, number: u64| -> Vec<f32> {
            let mut stream = Stream::new(1, "test", number);
            (0..len).map(|_| stream.normal() as f32).collect()
        };
        let trainable = random(shared.start(&start.values).len(), 0);
        let mut weights = vec![0.0; start.values.len()];
        shared.expand(&trainable, &mut weights);
        // UᵀU = 1: what was expanded comes back.
        assert!(relative(&shared.start(&weights), &trainable) < 1e-6);
        // The residual of a projection is orthogonal to all that can be expressed.
        let other = random(weights.len(), 1);
        let mut nearest = vec![0.0; other.len()];
        shared.expand(&shared.start(&other), &mut nearest);
        let residual: Vec<f32> = other.iter().zip(&nearest).map(|(a, b)| a - b).collect();
        let left = shared.start(&residual);
        assert!(left.iter().all(|value| value.abs() < 1e-5), "Sᵀ(w − Sψ) is not 0");
        // What it began with can be expressed.
        shared.expand(&shared.start(&start.values), &mut weights);
        assert!(relative(&weights, &start.values) < 1e-6);
    }

    #[test]
    fn tensors_that_do_not_fit_are_refused_in_words() {
        let (shared, _) = shared(2.0, Scales::Rms, 1.0);
        let graph = spec().graph().unwrap();
        type Change = fn(&mut Sharing);
        let changes: [(Change, &str); 3] = [
            (|sharing| sharing.modules[0].name = "fc9.weight".into(), "the net has no tensor `fc9.weight`"),
            (|sharing| sharing.modules[1].shape.reverse(), "tensor `fc2.weight` has shape"),
            (
                |sharing| sharing.modules.push(sharing.modules[0].clone()),
                "tensor `fc1.weight` would share the pool twice",
            ),
        ];
        for (change, part) in changes {
            let mut sharing = shared.sharing().clone();
            change(&mut sharing);
            let Err(error) = Shared::over(sharing, graph.layout()) else { panic!("{part}: was accepted") };
            assert!(error.to_string().contains(part), "{error}");
        }
        // Any order will do.
        let mut sharing = shared.sharing().clone();
        sharing.modules.reverse();
        assert!(Shared::over(sharing, graph.layout()).is_ok());
    }
}
