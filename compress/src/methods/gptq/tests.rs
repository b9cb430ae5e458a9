use proptest::prelude::*;

use super::*;
use crate::kernel::gemm::{symmetrize, syrk_accumulate};
use crate::kernel::test_values::uniform;

/// `2/t Σ x xᵀ` of `t` correlated inputs of `n` features with unequal sizes.
fn hessian(n: usize, t: usize, seed: u64) -> Vec<f32> {
    let (z, mix, size) = (uniform(t * n, seed), uniform(n * 8, seed + 1), uniform(n, seed + 2));
    let mut x = vec![0.0; t * n];
    for s in 0..t {
        for j in 0..n {
            let shared: f32 = (0..8).map(|k| mix[j * 8 + k] * z[s * n + k]).sum();
            x[s * n + j] = (shared + 0.5 * z[s * n + j]) * (1.5 * size[j]).exp();
        }
    }
    let mut h = vec![0.0; n * n];
    syrk_accumulate(&x, &mut h, t, n, 2.0 / t as f32);
    symmetrize(&mut h, n);
    h
}

/// What [`run`] gives.
#[derive(Debug, PartialEq)]
struct Done {
    weight: Quantised,
    report: LinearReport,
}

fn run(method: &Gptq, weight: &[f32], h: &[f32], n: usize) -> Done {
    let mut values = weight.to_vec();
    let stats = GroupStats { in_features: n, hessian: Some(h.to_vec()), tokens: 1, ..GroupStats::default() };
    let rows = weight.len() / n;
    let mut group =
        [Weight { name: "model.w", out_features: rows, in_features: n, values: &mut values, keep_zeros: false }];
    let Compressed { weight, report } = method.compress(&mut group, &stats).unwrap().remove(0);
    Done { weight: weight.quantised().expect("GPTQ gives codes").clone(), report }
}

/// The codes of error feedback alone, also where rounding would have lost less.
fn feedback_alone(method: &Gptq, weight: &[f32], h: &[f32], n: usize) -> Quantised {
    let prepared = method.prepare(h, n).unwrap();
    method.solve(&mut weight.to_vec(), &prepared, false).unwrap().0
}

/// The damped Hessian in processing order, in f64.
fn damped(method: &Gptq, h: &[f32], n: usize) -> (Vec<usize>, Vec<f64>) {
    let mut order: Vec<usize> = (0..n).collect();
    if method.activation_order {
        order.sort_by(|&a, &b| h[b * n + b].total_cmp(&h[a * n + a]));
    }
    let live: Vec<f64> = (0..n).map(|j| f64::from(h[j * n + j])).filter(|&d| d > 0.0).collect();
    let mean = live.iter().sum::<f64>() / live.len() as f64;
    let mut out = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..n {
            out[i * n + j] = f64::from(h[order[i] * n + order[j]]);
        }
        out[i * n + i] += mean * method.dampening + if out[i * n + i] == 0.0 { mean } else { 0.0 };
    }
    (order, out)
}

/// Lower Cholesky factor in f64.
fn cholesky(a: &[f64], n: usize) -> Vec<f64> {
    let mut l = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            let sum: f64 = (0..j).map(|k| l[i * n + k] * l[j * n + k]).sum();
            l[i * n + j] = if i == j { (a[i * n + i] - sum).sqrt() } else { (a[i * n + j] - sum) / l[j * n + j] };
        }
    }
    l
}

/// `A⁻¹` from the factor `L Lᵀ = A`.
fn inverse(a: &[f64], n: usize) -> Vec<f64> {
    let l = cholesky(a, n);
    let mut out = vec![0.0; n * n];
    for column in 0..n {
        let mut y = vec![0.0; n];
        for i in 0..n {
            let sum: f64 = (0..i).map(|k| l[i * n + k] * y[k]).sum();
            y[i] = (f64::from(u8::from(i == column)) - sum) / l[i * n + i];
        }
        for i in (0..n).rev() {
            let sum: f64 = (i + 1..n).map(|k| l[k * n + i] * out[k * n + column]).sum();
            out[i * n + column] = (y[i] - sum) / l[i * n + i];
        }
    }
    out
}

/// A column's turn: the exact target and the grid it met, in units of codes, and the code chosen.
struct Turn {
    units: f64,
    code: u8,
}

