//! The writer never leaves half a result under the final name, and an interrupted run goes on where it stopped.

use std::{
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use scruple_weights::{Checkpoint, CheckpointWriter, Dtype, Error, TensorSpec, WriterOptions};
use serde_json::{Value, json};

const FINGERPRINT: &str = "inputs 1";

fn specs() -> Vec<TensorSpec> {
    vec![
        TensorSpec::new("a", Dtype::F32, [2, 2]),
        TensorSpec::new("b", Dtype::U8, [5]),
        TensorSpec::new("c", Dtype::Bf16, [3]),
    ]
}

/// Three tensors in two shards.
fn options() -> WriterOptions {
    WriterOptions { max_shard_bytes: 21, ..WriterOptions::default() }
}

fn create(out: &Path) -> Result<CheckpointWriter, Error> {
    CheckpointWriter::create(out, specs(), options())
}

fn resume(out: &Path) -> Result<CheckpointWriter, Error> {
    let work = CheckpointWriter::work_folder(out).unwrap();
    CheckpointWriter::resume_or_create(out, specs(), options(), FINGERPRINT, &work)
}

fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, Error>, fragments: &[&str]) {
    let error = result.expect_err("accepted").to_string();
    for fragment in fragments {
        assert!(error.contains(fragment), "`{fragment}` is not in: {error}");
    }
}

struct Place {
    folder: tempfile::TempDir,
    out: PathBuf,
    work: PathBuf,
}

fn place() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model");
    let work = folder.path().join(".model.partial");
    Place { folder, out, work }
}

fn fill(writer: &CheckpointWriter) {
    writer.write("c", &[3; 6]).unwrap();
    writer.write("a", &[1; 16]).unwrap();
    writer.write("b", &[2; 5]).unwrap();
}

fn assert_filled(out: &Path) {
    let checkpoint = Checkpoint::open(out).unwrap();
    for (name, byte, len) in [("a", 1, 16), ("b", 2, 5), ("c", 3, 6)] {
        assert_eq!(checkpoint.tensor(name).unwrap().bytes(), vec![byte; len]);
    }
}

#[test]
fn writes_shards_an_index_and_side_files() {
    let Place { folder, out, .. } = place();
    let mut writer = create(&out).unwrap();
    fill(&writer);
    writer.add_file("config.json", b"{}").unwrap();
    fs::write(folder.path().join("LICENSE"), "free").unwrap();
    writer.copy_file(&folder.path().join("LICENSE")).unwrap();
    fs::create_dir(writer.scratch().unwrap().join("activations")).unwrap();
    assert!(!out.exists());
    let written = writer.finish().unwrap();
    let files = [
        "LICENSE",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ];
    assert_eq!(listing(&out), files);
    assert_eq!(written.files, files.map(|file| out.join(file)));
    assert_eq!(listing(folder.path()), ["LICENSE", "model"]);
    assert_filled(&out);
    assert_eq!(Checkpoint::open(&out).unwrap().metadata()["format"], "pt");
    let index: Value = serde_json::from_slice(&fs::read(out.join(files[4])).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], 27);
    assert_eq!(index["weight_map"]["c"], files[3]);
    // What the process's umask grants, not what a private temporary file has.
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    fs::write(folder.path().join("plain"), "").unwrap();
    fs::create_dir(folder.path().join("plain folder")).unwrap();
    assert_eq!(mode(&out.join(files[2])), mode(&folder.path().join("plain")));
    assert_eq!(mode(&out), mode(&folder.path().join("plain folder")));
}

#[test]
fn writes_the_same_bytes_from_several_threads() {
    let Place { out, .. } = place();
    let rows = 64;
    let tensors = vec![TensorSpec::new("x", Dtype::U8, [rows, 100]), TensorSpec::new("y", Dtype::U8, [rows, 100])];
    let writer = CheckpointWriter::create(&out, tensors, WriterOptions::default()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let writer = &writer;
            scope.spawn(move || {
                for row in (thread..rows).step_by(4).rev() {
                    writer.write_at("x", row as u64 * 100, &[row as u8; 100]).unwrap();
                    writer.write_at("y", row as u64 * 100, &[!(row as u8); 100]).unwrap();
                }
            });
        }
    });
    writer.finish().unwrap();
    let checkpoint = Checkpoint::open(&out).unwrap();
    for (row, bytes) in checkpoint.tensor("x").unwrap().bytes().chunks(100).enumerate() {
        assert_eq!(bytes, [row as u8; 100]);
    }
}

