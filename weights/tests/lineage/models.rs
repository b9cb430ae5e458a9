//! Whole models: what belongs together, and what is said of it all.

use scruple_weights::{
    Dtype,
    lineage::{Arrangement, Change, Diff, Matched, diff},
};

use crate::support::{
    Normal, Tensor, compare, decoder, model, quantised, rounded, tensor, weights, with_blocks, with_lora,
};

fn edited(of: &[Tensor], word: &str, edit: impl Fn(&Tensor) -> Vec<f32>) -> Vec<Tensor> {
    let edit = |tensor: &Tensor| {
        let values = if tensor.name.contains(word) { edit(tensor) } else { tensor.values.clone() };
        Tensor { values, ..tensor.clone() }
    };
    of.iter().map(edit).collect()
}

fn renamed(of: &[Tensor], rename: impl Fn(&str) -> String) -> Vec<Tensor> {
    of.iter().map(|tensor| Tensor { name: rename(&tensor.name), ..tensor.clone() }).collect()
}

#[track_caller]
fn says(diff: &Diff, verdict: &str, words: &[&str]) {
    assert_eq!(diff.verdict.verdict, verdict, "{}", diff.verdict.sentence);
    for word in words {
        assert!(diff.verdict.sentence.contains(word), "`{word}` is not in: {}", diff.verdict.sentence);
    }
}

#[test]
fn a_model_equals_itself() {
    let a = decoder(3, Dtype::Bf16, 1);
    let found = compare(&a, &a);
    assert!(found.identical && found.tensors.iter().all(|tensor| tensor.change == Change::Equal));
    says(&found, "equal", &["A and B are equal: 29 tensors, bit for bit"]);
}

#[test]
fn values_that_are_equal_as_f32_alone_are_not_called_identical() {
    let a = decoder(3, Dtype::F32, 1);
    let with_zero = |zero: f32| edited(&a, "layers.1.mlp.up_proj", |t| [&[zero], &t.values[1..]].concat());
    let found = compare(&with_zero(0.0), &with_zero(-0.0));
    assert!(!found.identical && found.tensors.iter().all(|tensor| tensor.change == Change::Equal));
    says(&found, "equal", &["A and B are equal as f32: 29 tensors; 1 byte of 1 tensor differ"]);
}

#[test]
fn removed_blocks_are_named_and_the_others_found_again() {
    let a = decoder(8, Dtype::Bf16, 2);
    let b = with_blocks(&a, &[0, 1, 5, 6, 7]);
    let found = compare(&a, &b);
    assert_eq!(found.blocks[0].removed, [2, 3, 4]);
    assert_eq!(found.blocks[0].from[2], (2, Some(5)));
    assert!(found.tensors.iter().all(|tensor| tensor.change == Change::Equal) && !found.identical);
    assert_eq!((found.tensors.len(), found.missing.len(), found.added.len()), (2 + 9 * 5, 9 * 3, 0));
    says(
        &found,
        "blocks",
        &["B is A without blocks 2–4 of 8 (the others renumbered)", "47 tensors in common, all equal"],
    );
    // The other way round they are new.
    let back = compare(&b, &a);
    assert_eq!(back.blocks[0].added, [2, 3, 4]);
    says(&back, "blocks", &["with new blocks 2–4"]);
}

#[test]
fn blocks_are_found_again_though_their_weights_changed() {
    let a = decoder(6, Dtype::F32, 3);
    let q = edited(&a, "proj", |t| quantised(&t.values, t.shape[1] / 2, 3, true));
    let found = compare(&a, &with_blocks(&q, &[0, 2, 3, 5]));
    assert_eq!(found.blocks[0].removed, [1, 4]);
    says(&found, "quantised", &["without blocks 1, 4 of 6", "3-bit", "28 of 38 tensors rounded", "10 equal"]);
}

