//! Models and data sets of a hub (Hugging Face's, or any server with its interface): listed, fetched once, kept in the cache that
//! `huggingface_hub` keeps too.
//!
//! One request asks what a revision stands for and which files that commit has; then each file that is needed and not
//! there is fetched of that very commit, continued where an earlier try broke off, and checked against the hub's
//! checksum before it gets its name. The transport is `ureq` and not a client made for the hub, since what matters here
//! (checksums, continued files, waiting when asked to, a token that stays with its host) is what those leave out.
//!
//! The modules in the order of the data: [`Settings`] of the environment, names, the client, the choice of files, the
//! cache, one file, and a copy for those who want the files elsewhere.

mod settings;

mod name;

mod client;

mod choice;

mod cache;

mod blob;

mod export;

use std::{
    fs,
    path::PathBuf,
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use self::{
    blob::Remote,
    cache::{Cache, Known},
    client::{Client, Failure, short, text},
};
pub use self::{
    choice::Want,
    name::{HubRepo, Kind, PUBLIC_ENDPOINT, RepoId},
    settings::{Retries, Settings},
};
use crate::{Error, HubFault, Result};

/// Bytes of an index, at most.
const MAX_INDEX: u64 = 100 << 20;

/// Hears how fetching goes on. The unit type does not care.
pub trait Watch {
    /// `bytes` in `files` files are to be fetched.
    fn begins(&mut self, _files: usize, _bytes: u64) {}
    /// `bytes` of them are here, the last ones of `file`.
    fn at(&mut self, _bytes: u64, _file: &str) {}
    /// Because of `why` the next try is made after `wait`.
    fn waits(&mut self, _why: &str, _wait: Duration) {}
    /// Everything is here.
    fn ends(&mut self) {}
    /// Something that the user should know.
    fn warn(&mut self, _what: &str) {}
}

impl Watch for () {}

/// Where a model came from: what a record says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// `org/name`.
    pub repo: String,
    /// The revision asked for.
    pub revision: String,
    /// The commit it stood for.
    pub commit: String,
    /// The file or folder of the model that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

/// One file of a [`Plan`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedFile {
    /// Its path in the model.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Whether it was in the cache before.
    pub cached: bool,
    /// The hub's tag of it.
    #[serde(skip)]
    tag: String,
}

/// What a model needs, and where it lies when that is here.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The model, the revision and its commit.
    pub origin: Origin,
    /// The files, in the order they are fetched.
    pub files: Vec<PlannedFile>,
    /// The snapshot's folder: paths of files are below it.
    pub snapshot: PathBuf,
    /// The folder that holds the model: the snapshot, or a folder of it.
    pub folder: PathBuf,
    /// What to open: the folder, or a file where the folder has several.
    pub open: PathBuf,
}

impl Plan {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Files that are, or were, not in the cache, and their bytes.
    pub fn missing(&self) -> (usize, u64) {
        let missing = self.files.iter().filter(|file| !file.cached);
        missing.fold((0, 0), |(files, bytes), file| (files + 1, bytes + file.bytes))
    }
}

/// A hub and its cache. Nothing is connected before something has to be asked.
#[derive(Debug)]
pub struct Hub {
    settings: Settings,
    client: OnceLock<Client>,
}

/// A file of a listing. Old servers leave out sizes and tags.
struct Entry {
    path: String,
    size: Option<u64>,
    tag: Option<String>,
}

/// What a revision stands for, and what it holds.
struct Listing {
    commit: String,
    entries: Vec<Entry>,
    /// Whether this is the cache's knowledge, not the hub's.
    is_cached: bool,
}

