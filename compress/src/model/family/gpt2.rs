//! GPT-2 (Radford et al. 2019): learned positions, layer norms, q, k and v from one linear, weights stored as
//! `Conv1D`, (in_features, out_features).

use super::Family;
use crate::{
    Result,
    model::{
        config::{DecoderConfig, MAX_BLOCKS},
        fields::Fields,
        spec::{
            AttentionSpec, BlockSpec, EmbeddingSpec, Gate, HeadSpec, LinearSpec, MlpSpec, NormKind, NormSpec, Norms,
            PositionsSpec, Projection, Stage,
        },
    },
};

/// Newer releases write the common names for GPT-2's own.
fn count(fields: &Fields<'_>, own: &str, common: &str) -> Result<usize> {
    let key = if fields.get(own).is_none() && fields.get(common).is_some() { common } else { own };
    fields.count_or(key, None)
}

pub(super) fn read(fields: &Fields<'_>, family: &'static Family, model_type: &str) -> Result<DecoderConfig> {
    let hidden = count(fields, "n_embd", "hidden_size")?;
    let heads = count(fields, "n_head", "num_attention_heads")?;
    let n_blocks = count(fields, "n_layer", "num_hidden_layers")?;
    let width = fields.maybe_count("n_inner")?.unwrap_or(4 * hidden);
    if hidden % heads != 0 {
        return Err(fields.refuse(format!("`n_embd` {hidden} is not a multiple of `n_head` {heads}")));
    }
    if n_blocks > MAX_BLOCKS {
        return Err(fields.refuse(format!("`n_layer` is {n_blocks}, more than the {MAX_BLOCKS} that are run here")));
    }
    if fields.flag_or("add_cross_attention", false)? {
        return Err(
            fields.refuse("`add_cross_attention` is true: the model reads an encoder too, which is not run here")
        );
    }
    let eps = fields.number_or("layer_norm_epsilon", Some(1e-5))? as f32;
    let activation = fields.activation(
        "activation_function",
        "gelu_new",
        &["gelu_new", "gelu", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu", "relu", "silu", "swish", "tanh"],
    )?;
    let scaled = fields.flag_or("scale_attn_weights", true)?;
    let by_block = fields.flag_or("scale_attn_by_inverse_layer_idx", false)?;
    let norm = |name| NormSpec { name, kind: NormKind::Layer, eps };
    let before = |name| Norms { before: Some(norm(name)), ..Norms::default() };
    let linear = |name: &str, stage, out_features, in_features| LinearSpec {
        name: name.into(),
        stage,
        expert: None,
        out_features,
        in_features,
        bias: true,
        transposed: true,
    };
    let head_dim = hidden / heads;
    let block = |index: usize| BlockSpec {
        attention: AttentionSpec {
            n_heads: heads,
            n_kv_heads: heads,
            head_dim,
            projection: Projection::Fused,
            qk_norm: None,
            rope: None,
            window: None,
            scale: {
                let scale = if scaled { 1.0 / (head_dim as f64).sqrt() } else { 1.0 };
                (if by_block { scale / (index + 1) as f64 } else { scale }) as f32
            },
            softcap: None,
        },
        attention_norms: before("ln_1"),
        mlp: MlpSpec { activation, gate: Gate::None, width, experts: None },
        mlp_norms: before("ln_2"),
        parallel: false,
        linears: vec![
            linear("attn.c_attn", Stage::Attention, 3 * hidden, hidden),
            linear("attn.c_proj", Stage::AttentionOutput, hidden, hidden),
            linear("mlp.c_fc", Stage::Mlp, width, hidden),
            linear("mlp.c_proj", Stage::MlpOutput, hidden, width),
        ],
    };
    Ok(DecoderConfig {
        model_type: model_type.to_string(),
        hidden_size: hidden,
        vocab_size: fields.count_or("vocab_size", None)?,
        max_positions: count(fields, "n_positions", "max_position_embeddings")?,
        n_blocks,
        base: family.bases[0].to_string(),
        layers: "h",
        embedding: EmbeddingSpec {
            name: "wte",
            width: hidden,
            scale: 1.0,
            positions: Some(PositionsSpec { name: "wpe", offset: 0 }),
            projected: false,
        },
        blocks: (0..n_blocks).map(block).collect(),
        head: HeadSpec {
            norm: Some(norm("ln_f")),
            tied: fields.flag_or("tie_word_embeddings", true)?,
            name: "lm_head".into(),
            softcap: None,
        },
        eos: fields.token_ids("eos_token_id")?,
        bos: fields.token_ids("bos_token_id")?.first().copied(),
        text_part: false,
        bases: family.bases,
    })
}
