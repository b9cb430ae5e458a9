//! The pool itself as what is trained, as published: without the coordinates of [`Shared`], with or without a division of
//! each slot's gradient.

use super::super::{
    Shared, Sharing,
    baselines::GradientScale,
    fold::ALIGN,
    modules::{Choice, Scales, Size},
};
use crate::{
    Result,
    nn::{
        Weights,
        graph::{Graph, Layout},
        parametrise::Parametrise,
    },
};

/// What the published code adds to the number a gradient is divided by.
const ADDED: f64 = 1e-6;

/// All matrices of a net over a pool of `size`, `start` being filled with what a standard normal pool makes of them.
///
/// # Errors
/// If the size does not suit.
pub fn share(graph: &Graph, start: &mut Weights, size: Size, scales: Scales, seed: u64) -> Result<Shared> {
    let choice = Choice { least_values: 1, ..Choice::default() };
    let shared = Shared::new(graph.layout(), &start.values, &choice, scales, size, ALIGN, seed)?;
    shared.begin(&mut start.values, seed);
    Ok(shared)
}

/// `shared` with a pool that begins at standard deviation `deviation` and scales that make up for it: the same weights.
///
/// # Errors
/// If a scale leaves what f32 holds.
pub fn begun_at(shared: &Shared, layout: &Layout, deviation: f64) -> Result<Shared> {
    let Sharing { fold, modules } = shared.sharing();
    let scaled = modules
        .iter()
        .map(|module| (module.name.clone(), module.shape.clone(), (f64::from(module.scale) / deviation) as f32));
    Shared::over(Sharing::new(scaled.collect(), Size::Slots(fold.slots()), fold.align(), fold.seed())?, layout)
}

/// ψ behind the weights.
#[derive(Debug)]
pub struct Psi {
    shared: Shared,
    roots: Vec<f32>,
    /// Γ of each slot.
    divisors: Option<Vec<f32>>,
}

impl Psi {
    /// The pool of `shared`, its gradients divided as `scale` says.
    pub fn new(shared: Shared, scale: Option<GradientScale>) -> Self {
        let sharing = shared.sharing();
        let divisors = scale.map(|scale| {
            let mut scales = vec![Vec::new(); sharing.fold.slots()];
            for module in &sharing.modules {
                for run in sharing.fold.runs(module.range()) {
                    scales[run.slot..][..run.len].iter_mut().for_each(|of_slot| of_slot.push(f64::from(module.scale)));
                }
            }
            scales.iter().map(|of_slot| (ADDED + scale.of(of_slot)) as f32).collect()
        });
        Self { roots: sharing.roots(), shared, divisors }
    }
}

impl Parametrise for Psi {
    fn identity(&self) -> String {
        let divided = if self.divisors.is_some() { "divided" } else { "plain" };
        format!("psi {divided} {}", self.shared.identity())
    }

    fn start(&self, weights: &[f32]) -> Vec<f32> {
        let mut trainable = self.shared.start(weights);
        trainable.iter_mut().zip(&self.roots).for_each(|(value, root)| *value /= root);
        trainable
    }

    fn expand(&self, trainable: &[f32], weights: &mut [f32]) {
        let mut trainable = trainable.to_vec();
        trainable.iter_mut().zip(&self.roots).for_each(|(value, root)| *value *= root);
        self.shared.expand(&trainable, weights);
    }

    fn fold(&self, gradient: &[f32], of_trainable: &mut [f32]) {
        self.shared.fold(gradient, of_trainable);
        of_trainable.iter_mut().zip(&self.roots).for_each(|(value, root)| *value *= root);
        if let Some(divisors) = &self.divisors {
            of_trainable.iter_mut().zip(divisors).for_each(|(value, divisor)| *value /= divisor);
        }
    }
}
