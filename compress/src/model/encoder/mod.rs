//! Text encoders in the manner of BERT (Devlin et al. 2019): every token sees every other, norms stand after the sums.
//!
//! Sequences are laid end to end, never padded: the linears see one long batch of tokens, and attention stays within
//! each sequence.

use std::sync::Arc;

use candle_core::Tensor;
use scruple_weights::{Checkpoint, TensorView};

mod family;

mod sentence;

pub use family::{EncoderFamily, FAMILIES, Head, Keys, Tensors};
pub use sentence::{Pooling, SentenceEncoder, Tokens};

use super::{
    decoder::expect_ids,
    experts::Routing,
    fields::Fields,
    labels::Labels,
    linear::{self, Linear, expect_shape},
    norm::{LayerNorm, vector},
    self_attention::{Mlp, SelfAttention, activate, sum},
    spec::Stage,
    staged::StagedBlock,
};
use crate::{
    Error, Result,
    export::Quantization,
    kernel::{
        activation::{Activation, add},
        attention::DistanceBias,
        tensor::{from_vec, with_f32},
    },
};

/// What an encoder is, read from `config.json`.
#[derive(Debug, Clone)]
pub struct EncoderConfig {
    /// Its family.
    pub family: &'static EncoderFamily,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub n_blocks: usize,
    /// Heads; divides `hidden_size`.
    pub n_heads: usize,
    /// Tokens.
    pub vocab_size: usize,
    /// Rows of the position embedding.
    pub position_rows: usize,
    /// Activation of the MLP.
    pub activation: Activation,
    /// ε of the layer norms.
    pub norm_eps: f32,
    /// The pad token.
    pub padding: u32,
}

impl EncoderConfig {
    /// Reads the checkpoint's `config.json`.
    ///
    /// # Errors
    /// A `model_type` that is no encoder (the known ones are listed), a missing or impossible field.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self> {
        let file = checkpoint.dir().join("config.json");
        let fields = Fields::new(&file, checkpoint.config()?);
        let model_type = fields.get("model_type").and_then(serde_json::Value::as_str).unwrap_or_default();
        let family = FAMILIES.iter().find(|family| family.model_type == model_type).ok_or_else(|| {
            let known: Vec<_> = FAMILIES.iter().map(|family| family.model_type).collect();
            fields.refuse(format!(
                "model type `{model_type}` is not a text encoder that runs here; those that run are {}",
                known.join(", ")
            ))
        })?;
        if fields.flag_or("is_decoder", false)? || fields.flag_or("add_cross_attention", false)? {
            return Err(fields.refuse("`is_decoder` or `add_cross_attention` is set; only encoders run"));
        }
        match fields.get("position_embedding_type").map(|kind| (kind, kind.as_str())) {
            None | Some((_, Some("absolute"))) => {}
            Some((kind, _)) => {
                return Err(fields.refuse(format!("`position_embedding_type` {kind} is not supported, only absolute")));
            }
        }
        let Keys { hidden, intermediate, blocks, heads, activation, eps } = family.keys;
        let (hidden_size, n_heads) = (fields.count_or(hidden, None)?, fields.count_or(heads, None)?);
        if hidden_size % n_heads != 0 {
            return Err(fields.refuse(format!("`{hidden}` {hidden_size} is not a multiple of `{heads}` {n_heads}")));
        }
        if family.distance_bias && fields.count_or("relative_attention_num_buckets", Some(BUCKETS))? != BUCKETS {
            return Err(fields.refuse(format!("`relative_attention_num_buckets` should be {BUCKETS}")));
        }
        let padding = match (family.fixed_padding, fields.get("pad_token_id")) {
            (false, Some(id)) => match id.as_u64().and_then(|id| u32::try_from(id).ok()) {
                Some(id) => id,
                None => return Err(fields.refuse(format!("`pad_token_id` should be a token id, found {id}"))),
            },
            _ => family.default_padding,
        };
        Ok(Self {
            family,
            hidden_size,
            n_heads,
            intermediate_size: fields.count_or(intermediate, None)?,
            n_blocks: fields.count_or(blocks, None)?,
            vocab_size: fields.count_or("vocab_size", None)?,
            position_rows: fields.count_or("max_position_embeddings", Some(512))?,
            activation: fields.any_activation(activation, "gelu")?,
            norm_eps: eps.map_or(Ok(family.default_eps), |eps| fields.number_from_zero(eps, family.default_eps))?
                as f32,
            padding,
        })
    }

    /// Most tokens of a sequence, those around the text included.
    pub fn max_tokens(&self) -> usize {
        match self.family.positions_after_padding {
            true => self.position_rows.saturating_sub(self.padding as usize + 1),
            false => self.position_rows,
        }
    }

    /// The position of each token of a sequence.
    fn positions<'a>(&self, ids: &'a [u32]) -> impl Iterator<Item = usize> + 'a {
        let (after_padding, padding) = (self.family.positions_after_padding, self.padding);
        let mut seen = 0;
        ids.iter().map(move |&id| {
            let counts = !after_padding || id != padding;
            seen += usize::from(counts);
            match (after_padding, counts) {
                (false, _) => seen - 1,
                (true, true) => padding as usize + seen,
                (true, false) => padding as usize,
            }
        })
    }
}

