//! Mixed precision by a budget: which linear gets how many bits, so that the file has the size that was asked for and the
//! sum of the measured errors is least.
//!
//! Each linear is compressed at every width on offer, on the inputs the dense model gives it ([`measure`]). With error
//! `e_lb` and size `s_lb` of linear l at width b, the choice `b(l)` minimises `Σ_l e_l,b(l)` subject to
//! `Σ_l s_l,b(l) ≤ budget`: a multiple-choice knapsack, solved exactly (up to rounding of sizes to 16384 steps) by
//! dynamic programming ([`choose`]).
//!
//! Linears that are one in other programs may be held to one width ([`Budget::one_width`], [`alike`]): those that read the
//! same input, q, k and v or gate and up, which vLLM holds in one parameter, and all experts of a block. Their sizes and
//! errors are added. That costs: k and v are small and want more bits than q (`docs/methods.md`).
//!
//! The error of a linear is what its block loses: with that one linear compressed, the mean over some tokens of
//! `‖Δy‖² / ‖y‖²` of the block's outputs y, the stream that the next block reads. What a linear's own outputs lose tells less:
//! with it, small 2-bit errors of output projections passed for harmless, and the model was worse than one of uniform width
//! (`docs/methods.md`). Where no method looks at inputs, it is the share of the weight's energy, times the number of weights.
//!
//! The outcome is a recipe like any other, with a stage for each width ([`explicit`]), and can be saved and used again.

use std::path::Path;

use candle_core::Tensor;
use scruple_weights::Checkpoint;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    calibration::CalibrationSet,
    kernel::tensor::with_f32,
    methods::{GroupStats, Kind, LayerMethod, Needs, Weight, build},
    model::{decoder::Stage, linear::DenseLinear, staged::StagedBlock},
    pack::WIDTHS,
    plan::{Plan, PlannedLinear},
    recipe::{Recipe, StageRecipe},
    walk::Walk,
    weight::Code,
};

/// What the result may take.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Bits a weight of the compressed linears takes on average, scales and indices included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_per_weight: Option<f64>,
    /// Bytes of all tensors of the file, as `600MB` or `1.5GiB`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// One width for all linears that other programs hold in one parameter.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub one_width: bool,
}

/// Tokens a block is tried on, in whole sequences.
const TRIAL_TOKENS: usize = 512;

/// Steps that sizes are counted in.
const STEPS: usize = 1 << 14;

/// One width a linear may get.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Offer {
    /// Bits of a code.
    pub bits: u32,
    /// Bits the linear takes on disk, scales included.
    pub storage_bits: u64,
    /// What is lost of the block's outputs, as a share of each token's energy; or without inputs the share of the weight's.
    pub error: f64,
}

impl Budget {
    /// Refuses a budget that says nothing, or two things.
    ///
    /// # Errors
    /// [`Error::Recipe`] with what is expected.
    pub fn check(&self) -> Result<()> {
        match (self.bits_per_weight, &self.size) {
            (Some(bits), None) if bits.is_finite() && bits > 0.0 => Ok(()),
            (None, Some(size)) => parse_size(size).map(drop),
            (Some(bits), None) => {
                Err(Error::Recipe(format!("the budget is {bits} bits a weight, expected a number above 0")))
            }
            _ => Err(Error::Recipe("a budget needs either `bits_per_weight` or `size`, not both".into())),
        }
    }

    /// Bits the budget leaves for the compressed linears of `plan`.
    fn capacity(&self, plan: &Plan) -> Result<u64> {
        self.check()?;
        let weights: u64 = plan.linears.iter().map(|linear| linear.layout.weights()).sum();
        if let Some(bits) = self.bits_per_weight {
            return Ok((bits * weights as f64) as u64);
        }
        let wanted = parse_size(self.size.as_deref().unwrap_or_default())? * 8;
        let linears: u64 = plan.linears.iter().map(|linear| plan.storage_bits(linear)).sum();
        let all: u64 =
            plan.tensors.iter().map(|spec| 8 * spec.dtype.bytes(spec.shape.iter().product()).unwrap_or(0) as u64).sum();
        let rest = all - linears;
        wanted.checked_sub(rest).ok_or_else(|| {
            Error::Recipe(format!(
                "the budget is {:.1} MB, but the tensors that stay as they are take {:.1} MB already",
                wanted as f64 / 8e6,
                rest as f64 / 8e6
            ))
        })
    }
}

