//! What a group's linears read of the calibration text, gathered into Hessians.

use candle_core::Tensor;

use crate::{
    Result,
    calibration::CalibrationSet,
    kernel::{
        gemm::{symmetrize, syrk_accumulate},
        tensor::with_f32,
    },
    methods::GroupStats,
    model::experts::Routing,
};

/// Tokens whose inputs are gathered before they enter a Hessian: enough that its update is bound by arithmetic.
const TOKENS_PER_UPDATE: usize = 2048;

/// The same of each of many groups.
const FEWEST_PER_UPDATE: usize = 256;

/// Rows of a group whose inputs are gathered before they enter its Hessian; with many experts, fewer of each.
pub(crate) fn rows_per_update(groups: usize) -> usize {
    (TOKENS_PER_UPDATE / groups).max(FEWEST_PER_UPDATE)
}

/// The inputs of one sequence at a stage.
pub(crate) struct Inputs {
    /// (rows, in_features).
    x: Tensor,
    /// The rows of each expert, where not all linears read all rows.
    rows: Option<Vec<Vec<usize>>>,
}

impl Inputs {
    /// What all linears of the stage read.
    pub fn shared(x: Tensor) -> Self {
        Self { x, rows: None }
    }

    /// What each expert reads: a token's row for each of its slots, or the slot's own row.
    pub fn routed(x: Tensor, routing: Option<&Routing>, experts: usize, per_slot: bool) -> Result<Self> {
        let Some(routing) = routing else { return Ok(Self::shared(x)) };
        let mut rows = routing.slots(experts);
        if per_slot {
            let (tokens, width) = x.dims2()?;
            let x = x.reshape((tokens * routing.top_k, width / routing.top_k))?;
            return Ok(Self { x, rows: Some(rows) });
        }
        rows.iter_mut().flatten().for_each(|slot| *slot /= routing.top_k);
        Ok(Self { x, rows: Some(rows) })
    }
}

/// What is gathered for one group of linears.
#[derive(Default)]
struct Gathered {
    inputs: Vec<f32>,
    hessian: Vec<f32>,
    tokens: usize,
}

/// Calls `form` for each sequence (its first token) and gathers the inputs it returns, for each of `groups`, into a
/// Hessian 2/N Σ x xᵀ over N sequences (Frantar et al. 2023, eq. 3; the scale does not change the codes).
pub(crate) fn gather(
    set: &CalibrationSet,
    features: usize,
    groups: usize,
    hessian: bool,
    mut form: impl FnMut(usize) -> Result<Inputs>,
) -> Result<Vec<GroupStats>> {
    let mut gathered: Vec<Gathered> = Vec::new();
    gathered.resize_with(groups, Gathered::default);
    let scale = 2.0 / set.n_samples() as f32;
    if hessian && groups == 1 {
        gathered[0].inputs.reserve((TOKENS_PER_UPDATE + set.seq_len) * features);
    }
    let rows_per_update = rows_per_update(groups);
    for sample in 0..set.n_samples() {
        let inputs = form(sample * set.seq_len)?;
        let last = sample + 1 == set.n_samples();
        for (group, gathered) in gathered.iter_mut().enumerate() {
            gathered.tokens += match &inputs.rows {
                None => inputs.x.dim(0)?,
                Some(rows) => rows[group].len(),
            };
            if !hessian {
                continue;
            }
            with_f32(&inputs.x, |x| match &inputs.rows {
                None => gathered.inputs.extend_from_slice(x),
                Some(rows) => rows[group]
                    .iter()
                    .for_each(|row| gathered.inputs.extend_from_slice(&x[row * features..][..features])),
            })?;
            if gathered.inputs.len() >= rows_per_update * features || last {
                gathered.hessian.resize(features * features, 0.0);
                let rows = gathered.inputs.len() / features;
                if rows > 0 {
                    syrk_accumulate(&gathered.inputs, &mut gathered.hessian, rows, features, scale);
                }
                gathered.inputs.clear();
            }
        }
    }
    let finish = |mut gathered: Gathered| {
        if hessian && gathered.tokens == 0 {
            // No token came by: every input counts the same, which makes rounding to nearest of a method that
            // weighs errors. Zeros would let it throw the weights away.
            (0..features).for_each(|i| gathered.hessian[i * features + i] = 1.0);
        } else if hessian {
            symmetrize(&mut gathered.hessian, features);
        }
        GroupStats { in_features: features, hessian: hessian.then_some(gathered.hessian), tokens: gathered.tokens }
    };
    Ok(gathered.into_iter().map(finish).collect())
}
