//! Published scores of other compressed models, to be drawn beside our own.
//!
//! The table of Hong et al. 2024 (*Decoding Compressed Trust*, ICML, arXiv 2403.15447) has a line per model with nine numbers
//! from 0 to 100 and eight refusal rates, two of them as fractions. Each compressed line is compared with the dense model of
//! the same name:
//!     Δ = score(compressed) − score(dense)
//! Bits are nominal there: scales and zero points are not counted.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use scruple_weights::{Error, Result};

/// Columns of the nine scores, and our dimensions of the same subject. Items, scorers and models differ.
pub const DIMENSIONS: [(&str, &str); 9] = [
    ("Toxicity", "toxicity"),
    ("Stereotype", "stereotype"),
    ("Privacy", "privacy"),
    ("Fairness", "fairness"),
    ("AdvGLUE++", "adversarial-robustness"),
    ("OOD", "out-of-distribution"),
    ("Adv Demo", "adversarial-demonstrations"),
    ("Ethics", "machine-ethics"),
    ("MMLU", "knowledge"),
];

/// Columns of refusal rates in the order of [`DIMENSIONS`], which MMLU lacks, and what makes percent of them.
const REFUSALS: [(&str, f64); 8] = [
    ("Toxicity Ref", 100.0),
    ("Stereotype Ref", 1.0),
    ("Privacy Ref", 1.0),
    ("Fairness Ref", 100.0),
    ("AdvGLUE++ Ref", 1.0),
    ("OOD Ref", 1.0),
    ("Adv Demo Ref", 1.0),
    ("Ethics Ref", 1.0),
];

/// A table as it was published.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// Name of the file, without its folder.
    pub file: String,
    /// A model each, in the order of the file.
    pub rows: Vec<Row>,
}

/// What was done to a published model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Dense,
    /// Fewer bits.
    Quantised,
    /// Zeros.
    Sparse,
}

/// One published model.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The family and size, the same for a dense model and what was made of it: `LLAMA2 13b Chat`.
    pub model: String,
    /// The checkpoint: `lmsys/vicuna-13b-v1.3`.
    pub checkpoint: String,
    /// The method, as the table has it: `AWQ`; `none` for a dense model.
    pub method: String,
    /// What was done.
    pub kind: Kind,
    /// The rate as people say it: `3 bits`, `2:4`; `dense`.
    pub rate: String,
    /// Nominal bits of a weight, of quantised models.
    pub bits: Option<f64>,
    /// Share of zeros, of sparse models.
    pub sparsity: Option<f64>,
    /// Seed of the calibration, where the name tells.
    pub seed: Option<u64>,
    /// Scores in the order of [`DIMENSIONS`].
    pub scores: [Option<f64>; 9],
    /// Refusals in the order of [`DIMENSIONS`], percent; knowledge has none.
    pub refusals: [Option<f64>; 8],
}

/// One published compressed model against its dense parent, points.
#[derive(Debug, Clone, PartialEq)]
pub struct Change<'a> {
    /// The compressed model.
    pub row: &'a Row,
    /// Its dense parent.
    pub dense: &'a Row,
    /// In the order of [`DIMENSIONS`]; absent where one of the two has no number.
    pub deltas: [Option<f64>; 9],
}

impl Published {
    /// Reads `num_sheet.csv`.
    ///
    /// # Errors
    /// If the file cannot be read, lacks a column, or has a line that does not fit its columns: one sentence with the line.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("{}: cannot read the published scores", path.display()))?;
        let text = String::from_utf8(bytes).map_err(|_| {
            Error::file(path, "holds bytes that are no UTF-8 text, expected a table of published scores")
        })?;
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { file, rows: parse(path, &text)? })
    }

    /// Every compressed model whose dense parent is in the table too, in the order of the file.
    pub fn changes(&self) -> Vec<Change<'_>> {
        let mut changes = Vec::new();
        for row in self.rows.iter().filter(|row| row.kind != Kind::Dense) {
            let parent = |dense: &&Row| dense.kind == Kind::Dense && dense.model == row.model;
            if let Some(dense) = self.rows.iter().find(parent) {
                let deltas = std::array::from_fn(|at| Some(row.scores[at]? - dense.scores[at]?));
                changes.push(Change { row, dense, deltas });
            }
        }
        changes
    }
}

