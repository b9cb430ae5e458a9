//! Reading a JSON object field by field, so that each complaint names file, field, what was expected and what was found.

use std::path::Path;

use serde_json::Value;

use crate::{Error, Result, kernel::activation::Activation};

/// One JSON object of a `config.json`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a> {
    /// Named in errors.
    pub file: &'a Path,
    /// The object.
    pub object: &'a Value,
    /// What absent numbers are: a `text_config` leaves out what equals its class's defaults.
    pub defaults: &'a [(&'static str, u64)],
}

impl<'a> Fields<'a> {
    /// The fields of `object`, none of which has a default of its own.
    pub fn new(file: &'a Path, object: &'a Value) -> Self {
        Self { file, object, defaults: &[] }
    }

    /// `KEY should be EXPECTED`.
    pub fn complain(&self, key: &str, expected: &str, found: &Value) -> Error {
        Error::Model(format!("{}: `{key}` should be {expected}, found {found}", self.file.display()))
    }

    /// A fault of the file that is not one field's.
    pub fn refuse(&self, what: impl std::fmt::Display) -> Error {
        Error::Model(format!("{}: {what}", self.file.display()))
    }

    /// The value of `key`, null counting as absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// A positive whole number of at most 2³².
    pub fn count_or(&self, key: &str, default: Option<usize>) -> Result<usize> {
        let class = || self.defaults.iter().find(|(name, _)| *name == key).map(|(_, value)| *value as usize);
        match self.get(key) {
            None => class()
                .or(default)
                .ok_or_else(|| self.refuse(format!("`{key}` is missing; the model cannot be built without it"))),
            Some(value) => match value.as_u64() {
                Some(n) if n > 0 && n <= 1 << 32 => Ok(n as usize),
                _ => Err(self.complain(key, "a positive whole number", value)),
            },
        }
    }

    /// A number of which there may be none, such as the width of a window.
    pub fn maybe_count(&self, key: &str) -> Result<Option<usize>> {
        self.get(key).map(|_| self.count_or(key, None)).transpose()
    }

    /// A count that the program makes one thing each of: at most `limit`.
    pub fn limited_count(&self, key: &str, limit: usize) -> Result<usize> {
        let count = self.count_or(key, None)?;
        if count > limit {
            return Err(self.refuse(format!("`{key}` is {count}, more than the {limit} that are run here")));
        }
        Ok(count)
    }

