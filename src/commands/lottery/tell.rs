//! The report as tables, the gate first.

use std::path::PathBuf;

use super::compare::Spread;
use super::report::{Compared, Costs, Report, Tried, UnderAttack};
use crate::printer::{self, Table};

/// A difference and its interval, or a dash.
pub fn difference(found: Option<&(Spread, Spread)>) -> String {
    found.map_or("-".into(), |(_, apart)| apart.told())
}

/// Nets an arm stands for, each once, with how often.
pub fn nets(one: &Compared) -> String {
    let mut found: Vec<(&str, usize)> = Vec::new();
    for arm in one.arms.iter().flatten() {
        match found.iter_mut().find(|(name, _)| name == arm) {
            Some((_, count)) => *count += 1,
            None => found.push((arm, 1)),
        }
    }
    found.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let told =
        |(name, count): &(&str, usize)| if *count > 1 { format!("{name} ×{count}") } else { (*name).to_string() };
    found.iter().map(told).collect::<Vec<_>>().join(", ")
}

/// Prints a report.
pub fn print(report: &Report, costs: &Costs, drawn: &[PathBuf]) {
    for gate in &report.gates {
        printer::data(gate.told());
    }
    printer::data(format!(
        "{}: {}; {} epochs; seeds {:?}; margin ξ = {} points",
        report.name, report.data, report.epochs, report.seeds, report.margin
    ));
    for sums in &report.identities {
        printer::data(format!(
            "{}: over {} layers that feed a batch norm, |Σ θ g| is at most {:.1e} of Σ |θ g|, and Σ −θ (H g) within {:.1} % of \
             ‖g‖²: signed SNIP says nothing here, and GraSP is the squared gradient",
            sums.net,
            sums.layers,
            sums.signed_snip,
            100.0 * sums.grasp_apart
        ));
    }
    for tried in &report.settings {
        setting(tried);
    }
    cost(costs);
    printer::data("");
    report.verdict.iter().for_each(printer::data);
    for path in drawn {
        printer::data(path.display().to_string());
    }
}

fn setting(tried: &Tried) {
    printer::data("");
    printer::data(format!(
        "{}: {} out of {:?} blocks a stage; differences to the dense net in points, 95 % over paired seeds; (+): seeds above it, of \
         those that differ (a coin gives half)",
        tried.name, tried.removed, tried.blocks
    ));
    let mut table = Table::new([
        "arm",
        "accuracy %",
        "difference",
        "(+)",
        "verdict",
        "M MACs",
        "k params",
        "MB kept",
        "corrupted %",
        "difference",
        "lost more",
        "mCE",
        "nets",
    ]);
    for one in std::iter::once(&tried.dense).chain(&tried.compared) {
        let own = one.name == "dense";
        table.row([
            one.name.clone(),
            format!("{:.2}", one.accuracy.mean),
            if own { "-".into() } else { one.difference.told() },
            if own { "-".into() } else { one.pluses() },
            if own { "-".into() } else { one.word() },
            format!("{:.3}", one.multiply_adds / 1e6),
            format!("{:.1}", one.parameters / 1e3),
            format!("{:.2}", one.activation_bytes / 1e6),
            one.corrupted.as_ref().map_or("-".into(), |(spread, _)| format!("{:.1}", spread.mean)),
            difference(one.corrupted.as_ref().filter(|_| !own)),
            difference(one.lost.as_ref().filter(|_| !own)),
            one.mce.as_ref().filter(|_| !own).map_or("-".into(), |mce| mce.around(1)),
            nets(one),
        ]);
    }
    table.print();
    attacks(tried);
    if !tried.duels.is_empty() {
        let mut table = Table::new(["head to head", "against", "points", "(+)", "verdict"]);
        for duel in &tried.duels {
            table.row([duel.name.clone(), duel.against.clone(), duel.difference.told(), duel.pluses(), duel.word()]);
        }
        table.print();
    }
    for chosen in tried.chosen.iter().filter_map(|chosen| Some((&chosen.criterion, chosen.label.as_ref()?))) {
        printer::data(format!("{}: {}", chosen.0, chosen.1));
    }
    for (criterion, why) in &tried.refused {
        printer::data(format!("{criterion} is left out: {why}"));
    }
}

/// An attack and its strength.
pub fn attack_kind(one: &UnderAttack) -> String {
    let kind = if one.steps == 1 { "FGSM".to_string() } else { format!("PGD-{}", one.steps) };
    format!("{kind} {}/255", one.epsilon)
}

/// What an attack is called.
pub fn attack_name(one: &UnderAttack) -> String {
    format!("{}, {} images", attack_kind(one), one.images)
}

fn attacks(tried: &Tried) {
    if tried.dense.attacks.is_empty() {
        return;
    }
    let mut rows = vec![vec!["under attack: % right / % of those right unharmed".to_string()]];
    rows[0].extend(tried.dense.attacks.iter().map(attack_name));
    for one in std::iter::once(&tried.dense).chain(&tried.compared) {
        let mut row = vec![one.name.clone()];
        row.extend(one.attacks.iter().map(|found| {
            let given = found.given_clean.map_or("-".into(), |given| format!("{given:.1}"));
            format!("{:.1} / {given}", found.accuracy)
        }));
        rows.push(row);
    }
    Table::of(rows).print();
}

fn cost(costs: &Costs) {
    printer::data("");
    if !costs.arms.is_empty() {
        let mut table = Table::new(["took", "arm", "CPU s", "s an epoch", "time of dense", "of ideal", "J", "gCO2e"]);
        for one in &costs.arms {
            table.row([
                one.setting.clone(),
                one.name.clone(),
                format!("{:.2}", one.cpu_seconds),
                format!("{:.3}", one.epoch_seconds),
                one.time_ratio.map_or("-".into(), |ratio| format!("{ratio:.2}")),
                one.of_ideal.map_or("-".into(), |share| format!("{share:.2}")),
                format!("{:.1}", one.joules),
                format!("{:.4}", one.grams),
            ]);
        }
        table.print();
    }
    if !costs.searches.is_empty() {
        let mut table = Table::new(["choosing", "criterion", "CPU s", "paid for after"]);
        for one in &costs.searches {
            table.row([
                one.setting.clone(),
                one.criterion.clone(),
                format!("{:.3}", one.cpu_seconds),
                one.break_even.map_or("never".into(), |runs| format!("{runs:.2} trainings")),
            ]);
        }
        table.print();
    }
    printer::data(costs.told());
    let carbon = costs.carbon;
    printer::data(format!(
        "all trainings: {:.0} CPU s, {:.0} J, {:.2} gCO2e at {} g/kWh, PUE {}, {} W TDP; {}",
        costs.cpu_seconds,
        costs.joules,
        costs.grams,
        carbon.intensity,
        carbon.pue,
        carbon.tdp_watts,
        costs.methods.join("; ")
    ));
}
