//! Opening a file where this process has no descriptor to spare: done by a child that shares our memory, but has a table of
//! descriptors of its own to make room in. Knows nothing of what is opened.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use crate::net;
use crate::sys::{self, Errno, errno, k};

/// Whether an open failed for want of a descriptor.
pub fn is_needed(errno: Errno) -> bool {
    errno.0 as u32 == errno::EMFILE
}

/// Runs `act` in such a child, on this thread's stack, and waits for its end. What it maps and stores is ours, what it
/// opens is not; it must not return early. Signals must be blocked. `None` where there can be no child.
#[cold]
pub fn run<R>(act: impl FnOnce() -> R) -> Option<R> {
    if net::is_on() {
        // The call would be trapped, and the handler could not tell the two that return from it apart.
        return None;
    }
    struct Job<F, R> {
        act: Option<F>,
        result: MaybeUninit<R>,
        done: bool,
    }
    extern "C" fn child<F: FnOnce() -> R, R>(job: *mut c_void) {
        // SAFETY: `run` handed it, and waits.
        let job = unsafe { &mut *job.cast::<Job<F, R>>() };
        sys::raise_descriptor_limit();
        sys::close(0);
        if let Some(act) = job.act.take() {
            job.result.write(act());
            job.done = true;
        }
    }
    fn of<F: FnOnce() -> R, R>(_: &Job<F, R>) -> extern "C" fn(*mut c_void) {
        child::<F, R>
    }
    let mut job = Job { act: Some(act), result: MaybeUninit::uninit(), done: false };
    let function = of(&job);
    // SAFETY: the job outlives the child, since this waits for its end.
    unsafe { start(function, (&raw mut job).cast()) };
    // SAFETY: written before it was said to be done.
    job.done.then(|| unsafe { job.result.assume_init_read() })
}

/// Has a child that shares memory and stack call `function(argument)` and end; waits for it.
///
/// # Safety
/// The function must keep to memory that is valid now.
unsafe fn start(function: extern "C" fn(*mut c_void), argument: *mut c_void) {
    const FLAGS: u32 = k::CLONE_VM | k::CLONE_VFORK;
    let pid: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the child's frames lie below this one, whose owner sleeps until the child has ended.
    unsafe {
        core::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "mov rdi, r12",
            "call r13",
            "xor edi, edi",
            "mov eax, {exit}",
            "syscall",
            "2:",
            exit = const k::__NR_exit, in("r12") argument, in("r13") function,
            inlateout("rax") k::__NR_clone as isize => pid, in("rdi") FLAGS as usize, in("rsi") 0usize,
            in("rdx") 0usize, in("r10") 0usize, in("r8") 0usize, clobber_abi("C"));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x0, x20",
            "blr x21",
            "mov x0, #0",
            "mov x8, {exit}",
            "svc 0",
            "2:",
            exit = const k::__NR_exit, in("x20") argument, in("x21") function,
            in("x8") k::__NR_clone as usize, inlateout("x0") FLAGS as isize => pid, in("x1") 0usize,
            in("x2") 0usize, in("x3") 0usize, in("x4") 0usize, clobber_abi("C"));
    }
    if pid > 0 {
        sys::reap(pid as i32);
    }
}