/// `600MB`, `1.5GiB`, `123456`: bytes.
fn parse_size(text: &str) -> Result<u64> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => 0.0,
    };
    match number.parse::<f64>() {
        Ok(number) if factor > 0.0 && number > 0.0 => Ok((number * factor) as u64),
        _ => Err(Error::Recipe(format!("the size `{text}` is not a number with a unit such as 600MB or 1.5GiB"))),
    }
}

/// A method at one of the widths it offers.
struct Variant {
    stage: usize,
    bits: u32,
    method: Box<dyn LayerMethod>,
}

/// The quantising stages of `plan`'s recipe at every width.
fn variants(plan: &Plan) -> Result<Vec<Variant>> {
    let mut variants = Vec::new();
    for (stage, recipe) in plan.recipe.stages.iter().enumerate() {
        if !recipe.params.contains_key("bits") {
            continue;
        }
        for bits in WIDTHS {
            let mut params = recipe.params.clone();
            params.insert("bits".into(), i64::from(bits).into());
            if let Ok(method) = build(&recipe.method, params) {
                variants.push(Variant { stage, bits, method });
            }
        }
    }
    Ok(variants)
}

/// The error and size of every linear of `plan` at every width its method and the format offer, in the order of the plan.
/// `scratch` is a folder for activations; `progress` hears (linears done, in all, name).
///
/// # Errors
/// A method that fails, a linear that no width suits.
pub fn measure(
    checkpoint: &Checkpoint,
    plan: &Plan,
    calibration: Option<&CalibrationSet>,
    scratch: &Path,
    progress: crate::sequential::Progress<'_>,
) -> Result<Vec<Vec<Offer>>> {
    let variants = variants(plan)?;
    let total = plan.linears.len();
    let mut offers: Vec<Vec<Offer>> = vec![Vec::new(); total];
    let mut done = 0;
    let mut take = |index: usize, stats: &GroupStats, error: &mut ErrorOf<'_>| -> Result<()> {
        let linear = &plan.linears[index];
        offers[index] = offers_of(checkpoint, plan, linear, &variants, stats, error)?;
        done += 1;
        progress(done, total, &linear.name);
        Ok(())
    };
    match calibration.filter(|_| plan.needs_calibration()) {
        None => {
            for (index, linear) in plan.linears.iter().enumerate() {
                let stats = GroupStats { in_features: linear.layout.in_features, ..GroupStats::default() };
                take(index, &stats, &mut |original, values| Ok(weight_error(original, values)))?;
            }
        }
        Some(set) => {
            let mut walk = Walk::open(checkpoint, &plan.network, set, scratch, false)?;
            walk.start()?;
            for block in 0..plan.network.blocks() {
                let at = |stage: Stage| {
                    plan.linears.iter().enumerate().filter(move |(_, linear)| linear.is_at(block, stage))
                };
                let needs = |stage| {
                    let needs = at(stage).fold(Needs::default(), |needs, (_, linear)| needs.and(plan.needs(linear)));
                    Needs { cross: false, ..needs }
                };
                let dense = walk.load()?;
                let trial = Trial::new(&*dense, &walk)?;
                walk.block(dense, &needs, &mut |block, stage, stats| {
                    for (index, linear) in at(stage) {
                        let stats = &stats[linear.site.and_then(|site| site.expert).unwrap_or(0)];
                        let (place, shape) = (linear.site.map_or(0, |site| site.index), linear.layout);
                        let shape = (shape.out_features, shape.in_features);
                        let bias =
                            checkpoint.get(&format!("{}.bias", linear.name)).map(|view| view.to_f32()).transpose()?;
                        let put = |block: &mut dyn StagedBlock, values: &[f32]| -> Result<()> {
                            let linear = DenseLinear::from_f32(values, shape, bias.clone())?;
                            block.replace(stage, place, Box::new(linear));
                            Ok(())
                        };
                        take(index, stats, &mut |original, values| {
                            put(block, values)?;
                            let error = trial.error(block)?;
                            put(block, original)?;
                            Ok(Some(error))
                        })?;
                    }
                    Ok(())
                })?;
            }
        }
    }
    Ok(offers)
}

