//! The decoder families that run: one row of [`FAMILIES`] each, and an adapter that turns a configuration into blocks.
//!
//! To add one: if it has Llama's shape, a row of switches in `llama.rs`; else a file with its own `read`. Then a line in
//! [`FAMILIES`] and a golden in `fixtures/decoders`.

use super::{config::DecoderConfig, fields::Fields};
use crate::Result;

mod defaults;

mod llama;

mod gpt2;

mod gpt_neox;

mod opt;

mod falcon;

/// One model family.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// What people call it.
    pub name: &'static str,
    /// Its `model_type`s in `config.json`.
    pub model_types: &'static [&'static str],
    /// Against what, and on which variants, its logits were checked.
    pub checked_by: &'static str,
    /// What its tensors' names may begin with, the likeliest first.
    pub(crate) bases: &'static [&'static str],
    /// What a `text_config` leaves out: the numbers its configuration class has by default.
    pub(crate) class_defaults: &'static [(&'static str, u64)],
    /// The adapter; it is told which `model_type` was found.
    pub(crate) read: fn(&Fields<'_>, &'static Family, &str) -> Result<DecoderConfig>,
}

/// Compares tiny seeded models with transformers: logits of one pass and of pieces with a cache, and greedy text.
macro_rules! goldens {
    ($variants:literal) => {
        concat!("transformers 5.17 on tiny seeded models: ", $variants)
    };
}

/// The families that run.
pub const FAMILIES: &[Family] = &[
    Family {
        name: "Llama",
        model_types: &["llama"],
        checked_by: goldens!("plain, biases, linear, Llama 3 and YaRN rotations; SmolLM2-135M"),
        bases: &["model.", ""],
        class_defaults: defaults::LLAMA,
        read: |fields, family, name| llama::read(fields, family, name, &llama::LLAMA),
    },
    Family {
        name: "Mistral",
        model_types: &["mistral"],
        checked_by: goldens!("window shorter than the text"),
        bases: &["model.", ""],
        class_defaults: defaults::MISTRAL,
        read: |fields, family, name| llama::read(fields, family, name, &llama::MISTRAL),
    },
    Family {
        name: "Qwen 2",
        model_types: &["qwen2"],
        checked_by: goldens!("plain, and windows in some blocks"),
        bases: &["model.", ""],
        class_defaults: defaults::QWEN,
        read: |fields, family, name| llama::read(fields, family, name, &llama::QWEN2),
    },
    Family {
        name: "Qwen 3",
        model_types: &["qwen3"],
        checked_by: goldens!("plain"),
        bases: &["model.", ""],
        class_defaults: defaults::QWEN,
        read: |fields, family, name| llama::read(fields, family, name, &llama::QWEN3),
    },
    Family {
        name: "Gemma",
        model_types: &["gemma"],
        checked_by: goldens!("plain"),
        bases: &["model.", ""],
        class_defaults: defaults::GEMMA,
        read: |fields, family, name| llama::read(fields, family, name, &llama::GEMMA),
    },
    Family {
        name: "Gemma 2",
        model_types: &["gemma2"],
        checked_by: goldens!("alternating windows, caps that bite"),
        bases: &["model.", ""],
        class_defaults: defaults::GEMMA2,
        read: |fields, family, name| llama::read(fields, family, name, &llama::GEMMA2),
    },
    Family {
        name: "Gemma 3 (text)",
        model_types: &["gemma3_text"],
        checked_by: goldens!("a pattern of windows with two rotations, and the text part of the multimodal model"),
        bases: &["model.", ""],
        class_defaults: defaults::GEMMA3,
        read: |fields, family, name| llama::read(fields, family, name, &llama::GEMMA3),
    },
    Family {
        name: "Phi 3",
        model_types: &["phi3"],
        checked_by: goldens!("partial rotation, LongRoPE below and beyond the trained context"),
        bases: &["model.", ""],
        class_defaults: defaults::PHI3,
        read: |fields, family, name| llama::read(fields, family, name, &llama::PHI3),
    },
    Family {
        name: "OLMo 2",
        model_types: &["olmo2"],
        checked_by: goldens!("plain"),
        bases: &["model.", ""],
        class_defaults: &[],
        read: |fields, family, name| llama::read(fields, family, name, &llama::OLMO2),
    },
    Family {
        name: "Mixtral",
        model_types: &["mixtral"],
        checked_by: goldens!("top 2 of 4 experts"),
        bases: &["model.", ""],
        class_defaults: &[],
        read: |fields, family, name| llama::read(fields, family, name, &llama::MIXTRAL),
    },
    Family {
        name: "Qwen 3 MoE",
        model_types: &["qwen3_moe"],
        checked_by: goldens!("normalised or not, dense blocks between"),
        bases: &["model.", ""],
        class_defaults: &[],
        read: |fields, family, name| llama::read(fields, family, name, &llama::QWEN3_MOE),
    },
    Family {
        name: "GPT-2",
        model_types: &["gpt2"],
        checked_by: goldens!("plain, and scores scaled by block"),
        bases: &["transformer.", ""],
        class_defaults: &[],
        read: gpt2::read,
    },
    Family {
        name: "GPT-NeoX, Pythia",
        model_types: &["gpt_neox"],
        checked_by: goldens!("parallel and sequential residual, partial rotation"),
        bases: &["gpt_neox.", ""],
        class_defaults: &[],
        read: gpt_neox::read,
    },
    Family {
        name: "OPT",
        model_types: &["opt"],
        checked_by: goldens!("norms before, and after with a projected embedding"),
        bases: &["model.decoder.", "decoder.", ""],
        class_defaults: &[],
        read: opt::read,
    },
    Family {
        name: "Falcon",
        model_types: &["falcon"],
        checked_by: goldens!("multi-query, many heads in sequence, and the new architecture; not ALiBi"),
        bases: &["transformer.", ""],
        class_defaults: &[],
        read: falcon::read,
    },
];

/// A model that reads images too, and whose text part is one of [`FAMILIES`].
#[derive(Debug, Clone, Copy)]
pub struct Wrapper {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// `model_type` of a `text_config` that names none.
    pub default_text: &'static str,
}

impl Wrapper {
    /// What the text part's names may begin with, by the release that wrote them.
    pub(crate) const BASES: &'static [&'static str] = &["language_model.model.", "model.language_model.", "model.", ""];
}

/// The wrappers whose text part runs as it stands; what the others' text part does with a text alone differs.
pub const WRAPPERS: &[Wrapper] = &[
    Wrapper { model_type: "gemma3", default_text: "gemma3_text" },
    Wrapper { model_type: "llava", default_text: "llama" },
    Wrapper { model_type: "llava_next", default_text: "llama" },
    Wrapper { model_type: "vipllava", default_text: "llama" },
    Wrapper { model_type: "mistral3", default_text: "mistral" },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_model_type_stands_once_and_every_family_says_what_checked_it() {
        let types: Vec<&str> = FAMILIES.iter().flat_map(|family| family.model_types).copied().collect();
        let wrappers: Vec<&str> = WRAPPERS.iter().map(|wrapper| wrapper.model_type).collect();
        let all: BTreeSet<&str> = types.iter().chain(&wrappers).copied().collect();
        assert_eq!(all.len(), types.len() + wrappers.len());
        for family in FAMILIES {
            assert!(!family.name.is_empty() && family.checked_by.len() > 20 && !family.bases.is_empty());
        }
        assert!(WRAPPERS.iter().all(|wrapper| types.contains(&wrapper.default_text)));
    }
}
