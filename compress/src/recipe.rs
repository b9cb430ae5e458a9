//! What the user asks for: methods, their parameters, and the linears they are for. Parsed without touching a model.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    budget::Budget,
    export::Format,
    grid::ScaleDtype,
    layers::Removal,
    methods::{self, LayerMethod},
    sharing::Rps,
};

/// A whole recipe.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Recipe {
    /// The layers that are taken out before anything else, by the first stage where it says so.
    pub layers: Option<LayersRecipe>,
    /// Methods, each for its linears. A linear belongs to the first stage that names it: the first of those that prune, and
    /// the first of those that quantise; where it has both, it is pruned and then quantised.
    pub stages: Vec<StageRecipe>,
    /// How much text is looked at.
    pub calibration: CalibrationRecipe,
    /// How the result is written.
    pub export: ExportRecipe,
    /// What the result may take: widths are then chosen linear by linear, and the stages' own `bits` do not count.
    pub budget: Option<Budget>,
}

/// One method and the linears it is for.
#[derive(Debug, Clone)]
pub struct StageRecipe {
    /// A name from the list of methods.
    pub method: String,
    /// Globs over the names of linears (`model.layers.*.mlp.*`); all linears of all blocks without it.
    pub targets: Vec<String>,
    /// Globs over the names of linears to leave alone.
    pub ignore: Vec<String>,
    /// The method's parameters.
    pub params: toml::Table,
}

/// Which layers are taken out: said outright, or found by a search.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayersRecipe {
    /// Numbers and ranges, as [`Removal::parse`] reads them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop: Option<String>,
    /// The file of a search, or its folder; beside the recipe where it is not absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
    /// Of `from`, the set of so many layers; the largest without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub k: Option<usize>,
}

impl LayersRecipe {
    /// A stage that drops `removal`.
    pub fn of(removal: &Removal) -> Self {
        Self { drop: Some(removal.to_string()), ..Self::default() }
    }

    fn check(&self) -> Result<()> {
        let refuse = |what: &str| Err(Error::Recipe(what.into()));
        match (&self.drop, &self.from, self.k) {
            (Some(_), Some(_), _) => {
                refuse("`layers.drop` and `layers.from` say the same in two ways; keep one of them")
            }
            (None, None, _) => refuse("`layers` says nothing; give `layers.drop`, or the `layers.from` of a search"),
            (Some(_), None, Some(_)) => {
                refuse("`layers.k` chooses among the sets of a `layers.from`, and there is none")
            }
            (Some(drop), None, None) => Removal::parse(drop).map(|_| ()),
            (None, Some(_), _) => Ok(()),
        }
    }
}

/// A recipe as it stands in a file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    stage: Vec<WrittenStage>,
    #[serde(default)]
    calibration: CalibrationRecipe,
    #[serde(default)]
    export: ExportRecipe,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    budget: Option<Budget>,
}

/// A stage as it stands in a file: of layers, or of a method.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenStage {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    layers: Option<LayersRecipe>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    targets: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ignore: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    params: Option<toml::Table>,
}

impl Recipe {
    /// The recipe of a file, or the number of the stage that is wrong and what is.
    fn of(written: Written) -> Result<Self, (usize, String)> {
        let Written { stage, calibration, export, budget } = written;
        let mut recipe = Self { layers: None, stages: Vec::new(), calibration, export, budget };
        for (index, stage) in stage.into_iter().enumerate() {
            recipe.push(index, stage).map_err(|what| (index + 1, what))?;
        }
        Ok(recipe)
    }

    fn push(&mut self, index: usize, stage: WrittenStage) -> Result<(), String> {
        let WrittenStage { layers, method, targets, ignore, params } = stage;
        match (layers, method) {
            (None, None) => return Err("missing field `method`, or `layers.drop` in the first stage".into()),
            (None, Some(method)) => self.stages.push(StageRecipe {
                method,
                targets: targets.unwrap_or_else(|| vec!["*".into()]),
                ignore: ignore.unwrap_or_default(),
                params: params.unwrap_or_default(),
            }),
            (Some(_), Some(method)) => {
                return Err(format!("`layers` is a stage of its own; put `{method}` into a `[[stage]]` behind it"));
            }
            (Some(_), None) if targets.is_some() || ignore.is_some() || params.is_some() => {
                return Err("`layers` takes whole layers out, so it has no `targets`, `ignore` or `params`".into());
            }
            (Some(_), None) if index > 0 => {
                return Err(
                    "layers are taken out before anything else, and once; make `layers.drop` the first stage".into()
                );
            }
            (Some(layers), None) => {
                layers.check().map_err(|error| error.to_string())?;
                self.layers = Some(layers);
            }
        }
        Ok(())
    }
}

