//! An embedding table of a gigabyte that is never made: its weights share a pool of ten megabytes with those of a small
//! network, and all of it is trained on synthetic clicks.
//!
//! ```text
//! cargo run --release -p scruple-compress --example shared_embedding [STEPS]
//! ```
//!
//! Eight fields of half a million ids each, drawn as 1 / rank, say who sees what. A click depends on an effect of every id
//! and on how the ids of neighbouring fields go together. The network is
//!
//! ```text
//! x = rows of the table, one a field, side by side     h = max(0, W x)     logit = v · h + b
//! ```
//!
//! The table (4,194,304 × 64) and W (64 × 512) are read from one pool; v and b are numbers of their own. What is trained
//! are the pool's orthonormal coordinates; see `sharing::parametrise`. The program ends with its largest resident set,
//! which grows with the pool: pool, coordinates, gradient, what Adam remembers, and the roots that join the first two.

#![allow(clippy::print_stdout, reason = "a program that prints its results")]

use scruple_compress::{
    Result,
    data::random::Stream,
    nn::optimiser::{Optimiser, Rule},
    sharing::{SharedMatrix, Sharing, modules::Size},
};

const FIELDS: usize = 8;
const IDS: usize = 1 << 19;
const VALUES: usize = 64;
const HIDDEN: usize = 64;
const BATCH: usize = 1024;
const POOL_BYTES: usize = 10 << 20;
const RATE: f64 = 0.003;

/// Some impressions: ids (batch, fields) as rows of the table, and whether they were clicked.
struct Clicks {
    rows: Vec<u32>,
    clicked: Vec<bool>,
    /// Mean cost of the truth itself, which no model can beat.
    least_cost: f64,
}

/// A number of mean 0 and variance 1/3 or so that only depends on the ids.
fn effect(purpose: u64, id: u64) -> f64 {
    Stream::new(purpose, "example/effect", id).between(-1.0, 1.0)
}

fn clicks(number: u64) -> Clicks {
    let mut stream = Stream::new(7, "example/clicks", number);
    let (mut rows, mut clicked, mut least_cost) = (Vec::with_capacity(BATCH * FIELDS), Vec::new(), 0.0);
    for _ in 0..BATCH {
        // As 1 / rank: the logarithm of the rank is uniform.
        let id = |stream: &mut Stream| ((IDS as f64).powf(stream.between(0.0, 1.0)) as usize).min(IDS) - 1;
        let ids: Vec<usize> = (0..FIELDS).map(|_| id(&mut stream)).collect();
        let alone = ids.iter().enumerate().map(|(field, &id)| effect(field as u64, id as u64));
        let pairs = ids.windows(2).enumerate().map(|(field, pair)| {
            1.5 * effect(100 + field as u64, pair[0] as u64) * effect(200 + field as u64, pair[1] as u64)
        });
        let logit = alone.chain(pairs).sum::<f64>() - 1.0;
        let share = 1.0 / (1.0 + (-logit).exp());
        let yes = stream.between(0.0, 1.0) < share;
        least_cost -= if yes { share.ln() } else { (1.0 - share).ln() } / BATCH as f64;
        rows.extend(ids.iter().enumerate().map(|(field, id)| (field * IDS + id) as u32));
        clicked.push(yes);
    }
    Clicks { rows, clicked, least_cost }
}

/// The network, with the memory of one batch.
struct Network {
    table: SharedMatrix,
    hidden: SharedMatrix,
    x: Vec<f32>,
    h: Vec<f32>,
    logits: Vec<f32>,
}

impl Network {
    /// Logits of a batch, from the pool and (v, b).
    fn forward(&mut self, pool: &[f32], head: &[f32], rows: &[u32]) -> Result<()> {
        self.table.look_up(pool, rows, &mut self.x)?; // (batch · fields, values) = (batch, fields · values)
        self.hidden.forward(pool, &self.x, &mut self.h, BATCH); // (batch, hidden)
        self.h.iter_mut().for_each(|h| *h = h.max(0.0));
        for (logit, h) in self.logits.iter_mut().zip(self.h.chunks_exact(HIDDEN)) {
            *logit = head[HIDDEN] + h.iter().zip(head).map(|(h, v)| h * v).sum::<f32>();
        }
        Ok(())
    }

    /// Adds the gradients in the pool and in (v, b) of ∂logit (batch) to those given.
    fn backward(
        &self,
        pool: &[f32],
        head: &[f32],
        rows: &[u32],
        d: &[f32],
        of_pool: &mut [f32],
        of_head: &mut [f32],
    ) -> Result<()> {
        let mut dh = vec![0.0; BATCH * HIDDEN];
        for ((dh, h), d) in dh.chunks_exact_mut(HIDDEN).zip(self.h.chunks_exact(HIDDEN)).zip(d) {
            of_head[HIDDEN] += d;
            for at in 0..HIDDEN {
                of_head[at] += d * h[at];
                dh[at] = if h[at] > 0.0 { d * head[at] } else { 0.0 };
            }
        }
        let mut dx = vec![0.0; self.x.len()];
        self.hidden.grad_input(pool, &dh, &mut dx, BATCH);
        self.hidden.grad_pool(&dh, &self.x, BATCH, of_pool);
        self.table.grad_look_up(rows, &dx, of_pool)
    }

