//! What a group's linears read of the calibration text, gathered into the statistics that methods ask for.
//!
//! Where blocks run on another device, the products that Hessians are sums of are formed there, and the sums come back.

use candle_core::Tensor;
use rayon::prelude::*;

use crate::{
    Result,
    calibration::CalibrationSet,
    kernel::{
        gemm::{matmul_nt, symmetrize, syrk_accumulate},
        tensor::with_f32,
    },
    methods::{GroupStats, Needs, SAMPLES},
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
    /// What the dense model's linears read in the same place; shape as `x`.
    dense: Option<Tensor>,
}

impl Inputs {
    /// What all linears of the stage read.
    pub fn shared(x: Tensor) -> Self {
        Self { x, rows: None, dense: None }
    }

    /// What each expert reads: a token's row for each of its slots, or the slot's own row.
    pub fn routed(x: Tensor, routing: Option<&Routing>, experts: usize, per_slot: bool) -> Result<Self> {
        let Some(routing) = routing else { return Ok(Self::shared(x)) };
        let mut rows = routing.slots(experts);
        if per_slot {
            let (tokens, width) = x.dims2()?;
            let x = x.reshape((tokens * routing.top_k, width / routing.top_k))?;
            return Ok(Self { x, rows: Some(rows), dense: None });
        }
        rows.iter_mut().flatten().for_each(|slot| *slot /= routing.top_k);
        Ok(Self { x, rows: Some(rows), dense: None })
    }

    /// The same, with what the dense model's linears read. Where tokens are routed to experts, the two may go different
    /// ways, and nothing is kept.
    pub fn beside(self, dense: Self) -> Self {
        let dense = (self.rows.is_none() && dense.rows.is_none()).then_some(dense.x);
        Self { dense, ..self }
    }
}

/// What is gathered for one group of linears.
#[derive(Default)]
struct Gathered {
    inputs: Vec<f32>,
    hessian: Vec<f32>,
    /// Inputs of the dense model less those that were read, beside `inputs`.
    lost: Vec<f32>,
    cross: Vec<f32>,
    /// Σ x² of each column.
    squares: Vec<f64>,
    /// Σ |x| of each column.
    sizes: Vec<f64>,
    samples: Vec<f32>,
    tokens: usize,
    /// Σ x xᵀ and Σ (x̃ − x) xᵀ, (features, features), on the device the inputs are on.
    on_device: [Option<Tensor>; 2],
}

impl Gathered {
    /// Adds the products of a sequence's inputs to the sums on their device.
    fn add_on_device(&mut self, inputs: &Inputs, needs: Needs) -> Result<()> {
        let [hessian, cross] = &mut self.on_device;
        if needs.hessian {
            add_product(hessian, &inputs.x, &inputs.x)?;
        }
        if let Some(dense) = inputs.dense.as_ref().filter(|_| needs.cross) {
            add_product(cross, &(dense - &inputs.x)?, &inputs.x)?;
        }
        Ok(())
    }

    /// Brings the sums on the device back, each times `scale`.
    fn bring_back(&mut self, scale: f32) -> Result<()> {
        let values = |sum: Tensor| (sum * f64::from(scale))?.flatten_all()?.to_vec1::<f32>();
        let [hessian, cross] = std::mem::take(&mut self.on_device);
        if let Some(sum) = hessian {
            self.hessian = values(sum)?;
        }
        if let Some(sum) = cross {
            self.cross = values(sum)?;
        }
        Ok(())
    }

    /// Adds one input to the sums over columns.
    fn add(&mut self, x: &[f32], needs: Needs) {
        if needs.energies {
            self.squares.resize(x.len(), 0.0);
            self.squares.iter_mut().zip(x).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
        }
        if needs.magnitudes {
            self.sizes.resize(x.len(), 0.0);
            self.sizes.iter_mut().zip(x).for_each(|(sum, x)| *sum += f64::from(x.abs()));
        }
    }
}

