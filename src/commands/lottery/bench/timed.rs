//! Filter tickets that take no more time than a layer ticket, by the clock of this machine.
//!
//! What a clock says differs from run to run, so it is asked once: `timed/NET-ALLOCATION.json` keeps the net that was found,
//! and every training of it afterwards is as reproducible as the others.

use std::fs;

use anyhow::{Context, Result};
use scruple_compress::{
    lottery::filters,
    nn::{Spec, Trainer, Weights},
};
use serde::{Deserialize, Serialize};

use super::{Bench, read, thread_seconds};
use crate::record;

/// Pairs of steps, one of each net, whose ratios are compared.
const PAIRS: usize = 9;

/// Steps of each net before the first that counts.
const WARM: u64 = 2;

/// What was found once.
#[derive(Debug, Serialize, Deserialize)]
struct Found {
    /// The layer ticket's net.
    ticket: Spec,
    /// The filter ticket's; nothing where the thinnest there is takes longer.
    filters: Option<Spec>,
    /// Seconds of a step of the filter ticket over the layer ticket's, median of pairs; of the thinnest where none was found.
    ratio: f64,
}

impl Bench<'_> {
    /// The filter ticket of `dense` with the fewest filters gone that takes no more CPU time a step than `ticket`, the net of
    /// that allocation; where there is none, the ratio that the thinnest ends at.
    pub fn as_quick(&self, net: &str, allocation: &str, dense: &Spec, ticket: &Spec) -> Result<Result<Spec, f64>> {
        let folder = self.out.join("timed");
        let file = folder.join(format!("{net}-{allocation}.json"));
        if let Some(found) = read::<Found>(&file)? {
            anyhow::ensure!(
                found.ticket == *ticket,
                "{}: is of another net; give another folder, or delete the file",
                file.display()
            );
            return Ok(found.filters.ok_or(found.ratio));
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().context("no thread to time on")?;
        let found = pool.install(|| -> Result<Found> {
            let (mut thinnest, mut best) = (0.0, 0.0);
            let mut first = true;
            let filters = filters::largest_that(dense, |thin| {
                let ratio = self.ratio(thin, ticket)?;
                if std::mem::take(&mut first) {
                    thinnest = ratio;
                }
                if ratio <= 1.0 {
                    best = ratio;
                }
                Ok(ratio <= 1.0)
            })?;
            let ratio = if filters.is_some() { best } else { thinnest };
            Ok(Found { ticket: ticket.clone(), filters, ratio })
        })?;
        fs::create_dir_all(&folder).with_context(|| format!("{}: cannot create the folder", folder.display()))?;
        record::write_whole(&file, &record::pretty(&found)?)?;
        Ok(found.filters.ok_or(found.ratio))
    }

    /// CPU seconds of a step of `a` over that of `b`: the median over steps taken in turns.
    fn ratio(&self, a: &Spec, b: &Spec) -> scruple_compress::Result<f64> {
        let train = &self.images.train;
        let trainer = |spec: &Spec| -> scruple_compress::Result<Trainer<'_>> {
            let recipe = self.config.recipe.recipe(0, self.config.recipe.epochs, train);
            let mut trainer = Trainer::from_weights(spec, recipe, train, Weights::start(&spec.graph()?, 0), None)?;
            trainer.run(WARM, &mut |_| std::ops::ControlFlow::Continue(()))?;
            Ok(trainer)
        };
        let (mut a, mut b) = (trainer(a)?, trainer(b)?);
        let step = |trainer: &mut Trainer<'_>| -> scruple_compress::Result<f64> {
            let before = thread_seconds();
            let until = trainer.step_number() + 1;
            trainer.run(until, &mut |_| std::ops::ControlFlow::Continue(()))?;
            Ok(thread_seconds() - before)
        };
        let mut ratios = Vec::with_capacity(PAIRS);
        for _ in 0..PAIRS {
            ratios.push(step(&mut a)? / step(&mut b)?.max(f64::MIN_POSITIVE));
        }
        ratios.sort_by(f64::total_cmp);
        Ok(ratios[PAIRS / 2])
    }
}
