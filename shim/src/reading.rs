//! Reading from a file of which something may not be here: checked before, read, checked again. What was taken away
//! meanwhile is read once more, so that no zeros are believed that are none. It must not know which hook was called.
//!
//! A read at the descriptor's position moves that, and so is made once. Where it turns out that its bytes may not have been
//! here, they are read again from where it began. To know where that was, threads do not read at one position side by
//! side before all of it is here to stay. Another process with the same position can still make it unclear; then what was
//! read is compared with the file.
//!
//! To ask for the position costs as much as a small read. What is not here is read as zeros, of a whole piece at least: where
//! no zero is found in what was read it was here, wherever it was read, and nothing need be asked.

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU64, Ordering};

use storeshim_protocol::request::Pin;

use crate::act::Act;
use crate::fds::{self, File};
use crate::hook::answer;
use crate::loader;
use crate::residency::{self, END};
use crate::sys::{self, Answer, Errno, errno, k};

/// What is waited for at a time, in bytes. A longer read is made of such parts.
const PART: usize = 8 << 20;
/// Vectors that the kernel takes at most.
const VECTORS_MAX: usize = 1024;
/// After so many tries in vain the bytes are asked to stay.
const TRIES: u32 = 3;

/// A read as the kernel is asked for it: read(2), pread64(2), readv(2), preadv(2) or preadv2(2), whose arguments stand in
/// the same places as far as each has them.
#[derive(Clone, Copy)]
pub struct Read {
    number: u32,
    fd: c_int,
    /// The buffer, or the vectors.
    at: usize,
    /// Bytes, or vectors.
    n: usize,
    /// [`CURSOR`] for the descriptor's position.
    offset: i64,
    flags: c_int,
}

/// The descriptor's own position, in place of an offset.
const CURSOR: i64 = -1;

impl Read {
    /// read(2).
    #[inline(always)]
    pub fn here(fd: c_int, out: *mut c_void, n: usize) -> Self {
        Self { number: k::__NR_read, fd, at: out as usize, n, offset: CURSOR, flags: 0 }
    }

    /// pread64(2).
    #[inline(always)]
    pub fn there(fd: c_int, out: *mut c_void, n: usize, offset: i64) -> Self {
        Self { number: k::__NR_pread64, fd, at: out as usize, n, offset, flags: 0 }
    }

    /// readv(2).
    #[inline(always)]
    pub fn vectors_here(fd: c_int, vectors: *const k::iovec, count: c_int) -> Self {
        Self { number: k::__NR_readv, fd, at: vectors as usize, n: count as usize, offset: CURSOR, flags: 0 }
    }

    /// preadv(2), or preadv2(2) where `number` is that.
    #[inline(always)]
    pub fn vectors_there(
        number: u32,
        fd: c_int,
        vectors: *const k::iovec,
        count: c_int,
        offset: i64,
        flags: c_int,
    ) -> Self {
        Self { number, fd, at: vectors as usize, n: count as usize, offset, flags }
    }

    /// Makes the call.
    fn make(&self) -> Answer {
        // SAFETY: the buffers are those that the app handed for it to be read into.
        unsafe {
            sys::raw(
                self.number as usize,
                self.fd as usize,
                self.at,
                self.n,
                self.offset as usize,
                0,
                self.flags as usize,
            )
        }
    }

    fn is_vectored(&self) -> bool {
        !matches!(self.number, k::__NR_read | k::__NR_pread64)
    }

    fn is_at_cursor(&self) -> bool {
        self.offset == CURSOR && matches!(self.number, k::__NR_read | k::__NR_readv | k::__NR_preadv2)
    }

