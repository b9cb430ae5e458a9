use std::{fs, path::Path};

use half::{bf16, f16};
use scruple_weights::{Checkpoint, CheckpointWriter, Dtype, PathFilter, TensorSpec, WriterOptions};

use super::{
    file::{encode, expand_tensor},
    fold::ALIGN,
    modules::{Choice, Size},
    *,
};
use crate::data::random::Stream;

/// Writes `tensors` (name, type, shape, values) as a checkpoint into `folder`.
fn checkpoint(folder: &Path, tensors: &[(&str, Dtype, Vec<usize>, Vec<f32>)]) -> Checkpoint {
    let specs = tensors.iter().map(|(name, dtype, shape, _)| TensorSpec::new(*name, *dtype, shape.clone())).collect();
    let writer = CheckpointWriter::create(folder, specs, WriterOptions::default()).unwrap();
    for (name, dtype, _, values) in tensors {
        let mut bytes = Vec::new();
        encode(*dtype, values, &mut bytes);
        writer.write(name, &bytes).unwrap();
    }
    writer.finish().unwrap();
    Checkpoint::open(folder).unwrap()
}

fn normal(count: usize, deviation: f64, number: u64) -> Vec<f32> {
    let mut stream = Stream::new(1, "sharing/test", number);
    (0..count).map(|_| (deviation * stream.normal()) as f32).collect()
}

/// Three matrices of different kinds, one of them twice, and a vector.
fn model(folder: &Path) -> Checkpoint {
    let head = normal(60 * 40, 0.02, 1);
    let mut zeros = normal(50 * 40, 1.0, 2);
    zeros[..100].fill(-0.0);
    zeros[100..200].fill(0.0);
    checkpoint(
        folder,
        &[
            ("embed.weight", Dtype::F32, vec![60, 40], head.clone()),
            ("up.weight", Dtype::Bf16, vec![50, 40], zeros),
            ("conv.weight", Dtype::F16, vec![16, 8, 3, 3], normal(1_152, 0.3, 3)),
            ("small.weight", Dtype::F32, vec![4, 4], normal(16, 1.0, 4)),
            ("norm.weight", Dtype::F32, vec![2_000], normal(2_000, 1.0, 5)),
            ("head.weight", Dtype::F32, vec![60, 40], head),
        ],
    )
}

fn options(rate: f64) -> Options {
    Options { size: Size::Rate(rate), seed: 7, allow_lossy: true, ..Options::default() }
}

fn run(source: &Checkpoint, out: &Path, options: &Options) -> crate::Result<Projected> {
    let record = |_: &Projected| Ok(vec![("share.json".to_string(), b"{}\n".to_vec())]);
    project(source, Some(out), options, &record, &mut |_, _| {})
}

fn names_and_bytes(checkpoint: &Checkpoint) -> Vec<(String, Dtype, Vec<usize>, Vec<u8>)> {
    let mut all: Vec<_> = checkpoint
        .tensors()
        .map(|view| (view.name().to_string(), view.dtype(), view.shape().to_vec(), view.bytes().to_vec()))
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[test]
fn at_rate_1_every_bit_comes_back_and_twins_are_stored_once() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = model(&at("dense"));
    let projected = run(&source, &at("pool"), &Options { allow_lossy: false, ..options(1.0) }).unwrap();
    assert!(projected.lossless && projected.relative_error == 0.0 && projected.expected_error == 0.0);
    assert_eq!(projected.tied.len(), 1);
    assert_eq!((projected.tied[0].name.as_str(), projected.tied[0].of.as_str()), ("head.weight", "embed.weight"));
    assert_eq!((projected.report.weights, projected.report.slots), (2_400 + 2_000 + 1_152, 2_400 + 2_000 + 1_152));

    assert!(at("pool/model.rps.safetensors").is_file() && at("pool/share.json").is_file());
    let file = SharedFile::open(&at("pool")).unwrap();
    let expanded = expand(&file, &at("again"), &mut |_, _| {}).unwrap();
    assert_eq!((expanded.recovered, expanded.copied), (4, 2));
    let again = Checkpoint::open(at("again")).unwrap();
    assert_eq!(names_and_bytes(&again), names_and_bytes(&source));
    assert_eq!(again.fingerprint(), projected.source_fingerprint);
    let findings = verify(&file, Some(&source), &|_| {}).unwrap();
    assert_eq!((findings.faults.len(), findings.recovered, findings.compared), (0, 3, 2));
    assert_eq!(findings.lossless, Some(true));
}

