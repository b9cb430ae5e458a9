//! The encoder families: how each names its settings and tensors, and in what its mathematics differs from BERT's.

use crate::kernel::activation::Activation;

/// One encoder family.
#[derive(Debug, Clone, Copy)]
pub struct EncoderFamily {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// What the tensors of the encoder begin with in a checkpoint that has a head too.
    pub prefix: &'static str,
    /// Names of the settings.
    pub keys: Keys,
    /// Names of the tensors of a block, after `PREFIX.BLOCKS.N.`.
    pub tensors: Tensors,
    /// The first token stands at position `pad_token_id + 1`, and pad tokens are not counted (RoBERTa).
    pub positions_after_padding: bool,
    /// `pad_token_id` where the configuration has none.
    pub default_padding: u32,
    /// The pad token's position whatever the configuration says.
    pub fixed_padding: bool,
    /// Every token is of the first of two types, whose embedding is added.
    pub token_types: bool,
    /// One learned bias a head and bucket of distances, shared by all blocks, is added to the scores.
    pub distance_bias: bool,
    /// ε of the layer norms where the configuration has none, or the family does not read it.
    pub default_eps: f64,
    /// The way from the first token's hidden state to class scores.
    pub head: Head,
    /// With what its results were compared.
    pub checked_by: &'static str,
}

/// Names of settings in `config.json`.
#[derive(Debug, Clone, Copy)]
pub struct Keys {
    /// Width of the hidden states.
    pub hidden: &'static str,
    /// Width of the MLP.
    pub intermediate: &'static str,
    /// Number of blocks.
    pub blocks: &'static str,
    /// Number of heads.
    pub heads: &'static str,
    /// Activation of the MLP.
    pub activation: &'static str,
    /// ε of the layer norms, where it is read.
    pub eps: Option<&'static str>,
}

/// Names of tensors.
#[derive(Debug, Clone, Copy)]
pub struct Tensors {
    /// The list of blocks.
    pub blocks: &'static str,
    /// q, k, v and the output of the attention.
    pub attention: [&'static str; 4],
    /// The norm after the attention.
    pub attention_norm: &'static str,
    /// The two linears of the MLP.
    pub mlp: [&'static str; 2],
    /// The norm after the MLP.
    pub output_norm: &'static str,
}

/// A classification head: `output(f(dense(x)))` of the first token's hidden state.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    /// The inner linear; one that begins with `.` belongs to the encoder.
    pub dense: &'static str,
    /// Its activation.
    pub activation: Activation,
    /// The outer linear.
    pub output: &'static str,
}

const BERT_KEYS: Keys = Keys {
    hidden: "hidden_size",
    intermediate: "intermediate_size",
    blocks: "num_hidden_layers",
    heads: "num_attention_heads",
    activation: "hidden_act",
    eps: Some("layer_norm_eps"),
};

const BERT: EncoderFamily = EncoderFamily {
    model_type: "bert",
    prefix: "bert.",
    keys: BERT_KEYS,
    tensors: Tensors {
        blocks: "encoder.layer",
        attention: ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"],
        attention_norm: "attention.output.LayerNorm",
        mlp: ["intermediate.dense", "output.dense"],
        output_norm: "output.LayerNorm",
    },
    positions_after_padding: false,
    default_padding: 0,
    fixed_padding: false,
    token_types: true,
    distance_bias: false,
    default_eps: 1e-12,
    head: Head { dense: ".pooler.dense", activation: Activation::Tanh, output: "classifier" },
    checked_by: "transformers 5.17 on tiny seeded models; all-MiniLM-L6-v2",
};

const ROBERTA: EncoderFamily = EncoderFamily {
    model_type: "roberta",
    prefix: "roberta.",
    positions_after_padding: true,
    default_padding: 1,
    head: Head { dense: "classifier.dense", activation: Activation::Tanh, output: "classifier.out_proj" },
    checked_by: "transformers 5.17 on a tiny seeded model",
    ..BERT
};

/// The encoder families that run.
pub const FAMILIES: &[EncoderFamily] = &[
    BERT,
    ROBERTA,
    EncoderFamily { model_type: "xlm-roberta", checked_by: "transformers 5.17 on a tiny seeded classifier", ..ROBERTA },
    EncoderFamily {
        model_type: "camembert",
        checked_by: "RoBERTa's goldens: the same network under another name",
        ..ROBERTA
    },
    EncoderFamily {
        model_type: "distilbert",
        prefix: "distilbert.",
        keys: Keys {
            hidden: "dim",
            intermediate: "hidden_dim",
            blocks: "n_layers",
            heads: "n_heads",
            activation: "activation",
            eps: None,
        },
        tensors: Tensors {
            blocks: "transformer.layer",
            attention: ["attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"],
            attention_norm: "sa_layer_norm",
            mlp: ["ffn.lin1", "ffn.lin2"],
            output_norm: "output_layer_norm",
        },
        token_types: false,
        head: Head { dense: "pre_classifier", activation: Activation::Relu, output: "classifier" },
        checked_by: "transformers 5.17 on tiny seeded models",
        ..BERT
    },
    EncoderFamily {
        model_type: "mpnet",
        prefix: "mpnet.",
        tensors: Tensors {
            blocks: "encoder.layer",
            attention: ["attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"],
            attention_norm: "attention.LayerNorm",
            mlp: ["intermediate.dense", "output.dense"],
            output_norm: "output.LayerNorm",
        },
        positions_after_padding: true,
        default_padding: 1,
        fixed_padding: true,
        token_types: false,
        distance_bias: true,
        head: Head { dense: "classifier.dense", activation: Activation::Tanh, output: "classifier.out_proj" },
        checked_by: "transformers 5.17 on tiny seeded models; all-mpnet-base-v2",
        ..BERT
    },
];
