//! The control page: what the agent tells every client. Clients map it read-only, so whatever they do they
//! cannot forge a mount, a freeze or a state.

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// Mounts that one agent can show at a time.
pub const MAX_MOUNTS: usize = 8;
/// Longest logical prefix, in bytes.
pub const PREFIX_MAX: usize = 256;
/// Longest path of a tree's root, in bytes.
pub const TREE_MAX: usize = 1024;
/// Longest freeze that a client honours, in nanoseconds. A client that has waited this long goes on: the agent
/// died inside a cut. The agent for its part gives a cut up before this has passed.
pub const FREEZE_MAX_NS: u64 = 2_000_000_000;
/// A heartbeat older than this, in nanoseconds, means that the agent is gone.
pub const HEARTBEAT_STALE_NS: u64 = 2_000_000_000;

/// Where a mount stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MountState {
    /// The entry is not used.
    Absent = 0,
    /// The tree is being populated; clients wait before they touch it.
    Restoring = 1,
    /// Reads and writes go on as the kernel lets them.
    Ready = 2,
    /// Another agent holds the volume's epoch: barriers fail with ESTALE.
    Fenced = 3,
    /// The volume cannot be served: barriers fail with EIO.
    Failed = 4,
}

impl MountState {
    /// Decodes a state word; an unknown one is [`MountState::Failed`], the state that promises nothing.
    pub fn from_word(word: u32) -> Self {
        match word {
            0 => Self::Absent,
            1 => Self::Restoring,
            2 => Self::Ready,
            3 => Self::Fenced,
            _ => Self::Failed,
        }
    }
}

/// Durability that a barrier of this mount waits for (bit in [`Mount::flags`]): set for `local`, clear for
/// `remote`.
pub const FLAG_LOCAL: u32 = 1 << 0;
/// The tree's root is the logical prefix itself (or what it points to): nothing to translate.
pub const FLAG_IDENTITY: u32 = 1 << 1;
/// The whole tree is resident: the shim need not ask before it touches anything.
pub const FLAG_COMPLETE: u32 = 1 << 2;
/// The volume is near its quota: clients ask before they add an inode. (Of bytes, [`Mount::unasked`] says more.)
pub const FLAG_QUOTA_NEAR: u32 = 1 << 3;
/// All directories are populated, so that a name that is not found is none. Stays once it is set.
pub const FLAG_NAMES: u32 = 1 << 4;

/// Writers sleep a little before each write.
pub const THROTTLE_SLOW: u32 = 1;
/// Writers wait until dirty data has drained below the limit.
pub const THROTTLE_BLOCK: u32 = 2;

/// What a volume offers: sizes in bytes, and numbers of inodes. Advice to people and programs; the words are read one by
/// one, so a reader may see parts of two states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// The volume's size; 0 where nothing is known.
    pub total_bytes: u64,
    /// What is left of it.
    pub free_bytes: u64,
    /// How many inodes it can hold.
    pub total_inodes: u64,
    /// How many more.
    pub free_inodes: u64,
}

/// One mount as clients see it. The first cache line is what every gated call reads.
#[repr(C, align(64))]
pub struct Mount {
    /// Non-zero while a cut looks at the tree: mutating calls wait (futex word).
    pub frozen: AtomicU32,
    /// Number of the present collection interval: bumped inside each freeze, never otherwise. A client may
    /// leave out an intent that it has already pushed in the same interval.
    pub interval: AtomicU32,
    /// 0, [`THROTTLE_SLOW`] or [`THROTTLE_BLOCK`] (futex word).
    pub throttle: AtomicU32,
    /// A [`MountState`] (futex word while `Restoring`).
    pub state: AtomicU32,
    /// FLAG_* bits.
    pub flags: AtomicU32,
    /// How long a request waits before it fails with ETIMEDOUT, in milliseconds; 0 waits for ever.
    pub request_timeout_ms: AtomicU32,
    /// Device number (`st_dev`) of the tree.
    pub dev: AtomicU64,
    /// Inode number of the tree's root.
    pub root_ino: AtomicU64,
    /// [`Mount::unasked`], as its complement: a page of zeros bounds nothing.
    asking: AtomicU64,
    reserved: AtomicU64,
    prefix: PathField<{ PREFIX_MAX / 8 }>,
    tree: PathField<{ TREE_MAX / 8 }>,
    /// [`Space`], in its order.
    space: [AtomicU64; 4],
}

impl Mount {
    /// The mount's state now.
    pub fn state(&self) -> MountState {
        MountState::from_word(self.state.load(Ordering::Acquire))
    }

    /// Copies the logical prefix (no trailing slash) into `out`; returns its length, or `None` where the
    /// field is not a path of at least one byte after `/` that fits.
    pub fn prefix(&self, out: &mut [u8]) -> Option<usize> {
        self.prefix.get(out)
    }