#[test]
fn an_existing_output_is_refused() {
    let Place { folder, out, .. } = place();
    fs::create_dir(&out).unwrap();
    assert_refused(create(&out), &["model", "exists already", "choose another name"]);
    assert_refused(resume(&out), &["exists already"]);
    fs::remove_dir(&out).unwrap();
    symlink("nowhere", &out).unwrap();
    assert_refused(create(&out), &["exists already"]);
    fs::remove_file(&out).unwrap();
    fs::write(&out, "").unwrap();
    assert_refused(create(&out), &["exists already"]);
    assert_eq!(listing(folder.path()), ["model"]);
    assert_refused(create(Path::new("/")), &["name"]);
    assert_refused(create(&out.join("below a file")), &["make the folder"]);
}

#[test]
fn an_output_that_appears_meanwhile_is_not_touched() {
    let Place { folder, out, .. } = place();
    let writer = create(&out).unwrap();
    fill(&writer);
    fs::create_dir(&out).unwrap();
    assert_refused(writer.finish(), &["exists already"]);
    assert!(listing(&out).is_empty());
    assert_eq!(listing(folder.path()), ["model"]);
}

#[test]
fn a_dropped_writer_leaves_nothing() {
    let Place { folder, out, .. } = place();
    let writer = create(&out).unwrap();
    fill(&writer);
    assert_eq!(listing(folder.path()).len(), 1);
    drop(writer);
    assert!(listing(folder.path()).is_empty());
    resume(&out).unwrap().discard();
    assert!(listing(folder.path()).is_empty());
}

#[test]
fn wrong_tensors_are_refused_before_anything_is_written() {
    let Place { folder, out, .. } = place();
    let tensors = vec![
        TensorSpec::new("a", Dtype::F32, [1]),
        TensorSpec::new("a", Dtype::F32, [2]),
        TensorSpec::new("q", Dtype::Q4_0, [32]),
        TensorSpec::new("huge", Dtype::F32, [1 << 40, 1 << 40]),
        TensorSpec::new("__metadata__", Dtype::F32, [1]),
    ];
    let refused = CheckpointWriter::create(&out, tensors, options());
    assert_refused(
        refused,
        &["`a` is to be written twice", "`q` has dtype Q4_0", "`huge` has shape", "`__metadata__`"],
    );
    assert!(listing(folder.path()).is_empty());
}

#[test]
fn an_output_larger_than_the_disk_is_refused_before_anything_is_written() {
    let Place { folder, out, .. } = place();
    let huge = vec![TensorSpec::new("x", Dtype::U8, [1 << 60])];
    let Err(error) = CheckpointWriter::create(&out, huge.clone(), options()) else { panic!("accepted") };
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    assert_refused::<()>(Err(error), &["the disk is too full", "bytes are missing", "make room"]);
    let refused = CheckpointWriter::resume_or_create(&out, huge, options(), "", &folder.path().join("work"));
    assert_refused(refused, &["the disk is too full"]);
    assert!(listing(folder.path()).is_empty());
    let more = vec![TensorSpec::new("x", Dtype::U8, [usize::MAX])];
    assert_refused(CheckpointWriter::create(&out, more, options()), &["more than a file system can hold"]);
}

#[test]
fn every_byte_must_be_written_exactly_once() {
    let Place { folder, out, .. } = place();
    let writer = create(&out).unwrap();
    assert_refused(writer.write("z", &[]), &["`z`", "not among the tensors"]);
    assert_refused(writer.write("a", &[0; 15]), &["`a` takes 16 bytes, was given 15"]);
    assert_refused(writer.write_at("a", 10, &[0; 7]), &["`a` takes 16 bytes, was given 7 from byte 10"]);
    assert_refused(writer.write_at("a", u64::MAX, &[0; 7]), &["`a` takes 16 bytes"]);
    writer.write_at("a", 4, &[0; 4]).unwrap();
    assert_refused(writer.write_at("a", 6, &[0; 4]), &["`a` has its bytes 6..8 written twice"]);
    assert_refused(writer.write("a", &[0; 16]), &["written twice"]);
    assert!(!writer.is_written("a").unwrap());
    writer.write("b", &[0; 5]).unwrap();
    assert!(writer.is_written("b").unwrap());
    assert_refused(
        writer.finish(),
        &["`a` is not complete: 4 of 16 bytes were written, the first gap is 0..4", "`c` is not complete: 0 of 6"],
    );
    assert!(listing(folder.path()).is_empty());
}

