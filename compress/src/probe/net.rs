//! The probe over tensors, forward and back: the formulas of `scruple_weights::probex::net` and `head`, for a batch at once.
//!
//! Responses are kept turned, Sᵀ (models, r_U, rows of S), so that the projection of all models is one product.

use candle_core::{D, DType, Result, Tensor};
use scruple_weights::probex::{
    head::{Choice, SHORTEST},
    net::SMALLEST_DEVIATION,
    spec::{Activation, Body, Head, Section, Spec, View},
};

use super::layers::Layers;

/// A probe's shape: what its parameters, one array, are.
#[derive(Debug)]
pub(super) struct Probe {
    spec: Spec,
    sections: Vec<Section>,
    factor: f32,
}

/// What a forward pass leaves for the way back.
#[derive(Debug)]
pub(super) struct Pass {
    views: Vec<Seen>,
    /// H (models, views · r_U · r_V).
    hidden: Option<Tensor>,
    /// e (models, r_T), or the layers as rows where the body is dense.
    representation: Tensor,
}

/// One view of a batch.
#[derive(Debug)]
struct Seen {
    /// Ŝᵀ (models, r_U, rows of S).
    turned: Tensor,
    /// σ (models, 1, 1), where responses are standardised.
    deviation: Option<Tensor>,
}

impl Probe {
    pub fn new(spec: Spec, factor: f32) -> Self {
        let sections = spec.sections();
        Self { spec, sections, factor }
    }

    /// A section of the parameters, in its shape.
    fn section(&self, values: &Tensor, name: &str) -> Result<Tensor> {
        let found = self.sections.iter().find(|section| section.name == name);
        let section = found.ok_or_else(|| candle_core::Error::Msg(format!("the probe has no section {name}")))?;
        values.narrow(0, section.range.start, section.range.len())?.reshape(section.shape.as_slice())
    }

    /// Logits (models, classes).
    pub fn logits(&self, values: &Tensor, layers: &Layers, texts: Option<&Tensor>) -> Result<(Tensor, Pass)> {
        let pass = self.represent(values, layers)?;
        let e = &pass.representation;
        let y = match self.spec.head {
            Head::Labels { .. } => self.affine(values, "head", e)?,
            Head::Text { .. } => {
                let q = Unit::of(&self.texts(values, texts)?)?;
                Unit::of(e)?.values.matmul(&q.values.t()?)?.broadcast_mul(&self.text_factor(values)?)?
            }
        };
        Ok((y, pass))
    }

    /// `x Wᵀ + b` by the sections `NAME.weight` and `NAME.bias`.
    fn affine(&self, values: &Tensor, name: &str, x: &Tensor) -> Result<Tensor> {
        let weight = self.section(values, &format!("{name}.weight"))?;
        x.matmul(&weight.t()?)?.broadcast_add(&self.section(values, &format!("{name}.bias"))?)
    }

    /// The texts' projections (classes, r_T).
    fn texts(&self, values: &Tensor, texts: Option<&Tensor>) -> Result<Tensor> {
        let texts =
            texts.ok_or_else(|| candle_core::Error::Msg("the probe compares with texts and has none".into()))?;
        self.affine(values, "text", texts)
    }

    /// exp(τ), (1).
    fn text_factor(&self, values: &Tensor) -> Result<Tensor> {
        match self.spec.head {
            Head::Text { temperature: true, .. } => self.section(values, "text.log_factor")?.exp(),
            _ => Tensor::ones(1, DType::F32, values.device()),
        }
    }

    fn represent(&self, values: &Tensor, layers: &Layers) -> Result<Pass> {
        let Body::Probe { views, probes, projection, standardise, activation, .. } = &self.spec.body else {
            let representation = (layers.flat()? * f64::from(self.factor))?;
            return Ok(Pass { views: Vec::new(), hidden: None, representation });
        };
        let (mut seen, mut hidden) = (Vec::new(), Vec::new());
        for &view in views {
            let mut turned = self.view(values, layers, view)?;
            let deviation = match standardise {
                true => Some(standardised(&mut turned)?),
                false => None,
            };
            let v = self.section(values, &format!("{}.projection", view.name()))?;
            let (models, _, rows) = turned.dims3()?;
            let h = turned.reshape((models * probes, rows))?.matmul(&v.t()?)?;
            let h = h.reshape((models, probes * projection))?;
            hidden.push(if *activation == Activation::Relu { h.relu()? } else { h });
            seen.push(Seen { turned, deviation });
        }
        let hidden = Tensor::cat(&hidden, 1)?;
        let representation = self.affine(values, "encoder", &hidden)?;
        Ok(Pass { views: seen, hidden: Some(hidden), representation })
    }