/// The table's lines, counted from 1 as editors do.
fn parse(path: &Path, text: &str) -> Result<Vec<Row>> {
    let fault = |line: usize, what: String| Error::file(path, format!("line {line} {what}"));
    let mut lines =
        text.lines().enumerate().map(|(at, line)| (at + 1, line)).filter(|(_, line)| !line.trim().is_empty());
    let Some((_, header)) = lines.next() else {
        return Err(Error::file(path, "is empty, expected a table of published scores with a header line"));
    };
    let header = cells(header.trim_start_matches('\u{feff}'));
    let column = |name: &str| {
        header.iter().position(|cell| cell == name).ok_or_else(|| {
            let what = format!("has no column `{name}` in its header, expected the published table `num_sheet.csv`");
            Error::file(path, what)
        })
    };
    let names = ["Base Model", "Compression Method", "Method Subtype", "Sparsity/bits", "Model"];
    let [family, kind, method, rate, checkpoint] = {
        let mut found = [0; 5];
        for (found, name) in found.iter_mut().zip(names) {
            *found = column(name)?;
        }
        found
    };
    let scores = DIMENSIONS.iter().map(|(name, _)| column(name)).collect::<Result<Vec<_>>>()?;
    let refusals = REFUSALS.iter().map(|(name, _)| column(name)).collect::<Result<Vec<_>>>()?;
    let mut rows = Vec::new();
    for (line, text) in lines {
        let cells = cells(text);
        if cells.len() != header.len() {
            return Err(fault(line, format!("has {} cells, expected {} as in the header", cells.len(), header.len())));
        }
        let number = |at: usize| -> Result<Option<f64>> {
            let cell = cells[at].trim();
            if cell.is_empty() {
                return Ok(None);
            }
            let number = cell.parse::<f64>().ok().filter(|number| number.is_finite());
            let found = || fault(line, format!("has `{cell}` as `{}`, expected a number or nothing", header[at]));
            number.map(Some).ok_or_else(found)
        };
        let checkpoint = cells[checkpoint].trim_start_matches("hf/").to_string();
        let tail = checkpoint.rsplit_once('@').map_or("", |(_, tail)| tail);
        let (kind, rate, bits, sparsity) = match cells[kind].as_str() {
            "none" => (Kind::Dense, "dense".to_string(), None, None),
            "quantization" => {
                let bits = number(rate)?.filter(|bits| *bits > 0.0);
                let bits = bits.ok_or_else(|| fault(line, "is quantised and does not say to how many bits".into()))?;
                (Kind::Quantised, format!("{bits} bits"), Some(bits), None)
            }
            // The column says 8 for all of them; the name tells.
            "pruning" => {
                let (share, pattern) = tail.split_once('_').unwrap_or((tail, ""));
                let share = share.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
                let what = || fault(line, format!("is pruned, and `{checkpoint}` does not end in `@` and a sparsity"));
                let share = share.ok_or_else(what)?;
                let pattern = pattern.split('_').next().unwrap_or_default().replace("to", ":");
                let rate = if pattern.contains(':') { pattern } else { format!("{:.0} %", 100.0 * share) };
                (Kind::Sparse, rate, None, Some(share))
            }
            other => {
                let what =
                    format!("has `{other}` as `Compression Method`, expected `none`, `quantization` or `pruning`");
                return Err(fault(line, what));
            }
        };
        let seed = tail.split('_').find_map(|part| {
            let number = part.strip_prefix("seed").or_else(|| part.strip_suffix("seed"))?;
            number.parse().ok()
        });
        let mut row = Row {
            model: cells[family].clone(),
            method: cells[method].clone(),
            checkpoint,
            kind,
            rate,
            bits,
            sparsity,
            seed,
            scores: [None; 9],
            refusals: [None; 8],
        };
        for (score, &at) in row.scores.iter_mut().zip(&scores) {
            *score = number(at)?;
        }
        for ((refusal, &at), (_, percent)) in row.refusals.iter_mut().zip(&refusals).zip(REFUSALS) {
            *refusal = number(at)?.map(|rate| rate * percent);
        }
        rows.push(row);
    }
    Ok(rows)
}

/// The cells of one line; quotation marks keep commas together, and two within them stand for one.
fn cells(line: &str) -> Vec<String> {
    let mut cells = vec![String::new()];
    let mut quoted = false;
    let mut letters = line.trim_end_matches('\r').chars().peekable();
    while let Some(letter) = letters.next() {
        let cell = cells.last_mut().expect("there is always a cell");
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                cell.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(String::new()),
            other => cell.push(other),
        }
    }
    cells
}

/// Where the published table lies on machines that have it: `$SCRUPLE_DATA/trust/published/num_sheet.csv`.
pub fn usual_place() -> Option<PathBuf> {
    let path = Path::new(&std::env::var_os("SCRUPLE_DATA")?).join("trust/published/num_sheet.csv");
    path.is_file().then_some(path)
}

#[cfg(test)]
mod tests;