#[test]
fn what_is_written_is_the_projection_in_every_type_and_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let source = model(&folder.path().join("dense"));
    for psi_dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        let options = Options { psi_dtype, ..options(3.3) };
        let files: Vec<Vec<u8>> = [1, 3]
            .map(|threads| {
                let out = folder.path().join(format!("{psi_dtype}-{threads}"));
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| run(&source, &out, &options).unwrap());
                fs::read(out.join("model.rps.safetensors")).unwrap()
            })
            .to_vec();
        assert_eq!(files[0], files[1]);
        let file = SharedFile::open(&folder.path().join(format!("{psi_dtype}-1"))).unwrap();
        assert_eq!((file.psi_dtype(), file.pool().unwrap().len()), (psi_dtype, (5_552.0f64 / 3.3) as usize));
        let findings = verify(&file, Some(&source), &|_| {}).unwrap();
        assert_eq!((findings.faults.len(), findings.lossless), (0, Some(false)));
        let out = folder.path().join(format!("{psi_dtype}-again"));
        expand(&file, &out, &mut |_, _| {}).unwrap();
        // Each weight by the definition.
        let (expanded, pool) = (Checkpoint::open(&out).unwrap(), file.pool().unwrap());
        let fold = &file.sharing().fold;
        for module in &file.sharing().modules {
            let view = expanded.tensor(&module.name).unwrap();
            for (weight, found) in module.range().zip(view.to_f32().unwrap()) {
                let value = module.scale * pool[fold.slot(weight)];
                let value = if fold.is_negative(weight) { -value } else { value };
                let expected = match view.dtype() {
                    Dtype::F16 => f16::from_f32(value).to_f32(),
                    Dtype::Bf16 => bf16::from_f32(value).to_f32(),
                    _ => value,
                };
                assert_eq!(found.to_bits(), expected.to_bits());
            }
        }
    }
}

