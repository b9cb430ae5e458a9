//! Files that are wrong, or made to do harm: refused with a sentence, quickly, and without allocating much.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    fs,
    io::{Seek, SeekFrom, Write},
    time::{Duration, Instant},
};

use scruple_weights::{Dtype, Error, Shard, format::gguf, gguf_to_hf};

use crate::{
    convert::tiny_llama,
    writer::{ARRAY, BOOL, STRING, Tensor, U32, Writer, array, file, read, string},
};

/// Far more than any of these files takes, even on a busy machine.
const SLOW: Duration = Duration::from_secs(2);

thread_local!(static LARGEST: Cell<usize> = const { Cell::new(0) });

/// The system's allocator, remembering the largest request of each thread.
struct Watched;

// SAFETY: every call goes to the system's allocator unchanged; the counter is a plain thread-local that allocates
// nothing itself.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(layout.size())));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

fn tensor(name: &str, sizes: &[u64], kind: u32, bytes: usize) -> Tensor {
    Tensor { name: name.into(), sizes: sizes.to_vec(), kind, offset: None, data: vec![0; bytes] }
}

fn at(offset: u64, tensor: Tensor) -> Tensor {
    Tensor { offset: Some(offset), ..tensor }
}

fn with_alignment(value: u32) -> Writer {
    Writer::new().u32("general.alignment", value).floats("a", &[1], &[1.0])
}

