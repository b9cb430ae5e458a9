//! ONNX models, read for their weights: the initialisers of the graph, and the constants in its nodes.
//!
//! Exporters put weights in four places: `initializer` of the main graph, the `value` of a `Constant` node, either of
//! them in a subgraph (the branches of `If`, the body of `Loop`) or function, and a second file that a tensor points to.
//! All are found. A tensor is called as the graph calls it (an initialiser's name, a constant's output); where that name
//! occurs more than once in the file, its way through the subgraphs stands before it, `NODE.ATTRIBUTE/…/NAME`.
//!
//! Nothing of the graph is run or checked. The file is a protobuf message, walked in place by the field numbers of
//! `onnx.proto` (IR version 3 and later); a tensor whose numbers lie there in little-endian order is a slice of the
//! file, others are unpacked into memory. Texts and types of less than a byte are no tensors here: the metadata key
//! `left_out` names them.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    path::{Component, Path},
    rc::Rc,
};

use super::{Contents, elements, shown};
use crate::{Dtype, Error, Result, Shard, TensorView, error::Problems};

mod protobuf;

use protobuf::{Fields, Value};

/// Graphs within graphs, at most.
const MAX_DEPTH: usize = 64;
/// A path stops growing here, in bytes; names stay distinct without it.
const MAX_PATH: usize = 512;

// Field numbers of onnx.proto.
mod field {
    pub mod model {
        pub const IR_VERSION: u32 = 1;
        pub const PRODUCER: u32 = 2;
        pub const GRAPH: u32 = 7;
        pub const FUNCTIONS: u32 = 25;
    }
    pub mod graph {
        pub const NODE: u32 = 1;
        pub const INITIALIZER: u32 = 5;
        pub const SPARSE_INITIALIZER: u32 = 15;
    }
    pub mod node {
        pub const OUTPUT: u32 = 2;
        pub const NAME: u32 = 3;
        pub const OP_TYPE: u32 = 4;
        pub const ATTRIBUTE: u32 = 5;
    }
    pub mod function {
        pub const NAME: u32 = 1;
        pub const NODE: u32 = 7;
    }
    pub mod attribute {
        pub const NAME: u32 = 1;
        pub const TENSOR: u32 = 5;
        pub const GRAPH: u32 = 6;
        pub const GRAPHS: u32 = 11;
    }
    pub mod tensor {
        pub const DIMS: u32 = 1;
        pub const DATA_TYPE: u32 = 2;
        pub const FLOAT_DATA: u32 = 4;
        pub const INT32_DATA: u32 = 5;
        pub const INT64_DATA: u32 = 7;
        pub const NAME: u32 = 8;
        pub const RAW_DATA: u32 = 9;
        pub const DOUBLE_DATA: u32 = 10;
        pub const UINT64_DATA: u32 = 11;
        pub const EXTERNAL_DATA: u32 = 13;
        pub const DATA_LOCATION: u32 = 14;
    }
}

/// Whether the whole file is a sequence of fields of a model, with a graph and a version among them.
pub fn recognise(shard: &Shard) -> bool {
    use field::model;
    let (mut version, mut graph) = (false, false);
    for item in Fields::new(shard.bytes(), 0..shard.bytes().len()) {
        match item {
            Ok((model::IR_VERSION, Value::Varint(1..=1000))) => version = true,
            Ok((model::GRAPH, Value::Bytes(_))) => graph = true,
            // model_version; producer, its version, domain, doc_string, opset and the rest.
            Ok((5, Value::Varint(_))) => {}
            Ok((2 | 3 | 4 | 6 | 8 | 14 | 20 | 25 | 26, Value::Bytes(_))) => {}
            _ => return false,
        }
    }
    version && graph
}

