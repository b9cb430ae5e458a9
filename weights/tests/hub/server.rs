//! A hub on the loopback interface. It answers as the real one does; a hook may spoil any answer.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use scruple_weights::digest::sha256;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};

/// One model of the server.
#[derive(Clone, Default)]
pub struct Repo {
    pub commit: String,
    /// Path to bytes.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// A commit of one digit.
pub fn commit(digit: char) -> String {
    digit.to_string().repeat(40)
}

/// Bytes that only depend on `seed`.
pub fn bytes(seed: u32, count: usize) -> Vec<u8> {
    (0..count as u32).map(|i| (i.wrapping_add(seed).wrapping_mul(0x9e37_79b9) >> 13) as u8).collect()
}

impl Repo {
    pub fn new<B: Into<Vec<u8>>, const N: usize>(files: [(&str, B); N]) -> Self {
        let files = files.into_iter().map(|(path, bytes)| (path.to_string(), bytes.into())).collect();
        Self { commit: commit('1'), files }
    }

    /// A small model: 300 kB of weights kept as a large file, the rest as small ones.
    pub fn tiny() -> Self {
        Self::new([
            ("README.md", b"# Tiny\n".to_vec()),
            ("config.json", b"{}\n".to_vec()),
            ("model.safetensors", bytes(1, 300_000)),
            ("tokenizer.json", b"{\"version\":\"1.0\"}\n".to_vec()),
            ("flax_model.msgpack", bytes(2, 1000)),
        ])
    }

    pub fn commit(mut self, digit: char) -> Self {
        self.commit = commit(digit);
        self
    }
}

/// Large files have the SHA-256 as tag, small ones git's SHA-1.
pub fn is_large(bytes: &[u8]) -> bool {
    bytes.len() > 500
}

pub fn tag(bytes: &[u8]) -> String {
    match is_large(bytes) {
        true => sha256(bytes),
        false => git_hash(bytes),
    }
}

fn git_hash(bytes: &[u8]) -> String {
    let mut hasher = Sha1::new();
    hasher.update(format!("blob {}\0", bytes.len()));
    hasher.update(bytes);
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn small_files_have_gits_own_hashes() {
    // printf 'hello\n' | git hash-object --stdin
    assert_eq!(tag(b"hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
}

#[derive(Debug, Clone, Default)]
pub struct Request {
    pub method: String,
    /// With the query.
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
    /// Bytes of body that were sent.
    pub sent: usize,
    /// Earlier requests of the same path and method.
    pub nth: usize,
}

impl Request {
    pub fn is_for(&self, part: &str) -> bool {
        self.path.contains(part)
    }
}

#[derive(Debug, Clone, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub cut: Option<usize>,
    /// Keep the connection open instead, without a further word, until the other side goes.
    pub hold: bool,
    /// The body that would be sent without a range.
    pub whole: Vec<u8>,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        self.headers.push((name.into(), value.to_string()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub fn cut(mut self, after: usize) -> Self {
        self.cut = Some(after);
        self
    }

    /// The whole file whatever range was asked for.
    pub fn without_range(self) -> Self {
        let body = self.whole.clone();
        Self { status: 200, body, ..self }
    }
}

type Hook = dyn Fn(&Request, Reply) -> Reply + Send + Sync;

struct Shared {
    repos: Mutex<BTreeMap<String, Repo>>,
    log: Mutex<Vec<Request>>,
    /// Where large files are: this server or another.
    cdn: String,
    address: String,
    hook: Box<Hook>,
    stop: AtomicBool,
}

pub struct Server {
    shared: Arc<Shared>,
}

impl Server {
    /// `org/tiny` is `repo`.
    pub fn new(repo: Repo) -> Self {
        Self::with(repo, |_, reply| reply)
    }

    /// As [`new`](Self::new); `hook` changes answers.
    pub fn with(repo: Repo, hook: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Self {
        Self::start(repo, None, Box::new(hook))
    }

    /// A server whose large files are at `cdn`.
    pub fn with_cdn(repo: Repo, cdn: &Server) -> Self {
        Self::start(repo, Some(cdn.address()), Box::new(|_, reply| reply))
    }

    fn start(repo: Repo, cdn: Option<String>, hook: Box<Hook>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            repos: Mutex::new([("org/tiny".to_string(), repo)].into()),
            log: Mutex::default(),
            cdn: cdn.unwrap_or_else(|| address.clone()),
            address,
            hook,
            stop: AtomicBool::new(false),
        });
        let serving = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.stop.load(Ordering::Relaxed) {
                    break;
                }
                let serving = serving.clone();
                if let Ok(stream) = stream {
                    thread::spawn(move || serving.answer(stream));
                }
            }
        });
        Self { shared }
    }

    pub fn address(&self) -> String {
        self.shared.address.clone()
    }

    /// Puts `repo` in the place of what `org/tiny` was.
    pub fn publish(&self, repo: Repo) {
        self.shared.repos.lock().unwrap().insert("org/tiny".into(), repo);
    }

    /// Has `repo` as the data set `org/tiny` too.
    pub fn publish_dataset(&self, repo: Repo) {
        self.shared.repos.lock().unwrap().insert("datasets/org/tiny".into(), repo);
    }

    /// The requests so far, which are forgotten.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.shared.log.lock().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.shared.address.trim_start_matches("http://"));
    }
}

