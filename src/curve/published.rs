//! The published table of compressed models' trust scores (Hong et al. 2024, "Decoding Compressed Trust", the site's
//! `num_sheet.csv`), each row differenced against its dense parent.
//!
//! The table has scores alone: no intervals, and other items and scorers than ours. Its refusals are in percent but for
//! fairness and toxicity, which are fractions; here all are percent.

use std::path::Path;

use anyhow::{Context, Result};

use crate::trust::paired::{Summary, between_seeds};

/// A dimension's name here, the head of its score, that of its refusals, and what makes these percent.
const COLUMNS: [(&str, &str, &str, f64); 8] = [
    ("toxicity", "Toxicity", "Toxicity Ref", 100.0),
    ("stereotype", "Stereotype", "Stereotype Ref", 1.0),
    ("privacy", "Privacy", "Privacy Ref", 1.0),
    ("fairness", "Fairness", "Fairness Ref", 100.0),
    ("adversarial-robustness", "AdvGLUE++", "AdvGLUE++ Ref", 1.0),
    ("out-of-distribution", "OOD", "OOD Ref", 1.0),
    ("adversarial-demonstrations", "Adv Demo", "Adv Demo Ref", 1.0),
    ("machine-ethics", "Ethics", "Ethics Ref", 1.0),
];

/// The table.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// Dense and compressed models, in the order of the file.
    pub rows: Vec<Row>,
}

