//! Who competes, how much each may keep, and what that takes.
//!
//! With n weights that compete for memory and a rate c, a pool has m = ⌊n / c⌋ slots. The others get
//!
//! ```text
//! values   m numbers, whatever it takes to say where they belong (the paper's accounting)
//! bytes    what fits into the 4 m bytes of the pool: a pruned net keeps k weights with
//!          min(4 k + ⌈n / 8⌉, 6 k) ≤ 4 m, by a bit for every weight or two bytes of distance for each that is left
//! ```
//!
//! Biases, norms and their moments are kept by all; a smaller net has fewer of them, and spends the difference.

use serde::{Deserialize, Serialize};

use super::{
    super::{
        Scales, baselines,
        modules::Size,
        report::{pruned, pruned_bytes},
    },
    ground::{Ground, rest, start},
    hashed::Hashed,
    low_rank::LowRank,
    psi::share,
    train::{Course, Score, score},
};
use crate::{
    Result,
    data::images::ImageSet,
    nn::{
        Architecture, Net, Spec, Weights,
        parametrise::{Masked, Parametrise},
        saliency::{Criterion, GRASP_TEMPERATURE, prunable, prune},
    },
};

/// Bytes of a number.
const WIDTH: u64 = 4;

/// The tile of ROAST, (in, out): small, as the pools are.
pub const TILE: (usize, usize) = (8, 4);

/// What makes a net small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Nothing.
    Dense,
    /// A pool, by the fold.
    Fold,
    /// A pool, by a hash a weight.
    HashedNet,
    /// A pool, by hashed tiles.
    Roast,
    /// The same net with fewer features.
    Small,
    /// Matrices in two factors.
    LowRank,
    /// Weights that stay chosen by nothing.
    Random,
    /// By size before training.
    Magnitude,
    /// By what the cost would change.
    Snip,
    /// By what the flow of the gradient would change.
    Grasp,
    /// By what flows through them.
    Synflow,
    /// By size after training, round by round, rewound each time: tickets of the lottery.
    Lottery,
    /// The trained net in 8 bits.
    Int8,
    /// The trained net in 4 bits.
    Int4,
}

impl Method {
    /// All, in the order of tables.
    pub const ALL: [Self; 14] = [
        Self::Dense,
        Self::Fold,
        Self::HashedNet,
        Self::Roast,
        Self::Small,
        Self::LowRank,
        Self::Random,
        Self::Magnitude,
        Self::Snip,
        Self::Grasp,
        Self::Synflow,
        Self::Lottery,
        Self::Int8,
        Self::Int4,
    ];

    /// Its name, in options, records and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Fold => "fold",
            Self::HashedNet => "hashed-net",
            Self::Roast => "roast",
            Self::Small => "small",
            Self::LowRank => "low-rank",
            Self::Random => "random",
            Self::Magnitude => "magnitude",
            Self::Snip => "snip",
            Self::Grasp => "grasp",
            Self::Synflow => "synflow",
            Self::Lottery => "lottery",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }

    /// Whether it keeps weights with their places, so that equal numbers and equal bytes differ.
    pub fn is_sparse(self) -> bool {
        self == Self::Lottery || self.criterion(0).is_some()
    }

    /// Whether its size is given by nothing but the net's.
    pub fn is_fixed(self) -> bool {
        matches!(self, Self::Dense | Self::Int8 | Self::Int4)
    }

    /// By what it prunes before training.
    fn criterion(self, seed: u64) -> Option<Criterion> {
        Some(match self {
            Self::Random => Criterion::Random { seed },
            Self::Magnitude => Criterion::Magnitude,
            Self::Snip => Criterion::Snip,
            Self::Grasp => Criterion::Grasp { temperature: GRASP_TEMPERATURE },
            Self::Synflow => Criterion::Synflow,
            _ => return None,
        })
    }
}

/// What is equal between contestants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accounting {
    /// The count of numbers.
    Values,
    /// Bytes, those that say where a weight belongs included.
    Bytes,
}

impl Accounting {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Values => "values",
            Self::Bytes => "bytes",
        }
    }
}

/// Slots of a pool at rate `rate`.
///
/// # Errors
/// If the rate is below 1.
pub fn slots(ground: &Ground, rate: f64) -> Result<usize> {
    Size::Rate(rate).slots(ground.weights())
}

/// Weights a pruned net may keep in place of a pool at `rate`.
///
/// # Errors
/// If the rate is below 1.
pub fn kept(ground: &Ground, rate: f64, accounting: Accounting) -> Result<usize> {
    let slots = slots(ground, rate)?;
    Ok(match accounting {
        Accounting::Values => slots,
        Accounting::Bytes => pruned(WIDTH * slots as u64, ground.weights() as u64, WIDTH).kept as usize,
    })
}

/// Bytes of a net of the dense form that keeps `kept` weights.
pub fn sparse_bytes(ground: &Ground, kept: usize) -> u64 {
    pruned_bytes(kept as u64, ground.weights() as u64, WIDTH) + WIDTH * ground.rest() as u64
}

/// What a contestant is at some size, ready to be trained.
struct Ready {
    spec: Spec,
    start: Weights,
    with: Option<Box<dyn Parametrise>>,
    values: usize,
    bytes: u64,
}

/// What a contestant came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Numbers in place of the weights.
    pub values: usize,
    /// Bytes of all it keeps.
    pub bytes: u64,
    /// What it told right.
    pub score: Score,
}

