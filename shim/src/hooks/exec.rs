//! Replacing the program. The path is translated, and the variables that bring this library and its run directory
//! into the new program are put back where the app has dropped them. Runs between vfork and exec, so everything is on
//! the stack.

use core::ffi::{CStr, c_char, c_int};
use core::mem::MaybeUninit;

use storeshim_protocol::names;

use super::script;
use crate::hook::{fail, hook, real};
use crate::loader::{self, get_errno};
use crate::place::{self, CWD, Place};
use crate::sys::{self, Errno, PathBuf, errno};
use crate::{control, detour, fds, net};

/// An array of C strings that ends with null, as exec takes them.
pub type Strings = *const *const c_char;

const PRELOAD: &[u8] = b"LD_PRELOAD=";
const NET: &CStr = c"STORESHIM_NET=sud";
/// Entries that fit the small array; most environments and argument lists do.
pub const SMALL: usize = 128;
/// Entries that fit the large one. A longer environment is passed on as it is.
pub const LARGE: usize = 4096;

/// Entries of an array.
///
/// # Safety
/// `strings` must be null or such an array.
pub unsafe fn entries(strings: Strings) -> impl Iterator<Item = *const c_char> {
    let mut at = if sys::leads_nowhere(strings) { core::ptr::null() } else { strings };
    core::iter::from_fn(move || {
        // SAFETY: the end has not come yet.
        let entry = if at.is_null() { core::ptr::null() } else { unsafe { *at } };
        at = at.wrapping_add(1);
        (!entry.is_null()).then_some(entry)
    })
}

/// Calls `fill` with room for `count` entries; `None` where that would be too much. The large room is on the stack only
/// where it is needed: a thread's may be small.
pub fn with_room(
    count: usize,
    fill: &mut dyn FnMut(&mut [MaybeUninit<*const c_char>]) -> c_int,
) -> Option<c_int> {
    #[inline(never)]
    fn room<const N: usize>(fill: &mut dyn FnMut(&mut [MaybeUninit<*const c_char>]) -> c_int) -> c_int {
        fill(&mut [const { MaybeUninit::uninit() }; N])
    }
    match count {
        n if n <= SMALL => Some(room::<SMALL>(fill)),
        n if n <= LARGE => Some(room::<LARGE>(fill)),
        _ => None,
    }
}

/// Whether a value of LD_PRELOAD names this library.
pub fn contains(value: &[u8], own: &[u8]) -> bool {
    value.split(|byte| matches!(byte, b':' | b' ')).any(|name| name == own)
}

/// Runs `act` with the environment that the new program is to have.
///
/// # Safety
/// `envp` must be null or an array of C strings.
#[inline(always)]
pub unsafe fn with_environment(envp: Strings, mut act: impl FnMut(Strings) -> c_int) -> c_int {
    if control::known_control().is_none() || !envp.is_null() && sys::leads_nowhere(envp) {
        return act(envp);
    }
    // SAFETY: as above.
    unsafe { put_back(envp, &mut act) }
}

#[inline(never)]
unsafe fn put_back(envp: Strings, act: &mut dyn FnMut(Strings) -> c_int) -> c_int {
    let Some(own) = loader::own_path().map(CStr::to_bytes).filter(|own| !own.is_empty()) else {
        return act(envp);
    };
    let mut run_dir = PathBuf::new();
    let (mut count, mut preload, mut has_dir) = (0usize, None, !control::names_run_dir());
    let mut has_net = !net::is_on();
    // SAFETY: the caller vouches for the array; its entries are C strings.
    for (at, entry) in unsafe { entries(envp) }.enumerate() {
        // SAFETY: as above.
        let text = unsafe { CStr::from_ptr(entry) }.to_bytes();
        if let Some(value) = text.strip_prefix(PRELOAD) {
            preload = Some((at, value));
        }
        has_dir |=
            text.strip_prefix(names::ENV_RUN_DIR.as_bytes()).is_some_and(|rest| rest.starts_with(b"="));
        has_net |= text.strip_prefix(names::ENV_NET.as_bytes()).is_some_and(|rest| rest.starts_with(b"="));
        count = at + 1;
    }
    if has_dir && has_net && preload.is_some_and(|(_, value)| contains(value, own)) {
        return act(envp);
    }
    let mut line = PathBuf::new();
    let mut written = line.push(PRELOAD).and_then(|()| line.push(own));
    if let Some((_, value)) = preload.filter(|(_, value)| !value.is_empty() && !contains(value, own)) {
        written = written.and_then(|()| line.push(b":")).and_then(|()| line.push(value));
    }
    if !has_dir {
        written = written.and_then(|()| control::run_variable(&mut run_dir));
    }
    if written.is_err() {
        return act(envp);
    }
    let preload_line = match preload {
        Some((_, value)) if contains(value, own) => None,
        Some((at, _)) => Some((Some(at), line.c_str())),
        None => Some((None, line.c_str())),
    };
    let added = [
        (!has_dir).then(|| run_dir.c_str()),
        preload_line.filter(|(at, _)| at.is_none()).map(|(_, line)| line),
        (!has_net).then(|| NET.as_ptr()),
    ];
    let replaced = preload_line.and_then(|(at, line)| Some((at?, line)));
    let new = Changed { envp, count, added, replaced };
    // Two sizes, because a thread's stack may be small and most environments are.
    // SAFETY: the caller vouches for the array, which was just counted.
    unsafe {
        if count + 4 <= SMALL {
            new.run::<SMALL>(act)
        } else if count + 4 <= LARGE {
            new.run::<LARGE>(act)
        } else {
            act(envp)
        }
    }
}

