//! Residency: what of a tree is on this disk. Written by the agent, mapped read-only by clients, one file for each mount.
//! It answers "is this here, and was it here all the while that I read it" with a few loads. It must not know how
//! anything gets here, or why it goes.
//!
//! ```text
//! cells   one for each remainder of inode numbers: ABSENT = some inode of this cell may lack something
//!         (a directory its entries, a file some bytes); MOVING = the agent is writing into one, and its times are
//!         not to be believed; above them how often it has begun that, and above that a version, raised by each
//!         eviction before the bytes go
//! slots   of files that are here in part: which pieces are. An acceleration: who finds no slot asks the agent
//! words   the slots' bitmaps, a bit for each piece
//! ```
//! A reader checks, reads, and checks that its stamp still holds; if not, it reads again. So bytes may be taken away
//! under a reader at any time, and it never believes the zeros that it then reads.

use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// Bytes of a file that come and go together. The last piece of a file may be shorter.
pub const PIECE: u64 = 128 << 10;
/// Cells of a mount.
pub const CELLS: usize = if cfg!(loom) { 2 } else { 1 << 20 };
/// Slots of a mount.
pub const SLOTS: usize = if cfg!(loom) { 2 } else { 1 << 15 };
/// Words of bitmaps of a mount: 64 pieces each.
pub const WORDS: usize = if cfg!(loom) { 2 } else { 1 << 17 };
/// Slots in which an inode may stand: those from its own one on, in a ring.
pub const REACH: usize = if cfg!(loom) { 2 } else { 8 };

const ABSENT: u64 = 1 << 0;
const MOVING: u64 = 1 << 1;
const MOVES: u64 = 1 << 2;
const VERSION: u64 = 1 << 32;

/// Bitmaps of a file that is here in part.
#[repr(C, align(32))]
struct Slot {
    /// Kernel inode number; 0 while the slot is free or changes hands.
    ino: AtomicU64,
    /// Pieces of the file.
    pieces: AtomicU64,
    /// First word of its bitmap.
    word: AtomicU32,
    /// Raised each time that the slot changes hands.
    epoch: AtomicU32,
}

/// See the module.
#[repr(C, align(4096))]
pub struct Residency {
    cells: [AtomicU64; CELLS],
    slots: [Slot; SLOTS],
    words: [AtomicU64; WORDS],
}

/// What held when [`Residency::check`] said yes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    cell: usize,
    value: u64,
}

impl Residency {
    fn cell(&self, at: usize) -> u64 {
        self.cells.get(at).map_or(ABSENT, |cell| cell.load(Ordering::Acquire))
    }

    /// Client: whether all that belongs to an inode is here: a directory's entries, a file's bytes.
    #[inline]
    pub fn whole(&self, ino: u64) -> Option<Stamp> {
        let cell = cell_of(ino);
        let value = self.cell(cell);
        (value & ABSENT == 0).then_some(Stamp { cell, value })
    }

    /// Client: whether the bytes `start..end` of a file are here. `None`: some may not be; ask the agent.
    #[inline]
    pub fn check(&self, ino: u64, start: u64, end: u64) -> Option<Stamp> {
        let cell = cell_of(ino);
        let value = self.cell(cell);
        if value & ABSENT == 0 || self.has_pieces(ino, start, end) {
            Some(Stamp { cell, value })
        } else {
            None
        }
    }

    /// Client, before it asks the agent for bytes: what is to hold still when they have been read. For who finds no slot
    /// even after the answer, and so can ask no more of the table than whether something has gone since.
    pub fn stamp(&self, ino: u64) -> Stamp {
        let cell = cell_of(ino);
        Stamp { cell, value: self.cell(cell) }
    }

    /// Client, after reading: whether nothing was taken away since the stamp was given. If not, what was read may be
    /// zeros that are none: check and read again.
    #[inline]
    #[must_use]
    pub fn still(&self, stamp: Stamp) -> bool {
        // What was read is ordered before the look at the version.
        fence(Ordering::Acquire);
        (self.cell(stamp.cell) ^ stamp.value) < VERSION
    }

    /// Client, after reading: whether moreover nothing was brought since, nor was being brought then. What was not here then
    /// has been zeros all the while.
    #[inline]
    #[must_use]
    pub fn is_calm(&self, stamp: Stamp) -> bool {
        fence(Ordering::Acquire);
        stamp.value & MOVING == 0 && (self.cell(stamp.cell) ^ stamp.value) & !ABSENT == 0
    }

    /// Client: whether the agent is just writing into an inode of this cell, so that its times are not the file's.
    #[inline]
    pub fn is_moving(&self, ino: u64) -> bool {
        self.cell(cell_of(ino)) & MOVING != 0
    }

