//! Suite 2: the size the pool begins at.
//!
//! A pool that begins at standard deviation C has scales λ = std / C, so that the weights begin the same for every C. In
//! the coordinates φ nothing else depends on C either. The pool ψ itself as what is trained, as published before gradient
//! scaling, takes steps that grow as 1 / C²; divided by Γ = (Σ λ)² / count (v1) plain descent does not, Adam undoes it.

use serde::{Deserialize, Serialize};

use super::{
    super::{Scales, baselines::GradientScale, modules::Size},
    ground::{Descent, Ground, start},
    psi::{Psi, begun_at, share},
    record::{Job, Store, work},
    train::{Course, Part, Score, score},
};
use crate::Result;

/// Standard deviations that pools begin at.
pub const DEVIATIONS: [f64; 6] = [1e-3, 0.01, 0.05, 0.2, 1.0, 5.0];

/// Largest spread of the accuracies over [`DEVIATIONS`] in the coordinates.
pub const MOST_SPREAD: f64 = 0.01;

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// φ.
    Coordinates,
    /// ψ.
    Plain,
    /// ψ, its gradients divided by v1.
    Divided,
}

impl Form {
    /// All, in the order of tables.
    pub const ALL: [Self; 3] = [Self::Coordinates, Self::Divided, Self::Plain];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Coordinates => "coordinates",
            Self::Plain => "plain",
            Self::Divided => "divided",
        }
    }
}

/// One form under one rule at one rate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// What is trained.
    pub form: Form,
    /// The rule.
    pub descent: Descent,
    /// Weights a slot.
    pub rate: f64,
    /// The runs, in the order of [`DEVIATIONS`].
    pub scores: Vec<Score>,
    /// Largest less smallest accuracy.
    pub spread: f64,
}

/// What the suite found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stability {
    /// Where the images are from.
    pub data: String,
    /// C, standard deviations the pools begin at.
    pub deviations: [f64; 6],
    /// Every form, rule and rate.
    pub lines: Vec<Line>,
    /// Largest spread in the coordinates.
    pub spread: f64,
    /// Runs of ψ without division whose cost was no longer finite.
    pub diverged: usize,
    /// Whether the spread is below [`MOST_SPREAD`] while at least one run of plain ψ diverged.
    pub passes: bool,
}

/// Runs the suite at `rates`.
///
/// # Errors
/// If records cannot be read or written, or a rate does not suit.
pub fn run(ground: &Ground, store: &Store<'_>, rates: &[f64], seed: u64) -> Result<Stability> {
    let mut lines: Vec<(Form, Descent, f64)> = Vec::new();
    for &rate in rates {
        for form in Form::ALL {
            lines.extend([Descent::Sgd, Descent::Adam].map(|descent| (form, descent, rate)));
        }
    }
    let one = |(form, descent, rate): (Form, Descent, f64), deviation: f64| {
        let name = format!("{}-{}-rate{rate}-c{deviation}-seed{seed}", form.name(), descent.name());
        store.once(&name, || one(ground, form, descent, rate, deviation, seed))
    };
    let runs = lines.iter().flat_map(|&line| DEVIATIONS.map(|deviation| (line, deviation)));
    let jobs: Vec<Job<'_>> =
        runs.map(|(line, deviation)| Box::new(move || one(line, deviation).map(drop)) as Job<'_>).collect();
    work(&jobs)?;
    let lines = lines.into_iter().map(|line| {
        let scores = DEVIATIONS.iter().map(|&deviation| one(line, deviation)).collect::<Result<Vec<Score>>>()?;
        let (form, descent, rate) = line;
        let right = || scores.iter().map(Score::accuracy);
        let spread = right().fold(0.0, f64::max) - right().fold(1.0, f64::min);
        Ok(Line { form, descent, rate, scores, spread })
    });
    let lines = lines.collect::<Result<Vec<Line>>>()?;
    let of = |form: Form| lines.iter().filter(move |line| line.form == form);
    let spread = of(Form::Coordinates).map(|line| line.spread).fold(0.0, f64::max);
    let plain = of(Form::Plain).flat_map(|line| &line.scores);
    let diverged = plain.filter(|score| score.diverged.is_some()).count();
    let passes = spread < MOST_SPREAD && diverged > 0;
    Ok(Stability { data: ground.data.name.clone(), deviations: DEVIATIONS, lines, spread, diverged, passes })
}

fn one(ground: &Ground, form: Form, descent: Descent, rate: f64, deviation: f64, seed: u64) -> Result<Score> {
    let peak = match descent {
        Descent::Sgd => ground.schooling.sgd_peak,
        Descent::Adam => ground.schooling.adam_peak,
    };
    let course = Course { part: Part::Final, descent, peak, seed };
    let mut begin = start(&ground.graph, seed);
    let shared = share(&ground.graph, &mut begin, Size::Rate(rate), Scales::Rms, seed)?;
    let shared = begun_at(&shared, ground.graph.layout(), deviation)?;
    let plain = |shared, scale| score(ground, &ground.spec, course, begin.clone(), Some(&Psi::new(shared, scale)));
    match form {
        Form::Coordinates => score(ground, &ground.spec, course, begin, Some(&shared)),
        Form::Plain => plain(shared, None),
        Form::Divided => plain(shared, Some(GradientScale::V1)),
    }
}
