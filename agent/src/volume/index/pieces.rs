//! Sets of pieces of a file, as sorted ranges of piece numbers. It must not know what a set stands for.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Numbers of pieces ([`storeshim_protocol::residency::PIECE`] bytes each, from the start of the file): sorted ranges
/// `first..end` that do not touch. Exact, however many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pieces(Vec<(u64, u64)>);

impl Pieces {
    /// The pieces of `range`.
    #[must_use]
    pub fn of(range: Range<u64>) -> Self {
        let mut pieces = Self::default();
        pieces.add(range);
        pieces
    }

    /// The ranges `first..end`, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.0.iter().map(|(first, end)| *first..*end)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|(first, end)| end - first).sum()
    }

    /// One behind the last; 0 where there are none.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.0.last().map_or(0, |(_, end)| *end)
    }

    /// Whether `piece` is one of them.
    #[must_use]
    pub fn contains(&self, piece: u64) -> bool {
        self.within(piece..piece.saturating_add(1)).next().is_some()
    }

    /// Those of them that are in `range`, in order.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let from = self.0.partition_point(|(_, end)| *end <= range.start);
        self.0
            .get(from..)
            .unwrap_or(&[])
            .iter()
            .map(move |(first, end)| (*first).max(range.start)..(*end).min(range.end))
            .take_while(|part| part.start < part.end)
    }

    /// Adds those of `range`.
    pub fn add(&mut self, range: Range<u64>) {
        if range.start >= range.end {
            return;
        }
        let from = self.0.partition_point(|(_, end)| *end < range.start);
        let upto = self.0.partition_point(|(first, _)| *first <= range.end).max(from);
        let touched = self.0.get(from..upto).unwrap_or(&[]);
        let first = touched.first().map_or(range.start, |(first, _)| range.start.min(*first));
        let end = touched.last().map_or(range.end, |(_, end)| range.end.max(*end));
        self.0.splice(from..upto, [(first, end)]);
    }

    /// Takes those of `range` away.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.start >= range.end {
            return;
        }
        let from = self.0.partition_point(|(_, end)| *end <= range.start);
        let upto = self.0.partition_point(|(first, _)| *first < range.end).max(from);
        let touched = self.0.get(from..upto).unwrap_or(&[]);
        let left = touched.first().map(|(first, _)| (*first, range.start));
        let right = touched.last().map(|(_, end)| (range.end, *end));
        let kept: Vec<_> = left.into_iter().chain(right).filter(|(first, end)| first < end).collect();
        self.0.splice(from..upto, kept);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_of_pieces_is_a_set(steps in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..20), 1..40)) {
            let (mut pieces, mut model) = (Pieces::default(), BTreeSet::new());
            for (add, first, count) in steps {
                let range = first..first + count;
                if add {
                    pieces.add(range.clone());
                    model.extend(range);
                } else {
                    pieces.remove(range.clone());
                    model.retain(|piece| !range.contains(piece));
                }
                prop_assert_eq!(pieces.iter().flatten().collect::<BTreeSet<_>>(), model.clone());
                prop_assert!(pieces.0.windows(2).all(|w| w[0].1 < w[1].0) && pieces.0.iter().all(|(a, b)| a < b));
                prop_assert_eq!(pieces.count(), model.len() as u64);
                prop_assert_eq!(pieces.end(), model.last().map_or(0, |last| last + 1));
                for piece in 0..80 {
                    prop_assert_eq!(pieces.contains(piece), model.contains(&piece));
                }
                let inside: Vec<u64> = pieces.within(10..30).flatten().collect();
                let expected: Vec<u64> = model.range(10..30).copied().collect();
                prop_assert_eq!(inside, expected);
            }
        }
    }
}
