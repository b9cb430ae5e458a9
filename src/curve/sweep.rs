//! What is asked of a sweep: a TOML file, and the points its axes span.
//!
//! ```toml
//! name = "small"                          # what the suite is called in headings
//! model = "org/model"                     # where the command line names none
//! chat = "auto"
//! rules = ["stereotype=official"]
//! notes = ["…"]                           # said beside the results
//! text = { file = "valid.txt", window = 512, windows = 8 }
//! calibration = { file = "train.txt", n_samples = 32, seq_len = 512 }
//!
//! [[suite]]                               # one table a source of items
//! path = "${DATA}/ethics/cm_test.csv"     # or `general`, `world`
//! dimensions = ["machine-ethics"]
//! parts = ["commonsense-short"]
//! items = 150
//!
//! [[point]]                               # every list of a method's parameters is an axis
//! method = ["gptq", "rtn"]
//! bits = [8, 4, 3, 2]
//! seeds = [0, 1, 2]                       # of the calibration text's draw, for methods that read one
//!
//! [[point]]
//! layers.drop = ["27", "20-27"]           # whole layers taken out; with a method, before it
//!
//! [[point]]
//! folder = "org/model-awq"                # made by somebody else
//!
//! [[reference]]
//! model = "org/smaller-model"             # another dense model, drawn beside
//! ```
//!
//! Paths are relative to the file's own folder; `${NAME}` stands for a variable of the environment.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::ValueEnum;
use scruple_compress::{
    export::Format,
    layers::Removal,
    methods::{self, LayerMethod},
    recipe::{CalibrationRecipe, ExportRecipe, Recipe, StageRecipe},
    sharing::{self, Rps},
    weight::{Code, GridCode},
};
use serde::Deserialize;

use super::data::Kind;
use crate::trust::{language_model::Chat, statistics::Bootstrap};

/// Replicates of the bootstrap, where the sweep does not say: its p values are no finer than 2 in so many, and are multiplied
/// by the number of comparisons, which in a sweep are hundreds.
const REPLICATES: usize = 20_000;

/// More points than anybody waits for are a slip of the pen.
const MOST_POINTS: usize = 10_000;

/// Inputs of the row by which a method without a parameter for it says its bits: one that suits every default.
const WIDTH: usize = 4096;

/// The keys of a point beside its method's parameters.
const POINT_KEYS: [&str; 7] = ["method", "name", "seeds", "format", "targets", "ignore", "layers.drop"];

/// The keys of a point that only takes layers out.
const LAYER_KEYS: [&str; 2] = ["layers.drop", "name"];

/// The keys of a point that is a ready folder.
const FOLDER_KEYS: [&str; 4] = ["folder", "name", "series", "rate"];

/// What a user wants to know.
#[derive(Debug, Clone)]
pub struct Sweep {
    /// What the suite is called.
    pub name: Option<String>,
    /// The dense model, where the file names one.
    pub model: Option<PathBuf>,
    /// When conversations go through the chat template.
    pub chat: Chat,
    /// Dimensions to be judged by another of their rules, as `DIMENSION=RULE`.
    pub rules: Vec<String>,
    /// How intervals are drawn.
    pub bootstrap: Bootstrap,
    /// The text whose perplexity is measured.
    pub text: Option<TextKeys>,
    /// Where calibration tokens come from.
    pub calibration: CalibrationKeys,
    /// Where the items come from.
    pub sources: Vec<SourceKeys>,
    /// The points, in the order of the file.
    pub points: Vec<Asked>,
    /// Other dense models.
    pub references: Vec<ReferenceKeys>,
    /// What a reader of the result should know, in the user's words.
    pub notes: Vec<String>,
}

/// A text to be predicted.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextKeys {
    /// The file; without it, that of the model which comes with the program.
    pub file: Option<PathBuf>,
    /// Predicted tokens of a window.
    #[serde(default = "usual_window")]
    pub window: usize,
    /// Windows, at most; all of the text without it.
    pub windows: Option<usize>,
}

fn usual_window() -> usize {
    512
}

