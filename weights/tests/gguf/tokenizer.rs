//! The tokenizer's files. What they mean to the `tokenizers` library is checked where that library is linked.

use serde_json::{Value, json};

use crate::{
    convert::{convert, file, refused, tiny_llama},
    writer::Writer,
};

#[test]
fn byte_level_bpe() {
    let model = convert(&tiny_llama().string("tokenizer.chat_template", "{{ messages }}"));
    assert_eq!(
        file(&model, "tokenizer.json"),
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [
                { "id": 0, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
                  "normalized": false, "special": true },
                { "id": 7, "content": "<|user|>", "single_word": false, "lstrip": false, "rstrip": false,
                  "normalized": false, "special": false },
            ],
            "normalizer": null,
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
                { "type": "Digits", "individual_digits": true },
                { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
            ] },
            "post_processor": null,
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": { "<|end|>": 0, "a": 1, "b": 2, "c": 3, "Ġ": 4, "ab": 5, "Ġa": 6, "<|user|>": 7 },
                "merges": [["a", "b"], ["Ġ", "a"]],
            },
        })
    );
    assert_eq!(
        file(&model, "tokenizer_config.json"),
        json!({
            "add_bos_token": false,
            "add_eos_token": false,
            "chat_template": "{{ messages }}",
            "clean_up_tokenization_spaces": false,
            "eos_token": "<|end|>",
            "model_max_length": 512,
            "tokenizer_class": "PreTrainedTokenizerFast",
        })
    );
    assert_eq!(file(&model, "special_tokens_map.json"), json!({ "eos_token": "<|end|>" }));
}

#[test]
fn the_same_file_gives_the_same_bytes() {
    assert_eq!(convert(&tiny_llama()).files, convert(&tiny_llama()).files);
}

#[test]
fn each_pre_tokenizer_cuts_its_own_way() {
    let tokenizer = |pre: &str| file(&convert(&tiny_llama().string("tokenizer.ggml.pre", pre)), "tokenizer.json");
    assert_eq!(tokenizer("gpt-2")["pre_tokenizer"]["type"], "ByteLevel");
    assert_eq!(tokenizer("default"), tokenizer("gpt-2"));
    let unnamed = convert(&tiny_llama().without("tokenizer.ggml.pre"));
    assert_eq!(file(&unnamed, "tokenizer.json"), tokenizer("default"));
    let pattern = |tokenizer: &Value| {
        assert_eq!(tokenizer["pre_tokenizer"]["pretokenizers"][1]["use_regex"], false);
        tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"].as_str().unwrap().to_owned()
    };
    let (llama, qwen) = (tokenizer("llama-bpe"), tokenizer("qwen2"));
    assert!(pattern(&llama).contains(r"|\p{N}{1,3}|") && pattern(&qwen).contains(r"|\p{N}|"));
    assert_eq!((&llama["model"]["ignore_merges"], &qwen["model"]["ignore_merges"]), (&json!(true), &json!(false)));
    assert_eq!((&llama["normalizer"], &qwen["normalizer"]["type"]), (&Value::Null, &json!("NFC")));
    refused(
        &tiny_llama().string("tokenizer.ggml.pre", "chameleon"),
        &["pre-tokenizer `chameleon` cannot be converted, only smollm, gpt-2, default, llama-bpe"],
    );
}

#[test]
fn bos_and_eos_are_added_where_the_model_wants_them() {
    let writer = tiny_llama().u32("tokenizer.ggml.bos_token_id", 7).bool("tokenizer.ggml.add_bos_token", true);
    let post = &file(&convert(&writer), "tokenizer.json")["post_processor"];
    let bos = |type_id: u64| json!({ "SpecialToken": { "id": "<|user|>", "type_id": type_id } });
    let eos = |type_id: u64| json!({ "SpecialToken": { "id": "<|end|>", "type_id": type_id } });
    let text = |id: &str, type_id: u64| json!({ "Sequence": { "id": id, "type_id": type_id } });
    assert_eq!(post["single"], json!([bos(0), text("A", 0)]));
    assert_eq!(post["pair"], json!([bos(0), text("A", 0), bos(1), text("B", 1)]));
    assert_eq!(post["special_tokens"], json!({ "<|user|>": { "id": "<|user|>", "ids": [7], "tokens": ["<|user|>"] } }));

    let both = file(&convert(&writer.bool("tokenizer.ggml.add_eos_token", true)), "tokenizer.json");
    assert_eq!(both["post_processor"]["single"], json!([bos(0), text("A", 0), eos(0)]));
    // A token that begins every text is special, whatever its type says.
    assert_eq!(both["added_tokens"][1]["special"], true);

    // Llama 3's files of old do not say that a text begins with BOS, but it does.
    let llama3 = tiny_llama().u32("tokenizer.ggml.bos_token_id", 7).string("tokenizer.ggml.pre", "llama-bpe");
    assert_eq!(file(&convert(&llama3), "tokenizer_config.json")["add_bos_token"], true);
    let without = tiny_llama().bool("tokenizer.ggml.add_bos_token", true);
    assert_eq!(file(&convert(&without), "tokenizer.json")["post_processor"], Value::Null);
}

#[test]
fn an_ordinary_word_is_not_taken_for_padding() {
    let model =
        convert(&tiny_llama().u32("tokenizer.ggml.padding_token_id", 1).u32("tokenizer.ggml.unknown_token_id", 2));
    assert_eq!(file(&model, "special_tokens_map.json"), json!({ "eos_token": "<|end|>" }));
    assert_eq!(file(&model, "tokenizer.json")["added_tokens"].as_array().unwrap().len(), 2);
}

