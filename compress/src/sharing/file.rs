//! `model.rps.safetensors`: a pool, and what it takes to read every weight from it.
//!
//! An ordinary safetensors file. Tensor [`PSI`] holds ψ; every tensor that does not share stands under its own name. The
//! metadata's key [`KEY`] holds one JSON text:
//!
//! ```text
//! format "rps", version 1, n, m, seed (decimal text), hash and sign (names of the two hashes of `fold`), align, tile
//! "row-major" (the order of a tensor's weights in the flat array), psi_dtype, created_by,
//! tensors [{name, shape, dtype, offset, lambda_bits "0x3d4ccccd", sha256}]   in the order of the flat array
//!         and in version 2, where every tensor has a pool of its own, slots: how many of ψ are its, in the same order
//! tied    [{name, of}]                                                       tensors equal to one of these, stored once
//! ```
//!
//! The metadata's `format` is `rps` too, so that readers of ordinary checkpoints refuse the file. Since the hashes are
//! integer arithmetic and a weight is one rounded product with its sign, a tensor's bytes are the same on every machine;
//! `sha256` is theirs, as the tensor expands.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use scruple_weights::{
    Checkpoint, CheckpointWriter, Dtype, Error as WeightsError, TensorSpec, TensorView, WriterOptions,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    fold::{FOLD_HASH, SIGN_HASH},
    modules::{MOST_RATE, Module, Sharing, Size, check_scale},
    pool::recover,
};
use crate::{Error, Result};

/// The metadata's key.
pub const KEY: &str = "rps";

/// The tensor that holds the pool.
pub const PSI: &str = "rps.psi";

/// What names of the files begin with.
pub const STEM: &str = "model.rps";

const VERSION: u32 = 1;
/// The version where tensors have pools of their own.
const APART: u32 = 2;
const TILE: &str = "row-major";

/// Weights recovered at a time.
pub(super) const PIECE: usize = 1 << 18;

/// The metadata's text.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    version: u32,
    n: usize,
    m: usize,
    seed: String,
    hash: String,
    align: usize,
    sign: String,
    tile: String,
    psi_dtype: String,
    created_by: String,
    tensors: Vec<HeaderTensor>,
    tied: Vec<Tied>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderTensor {
    name: String,
    shape: Vec<usize>,
    dtype: String,
    offset: usize,
    lambda_bits: String,
    sha256: String,
    /// Of a pool of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    slots: Option<usize>,
}

/// A tensor that equals another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tied {
    /// Its name.
    pub name: String,
    /// The one it equals, which shares.
    pub of: String,
}

/// What a shared tensor expands to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its type: f32, f16 or bf16.
    pub dtype: Dtype,
    /// Of its bytes, in hexadecimal.
    pub sha256: String,
}

/// The types whose values a pool can stand for, and be stored in.
pub fn is_shareable(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16)
}

/// The metadata's text for a pool of `psi_dtype` from which `sharing` expands to `targets`.
fn header(sharing: &Sharing, targets: &[Target], tied: &[Tied], psi_dtype: Dtype) -> Result<String> {
    let fold = &sharing.fold;
    let tensors = sharing.modules.iter().zip(targets).map(|(module, target)| HeaderTensor {
        name: module.name.clone(),
        shape: module.shape.clone(),
        dtype: target.dtype.to_string(),
        offset: module.offset,
        lambda_bits: format!("{:#010x}", module.scale.to_bits()),
        sha256: target.sha256.clone(),
        slots: sharing.own_slots(module),
    });
    let header = Header {
        format: KEY.into(),
        version: if fold.is_apart() { APART } else { VERSION },
        n: fold.weights(),
        m: fold.slots(),
        seed: fold.seed().to_string(),
        hash: FOLD_HASH.into(),
        align: fold.align(),
        sign: SIGN_HASH.into(),
        tile: TILE.into(),
        psi_dtype: psi_dtype.to_string(),
        created_by: concat!("scruple ", env!("CARGO_PKG_VERSION")).into(),
        tensors: tensors.collect(),
        tied: tied.to_vec(),
    };
    serde_json::to_string(&header).map_err(|error| Error::Model(format!("the pool's description: {error}")))
}

