//! Paths that a walker hands back: it was given a root in the tree's spelling and is to speak of it in the app's.

use core::ffi::{CStr, c_char, c_void};

use crate::control;
use crate::place::{self, CWD};
use crate::sys::{self, Bytes, Errno, PathBuf, k};

/// struct stat, which both libcs have from the kernel.
pub type Stat = k::stat;

unsafe extern "C" {
    fn malloc(size: usize) -> *mut c_void;
    fn realloc(block: *mut c_void, size: usize) -> *mut c_void;
    fn free(block: *mut c_void);
}

/// How a root is spelled: both spellings end alike, and differ before that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Respell {
    /// Bytes of the app's spelling before the common end.
    pub app: usize,
    /// Bytes of the walker's spelling before the common end.
    pub real: usize,
}

impl Respell {
    /// Compares two spellings of one root.
    pub fn new(app: &[u8], real: &[u8]) -> Self {
        let common = app.iter().rev().zip(real.iter().rev()).take_while(|(a, b)| a == b).count();
        Self { app: app.len() - common, real: real.len() - common }
    }

    /// The two parts of the app's spelling of `path`, which begins as the walker's root does; `root` is the app's.
    pub fn parts<'p>(&self, root: &'p [u8], path: &'p [u8]) -> (&'p [u8], &'p [u8]) {
        (root.get(..self.app).unwrap_or(&[]), path.get(self.real..).unwrap_or(&[]))
    }
}

/// Memory of the app's allocator, for functions of which libc itself says that they allocate.
pub struct Block {
    at: *mut u8,
    size: usize,
    len: usize,
}

impl Block {
    /// None yet.
    pub const fn new() -> Self {
        Self { at: core::ptr::null_mut(), size: 0, len: 0 }
    }

    /// Writes `head` then `tail` and a NUL; null where there is no memory.
    pub fn fill(&mut self, head: &[u8], tail: &[u8]) -> *mut c_char {
        let need = head.len() + tail.len() + 1;
        if !self.reserve(need) {
            return core::ptr::null_mut();
        }
        // SAFETY: there is room for both and the NUL.
        unsafe {
            core::ptr::copy_nonoverlapping(head.as_ptr(), self.at, head.len());
            core::ptr::copy_nonoverlapping(tail.as_ptr(), self.at.add(head.len()), tail.len());
            self.at.add(need - 1).write(0);
        }
        self.len = need - 1;
        self.at.cast()
    }

    fn reserve(&mut self, need: usize) -> bool {
        if need > self.size {
            // SAFETY: null, or a block of ours.
            let at = unsafe { realloc(self.at.cast(), need * 2) }.cast::<u8>();
            if at.is_null() {
                return false;
            }
            (self.at, self.size) = (at, need * 2);
        }
        true
    }

    /// Room for `count` words; null where there is no memory.
    pub fn words(&mut self, count: usize) -> *mut usize {
        if self.reserve(count * size_of::<usize>()) { self.at.cast() } else { core::ptr::null_mut() }
    }

    /// What was written last.
    pub fn text(&self) -> &[u8] {
        // SAFETY: `fill` has written that much.
        if self.at.is_null() { &[] } else { unsafe { core::slice::from_raw_parts(self.at, self.len) } }
    }

    /// Gives the memory back.
    pub fn release(&mut self) {
        // SAFETY: null, or a block of ours that nobody reads any more.
        unsafe { free(self.at.cast()) };
        *self = Self::new();
    }
}

/// Fresh memory for one `T` and what `init` puts there; null where there is none.
pub fn boxed<T>(init: T) -> *mut T {
    // SAFETY: any size may be asked for.
    let at = unsafe { malloc(size_of::<T>()) }.cast::<T>();
    if !at.is_null() {
        // SAFETY: malloc's memory is aligned for everything.
        unsafe { at.write(init) };
    }
    at
}

/// Gives the memory of [`boxed`] back.
///
/// # Safety
/// `at` must be null or come from there, and not be used any more.
pub unsafe fn unboxed<T>(at: *mut T) {
    // SAFETY: as above.
    unsafe { free(at.cast()) };
}

/// Puts a root together that leads where `real` does and is at least `length` bytes long, so that results can be
/// respelled in place: slashes in front count as nothing.
pub fn padded(out: &mut PathBuf, real: &[u8], length: usize) -> Result<(), Errno> {
    out.clear();
    for _ in real.len()..length {
        out.push(b"/")?;
    }
    out.push(real)
}

/// The length of a link's target as the app knows it, where that is another than the kernel's.
#[cold]
#[inline(never)]
pub fn link_size(dirfd: core::ffi::c_int, path: *const c_char) -> Option<usize> {
    if !control::table()?.translates {
        return None;
    }
    let mut bytes = Bytes::new();
    let target = sys::readlink_at(dirfd, path, &mut bytes).ok()?;
    let mut room = PathBuf::new();
    Some(place::turned(target, &mut room)?.len())
}

/// The root that a walker is to be given for the app's: both spellings, where they differ.
pub fn root(app: *const c_char, room: &mut PathBuf) -> Result<Option<(&[u8], Respell)>, Errno> {
    let place = place::at(CWD, app, room)?;
    if core::ptr::eq(place.path, app) {
        return Ok(None);
    }
    // SAFETY: a path that was translated is a C string.
    let spelling = Respell::new(unsafe { CStr::from_ptr(app) }.to_bytes(), room.bytes());
    Ok(Some((room.bytes(), spelling)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speak(app: &[u8], real: &[u8], path: &[u8]) -> String {
        let spelling = Respell::new(app, real);
        let (head, tail) = spelling.parts(app, path);
        String::from_utf8([head, tail].concat()).unwrap()
    }

    #[test]
    fn what_is_below_a_root_is_spelled_as_the_root_is() {
        assert_eq!(speak(b"/storage", b"/var/t", b"/var/t/a/b"), "/storage/a/b");
        assert_eq!(speak(b"/storage/a", b"/var/t/a", b"/var/t/a"), "/storage/a");
        // The prefix and the tree may end alike.
        assert_eq!(speak(b"/storage", b"/var/tree", b"/var/tree/x"), "/storage/x");
        assert_eq!(speak(b"/storage/./a//", b"/t/./a//", b"/t/./a/x"), "/storage/./a/x");
        // A root that leads out of the mount again.
        assert_eq!(speak(b"/storage/../tmp/d", b"/tmp/d", b"/tmp/d/x"), "/storage/../tmp/d/x");
        assert_eq!(speak(b"same", b"same", b"same/x"), "same/x");
    }

    #[test]
    fn padding_leads_to_the_same_place() {
        let mut out = PathBuf::new();
        padded(&mut out, b"/t/x", 9).unwrap();
        assert_eq!(out.bytes(), b"//////t/x");
        padded(&mut out, b"/t/x", 2).unwrap();
        assert_eq!(out.bytes(), b"/t/x");
    }
}