impl Gathered {
    /// Takes the inputs gathered so far into the matrices.
    fn update(&mut self, features: usize, needs: Needs, scale: f32) {
        let rows = self.inputs.len() / features;
        if needs.hessian {
            self.hessian.resize(features * features, 0.0);
            if rows > 0 {
                syrk_accumulate(&self.inputs, &mut self.hessian, rows, features, scale);
            }
        }
        if !self.lost.is_empty() {
            let [lost, inputs] = [&self.lost, &self.inputs].map(|x| columns(x, features));
            let mut product = vec![0.0; features * features];
            matmul_nt(&lost, &inputs, &mut product, features, features, rows);
            self.cross.resize(features * features, 0.0);
            self.cross.iter_mut().zip(product).for_each(|(sum, product)| *sum += scale * product);
        }
        self.inputs.clear();
        self.lost.clear();
    }
}

/// `sum += aᵀ b` for (rows, features) each.
fn add_product(sum: &mut Option<Tensor>, a: &Tensor, b: &Tensor) -> Result<()> {
    let product = a.t()?.matmul(b)?;
    *sum = Some(match sum.take() {
        Some(sum) => (sum + product)?,
        None => product,
    });
    Ok(())
}

/// (rows, columns) turned to (columns, rows).
fn columns(x: &[f32], columns: usize) -> Vec<f32> {
    let rows = x.len() / columns;
    let mut out = vec![0.0; x.len()];
    out.par_chunks_exact_mut(rows).enumerate().for_each(|(column, out)| {
        out.iter_mut().enumerate().for_each(|(row, out)| *out = x[row * columns + column]);
    });
    out
}

/// Whether token `token` of `tokens` is one of the [`SAMPLES`] that are kept, evenly spread.
pub(crate) fn is_sampled(token: usize, tokens: usize) -> bool {
    token == 0 || token * SAMPLES / tokens != (token - 1) * SAMPLES / tokens
}

