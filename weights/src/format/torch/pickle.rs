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

use super::{
    callable::Callable,
    value::{Built, MAX_TEXT, Node, Span, Value, text},
};
use crate::format::shown;

/// Longer programs are refused. Real ones describe a tensor in about 150 bytes.
pub(super) const MAX_PROGRAM: usize = 256 << 20;
/// More values are refused.
const MAX_VALUES: usize = 1 << 22;

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

/// The state of a program that runs.
pub(super) struct Machine<'a> {
    pub(super) program: &'a [u8],
    pub(super) at: usize,
    stack: Vec<Value>,
    /// Heights of the stack at which a `MARK` stands.
    marks: Vec<usize>,
    memo: Vec<Option<Value>>,
    pub(super) nodes: Vec<Node>,
    /// Values copied from one container to another.
    pub(super) copied: usize,
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

    pub(super) fn make(&mut self, node: Node) -> Result<Value, String> {
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

    pub(super) fn refused(&self, opcode: &str, at: usize) -> String {
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

    pub(super) fn items(&self, value: Value) -> Option<&[Value]> {
        match value {
            Value::Node(index) => match &self.nodes[index as usize] {
                Node::Tuple(items) | Node::List(items) => Some(items),
                _ => None,
            },
            _ => None,
        }
    }
}
