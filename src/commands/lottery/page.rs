//! One page that holds everything of an experiment and fetches nothing: the gate and the words, pictures, tables.

use std::fmt::Write;

use anyhow::Result;

use super::{
    picture,
    report::{Compared, Costs, Report, Tried},
    tell::{attack_name, difference, nets},
};
use crate::curve::words::{clip, escape};

const STYLE: &str = include_str!("../../curve/page/page.css");

/// The page has no script, so that its policy lets none run.
const POLICY: &str =
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// The page.
pub fn html(report: &Report, costs: &Costs) -> Result<String> {
    let name = clip(&report.name, 80);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light\">\n<link rel=\"icon\" href=\"data:,\">\n\
         <title>Layer tickets: {0}</title>\n<style>\n{STYLE}.picture svg {{ max-width: 100%; height: auto; }}\n</style>\n</head>\n\
         <body>\n<header>\n<h1>Layer tickets before training: <span class=\"name\">{0}</span></h1>\n",
        escape(&name)
    );
    let _ = writeln!(
        page,
        "<p class=\"sub\">{}; {} epochs; {} paired seeds; margin {} points</p>",
        escape(&report.data),
        report.epochs,
        report.seeds.len(),
        report.margin
    );
    page += "<div class=\"verdict\">\n";
    for line in &report.verdict {
        let _ = writeln!(page, "<p>{}</p>", escape(line));
    }
    page += "</div>\n</header>\n<main>\n";
    page += &gates(report);
    let drawn = picture::all(report)?;
    for tried in &report.settings {
        page += &setting(tried, &drawn);
    }
    page += &cost(costs);
    page += &reading(report);
    let _ = write!(
        page,
        "</main>\n<footer><p>Drawn by scruple {} from records that hold every figure of this page.</p></footer>\n</body>\n</html>\n",
        escape(report.scruple)
    );
    Ok(page)
}

/// A table that scrolls inside of its own box.
fn table(label: &str, heads: &[&str], rows: &[Vec<String>]) -> String {
    let mut html = format!(
        "<div class=\"box\" role=\"region\" aria-label=\"{}\" tabindex=\"0\">\n<table>\n<thead><tr>",
        escape(label)
    );
    for head in heads {
        let _ = write!(html, "<th scope=\"col\">{}</th>", escape(head));
    }
    html += "</tr></thead>\n<tbody>\n";
    for row in rows {
        html += "<tr>";
        for (at, cell) in row.iter().enumerate() {
            let tag = if at == 0 { "th scope=\"row\"" } else { "td" };
            let _ = write!(html, "<{tag}>{}</{}>", escape(cell), &tag[..2]);
        }
        html += "</tr>\n";
    }
    html + "</tbody>\n</table>\n</div>\n"
}

fn gates(report: &Report) -> String {
    let row = |gate: &super::report::Gate| {
        vec![
            gate.net.clone(),
            gate.dense.clone(),
            format!("{:.2}", gate.dense_accuracy.mean),
            gate.shallow.clone(),
            format!("{:.2}", gate.shallow_accuracy.mean),
            gate.depth_gain.told(),
            if gate.pays { "depth pays" } else { "vacuous" }.into(),
        ]
    };
    let rows: Vec<Vec<String>> = report.gates.iter().map(row).collect();
    let heads = ["Net", "Dense", "%", "Shallowest", "%", "Depth gain, points", ""];
    format!(
        "<section id=\"gate\">\n<h2>Does depth pay at all?</h2>\n{}</section>\n",
        table("Depth gain", &heads, &rows)
    )
}

