//! Small grey pictures of ten signs, drawn with jitter and noise: an image set of our own.
//!
//! A sign is a few strokes in the square [-1, 1]². Each picture moves, turns, stretches and thickens them, lays a stray
//! stroke across, and adds noise; the grey value is the stroke's coverage of the pixel. Picture `i` depends on the seed
//! and on `i` alone, so a longer set begins with the shorter one.

use std::f64::consts::{PI, TAU};
use std::fs;
use std::io::Write;
use std::path::Path;

use super::random::Stream;
use crate::{Error, Result};

/// What the signs are called; the position is the label.
pub const CLASSES: [&str; 10] =
    ["bar", "post", "slash", "plus", "times", "ring", "square", "triangle", "corner", "arrow"];

/// Grey pictures and what they show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glyphs {
    /// Pixels along an edge.
    pub side: usize,
    /// Grey values, (n, side, side); 0 is paper.
    pub images: Vec<u8>,
    /// Labels, (n), below 10. Every ten pictures in a row show each sign once.
    pub labels: Vec<u8>,
}

/// A straight stroke, or an arc about the middle.
#[derive(Debug, Clone, Copy)]
enum Stroke {
    Line { from: (f64, f64), to: (f64, f64) },
    Ring { radius: f64 },
}

impl Stroke {
    /// How far `(x, y)` lies from the stroke's middle line.
    fn distance(self, x: f64, y: f64) -> f64 {
        match self {
            Self::Ring { radius } => (x.hypot(y) - radius).abs(),
            Self::Line { from, to } => {
                let (dx, dy) = (to.0 - from.0, to.1 - from.1);
                let along = ((x - from.0) * dx + (y - from.1) * dy) / (dx * dx + dy * dy);
                let along = along.clamp(0.0, 1.0);
                (x - from.0 - along * dx).hypot(y - from.1 - along * dy)
            }
        }
    }
}

/// The strokes of sign `label`.
fn strokes(label: u8) -> Vec<Stroke> {
    let line = |x0: f64, y0: f64, x1: f64, y1: f64| Stroke::Line { from: (x0, y0), to: (x1, y1) };
    match label {
        0 => vec![line(-0.6, 0.0, 0.6, 0.0)],
        1 => vec![line(0.0, -0.6, 0.0, 0.6)],
        2 => vec![line(-0.5, 0.5, 0.5, -0.5)],
        3 => vec![line(-0.6, 0.0, 0.6, 0.0), line(0.0, -0.6, 0.0, 0.6)],
        4 => vec![line(-0.5, -0.5, 0.5, 0.5), line(-0.5, 0.5, 0.5, -0.5)],
        5 => vec![Stroke::Ring { radius: 0.55 }],
        6 => polygon(4, PI / 4.0),
        7 => polygon(3, -PI / 2.0),
        8 => vec![line(-0.5, -0.55, -0.5, 0.5), line(-0.5, 0.5, 0.5, 0.5)],
        _ => vec![line(0.0, 0.6, 0.0, -0.6), line(0.0, -0.6, -0.4, -0.15), line(0.0, -0.6, 0.4, -0.15)],
    }
}

/// A regular polygon whose first corner stands at `angle`.
fn polygon(corners: usize, angle: f64) -> Vec<Stroke> {
    let corner = |n: usize| {
        let angle = angle + TAU * n as f64 / corners as f64;
        (0.65 * angle.cos(), 0.65 * angle.sin())
    };
    (0..corners).map(|n| Stroke::Line { from: corner(n), to: corner(n + 1) }).collect()
}

/// `count` pictures with edges of `side` pixels, 16 or 32 being usual.
pub fn glyphs(seed: u64, count: usize, side: usize) -> Glyphs {
    let mut set = Glyphs { side, images: Vec::with_capacity(count * side * side), labels: Vec::with_capacity(count) };
    let mut order: [u8; 10] = std::array::from_fn(|label| label as u8);
    for number in 0..count {
        if number % 10 == 0 {
            order = std::array::from_fn(|label| label as u8);
            Stream::new(seed, "glyphs/order", number as u64).shuffle(&mut order);
        }
        let label = order[number % 10];
        draw(&mut Stream::new(seed, "glyphs/picture", number as u64), label, side, &mut set.images);
        set.labels.push(label);
    }
    set
}

/// One picture of `label` to the end of `out`.
fn draw(stream: &mut Stream, label: u8, side: usize, out: &mut Vec<u8>) {
    let (sin, cos) = stream.between(-0.3, 0.3).sin_cos();
    let (stretch_x, stretch_y) = (stream.between(0.7, 1.2), stream.between(0.7, 1.2));
    let (shift_x, shift_y) = (stream.between(-0.3, 0.3), stream.between(-0.3, 0.3));
    let width = stream.between(0.08, 0.17);
    let ink = stream.between(110.0, 230.0);
    let paper = stream.between(0.0, 40.0);
    let noise = stream.between(8.0, 28.0);
    let sign = strokes(label);
    let mut point = || (stream.between(-1.0, 1.0), stream.between(-1.0, 1.0));
    let stray = Stroke::Line { from: point(), to: point() };

    let pixel = 2.0 / side as f64;
    let cover = |distance: f64, width: f64| ((width - distance) / pixel + 0.5).clamp(0.0, 1.0);
    for row in 0..side {
        for column in 0..side {
            let (px, py) = ((column as f64 + 0.5) * pixel - 1.0, (row as f64 + 0.5) * pixel - 1.0);
            let (x, y) = (px - shift_x, py - shift_y);
            let (x, y) = ((cos * x + sin * y) / stretch_x, (cos * y - sin * x) / stretch_y);
            let nearest = sign.iter().map(|stroke| stroke.distance(x, y)).fold(f64::INFINITY, f64::min);
            let inked = cover(nearest, width).max(0.4 * cover(stray.distance(px, py), 0.05));
            let grey = paper + ink * inked + noise * stream.normal();
            out.push(grey.round().clamp(0.0, 255.0) as u8);
        }
    }
}

