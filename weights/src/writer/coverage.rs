//! Which bytes have been written: a set of disjoint ranges.

use std::{collections::BTreeMap, ops::Range};

/// Disjoint, non-adjacent ranges: start to end.
#[derive(Debug, Default, Clone)]
pub(super) struct Coverage(BTreeMap<u64, u64>);

impl Coverage {
    /// Adds `range`; if a part of it is there already, that part is returned and nothing changes.
    pub fn add(&mut self, range: Range<u64>) -> Result<(), Range<u64>> {
        if range.is_empty() {
            return Ok(());
        }
        let Range { mut start, mut end } = range;
        if let Some((&s, &e)) = self.0.range(..end).next_back() {
            if e > start {
                return Err(s.max(start)..e.min(end));
            }
            if e == start {
                self.0.remove(&s);
                start = s;
            }
        }
        if let Some(&e) = self.0.get(&end) {
            self.0.remove(&end);
            end = e;
        }
        self.0.insert(start, end);
        Ok(())
    }

    /// The first part of `0..len` that is missing.
    pub fn first_gap(&self, len: u64) -> Option<Range<u64>> {
        let mut ranges = self.0.iter();
        let (covered, next) = match ranges.next() {
            Some((&0, &end)) => (end, ranges.next().map(|(&start, _)| start)),
            first => (0, first.map(|(&start, _)| start)),
        };
        (covered < len).then(|| covered..next.unwrap_or(len))
    }

    /// How many bytes are covered.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The definition: one flag a byte.
        #[test]
        fn agrees_with_a_bitmap(writes in prop::collection::vec((0u64..40, 0u64..12), 0..30)) {
            let mut coverage = Coverage::default();
            let mut bitmap = [false; 64];
            for (start, len) in writes {
                let range = start..start + len;
                let bits = &mut bitmap[start as usize..(start + len) as usize];
                let free = bits.iter().all(|bit| !bit);
                match coverage.add(range) {
                    Ok(()) => { prop_assert!(free); bits.fill(true); }
                    Err(shared) => {
                        prop_assert!(!free);
                        prop_assert!(shared.clone().all(|byte| bitmap[byte as usize]) && !shared.is_empty());
                    }
                }
                let gap = bitmap[..40].iter().position(|bit| !bit);
                prop_assert_eq!(coverage.first_gap(40).map(|gap| gap.start as usize), gap);
                prop_assert_eq!(coverage.bytes(), bitmap.iter().filter(|&&bit| bit).count() as u64);
                prop_assert!(coverage.0.iter().zip(coverage.0.iter().skip(1)).all(|(a, b)| a.1 < b.0));
            }
        }
    }
}
