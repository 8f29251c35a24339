//! Entering the kernel: the one instruction that does it, so that all of this library's system calls can be made from
//! another place where calls from our own text would be trapped (`net`). Knows no call by its number.

#[cfg(target_arch = "x86_64")]
use core::sync::atomic::AtomicUsize;

/// An answer that lies in here is a negated errno.
pub const ERRORS: core::ops::Range<isize> = -4095..0;

/// Where a `syscall; ret` lies that is to be used instead of ours; 0: none.
#[cfg(target_arch = "x86_64")]
pub static ELSEWHERE: AtomicUsize = AtomicUsize::new(0);

/// Number and arguments in the kernel's registers, the answer in rax; clobbers rcx, r11 and the flags.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub unsafe extern "C" fn enter() {
    core::arch::naked_asm!(
        "cmp qword ptr [rip + {elsewhere}], 0",
        "jne 2f",
        "syscall",
        "ret",
        "2:",
        "jmp qword ptr [rip + {elsewhere}]",
        elsewhere = sym ELSEWHERE)
}

/// Makes a system call; its answer as the kernel gives it.
///
/// # Safety
/// Memory that the kernel writes must be the caller's to be written to.
#[inline(always)]
pub unsafe fn call(n: usize, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> isize {
    let answer: isize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the system call convention of x86-64; rcx and r11 are clobbered. The caller vouches for the memory.
    unsafe {
        core::arch::asm!("call {enter}", enter = sym enter, inlateout("rax") n as isize => answer, in("rdi") a,
            in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _);
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the system call convention of aarch64. The caller vouches for the memory.
    unsafe {
        core::arch::asm!("svc 0", in("x8") n, inlateout("x0") a as isize => answer, in("x1") b, in("x2") c,
            in("x3") d, in("x4") e, in("x5") f, options(nostack));
    }
    answer
}