/// How a reference moves the errors on: called with the position, its error `w − ŵ` and the row to update.
type Spread<'a> = dyn FnMut(usize, f64, &mut [f64]) + 'a;

/// GPTQ of one row, one column at a time in f64, in processing order.
fn reference_row(method: &Gptq, row: &[f32], order: &[usize], spread: &mut Spread<'_>) -> Vec<Turn> {
    let n = row.len();
    let spec = method.spec();
    let size = spec.group_size_for(n).unwrap();
    let mut w: Vec<f64> = order.iter().map(|&j| f64::from(row[j])).collect();
    let fit = |values: &[f32]| grid::fit_group(values, &spec).unwrap();
    let fixed: Vec<(f32, u8)> = row.chunks(size).map(fit).collect();
    let mut current = (1.0, 0);
    let mut turns = Vec::new();
    for k in 0..n {
        match method.groups {
            Groups::Static => current = fixed[order[k] / size],
            Groups::Fresh if k % size == 0 => {
                current = fit(&w[k..k + size].iter().map(|&w| w as f32).collect::<Vec<_>>());
            }
            Groups::Fresh => {}
        }
        let (scale, zero) = (f64::from(current.0), f64::from(current.1));
        let units = w[k] / scale;
        let code = (units.round_ties_even() + zero).clamp(0.0, f64::from(spec.max_code()));
        let error = w[k] - scale * (code - zero);
        spread(k, error, &mut w);
        turns.push(Turn { units, code: code as u8 });
    }
    turns
}

/// The definition (Frantar et al. 2023, eq. 2 and 3): remove a column from `H⁻¹` as soon as it is quantised.
fn by_definition(method: &Gptq, row: &[f32], h: &[f32], n: usize) -> Vec<Turn> {
    let (order, damped) = damped(method, h, n);
    let mut inverse = inverse(&damped, n);
    reference_row(method, row, &order, &mut |k, error, w| {
        let pivot = inverse[k * n + k];
        for j in k + 1..n {
            w[j] -= error / pivot * inverse[k * n + j];
        }
        let column: Vec<f64> = (0..n).map(|i| inverse[i * n + k]).collect();
        for i in 0..n {
            for j in 0..n {
                inverse[i * n + j] -= column[i] * column[j] / pivot;
            }
        }
    })
}

/// The published form: `U` upper with `H⁻¹ = Uᵀ U`, by Cholesky, inverse and Cholesky again.
struct Textbook {
    order: Vec<usize>,
    upper: Vec<f64>,
}

impl Textbook {
    fn new(method: &Gptq, h: &[f32], n: usize) -> Self {
        let (order, damped) = damped(method, h, n);
        let lower = cholesky(&inverse(&damped, n), n);
        let mut upper = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..=i {
                upper[j * n + i] = lower[i * n + j];
            }
        }
        Self { order, upper }
    }

    fn row(&self, method: &Gptq, row: &[f32]) -> Vec<Turn> {
        let n = row.len();
        reference_row(method, row, &self.order, &mut |k, error, w| {
            for j in k + 1..n {
                w[j] -= error / self.upper[k * n + k] * self.upper[k * n + j];
            }
        })
    }
}

/// Targets closer than this to a half code may round either way in f32, relative to the codes' span.
const NEAR_TIE: f64 = 2e-3;

/// Checks a row of codes against the reference's turns; from a near tie on, the two follow different errors and are
/// not compared. Gives whether there was one.
fn agrees(turns: &[Turn], order: &[usize], codes: &[u8]) -> std::result::Result<bool, String> {
    for (k, turn) in turns.iter().enumerate() {
        if codes[order[k]] != turn.code {
            let distance = (turn.units - turn.units.floor() - 0.5).abs();
            if distance < NEAR_TIE {
                return Ok(true);
            }
            let (ours, theirs) = (codes[order[k]], turn.code);
            return Err(format!("position {k}: code {ours} for {theirs}, {distance} from a tie"));
        }
    }
    Ok(false)
}

