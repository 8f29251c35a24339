//! The dynamic loader. dlopen looks at its return address to know whose RUNPATH counts: it must be jumped to, not called,
//! wherever a library is searched for.

use core::ffi::{c_char, c_int, c_long, c_void};

use crate::hook::fail;
use crate::loader::{self, Real};
use crate::place::{self, CWD};
use crate::sys::{Errno, PathBuf};
use crate::{control, residency};

static DLOPEN: Real = Real::new();
static DLMOPEN: Real = Real::new();

/// Where to jump to, 0 where the path must be translated, and with which flags.
#[repr(C)]
pub struct Route {
    address: usize,
    flags: usize,
}

/// Whether there is no slash in it: such a library is searched for, not opened.
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

fn route(path: *const c_char, flags: c_int, real: usize) -> Route {
    // A library that looks for symbols in its own dependencies first would find libc there, and not us.
    const RTLD_DEEPBIND: c_int = 8;
    let strip = flags & RTLD_DEEPBIND != 0 && loader::is_glibc() && control::table().is_some();
    let flags = if strip { flags & !RTLD_DEEPBIND } else { flags };
    // SAFETY: the app handed null or a C string.
    let as_it_is = path.is_null() || unsafe { is_bare(path) } || !is_changed(path);
    Route { address: if as_it_is { real } else { 0 }, flags: flags as usize }
}

/// Whether the path must be translated; where not, what it names is brought. (Where that fails, [`ready`] says so.)
#[inline(never)]
fn is_changed(path: *const c_char) -> bool {
    let mut room = PathBuf::new();
    place::at(CWD, path, &mut room)
        .map_or(true, |place| !core::ptr::eq(place.path, path) || residency::pin_place(place).is_err())
}

/// Where the loader is to find the library, which is brought first.
fn ready(path: *const c_char, room: &mut PathBuf) -> Result<*const c_char, Errno> {
    let place = place::at(CWD, path, room)?;
    // The loader's message will name this as what cannot be opened.
    let lost = c"(storeshim: the library could not be fetched)".as_ptr();
    Ok(if residency::pin_place(place).is_ok() { place.path } else { lost })
}

extern "C" fn plain_dlopen(path: *const c_char, flags: c_int) -> Route {
    route(path, flags, DLOPEN.address(c"dlopen"))
}

extern "C" fn plain_dlmopen(_: c_long, path: *const c_char, flags: c_int) -> Route {
    route(path, flags, DLMOPEN.address(c"dlmopen"))
}

/// dlopen of a path in a mount that is translated.
unsafe extern "C" fn translated_dlopen(path: *const c_char, flags: c_int) -> *mut c_void {
    let mut room = PathBuf::new();
    // SAFETY: the type of dlopen.
    let dlopen: unsafe extern "C" fn(*const c_char, c_int) -> *mut c_void =
        unsafe { core::mem::transmute(DLOPEN.address(c"dlopen")) };
    match ready(path, &mut room) {
        // SAFETY: the caller keeps the contract of dlopen(3).
        Ok(path) => unsafe { dlopen(path, flags) },
        Err(errno) => fail(errno),
    }
}

/// dlmopen of a path in a mount that is translated.
unsafe extern "C" fn translated_dlmopen(space: c_long, path: *const c_char, flags: c_int) -> *mut c_void {
    let mut room = PathBuf::new();
    // SAFETY: the type of dlmopen.
    let dlmopen: unsafe extern "C" fn(c_long, *const c_char, c_int) -> *mut c_void =
        unsafe { core::mem::transmute(DLMOPEN.address(c"dlmopen")) };
    match ready(path, &mut room) {
        // SAFETY: the caller keeps the contract of dlmopen(3).
        Ok(path) => unsafe { dlmopen(space, path, flags) },
        Err(errno) => fail(errno),
    }
}

/// Exported in libc's place.
///
/// # Safety
/// The contract of dlopen(3).
#[cfg(all(not(test), target_arch = "x86_64"))]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dlopen() {
    core::arch::naked_asm!(
        "push rdi",
        "sub rsp, 16",
        "call {plain}",
        "add rsp, 16",
        "pop rdi",
        "mov rsi, rdx",
        "test rax, rax",
        "jz {translated}",
        "jmp rax",
        plain = sym plain_dlopen, translated = sym translated_dlopen)
}

/// Exported in libc's place.
///
/// # Safety
/// The contract of dlmopen(3).
#[cfg(all(not(test), target_arch = "x86_64"))]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dlmopen() {
    core::arch::naked_asm!(
        "push rdi",
        "push rsi",
        "sub rsp, 8",
        "call {plain}",
        "add rsp, 8",
        "pop rsi",
        "pop rdi",
        "test rax, rax",
        "jz {translated}",
        "jmp rax",
        plain = sym plain_dlmopen, translated = sym translated_dlmopen)
}

/// Exported in libc's place.
///
/// # Safety
/// The contract of dlopen(3).
#[cfg(all(not(test), target_arch = "aarch64"))]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dlopen() {
    core::arch::naked_asm!(
        "stp x29, x30, [sp, #-32]!",
        "str x0, [sp, #16]",
        "bl {plain}",
        "mov x16, x0",
        "ldr x0, [sp, #16]",
        "ldp x29, x30, [sp], #32",
        "cbz x16, 2f",
        "br x16",
        "2: b {translated}",
        plain = sym plain_dlopen, translated = sym translated_dlopen)
}

/// Exported in libc's place.
///
/// # Safety
/// The contract of dlmopen(3).
#[cfg(all(not(test), target_arch = "aarch64"))]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dlmopen() {
    core::arch::naked_asm!(
        "stp x29, x30, [sp, #-32]!",
        "stp x0, x1, [sp, #16]",
        "bl {plain}",
        "mov x16, x0",
        "mov x2, x1",
        "ldp x0, x1, [sp, #16]",
        "ldp x29, x30, [sp], #32",
        "cbz x16, 2f",
        "br x16",
        "2: b {translated}",
        plain = sym plain_dlmopen, translated = sym translated_dlmopen)
}
