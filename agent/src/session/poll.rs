//! The poll thread: shows that the agent lives, drains the rings every few milliseconds, and hands requests on as
//! soon as the doorbell rings.

use std::sync::atomic::{Ordering, fence};
use std::sync::{MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use super::shared::Shared;
use super::table::Table;
use super::{retire_unclaimed, sys};

/// Between two drains while processes are attached.
const BUSY: Duration = Duration::from_millis(5);
/// Between two looks for processes while none is attached.
const IDLE: Duration = Duration::from_millis(50);
/// While a freeze holds the session table.
const ASIDE: Duration = Duration::from_micros(500);
/// Entries of the mount table that no mount has claimed by then are given up.
const RETIRE_AFTER: Duration = Duration::from_secs(30);

/// Runs until [`Shared::stopping`] is set.
pub(super) fn run(shared: &Shared) {
    let control = &*shared.run.control;
    let started = Instant::now();
    let mut retired = false;
    while !shared.stopping.load(Ordering::Acquire) {
        control.heartbeat_ns.store(sys::monotonic_ns(), Ordering::Release);
        let Some(mut table) = try_table(shared) else {
            // A freeze may wait for stragglers; the heart must beat meanwhile.
            thread::sleep(ASIDE);
            continue;
        };
        table.turn(control);
        if !retired && started.elapsed() >= RETIRE_AFTER {
            retire_unclaimed(control, &mut table);
            retired = true;
        }
        let requests = table.take_requests();
        if requests.iter().any(|(request, _)| request.needs_told()) {
            // What their askers told before they asked may have come after the look above.
            table.drain(control, None);
        }
        let pause = if table.is_empty() { IDLE } else { BUSY };
        drop(table);
        for (request, ours) in requests {
            if ours { request.dispatch(&*shared.requests) } else { request.refuse() }
        }
        sleep(shared, pause);
    }
}

/// Sleeps on the doorbell. A client publishes, fences, and reads `sleeping`; this side sets `sleeping`, fences, and
/// looks once more: one of the two notices the other.
fn sleep(shared: &Shared, pause: Duration) {
    let (control, word) = (&*shared.run.control, &shared.run.doorbell.word);
    let value = word.load(Ordering::Acquire);
    control.sleeping.store(1, Ordering::SeqCst);
    fence(Ordering::SeqCst);
    let wanted = shared.stopping.load(Ordering::Acquire)
        || try_table(shared).is_none_or(|table| table.needs_service());
    if !wanted {
        sys::futex_wait(word, value, pause);
    }
    control.sleeping.store(0, Ordering::SeqCst);
}

fn try_table(shared: &Shared) -> Option<MutexGuard<'_, Table>> {
    match shared.table.try_lock() {
        Ok(table) => Some(table),
        Err(TryLockError::Poisoned(table)) => Some(PoisonError::into_inner(table)),
        Err(TryLockError::WouldBlock) => None,
    }
}