/// What is wrong, the file, and words its refusal must have.
fn corpus() -> Vec<(&'static str, Vec<u8>, &'static [&'static str])> {
    let new = Writer::new;
    let value = |value: &[u8]| new().raw(b"k", value).build();
    let one = |tensor: Tensor| new().tensor(tensor).build();
    let kind = |kind: u32| kind.to_le_bytes().to_vec();
    let sound = tiny_llama().build();
    vec![
        // Not GGUF.
        ("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid".to_vec(), &["LFS pointer", "git lfs"]),
        ("an HTML page", b"<!DOCTYPE html><html>".to_vec(), &["HTML"]),
        ("a zip archive", b"PK\x03\x04\x14\0\0\0".to_vec(), &["zip"]),
        ("safetensors", b"\x10\0\0\0\0\0\0\0{\"a\":{}}        ".to_vec(), &["safetensors"]),
        ("an old GGML file", b"tjgg\x03\0\0\0".to_vec(), &["before GGUF"]),
        ("zeros", vec![0; 64], &["only zeros"]),
        ("three bytes", b"GGU".to_vec(), &["expected a GGUF file"]),
        ("the magic number alone", b"GGUF".to_vec(), &["the version", "truncated"]),
        // Header.
        ("version 1", Writer { version: 1, ..new() }.build(), &["version 1"]),
        ("version 4", Writer { version: 4, ..new() }.build(), &["version 4", "2 and 3"]),
        ("big endian", Writer { version: 3 << 24, ..new() }.build(), &["big endian"]),
        ("2^63 tensors", Writer { n_tensors: Some(1 << 63), ..new() }.build(), &["9223372036854775808 tensors"]),
        ("2^63 keys", Writer { n_keys: Some(1 << 63), ..new() }.build(), &["9223372036854775808 metadata keys"]),
        ("more tensors than bytes", Writer { n_tensors: Some(1000), ..new() }.build(), &["1000 tensors", "0 bytes"]),
        ("more keys than bytes", Writer { n_keys: Some(1000), ..new() }.build(), &["1000 metadata keys"]),
        ("a key too many", Writer { n_keys: Some(2), ..new().u32("k", 1).floats("a", &[1], &[1.0]) }.build(), &[]),
        // Metadata.
        (
            "a key of 2^63 bytes",
            [&new().raw(b"", b"").build()[..24], &(1u64 << 63).to_le_bytes(), &[0; 8]].concat(),
            &["name of metadata key 0"],
        ),
        (
            "a key that is no UTF-8",
            new().raw(b"\xff\xfe", &[U32.to_le_bytes(); 2].concat()).build(),
            &["name of metadata key 0", "UTF-8"],
        ),
        ("a key twice", new().u32("k", 1).again(b"k", &[U32.to_le_bytes(); 2].concat()).build(), &["`k` occurs twice"]),
        ("a value of type 13", value(&[kind(13), vec![0; 8]].concat()), &["`k` has the type 13"]),
        ("a boolean of 2", value(&[kind(BOOL), vec![2]].concat()), &["`k`", "boolean"]),
        ("a boolean array with a 7", value(&array(BOOL, 3, &[0, 7, 1])), &["the byte 7"]),
        (
            "a string of 2^63 bytes",
            value(&[kind(STRING), (1u64 << 63).to_le_bytes().to_vec(), vec![0; 9]].concat()),
            &["`k`", "9223372036854775808"],
        ),
        ("a string that is no UTF-8", value(&[kind(STRING), string(b"\xc3\x28")].concat()), &["`k`", "UTF-8"]),
        (
            "an array of 2^63 strings",
            value(&array(STRING, 1 << 63, &[])),
            &["`k` (9223372036854775808)", "more than 2^64 bytes"],
        ),
        ("an array of 2^63 bytes", value(&array(0, 1 << 63, &[0; 40])), &["`k` (9223372036854775808)"]),
        ("an array whose size wraps to 8", value(&array(10, (1 << 61) + 1, &[0; 8])), &["more than 2^64 bytes"]),
        ("an array of 2^40 numbers", value(&array(U32, 1 << 40, &[0; 40])), &["4398046511104 bytes"]),
        (
            "an array with an endless string",
            value(&array(STRING, 2, &[string(b"a"), vec![0xff; 8]].concat())),
            &["`k`"],
        ),
        (
            "an array with a string of no UTF-8",
            value(&array(STRING, 2, &[string(b"\xff"), string(b"a")].concat())),
            &["UTF-8"],
        ),
        ("an array of type 99", value(&array(99, 1, &[0; 8])), &["the type 99"]),
        ("an array of arrays", value(&array(ARRAY, 1, &array(U32, 1, &[0; 4])[4..])), &["array of arrays"]),
        ("alignment 0", with_alignment(0).build(), &["alignment", "the number 0", "power of two"]),
        ("alignment 3", with_alignment(3).build(), &["the number 3"]),
        (
            "alignment 2^63",
            with_alignment(0)
                .raw(
                    b"general.alignment",
                    &[10u32.to_le_bytes().to_vec(), (1u64 << 63).to_le_bytes().to_vec()].concat(),
                )
                .build(),
            &["9223372036854775808", "power of two"],
        ),
        ("an alignment in words", with_alignment(0).string("general.alignment", "32").build(), &["the text `32`"]),
        // Tensor table.
        ("an empty name", one(tensor("", &[1], 0, 4)), &["tensor 0 has an empty name"]),
        (
            "a name that is no UTF-8",
            one(Tensor { name: vec![0xff], ..tensor("", &[1], 0, 4) }),
            &["name of tensor 0", "UTF-8"],
        ),
        (
            "a name twice",
            new().floats("a", &[1], &[1.0]).floats("a", &[1], &[1.0]).build(),
            &["tensor `a` occurs twice"],
        ),
        ("five dimensions", one(tensor("a", &[1; 5], 0, 4)), &["tensor `a` has 5 dimensions"]),
        (
            "2^32 − 1 dimensions",
            [&one(tensor("a", &[1], 0, 4))[..33], &[0xff; 4], &[1; 40]].concat(),
            &["4294967295 dimensions"],
        ),
        (
            "2^80 elements",
            one(tensor("a", &[1 << 40, 1 << 40], 0, 4)),
            &["tensor `a` has shape [1099511627776, 1099511627776]", "more elements"],
        ),
        ("2^62 elements of 4 bytes", one(tensor("a", &[1 << 62], 0, 4)), &["tensor `a`"]),
        ("a size of 0", one(tensor("a", &[4, 0], 0, 0)), &["tensor `a` has shape [0, 4]", "nothing"]),
        (
            "rows that leave a block unfilled",
            one(tensor("a", &[16, 2], 2, 18)),
            &["tensor `a` has shape [2, 16]", "multiple of 32", "Q4_0"],
        ),
        ("type IQ4_NL", one(tensor("a", &[32], 20, 18)), &["tensor `a` has the type IQ4_NL (20)", "Q4_0"]),
        ("type 4711", one(tensor("a", &[32], 4711, 18)), &["unknown to this program (4711)"]),
        (
            "an offset between alignments",
            one(at(4, tensor("a", &[1], 0, 8))),
            &["tensor `a` has offset 4, expected a multiple of 32"],
        ),
        (
            "offset 2^63",
            one(at(1 << 63, tensor("a", &[1], 0, 4))),
            &["tensor `a` takes 4 bytes from byte", "9223372036854775808"],
        ),
        (
            "an offset that wraps to the start",
            one(at(u64::MAX - 31, tensor("a", &[8], 0, 32))),
            &["tensor `a` takes 32 bytes"],
        ),
        (
            "tensors that share bytes",
            new().floats("a", &[16], &[0.0; 16]).tensor(at(32, tensor("b", &[8], 0, 32))).build(),
            &["tensor `b` lies at", "tensor `a`"],
        ),
        (
            "a tensor within another",
            new().tensor(at(0, tensor("b", &[8], 0, 0))).tensor(at(0, tensor("a", &[64], 0, 256))).build(),
            &["lies at", "within"],
        ),
        ("a byte less", sound[..sound.len() - 1].to_vec(), &["truncated"]),
    ]
}

#[test]
fn refuses_hostile_files_by_name_and_at_once() {
    let corpus = corpus();
    assert!(corpus.len() >= 50);
    for (what, bytes, words) in corpus {
        let (_folder, path) = file(&bytes);
        let shard = Shard::open(&path).unwrap();
        LARGEST.set(0);
        let start = Instant::now();
        let error = gguf::read(&shard).err().unwrap_or_else(|| panic!("{what}: accepted"));
        assert!(start.elapsed() < SLOW, "{what}: took {:?}", start.elapsed());
        assert!(LARGEST.get() < 1 << 16, "{what}: allocated {} bytes at once", LARGEST.get());
        let message = error.to_string();
        assert!(message.contains("model.gguf"), "{what}: the file is not named: {message}");
        for word in words {
            assert!(message.contains(word), "{what}: `{word}` is not in: {message}");
        }
    }
}

#[test]
fn refuses_every_truncation() {
    let whole = tiny_llama().build();
    let (_folder, path) = file(&whole);
    assert!(gguf::read(&Shard::open(&path).unwrap()).is_ok());
    let shrinking = fs::OpenOptions::new().write(true).open(&path).unwrap();
    for end in (1..whole.len()).rev() {
        shrinking.set_len(end as u64).unwrap();
        let error = gguf::read(&Shard::open(&path).unwrap());
        let error = error.err().unwrap_or_else(|| panic!("accepted when cut at byte {end}"));
        assert!(matches!(error, Error::Malformed(_) | Error::File { .. }), "cut at byte {end}: {error}");
    }
}

#[test]
fn reports_all_faults_together() {
    let bytes = Writer::new()
        .u32("k", 1)
        .again(b"k", &[U32.to_le_bytes(); 2].concat())
        .tensor(tensor("unread", &[32], 16, 32))
        .tensor(tensor("crooked", &[7], 2, 32))
        .tensor(at(1, tensor("misaligned", &[1], 0, 4)))
        .tensor(at(1 << 40, tensor("outside", &[1], 0, 4)))
        .build();
    let Err(Error::Malformed(problems)) = read(&bytes) else { panic!("expected faults") };
    let tensors: Vec<_> = problems.iter().map(|problem| problem.tensor.as_deref().unwrap_or("")).collect();
    assert_eq!(tensors, ["", "unread", "crooked", "misaligned", "outside"]);
}

#[test]
fn shows_names_escaped_and_cut() {
    let name = format!("\x1b[31m{}", "x".repeat(1000));
    let message = read(&Writer::new().tensor(tensor(&name, &[7], 2, 32)).build()).unwrap_err().to_string();
    assert!(message.contains(r"\u{1b}[31mxxx"), "{message}");
    assert!(message.len() < 400, "{message}");
}

/// Flips bits, overwrites fields with telling numbers, and cuts; whatever comes out, nothing panics, hangs or asks for
/// much memory, neither when read nor when converted and decoded.
#[test]
fn survives_mutations() {
    const ROUNDS: u64 = 10_000;
    let sound = [tiny_llama().build(), crate::tokenizer::tiny_sentence_piece().build()];
    let (_folder, path) = file(&sound[0]);
    // Written over in place: replacing files thousands of times is slow on some systems.
    let mutant = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let (mut read, mut converted) = (0, 0);
    LARGEST.set(0);
    for seed in 0..ROUNDS {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
        let mut next = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random % below as u64) as usize
        };
        let mut bytes = sound[next(2)].clone();
        for _ in 0..=next(4) {
            let place = next(bytes.len());
            match next(4) {
                0 | 1 => bytes[place] ^= 1 << next(8),
                2 => {
                    let telling = [0, 1, u64::MAX, 1 << 63, 1 << 61, 1 << 32, u64::from(u32::MAX), 31][next(8)];
                    let end = (place + 8).min(bytes.len());
                    bytes[place..end].copy_from_slice(&telling.to_le_bytes()[..end - place]);
                }
                _ if next(8) == 0 => bytes.truncate(place.max(1)),
                _ => bytes[place] = next(256) as u8,
            }
        }
        mutant.set_len(bytes.len() as u64).unwrap();
        (&mutant).seek(SeekFrom::Start(0)).unwrap();
        (&mutant).write_all(&bytes).unwrap();
        let start = Instant::now();
        if let Ok(gguf) = gguf::read(&Shard::open(&path).unwrap()) {
            read += 1;
            if let Ok(model) = gguf_to_hf::convert(&gguf) {
                converted += 1;
                for tensor in &model.tensors {
                    tensor.to_f32().unwrap();
                }
            }
        }
        assert!(start.elapsed() < SLOW, "seed {seed} took {:?}", start.elapsed());
    }
    assert!(read > 100 && converted > 100, "{read} were read and {converted} converted: the mutations miss the point");
    assert!(LARGEST.get() < 1 << 20, "allocated {} bytes at once", LARGEST.get());
}