/// Buckets of MPNet's distances.
const BUCKETS: usize = 32;

/// The bucket of key position − query position (Raffel et al. 2020, section 2.1, for both directions): half of the
/// buckets look each way, of which half hold one distance each and half reach up to 128 in equal ratios. Computed in f32
/// as the weights were trained.
pub fn distance_bucket(distance: isize) -> usize {
    const HALF: usize = BUCKETS / 2;
    const EXACT: usize = HALF / 2;
    const FURTHEST: f64 = 128.0;
    let ahead = if distance > 0 { HALF } else { 0 };
    let n = distance.unsigned_abs();
    let bucket = if n < EXACT {
        n
    } else {
        let ratio = (n as f32 / EXACT as f32).ln() / ((FURTHEST / EXACT as f64).ln() as f32);
        (EXACT + (ratio * (HALF - EXACT) as f32) as usize).min(HALF - 1)
    };
    ahead + bucket
}

/// One block: attention and MLP, each followed by the sum with its input and a norm.
#[derive(Debug)]
pub(crate) struct Block {
    attention: SelfAttention,
    attention_norm: LayerNorm,
    mlp: Mlp,
    output_norm: LayerNorm,
    /// Added to the scores of every block alike.
    bias: Option<Arc<DistanceBias>>,
}

impl Block {
    fn load(
        checkpoint: &Checkpoint,
        config: &EncoderConfig,
        prefix: &str,
        quantization: Option<&Quantization>,
        index: usize,
        bias: Option<Arc<DistanceBias>>,
    ) -> Result<Self> {
        let Tensors { blocks, attention, attention_norm, mlp, output_norm } = config.family.tensors;
        let path = format!("{prefix}{blocks}.{index}");
        let full = |name: &str| format!("{path}.{name}");
        let norm = |name: &str| norm(checkpoint, &full(name), config);
        let [q, k, v, o] = attention.map(full);
        let [up, down] = mlp.map(full);
        Ok(Self {
            attention: SelfAttention::load(
                checkpoint,
                [&q, &k, &v, &o],
                config.hidden_size,
                config.n_heads,
                true,
                quantization,
            )?,
            attention_norm: norm(attention_norm)?,
            mlp: Mlp::load(
                checkpoint,
                [&up, &down],
                (config.hidden_size, config.intermediate_size),
                config.activation,
                false,
                quantization,
            )?,
            output_norm: norm(output_norm)?,
            bias,
        })
    }

    fn forward(&self, x: &Tensor, lengths: &[usize]) -> Result<Tensor> {
        let heads = self.attention.heads(x, lengths, self.bias.as_deref())?;
        let x = StagedBlock::attention_output(self, x, &heads)?;
        self.mlp_output(&x, &self.mlp.inner(&x)?, None)
    }
}

impl StagedBlock for Block {
    fn in_features(&self, stage: Stage) -> usize {
        let (hidden, width) = self.mlp.widths();
        if stage == Stage::MlpOutput { width } else { hidden }
    }

    fn token_width(&self, stage: Stage) -> usize {
        self.in_features(stage)
    }

    fn groups(&self, _: Stage) -> usize {
        1
    }

    fn is_parallel(&self) -> bool {
        false
    }

