//! Pickles, PyTorch archives and NumPy files. What a pickle may do to a reader is held in `weights/tests`; here it is the
//! whole program that must stay calm.

use super::Case;
use crate::zip_writer::{Entry, archive, torch};

/// A pickle that calls `module.name` with a text.
fn call(module: &str, name: &str) -> Vec<u8> {
    format!("\u{80}\u{2}c{module}\n{name}\n(X\u{4}\0\0\0touctR.").chars().map(|c| c as u8).collect()
}

/// A `.npy` of this header and so many zero bytes.
fn npy(header: &str, data: usize) -> Vec<u8> {
    [&b"\x93NUMPY\x01\0"[..], &(header.len() as u16).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat()
}

fn described(descr: &str, order: &str, shape: &str) -> String {
    format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n")
}

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |file: &str, name: &str, bytes: Vec<u8>, words: &[&str]| {
        let words = [&[file], words].concat();
        cases.push(Case::file(format!("{file}: {name}"), file, bytes, &words));
    };

    for (module, name) in [
        ("os", "system"),
        ("posix", "system"),
        ("nt", "system"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "__import__"),
        ("builtins", "getattr"),
        ("__builtin__", "eval"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("shutil", "rmtree"),
        ("runpy", "_run_code"),
        ("webbrowser", "open"),
        ("os\u{7f}", "system"),
    ] {
        let shown = format!("{module}.{name}").replace('\u{7f}', "\\u{7f}");
        add("model.pt", &format!("calls {shown}"), torch(&call(module, name), &[0; 4]), &[&shown]);
    }
    add("model.pt", "no program", archive(&[Entry { name: "x/data/0", bytes: &[0; 4] }]), &[]);
    add("model.pt", "an empty program", torch(b"", &[0; 4]), &[]);
    add("model.pt", "a program without end", torch(b"\x80\x02}", &[0; 4]), &["truncated"]);
    add("model.pt", "protocol 9", torch(b"\x80\x09}.", &[0; 4]), &["protocol 9"]);
    add("model.pt", "an unknown instruction", torch(b"\x80\x02\xff.", &[0; 4]), &[]);
    add("model.pt", "no tensors", torch(b"\x80\x02}.", &[0; 4]), &[]);
    let whole = torch(&call("os", "system"), &[0; 64]);
    for cut in [4, 30, 60, whole.len() - 30, whole.len() - 1] {
        add("model.pt", &format!("cut after {cut} bytes"), whole[..cut].to_vec(), &[]);
    }
    add("model.pt", "a pickle of no tensors", call("os", "system"), &[]);

    let good = described("'<f4'", "False", "(2, 3)");
    add("array.npy", "the magic alone", b"\x93NUMPY".to_vec(), &[]);
    add("array.npy", "version 9", [&b"\x93NUMPY\x09\0\x02\0{}"[..], &[0; 8]].concat(), &["version 9"]);
    add("array.npy", "a header beyond the file", [&b"\x93NUMPY\x01\0\xff\xff"[..], good.as_bytes()].concat(), &[]);
    add("array.npy", "a header of 4 GB", b"\x93NUMPY\x02\0\xff\xff\xff\xff{}".to_vec(), &[]);
    add("array.npy", "data cut", npy(&good, 23), &["23"]);
    add("array.npy", "data left over", npy(&good, 25), &["25"]);
    for (name, header) in [
        ("code in the header", "__import__('os').system('touch x')"),
        ("an open brace", "{"),
        ("a list", "[]"),
        ("a deep header", &"(".repeat(10_000)),
        ("no keys", "{}"),
        ("a key twice", "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': ()}"),
        ("objects", &described("'|O'", "False", "(1,)")),
        ("a record", &described("[('a', '<f4')]", "False", "(1,)")),
        ("an unknown type", &described("'<q9'", "False", "(1,)")),
        ("a negative size", &described("'<f4'", "False", "(-1,)")),
        ("2^64 elements", &described("'<f4'", "False", "(4294967296, 4294967296)")),
        ("a shape of text", &described("'<f4'", "False", "'6'")),
        ("an order of text", &described("'<f4'", "'no'", "(1,)")),
    ] {
        add("array.npy", name, npy(header, 4), &[]);
    }
    let inside = |name: &str, bytes: &[u8]| archive(&[Entry { name, bytes }]);
    add("arrays.npz", "an array that is none", inside("a.npy", b"hello"), &["tensor `a`", "magic"]);
    add("arrays.npz", "objects", inside("a.npy", &npy(&described("'|O'", "False", "(1,)"), 8)), &[]);
    add(
        "arrays.npz",
        "a name twice",
        {
            let array = npy(&good, 24);
            archive(&[Entry { name: "a.npy", bytes: &array }, Entry { name: "a.npy", bytes: &array }])
        },
        &["a"],
    );

    cases.push(Case::file("array.npy: sound", "array.npy", npy(&good, 24), &[]).accepted());
    cases.push(Case::file("arrays.npz: sound", "arrays.npz", inside("a.npy", &npy(&good, 24)), &[]).accepted());
    cases
}