/// Reads every weight of the model.
///
/// # Errors
/// [`Error::File`] if the message is damaged; [`Error::Malformed`] with every tensor whose data has another length than
/// type and shape demand, or lies outside the model's folder, or in a file that is missing.
pub fn read(shard: &Shard) -> Result<Contents> {
    use field::{function, model};
    let mut reader = Reader { shard, found: Vec::new(), left_out: Vec::new() };
    let mut contents = Contents::default();
    contents.metadata.insert("container".into(), "ONNX".into());
    let refuse = |what: String| Error::file(shard.path(), format!("the ONNX model {what}"));
    if !recognise(shard) {
        return Err(refuse("is damaged or none: it is no message with a version and a graph".into()));
    }
    let main: Rc<str> = "".into();
    for item in Fields::new(shard.bytes(), 0..shard.bytes().len()) {
        match item.map_err(refuse)? {
            (model::GRAPH, Value::Bytes(range)) => reader.graph(range, &main, 0).map_err(refuse)?,
            (model::FUNCTIONS, Value::Bytes(range)) => {
                let name = reader.text(range.clone(), function::NAME).map_err(refuse)?;
                let path: Rc<str> = format!("{}/", shown(name)).into();
                reader.nodes(range, function::NODE, &path, 0).map_err(refuse)?;
            }
            (model::PRODUCER, Value::Bytes(range)) => {
                if let Ok(producer) = std::str::from_utf8(&shard.bytes()[range]) {
                    contents.metadata.insert("producer".into(), shown(producer));
                }
            }
            _ => {}
        }
    }
    let Reader { found, left_out, .. } = reader;
    let mut problems = Problems::default();
    let mut files = Files { shard, open: HashMap::new() };
    for (name, tensor) in unique(found) {
        match tensor.view(shard, &name, &mut files) {
            Ok(view) => contents.tensors.push(view),
            Err(what) => problems.push(shard.path(), Some(&name), what),
        }
        if problems.is_full() {
            break;
        }
    }
    contents.parts = files.open.into_values().flatten().collect();
    contents.parts.sort_by(|a, b| a.path().cmp(b.path()));
    if !left_out.is_empty() {
        contents.metadata.insert("left_out".into(), left_out.join("; "));
    }
    problems.or(contents)
}

/// Gives every tensor a name of its own.
fn unique(found: Vec<Found>) -> Vec<(String, Tensor)> {
    let mut count: HashMap<String, usize> = HashMap::with_capacity(found.len());
    for tensor in &found {
        *count.entry(tensor.name.clone()).or_default() += 1;
    }
    let mut taken = HashSet::with_capacity(found.len());
    let mut repeats: HashMap<String, usize> = HashMap::new();
    let mut named = Vec::with_capacity(found.len());
    for Found { name, path, tensor } in found {
        let name = if count[&name] > 1 { format!("{path}{name}") } else { name };
        let mut own = name.clone();
        while !taken.insert(own.clone()) {
            let number = repeats.entry(name.clone()).or_insert(1);
            *number += 1;
            own = format!("{name}#{number}");
        }
        named.push((own, tensor));
    }
    named
}

/// A tensor and where the graph has it.
struct Found {
    name: String,
    path: Rc<str>,
    tensor: Tensor,
}

struct Reader<'a> {
    shard: &'a Shard,
    found: Vec<Found>,
    left_out: Vec<String>,
}