impl Shared {
    fn answer(&self, stream: TcpStream) {
        let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
        let Some(first) = lines.next() else { return };
        let mut words = first.split(' ').map(str::to_string);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut request = Request { method, path, ..Request::default() };
        for line in lines.take_while(|line| !line.is_empty()) {
            let (name, value) = line.split_once(": ").unwrap_or((&line, ""));
            match name.to_ascii_lowercase().as_str() {
                "range" => request.range = Some(value.to_string()),
                "authorization" => request.authorization = Some(value.to_string()),
                _ => {}
            }
        }
        let same = |earlier: &&Request| earlier.path == request.path && earlier.method == request.method;
        let place = {
            let mut log = self.log.lock().unwrap();
            request.nth = log.iter().filter(same).count();
            log.push(request.clone());
            log.len() - 1
        };
        let reply = (self.hook)(&request, self.reply(&request));
        let sent = reply.cut.unwrap_or(reply.body.len()).min(reply.body.len());
        if let Some(logged) = self.log.lock().unwrap().get_mut(place) {
            logged.sent = if request.method == "HEAD" { 0 } else { sent };
        }
        let mut head = format!("HTTP/1.1 {} x\r\nConnection: close\r\n", reply.status);
        let reply = match reply.headers.iter().any(|(name, _)| name == "Content-Length") {
            true => reply,
            false => Reply {
                headers: [reply.headers, vec![("Content-Length".into(), reply.body.len().to_string())]].concat(),
                ..reply
            },
        };
        for (name, value) in &reply.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut stream = &stream;
        let _ = stream.write_all(head.as_bytes());
        if request.method != "HEAD" {
            let _ = stream.write_all(&reply.body[..sent]);
        }
        if reply.hold {
            let _ = stream.read(&mut [0]);
        }
    }

    fn reply(&self, request: &Request) -> Reply {
        let repos = self.repos.lock().unwrap();
        let path = request.path.split('?').next().unwrap_or_default();
        let (page, path) = match path.strip_prefix("/datasets/") {
            Some(rest) => ("datasets/", rest),
            None => ("", path.trim_start_matches('/')),
        };
        let parts: Vec<&str> = path.split('/').collect();
        let failure = |status, code: &str| Reply::status(status).header("X-Error-Code", code);
        match parts.as_slice() {
            ["api", kind @ ("models" | "datasets"), org, name, "revision", revision] => {
                let prefix = if *kind == "datasets" { "datasets/" } else { "" };
                let repo = repos.get(&format!("{prefix}{org}/{name}"));
                let Some(repo) = repo else { return failure(401, "RepoNotFound") };
                if *revision != "main" && *revision != "refs%2Fpr%2F1" && *revision != repo.commit {
                    return failure(404, "RevisionNotFound");
                }
                let siblings: Vec<Value> = repo.files.iter().map(|(path, bytes)| sibling(path, bytes)).collect();
                let info = json!({ "id": format!("{org}/{name}"), "sha": repo.commit, "siblings": siblings });
                Reply::status(200).header("Content-Type", "application/json").body(info.to_string())
            }
            ["cdn", wanted] => {
                let file = repos.values().flat_map(|repo| repo.files.values()).find(|bytes| tag(bytes) == *wanted);
                file.map_or(Reply::status(404), |bytes| ranged(request, bytes))
            }
            [org, name, "resolve", revision, file @ ..] => {
                let repo = repos.get(&format!("{page}{org}/{name}"));
                let Some(repo) = repo else { return failure(401, "RepoNotFound") };
                if *revision != "main" && *revision != repo.commit {
                    return failure(404, "RevisionNotFound");
                }
                let Some(bytes) = repo.files.get(&file.join("/")) else { return failure(404, "EntryNotFound") };
                let tag = tag(bytes);
                let reply = match is_large(bytes) {
                    true => Reply::status(302)
                        .header("X-Linked-Etag", format!("\"{tag}\""))
                        .header("X-Linked-Size", bytes.len())
                        .header("Location", format!("{}/cdn/{tag}", self.cdn)),
                    false => ranged(request, bytes).header("ETag", format!("\"{tag}\"")),
                };
                reply.header("X-Repo-Commit", &repo.commit)
            }
            _ => Reply::status(404),
        }
    }
}

fn sibling(path: &str, bytes: &[u8]) -> Value {
    let mut sibling = json!({ "rfilename": path, "size": bytes.len(), "blobId": git_hash(bytes) });
    if is_large(bytes) {
        sibling["lfs"] = json!({ "sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 130 });
    }
    sibling
}

fn ranged(request: &Request, bytes: &[u8]) -> Reply {
    let reply = Reply { whole: bytes.to_vec(), ..Reply::status(200) }.body(bytes);
    let Some(range) = &request.range else { return reply };
    let from: usize = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
    match from < bytes.len() {
        true => {
            let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
            Reply { status: 206, ..reply }.header("Content-Range", range).body(&bytes[from..])
        }
        false => Reply { status: 416, body: Vec::new(), ..reply },
    }
}
