//! What the user asks for: methods, their parameters, and the linears they are for. Parsed without touching a model.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    budget::Budget,
    export::Format,
    grid::ScaleDtype,
    methods::{self, LayerMethod},
    sharing::Rps,
};

/// A whole recipe.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Methods, each for its linears. A linear belongs to the first stage that names it: the first of those that prune, and
    /// the first of those that quantise; where it has both, it is pruned and then quantised.
    #[serde(rename = "stage")]
    pub stages: Vec<StageRecipe>,
    /// How much text is looked at.
    #[serde(default)]
    pub calibration: CalibrationRecipe,
    /// How the result is written.
    #[serde(default)]
    pub export: ExportRecipe,
    /// What the result may take: widths are then chosen linear by linear, and the stages' own `bits` do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
}

/// One method and the linears it is for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageRecipe {
    /// A name from the list of methods.
    pub method: String,
    /// Globs over the names of linears (`model.layers.*.mlp.*`); all linears of all blocks without it.
    #[serde(default = "everything")]
    pub targets: Vec<String>,
    /// Globs over the names of linears to leave alone.
    #[serde(default)]
    pub ignore: Vec<String>,
    /// The method's parameters.
    #[serde(default)]
    pub params: toml::Table,
}

fn everything() -> Vec<String> {
    vec!["*".into()]
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
        let recipe: Self = toml::from_str(text).map_err(|error| {
            let reason = error.message().lines().collect::<Vec<_>>().join(", ");
            Error::Recipe(format!("in recipe `{}`{}: {reason}", path.display(), place(text, &error)))
        })?;
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

    /// The methods of the stages, in order.
    ///
    /// # Errors
    /// An unknown method or parameter, with the number and method of its stage.
    pub fn methods(&self) -> Result<Vec<Box<dyn LayerMethod>>> {
        if self.stages.is_empty() {
            return Err(Error::Recipe("there is no stage; add at least one `[[stage]]` with a `method`".into()));
        }
        let build = |(index, stage): (usize, &StageRecipe)| {
            methods::build(&stage.method, stage.params.clone())
                .map_err(|error| Error::Recipe(format!("stage {} (`{}`): {error}", index + 1, stage.method)))
        };
        self.stages.iter().enumerate().map(build).collect()
    }
}
