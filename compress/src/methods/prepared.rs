//! A Hessian made ready for error feedback: dampened, ordered and factored, with what that took.
//!
//! Dampening adds `dampening · mean(diag H)` to the diagonal. If the factorisation still fails it is raised tenfold, at
//! most six times, and every step is in the report. Inputs that were zero throughout calibration ("dead") have their
//! weights set to zero, as the papers' code does, and are left out of the mean.

use rayon::prelude::*;

use super::{Escalation, Weight};
use crate::kernel::cholesky::Factor;
use crate::kernel::gemm::matmul_nt;
use crate::{Error, Result};

/// Times the dampening is raised before giving up.
const MAX_ESCALATIONS: usize = 6;

/// What a dampening is raised by.
const ESCALATION: f64 = 10.0;

/// What a dampening of zero is raised to first.
pub(super) const FIRST_DAMPENING: f64 = 1e-4;

/// What the linears of a group share: the factor of their Hessian, and how it was had.
#[derive(Debug)]
pub struct Prepared {
    pub(super) factor: Factor,
    /// `order[p]` is the column processed p-th.
    pub(super) order: Vec<u32>,
    /// What was added to the diagonal, by column.
    pub(super) ridge: Vec<f32>,
    /// Inputs that were zero throughout.
    pub(super) dead: Vec<u32>,
    /// The dampening used at last.
    pub dampening: f64,
    /// What failed before.
    pub escalations: Vec<Escalation>,
}

impl Prepared {
    /// Orders (by descending diagonal, or from left to right), dampens and factors `hessian` (n, n).
    ///
    /// Refuses a Hessian that is not finite, and one that stays indefinite after six tenfold raises of the dampening.
    pub fn new(hessian: &[f32], n: usize, dampening: f64, activation_order: bool) -> Result<Self> {
        if let Some(at) = super::first_not_finite(hessian) {
            return Err(Error::Numeric(format!("its Hessian is {} at ({}, {})", hessian[at], at / n, at % n)));
        }
        let diagonal: Vec<f32> = (0..n).map(|j| hessian[j * n + j]).collect();
        let dead: Vec<u32> = (0..n as u32).filter(|&j| diagonal[j as usize] == 0.0).collect();
        let live = n - dead.len();
        let mut escalations = Vec::new();
        let mean = match live {
            0 => {
                escalations.push(Escalation {
                    dampening,
                    reason: "every calibration input was zero, so all were taken to count the same, without feedback"
                        .to_owned(),
                });
                1.0
            }
            _ => diagonal.iter().map(|&d| f64::from(d)).sum::<f64>() / live as f64,
        };
        let mut order: Vec<u32> = (0..n as u32).collect();
        if activation_order {
            order.sort_by(|&a, &b| diagonal[b as usize].total_cmp(&diagonal[a as usize])); // stable
        }
        let mut dampening = dampening;
        for _ in 0..=MAX_ESCALATIONS {
            let ridge: Vec<f32> = diagonal
                .iter()
                .map(|&d| (mean * dampening) as f32 + if d == 0.0 { mean as f32 } else { 0.0 })
                .collect();
            match Factor::new(hessian, &order, &ridge) {
                Ok(factor) => {
                    let dead = if live == 0 { Vec::new() } else { dead };
                    return Ok(Self { factor, order, ridge, dead, dampening, escalations });
                }
                Err(lost) => escalations.push(Escalation {
                    dampening,
                    reason: format!("the Hessian was not positive definite at column {}", lost.column),
                }),
            }
            dampening = if dampening == 0.0 { FIRST_DAMPENING } else { dampening * ESCALATION };
        }
        Err(Error::Numeric(format!(
            "its Hessian is not positive definite, even with a dampening of {:e}",
            dampening / ESCALATION
        )))
    }

    /// Moves `weight` to `W + α W D H⁻¹`, the weight to be quantised for the dense model's outputs; `cross` is D.
    pub(super) fn aim_at_dense(&self, weight: &mut Weight<'_>, cross: &[f32], alpha: f32) {
        let n = self.order.len();
        let rows = weight.values.len() / n;
        let mut turned = vec![0.0; n * n];
        turned.par_chunks_exact_mut(n).enumerate().for_each(|(j, row)| {
            row.iter_mut().enumerate().for_each(|(i, value)| *value = cross[i * n + j]);
        });
        let mut product = vec![0.0; rows * n];
        matmul_nt(weight.values, &turned, &mut product, rows, n, n); // W D, (rows, n)
        drop(turned);
        // In the factor's positions: r is the column processed (n − 1 − r)-th.
        let column = |position: usize| self.order[n - 1 - position] as usize;
        let mut right = vec![0.0; rows * n];
        right.par_chunks_exact_mut(n).zip(product.par_chunks_exact(n)).for_each(|(right, product)| {
            right.iter_mut().enumerate().for_each(|(position, value)| *value = product[column(position)]);
        });
        scruple_weights::linalg::solve_by_cholesky(&self.factor.lower(n), n, &mut right);
        let keep_zeros = weight.keep_zeros;
        weight.values.par_chunks_exact_mut(n).zip(right.par_chunks_exact(n)).for_each(|(row, step)| {
            for (position, step) in step.iter().enumerate() {
                let value = &mut row[column(position)];
                if !(keep_zeros && *value == 0.0) {
                    *value += alpha * step;
                }
            }
        });
    }

    /// Sets the weights of dead inputs to zero.
    pub(super) fn clear_dead(&self, weight: &mut [f32]) {
        if !self.dead.is_empty() {
            for row in weight.chunks_exact_mut(self.order.len()) {
                self.dead.iter().for_each(|&column| row[column as usize] = 0.0);
            }
        }
    }
}

/// Refuses a dampening that is negative or not finite.
pub(super) fn check_dampening(dampening: f64) -> Result<()> {
    match dampening >= 0.0 && dampening.is_finite() {
        true => Ok(()),
        false => Err(Error::Recipe(format!("the dampening is {dampening}, expected a number of at least 0"))),
    }
}
