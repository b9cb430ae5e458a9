//! Which list of layers is meant, and where the configuration describes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use scruple_weights::Checkpoint;
use serde_json::{Map, Value};

use super::block_of;
use crate::{Error, Result, model::family};

/// Where a configuration keeps the part about text, by the release and the family that wrote it.
const TEXT_PARTS: [&str; 4] = ["text_config", "language_config", "llm_config", "thinker_config"];

/// Where it keeps the part about images.
const IMAGE_PARTS: [&str; 2] = ["vision_config", "vision_model"];

/// Words in the names of stacks that are not the language model's.
const OTHER_STACKS: [&str; 9] =
    ["vision", "visual", "image", "audio", "speech", "mtp", "draft", "projector", "resampler"];

/// Keys that count layers of a decoder, of an encoder, and of either.
const DECODER_COUNTS: [&str; 2] = ["decoder_layers", "num_decoder_layers"];
const ENCODER_COUNTS: [&str; 1] = ["encoder_layers"];
const COUNTS: [&str; 5] = ["num_hidden_layers", "n_layer", "num_layers", "n_layers", "depth"];

/// A list of layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stack {
    /// What its tensors' names begin with, without the number: `model.layers`.
    pub name: String,
    /// Layers, as the configuration counts them.
    pub layers: usize,
    /// Keys that lead to the part of the configuration about it.
    pub scope: Vec<String>,
    /// Keys of that part that count the layers.
    pub counts: Vec<String>,
    /// `model_type` of that part.
    pub model_type: String,
    /// Tensor names have no number: one layer is run again and again.
    pub shared: bool,
}

/// The part of `config` that `keys` lead to.
pub(super) fn part<'a>(config: &'a Value, keys: &[String]) -> Option<&'a Map<String, Value>> {
    keys.iter().try_fold(config, |at, key| at.get(key))?.as_object()
}

/// The same, to change it.
pub(super) fn part_mut<'a>(config: &'a mut Value, keys: &[String]) -> Option<&'a mut Map<String, Value>> {
    keys.iter().try_fold(config, |at, key| at.get_mut(key))?.as_object_mut()
}

fn count(scope: &Map<String, Value>, key: &str) -> Option<usize> {
    scope.get(key)?.as_u64().and_then(|n| usize::try_from(n).ok())
}

/// Whether the stack `name` can be the language model's.
fn is_of_text(name: &str) -> bool {
    !OTHER_STACKS.iter().any(|word| name.contains(word))
}

/// Whether a decoder whose part this is stands behind an encoder: T5 says so by its type alone.
fn has_encoder(scope: &Map<String, Value>, model_type: &str) -> bool {
    let said = scope.get("is_encoder_decoder").and_then(Value::as_bool);
    said.unwrap_or(matches!(model_type, "t5" | "mt5" | "umt5"))
}

impl Stack {
    /// The stack called `wanted`, or the only one that can be the language model's.
    ///
    /// # Errors
    /// If there is none, or several could be meant; the stacks are listed.
    pub fn find(checkpoint: &Checkpoint, config: &Value, wanted: Option<&str>) -> Result<Self> {
        let refuse = |what: String| Error::Model(format!("{}: {what}", checkpoint.path().display()));
        let mut stacks: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        for view in checkpoint.tensors() {
            if let Some((stack, block)) = block_of(view.name()) {
                stacks.entry(stack).or_default().insert(block);
            }
        }
        let listed = || {
            let each = stacks.iter().map(|(name, blocks)| format!("`{name}` ({})", blocks.len()));
            each.collect::<Vec<_>>().join(", ")
        };
        let named: Vec<&String> = match wanted {
            Some(wanted) => stacks.keys().filter(|name| name.as_str() == wanted).collect(),
            None => {
                let of_text = |name: &&String| is_of_text(name);
                let longest = |name: &&String| {
                    Self::describe(name, config).is_some_and(|stack| stacks[*name].len() >= stack.layers)
                };
                stacks.keys().filter(of_text).filter(longest).collect()
            }
        };
        let name = match named.as_slice() {
            [name] => *name,
            [] if stacks.is_empty() => return Err(refuse("no tensor's name has a layer's number in it".into())),
            [] => {
                let what = wanted.map_or_else(
                    || "as many layers as the configuration counts".to_string(),
                    |wanted| format!("the name `{wanted}`"),
                );
                return Err(refuse(format!("no list of layers has {what}; there are {}", listed())));
            }
            _ => {
                let all = named.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
                return Err(refuse(format!("several lists of layers could be meant: {all}; name one with --stack")));
            }
        };
        let mut stack = Self::describe(name, config).ok_or_else(|| {
            refuse(format!("`config.json` says nowhere how many layers `{name}` has, so it cannot be rewritten"))
        })?;
        let blocks = &stacks[name];
        if stack.model_type == "albert" {
            return stack.repeated(config).map_err(refuse);
        }
        if let Some(missing) = (0..stack.layers).find(|block| !blocks.contains(block)) {
            return Err(refuse(format!(
                "layer {missing} of `{name}` is missing: the configuration counts {} layers, the names have {}",
                stack.layers,
                blocks.len()
            )));
        }
        stack.name = name.clone();
        Ok(stack)
    }

