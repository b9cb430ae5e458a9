//! GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): attention and MLP beside each other, a part of each head
//! rotated, q, k and v of a head next to one another in one linear.

use super::Family;
use crate::{
    Result,
    model::{
        config::{DecoderConfig, MAX_BLOCKS},
        fields::Fields,
        rope::{self, RopeRules},
        spec::{
            AttentionSpec, BlockSpec, EmbeddingSpec, Gate, HeadSpec, LinearSpec, MlpSpec, NormKind, NormSpec, Norms,
            Projection, Stage,
        },
    },
};

pub(super) fn read(fields: &Fields<'_>, family: &'static Family, model_type: &str) -> Result<DecoderConfig> {
    let hidden = fields.count_or("hidden_size", None)?;
    let heads = fields.count_or("num_attention_heads", None)?;
    let width = fields.count_or("intermediate_size", None)?;
    let n_blocks = fields.limited_count("num_hidden_layers", MAX_BLOCKS)?;
    let max_positions = fields.count_or("max_position_embeddings", Some(2048))?;
    if hidden % heads != 0 {
        return Err(fields.refuse(format!("`hidden_size` {hidden} is not a multiple of `num_attention_heads` {heads}")));
    }
    let head_dim = hidden / heads;
    let rules = RopeRules {
        partial: true,
        default_partial: 0.25,
        theta_key: "rotary_emb_base",
        partial_key: "rotary_pct",
        ..RopeRules::USUAL
    };
    let rope = rope::read(fields, rules, "full_attention", head_dim, max_positions)?;
    let eps = fields.number_or("layer_norm_eps", Some(1e-5))? as f32;
    let activation = fields.activation(
        "hidden_act",
        "gelu",
        &["gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu", "relu", "silu", "swish", "tanh"],
    )?;
    let attention_bias = fields.flag_or("attention_bias", true)?;
    let norm = |name| NormSpec { name, kind: NormKind::Layer, eps };
    let before = |name| Norms { before: Some(norm(name)), ..Norms::default() };
    let linear = |name: &str, stage, out_features, in_features, bias| LinearSpec {
        name: name.into(),
        stage,
        expert: None,
        out_features,
        in_features,
        bias,
        transposed: false,
    };
    let block = BlockSpec {
        attention: AttentionSpec {
            n_heads: heads,
            n_kv_heads: heads,
            head_dim,
            projection: Projection::Grouped,
            qk_norm: None,
            rope: Some(rope),
            window: None,
            scale: 1.0 / (head_dim as f32).sqrt(),
            softcap: None,
        },
        attention_norms: before("input_layernorm"),
        mlp: MlpSpec { activation, gate: Gate::None, width, experts: None },
        mlp_norms: before("post_attention_layernorm"),
        parallel: fields.flag_or("use_parallel_residual", true)?,
        linears: vec![
            linear("attention.query_key_value", Stage::Attention, 3 * hidden, hidden, attention_bias),
            linear("attention.dense", Stage::AttentionOutput, hidden, hidden, attention_bias),
            linear("mlp.dense_h_to_4h", Stage::Mlp, width, hidden, true),
            linear("mlp.dense_4h_to_h", Stage::MlpOutput, hidden, width, true),
        ],
    };
    Ok(DecoderConfig {
        model_type: model_type.to_string(),
        hidden_size: hidden,
        vocab_size: fields.count_or("vocab_size", None)?,
        max_positions,
        n_blocks,
        base: family.bases[0].to_string(),
        layers: "layers",
        embedding: EmbeddingSpec { name: "embed_in", width: hidden, scale: 1.0, positions: None, projected: false },
        blocks: vec![block; n_blocks],
        head: HeadSpec {
            norm: Some(norm("final_layer_norm")),
            tied: fields.flag_or("tie_word_embeddings", false)?,
            name: "embed_out".into(),
            softcap: None,
        },
        eos: fields.token_ids("eos_token_id")?,
        bos: fields.token_ids("bos_token_id")?.first().copied(),
        text_part: false,
        bases: family.bases,
    })
}