#[test]
fn reads_what_is_right() {
    let gguf = Writer { version: 2, alignment: 64, ..Writer::new() }
        .u32("general.alignment", 64)
        .string("text", "größer")
        .strings("texts", &["a", "", "▁b"])
        .i32s("numbers", &[-1, 2])
        .f32("small", 1e-5)
        .floats("matrix", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        .floats("scalar", &[], &[7.0])
        .tensor(tensor("blocks", &[32, 3], 8, 3 * 34))
        .gguf();
    assert_eq!(gguf.version(), 2);
    let keys: Vec<&str> = gguf.metadata().map(|(key, _)| key).collect();
    assert_eq!(keys, ["general.alignment", "text", "texts", "numbers", "small"]);
    assert_eq!(gguf.get("text").unwrap().as_str(), Some("größer"));
    assert_eq!(gguf.get("texts").unwrap().as_strings().unwrap().iter().collect::<Vec<_>>(), ["a", "", "▁b"]);
    let numbers = gguf.get("numbers").unwrap().as_numbers().unwrap();
    assert_eq!(numbers.iter().map(|n| n.as_f64().unwrap()).collect::<Vec<_>>(), [-1.0, 2.0]);
    assert_eq!((numbers.len(), numbers.get(0).unwrap().as_u64(), numbers.get(2)), (2, None, None));
    assert_eq!(gguf.get("small").unwrap().as_f64(), Some(1e-5));
    assert!(gguf.get("none").is_none() && gguf.tensor("none").is_none());

    let matrix = gguf.tensor("matrix").unwrap();
    assert_eq!((matrix.shape(), matrix.dtype()), (&[2, 3][..], Dtype::F32));
    assert_eq!(matrix.bytes()[20..], 6f32.to_le_bytes());
    assert_eq!(gguf.tensor("scalar").unwrap().elements(), 1);
    let blocks = gguf.tensor("blocks").unwrap();
    assert_eq!((blocks.shape(), blocks.dtype(), blocks.bytes().len()), (&[3, 32][..], Dtype::Q8_0, 102));
}
