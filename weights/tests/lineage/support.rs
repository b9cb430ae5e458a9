//! Seeded tensors, changes planted in them, and models made of them.

use half::{bf16, f16};
use scruple_weights::{
    Checkpoint, CheckpointWriter, Dtype, TensorSpec, WriterOptions,
    lineage::{self, Change, Diff, Model, TensorDiff},
};

/// SplitMix64, as the normal numbers of Box and Muller.
pub struct Normal(u64);

impl Normal {
    pub fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in (0, 1).
    pub fn uniform(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    pub fn next(&mut self) -> f32 {
        let (u, v) = (self.uniform(), self.uniform());
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    }

    pub fn vector(&mut self, count: usize, spread: f32) -> Vec<f32> {
        (0..count).map(|_| spread * self.next()).collect()
    }
}

/// Weights as a linear has them.
pub fn weights(rows: usize, columns: usize, seed: u64) -> Vec<f32> {
    Normal::seeded(seed).vector(rows * columns, 0.05)
}

/// `w` + a matrix of rank `rank` whose norm is `size` times that of `w`.
pub fn with_lora(w: &[f32], rows: usize, columns: usize, rank: usize, size: f64, seed: u64) -> Vec<f32> {
    let mut normal = Normal::seeded(seed);
    let (up, down) = (normal.vector(rows * rank, 1.0), normal.vector(rank * columns, 1.0));
    let delta: Vec<f64> = (0..rows * columns)
        .map(|at| {
            let (row, column) = (at / columns, at % columns);
            (0..rank).map(|r| f64::from(up[row * rank + r]) * f64::from(down[r * columns + column])).sum()
        })
        .collect();
    let norm = |squares: f64| squares.sqrt();
    let of_w = norm(w.iter().map(|&x| f64::from(x).powi(2)).sum());
    let of_delta = norm(delta.iter().map(|x| x * x).sum());
    let scale = size * of_w / of_delta;
    w.iter().zip(delta).map(|(&w, delta)| (f64::from(w) + scale * delta) as f32).collect()
}

/// `w` rounded to `bits` bits with a scale each `group` weights of a row, kept in f16 as files do.
pub fn quantised(w: &[f32], group: usize, bits: u32, symmetric: bool) -> Vec<f32> {
    let half = (1i32 << (bits - 1)) as f32;
    let top = (1i32 << bits) as f32 - 1.0;
    let mut out = Vec::with_capacity(w.len());
    for values in w.chunks_exact(group) {
        let (low, high) = values.iter().fold((0.0f32, 0.0f32), |(low, high), &x| (low.min(x), high.max(x)));
        let raw = if symmetric { low.abs().max(high) / (half - 0.5) } else { (high - low) / top };
        let scale = f16::from_f32(raw).to_f32();
        let zero = if symmetric { half } else { (-low / scale).round() };
        out.extend(values.iter().map(|x| scale * ((x / scale + zero).round().clamp(0.0, top) - zero)));
    }
    out
}

pub fn rounded(values: &[f32], dtype: Dtype) -> Vec<f32> {
    match dtype {
        Dtype::F32 => values.to_vec(),
        Dtype::F16 => values.iter().map(|&x| f16::from_f32(x).to_f32()).collect(),
        Dtype::Bf16 => values.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
        other => panic!("no tensors of {other} here"),
    }
}

/// A tensor to be written.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: Dtype,
    pub values: Vec<f32>,
}

pub fn tensor(name: &str, shape: &[usize], dtype: Dtype, values: Vec<f32>) -> Tensor {
    assert_eq!(values.len(), shape.iter().product::<usize>(), "{name}");
    Tensor { name: name.into(), shape: shape.into(), dtype, values }
}

