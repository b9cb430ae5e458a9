//! Which files of a model are needed. Repositories often hold the same weights several times; one of them is taken.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::name::path_fault;
use crate::{HubFault, PathFilter, checkpoint::is_side_file, name::similar};

/// What is wanted of a model.
#[derive(Debug, Clone)]
pub enum Want {
    /// Weights, and what belongs to them: safetensors before PyTorch's files before a single GGUF.
    Model,
    /// As [`Model`](Self::Model), but a GGUF before all others.
    Gguf,
    /// The files whose paths match, and no others.
    Matching(PathFilter),
    /// Files of a data set, and no others; what is opened is the file or folder that was asked for.
    Data {
        /// Whether the file of that path is wanted.
        reads: fn(&str) -> bool,
        /// Names of files that may have to lie beside the file of that path.
        beside: fn(&str) -> Vec<String>,
    },
}

/// Files of a model that are needed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    /// Paths, in the order to fetch them.
    pub files: Vec<String>,
    /// The index among them that names further ones.
    pub index: Option<String>,
    /// The folder they lie in, with a slash at its end; empty for the whole model.
    pub folder: String,
    /// The file to open where opening the folder would take in others too.
    pub open: Option<String>,
}

/// Names shown in a message.
const SHOWN: usize = 12;

/// Chooses among `paths`; `inside` names a file or a folder of the model.
pub(super) fn choose(paths: &[&str], inside: Option<&str>, want: &Want) -> Result<Choice, (HubFault, String)> {
    if let Want::Matching(filter) = want {
        let below =
            |path: &&&str| inside.is_none_or(|inside| **path == inside || is_below(path, &format!("{inside}/")));
        let files: Vec<String> =
            paths.iter().filter(below).filter(|path| filter.matches(path)).map(|path| (*path).to_string()).collect();
        return match files.is_empty() {
            true => Err((HubFault::NoFile, format!("no file matches; {}", there_are(paths)))),
            false => Ok(Choice { files, ..Choice::default() }),
        };
    }
    if let Want::Data { reads, beside } = want {
        return data(paths, inside, *reads, *beside);
    }
    let folder = match inside {
        None => String::new(),
        Some(file) if paths.contains(&file) => return Ok(one_file(paths, file)),
        Some(folder) => folder_of(paths, folder)?,
    };
    let names: BTreeSet<&str> =
        paths.iter().filter_map(|path| path.strip_prefix(&folder)).filter(|name| !name.contains('/')).collect();
    let with = |weights: &[&str], index: Option<&str>, open: Option<&str>| {
        let path = |name: &str| format!("{folder}{name}");
        Choice {
            files: sides(&names)
                .chain(paths.iter().filter_map(|path| path.strip_prefix(&folder)).filter(|name| is_sentence_file(name)))
                .chain(index)
                .chain(weights.iter().copied())
                .map(path)
                .collect(),
            index: index.map(path),
            folder: folder.clone(),
            open: open.map(path),
        }
    };
    let ending = |ending: &str| -> Vec<&str> { names.iter().copied().filter(|name| name.ends_with(ending)).collect() };
    let ggufs: Vec<&str> =
        paths.iter().copied().filter(|path| path.ends_with(".gguf") && is_below(path, &folder)).collect();
    if matches!(want, Want::Gguf) && !ggufs.is_empty() {
        return one_gguf(&ggufs);
    }

    let shards = ending(".safetensors");
    let (index, single) = ("model.safetensors.index.json", "model.safetensors");
    if names.contains(index) {
        return Ok(with(&[], Some(index), None));
    }
    if names.contains(single) {
        return Ok(with(&[single], None, (shards.len() > 1).then_some(single)));
    }
    match shards.as_slice() {
        [] => {}
        [_] => return Ok(with(&shards, None, None)),
        several if is_one_set(several) => return Ok(with(&shards, None, None)),
        several => return Err(several_files("safetensors", several)),
    }

    let (index, single) = ("pytorch_model.bin.index.json", "pytorch_model.bin");
    if names.contains(index) {
        return Ok(with(&[], Some(index), None));
    }
    if names.contains(single) {
        return Ok(with(&[single], None, None));
    }
    if !ggufs.is_empty() {
        return one_gguf(&ggufs);
    }
    let what = format!("it has no weights in safetensors, pytorch_model.bin or GGUF; {}", there_are(paths));
    Err((HubFault::NoFile, what))
}

/// The folder `inside` of `paths`, with a slash at its end.
fn folder_of(paths: &[&str], inside: &str) -> Result<String, (HubFault, String)> {
    let folder = format!("{}/", inside.trim_end_matches('/'));
    if paths.iter().any(|path| is_below(path, &folder)) {
        return Ok(folder);
    }
    let near = similar(inside, paths.iter().copied());
    let what = match near.as_slice() {
        [] => there_are(paths),
        near => format!("did you mean {}?", quoted(near).join(" or ")),
    };
    Err((HubFault::NoFile, format!("it has no file of this name; {what}")))
}