impl TryFrom<Written> for Recipe {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        Self::of(written).map_err(|(stage, what)| format!("stage {stage}: {what}"))
    }
}

impl From<Recipe> for Written {
    fn from(recipe: Recipe) -> Self {
        let Recipe { layers, stages, calibration, export, budget } = recipe;
        let layers = layers.map(|layers| WrittenStage { layers: Some(layers), ..WrittenStage::default() });
        let methods = stages.into_iter().map(|StageRecipe { method, targets, ignore, params }| WrittenStage {
            layers: None,
            method: Some(method),
            targets: Some(targets),
            ignore: Some(ignore),
            params: Some(params),
        });
        let stage = layers.into_iter().chain(methods).collect();
        Self { stage, calibration, export, budget }
    }
}

/// How much text is looked at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CalibrationRecipe {
    /// Sequences.
    pub n_samples: usize,
    /// Tokens of a sequence.
    pub seq_len: usize,
    /// Sequences are drawn at random by this seed; without one they are the first of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Every sequence comes from one document; otherwise documents are laid end to end.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub whole_documents: bool,
    /// Texts are what a user says in the model's chat template.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub chat: bool,
    /// The field of a JSON line, or the column of a Parquet file, that holds the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

impl Default for CalibrationRecipe {
    fn default() -> Self {
        Self { n_samples: 128, seq_len: 512, seed: None, whole_documents: false, chat: false, field: None }
    }
}

/// How the result is written.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExportRecipe {
    /// A name from the list of formats; without it the first that can hold every linear.
    pub format: Option<Format>,
}

/// The line of `text` that `error` is about, and its stage if it stands in one.
fn place(text: &str, error: &toml::de::Error) -> String {
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else { return String::new() };
    let line = before.matches('\n').count() + 1;
    let heads = || text.lines().take(line).map(str::trim_start).filter(|line| line.starts_with('['));
    let stage = heads().filter(|head| head.starts_with("[[stage]]")).count();
    match heads().last() {
        Some(head) if head.starts_with("[[stage]]") || head.starts_with("[stage.") => {
            format!(", line {line} (stage {stage})")
        }
        _ => format!(", line {line}"),
    }
}

