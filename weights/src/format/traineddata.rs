//! Tesseract's `.traineddata`: the network that reads a line of text, out of a bundle of components.
//!
//! ```text
//! count i32 · count offsets i64 (-1: absent) · components; number 17 is the recogniser, 23 the version as text
//! recogniser: network · description (string) · flags, iterations, samples, null character i32 · three rates f32
//! network:    0 i8 · type (string; old files: the type's number i8 instead of both) · training, backprop i8 ·
//!             flags, inputs, outputs, weights i32 · name (string) · what its type demands
//! matrix:     mode u8 (1 int8, 4 Adam, 128 scales and numbers as f64) · rows, columns u32 · one number for empty
//!             places · numbers, rows first · int8: count u32 · scales
//! ```
//!
//! A string is a length u32 and bytes. A matrix is (outputs, inputs + 1): its last column is the bias, which becomes a
//! tensor of its own. Tensors are named by their way through the tree, `lstm.series.2.lstm.gate_ci.weight`: children of
//! a network by number, networks by type, gates as the program calls them (`ci` cell input, `gi` input gate, `gf1` forget
//! gate, `go` output gate, `gfs` forget gate of the second dimension).
//!
//! int8 matrices hold w = code · scale with a scale for each row, and become f32. (The program keeps scale/127 in memory,
//! because its activations are int8 of 127 steps; files hold the scale itself, but those from before mode 128 hold
//! scale/127 as f32.) Float matrices keep their type. What Adam and momentum remember of training is passed over.

use std::ops::Range;

use super::{Contents, shown};
use crate::{Dtype, Error, Result, Shard, TensorView};

/// Places in the table of components.
const RECOGNISER: usize = 17;
const UNICHARSET: usize = 21;
const RECODER: usize = 22;
const VERSION: usize = 23;

/// Networks inside one another; those in use have four.
const DEEPEST: usize = 32;

/// Networks by the number that old files give instead of the name.
const TYPES: [&str; 27] = [
    "Invalid",
    "Input",
    "Convolve",
    "Maxpool",
    "Parallel",
    "Replicated",
    "ParBidiLSTM",
    "DepParUDLSTM",
    "Par2dLSTM",
    "Series",
    "Reconfig",
    "RTLReversed",
    "TTBReversed",
    "XYTranspose",
    "LSTM",
    "SummLSTM",
    "Logistic",
    "LinLogistic",
    "LinTanh",
    "Tanh",
    "Relu",
    "Linear",
    "Softmax",
    "SoftmaxNoCTC",
    "LSTMSoftmax",
    "LSTMBinarySoftmax",
    "TensorFlow",
];

/// Whether the file begins with a table of components, of either byte order.
pub fn recognise(shard: &Shard) -> bool {
    let bytes = shard.bytes();
    components(bytes, u32::from_le_bytes, i64::from_le_bytes).is_some() || is_swapped(bytes)
}

fn is_swapped(bytes: &[u8]) -> bool {
    components(bytes, u32::from_be_bytes, i64::from_be_bytes).is_some()
}

/// Where each component lies: a count of at most 32, then as many offsets, -1 or rising, the first behind the table.
fn components(
    bytes: &[u8],
    count: impl Fn([u8; 4]) -> u32,
    offset: impl Fn([u8; 8]) -> i64,
) -> Option<Vec<Option<Range<usize>>>> {
    let (first, rest) = bytes.split_first_chunk::<4>()?;
    let count = usize::try_from(count(*first)).ok().filter(|count| (4..=32).contains(count))?;
    let table = rest.get(..8 * count)?.as_chunks::<8>().0;
    let mut ranges = vec![None; count];
    // From the last on: a component ends where the next one that is there begins.
    let mut end = bytes.len();
    for (range, &at) in ranges.iter_mut().zip(table).rev() {
        let at = offset(at);
        if at != -1 {
            let start = usize::try_from(at).ok().filter(|&start| start <= end)?;
            *range = Some(start..end);
            end = start;
        }
    }
    (end == 4 + 8 * count && end < bytes.len()).then_some(ranges)
}

