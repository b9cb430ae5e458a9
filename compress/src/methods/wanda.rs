//! Wanda: in each output row the weights whose products with their input's strength are smallest become zero; the others
//! stay as they are.
//!
//! The score of a weight is `|W_ij| · ‖x_j‖` (Sun et al. 2023, eq. 1); `‖x_j‖²` is averaged over sequences, which changes
//! no comparison within a row. Of each row `⌊sparsity · n⌋` go; or of every group of a row all but some. Ties go in index
//! order, so the counts are exact; inputs that never fired score zero and go first.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Compressed, Described, GroupStats, Kind, LayerMethod, LinearReport, Needs, Weight};
use crate::mask::{self, Amount, NOfM};
use crate::weight::Code;
use crate::{Error, Result};

/// Wanda.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wanda {
    /// The fraction of each row set to zero; 0.5 if neither this nor a pattern is given.
    pub sparsity: Option<f64>,
    /// How many of every few neighbours in a row stay, instead of a sparsity.
    pub pattern: Option<NOfM>,
}

impl Wanda {
    fn amount(&self) -> Result<Amount> {
        Amount::new(self.sparsity, self.pattern)
    }
}

impl Described for Wanda {
    const NAME: &'static str = "wanda";
    const SUMMARY: &'static str =
        "sets to zero the weights of each row that matter least given how strong their inputs are";
    const PAPER: &'static str = "Sun et al. 2023, Wanda, https://arxiv.org/abs/2306.11695";

    fn validate(&self) -> Result<()> {
        self.amount().map(|_| ())
    }

    fn filled(&self) -> Self {
        let (sparsity, pattern) = self.amount().unwrap_or(Amount::DEFAULT).parameters();
        Self { sparsity, pattern }
    }
}

impl LayerMethod for Wanda {
    fn needs(&self) -> Needs {
        Needs { energies: true, ..Needs::default() }
    }

    fn kind(&self) -> Kind {
        Kind::Prune
    }

    fn code(&self, in_features: usize) -> Result<Code> {
        self.amount()?.check(in_features)?;
        Ok(Code::Dense)
    }

    fn compress(&self, group: &mut [Weight<'_>], stats: &GroupStats) -> Result<Vec<Compressed>> {
        let Some(first) = group.first() else { return Ok(Vec::new()) };
        let amount = self.amount()?;
        let energies =
            stats.energies.as_ref().filter(|energies| energies.len() == stats.in_features).ok_or_else(|| {
                Error::Model(format!(
                    "linear `{}`: Wanda needs the energies of {} inputs, and they were not observed",
                    first.name, stats.in_features
                ))
            })?;
        if let Some(at) = energies.iter().position(|energy| !(energy.is_finite() && *energy >= 0.0)) {
            let energy = energies[at];
            return Err(Error::Numeric(format!("linear `{}`: the energy of input {at} is {energy}", first.name)));
        }
        let norms: Vec<f32> = energies.iter().map(|energy| energy.sqrt()).collect();
        let each = |weight: &mut Weight<'_>| {
            let start = Instant::now();
            super::check(weight, stats)?;
            let n = weight.in_features;
            amount.check(n).map_err(|cause| super::in_linear(weight.name, cause))?;
            match amount {
                Amount::Pattern(pattern) => mask::clear_groups(weight.values, n, Some(&norms), pattern),
                Amount::Share(share) => {
                    mask::clear_smallest_of_rows(weight.values, n, Some(&norms), mask::budget(share, n));
                }
            }
            let mut report = LinearReport::new(weight.name, Self::NAME);
            let weight = super::plain(weight);
            report.seconds = start.elapsed().as_secs_f64();
            Ok(Compressed { weight, report })
        };
        group.iter_mut().map(each).collect()
    }
}