impl Hub {
    /// A hub with these settings.
    pub fn new(settings: Settings) -> Self {
        Self { settings, client: OnceLock::new() }
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What `model` needs. Only an index of shards is fetched for that.
    ///
    /// # Errors
    /// [`Error::Hub`] with the reason if the model, its revision or file cannot be had; [`Error::Io`] if the cache cannot
    /// be written.
    pub fn plan(&self, model: &HubRepo, want: &Want, watch: &mut dyn Watch) -> Result<Plan> {
        self.check_host(model)?;
        let cache = Cache::of(&self.settings.cache, model);
        let mut listing = self.listing(model, &cache, watch)?;
        let paths: Vec<&str> = listing.entries.iter().map(|entry| entry.path.as_str()).collect();
        let choice = choice::choose(&paths, model.inside.as_deref(), want);
        let mut choice = choice.map_err(|(fault, what)| match listing.is_cached {
            true => self.cached_only(model, &cache, &what),
            false => refuse(model, fault, what),
        })?;
        if let (true, Want::Data { .. }) = (listing.is_cached, want) {
            // A model's index tells what is missing; nothing tells that of a data set.
            watch.warn(&format!(
                "{model}: of commit {} the {} files that the cache holds are read; the hub may have more",
                &listing.commit[..7],
                choice.files.len()
            ));
        }
        if let Some(index) = &choice.index {
            let file = self.describe(model, &cache, &mut listing, index, watch)?;
            if !file.cached {
                self.require_space(model, &cache, std::slice::from_ref(&file))?;
                self.bring(model, &cache, &listing.commit, &file, 0, &mut ())?;
            }
            let path = cache.snapshot(&listing.commit).join(index);
            let bytes = match file.bytes {
                0..=MAX_INDEX => fs::read(&path).map_err(|error| Error::io(&path, "read the index", error))?,
                size => return Err(Error::file(&path, format!("the index has {size} bytes, more than {MAX_INDEX}"))),
            };
            let shards = choice::listed(index, &bytes).map_err(|what| refuse(model, HubFault::Untrusted, what))?;
            choice.files.extend(shards);
        }
        let mut files = Vec::new();
        for path in &choice.files {
            files.push(self.describe(model, &cache, &mut listing, path, watch)?);
        }
        let snapshot = cache.snapshot(&listing.commit);
        let folder = match choice.folder.trim_end_matches('/') {
            "" => snapshot.clone(),
            folder => snapshot.join(folder),
        };
        Ok(Plan {
            origin: Origin {
                repo: model.repo.to_string(),
                revision: model.revision().to_string(),
                commit: listing.commit,
                file: model.inside.clone(),
            },
            files,
            open: choice.open.map_or_else(|| folder.clone(), |file| snapshot.join(file)),
            folder,
            snapshot,
        })
    }

    /// Brings what `model` needs into the cache; what is there already costs no more than the question whether the
    /// revision still stands for the same commit.
    ///
    /// # Errors
    /// As [`plan`](Self::plan); [`Error::DiskFull`] before anything is fetched where the disk has no room; a file that
    /// does not arrive as the hub promised it.
    pub fn fetch(&self, model: &HubRepo, want: &Want, watch: &mut dyn Watch) -> Result<Plan> {
        let plan = self.plan(model, want, watch)?;
        self.complete(model, plan, watch)
    }

    /// Brings what a plan of `model` still lacks into the cache.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    pub fn complete(&self, model: &HubRepo, plan: Plan, watch: &mut dyn Watch) -> Result<Plan> {
        let cache = Cache::of(&self.settings.cache, model);
        let commit = &plan.origin.commit;
        let (count, bytes) = plan.missing();
        if count > 0 {
            self.require_space(model, &cache, &plan.files)?;
            watch.begins(count, bytes);
            let mut done = 0;
            for file in plan.files.iter().filter(|file| !file.cached) {
                self.bring(model, &cache, commit, file, done, watch)?;
                done += file.bytes;
                watch.at(done, &file.path);
            }
            watch.ends();
        }
        // Last, so that a revision whose files have not all come leaves the one before it usable. A cache that may only
        // be read serves what it has.
        if !self.settings.offline
            && let Err(error) = cache.remember(&plan.origin.revision, commit)
            && count > 0
        {
            return Err(error);
        }
        Ok(plan)
    }

    fn client(&self) -> &Client {
        self.client.get_or_init(|| Client::new(&self.settings))
    }

    /// An address must be one of the hub that is asked.
    fn check_host(&self, model: &HubRepo) -> Result<()> {
        let host = |endpoint: &str| endpoint.split_once("://").map(|(_, host)| host.to_ascii_lowercase());
        let known = [host(&self.settings.endpoint), host(PUBLIC_ENDPOINT), Some("hf.co".to_string())];
        match &model.host {
            Some(given) if !known.iter().flatten().any(|known| known == given) => {
                let what = format!(
                    "the address is of `{given}`, the hub that is asked is {}; set HF_ENDPOINT to the address's hub",
                    self.settings.endpoint
                );
                Err(refuse(model, HubFault::Request, what))
            }
            _ => Ok(()),
        }
    }