/// A tensor that does not share, to be written.
pub(super) struct Untouched<'a> {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Cow<'a, [u8]>,
}

/// A pool with all that the file says of it.
pub(super) struct Described<'a> {
    pub sharing: &'a Sharing,
    pub targets: &'a [Target],
    pub tied: &'a [Tied],
    /// As it comes back from `psi_dtype`.
    pub psi: &'a [f32],
    pub psi_dtype: Dtype,
}

impl Described<'_> {
    /// Writes the weights of the folder `out`, which must not exist; what else belongs there is left to the caller, and
    /// to finish.
    pub(super) fn write(
        &self,
        out: &Path,
        mut metadata: BTreeMap<String, String>,
        untouched: &[Untouched<'_>],
    ) -> Result<CheckpointWriter> {
        let mut specs = vec![TensorSpec::new(PSI, self.psi_dtype, [self.psi.len()])];
        specs.extend(untouched.iter().map(|tensor| TensorSpec::new(&tensor.name, tensor.dtype, tensor.shape.clone())));
        metadata.insert("format".into(), KEY.into());
        metadata.insert(KEY.into(), header(self.sharing, self.targets, self.tied, self.psi_dtype)?);
        // One file: its metadata describes all of it.
        let options = WriterOptions { max_shard_bytes: u64::MAX, stem: STEM.into(), metadata, past_cache: false };
        let writer = CheckpointWriter::create(out, specs, options)?;
        let mut bytes = Vec::new();
        encode(self.psi_dtype, self.psi, &mut bytes);
        writer.write(PSI, &bytes)?;
        for tensor in untouched {
            writer.write(&tensor.name, &tensor.bytes)?;
        }
        Ok(writer)
    }
}

/// A model with a pool, opened and checked; nothing of it is expanded.
#[derive(Debug)]
pub struct SharedFile {
    checkpoint: Checkpoint,
    path: PathBuf,
    sharing: Sharing,
    targets: Vec<Target>,
    tied: Vec<Tied>,
    psi: TensorView,
}