/// The error of a weight (out, in) in the place of the original.
type ErrorOf<'a> = dyn FnMut(&[f32], &[f32]) -> Result<Option<f64>> + 'a;

/// A few sequences that a block is tried on.
struct Trial {
    inputs: Vec<Tensor>,
    /// What the dense block makes of them.
    outputs: Vec<Vec<f32>>,
}

impl Trial {
    fn new(block: &dyn StagedBlock, walk: &Walk<'_>) -> Result<Self> {
        let (set, mut inputs, mut outputs) = (walk.set(), Vec::new(), Vec::new());
        for sample in 0..TRIAL_TOKENS.div_ceil(set.seq_len).min(set.n_samples()) {
            let first = sample * set.seq_len;
            inputs.push(walk.input().read(first..first + set.seq_len)?);
        }
        for x in &inputs {
            outputs.push(with_f32(&run(block, x)?, <[f32]>::to_vec)?);
        }
        Ok(Self { inputs, outputs })
    }

    /// The mean over the tokens of `‖Δy‖² / ‖y‖²`.
    fn error(&self, block: &dyn StagedBlock) -> Result<f64> {
        let (mut sum, mut tokens) = (0.0, 0usize);
        for (x, expected) in self.inputs.iter().zip(&self.outputs) {
            let y = run(block, x)?;
            let width = y.dim(1)?;
            with_f32(&y, |y| {
                for (y, expected) in y.chunks_exact(width).zip(expected.chunks_exact(width)) {
                    let square = |x: f32| f64::from(x) * f64::from(x);
                    let whole: f64 = expected.iter().map(|&e| square(e)).sum();
                    let lost: f64 = y.iter().zip(expected).map(|(y, e)| square(y - e)).sum();
                    sum += if whole > 0.0 { lost / whole } else { 0.0 };
                    tokens += 1;
                }
            })?;
        }
        Ok(sum / tokens.max(1) as f64)
    }
}

/// What `block` makes of the stream `x` (tokens, hidden) of one sequence.
fn run(block: &dyn StagedBlock, x: &Tensor) -> Result<Tensor> {
    let heads = block.attention(&block.attention_input(x)?)?;
    let after = block.attention_output(x, &heads)?;
    let h = block.mlp_input(if block.is_parallel() { x } else { &after })?;
    let routing = block.routing(&h)?;
    let hidden = block.mlp(&h, routing.as_ref())?;
    block.mlp_output(&after, &hidden, routing.as_ref())
}

