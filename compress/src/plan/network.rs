//! Which linears a network has, and where: from its family where it runs here, from names and shapes where it does not.

use std::collections::{BTreeMap, HashSet};

use candle_core::{Device, Tensor};
use scruple_weights::{
    Checkpoint, Shard, TensorView, format,
    name::{Place, place},
};

use crate::{
    Error, Result,
    model::{
        DecoderConfig,
        any::{self, Kind},
        block::OnDevice,
        decoder::{Block, Decoder, Ends, Stage, expect_ids},
        encoder::{Embedding, Encoder, EncoderConfig},
        spec::LinearSpec,
        staged::StagedBlock,
    },
};

/// The network a plan is for.
#[derive(Debug, Clone)]
pub enum Network {
    /// A decoder that runs here.
    Decoder(Box<DecoderConfig>),
    /// A text encoder that runs here.
    Encoder(Box<EncoderConfig>),
    /// One that does not run, known by the names and shapes of its tensors: methods that look at weights alone can work
    /// on it.
    Named(NamedNetwork),
}

/// A network known by the names and shapes of its tensors.
#[derive(Debug, Clone)]
pub struct NamedNetwork {
    /// Why it cannot be run.
    pub reason: String,
    /// The blocks with linears, in the file's order; those outside of blocks form one more at the end.
    blocks: Vec<(String, Option<usize>)>,
}

/// What makes the first block's input (tokens, hidden) of token ids.
pub(crate) type Embedder<'a> = Box<dyn Fn(&[u32]) -> Result<Tensor> + 'a>;

/// A linear that a recipe may name.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub name: String,
    pub block: usize,
    pub site: Option<Site>,
    pub out_features: usize,
    pub in_features: usize,
    pub transposed: bool,
    /// A pattern that names everything means it.
    pub usual: bool,
}

/// Where a linear of a network that runs reads its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Site {
    /// The place within its block.
    pub stage: Stage,
    /// Which of the stage's linears it is.
    pub index: usize,
    /// The expert it belongs to.
    pub expert: Option<usize>,
}

