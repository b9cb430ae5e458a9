//! Whatever is wrong with what the program is given: exit code 2, one sentence that says what and what to do, nothing
//! left behind.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use scruple_weights::Dtype;
use serde_json::{Value, json};

use crate::{
    arguments,
    gguf_writer::Writer,
    scruple,
    support::{self, Model, Place, Run, copy_folder, json_file, names, program, text, values},
};

const UP: &str = "model.layers.1.mlp.up_proj.weight";

/// `scruple compress MODEL -o OUT`, by rtn in groups of 32 where the options say nothing else, is refused with these
/// words, and leaves nothing.
#[track_caller]
fn compress_refuses(place: &Place, model: &Path, options: &[OsString], words: &[&str]) {
    let mut arguments = arguments!["compress", model, "-o", place.out("out")];
    for (option, value) in [("--group-size", "32"), ("--method", "rtn")] {
        if !options.iter().any(|given| given == option || given == "--recipe") {
            arguments.extend(arguments![option, value]);
        }
    }
    arguments.extend_from_slice(options);
    support::run(&arguments).refuses(words);
    assert_eq!(place.results(), [""; 0], "left behind");
}

// Files that are damaged or something else.

/// A safetensors file of `header`, the length of which is `length`, and data.
fn safetensors(header: &str, length: u64, data: usize) -> Vec<u8> {
    [&length.to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

/// What may stand under the name of a weights file, and the words of its refusal.
fn damaged(good: &[u8]) -> Vec<(&'static str, Vec<u8>, &'static [&'static str])> {
    let header = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let entry = |name: &str, begin: usize, end: usize| {
        format!(r#""{name}":{{"dtype":"F32","shape":[{}],"data_offsets":[{begin},{end}]}}"#, (end - begin) / 4)
    };
    let overlapping = format!("{{{},{}}}", entry("a", 0, 16), entry("b", 8, 24));
    let mut flipped = good.to_vec();
    flipped[9] ^= 0x80;
    vec![
        ("empty", vec![], &["empty (0 bytes)"]),
        ("five bytes", good[..5].to_vec(), &["truncated", "fetch it again"]),
        (
            "cut in the header",
            good[..8 + header / 2].to_vec(),
            &["are missing: the file is truncated", "fetch it again"],
        ),
        ("cut in the data", good[..good.len() - 100].to_vec(), &["100", "truncated"]),
        ("flipped bit", flipped, &["header is not UTF-8", "damaged"]),
        ("huge header", safetensors("{", u64::MAX / 2, 100), &["the header claims 9223372036854775807 bytes"]),
        ("large header", safetensors("{", 1 << 26, 100), &["the header should have 67108864 bytes"]),
        ("overlap", safetensors(&overlapping, overlapping.len() as u64, 24), &["`b`", "overlaps `a`"]),
        ("no tensors", safetensors("{}", 2, 0), &["is missing"]),
        (
            "LFS pointer",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 269060552\n".to_vec(),
            &["git-LFS pointer", "269060552", "git lfs pull"],
        ),
        ("web page", b"<!DOCTYPE html>\n<html><body>Sign in</body></html>".to_vec(), &["web page (HTML)", "download"]),
        ("pickle", b"PK\x03\x04archive/data.pkl".to_vec(), &["zip archive", "truncated", "fetch it again"]),
        ("GGUF", b"GGUF\x03\0\0\0".to_vec(), &["number of tensors", "truncated"]),
    ]
}

#[test]
fn damaged_safetensors_are_refused_by_every_verb() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let text = place.text("text", 100);
    scruple!["compress", model, "--method rtn --group-size 32 -o", place.path("packed")].succeeds();
    let packed = place.path("packed");
    let good = fs::read(model.join("model.safetensors")).unwrap();
    for (name, bytes, words) in damaged(&good) {
        let words = [&["model"], words].concat();
        for folder in [&model, &packed] {
            fs::write(folder.join("model.safetensors"), &bytes).unwrap();
        }
        let out = place.out("out");
        compress_refuses(&place, &model, &[], &words);
        compress_refuses(&place, &model, &arguments!["--method gptq --calibration", text], &words);
        compress_refuses(&place, &model, &arguments!["--dry-run"], &words);
        scruple!["eval", model, "--text", text, "-o", out].refuses(&words);
        scruple!["eval", packed, "--against", model, "--text", text, "-o", out].refuses(&["model"]);
        scruple!["generate", model, "--prompt w1 -o", out].refuses(&words);
        scruple!["convert", model.join("model.safetensors"), "-o", out].refuses(&["model.safetensors"]);
        if name != "no tensors" {
            scruple!["verify", packed, "-o", out].refuses(&words);
        }
        assert_eq!(place.results(), [""; 0], "{name} left something behind");
    }
}

#[test]
fn a_flipped_bit_anywhere_in_a_header_is_refused_or_harmless() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let file = model.join("model.safetensors");
    let good = fs::read(&file).unwrap();
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    for (number, x) in values("flips", 60).into_iter().enumerate() {
        let at = if number < 8 { number } else { ((x + 1.0) / 2.0 * header as f32) as usize };
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (number % 8);
        fs::write(&file, bytes).unwrap();
        let run = scruple!["generate", model, "--prompt w1 --max-tokens 1"];
        if run.code != Some(0) {
            run.refuses(&["model"]);
        }
    }
}

/// A model in GGUF that converts: no blocks are too few to be one, so it has one.
fn gguf() -> Writer {
    let tokens = ["<|end|>", "a", "b", "c", "Ġ", "ab", "Ġa", "<|user|>"];
    let mut writer = Writer::new()
        .string("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 64)
        .u32("llama.embedding_length", 32)
        .u32("llama.feed_forward_length", 64)
        .u32("llama.attention.head_count", 2)
        .u32("llama.attention.head_count_kv", 2)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .f32("llama.rope.freq_base", 1e4)
        .string("tokenizer.ggml.model", "gpt2")
        .string("tokenizer.ggml.pre", "smollm")
        .strings("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &[3, 1, 1, 1, 1, 1, 1, 4])
        .strings("tokenizer.ggml.merges", &["a b", "Ġ a"])
        .u32("tokenizer.ggml.eos_token_id", 0);
    for (name, shape) in [
        ("token_embd", &[8, 32][..]),
        ("blk.0.attn_norm", &[32]),
        ("blk.0.attn_q", &[32, 32]),
        ("blk.0.attn_k", &[32, 32]),
        ("blk.0.attn_v", &[32, 32]),
        ("blk.0.attn_output", &[32, 32]),
        ("blk.0.ffn_norm", &[32]),
        ("blk.0.ffn_gate", &[64, 32]),
        ("blk.0.ffn_up", &[64, 32]),
        ("blk.0.ffn_down", &[32, 64]),
        ("output_norm", &[32]),
    ] {
        writer = writer.floats(&format!("{name}.weight"), shape, &values(name, shape.iter().product()));
    }
    writer
}

/// `gguf` with element 70 of one tensor set to `value`.
fn gguf_with(value: f32) -> Writer {
    let mut numbers = values("blk.0.attn_q", 32 * 32);
    numbers[70] = value;
    gguf().without_tensor("blk.0.attn_q.weight").floats("blk.0.attn_q.weight", &[32, 32], &numbers)
}

#[test]
fn damaged_gguf_files_are_refused_by_every_verb() {
    let place = Place::new();
    let text = place.text("text", 100);
    let good = gguf().build();
    let file = place.file("good.gguf", &good);
    scruple!["convert", file, "-o", place.path("converted")].succeeds();
    scruple!["generate", place.path("converted"), "--prompt ab --max-tokens 2"].succeeds();
    let overlapping = {
        let mut writer = gguf();
        writer.tensors[3].offset = Some(32);
        writer.build()
    };
    let mut many = gguf();
    many.n_tensors = Some(u64::MAX / 2);
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("empty", vec![], &["empty"]),
        ("three bytes", good[..3].to_vec(), &[]),
        ("cut in the header", good[..300].to_vec(), &["truncated"]),
        ("cut in the data", good[..good.len() - 100].to_vec(), &["truncated"]),
        ("huge counts", many.build(), &["9223372036854775807", "tensors"]),
        ("overlap", overlapping, &["blk.0.attn_k.weight", "within those of"]),
        ("no tensors", Writer::new().string("general.architecture", "llama").build(), &[]),
        ("architecture", gguf().string("general.architecture", "mamba").build(), &["mamba", "llama"]),
        ("missing tensor", gguf().without_tensor("blk.0.ffn_up.weight").build(), &["ffn_up"]),
        ("wrong shape", gguf().u32("llama.feed_forward_length", 96).build(), &["ffn_", "64", "96"]),
        ("NaN", gguf_with(f32::NAN).build(), &["blk.0.attn_q.weight", "NaN", "element"]),
        ("infinity", gguf_with(f32::INFINITY).build(), &["blk.0.attn_q.weight", "inf", "element"]),
        ("too large for f16", gguf_with(1e6).build(), &["blk.0.attn_q.weight", "float16 cannot hold", "--dtype"]),
        ("web page", b"<html>Sign in</html>".to_vec(), &["HTML"]),
        ("LFS pointer", b"version https://git-lfs.github.com/spec/v1\nsize 12\n".to_vec(), &["git lfs pull"]),
    ];
    for (name, bytes, words) in cases {
        let file = place.file("model.gguf", &bytes);
        let out = place.out("out");
        scruple!["convert", file, "-o", out].refuses(&[&["model.gguf"], words].concat());
        compress_refuses(&place, &file, &[], &[]);
        scruple!["eval", file, "--text", text, "-o", out].refuses(&[]);
        scruple!["generate", file, "--prompt a -o", out].refuses(&[]);
        assert_eq!(place.results(), [""; 0], "{name} left something behind");
    }
    let folder = place.path("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("model.gguf"), &good).unwrap();
    compress_refuses(&place, &folder, &[], &["GGUF", "scruple convert"]);
    let exists = place.path("converted");
    scruple!["convert", file, "-o", exists].refuses(&["converted", "exists already"]);
    scruple!["convert", place.path("nothing.gguf"), "-o", place.out("out")].refuses(&["nothing.gguf", "No such file"]);
}

#[test]
fn a_flipped_bit_anywhere_in_a_gguf_header_is_refused_or_harmless() {
    let place = Place::new();
    let good = gguf().build();
    for (number, x) in values("gguf flips", 60).into_iter().enumerate() {
        let at = if number < 24 { number } else { ((x + 1.0) / 2.0 * 1300.0) as usize };
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (number % 8);
        let file = place.file("model.gguf", &bytes);
        let out = place.out("out");
        let run = scruple!["convert", file, "-o", out];
        match run.code {
            Some(0) => fs::remove_dir_all(&out).unwrap(),
            _ => _ = run.refuses(&["model.gguf"]),
        }
        assert_eq!(place.results(), [""; 0], "bit {} of byte {at}", number % 8);
    }
}

// Models that are not what their configuration says, or hold what cannot be.

#[test]
fn tensors_that_contradict_the_configuration_are_named() {
    let place = Place::new();
    let text = place.text("text", 100);
    let tiny = Model::tiny;
    let cases: Vec<(Model, &[&str])> = vec![
        (tiny().without(UP), &[UP, "is missing"]),
        (tiny().without("model.norm.weight"), &["model.norm.weight", "is missing"]),
        (tiny().without("lm_head.weight"), &["lm_head.weight", "is missing"]),
        (tiny().without("model.embed_tokens.weight"), &["model.embed_tokens.weight", "is missing"]),
        (tiny().without("model.layers.0.input_layernorm.weight"), &["layers.0.input_layernorm", "is missing"]),
        (tiny().config("num_hidden_layers", 3), &["model.layers.2.", "is missing"]),
        (tiny().shape(UP, &[96, 32]), &[UP, "[96, 32]", "[96, 64]", "config.json"]),
        (tiny().shape(UP, &[96 * 64]), &[UP, "[6144]", "[96, 64]"]),
        (tiny().shape("model.norm.weight", &[63]), &["model.norm.weight", "[63]", "[64]"]),
        (tiny().config("intermediate_size", 128), &["gate_proj", "[96, 64]", "[128, 64]"]),
        (tiny().config("vocab_size", 1000), &["embed_tokens", "[64, 64]", "[1000, 64]"]),
        (tiny().config("num_key_value_heads", 4), &["k_proj", "[32, 64]", "[64, 64]"]),
        (tiny().config("num_key_value_heads", 3), &["config.json", "not a multiple", "3"]),
        (tiny().config("head_dim", 17), &["config.json", "17 is odd"]),
        (tiny().config("hidden_size", 0), &["config.json", "`hidden_size`", "a positive whole number, found 0"]),
        (tiny().config("hidden_size", "64"), &["config.json", "`hidden_size`", "found \"64\""]),
        (tiny().config("hidden_size", 1u64 << 32), &["[", "4294967296"]),
        (tiny().config("num_hidden_layers", Value::Null), &["config.json", "`num_hidden_layers` is missing"]),
        (tiny().config("hidden_act", "gelu"), &["config.json", "`hidden_act` should be \"silu\", found \"gelu\""]),
        (tiny().config("rope_scaling", json!({ "rope_type": "spiral" })), &["config.json", "`spiral`", "yarn"]),
        (
            tiny().config("rope_scaling", json!({ "rope_type": "longrope" })),
            &["config.json", "`short_factor` is missing"],
        ),
        (tiny().config("attention_bias", true), &["q_proj.bias", "is missing"]),
        (tiny().config("quantization_config", json!({ "quant_method": "exl2" })), &["config.json", "exl2", "gptq"]),
    ];
    for (number, (model, words)) in cases.into_iter().enumerate() {
        let model = model.write(place.path(&format!("model-{number}")));
        compress_refuses(&place, &model, &[], words);
        scruple!["eval", model, "--text", text].refuses(words);
        scruple!["generate", model, "--prompt w1"].refuses(words);
    }
    // Families that do not run can still be rounded by names; all that needs them to run is refused.
    let unknown: [(Model, &[&str]); 2] = [
        (tiny().config("model_type", "bloom"), &["config.json", "`bloom`", "llama, mistral, qwen2, qwen3"]),
        (tiny().config("model_type", Value::Null), &["config.json"]),
    ];
    for (number, (model, words)) in unknown.into_iter().enumerate() {
        let model = model.write(place.path(&format!("unknown-{number}")));
        compress_refuses(&place, &model, &arguments!["--method gptq --calibration", text], words);
        compress_refuses(&place, &model, &arguments!["--text", text], words);
        scruple!["eval", model, "--text", text].refuses(words);
        scruple!["generate", model, "--prompt w1"].refuses(words);
    }
    let model = tiny().write(place.path("model"));
    for (config, word) in [("[1, 2]", "not a JSON object"), ("{\"a\":", "not valid JSON"), ("", "not valid JSON")] {
        fs::write(model.join("config.json"), config).unwrap();
        compress_refuses(&place, &model, &[], &["config.json", word]);
    }
    fs::remove_file(model.join("config.json")).unwrap();
    let words = ["config.json", "configuration is missing"];
    compress_refuses(&place, &model, &arguments!["--method gptq --calibration", text], &words);
    // Weights alone can be rounded.
    scruple!["compress", model, "--method rtn --group-size 32 --no-speed -o", place.out("alone")].succeeds();
    scruple!["verify", place.out("alone"), "--against", model].succeeds();
}

#[test]
fn weights_that_are_not_finite_are_named_with_their_element() {
    let place = Place::new();
    let calibration = place.text("text", 200);
    for (number, (tensor, at, value)) in [
        ("model.layers.1.mlp.up_proj.weight", 70, f32::NAN),
        ("model.layers.0.self_attn.q_proj.weight", 0, f32::NAN),
        ("model.layers.0.self_attn.k_proj.weight", 9, f32::INFINITY),
        ("model.layers.1.self_attn.v_proj.weight", 2047, f32::NEG_INFINITY),
        ("model.layers.1.self_attn.o_proj.weight", 4095, f32::NAN),
        ("model.layers.1.mlp.gate_proj.weight", 6143, f32::NAN),
        ("model.layers.0.mlp.gate_proj.weight", 5, f32::NEG_INFINITY),
        ("model.layers.1.mlp.down_proj.weight", 1, f32::INFINITY),
        ("model.layers.0.post_attention_layernorm.weight", 63, f32::NAN),
        ("model.norm.weight", 7, f32::INFINITY),
        ("lm_head.weight", 100, f32::NAN),
    ]
    .into_iter()
    .enumerate()
    {
        let model = Model::tiny().set(tensor, at, value).write(place.path(&format!("model-{number}")));
        let (value, at) = (value.to_string(), format!("element {at}"));
        let words = [tensor, &value, &at];
        compress_refuses(&place, &model, &arguments!["--calibration", calibration], &words);
        let gptq = arguments!["--method gptq --seq-len 64 --calibration", calibration];
        compress_refuses(&place, &model, &gptq, &words);
        scruple!["eval", model, "--text", calibration, "-o", place.out("out")].refuses(&words);
        scruple!["generate", model, "--prompt", "w1 w2 w3".to_string(), "--json"].refuses(&words);
    }
}

#[test]
fn zero_rows_and_zero_matrices_are_compressed() {
    let place = Place::new();
    let text = place.text("text", 200);
    let zero = |numbers: &mut [f32]| numbers.fill(0.0);
    let model = Model::tiny()
        .edit("model.layers.0.self_attn.q_proj.weight", |numbers| numbers[5 * 64..6 * 64].fill(0.0))
        .edit("model.layers.0.mlp.gate_proj.weight", zero)
        .edit("model.layers.1.self_attn.o_proj.weight", zero)
        .edit("model.layers.1.mlp.down_proj.weight", |numbers| numbers[..32].fill(0.0))
        .write(place.path("model"));
    let bf16 = Model::tiny().dtype(Dtype::Bf16).edit("model.layers.1.mlp.up_proj.weight", zero);
    let bf16 = bf16.write(place.path("bf16"));
    // Every hidden state is zero, and so is every Hessian.
    let nothing = Model::tiny().edit("model.embed_tokens.weight", zero).write(place.path("nothing"));
    for model in [&model, &bf16, &nothing] {
        for (number, options) in [
            "--method gptq --bits 4",
            "--method gptq --bits 8 --format compressed-tensors",
            "--method rtn --bits 2",
            "--method rtn --bits 3 --format dense",
            "--method rtn --bits 4 --format compressed-tensors",
        ]
        .into_iter()
        .enumerate()
        {
            for asymmetric in ["", "--asymmetric"] {
                let name = model.file_name().unwrap().to_string_lossy().into_owned();
                let out = place.out(&format!("{name}{number}{asymmetric}"));
                let fixed = "--group-size 32 --seq-len 32 --no-speed --calibration";
                scruple!["compress", model, options, asymmetric, fixed, text, "--text", text, "-o", out].succeeds();
                let perplexity = json_file(&out.join("eval.json"))["perplexity"].as_f64().unwrap();
                assert!(perplexity.is_finite(), "{perplexity}");
            }
        }
    }
    let told = place.out("told");
    let run = scruple!["compress --group-size 32 --seq-len 32 --no-speed", nothing, "--calibration", text, "-o", told];
    assert!(run.stderr.contains("every calibration input was zero"), "{run:#?}");
}

#[test]
fn a_hessian_of_too_few_tokens_is_damped_and_the_report_says_so() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let text = place.text("text", 3);
    // Three tokens give a Hessian of rank three, of 64, and the recipe asks for no dampening.
    let recipe = place.file(
        "recipe.toml",
        "[[stage]]\nmethod = \"gptq\"\nparams = { group_size = 32, dampening = 0.0 }\n\
         [calibration]\nn_samples = 1\nseq_len = 3\n",
    );
    let out = place.out("out");
    let run = scruple!["compress", model, "--recipe", recipe, "--calibration", text, "--no-speed -o", out];
    let run = run.succeeds();
    assert!(run.stderr.contains("linears, first `model.layers.0.self_attn.q_proj`"), "{run:#?}");
    assert!(run.stderr.contains("with dampening 0, the Hessian was not positive definite at column"), "{run:#?}");
    for linear in json_file(&out.join("scruple.json"))["linears"].as_array().unwrap() {
        assert!(linear["dampening"].as_f64().unwrap() > 0.0, "{linear:#}");
        assert_eq!(linear["escalations"][0]["dampening"], 0.0, "{linear:#}");
    }
    scruple!["verify", out, "--against", model].succeeds();
}

// What is asked for.

#[test]
fn recipes_with_mistakes_are_refused_with_their_stage_and_field() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let text = place.text("text", 100);
    let good = "[[stage]]\nmethod = \"rtn\"\ntargets = [\"*.q_proj\"]\nparams = { group_size = 32 }\n";
    let second = |rest: &str| format!("{good}\n[[stage]]\n{rest}");
    let cases: Vec<(String, &[&str])> = vec![
        (second("method = \"gptq\"\nparams = { bitts = 4 }"), &["stage 2 (`gptq`)", "unknown field `bitts`", "`bits`"]),
        (second("method = \"gptq\"\n[stage.params]\nbits = \"4\""), &["stage 2 (`gptq`)", "string \"4\""]),
        (second("method = \"rtn\"\nparams = { bits = 5 }"), &["stage 2 (`rtn`)", "5 bits", "2, 3, 4"]),
        (second("method = \"gtpq\""), &["stage 2", "unknown method `gtpq`", "`rtn` or `hqq` or `gptq`"]),
        (second("method = \"rtn\"\ntragets = [\"*\"]"), &["line 8 (stage 2)", "unknown field `tragets`", "`targets`"]),
        (second("targets = [\"*\"]"), &["(stage 2)", "missing field `method`"]),
        (second("method = \"rtn\"\ntargets = \"*\""), &["line 8 (stage 2)", "expected a sequence"]),
        (second("method = \"rtn\"\ntargets = [\"*.qkv_proj\"]"), &["stage 2 (`rtn`)", "names no linear", "*.qkv_proj"]),
        (second("method = \"rtn\"\ntargets = [\"*.q_proj\"]"), &["stage 2 (`rtn`)", "earlier stages", "narrower"]),
        (second("method = \"rtn\"\ntargets = [\"[\"]"), &["stage 2 (`rtn`)", "`[`"]),
        (second("method = \"rtn\"\nparams = { group_size = 32, symmetric = false }"), &["symmetric and asymmetric"]),
        (second("method = \"gptq\"\nparams = { dampening = -1.0 }"), &["stage 2 (`gptq`)", "dampening is -1"]),
        (format!("{good}[export]\nformat = \"exl2\""), &["line 6", "unknown variant `exl2`", "`compressed-tensors`"]),
        (format!("{good}[calibration]\nsamples = 4"), &["line 6", "unknown field `samples`", "`n_samples`"]),
        (good.replace("[[stage]]", "[[stages]]"), &["line 1", "stage"]),
        (good.replace("= [", "= "), &["line 3"]),
        (String::new(), &["missing field `stage`"]),
        ("stage = []".into(), &["no stage", "`[[stage]]`"]),
    ];
    for (recipe, words) in cases {
        let file = place.file("recipe.toml", &recipe);
        compress_refuses(&place, &model, &arguments!["--recipe", file, "--calibration", text], words);
    }
    compress_refuses(&place, &model, &arguments!["--recipe", place.path("none.toml")], &["none.toml", "No such file"]);
    let binary = place.file("binary.toml", [0xff, 0xfe]);
    compress_refuses(&place, &model, &arguments!["--recipe", binary], &["binary.toml", "UTF-8"]);
    let recipe = place.file("recipe.toml", good);
    let run = scruple!["compress", model, "--recipe", recipe, "--bits 4 -o", place.out("out")];
    run.refuses_the_arguments(&["--recipe", "cannot be used with", "--bits"]);
}

#[test]
fn options_that_cannot_be_carried_out_are_refused_with_what_would_work() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let text = place.text("text", 100);
    let short = place.text("short", 20);
    const DOWN: &str = "`model.layers.0.mlp.down_proj`";
    compress_refuses(
        &place,
        &model,
        &arguments!["--method gtpq"],
        &["unknown method `gtpq`", "`rtn` or `hqq` or `gptq`"],
    );
    compress_refuses(
        &place,
        &model,
        &arguments!["--format exl2"],
        &["unknown format `exl2`", "`gptq`, `compressed-tensors`"],
    );
    compress_refuses(&place, &model, &arguments!["--bits 5"], &["5 bits", "2, 3, 4"]);
    compress_refuses(&place, &model, &arguments!["--group-size 64"], &[DOWN, "96", "groups of 64", "32, 48, 96"]);
    compress_refuses(&place, &model, &arguments!["--group-size 48"], &["q_proj`", "64", "48", "16, 32, 64"]);
    compress_refuses(
        &place,
        &model,
        &arguments!["--bits 3 --format compressed-tensors"],
        &["q_proj`", "4 or 8", "gptq"],
    );
    compress_refuses(&place, &model, &arguments!["--method gptq"], &["method `gptq`", "--calibration FILE"]);
    let long = ["short", "20 tokens", "shorter than one sequence of 512", "longer text", "sequence length"];
    compress_refuses(&place, &model, &arguments!["--method gptq --calibration", short], &long);
    for (option, found) in [("--n-samples", "0 of 512"), ("--seq-len", "128 of 0")] {
        compress_refuses(
            &place,
            &model,
            &arguments!["--method gptq --calibration", text, option, "0"],
            &["at least", found],
        );
    }
    compress_refuses(
        &place,
        &model,
        &arguments!["--text", text, "--max-tokens 0"],
        &["--max-tokens", "at least 1, found 0"],
    );
    compress_refuses(&place, &model, &arguments!["--threads 0"], &["--threads should be at least 1, found 0"]);
    // A width that the format cannot hold, whatever the group.
    let narrow = Model::sized(1, 64, 72).write(place.path("narrow"));
    compress_refuses(
        &place,
        &narrow,
        &arguments!["--group-size 8"],
        &["gate_proj`", "72 outputs", "multiple of 32", "dense"],
    );
    for (option, value) in [("--window", "0"), ("--max-tokens", "0"), ("--top-k", "0")] {
        let run = scruple!["eval", model, "--text", text, option, value, "-o", place.out("out")];
        run.refuses(&[option, "at least 1, found 0"]);
    }
    for (option, value) in [("--temperature", "-1"), ("--temperature", "nan"), ("--top-p", "0"), ("--top-p", "1.5")] {
        let value = format!("{option}={value}");
        scruple!["generate", model, "--prompt w1", value].refuses(&[option, "should"]);
    }
    scruple!["generate", model, "--prompt", String::new()].refuses(&["prompt has no tokens"]);
    scruple!["generate", model, "--prompt", support::text(200, 1)].refuses(&["200 tokens", "holds 128", "shorten"]);
    scruple!["generate", model, "--prompt w1 --chat"].refuses(&["chat template"]);
    scruple!["compress", model, "--bits four"].refuses_the_arguments(&["'four'", "--bits"]);
    scruple!["compress", model, "--bitts 4"].refuses_the_arguments(&["--bitts", "--bits"]);
    scruple!["eval", model].refuses_the_arguments(&["--text"]);
    scruple!["convert", model].refuses_the_arguments(&["--output"]);
    scruple!["compres"].refuses_the_arguments(&["compres", "compress"]);
    assert_eq!(place.results(), [""; 0]);
}

#[test]
fn an_output_that_exists_is_refused_and_not_touched() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let gguf = place.file("model.gguf", gguf().build());
    let folder = place.path("folder");
    fs::create_dir(&folder).unwrap();
    let file = place.file("file", "mine");
    let link = place.path("link");
    std::os::unix::fs::symlink(place.path("nowhere"), &link).unwrap();
    let before = names(&place.path("."));
    for out in [&folder, &file, &link] {
        let words = [out.file_name().unwrap().to_str().unwrap(), "exists already", "choose another name"];
        scruple!["compress", model, "--method rtn --group-size 32 -o", out].refuses(&words);
        scruple!["convert", gguf, "-o", out].refuses(&words);
    }
    assert_eq!(names(&place.path(".")), before);
    assert_eq!(fs::read(file).unwrap(), b"mine");
    assert_eq!(names(&folder), [""; 0]);
    scruple!["compress", model, "--method rtn --group-size 32 -o /"].refuses(&["/"]);
    let inside = place.path("file/inside");
    scruple!["compress", model, "--method rtn --group-size 32 -o", inside].refuses(&["file"]);
}

