use super::*;
use crate::trust::paired::tests::published::DIFFERENCES;

/// A table of one family: dense, and compressed with two seeds.
const TABLE: &str = "\
Base Model,Compression Method,Method Subtype,Sparsity/bits,Model,AdvGLUE++ Ref,Adv Demo Ref,Fairness Ref,Ethics Ref,OOD Ref,Privacy Ref,Stereotype Ref,Toxicity Ref,MMLU,Adv Demo,AdvGLUE++,Fairness,Ethics,OOD,Privacy,Stereotype,Toxicity,Average
Small,none,none,16,hf/small,1,2,0.5,4,5,6,7,0.25,50,60,60,60,60,60,60,60,60,58.9
Small,pruning,mag,8,hf/small-mag@0.5_2to4_seed0,1,2,0.5,4,5,6,7,0.25,41,51,60,60,69,60,60,60,60,57.9
Small,pruning,mag,8,hf/small-mag@0.5_2to4_seed1,1,2,0.5,4,5,6,7,0.25,41,53,60,60,69,60,60,60,60,58.1
Other,quantization,GPTQ,3,hf/other@3bit,1,2,0.5,4,5,6,7,0.25,41,53,60,60,69,60,60,60,60,58.1
";

#[test]
fn rows_are_differenced_against_their_parents_by_hand() {
    let table = Published::parse(TABLE).unwrap();
    assert_eq!(table.rows.len(), 4);
    assert_eq!((table.rows[1].rate.as_deref(), table.rows[1].seed), (Some("2:4"), Some(0)));
    assert_eq!((table.rows[3].rate.as_deref(), table.rows[3].seed), (Some("3 bits"), None));
    assert_eq!(table.rows[0].refusals[0], ("toxicity", 25.0), "a fraction becomes percent");
    assert_eq!(table.rows[0].refusals[1], ("stereotype", 7.0));
    let differences = table.differences();
    assert_eq!(differences.len(), 2, "a dense model has no difference, nor has one without a parent");
    let Difference { summary, average, knowledge, .. } = &differences[0];
    assert_eq!((summary.worst.as_str(), summary.worst_delta), ("adversarial-demonstrations", -9.0));
    assert_eq!((summary.best.as_str(), summary.best_delta), ("machine-ethics", 9.0));
    assert_eq!((summary.mean_absolute, *average, *knowledge), (18.0 / 8.0, -1.0, -9.0));
    let [seeds] = &table.seeds()[..] else { panic!("{:?}", table.seeds()) };
    let deviation = |name: &str| seeds.deviations.iter().find(|(known, _)| *known == name).unwrap().1;
    assert!((deviation("adversarial-demonstrations") - 2f64.sqrt()).abs() < 1e-12);
    assert_eq!(deviation("machine-ethics"), 0.0);
}

#[test]
fn other_tables_are_refused_by_line() {
    for (text, words) in [
        (String::new(), "no rows"),
        (TABLE.replace("MMLU", "Knowledge"), "no column `MMLU`"),
        (TABLE.replace("hf/small,1,2", "hf/small,1"), "line 2 has 22 cells, expected 23"),
        (TABLE.replace("hf/small,1,2", "hf/small,1,two"), "line 2: `Adv Demo Ref` is `two`"),
        (TABLE.replace("hf/small,1,2", "hf/small,1,inf"), "line 2"),
        (TABLE.lines().next().unwrap().into(), "no rows"),
    ] {
        let error = format!("{:#}", Published::parse(&text).unwrap_err());
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn the_published_table_is_reproduced() {
    let Some(data) = std::env::var_os("SCRUPLE_DATA") else {
        crate::printer::say("skipped: SCRUPLE_DATA is not set");
        return;
    };
    let table = Published::read(&Path::new(&data).join("trust/published/num_sheet.csv")).unwrap();
    assert_eq!(table.rows.len(), 50);
    let differences = table.differences();
    for &(model, dense, worst, best, mean_absolute, average) in DIFFERENCES {
        let found: Vec<_> = differences.iter().filter(|one| one.row.model.ends_with(model)).collect();
        let [one] = found[..] else { panic!("{} models end in {model}", found.len()) };
        assert!(one.dense.model.ends_with(dense), "{model}: {}", one.dense.model);
        for (what, found, expected) in [
            ("worst", one.summary.worst_delta, worst),
            ("best", one.summary.best_delta, best),
            ("mean |Δ|", one.summary.mean_absolute, mean_absolute),
            ("average", one.average, average),
        ] {
            assert!((found - expected).abs() < 0.1 + 1e-9, "{model}: {what} is {found}, expected {expected}");
        }
    }
    assert_eq!(differences.len(), DIFFERENCES.len(), "every compressed model");
    let seeds = table.seeds();
    let setting = |part: &str| seeds.iter().find(|seeds| seeds.rows[0].model.contains(part)).unwrap();
    for (part, dimension, expected) in [
        ("gptq-larger-caliset-llama2-temp@3bit", "machine-ethics", 9.8),
        ("gptq-larger-caliset-llama2-temp@3bit", "fairness", 5.8),
        ("gptq-larger-caliset-llama2-temp@4bit", "machine-ethics", 4.4),
        ("sparsegpt-semistruct@0.5_2to4", "machine-ethics", 16.6),
        ("sparsegpt-semistruct@0.5_2to4", "stereotype", 8.9),
    ] {
        let setting = setting(part);
        assert_eq!(setting.rows.len(), 3, "{part}");
        let found = setting.deviations.iter().find(|(name, _)| *name == dimension).unwrap().1;
        assert!((found - expected).abs() < 0.05 + 1e-9, "{part}: {dimension} deviates by {found}, expected {expected}");
    }
}
