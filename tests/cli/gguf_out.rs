//! `convert` to a GGUF file.

use std::{
    fs,
    path::{Path, PathBuf},
};

use scruple_weights::{
    Checkpoint, Dtype, Shard,
    format::gguf::{self, Gguf, dequantize},
};

use super::support::{Model, Place, json_file, numbers, values};
use crate::scruple;

/// The tiny model that the project ships: its tokenizer is one that GGUF knows.
fn tiny_world() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-world")
}

/// A model that `change` has been at, with the shipped tokenizer (1024 tokens).
fn model(place: &Place, change: impl FnOnce(Model) -> Model) -> PathBuf {
    let mut model = Model::sized(2, 64, 96).config("vocab_size", 1024);
    for (name, shape, numbers) in &mut model.tensors {
        if name == "model.embed_tokens.weight" || name == "lm_head.weight" {
            *shape = vec![1024, 64];
            *numbers = values(name, 1024 * 64);
        }
    }
    let folder = change(model).write(place.path("model"));
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(tiny_world().join(name), folder.join(name)).unwrap();
    }
    folder
}

fn open(path: &Path) -> Gguf {
    gguf::read(&Shard::open(path).unwrap()).unwrap()
}

fn decoded(file: &Gguf, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).unwrap();
    let mut out = vec![0.0; tensor.elements()];
    dequantize(tensor.dtype(), tensor.bytes(), &mut out);
    out
}

#[test]
fn a_folder_comes_back_from_gguf_and_makes_the_same_file_again() {
    let place = Place::new();
    let (first, folder, second) = (place.out("a.gguf"), place.out("folder"), place.out("b.gguf"));
    let run = scruple!["convert", tiny_world(), "-o", first, "--json"].succeeds();
    let summary: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(
        (&summary["architecture"], &summary["dtype"], &summary["tensors"], &summary["bytes"]),
        (&"llama".into(), &"BF16, F32".into(), &29.into(), &fs::metadata(&first).unwrap().len().into())
    );
    scruple!["convert", first, "-o", folder, "--dtype bf16"].succeeds();
    let (before, after) = (Checkpoint::open(tiny_world()).unwrap(), Checkpoint::open(&folder).unwrap());
    assert_eq!(before.tensors().len(), after.tensors().len());
    for view in before.tensors() {
        let back = after.tensor(view.name()).unwrap();
        assert_eq!((view.shape(), view.bytes()), (back.shape(), back.bytes()), "{}", view.name());
    }
    for key in ["hidden_size", "rope_theta", "rms_norm_eps", "eos_token_id", "tie_word_embeddings", "head_dim"] {
        let read = |folder: &Path| json_file(&folder.join("config.json"))[key].clone();
        assert_eq!(read(&tiny_world()), read(&folder), "{key}");
    }
    scruple!["convert", folder, "-o", second, "--threads 1"].succeeds();
    assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());
    scruple!["convert", first, "-o", place.out("c.gguf")].refuses(&["a.gguf", "is GGUF already", "to a folder first"]);
    scruple!["convert", folder, "-o", second].refuses(&["b.gguf", "exists already"]);
}

#[test]
fn every_type_is_written_read_and_answers() {
    let place = Place::new();
    let prompt = "The capital of";
    let answer =
        |folder: &Path| scruple!["generate", folder, "--prompt", prompt.to_owned(), "--max-tokens 8"].succeeds().stdout;
    let dense = answer(&tiny_world());
    for (dtype, stored, same) in [
        ("f16", Dtype::F16, true),
        ("f32", Dtype::F32, true),
        ("q8_0", Dtype::Q8_0, true),
        ("q6_k", Dtype::Q6K, false),
        ("q5_k", Dtype::Q5K, false),
        ("q5_0", Dtype::Q5_0, false),
        ("q5_1", Dtype::Q5_1, false),
        ("q4_k", Dtype::Q4K, false),
        ("q4_0", Dtype::Q4_0, false),
        ("q4_1", Dtype::Q4_1, false),
        ("q3_k", Dtype::Q3K, false),
        ("q2_k", Dtype::Q2K, false),
    ] {
        let file = place.out(&format!("{dtype}.gguf"));
        scruple!["convert", tiny_world(), "-o", file, "--dtype", dtype].succeeds();
        let gguf = open(&file);
        assert_eq!(gguf.tensor("token_embd.weight").unwrap().dtype(), stored);
        assert_eq!(gguf.tensor("blk.0.attn_norm.weight").unwrap().dtype(), Dtype::F32);
        let (written, wanted) =
            (decoded(&gguf, "blk.1.ffn_down.weight"), numbers(&tiny_world(), "model.layers.1.mlp.down_proj.weight"));
        let power: f32 = wanted.iter().map(|x| x * x).sum();
        let error: f32 = written.iter().zip(&wanted).map(|(x, y)| (x - y) * (x - y)).sum();
        // Two bits leave about a ninth of the power of weights like these; all others less.
        assert!(error <= 0.13 * power, "{dtype}: {error} of {power}");
        if same {
            let folder = place.out(&format!("{dtype}-folder"));
            scruple!["convert", file, "-o", folder].succeeds();
            assert_eq!(answer(&folder), dense, "{dtype}");
        }
    }
    // A mixture spends more on the output, which is the embedding here.
    let file = place.out("mixed.gguf");
    scruple!["convert", tiny_world(), "-o", file, "--dtype q4_k_m"].succeeds();
    let dtype = |name: &str| open(&file).tensor(name).unwrap().dtype();
    assert_eq!((dtype("token_embd.weight"), dtype("blk.0.attn_q.weight")), (Dtype::Q6K, Dtype::Q4K));
}

