//! Pickles that would run code, or eat the machine, in a reader that did what they say. Each is refused by a sentence
//! that names the callable or instruction; nothing runs, and neither time nor memory grows beyond the file.
//!
//! One test alone in its program, because it counts every byte that is allocated.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Instant,
};

use scruple_weights::{Shard, format};

#[allow(dead_code, reason = "each test program uses a part")]
#[path = "containers/zip.rs"]
mod zip;

/// The system's allocator, counting.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(LIVE.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller's promises are those of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A program, instruction by instruction.
#[derive(Clone)]
struct Pickle(Vec<u8>);

impl Pickle {
    fn new() -> Self {
        Self(vec![0x80, 2])
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn text(self, text: &str) -> Self {
        self.raw(b"X").raw(&(text.len() as u32).to_le_bytes()).raw(text.as_bytes())
    }

    fn global(self, module: &str, name: &str) -> Self {
        self.raw(format!("c{module}\n{name}\n").as_bytes())
    }

    /// `STACK_GLOBAL`: the callable's name as two texts.
    fn stack_global(self, module: &str, name: &str) -> Self {
        self.text(module).text(name).raw(&[0x93])
    }

    /// A call of what is on the stack with one text.
    fn called_with(self, text: &str) -> Self {
        self.raw(b"(").text(text).raw(b"tR")
    }

    fn int(self, value: i32) -> Self {
        self.raw(b"J").raw(&value.to_le_bytes())
    }

    /// The storage `key` of `len` floats.
    fn storage(self, key: &str, len: i32) -> Self {
        self.raw(b"(").text("storage").global("torch", "FloatStorage").text(key).text("cpu").int(len).raw(b"tQ")
    }

    /// A tensor in storage `key` of `len` floats.
    fn tensor(self, key: &str, len: i32, offset: i32, size: i32, stride: i32) -> Self {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .raw(b"(")
            .storage(key, len)
            .int(offset)
            .raw(b"(")
            .int(size)
            .raw(b"t(")
            .int(stride)
            .raw(b"t")
            .raw(&[0x89])
            .raw(b"}tR")
    }

    fn repeat(mut self, bytes: &[u8], times: usize) -> Self {
        self.0.extend(bytes.repeat(times));
        self
    }

    fn end(self) -> Vec<u8> {
        self.raw(b".").0
    }
}

/// A dictionary whose value for `weight` the closure puts on the stack.
fn with(weight: impl FnOnce(Pickle) -> Pickle) -> Vec<u8> {
    weight(Pickle::new().raw(b"}").text("weight")).raw(b"s").end()
}

/// What is refused, and the words that must stand in the refusal.
fn hostile(touched: &str) -> Vec<(&'static str, Vec<u8>, Vec<&'static str>)> {
    let command = &format!("touch {touched}");
    let deep = |open: &[u8], close: &[u8], times: usize| Pickle::new().repeat(open, times).repeat(close, times).end();
    // Each level holds the one below twice: 2^40 tensors in a hundred instructions.
    let laughs = {
        let mut pickle = Pickle::new().tensor("0", 4, 0, 4, 1).raw(b"q\0");
        for level in 0..40u8 {
            pickle =
                pickle.raw(b"}(").text("a").raw(&[b'h', level]).text("b").raw(&[b'h', level, b'u', b'q', level + 1]);
        }
        pickle.end()
    };
    let long_names = {
        let key = "k".repeat(2000);
        let mut pickle = Pickle::new().tensor("0", 4, 0, 4, 1).raw(b"q\0").text(&key).raw(b"q\x01");
        for level in 0..60u8 {
            let below = if level == 0 { 0 } else { level + 1 };
            pickle = pickle.raw(b"}").raw(&[b'h', 1, b'h', below, b's', b'q', level + 2]);
        }
        pickle.end()
    };
    // One list of 100,000 pairs, made into a dictionary 100,000 times.
    let copies = {
        let pair = Pickle(Vec::new()).text("a").raw(b"K\x01\x86q\x01").0;
        let list = Pickle::new().raw(b"]q\0(").raw(&pair).repeat(b"h\x01", 100_000).raw(b"e");
        list.global("collections", "OrderedDict").raw(b"q\x02").repeat(b"h\x02h\0\x85R0", 100_000).end()
    };
    let gathered = {
        // A thousand tensors of a million elements each, all the same four bytes.
        let mut pickle = Pickle::new().raw(b"}(");
        for index in 0..1000 {
            pickle = pickle.text(&index.to_string()).tensor("0", 1, 0, 1 << 20, 0);
        }
        pickle.raw(b"u").end()
    };
    let training = |pickle: Pickle| {
        // {"state_dict": {"layer": {"0": {"weight": <here>}}}}
        pickle.raw(b"}").text("layer").raw(b"}").text("0").raw(b"}").text("bias")
    };
    vec![
        ("GLOBAL", with(|p| p.global("os", "system").called_with(command)), vec!["`os.system`", "nothing was run"]),
        ("STACK_GLOBAL", with(|p| p.stack_global("os", "system").called_with(command)), vec!["`os.system`"]),
        ("INST", with(|p| p.raw(b"(").text(command).raw(b"ios\nsystem\n")), vec!["`os.system`"]),
        ("INST of what is known", with(|p| p.raw(b"(icollections\nOrderedDict\n")), vec!["instruction INST"]),
        ("OBJ", with(|p| p.raw(b"(").global("os", "system").text(command).raw(b"o")), vec!["`os.system`"]),
        (
            "OBJ of what is known",
            with(|p| p.raw(b"(").global("collections", "OrderedDict").raw(b"o")),
            vec!["instruction OBJ"],
        ),
        ("eval", with(|p| p.global("builtins", "eval").called_with("1 + 1")), vec!["`builtins.eval`"]),
        ("exec of Python 2", with(|p| p.global("__builtin__", "exec").called_with("x")), vec!["`__builtin__.exec`"]),
        ("getattr", with(|p| p.global("builtins", "getattr").called_with("x")), vec!["`builtins.getattr`"]),
        ("load again", with(|p| p.global("torch", "load").called_with("x.pt")), vec!["`torch.load`"]),
        (
            "load from bytes",
            with(|p| p.global("torch.storage", "_load_from_bytes").raw(b"C\x04\x80\x02N.\x85R")),
            vec!["`torch.storage._load_from_bytes`"],
        ),
        (
            "hidden deep in a training checkpoint",
            training(Pickle::new().raw(b"}").text("state_dict"))
                .global("posix", "system")
                .called_with(command)
                .raw(b"ssss")
                .end(),
            vec!["`posix.system`"],
        ),
        (
            "NEWOBJ",
            with(|p| p.global("subprocess", "Popen").raw(b"(").text(command).raw(b"t\x81")),
            vec!["`subprocess.Popen`"],
        ),
        ("NEWOBJ_EX", with(|p| p.global("collections", "OrderedDict").raw(b")}\x92")), vec!["instruction NEWOBJ_EX"]),
        (
            "BUILD with __setstate__",
            with(|p| {
                p.global("argparse", "Namespace")
                    .raw(b")\x81}")
                    .text("__setstate__")
                    .global("os", "system")
                    .raw(b"sb")
                    .text(command)
                    .raw(b"b")
            }),
            vec!["`os.system`"],
        ),
        ("BUILD of a tensor", with(|p| p.tensor("0", 4, 0, 4, 1).raw(b"}b")), vec!["instruction BUILD"]),
        ("BUILD of a callable", with(|p| p.global("torch", "Size").raw(b"}b")), vec!["instruction BUILD"]),
        (
            "a method of a class",
            with(|p| p.global("collections", "OrderedDict.__init__")),
            vec!["`collections.OrderedDict.__init__`"],
        ),
        (
            "storage of another file",
            with(|p| p.tensor("../../../../etc/passwd", 4, 0, 4, 1)),
            vec!["`weight`", "`../../../../etc/passwd`", "does not hold"],
        ),
        (
            "storage of the archive itself",
            with(|p| p.tensor("../data.pkl", 4, 0, 4, 1)),
            vec!["`weight`", "does not hold"],
        ),
        ("storage too short", with(|p| p.tensor("0", 400, 0, 4, 1)), vec!["`weight`", "400 elements", "16 bytes"]),
        ("view beyond its storage", with(|p| p.tensor("0", 4, 2, 4, 1)), vec!["`weight`", "beyond the 16 bytes"]),
        ("strides beyond the storage", with(|p| p.tensor("0", 4, 0, 2, i32::MAX)), vec!["`weight`", "beyond"]),
        ("negative size", with(|p| p.tensor("0", 4, 0, -4, 1)), vec!["`weight`", "no whole numbers"]),
        ("negative offset", with(|p| p.tensor("0", 4, -1, 4, 1)), vec!["rebuilds a tensor"]),
        (
            "expanded beyond reason",
            with(|p| p.tensor("0", 4, 0, i32::MAX, 0)),
            vec!["`weight`", "more than the file justifies"],
        ),
        ("expanded again and again", gathered, vec!["`2`", "more than the file justifies"]),
        (
            "persistent id of a module",
            with(|p| {
                p.raw(b"(")
                    .text("module")
                    .global("collections", "OrderedDict")
                    .text("x.py")
                    .text("import os")
                    .raw(b"tQ")
            }),
            vec!["persistent id", "refused"],
        ),
        ("persistent id by text", with(|p| p.raw(b"Pevil\n")), vec!["instruction PERSID"]),
        (
            "numpy",
            with(|p| p.global("numpy.core.multiarray", "_reconstruct").called_with("x")),
            vec!["`numpy.core.multiarray._reconstruct`"],
        ),
        (
            "copyreg",
            with(|p| p.global("copy_reg", "_reconstructor").called_with("x")),
            vec!["`copy_reg._reconstructor`"],
        ),
        ("EXT1", with(|p| p.raw(&[0x82, 1])), vec!["instruction EXT1"]),
        ("EXT2", with(|p| p.raw(&[0x83, 1, 0])), vec!["instruction EXT2"]),
        ("EXT4", with(|p| p.raw(&[0x84, 1, 0, 0, 0])), vec!["instruction EXT4"]),
        ("shared parts", laughs, vec!["by parts it shares"]),
        ("long names", long_names, vec!["more than 2048 bytes"]),
        ("copies", copies, vec!["copies more than it holds"]),
        ("deep lists", Pickle::new().repeat(b"]", 50_000).repeat(b"a", 49_999).end(), vec!["nests more than 100"]),
        ("deep tuples", deep(b"N", b"\x85", 50_000), vec!["nests more than 100"]),
        ("deep marks", deep(b"(", b"t", 1 << 20), vec!["nests more than 100"]),
        ("a stack without end", Pickle::new().repeat(b"N", (1 << 22) + 1).end(), vec!["more than 4194304 values"]),
        (
            "values without end",
            Pickle::new().repeat(b"]0", (1 << 22) + 1).end(),
            vec!["makes more than 4194304 values"],
        ),
        ("marks without end", Pickle::new().repeat(b"(", (1 << 22) + 1).end(), vec!["marks"]),
        ("memo far away", with(|p| p.raw(b"Nr\xff\xff\xff\x7f")), vec!["memo 2147483647"]),
        ("memo never made", with(|p| p.raw(b"j\xff\xff\xff\x7f")), vec!["memo 2147483647", "never made"]),
        ("truncated", with(|p| p.global("collections", "OrderedDict").raw(b")R"))[..20].to_vec(), vec!["does not end"]),
        ("cut in a text", Pickle::new().raw(b"X\x10\0\0\0abc").0, vec!["16 bytes", "truncated"]),
        ("LONG4 of 4 GiB", with(|p| p.raw(b"\x8b\xff\xff\xff\xff\x01")), vec!["4294967295 bytes", "truncated"]),
        ("BINBYTES8 of 2^63", with(|p| p.raw(b"\x8e\0\0\0\0\0\0\0\x80")), vec!["9223372036854775808 bytes"]),
        (
            "FRAME that lies",
            Pickle::new().raw(&[0x95]).raw(&u64::MAX.to_le_bytes()).raw(b"N").end(),
            vec!["FRAME of 18446744073709551615"],
        ),
        ("empty stack", Pickle::new().raw(b"0").end(), vec!["empty stack"]),
        ("a mark robbed", Pickle::new().raw(b"N(0R").end(), vec!["empty stack"]),
        ("protocol 9", b"\x80\x09N.".to_vec(), vec!["protocol 9"]),
        ("unknown instruction", Pickle::new().raw(&[0xfe]).end(), vec!["0xfe"]),
        ("nothing at all", vec![0x80, 2], vec!["truncated"]),
        ("no tensors", with(|p| p.raw(b"K\x01")), vec!["no tensors"]),
        ("a list in itself", Pickle::new().raw(b"]q\0h\0a").end(), vec!["no tensors"]),
        ("a dictionary in itself", with(|p| p.raw(b"}q\0").text("x").raw(b"h\0s")), vec!["no tensors"]),
    ]
}

#[test]
fn hostile_pickles_are_refused_and_cost_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let touched: PathBuf = folder.path().join("touched");
    let cases = hostile(touched.to_str().unwrap());
    assert!(cases.len() >= 50);
    for (name, program, words) in cases {
        // As a zip archive, and with the program in its place in the older form.
        let legacy = [
            &b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."[..],
            b"\x80\x02M\xe9\x03.",
            b"\x80\x02}.",
            &program,
            b"\x80\x02]X\x01\0\0\x000a.",
            &4u64.to_le_bytes(),
            &[0; 16],
        ]
        .concat();
        let archive = zip::torch(&program, &[0; 16]);
        for (form, file) in [("zip", archive), ("legacy", legacy)] {
            let (len, shard) = (file.len(), Shard::from_bytes("hostile.pt", file));
            let before = LIVE.load(Relaxed);
            PEAK.store(before, Relaxed);
            let start = Instant::now();
            let error = match format::read(&shard) {
                Ok(contents) => panic!("{name} ({form}) was accepted with {} tensors", contents.tensors.len()),
                Err(error) => error.to_string(),
            };
            let (took, peak) = (start.elapsed(), PEAK.load(Relaxed) - before);
            assert!(error.starts_with("hostile.pt: "), "{name}: {error}");
            assert!(error.len() < 20_000, "{name}: {} bytes of error", error.len());
            // The older form looks at its storages first, and reads on in them where a program does not end.
            if form == "zip" || program.ends_with(b".") && !error.contains("storage `0`") {
                for word in &words {
                    assert!(error.contains(word), "{name} ({form}): `{word}` is not in: {error}");
                }
            }
            assert!(took.as_millis() < 1500, "{name} ({form}) took {took:?}");
            assert!(peak < (8 << 20) + 100 * len, "{name} ({form}) took {peak} bytes for a file of {len}");
        }
        assert!(!Path::new(&touched).exists(), "{name} ran");
    }
    assert_eq!(LIVE.load(Relaxed) >> 30, 0);
}