/// Trains `method` at `rate` and measures it; absent where nothing of it is that small.
///
/// # Errors
/// If the rate is below 1.
///
/// # Panics
/// If the method is not one that a single run trains: the lottery is [`super::lottery`]'s.
pub fn run(
    ground: &Ground,
    method: Method,
    rate: f64,
    accounting: Accounting,
    course: Course,
) -> Result<Option<Measured>> {
    let Some(Ready { spec, start, with, values, bytes }) = ready(ground, method, rate, accounting, course)? else {
        return Ok(None);
    };
    let score = score(ground, &spec, course, start, with.as_deref())?;
    Ok(Some(Measured { values, bytes, score }))
}

fn ready(ground: &Ground, method: Method, rate: f64, accounting: Accounting, course: Course) -> Result<Option<Ready>> {
    let Ground { spec, graph, .. } = ground;
    let (slots, seed) = (slots(ground, rate)?, course.seed);
    let pool_bytes = WIDTH * (slots + ground.rest()) as u64;
    let mut begin = start(graph, seed);
    let hashed = |method: baselines::Method, begin: &mut Weights| -> Result<Option<Box<dyn Parametrise>>> {
        let hashed = Hashed::new(graph.layout(), &begin.values, method, slots, seed)?;
        hashed.begin(&mut begin.values, seed);
        Ok(Some(Box::new(hashed)))
    };
    let (with, values, bytes): (Option<Box<dyn Parametrise>>, usize, u64) = match method {
        Method::Dense => (None, ground.weights(), WIDTH * (ground.weights() + ground.rest()) as u64),
        Method::Fold => {
            let shared = share(graph, &mut begin, Size::Slots(slots), Scales::Rms, seed)?;
            (Some(Box::new(shared)), slots, pool_bytes)
        }
        Method::HashedNet => (hashed(baselines::Method::HashedNet, &mut begin)?, slots, pool_bytes),
        Method::Roast if TILE.0 * TILE.1 >= slots => return Ok(None),
        Method::Roast => (hashed(baselines::Method::Roast { tile: TILE }, &mut begin)?, slots, pool_bytes),
        Method::Small => {
            let Some(small) = smaller(spec, slots + ground.rest())? else { return Ok(None) };
            let graph = small.graph()?;
            let numbers = graph.layout().len() + graph.running().len();
            let values = numbers - rest(&graph);
            let (start, bytes) = (start(&graph, seed), WIDTH * numbers as u64);
            return Ok(Some(Ready { spec: small, start, with: None, values, bytes }));
        }
        Method::LowRank => {
            let Some(factors) = LowRank::new(graph.layout(), &begin.values, slots, seed) else { return Ok(None) };
            let values = factors.values();
            (Some(Box::new(factors)), values, WIDTH * (values + ground.rest()) as u64)
        }
        Method::Lottery | Method::Int8 | Method::Int4 => unreachable!("{} is not trained alone", method.name()),
        Method::Random | Method::Magnitude | Method::Snip | Method::Grasp | Method::Synflow => {
            let criterion = method.criterion(seed).expect("the method prunes before training");
            let kept = kept(ground, rate, accounting)?;
            let seen = course.part.images(ground).0;
            let count = ground.schooling.scored_on.clamp(1, seen.len());
            let scored: ImageSet = seen.select((0..count).map(|at| at * seen.len() / count));
            let mut net = Net::new(spec, count.min(ground.schooling.batch))?;
            let scaling = ground.data.train.scaling();
            let keep = prune(criterion, &mut net, &begin, &scored, &scaling, kept)?;
            (Some(Box::new(Masked::new(keep))), kept, sparse_bytes(ground, kept))
        }
    };
    Ok(Some(Ready { spec: spec.clone(), start: begin, with, values, bytes }))
}

/// `spec` with all features scaled down alike, as large as `numbers` allow with vectors and moments; absent where even
/// one feature a layer is more.
///
/// # Errors
/// If the net has no features to scale.
fn smaller(spec: &Spec, numbers: usize) -> Result<Option<Spec>> {
    /// Sizes that are tried.
    const STEPS: usize = 1024;
    let scaled = |step: usize| {
        let of = |features: &usize| (features * step / STEPS).max(1);
        let all = |features: &[usize]| features.iter().map(of).collect::<Vec<usize>>();
        let architecture = match &spec.architecture {
            Architecture::Mlp { hidden, norm } => Architecture::Mlp { hidden: all(hidden), norm: *norm },
            Architecture::ResidualMlp { width, blocks } => {
                Architecture::ResidualMlp { width: of(width), blocks: *blocks }
            }
            Architecture::Cnn { widths } => Architecture::Cnn { widths: all(widths) },
            Architecture::ResNet { blocks, width, shortcut, inner } => Architecture::ResNet {
                blocks: blocks.clone(),
                width: of(width),
                shortcut: *shortcut,
                inner: inner.iter().map(|widths| all(widths)).collect(),
            },
        };
        Spec { architecture, ..spec.clone() }
    };
    for step in (1..=STEPS).rev() {
        let small = scaled(step);
        let graph = small.graph()?;
        if graph.layout().len() + graph.running().len() <= numbers {
            return Ok(Some(small));
        }
    }
    Ok(None)
}

/// Weights that compete with the others, for the lottery.
pub(super) fn competing(ground: &Ground) -> Vec<bool> {
    prunable(ground.graph.layout())
}
