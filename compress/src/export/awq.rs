//! AWQ's files in the "GEMM" version, as AutoAWQ writes them (quantisation of Lin et al. 2023); 4 bit only.
//!
//! | tensor | type | shape |
//! |---|---|---|
//! | `P.qweight` | i32 | (in, out/8): eight outputs a word |
//! | `P.qzeros` | i32 | (groups, out/8): the same of the zero points |
//! | `P.scales` | f16 | (groups, out) |
//!
//! Nibble `i` of word `c` holds output `8c + ORDER[i]`. The zero point is stored as it is. The scales of the inputs are not
//! stored: they are folded into the layer before. The file does not say whether zero points were chosen: a linear whose
//! zero points are all in the middle is read as symmetric.

use scruple_weights::{Dtype, TensorSpec};
use serde_json::{Value, json};

use super::{
    Error, GptqVersion, Layout, QuantisedModel, Result, Rules, Setting, Source, error, expect_shape, field, flag,
    float_bytes, group_size, on_grid, whole_number, word_bytes, words,
};
use crate::{
    grid::{Quantised, ScaleDtype},
    weight::CompressedWeight,
};

pub(super) struct Awq;

/// The one width of the format.
const BITS: u32 = 4;

/// Codes in a word.
const PACK: usize = 8;

/// The output, of a word's eight, that each nibble holds, lowest first.
const ORDER: [usize; PACK] = [0, 2, 4, 6, 1, 3, 5, 7];

/// Zero point of a symmetric grid.
const MIDDLE: u8 = 1 << (BITS - 1);

/// Group sizes that readers know; beside them, one scale a row.
const GROUP_SIZES: [usize; 4] = [16, 32, 64, 128];

