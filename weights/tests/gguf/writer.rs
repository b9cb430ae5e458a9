//! Writes GGUF files for tests, right ones and, field by field, wrong ones.

use std::{fs, path::PathBuf};

use scruple_weights::{
    Error, Shard,
    format::gguf::{self, Gguf},
};
use tempfile::TempDir;

/// Numbers of value types in the file.
pub const U32: u32 = 4;
pub const I32: u32 = 5;
pub const F32: u32 = 6;
pub const BOOL: u32 = 7;
pub const STRING: u32 = 8;
pub const ARRAY: u32 = 9;

/// A file in the making. The counts and the alignment can be set to lies.
#[derive(Debug, Clone)]
pub struct Writer {
    pub version: u32,
    pub n_tensors: Option<u64>,
    pub n_keys: Option<u64>,
    pub alignment: usize,
    pub keys: Vec<(Vec<u8>, Vec<u8>)>,
    pub tensors: Vec<Tensor>,
}

/// A tensor's entry, every field free.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub name: Vec<u8>,
    /// Fastest first, as in the file.
    pub sizes: Vec<u64>,
    pub kind: u32,
    /// `None`: after the tensor before.
    pub offset: Option<u64>,
    pub data: Vec<u8>,
}

impl Writer {
    pub fn new() -> Self {
        Self { version: 3, n_tensors: None, n_keys: None, alignment: 32, keys: vec![], tensors: vec![] }
    }

    /// A key with the bytes of its type and value.
    pub fn raw(mut self, key: &[u8], value: &[u8]) -> Self {
        self.keys.retain(|(known, _)| known != key);
        self.keys.push((key.to_vec(), value.to_vec()));
        self
    }

    /// A key that may be there already.
    pub fn again(mut self, key: &[u8], value: &[u8]) -> Self {
        self.keys.push((key.to_vec(), value.to_vec()));
        self
    }

    pub fn without(mut self, key: &str) -> Self {
        self.keys.retain(|(known, _)| known != key.as_bytes());
        self
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key.as_bytes(), &[U32.to_le_bytes(), value.to_le_bytes()].concat())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key.as_bytes(), &[F32.to_le_bytes(), value.to_le_bytes()].concat())
    }

    pub fn bool(self, key: &str, value: bool) -> Self {
        self.raw(key.as_bytes(), &[&BOOL.to_le_bytes()[..], &[u8::from(value)]].concat())
    }

    pub fn string(self, key: &str, value: &str) -> Self {
        self.raw(key.as_bytes(), &[&STRING.to_le_bytes()[..], &string(value.as_bytes())].concat())
    }

    pub fn strings(self, key: &str, values: &[&str]) -> Self {
        let values: Vec<u8> = values.iter().flat_map(|value| string(value.as_bytes())).collect();
        let count = self.count_of(&values);
        self.raw(key.as_bytes(), &array(STRING, count, &values))
    }

    pub fn i32s(self, key: &str, values: &[i32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.raw(key.as_bytes(), &array(I32, values.len() as u64, &bytes))
    }

    pub fn f32s(self, key: &str, values: &[f32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.raw(key.as_bytes(), &array(F32, values.len() as u64, &bytes))
    }

    fn count_of(&self, strings: &[u8]) -> u64 {
        let (mut at, mut count) = (0, 0);
        while at < strings.len() {
            at += 8 + u64::from_le_bytes(strings[at..at + 8].try_into().unwrap()) as usize;
            count += 1;
        }
        count
    }

    pub fn tensor(mut self, tensor: Tensor) -> Self {
        self.tensors.push(tensor);
        self
    }

    /// An F32 tensor; `shape` is slowest first.
    pub fn floats(self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}");
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let sizes = shape.iter().rev().map(|&size| size as u64).collect();
        self.tensor(Tensor { name: name.into(), sizes, kind: 0, offset: None, data })
    }

    pub fn without_tensor(mut self, name: &str) -> Self {
        self.tensors.retain(|tensor| tensor.name != name.as_bytes());
        self
    }

    pub fn build(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend(self.n_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        file.extend(self.n_keys.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            file.extend(string(key));
            file.extend(value);
        }
        let mut next = 0;
        for tensor in &self.tensors {
            file.extend(string(&tensor.name));
            file.extend((tensor.sizes.len() as u32).to_le_bytes());
            file.extend(tensor.sizes.iter().flat_map(|size| size.to_le_bytes()));
            file.extend(tensor.kind.to_le_bytes());
            file.extend(tensor.offset.unwrap_or(next).to_le_bytes());
            next += tensor.data.len().next_multiple_of(self.alignment) as u64;
        }
        for tensor in &self.tensors {
            file.resize(file.len().next_multiple_of(self.alignment), 0);
            file.extend(&tensor.data);
        }
        file
    }

    pub fn gguf(&self) -> Gguf {
        read(&self.build()).unwrap_or_else(|error| panic!("{error}"))
    }
}

pub fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text].concat()
}

/// Type and value of an array of `count` things of `kind`.
pub fn array(kind: u32, count: u64, values: &[u8]) -> Vec<u8> {
    [&ARRAY.to_le_bytes()[..], &kind.to_le_bytes(), &count.to_le_bytes(), values].concat()
}

/// A file of these bytes; lives as long as the folder.
pub fn file(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

pub fn read(bytes: &[u8]) -> Result<Gguf, Error> {
    let (_folder, path) = file(bytes);
    gguf::read(&Shard::open(path)?)
}
