//! How a hook is declared: `hook!` for a function that does something, `path_hook!` for one that only has its path
//! translated, `real!` for the function behind.
//!
//! The shape is redhook's. The crate itself cannot be used: it links std (a NEEDED entry for libgcc_s, which
//! kills every musl process, and 200 µs per process start), finds the real function through dlsym under the
//! loader's lock, and answers a panic by calling the real function a second time.

use core::ffi::{CStr, c_char, c_int, c_void};

use crate::loader::{Real, set_errno};
use crate::sys::{Answer, Errno, PathBuf};
use crate::{absent, detour, place};

/// What a libc function answers: a value, or its way of saying "failed, see errno".
pub trait Reply: Sized {
    /// The value for a system call's answer.
    fn good(word: usize) -> Self;
    /// The value as a word.
    fn word(self) -> usize;
    /// The failure.
    const FAILED: Self;
}

macro_rules! integer_reply {
    ($($t:ty)*) => {$(
        impl Reply for $t {
            fn good(word: usize) -> Self {
                word as $t
            }
            fn word(self) -> usize {
                self as usize
            }
            const FAILED: Self = -1;
        }
    )*};
}
integer_reply!(c_int i64 isize);

impl<T> Reply for *mut T {
    fn good(word: usize) -> Self {
        word as *mut T
    }
    fn word(self) -> usize {
        self as usize
    }
    const FAILED: Self = core::ptr::null_mut();
}

/// Fails as libc does.
#[cold]
pub fn fail<R: Reply>(errno: Errno) -> R {
    set_errno(errno);
    R::FAILED
}

/// Answers as libc does.
#[inline(always)]
pub fn answer<R: Reply>(answer: Answer) -> R {
    match answer {
        Ok(word) => R::good(word),
        Err(errno) => fail(errno),
    }
}

/// MAP_FAILED, which no [`Reply`] of a pointer is.
pub const MAP_FAILED: *mut c_void = usize::MAX as *mut c_void;

/// Declares a hook: the exported names (aliases after `|`), and the function of ours that runs. `real!(first_name)`
/// is then the function behind.
///
/// In a test build nothing is exported: it would stand in front of the test's own libc.
macro_rules! hook {
    ($(#[$doc:meta])* unsafe fn $name:ident $(| $alias:ident)* ( $($arg:ident : $type:ty),* $(,)? ) $(-> $ret:ty)?
        => $mine:ident $body:block) => {
        #[allow(non_camel_case_types, reason = "the type that stands for a C function has its name")]
        pub struct $name {}

        impl $name {
            /// The function behind the hook.
            #[allow(dead_code, reason = "not every hook calls its function by name")]
            #[inline(always)]
            pub fn real() -> unsafe extern "C" fn($($type),*) $(-> $ret)? {
                static REAL: $crate::loader::Real = $crate::loader::Real::new();
                const NAME: &core::ffi::CStr =
                    match core::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                        Ok(name) => name,
                        Err(_) => c"",
                    };
                // SAFETY: the function of this name has this type in every libc (a variadic one takes the same
                // registers), or it is the stand-in, which takes anything.
                unsafe { core::mem::transmute(REAL.address(NAME)) }
            }
        }

        #[doc = concat!("What `", stringify!($name), "` does.")]
        $(#[$doc])*
        ///
        /// # Safety
        /// The contract of the C function.
        #[allow(clippy::too_many_arguments, reason = "C decides")]
        #[allow(unused_unsafe, reason = "not every body does what is unsafe")]
        pub unsafe extern "C" fn $mine($($arg: $type),*) $(-> $ret)? {
            // SAFETY: the caller keeps the contract of the C function.
            unsafe { $body }
        }

        $crate::hook::export!([$name $($alias)*] [$($arg: $type),*] [$($ret)?] $mine);
    };
}

/// Exports a hook under each of its names.
macro_rules! export {
    ([$($name:ident)*] $arguments:tt $ret:tt $mine:ident) => {
        $($crate::hook::export!(@ $name $arguments $ret $mine);)*
    };
    (@ $name:ident [$($arg:ident : $type:ty),*] [$($ret:ty)?] $mine:ident) => {
        /// Exported in libc's place.
        ///
        /// # Safety
        /// The contract of the C function.
        #[cfg(not(test))]
        #[allow(clippy::too_many_arguments, reason = "C decides")]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $type),*) $(-> $ret)? {
            // SAFETY: the caller keeps the contract of the C function.
            unsafe { $mine($($arg),*) }
        }
    };
}

