//! Files and folders that are damaged, malicious or something else: each is refused with a sentence that says what is
//! wrong, and nothing panics.

use std::{
    fs,
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::Path,
};

use scruple_weights::{Checkpoint, Dtype, Error, Shard, format::safetensors};

/// A safetensors file of `header` and `data`.
fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

/// The header entry of one F32 tensor.
fn tensor(name: &str, shape: &str, begin: usize, end: usize) -> String {
    format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

fn header(entries: &[String]) -> String {
    format!("{{{}}}", entries.join(","))
}

/// Two tensors of 8 bytes each.
fn good() -> Vec<u8> {
    file(&header(&[tensor("a", "[2]", 0, 8), tensor("b", "[1,2]", 8, 16)]), &[0; 16])
}

fn open_bytes(name: &str, bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    let error = Checkpoint::open(&path).expect_err("accepted").to_string();
    assert!(error.contains(name), "the file is not named: {error}");
    error
}

#[test]
fn damaged_files_are_refused_by_name() {
    let one = |shape: &str, begin, end| header(&[tensor("a", shape, begin, end)]);
    let entry = |value: &str| format!(r#"{{"a":{value}}}"#);
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let huge = {
        let mut huge = (safetensors::MAX_HEADER_BYTES + 1).to_le_bytes().to_vec();
        huge.resize(64, b' ');
        huge
    };
    let bad_utf8 = {
        let mut bytes = good();
        bytes[10] = 0xff;
        bytes
    };
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("empty", vec![], &["empty (0 bytes)"]),
        ("one byte", vec![7], &["found 1 bytes", "truncated"]),
        ("seven bytes", vec![0; 7], &["found 7 bytes", "truncated"]),
        ("header length only", 100u64.to_le_bytes().to_vec(), &["should have 100 bytes", "100 are missing"]),
        ("header cut", good()[..50].to_vec(), &["header should have", "are missing", "fetch it again"]),
        ("no header", file("", &[]), &["does not begin with `{`"]),
        ("header too large", huge, &["claims 100000001 bytes", "100000000 allowed"]),
        ("header of 2^63", [&(1u64 << 63).to_le_bytes()[..], &[0; 32]].concat(), &["claims 9223372036854775808 bytes"]),
        ("header of 2^64-1", vec![0xff; 64], &["claims 18446744073709551615 bytes"]),
        ("header not UTF-8", bad_utf8, &["not UTF-8", "byte 10"]),
        ("header of spaces", file("        ", &[]), &["does not begin with `{`"]),
        ("header is a list", file("[1, 2]  ", &[]), &["does not begin with `{`"]),
        ("header after a space", file(r#" {"a":1}"#, &[]), &["does not begin with `{`"]),
        ("header cut inside", file(r#"{"a":{"dtype":"F32""#, &[]), &["not valid safetensors JSON"]),
        ("two headers", file("{}{}", &[]), &["not valid safetensors JSON", "trailing characters"]),
        ("trailing comma", file(r#"{"a":{},}"#, &[]), &["not valid safetensors JSON"]),
        ("lone surrogate", file(r#"{"\ud800":{}}"#, &[]), &["not valid safetensors JSON"]),
        ("control character", file("{\"a\nb\":{}}", &[]), &["not valid safetensors JSON"]),
        ("deep tensor", file(&entry(&deep), &[]), &["`a`", "malformed entry"]),
        ("deep unclosed", file(&format!("{{\"a\":{}", "[".repeat(1_000_000)), &[]), &["not valid safetensors JSON"]),
        ("deep metadata", file(&format!(r#"{{"__metadata__":{deep}}}"#), &[]), &["`__metadata__` is not a map"]),
        ("entry is null", file(&entry("null"), &[]), &["`a`", "malformed entry"]),
        ("entry is empty", file(&entry("{}"), &[]), &["`a`", "missing field `dtype`"]),
        ("no shape", file(&entry(r#"{"dtype":"F32","data_offsets":[0,4]}"#), &[0; 4]), &["missing field `shape`"]),
        ("no offsets", file(&entry(r#"{"dtype":"F32","shape":[1]}"#), &[0; 4]), &["missing field `data_offsets`"]),
        (
            "unknown key",
            file(&entry(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4],"stride":[1]}"#), &[0; 4]),
            &["unknown field `stride`"],
        ),
        (
            "two shapes",
            file(&entry(r#"{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}"#), &[0; 4]),
            &["duplicate field `shape`"],
        ),
        (
            "one offset",
            file(&entry(r#"{"dtype":"F32","shape":[1],"data_offsets":[4]}"#), &[0; 4]),
            &["malformed entry", "length 1"],
        ),
        (
            "three offsets",
            file(&entry(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}"#), &[0; 4]),
            &["malformed entry"],
        ),
        ("negative dimension", file(&one("[-1]", 0, 4), &[0; 4]), &["malformed entry", "`-1`"]),
        ("fractional dimension", file(&one("[1.5]", 0, 4), &[0; 4]), &["malformed entry", "`1.5`"]),
        ("dimension beyond u64", file(&one("[18446744073709551616]", 0, 4), &[0; 4]), &["malformed entry"]),
        ("text as shape", file(&one("\"[1]\"", 0, 4), &[0; 4]), &["malformed entry", "expected a sequence"]),
        (
            "unknown dtype",
            file(&good_header().replace("F32", "F5"), &[0; 16]),
            &["dtype `F5`", "`a`", "`b`", "supported are F64, F32"],
        ),
        ("dtype is a number", file(&good_header().replace("\"F32\"", "32"), &[0; 16]), &["malformed entry"]),
        ("overflowing shape", file(&one("[4294967296,4294967296]", 0, 4), &[0; 4]), &["whose size in bytes overflows"]),
        ("overflowing bytes", file(&one("[4611686018427387904]", 0, 4), &[0; 4]), &["whose size in bytes overflows"]),
        (
            "overflow before a zero",
            file(&one("[9223372036854775808,4,0]", 0, 0), &[]),
            &["whose size in bytes overflows"],
        ),
        ("too few bytes", file(&one("[2]", 0, 4), &[0; 4]), &["4 bytes, where F32 of shape [2] takes 8"]),
        ("too many bytes", file(&one("[2]", 0, 12), &[0; 12]), &["12 bytes, where F32 of shape [2] takes 8"]),
        ("offsets reversed", file(&one("[1]", 4, 0), &[0; 4]), &["end before they begin"]),
        (
            "offsets at the end of numbers",
            file(&one("[1]", usize::MAX - 4, usize::MAX), &[0; 4]),
            &["begins at data byte", "belong to no tensor"],
        ),
        ("hole at the start", file(&one("[1]", 4, 8), &[0; 8]), &["`a`", "4 bytes after the header"]),
        (
            "hole between",
            file(&header(&[tensor("a", "[1]", 0, 4), tensor("b", "[1]", 8, 12)]), &[0; 12]),
            &["`b`", "4 bytes after `a` belong to no tensor"],
        ),
        (
            "overlap",
            file(&header(&[tensor("a", "[2]", 0, 8), tensor("b", "[2]", 4, 12)]), &[0; 12]),
            &["`b`", "overlaps `a`", "4 bytes are shared"],
        ),
        (
            "same bytes twice",
            file(&header(&[tensor("a", "[2]", 0, 8), tensor("b", "[2]", 0, 8)]), &[0; 8]),
            &["overlaps", "8 bytes are shared"],
        ),
        (
            "contained",
            file(&header(&[tensor("a", "[4]", 0, 16), tensor("b", "[1]", 4, 8), tensor("c", "[1]", 16, 20)]), &[0; 20]),
            &["`b`", "overlaps `a`"],
        ),
        ("trailing bytes", [good(), vec![0; 3]].concat(), &["3 bytes after the last tensor"]),
        ("data without tensors", file("{}", &[0; 9]), &["9 bytes after the last tensor"]),
        ("data cut", good()[..good().len() - 5].to_vec(), &["truncated", "5 bytes are missing", "fetch it again"]),
        ("data absent", file(&good_header(), &[]), &["truncated", "16 bytes are missing"]),
        (
            "name twice",
            file(&header(&[tensor("a", "[1]", 0, 4), tensor("a", "[1]", 4, 8)]), &[0; 8]),
            &["`a`", "more than once"],
        ),
        (
            "metadata twice",
            file(r#"{"__metadata__":{},"__metadata__":{}}"#, &[]),
            &["`__metadata__` stands in the header twice"],
        ),
        ("metadata key twice", file(r#"{"__metadata__":{"k":"1","k":"2"}}"#, &[]), &["key `k` twice"]),
        ("metadata not text", file(r#"{"__metadata__":{"k":1}}"#, &[]), &["not a map of strings"]),
        (
            "LFS pointer",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4998\n".to_vec(),
            &["git-LFS pointer", "4998 bytes", "git lfs pull"],
        ),
        ("HTML page", b"<!DOCTYPE html>\n<html><body>404</body></html>".to_vec(), &["web page (HTML)"]),
        ("HTML page, indented", b"\n  <HTML><body>404</body></HTML>".to_vec(), &["web page (HTML)"]),
        ("JSON error", br#"{"error":"Repository not found"}"#.to_vec(), &["this is JSON text"]),
        ("GGUF", b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0".to_vec(), &["number of metadata keys", "truncated"]),
        ("zip", b"PK\x03\x04\x14\0\0\0\0\0".to_vec(), &["zip archive", "truncated"]),
        ("gzip", vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3], &["compressed archive"]),
    ];
    assert!(cases.len() >= 60);
    for (name, bytes, fragments) in cases {
        let error = open_bytes("x.safetensors", &bytes);
        for fragment in fragments {
            assert!(error.contains(fragment), "{name}: `{fragment}` is not in: {error}");
        }
    }
    assert!(open_bytes("pytorch_model.bin", b"\x80\x02}q\0.").contains("`torch.save` did not write"));
}

fn good_header() -> String {
    let good = good();
    String::from_utf8(good[8..good.len() - 16].to_vec()).unwrap()
}

#[test]
fn all_faults_of_a_file_come_at_once() {
    let entries =
        [tensor("a", "[3]", 0, 8), tensor("b", "[1,2]", 8, 16).replace("F32", "F3"), tensor("c", "[-1]", 0, 0)];
    let Err(Error::Malformed(problems)) = safetensors::parse(Path::new("x"), &file(&header(&entries), &[0; 16])) else {
        panic!("accepted")
    };
    let names: Vec<_> = problems.iter().map(|problem| problem.tensor.as_deref().unwrap()).collect();
    assert_eq!(names, ["a", "b", "c"]);
}

#[test]
fn a_header_of_a_million_faults_is_given_up_early() {
    for text in [format!("{{{}}}", vec!["\"\":1"; 1_000_000].join(",")), good_header() + &",".repeat(1 << 20)] {
        let start = std::time::Instant::now();
        let error = safetensors::parse(Path::new("x"), &file(&text, &[])).unwrap_err();
        assert!(error.to_string().len() < 10_000);
        if let Error::Malformed(problems) = error {
            assert!(problems.len() < 1100);
        }
        assert!(start.elapsed().as_secs() < 2);
    }
    let same: Vec<_> = (0..5000).map(|_| tensor("a", "[0]", 0, 0)).collect();
    let error = safetensors::parse(Path::new("x"), &file(&header(&same), &[])).unwrap_err();
    let Error::Malformed(problems) = error else { panic!() };
    assert_says(&problems.last().unwrap().to_string(), &["3999 further faults are not listed"]);
}

#[test]
fn unusual_but_valid_files_are_read() {
    for (bytes, tensors) in [
        (file("{}", &[]), 0),
        (file("{}      ", &[]), 0),
        (file(r#"{"__metadata__":{"k":"v"}}"#, &[]), 0),
        (file(&header(&[tensor("scalar", "[]", 0, 4)]), &[0; 4]), 1),
        (file(&header(&[tensor("empty", "[0,18446744073709551615]", 0, 0)]), &[]), 1),
        (file(&header(&[tensor("b", "[1]", 4, 8), tensor("a", "[1]", 0, 4), tensor("", "[0]", 8, 8)]), &[0; 8]), 3),
    ] {
        let (entries, _) = safetensors::parse(Path::new("x"), &bytes).unwrap();
        assert_eq!(entries.len(), tensors);
        assert!(entries.is_sorted_by_key(|entry| entry.range.start));
        assert!(::safetensors::SafeTensors::deserialize(&bytes).is_ok());
    }
}

/// Every prefix is refused; every changed bit is refused or leaves entries that fit; and what we accept, the reference
/// implementation accepts.
#[test]
fn no_mutation_panics_or_reaches_outside_the_file() {
    let good = file(
        &format!(
            r#"{{"__metadata__":{{"format":"pt"}},{},{},"h":{{"dtype":"BF16","shape":[3],"data_offsets":[16,22]}}}}"#,
            tensor("a", "[2]", 0, 8),
            tensor("b", "[1,2]", 8, 16)
        ),
        &[1; 22],
    );
    let check = |bytes: &[u8]| {
        if let Ok((entries, _)) = safetensors::parse(Path::new("x"), bytes) {
            for entry in entries {
                let len = entry.dtype.bytes(entry.shape.iter().product()).unwrap();
                assert_eq!(bytes[entry.range].len(), len);
            }
            assert!(::safetensors::SafeTensors::deserialize(bytes).is_ok(), "{}", String::from_utf8_lossy(bytes));
        }
    };
    assert!(safetensors::parse(Path::new("x"), &good).is_ok());
    for len in 0..good.len() {
        assert!(safetensors::parse(Path::new("x"), &good[..len]).is_err(), "a prefix of {len} bytes was accepted");
    }
    for bit in 0..8 * good.len() {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        check(&bytes);
    }
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    const ALPHABET: &[u8] = b"{}[]\",:0123456789.-eE\\u \nabFBUI\0\xff";
    for _ in 0..20_000 {
        let mut bytes = good.clone();
        for _ in 0..1 + random(4) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] = ALPHABET[random(ALPHABET.len())],
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, ALPHABET[random(ALPHABET.len())]),
                _ => {
                    let end = (at + 1 + random(24)).min(bytes.len());
                    let piece = bytes[at..end].to_vec();
                    let to = random(bytes.len());
                    bytes.splice(to..to, piece);
                }
            }
        }
        if random(2) == 0 && bytes.len() > 30 {
            let header = (bytes.len() - 30) as u64; // keeps the mutated header whole
            bytes[..8].copy_from_slice(&header.to_le_bytes());
        }
        check(&bytes);
    }
}

/// A folder under construction.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn with(self, name: &str, bytes: impl AsRef<[u8]>) -> Self {
        fs::write(self.path().join(name), bytes).unwrap();
        self
    }

    /// A shard whose tensors have one element each.
    fn shard(self, name: &str, tensors: &[&str]) -> Self {
        let entries: Vec<_> =
            tensors.iter().enumerate().map(|(i, name)| tensor(name, "[1]", 4 * i, 4 * i + 4)).collect();
        self.with(name, file(&header(&entries), &vec![0; 4 * tensors.len()]))
    }

    fn index(self, weight_map: &[(&str, &str)]) -> Self {
        let pairs: Vec<_> = weight_map.iter().map(|(name, file)| format!("{name:?}:{file:?}")).collect();
        let text = format!("{{\"metadata\":{{\"total_size\":0}},\"weight_map\":{{{}}}}}", pairs.join(","));
        self.with("model.safetensors.index.json", text)
    }

    fn refused(&self) -> String {
        Checkpoint::open(self.path()).expect_err("accepted").to_string()
    }
}

#[track_caller]
fn assert_says(error: &str, fragments: &[&str]) {
    for fragment in fragments {
        assert!(error.contains(fragment), "`{fragment}` is not in: {error}");
    }
}

#[test]
fn all_faults_of_a_sharded_folder_come_at_once() {
    let folder = Folder::new()
        .shard("one.safetensors", &["a", "both", "unlisted"])
        .shard("two.safetensors", &["b", "both", "elsewhere"])
        .with("broken.safetensors", b"<html></html>")
        .index(&[
            ("a", "one.safetensors"),
            ("absent", "one.safetensors"),
            ("b", "two.safetensors"),
            ("both", "one.safetensors"),
            ("c", "three.safetensors"),
            ("d", "three.safetensors"),
            ("e", "broken.safetensors"),
            ("elsewhere", "one.safetensors"),
            ("f", "../../etc/passwd"),
            ("g", "/etc/passwd"),
            ("h", ""),
            ("i", "sub/../one.safetensors"),
        ]);
    let error = folder.refused();
    assert_says(
        &error,
        &[
            "one.safetensors: tensor `absent` is missing",
            "two.safetensors: tensor `both` also lies in",
            "three.safetensors: the shard is missing: the index places 2 tensors in it",
            "broken.safetensors: this is a web page",
            "one.safetensors: tensor `elsewhere` lies in",
            "one.safetensors: tensor `unlisted` is not listed in",
            "tensor `f` lies in `../../etc/passwd`",
            "tensor `g` lies in `/etc/passwd`",
            "tensor `h` lies in ``",
            "tensor `i` lies in `sub/../one.safetensors`",
        ],
    );
    let Err(Error::Malformed(problems)) = Checkpoint::open(folder.path()) else { panic!() };
    assert_eq!(problems.len(), 10, "{problems:#?}");
}

#[test]
fn broken_indexes_are_refused() {
    for (text, fragments) in [
        ("", &["index.json", "empty"] as &[&str]),
        ("{", &["index is not valid"]),
        ("{}", &["missing field `weight_map`"]),
        ("[]", &["index is not valid"]),
        (r#"{"weight_map":{}}"#, &["lists no tensors"]),
        (r#"{"weight_map":[]}"#, &["index is not valid", "weight_map"]),
        (r#"{"weight_map":{"a":1}}"#, &["index is not valid"]),
        (r#"{"weight_map":{"a":"m.safetensors","a":"m.safetensors"}}"#, &["`a`", "more than once"]),
        ("<html>", &["web page"]),
        ("version https://git-lfs.github.com/spec/v1\nsize 12\n", &["git-LFS pointer", "12 bytes"]),
        ("{\"weight_map\":{\"a\":\"\u{0}\"}}", &["index is not valid"]),
        (r#"{"weight_map":{"a":"x\u0000y"}}"#, &["expected a file inside the checkpoint's folder"]),
    ] {
        let folder = Folder::new().shard("m.safetensors", &["a"]).with("model.safetensors.index.json", text);
        assert_says(&folder.refused(), fragments);
    }
    let deep = format!("{{\"weight_map\":{}1{}}}", "{\"a\":".repeat(5000), "}".repeat(5000));
    assert_says(&Folder::new().with("model.safetensors.index.json", deep).refused(), &["index is not valid"]);
}

#[test]
fn folders_that_are_no_checkpoints_are_refused() {
    assert_says(&Folder::new().refused(), &["expected *.safetensors"]);
    assert_says(&Folder::new().with("config.json", "{}").refused(), &["found none"]);
    let pickle = Folder::new().with("pytorch_model.bin", b"PK\x03\x04");
    assert_says(&pickle.refused(), &["pytorch_model.bin", "zip archive", "truncated"]);
    let two = Folder::new().with("a.gguf", b"GGUF").with("b.gguf", b"GGUF");
    assert_says(&two.refused(), &["2 GGUF files", "name the one"]);
    let joined = Folder::new().shard("a.safetensors", &["x", "y"]).shard("b.safetensors", &["y", "z"]);
    assert_says(&joined.refused(), &["b.safetensors: tensor `y` also lies in", "a.safetensors"]);
    let gap = Folder::new()
        .shard("model-00001-of-00004.safetensors", &["a"])
        .shard("model-00003-of-00004.safetensors", &["c"]);
    assert_says(&gap.refused(), &["model-00002-of-00004.safetensors: the shard is missing", "model-00004-of-00004"]);
    let missing = Checkpoint::open("/nowhere/at/all").unwrap_err();
    assert_says(&missing.to_string(), &["/nowhere/at/all", "cannot open the checkpoint"]);
}

#[test]
fn pipes_folders_and_links_in_circles_are_refused_at_once() {
    let folder = Folder::new();
    let pipe = folder.path().join("pipe.safetensors");
    let name = std::ffi::CString::new(pipe.as_os_str().as_bytes()).unwrap();
    // SAFETY: `name` is a NUL-terminated path.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    assert_says(&Checkpoint::open(&pipe).unwrap_err().to_string(), &["pipe.safetensors", "regular file"]);
    assert_says(&folder.refused(), &["pipe.safetensors", "regular file"]);
    assert!(Shard::open(folder.path()).is_err());

    let folder = Folder::new();
    symlink("b.safetensors", folder.path().join("a.safetensors")).unwrap();
    symlink("a.safetensors", folder.path().join("b.safetensors")).unwrap();
    assert_says(&folder.refused(), &["a.safetensors: cannot open the file", "b.safetensors: cannot open the file"]);
    assert!(Checkpoint::open(folder.path().join("a.safetensors")).is_err());
    let listed = Folder::new().index(&[("x", "loop.safetensors")]);
    symlink("loop.safetensors", listed.path().join("loop.safetensors")).unwrap();
    assert_says(&listed.refused(), &["loop.safetensors: cannot open the file"]);

    let folder = Folder::new();
    fs::create_dir(folder.path().join("model.safetensors.index.json")).unwrap();
    assert_says(&folder.refused(), &["index.json", "regular file"]);
    let folder = Folder::new();
    fs::create_dir(folder.path().join("model.safetensors")).unwrap();
    assert_says(&folder.refused(), &["expected *.safetensors"]);
}

#[test]
fn a_folder_of_links_is_read() {
    // The layout of a download cache: names link to blobs elsewhere.
    let blobs = Folder::new().shard("blob", &["a"]);
    let folder = Folder::new();
    symlink(blobs.path().join("blob"), folder.path().join("model.safetensors")).unwrap();
    assert!(Checkpoint::open(folder.path()).unwrap().contains("a"));
}

#[test]
fn what_a_checkpoint_lacks_is_named() {
    let folder = Folder::new()
        .shard("one.safetensors", &["model.layers.0.mlp.up_proj.weight", "model.norm.weight"])
        .shard("two.safetensors", &["model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
        .with("tokenizer.json", "{}")
        .with("LICENSE", "")
        .with("chat_template.jinja", "")
        .with("notes.txt", "");
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.parameters(), 4);
    assert_eq!(checkpoint.bytes(), 16);
    let names: Vec<_> = checkpoint.tensors().map(|tensor| tensor.name().to_string()).collect();
    assert_eq!(names[1..3], ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"]);
    let error = checkpoint.tensor("layers.1.mlp.up_proj.weight").unwrap_err().to_string();
    assert_says(
        &error,
        &["tensor `layers.1.mlp.up_proj.weight` is missing", "did you mean `model.layers.1.mlp.up_proj"],
    );
    let error = checkpoint.tensor("something quite different").unwrap_err().to_string();
    assert!(!error.contains("did you mean"), "{error}");

    assert_says(&checkpoint.config().unwrap_err().to_string(), &["config.json", "configuration is missing"]);
    fs::write(folder.path().join("config.json"), "{").unwrap();
    assert_says(&checkpoint.config().unwrap_err().to_string(), &["config.json", "not valid JSON"]);
    fs::write(folder.path().join("config.json"), r#"{"model_type":"llama"}"#).unwrap();
    assert_eq!(checkpoint.config().unwrap()["model_type"], "llama");
    let side: Vec<_> = checkpoint.side_files().iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    assert_eq!(side, ["LICENSE", "chat_template.jinja", "tokenizer.json"]);
}

#[test]
fn rows_outside_a_tensor_are_refused() {
    let folder = Folder::new().with("m.safetensors", file(&header(&[tensor("a", "[3,2]", 0, 24)]), &[0; 24]));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let tensor = checkpoint.tensor("a").unwrap();
    assert_eq!((tensor.rows(), tensor.dtype()), ((3, 2), Dtype::F32));
    assert!(tensor.read_rows(1..3, &mut [0.0; 4]).is_ok());
    assert_says(&tensor.read_rows(2..4, &mut [0.0; 4]).unwrap_err().to_string(), &["`a`", "has 3 rows", "2..4"]);
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = tensor.read_rows(2..1, &mut []).unwrap_err().to_string();
    assert_says(&reversed, &["2..1"]);
    assert_says(&tensor.read_rows(0..1, &mut [0.0; 3]).unwrap_err().to_string(), &["2 elements", "room for 3"]);
    assert_says(&tensor.read_rows(usize::MAX..usize::MAX, &mut []).unwrap_err().to_string(), &["has 3 rows"]);
}