    /// Copies the path of the tree's root into `out`; as [`Mount::prefix`].
    pub fn tree(&self, out: &mut [u8]) -> Option<usize> {
        self.tree.get(out)
    }

    /// How many bytes one process may add to the volume without asking for them until this changes: a part of what the quota
    /// leaves, 0 near the quota, `u64::MAX` where there is none.
    #[inline(always)]
    pub fn unasked(&self) -> u64 {
        !self.asking.load(Ordering::Relaxed)
    }

    /// Agent only: sets that.
    pub fn set_unasked(&self, bytes: u64) {
        self.asking.store(!bytes, Ordering::Relaxed);
    }

    /// What the volume offers, `None` until the agent has said it.
    pub fn space(&self) -> Option<Space> {
        let [total_bytes, free_bytes, total_inodes, free_inodes] =
            self.space.each_ref().map(|word| word.load(Ordering::Relaxed));
        // Nobody may see more free than there is, though the words change one by one.
        (total_bytes != 0).then_some(Space {
            total_bytes,
            free_bytes: free_bytes.min(total_bytes),
            total_inodes,
            free_inodes: free_inodes.min(total_inodes),
        })
    }

    /// Agent only: says what the volume offers.
    pub fn set_space(&self, space: &Space) {
        let words = [space.total_bytes, space.free_bytes, space.total_inodes, space.free_inodes];
        for (place, word) in self.space.iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
    }

    /// Agent only: sets both paths while the entry is [`MountState::Absent`]. `false` where one is too long.
    #[must_use]
    pub fn set_paths(&self, prefix: &[u8], tree: &[u8]) -> bool {
        self.prefix.set(prefix) && self.tree.set(tree)
    }
}

/// A path in shared memory: its length, then its bytes, all as atomic words.
#[repr(C)]
struct PathField<const WORDS: usize> {
    len: AtomicU64,
    words: [AtomicU64; WORDS],
}

impl<const WORDS: usize> PathField<WORDS> {
    fn get(&self, out: &mut [u8]) -> Option<usize> {
        let len = usize::try_from(self.len.load(Ordering::Acquire)).ok()?;
        if len < 2 || len > WORDS * 8 || len > out.len() {
            return None;
        }
        for (chunk, word) in out.get_mut(..len)?.chunks_mut(8).zip(&self.words) {
            let bytes = word.load(Ordering::Relaxed).to_le_bytes();
            chunk.copy_from_slice(bytes.get(..chunk.len())?);
        }
        (out.first() == Some(&b'/')).then_some(len)
    }

    fn set(&self, path: &[u8]) -> bool {
        if path.len() > WORDS * 8 {
            return false;
        }
        for (chunk, word) in path.chunks(8).zip(&self.words) {
            let mut bytes = [0u8; 8];
            if let Some(head) = bytes.get_mut(..chunk.len()) {
                head.copy_from_slice(chunk);
            }
            word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
        }
        self.len.store(path.len() as u64, Ordering::Release);
        true
    }
}

/// The control page. A restarted agent maps the same file again, so clients' mappings stay good.
#[repr(C, align(4096))]
pub struct Control {
    /// [`crate::CONTROL_MAGIC`]; written last, so that a client never sees half a page.
    pub magic: AtomicU64,
    /// [`crate::VERSION`].
    pub version: AtomicU32,
    /// `size_of::<Control>()`: a second guard against a layout that changed without its version.
    pub size: AtomicU32,
    /// Counts the agents that have served this page.
    pub generation: AtomicU32,
    /// The agent's process id, in its own pid namespace: for messages only.
    pub agent_pid: AtomicU32,
    /// The agent's effective user id: a client whose ring that user could not read must not attach.
    pub agent_uid: AtomicU32,
    /// Mounts in use: entries `0..mount_count`.
    pub mount_count: AtomicU32,
    /// CLOCK_MONOTONIC of the agent's last sign of life, in nanoseconds.
    pub heartbeat_ns: AtomicU64,
    /// Non-zero while the agent sleeps, or is about to sleep, on the doorbell: ring it.
    pub sleeping: AtomicU32,
    reserved: AtomicU32,
    /// The mount table.
    pub mounts: [Mount; MAX_MOUNTS],
}

impl Control {
    /// Whether this page was written by an agent of our version.
    pub fn compatible(&self) -> bool {
        self.magic.load(Ordering::Acquire) == crate::CONTROL_MAGIC
            && self.version.load(Ordering::Relaxed) == crate::VERSION
            && self.size.load(Ordering::Relaxed) as usize == size_of::<Control>()
    }