impl Recipe {
    /// Reads a recipe file.
    ///
    /// # Errors
    /// A syntax error with its line, an unknown key, an unknown method or parameter with its stage.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::Recipe(format!("{}: cannot read the recipe: {error}", path.display())))?;
        Self::parse(path, &text)
    }

    /// Reads the text of a recipe; `path` is only named in errors.
    ///
    /// # Errors
    /// As [`Recipe::read`].
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let written: Written = toml::from_str(text).map_err(|error| {
            let reason = error.message().lines().collect::<Vec<_>>().join(", ");
            Error::Recipe(format!("in recipe `{}`{}: {reason}", path.display(), place(text, &error)))
        })?;
        let mut recipe = Self::of(written).map_err(|(stage, what)| {
            let heads = text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with("[[stage]]"));
            let line = heads.map(|(line, _)| format!(", line {}", line + 1)).nth(stage - 1).unwrap_or_default();
            Error::Recipe(format!("in recipe `{}`{line} (stage {stage}): {what}", path.display()))
        })?;
        if let Some(from) = recipe.layers.as_mut().and_then(|layers| layers.from.as_mut()) {
            *from = path.parent().unwrap_or(Path::new("")).join(&*from);
        }
        recipe.check().map_err(|error| Error::Recipe(format!("in recipe `{}`: {error}", path.display())))?;
        Ok(recipe)
    }

    /// Whether every method is known and every number can be.
    ///
    /// # Errors
    /// As [`Recipe::methods`], [`Rps::of`] and [`Budget::check`].
    pub fn check(&self) -> Result<()> {
        if Rps::of(self)?.is_some() {
            return Ok(());
        }
        self.methods()?;
        self.budget.as_ref().map_or(Ok(()), Budget::check)
    }

    /// Fills in every stage's parameters, with scales of the type `dtype`.
    ///
    /// # Errors
    /// As [`Recipe::methods`].
    pub(crate) fn set_scale_dtype(&mut self, dtype: ScaleDtype) -> Result<()> {
        let methods = self.methods()?;
        for (stage, method) in self.stages.iter_mut().zip(methods) {
            stage.params = method.parameters();
            if !stage.params.contains_key("scale_dtype") {
                continue; // a method without scales of its own
            }
            let name = toml::Value::try_from(dtype).map_err(|error| Error::Recipe(error.to_string()))?;
            stage.params.insert("scale_dtype".into(), name);
        }
        Ok(())
    }

    /// What stage `index` of the methods is called in a sentence: its number among all stages, and its method.
    pub(crate) fn stage_name(&self, index: usize) -> String {
        format!("stage {} (`{}`)", self.stage_number(index), self.stages[index].method)
    }

    /// The number, from 1, of stage `index` of the methods among all stages.
    pub fn stage_number(&self, index: usize) -> usize {
        index + 1 + usize::from(self.layers.is_some())
    }

    /// The methods of the stages, in order.
    ///
    /// # Errors
    /// An unknown method or parameter, with the number and method of its stage.
    pub fn methods(&self) -> Result<Vec<Box<dyn LayerMethod>>> {
        if self.stages.is_empty() && self.layers.is_some() {
            return Err(Error::Recipe(
                "stage 1 takes layers out and no stage follows; `scruple layers prune` does that alone".into(),
            ));
        }
        if self.stages.is_empty() {
            return Err(Error::Recipe("there is no stage; add at least one `[[stage]]` with a `method`".into()));
        }
        let build = |(index, stage): (usize, &StageRecipe)| {
            methods::build(&stage.method, stage.params.clone())
                .map_err(|error| Error::Recipe(format!("{}: {error}", self.stage_name(index))))
        };
        self.stages.iter().enumerate().map(build).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_come_first_and_are_written_as_they_were_read() {
        let rest = "[[stage]]\nmethod = \"rtn\"\n[stage.params]\nbits = 4\n";
        let read = |text: &str| Recipe::parse(Path::new("there/r.toml"), text).map_err(|error| error.to_string());
        let recipe = read(&format!("[[stage]]\nlayers.drop = \"3,5-6\"\n{rest}")).unwrap();
        assert_eq!(recipe.layers, Some(LayersRecipe { drop: Some("3,5-6".into()), ..LayersRecipe::default() }));
        assert_eq!((recipe.stages.len(), recipe.stage_name(0)), (1, "stage 2 (`rtn`)".into()));
        let written = serde_json::to_value(&recipe).unwrap();
        let again: Recipe = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(serde_json::to_value(again).unwrap(), written);
        // A search's file lies beside the recipe.
        let recipe = read(&format!("[[stage]]\nlayers = {{ from = \"run\", k = 2 }}\n{rest}")).unwrap();
        assert_eq!(recipe.layers.unwrap().from, Some("there/run".into()));

        for (text, sentence) in [
            (
                format!("{rest}\n[[stage]]\nlayers.drop = \"1\"\n"),
                "in recipe `there/r.toml`, line 6 (stage 2): layers are taken out before anything else, and once; make \
                 `layers.drop` the first stage",
            ),
            (
                format!("{rest}\n[[stage]]\ntargets = [\"*\"]\n"),
                "in recipe `there/r.toml`, line 6 (stage 2): missing field `method`, or `layers.drop` in the first stage",
            ),
            (
                "[[stage]]\nlayers = {}\n".into(),
                "in recipe `there/r.toml`, line 1 (stage 1): `layers` says nothing; give `layers.drop`, or the \
                 `layers.from` of a search",
            ),
        ] {
            assert_eq!(read(&text).unwrap_err(), sentence);
        }
    }
}