/// Reads the recogniser's matrices.
///
/// # Errors
/// If the file is none, is of the other byte order, has no recogniser (models of the older engine), or the recogniser is
/// damaged or of a kind that is not known. Where the character set lies outside the recogniser, as it does in all but
/// the earliest files, every one of its bytes must be explained.
pub fn read(shard: &Shard) -> Result<Contents> {
    let refuse = |what: String| Error::file(shard.path(), what);
    let bytes = shard.bytes();
    let Some(components) = components(bytes, u32::from_le_bytes, i64::from_le_bytes) else {
        return Err(refuse(if is_swapped(bytes) {
            "this Tesseract traineddata file is big-endian, which is not read; pack it again on a little-endian machine with `combine_tessdata`".into()
        } else {
            "expected a Tesseract traineddata file, found no table of components; fetch it again".into()
        }));
    };
    let component = |number: usize| components.get(number).and_then(Clone::clone).filter(|range| !range.is_empty());
    let Some(range) = component(RECOGNISER) else {
        return Err(refuse(
            "this Tesseract traineddata file has no LSTM recogniser (component 17), only tables of the older engine, which hold no tensors; name a file with a network, such as those of tessdata_fast or tessdata_best".into(),
        ));
    };
    let mut reader = Reader { shard, at: range.start, end: range.end, tensors: Vec::new() };
    let mut metadata = super::Metadata::from([("container".to_owned(), "traineddata".to_owned())]);
    let mut walk = || -> Result<(), String> {
        reader.network("lstm", 0)?;
        // Elsewhere the character set stands between, as text.
        if component(UNICHARSET).is_some() && component(RECODER).is_some() {
            let description = reader.string("the network's description")?;
            metadata.insert("network".to_owned(), shown(&String::from_utf8_lossy(description)));
            reader.take(7 * 4, "the state of training")?;
            if reader.at != reader.end {
                return Err(format!("{} bytes are left over", reader.end - reader.at));
            }
        }
        Ok(())
    };
    if let Err(what) = walk() {
        let at = reader.at;
        return Err(refuse(format!(
            "the LSTM recogniser of this Tesseract traineddata file does not hold together at byte {at}: {what}; the file is damaged or of an unknown version, fetch it again"
        )));
    }
    if let Some(version) = component(VERSION) {
        metadata.insert("version".to_owned(), shown(String::from_utf8_lossy(&bytes[version]).trim()));
    }
    Ok(Contents { tensors: reader.tensors, metadata, ..Contents::default() })
}

/// A walk through the recogniser, and what was found on the way.
struct Reader<'a> {
    shard: &'a Shard,
    at: usize,
    end: usize,
    tensors: Vec<TensorView>,
}

