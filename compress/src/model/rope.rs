//! Rotary positions: how a head's numbers are turned by an angle that grows with the position (Su et al. 2021).

use super::fields::Fields;
use crate::Result;

/// How the rotation frequencies are stretched for long contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as they are.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// > 0.
        factor: f64,
    },
    /// Llama 3.1: long waves divided by `factor`, short ones kept, smooth between.
    Llama3 {
        /// Divisor of the long waves.
        factor: f64,
        /// Waves longer than `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Waves shorter than `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of the pre-training.
        original: f64,
    },
    /// YaRN (Peng et al. 2023): interpolation by wavelength, with a factor on the attention scores.
    Yarn {
        /// Divisor of the long waves.
        factor: f64,
        /// Rotations above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which a frequency is divided.
        beta_slow: f64,
        /// Context length of the pre-training.
        original: f64,
        /// The bounds of the blend are rounded outwards to whole dimensions.
        truncate: bool,
        /// Factor on cos and sin.
        attention_factor: f64,
    },
    /// LongRoPE (Ding et al. 2024): each frequency divided by its own searched factor, of one list up to the trained
    /// context and of another beyond.
    LongRope {
        /// Divisors up to `original` positions, one a frequency.
        short: Vec<f64>,
        /// Divisors of every position of a longer sequence.
        long: Vec<f64>,
        /// Context length of the pre-training.
        original: usize,
        /// Factor on cos and sin.
        attention_factor: f64,
    },
}

/// The rotary positions of a block.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// Base of the rotation frequencies.
    pub theta: f64,
    /// Their stretching.
    pub scaling: RopeScaling,
    /// The leading numbers of a head that are turned; even, at most the width of a head.
    pub width: usize,
}

impl RopeSpec {
    /// Rotation frequencies of sequences as long as were trained on, (width / 2), and the factor on cos and sin.
    pub fn frequencies(&self) -> (Vec<f64>, f64) {
        self.scaling.frequencies(self.theta, self.width)
    }

    /// The longest sequence that is turned by the first set of frequencies, where there are two.
    pub fn switches_after(&self) -> Option<usize> {
        match &self.scaling {
            RopeScaling::LongRope { short, long, original, .. } if short != long => Some(*original),
            _ => None,
        }
    }
}

impl RopeScaling {
    /// Rotation frequencies of sequences as long as were trained on, (width / 2), and the factor on cos and sin.
    pub fn frequencies(&self, theta: f64, width: usize) -> (Vec<f64>, f64) {
        let half = width / 2;
        let base = (0..half).map(|i| theta.powf(-((2 * i) as f64) / width as f64));
        match self {
            Self::None => (base.collect(), 1.0),
            Self::Linear { factor } => (base.map(|f| f / factor).collect(), 1.0),
            &Self::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                let stretch = |f: f64| {
                    let wavelength = std::f64::consts::TAU / f;
                    if wavelength < original / high_freq_factor {
                        f
                    } else if wavelength > original / low_freq_factor {
                        f / factor
                    } else {
                        let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * f / factor + smooth * f
                    }
                };
                (base.map(stretch).collect(), 1.0)
            }
            &Self::Yarn { factor, beta_fast, beta_slow, original, truncate, attention_factor } => {
                let dim_of = |rotations: f64| {
                    width as f64 * (original / (rotations * std::f64::consts::TAU)).ln() / (2.0 * theta.ln())
                };
                let (low, high) = (dim_of(beta_fast), dim_of(beta_slow));
                let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, mut high) = (low.max(0.0), high.min(width as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                let blend = |(i, f): (usize, f64)| {
                    let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * ramp + f * (1.0 - ramp)
                };
                (base.enumerate().map(blend).collect(), attention_factor)
            }
            Self::LongRope { short, attention_factor, .. } => {
                (base.zip(short).map(|(f, factor)| f / factor).collect(), *attention_factor)
            }
        }
    }

    /// Rotation frequencies of longer sequences, where they are others.
    fn long_frequencies(&self, theta: f64, width: usize) -> Option<Vec<f64>> {
        let Self::LongRope { long, .. } = self else { return None };
        let (base, _) = Self::None.frequencies(theta, width);
        Some(base.iter().zip(long).map(|(f, factor)| f / factor).collect())
    }
}

/// cos and sin of the rotations (Su et al. 2021, eq. 34, with the halves of a head paired as Hugging Face stores them).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rope {
    width: usize,
    frequencies: Vec<f64>,
    /// Those of sequences longer than so many positions.
    long: Option<(usize, Vec<f64>)>,
    factor: f64,
}

impl Rope {
    pub fn new(spec: &RopeSpec) -> Self {
        let (frequencies, factor) = spec.frequencies();
        let long = spec.scaling.long_frequencies(spec.theta, spec.width);
        Self { width: spec.width, frequencies, long: spec.switches_after().zip(long), factor }
    }

