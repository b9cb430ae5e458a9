//! Files that other programs change while they are mapped.

use std::{env, fs, path::Path, process::Command};

use scruple_weights::{Shard, guard};

/// Names the file the child process is to open, cut short and read.
const CHILD: &str = "SCRUPLE_TEST_TRUNCATE";

const PAGES: usize = 64;
const PAGE: usize = 4096;

/// Does what the guard is for, in a process of its own: this very test, started again with [`CHILD`] set.
fn read_beyond_the_end(path: &Path) -> u64 {
    guard::install();
    let other = Shard::open(path.with_file_name("other.bin")).unwrap();
    let dropped = Shard::open(path.with_file_name("other.bin")).unwrap();
    let shard = Shard::open(path).unwrap();
    drop(dropped);
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(PAGE as u64).unwrap();
    let sum = |shard: &Shard| shard.bytes().iter().map(|&byte| u64::from(byte)).sum::<u64>();
    sum(&other) + sum(&shard)
}

#[test]
fn a_file_cut_short_while_mapped_is_named_and_the_exit_code_is_2() {
    if let Some(path) = env::var_os(CHILD) {
        panic!("the guard let a read beyond the end return {}", read_beyond_the_end(path.as_ref()));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, vec![1u8; PAGES * PAGE]).unwrap();
    fs::write(folder.path().join("other.bin"), vec![2u8; PAGES * PAGE]).unwrap();
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "a_file_cut_short_while_mapped_is_named_and_the_exit_code_is_2", "--nocapture"])
        .env(CHILD, &path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stderr);
    assert_eq!(child.status.code(), Some(2), "{said}");
    let expected = format!("error: {}: the file was made shorter while it was being read", path.display());
    assert!(said.contains(&expected), "{said}");
}

#[test]
fn a_file_written_to_since_it_was_opened_is_refused_but_a_replaced_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, vec![1u8; PAGE]).unwrap();
    let shard = Shard::open(&path).unwrap();
    shard.expect_unchanged().unwrap();

    let sibling = folder.path().join("new");
    fs::write(&sibling, vec![2u8; 2 * PAGE]).unwrap();
    fs::rename(&sibling, &path).unwrap();
    shard.expect_unchanged().unwrap();
    assert!(shard.bytes().iter().all(|&byte| byte == 1), "the map holds on to the file it was made of");

    let shard = Shard::open(&path).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(3 * PAGE as u64).unwrap();
    let message = shard.expect_unchanged().unwrap_err().to_string();
    assert!(message.contains("had 8192 bytes when it was opened and has 12288 now"), "{message}");
}
