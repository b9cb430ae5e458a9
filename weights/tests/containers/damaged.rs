//! Files that are cut, changed or something else: a sentence that says what is wrong, at once, and never a panic.

use std::{fs, time::Instant};

use scruple_weights::{Checkpoint, Shard, format};

use crate::{
    oracle::fixtures,
    zip::{Entry, archive, torch, zip64},
};

fn read(name: &str, bytes: Vec<u8>) -> Result<format::Contents, String> {
    format::read(&Shard::from_bytes(name, bytes)).map_err(|error| error.to_string())
}

#[track_caller]
fn refuses(name: &str, bytes: Vec<u8>, words: &[&str]) {
    let error = read(name, bytes).expect_err("accepted");
    assert!(error.starts_with(name), "the file is not named: {error}");
    for word in words {
        assert!(error.contains(word), "`{word}` is not in: {error}");
    }
}

/// Every fixture that is one file, small enough to be tried byte by byte.
fn files() -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(fixtures()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_file() && !name.ends_with(".json") && !name.ends_with(".py") {
            files.push((name, fs::read(path).unwrap()));
        }
    }
    assert!(files.len() > 20);
    files
}

#[test]
fn a_file_cut_anywhere_is_refused_or_still_whole() {
    for (name, bytes) in files() {
        for len in (0..bytes.len()).step_by(if bytes.len() > 2000 { 13 } else { 3 }) {
            if let Ok(contents) = read(&name, bytes[..len].to_vec()) {
                for tensor in contents.tensors {
                    assert_eq!(tensor.bytes().len(), tensor.dtype().bytes(tensor.elements()).unwrap());
                }
            }
        }
    }
}

#[test]
fn a_changed_byte_anywhere_does_no_harm() {
    let mut seed = 1u32;
    for (name, bytes) in files() {
        for _ in 0..400 {
            let mut changed = bytes.clone();
            for _ in 0..=seed % 3 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = (seed >> 4) as usize % changed.len();
                changed[at] = if seed.is_multiple_of(4) { 0xff } else { changed[at] ^ 1 << (seed % 8) };
            }
            if let Ok(contents) = read(&name, changed) {
                for tensor in contents.tensors {
                    assert_eq!(tensor.bytes().len(), tensor.dtype().bytes(tensor.elements()).unwrap());
                }
            }
        }
    }
}

#[test]
fn what_is_no_container_is_called_by_its_name() {
    let tar = {
        let mut tar = vec![0; 1024];
        tar[..5].copy_from_slice(b"a.bin");
        tar[257..262].copy_from_slice(b"ustar");
        tar
    };
    let traineddata = {
        let mut file = 24u32.to_le_bytes().to_vec();
        for at in 0..24 {
            file.extend(if at == 17 { 4 + 24 * 8 } else { -1i64 }.to_le_bytes());
        }
        file.extend([7; 100]);
        file
    };
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("model.bin", b"<!DOCTYPE html><html>".to_vec(), &["web page (HTML)", "download"]),
        ("model.pt", b"version https://git-lfs.github.com/spec/v1\nsize 12\n".to_vec(), &["git-LFS", "12 bytes"]),
        ("model.pt", vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0], &["gzip", "unpack it first"]),
        ("model.pth.tar", tar, &["tar archive", "unpack"]),
        ("model.h5", b"\x89HDF\r\n\x1a\n\0\0\0\0".to_vec(), &["truncated", "fetch it again"]),
        ("model.h5", b"\x89HDF\r\n\x1a\n\x02\x08\x08\0".to_vec(), &["superblock of version 2", "safetensors"]),
        ("model.tflite", b"\x1c\0\0\0TFL3\0\0\0\0".to_vec(), &["TensorFlow Lite"]),
        ("saved_model.pb", b"\x08\x01\x12\x04abcd".to_vec(), &["TensorFlow checkpoint", "convert"]),
        ("eng.traineddata", traineddata, &["Tesseract traineddata"]),
        ("data.pkl", b"\x80\x04\x95\x05\0\0\0\0\0\0\0]\x94.".to_vec(), &["`torch.save` did not write"]),
        ("model.json", br#"{"a":1}"#.to_vec(), &["JSON text"]),
        ("notes.txt", b"these are the notes of a model\n".to_vec(), &["plain text"]),
        ("model.bin", vec![0; 4096], &["nothing but zeros", "fetch it again"]),
        ("a.zip", archive(&[Entry { name: "readme.txt", bytes: b"hello" }]), &["zip archive without a PyTorch pickle"]),
        ("model.ggml", b"ggjt\x03\0\0\0".to_vec(), &["before GGUF"]),
        ("flax_model.msgpack", vec![0x81, 0xa1, b'a', 1], &["Flax"]),
        ("model.npz", b"not a zip".to_vec(), &["zip archive"]),
        ("model.npy", b"not an array".to_vec(), &["NumPy's magic number"]),
        ("model.onnx", vec![0xff; 16], &["ONNX model"]),
    ];
    for (name, bytes, words) in cases {
        refuses(name, bytes, words);
    }
}

