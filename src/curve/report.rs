//! Everything a sweep is shown by, written whole: pictures for papers and readmes, and one page that needs nothing else.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{
    data::Curve,
    figure::{Figure, axis::Axis},
    page,
    picture::{self, Format},
    published::Published,
};
use crate::record;

/// Writes `index.html` into `dir`, and a PNG and an SVG for each way of compression that has points: `curve` for bits,
/// `sparsity` for zeros, `layers` for layers. The same record gives the same bytes. Returns the paths, pictures first.
///
/// # Errors
/// If the folder or a file cannot be written; what is there then is whole.
pub fn write(curve: &Curve, published: Option<&Published>, dir: &Path) -> Result<Vec<PathBuf>> {
    let dir = record::folder(dir)?;
    let mut paths = Vec::new();
    for axis in Axis::ALL {
        let Some(figure) = Figure::of(curve, axis) else { continue };
        for (format, ending) in [(Format::Png, "png"), (Format::Svg, "svg")] {
            let path = dir.join(format!("{}.{ending}", axis.file()));
            let drawn = picture::draw(curve, &figure, format).with_context(|| path.display().to_string())?;
            record::write_whole(&path, &drawn)?;
            paths.push(path);
        }
    }
    let path = dir.join("index.html");
    record::write_whole(&path, page::html(curve, published).as_bytes())?;
    paths.push(path);
    Ok(paths)
}

#[cfg(test)]
mod tests;