/// A text to calibrate on.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationKeys {
    /// The file; without it, that of the model which comes with the program.
    pub file: Option<PathBuf>,
    /// Sequences.
    pub n_samples: Option<usize>,
    /// Tokens of each.
    pub seq_len: Option<usize>,
    /// Every sequence comes from one document.
    #[serde(default)]
    pub whole_documents: bool,
    /// Texts are what a user says in the model's chat template.
    #[serde(default)]
    pub chat: bool,
    /// The field of a JSON line, or the column of a Parquet file, that holds the text.
    pub field: Option<String>,
}

/// Some items.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceKeys {
    /// A suite that comes with the program, or a file or folder.
    pub path: PathBuf,
    /// Only these dimensions of it.
    #[serde(default)]
    pub dimensions: Vec<String>,
    /// Only parts of these names; `*` stands for anything.
    #[serde(default)]
    pub parts: Vec<String>,
    /// At most so many items a dimension, spread evenly.
    pub items: Option<usize>,
}

/// Another dense model.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReferenceKeys {
    /// Folder, file, or `org/name[@revision]` of a hub.
    pub model: PathBuf,
    /// What it is called; that of the folder without it.
    pub name: Option<String>,
}

/// One point as it was asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Unique, and fit for a file name.
    pub name: String,
    /// The name without the seed: points of one setting differ in the calibration seed alone.
    pub setting: String,
    /// Which line it belongs to.
    pub series: String,
    /// The rate as people say it; absent where only the file tells.
    pub rate: Option<String>,
    /// What is done to the weights.
    pub kind: Kind,
    /// Seed of the calibration sequences' draw.
    pub seed: Option<u64>,
    /// Where the model comes from.
    pub what: What,
}

impl Asked {
    /// Whether the same is done to the weights as for `other`, but for the seed of the calibration.
    pub fn is_but_for_its_seed(&self, other: &Self) -> bool {
        let without = |asked: &Self| {
            let mut what = asked.what.clone();
            if let What::Made { recipe, .. } = &mut what {
                recipe.calibration.seed = None;
            }
            format!("{what:?}")
        };
        without(self) == without(other)
    }
}

