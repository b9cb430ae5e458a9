//! Names: of models, data sets, revisions and files. Those a user gives are checked before a request is made of them, those a
//! server gives before a path is.

use std::{fmt, str::FromStr};

use serde::Serialize;

use crate::{Error, HubFault, Result};

/// The best known hub, where no other is configured.
pub const PUBLIC_ENDPOINT: &str = "https://huggingface.co";

/// Longest `org/name`.
const MAX_ID: usize = 96;

/// What a repository of a hub holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A model.
    Model,
    /// A data set: below `datasets/` in addresses.
    Dataset,
}

impl Kind {
    /// In a sentence.
    pub(super) fn noun(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "data set",
        }
    }

    /// What stands before `--org--name` in the cache, and behind `api/` in addresses.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }

    /// What stands before `org/name` in addresses of pages and files.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => "datasets/",
        }
    }
}

/// `org/name`, well formed: it can stand in an address and in a folder's name as it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct RepoId(String);

impl RepoId {
    /// Checks `text`.
    ///
    /// # Errors
    /// A sentence's end that says what is wrong.
    pub fn new(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let [_, _] = parts.as_slice() else { return Err("expected `org/name`".into()) };
        for part in parts {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if part.is_empty() || !part.chars().all(plain) {
                return Err(format!("`{}` should be letters, digits, `-`, `_` and `.`", part.escape_debug()));
            }
            if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) || part.contains("--") || part.contains("..")
            {
                return Err(format!("`{part}` should not begin or end with `-` or `.`, or hold `--` or `..`"));
            }
        }
        if text.len() > MAX_ID {
            return Err(format!("expected at most {MAX_ID} characters, found {}", text.len()));
        }
        Ok(Self(text.to_string()))
    }

    /// `org/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What follows the slash.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, name)| name)
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A model or data set of the hub as it is asked for: `org/name`, `org/name@revision`, `org/name@revision:file`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubRepo {
    /// What it is.
    pub kind: Kind,
    /// `org/name`.
    pub repo: RepoId,
    /// A branch, tag or commit; the branch `main` without it.
    pub revision: Option<String>,
    /// A file in it, or a folder.
    pub inside: Option<String>,
    /// The host an address was written with.
    pub host: Option<String>,
}

impl HubRepo {
    /// The revision asked for.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The folder of a cache that belongs to it. `--` is in no name, so no two share one.
    pub(super) fn folder(&self) -> String {
        format!("{}--{}", self.kind.plural(), self.repo.as_str().replace('/', "--"))
    }

    /// Where it lies below the endpoint: `org/name`, `datasets/org/name`.
    pub(super) fn page(&self) -> String {
        format!("{}{}", self.kind.prefix(), self.repo)
    }

    /// Reads a data set: `org/name[@revision][:path]`, or an address as [`from_address`](Self::from_address) reads it.
    ///
    /// # Errors
    /// If it is not well formed.
    pub fn dataset(text: &str) -> Result<Self> {
        match text.contains("://") {
            true => Self::from_address(text, Kind::Dataset),
            false => Self::read(text, Kind::Dataset),
        }
    }

    /// An address of a model as a browser shows it: `https://host/org/name`, then perhaps `/tree/revision/folder`,
    /// `/blob/revision/file` or `/resolve/revision/file`; or `hf://org/name@revision:file`. Of a data set, `org/name` has
    /// `datasets/` before it, which may be left out after `hf://`.
    ///
    /// # Errors
    /// If it is no address of that kind.
    pub fn from_address(address: &str, kind: Kind) -> Result<Self> {
        let (noun, prefix) = (kind.noun(), kind.prefix());
        let refuse = |what: &str| Error::Hub {
            model: address.to_string(),
            fault: HubFault::Request,
            what: format!(
                "{what}; an address of a {noun} reads `hf://{prefix}org/name@revision` or \
                 `{PUBLIC_ENDPOINT}/{prefix}org/name/tree/revision`"
            ),
        };
        let (scheme, rest) = address.split_once("://").ok_or_else(|| refuse("no address"))?;
        if scheme == "hf" {
            return Self::read(rest.strip_prefix(prefix).unwrap_or(rest), kind);
        }
        if !matches!(scheme, "https" | "http") {
            return Err(refuse(&format!("`{scheme}://` is not understood")));
        }
        let path = rest.split(['?', '#']).next().unwrap_or_default();
        let mut parts = path.trim_end_matches('/').split('/').peekable();
        let host = parts.next().unwrap_or_default().to_ascii_lowercase();
        let is_dataset = parts.next_if_eq(&"datasets").is_some();
        if is_dataset != (kind == Kind::Dataset) {
            return Err(refuse(if is_dataset { "it is of a data set" } else { "it is not of a data set" }));
        }
        let id = [parts.next(), parts.next()].map(Option::unwrap_or_default).join("/");
        let repo = RepoId::new(&id).map_err(|what| refuse(&what))?;
        let mut found = Self { kind, repo, revision: None, inside: None, host: Some(host) };
        match parts.next() {
            None => {}
            Some("tree" | "blob" | "resolve" | "raw") => {
                let decode = |part: &str| decode(part).ok_or_else(|| refuse("its percent signs encode no text"));
                found.revision = parts.next().map(decode).transpose()?;
                let inside = parts.map(decode).collect::<Result<Vec<_>>>()?.join("/");
                found.inside = Some(inside).filter(|inside| !inside.is_empty());
            }
            Some(other) => return Err(refuse(&format!("`/{}` is no part of a {noun}", other.escape_debug()))),
        }
        found.checked(address)
    }

