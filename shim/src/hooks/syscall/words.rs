//! The words of a system call as typed arguments and answers. Knows no call.

use core::ffi::{c_char, c_int, c_long};

use crate::absent;
use crate::hook::{answer, fail};
use crate::place::{self, CWD};
use crate::sys::{self, Answer, PathBuf};

/// What an argument of a system call can be taken for.
pub trait Word {
    /// From its register.
    fn of(word: usize) -> Self;
}

macro_rules! words {
    ($($t:ty)*) => {$(
        impl Word for $t {
            #[inline(always)]
            fn of(word: usize) -> Self {
                word as Self
            }
        }
    )*};
}
words!(i32 u32 i64 u64 usize);

impl<T> Word for *const T {
    #[inline(always)]
    fn of(word: usize) -> Self {
        word as Self
    }
}

impl<T> Word for *mut T {
    #[inline(always)]
    fn of(word: usize) -> Self {
        word as Self
    }
}

/// What a hook answers, as syscall(2) would: -1 and errno where it failed.
pub trait Said {
    /// As a word.
    fn word(self) -> c_long;
}

macro_rules! said {
    ($($t:ty)*) => {$(
        impl Said for $t {
            #[inline(always)]
            fn word(self) -> c_long {
                self as c_long
            }
        }
    )*};
}
said!(c_int c_long isize);

impl Said for Answer {
    #[inline(always)]
    fn word(self) -> c_long {
        answer(self)
    }
}

impl<T> Said for *mut T {
    #[inline(always)]
    fn word(self) -> c_long {
        self as c_long
    }
}

impl Said for () {
    #[inline(always)]
    fn word(self) -> c_long {
        0
    }
}

/// A system call's number and arguments.
#[derive(Clone, Copy)]
pub struct Words {
    /// Which call.
    pub number: usize,
    /// Its six arguments.
    pub arguments: [usize; 6],
}

impl Words {
    /// Argument `at` as what the hook takes.
    #[inline(always)]
    pub fn get<T: Word>(&self, at: usize) -> T {
        T::of(self.arguments.get(at).copied().unwrap_or(0))
    }

    /// The same call with another word at `at`.
    #[inline(always)]
    #[must_use]
    pub fn with(mut self, at: usize, word: usize) -> Self {
        if let Some(place) = self.arguments.get_mut(at) {
            *place = word;
        }
        self
    }

    /// Makes the call as it is.
    ///
    /// # Safety
    /// The contract of the call.
    #[inline(never)]
    pub unsafe fn call(self) -> Answer {
        let [a, b, c, d, e, f] = self.arguments;
        // SAFETY: as above.
        unsafe { sys::raw(self.number, a, b, c, d, e, f) }
    }

    /// Makes the call with the path at `path` translated.
    ///
    /// # Safety
    /// The contract of the call.
    pub unsafe fn translated(self, path: usize) -> c_long {
        // SAFETY: as above.
        unsafe { self.place(CWD, None, path) }
    }

    /// Makes the call with the path at `path` translated, which starts from the descriptor at `dirfd`.
    ///
    /// # Safety
    /// The contract of the call.
    pub unsafe fn translated_at(self, dirfd: usize, path: usize) -> c_long {
        // SAFETY: as above.
        unsafe { self.place(self.get(dirfd), Some(dirfd), path) }
    }

    /// Makes the call with both paths translated; the first is one only where it is absolute.
    ///
    /// # Safety
    /// The contract of the call.
    pub unsafe fn translated_two(self, first: usize, second: usize) -> c_long {
        let name: *const c_char = self.get(first);
        let mut room = PathBuf::new();
        // SAFETY: as above: a C string or null.
        if name.is_null() || unsafe { *name } as u8 != b'/' {
            // SAFETY: as above.
            return unsafe { self.translated(second) };
        }
        match place::at(CWD, name, &mut room) {
            // SAFETY: as above.
            Ok(place) => unsafe { self.with(first, place.path as usize).translated(second) },
            Err(errno) => fail(errno),
        }
    }

    #[inline(never)]
    unsafe fn place(self, from: c_int, dirfd: Option<usize>, path: usize) -> c_long {
        let mut room = PathBuf::new();
        match place::at(from, self.get(path), &mut room) {
            Ok(place) => {
                let moved = self.with(path, place.path as usize);
                let moved = dirfd.map_or(moved, |at| moved.with(at, place.dirfd as usize));
                // SAFETY: the caller keeps the contract of the call.
                answer(absent::reached(place, || unsafe { moved.call() }))
            }
            Err(errno) => fail(errno),
        }
    }
}
