//! Writing to a file of a mount: throttled, gated, told, in slices that a cut need not wait long for, and only where what is
//! touched is here.

use core::ffi::c_int;

use storeshim_protocol::Intent;
use storeshim_protocol::request::{Ask, Pin};

use crate::act::Act;
use crate::fds::File;
use crate::gate::{self, Inside};
use crate::residency::{self, END, Held};
use crate::sys::{self, Answer, Errno, errno, k};
use crate::{ask, control, quota, reading, tell};

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

    /// Where that is now.
    pub fn start(self, fd: c_int) -> u64 {
        match self {
            Self::At(offset) => offset,
            Self::Cursor => position_of(fd),
            Self::End => size_of_file(fd),
        }
    }

    /// `done` bytes further on.
    #[inline(always)]
    pub fn after(self, done: usize) -> Self {
        match self {
            Self::At(offset) => Self::At(offset.saturating_add(done as u64)),
            other => other,
        }
    }
}

/// Tells what a write of `n` bytes is about to change.
#[inline(never)]
fn tell_piece(inside: &Inside, fd: c_int, file: &File, position: Position, n: usize) {
    let n = n as u64;
    match position {
        Position::At(offset) => inside.tell_range(file.ino, offset, offset.saturating_add(n)),
        // The position costs a system call: not where the answer would be no news.
        Position::Cursor if inside.has_told_all(file.ino) => inside.account(file.ino, n),
        Position::Cursor => {
            let at = position_of(fd);
            inside.tell_range(file.ino, at, at.saturating_add(n));
        }
        Position::End if inside.has_told_end(file.ino) => inside.account(file.ino, n),
        Position::End => {
            inside.tell_range(file.ino, size_of_file(fd), u64::MAX);
            // Where is told, how much is not.
            inside.account(file.ino, n);
        }
    }
}

/// What must be here before a file is changed.
#[derive(Clone, Copy)]
pub enum Needs {
    /// Nothing: the change touches no byte.
    Nothing,
    /// These bytes, the second number being one past the last.
    Bytes(u64, u64),
    /// What a write of so many bytes touches.
    Written(Position, usize),
    /// What remains when the file is cut or grown to this size.
    Cut(u64),
}

/// Enters the gate for a change of `file`, once what it touches is here: a change of a part of what is not here would be
/// lost when the rest arrives. Eviction waits for the gate, so what is here inside stays.
///
/// Errors: those of [`gate::enter`] and [`ask::request`].
#[inline(never)]
pub fn entered(fd: c_int, file: &File, needs: Needs) -> Result<Inside, Errno> {
    let (index, ino) = (file.mount, file.ino);
    control::throttle(index);
    if matches!(needs, Needs::Nothing) {
        return gate::enter(index, ino);
    }
    loop {
        let partial = residency::is_partial(index);
        let (held, at) = if partial { touched(fd, file, needs)? } else { (Held::complete(index), None) };
        let inside = gate::enter(index, ino)?;
        // Who shares the position may have moved it, too.
        if held.still() && at.is_none_or(|at| at == position_of(fd)) {
            return Ok(inside);
        }
    }
}

fn position_of(fd: c_int) -> u64 {
    sys::lseek(fd, 0, k::SEEK_CUR).unwrap_or(0) as u64
}

/// Brings what a change touches; also the position that it goes to, where that counts.
#[inline(never)]
fn touched(fd: c_int, file: &File, needs: Needs) -> Result<(Held, Option<u64>), Errno> {
    residency::wait_moved(file.mount, file.ino);
    if let Some(held) = residency::whole(file.mount, file.ino) {
        return Ok((held, None));
    }
    let mut at = None;
    let (start, end) = match needs {
        Needs::Nothing => (0, 0),
        Needs::Bytes(start, end) => (start, end),
        Needs::Cut(size) => return Ok((resizing(file.mount, file.ino, size, size_of_file(fd))?, None)),
        Needs::Written(position, n) => {
            let start = position.start(fd);
            reading::moved(fd);
            at = Some(start).filter(|_| position == Position::Cursor);
            (start, start.saturating_add(n as u64))
        }
    };
    // More than is brought at a time stays until it has been changed.
    let pin = end.saturating_sub(start) > PINNED;
    Ok((residency::bring(file.mount, file.ino, start, end, Pin::open_if(pin))?, at))
}

