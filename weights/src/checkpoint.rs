//! A model on disk: a folder of shards (or one file), its configuration and the files beside it.
//!
//! Everything structural is decided when a checkpoint is opened: after that a tensor is a slice of a map. All faults of
//! all files are reported together.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, btree_map::Entry, hash_map},
    fmt, fs,
    path::{Component, Path, PathBuf},
    sync::{Arc, OnceLock},
};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::Value;

use crate::{
    Error, Problem, Result, Shard, TensorView, digest,
    error::Problems,
    format::{self, FORMATS, Format, Metadata},
    name,
};

/// The index of a sharded checkpoint.
const INDEX: &str = "model.safetensors.index.json";
/// The index of one in PyTorch's form.
const TORCH_INDEX: &str = "pytorch_model.bin.index.json";
/// What training leaves beside a model in the same form: optimiser, schedule, random numbers, arguments.
const NOT_WEIGHTS: [&str; 6] = ["training_args", "optimizer", "scheduler", "scaler", "rng_state", "random_states"];

/// An opened checkpoint. Opening maps the files and reads their headers, not the weights.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    /// What was opened: the folder, or the single file.
    path: PathBuf,
    shards: Vec<Shard>,
    tensors: Vec<TensorView>,
    by_name: HashMap<Arc<str>, usize>,
    metadata: Metadata,
    config: OnceLock<Value>,
}

