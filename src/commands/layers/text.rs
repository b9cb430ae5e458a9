//! The texts of `layers scan` and `layers search`.

use std::path::Path;

use anyhow::Result;
use scruple_compress::{
    calibration::read_documents,
    layers::{
        evaluate::{Corpus, Question},
        questions::Asked,
    },
    model::text::Text,
};

/// Bytes of text read for a token that is wanted; few texts have more.
const BYTES_PER_TOKEN: usize = 32;

/// The tokens of the documents in `file`, laid end to end; about `wanted` of them where the file holds many documents.
pub fn tokens(text: &Text, file: &Path, wanted: usize) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    let documents = read_documents(file, None, wanted.saturating_mul(BYTES_PER_TOKEN).max(1 << 20))?;
    for document in documents {
        if !ids.is_empty() {
            ids.extend(text.end_of_text());
        }
        ids.extend(text.encode(&document.render(text, false)?, false)?);
    }
    Ok(ids)
}

/// Windows of `window` tokens over `ids` from `start` on.
pub fn windows(ids: &[u32], start: usize, (window, tokens): (usize, usize), share: f64, seed: u64) -> Result<Corpus> {
    Ok(Corpus::windows(ids.get(start..).unwrap_or_default(), window, tokens, share, seed)?)
}

/// The questions that the tokenizer can put to the model.
pub fn questions(text: &Text, asked: &[Asked]) -> Result<Vec<Question>> {
    let mut all = Vec::new();
    for asked in asked {
        all.extend(asked.encode(text)?);
    }
    Ok(all)
}
