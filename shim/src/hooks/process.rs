//! Processes and threads that are made by a bare system call: what they share with their maker decides what may be
//! remembered from then on.

use core::ffi::{c_int, c_long};
use core::sync::atomic::Ordering;

use super::syscall::Words;
use crate::hook::{answer, hook, real};
use crate::sys::{self, Answer, k};
use crate::{attach, control, fds, net};

/// The numbers that [`routed`] has; clone and clone3 are asked about by [`clones`] first.
#[cfg(target_arch = "x86_64")]
pub const NUMBERS: &[u32] = &[k::__NR_fork, k::__NR_vfork];
#[cfg(not(target_arch = "x86_64"))]
pub const NUMBERS: &[u32] = &[];

/// Makes this process known to the agent before it may be forbidden to.
#[cold]
pub fn before_confinement() {
    if control::table().is_some() {
        let _ = attach::ring();
    }
}

hook! {
    unsafe fn prctl(option: c_int, a: usize, b: usize, c: usize, d: usize) -> c_int => my_prctl {
        const PR_SET_SECCOMP: c_int = 22;
        if option == PR_SET_SECCOMP {
            before_confinement();
        }
        real!(prctl)(option, a, b, c, d)
    }
}

/// The beginning of clone3(2)'s argument, as far as every kernel has it.
type Clone3 = k::clone_args;

/// Flags and stack of a clone(2) or clone3(2).
///
/// # Safety
/// The contract of the call.
unsafe fn asked(w: &Words) -> (u64, u64) {
    if w.number as u32 != k::__NR_clone3 {
        return (w.get(0), w.get(1));
    }
    // SAFETY: the argument is a structure of at least 64 bytes; the stack lies within.
    unsafe {
        let clone = w.get::<*const Clone3>(0);
        if sys::leads_nowhere(clone) || w.get::<usize>(1) < 64 {
            return (0, 0);
        }
        ((*clone).flags, (*clone).stack)
    }
}

/// Before a child that shares this process's memory and goes on beside it is made with `flags`.
pub fn shares(flags: u64) {
    let has = |flag: u32| flags & u64::from(flag) != 0;
    if !has(k::CLONE_VM) {
        return;
    }
    if !has(k::CLONE_FILES) || !has(k::CLONE_FS) {
        // Its descriptors or its directory are its own, so nothing can be remembered of a number, or of where the process
        // stands, any more; for good, because nobody tells when it ends.
        fds::BORROWED.fetch_add(1, Ordering::SeqCst);
    }
    if !has(k::CLONE_SETTLS) && !has(k::CLONE_VFORK) {
        attach::share_thread_pointer();
    }
}

/// What `syscall()` asks before a clone: whether it is one with a stack of its own, which only a function without a
/// frame can make.
///
/// # Safety
/// The contract of the call.
pub unsafe extern "C" fn clones(number: usize, a: usize, b: usize) -> bool {
    // SAFETY: as above.
    let (flags, stack) = unsafe { asked(&Words { number, arguments: [a, b, 0, 0, 0, 0] }) };
    if stack == 0 {
        return false;
    }
    shares(flags);
    true
}

/// fork, vfork, and clones without a stack. vfork is made a fork: the child would overwrite the stack that its parent
/// returns on.
///
/// # Safety
/// The contract of the call.
pub unsafe fn routed(w: Words) -> Option<c_long> {
    // SAFETY: as above.
    unsafe { fork(w).map(answer) }
}

/// The same, as the kernel answers; `None` where the call is another one.
///
/// # Safety
/// The contract of the call.
pub unsafe fn fork(w: Words) -> Option<Answer> {
    const SHARED: u64 = k::CLONE_VM as u64;
    #[cfg(target_arch = "x86_64")]
    let clone =
        |flags: u32| Words { number: k::__NR_clone as usize, arguments: [flags as usize, 0, 0, 0, 0, 0] };
    // SAFETY: as above. A copy of the structure, with a flag less.
    let done = unsafe {
        match w.number as u32 {
            #[cfg(target_arch = "x86_64")]
            k::__NR_fork => clone(k::SIGCHLD).call(),
            #[cfg(target_arch = "x86_64")]
            k::__NR_vfork => clone(k::SIGCHLD | k::CLONE_VFORK).call(),
            k::__NR_clone => w.with(0, (w.get::<u64>(0) & !SHARED) as usize).call(),
            k::__NR_clone3 if asked(&w).0 & SHARED == 0 => w.call(),
            k::__NR_clone3 => {
                let (mut copy, size) =
                    (core::mem::zeroed::<Clone3>(), w.get::<usize>(1).min(size_of::<Clone3>()));
                core::ptr::copy_nonoverlapping(w.get::<*const u8>(0), (&raw mut copy).cast::<u8>(), size);
                copy.flags &= !SHARED;
                w.with(0, &raw const copy as usize).with(1, size).call()
            }
            _ => return None,
        }
    };
    if done == Ok(0) {
        net::arm();
    }
    Some(done)
}
