//! One file from the hub to the cache: continued where it broke off, checked before it gets its name.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
    thread,
};

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::{
    Watch,
    cache::{Cache, has_size},
    client::{Answer, Client, Failure, text},
};
use crate::{Error, HubFault};

/// Bytes read from a connection at a time.
const PIECE: usize = 256 << 10;

/// A file as the hub describes it.
#[derive(Debug, Clone)]
pub(super) struct Remote {
    pub path: String,
    pub size: u64,
    /// The server's tag: the SHA-256 of a large file, git's SHA-1 of a small one.
    pub tag: String,
}

/// Brings `file` from `address` into the cache, unless it is there; `watch` hears of its bytes, after
/// `before` of other files.
pub(super) fn fetch(
    client: &Client,
    cache: &Cache,
    address: &str,
    file: &Remote,
    before: u64,
    watch: &mut dyn Watch,
) -> Result<(), Failure> {
    let lock = cache.lock(&file.tag).map_err(Failure::Local)?;
    let blob = cache.blob(&file.tag);
    if has_size(&blob, file.size) {
        return Ok(());
    }
    let part = match lock {
        Some(_) => cache.part(&file.tag),
        // Without locks another process may write the same file, so this one takes a name of its own.
        None => cache.part(&format!("{}.{}", file.tag, std::process::id())),
    };
    loop {
        let carried = fs::metadata(&part).map_or(0, |metadata| metadata.len()).min(file.size + 1);
        fill(client, address, file, &part, before, watch)?;
        let found = checksum(&part, file).map_err(|error| local(&part, error))?;
        if found.as_ref().is_none_or(|found| *found == file.tag) {
            break;
        }
        let removed = fs::remove_file(&part);
        removed.map_err(|error| local(&part, error))?;
        // An earlier run's beginning may have been of other bytes; without one, it is the server's content that differs.
        if carried == 0 {
            let what = format!(
                "`{}` arrived with checksum {}, the hub promised {}: it was damaged or changed on its way and has been \
                 removed; fetch it again, or from another endpoint",
                file.path,
                found.unwrap_or_default(),
                file.tag
            );
            return Err(Failure::Wrong(HubFault::Untrusted, what));
        }
    }
    fs::rename(&part, &blob).map_err(|error| local(&blob, error))
}

/// Makes `part` as long as the file, from where it ends.
fn fill(
    client: &Client,
    address: &str,
    file: &Remote,
    part: &Path,
    before: u64,
    watch: &mut dyn Watch,
) -> Result<(), Failure> {
    let disk = |error| local(part, error);
    let mut options = OpenOptions::new();
    let mut out = options.create(true).write(true).truncate(false).open(part).map_err(disk)?;
    let mut have = out.seek(SeekFrom::End(0)).map_err(disk)?;
    if have > file.size {
        have = restart(&mut out).map_err(disk)?;
    }
    watch.at(before + have, &file.path);
    let (mut best, mut tried) = (have, 0);
    while have < file.size {
        let failure = match stream(client, address, file, part, &mut out, &mut have, &mut |have| {
            watch.at(before + have, &file.path)
        }) {
            Ok(()) if have == file.size => break,
            Ok(()) => Failure::Cut(format!("the connection ended after {have} of {} bytes", file.size)),
            Err(failure) => failure,
        };
        // A server that always begins anew makes no progress by sending the same bytes again.
        if have > best {
            (best, tried) = (have, 0);
        }
        tried += 1;
        let (wait, why) = client.wait(failure, tried, client.attempts())?;
        watch.waits(&why, wait);
        thread::sleep(wait);
    }
    out.sync_all().map_err(disk)
}

/// One request's worth of the file, appended to `out`.
fn stream(
    client: &Client,
    address: &str,
    file: &Remote,
    part: &Path,
    out: &mut File,
    have: &mut u64,
    told: &mut dyn FnMut(u64),
) -> Result<(), Failure> {
    let disk = |error| local(part, error);
    let answer = client.get(address, *have)?;
    let changed = |size: u64| {
        let what = format!("`{}` has {size} bytes now, {} were announced; try again", file.path, file.size);
        Failure::Wrong(HubFault::Untrusted, what)
    };
    match answer.status().as_u16() {
        206 => {
            let (first, total) = content_range(&answer).unwrap_or((u64::MAX, None));
            if let Some(total) = total.filter(|total| *total != file.size) {
                return Err(changed(total));
            }
            if first != *have {
                *have = restart(out).map_err(disk)?;
                return Err(Failure::Cut(format!("the server continues `{}` at another byte than asked", file.path)));
            }
        }
        416 => {
            *have = restart(out).map_err(disk)?;
            return Err(Failure::Cut(format!("the server does not continue `{}`", file.path)));
        }
        _ => {
            if let Some(size) = answer.body().content_length().filter(|size| *size != file.size) {
                return Err(changed(size));
            }
            *have = restart(out).map_err(disk)?;
        }
    }
    let mut body = answer.into_body().into_reader();
    let mut piece = vec![0; PIECE];
    loop {
        let count = match body.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Failure::Cut(error.to_string())),
        };
        if *have + count as u64 > file.size {
            restart(out).map_err(disk)?;
            return Err(changed(*have + count as u64));
        }
        out.write_all(&piece[..count]).map_err(disk)?;
        *have += count as u64;
        told(*have);
    }
}

fn restart(out: &mut File) -> io::Result<u64> {
    out.set_len(0)?;
    out.rewind()?;
    Ok(0)
}

/// First byte and total of `Content-Range: bytes 5-9/10`.
fn content_range(answer: &Answer) -> Option<(u64, Option<u64>)> {
    let (range, total) = text(answer, "content-range")?.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

/// What the tag should be by the file's bytes; `None` for tags that are no hash that is known.
fn checksum(part: &Path, file: &Remote) -> io::Result<Option<String>> {
    if !file.tag.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Ok(None);
    }
    match file.tag.len() {
        64 => hash::<Sha256>(part, &[]).map(Some),
        40 => hash::<Sha1>(part, format!("blob {}\0", file.size).as_bytes()).map(Some),
        _ => Ok(None),
    }
}

fn hash<H: Digest + Write>(path: &Path, head: &[u8]) -> io::Result<String> {
    let mut hasher = H::new();
    Digest::update(&mut hasher, head);
    io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn local(file: &Path, error: io::Error) -> Failure {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    Failure::Local(match full {
        true => Error::DiskFull {
            file: file.to_path_buf(),
            what:
                "the disk of the cache is full; make room, or set HF_HUB_CACHE to a folder on another disk (what has \
                   come is kept, and continued)"
                    .into(),
        },
        false => Error::io(file, "write the cache", error),
    })
}