#[test]
fn rows_that_fill_no_blocks_get_another_type_and_are_counted() {
    let place = Place::new();
    let model = model(&place, |model| model);
    let file = place.out("k.gguf");
    // Rows of 64 and 96: no blocks of 256, but blocks of 32.
    let run = scruple!["convert", model, "-o", file, "--dtype q4_k --json"].succeeds();
    assert!(
        run.stderr.contains("16 tensors have rows that fill no whole blocks, and another type: 16 Q4_K as Q5_0"),
        "{}",
        run.stderr
    );
    let summary: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(summary["fallbacks"], serde_json::json!({ "Q4_K as Q5_0": 16 }));
    assert_eq!(open(&file).tensor("blk.0.ffn_down.weight").unwrap().dtype(), Dtype::Q5_0);
}

#[test]
fn codes_of_a_packed_linear_move_as_they_are() {
    let place = Place::new();
    let model = model(&place, |model| model.dtype(Dtype::F16));
    for (format, bits, dtype, stored) in [
        ("compressed-tensors", "4", "q4_0", Dtype::Q4_0),
        ("gptq", "4", "q4_0", Dtype::Q4_0),
        ("gptq", "8", "q8_0", Dtype::Q8_0),
    ] {
        let (packed, file) = (place.out(&format!("{format}-{bits}")), place.out(&format!("{format}-{bits}.gguf")));
        scruple![
            "compress",
            model,
            "-o",
            packed,
            "--method rtn --group-size 32 --no-speed --bits",
            bits,
            "--format",
            format
        ]
        .succeeds();
        let run = scruple!["convert", packed, "-o", file, "--dtype", dtype, "--json"].succeeds();
        let summary: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(summary["packed_linears_moved_exactly"], 14, "{format} {bits}");
        let gguf = open(&file);
        // The value is that of the packed weight to the last bit, rows in the folder's order for all but Q and K.
        let checkpoint = Checkpoint::open(&packed).unwrap();
        let quantization = scruple_compress::export::detect(&checkpoint).unwrap().unwrap();
        for (ours, theirs) in [("blk.1.ffn_down", "mlp.down_proj"), ("blk.1.attn_q", "self_attn.q_proj")] {
            let linear = format!("model.layers.1.{theirs}");
            let q = scruple_compress::export::decode(&checkpoint, &linear, &quantization).unwrap();
            assert_eq!(gguf.tensor(&format!("{ours}.weight")).unwrap().dtype(), stored);
            let found = decoded(&gguf, &format!("{ours}.weight"));
            let mut row = vec![0.0; q.shape().1];
            for (at, found) in found.chunks(q.shape().1).enumerate() {
                let within = at % 16;
                let turned = at - within + within % 2 * 8 + within / 2;
                q.dequantize_row(if theirs.contains("q_proj") { turned } else { at }, &mut row);
                assert_eq!(found, row, "{linear}: row {at}");
            }
        }
    }
}

#[test]
fn what_cannot_be_written_is_refused_in_a_sentence_and_nothing_is_left() {
    let place = Place::new();
    let name = "model.layers.1.self_attn.q_proj.weight";
    let bad = model(&place, |model| model.set(name, 64 * 5 + 3, f32::NAN));
    let file = place.out("bad.gguf");
    scruple!["convert", bad, "-o", file, "--dtype q4_0 --allow-nonfinite"].refuses(&[name, "NaN", "element 323"]);
    scruple!["convert", bad, "-o", file, "--dtype f16"].refuses(&[name, "NaN", "element 323", "--allow-nonfinite"]);
    scruple!["convert", bad, "-o", place.out("folder"), "--dtype q4_0"]
        .refuses(&["a folder cannot hold q4_0", ".gguf"]);
    assert_eq!(place.results(), [""; 0]);
    scruple!["convert", bad, "-o", file, "--dtype f16 --allow-nonfinite"].succeeds();

    let place = Place::new();
    let large = model(&place, |model| model.set(name, 64 * 5 + 3, 1e6));
    scruple!["convert", large, "-o", place.out("large.gguf"), "--dtype f16"].refuses(&[
        name,
        "F16 cannot hold",
        "1e6",
        "element 323",
    ]);
    fs::remove_file(large.join("tokenizer.json")).unwrap();
    scruple!["convert", large, "-o", place.out("large.gguf")].refuses(&["tokenizer.json", "is missing"]);

    let place = Place::new();
    let other = model(&place, |model| model.config("model_type", "falcon"));
    scruple!["convert", other, "-o", place.out("other.gguf")]
        .refuses(&["config.json", "`falcon` cannot be written as GGUF"]);
    assert_eq!(place.results(), [""; 0]);
}
