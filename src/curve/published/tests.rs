//! The parser against the table itself, where it lies on this machine, and against lines that do not fit.

use super::*;
use crate::trust::paired::Summary;

type Difference = (&'static str, f64, f64, f64, f64, Option<f64>);

/// End of a model's name; worst and best Δ and mean |Δ| over eight dimensions, Δ of the average with knowledge, and Δ of
/// knowledge alone: what differencing the table by hand gave, rounded to 0.1 (the last only where that was noted exactly).
const DIFFERENCES: &[Difference] = &[
    ("llama-2-13b-chat-awq@8bit_128g", -0.8, 0.6, 0.3, -0.1, Some(0.0)),
    ("llama-2-13b-chat-gptq@8bit_128g", -0.5, 2.6, 0.6, 0.3, Some(0.0)),
    ("llama-2-13b-awq@8bit_128g", -0.7, 1.8, 0.4, 0.2, None),
    ("llama-2-13b-gptq@8bit_128g", -1.9, 0.3, 0.5, -0.2, None),
    ("vicuna-13b-v1.3-awq@8bit_128g", -0.8, 1.4, 0.5, 0.0, None),
    ("vicuna-13b-v1.3_gptq@8bit_128g", -1.7, 20.1, 3.2, 2.1, None),
    ("llama-2-13b-chat-awq@4bit_128g", -5.0, 6.9, 2.1, 0.2, Some(-0.2)),
    ("chat-gptq-larger-caliset-llama2-temp@4bit_128g_0seed", -4.4, 14.8, 4.4, 0.6, Some(-1.5)),
    ("chat-gptq-larger-caliset-llama2-temp@4bit_128g_1seed", -6.4, 17.7, 6.1, 0.5, Some(-1.5)),
    ("chat-gptq-larger-caliset-llama2-temp@4bit_128g_2seed", -4.0, 9.0, 4.0, -1.0, Some(-1.5)),
    ("llama-2-13b-awq@4bit_128g", -4.0, 2.7, 2.2, -0.9, Some(-0.7)),
    ("llama-2-13b-gptq@4bit_128g", -5.7, 4.3, 3.7, -2.4, Some(-1.2)),
    ("vicuna-13b-v1.3-awq@4bit_128g", -6.7, 4.3, 2.6, 0.0, Some(-0.8)),
    ("vicuna-13b-v1.3_gptq@4bit_128g", -18.4, 26.9, 11.3, 5.2, Some(-1.2)),
    ("llama-2-7b-chat-gptq@4bit_128g_seed0_llama-2", -12.9, 5.7, 4.7, -3.2, Some(-1.6)),
    ("llama-2-70b-chat-gptq@4bit_128g_seed0_llama-2", -3.7, 16.9, 3.5, 1.1, Some(-0.9)),
    ("chat-awq-128example-randomseed@3bit_128g_0seed", -7.7, 1.2, 4.7, -4.2, Some(-2.1)),
    ("chat-awq-128example-randomseed@3bit_128g_1seed", -9.7, 0.9, 3.5, -3.1, Some(-2.1)),
    ("chat-awq-128example-randomseed@3bit_128g_2seed", -7.9, 2.1, 4.2, -3.4, Some(-2.1)),
    ("chat-gptq-larger-caliset-llama2-temp@3bit_128g_0seed", -51.5, 2.6, 14.1, -12.5, Some(-8.1)),
    ("chat-gptq-larger-caliset-llama2-temp@3bit_128g_1seed", -46.9, 5.6, 15.4, -13.4, Some(-8.1)),
    ("chat-gptq-larger-caliset-llama2-temp@3bit_128g_2seed", -48.0, 0.1, 15.7, -14.9, Some(-8.1)),
    ("llama-2-13b-awq@3bit_128g", -10.3, 13.0, 5.2, 0.9, Some(-3.9)),
    ("llama-2-13b-gptq@3bit_128g", -10.4, 5.1, 4.0, -2.1, Some(-7.3)),
    ("vicuna-13b-v1.3-awq@3bit_128g", -8.0, 2.4, 3.4, -2.7, Some(-4.2)),
    ("vicuna-13b-v1.3-gptq@3bit_128g", -13.1, 21.2, 10.3, 0.7, Some(-7.9)),
    ("chat_magnitude_semistruct@0.5_2to4", -40.2, 9.0, 16.8, -15.1, Some(-19.2)),
    ("chat-sparsegpt-semistruct@0.5_2to4_seed0", -18.6, 8.2, 8.8, -6.8, Some(-13.3)),
    ("chat-sparsegpt-semistruct@0.5_2to4_seed1", -29.2, 2.9, 10.0, -9.8, Some(-13.3)),
    ("chat-sparsegpt-semistruct@0.5_2to4_seed2", -20.7, 3.6, 10.2, -9.0, Some(-13.3)),
    ("chat-wanda@0.5_2to4", -31.8, 6.2, 15.4, -13.8, Some(-17.9)),
    ("chat-magnitude-semistruct@0.5_4to8", -18.4, 9.4, 8.0, -6.3, Some(-12.1)),
    ("chat-sparsegpt-semistruct@0.5_4to8", -17.9, 2.4, 6.7, -6.2, Some(-10.2)),
    ("chat-wanda-semistruct@0.5_4to8", -12.9, 4.3, 6.7, -5.9, Some(-11.7)),
    ("chat-magnitude-semistruct@0.5_1to2", -49.1, 12.6, 15.9, -14.4, Some(-27.9)),
    ("chat-sparsegpt-semistruct@0.5_1to2", -37.8, 13.4, 18.4, -13.5, Some(-21.3)),
    ("chat-wanda-semistruct@0.5_1to2", -41.1, 9.8, 16.8, -13.0, Some(-26.2)),
    ("llama-2-13b_magnitude_semistruct@0.5_2to4", -28.3, 25.6, 13.3, -3.9, Some(-25.8)),
    ("llama-2-13b_sparsegpt_semistruct@0.5_2to4", -16.8, 9.0, 6.9, -2.5, Some(-18.1)),
    ("llama-2-13b-wanda@0.5_2to4", -27.2, 39.6, 13.1, -2.0, Some(-21.0)),
    ("v1.3_magnitude_semistruct@0.5_2to4", -14.2, 22.4, 10.3, 0.2, Some(-21.8)),
    ("v1.3_sparsegpt_semistruct@0.5_2to4", -29.4, 22.7, 17.0, -2.7, Some(-15.2)),
    ("vicuna-13b-v1.3-wanda@0.5_2to4", -38.0, 28.1, 20.1, -2.4, Some(-19.0)),
];

fn table() -> Option<Published> {
    let found = usual_place();
    if found.is_none() {
        crate::printer::say("skipped: SCRUPLE_DATA does not lead to trust/published/num_sheet.csv");
    }
    Some(Published::read(&found?).unwrap())
}

#[test]
fn differencing_the_published_table_gives_what_it_gave_by_hand() {
    let Some(table) = table() else { return };
    assert_eq!(table.rows.len(), 50);
    let changes = table.changes();
    assert_eq!(changes.len(), DIFFERENCES.len(), "every compressed model has its dense parent");
    for &(model, worst, best, mean_absolute, average, knowledge) in DIFFERENCES {
        let found: Vec<_> = changes.iter().filter(|change| change.row.checkpoint.ends_with(model)).collect();
        assert_eq!(found.len(), 1, "models that end in {model}");
        let deltas = || DIMENSIONS.iter().zip(found[0].deltas).map(|((_, name), delta)| (*name, delta.unwrap()));
        let trust = Summary::of(deltas().take(8)).unwrap();
        let all = Summary::of(deltas()).unwrap();
        for (what, found, expected) in [
            ("worst", trust.worst_delta, Some(worst)),
            ("best", trust.best_delta, Some(best)),
            ("mean |Δ|", trust.mean_absolute, Some(mean_absolute)),
            ("average", all.mean, Some(average)),
            ("knowledge", found[0].deltas[8].unwrap(), knowledge),
        ] {
            let Some(expected) = expected else { continue };
            assert!((found - expected).abs() < 0.1 + 1e-9, "{model}: {what} is {found}, expected {expected}");
        }
    }
}

#[test]
fn rates_seeds_and_refusals_of_the_published_table_are_told() {
    let Some(table) = table() else { return };
    let row = |end: &str| table.rows.iter().find(|row| row.checkpoint.ends_with(end)).unwrap();
    let sparse = row("chat-sparsegpt-semistruct@0.5_2to4_seed2");
    assert_eq!((sparse.kind, sparse.rate.as_str(), sparse.seed), (Kind::Sparse, "2:4", Some(2)));
    assert_eq!((sparse.sparsity, sparse.bits), (Some(0.5), None));
    let quantised = row("randomseed@3bit_128g_1seed");
    assert_eq!((quantised.kind, quantised.rate.as_str(), quantised.seed), (Kind::Quantised, "3 bits", Some(1)));
    let dense = row("/Llama-2-13b-chat-hf");
    assert_eq!((dense.kind, dense.model.as_str()), (Kind::Dense, "LLAMA2 13b Chat"));
    // One unit: the table has 0.7 and 0.3 for these two, and percent elsewhere.
    let percent = |at: usize, expected: f64| assert!((dense.refusals[at].unwrap() - expected).abs() < 1e-9);
    percent(0, 70.0);
    percent(3, 30.0);
    percent(1, 71.0);
    assert!(table.rows.iter().flat_map(|row| row.refusals).all(|rate| (0.0..=100.0).contains(&rate.unwrap())));
}

const HEADER: &str = "Base Model,Compression Method,Method Subtype,Sparsity/bits,Model,AdvGLUE++ Ref,Adv Demo Ref,Fairness Ref,\
Ethics Ref,OOD Ref,Privacy Ref,Stereotype Ref,Toxicity Ref,MMLU,Adv Demo,AdvGLUE++,Fairness,Ethics,OOD,Privacy,Stereotype,\
Toxicity,Average";

fn read(text: &str) -> anyhow::Result<Published> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("sheet.csv");
    fs::write(&path, text)?;
    Published::read(&path)
}