    /// Numbers of a head that are turned, halved: the width of a row of [`Self::table`].
    pub fn half(&self) -> usize {
        self.width / 2
    }

    /// cos and sin, each (positions, width / 2), of the positions from `first`, the last of their sequence.
    pub fn table(&self, first: usize, positions: usize) -> (Vec<f32>, Vec<f32>) {
        let long = self.is_long(first + positions);
        self.at(first..first + positions, long)
    }

    /// Whether a sequence of `whole` positions is turned as long ones are, where they are turned otherwise.
    fn is_long(&self, whole: usize) -> bool {
        self.long.as_ref().is_some_and(|(original, _)| whole > *original)
    }

    /// cos and sin, each (positions, width / 2).
    fn at(&self, positions: impl Iterator<Item = usize> + Clone, long: bool) -> (Vec<f32>, Vec<f32>) {
        let frequencies = match &self.long {
            Some((_, frequencies)) if long => frequencies,
            _ => &self.frequencies,
        };
        // The angle is formed in f32, as the implementations these weights were trained with do.
        let angle = |p: usize| frequencies.iter().map(move |&f| f64::from(p as f32 * f as f32));
        let cos = positions.clone().flat_map(|p| angle(p).map(|a| (a.cos() * self.factor) as f32)).collect();
        let sin = positions.flat_map(|p| angle(p).map(|a| (a.sin() * self.factor) as f32)).collect();
        (cos, sin)
    }

    /// Turns the leading numbers of `head`; `cos` and `sin` are its position's rows of the table.
    pub fn rotate(&self, head: &mut [f32], cos: &[f32], sin: &[f32]) {
        let (low, high) = head[..self.width].split_at_mut(self.width / 2);
        for i in 0..low.len() {
            let (x, y) = (low[i], high[i]);
            low[i] = x * cos[i] - y * sin[i];
            high[i] = y * cos[i] + x * sin[i];
        }
    }
}

/// Where the rows of one run stand, and their cos and sin: computed once for all blocks that turn alike.
pub(crate) struct Turns {
    /// (position, positions of the whole sequence) a row.
    rows: Vec<(usize, usize)>,
    tables: Vec<(Rope, Table)>,
}

/// cos and sin of rows; equal positions share theirs.
pub(crate) struct Table {
    half: usize,
    at: Vec<usize>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Turns {
    pub fn new(rows: Vec<(usize, usize)>) -> Self {
        Self { rows, tables: Vec::new() }
    }

    /// The rows' table by `rope`.
    pub fn table(&mut self, rope: &Rope) -> &Table {
        let known = self.tables.iter().position(|(known, _)| known == rope);
        let index = known.unwrap_or_else(|| {
            self.tables.push((rope.clone(), Table::new(rope, &self.rows)));
            self.tables.len() - 1
        });
        &self.tables[index].1
    }
}

impl Table {
    fn new(rope: &Rope, rows: &[(usize, usize)]) -> Self {
        let place = |&(position, whole): &(usize, usize)| (rope.is_long(whole), position);
        let mut places: Vec<_> = rows.iter().map(place).collect();
        places.sort_unstable();
        places.dedup();
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        for long in [false, true] {
            let positions = places.iter().filter(|place| place.0 == long).map(|place| place.1);
            let (c, s) = rope.at(positions, long);
            cos.extend(c);
            sin.extend(s);
        }
        let at = rows.iter().map(|row| places.partition_point(|known| *known < place(row))).collect();
        Self { half: rope.half(), at, cos, sin }
    }

    /// cos and sin of row number `row`.
    pub fn row(&self, row: usize) -> (&[f32], &[f32]) {
        let start = self.at[row] * self.half;
        (&self.cos[start..][..self.half], &self.sin[start..][..self.half])
    }
}

/// What a family does with the rotary fields of a config.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RopeRules {
    /// The base where the config has none.
    pub theta: f64,
    /// `partial_rotary_factor` is read; other families turn whole heads.
    pub partial: bool,
    /// Its value where the config has none.
    pub default_partial: f64,
    /// The older names of base and share, at top level.
    pub theta_key: &'static str,
    pub partial_key: &'static str,
}

impl RopeRules {
    pub const USUAL: Self = Self {
        theta: 10_000.0,
        partial: false,
        default_partial: 1.0,
        theta_key: "rope_theta",
        partial_key: "partial_rotary_factor",
    };
}

/// Whether the config gives rotary positions by kind of block.
pub(crate) fn differs_by_kind(fields: &Fields<'_>) -> bool {
    let nested = ["rope_scaling", "rope_parameters"].iter().find_map(|key| fields.get(key)?.as_object());
    nested.is_some_and(|nested| nested.values().any(serde_json::Value::is_object))
}

