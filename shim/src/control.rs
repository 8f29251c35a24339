//! The control page as this process sees it: found once, mapped read-only, kept; and a plain copy of its mount
//! table, so that a path is compared with bytes and not with shared words.

use core::ffi::{CStr, c_char, c_void};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use storeshim_protocol::control::{
    FLAG_COMPLETE, FLAG_IDENTITY, FLAG_LOCAL, FLAG_QUOTA_NEAR, HEARTBEAT_STALE_NS, PREFIX_MAX,
    THROTTLE_BLOCK, THROTTLE_SLOW, TREE_MAX,
};
use storeshim_protocol::{Control, MAX_MOUNTS, Mount, MountState, names};

use crate::sys::{self, Errno, PathBuf, Stat, errno, k};
use crate::{beside, loader};

/// Where the agent's run directory is when the environment does not say.
const DEFAULT_RUN_DIR: &[u8] = b"/run/storeshim";
/// Between two looks for an agent, in nanoseconds.
const RETRY_NS: u64 = 200_000_000;
/// Calls that go by without even reading the clock while there is no agent.
const RETRY_CALLS: u32 = 64;
/// Longest sleep in one piece while an agent is waited for, in nanoseconds.
const SLICE_NS: u64 = 100_000_000;

/// One mount, copied from the control page.
///
/// In this order, so that a path outside is compared with what lies in one or two lines of the cache: after a system call
/// nearly all that a hook touches has left it.
#[repr(C)]
pub struct Entry {
    prefix_len: usize,
    tree_len: usize,
    /// `st_dev` of the tree.
    pub dev: u64,
    /// Inode number of the tree's root.
    pub root_ino: u64,
    /// The tree lies at the prefix: nothing to translate.
    pub identity: bool,
    prefix: [u8; PREFIX_MAX],
    tree: [u8; TREE_MAX],
}

impl Entry {
    /// The logical prefix.
    pub fn prefix(&self) -> &[u8] {
        self.prefix.get(..self.prefix_len).unwrap_or(&[])
    }

    /// The tree's root, canonical.
    pub fn tree(&self) -> &[u8] {
        self.tree.get(..self.tree_len).unwrap_or(&[])
    }
}

/// The mounts, as they were at some moment: a newer agent may bring others, never change these under a reader.
///
/// In this order, so that a table of one mount is one page of memory.
#[repr(C, align(64))]
pub struct Table {
    generation: u32,
    count: u32,
    /// Some mount is not in identity placement.
    pub translates: bool,
    /// The trees of two mounts lie on one device: what a name leads to is not known to be in the mount that it begins in.
    pub shares_device: bool,
    entries: [Entry; MAX_MOUNTS],
}

impl Table {
    /// Index and description of each mount. Written out at each place that calls it, for the one that every path takes.
    #[inline(always)]
    pub fn mounts_inline(&self) -> impl Iterator<Item = (usize, &Entry)> {
        self.entries.iter().enumerate().take(self.count as usize).filter(|(_, entry)| entry.tree_len != 0)
    }

    /// Index and description of each mount.
    pub fn mounts(&self) -> impl Iterator<Item = (usize, &Entry)> {
        let mut next = 0;
        core::iter::from_fn(move || {
            let (index, entry) = self.mount_from(next)?;
            next = index + 1;
            Some((index, entry))
        })
    }

    #[inline(never)]
    fn mount_from(&self, first: usize) -> Option<(usize, &Entry)> {
        let mut index = first;
        while index < self.count as usize {
            if let Some(entry) = self.get(index) {
                return Some((index, entry));
            }
            index += 1;
        }
        None
    }

    /// The mount with this index.
    pub fn get(&self, index: usize) -> Option<&Entry> {
        self.entries.get(index).filter(|entry| entry.tree_len != 0)
    }
}

/// What each hook reads first, together.
#[repr(C, align(16))]
struct Found {
    control: AtomicPtr<Control>,
    table: AtomicPtr<Table>,
}

static FOUND: Found =
    Found { control: AtomicPtr::new(core::ptr::null_mut()), table: AtomicPtr::new(core::ptr::null_mut()) };
