//! The size of the result and the memory a run takes, before any work.

use scruple_weights::{Checkpoint, TensorSpec};

use super::{Plan, PlannedLinear};
use crate::{
    calibration::ActivationStore,
    gather::rows_per_update,
    methods::SAMPLES,
    model::{
        decoder::Stage,
        spec::{BlockSpec, LinearSpec},
    },
};

/// Memory of the program itself, its threads and tables, bytes (measured; `benches/record/memory.json`).
const FIXED_BYTES: u64 = 24 << 20;

/// Memory the tokenizer takes a byte of text while it works: it keeps where every piece came from (measured).
const BYTES_PER_TEXT_BYTE: u64 = 135;

/// What a run does beside compressing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Around {
    /// Calibration sequences.
    pub n_samples: usize,
    /// Tokens of a sequence.
    pub seq_len: usize,
    /// Length of the calibration text.
    pub text_bytes: u64,
    /// Bytes of dense blocks run to measure the speed; 0 where it is not measured.
    pub speed_bytes: u64,
    /// Both models are run on a text afterwards.
    pub evaluates: bool,
}

/// What a run is expected to take.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Forecast {
    /// Bytes of the written tensors.
    pub output_bytes: u64,
    /// Bytes of the source's tensors.
    pub dense_bytes: u64,
    /// Bits a compressed linear's weight takes on average, scales included.
    pub bits_per_weight: f64,
    /// Resident memory at its peak.
    pub peak_rss_bytes: u64,
    /// Activations on disk while the run lasts.
    pub activation_bytes: u64,
}

impl Plan {
    /// What the run will take.
    pub fn forecast(&self, checkpoint: &Checkpoint, around: Around) -> Forecast {
        let bytes = |spec: &TensorSpec| spec.dtype.bytes(spec.shape.iter().product()).unwrap_or(0) as u64;
        let weights: u64 = self.linears.iter().map(|linear| linear.layout.weights()).sum();
        let bits: u64 = self.linears.iter().map(|linear| self.storage_bits(linear)).sum();
        let output_bytes = self.tensors.iter().map(bytes).sum();
        let dense_bytes = checkpoint.bytes();
        let decoder = self.network.decoder();
        let activation_bytes = match decoder.filter(|_| self.needs_calibration()) {
            Some(config) => {
                let widest =
                    |stage: Stage| config.blocks.iter().map(|block| block.token_width(stage)).max().unwrap_or(0);
                let width = 2 * config.hidden_size + widest(Stage::AttentionOutput) + widest(Stage::MlpOutput);
                ActivationStore::bytes(around.n_samples * around.seq_len, width)
            }
            None => 0,
        };
        let encoder = self.network.encoder();
        let activation_bytes = match encoder.filter(|_| self.needs_calibration()) {
            Some(config) => {
                let width = 3 * config.hidden_size + config.intermediate_size;
                ActivationStore::bytes(around.n_samples * around.seq_len, width)
            }
            None => activation_bytes,
        };
        let compressing = match decoder {
            Some(config) => {
                config.blocks.iter().map(|block| self.block_bytes(block, around.seq_len)).max().unwrap_or(0)
            }
            // One linear after the other: its weight, the original and its codes, and what is known of its inputs.
            None => {
                let inputs = |linear: &PlannedLinear| match self.needs_hessian() && encoder.is_some() {
                    true => {
                        let n = linear.layout.in_features as u64;
                        8 * n * n + 4 * n * (rows_per_update(1) + 2 * around.seq_len) as u64
                    }
                    false => 0,
                };
                let bytes = |linear: &PlannedLinear| linear.layout.weights() * (4 + 4 + 1) + inputs(linear);
                self.linears.iter().map(bytes).max().unwrap_or(0)
            }
        };

        // Tokenising before, measuring after.
        let head = decoder.map_or(0, |config| (config.vocab_size * config.hidden_size) as u64)
            * (self.weight_dtype.bits() / 8.0) as u64;
        let measuring = match around.speed_bytes {
            0 => 0,
            limit => (dense_bytes.saturating_sub(head)).min(limit) + head,
        };
        let evaluating = if around.evaluates { dense_bytes + output_bytes } else { 0 };
        let tokenising = around.text_bytes * BYTES_PER_TEXT_BYTE;
        Forecast {
            output_bytes,
            dense_bytes,
            bits_per_weight: bits as f64 / weights.max(1) as f64,
            peak_rss_bytes: FIXED_BYTES + compressing.max(tokenising).max(measuring).max(evaluating),
            activation_bytes,
        }
    }

    /// Memory while `block` is compressed: the group that takes most, either while its Hessian is summed (with the inputs
    /// of one update) or while it is solved (Hessian and factor; all its weights as f32 and as codes, the targets of
    /// one); beside it the block's linears that are packed already.
    fn block_bytes(&self, block: &BlockSpec, seq_len: usize) -> u64 {
        let stage_bytes = |stage: Stage| {
            let (n, groups) = (block.in_features(stage) as u64, block.groups(stage));
            let (hessian, inputs) = match self.methods.iter().any(|method| method.needs().hessian) {
                true => {
                    let rows = groups * rows_per_update(groups) + 2 * seq_len;
                    (4 * n * n, 4 * n * rows as u64)
                }
                false => (0, 0),
            };
            let samples = match self.methods.iter().any(|method| method.needs().samples) {
                true => 4 * (n * groups as u64) * SAMPLES as u64,
                false => 0,
            };
            // The linears of one expert are solved together.
            let group = |linear: &&LinearSpec| linear.expert.unwrap_or(0) == 0;
            let sizes = block.at(stage).iter().filter(group).map(LinearSpec::weights);
            let made = if self.methods.iter().any(|method| method.grid().is_none()) { 4 } else { 1 };
            let solving = hessian + sizes.clone().sum::<u64>() * (4 + made) + sizes.max().unwrap_or(0) * 4;
            groups as u64 * hessian + samples + inputs.max(solving)
        };
        let largest_stage = Stage::ALL.iter().map(|&stage| stage_bytes(stage)).max().unwrap_or(0);
        // The samples of a block's inputs are all held while their scales are searched.
        let scaling = match self.scalings.is_empty() {
            true => 0,
            false => Stage::ALL.iter().map(|&stage| 4 * (SAMPLES * block.token_width(stage)) as u64).sum::<u64>(),
        };
        largest_stage + scaling + block.linears.iter().map(LinearSpec::weights).sum::<u64>()
    }
}
