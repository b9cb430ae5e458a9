//! A machine for pickles that can build data and nothing else.
//!
//! A pickle is a program for a stack machine whose instructions may import and call any Python function. This machine
//! knows the instructions that build plain data, and a fixed list of callables ([`Callable`]) that it stands in for with
//! data of its own: nothing is imported, nothing is called. Whatever else a program asks for ends the reading with an
//! error that names the callable or the instruction.
//!
//! Work and memory are bounded by the program's length: every instruction makes at most one value, containers hold
//! values by number (so sharing costs nothing, and a value that holds itself is no loop), and both program and number of
//! values have an end. Instruction set: the comments of Python's `pickletools`.

use super::super::shown;

/// Longer programs are refused. Real ones describe a tensor in about 150 bytes.
pub(super) const MAX_PROGRAM: usize = 256 << 20;
/// More values are refused.
const MAX_VALUES: usize = 1 << 22;

/// Longer texts are no names, and are not looked at: text is compared and hashed each time it is met.
const MAX_TEXT: u64 = 2048;

/// A part of the program's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    start: u32,
    len: u32,
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

/// A torch element type: its place in [`TYPES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StoredType(u8);

impl StoredType {
    /// The type torch calls `name`.
    fn find(name: &str) -> Option<Self> {
        TYPES.iter().position(|known| *known == name).map(|at| Self(at as u8))
    }

    /// What torch calls it.
    pub fn name(self) -> &'static str {
        TYPES[usize::from(self.0)]
    }
}

/// The callables that the machine stands in for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Callable {
    /// `_rebuild_tensor`, `_rebuild_tensor_v2`: (storage, offset, size, strides, …).
    Tensor,
    /// `_rebuild_tensor_v3`: the same with the element type as seventh argument.
    TypedTensor,
    /// `_rebuild_parameter…`: the tensor is the first argument.
    First,
    /// `_rebuild_from_type_v2`: (callable, class, arguments, state).
    FromType,
    /// `OrderedDict` and other dictionaries.
    Dict,
    /// Lists of integers and the like in TorchScript, `torch.Size`, sets: the first argument as it is.
    Sequence,
    /// A storage class.
    Storage(StoredType),
    UntypedStorage,
    /// An element type such as `torch.float16`.
    Type(StoredType),
    /// A class whose objects are only walked through.
    Class,
    /// A class that only stands as an argument.
    Inert,
}

/// The storage classes and their element types, by torch's names.
const STORAGES: [(&str, &str); 12] = [
    ("DoubleStorage", "float64"),
    ("FloatStorage", "float32"),
    ("HalfStorage", "float16"),
    ("BFloat16Storage", "bfloat16"),
    ("LongStorage", "int64"),
    ("IntStorage", "int32"),
    ("ShortStorage", "int16"),
    ("CharStorage", "int8"),
    ("ByteStorage", "uint8"),
    ("BoolStorage", "bool"),
    ("ComplexFloatStorage", "complex64"),
    ("ComplexDoubleStorage", "complex128"),
];

/// The element types, by torch's names.
const TYPES: [&str; 22] = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint64",
    "uint32",
    "uint16",
    "uint8",
    "bool",
    "complex64",
    "complex128",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn_x2",
    "complex32",
];

