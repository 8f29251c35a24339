//! Requests: the few calls that wait for the agent. One at a time per thread, in the thread's slot.
//!
//! One word carries the whole state, so that no answer can meet the wrong question:
//!
//! ```text
//! bits 0..2  phase: IDLE → (client) PENDING → (agent) DONE → (client) IDLE
//! bits 2..14 the answer, 0 or an errno, while DONE
//! bits 14..  number of the request, raised by every post
//! ```
//! A client that gives up and asks anew has a new number, and an answer to the former request finds no taker.
//! All requests are idempotent, so an agent that takes over serves whatever it finds PENDING, and a client never
//! has to know that there was a change.

use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

const IDLE: u32 = 0;
const PENDING: u32 = 1;
const DONE: u32 = 2;

const PHASE_MASK: u32 = 0b11;
const ANSWER_SHIFT: u32 = 2;
const ANSWER_MASK: u32 = 0xfff;
const NUMBER_SHIFT: u32 = 14;

/// EIO: what an answer that is no errno turns into.
const EIO: u32 = 5;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Answer when all that was done on this mount before is durable at the mount's level.
    Barrier {
        /// Mount index.
        mount: u8,
        /// The inode that fsync was called on, 0 for all: a hint for mappings, never a limit of what is covered.
        ino: u64,
    },
}

/// A thread's request area.
#[repr(C)]
pub struct RequestCell {
    /// Futex word; see the module.
    state: AtomicU32,
    reserved: AtomicU32,
    head: AtomicU64,
    ino: AtomicU64,
}

/// Names one posting of a request: what an answer is addressed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u32);

const BARRIER: u8 = 1;

impl RequestCell {
    /// Client: posts a request and returns the word to wait on: ring the doorbell, then wait on
    /// [`RequestCell::word`] while it has the returned value. A request that is still out is given up.
    #[must_use]
    pub fn post(&self, request: Request) -> u32 {
        let number = (self.state.load(Ordering::Relaxed) >> NUMBER_SHIFT).wrapping_add(1) << NUMBER_SHIFT;
        // The phase leaves PENDING before the body changes: an agent that reads a changed body also sees that.
        self.state.store(number | IDLE, Ordering::Relaxed);
        fence(Ordering::Release);
        let Request::Barrier { mount, ino } = request;
        self.head.store(u64::from(BARRIER) | u64::from(mount) << 8, Ordering::Relaxed);
        self.ino.store(ino, Ordering::Relaxed);
        self.state.store(number | PENDING, Ordering::Release);
        number | PENDING
    }

    /// The futex word.
    pub fn word(&self) -> &AtomicU32 {
        &self.state
    }

    /// Client: the answer, once: 0 or an errno. `None` while it is out.
    pub fn take_reply(&self) -> Option<i32> {
        let state = self.state.load(Ordering::Acquire);
        if state & PHASE_MASK != DONE {
            return None;
        }
        self.state.store(state >> NUMBER_SHIFT << NUMBER_SHIFT, Ordering::Relaxed);
        Some((state >> ANSWER_SHIFT & ANSWER_MASK) as i32)
    }

    /// Client: gives a request up (timeout). An answer that came just before is returned after all; one that
    /// comes later is dropped.
    pub fn abandon(&self) -> Option<i32> {
        let state = self.state.load(Ordering::Relaxed);
        let idle = state >> NUMBER_SHIFT << NUMBER_SHIFT;
        if state & PHASE_MASK == PENDING
            && self.state.compare_exchange(state, idle, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            return None;
        }
        self.take_reply()
    }

    /// Agent: the pending request, if there is one, and the ticket to answer it with. `Err(())` is one that does
    /// not decode: answer EINVAL.
    pub fn pending(&self) -> Option<(Ticket, Result<Request, ()>)> {
        let state = self.state.load(Ordering::Acquire);
        if state & PHASE_MASK != PENDING {
            return None;
        }
        let head = self.head.load(Ordering::Relaxed);
        let ino = self.ino.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        if self.state.load(Ordering::Relaxed) != state {
            // Given up while we read, perhaps with a new body half written: the next look finds what is posted.
            return None;
        }
        let request = match head as u8 {
            BARRIER => Ok(Request::Barrier { mount: (head >> 8) as u8, ino }),
            _ => Err(()),
        };
        Some((Ticket(state), request))
    }

