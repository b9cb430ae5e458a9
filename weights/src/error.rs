//! What can be wrong with weights on disk. A message is one sentence that names the file, the tensor, what was
//! expected, what was found, and what to do.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One structural fault of a checkpoint; all faults of one opening are reported together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file at fault.
    pub file: PathBuf,
    /// The tensor at fault, where it is one tensor.
    pub tensor: Option<String>,
    /// What was expected and what was found.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file.display())?;
        if let Some(tensor) = &self.tensor {
            write!(f, "tensor `{tensor}` ")?;
        }
        f.write_str(&self.what)
    }
}

/// Any failure of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused.
    #[error("{}: cannot {action}", file.display())]
    Io {
        /// The file or folder.
        file: PathBuf,
        /// A verb phrase: `open the file`, `write 4096 bytes`.
        action: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A file is not what its place or name says (an HTML page, an LFS pointer, a truncated file, not a checkpoint).
    #[error("{}: {what}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What was expected, what was found, what to do.
        what: String,
    },
    /// A checkpoint has structural faults; every one found is listed.
    #[error("{}", list(.0))]
    Malformed(Vec<Problem>),
    /// A tensor cannot be used as asked.
    #[error("{}: tensor `{tensor}` {what}", file.display())]
    Tensor {
        /// The file that holds (or should hold) it.
        file: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What was expected and what was found.
        what: String,
    },
    /// An output does not fit on its disk.
    #[error("{}: {what}", file.display())]
    DiskFull {
        /// The file or folder that was to be written.
        file: PathBuf,
        /// How many bytes are needed and how many are missing.
        what: String,
    },
    /// A model or data set cannot be had from the hub.
    #[error("{model}: {what}")]
    Hub {
        /// The model or data set as it was asked for: `org/name@revision:file`.
        model: String,
        /// The kind of fault, for callers that go on from some of them.
        fault: HubFault,
        /// What was expected, what was found, what to do.
        what: String,
    },
    /// Arithmetic on another device than the processor failed: what it said, in one sentence.
    #[error("{0}")]
    Device(String),
    /// A pattern over names is not valid.
    #[error("pattern `{pattern}` {what}")]
    Pattern {
        /// The pattern as written.
        pattern: String,
        /// What is wrong with it, and what to write instead.
        what: String,
    },
}

/// Why a model or data set cannot be had from the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HubFault {
    /// What was asked for, or a setting, is not well formed.
    Request,
    /// Its terms have to be accepted first.
    Gated,
    /// The token is not valid, or may not read this.
    Token,
    /// There is no such model or data set, or it is not shown to this token.
    NoModel,
    /// It has no such branch, tag or commit.
    NoRevision,
    /// It has no such file, or none that is wanted.
    NoFile,
    /// The model has several files that could be meant.
    Ambiguous,
    /// The network is not to be used, and the cache does not hold what is needed.
    Offline,
    /// The hub cannot be reached, or breaks off again and again.
    Unreachable,
    /// The hub asks to wait for longer than is waited here.
    RateLimited,
    /// The server answers in a way that no hub does.
    NoHub,
    /// The server offers what must not be trusted: a name outside the model's folder, or changed content.
    Untrusted,
}

impl Error {
    /// Wraps an I/O error with its file and a verb phrase.
    pub fn io(file: impl Into<PathBuf>, action: impl Into<String>, source: io::Error) -> Self {
        Self::Io { file: file.into(), action: action.into(), source }
    }

    /// The error of a write of `len` bytes: [`DiskFull`](Self::DiskFull) where that is the reason, else as [`io`](Self::io).
    pub fn write(file: impl AsRef<Path>, action: impl Into<String>, len: u64, source: io::Error) -> Self {
        crate::writer::disk::write_error(file.as_ref(), action.into(), len, source)
    }

    /// A fault of a whole file.
    pub fn file(file: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::File { file: file.into(), what: what.into() }
    }

    /// A fault of one tensor.
    pub fn tensor(file: impl Into<PathBuf>, tensor: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Tensor { file: file.into(), tensor: tensor.into(), what: what.into() }
    }
}

/// Faults as they are found. A hostile file can have millions, so the list has an end.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    list: Vec<Problem>,
    unlisted: usize,
}

impl Problems {
    const MAX: usize = 1000;

    pub fn push(&mut self, file: &Path, tensor: Option<&str>, what: impl Into<String>) {
        self.extend([Problem { file: file.to_path_buf(), tensor: tensor.map(str::to_string), what: what.into() }]);
    }

    pub fn extend(&mut self, problems: impl IntoIterator<Item = Problem>) {
        for problem in problems {
            if self.is_full() {
                self.unlisted += 1;
            } else {
                self.list.push(problem);
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether looking further is of no use.
    pub fn is_full(&self) -> bool {
        self.list.len() >= Self::MAX
    }

    /// `value` if there are no faults.
    pub fn or<T>(mut self, value: T) -> Result<T> {
        if self.unlisted > 0 {
            let file = self.list[0].file.clone();
            let what = format!("{} further faults are not listed", self.unlisted);
            self.list.push(Problem { file, tensor: None, what });
        }
        if self.list.is_empty() { Ok(value) } else { Err(Error::Malformed(self.list)) }
    }
}

/// At most this many faults are spelt out; the rest is counted.
const MAX_LISTED: usize = 20;

fn list(problems: &[Problem]) -> String {
    let mut text: Vec<String> = problems.iter().take(MAX_LISTED).map(Problem::to_string).collect();
    if problems.len() > MAX_LISTED {
        text.push(format!("and {} more problems", problems.len() - MAX_LISTED));
    }
    text.join("; ")
}