#[test]
fn side_files_have_plain_names_of_their_own() {
    let Place { folder, out, .. } = place();
    let mut writer = create(&out).unwrap();
    for name in ["", ".", "..", "../x", "a/b", "/etc/passwd", "a\\b", "a\0b"] {
        assert_refused(writer.add_file(name, b""), &["no plain file name"]);
    }
    writer.add_file("config.json", b"{}").unwrap();
    for name in ["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"] {
        assert_refused(writer.add_file(name, b""), &["is there already", name]);
    }
    assert_refused(writer.copy_file(folder.path()), &["regular file"]);
    assert_refused(writer.copy_file(&folder.path().join("absent")), &["absent", "open the file"]);
}

#[test]
fn an_interrupted_run_goes_on_where_it_stopped() {
    let Place { folder, out, work } = place();
    let mut writer = resume(&out).unwrap();
    assert!(writer.finished_units().is_empty());
    writer.write_at("a", 8, &[1; 8]).unwrap();
    writer.write_at("a", 0, &[1; 8]).unwrap();
    writer.commit_unit("block 0", json!({ "error": 0.25 })).unwrap();
    assert_refused(writer.commit_unit("block 0", Value::Null), &["`block 0` is finished twice"]);
    writer.write("b", &[9; 5]).unwrap(); // never committed
    writer.add_file("stale.json", b"{}").unwrap();
    fs::write(writer.scratch().unwrap().join("activations"), "x").unwrap();
    drop(writer);
    assert_eq!(listing(folder.path()), [".model.partial"]);

    let mut writer = resume(&out).unwrap();
    assert_eq!(writer.finished_units(), [("block 0".to_string(), json!({ "error": 0.25 }))]);
    assert!(writer.is_written("a").unwrap() && !writer.is_written("b").unwrap());
    assert_eq!(fs::read(writer.scratch().unwrap().join("activations")).unwrap(), b"x");
    assert_refused(writer.write("a", &[1; 16]), &["written twice"]);
    writer.write("b", &[2; 5]).unwrap();
    writer.commit_unit("block 1", Value::Null).unwrap();
    drop(writer);

    let mut writer = resume(&out).unwrap();
    assert_eq!(writer.finished_units().len(), 2);
    writer.write("c", &[3; 6]).unwrap();
    writer.add_file("config.json", b"{}").unwrap();
    writer.finish().unwrap();
    assert!(!work.exists());
    assert_eq!(listing(folder.path()), ["model"]);
    assert!(!out.join("stale.json").exists());
    assert_filled(&out);

    let straight = folder.path().join("straight");
    let mut writer = create(&straight).unwrap();
    fill(&writer);
    writer.add_file("config.json", b"{}").unwrap();
    writer.finish().unwrap();
    for name in listing(&out) {
        assert_eq!(fs::read(out.join(&name)).unwrap(), fs::read(straight.join(&name)).unwrap(), "{name}");
    }
}

#[test]
fn a_torn_last_line_of_the_journal_does_not_count() {
    for torn in [&b"{\"unit\":\"block 1\",\"val"[..], b"{\"unit\":\"block 1\",\"value\":null,\"wrote\":[]}", &[0; 100]]
    {
        let Place { out, work, .. } = place();
        let mut writer = resume(&out).unwrap();
        writer.write("a", &[1; 16]).unwrap();
        writer.commit_unit("block 0", Value::Null).unwrap();
        drop(writer);
        let journal = work.join("journal.jsonl");
        fs::OpenOptions::new().append(true).open(&journal).unwrap().write_all(torn).unwrap();

        let mut writer = resume(&out).unwrap();
        assert_eq!(writer.finished_units().len(), 1);
        writer.write("b", &[2; 5]).unwrap();
        writer.write("c", &[3; 6]).unwrap();
        writer.commit_unit("block 1", Value::Null).unwrap();
        drop(writer);
        assert_eq!(resume(&out).unwrap().finished_units().len(), 2);
        resume(&out).unwrap().finish().unwrap();
        assert_filled(&out);
    }
}

