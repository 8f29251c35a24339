//! Being inside the gate: entered before a call that changes something, left after it. Knows what the call is
//! about only as far as a straggler must be named.

use core::sync::atomic::{AtomicU32, Ordering};

use storeshim_protocol::control::FREEZE_MAX_NS;
use storeshim_protocol::{Intent, Mount};

use crate::attach::{self, Seat};
use crate::control;
use crate::sys::{self, Errno, errno};
use crate::tell;

/// Longest sleep in one piece while a freeze lasts, in nanoseconds.
const SLICE_NS: u64 = 20_000_000;

/// A call in progress inside the gate of a mount; leaves when it is dropped.
pub struct Inside {
    mount: &'static Mount,
    index: usize,
    way: Way,
    interval: u32,
}

enum Way {
    /// Through the thread's own gate, and where the call that this one interrupted while it was about to enter (in a
    /// signal handler) stands on the stack.
    Seat(Seat, usize),
    /// A signal handler's call inside an interrupted one: the gate is held already.
    Nested(Seat),
    /// No slot was free: only counted.
    Counted(&'static AtomicU32),
}

/// Enters the gate of mount `index` for a call on `subject` (an inode, 0 where there is more than one). Waits
/// while a cut looks at the tree.
///
/// Errors: EIO where the agent cannot be told.
#[inline(never)]
pub fn enter(index: usize, subject: u64) -> Result<Inside, Errno> {
    let ring = attach::ring()?;
    let mount = control::mount(index).ok_or(Errno::of(errno::EIO))?;
    let Some(seat) = attach::seat(ring) else {
        return Ok(enter_counted(index, mount, &ring.overflow_inside));
    };
    let sp = sys::stack_pointer();
    if seat.slot.gate.is_inside() {
        let entered = seat.private.entered_at.load(Ordering::Relaxed);
        if !attach::is_gone(entered, sp) {
            return Ok(Inside {
                mount,
                index,
                interval: mount.interval.load(Ordering::Relaxed),
                way: Way::Nested(seat),
            });
        }
        // The frame that entered is gone: a signal handler jumped out of it.
        seat.slot.pushing.store(0, Ordering::Relaxed);
        seat.slot.gate.leave();
    }
    seat.slot.subject.store(subject, Ordering::Relaxed);
    let interrupted = seat.private.entered_at.load(Ordering::Relaxed);
    seat.private.entered_at.store(sp, Ordering::Relaxed);
    let fenced = ring.fenced.load(Ordering::Relaxed) != 0;
    if !seat.slot.gate.try_enter(index, mount, fenced) {
        wait_frozen(
            mount,
            || seat.slot.gate.try_enter(index, mount, fenced),
            || {
                seat.slot.gate.enter_unchecked(index, fenced);
            },
        );
    }
    Ok(Inside {
        mount,
        index,
        interval: mount.interval.load(Ordering::Relaxed),
        way: Way::Seat(seat, interrupted),
    })
}

#[cold]
#[inline(never)]
fn enter_counted(index: usize, mount: &'static Mount, count: &'static AtomicU32) -> Inside {
    let try_enter = || {
        count.fetch_add(1, Ordering::SeqCst);
        if mount.frozen.load(Ordering::SeqCst) == 0 {
            return true;
        }
        count.fetch_sub(1, Ordering::SeqCst);
        false
    };
    wait_frozen(mount, try_enter, || {
        count.fetch_add(1, Ordering::SeqCst);
    });
    Inside { mount, index, interval: mount.interval.load(Ordering::Relaxed), way: Way::Counted(count) }
}

/// Waits until a freeze is over, or has lasted longer than a living agent lets it.
#[cold]
#[inline(never)]
fn wait_frozen(mount: &Mount, mut try_enter: impl FnMut() -> bool, go_on: impl FnOnce()) {
    let start = sys::now_ns();
    while !try_enter() {
        let _ =
            sys::futex_wait(&raw const mount.frozen, mount.frozen.load(Ordering::Acquire).max(1), SLICE_NS);
        if sys::now_ns().saturating_sub(start) > FREEZE_MAX_NS || !control::agent_lives() {
            go_on();
            return;
        }
    }
}

impl Inside {
    /// Leaves, before something is asked of the agent.
    #[cold]
    #[inline(never)]
    pub fn leave(self) {
        drop(self);
    }

    /// Tells the agent.
    #[inline(never)]
    pub fn tell(&self, intent: &Intent<'_>) {
        match self.seat() {
            Some(seat) => tell::push(seat, self.index, intent),
            None => tell::lost(),
        }
    }

    /// Tells that `start..end` of `ino` may change, unless this thread has told so in this interval.
    #[inline(never)]
    pub fn tell_range(&self, ino: u64, start: u64, end: u64) {
        match self.seat() {
            Some(seat) => tell::push_range(seat, self.index, self.interval, ino, start, end),
            None => tell::lost(),
        }
    }

    /// Whether all of `ino` was told in this interval, so that no position need be found out.
    #[inline(never)]
    pub fn has_told_all(&self, ino: u64) -> bool {
        self.seat().is_some_and(|seat| tell::has_told_all(seat, self.index, self.interval, ino))
    }

    /// Whether the end of `ino` was told in this interval: an append then adds nothing.
    #[inline(never)]
    pub fn has_told_end(&self, ino: u64) -> bool {
        self.seat().is_some_and(|seat| tell::has_told_end(seat, self.index, self.interval, ino))
    }

    /// Counts bytes that go where a write was told already.
    #[inline(never)]
    pub fn account(&self, ino: u64, bytes: u64) {
        if let Some(seat) = self.seat() {
            tell::account(seat, self.index, ino, bytes);
        }
    }

    /// Names what the call is about, where that was found out inside.
    #[inline(always)]
    pub fn is_about(&self, ino: u64) {
        if let Way::Seat(seat, _) = &self.way {
            seat.slot.subject.store(ino, Ordering::Relaxed);
        }
    }

    /// Whether a cut went by while this call was inside (it took too long to be waited for): what was told before is
    /// consumed, and must be told again.
    #[inline(always)]
    pub fn overtaken(&mut self) -> bool {
        let now = self.mount.interval.load(Ordering::Acquire);
        let overtaken = now != self.interval;
        self.interval = now;
        overtaken
    }

    fn seat(&self) -> Option<&Seat> {
        match &self.way {
            Way::Seat(seat, _) | Way::Nested(seat) => Some(seat),
            Way::Counted(_) => None,
        }
    }
}

impl Drop for Inside {
    #[inline]
    fn drop(&mut self) {
        match &self.way {
            Way::Seat(seat, interrupted) => {
                seat.slot.gate.leave();
                // A call that this one came in front of enters next: it must not look as if it had been jumped out of.
                seat.private.entered_at.store(*interrupted, Ordering::Relaxed);
                seat.release();
            }
            Way::Nested(_) => {}
            Way::Counted(count) => {
                count.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }
}
