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

/// The archive `small` with its numbers where those of archives beyond 4 GiB stand: in fields and records of 64 bits.
pub fn zip64(small: &[u8]) -> Vec<u8> {
    let number = |at: usize| u32::from_le_bytes(small[at..at + 4].try_into().unwrap());
    let short = |at: usize| u16::from_le_bytes(small[at..at + 2].try_into().unwrap());
    let end = small.len() - 22;
    let start = number(end + 16) as usize;
    let (mut file, mut at) = (small[..start].to_vec(), start);
    while at < end {
        let name = usize::from(short(at + 28));
        let mut header = small[at..at + 46 + name].to_vec();
        let mut extra = vec![1, 0, 24, 0];
        for field in [24, 20, 42] {
            extra.extend(u64::from(number(at + field)).to_le_bytes());
            header[field..field + 4].fill(0xff);
        }
        header[30] = extra.len() as u8;
        file.extend([header, extra].concat());
        at += 46 + name;
    }
    let (record, directory, count) = (file.len() as u64, file.len() - start, u64::from(short(end + 10)));
    file.extend([&b"PK\x06\x06"[..], &44u64.to_le_bytes(), &[45, 0, 45, 0], &[0; 8]].concat());
    for number in [count, count, directory as u64, start as u64] {
        file.extend(number.to_le_bytes());
    }
    file.extend([&b"PK\x06\x07\0\0\0\0"[..], &record.to_le_bytes(), &[1, 0, 0, 0]].concat());
    file.extend([&b"PK\x05\x06\0\0\0\0"[..], &[0xff; 12], &[0; 2]].concat());
    file
}