impl Network {
    /// The network of a dense `checkpoint`.
    ///
    /// # Errors
    /// A network that should run and has a fault: a field of its configuration, a tensor missing or of another shape. A
    /// GGUF file, whose rows and names are not those of the formats that are written.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        let named = |reason: String| Self::Named(NamedNetwork { reason, blocks: named_blocks(checkpoint) });
        let path = checkpoint.path().display();
        let file = checkpoint.dir().join("config.json");
        // A model may come without a configuration, not with one that cannot be read.
        if file.is_file() && !checkpoint.config()?.is_object() {
            let what = "the model's configuration is not a JSON object; fetch the file again";
            return Err(scruple_weights::Error::file(file, what).into());
        }
        match any::kind(checkpoint) {
            Ok(Kind::Decoder) => {
                let config = DecoderConfig::from_checkpoint(checkpoint)?;
                Decoder::check(checkpoint, &config)?;
                Ok(Self::Decoder(Box::new(config)))
            }
            Ok(Kind::Encoder) => {
                let config = EncoderConfig::from_checkpoint(checkpoint)?;
                Encoder::open(checkpoint)?; // its tensors, mapped and not read
                Ok(Self::Encoder(Box::new(config)))
            }
            Ok(kind) => Ok(named(format!("{path}: the model is {}, which is not calibrated here", kind.describe()))),
            Err(_) if checkpoint.shards().iter().any(is_gguf) => Err(Error::Model(format!(
                "{path}: a GGUF file is compressed as the folder that `scruple convert` makes of it"
            ))),
            Err(error) => Ok(named(error.to_string())),
        }
    }

    /// Whether it runs here.
    pub fn runs(&self) -> bool {
        !matches!(self, Self::Named(_))
    }

    /// The text encoder, if it is one that runs.
    pub fn encoder(&self) -> Option<&EncoderConfig> {
        match self {
            Self::Encoder(config) => Some(config),
            _ => None,
        }
    }

    /// Width of the stream that blocks read; 0 of a network that does not run.
    pub(crate) fn hidden_size(&self) -> usize {
        match self {
            Self::Decoder(config) => config.hidden_size,
            Self::Encoder(config) => config.hidden_size,
            Self::Named(_) => 0,
        }
    }

    /// Refuses token ids that the network does not have.
    ///
    /// # Errors
    /// As said; a network that does not run has none.
    pub fn expect_ids(&self, checkpoint: &Checkpoint, ids: &[u32]) -> Result<()> {
        let vocabulary = match self {
            Self::Decoder(config) => config.vocab_size,
            Self::Encoder(config) => config.vocab_size,
            Self::Named(_) => 0,
        };
        expect_ids(checkpoint.path(), ids, vocabulary)
    }

    /// Block `index` of the dense `checkpoint`.
    pub(crate) fn load_block(&self, checkpoint: &Checkpoint, index: usize) -> Result<Box<dyn StagedBlock>> {
        match self {
            Self::Decoder(config) => Ok(Box::new(Block::load(checkpoint, config, None, index)?)),
            Self::Encoder(config) => Ok(Box::new(config.load_block(checkpoint, index)?)),
            Self::Named(network) => Err(Error::Model(network.reason.clone())),
        }
    }

    /// The same with its arithmetic on `device`.
    ///
    /// # Errors
    /// As [`Self::runs_on_devices`], and if a tensor is missing or of another shape.
    pub(crate) fn load_block_on(
        &self,
        checkpoint: &Checkpoint,
        index: usize,
        device: &Device,
    ) -> Result<Box<dyn StagedBlock>> {
        self.runs_on_devices()?;
        match self {
            Self::Decoder(config) => {
                let block = Block::load(checkpoint, config, None, index)?;
                Ok(Box::new(OnDevice::new(block, device.clone())?))
            }
            _ => self.load_block(checkpoint, index),
        }
    }

    /// Refuses networks whose blocks run by the processor's kernels alone: encoders, mixtures of experts.
    ///
    /// # Errors
    /// As said. One sentence.
    pub fn runs_on_devices(&self) -> Result<()> {
        let what = match self {
            Self::Decoder(config) if config.blocks.iter().all(|block| block.mlp.experts.is_none()) => return Ok(()),
            Self::Decoder(_) => "a mixture of experts",
            Self::Encoder(_) => "a text encoder",
            Self::Named(network) => return Err(Error::Model(network.reason.clone())),
        };
        Err(Error::Recipe(format!("{what} is calibrated on the processor only; leave --device out")))
    }

    /// What makes the first block's input of a sequence of token ids.
    pub(crate) fn embedder<'a>(&'a self, checkpoint: &Checkpoint) -> Result<Embedder<'a>> {
        match self {
            Self::Decoder(config) => {
                let ends = Ends::load(checkpoint, config, None)?;
                Ok(Box::new(move |ids| ends.embed(ids, 0)))
            }
            Self::Encoder(config) => {
                let embedding = Embedding::load(checkpoint, config)?;
                Ok(Box::new(move |ids| embedding.embed(&[ids])))
            }
            Self::Named(network) => Err(Error::Model(network.reason.clone())),
        }
    }

    /// What the names of the tensors of block `index` begin with.
    pub(crate) fn block_path(&self, checkpoint: &Checkpoint, index: usize) -> Option<String> {
        match self {
            Self::Decoder(config) => Some(config.block_path(index)),
            Self::Encoder(config) => Some(config.block_path(checkpoint, index)),
            Self::Named(_) => None,
        }
    }

    /// The decoder, if it is one that runs.
    pub fn decoder(&self) -> Option<&DecoderConfig> {
        match self {
            Self::Decoder(config) => Some(config),
            _ => None,
        }
    }

    /// Pieces that are compressed and written one after the other: its blocks.
    pub fn blocks(&self) -> usize {
        match self {
            Self::Decoder(config) => config.n_blocks,
            Self::Encoder(config) => config.n_blocks,
            Self::Named(network) => network.blocks.len() + 1,
        }
    }

    /// Linears that stay dense whatever a recipe says: they are small and decide over all else, or are tied.
    pub(super) fn kept_dense(&self) -> Vec<String> {
        let Self::Decoder(config) = self else { return Vec::new() };
        let routers = config.blocks.iter().enumerate();
        let routers =
            routers.filter_map(|(block, spec)| Some(config.linear_name(block, spec.mlp.experts.as_ref()?.router)));
        routers.collect()
    }

    /// What stands beside the decoder in a model that reads more than text, by the first name of its path.
    pub(super) fn beside(&self, checkpoint: &Checkpoint) -> Vec<String> {
        let Self::Decoder(config) = self else { return Vec::new() };
        let mut beside: Vec<String> = checkpoint
            .tensors()
            .map(TensorView::name)
            .filter(|name| config.text_part && !name.starts_with(&config.base) && !name.starts_with(&config.head.name))
            .filter_map(|name| Some(part_of(name)?.to_string()))
            .collect();
        beside.sort();
        beside.dedup();
        beside
    }

    /// Every linear a recipe may name, in the order of the data.
    pub(super) fn candidates(&self, checkpoint: &Checkpoint) -> Vec<Candidate> {
        match self {
            Self::Decoder(config) => decoder_candidates(config),
            Self::Encoder(config) => encoder_candidates(config, checkpoint),
            Self::Named(network) => network.candidates(checkpoint),
        }
    }
}

/// The first name of the path of tensor `name` in a model that reads more than text.
fn part_of(name: &str) -> Option<&str> {
    Some(name.strip_prefix("model.").unwrap_or(name).split_once('.')?.0)
}