/// The tensors as a model on disk; it is read through a map, so the folder may go.
pub fn model(tensors: &[Tensor]) -> Model {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let specs = tensors.iter().map(|tensor| TensorSpec::new(&tensor.name, tensor.dtype, tensor.shape.clone()));
    let writer = CheckpointWriter::create(&path, specs.collect(), WriterOptions::default()).unwrap();
    for tensor in tensors {
        let bytes: Vec<u8> = match tensor.dtype {
            Dtype::F32 => tensor.values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Dtype::F16 => tensor.values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            Dtype::Bf16 => tensor.values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            other => panic!("no tensors of {other} here"),
        };
        writer.write(&tensor.name, &bytes).unwrap();
    }
    writer.finish().unwrap();
    Model::of(&Checkpoint::open(&path).unwrap())
}

pub fn compare(a: &[Tensor], b: &[Tensor]) -> Diff {
    lineage::diff(&model(a), &model(b), &|_, _| {}).unwrap()
}

/// What is found between two matrices of one name.
pub fn pair(shape: [usize; 2], a: (Dtype, &[f32]), b: (Dtype, &[f32])) -> TensorDiff {
    let of = |(dtype, values): (Dtype, &[f32])| [tensor("w.weight", &shape, dtype, values.to_vec())];
    let mut diff = compare(&of(a), &of(b));
    assert_eq!(diff.tensors.len(), 1);
    diff.tensors.remove(0)
}

pub fn change(shape: [usize; 2], a: (Dtype, &[f32]), b: (Dtype, &[f32])) -> Change {
    pair(shape, a, b).change
}

/// A decoder of `blocks` blocks; what `edit` does with (block, kind, values) makes it a relative.
pub fn decoder(blocks: usize, dtype: Dtype, seed: u64) -> Vec<Tensor> {
    const HIDDEN: usize = 48;
    let mut tensors = vec![tensor("model.embed_tokens.weight", &[80, HIDDEN], dtype, weights(80, HIDDEN, seed))];
    for block in 0..blocks {
        for (at, (kind, shape)) in [
            ("input_layernorm", &[HIDDEN][..]),
            ("self_attn.q_proj", &[HIDDEN, HIDDEN]),
            ("self_attn.k_proj", &[HIDDEN, HIDDEN]),
            ("self_attn.v_proj", &[HIDDEN, HIDDEN]),
            ("self_attn.o_proj", &[HIDDEN, HIDDEN]),
            ("post_attention_layernorm", &[HIDDEN]),
            ("mlp.gate_proj", &[64, HIDDEN]),
            ("mlp.up_proj", &[64, HIDDEN]),
            ("mlp.down_proj", &[HIDDEN, 64]),
        ]
        .into_iter()
        .enumerate()
        {
            let seed = seed + 1000 * (block as u64 + 1) + at as u64;
            let values = match shape {
                [n] => weights(1, *n, seed).iter().map(|x| 1.0 + x).collect(),
                _ => weights(shape[0], shape[1], seed),
            };
            tensors.push(tensor(&format!("model.layers.{block}.{kind}.weight"), shape, dtype, values));
        }
    }
    let norm = weights(1, HIDDEN, seed + 7).iter().map(|x| 1.0 + x).collect();
    tensors.push(tensor("model.norm.weight", &[HIDDEN], dtype, norm));
    tensors
}

/// The tensors of `of` with the blocks in `order`, numbered anew.
pub fn with_blocks(of: &[Tensor], order: &[usize]) -> Vec<Tensor> {
    let block = |tensor: &Tensor| -> Option<usize> { tensor.name.split('.').nth(2)?.parse().ok() };
    let mut out: Vec<Tensor> = of.iter().filter(|tensor| block(tensor).is_none()).cloned().collect();
    for (new, old) in order.iter().enumerate() {
        for tensor in of.iter().filter(|tensor| block(tensor) == Some(*old)) {
            let name = tensor.name.replace(&format!("layers.{old}."), &format!("layers.{new}."));
            out.push(Tensor { name, ..tensor.clone() });
        }
    }
    out
}
