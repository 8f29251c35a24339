//! The second net's handler: a system call that was made outside libc goes where `syscall()` would send it. One that no
//! hook wants is made by the thread itself after the handler's return, with its own stack and signal mask.

use core::ffi::{c_int, c_void};

use super::signal;

/// Calls of another kind than the net's.
#[cfg(not(target_arch = "x86_64"))]
pub unsafe extern "C" fn trapped(number: c_int, info: *mut c_void, context: *mut c_void) {
    // SAFETY: as the kernel calls it.
    unsafe { signal::foreign(number, info, context) }
}

#[cfg(target_arch = "x86_64")]
pub use machine::trapped;

#[cfg(target_arch = "x86_64")]
mod machine {
    use core::sync::atomic::Ordering;

    use super::*;
    use crate::hooks::process;
    use crate::hooks::syscall::{self, Words};
    use crate::kernel::ELSEWHERE;
    use crate::loader::{get_errno, set_errno};
    use crate::net::{self, SIGSYS_BIT};
    use crate::sys::{Answer, Errno, errno, k};

    /// The beginning of siginfo_t where it tells of a system call.
    #[repr(C)]
    struct Info {
        signal: c_int,
        errno: c_int,
        code: c_int,
        from: usize,
        number: c_int,
        machine: u32,
    }

    /// si_code of a dispatched call.
    const USER_DISPATCH: c_int = 2;
    /// AUDIT_ARCH_X86_64.
    const MACHINE: u32 = 0xc000_003e;

    /// The kernel's struct ucontext.
    #[repr(C)]
    struct Context {
        flags: u64,
        link: usize,
        stack: [u64; 3],
        r8: usize,
        r9: usize,
        r10: usize,
        r11: usize,
        r12: usize,
        r13: usize,
        r14: usize,
        r15: usize,
        rdi: usize,
        rsi: usize,
        rbp: usize,
        rbx: usize,
        rdx: usize,
        rax: usize,
        rcx: usize,
        rsp: usize,
        rip: usize,
        rest: [u64; 15],
        mask: u64,
    }

    /// What the app may keep below its stack pointer.
    const RED_ZONE: usize = 128;

    /// SIGSYS.
    ///
    /// # Safety
    /// For the kernel to call.
    pub unsafe extern "C" fn trapped(signal: c_int, info: *mut c_void, context: *mut c_void) {
        // SAFETY: the kernel passes both; siginfo_t is larger than its beginning.
        unsafe {
            let (told, at) = (&*info.cast::<Info>(), &mut *context.cast::<Context>());
            if told.code != USER_DISPATCH {
                return signal::foreign(signal, info, context);
            }
            // The app's own calls leave it alone.
            let errno = get_errno();
            if told.machine == MACHINE {
                dispatch(at);
            } else {
                // 32-bit calls of a 64-bit program.
                at.rax = negated(Errno::of(errno::ENOSYS));
            }
            set_errno(errno);
        }
    }

    fn negated(errno: Errno) -> usize {
        (errno.0 as usize).wrapping_neg()
    }

    /// Does the call, or has it done.
    ///
    /// # Safety
    /// The contract of the call.
    unsafe fn dispatch(at: &mut Context) {
        let w = Words { number: at.rax, arguments: [at.rdi, at.rsi, at.rdx, at.r10, at.r8, at.r9] };
        // SAFETY: as above.
        unsafe {
            match w.number as u32 {
                // Its frame is where the stack pointer stands.
                k::__NR_rt_sigreturn => at.rip = ELSEWHERE.load(Ordering::Relaxed),
                k::__NR_rt_sigprocmask => at.rax = answered(mask(at, w)),
                k::__NR_clone | k::__NR_clone3 => clone(at, w),
                k::__NR_fork | k::__NR_vfork => at.rax = answered(process::fork(w).unwrap_or(Ok(0))),
                _ if syscall::is_routed(w.number) => {
                    let said = syscall::run(w);
                    at.rax = if said == -1 { negated(get_errno()) } else { said as usize };
                }
                _ => pass(at, 0),
            }
        }
    }

    fn answered(answer: Answer) -> usize {
        answer.unwrap_or_else(negated)
    }

    /// The mask of the thread is the one that this handler returns to.
    ///
    /// # Safety
    /// The contract of rt_sigprocmask(2).
    unsafe fn mask(at: &mut Context, w: Words) -> Answer {
        const SIGKILL_AND_SIGSTOP: u64 = 1 << 8 | 1 << 18;
        let invalid = Err(Errno::of(errno::EINVAL));
        let (set, before): (*const u64, *mut u64) = (w.get(1), w.get(2));
        if w.get::<usize>(3) != size_of::<u64>() {
            return invalid;
        }
        let old = at.mask;
        // SAFETY: as above.
        if let Some(set) = unsafe { set.as_ref() } {
            let changed = match w.get::<u32>(0) {
                k::SIG_BLOCK => old | set,
                k::SIG_UNBLOCK => old & !set,
                k::SIG_SETMASK => *set,
                _ => return invalid,
            };
            at.mask = changed & !(SIGSYS_BIT | SIGKILL_AND_SIGSTOP);
        }
        // SAFETY: as above.
        if let Some(before) = unsafe { before.as_mut() } {
            *before = old;
        }
        Ok(0)
    }