/// Last names of tables looked up by row, which loaders do not take for linears.
const TABLES: [&str; 13] = [
    "embed_in",
    "embed_positions",
    "embed_tokens",
    "position_embedding",
    "position_embeddings",
    "relative_attention_bias",
    "shared",
    "tok_embeddings",
    "token_embedding",
    "token_type_embeddings",
    "word_embeddings",
    "wpe",
    "wte",
];

/// Every linear of `checkpoint` but those in `known` and those of the parts `beside`: heads, poolers, projections before
/// and behind the blocks, routers. A table of another name than the usual is among them, and does no harm in a list of
/// what stays dense.
pub(super) fn others(checkpoint: &Checkpoint, known: &HashSet<&str>, beside: &[String]) -> Vec<String> {
    let is_beside = |name: &str| part_of(name).is_some_and(|part| beside.iter().any(|known| known == part));
    checkpoint
        .tensors()
        .filter(|view| matrix(view).is_some() && !is_beside(view.name()))
        .filter_map(|view| view.name().strip_suffix(".weight"))
        .filter(|name| !known.contains(name) && !TABLES.contains(&name.rsplit('.').next().unwrap_or(name)))
        .map(str::to_string)
        .collect()
}

fn decoder_candidates(config: &DecoderConfig) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for (block, spec) in config.blocks.iter().enumerate() {
        for stage in Stage::ALL {
            for (index, linear) in spec.at(stage).iter().enumerate() {
                let &LinearSpec { out_features, in_features, expert, transposed, .. } = linear;
                candidates.push(Candidate {
                    name: config.linear_name(block, &linear.name),
                    block,
                    site: Some(Site { stage, index, expert }),
                    out_features,
                    in_features,
                    transposed,
                    usual: true,
                });
            }
        }
    }
    candidates
}

fn encoder_candidates(config: &EncoderConfig, checkpoint: &Checkpoint) -> Vec<Candidate> {
    let of_block = |block: usize| {
        config.linears(checkpoint, block).into_iter().map(move |(name, stage, index, (out_features, in_features))| {
            let site = Some(Site { stage, index, expert: None });
            Candidate { name, block, site, out_features, in_features, transposed: false, usual: true }
        })
    };
    (0..config.n_blocks).flat_map(of_block).collect()
}

fn is_gguf(shard: &Shard) -> bool {
    format::recognise(shard).is_some_and(|format| format.name == "GGUF")
}

/// The blocks that hold a linear, in the order of the file.
fn named_blocks(checkpoint: &Checkpoint) -> Vec<(String, Option<usize>)> {
    let mut blocks = Vec::new();
    for view in checkpoint.tensors().filter(|view| matrix(view).is_some()) {
        let Place { stack, block, .. } = place(view.name());
        if block.is_some() && !blocks.contains(&(stack.clone(), block)) {
            blocks.push((stack, block));
        }
    }
    blocks
}

/// (out, in) of a tensor that may be the weight of a linear.
fn matrix(view: &TensorView) -> Option<(usize, usize)> {
    match *view.shape() {
        [out, inputs] if view.dtype().is_float() && view.name().ends_with(".weight") && out > 0 && inputs > 0 => {
            Some((out, inputs))
        }
        _ => None,
    }
}

/// Words in names of matrices that are no linears, or better left alone: tables looked up by row, norms, routers.
const LEFT_ALONE: [&str; 6] = ["embed", "norm", "router", "position", "bias", "codebook"];

impl NamedNetwork {
    /// Every matrix of floats called `….weight`; those in blocks whose names speak of a linear are the usual ones.
    fn candidates(&self, checkpoint: &Checkpoint) -> Vec<Candidate> {
        let numbers: BTreeMap<&(String, Option<usize>), usize> =
            self.blocks.iter().enumerate().map(|(number, block)| (block, number)).collect();
        let candidate = |view: &TensorView| {
            let (out_features, in_features) = matrix(view)?;
            let Place { stack, block, kind, .. } = place(view.name());
            let kind = kind.to_ascii_lowercase();
            // `mlp.gate` chooses among experts where `mlp.gate_proj` is a linear like others.
            let router = kind.ends_with("mlp.gate.weight") || kind.ends_with("block_sparse_moe.gate.weight");
            Some(Candidate {
                name: view.name().strip_suffix(".weight")?.to_string(),
                usual: block.is_some() && !router && !LEFT_ALONE.iter().any(|word| kind.contains(word)),
                block: numbers.get(&(stack, block)).copied().unwrap_or(self.blocks.len()),
                site: None,
                out_features,
                in_features,
                transposed: false,
            })
        };
        let mut candidates: Vec<Candidate> = checkpoint.tensors().filter_map(candidate).collect();
        candidates.sort_by_key(|candidate| candidate.block); // stable: the file's order within a block
        candidates
    }
}