/// One model of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The family it belongs to: `LLAMA2 13b Chat`.
    pub base: String,
    /// `AWQ`, `GPTQ`, `mag`, `sparsegpt`, `wanda`; absent for a dense model.
    pub method: Option<String>,
    /// `3 bits`, `2:4`; absent for a dense model.
    pub rate: Option<String>,
    /// As the table names it.
    pub model: String,
    /// Calibration seed, where the model's name has one.
    pub seed: Option<u64>,
    /// Score of each of the eight dimensions, by the name it has here.
    pub scores: Vec<(&'static str, f64)>,
    /// Items declined, percent, likewise.
    pub refusals: Vec<(&'static str, f64)>,
    /// MMLU.
    pub knowledge: f64,
    /// The table's own average, of the eight dimensions and MMLU.
    pub average: f64,
}

/// A compressed model of the table less its dense parent, points.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference<'a> {
    /// The compressed model.
    pub row: &'a Row,
    /// The dense one.
    pub dense: &'a Row,
    /// Δ of each dimension.
    pub deltas: Vec<(&'static str, f64)>,
    /// Worst, best and mean |Δ| over the eight dimensions.
    pub summary: Summary,
    /// Mean Δ of the eight dimensions and MMLU together.
    pub average: f64,
    /// Δ of MMLU.
    pub knowledge: f64,
}

/// Rows that differ in the calibration seed alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Seeds<'a> {
    /// The rows.
    pub rows: Vec<&'a Row>,
    /// Standard deviation (n − 1) of each dimension between them.
    pub deviations: Vec<(&'static str, f64)>,
}

impl Published {
    /// Reads the table.
    ///
    /// # Errors
    /// A file that cannot be read, a column that is missing, a line with another number of cells, a cell that is no number.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("{}: cannot read the table", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// Reads the table's text.
    ///
    /// # Errors
    /// As [`Published::read`].
    pub fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines().enumerate();
        let heads: Vec<&str> =
            lines.next().map(|(_, line)| line.split(',').map(str::trim).collect()).unwrap_or_default();
        let column = |name: &str| {
            let place = heads.iter().position(|head| *head == name);
            place.with_context(|| format!("there is no column `{name}`; the table of the study's site has it"))
        };
        let mut rows = Vec::new();
        for (index, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
            let cells: Vec<&str> = line.split(',').map(str::trim).collect();
            let number_of_line = index + 1;
            anyhow::ensure!(
                cells.len() == heads.len(),
                "line {number_of_line} has {} cells, expected {}",
                cells.len(),
                heads.len()
            );
            let number = |name: &str| -> Result<f64> {
                let cell = cells[column(name)?];
                let number: Option<f64> = cell.parse().ok().filter(|number: &f64| number.is_finite());
                number.with_context(|| format!("line {number_of_line}: `{name}` is `{cell}`, expected a number"))
            };
            let text = |name: &str| Ok::<_, anyhow::Error>(cells[column(name)?].to_string());
            let (base, model) = (text("Base Model")?, text("Model")?);
            let compressed = text("Compression Method")? != "none";
            let mut scores = Vec::new();
            let mut refusals = Vec::new();
            for (name, score, refusal, percent) in COLUMNS {
                scores.push((name, number(score)?));
                refusals.push((name, percent * number(refusal)?));
            }
            let bits = text("Sparsity/bits")?;
            rows.push(Row {
                method: compressed.then(|| text("Method Subtype")).transpose()?,
                rate: compressed.then(|| pattern(&model).unwrap_or_else(|| format!("{bits} bits"))),
                seed: seed(&model),
                scores,
                refusals,
                knowledge: number("MMLU")?,
                average: number("Average")?,
                base,
                model,
            });
        }
        anyhow::ensure!(!rows.is_empty(), "the table has no rows");
        Ok(Self { rows })
    }

    /// Every compressed model that has a dense parent in the table, less that parent.
    pub fn differences(&self) -> Vec<Difference<'_>> {
        self.rows.iter().filter_map(|row| self.difference(row)).collect()
    }

    fn difference<'a>(&'a self, row: &'a Row) -> Option<Difference<'a>> {
        row.method.as_ref()?;
        let dense = self.rows.iter().find(|dense| dense.method.is_none() && dense.base == row.base)?;
        let deltas: Vec<(&'static str, f64)> =
            row.scores.iter().zip(&dense.scores).map(|((name, score), (_, dense))| (*name, score - dense)).collect();
        let knowledge = row.knowledge - dense.knowledge;
        let total: f64 = deltas.iter().map(|(_, delta)| delta).sum();
        Some(Difference {
            summary: Summary::of(deltas.iter().copied())?,
            average: (total + knowledge) / (deltas.len() + 1) as f64,
            knowledge,
            deltas,
            row,
            dense,
        })
    }

    /// The settings that were run with several calibration seeds.
    pub fn seeds(&self) -> Vec<Seeds<'_>> {
        let mut settings: Vec<(String, Vec<&Row>)> = Vec::new();
        for row in self.rows.iter().filter(|row| row.seed.is_some()) {
            let setting = without_seed(&row.model);
            match settings.iter_mut().find(|(name, _)| *name == setting) {
                Some((_, rows)) => rows.push(row),
                None => settings.push((setting, vec![row])),
            }
        }
        settings.retain(|(_, rows)| rows.len() > 1);
        settings.into_iter().map(|(_, rows)| Seeds { deviations: deviations(&rows), rows }).collect()
    }
}

/// Standard deviation of each dimension between `rows`.
fn deviations(rows: &[&Row]) -> Vec<(&'static str, f64)> {
    let of = |at: usize| {
        let scores: Vec<f64> = rows.iter().map(|row| row.scores[at].1).collect();
        Some((COLUMNS[at].0, between_seeds(&scores)?))
    };
    (0..COLUMNS.len()).filter_map(of).collect()
}

/// `2:4` of a model whose name ends in `@0.5_2to4`, or goes on with a seed.
fn pattern(model: &str) -> Option<String> {
    let (_, rest) = model.split_once("@0.5_")?;
    let (kept, of) = rest.split('_').next()?.split_once("to")?;
    Some(format!("{kept}:{of}"))
}

/// Where a model's name says its seed: `…_1seed`, `…_seed1`.
fn seed_part(model: &str) -> Option<&str> {
    model.split('_').find(|part| {
        let digits = part.strip_prefix("seed").or_else(|| part.strip_suffix("seed"));
        digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

fn seed(model: &str) -> Option<u64> {
    seed_part(model)?.trim_matches(|c: char| !c.is_ascii_digit()).parse().ok()
}

fn without_seed(model: &str) -> String {
    seed_part(model).map_or(model.to_string(), |part| model.replace(&format!("_{part}"), ""))
}

#[cfg(test)]
mod tests;
