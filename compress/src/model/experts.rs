//! Mixtures of experts: which of a block's MLPs a token runs through, and with what weight.
//!
//! p = softmax(router(h)); the `top_k` largest are taken, divided by their sum where the family says so, and the block adds
//! Σ p_e · expert_e(h) (Shazeer et al. 2017; Jiang et al. 2024, eq. 2).

use candle_core::Tensor;
use rayon::prelude::*;

use super::{linear::Linear, spec::ExpertsSpec};
use crate::{
    Result,
    kernel::{
        activation::softmax_row,
        tensor::{from_vec, with_f32},
    },
};

/// Where the tokens of one run go. A *slot* is one of a token's `top_k` places: number token · top_k + place.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// Experts a token runs through.
    pub top_k: usize,
    /// The expert of each slot, a token's likeliest first.
    pub experts: Vec<u32>,
    /// Its weight.
    pub weights: Vec<f32>,
}

impl Routing {
    /// Routes the rows of `h` (tokens, hidden) by `router` (experts, hidden).
    pub(crate) fn new(spec: &ExpertsSpec, router: &dyn Linear, h: &Tensor) -> Result<Self> {
        let logits = router.forward(h)?; // (tokens, experts)
        let rows: Vec<Vec<(u32, f32)>> =
            with_f32(&logits, |logits| logits.par_chunks(spec.count).map(|row| choose(row, spec)).collect())?;
        let slots = rows.iter().flatten();
        Ok(Self {
            top_k: spec.top_k,
            experts: slots.clone().map(|(expert, _)| *expert).collect(),
            weights: slots.map(|(_, weight)| *weight).collect(),
        })
    }

    /// The slots of each of `count` experts, ascending.
    pub fn slots(&self, count: usize) -> Vec<Vec<usize>> {
        let mut slots = vec![Vec::new(); count];
        for (slot, &expert) in self.experts.iter().enumerate() {
            slots[expert as usize].push(slot);
        }
        slots
    }
}

/// The experts of one token with their weights, by falling probability, the first of equals first.
fn choose(logits: &[f32], spec: &ExpertsSpec) -> Vec<(u32, f32)> {
    let mut p = logits.to_vec();
    softmax_row(&mut p, 1.0);
    let mut order: Vec<u32> = (0..p.len() as u32).collect();
    order.sort_unstable_by(|&a, &b| p[b as usize].total_cmp(&p[a as usize]).then(a.cmp(&b)));
    order.truncate(spec.top_k);
    let sum: f32 = order.iter().map(|&expert| p[expert as usize]).sum();
    let scale = if spec.normalised { 1.0 / sum } else { 1.0 };
    order.into_iter().map(|expert| (expert, p[expert as usize] * scale)).collect()
}

/// Rows `rows` of `x` (…, width) as a matrix of their own.
pub(crate) fn take_rows(x: &[f32], width: usize, rows: impl ExactSizeIterator<Item = usize>) -> Result<Tensor> {
    let count = rows.len();
    let mut out = Vec::with_capacity(count * width);
    rows.for_each(|row| out.extend_from_slice(&x[row * width..][..width]));
    from_vec(out, (count, width))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::linear::DenseLinear;

    #[test]
    fn a_token_goes_to_its_likeliest_experts() {
        let router = DenseLinear::from_f32(&[1.0, 0.0, -1.0, 3.0], (4, 1), None).unwrap();
        let h = from_vec(vec![1.0, -1.0, 0.0], (3, 1)).unwrap();
        let spec = |normalised| ExpertsSpec { router: "gate", count: 4, top_k: 2, normalised };
        let routing = Routing::new(&spec(false), &router, &h).unwrap();
        assert_eq!(routing.experts, [3, 0, 2, 1, 0, 1]);
        assert_eq!(routing.slots(4), [vec![1, 4], vec![3, 5], vec![2], vec![0]]);
        let sum: f32 = [1.0f32, 0.0, -1.0, 3.0].iter().map(|x| x.exp()).sum();
        assert!((routing.weights[0] - 3f32.exp() / sum).abs() < 1e-6 && (routing.weights[4] - 0.25).abs() < 1e-6);
        let shared = Routing::new(&spec(true), &router, &h).unwrap();
        assert_eq!(shared.experts, routing.experts);
        assert!((shared.weights[0] - 3f32.exp() / (3f32.exp() + 1f32.exp())).abs() < 1e-6);
        assert!(shared.weights.chunks(2).all(|pair| (pair[0] + pair[1] - 1.0).abs() < 1e-6));
    }
}
