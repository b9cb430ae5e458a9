//! NF4: four-bit codes into the quantiles of a normal distribution. Needs no data.
//!
//! In blocks of 64 consecutive weights, `q` is the number of the table nearest to `w / max |w|` (Dettmers et al. 2023,
//! "QLoRA", section 3, equations 1 to 4). With `double_quant` the block scales are stored in eight bits: 4.127 bits a
//! weight for 4.5.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Compressed, Described, GroupStats, LayerMethod, Needs, Weight};
use crate::Result;
use crate::weight::{
    Code,
    table4::{self, Table, Table4Code},
};

/// Codes into the quantiles of a normal distribution.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nf4 {
    /// Store block scales in eight bits.
    pub double_quant: bool,
}

impl Described for Nf4 {
    const NAME: &'static str = "nf4";
    const SUMMARY: &'static str =
        "four-bit codes into the quantiles of a normal distribution, blocks of 64; needs no data";
    const PAPER: &'static str = "Dettmers et al. 2023, QLoRA, https://arxiv.org/abs/2305.14314";
}

impl LayerMethod for Nf4 {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn code(&self, _: usize) -> Result<Code> {
        Ok(Code::Table4(self.code4()))
    }

    fn compress(&self, group: &mut [Weight<'_>], stats: &GroupStats) -> Result<Vec<Compressed>> {
        let one = |weight: &mut Weight<'_>| {
            let start = Instant::now();
            super::check(weight, stats)?;
            let shape = (weight.out_features, weight.in_features);
            let quantised = table4::quantize(weight.values, shape, self.code4())
                .map_err(|cause| super::in_linear(weight.name, cause))?;
            Ok(super::finish(weight, quantised.into(), Self::NAME, stats, start))
        };
        group.iter_mut().map(one).collect()
    }
}

impl Nf4 {
    fn code4(&self) -> Table4Code {
        Table4Code { table: Table::Nf4, block_size: table4::BLOCK, double_quant: self.double_quant }
    }
}
