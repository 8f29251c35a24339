//! Writing to a file of a mount: throttled, gated, told, in slices that a cut need not wait long for.

use core::ffi::c_int;

use crate::fds::File;
use crate::gate::{self, Inside};
use crate::sys::{self, Answer, k};
use crate::{ask, control};

/// A gated piece is at most this long, in bytes: a cut waits for it.
pub const SLICE: usize = 1 << 20;

/// The same for an append: others append to the file too, and the kernel lets no write of theirs come in between.
const APPEND_SLICE: usize = 16 << 20;

/// Where a write goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// To this offset.
    At(u64),
    /// To the descriptor's position.
    Cursor,
    /// To the end of the file.
    End,
}

impl Position {
    /// Where a write without an offset of its own goes.
    #[inline(always)]
    pub fn of(file: &File) -> Self {
        if file.known.appends() { Self::End } else { Self::Cursor }
    }

    /// How much is written in one gated piece, in bytes.
    #[inline(always)]
    pub fn slice(self) -> usize {
        if self == Self::End { APPEND_SLICE } else { SLICE }
    }

    /// `done` bytes further on.
    #[inline(always)]
    fn after(self, done: usize) -> Self {
        match self {
            Self::At(offset) => Self::At(offset.saturating_add(done as u64)),
            other => other,
        }
    }
}

/// Tells what a write of `n` bytes is about to change.
#[inline(never)]
fn tell(inside: &Inside, fd: c_int, file: &File, position: Position, n: usize) {
    let n = n as u64;
    match position {
        Position::At(offset) => inside.tell_range(file.ino, offset, offset.saturating_add(n)),
        // The position costs a system call: not where the answer would be no news.
        Position::Cursor if inside.has_told_all(file.ino) => inside.account(file.ino, n),
        Position::Cursor => {
            let at = sys::lseek(fd, 0, k::SEEK_CUR).unwrap_or(0) as u64;
            inside.tell_range(file.ino, at, at.saturating_add(n));
        }
        Position::End if inside.has_told_end(file.ino) => inside.account(file.ino, n),
        Position::End => {
            let size = sys::fstat(fd).map_or(0, |stat| stat.st_size as u64);
            inside.tell_range(file.ino, size, u64::MAX);
        }
    }
}

/// One gated piece: `act` writes `n` bytes at `position`.
#[inline(always)]
pub fn piece(fd: c_int, file: &File, position: Position, n: usize, act: impl FnOnce() -> Answer) -> Answer {
    control::throttle(file.mount);
    let mut inside = gate::enter(file.mount, file.ino)?;
    tell(&inside, fd, file, position, n);
    let answer = act();
    if inside.overtaken() {
        // Where it went is behind us by now: all of it, to be sure.
        match position {
            Position::At(_) => tell(&inside, fd, file, position, n),
            _ => inside.tell_range(file.ino, 0, u64::MAX),
        }
    }
    answer
}

/// Writes `total` bytes in slices: `act(done, n, position)` writes `n` bytes of those after the first `done`.
#[inline(always)]
pub fn sliced(
    fd: c_int,
    file: &File,
    position: Position,
    total: usize,
    act: impl Fn(usize, usize, Position) -> Answer,
) -> Answer {
    let mut done = 0usize;
    loop {
        let n = total.saturating_sub(done).min(position.slice());
        let position = position.after(done);
        match piece(fd, file, position, n, || act(done, n, position)) {
            Ok(wrote) => {
                done = done.saturating_add(wrote);
                if wrote < n || done >= total {
                    return Ok(done);
                }
            }
            Err(errno) if done == 0 => return Err(errno),
            // A short write, as the kernel would have it; the next call meets the error.
            Err(_) => return Ok(done),
        }
    }
}

/// The barrier after a write through a descriptor that promises one.
#[inline(never)]
pub fn synced(file: &File, synchronous: bool, answer: Answer) -> Answer {
    if (synchronous || file.known.syncs())
        && matches!(answer, Ok(n) if n > 0)
        && !control::is_local(file.mount)
    {
        ask::barrier(file.mount, file.ino)?;
    }
    answer
}
