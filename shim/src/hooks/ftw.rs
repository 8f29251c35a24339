//! ftw and nftw. libc walks the tree; the app's function is called through one of ours, which respells the path and knows
//! that the working directory may have changed.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use crate::act::Act;
use crate::hook::{fail, hook, real};
use crate::place::{self, CWD, Place};
use crate::respell::{self, Block, Respell, Stat, boxed};
use crate::seen::{self, Out, Subject};
use crate::sys::{self, Errno, PathBuf, errno, k};
use crate::{absent, control, loader, paths, residency};

/// The app's function. That of ftw takes no fourth argument and does not miss it.
type Each = unsafe extern "C" fn(*const c_char, *const Stat, c_int, *mut Position) -> c_int;

/// struct FTW.
#[repr(C)]
pub struct Position {
    base: c_int,
    level: c_int,
}

const FTW_PHYS: c_int = 1;
const FTW_CHDIR: c_int = 4;
const FTW_DEPTH: c_int = 8;

/// What a walker calls things, of which musl's numbers are one higher: a directory, something that stat does not find, a
/// link that leads to nothing.
const FTW_D: c_int = 1;
const FTW_NS: c_int = 3;
const FTW_SLN: c_int = 6;

/// The kind that a walker tells, by glibc's number.
fn kind_of(kind: c_int) -> c_int {
    if loader::is_glibc() { kind } else { kind - 1 }
}

/// Links that led to nothing, and then to something.
static LINKS: AtomicU32 = AtomicU32::new(0);

/// A walk that some thread is in.
struct Walk<'w> {
    each: Each,
    /// The app's root and how it differs from the walker's.
    root: &'w [u8],
    spelling: Option<Respell>,
    changes_cwd: bool,
}

/// Where a thread's innermost walk is found, since the walkers pass nothing on to the function. Never freed, taken over by
/// the next thread that walks.
struct Seat {
    /// Thread pointer, 0: free.
    thread: AtomicU64,
    walk: AtomicPtr<c_void>,
    next: *const Seat,
}

static SEATS: AtomicPtr<Seat> = AtomicPtr::new(core::ptr::null_mut());

fn seats() -> impl Iterator<Item = &'static Seat> {
    let mut at = SEATS.load(Ordering::Acquire).cast_const();
    core::iter::from_fn(move || {
        // SAFETY: seats are never freed.
        let seat = unsafe { at.as_ref() }?;
        at = seat.next;
        Some(seat)
    })
}

fn seat_of(thread: u64) -> Option<&'static Seat> {
    seats().find(|seat| seat.thread.load(Ordering::Relaxed) == thread)
}

/// This thread's seat, taken where it has none.
fn take_seat() -> Option<&'static Seat> {
    let me = sys::thread_pointer();
    let free =
        |seat: &&Seat| seat.thread.compare_exchange(0, me, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    if let Some(seat) = seat_of(me).or_else(|| seats().find(free)) {
        return Some(seat);
    }
    let fresh = boxed(Seat {
        thread: AtomicU64::new(me),
        walk: AtomicPtr::new(core::ptr::null_mut()),
        next: core::ptr::null(),
    });
    if fresh.is_null() {
        return None;
    }
    let mut first = SEATS.load(Ordering::Acquire);
    loop {
        // SAFETY: nobody else has the seat before it is published.
        unsafe { (*fresh).next = first };
        match SEATS.compare_exchange(first, fresh, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: published, never freed.
            Ok(_) => return unsafe { fresh.as_ref() },
            Err(now) => first = now,
        }
    }
}

/// What the walker calls when it walks only so that everything is there when it walks again.
///
/// # Safety
/// The contract of nftw(3)'s function.
unsafe extern "C" fn prepare(path: *const c_char, _: *const Stat, kind: c_int, _: *mut Position) -> c_int {
    let done = match kind_of(kind) {
        FTW_D => absent::listing_at(Place { mount: None, dirfd: CWD, path }),
        FTW_NS | FTW_SLN => absent::stat_at(CWD, path, 0).map(|_| {
            LINKS.fetch_add(1, Ordering::Relaxed);
        }),
        _ => Ok(()),
    };
    match done {
        Err(e) if e != Errno::of(errno::ENOENT) => fail(e),
        _ => 0,
    }
}