    /// Agent: answers with 0 or an errno (anything that is neither becomes EIO). `true`: wake the futex now;
    /// `false`: the client has given this request up, and nothing was changed.
    pub fn reply(&self, ticket: Ticket, errno: i32) -> bool {
        let answer = u32::try_from(errno).ok().filter(|e| *e <= ANSWER_MASK).unwrap_or(EIO);
        let done = (ticket.0 & !PHASE_MASK) | DONE | answer << ANSWER_SHIFT;
        self.state.compare_exchange(ticket.0, done, Ordering::Release, Ordering::Relaxed).is_ok()
    }
}

#[cfg(any(test, fuzzing))]
impl RequestCell {
    pub(crate) fn new() -> Self {
        Self {
            state: AtomicU32::new(0),
            reserved: AtomicU32::new(0),
            head: AtomicU64::new(0),
            ino: AtomicU64::new(0),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn barrier(ino: u64) -> Request {
        Request::Barrier { mount: 3, ino }
    }

    #[test]
    fn a_request_is_answered_once() {
        let cell = RequestCell::new();
        assert!(cell.pending().is_none());
        let word = cell.post(barrier(9));
        assert_eq!(cell.word().load(Ordering::Relaxed), word);
        assert_eq!(cell.take_reply(), None);
        let (ticket, request) = cell.pending().unwrap();
        assert_eq!(request, Ok(barrier(9)));
        assert_eq!(cell.pending().unwrap().0, ticket, "it stays pending until it is answered");
        assert!(cell.reply(ticket, 116));
        assert_ne!(cell.word().load(Ordering::Relaxed), word);
        assert!(!cell.reply(ticket, 0), "a second answer must change nothing");
        assert_eq!(cell.take_reply(), Some(116));
        assert_eq!(cell.take_reply(), None);
    }

    #[test]
    fn an_answer_to_an_abandoned_request_does_not_meet_the_next_one() {
        let cell = RequestCell::new();
        let first = cell.post(barrier(1));
        let (old, _) = cell.pending().unwrap();
        assert_eq!(cell.abandon(), None);
        assert!(!cell.reply(old, 0));
        let second = cell.post(barrier(2));
        assert_ne!(first, second);
        assert!(!cell.reply(old, 0));
        assert_eq!(cell.take_reply(), None);
        let (new, request) = cell.pending().unwrap();
        assert_eq!(request, Ok(barrier(2)));
        assert!(cell.reply(new, 5));
        assert_eq!(cell.abandon(), Some(5), "an answer that came first is not lost");
    }

    #[test]
    fn what_is_no_errno_becomes_eio() {
        for (given, taken) in [(0, 0), (4095, 4095), (4096, 5), (-1, 5), (i32::MIN, 5)] {
            let cell = RequestCell::new();
            let _ = cell.post(barrier(0));
            let (ticket, _) = cell.pending().unwrap();
            assert!(cell.reply(ticket, given));
            assert_eq!(cell.take_reply(), Some(taken));
        }
    }

    #[test]
    fn numbers_wrap_without_reaching_the_phase() {
        let cell = RequestCell::new();
        cell.state.store(u32::MAX << NUMBER_SHIFT, Ordering::Relaxed);
        let word = cell.post(barrier(0));
        assert_eq!(word, PENDING);
    }

    #[test]
    fn an_unknown_request_is_pending_but_does_not_decode() {
        let cell = RequestCell::new();
        let _ = cell.post(barrier(0));
        cell.head.store(77, Ordering::Relaxed);
        assert_eq!(cell.pending().unwrap().1, Err(()));
    }
}