#[test]
fn quoted_and_empty_cells_are_read() {
    let numbers = "0,0,0,0,0,0,0,0,1,2,3,4,5,6,7,8,,9";
    let table = read(&format!("{HEADER}\r\n\"a, \"\"b\"\"\",none,none,16,hf/x/y,{numbers}\r\n")).unwrap();
    assert_eq!(table.rows[0].model, "a, \"b\"");
    assert_eq!(table.rows[0].checkpoint, "x/y");
    assert_eq!(table.rows[0].scores[0], None, "an empty cell is no number");
    assert_eq!(table.rows[0].scores[8], Some(1.0));
    assert!(table.changes().is_empty());
}

#[test]
fn what_does_not_fit_is_said_with_its_line() {
    let zeros = vec!["0"; 18].join(",");
    let line = |start: &str| format!("{HEADER}\nm,none,none,16,x,{zeros}\n{start},{zeros}\n");
    for (text, expected) in [
        (String::new(), "is empty, expected a table"),
        ("a,b\n1,2\n".into(), "has no column `Base Model`"),
        (format!("{HEADER}\na,b\n"), "line 2 has 2 cells, expected 23"),
        (line("m,distillation,x,8,y"), "line 3 has `distillation` as `Compression Method`"),
        (line("m,quantization,x,,y"), "line 3 is quantised and does not say"),
        (line("m,quantization,x,few,y"), "line 3 has `few` as `Sparsity/bits`"),
        (line("m,quantization,x,NaN,y"), "line 3 has `NaN` as `Sparsity/bits`"),
        (line("m,pruning,x,8,y"), "line 3 is pruned, and `y` does not end"),
        (line("m,pruning,x,8,y@7_2to4"), "line 3 is pruned, and `y@7_2to4` does not end"),
    ] {
        let error = format!("{:#}", read(&text).unwrap_err());
        assert!(error.contains(expected) && error.contains("sheet.csv"), "{error}, expected {expected}");
    }
    let error = format!("{:#}", Published::read(Path::new("nowhere.csv")).unwrap_err());
    assert!(error.starts_with("nowhere.csv: cannot read the published scores"), "{error}");
}
