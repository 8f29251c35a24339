//! Room for paths, on the stack: nothing here allocates. It must not know what a path means.

use core::ffi::{c_char, c_int};
use core::mem::MaybeUninit;

use crate::sys::{Errno, close, errno};

/// Longest path with its NUL, in bytes.
pub const PATH_MAX: usize = 4096;

/// Room for a path, not initialised: a zeroed one would cost more than the call that it serves.
pub struct Bytes(MaybeUninit<[u8; PATH_MAX]>);

impl Bytes {
    /// Empty room.
    #[inline(always)]
    pub const fn new() -> Self {
        Self(MaybeUninit::uninit())
    }

    /// Where the kernel is to write; there is room for [`PATH_MAX`] bytes.
    pub(crate) fn at(&mut self) -> *mut u8 {
        self.0.as_mut_ptr().cast()
    }

    /// The first `n` bytes, which must have been filled.
    pub(crate) fn filled(&self, n: usize) -> &[u8] {
        // SAFETY: only called with what the kernel or `put` has filled, at most the whole of it.
        unsafe { core::slice::from_raw_parts(self.0.as_ptr().cast(), n.min(PATH_MAX)) }
    }
}

/// A NUL-terminated path under construction.
pub struct PathBuf {
    bytes: Bytes,
    len: usize,
    /// A descriptor that the path begins with, closed with it; negative where there is none.
    start: c_int,
}

impl Drop for PathBuf {
    #[inline(always)]
    fn drop(&mut self) {
        if self.start >= 0 {
            let_go(self.start);
        }
    }
}

#[cold]
#[inline(never)]
fn let_go(fd: c_int) {
    close(fd);
}

impl PathBuf {
    /// An empty path.
    #[inline(always)]
    pub fn new() -> Self {
        let mut path = MaybeUninit::<Self>::uninit();
        // Field by field: of a constant with room that is not initialised, the compiler makes a memset of all of it.
        // SAFETY: the room need not be initialised, the length is.
        unsafe {
            (&raw mut (*path.as_mut_ptr()).len).write(0);
            (&raw mut (*path.as_mut_ptr()).start).write(-1);
            path.assume_init()
        }
    }

    /// Forgets what it holds.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends; ENAMETOOLONG where it does not fit, with its NUL.
    #[inline(always)]
    pub fn push(&mut self, part: &[u8]) -> Result<(), Errno> {
        let len = self.len.wrapping_add(part.len());
        if len >= PATH_MAX {
            return Err(Errno::of(errno::ENAMETOOLONG));
        }
        let base = self.bytes.0.as_mut_ptr().cast::<u8>();
        // SAFETY: `len` and the NUL after it lie within the room; `part` is borrowed and so not part of it.
        unsafe {
            core::ptr::copy_nonoverlapping(part.as_ptr(), base.add(self.len), part.len());
            base.add(len).write(0);
        }
        self.len = len;
        Ok(())
    }

    /// Makes it the path of a file below the directory `fd`, which is closed when this is dropped: `rest` begins with a
    /// slash. Errors: as [`PathBuf::push`]; the descriptor is then closed, too.
    pub fn start_at(&mut self, fd: c_int, rest: &[u8]) -> Result<(), Errno> {
        let old = core::mem::replace(&mut self.start, fd);
        if old >= 0 {
            close(old);
        }
        self.clear();
        self.push(b"/proc/self/fd/")?;
        let mut digits = [0_u8; 10];
        let mut at = digits.len();
        let mut left = fd;
        loop {
            at -= 1;
            if let Some(digit) = digits.get_mut(at) {
                *digit = b'0' + (left % 10) as u8;
            }
            left /= 10;
            if left == 0 || at == 0 {
                break;
            }
        }
        self.push(digits.get(at..).unwrap_or(&[]))?;
        self.push(rest)
    }

    /// Calls `f` with the first `at` bytes as a path of their own.
    pub fn with_head<R>(&mut self, at: usize, f: impl FnOnce(*const c_char) -> R) -> R {
        if at >= self.len {
            return f(self.c_str());
        }
        let cut = self.bytes.0.as_mut_ptr().cast::<u8>();
        // SAFETY: `at` lies within what `push` has filled.
        let cut = unsafe { cut.add(at) };
        // SAFETY: as above.
        let byte = unsafe { cut.replace(0) };
        let result = f(self.bytes.0.as_ptr().cast());
        // SAFETY: as above.
        unsafe { cut.write(byte) };
        result
    }

    /// The path without its NUL.
    #[inline(always)]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.filled(self.len)
    }

    /// The path as C wants it; empty before the first `push`.
    #[inline(always)]
    pub fn c_str(&self) -> *const c_char {
        if self.len == 0 { c"".as_ptr() } else { self.bytes.0.as_ptr().cast() }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::sys::{k, openat, stat_at};

    #[test]
    fn room_is_filled_to_its_end_and_no_further() {
        let mut path = PathBuf::new();
        assert_eq!(path.bytes(), b"");
        path.push(&[b'a'; PATH_MAX - 1]).unwrap();
        assert_eq!(path.push(b"b"), Err(Errno::of(errno::ENAMETOOLONG)));
        assert_eq!(path.bytes().len(), PATH_MAX - 1);
    }

    #[test]
    fn a_path_that_starts_at_a_directory_closes_it() {
        let root = openat(k::AT_FDCWD, c"/".as_ptr(), k::O_PATH as c_int, 0).unwrap() as c_int;
        let mut path = PathBuf::new();
        path.start_at(root, b"/proc/self/exe").unwrap();
        assert_eq!(path.bytes(), format!("/proc/self/fd/{root}/proc/self/exe").as_bytes());
        let found = stat_at(k::AT_FDCWD, path.c_str(), 0).unwrap();
        assert_eq!(found.st_ino, std::fs::metadata("/proc/self/exe").unwrap().ino());
        drop(path);
        // Another test may have the number by now, for something else than the root directory.
        let now = std::fs::read_link(format!("/proc/self/fd/{root}"));
        assert!(now.is_err() || now.is_ok_and(|path| path != std::path::Path::new("/")));
    }
}