/// `linear` at every width of its method that the format can hold.
fn offers_of(
    checkpoint: &Checkpoint,
    plan: &Plan,
    linear: &PlannedLinear,
    variants: &[Variant],
    stats: &GroupStats,
    error: &mut ErrorOf<'_>,
) -> Result<Vec<Offer>> {
    let original = crate::sequential::read_weight(checkpoint, linear, plan.allow_nonfinite)?;
    let mut offers = Vec::new();
    for variant in variants.iter().filter(|variant| linear.methods.contains(&variant.stage)) {
        let mut layout = linear.layout;
        layout.code = variant.method.code(layout.in_features)?;
        if plan.format.check(&linear.name, &layout).is_err() {
            continue;
        }
        let mut values = original.clone();
        // What an earlier stage prunes is pruned at every width alike.
        let earlier = plan.methods(linear).filter(|method| method.kind() == Kind::Prune);
        for (turn, method) in earlier.chain([&*variant.method]).enumerate() {
            let weight = Weight {
                name: &linear.name,
                out_features: layout.out_features,
                in_features: layout.in_features,
                values: &mut values,
                keep_zeros: turn > 0,
            };
            method.compress(&mut [weight], stats)?;
        }
        let error = error(&original, &values)?.unwrap_or(0.0);
        offers.push(Offer { bits: variant.bits, storage_bits: plan.format.storage_bits(&layout), error });
    }
    if offers.is_empty() && linear.layout.code != Code::Dense {
        if !variants.iter().any(|variant| linear.methods.contains(&variant.stage)) {
            return Err(Error::Recipe(format!(
                "linear `{}`: method `{}` has no `bits` to choose from, so a budget has nothing to decide; give one that \
                 has (`scruple methods` lists their parameters), or leave the budget away",
                linear.name,
                plan.method_name(linear)
            )));
        }
        return Err(Error::Recipe(format!("linear `{}`: no width suits the format {}", linear.name, plan.format)));
    }
    Ok(offers)
}

/// `‖Ŵ − W‖² / ‖W‖²`.
fn weight_error(original: &[f32], compressed: &[f32]) -> Option<f64> {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let energy: f64 = original.iter().map(|&w| square(w)).sum();
    let lost: f64 = original.iter().zip(compressed).map(|(w, q)| square(w - q)).sum();
    (energy > 0.0).then(|| lost / energy)
}

/// For each linear the number of the offer it takes, so that all fit into `capacity` bits and the sum of errors, each
/// times the linear's `importance`, is least; linears without an offer take none. `None` if even the smallest do not fit.
pub fn choose(offers: &[Vec<Offer>], importance: &[f64], capacity: u64) -> Option<Vec<usize>> {
    let smallest: u64 = offers.iter().filter_map(|offers| offers.iter().map(|offer| offer.storage_bits).min()).sum();
    let largest: u64 = offers.iter().filter_map(|offers| offers.iter().map(|offer| offer.storage_bits).max()).sum();
    let room = capacity.checked_sub(smallest)?.min(largest - smallest);
    // What a linear takes beyond its smallest offer, in steps, rounded up.
    let step = (room / STEPS as u64).max(1);
    let steps = (room / step) as usize;
    let mut best = vec![0.0f64; steps + 1];
    let mut taken: Vec<Vec<u8>> = Vec::with_capacity(offers.len());
    for (offers, importance) in offers.iter().zip(importance) {
        let least = offers.iter().map(|offer| offer.storage_bits).min().unwrap_or(0);
        let mut next = vec![f64::INFINITY; steps + 1];
        let mut choice = vec![0u8; steps + 1];
        for (number, offer) in offers.iter().enumerate() {
            let extra = (offer.storage_bits - least).div_ceil(step) as usize;
            for at in extra..=steps {
                let sum = best[at - extra] + importance * offer.error;
                // The first of equals, which is the narrowest.
                if sum < next[at] {
                    (next[at], choice[at]) = (sum, number as u8);
                }
            }
        }
        best = if offers.is_empty() { best } else { next };
        taken.push(choice);
    }
    let mut at = steps;
    let mut chosen = vec![0; offers.len()];
    for (index, offers) in offers.iter().enumerate().rev() {
        let Some(least) = offers.iter().map(|offer| offer.storage_bits).min() else { continue };
        chosen[index] = usize::from(taken[index][at]);
        at -= (offers[chosen[index]].storage_bits - least).div_ceil(step) as usize;
    }
    Some(chosen)
}

/// What linears of one width have in common: block, stage (none of experts, which are alike throughout), methods.
type Kin<'a> = (usize, Option<Stage>, &'a [usize]);

