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
    use std::collections::BTreeSet;

    use super::*;
    use crate::{data::glyphs::glyphs, kernel::test_values::uniform};

    /// Largest distance of a drawn deviation, mean (in deviations) or share from what it should be, relative: more than
    /// four times what chance does among 4096 pixels.
    const MAX_CHANCE: f64 = 0.08;

    fn set((height, width, channels): (usize, usize, usize), pixels: Vec<u8>) -> ImageSet {
        let labels = vec![0; pixels.len() / (height * width * channels)];
        ImageSet { height, width, channels, classes: 1, white: 255, pixels, labels }
    }

    /// `images` of one grey or colour, 64 × 64 pixels.
    fn flat(colour: &[u8]) -> ImageSet {
        set((64, 64, colour.len()), colour.repeat(64 * 64))
    }

    #[test]
    fn brightness_and_contrast_are_as_worked_out_by_hand() {
        // 0.08 · 255 = 20.4 and 0.38 · 255 = 96.9 are added.
        let greys = set((1, 4, 1), vec![0, 100, 240, 255]);
        assert_eq!(Corruption::Brightness.apply(1, &greys).pixels, [20, 120, 255, 255]);
        assert_eq!(Corruption::Brightness.apply(5, &greys).pixels, [97, 197, 255, 255]);
        // 0.38 · 16 = 6.08.
        let digits = ImageSet { white: 16, ..set((1, 3, 1), vec![0, 5, 12]) };
        assert_eq!(Corruption::Brightness.apply(5, &digits).pixels, [6, 11, 16]);
        // Channels of mean 100 and 30; 0.45 of the distance to it is left.
        let colours = set((2, 2, 2), vec![0, 10, 100, 10, 200, 50, 100, 50]);
        assert_eq!(Corruption::Contrast.apply(3, &colours).pixels, [55, 21, 100, 21, 145, 39, 100, 39]);
    }

    #[test]
    fn coarse_pixels_and_blur_are_means_worked_out_by_hand() {
        // Half as many pixels each way: means of 2 × 2.
        #[rustfmt::skip]
        let image = set((4, 4, 1), vec![
             0,  40, 100, 100,
            80, 120, 100, 104,
            10,  10, 255, 255,
            30,  30, 255, 255,
        ]);
        #[rustfmt::skip]
        let coarse = [
            60, 60, 101, 101,
            60, 60, 101, 101,
            20, 20, 255, 255,
            20, 20, 255, 255,
        ];
        assert_eq!(Corruption::Pixelate.apply(3, &image).pixels, coarse);

        let mut point = set((10, 10, 1), vec![0; 100]);
        point.pixels[54] = 255;
        // A tenth of the side is one pixel: the mean of 3 × 3. A twentieth is half of one: 1/2 + 1 + 1/2 each way.
        for (severity, centre, side, corner) in [(4, 28, 28, 28), (2, 64, 32, 16)] {
            let mut expected = vec![0; 100];
            for (row, column) in (4..=6).flat_map(|row| (3..=5).map(move |column| (row, column))) {
                let value = match (row == 5, column == 4) {
                    (true, true) => centre,
                    (false, false) => corner,
                    _ => side,
                };
                expected[10 * row + column] = value;
            }
            assert_eq!(Corruption::Blur.apply(severity, &point).pixels, expected, "severity {severity}");
        }
        // Means stop at the border, and nothing dark comes in.
        let flat = flat(&[77]);
        assert_eq!(Corruption::Blur.apply(5, &flat), flat);
    }

    #[test]
    fn fog_is_a_veil_of_white_of_the_same_share_for_every_colour() {
        let colours = set((8, 8, 3), [0, 100, 255].repeat(64));
        for severity in [1, 3, 5] {
            let foggy = Corruption::Fog.apply(severity, &colours);
            let amount = Corruption::Fog.amount(severity);
            let mut veils = BTreeSet::new();
            for pixel in foggy.pixels.chunks(3) {
                // What black has become is the veil itself.
                let veil = f64::from(pixel[0]) / 255.0;
                assert!(veil > 0.5 * amount - 0.004 && veil < 1.5 * amount + 0.004, "{veil} where {amount} is meant");
                // Two roundings to bytes.
                assert!((f64::from(pixel[1]) - (100.0 + 155.0 * veil)).abs() <= 1.0, "{pixel:?}");
                assert_eq!(pixel[2], 255);
                veils.insert(pixel[0]);
            }
            assert!(veils.len() > 1, "the veil is equally thick everywhere");
        }
    }

    #[test]
    fn moved_images_are_moved_as_far_as_they_should_with_black_coming_in() {
        const COUNT: usize = 6;
        const SIDE: isize = 16;
        let size = (SIDE * SIDE) as usize;
        let bytes = uniform(COUNT * size, 1).into_iter().map(|x| 1 + ((x + 1.0) * 127.0) as u8).collect();
        let images = set((16, 16, 1), bytes);
        for severity in 1..=SEVERITIES {
            let moved = Corruption::Translate.apply(severity, &images);
            let far = (Corruption::Translate.amount(severity) * 16.0).max(1.0);
            let mut ways = BTreeSet::new();
            for image in 0..COUNT {
                let (before, after) = (images.image(image), moved.image(image));
                let is_way = |&(down, right): &(isize, isize)| {
                    (0..SIDE).flat_map(|row| (0..SIDE).map(move |column| (row, column))).all(|(row, column)| {
                        let (r, c) = (row - down, column - right);
                        let inside = (0..SIDE).contains(&r) && (0..SIDE).contains(&c);
                        let expected = if inside { before[(r * SIDE + c) as usize] } else { 0 };
                        after[(row * SIDE + column) as usize] == expected
                    })
                };
                let near = (-4..=4).flat_map(|down| (-4..=4).map(move |right| (down, right)));
                let found: Vec<(isize, isize)> = near.filter(is_way).collect();
                assert_eq!(found.len(), 1, "severity {severity}: image {image} is not the same one moved");
                let (down, right) = found[0];
                // Each way is rounded to whole pixels.
                let apart = (down as f64).hypot(right as f64) - far;
                assert!(apart.abs() < 0.71, "severity {severity}: moved by {:?}, expected {far}", found[0]);
                ways.insert(found[0]);
            }
            assert!(ways.len() > 1, "severity {severity}: all images are moved the same way");
        }
    }

    #[test]
    fn noise_is_as_strong_as_it_should_be() {
        let moments = |images: &ImageSet| {
            let count = images.pixels.len() as f64;
            let mean = images.pixels.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
            (mean, (images.pixels.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / count).sqrt())
        };
        // 0.08 · 255, and √(brightness / 60) · 255 of light counted in 60 photons.
        let shot = |grey: u8| 255.0 * (f64::from(grey) / 255.0 / 60.0).sqrt();
        for (kind, grey, expected) in [
            (Corruption::Gaussian, 128, 0.08 * 255.0),
            (Corruption::Gaussian, 100, 0.08 * 255.0),
            (Corruption::Shot, 128, shot(128)),
            (Corruption::Shot, 64, shot(64)),
        ] {
            let (mean, deviation) = moments(&kind.apply(3, &flat(&[grey])));
            let name = kind.name();
            assert!((mean - f64::from(grey)).abs() < MAX_CHANCE * expected, "{name}: {grey} became {mean}");
            assert!((deviation / expected - 1.0).abs() < MAX_CHANCE, "{name}: {deviation}, expected {expected}");
        }
        let (mut black, mut white) = (0.0, 0.0);
        for pixel in Corruption::Impulse.apply(5, &flat(&[50, 100, 150])).pixels.chunks(3) {
            match pixel {
                [0, 0, 0] => black += 1.0,
                [255, 255, 255] => white += 1.0,
                _ => assert_eq!(pixel, [50, 100, 150]),
            }
        }
        // 11 of 100 pixels, half of them white: 225 each, give or take 15 by chance.
        let expected: f64 = 0.11 / 2.0 * 64.0 * 64.0;
        for hit in [black, white] {
            assert!((hit - expected).abs() < 75.0, "{black} black and {white} white pixels");
        }
    }

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