static CALLS: AtomicU32 = AtomicU32::new(0);
static NEXT_LOOK: AtomicU64 = AtomicU64::new(0);
static MISMATCH_TOLD: AtomicBool = AtomicBool::new(false);
static RUN_DIR_READ: AtomicBool = AtomicBool::new(false);
static RUN_DIR_LEN: AtomicU32 = AtomicU32::new(0);
/// Bytes of the run directory's path, as the environment gave it when the process started.
static RUN_DIR: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];

/// Remembers the run directory that the environment names; the app may clear its environment later. Called when the
/// library starts, or at the first hook if some other library's start comes before ours.
pub fn remember_run_dir() {
    if RUN_DIR_READ.swap(true, Ordering::AcqRel) {
        return;
    }
    let Some(value) = variable(names::ENV_RUN_DIR.as_bytes()) else { return };
    if !value.starts_with(b"/") || value.len() > RUN_DIR.len() * 8 {
        return;
    }
    for (chunk, word) in value.chunks(8).zip(&RUN_DIR) {
        let mut bytes = [0u8; 8];
        for (to, from) in bytes.iter_mut().zip(chunk) {
            *to = *from;
        }
        word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
    }
    RUN_DIR_LEN.store(value.len() as u32, Ordering::Release);
}

/// The value of an environment variable, now.
pub fn variable(name: &[u8]) -> Option<&'static [u8]> {
    let mut at = loader::environment();
    if at.is_null() {
        return None;
    }
    loop {
        // SAFETY: an environment is an array of C strings that ends with null.
        let entry = unsafe {
            let entry: *const c_char = *at;
            at = at.add(1);
            if entry.is_null() {
                return None;
            }
            // The first byte tells most of them apart without a strlen.
            if Some(&(*entry as u8)) != name.first() {
                continue;
            }
            CStr::from_ptr(entry).to_bytes()
        };
        if let Some(rest) = entry.strip_prefix(name)
            && let Some(value) = rest.strip_prefix(b"=")
        {
            return Some(value);
        }
    }
}

/// Puts the path of `name` in the run directory together.
pub fn run_path(out: &mut PathBuf, parts: &[&[u8]]) -> Result<(), Errno> {
    out.clear();
    let len = RUN_DIR_LEN.load(Ordering::Acquire) as usize;
    if len == 0 {
        out.push(DEFAULT_RUN_DIR)?;
    }
    for (at, word) in RUN_DIR.iter().enumerate().take(len.div_ceil(8)) {
        let bytes = word.load(Ordering::Relaxed).to_le_bytes();
        out.push(bytes.get(..(len - at * 8).min(8)).unwrap_or(&[]))?;
    }
    for part in parts {
        out.push(part)?;
    }
    Ok(())
}

/// Whether the environment named the run directory when this process started.
pub fn names_run_dir() -> bool {
    RUN_DIR_LEN.load(Ordering::Acquire) != 0
}

/// The variable that named it, as an entry of an environment.
pub fn run_variable(out: &mut PathBuf) -> Result<(), Errno> {
    let mut value = PathBuf::new();
    run_path(&mut value, &[])?;
    out.clear();
    out.push(names::ENV_RUN_DIR.as_bytes())?;
    out.push(b"=")?;
    out.push(value.bytes())
}

/// The control page, looked for where it has not been found yet.
#[inline(always)]
pub fn control() -> Option<&'static Control> {
    let at = FOUND.control.load(Ordering::Acquire);
    // SAFETY: once mapped, the page stays mapped.
    if at.is_null() { look_now_and_then() } else { Some(unsafe { &*at }) }
}

/// The control page if it has been found already.
pub fn known_control() -> Option<&'static Control> {
    // SAFETY: as in `control`.
    unsafe { FOUND.control.load(Ordering::Acquire).as_ref() }
}

#[cold]
fn look_now_and_then() -> Option<&'static Control> {
    // Until one look has failed every thread looks: one that went on without, while another is still at it, would take a
    // path below a prefix for what it is not.
    let next = NEXT_LOOK.load(Ordering::Relaxed);
    if next != 0 {
        if !CALLS.fetch_add(1, Ordering::Relaxed).is_multiple_of(RETRY_CALLS) || sys::now_ns() < next {
            return None;
        }
        NEXT_LOOK.store(sys::now_ns().wrapping_add(RETRY_NS), Ordering::Relaxed);
    }
    let found = look();
    if found.is_none() {
        NEXT_LOOK.store(sys::now_ns().wrapping_add(RETRY_NS).max(1), Ordering::Relaxed);
    }
    found
}