    /// Where the bytes go; `None` where the kernel will refuse them. `one` is room for a buffer that is no vector.
    fn targets<'v>(&self, one: &'v mut k::iovec) -> Option<&'v [k::iovec]> {
        if !self.is_vectored() {
            *one = k::iovec { iov_base: self.at as *mut _, iov_len: self.n as _ };
            return Some(core::slice::from_ref(one));
        }
        let at = self.at as *const k::iovec;
        if self.n > VECTORS_MAX || sys::leads_nowhere(at) {
            return None;
        }
        // SAFETY: the app vouches for its vectors.
        Some(unsafe { core::slice::from_raw_parts(at, self.n) })
    }

    /// The same into a part of the buffers alone, from another offset.
    fn part(&self, vector: &k::iovec, offset: i64) -> Self {
        let (at, n) = if self.is_vectored() {
            (core::ptr::from_ref(vector) as usize, 1)
        } else {
            (vector.iov_base as usize, vector.iov_len as usize)
        };
        Self { at, n, offset, ..*self }
    }

    /// The same at an offset.
    fn at_offset(&self) -> Self {
        let number = match self.number {
            k::__NR_read => k::__NR_pread64,
            k::__NR_readv => k::__NR_preadv,
            number => number,
        };
        Self { number, ..*self }
    }
}

/// The file behind the descriptor, which may have changed hands since.
enum Outcome {
    Done(Answer),
    Another,
}
use Outcome::{Another, Done};

impl From<Answer> for Outcome {
    fn from(answer: Answer) -> Self {
        Done(answer)
    }
}

/// Reads from what may be a file that is not here as a whole; by `real` where it is none, or one of a complete mount.
#[inline(never)]
pub fn read(call: &Read, mut real: Act<'_, (), isize>) -> isize {
    let done = match fds::remembered(call.fd) {
        Some(file) if residency::is_partial(file.mount) => quick(call, &file).or_else(|| lacking(call)),
        Some(_) => None,
        None if fds::may_lack(call.fd) => lacking(call),
        None => None,
    };
    if let Some(done) = done {
        return answer(done);
    }
    let got = real.run(());
    // The first byte of a mount may have gone while it was read.
    if got > 0
        && fds::may_lack(call.fd)
        && let Some(done) = again(call, got as usize)
    {
        return answer(done);
    }
    got
}

/// A read of bytes that the table shows, of a file that is known. `None` is for [`lacking`] to find out.
#[inline(always)]
fn quick(call: &Read, file: &File) -> Option<Answer> {
    let table = residency::table(file.mount)?;
    let from = |start: u64| (start, start.saturating_add(call.n as u64));
    let (mut guess, all) = (None, (0, END));
    let (start, end) = match call.number {
        k::__NR_pread64 if call.offset >= 0 => from(call.offset as u64),
        // Alone, with nobody to take turns with.
        k::__NR_read if loader::single_threaded() == Some(true) => {
            guess = next_of(call.fd, file.ino);
            guess.map_or(all, from)
        }
        // Where everything is here it does not matter where the descriptor stands.
        _ => all,
    };
    let stamp = table.check(file.ino, start, end)?;
    let got = call.make();
    let Ok(n @ 1..) = got else { return Some(got) };
    let mut right = table.still(stamp) && fds::is_still(call.fd, file);
    if let Some(guess) = guess {
        let now = guess.wrapping_add(n as u64);
        right =
            right && (table.is_calm(stamp) && lacks_nothing(call.at, n) || position_of(call.fd) == Some(now));
        remember_next(call.fd, file.ino, now);
    }
    if right {
        return Some(got);
    }
    moved(call.fd);
    if call.is_at_cursor() { Some(settled(call, None, n)) } else { None }
}

/// Whether nothing was missing of the `n` bytes that a read has put at `at`, to judge by them alone, while nothing was
/// brought: then what is missing lies between borders of pieces, so that a part of it is at the beginning, at the end, or in
/// each page between them. (A page, not a piece: an agent that was killed may have left the rest of a piece unwritten.)
#[inline(always)]
fn lacks_nothing(at: usize, n: usize) -> bool {
    const PAGE: usize = 4096;
    // SAFETY: the kernel has just filled it, and this process has no other thread that could take it away.
    let is_zero = |i: usize| unsafe { (at as *const u8).wrapping_add(i).read_volatile() == 0 };
    n > 0 && !is_zero(n - 1) && !(0..n).step_by(PAGE).any(is_zero)
}