#[test]
fn repeated_and_reordered_blocks_are_named() {
    let a = decoder(4, Dtype::F32, 4);
    let found = compare(&a, &with_blocks(&a, &[0, 1, 2, 1, 2, 3]));
    assert_eq!(found.blocks[0].repeated, [3, 4]);
    says(&found, "blocks", &["blocks 1–2 repeated as blocks 3–4"]);
    let found = compare(&a, &with_blocks(&a, &[0, 2, 1, 3]));
    says(&found, "equal", &["blocks in another order"]);
    assert!(!found.identical);
}

#[test]
fn an_adapter_is_named_with_rank_and_modules() {
    let a = edited(&decoder(3, Dtype::Bf16, 5), "", |t| rounded(&t.values, Dtype::Bf16));
    let add = |t: &Tensor| with_lora(&t.values, t.shape[0], t.shape[1], 4, 0.2, 9);
    let b = edited(&edited(&a, "q_proj", add), "v_proj", add);
    let found = compare(&a, &b);
    says(
        &found,
        "low-rank",
        &["B is A with a merged LoRA of rank 4 on q_proj and v_proj: 6 of 29 tensors", "23 equal"],
    );
}

#[test]
fn training_is_told_from_another_training() {
    let a = decoder(3, Dtype::F32, 6);
    for (deviation, words) in [
        (0.004, ["B is A trained further", "29 of 29", "median relative change 0.07"]),
        (0.01, ["B is another training of A's network, from one origin", "29 of 29", "median relative change 0.19"]),
    ] {
        let noise = |t: &Tensor| -> Vec<f32> {
            let noise = Normal::seeded(t.name.len() as u64).vector(t.values.len(), deviation);
            t.values.iter().zip(noise).map(|(w, noise)| w + noise).collect()
        };
        says(&compare(&a, &edited(&a, "", noise)), "retrained", &words);
    }
    let found = compare(&a, &decoder(3, Dtype::F32, 7_000_000));
    says(&found, "other-training", &["other training of the same architecture"]);
    let found = compare(&a, &[tensor("conv.weight", &[8, 3, 3, 3], Dtype::F32, weights(8, 27, 1))]);
    says(&found, "different", &["different architectures (0 tensors in common; A has 29, B has 1)"]);
    let wider: Vec<Tensor> = a
        .iter()
        .map(|t| Tensor {
            shape: [&[2], &t.shape[..]].concat(),
            values: [&t.values[..], &t.values].concat(),
            ..t.clone()
        })
        .collect();
    says(&compare(&a, &wider), "different", &["0 tensors in common; 29 names"]);
}

