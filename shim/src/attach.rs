//! Attaching: this process's ring file and each thread's slot in it. Done at the first intent, once per process;
//! a forked child finds its memory of it wiped and attaches anew. Keeps no descriptor.

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use storeshim_protocol::{Doorbell, RING_MAGIC, RingFile, SLOTS, Slot, VERSION, names};

use crate::loader::{self, Real};
use crate::sys::{self, Errno, PathBuf, errno, k};
use crate::{beside, control};

/// The slot that threads without one of their own share, one call at a time.
const SHARED_SLOT: usize = SLOTS - 1;
/// A frame further out than this is on another stack, not one that was left by longjmp.
pub const STACK_MAX: usize = 1 << 20;
/// Threads whose seat is found without a search.
const HINTS: usize = 256;
/// Told ranges that a thread remembers.
pub const TOLD: usize = 256;

/// A range that this thread has told.
pub struct Told {
    /// Inode.
    pub ino: AtomicU64,
    /// Mount index and interval.
    pub when: AtomicU64,
    /// First byte.
    pub start: AtomicU64,
    /// One past the last byte.
    pub end: AtomicU64,
}

/// What a thread keeps for itself.
#[repr(C, align(64))]
pub struct Private {
    /// Stack pointer at the entry of the gate, to tell an abandoned call (longjmp) from a nested one.
    pub entered_at: AtomicUsize,
    /// While a request of this thread is out: where on the stack it was made. Else 0.
    pub asking: AtomicUsize,
    /// Bytes written to what was told as a whole, and not accounted for yet.
    pub unsaid: AtomicU64,
    /// What was told in this interval.
    pub told: [Told; TOLD],
}

/// What a forked child must not inherit: in a page that the kernel wipes for it (MADV_WIPEONFORK), raw clone too.
#[repr(C)]
struct Wiped {
    ring: AtomicPtr<RingFile>,
    /// Futex word: [`FREE`] or [`BUSY`].
    state: AtomicU32,
    /// Set where threads or processes share a thread pointer, so that it says nothing any more.
    shared_pointers: AtomicU32,
    /// Where threads sat last, by a hash of their name.
    hints: [AtomicU8; HINTS],
    private: [Private; SLOTS],
}

const FREE: u32 = 0;
const BUSY: u32 = 1;

static WIPED: AtomicPtr<Wiped> = AtomicPtr::new(core::ptr::null_mut());
static DOORBELL: AtomicPtr<Doorbell> = AtomicPtr::new(core::ptr::null_mut());
static COMPLAINED: AtomicU32 = AtomicU32::new(0);
/// 1 + the key whose destructor frees a thread's slot; 0: none yet.
static EXIT_KEY: AtomicU32 = AtomicU32::new(0);

/// This process's ring file.
///
/// Errors: EIO where it cannot be had (said once on standard error): a change that cannot be told must not
/// happen.
#[inline(always)]
pub fn ring() -> Result<&'static RingFile, Errno> {
    match attached() {
        Some(ring) => Ok(ring),
        None => attach(),
    }
}

/// The ring file if this process has attached.
#[inline(always)]
pub fn attached() -> Option<&'static RingFile> {
    // SAFETY: both mappings stay as long as the process has this memory.
    unsafe { WIPED.load(Ordering::Acquire).as_ref()?.ring.load(Ordering::Acquire).as_ref() }
}

#[cold]
#[inline(never)]
fn attach() -> Result<&'static RingFile, Errno> {
    // A signal handler that came to need the ring in the middle of this would wait for itself.
    let mask = sys::block_signals();
    let result = attach_alone();
    sys::set_signals(mask);
    result.map_err(|failure| {
        if COMPLAINED.swap(1, Ordering::Relaxed) == 0 {
            control::complain(failure.sentence());
        }
        Errno::of(errno::EIO)
    })
}

/// Why there is no ring.
#[derive(Clone, Copy)]
enum Failure {
    NoAgent,
    Foreign,
    NoFile,
    NoDescriptor,
    NoMemory,
}