/// The linears of `plan` that other programs hold in one parameter, by their numbers: those of a block and a stage, and all
/// experts of a block, where their methods are the same.
pub fn alike(plan: &Plan) -> Vec<Vec<usize>> {
    let mut sets: Vec<(Option<Kin<'_>>, Vec<usize>)> = Vec::new();
    for (index, linear) in plan.linears.iter().enumerate() {
        let stage = linear.site.map(|site| site.expert.is_none().then_some(site.stage));
        let kin = stage.map(|stage| (linear.block, stage, &linear.methods[..])); // none in a network that does not run
        match sets.iter_mut().find(|(known, _)| kin.is_some() && *known == kin) {
            Some((_, set)) => set.push(index),
            None => sets.push((kin, vec![index])),
        }
    }
    sets.into_iter().map(|(_, set)| set).collect()
}

/// Two linears of `plan` with different codes that other programs hold in one parameter, by their names.
pub fn told_apart(plan: &Plan) -> Option<(&str, &str)> {
    alike(plan).into_iter().find_map(|set| {
        let (first, others) = set.split_first()?;
        let first = &plan.linears[*first];
        let other = others.iter().map(|&at| &plan.linears[at]).find(|other| other.layout.code != first.layout.code)?;
        Some((first.name.as_str(), other.name.as_str()))
    })
}

/// What the linears of `set` are offered together: the widths that each is offered, with the sums of their sizes and of
/// their errors times their `importance`.
fn together(set: &[usize], offers: &[Vec<Offer>], importance: &[f64]) -> Vec<Offer> {
    let Some(&first) = set.first() else { return Vec::new() };
    let sum = |bits: u32| {
        let mut all = Offer { bits, storage_bits: 0, error: 0.0 };
        for &index in set {
            let offer = offers[index].iter().find(|offer| offer.bits == bits)?;
            all.storage_bits += offer.storage_bits;
            all.error += importance[index] * offer.error;
        }
        Some(all)
    };
    offers[first].iter().filter_map(|offer| sum(offer.bits)).collect()
}

/// The recipe in which every linear of `plan` has the width that `budget` leaves it by `offers`.
///
/// # Errors
/// A budget that even the narrowest widths exceed, with what they take.
pub fn explicit(plan: &Plan, budget: &Budget, offers: &[Vec<Offer>]) -> Result<Recipe> {
    let capacity = budget.capacity(plan)?;
    let importance = |linear: &PlannedLinear| match plan.needs_calibration() {
        true => 1.0,
        false => linear.layout.weights() as f64,
    };
    let importance: Vec<f64> = plan.linears.iter().map(importance).collect();
    let together_or_not = if budget.one_width { alike(plan) } else { (0..offers.len()).map(|at| vec![at]).collect() };
    let mut sets = Vec::new();
    for set in together_or_not {
        match together(&set, offers, &importance) {
            // No width suits them all, so each has its own.
            joint if joint.is_empty() => {
                sets.extend(set.iter().map(|&index| (vec![index], together(&[index], offers, &importance))));
            }
            joint => sets.push((set, joint)),
        }
    }
    let joint: Vec<Vec<Offer>> = sets.iter().map(|(_, joint)| joint.clone()).collect();
    let Some(chosen) = choose(&joint, &vec![1.0; joint.len()], capacity) else {
        let weights: u64 = plan.linears.iter().map(|linear| linear.layout.weights()).sum();
        let least: u64 = joint.iter().filter_map(|offers| offers.iter().map(|offer| offer.storage_bits).min()).sum();
        return Err(Error::Recipe(format!(
            "the budget leaves {:.3} bits a weight, and the narrowest widths of the format {} take {:.3}",
            capacity as f64 / weights as f64,
            plan.format,
            least as f64 / weights as f64
        )));
    };
    let mut widths: Vec<Option<u32>> = vec![None; plan.linears.len()];
    for ((set, joint), number) in sets.iter().zip(chosen) {
        set.iter().for_each(|&index| widths[index] = joint.get(number).map(|offer| offer.bits));
    }
    let mut stages = Vec::new();
    for (stage, recipe) in plan.recipe.stages.iter().enumerate() {
        if !recipe.params.contains_key("bits") {
            stages.push(recipe.clone());
            continue;
        }
        for bits in WIDTHS {
            let here = |(linear, width): &(&PlannedLinear, &Option<u32>)| {
                linear.methods.contains(&stage) && **width == Some(bits)
            };
            let targets: Vec<String> =
                plan.linears.iter().zip(&widths).filter(here).map(|(linear, _)| linear.name.clone()).collect();
            if targets.is_empty() {
                continue;
            }
            let mut params = recipe.params.clone();
            params.insert("bits".into(), i64::from(bits).into());
            stages.push(StageRecipe { method: recipe.method.clone(), targets, ignore: Vec::new(), params });
        }
    }
    Ok(Recipe { stages, budget: None, ..plan.recipe.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("600MB").unwrap(), 600_000_000);
        assert_eq!(parse_size("1.5 GiB").unwrap(), 3 << 29);
        assert_eq!(parse_size("123").unwrap(), 123);
        for wrong in ["", "MB", "12 parsecs", "-3MB", "0MB", "1.2.3MB"] {
            assert!(parse_size(wrong).unwrap_err().to_string().contains(wrong));
        }
    }

    fn offer(bits: u32, storage_bits: u64, error: f64) -> Offer {
        Offer { bits, storage_bits, error }
    }

    #[test]
    fn a_set_is_offered_what_each_of_it_is() {
        let offers = [
            vec![offer(2, 20, 0.5), offer(4, 40, 0.1), offer(8, 80, 0.0)],
            vec![offer(4, 4, 0.2), offer(8, 8, 0.1)],
            vec![offer(3, 9, 0.3)],
        ];
        let importance = [1.0, 10.0, 1.0];
        assert_eq!(together(&[0, 1], &offers, &importance), [offer(4, 44, 2.1), offer(8, 88, 1.0)]);
        assert!(together(&[0, 2], &offers, &importance).is_empty());
        assert_eq!(together(&[2], &offers, &importance), [offer(3, 9, 0.3)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn the_choice_is_the_best_of_all(
            errors in prop::collection::vec(prop::collection::vec(0.0f64..1.0, 1..4), 1..6),
            sizes in prop::collection::vec(1u64..40, 6),
            importance in prop::collection::vec(0.1f64..10.0, 6),
            share in 0.0f64..1.2,
        ) {
            let offers: Vec<Vec<Offer>> = errors
                .iter()
                .zip(&sizes)
                .map(|(errors, size)| {
                    errors.iter().enumerate().map(|(n, &error)| offer(2 + n as u32, size * (2 + n as u64), error)).collect()
                })
                .collect();
            let largest: u64 = offers.iter().map(|offers| offers.last().unwrap().storage_bits).sum();
            let capacity = (share * largest as f64) as u64;
            // Every combination, by counting in a mixed base.
            let mut least: Option<f64> = None;
            let combinations: usize = offers.iter().map(Vec::len).product();
            for mut number in 0..combinations {
                let (mut size, mut error) = (0, 0.0);
                for (offers, importance) in offers.iter().zip(&importance) {
                    let offer = &offers[number % offers.len()];
                    number /= offers.len();
                    (size, error) = (size + offer.storage_bits, error + importance * offer.error);
                }
                if size <= capacity && least.is_none_or(|least| error < least) {
                    least = Some(error);
                }
            }
            let chosen = choose(&offers, &importance, capacity);
            prop_assert_eq!(chosen.is_some(), least.is_some());
            if let (Some(chosen), Some(least)) = (chosen, least) {
                let taken = || offers.iter().zip(&chosen).map(|(offers, &number)| &offers[number]);
                prop_assert!(taken().map(|offer| offer.storage_bits).sum::<u64>() <= capacity);
                let error: f64 = taken().zip(&importance).map(|(offer, importance)| importance * offer.error).sum();
                prop_assert!((error - least).abs() < 1e-9, "{} for {}", error, least);
            }
        }
    }
}
