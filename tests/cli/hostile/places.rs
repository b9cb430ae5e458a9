//! Paths that are no models: pipes, devices, links in circles, folders, nothing at all.

use std::{
    ffi::CString,
    fs,
    os::unix::{ffi::OsStrExt, fs::symlink, net::UnixListener},
    path::Path,
};

use super::{Case, safetensors};

fn pipe(path: &Path) {
    let name = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: `name` is a NUL-terminated path.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
}

/// Length of a file that is all hole: a terabyte that takes no room.
const HOLE: u64 = 1 << 40;

pub fn cases() -> Vec<Case> {
    let none = |name: &str, words: &[&str]| Case::folder(format!("place: {name}"), vec![], words);
    let sound = || {
        let header = format!("{{{}}}", safetensors::entry("a", "F32", "[1]", 0, 4));
        safetensors::file(&header, &[0; 4])
    };
    let one = |name: &str, file: &str, words: &[&str]| {
        Case::folder(format!("place: {name}"), vec![(file.to_string(), sound())], words)
    };
    vec![
        none("an empty folder", &["found none"]),
        none("nothing", &["cannot open the checkpoint"]).opening("nothing"),
        none("a name with a line end", &["cannot open the checkpoint"]).opening("no\nthing"),
        none("a very long name", &["cannot open the checkpoint"]).opening(&"x".repeat(300)),
        none("a very deep path", &["cannot open the checkpoint"]).opening(&"x/".repeat(3000)),
        none("a pipe", &["regular file"]).with(|folder| pipe(&folder.join("p.safetensors"))).opening("p.safetensors"),
        none("a pipe in a folder", &["regular file"]).with(|folder| pipe(&folder.join("p.safetensors"))),
        none("a pipe called GGUF", &["regular file"]).with(|folder| pipe(&folder.join("p.gguf"))).opening("p.gguf"),
        none("a pipe as index", &["regular file"]).with(|folder| pipe(&folder.join("model.safetensors.index.json"))),
        none("a socket", &["regular file"])
            .with(|folder| drop(UnixListener::bind(folder.join("s.safetensors")).unwrap()))
            .opening("s.safetensors"),
        none("a device without end", &["regular file"])
            .with(|folder| symlink("/dev/zero", folder.join("z.safetensors")).unwrap())
            .opening("z.safetensors"),
        none("the empty device", &["regular file"])
            .with(|folder| symlink("/dev/null", folder.join("n.safetensors")).unwrap())
            .opening("n.safetensors"),
        none("a link to itself", &["cannot open"])
            .with(|folder| symlink("a.safetensors", folder.join("a.safetensors")).unwrap())
            .opening("a.safetensors"),
        none("links in a circle", &["a.safetensors: cannot open", "b.safetensors: cannot open"]).with(|folder| {
            symlink("b.safetensors", folder.join("a.safetensors")).unwrap();
            symlink("a.safetensors", folder.join("b.safetensors")).unwrap();
        }),
        none("a link to nothing", &["cannot open"])
            .with(|folder| symlink("gone", folder.join("a.safetensors")).unwrap()),
        none("a folder called like a file", &["found none"])
            .with(|folder| fs::create_dir(folder.join("model.safetensors")).unwrap()),
        none("a folder called like an index", &["regular file"])
            .with(|folder| fs::create_dir(folder.join("model.safetensors.index.json")).unwrap()),
        none("a folder inside a folder", &["found none"]).with(|folder| {
            fs::create_dir(folder.join("inner")).unwrap();
            fs::write(folder.join("inner/model.safetensors"), b"x").unwrap();
        }),
        none("a terabyte of nothing", &["h.safetensors"])
            .with(|folder| fs::File::create(folder.join("h.safetensors")).unwrap().set_len(HOLE).unwrap())
            .opening("h.safetensors"),
        none("a terabyte of nothing called GGUF", &["h.gguf"])
            .with(|folder| fs::File::create(folder.join("h.gguf")).unwrap().set_len(HOLE).unwrap())
            .opening("h.gguf"),
        one("only a configuration", "config.json", &["found none"]),
        one("a file for a folder", "model.safetensors", &["Not a directory"])
            .opening("model.safetensors/model.safetensors"),
        one("a good file under a wrong name", "model.txt", &[]).opening("model.txt").accepted(),
        one("a good file under a name that is not Unicode in effect", "mo\u{301}del\u{200b}.safetensors", &[])
            .accepted(),
        Case::folder(
            "place: two GGUF files",
            vec![("a.gguf".into(), b"GGUF".to_vec()), ("b.gguf".into(), b"GGUF".to_vec())],
            &["2 GGUF files", "name the one to open"],
        ),
    ]
}