impl Glyphs {
    /// Writes the two files of the IDX format (as MNIST is shipped, unpacked): pictures as (n, side, side), labels as (n).
    pub fn write_idx(&self, images: &Path, labels: &Path) -> Result<()> {
        let header = |dims: &[usize]| {
            let mut bytes = vec![0, 0, 0x08, dims.len() as u8]; // 0x08: unsigned bytes
            dims.iter().for_each(|&dim| bytes.extend((dim as u32).to_be_bytes()));
            bytes
        };
        save(images, &[&header(&[self.labels.len(), self.side, self.side]), &self.images])?;
        save(labels, &[&header(&[self.labels.len()]), &self.labels])
    }

    /// Writes one file in the CIFAR-10 binary layout: a label, then red, green and blue planes of 32×32, here all alike.
    pub fn write_cifar(&self, path: &Path) -> Result<()> {
        if self.side != 32 {
            return Err(Error::Text(format!(
                "{}: the CIFAR layout holds pictures of 32 pixels an edge, not of {}",
                path.display(),
                self.side
            )));
        }
        let pictures = self.images.chunks_exact(self.side * self.side);
        let parts: Vec<&[u8]> =
            self.labels.chunks_exact(1).zip(pictures).flat_map(|(label, grey)| [label, grey, grey, grey]).collect();
        save(path, &parts)
    }
}

fn save(path: &Path, parts: &[&[u8]]) -> Result<()> {
    let write = || {
        let mut file = std::io::BufWriter::new(fs::File::create(path)?);
        parts.iter().try_for_each(|part| file.write_all(part))?;
        file.flush()
    };
    write().map_err(|error: std::io::Error| Error::Text(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Share of `test` whose nearest class mean of `train` is the right one.
    fn nearest_class_mean(train: &Glyphs, test: &Glyphs) -> f64 {
        let pixels = train.side * train.side;
        let mut means = vec![vec![0.0; pixels]; 10];
        for (image, &label) in train.images.chunks_exact(pixels).zip(&train.labels) {
            let share = 10.0 / train.labels.len() as f64;
            means[label as usize].iter_mut().zip(image).for_each(|(mean, &grey)| *mean += share * f64::from(grey));
        }
        let right = test.images.chunks_exact(pixels).zip(&test.labels).filter(|&(image, &label)| {
            let distance = |mean: &Vec<f64>| -> f64 {
                mean.iter().zip(image).map(|(mean, &grey)| (mean - f64::from(grey)).powi(2)).sum()
            };
            let nearest = (0..10).min_by(|&a, &b| distance(&means[a]).total_cmp(&distance(&means[b])));
            nearest == Some(label as usize)
        });
        right.count() as f64 / test.labels.len() as f64
    }

    #[test]
    fn classes_are_even_and_pictures_reproducible() {
        let set = glyphs(1, 200, 16);
        assert_eq!(set.images.len(), 200 * 256);
        for label in 0..10 {
            assert_eq!(set.labels.iter().filter(|&&other| other == label).count(), 20);
        }
        assert_eq!(set, glyphs(1, 200, 16));
        assert_ne!(set.images, glyphs(2, 200, 16).images);
        assert_eq!(glyphs(1, 30, 16).images, set.images[..30 * 256], "a longer set begins with the shorter one");
    }

    #[test]
    fn a_nearest_class_mean_is_better_than_chance_and_far_from_perfect() {
        let (train, test) = (glyphs(1, 2000, 16), glyphs(2, 500, 16));
        let accuracy = nearest_class_mean(&train, &test);
        assert!((0.25..0.9).contains(&accuracy), "accuracy {accuracy}");
    }

    #[test]
    fn files_have_the_layout_their_readers_expect() {
        let folder = tempfile::tempdir().unwrap();
        let (images, labels) = (folder.path().join("images"), folder.path().join("labels"));
        let set = glyphs(1, 20, 16);
        set.write_idx(&images, &labels).unwrap();
        let bytes = fs::read(&images).unwrap();
        assert_eq!(bytes[..16], [0, 0, 8, 3, 0, 0, 0, 20, 0, 0, 0, 16, 0, 0, 0, 16]);
        assert_eq!(bytes[16..], set.images);
        let bytes = fs::read(&labels).unwrap();
        assert_eq!(bytes[..8], [0, 0, 8, 1, 0, 0, 0, 20]);
        assert_eq!(bytes[8..], set.labels);

        let path = folder.path().join("cifar");
        let error = set.write_cifar(&path).unwrap_err().to_string();
        assert!(error.ends_with("not of 16") && !path.exists(), "{error}");
        let set = glyphs(1, 3, 32);
        set.write_cifar(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 3 * 3073);
        assert_eq!(bytes[3073], set.labels[1]);
        assert_eq!(bytes[3074 + 2048..][..1024], set.images[1024..2048]);
    }
}
