//! What a pool takes and saves, and how its slots are loaded.

use scruple_weights::{Dtype, TensorView};
use serde::Serialize;

use super::{
    file::{SharedFile, Target, Tied},
    modules::Sharing,
};

/// Slots that serve as many weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bucket {
    /// Weights of each.
    pub weights: u32,
    /// How many slots.
    pub slots: usize,
}

/// One tensor that shares.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SharedTensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Weights it holds.
    pub weights: usize,
    /// λ.
    pub scale: f32,
    /// Bytes it takes when expanded.
    pub dense_bytes: u64,
    /// Its part of the pool, by weights.
    pub pool_bytes: f64,
}

/// A pruned model of the same bytes, to be compared with.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Pruned {
    /// Weights it may keep where values and their places are counted.
    pub kept: u64,
    /// Weights it may keep where only values are counted, as the paper does.
    pub kept_values_only: u64,
}

/// Sizes, load and buckets of a pool.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// n.
    pub weights: usize,
    /// m.
    pub slots: usize,
    /// c = n / m.
    pub rate: f64,
    /// Share of the slots that some weight reads.
    pub load_factor: f64,
    /// Weights a slot serves, and how many slots do.
    pub buckets: Vec<Bucket>,
    /// Bytes of the pool.
    pub pool_bytes: u64,
    /// Tensors that do not share.
    pub untouched_tensors: usize,
    /// Numbers in them.
    pub untouched_parameters: u64,
    /// Their bytes.
    pub untouched_bytes: u64,
    /// Pool and untouched tensors: on disk but for the header, and in memory where weights are recovered on the fly.
    pub bytes: u64,
    /// What the expanded model takes, tied tensors once.
    pub dense_bytes: u64,
    /// A pruned model whose shared tensors take the bytes of the pool.
    pub pruned: Pruned,
    /// Every tensor that shares, in the order of the flat array.
    pub tensors: Vec<SharedTensor>,
    /// Tensors equal to another that shares; stored once.
    pub tied: Vec<Tied>,
}

impl Report {
    /// Of a pool that expands to `targets`, beside tensors that do not share.
    pub fn new<'a>(
        sharing: &Sharing,
        targets: &[Target],
        tied: &[Tied],
        psi_dtype: Dtype,
        untouched: impl Iterator<Item = &'a TensorView>,
    ) -> Self {
        let fold = &sharing.fold;
        let bytes = |dtype: Dtype, values: usize| dtype.bytes(values).unwrap_or(0) as u64;
        let counts = sharing.counts();
        let most = counts.iter().copied().max().unwrap_or(0);
        let buckets = (0..=most)
            .map(|weights| Bucket { weights, slots: counts.iter().filter(|&&count| count == weights).count() });
        let buckets: Vec<Bucket> = buckets.filter(|bucket| bucket.slots > 0).collect();
        let unused: usize = buckets.iter().filter(|bucket| bucket.weights == 0).map(|bucket| bucket.slots).sum();
        let pool_bytes = bytes(psi_dtype, fold.slots());
        let tensors: Vec<SharedTensor> = sharing
            .modules
            .iter()
            .zip(targets)
            .map(|(module, target)| SharedTensor {
                name: module.name.clone(),
                shape: module.shape.clone(),
                weights: module.values(),
                scale: module.scale,
                dense_bytes: bytes(target.dtype, module.values()),
                pool_bytes: pool_bytes as f64 * module.values() as f64 / fold.weights() as f64,
            })
            .collect();
        let shared_bytes: u64 = tensors.iter().map(|tensor| tensor.dense_bytes).sum();
        let (mut count, mut parameters, mut untouched_bytes) = (0, 0, 0);
        for view in untouched {
            count += 1;
            parameters += view.elements() as u64;
            untouched_bytes += view.bytes().len() as u64;
        }
        let width = (shared_bytes / fold.weights() as u64).max(1);
        Self {
            weights: fold.weights(),
            slots: fold.slots(),
            rate: fold.rate(),
            load_factor: 1.0 - unused as f64 / fold.slots() as f64,
            buckets,
            pool_bytes,
            untouched_tensors: count,
            untouched_parameters: parameters,
            untouched_bytes,
            bytes: pool_bytes + untouched_bytes,
            dense_bytes: shared_bytes + untouched_bytes,
            pruned: pruned(pool_bytes, fold.weights() as u64, width),
            tensors,
            tied: tied.to_vec(),
        }
    }

    /// Of a model on disk.
    pub fn of(file: &SharedFile) -> Self {
        Self::new(file.sharing(), file.targets(), file.tied(), file.psi_dtype(), file.untouched())
    }
}

/// The bytes of `weights` weights of which `kept` are not zero, `width` bytes each: values with a bit for every weight, or
/// values with the distance to the next of two bytes, whichever is less.
pub fn pruned_bytes(kept: u64, weights: u64, width: u64) -> u64 {
    (kept * width + weights.div_ceil(8)).min(kept * (width + 2))
}

/// What pruning may keep in `bytes`; see [`pruned_bytes`].
pub(super) fn pruned(bytes: u64, weights: u64, width: u64) -> Pruned {
    let with_mask = bytes.saturating_sub(weights.div_ceil(8)) / width;
    let with_distances = bytes / (width + 2);
    Pruned { kept: with_mask.max(with_distances).min(weights), kept_values_only: (bytes / width).min(weights) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sharing::{fold::ALIGN, modules::Size};

    #[test]
    fn what_pruning_may_keep_is_the_most_that_fits() {
        for (bytes, weights, width) in [(2_120, 33_920, 4), (67_840, 33_920, 4), (5, 100, 2), (1 << 20, 1 << 20, 2)] {
            let found = pruned(bytes, weights, width);
            assert!(pruned_bytes(found.kept, weights, width) <= bytes);
            assert!(found.kept == weights || pruned_bytes(found.kept + 1, weights, width) > bytes);
            assert!(found.kept_values_only >= found.kept);
        }
        assert_eq!(pruned(2_120, 33_920, 4).kept, 353); // six bytes each
    }

    #[test]
    fn sizes_and_buckets_add_up() {
        let tensors = vec![("a".into(), vec![100, 10], 0.5), ("b".into(), vec![50, 10], 2.0)];
        let sharing = Sharing::new(tensors, Size::Slots(400), ALIGN, 1).unwrap();
        let target = |dtype| Target { dtype, sha256: String::new() };
        let targets = [target(Dtype::F32), target(Dtype::Bf16)];
        let report = Report::new(&sharing, &targets, &[], Dtype::F16, std::iter::empty());
        assert_eq!((report.weights, report.slots, report.load_factor), (1_500, 400, 1.0));
        let expected = [Bucket { weights: 3, slots: 100 }, Bucket { weights: 4, slots: 300 }];
        assert_eq!(report.buckets, expected);
        assert_eq!((report.pool_bytes, report.dense_bytes), (800, 4_000 + 1_000));
        assert!((report.tensors.iter().map(|tensor| tensor.pool_bytes).sum::<f64>() - 800.0).abs() < 1e-9);
    }
}