fn methods() -> impl Strategy<Value = (Gptq, usize)> {
    let bits = proptest::sample::select(vec![2u32, 3, 4, 8]);
    let groups = proptest::sample::select(vec![Groups::Static, Groups::Fresh]);
    let shapes =
        proptest::sample::select(vec![(64usize, 16usize), (64, 0), (50, 25), (33, 11), (8, 8), (48, 4), (8, 1)]);
    (bits, groups, shapes, any::<bool>(), any::<bool>(), any::<bool>(), 1usize..70).prop_map(
        |(bits, groups, (n, group_size), symmetric, activation_order, search, column_block)| {
            let search = if search && groups == Groups::Static { Search::Mse } else { Search::None };
            // Fresh scales come from f32 against f64 weights: rounded to f16 they could differ by a whole step.
            let scale_dtype = if groups == Groups::Fresh { ScaleDtype::F32 } else { ScaleDtype::F16 };
            let method = Gptq {
                bits,
                group_size,
                symmetric,
                scale_dtype,
                search,
                groups,
                activation_order,
                column_block,
                ..Gptq::default()
            };
            (method, n)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn matches_the_definition_and_the_published_form((method, n) in methods(), rows in 1usize..60, seed in 0u64..1000) {
        let h = hessian(n, 2 * n + 3, seed);
        let weight = uniform(rows * n, seed + 7);
        let done = feedback_alone(&method, &weight, &h, n);
        let textbook = Textbook::new(&method, &h, n);
        let mut ties = 0;
        for (row, codes) in weight.chunks(n).zip(done.codes.chunks(n)) {
            let turns = textbook.row(&method, row);
            ties += usize::from(agrees(&turns, &textbook.order, codes).map_err(TestCaseError::fail)?);
        }
        // The costly definition on a few rows, against the published form: equal in f64.
        for row in weight.chunks(n).take(3) {
            let definition: Vec<u8> = by_definition(&method, row, &h, n).iter().map(|turn| turn.code).collect();
            let published: Vec<u8> = textbook.row(&method, row).iter().map(|turn| turn.code).collect();
            prop_assert_eq!(definition, published);
        }
        // The largest value of a fresh symmetric group always lies half way between its last two codes.
        if method.groups == Groups::Static || !method.symmetric {
            prop_assert!(ties * 20 <= rows + 40, "{} of {} rows met near ties", ties, rows);
        }
        if let Some(g_idx) = &done.g_idx {
            for (position, &column) in textbook.order.iter().enumerate() {
                prop_assert_eq!(g_idx[column] as usize, position / done.group_size);
            }
        }
    }
}

/// Codes of f32 arithmetic that must equal those of f64, and the factor their error may be worse by.
const MIN_EQUAL_CODES: f64 = 0.999;
const MAX_ERROR_RATIO: f64 = 1.001;

fn assert_equivalent(ours: &Quantised, codes: &[u8], weight: &[f32], h: &[f32], n: usize) {
    let equal = ours.codes.iter().zip(codes).filter(|(a, b)| a == b).count();
    let share = equal as f64 / codes.len() as f64;
    assert!(share >= MIN_EQUAL_CODES, "{share} of the codes are equal");
    let error = |codes: &[u8]| {
        let mut delta = Quantised { codes: codes.to_vec(), ..ours.clone() }.dequantize();
        delta.iter_mut().zip(weight).for_each(|(q, w)| *q -= w);
        quadratic_form(&delta, h, n)
    };
    let ratio = error(&ours.codes) / error(codes);
    assert!(ratio <= MAX_ERROR_RATIO, "the error is {ratio} times the reference's");
}

#[test]
fn single_precision_is_enough() {
    let (rows, n) = (400, 256);
    let h = hessian(n, 300, 5);
    let weight = uniform(rows * n, 6);
    let settings = |bits, symmetric, activation_order| Gptq { bits, symmetric, activation_order, ..Gptq::default() };
    let fresh = Gptq {
        group_size: 64,
        groups: Groups::Fresh,
        search: Search::None,
        scale_dtype: ScaleDtype::F32,
        ..settings(4, false, true)
    };
    for method in [settings(4, false, false), settings(4, true, true), settings(3, true, true), fresh] {
        let textbook = Textbook::new(&method, &h, n);
        let codes: Vec<u8> = weight
            .chunks(n)
            .flat_map(|row| {
                let mut codes = vec![0; n];
                for (k, turn) in textbook.row(&method, row).iter().enumerate() {
                    codes[textbook.order[k]] = turn.code;
                }
                codes
            })
            .collect();
        assert_equivalent(&feedback_alone(&method, &weight, &h, n), &codes, &weight, &h, n);
    }
}

#[test]
fn the_column_block_changes_nothing_but_rounding() {
    let (rows, n) = (50, 400);
    let h = hessian(n, 500, 8);
    let weight = uniform(rows * n, 9);
    let with = |column_block| feedback_alone(&Gptq { group_size: 80, column_block, ..Gptq::default() }, &weight, &h, n);
    let reference = with(288);
    for block in [1, 8, 100, 128, 1000] {
        assert_equivalent(&with(block), &reference.codes, &weight, &h, n);
    }
}

#[test]
fn bytes_do_not_depend_on_the_number_of_threads() {
    let (rows, n) = (300, 256);
    let (h, weight) = (hessian(n, 300, 3), uniform(300 * 256, 4));
    let method = Gptq { group_size: 64, ..Gptq::default() };
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut done = pool.install(|| run(&method, &weight[..rows * n], &h, n));
        done.report.seconds = 0.0;
        done
    };
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(3));
}

