//! Tickets at initialisation made by removing whole layers (Jordao et al. 2023, arXiv 2301.10835): which blocks of a residual
//! net can go before it is trained, and what the nets that are left are worth.
//!
//! In the order of the work: [`blocks`] of a net are told apart, an [`allocation`] says how many of them each stage keeps, a
//! [`ticket`] is the shallower net with the weights that stay; [`criteria`] choose one by the [`scene`] they are shown,
//! and [`identities`] say which of their scores can mean anything under batch normalisation; [`filters`] make the rival that
//! is thinner and not shallower. Trained nets are tried by [`corruptions`] and [`attacks`]; [`energy`] says what it took.
//!
//! A "layer" of the paper is one residual block: its two convolutions (or linears) and their norms. In place of a removed
//! block the identity remains, so that a ticket is an ordinary, shallower net.

pub mod blocks;

pub mod allocation;

pub mod ticket;

pub mod scene;

pub mod criteria;

pub mod identities;

pub mod filters;

pub mod corruptions;

pub mod attacks;

pub mod energy;

pub use allocation::Allocation;
pub use blocks::{Block, Stages};
pub use ticket::Ticket;

#[cfg(test)]
mod tests;