fn setting(tried: &Tried, drawn: &[(String, String)]) -> String {
    let name = crate::curve::place::file_name(&tried.name);
    let mut html = format!("<section id=\"{}\">\n<h2>{}</h2>\n", escape(&name), escape(&clip(&tried.name, 80)));
    for kind in ["accuracy", "allocation", "robustness"] {
        if let Some((_, svg)) = drawn.iter().find(|(file, _)| *file == format!("{kind}-{name}")) {
            let _ = writeln!(html, "<figure class=\"picture\" role=\"img\" aria-label=\"{kind}\">{svg}</figure>");
        }
    }
    let row = |one: &Compared| {
        let own = one.name == "dense";
        let or_dash = |text: String| if own { "–".into() } else { text };
        vec![
            one.name.clone(),
            format!("{:.2}", one.accuracy.mean),
            or_dash(one.difference.told()),
            or_dash(one.pluses()),
            or_dash(one.word()),
            format!("{:.3}", one.multiply_adds / 1e6),
            format!("{:.1}", one.parameters / 1e3),
            format!("{:.2}", one.activation_bytes / 1e6),
            one.corrupted.as_ref().map_or("–".into(), |(spread, _)| format!("{:.1}", spread.mean)),
            or_dash(difference(one.corrupted.as_ref())),
            or_dash(difference(one.lost.as_ref())),
            or_dash(one.mce.as_ref().map_or("–".into(), |mce| mce.around(1))),
            nets(one),
            one.note.clone(),
        ]
    };
    let rows: Vec<Vec<String>> = std::iter::once(&tried.dense).chain(&tried.compared).map(row).collect();
    let heads = [
        "Arm",
        "Accuracy %",
        "Difference, points",
        "(+)",
        "Verdict",
        "M MACs",
        "k params",
        "MB kept",
        "Corrupted %",
        "Difference, points",
        "Lost more, points",
        "mCE",
        "Nets",
        "Note",
    ];
    html += &table("Arms against the dense net", &heads, &rows);
    if !tried.dense.attacks.is_empty() {
        let mut heads = vec!["Arm".to_string()];
        for one in &tried.dense.attacks {
            heads.push(format!("{}: % right", attack_name(one)));
            heads.push("of those right unharmed".into());
            heads.push("Δ of the latter".into());
        }
        let row = |one: &Compared| {
            let mut row = vec![one.name.clone()];
            for attack in &one.attacks {
                row.push(format!("{:.1}", attack.accuracy));
                row.push(attack.given_clean.map_or("–".into(), |given| format!("{given:.1}")));
                row.push(attack.given_clean_difference.as_ref().map_or("–".into(), |apart| apart.told()));
            }
            row
        };
        let rows: Vec<Vec<String>> = std::iter::once(&tried.dense).chain(&tried.compared).map(row).collect();
        let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
        html += &table("Under attack", &heads, &rows);
    }
    if !tried.duels.is_empty() {
        let row = |duel: &Compared| {
            vec![duel.name.clone(), duel.against.clone(), duel.difference.told(), duel.pluses(), duel.word()]
        };
        let rows: Vec<Vec<String>> = tried.duels.iter().map(row).collect();
        html += &table("Head to head", &["Arm", "Against", "Difference, points", "(+)", "Verdict"], &rows);
    }
    for (name, why) in &tried.refused {
        let _ = writeln!(html, "<p class=\"caution\">{} is left out: {}</p>", escape(name), escape(why));
    }
    html + "</section>\n"
}

fn cost(costs: &Costs) -> String {
    let row = |one: &super::report::ArmCost| {
        vec![
            format!("{}, {}", one.setting, one.name),
            format!("{:.2}", one.cpu_seconds),
            format!("{:.3}", one.epoch_seconds),
            one.time_ratio.map_or("–".into(), |ratio| format!("{ratio:.2}")),
            one.of_ideal.map_or("–".into(), |share| format!("{share:.2}")),
            format!("{:.1}", one.joules),
            format!("{:.4}", one.grams),
        ]
    };
    let heads = ["Arm", "CPU s", "s an epoch", "time of dense", "of ideal", "J", "gCO₂e"];
    let rows: Vec<Vec<String>> = costs.arms.iter().map(row).collect();
    let mut html =
        format!("<section id=\"cost\">\n<h2>What it took</h2>\n{}", table("Cost of a training", &heads, &rows));
    let row = |one: &super::report::SearchCost| {
        let after = one.break_even.map_or("never".into(), |runs| format!("{runs:.2} trainings"));
        vec![format!("{}, {}", one.setting, one.criterion), format!("{:.3}", one.cpu_seconds), after]
    };
    let rows: Vec<Vec<String>> = costs.searches.iter().map(row).collect();
    html += &table("Cost of choosing", &["Choosing", "CPU s", "paid for after"], &rows);
    let carbon = costs.carbon;
    let _ = writeln!(
        html,
        "<p>Tables: {}. All trainings: {:.0} CPU s, {:.0} J, {:.2} gCO₂e at {} g/kWh, PUE {}, {} W TDP; {}.</p>\n</section>",
        escape(&costs.told()),
        costs.cpu_seconds,
        costs.joules,
        costs.grams,
        carbon.intensity,
        carbon.pue,
        carbon.tdp_watts,
        escape(&costs.methods.join("; "))
    );
    html
}

fn reading(report: &Report) -> String {
    let mut html = String::from(
        "<section id=\"reading\">\n<h2>How to read this</h2>\n<ul>\n\
         <li>Arms of one seed share first weights, order and augmentation; intervals are 95 % of the mean difference over seeds \
         (Student). <b>wins</b>: above 0; <b>matches</b>: above −ξ; <b>loses</b>: below −ξ; <b>undecided</b>: else.</li>\n\
         <li>Every interval stands for itself: of forty arms as good as the dense net, one is called better by chance, and one \
         worse.</li>\n\
         <li>Where depth does not pay, the shallowest net matches too and a ticket has proved nothing: <b>vacuous</b>.</li>\n\
         <li>(+): seeds above the dense net, of those that differ; a coin gives half.</li>\n\
         <li>Lost more: what corruption takes of the same images' accuracy, beyond what it takes of the dense net. mCE: errors under \
         corruption over the dense net's, in percent; our own corruptions, not CIFAR-10-C.</li>\n\
         <li>of ideal: share of time saved over share of multiply-adds saved.</li>\n",
    );
    for sums in &report.identities {
        let _ = writeln!(
            html,
            "<li>{}: over {} layers that feed a batch norm, |Σ θ g| is at most {:.1e} of Σ |θ g|, and Σ −θ (H g) within {:.1} % of \
             ‖g‖².</li>",
            escape(&sums.net),
            sums.layers,
            sums.signed_snip,
            100.0 * sums.grasp_apart
        );
    }
    html + "</ul>\n</section>\n"
}
