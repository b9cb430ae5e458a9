//! A trained net whose weights share a pool, to a file and back, and run from its pool.

use std::{borrow::Cow, collections::BTreeMap, ops::Range, path::Path};

use rayon::prelude::*;
use scruple_weights::{Dtype, Error as WeightsError};

use super::{
    Shared,
    file::{Described, SharedFile, Target, Untouched, expand_tensor},
    stored::Pool,
};
use crate::{
    Error, Result,
    nn::{
        Source, Weights,
        graph::{Graph, Layout},
    },
};

/// Writes the net of `graph` into the folder `out`, which must not exist: the pool that stands behind `trainable`, in f32,
/// and from `weights` what does not share; `files` (names and contents) beside them. It expands to the very weights the net
/// was trained to.
///
/// # Errors
/// If the output exists or does not fit on its disk.
///
/// # Panics
/// If the parts are of different nets.
pub fn write(
    shared: &Shared,
    graph: &Graph,
    trainable: &[f32],
    weights: &Weights,
    out: &Path,
    files: &[(&str, Vec<u8>)],
) -> Result<()> {
    let (sharing, psi) = (shared.sharing(), shared.pool(trainable));
    let hashes = sharing.modules.par_iter().map(|module| {
        expand_tensor(sharing, &psi, module, Dtype::F32, |_, _| Ok::<(), Error>(()))
            .map(|sha256| Target { dtype: Dtype::F32, sha256 })
    });
    let targets = hashes.collect::<Result<Vec<Target>>>()?;
    let untouched: Vec<Untouched<'_>> = weights
        .tensors(graph)
        .into_iter()
        .filter(|(name, ..)| !sharing.modules.iter().any(|module| module.name == *name))
        .map(|(name, shape, values)| {
            let bytes = Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect());
            Untouched { name, dtype: Dtype::F32, shape, bytes }
        })
        .collect();
    let described = Described { sharing, targets: &targets, tied: &[], psi: &psi, psi_dtype: Dtype::F32 };
    let mut writer = described.write(out, BTreeMap::new(), &untouched)?;
    for (name, bytes) in files {
        writer.add_file(name, bytes)?;
    }
    writer.finish()?;
    Ok(())
}

/// The weights of the net of `graph` that `file` holds.
///
/// # Errors
/// If a tensor is missing, has another shape, or cannot be read.
pub fn read(graph: &Graph, file: &SharedFile) -> Result<Weights> {
    let pool = file.pool()?;
    let all = |layout: &Layout| -> Result<Vec<f32>> {
        let mut all = Vec::with_capacity(layout.len());
        for entry in layout.entries() {
            let (shape, values) = file.values(&pool, &entry.name)?;
            if shape != entry.shape {
                let what = format!("has shape {shape:?}, the net has {:?}", entry.shape);
                return Err(WeightsError::tensor(file.path(), &entry.name, what).into());
            }
            all.extend(values);
        }
        Ok(all)
    };
    Ok(Weights { values: all(graph.layout())?, running: all(graph.running())? })
}

/// Rows of a linear that are recovered together.
const ROWS: usize = 512;

/// Where a tensor of a net lies.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// It is this module of the pool.
    Pool(usize),
    /// It begins here among those that do not share.
    Rest(usize),
}

/// The weights of a net as its file holds them: a pool, and the tensors that do not share. Layers are recovered when they
/// are run, a linear by some rows at a time, and not kept.
#[derive(Debug)]
pub struct PooledNet {
    pool: Pool,
    /// Every tensor in the order of the net's weights.
    places: Vec<(Range<usize>, Place)>,
    rest: Vec<f32>,
    running: Vec<f32>,
    values: usize,
}

impl PooledNet {
    /// The net of `graph` that `file` holds.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape, or cannot be read.
    pub fn open(graph: &Graph, file: &SharedFile) -> Result<Self> {
        let pool = Pool::new(file)?;
        let expect = |name: &str, found: &[usize], shape: &[usize]| match found == shape {
            true => Ok(()),
            false => {
                let what = format!("has shape {found:?}, the net has {shape:?}");
                Err(Error::Weights(WeightsError::tensor(file.path(), name, what)))
            }
        };
        let (mut places, mut rest) = (Vec::new(), Vec::new());
        for entry in graph.layout().entries() {
            let place = match pool.module(&entry.name) {
                Some((module, shape)) => {
                    expect(&entry.name, shape, &entry.shape)?;
                    Place::Pool(module)
                }
                None => {
                    let view = file.checkpoint().tensor(&entry.name)?;
                    expect(&entry.name, view.shape(), &entry.shape)?;
                    rest.extend(view.to_f32()?);
                    Place::Rest(rest.len() - entry.values())
                }
            };
            places.push((entry.range(), place));
        }
        let mut running = Vec::new();
        for entry in graph.running().entries() {
            let view = file.checkpoint().tensor(&entry.name)?;
            expect(&entry.name, view.shape(), &entry.shape)?;
            running.extend(view.to_f32()?);
        }
        Ok(Self { pool, places, rest, running, values: graph.layout().len() })
    }

