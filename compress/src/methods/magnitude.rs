//! Magnitude pruning: the weights of a linear that are smallest in absolute value become zero. Needs no data.
//!
//! Of one linear's whole matrix, or of each of its rows, `⌊sparsity · count⌋` go; or of every group of a row all but some.
//! Ties go in index order, so the counts are exact.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Compressed, Described, GroupStats, Kind, LayerMethod, LinearReport, Needs, Weight};
use crate::mask::{self, Amount, NOfM};
use crate::weight::Code;
use crate::{Error, Result};

/// Which weights are compared with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// All of a linear (what the papers compare with).
    Matrix,
    /// Those of one row.
    Row,
}

/// Magnitude pruning.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Magnitude {
    /// The fraction set to zero; 0.5 if neither this nor a pattern is given.
    pub sparsity: Option<f64>,
    /// How many of every few neighbours in a row stay, instead of a sparsity.
    pub pattern: Option<NOfM>,
    /// Which weights are compared with each other, with a sparsity; all of a linear if not given.
    pub scope: Option<Scope>,
}

impl Magnitude {
    fn amount(&self) -> Result<Amount> {
        if let (Some(pattern), Some(_)) = (self.pattern, self.scope) {
            return Err(Error::Recipe(format!(
                "both the pattern {pattern} and a scope are given, and a pattern compares within its groups; leave one out"
            )));
        }
        Amount::new(self.sparsity, self.pattern)
    }
}

impl Described for Magnitude {
    const NAME: &'static str = "magnitude";
    const SUMMARY: &'static str = "sets the smallest weights of a linear to zero; needs no data";
    const PAPER: &'static str =
        "Han et al. 2015, Learning both weights and connections, https://arxiv.org/abs/1506.02626";

    fn validate(&self) -> Result<()> {
        self.amount().map(|_| ())
    }

    fn filled(&self) -> Self {
        let (sparsity, pattern) = self.amount().unwrap_or(Amount::DEFAULT).parameters();
        let scope = sparsity.map(|_| self.scope.unwrap_or(Scope::Matrix));
        Self { sparsity, pattern, scope }
    }
}

impl LayerMethod for Magnitude {
    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn kind(&self) -> Kind {
        Kind::Prune
    }

    fn code(&self, in_features: usize) -> Result<Code> {
        self.amount()?.check(in_features)?;
        Ok(Code::Dense)
    }

    fn compress(&self, group: &mut [Weight<'_>], stats: &GroupStats) -> Result<Vec<Compressed>> {
        let amount = self.amount()?;
        let each = |weight: &mut Weight<'_>| {
            let start = Instant::now();
            super::check(weight, stats)?;
            let n = weight.in_features;
            amount.check(n).map_err(|cause| super::in_linear(weight.name, cause))?;
            match (amount, self.scope) {
                (Amount::Pattern(pattern), _) => mask::clear_groups(weight.values, n, None, pattern),
                (Amount::Share(share), Some(Scope::Row)) => {
                    mask::clear_smallest_of_rows(weight.values, n, None, mask::budget(share, n));
                }
                (Amount::Share(share), _) => {
                    let k = mask::budget(share, weight.values.len());
                    mask::clear_smallest(weight.values, k);
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
