//! An expert as one safetensors file: the probe's arrays, what is taken off, the documented models' representations, and
//! everything else as JSON under one metadata key.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use serde_json::{Map, Value, json};

use super::{
    expert::{About, Expert},
    layer::Layer,
    net::Net,
    spec::{Body, Head, Input, Spec},
};
use crate::{Checkpoint, Error, Result};

/// Metadata key of the JSON.
const KEY: &str = "scruple.expert";

/// The file's form.
pub const FORMAT: u32 = 1;

/// Largest side or rank of a probe that is read.
const MOST: usize = 1 << 24;

impl Expert {
    /// Writes the expert to `file`, beside it first.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, file: &Path) -> Result<()> {
        let (rows, columns) = (self.about.layer.rows, self.about.layer.columns);
        let mut arrays: Vec<NamedArray<'_>> = Vec::new();
        for section in &self.net.sections {
            arrays.push((section.name.clone(), section.shape.clone(), &self.net.values[section.range.clone()]));
        }
        if !self.centroid.is_empty() {
            arrays.push(("centroid".into(), vec![rows, columns], &self.centroid));
        }
        // Where the centroid is what is taken off, it stands in the file once.
        if !self.centre.is_empty() && self.centre != self.centroid {
            arrays.push(("centre".into(), vec![rows, columns], &self.centre));
        }
        let width = self.net.spec().representation();
        arrays.push(("documented".into(), vec![self.about.documented.len(), width], &self.representations));
        if !self.texts.is_empty() {
            let width = self.texts.len() / self.about.classes.len();
            arrays.push(("class_texts".into(), vec![self.about.classes.len(), width], &self.texts));
        }
        let about = serde_json::to_string(&self.about)
            .map_err(|error| Error::file(file, format!("the expert cannot be put as JSON: {error}")))?;
        write_arrays(file, &arrays, &BTreeMap::from([(KEY, about.as_str()), ("format", "pt")]), true)
    }

    /// Reads an expert.
    ///
    /// # Errors
    /// If the file is no expert, or its arrays contradict its description: file, array, expected, found.
    pub fn read(file: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(file)?;
        let Some(text) = checkpoint.metadata().get(KEY) else {
            return Err(Error::file(file, "is no expert (it has no description); `scruple probe train` makes them"));
        };
        let about: About = serde_json::from_str(text)
            .map_err(|error| Error::file(file, format!("the expert's description is not understood: {error}")))?;
        check(&about).map_err(|what| Error::file(file, what))?;
        let (rows, columns) = (about.layer.rows, about.layer.columns);
        let array = |name: &str, shape: &[usize]| -> Result<Vec<f32>> {
            let view = checkpoint.tensor(name)?;
            if view.shape() != shape {
                return Err(view.error(format!("has shape {:?}, expected {shape:?}", view.shape())));
            }
            if let Some((at, value)) = view.nonfinite() {
                return Err(view.error(format!("holds {value} at element {at}; the expert is damaged")));
            }
            view.to_f32()
        };
        let mut values = Vec::new();
        for section in about.spec.sections() {
            values.extend(array(&section.name, &section.shape)?);
        }
        let centroid = if about.layer.adapter { Vec::new() } else { array("centroid", &[rows, columns])? };
        let centre = match about.input {
            Input::Raw => Vec::new(),
            _ if about.layer.adapter => Vec::new(),
            _ if checkpoint.contains("centre") => array("centre", &[rows, columns])?,
            _ => centroid.clone(),
        };
        let representations = array("documented", &[about.documented.len(), about.spec.representation()])?;
        let texts = match about.spec.head {
            Head::Labels { .. } => Vec::new(),
            Head::Text { width, .. } => array("class_texts", &[about.classes.len(), width])?,
        };
        let net = Net::new(about.spec.clone(), values, about.factor);
        Ok(Self { about, net, centre, centroid, representations, texts })
    }
}

