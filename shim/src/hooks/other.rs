//! What fits nowhere else: the dynamic loader.

use core::ffi::{c_char, c_int, c_void};

use crate::hook::fail;
use crate::loader::Real;
use crate::place::{self, CWD};
use crate::sys::PathBuf;

static DLOPEN: Real = Real::new();

/// The real dlopen's address where the path can be passed on as it is, 0 where it must be translated.
extern "C" fn plain_dlopen(path: *const c_char) -> usize {
    // A bare name is searched, not opened.
    // SAFETY: the app handed null or a C string.
    if path.is_null() || unsafe { is_bare(path) } { DLOPEN.address(c"dlopen") } else { plain_path(path) }
}

/// Whether there is no slash in it.
///
/// # Safety
/// `path` must be a C string.
#[inline(always)]
unsafe fn is_bare(path: *const c_char) -> bool {
    let mut at = path;
    loop {
        // SAFETY: its end has not come yet.
        match unsafe { *at } as u8 {
            0 => return true,
            b'/' => return false,
            _ => at = at.wrapping_add(1),
        }
    }
}

#[inline(never)]
fn plain_path(path: *const c_char) -> usize {
    let mut room = PathBuf::new();
    match place::at(CWD, path, &mut room) {
        Ok(place) if core::ptr::eq(place.path, path) => DLOPEN.address(c"dlopen"),
        _ => 0,
    }
}

/// dlopen of a path in a mount that is translated.
unsafe extern "C" fn translated_dlopen(path: *const c_char, flags: c_int) -> *mut c_void {
    let mut room = PathBuf::new();
    // SAFETY: the type of dlopen.
    let dlopen: unsafe extern "C" fn(*const c_char, c_int) -> *mut c_void =
        unsafe { core::mem::transmute(DLOPEN.address(c"dlopen")) };
    match place::at(CWD, path, &mut room) {
        // SAFETY: the caller keeps the contract of dlopen(3).
        Ok(place) => unsafe { dlopen(place.path, flags) },
        Err(errno) => fail(errno),
    }
}

/// dlopen looks at its return address to know whose RUNPATH counts: it must be jumped to, not called.
///
/// # Safety
/// The contract of dlopen(3).
#[cfg(all(not(test), target_arch = "x86_64"))]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dlopen() {
    core::arch::naked_asm!(
        "push rdi", "push rsi", "sub rsp, 8",
        "call {plain}",
        "add rsp, 8", "pop rsi", "pop rdi",
        "test rax, rax",
        "jz {translated}",
        "jmp rax",
        plain = sym plain_dlopen, translated = sym translated_dlopen)
}

/// dlopen looks at its return address to know whose RUNPATH counts: it must be jumped to, not called.
///
/// # Safety
/// The contract of dlopen(3).
#[cfg(all(not(test), target_arch = "aarch64"))]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dlopen() {
    core::arch::naked_asm!(
        "stp x29, x30, [sp, #-32]!",
        "stp x0, x1, [sp, #16]",
        "bl {plain}",
        "mov x16, x0",
        "ldp x0, x1, [sp, #16]",
        "ldp x29, x30, [sp], #32",
        "cbz x16, 2f",
        "br x16",
        "2: b {translated}",
        plain = sym plain_dlopen, translated = sym translated_dlopen)
}
