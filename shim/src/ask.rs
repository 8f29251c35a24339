//! Asking: requests that wait for the agent's reply, whatever becomes of the agent meanwhile.

use core::sync::atomic::Ordering;

use storeshim_protocol::request::{self, Ask, Request, RequestCell};

use crate::attach;
use crate::control;
use crate::sys::{self, Answer, Errno, errno};

/// Longest sleep before the bell is rung again (an agent that was restarted in between may have missed it), in
/// nanoseconds.
const SLICE_NS: u64 = 1_000_000_000;

/// Waits until all that was done on mount `index` is durable in the backend. Errors: as [`request`].
pub fn barrier(index: usize, ino: u64) -> Answer {
    request(index, Ask::Barrier { ino })
}

/// Asks whether the volume of mount `index` may grow by `bytes`.
///
/// Errors: as [`request`]; with EDQUOT the number of bytes by which it may.
pub fn grow(index: usize, bytes: u64) -> Result<(), (Errno, u64)> {
    match answered(index, Ask::Grow { bytes, inodes: 0 }) {
        Ok(reply) if reply.errno == 0 => Ok(()),
        Ok(reply) => Err((Errno(reply.errno), reply.value)),
        Err(errno) => Err((errno, 0)),
    }
}

/// Asks the agent and waits for its answer: the value that [`Ask`] names.
///
/// Errors: what the agent answers (EIO, ESTALE); ETIMEDOUT after the mount's request timeout; EIO where this
/// process cannot attach.
pub fn request(index: usize, what: Ask) -> Answer {
    let reply = answered(index, what)?;
    if reply.errno == 0 { Ok(reply.value as usize) } else { Err(Errno(reply.errno)) }
}

#[inline(never)]
fn answered(index: usize, what: Ask) -> Result<request::Answer, Errno> {
    let ring = attach::ring()?;
    let mount = control::mount(index).ok_or(Errno::of(errno::EIO))?;
    let limit = u64::from(mount.request_timeout_ms.load(Ordering::Relaxed)) * 1_000_000;
    let here = sys::stack_pointer();
    let own = attach::seat(ring).filter(|seat| {
        let asked = seat.private.asking.load(Ordering::Relaxed);
        // A handler may have jumped out of the last one; posting anew gives that one up.
        asked == 0 || attach::is_gone(asked, here)
    });
    let seat = match own {
        Some(seat) => seat,
        // All slots are taken, or a signal handler interrupted this thread's own request.
        None => loop {
            if let Some(seat) = attach::borrow_seat(ring, here) {
                break seat;
            }
            sys::sleep_ns(1_000_000);
        },
    };
    seat.private.asking.store(here, Ordering::Relaxed);
    let result = ask(seat.slot.request(), Request { mount: index as u8, ask: what }, limit);
    seat.private.asking.store(0, Ordering::Relaxed);
    seat.release();
    result
}

fn ask(cell: &RequestCell, request: Request, limit_ns: u64) -> Result<request::Answer, Errno> {
    let start = sys::now_ns();
    let posted = cell.post(request);
    loop {
        attach::ring_bell();
        let waited = sys::now_ns().saturating_sub(start);
        let slice =
            if limit_ns == 0 { SLICE_NS } else { SLICE_NS.min(limit_ns.saturating_sub(waited).max(1)) };
        // A signal or a spurious wake-up is no answer.
        let until = sys::now_ns().saturating_add(slice);
        loop {
            if let Some(reply) = cell.take_reply() {
                return Ok(reply);
            }
            let now = sys::now_ns();
            if now >= until {
                break;
            }
            let _ = sys::futex_wait(cell.word(), posted, until - now);
        }
        if limit_ns != 0 && sys::now_ns().saturating_sub(start) >= limit_ns {
            // The answer may have come at the last moment.
            return cell.abandon().ok_or(Errno::of(errno::ETIMEDOUT));
        }
    }
}