/// The files of a data set that are read: those of a folder and of the folders in it, or one, with those beside it. Hidden
/// ones are left out.
fn data(
    paths: &[&str],
    inside: Option<&str>,
    reads: fn(&str) -> bool,
    beside: fn(&str) -> Vec<String>,
) -> Result<Choice, (HubFault, String)> {
    if let Some(file) = inside.filter(|file| paths.contains(file)) {
        if !reads(file) {
            let what = format!("`{}` is of no kind that can be read here; {}", file.escape_debug(), there_are(paths));
            return Err((HubFault::NoFile, what));
        }
        let folder = file.rsplit_once('/').map_or("", |(folder, _)| &file[..=folder.len()]);
        let mut files: Vec<String> = beside(file).into_iter().map(|name| format!("{folder}{name}")).collect();
        files.retain(|path| paths.contains(&path.as_str()));
        files.push(file.to_string());
        return Ok(Choice { files, folder: folder.to_string(), open: Some(file.to_string()), index: None });
    }
    let folder = inside.map_or(Ok(String::new()), |inside| folder_of(paths, inside))?;
    let visible =
        |path: &str| path.strip_prefix(&folder).is_some_and(|rest| !rest.split('/').any(|part| part.starts_with('.')));
    let wanted = paths.iter().copied().filter(|path| visible(path) && reads(path));
    let files: Vec<String> = wanted.map(str::to_string).collect();
    match files.is_empty() {
        true => Err((HubFault::NoFile, format!("it has no file that can be read here; {}", there_are(paths)))),
        false => Ok(Choice { files, folder, ..Choice::default() }),
    }
}

/// The files that an index lists, in the index's own folder.
pub(super) fn listed(index: &str, bytes: &[u8]) -> Result<Vec<String>, String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let parsed: Index =
        serde_json::from_slice(bytes).map_err(|error| format!("`{index}` is no index of weights: {error}"))?;
    let folder = index.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
    let files: BTreeSet<&String> = parsed.weight_map.values().collect();
    if files.is_empty() {
        return Err(format!("`{index}` lists no weights"));
    }
    files
        .into_iter()
        .map(|file| match path_fault(file) {
            None => Ok(format!("{folder}{file}")),
            Some(fault) => Err(format!("`{index}` places weights in a file that {fault}; do not use this model")),
        })
        .collect()
}

fn is_below(path: &str, folder: &str) -> bool {
    path.starts_with(folder)
}

fn one_file(paths: &[&str], file: &str) -> Choice {
    let (folder, name) = file.rsplit_once('/').map_or(("", file), |(folder, name)| (&file[..=folder.len()], name));
    let names: BTreeSet<&str> = paths.iter().filter_map(|path| path.strip_prefix(folder)).collect();
    let mut files: Vec<String> = match name.ends_with(".gguf") {
        true => Vec::new(), // a GGUF holds its configuration and tokenizer itself
        false => sides(&names).filter(|side| *side != name).map(|side| format!("{folder}{side}")).collect(),
    };
    files.push(file.to_string());
    let index = name.ends_with(".index.json").then(|| file.to_string());
    Choice { files, index, folder: folder.to_string(), open: Some(file.to_string()) }
}

fn one_gguf(files: &[&str]) -> Result<Choice, (HubFault, String)> {
    match files {
        [file] => Ok(one_file(&[], file)),
        several => Err(several_files("GGUF", several)),
    }
}

/// Files that a model is not complete without, or that travel with it.
fn sides<'a>(names: &BTreeSet<&'a str>) -> impl Iterator<Item = &'a str> {
    const OURS: [&str; 4] = ["config.json", "quantize_config.json", "quant_config.json", "scruple.json"];
    names.iter().copied().filter(|name| !name.contains('/') && (OURS.contains(name) || is_side_file(name)))
}

/// Whether a file tells how an encoder's hidden states become one vector, as sentence-transformers lays it down.
fn is_sentence_file(name: &str) -> bool {
    match name.split_once('/') {
        None => ["modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"].contains(&name),
        // `1_Pooling/config.json` and its like.
        Some((folder, file)) => {
            let number = folder.split_once('_').map_or("", |(number, _)| number);
            file == "config.json" && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        }
    }
}

/// Whether `names` are `stem-00001-of-0000N.safetensors` of one stem and one N.
fn is_one_set(names: &[&str]) -> bool {
    let set = |name: &str| {
        let (rest, of) = name.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        number.bytes().all(|byte| byte.is_ascii_digit()).then(|| (stem.to_string(), of.to_string()))
    };
    let sets: BTreeSet<_> = names.iter().map(|name| set(name)).collect();
    sets.len() == 1 && !sets.contains(&None)
}

fn several_files(kind: &str, files: &[&str]) -> (HubFault, String) {
    let what = format!(
        "it has {} {kind} files that could be meant; name one behind a colon, as in `:{}` (there are {})",
        files.len(),
        files[0].escape_debug(),
        shown(files)
    );
    (HubFault::Ambiguous, what)
}

fn there_are(paths: &[&str]) -> String {
    match paths {
        [] => "it has no files at all".to_string(),
        paths => format!("it has {}", shown(paths)),
    }
}