/// Maps the control page.
fn map_page(path: &PathBuf) -> Result<*mut c_void, Errno> {
    let fd = sys::openat(k::AT_FDCWD, path.c_str(), (k::O_RDONLY | k::O_CLOEXEC) as i32, 0)? as i32;
    let size = size_of::<Control>();
    let long_enough = sys::fstat(fd).is_ok_and(|stat| stat.st_size as usize >= size);
    let mapped = if long_enough { sys::map(fd, size, false) } else { Err(Errno::of(errno::ENOENT)) };
    sys::close(fd);
    mapped
}

fn look() -> Option<&'static Control> {
    remember_run_dir();
    let mut path = PathBuf::new();
    run_path(&mut path, &[b"/", names::CONTROL.as_bytes()]).ok()?;
    let mut mapped = map_page(&path);
    if mapped.is_err_and(beside::is_needed) {
        let mask = sys::block_signals();
        mapped = beside::run(|| map_page(&path)).unwrap_or(mapped);
        sys::set_signals(mask);
    }
    let (at, size) = (mapped.ok()?.cast::<Control>(), size_of::<Control>());
    // SAFETY: a read-only mapping of at least the page's size, all of whose fields are atomics.
    let control = unsafe { &*at };
    if !control.compatible() {
        if control.magic.load(Ordering::Acquire) == storeshim_protocol::CONTROL_MAGIC
            && !MISMATCH_TOLD.swap(true, Ordering::Relaxed)
        {
            complain(
                b"storeshim: the agent in the run directory speaks another version than this library: the \
                program runs without it; install the library and the agent of one release\n",
            );
        }
        // SAFETY: nobody has seen the mapping.
        unsafe { sys::unmap(at.cast(), size) };
        return None;
    }
    match FOUND.control.compare_exchange(core::ptr::null_mut(), at, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Some(control),
        Err(first) => {
            // SAFETY: nobody has seen our mapping; the other thread's stays.
            unsafe {
                sys::unmap(at.cast(), size);
                first.as_ref()
            }
        }
    }
}

/// Says a sentence on the app's standard error.
pub fn complain(sentence: &[u8]) {
    let _ = sys::write(2, sentence.as_ptr().cast(), sentence.len());
}

/// The mount table, `None` while there is no agent.
#[inline]
pub fn table() -> Option<&'static Table> {
    let control = control()?;
    // SAFETY: tables are never freed.
    let table = unsafe { FOUND.table.load(Ordering::Acquire).as_ref() };
    match table {
        Some(table)
            if table.generation == control.generation.load(Ordering::Relaxed)
                && table.count == control.mount_count.load(Ordering::Acquire) =>
        {
            Some(table)
        }
        _ => copy_table(control, table),
    }
}

/// Copies the table; called once per process and agent. A table that says the same is taken over, one that says
/// something else replaces it, and the old one stays where it is for those who still read it.
#[cold]
fn copy_table(control: &'static Control, old: Option<&'static Table>) -> Option<&'static Table> {
    let size = size_of::<Table>();
    let Ok(at) = sys::map(-1, size, true) else { return old };
    let fresh = at.cast::<Table>();
    // SAFETY: fresh zeroed memory of our own: a table of no mounts.
    let table = unsafe { &mut *fresh };
    table.generation = control.generation.load(Ordering::Relaxed);
    table.count = control.mount_count.load(Ordering::Acquire);
    for (entry, mount) in table.entries.iter_mut().zip(control.mounts()) {
        if mount.state() == MountState::Absent {
            continue;
        }
        let (Some(prefix), Some(tree)) = (mount.prefix(&mut entry.prefix), mount.tree(&mut entry.tree))
        else {
            continue;
        };
        entry.prefix_len = prefix;
        entry.tree_len = tree;
        entry.identity = mount.flags.load(Ordering::Relaxed) & FLAG_IDENTITY != 0;
        entry.dev = mount.dev.load(Ordering::Relaxed);
        entry.root_ino = mount.root_ino.load(Ordering::Relaxed);
        table.translates |= !entry.identity;
    }
    let shares = table
        .mounts()
        .any(|(index, entry)| table.mounts().any(|(other, e)| other != index && e.dev == entry.dev));
    table.shares_device = shares;
    let expected = old.map_or(core::ptr::null_mut(), |old| core::ptr::from_ref(old).cast_mut());
    match FOUND.table.compare_exchange(expected, fresh, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: published, never freed.
        Ok(_) => Some(unsafe { &*fresh }),
        Err(first) => {
            // SAFETY: nobody has seen ours; the other thread's stays.
            unsafe {
                sys::unmap(at, size);
                first.as_ref()
            }
        }
    }
}

