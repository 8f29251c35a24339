//! Scripts: where a `#!` line names an interpreter below a prefix, or the script itself is known by a translated name,
//! the interpreter is started by us, as the kernel would start it, but with the names that the app knows. Knows nothing of
//! environments. What is run, and what runs it, is brought before. Runs between vfork and exec, so everything is on the stack.

use core::ffi::{c_char, c_int};
use core::mem::MaybeUninit;

use super::exec::{Strings, entries, with_room};
use crate::place::{self, CWD, Place};
use crate::sys::{self, Errno, PathBuf, k};
use crate::{absent, control, residency};

/// How much of a file the kernel looks at.
const HEAD: usize = 256;
/// How many scripts may be interpreters of each other, as the kernel has it.
const DEPTH: usize = 4;

/// The `#!` line of a file: the interpreter, and its argument where there is one, each NUL-terminated.
struct Line {
    text: [u8; HEAD + 1],
    argument: Option<usize>,
    interpreter: usize,
}

impl Line {
    /// The line at the head of a file, as the kernel reads it; `None` where there is none.
    #[inline(never)]
    fn parse(head: &[u8]) -> Option<Self> {
        let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
        let rest = head.strip_prefix(b"#!")?;
        let line = rest.split(|byte| matches!(byte, b'\n' | 0)).next()?;
        let interpreter = line.iter().position(|byte| !blank(byte))?;
        let name = line.get(interpreter..)?;
        let end = name.iter().position(blank).map(|at| interpreter + at);
        if end.is_none() && line.len() == rest.len() && head.len() == HEAD {
            // A name that is cut off is no name.
            return None;
        }
        let mut text = [0u8; HEAD + 1];
        let last = line.iter().rposition(|byte| !blank(byte))? + 1;
        for (to, from) in text.iter_mut().zip(line.get(..last)?) {
            *to = *from;
        }
        let mut argument = None;
        if let Some(end) = end.filter(|end| *end < last) {
            *text.get_mut(end)? = 0;
            argument = line.get(end..last)?.iter().position(|byte| !blank(byte)).map(|at| end + at);
        }
        Some(Self { text, argument, interpreter })
    }

    fn at(&self, place: usize) -> *const c_char {
        self.text.as_ptr().wrapping_add(place).cast()
    }
}

/// The line of the file at `place`, where the kernel would run it; with `loader`, a program's interpreter in its place.
#[inline(never)]
fn line_of(place: &Place, loader: bool) -> Option<Line> {
    // A pipe or a device is not opened, nor what may not be run.
    sys::stat_at(place.dirfd, place.path, 0)
        .ok()
        .filter(|stat| sys::is_regular(stat) && stat.st_mode & 0o111 != 0)?;
    sys::may_run(place.dirfd, place.path).ok()?;
    let fd = sys::openat(place.dirfd, place.path, (k::O_RDONLY | k::O_CLOEXEC) as c_int, 0).ok()? as c_int;
    let mut head = [0u8; HEAD];
    let read = sys::pread(fd, &mut head, 0);
    let line = head.get(..read.unwrap_or(0)).and_then(|head| {
        if loader && head.starts_with(b"\x7fELF\x02") { loader_of(fd, head) } else { Line::parse(head) }
    });
    sys::close(fd);
    line
}

/// The interpreter that a program of 64 bits names (PT_INTERP), which stands before what is loaded.
fn loader_of(fd: c_int, head: &[u8]) -> Option<Line> {
    const HEADER: usize = 64;
    const ENTRY: usize = 56;
    const INTERPRETER: u32 = 3;
    let entry = head
        .get(HEADER..)?
        .chunks_exact(ENTRY)
        .find(|entry| entry.starts_with(&INTERPRETER.to_le_bytes()))?;
    let offset = u64::from_le_bytes(entry.get(8..16)?.try_into().ok()?);
    let mut text = [0u8; HEAD + 1];
    sys::pread(fd, text.get_mut(..HEAD)?, offset as i64).ok()?;
    Some(Line { text, argument: None, interpreter: 0 })
}

/// Brings the program at `place`, and what runs it: the kernel reads both past all hooks.
///
/// Errors: those of [`residency::pin_place`].
#[inline(never)]
pub fn bring(place: &Place) -> Result<(), Errno> {
    if !residency::is_any_partial() {
        return Ok(());
    }
    let mut line = brought(*place)?;
    for _ in 0..DEPTH {
        let Some(next) = &line else { break };
        let mut room = PathBuf::new();
        line = brought(place::at(CWD, next.at(next.interpreter), &mut room)?)?;
    }
    Ok(())
}

/// Runs `start` until it does not say any more that the program is being written to: the agent may not have closed it yet,
/// or touch it once more. `start` answers whether it said so.
#[inline(never)]
pub fn past_writers(place: &Place, start: &mut dyn FnMut() -> (c_int, bool)) -> c_int {
    const TRIES: u32 = 100;
    let mut tries = 0;
    loop {
        let (answer, busy) = start();
        tries += 1;
        if !busy || tries > TRIES || !place.mount.is_some_and(residency::is_partial) {
            return answer;
        }
        sys::sleep_ns(1_000_000);
    }
}

