//! The gate: how a cut holds hooked mutating calls off for its few microseconds.
//!
//! A thread says that it is inside by a plain store, then reads the mount's `frozen` word; the agent sets
//! `frozen`, makes every running client thread execute a full barrier (membarrier(2),
//! `MEMBARRIER_CMD_GLOBAL_EXPEDITED`), and only then reads the threads' gates. So either the thread sees
//! `frozen` and steps back, or the agent sees the thread inside and waits (Dekker's argument, with the costly
//! half of the fence moved to the rare side). A client that could not register for membarrier fences itself.

use crate::control::Mount;
use crate::sync::{AtomicU64, Ordering, compiler_fence, fence};

/// A thread's gate word: bits 8.. count entries, the low byte is mount index + 1 while inside, else 0.
#[repr(transparent)]
pub struct Gate(AtomicU64);

/// What the agent reads from a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen(u64);

impl Seen {
    /// The mount that the thread is inside of, if any.
    pub fn inside(self) -> Option<usize> {
        (self.0 as u8).checked_sub(1).map(usize::from)
    }
}

impl Gate {
    /// Client: enters the gate of mount `index`. `false`: the mount is frozen and the gate was left again; wait
    /// on `mount.frozen` (bounded by [`crate::control::FREEZE_MAX_NS`]) and try once more.
    ///
    /// `fenced` is set by clients that are not registered for membarrier.
    #[inline(always)]
    #[must_use]
    pub fn try_enter(&self, index: usize, mount: &Mount, fenced: bool) -> bool {
        self.enter_unchecked(index, fenced);
        if mount.frozen.load(Ordering::Acquire) == 0 {
            return true;
        }
        self.leave();
        false
    }

    /// Client: enters whether or not the mount is frozen: for a freeze that has outlived its bound.
    #[inline(always)]
    pub fn enter_unchecked(&self, index: usize, fenced: bool) {
        let count = self.0.load(Ordering::Relaxed) | 0xff;
        self.0.store(count.wrapping_add(1) | (index as u64 + 1), Ordering::Relaxed);
        if fenced { fence(Ordering::SeqCst) } else { compiler_fence(Ordering::SeqCst) }
    }

    /// Client: leaves the gate; everything done inside happens before the agent sees it left.
    #[inline(always)]
    pub fn leave(&self) {
        self.0.store(self.0.load(Ordering::Relaxed) & !0xff, Ordering::Release);
    }

    /// Client: whether this thread is inside already (a signal handler that interrupted a gated call).
    #[inline(always)]
    pub fn is_inside(&self) -> bool {
        self.0.load(Ordering::Relaxed) & 0xff != 0
    }

    /// Agent: what the gate says now. Two equal values seen inside are the same entry.
    pub fn look(&self) -> Seen {
        Seen(self.0.load(Ordering::Acquire))
    }
}

#[cfg(any(test, fuzzing))]
impl Gate {
    pub(crate) fn new(word: u64) -> Self {
        Self(AtomicU64::new(word))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_gate_says_who_is_inside_of_what() {
        let (gate, mount) = (Gate::new(0), Mount::new());
        assert_eq!(gate.look().inside(), None);
        for index in [0, 7] {
            assert!(gate.try_enter(index, &mount, true));
            assert!(gate.is_inside());
            assert_eq!(gate.look().inside(), Some(index));
            gate.leave();
            assert!(!gate.is_inside());
        }
    }

    #[test]
    fn two_entries_never_look_the_same() {
        let (gate, mount) = (Gate::new(0), Mount::new());
        let mut seen = Vec::new();
        for _ in 0..300 {
            assert!(gate.try_enter(3, &mount, false));
            seen.push(gate.look());
            gate.leave();
            seen.push(gate.look());
        }
        let inside: Vec<_> = seen.iter().filter(|s| s.inside().is_some()).map(|s| s.0).collect();
        let mut unique = inside.clone();
        unique.dedup();
        assert_eq!(inside, unique);
        assert_eq!(inside.len(), 300);
    }

    #[test]
    fn a_frozen_mount_is_not_entered_except_by_force() {
        let (gate, mount) = (Gate::new(0), Mount::new());
        mount.frozen.store(1, Ordering::Relaxed);
        assert!(!gate.try_enter(0, &mount, false));
        assert!(!gate.is_inside());
        gate.enter_unchecked(0, true);
        assert_eq!(gate.look().inside(), Some(0));
    }

    #[test]
    fn the_count_wraps_without_touching_the_mount() {
        let gate = Gate::new(u64::MAX << 8);
        gate.enter_unchecked(2, true);
        assert_eq!(gate.look().inside(), Some(2));
        assert_eq!(gate.look().0, 3);
    }
}
