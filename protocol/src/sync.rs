//! All atomics of this crate, from one place, so that loom can take theirs.

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence, fence};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// loom has no compiler fence; the asymmetric (membarrier) form is modelled by a full fence on both sides.
#[cfg(loom)]
pub(crate) fn compiler_fence(order: Ordering) {
    fence(order)
}