    /// The commit and files of the revision: by the hub; or by the cache, where the hub must not or cannot be asked.
    fn listing(&self, model: &HubRepo, cache: &Cache, watch: &mut dyn Watch) -> Result<Listing> {
        let known = cache.resolve(model.revision());
        if self.settings.offline {
            let Some(known) = known else {
                return Err(self.cached_only(model, cache, &format!("it holds no revision `{}`", model.revision())));
            };
            return Ok(of_cache(cache, known));
        }
        // Without a network a copy that is there should be had soon.
        let attempts = if known.is_some() { 2 } else { self.settings.retries.attempts };
        match self.ask(model, attempts, watch) {
            Ok(listing) => Ok(listing),
            Err(failure) => match known {
                Some(known) if failure.is_passing() => {
                    let error = self.explain(model, failure, None);
                    watch.warn(&format!(
                        "{error}; using commit {} from the cache, which `{}` stood for on {}",
                        &known.commit[..7],
                        known.revision,
                        date(known.when)
                    ));
                    Ok(of_cache(cache, known))
                }
                _ => Err(self.explain(model, failure, None)),
            },
        }
    }

    /// One request: the revision's commit and its files.
    fn ask(&self, model: &HubRepo, attempts: u32, watch: &mut dyn Watch) -> Result<Listing, Failure> {
        #[derive(Deserialize)]
        struct Info {
            sha: String,
            id: Option<String>,
            #[serde(default)]
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
            size: Option<u64>,
            #[serde(rename = "blobId")]
            blob_id: Option<String>,
            lfs: Option<Lfs>,
        }
        #[derive(Deserialize)]
        struct Lfs {
            sha256: Option<String>,
            oid: Option<String>,
            size: Option<u64>,
        }
        let noun = model.kind.noun();
        let revision = name::encode(model.revision(), false);
        let address = self.client().address(&format!(
            "api/{}/{}/revision/{revision}?blobs=true",
            model.kind.plural(),
            model.repo
        ));
        let bytes = self.client().get_whole(&address, attempts, watch)?;
        let info: Info = serde_json::from_slice(&bytes).map_err(|error| {
            let what = match bytes.trim_ascii_start().first() {
                Some(b'<') => "it answers with a web page".to_string(),
                _ => format!("its answer is not understood ({})", short(&error.to_string())),
            };
            Failure::Wrong(HubFault::NoHub, what)
        })?;
        if !name::is_commit(&info.sha) {
            let what = format!("it names `{}` as the commit", short(&info.sha));
            return Err(Failure::Wrong(HubFault::NoHub, what));
        }
        if let Some(id) = info.id.filter(|id| !id.eq_ignore_ascii_case(model.repo.as_str())) {
            watch.warn(&format!("{}: the {noun} is called `{}` now", model.repo, short(&id)));
        }
        let mut entries = Vec::with_capacity(info.siblings.len());
        for file in info.siblings {
            if let Some(fault) = name::path_fault(&file.rfilename) {
                let what = format!("the listing has a file that {fault}; nothing was fetched, do not use this {noun}");
                return Err(Failure::Wrong(HubFault::Untrusted, what));
            }
            let (lfs_size, lfs_tag) = match file.lfs {
                Some(lfs) => (lfs.size, lfs.sha256.or(lfs.oid)),
                None => (None, file.blob_id),
            };
            entries.push(Entry { path: file.rfilename, size: lfs_size.or(file.size), tag: lfs_tag });
        }
        Ok(Listing { commit: info.sha, entries, is_cached: false })
    }

