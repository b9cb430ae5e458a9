//! The records of a sweep together: adjusted for how many there are, and the calibration seeds of a setting side by side.

use super::{
    data::{Band, Calibration, Curve, Draws, FORMAT, Point, SURE, Setting, Spread, SuiteName},
    run::{Job, Records},
    sweep::Asked,
    verdict,
    words::points,
};
use crate::trust::{paired::between_seeds, statistics::holm};

/// The whole sweep, as far as its records are there.
pub fn curve(job: &Job, records: &Records) -> Curve {
    let mut points: Vec<Point> = records.points.iter().map(|(_, found)| found.point.clone()).collect();
    adjust(&mut points);
    let calibration = records.calibration.as_ref().map(|file| {
        let usual = scruple_compress::recipe::CalibrationRecipe::default();
        Calibration {
            file: file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned(),
            n_samples: job.sweep.calibration.n_samples.unwrap_or(usual.n_samples),
            seq_len: job.sweep.calibration.seq_len.unwrap_or(usual.seq_len),
        }
    });
    let mut warnings = job.sweep.notes.clone();
    warnings.extend(records.dense.warnings.iter().cloned());
    for (asked, found) in &records.points {
        warnings.extend(found.warnings.iter().map(|warning| format!("{}: {warning}", asked.name)));
    }
    warnings.extend(records.references.iter().flat_map(|found| found.warnings.iter().cloned()));
    if records.missing > 0 {
        warnings.push(format!(
            "{} of {} models are not measured yet; the others' p values are adjusted without them",
            records.missing,
            job.sweep.points.len() + job.sweep.references.len()
        ));
    }
    let comparisons = points.iter().flat_map(|point| &point.dimensions).filter(|one| one.p.is_some()).count();
    let needed = (comparisons as f64 / SURE).ceil() as usize;
    if job.sweep.bootstrap.replicates < needed {
        warnings.push(format!(
            "{} replicates are too few for {comparisons} comparisons: p values of exchange cannot stay below {SURE} after Holm; \
             give `bootstrap.replicates` at least {needed}",
            job.sweep.bootstrap.replicates
        ));
    }
    let asked: Vec<&Asked> = records.points.iter().map(|(asked, _)| asked).collect();
    let mut curve = Curve {
        curve: FORMAT,
        scruple: env!("CARGO_PKG_VERSION").into(),
        dense: records.dense.dense.clone(),
        suite: SuiteName {
            name: records.suite.clone(),
            sha256: records.suite_sha256.clone(),
            embedded: records.embedded,
        },
        calibration,
        bootstrap: Draws { replicates: job.sweep.bootstrap.replicates, seed: job.sweep.bootstrap.seed },
        dimensions: records.dense.dimensions.clone(),
        settings: settings(&asked, &points),
        points,
        references: records.references.iter().map(|found| found.reference.clone()).collect(),
        failures: records.failures.clone(),
        toxicity_scorer: records.toxicity_scorer.clone(),
        verdict: Vec::new(),
        warnings,
    };
    curve.verdict = verdict::of(&curve);
    curve
}

/// Sets p values adjusted over all dimensions of all points.
fn adjust(points: &mut [Point]) {
    let tested = || points.iter().flat_map(|point| &point.dimensions).filter_map(|dimension| dimension.p);
    let adjusted = holm(&tested().collect::<Vec<f64>>());
    let dimensions = points.iter_mut().flat_map(|point| &mut point.dimensions).filter(|one| one.p.is_some());
    for (dimension, adjusted) in dimensions.zip(adjusted) {
        dimension.p_adjusted = Some(adjusted);
    }
}

/// Points that differ in the calibration seed alone, in the order of the first of each.
fn settings(asked: &[&Asked], points: &[Point]) -> Vec<Setting> {
    let mut settings: Vec<(&Asked, Vec<&Point>)> = Vec::new();
    for (asked, point) in asked.iter().zip(points).filter(|(asked, _)| asked.seed.is_some()) {
        // A name says what varies within one table of the sweep; what does between tables is in the recipe alone.
        match settings.iter_mut().find(|(first, _)| first.setting == asked.setting && first.is_but_for_its_seed(asked))
        {
            Some((_, members)) => members.push(point),
            None => settings.push((asked, vec![point])),
        }
    }
    settings.retain(|(_, members)| members.len() > 1);
    let setting = |(first, members): (&Asked, Vec<&Point>)| Setting {
        name: first.setting.clone(),
        points: members.iter().map(|point| point.name.clone()).collect(),
        dimensions: members[0].dimensions.iter().map(|one| spread(&one.name, &members)).collect(),
    };
    settings.into_iter().map(setting).collect()
}

/// How far seeds carry one dimension; over those that have a Δ there.
fn spread(dimension: &str, members: &[&Point]) -> Spread {
    let of = |point: &&Point| point.dimensions.iter().find(|one| one.name == dimension)?.delta;
    let deltas: Vec<f64> = members.iter().filter_map(of).collect();
    Spread {
        name: dimension.to_string(),
        mean: (!deltas.is_empty()).then(|| deltas.iter().sum::<f64>() / deltas.len() as f64),
        deviation: between_seeds(&deltas),
    }
}

/// An interval in words.
pub fn shown(band: Band) -> String {
    format!("[{}, {}]", points(band.low), points(band.high))
}

#[cfg(test)]
mod tests;
