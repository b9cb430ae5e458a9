//! The weights of a net: from a seed, from a checkpoint in torch's names, and to a file.

use std::{collections::BTreeMap, fs, io::Write, path::Path};

use scruple_weights::{Checkpoint, Error as WeightsError};
use serde_json::{Map, Value, json};

use super::{
    graph::{Graph, Layout},
    spec::{Architecture, Input, Shortcut, Spec},
};
use crate::{Error, Result};

/// Trained tensors and running moments, flat in the order of their layouts.
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    /// [`Graph::layout`].
    pub values: Vec<f32>,
    /// [`Graph::running`].
    pub running: Vec<f32>,
}

/// One tensor of a file: name, shape, values.
pub type NamedTensor<'a> = (String, Vec<usize>, &'a [f32]);

impl Weights {
    /// The weights before training.
    pub fn start(graph: &Graph, seed: u64) -> Self {
        Self { values: graph.layout().start(seed), running: graph.running().start(seed) }
    }

    /// The weights `checkpoint` holds under the names of `graph`, which may begin with `module.`.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape, or cannot be decoded.
    pub fn load(graph: &Graph, checkpoint: &Checkpoint) -> Result<Self> {
        let read = |layout: &Layout| -> Result<Vec<f32>> {
            let mut values = Vec::with_capacity(layout.len());
            for entry in layout.entries() {
                let prefixed = format!("module.{}", entry.name);
                let name = if checkpoint.contains(&entry.name) { &entry.name } else { &prefixed };
                let name = if checkpoint.contains(name) { name } else { &entry.name };
                let view = checkpoint.tensor(name)?;
                if view.shape() != entry.shape {
                    let what = format!("has shape {:?}, the net has {:?}", view.shape(), entry.shape);
                    return Err(view.error(what).into());
                }
                values.extend(view.to_f32()?);
            }
            Ok(values)
        };
        Ok(Self { values: read(graph.layout())?, running: read(graph.running())? })
    }

    /// Every tensor with its name and shape.
    pub fn tensors<'a>(&'a self, graph: &Graph) -> Vec<NamedTensor<'a>> {
        let of = |layout: &Layout, values: &'a [f32]| -> Vec<NamedTensor<'a>> {
            let named = |entry: &super::graph::Entry| (entry.name.clone(), entry.shape.clone(), &values[entry.range()]);
            layout.entries().iter().map(named).collect()
        };
        [of(graph.layout(), &self.values), of(graph.running(), &self.running)].concat()
    }

    /// Writes the weights as safetensors, in f32; any tool that knows the net's names in torch can read them.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, graph: &Graph, file: &Path) -> Result<()> {
        write_safetensors(file, &self.tensors(graph), &BTreeMap::from([("format".into(), "pt".into())]))
    }
}

/// Writes tensors beside `file` and then in its place, so that there is always a whole file of that name or none.
pub(crate) fn write_safetensors(
    file: &Path,
    tensors: &[NamedTensor<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!(metadata));
    let mut end = 0;
    for (name, shape, values) in tensors {
        let start = end;
        end += 4 * values.len();
        header.insert(name.clone(), json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] }));
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len())); // the data begins aligned

    let mut partial = file.as_os_str().to_owned();
    partial.push(".partial");
    let fail = |source| Error::Weights(WeightsError::io(file, "write the weights", source));
    let mut out = std::io::BufWriter::new(fs::File::create(&partial).map_err(fail)?);
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(fail)?;
    out.write_all(header.as_bytes()).map_err(fail)?;
    for value in tensors.iter().flat_map(|(_, _, values)| *values) {
        out.write_all(&value.to_le_bytes()).map_err(fail)?;
    }
    out.flush().map_err(fail)?;
    out.get_ref().sync_all().map_err(fail)?;
    fs::rename(&partial, file).map_err(fail)
}

impl Spec {
    /// The residual net of the CIFAR kind whose tensors `checkpoint` holds, for images of `height` × `width` pixels:
    /// blocks, widths and shortcuts follow from names and shapes.
    ///
    /// # Errors
    /// If the tensors are not such a net's.
    pub fn of_resnet(checkpoint: &Checkpoint, (height, width_of_image): (usize, usize)) -> Result<Self> {
        let prefix = if checkpoint.contains("conv1.weight") { "" } else { "module." };
        let sides = |name: &str, side: usize| -> Result<usize> {
            let view = checkpoint.tensor(&format!("{prefix}{name}.weight"))?;
            view.shape().get(side).copied().ok_or_else(|| {
                view.error(format!("has shape {:?}, which is not that of a residual net", view.shape())).into()
            })
        };
        let (width, channels) = (sides("conv1", 0)?, sides("conv1", 1)?);
        let has = |name: &str| checkpoint.contains(&format!("{prefix}{name}.weight"));
        let (mut blocks, mut inner) = (Vec::new(), Vec::new());
        for stage in 1.. {
            let names = (0..).map(|block| format!("layer{stage}.{block}.conv1")).take_while(|name| has(name));
            let widths = names.map(|name| sides(&name, 0)).collect::<Result<Vec<usize>>>()?;
            if widths.is_empty() {
                break;
            }
            blocks.push(widths.len());
            inner.push(widths);
        }
        let plain = inner.iter().enumerate().all(|(stage, widths)| {
            let channels = width.checked_shl(stage as u32);
            widths.iter().all(|&inner| Some(inner) == channels)
        });
        let shortcut = match (2..=blocks.len()).any(|stage| has(&format!("layer{stage}.0.shortcut.0"))) {
            true => Shortcut::Project,
            false => Shortcut::Slice,
        };
        let inner = if plain { Vec::new() } else { inner };
        let architecture = Architecture::ResNet { blocks, width, shortcut, inner };
        let input = Input { height, width: width_of_image, channels };
        let spec = Self { architecture, input, classes: sides("linear", 0)? };
        spec.check()?;
        Ok(spec)
    }
}
