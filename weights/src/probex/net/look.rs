//! A probe at work, where nothing is learnt.
//!
//! Models share the encoder's weights, which are more bytes than a model's layer: they are read once for a block of
//! models. A product's rounding may depend on its shape, so blocks have one size, and what is said of a model does not
//! depend on the models beside it.

use rayon::prelude::*;

use super::{
    super::{
        head::Texts,
        operand::Operand,
        product::{columns_of, matrix, product},
        spec::{Body, Head},
    },
    Net, Scratch, Trace, linear,
};

/// Models whose representations are computed in one product.
const BLOCK: usize = 32;

/// Elements of a layer that a dense body takes at a time: with so many of each model of a block beside one another, and
/// of each class, both stay in the second cache.
const ELEMENTS: usize = 2048;

/// Models whose hidden values are held at a time.
const TOGETHER: usize = 4 * BLOCK;

impl Net {
    /// Logits (models, classes) and representations (models, r_T) of `models`; those of a model are the same to the last
    /// bit whatever models it is among.
    pub fn look_at(&self, models: &[Operand<'_>], texts: Texts<'_>) -> (Vec<f32>, Vec<f32>) {
        let (mut logits, mut representations) = (Vec::new(), Vec::new());
        for models in models.chunks(TOGETHER) {
            let represented = match (&self.spec.body, self.spec.head) {
                (Body::Dense, Head::Labels { classes }) => self.all_elements(models, classes),
                (Body::Dense, Head::Text { .. }) => {
                    let mut trace = Trace::default();
                    self.represent(models, &mut trace);
                    trace.representation.resize(models.len().next_multiple_of(BLOCK) * self.spec.representation(), 0.0);
                    trace.representation
                }
                (Body::Probe { .. }, _) => self.encoded(models),
            };
            let width = self.spec.representation();
            let blocks = represented.par_chunks(BLOCK * width).map(|block| {
                let trace = Trace { representation: block.to_vec(), ..Trace::default() };
                self.logits(&trace, BLOCK, texts)
            });
            let found: Vec<Vec<f32>> = blocks.collect();
            let classes = found.first().map_or(0, |block| block.len() / BLOCK);
            logits.extend(found.into_iter().flatten().take(models.len() * classes));
            representations.extend_from_slice(&represented[..models.len() * width]);
        }
        (logits, representations)
    }

    /// Representations of whole blocks; what stands behind the last model is without meaning.
    fn encoded(&self, models: &[Operand<'_>]) -> Vec<f32> {
        let Some(sizes) = self.sizes() else { return Vec::new() };
        let (responses, width) = (sizes.responses(self.spec.rows, self.spec.columns), sizes.hidden());
        let mut hidden = vec![0.0; models.len().next_multiple_of(BLOCK) * width];
        let buffers = || (Scratch::default(), vec![0.0; responses], vec![0.0; sizes.views.len()]);
        models.par_iter().zip(hidden.par_chunks_mut(width)).for_each_init(buffers, |buffers, (model, hidden)| {
            let (scratch, responses, deviations) = buffers;
            self.look(sizes, model, (responses, deviations, hidden), scratch);
        });
        let (weight, bias) = (self.section("encoder.weight"), self.section("encoder.bias"));
        let encode = |hidden: &[f32]| {
            let mut out = Vec::new();
            linear(hidden, weight, bias, BLOCK, sizes.representation, width, &mut out);
            out
        };
        let blocks: Vec<Vec<f32>> = hidden.par_chunks(BLOCK * width).map(encode).collect();
        blocks.concat()
    }

    /// Logits of a dense body, of whole blocks.
    fn all_elements(&self, models: &[Operand<'_>], classes: usize) -> Vec<f32> {
        let shape = (self.spec.rows, self.spec.columns);
        let elements = shape.0 * shape.1;
        let (weight, bias) = (self.section("head.weight"), self.section("head.bias"));
        let block = |models: &[Operand<'_>]| {
            let layers: Vec<std::borrow::Cow<'_, [f32]>> = models
                .iter()
                .map(|model| match model {
                    Operand::Dense(x) => (*x).into(),
                    Operand::LowRank { .. } => model.dense(shape).into(),
                })
                .collect();
            let mut out = vec![0.0; BLOCK * classes];
            let mut piece = Vec::new();
            for first in (0..elements).step_by(ELEMENTS) {
                let width = ELEMENTS.min(elements - first);
                piece.clear();
                layers.iter().for_each(|x| piece.extend_from_slice(&x[first..first + width]));
                piece.resize(BLOCK * width, 0.0);
                let weight = columns_of(weight, classes, elements, first, width);
                product(&mut out, matrix(&piece, BLOCK, width), weight.t(), self.factor, first > 0);
            }
            out.chunks_exact_mut(classes).for_each(|y| y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias));
            out
        };
        let blocks: Vec<Vec<f32>> = models.par_chunks(BLOCK).map(block).collect();
        blocks.concat()
    }
}
