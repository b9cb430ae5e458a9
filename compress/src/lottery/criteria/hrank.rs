//! HRank (Lin et al. 2020; over blocks by Jordao et al. 2023): the mean rank of the maps a block makes, one a channel, as a
//! share of the largest rank a map of its size can have. The lowest go.

use super::{Criterion, Removes, State};
use crate::{Error, Result, lottery::scene::Scene};

#[derive(Debug)]
pub struct HRank;

/// A pivot below this share of the first, times the map's side, counts as zero: what f32 rounds away.
const ROUNDED: f64 = f32::EPSILON as f64;

/// The rank of `map`, (rows, columns), by elimination with the largest pivot there is.
fn rank(mut map: Vec<f64>, (rows, columns): (usize, usize)) -> usize {
    let least = |first: f64| first * ROUNDED * rows.max(columns) as f64;
    let mut first = None;
    for step in 0..rows.min(columns) {
        let left = (step..rows).flat_map(|row| (step..columns).map(move |column| (row, column)));
        let size = |&(row, column): &(usize, usize)| map[row * columns + column].abs();
        let Some((row, column)) = left.max_by(|a, b| size(a).total_cmp(&size(b))) else { return step };
        let pivot = map[row * columns + column];
        let largest = *first.get_or_insert(pivot.abs());
        if pivot == 0.0 || pivot.abs() <= least(largest) {
            return step;
        }
        for at in 0..columns {
            map.swap(step * columns + at, row * columns + at);
        }
        for at in 0..rows {
            map.swap(at * columns + step, at * columns + column);
        }
        for row in step + 1..rows {
            let factor = map[row * columns + step] / pivot;
            for at in step..columns {
                map[row * columns + at] -= factor * map[step * columns + at];
            }
        }
    }
    rows.min(columns)
}

impl Criterion for HRank {
    fn name(&self) -> &'static str {
        "hrank"
    }

    fn formula(&self) -> &'static str {
        "mean rank of the block's maps over the largest possible  (Lin et al. 2020)"
    }

    fn removes(&self) -> Removes {
        Removes::Lowest
    }

    fn state(&self) -> State {
        State::Trained
    }

    fn scores(&self, scene: &mut Scene<'_>) -> Result<Vec<Option<f64>>> {
        scene.dense()?;
        let images = scene.images.len();
        let mean = |block: usize| -> Result<f64> {
            let (mut ranks, mut maps) = (0, 0);
            let mut full = 0;
            for image in 0..images {
                let ((rows, columns), values) = scene.net.block_output(block, image);
                full = rows.min(columns);
                if full < 2 {
                    return Err(Error::Recipe(
                        "`hrank` needs blocks that make maps; those of this net make single pixels".into(),
                    ));
                }
                let channels = values.len() / (rows * columns);
                for channel in 0..channels {
                    let map = values.iter().skip(channel).step_by(channels).map(|&value| f64::from(value)).collect();
                    ranks += rank(map, (rows, columns));
                    maps += 1;
                }
            }
            Ok(ranks as f64 / (maps * full) as f64)
        };
        let of = |(at, block): (usize, &crate::lottery::Block)| match block.stays {
            Some(_) => Ok(None),
            None => mean(at).map(Some),
        };
        scene.blocks.iter().enumerate().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_matrices_that_are_known() {
        assert_eq!(rank(vec![0.0; 12], (3, 4)), 0);
        assert_eq!(rank((0..12).map(f64::from).collect(), (3, 4)), 2);
        let diagonal = (0..25).map(|at| if at % 6 == 0 { f64::from(at + 1) } else { 0.0 }).collect();
        assert_eq!(rank(diagonal, (5, 5)), 5);
        let outer = (0..20).map(|at| f64::from(at / 4 + 1) * f64::from(at % 4 + 2)).collect();
        assert_eq!(rank(outer, (5, 4)), 1);
    }
}
