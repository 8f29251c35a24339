//! `libstoreshim.so`: what is preloaded into every program. It translates, tells, asks and waits, and the kernel
//! does the rest.
//!
//! `hooks/` holds every function that stands in libc's place, one family per file; a hook calls down only:
//! hooks → (open, names, write, reading) → place, fds, residency → gate → tell, ask → attach → control → sys.
//!
//! The library allocates nothing (but where libc's own contract says so: `respell`), takes no lock that a dead or
//! suspended thread could hold, keeps no descriptor, starts no thread and cannot unwind, so it may run wherever the app
//! may call libc: in signal handlers, between vfork and exec, after fork of a process with threads.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(test, allow(dead_code, unused_imports, reason = "hooks are exported in the library only"))]

mod absent;
mod act;
mod ask;
mod attach;
#[cfg(test)]
mod attached_tests;
mod beside;
mod control;
mod detour;
mod fds;
mod gate;
mod hook;
mod hooks;
mod kernel;
mod loader;
mod names;
mod net;
mod outside;
#[cfg(test)]
mod partial_tests;
mod paths;
mod place;
mod quota;
#[cfg(test)]
mod quota_tests;
mod reading;
mod residency;
mod respell;
mod room;
mod seen;
mod start;
mod streams;
mod sys;
mod tell;
mod write;

/// Never reached: nothing here panics. Were it reached, the process ends, as with any broken promise of its libc.
#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    control::complain(b"storeshim: a bug in libstoreshim.so ends this program; please report it\n");
    sys::abort()
}

// What unoptimised `core` refers to; frames of this library are never unwound into.
// In assembly, so that it stays inside the library: exported, it would stand in front of the app's own.
#[cfg(not(test))]
core::arch::global_asm!(
    ".hidden rust_eh_personality",
    ".globl rust_eh_personality",
    "rust_eh_personality:",
    "ret"
);
