//! From the values a pickle built to tensors with names.

use std::collections::{HashMap, HashSet};

use super::value::{Built, Node, Tensor, Value};
use crate::format::{Metadata, shown};

/// Containers within containers, at most.
const MAX_DEPTH: usize = 100;
/// A name is at most this long, in bytes.
const MAX_NAME: usize = 2048;
/// Plain values beside the tensors that are kept, at most.
const MAX_PLAIN: usize = 64;

/// What training on several devices puts before every name. It stays; metadata offer it as `common_prefix`.
const PREFIX: &str = "module.";

/// Where training loops keep the model's tensors, in the order in which they are looked for.
const WRAPPERS: [&str; 6] = ["state_dict", "model_state_dict", "model", "module", "net", "weights"];

/// Tensors by name, in the order of the pickle, and what else is worth keeping.
pub(super) struct Named {
    pub tensors: Vec<(String, Tensor)>,
    pub metadata: Metadata,
}

/// Walks what the program returned.
///
/// # Errors
/// A sentence, if containers are nested too deeply, names are too long, shared parts unfold to more than the pickle's
/// size justifies, or two tensors have one name.
pub(super) fn name(built: &Built<'_>) -> Result<Named, String> {
    let mut metadata = Metadata::new();
    let mut wrapper = None;
    if let Some(pairs) = built.pairs(built.result) {
        let texts = pairs.iter().filter_map(|&(key, value)| Some((built.as_text(key)?, plain(built, value)?)));
        metadata.extend(texts.take(MAX_PLAIN).map(|(key, text)| (shown(key), text)));
        let holds_tensors =
            |value| built.pairs(value).is_some_and(|pairs| pairs.iter().any(|&(_, v)| is_tensor(built, v)));
        let there = |wrapper: &&&str| {
            let named = pairs.iter().rfind(|(key, _)| built.as_text(*key) == Some(wrapper));
            named.is_some_and(|&(_, value)| holds_tensors(value))
        };
        wrapper = WRAPPERS.iter().find(there).copied();
    }
    let mut tensors = walk(built, wrapper)?;
    if let Some(again) = twice(&tensors) {
        // Looking through the wrapper made a name of another part's; without it all are distinct.
        let Some(wrapper) = wrapper else {
            return Err(format!("the pickle has two tensors that would both be called `{}`", shown(&again)));
        };
        tensors = walk(built, None)?;
        if let Some(again) = twice(&tensors) {
            return Err(format!("the pickle has two tensors that would both be called `{}`", shown(&again)));
        }
        metadata.insert("not_looked_through".into(), wrapper.into());
    } else if let Some(wrapper) = wrapper {
        metadata.insert("looked_through".into(), wrapper.into());
    }
    if prefixed(built, metadata.get("looked_through").map(String::as_str)) {
        metadata.insert("common_prefix".into(), PREFIX.into());
    }
    if tensors.is_empty() {
        return Err("the pickle holds no tensors".into());
    }
    Ok(Named { tensors, metadata })
}

fn walk(built: &Built<'_>, wrapper: Option<&'static str>) -> Result<Vec<(String, Tensor)>, String> {
    let budget = built.end.saturating_mul(64).saturating_add(1 << 16);
    let mut walk = Walk { built, wrapper, open: HashSet::new(), path: String::new(), tensors: Vec::new(), budget };
    walk.visit(built.result, 0)?;
    Ok(walk.tensors)
}

/// Whether every tensor of the model's dictionary has a name that begins with [`PREFIX`].
fn prefixed(built: &Built<'_>, wrapper: Option<&str>) -> bool {
    let root = built.pairs(built.result).unwrap_or_default();
    let model = match wrapper {
        Some(wrapper) => {
            let inner = root.iter().rfind(|(key, _)| built.as_text(*key) == Some(wrapper));
            inner.and_then(|&(_, value)| built.pairs(value)).unwrap_or_default()
        }
        None => root,
    };
    let mut tensors = model.iter().filter(|&&(_, value)| is_tensor(built, value)).peekable();
    tensors.peek().is_some() && tensors.all(|&(key, _)| built.as_text(key).is_some_and(|key| key.starts_with(PREFIX)))
}

fn twice(tensors: &[(String, Tensor)]) -> Option<String> {
    let mut seen = HashSet::with_capacity(tensors.len());
    tensors.iter().find(|(name, _)| !seen.insert(name.as_str())).map(|(name, _)| name.clone())
}

