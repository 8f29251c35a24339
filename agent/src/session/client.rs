//! One attached process: its ring file, mapped, and what the agent remembers of each of its slots. Everything read
//! from the ring is hostile until it has been checked here or in `protocol`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use storeshim_protocol::gate::Seen;
use storeshim_protocol::intent::{ENTRIES_MAX, ENTRY_WORDS, Entry, decode};
use storeshim_protocol::request::{Request, Ticket};
use storeshim_protocol::ring::WAKE_AT;
use storeshim_protocol::{NAME_MAX, RingFile, SLOTS, Slot};

use super::feed::Feed;
use super::mapping::Mapping;
use super::requests::Pending;
use super::{SessionInfo, sys};

/// Records of a slot that are told again when its thread turns out to be a straggler.
const REMEMBERED: usize = 4;

/// A mapped ring file. Kept alive by answers that are still out.
pub(super) struct Ring {
    pub(super) map: Mapping<RingFile>,
    /// Per slot, the number of the latest request that was handed on: an older answer is not for it.
    pub(super) latest: [AtomicU64; SLOTS],
    /// Held while an answer is written.
    pub(super) answering: Mutex<()>,
    file: File,
    uid: u32,
}

impl Ring {
    pub(super) fn new(map: Mapping<RingFile>, file: File, uid: u32) -> Self {
        Self { map, latest: std::array::from_fn(|_| AtomicU64::new(0)), answering: Mutex::new(()), file, uid }
    }

    /// Inode number of its file.
    pub(super) fn ino(&self) -> Option<u64> {
        self.file.metadata().map(|meta| meta.ino()).ok()
    }

    /// The slot of that index.
    pub(super) fn slot(&self, index: usize) -> Option<&Slot> {
        self.map.slots.get(index)
    }

    /// The process, for messages: what it says of itself.
    pub(super) fn who(&self) -> String {
        format!("pid {} ({})", self.map.pid.load(Ordering::Relaxed), self.comm())
    }

    fn comm(&self) -> String {
        let bytes: Vec<u8> =
            self.map.comm.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
        let name = bytes.split(|byte| *byte == 0).next().unwrap_or(&[]);
        String::from_utf8_lossy(name).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
    }
}

/// A raw record, as it was drained.
type Record = ([Entry; ENTRIES_MAX], usize);

/// The last records of a slot.
#[derive(Clone, Default)]
struct History {
    records: Vec<Record>,
    next: usize,
}

impl History {
    fn push(&mut self, record: &[Entry]) {
        let mut entries = [[0; ENTRY_WORDS]; ENTRIES_MAX];
        for (to, from) in entries.iter_mut().zip(record) {
            *to = *from;
        }
        let record = (entries, record.len());
        match self.records.get_mut(self.next) {
            Some(place) => *place = record,
            None => self.records.push(record),
        }
        self.next = (self.next + 1) % REMEMBERED;
    }
}

/// A thread that a freeze did not wait for any longer.
struct Straggler {
    mount: usize,
    seen: Seen,
    subject: u64,
    history: History,
}

/// What the agent remembers of a slot.
#[derive(Default)]
struct SlotState {
    history: History,
    straggler: Option<Straggler>,
    dispatched: Option<Ticket>,
}

/// An attached process.
pub(super) struct Client {
    /// Name of its file in `rings/`.
    pub(super) name: OsString,
    pub(super) ring: Arc<Ring>,
    slots: Vec<SlotState>,
    /// Threads without a slot were stragglers in the last freeze.
    late_overflow: bool,
    lost_told: bool,
    corrupt_told: bool,
}

impl Client {
    pub(super) fn new(name: OsString, ring: Ring) -> Self {
        let mut slots = Vec::new();
        slots.resize_with(SLOTS, SlotState::default);
        Self {
            name,
            ring: Arc::new(ring),
            slots,
            late_overflow: false,
            lost_told: false,
            corrupt_told: false,
        }
    }

    /// Whether the process still holds its lock. What cannot be found out counts as life.
    pub(super) fn alive(&self) -> bool {
        sys::is_locked(&self.ring.file).unwrap_or(true)
    }

    /// For `status`.
    pub(super) fn info(&self) -> SessionInfo {
        let threads = self.ring.map.used().iter().filter(|s| s.owner.load(Ordering::Relaxed) != 0).count();
        SessionInfo {
            pid: self.ring.map.pid.load(Ordering::Relaxed),
            comm: self.ring.comm(),
            uid: self.ring.uid,
            threads,
        }
    }

    /// Tells what the rings hold. `mounts` is the number of mounts in the table. Returns how many rings were found
    /// corrupt.
    pub(super) fn drain(&mut self, mounts: usize, feed: &mut Feed<'_>) -> u64 {
        let map = &self.ring.map;
        if map.look_everywhere.load(Ordering::Relaxed) != 0
            && map.look_everywhere.swap(0, Ordering::AcqRel) != 0
        {
            feed.look_everywhere(&format!("{} could not tell all that it changed", self.ring.who()));
        }
        let mut corrupt = 0;
        for (slot, state) in map.used().iter().zip(&mut self.slots) {
            let mut good = true;
            let drained = slot.drain(|record| {
                let mut buffer = [0; NAME_MAX];
                match decode(record, &mut buffer) {
                    Some((mount, intent)) if usize::from(mount) < mounts => {
                        state.history.push(record);
                        feed.intent(mount.into(), intent);
                    }
                    _ => good = false,
                }
            });
            if drained.is_err() || !good {
                corrupt += 1;
            }
        }
        if corrupt > 0 {
            let why = format!("{} left records that make no sense", self.ring.who());
            if !std::mem::replace(&mut self.corrupt_told, true) {
                tracing::warn!("{why}; every tree will be looked at as a whole");
            }
            feed.look_everywhere(&why);
        }
        if map.lost() && !std::mem::replace(&mut self.lost_told, true) {
            let why = "a client truncated its ring file under the agent";
            tracing::warn!(uid = self.ring.uid, file = ?self.name, "{why}; its changes are found by audits only");
            feed.look_everywhere(why);
        }
        corrupt
    }