    fn attention_input(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.clone())
    }

    fn attention(&self, h: &Tensor) -> Result<Tensor> {
        self.attention.heads(h, &[h.dim(0)?], self.bias.as_deref())
    }

    fn attention_output(&self, x: &Tensor, heads: &Tensor) -> Result<Tensor> {
        self.attention_norm.forward(&sum(x, &self.attention.output(heads)?)?)
    }

    fn mlp_input(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.clone())
    }

    fn routing(&self, _: &Tensor) -> Result<Option<Routing>> {
        Ok(None)
    }

    fn mlp(&self, h: &Tensor, _: Option<&Routing>) -> Result<Tensor> {
        self.mlp.inner(h)
    }

    fn mlp_output(&self, x: &Tensor, hidden: &Tensor, _: Option<&Routing>) -> Result<Tensor> {
        self.output_norm.forward(&sum(x, &self.mlp.output(hidden)?)?)
    }

    fn replace(&mut self, stage: Stage, index: usize, linear: Box<dyn Linear>) {
        match stage {
            Stage::Attention => self.attention.replace(index, linear),
            Stage::AttentionOutput => self.attention.replace(3, linear),
            Stage::Mlp => self.mlp.replace(0, linear),
            Stage::MlpOutput => self.mlp.replace(1, linear),
        }
    }
}

/// A layer norm, under its own names or those of checkpoints that came from TensorFlow (`gamma`, `beta`).
fn norm(checkpoint: &Checkpoint, name: &str, config: &EncoderConfig) -> Result<LayerNorm> {
    let (features, eps) = (config.hidden_size, config.norm_eps);
    if !checkpoint.contains(&format!("{name}.weight")) && checkpoint.contains(&format!("{name}.gamma")) {
        let weight = vector(checkpoint, &format!("{name}.gamma"), features)?;
        let bias = vector(checkpoint, &format!("{name}.beta"), features)?;
        return Ok(LayerNorm::new(weight, Some(bias), eps));
    }
    LayerNorm::load(checkpoint, name, features, true, eps)
}

/// A classification head.
#[derive(Debug)]
struct Classifier {
    dense: Box<dyn Linear>,
    activation: Activation,
    output: Box<dyn Linear>,
    labels: Labels,
}

/// What stands before the blocks.
#[derive(Debug)]
pub(crate) struct Embedding {
    config: EncoderConfig,
    words: TensorView,
    positions: Vec<f32>, // (positions, hidden), the first token type added
    norm: LayerNorm,
}

/// An encoder that runs, with its classification head where the checkpoint has one.
#[derive(Debug)]
pub struct Encoder {
    embedding: Embedding,
    blocks: Vec<Block>,
    classifier: Option<Classifier>,
}

/// What the names of the encoder's tensors begin with.
fn prefix(checkpoint: &Checkpoint, family: &EncoderFamily) -> &'static str {
    if checkpoint.contains("embeddings.word_embeddings.weight") { "" } else { family.prefix }
}

impl EncoderConfig {
    /// The path of block `index` in `checkpoint`.
    pub(crate) fn block_path(&self, checkpoint: &Checkpoint, index: usize) -> String {
        format!("{}{}.{index}", prefix(checkpoint, self.family), self.family.tensors.blocks)
    }

    /// The linears of block `index` in `checkpoint`: full name, stage, number there, (out_features, in_features).
    pub(crate) fn linears(&self, checkpoint: &Checkpoint, index: usize) -> Vec<(String, Stage, usize, (usize, usize))> {
        let path = self.block_path(checkpoint, index);
        let full = |name: &str| format!("{path}.{name}");
        let (hidden, width) = (self.hidden_size, self.intermediate_size);
        let [q, k, v, o] = self.family.tensors.attention.map(full);
        let [up, down] = self.family.tensors.mlp.map(full);
        vec![
            (q, Stage::Attention, 0, (hidden, hidden)),
            (k, Stage::Attention, 1, (hidden, hidden)),
            (v, Stage::Attention, 2, (hidden, hidden)),
            (o, Stage::AttentionOutput, 0, (hidden, hidden)),
            (up, Stage::Mlp, 0, (width, hidden)),
            (down, Stage::MlpOutput, 0, (hidden, width)),
        ]
    }

    /// Block `index` of the dense `checkpoint`.
    pub(crate) fn load_block(&self, checkpoint: &Checkpoint, index: usize) -> Result<Block> {
        let prefix = prefix(checkpoint, self.family);
        Block::load(checkpoint, self, prefix, None, index, shared_bias(checkpoint, self, prefix)?)
    }
}

/// The bias that all blocks add to their scores, where the family has one.
fn shared_bias(checkpoint: &Checkpoint, config: &EncoderConfig, prefix: &str) -> Result<Option<Arc<DistanceBias>>> {
    let name = format!("{prefix}encoder.relative_attention_bias.weight");
    config.family.distance_bias.then(|| distance_bias(checkpoint, &name, config).map(Arc::new)).transpose()
}

