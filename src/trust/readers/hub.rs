//! Test sets of a hub: `org/name[@revision][:path]`, fetched once into the cache that models are kept in too.

use std::path::Path;

use anyhow::Result;
use scruple_weights::hub::{Hub, HubRepo, Plan, RepoId, Settings, Want};

use super::{Limits, Suite, beside, may_read, open_called, source::Kind};
use crate::source::Bar;

/// Reads the data set of a hub that `argument` names, with its name: `org/name@commit[:path]`, which means the same files
/// for ever. None where the argument is no such name, such as a path.
///
/// Only files that a reader may be able to read are fetched, with the settings of the environment.
///
/// # Errors
/// Where there is no such data set, it cannot be had, or is too large; and as [`open`](super::open).
pub fn fetch(argument: &Path, limits: Limits) -> Result<Option<(String, Suite)>> {
    let Some(dataset) = named(argument)? else { return Ok(None) };
    let hub = Hub::new(Settings::from_env()?);
    let want = Want::Data { reads: may_read, beside };
    let plan = hub.plan(&dataset, &want, &mut Bar::default())?;
    expect_small(&dataset, &plan, limits)?;
    let plan = hub.complete(&dataset, plan, &mut Bar::default())?;
    let suite = open_called(&plan.open, Some((&plan.snapshot, dataset.repo.name())), limits)?;
    let path = dataset.inside.as_ref().map(|path| format!(":{path}")).unwrap_or_default();
    Ok(Some((format!("{}@{}{path}", dataset.repo, plan.origin.commit), suite)))
}

/// The data set that is meant; none where only a path can be.
fn named(argument: &Path) -> Result<Option<HubRepo>> {
    let Some(text) = argument.to_str() else { return Ok(None) };
    let id = text.split(['@', ':']).next().unwrap_or_default();
    let is_name = RepoId::new(id).is_ok() && Kind::of(Path::new(id)).is_none();
    match is_name || text.contains("://") {
        true => Ok(Some(HubRepo::dataset(text)?)),
        false => Ok(None),
    }
}

/// Refuses what the readers would refuse, or what does not fit into memory, before it is fetched.
fn expect_small(dataset: &HubRepo, plan: &Plan, limits: Limits) -> Result<()> {
    let Limits { bytes, files, fetched_bytes } = limits;
    let advice = "name a smaller file or folder of it behind a colon, as in `org/name:test.jsonl`";
    if let Some(file) = plan.files.iter().find(|file| file.bytes > bytes) {
        anyhow::bail!(
            "{dataset}: `{}` has {} bytes, more than the {bytes} that are read of a file; {advice}",
            file.path,
            file.bytes
        );
    }
    anyhow::ensure!(
        plan.files.len() <= files,
        "{dataset}: there are {} files to read, more than {files}; {advice}",
        plan.files.len()
    );
    anyhow::ensure!(
        plan.bytes() <= fetched_bytes,
        "{dataset}: the {} files to read have {} bytes, more than {fetched_bytes}; {advice}",
        plan.files.len(),
        plan.bytes()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_data_sets_are_told_from_paths() {
        for text in ["org/name", "org/name@v1:dev/a.jsonl", "org/v1.5", "hf://datasets/org/name"] {
            assert!(named(Path::new(text)).unwrap().is_some(), "{text}");
        }
        for text in ["general", "./org/name", "sets/dev.jsonl", "sets/dev.csv.gz", "/org/name", "a/b/c", ""] {
            assert!(named(Path::new(text)).unwrap().is_none(), "{text}");
        }
        for text in ["org/name@a b", "org/name:../x", "https://huggingface.co/org/name"] {
            assert!(named(Path::new(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn what_a_reader_may_read_is_told_by_names() {
        for path in ["a.jsonl", "x/y.CSV", "z.tsv.gz", "type1.txt.test", "adult/sensitive_attr_adult_0.npy"] {
            assert!(may_read(path), "{path}");
        }
        for path in ["README.md", "x.parquet", "embeddings.npy", "model.safetensors", ".gitattributes", "x/.a.jsonl"] {
            assert!(!may_read(path), "{path}");
        }
        let plain = |path| beside(path).into_iter().filter(|name| !name.ends_with(".gz")).collect::<Vec<_>>();
        assert_eq!(plain("x/adult_0.jsonl"), ["sensitive_attr_adult_0.npy"]);
        assert_eq!(plain("one_shot.jsonl.gz"), ["email2name.jsonl"]);
        assert_eq!(plain("pro_stereotyped_type1.txt.dev"), ["anti_stereotyped_type1.txt.dev"]);
        assert!(beside("anti_stereotyped_type1.txt.dev").is_empty() && beside("a.jsonl").is_empty());
    }
}
