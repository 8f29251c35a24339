//! Requests: the few calls that wait for the agent. One at a time per thread, in the thread's slot.
//!
//! `state` goes IDLE → (client) PENDING → (agent) DONE → (client) IDLE. All requests are idempotent, so an agent
//! that takes over serves whatever it finds PENDING, and a client never has to know that there was a change.

use crate::sync::{AtomicU32, AtomicU64, Ordering};

const IDLE: u32 = 0;
const PENDING: u32 = 1;
const DONE: u32 = 2;

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
    /// 0 or an errno.
    reply: AtomicU32,
    head: AtomicU64,
    ino: AtomicU64,
}

const BARRIER: u8 = 1;

impl RequestCell {
    /// Client: posts a request. Then ring the doorbell and wait on [`RequestCell::word`] while it is
    /// [`RequestCell::PENDING_WORD`].
    pub fn post(&self, request: Request) {
        let Request::Barrier { mount, ino } = request;
        self.head.store(u64::from(BARRIER) | u64::from(mount) << 8, Ordering::Relaxed);
        self.ino.store(ino, Ordering::Relaxed);
        self.state.store(PENDING, Ordering::Release);
    }

    /// The value of [`RequestCell::word`] to wait on.
    pub const PENDING_WORD: u32 = PENDING;

    /// The futex word.
    pub fn word(&self) -> &AtomicU32 {
        &self.state
    }

    /// Client: the answer, once: 0 or an errno. `None` while it is out.
    pub fn take_reply(&self) -> Option<i32> {
        if self.state.load(Ordering::Acquire) != DONE {
            return None;
        }
        let reply = self.reply.load(Ordering::Relaxed);
        self.state.store(IDLE, Ordering::Relaxed);
        Some(reply as i32)
    }

    /// Client: gives a request up (timeout). An answer that comes later is dropped by the next post.
    pub fn abandon(&self) {
        self.state.store(IDLE, Ordering::Release);
    }

    /// Agent: the pending request, if there is one. `Some(Err(()))` is one that does not decode: answer EINVAL.
    pub fn pending(&self) -> Option<Result<Request, ()>> {
        if self.state.load(Ordering::Acquire) != PENDING {
            return None;
        }
        let head = self.head.load(Ordering::Relaxed);
        Some(match head as u8 {
            BARRIER => {
                Ok(Request::Barrier { mount: (head >> 8) as u8, ino: self.ino.load(Ordering::Relaxed) })
            }
            _ => Err(()),
        })
    }

    /// Agent: answers. Wake the futex afterwards. A client that has given up meanwhile is left alone.
    pub fn reply(&self, errno: i32) {
        self.reply.store(errno as u32, Ordering::Relaxed);
        // A compare-exchange, so that a request that was abandoned is not marked as answered.
        let _ = self.state.compare_exchange(PENDING, DONE, Ordering::Release, Ordering::Relaxed);
    }
}
