//! Layers of a checkpoint as probes read them: matrices (out, in), and adapters as their two factors.
//!
//! A tensor of more than two dimensions loses those of length 1; what is still larger (a convolution's kernel: out, in,
//! height, width) is read as (out, in · height · width). A vector is one column.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::operand::Operand;
use crate::{Checkpoint, Dtype, Error, Result, TensorView};

/// Endings of an adapter's tensors: (down = A, up = B).
const ADAPTER_ENDINGS: [(&str, &str); 5] = [
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A", ".lora_B"),
];

/// Which layer, and of what form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// The tensor's name; of an adapter, what stands before `.lora_A.weight`.
    pub name: String,
    /// d_H.
    pub rows: usize,
    /// d_W.
    pub columns: usize,
    /// Whether it is the product of an adapter's factors.
    pub adapter: bool,
}

/// A layer's numbers.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    /// (rows, columns).
    Dense(Vec<f32>),
    /// X = B A.
    LowRank {
        /// B (rows, rank).
        up: Vec<f32>,
        /// A (rank, columns).
        down: Vec<f32>,
        /// Inner size.
        rank: usize,
    },
}

impl Values {
    /// As a probe takes it.
    pub fn operand(&self) -> Operand<'_> {
        match self {
            Self::Dense(x) => Operand::Dense(x),
            Self::LowRank { up, down, rank } => Operand::LowRank { up, down, rank: *rank },
        }
    }

    /// ‖X − centre‖ of a layer of `shape`; `centre` (rows, columns) is 0 where it is empty, as it is for adapters.
    pub fn distance(&self, shape: (usize, usize), centre: &[f32]) -> f64 {
        match self {
            Self::Dense(x) if !centre.is_empty() => square_distance(x, centre).sqrt(),
            other => other.operand().squares(shape).sqrt(),
        }
    }
}

crate::kernel::dispatch! {
    /// Σ (x − c)², in f64.
    pub(super) fn square_distance(x: &[f32], c: &[f32]) -> f64 = square_distance_body
}

#[inline(always)]
fn square_distance_body(x: &[f32], c: &[f32]) -> f64 {
    let ((x16, x_rest), (c16, c_rest)) = (x.as_chunks::<16>(), c.as_chunks::<16>());
    let mut sums = [0.0f64; 16];
    for (x, c) in x16.iter().zip(c16) {
        for lane in 0..16 {
            let d = f64::from(x[lane]) - f64::from(c[lane]);
            sums[lane] += d * d;
        }
    }
    let rest = x_rest.iter().zip(c_rest).map(|(x, c)| (f64::from(*x) - f64::from(*c)).powi(2));
    sums.iter().sum::<f64>() + rest.sum::<f64>()
}

/// (rows, columns) of a tensor of that shape.
fn sides(shape: &[usize]) -> (usize, usize) {
    match shape {
        [] => (1, 1),
        [n] => (*n, 1),
        [rows, columns] => (*rows, *columns),
        more => {
            let kept: Vec<usize> = more.iter().copied().filter(|&side| side != 1).collect();
            match kept.as_slice() {
                [] => (1, 1),
                [n] if more[0] == 1 => (1, *n),
                [n] => (*n, 1),
                [rows, rest @ ..] => (*rows, rest.iter().product()),
            }
        }
    }
}

fn is_number(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::F64)
}

/// The two factors of adapter `name`, (down, up).
fn factors(checkpoint: &Checkpoint, name: &str) -> Option<(TensorView, TensorView)> {
    ADAPTER_ENDINGS.iter().find_map(|(down, up)| {
        Some((checkpoint.get(&format!("{name}{down}"))?, checkpoint.get(&format!("{name}{up}"))?))
    })
}

/// Every layer that can be probed: matrices of at least 2 × 2 floating-point numbers, and adapters; by name.
pub fn layers(checkpoint: &Checkpoint) -> Vec<Layer> {
    let mut found = BTreeMap::new();
    for tensor in checkpoint.tensors().filter(|tensor| is_number(tensor.dtype())) {
        let part = ADAPTER_ENDINGS.iter().find_map(|(down, up)| {
            let name = tensor.name().strip_suffix(down)?;
            let other = checkpoint.get(&format!("{name}{up}"))?;
            Some((name, sides(other.shape()).0, sides(tensor.shape()).1))
        });
        let is_up = ADAPTER_ENDINGS.iter().any(|(down, up)| {
            tensor.name().strip_suffix(up).is_some_and(|name| checkpoint.contains(&format!("{name}{down}")))
        });
        let (name, rows, columns, adapter) = match part {
            Some((name, rows, columns)) => (name, rows, columns, true),
            None if is_up => continue,
            None => {
                let (rows, columns) = sides(tensor.shape());
                (tensor.name(), rows, columns, false)
            }
        };
        if rows >= 2 && columns >= 2 {
            found.insert(name.to_string(), Layer { name: name.to_string(), rows, columns, adapter });
        }
    }
    found.into_values().collect()
}

