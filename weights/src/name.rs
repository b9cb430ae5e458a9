//! Names of tensors and modules: where in the network a name lies, and selection by globs.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Where a tensor stands in its network, read off its name: `model.layers.3.mlp.experts.5.w1.weight` is in block 3 of the
/// stack `model.layers`, of kind `mlp.experts.*.w1.weight`, expert 5.
///
/// A tensor outside of blocks has an empty stack and its whole name as its kind. Nothing is lost: [`name`](Self::name)
/// gives the name back.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The list of blocks it belongs to, without the number: `model.layers`, `encoder.layer`, `layer1`. A model can
    /// have several, such as a vision tower beside a decoder, or the stages of a residual network.
    pub stack: String,
    /// Its block's number in the stack.
    pub block: Option<usize>,
    /// What it is within its block; the same in every block. An expert's number is written `*`.
    pub kind: String,
    /// Its expert's number, in a mixture of experts.
    pub expert: Option<usize>,
}

/// The segment that stands for an expert's number in [`Place::kind`].
const ANY_EXPERT: &str = "*";

/// Where the tensor `name` stands in its network.
///
/// A block is a number after a segment that means a list of blocks: `layers`, `layer`, `h`, `blk`, `block`, `blocks`,
/// `stages`, a word that ends in `_layers` or `_blocks`, `resblocks`, or a numbered stage such as `layer1`. The
/// outermost one counts (`encoder.block.0.layer.1` of a T5 is block 0), except that a list of stages, each of which is a
/// list of blocks, is as many stacks (`layers.2.blocks.5` of a Swin is block 5 of `layers.2.blocks`).
pub fn place(name: &str) -> Place {
    let segments: Vec<&str> = name.split('.').collect();
    // The last segment is the parameter, never a block's number.
    let number = |at: usize| (at + 1 < segments.len()).then(|| plain_number(segments[at])).flatten();
    let is_block = |at: usize| at > 0 && is_list(segments[at - 1]) && number(at).is_some();
    let Some(mut at) = (1..segments.len()).find(|&at| is_block(at)) else {
        return Place { stack: String::new(), block: None, kind: name.to_owned(), expert: None };
    };
    let stages = matches!(segments[at - 1], "layers" | "stages");
    if stages && is_block(at + 2) && matches!(segments[at + 1], "blocks" | "layers") {
        at += 2;
    }
    // A name that has the placeholder itself could not be told from one with a number.
    let has_placeholder = segments.contains(&ANY_EXPERT);
    let expert_at = (at + 2..segments.len())
        .filter(|_| !has_placeholder)
        .find(|&at| matches!(segments[at - 1], "experts" | "local_experts") && number(at).is_some());
    let kind: Vec<&str> =
        (at + 1..segments.len()).map(|at| if Some(at) == expert_at { ANY_EXPERT } else { segments[at] }).collect();
    Place {
        stack: segments[..at].join("."),
        block: number(at),
        kind: kind.join("."),
        expert: expert_at.and_then(number),
    }
}

impl Place {
    /// The name that [`place`] read.
    pub fn name(&self) -> String {
        let mut name = String::new();
        if let Some(block) = self.block {
            name = format!("{}.{block}.", self.stack);
        }
        match self.expert {
            None => name.push_str(&self.kind),
            Some(expert) => {
                let experts = format!("experts.{ANY_EXPERT}.");
                name.push_str(&self.kind.replacen(&experts, &format!("experts.{expert}."), 1));
            }
        }
        name
    }
}

/// Whether a number after `segment` counts blocks.
fn is_list(segment: &str) -> bool {
    let list = matches!(segment, "layers" | "layer" | "h" | "blk" | "block" | "blocks" | "resblocks" | "stages");
    let stage = |word| segment.strip_prefix(word).is_some_and(|number| plain_number(number).is_some());
    list || segment.ends_with("_layers")
        || segment.ends_with("_blocks")
        || ["layer", "block", "stage"].map(stage).contains(&true)
}

