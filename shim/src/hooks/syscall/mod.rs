//! `syscall()`: numbers that have a hook of their own go there; everything else goes to the kernel from a function
//! without a frame, as in libc.

#[cfg(target_arch = "x86_64")]
mod old;
mod table;
mod words;

/// Other machines have no older numbers.
#[cfg(not(target_arch = "x86_64"))]
mod old {
    pub const NUMBERS: &[u32] = &[];

    pub unsafe fn route(_: super::Words) -> Option<core::ffi::c_long> {
        None
    }
}

use core::ffi::{c_int, c_long};

pub use words::Words;

use super::process;
use crate::hook::{answer, fail};
#[cfg(all(not(test), target_arch = "x86_64"))]
use crate::kernel;
use crate::sys::{Errno, k};

/// Bit per system call number: those that go to [`routed`].
static ROUTED: [u64; 8] = {
    let bits = with_bits([0; 8], table::NUMBERS);
    let bits = with_bits(bits, old::NUMBERS);
    with_bits(bits, process::NUMBERS)
};

const fn with_bits(mut bits: [u64; 8], numbers: &[u32]) -> [u64; 8] {
    let mut at = 0;
    while at < numbers.len() {
        bits[numbers[at] as usize / 64] |= 1 << (numbers[at] % 64);
        at += 1;
    }
    bits
}

/// Whether a call of this number has a hook.
#[cfg(any(test, target_arch = "x86_64"))]
pub fn is_routed(number: usize) -> bool {
    ROUTED.get(number / 64).is_some_and(|bits| bits >> (number % 64) & 1 != 0)
}

/// Makes a call by its hook, or as it is where it has none. Answers as syscall(2).
///
/// # Safety
/// The contract of the call.
#[inline(never)]
pub unsafe fn run(w: Words) -> c_long {
    // SAFETY: as above.
    unsafe { table::route(w).or_else(|| old::route(w)).unwrap_or_else(|| answer(w.call())) }
}

/// What the function below calls for a number that has a hook.
unsafe extern "C" fn routed(
    number: usize,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    let w = Words { number, arguments: [a, b, c, d, e, f] };
    // SAFETY: the caller keeps the contract of the call.
    unsafe { process::routed(w).unwrap_or_else(|| run(w)) }
}

/// Sets errno from a kernel's answer.
extern "C" fn refused(number: c_int) -> c_long {
    fail(Errno(number))
}

/// Exported in libc's place. Without a frame, because a clone with a stack of its own returns on that.
///
/// # Safety
/// The contract of syscall(2).
#[cfg(all(not(test), target_arch = "x86_64"))]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall() {
    core::arch::naked_asm!(
        "cmp rdi, 512",
        "jae 2f",
        "lea rax, [rip + {table}]",
        "bt [rax], rdi",
        "jc {routed}",
        "2:",
        "cmp rdi, {clone}",
        "je 7f",
        "cmp rdi, {clone3}",
        "je 7f",
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov rsi, rdx",
        "mov rdx, rcx",
        "mov r10, r8",
        "mov r8, r9",
        "mov r9, [rsp + 8]",
        "call {enter}",
        "4:",
        "cmp rax, -4095",
        "jae 6f",
        "ret",
        "6:",
        "neg eax",
        "mov edi, eax",
        "jmp {refused}",
        // A child with a stack of its own returns on that, where no return address of ours would be.
        "7:",
        "push rdi", "push rsi", "push rdx", "push rcx", "push r8", "push r9",
        "sub rsp, 8",
        "call {clones}",
        "add rsp, 8",
        "pop r9", "pop r8", "pop rcx", "pop rdx", "pop rsi", "pop rdi",
        "test al, al",
        "jz {routed}",
        "mov rax, rdi",
        "mov rdi, rsi",
        "mov rsi, rdx",
        "mov rdx, rcx",
        "mov r10, r8",
        "mov r8, r9",
        "syscall",
        "jmp 4b",
        table = sym ROUTED, routed = sym routed, refused = sym refused, enter = sym kernel::enter,
        clones = sym process::clones, clone = const k::__NR_clone, clone3 = const k::__NR_clone3)
}

/// Exported in libc's place. Without a frame, because a clone with a stack of its own returns on that.
///
/// # Safety
/// The contract of syscall(2).
#[cfg(all(not(test), target_arch = "aarch64"))]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall() {
    core::arch::naked_asm!(
        "cmp x0, #512",
        "b.hs 2f",
        "adrp x9, {table}",
        "add x9, x9, :lo12:{table}",
        "lsr x10, x0, #6",
        "ldr x9, [x9, x10, lsl #3]",
        "lsr x9, x9, x0",
        "tbz x9, #0, 2f",
        "b {routed}",
        "2:",
        "cmp x0, {clone}",
        "b.eq 4f",
        "cmp x0, {clone3}",
        "b.eq 4f",
        "5:",
        "mov x8, x0",
        "mov x0, x1",
        "mov x1, x2",
        "mov x2, x3",
        "mov x3, x4",
        "mov x4, x5",
        "mov x5, x6",
        "svc #0",
        "cmn x0, #4095",
        "b.hs 3f",
        "ret",
        "3:",
        "neg w0, w0",
        "b {refused}",
        "4:",
        "stp x0, x1, [sp, #-64]!",
        "stp x2, x3, [sp, #16]",
        "stp x4, x5, [sp, #32]",
        "stp x6, x30, [sp, #48]",
        "bl {clones}",
        "mov w9, w0",
        "ldp x2, x3, [sp, #16]",
        "ldp x4, x5, [sp, #32]",
        "ldp x6, x30, [sp, #48]",
        "ldp x0, x1, [sp], #64",
        "tbnz w9, #0, 5b",
        "b {routed}",
        table = sym ROUTED, routed = sym routed, refused = sym refused, clones = sym process::clones,
        clone = const k::__NR_clone, clone3 = const k::__NR_clone3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_a_hook_are_routed_and_others_are_not() {
        let routed = |n: u32| is_routed(n as usize);
        assert!(routed(k::__NR_openat) && routed(k::__NR_statx) && routed(k::__NR_io_uring_setup));
        assert!(!routed(k::__NR_futex) && !routed(k::__NR_clone) && !routed(k::__NR_getpid));
        assert!(!is_routed(512) && !is_routed(usize::MAX));
    }
}