    /// Mean cost and ∂logit of the batch last run.
    fn cost(&self, clicked: &[bool]) -> (f64, Vec<f32>) {
        let (mut cost, mut d) = (0.0, Vec::with_capacity(BATCH));
        for (&logit, &clicked) in self.logits.iter().zip(clicked) {
            let share = 1.0 / (1.0 + (-f64::from(logit)).exp());
            cost -= if clicked { share.max(1e-12).ln() } else { (1.0 - share).max(1e-12).ln() } / BATCH as f64;
            d.push(((share - f64::from(u8::from(clicked))) / BATCH as f64) as f32);
        }
        (cost, d)
    }
}

/// The share of pairs (clicked, not clicked) that `scores` puts in the right order; ties count half.
fn auc(mut scores: Vec<(f32, bool)>) -> f64 {
    scores.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut below, mut right, mut at) = (0.0, 0.0, 0);
    while at < scores.len() {
        let same = scores[at..].iter().take_while(|score| score.0 == scores[at].0).count();
        let clicked = scores[at..at + same].iter().filter(|score| score.1).count() as f64;
        let others = same as f64 - clicked;
        right += clicked * (below + 0.5 * others);
        (below, at) = (below + others, at + same);
    }
    right / (below * (scores.len() as f64 - below))
}

/// The largest resident set of this process so far, where the system tells.
fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| 1024 * kilobytes)
}

fn main() -> Result<()> {
    let steps: u64 = std::env::args().nth(1).and_then(|steps| steps.parse().ok()).unwrap_or(2_000);
    // Powers of two near 1 / √inputs; what is read once a row need not be larger.
    let tensors = vec![
        ("table".to_string(), vec![FIELDS * IDS, VALUES], 0.0625),
        ("hidden".to_string(), vec![HIDDEN, FIELDS * VALUES], 0.0625),
    ];
    let sharing = Sharing::new(tensors, Size::Slots(POOL_BYTES / 4), 16, 1)?;
    let slots = sharing.fold.slots();
    let table_bytes = 4 * sharing.modules[0].values();
    println!(
        "a table of {} × {VALUES}, {:.0} MB, in a pool of {:.1} MB: {:.1} weights a slot",
        FIELDS * IDS,
        table_bytes as f64 / 1e6,
        4.0 * slots as f64 / 1e6,
        sharing.fold.rate()
    );
    let mut network = Network {
        table: SharedMatrix::new(&sharing, &sharing.modules[0]),
        hidden: SharedMatrix::new(&sharing, &sharing.modules[1]),
        x: vec![0.0; BATCH * FIELDS * VALUES],
        h: vec![0.0; BATCH * HIDDEN],
        logits: vec![0.0; BATCH],
    };
    // φ = √d ψ; the last numbers are v and b, which share nothing.
    let roots = sharing.roots();
    let mut stream = Stream::new(1, "example/pool", 0);
    let mut pool: Vec<f32> = (0..slots).map(|_| stream.normal() as f32).collect();
    let mut trained: Vec<f32> = pool.iter().zip(&roots).map(|(psi, root)| psi * root).collect();
    trained.extend((0..HIDDEN).map(|_| 0.125 * stream.normal() as f32).chain([0.0]));
    let rule = Rule::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 };
    let mut optimiser = Optimiser::flat(rule, trained.len());
    let mut gradient = vec![0.0; trained.len()];

    let mut recent = 0.0;
    for step in 0..steps {
        let clicks = clicks(step);
        let head = trained[slots..].to_vec();
        network.forward(&pool, &head, &clicks.rows)?;
        let (cost, d) = network.cost(&clicks.clicked);
        recent += cost;
        gradient.fill(0.0);
        let (of_pool, of_head) = gradient.split_at_mut(slots);
        network.backward(&pool, &head, &clicks.rows, &d, of_pool, of_head)?;
        of_pool.iter_mut().zip(&roots).for_each(|(gradient, root)| *gradient /= root);
        let rate = RATE * (1.0 - step as f64 / steps as f64);
        optimiser.step(&mut trained, &mut gradient, rate);
        pool.iter_mut().zip(&trained).zip(&roots).for_each(|((psi, phi), root)| *psi = phi / root);
        if (step + 1) % 200 == 0 {
            println!("step {}: {:.4} nats an impression", step + 1, recent / 200.0);
            recent = 0.0;
        }
    }

    let (mut cost, mut least, mut base, mut scores, batches) = (0.0, 0.0, 0usize, Vec::new(), 40);
    for number in 0..batches {
        let clicks = clicks((1 << 40) + number);
        network.forward(&pool, &trained[slots..], &clicks.rows)?;
        cost += network.cost(&clicks.clicked).0 / batches as f64;
        least += clicks.least_cost / batches as f64;
        base += clicks.clicked.iter().filter(|clicked| **clicked).count();
        scores.extend(network.logits.iter().copied().zip(clicks.clicked));
    }
    let share = base as f64 / scores.len() as f64;
    let entropy = -share * share.ln() - (1.0 - share) * (1.0 - share).ln();
    println!(
        "{} unseen impressions: {cost:.4} nats, AUC {:.4}; a constant {entropy:.4}, the truth itself {least:.4}",
        scores.len(),
        auc(scores)
    );
    if let Some(peak) = peak_rss() {
        let (peak, table) = (peak as f64 / 1e6, table_bytes as f64 / 1e6);
        println!("largest resident set {peak:.1} MB, {:.1} % of the table's {table:.0} MB", 100.0 * peak / table);
    }
    Ok(())
}