#[test]
fn texts_and_tokenizers_that_do_not_serve_are_refused_before_any_work() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let good = place.text("text", 100);
    let latin = place.file("latin", b"w1 w2 \xe9t\xe9");
    let empty = place.file("empty", "");
    let one = place.file("one", "w1");
    let gone = place.path("gone");
    let folder = place.path("folder");
    fs::create_dir(&folder).unwrap();
    for (file, words) in [
        (&latin, &["latin", "not UTF-8", "byte 6"][..]),
        (&gone, &["gone", "No such file"]),
        (&folder, &["folder", "cannot read the text"]),
        (&empty, &["empty", "0 tokens"]),
        (&one, &["one", "1 tokens"]),
    ] {
        scruple!["eval", model, "--text", file, "-o", place.out("out")].refuses(words);
        compress_refuses(&place, &model, &arguments!["--method gptq --calibration", file], words);
        compress_refuses(&place, &model, &arguments!["--text", file], words);
    }
    // A tokenizer that knows words the model has no embedding for.
    let mut foreign = Model::tiny();
    foreign.tokens = 100;
    let foreign = foreign.write(place.path("foreign"));
    let words = ["foreign", "token id 80", "vocabulary of 64", "do not belong together"];
    let inside = place.file("inside", format!("w80 {}", text(600, 1)));
    let last = place.file("last", format!("{} w80", text(599, 1)));
    for file in [&inside, &last] {
        scruple!["eval", foreign, "--text", file, "-o", place.out("out")].refuses(&words);
        let window = scruple!["eval", foreign, "--text", file, "--window 1 -o", place.out("out")];
        window.refuses(&words);
        compress_refuses(&place, &foreign, &arguments!["--method gptq --calibration", file], &words);
        compress_refuses(&place, &foreign, &arguments!["--text", file], &words);
    }
    scruple!["generate", foreign, "--prompt w80"].refuses(&words);
    // No tokenizer, or none that can be read.
    let tokenizer = model.join("tokenizer.json");
    for content in [None, Some("{"), Some("{\"model\": {\"type\": \"WordLevel\"}}"), Some("<html>")] {
        fs::remove_file(&tokenizer).unwrap();
        if let Some(content) = content {
            fs::write(&tokenizer, content).unwrap();
        }
        scruple!["eval", model, "--text", good].refuses(&["tokenizer.json"]);
        scruple!["generate", model, "--prompt w1"].refuses(&["tokenizer.json"]);
        compress_refuses(&place, &model, &arguments!["--method gptq --calibration", good], &["tokenizer.json"]);
        compress_refuses(&place, &model, &arguments!["--text", good], &["tokenizer.json"]);
        if content.is_none() {
            fs::write(&tokenizer, "").unwrap();
        }
    }
}