#[test]
fn several_chat_templates_keep_their_names() {
    let model = convert(
        &tiny_llama()
            .string("tokenizer.chat_template", "plain")
            .strings("tokenizer.chat_templates", &["default", "tool_use", "lost"])
            .string("tokenizer.chat_template.tool_use", "tools"),
    );
    assert_eq!(
        file(&model, "tokenizer_config.json")["chat_template"],
        json!([{ "name": "default", "template": "plain" }, { "name": "tool_use", "template": "tools" }])
    );
}

#[test]
fn refuses_a_vocabulary_that_contradicts_itself() {
    let tokens = |tokens: &[&str]| tiny_llama().strings("tokenizer.ggml.tokens", tokens);
    let eight = ["<|end|>", "a", "b", "c", "Ġ", "ab", "a", "<|user|>"];
    refused(&tokens(&eight), &["token 6 (`a`) is also token 1"]);
    refused(&tokens(&["a", "b", "c", "d", "e", "f", "g", "h", "i"]), &["9 tokens, the embedding 8 rows"]);
    refused(&tokens(&[]), &["0 tokens"]);
    refused(&tiny_llama().i32s("tokenizer.ggml.token_type", &[1, 1]), &["2 entries for 8 tokens"]);
    refused(&tiny_llama().i32s("tokenizer.ggml.token_type", &[9; 8]), &["outside 0 to 6"]);
    refused(&tiny_llama().strings("tokenizer.ggml.merges", &["a b", "b c"]), &["merge 1 (`b c`)"]);
    refused(&tiny_llama().strings("tokenizer.ggml.merges", &["ab"]), &["merge 0 (`ab`)"]);
    refused(&tiny_llama().strings("tokenizer.ggml.merges", &[""]), &["merge 0 (``)"]);
    refused(&tiny_llama().without("tokenizer.ggml.merges"), &["`tokenizer.ggml.merges` is missing"]);
    refused(
        &tiny_llama().u32("tokenizer.ggml.eos_token_id", 8),
        &["`tokenizer.ggml.eos_token_id` is 8, but there are 8"],
    );
    refused(
        &tiny_llama().string("tokenizer.ggml.model", "t5"),
        &["tokenizer model `t5` cannot be converted, only `gpt2`"],
    );
    refused(&tiny_llama().without("tokenizer.ggml.model"), &["`tokenizer.ggml.model` is missing"]);
}

/// A llama model with a SentencePiece vocabulary of eight.
pub fn tiny_sentence_piece() -> Writer {
    tiny_llama()
        .string("tokenizer.ggml.model", "llama")
        .strings("tokenizer.ggml.tokens", &["<unk>", "<s>", "</s>", "▁", "a", "▁a", "aa", "▁aa"])
        .i32s("tokenizer.ggml.token_type", &[2, 3, 3, 1, 1, 1, 1, 1])
        .f32s("tokenizer.ggml.scores", &[0.0, 0.0, 0.0, -5.0, -6.0, -2.0, -1.0, -2.0])
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
}

#[test]
fn sentence_piece_bpe() {
    let tokenizer = file(&convert(&tiny_sentence_piece()), "tokenizer.json");
    let model = &tokenizer["model"];
    // Best score first; of one score the longer left part; two ways to one token follow each other.
    assert_eq!(model["merges"], json!([["a", "a"], ["▁a", "a"], ["▁", "aa"], ["▁", "a"]]));
    assert_eq!((&model["unk_token"], &model["fuse_unk"]), (&json!("<unk>"), &json!(true)));
    assert_eq!(model["byte_fallback"], false); // no byte tokens here
    assert_eq!(
        tokenizer["normalizer"],
        json!({ "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        ] })
    );
    assert_eq!(
        tokenizer["decoder"],
        json!({ "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" },
            { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] })
    );
    assert_eq!(tokenizer["pre_tokenizer"], Value::Null);
    assert_eq!(tokenizer["post_processor"]["single"][0]["SpecialToken"]["id"], "<s>");
    let special: Vec<_> = tokenizer["added_tokens"].as_array().unwrap().iter().map(|token| &token["content"]).collect();
    assert_eq!(special, ["<unk>", "<s>", "</s>"]);

    let bare = tiny_sentence_piece().bool("tokenizer.ggml.add_space_prefix", false);
    let bare = file(&convert(&bare.bool("tokenizer.ggml.add_bos_token", false)), "tokenizer.json");
    assert_eq!(bare["normalizer"]["normalizers"].as_array().unwrap().len(), 1);
    assert_eq!(bare["decoder"]["decoders"].as_array().unwrap().len(), 3);
    assert_eq!(bare["post_processor"], Value::Null);
}

#[test]
fn refuses_sentence_piece_without_sound_scores() {
    let scores = |scores: &[f32]| tiny_sentence_piece().f32s("tokenizer.ggml.scores", scores);
    refused(&scores(&[0.0; 7]), &["`tokenizer.ggml.scores` is not 8 numbers"]);
    refused(&scores(&[f32::NAN; 8]), &["`tokenizer.ggml.scores` is not 8 numbers"]);
    refused(&tiny_sentence_piece().without("tokenizer.ggml.scores"), &["`tokenizer.ggml.scores` is missing"]);
    let long = "a".repeat(300);
    let tokens = ["<unk>", "<s>", "</s>", "▁", "a", "▁a", "aa", &long];
    refused(&tiny_sentence_piece().strings("tokenizer.ggml.tokens", &tokens), &["token 7 is 300 bytes long"]);
}