/// Whether a description is one that can be used.
fn check(about: &About) -> std::result::Result<(), String> {
    if about.format != FORMAT {
        return Err(format!("the expert is of form {}, expected {FORMAT}; train it again", about.format));
    }
    let Layer { rows, columns, .. } = about.layer;
    about.spec.check()?;
    if (rows, columns) != (about.spec.rows, about.spec.columns) {
        let found = (about.spec.rows, about.spec.columns);
        return Err(format!("the probe reads {} × {}, its layer has {rows} × {columns}", found.0, found.1));
    }
    let classes = match about.spec.head {
        Head::Labels { classes } => classes,
        Head::Text { .. } => about.classes.len(),
    };
    if classes != about.classes.len() || classes == 0 {
        return Err(format!("the probe has {classes} outputs for {} classes", about.classes.len()));
    }
    if about.documented.iter().flat_map(|(_, classes)| classes).any(|&class| class >= about.classes.len()) {
        return Err("a documented model has a class beyond the expert's".into());
    }
    let numbers = [about.radius.limit, about.radius.own, f64::from(about.temperature), f64::from(about.factor)];
    let sound = numbers.iter().all(|x| x.is_finite() && *x >= 0.0) && about.temperature > 0.0;
    let scores = about.conformal.windows(2).all(|pair| pair[0] <= pair[1]);
    if !sound || !scores {
        return Err("the expert's radius, temperature or calibration scores are not numbers in order".into());
    }
    Ok(())
}

impl Spec {
    /// Whether the sides and ranks are such as a probe can have.
    ///
    /// # Errors
    /// What is wrong, as a sentence.
    pub fn check(&self) -> std::result::Result<(), String> {
        let mut sides = vec![self.rows, self.columns];
        let mut widths = 1;
        if let Body::Probe { views, probes, projection, representation, .. } = &self.body {
            sides.extend([*probes, *projection, *representation]);
            let twice = views.iter().enumerate().any(|(at, view)| views[..at].contains(view));
            if views.is_empty() || twice {
                return Err("a probe looks at one to four different views".into());
            }
            widths = views.len();
        }
        match self.head {
            Head::Labels { classes } => sides.push(classes),
            Head::Text { width, .. } => sides.push(width),
        }
        if matches!((&self.body, self.head), (Body::Dense, Head::Text { .. })) {
            return Err("texts are compared with representations, which a dense body has none of".into());
        }
        if let Some(side) = sides.iter().find(|side| !(1..=MOST).contains(*side)) {
            return Err(format!("a probe's sides lie between 1 and {MOST}, found {side}"));
        }
        // Bounds every array: at most three sides are multiplied.
        let largest: u128 = match &self.body {
            Body::Dense => sides.iter().map(|&side| side as u128).product(),
            Body::Probe { probes, projection, representation, .. } => {
                widths as u128 * *probes as u128 * *projection as u128 * *representation as u128
            }
        };
        if largest > 1 << 40 {
            return Err(format!("a probe of {largest} numbers is more than is read"));
        }
        Ok(())
    }
}

/// One array of a file: name, shape, values.
pub type NamedArray<'a> = (String, Vec<usize>, &'a [f32]);

/// Writes arrays as safetensors beside `file`, then in its place; where `durable`, the file is on disk when this returns.
///
/// # Errors
/// If the file cannot be written.
pub fn write_arrays(
    file: &Path,
    arrays: &[NamedArray<'_>],
    metadata: &BTreeMap<&str, &str>,
    durable: bool,
) -> Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!(metadata));
    let mut end = 0;
    for (name, shape, values) in arrays {
        let start = end;
        end += 4 * values.len();
        header.insert(name.clone(), json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] }));
    }
    let mut header = Value::Object(header).to_string();
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len())); // the data begins aligned
    let mut partial = file.as_os_str().to_owned();
    partial.push(".part");
    let partial = Path::new(&partial);
    let write = || -> std::io::Result<()> {
        let mut out = BufWriter::new(File::create(partial)?);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        for values in arrays.iter().map(|(_, _, values)| values) {
            for value in *values {
                out.write_all(&value.to_le_bytes())?;
            }
        }
        out.flush()?;
        if durable {
            out.get_ref().sync_all()?;
        }
        std::fs::rename(partial, file)
    };
    write().map_err(|source| {
        let _ = std::fs::remove_file(partial);
        Error::write(file, "write the arrays", end as u64, source)
    })
}
