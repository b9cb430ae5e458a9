//! A trained net whose weights share a pool, to a file and back.

use std::{borrow::Cow, collections::BTreeMap, path::Path};

use rayon::prelude::*;
use scruple_weights::{Dtype, Error as WeightsError};

use super::{
    Shared,
    file::{Described, SharedFile, Target, Untouched, expand_tensor},
};
use crate::{
    Error, Result,
    nn::{
        Weights,
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
        assert!(verify(&file, None, &|_| {}).unwrap().faults.is_empty());
        expand(&file, &dense, &mut |_, _| {}).unwrap();
        let dense = scruple_weights::Checkpoint::open(&dense).unwrap();
        assert_eq!(Weights::load(&graph, &dense).unwrap(), weights);
        assert!(std::fs::metadata(out.join("model.rps.safetensors")).unwrap().len() < dense.bytes());
    }
}