/// Bytes of one change that need not be held while they are brought.
const PINNED: u64 = 64 << 20;

/// How long the file behind `fd` is.
pub fn size_of_file(fd: c_int) -> u64 {
    sys::fstat(fd).map_or(0, |stat| stat.st_size as u64)
}

/// Whether the disk, which is full, has room for `bytes` now.
#[cold]
#[inline(never)]
pub fn made_room(index: usize, bytes: u64) -> bool {
    ask::request(index, Ask::Room { bytes }).is_ok()
}

/// Before a file of `ino` gets another `size`: what the agent has to do about what is not here. What it has done holds for
/// as long as the answer does.
///
/// Errors: those of [`ask::request`].
#[inline(never)]
fn resizing(index: usize, ino: u64, size: u64, now: u64) -> Result<Held, Errno> {
    if !residency::is_partial(index) {
        return Ok(Held::complete(index));
    }
    if size < now {
        if let Some(held) = residency::held(index, ino, 0, END) {
            return Ok(held);
        }
        // What was told is not evicted: the last piece stays.
        tell::note(index, &Intent::Written { ino, offset: size, length: u64::MAX });
        ask::request(index, Ask::Resize { ino, size })?;
    }
    Ok(Held::always(index))
}

/// The same for a file that is to be emptied or cut by its name. `opened` is a descriptor that writes to it, which is
/// closed: only who may write may cut, and what refuses the one refuses the other, too.
///
/// Errors: as there.
#[cold]
#[inline(never)]
pub fn resizing_opened(index: usize, opened: Answer, size: u64) -> Result<Held, Errno> {
    let Ok(fd) = opened else { return Ok(Held::always(index)) };
    let asked = match sys::fstat(fd as c_int) {
        Ok(stat) if sys::is_regular(&stat) && control::is_on(index, &stat) => {
            resizing(index, stat.st_ino, size, stat.st_size as u64)
        }
        _ => Ok(Held::always(index)),
    };
    sys::close(fd as c_int);
    asked
}

/// Flags of such a descriptor. (Not O_NONBLOCK, which a file that the agent guards refuses.)
pub const TO_RESIZE: u32 = k::O_WRONLY | k::O_CLOEXEC | k::O_NOCTTY;

/// One gated piece: `act` writes `n` bytes at `position`.
#[inline(always)]
pub fn piece(
    fd: c_int,
    file: &File,
    position: Position,
    n: usize,
    mut act: impl FnMut() -> Answer,
) -> Answer {
    // One copy of the code for all the calls there are.
    piece_of(fd, file, position, n, Act::new(&mut |()| act()))
}

#[inline(never)]
fn piece_of(fd: c_int, file: &File, position: Position, n: usize, mut act: Act<'_, (), Answer>) -> Answer {
    let mut full = false;
    loop {
        let mut inside = entered(fd, file, Needs::Written(position, n))?;
        tell_piece(&inside, fd, file, position, n);
        let answer = act.run(());
        if inside.overtaken() {
            // Where it went is behind us by now: all of it, to be sure.
            match position {
                Position::At(_) => tell_piece(&inside, fd, file, position, n),
                _ => inside.tell_range(file.ino, 0, u64::MAX),
            }
        }
        drop(inside);
        if answer != FULL || full || !made_room(file.mount, n as u64) {
            return answer;
        }
        full = true;
    }
}

const FULL: Answer = Err(Errno::of(errno::ENOSPC));

/// Writes `total` bytes in slices, as far as the quota lets it: `act(done, n, position)` writes `n` bytes of those after the
/// first `done`.
#[inline(always)]
pub fn sliced(
    fd: c_int,
    file: &File,
    position: Position,
    total: usize,
    mut act: impl FnMut(usize, usize, Position) -> Answer,
) -> Answer {
    let mut done = 0usize;
    loop {
        let left = total.saturating_sub(done);
        let position = position.after(done);
        let n = left.min(position.slice());
        let wrote = quota::allowed(fd, file, position, n, left)
            .and_then(|n| piece(fd, file, position, n, || act(done, n, position)));
        match wrote {
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
