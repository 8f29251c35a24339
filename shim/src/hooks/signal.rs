//! The second net's signal stays ours: whatever the app does with it is remembered, and no mask of the app blocks it,
//! because a thread that makes a call outside libc while it is blocked dies. Nothing here does anything while the net
//! is off.

use core::ffi::{c_int, c_long, c_void};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::syscall::Words;
use crate::hook::{answer, fail, hook, real};
use crate::net::{self, SIGSYS_BIT};
use crate::sys::{self, Errno, errno};

const SIGSYS: c_int = 31;
const ONSTACK: c_int = 0x0800_0000;
const NODEFER: c_int = 0x4000_0000;
const SIGINFO: c_int = 4;

/// Both libcs' sigset_t.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Set([u64; 16]);

impl Set {
    /// Without the signal.
    fn without(mut self) -> Self {
        let [first, ..] = &mut self.0;
        *first &= !SIGSYS_BIT;
        self
    }
}

/// Both libcs' struct sigaction.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Action {
    handler: usize,
    mask: Set,
    flags: c_int,
    restorer: usize,
}

/// What the app wants done with the signal: handler, flags, first word of the mask.
static WANTED: (AtomicUsize, AtomicUsize, AtomicU64) =
    (AtomicUsize::new(0), AtomicUsize::new(0), AtomicU64::new(0));

fn wanted() -> Action {
    let mut mask = [0; 16];
    let [first, ..] = &mut mask;
    *first = WANTED.2.load(Ordering::Relaxed);
    Action {
        handler: WANTED.0.load(Ordering::Relaxed),
        mask: Set(mask),
        flags: WANTED.1.load(Ordering::Relaxed) as c_int,
        restorer: 0,
    }
}

/// The app's handler of the signal: 0 is the default, 1 to ignore it.
pub fn apps_handler() -> usize {
    WANTED.0.load(Ordering::Relaxed)
}

/// Remembers what the app wants. Its handler says, too, whether handlers run on a stack of their own: a program whose
/// threads have stacks that grow (Go) cannot have them elsewhere.
fn want(handler: usize, flags: c_int, mask: u64) {
    WANTED.0.store(handler, Ordering::Relaxed);
    WANTED.1.store(flags as u32 as usize, Ordering::Relaxed);
    WANTED.2.store(mask, Ordering::Relaxed);
    let _ = handle(flags & ONSTACK);
}

/// Puts the handler of the signal in place.
pub fn handle(flags: c_int) -> bool {
    // Not deferred: a call that the handler makes for the app may be interrupted by a handler of the app's, and that
    // may make calls of its own.
    let action = Action {
        handler: super::trap::trapped as *const () as usize,
        mask: Set([0; 16]),
        flags: flags | SIGINFO | NODEFER,
        restorer: 0,
    };
    // SAFETY: a complete structure; the handler has the type that SA_SIGINFO asks for.
    unsafe { real!(sigaction)(SIGSYS, &raw const action, core::ptr::null_mut()) == 0 }
}

hook! {
    unsafe fn sigaction | __sigaction(signal: c_int, action: *const Action, before: *mut Action) -> c_int
        => my_sigaction {
        if !net::is_on() {
            return real!(sigaction)(signal, action, before);
        }
        if signal == SIGSYS {
            let old = wanted();
            if let Some(action) = action.as_ref() {
                let Set([mask, ..]) = action.mask;
                want(action.handler, action.flags, mask);
            }
            if let Some(before) = before.as_mut() {
                *before = old;
            }
            return 0;
        }
        match action.as_ref() {
            Some(action) => {
                let action = Action { mask: action.mask.without(), ..*action };
                real!(sigaction)(signal, &raw const action, before)
            }
            None => real!(sigaction)(signal, action, before),
        }
    }
}

