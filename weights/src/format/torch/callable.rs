//! The callables that the machine stands in for. What is not in this list ends the reading.

/// A torch element type: its place in [`TYPES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StoredType(u8);

impl StoredType {
    /// The type torch calls `name`.
    pub fn find(name: &str) -> Option<Self> {
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
    pub fn find(module: &str, name: &str) -> Option<Self> {
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
