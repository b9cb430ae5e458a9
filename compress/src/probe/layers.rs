//! The layers a probe looks at, on a device: matrices, or the two factors of adapters, whose product is never formed.
//!
//! Products are of rows, `u X` and `u Xᵀ`, with `u` (n, ·) the same for all models or one of each. A `u` for all stands on
//! the left: as a batch of stride 0 it is then a plain strided product on every backend.

use candle_core::{Device, Result, Tensor};
use scruple_weights::probex::{operand::Operand, train::Models};

/// Models copied to the device at a time.
const TOGETHER: usize = 64;

/// Layers X (rows, columns) of models.
#[derive(Debug, Clone)]
pub(super) struct Layers {
    form: Form,
    columns: usize,
    counted: usize,
}

#[derive(Debug, Clone)]
enum Form {
    /// (models, rows, columns).
    Dense(Tensor),
    /// X = B A: B (models, rows, rank) and A (models, rank, columns).
    LowRank(Tensor, Tensor),
}

impl Layers {
    /// The layers at `places` (model and form) of `models`, in this order. Tensors of more than `counted` numbers are not
    /// picked from by candle's kernels.
    pub fn upload(
        models: &dyn Models,
        places: &[(usize, usize)],
        (rows, columns): (usize, usize),
        counted: usize,
        device: &Device,
    ) -> Result<Self> {
        let operand = |&(at, copy): &(usize, usize)| models.layer(at, copy);
        // Adapters of several trees may have several ranks: factors are filled up with zeros, which changes no product.
        let ranks = places.iter().map(|place| match operand(place) {
            Operand::LowRank { rank, .. } => Some(rank),
            Operand::Dense(_) => None,
        });
        let rank = ranks.collect::<Option<Vec<usize>>>().and_then(|ranks| ranks.into_iter().max());
        let Some(rank) = rank else {
            let x = copied(places, (rows, columns), device, |place, out| match operand(place) {
                Operand::Dense(x) => out.extend_from_slice(x),
                low_rank => out.extend(low_rank.dense((rows, columns))),
            })?;
            return Ok(Self { form: Form::Dense(x), columns, counted });
        };
        let up = copied(places, (rows, rank), device, |place, out| {
            if let Operand::LowRank { up, rank: own, .. } = operand(place) {
                for row in up.chunks_exact(own) {
                    out.extend_from_slice(row);
                    out.extend(std::iter::repeat_n(0.0, rank - own));
                }
            }
        })?;
        let down = copied(places, (rank, columns), device, |place, out| {
            if let Operand::LowRank { down, rank: own, .. } = operand(place) {
                out.extend_from_slice(down);
                out.extend(std::iter::repeat_n(0.0, (rank - own) * columns));
            }
        })?;
        Ok(Self { form: Form::LowRank(up, down), columns, counted })
    }

    /// The layers in `rows`, in this order.
    pub fn pick(&self, rows: &[usize]) -> Result<Self> {
        self.map(|x| pick(x, rows, self.counted))
    }

    /// `count` layers from `first` on, where they lie.
    pub fn slice(&self, first: usize, count: usize) -> Result<Self> {
        self.map(|x| x.narrow(0, first, count))
    }

    fn map(&self, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let form = match &self.form {
            Form::Dense(x) => Form::Dense(f(x)?),
            Form::LowRank(up, down) => Form::LowRank(f(up)?, f(down)?),
        };
        Ok(Self { form, ..*self })
    }

    /// X of each model as one row, (models, rows · columns); the product of adapters is formed.
    pub fn flat(&self) -> Result<Tensor> {
        match &self.form {
            Form::Dense(x) => x.flatten_from(1),
            Form::LowRank(up, down) => up.matmul(down)?.flatten_from(1),
        }
    }

    /// `u X` (models, n, columns) for `u` (n, rows) or (models, n, rows).
    pub fn times(&self, u: &Tensor) -> Result<Tensor> {
        match &self.form {
            Form::Dense(x) => times(u, x),
            Form::LowRank(up, down) => times(&times(u, up)?, down),
        }
    }

    /// `u Xᵀ` (models, n, rows) for `u` (n, columns) or (models, n, columns).
    pub fn times_turned(&self, u: &Tensor) -> Result<Tensor> {
        match &self.form {
            Form::Dense(x) => times(u, &x.transpose(1, 2)?),
            Form::LowRank(up, down) => times(&times(u, &down.transpose(1, 2)?)?, &up.transpose(1, 2)?),
        }
    }

    /// Σ over models of `u X` (n, columns) for `u` (models, n, rows).
    pub fn times_sum(&self, u: &Tensor) -> Result<Tensor> {
        let (u, right) = match &self.form {
            Form::Dense(x) => (u.clone(), x),
            Form::LowRank(up, down) => (times(u, up)?, down),
        };
        // One product of (n, models · inner) and (models · inner, columns).
        let (models, n, inner) = u.dims3()?;
        let left = u.transpose(0, 1)?.contiguous()?.reshape((n, models * inner))?;
        left.matmul(&right.reshape((models * inner, self.columns))?)
    }

    /// Σ over models of `u Xᵀ` (n, rows) for `u` (models, n, columns).
    pub fn times_turned_sum(&self, u: &Tensor) -> Result<Tensor> {
        self.times_turned(u)?.sum(0)
    }
}

/// `u x` (models, n, columns): `x` (models, inner, columns), `u` (n, inner) or (models, n, inner).
fn times(u: &Tensor, x: &Tensor) -> Result<Tensor> {
    match u.rank() {
        2 => u.broadcast_as((x.dim(0)?, u.dim(0)?, u.dim(1)?))?.matmul(x),
        _ => u.matmul(x),
    }
}

/// Matrices (places, rows, columns) that `write` appends one by one, copied to the device a few at a time.
fn copied<T>(
    places: &[T],
    (rows, columns): (usize, usize),
    device: &Device,
    write: impl Fn(&T, &mut Vec<f32>),
) -> Result<Tensor> {
    let all = Tensor::zeros((places.len(), rows, columns), candle_core::DType::F32, device)?;
    for (chunk, places) in places.chunks(TOGETHER).enumerate() {
        let mut values = Vec::with_capacity(places.len() * rows * columns);
        places.iter().for_each(|place| write(place, &mut values));
        let part = Tensor::from_vec(values, (places.len(), rows, columns), device)?;
        all.slice_set(&part, 0, chunk * TOGETHER)?;
    }
    Ok(all)
}

/// The matrices `rows` of `x` (models, ·, ·).
fn pick(x: &Tensor, rows: &[usize], counted: usize) -> Result<Tensor> {
    if x.elem_count() <= counted {
        let rows = Tensor::from_iter(rows.iter().map(|&row| row as u32), x.device())?;
        return x.index_select(&rows, 0);
    }
    // The kernel that picks counts elements in 32 bits and would read elsewhere: slices are laid side by side instead.
    let slices = rows.iter().map(|&row| x.narrow(0, row, 1)).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&slices, 0)
}
