//! Suite 1: a pool of as many slots as weights is dense training.
//!
//! A net over the fold at rate 1 and a dense net begin with the same weights and see the same batches; after the run the
//! relative difference of their weights is what rounding leaves: nothing where the scales are powers of two, one rounding
//! a weight and step where they are root mean squares.
//!
//! A net that is rounded differently stays within rounding of the first until one activation falls on the other side of
//! zero, and from there on goes its own way to the same accuracy. That happens to pairs whose scales round, and as often
//! to the control of each pair, a dense net that begins with the last bit of every weight flipped; so pairs with powers
//! of two alone are judged. All are run at the usual learning rate and at a fifth of it. The ancestors of the fold, which
//! leave slots unused, are trained beside them.

use serde::{Deserialize, Serialize};

use super::{
    super::{Scales, baselines, modules::Size},
    contestant::TILE,
    ground::{Descent, Ground, start},
    hashed::Hashed,
    psi::share,
    record::{Job, Store, work},
    train::{Course, End, Part, Score, measure, score, train},
};
use crate::{Error, Result};

/// Largest relative difference of the weights after a run of SGD.
pub const MOST_SGD: f64 = 1e-4;

/// After a run of Adam, whose division by the root of small second moments amplifies rounding.
pub const MOST_ADAM: f64 = 1e-3;

/// Largest difference of the accuracies.
pub const MOST_ACCURACY: f64 = 0.002;

/// What the learning rate is divided by in the second half of the pairs.
const SLOWER: f64 = 5.0;

/// Fewest steps that say something.
pub const LEAST_STEPS: u64 = 1_000;

/// A pair of runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// The rule of both.
    pub descent: Descent,
    /// The learning rate of both.
    pub learning_rate: f64,
    /// How the scales are chosen: powers of two are exact in every step, root mean squares round.
    pub scales: Scales,
    /// Steps of both.
    pub steps: u64,
    /// Of the dense net.
    pub dense: Score,
    /// Of the net over the pool.
    pub shared: Score,
    /// ‖w − w'‖ / ‖w'‖ of all weights at the end, w' the dense ones; absent where a run did not end.
    pub difference: Option<f64>,
    /// The same of a dense net that begins with every weight's last bit flipped.
    pub control: Option<f64>,
    /// How far the dense run went: ‖w' − start‖ / ‖start‖.
    pub moved: Option<f64>,
}

impl Pair {
    /// What the difference may be.
    pub fn most(&self) -> f64 {
        match self.descent {
            Descent::Sgd => MOST_SGD,
            Descent::Adam => MOST_ADAM,
        }
    }

    /// Whether nothing is rounded, so that any difference would be the pool's.
    pub fn is_judged(&self) -> bool {
        self.scales == Scales::PowerOfTwo
    }

    /// Whether both runs ended in the same net, as far as was asked.
    pub fn passes(&self) -> bool {
        let apart = (self.dense.accuracy() - self.shared.accuracy()).abs();
        self.steps > LEAST_STEPS
            && self.difference.is_some_and(|difference| difference < self.most())
            && apart <= MOST_ACCURACY + 1e-12
    }
}

/// An ancestor at rate 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ancestor {
    /// Its name.
    pub method: String,
    /// The share of the slots that some weight reads.
    pub load_factor: f64,
    /// Trained by SGD.
    pub score: Score,
}

/// What the suite found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Equality {
    /// Where the images are from.
    pub data: String,
    /// Weights, and slots.
    pub weights: usize,
    /// Load factor of the fold at rate 1.
    pub load_factor: f64,
    /// SGD and Adam, at two learning rates, with both kinds of scales.
    pub pairs: Vec<Pair>,
    /// For comparison.
    pub ancestors: Vec<Ancestor>,
    /// Whether all pairs that are judged pass.
    pub passes: bool,
}

/// The rules and scales of pairs.
const RUNS: [(Descent, Scales); 4] = [
    (Descent::Sgd, Scales::PowerOfTwo),
    (Descent::Sgd, Scales::Rms),
    (Descent::Adam, Scales::PowerOfTwo),
    (Descent::Adam, Scales::Rms),
];

const ANCESTORS: [(&str, baselines::Method); 2] =
    [("hashed-net", baselines::Method::HashedNet), ("roast", baselines::Method::Roast { tile: TILE })];