impl Checkpoint {
    /// Opens a folder, an index file, or a single file in any of the [`FORMATS`], which is recognised by its content.
    ///
    /// Of a folder, the first of these is opened: `model.safetensors.index.json`, all `*.safetensors`,
    /// `pytorch_model.bin.index.json`, `pytorch_model.bin` or the numbered parts of a PyTorch checkpoint, then the one
    /// file that is there of PyTorch, GGUF, ONNX and the rest in the order of [`FORMATS`].
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Io`] if `path` is no checkpoint at all; [`Error::Malformed`] with every structural
    /// fault otherwise: broken headers, missing shards, index entries without tensor and the reverse, names that stand
    /// in two shards.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let kind = fs::metadata(path).map_err(|source| Error::io(path, "open the checkpoint", source))?;
        if kind.is_dir() {
            return Self::open_folder(path);
        }
        let dir = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        if path.extension().is_some_and(|extension| extension == "json") {
            return Self::open_index(dir, path);
        }
        Self::join(dir, path, vec![path.to_path_buf()], Problems::default(), None)
    }

    fn open_folder(dir: &Path) -> Result<Self> {
        let index = dir.join(INDEX);
        if index.symlink_metadata().is_ok() {
            let mut opened = Self::open_index(dir, &index)?;
            opened.path = dir.to_path_buf();
            return Ok(opened);
        }
        let names = file_names(dir)?;
        let ending = |ending: &str| -> Vec<PathBuf> {
            names.iter().filter(|name| name.ends_with(ending)).map(|name| dir.join(name)).collect()
        };
        let shards = ending(".safetensors");
        if !shards.is_empty() {
            let problems = missing_numbers(dir, &names, ".safetensors");
            return Self::join(dir, dir, shards, problems, None);
        }
        let index = dir.join(TORCH_INDEX);
        if index.symlink_metadata().is_ok() {
            let mut opened = Self::open_index(dir, &index)?;
            opened.path = dir.to_path_buf();
            return Ok(opened);
        }
        if names.iter().any(|name| name == "pytorch_model.bin") {
            return Self::join(dir, dir, vec![dir.join("pytorch_model.bin")], Problems::default(), None);
        }
        let parts: Vec<PathBuf> =
            names.iter().filter(|name| numbered(name, ".bin").is_some()).map(|name| dir.join(name)).collect();
        if !parts.is_empty() {
            let problems = missing_numbers(dir, &names, ".bin");
            return Self::join(dir, dir, parts, problems, None);
        }
        let shard = single_file(dir, &names)?;
        Self::join(dir, dir, vec![shard], Problems::default(), None)
    }

    fn open_index(dir: &Path, path: &Path) -> Result<Self> {
        let index = read_index(path)?;
        if index.weight_map.is_empty() {
            return Err(Error::file(path, "the index lists no tensors; fetch it again"));
        }
        let mut problems = Problems::default();
        for name in &index.twice {
            problems.push(path, Some(name), "stands in `weight_map` more than once");
        }
        let mut files = BTreeMap::new();
        for (tensor, file) in &index.weight_map {
            if plain_relative(file) {
                *files.entry(file.as_str()).or_insert(0usize) += 1;
            } else {
                let what = format!(
                    "lies in `{}` according to the index; expected a file inside the checkpoint's folder",
                    file.escape_debug()
                );
                problems.push(path, Some(tensor), what);
            }
        }
        let mut shards = Vec::new();
        for (file, count) in files {
            let shard = dir.join(file);
            // Other reasons why it cannot be opened show up when that is tried.
            if shard.try_exists().unwrap_or(true) {
                shards.push(shard);
            } else {
                let what = format!("the shard is missing: the index places {count} tensors in it; fetch it again");
                problems.push(&shard, None, what);
            }
        }
        Self::join(dir, path, shards, problems, Some((path, &index.weight_map)))
    }

    /// Opens `shards` and joins them, on top of the `problems` already known.
    fn join(
        dir: &Path,
        path: &Path,
        shards: Vec<PathBuf>,
        mut problems: Problems,
        index: Option<(&Path, &BTreeMap<String, String>)>,
    ) -> Result<Self> {
        let single = shards.len() == 1 && problems.is_empty();
        let mut opened = Self {
            dir: dir.to_path_buf(),
            path: path.to_path_buf(),
            shards: Vec::new(),
            tensors: Vec::new(),
            by_name: HashMap::new(),
            metadata: Metadata::new(),
            config: OnceLock::new(),
        };
        for shard in shards {
            match opened.add_shard(&shard, &mut problems) {
                Ok(()) => {}
                Err(Error::Malformed(more)) => problems.extend(more),
                Err(error) if single => return Err(error),
                Err(error) => problems.extend([as_problem(error)]),
            }
        }
        if let Some((index, weight_map)) = index {
            opened.compare(index, weight_map, &mut problems);
        }
        problems.or(opened)
    }

    fn add_shard(&mut self, path: &Path, problems: &mut Problems) -> Result<()> {
        let shard = Shard::open(path)?;
        let contents = format::read(&shard)?;
        let mut tensors = contents.tensors;
        self.by_name.reserve(tensors.len());
        let mut twice = HashSet::new();
        for (at, tensor) in tensors.iter().enumerate() {
            let (block, _) = tensor.dtype.block();
            if block > 1 && tensor.shape.last().is_some_and(|len| len % block != 0) {
                let what =
                    format!("has shape {:?}, whose rows are no whole {} blocks of {block}", tensor.shape, tensor.dtype);
                problems.push(path, Some(&tensor.name), what);
            }
            let index = self.tensors.len() + at - twice.len();
            match self.by_name.entry(tensor.name.clone()) {
                hash_map::Entry::Vacant(place) => _ = place.insert(index),
                hash_map::Entry::Occupied(other) => {
                    let what = match self.tensors.get(*other.get()) {
                        Some(other) => format!("also lies in {}", other.file().display()),
                        None => "stands in the file more than once".to_owned(),
                    };
                    problems.push(path, Some(&tensor.name), what);
                    twice.insert(at);
                }
            }
        }
        if !twice.is_empty() {
            let mut at = 0..;
            tensors.retain(|_| at.next().is_none_or(|at| !twice.contains(&at)));
        }
        if self.tensors.is_empty() {
            self.tensors = tensors;
        } else {
            self.tensors.extend(tensors);
        }
        for (key, value) in contents.metadata {
            self.metadata.entry(key).or_insert(value);
        }
        if let Some(config) = contents.config {
            self.config.get_or_init(|| config);
        }
        self.shards.push(shard);
        self.shards.extend(contents.parts);
        Ok(())
    }

    /// Holds the index against what the shards really contain.
    fn compare(&self, index: &Path, weight_map: &BTreeMap<String, String>, problems: &mut Problems) {
        let read: HashSet<&Path> = self.shards.iter().map(Shard::path).collect();
        for (name, file) in weight_map {
            let file = self.dir.join(file);
            match self.get(name) {
                Some(tensor) if tensor.file() == file => {}
                Some(tensor) => {
                    let what = format!("lies in {}, not in this file as the index says", tensor.file().display());
                    problems.push(&file, Some(name), what);
                }
                None if !read.contains(file.as_path()) => {} // reported already
                None => {
                    let what = format!("is missing, although {} places it in this file", index.display());
                    problems.push(&file, Some(name), what);
                }
            }
        }
        for tensor in &self.tensors {
            if !weight_map.contains_key(tensor.name()) {
                let what = format!("is not listed in {}", index.display());
                problems.push(tensor.file(), Some(tensor.name()), what);
            }
        }
    }

    /// This checkpoint as one that holds only the tensors of `names`, given as (old name, new name) and in that order, and
    /// that is configured by `config`: over the same maps, nothing copied. The files beside it are this one's.
    ///
    /// # Errors
    /// If an old name is not there or a new one comes twice.
    pub fn renamed(&self, names: &[(String, String)], config: Value) -> Result<Self> {
        let mut tensors = Vec::with_capacity(names.len());
        let mut by_name = HashMap::with_capacity(names.len());
        for (old, new) in names {
            let new: Arc<str> = new.as_str().into();
            tensors.push(TensorView { name: new.clone(), ..self.tensor(old)? });
            if by_name.insert(new, tensors.len() - 1).is_some() {
                return Err(Error::tensor(&self.path, old, "would have a name that another tensor has too"));
            }
        }
        Ok(Self {
            dir: self.dir.clone(),
            path: self.path.clone(),
            shards: self.shards.clone(),
            tensors,
            by_name,
            metadata: self.metadata.clone(),
            config: OnceLock::from(config),
        })
    }

    /// The folder that holds the checkpoint.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What was opened: the folder, the index, or the single file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The mapped files, in order of their names; behind each the further files that its tensors lie in.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Every tensor: file by file in order of their names, within a file in order of its data, or in the order in which
    /// the file names them where it holds them in another order.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorView> {
        self.tensors.iter()
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// If there is none: the message names the checkpoint and up to three similar names.
    pub fn tensor(&self, name: &str) -> Result<TensorView> {
        self.get(name).ok_or_else(|| {
            let near = name::similar(name, self.tensors().map(TensorView::name));
            let hint = match near.as_slice() {
                [] => String::new(),
                near => format!(
                    "; did you mean {}?",
                    near.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or ")
                ),
            };
            let what = format!("is missing ({} tensors are there){hint}", self.tensors.len());
            Error::tensor(&self.path, name, what)
        })
    }

    /// The tensor called `name`, if there is one.
    pub fn get(&self, name: &str) -> Option<TensorView> {
        self.by_name.get(name).map(|&index| self.tensors[index].clone())
    }

    /// Whether there is a tensor called `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The model's configuration: what the weights' own file says where it says so (llama2.c), else `config.json`, read
    /// once.
    ///
    /// # Errors
    /// If the file is absent or not JSON.
    pub fn config(&self) -> Result<&Value> {
        if let Some(config) = self.config.get() {
            return Ok(config);
        }
        let path = self.dir.join("config.json");
        let text = fs::read(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => Error::file(
                &path,
                "the model's configuration is missing; a checkpoint folder needs it beside its weights (a GGUF file is made into such a folder by `scruple convert`)",
            ),
            _ => Error::io(&path, "read the model's configuration", source),
        })?;
        let config = serde_json::from_slice(&text)
            .map_err(|error| Error::file(&path, format!("the model's configuration is not valid JSON: {error}")))?;
        Ok(self.config.get_or_init(|| config))
    }

    /// The string metadata of the files; where shards disagree, the first one's.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.range.len() as u64).sum()
    }

    /// Elements of all tensors.
    pub fn parameters(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.elements() as u64).sum()
    }

    /// Gives the resident pages of every file back to the system.
    pub fn release_all(&self) {
        for shard in &self.shards {
            shard.release(0..shard.bytes().len());
        }
    }

    /// Refuses a checkpoint one of whose files was written to since it was opened; see [`Shard::expect_unchanged`].
    pub fn expect_unchanged(&self) -> Result<()> {
        self.shards.iter().try_for_each(Shard::expect_unchanged)
    }

    /// Which states of which files these are, without reading them; see [`Shard::identity`].
    pub fn identity(&self) -> Vec<String> {
        self.shards.iter().map(Shard::identity).collect()
    }

    /// One hash of every tensor's name, type, shape and bytes; see [`digest::fingerprint`].
    pub fn fingerprint(&self) -> String {
        digest::fingerprint(self.tensors())
    }

    /// [`Self::fingerprint`] and a hash of [`Self::config`]: what the model computes depends on both.
    ///
    /// # Errors
    /// As [`Self::config`].
    pub fn fingerprint_with_config(&self) -> Result<String> {
        let config = digest::json(self.config()?);
        Ok(format!("{} {config}", self.fingerprint()))
    }

    /// The files beside the weights that belong to the model and travel with it: tokenizer, generation settings, chat
    /// template, licence, model card. Sorted by name; `config.json` is not among them.
    pub fn side_files(&self) -> Vec<PathBuf> {
        let names = file_names(&self.dir).unwrap_or_default();
        let mut files: Vec<PathBuf> =
            names.iter().filter(|name| is_side_file(name)).map(|name| self.dir.join(name)).collect();
        // How sentence-transformers make a vector of hidden states; beside folders such as `1_Pooling`.
        if names.iter().any(|name| name == "modules.json") {
            let settings = ["modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"];
            files.extend(settings.into_iter().filter(|name| names.iter().any(|n| n == name)).map(|n| self.dir.join(n)));
            let modules = folder_names(&self.dir).into_iter().map(|name| self.dir.join(name).join("config.json"));
            files.extend(modules.filter(|file| file.is_file()));
        }
        files
    }
}

