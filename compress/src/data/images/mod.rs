//! Sets of small labelled images, whatever file they come in: IDX (MNIST, Fashion-MNIST), CIFAR-10 and CIFAR-100 in binary
//! form, digits as comma-separated values, CIFAR-10-C and CIFAR-10.2 as numpy arrays, all of them plain or gzipped, told
//! apart by their content; and this toolkit's own glyphs.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
};

use flate2::read::MultiGzDecoder;
use scruple_weights::Error as WeightsError;

use super::{glyphs::Glyphs, random::Stream};
use crate::{Error, Result};

mod cifar;

mod csv;

mod idx;

mod npy;

/// Most images read from one file; the sets known have 60,000. A gzipped file cannot make more of itself.
const MOST_IMAGES: usize = 1 << 17;

/// Most values of an image.
const MOST_VALUES: usize = 1 << 20;

/// Labelled images of one size, channels last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSet {
    /// Rows of pixels.
    pub height: usize,
    /// Pixels in a row.
    pub width: usize,
    /// Numbers a pixel.
    pub channels: usize,
    /// Classes; labels lie below.
    pub classes: usize,
    /// The value of full brightness: 255, or 16 in the digits of 8 × 8 pixels.
    pub white: u8,
    /// (images, height, width, channels).
    pub pixels: Vec<u8>,
    /// (images).
    pub labels: Vec<u8>,
}

/// What is taken off the brightness (0 to 1) of each channel, and what the rest is divided by.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scaling {
    /// (channels).
    pub mean: Vec<f32>,
    /// (channels), above 0.
    pub deviation: Vec<f32>,
}

/// How far an image is moved, and whether it is turned around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Placement {
    /// Pixels down.
    pub down: isize,
    /// Pixels to the right.
    pub right: isize,
    /// Left for right.
    pub flipped: bool,
}

