use std::{collections::BTreeSet, path::Path};

use super::{
    contestant::{self, kept, slots, sparse_bytes},
    ground::{Descent, Schooling, rest, start},
    hashed::Hashed,
    interval::Interval,
    lottery,
    low_rank::LowRank,
    pareto::{Row, crossover},
    psi::{Psi, begun_at, share},
    quantised,
    record::{Job, work},
    train::{Course, Part},
    *,
};
use crate::{
    Error,
    data::images::ImageSet,
    kernel::test_values::uniform,
    nn::{Architecture, parametrise::Parametrise, train::Augmentation},
    sharing::{
        Scales,
        baselines::{self, GradientScale},
        modules::Size,
    },
};

fn ground(hidden: &[usize], epochs: u64) -> Ground {
    let schooling = Schooling {
        architecture: Architecture::Mlp { hidden: hidden.to_vec(), norm: false },
        epochs,
        batch: 32,
        sgd_peak: 0.05,
        adam_peak: 0.002,
        augmentation: Augmentation::default(),
        scored_on: 60,
        rewind: 3,
        pruned_a_round: 0.6,
    };
    Ground::new(Data::glyphs(160, 100).unwrap(), schooling).unwrap()
}

fn course(seed: u64) -> Course {
    Course { part: Part::Final, descent: Descent::Sgd, peak: 0.05, seed }
}

