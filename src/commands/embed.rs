//! `scruple embed`: texts to vectors.

use std::{io::Read, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use scruple_compress::{
    Error,
    model::{
        any::{self, Kind},
        encoder::{FAMILIES, Pooling, SentenceEncoder, Tokens},
    },
    neighbours::{self, EmbeddingComparison},
};
use scruple_weights::{Checkpoint, hub::Origin};
use serde::Serialize;

use super::eval::blame;
use crate::{
    printer::{self, Progress, Table},
    record::{self, Run},
    source,
};

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder or file of the model, or `org/name[@revision]` of a hub: a text encoder such as all-MiniLM-L6-v2
    model: PathBuf,
    #[command(flatten)]
    texts: Texts,
    /// Dense model of the same tokenizer: compare with its embeddings of the same texts, and print no embeddings
    #[arg(long)]
    against: Option<PathBuf>,
    /// Print one record with all embeddings as JSON, instead of one embedding a line
    #[arg(long)]
    json: bool,
    /// Write `embeddings.npy`, `embed.json` and `run.json` into this folder, and print no embeddings
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// Where texts come from.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub struct Texts {
    /// File of texts, one a line
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Read texts from standard input, one a line
    #[arg(long)]
    pub stdin: bool,
}

impl Texts {
    /// The texts, at most `limit`; `None` if the options name no source.
    pub fn read(&self, limit: Option<usize>) -> Result<Option<Vec<String>>> {
        let (bytes, source) = match &self.text {
            Some(file) => {
                let bytes =
                    std::fs::read(file).with_context(|| format!("{}: cannot read the texts", file.display()))?;
                (bytes, file.display().to_string())
            }
            None if self.stdin => {
                let mut bytes = Vec::new();
                std::io::stdin().read_to_end(&mut bytes).context("cannot read the texts from standard input")?;
                (bytes, "standard input".to_string())
            }
            None => return Ok(None),
        };
        let whole = String::from_utf8(bytes).map_err(|error| {
            anyhow::anyhow!("{source}: the texts are not UTF-8 at byte {}", error.utf8_error().valid_up_to())
        })?;
        let lines: Vec<String> = whole.lines().take(limit.unwrap_or(usize::MAX)).map(str::to_string).collect();
        anyhow::ensure!(!lines.is_empty(), "{source}: there are no lines; put one text on each");
        Ok(Some(lines))
    }
}

/// Token ids of `texts`, with what the model makes of them: (ids of each, how many were cut).
pub fn tokenise(model: &SentenceEncoder, texts: &[String]) -> Result<(Vec<Vec<u32>>, usize)> {
    let mut cut = 0;
    let mut ids = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let one = || -> Result<Tokens, Error> {
            let tokens = model.tokens(text)?;
            model.encoder().expect(&tokens.ids)?;
            Ok(tokens)
        };
        let tokens = one().with_context(|| format!("line {}", index + 1))?;
        cut += usize::from(tokens.cut);
        ids.push(tokens.ids);
    }
    if cut > 0 {
        let (all, most) = (texts.len(), model.max_tokens());
        printer::warn(format!("{cut} of {all} texts were cut to the {most} tokens the model takes"));
    }
    Ok((ids, cut))
}

/// What the embeddings of `texts` by `compressed` have in common with those by `dense`.
pub fn compare(dense: &Checkpoint, compressed: &Checkpoint, texts: &[String]) -> Result<EmbeddingComparison> {
    let mut vectors = Vec::new();
    let mut dimensions = 0;
    for checkpoint in [dense, compressed] {
        let model = SentenceEncoder::open(checkpoint)?;
        let (ids, _) = tokenise(&model, texts)?;
        let mut progress = Progress::new("embed", ids.len() as u64);
        vectors.push(model.embed(&ids, |done| progress.at(done as u64, "texts"))?);
        progress.finish();
        dimensions = model.dimensions();
    }
    Ok(neighbours::compare(&vectors[0], &vectors[1], dimensions)?)
}

/// The rows of a table (figure, dense, compressed) on embeddings.
pub fn embedding_rows(e: &EmbeddingComparison, table: &mut Table) {
    let with = |value: f64, stderr: Option<f64>| match stderr {
        Some(stderr) => format!("{value:.5} ± {stderr:.5}"),
        None => format!("{value:.5}"),
    };
    table.row(["cosine to dense".into(), "1".into(), with(e.cosine.value, e.cosine.stderr)]);
    table.row([
        format!("nearest {} kept", e.neighbours),
        "1".into(),
        format!("{} (chance {:.3})", with(e.overlap.value, e.overlap.stderr), e.chance),
    ]);
}

