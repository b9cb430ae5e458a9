//! Weights that are made of something else: what the optimiser moves need not be what the net computes with.
//!
//! A parametrisation maps trainable numbers to weights, and the gradient of the weights back. Masks are one; a pool that
//! many weights share is another.

/// A map from trainable numbers t to weights w(t), both flat.
pub trait Parametrise: Sync {
    /// What distinguishes this map from others, for saved runs.
    fn identity(&self) -> String;

    /// The trainable numbers a run from `weights` starts with.
    fn start(&self, weights: &[f32]) -> Vec<f32>;

    /// w(t) into `weights`.
    fn expand(&self, trainable: &[f32], weights: &mut [f32]);

    /// The gradient in t, Σ ∂w/∂t · ∂loss/∂w, into `of_trainable`, overwriting it.
    fn fold(&self, gradient: &[f32], of_trainable: &mut [f32]);
}

/// Weights of which some stay zero.
#[derive(Debug, Clone, PartialEq)]
pub struct Masked {
    keep: Vec<bool>,
}

impl Masked {
    /// `true` = the weight stays.
    pub fn new(keep: Vec<bool>) -> Self {
        Self { keep }
    }

    fn copy(&self, from: &[f32], to: &mut [f32]) {
        assert!(from.len() == self.keep.len() && to.len() == self.keep.len(), "the mask is of other weights");
        for ((to, from), &keep) in to.iter_mut().zip(from).zip(&self.keep) {
            *to = if keep { *from } else { 0.0 };
        }
    }
}

impl Parametrise for Masked {
    fn identity(&self) -> String {
        // FNV-1a of the mask.
        let hash = self
            .keep
            .iter()
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, &keep| (hash ^ u64::from(keep)).wrapping_mul(0x0000_0100_0000_01b3));
        format!("masked {} {hash:016x}", self.keep.len())
    }

    fn start(&self, weights: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; weights.len()];
        self.copy(weights, &mut out);
        out
    }

    fn expand(&self, trainable: &[f32], weights: &mut [f32]) {
        self.copy(trainable, weights);
    }

    fn fold(&self, gradient: &[f32], of_trainable: &mut [f32]) {
        self.copy(gradient, of_trainable);
    }
}
