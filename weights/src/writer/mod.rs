//! A new checkpoint, written by stream: memory stays near one tensor, the disk never shows half a result.
//!
//! The output grows in a work folder beside its final place. Shards get their final length and their headers first, then
//! tensors arrive in any order, whole or piece by piece; [`finish`](CheckpointWriter::finish) makes everything durable
//! and moves the folder to its place in one step. A writer made by [`create`](CheckpointWriter::create) takes its work
//! folder with it when it is dropped; one made by [`resume_or_create`](CheckpointWriter::resume_or_create) leaves it
//! with a journal of finished units, and the next run goes on from there.

mod coverage;
mod direct;
pub(crate) mod disk;
pub mod gguf;
mod journal;
mod plan;
mod work;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::Value;

use self::{
    coverage::Coverage,
    direct::Direct,
    journal::{Journal, Unit},
    plan::Plan,
    work::WorkFolder,
};
use crate::{Dtype, Error, Result, error::Problems, format::Metadata};

const INDEX: &str = "model.safetensors.index.json";

/// A tensor that will be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Its element type; ggml's block types cannot be written.
    pub dtype: Dtype,
    /// Its shape, slowest dimension first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A tensor that will be written.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), dtype, shape: shape.into() }
    }
}

fn is_plain_name(name: &str) -> bool {
    !name.contains(['/', '\\', '\0']) && !matches!(name, "" | "." | "..")
}

/// How a checkpoint is laid out.
#[derive(Debug, Clone)]
pub struct WriterOptions {
    /// Tensor bytes after which a new shard begins; a single larger tensor gets a shard of its own.
    pub max_shard_bytes: u64,
    /// What the files' names begin with: `model` makes `model.safetensors`, or `model-00001-of-00002.safetensors` and so on.
    pub stem: String,
    /// String metadata of every shard. `format` is `pt` unless given.
    pub metadata: Metadata,
    /// Large pieces go past the page cache, where the file system can do that: cheaper, unless the files are read again
    /// soon. The files are the same.
    pub past_cache: bool,
}

impl Default for WriterOptions {
    /// Shards of 5 GB, as transformers writes them.
    fn default() -> Self {
        Self { max_shard_bytes: 5_000_000_000, stem: "model".into(), metadata: Metadata::new(), past_cache: false }
    }
}

/// What [`CheckpointWriter::finish`] left on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Every file, sorted.
    pub files: Vec<PathBuf>,
    /// Their bytes in all.
    pub bytes: u64,
}

/// Writes a checkpoint folder; see the [module](self). `write` and `write_at` may be called from several threads.
#[derive(Debug)]
pub struct CheckpointWriter {
    out: PathBuf,
    plan: Plan,
    shards: Vec<ShardFile>,
    /// For each tensor of the plan, which of its bytes are written.
    coverage: Vec<Mutex<Coverage>>,
    /// What was written since the last unit was committed; kept only if there is a journal.
    pending: Mutex<Vec<(usize, u64, u64)>>,
    journal: Option<Journal>,
    units: Vec<(String, Value)>,
    side_files: Vec<String>,
    /// A write went wrong, so the bytes on disk are not what the coverage says.
    failed: AtomicBool,
    work: WorkFolder, // last: its removal follows the closing of the files in it
}

#[derive(Debug)]
struct ShardFile {
    path: PathBuf,
    file: File,
    /// Whether there are writes that have not been synced.
    dirty: AtomicBool,
    /// The way past the page cache, where it is wanted and there is one.
    direct: Option<Direct>,
}

impl ShardFile {
    fn new(path: PathBuf, file: File, past_cache: bool) -> Self {
        let direct = if past_cache { Direct::open(&path) } else { None };
        Self { path, file, dirty: AtomicBool::new(false), direct }
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.dirty.store(true, Ordering::Relaxed);
        // Pages that pieces share go through the cache, all others by one way alone: the two never meet.
        let (before, done) = self.direct.as_ref().map_or(Ok((0, 0)), |direct| direct.write_pages(bytes, offset))?;
        self.file.write_all_at(&bytes[..before], offset)?;
        self.file.write_all_at(&bytes[before + done..], offset + (before + done) as u64)
    }
}

impl CheckpointWriter {
    /// Starts the folder `out`, which must not exist. Nothing appears under that name before
    /// [`finish`](Self::finish); dropping the writer instead removes everything.
    ///
    /// # Errors
    /// If `out` exists, the disk has too little room for all of it, or the tensors cannot be laid out (a name twice, a
    /// type safetensors lacks, a size that overflows).
    pub fn create(out: &Path, tensors: Vec<TensorSpec>, options: WriterOptions) -> Result<Self> {
        let plan = prepare(out, &tensors, &options)?;
        let (parent, _) = work::parent_and_name(out)?;
        disk::require(&parent, plan.bytes())?;
        let work = WorkFolder::temporary(out)?;
        let shards = lay_out(&work, &plan, options.past_cache)?;
        Ok(Self::new(out, plan, shards, work))
    }

