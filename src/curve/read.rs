//! `curve.json` read back.

use std::{fs, path::Path};

use anyhow::Context;
use scruple_weights::Error;
use serde::Deserialize;

use super::data::{Curve, FORMAT};

impl Curve {
    /// Reads the record of a sweep.
    ///
    /// # Errors
    /// If the file cannot be read, is no such record, or was written in another version of the format: one sentence with
    /// the file, what is wrong and what to do.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        /// The version alone, whatever else there is.
        #[derive(Deserialize)]
        struct Version {
            curve: Option<u64>,
            scruple: Option<String>,
        }
        let bytes = fs::read(path).with_context(|| format!("{}: cannot read the record of a sweep", path.display()))?;
        let version: Version = serde_json::from_slice(&bytes).map_err(|error| {
            Error::file(path, format!("is no JSON object, expected the `curve.json` of a sweep: {error}"))
        })?;
        match version.curve {
            Some(found) if found == u64::from(FORMAT) => {}
            Some(found) => {
                let by = version.scruple.map_or(String::new(), |by| format!(", written by scruple {by}"));
                let what = format!(
                    "holds version {found} of the format{by}, expected {FORMAT}; draw it with that version of the program"
                );
                return Err(Error::file(path, what).into());
            }
            None => return Err(Error::file(path, "has no key `curve`, expected the `curve.json` of a sweep").into()),
        }
        let fault =
            |error| Error::file(path, format!("is not as version {FORMAT} of a sweep's record should be: {error}"));
        Ok(serde_json::from_slice(&bytes).map_err(fault)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curve::sample;

    fn read(text: &[u8]) -> anyhow::Result<Curve> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("curve.json");
        fs::write(&path, text)?;
        Curve::read(&path)
    }

    #[test]
    fn what_was_written_is_read_back() {
        for curve in [sample::curve(), sample::empty(), sample::hostile()] {
            assert_eq!(read(&crate::record::pretty(&curve).unwrap()).unwrap(), curve);
        }
    }

    #[test]
    fn other_files_are_refused_in_one_sentence() {
        let whole = String::from_utf8(crate::record::pretty(&sample::curve()).unwrap()).unwrap();
        for (text, expected) in [
            (String::new(), "is no JSON object"),
            ("[1]".into(), "is no JSON object"),
            ("{\"trust\": 1}".into(), "has no key `curve`, expected the `curve.json`"),
            (whole.replacen("\"curve\": 1", "\"curve\": 7", 1), "holds version 7 of the format, written by scruple"),
            (whole.replacen("\"verdict\"", "\"verdikt\"", 1), "unknown field `verdikt`"),
            (whole[..whole.len() / 2].into(), "is no JSON object"),
        ] {
            let error = format!("{:#}", read(text.as_bytes()).unwrap_err());
            assert!(error.contains(expected) && error.contains("curve.json"), "{error}, expected {expected}");
        }
    }
}