/// What was made, the same for the same texts and model.
#[derive(Debug, Serialize)]
struct Record<'a> {
    model_type: &'static str,
    texts: usize,
    /// Tokens run, those around each text included.
    tokens: usize,
    /// Texts whose end was cut off.
    cut: usize,
    max_tokens: usize,
    dimensions: usize,
    pooling: Pooling,
    normalised: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'a Origin>,
    #[serde(skip_serializing_if = "Option::is_none")]
    embeddings: Option<Vec<&'a [f32]>>,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut clock = Run::start("embed");
    let located = source::locate(&arguments.model)?;
    let checkpoint = located.open()?;
    let kind = any::kind(&checkpoint)?;
    if kind != Kind::Encoder {
        let known: Vec<_> = FAMILIES.iter().map(|family| family.model_type).collect();
        anyhow::bail!(
            "{}: the model is {}; embed takes text encoders: {}",
            arguments.model.display(),
            kind.describe(),
            known.join(", ")
        );
    }
    let Some(texts) = arguments.texts.read(None)? else {
        anyhow::bail!("no texts were given; name a file with --text, or give them by --stdin, one a line");
    };
    if let Some(against) = &arguments.against {
        let dense = source::locate(against)?;
        let comparison = compare(&dense.open()?, &checkpoint, &texts)?;
        if let Some(out) = &arguments.output {
            record::save(out, "embed", &comparison, &clock)?;
        }
        if arguments.json {
            printer::json(&comparison)?;
        } else {
            let mut table = Table::new(["figure", "dense", "value ± standard error"]);
            embedding_rows(&comparison, &mut table);
            table.print();
        }
        return Ok(ExitCode::SUCCESS);
    }
    let model = SentenceEncoder::open(&checkpoint)?;
    let (ids, cut) = tokenise(&model, &texts)?;
    let mut progress = Progress::new("embed", ids.len() as u64);
    let embeddings = model.embed(&ids, |done| progress.at(done as u64, "texts"))?;
    progress.finish();
    let dimensions = model.dimensions();
    let rows: Vec<&[f32]> = embeddings.chunks_exact(dimensions).collect();
    if let Some(line) = rows.iter().position(|row| row.iter().any(|x| !x.is_finite())) {
        let what = format!("the embedding of line {} is not finite", line + 1);
        return Err(blame(Error::Numeric(what), &checkpoint));
    }
    let mut record = Record {
        model_type: model.encoder().config().family.model_type,
        texts: texts.len(),
        tokens: ids.iter().map(Vec::len).sum(),
        cut,
        max_tokens: model.max_tokens(),
        dimensions,
        pooling: model.pooling(),
        normalised: model.normalised(),
        source: located.origin(),
        embeddings: None,
    };
    clock.extra.insert("model".into(), arguments.model.display().to_string().into());
    if let Some(out) = &arguments.output {
        let file = record::folder(out)?.join("embeddings.npy");
        record::write_whole(&file, &npy(&embeddings, dimensions))?;
        record::save(out, "embed", &record, &clock)?;
        printer::say(format!("{} embeddings of {dimensions} numbers in {}", rows.len(), file.display()));
    }
    if arguments.json {
        record.embeddings = arguments.output.is_none().then_some(rows);
        printer::json(&record)?;
    } else if arguments.output.is_none() {
        for row in rows {
            printer::json_line(row)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `values` (rows, columns) as a NumPy file, format version 1.0: its magic, the length of the header, the header as a
/// Python dict padded to a multiple of 64 bytes, and the numbers in little endian.
fn npy(values: &[f32], columns: usize) -> Vec<u8> {
    let rows = values.len() / columns;
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    let fixed = 10; // magic, version, length
    let padded = (fixed + header.len() + 1).next_multiple_of(64) - fixed;
    header.extend(std::iter::repeat_n(' ', padded - 1 - header.len()));
    header.push('\n');
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((header.len() as u16).to_le_bytes());
    out.extend(header.bytes());
    out.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_file_begins_as_numpy_expects() {
        let bytes = npy(&[1.0, -2.5, 0.0, 4.0, 5.0, 6.0], 3);
        assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
        let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
        assert_eq!((10 + length) % 64, 0);
        let header = std::str::from_utf8(&bytes[10..10 + length]).unwrap();
        assert!(header.starts_with("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"), "{header}");
        assert!(header.ends_with('\n'));
        assert_eq!(bytes.len(), 10 + length + 24);
        assert_eq!(bytes[10 + length + 4..][..4], (-2.5f32).to_le_bytes());
    }
}