impl Rules for Awq {
    fn name(&self) -> &'static str {
        "awq"
    }

    fn scale_dtype(&self, _: ScaleDtype) -> ScaleDtype {
        ScaleDtype::F16
    }

    fn check(&self, layout: &Layout) -> Result<(), String> {
        let (grid, _) = layout.grid()?;
        if grid.bits != BITS {
            return Err(format!("the format holds 4 bits, not {}; gptq holds those", grid.bits));
        }
        if grid.has_g_idx {
            return Err(
                "its groups are not contiguous and the format stores no order of columns; use static groups".into()
            );
        }
        if !layout.out_features.is_multiple_of(PACK) {
            return Err(format!(
                "it has {} outputs, and the format needs a multiple of 8; leave this linear dense, or write dense",
                layout.out_features
            ));
        }
        if grid.group_size != layout.in_features && !GROUP_SIZES.contains(&grid.group_size) {
            return Err(format!(
                "its groups are of {}, and readers know 16, 32, 64, 128 and 0 (one group a row)",
                grid.group_size
            ));
        }
        Ok(())
    }

    fn specs(&self, linear: &str, layout: &Layout) -> Vec<TensorSpec> {
        let Ok((_, groups)) = layout.grid() else { return Vec::new() };
        let spec = |part, dtype, shape| TensorSpec { name: format!("{linear}.{part}"), dtype, shape };
        vec![
            spec("qweight", Dtype::I32, vec![layout.in_features, layout.out_features / PACK]),
            spec("qzeros", Dtype::I32, vec![groups, layout.out_features / PACK]),
            spec("scales", Dtype::F16, vec![groups, layout.out_features]),
        ]
    }

    fn encode(&self, linear: &str, weight: &CompressedWeight, _: ScaleDtype) -> Result<Vec<(String, Vec<u8>)>> {
        let q = on_grid(linear, weight)?;
        let groups = q.groups();
        let mut scales = vec![0.0; q.scales.len()];
        for (out, row) in q.scales.chunks_exact(groups).enumerate() {
            row.iter().enumerate().for_each(|(group, &scale)| scales[group * q.out_features + out] = scale);
        }
        let name = |part| format!("{linear}.{part}");
        Ok(vec![
            (name("qweight"), word_bytes(&pack(&q.codes, q.out_features, q.in_features))),
            (name("qzeros"), word_bytes(&pack(&q.zeros, q.out_features, groups))),
            (name("scales"), float_bytes(&scales, ScaleDtype::F16)),
        ])
    }

    fn config(&self, model: &QuantisedModel<'_>) -> Result<Option<Value>> {
        let (main, others) = model.majority()?;
        let (bits, size, _) = main.setting();
        // Symmetric linears stand beside asymmetric ones: both have their zero points in the file.
        if let Some((name, layout)) = others.iter().find(|(_, layout)| layout.config_group_size() != size) {
            return Err(Error::Recipe(format!(
                "an AWQ file has one group size, and `{name}` has {} where most have {size} (-1 is one group a row); give \
                 all the same",
                layout.config_group_size()
            )));
        }
        // Readers that are given a list leave out nothing beside it, so the output projection is on it too.
        let mut dense = model.dense_names();
        dense.dedup();
        Ok(Some(json!({
            "quant_method": "awq",
            "bits": bits,
            "group_size": size,
            "zero_point": true,
            "version": "gemm",
            "modules_to_not_convert": if dense.is_empty() { Value::Null } else { dense.into() },
        })))
    }

    fn settings(&self, config: &Value) -> Result<(Vec<Setting>, Option<GptqVersion>), String> {
        let version = field(config, "version").or_else(|| field(config, "format")).map(|v| v.as_str().unwrap_or("?"));
        if let Some(version) = version.filter(|version| !version.eq_ignore_ascii_case("gemm")) {
            return Err(format!("has version \"{version}\", expected \"gemm\""));
        }
        let bits = whole_number(config, "bits")?.ok_or("has no `bits`, expected 4")?;
        if bits != i64::from(BITS) {
            return Err(format!("has `bits` {bits}, expected 4: AWQ files hold no other width"));
        }
        if !flag(config, "zero_point", true)? {
            return Err("has `zero_point` false, expected true: AWQ files hold zero points".into());
        }
        let size = group_size(whole_number(config, "group_size")?.ok_or("has no `group_size`")?)?;
        Ok((vec![Setting { bits: BITS, group_size: size, symmetric: false }], None))
    }

    fn decode(&self, source: &Source<'_>) -> Result<CompressedWeight> {
        let (qweight, in_features, packed) = source.matrix("qweight", Dtype::I32)?;
        let (qzeros, groups, _) = source.matrix("qzeros", Dtype::I32)?;
        let out_features = packed * PACK;
        expect_shape(&qzeros, &[groups, packed])?;
        if !in_features.is_multiple_of(groups) {
            let what = format!("has {groups} groups for {in_features} inputs, expected a divisor of them");
            return Err(error(&qzeros, what));
        }
        let group_size = in_features / groups;
        source.setting(BITS, group_size, in_features, &qweight)?;
        let (stored, scale_dtype) = source.scales("scales", [groups, out_features])?;
        let mut scales = vec![0.0; stored.len()];
        for (group, row) in stored.chunks_exact(out_features).enumerate() {
            row.iter().enumerate().for_each(|(out, &scale)| scales[out * groups + group] = scale);
        }
        let zeros = unpack(&words(&qzeros), out_features, groups);
        Ok(CompressedWeight::Grid(Quantised {
            out_features,
            in_features,
            bits: BITS,
            group_size,
            symmetric: zeros.iter().all(|&zero| zero == MIDDLE),
            scale_dtype,
            codes: unpack(&words(&qweight), out_features, in_features),
            scales,
            zeros,
            g_idx: None,
        }))
    }
}

/// Codes (out, columns) to words (columns, out/8).
fn pack(codes: &[u8], out: usize, columns: usize) -> Vec<u32> {
    let words = out / PACK;
    let mut packed = vec![0; columns * words];
    for (word, rows) in codes.chunks_exact(PACK * columns).enumerate() {
        for column in 0..columns {
            let nibble = |i: usize| u32::from(rows[ORDER[i] * columns + column]) << (4 * i);
            packed[column * words + word] = (0..PACK).map(nibble).sum();
        }
    }
    packed
}

/// Words (columns, out/8) to codes (out, columns).
fn unpack(packed: &[u32], out: usize, columns: usize) -> Vec<u8> {
    let words = out / PACK;
    let mut codes = vec![0; out * columns];
    for (word, rows) in codes.chunks_exact_mut(PACK * columns).enumerate() {
        for column in 0..columns {
            let held = packed[column * words + word];
            (0..PACK).for_each(|i| rows[ORDER[i] * columns + column] = ((held >> (4 * i)) & 0xF) as u8);
        }
    }
    codes
}