impl Failure {
    fn sentence(self) -> &'static [u8] {
        match self {
            Self::NoAgent => {
                b"storeshim: no agent serves the run directory, so a change could not be recorded and was refused \
                  with EIO: start the agent\n"
            }
            Self::Foreign => {
                b"storeshim: the agent runs as another user who could not read what this process reports, so its \
                  change was refused with EIO: run the agent as this user or as root\n"
            }
            Self::NoFile => {
                b"storeshim: a file in the run directory's rings/ could not be created, so a change was refused \
                  with EIO: check that directory's permissions and space, and the file size limit of this process \
                  where the agent is not running\n"
            }
            Self::NoDescriptor => {
                b"storeshim: no descriptor was left to report a change with, so it was refused with EIO: raise this \
                  process's descriptor limit\n"
            }
            Self::NoMemory => {
                b"storeshim: no memory could be mapped for this process's ring, so a change was refused with EIO: \
                  raise its memory limit\n"
            }
        }
    }
}

fn attach_alone() -> Result<&'static RingFile, Failure> {
    let wiped = wiped_page().ok_or(Failure::NoMemory)?;
    let start = sys::now_ns();
    while wiped.state.compare_exchange(FREE, BUSY, Ordering::Acquire, Ordering::Relaxed).is_err() {
        let _ = sys::futex_wait(&raw const wiped.state, BUSY, 10_000_000);
        // The other thread was a vfork child that died in the middle: go on without it.
        if sys::now_ns().saturating_sub(start) > 5_000_000_000 {
            break;
        }
    }
    let present = wiped.ring.load(Ordering::Acquire);
    let result = if present.is_null() { create_ring_anyhow() } else { Ok(present) };
    if let Ok(ring) = result {
        wiped.ring.store(ring, Ordering::Release);
    }
    wiped.state.store(FREE, Ordering::Release);
    sys::futex_wake(&raw const wiped.state);
    // SAFETY: `create_ring` hands out live mappings only.
    result.map(|ring| unsafe { &*ring })
}

fn wiped_page() -> Option<&'static Wiped> {
    // SAFETY: never unmapped.
    if let Some(wiped) = unsafe { WIPED.load(Ordering::Acquire).as_ref() } {
        return Some(wiped);
    }
    let size = size_of::<Wiped>();
    let at = sys::map(-1, size, true).ok()?;
    if sys::advise(at, size, k::MADV_WIPEONFORK).is_err() {
        // SAFETY: nobody has seen it.
        unsafe { sys::unmap(at, size) };
        return None;
    }
    let fresh = at.cast::<Wiped>();
    match WIPED.compare_exchange(core::ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire) {
        // SAFETY: zeroed memory is a valid `Wiped`: nothing attached, nothing told.
        Ok(_) => Some(unsafe { &*fresh }),
        Err(first) => {
            // SAFETY: nobody has seen ours; the first stays.
            unsafe {
                sys::unmap(at, size);
                first.as_ref()
            }
        }
    }
}

/// As [`create_ring`], also where this process has as many descriptors as it may have.
fn create_ring_anyhow() -> Result<*mut RingFile, Failure> {
    let mut result = create_ring();
    if matches!(result, Err(Failure::NoDescriptor)) {
        result = beside::run(create_ring).unwrap_or(result);
        if let Ok(ring) = result {
            // SAFETY: as in `attach_alone`. The child was another process.
            unsafe { (*ring).pid.store(sys::getpid(), Ordering::Relaxed) };
        }
    }
    result
}

/// How a failed open of one of our files ends the attempt.
fn unopened(errno: Errno) -> Failure {
    if beside::is_needed(errno) { Failure::NoDescriptor } else { Failure::NoFile }
}

fn create_ring() -> Result<*mut RingFile, Failure> {
    let control = control::control().ok_or(Failure::NoAgent)?;
    let agent = control.agent_uid.load(Ordering::Relaxed);
    if agent != 0 && agent != sys::geteuid() {
        return Err(Failure::Foreign);
    }
    map_doorbell()?;
    let mut path = PathBuf::new();
    for _ in 0..16 {
        let name = hex(sys::random());
        control::run_path(&mut path, &[b"/", names::RINGS.as_bytes(), b"/", &name])
            .map_err(|_| Failure::NoFile)?;
        let flags = k::O_RDWR | k::O_CREAT | k::O_EXCL | k::O_CLOEXEC | k::O_NOFOLLOW;
        match sys::openat(k::AT_FDCWD, path.c_str(), flags as c_int, 0o600) {
            Ok(fd) => {
                let result = fill_ring(fd as c_int);
                sys::close(fd as c_int);
                if result.is_err() {
                    let _ = sys::unlinkat(k::AT_FDCWD, path.c_str(), 0);
                }
                return result;
            }
            Err(e) if e == Errno::of(errno::EEXIST) => {}
            Err(e) => return Err(unopened(e)),
        }
    }
    Err(Failure::NoFile)
}