impl SharedFile {
    /// Opens a folder or file that [`project`](super::project::project) or a training run wrote.
    ///
    /// # Errors
    /// If it is no such model, or its description contradicts itself, the tensors, or what this version knows. One
    /// sentence that names the tensor where one is at fault.
    pub fn open(path: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let file = checkpoint.shards().first().map_or_else(|| path.to_path_buf(), |shard| shard.path().to_path_buf());
        let refuse = |what: String| Error::Weights(WeightsError::file(&file, what));
        let Some(text) = checkpoint.metadata().get(KEY) else {
            return Err(refuse(format!(
                "holds no pool that weights share: its metadata has no `{KEY}`; `scruple share project` makes such a file"
            )));
        };
        let header: Header = serde_json::from_str(text)
            .map_err(|error| refuse(format!("its description `{KEY}` cannot be read: {error}")))?;
        for (what, found, expected) in [
            ("format", &header.format, KEY),
            ("hash", &header.hash, FOLD_HASH),
            ("sign", &header.sign, SIGN_HASH),
            ("tile", &header.tile, TILE),
        ] {
            if found != expected {
                return Err(refuse(format!("has {what} `{found}`, this version reads `{expected}`")));
            }
        }
        if ![VERSION, APART].contains(&header.version) {
            let what = format!("is of version {}, this program reads versions {VERSION} and {APART}", header.version);
            return Err(refuse(what));
        }
        if !matches!(header.align, 16 | 64) {
            return Err(refuse(format!("has alignment {}, expected 16 or 64", header.align)));
        }
        let seed: u64 = header
            .seed
            .parse()
            .map_err(|_| refuse(format!("has seed `{}`, expected a number below 2⁶⁴", header.seed)))?;
        let psi = checkpoint.tensor(PSI)?;
        if psi.dtype().to_string() != header.psi_dtype || !is_shareable(psi.dtype()) {
            let what = format!("is of type {}, its description says {}", psi.dtype(), header.psi_dtype);
            return Err(psi.error(what).into());
        }
        if psi.shape() != [header.m] {
            let what = format!("has shape {:?}, expected [{}] as its description says", psi.shape(), header.m);
            return Err(psi.error(what).into());
        }
        if header.n / header.m.max(1) > MOST_RATE {
            return Err(refuse(format!(
                "says that {} weights share {} slots; more than {MOST_RATE} a slot are not believed",
                header.n, header.m
            )));
        }
        let (tensors, targets) = tensors(&header, &checkpoint, &file)?;
        let own: Vec<usize> = header.tensors.iter().filter_map(|tensor| tensor.slots).collect();
        if own.len() != if header.version == APART { tensors.len() } else { 0 } {
            return Err(refuse(format!(
                "is of version {}, and {} of its {} tensors have pools of their own",
                header.version,
                own.len(),
                tensors.len()
            )));
        }
        let sharing = match header.version {
            APART => Sharing::apart(tensors, &own, header.align, seed),
            _ => Sharing::new(tensors, Size::Slots(header.m), header.align, seed),
        };
        let sharing = sharing.map_err(|error| refuse(format!("its description is wrong: {error}")))?;
        if sharing.fold.slots() != header.m {
            let what = format!("says m = {}, the pools of its tensors have {} slots", header.m, sharing.fold.slots());
            return Err(refuse(what));
        }
        if sharing.fold.weights() != header.n {
            let what = format!("says n = {}, its tensors have {} weights", header.n, sharing.fold.weights());
            return Err(refuse(what));
        }
        if let Some((module, tensor)) =
            sharing.modules.iter().zip(&header.tensors).find(|(module, tensor)| module.offset != tensor.offset)
        {
            let what = format!("is said to begin at weight {}, expected {}", tensor.offset, module.offset);
            return Err(WeightsError::tensor(&file, &module.name, what).into());
        }
        Ok(Self { checkpoint, path: file, sharing, targets, tied: header.tied, psi })
    }

    /// The checkpoint it lies in.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tensors, scales and fold.
    pub fn sharing(&self) -> &Sharing {
        &self.sharing
    }

    /// What each tensor of [`Self::sharing`] expands to.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Tensors that equal one that shares.
    pub fn tied(&self) -> &[Tied] {
        &self.tied
    }

    /// The type ψ is stored in.
    pub fn psi_dtype(&self) -> Dtype {
        self.psi.dtype()
    }

    /// ψ.
    ///
    /// # Errors
    /// If a number of it is not finite.
    pub fn pool(&self) -> Result<Vec<f32>> {
        if let Some((slot, value)) = self.psi.nonfinite() {
            return Err(self.psi.error(format!("holds {value} in slot {slot}; the file is damaged")).into());
        }
        Ok(self.psi.to_f32()?)
    }

    /// The values of tensor `name`, read from `pool` (of [`Self::pool`]) or as they lie in the file.
    ///
    /// # Errors
    /// If there is no such tensor, or it cannot be decoded.
    pub fn values(&self, pool: &[f32], name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let of = self.tied.iter().find(|tied| tied.name == name).map_or(name, |tied| &tied.of);
        let Some(at) = self.sharing.modules.iter().position(|module| module.name == of) else {
            let view = self.checkpoint.tensor(name)?;
            return Ok((view.shape().to_vec(), view.to_f32()?));
        };
        let module = &self.sharing.modules[at];
        let mut values = vec![0.0; module.values()];
        recover(&self.sharing.fold, pool, module.scale, module.offset, &mut values);
        let dtype = self.targets[at].dtype;
        values.iter_mut().for_each(|value| *value = rounded(dtype, *value));
        Ok((module.shape.clone(), values))
    }

