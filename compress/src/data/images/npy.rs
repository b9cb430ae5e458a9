//! Images as a numpy array of bytes (images, height, width, channels), labels as an array of integers beside, as in
//! CIFAR-10-C (Hendrycks and Dietterich 2019: `gaussian_noise.npy`, `labels.npy`) and CIFAR-10.2 (Lu et al. 2020).
//!
//! The format: `\x93NUMPY`, a version, the length of a header, a Python dictionary with `descr`, `fortran_order` and
//! `shape`, the values.

use std::path::Path;

use super::{ImageSet, Source, check_labels, check_size, refuse};
use crate::Result;

const CLASSES: usize = 10;

/// What a header says.
struct Header {
    descr: String,
    fortran: bool,
    shape: Vec<usize>,
}

pub(super) fn read(mut images: Source, labels: Option<&Path>) -> Result<ImageSet> {
    let file = images.file.clone();
    let header = header(&mut images)?;
    if header.fortran || !matches!(header.descr.as_str(), "|u1" | "u1" | "<u1") {
        let order = if header.fortran { " in Fortran order" } else { "" };
        return Err(refuse(&file, format!("holds values of type `{}`{order}, expected bytes, `|u1`", header.descr)));
    }
    let &[count, height, width, channels] = &header.shape[..] else {
        let what = format!("has shape {:?}, expected (images, height, width, channels)", header.shape);
        return Err(refuse(&file, what));
    };
    let bytes = check_size(&file, (count, height, width, channels))?;
    let pixels = images.take_all(bytes, &format!("{count} images of {height} × {width} × {channels} values"))?;
    let beside = labels.map_or_else(|| file.with_file_name("labels.npy"), Path::to_path_buf);
    let labels = read_labels(&beside)?;
    check_labels(&beside, &labels, count, CLASSES)?;
    Ok(ImageSet { height, width, channels, classes: CLASSES, white: 255, pixels, labels })
}

/// Integers of any width as labels.
fn read_labels(file: &Path) -> Result<Vec<u8>> {
    let mut source = Source::open(file)?;
    if !source.start().starts_with(b"\x93NUMPY") {
        return Err(refuse(file, "is not a numpy array, expected the labels of the images".into()));
    }
    let header = header(&mut source)?;
    let width = match header.descr.as_str() {
        "|u1" | "|i1" | "u1" | "<u1" => 1,
        "<i2" | "<u2" => 2,
        "<i4" | "<u4" => 4,
        "<i8" | "<u8" => 8,
        other => return Err(refuse(file, format!("holds labels of type `{other}`, expected integers, little-endian"))),
    };
    let &[count] = &header.shape[..] else {
        return Err(refuse(file, format!("has shape {:?}, expected one dimension of labels", header.shape)));
    };
    check_size(file, (count, 1, 1, 1))?;
    let bytes = source.take_all(width * count, &format!("{count} labels"))?;
    let label = |(at, bytes): (usize, &[u8])| match bytes {
        [label, rest @ ..] if rest.iter().all(|&byte| byte == 0) => Ok(*label),
        _ => Err(refuse(file, format!("label {} is not within 0 to 255", at + 1))),
    };
    bytes.chunks_exact(width).enumerate().map(label).collect()
}

fn header(source: &mut Source) -> Result<Header> {
    let start = source.take(8)?;
    let &[_, _, _, _, _, _, major, _] = &start[..] else {
        return Err(source.refuse("breaks off in its first eight bytes".into()));
    };
    let width = if major == 1 { 2 } else { 4 };
    let bytes = source.take(width)?;
    let length = bytes.iter().rev().fold(0usize, |length, &byte| length << 8 | usize::from(byte));
    if !(1..=3).contains(&major) || bytes.len() < width || length > 1 << 16 {
        return Err(
            source.refuse(format!("is a numpy array of version {major} with a header of {length} bytes, unknown"))
        );
    }
    let text = source.take(length)?;
    if text.len() < length {
        return Err(source.refuse(format!("breaks off in its header of {length} bytes")));
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    let after = |key: &str| text.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start());
    let descr =
        after("descr").and_then(|rest| rest.strip_prefix('\'')?.split_once('\'')).map(|(descr, _)| descr.to_string());
    let fortran = after("fortran_order").map(|rest| rest.starts_with("True"));
    let shape = after("shape").and_then(|rest| rest.strip_prefix('(')?.split_once(')')).and_then(|(sizes, _)| {
        let sizes = sizes.split(',').map(str::trim).filter(|size| !size.is_empty());
        sizes.map(|size| size.parse().ok()).collect::<Option<Vec<usize>>>()
    });
    match (descr, fortran, shape) {
        (Some(descr), Some(fortran), Some(shape)) => Ok(Header { descr, fortran, shape }),
        _ => Err(source.refuse(format!("has the header `{}`, expected descr, fortran_order and shape", text.trim()))),
    }
}
