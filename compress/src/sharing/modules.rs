//! The tensors that share a pool, one after the other in the flat array, each with its scale.

use std::ops::Range;

use scruple_weights::PathFilter;
use serde::{Deserialize, Serialize};

use super::fold::Fold;
use crate::{Error, Result};

/// Tensors of fewer values stay as they are unless another number is asked for.
pub const LEAST_VALUES: usize = 1024;

/// Weights a slot at most: more would be a mistake, or a small file that wants to become a very large one.
pub(super) const MOST_RATE: usize = 1 << 16;

/// A tensor that shares.
#[derive(Debug, Clone, PartialEq)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The flat position of its first weight; the rest follow row by row.
    pub offset: usize,
    /// λ, above 0.
    pub scale: f32,
}

impl Module {
    /// Weights it holds.
    pub fn values(&self) -> usize {
        self.shape.iter().product()
    }

    /// Its weights in the flat array.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.values()
    }
}

/// How a tensor's scale follows from its weights.
///
/// Only the order of magnitude between tensors matters, so that a power of two costs nothing; and since dividing and
/// multiplying by one is exact, a pool as large as the weights then loses nothing of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scales {
    /// The power of two nearest to the root mean square.
    #[default]
    PowerOfTwo,
    /// The root mean square in f32.
    Rms,
}

impl Scales {
    /// λ of weights of this root mean square; 1 for weights that are all 0.
    pub fn of(self, rms: f64) -> f32 {
        if !(rms > 0.0 && rms.is_finite()) {
            return 1.0;
        }
        match self {
            Self::PowerOfTwo => 2f32.powi((rms.log2().round() as i32).clamp(-126, 126)),
            Self::Rms => (rms as f32).max(f32::MIN_POSITIVE),
        }
    }
}

/// Which tensors share: matrices and beyond, of enough values, whose names are selected.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// By name.
    pub filter: PathFilter,
    /// Tensors of fewer values stay as they are.
    pub least_values: usize,
}

impl Default for Choice {
    fn default() -> Self {
        Self { filter: PathFilter::default(), least_values: LEAST_VALUES }
    }
}

impl Choice {
    /// Whether a tensor of this name and shape shares.
    pub fn takes(&self, name: &str, shape: &[usize]) -> bool {
        let values = shape.iter().product::<usize>();
        shape.len() > 1 && values > 0 && values >= self.least_values && self.filter.matches(name)
    }

    /// Refuses patterns that select none of `names`: they are misspelt more often than meant.
    ///
    /// # Errors
    /// [`Error::Recipe`] with the first of them.
    pub fn check(&self, names: &[&str]) -> Result<()> {
        for pattern in self.filter.include().iter().chain(self.filter.exclude()) {
            let alone = PathFilter::new(vec![pattern.clone()], Vec::new())?;
            if !names.iter().any(|name| alone.matches(name)) {
                return Err(Error::Recipe(format!(
                    "the pattern `{pattern}` matches none of the {} tensors; `scruple inspect` lists their names",
                    names.len()
                )));
            }
        }
        Ok(())
    }
}

/// How large a pool is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Size {
    /// c: weights a slot, 1 or more.
    Rate(f64),
    /// m.
    Slots(usize),
    /// c of each tensor, which then has a pool of its own.
    RateOfEach(f64),
}

impl Size {
    /// m for `weights` weights.
    ///
    /// # Errors
    /// If the rate is below 1 or no number; [`Fold::new`] refuses the rest.
    pub fn slots(self, weights: usize) -> Result<usize> {
        match self {
            Self::Slots(slots) => Ok(slots),
            Self::Rate(rate) | Self::RateOfEach(rate) if rate >= 1.0 && rate.is_finite() => {
                Ok(((weights as f64 / rate) as usize).clamp(1, weights.max(1)))
            }
            Self::Rate(rate) | Self::RateOfEach(rate) => {
                let what = format!("the rate is {rate}, expected 1 (a pool as large as the weights) or more");
                Err(Error::Recipe(what))
            }
        }
    }
}

/// The tensors of a flat array and the fold of their weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Sharing {
    /// Slots and signs.
    pub fold: Fold,
    /// The tensors, in the order of the flat array, without gaps.
    pub modules: Vec<Module>,
}

