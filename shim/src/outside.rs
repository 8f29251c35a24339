//! What the kernel was asked about and found to lie in no mount though its device holds a tree: directories, mostly, in
//! which names are changed by paths that begin outside of every mount. Asking takes four system calls; this is a memory
//! of the answers, which takes none.
//!
//! An answer is good for as long as no cut has gone by. What comes into a tree afterwards is new there, and so the cut
//! looks at all of it; with that cut the answer ends.

use core::sync::atomic::{AtomicU64, Ordering};

use storeshim_protocol::MAX_MOUNTS;

use crate::control::{self, Table};
use crate::fds;

/// Answers for each device that holds a tree.
const ANSWERS: usize = 64;

/// Inode in the upper 48 bits, below it the time of the answer; 0 is none.
static FOUND: [[AtomicU64; ANSWERS]; MAX_MOUNTS] =
    [const { [const { AtomicU64::new(0) }; ANSWERS] }; MAX_MOUNTS];

/// What changes with each cut of any mount.
pub fn now(table: &Table) -> u16 {
    table
        .mounts()
        .filter_map(|(index, _)| control::mount(index))
        .fold(0u16, |sum, mount| sum.wrapping_add(mount.interval.load(Ordering::Acquire) as u16))
}

/// Where an answer about inode `ino` on the device of mount `index` stands, and how it reads; `None` for an inode that
/// does not fit.
fn answer(index: usize, ino: u64, now: u16) -> Option<(&'static AtomicU64, u64)> {
    const INO_MAX: u64 = u64::MAX >> u16::BITS;
    let place = (ino.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % ANSWERS;
    let word = (1..=INO_MAX).contains(&ino).then(|| ino << u16::BITS | u64::from(now))?;
    Some((FOUND.get(index)?.get(place)?, word))
}

/// Whether it was found outside.
pub fn is_known(index: usize, ino: u64, now: u16) -> bool {
    answer(index, ino, now).is_some_and(|(place, word)| place.load(Ordering::Relaxed) == word)
}

/// Remembers that it was; `now` is from before the kernel was asked.
pub fn remember(index: usize, ino: u64, now: u16) {
    if fds::may_remember()
        && let Some((place, word)) = answer(index, ino, now)
    {
        place.store(word, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_about_one_inode_of_one_device_at_one_time() {
        assert!(!is_known(3, 77, 5));
        remember(3, 77, 5);
        assert!(is_known(3, 77, 5));
        assert!(!is_known(3, 77, 6), "a cut has gone by");
        assert!(!is_known(2, 77, 5), "another device");
        assert!(!is_known(3, 78, 5));
        for ino in [0, 1 << 48, u64::MAX] {
            remember(3, ino, 5);
            assert!(!is_known(3, ino, 5), "{ino} does not fit");
        }
        remember(MAX_MOUNTS, 1, 0);
        assert!(!is_known(MAX_MOUNTS, 1, 0));
    }

    #[test]
    fn answers_that_share_a_place_take_turns() {
        let place = |ino| answer(4, ino, 0).map(|(place, _)| place as *const AtomicU64);
        let other = (2..10_000).find(|ino| place(*ino) == place(1)).unwrap();
        remember(4, 1, 0);
        remember(4, other, 0);
        assert!(is_known(4, other, 0) && !is_known(4, 1, 0));
    }
}