    /// Continues an interrupted run that was to write `out`, or starts one. The work folder `work` (usually
    /// [`work_folder`](Self::work_folder)) must lie on the disk of `out`; it stays when the writer is dropped or killed.
    /// `fingerprint` stands for everything that decides what will be written: inputs, settings, version.
    /// [`finished_units`](Self::finished_units) says what need not be done again.
    ///
    /// # Errors
    /// As [`create`](Self::create); also if another run is at work in the folder, or the interrupted run had another
    /// fingerprint or layout, or its files are damaged. An interrupted run is never thrown away.
    pub fn resume_or_create(
        out: &Path,
        tensors: Vec<TensorSpec>,
        options: WriterOptions,
        fingerprint: &str,
        work: &Path,
    ) -> Result<Self> {
        let plan = prepare(out, &tensors, &options)?;
        let plan_hash = plan.fingerprint();
        let (parent, _) = work::parent_and_name(out)?;
        let mut work = WorkFolder::resumable(work)?;
        let interrupted = match Journal::open(&work.journal(), fingerprint, &plan_hash)? {
            Some(interrupted) => interrupted,
            None => {
                work.keep = false; // until there is something to go on from
                work.clear()?;
                same_disk(&work, &parent)?;
                disk::require(work.path(), plan.bytes())?;
                let shards = lay_out(&work, &plan, options.past_cache)?;
                let journal = Journal::create(&work.journal(), fingerprint, &plan_hash)?;
                work.keep = true;
                return Ok(Self { journal: Some(journal), ..Self::new(out, plan, shards, work) });
            }
        };
        same_disk(&work, &parent)?;
        let (journal, units) = interrupted;
        let shards = reopen(&work, &plan, options.past_cache)?;
        let mut writer = Self { journal: Some(journal), ..Self::new(out, plan, shards, work) };
        writer.restore(units)?;
        Ok(writer)
    }

    fn new(out: &Path, plan: Plan, shards: Vec<ShardFile>, work: WorkFolder) -> Self {
        Self {
            out: out.to_path_buf(),
            coverage: plan.places.iter().map(|_| Mutex::default()).collect(),
            plan,
            shards,
            pending: Mutex::default(),
            journal: None,
            units: Vec::new(),
            side_files: Vec::new(),
            failed: AtomicBool::new(false),
            work,
        }
    }

    /// Takes over what the journal of an interrupted run says.
    fn restore(&mut self, units: Vec<Unit>) -> Result<()> {
        for Unit { unit, value, wrote } in units {
            for (tensor, start, end) in wrote {
                let place = self.plan.places.get(tensor).filter(|place| start <= end && end <= place.len);
                if place.is_none() || lock(&self.coverage[tensor]).add(start..end).is_err() {
                    let what = format!(
                        "unit `{unit}` of the interrupted run's journal is damaged; delete the folder {} to start over",
                        self.work.path().display()
                    );
                    return Err(Error::file(self.work.journal(), what));
                }
            }
            self.units.push((unit, value));
        }
        Ok(())
    }

    /// The folder in which an interrupted run for `out` leaves its work: `.{name}.partial` beside it.
    ///
    /// # Errors
    /// If `out` has no name that is plain text.
    pub fn work_folder(out: &Path) -> Result<PathBuf> {
        work::resumable_path(out)
    }