impl ImageSet {
    /// Reads `file`; for IDX and numpy images the labels are taken from `labels`, or where the sets as published have them
    /// beside.
    ///
    /// # Errors
    /// If a file cannot be read, is none of these, breaks off, has a label out of range, or images and labels differ in
    /// number. One sentence with the file, what was expected and what was found.
    pub fn read(file: &Path, labels: Option<&Path>) -> Result<Self> {
        let mut source = Source::open(file)?;
        let set = match source.start() {
            [0, 0, kind, dimensions, ..] if *kind >= 8 && *dimensions > 0 => idx::read(source, labels)?,
            [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => npy::read(source, labels)?,
            start if csv::looks(start) => csv::read(source)?,
            _ => cifar::read(source)?,
        };
        if set.labels.is_empty() {
            return Err(refuse(file, "holds no images".into()));
        }
        Ok(set)
    }

    /// The glyphs as a set.
    pub fn of_glyphs(glyphs: Glyphs) -> Self {
        let Glyphs { side, images, labels } = glyphs;
        let classes = super::glyphs::CLASSES.len();
        Self { height: side, width: side, channels: 1, classes, white: 255, pixels: images, labels }
    }

    /// How many images there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Values of one image.
    pub fn values(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// The pixels of image `image`, (height, width, channels).
    ///
    /// # Panics
    /// If there is no such image.
    pub fn image(&self, image: usize) -> &[u8] {
        &self.pixels[image * self.values()..][..self.values()]
    }

    /// The set of the images `which`, in their order.
    ///
    /// # Panics
    /// If one does not exist.
    pub fn select(&self, which: impl IntoIterator<Item = usize>) -> Self {
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        for image in which {
            pixels.extend_from_slice(self.image(image));
            labels.push(self.labels[image]);
        }
        Self { pixels, labels, ..*self }
    }

    /// Two parts without common images, the second of `count`, drawn by `seed`.
    ///
    /// # Errors
    /// If that leaves nothing for the first part.
    pub fn split(&self, count: usize, seed: u64) -> Result<(Self, Self)> {
        if count >= self.len() {
            return Err(Error::Recipe(format!("{count} images cannot be set apart of {}", self.len())));
        }
        let mut order: Vec<usize> = (0..self.len()).collect();
        Stream::new(seed, "images/split", 0).shuffle(&mut order);
        let (second, first) = order.split_at_mut(count);
        first.sort_unstable();
        second.sort_unstable();
        Ok((self.select(first.iter().copied()), self.select(second.iter().copied())))
    }

    /// Mean and deviation of the brightness of each channel over all images; a deviation below one step of brightness
    /// counts as that.
    pub fn scaling(&self) -> Scaling {
        let mut counts = vec![[0u64; 256]; self.channels];
        for pixel in self.pixels.chunks_exact(self.channels) {
            pixel.iter().zip(&mut counts).for_each(|(&value, counts)| counts[usize::from(value)] += 1);
        }
        let white = f64::from(self.white);
        let moments = counts.iter().map(|counts| {
            let all = counts.iter().sum::<u64>().max(1) as f64;
            let mean = counts.iter().enumerate().map(|(v, &n)| v as f64 * n as f64).sum::<f64>() / all / white;
            let of = |v: usize| (v as f64 / white - mean).powi(2);
            let variance = counts.iter().enumerate().map(|(v, &n)| of(v) * n as f64).sum::<f64>() / all;
            (mean as f32, variance.sqrt().max(1.0 / white) as f32)
        });
        let (mean, deviation) = moments.unzip();
        Scaling { mean, deviation }
    }

    /// Image `image` under `scaling`, moved as `placement` says, into `out` (height, width, channels). What comes in from
    /// outside is black.
    ///
    /// # Panics
    /// If there is no such image or a length differs.
    pub fn write(&self, image: usize, scaling: &Scaling, placement: Placement, out: &mut [f32]) {
        assert_eq!(out.len(), self.values(), "an image has another number of values");
        assert!(scaling.mean.len() == self.channels && scaling.deviation.len() == self.channels);
        let pixels = self.image(image);
        let step = 1.0 / f32::from(self.white);
        let row_values = self.width * self.channels;
        for (row, out) in out.chunks_exact_mut(row_values).enumerate() {
            let from = row.checked_add_signed(-placement.down).filter(|&from| from < self.height);
            for (column, out) in out.chunks_exact_mut(self.channels).enumerate() {
                let seen = if placement.flipped { self.width - 1 - column } else { column };
                let at = seen.checked_add_signed(-placement.right).filter(|&at| at < self.width).zip(from);
                for (channel, out) in out.iter_mut().enumerate() {
                    let value = at.map_or(0, |(at, from)| pixels[from * row_values + at * self.channels + channel]);
                    *out = (f32::from(value) * step - scaling.mean[channel]) / scaling.deviation[channel];
                }
            }
        }
    }
}

fn refuse(file: &Path, what: String) -> Error {
    WeightsError::file(file, what).into()
}

/// A file, unpacked as it is read, of which the beginning is known.
struct Source {
    file: PathBuf,
    start: Vec<u8>,
    read: usize,
    rest: Box<dyn Read>,
}

impl Source {
    fn open(file: &Path) -> Result<Self> {
        let io = |action: &str, error| Error::Weights(WeightsError::io(file, action, error));
        let mut plain = BufReader::new(File::open(file).map_err(|error| io("open the images", error))?);
        let mut first = Vec::new();
        (&mut plain).take(2).read_to_end(&mut first).map_err(|error| io("read the images", error))?;
        let zipped = first == [0x1f, 0x8b];
        let whole = std::io::Cursor::new(first).chain(plain);
        let rest: Box<dyn Read> =
            if zipped { Box::new(BufReader::new(MultiGzDecoder::new(whole))) } else { Box::new(whole) };
        let mut source = Self { file: file.to_path_buf(), start: Vec::new(), read: 0, rest };
        source.start = source.take(512)?;
        source.read = 0;
        Ok(source)
    }

    /// The first bytes, unpacked.
    fn start(&mut self) -> &[u8] {
        &self.start
    }

    /// The next `count` bytes, fewer at the end of the file.
    fn take(&mut self, count: usize) -> Result<Vec<u8>> {
        let known = &self.start[self.read..self.start.len().min(self.read + count)];
        let mut out = known.to_vec();
        self.read += out.len();
        let left = (count - out.len()) as u64;
        (&mut self.rest)
            .take(left)
            .read_to_end(&mut out)
            .map_err(|error| Error::Weights(WeightsError::io(&self.file, "read the images", error)))?;
        Ok(out)
    }

    /// The next `count` bytes and nothing after them, or what is wrong; `what` says what they are.
    fn take_all(&mut self, count: usize, what: &str) -> Result<Vec<u8>> {
        let bytes = self.take(count)?;
        if bytes.len() < count {
            return Err(refuse(&self.file, format!("breaks off: {what} take {count} bytes, found {}", bytes.len())));
        }
        if !self.take(1)?.is_empty() {
            return Err(refuse(&self.file, format!("goes on after its end: {what} take {count} bytes")));
        }
        Ok(bytes)
    }

    fn refuse(&self, what: String) -> Error {
        refuse(&self.file, what)
    }
}

/// Checks labels against the number of images and of classes.
fn check_labels(file: &Path, labels: &[u8], images: usize, classes: usize) -> Result<()> {
    if labels.len() != images {
        return Err(refuse(file, format!("holds {} labels for {images} images", labels.len())));
    }
    match labels.iter().position(|&label| usize::from(label) >= classes) {
        Some(at) => {
            let what = format!("image {} has label {}, expected 0 to {}", at + 1, labels[at], classes - 1);
            Err(refuse(file, what))
        }
        None => Ok(()),
    }
}

/// Checks a size some header claims.
fn check_size(file: &Path, (images, height, width, channels): (usize, usize, usize, usize)) -> Result<usize> {
    let values = height.checked_mul(width).and_then(|values| values.checked_mul(channels));
    match values {
        Some(values) if values > 0 && values <= MOST_VALUES && images <= MOST_IMAGES => Ok(values * images),
        _ => {
            let what = format!(
                "claims {images} images of {height} × {width} pixels of {channels} values, expected at most {MOST_IMAGES} \
                 images of 1 to {MOST_VALUES} values"
            );
            Err(refuse(file, what))
        }
    }
}

#[cfg(test)]
mod tests;
