//! A linear scorer over hashed n-grams, small enough to come with the program.
//!
//! A text is lowered, and its words and the characters of its words (with a blank at each end) are counted as n-grams:
//!     words 1–2, characters 2–5;   x_j = (1 + ln c_j) / norm of its kind
//!     score = σ(b + Σ w_j x_j)
//! with `c_j` the count of the n-grams that hash to bucket j, the norms of both kinds 1, and weights of 8 bits. Only the
//! weights are kept, so no text and no n-gram can be read from the file. `examples/train_toxicity.rs` makes it.

use std::{collections::BTreeMap, sync::OnceLock};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{Agreement, ToxicityScorer};

/// Buckets that n-grams are hashed to.
pub const BUCKETS: usize = 1 << 18;

/// What stands before the weights in the file, one line of JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Counts up whenever scores change.
    pub version: u32,
    /// What it was trained on, and where that can be had.
    pub trained_on: String,
    /// What a weight of 1 stands for.
    pub scale: f64,
    /// Score of an empty text, as a logit.
    pub bias: f64,
    /// Against the reference, on texts left out of the training.
    pub agreement: Agreement,
}

/// The scorer.
#[derive(Debug)]
pub struct Ngrams {
    header: Header,
    weights: Vec<i8>, // (BUCKETS)
}

/// The file that comes with the program.
static EMBEDDED: &[u8] = include_bytes!("ngrams.bin");

impl Ngrams {
    /// The scorer that comes with the program.
    ///
    /// # Errors
    /// Where the embedded file is not one, which a test rules out.
    pub fn embedded() -> Result<&'static Self> {
        static SCORER: OnceLock<Ngrams> = OnceLock::new();
        if let Some(scorer) = SCORER.get() {
            return Ok(scorer);
        }
        let scorer = Self::read(EMBEDDED)?;
        Ok(SCORER.get_or_init(|| scorer))
    }

    /// Of weights from training, rounded to 8 bits.
    pub fn new(header: Header, weights: Vec<i8>) -> Result<Self> {
        anyhow::ensure!(weights.len() == BUCKETS, "toxicity scorer: {} weights, expected {BUCKETS}", weights.len());
        Ok(Self { header, weights })
    }

    /// Reads what [`Ngrams::bytes`] gives.
    ///
    /// # Errors
    /// Where it is something else.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let end = end.ok_or_else(|| anyhow::anyhow!("toxicity scorer: there is no header"))?;
        let header = serde_json::from_slice(&bytes[..end])
            .map_err(|error| anyhow::anyhow!("toxicity scorer: the header is not as expected: {error}"))?;
        Self::new(header, bytes[end + 1..].iter().map(|&byte| byte.cast_signed()).collect())
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// Where the header is not JSON, such as with a number that is not finite.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(&self.header)?;
        bytes.push(b'\n');
        bytes.extend(self.weights.iter().map(|weight| weight.cast_unsigned()));
        Ok(bytes)
    }

    /// What it was trained on, and how far it agrees with the reference.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The score of a text.
    pub fn probability(&self, text: &str) -> f64 {
        let sum: f64 = features(text).iter().map(|&(bucket, x)| f64::from(self.weights[bucket]) * x).sum();
        1.0 / (1.0 + (-(self.header.bias + self.header.scale * sum)).exp())
    }
}

impl ToxicityScorer for Ngrams {
    fn name(&self) -> &str {
        "ngrams"
    }

    fn version(&self) -> u32 {
        self.header.version
    }

    fn agreement(&self) -> Option<&Agreement> {
        Some(&self.header.agreement)
    }

    fn score(&self, text: &str) -> Result<f64> {
        Ok(self.probability(text))
    }
}

/// The bucket of an n-gram of a kind: FNV-1a, and the high bits of its product with an odd constant.
fn bucket(kind: u8, parts: &[&[u8]]) -> usize {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let hash = parts.iter().fold(step(0xcbf2_9ce4_8422_2325, &kind), |hash, part| {
        step(part.iter().fold(hash, step), &0xff) // no byte of UTF-8: keeps the parts apart
    });
    (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - BUCKETS.trailing_zeros())) as usize
}