/// `text` as a number, if it is written as numbers are: digits without a leading zero.
fn plain_number(text: &str) -> Option<usize> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

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
    use proptest::prelude::*;

    use super::*;

    /// (name, stack, block, kind, expert); no block: the kind is the whole name.
    type Example = (&'static str, &'static str, Option<usize>, &'static str, Option<usize>);
    const PLACES: [Example; 26] = [
        ("model.layers.1.self_attn.q_proj.weight", "model.layers", Some(1), "self_attn.q_proj.weight", None),
        ("model.layers.10.mlp.up_proj.weight", "model.layers", Some(10), "mlp.up_proj.weight", None),
        ("model.language_model.layers.7.x.weight", "model.language_model.layers", Some(7), "x.weight", None),
        ("transformer.h.0.attn.c_attn.bias", "transformer.h", Some(0), "attn.c_attn.bias", None),
        ("h.11.ln_1.weight", "h", Some(11), "ln_1.weight", None),
        ("gpt_neox.layers.2.attention.dense.weight", "gpt_neox.layers", Some(2), "attention.dense.weight", None),
        ("model.decoder.layers.3.fc1.weight", "model.decoder.layers", Some(3), "fc1.weight", None),
        ("bert.encoder.layer.5.output.dense.weight", "bert.encoder.layer", Some(5), "output.dense.weight", None),
        ("encoder.layer.0.attention.self.query.weight", "encoder.layer", Some(0), "attention.self.query.weight", None),
        ("transformer.layer.4.ffn.lin1.weight", "transformer.layer", Some(4), "ffn.lin1.weight", None),
        ("layers.21.attn.Wqkv.weight", "layers", Some(21), "attn.Wqkv.weight", None),
        (
            "encoder.block.0.layer.1.DenseReluDense.wi.weight",
            "encoder.block",
            Some(0),
            "layer.1.DenseReluDense.wi.weight",
            None,
        ),
        ("backbone.layers.9.mixer.A_log", "backbone.layers", Some(9), "mixer.A_log", None),
        ("blocks.3.mlp.fc1.weight", "blocks", Some(3), "mlp.fc1.weight", None),
        ("blk.29.ffn_down.weight", "blk", Some(29), "ffn_down.weight", None),
        ("visual.transformer.resblocks.2.ln_1.bias", "visual.transformer.resblocks", Some(2), "ln_1.bias", None),
        ("module.layer1.0.conv1.weight", "module.layer1", Some(0), "conv1.weight", None),
        ("layer4.1.downsample.0.weight", "layer4", Some(1), "downsample.0.weight", None),
        ("layers.2.blocks.5.attn.qkv.weight", "layers.2.blocks", Some(5), "attn.qkv.weight", None),
        ("encoder.stages.3.layers.1.dwconv.weight", "encoder.stages.3.layers", Some(1), "dwconv.weight", None),
        (
            "single_transformer_blocks.12.attn.to_q.weight",
            "single_transformer_blocks",
            Some(12),
            "attn.to_q.weight",
            None,
        ),
        ("model.layers.3.mlp.experts.5.w1.weight", "model.layers", Some(3), "mlp.experts.*.w1.weight", Some(5)),
        (
            "model.layers.3.mlp.shared_experts.up_proj.weight",
            "model.layers",
            Some(3),
            "mlp.shared_experts.up_proj.weight",
            None,
        ),
        ("model.embed_tokens.weight", "", None, "model.embed_tokens.weight", None),
        ("features.0.weight", "", None, "features.0.weight", None),
        ("model.layers.weight", "", None, "model.layers.weight", None),
    ];

    #[test]
    fn places_are_read_segment_by_segment() {
        for (name, stack, block, kind, expert) in PLACES {
            let expected = Place { stack: stack.into(), block, kind: kind.into(), expert };
            assert_eq!(place(name), expected, "{name}");
            assert_eq!(expected.name(), name);
        }
    }

    #[test]
    fn what_is_no_number_is_no_block() {
        for name in [
            "model.layers.01.x",
            "model.layers.99999999999999999999999.x",
            "model.layers.-1.x",
            "layers.3",
            "",
            ".",
            "layers..x",
        ] {
            assert_eq!(place(name).block, None, "{name}");
            assert_eq!(place(name).name(), name);
        }
    }

    proptest! {
        #[test]
        fn a_place_gives_its_name_back(
            segments in proptest::collection::vec(
                "layers|layer|h|blocks|experts|local_experts|stages|layer1|[*]|w|weight|0|7|31|[a-z*.]{0,3}", 0..9)
        ) {
            let name = segments.join(".");
            prop_assert_eq!(place(&name).name(), name);
        }
    }

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