impl<'a> Reader<'a> {
    fn fields(&self, range: Range<usize>) -> Fields<'a> {
        Fields::new(self.shard.bytes(), range)
    }

    /// The text of the first field `number` of a message; empty if there is none.
    fn text(&self, message: Range<usize>, number: u32) -> Result<&'a str, String> {
        for item in self.fields(message) {
            if let (found, Value::Bytes(range)) = item?
                && found == number
            {
                let start = range.start;
                return std::str::from_utf8(&self.shard.bytes()[range])
                    .map_err(|_| format!("has a name at byte {start} that is not UTF-8: damaged"));
            }
        }
        Ok("")
    }

    /// Everything in one graph. `path` leads to it.
    fn graph(&mut self, range: Range<usize>, path: &Rc<str>, depth: usize) -> Result<(), String> {
        use field::graph;
        if depth > MAX_DEPTH {
            return Err(format!("has more than {MAX_DEPTH} graphs inside each other"));
        }
        for item in self.fields(range.clone()) {
            match item? {
                (graph::INITIALIZER, Value::Bytes(tensor)) => {
                    let tensor = Tensor::read(self.shard.bytes(), tensor)?;
                    let name = match tensor.name.as_str() {
                        "" => format!("initializer_{}", self.found.len()),
                        name => name.to_owned(),
                    };
                    self.keep(name, path, tensor);
                }
                (graph::SPARSE_INITIALIZER, Value::Bytes(_)) => {
                    self.leave_out("an initialiser, which is sparse".to_owned());
                }
                _ => {}
            }
        }
        self.nodes(range, graph::NODE, path, depth)
    }

    /// The constants and subgraphs in the nodes of a graph or function, which are its fields `number`.
    fn nodes(&mut self, range: Range<usize>, number: u32, path: &Rc<str>, depth: usize) -> Result<(), String> {
        use field::{attribute, node};
        for item in self.fields(range) {
            let (found, Value::Bytes(message)) = item? else { continue };
            if found != number {
                continue;
            }
            let constant = self.text(message.clone(), node::OP_TYPE)? == "Constant";
            let output = self.text(message.clone(), node::OUTPUT)?;
            let label = match self.text(message.clone(), node::NAME)? {
                "" => output,
                name => name,
            };
            for item in self.fields(message) {
                let (node::ATTRIBUTE, Value::Bytes(attribute)) = item? else { continue };
                let attribute_name = self.text(attribute.clone(), attribute::NAME)?;
                for item in self.fields(attribute) {
                    match item? {
                        (attribute::TENSOR, Value::Bytes(tensor)) if constant && attribute_name == "value" => {
                            let tensor = Tensor::read(self.shard.bytes(), tensor)?;
                            let name = match output {
                                "" => format!("constant_{}", self.found.len()),
                                name => name.to_owned(),
                            };
                            self.keep(name, path, tensor);
                        }
                        (attribute::GRAPH | attribute::GRAPHS, Value::Bytes(graph)) => {
                            let inner: Rc<str> = match path.len() {
                                ..MAX_PATH => format!("{path}{}.{}/", shown(label), shown(attribute_name)).into(),
                                _ => path.clone(),
                            };
                            self.graph(graph, &inner, depth + 1)?;
                        }
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    fn keep(&mut self, name: String, path: &Rc<str>, tensor: Tensor) {
        match dtype(tensor.data_type) {
            Ok(_) => self.found.push(Found { name, path: path.clone(), tensor }),
            Err(what) => self.leave_out(format!("`{}`, {what}", shown(&name))),
        }
    }

    fn leave_out(&mut self, what: String) {
        const MOST: usize = 100;
        if self.left_out.len() < MOST {
            self.left_out.push(what);
        }
    }
}

/// A `TensorProto`.
#[derive(Default)]
struct Tensor {
    name: String,
    dims: Vec<i64>,
    data_type: u64,
    raw: Option<Range<usize>>,
    /// The typed fields that hold data: field number and content, in the order of the file.
    typed: Vec<(u32, Value)>,
    external: Option<External>,
}

/// Where a tensor in another file lies.
#[derive(Default)]
struct External {
    location: String,
    offset: u64,
    length: Option<u64>,
}

impl Tensor {
    fn read(bytes: &[u8], message: Range<usize>) -> Result<Self, String> {
        use field::tensor;
        let mut read = Self::default();
        let mut outside = false;
        let mut external = External::default();
        let text = |range: Range<usize>| {
            let start = range.start;
            std::str::from_utf8(&bytes[range])
                .map(str::to_owned)
                .map_err(|_| format!("has a text at byte {start} that is not UTF-8: damaged"))
        };
        for item in Fields::new(bytes, message) {
            match item? {
                (tensor::DIMS, Value::Varint(dim)) => read.dims.push(dim as i64),
                (tensor::DIMS, Value::Bytes(packed)) => {
                    for dim in protobuf::varints(&bytes[packed]) {
                        read.dims.push(dim? as i64);
                    }
                }
                (tensor::DATA_TYPE, Value::Varint(data_type)) => read.data_type = data_type,
                (tensor::NAME, Value::Bytes(range)) => read.name = text(range)?,
                (tensor::RAW_DATA, Value::Bytes(range)) => read.raw = Some(range),
                (tensor::DATA_LOCATION, Value::Varint(location)) => outside = location == 1,
                (tensor::EXTERNAL_DATA, Value::Bytes(entry)) => {
                    let (mut key, mut value) = (String::new(), String::new());
                    for item in Fields::new(bytes, entry) {
                        match item? {
                            (1, Value::Bytes(range)) => key = text(range)?,
                            (2, Value::Bytes(range)) => value = text(range)?,
                            _ => {}
                        }
                    }
                    let number = || {
                        let wrong = |_| format!("has external data with the {key} `{}`: damaged", shown(&value));
                        value.parse::<u64>().map_err(wrong)
                    };
                    match key.as_str() {
                        "location" => external.location = value,
                        "offset" => external.offset = number()?,
                        "length" => external.length = Some(number()?),
                        _ => {} // checksum and what may come: not needed
                    }
                }
                (
                    number @ (tensor::FLOAT_DATA
                    | tensor::INT32_DATA
                    | tensor::INT64_DATA
                    | tensor::DOUBLE_DATA
                    | tensor::UINT64_DATA),
                    value,
                ) => read.typed.push((number, value)),
                _ => {}
            }
            if read.dims.len() > 64 {
                return Err("has a tensor of more than 64 dimensions: damaged".into());
            }
        }
        read.external = outside.then_some(external);
        Ok(read)
    }

    fn view(self, shard: &Shard, name: &str, files: &mut Files<'_>) -> Result<TensorView, String> {
        let dtype = dtype(self.data_type)?;
        let shape: Option<Vec<usize>> = self.dims.iter().map(|&dim| usize::try_from(dim).ok()).collect();
        let shape = shape.ok_or_else(|| format!("has shape {:?}: damaged", self.dims))?;
        let size = elements(&shape).and_then(|elements| dtype.bytes(elements));
        let size =
            size.ok_or_else(|| format!("has shape {shape:?}, whose size in bytes as {dtype} cannot be counted"))?;
        let other = |found: usize| {
            format!("has {found} bytes, where {dtype} of shape {shape:?} takes {size}: truncated or damaged")
        };
        let view = |shard: &Shard, start: usize| TensorView::place(shard, name, dtype, shape.clone(), start);
        if let Some(external) = self.external {
            let file = files.open(&external.location)?;
            let start = usize::try_from(external.offset).unwrap_or(usize::MAX);
            if external.length.is_some_and(|length| length != size as u64) {
                return Err(other(external.length.unwrap_or(0) as usize));
            }
            return view(&file, start);
        }
        if let Some(raw) = self.raw {
            return if raw.len() == size { view(shard, raw.start) } else { Err(other(raw.len())) };
        }
        // Floats that lie in one piece are as good as raw data.
        if let [(field::tensor::FLOAT_DATA | field::tensor::DOUBLE_DATA, Value::Bytes(packed))] = self.typed.as_slice()
            && matches!(dtype, Dtype::F32 | Dtype::F64 | Dtype::C64)
        {
            return if packed.len() == size { view(shard, packed.start) } else { Err(other(packed.len())) };
        }
        let bytes = unpack(shard.bytes(), &self.typed, dtype, size)?;
        if bytes.len() != size {
            return Err(other(bytes.len()));
        }
        TensorView::place(&Shard::from_bytes(shard.path(), bytes), name, dtype, shape, 0)
    }
}

/// The typed fields of a tensor as the bytes of its elements, little endian; more than `size` bytes are not made.
fn unpack(file: &[u8], typed: &[(u32, Value)], dtype: Dtype, size: usize) -> Result<Vec<u8>, String> {
    use field::tensor;
    let width = dtype.block().1;
    let mut out = Vec::new();
    for (number, value) in typed {
        if out.len() > size {
            break;
        }
        let fits = match *number {
            tensor::FLOAT_DATA => matches!(dtype, Dtype::F32 | Dtype::C64),
            tensor::DOUBLE_DATA => dtype == Dtype::F64,
            tensor::INT64_DATA => dtype == Dtype::I64,
            tensor::UINT64_DATA => matches!(dtype, Dtype::U32 | Dtype::U64),
            // All small types stand in 32-bit integers, floats by their bits.
            _ => width <= 4 && !matches!(dtype, Dtype::F32 | Dtype::U32 | Dtype::C64 | Dtype::F4),
        };
        if !fits {
            return Err(format!("has its {dtype} elements in a field for other types (field {number}): damaged"));
        }
        match (*number, value) {
            (tensor::FLOAT_DATA | tensor::DOUBLE_DATA, Value::Bytes(packed)) => {
                out.extend_from_slice(&file[packed.clone()]);
            }
            (tensor::FLOAT_DATA, Value::Fixed32(bits)) => out.extend_from_slice(&bits.to_le_bytes()),
            (tensor::DOUBLE_DATA, Value::Fixed64(bits)) => out.extend_from_slice(&bits.to_le_bytes()),
            (_, Value::Varint(number)) => out.extend_from_slice(&number.to_le_bytes()[..width]),
            (_, Value::Bytes(packed)) => {
                for number in protobuf::varints(&file[packed.clone()]) {
                    out.extend_from_slice(&number?.to_le_bytes()[..width]);
                }
            }
            _ => return Err(format!("has data of another kind than its field {number} holds: damaged")),
        }
    }
    Ok(out)
}

/// The type behind ONNX's number, or a clause that says why it is none here.
fn dtype(data_type: u64) -> Result<Dtype, String> {
    Ok(match data_type {
        1 => Dtype::F32,
        2 => Dtype::U8,
        3 => Dtype::I8,
        4 => Dtype::U16,
        5 => Dtype::I16,
        6 => Dtype::I32,
        7 => Dtype::I64,
        9 => Dtype::Bool,
        10 => Dtype::F16,
        11 => Dtype::F64,
        12 => Dtype::U32,
        13 => Dtype::U64,
        14 => Dtype::C64,
        16 => Dtype::Bf16,
        17 => Dtype::F8E4M3,
        18 => Dtype::F8E4M3Fnuz,
        19 => Dtype::F8E5M2,
        20 => Dtype::F8E5M2Fnuz,
        23 => Dtype::F4,
        24 => Dtype::F8E8M0,
        8 => return Err("whose elements are texts".into()),
        15 => return Err("whose elements are complex numbers of two f64".into()),
        21 | 22 => return Err("whose elements are integers of 4 bits".into()),
        25 | 26 => return Err("whose elements are integers of 2 bits".into()),
        other => return Err(format!("whose element type {other} is not known")),
    })
}

/// The files beside the model that its tensors lie in.
struct Files<'a> {
    shard: &'a Shard,
    open: HashMap<String, Option<Shard>>,
}

impl Files<'_> {
    fn open(&mut self, location: &str) -> Result<Shard, String> {
        if let Some(known) = self.open.get(location) {
            let failed = || format!("lies in `{}`, which could not be opened", shown(location));
            return known.clone().ok_or_else(failed);
        }
        let opened = self.find(location);
        self.open.insert(location.to_owned(), opened.as_ref().ok().cloned());
        opened
    }

    fn find(&self, location: &str) -> Result<Shard, String> {
        let inside = !location.is_empty()
            && !location.contains(['\0', '\\'])
            && Path::new(location)
                .components()
                .all(|component| matches!(component, Component::Normal(_) | Component::CurDir));
        if !inside {
            return Err(format!("lies in `{}`; expected a file inside the model's folder", shown(location)));
        }
        if !self.shard.is_mapped() {
            return Err(format!("lies in `{}`, which bytes in memory have no folder for", shown(location)));
        }
        let folder = self.shard.path().parent().unwrap_or(Path::new(""));
        Shard::open(folder.join(location)).map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("lies in another file: {error}{cause}")
        })
    }
}