impl Callable {
    /// The callable `module.name`, if the machine stands in for it. This list is all there is.
    fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Self::Tensor,
            ("torch._utils", "_rebuild_tensor_v3") => Self::TypedTensor,
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Self::First,
            ("torch._tensor", "_rebuild_from_type_v2") => Self::FromType,
            ("collections", "OrderedDict" | "defaultdict" | "Counter") => Self::Dict,
            ("builtins" | "__builtin__", "dict") => Self::Dict,
            ("builtins" | "__builtin__", "set" | "frozenset" | "list" | "tuple") => Self::Sequence,
            ("builtins" | "__builtin__", "int" | "float" | "bool" | "str" | "complex" | "bytearray" | "slice") => {
                Self::Inert
            }
            // How Python 3 writes bytes into a pickle that Python 2 can read.
            ("_codecs", "encode") => Self::Inert,
            ("argparse", "Namespace") | ("types", "SimpleNamespace") => Self::Class,
            ("torch", "Size") => Self::Sequence,
            ("torch", "device" | "Tensor") => Self::Inert,
            ("torch.nn.parameter" | "torch.nn", "Parameter" | "Buffer") => Self::Inert,
            ("torch.serialization", "_get_layout") => Self::Inert,
            (
                "torch.jit._pickle",
                "build_intlist" | "build_doublelist" | "build_boollist" | "build_tensorlist" | "restore_type_tag",
            ) => Self::Sequence,
            ("torch.storage", "UntypedStorage") | ("torch", "UntypedStorage") => Self::UntypedStorage,
            ("torch" | "torch.cuda" | "torch.storage", storage) if storage.ends_with("Storage") => {
                let (_, dtype) = STORAGES.iter().find(|(class, _)| *class == storage)?;
                Self::Storage(StoredType::find(dtype)?)
            }
            ("torch", dtype) => Self::Type(StoredType::find(dtype)?),
            // Classes that TorchScript compiled: the file holds their code, and only their attributes are looked at.
            (module, _) if module == "__torch__" || module.starts_with("__torch__.") => Self::Class,
            _ => return None,
        })
    }
}

/// What a program built.
#[derive(Debug)]
pub(super) struct Built<'a> {
    program: &'a [u8],
    nodes: Vec<Node>,
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

fn text(program: &[u8], Span { start, len }: Span) -> &str {
    let bytes = &program[start as usize..(start + len) as usize];
    std::str::from_utf8(bytes).unwrap_or_default() // checked when the span was made
}

/// Runs the program at the start of `bytes` up to its `STOP`.
///
/// # Errors
/// A sentence that names the callable or the instruction at fault and where it stands.
pub(super) fn run(bytes: &[u8]) -> Result<Built<'_>, String> {
    let program = &bytes[..bytes.len().min(MAX_PROGRAM)];
    let mut machine = Machine {
        program,
        at: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
        nodes: Vec::new(),
        copied: 0,
    };
    let result = machine.run()?;
    let Machine { at: end, nodes, .. } = machine;
    Ok(Built { program, nodes, result, end })
}

struct Machine<'a> {
    program: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Heights of the stack at which a `MARK` stands.
    marks: Vec<usize>,
    memo: Vec<Option<Value>>,
    nodes: Vec<Node>,
    /// Values copied from one container to another.
    copied: usize,
}