    /// The mounts in use.
    pub fn mounts(&self) -> &[Mount] {
        let count = (self.mount_count.load(Ordering::Acquire) as usize).min(MAX_MOUNTS);
        self.mounts.get(..count).unwrap_or(&[])
    }
}

/// The doorbell: where the agent sleeps. Clients map it read-only, so that none can cut it short under the others,
/// and only wake it (FUTEX_WAKE needs no write access), when [`Control::sleeping`] says that it pays.
///
/// To ring: publish, `fence(SeqCst)`, read `sleeping`, wake one waiter of `word`. A wake that found nobody while
/// `sleeping` is still set met an agent that was about to sleep: yield and ring once more. The agent looks at all
/// rings every few milliseconds, so a bell that was not heard costs that, never an answer.
#[repr(C, align(4096))]
pub struct Doorbell {
    /// Futex word.
    pub word: AtomicU32,
}

#[cfg(test)]
impl Mount {
    /// Where that private word stands.
    #[cfg(not(loom))]
    pub(crate) const ASKING: usize = core::mem::offset_of!(Self, asking);

    pub(crate) fn new() -> Self {
        Self {
            frozen: AtomicU32::new(0),
            interval: AtomicU32::new(0),
            throttle: AtomicU32::new(0),
            state: AtomicU32::new(0),
            flags: AtomicU32::new(0),
            request_timeout_ms: AtomicU32::new(0),
            dev: AtomicU64::new(0),
            root_ino: AtomicU64::new(0),
            asking: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
            prefix: PathField::new(),
            tree: PathField::new(),
            space: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

#[cfg(test)]
impl<const WORDS: usize> PathField<WORDS> {
    fn new() -> Self {
        Self { len: AtomicU64::new(0), words: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn paths_come_back_as_they_were_set(
            path in prop::collection::vec(any::<u8>(), 1..=PREFIX_MAX - 1), shorter in 0..64usize,
        ) {
            let mount = Mount::new();
            let mut long = vec![b'/'];
            long.extend(&path);
            // A shorter one after a longer one must not show the rest of that.
            for path in [&long[..], &long[..long.len().saturating_sub(shorter).max(2)]] {
                prop_assert!(mount.set_paths(path, path));
                let mut out = [0xaa; TREE_MAX];
                prop_assert_eq!(mount.prefix(&mut out), Some(path.len()));
                prop_assert_eq!(&out[..path.len()], path);
                prop_assert_eq!(mount.tree(&mut out), Some(path.len()));
                prop_assert_eq!(&out[..path.len()], path);
                let mut small = vec![0; path.len() - 1];
                prop_assert_eq!(mount.prefix(&mut small), None);
            }
        }

        #[test]
        fn any_words_are_a_path_or_none(len: u64, word: u64) {
            let field = PathField::<4>::new();
            field.len.store(len, Ordering::Relaxed);
            for place in &field.words {
                place.store(word, Ordering::Relaxed);
            }
            let mut out = [0; 64];
            if let Some(len) = field.get(&mut out) {
                prop_assert!((2..=32).contains(&len));
                prop_assert_eq!(out[0], b'/');
            }
        }
    }

    #[test]
    fn what_is_no_path_is_refused() {
        let mount = Mount::new();
        let mut out = [0; TREE_MAX];
        assert_eq!(mount.prefix(&mut out), None, "never set");
        assert!(!mount.set_paths(&[b'/'; PREFIX_MAX + 1], b"/t"));
        assert!(!mount.set_paths(b"/p", &[b'/'; TREE_MAX + 1]));
        assert!(mount.set_paths(b"relative", b"/"));
        assert_eq!(mount.prefix(&mut out), None);
        assert_eq!(mount.tree(&mut out), None);
    }

    #[test]
    fn an_entry_of_zeros_has_no_quota() {
        let mount = Mount::new();
        assert_eq!(mount.unasked(), u64::MAX);
        for bytes in [0, 5, u64::MAX] {
            mount.set_unasked(bytes);
            assert_eq!(mount.unasked(), bytes);
        }
    }

    #[test]
    fn space_is_said_or_not_known() {
        let mount = Mount::new();
        assert_eq!(mount.space(), None);
        let space = Space { total_bytes: 100, free_bytes: 40, total_inodes: 10, free_inodes: 9 };
        mount.set_space(&space);
        assert_eq!(mount.space(), Some(space));
        mount.set_space(&Space { free_bytes: 101, free_inodes: 11, ..space });
        assert_eq!(mount.space(), Some(Space { free_bytes: 100, free_inodes: 10, ..space }));
    }

    #[test]
    fn unknown_states_promise_nothing() {
        for word in 0..10 {
            let state = MountState::from_word(word);
            assert_eq!(state as u32, word.min(4));
        }
        assert_eq!(MountState::from_word(u32::MAX), MountState::Failed);
    }
}
