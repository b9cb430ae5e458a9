//! The images a suite trains, chooses and measures on, which have none in common.
//!
//! Small grey pictures, such as digits of 8 × 8 pixels, are drawn several times over at 14 × 14, turned, stretched, moved
//! and sheared, with noise: a set that is not learned by heart at once. They are divided before that, so that copies of
//! one picture stay in one part.

use std::path::Path;

use crate::{
    Error, Result,
    data::{glyphs::glyphs, images::ImageSet, random::Stream},
};

/// Pixels of a side that small grey pictures are drawn at, and that glyphs have.
pub const SIDE: usize = 14;

/// Copies of each small picture.
pub const COPIES: usize = 6;

/// The share of a set without a test set of its own that is set apart for tests.
const TESTED: f64 = 0.25;

/// The share of the images for training on which learning rates are chosen.
const CHOSEN_ON: f64 = 0.2;

/// Of how the images are divided and drawn.
const SEED: u64 = 1;

/// Images in parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Data {
    /// Where they are from.
    pub name: String,
    /// All images for training.
    pub train: ImageSet,
    /// Those a net is measured on, once.
    pub test: ImageSet,
    /// The part of the images for training that a net is trained on while learning rates are chosen.
    pub fit: ImageSet,
    /// The rest of them, on which they are chosen.
    pub validation: ImageSet,
}

impl Data {
    /// Our own glyphs.
    ///
    /// # Errors
    /// If there are too few to divide.
    pub fn glyphs(train: usize, test: usize) -> Result<Self> {
        let (train, test) = (ImageSet::of_glyphs(glyphs(1, train, SIDE)), ImageSet::of_glyphs(glyphs(2, test, SIDE)));
        Self::divide("glyphs".into(), train, Some(test), |set| set)
    }

    /// The images of `file` and, to test on, of `test`, or a quarter of those of `file`.
    ///
    /// # Errors
    /// If a file cannot be read, the two differ in size or classes, or there are too few images to divide.
    pub fn read(file: &Path, test: Option<&Path>) -> Result<Self> {
        let train = ImageSet::read(file, None)?;
        let test = test.map(|test| ImageSet::read(test, None)).transpose()?;
        if let Some(test) = &test {
            let sides = |set: &ImageSet| (set.height, set.width, set.channels, set.classes);
            if sides(&train) != sides(test) {
                return Err(Error::Recipe(format!(
                    "the images to test on are {:?} (height, width, channels, classes), those to train on {:?}; give sets \
                     of one kind",
                    sides(test),
                    sides(&train)
                )));
            }
        }
        let name = file.file_name().map_or_else(|| "images".into(), |name| name.to_string_lossy().into_owned());
        let small = train.channels == 1 && train.height.max(train.width) < SIDE;
        match small {
            true => Self::divide(name, train, test, |set| redraw(&set)),
            false => Self::divide(name, train, test, |set| set),
        }
    }

    fn divide(
        name: String,
        images: ImageSet,
        test: Option<ImageSet>,
        drawn: impl Fn(ImageSet) -> ImageSet,
    ) -> Result<Self> {
        let of = |share: f64, count: usize| ((share * count as f64) as usize).max(1);
        let (images, test) = match test {
            Some(test) => (images, test),
            None => {
                let count = of(TESTED, images.len());
                images.split(count, SEED)?
            }
        };
        let (fit, validation) = images.split(of(CHOSEN_ON, images.len()), SEED + 1)?;
        let [train, test, fit, validation] = [images, test, fit, validation].map(drawn);
        Ok(Self { name, train, test, fit, validation })
    }
}

/// [`COPIES`] of every picture at [`SIDE`] × [`SIDE`] pixels, each a random affine image of it: a turn of 0.22 rad standard
/// deviation, 0.8 to 1.2 times as large, moved by up to 0.18 of half a side, sheared by 0.12; noise of 0.15 on twice the
/// pixels, which are averaged. Grey values are squeezed so that noise is not cut off.
fn redraw(set: &ImageSet) -> ImageSet {
    const FINE: usize = 2 * SIDE;
    let mut out = ImageSet {
        height: SIDE,
        width: SIDE,
        channels: 1,
        classes: set.classes,
        white: 255,
        pixels: Vec::with_capacity(set.len() * COPIES * SIDE * SIDE),
        labels: Vec::with_capacity(set.len() * COPIES),
    };
    let mut fine = vec![0.0; FINE * FINE];
    for image in 0..set.len() {
        // By its content, so that a picture looks the same in whatever part it is.
        let hash = set.image(image).iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, &pixel| {
            (hash ^ u64::from(pixel)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        for copy in 0..COPIES {
            let mut stream = Stream::new(SEED ^ hash, "bench/redraw", copy as u64);
            let (sin, cos) = (0.22 * stream.normal()).sin_cos();
            let size = stream.between(0.8, 1.2);
            let (across, down) = (stream.between(-0.18, 0.18), stream.between(-0.18, 0.18));
            let shear = 0.12 * stream.normal();
            for (at, value) in fine.iter_mut().enumerate() {
                let place = |at: usize| (at as f64 + 0.5) / SIDE as f64 - 1.0;
                let (x, y) = (place(at % FINE) - across, place(at / FINE) - down);
                let (x, y) = ((cos * x + sin * y) / size, (cos * y - sin * x) / size);
                *value = grey(set, image, x + shear * y, y) + 0.15 * stream.normal();
            }
            for at in 0..SIDE * SIDE {
                let corner = 2 * (at / SIDE) * FINE + 2 * (at % SIDE);
                let mean = (fine[corner] + fine[corner + 1] + fine[corner + FINE] + fine[corner + FINE + 1]) / 4.0;
                out.pixels.push((255.0 * (0.2 + 0.6 * mean)).round().clamp(0.0, 255.0) as u8);
            }
            out.labels.push(set.labels[image]);
        }
    }
    out
}

/// The brightness of `image` at (x, y) in [-1, 1]², between the four nearest pixels; black outside.
fn grey(set: &ImageSet, image: usize, x: f64, y: f64) -> f64 {
    let pixels = set.image(image);
    let along = |x: f64, sides: usize| (x + 1.0) / 2.0 * sides as f64 - 0.5;
    let (x, y) = (along(x, set.width), along(y, set.height));
    let (left, top) = (x.floor(), y.floor());
    let at = |row: f64, column: f64| {
        let inside = row >= 0.0 && column >= 0.0 && row < set.height as f64 && column < set.width as f64;
        if inside { f64::from(pixels[row as usize * set.width + column as usize]) / f64::from(set.white) } else { 0.0 }
    };
    let (x, y) = (x - left, y - top);
    let row = |row: f64| (1.0 - x) * at(row, left) + x * at(row, left + 1.0);
    (1.0 - y) * row(top) + y * row(top + 1.0)
}