#[test]
fn archives_that_deceive_are_refused() {
    let good = torch(b"\x80\x02}.", &[0; 4]);
    let end = good.len() - 22;
    let directory = u32::from_le_bytes(good[end + 16..end + 20].try_into().unwrap()) as usize;
    let change = |at: usize, bytes: &[u8]| {
        let mut changed = good.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    let twice = archive(&[Entry { name: "x/data.pkl", bytes: b"." }, Entry { name: "x/data.pkl", bytes: b"." }]);
    for (bytes, words) in [
        (change(directory + 8, &[1]), &["encrypted", "`x/data.pkl`"] as &[&str]),
        (change(directory + 10, &[14]), &["compression method 14"]),
        (change(directory + 20, &[200]), &["is stored in 200 bytes and claims 4"]),
        (change(directory + 20, &[255, 255, 255, 127, 255, 255, 255, 127]), &["beyond the archive's data"]),
        (change(directory + 42, &[3]), &["where no entry is"]),
        (
            change(directory + 10, &[8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 255, 255, 255]),
            &["more than deflate can"],
        ),
        (change(end + 10, &[9, 9]), &["claims 2313 entries"]),
        (change(end + 16, &[255, 255, 255, 0]), &["do not lie in the file"]),
        (change(end + 4, &[1]), &["one part of several"]),
        (twice, &["`x/data.pkl` twice"]),
    ] {
        refuses("x.pt", bytes, words);
    }
    // The second entry is placed upon the first.
    let mut overlapping = archive(&[Entry { name: "a", bytes: &[7; 100] }, Entry { name: "b", bytes: &[8; 90] }]);
    let end = overlapping.len() - 22;
    let directory = u32::from_le_bytes(overlapping[end + 16..end + 20].try_into().unwrap()) as usize;
    overlapping[directory + 47 + 42..directory + 47 + 46].copy_from_slice(&[0; 4]);
    refuses("x.pt", overlapping, &["`a` and `b` that share bytes"]);
    let mut order = torch(b"\x80\x02}.", &[0; 4]);
    let at = order.windows(6).position(|window| window == b"little").unwrap();
    order[at..at + 6].copy_from_slice(b"big   ");
    refuses("x.pt", order, &["big-endian", "save it again"]);
}

#[test]
fn archives_with_64_bit_numbers_are_read() {
    // {"w": tensor of 4 floats}
    let program = b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQK\0K\x04\x85K\x01\x85\x89}tRs.";
    let small = torch(program, &[7; 16]);
    let large = zip64(&small);
    for bytes in [small, large.clone()] {
        let tensors = read("x.pt", bytes).unwrap().tensors;
        assert_eq!((tensors[0].name(), tensors[0].shape(), tensors[0].bytes()), ("w", &[4][..], &[7; 16][..]));
    }
    let record = large.len() - 22 - 20 - 56;
    for (at, words) in
        [(record, "no zip64 record"), (record + 24 + 8 + 7, "entries"), (record + 48 + 7, "do not lie in the file")]
    {
        let mut changed = large.clone();
        changed[at] = 0x70;
        refuses("x.pt", changed, &[words]);
    }
}

/// A `.npy` of this header and data.
fn npy(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = b"\x93NUMPY\x01\0".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(data);
    file
}

