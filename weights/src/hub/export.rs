//! A model out of the cache into a folder of its own, which stands without the cache.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::Plan;
use crate::{Error, Result, writer::disk};

impl Plan {
    /// Copies the files of a plan that was fetched into the folder `out`, which must not exist yet or be empty. They
    /// come under their paths in [`folder`](Self::folder), and under the final name only when all of them are there.
    ///
    /// # Errors
    /// If `out` holds something, the disk has no room, or a file cannot be copied; nothing is left then.
    pub fn copy_to(&self, out: &Path) -> Result<()> {
        let refuse = |action: &'static str| move |error| Error::io(out, action, error);
        Self::expect_free(out)?;
        let parent = out.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(refuse("create the folder above"))?;
        disk::require(parent, self.bytes())?;
        let name = out.file_name().ok_or_else(|| Error::file(out, "expected the name of a folder"))?;
        let part = parent.join(format!(".{}.{}.part", name.to_string_lossy(), std::process::id()));
        let copied = self.copy_files(&part).and_then(|()| {
            fs::rename(&part, out).map_err(refuse("give the folder its name"))?;
            disk::sync_folder(parent)
        });
        if copied.is_err() {
            let _ = fs::remove_dir_all(&part);
        }
        copied
    }

    /// Refuses a folder that holds something, before anything is fetched for it.
    ///
    /// # Errors
    /// If `out` holds something, or is no folder.
    pub fn expect_free(out: &Path) -> Result<()> {
        match fs::read_dir(out).map(|mut entries| entries.next().is_none()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::file(out, "the folder is not empty; choose another output folder")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io(out, "write into the folder", error)),
        }
    }

    fn copy_files(&self, part: &Path) -> Result<()> {
        for file in &self.files {
            let from = self.snapshot.join(&file.path);
            let to = part.join(self.path_in_folder(&from));
            let folder = to.parent().unwrap_or(part);
            fs::create_dir_all(folder).map_err(|error| Error::io(folder, "create the folder", error))?;
            // The system copies by reference where the file system can do that.
            fs::copy(&from, &to)
                .and_then(|_| fs::File::open(&to)?.sync_all())
                .map_err(|error| Error::write(&to, format!("copy {}", from.display()), file.bytes, error))?;
        }
        Ok(())
    }

    fn path_in_folder(&self, file: &Path) -> PathBuf {
        let inside = file.strip_prefix(&self.folder).or_else(|_| file.strip_prefix(&self.snapshot));
        inside.unwrap_or(file).to_path_buf()
    }
}
