//! Names of tensors and modules, selected by globs.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Selects names: those that match a pattern of `include` (every name if `include` is empty) and none of `exclude`.
///
/// A pattern is a glob over the whole name: `*` stands for any characters (dots too), `?` for one.
/// `model.layers.*.mlp.*_proj` matches `model.layers.0.mlp.up_proj`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Patterns", into = "Patterns")]
pub struct PathFilter {
    include: Vec<String>,
    exclude: Vec<String>,
}

impl PathFilter {
    /// Checks the patterns.
    ///
    /// # Errors
    /// [`Error::Pattern`] for a pattern that could not mean what was intended: empty, a regular expression (`re:`), or
    /// one with brackets or braces, which are no part of these globs.
    pub fn new(include: Vec<String>, exclude: Vec<String>) -> Result<Self> {
        include.iter().chain(&exclude).try_for_each(|pattern| check(pattern))?;
        Ok(Self { include, exclude })
    }

    /// The patterns of which a name must match one; empty means that every name does.
    pub fn include(&self) -> &[String] {
        &self.include
    }

    /// The patterns of which a name must match none.
    pub fn exclude(&self) -> &[String] {
        &self.exclude
    }

    /// Whether `name` is selected.
    pub fn matches(&self, name: &str) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|pattern| glob(pattern, name));
        (self.include.is_empty() || any(&self.include)) && !any(&self.exclude)
    }
}

/// [`PathFilter`] as it is written in a file, not yet checked.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Patterns {
    #[serde(default)]
    include: Vec<String>,
    #[serde(default)]
    exclude: Vec<String>,
}

impl TryFrom<Patterns> for PathFilter {
    type Error = Error;
    fn try_from(patterns: Patterns) -> Result<Self> {
        Self::new(patterns.include, patterns.exclude)
    }
}

impl From<PathFilter> for Patterns {
    fn from(filter: PathFilter) -> Self {
        Self { include: filter.include, exclude: filter.exclude }
    }
}

fn check(pattern: &str) -> Result<()> {
    let refuse = |what: &str| Err(Error::Pattern { pattern: pattern.into(), what: what.into() });
    if pattern.is_empty() {
        return refuse("is empty; write `*` to match every name");
    }
    if pattern.starts_with("re:") {
        return refuse("is a regular expression, which is not supported; write a glob with `*` and `?`");
    }
    if pattern.contains(['[', ']', '{', '}']) {
        return refuse("contains brackets, which have no meaning here; write one pattern per alternative");
    }
    if pattern.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return refuse("contains white space, which no tensor name has");
    }
    Ok(())
}

/// Whether the whole of `name` matches `pattern`. On a mismatch only the last `*` takes one character more, so the time
/// is at most the product of both lengths.
fn glob(pattern: &str, name: &str) -> bool {
    let mut pattern = pattern.chars();
    let mut name = name.chars();
    let mut star = None; // what follows the last `*`, and where in the name it is tried
    loop {
        let (mut next_pattern, mut next_name) = (pattern.clone(), name.clone());
        match (next_pattern.next(), next_name.next()) {
            (None, None) => return true,
            (Some('*'), _) => {
                star = Some((next_pattern.clone(), name.clone()));
                pattern = next_pattern;
            }
            (Some(p), Some(c)) if p == c || p == '?' => (pattern, name) = (next_pattern, next_name),
            _ => {
                let Some((after, rest)) = &mut star else { return false };
                if rest.next().is_none() {
                    return false;
                }
                (pattern, name) = (after.clone(), rest.clone());
            }
        }
    }
}

/// Up to three of `names` that look like `wanted`, best first, for a "did you mean".
pub(crate) fn similar<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let limit = wanted.chars().count() / 3;
    let mut near: Vec<(usize, &str)> = names
        .filter_map(|name| {
            let distance = if name.ends_with(&format!(".{wanted}")) || wanted.ends_with(&format!(".{name}")) {
                0 // a prefix such as `model.` is missing or too many
            } else if name.starts_with(&format!("{wanted}.")) {
                1
            } else {
                distance(wanted, name, limit)?
            };
            Some((distance, name))
        })
        .collect();
    near.sort();
    near.truncate(3);
    near.into_iter().map(|(_, name)| name).collect()
}

/// Levenshtein distance in characters if it is at most `limit`.
fn distance(a: &str, b: &str, limit: usize) -> Option<usize> {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[same..], &b[same..]);
    let same = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[..a.len() - same], &b[..b.len() - same]);
    if a.len().abs_diff(b.len()) > limit {
        return None;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
        if row.iter().all(|&distance| distance > limit) {
            return None;
        }
    }
    row.last().copied().filter(|&distance| distance <= limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_whole_names() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("*", "anything.at.all", true),
            ("lm_head", "lm_head", true),
            ("lm_head", "lm_head.weight", false),
            ("lm_head*", "lm_head.weight", true),
            ("model.layers.*.mlp.*_proj", "model.layers.10.mlp.up_proj", true),
            ("model.layers.?.mlp.*_proj", "model.layers.10.mlp.up_proj", false),
            ("*a*b*c", "xxaxxbxxbc", true),
            ("*a*b*c", "xxaxxbxxcb", false),
            ("a**b", "ab", true),
            ("?", "é", true),
            ("", "", true),
            ("a", "", false),
        ] {
            assert_eq!(glob(pattern, name), expected, "{pattern} on {name}");
        }
    }

    #[test]
    fn a_glob_of_many_stars_takes_no_exponential_time() {
        assert!(!glob(&"*a".repeat(50), &("a".repeat(500) + "b")));
    }

    #[test]
    fn exclude_wins_over_include() {
        let filter = PathFilter::new(vec!["model.*".into()], vec!["*.down_proj".into()]).unwrap();
        assert!(filter.matches("model.layers.0.mlp.up_proj"));
        assert!(!filter.matches("model.layers.0.mlp.down_proj"));
        assert!(!filter.matches("lm_head"));
        assert!(PathFilter::default().matches("lm_head"));
    }

    #[test]
    fn refuses_patterns_that_are_no_globs() {
        for (pattern, expected) in
            [("re:.*proj", "regular expression"), ("", "is empty"), ("a[01]", "brackets"), ("a b", "white space")]
        {
            let error = PathFilter::new(vec![], vec![pattern.into()]).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(pattern), "{error}");
        }
        let error = serde_json::from_str::<PathFilter>(r#"{"include": ["re:x"]}"#).unwrap_err().to_string();
        assert!(error.contains("regular expression"), "{error}");
    }

    #[test]
    fn suggests_names_that_are_near() {
        let names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"];
        let all = || names.iter().copied();
        assert_eq!(similar("layers.0.mlp.up_proj.weight", all())[0], names[0]);
        assert_eq!(similar("lm_head", all()), ["lm_head.weight"]);
        assert_eq!(similar("model.layers.0.mlp.upproj.weight", all())[0], names[0]);
        assert!(similar("entirely different", all()).is_empty());
    }
}