fn shown(paths: &[&str]) -> String {
    let mut list = quoted(&paths[..paths.len().min(SHOWN)]);
    if paths.len() > SHOWN {
        list.push(format!("{} more", paths.len() - SHOWN));
    }
    list.join(", ")
}

fn quoted(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| format!("`{}`", name.escape_debug())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(paths: &[&str], inside: Option<&str>, want: &Want) -> Vec<String> {
        choose(paths, inside, want).unwrap().files
    }

    #[test]
    fn one_form_of_the_weights_is_taken() {
        let all = [
            "README.md",
            "config.json",
            "flax_model.msgpack",
            "model.safetensors",
            "onnx/model.onnx",
            "pytorch_model.bin",
            "tokenizer.json",
            "training_args.bin",
        ];
        let sides = ["README.md", "config.json", "tokenizer.json"];
        assert_eq!(files(&all, None, &Want::Model), [&sides[..], &["model.safetensors"]].concat());
        let without: Vec<&str> = all.iter().copied().filter(|path| !path.ends_with(".safetensors")).collect();
        assert_eq!(files(&without, None, &Want::Model), [&sides[..], &["pytorch_model.bin"]].concat());
    }

    #[test]
    fn a_sentence_encoder_comes_with_its_pooling() {
        let all = [
            "1_Pooling/config.json",
            "2_Dense/model.safetensors",
            "config.json",
            "config_sentence_transformers.json",
            "data_1/config.json",
            "model.safetensors",
            "modules.json",
            "onnx/config.json",
            "sentence_bert_config.json",
        ];
        let expected = [
            "config.json",
            "1_Pooling/config.json",
            "config_sentence_transformers.json",
            "modules.json",
            "sentence_bert_config.json",
            "model.safetensors",
        ];
        assert_eq!(files(&all, None, &Want::Model), expected);
    }

    #[test]
    fn an_index_stands_for_its_shards() {
        let paths = [
            "config.json",
            "consolidated.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        ];
        let choice = choose(&paths, None, &Want::Model).unwrap();
        assert_eq!(choice.files, ["config.json", "model.safetensors.index.json"]);
        assert_eq!(choice.index.as_deref(), Some("model.safetensors.index.json"));
        assert_eq!(files(&paths[2..4], None, &Want::Model), paths[2..4]);

        let map = br#"{"weight_map":{"a":"x-2.bin","b":"x-1.bin","c":"x-2.bin"}}"#;
        assert_eq!(listed("sub/i.json", map).unwrap(), ["sub/x-1.bin", "sub/x-2.bin"]);
        assert!(listed("i.json", br#"{"weight_map":{"a":"../../x"}}"#).unwrap_err().contains("leads out"));
        assert!(listed("i.json", b"<html>").is_err() && listed("i.json", br#"{"weight_map":{}}"#).is_err());
    }

    #[test]
    fn other_weights_in_the_folder_are_left_alone() {
        let paths = ["consolidated.safetensors", "model.safetensors"];
        let choice = choose(&paths, None, &Want::Model).unwrap();
        assert_eq!((choice.files, choice.open.as_deref()), (vec![paths[1].to_string()], Some(paths[1])));
    }

    #[test]
    fn several_ggufs_ask_for_one() {
        let paths = ["README.md", "m-Q4_0.gguf", "m-Q8_0.gguf"];
        let (fault, what) = choose(&paths, None, &Want::Model).unwrap_err();
        assert_eq!(fault, HubFault::Ambiguous);
        assert!(what.contains("`:m-Q4_0.gguf`") && what.contains("`m-Q8_0.gguf`"), "{what}");
        let choice = choose(&paths, Some("m-Q8_0.gguf"), &Want::Model).unwrap();
        assert_eq!((choice.files, choice.open.as_deref()), (vec!["m-Q8_0.gguf".to_string()], Some("m-Q8_0.gguf")));
        assert_eq!(files(&["model.safetensors", "sub/m.gguf"], None, &Want::Gguf), ["sub/m.gguf"]);
        assert_eq!(files(&["model.safetensors"], None, &Want::Gguf), ["model.safetensors"]);
    }

    #[test]
    fn a_folder_of_the_model_is_a_model() {
        let paths = ["config.json", "model.safetensors", "small/config.json", "small/model.safetensors"];
        let choice = choose(&paths, Some("small"), &Want::Model).unwrap();
        assert_eq!((choice.files, choice.folder.as_str()), (vec![paths[2].into(), paths[3].into()], "small/"));
        let (fault, what) = choose(&paths, Some("smal/config.json"), &Want::Model).unwrap_err();
        assert_eq!(fault, HubFault::NoFile);
        assert!(what.contains("`small/config.json`"), "{what}");
    }

    #[test]
    fn a_pattern_takes_what_matches() {
        let filter = PathFilter::new(vec!["*.json".into()], Vec::new()).unwrap();
        assert_eq!(files(&["a.json", "b.bin", "sub/c.json"], None, &Want::Matching(filter)), ["a.json", "sub/c.json"]);
    }
}