    /// Lets the thread make the call itself, from libc's text, when the handler has returned: `ret` there leads to
    /// [`resume`], and that back to the app with the stack as it was. `kept` bytes below the red zone stay.
    ///
    /// # Safety
    /// The contract of the call.
    unsafe fn pass(at: &mut Context, kept: usize) {
        let back = if kept == 0 { resume as *const () } else { resume_above as *const () };
        let stack = at.rsp.wrapping_sub(RED_ZONE + kept + 2 * size_of::<usize>());
        // SAFETY: as below any stack pointer, the memory is the thread's to use.
        unsafe { returning(stack, back as usize, at.rip) };
        at.rsp = stack;
        at.rip = ELSEWHERE.load(Ordering::Relaxed);
    }

    /// Two return addresses at `stack`.
    ///
    /// # Safety
    /// The memory must be the thread's to use.
    unsafe fn returning(stack: usize, first: usize, then: usize) {
        // SAFETY: as above.
        unsafe { (stack as *mut [usize; 2]).write_unaligned([first, then]) };
    }

    #[unsafe(naked)]
    unsafe extern "C" fn resume() {
        core::arch::naked_asm!("ret {zone}", zone = const RED_ZONE)
    }

    type Arguments = k::clone_args;
    /// Room for a copy of clone3's argument.
    const ROOM: usize = 128;

    #[unsafe(naked)]
    unsafe extern "C" fn resume_above() {
        core::arch::naked_asm!("ret {zone}", zone = const RED_ZONE + ROOM)
    }

    /// Where a child with a stack of its own begins: armed, with its registers and flags as its maker's were.
    #[unsafe(naked)]
    unsafe extern "C" fn child_resumes() {
        core::arch::naked_asm!(
            "pushfq",
            "push rax", "push rdi", "push rsi", "push rdx", "push r8", "push r9", "push r10",
            "cld",
            "mov eax, {prctl}",
            "mov edi, 59",
            "mov esi, 1",
            "mov rdx, [rip + {exempt}]",
            "mov r10, [rip + {exempt} + 8]",
            "xor r8d, r8d",
            "call qword ptr [rip + {elsewhere}]",
            "pop r10", "pop r9", "pop r8", "pop rdx", "pop rsi", "pop rdi", "pop rax",
            "popfq",
            "ret {zone}",
            prctl = const k::__NR_prctl, exempt = sym net::EXEMPT, elsewhere = sym ELSEWHERE, zone = const RED_ZONE)
    }

    /// Prepares the stack that a child begins on, whose top is `top`; where it begins.
    ///
    /// # Safety
    /// The memory below must be the child's to use.
    unsafe fn child_stack(top: usize, at: &Context) -> usize {
        let stack = top.wrapping_sub(RED_ZONE + 2 * size_of::<usize>());
        // SAFETY: as above.
        unsafe { returning(stack, child_resumes as *const () as usize, at.rip) };
        stack
    }

    /// clone(2) and clone3(2): without a stack a fork, which can be made here, since the child has a copy of this
    /// handler's frame. With one, the child returns on that.
    ///
    /// # Safety
    /// The contract of the call.
    unsafe fn clone(at: &mut Context, w: Words) {
        // SAFETY: as above. The copy stands where `pass` keeps it: below the red zone.
        unsafe {
            let [first, second, ..] = w.arguments;
            if !process::clones(w.number, first, second) {
                if let Some(done) = process::fork(w) {
                    at.rax = answered(done);
                }
                return;
            }
            if w.number as u32 == k::__NR_clone {
                at.rsi = child_stack(at.rsi, at);
                return pass(at, 0);
            }
            let size = at.rsi.min(size_of::<Arguments>());
            let copy = at.rsp.wrapping_sub(RED_ZONE + ROOM) as *mut Arguments;
            let mut arguments = core::mem::zeroed::<Arguments>();
            core::ptr::copy_nonoverlapping(at.rdi as *const u8, (&raw mut arguments).cast::<u8>(), size);
            let top = arguments.stack.wrapping_add(arguments.stack_size) as usize;
            arguments.stack_size = child_stack(top, at).wrapping_sub(arguments.stack as usize) as u64;
            copy.write_unaligned(arguments);
            at.rdi = copy as usize;
            at.rsi = size;
            pass(at, ROOM);
        }
    }

    const _: () = assert!(size_of::<Arguments>() <= ROOM && core::mem::offset_of!(Context, mask) == 296);
}
