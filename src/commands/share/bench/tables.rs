//! What a suite found, as tables.

use scruple_compress::sharing::{
    Scales,
    bench::{
        Accounting, Method,
        equality::{Equality, MOST_ACCURACY},
        interval::Interval,
        pareto::{Pareto, Row},
        stability::{MOST_SPREAD, Stability},
        train::Score,
    },
};

use crate::printer::{self, Table};

/// The pairs of runs, and the ancestors.
pub fn equality(found: &Equality) {
    let mut table =
        Table::new(["rule", "rate", "scales", "steps", "apart", "control", "at most", "dense", "shared", "equal"]);
    for pair in &found.pairs {
        let scales = match pair.scales {
            Scales::PowerOfTwo => "power of two",
            Scales::Rms => "root mean square",
        };
        table.row([
            pair.descent.name().to_string(),
            pair.learning_rate.to_string(),
            scales.to_string(),
            pair.steps.to_string(),
            apart(pair.difference),
            apart(pair.control),
            format!("{:.0e}", pair.most()),
            accuracy(&pair.dense),
            accuracy(&pair.shared),
            match (pair.is_judged(), pair.passes()) {
                (false, _) => "not judged",
                (true, true) => "yes",
                (true, false) => "no",
            }
            .to_string(),
        ]);
    }
    table.print();
    printer::data("");
    printer::data(
        "control: how far off a dense net ends that begins with every weight's last bit flipped. Like it, pairs",
    );
    printer::data(
        "whose scales round stay within rounding until an activation falls on the other side of zero; they are",
    );
    printer::data("not judged");
    printer::data("");
    let mut table = Table::new(["at rate 1", "slots used", "accuracy"]);
    table.row(["fold".into(), format!("{:.3}", found.load_factor), accuracy(&found.pairs[0].shared)]);
    for ancestor in &found.ancestors {
        table.row([ancestor.method.clone(), format!("{:.3}", ancestor.load_factor), accuracy(&ancestor.score)]);
    }
    table.print();
    printer::data("");
    printer::data(match found.passes {
        true => format!("equal: a pool of {} slots trains as the dense net does", found.weights),
        false => format!(
            "not equal: a pair of runs that is judged is further apart than it may be, or its accuracies than {MOST_ACCURACY}, or has too \
             few steps"
        ),
    });
}

fn apart(difference: Option<f64>) -> String {
    difference.map_or_else(|| "a run did not end".to_string(), |apart| format!("{apart:.1e}"))
}

fn accuracy(score: &Score) -> String {
    match score.diverged {
        Some(step) => format!("div@{step}"),
        None => format!("{:.4}", score.accuracy()),
    }
}

/// Accuracies over C.
pub fn stability(found: &Stability) {
    let mut heads = vec!["trained".to_string(), "rule".to_string(), "rate".to_string()];
    heads.extend(found.deviations.iter().map(|deviation| format!("C = {deviation}")));
    heads.push("spread".to_string());
    let mut rows = vec![heads];
    for line in &found.lines {
        let mut row = vec![line.form.name().to_string(), line.descent.name().to_string(), format!("{}x", line.rate)];
        row.extend(line.scores.iter().map(accuracy));
        row.push(format!("{:.4}", line.spread));
        rows.push(row);
    }
    Table::of(rows).print();
    printer::data("");
    printer::data(format!(
        "{}: the largest spread in the coordinates is {:.4} (below {MOST_SPREAD} asked for), and {} of the runs of the plain \
         pool did not end (1 or more asked for)",
        if found.passes { "stable" } else { "not as asked for" },
        found.spread,
        found.diverged
    ));
}

/// Accuracies at equal numbers and at equal bytes.
pub fn pareto(found: &Pareto) {
    let fixed = found.rows.iter().filter(|row| row.rate.is_none());
    let mut table = Table::new(["net", "bytes", "accuracy", "learning rate"]);
    for row in fixed {
        table.row([
            row.method.name().into(),
            row.bytes.to_string(),
            interval(&row.accuracy),
            row.learning_rate.to_string(),
        ]);
    }
    table.print();
    for (accounting, title) in [
        (Accounting::Values, "at equal numbers (the paper's accounting)"),
        (Accounting::Bytes, "at equal bytes (values, and where they belong)"),
    ] {
        printer::data("");
        printer::data(title);
        by_rate(found, accounting, &|row| interval(&row.accuracy));
    }
    printer::data("");
    printer::data("learning rates, chosen on images set apart");
    by_rate(found, Accounting::Values, &|row| row.learning_rate.to_string());
    printer::data("");
    for crossover in &found.crossovers {
        printer::data(&crossover.sentence);
    }
}

fn by_rate(found: &Pareto, accounting: Accounting, cell: &dyn Fn(&Row) -> String) {
    let mut rates: Vec<f64> = found.rows.iter().filter_map(|row| row.rate).collect();
    rates.sort_by(f64::total_cmp);
    rates.dedup();
    let mut rows = vec![vec!["rate".to_string()]];
    rows[0].extend(rates.iter().map(|rate| format!("{rate}x")));
    for method in Method::ALL {
        let counted = |row: &&Row| row.method == method && row.accounting.is_none_or(|by| by == accounting);
        let of: Vec<&Row> = found.rows.iter().filter(counted).filter(|row| row.rate.is_some()).collect();
        if of.is_empty() {
            continue;
        }
        let mut row = vec![method.name().to_string()];
        let at = |rate: &f64| of.iter().find(|row| row.rate == Some(*rate)).map_or_else(|| "-".into(), |row| cell(row));
        row.extend(rates.iter().map(at));
        rows.push(row);
    }
    Table::of(rows).print();
}

fn interval(found: &Interval) -> String {
    match found.high {
        Some(high) => format!("{:.3} ± {:.3}", found.mean, high - found.mean),
        None => format!("{:.3}", found.mean),
    }
}
