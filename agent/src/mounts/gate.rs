//! A volume's gatekeeper over the sessions of its run directory. It must not know what a freeze is for.

use std::sync::Arc;

use storeshim_protocol::{MountState, Space};

use super::ports::SessionPort;
use super::router::Router;
use crate::session::{Hooked, IntentSink, ResidencyTable};
use crate::volume::{Frozen, Gatekeeper};

/// The gate of mount `index`.
pub struct MountGate {
    /// The sessions.
    pub sessions: Arc<dyn SessionPort>,
    /// Learns at once when requests are no longer to be served.
    pub router: Arc<Router>,
    /// The mount.
    pub index: usize,
}

impl Gatekeeper for MountGate {
    fn freeze<'a>(&'a self, sink: &mut dyn IntentSink) -> Box<dyn Frozen + 'a> {
        self.sessions.freeze(self.index, sink)
    }

    fn drain(&self) -> bool {
        self.sessions.drain(self.index)
    }

    fn attached(&self) -> Vec<u32> {
        self.sessions.list().iter().map(|session| session.pid).collect()
    }

    fn set_state(&self, state: MountState) {
        match state {
            MountState::Fenced => self.router.refuse(self.index, libc::ESTALE),
            MountState::Failed => self.router.refuse(self.index, libc::EIO),
            MountState::Absent | MountState::Restoring | MountState::Ready => {}
        }
        self.sessions.set_state(self.index, state);
    }

    fn set_complete(&self, complete: bool) {
        self.sessions.set_complete(self.index, complete);
    }

    fn show_names_complete(&self) {
        self.sessions.show_names_complete(self.index);
    }

    fn set_throttle(&self, throttle: u32) {
        self.sessions.set_throttle(self.index, throttle);
    }

    fn set_quota(&self, near: bool, unasked: u64) {
        self.sessions.set_quota(self.index, near, unasked);
    }

    fn hooked(&self) -> Hooked {
        self.sessions.hooked()
    }

    fn set_space(&self, space: &Space) {
        self.sessions.set_space(self.index, space);
    }

    fn residency(&self) -> Result<Arc<ResidencyTable>, String> {
        self.sessions.residency(self.index)
    }
}
