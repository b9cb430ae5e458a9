//! What stands for calling something: data in the place of the call's result.

use super::{
    callable::{Callable, StoredType},
    pickle::Machine,
    value::{Node, Storage, Tensor, Value, text},
};

impl Machine<'_> {
    /// What stands for the result of `callable(*arguments)`.
    pub(super) fn call(&mut self, callable: Value, arguments: Value, at: usize) -> Result<Value, String> {
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
    pub(super) fn persistent(&mut self, id: Value, at: usize) -> Result<Value, String> {
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

    pub(super) fn build(&mut self, object: Value, state: Value, at: usize) -> Result<(), String> {
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