impl Sharing {
    /// `tensors` (name, shape, scale) one after the other over a pool, or each over its own.
    ///
    /// # Errors
    /// If there are none, a scale is no number above 0, or the pool does not suit the weights: is larger than they are, or
    /// so small that a file of it would not be opened.
    pub fn new(tensors: Vec<(String, Vec<usize>, f32)>, size: Size, align: usize, seed: u64) -> Result<Self> {
        let (modules, weights) = lay_out(tensors)?;
        let fold = match size {
            Size::RateOfEach(_) => {
                let sizes = modules.iter().map(|module| match module.values() {
                    0 => Ok((0, 0)),
                    values => Ok((values, size.slots(values)?)),
                });
                Fold::apart(&sizes.collect::<Result<Vec<_>>>()?, align, seed)?
            }
            Size::Rate(_) | Size::Slots(_) => Fold::new(weights, size.slots(weights)?, align, seed)?,
        };
        if fold.weights() / fold.slots() > MOST_RATE {
            return Err(Error::Recipe(format!(
                "{} weights would share {} slots; a file with more than {MOST_RATE} a slot is not believed, so ask for a \
                 lower rate",
                fold.weights(),
                fold.slots()
            )));
        }
        Ok(Self { fold, modules })
    }

    /// `tensors` (name, shape, scale), each over a pool of so many `slots` of its own.
    ///
    /// # Errors
    /// As [`Self::new`].
    ///
    /// # Panics
    /// If there are not as many pools as tensors.
    pub fn apart(tensors: Vec<(String, Vec<usize>, f32)>, slots: &[usize], align: usize, seed: u64) -> Result<Self> {
        assert_eq!(tensors.len(), slots.len(), "pools and tensors");
        let (modules, _) = lay_out(tensors)?;
        let sizes: Vec<_> = modules.iter().map(Module::values).zip(slots.iter().copied()).collect();
        Ok(Self { fold: Fold::apart(&sizes, align, seed)?, modules })
    }

    /// Slots of the pool that module `module` has to itself, if it has.
    pub fn own_slots(&self, module: &Module) -> Option<usize> {
        self.fold.is_apart().then(|| self.fold.slots_of(module.offset, module.values()))
    }

    /// d: the sum of λ² over each slot's weights. No sum is taken apart again, so nothing cancels.
    pub fn squares(&self) -> Vec<f64> {
        let mut squares = vec![0.0f64; self.fold.slots()];
        for module in &self.modules {
            let square = f64::from(module.scale) * f64::from(module.scale);
            for run in self.fold.runs(module.range()) {
                squares[run.slot..][..run.len].iter_mut().for_each(|sum| *sum += square);
            }
        }
        squares
    }

    /// √d in f32. (λ² of an f32 is exact in f64, so a slot of one weight has exactly its λ.)
    pub fn roots(&self) -> Vec<f32> {
        self.squares().into_iter().map(|square| square.sqrt() as f32).collect()
    }

    /// Weights of each slot.
    pub fn counts(&self) -> Vec<u32> {
        let mut counts = vec![0u32; self.fold.slots()];
        for run in self.fold.runs(0..self.fold.weights()) {
            counts[run.slot..][..run.len].iter_mut().for_each(|count| *count += 1);
        }
        counts
    }
}

/// The modules of `tensors` (name, shape, scale) one after the other, and their weights in all.
fn lay_out(tensors: Vec<(String, Vec<usize>, f32)>) -> Result<(Vec<Module>, usize)> {
    let (mut modules, mut offset) = (Vec::with_capacity(tensors.len()), 0usize);
    for (name, shape, scale) in tensors {
        check_scale(scale).map_err(|what| Error::Recipe(format!("tensor `{name}` {what}")))?;
        let values = shape.iter().try_fold(1usize, |product, &side| product.checked_mul(side));
        let Some(end) = values.and_then(|values| offset.checked_add(values)) else {
            let what = format!("tensor `{name}` has shape {shape:?}, whose number of weights overflows");
            return Err(Error::Recipe(what));
        };
        modules.push(Module { name, shape, offset, scale });
        offset = end;
    }
    if offset == 0 {
        return Err(Error::Recipe(format!(
            "no tensor is left to share: only those of two dimensions or more, of at least {LEAST_VALUES} values \
             unless another number is given, and selected by name"
        )));
    }
    Ok((modules, offset))
}

