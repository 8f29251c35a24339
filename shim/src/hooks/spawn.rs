//! Starting programs without exec in our hands, and vfork.

use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::{AtomicBool, Ordering};

use crate::control;
use crate::fds;
use crate::hook::{hook, real};
use crate::hooks::exec::{Strings, along_path, with_environment};
use crate::loader;
use crate::net;
use crate::place::{self, CWD};
use crate::sys::{self, Errno, PathBuf, k};
use crate::tell;

/// Some file action creates or empties a file of a mount.
static OPENS: AtomicBool = AtomicBool::new(false);

/// Starts a program by `act`. Its file actions may change a mount in the child, unseen: then all is looked at.
fn opening(actions: *const c_void, act: impl FnOnce() -> c_int) -> c_int {
    if actions.is_null() || !OPENS.load(Ordering::Relaxed) || control::table().is_none() {
        return act();
    }
    tell::lose();
    let result = act();
    // The child has done its actions when its parent goes on; a cut may have gone by.
    tell::lose();
    result
}

hook! {
    unsafe fn posix_spawn(pid: *mut c_int, path: *const c_char, actions: *const c_void, attributes: *const c_void,
        argv: Strings, envp: Strings) -> c_int => my_posix_spawn {
        let mut room = PathBuf::new();
        match place::at(CWD, path, &mut room) {
            Ok(place) => {
                with_environment(envp, |envp| {
                    opening(actions, || real!(posix_spawn)(pid, place.path, actions, attributes, argv, envp))
                })
            }
            Err(errno) => errno.0,
        }
    }
}

/// The program that PATH leads to first, if that one lies in a mount and is known by another name there.
///
/// # Safety
/// `file` must be a C string.
unsafe fn found_in_mount(file: *const c_char, room: &mut PathBuf) -> bool {
    let executable = |place: &place::Place| {
        sys::stat_at(place.dirfd, place.path, 0).is_ok_and(|s| sys::is_regular(&s) && s.st_mode & 0o111 != 0)
    };
    // SAFETY: as above.
    let first = unsafe {
        along_path(file, |path| match place::at(CWD, path, room) {
            Ok(place) if executable(&place) => Some(!core::ptr::eq(place.path, path)),
            _ => None,
        })
    };
    first == Some(true)
}

hook! {
    unsafe fn posix_spawnp(pid: *mut c_int, file: *const c_char, actions: *const c_void, attributes: *const c_void,
        argv: Strings, envp: Strings) -> c_int => my_posix_spawnp {
        let mut room = PathBuf::new();
        let translates = control::table().is_some_and(|table| table.translates);
        if translates && !file.is_null() && found_in_mount(file, &mut room) {
            return with_environment(envp, |envp| {
                opening(actions, || real!(posix_spawnp)(pid, room.c_str(), actions, attributes, argv, envp))
            });
        }
        with_environment(envp, |envp| {
            opening(actions, || real!(posix_spawnp)(pid, file, actions, attributes, argv, envp))
        })
    }
}

/// Calls `act` with a path that libc is going to copy.
fn with_place(path: *const c_char, act: impl FnOnce(*const c_char) -> c_int) -> c_int {
    let mut room = PathBuf::new();
    match place::at(CWD, path, &mut room) {
        Ok(place) => act(place.path),
        Err(Errno(number)) => number,
    }
}

hook! {
    /// The open itself happens in the child, unseen. The program that gets the descriptor tells what it writes to; what
    /// the open has created or emptied is looked for.
    unsafe fn posix_spawn_file_actions_addopen(actions: *mut c_void, fd: c_int, path: *const c_char, flags: c_int,
        mode: u32) -> c_int => my_addopen {
        let mut room = PathBuf::new();
        if flags as u32 & (k::O_CREAT | k::O_TRUNC) != 0
            && place::entry(CWD, path, &mut room).is_ok_and(|place| place.mount.is_some())
        {
            OPENS.store(true, Ordering::Relaxed);
        }
        with_place(path, |path| real!(posix_spawn_file_actions_addopen)(actions, fd, path, flags, mode))
    }
}

hook! {
    unsafe fn posix_spawn_file_actions_addchdir_np(actions: *mut c_void, path: *const c_char) -> c_int
        => my_addchdir_np {
        with_place(path, |path| real!(posix_spawn_file_actions_addchdir_np)(actions, path))
    }
}

hook! {
    unsafe fn posix_spawn_file_actions_addchdir(actions: *mut c_void, path: *const c_char) -> c_int
        => my_addchdir {
        static NEW: loader::Real = loader::Real::new();
        // Older libcs have it under its older name only.
        if NEW.look_up(c"posix_spawn_file_actions_addchdir").is_none() { return my_addchdir_np(actions, path) }
        with_place(path, |path| real!(posix_spawn_file_actions_addchdir)(actions, path))
    }
}

/// Before vfork. Its system call is made from our own text, since the child overwrites any return address.
extern "C" fn child_comes() {
    fds::BORROWED.fetch_add(1, Ordering::SeqCst);
    net::disarm();
}

/// After vfork, in the parent.
extern "C" fn child_is_gone() {
    fds::BORROWED.fetch_sub(1, Ordering::SeqCst);
    place::forget_cwd();
    net::arm();
}

/// After vfork failed, in the parent.
extern "C" fn vfork_failed(number: c_int) -> c_int {
    child_is_gone();
    crate::hook::fail(Errno(number))
}

/// vfork must not return through a frame of ours, since the child overwrites it. What the child opens and where it
/// goes is not remembered, because the memory is the parent's.
macro_rules! vfork {
    ($($name:ident)*) => {$(
        /// Exported in libc's place.
        ///
        /// # Safety
        /// The contract of vfork(2).
        #[cfg(all(not(test), target_arch = "x86_64"))]
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name() -> c_int {
            core::arch::naked_asm!(
                "sub rsp, 8",
                "call {comes}",
                "add rsp, 8",
                "pop rdi",
                "mov eax, 58",
                "syscall",
                "push rdi",
                "test rax, rax",
                "jz 4f",
                "js 2f",
                "push rax",
                "call {gone}",
                "pop rax",
                "ret",
                "2:",
                "neg eax",
                "mov edi, eax",
                "sub rsp, 8",
                "call {failed}",
                "add rsp, 8",
                "ret",
                "4:",
                "sub rsp, 8",
                "call {arm}",
                "add rsp, 8",
                "xor eax, eax",
                "ret",
                comes = sym child_comes, gone = sym child_is_gone, failed = sym vfork_failed, arm = sym net::arm)
        }

        /// Exported in libc's place.
        ///
        /// # Safety
        /// The contract of vfork(2).
        #[cfg(all(not(test), target_arch = "aarch64"))]
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name() -> c_int {
            core::arch::naked_asm!(
                "str x30, [sp, #-16]!",
                "bl {comes}",
                "ldr x30, [sp], #16",
                // clone(CLONE_VM | CLONE_VFORK | SIGCHLD)
                "mov x0, #0x4111",
                "mov x1, #0",
                "mov x2, #0",
                "mov x3, #0",
                "mov x4, #0",
                "mov x8, #220",
                "svc #0",
                "cbz x0, 3f",
                "stp x0, x30, [sp, #-16]!",
                "tbnz x0, #63, 2f",
                "bl {gone}",
                "ldp x0, x30, [sp], #16",
                "ret",
                "2:",
                "neg w0, w0",
                "bl {failed}",
                "ldp x9, x30, [sp], #16",
                "3:",
                "ret",
                comes = sym child_comes, gone = sym child_is_gone, failed = sym vfork_failed)
        }
    )*};
}

vfork!(vfork __vfork);