#[test]
fn a_damaged_or_foreign_interrupted_run_is_refused_and_kept() {
    let Place { folder, out, work } = place();
    let mut writer = resume(&out).unwrap();
    writer.write("a", &[1; 16]).unwrap();
    writer.commit_unit("block 0", Value::Null).unwrap();

    assert_refused(resume(&out), &[".model.partial", "another run is writing this output"]);
    drop(writer);

    let other = CheckpointWriter::resume_or_create(&out, specs(), options(), "inputs 2", &work);
    assert_refused(other, &["other inputs or settings", "delete the folder", ".model.partial", "another output"]);
    let other = CheckpointWriter::resume_or_create(&out, specs(), WriterOptions::default(), FINGERPRINT, &work);
    assert_refused(other, &["other tensors or shards", "delete the folder"]);

    let journal = work.join("journal.jsonl");
    let intact = fs::read_to_string(&journal).unwrap();
    let spoil = |text: String, fragments: &[&str]| {
        fs::write(&journal, text).unwrap();
        assert_refused(resume(&out), fragments);
        fs::write(&journal, &intact).unwrap();
    };
    spoil(format!("x{intact}"), &["line 1", "damaged"]);
    spoil(String::new(), &["line 1", "damaged"]);
    spoil(format!("{intact}garbage\n"), &["line 3", "damaged"]);
    spoil(intact.replace("\"scruple_journal\":1", "\"scruple_journal\":2"), &["another version"]);
    spoil(intact.replace("[0,0,16]", "[0,0,17]"), &["unit `block 0`", "damaged"]);
    spoil(intact.replace("[0,0,16]", "[99,0,16]"), &["unit `block 0`", "damaged"]);
    spoil(intact.replace("[0,0,16]", "[0,16,0]"), &["unit `block 0`", "damaged"]);
    spoil(intact.replace("[0,0,16]", "[0,0,16],[0,4,8]"), &["unit `block 0`", "damaged"]);

    let shard = work.join("output/model-00001-of-00002.safetensors");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() - 1]).unwrap();
    assert_refused(resume(&out), &["model-00001-of-00002.safetensors", "shard is damaged", "delete the folder"]);
    fs::remove_file(&shard).unwrap();
    assert_refused(resume(&out), &["model-00001-of-00002.safetensors", "open the interrupted run's shard"]);
    fs::write(&shard, &bytes).unwrap();
    assert_eq!(resume(&out).unwrap().finished_units().len(), 1);

    // A folder of someone else is neither used nor emptied.
    let mine = folder.path().join("mine");
    fs::create_dir(&mine).unwrap();
    fs::write(mine.join("thesis"), "").unwrap();
    let refused = CheckpointWriter::resume_or_create(&out, specs(), options(), FINGERPRINT, &mine);
    assert_refused(refused, &["folder with other files"]);
    assert_eq!(listing(&mine), ["thesis"]);
}

#[test]
fn a_run_that_ended_before_its_journal_began_starts_over() {
    let Place { out, work, .. } = place();
    fs::create_dir_all(work.join("output")).unwrap();
    fs::write(work.join("lock"), "").unwrap();
    fs::write(work.join("output/model-00001-of-00002.safetensors"), "half").unwrap();
    fs::write(work.join("journal.new"), "{").unwrap();
    let writer = resume(&out).unwrap();
    fill(&writer);
    writer.finish().unwrap();
    assert_filled(&out);
    assert!(!work.exists());
}

/// Runs the test `name` of this file in a process of its own.
fn child(name: &str, out: &Path) -> std::process::Output {
    let test = std::env::current_exe().unwrap();
    let mut command = Command::new(test);
    command.args(["--exact", name, "--ignored", "--nocapture"]).env("OUT", out);
    command.output().unwrap()
}

fn out_of_child() -> Option<PathBuf> {
    std::env::var_os("OUT").map(PathBuf::from)
}

#[test]
#[ignore = "run in a process of its own by the tests below"]
fn child_that_dies_in_a_resumable_run() {
    let Some(out) = out_of_child() else { return };
    let mut writer = resume(&out).unwrap();
    writer.write("c", &[3; 6]).unwrap();
    writer.commit_unit("block 0", json!(0)).unwrap();
    writer.write_at("a", 0, &[7; 10]).unwrap();
    std::process::abort();
}

#[test]
#[ignore = "run in a process of its own by the tests below"]
fn child_that_dies() {
    let Some(out) = out_of_child() else { return };
    let writer = create(&out).unwrap();
    writer.write("c", &[3; 6]).unwrap();
    std::process::abort();
}