/// Runs the suite.
///
/// # Errors
/// If records cannot be read or written, or the net has nothing to share.
pub fn run(ground: &Ground, store: &Store<'_>, seed: u64) -> Result<Equality> {
    let runs = [1.0, SLOWER].into_iter().flat_map(|slower| {
        RUNS.map(|(descent, scales)| {
            let peak = match descent {
                Descent::Sgd => ground.schooling.sgd_peak,
                Descent::Adam => ground.schooling.adam_peak,
            };
            (Course { part: Part::Final, descent, peak: peak / slower, seed }, scales)
        })
    });
    let runs: Vec<(Course, Scales)> = runs.collect();
    let pair = |(course, scales): (Course, Scales)| {
        let of = if scales == Scales::PowerOfTwo { "power-of-two" } else { "rms" };
        let name = format!("{}-{of}-seed{seed}-lr{}", course.descent.name(), course.peak);
        store.once(&name, || pair(ground, course, scales))
    };
    let ancestor = |(name, method): (&str, baselines::Method)| {
        store.once(&format!("{name}-seed{seed}"), || ancestor(ground, name, method, seed))
    };
    let mut jobs: Vec<Job<'_>> = Vec::new();
    for &run in &runs {
        jobs.push(Box::new(move || pair(run).map(drop)));
    }
    for which in ANCESTORS {
        jobs.push(Box::new(move || ancestor(which).map(drop)));
    }
    work(&jobs)?;
    let pairs = runs.into_iter().map(pair).collect::<Result<Vec<Pair>>>()?;
    let ancestors = ANCESTORS.into_iter().map(ancestor).collect::<Result<Vec<Ancestor>>>()?;
    let shared = share(&ground.graph, &mut start(&ground.graph, seed), Size::Rate(1.0), Scales::Rms, seed)?;
    let used = shared.sharing().counts().into_iter().filter(|&count| count > 0).count();
    Ok(Equality {
        data: ground.data.name.clone(),
        weights: ground.weights(),
        load_factor: used as f64 / shared.sharing().fold.slots() as f64,
        passes: pairs.iter().filter(|pair| pair.is_judged()).all(Pair::passes),
        pairs,
        ancestors,
    })
}

fn pair(ground: &Ground, course: Course, scales: Scales) -> Result<Pair> {
    let Course { descent, peak, seed, .. } = course;
    let mut begin = start(&ground.graph, seed);
    let shared = share(&ground.graph, &mut begin, Size::Rate(1.0), scales, seed)?;
    let mut flipped = begin.clone();
    flipped.values.iter_mut().filter(|w| **w != 0.0).for_each(|w| *w = f32::from_bits(w.to_bits() ^ 1));
    let dense = train(ground, &ground.spec, course, begin.clone(), None, 0)?;
    let pooled = train(ground, &ground.spec, course, begin.clone(), Some(&shared), 0)?;
    let control = train(ground, &ground.spec, course, flipped, None, 0)?;
    let scored = |end: &End| match end {
        End::Trained { weights, .. } => measure(ground, &ground.spec, weights, course.part),
        End::Diverged(step) => Ok(Score::diverged(ground, course.part, *step)),
    };
    let apart = |a: &End| match (a, &dense) {
        (End::Trained { weights: a, .. }, End::Trained { weights: b, .. }) => Some(relative(&a.values, &b.values)),
        _ => None,
    };
    let moved = match &dense {
        End::Trained { weights, .. } => Some(relative(&weights.values, &begin.values)),
        End::Diverged(_) => None,
    };
    Ok(Pair {
        descent,
        learning_rate: peak,
        scales,
        steps: ground.schooling.epochs * ground.data.train.len().div_ceil(ground.schooling.batch) as u64,
        dense: scored(&dense)?,
        shared: scored(&pooled)?,
        difference: apart(&pooled),
        control: apart(&control),
        moved,
    })
}

/// ‖a − b‖ / ‖b‖.
fn relative(a: &[f32], b: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let apart = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    apart / norm(&mut b.iter().map(|&b| f64::from(b)))
}

fn ancestor(ground: &Ground, name: &str, method: baselines::Method, seed: u64) -> Result<Ancestor> {
    let mut begin = start(&ground.graph, seed);
    let hashed = Hashed::new(ground.graph.layout(), &begin.values, method, ground.weights(), seed)
        .map_err(|error| Error::Recipe(format!("{name} at rate 1: {error}")))?;
    hashed.begin(&mut begin.values, seed);
    let course = Course { part: Part::Final, descent: Descent::Sgd, peak: ground.schooling.sgd_peak, seed };
    let score = score(ground, &ground.spec, course, begin, Some(&hashed))?;
    Ok(Ancestor { method: name.to_string(), load_factor: hashed.load_factor(), score })
}
