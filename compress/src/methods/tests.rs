use std::collections::BTreeSet;

use super::*;
use crate::kernel::test_values::uniform;

#[test]
fn names_are_unique_and_kebab_case() {
    let names: BTreeSet<_> = METHODS.iter().map(|entry| entry.name).collect();
    assert_eq!(names.len(), METHODS.len());
    for name in names {
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{name}");
    }
}

#[test]
fn every_method_has_a_summary_and_a_source() {
    for entry in METHODS {
        assert!(!entry.summary.is_empty() && !entry.summary.ends_with('.'), "{}", entry.name);
        assert!(entry.paper.len() > 10, "{}", entry.name);
    }
}

#[test]
fn defaults_build_and_parameters_build_the_same_again() {
    for entry in METHODS {
        let method = entry.build(toml::Table::new()).unwrap();
        assert_eq!(method.name(), entry.name);
        let again = entry.build(method.parameters()).unwrap();
        assert_eq!(method.parameters(), again.parameters());
        assert_eq!(method.kind(), again.kind());
    }
}

#[test]
fn unknown_names_and_parameters_are_refused() {
    let message = build("gtpq", toml::Table::new()).unwrap_err().to_string();
    assert!(message.starts_with("unknown method `gtpq`, expected `rtn` or `hqq` or `gptq` or"), "{message}");
    for entry in METHODS {
        let typo = "bitts = 4".parse::<toml::Table>().unwrap();
        let message = entry.build(typo).unwrap_err().to_string();
        assert!(message.contains(entry.name) && message.contains("unknown field `bitts`"), "{message}");
        if entry.build(toml::Table::new()).unwrap().grid().is_some() {
            let five = "bits = 5".parse::<toml::Table>().unwrap();
            assert!(entry.build(five).unwrap_err().to_string().contains("5 bits"));
        }
    }
}

/// Whether the method prunes if nothing is said.
fn prunes(entry: &MethodEntry) -> bool {
    entry.build(toml::Table::new()).unwrap().kind() == Kind::Prune
}

/// A group of two linears behind one input of 64, with its Hessian.
fn group() -> (Vec<f32>, Vec<f32>, GroupStats) {
    let (n, t) = (64, 200);
    let x = uniform(t * n, 4);
    let mut hessian = vec![0.0; n * n];
    crate::kernel::gemm::syrk_accumulate(&x, &mut hessian, t, n, 2.0 / t as f32);
    crate::kernel::gemm::symmetrize(&mut hessian, n);
    let energies = (0..n).map(|j| (0..t).map(|i| x[i * n + j] * x[i * n + j]).sum::<f32>() / t as f32);
    let magnitudes = (0..n).map(|j| (0..t).map(|i| x[i * n + j].abs()).sum::<f32>() / t as f32);
    let stats = GroupStats {
        in_features: n,
        hessian: Some(hessian),
        cross: None,
        energies: Some(energies.collect()),
        magnitudes: Some(magnitudes.collect()),
        samples: Some(x.clone()),
        tokens: t,
    };
    (uniform(32 * n, 5), uniform(8 * n, 6), stats)
}

/// The method with those of `parameters` that it has.
fn build_with(entry: &MethodEntry, parameters: &str) -> Box<dyn LayerMethod> {
    let known = entry.build(toml::Table::new()).unwrap().parameters();
    let wanted = parameters.parse::<toml::Table>().unwrap().into_iter();
    entry.build(wanted.filter(|(key, _)| known.contains_key(key)).collect()).unwrap()
}

