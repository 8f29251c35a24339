//! Starting programs without exec in our hands, and vfork.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::{AtomicBool, Ordering};

use storeshim_protocol::names;

use super::exec::{Strings, along_path, contains, with_environment};
use super::script;
use crate::fds;
use crate::hook::{hook, real};
use crate::loader::{self, set_errno};
use crate::net;
use crate::place::{self, CWD};
use crate::sys::{self, Errno, PathBuf, errno, k};
use crate::tell;
use crate::{absent, control, detour, residency};

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

/// Starts the program at `path` by `start` (program, arguments, environment), which answers as posix_spawn does.
///
/// # Safety
/// The contract of posix_spawn.
#[inline(never)]
unsafe fn spawn(
    path: *const c_char,
    actions: *const c_void,
    argv: Strings,
    envp: Strings,
    start: &mut dyn FnMut(*const c_char, Strings, Strings) -> c_int,
) -> c_int {
    let mut room = PathBuf::new();
    let place = match place::at(CWD, path, &mut room) {
        Ok(place) => place,
        Err(Errno(number)) => return number,
    };
    if let Err(Errno(number)) = script::bring(&place) {
        return number;
    }
    let mut act = |path: *const c_char, argv: Strings| {
        // SAFETY: as above.
        unsafe { with_environment(envp, |envp| opening(actions, || start(path, argv, envp))) }
    };
    // SAFETY: as above.
    unsafe {
        if !actions.is_null() && !path.is_null() && *path as u8 != b'/' {
            // The child may stand elsewhere by then: what is a script there is not known here.
            return act(place.path, argv);
        }
        let failed = script::past_writers(&place, &mut || {
            let failed = script::run(path, &place, argv, &mut act);
            (failed, failed == Errno::of(errno::ETXTBSY).0)
        });
        let missing = Errno::of(errno::ENOENT);
        if failed != missing.0 || place.mount.is_some() {
            return failed;
        }
        set_errno(missing);
        detour::by_link(place, |inside| spawn(inside, actions, argv, envp, start)).unwrap_or(failed)
    }
}

/// As [`spawn`], along PATH: a program that is known by another name, or a script that is, is found by us.
///
/// # Safety
/// The contract of posix_spawnp.
#[inline(never)]
unsafe fn spawn_along_path(
    file: *const c_char,
    actions: *const c_void,
    argv: Strings,
    envp: Strings,
    start: &mut dyn FnMut(*const c_char, Strings, Strings) -> c_int,
) -> c_int {
    let finds = control::table().is_some_and(|table| table.translates) || residency::is_any_partial();
    // SAFETY: as above.
    unsafe {
        let found = if finds && !sys::leads_nowhere(file) {
            along_path(file, |path| executable(path).then(|| spawn(path, actions, argv, envp, start)))
        } else {
            None
        };
        found.unwrap_or_else(|| with_environment(envp, |envp| opening(actions, || start(file, argv, envp))))
    }
}

/// Whether `path` names a file that somebody may run.
#[inline(never)]
fn executable(path: *const c_char) -> bool {
    let mut room = PathBuf::new();
    place::at(CWD, path, &mut room).is_ok_and(|place| {
        absent::stat_at(place.dirfd, place.path, 0)
            .is_ok_and(|s| sys::is_regular(&s) && s.st_mode & 0o111 != 0)
    })
}

/// The spawning functions: those that begin with another first argument have the rest in common.
macro_rules! spawns {
    ($($name:ident $mine:ident $by:ident;)*) => {$(
        hook! {
            unsafe fn $name(pid: *mut c_int, path: *const c_char, actions: *const c_void, attributes: *const c_void,
                argv: Strings, envp: Strings) -> c_int => $mine {
                $by(path, actions, argv, envp, &mut |path, argv, envp| {
                    real!($name)(pid, path, actions, attributes, argv, envp)
                })
            }
        }
    )*};
}

spawns! {
    posix_spawn my_posix_spawn spawn;
    posix_spawnp my_posix_spawnp spawn_along_path;
    pidfd_spawn my_pidfd_spawn spawn;
    pidfd_spawnp my_pidfd_spawnp spawn_along_path;
}

