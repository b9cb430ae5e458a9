//! The images of a zoo, as rows of numbers, in three parts that never mix: for ancestors, for fine-tunes, for tests.

use crate::{
    Error, Result,
    data::{images::ImageSet, random::Stream},
};

/// Taken off the brightness, so that paper and ink lie on either side of 0.
const MIDDLE: f32 = 0.3;

/// Longest side that networks of a zoo see: larger ones make larger files, not a harder question.
const LONGEST_SIDE: usize = 16;

/// Rows of numbers with their classes.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// (rows, width).
    pub values: Vec<f32>,
    /// (rows).
    pub labels: Vec<usize>,
    /// Numbers of a row.
    pub width: usize,
    /// Labels lie below.
    pub classes: usize,
}

impl Rows {
    /// Row `at`.
    ///
    /// # Panics
    /// If there is none.
    pub fn row(&self, at: usize) -> &[f32] {
        &self.values[at * self.width..][..self.width]
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The images `which` of a square grey set, each `pool` × `pool` pixels averaged to one.
    fn of(set: &ImageSet, which: &[usize], pool: usize) -> Self {
        let (side, share) = (set.width, 1.0 / f32::from(set.white) / (pool * pool) as f32);
        let small = side / pool;
        let mut values = Vec::with_capacity(which.len() * small * small);
        for &at in which {
            let image = set.image(at);
            for (row, column) in (0..small).flat_map(|row| (0..small).map(move |column| (row, column))) {
                let pixels = (0..pool * pool).map(|p| (row * pool + p / pool) * side + column * pool + p % pool);
                values.push(pixels.map(|p| f32::from(image[p])).sum::<f32>() * share - MIDDLE);
            }
        }
        let labels = which.iter().map(|&at| usize::from(set.labels[at])).collect();
        Self { values, labels, width: small * small, classes: set.classes }
    }

    /// All rows in four rotations of a square picture of one channel; the class is (class, rotation).
    fn rotated(&self, side: usize) -> Self {
        let mut out = Self { values: Vec::new(), labels: Vec::new(), width: self.width, classes: 4 * self.classes };
        for at in 0..self.len() {
            let mut picture = self.row(at).to_vec();
            for rotation in 0..4 {
                out.values.extend_from_slice(&picture);
                out.labels.push(4 * self.labels[at] + rotation);
                picture = (0..side * side).map(|to| picture[(side - 1 - to % side) * side + to / side]).collect();
            }
        }
        out
    }
}

/// The three parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Pictures {
    /// What ancestors learn: picture and rotation.
    pub pretext: Rows,
    /// What fine-tunes learn.
    pub tuning: Rows,
    /// What fine-tunes are tested on.
    pub test: Rows,
}

impl Pictures {
    /// Splits `set`: a third for ancestors, a half for fine-tunes, the rest for tests, at most `most` images in all.
    /// Images of a side longer than 16 are averaged down by a whole factor.
    ///
    /// # Errors
    /// If the images are not square and of one channel, or too few.
    pub fn split(set: &ImageSet, most: usize, seed: u64) -> Result<Self> {
        let refuse = |what: String| Err(Error::Recipe(format!("a zoo needs {what}")));
        if set.height != set.width || set.channels != 1 {
            return refuse(format!(
                "square grey images, found {} × {} pixels of {} channels",
                set.height, set.width, set.channels
            ));
        }
        let mut order: Vec<usize> = (0..set.len()).collect();
        Stream::new(seed, "zoo/pictures", 0).shuffle(&mut order);
        order.truncate(most);
        let (first, second) = (order.len() / 3, order.len() / 3 + order.len() / 2);
        let fits = |pool: &usize| set.width.is_multiple_of(*pool) && set.width / pool <= LONGEST_SIDE;
        let pool = (1..=set.width).find(fits).unwrap_or(1);
        let tuning = Rows::of(set, &order[first..second], pool);
        let least = (0..set.classes).map(|class| tuning.labels.iter().filter(|&&l| l == class).count()).min();
        if least.unwrap_or(0) < 8 {
            return refuse(format!("at least 8 images of each class to fine-tune on, found {}", least.unwrap_or(0)));
        }
        Ok(Self {
            pretext: Rows::of(set, &order[..first], pool).rotated(set.height / pool),
            tuning,
            test: Rows::of(set, &order[second..], pool),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pictures_are_averaged_down() {
        let pixels = (0..32 * 32).map(|at| ((at / 32) / 2 * 10 + at % 2 * 2) as u8).collect();
        let set = ImageSet { height: 32, width: 32, channels: 1, classes: 1, white: 100, pixels, labels: vec![0] };
        let rows = Rows::of(&set, &[0], 2);
        assert_eq!(rows.width, 256);
        for (at, value) in rows.values.iter().enumerate() {
            let expected = ((at / 16 * 10) as f32 + 1.0) / 100.0 - MIDDLE;
            assert!((value - expected).abs() < 1e-6, "{at}: {value} {expected}");
        }
    }

    #[test]
    fn four_rotations_come_back_to_the_start() {
        let rows = Rows { values: vec![1.0, 2.0, 3.0, 4.0], labels: vec![7], width: 4, classes: 10 };
        let turned = rows.rotated(2);
        assert_eq!(turned.labels, [28, 29, 30, 31]);
        assert_eq!(turned.values, [1., 2., 3., 4., 3., 1., 4., 2., 4., 3., 2., 1., 2., 4., 1., 3.]);
    }
}