#[test]
fn what_is_no_dense_model_is_refused() {
    let place = Place::new();
    let text = place.text("text", 100);
    let model = Model::tiny().write(place.path("model"));
    for format in ["gptq", "compressed-tensors"] {
        let packed = place.path(format);
        scruple!["compress", model, "--method rtn --group-size 32 --format", format, "-o", packed].succeeds();
        compress_refuses(&place, &packed, &[], &[format, "quantised already", "dense original"]);
    }
    let folder = |name: &str, files: &[(&str, &str)]| -> PathBuf {
        let path = place.path(name);
        fs::create_dir(&path).unwrap();
        files.iter().for_each(|(file, content)| fs::write(path.join(file), content).unwrap());
        path
    };
    let pipe = place.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let looped = place.path("loop");
    std::os::unix::fs::symlink(&looped, &looped).unwrap();
    let shards = copy_folder(&model, place.path("shards"));
    fs::rename(shards.join("model.safetensors"), shards.join("model-00001-of-00002.safetensors")).unwrap();
    let climbing = folder(
        "climbing",
        &[("model.safetensors.index.json", r#"{"weight_map": {"a": "../model/model.safetensors"}}"#)],
    );
    let cases: [(PathBuf, &[&str]); 9] = [
        (place.path("no/such/model"), &["no/such/model", "No such file"]),
        (folder("bare", &[]), &["bare", "expected *.safetensors", "found none"]),
        (
            folder("torch", &[("pytorch_model.bin", "PK")]),
            &["torch", "pytorch_model.bin", "expected a PyTorch checkpoint"],
        ),
        (place.file("notes.txt", "some words about a model"), &["notes.txt"]),
        (pipe, &["pipe", "expected a regular file"]),
        (looped, &["loop"]),
        (PathBuf::from("/dev/null"), &["/dev/null"]),
        (shards, &["model-00002-of-00002.safetensors", "missing"]),
        (climbing, &["`a`", "../model/model.safetensors", "inside the checkpoint's folder"]),
    ];
    for (model, words) in cases {
        compress_refuses(&place, &model, &[], words);
        scruple!["eval", model, "--text", text].refuses(words);
        scruple!["generate", model, "--prompt w1"].refuses(words);
    }
    let other = Model::sized(1, 64, 96);
    let other = Model { tokens: 50, ..other }.write(place.path("other"));
    let run = scruple!["eval", model, "--against", other, "--text", text];
    run.refuses(&["other", "tokenizer or vocabulary differs"]);
}

// Disks.

#[test]
fn a_file_size_limit_is_an_error_that_leaves_nothing() {
    let place = Place::new();
    let model = Model::tiny().write(place.path("model"));
    let gguf = place.file("model.gguf", gguf().build());
    let text = place.text("text", 2000);
    let limited = |blocks: u32, arguments: &[OsString]| {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -f {blocks}; exec \"$0\" \"$@\"")).arg(program().get_program());
        Run::of(command.args(arguments))
    };
    let out = place.out("out");
    // In blocks of 512 bytes: the weights do not fit.
    let run = limited(16, &arguments!["compress", model, "--method rtn --group-size 32 -o", out]);
    run.refuses(&["model.safetensors", "bytes", "larger than this system or account allows", "make room"]);
    assert_eq!(place.results(), [""; 0]);
    let run = limited(16, &arguments!["convert", gguf, "-o", out]);
    run.refuses(&["model.safetensors", "bytes", "make room"]);
    assert_eq!(place.results(), [""; 0]);
    // The weights fit, the activations do not: there is work to go on from.
    let options = "--group-size 32 --n-samples 20 --seq-len 100 --no-speed --calibration";
    let gptq = arguments!["compress", model, options, text, "-o", out];
    let run = limited(400, &gptq);
    run.refuses(&["activations", "larger than this system or account allows", "make room"]);
    assert_eq!(place.results(), [".out.partial"]);
    support::run(&gptq).succeeds();
    assert_eq!(place.results(), ["out"]);
    scruple!["verify", out, "--against", model].succeeds();
    // No room for a record either.
    let run = limited(0, &arguments!["eval", model, "--text", text, "-o", place.out("records")]);
    run.refuses(&["eval.json", "cannot write"]);
}