#[test]
fn tensors_with_pools_of_their_own_are_projected_each_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let source = model(&folder.path().join("dense"));
    let at = |name: &str| folder.path().join(name);
    let apart = |rate: f64| Options { size: Size::RateOfEach(rate), ..options(1.0) };
    let lossless = run(&source, &at("one"), &apart(1.0)).unwrap();
    assert!(lossless.lossless);
    expand(&SharedFile::open(&at("one")).unwrap(), &at("again"), &mut |_, _| {}).unwrap();
    assert_eq!(names_and_bytes(&Checkpoint::open(at("again")).unwrap()), names_and_bytes(&source));

    let projected = run(&source, &at("four"), &apart(4.0)).unwrap();
    let file = SharedFile::open(&at("four")).unwrap();
    let (sharing, pool) = (file.sharing(), file.pool().unwrap());
    assert!(sharing.fold.is_apart() && sharing.fold.pools() == 3 && projected.report.load_factor == 1.0);
    assert_eq!(sharing.fold.slots(), 600 + 500 + 288);
    assert!(verify(&file, Some(&source), &|_| {}).unwrap().faults.is_empty());
    // A tensor alone over the same slots is the same tensor: nothing is shared between them.
    let first = &sharing.modules[0];
    let alone =
        Sharing::new(vec![(first.name.clone(), first.shape.clone(), first.scale)], Size::Slots(600), 16, 7).unwrap();
    let (mut among, mut by_itself) = (vec![0.0; first.values()], vec![0.0; first.values()]);
    pool::recover(&sharing.fold, &pool, first.scale, first.offset, &mut among);
    pool::recover(&alone.fold, &pool[..600], first.scale, 0, &mut by_itself);
    assert_eq!(among, by_itself);

    let path = at("four").join("model.rps.safetensors");
    let good = fs::read(&path).unwrap();
    for (from, to, part) in [
        (r#"\"slots\":500"#, r#"\"slots\":501"#, "says m = 1388, the pools of its tensors have 1389 slots"),
        (r#"\"slots\":600"#, r#"\"slots\":6e9"#, "cannot be read"),
        (r#"\"version\":2"#, r#"\"version\":1"#, "is of version 1, and 3 of its 3 tensors"),
    ] {
        fs::write(&path, &good).unwrap();
        edit(&path, from, to);
        let error = SharedFile::open(&at("four")).unwrap_err().to_string();
        assert!(error.contains(part) && error.lines().count() == 1, "{to}: {error}");
    }
}

#[test]
fn the_bytes_are_those_of_another_program() {
    // Golden, Python 3 with numpy, beside the hash in `fold`'s tests; n = 1000, m = 300, seed 42, λ = 0.37:
    // psi = np.array([(j * 37 % 101 - 50) / 64 for j in range(m)], np.float32); w = np.float32(0.37) * psi[slot(p)], signed
    // sha256 of w, of w.astype(np.float16), and of the upper halves of w's bits rounded to nearest even.
    let sharing = Sharing::new(vec![("w".into(), vec![10, 100], 0.37)], Size::Slots(300), ALIGN, 42).unwrap();
    let psi: Vec<f32> = (0..300).map(|j| (j * 37 % 101 - 50) as f32 / 64.0).collect();
    for (dtype, expected) in [(Dtype::F32, GOLDENS[0]), (Dtype::F16, GOLDENS[1]), (Dtype::Bf16, GOLDENS[2])] {
        let module = &sharing.modules[0];
        let found = expand_tensor(&sharing, &psi, module, dtype, |_, _| Ok::<(), ()>(())).unwrap();
        assert_eq!(found, expected, "{dtype}");
    }
}

const GOLDENS: [&str; 3] = [
    "ab90085048fa1a053ed2ccc3978467d84ecaf9b9526aecb93587737c98787d89",
    "c655a5c2017eeb04ed02b88c18b0b7b60ce68bd0af7f0552173e050f2847e87c",
    "11d121b753dbdc490fe2d7025658460032b646ae63bfc1ac8e73349485ed4b3a",
];

#[test]
fn the_bytes_of_pools_of_their_own_are_those_of_another_program() {
    // Golden, Python 3, beside the hash in `fold`'s tests; seed 42, ψ as above over all 670 slots. For part l of n weights
    // from `first` on over m slots from `start` on, weight p of the part, k, o = divmod(p, m):
    // u = 16 * (mix(key(42, 1) + ((l << 32) + k + 1) * G & M) * max(1, m // 16) >> 64)
    // w = λ * psi[start + (u + o) % m], signed by bit (first + p) % 64 of word (first + p) // 64; sha256 of w in f32
    let tensors: [(&str, Vec<usize>, f32, usize, &str); 4] = [
        ("a", vec![10, 100], 0.37, 300, GOLDENS[0]),
        ("b", vec![30, 20], 0.9, 170, "b4da7ca80c43b80991f05810baf07b2678b98d2d48a19972419bea44ab099510"),
        ("none", vec![0, 5], 1.0, 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        ("c", vec![7, 100], 1.5, 200, "5164918223e6011c115637d80e2cf7f443695cc119dcac87dd3b2ac9d2aa1d32"),
    ];
    let named = tensors.iter().map(|(name, shape, scale, ..)| ((*name).to_string(), shape.clone(), *scale)).collect();
    let sharing = Sharing::apart(named, &tensors.clone().map(|(_, _, _, slots, _)| slots), ALIGN, 42).unwrap();
    let psi: Vec<f32> = (0..670).map(|j| (j * 37 % 101 - 50) as f32 / 64.0).collect();
    for (module, (name, .., expected)) in sharing.modules.iter().zip(&tensors) {
        let found = expand_tensor(&sharing, &psi, module, Dtype::F32, |_, _| Ok::<(), ()>(())).unwrap();
        assert_eq!(found, *expected, "{name}");
    }
}

#[test]
fn the_error_is_what_theory_says_and_no_pool_is_nearer() {
    let folder = tempfile::tempdir().unwrap();
    let tensor =
        |name, rows, deviation, number| (name, Dtype::F32, vec![rows, 200], normal(rows * 200, deviation, number));
    let alike = checkpoint(&folder.path().join("a"), &[tensor("a", 300, 0.02, 1), tensor("b", 200, 0.02, 2)]);
    let mixed = checkpoint(&folder.path().join("b"), &[tensor("a", 300, 0.02, 1), tensor("b", 200, 0.3, 2)]);
    for rate in [2.0, 4.0, 8.0, 16.0] {
        let out = |name: &str| folder.path().join(format!("{name}-{rate}"));
        let found = run(&alike, &out("alike"), &options(rate)).unwrap();
        assert!((found.relative_error - (1.0 - 1.0 / rate).sqrt()).abs() < 0.01, "{rate}: {}", found.relative_error);
        // Slots serve the tensor of larger weights first.
        let mixed_error = run(&mixed, &out("mixed"), &options(rate)).unwrap().relative_error;
        assert!(mixed_error < found.relative_error, "{rate}: {mixed_error}");
        // Moving any slot makes it worse.
        let file = SharedFile::open(&out("mixed")).unwrap();
        let (pool, sharing) = (file.pool().unwrap(), file.sharing());
        let squares = |pool: &[f32]| -> f64 {
            let mut sum = 0.0;
            for module in &sharing.modules {
                let mut w = vec![0.0; module.values()];
                pool::recover(&sharing.fold, pool, module.scale, module.offset, &mut w);
                let source = mixed.tensor(&module.name).unwrap().to_f32().unwrap();
                sum += w.iter().zip(source).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            }
            sum
        };
        let least = squares(&pool);
        for (slot, step) in [(0, 0.1f32), (17, -0.1), (101, 0.05)] {
            let mut moved = pool.clone();
            moved[slot] += step;
            assert!(squares(&moved) > least, "slot {slot} of the pool was not at its best");
        }
    }
}

/// Changes `from` into `to`, of the same length, in the file at `path`.
fn edit(path: &Path, from: &str, to: &str) {
    let mut bytes = fs::read(path).unwrap();
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("the text is there");
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    fs::write(path, bytes).unwrap();
}

#[test]
fn damaged_files_are_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let source = model(&folder.path().join("dense"));
    let pool = folder.path().join("pool");
    run(&source, &pool, &options(2.0)).unwrap();
    let path = pool.join("model.rps.safetensors");
    let good = fs::read(&path).unwrap();
    let text = String::from_utf8_lossy(&good).into_owned();
    let sha256 = |name: &str| {
        let at = text.find(&format!(r#"\"name\":\"{name}\""#)).unwrap();
        let at = at + text[at..].find(r#"\"sha256\":\""#).unwrap() + r#"\"sha256\":\""#.len();
        text[at..at + 64].to_string()
    };
    let scale = |name: &str| {
        let at = text.find(&format!(r#"\"name\":\"{name}\""#)).unwrap();
        let at = at + text[at..].find("0x").unwrap();
        text[at..at + 10].to_string()
    };
    let up = sha256("up.weight");

    // What contradicts itself is not opened.
    for (from, to, part) in [
        (scale("embed.weight"), "0x7fc00000".to_string(), "tensor `embed.weight` has scale NaN"),
        (scale("embed.weight"), "0x00000000".into(), "tensor `embed.weight` has scale 0"),
        (scale("embed.weight"), "0xnumbers!".into(), "expected the bits of an f32"),
        ("row-major".into(), "col-major".into(), "has tile `col-major`, this version reads `row-major`"),
        ("fold-v1".into(), "fold-v2".into(), "has hash `splitmix64-fold-v2`"),
        (r#"\"seed\":\"7\""#.into(), r#"\"seed\":\"x\""#.into(), "has seed `x`"),
        (r#"\"align\":16"#.into(), r#"\"align\":17"#.into(), "has alignment 17, expected 16 or 64"),
        (r#"\"n\":5552"#.into(), r#"\"n\":5553"#.into(), "says n = 5553, its tensors have 5552 weights"),
        (r#"\"m\":2776"#.into(), r#"\"m\":2777"#.into(), "has shape [2776], expected [2777]"),
        (r#"\"offset\":2400"#.into(), r#"\"offset\":2401"#.into(), "is said to begin at weight 2401, expected 2400"),
        (r#"\"shape\":[60,40]"#.into(), r#"\"shape\":[61,40]"#.into(), "its tensors have"),
        (r#"\"name\":\"up.weight\""#.into(), r#"\"name\":\"up.height\""#.into(), ""),
        (r#"\"version\":1"#.into(), r#"\"version\":2"#.into(), "is of version 2"),
        (r#"\"of\":\"embed.weight\""#.into(), r#"\"of\":\"embed.height\""#.into(), "which does not share"),
    ] {
        fs::write(&path, &good).unwrap();
        edit(&path, &from, &to);
        match SharedFile::open(&pool) {
            Err(error) => {
                let error = error.to_string();
                assert!(!part.is_empty() && error.contains(part) && error.contains(".safetensors"), "{to}: {error}");
                assert_eq!(error.lines().count(), 1);
            }
            // Another name contradicts nothing in the file; the dense model tells.
            Ok(file) => {
                assert!(part.is_empty(), "{to} was opened");
                let findings = verify(&file, Some(&source), &|_| {}).unwrap();
                assert!(findings.faults.iter().any(|fault| fault.contains("`up.weight` is missing")), "{findings:?}");
            }
        }
    }

    // What expands to something else is found out, and not written.
    let changed_sha = format!("{}{}", if up.starts_with('0') { '1' } else { '0' }, &up[1..]);
    for (from, to, tensors) in [
        (up.clone(), changed_sha, 1),
        (scale("up.weight"), "0x3f810000".into(), 1),
        (r#"\"seed\":\"7\""#.into(), r#"\"seed\":\"8\""#.into(), 3),
        // One of the two partitions happens to be turned by as much.
        (r#"\"align\":16"#.into(), r#"\"align\":64"#.into(), 2),
    ] {
        fs::write(&path, &good).unwrap();
        edit(&path, &from, &to);
        let file = SharedFile::open(&pool).unwrap();
        let findings = verify(&file, None, &|_| {}).unwrap();
        assert_eq!(findings.faults.len(), tensors, "{to}: {:?}", findings.faults);
        assert!(findings.faults.iter().all(|fault| fault.contains("expands to SHA-256") && !fault.contains('\n')));
        let out = folder.path().join("expanded");
        let error = expand(&file, &out, &mut |_, _| {}).unwrap_err().to_string();
        assert!(error.contains("expands to SHA-256") && !out.exists(), "{error}");
    }

    // A pool with a hole.
    let mut bytes = good;
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    bytes[data..data + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let error = SharedFile::open(&pool).unwrap().pool().unwrap_err().to_string();
    assert!(error.contains("`rps.psi` holds NaN in slot 0"), "{error}");
    let error = SharedFile::open(&folder.path().join("dense")).unwrap_err().to_string();
    assert!(error.contains("holds no pool that weights share"), "{error}");
}

#[test]
fn projections_that_cannot_be_are_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let source = model(&folder.path().join("dense"));
    let broken = {
        let mut values = normal(64 * 64, 1.0, 1);
        values[70] = f32::INFINITY;
        checkpoint(&folder.path().join("broken"), &[("a.weight", Dtype::F32, vec![64, 64], values)])
    };
    let out = folder.path().join("out");
    let include = |pattern: &str| Choice {
        filter: PathFilter::new(vec![pattern.into()], Vec::new()).unwrap(),
        ..Choice::default()
    };
    let good = options(2.0);
    for (source, options, part) in [
        (&source, Options { allow_lossy: false, ..good.clone() }, "not a usable model; pass --allow-lossy"),
        (&source, Options { size: Size::Slots(10_000), ..good.clone() }, "10000 slots is larger than the 5552 weights"),
        (&source, Options { size: Size::Rate(0.9), ..good.clone() }, "the rate is 0.9"),
        (&source, Options { choice: include("modle.*"), ..good.clone() }, "`modle.*` matches none of the 6 tensors"),
        (&source, Options { choice: include("norm.*"), ..good.clone() }, "no tensor is left to share"),
        (&source, Options { align: 8, ..good.clone() }, "the alignment is 8"),
        (&source, Options { psi_dtype: Dtype::I8, ..good.clone() }, "a pool cannot be stored in I8"),
        (&broken, Options { size: Size::Rate(0.9), ..good.clone() }, "the rate is 0.9"),
        (&broken, good, "tensor `a.weight` holds inf at index 70"),
    ] {
        let error = run(source, &out, &options).unwrap_err().to_string();
        assert!(error.contains(part) && error.lines().count() == 1, "{error}");
        assert!(!out.exists());
    }
}