fn product(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// ⟨∂w/∂t · v, g⟩ = ⟨v, fold g⟩ for a map that is linear in t.
fn is_adjoint(with: &dyn Parametrise, weights: usize, trainable: usize) {
    let (t, g) = (uniform(trainable, 1), uniform(weights, 2));
    let (mut w, mut of_t) = (vec![0.0; weights], vec![f32::NAN; trainable]);
    with.expand(&t, &mut w);
    with.fold(&g, &mut of_t);
    let (left, right) = (product(&w, &g), product(&t, &of_t));
    assert!((left - right).abs() < 1e-3 * left.abs().max(1.0), "{}: {left} and {right}", with.identity());
}

#[test]
fn maps_behind_the_weights_are_adjoint_to_their_gradients() {
    let ground = ground(&[9], 1);
    let (graph, weights) = (&ground.graph, ground.graph.layout().len());
    let mut begin = start(graph, 3);
    let shared = share(graph, &mut begin, Size::Rate(8.0), Scales::Rms, 2).unwrap();
    let trainable = shared.start(&begin.values).len();
    is_adjoint(&Psi::new(shared.clone(), None), weights, trainable);
    for method in [baselines::Method::HashedNet, baselines::Method::Roast { tile: (8, 4) }] {
        let hashed = Hashed::new(graph.layout(), &begin.values, method, slots(&ground, 8.0).unwrap(), 2).unwrap();
        is_adjoint(&hashed, weights, trainable);
        // Orthonormal: what can be expressed comes back, and slots that nothing reads stay 0.
        let mut expressed = begin.values.clone();
        hashed.begin(&mut expressed, 5);
        let again = hashed.start(&expressed);
        let mut back = vec![0.0; weights];
        hashed.expand(&again, &mut back);
        assert!(back.iter().zip(&expressed).all(|(a, b)| (a - b).abs() < 1e-5), "{method:?}");
        assert!(again.iter().all(|value| value.is_finite()) && hashed.load_factor() > 0.7);
    }
    // A divided gradient is the plain one over Γ, which of equal scales is their square times the weights of a slot.
    let (plain, divided) = (Psi::new(shared.clone(), None), Psi::new(shared.clone(), Some(GradientScale::V5)));
    let gradient = uniform(weights, 4);
    let (mut a, mut b) = (vec![0.0; trainable], vec![0.0; trainable]);
    plain.fold(&gradient, &mut a);
    divided.fold(&gradient, &mut b);
    for ((a, b), square) in a.iter().zip(&b).zip(shared.sharing().squares()) {
        assert!((f64::from(*a) - f64::from(*b) * (square + 1e-6)).abs() < 1e-4 * f64::from(a.abs()).max(1e-3));
    }
}

#[test]
fn a_pool_begun_at_another_size_makes_the_same_weights() {
    let ground = ground(&[9], 1);
    let mut begin = start(&ground.graph, 3);
    let shared = share(&ground.graph, &mut begin, Size::Rate(4.0), Scales::Rms, 2).unwrap();
    for deviation in stability::DEVIATIONS {
        let scaled = begun_at(&shared, ground.graph.layout(), deviation).unwrap();
        let pool = scaled.pool(&scaled.start(&begin.values));
        let spread = (product(&pool, &pool) / pool.len() as f64).sqrt();
        assert!((spread / deviation - 1.0).abs() < 0.1, "{deviation}: {spread}");
        for with in [&scaled as &dyn Parametrise, &Psi::new(scaled.clone(), None)] {
            let mut weights = vec![0.0; begin.values.len()];
            with.expand(&with.start(&begin.values), &mut weights);
            assert!(weights.iter().zip(&begin.values).all(|(a, b)| (a - b).abs() < 1e-5), "{deviation}");
        }
    }
}

#[test]
fn the_gradient_of_two_factors_is_that_of_finite_differences() {
    let ground = ground(&[9], 1);
    let (layout, begin) = (ground.graph.layout(), start(&ground.graph, 3));
    let factors = LowRank::new(layout, &begin.values, 700, 1).unwrap();
    assert!(factors.values() <= 700 && factors.values() > 500, "{}", factors.values());
    assert!(LowRank::new(layout, &begin.values, 100, 1).is_none());
    let t = factors.start(&begin.values);
    let (mut weights, g) = (vec![0.0; layout.len()], uniform(layout.len(), 2));
    let mut of_t = vec![f32::NAN; t.len()];
    factors.expand(&t, &mut weights);
    factors.fold(&g, &mut of_t);
    for at in (0..t.len()).step_by(37) {
        let mut to = |by: f32| {
            let mut moved = t.clone();
            moved[at] += by;
            factors.expand(&moved, &mut weights);
            product(&weights, &g)
        };
        let slope = (to(0.01) - to(-0.01)) / 0.02; // linear in one factor
        assert!((slope - f64::from(of_t[at])).abs() < 2e-3, "{at}: {slope}, {}", of_t[at]);
    }
    let matrix = &layout.entries()[0];
    let size = |values: &[f32]| product(values, values).sqrt();
    factors.expand(&t, &mut weights);
    let ratio = size(&weights[matrix.range()]) / size(&begin.values[matrix.range()]);
    assert!((0.7..1.4).contains(&ratio), "{ratio}");
}

#[test]
fn rounding_is_to_the_nearest_of_each_rows_grid() {
    let ground = ground(&[9], 1);
    let (layout, weights) = (ground.graph.layout(), start(&ground.graph, 3));
    for (bits, most) in [(8, 127.0), (4, 7.0)] {
        let rounded = quantised::rounded(layout, &weights, bits);
        for entry in layout.entries() {
            let rows = weights.values[entry.range()].chunks_exact(entry.values() / entry.shape[0]);
            for (row, found) in rows.zip(rounded.values[entry.range()].chunks_exact(entry.values() / entry.shape[0])) {
                if entry.shape.len() == 1 {
                    assert_eq!(row, found);
                    continue;
                }
                let step = row.iter().fold(0.0f32, |most, w| most.max(w.abs())) / most;
                assert!(row.iter().zip(found).all(|(w, q)| (w - q).abs() <= 0.501 * step), "{bits} bits");
                assert!(found != row, "{bits} bits change nothing");
            }
        }
    }
    // 9 · 196 + 10 · 9 values and 19 rows.
    assert_eq!((quantised::bytes(layout, 8), quantised::bytes(layout, 4)), (1_854 + 76, 927 + 76));
}

#[test]
fn every_contestant_keeps_what_it_says_and_no_more_than_the_pool() {
    let ground = ground(&[24, 16], 1);
    assert_eq!((ground.weights(), ground.rest()), (196 * 24 + 24 * 16 + 16 * 10, 24 + 16 + 10));
    for rate in [2.0, 8.0, 64.0] {
        let slots = slots(&ground, rate).unwrap();
        let pool = 4 * (slots + ground.rest()) as u64;
        for method in Method::ALL.into_iter().filter(|method| !method.is_fixed() && *method != Method::Lottery) {
            for accounting in [Accounting::Values, Accounting::Bytes] {
                let Some(found) = contestant::run(&ground, method, rate, accounting, course(1)).unwrap() else {
                    assert!(rate == 64.0 && matches!(method, Method::LowRank | Method::Small), "{method:?} at {rate}");
                    continue;
                };
                let what = format!("{method:?} at {rate} by {accounting:?}: {found:?}");
                match accounting {
                    // A smaller net spends on weights what it saves on biases.
                    Accounting::Values => assert!(found.values <= slots + ground.rest(), "{what}"),
                    Accounting::Bytes => assert!(found.bytes <= pool, "{what}"),
                }
                assert!(found.score.diverged.is_none() && found.score.images == 100, "{what}");
                if method.is_sparse() && accounting == Accounting::Values {
                    assert!(found.values == slots && found.bytes > pool, "{what}");
                }
            }
        }
        assert!(sparse_bytes(&ground, kept(&ground, rate, Accounting::Bytes).unwrap() + 1) > pool);
    }
    assert_eq!(rest(&ground.graph), ground.rest());
    let error = slots(&ground, 0.5).unwrap_err().to_string();
    assert!(error.contains("the rate is 0.5"), "{error}");
}

fn store<'a>(folder: &Path, ground: &Ground, told: &'a (dyn Fn(&str) + Sync)) -> Store<'a> {
    Store::open(folder, "test", ground, told).unwrap()
}