fn fill_ring(fd: c_int) -> Result<*mut RingFile, Failure> {
    let size = size_of::<RingFile>();
    // Before the magic word: an agent that sees a ring also sees whether its process lives.
    sys::lock_first_byte(fd).map_err(|_| Failure::NoFile)?;
    if sys::file_size_limit() < size as u64 {
        // To try would end this process by SIGXFSZ.
        await_growth(fd, size)?;
    } else {
        sys::ftruncate(fd, size as i64).map_err(|_| Failure::NoFile)?;
    }
    let at = sys::map(fd, size, true).map_err(|_| Failure::NoMemory)?;
    if sys::advise(at, size, k::MADV_DONTFORK).is_err() {
        // SAFETY: nobody has seen it.
        unsafe { sys::unmap(at, size) };
        return Err(Failure::NoMemory);
    }
    let ring = at.cast::<RingFile>();
    // SAFETY: a mapping of a whole ring file, all of whose fields are atomics.
    let file = unsafe { &*ring };
    let alone = loader::single_threaded().unwrap_or_else(only_task);
    // Cheap while there is one thread, milliseconds with more: then each entry of the gate pays for itself.
    let fenced = !(alone && sys::register_membarrier().is_ok());
    file.fenced.store(u32::from(fenced), Ordering::Relaxed);
    file.version.store(VERSION, Ordering::Relaxed);
    file.size.store(size as u32, Ordering::Relaxed);
    file.pid.store(sys::getpid(), Ordering::Relaxed);
    for (word, chunk) in file.comm.iter().zip(sys::comm().chunks_exact(8)) {
        let mut bytes = [0u8; 8];
        for (to, from) in bytes.iter_mut().zip(chunk) {
            *to = *from;
        }
        word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
    }
    file.magic.store(RING_MAGIC, Ordering::Release);
    Ok(ring)
}

/// Waits until the agent has let our file grow: what is empty and locked needs it.
#[cold]
fn await_growth(fd: c_int, size: usize) -> Result<(), Failure> {
    const PATIENCE_NS: u64 = 5_000_000_000;
    let start = sys::now_ns();
    while sys::now_ns().saturating_sub(start) < PATIENCE_NS {
        ring_bell();
        if sys::fstat(fd).is_ok_and(|stat| stat.st_size as usize == size) {
            return Ok(());
        }
        sys::sleep_ns(200_000);
    }
    Err(Failure::NoFile)
}

/// Whether /proc shows one thread; assumed not where there is no /proc.
fn only_task() -> bool {
    // The directory has two links and one for each thread.
    sys::stat_at(k::AT_FDCWD, c"/proc/self/task".as_ptr(), 0).is_ok_and(|stat| stat.st_nlink == 3)
}

fn hex(mut value: u64) -> [u8; 16] {
    let mut out = [0u8; 16];
    for byte in &mut out {
        let digit = (value & 0xf) as u8;
        *byte = if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
        value >>= 4;
    }
    out
}

fn map_doorbell() -> Result<(), Failure> {
    if !DOORBELL.load(Ordering::Acquire).is_null() {
        return Ok(());
    }
    let mut path = PathBuf::new();
    control::run_path(&mut path, &[b"/", names::DOORBELL.as_bytes()]).map_err(|_| Failure::NoFile)?;
    let fd = sys::openat(k::AT_FDCWD, path.c_str(), (k::O_RDONLY | k::O_CLOEXEC) as c_int, 0)
        .map_err(unopened)? as c_int;
    let long_enough = sys::fstat(fd).is_ok_and(|stat| stat.st_size as usize >= size_of::<AtomicU32>());
    let at = if long_enough { sys::map(fd, size_of::<Doorbell>(), false).ok() } else { None };
    sys::close(fd);
    let at = at.ok_or(Failure::NoFile)?;
    if DOORBELL
        .compare_exchange(core::ptr::null_mut(), at.cast(), Ordering::AcqRel, Ordering::Acquire)
        .is_err()
    {
        // SAFETY: nobody has seen ours.
        unsafe { sys::unmap(at, size_of::<Doorbell>()) };
    }
    Ok(())
}

