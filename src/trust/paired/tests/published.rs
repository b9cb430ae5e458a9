//! The published scores of compressed models (Hong et al. 2024), differenced against their dense parents.

use std::collections::HashMap;

use super::super::{Summary, between_seeds};

/// The eight dimensions, as the table names them.
const DIMENSIONS: [&str; 8] =
    ["Toxicity", "Stereotype", "Privacy", "Fairness", "AdvGLUE++", "OOD", "Adv Demo", "Ethics"];

/// End of a model's name, its dense parent's; worst and best Δ, mean |Δ| over the dimensions, and Δ of the average with MMLU:
/// what differencing the table by hand gave, rounded to 0.1.
pub const DIFFERENCES: &[(&str, &str, f64, f64, f64, f64)] = &[
    ("llama-2-13b-chat-awq@8bit_128g", "Llama-2-13b-chat-hf", -0.8, 0.6, 0.3, -0.1),
    ("llama-2-13b-chat-gptq@8bit_128g", "Llama-2-13b-chat-hf", -0.5, 2.6, 0.6, 0.3),
    ("llama-2-13b-awq@8bit_128g", "Llama-2-13b-hf", -0.7, 1.8, 0.4, 0.2),
    ("llama-2-13b-gptq@8bit_128g", "Llama-2-13b-hf", -1.9, 0.3, 0.5, -0.2),
    ("vicuna-13b-v1.3-awq@8bit_128g", "vicuna-13b-v1.3", -0.8, 1.4, 0.5, 0.0),
    ("vicuna-13b-v1.3_gptq@8bit_128g", "vicuna-13b-v1.3", -1.7, 20.1, 3.2, 2.1),
    ("llama-2-13b-chat-awq@4bit_128g", "Llama-2-13b-chat-hf", -5.0, 6.9, 2.1, 0.2),
    ("chat-gptq-larger-caliset-llama2-temp@4bit_128g_0seed", "Llama-2-13b-chat-hf", -4.4, 14.8, 4.4, 0.6),
    ("chat-gptq-larger-caliset-llama2-temp@4bit_128g_1seed", "Llama-2-13b-chat-hf", -6.4, 17.7, 6.1, 0.5),
    ("chat-gptq-larger-caliset-llama2-temp@4bit_128g_2seed", "Llama-2-13b-chat-hf", -4.0, 9.0, 4.0, -1.0),
    ("llama-2-13b-awq@4bit_128g", "Llama-2-13b-hf", -4.0, 2.7, 2.2, -0.9),
    ("llama-2-13b-gptq@4bit_128g", "Llama-2-13b-hf", -5.7, 4.3, 3.7, -2.4),
    ("vicuna-13b-v1.3-awq@4bit_128g", "vicuna-13b-v1.3", -6.7, 4.3, 2.6, 0.0),
    ("vicuna-13b-v1.3_gptq@4bit_128g", "vicuna-13b-v1.3", -18.4, 26.9, 11.3, 5.2),
    ("llama-2-7b-chat-gptq@4bit_128g_seed0_llama-2", "Llama-2-7b-chat-hf", -12.9, 5.7, 4.7, -3.2),
    ("llama-2-70b-chat-gptq@4bit_128g_seed0_llama-2", "Llama-2-70b-chat-hf", -3.7, 16.9, 3.5, 1.1),
    ("chat-awq-128example-randomseed@3bit_128g_0seed", "Llama-2-13b-chat-hf", -7.7, 1.2, 4.7, -4.2),
    ("chat-awq-128example-randomseed@3bit_128g_1seed", "Llama-2-13b-chat-hf", -9.7, 0.9, 3.5, -3.1),
    ("chat-awq-128example-randomseed@3bit_128g_2seed", "Llama-2-13b-chat-hf", -7.9, 2.1, 4.2, -3.4),
    ("chat-gptq-larger-caliset-llama2-temp@3bit_128g_0seed", "Llama-2-13b-chat-hf", -51.5, 2.6, 14.1, -12.5),
    ("chat-gptq-larger-caliset-llama2-temp@3bit_128g_1seed", "Llama-2-13b-chat-hf", -46.9, 5.6, 15.4, -13.4),
    ("chat-gptq-larger-caliset-llama2-temp@3bit_128g_2seed", "Llama-2-13b-chat-hf", -48.0, 0.1, 15.7, -14.9),
    ("llama-2-13b-awq@3bit_128g", "Llama-2-13b-hf", -10.3, 13.0, 5.2, 0.9),
    ("llama-2-13b-gptq@3bit_128g", "Llama-2-13b-hf", -10.4, 5.1, 4.0, -2.1),
    ("vicuna-13b-v1.3-awq@3bit_128g", "vicuna-13b-v1.3", -8.0, 2.4, 3.4, -2.7),
    ("vicuna-13b-v1.3-gptq@3bit_128g", "vicuna-13b-v1.3", -13.1, 21.2, 10.3, 0.7),
    ("chat_magnitude_semistruct@0.5_2to4", "Llama-2-13b-chat-hf", -40.2, 9.0, 16.8, -15.1),
    ("chat-sparsegpt-semistruct@0.5_2to4_seed0", "Llama-2-13b-chat-hf", -18.6, 8.2, 8.8, -6.8),
    ("chat-sparsegpt-semistruct@0.5_2to4_seed1", "Llama-2-13b-chat-hf", -29.2, 2.9, 10.0, -9.8),
    ("chat-sparsegpt-semistruct@0.5_2to4_seed2", "Llama-2-13b-chat-hf", -20.7, 3.6, 10.2, -9.0),
    ("chat-wanda@0.5_2to4", "Llama-2-13b-chat-hf", -31.8, 6.2, 15.4, -13.8),
    ("chat-magnitude-semistruct@0.5_4to8", "Llama-2-13b-chat-hf", -18.4, 9.4, 8.0, -6.3),
    ("chat-sparsegpt-semistruct@0.5_4to8", "Llama-2-13b-chat-hf", -17.9, 2.4, 6.7, -6.2),
    ("chat-wanda-semistruct@0.5_4to8", "Llama-2-13b-chat-hf", -12.9, 4.3, 6.7, -5.9),
    ("chat-magnitude-semistruct@0.5_1to2", "Llama-2-13b-chat-hf", -49.1, 12.6, 15.9, -14.4),
    ("chat-sparsegpt-semistruct@0.5_1to2", "Llama-2-13b-chat-hf", -37.8, 13.4, 18.4, -13.5),
    ("chat-wanda-semistruct@0.5_1to2", "Llama-2-13b-chat-hf", -41.1, 9.8, 16.8, -13.0),
    ("llama-2-13b_magnitude_semistruct@0.5_2to4", "Llama-2-13b-hf", -28.3, 25.6, 13.3, -3.9),
    ("llama-2-13b_sparsegpt_semistruct@0.5_2to4", "Llama-2-13b-hf", -16.8, 9.0, 6.9, -2.5),
    ("llama-2-13b-wanda@0.5_2to4", "Llama-2-13b-hf", -27.2, 39.6, 13.1, -2.0),
    ("v1.3_magnitude_semistruct@0.5_2to4", "vicuna-13b-v1.3", -14.2, 22.4, 10.3, 0.2),
    ("v1.3_sparsegpt_semistruct@0.5_2to4", "vicuna-13b-v1.3", -29.4, 22.7, 17.0, -2.7),
    ("vicuna-13b-v1.3-wanda@0.5_2to4", "vicuna-13b-v1.3", -38.0, 28.1, 20.1, -2.4),
];