impl Layer {
    /// Its elements.
    pub fn elements(&self) -> usize {
        self.rows * self.columns
    }

    /// `linear.weight (64 × 128)`.
    pub fn shown(&self) -> String {
        let kind = if self.adapter { ", adapter" } else { "" };
        format!("{} ({} × {}{kind})", self.name.escape_debug(), self.rows, self.columns)
    }

    /// Reads the layer of `checkpoint`.
    ///
    /// # Errors
    /// If it is missing, has another shape, or holds numbers that are not finite.
    pub fn read(&self, checkpoint: &Checkpoint) -> Result<Values> {
        if self.adapter {
            let Some((down, up)) = factors(checkpoint, &self.name) else {
                let what = "is no adapter here (its two factors are missing), as the expert or zoo expects";
                return Err(Error::tensor(checkpoint.path(), &self.name, what));
            };
            let rank = sides(down.shape()).0;
            let fits =
                rank > 0 && sides(up.shape()) == (self.rows, rank) && sides(down.shape()) == (rank, self.columns);
            if !fits {
                let what = format!(
                    "has factors of shape {:?} and {:?}, expected ({}, r) and (r, {}) with r above 0",
                    up.shape(),
                    down.shape(),
                    self.rows,
                    self.columns
                );
                return Err(up.error(what));
            }
            return Ok(Values::LowRank { up: finite(&up)?, down: finite(&down)?, rank });
        }
        let view = checkpoint.tensor(&self.name)?;
        if sides(view.shape()) != (self.rows, self.columns) {
            let what = format!(
                "has shape {:?}, expected {} × {}: the model is of another architecture than the expert's",
                view.shape(),
                self.rows,
                self.columns
            );
            return Err(view.error(what));
        }
        Ok(Values::Dense(finite(&view)?))
    }

    /// Whether `checkpoint` has this layer in this shape.
    pub fn is_in(&self, checkpoint: &Checkpoint) -> bool {
        match self.adapter {
            true => factors(checkpoint, &self.name)
                .is_some_and(|(down, up)| sides(up.shape()).0 == self.rows && sides(down.shape()).1 == self.columns),
            false => checkpoint.get(&self.name).is_some_and(|view| sides(view.shape()) == (self.rows, self.columns)),
        }
    }
}

/// The tensor's numbers, all of them finite.
fn finite(view: &TensorView) -> Result<Vec<f32>> {
    if !is_number(view.dtype()) {
        return Err(view.error(format!("is of type {}, expected floating-point numbers", view.dtype())));
    }
    if let Some((at, value)) = view.nonfinite() {
        return Err(view.error(format!("holds {value} at element {at}; a probe reads finite numbers only")));
    }
    view.to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distance_is_the_root_of_all_squares() {
        let mut stream = crate::random::Stream::new(1, "test", 0);
        for side in [1, 5, 40] {
            let mut draw = || (0..side * side).map(|_| stream.between(-3.0, 3.0) as f32).collect::<Vec<f32>>();
            let (x, c) = (draw(), draw());
            let of = |c: &dyn Fn(usize) -> f32| -> f64 {
                (0..x.len()).map(|at| (f64::from(x[at]) - f64::from(c(at))).powi(2)).sum::<f64>().sqrt()
            };
            let (to_centre, to_zero) = (of(&|at| c[at]), of(&|_| 0.0));
            let values = Values::Dense(x.clone());
            assert!((values.distance((side, side), &c) - to_centre).abs() < 1e-12 * to_centre);
            assert!((values.distance((side, side), &[]) - to_zero).abs() < 1e-12 * to_zero);
        }
    }

    #[test]
    fn shapes_become_matrices() {
        let cases: [(&[usize], (usize, usize)); 7] = [
            (&[64, 128], (64, 128)),
            (&[10], (10, 1)),
            (&[], (1, 1)),
            (&[1, 197, 768], (197, 768)),
            (&[256, 1024, 1, 1], (256, 1024)),
            (&[16, 3, 3, 3], (16, 27)),
            (&[1, 1, 768], (1, 768)),
        ];
        for (shape, expected) in cases {
            assert_eq!(sides(shape), expected, "{shape:?}");
        }
    }
}
