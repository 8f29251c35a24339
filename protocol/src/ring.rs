//! Ring files: per process, one single-producer single-consumer ring per thread.
//!
//! The producer fills entries and publishes them by one release store of `head`, so a process killed at any
//! instruction leaves whole records only. The consumer is the agent; it owns `tail`. A full ring never blocks:
//! the producer raises [`RingFile::look_everywhere`] and goes on.

use crate::gate::Gate;
use crate::intent::{ENTRIES_MAX, ENTRY_WORDS, Entry, entries_of};
use crate::request::RequestCell;
use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Threads of a process that have a ring of their own; further ones share the overflow path.
pub const SLOTS: usize = 64;
/// Entries in a ring: a power of two, so that positions may wrap round the 32-bit counters.
#[cfg(not(loom))]
pub const ENTRIES: usize = 1024;
/// Entries in a ring, few enough for the model checker.
#[cfg(loom)]
pub const ENTRIES: usize = 4;
const _: () = assert!(ENTRIES.is_power_of_two());
/// The agent is woken when a ring gets this full.
pub const WAKE_AT: u32 = ENTRIES as u32 / 2;

/// A thread's part of a ring file.
#[repr(C, align(4096))]
pub struct Slot {
    /// Client only: identifies the thread that holds the slot; 0 is free.
    pub owner: AtomicU64,
    /// The thread's gate.
    pub gate: Gate,
    /// Inode or directory that the call inside the gate is about: names the object of a straggler.
    pub subject: AtomicU64,
    /// Client only: non-zero while a push is under way (a signal handler must not start another).
    pub pushing: AtomicU32,
    head: AtomicU32,
    request_line: RequestLine,
    tail: TailLine,
    entries: [[AtomicU64; ENTRY_WORDS]; ENTRIES],
}

#[repr(C, align(64))]
struct RequestLine(RequestCell);

#[repr(C, align(64))]
struct TailLine(AtomicU32);

/// A ring is full; nothing was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Slot {
    /// The thread's request area.
    pub fn request(&self) -> &RequestCell {
        &self.request_line.0
    }

    /// Producer: publishes all of `record` or nothing. Returns how many entries wait for the agent.
    #[inline(always)]
    pub fn push(&self, record: &[Entry]) -> Result<u32, Full> {
        let head = self.head.load(Ordering::Relaxed);
        let used = head.wrapping_sub(self.tail.0.load(Ordering::Acquire));
        let after = used.wrapping_add(record.len() as u32);
        if after > ENTRIES as u32 {
            return Err(Full);
        }
        for (i, entry) in record.iter().enumerate() {
            let Some(place) = self.entries.get((head as usize).wrapping_add(i) % ENTRIES) else {
                return Err(Full);
            };
            for (word, value) in place.iter().zip(entry) {
                word.store(*value, Ordering::Relaxed);
            }
        }
        self.head.store(head.wrapping_add(record.len() as u32), Ordering::Release);
        Ok(after)
    }

    /// Consumer: hands every published record to `f`, then frees the entries. `Err` where the ring holds what no
    /// producer of ours writes; it is then emptied, and the caller looks everywhere.
    ///
    /// Bounded: it goes no further than `head` was at the call, and never hands over more than [`ENTRIES`] records.
    pub fn drain(&self, mut f: impl FnMut(&[Entry])) -> Result<(), Corrupt> {
        let head = self.head.load(Ordering::Acquire);
        let mut tail = self.tail.0.load(Ordering::Relaxed);
        let mut result = Ok(());
        if head.wrapping_sub(tail) > ENTRIES as u32 {
            result = Err(Corrupt);
            tail = head;
        }
        while tail != head {
            let first = self.entry(tail);
            let count = entries_of(&first).filter(|n| *n as u32 <= head.wrapping_sub(tail));
            let Some(count) = count else {
                result = Err(Corrupt);
                break;
            };
            let mut record = [[0u64; ENTRY_WORDS]; ENTRIES_MAX];
            for (i, entry) in record.iter_mut().take(count).enumerate() {
                // The first entry is not read again: it was checked, and a hostile client could change it.
                *entry = if i == 0 { first } else { self.entry(tail.wrapping_add(i as u32)) };
            }
            f(record.get(..count).unwrap_or(&[]));
            tail = tail.wrapping_add(count as u32);
        }
        self.tail.0.store(head, Ordering::Release);
        result
    }

    fn entry(&self, at: u32) -> Entry {
        let mut out = [0u64; ENTRY_WORDS];
        if let Some(place) = self.entries.get(at as usize % ENTRIES) {
            for (value, word) in out.iter_mut().zip(place) {
                *value = word.load(Ordering::Relaxed);
            }
        }
        out
    }
}

/// A ring that no producer of ours has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt;

/// A process's ring file. Its first byte carries the OFD lock that tells the agent that the process lives.
#[repr(C, align(4096))]
pub struct RingFile {
    /// [`crate::RING_MAGIC`], written last.
    pub magic: AtomicU64,
    /// [`crate::VERSION`].
    pub version: AtomicU32,
    /// `size_of::<RingFile>()`.
    pub size: AtomicU32,
    /// The client's process id in its own pid namespace: for messages only.
    pub pid: AtomicU32,
    /// Raised when an intent could not be told: the agent looks everywhere.
    pub look_everywhere: AtomicU32,
    /// Threads without a slot that are inside a gate, of any mount.
    pub overflow_inside: AtomicU32,
    /// Client only: non-zero where the gate needs a full fence (membarrier could not be had).
    pub fenced: AtomicU32,
    /// `comm` of the process at attach: for messages only.
    pub comm: [AtomicU64; 2],
    /// Slots `0..slots_used` may have been in use; 0 says nothing, and all are looked at. Spares the agent the
    /// untouched slots, which a mere read would allocate on a tmpfs.
    pub slots_used: AtomicU32,
    reserved: AtomicU32,
    /// The threads' slots.
    pub slots: [Slot; SLOTS],
}

impl RingFile {
    /// Client: takes a free slot for the thread that `owner` (not 0) stands for; returns its index, too. `None`
    /// where all are taken: the thread uses the overflow path. To give it back, store 0 to its `owner`.
    pub fn claim(&self, owner: u64) -> Option<(usize, &Slot)> {
        for (index, slot) in self.slots.iter().enumerate() {
            if slot.owner.load(Ordering::Relaxed) == 0
                && slot.owner.compare_exchange(0, owner, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                // Before the slot's first gate: what the agent looks at after its membarrier includes it.
                self.slots_used.fetch_max(index as u32 + 1, Ordering::SeqCst);
                return Some((index, slot));
            }
        }
        None
    }

    /// Agent: the slots that may have been in use.
    pub fn used(&self) -> &[Slot] {
        let used = match self.slots_used.load(Ordering::Acquire) as usize {
            0 => SLOTS,
            used => used.min(SLOTS),
        };
        self.slots.get(..used).unwrap_or(&[])
    }

    /// Whether a client of our version made this file.
    pub fn compatible(&self) -> bool {
        self.magic.load(Ordering::Acquire) == crate::RING_MAGIC
            && self.version.load(Ordering::Relaxed) == crate::VERSION
            && self.size.load(Ordering::Relaxed) as usize == size_of::<RingFile>()
    }
}
