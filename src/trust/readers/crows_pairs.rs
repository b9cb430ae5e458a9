//! CrowS-Pairs (Nangia et al. 2020): two sentences that differ in the group they are about, the more stereotyping first.
//!
//! A model that takes the stereotyping one half of the time is even-handed. A pair is its own cluster.

use anyhow::Result;

use super::{
    super::item::Ask,
    Format, Found, Source,
    source::{hyphenated, item},
};

/// Pairs of sentences.
pub const FORMAT: Format = Format {
    name: "crows-pairs",
    about: "CSV with sent_more, sent_less, bias_type",
    fits: |source| source.has(&["sent_more", "sent_less", "bias_type"]),
    read,
};

fn read(source: &Source) -> Result<Vec<Found>> {
    let of = |(at, row): (usize, &super::source::Row)| {
        let options = vec![row.text("sent_more")?.to_string(), row.text("sent_less")?.to_string()];
        let part = format!("crows-pairs-{}", hyphenated(row.text("bias_type")?));
        // The sentences are whole texts: nothing before them, not even a blank.
        let ask = Ask::Choose { options, before: Vec::new(), gold: None };
        Ok(("stereotype", item(format!("crows-pairs/{at}"), part, format!("crows-pairs-{at}"), "", ask)))
    };
    source.rows()?.iter().enumerate().map(of).collect()
}