    /// A positive number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(x) if x.is_finite() && x > 0.0 => Ok(Some(x)),
                _ => Err(self.complain(key, "a positive number", value)),
            },
        }
    }

    /// A number that is not negative.
    pub fn number_from_zero(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => match value.as_f64() {
                Some(x) if x.is_finite() && x >= 0.0 => Ok(x),
                _ => Err(self.complain(key, "a number that is not negative", value)),
            },
        }
    }

    /// (height, width): one number for both, or a list of the two.
    pub fn size(&self, key: &str, default: usize) -> Result<(usize, usize)> {
        const LARGEST: u64 = 1 << 16;
        let side = |value: &Value| value.as_u64().filter(|side| (1..=LARGEST).contains(side)).map(|side| side as usize);
        let Some(value) = self.get(key) else { return Ok((default, default)) };
        let size = match value.as_array().map(Vec::as_slice) {
            None => side(value).map(|side| (side, side)),
            Some([height, width]) => side(height).zip(side(width)),
            Some(_) => None,
        };
        size.ok_or_else(|| self.complain(key, &format!("a size from 1 to {LARGEST}, or a list of two"), value))
    }

    /// A positive number, missing only where there is a default.
    pub fn number_or(&self, key: &str, default: Option<f64>) -> Result<f64> {
        self.number(key)?.or(default).ok_or_else(|| self.refuse(format!("`{key}` is missing; add it")))
    }

    /// A list of positive numbers.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wrong = || self.complain(key, "a list of positive numbers", value);
        let positive = |x: &Value| x.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        let list = value.as_array().ok_or_else(wrong)?;
        list.iter().map(positive).collect::<Option<Vec<_>>>().map(Some).ok_or_else(wrong)
    }

    /// true or false.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(self.complain(key, "true or false", value)),
        }
    }

    /// One token id, a list of them, or none.
    pub fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let one = |value: &Value| {
            value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| self.complain(key, "a token id", value))
        };
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(one).collect(),
            Some(value) => Ok(vec![one(value)?]),
        }
    }

    /// A list of indices of blocks, each below `n_blocks`.
    pub fn block_indices(&self, key: &str, n_blocks: usize) -> Result<Vec<usize>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let wrong = || self.complain(key, &format!("a list of block numbers below {n_blocks}"), value);
        let index = |value: &Value| value.as_u64().map(|n| n as usize).filter(|n| *n < n_blocks);
        value.as_array().ok_or_else(wrong)?.iter().map(index).collect::<Option<_>>().ok_or_else(wrong)
    }

    /// The name of an activation, one of `allowed`.
    pub fn activation(&self, key: &str, default: &str, allowed: &[&str]) -> Result<Activation> {
        let name = match self.get(key) {
            None => default,
            Some(Value::String(name)) => name,
            Some(other) => return Err(self.complain(key, &quoted(allowed), other)),
        };
        let known = allowed.contains(&name).then(|| Activation::from_name(name)).flatten();
        known.ok_or_else(|| self.complain(key, &quoted(allowed), &Value::from(name)))
    }

    /// The name of any activation.
    pub fn any_activation(&self, key: &str, default: &str) -> Result<Activation> {
        let names: Vec<&str> = Activation::NAMES.iter().map(|(name, _)| *name).collect();
        self.activation(key, default, &names)
    }

    /// `layer_types` as whether each of `n_blocks` blocks slides; `None` where there is no such list.
    pub fn sliding_blocks(&self, n_blocks: usize) -> Result<Option<Vec<bool>>> {
        let Some(value) = self.get("layer_types") else { return Ok(None) };
        let expected = format!("a list of {n_blocks} words, each \"full_attention\" or \"sliding_attention\"");
        let slides = |kind: &Value| match kind.as_str() {
            Some("sliding_attention") => Some(true),
            Some("full_attention") => Some(false),
            _ => None,
        };
        let list = value.as_array().filter(|list| list.len() == n_blocks);
        let kinds = list.and_then(|list| list.iter().map(slides).collect::<Option<Vec<_>>>());
        kinds.map(Some).ok_or_else(|| self.complain("layer_types", &expected, value))
    }
}

/// The names of activations as a phrase, one of those that mean the same.
fn quoted(names: &[&str]) -> String {
    let first = |name: &&&str| {
        let of = |name: &str| Activation::from_name(name);
        names.iter().find(|other| of(other) == of(name)) == Some(*name)
    };
    let names: Vec<String> = names.iter().filter(first).map(|name| format!("\"{name}\"")).collect();
    match names.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn complaints_name_file_key_expected_and_found() {
        let object = json!({ "a": -1, "b": "maybe", "c": "gelu_10", "d": [1, 2, 3], "e": 0, "f": 1e30 });
        let fields = Fields::new(Path::new("m/config.json"), &object);
        for (message, parts) in [
            (fields.count_or("a", None).unwrap_err(), ["`a`", "whole number", "-1"]),
            (fields.count_or("e", Some(3)).unwrap_err(), ["`e`", "whole number", "0"]),
            (fields.count_or("f", None).unwrap_err(), ["`f`", "whole number", "1e+30"]),
            (fields.count_or("z", None).unwrap_err(), ["`z`", "missing", "m/config.json"]),
            (fields.flag_or("b", true).unwrap_err(), ["`b`", "true or false", "maybe"]),
            (fields.number_from_zero("a", 1.0).unwrap_err(), ["`a`", "not negative", "-1"]),
            (fields.any_activation("c", "relu").unwrap_err(), ["`c`", "quick_gelu", "gelu_10"]),
            (fields.size("d", 1).unwrap_err(), ["`d`", "list of two", "[1,2,3]"]),
            (fields.size("e", 1).unwrap_err(), ["`e`", "from 1 to 65536", "0"]),
        ] {
            let message = message.to_string();
            assert!(message.starts_with("m/config.json: "), "{message}");
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
        assert_eq!(fields.size("z", 7).unwrap(), (7, 7));
        assert_eq!(fields.any_activation("z", "relu").unwrap(), Activation::Relu);
        assert_eq!(fields.number_from_zero("e", 1.0).unwrap(), 0.0);
    }
}