/// Wakes the agent where it says that it sleeps.
pub fn ring_bell() {
    // SAFETY: once mapped, the doorbell stays mapped.
    let Some(bell) = (unsafe { DOORBELL.load(Ordering::Acquire).as_ref() }) else { return };
    let Some(control) = control::known_control() else { return };
    fence(Ordering::SeqCst);
    for _ in 0..2 {
        if control.sleeping.load(Ordering::SeqCst) == 0 || sys::futex_wake(&raw const bell.word) != 0 {
            return;
        }
        // It was about to sleep.
        sys::yield_now();
    }
}

/// A thread's place in the ring file.
pub struct Seat {
    /// The slot.
    pub slot: &'static Slot,
    /// What only this thread uses.
    pub private: &'static Private,
    /// The slot is the shared one, to be given back after the call.
    pub lent: bool,
}

impl Seat {
    fn new(ring: &'static RingFile, index: usize, lent: bool) -> Option<Self> {
        // SAFETY: there is a ring, so there is the page.
        let wiped = unsafe { WIPED.load(Ordering::Acquire).as_ref()? };
        Some(Self { slot: ring.slots.get(index)?, private: wiped.private.get(index)?, lent })
    }

    /// Gives a lent slot back.
    pub fn release(&self) {
        if self.lent {
            self.slot.owner.store(0, Ordering::Release);
        }
    }
}

