//! The proof of what scales were folded into.

use std::collections::BTreeMap;

use scruple_weights::Checkpoint;

use super::{Fold, FoldedNorm, ScalingRecord, digest, stored};
use crate::{Result, export::float_bytes, grid::ScaleDtype, plan::Plan};

/// Proof that the tensors of `written` that scales were folded into are those of `dense` divided by the recorded scales:
/// the faults found, and how many tensors were checked.
///
/// # Errors
/// Tensors of `dense` that are missing or cannot be read.
pub fn verify(
    plan: &Plan,
    records: &[ScalingRecord],
    dense: &Checkpoint,
    written: &Checkpoint,
) -> Result<(Vec<String>, usize)> {
    let (mut faults, mut checked) = (Vec::new(), 0);
    let file = written.path().display();
    let by_name: BTreeMap<&str, &ScalingRecord> =
        records.iter().map(|record| (record.folded_into.as_str(), record)).collect();
    for planned in &plan.scalings {
        let name = &planned.folded_into;
        let Some(record) = by_name.get(name.as_str()) else {
            faults.push(format!("{file}: scruple.json says nothing of the scales in `{name}`"));
            continue;
        };
        let mut expect_bias = |expected: Vec<f32>, dtype: ScaleDtype| -> Result<()> {
            checked += 1;
            if written.tensor(&format!("{name}.bias"))?.bytes() != float_bytes(&expected, dtype) {
                faults.push(format!("{file}: tensor `{name}.bias` is not the dense model's divided by the scales"));
            }
            Ok(())
        };
        let scales = match &planned.group.fold {
            Fold::Norm(spec) => {
                let norm = FoldedNorm::load(dense, name, spec.kind)?;
                let (new, _) = stored(written, &format!("{name}.weight"))?;
                let scales: Vec<f32> = new.iter().enumerate().map(|(class, &new)| norm.between(class, new)).collect();
                if let Some((bias, dtype)) = norm.bias(&scales) {
                    expect_bias(bias, dtype)?;
                }
                checked += 1;
                Some(scales)
            }
            Fold::Rows { rows, .. } if !planned.tensors.is_empty() => {
                let scales = record.scales.clone().unwrap_or_default();
                let (mut bias, dtype) = stored(dense, &format!("{name}.bias"))?;
                for (&row, scale) in rows.iter().zip(&scales) {
                    bias[row as usize] = dtype.round(bias[row as usize] / scale);
                }
                expect_bias(bias, dtype)?;
                Some(scales)
            }
            // The linear's own SHA-256 speaks for its rows.
            Fold::Rows { .. } => None,
        };
        if scales.is_some_and(|scales| digest(&scales) != record.scales_sha256) {
            faults.push(format!(
                "{file}: `{name}` is not the dense model's divided by the scales whose SHA-256 scruple.json holds"
            ));
        }
    }
    Ok((faults, checked))
}