/// `‖W X̃ᵀ − Q Xᵀ‖²` for X̃, X (t, n), in f64.
fn distance(w: &[f32], dense: &[f32], q: &[f32], x: &[f32], n: usize) -> f64 {
    let output = |w: &[f32], x: &[f32]| -> f64 { w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum() };
    let rows = w.chunks(n).zip(q.chunks(n));
    rows.map(|(w, q)| {
        let tokens = dense.chunks(n).zip(x.chunks(n));
        tokens.map(|(dense, x)| (output(w, dense) - output(q, x)).powi(2)).sum::<f64>()
    })
    .sum()
}

/// Inputs x̃ of a dense model and what became of them, x, (t, n) each, with `2/t Σ x xᵀ` and `2/t Σ (x̃ − x) xᵀ`.
struct Lossy {
    dense: Vec<f32>,
    x: Vec<f32>,
    hessian: Vec<f32>,
    cross: Vec<f32>,
}

impl Lossy {
    fn new(n: usize, t: usize) -> Self {
        let dense = uniform(t * n, 32);
        // Inputs that have lost something that the others tell.
        let noise = uniform(t * n, 33);
        let x: Vec<f32> =
            (0..t * n).map(|at| 0.9 * dense[at] + 0.2 * dense[at / n * n + (at + 1) % n] + 0.05 * noise[at]).collect();
        let mut hessian = vec![0.0; n * n];
        syrk_accumulate(&x, &mut hessian, t, n, 2.0 / t as f32);
        symmetrize(&mut hessian, n);
        let mut cross = vec![0.0; n * n];
        for token in 0..t {
            for i in 0..n {
                for j in 0..n {
                    cross[i * n + j] += 2.0 / t as f32 * (dense[token * n + i] - x[token * n + i]) * x[token * n + j];
                }
            }
        }
        Self { dense, x, hessian, cross }
    }

    fn stats(&self, n: usize) -> GroupStats {
        let (hessian, cross) = (Some(self.hessian.clone()), Some(self.cross.clone()));
        GroupStats { in_features: n, hessian, cross, ..GroupStats::default() }
    }
}

/// Largest distance of the way gone to α of the whole, and of what is off the way, as a share of the whole way: rounding to
/// 8 bits, a fiftieth of it off the way.
const MAX_SHARE_APART: f64 = 0.01;
const MAX_OFF_THE_WAY: f64 = 0.05;

