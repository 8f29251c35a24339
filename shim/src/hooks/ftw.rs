//! ftw and nftw. libc walks the tree; the app's function is called through one of ours, which respells the path and knows
//! that the working directory may have changed.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use crate::control;
use crate::hook::{fail, hook, real};
use crate::paths;
use crate::place::{self, CWD};
use crate::respell::{self, Block, Respell, Stat, boxed};
use crate::sys::{self, Errno, PathBuf, errno};

/// The app's function. That of ftw takes no fourth argument and does not miss it.
type Each = unsafe extern "C" fn(*const c_char, *const Stat, c_int, *mut Position) -> c_int;

/// struct FTW.
#[repr(C)]
pub struct Position {
    base: c_int,
    level: c_int,
}

const FTW_CHDIR: c_int = 4;

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
            && stat.st_mode & sys::k::S_IFMT == sys::k::S_IFLNK
        {
            let from_here = walk.changes_cwd && bytes.first() != Some(&b'/');
            let name = if from_here { path.add(paths::last_component(bytes).0) } else { path };
            if let Some(size) = respell::link_size(CWD, name) {
                let copy = corrected.write(*stat);
                copy.st_size = size as _;
                seen = copy;
            }
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

/// Runs a walk from `root` by `call` (the walker's root, its function).
///
/// # Safety
/// The contract of nftw(3).
unsafe fn walk(
    root: *const c_char,
    each: *const c_void,
    changes_cwd: bool,
    call: impl FnOnce(*const c_char, *const c_void) -> c_int,
) -> c_int {
    let translates = control::table().is_some_and(|table| table.translates);
    if root.is_null() || each.is_null() || !(translates || changes_cwd && control::table().is_some()) {
        return call(root, each);
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
    let this = Walk { each, root: bytes, spelling, changes_cwd };
    let outer = seat.walk.swap((&raw const this).cast_mut().cast(), Ordering::Relaxed);
    let from = if spelling.is_some() { room.c_str() } else { root };
    let result = call(from, visit as *const c_void);
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
        walk(root, each, false, |root, each| real!(ftw)(root, each, depth))
    }
}

hook! {
    unsafe fn nftw | nftw64(root: *const c_char, each: *const c_void, depth: c_int, flags: c_int) -> c_int => my_nftw {
        walk(root, each, flags & FTW_CHDIR != 0, |root, each| real!(nftw)(root, each, depth, flags))
    }
}