    fn checked(self, written: &str) -> Result<Self> {
        let refuse = |what| Error::Hub { model: written.to_string(), fault: HubFault::Request, what };
        if let Some(fault) = self.revision.as_deref().and_then(revision_fault) {
            return Err(refuse(format!("the revision {fault}; expected a branch, tag or commit")));
        }
        let example = match self.kind {
            Kind::Model => "sub/model.gguf",
            Kind::Dataset => "sub/test.jsonl",
        };
        if let Some(fault) = self.inside.as_deref().and_then(path_fault) {
            return Err(refuse(format!(
                "the file {fault}; expected a path inside the {}, like `{example}`",
                self.kind.noun()
            )));
        }
        Ok(self)
    }
}

impl FromStr for HubRepo {
    type Err = Error;

    /// Reads the model `org/name[@revision][:file]`.
    fn from_str(text: &str) -> Result<Self> {
        Self::read(text, Kind::Model)
    }
}

impl HubRepo {
    fn read(text: &str, kind: Kind) -> Result<Self> {
        let (rest, inside) = match text.split_once(':') {
            Some((rest, inside)) => (rest, Some(inside.to_string())),
            None => (text, None),
        };
        let (id, revision) = match rest.split_once('@') {
            Some((id, revision)) => (id, Some(revision.to_string())),
            None => (rest, None),
        };
        let repo = RepoId::new(id).map_err(|what| Error::Hub {
            model: text.to_string(),
            fault: HubFault::Request,
            what: format!(
                "{what}; a {} of the hub reads `org/name`, `org/name@revision` or `org/name@revision:file`",
                kind.noun()
            ),
        })?;
        Self { kind, repo, revision, inside, host: None }.checked(text)
    }
}

impl fmt::Display for HubRepo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.repo)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        if let Some(inside) = &self.inside {
            write!(f, ":{inside}")?;
        }
        Ok(())
    }
}

/// What keeps `revision` from being the name of a branch, tag or commit.
fn revision_fault(revision: &str) -> Option<String> {
    let odd = |c: char| c.is_control() || matches!(c, ' ' | '~' | '^' | ':' | '?' | '*' | '[' | '\\');
    if revision.is_empty() || revision.len() > 255 || revision.contains(odd) || revision.contains("..") {
        return Some(format!("`{}` is no name that git allows", revision.escape_debug()));
    }
    path_fault(revision)
}

/// What keeps `path` from naming a file inside a folder, as a sentence's end; none if it does.
pub(super) fn path_fault(path: &str) -> Option<String> {
    let what = if path.is_empty() {
        "is empty"
    } else if path.len() > 1024 {
        return Some(format!(
            "`{}…` has {} characters",
            path.chars().take(40).collect::<String>().escape_debug(),
            path.len()
        ));
    } else if path.contains(char::is_control) {
        "holds control characters"
    } else if path.contains('\\') || path.as_bytes().get(1) == Some(&b':') {
        "is a path of another system"
    } else if path.starts_with('/') {
        "is an absolute path"
    } else if path.split('/').any(|part| matches!(part, "." | "..")) {
        "leads out of its folder"
    } else if path.split('/').any(|part| part.is_empty() || part.len() > 255) {
        "is no path"
    } else {
        return None;
    };
    Some(format!("`{}` {what}", path.escape_debug()))
}

/// Whether a server's tag of a file can be the name of a file here.
pub(super) fn is_plain_tag(tag: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (8..=128).contains(&tag.len()) && tag.chars().all(plain) && !tag.starts_with('.') && !tag.contains("incomplete")
}

