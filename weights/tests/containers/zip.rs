//! Zip archives written for tests, entries stored as they are.

/// One entry and what may be wrong with it.
pub struct Entry<'a> {
    pub name: &'a str,
    pub bytes: &'a [u8],
}

fn header(signature: &[u8], version_made: &[u8], name: &str, len: usize) -> Vec<u8> {
    let mut header = [signature, version_made, &[20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]].concat();
    header.extend((len as u32).to_le_bytes());
    header.extend((len as u32).to_le_bytes());
    header.extend((name.len() as u16).to_le_bytes());
    header.extend([0; 2]); // no extra field
    header
}

/// An archive of `entries`.
pub fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for Entry { name, bytes } in entries {
        let offset = file.len() as u32;
        file.extend(header(b"PK\x03\x04", &[], name, bytes.len()));
        file.extend_from_slice(name.as_bytes());
        file.extend_from_slice(bytes);
        directory.extend(header(b"PK\x01\x02", &[20, 0], name, bytes.len()));
        directory.extend([0; 10]); // comment, disk, attributes
        directory.extend(offset.to_le_bytes());
        directory.extend_from_slice(name.as_bytes());
    }
    let start = file.len() as u32;
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend((entries.len() as u16).to_le_bytes());
    file.extend((entries.len() as u16).to_le_bytes());
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0; 2]);
    file
}

/// A PyTorch archive of this program and one storage, `0`.
pub fn torch(program: &[u8], storage: &[u8]) -> Vec<u8> {
    archive(&[
        Entry { name: "x/data.pkl", bytes: program },
        Entry { name: "x/byteorder", bytes: b"little" },
        Entry { name: "x/data/0", bytes: storage },
    ])
}
