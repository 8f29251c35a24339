//! What shim and agent agree on: the layout of shared memory, the rings, the intents, the requests.
//!
//! This crate is the only place that knows a byte offset. It is `no_std`, allocates nothing, makes no system
//! call, and knows neither files nor backends. All of shared memory is atomics: each side may be hostile or
//! die at any instruction, so every word is read once, checked, and never trusted to stay as it was.
//!
//! ```text
//! run/control    one [`Control`]   written by the agent, mapped read-only by clients
//! run/doorbell   one [`Doorbell`]  the futex word that the agent sleeps on, mapped read-only by clients
//! run/rings/*    one [`RingFile`]  created and owned by a client, mapped by both
//! run/residency-N one [`residency::Residency`] for mount N: written by the agent, mapped read-only by clients
//! ```
#![cfg_attr(not(any(test, loom, fuzzing)), no_std)]

pub mod control;
pub mod gate;
#[cfg(any(test, fuzzing))]
pub mod hostile;
pub mod intent;
pub mod request;
pub mod residency;
pub mod ring;
mod sync;

#[cfg(all(test, loom))]
mod loom_models;

pub use control::{Control, Doorbell, MAX_MOUNTS, Mount, MountState, Space};
pub use intent::{Intent, NAME_MAX, OpenFlags};
pub use ring::{RingFile, SLOTS, Slot};

/// Layout version: a client and an agent talk only when theirs are equal. Any change to a layout, to the
/// meaning of a field or to a record's encoding takes a new number.
pub const VERSION: u32 = 4;

/// First word of `control` ("storeshC").
pub const CONTROL_MAGIC: u64 = u64::from_le_bytes(*b"storeshC");
/// First word of a ring file ("storeshR").
pub const RING_MAGIC: u64 = u64::from_le_bytes(*b"storeshR");

/// Names of the files in the run directory.
pub mod names {
    /// The control page's file.
    pub const CONTROL: &str = "control";
    /// The doorbell's file.
    pub const DOORBELL: &str = "doorbell";
    /// The directory of ring files.
    pub const RINGS: &str = "rings";
    /// Begins the names of the residency tables; the mount's index follows, in decimal.
    pub const RESIDENCY: &str = "residency-";
    /// The unix socket of the agent's HTTP interface.
    pub const SOCKET: &str = "agent.sock";
    /// Environment variable that names the run directory to the shim.
    pub const ENV_RUN_DIR: &str = "STORESHIM_RUN_DIR";
    /// Environment variable that asks the shim for a second net below the hooks: [`NET_SUD`] or nothing.
    pub const ENV_NET: &str = "STORESHIM_NET";
    /// The second net that catches system calls outside libc by Syscall User Dispatch.
    pub const NET_SUD: &str = "sud";
}

/// Offsets are part of the protocol: a change here is a new [`VERSION`].
#[cfg(all(test, not(loom)))]
mod layout {
    use core::mem::offset_of;

    use super::*;

    #[test]
    fn version_4() {
        assert_eq!(VERSION, 4);
        assert_eq!(size_of::<Control>(), 12288);
        assert_eq!(offset_of!(Control, heartbeat_ns), 32);
        assert_eq!(offset_of!(Control, sleeping), 40);
        assert_eq!(offset_of!(Control, mounts), 64);
        assert_eq!(size_of::<Mount>(), 1408);
        assert_eq!(offset_of!(Mount, frozen), 0);
        assert_eq!(offset_of!(Mount, state), 12);
        assert_eq!(offset_of!(Mount, root_ino), 32);
        assert_eq!(Mount::ASKING, 40);
        assert_eq!(size_of::<Doorbell>(), 4096);
        assert_eq!(size_of::<Slot>(), 69632);
        assert_eq!(offset_of!(Slot, gate), 8);
        assert_eq!(offset_of!(Slot, subject), 16);
        assert_eq!(ring::offsets(), [64, 384, 448]);
        assert_eq!(
            size_of::<residency::Residency>(),
            8 * residency::CELLS + 32 * residency::SLOTS + 8 * residency::WORDS
        );
        assert_eq!(size_of::<RingFile>(), 4096 + SLOTS * size_of::<Slot>());
        assert_eq!(offset_of!(RingFile, comm), 32);
        assert_eq!(offset_of!(RingFile, slots_used), 48);
        assert_eq!(offset_of!(RingFile, slots), 4096);
    }
}