/// Puts our variables back into the app's own environment where it has dropped them: libc takes that for the shell it
/// starts, and there is nobody else to ask. (These functions may allocate, and so may setenv.)
#[cold]
#[inline(never)]
fn keep_environment() {
    static SET: loader::Real = loader::Real::new();
    let Some(_) = control::table() else { return };
    let (Some(own), Some(set)) = (loader::own_path().filter(|own| !own.is_empty()), SET.look_up(c"setenv"))
    else {
        return;
    };
    // SAFETY: the type of setenv.
    let set: unsafe extern "C" fn(*const c_char, *const c_char, c_int) -> c_int =
        unsafe { core::mem::transmute(set) };
    let set = |name: &CStr, value: *const c_char| {
        // SAFETY: C strings, which are copied.
        let _ = unsafe { set(name.as_ptr(), value, 1) };
    };
    let mut room = PathBuf::new();
    let preload = control::variable(b"LD_PRELOAD").unwrap_or(&[]);
    if !contains(preload, own.to_bytes()) {
        let tail: [&[u8]; 2] = if preload.is_empty() { [b"", b""] } else { [b":", preload] };
        if [own.to_bytes(), tail[0], tail[1]].into_iter().try_for_each(|part| room.push(part)).is_ok() {
            set(c"LD_PRELOAD", room.c_str());
        }
    }
    if control::names_run_dir()
        && control::variable(names::ENV_RUN_DIR.as_bytes()).is_none()
        && control::run_path(&mut room, &[]).is_ok()
    {
        set(c"STORESHIM_RUN_DIR", room.c_str());
    }
    if net::is_on() && control::variable(names::ENV_NET.as_bytes()).is_none() {
        set(c"STORESHIM_NET", c"sud".as_ptr());
    }
}

hook! {
    unsafe fn system | __libc_system(command: *const c_char) -> c_int => my_system {
        keep_environment();
        real!(system)(command)
    }
}

hook! {
    unsafe fn popen | _IO_popen(command: *const c_char, mode: *const c_char) -> *mut c_void => my_popen {
        keep_environment();
        real!(popen)(command, mode)
    }
}

/// What is remembered of the standard descriptors and of where the process stands ends here: libc has replaced them by
/// itself.
#[inline(never)]
fn moved() {
    fds::forget_range(0, 2, |_| ());
    place::forget_cwd();
}

hook! {
    unsafe fn daemon(stays: c_int, keeps: c_int) -> c_int => my_daemon {
        let result = real!(daemon)(stays, keeps);
        moved();
        result
    }
}

hook! {
    unsafe fn forkpty(master: *mut c_int, name: *mut c_char, termios: *const c_void, size: *const c_void) -> c_int
        => my_forkpty {
        let pid = real!(forkpty)(master, name, termios, size);
        if pid == 0 {
            moved();
        }
        pid
    }
}

hook! {
    unsafe fn login_tty(fd: c_int) -> c_int => my_login_tty {
        let result = real!(login_tty)(fd);
        fds::forget(fd);
        moved();
        result
    }
}

hook! {
    /// A thread that has descriptors or a working directory of its own shares this memory with those that have not.
    unsafe fn unshare(flags: c_int) -> c_int => my_unshare {
        const OWN: u32 = k::CLONE_FILES | k::CLONE_FS;
        if flags as u32 & OWN != 0 && loader::single_threaded() != Some(true) {
            fds::remember_nothing();
            place::forget_cwd();
        }
        real!(unshare)(flags)
    }
}

/// Calls `act` with a path that libc is going to copy.
fn with_place(path: *const c_char, act: impl FnOnce(*const c_char) -> c_int) -> c_int {
    let mut room = PathBuf::new();
    match place::at(CWD, path, &mut room).and_then(|place| absent::present(place).map(|()| place)) {
        Ok(place) => act(place.path),
        Err(Errno(number)) => number,
    }
}

hook! {
    /// The open itself happens in the child, unseen. The program that gets the descriptor tells what it writes to; what
    /// the open has created or emptied is looked for.
    unsafe fn posix_spawn_file_actions_addopen(actions: *mut c_void, fd: c_int, path: *const c_char, flags: c_int,
        mode: u32) -> c_int => my_addopen {
        // What a relative path starts from is not known: an action before this one may change the directory.
        let relative = !sys::leads_nowhere(path) && *path as u8 != b'/';
        let mut room = PathBuf::new();
        if flags as u32 & (k::O_CREAT | k::O_TRUNC) != 0
            && (relative || place::entry(CWD, path, &mut room).is_ok_and(|place| place.mount.is_some()))
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