#[test]
fn other_names_are_matched() {
    let a = decoder(2, Dtype::F32, 8);
    let found = compare(&a, &renamed(&a, |name| format!("module.{}", name.replacen("model.", "", 1))));
    assert!(
        found.tensors.iter().all(|t| t.matched == Matched::Prefix && t.change == Change::Equal),
        "{:#?}",
        found.tensors
    );
    let gguf = |name: &str| {
        let mut name = name.replace("model.layers.", "blk.").replace("model.", "");
        for (hf, gguf) in [
            ("input_layernorm", "attn_norm"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("post_attention_layernorm", "ffn_norm"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
            ("embed_tokens", "token_embd"),
        ] {
            name = name.replace(hf, gguf);
        }
        if name == "norm.weight" { "output_norm.weight".into() } else { name }
    };
    let found = compare(&a, &renamed(&a, gguf));
    assert!(
        found.tensors.iter().all(|t| t.matched == Matched::Convention && t.change == Change::Equal),
        "{:#?}",
        found.tensors
    );
    assert_eq!(found.tensors.len(), a.len());
    // Names that say nothing: values tell, and what stands beside them follows.
    let named =
        |name: &str| format!("net.x{:02}", name.bytes().fold(0u32, |hash, b| hash.wrapping_mul(31) + u32::from(b)));
    let found = compare(&a, &renamed(&a, named));
    assert_eq!(found.tensors.len(), a.len());
    assert!(
        found.tensors.iter().all(|t| t.matched == Matched::Content && t.change == Change::Equal),
        "{:#?}",
        found.tensors
    );
    assert!(found.tensors.iter().all(|t| named(&t.a) == t.b));
}

#[test]
fn siblings_of_what_was_matched_by_content_are_matched() {
    let of = |first: &str, seed| {
        let w = weights(20, 30, 1);
        let noise = Normal::seeded(seed).vector(600, 0.001);
        vec![
            tensor(
                &format!("{first}.weight"),
                &[20, 30],
                Dtype::F32,
                w.iter().zip(noise).map(|(w, n)| w + n).collect(),
            ),
            tensor(&format!("{first}.bias"), &[20], Dtype::F32, weights(1, 20, seed)),
        ]
    };
    let found = compare(&of("conv1", 2), &of("encoder.conv", 3));
    assert_eq!(found.tensors.len(), 2, "{found:?}");
    let bias = found.tensors.iter().find(|t| t.b == "encoder.conv.bias").unwrap();
    assert_eq!((bias.a.as_str(), bias.matched), ("conv1.bias", Matched::Sibling));
}

#[test]
fn fused_tensors_and_their_parts_are_matched() {
    let a = decoder(2, Dtype::F32, 9);
    let mut b: Vec<Tensor> =
        a.iter().filter(|t| !["q_proj", "k_proj", "v_proj"].iter().any(|p| t.name.contains(p))).cloned().collect();
    for block in 0..2 {
        let part = |kind: &str| {
            let name = format!("model.layers.{block}.self_attn.{kind}.weight");
            a.iter().find(|t| t.name == name).unwrap().values.clone()
        };
        let values = [part("q_proj"), part("k_proj"), part("v_proj")].concat();
        b.push(tensor(&format!("model.layers.{block}.self_attn.qkv_proj.weight"), &[144, 48], Dtype::F32, values));
    }
    for (x, y, fused) in [(&a, &b, Arrangement::RowsOfB { from: 96 }), (&b, &a, Arrangement::RowsOfA { from: 96 })] {
        let found = compare(x, y);
        assert!(found.missing.is_empty() && found.added.is_empty());
        assert!(found.tensors.iter().all(|t| t.change == Change::Equal));
        assert_eq!(found.tensors.iter().filter(|t| t.matched == Matched::Fused).count(), 6);
        assert!(found.tensors.iter().any(|t| t.arrangement == fused), "{:#?}", found.tensors);
    }
}

#[test]
fn a_longer_vocabulary_and_an_untied_head_are_seen() {
    let a = decoder(2, Dtype::F32, 10);
    let mut b = a.clone();
    b[0].shape[0] += 16;
    b[0].values.extend(weights(16, 48, 99));
    let found = compare(&a, &b);
    assert_eq!(
        found.tensors.iter().find(|t| t.b.contains("embed")).unwrap().arrangement,
        Arrangement::FirstRows { a: 80, b: 96 }
    );
    says(&found, "equal", &["B is A with embed_tokens of 96 rows instead of 80", "all equal"]);
    let mut b = a.clone();
    b.push(Tensor { name: "lm_head.weight".into(), ..a[0].clone() });
    let found = compare(&a, &b);
    let head = found.tensors.iter().find(|t| t.b == "lm_head.weight").unwrap();
    assert_eq!(
        (head.a.as_str(), head.matched, &head.change),
        ("model.embed_tokens.weight", Matched::Content, &Change::Equal)
    );
    assert!(!found.identical);
}

#[test]
fn the_result_does_not_depend_on_threads() {
    let a = decoder(4, Dtype::Bf16, 11);
    let big = weights(700, 512, 12);
    let with =
        |of: &[Tensor], values: Vec<f32>| [of, &[tensor("big.weight", &[700, 512], Dtype::Bf16, values)]].concat();
    let b = with(&with_blocks(&a, &[0, 2, 3]), with_lora(&big, 700, 512, 5, 0.1, 13));
    let (a, b) = (model(&with(&a, big)), model(&b));
    let [one, four] = [1, 4].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        serde_json::to_string(&pool.install(|| diff(&a, &b, &|_, _| {})).unwrap()).unwrap()
    });
    assert_eq!(one, four);
    assert!(one.contains("low-rank"));
}
