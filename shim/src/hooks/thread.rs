//! Threads and processes that libc makes: where the second net is on they are armed before the app's own function runs.

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicUsize, Ordering};

use super::process;
use crate::hook::{hook, real};
use crate::loader::Real;
use crate::sys::{self, k};
use crate::{fds, net, place};

/// A thread's function; C11's answers an int, which is in the same register.
type Start = unsafe extern "C" fn(*mut c_void) -> *mut c_void;

/// A thread that is about to start: 0 or its function, and its argument.
struct Pending {
    start: AtomicUsize,
    argument: AtomicUsize,
}

static PENDING: [Pending; 32] =
    [const { Pending { start: AtomicUsize::new(0), argument: AtomicUsize::new(0) } }; 32];

#[cold]
#[inline(never)]
fn remember(start: Start, argument: *mut c_void) -> &'static Pending {
    let mut at = 0;
    loop {
        // One that is being filled holds a 1, which is no function.
        if let Some(pending) = PENDING.get(at)
            && pending.start.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
        {
            pending.argument.store(argument as usize, Ordering::Relaxed);
            pending.start.store(start as usize, Ordering::Release);
            return pending;
        }
        at = (at + 1) % PENDING.len();
        if at == 0 {
            // Each is given back as soon as its thread runs.
            sys::yield_now();
        }
    }
}

/// Calls `create` with a function and an argument that arm the new thread and then do what was asked.
fn armed(start: Start, argument: *mut c_void, create: impl Fn(Start, *mut c_void) -> c_int) -> c_int {
    if !net::is_on() {
        return create(start, argument);
    }
    let pending = remember(start, argument);
    let result = create(starts, core::ptr::from_ref(pending).cast_mut().cast());
    if result != 0 {
        pending.start.store(0, Ordering::Release);
    }
    result
}

unsafe extern "C" fn starts(pending: *mut c_void) -> *mut c_void {
    // SAFETY: `armed` handed it: an entry of the table, which holds a function until it is given back here.
    unsafe {
        let pending = &*pending.cast::<Pending>();
        let start: Start = core::mem::transmute(pending.start.load(Ordering::Acquire));
        let argument = pending.argument.load(Ordering::Relaxed) as *mut c_void;
        pending.start.store(0, Ordering::Release);
        net::arm();
        start(argument)
    }
}

hook! {
    unsafe fn pthread_create(thread: *mut c_void, attributes: *const c_void, start: Start, argument: *mut c_void)
        -> c_int => my_pthread_create {
        armed(start, argument, |start, argument| real!(pthread_create)(thread, attributes, start, argument))
    }
}

hook! {
    unsafe fn thrd_create(thread: *mut c_void, start: Start, argument: *mut c_void) -> c_int => my_thrd_create {
        armed(start, argument, |start, argument| real!(thrd_create)(thread, start, argument))
    }
}

/// Has children that libc forks armed, by whatever function.
pub fn arm_children() {
    type Handler = Option<extern "C" fn()>;
    static GLIBC: Real = Real::new();
    static MUSL: Real = Real::new();
    if let Some(at) = GLIBC.look_up(c"__register_atfork") {
        // SAFETY: its type: three handlers, and a library that may be unloaded.
        unsafe {
            let register: unsafe extern "C" fn(Handler, Handler, Handler, *const c_void) -> c_int =
                core::mem::transmute(at);
            register(None, None, Some(net::arm), core::ptr::null());
        }
    } else if let Some(at) = MUSL.look_up(c"pthread_atfork") {
        // SAFETY: its type.
        unsafe {
            let register: unsafe extern "C" fn(Handler, Handler, Handler) -> c_int = core::mem::transmute(at);
            register(None, None, Some(net::arm));
        }
    }
}

hook! {
    /// Runs no handlers of pthread_atfork.
    unsafe fn _Fork() -> c_int => my_fork {
        let pid = real!(_Fork)();
        if pid == 0 {
            net::arm();
        }
        pid
    }
}

/// What a child of clone(3) does: at the top of its stack.
#[repr(C, align(16))]
struct Child {
    run: unsafe extern "C" fn(*mut c_void) -> c_int,
    argument: *mut c_void,
}

unsafe extern "C" fn child_starts(child: *mut c_void) -> c_int {
    net::arm();
    // SAFETY: `my_clone` put it there.
    unsafe {
        let Child { run, argument } = child.cast::<Child>().read();
        run(argument)
    }
}

hook! {
    unsafe fn clone | __clone(run: unsafe extern "C" fn(*mut c_void) -> c_int, stack: *mut c_void, flags: c_int,
        argument: *mut c_void, parent: *mut c_void, tls: *mut c_void, child: *mut c_void) -> c_int => my_clone {
        let waits = flags as u32 & (k::CLONE_VM | k::CLONE_VFORK | k::CLONE_FILES) == k::CLONE_VM | k::CLONE_VFORK;
        process::shares(flags as u32 as u64);
        let pid = if net::is_on() && !stack.is_null() {
            let top = stack.cast::<Child>().wrapping_sub(1).map_addr(|at| at & !15);
            // The memory below the top is the child's to use.
            top.write(Child { run, argument });
            real!(clone)(child_starts, top.cast(), flags, top.cast(), parent, tls, child)
        } else {
            real!(clone)(run, stack, flags, argument, parent, tls, child)
        };
        if waits {
            // The child has another program, or has ended.
            fds::BORROWED.fetch_sub(1, Ordering::SeqCst);
            place::forget_cwd();
        }
        pid
    }
}