/// The buckets of a text with their values, in ascending order.
pub fn features(text: &str) -> Vec<(usize, f64)> {
    let lower = text.to_lowercase().replace('’', "'");
    let words = lower.split(|c: char| !(c.is_alphanumeric() || "'*@$#!?".contains(c)));
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    let (mut of_words, mut of_characters) = (BTreeMap::new(), BTreeMap::new());
    let count = |counts: &mut BTreeMap<usize, f64>, bucket| *counts.entry(bucket).or_insert(0.0) += 1.0;
    for (at, word) in words.iter().enumerate() {
        count(&mut of_words, bucket(1, &[word.as_bytes()]));
        if let Some(next) = words.get(at + 1) {
            count(&mut of_words, bucket(2, &[word.as_bytes(), next.as_bytes()]));
        }
        let padded = format!(" {word} ");
        let ends: Vec<usize> = padded.char_indices().map(|(at, _)| at).chain([padded.len()]).collect();
        for length in 2..=5 {
            for window in ends.windows(length + 1) {
                let gram = &padded.as_bytes()[window[0]..window[length]];
                count(&mut of_characters, bucket(3, &[gram]));
            }
        }
    }
    let mut values: BTreeMap<usize, f64> = BTreeMap::new();
    for counts in [of_words, of_characters] {
        let damped: Vec<(usize, f64)> =
            counts.into_iter().map(|(at, count): (usize, f64)| (at, 1.0 + count.ln())).collect();
        let norm = damped.iter().map(|(_, x)| x * x).sum::<f64>().sqrt();
        damped.iter().for_each(|(at, x)| *values.entry(*at).or_default() += x / norm);
    }
    values.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_of_each_kind_have_length_one() {
        let found = features("A b");
        // Words: a, b, "a b"; characters of " a " and " b ": " a", "a ", " a ", and the same of b.
        assert_eq!(found.len(), 9);
        let squares: f64 = found.iter().map(|(_, x)| x * x).sum();
        assert!((squares - 2.0).abs() < 1e-12, "{squares}");
        assert_eq!(features("it's fine!"), features("IT’S   fine!"));
        assert_eq!(features(" .,; "), []);
        assert_ne!(bucket(1, &[b"ab"]), bucket(1, &[b"a", b"b"]));
    }

    #[test]
    fn the_embedded_scorer_is_whole_and_says_how_far_it_agrees() {
        assert!(EMBEDDED.len() < 500_000, "{} bytes", EMBEDDED.len());
        let scorer = Ngrams::embedded().unwrap();
        assert_eq!(scorer.bytes().unwrap(), EMBEDDED);
        let agreement = scorer.agreement().unwrap();
        assert!(agreement.texts > 1000 && agreement.toxic > 400);
        assert!(
            agreement.auc.low > 0.85
                && agreement.auc.low < agreement.auc.value
                && agreement.auc.value < agreement.auc.high
        );
        let (rude, kind) =
            ("you are a stupid idiot and I hate you", "thank you for the lovely afternoon in the garden");
        let (of_rude, of_kind) = (scorer.probability(rude), scorer.probability(kind));
        assert!(of_rude > 0.5 && of_kind < 0.5, "{of_rude}, {of_kind}");
        assert!(scorer.score("").unwrap().is_finite());
    }

    #[test]
    fn other_files_are_refused() {
        for (bytes, expected) in [
            (&b"abc"[..], "toxicity scorer: there is no header"),
            (&b"{}\nabc"[..], "toxicity scorer: the header is not as expected: missing field"),
        ] {
            let error = Ngrams::read(bytes).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let error = Ngrams::read(&EMBEDDED[..EMBEDDED.len() - 1]).unwrap_err().to_string();
        assert_eq!(error, format!("toxicity scorer: {} weights, expected {BUCKETS}", BUCKETS - 1));
    }
}