/// Whether the tree of some mount lies on this device. Cheaper than the table.
pub fn holds_device(dev: u64) -> bool {
    control().is_some_and(|c| c.mounts().iter().any(|mount| mount.dev.load(Ordering::Relaxed) == dev))
}

/// Whether a file lies on the file system of mount `index`.
pub fn is_on(index: usize, stat: &Stat) -> bool {
    table().and_then(|table| table.get(index)).is_some_and(|entry| entry.dev == stat.st_dev)
}

/// The live entry of a mount.
#[inline(always)]
pub fn mount(index: usize) -> Option<&'static Mount> {
    known_control()?.mounts.get(index)
}

/// The FLAG_* bits of a mount; those of a local one where there is none.
#[inline(always)]
pub fn flags(index: usize) -> u32 {
    mount(index).map_or(FLAG_LOCAL | FLAG_COMPLETE, |mount| mount.flags.load(Ordering::Acquire))
}

/// How many bytes this process may add to a mount's volume without asking for them, until the agent shows another number.
#[inline(always)]
pub fn unasked(index: usize) -> u64 {
    mount(index).map_or(u64::MAX, Mount::unasked)
}

/// Whether what bytes are added to any mount may have to be asked for.
pub fn some_has_quota() -> bool {
    known_control().is_some_and(|control| control.mounts().iter().any(|mount| mount.unasked() != u64::MAX))
}

/// Whether there is a quota of a mount's volume to be asked about.
pub fn has_quota(index: usize) -> bool {
    unasked(index) != u64::MAX || flags(index) & FLAG_QUOTA_NEAR != 0
}

/// Whether barriers of this mount are the kernel's own.
pub fn is_local(index: usize) -> bool {
    flags(index) & FLAG_LOCAL != 0
}

/// Whether the agent has shown life lately.
pub fn agent_lives() -> bool {
    known_control().is_some_and(|control| {
        sys::now_ns().saturating_sub(control.heartbeat_ns.load(Ordering::Relaxed)) < HEARTBEAT_STALE_NS
    })
}

/// Waits while a mount is being restored; ETIMEDOUT after its request timeout.
#[inline(always)]
pub fn wait_restored(index: usize) -> Result<(), Errno> {
    match mount(index) {
        Some(mount) if mount.state.load(Ordering::Acquire) == MountState::Restoring as u32 => {
            wait_while_restoring(mount)
        }
        _ => Ok(()),
    }
}

#[cold]
fn wait_while_restoring(mount: &Mount) -> Result<(), Errno> {
    let start = sys::now_ns();
    let limit = u64::from(mount.request_timeout_ms.load(Ordering::Relaxed)) * 1_000_000;
    while mount.state() == MountState::Restoring {
        let _ = sys::futex_wait(&raw const mount.state, MountState::Restoring as u32, SLICE_NS);
        if limit != 0 && sys::now_ns().saturating_sub(start) > limit {
            return Err(Errno::of(errno::ETIMEDOUT));
        }
    }
    Ok(())
}

/// Holds a writer back as the mount asks.
#[inline(always)]
pub fn throttle(index: usize) {
    if let Some(mount) = mount(index)
        && mount.throttle.load(Ordering::Relaxed) != 0
    {
        slow_down(mount);
    }
}

#[cold]
fn slow_down(mount: &Mount) {
    if mount.throttle.load(Ordering::Relaxed) == THROTTLE_SLOW {
        sys::sleep_ns(1_000_000);
        return;
    }
    while mount.throttle.load(Ordering::Acquire) == THROTTLE_BLOCK && agent_lives() {
        let _ = sys::futex_wait(&raw const mount.throttle, THROTTLE_BLOCK, SLICE_NS);
    }
}
