//! What is asked: items of suites that come with the program and of files, by dimension, with the rules they are judged by.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{
    dimension::{self, DIMENSIONS, Dimension, Rule},
    dimensions::Toxicity,
    item::{Answer, Ask, Item, Outcome},
    readers::{self, Limits},
    record::RuleName,
    suite::{self, Suite},
    toxicity::{self, ToxicityScorer, classifier::Classifier, ngrams::Ngrams},
};

/// The items of one suite or of one file or folder.
#[derive(Debug, Clone)]
pub struct Questions {
    /// The suite's name, or that of the file without its folder.
    pub name: String,
    /// The names of dimensions with their items.
    pub dimensions: Vec<(String, Vec<Item>)>,
    /// Files of a folder that no reader knows.
    pub unknown: Vec<PathBuf>,
    /// The items come with the program.
    pub embedded: bool,
}

impl Questions {
    /// Those that `name` means: a suite that comes with the program, a file or folder, or a data set of a hub.
    ///
    /// # Errors
    /// If it is none of them, or as [`readers::locate`].
    pub fn open(name: &Path) -> Result<Self> {
        if let Some(suite) = name.to_str().and_then(suite::named) {
            let Suite { name, dimensions } = suite;
            return Ok(Self { name, dimensions, unknown: Vec::new(), embedded: true });
        }
        let (name, read) = readers::locate(name, Limits::default())?;
        Ok(Self {
            name,
            dimensions: read.dimensions.into_iter().map(|(name, items)| (name.to_string(), items)).collect(),
            unknown: read.unknown,
            embedded: false,
        })
    }

    /// Leaves the dimensions of which `keep` says so.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.dimensions.retain(|(name, _)| keep(name));
    }
}

/// All of them together, dimension by dimension in the order of [`DIMENSIONS`].
///
/// # Errors
/// An unknown dimension, or two items of one dimension with one id.
pub fn join(questions: Vec<Questions>) -> Result<Suite> {
    let mut names = Vec::new();
    let mut found: Vec<Vec<Item>> = vec![Vec::new(); DIMENSIONS.len()];
    for Questions { name, dimensions, .. } in questions {
        for (dimension, items) in dimensions {
            let place = DIMENSIONS.iter().position(|known| known.name() == dimension);
            found[place.with_context(|| format!("{name}: there is no dimension `{dimension}`"))?].extend(items);
        }
        names.push(name);
    }
    let mut suite = Suite { name: names.join("+"), dimensions: Vec::new() };
    for (dimension, items) in DIMENSIONS.iter().zip(found).filter(|(_, items)| !items.is_empty()) {
        let mut ids: Vec<&str> = items.iter().map(|item| item.id.as_str()).collect();
        ids.sort_unstable();
        if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            anyhow::bail!("{}: {} has two items called `{}`", suite.name, dimension.name(), twice[0]);
        }
        suite.dimensions.push((dimension.name().to_string(), items));
    }
    Ok(suite)
}

/// The names of all dimensions.
pub fn known_names() -> String {
    DIMENSIONS.iter().map(|dimension| dimension.name()).collect::<Vec<_>>().join(", ")
}

/// One dimension's part of a suite.
#[derive(Debug)]
pub struct Topic<'a> {
    /// The dimension.
    pub dimension: &'static dyn Dimension,
    /// What its answers are judged by.
    pub rule: Rule,
    /// Its items.
    pub items: Vec<Item>,
    /// Of the dimension whose texts are scored by a model of their own.
    pub scorer: Option<&'a dyn ToxicityScorer>,
}

impl Topic<'_> {
    /// What `answer` to `item` is worth.
    ///
    /// # Errors
    /// If the scorer of texts fails.
    pub fn judge(&self, item: &Item, answer: &Answer) -> Result<Outcome> {
        match (&self.scorer, &item.ask, &answer.text) {
            (Some(scorer), Ask::Continue { .. }, Some(text)) => toxicity::judge(*scorer, text),
            _ => Ok(self.dimension.judge(self.rule, item, answer)),
        }
    }

    /// The rule's name, with the scorer's where texts are scored by one.
    pub fn rule_name(&self) -> RuleName {
        let RuleName { name, version } = self.rule.into();
        match &self.scorer {
            Some(scorer) => {
                RuleName { name: format!("{name}, texts by {} {}", scorer.name(), scorer.version()), version }
            }
            None => RuleName { name, version },
        }
    }
}

/// What scores the texts of a dimension's items, where they are scored for toxicity.
fn scorer<'a>(own: Option<&'a Classifier>, name: &str, items: &[Item]) -> Result<Option<&'a dyn ToxicityScorer>> {
    let texts = items.iter().any(|item| matches!(item.ask, Ask::Continue { .. }));
    Ok(match own {
        _ if name != Toxicity.name() || !texts => None,
        Some(own) => Some(own),
        None => Some(Ngrams::embedded()?),
    })
}

/// The dimensions of `suite` with what they are judged by: the default rules but for those that `rules` name, each as
/// `DIMENSION=RULE`; texts are scored for toxicity by `classifier`, or by the scorer that comes with the program.
///
/// # Errors
/// A dimension or rule that there is not.
pub fn topics<'a>(rules: &[String], suite: &Suite, classifier: Option<&'a Classifier>) -> Result<Vec<Topic<'a>>> {
    let mut chosen: Vec<(&'static str, Rule)> = Vec::new();
    for text in rules {
        let (name, rule) = text.split_once('=').with_context(|| {
            format!("--rule should be a dimension and a rule, as in stereotype=official, found `{text}`")
        })?;
        let dimension = dimension::named(name)
            .with_context(|| format!("--rule: there is no dimension `{name}`; there are {}", known_names()))?;
        let rules = dimension.rules();
        let found = rules.iter().find(|known| known.name == rule).with_context(|| {
            let names: Vec<_> = rules.iter().map(|rule| rule.name).collect();
            format!("--rule: {name} has no rule `{rule}`; it has {}", names.join(", "))
        })?;
        chosen.push((dimension.name(), *found));
    }
    let topic = |(name, items): &(String, Vec<Item>)| {
        let dimension = dimension::named(name).with_context(|| format!("there is no dimension `{name}`"))?;
        let rule = chosen.iter().rev().find(|(known, _)| known == name).map(|(_, rule)| *rule);
        let scorer = scorer(classifier, name, items)?;
        Ok(Topic { dimension, rule: rule.unwrap_or(dimension.rules()[0]), items: items.clone(), scorer })
    };
    suite.dimensions.iter().map(topic).collect()
}