    fn has_pieces(&self, ino: u64, start: u64, end: u64) -> bool {
        let Some(slot) = self.find(ino) else { return false };
        let epoch = slot.epoch.load(Ordering::Acquire);
        if slot.ino.load(Ordering::Acquire) != ino {
            return false;
        }
        let pieces = slot.pieces.load(Ordering::Relaxed);
        // What lies behind the end of the file needs no piece.
        let (mut piece, last) = (start / PIECE, end.div_ceil(PIECE).min(pieces));
        let base = slot.word.load(Ordering::Relaxed) as usize;
        while piece < last {
            let Some(word) = self.words.get(base.wrapping_add((piece / 64) as usize)) else { return false };
            let upto = last.min((piece / 64 + 1) * 64);
            let mask = (u64::MAX >> (64 - (upto - piece))) << (piece % 64);
            if word.load(Ordering::Acquire) & mask != mask {
                return false;
            }
            piece = upto;
        }
        fence(Ordering::Acquire);
        slot.epoch.load(Ordering::Relaxed) == epoch
    }

    fn find(&self, ino: u64) -> Option<&Slot> {
        places_of(ino).filter_map(|at| self.slots.get(at)).find(|s| s.ino.load(Ordering::Relaxed) == ino)
    }
}

/// The agent's side. One thread at a time may call these; they are no more than stores, and need no lock of clients.
impl Residency {
    /// Something of `ino` is not here: to be said before it is missing for the first time.
    pub fn set_absent(&self, ino: u64) {
        self.change(ino, |value| value | ABSENT);
    }

    /// Everything of every inode of this cell is here (callers count them).
    pub fn set_whole(&self, ino: u64) {
        self.change(ino, |value| value & !ABSENT);
    }

    /// The agent begins or ends to write into `ino`.
    pub fn set_moving(&self, ino: u64, moving: bool) {
        let begun = |value: u64| value & !(VERSION - 1) | (value + MOVES) & (VERSION - 1) | MOVING;
        self.change(ino, |value| if moving { begun(value) } else { value & !MOVING });
        fence(Ordering::SeqCst);
    }

    /// Bytes of `ino` are about to be taken away. To be called when [`Residency::set_absent`] was, and their pieces are
    /// hidden already, and before they go: who sees the new version sees neither of what was before it.
    pub fn evicting(&self, ino: u64) {
        self.change(ino, |value| value.wrapping_add(VERSION) | ABSENT);
        fence(Ordering::SeqCst);
    }

    fn change(&self, ino: u64, change: impl FnOnce(u64) -> u64) {
        if let Some(cell) = self.cells.get(cell_of(ino)) {
            cell.store(change(cell.load(Ordering::Relaxed)), Ordering::Release);
        }
    }

    /// Gives slot `slot` to a file of `pieces` pieces, whose bitmap begins at `word` and is clear; `ino` 0 frees the
    /// slot. `false` where the bitmap does not lie within [`WORDS`].
    pub fn give(&self, slot: usize, ino: u64, pieces: u64, word: u32) -> bool {
        let (Some(slot), Ok(words)) = (self.slots.get(slot), usize::try_from(pieces.div_ceil(64))) else {
            return false;
        };
        let Some(bitmap) = self.words.get(word as usize..).and_then(|rest| rest.get(..words)) else {
            return false;
        };
        slot.ino.store(0, Ordering::Relaxed);
        let epoch = slot.epoch.load(Ordering::Relaxed);
        slot.epoch.store(epoch.wrapping_add(1), Ordering::Release);
        // Whoever reads what follows with the old inode in mind sees that the epoch moved.
        fence(Ordering::SeqCst);
        bitmap.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        slot.pieces.store(pieces, Ordering::Relaxed);
        slot.word.store(word, Ordering::Relaxed);
        slot.ino.store(ino, Ordering::Release);
        true
    }

    /// Shows or hides a piece. To be shown after its bytes are there, hidden before [`Residency::evicting`]. `false`
    /// where the file has no slot or no such piece.
    pub fn set_piece(&self, ino: u64, piece: u64, here: bool) -> bool {
        let Some(slot) = self.find(ino).filter(|s| piece < s.pieces.load(Ordering::Relaxed)) else {
            return false;
        };
        let at = (slot.word.load(Ordering::Relaxed) as usize).wrapping_add((piece / 64) as usize);
        let Some(word) = self.words.get(at) else { return false };
        let bit = 1 << (piece % 64);
        let bits = word.load(Ordering::Relaxed);
        word.store(if here { bits | bit } else { bits & !bit }, Ordering::Release);
        true
    }
}

/// The cell of an inode number.
#[inline(always)]
pub fn cell_of(ino: u64) -> usize {
    (ino % CELLS as u64) as usize
}

