//! Attached processes: finds their rings, drains their intents, answers their requests, closes the gate for a
//! cut. It treats every byte of a ring as hostile and must not know what an intent leads to.

use std::time::Duration;

use storeshim_protocol::Intent;
use storeshim_protocol::request::Request;

/// Receives what the rings say. Called with the session table locked: be quick, do not call back.
pub trait IntentSink {
    /// An intent of the sink's mount.
    fn intent(&mut self, intent: Intent<'_>);

    /// Something was lost (full ring, corrupt ring, a process killed inside the gate): every mount's sink is told
    /// and must audit its tree before the next barrier is answered.
    fn look_everywhere(&mut self, why: &str);

    /// A thread did not leave the mount's gate before the deadline: `subject` (an inode, 0 where unknown) may
    /// still change after the freeze and must be looked at again in the next cut.
    fn straggler(&mut self, subject: u64, who: &str);
}

/// A request on its way: answer it exactly once, from any thread, at any later time.
pub trait Reply: Send {
    /// 0 or an errno.
    fn reply(self: Box<Self>, errno: i32);
}

/// Where requests go.
pub trait RequestSink: Send + Sync {
    /// Takes a request over; must not block.
    fn request(&self, request: Request, reply: Box<dyn Reply>);
}

/// How long a freeze waits for threads to leave the gate before it calls them stragglers.
pub const STRAGGLER_AFTER: Duration = Duration::from_millis(50);
