//! Extended attributes of a file. It must not know snapshots.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Attributes in the `user.` namespace; none where the filesystem has none.
pub(super) fn user(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).expect("a path has no NUL");
    // SAFETY: the path is a C string; the kernel writes at most `room` bytes at `at`.
    let names = grow(|at, room| unsafe { libc::llistxattr(path.as_ptr(), at.cast(), room) });
    names
        .split(|byte| *byte == 0)
        .filter(|name| name.starts_with(b"user."))
        .map(|name| {
            let c_name = CString::new(name).expect("split at NULs");
            let value = grow(|at, room| {
                // SAFETY: both strings are C strings; the kernel writes at most `room` bytes at `at`.
                unsafe { libc::lgetxattr(path.as_ptr(), c_name.as_ptr(), at.cast(), room) }
            });
            (OsString::from_vec(name.to_vec()), value)
        })
        .collect()
}

/// Calls `get` with a buffer as large as it first asks for; empty on an error.
fn grow(get: impl Fn(*mut u8, usize) -> isize) -> Vec<u8> {
    let Ok(length) = usize::try_from(get(std::ptr::null_mut(), 0)) else { return Vec::new() };
    let mut bytes = vec![0; length];
    let length = usize::try_from(get(bytes.as_mut_ptr(), bytes.len())).unwrap_or(0);
    bytes.truncate(length);
    bytes
}
