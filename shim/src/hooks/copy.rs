//! Copies inside the kernel whose output is a file.

use core::ffi::c_int;

use crate::fds;
use crate::hook::{answer, hook, real};
use crate::sys::{self, Answer, Errno, errno};
use crate::write::{Position, SLICE, piece, sliced, synced};

hook! {
    unsafe fn sendfile | sendfile64(out: c_int, input: c_int, offset: *mut i64, n: usize) -> isize => my_sendfile {
        let Some(file) = fds::file(out) else { return real!(sendfile)(out, input, offset, n) };
        // The kernel moves `offset` (or the input's position) on by itself.
        let wrote = sliced(out, &file, Position::of(&file), n, |_, n, _| sys::sendfile(out, input, offset, n));
        answer(synced(&file, false, wrote))
    }
}

/// Where a copy with an optional offset of its own writes.
///
/// # Safety
/// `offset` must be null or valid.
unsafe fn position(file: &fds::File, offset: *const i64) -> Position {
    // One that leads nowhere ends with EFAULT.
    if sys::leads_nowhere(offset) {
        return Position::of(file);
    }
    // SAFETY: as above.
    Position::At(unsafe { offset.read() }.max(0) as u64)
}

hook! {
    unsafe fn copy_file_range(input: c_int, from: *mut i64, out: c_int, to: *mut i64, n: usize, flags: u32) -> isize
        => my_copy_file_range {
        let Some(file) = fds::file(out) else { return real!(copy_file_range)(input, from, out, to, n, flags) };
        // The kernel moves both offsets on by itself.
        let wrote = sliced(out, &file, position(&file, to), n, |_, n, _| {
            sys::copy_file_range(input, from, out, to, n, flags)
        });
        answer(synced(&file, false, wrote))
    }
}

/// splice(2) from a pipe, which may be empty: waited for outside the gate.
fn splice_in(
    file: &fds::File,
    at: Position,
    input: c_int,
    n: usize,
    flags: u32,
    act: impl Fn(usize, u32) -> Answer,
    out: c_int,
) -> Answer {
    const NONBLOCK: u32 = 2;
    let n = n.min(SLICE);
    loop {
        let moved = piece(out, file, at, n, || act(n, flags | NONBLOCK));
        match moved {
            Err(e) if e == Errno::of(errno::EAGAIN) && flags & NONBLOCK == 0 => sys::wait_readable(input)?,
            _ => return synced(file, false, moved),
        }
    }
}

hook! {
    unsafe fn splice(input: c_int, from: *mut i64, out: c_int, to: *mut i64, n: usize, flags: u32) -> isize
        => my_splice {
        let Some(file) = fds::file(out) else { return real!(splice)(input, from, out, to, n, flags) };
        let at = position(&file, to);
        answer(splice_in(&file, at, input, n, flags, |n, flags| sys::splice(input, from, out, to, n, flags), out))
    }
}