/// Where the model of a point comes from.
#[derive(Debug, Clone)]
pub enum What {
    /// It is made, of the dense model without some layers where that is said.
    Made {
        /// What is done to its weights.
        recipe: Box<Recipe>,
        /// Layers that are taken out first.
        drop: Option<Removal>,
    },
    /// Layers are taken out, and nothing else is done.
    Dropped(Removal),
    /// It is there.
    Given(PathBuf),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Option<String>,
    model: Option<PathBuf>,
    chat: Option<String>,
    #[serde(default)]
    rules: Vec<String>,
    #[serde(default)]
    bootstrap: BootstrapKeys,
    text: Option<TextKeys>,
    #[serde(default)]
    calibration: CalibrationKeys,
    #[serde(default)]
    suite: Vec<SourceKeys>,
    #[serde(default)]
    point: Vec<toml::Table>,
    #[serde(default)]
    reference: Vec<ReferenceKeys>,
    #[serde(default)]
    notes: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct BootstrapKeys {
    replicates: Option<usize>,
    seed: Option<u64>,
}

impl Sweep {
    /// Reads a sweep file.
    ///
    /// # Errors
    /// A file that cannot be read, and as [`Sweep::parse`].
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("{}: cannot read the sweep", path.display()))?;
        Self::parse(&path.display().to_string(), &text, path.parent().unwrap_or(Path::new("")))
    }

    /// Reads the text of a sweep called `name`, whose paths are relative to `folder`.
    ///
    /// # Errors
    /// A syntax error with its line; an unknown key, method or parameter; two points of one name; an unset variable.
    pub fn parse(name: &str, text: &str, folder: &Path) -> Result<Self> {
        let file: File = toml::from_str(text).map_err(|error| {
            let line =
                error.span().and_then(|span| text.get(..span.start)).map(|before| before.matches('\n').count() + 1);
            let line = line.map_or(String::new(), |line| format!(", line {line}"));
            let reason = error.message().lines().collect::<Vec<_>>().join(", ");
            anyhow::anyhow!("in sweep `{name}`{line}: {reason}")
        })?;
        Self::resolve(file, folder).with_context(|| format!("in sweep `{name}`"))
    }

    fn resolve(file: File, folder: &Path) -> Result<Self> {
        let chat = file.chat.as_deref().map_or(Ok(Chat::Auto), |text| {
            Chat::from_str(text, false).map_err(|_| anyhow::anyhow!("`chat` is `{text}`, expected auto, on or off"))
        })?;
        let usual = Bootstrap::default();
        let bootstrap = Bootstrap {
            replicates: file.bootstrap.replicates.unwrap_or(REPLICATES),
            seed: file.bootstrap.seed.unwrap_or(usual.seed),
        };
        anyhow::ensure!(bootstrap.replicates > 0, "`bootstrap.replicates` should be at least 1, found 0");
        let path = |path: &PathBuf| place(folder, path);
        let text = match file.text {
            Some(keys) => {
                anyhow::ensure!(keys.window > 0, "`text.window` should be at least 1, found 0");
                anyhow::ensure!(keys.windows != Some(0), "`text.windows` should be at least 1, found 0");
                Some(TextKeys { file: keys.file.as_ref().map(path).transpose()?, ..keys })
            }
            None => None,
        };
        let calibration =
            CalibrationKeys { file: file.calibration.file.as_ref().map(path).transpose()?, ..file.calibration };
        let mut sources = file.suite;
        if sources.is_empty() {
            sources.push(SourceKeys { path: "general".into(), dimensions: vec![], parts: vec![], items: None });
        }
        for (index, source) in sources.iter_mut().enumerate() {
            let context = || format!("suite {}", index + 1);
            anyhow::ensure!(source.items != Some(0), "{}: `items` should be at least 1, found 0", context());
            if source.path.to_str().and_then(crate::trust::suite::named).is_none() {
                source.path = path(&source.path).with_context(context)?;
            }
        }
        let mut references = file.reference;
        for (index, reference) in references.iter_mut().enumerate() {
            if let Some(name) = &reference.name {
                anyhow::ensure!(
                    !name.is_empty() && !name.contains(char::is_control),
                    "reference {}: `name` should be a word or a few",
                    index + 1
                );
            }
            reference.model = path(&reference.model).with_context(|| format!("reference {}", index + 1))?;
        }
        let mut points: Vec<Asked> = Vec::new();
        for (index, table) in file.point.into_iter().enumerate() {
            let more = expand(table, &calibration, folder).with_context(|| format!("point {}", index + 1))?;
            points.extend(more);
            anyhow::ensure!(
                points.len() <= MOST_POINTS,
                "there are more than {MOST_POINTS} points; take some axes away"
            );
        }
        anyhow::ensure!(!points.is_empty(), "there is no point; add a `[[point]]` with a `method`, or a `folder`");
        let mut seen: BTreeMap<String, ()> = BTreeMap::new();
        for point in &points {
            let twice = seen.insert(point.name.to_lowercase(), ()).is_some();
            anyhow::ensure!(!twice, "two points are called `{}`; give one table a `name` of its own", point.name);
        }
        Ok(Self {
            name: file.name,
            model: file.model.as_ref().map(path).transpose()?,
            chat,
            rules: file.rules,
            bootstrap,
            text,
            calibration,
            sources,
            points,
            references,
            notes: file.notes,
        })
    }
}

/// `path` with its variables filled in; beside the sweep where there is such a thing, else as it stands (a name of a hub,
/// or a path that the use of it will miss).
pub(crate) fn place(folder: &Path, path: &Path) -> Result<PathBuf> {
    let text = path.to_str().context("a path is not UTF-8")?;
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, behind) =
            after.split_once('}').with_context(|| format!("`{text}`: a variable is opened and never closed"))?;
        let value = std::env::var(name)
            .ok()
            .with_context(|| format!("`{text}`: the environment has no variable `{name}`; set it to a folder"))?;
        filled.push_str(before);
        filled.push_str(&value);
        rest = behind;
    }
    filled.push_str(rest);
    let beside = folder.join(&filled);
    Ok(if beside.exists() || filled.starts_with('.') { beside } else { filled.into() })
}