/// What the header of a network says.
struct Header {
    kind: &'static str,
    training: bool,
    flags: i32,
    inputs: i64,
    outputs: i64,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8], String> {
        let left = self.end - self.at;
        if len > left {
            return Err(format!("{what} takes {len} bytes, of which {left} are there"));
        }
        self.at += len;
        Ok(&self.shard.bytes()[self.at - len..self.at])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    fn byte(&mut self, what: &str) -> Result<u8, String> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    fn number(&mut self, what: &str) -> Result<i32, String> {
        self.array(what).map(i32::from_le_bytes)
    }

    fn count(&mut self, what: &str) -> Result<usize, String> {
        self.array(what).map(|bytes| u32::from_le_bytes(bytes) as usize)
    }

    fn string(&mut self, what: &str) -> Result<&'a [u8], String> {
        let len = self.count(what)?;
        self.take(len, what)
    }

    fn header(&mut self) -> Result<Header, String> {
        let number = self.byte("a network's type")?;
        let kind = if number == 0 {
            let name = self.string("a network's type")?;
            TYPES.iter().find(|kind| kind.as_bytes() == name)
        } else {
            TYPES.get(usize::from(number))
        };
        let kind = *kind.ok_or("a network is of an unknown type")?;
        let training = self.byte("a network's header")? == 1;
        self.byte("a network's header")?; // whether errors pass through it in training
        let flags = self.number("a network's header")?;
        let (inputs, outputs) = (self.number("a network's header")?, self.number("a network's header")?);
        let weights = self.number("a network's header")?;
        if inputs < 0 || outputs < 0 || weights < 0 {
            return Err(format!("a {kind} has {inputs} inputs, {outputs} outputs and {weights} weights"));
        }
        self.string("a network's name")?;
        Ok(Header { kind, training, flags, inputs: inputs.into(), outputs: outputs.into() })
    }

    /// One network and all in it; its name continues `path`.
    fn network(&mut self, path: &str, depth: usize) -> Result<(), String> {
        /// The flag of layers that learn at rates of their own, which follow them.
        const OWN_RATES: i32 = 64;
        if depth == DEEPEST {
            return Err(format!("networks are nested more than {DEEPEST} deep"));
        }
        let header = self.header()?;
        let path = format!("{path}.{}", header.kind.to_ascii_lowercase());
        match header.kind {
            "Input" => self.take(5 * 4, "an input's shape").map(drop),
            "Convolve" | "Maxpool" | "Reconfig" => self.take(2 * 4, "the size of a window").map(drop),
            "Parallel" | "Replicated" | "ParBidiLSTM" | "DepParUDLSTM" | "Par2dLSTM" | "Series" | "RTLReversed"
            | "TTBReversed" | "XYTranspose" => {
                for child in 0..self.count("the number of networks")? {
                    self.network(&format!("{path}.{child}"), depth + 1)?;
                }
                if header.flags & OWN_RATES != 0 {
                    let count = self.count("the number of rates")?;
                    self.take(count.saturating_mul(4), "the rates")?;
                }
                Ok(())
            }
            "LSTM" | "SummLSTM" | "LSTMSoftmax" | "LSTMBinarySoftmax" => self.lstm(&path, &header, depth),
            "Logistic" | "LinLogistic" | "LinTanh" | "Tanh" | "Relu" | "Linear" | "Softmax" | "SoftmaxNoCTC" => {
                self.matrix(&path, header.training).map(drop)
            }
            kind => Err(format!("networks of type {kind} are not read")),
        }
    }

    /// Four gates, a fifth if it walks over two dimensions, and the classifier whose outputs it feeds back, if any.
    fn lstm(&mut self, path: &str, header: &Header, depth: usize) -> Result<(), String> {
        let width = i64::from(self.number("the width of an LSTM's inputs")?);
        let feedback = match header.kind {
            "LSTMSoftmax" => header.outputs,
            // As many bits as number the outputs.
            "LSTMBinarySoftmax" => i64::from(64 - (header.outputs - 1).max(0).leading_zeros()),
            _ => 0,
        };
        let states = self.matrix(&format!("{path}.gate_ci"), header.training)?;
        for gate in ["gi", "gf1", "go"] {
            self.matrix(&format!("{path}.gate_{gate}"), header.training)?;
        }
        if width - feedback == header.inputs + 2 * states as i64 {
            self.matrix(&format!("{path}.gate_gfs"), header.training)?;
        }
        if matches!(header.kind, "LSTMSoftmax" | "LSTMBinarySoftmax") {
            self.network(path, depth + 1)?;
        }
        Ok(())
    }

    /// A matrix as a weight (outputs, inputs) and a bias (outputs); gives the number of outputs.
    fn matrix(&mut self, path: &str, training: bool) -> Result<usize, String> {
        const INT8: u8 = 1;
        const ADAM: u8 = 4;
        const DOUBLE: u8 = 128;
        let mode = self.byte("a matrix's mode")?;
        if mode & !(INT8 | ADAM | DOUBLE) != 0 {
            return Err(format!("the matrix `{path}` has mode {mode}"));
        }
        let (is_int8, is_double) = (mode & INT8 != 0, mode & DOUBLE != 0);
        let float = if is_double { Dtype::F64 } else { Dtype::F32 };
        let size = float.block().1;
        let (rows, columns, numbers) = self.numbers(path, if is_int8 { 1 } else { size })?;
        let (dtype, values) = if is_int8 {
            let count = self.count("the number of scales")?;
            let scales = self.take(count.saturating_mul(size), "the scales")?;
            // Processors that work on several rows at once leave scales of none at the end.
            if count < rows {
                return Err(format!("the matrix `{path}` has {rows} rows and {count} scales"));
            }
            let scale = |bytes: &[u8]| match *bytes {
                [a, b, c, d] => f64::from(f32::from_le_bytes([a, b, c, d])) * 127.0,
                [a, b, c, d, e, f, g, h] => f64::from_le_bytes([a, b, c, d, e, f, g, h]),
                _ => unreachable!("a float of four or eight bytes"),
            };
            let rows = numbers.chunks_exact(columns).zip(scales.chunks_exact(size));
            let decoded = rows.flat_map(|(row, bytes)| {
                let scale = scale(bytes);
                row.iter().flat_map(move |&code| ((f64::from(code as i8) * scale) as f32).to_le_bytes())
            });
            (Dtype::F32, decoded.collect())
        } else {
            (float, numbers.to_vec())
        };
        // What training remembers has the same shape and is passed over: last changes, and Adam's squares or, in old
        // files, errors.
        if training && !(is_int8 && is_double) {
            let extra = if is_double { 1 + usize::from(mode & ADAM != 0) } else { 2 };
            for _ in 0..extra {
                self.numbers(path, size)?;
            }
        }
        let (mut weight, mut bias) = (Vec::with_capacity(values.len()), Vec::with_capacity(rows * dtype.block().1));
        for row in values.chunks_exact(columns * dtype.block().1) {
            let (inputs, last) = row.split_at(row.len() - dtype.block().1);
            weight.extend_from_slice(inputs);
            bias.extend_from_slice(last);
        }
        for (name, shape, bytes) in [("weight", vec![rows, columns - 1], weight), ("bias", vec![rows], bias)] {
            let shard = Shard::from_bytes(self.shard.path(), bytes);
            self.tensors.push(TensorView::place(&shard, format!("{path}.{name}"), dtype, shape, 0)?);
        }
        Ok(rows)
    }

    /// Rows, columns and the numbers of `size` bytes, rows first.
    fn numbers(&mut self, path: &str, size: usize) -> Result<(usize, usize, &'a [u8]), String> {
        let (rows, columns) = (self.count("the rows of a matrix")?, self.count("the columns of a matrix")?);
        if rows == 0 || columns == 0 {
            return Err(format!("the matrix `{path}` has {rows} rows and {columns} columns"));
        }
        self.take(size, "a matrix")?; // the number that stands in empty places
        let len = rows.saturating_mul(columns).saturating_mul(size);
        Ok((rows, columns, self.take(len, "a matrix")?))
    }
}