    /// Whether a freeze of `mount` has to wait for this process.
    pub(super) fn holds_up(&self, mount: usize) -> bool {
        let map = &self.ring.map;
        map.overflow_inside.load(Ordering::Acquire) != 0
            || map.used().iter().zip(&self.slots).any(|(slot, state)| {
                let seen = slot.gate.look();
                seen.inside() == Some(mount)
                    && !state.straggler.as_ref().is_some_and(|s| s.mount == mount && s.seen == seen)
            })
    }

    /// Inside the freeze, after the drain: names every thread that is still inside `mount`'s gate, and once more each
    /// one that was so in the last freeze: it may have made its change since.
    pub(super) fn tell_stragglers(&mut self, mount: usize, feed: &mut Feed<'_>) {
        let who = self.ring.who();
        let overflow = self.ring.map.overflow_inside.load(Ordering::Acquire) != 0;
        if overflow || self.late_overflow {
            feed.look_everywhere(&format!("a thread of {who} stayed inside the gate and cannot say where"));
        }
        self.late_overflow = overflow;
        for (slot, state) in self.ring.map.used().iter().zip(&mut self.slots) {
            let seen = slot.gate.look();
            let inside = seen.inside() == Some(mount);
            if let Some(known) = &state.straggler {
                // A slot remembers one straggler: one of another mount gives way, and is told its last time.
                if known.mount == mount || inside {
                    known.tell(&who, feed);
                    if !(inside && known.mount == mount && known.seen == seen) {
                        state.straggler = None;
                    }
                }
            }
            if inside && state.straggler.is_none() {
                let subject = slot.subject.load(Ordering::Relaxed);
                let straggler = Straggler { mount, seen, subject, history: state.history.clone() };
                straggler.tell(&who, feed);
                tracing::warn!(
                    subject,
                    "{who} has not finished a call within {:?}; the cut goes on and looks there again",
                    super::STRAGGLER_AFTER
                );
                state.straggler = Some(straggler);
            }
        }
    }

    /// The last drain of a process that has died, and what its death leaves in doubt. Returns as [`Client::drain`].
    pub(super) fn bury(mut self, mounts: usize, rings: &Path, feed: &mut Feed<'_>) -> u64 {
        let corrupt = self.drain(mounts, feed);
        let who = self.ring.who();
        let map = &self.ring.map;
        let inside = map.used().iter().any(|slot| slot.gate.look().inside().is_some());
        if inside || self.late_overflow || map.overflow_inside.load(Ordering::Acquire) != 0 {
            feed.look_everywhere(&format!("{who} died in the middle of a call"));
        }
        for straggler in self.slots.iter().filter_map(|state| state.straggler.as_ref()) {
            straggler.tell(&who, feed);
        }
        self.unlink(rings);
        corrupt
    }

    /// Removes the ring file, unless its name stands for another file by now.
    fn unlink(&self, rings: &Path) {
        let path = rings.join(&self.name);
        let same = match (self.ring.file.metadata(), fs::symlink_metadata(&path)) {
            (Ok(ours), Ok(named)) => ours.ino() == named.ino() && ours.dev() == named.dev(),
            _ => false,
        };
        if same && let Err(error) = fs::remove_file(&path) {
            tracing::debug!(?path, %error, "cannot remove the ring file of a process that has died");
        }
    }

    /// Hands every request that has not been handed on to `take`; `false` from it leaves the request for later.
    pub(super) fn take_requests(&mut self, mut take: impl FnMut(Pending) -> bool) {
        for (index, (slot, state)) in self.ring.map.used().iter().zip(&mut self.slots).enumerate() {
            if let Some((ticket, request)) = fresh_request(slot, state)
                && take(Pending { ring: Arc::clone(&self.ring), slot: index, ticket, request })
            {
                state.dispatched = Some(ticket);
            }
        }
    }

    /// Whether the agent should not go to sleep now.
    pub(super) fn needs_service(&self, served: impl Fn(&Result<Request, ()>) -> bool) -> bool {
        self.ring.map.used().iter().zip(&self.slots).any(|(slot, state)| {
            slot.waiting() >= WAKE_AT
                || fresh_request(slot, state).is_some_and(|(_, request)| served(&request))
        })
    }
}

fn fresh_request(slot: &Slot, state: &SlotState) -> Option<(Ticket, Result<Request, ()>)> {
    slot.request().pending().filter(|(ticket, _)| state.dispatched != Some(*ticket))
}

impl Straggler {
    fn tell(&self, who: &str, feed: &mut Feed<'_>) {
        feed.straggler(self.mount, self.subject, who);
        let mut buffer = [0; NAME_MAX];
        for (entries, count) in &self.history.records {
            if let Some((mount, intent)) = entries.get(..*count).and_then(|r| decode(r, &mut buffer))
                && usize::from(mount) == self.mount
            {
                feed.intent(self.mount, intent);
            }
        }
    }
}
