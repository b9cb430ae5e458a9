//! Falcon (Almazrouei et al. 2023): attention and MLP beside each other, few key/value heads, in one linear with the query
//! heads that share them.

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

/// The first configurations have other names: `n_layer`, `n_head`, `n_head_kv`.
fn count(fields: &Fields<'_>, name: &str, older: &str, default: Option<usize>) -> Result<usize> {
    let key = if fields.get(name).is_none() && fields.get(older).is_some() { older } else { name };
    fields.count_or(key, default)
}

pub(super) fn read(fields: &Fields<'_>, family: &'static Family, model_type: &str) -> Result<DecoderConfig> {
    if fields.flag_or("alibi", false)? {
        return Err(fields.refuse("`alibi` is true: positions by ALiBi are not run, only rotary ones"));
    }
    let hidden = count(fields, "hidden_size", "n_embed", None)?;
    let heads = count(fields, "num_attention_heads", "n_head", None)?;
    let n_blocks = count(fields, "num_hidden_layers", "n_layer", None)?;
    if n_blocks > MAX_BLOCKS {
        return Err(
            fields.refuse(format!("`num_hidden_layers` is {n_blocks}, more than the {MAX_BLOCKS} that are run here"))
        );
    }
    if hidden % heads != 0 {
        return Err(fields.refuse(format!("`hidden_size` {hidden} is not a multiple of `num_attention_heads` {heads}")));
    }
    let head_dim = hidden / heads;
    let max_positions = fields.count_or("max_position_embeddings", Some(2048))?;
    let width = fields.count_or("ffn_hidden_size", Some(4 * hidden))?;
    let new = fields.flag_or("new_decoder_architecture", false)?;
    let kv_heads = match new {
        true => count(fields, "num_kv_heads", "n_head_kv", Some(heads))?,
        false if fields.flag_or("multi_query", true)? => 1,
        false => heads,
    };
    let parallel = new || fields.flag_or("parallel_attn", true)?;
    let own_mlp_norm = new && fields.count_or("num_ln_in_parallel_attn", Some(2))? == 2;
    let eps = fields.number_or("layer_norm_epsilon", Some(1e-5))? as f32;
    let activation = fields.activation(
        "activation",
        "gelu",
        &["gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu", "relu", "silu", "swish", "tanh"],
    )?;
    let bias = fields.flag_or("bias", false)?;
    let rope = rope::read(fields, RopeRules::USUAL, "full_attention", head_dim, max_positions)?;
    let norm = |name| NormSpec { name, kind: NormKind::Layer, eps };
    let before = |name| Norms { before: Some(norm(name)), ..Norms::default() };
    // Side by side, attention and MLP read the same normed stream unless each has a norm of its own.
    let (attention_norm, mlp_norm) = match (own_mlp_norm, parallel) {
        (true, _) => ("ln_attn", "ln_mlp"),
        (false, true) => ("input_layernorm", "input_layernorm"),
        (false, false) => ("input_layernorm", "post_attention_layernorm"),
    };
    let linear = |name: &str, stage, out_features, in_features| LinearSpec {
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
            n_kv_heads: kv_heads,
            head_dim,
            projection: Projection::Grouped,
            qk_norm: None,
            rope: Some(rope),
            window: None,
            scale: 1.0 / (head_dim as f32).sqrt(),
            softcap: None,
        },
        attention_norms: before(attention_norm),
        mlp: MlpSpec { activation, gate: Gate::None, width, experts: None },
        mlp_norms: before(mlp_norm),
        parallel,
        linears: vec![
            linear("self_attention.query_key_value", Stage::Attention, (heads + 2 * kv_heads) * head_dim, hidden),
            linear("self_attention.dense", Stage::AttentionOutput, hidden, hidden),
            linear("mlp.dense_h_to_4h", Stage::Mlp, width, hidden),
            linear("mlp.dense_4h_to_h", Stage::MlpOutput, hidden, width),
        ],
    };
    Ok(DecoderConfig {
        model_type: model_type.to_string(),
        hidden_size: hidden,
        vocab_size: fields.count_or("vocab_size", None)?,
        max_positions,
        n_blocks,
        base: family.bases[0].to_string(),
        layers: "h",
        embedding: EmbeddingSpec {
            name: "word_embeddings",
            width: hidden,
            scale: 1.0,
            positions: None,
            projected: false,
        },
        blocks: vec![block; n_blocks],
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