    /// The probes of a view as rows, (r_U, ·), times the factor that X brings.
    fn probes(&self, values: &Tensor, view: View) -> Result<Tensor> {
        let u = self.section(values, &format!("{}.probes", view.name()))?;
        (u * f64::from(self.factor.powi(view.degree())))?.t()
    }

    /// Sᵀ of one view, (models, r_U, rows of S).
    fn view(&self, values: &Tensor, layers: &Layers, view: View) -> Result<Tensor> {
        let u = self.probes(values, view)?;
        match view {
            View::Xu => layers.times_turned(&u),
            View::Xtu => layers.times(&u),
            View::Xxtu => layers.times_turned(&layers.times(&u)?),
            View::Xtxu => layers.times(&layers.times_turned(&u)?),
        }
    }

    /// From ∂Sᵀ to ∂Uᵀ (r_U, ·); both Gram views are symmetric.
    fn view_back(&self, layers: &Layers, view: View, ds: &Tensor) -> Result<Tensor> {
        let du = match view {
            View::Xu => layers.times_sum(ds),
            View::Xtu => layers.times_turned_sum(ds),
            View::Xxtu => layers.times_turned_sum(&layers.times(ds)?),
            View::Xtxu => layers.times_sum(&layers.times_turned(ds)?),
        }?;
        du * f64::from(self.factor.powi(view.degree()))
    }

    /// The gradient of all parameters, one array, from ∂y (models, classes).
    pub fn gradient(
        &self,
        values: &Tensor,
        layers: &Layers,
        texts: Option<&Tensor>,
        pass: &Pass,
        dy: &Tensor,
    ) -> Result<Tensor> {
        let mut parts: Vec<(String, Tensor)> = Vec::new();
        let e = &pass.representation;
        let de = match self.spec.head {
            Head::Labels { .. } => {
                affine_back("head", e, dy, &mut parts)?;
                // A dense body has no parameters before its head.
                match pass.hidden {
                    Some(_) => dy.matmul(&self.section(values, "head.weight")?)?,
                    None => return self.in_order(parts),
                }
            }
            Head::Text { temperature, .. } => {
                let (e, q) = (Unit::of(e)?, Unit::of(&self.texts(values, texts)?)?);
                let factor = self.text_factor(values)?;
                let scaled = dy.broadcast_mul(&factor)?;
                if temperature {
                    let y = e.values.matmul(&q.values.t()?)?;
                    parts.push(("text.log_factor".into(), (&y * &scaled)?.sum_all()?.reshape(1)?));
                }
                let dq = q.back(&scaled.t()?.contiguous()?.matmul(&e.values)?)?;
                if let Some(texts) = texts {
                    affine_back("text", texts, &dq, &mut parts)?;
                }
                e.back(&scaled.matmul(&q.values)?)?
            }
        };
        if let (Body::Probe { views, probes, projection, activation, .. }, Some(hidden)) =
            (&self.spec.body, &pass.hidden)
        {
            affine_back("encoder", hidden, &de, &mut parts)?;
            let mut dh = de.matmul(&self.section(values, "encoder.weight")?)?;
            if *activation == Activation::Relu {
                dh = (dh * hidden.gt(0f32)?.to_dtype(DType::F32)?)?;
            }
            let width = probes * projection;
            for (at, (&view, seen)) in views.iter().zip(&pass.views).enumerate() {
                let (models, _, rows) = seen.turned.dims3()?;
                let dh = dh.narrow(1, at * width, width)?.contiguous()?.reshape((models * probes, *projection))?;
                let turned = seen.turned.reshape((models * probes, rows))?;
                parts.push((format!("{}.projection", view.name()), dh.t()?.matmul(&turned)?));
                let v = self.section(values, &format!("{}.projection", view.name()))?;
                let mut ds = dh.matmul(&v)?.reshape((models, *probes, rows))?;
                if let Some(deviation) = &seen.deviation {
                    ds = standardised_back(&seen.turned, deviation, &ds)?;
                }
                parts.push((format!("{}.probes", view.name()), self.view_back(layers, view, &ds)?.t()?));
            }
        }
        self.in_order(parts)
    }

