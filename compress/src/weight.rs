//! What a compressed weight is: the numbers that are stored for it, and what they stand for.
//!
//! A [`Code`] says in which way a weight is stored, before any work; a [`CompressedWeight`] holds the numbers. To add a
//! way: a variant of each, and a format in [`crate::export`] that writes it.

use serde::{Deserialize, Serialize};

use crate::grid::{Quantised, ScaleDtype};

pub mod float8;

pub mod table4;

pub use float8::{Float8Code, Float8Scales, Float8Weight};
pub use table4::{Table4Code, Table4Weight};

/// The way a weight is stored, without its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "kebab-case")]
pub enum Code {
    /// Integers on uniform grids.
    Grid(GridCode),
    /// Eight-bit floats with shared scales.
    Float8(Float8Code),
    /// Codes into a table of sixteen numbers, with a scale a block: NF4 and its like.
    Table4(Table4Code),
    /// Plain numbers in the model's own type; some may be zero.
    Dense,
}

/// Integers on uniform grids, `ŵ = scale · (q − zero)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GridCode {
    /// 2, 3, 4 or 8.
    pub bits: u32,
    /// Input columns that share a scale; `in_features` for one scale a row.
    pub group_size: usize,
    /// All zero points are `2^(bits − 1)`.
    pub symmetric: bool,
    /// Groups are not contiguous, each column names its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_g_idx: bool,
}

impl Code {
    /// The grid, if it is one.
    pub fn grid(self) -> Option<GridCode> {
        match self {
            Self::Grid(grid) => Some(grid),
            Self::Float8(_) | Self::Table4(_) | Self::Dense => None,
        }
    }

    /// What a table calls it: `4 bits, groups of 128`.
    pub fn describe(self) -> String {
        match self {
            Self::Grid(GridCode { bits, group_size, symmetric, .. }) => {
                let kind = if symmetric { "" } else { ", asymmetric" };
                format!("{bits} bits, groups of {group_size}{kind}")
            }
            Self::Float8(code) => code.scales.describe(),
            Self::Table4(Table4Code { table, block_size, double_quant }) => {
                let nested = if double_quant { ", double quantisation" } else { "" };
                format!("{}, blocks of {block_size}{nested}", table.name())
            }
            Self::Dense => "dense".into(),
        }
    }
}

/// Plain numbers, some of them zero.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseWeight {
    /// Rows of the weight.
    pub out_features: usize,
    /// Columns of the weight.
    pub in_features: usize,
    /// (out_features, in_features).
    pub values: Vec<f32>,
}

/// A compressed weight.
#[derive(Debug, Clone, PartialEq)]
pub enum CompressedWeight {
    /// Of [`Code::Grid`].
    Grid(Quantised),
    /// Of [`Code::Float8`].
    Float8(Float8Weight),
    /// Of [`Code::Table4`].
    Table4(Table4Weight),
    /// Of [`Code::Dense`]; it is rounded to the model's type where it is written.
    Dense(DenseWeight),
}

impl CompressedWeight {
    /// (out_features, in_features).
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Self::Grid(q) => (q.out_features, q.in_features),
            Self::Float8(q) => q.shape(),
            Self::Table4(q) => (q.out_features, q.in_features),
            Self::Dense(weight) => (weight.out_features, weight.in_features),
        }
    }

    /// The way it is stored.
    pub fn code(&self) -> Code {
        match self {
            Self::Grid(q) => Code::Grid(GridCode {
                bits: q.bits,
                group_size: q.group_size,
                symmetric: q.symmetric,
                has_g_idx: q.g_idx.is_some(),
            }),
            Self::Float8(q) => Code::Float8(Float8Code { scales: q.layout }),
            Self::Table4(q) => Code::Table4(q.code()),
            Self::Dense(_) => Code::Dense,
        }
    }

    /// Row `row` of the weight it stands for, into `out` (in_features).
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        match self {
            Self::Grid(q) => q.dequantize_row(row, out),
            Self::Float8(q) => q.dequantize_row(row, out),
            Self::Table4(q) => q.dequantize_row(row, out),
            Self::Dense(weight) => out.copy_from_slice(&weight.values[row * weight.in_features..][..out.len()]),
        }
    }

    /// The weight it stands for, (out_features, in_features).
    pub fn dequantize(&self) -> Vec<f32> {
        let (rows, columns) = self.shape();
        let mut out = vec![0.0; rows * columns];
        if columns > 0 {
            out.chunks_exact_mut(columns).enumerate().for_each(|(row, values)| self.dequantize_row(row, values));
        }
        out
    }

    /// Row `row` as it is read back from a file of a model whose floats are `dtype`.
    pub fn stored_row(&self, row: usize, dtype: ScaleDtype, out: &mut [f32]) {
        self.dequantize_row(row, out);
        if matches!(self, Self::Dense(_)) {
            dtype.round_slice(out);
        }
    }

    /// The codes, if it is on a grid.
    pub fn quantised(&self) -> Option<&Quantised> {
        match self {
            Self::Grid(q) => Some(q),
            Self::Float8(_) | Self::Table4(_) | Self::Dense(_) => None,
        }
    }
}

impl From<Quantised> for CompressedWeight {
    fn from(q: Quantised) -> Self {
        Self::Grid(q)
    }
}

impl From<Float8Weight> for CompressedWeight {
    fn from(q: Float8Weight) -> Self {
        Self::Float8(q)
    }
}

impl From<Table4Weight> for CompressedWeight {
    fn from(q: Table4Weight) -> Self {
        Self::Table4(q)
    }
}

impl From<DenseWeight> for CompressedWeight {
    fn from(weight: DenseWeight) -> Self {
        Self::Dense(weight)
    }
}