/// The values of one axis: a list's, or the one that stands there.
fn values(value: toml::Value) -> Vec<toml::Value> {
    match value {
        toml::Value::Array(values) => values,
        one => vec![one],
    }
}

fn text_of(table: &mut toml::Table, key: &str) -> Result<Option<String>> {
    match table.remove(key) {
        None => Ok(None),
        Some(toml::Value::String(text)) => Ok(Some(text)),
        Some(other) => anyhow::bail!("`{key}` should be a text, found {other}"),
    }
}

fn texts_of(table: &mut toml::Table, key: &str) -> Result<Option<Vec<String>>> {
    let Some(value) = table.remove(key) else { return Ok(None) };
    let one = |value: toml::Value| match value {
        toml::Value::String(text) => Ok(text),
        other => Err(anyhow::anyhow!("`{key}` should be a text or a list of texts, found {other}")),
    };
    let texts = values(value).into_iter().map(one).collect::<Result<Vec<_>>>()?;
    anyhow::ensure!(!texts.is_empty(), "`{key}` is an empty list");
    Ok(Some(texts))
}

/// A name that can be a file's.
fn expect_name(name: &str) -> Result<()> {
    let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    anyhow::ensure!(
        !name.is_empty() && name.len() <= 100 && name.chars().all(fit) && !name.starts_with(['.', '-']),
        "`{name}` cannot be a point's name: it should be at most 100 letters, digits, `.`, `-` and `_`, a letter or digit \
         first"
    );
    Ok(())
}

/// The sets of layers that `layers.drop` says, one a point; one that is none where nothing is said.
fn removals(table: &mut toml::Table) -> Result<Vec<Option<Removal>>> {
    let mut inner = match table.remove("layers") {
        None => return Ok(vec![None]),
        Some(toml::Value::Table(inner)) => inner,
        Some(other) => anyhow::bail!("`layers` should be a table, as in layers.drop = \"20-27\", found {other}"),
    };
    let sets = texts_of(&mut inner, "drop").map_err(|error| anyhow::anyhow!("layers.{error}"))?;
    if let Some((key, _)) = inner.iter().next() {
        anyhow::bail!("unknown key `layers.{key}`; there is `layers.drop`");
    }
    let sets = sets.context("`layers` says nothing; there is `layers.drop`")?;
    sets.iter().map(|text| Ok(Some(Removal::parse(text)?))).collect()
}

/// How a removal stands in a name: by its layers, or where these are too many by their number.
fn short(drop: &Removal) -> String {
    let layers = drop.to_string().replace(',', "_");
    if layers.len() <= 40 { format!("drop-{layers}") } else { format!("drop-{}-layers", drop.len()) }
}

fn layers(drop: &Removal) -> String {
    format!("{} layer{}", drop.len(), if drop.len() == 1 { "" } else { "s" })
}

/// Points that only take layers out.
fn dropped(mut table: toml::Table, sets: Vec<Option<Removal>>) -> Result<Vec<Asked>> {
    let stem = text_of(&mut table, "name")?;
    if let Some((key, _)) = table.iter().next() {
        let known = LAYER_KEYS.join("`, `");
        anyhow::bail!("unknown key `{key}` of a point without a `method`, which takes `{known}`");
    }
    anyhow::ensure!(stem.is_none() || sets.len() == 1, "`name` is for one set of layers, found {}", sets.len());
    let point = |drop: Removal| {
        let name = stem.clone().unwrap_or_else(|| short(&drop));
        expect_name(&name)?;
        let (series, rate) = ("layers".to_string(), Some(layers(&drop)));
        let what = What::Dropped(drop);
        Ok(Asked { setting: name.clone(), name, series, rate, kind: Kind::Layers, seed: None, what })
    };
    sets.into_iter().flatten().map(point).collect()
}