fn hint_of(wiped: &Wiped, thread: u64) -> Option<&AtomicU8> {
    // Thread control blocks are some pages apart.
    wiped.hints.get((thread.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as usize % HINTS)
}

/// The calling thread's seat, taken at the first call; `None` where all are taken.
#[inline(always)]
pub fn seat(ring: &'static RingFile) -> Option<Seat> {
    let thread = sys::thread_pointer();
    // SAFETY: there is a ring, so there is the page.
    let wiped = unsafe { WIPED.load(Ordering::Acquire).as_ref()? };
    let index = usize::from(hint_of(wiped, thread)?.load(Ordering::Relaxed));
    let slot = ring.slots.get(index)?;
    if slot.owner.load(Ordering::Relaxed) == thread {
        return Some(Seat { slot, private: wiped.private.get(index)?, lent: false });
    }
    find_seat(ring, wiped, thread)
}

#[cold]
#[inline(never)]
fn find_seat(ring: &'static RingFile, wiped: &'static Wiped, thread: u64) -> Option<Seat> {
    if wiped.shared_pointers.load(Ordering::Relaxed) != 0 {
        return None;
    }
    let hint = hint_of(wiped, thread)?;
    // Only slots that were in use are looked at: the others have no memory yet.
    let used = (ring.slots_used.load(Ordering::Relaxed) as usize).min(SHARED_SLOT);
    let own = ring.slots.iter().take(used).position(|s| s.owner.load(Ordering::Relaxed) == thread);
    if let Some(index) = own {
        hint.store(index as u8, Ordering::Relaxed);
        return Seat::new(ring, index, false);
    }
    match ring.claim(thread) {
        Some((index, _)) if index < SHARED_SLOT => {
            hint.store(index as u8, Ordering::Relaxed);
            let seat = Seat::new(ring, index, false)?;
            // The former holder's stack is nothing to us, and a request of its own went with it.
            seat.private.entered_at.store(0, Ordering::Relaxed);
            seat.private.asking.store(0, Ordering::Relaxed);
            free_at_thread_exit();
            Some(seat)
        }
        Some((index, _)) => Seat::new(ring, index, true),
        None => None,
    }
}

/// The calling thread is about to start another that shares its memory and its thread pointer: from now on neither of
/// them has a seat of its own.
#[cold]
pub fn share_thread_pointer() {
    let Some(wiped) = wiped_page() else { return };
    wiped.shared_pointers.store(1, Ordering::SeqCst);
    give_up_seats();
}

/// Whether the frame at `mark` on this thread's stack is gone, seen from the one at `here`: a signal handler jumped out
/// of it. (One that only interrupted it runs strictly further down.)
#[inline(always)]
pub fn is_gone(mark: usize, here: usize) -> bool {
    here >= mark && here - mark <= STACK_MAX
}

/// The shared seat where a call of this thread had it and was jumped out of: it would never be given back.
fn take_back(ring: &'static RingFile, thread: u64, here: usize) -> Option<Seat> {
    let slot = ring.slots.get(SHARED_SLOT)?;
    if slot.owner.load(Ordering::Relaxed) != thread {
        return None;
    }
    let seat = Seat::new(ring, SHARED_SLOT, true)?;
    let asked = seat.private.asking.load(Ordering::Relaxed);
    let entered = if slot.gate.is_inside() { seat.private.entered_at.load(Ordering::Relaxed) } else { 0 };
    let gone = |mark: usize| mark == 0 || is_gone(mark, here);
    if asked.max(entered) == 0 || !gone(asked) || !gone(entered) {
        return None;
    }
    slot.gate.leave();
    slot.pushing.store(0, Ordering::Relaxed);
    seat.private.asking.store(0, Ordering::Relaxed);
    Some(seat)
}

/// The shared seat, where nobody has it now; `here` is where the caller is on the stack.
pub fn borrow_seat(ring: &'static RingFile, here: usize) -> Option<Seat> {
    let thread = sys::thread_pointer();
    if let Some(seat) = take_back(ring, thread, here) {
        return Some(seat);
    }
    let owner = &ring.slots.get(SHARED_SLOT)?.owner;
    owner.compare_exchange(0, thread, Ordering::AcqRel, Ordering::Relaxed).ok()?;
    ring.slots_used.fetch_max(SLOTS as u32, Ordering::SeqCst);
    Seat::new(ring, SHARED_SLOT, true)
}

type Destructor = unsafe extern "C" fn(*mut c_void);

/// Arranges that the slot is freed when this thread ends. Where that cannot be had the slot stays taken, and the
/// table is the smaller for it.
fn free_at_thread_exit() {
    static CREATE: Real = Real::new();
    static SET: Real = Real::new();
    /// glibc keeps this many values without allocating.
    const INLINE_KEYS: u32 = 32;

    let mut key = EXIT_KEY.load(Ordering::Acquire);
    if key == 0 {
        let Some(create) = CREATE.look_up(c"pthread_key_create") else { return };
        let mut fresh = 0u32;
        // SAFETY: the type of pthread_key_create.
        let create: unsafe extern "C" fn(*mut u32, Destructor) -> c_int =
            unsafe { core::mem::transmute(create) };
        // SAFETY: `fresh` outlives the call.
        if unsafe { create(&raw mut fresh, thread_ends) } != 0 {
            return;
        }
        key = match EXIT_KEY.compare_exchange(0, fresh + 1, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => fresh + 1,
            Err(first) => first,
        };
    }
    let Some(set) = SET.look_up(c"pthread_setspecific") else { return };
    if key - 1 < INLINE_KEYS {
        // SAFETY: the type of pthread_setspecific.
        let set: unsafe extern "C" fn(u32, *const c_void) -> c_int = unsafe { core::mem::transmute(set) };
        // SAFETY: any non-null value will do: the destructor does not look at it.
        let _ = unsafe { set(key - 1, core::ptr::from_ref(&EXIT_KEY).cast()) };
    }
}

unsafe extern "C" fn thread_ends(_: *mut c_void) {
    give_up_seats();
}

fn give_up_seats() {
    let Some(ring) = attached() else { return };
    let thread = sys::thread_pointer();
    for slot in ring.used().iter().filter(|slot| slot.owner.load(Ordering::Relaxed) == thread) {
        // A cancelled thread may have been inside.
        slot.gate.leave();
        slot.pushing.store(0, Ordering::Relaxed);
        slot.owner.store(0, Ordering::Release);
    }
}
