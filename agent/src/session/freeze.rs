//! Closing the gate of one mount for a cut. It must not know what the cut looks at.

use std::sync::atomic::{Ordering, fence};
use std::sync::{MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use storeshim_protocol::Mount;
use storeshim_protocol::control::FREEZE_MAX_NS;

use super::shared::Shared;
use super::table::Table;
use super::{IntentSink, STRAGGLER_AFTER, sys};

/// Clients may go on after [`FREEZE_MAX_NS`]; a cut has to be over, or given up, this much earlier.
const MARGIN: Duration = Duration::from_millis(200);
/// A thread inside that is not out after this long may be dead.
const SUSPECT_AFTER: Duration = Duration::from_millis(2);
/// Looks at the gates that only yield between them; later ones sleep.
const YIELDS: u32 = 20;
const NAP: Duration = Duration::from_micros(50);

/// A mount whose gate is closed. It opens when this is dropped.
pub struct Freeze<'a> {
    mount: Option<&'a Mount>,
    deadline: Instant,
    _one_at_a_time: Option<MutexGuard<'a, ()>>,
}

impl Freeze<'_> {
    /// Past this instant clients may go on: a look that ends later is void.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }
}

impl Drop for Freeze<'_> {
    fn drop(&mut self) {
        if let Some(mount) = self.mount {
            mount.frozen.store(0, Ordering::SeqCst);
            sys::futex_wake_all(&mount.frozen);
        }
    }
}

/// Closes `mount`'s gate; its events go to `sink`, or where there is none to its registered one.
pub(super) fn freeze<'a>(
    shared: &'a Shared,
    index: usize,
    mut sink: Option<&mut dyn IntentSink>,
) -> Freeze<'a> {
    let one_at_a_time =
        shared.gates.get(index).map(|gate| gate.lock().unwrap_or_else(PoisonError::into_inner));
    let control = &*shared.run.control;
    let mut table = shared.table();
    let begun = Instant::now();
    let deadline = begun + Duration::from_nanos(FREEZE_MAX_NS).saturating_sub(MARGIN);
    let mount = control.mounts.get(index);
    let frozen = Freeze { mount, deadline, _one_at_a_time: one_at_a_time };
    let Some(mount) = mount else { return frozen };

    mount.frozen.store(1, Ordering::SeqCst);
    // A process attaches by making a file in `rings/`, and enters its first gate after that: one whose file this scan
    // does not find makes it later, and sees the gate closed.
    fence(Ordering::SeqCst);
    if table.is_empty() {
        table.discover(passing(index, &mut sink));
    }
    if !table.is_empty() {
        sys::membarrier();
        // After the barrier, so that a ring which is still incomplete belongs to a process that will see the gate
        // closed.
        table.discover(passing(index, &mut sink));
        wait_for_threads(shared, &mut table, index, begun, &mut sink);
        table.drain(control, passing(index, &mut sink));
        table.tell_stragglers(index, passing(index, &mut sink));
    } else {
        // Also what was kept while the sink was busy has to be told.
        table.drain(control, passing(index, &mut sink));
    }
    mount.interval.fetch_add(1, Ordering::Release);
    frozen
}

/// Waits until nobody is inside, or until those who are count as stragglers.
fn wait_for_threads(
    shared: &Shared,
    table: &mut Table,
    index: usize,
    begun: Instant,
    sink: &mut Option<&mut dyn IntentSink>,
) {
    let mut looks = 0u32;
    let mut checked = None;
    while table.holds_up(index) {
        let waited = begun.elapsed();
        if waited >= STRAGGLER_AFTER {
            return;
        }
        if waited >= checked.unwrap_or(SUSPECT_AFTER) {
            table.bury_dead(&shared.run.control, passing(index, sink), |client| client.holds_up(index));
            checked = Some(waited * 2);
        }
        looks += 1;
        if looks <= YIELDS { thread::yield_now() } else { thread::sleep(NAP) }
    }
}

/// The sink as a table call takes it.
fn passing<'s>(
    index: usize,
    sink: &'s mut Option<&mut dyn IntentSink>,
) -> Option<(usize, &'s mut dyn IntentSink)> {
    sink.as_mut().map(|sink| (index, &mut **sink as &mut dyn IntentSink))
}