    /// What is to be known of a file before it is fetched.
    fn describe(
        &self,
        model: &HubRepo,
        cache: &Cache,
        listing: &mut Listing,
        path: &str,
        watch: &mut dyn Watch,
    ) -> Result<PlannedFile> {
        let commit = listing.commit.clone();
        let is_cached = listing.is_cached;
        let Some(entry) = listing.entries.iter_mut().find(|entry| entry.path == path) else {
            return Err(match is_cached {
                true => self.cached_only(model, cache, &format!("of commit {} it lacks `{path}`", &commit[..7])),
                false => {
                    let what = format!("its index lists `{path}`, which the model does not have; it is incomplete");
                    refuse(model, HubFault::NoFile, what)
                }
            });
        };
        if is_cached {
            let bytes = entry.size.unwrap_or_default();
            return Ok(PlannedFile { path: path.to_string(), bytes, cached: true, tag: String::new() });
        }
        if entry.size.is_none() || entry.tag.is_none() {
            let address = self.file_address(model, &commit, path);
            let answer = self.client().head_again(&address, watch);
            let answer = answer.map_err(|failure| self.explain(model, failure, Some(path)))?;
            let linked = text(&answer, "x-linked-size").and_then(|size| size.parse().ok());
            entry.size = linked.or_else(|| text(&answer, "content-length")?.parse().ok());
            let tag = text(&answer, "x-linked-etag").or_else(|| text(&answer, "etag"));
            entry.tag = tag.map(|tag| tag.trim_start_matches("W/").trim_matches('"').to_string());
        }
        let (Some(bytes), Some(tag)) = (entry.size, entry.tag.clone()) else {
            let what = format!("{} says neither size nor tag of `{path}`: no hub", self.settings.endpoint);
            return Err(refuse(model, HubFault::NoHub, what));
        };
        if !name::is_plain_tag(&tag) {
            let what = format!("the tag of `{path}` is `{}`, which can be no file's name", short(&tag));
            return Err(refuse(model, HubFault::Untrusted, what));
        }
        let cached = cache.holds(&commit, path, bytes);
        Ok(PlannedFile { path: path.to_string(), bytes, cached, tag })
    }

    fn file_address(&self, model: &HubRepo, commit: &str, path: &str) -> String {
        self.client().address(&format!("{}/resolve/{commit}/{}", model.page(), name::encode(path, true)))
    }

    /// Brings one file, after `before` bytes of others.
    fn bring(
        &self,
        model: &HubRepo,
        cache: &Cache,
        commit: &str,
        file: &PlannedFile,
        before: u64,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        cache.prepare()?;
        let address = self.file_address(model, commit, &file.path);
        let remote = Remote { path: file.path.clone(), size: file.bytes, tag: file.tag.clone() };
        blob::fetch(self.client(), cache, &address, &remote, before, watch)
            .map_err(|failure| self.explain(model, failure, Some(&file.path)))?;
        cache.link(commit, &file.path, &file.tag)
    }

    /// Refuses to begin what cannot end.
    fn require_space(&self, model: &HubRepo, cache: &Cache, files: &[PlannedFile]) -> Result<()> {
        cache.prepare()?;
        let to_come = |file: &&PlannedFile| !file.cached && !cache::has_size(&cache.blob(&file.tag), file.bytes);
        let part = |file: &PlannedFile| fs::metadata(cache.part(&file.tag)).map_or(0, |metadata| metadata.len());
        let needed: u64 = files.iter().filter(to_come).map(|file| file.bytes.saturating_sub(part(file))).sum();
        match cache.free_bytes() {
            Some(free) if free < needed => Err(Error::DiskFull {
                file: cache.root().to_path_buf(),
                what: format!(
                    "`{model}` needs {needed} more bytes and {free} are free, so {} bytes are missing; make room, or set \
                     HF_HUB_CACHE to a folder on another disk",
                    needed - free
                ),
            }),
            _ => Ok(()),
        }
    }

    /// Only the cache may or can be asked, and it does not hold what is needed.
    fn cached_only(&self, model: &HubRepo, cache: &Cache, what: &str) -> Error {
        let revisions: Vec<String> = cache
            .revisions()
            .iter()
            .map(|known| match known.revision == known.commit {
                true => format!("commit {}", &known.commit[..7]),
                false => format!("`{}` (commit {}, {})", known.revision, &known.commit[..7], date(known.when)),
            })
            .collect();
        let held = match revisions.is_empty() {
            true => format!("nothing of this {}", model.kind.noun()),
            false => revisions.join(", "),
        };
        let why = match self.settings.offline {
            true => "HF_HUB_OFFLINE is set",
            false => "the hub cannot be reached",
        };
        let what = format!(
            "{why} and the cache in {} is not enough: {what} (it holds {held}); unset HF_HUB_OFFLINE or connect, and fetch \
             it once",
            self.settings.cache.display()
        );
        refuse(model, HubFault::Offline, what)
    }