/// Brings one of them; what names the next one.
#[inline(never)]
fn brought(place: Place) -> Result<Option<Line>, Errno> {
    absent::present(place)?;
    residency::pin_place(place)?;
    Ok(line_of(&place, true))
}

/// Calls `act` with the arguments `head` and then those of `arguments` after the first; `None` where they are too many.
///
/// # Safety
/// `arguments` must be null or an array of C strings.
#[inline(never)]
pub unsafe fn with_head(
    head: [*const c_char; 3],
    arguments: Strings,
    act: &mut dyn FnMut(Strings) -> c_int,
) -> Option<c_int> {
    let mut fill = |array: &mut [MaybeUninit<*const c_char>]| {
        let head = head.iter().copied().filter(|word| !word.is_null());
        // SAFETY: as above.
        let all = head.chain(unsafe { entries(arguments) }.skip(1)).chain([core::ptr::null()]);
        for (to, from) in array.iter_mut().zip(all) {
            to.write(from);
        }
        act(array.as_ptr().cast())
    };
    // SAFETY: as above.
    let count = unsafe { entries(arguments) }.count() + 4;
    with_room(count, &mut fill)
}

/// Calls `act` with the program and the arguments that running `path`, which lies at `place`, comes to.
///
/// # Safety
/// `path` must be a C string, `arguments` null or an array of such.
pub unsafe fn run(
    path: *const c_char,
    place: &Place,
    arguments: Strings,
    act: &mut dyn FnMut(*const c_char, Strings) -> c_int,
) -> c_int {
    if !control::table().is_some_and(|table| table.translates) {
        return act(place.path, arguments);
    }
    // SAFETY: as above.
    unsafe { descend(path, place, arguments, DEPTH, act) }
}

/// # Safety
/// That of [`run`].
#[inline(never)]
unsafe fn descend(
    path: *const c_char,
    place: &Place,
    arguments: Strings,
    depth: usize,
    act: &mut dyn FnMut(*const c_char, Strings) -> c_int,
) -> c_int {
    let Some(line) = line_of(place, false).filter(|_| depth > 0) else { return act(place.path, arguments) };
    let interpreter = line.at(line.interpreter);
    let mut room = PathBuf::new();
    let Ok(found) = place::at(CWD, interpreter, &mut room) else { return act(place.path, arguments) };
    if core::ptr::eq(found.path, interpreter) && core::ptr::eq(place.path, path) {
        // The kernel knows both by the names that the app knows.
        return act(place.path, arguments);
    }
    let argument = line.argument.map_or(core::ptr::null(), |at| line.at(at));
    let head = [
        interpreter,
        if argument.is_null() { path } else { argument },
        if argument.is_null() { argument } else { path },
    ];
    // SAFETY: as above; the line outlives the call.
    unsafe {
        let mut next = |arguments: Strings| descend(interpreter, &found, arguments, depth - 1, act);
        with_head(head, arguments, &mut next).unwrap_or_else(|| act(place.path, arguments))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::ffi::CStr;

    #[track_caller]
    fn parsed(head: &[u8]) -> Option<(String, Option<String>)> {
        let line = Line::parse(head)?;
        // SAFETY: both end with the NUL of the text.
        let text = |at| unsafe { CStr::from_ptr(line.at(at)) }.to_str().unwrap().to_owned();
        Some((text(line.interpreter), line.argument.map(text)))
    }

    #[test]
    fn lines_are_read_as_the_kernel_reads_them() {
        let one = |a: &str| Some((a.to_owned(), None));
        let two = |a: &str, b: &str| Some((a.to_owned(), Some(b.to_owned())));
        assert_eq!(parsed(b"#!/bin/sh\necho"), one("/bin/sh"));
        assert_eq!(parsed(b"#! \t/bin/sh \t\n"), one("/bin/sh"));
        assert_eq!(parsed(b"#!/usr/bin/env  python3 -u \nx"), two("/usr/bin/env", "python3 -u"));
        assert_eq!(parsed(b"#!relative"), one("relative"));
        assert_eq!(parsed(b"#!/bin/sh\0 -e\n"), one("/bin/sh"));
        assert_eq!(parsed(b"#!\n/bin/sh"), None);
        assert_eq!(parsed(b"#!   \t"), None);
        assert_eq!(parsed(b"\x7fELF"), None);
        assert_eq!(parsed(b""), None);
    }

    #[test]
    fn a_name_that_is_cut_off_is_none() {
        let mut head = [b'x'; HEAD];
        head[..2].copy_from_slice(b"#!");
        assert_eq!(parsed(&head), None);
        head[100] = b' ';
        let (name, argument) = parsed(&head).unwrap();
        assert_eq!((name.len(), argument.unwrap().len()), (98, HEAD - 101));
        assert_eq!(parsed(&head[..50]), Some(("x".repeat(48), None)));
    }
}