/// What is wrong with a scale, after the tensor's name.
pub(super) fn check_scale(scale: f32) -> Result<(), String> {
    match scale > 0.0 && scale.is_finite() {
        true => Ok(()),
        false => Err(format!("has scale {scale}, expected a number above 0")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sharing::fold::ALIGN;

    fn sharing(sizes: &[usize], size: Size) -> Sharing {
        let tensor = |(at, &rows): (usize, &usize)| (format!("t{at}"), vec![rows, 3], 2f32.powi(-(at as i32)));
        Sharing::new(sizes.iter().enumerate().map(tensor).collect(), size, ALIGN, 5).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn sums_of_slots_are_the_definition(sizes in prop::collection::vec(1usize..60, 1..6), rate in 1.0f64..20.0) {
            let sharing = sharing(&sizes, Size::Rate(rate));
            let fold = &sharing.fold;
            let (mut squares, mut counts) = (vec![0.0f64; fold.slots()], vec![0u32; fold.slots()]);
            for module in &sharing.modules {
                for weight in module.range() {
                    squares[fold.slot(weight)] += f64::from(module.scale).powi(2);
                    counts[fold.slot(weight)] += 1;
                }
            }
            prop_assert_eq!(sharing.squares(), squares);
            prop_assert_eq!(sharing.counts(), counts);
        }

        #[test]
        fn many_tensors_at_rate_1_are_still_a_bijection(sizes in prop::collection::vec(1usize..60, 1..9)) {
            let sharing = sharing(&sizes, Size::Rate(1.0));
            prop_assert!(sharing.counts().iter().all(|&count| count == 1));
            for module in &sharing.modules {
                for weight in module.range() {
                    prop_assert_eq!(sharing.roots()[sharing.fold.slot(weight)], module.scale);
                }
            }
        }
    }

    #[test]
    fn scales_are_near_the_root_mean_square() {
        for rms in [1e-30, 3e-5, 0.02, 0.9, 1.0, 1.5, 700.0] {
            let scale = Scales::PowerOfTwo.of(rms);
            assert_eq!(scale.to_bits() & 0x7f_ffff, 0, "{scale} is no power of two");
            assert!((f64::from(scale) / rms).log2().abs() <= 0.500_001);
            assert_eq!(Scales::Rms.of(rms), rms as f32);
        }
        assert_eq!((Scales::PowerOfTwo.of(0.0), Scales::Rms.of(0.0)), (1.0, 1.0));
    }

    #[test]
    fn choices_take_matrices_of_enough_values_and_known_names() {
        let filter = PathFilter::new(vec!["model.*".into()], vec!["*embed*".into()]).unwrap();
        let choice = Choice { filter, least_values: 100 };
        assert!(choice.takes("model.up.weight", &[10, 10]));
        assert!(!choice.takes("model.up.weight", &[9, 11]) && !choice.takes("model.norm.weight", &[100]));
        assert!(!choice.takes("model.embed.weight", &[10, 10]) && !choice.takes("head.weight", &[10, 10]));
        assert!(choice.check(&["model.up.weight", "model.embed.weight"]).is_ok());
        let error = choice.check(&["model.up.weight"]).unwrap_err().to_string();
        assert!(error.contains("the pattern `*embed*` matches none of the 1 tensors"), "{error}");
    }

    #[test]
    fn sizes_and_scales_that_cannot_be_are_refused_in_words() {
        let new = |scale: f32, size: Size| {
            Sharing::new(vec![("a".into(), vec![4, 4], scale)], size, ALIGN, 0).unwrap_err().to_string()
        };
        let large = |slots: usize| Sharing::new(vec![("a".into(), vec![512, 256], 1.0)], Size::Slots(slots), ALIGN, 0);
        assert!(large(2).is_ok());
        for (error, part) in [
            (new(1.0, Size::Rate(0.5)), "the rate is 0.5"),
            (new(1.0, Size::Rate(f64::NAN)), "the rate is NaN"),
            (new(1.0, Size::Slots(17)), "17 slots is larger than the 16 weights"),
            (new(f32::NAN, Size::Rate(1.0)), "tensor `a` has scale NaN"),
            (new(0.0, Size::Rate(1.0)), "tensor `a` has scale 0"),
            (large(1).unwrap_err().to_string(), "131072 weights would share 1 slots"),
            (Sharing::new(Vec::new(), Size::Rate(1.0), ALIGN, 0).unwrap_err().to_string(), "no tensor is left"),
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
}