#[test]
fn tickets_have_the_sizes_asked_for_and_a_chain_goes_on_where_it_was_stopped() {
    let ground = ground(&[12], 3);
    let all = ground.weights();
    let sizes = [all, all / 2, (all as f64 * 0.4).round() as usize, all / 20, all / 5];
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let whole = lottery::tickets(&ground, &store(one.path(), &ground, &|_| {}), course(1), &sizes).unwrap();
    assert_eq!(whole.iter().map(|ticket| ticket.values).collect::<Vec<_>>(), sizes);
    assert!(whole[0].score.right > 15, "{whole:?}"); // fifteen steps, more than chance

    // Some rounds, then records away, then on.
    let again = store(two.path(), &ground, &|_| {});
    lottery::tickets(&ground, &again, course(1), &sizes).unwrap();
    let runs = two.path().join("runs/test");
    let mut files: Vec<_> = std::fs::read_dir(&runs).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("lottery")));
    files.sort();
    assert_eq!(files.len(), 1 + 3 + 3, "{files:?}"); // the dense run, rounds of 40, 16 and 6.4 %, sizes between
    let before: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    for file in files.iter().skip(1).step_by(2) {
        std::fs::remove_file(file).unwrap();
    }
    let resumed = lottery::tickets(&ground, &again, course(1), &sizes).unwrap();
    assert_eq!(resumed, whole);
    assert_eq!(files.iter().map(|file| std::fs::read(file).unwrap()).collect::<Vec<_>>(), before);
    let others = lottery::tickets(&ground, &again, course(1), &[all / 3]).unwrap_err().to_string();
    assert!(others.contains("has no mask of") && others.contains("give another folder"), "{others}");
}

#[test]
fn records_of_other_ground_and_broken_ones_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let ground = ground(&[9], 1);
    let names = std::sync::Mutex::new(BTreeSet::new());
    let told = |name: &str| {
        names.lock().unwrap().insert(name.to_string());
    };
    let first = store(folder.path(), &ground, &told);
    assert_eq!(first.once("a", || Ok(0.1 + 0.2)).unwrap(), 0.1 + 0.2);
    let second = first.once("a", || -> crate::Result<f64> { panic!("the record was not read") });
    assert_eq!(second.unwrap(), 0.1 + 0.2);
    assert_eq!(names.lock().unwrap().len(), 1);
    let failed: crate::Result<f64> = first.once("b", || Err(Error::Recipe("no".into())));
    assert!(failed.is_err() && !folder.path().join("runs/test/b.json").exists());
    std::fs::write(folder.path().join("runs/test/a.json"), "{").unwrap();
    let error = first.once("a", || Ok(1.0)).unwrap_err().to_string();
    assert!(error.contains("a.json") && error.contains("is no record of this run"), "{error}");
    let other = self::ground(&[10], 1);
    let error = Store::open(folder.path(), "test", &other, &told).unwrap_err().to_string();
    assert!(error.contains("ground.json") && error.contains("another net or another schedule"), "{error}");
}

