//! IDX, the form of MNIST (LeCun, Cortes and Burges 1998) and Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): two zero
//! bytes, the kind of values (8: bytes), the number of dimensions, each dimension as a big-endian u32, the values. Images
//! and labels are two files.

use std::path::{Path, PathBuf};

use super::{ImageSet, Source, check_labels, check_size, refuse};
use crate::Result;

/// Classes of the sets that come in this form.
const CLASSES: usize = 10;

pub(super) fn read(mut images: Source, labels: Option<&Path>) -> Result<ImageSet> {
    let file = images.file.clone();
    let (count, height, width) = match header(&mut images)?[..] {
        [count, height, width] => (count, height, width),
        [_] => {
            let what = "holds labels (one dimension), not images; name the file of the images".to_string();
            return Err(refuse(&file, what));
        }
        ref other => {
            return Err(refuse(&file, format!("has {} dimensions, expected 3: images, rows, columns", other.len())));
        }
    };
    let bytes = check_size(&file, (count, height, width, 1))?;
    let pixels = images.take_all(bytes, &format!("{count} images of {height} × {width} pixels"))?;

    let beside = match labels {
        Some(labels) => labels.to_path_buf(),
        None => beside(&file).ok_or_else(|| {
            refuse(
                &file,
                "is not called …images-idx3…, so that the file of its labels cannot be guessed; name it".into(),
            )
        })?,
    };
    let mut source = Source::open(&beside)?;
    if !matches!(source.start(), [0, 0, _, _, ..]) {
        return Err(refuse(
            &beside,
            format!("begins with {:02x?}, expected IDX labels: 00 00 08 01", first(&mut source)),
        ));
    }
    let labelled = match header(&mut source)?[..] {
        [count] => count,
        ref other => return Err(refuse(&beside, format!("has {} dimensions, expected 1: labels", other.len()))),
    };
    check_size(&beside, (labelled, 1, 1, 1))?;
    let labels = source.take_all(labelled, &format!("{labelled} labels"))?;
    check_labels(&beside, &labels, count, CLASSES)?;
    Ok(ImageSet { height, width, channels: 1, classes: CLASSES, white: 255, pixels, labels })
}

fn first(source: &mut Source) -> Vec<u8> {
    source.start().iter().take(4).copied().collect()
}

/// The dimensions.
fn header(source: &mut Source) -> Result<Vec<usize>> {
    let magic = source.take(4)?;
    let &[0, 0, kind, dimensions] = &magic[..] else {
        return Err(
            source.refuse(format!("begins with {magic:02x?}, expected IDX: 00 00 08 and the number of dimensions"))
        );
    };
    if kind != 8 {
        return Err(source.refuse(format!("holds IDX values of kind {kind:#04x}, expected 0x08, unsigned bytes")));
    }
    let sizes = source.take(4 * usize::from(dimensions))?;
    if sizes.len() < 4 * usize::from(dimensions) {
        return Err(source.refuse(format!("breaks off in its header of {dimensions} dimensions")));
    }
    let (sizes, _) = sizes.as_chunks::<4>();
    Ok(sizes.iter().map(|size| u32::from_be_bytes(*size) as usize).collect())
}

/// `train-images-idx3-ubyte.gz` → `train-labels-idx1-ubyte.gz`; without `.gz` where only that is there, and so on.
fn beside(images: &Path) -> Option<PathBuf> {
    let name = images.file_name()?.to_str()?;
    if !name.contains("images") {
        return None;
    }
    let labels = images.with_file_name(name.replace("images", "labels").replace("idx3", "idx1"));
    let other = match name.ends_with(".gz") {
        true => labels.with_extension(""),
        false => PathBuf::from(format!("{}.gz", labels.display())),
    };
    Some(if !labels.exists() && other.exists() { other } else { labels })
}