    /// Gives back the memory of the pool's pages in the file, which were read.
    pub(super) fn release(&self) {
        self.psi.release();
    }

    /// The tensors that do not share.
    pub fn untouched(&self) -> impl Iterator<Item = &TensorView> {
        self.checkpoint.tensors().filter(|view| view.name() != PSI)
    }
}

/// Names, shapes and scales of the description, and what they expand to.
type Listed = (Vec<(String, Vec<usize>, f32)>, Vec<Target>);

fn tensors(header: &Header, checkpoint: &Checkpoint, file: &Path) -> Result<Listed> {
    let mut names: HashSet<&str> = HashSet::from([PSI]);
    let (mut tensors, mut targets) = (Vec::new(), Vec::new());
    for tensor in &header.tensors {
        let refuse = |what: String| Error::Weights(WeightsError::tensor(file, &tensor.name, what));
        if !names.insert(&tensor.name) || checkpoint.contains(&tensor.name) {
            return Err(refuse("stands in the file more than once".into()));
        }
        let bits = tensor.lambda_bits.strip_prefix("0x").and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let Some(scale) = bits.map(f32::from_bits) else {
            let what = format!("has scale `{}`, expected the bits of an f32 such as 0x3d4ccccd", tensor.lambda_bits);
            return Err(refuse(what));
        };
        check_scale(scale).map_err(refuse)?;
        let dtype = Dtype::from_safetensors_name(&tensor.dtype).filter(|dtype| is_shareable(*dtype));
        let Some(dtype) = dtype else {
            return Err(refuse(format!("has type `{}`, expected F32, F16 or BF16", tensor.dtype)));
        };
        tensors.push((tensor.name.clone(), tensor.shape.clone(), scale));
        targets.push(Target { dtype, sha256: tensor.sha256.clone() });
    }
    let shared: HashSet<&str> = header.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    for tied in &header.tied {
        let refuse = |what: String| Error::Weights(WeightsError::tensor(file, &tied.name, what));
        if !names.insert(&tied.name) || checkpoint.contains(&tied.name) {
            return Err(refuse("stands in the file more than once".into()));
        }
        if !shared.contains(tied.of.as_str()) {
            return Err(refuse(format!("is tied to `{}`, which does not share", tied.of)));
        }
    }
    Ok((tensors, targets))
}

/// `value` as it comes back from `dtype`.
pub(super) fn rounded(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::F16 => f16::from_f32(value).to_f32(),
        Dtype::Bf16 => bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

/// `values` in `dtype` onto the end of `bytes`.
///
/// # Panics
/// If the type cannot share.
pub(super) fn encode(dtype: Dtype, values: &[f32], bytes: &mut Vec<u8>) {
    match dtype {
        Dtype::F32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Dtype::Bf16 => bytes.extend(values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes())),
        Dtype::F16 => bytes.extend(values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes())),
        other => unreachable!("{other} cannot share"),
    }
}

/// The tensor `module` as it expands, piece by piece: `sink` hears (its first weight within the tensor, bytes). Gives the
/// SHA-256 of all bytes.
pub(super) fn expand_tensor<E>(
    sharing: &Sharing,
    pool: &[f32],
    module: &Module,
    dtype: Dtype,
    mut sink: impl FnMut(usize, &[u8]) -> Result<(), E>,
) -> Result<String, E> {
    let values = module.values();
    let mut hash = Sha256::new();
    let (mut piece, mut bytes) = (vec![0.0f32; PIECE.min(values)], Vec::new());
    for first in (0..values).step_by(PIECE) {
        let piece = &mut piece[..PIECE.min(values - first)];
        recover(&sharing.fold, pool, module.scale, module.offset + first, piece);
        bytes.clear();
        encode(dtype, piece, &mut bytes);
        hash.update(&bytes);
        sink(first, &bytes)?;
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
