//! Telling: intents into the thread's ring, and the memory of what was told already. Never blocks: what cannot be
//! told makes the agent look everywhere.

use core::sync::atomic::{Ordering, compiler_fence};

use storeshim_protocol::Intent;
use storeshim_protocol::intent::{Entry, encode, encode_short};
use storeshim_protocol::ring::WAKE_AT;

use crate::attach::{self, STACK_MAX, Seat, TOLD, Told};
use crate::{quota, sys};

/// Ranges are told in whole pages of this many bytes.
const PAGE: u64 = 4096;
/// Ranges within one such window share a place in the memory, so that a sequential writer's grow together.
const WINDOW_SHIFT: u32 = 16;

/// Pushes an intent of mount `index`.
#[inline(always)]
pub fn push(seat: &Seat, index: usize, intent: &Intent<'_>) {
    match encode_short(index as u8, intent) {
        Some(entry) => push_entries(seat, &[entry]),
        None => push_entries(seat, encode(index as u8, intent).entries()),
    }
}

#[inline(never)]
fn push_entries(seat: &Seat, entries: &[Entry]) {
    let pushing = &seat.slot.pushing;
    // Where on the stack this push is, never zero.
    let here = sys::stack_pointer() as u32 | 1;
    let busy = pushing.load(Ordering::Relaxed);
    if busy != 0 && here.wrapping_sub(busy) as usize > STACK_MAX {
        // A signal handler, further down the stack, in the middle of this thread's own push. (One further up means
        // that a handler jumped out of a push, which published nothing.)
        lost();
        return;
    }
    pushing.store(here, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
    let result = seat.slot.push(entries);
    compiler_fence(Ordering::SeqCst);
    pushing.store(0, Ordering::Relaxed);
    match result {
        Ok(waiting) if waiting < WAKE_AT => {}
        Ok(_) => attach::ring_bell(),
        Err(_) => {
            lost();
            attach::ring_bell();
        }
    }
}

/// Makes the agent look everywhere, because something could not be told.
#[cold]
pub fn lost() {
    if let Some(ring) = attach::attached() {
        ring.look_everywhere.store(1, Ordering::Release);
    }
}

/// As [`lost`], from a process that need not have attached yet.
pub fn lose() {
    if attach::ring().is_ok() {
        lost();
    }
}

/// Tells something that needs no gate, because nothing changes with it. Silent where this process cannot attach: the
/// call that changes something will say so.
#[inline(never)]
pub fn note(index: usize, intent: &Intent<'_>) {
    let Ok(ring) = attach::ring() else { return };
    match attach::seat(ring) {
        Some(seat) => {
            push(&seat, index, intent);
            seat.release();
        }
        None => lost(),
    }
}

#[inline(always)]
fn when(index: usize, interval: u32) -> u64 {
    // Never zero: that is an empty place.
    (index as u64 + 1) << 32 | u64::from(interval)
}

#[inline(always)]
fn place_of(seat: &Seat, ino: u64, window: u64) -> Option<&Told> {
    let hash = (ino ^ window.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    seat.private.told.get((hash >> 32) as usize % TOLD)
}

/// The window of ranges that reach to the end of any file.
const ALL: u64 = u64::MAX;

#[inline(always)]
fn holds(told: &Told, ino: u64, when: u64, start: u64, end: u64) -> bool {
    told.when.load(Ordering::Relaxed) == when
        && told.ino.load(Ordering::Relaxed) == ino
        && told.start.load(Ordering::Relaxed) <= start
        && told.end.load(Ordering::Relaxed) >= end
}

/// Whether the whole of `ino` was told in this interval.
#[inline(always)]
pub fn has_told_all(seat: &Seat, index: usize, interval: u32, ino: u64) -> bool {
    place_of(seat, ino, ALL).is_some_and(|told| holds(told, ino, when(index, interval), 0, u64::MAX))
}

/// Whether the end of `ino`, wherever that is, was told in this interval.
#[inline(always)]
pub fn has_told_end(seat: &Seat, index: usize, interval: u32, ino: u64) -> bool {
    place_of(seat, ino, ALL).is_some_and(|told| holds(told, ino, when(index, interval), u64::MAX, u64::MAX))
}

/// Written bytes of which the agent hears at once.
const ACCOUNT: u64 = 256 << 10;

/// Counts bytes written to a range that was told already: where they lie is known, but the agent must hear how many
/// they are, or it could not hold writers up in time. (A range from `u64::MAX` on is no range, only its length.)
#[inline(always)]
pub fn account(seat: &Seat, index: usize, ino: u64, bytes: u64) {
    let unsaid = seat.private.unsaid.load(Ordering::Relaxed).saturating_add(bytes);
    if unsaid < ACCOUNT {
        seat.private.unsaid.store(unsaid, Ordering::Relaxed);
        return;
    }
    seat.private.unsaid.store(0, Ordering::Relaxed);
    quota::spend(index, unsaid);
    push(seat, index, &Intent::Written { ino, offset: u64::MAX, length: unsaid });
}

/// Pushes the pages that `start..end` touches (an `end` of `u64::MAX` reaches to the end of the file), where they
/// were not told in this interval.
#[inline(always)]
pub fn push_range(seat: &Seat, index: usize, interval: u32, ino: u64, start: u64, end: u64) {
    let when = when(index, interval);
    let start = start & !(PAGE - 1);
    let open_ended = end == u64::MAX;
    let end = if open_ended { end } else { end.saturating_add(PAGE - 1) & !(PAGE - 1) };
    // Written by a handler in the middle of an update, a place may mix two ranges: skip it, tell more.
    let busy = seat.slot.pushing.load(Ordering::Relaxed) != 0;
    let told_all = place_of(seat, ino, ALL);
    if !busy && told_all.is_some_and(|told| holds(told, ino, when, start, end)) {
        if !open_ended {
            account(seat, index, ino, end - start);
        }
        return;
    }
    let window = if open_ended { ALL } else { start >> WINDOW_SHIFT };
    let Some(told) = place_of(seat, ino, window) else { return };
    if !busy && holds(told, ino, when, start, end) {
        return;
    }
    let length = if open_ended {
        u64::MAX
    } else {
        quota::spend(index, end - start);
        end - start
    };
    push(seat, index, &Intent::Written { ino, offset: start, length });
    if busy {
        return;
    }
    let same = told.when.load(Ordering::Relaxed) == when && told.ino.load(Ordering::Relaxed) == ino;
    let (before, after) = (told.start.load(Ordering::Relaxed), told.end.load(Ordering::Relaxed));
    // Invalid while it changes, for a handler that interrupts.
    told.when.store(0, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
    let touches = same && start <= after && before <= end;
    told.ino.store(ino, Ordering::Relaxed);
    told.start.store(if touches { before.min(start) } else { start }, Ordering::Relaxed);
    told.end.store(if touches { after.max(end) } else { end }, Ordering::Relaxed);
    compiler_fence(Ordering::SeqCst);
    told.when.store(when, Ordering::Relaxed);
}