/// Calls `form` for each sequence (its first token) and gathers of the inputs it returns, for each of `groups`, what
/// `needs` asks for. The Hessian is 2/N Σ x xᵀ over N sequences (Frantar et al. 2023, eq. 3; the scale does not change
/// the codes). Its products are formed `on_device`, where the inputs then are, or by the kernels.
pub(crate) fn gather(
    set: &CalibrationSet,
    features: usize,
    groups: usize,
    needs: Needs,
    on_device: bool,
    mut form: impl FnMut(usize) -> Result<Inputs>,
) -> Result<Vec<GroupStats>> {
    // What the kernels are left to do.
    let here = Needs { hessian: needs.hessian && !on_device, cross: needs.cross && !on_device, ..needs };
    let mut gathered: Vec<Gathered> = Vec::new();
    gathered.resize_with(groups, Gathered::default);
    let scale = 2.0 / set.n_samples() as f32;
    if here.hessian && groups == 1 {
        gathered[0].inputs.reserve((TOKENS_PER_UPDATE + set.seq_len) * features);
    }
    let rows_per_update = rows_per_update(groups);
    for sample in 0..set.n_samples() {
        let first = sample * set.seq_len;
        let inputs = form(first)?;
        let last = sample + 1 == set.n_samples();
        // Of a routed input there may be several rows a token.
        let rows_a_token = (inputs.x.dim(0)? / set.seq_len).max(1);
        for (group, gathered) in gathered.iter_mut().enumerate() {
            gathered.tokens += match &inputs.rows {
                None => inputs.x.dim(0)?,
                Some(rows) => rows[group].len(),
            };
            if on_device {
                gathered.add_on_device(&inputs, needs)?;
            }
            if !here.any() {
                continue;
            }
            with_f32(&inputs.x, |x| {
                let all = inputs.rows.is_none().then(|| 0..x.len() / features);
                let rows = inputs.rows.as_ref().map_or(&[][..], |rows| &rows[group]);
                for row in all.into_iter().flatten().chain(rows.iter().copied()) {
                    let x = &x[row * features..][..features];
                    gathered.add(x, here);
                    if here.samples && is_sampled(first + row / rows_a_token, set.tokens()) {
                        gathered.samples.extend_from_slice(x);
                    }
                    if here.hessian || here.cross {
                        gathered.inputs.extend_from_slice(x);
                    }
                }
            })?;
            if let Some(dense) = inputs.dense.as_ref().filter(|_| here.cross) {
                let read = &gathered.inputs[gathered.lost.len()..];
                with_f32(dense, |dense| gathered.lost.extend(dense.iter().zip(read).map(|(dense, x)| dense - x)))?;
            }
            if (here.hessian || here.cross) && (gathered.inputs.len() >= rows_per_update * features || last) {
                gathered.update(features, here, scale);
            }
        }
    }
    for gathered in &mut gathered {
        gathered.bring_back(scale)?;
    }
    let n_samples = set.n_samples() as f64;
    let finish = |mut gathered: Gathered| {
        if gathered.tokens == 0 {
            // No token came by: every input counts the same, which makes rounding to nearest of a method that
            // weighs errors. Zeros would let it throw the weights away.
            if needs.hessian {
                (0..features).for_each(|i| gathered.hessian[i * features + i] = 1.0);
            }
            gathered.squares = vec![1.0; features];
            gathered.sizes = vec![1.0; features];
        } else if needs.hessian {
            symmetrize(&mut gathered.hessian, features);
        }
        let tokens = gathered.tokens.max(1) as f64;
        let mean = |sums: Vec<f64>, count: f64| sums.into_iter().map(|sum| (sum / count) as f32).collect();
        GroupStats {
            in_features: features,
            hessian: needs.hessian.then_some(gathered.hessian),
            cross: (!gathered.cross.is_empty()).then_some(gathered.cross),
            energies: needs.energies.then(|| mean(gathered.squares, n_samples)),
            magnitudes: needs.magnitudes.then(|| mean(gathered.sizes, tokens)),
            samples: needs.samples.then_some(gathered.samples),
            tokens: gathered.tokens,
        }
    };
    Ok(gathered.into_iter().map(finish).collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::kernel::{tensor::from_vec, test_values::uniform};

    /// Largest difference of a sum formed on a device, relative to the largest of the matrix: sums of some dozen products
    /// of f32 in another order.
    const MAX_RELATIVE_DIFFERENCE: f32 = 1e-6;

    /// Largest difference of a statistic to its definition in f64, relative to the largest of its kind: sums of some
    /// thousand products in f32.
    const MAX_ROUNDING: f64 = 1e-4;

    const ALL: Needs = Needs { hessian: true, cross: true, energies: true, magnitudes: true, samples: true };

    #[track_caller]
    fn assert_close(name: &str, found: Option<&Vec<f32>>, expected: &[f64]) {
        let found = found.unwrap_or_else(|| panic!("{name} is absent"));
        assert_eq!(found.len(), expected.len(), "{name}");
        let size = expected.iter().fold(0f64, |size, x| size.max(x.abs()));
        for (at, (&found, expected)) in found.iter().zip(expected).enumerate() {
            let apart = (f64::from(found) - expected).abs();
            assert!(size > 0.0 && apart <= MAX_ROUNDING * size, "{name} at {at}: {found} for {expected}");
        }
    }

    /// `factor · Σ a bᵀ` over rows of `features` numbers, (features, features).
    fn products(a: &[f64], b: &[f64], features: usize, factor: f64) -> Vec<f64> {
        let mut sums = vec![0.0; features * features];
        for (a, b) in a.chunks_exact(features).zip(b.chunks_exact(features)) {
            for (sums, a) in sums.chunks_exact_mut(features).zip(a) {
                sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += factor * a * b);
            }
        }
        sums
    }

    /// Checks all that `found` says of the inputs `x` (rows, features) of so many sequences but cross and samples, by the
    /// definitions in [`GroupStats`].
    #[track_caller]
    fn assert_defined(name: &str, found: &GroupStats, x: &[f64], features: usize, sequences: usize) {
        let (rows, sequences) = (x.len() / features, sequences as f64);
        let column = |j: usize| x.iter().skip(j).step_by(features);
        let energies: Vec<f64> = (0..features).map(|j| column(j).map(|x| x * x).sum::<f64>() / sequences).collect();
        let magnitudes: Vec<f64> =
            (0..features).map(|j| column(j).map(|x| x.abs()).sum::<f64>() / rows as f64).collect();
        let hessian = products(x, x, features, 2.0 / sequences);
        assert_close(&format!("{name}: the Hessian"), found.hessian.as_ref(), &hessian);
        assert_close(&format!("{name}: the energies"), found.energies.as_ref(), &energies);
        assert_close(&format!("{name}: the magnitudes"), found.magnitudes.as_ref(), &magnitudes);
        assert_eq!((found.in_features, found.tokens), (features, rows), "{name}");
    }

    fn wide(values: &[f32]) -> Vec<f64> {
        values.iter().map(|&x| f64::from(x)).collect()
    }

    /// Inputs off centre, each column of another size.
    fn inputs(rows: usize, features: usize, seed: u64) -> Vec<f32> {
        let values = uniform(rows * features, seed).into_iter().enumerate();
        values.map(|(at, x)| (x + 0.3) * (1.0 + (at % features) as f32)).collect()
    }

    #[test]
    fn statistics_are_what_their_definitions_say() {
        // More rows than one update takes, and six times as many tokens as samples are kept.
        let (samples, seq_len, features) = (4, SAMPLES * 6 / 4, 5);
        let tokens = samples * seq_len;
        assert!(tokens > TOKENS_PER_UPDATE && tokens == 6 * SAMPLES);
        let set = CalibrationSet::from_ids(vec![1; tokens], Path::new("t"), samples, seq_len).unwrap();
        let (x, noise) = (inputs(tokens, features, 1), uniform(tokens * features, 2));
        let dense: Vec<f32> = x.iter().zip(&noise).map(|(x, noise)| 1.2 * x + 0.5 * noise).collect();
        let lost: Vec<f64> = wide(&dense).iter().zip(wide(&x)).map(|(dense, x)| dense - x).collect();
        let rows = |values: &[f32], first: usize| {
            from_vec(values[first * features..][..seq_len * features].to_vec(), (seq_len, features))
        };
        for on_device in [false, true] {
            let form = |first: usize| Ok(Inputs::shared(rows(&x, first)?).beside(Inputs::shared(rows(&dense, first)?)));
            let found = gather(&set, features, 1, ALL, on_device, form).unwrap().remove(0);
            let name = if on_device { "on a device" } else { "by the kernels" };
            assert_defined(name, &found, &wide(&x), features, samples);
            let cross = products(&lost, &wide(&x), features, 2.0 / samples as f64);
            assert_close(&format!("{name}: the cross products"), found.cross.as_ref(), &cross);
            let every_sixth: Vec<f32> = x.chunks_exact(features).step_by(6).flatten().copied().collect();
            assert!(found.samples.as_ref() == Some(&every_sixth), "{name}: other tokens are kept as samples");
        }
    }

    #[test]
    fn statistics_of_an_expert_are_those_of_the_tokens_it_reads() {
        let (samples, seq_len, features, experts) = (4, SAMPLES * 2 / 4, 3, 4);
        let tokens = samples * seq_len;
        let set = CalibrationSet::from_ids(vec![1; tokens], Path::new("t"), samples, seq_len).unwrap();
        // Two of the first three for every token; nobody is sent to the last.
        let experts_of = |token: usize| [token % 3, (token % 3 + 1 + token / 3 % 2) % 3];
        for per_slot in [false, true] {
            let width = if per_slot { 2 * features } else { features };
            let x = inputs(tokens, width, 3);
            let form = |first: usize| {
                let to = (first..first + seq_len).flat_map(experts_of).map(|expert| expert as u32).collect();
                let routing = Routing { top_k: 2, experts: to, weights: vec![0.5; 2 * seq_len] };
                let rows = from_vec(x[first * width..][..seq_len * width].to_vec(), (seq_len, width))?;
                let read = Inputs::routed(rows.clone(), Some(&routing), experts, per_slot)?;
                Ok(read.beside(Inputs::routed(rows, Some(&routing), experts, per_slot)?))
            };
            let found = gather(&set, features, experts, ALL, false, form).unwrap();
            for (expert, found) in found.iter().enumerate().take(3) {
                let (mut read, mut sampled) = (Vec::new(), Vec::new());
                for token in 0..tokens {
                    let Some(place) = experts_of(token).iter().position(|&of| of == expert) else { continue };
                    let first = token * width + if per_slot { place * features } else { 0 };
                    read.extend_from_slice(&x[first..][..features]);
                    // Of twice as many tokens as samples are kept, every second.
                    if token % 2 == 0 {
                        sampled.extend_from_slice(&x[first..][..features]);
                    }
                }
                let name = format!("expert {expert}, its slots alone: {per_slot}");
                assert_defined(&name, found, &wide(&read), features, samples);
                assert!(found.samples.as_ref() == Some(&sampled), "{name}: other tokens are kept as samples");
                assert!(found.cross.is_none(), "{name}");
            }
            // Nothing is known of its inputs: all count the same, and not nothing.
            let idle = &found[3];
            let one = |at: usize| if at / features == at % features { 1.0 } else { 0.0 };
            let same = |values: &Option<Vec<f32>>| values.as_ref().is_some_and(|v| v[0] > 0.0 && v == &[v[0]; 3]);
            assert_eq!(idle.hessian, Some((0..features * features).map(one).collect::<Vec<f32>>()));
            assert!(same(&idle.energies) && same(&idle.magnitudes) && idle.tokens == 0, "{idle:?}");
        }
    }

    #[test]
    fn sums_on_a_device_are_those_of_the_kernels() {
        let (samples, seq_len, features) = (5, 7, 11);
        let set = CalibrationSet::from_ids(vec![1; samples * seq_len], Path::new("t"), samples, seq_len).unwrap();
        let found = |needs: Needs, on_device: bool| {
            let form = |first: usize| {
                let x = |seed: usize| from_vec(uniform(seq_len * features, seed as u64), (seq_len, features));
                Ok(Inputs::shared(x(first)?).beside(Inputs::shared(x(first + 1000)?)))
            };
            gather(&set, features, 1, needs, on_device, form).unwrap().remove(0)
        };
        let (kernels, device) = (found(ALL, false), found(ALL, true));
        for (found, expected) in [(&device.hessian, &kernels.hessian), (&device.cross, &kernels.cross)] {
            let (found, expected) = (found.as_ref().unwrap(), expected.as_ref().unwrap());
            assert_eq!(found.len(), features * features);
            let size = expected.iter().fold(0f32, |size, x| size.max(x.abs()));
            let apart = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(size > 0.0 && apart <= MAX_RELATIVE_DIFFERENCE * size, "{apart} apart, the largest is {size}");
        }
        assert_eq!((&device.energies, &device.magnitudes), (&kernels.energies, &kernels.magnitudes));
        assert_eq!((&device.samples, device.tokens), (&kernels.samples, kernels.tokens));
        let alone = found(Needs { hessian: true, ..Needs::default() }, true);
        assert_eq!(alone.hessian, device.hessian);
        assert!(alone.cross.is_none() && alone.energies.is_none() && alone.samples.is_none());
    }
}
