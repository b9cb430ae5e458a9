//! A set of layers to take out, and how other programs write it.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Layers of a stack that are taken out: sorted, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "Vec<usize>", into = "Vec<usize>")]
pub struct Removal(Vec<usize>);

impl From<Vec<usize>> for Removal {
    fn from(mut layers: Vec<usize>) -> Self {
        layers.sort_unstable();
        layers.dedup();
        Self(layers)
    }
}

impl From<Removal> for Vec<usize> {
    fn from(removal: Removal) -> Self {
        removal.0
    }
}

impl FromIterator<usize> for Removal {
    fn from_iter<I: IntoIterator<Item = usize>>(layers: I) -> Self {
        layers.into_iter().collect::<Vec<_>>().into()
    }
}

impl Removal {
    /// Reads `21-28` or `3,7,21-28`: numbers from 0, ranges with both ends.
    ///
    /// # Errors
    /// What is no number, or a range that runs backwards.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |part: &str| {
            Error::Recipe(format!(
                "layers should be numbers and ranges such as 3,7,21-28, the first layer being 0; found `{part}` in `{text}`"
            ))
        };
        let number = |part: &str, digits: &str| digits.trim().parse::<u16>().map(usize::from).map_err(|_| wrong(part));
        let mut layers = Vec::new();
        for part in text.split(',') {
            match part.split_once('-') {
                None => layers.push(number(part, part)?),
                Some((first, last)) => {
                    let (first, last) = (number(part, first)?, number(part, last)?);
                    if first > last {
                        return Err(wrong(part));
                    }
                    layers.extend(first..=last);
                }
            }
        }
        Ok(layers.into())
    }

    /// The layers, lowest first.
    pub fn layers(&self) -> &[usize] {
        &self.0
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is taken out.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `layer` is taken out.
    pub fn contains(&self, layer: usize) -> bool {
        self.0.binary_search(&layer).is_ok()
    }

    /// The same with `layer` taken out too.
    pub fn with(&self, layer: usize) -> Self {
        self.0.iter().copied().chain([layer]).collect()
    }

    /// The same with `layer` left in.
    pub fn without(&self, layer: usize) -> Self {
        Self(self.0.iter().copied().filter(|&l| l != layer).collect())
    }

    /// The layers of a stack of `layers` that stay, in order.
    pub fn kept(&self, layers: usize) -> Vec<usize> {
        (0..layers).filter(|&layer| !self.contains(layer)).collect()
    }

    /// Refuses a set that is not one of a stack of `layers`, or that leaves none of it.
    ///
    /// # Errors
    /// One sentence.
    pub fn check(&self, layers: usize) -> Result<()> {
        if let Some(&last) = self.0.last().filter(|&&last| last >= layers) {
            return Err(Error::Recipe(format!(
                "layer {last} cannot be dropped: the model has {layers}, numbered 0 to {}",
                layers.saturating_sub(1)
            )));
        }
        if self.0.len() == layers {
            return Err(Error::Recipe(format!("all {layers} layers would be dropped; keep at least one")));
        }
        Ok(())
    }

    /// The runs of neighbours that stay of a stack of `layers`.
    pub fn kept_runs(&self, layers: usize) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for layer in self.kept(layers) {
            match runs.last_mut().filter(|run| run.end == layer) {
                Some(run) => run.end += 1,
                None => runs.push(layer..layer + 1),
            }
        }
        runs
    }

    /// What mergekit would be told to make the same model of `model`: a pass-through merge of slices, ends excluded.
    pub fn mergekit(&self, layers: usize, model: &str, dtype: &str) -> String {
        let mut yaml = String::from("slices:\n");
        for run in self.kept_runs(layers) {
            yaml.push_str(&format!(
                "  - sources:\n      - model: {}\n        layer_range: [{}, {}]\n",
                serde_json::Value::from(model), // a JSON string is a YAML string
                run.start,
                run.end
            ));
        }
        yaml.push_str(&format!("merge_method: passthrough\ndtype: {dtype}\n"));
        yaml
    }

    /// The flag with which llama.cpp's `llama-quantize` takes the same layers out of a GGUF file.
    pub fn llama_cpp(&self) -> String {
        let numbers: Vec<String> = self.0.iter().map(usize::to_string).collect();
        format!("--prune-layers {}", numbers.join(","))
    }
}

impl std::fmt::Display for Removal {
    /// As [`Removal::parse`] reads it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut first = 0;
        for at in 0..self.0.len() {
            if self.0.get(at + 1) == Some(&(self.0[at] + 1)) {
                continue;
            }
            let comma = if first > 0 { "," } else { "" };
            match self.0[at] - self.0[first] {
                0 => write!(f, "{comma}{}", self.0[at])?,
                _ => write!(f, "{comma}{}-{}", self.0[first], self.0[at])?,
            }
            first = at + 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_read_as_they_are_written() {
        for (text, layers) in
            [("21-28", (21..29).collect::<Vec<_>>()), ("3,7", vec![3, 7]), ("0,2-3,9", vec![0, 2, 3, 9])]
        {
            let removal = Removal::parse(text).unwrap();
            assert_eq!((removal.layers(), removal.to_string().as_str()), (&layers[..], text));
        }
        assert_eq!(Removal::parse("5-5, 2,2").unwrap().to_string(), "2,5");
        for text in ["", "a", "3-1", "-1", "1-", "70000", "1,,2"] {
            assert!(Removal::parse(text).unwrap_err().to_string().contains("the first layer being 0"), "{text}");
        }
        assert!(Removal::parse("4").unwrap().check(4).unwrap_err().to_string().contains("numbered 0 to 3"));
        assert!(Removal::parse("0-3").unwrap().check(4).unwrap_err().to_string().contains("keep at least one"));
    }

    #[test]
    fn other_programs_are_told_the_same_set() {
        let removal = Removal::parse("0,3-4").unwrap();
        assert_eq!(removal.kept(6), [1, 2, 5]);
        assert_eq!(removal.llama_cpp(), "--prune-layers 0,3,4");
        assert_eq!(
            removal.mergekit(6, "org/name", "bfloat16"),
            "slices:\n  - sources:\n      - model: \"org/name\"\n        layer_range: [1, 3]\n  - sources:\n      - model: \
             \"org/name\"\n        layer_range: [5, 6]\nmerge_method: passthrough\ndtype: bfloat16\n"
        );
    }
}