impl<'a> Machine<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8], String> {
        let left = self.program.len() - self.at;
        if count > left as u64 {
            let at = self.at;
            return Err(format!(
                "the pickle wants {count} bytes at byte {at}, but {left} are left: truncated or damaged"
            ));
        }
        let taken = &self.program[self.at..self.at + count as usize];
        self.at += count as usize;
        Ok(taken)
    }

    /// A little-endian number of `count` bytes.
    fn number(&mut self, count: u64) -> Result<u64, String> {
        Ok(self.take(count)?.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    fn line(&mut self) -> Result<Span, String> {
        let rest = &self.program[self.at..];
        let len = rest.iter().take(MAX_TEXT as usize).position(|&byte| byte == b'\n');
        let len = len.ok_or_else(|| format!("the pickle has a line at byte {} that does not end: damaged", self.at))?;
        let span = self.span(len as u64)?;
        self.at += 1;
        Ok(span)
    }

    /// The next `len` bytes as text.
    fn span(&mut self, len: u64) -> Result<Span, String> {
        let start = self.at as u32; // a program has at most 256 MiB
        let bytes = self.take(len)?;
        std::str::from_utf8(bytes)
            .map_err(|_| format!("the pickle has text at byte {start} that is not UTF-8: damaged"))?;
        Ok(Span { start, len: len as u32 })
    }

    fn push(&mut self, value: Value) -> Result<(), String> {
        if self.stack.len() >= MAX_VALUES {
            return Err(format!("the pickle puts more than {MAX_VALUES} values on its stack: it is no checkpoint"));
        }
        self.stack.push(value);
        Ok(())
    }

    fn make(&mut self, node: Node) -> Result<Value, String> {
        if self.nodes.len() >= MAX_VALUES {
            return Err(format!("the pickle makes more than {MAX_VALUES} values: it is no checkpoint"));
        }
        self.nodes.push(node);
        Ok(Value::Node(self.nodes.len() as u32 - 1))
    }

    fn push_node(&mut self, node: Node) -> Result<(), String> {
        let value = self.make(node)?;
        self.push(value)
    }

    fn pop(&mut self) -> Result<Value, String> {
        // What stands below a mark is out of reach until the mark is taken away.
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.pop() {
            Some(value) if self.stack.len() >= floor => Ok(value),
            _ => Err(format!("the pickle takes from an empty stack at byte {}: damaged", self.at)),
        }
    }

    /// Everything above the last mark, which is taken away.
    fn above_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.marks.pop().ok_or_else(|| format!("the pickle misses a mark at byte {}: damaged", self.at))?;
        Ok(self.stack.split_off(mark))
    }

    fn tuple(&mut self, count: usize) -> Result<(), String> {
        let mut items = Vec::with_capacity(count);
        for _ in 0..count {
            items.push(self.pop()?);
        }
        items.reverse();
        self.push_node(Node::Tuple(items))
    }

    fn get(&mut self, index: u64) -> Result<(), String> {
        let value = usize::try_from(index).ok().and_then(|index| self.memo.get(index).copied().flatten());
        let value = value.ok_or_else(|| format!("the pickle asks for memo {index}, which it never made: damaged"))?;
        self.push(value)
    }

    fn put(&mut self, index: u64) -> Result<(), String> {
        let value = self.pop()?;
        self.push(value)?;
        // Writers count up from zero, so the list stays as short as what was read of the program.
        if index as usize >= self.memo.len() {
            if index > self.at as u64 || index >= MAX_VALUES as u64 {
                return Err(format!("the pickle stores memo {index} at byte {}: damaged or made to deceive", self.at));
            }
            self.memo.resize(index as usize + 1, None);
        }
        self.memo[index as usize] = Some(value);
        Ok(())
    }

    fn run(&mut self) -> Result<Value, String> {
        loop {
            let at = self.at;
            let opcode = self.take(1)?[0];
            if opcode == b'.' {
                return self.pop();
            }
            self.step(opcode, at)?;
        }
    }

    fn step(&mut self, opcode: u8, at: usize) -> Result<(), String> {
        match opcode {
            0x80 => match self.number(1)? {
                0..=5 => Ok(()), // PROTO
                other => Err(format!("the pickle states protocol {other}; known are 0 to 5")),
            },
            // FRAME: a promise about the bytes that follow. It is held to, though nothing depends on it.
            0x95 => {
                let (len, left) = (self.number(8)?, self.program.len() - self.at);
                if len > left as u64 {
                    return Err(format!(
                        "the pickle has a FRAME of {len} bytes at byte {at}, but {left} are left: truncated or damaged"
                    ));
                }
                Ok(())
            }
            b'(' => {
                if self.marks.len() >= MAX_VALUES {
                    return Err(format!("the pickle sets more than {MAX_VALUES} marks: it is no checkpoint"));
                }
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => {
                // POP takes a mark where one stands on top.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                    return Ok(());
                }
                self.pop().map(drop)
            }
            b'1' => self.above_mark().map(drop), // POP_MARK
            b'2' => {
                let value = self.pop()?; // DUP
                self.push(value)?;
                self.push(value)
            }

            // Numbers and text.
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'J' => {
                let value = self.number(4)? as u32 as i32; // BININT
                self.push(Value::Int(value.into()))
            }
            b'K' => {
                let value = self.number(1)? as i64; // BININT1
                self.push(Value::Int(value))
            }
            b'M' => {
                let value = self.number(2)? as i64; // BININT2
                self.push(Value::Int(value))
            }
            0x8a => {
                let len = self.number(1)?; // LONG1
                self.long(len)
            }
            0x8b => {
                let len = self.number(4)?; // LONG4
                self.long(len)
            }
            b'I' | b'L' => {
                let span = self.line()?; // INT, LONG: decimal text
                let value = match text(self.program, span).trim_end_matches('L') {
                    "00" => Value::Bool(false),
                    "01" => Value::Bool(true),
                    digits => digits.parse().map_or(Value::Inert, Value::Int),
                };
                self.push(value)
            }
            b'G' => {
                let bits = self.number(8)?.swap_bytes(); // BINFLOAT, big endian
                self.push(Value::Float(f64::from_bits(bits)))
            }
            b'F' => {
                let span = self.line()?; // FLOAT
                let value = text(self.program, span).parse().map_or(Value::Inert, Value::Float);
                self.push(value)
            }
            b'X' => self.string(4),     // BINUNICODE
            0x8c => self.string(1),     // SHORT_BINUNICODE
            0x8d => self.string(8),     // BINUNICODE8
            b'U' => self.old_string(1), // SHORT_BINSTRING
            b'T' => self.old_string(4), // BINSTRING
            b'V' => {
                let span = self.line()?; // UNICODE
                self.push(Value::Text(span))
            }
            b'B' => self.bytes(4),        // BINBYTES
            b'C' => self.bytes(1),        // SHORT_BINBYTES
            0x8e | 0x96 => self.bytes(8), // BINBYTES8, BYTEARRAY8

            // Containers.
            b')' => self.push_node(Node::Tuple(Vec::new())),
            b't' => {
                let items = self.above_mark()?; // TUPLE
                self.push_node(Node::Tuple(items))
            }
            0x85..=0x87 => self.tuple(usize::from(opcode - 0x84)), // TUPLE1 to TUPLE3
            b']' => self.push_node(Node::List(Vec::new())),
            0x8f => self.push_node(Node::List(Vec::new())), // EMPTY_SET
            b'l' | 0x91 => {
                let items = self.above_mark()?; // LIST, FROZENSET
                self.push_node(Node::List(items))
            }
            b'}' => self.push_node(Node::Dict(Vec::new())),
            b'd' => {
                let items = self.above_mark()?; // DICT
                let pairs = self.pairs(&items, at)?;
                self.push_node(Node::Dict(pairs))
            }
            b'a' => {
                let item = self.pop()?; // APPEND
                self.extend_list(vec![item], at)
            }
            b'e' | 0x90 => {
                let items = self.above_mark()?; // APPENDS, ADDITEMS
                self.extend_list(items, at)
            }
            b's' => {
                let value = self.pop()?; // SETITEM
                let key = self.pop()?;
                self.extend_dict(vec![(key, value)], at)
            }
            b'u' => {
                let items = self.above_mark()?; // SETITEMS
                let pairs = self.pairs(&items, at)?;
                self.extend_dict(pairs, at)
            }

            // The memo.
            b'q' => {
                let index = self.number(1)?; // BINPUT
                self.put(index)
            }
            b'r' => {
                let index = self.number(4)?; // LONG_BINPUT
                self.put(index)
            }
            b'p' => {
                let index = self.memo_line()?; // PUT
                self.put(index)
            }
            0x94 => self.put(self.memo.len() as u64), // MEMOIZE
            b'h' => {
                let index = self.number(1)?; // BINGET
                self.get(index)
            }
            b'j' => {
                let index = self.number(4)?; // LONG_BINGET
                self.get(index)
            }
            b'g' => {
                let index = self.memo_line()?; // GET
                self.get(index)
            }

            // Callables, and what stands for calling them.
            b'c' => {
                let (module, name) = (self.line()?, self.line()?); // GLOBAL
                self.global(module, name)
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?); // STACK_GLOBAL
                match (module, name) {
                    (Value::Text(module), Value::Text(name)) => self.global(module, name),
                    _ => Err(format!(
                        "the pickle names a callable at byte {at} (STACK_GLOBAL) by something that is no text: damaged"
                    )),
                }
            }
            b'i' => {
                let (module, name) = (self.line()?, self.line()?); // INST
                self.global(module, name)?;
                Err(self.refused("INST", at))
            }
            b'R' => {
                let (arguments, callable) = (self.pop()?, self.pop()?); // REDUCE
                let value = self.call(callable, arguments, at)?;
                self.push(value)
            }
            0x81 => {
                let (arguments, class) = (self.pop()?, self.pop()?); // NEWOBJ
                let value = self.call(class, arguments, at)?;
                self.push(value)
            }
            b'b' => {
                let (state, object) = (self.pop()?, self.pop()?); // BUILD
                self.build(object, state, at)?;
                self.push(object)
            }
            b'Q' => {
                let id = self.pop()?; // BINPERSID
                let value = self.persistent(id, at)?;
                self.push(value)
            }
            b'o' => Err(self.refused("OBJ", at)),
            b'P' => Err(self.refused("PERSID", at)),
            b'S' => Err(self.refused("STRING", at)),
            0x82 => Err(self.refused("EXT1", at)),
            0x83 => Err(self.refused("EXT2", at)),
            0x84 => Err(self.refused("EXT4", at)),
            0x92 => Err(self.refused("NEWOBJ_EX", at)),
            0x97 => Err(self.refused("NEXT_BUFFER", at)),
            0x98 => Err(self.refused("READONLY_BUFFER", at)),
            other => Err(format!("the pickle has the unknown instruction {other:#04x} at byte {at}: damaged")),
        }
    }

    fn refused(&self, opcode: &str, at: usize) -> String {
        format!(
            "the pickle uses the instruction {opcode} at byte {at}, which no tensor needs, so it is refused; save the tensors as safetensors where the file was made"
        )
    }

    fn long(&mut self, len: u64) -> Result<(), String> {
        let bytes = self.take(len)?; // little endian, two's complement
        let value = match bytes {
            [] => Value::Int(0),
            bytes if bytes.len() <= 8 => {
                let negative = bytes[bytes.len() - 1] & 0x80 != 0;
                let mut wide = [if negative { 0xff } else { 0 }; 8];
                wide[..bytes.len()].copy_from_slice(bytes);
                Value::Int(i64::from_le_bytes(wide))
            }
            _ => Value::Inert,
        };
        self.push(value)
    }

    fn memo_line(&mut self) -> Result<u64, String> {
        let span = self.line()?;
        let digits = text(self.program, span);
        digits.parse().map_err(|_| format!("the pickle has the memo number `{}`: damaged", shown(digits)))
    }

    fn string(&mut self, count: u64) -> Result<(), String> {
        let len = self.number(count)?;
        let span = self.span(len)?;
        self.push(if len <= MAX_TEXT { Value::Text(span) } else { Value::Inert })
    }

    /// A string of Python 2, which may be text or bytes.
    fn old_string(&mut self, count: u64) -> Result<(), String> {
        let len = self.number(count)?;
        let start = self.at as u32;
        let bytes = self.take(len)?;
        let value = match std::str::from_utf8(bytes) {
            Ok(_) if len <= MAX_TEXT => Value::Text(Span { start, len: len as u32 }),
            _ => Value::Inert,
        };
        self.push(value)
    }

    fn bytes(&mut self, count: u64) -> Result<(), String> {
        let len = self.number(count)?;
        self.take(len)?;
        self.push(Value::Inert)
    }

    fn pairs(&self, items: &[Value], at: usize) -> Result<Vec<(Value, Value)>, String> {
        match items.as_chunks::<2>() {
            (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
            _ => Err(format!("the pickle has a key without a value at byte {at}: damaged")),
        }
    }

    fn top(&mut self) -> Option<&mut Node> {
        match self.stack.last() {
            Some(Value::Node(index)) => self.nodes.get_mut(*index as usize),
            _ => None,
        }
    }

    fn extend_list(&mut self, items: Vec<Value>, at: usize) -> Result<(), String> {
        match self.top() {
            Some(Node::List(list)) => {
                list.extend(items);
                Ok(())
            }
            _ => Err(format!("the pickle appends at byte {at} to something that is no list: damaged")),
        }
    }

    fn extend_dict(&mut self, pairs: Vec<(Value, Value)>, at: usize) -> Result<(), String> {
        match self.top() {
            Some(Node::Dict(dict)) => {
                dict.extend(pairs);
                Ok(())
            }
            _ => Err(format!("the pickle sets keys at byte {at} in something that is no dictionary: damaged")),
        }
    }

    fn global(&mut self, module: Span, name: Span) -> Result<(), String> {
        let (module, name) = (text(self.program, module), text(self.program, name));
        match Callable::find(module, name) {
            Some(callable) => self.push(Value::Callable(callable)),
            None if module == "torch._utils" && name.starts_with("_rebuild_") => Err(format!(
                "the pickle asks for `{module}.{}`, a kind of tensor that is not read (quantised, sparse or without data); save it as a dense one",
                shown(name)
            )),
            None => Err(format!(
                "the pickle asks for `{}.{}`, which no tensor needs, so it is refused and nothing was run; if you trust the file, save its tensors alone (a state_dict) as safetensors where it was made",
                shown(module),
                shown(name)
            )),
        }
    }

    fn items(&self, value: Value) -> Option<&[Value]> {
        match value {
            Value::Node(index) => match &self.nodes[index as usize] {
                Node::Tuple(items) | Node::List(items) => Some(items),
                _ => None,
            },
            _ => None,
        }
    }

    /// What stands for the result of `callable(*arguments)`.
    fn call(&mut self, callable: Value, arguments: Value, at: usize) -> Result<Value, String> {
        let fault = |what: &str| format!("the pickle {what} at byte {at}: damaged or not written by torch");
        let Value::Callable(callable) = callable else { return Err(fault("calls something that is no callable")) };
        let Some(items) = self.items(arguments) else { return Err(fault("calls with arguments that are no tuple")) };
        let first = items.first().copied();
        match callable {
            Callable::Tensor | Callable::TypedTensor => {
                let typed = callable == Callable::TypedTensor;
                let tensor = self.tensor(items, typed).ok_or_else(|| {
                    fault("rebuilds a tensor from other parts than a storage, offset, size and strides")
                })??;
                self.make(Node::Tensor(tensor))
            }
            Callable::First => first.ok_or_else(|| fault("rebuilds a parameter from nothing")),
            Callable::FromType => {
                let &[inner, _, arguments, ..] = items else {
                    return Err(fault("rebuilds a tensor from too few parts"));
                };
                match inner {
                    Value::Callable(Callable::FromType) => Err(fault("rebuilds a tensor by rebuilding")),
                    _ => self.call(inner, arguments, at),
                }
            }
            Callable::Dict => {
                // OrderedDict([[key, value], …]) of Python 2, Counter({…}), defaultdict(factory).
                let mut pairs = Vec::new();
                if let Some(Value::Node(index)) = first {
                    self.budget(index)?;
                    match &self.nodes[index as usize] {
                        Node::Dict(given) => pairs.clone_from(given),
                        Node::List(given) | Node::Tuple(given) => {
                            for &pair in given {
                                match self.items(pair) {
                                    Some(&[key, value]) => pairs.push((key, value)),
                                    _ => return Err(fault("makes a dictionary from something that is no pair")),
                                }
                            }
                        }
                        _ => {}
                    }
                }
                self.make(Node::Dict(pairs))
            }
            Callable::Sequence => match first {
                Some(value) => Ok(value),
                None => self.make(Node::List(Vec::new())),
            },
            Callable::Class => self.make(Node::Object(None)),
            Callable::Inert => Ok(Value::Inert),
            Callable::Storage(_) | Callable::UntypedStorage | Callable::Type(_) => {
                Err(fault("calls a storage class or element type"))
            }
        }
    }

    /// A copy of node `index` is about to be made. All copies together may be as long as what was read of the program:
    /// a program that copies one long list again and again is not a checkpoint.
    fn budget(&mut self, index: u32) -> Result<(), String> {
        self.copied += match &self.nodes[index as usize] {
            Node::Dict(pairs) => pairs.len(),
            Node::List(items) | Node::Tuple(items) => items.len(),
            _ => 0,
        };
        if self.copied > self.at {
            return Err("the pickle copies more than it holds: damaged or made to deceive".into());
        }
        Ok(())
    }

    fn tensor(&self, items: &[Value], typed: bool) -> Option<Result<Tensor, String>> {
        let &[storage, Value::Int(offset), size, strides, ..] = items else { return None };
        let Value::Node(index) = storage else { return None };
        let Node::Storage(storage) = self.nodes[index as usize] else { return None };
        let bytes = StoredType::find("uint8")?;
        let dtype = match (typed, items.get(6)) {
            (true, Some(Value::Callable(Callable::Type(dtype)))) => *dtype,
            (true, _) => return None,
            (false, _) => storage.dtype.unwrap_or(bytes),
        };
        // The last argument of newer files may say that the values are to be conjugated or negated.
        if let Some(Value::Node(metadata)) = items.get(if typed { 7 } else { 6 })
            && let Node::Dict(pairs) = &self.nodes[*metadata as usize]
            && !pairs.is_empty()
        {
            return Some(Err("the pickle holds a tensor whose values are marked as conjugated or negated, which is not read; save it after `resolve_conj().resolve_neg()`".into()));
        }
        let (Some(_), Some(_)) = (self.items(size), self.items(strides)) else { return None };
        let (Value::Node(size), Value::Node(strides)) = (size, strides) else { return None };
        Some(Ok(Tensor { storage: index, dtype, offset: u64::try_from(offset).ok()?, size, strides }))
    }

    /// What a persistent id stands for: always a storage.
    fn persistent(&mut self, id: Value, at: usize) -> Result<Value, String> {
        let storage = self.items(id).and_then(|items| {
            let &[Value::Text(kind), class, Value::Text(key), _, Value::Int(len), ..] = items else { return None };
            let dtype = match class {
                Value::Callable(Callable::Storage(dtype)) => Some(dtype),
                Value::Callable(Callable::UntypedStorage) => None,
                _ => return None,
            };
            // Old files may say that the storage is a part of another.
            let whole = items.get(5).is_none_or(|view| *view == Value::None);
            (text(self.program, kind) == "storage" && whole).then_some(Storage {
                key,
                dtype,
                len: u64::try_from(len).ok()?,
            })
        });
        match storage {
            Some(storage) => self.make(Node::Storage(storage)),
            None => Err(format!(
                "the pickle has a persistent id at byte {at} that is no whole storage of torch, so it is refused"
            )),
        }
    }

    fn build(&mut self, object: Value, state: Value, at: usize) -> Result<(), String> {
        match object {
            Value::Node(index) => match &mut self.nodes[index as usize] {
                Node::Object(place) => {
                    *place = Some(state);
                    Ok(())
                }
                // An OrderedDict with attributes, such as the `_metadata` of a state_dict.
                Node::Dict(_) => Ok(()),
                _ => Err(self.refused("BUILD", at)),
            },
            _ => Err(self.refused("BUILD", at)),
        }
    }
}
