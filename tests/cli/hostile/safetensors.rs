//! Single safetensors files.

use super::Case;

/// A file of `header` and `data`, with the header's true length in front.
pub fn file(header: &str, data: &[u8]) -> Vec<u8> {
    framed(header.len() as u64, header.as_bytes(), data)
}

fn framed(length: u64, header: &[u8], data: &[u8]) -> Vec<u8> {
    [&length.to_le_bytes(), header, data].concat()
}

/// The header entry of one tensor.
pub fn entry(name: &str, dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

fn one(dtype: &str, shape: &str, begin: u64, end: u64, data: usize) -> Vec<u8> {
    file(&format!("{{{}}}", entry("a", dtype, shape, begin, end)), &vec![0; data])
}

fn several(entries: &[String], data: usize) -> Vec<u8> {
    file(&format!("{{{}}}", entries.join(",")), &vec![0; data])
}

pub fn cases() -> Vec<Case> {
    let f32 = |name: &str, begin, end| entry(name, "F32", &format!("[{}]", (end - begin) / 4), begin, end);
    let good = several(&[f32("a", 0, 8), f32("b", 8, 16)], 16);
    let deep = "[".repeat(200_000) + &"]".repeat(200_000);
    let value = |value: &str| file(&format!(r#"{{"a":{value}}}"#), &[0; 4]);
    let mut cases = Vec::new();
    let mut add = |name: &str, bytes: Vec<u8>, words: &[&str]| {
        let words = [&["model.safetensors"], words].concat();
        cases.push(Case::file(format!("safetensors: {name}"), "model.safetensors", bytes, &words));
    };

    // Not safetensors at all.
    add("empty", vec![], &["empty (0 bytes)"]);
    add("one byte", vec![7], &["truncated"]);
    add("seven bytes", vec![0; 7], &["truncated"]);
    add("eight zeros", vec![0; 8], &["does not begin with `{`"]);
    add("a kilobyte of zeros", vec![0; 1024], &["nothing but zeros", "fetch it again"]);
    add("text", b"hello, this is no checkpoint at all".to_vec(), &[]);
    add("web page", b"<!DOCTYPE html><html><body>Sign in</body></html>".to_vec(), &["web page (HTML)"]);
    add("web page after spaces", b"\n\n  <html lang=en></html>".to_vec(), &["web page (HTML)"]);
    add(
        "XML error of a bucket",
        b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>".to_vec(),
        &["web page"],
    );
    add(
        "LFS pointer",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 438\n".to_vec(),
        &["git-LFS pointer", "438 bytes", "git lfs pull"],
    );
    add("LFS pointer without size", b"version https://git-lfs.github.com/spec/v1\n".to_vec(), &["git-LFS pointer"]);
    add("gzip", vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0, 0], &["compressed archive"]);
    add("zstd", vec![0x28, 0xb5, 0x2f, 0xfd, 4, 0, 1, 0, 0, 0, 0, 0], &["compressed archive"]);
    add("JSON", br#"{"error": "Repository not found"}"#.to_vec(), &["JSON"]);
    add("GGUF", b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec(), &["general.architecture"]);

    // The frame.
    add("header length only", 100u64.to_le_bytes().to_vec(), &["should have 100 bytes", "truncated"]);
    for cut in [9, 20, 60, 100, good.len() - 1, good.len() - 9] {
        add(&format!("cut after {cut} bytes"), good[..cut].to_vec(), &["missing", "fetch it again"]);
    }
    for (name, claim) in [
        ("100 MB and one", 100_000_001u64),
        ("2^32", 1 << 32),
        ("2^63", 1 << 63),
        ("2^64 - 1", u64::MAX),
        ("2^64 - 8", u64::MAX - 7),
    ] {
        let framed = framed(claim, b"{}", &[0; 64]);
        add(&format!("header of {name} bytes"), framed, &[&format!("claims {claim} bytes")]);
    }
    add(
        "bytes after the data",
        [good.clone(), vec![1; 3]].concat(),
        &["3 bytes after the last tensor belong to no tensor"],
    );
    add("header one byte short", framed(good.len() as u64 - 25, &good[8..good.len() - 16], &[0; 16]), &[]);

    // The JSON.
    add("no header", file("", &[]), &["does not begin with `{`"]);
    add("header of spaces", file("        ", &[]), &["does not begin with `{`"]);
    add("header is a list", file("[]      ", &[]), &["does not begin with `{`"]);
    add("header is a number", file("12345678", &[]), &["does not begin with `{`"]);
    add("header cut inside", file(r#"{"a":{"dtype":"F32""#, &[]), &["not valid safetensors JSON"]);
    add("two headers", file("{}{}", &[]), &["not valid safetensors JSON"]);
    add("trailing comma", file(r#"{"a":{},}"#, &[]), &["not valid safetensors JSON"]);
    add("comment", file(r#"{/* x */}"#, &[]), &["not valid safetensors JSON"]);
    add("single quotes", file("{'a':1}", &[]), &["not valid safetensors JSON"]);
    add("lone surrogate", file(r#"{"\ud800":{}}"#, &[]), &["not valid safetensors JSON"]);
    add("raw line end in a name", file("{\"a\nb\":{}}", &[]), &["not valid safetensors JSON"]);
    add("NUL in the header", file("{\"a\0\":{}}", &[]), &["not valid safetensors JSON"]);
    add("not UTF-8", framed(8, b"{\"\xff\xfe\":1}", &[]), &["not UTF-8"]);
    add("deep entry", value(&deep), &["malformed entry"]);
    add(
        "deep and never closed",
        file(&format!("{{\"a\":{}", "[".repeat(1_000_000)), &[]),
        &["not valid safetensors JSON"],
    );
    add("deep objects", value(&("{\"a\":".repeat(100_000) + "1" + &"}".repeat(100_000))), &["malformed entry"]);
    add(
        "deep metadata",
        file(&format!(r#"{{"__metadata__":{deep}}}"#), &[]),
        &["`__metadata__` is not a map of strings"],
    );
    add(
        "metadata of numbers",
        file(r#"{"__metadata__":{"format":1}}"#, &[]),
        &["`__metadata__` is not a map of strings"],
    );
    add("metadata twice", file(r#"{"__metadata__":{},"__metadata__":{}}"#, &[]), &["`__metadata__`", "twice"]);
    add(
        "metadata key twice",
        file(r#"{"__metadata__":{"a":"1","a":"2"}}"#, &[]),
        &["`__metadata__` has the key `a` twice"],
    );
    add(
        "a million faults",
        file(&format!("{{{}}}", vec!["\"\":1"; 200_000].join(",")), &[]),
        &["malformed entry", "more problems"],
    );

    // One entry.
    for (name, text) in [
        ("null", "null"),
        ("a number", "1"),
        ("a text", "\"F32\""),
        ("a list", "[]"),
        ("empty", "{}"),
        ("true", "true"),
    ] {
        add(&format!("entry is {name}"), value(text), &["tensor `a`", "malformed entry"]);
    }
    let missing = |key: &str| {
        let all = [("dtype", r#""F32""#), ("shape", "[1]"), ("data_offsets", "[0,4]")];
        let kept: Vec<_> =
            all.iter().filter(|(name, _)| *name != key).map(|(name, text)| format!("\"{name}\":{text}")).collect();
        value(&format!("{{{}}}", kept.join(",")))
    };
    for key in ["dtype", "shape", "data_offsets"] {
        add(&format!("no {key}"), missing(key), &["tensor `a`", &format!("missing field `{key}`")]);
    }
    add(
        "unknown key",
        value(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4],"stride":[1]}"#),
        &["unknown field `stride`"],
    );
    add(
        "two shapes",
        value(r#"{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}"#),
        &["duplicate field `shape`"],
    );
    for (name, offsets) in [
        ("one offset", "[4]"),
        ("three offsets", "[0,4,8]"),
        ("negative offset", "[-4,0]"),
        ("fractional offset", "[0.5,4]"),
        ("offsets as text", "\"0,4\""),
        ("offset beyond u64", "[0,18446744073709551616]"),
    ] {
        add(
            name,
            value(&format!(r#"{{"dtype":"F32","shape":[1],"data_offsets":{offsets}}}"#)),
            &["tensor `a`", "malformed entry"],
        );
    }
    for (name, shape) in [
        ("negative dimension", "[-1]"),
        ("fractional dimension", "[1.5]"),
        ("dimension beyond u64", "[18446744073709551616]"),
        ("shape is text", "\"[1]\""),
        ("shape of shapes", "[[1]]"),
        ("shape is null", "null"),
    ] {
        add(name, one("F32", shape, 0, 4, 4), &["tensor `a`", "malformed entry"]);
    }
    for dtype in ["F31", "f32", "float32", "I4", "", "Q4_K", "\\u0046\\u0033\\u0033"] {
        add(&format!("dtype {dtype:?}"), one(dtype, "[1]", 0, 4, 4), &["tensor `a`", "dtype", "not supported"]);
    }
    add("dtype is a number", value(r#"{"dtype":32,"shape":[1],"data_offsets":[0,4]}"#), &["malformed entry"]);
    for (name, shape) in [
        ("2^64 elements", "[4294967296,4294967296]"),
        ("2^64 bytes", "[4611686018427387904]"),
        ("overflow before a zero", "[9223372036854775808,4,0]"),
        ("many dimensions", "[65536,65536,65536,65536,65536]"),
    ] {
        add(&format!("shape of {name}"), one("F32", shape, 0, 4, 4), &["tensor `a`", "overflows"]);
    }
    add("too few bytes", one("F32", "[2]", 0, 4, 4), &["4 bytes, where F32 of shape [2] takes 8"]);
    add("too many bytes", one("F32", "[2]", 0, 12, 12), &["12 bytes, where F32 of shape [2] takes 8"]);
    add("half the bytes of a f64", one("F64", "[1]", 0, 4, 4), &["takes 8"]);
    add("offsets reversed", one("F32", "[1]", 4, 0, 4), &["end before they begin"]);
    add("offsets beyond the file", one("F32", "[100]", 0, 400, 4), &["truncated", "missing"]);
    add("offsets at the end of numbers", one("F32", "[1]", u64::MAX - 4, u64::MAX, 4), &["belong to no tensor"]);
    add("a terabyte that is not there", one("F32", "[274877906944]", 0, 1 << 40, 4), &["truncated"]);

    // Entries together.
    add("hole at the start", one("F32", "[1]", 4, 8, 8), &["4 bytes after the header belong to no tensor"]);
    add(
        "hole between",
        several(&[f32("a", 0, 4), f32("b", 8, 12)], 12),
        &["`b`", "4 bytes after `a` belong to no tensor"],
    );
    add("overlap", several(&[f32("a", 0, 8), f32("b", 4, 12)], 12), &["`b`", "overlaps `a`"]);
    add("the same place twice", several(&[f32("a", 0, 4), f32("b", 0, 4)], 4), &["overlaps"]);
    add("one inside another", several(&[f32("a", 0, 16), f32("b", 4, 8)], 16), &["overlaps"]);
    add("a name twice", several(&[f32("a", 0, 4), f32("a", 4, 8)], 8), &["`a`", "more than once"]);
    add("a name twice by an escape", several(&[f32("a", 0, 4), f32("\\u0061", 4, 8)], 8), &["`a`", "more than once"]);
    add("no tensors", file("{}", &[]), &["no tensors"]);
    add("only metadata", file(r#"{"__metadata__":{"format":"pt"}}"#, &[]), &["no tensors"]);

    // Numbers that are none.
    for (name, bits) in [("NaN", f32::NAN), ("infinity", f32::INFINITY), ("minus infinity", f32::NEG_INFINITY)] {
        let mut bytes = good.clone();
        let at = bytes.len() - 8;
        bytes[at..at + 4].copy_from_slice(&bits.to_le_bytes());
        add(&format!("{name} in f32"), bytes, &["tensor `b`", "element 0", "--allow-nonfinite"]);
    }
    for (dtype, bytes) in [
        ("F16", &[0, 0x7c][..]),
        ("BF16", &[0x80, 0x7f]),
        ("F64", &[0, 0, 0, 0, 0, 0, 0xf0, 0x7f]),
        ("F8_E5M2", &[0x7c]),
        ("F8_E4M3", &[0x7f]),
    ] {
        let header = format!("{{{}}}", entry("a", dtype, "[1]", 0, bytes.len() as u64));
        add(&format!("not finite in {dtype}"), file(&header, bytes), &["tensor `a`", "element 0"]);
    }

    // Unusual, but right.
    let fine = |name: &str, bytes: Vec<u8>| {
        Case::file(format!("safetensors: {name}"), "model.safetensors", bytes, &[]).accepted()
    };
    cases.push(fine(
        "padded header",
        framed(good.len() as u64 - 24 + 5, &[&good[8..good.len() - 16], b"     "].concat(), &[0; 16]),
    ));
    cases.push(fine("a scalar", one("F32", "[]", 0, 4, 4)));
    cases.push(fine("no elements", several(&[f32("a", 0, 4), entry("b", "F32", "[0,7]", 4, 4)], 4)));
    cases.push(fine("data out of the header's order", several(&[f32("b", 4, 8), f32("a", 0, 4)], 8)));
    cases.push(fine(
        "integers and masks",
        several(
            &[entry("a", "I64", "[1]", 0, 8), entry("b", "BOOL", "[3]", 8, 11), entry("c", "U8", "[1]", 11, 12)],
            12,
        ),
    ));
    cases.push(fine("an old letter in the name", several(&[f32("ünïcödé/名", 0, 4)], 4)));
    cases
}