/// A real file system of 256 kB, where this account may mount one.
#[test]
#[allow(clippy::print_stdout, reason = "a test says what it could not try")]
fn a_full_disk_is_an_error_that_leaves_nothing() {
    struct Mount(PathBuf);
    impl Drop for Mount {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(&self.0).status();
        }
    }
    let place = Place::new();
    let disk = place.path("disk");
    fs::create_dir(&disk).unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "none"]).arg(&disk).output();
    if !mount.is_ok_and(|mount| mount.status.success()) {
        println!("skipped: this account may not mount a small disk; a limit on files takes its place above");
        return;
    }
    let _mount = Mount(disk.clone());
    let model = Model::tiny().dtype(Dtype::F32).write(place.path("model"));
    let text = place.text("text", 2000);
    let out = disk.join("out");
    // Too little from the start.
    let run = scruple!["compress", model, "--method rtn --group-size 32 --format dense -o", out];
    run.refuses(&["too full", "bytes are missing", "make room"]);
    assert_eq!(names(&disk), [""; 0]);
    // Enough for the weights, not for the activations.
    let options = "--group-size 32 --n-samples 20 --seq-len 100 --no-speed --calibration";
    scruple!["compress", model, options, text, "-o", out].refuses(&["disk", "make room"]);
    assert!(!out.exists());
    for left in names(&disk) {
        assert_eq!(left, ".out.partial");
    }
}