    /// Where the checkpoint will appear.
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// A folder for the caller's own working files; it goes with the work folder, at the latest when the output is
    /// finished.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn scratch(&self) -> Result<PathBuf> {
        let path = self.work.scratch();
        fs::create_dir_all(&path).map_err(|error| disk::write_error(&path, "make the folder".into(), 0, error))?;
        Ok(path)
    }

    /// Writes all of tensor `name`.
    ///
    /// # Errors
    /// If there is no such tensor, `bytes` has another length than its type and shape demand, a part of it has been
    /// written already, or the disk is full.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let tensor = self.number(name)?;
        let expected = self.plan.places[tensor].len;
        if bytes.len() as u64 != expected {
            return Err(self.tensor_error(name, format!("takes {expected} bytes, was given {}", bytes.len())));
        }
        self.write_range(tensor, 0, bytes)
    }

    /// Writes bytes `byte_offset..` of tensor `name`. Every byte must be written exactly once, in any order.
    ///
    /// # Errors
    /// As [`write`](Self::write); also if the bytes reach beyond the tensor.
    pub fn write_at(&self, name: &str, byte_offset: u64, bytes: &[u8]) -> Result<()> {
        let tensor = self.number(name)?;
        let expected = self.plan.places[tensor].len;
        if byte_offset.checked_add(bytes.len() as u64).is_none_or(|end| end > expected) {
            return Err(self.tensor_error(
                name,
                format!("takes {expected} bytes, was given {} from byte {byte_offset}", bytes.len()),
            ));
        }
        self.write_range(tensor, byte_offset, bytes)
    }

    fn write_range(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let place = &self.plan.places[tensor];
        let end = offset + bytes.len() as u64; // within the tensor
        lock(&self.coverage[tensor]).add(offset..end).map_err(|shared| {
            self.tensor_error(&place.name, format!("has its bytes {}..{} written twice", shared.start, shared.end))
        })?;
        let shard = &self.shards[place.shard];
        shard.write_all_at(bytes, place.start + offset).map_err(|error| {
            self.failed.store(true, Ordering::Relaxed);
            let action = format!("write {} bytes of tensor `{}`", bytes.len(), place.name);
            disk::write_error(&shard.path, action, bytes.len() as u64, error)
        })?;
        if self.journal.is_some() {
            let mut pending = lock(&self.pending);
            match pending.last_mut() {
                Some(last) if last.0 == tensor && last.2 == offset => last.2 = end,
                _ => pending.push((tensor, offset, end)),
            }
        }
        Ok(())
    }

    /// Whether every byte of tensor `name` has been written, in this run or in the finished units of an earlier one.
    ///
    /// # Errors
    /// If there is no such tensor.
    pub fn is_written(&self, name: &str) -> Result<bool> {
        let tensor = self.number(name)?;
        Ok(lock(&self.coverage[tensor]).first_gap(self.plan.places[tensor].len).is_none())
    }

    /// The units an interrupted run and this one have finished, in their order, with the values given then.
    pub fn finished_units(&self) -> Vec<(String, Value)> {
        self.units.clone()
    }

    /// Declares a unit of work finished: everything written since the last commit belongs to it. In a resumable run the
    /// written bytes and then a line in the journal are on disk when this returns, so the next run finds the unit among
    /// the [`finished_units`](Self::finished_units) with its `value`.
    ///
    /// # Errors
    /// If a unit of this name is finished already, an earlier write failed, or the disk refuses.
    pub fn commit_unit(&mut self, unit: &str, value: Value) -> Result<()> {
        self.refuse_after_failure()?;
        if self.units.iter().any(|(name, _)| name == unit) {
            return Err(Error::file(&self.out, format!("unit `{unit}` is finished twice")));
        }
        if let Some(journal) = &mut self.journal {
            for shard in &self.shards {
                if shard.dirty.swap(false, Ordering::Relaxed) {
                    shard.file.sync_data().map_err(|error| {
                        self.failed.store(true, Ordering::Relaxed);
                        disk::write_error(&shard.path, format!("make unit `{unit}` durable (fsync)"), 0, error)
                    })?;
                }
            }
            let wrote = std::mem::take(self.pending.get_mut().unwrap_or_else(PoisonError::into_inner));
            let line = Unit { unit: unit.into(), value: value.clone(), wrote };
            journal.append(&line).inspect_err(|_| self.failed.store(true, Ordering::Relaxed))?;
        }
        self.units.push((unit.into(), value));
        Ok(())
    }

    /// Adds a small file beside the weights, such as `config.json`.
    ///
    /// # Errors
    /// If `name` is no plain file name, is taken, or the disk refuses.
    pub fn add_file(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.side_file(name, &mut &*bytes)
    }

    /// Copies a file from elsewhere, under its own name.
    ///
    /// # Errors
    /// As [`add_file`](Self::add_file); also if `path` cannot be read.
    pub fn copy_file(&mut self, path: &Path) -> Result<()> {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::file(path, "expected a file whose name is plain text"))?;
        let refuse = |error| Error::io(path, "open the file", error);
        if !fs::metadata(path).map_err(refuse)?.is_file() {
            return Err(Error::file(path, "expected a regular file, found a folder, pipe or device"));
        }
        self.side_file(name, &mut File::open(path).map_err(refuse)?)
    }

    /// Copies the file at `path`, which lies in `root` or in a folder there, to the same place in the checkpoint.
    ///
    /// # Errors
    /// As [`Self::copy_file`].
    pub fn copy_beside(&mut self, root: &Path, path: &Path) -> Result<()> {
        let inside =
            path.strip_prefix(root).ok().and_then(Path::parent).filter(|folder| !folder.as_os_str().is_empty());
        let Some(folder) = inside else { return self.copy_file(path) };
        let names = folder.to_str().zip(path.file_name().and_then(|name| name.to_str()));
        let Some((folder, name)) = names.filter(|(folder, _)| is_plain_name(folder)) else {
            return Err(Error::file(path, "expected a file at most one folder deep, of plain names"));
        };
        let mut file = File::open(path).map_err(|error| Error::io(path, "open the file", error))?;
        let output = self.work.output().join(folder);
        fs::create_dir_all(&output).map_err(|error| Error::io(&output, "make the folder", error))?;
        self.put_file(&format!("{folder}/{name}"), &mut file)?;
        disk::sync_folder(&output)
    }

    fn side_file(&mut self, name: &str, from: &mut dyn Read) -> Result<()> {
        if !is_plain_name(name) {
            return Err(Error::file(&self.out, format!("`{}` is no plain file name", name.escape_debug())));
        }
        self.put_file(name, from)
    }

    fn put_file(&mut self, name: &str, from: &mut dyn Read) -> Result<()> {
        let path = self.work.output().join(name);
        let taken = name == INDEX
            || self.plan.shards.iter().any(|shard| shard.name == name)
            || self.side_files.iter().any(|taken| taken == name);
        if taken {
            return Err(Error::file(&self.out, format!("a file called `{name}` is there already")));
        }
        let failed = |error| disk::write_error(&path, "write the file".into(), 0, error);
        let mut file = File::create(&path).map_err(failed)?;
        io::copy(from, &mut file).and_then(|_| file.sync_all()).map_err(failed)?;
        self.side_files.push(name.into());
        Ok(())
    }

    /// Makes everything durable and moves the folder to its final place.
    ///
    /// # Errors
    /// If bytes are missing (every tensor concerned is named), an earlier write failed, the disk refuses, or a folder of
    /// that name has appeared meanwhile. Then nothing is under the final name; a resumable run keeps its work.
    pub fn finish(mut self) -> Result<Written> {
        self.refuse_after_failure()?;
        self.refuse_gaps()?;
        for shard in &self.shards {
            shard
                .file
                .sync_all()
                .map_err(|error| disk::write_error(&shard.path, "make the file durable (fsync)".into(), 0, error))?;
        }
        let output = self.work.output();
        let mut written = Written { files: Vec::new(), bytes: 0 };
        let shards = self.plan.shards.iter().map(|shard| shard.name.as_str());
        let index = self.plan.index.iter().map(|_| INDEX);
        for name in shards.chain(index).chain(self.side_files.iter().map(String::as_str)) {
            let path = output.join(name);
            written.bytes +=
                fs::metadata(&path).map_err(|error| Error::io(&path, "read the file's size", error))?.len();
            written.files.push(self.out.join(name));
        }
        written.files.sort();
        self.remove_strangers(&output)?;
        disk::sync_folder(&output)?;
        refuse_existing(&self.out)?;
        fs::rename(&output, &self.out)
            .map_err(|error| Error::io(&self.out, "move the finished checkpoint to its place", error))?;
        self.work.keep = false; // whatever happens now, the output is no longer in it
        let (parent, _) = work::parent_and_name(&self.out)?;
        disk::sync_folder(&parent)?;
        Ok(written)
    }

    /// Gives up, and removes the work folder of a resumable run too.
    pub fn discard(mut self) {
        self.work.keep = false;
    }

    /// Side files that an interrupted run added and this one did not.
    fn remove_strangers(&self, output: &Path) -> Result<()> {
        let refuse = |error| Error::io(output, "list the folder", error);
        for entry in fs::read_dir(output).map_err(refuse)? {
            let entry = entry.map_err(refuse)?;
            let name = entry.file_name();
            let ours = name == INDEX && self.plan.index.is_some()
                || self.plan.shards.iter().any(|shard| name == shard.name.as_str())
                || self.side_files.iter().any(|file| name == file.split('/').next().unwrap_or_default());
            if !ours && entry.path().is_dir() {
                fs::remove_dir_all(entry.path())
                    .map_err(|error| Error::io(entry.path(), "remove the folder", error))?;
            } else if !ours {
                fs::remove_file(entry.path()).map_err(|error| Error::io(entry.path(), "remove the file", error))?;
            }
        }
        Ok(())
    }

    fn refuse_after_failure(&self) -> Result<()> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(Error::file(
                &self.out,
                "an earlier write failed, so the checkpoint cannot be finished; run again",
            ));
        }
        Ok(())
    }

    fn refuse_gaps(&self) -> Result<()> {
        let mut problems = Problems::default();
        for (place, coverage) in self.plan.places.iter().zip(&self.coverage) {
            let coverage = lock(coverage);
            if let Some(gap) = coverage.first_gap(place.len) {
                let what = format!(
                    "is not complete: {} of {} bytes were written, the first gap is {}..{}",
                    coverage.bytes(),
                    place.len,
                    gap.start,
                    gap.end
                );
                problems.push(&self.out.join(&self.plan.shards[place.shard].name), Some(&place.name), what);
            }
        }
        problems.or(())
    }

    fn number(&self, name: &str) -> Result<usize> {
        let number = self.plan.by_name.get(name).copied();
        number.ok_or_else(|| self.tensor_error(name, "is not among the tensors this checkpoint was announced with"))
    }

    fn tensor_error(&self, name: &str, what: impl Into<String>) -> Error {
        Error::tensor(&self.out, name, what)
    }
}