#[test]
fn asymmetric_calibration_goes_alpha_of_the_known_way() {
    let (rows, n) = (24, 64);
    let weight = uniform(rows * n, 31);
    let lossy = Lossy::new(n, 400);
    for (alpha, activation_order) in [(0.25, false), (0.25, true), (1.0, true)] {
        let method = Gptq {
            bits: 8,
            group_size: 32,
            search: Search::None,
            activation_order,
            asymmetric_calibration: alpha,
            ..Gptq::default()
        };
        // The whole way: W D H⁻¹, H dampened.
        let (order, damped) = damped(&method, &lossy.hessian, n);
        let inverse = inverse(&damped, n);
        let mut way = vec![0.0f64; rows * n];
        for (row, way) in weight.chunks(n).zip(way.chunks_mut(n)) {
            let product =
                |j: usize| -> f64 { (0..n).map(|i| f64::from(row[i]) * f64::from(lossy.cross[i * n + j])).sum() };
            let product: Vec<f64> = order.iter().map(|&j| product(j)).collect();
            for (q, &j) in order.iter().enumerate() {
                way[j] = (0..n).map(|p| product[p] * inverse[p * n + q]).sum();
            }
        }
        let mut values = weight.clone();
        let mut group =
            [Weight { name: "w", out_features: rows, in_features: n, values: &mut values, keep_zeros: false }];
        method.compress(&mut group, &lossy.stats(n)).unwrap();
        let gone: Vec<f64> = values.iter().zip(&weight).map(|(q, w)| f64::from(*q) - f64::from(*w)).collect();
        let length: f64 = way.iter().map(|way| way * way).sum();
        let share = gone.iter().zip(&way).map(|(gone, way)| gone * way).sum::<f64>() / length;
        assert!((share - alpha).abs() < MAX_SHARE_APART, "{share} of the way, expected {alpha}");
        let off: f64 = gone.iter().zip(&way).map(|(gone, way)| (gone - alpha * way).powi(2)).sum();
        let off = (off / length).sqrt();
        assert!(off < MAX_OFF_THE_WAY, "{off} off the way at {alpha}");
    }
}

#[test]
fn asymmetric_calibration_comes_closer_to_the_dense_outputs() {
    let (rows, n) = (24, 64);
    let weight = uniform(rows * n, 31);
    let lossy = Lossy::new(n, 400);
    let compress = |bits, alpha| {
        let method = Gptq { bits, group_size: 32, asymmetric_calibration: alpha, dampening: 1e-6, ..Gptq::default() };
        let mut values = weight.clone();
        let mut group =
            [Weight { name: "w", out_features: rows, in_features: n, values: &mut values, keep_zeros: false }];
        method.compress(&mut group, &lossy.stats(n)).unwrap();
        distance(&weight, &lossy.dense, &values, &lossy.x, n)
    };
    for bits in [3, 4, 8] {
        let distances = [0.0, 0.25, 1.0].map(|alpha| compress(bits, alpha));
        assert!(distances[2] < distances[1] && distances[1] < distances[0], "{bits} bits: {distances:?}");
    }
    // With codes as fine as 8 bits, it is nearly the best that least squares can do: no gradient is left.
    let plain = compress(8, 0.0);
    let best = compress(8, 1.0);
    assert!(best < 0.1 * plain, "{best} of {plain}");
}

#[test]
fn asymmetric_calibration_without_dense_inputs_says_that_it_is_plain() {
    let (rows, n) = (8, 32);
    let mut hessian = vec![0.0; n * n];
    (0..n).for_each(|i| hessian[i * n + i] = 1.0 + i as f32);
    let compress = |alpha, cross: Option<Vec<f32>>| {
        let method = Gptq { group_size: 32, asymmetric_calibration: alpha, ..Gptq::default() };
        let mut values = uniform(rows * n, 35);
        let stats = GroupStats { in_features: n, hessian: Some(hessian.clone()), cross, ..GroupStats::default() };
        let mut group =
            [Weight { name: "w", out_features: rows, in_features: n, values: &mut values, keep_zeros: false }];
        let report = method.compress(&mut group, &stats).unwrap().remove(0).report;
        report.escalations.into_iter().filter(|step| step.reason.contains("plain GPTQ")).count()
    };
    assert_eq!(compress(0.25, None), 1);
    assert_eq!(compress(0.25, Some(vec![0.0; n * n])), 0);
    assert_eq!(compress(0.0, None), 0);
}

#[test]
fn on_uncorrelated_inputs_it_is_round_to_nearest() {
    let (rows, n) = (20, 128);
    let weight = uniform(rows * n, 1);
    let mut h = vec![0.0; n * n];
    (0..n).for_each(|i| h[i * n + i] = 3.5);
    for groups in [Groups::Static, Groups::Fresh] {
        for search in [Search::None, Search::Mse] {
            let method = Gptq { group_size: 32, groups, search, activation_order: false, ..Gptq::default() };
            let rounded = grid::round_to_nearest(&weight, rows, n, &method.spec()).unwrap();
            let done = run(&method, &weight, &h, n).weight;
            assert_eq!(done.codes, rounded.codes);
            assert_eq!(done.scales, rounded.scales);
        }
    }
}

