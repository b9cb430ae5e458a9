//! How the matrices of a decoder are stored where that is not plainly: as codes, or in a pool that they share.

use std::sync::Arc;

use scruple_weights::Checkpoint;

use super::linear::{self, Linear, expect_shape};
use crate::{
    Result,
    export::{self, Quantization},
    sharing::stored::{Pool, Table},
};

/// A form of storage that a whole checkpoint has.
#[derive(Debug)]
pub enum Storage {
    /// Its linears are codes.
    Codes(Quantization),
    /// Its matrices share a pool.
    Pool(Arc<Pool>),
}

impl Storage {
    /// How `checkpoint` is stored; none where all of it is plain numbers.
    ///
    /// # Errors
    /// As [`Pool::of`] and [`export::detect`].
    pub fn detect(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        if let Some(pool) = Pool::of(checkpoint)? {
            return Ok(Some(Self::Pool(Arc::new(pool))));
        }
        Ok(export::detect(checkpoint)?.map(Self::Codes))
    }

    /// The codes' description, if they are codes.
    pub fn quantization(&self) -> Option<&Quantization> {
        match self {
            Self::Codes(quantization) => Some(quantization),
            Self::Pool(_) => None,
        }
    }

    /// The pool, if there is one and the tensor `name` is read from it.
    pub(super) fn pool_of(&self, name: &str) -> Option<&Arc<Pool>> {
        match self {
            Self::Pool(pool) if pool.contains(name) => Some(pool),
            _ => None,
        }
    }
}

/// The linear `name` of `checkpoint` of shape (out_features, in_features), without a bias, whatever it is stored as but
/// for codes, which no format makes of it.
///
/// # Errors
/// A missing tensor, or one of another shape.
pub fn load_plain(
    checkpoint: &Checkpoint,
    name: &str,
    (out, inner): (usize, usize),
    storage: Option<&Storage>,
) -> Result<Box<dyn Linear>> {
    match storage.filter(|storage| storage.pool_of(&format!("{name}.weight")).is_some()) {
        Some(storage) => linear::load_shaped_from(checkpoint, name, (out, inner, false), Some(storage)),
        None => linear::load_dense(checkpoint, name, (out, inner)),
    }
}

/// The rows of the tensor `name` of `checkpoint`, of `shape`.
///
/// # Errors
/// A missing tensor, or one of another shape.
pub fn load_table(checkpoint: &Checkpoint, name: &str, shape: [usize; 2], storage: Option<&Storage>) -> Result<Table> {
    if let Some(pool) = storage.and_then(|storage| storage.pool_of(name))
        && let Some(matrix) = pool.matrix(name, shape)?
    {
        return Ok(Table::Pooled(matrix));
    }
    let view = checkpoint.tensor(name)?;
    expect_shape(&view, &shape)?;
    Ok(Table::Stored(view))
}