/// What the walker calls.
///
/// # Safety
/// The contract of nftw(3)'s function.
unsafe extern "C" fn visit(
    path: *const c_char,
    stat: *const Stat,
    kind: c_int,
    position: *mut Position,
) -> c_int {
    let walk = seat_of(sys::thread_pointer())
        .map_or(core::ptr::null(), |seat| seat.walk.load(Ordering::Relaxed).cast_const());
    // SAFETY: the walk on whose behalf this runs stands on this thread's stack, further up.
    let Some(walk) = (unsafe { walk.cast::<Walk<'_>>().as_ref() }) else { return -1 };
    if walk.changes_cwd {
        place::forget_cwd();
    }
    // SAFETY: the walker hands a C string and, but for ftw, a position.
    unsafe {
        let bytes = CStr::from_ptr(path).to_bytes();
        let mut corrected = core::mem::MaybeUninit::<Stat>::uninit();
        let mut seen = stat;
        if let Some(stat) = stat.as_ref()
            && kind_of(kind) != FTW_NS
        {
            let from_here = walk.changes_cwd && bytes.first() != Some(&b'/');
            let name = if from_here { path.add(paths::last_component(bytes).0) } else { path };
            // Before the walker reads it, unless that was done before the walk.
            if kind_of(kind) == FTW_D
                && let Err(errno) = absent::listing_at(Place { mount: None, dirfd: CWD, path: name })
            {
                return fail(errno);
            }
            let copy = corrected.write(*stat);
            correct(name, copy);
            seen = copy;
        }
        let Some(spelling) = walk.spelling else { return (walk.each)(path, seen, kind, position) };
        let (head, tail) = spelling.parts(walk.root, bytes);
        let mut own = Position { base: 0, level: 0 };
        let mut spelled = PathBuf::new();
        let fits = spelled.push(head).and_then(|()| spelled.push(tail)).is_ok();
        let mut block = Block::new();
        let path = if fits { spelled.c_str() } else { block.fill(head, tail).cast_const() };
        if sys::leads_nowhere(path) {
            return fail(Errno::of(errno::ENOMEM));
        }
        let position = match position.as_ref() {
            Some(given) => {
                own.level = given.level;
                own.base = match usize::try_from(given.base).ok().and_then(|b| b.checked_sub(spelling.real)) {
                    Some(below) if given.level > 0 => (spelling.app + below) as c_int,
                    _ => paths::last_component(CStr::from_ptr(path).to_bytes()).0 as c_int,
                };
                &raw mut own
            }
            None => position,
        };
        let result = (walk.each)(path, seen, kind, position);
        block.release();
        result
    }
}

/// Corrects what a walker's own look at `name` has said.
///
/// # Safety
/// `name` must be a C string.
pub unsafe fn correct(name: *const c_char, stat: &mut Stat) {
    if stat.st_mode & k::S_IFMT == k::S_IFLNK {
        if let Some(size) = respell::link_size(CWD, name) {
            stat.st_size = size as _;
        }
    } else if seen::may_differ() {
        let out = &raw mut *stat;
        let mut look = |()| {
            // SAFETY: as above.
            let done = unsafe {
                sys::raw(k::__NR_newfstatat as usize, CWD as usize, name as usize, out as usize, 0, 0, 0)
            };
            if done.is_ok() { 0 } else { -1 }
        };
        let subject = Subject::Path(Place { mount: None, dirfd: CWD, path: name });
        // SAFETY: the walker has filled it.
        unsafe { seen::correct(subject, Out::Stat(out), Act::new(&mut look)) };
    }
}

/// Runs a walk from `root` by `call` (the walker's root, its function).
///
/// # Safety
/// The contract of nftw(3).
unsafe fn walk(
    root: *const c_char,
    each: *const c_void,
    flags: c_int,
    call: impl Fn(*const c_char, *const c_void, c_int) -> c_int,
) -> c_int {
    let translates = control::table().is_some_and(|table| table.translates);
    let changes_cwd = flags & FTW_CHDIR != 0 && control::table().is_some();
    if root.is_null() || each.is_null() || !(translates || changes_cwd || residency::is_any_partial()) {
        return call(root, each, flags);
    }
    let mut room = PathBuf::new();
    let spelling = match respell::root(root, &mut room) {
        Ok(found) => found.map(|(_, spelling)| spelling),
        Err(errno) => return fail(errno),
    };
    let Some(seat) = take_seat() else { return fail(Errno::of(errno::ENOMEM)) };
    // SAFETY: the caller keeps the contract of nftw(3): a C string and a function.
    let (bytes, each) =
        unsafe { (CStr::from_ptr(root).to_bytes(), core::mem::transmute::<*const c_void, Each>(each)) };
    let from = if spelling.is_some() { room.c_str() } else { root };
    if let Err(errno) = absent::present(Place { mount: None, dirfd: CWD, path: from }) {
        return fail(errno);
    }
    // Where the walker looks behind us: into directories before it tells of them, and through links.
    let unseen = flags & (FTW_DEPTH | FTW_PHYS) != FTW_PHYS;
    while unseen && absent::some_lacks_names() {
        let links = LINKS.load(Ordering::Relaxed);
        let failed = call(from, prepare as *const c_void, flags & !(FTW_DEPTH | FTW_CHDIR));
        if failed != 0 {
            return failed;
        }
        if LINKS.load(Ordering::Relaxed) == links {
            break;
        }
    }
    let this = Walk { each, root: bytes, spelling, changes_cwd };
    let outer = seat.walk.swap((&raw const this).cast_mut().cast(), Ordering::Relaxed);
    let result = call(from, visit as *const c_void, flags);
    seat.walk.store(outer, Ordering::Relaxed);
    if outer.is_null() {
        seat.thread.store(0, Ordering::Release);
    }
    if changes_cwd {
        place::forget_cwd();
    }
    result
}

hook! {
    unsafe fn ftw | ftw64(root: *const c_char, each: *const c_void, depth: c_int) -> c_int => my_ftw {
        walk(root, each, 0, |root, each, _| real!(ftw)(root, each, depth))
    }
}

hook! {
    unsafe fn nftw | nftw64(root: *const c_char, each: *const c_void, depth: c_int, flags: c_int) -> c_int => my_nftw {
        walk(root, each, flags, |root, each, flags| real!(nftw)(root, each, depth, flags))
    }
}
