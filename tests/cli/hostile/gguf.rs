//! Single GGUF files.

use super::Case;
use crate::gguf_writer::{ARRAY, Tensor, Writer, array, string};

/// A model of one block that converts.
fn sound() -> Writer {
    let mut writer = Writer::new()
        .string("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 64)
        .u32("llama.embedding_length", 32)
        .u32("llama.feed_forward_length", 64)
        .u32("llama.attention.head_count", 4)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .string("tokenizer.ggml.model", "gpt2")
        .string("tokenizer.ggml.pre", "smollm")
        .strings("tokenizer.ggml.tokens", &["<|end|>", "a", "b", "ab"])
        .i32s("tokenizer.ggml.token_type", &[3, 1, 1, 1])
        .strings("tokenizer.ggml.merges", &["a b"])
        .u32("tokenizer.ggml.eos_token_id", 0);
    for (name, shape) in [
        ("token_embd.weight", &[4, 32][..]),
        ("blk.0.attn_norm.weight", &[32]),
        ("blk.0.attn_q.weight", &[32, 32]),
        ("blk.0.attn_k.weight", &[32, 32]),
        ("blk.0.attn_v.weight", &[32, 32]),
        ("blk.0.attn_output.weight", &[32, 32]),
        ("blk.0.ffn_norm.weight", &[32]),
        ("blk.0.ffn_gate.weight", &[64, 32]),
        ("blk.0.ffn_up.weight", &[64, 32]),
        ("blk.0.ffn_down.weight", &[32, 64]),
        ("output_norm.weight", &[32]),
    ] {
        writer = writer.floats(name, shape, &vec![0.5; shape.iter().product()]);
    }
    writer
}

fn tensor(name: &str, sizes: &[u64], kind: u32, bytes: usize) -> Tensor {
    Tensor { name: name.into(), sizes: sizes.to_vec(), kind, offset: None, data: vec![0; bytes] }
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str, bytes: Vec<u8>, words: &[&str]| {
        let words = [&["model.gguf"], words].concat();
        cases.push(Case::file(format!("gguf: {name}"), "model.gguf", bytes, &words));
    };
    let good = sound().build();
    let u64s = |numbers: &[u64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();

    add("empty", vec![], &["empty"]);
    add("zeros", vec![0; 64], &[]);
    add("web page", b"<html>Sign in</html>".to_vec(), &["HTML"]);
    add("LFS pointer", b"version https://git-lfs.github.com/spec/v1\nsize 12\n".to_vec(), &["git lfs pull"]);
    add("zip archive", b"PK\x03\x04\x14\0\0\0".to_vec(), &[]);
    add("the magic number alone", b"GGUF".to_vec(), &["truncated"]);
    for cut in [8, 20, 24, 60, 200, 400, good.len() / 2, good.len() - 1] {
        add(&format!("cut after {cut} bytes"), good[..cut].to_vec(), &["truncated"]);
    }
    for version in [0, 1, 4, 99] {
        add(&format!("version {version}"), Writer { version, ..sound() }.build(), &[&format!("version {version}")]);
    }
    add("big endian", Writer { version: 3 << 24, ..sound() }.build(), &["big endian"]);
    for count in [1 << 20, 1 << 40, 1 << 63, u64::MAX] {
        add(&format!("{count} tensors"), Writer { n_tensors: Some(count), ..sound() }.build(), &[&count.to_string()]);
        add(&format!("{count} keys"), Writer { n_keys: Some(count), ..sound() }.build(), &[&count.to_string()]);
    }
    add("fewer keys than there are", Writer { n_keys: Some(3), ..sound() }.build(), &[]);

    // Metadata.
    for kind in [13, 255, u32::MAX] {
        add(&format!("value of type {kind}"), sound().raw(b"k", &kind.to_le_bytes()).build(), &["`k`"]);
    }
    add(
        "text of 2^63 bytes",
        sound().raw(b"k", &[&8u32.to_le_bytes()[..], &u64s(&[1 << 63])].concat()).build(),
        &["`k`"],
    );
    for count in [1 << 31, 1 << 63, u64::MAX] {
        let value = [&ARRAY.to_le_bytes()[..], &4u32.to_le_bytes(), &u64s(&[count])].concat();
        add(&format!("array of {count} numbers"), sound().raw(b"k", &value).build(), &["`k`"]);
        let value = array(8, count, &string(b"x"));
        add(&format!("array of {count} texts"), sound().raw(b"k", &value).build(), &["`k`"]);
    }
    let nested = |depth: usize| {
        let mut value = ARRAY.to_le_bytes().to_vec();
        for _ in 0..depth {
            value.extend([&ARRAY.to_le_bytes()[..], &u64s(&[1])].concat());
        }
        value
    };
    for depth in [2, 1000, 100_000] {
        add(&format!("arrays in arrays, {depth} deep"), sound().raw(b"k", &nested(depth)).build(), &["`k`"]);
    }
    add(
        "text that is not UTF-8",
        sound().raw(b"k", &[&8u32.to_le_bytes()[..], &string(b"\xff\xfe")].concat()).build(),
        &["`k`", "UTF-8"],
    );
    add(
        "a key that is not UTF-8",
        sound().raw(b"\xff\xfe", &[&4u32.to_le_bytes()[..], &[0; 4]].concat()).build(),
        &["UTF-8"],
    );
    add(
        "a key twice",
        sound().again(b"general.architecture", &[&8u32.to_le_bytes()[..], &string(b"llama")].concat()).build(),
        &["general.architecture"],
    );
    add("alignment 2^31", sound().u32("general.alignment", 1 << 31).build(), &["expected a multiple of 2147483648"]);
    for alignment in [0, 3] {
        add(&format!("alignment {alignment}"), sound().u32("general.alignment", alignment).build(), &["alignment"]);
    }
    add("alignment is a text", sound().string("general.alignment", "32").build(), &["alignment"]);

    // Tensors.
    let with = |tensor: Tensor| sound().tensor(tensor).build();
    add("type 39", with(tensor("x", &[32], 39, 64)), &["`x`"]);
    add("type 2^32 - 1", with(tensor("x", &[32], u32::MAX, 64)), &["`x`"]);
    add("five dimensions", with(tensor("x", &[1, 1, 1, 1, 1], 0, 4)), &["`x`", "dimensions"]);
    add("2^80 elements", with(tensor("x", &[1 << 40, 1 << 40], 0, 4)), &["`x`"]);
    add("2^63 elements", with(tensor("x", &[1 << 63], 0, 4)), &["`x`"]);
    add("rows of half a block", with(tensor("x", &[16, 2], 2, 18)), &["`x`", "multiple of 32"]);
    add("offset 2^63", with(Tensor { offset: Some(1 << 63), ..tensor("x", &[1], 0, 4) }), &["`x`"]);
    add("offset off the grid", with(Tensor { offset: Some(1), ..tensor("x", &[1], 0, 4) }), &["`x`"]);
    add("a name twice", with(tensor("output_norm.weight", &[32], 0, 128)), &["`output_norm.weight`"]);
    add("a name that is not UTF-8", with(Tensor { name: b"\xff".to_vec(), ..tensor("", &[1], 0, 4) }), &["UTF-8"]);
    let mut overlapping = sound();
    overlapping.tensors[3].offset = Some(32);
    add("overlap", overlapping.build(), &["blk.0.attn_k.weight"]);
    for (name, number) in [("NaN", f32::NAN), ("infinity", f32::NEG_INFINITY)] {
        let writer = sound().without_tensor("output_norm.weight").floats("output_norm.weight", &[32], &[number; 32]);
        add(name, writer.build(), &["`output_norm.weight`", "element 0", "--allow-nonfinite"]);
    }

    // A model that contradicts itself.
    for (key, number) in [
        ("llama.block_count", 0),
        ("llama.block_count", u32::MAX),
        ("llama.embedding_length", 31),
        ("llama.feed_forward_length", 63),
        ("llama.attention.head_count", 0),
        ("llama.attention.head_count", 5),
        ("llama.attention.head_count_kv", 3),
        ("llama.attention.key_length", 7),
        ("llama.context_length", 0),
        ("llama.expert_count", 8),
    ] {
        let words: &[&str] = if number == 0 || number == u32::MAX || key.ends_with("count") { &["llama"] } else { &[] };
        let words = if key.contains("head_count") { &[][..] } else { words };
        add(&format!("{key} = {number}"), sound().u32(key, number).build(), words);
    }
    for key in [
        "llama.block_count",
        "llama.embedding_length",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.model",
        "general.architecture",
    ] {
        add(&format!("without {key}"), sound().without(key).build(), &[key, "missing"]);
        add(&format!("{key} of another type"), sound().f32(key, f32::NAN).build(), &[key]);
    }
    for architecture in ["mamba", "", "llama\u{1b}[31m"] {
        add(
            &format!("architecture {architecture:?}"),
            sound().string("general.architecture", architecture).build(),
            &["cannot be converted"],
        );
    }
    add("an unknown tokenizer", sound().string("tokenizer.ggml.model", "wordpiece").build(), &["wordpiece"]);
    add("an unknown pre-tokenizer", sound().string("tokenizer.ggml.pre", "mystery").build(), &["mystery"]);
    add(
        "a token twice",
        sound().strings("tokenizer.ggml.tokens", &["a", "a", "b", "ab"]).build(),
        &["token 1", "token 0"],
    );
    add(
        "more tokens than rows",
        sound().strings("tokenizer.ggml.tokens", &["a", "b", "c", "d", "e"]).build(),
        &["5 tokens"],
    );
    add("a merge of no tokens", sound().strings("tokenizer.ggml.merges", &["x y"]).build(), &["merge 0"]);
    add("a surplus tensor", with(tensor("blk.0.mystery.weight", &[32], 0, 128)), &["blk.0.mystery.weight"]);
    add("a missing tensor", sound().without_tensor("blk.0.ffn_up.weight").build(), &["blk.0.ffn_up.weight", "missing"]);

    cases.push(Case::file("gguf: sound", "model.gguf", good, &[]).accepted());
    cases
}