/// An environment with entries added and one replaced.
struct Changed {
    envp: Strings,
    count: usize,
    added: [Option<*const c_char>; 3],
    replaced: Option<(usize, *const c_char)>,
}

impl Changed {
    /// # Safety
    /// `envp` must have `count` entries, and N must exceed that by four.
    #[inline(never)]
    unsafe fn run<const N: usize>(&self, act: &mut dyn FnMut(Strings) -> c_int) -> c_int {
        let mut array = [const { MaybeUninit::<*const c_char>::uninit() }; N];
        // SAFETY: as above.
        let old = unsafe { entries(self.envp) }.take(self.count).enumerate().map(|(at, entry)| {
            match self.replaced {
                Some((place, line)) if place == at => line,
                _ => entry,
            }
        });
        let new = self.added.iter().flatten().copied();
        for (to, from) in array.iter_mut().zip(old.chain(new).chain([core::ptr::null()])) {
            to.write(from);
        }
        act(array.as_ptr().cast())
    }
}

hook! {
    unsafe fn execve(path: *const c_char, argv: Strings, envp: Strings) -> c_int => my_execve {
        let mut room = PathBuf::new();
        match place::at(CWD, path, &mut room) {
            Ok(place) => {
                if let Err(errno) = script::bring(&place) {
                    return fail(errno);
                }
                let failed = script::past_writers(&place, &mut || {
                    let failed = script::run(path, &place, argv, &mut |path, argv| {
                        with_environment(envp, |envp| real!(execve)(path, argv, envp))
                    });
                    (failed, get_errno() == Errno::of(errno::ETXTBSY))
                });
                detour::by_link(place, |inside| my_execve(inside, argv, envp)).unwrap_or(failed)
            }
            Err(errno) => fail(errno),
        }
    }
}

hook! {
    unsafe fn execv(path: *const c_char, argv: Strings) -> c_int => my_execv {
        my_execve(path, argv, loader::environment())
    }
}

hook! {
    unsafe fn execveat(dirfd: c_int, path: *const c_char, argv: Strings, envp: Strings, flags: c_int) -> c_int
        => my_execveat {
        let mut room = PathBuf::new();
        match place::at(dirfd, path, &mut room).and_then(|place| script::bring(&place).map(|()| place)) {
            Ok(place) => with_environment(envp, |envp| {
                crate::hook::answer(Err(sys::execveat(place.dirfd, place.path, argv, envp, flags)))
            }),
            Err(errno) => fail(errno),
        }
    }
}

hook! {
    unsafe fn fexecve(fd: c_int, argv: Strings, envp: Strings) -> c_int => my_fexecve {
        let place = Place { mount: fds::known(fd).mount(), dirfd: fd, path: c"".as_ptr() };
        if let Err(errno) = script::bring(&place) {
            return fail(errno);
        }
        with_environment(envp, |envp| real!(fexecve)(fd, argv, envp))
    }
}

/// Where a program without a slash in its name is looked for.
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";

/// Each candidate for `file` along PATH, until `attempt` is done with it.
///
/// # Safety
/// `file` must be a C string.
pub unsafe fn along_path<R>(
    file: *const c_char,
    mut attempt: impl FnMut(*const c_char) -> Option<R>,
) -> Option<R> {
    // SAFETY: as above.
    let name = unsafe { CStr::from_ptr(file) }.to_bytes();
    if name.is_empty() {
        return None;
    }
    if name.contains(&b'/') {
        return attempt(file);
    }
    let mut room = PathBuf::new();
    for dir in control::variable(b"PATH").unwrap_or(DEFAULT_PATH).split(|b| *b == b':') {
        room.clear();
        let slash: &[u8] = if dir.is_empty() { b"" } else { b"/" };
        if room.push(dir).and_then(|()| room.push(slash)).and_then(|()| room.push(name)).is_err() {
            continue;
        }
        if let Some(done) = attempt(room.c_str()) {
            return Some(done);
        }
    }
    None
}

