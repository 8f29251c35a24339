//! The agent's reading side against memory that a client fills as it likes. One body for the fuzzer
//! (`protocol/fuzz`) and for a bounded run in the tests.

use crate::gate::Gate;
use crate::intent::{ENTRIES_MAX, NAME_MAX, decode};
use crate::request::Answer;
use crate::ring::{ENTRIES, Slot};

/// Takes `bytes` as a client's doings: three bytes of place and width, then a word, again and again; looks at the slot
/// after each few of them, as the agent does. Panics where the agent would do anything that it must not.
pub fn ring(bytes: &[u8]) {
    let (start, doings) = bytes.split_at_checked(4).unwrap_or((&[], bytes));
    let start = start.try_into().map_or(0, u32::from_le_bytes);
    let slot = Slot::new(start);
    for (number, doing) in doings.chunks(11).enumerate() {
        let (&[low, high, times], word) = doing.split_first_chunk().unwrap_or((&[0, 0, 0], &[]));
        let mut padded = [0u8; 8];
        for (to, from) in padded.iter_mut().zip(word) {
            *to = *from;
        }
        let word = u64::from_le_bytes(padded);
        let place = u16::from_le_bytes([low, high]);
        // Counters are hit often, and mostly near to where they stand; entries in runs.
        match place {
            0..=0x3fff => slot.scribble(0, u64::from(start).wrapping_add(word & 0x7ff)),
            0x4000..=0x4fff => slot.scribble(place & 3, word),
            _ => {
                for step in 0..u16::from(times) {
                    slot.scribble(place.wrapping_add(step * 8).max(3), word);
                }
            }
        }
        if number % 3 == 2 {
            look(&slot, word);
        }
    }
    look(&slot, 0);
}

/// What the agent does with a slot.
fn look(slot: &Slot, word: u64) {
    let (mut records, mut entries) = (0, 0);
    let drained = slot.drain(|record| {
        records += 1;
        entries += record.len();
        assert!((1..=ENTRIES_MAX).contains(&record.len()));
        let mut buffer = [0; NAME_MAX];
        if let Some((_, crate::Intent::Name { name, .. })) = decode(record, &mut buffer) {
            assert!(name.len() <= NAME_MAX && !name.contains(&b'/') && !name.contains(&0));
        }
    });
    assert!(records <= ENTRIES && entries <= ENTRIES, "a drain is bounded");
    assert!(drained.is_err() || slot.waiting() == 0);
    assert_eq!(slot.waiting(), 0, "after a drain the ring is empty, whatever was in it");
    if let Some((ticket, _)) = slot.request().pending() {
        assert!(slot.request().reply(ticket, Answer { errno: word as i32, value: word }));
        assert!(slot.request().pending().is_none());
        assert!(slot.request().take_reply().is_some_and(|answer| (0..4096).contains(&answer.errno)));
    }
    assert!(Gate::new(word).look().inside().is_none_or(|mount| mount < 255));
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_confuse_the_agent(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            super::ring(&bytes);
        }
    }
}