fn is_tensor(built: &Built<'_>, value: Value) -> bool {
    matches!(built.node(value), Some(Node::Tensor(_)))
}

/// A number or short text that stands beside the tensors, such as the epoch.
fn plain(built: &Built<'_>, value: Value) -> Option<String> {
    match value {
        Value::Bool(value) => Some(value.to_string()),
        Value::Int(value) => Some(value.to_string()),
        Value::Float(value) => Some(value.to_string()),
        Value::Text(span) => Some(built.text(span)).filter(|text| text.len() <= 1000).map(str::to_owned),
        _ => None,
    }
}

struct Walk<'a, 'b> {
    built: &'a Built<'b>,
    wrapper: Option<&'static str>,
    /// The containers the walk is inside of: a value that holds itself is not entered again.
    open: HashSet<u32>,
    path: String,
    tensors: Vec<(String, Tensor)>,
    /// Values and bytes of names that may still be made.
    budget: usize,
}

impl Walk<'_, '_> {
    fn visit(&mut self, value: Value, depth: usize) -> Result<(), String> {
        let Value::Node(index) = value else { return Ok(()) };
        let Some(node) = self.built.node(value) else { return Ok(()) };
        if let Node::Tensor(tensor) = node {
            let name = if self.path.is_empty() { "tensor".to_owned() } else { self.path.clone() };
            self.spend(name.len())?;
            self.tensors.push((name, *tensor));
            return Ok(());
        }
        if depth > MAX_DEPTH {
            return Err(format!("the pickle nests more than {MAX_DEPTH} containers: it is no checkpoint"));
        }
        if !self.open.insert(index) {
            return Ok(());
        }
        match node {
            Node::Tuple(items) | Node::List(items) => {
                for (at, &item) in items.iter().enumerate() {
                    self.spend(1)?;
                    if matches!(item, Value::Node(_)) {
                        self.enter(&at.to_string(), item, depth)?;
                    }
                }
            }
            Node::Dict(pairs) => self.pairs(pairs, depth)?,
            Node::Object(Some(state)) => match self.built.pairs(*state) {
                Some(pairs) => self.pairs(pairs, depth)?,
                None => self.visit(*state, depth + 1)?,
            },
            _ => {}
        }
        self.open.remove(&index);
        Ok(())
    }

    fn pairs(&mut self, pairs: &[(Value, Value)], depth: usize) -> Result<(), String> {
        // As in Python, the last of equal keys counts.
        let mut last = HashMap::with_capacity(pairs.len());
        for (at, &(key, _)) in pairs.iter().enumerate() {
            if let Some(key) = self.built.as_text(key) {
                self.spend(key.len())?;
                last.insert(key, at);
            }
        }
        for (at, &(key, value)) in pairs.iter().enumerate() {
            if !matches!(value, Value::Node(_)) {
                continue;
            }
            match key {
                Value::Text(span) => {
                    let key = self.built.text(span);
                    if last[key] == at {
                        let through = depth == 0 && self.wrapper == Some(key);
                        self.enter(if through { "" } else { key }, value, depth)?;
                    }
                }
                Value::Int(number) => self.enter(&number.to_string(), value, depth)?,
                _ => self.enter(&format!("#{at}"), value, depth)?,
            }
        }
        Ok(())
    }

    /// Visits `value` under the path's next part; an empty part adds nothing.
    fn enter(&mut self, part: &str, value: Value, depth: usize) -> Result<(), String> {
        let length = self.path.len();
        if length + 1 + part.len() > MAX_NAME {
            return Err(format!("the pickle has a name of more than {MAX_NAME} bytes: it is no checkpoint"));
        }
        self.spend(part.len())?;
        if !self.path.is_empty() && !part.is_empty() {
            self.path.push('.');
        }
        self.path.push_str(part);
        self.visit(value, depth + 1)?;
        self.path.truncate(length);
        Ok(())
    }

    fn spend(&mut self, cost: usize) -> Result<(), String> {
        match self.budget.checked_sub(cost.max(1)) {
            Some(left) => {
                self.budget = left;
                Ok(())
            }
            None => Err("the pickle unfolds to far more than its size, by parts it shares: made to deceive".into()),
        }
    }
}