#[test]
fn array_headers_are_literals_and_nothing_else() {
    let header =
        |descr: &str, shape: &str| format!("{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n");
    assert!(read("x.npy", npy(&header("'<f4'", "(1,)"), &[0; 4])).is_ok());
    assert!(read("x.npy", npy("{\"shape\":(),\"fortran_order\":True,\"descr\":\"|u1\"}", &[7])).is_ok());
    for (header, words) in [
        (header("'|O'", "(1,)"), &["Python objects", "pickles"] as &[&str]),
        (header("[('a', '<f4')]", "(1,)"), &["fields of several types"]),
        (header("'<f16'", "(1,)"), &["type `<f16`", "not read"]),
        (header("'<M8[s]'", "(1,)"), &["not read"]),
        (header("__import__('os').system('id')", "(1,)"), &["without `\"`"]),
        (header("'<f4'", "(-1,)"), &["no tuple of whole numbers"]),
        (header("'<f4'", "(1 2)"), &["without `)`"]),
        (header("'<f4'", "(4294967296, 4294967296)"), &["cannot be counted"]),
        (header("'<f4'", "(2,)"), &["8 bytes, but 4 follow"]),
        (header("'<f4'", "(1,)").replace("False", "0"), &["True or False"]),
        (header("'<f4'", "(1,)") + "x", &["more in its header"]),
        (header("'<f4'", "(1,)").replace("shape", "form"), &["unknown key `form`"]),
        ("{'descr': '<f4', 'descr': '<f4'}".into(), &["`descr` twice"]),
        ("{}".into(), &["without `descr`"]),
        (format!("{{'descr': '<f4', 'shape': ({})}}", "1,".repeat(65)), &["more than 64 dimensions"]),
    ] {
        refuses("x.npy", npy(&header, &[0; 4]), words);
    }
    refuses("x.npy", b"\x93NUMPY\x09\0\0\0\0\0\0\0".to_vec(), &["version 9.0"]);
}

/// A protobuf field of bytes.
fn message(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    let mut len = bytes.len();
    while len >= 128 {
        field.push(len as u8 | 128);
        len >>= 7;
    }
    field.push(len as u8);
    field.extend_from_slice(bytes);
    field
}

/// A model of one initialiser.
fn onnx(initializer: &[u8]) -> Vec<u8> {
    [vec![0x08, 9], message(7, &message(5, initializer))].concat()
}

#[test]
fn onnx_tensors_that_do_not_fit_are_refused_by_name() {
    let name = message(8, b"w");
    let tensor = |dims: &[u8], data_type: u8, data: &[u8]| {
        let dims: Vec<u8> = dims.iter().flat_map(|&dim| [0x08, dim]).collect();
        onnx(&[&dims[..], &[0x10, data_type], &name, data].concat())
    };
    let external = |location: &str| {
        let entry = [message(1, b"location"), message(2, location.as_bytes())].concat();
        tensor(&[1], 1, &[message(13, &entry), vec![0x70, 1]].concat())
    };
    assert_eq!(read("x.onnx", tensor(&[1], 1, &message(9, &[0; 4]))).unwrap().tensors.len(), 1);
    for (bytes, words) in [
        (tensor(&[2], 1, &message(9, &[0; 4])), &["`w`", "has 4 bytes, where F32 of shape [2] takes 8"] as &[&str]),
        (tensor(&[2], 7, &message(7, &[1, 2, 3])), &["`w`", "takes 16"]),
        (tensor(&[1], 7, &message(4, &[0; 4])), &["field for other types"]),
        (tensor(&[1], 6, &message(5, &[0x80; 12])), &["does not end"]),
        (external("../secret"), &["`../secret`", "inside the model's folder"]),
        (external("/etc/passwd"), &["`/etc/passwd`", "inside the model's folder"]),
        (external(""), &["inside the model's folder"]),
    ] {
        refuses("x.onnx", bytes, words);
    }
    let mut nested = message(1, b"");
    for _ in 0..200 {
        let attribute = message(5, &message(6, &nested));
        nested = message(1, &attribute);
    }
    refuses("x.onnx", [vec![0x08, 9], message(7, &nested)].concat(), &["graphs inside each other"]);

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.onnx");
    fs::write(&path, external("gone.data")).unwrap();
    let error = Checkpoint::open(&path).unwrap_err().to_string();
    assert!(error.contains("`w`") && error.contains("gone.data"), "{error}");
}

#[test]
fn a_small_file_cannot_cost_much() {
    // 2 MiB of the smallest nodes, and of nothing but subgraphs: linear in their length.
    let start = Instant::now();
    let many = message(7, &[0x0a, 0].repeat(1 << 20));
    assert_eq!(read("x.onnx", [vec![0x08, 9], many].concat()).unwrap().tensors.len(), 0);
    let graphs = message(7, &message(1, &message(5, &[0x32, 0].repeat(1 << 20))));
    assert_eq!(read("x.onnx", [vec![0x08, 9], graphs].concat()).unwrap().tensors.len(), 0);
    assert!(start.elapsed().as_secs() < 2, "{:?}", start.elapsed());
}