#[test]
fn a_killed_run_leaves_no_output_and_the_next_one_cleans_up() {
    let Place { folder, out, .. } = place();
    assert!(!child("child_that_dies", &out).status.success());
    assert!(!out.exists());
    assert_eq!(listing(folder.path()).len(), 1, "the work folder of the killed run");
    let writer = create(&out).unwrap();
    let second = create(&out).unwrap(); // does not take the living run's folder for an abandoned one
    assert_eq!(listing(folder.path()).len(), 2);
    drop(second);
    fill(&writer);
    writer.finish().unwrap();
    assert_eq!(listing(folder.path()), ["model"]);

    let Place { folder, out, .. } = place();
    assert!(!child("child_that_dies_in_a_resumable_run", &out).status.success());
    assert_eq!(listing(folder.path()), [".model.partial"]);
    let writer = resume(&out).unwrap();
    assert_eq!(writer.finished_units(), [("block 0".to_string(), json!(0))]);
    writer.write("a", &[1; 16]).unwrap();
    writer.write("b", &[2; 5]).unwrap();
    writer.finish().unwrap();
    assert_filled(&out);
}

#[test]
fn a_work_folder_whose_output_has_moved_is_cleaned_up() {
    let Place { folder, out, work } = place();
    let writer = resume(&out).unwrap();
    fill(&writer);
    drop(writer);
    fs::rename(work.join("output"), &out).unwrap(); // killed right after the move
    assert_refused(resume(&out), &["exists already"]);
    assert_eq!(listing(folder.path()), ["model"]);
}

/// Limits the size of files, as a full disk would, to `bytes`.
fn limit_files(bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: plain system calls; ignoring the signal makes the writes fail with an error instead.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
}

#[test]
#[ignore = "run in a process of its own by the tests below"]
fn child_without_room() {
    let Some(out) = out_of_child() else { return };
    limit_files(1 << 16);
    let large = vec![TensorSpec::new("x", Dtype::U8, [1 << 17])];
    let Err(error) = CheckpointWriter::create(&out, large, options()) else { panic!("accepted") };
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    assert_refused::<()>(Err(error), &["model.safetensors", "reserve", "make room"]);

    let mut writer = create(&out).unwrap();
    fill(&writer);
    assert_refused(writer.add_file("tokenizer.json", &[0; 1 << 17]), &["tokenizer.json", "make room"]);
    drop(writer);

    limit_files(1 << 10);
    let mut writer = resume(&out).unwrap();
    fill(&writer);
    let long = json!("x".repeat(2000));
    assert_refused(writer.commit_unit("block 0", long), &["journal.jsonl", "append", "make room"]);
    assert_refused(writer.commit_unit("block 1", Value::Null), &["an earlier write failed"]);
    assert_refused(writer.finish(), &["an earlier write failed"]);
    let writer = resume(&out).unwrap(); // the torn line does not count
    assert!(writer.finished_units().is_empty());
    fill(&writer);
    drop(writer);
}

#[test]
fn a_full_disk_is_an_error_that_names_file_and_bytes() {
    let Place { folder, out, .. } = place();
    let child = child("child_without_room", &out);
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    assert_eq!(listing(folder.path()), [".model.partial"]);
}

/// A real file system of one megabyte, where this process may mount one.
#[cfg(target_os = "linux")]
#[test]
#[allow(clippy::print_stdout, reason = "a test says what it could not try")]
fn a_really_full_disk_is_an_error_too() {
    struct Mount(std::ffi::CString);
    impl Drop for Mount {
        fn drop(&mut self) {
            // SAFETY: `self.0` is a NUL-terminated path.
            unsafe { libc::umount2(self.0.as_ptr(), libc::MNT_DETACH) };
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = std::ffi::CString::new(folder.path().to_str().unwrap()).unwrap();
    // SAFETY: all arguments are NUL-terminated strings that live through the call.
    let mounted =
        unsafe { libc::mount(c"tmpfs".as_ptr(), path.as_ptr(), c"tmpfs".as_ptr(), 0, c"size=1m".as_ptr().cast()) };
    if mounted != 0 {
        println!("skipped: this process may not mount a small disk; the test above covers the errors themselves");
        return;
    }
    let _mount = Mount(path);
    let out = folder.path().join("model");
    let bytes = |len: usize| vec![TensorSpec::new("x", Dtype::U8, [len])];
    assert_refused(
        CheckpointWriter::create(&out, bytes(1 << 21), options()),
        &["the disk is too full", "bytes are missing"],
    );
    let mut writer = CheckpointWriter::create(&out, bytes(900 << 10), options()).unwrap();
    let error = writer.add_file("tokenizer.json", &[0; 400 << 10]).unwrap_err();
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    writer.write("x", &vec![0; 900 << 10]).unwrap(); // its blocks were reserved
    drop(writer);
    assert!(listing(folder.path()).is_empty());
}