/// Folders of sentence-transformers' modules in `dir`, such as `1_Pooling`, sorted.
fn folder_names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let names = folders.filter_map(|entry| entry.file_name().into_string().ok());
    let is_module = |name: &String| name.split_once('_').is_some_and(|(number, _)| number.parse::<u32>().is_ok());
    let mut names: Vec<String> = names.filter(is_module).collect();
    names.sort();
    names
}

pub(crate) fn is_side_file(name: &str) -> bool {
    const EXACT: [&str; 12] = [
        "generation_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "preprocessor_config.json",
        "processor_config.json",
        "README.md",
        "NOTICE",
        "NOTICE.txt",
        "USE_POLICY.md",
    ];
    let starts = |prefix: &str| name.starts_with(prefix);
    EXACT.contains(&name)
        || starts("tokenizer") && (name.ends_with(".json") || name.ends_with(".model"))
        || name.ends_with(".spm") // sentencepiece vocabularies
        || starts("chat_template.")
        || starts("LICENSE")
        || starts("LICENCE")
}

/// Names of the regular files (or links to such) in `dir`, sorted.
fn file_names(dir: &Path) -> Result<Vec<String>> {
    let refuse = |source| Error::io(dir, "list the folder", source);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(refuse)? {
        let entry = entry.map_err(refuse)?;
        if let Ok(name) = entry.file_name().into_string()
            && !name.starts_with('.')
            && !entry.path().is_dir()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The one file of a folder that holds weights: of the first kind of which there is any, by name and content.
fn single_file(dir: &Path, names: &[String]) -> Result<PathBuf> {
    let mut named = None;
    for format in FORMATS {
        let fits = |name: &&String| {
            let stem = name.split('.').next().unwrap_or_default();
            format.endings.iter().any(|ending| name.ends_with(ending))
                && !NOT_WEIGHTS.iter().any(|other| stem.starts_with(other))
        };
        let fitting: Vec<&String> = names.iter().filter(fits).collect();
        let is = |name: &&&String| {
            Shard::open(dir.join(name))
                .is_ok_and(|shard| format::recognise(&shard).is_some_and(|found| found.name == format.name))
        };
        let there: Vec<&&String> = fitting.iter().filter(is).collect();
        match there.as_slice() {
            [] => named = named.or(fitting.first().copied()),
            [one] => return Ok(dir.join(one)),
            several => return Err(Error::file(dir, which(format, several))),
        }
    }
    // A file that has the name of weights and is something else: opening it says what.
    if let Some(name) = named {
        return Ok(dir.join(name));
    }
    let endings: Vec<String> =
        FORMATS.iter().flat_map(|format| format.endings).map(|ending| format!("*{ending}")).collect();
    let mut seen = BTreeSet::new();
    let endings: Vec<&str> = endings.iter().map(String::as_str).filter(|ending| seen.insert(*ending)).collect();
    Err(Error::file(dir, format!("expected {} or {INDEX} in the folder, found none", endings.join(", "))))
}

fn which(format: &Format, several: &[&&String]) -> String {
    const MOST: usize = 8;
    let mut names: Vec<String> = several.iter().take(MOST).map(|name| format!("`{name}`")).collect();
    if several.len() > MOST {
        names.push(format!("and {} more", several.len() - MOST));
    }
    format!("the folder holds {} {} files ({}); name the one to open", several.len(), format.name, names.join(", "))
}

/// Shards named `…-00002-of-00005` and `ending` whose siblings are absent.
fn missing_numbers(dir: &Path, names: &[String], ending: &str) -> Problems {
    let there: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let mut sets = BTreeMap::new();
    for name in names {
        if let Some(set) = numbered(name, ending) {
            sets.entry(set).or_insert(name);
        }
    }
    let mut problems = Problems::default();
    for ((stem, of, width), name) in sets {
        for number in 1..=of {
            let sibling = format!("{stem}-{number:0width$}-of-{of:0width$}{ending}");
            if !there.contains(sibling.as_str()) {
                let what = format!("the shard is missing, `{name}` says that there are {of}; fetch it again");
                problems.push(&dir.join(sibling), None, what);
            }
        }
    }
    problems
}

/// `stem`, total and digits of `stem-00002-of-00005` with `ending` behind.
fn numbered<'a>(name: &'a str, ending: &str) -> Option<(&'a str, usize, usize)> {
    let (rest, of) = name.strip_suffix(ending)?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.len() == of.len() && text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit());
    (digits(number) && digits(of)).then(|| Some((stem, of.parse().ok()?, of.len())))?
}