/// The rotary positions of blocks of `kind` (`full_attention`, `sliding_attention`), whose heads are `head_dim` wide: in
/// `rope_parameters` (transformers 5), for all blocks or by kind, or as `rope_theta` and `rope_scaling`.
///
/// # Errors
/// A field that cannot be, a rule that is not run here.
pub(crate) fn read(
    fields: &Fields<'_>,
    rules: RopeRules,
    kind: &str,
    head_dim: usize,
    max_positions: usize,
) -> Result<RopeSpec> {
    let nested = ["rope_scaling", "rope_parameters"].iter().find_map(|key| fields.get(key)?.as_object());
    let nested = match nested {
        Some(kinds) if differs_by_kind(fields) => {
            let found = kinds.get(kind).and_then(serde_json::Value::as_object);
            Some(found.ok_or_else(|| fields.refuse(format!("the rotary positions of `{kind}` blocks are missing")))?)
        }
        flat => flat,
    };
    let nested = nested.map_or(serde_json::Value::Null, |nested| serde_json::Value::Object(nested.clone()));
    let inner = Fields::new(fields.file, &nested);
    let theta = inner.number("rope_theta")?.or(fields.number(rules.theta_key)?).unwrap_or(rules.theta);
    let name = ["rope_type", "type"].iter().find_map(|key| inner.get(key)?.as_str()).unwrap_or("default");
    let partial = inner.number("partial_rotary_factor")?.or(fields.number(rules.partial_key)?);
    let partial = partial.unwrap_or(rules.default_partial);
    if partial > 1.0 || (partial != 1.0 && !rules.partial) {
        return Err(fields.refuse(format!("`partial_rotary_factor` {partial} is not supported, only 1")));
    }
    let width = (head_dim as f64 * partial) as usize;
    if !width.is_multiple_of(2) || width == 0 {
        return Err(fields.refuse(match partial {
            1.0 => format!("`head_dim` {head_dim} is odd, rotary positions need pairs"),
            _ => format!("{partial} of a head's {head_dim} numbers are {width}, rotary positions need pairs"),
        }));
    }
    let scaling = scaling(fields, &inner, name, max_positions, width / 2)?;
    Ok(RopeSpec { theta, scaling, width })
}

fn scaling(
    fields: &Fields<'_>,
    inner: &Fields<'_>,
    name: &str,
    max_positions: usize,
    frequencies: usize,
) -> Result<RopeScaling> {
    let original = "original_max_position_embeddings";
    let original = fields.number(original)?.or(inner.number(original)?).unwrap_or(max_positions as f64);
    Ok(match name {
        // Of the three positions of `mrope`, a text's are equal.
        "default" | "mrope" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: inner.number_or("factor", None)? },
        "llama3" => RopeScaling::Llama3 {
            factor: inner.number_or("factor", None)?,
            low_freq_factor: inner.number_or("low_freq_factor", None)?,
            high_freq_factor: inner.number_or("high_freq_factor", None)?,
            original,
        },
        // The first Phi-3 files call LongRoPE `su` or `yarn`.
        "yarn" if inner.get("short_factor").is_none() => {
            let factor = inner.number_or("factor", Some(max_positions as f64 / original))?;
            let scale = |weight: f64| if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 };
            let attention_factor = match (inner.number("mscale")?, inner.number("mscale_all_dim")?) {
                (Some(one), Some(all)) => scale(one) / scale(all),
                _ => scale(1.0),
            };
            RopeScaling::Yarn {
                factor,
                beta_fast: inner.number_or("beta_fast", Some(32.0))?,
                beta_slow: inner.number_or("beta_slow", Some(1.0))?,
                original,
                truncate: inner.flag_or("truncate", true)?,
                attention_factor: inner.number_or("attention_factor", Some(attention_factor))?,
            }
        }
        "longrope" | "su" | "yarn" => {
            let factors = |key: &str| match inner.numbers(key)? {
                None => Err(inner.refuse(format!("`{key}` is missing; add it"))),
                Some(list) if list.len() != frequencies => Err(inner.refuse(format!(
                    "`{key}` has {} numbers, expected {frequencies}, one a rotation frequency",
                    list.len()
                ))),
                Some(list) => Ok(list),
            };
            let factor = inner.number_or("factor", Some(max_positions as f64 / original))?;
            let usual = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
            RopeScaling::LongRope {
                short: factors("short_factor")?,
                long: factors("long_factor")?,
                original: original as usize,
                attention_factor: inner.number_or("attention_factor", Some(usual))?,
            }
        }
        // The dynamic rule changes nothing up to the trained context, which is all that is run here.
        "dynamic" => RopeScaling::None,
        other => {
            return Err(fields.refuse(format!(
                "rope type `{other}` is not supported; supported are default, linear, dynamic (up to the trained \
                 context), llama3, yarn, longrope"
            )));
        }
    })
}