/// Checks the output's place and lays the tensors out.
fn prepare(out: &Path, tensors: &[TensorSpec], options: &WriterOptions) -> Result<Plan> {
    let (parent, _) = work::parent_and_name(out)?;
    work::remove_abandoned(out, &work::resumable_path(out)?)?;
    refuse_existing(out)?;
    let plan = Plan::new(out, tensors, options)?;
    fs::create_dir_all(&parent).map_err(|error| Error::io(&parent, "make the folder", error))?;
    Ok(plan)
}

fn refuse_existing(out: &Path) -> Result<()> {
    if out.symlink_metadata().is_ok() {
        return Err(Error::file(out, "the output exists already; choose another name, or move or delete it first"));
    }
    Ok(())
}

fn same_disk(work: &WorkFolder, parent: &Path) -> Result<()> {
    let disk = |path: &Path| {
        fs::metadata(path).map(|meta| meta.dev()).map_err(|error| Error::io(path, "find the folder's disk", error))
    };
    if disk(work.path())? != disk(parent)? {
        let what = format!(
            "the work folder lies on another disk than the output in {}; choose one on the same disk",
            parent.display()
        );
        return Err(Error::file(work.path(), what));
    }
    Ok(())
}

/// Makes every shard with its final length and its header, and the index.
fn lay_out(work: &WorkFolder, plan: &Plan, past_cache: bool) -> Result<Vec<ShardFile>> {
    let output = work.output();
    fs::create_dir(&output).map_err(|error| disk::write_error(&output, "make the folder".into(), 0, error))?;
    let mut shards = Vec::new();
    for shard in &plan.shards {
        let path = output.join(&shard.name);
        let failed = |error| {
            let len = shard.header.len();
            disk::write_error(&path, format!("write a header of {len} bytes"), len as u64, error)
        };
        let file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed)?;
        disk::preallocate(&file, &path, shard.len)?;
        file.write_all_at(&shard.header, 0).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        shards.push(ShardFile::new(path, file, past_cache));
    }
    if let Some(index) = &plan.index {
        let path = output.join(INDEX);
        let mut file = File::create(&path)
            .map_err(|error| disk::write_error(&path, "make the index".into(), index.len() as u64, error))?;
        file.write_all(index.as_bytes()).and_then(|()| file.sync_all()).map_err(|error| {
            disk::write_error(&path, format!("write an index of {} bytes", index.len()), index.len() as u64, error)
        })?;
    }
    disk::sync_folder(&output)?;
    Ok(shards)
}

/// Opens the shards of an interrupted run and makes sure that they are the ones this plan began.
fn reopen(work: &WorkFolder, plan: &Plan, past_cache: bool) -> Result<Vec<ShardFile>> {
    let output = work.output();
    plan.shards
        .iter()
        .map(|shard| {
            let path = output.join(&shard.name);
            let failed = |error| Error::io(&path, "open the interrupted run's shard", error);
            let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
            let mut header = vec![0; shard.header.len()];
            let intact = file.metadata().map_err(failed)?.len() == shard.len
                && file.read_exact_at(&mut header, 0).is_ok()
                && header == shard.header;
            if !intact {
                let what = format!(
                    "the interrupted run's shard is damaged (expected {} bytes that begin with its header); delete the folder {} to start over",
                    shard.len,
                    work.path().display()
                );
                return Err(Error::file(&path, what));
            }
            Ok(ShardFile::new(path, file, past_cache))
        })
        .collect()
}

/// A lock whose holder panicked guards plain numbers that are still in order.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