/// As [`read`]; `None` where the call may be made as it is.
#[inline(never)]
fn lacking(call: &Read) -> Option<Answer> {
    loop {
        let file = residency::lacking(call.fd)?;
        match in_parts(call, &file) {
            Done(answer) => return Some(answer),
            Another => {}
        }
    }
}

/// After a call that has read `got` bytes, while the mount became partial perhaps: reads again what may be wrong.
#[cold]
#[inline(never)]
pub fn again(call: &Read, got: usize) -> Option<Answer> {
    if call.is_at_cursor() { Some(settled(call, None, got)) } else { lacking(call) }
}

/// Bytes that `count` vectors have room for; 0 where the kernel refuses them.
///
/// # Safety
/// There must be so many, unless they lead nowhere or are too many.
pub unsafe fn total_of(vectors: *const k::iovec, count: usize) -> usize {
    if count > VECTORS_MAX || sys::leads_nowhere(vectors) {
        return 0;
    }
    // SAFETY: as above.
    total(unsafe { core::slice::from_raw_parts(vectors, count) })
}

/// Bytes that the vectors have room for.
fn total(vectors: &[k::iovec]) -> usize {
    vectors.iter().fold(0, |sum: usize, vector| sum.saturating_add(vector.iov_len as usize))
}

#[inline(never)]
fn in_parts(call: &Read, file: &File) -> Outcome {
    let mut one = k::iovec { iov_base: core::ptr::null_mut(), iov_len: 0 };
    let Some(vectors) = call.targets(&mut one) else { return call.make().into() };
    match total(vectors) {
        0 => call.make().into(),
        n if n <= PART => part(call, file, n),
        n => each_part(call, file, vectors, n),
    }
}

/// Reads `n` bytes by parts.
fn each_part(call: &Read, file: &File, vectors: &[k::iovec], n: usize) -> Outcome {
    let (mut done, mut within, mut at) = (0usize, 0usize, vectors.iter());
    let mut vector = at.next();
    while let (Some(all), true) = (vector, done < n) {
        let left = (all.iov_len as usize).saturating_sub(within);
        if left == 0 {
            (vector, within) = (at.next(), 0);
            continue;
        }
        let asked = left.min(n - done).min(PART);
        let target = k::iovec { iov_base: all.iov_base.wrapping_byte_add(within), iov_len: asked as _ };
        let offset = if call.is_at_cursor() { CURSOR } else { call.offset.wrapping_add(done as i64) };
        match part(&call.part(&target, offset), file, asked) {
            Done(Ok(got)) => {
                done += got;
                within += got;
                if got < asked {
                    break;
                }
            }
            Done(Err(errno)) if done == 0 => return Done(Err(errno)),
            Another if done == 0 => return Another,
            // A short read; the next call meets what is in the way.
            _ => break,
        }
    }
    Done(Ok(done))
}

/// Threads of this process that read at a position, by descriptor: how many now in the low half, how many ever in the high
/// one. One that is jumped out of its call is counted for ever; who comes after it then wants all of the file.
static TURNS: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];

/// A thread's turn to read at a descriptor's position.
struct Turn {
    word: Option<&'static AtomicU64>,
    before: u64,
}

impl Turn {
    const ENTRY: u64 = 1 << 32 | 1;

    fn take(fd: c_int) -> Self {
        let word = TURNS.get(fd as usize % TURNS.len());
        Self { word, before: word.map_or(0, |word| word.fetch_add(Self::ENTRY, Ordering::SeqCst)) }
    }

    /// Nobody was reading when it began.
    fn was_first(&self) -> bool {
        self.before as u32 == 0
    }