#[test]
fn it_beats_rounding_on_correlated_inputs_at_every_width() {
    let (rows, n) = (64, 256);
    let (h, weight) = (hessian(n, 400, 11), uniform(rows * n, 12));
    for bits in [2, 3, 4, 8] {
        let rtn = super::super::rtn::Rtn { bits, group_size: 64, search: Search::Mse, ..Default::default() };
        let mut values = weight.clone();
        let stats = GroupStats { in_features: n, hessian: Some(h.clone()), tokens: 1, ..GroupStats::default() };
        let mut group =
            [Weight { name: "w", out_features: rows, in_features: n, values: &mut values, keep_zeros: false }];
        let rounded = rtn.compress(&mut group, &stats).unwrap()[0].report.output_error.unwrap();
        let solved = run(&Gptq { bits, group_size: 64, ..Gptq::default() }, &weight, &h, n);
        let solved = solved.report.output_error.unwrap();
        assert!(solved < 0.6 * rounded, "{bits} bits: {solved} against {rounded}");
    }
}

#[test]
fn difficult_hessians_finish_finite_and_say_what_was_done() {
    let (rows, n) = (10, 96);
    let weight = uniform(rows * n, 2);
    let method = Gptq { group_size: 32, ..Gptq::default() };

    // Fewer inputs than columns: the default dampening is enough; without any it is raised, and that is reported.
    let deficient = hessian(n, 20, 3);
    let done = run(&method, &weight, &deficient, n);
    assert!(done.report.escalations.is_empty());
    let undamped = run(&Gptq { dampening: 0.0, ..method.clone() }, &weight, &deficient, n);
    assert!(!undamped.report.escalations.is_empty());
    assert!(undamped.report.dampening.unwrap() >= super::super::prepared::FIRST_DAMPENING);

    // Nothing observed.
    let done = run(&method, &weight, &vec![0.0; n * n], n);
    assert!(done.report.escalations[0].reason.contains("every calibration input was zero"));
    assert_eq!(done.report.output_error, None);
    let rounded = grid::round_to_nearest(&weight, rows, n, &method.spec()).unwrap();
    assert_eq!(done.weight.codes, rounded.codes);

    // Two inputs that never fired.
    let mut dead = hessian(n, 200, 4);
    for i in 0..n {
        for j in [5, 40] {
            (dead[i * n + j], dead[j * n + i]) = (0.0, 0.0);
        }
    }
    let done = run(&method, &weight, &dead, n);
    assert_eq!(done.report.dead_inputs, 2);
    let dequantised = done.weight.dequantize();
    assert!(dequantised.chunks(n).all(|row| row[5] == 0.0 && row[40] == 0.0 && row[6..40].iter().any(|&w| w != 0.0)));

    // Twelve orders of magnitude.
    let mut wide = vec![0.0; n * n];
    let base = hessian(n, 300, 6);
    let size = |i: usize| 10f32.powf(6.0 * i as f32 / (n - 1) as f32 - 3.0);
    for i in 0..n {
        for j in 0..n {
            wide[i * n + j] = base[i * n + j] * size(i) * size(j);
        }
    }
    for dampening in [0.0, 1e-8, 0.01] {
        let done = run(&Gptq { dampening, ..method.clone() }, &weight, &wide, n);
        assert!(done.report.output_error.unwrap().is_finite());
        assert!(done.weight.dequantize().iter().all(|w| w.is_finite()));
    }
}

