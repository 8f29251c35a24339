//! Requests on their way: from a slot to the sink, and the answer back. An answer may be given long after the
//! process, or the session table, is gone. It must not know what a request asks for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use storeshim_protocol::request::{Answer, Ask, Request, Ticket};

use super::client::Ring;
use super::{Reply, RequestSink, sys};

/// A request that was found in a slot.
pub(super) struct Pending {
    pub(super) ring: Arc<Ring>,
    pub(super) slot: usize,
    pub(super) ticket: Ticket,
    pub(super) request: Result<Request, ()>,
}

impl Pending {
    /// Hands the request on. One that does not decode is answered here.
    pub(super) fn dispatch(self, sink: &dyn RequestSink) {
        match self.request {
            Ok(request) => sink.request(request, self.into_reply()),
            Err(()) => self.refuse(),
        }
    }

    /// Whether its answer depends on what its asker has told before.
    pub(super) fn needs_told(&self) -> bool {
        self.request.is_ok_and(|request| matches!(request.ask, Ask::Grow { .. } | Ask::Streamed { .. }))
    }

    /// Answers a request that nobody serves.
    pub(super) fn refuse(self) {
        self.into_reply().reply(libc::EINVAL);
    }

    fn into_reply(self) -> Box<SlotReply> {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        if let Some(latest) = self.ring.latest.get(self.slot) {
            latest.store(number, Ordering::Relaxed);
        }
        Box::new(SlotReply { ring: self.ring, slot: self.slot, ticket: self.ticket, number })
    }
}

/// The way back into a slot. Dropped without an answer, it leaves the request to the next agent.
struct SlotReply {
    ring: Arc<Ring>,
    slot: usize,
    ticket: Ticket,
    number: u64,
}

impl Reply for SlotReply {
    fn answer(self: Box<Self>, answer: Answer) {
        // Of a cell one thread at a time may answer.
        let _one = self.ring.answering.lock().unwrap_or_else(PoisonError::into_inner);
        // The ticket tells requests apart until its few bits come round; the number goes further.
        let latest = self.ring.latest.get(self.slot).map(|latest| latest.load(Ordering::Relaxed));
        if latest != Some(self.number) {
            return;
        }
        if let Some(slot) = self.ring.slot(self.slot)
            && slot.request().reply(self.ticket, answer)
        {
            sys::futex_wake_all(slot.request().word());
        }
    }
}