#[test]
fn every_method_leaves_the_dequantised_weight_and_reports_every_linear() {
    for entry in METHODS {
        let (mut a, mut b, stats) = group();
        let original = a.clone();
        let prunes = prunes(entry);
        let parameters = if prunes { "" } else { "bits = 4\ngroup_size = 32" };
        let method = build_with(entry, parameters);
        let mut group = [
            Weight { name: "a", out_features: 32, in_features: 64, values: &mut a, keep_zeros: false },
            Weight { name: "b", out_features: 8, in_features: 64, values: &mut b, keep_zeros: false },
        ];
        let done = method.compress(&mut group, &stats).unwrap();
        assert_eq!(done.iter().map(|c| c.report.linear.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(done[0].weight.dequantize(), a);
        assert_eq!(done[1].weight.dequantize(), b);
        assert_eq!(done[0].weight.code(), method.code(64).unwrap());
        // Methods that did not look at the Hessian leave the figure to the loop.
        let error = done[0].report.output_error.or_else(|| stats.output_error(&original, &a)).unwrap();
        assert!(error > 0.0 && error < if prunes { 0.2 } else { 0.02 }, "{}: {error}", entry.name);
        // The report's figure is the definition's.
        let delta: Vec<f32> = a.iter().zip(&original).map(|(a, b)| a - b).collect();
        let form = |w: &[f32]| quadratic_form(w, stats.hessian.as_ref().unwrap(), 64);
        let expected = form(&delta) / form(&original);
        assert!((error / expected - 1.0).abs() < 1e-3, "{}: {error} for {expected}", entry.name);
    }
}

#[test]
fn every_method_refuses_what_is_not_finite_or_misshapen() {
    for entry in METHODS {
        let prunes = prunes(entry);
        let method = match prunes {
            true => entry.build("pattern = \"2:4\"".parse().unwrap()).unwrap(),
            false => build_with(entry, "group_size = 32"),
        };
        let (mut a, _, stats) = group();
        a[70] = f32::NEG_INFINITY;
        let mut weights =
            [Weight { name: "model.a", out_features: 32, in_features: 64, values: &mut a, keep_zeros: false }];
        let message = method.compress(&mut weights, &stats).unwrap_err().to_string();
        assert_eq!(message, "linear `model.a`: the weight in row 1, column 6 is -inf");
        let (mut a, _, stats) = group();
        let mut weights = [Weight { name: "a", out_features: 16, in_features: 64, values: &mut a, keep_zeros: false }];
        assert!(method.compress(&mut weights, &stats).is_err());
        if !prunes && method.grid().is_none() {
            continue; // no groups that could fail to divide a row
        }
        let method = match prunes {
            true => entry.build("pattern = \"2:3\"".parse().unwrap()).unwrap(),
            false => build_with(entry, "group_size = 48"),
        };
        let mut weights = [Weight { name: "a", out_features: 32, in_features: 64, values: &mut a, keep_zeros: false }];
        let message = method.compress(&mut weights, &stats).unwrap_err().to_string();
        let remedy = if prunes { "64 input features do not divide into groups of 3" } else { "16, 32, 64" };
        assert!(message.contains("`a`") && message.contains(remedy), "{message}");
    }
}

#[test]
fn every_method_that_may_follow_a_pruning_stage_keeps_its_zeros() {
    let settings = ["", "bits = 4", "symmetric = false", "search = \"mse\"", "groups = \"fresh\"", "bits = 2"];
    for entry in METHODS {
        let mut tried = 0;
        for (number, setting) in settings.iter().enumerate() {
            for sizes in ["", "group_size = 32\n", "bits = 3\ngroup_size = 16\nsymmetric = false\n"] {
                // Settings that this method does not have, or twice the same, do not count.
                let parameters = format!("{sizes}{setting}").parse::<toml::Table>();
                let method = parameters.ok().and_then(|parameters| entry.build(parameters).ok());
                let Some(method) = method.filter(|m| m.kind() == Kind::Quantise && m.keeps_zeros()) else {
                    continue;
                };
                if method.code(64).is_err() {
                    continue;
                }
                tried += 1;
                let (mut a, mut b, stats) = group();
                // Every third weight, a whole group of columns, a whole row; and a matrix of one sign.
                a.iter_mut().for_each(|w| *w = w.abs() + 0.5);
                let gone = |i: usize| (i + number).is_multiple_of(3) || i % 64 < 20 || i / 64 == 2;
                for weight in [&mut a, &mut b] {
                    weight.iter_mut().enumerate().filter(|(i, _)| gone(*i)).for_each(|(_, w)| *w = 0.0);
                }
                let mut weights = [
                    Weight { name: "a", out_features: 32, in_features: 64, values: &mut a, keep_zeros: true },
                    Weight { name: "b", out_features: 8, in_features: 64, values: &mut b, keep_zeros: true },
                ];
                let done = method.compress(&mut weights, &stats).unwrap();
                for (values, done) in [(&a, &done[0]), (&b, &done[1])] {
                    assert_eq!(&done.weight.dequantize(), values);
                    let zeros = values.iter().enumerate().filter(|(i, w)| gone(*i) && **w != 0.0).count();
                    assert_eq!(zeros, 0, "{method:?} changed zeros");
                    assert!(values.iter().any(|w| *w != 0.0), "{method:?} left nothing");
                }
            }
        }
        let default = entry.build(toml::Table::new()).unwrap();
        assert!(tried > 0 || default.kind() == Kind::Prune || !default.keeps_zeros(), "{} was not tried", entry.name);
    }
}

#[test]
fn every_pruner_sets_exactly_as_many_to_zero_as_asked() {
    let constant = |rows: usize| vec![0.5f32; rows * 64];
    let nothing = |rows: usize| vec![0.0f32; rows * 64];
    for entry in METHODS.iter().filter(|entry| prunes(entry)) {
        for (parameters, expected) in [
            ("", 1024),
            ("sparsity = 0.3", if entry.name == "wanda" { 32 * 19 } else { 614 }),
            ("sparsity = 0.0", 0),
            ("pattern = \"2:4\"", 1024),
            ("pattern = \"1:4\"", 1536),
            ("pattern = \"3:8\"", 1280),
            ("pattern = \"7:16\"", 1152),
            ("pattern = \"1:64\"", 63 * 32),
        ] {
            let method = entry.build(parameters.parse().unwrap()).unwrap();
            assert_eq!(method.code(64).unwrap(), Code::Dense);
            let (random, _, mut stats) = group();
            let prune = |mut values: Vec<f32>, stats: &GroupStats| {
                let mut weights =
                    [Weight { name: "a", out_features: 32, in_features: 64, values: &mut values, keep_zeros: false }];
                let done = method.compress(&mut weights, stats).unwrap().remove(0);
                assert_eq!(done.weight.dequantize(), values);
                values
            };
            let zeros = |values: &[f32]| values.iter().filter(|w| **w == 0.0).count();
            let done = prune(random.clone(), &stats);
            assert_eq!(zeros(&done), expected, "{} {parameters}", entry.name);
            if let Ok(pattern) = method.parameters().get("pattern").and_then(|p| p.as_str()).unwrap_or("").parse() {
                let pattern: crate::mask::NOfM = pattern;
                assert!(done.chunks(pattern.of()).all(|group| zeros(group) == pattern.drop()), "{parameters}");
            }
            assert_eq!(zeros(&prune(constant(32), &stats)), expected, "{} {parameters}, constant", entry.name);
            assert_eq!(zeros(&prune(nothing(32), &stats)), 32 * 64);
            // Five inputs that never fired, for whose weights scores are zero.
            let mut hessian = stats.hessian.take().unwrap();
            for j in [0, 3, 4, 17, 63] {
                (0..64).for_each(|i| (hessian[i * 64 + j], hessian[j * 64 + i]) = (0.0, 0.0));
                stats.energies.as_mut().unwrap()[j] = 0.0;
            }
            stats.hessian = Some(hessian);
            let done = prune(random.clone(), &stats);
            // SparseGPT takes the weights of dead inputs whatever is asked.
            let taken = (0..32 * 64).filter(|i| [0, 3, 4, 17, 63].contains(&(i % 64)) && done[*i] == 0.0).count();
            match entry.name {
                "sparsegpt" => assert!(taken == 160 && zeros(&done) >= expected && zeros(&done) <= expected + 160),
                _ => assert_eq!(zeros(&done), expected),
            }
        }
    }
}

#[test]
fn pruners_say_what_is_wrong_with_their_parameters() {
    for entry in METHODS.iter().filter(|entry| prunes(entry)) {
        let refused = |parameters: &str| entry.build(parameters.parse().unwrap()).unwrap_err().to_string();
        assert!(refused("sparsity = 50.0").contains("the sparsity is 50, expected the fraction"));
        assert!(refused("sparsity = 0.5\npattern = \"2:4\"").contains("give one of them"));
        assert!(refused("pattern = \"4:2\"").contains("the pattern 4:2 keeps every weight"));
    }
    let refused = |name: &str, parameters: &str| build(name, parameters.parse().unwrap()).unwrap_err().to_string();
    assert!(refused("magnitude", "pattern = \"2:4\"\nscope = \"row\"").contains("leave one out"));
    assert!(refused("sparsegpt", "group_size = 64").starts_with("`group_size` is given without `bits`"));
    assert!(refused("sparsegpt", "dampening = -1.0").contains("dampening is -1"));
    assert!(refused("sparsegpt", "column_block = 0").contains("column block is 0"));
    assert!(refused("sparsegpt", "bits = 5").contains("5 bits"));
}