/// The slots in which an inode may stand.
pub fn places_of(ino: u64) -> impl Iterator<Item = usize> {
    // Inode numbers are given out in runs; the multiplication scatters them (Knuth, TAOCP 6.4).
    let own = (ino.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize;
    (0..REACH).map(move |step| own.wrapping_add(step) % SLOTS)
}

#[cfg(test)]
impl Residency {
    pub(crate) fn new() -> Box<Self> {
        #[cfg(not(loom))]
        {
            // SAFETY: atomics of integers, for which zeros are valid; too large for a stack.
            unsafe { Box::<Self>::new_zeroed().assume_init() }
        }
        #[cfg(loom)]
        Box::new(Self {
            cells: std::array::from_fn(|_| AtomicU64::new(0)),
            slots: std::array::from_fn(|_| Slot {
                ino: AtomicU64::new(0),
                pieces: AtomicU64::new(0),
                word: AtomicU32::new(0),
                epoch: AtomicU32::new(0),
            }),
            words: std::array::from_fn(|_| AtomicU64::new(0)),
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_nobody_spoke_of_is_here() {
        let r = Residency::new();
        let stamp = r.check(7, 0, u64::MAX).unwrap();
        assert!(r.whole(7) == Some(stamp) && r.still(stamp));
    }

    #[test]
    fn an_eviction_voids_the_stamps_of_its_cell_alone() {
        let r = Residency::new();
        let (near, far) = (r.whole(7).unwrap(), r.whole(8).unwrap());
        r.evicting(7);
        assert!(!r.still(near) && r.still(far));
        assert_eq!(r.whole(7), None);
        r.set_whole(7);
        assert!(r.whole(7).is_some() && !r.still(near), "it came back, but was away");
        let asked = r.stamp(7);
        r.set_absent(7);
        assert!(r.still(asked));
        r.evicting(7);
        assert!(!r.still(asked) && r.still(far));
    }

    #[test]
    fn coming_and_writing_void_no_stamp() {
        let r = Residency::new();
        r.set_absent(7);
        let slot = places_of(7).next().unwrap();
        assert!(r.give(slot, 7, 3, 10) && r.set_piece(7, 1, true));
        let stamp = r.check(7, PIECE, 2 * PIECE).unwrap();
        assert!(r.is_calm(stamp));
        r.set_moving(7, true);
        assert!(r.is_moving(7) && !r.is_calm(stamp));
        let amid = r.check(7, PIECE, 2 * PIECE).unwrap();
        assert!(r.set_piece(7, 0, true));
        r.set_moving(7, false);
        r.set_whole(7);
        assert!(r.still(stamp) && r.still(amid) && !r.is_moving(7));
        assert!(!r.is_calm(stamp), "it was written meanwhile");
        assert!(!r.is_calm(amid), "it was being written then");
        assert!(r.is_calm(r.stamp(7)));
    }

    #[test]
    fn moves_are_counted_in_their_own_bits() {
        let r = Residency::new();
        r.cells[7].store(VERSION - 1, Ordering::Relaxed);
        let stamp = r.stamp(7);
        r.set_moving(7, true);
        assert!(r.still(stamp) && !r.is_calm(stamp));
    }

    #[test]
    fn a_slot_that_changed_hands_answers_for_the_new_one_only() {
        let r = Residency::new();
        (7..9).for_each(|ino| r.set_absent(ino));
        let slot = places_of(7).next().unwrap();
        assert!(r.give(slot, 7, 70, 0) && (0..70).all(|piece| r.set_piece(7, piece, true)));
        assert!(r.check(7, 0, u64::MAX).is_some());
        assert!(r.give(slot, 0, 0, 0));
        assert_eq!(r.check(7, 0, 1), None);
        assert!(r.give(slot, 7, 70, 0));
        assert_eq!(r.check(7, 0, 1), None, "a new owner begins with nothing");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let r = Residency::new();
        assert!(!r.give(SLOTS, 1, 1, 0));
        assert!(!r.give(0, 1, 65, WORDS as u32 - 1));
        assert!(!r.give(0, 1, u64::MAX, 0));
        assert!(!r.set_piece(1, 0, true), "it has no slot");
        assert!(r.give(places_of(1).next().unwrap(), 1, 2, 0) && !r.set_piece(1, 2, true));
    }

    proptest! {
        #[test]
        fn ranges_are_here_where_all_their_pieces_are(
            here in prop::collection::btree_set(0_u64..200, 0..200), pieces in 1_u64..200,
            start in 0_u64..200 * PIECE, len in 0_u64..100 * PIECE,
        ) {
            let r = Residency::new();
            r.set_absent(7);
            prop_assert!(r.give(places_of(7).last().unwrap(), 7, pieces, 5));
            for piece in &here {
                prop_assert_eq!(r.set_piece(7, *piece, true), *piece < pieces);
            }
            let wanted: BTreeSet<u64> = (start / PIECE..(start + len).div_ceil(PIECE).min(pieces)).collect();
            prop_assert_eq!(r.check(7, start, start + len).is_some(), wanted.is_subset(&here));
            prop_assert!(r.whole(7).is_none());
        }
    }
}