/// Whether `text` is a whole commit: 40 or 64 hexadecimal digits.
pub(super) fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// `text` as part of an address; slashes too unless `keep_slashes`.
pub(super) fn encode(text: &str, keep_slashes: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            b'/' if keep_slashes => out.push('/'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_read_as_they_are_written() {
        for (text, repo, revision, inside) in [
            ("org/name", "org/name", None, None),
            ("org/name@v1.0", "org/name", Some("v1.0"), None),
            ("org/name@refs/pr/1", "org/name", Some("refs/pr/1"), None),
            ("org/name:sub/q4.gguf", "org/name", None, Some("sub/q4.gguf")),
            ("o_1/n-2.5@dev:q4.gguf", "o_1/n-2.5", Some("dev"), Some("q4.gguf")),
        ] {
            let model: HubRepo = text.parse().unwrap();
            assert_eq!(
                (model.repo.as_str(), model.revision.as_deref(), model.inside.as_deref()),
                (repo, revision, inside)
            );
            assert_eq!(model.to_string(), text);
            assert_eq!(HubRepo::from_address(&format!("hf://{text}"), Kind::Model).unwrap(), model);
        }
        for (address, text) in [
            ("https://huggingface.co/org/name", "org/name"),
            ("https://HuggingFace.co/org/name/?x=1#top", "org/name"),
            ("https://huggingface.co/org/name/tree/refs%2Fpr%2F1", "org/name@refs/pr/1"),
            ("https://huggingface.co/org/name/tree/main/onnx", "org/name@main:onnx"),
            ("http://127.0.0.1:80/org/name/resolve/main/q4.gguf?download=true", "org/name@main:q4.gguf"),
        ] {
            assert_eq!(HubRepo::from_address(address, Kind::Model).unwrap().to_string(), text, "{address}");
        }
    }

    #[test]
    fn data_sets_lie_below_a_folder_of_their_own() {
        for (text, shown) in [
            ("org/name", "org/name"),
            ("org/name@v1:dev/a.jsonl", "org/name@v1:dev/a.jsonl"),
            ("hf://datasets/org/name@v1", "org/name@v1"),
            ("hf://org/name", "org/name"),
            ("https://huggingface.co/datasets/org/name/tree/main/dev", "org/name@main:dev"),
        ] {
            let dataset = HubRepo::dataset(text).unwrap();
            assert_eq!((dataset.kind, dataset.to_string().as_str()), (Kind::Dataset, shown));
            assert_eq!(
                (dataset.folder().as_str(), dataset.page().as_str()),
                ("datasets--org--name", "datasets/org/name")
            );
        }
        let model: HubRepo = "org/name".parse().unwrap();
        assert_eq!((model.folder().as_str(), model.page().as_str()), ("models--org--name", "org/name"));
        let said = |result: Result<HubRepo>| result.unwrap_err().to_string();
        let address = "https://huggingface.co/datasets/org/name";
        assert!(
            said(HubRepo::from_address(address, Kind::Model)).contains("it is of a data set; an address of a model")
        );
        let address = "https://huggingface.co/org/name";
        assert!(said(HubRepo::dataset(address)).contains("it is not of a data set; an address of a data set reads"));
        assert!(said(HubRepo::dataset("name")).contains("a data set of the hub reads `org/name`"));
        assert!(said(HubRepo::dataset("org/name:../x")).contains("a path inside the data set, like `sub/test.jsonl`"));
    }

    #[test]
    fn what_is_no_model_is_refused() {
        for text in [
            "name",
            "a/b/c",
            "./model",
            "../model",
            "/org/name",
            "org/",
            "org/na me",
            "org/-name",
            "org/a..b",
            "org/a--b",
            "org/name@",
            "org/name@../x",
            "org/name@a b",
            "org/name:",
            "org/name:../x",
            "org/name:/etc/passwd",
            "ö/name",
            "org/name:a\\b",
            "org/name@/abs",
        ] {
            assert!(text.parse::<HubRepo>().is_err(), "{text}");
        }
        for address in [
            "ftp://host/org/name",
            "https://huggingface.co/org",
            "https://h/org/name/discussions/1",
            "https://h/o/n/tree/%zz",
        ] {
            assert!(HubRepo::from_address(address, Kind::Model).is_err(), "{address}");
        }
    }

    #[test]
    fn paths_that_leave_their_folder_are_told() {
        for path in ["../x", "a/../../x", "/etc/passwd", "a\\b", "C:x", "a\0b", "", "a//b", "./a", "a/.."] {
            assert!(path_fault(path).is_some(), "{path:?}");
        }
        for path in ["model.safetensors", "sub/folder/x.json", ".gitattributes", "a b.txt", "…/x"] {
            assert_eq!(path_fault(path), None, "{path:?}");
        }
        assert!(!is_plain_tag("../../etc/passwd") && !is_plain_tag("") && is_plain_tag(&"0f".repeat(20)));
    }
}