    /// The running moments of its norms.
    pub fn running(&self) -> &[f32] {
        &self.running
    }

    /// Bytes of the weights held.
    pub fn bytes(&self) -> usize {
        self.pool.bytes() + 4 * (self.rest.len() + self.running.len())
    }
}

impl Source for PooledNet {
    fn values(&self) -> usize {
        self.values
    }

    fn rows_at_once(&self) -> usize {
        ROWS
    }

    fn read<'a>(&'a self, range: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        let at = self.places.partition_point(|(place, _)| place.end <= range.start);
        let (tensor, place) = &self.places[at];
        assert!(tensor.start <= range.start && range.end <= tensor.end, "weights {range:?} are not of one tensor");
        let first = range.start - tensor.start;
        match *place {
            Place::Rest(start) => &self.rest[start + first..][..range.len()],
            Place::Pool(module) => {
                scratch.clear();
                scratch.resize(range.len(), 0.0);
                self.pool.recover(module, first, scratch);
                scratch
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        nn::{Architecture, Input, Shortcut, Spec, parametrise::Parametrise},
        sharing::{
            Scales, expand,
            fold::ALIGN,
            modules::{Choice, Size},
            verify,
        },
    };

    #[test]
    fn a_wide_linear_is_recovered_by_rows_and_gives_the_same_bits() {
        let architecture = Architecture::Mlp { hidden: vec![1_100, 30], norm: false };
        let spec = Spec { architecture, input: Input { height: 5, width: 5, channels: 1 }, classes: 10 };
        let graph = spec.graph().unwrap();
        let mut weights = Weights::start(&graph, 2);
        let (choice, size) = (Choice { least_values: 100, ..Choice::default() }, Size::Rate(9.0));
        let shared = Shared::new(graph.layout(), &weights.values, &choice, Scales::Rms, size, ALIGN, 1).unwrap();
        let trainable = shared.start(&weights.values);
        shared.expand(&trainable, &mut weights.values);
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("pool");
        write(&shared, &graph, &trainable, &weights, &out, &[]).unwrap();
        let pooled = PooledNet::open(&graph, &SharedFile::open(&out).unwrap()).unwrap();
        let mut net = crate::nn::Net::new(&spec, 2).unwrap();
        let mut run = |source: &dyn Source| {
            net.input_mut(2).copy_from_slice(&crate::kernel::test_values::uniform(50, 7));
            net.forward_from(source, &mut [], crate::nn::Mode::Evaluate);
            net.logits(1).to_vec()
        };
        assert_eq!(run(&pooled), run(&weights.values.as_slice()));
    }

    #[test]
    fn a_net_comes_back_from_its_pool_and_from_the_expanded_file() {
        let architecture =
            Architecture::ResNet { blocks: vec![1, 1], width: 8, shortcut: Shortcut::Slice, inner: Vec::new() };
        let spec = Spec { architecture, input: Input { height: 8, width: 8, channels: 1 }, classes: 10 };
        let graph = spec.graph().unwrap();
        let mut weights = Weights::start(&graph, 2);
        let (choice, size) = (Choice { least_values: 100, ..Choice::default() }, Size::Rate(4.0));
        let shared = Shared::new(graph.layout(), &weights.values, &choice, Scales::Rms, size, ALIGN, 1).unwrap();
        let trainable = shared.start(&weights.values);
        shared.expand(&trainable, &mut weights.values);

        let folder = tempfile::tempdir().unwrap();
        let (out, dense) = (folder.path().join("pool"), folder.path().join("dense"));
        write(&shared, &graph, &trainable, &weights, &out, &[("share.json", b"{}\n".to_vec())]).unwrap();
        let file = SharedFile::open(&out).unwrap();
        assert_eq!(read(&graph, &file).unwrap(), weights);
        // From the pool the net gives the same bits, and holds no more than that.
        let pooled = PooledNet::open(&graph, &file).unwrap();
        assert_eq!((pooled.running(), pooled.bytes() < weights.values.len() * 2), (weights.running.as_slice(), true));
        let mut net = crate::nn::Net::new(&spec, 3).unwrap();
        let mut run = |source: &dyn Source, mode| {
            let values = crate::kernel::test_values::uniform(3 * 64, 7);
            net.input_mut(3).copy_from_slice(&values);
            net.forward_from(source, &mut weights.running.clone(), mode);
            (0..3).map(|image| net.logits(image).to_vec()).collect::<Vec<_>>()
        };
        for mode in [crate::nn::Mode::Evaluate, crate::nn::Mode::Train] {
            assert_eq!(run(&pooled, mode), run(&weights.values.as_slice(), mode));
        }
        assert!(verify(&file, None, &|_| {}).unwrap().faults.is_empty());
        expand(&file, &dense, &mut |_, _| {}).unwrap();
        let dense = scruple_weights::Checkpoint::open(&dense).unwrap();
        assert_eq!(Weights::load(&graph, &dense).unwrap(), weights);
        assert!(std::fs::metadata(out.join("model.rps.safetensors")).unwrap().len() < dense.bytes());
    }
}