hook! {
    unsafe fn execvpe(file: *const c_char, argv: Strings, envp: Strings) -> c_int => my_execvpe {
        if control::known_control().is_none() && control::table().is_none() {
            return real!(execvpe)(file, argv, envp);
        }
        if sys::leads_nowhere(file) {
            return fail(Errno::of(errno::EFAULT));
        }
        let mut worst = Errno::of(errno::ENOENT);
        let stop = along_path(file, |path| {
            my_execve(path, argv, envp);
            let failed = get_errno();
            match failed.0 as u32 {
                errno::ENOEXEC => Some(as_script(path, argv, envp)),
                errno::EACCES => {
                    worst = failed;
                    None
                }
                errno::ENOENT | errno::ENOTDIR | errno::ENODEV | errno::ESTALE | errno::ETIMEDOUT => None,
                _ => Some(failed),
            }
        });
        fail(stop.unwrap_or(worst))
    }
}

hook! {
    unsafe fn execvp(file: *const c_char, argv: Strings) -> c_int => my_execvp {
        my_execvpe(file, argv, loader::environment())
    }
}

/// Runs a file without a format the kernel knows through the shell, as execvp does.
///
/// # Safety
/// `path` must be a C string, the others arrays of such.
unsafe fn as_script(path: *const c_char, argv: Strings, envp: Strings) -> Errno {
    let shell = c"/bin/sh".as_ptr();
    // SAFETY: as above.
    unsafe {
        let run = &mut |argv| my_execve(shell, argv, envp);
        match script::with_head([shell, path, core::ptr::null()], argv, run) {
            Some(_) => get_errno(),
            None => Errno::of(errno::E2BIG),
        }
    }
}

/// The arguments of a variadic call after the first: some came in registers, the rest on the stack.
pub struct Variadic {
    registers: Strings,
    stack: Strings,
}

/// Argument registers after the first one.
#[cfg(target_arch = "x86_64")]
const REGISTERS: usize = 5;
#[cfg(target_arch = "aarch64")]
const REGISTERS: usize = 7;

impl Variadic {
    /// # Safety
    /// The caller must have passed that many.
    unsafe fn get(&self, at: usize) -> *const c_char {
        // SAFETY: as above.
        unsafe {
            match at.checked_sub(REGISTERS) {
                Some(beyond) => *self.stack.add(beyond),
                None => *self.registers.add(at),
            }
        }
    }

    /// Makes an array of the strings up to the null and calls `act` with it and the argument after the null's place.
    ///
    /// # Safety
    /// There must be a null.
    unsafe fn with_array(&self, act: impl Fn(Strings, usize) -> c_int) -> c_int {
        // SAFETY: the null has not come yet.
        let count = (0..).take_while(|at| unsafe { !self.get(*at).is_null() }).count();
        let mut run = |array: &mut [MaybeUninit<*const c_char>]| {
            for (at, to) in array.iter_mut().enumerate().take(count + 1) {
                // SAFETY: up to the null.
                to.write(unsafe { self.get(at) });
            }
            act(array.as_ptr().cast(), count + 1)
        };
        with_room(count + 1, &mut run).unwrap_or_else(|| fail(Errno::of(errno::E2BIG)))
    }
}

/// Which of the three variadic forms.
const LIST: usize = 0;
const LIST_PATH: usize = 1;
const LIST_ENVIRONMENT: usize = 2;

/// What the trampolines below call.
unsafe extern "C" fn exec_list(
    path: *const c_char,
    registers: Strings,
    stack: Strings,
    form: usize,
) -> c_int {
    let arguments = Variadic { registers, stack };
    // SAFETY: the trampoline passes where the caller's arguments are; the caller ended them with null, and put the
    // environment after it in that form.
    unsafe {
        arguments.with_array(|argv, after| match form {
            LIST_PATH => my_execvp(path, argv),
            LIST_ENVIRONMENT => my_execve(path, argv, arguments.get(after).cast()),
            _ => my_execve(path, argv, loader::environment()),
        })
    }
}

/// A variadic function cannot be defined in stable Rust: a few instructions put the registers in memory.
macro_rules! variadic {
    ($name:ident, $form:expr) => {
        /// Exported in libc's place.
        ///
        /// # Safety
        /// The contract of the C function.
        #[cfg(all(not(test), target_arch = "x86_64"))]
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                "push r9", "push r8", "push rcx", "push rdx", "push rsi",
                "mov rsi, rsp",
                "lea rdx, [rsp + 48]",
                "mov ecx, {form}",
                "call {exec}",
                "add rsp, 40",
                "ret",
                form = const $form, exec = sym exec_list)
        }

        /// Exported in libc's place.
        ///
        /// # Safety
        /// The contract of the C function.
        #[cfg(all(not(test), target_arch = "aarch64"))]
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                "stp x29, x30, [sp, #-80]!",
                "mov x29, sp",
                "stp x1, x2, [sp, #16]", "stp x3, x4, [sp, #32]", "stp x5, x6, [sp, #48]", "str x7, [sp, #64]",
                "add x1, sp, #16",
                "add x2, sp, #80",
                "mov x3, {form}",
                "bl {exec}",
                "ldp x29, x30, [sp], #80",
                "ret",
                form = const $form, exec = sym exec_list)
        }
    };
}

variadic!(execl, LIST);
variadic!(execlp, LIST_PATH);
variadic!(execle, LIST_ENVIRONMENT);
