//! What a pickle builds: small values, the parts of those that have parts, and the whole.

use super::callable::{Callable, StoredType};

/// Longer texts are no names, and are not looked at: text is compared and hashed each time it is met.
pub(super) const MAX_TEXT: u64 = 2048;

/// A part of the program's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub start: u32,
    pub len: u32,
}

/// One value. Small, so that the stack is one array; what has parts lies among the machine's nodes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Span),
    /// Bytes, integers beyond 64 bits, and other data no tensor is made of.
    Inert,
    Callable(Callable),
    Node(u32),
}

/// What has parts.
#[derive(Debug)]
pub(super) enum Node {
    Tuple(Vec<Value>),
    List(Vec<Value>),
    Dict(Vec<(Value, Value)>),
    /// An object of a class that is only walked through: its state, once it was set.
    Object(Option<Value>),
    Storage(Storage),
    Tensor(Tensor),
}

/// Bytes that tensors are views of, by the key under which the file holds them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Storage {
    /// The key, text of the program.
    pub key: Span,
    /// `None` for a storage of plain bytes.
    pub dtype: Option<StoredType>,
    /// Elements (or bytes, of an untyped storage).
    pub len: u64,
}

/// A view of a storage: offset, sizes and strides in elements. Storage, sizes and strides are numbers of nodes, so that
/// a node stays small.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Tensor {
    pub storage: u32,
    pub dtype: StoredType,
    pub offset: u64,
    pub size: u32,
    pub strides: u32,
}

/// What a program built.
#[derive(Debug)]
pub(super) struct Built<'a> {
    pub(super) program: &'a [u8],
    pub(super) nodes: Vec<Node>,
    /// What the program returned.
    pub result: Value,
    /// Where it ended.
    pub end: usize,
}

impl<'a> Built<'a> {
    /// The parts of a node.
    pub fn node(&self, value: Value) -> Option<&Node> {
        match value {
            Value::Node(index) => self.nodes.get(index as usize),
            _ => None,
        }
    }

    /// Every storage that the program names.
    pub fn storages(&self) -> impl Iterator<Item = Storage> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Storage(storage) => Some(*storage),
            _ => None,
        })
    }

    /// A piece of text.
    pub fn text(&self, span: Span) -> &'a str {
        text(self.program, span)
    }

    /// `value` as text.
    pub fn as_text(&self, value: Value) -> Option<&'a str> {
        match value {
            Value::Text(span) => Some(self.text(span)),
            _ => None,
        }
    }

    /// The items of a tuple or list.
    pub fn items(&self, value: Value) -> Option<&[Value]> {
        match self.node(value)? {
            Node::Tuple(items) | Node::List(items) => Some(items),
            _ => None,
        }
    }

    /// The pairs of a dictionary.
    pub fn pairs(&self, value: Value) -> Option<&[(Value, Value)]> {
        match self.node(value)? {
            Node::Dict(pairs) => Some(pairs),
            _ => None,
        }
    }
}

/// The text of a span of the program.
pub(super) fn text(program: &[u8], Span { start, len }: Span) -> &str {
    let bytes = &program[start as usize..(start + len) as usize];
    std::str::from_utf8(bytes).unwrap_or_default() // checked when the span was made
}