#[test]
fn work_is_done_once_and_the_first_error_is_told() {
    let done = std::sync::atomic::AtomicUsize::new(0);
    let count = || {
        done.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    };
    let jobs: Vec<Job<'_>> = (0..40).map(|_| Box::new(count) as Job<'_>).collect();
    work(&jobs).unwrap();
    assert_eq!(done.load(std::sync::atomic::Ordering::Relaxed), 40);
    work(&[]).unwrap();
    let jobs: Vec<Job<'_>> = vec![Box::new(|| Ok(())), Box::new(|| Err(Error::Recipe("the second".into())))];
    assert_eq!(work(&jobs).unwrap_err().to_string(), "the second");
}

#[test]
fn crossovers_are_found_between_rates_and_said_in_words() {
    let row = |method, rate, accounting, runs: [f64; 2]| Row {
        method,
        rate: Some(rate),
        accounting,
        values: 1,
        bytes: 4,
        learning_rate: 0.1,
        accuracy: Interval::of(runs.to_vec()).unwrap(),
        diverged: 0,
    };
    let rows = |gaps: [f64; 3]| -> Vec<Row> {
        let pairs = [4.0, 16.0, 64.0].into_iter().zip(gaps).flat_map(|(rate, gap)| {
            let near = |x: f64| [x - 0.001, x + 0.001];
            [
                row(Method::Fold, rate, None, near(0.6 + gap)),
                row(Method::Lottery, rate, Some(Accounting::Values), near(0.6)),
            ]
        });
        pairs.collect()
    };
    let found = crossover(&rows([-0.1, 0.01, 0.2]), Accounting::Values).unwrap();
    // A share 10/11 of the way from 4 to 16, in the logarithm.
    assert!((found.rate.unwrap() - 4.0 * 4f64.powf(10.0 / 11.0)).abs() < 1e-6, "{found:?}");
    assert_eq!((found.ahead_from, found.clear_from), (Some(16.0), Some(64.0)));
    assert!(found.sentence.contains("above about 14x: it leads from 16x on, with intervals apart from 64x on"));
    let never = crossover(&rows([0.1, 0.1, -0.1]), Accounting::Values).unwrap();
    assert!(never.rate.is_none() && never.sentence.contains("better up to 64x"), "{never:?}");
    let always = crossover(&rows([0.1, 0.1, 0.1]), Accounting::Values).unwrap();
    assert!(always.rate.is_none() && always.sentence.contains("at every rate measured"), "{always:?}");
    assert_eq!(crossover(&rows([0.1; 3]), Accounting::Bytes), None);
}

#[test]
fn parts_of_a_set_have_no_picture_in_common_even_where_each_is_drawn_several_times() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("digits.csv");
    // 200 distinct pictures of 8 × 8 pixels, as the digits are shipped.
    let line = |at: usize| {
        let mut values: Vec<String> = (0..64).map(|pixel| ((at >> (pixel % 8) & 1) * 16).to_string()).collect();
        values[63] = (at % 16).to_string();
        values.push((at % 10).to_string());
        values.join(",") + "\n"
    };
    std::fs::write(&file, (0..200).map(line).collect::<String>()).unwrap();
    let data = Data::read(&file, None).unwrap();
    assert_eq!((data.train.len(), data.test.len()), (6 * 150, 6 * 50));
    assert_eq!((data.fit.len(), data.validation.len()), (6 * 120, 6 * 30));
    assert_eq!((data.train.height, data.train.width, data.name.as_str()), (14, 14, "digits.csv"));
    let pictures = |set: &ImageSet| (0..set.len()).map(|at| set.image(at).to_vec()).collect::<BTreeSet<_>>();
    let [train, test, fit, validation] = [&data.train, &data.test, &data.fit, &data.validation].map(pictures);
    assert!(train.is_disjoint(&test) && fit.is_disjoint(&validation));
    assert_eq!(fit.union(&validation).cloned().collect::<BTreeSet<_>>(), train);
    assert_eq!(Data::read(&file, None).unwrap(), data);
    let other = folder.path().join("other.csv");
    std::fs::write(&other, (0..9).map(|_| vec!["1"; 785].join(",") + "\n").collect::<String>()).unwrap();
    let error = Data::read(&file, Some(&other)).unwrap_err().to_string();
    assert!(error.contains("give sets of one kind"), "{error}");
}