/// Model name to column to number, of the table where it lies on this machine.
fn table() -> Option<Vec<HashMap<String, String>>> {
    let Some(data) = std::env::var_os("SCRUPLE_DATA") else {
        crate::printer::say("skipped: SCRUPLE_DATA is not set");
        return None;
    };
    let text = std::fs::read_to_string(std::path::Path::new(&data).join("trust/published/num_sheet.csv")).unwrap();
    let mut lines = text.lines().map(|line| line.split(',').map(String::from).collect::<Vec<_>>());
    let header = lines.next().unwrap();
    Some(lines.map(|cells| header.iter().cloned().zip(cells).collect()).collect())
}

fn number(row: &HashMap<String, String>, column: &str) -> f64 {
    row[column].parse().unwrap()
}

fn row<'a>(table: &'a [HashMap<String, String>], end: &str) -> &'a HashMap<String, String> {
    let found: Vec<_> = table.iter().filter(|row| row["Model"].ends_with(end)).collect();
    assert_eq!(found.len(), 1, "models that end in {end}");
    found[0]
}

#[test]
fn differences_of_the_published_table_are_reproduced() {
    let Some(table) = table() else { return };
    assert_eq!(table.len(), 50);
    for &(model, dense, worst, best, mean_absolute, average) in DIFFERENCES {
        let (compressed, parent) = (row(&table, model), row(&table, &format!("/{dense}")));
        let delta = |column: &&'static str| (*column, number(compressed, column) - number(parent, column));
        let found = Summary::of(DIMENSIONS.iter().map(delta)).unwrap();
        let with_knowledge = Summary::of(DIMENSIONS.iter().chain(&["MMLU"]).map(delta)).unwrap();
        for (what, found, expected) in [
            ("worst", found.worst_delta, worst),
            ("best", found.best_delta, best),
            ("mean |Δ|", found.mean_absolute, mean_absolute),
            ("average", with_knowledge.mean, average),
        ] {
            assert!((found - expected).abs() < 0.1 + 1e-9, "{model}: {what} is {found}, expected {expected}");
        }
    }
    // The two findings an average hides.
    let vicuna = |model| {
        let delta = |column: &&'static str| {
            (*column, number(row(&table, model), column) - number(row(&table, "/vicuna-13b-v1.3"), column))
        };
        Summary::of(DIMENSIONS.iter().map(delta)).unwrap()
    };
    assert_eq!(vicuna("vicuna-13b-v1.3_gptq@4bit_128g").worst, "Stereotype");
    assert_eq!(vicuna("vicuna-13b-v1.3_gptq@8bit_128g").best, "Toxicity");
}

#[test]
fn deviations_between_calibration_seeds_are_reproduced() {
    let Some(table) = table() else { return };
    let gptq = "chat-gptq-larger-caliset-llama2-temp";
    for (model, column, expected) in [
        (format!("{gptq}@3bit_128g_#seed"), "Ethics", 9.8),
        (format!("{gptq}@3bit_128g_#seed"), "Fairness", 5.8),
        (format!("{gptq}@4bit_128g_#seed"), "Ethics", 4.4),
        (format!("{gptq}@4bit_128g_#seed"), "Fairness", 3.6),
        ("chat-sparsegpt-semistruct@0.5_2to4_seed#".into(), "Ethics", 16.6),
        ("chat-sparsegpt-semistruct@0.5_2to4_seed#".into(), "Stereotype", 8.9),
        ("chat-sparsegpt-semistruct@0.5_2to4_seed#".into(), "Fairness", 6.0),
        ("chat-sparsegpt-semistruct@0.5_2to4_seed#".into(), "OOD", 4.1),
    ] {
        let of = |seed: usize| number(row(&table, &model.replace('#', &seed.to_string())), column);
        let found = between_seeds(&[of(0), of(1), of(2)]).unwrap();
        assert!((found - expected).abs() < 0.05 + 1e-9, "{model}: {column} deviates by {found}, expected {expected}");
    }
}