/// The points of one table.
fn expand(mut table: toml::Table, calibration: &CalibrationKeys, folder: &Path) -> Result<Vec<Asked>> {
    if table.contains_key("folder") {
        return Ok(vec![given(table, folder)?]);
    }
    let drops = removals(&mut table)?;
    if !table.contains_key("method") && drops.iter().all(Option::is_some) {
        return dropped(table, drops);
    }
    let known = POINT_KEYS.join("`, `");
    let names = texts_of(&mut table, "method")?.with_context(|| {
        format!("there is neither a `method` nor `layers.drop` nor a `folder`; a point takes `{known}`, and its method's parameters")
    })?;
    let stem = text_of(&mut table, "name")?;
    if let Some(stem) = &stem {
        expect_name(stem)?;
    }
    let formats: Vec<Option<Format>> = match texts_of(&mut table, "format")? {
        None => vec![None],
        Some(names) => names.iter().map(|name| Ok(Some(name.parse::<Format>()?))).collect::<Result<_>>()?,
    };
    let seeds: Vec<Option<u64>> = match table.remove("seeds") {
        None => vec![None],
        Some(value) => {
            let seed = |value: toml::Value| {
                let number = value.as_integer().and_then(|seed| u64::try_from(seed).ok());
                number.map(Some).with_context(|| format!("`seeds` should be whole numbers from 0 on, found {value}"))
            };
            values(value).into_iter().map(seed).collect::<Result<_>>()?
        }
    };
    anyhow::ensure!(!seeds.is_empty(), "`seeds` is an empty list");
    let targets = texts_of(&mut table, "targets")?.unwrap_or_else(|| vec!["*".into()]);
    let ignore = texts_of(&mut table, "ignore")?.unwrap_or_default();

    // All combinations of the parameters, the last of them changing fastest.
    let mut combinations = vec![toml::Table::new()];
    let mut axes: Vec<String> = Vec::new();
    for (key, value) in table {
        let values = values(value);
        anyhow::ensure!(!values.is_empty(), "`{key}` is an empty list");
        if values.len() > 1 {
            axes.push(key.clone());
        }
        let with = |table: &toml::Table| {
            let one = |value: &toml::Value| {
                let mut table = table.clone();
                table.insert(key.clone(), value.clone());
                table
            };
            values.iter().map(one).collect::<Vec<_>>()
        };
        combinations = combinations.iter().flat_map(with).collect();
        anyhow::ensure!(combinations.len() <= MOST_POINTS, "the axes span more than {MOST_POINTS} points");
    }
    if formats.len() > 1 {
        axes.push("format".into());
    }

    let mut points = Vec::new();
    for method_name in &names {
        for params in &combinations {
            let Along { rate, suffix, calibrates, kind } = along(method_name, params).map_err(|error| {
                let more = match error.to_string().contains("unknown field") {
                    true => format!("; beside these a point takes `{known}`"),
                    false => String::new(),
                };
                anyhow::anyhow!("{error}{more}")
            })?;
            for (drop, &format) in drops.iter().flat_map(|drop| formats.iter().map(move |format| (drop, format))) {
                let mut series = stem.clone().unwrap_or_else(|| method_name.clone());
                let mut setting = format!("{series}{suffix}");
                for axis in
                    axes.iter().filter(|axis| !matches!(axis.as_str(), "bits" | "sparsity" | "pattern" | "rate"))
                {
                    let value = match axis.as_str() {
                        "format" => format.map_or(String::new(), |format| format.name().to_string()),
                        axis => plain(&params[axis]),
                    };
                    series.push_str(&format!(" {axis} {value}"));
                    let fit = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
                    setting.push_str(&format!("-{axis}-{}", value.chars().map(fit).collect::<String>()));
                }
                let mut rate = rate.clone();
                if let Some(drop) = drop {
                    // One line a method and rate: what changes along it is the number of layers.
                    series.push_str(&format!(" {rate}"));
                    setting = format!("{}-{setting}", short(drop));
                    rate = format!("{}, {rate}", layers(drop));
                }
                expect_name(&setting)?;
                for &seed in if calibrates { seeds.as_slice() } else { &[None] } {
                    let usual = CalibrationRecipe::default();
                    let recipe = Recipe {
                        layers: None,
                        stages: vec![StageRecipe {
                            method: method_name.clone(),
                            targets: targets.clone(),
                            ignore: ignore.clone(),
                            params: params.clone(),
                        }],
                        calibration: CalibrationRecipe {
                            n_samples: calibration.n_samples.unwrap_or(usual.n_samples),
                            seq_len: calibration.seq_len.unwrap_or(usual.seq_len),
                            seed,
                            whole_documents: calibration.whole_documents,
                            chat: calibration.chat,
                            field: calibration.field.clone(),
                        },
                        export: ExportRecipe { format },
                        budget: None,
                    };
                    points.push(Asked {
                        // Seed 0 is the one that all others vary.
                        name: match seed {
                            None | Some(0) => setting.clone(),
                            Some(seed) => format!("{setting}-seed{seed}"),
                        },
                        setting: setting.clone(),
                        series: series.clone(),
                        rate: Some(rate.clone()),
                        kind: if drop.is_some() { Kind::Layers } else { kind },
                        seed,
                        what: What::Made { recipe: Box::new(recipe.clone()), drop: drop.clone() },
                    });
                }
            }
        }
    }
    Ok(points)
}

