//! What can go wrong between a checkpoint and its compressed copy.

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any failure of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The weights on disk.
    #[error(transparent)]
    Weights(#[from] scruple_weights::Error),
    /// Tensor arithmetic (candle).
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// A model that cannot be run: unknown family, missing field, wrong shape. One sentence with the file.
    #[error("{0}")]
    Model(String),
    /// A recipe or option that cannot be carried out on this model. One sentence with the remedy.
    #[error("{0}")]
    Recipe(String),
    /// Numbers that cannot be worked with (NaN or infinite weights, a Hessian that stays indefinite). Names the linear.
    #[error("{0}")]
    Numeric(String),
    /// A device that cannot be had. One sentence with the remedy.
    #[error("{0}")]
    Device(String),
    /// Text, tokens or templates. One sentence with the file.
    #[error("{0}")]
    Text(String),
}
