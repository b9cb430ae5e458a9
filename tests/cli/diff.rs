//! `diff`: what was done to a model is said in a sentence, listed, recorded and drawn.

use scruple_weights::Dtype;

use crate::{
    scruple,
    support::{Model, Place, assert_same_files, json_file, names, values},
};

#[test]
fn a_model_equals_itself_and_its_copy_in_another_type() {
    let place = Place::new();
    let a = Model::tiny().write(place.path("a"));
    let same = scruple!["diff --exit-code", a, a].succeeds();
    assert!(same.stdout.starts_with("A and B are equal: 21 tensors, bit for bit\n"), "{}", same.stdout);
    let b = Model::tiny().dtype(Dtype::Bf16).write(place.path("b"));
    let typed = scruple!["diff", a, b].succeeds();
    assert!(typed.stdout.starts_with("B is A rounded to BF16: 21 of 21 tensors"), "{}", typed.stdout);
    let typed = scruple!["diff --exit-code", a, b];
    assert_eq!(typed.code, Some(1), "{typed:#?}");
}

#[test]
fn every_export_of_a_quantised_model_reads_as_its_copy() {
    let place = Place::new();
    let model = Model::sized(2, 128, 192).write(place.path("model"));
    for format in ["gptq", "compressed-tensors", "dense"] {
        for (bits, options) in [(4, ""), (4, "--asymmetric"), (8, "")] {
            let out = place.out(&format!("{format}{bits}{options}"));
            let bits = bits.to_string();
            let method = "--no-speed --method rtn --group-size 32";
            scruple!["compress", model, method, options, "--bits", bits, "--format", format, "-o", out].succeeds();
            let found = scruple!["diff --json", model, out].json();
            assert_eq!(found["verdict"], "quantised", "{format} {options}: {}", found["sentence"]);
            let sentence = found["sentence"].as_str().unwrap();
            assert!(sentence.starts_with(&format!("B is a {bits}-bit group-32")), "{sentence}");
            assert!(sentence.contains("14 of 21 tensors rounded") && sentence.contains("7 equal"), "{sentence}");
            let tensors = found["tensors"].as_array().unwrap();
            let quantised: Vec<_> = tensors.iter().filter(|t| t["change"]["kind"] == "quantised").collect();
            assert_eq!(quantised.len(), 14);
            for tensor in quantised {
                let nearest = tensor["change"]["nearest"].as_f64().unwrap();
                assert!(nearest > 0.99, "{format} {options}: {tensor:#}");
            }
            assert!(found["missing"].as_array().unwrap().is_empty() && found["added"].as_array().unwrap().is_empty());
        }
    }
}

#[test]
fn a_merged_adapter_is_listed_by_module() {
    let place = Place::new();
    let a = Model::sized(3, 64, 96).write(place.path("a"));
    let mut tuned = Model::sized(3, 64, 96);
    for block in 0..3 {
        tuned = tuned.edit(&format!("model.layers.{block}.self_attn.o_proj.weight"), |w| {
            let (up, down) = (values(&format!("up {block}"), 64 * 3), values("down", 3 * 64));
            for (at, w) in w.iter_mut().enumerate() {
                *w += (0..3).map(|r| 0.01 * up[at / 64 * 3 + r] * down[r * 64 + at % 64]).sum::<f32>();
            }
        });
    }
    let b = tuned.write(place.path("b"));
    let found = scruple!["diff", a, b].succeeds();
    assert!(
        found.stdout.starts_with("B is A with a merged LoRA of rank 3 on o_proj: 3 of 30 tensors"),
        "{}",
        found.stdout
    );
    let line = found.stdout.lines().find(|line| line.starts_with("self_attn.o_proj.weight")).unwrap();
    assert!(line.contains("0–2") && line.contains("low-rank change") && line.contains("rank 3"), "{line}");
    let all = scruple!["diff --all", a, b].succeeds();
    assert!(all.stdout.contains("model.layers.2.self_attn.o_proj.weight"), "{}", all.stdout);
    assert!(all.stdout.lines().count() > found.stdout.lines().count() + 15);
}

#[test]
fn records_and_pictures_are_the_same_for_any_threads() {
    let place = Place::new();
    let a = Model::tiny().write(place.path("a"));
    let b = Model::sized(3, 64, 96).without("lm_head.weight").set("model.norm.weight", 3, 0.5).write(place.path("b"));
    for threads in ["1", "2"] {
        scruple!["diff --threads", threads, a, b, "-o", place.out(threads)].succeeds();
    }
    assert_same_files(&place.out("1"), &place.out("2"));
    assert_eq!(names(&place.out("1")), ["diff.json", "diff.png", "diff.svg", "run.json"]);
    let record = json_file(&place.out("1").join("diff.json"));
    assert_eq!(record["blocks"][0]["added"][0], 2, "{record:#}");
    assert_eq!(record["missing"][0]["name"], "lm_head.weight");
    for word in ["seconds", "threads", "/tmp"] {
        assert!(!record.to_string().contains(word), "{word}");
    }
}

#[test]
fn what_is_no_checkpoint_is_refused_and_damaged_codes_are_named() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    scruple!["diff", model, place.path("nowhere")].refuses(&["nowhere", "cannot open"]);
    let out = place.out("out");
    scruple!["compress", model, "--method rtn --group-size 32 --format gptq -o", out, "--no-speed"].succeeds();
    // Its scales end up as no scales at all.
    let file = out.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let scales = "model.layers.1.mlp.up_proj.scales";
    let start = 8 + length + header[scales]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[start..start + 2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    scruple!["diff", model, out].refuses(&[scales]);
    // A method that is not read is compared as stored, and that is said.
    let config = std::fs::read_to_string(out.join("config.json")).unwrap();
    std::fs::write(out.join("config.json"), config.replace("\"gptq\"", "\"exl2\"")).unwrap();
    let raw = scruple!["diff --json", model, out].succeeds();
    assert!(
        raw.stderr.contains("warning: B is compared as it is stored") && raw.stderr.contains("exl2"),
        "{}",
        raw.stderr
    );
    assert!(raw.stdout.contains("\"undecoded\""), "{}", raw.stdout);
}