/// A ready folder.
fn given(mut table: toml::Table, folder: &Path) -> Result<Asked> {
    let path = text_of(&mut table, "folder")?.unwrap_or_default();
    let name = text_of(&mut table, "name")?;
    let (series, rate) = (text_of(&mut table, "series")?, text_of(&mut table, "rate")?);
    if let Some((key, _)) = table.iter().next() {
        anyhow::bail!("unknown key `{key}` of a ready folder, which takes `{}`", FOLDER_KEYS.join("`, `"));
    }
    let path = place(folder, Path::new(&path))?;
    let name = name.unwrap_or_else(|| {
        let last = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        last.replace(['@', ':'], "-")
    });
    expect_name(&name)?;
    let series = series.unwrap_or_else(|| name.clone());
    Ok(Asked { setting: name.clone(), name, series, rate, kind: Kind::Given, seed: None, what: What::Given(path) })
}

/// Where a method with its parameters stands on its axis.
struct Along {
    /// The rate as people say it.
    rate: String,
    /// The rate as it stands in a name.
    suffix: String,
    /// It reads a text, whose draw has seeds.
    calibrates: bool,
    kind: Kind,
}

fn along(name: &str, params: &toml::Table) -> Result<Along> {
    if name == sharing::method::NAME {
        let method = Rps::build(params.clone())?;
        let (rate, suffix) = (format!("{} × shared", method.rate), format!("-{}", method.rate));
        // Its text is read whole; its own seed draws the windows.
        return Ok(Along { rate, suffix, calibrates: false, kind: Kind::Shared });
    }
    let method = methods::build(name, params.clone())?;
    let (rate, suffix) = rate(&method.parameters(), method.as_ref())?;
    let kind = match method.kind() {
        methods::Kind::Prune => Kind::Sparse,
        methods::Kind::Quantise => Kind::Quantised,
    };
    Ok(Along { rate, suffix, calibrates: method.needs().any(), kind })
}

/// The rate as people say it, and as it stands in a name.
fn rate(parameters: &toml::Table, method: &dyn LayerMethod) -> Result<(String, String)> {
    if let Some(pattern) = parameters.get("pattern") {
        let pattern = plain(pattern);
        return Ok((pattern.clone(), format!("-{}", pattern.replace(':', "of"))));
    }
    if let Some(sparsity) = parameters.get("sparsity").and_then(toml::Value::as_float) {
        let percent = format!("{}", (1e6 * sparsity).round() / 1e4);
        return Ok((format!("{percent} %"), format!("-{percent}")));
    }
    let bits = match parameters.get("bits").and_then(toml::Value::as_integer) {
        Some(bits) => bits,
        None => match method.code(WIDTH)? {
            Code::Grid(GridCode { bits, .. }) => i64::from(bits),
            Code::Float8(_) => 8,
            Code::Table4(_) => 4,
            Code::Dense => return Ok(("dense".into(), String::new())),
        },
    };
    Ok((format!("{bits} bits"), format!("-{bits}")))
}

/// A parameter's value without quotes.
fn plain(value: &toml::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests;
