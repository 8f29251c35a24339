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