    /// The sentence for a failure to ask for the model, or for its `file`.
    fn explain(&self, model: &HubRepo, failure: Failure, file: Option<&str>) -> Error {
        let endpoint = &self.settings.endpoint;
        let (noun, page) = (model.kind.noun(), model.page());
        let has_token = self.settings.token.is_some();
        let refusal = match failure {
            Failure::Local(error) => return error,
            Failure::Wrong(HubFault::NoHub, what) => {
                let what = format!("{endpoint} does not answer like a hub: {what}; check HF_ENDPOINT and proxies");
                return refuse(model, HubFault::NoHub, what);
            }
            Failure::Wrong(fault, what) => return refuse(model, fault, what),
            Failure::Barred(what) => {
                let what = format!(
                    "{what}; where a proxy signs for the hub, set SSL_CERT_FILE to the file of the proxy's certificate"
                );
                return refuse(model, HubFault::Unreachable, what);
            }
            Failure::Cut(what) => {
                let doing = file.map(|file| format!(" for `{file}`")).unwrap_or_default();
                let kept = if file.is_some() { " (what has come is kept, and continued next time)" } else { "" };
                let what =
                    format!("{endpoint} cannot be reached{doing}: {what}; check the network and HF_ENDPOINT{kept}");
                return refuse(model, HubFault::Unreachable, what);
            }
            Failure::Refused(refusal) => refusal,
        };
        let said = match refusal.message.as_str() {
            "" => String::new(),
            message => format!(" (it says: {message})"),
        };
        let (fault, what) = match (refusal.status, refusal.code.as_str()) {
            (_, "GatedRepo") if has_token => (
                HubFault::Gated,
                format!(
                    "the {noun} is gated and the token's account has no access; accept its terms at {endpoint}/{page}"
                ),
            ),
            (_, "GatedRepo") => (
                HubFault::Gated,
                format!(
                    "the {noun} is gated: accept its terms at {endpoint}/{page}, then set HF_TOKEN to a token of that account"
                ),
            ),
            (_, "RevisionNotFound") => (
                HubFault::NoRevision,
                format!(
                    "the {noun} has no revision `{}`; its branches and tags are listed at {endpoint}/{page}",
                    model.revision()
                ),
            ),
            (404, "") | (_, "EntryNotFound") if file.is_some() => {
                (HubFault::NoFile, format!("the {noun} has no file `{}` in this commit", file.unwrap_or("?")))
            }
            (401, code) if has_token && code != "RepoNotFound" => {
                (HubFault::Token, format!("{endpoint} refuses the token{said}; renew it, or unset HF_TOKEN"))
            }
            (401 | 404, _) => {
                let token = match has_token {
                    true => "or the token may not read it: check the name and the token's rights",
                    false => "or it is private: check the name, or set HF_TOKEN",
                };
                let what = format!("there is no such file or folder here, and {endpoint} has no such {noun}, {token}");
                (HubFault::NoModel, what)
            }
            (403, _) => (HubFault::Token, format!("{endpoint} does not allow it{said}; check the rights of HF_TOKEN")),
            (429, _) => {
                let wait = refusal.wait.map(|wait| format!(" for {} s", wait.as_secs())).unwrap_or_default();
                let token = if has_token { "" } else { ", or set HF_TOKEN, which raises the limit" };
                (
                    HubFault::RateLimited,
                    format!("{endpoint} asks to wait{wait}: too many requests; try again later{token}"),
                )
            }
            (status @ 500..=599, _) => {
                (HubFault::Unreachable, format!("{endpoint} fails with status {status}{said}; try again later"))
            }
            (status, _) => {
                (HubFault::NoHub, format!("{endpoint} answers with status {status}{said}; check HF_ENDPOINT"))
            }
        };
        refuse(model, fault, what)
    }
}

fn refuse(model: &HubRepo, fault: HubFault, what: String) -> Error {
    Error::Hub { model: model.to_string(), fault, what }
}

fn of_cache(cache: &Cache, known: Known) -> Listing {
    let entry = |(path, size)| Entry { path, size: Some(size), tag: None };
    let entries = cache.files(&known.commit).into_iter().map(entry).collect();
    Listing { commit: known.commit, entries, is_cached: true }
}

/// `when` as year, month and day in UTC.
fn date(when: SystemTime) -> String {
    let days = when.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() / 86_400) as i64;
    // The Gregorian calendar repeats every 146,097 days; counted from a March, leap days are the last of their years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 { (year, month + 3) } else { (year + 1, month - 9) };
    format!("{:04}-{month:02}-{day:02}", era * 400 + year)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // date -u -d @SECONDS +%F
        for (seconds, day) in [
            (0, "1970-01-01"),
            (951_782_399, "2000-02-28"),
            (951_782_400, "2000-02-29"),
            (1_735_689_599, "2024-12-31"),
            (1_764_547_200, "2025-12-01"),
            (4_107_542_399, "2100-02-28"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(date(UNIX_EPOCH + Duration::from_secs(seconds)), day);
        }
    }
}