impl Embedding {
    /// Opens the tables of `checkpoint`.
    ///
    /// # Errors
    /// A missing tensor, or one of another shape.
    pub fn load(checkpoint: &Checkpoint, config: &EncoderConfig) -> Result<Self> {
        let (family, hidden) = (config.family, config.hidden_size);
        let prefix = prefix(checkpoint, family);
        let name = |tensor: &str| format!("{prefix}{tensor}");
        let words = checkpoint.tensor(&name("embeddings.word_embeddings.weight"))?;
        expect_shape(&words, &[config.vocab_size, hidden])?;
        let table = checkpoint.tensor(&name("embeddings.position_embeddings.weight"))?;
        expect_shape(&table, &[config.position_rows, hidden])?;
        let mut positions = table.to_f32()?;
        if family.token_types {
            let types = checkpoint.tensor(&name("embeddings.token_type_embeddings.weight"))?;
            let rows = types.shape().first().copied().unwrap_or(0).max(1);
            expect_shape(&types, &[rows, hidden])?;
            let mut first = vec![0.0; hidden];
            types.read_rows(0..1, &mut first)?;
            positions.chunks_exact_mut(hidden).for_each(|row| add(row, &first));
        }
        let norm = norm(checkpoint, &name("embeddings.LayerNorm"), config)?;
        Ok(Self { config: config.clone(), words, positions, norm })
    }

    /// Refuses a sequence that is empty, too long, or holds ids that this model does not have.
    fn expect(&self, ids: &[u32]) -> Result<()> {
        let limit = self.config.max_tokens();
        if ids.is_empty() || ids.len() > limit {
            return Err(Error::Text(format!(
                "{}: a sequence of {} tokens was given, the model takes 1 to {limit}",
                self.words.file().display(),
                ids.len()
            )));
        }
        expect_ids(self.words.file(), ids, self.config.vocab_size)
    }

    /// The first block's input (tokens, hidden) of all `sequences`, one after the other.
    ///
    /// # Errors
    /// If a sequence is empty, too long, or holds ids outside the vocabulary.
    pub fn embed<S: AsRef<[u32]>>(&self, sequences: &[S]) -> Result<Tensor> {
        let hidden = self.config.hidden_size;
        let tokens = sequences.iter().map(|ids| ids.as_ref().len()).sum();
        let mut x = Vec::with_capacity(tokens * hidden);
        for ids in sequences.iter().map(AsRef::as_ref) {
            self.expect(ids)?;
            for (&id, position) in ids.iter().zip(self.config.positions(ids)) {
                let start = x.len();
                x.resize(start + hidden, 0.0);
                self.words.read_rows(id as usize..id as usize + 1, &mut x[start..])?;
                add(&mut x[start..], &self.positions[position * hidden..][..hidden]);
            }
        }
        self.norm.in_place(&mut x);
        from_vec(x, (tokens, hidden))
    }
}

impl Encoder {
    /// Builds the encoder of `checkpoint`: checks that every tensor the configuration asks for is there with its shape.
    ///
    /// # Errors
    /// As [`EncoderConfig::from_checkpoint`]; a missing tensor, or one of another shape.
    pub fn open(checkpoint: &Checkpoint) -> Result<Self> {
        let config = EncoderConfig::from_checkpoint(checkpoint)?;
        let quantization = crate::export::detect(checkpoint)?;
        let prefix = prefix(checkpoint, config.family);
        let bias = shared_bias(checkpoint, &config, prefix)?;
        let blocks = (0..config.n_blocks)
            .map(|index| Block::load(checkpoint, &config, prefix, quantization.as_ref(), index, bias.clone()))
            .collect::<Result<_>>()?;
        let classifier = classifier(checkpoint, &config, prefix, quantization.as_ref())?;
        Ok(Self { embedding: Embedding::load(checkpoint, &config)?, blocks, classifier })
    }

    /// What was read from `config.json`.
    pub fn config(&self) -> &EncoderConfig {
        &self.embedding.config
    }

    /// Takes out every block that is not among `kept`, given in order.
    ///
    /// # Errors
    /// If `kept` is empty, not in order, or names a block that there is not.
    pub fn keep_blocks(&mut self, kept: &[usize]) -> Result<()> {
        crate::model::decoder::keep(&mut self.blocks, kept)?;
        self.embedding.config.n_blocks = kept.len();
        Ok(())
    }