    /// What the configuration says of the stack `name`.
    pub(super) fn describe(name: &str, config: &Value) -> Option<Self> {
        let image = ["vision", "visual", "image"].iter().any(|word| name.contains(word));
        let parts: &[&str] = if image { &IMAGE_PARTS } else { &TEXT_PARTS };
        let mut scopes: Vec<Vec<String>> = Vec::new();
        for outer in parts {
            if config.get(outer).is_some_and(Value::is_object) {
                let inner = vec![(*outer).to_string(), "text_config".to_string()];
                scopes.extend(part(config, &inner).map(|_| inner.clone()));
                scopes.push(vec![(*outer).to_string()]);
            }
        }
        if !image {
            scopes.push(Vec::new());
        }
        let counts: &[&str] = match name {
            _ if name.split('.').any(|segment| segment == "decoder") => &DECODER_COUNTS,
            _ if name.split('.').any(|segment| segment == "encoder") => &ENCODER_COUNTS,
            _ => &[],
        };
        for keys in scopes {
            let Some(scope) = part(config, &keys) else { continue };
            // The class a text part is of where it does not say so, and how many layers that has by default.
            let outer = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
            let by_wrapper = || {
                let wrapper = family::WRAPPERS.iter().find(|wrapper| wrapper.model_type == outer)?;
                (!keys.is_empty()).then_some(wrapper.default_text)
            };
            let own = scope.get("model_type").and_then(Value::as_str);
            let model_type = own.or_else(by_wrapper).unwrap_or(outer).to_string();
            let found = counts.iter().find(|key| count(scope, key).is_some());
            let found = found.or_else(|| COUNTS.iter().find(|key| count(scope, key).is_some()));
            let class_default = || {
                let family =
                    family::FAMILIES.iter().find(|family| family.model_types.contains(&model_type.as_str()))?;
                let default = family.class_defaults.iter().find(|(key, _)| *key == "num_hidden_layers")?;
                (!keys.is_empty()).then_some(default.1 as usize)
            };
            let (layers, first) = match found {
                Some(key) => (count(scope, key)?, *key),
                None => match class_default() {
                    Some(layers) => (layers, "num_hidden_layers"),
                    None => continue,
                },
            };
            // Other keys that count the same: some models are read by one, some by another.
            let same = |key: &&&str| **key != first && count(scope, key) == Some(layers);
            let mut all = vec![first.to_string()];
            if !counts.contains(&first) || counts == ENCODER_COUNTS {
                all.extend(COUNTS.iter().filter(same).map(|key| (*key).to_string()));
            }
            if counts == DECODER_COUNTS && all.iter().any(|key| key == "num_layers") && has_encoder(scope, &model_type)
            {
                all = vec!["num_decoder_layers".to_string()]; // the others count the encoder's
            }
            return Some(Self { name: name.to_string(), layers, scope: keys, counts: all, model_type, shared: false });
        }
        None
    }

    /// ALBERT: one layer run again and again, so that only the count changes.
    fn repeated(mut self, config: &Value) -> Result<Self, String> {
        let groups = part(config, &self.scope).and_then(|scope| count(scope, "num_hidden_groups")).unwrap_or(1);
        if groups != 1 {
            return Err(format!(
                "the {} layers share the weights of {groups} groups, by a layer's number; only models of one group can lose \
                 layers",
                self.layers
            ));
        }
        self.shared = true;
        Ok(self)
    }

    /// Whether it can be the language model's.
    pub(crate) fn is_text(&self) -> bool {
        is_of_text(&self.name)
    }

    /// Whether its name says that it is a decoder.
    pub(super) fn is_decoder(&self) -> bool {
        self.name.split('.').any(|segment| segment == "decoder")
    }

    /// The layer of this stack that tensor `name` belongs to.
    pub fn layer_of(&self, name: &str) -> Option<usize> {
        if self.shared {
            return None;
        }
        let (stack, block) = block_of(name)?;
        (stack == self.name).then_some(block)
    }

    /// `name`, of a tensor of this stack, as one of layer `layer`.
    pub fn rename(&self, name: &str, layer: usize) -> String {
        let rest = &name[self.name.len() + 1..];
        let end = rest.find('.').unwrap_or(rest.len());
        format!("{}.{layer}{}", self.name, &rest[end..])
    }

    /// Whether a tensor of layer 0 serves all layers: the relative positions of T5.
    pub(super) fn owned_by_first(&self, name: &str) -> bool {
        matches!(self.model_type.as_str(), "t5" | "mt5") && name.ends_with("relative_attention_bias.weight")
    }

    /// Refuses to take out layers that others depend on.
    pub(super) fn special_layers(&self, file: &Path, kept: &[usize], force: bool) -> Result<()> {
        let first = match self.model_type.as_str() {
            "modernbert" | "modernbert-decoder" => "has no norm before its attention, unlike the others",
            "rwkv7" => "makes values that all others read",
            _ => return Ok(()),
        };
        if kept.first() == Some(&0) || force {
            return Ok(());
        }
        Err(Error::Model(format!("{}: layer 0 of this family {first}; keep it", file.display())))
    }
}
