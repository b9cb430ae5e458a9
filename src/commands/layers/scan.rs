//! `scruple layers scan`: what each layer does to the residual stream, from one forward pass.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use scruple_compress::{
    layers::{scan, scan::Scan},
    model::{Decoder, text::Text},
};
use scruple_weights::Checkpoint;
use serde_json::{Value, json};

use super::text;
use crate::{
    commands::eval::blame,
    fixture::Fixture,
    plot::heatmap::{self, Cell, Heatmap, Mark, Stack},
    printer::{self, Progress, Table},
    record::{self, Run},
    source,
};

/// Rows of the picture at most: windows longer than that are not what anybody takes out.
const MOST_ROWS: usize = 24;

/// The options of the verb.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folder or file of a decoder, or `org/name[@revision][:file]` of a hub
    model: PathBuf,
    /// Text the model reads: plain, JSON lines or Parquet; without it a text that comes with the program
    #[arg(long)]
    calibration: Option<PathBuf>,
    /// Tokens of it
    #[arg(long, default_value_t = 4096)]
    tokens: usize,
    /// Tokens of a window; each window is run on its own
    #[arg(long, default_value_t = 256)]
    window: usize,
    /// Leave out so many positions at the beginning of each window: the first tokens draw attention as sinks, and their
    /// states are like no other
    #[arg(long, default_value_t = 0)]
    skip_first: usize,
    /// Draw d(l, n) of all windows: PNG or SVG, by the ending
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Print the record as JSON
    #[arg(long)]
    json: bool,
    /// Write `scan.json`, `scan.svg` and `run.json` into this folder
    #[arg(short, long)]
    output: Option<PathBuf>,
}

/// The picture of d(l, n).
fn picture(scan: &Scan, model: &str) -> Heatmap {
    let layers = scan.layers.len();
    let rows = MOST_ROWS.min(layers.saturating_sub(1)).max(1);
    let angular = &scan.angular;
    let best = |n: usize| (0..=layers - n).min_by(|&a, &b| angular.distance(a, n).total_cmp(&angular.distance(b, n)));
    let cell = |l: usize, n: usize| {
        (l + n <= layers).then(|| Cell {
            value: Some(angular.distance(l, n)),
            mark: if best(n) == Some(l) { Mark::Flag } else { Mark::No },
        })
    };
    let values = || (1..=rows).flat_map(|n| (0..=layers - n).map(move |l| angular.distance(l, n)));
    Heatmap {
        title: format!("{model}: how far a window of layers turns the stream"),
        subtitle: format!(
            "angular distance d(l, n) of the stream before layer l and behind the n layers from there on; 0 is no turn; {} \
             tokens",
            scan.tokens
        ),
        kinds: (1..=rows).map(|n| format!("n = {n}")).collect(),
        stacks: vec![Stack {
            name: "first layer".into(),
            blocks: (0..layers).map(|l| (l, (1..=rows).map(|n| cell(l, n)).collect())).collect(),
        }],
        outside: Vec::new(),
        range: (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max)),
        logarithmic: false,
        open_ended: false,
        legend: &[(Mark::Flag, "least of its row")],
    }
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let mut clock = Run::start("layers scan");
    if let Some(plot) = &arguments.plot {
        let ending = plot.extension().and_then(|ending| ending.to_str());
        anyhow::ensure!(
            matches!(ending, Some("png" | "svg")),
            "{}: a picture's name should end in .png or .svg",
            plot.display()
        );
    }
    let located = source::locate(&arguments.model)?;
    let checkpoint = Checkpoint::open(located.path())?;
    let model = Decoder::open(&checkpoint)?;
    let tokenizer = Text::open(&checkpoint)?;
    let own = arguments.calibration.is_none().then(Fixture::tiny_world).transpose()?;
    let file = match (&arguments.calibration, &own) {
        (Some(file), _) => file.clone(),
        (None, Some(own)) => {
            printer::say("on a text that comes with the program; --calibration names another");
            own.calibration()
        }
        (None, None) => anyhow::bail!("give --calibration"),
    };
    let ids = text::tokens(&tokenizer, &file, arguments.tokens)?;
    let corpus = text::windows(&ids, 0, (arguments.window, arguments.tokens), 1.0, 0)
        .with_context(|| file.display().to_string())?;
    let mut progress = Progress::new("scan", corpus.tokens() as u64);
    let found = scan::scan(&model, corpus.sequences(), arguments.skip_first, true, &mut |done| {
        progress.at(done as u64, "tokens");
    })
    .map_err(|error| blame(error, &checkpoint))?;
    progress.finish();
    checkpoint.expect_unchanged()?;

    let mut record = json!({ "model_fingerprint": checkpoint.fingerprint(), "text_digest": corpus.digest() });
    if let (Value::Object(record), Value::Object(more)) = (&mut record, serde_json::to_value(&found)?) {
        record.extend(more);
    }
    let name = located.path().file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let map = picture(&found, &name);
    if let Some(plot) = &arguments.plot {
        let ending = if plot.extension().is_some_and(|ending| ending == "svg") { "svg" } else { "png" };
        record::write_whole(plot, &heatmap::draw(&map, ending)?)?;
    }
    clock.extra.insert("model".into(), arguments.model.display().to_string().into());
    if let Some(out) = &arguments.output {
        record::write_whole(&record::folder(out)?.join("scan.svg"), &heatmap::draw(&map, "svg")?)?;
        record::save(out, "scan", &record, &clock)?;
    }
    if arguments.json {
        printer::json(&record)?;
    } else {
        print(&found);
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the table.
fn print(scan: &Scan) {
    let mut table = Table::new([
        "layer",
        "group",
        "influence",
        "± error",
        "last token",
        "update",
        "CKA",
        "attention",
        "MLP",
        "weights",
    ]);
    for layer in &scan.layers {
        table.row([
            layer.layer.to_string(),
            layer.group.to_string(),
            format!("{:.4}", layer.influence.value),
            layer.influence.stderr.map_or_else(|| "-".into(), |stderr| format!("{stderr:.4}")),
            format!("{:.4}", layer.influence_last.value),
            format!("{:.3}", layer.relative_update.value),
            format!("{:.4}", layer.cka),
            format!("{:.4}", layer.attention.value),
            format!("{:.4}", layer.mlp.value),
            format!("{:.4}", layer.weight_rms),
        ]);
    }
    table.print();
    let groups: Vec<String> =
        scan.groups.iter().map(|group| group.iter().map(usize::to_string).collect::<Vec<_>>().join(" ")).collect();
    printer::data(format!(
        "by influence, least first, layers that cannot be told apart together: {}",
        groups.join(" | ")
    ));
}
