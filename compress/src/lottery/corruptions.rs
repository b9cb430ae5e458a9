//! Nine ways in which images go bad, at five severities each: a small set of our own after Hendrycks and Dietterich 2019
//! (whose ImageNet-C and CIFAR-10-C it does not equal: published `.npy` files are read as any other images are).
//!
//! Pixels run from 0 to 1 here; sizes of moves and blurs are shares of the image's side, so that small images are not hit
//! harder. What is random depends on (kind, severity, image) alone, and each result is rounded back to bytes.

use serde::Serialize;

use crate::data::{images::ImageSet, random::Stream};

/// Severities, counted from 1.
pub const SEVERITIES: usize = 5;

/// A way of going bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Corruption {
    /// Normal noise.
    Gaussian,
    /// Noise of counted light, more where it is bright.
    Shot,
    /// Pixels turned black or white.
    Impulse,
    /// Mean over a square around each pixel.
    Blur,
    /// Coarse pixels.
    Pixelate,
    /// Everything brighter.
    Brightness,
    /// Everything nearer to the image's mean.
    Contrast,
    /// A smooth white veil.
    Fog,
    /// Moved, black coming in.
    Translate,
}

impl Corruption {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Gaussian,
        Self::Shot,
        Self::Impulse,
        Self::Blur,
        Self::Pixelate,
        Self::Brightness,
        Self::Contrast,
        Self::Fog,
        Self::Translate,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gaussian => "gaussian",
            Self::Shot => "shot",
            Self::Impulse => "impulse",
            Self::Blur => "blur",
            Self::Pixelate => "pixelate",
            Self::Brightness => "brightness",
            Self::Contrast => "contrast",
            Self::Fog => "fog",
            Self::Translate => "translate",
        }
    }

    /// How much, by severity: deviation of noise, photons of full brightness, share of pixels, share of the side, added
    /// brightness, share of contrast left, opacity.
    fn amount(self, severity: usize) -> f64 {
        let table = match self {
            Self::Gaussian => [0.04, 0.06, 0.08, 0.10, 0.14],
            Self::Shot => [250.0, 120.0, 60.0, 30.0, 15.0],
            Self::Impulse => [0.01, 0.02, 0.04, 0.07, 0.11],
            Self::Blur => [0.03, 0.05, 0.07, 0.10, 0.13],
            Self::Pixelate => [0.75, 0.62, 0.5, 0.4, 0.3],
            Self::Brightness => [0.08, 0.15, 0.22, 0.30, 0.38],
            Self::Contrast => [0.75, 0.6, 0.45, 0.3, 0.2],
            Self::Fog => [0.15, 0.25, 0.35, 0.45, 0.55],
            Self::Translate => [0.04, 0.07, 0.10, 0.14, 0.18],
        };
        table[severity.clamp(1, SEVERITIES) - 1]
    }

    /// `images` gone bad; labels stay.
    pub fn apply(self, severity: usize, images: &ImageSet) -> ImageSet {
        let mut out = images.clone();
        let each = images.values();
        let name = format!("lottery/corruption/{}/{severity}", self.name());
        for (image, bytes) in out.pixels.chunks_exact_mut(each).enumerate() {
            let mut stream = Stream::new(0, &name, image as u64);
            let white = f64::from(images.white);
            let mut pixels: Vec<f64> = bytes.iter().map(|&byte| f64::from(byte) / white).collect();
            self.one(self.amount(severity), &mut pixels, (images.height, images.width, images.channels), &mut stream);
            for (byte, pixel) in bytes.iter_mut().zip(pixels) {
                *byte = (pixel.clamp(0.0, 1.0) * white).round() as u8;
            }
        }
        out
    }

    fn one(self, amount: f64, pixels: &mut [f64], size: (usize, usize, usize), stream: &mut Stream) {
        let (height, width, channels) = size;
        let at = |row: usize, column: usize, channel: usize| (row * width + column) * channels + channel;
        let side = height.min(width) as f64;
        let places = || (0..height).flat_map(move |row| (0..width).map(move |column| (row, column)));
        match self {
            Self::Gaussian => pixels.iter_mut().for_each(|pixel| *pixel += amount * stream.normal()),
            // Many photons: the normal limit of the counts.
            Self::Shot => {
                pixels.iter_mut().for_each(|pixel| *pixel += (pixel.max(0.0) / amount).sqrt() * stream.normal());
            }
            Self::Impulse => {
                for (row, column) in places() {
                    let (hit, white) = (stream.unit() < amount, stream.unit() < 0.5);
                    for channel in 0..channels {
                        if hit {
                            pixels[at(row, column, channel)] = if white { 1.0 } else { 0.0 };
                        }
                    }
                }
            }
            Self::Blur => {
                // A square whose border counts in part: the width grows without steps.
                let reach = amount * side;
                let whole = reach.floor() as isize + 1;
                let weight = |by: isize| (reach + 1.0 - by.abs() as f64).clamp(0.0, 1.0);
                for vertical in [true, false] {
                    let source = pixels.to_vec();
                    for (row, column) in places() {
                        for channel in 0..channels {
                            let (mut sum, mut all) = (0.0, 0.0);
                            for by in -whole..=whole {
                                let (r, c) = if vertical { (by, 0) } else { (0, by) };
                                let near = row.checked_add_signed(r).zip(column.checked_add_signed(c));
                                if let Some((r, c)) = near.filter(|&(r, c)| r < height && c < width) {
                                    sum += weight(by) * source[at(r, c, channel)];
                                    all += weight(by);
                                }
                            }
                            pixels[at(row, column, channel)] = sum / all;
                        }
                    }
                }
            }
            Self::Pixelate => {
                let coarse = |count: usize| ((count as f64 * amount).round() as usize).clamp(1, count);
                let (rows, columns) = (coarse(height), coarse(width));
                let source = pixels.to_vec();
                let cell = |row: usize, column: usize| (row * rows / height, column * columns / width);
                for channel in 0..channels {
                    let (mut sums, mut counts) = (vec![0.0; rows * columns], vec![0.0; rows * columns]);
                    for (row, column) in places() {
                        let (r, c) = cell(row, column);
                        sums[r * columns + c] += source[at(row, column, channel)];
                        counts[r * columns + c] += 1.0;
                    }
                    for (row, column) in places() {
                        let (r, c) = cell(row, column);
                        pixels[at(row, column, channel)] = sums[r * columns + c] / counts[r * columns + c];
                    }
                }
            }
            Self::Brightness => pixels.iter_mut().for_each(|pixel| *pixel += amount),
            Self::Contrast => {
                for channel in 0..channels {
                    let own = || (channel..height * width * channels).step_by(channels);
                    let mean = own().map(|at| pixels[at]).sum::<f64>() / (height * width) as f64;
                    for at in own() {
                        pixels[at] = mean + amount * (pixels[at] - mean);
                    }
                }
            }
            Self::Fog => {
                // Three waves across the image, slow ones.
                let waves: Vec<(f64, f64, f64)> =
                    (0..3).map(|_| (stream.between(-1.5, 1.5), stream.between(-1.5, 1.5), stream.unit())).collect();
                for (row, column) in places() {
                    let (y, x) = (row as f64 / height as f64, column as f64 / width as f64);
                    let wave = |&(a, b, start): &(f64, f64, f64)| {
                        (std::f64::consts::TAU * (a * y + b * x + start)).sin() / 3.0
                    };
                    let veil = amount * (1.0 + 0.5 * waves.iter().map(wave).sum::<f64>());
                    for channel in 0..channels {
                        let pixel = &mut pixels[at(row, column, channel)];
                        *pixel = *pixel * (1.0 - veil) + veil;
                    }
                }
            }
            Self::Translate => {
                let far = (amount * side).max(1.0);
                let turn = stream.between(0.0, std::f64::consts::TAU);
                let (down, right) = ((far * turn.sin()).round() as isize, (far * turn.cos()).round() as isize);
                let source = pixels.to_vec();
                for (row, column) in places() {
                    let from = row.checked_add_signed(-down).zip(column.checked_add_signed(-right));
                    let from = from.filter(|&(row, column)| row < height && column < width);
                    for channel in 0..channels {
                        pixels[at(row, column, channel)] =
                            from.map_or(0.0, |(row, column)| source[at(row, column, channel)]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::glyphs::glyphs;

    #[test]
    fn severities_grow_and_depend_on_nothing_else() {
        let images = ImageSet::of_glyphs(glyphs(5, 60, 16));
        let apart = |a: &ImageSet, b: &ImageSet| -> f64 {
            a.pixels.iter().zip(&b.pixels).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs()).sum()
        };
        for kind in Corruption::ALL {
            let moved: Vec<f64> =
                (1..=SEVERITIES).map(|severity| apart(&images, &kind.apply(severity, &images))).collect();
            assert!(moved[0] > 0.0 && moved[4] > 1.4 * moved[0], "{}: {moved:?}", kind.name());
            assert!(moved.windows(2).all(|pair| pair[1] >= 0.95 * pair[0]), "{}: {moved:?}", kind.name());
            let (all, first) = (kind.apply(3, &images), kind.apply(3, &images.select(0..7)));
            assert_eq!(all.select(0..7), first, "{}", kind.name());
            assert_eq!(all.labels, images.labels);
        }
    }
}
