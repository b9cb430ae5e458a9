//! What a criterion is shown: a net with its weights, some images, and what several criteria ask of them.

use super::{
    blocks::{Block, Stages},
    ticket::Ticket,
};
use crate::{
    Error, Result,
    data::images::{ImageSet, Placement, Scaling},
    nn::{Loss, Mode, Net, Spec, Weights},
};

/// A net in one state, and images.
#[derive(Debug)]
pub struct Scene<'a> {
    /// The dense net.
    pub spec: &'a Spec,
    /// Its weights, before or after training.
    pub weights: &'a Weights,
    /// Where norms take their moments from: the batch before training, the running ones after.
    pub mode: Mode,
    /// All seen at once, so that the moments of a batch are those of one batch.
    pub images: &'a ImageSet,
    /// How their bytes become numbers.
    pub scaling: &'a Scaling,
    /// Of criteria that draw.
    pub seed: u64,
    /// The net, for as many images.
    pub net: Net,
    /// Its blocks.
    pub blocks: Vec<Block>,
    /// Blocks of each stage.
    pub stages: Stages,
}

/// The first `each` images of every class, in the order of the set.
pub fn of_each_class(images: &ImageSet, each: usize) -> ImageSet {
    let mut seen = vec![0usize; 256];
    let first = |&image: &usize| {
        let count = &mut seen[usize::from(images.labels[image])];
        *count += 1;
        *count <= each
    };
    images.select((0..images.len()).filter(first).collect::<Vec<_>>())
}

/// Runs all `images` through `net` as one batch.
fn forward(net: &mut Net, weights: &Weights, images: &ImageSet, scaling: &Scaling, mode: Mode) -> Result<Loss> {
    let each = images.values();
    for (image, out) in net.input_mut(images.len()).chunks_exact_mut(each).enumerate() {
        images.write(image, scaling, Placement::default(), out);
    }
    net.forward(&weights.values, &mut weights.running.clone(), mode);
    net.loss(&images.labels, 0.0)
}

impl<'a> Scene<'a> {
    /// A scene; `trained` says in which state the weights are.
    ///
    /// # Errors
    /// If net, weights and images do not fit each other, or the net has no residual blocks.
    pub fn new(
        spec: &'a Spec,
        weights: &'a Weights,
        trained: bool,
        images: &'a ImageSet,
        scaling: &'a Scaling,
        seed: u64,
    ) -> Result<Self> {
        let stages = Stages::of(spec)?;
        if images.is_empty() {
            return Err(Error::Recipe("there are no images to score blocks by".into()));
        }
        let net = Net::new(spec, images.len())?;
        if weights.values.len() != net.graph().layout().len() || images.values() != net.image_values() {
            return Err(Error::Recipe("weights or images do not fit the net whose blocks are to be scored".into()));
        }
        let blocks = stages.list(net.graph());
        let mode = if trained { Mode::Evaluate } else { Mode::Train };
        Ok(Self { spec, weights, mode, images, scaling, seed, net, blocks, stages })
    }

    /// Whether the weights are trained ones.
    pub fn trained(&self) -> bool {
        self.mode == Mode::Evaluate
    }

    /// Whether every matrix and convolution inside of blocks feeds a norm, so that its size does not matter to the loss.
    pub fn blocks_are_normed(&self) -> bool {
        let graph = self.net.graph();
        let inside = graph.layout().entries().iter().filter(|entry| entry.shape.len() > 1);
        inside.filter(|entry| self.stages.place(&entry.name).is_some()).all(|entry| graph.is_normed(&entry.name))
    }

    /// The loss of the dense net, whose batch is then in [`Self::net`].
    ///
    /// # Errors
    /// If an output is not finite.
    pub fn dense(&mut self) -> Result<Loss> {
        forward(&mut self.net, self.weights, self.images, self.scaling, self.mode)
    }

    /// The gradient of the loss in every weight of the dense net.
    ///
    /// # Errors
    /// If an output is not finite.
    pub fn gradient(&mut self) -> Result<Vec<f32>> {
        self.gradient_at(self.weights)
    }

    /// The gradient of the loss in every weight of the dense net, were they `weights`.
    ///
    /// # Errors
    /// If an output is not finite.
    pub fn gradient_at(&mut self, weights: &Weights) -> Result<Vec<f32>> {
        forward(&mut self.net, weights, self.images, self.scaling, self.mode)?;
        let mut gradient = vec![0.0; weights.values.len()];
        self.net.backward(&weights.values, &mut gradient, false);
        Ok(gradient)
    }

    /// For each block that can go, in the order of [`Self::blocks`], what `ask` says of the ticket without it, given as
    /// (ticket, its net after a forward pass, its weights, its loss); none for those that stay.
    ///
    /// # Errors
    /// If an output is not finite, and as `ask`.
    pub fn without_each<T>(
        &self,
        mut ask: impl FnMut(&Ticket, &mut Net, &Weights, Loss) -> Result<T>,
    ) -> Result<Vec<Option<T>>> {
        let mut found = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            // A stage of one block has none to spare.
            if block.stays.is_some() || self.stages.blocks[block.stage] < 2 {
                found.push(None);
                continue;
            }
            let ticket = Ticket::without(self.spec, block.stage, block.index)?;
            let mut net = Net::new(&ticket.spec, self.images.len())?;
            let weights = ticket.weights(self.net.graph(), self.weights)?;
            let loss = forward(&mut net, &weights, self.images, self.scaling, self.mode)?;
            found.push(Some(ask(&ticket, &mut net, &weights, loss)?));
        }
        Ok(found)
    }

    /// Class outputs of the images last run through `net`, (images, classes).
    pub fn logits(&self, net: &Net) -> Vec<Vec<f32>> {
        (0..self.images.len()).map(|image| net.logits(image).to_vec()).collect()
    }

    /// Features before the last linear of the images last run through `net`, (images, features).
    pub fn features(&self, net: &Net) -> Vec<Vec<f32>> {
        (0..self.images.len()).map(|image| net.features(image)).collect()
    }
}