/// Degenerate inputs of many kinds: (tokens, n), by seed.
fn degenerate_inputs(n: usize, seed: u64) -> Vec<f32> {
    let tokens = 1 + seed as usize * 7 % (2 * n);
    let mut x = uniform(tokens * n, seed);
    let at = |token: usize, column: usize| token * n + column;
    for token in 0..tokens {
        for column in 0..n {
            match seed % 10 {
                0 => x[at(token, column)] = x[at(0, column)],         // one direction
                1 if column % 3 == 0 => x[at(token, column)] = 0.0,   // dead inputs
                2 => x[at(token, column)] = x[at(token, column % 4)], // repeated inputs
                3 => x[at(token, column)] *= 10f32.powi(column as i32 % 9 - 4), // eight orders of size
                4 => x[at(token, column)] *= 1e-18,                   // products below f32
                5 => x[at(token, column)] *= 1e17,                    // products near its end
                6 => x[at(token, column)] = 1.0,                      // constant
                7 if token > 0 => x[at(token, column)] *= 1e-6,       // one outlier token
                8 if column == 5 => x[at(token, column)] *= 1e4,      // one outlier input
                9 => x[at(token, column)] = 0.0,                      // nothing at all
                _ => {}
            }
        }
    }
    x
}

#[test]
fn a_thousand_degenerate_hessians_are_never_worse_than_rounding() {
    /// Sums in another order.
    const SUMS: f64 = 1.0 + 1e-5;
    let (rows, n) = (4, 32);
    let mut raised = 0;
    for seed in 0..1000 {
        let x = degenerate_inputs(n, seed);
        let mut h = vec![0.0; n * n];
        syrk_accumulate(&x, &mut h, x.len() / n, n, 2.0);
        symmetrize(&mut h, n);
        let weight = uniform(rows * n, seed + 5000);
        let groups = if seed % 3 == 0 { Groups::Fresh } else { Groups::Static };
        let method = Gptq {
            bits: [2, 3, 4, 8][seed as usize % 4],
            group_size: 16,
            groups,
            activation_order: groups == Groups::Static,
            symmetric: seed % 2 == 0,
            dampening: [0.01, 0.0, 1e-6][seed as usize / 10 % 3],
            ..Gptq::default()
        };
        let done = run(&method, &weight, &h, n);
        let mut delta = done.weight.dequantize();
        assert!(delta.iter().all(|q| q.is_finite()), "seed {seed}");
        delta.iter_mut().zip(&weight).for_each(|(q, w)| *q -= w);
        // Weights of inputs that never fired mean nothing, and are set to zero before grids are fitted.
        let dead = |at: usize| h[at % n * n + at % n] == 0.0 && h.iter().any(|&h| h > 0.0);
        let live: Vec<f32> = weight.iter().enumerate().map(|(at, &w)| if dead(at) { 0.0 } else { w }).collect();
        let rounded = grid::round_to_nearest(&live, rows, n, &method.spec()).unwrap();
        let mut least = rounded.dequantize();
        least.iter_mut().zip(&weight).for_each(|(q, w)| *q -= w);
        let (lost, least) = (quadratic_form(&delta, &h, n), quadratic_form(&least, &h, n));
        assert!(lost <= least * SUMS + f64::MIN_POSITIVE, "seed {seed}: {lost} for {least}");
        let used = done.report.dampening.unwrap();
        assert!(used >= method.dampening, "seed {seed}");
        if used > method.dampening {
            raised += 1;
            assert!(!done.report.escalations.is_empty(), "seed {seed}: raised without a word");
        }
    }
    assert!(raised > 50, "only {raised} needed more dampening: the inputs are not degenerate enough");
}

#[test]
fn hopeless_hessians_are_refused_with_the_linear_named() {
    let n = 32;
    let stats = |h: Vec<f32>| GroupStats { in_features: n, hessian: Some(h), tokens: 1, ..GroupStats::default() };
    let message = |h: Vec<f32>| {
        let mut values = uniform(4 * n, 1);
        let mut group =
            [Weight { name: "model.w", out_features: 4, in_features: n, values: &mut values, keep_zeros: false }];
        let method = Gptq { group_size: 32, ..Gptq::default() };
        method.compress(&mut group, &stats(h)).unwrap_err().to_string()
    };
    let mut indefinite = vec![0.0; n * n];
    (0..n).for_each(|i| indefinite[i * n + i] = 1.0);
    (indefinite[1], indefinite[n]) = (1e9, 1e9);
    assert_eq!(
        message(indefinite),
        "linear `model.w`: its Hessian is not positive definite, even with a dampening of 1e4"
    );
    let mut sick = vec![0.0; n * n];
    sick[3 * n + 4] = f32::NAN;
    assert_eq!(message(sick), "linear `model.w`: its Hessian is NaN at (3, 4)");
}