hook! {
    unsafe fn signal | bsd_signal | ssignal(signal: c_int, handler: usize) -> *mut c_void => my_signal {
        if signal == SIGSYS && net::is_on() {
            let old = apps_handler();
            want(handler, 0, 0);
            return old as *mut c_void;
        }
        real!(signal)(signal, handler)
    }
}

/// Calls `act` with the set, without the signal where the net is on.
fn with_set(set: *const Set, act: impl Fn(*const Set) -> c_int) -> c_int {
    if !net::is_on() {
        return act(set);
    }
    // SAFETY: the app handed a set or null.
    match unsafe { set.as_ref() } {
        Some(set) => {
            let set = set.without();
            act(&raw const set)
        }
        None => act(set),
    }
}

hook! {
    unsafe fn sigprocmask(how: c_int, set: *const Set, before: *mut Set) -> c_int => my_sigprocmask {
        // Unblocked it is anyway.
        with_set(set, |set| real!(sigprocmask)(how, set, before))
    }
}

hook! {
    unsafe fn pthread_sigmask(how: c_int, set: *const Set, before: *mut Set) -> c_int => my_pthread_sigmask {
        with_set(set, |set| real!(pthread_sigmask)(how, set, before))
    }
}

hook! {
    unsafe fn sigsuspend | __sigsuspend(set: *const Set) -> c_int => my_sigsuspend {
        with_set(set, |set| real!(sigsuspend)(set))
    }
}

/// rt_sigprocmask(2) by number.
///
/// # Safety
/// The contract of the call.
pub unsafe fn kernel_mask(w: Words) -> c_long {
    // SAFETY: as above.
    unsafe {
        match w.get::<*const u64>(1).as_ref().filter(|_| net::is_on()) {
            Some(set) => {
                let set = *set & !SIGSYS_BIT;
                answer(w.with(1, &raw const set as usize).call())
            }
            None => answer(w.call()),
        }
    }
}

/// rt_sigaction(2) by number.
///
/// # Safety
/// The contract of the call.
pub unsafe fn kernel_action(w: Words) -> c_long {
    // SAFETY: as above.
    unsafe {
        if !net::is_on() {
            return answer(w.call());
        }
        let given = w.get::<*const Kernel>(1).as_ref();
        if w.get::<c_int>(0) != SIGSYS {
            let Some(given) = given else { return answer(w.call()) };
            let action = Kernel { mask: given.mask & !SIGSYS_BIT, ..*given };
            return answer(w.with(1, &raw const action as usize).call());
        }
        if w.get::<usize>(3) != size_of::<u64>() {
            return fail(Errno::of(errno::EINVAL));
        }
        let Action { handler, mask: Set([mask, ..]), flags, .. } = wanted();
        if let Some(given) = given {
            want(given.handler, given.flags as c_int, given.mask);
        }
        if let Some(before) = w.get::<*mut Kernel>(2).as_mut() {
            *before = Kernel { handler, flags: flags as u32 as u64, mask, ..*before };
        }
        0
    }
}

/// The kernel's struct sigaction.
#[derive(Clone, Copy)]
#[repr(C)]
struct Kernel {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

/// Does with a signal that is not the net's what the app wants.
///
/// # Safety
/// To be called by the handler with its arguments.
pub unsafe fn foreign(signal: c_int, info: *mut c_void, context: *mut c_void) {
    match apps_handler() {
        0 => {
            let action = Action { handler: 0, mask: Set([0; 16]), flags: 0, restorer: 0 };
            // SAFETY: a complete structure.
            unsafe { real!(sigaction)(signal, &raw const action, core::ptr::null_mut()) };
            // Delivered when the handler returns.
            sys::raise(signal as u32);
        }
        1 => {}
        handler => {
            // SAFETY: the app's handler; one that takes the number only does not look at the others.
            unsafe {
                let handler: unsafe extern "C" fn(c_int, *mut c_void, *mut c_void) =
                    core::mem::transmute(handler);
                handler(signal, info, context);
            }
        }
    }
}