    /// The labels, where there is a classification head.
    pub fn labels(&self) -> Option<&Labels> {
        self.classifier.as_ref().map(|classifier| &classifier.labels)
    }

    /// Refuses a sequence that is empty, too long, or holds ids that this model does not have.
    pub fn expect(&self, ids: &[u32]) -> Result<()> {
        self.embedding.expect(ids)
    }

    /// Last hidden states (tokens, hidden) of all `sequences`, one after the other.
    ///
    /// # Errors
    /// If a sequence is empty, too long, or holds ids outside the vocabulary.
    pub fn hidden<S: AsRef<[u32]>>(&self, sequences: &[S]) -> Result<Tensor> {
        let mut x = self.embedding.embed(sequences)?;
        let lengths: Vec<usize> = sequences.iter().map(|ids| ids.as_ref().len()).collect();
        for block in &self.blocks {
            x = block.forward(&x, &lengths)?;
        }
        Ok(x)
    }

    /// Class outputs (sequences, classes) of all `sequences`.
    ///
    /// # Errors
    /// As [`Encoder::hidden`], and if the model has no classification head.
    pub fn logits<S: AsRef<[u32]>>(&self, sequences: &[S]) -> Result<Tensor> {
        let Some(Classifier { dense, activation, output, .. }) = &self.classifier else {
            return Err(Error::Model(format!(
                "{}: the model has no classification head",
                self.embedding.words.file().display()
            )));
        };
        let states = self.hidden(sequences)?;
        let hidden = self.config().hidden_size;
        let mut first = Vec::with_capacity(sequences.len() * hidden);
        with_f32(&states, |states| {
            let mut at = 0;
            for ids in sequences {
                first.extend_from_slice(&states[at * hidden..][..hidden]);
                at += ids.as_ref().len();
            }
        })?;
        let first = from_vec(first, (sequences.len(), hidden))?;
        output.forward(&activate(&dense.forward(&first)?, *activation)?)
    }

    /// Bits of the blocks' linears on disk, with scales and indices, and their number of weights.
    pub fn linear_bits(&self) -> (u64, u64) {
        let all = self.blocks.iter().flat_map(|block| block.attention.linears().into_iter().chain(block.mlp.linears()));
        all.fold((0, 0), |(bits, weights), linear| {
            let (out_features, in_features) = linear.shape();
            (bits + linear.storage_bits(), weights + (out_features * in_features) as u64)
        })
    }
}

/// MPNet's table (buckets, heads) as a bias by distance.
fn distance_bias(checkpoint: &Checkpoint, name: &str, config: &EncoderConfig) -> Result<DistanceBias> {
    let view = checkpoint.tensor(name)?;
    expect_shape(&view, &[BUCKETS, config.n_heads])?;
    let values = view.to_f32()?;
    let bias = |head, distance| values[distance_bucket(distance) * config.n_heads + head];
    Ok(DistanceBias::new(config.n_heads, config.max_tokens(), bias))
}

/// The classification head, if the checkpoint is of an architecture that has one.
fn classifier(
    checkpoint: &Checkpoint,
    config: &EncoderConfig,
    prefix: &str,
    quantization: Option<&Quantization>,
) -> Result<Option<Classifier>> {
    let file = checkpoint.dir().join("config.json");
    let fields = Fields::new(&file, checkpoint.config()?);
    let architecture = fields.get("architectures").and_then(|all| all.get(0)?.as_str());
    let Head { dense, activation, output } = config.family.head;
    let Some(weight) = checkpoint.get(&format!("{output}.weight")) else { return Ok(None) };
    // Heads for tokens and spans have tensors of the same names.
    if architecture.is_some_and(|name| !name.ends_with("ForSequenceClassification")) {
        return Ok(None);
    }
    let hidden = config.hidden_size;
    let dense = match dense.strip_prefix('.') {
        Some(inner) => format!("{prefix}{inner}"),
        None => dense.to_string(),
    };
    let classes = weight.shape().first().copied().unwrap_or(0).max(1);
    Ok(Some(Classifier {
        dense: linear::load_shaped(checkpoint, &dense, (hidden, hidden, true), quantization)?,
        activation,
        output: linear::load_shaped(checkpoint, output, (classes, hidden, true), quantization)?,
        labels: Labels::read(&fields, classes)?,
    }))
}