/// Calls the function `name` with its path, which stands at `path` among the arguments, translated; `dirfd` says that the
/// argument before it is what a relative path starts from. One copy of the code for all the functions there are: none of
/// them takes more than six words, or answers anything but a word.
///
/// # Safety
/// The contract of the function.
#[inline(never)]
pub unsafe fn translated(real: &Real, name: &CStr, arguments: &[usize], path: usize, dirfd: bool) -> usize {
    let mut words = arguments_of(arguments);
    let mut room = PathBuf::new();
    let from = path.checked_sub(1).filter(|_| dirfd).and_then(|at| words.get_mut(at));
    let start = from.as_ref().map_or(place::CWD, |word| **word as c_int);
    let app = arguments.get(path).copied().unwrap_or(0) as *const c_char;
    let lies = match place::at(start, app, &mut room) {
        Ok(place) => place,
        Err(errno) => {
            set_errno(errno);
            return usize::MAX;
        }
    };
    if let Some(word) = from {
        *word = lies.dirfd as usize;
    }
    if let Some(word) = words.get_mut(path) {
        *word = lies.path as usize;
    }
    // SAFETY: a C function of at most six words; those that it does not take are in registers that it does not read.
    let function: unsafe extern "C" fn(usize, usize, usize, usize, usize, usize) -> usize =
        unsafe { core::mem::transmute(real.address(name)) };
    let [a, b, c, d, e, f] = words;
    // As an int: what a function of one leaves above it is nothing.
    let failed = |result: usize| result as c_int == -1;
    // SAFETY: as above.
    let mut result = unsafe { function(a, b, c, d, e, f) };
    if failed(result) && absent::again(lies) {
        // SAFETY: as above.
        result = unsafe { function(a, b, c, d, e, f) };
    }
    if failed(result) && lies.mount.is_none() {
        let again = detour::by_link(lies, |inside| {
            let mut words = arguments_of(arguments);
            if let Some(word) = words.get_mut(path) {
                *word = inside as usize;
            }
            // SAFETY: the contract of the function, with another path.
            unsafe { translated(real, name, &words, path, dirfd) as isize }
        });
        return again.map_or(result, |again| again as usize);
    }
    result
}

fn arguments_of(arguments: &[usize]) -> [usize; 6] {
    let mut words = [0; 6];
    for (to, from) in words.iter_mut().zip(arguments) {
        *to = *from;
    }
    words
}

/// Declares a hook that translates `path` (below `@dirfd` where there is one) and calls the function behind.
/// Arguments before them stand in brackets. Aliases stand after `|`: on 64-bit machines a `…64` function is the same as
/// the one without, in both libcs.
macro_rules! path_hook {
    (fn $name:ident $(| $alias:ident)* $([$($pre:ident : $pt:ty),*])? (@dirfd, path $(, $arg:ident : $type:ty)* $(,)?)
        -> $ret:ty => $mine:ident) => {
        $crate::hook::path_hook!(@ $name [$($alias)*] [$($($pre : $pt),*)?] [dirfd: core::ffi::c_int]
            [$($arg : $type),*] $ret, $mine, true);
    };
    (fn $name:ident $(| $alias:ident)* $([$($pre:ident : $pt:ty),*])? (path $(, $arg:ident : $type:ty)* $(,)?)
        -> $ret:ty => $mine:ident) => {
        $crate::hook::path_hook!(@ $name [$($alias)*] [$($($pre : $pt),*)?] [] [$($arg : $type),*] $ret, $mine, false);
    };
    (@ $name:ident [$($alias:ident)*] [$($pre:ident : $pt:ty),*] [$($dirfd:ident : $dt:ty)?]
        [$($arg:ident : $type:ty),*] $ret:ty, $mine:ident, $below:literal) => {
        #[doc = concat!("What `", stringify!($name), "` does, with its path translated.")]
        ///
        /// # Safety
        /// The contract of the C function.
        pub unsafe extern "C" fn $mine($($pre: $pt,)* $($dirfd: $dt,)? path: *const core::ffi::c_char
            $(, $arg: $type)*) -> $ret {
            static REAL: $crate::loader::Real = $crate::loader::Real::new();
            const NAME: &core::ffi::CStr =
                match core::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                    Ok(name) => name,
                    Err(_) => c"",
                };
            const BEFORE: &[&str] = &[$(stringify!($pre),)* $(stringify!($dirfd))?];
            let words = [$($pre as usize,)* $($dirfd as usize,)? path as usize $(, $arg as usize)*];
            // SAFETY: the caller keeps the contract of the C function.
            unsafe { $crate::hook::translated(&REAL, NAME, &words, BEFORE.len(), $below) as $ret }
        }

        $crate::hook::export!([$name $($alias)*]
            [$($pre: $pt,)* $($dirfd: $dt,)? path: *const core::ffi::c_char $(, $arg: $type)*] [$ret] $mine);
    };
}

/// The function behind a hook.
macro_rules! real {
    ($name:ident) => {
        $name::real()
    };
}

pub(crate) use {export, hook, path_hook, real};