    /// Nobody has begun since.
    fn is_last(&self) -> bool {
        self.word.is_some_and(|word| word.load(Ordering::SeqCst) >> 32 == (self.before >> 32) + 1)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(word) = self.word {
            word.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Reads `n` bytes, which are brought before where they are not here.
fn part(call: &Read, file: &File, n: usize) -> Outcome {
    if call.is_at_cursor() {
        return part_here(call, file, n);
    }
    for tries in 0u32.. {
        if call.offset < 0 {
            break;
        }
        let start = call.offset as u64;
        let held = match brought(call, file, start, start.saturating_add(n as u64), tries > TRIES) {
            Ok(held) => held,
            Err(errno) => return Done(Err(errno)),
        };
        let got = call.make();
        let same = fds::is_still(call.fd, file);
        if !matches!(got, Ok(1..)) || held.still() && same {
            return Done(got);
        }
        if !same {
            return Another;
        }
    }
    call.make().into()
}

/// The same at the descriptor's position.
fn part_here(call: &Read, file: &File, n: usize) -> Outcome {
    let turn = Turn::take(call.fd);
    let guess = next_of(call.fd, file.ino).filter(|_| turn.was_first());
    let Some(start) = guess.or_else(|| position_of(call.fd)) else { return call.make().into() };
    // Where it is not the only one, it does not matter where it reads.
    let (first, last) = if turn.was_first() { (start, start.saturating_add(n as u64)) } else { (0, END) };
    let held = match brought(call, file, first, last, !turn.was_first()) {
        Ok(held) => held,
        Err(errno) => return Done(Err(errno)),
    };
    let got = match call.make() {
        Ok(got) if got > 0 => got,
        other => return Done(other),
    };
    let same = fds::is_still(call.fd, file);
    // Who has begun since has read only when all was here.
    let alone = turn.was_first() && turn.is_last();
    let now = if alone { position_of(call.fd) } else { None };
    if held.still() && same && (!alone || now == Some(start.wrapping_add(got as u64))) {
        if let Some(now) = now {
            remember_next(call.fd, file.ino, now);
        }
        return Done(Ok(got));
    }
    moved(call.fd);
    // A guess may be the app's former position: rather the present one.
    Done(settled(call, Some(start).filter(|_| same && guess.is_none()), got))
}

/// Where the next read of each descriptor begins, if nobody moves it: above the low 16 bits, which are the inode's. A guess,
/// which spares one look of two; 0 is none.
static NEXT: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];

fn next_of(fd: c_int, ino: u64) -> Option<u64> {
    let word = NEXT.get(fd as usize)?.load(Ordering::Relaxed);
    (word != 0 && (word ^ ino) as u16 == 0).then_some(word >> 16)
}

fn remember_next(fd: c_int, ino: u64, at: u64) {
    if let Some(word) = NEXT.get(fd as usize)
        && at < 1 << 48
    {
        word.store(at << 16 | ino & 0xffff, Ordering::Relaxed);
    }
}

/// The position of `fd` is `at`, as lseek(2) has said.
#[inline(always)]
pub fn stands(fd: c_int, at: i64) {
    if let Some(file) = fds::remembered(fd)
        && at >= 0
        && residency::is_partial(file.mount)
    {
        remember_next(fd, file.ino, at as u64);
    }
}

/// The position of `fd` is going to be moved, or has been.
#[inline(always)]
pub fn moved(fd: c_int) {
    if let Some(word) = NEXT.get(fd as usize)
        && word.load(Ordering::Relaxed) != 0
    {
        word.store(0, Ordering::Relaxed);
    }
}

fn position_of(fd: c_int) -> Option<u64> {
    sys::lseek(fd, 0, k::SEEK_CUR).ok().map(|at| at as u64)
}

/// Brings bytes; a read that must not wait has EAGAIN instead, and they are on their way.
#[inline(never)]
fn brought(call: &Read, file: &File, start: u64, end: u64, pin: bool) -> Result<residency::Held, Errno> {
    if call.flags as u32 & k::RWF_NOWAIT != 0 && call.number == k::__NR_preadv2 {
        return residency::held(file.mount, file.ino, start, end).ok_or_else(|| {
            residency::hint(file.mount, file.ino, start, end);
            Errno::of(errno::EAGAIN)
        });
    }
    residency::bring(file.mount, file.ino, start, end, Pin::open_if(pin))
}

/// What a read at the descriptor's position has read, `got` bytes of which it is not sure that they were here: they are
/// read again. `start` is where the position stood before, where that is known.
#[cold]
#[inline(never)]
fn settled(call: &Read, start: Option<u64>, got: usize) -> Answer {
    // What is of no mount, or of a complete one, was here.
    let Some(file) = residency::lacking(call.fd) else { return Ok(got) };
    let mut one = k::iovec { iov_base: core::ptr::null_mut(), iov_len: 0 };
    let Some(vectors) = call.targets(&mut one) else { return Ok(got) };
    // Wherever it was read: what was not here was zeros.
    if !has_zeros(vectors, got) {
        return Ok(got);
    }
    let now = sys::lseek(call.fd, 0, k::SEEK_CUR)? as u64;
    let likely = now.wrapping_sub(got as u64);
    let mut places = [start.unwrap_or(likely), likely].into_iter();
    if start.is_some_and(|start| start != likely) {
        // Somebody else moved it, before or after.
        residency::bring(file.mount, file.ino, 0, END, Pin::Open)?;
        places
            .find(|at| may_be(call.fd, vectors, got, *at))
            .map_or(UNCLEAR, |at| once_more(call, &file, vectors, got, at))
    } else {
        once_more(call, &file, vectors, got, likely)
    }
}

const UNCLEAR: Answer = Err(Errno::of(errno::EIO));

fn once_more(call: &Read, file: &File, vectors: &[k::iovec], got: usize, at: u64) -> Answer {
    let again = Read { offset: at as i64, ..call.at_offset() };
    match each_part(&again, file, vectors, got) {
        Done(answer) => answer,
        Another => UNCLEAR,
    }
}

/// Whether there is a zero among the first `got` bytes of the vectors.
fn has_zeros(vectors: &[k::iovec], got: usize) -> bool {
    let mut left = got;
    vectors.iter().any(|vector| {
        let n = (vector.iov_len as usize).min(left);
        left -= n;
        // SAFETY: bytes that the kernel has just filled.
        n > 0 && unsafe { core::slice::from_raw_parts(vector.iov_base.cast::<u8>(), n) }.contains(&0)
    })
}

/// Whether the first `got` bytes of the vectors can be what was read at `at` of the file, all of which is here now: they are
/// the same, or zeros.
fn may_be(fd: c_int, vectors: &[k::iovec], got: usize, mut at: u64) -> bool {
    let mut left = got;
    for vector in vectors {
        let n = (vector.iov_len as usize).min(left);
        if n == 0 {
            continue;
        }
        left -= n;
        // SAFETY: bytes that the kernel has just filled.
        let filled = unsafe { core::slice::from_raw_parts(vector.iov_base.cast::<u8>(), n) };
        for bytes in filled.chunks(512) {
            let mut room = [0u8; 512];
            let same = room
                .get_mut(..bytes.len())
                .is_some_and(|room| sys::pread(fd, room, at as i64) == Ok(bytes.len()) && room == bytes);
            if !same {
                return false;
            }
            at = at.wrapping_add(bytes.len() as u64);
        }
        if left == 0 {
            break;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: usize = storeshim_protocol::residency::PIECE as usize;

    #[test]
    fn what_lacks_nothing_is_what_the_file_has() {
        let mut seed = 12345u64;
        let mut random = |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) as usize % below
        };
        let (mut right, mut wrong) = (0, 0);
        for _ in 0..3000 {
            let mut file = vec![1u8; 3 * PIECE];
            (0..random(3)).for_each(|_| file[random(3 * PIECE)] = 0);
            let mut disk = file.clone();
            for hole in 0..random(3) {
                // Some have been begun by an agent that was killed.
                let begun = random(2) * random(PIECE / 4096) * 4096;
                disk[hole * PIECE + begun..(hole + 1) * PIECE].fill(0);
            }
            let start = random(3 * PIECE - 1);
            let read = start..(start + 1 + random(2 * PIECE)).min(3 * PIECE);
            let (file, read) = (&file[read.clone()], &disk[read]);
            if lacks_nothing(read.as_ptr() as usize, read.len()) {
                assert!(read == file);
                right += 1;
            } else {
                assert!(read.contains(&0));
                wrong += 1;
            }
        }
        assert!(right > 500 && wrong > 500, "{right} {wrong}");
    }
}
