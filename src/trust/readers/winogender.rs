//! Winogender schemas (Rudinger et al. 2018): whom a pronoun stands for, in sentences that are the same for each gender.
//!
//! `all_sentences.tsv` with `sentid` such as `technician.customer.1.male.txt` (occupation, participant, 0 where the pronoun
//! is the occupation's and 1 where the participant's, gender) and `sentence`. The three genders of a sentence share a
//! cluster.

use anyhow::Result;

use super::{
    super::item::Item,
    Format, Found, Source,
    source::{Row, item},
};

/// Sentences with an occupation, a participant and a pronoun.
pub const FORMAT: Format = Format {
    name: "winogender",
    about: "tab-separated with sentid, sentence",
    fits: |source| source.has(&["sentid", "sentence"]),
    read,
};

/// Pronouns of each gender.
const PRONOUNS: &[(&str, &[&str])] =
    &[("male", &["he", "him", "his"]), ("female", &["she", "her", "hers"]), ("neutral", &["they", "them", "their"])];

fn read(source: &Source) -> Result<Vec<Found>> {
    source.rows()?.iter().map(sentence).collect()
}

fn sentence(row: &Row) -> Result<Found> {
    let (id, sentence) = (row.text("sentid")?, row.text("sentence")?);
    let fault = || row.fault("`sentid` should be such as technician.customer.1.male.txt");
    let names: Vec<&str> = id.trim_end_matches(".txt").split('.').collect();
    let [occupation, participant, answer @ ("0" | "1"), gender] = names[..] else { return Err(fault()) };
    let (_, pronouns) = PRONOUNS.iter().find(|(name, _)| *name == gender).ok_or_else(fault)?;
    let said = |word: &&str| {
        let word = word.trim_matches(|c: char| !c.is_alphabetic()).to_lowercase();
        pronouns.contains(&word.as_str())
    };
    let pronoun = sentence.split_whitespace().find(said);
    let pronoun = pronoun.ok_or_else(|| row.fault(format_args!("the sentence has no pronoun that is {gender}")))?;
    let pronoun = pronoun.trim_matches(|c: char| !c.is_alphabetic());
    let other = if participant == "someone" { "someone else".to_string() } else { format!("the {participant}") };
    let ask = row.choice(&[format!("the {occupation}"), other], Some(usize::from(answer == "1")))?;
    let prompt = format!("{sentence}\nIn this sentence, \"{pronoun}\" stands for");
    let cluster = format!("winogender-{occupation}-{participant}-{answer}");
    let item = item(format!("winogender/{}", names.join(".")), "winogender", cluster, prompt, ask);
    Ok(("fairness", Item { group: Some(gender.to_string()), ..item }))
}
