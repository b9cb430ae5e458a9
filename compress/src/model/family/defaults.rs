//! What the configuration classes of transformers hold by default: a `text_config` leaves these numbers out.

pub(super) const LLAMA: &[(&str, u64)] = &[
    ("vocab_size", 32000),
    ("hidden_size", 4096),
    ("intermediate_size", 11008),
    ("num_hidden_layers", 32),
    ("num_attention_heads", 32),
];

pub(super) const MISTRAL: &[(&str, u64)] = &[
    ("vocab_size", 32000),
    ("hidden_size", 4096),
    ("intermediate_size", 14336),
    ("num_hidden_layers", 32),
    ("num_attention_heads", 32),
    ("num_key_value_heads", 8),
    ("max_position_embeddings", 131_072),
];

pub(super) const QWEN: &[(&str, u64)] = &[
    ("vocab_size", 151_936),
    ("hidden_size", 4096),
    ("intermediate_size", 22016),
    ("num_hidden_layers", 32),
    ("num_attention_heads", 32),
    ("num_key_value_heads", 32),
    ("max_position_embeddings", 32768),
];

pub(super) const PHI3: &[(&str, u64)] = &[
    ("vocab_size", 32064),
    ("hidden_size", 3072),
    ("intermediate_size", 8192),
    ("num_hidden_layers", 32),
    ("num_attention_heads", 32),
    ("max_position_embeddings", 4096),
];

pub(super) const GEMMA: &[(&str, u64)] = &[
    ("vocab_size", 256_000),
    ("hidden_size", 3072),
    ("intermediate_size", 24576),
    ("num_hidden_layers", 28),
    ("num_attention_heads", 16),
    ("num_key_value_heads", 16),
    ("max_position_embeddings", 8192),
];

pub(super) const GEMMA2: &[(&str, u64)] = &[
    ("vocab_size", 256_000),
    ("hidden_size", 2304),
    ("intermediate_size", 9216),
    ("num_hidden_layers", 26),
    ("num_attention_heads", 8),
    ("num_key_value_heads", 4),
    ("max_position_embeddings", 8192),
    ("sliding_window", 4096),
];

pub(super) const GEMMA3: &[(&str, u64)] = &[
    ("vocab_size", 262_208),
    ("hidden_size", 2304),
    ("intermediate_size", 9216),
    ("num_hidden_layers", 26),
    ("num_attention_heads", 8),
    ("num_key_value_heads", 4),
    ("max_position_embeddings", 131_072),
    ("sliding_window", 4096),
];
