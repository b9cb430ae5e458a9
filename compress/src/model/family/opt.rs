//! OPT (Zhang et al. 2022): learned positions from the third row on, layer norms before (or, at 350M, after the sums),
//! ReLU, and at 350M an embedding narrower than the stream.

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

/// ε of all its norms; the configuration does not say.
const EPS: f32 = 1e-5;

/// Rows of the position table before that of position 0.
const POSITION_OFFSET: usize = 2;

pub(super) fn read(fields: &Fields<'_>, family: &'static Family, model_type: &str) -> Result<DecoderConfig> {
    let hidden = fields.count_or("hidden_size", None)?;
    let heads = fields.count_or("num_attention_heads", None)?;
    let width = fields.count_or("ffn_dim", None)?;
    let n_blocks = fields.limited_count("num_hidden_layers", MAX_BLOCKS)?;
    let embedded = fields.count_or("word_embed_proj_dim", Some(hidden))?;
    if hidden % heads != 0 {
        return Err(fields.refuse(format!("`hidden_size` {hidden} is not a multiple of `num_attention_heads` {heads}")));
    }
    let activation = fields.activation(
        "activation_function",
        "relu",
        &["relu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "quick_gelu", "silu", "swish", "tanh"],
    )?;
    let bias = fields.flag_or("enable_bias", true)?;
    let pre_norm = fields.flag_or("do_layer_norm_before", true)?;
    let affine = fields.flag_or("layer_norm_elementwise_affine", true)?;
    let kind = if affine { NormKind::Layer } else { NormKind::LayerPlain };
    let norm = |name| NormSpec { name, kind, eps: EPS };
    let placed = |name| match pre_norm {
        true => Norms { before: Some(norm(name)), ..Norms::default() },
        false => Norms { after: Some(norm(name)), ..Norms::default() },
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
    let head_dim = hidden / heads;
    let block = BlockSpec {
        attention: AttentionSpec {
            n_heads: heads,
            n_kv_heads: heads,
            head_dim,
            projection: Projection::Separate,
            qk_norm: None,
            rope: None,
            window: None,
            scale: 1.0 / (head_dim as f32).sqrt(),
            softcap: None,
        },
        attention_norms: placed("self_attn_layer_norm"),
        mlp: MlpSpec { activation, gate: Gate::None, width, experts: None },
        mlp_norms: placed("final_layer_norm"),
        parallel: false,
        linears: vec![
            linear("self_attn.q_proj", Stage::Attention, hidden, hidden),
            linear("self_attn.k_proj", Stage::Attention, hidden, hidden),
            linear("self_attn.v_proj", Stage::Attention, hidden, hidden),
            linear("self_attn.out_proj", Stage::AttentionOutput, hidden, hidden),
            linear("fc1", Stage::Mlp, width, hidden),
            linear("fc2", Stage::MlpOutput, hidden, width),
        ],
    };
    let final_norm = pre_norm && !fields.flag_or("_remove_final_layer_norm", false)?;
    Ok(DecoderConfig {
        model_type: model_type.to_string(),
        hidden_size: hidden,
        vocab_size: fields.count_or("vocab_size", None)?,
        max_positions: fields.count_or("max_position_embeddings", Some(2048))?,
        n_blocks,
        base: family.bases[0].to_string(),
        layers: "layers",
        embedding: EmbeddingSpec {
            name: "embed_tokens",
            width: embedded,
            scale: 1.0,
            positions: Some(PositionsSpec { name: "embed_positions", offset: POSITION_OFFSET }),
            projected: embedded != hidden,
        },
        blocks: vec![block; n_blocks],
        head: HeadSpec {
            norm: final_norm.then(|| norm("final_layer_norm")),
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
