//! Copies inside the kernel, of which a file is the input or the output.

use core::ffi::c_int;

use storeshim_protocol::request::Pin;

use crate::act::Act;
use crate::fds::{self, File};
use crate::gate;
use crate::hook::{answer, hook, real};
use crate::sys::{self, Answer, Errno, errno, k};
use crate::write::{Position, SLICE, piece, sliced, synced};
use crate::{control, quota, reading, residency};

/// What was brought has gone again. No errno of the kernel's.
const GONE: Answer = Err(Errno(0));

/// Bytes that are brought at a time for a pipe or a socket, which may let one wait.
const PART: usize = 8 << 20;

/// A copy from a file of which something may not be here.
struct Copy {
    source: File,
    input: c_int,
    from: *const i64,
    out: c_int,
    n: usize,
}

impl Copy {
    /// Where it reads next.
    fn at(&self) -> u64 {
        offset_of(self.input, self.from)
    }

    /// Copies by slices, each of which is here when `act` is told its length. A copy to a file is made inside a gate, which
    /// eviction waits for; to a pipe or a socket, where it may have to wait, of bytes that stay.
    #[inline(never)]
    fn run(&self, target: Option<(File, Position)>, mut act: Act<'_, usize, Answer>) -> Answer {
        let File { mount, ino, .. } = self.source;
        reading::moved(self.input);
        let gated = target.is_some() || sys::fstat(self.out).is_ok_and(|stat| sys::is_regular(&stat));
        // A thread is in one gate at a time.
        let pin = !gated || target.is_some_and(|(file, _)| file.mount != mount);
        let mut done = 0usize;
        loop {
            let n = (self.n - done).min(if gated { SLICE } else { PART });
            let start = self.at();
            let held = residency::bring(mount, ino, start, start.saturating_add(n as u64), Pin::open_if(pin));
            let mut once = |n| match held {
                Ok(held) if held.still() && self.at() == start => act.run(n),
                Ok(_) => GONE,
                Err(errno) => Err(errno),
            };
            let moved = match target {
                Some((file, position)) if held.is_ok() => {
                    let position = position.after(done);
                    quota::allowed(self.out, &file, position, n, self.n - done).and_then(|n| {
                        let mut once = || once(n);
                        piece(self.out, &file, position, n, &mut once)
                    })
                }
                _ => {
                    let _inside = if gated { Some(gate::enter(mount, ino)?) } else { None };
                    once(n)
                }
            };
            match moved {
                GONE => {}
                Ok(moved) => {
                    done += moved;
                    if moved < n || done >= self.n {
                        return Ok(done);
                    }
                }
                // What was copied is told; the next call meets the error.
                Err(errno) => return if done == 0 { Err(errno) } else { Ok(done) },
            }
        }
    }
}

/// How many of `n` bytes a copy can take from `input`, where that many would have to be asked for: programs ask for more than
/// there is.
#[inline(always)]
fn in_source(input: c_int, from: *const i64, n: usize, unasked: u64) -> usize {
    if n as u64 <= unasked { n } else { left_in_source(input, from, n) }
}

#[cold]
#[inline(never)]
fn left_in_source(input: c_int, from: *const i64, n: usize) -> usize {
    /// Of what does not say how long it is, at a time.
    const UNKNOWN: usize = 4096;
    let Ok(stat) = sys::fstat(input) else { return n };
    if !sys::is_regular(&stat) {
        return n;
    }
    let (size, at) = (stat.st_size as u64, offset_of(input, from));
    let mut byte = [0u8];
    // Below /proc what is empty by its size may have something all the same.
    if size == 0 && sys::pread(input, &mut byte, at as i64) == Ok(1) {
        return n.min(UNKNOWN);
    }
    n.min(size.saturating_sub(at) as usize)
}

/// Where a copy reads next.
fn offset_of(input: c_int, from: *const i64) -> u64 {
    if sys::leads_nowhere(from) {
        return sys::lseek(input, 0, k::SEEK_CUR).unwrap_or(0) as u64;
    }
    // SAFETY: the app vouches for its offset.
    unsafe { from.read() }.max(0) as u64
}

/// Copies `n` bytes by `act`, which is told how many each time, into `target` where that is a file of a mount; `None` where
/// neither end is one of which there is something to be done.
#[inline(always)]
fn copy(
    input: c_int,
    from: *const i64,
    out: c_int,
    target: Option<(File, Position)>,
    n: usize,
    mut act: impl FnMut(usize) -> Answer,
) -> Option<Answer> {
    copy_by(input, from, out, target, n, Act::new(&mut act))
}

#[inline(never)]
fn copy_by(
    input: c_int,
    from: *const i64,
    out: c_int,
    target: Option<(File, Position)>,
    n: usize,
    mut act: Act<'_, usize, Answer>,
) -> Option<Answer> {
    let n = target.map_or(n, |(file, _)| in_source(input, from, n, control::unasked(file.mount)));
    let copied = match (residency::lacking(input), target) {
        (Some(source), _) => Copy { source, input, from, out, n }.run(target, act),
        // The kernel moves the offsets on by itself.
        (None, Some((file, position))) => sliced(out, &file, position, n, |_, n, _| act.run(n)),
        (None, None) => return None,
    };
    Some(match target {
        Some((file, _)) => synced(&file, false, copied),
        None => copied,
    })
}

hook! {
    unsafe fn sendfile | sendfile64(out: c_int, input: c_int, offset: *mut i64, n: usize) -> isize => my_sendfile {
        let target = fds::found(out).map(|file| (file, Position::of(&file)));
        match copy(input, offset, out, target, n, |n| sys::sendfile(out, input, offset, n)) {
            Some(done) => answer(done),
            None => real!(sendfile)(out, input, offset, n),
        }
    }
}

/// Where a copy with an optional offset of its own writes.
///
/// # Safety
/// `offset` must be null or valid.
unsafe fn position(file: &File, offset: *const i64) -> Position {
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
        let target = fds::found(out).map(|file| (file, position(&file, to)));
        match copy(input, from, out, target, n, |n| sys::copy_file_range(input, from, out, to, n, flags)) {
            Some(done) => answer(done),
            None => real!(copy_file_range)(input, from, out, to, n, flags),
        }
    }
}

/// splice(2) from a pipe, which may be empty: waited for outside the gate.
fn splice_in(
    file: &File,
    at: Position,
    input: c_int,
    n: usize,
    flags: u32,
    act: impl Fn(usize, u32) -> Answer,
    out: c_int,
) -> Answer {
    const NONBLOCK: u32 = 2;
    let n = quota::allowed(out, file, at, n.min(SLICE), n.min(SLICE))?;
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
        let act = |n, flags| sys::splice(input, from, out, to, n, flags);
        match fds::found(out) {
            Some(file) => answer(splice_in(&file, position(&file, to), input, n, flags, act, out)),
            None => match copy(input, from, out, None, n.min(SLICE), |n| act(n, flags)) {
                Some(done) => answer(done),
                None => real!(splice)(input, from, out, to, n, flags),
            },
        }
    }
}