/// Whether `file` names something inside the folder it is joined to.
fn plain_relative(file: &str) -> bool {
    !file.is_empty()
        && !file.contains(['\0', '\\'])
        && Path::new(file).components().all(|component| matches!(component, Component::Normal(_)))
}

/// A failure to open one of several files, as an item of the list.
fn as_problem(error: Error) -> Problem {
    match error {
        Error::Io { file, action, source } => {
            Problem { file, tensor: None, what: format!("cannot {action}: {source}") }
        }
        Error::File { file, what } => Problem { file, tensor: None, what },
        Error::Tensor { file, tensor, what } => Problem { file, tensor: Some(tensor), what },
        other => Problem { file: PathBuf::new(), tensor: None, what: other.to_string() },
    }
}

/// `model.safetensors.index.json`.
#[derive(Default)]
struct Index {
    /// Tensor name to file name.
    weight_map: BTreeMap<String, String>,
    /// Names that come twice.
    twice: Vec<String>,
}

fn read_index(path: &Path) -> Result<Index> {
    // A pipe or folder under this name must not be waited for or read.
    let shard = Shard::open(path)?;
    let bytes = shard.bytes();
    if bytes.len() as u64 > format::safetensors::MAX_HEADER_BYTES {
        let what = format!("the index has {} bytes, more than 100 MB: this is not an index", bytes.len());
        return Err(Error::file(path, what));
    }
    if let Some(what) = format::foreign(path, bytes)
        && !bytes.starts_with(b"{")
    {
        return Err(Error::file(path, what));
    }
    #[derive(Deserialize)]
    struct File {
        weight_map: Index,
    }
    serde_json::from_slice::<File>(bytes)
        .map(|file| file.weight_map)
        .map_err(|error| Error::file(path, format!("the index is not valid: {error}; fetch it again")))
}

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Index;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`weight_map`, a map from tensor names to file names")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Index, A::Error> {
                let mut index = Index::default();
                while let Some((name, file)) = map.next_entry::<String, String>()? {
                    match index.weight_map.entry(name) {
                        Entry::Occupied(entry) => index.twice.push(entry.key().clone()),
                        Entry::Vacant(entry) => _ = entry.insert(file),
                    }
                }
                Ok(index)
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}