    /// The parts in the order of the sections, as one array.
    fn in_order(&self, parts: Vec<(String, Tensor)>) -> Result<Tensor> {
        let flat = |section: &Section| {
            let part = parts.iter().find(|(name, _)| *name == section.name);
            let missing = || candle_core::Error::Msg(format!("section {} has no gradient", section.name));
            let part = part.ok_or_else(missing)?.1.flatten_all()?;
            part.dims1().and_then(|numbers| match numbers == section.range.len() {
                true => part.contiguous(),
                false => candle_core::bail!("section {} has a gradient of {numbers} numbers", section.name),
            })
        };
        Tensor::cat(&self.sections.iter().map(flat).collect::<Result<Vec<_>>>()?, 0)
    }
}

/// Gradients of `x Wᵀ + b`: dW = dyᵀ x, db = Σ dy.
fn affine_back(name: &str, x: &Tensor, dy: &Tensor, parts: &mut Vec<(String, Tensor)>) -> Result<()> {
    parts.push((format!("{name}.weight"), dy.t()?.matmul(x)?));
    parts.push((format!("{name}.bias"), dy.sum(0)?));
    Ok(())
}

/// Mean 0 and deviation 1 over all responses of each model, in place; the deviations they had, (models, 1, 1).
fn standardised(s: &mut Tensor) -> Result<Tensor> {
    let centred = s.broadcast_sub(&mean(s)?)?;
    let deviation = mean(&centred.sqr()?)?.sqrt()?;
    *s = centred.broadcast_div(&(&deviation + f64::from(SMALLEST_DEVIATION))?)?;
    Ok(deviation)
}

/// From the gradient `ds` of the standardised `s` to that of what they were.
fn standardised_back(s: &Tensor, deviation: &Tensor, ds: &Tensor) -> Result<Tensor> {
    let above = (deviation + f64::from(SMALLEST_DEVIATION))?;
    // Where all responses were equal, s is 0 and so is what this multiplies.
    let turn = (mean(&(s * ds)?)? * &above)?.div(&deviation.maximum(f32::MIN_POSITIVE)?)?;
    let inner = ds.broadcast_sub(&mean(ds)?)?.sub(&s.broadcast_mul(&turn)?)?;
    inner.broadcast_div(&above)
}

/// Mean of each model, (models, 1, 1).
fn mean(x: &Tensor) -> Result<Tensor> {
    x.flatten_from(1)?.mean_keepdim(1)?.unsqueeze(2)
}

/// Rows brought to length 1, and the lengths they had (rows, 1).
struct Unit {
    values: Tensor,
    lengths: Tensor,
}

impl Unit {
    fn of(rows: &Tensor) -> Result<Self> {
        let lengths = rows.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?.maximum(SHORTEST)?;
        Ok(Self { values: rows.broadcast_div(&lengths)?, lengths })
    }

    /// From the gradient of the unit rows to that of the rows.
    fn back(&self, d: &Tensor) -> Result<Tensor> {
        let along = (d * &self.values)?.sum_keepdim(D::Minus1)?;
        (d - self.values.broadcast_mul(&along)?)?.broadcast_div(&self.lengths)
    }
}

/// The cost (1) of `logits` (models, classes) against `truths`, the same shape, 0 or 1; and its gradient.
pub(super) fn cost(choice: Choice, logits: &Tensor, truths: &Tensor) -> Result<(Tensor, Tensor)> {
    let (models, classes) = logits.dims2()?;
    let (cost, dy, count) = match choice {
        Choice::Several => {
            // log(1 + exp(y)) − truth · y, without overflow.
            let beyond = ((logits.abs()?.neg()?.exp()? + 1.0)?).log()?;
            let cost = ((logits.relu()? - (truths * logits)?)? + beyond)?;
            let p = (logits.neg()?.exp()? + 1.0)?.recip()?;
            (cost, (p - truths)?, models * classes)
        }
        Choice::One => {
            let y = logits.broadcast_sub(&logits.max_keepdim(1)?)?;
            let log = y.broadcast_sub(&y.exp()?.sum_keepdim(1)?.log()?)?;
            ((truths * &log)?.neg()?, (log.exp()? - truths)?, models)
        }
    };
    let share = 1.0 / count as f64;
    Ok(((cost.sum_all()? * share)?.reshape(1)?, (dy * share)?))
}
