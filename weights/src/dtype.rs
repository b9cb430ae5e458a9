//! Element types of tensors on disk, plain and blocked.

use std::fmt;

/// The element type of a tensor on disk. The `Q…` types are ggml's blocks: several elements share scales. `F4` (E2M1) and
/// the two `F6` are the packed elements of the OCP microscaling formats, `F8E8M0` their scales; `C64` is a complex number
/// of two f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // the names are the documentation
pub enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
    F8E4M3,
    F8E5M2,
    F8E4M3Fnuz,
    F8E5M2Fnuz,
    F8E8M0,
    F6E2M3,
    F6E3M2,
    F4,
    C64,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl Dtype {
    /// Every type a safetensors file can hold here.
    pub const SAFETENSORS: [Self; 22] = [
        Self::F64,
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::F8E4M3,
        Self::F8E5M2,
        Self::F8E4M3Fnuz,
        Self::F8E5M2Fnuz,
        Self::F8E8M0,
        Self::F6E2M3,
        Self::F6E3M2,
        Self::F4,
        Self::C64,
        Self::I64,
        Self::I32,
        Self::I16,
        Self::I8,
        Self::U64,
        Self::U32,
        Self::U16,
        Self::U8,
        Self::Bool,
    ];

    /// (elements, bytes) of the smallest addressable block: `(1, size)` for plain types.
    pub const fn block(self) -> (usize, usize) {
        match self {
            Self::F64 | Self::I64 | Self::U64 | Self::C64 => (1, 8),
            Self::F32 | Self::I32 | Self::U32 => (1, 4),
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => (1, 2),
            Self::F8E4M3 | Self::F8E5M2 | Self::F8E4M3Fnuz | Self::F8E5M2Fnuz | Self::F8E8M0 => (1, 1),
            Self::I8 | Self::U8 | Self::Bool => (1, 1),
            Self::F6E2M3 | Self::F6E3M2 => (4, 3),
            Self::F4 => (2, 1),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2K => (256, 84),
            Self::Q3K => (256, 110),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }

    /// Bytes of `elements` elements, or `None` if they do not fill whole blocks or the number overflows.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        let (block, bytes) = self.block();
        if !elements.is_multiple_of(block) {
            return None;
        }
        (elements / block).checked_mul(bytes)
    }

    /// Bits one element takes on disk, block scales included.
    pub fn bits(self) -> f64 {
        let (block, bytes) = self.block();
        8.0 * bytes as f64 / block as f64
    }

    /// Whether the values are real numbers (as against indices, masks and complex numbers).
    pub const fn is_float(self) -> bool {
        !matches!(
            self,
            Self::I64
                | Self::I32
                | Self::I16
                | Self::I8
                | Self::U64
                | Self::U32
                | Self::U16
                | Self::U8
                | Self::Bool
                | Self::C64
        )
    }

    /// The name safetensors headers use, or `None` for a ggml block type.
    pub const fn safetensors_name(self) -> Option<&'static str> {
        Some(match self {
            Self::F64 => "F64",
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::F8E4M3 => "F8_E4M3",
            Self::F8E5M2 => "F8_E5M2",
            Self::F8E4M3Fnuz => "F8_E4M3FNUZ",
            Self::F8E5M2Fnuz => "F8_E5M2FNUZ",
            Self::F8E8M0 => "F8_E8M0",
            Self::F6E2M3 => "F6_E2M3",
            Self::F6E3M2 => "F6_E3M2",
            Self::F4 => "F4",
            Self::C64 => "C64",
            Self::I64 => "I64",
            Self::I32 => "I32",
            Self::I16 => "I16",
            Self::I8 => "I8",
            Self::U64 => "U64",
            Self::U32 => "U32",
            Self::U16 => "U16",
            Self::U8 => "U8",
            Self::Bool => "BOOL",
            _ => return None,
        })
    }

    /// The type a safetensors header means by `name`.
    pub fn from_safetensors_name(name: &str) -> Option<Self> {
        Self::SAFETENSORS.into_iter().find(|dtype| dtype.safetensors_name() == Some(name))
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.safetensors_name() {
            Some(name) => f.write_str(name),
            // ggml writes its K types with an underline: Q4_K.
            None => match format!("{self:?}").strip_suffix('K') {
                Some(stem) => write!(f, "{stem}_K"),
                None => write!(f, "{self:?}"),
            },
        }
    }
}
