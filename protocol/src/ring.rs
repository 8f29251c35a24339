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

/// Where a slot's request area, tail and entries lie.
#[cfg(all(test, not(loom)))]
pub(crate) const fn offsets() -> [usize; 3] {
    use core::mem::offset_of;
    [offset_of!(Slot, request_line), offset_of!(Slot, tail), offset_of!(Slot, entries)]
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

    /// Consumer: how many entries wait; at [`WAKE_AT`] they should not wait for long.
    pub fn waiting(&self) -> u32 {
        self.head.load(Ordering::Relaxed).wrapping_sub(self.tail.0.load(Ordering::Relaxed))
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

#[cfg(any(test, fuzzing))]
impl Slot {
    /// A slot whose counters stand at `start`.
    pub(crate) fn new(start: u32) -> Self {
        Self {
            owner: AtomicU64::new(0),
            gate: Gate::new(0),
            subject: AtomicU64::new(0),
            pushing: AtomicU32::new(0),
            head: AtomicU32::new(start),
            request_line: RequestLine(RequestCell::new()),
            tail: TailLine(AtomicU32::new(start)),
            entries: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
        }
    }

    /// Writes words where a client could: the counters, the request, the entries.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn scribble(&self, place: u16, word: u64) {
        match place {
            0 => self.head.store(word as u32, Ordering::Relaxed),
            1 => self.tail.0.store(word as u32, Ordering::Relaxed),
            2 => self.request().word().store(word as u32, Ordering::Relaxed),
            _ => {
                let (entry, at) = (usize::from(place) / ENTRY_WORDS, usize::from(place) % ENTRY_WORDS);
                if let Some(entry) = self.entries.get(entry % ENTRIES)
                    && let Some(place) = entry.get(at)
                {
                    place.store(word, Ordering::Relaxed);
                }
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;
    use crate::intent::{Intent, NAME_MAX, decode, encode};

    #[derive(Clone, Debug)]
    enum Step {
        Push(usize),
        Drain,
    }

    fn name_of(len: usize, number: u64) -> Vec<u8> {
        let mut name = format!("{number:08}").into_bytes();
        name.resize(len.max(8), b'x');
        name
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// The ring against a queue, with counters that wrap in the middle.
        #[test]
        fn a_ring_is_a_bounded_queue_of_whole_records(
            before in 0..2000u32,
            steps in prop::collection::vec(
                prop_oneof![9 => (8..=NAME_MAX).prop_map(Step::Push), 1 => Just(Step::Drain)], 1..3000),
        ) {
            let slot = Slot::new(0u32.wrapping_sub(before));
            let mut queue: VecDeque<Vec<u8>> = VecDeque::new();
            let mut entries = 0;
            for (number, step) in steps.iter().enumerate() {
                match step {
                    Step::Push(len) => {
                        let name = name_of(*len, number as u64);
                        let encoded = encode(1, &Intent::Name { dir: 2, name: &name });
                        let count = encoded.entries().len();
                        match slot.push(encoded.entries()) {
                            Ok(used) => {
                                entries += count;
                                prop_assert_eq!(used as usize, entries);
                                queue.push_back(name);
                            }
                            Err(Full) => prop_assert!(entries + count > ENTRIES),
                        }
                        prop_assert_eq!(slot.waiting() as usize, entries);
                    }
                    Step::Drain => {
                        let drained = slot.drain(|record| {
                            let mut buffer = [0; NAME_MAX];
                            let Some((1, Intent::Name { dir: 2, name })) = decode(record, &mut buffer) else {
                                panic!("another record came out");
                            };
                            assert_eq!(queue.pop_front().as_deref(), Some(name));
                        });
                        prop_assert_eq!(drained, Ok(()));
                        prop_assert!(queue.is_empty());
                        entries = 0;
                    }
                }
            }
        }
    }

    #[test]
    fn counters_that_cannot_be_are_corrupt_and_set_right() {
        for head in [1025, 5000, u32::MAX] {
            let slot = Slot::new(0);
            slot.scribble(0, head.into());
            assert_eq!(slot.drain(|_| panic!("nothing was pushed")), Err(Corrupt));
            assert_eq!(slot.drain(|_| panic!("nothing was pushed")), Ok(()));
            assert!(slot.push(&[[4; ENTRY_WORDS]]).is_ok());
        }
    }

    #[test]
    fn a_record_that_reaches_beyond_what_was_published_is_corrupt() {
        let slot = Slot::new(0);
        let encoded = encode(0, &Intent::Name { dir: 1, name: &[b'n'; 200] });
        assert_eq!(slot.push(&encoded.entries()[..2]), Ok(2));
        assert_eq!(slot.drain(|_| panic!("half a record came out")), Err(Corrupt));
    }

    fn ring_file() -> RingFile {
        let slots: Vec<Slot> = (0..SLOTS).map(|_| Slot::new(0)).collect();
        RingFile {
            magic: AtomicU64::new(0),
            version: AtomicU32::new(0),
            size: AtomicU32::new(0),
            pid: AtomicU32::new(0),
            look_everywhere: AtomicU32::new(0),
            overflow_inside: AtomicU32::new(0),
            fenced: AtomicU32::new(0),
            comm: std::array::from_fn(|_| AtomicU64::new(0)),
            slots_used: AtomicU32::new(0),
            reserved: AtomicU32::new(0),
            slots: slots.try_into().unwrap_or_else(|_| unreachable!()),
        }
    }

    fn claim_them_all() {
        let ring = ring_file();
        assert_eq!(ring.used().len(), SLOTS, "a client that says nothing is looked at as a whole");
        for index in 0..SLOTS {
            assert_eq!(ring.claim(index as u64 + 1).map(|(index, _)| index), Some(index));
            assert_eq!(ring.used().len(), index + 1);
        }
        assert!(ring.claim(99).is_none());
        ring.slots[5].owner.store(0, Ordering::Relaxed);
        assert_eq!(ring.claim(100).map(|(index, _)| index), Some(5));
        assert_eq!(ring.used().len(), SLOTS);
        ring.slots_used.store(u32::MAX, Ordering::Relaxed);
        assert_eq!(ring.used().len(), SLOTS);
    }

    #[test]
    fn slots_are_claimed_once_and_the_mark_follows() {
        // A ring file is too large for the stack of a test.
        let thread = std::thread::Builder::new().stack_size(64 << 20).spawn(claim_them_all).unwrap();
        thread.join().unwrap();
    }
}
