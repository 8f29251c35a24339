//! The lives of descriptors: what is remembered of a number must end with it.

use core::ffi::{c_int, c_void};

use storeshim_protocol::Intent;

use super::socket::turn_sender;
use crate::fds::{self, Known};
use crate::hook::{answer, fail, hook, real};
use crate::sys::{self, Answer, Errno, k};
use crate::{control, loader, quota, streams, tell};

/// Tells that a descriptor which could write is gone.
#[inline(always)]
pub fn closed(known: Known) {
    if known.writable()
        && !fds::lives_on(known)
        && let (Some(index), Some(ino)) = (known.mount(), known.ino())
    {
        tell::note(index, &Intent::Closed { ino });
    }
}

hook! {
    unsafe fn close | __close(fd: c_int) -> c_int => my_close {
        // Forgotten before: as soon as it is closed another thread may be given the number.
        let known = fds::forget(fd);
        let result = real!(close)(fd);
        closed(known);
        result
    }
}

hook! {
    unsafe fn close_range(first: u32, last: u32, flags: c_int) -> c_int => my_close_range {
        const UNSHARE: c_int = 2;
        const CLOEXEC: c_int = 4;
        if flags & UNSHARE != 0 && loader::single_threaded() != Some(true) {
            fds::remember_nothing();
        } else if flags & CLOEXEC == 0 {
            fds::forget_range(first, last, closed);
        }
        // Not libc's, which need not have it.
        answer(sys::raw(k::__NR_close_range as usize, first as usize, last as usize, flags as usize, 0, 0, 0))
    }
}

hook! {
    unsafe fn closefrom(first: c_int) => my_closefrom {
        fds::forget_range(first.max(0) as u32, u32::MAX, closed);
        real!(closefrom)(first);
    }
}

/// A descriptor that is new: one that has taken the number of a stream is read and written past all hooks from now on, or is
/// none where its file cannot be brought.
#[inline(always)]
pub fn new(fd: c_int) -> c_int {
    if streams::has(fd) { answer(taken(fd)) } else { fd }
}

/// The same of a descriptor that has taken such a number.
#[cold]
#[inline(never)]
pub fn taken(fd: c_int) -> Answer {
    fds::leave(fd).map(|()| fd as usize).inspect_err(|_| {
        closed(fds::forget(fd));
        sys::close(fd);
    })
}

/// `got` is a duplicate of `old`, if it is a descriptor at all.
fn duplicated(old: c_int, got: c_int) -> c_int {
    if got >= 0 {
        fds::duplicate(old, got);
    }
    new(got)
}

hook! {
    unsafe fn dup(old: c_int) -> c_int => my_dup {
        duplicated(old, real!(dup)(old))
    }
}

/// A duplicate that takes the place of `new`.
fn replace(old: c_int, new: c_int, act: impl FnOnce() -> c_int) -> c_int {
    if old == new {
        return act();
    }
    // A redirection: what the stream of that number reads and prints is there from now on.
    if streams::has(new)
        && let Err(errno) = fds::leave(old)
    {
        return fail(errno);
    }
    let known = fds::forget(new);
    let result = act();
    if result >= 0 {
        closed(known);
        fds::duplicate(old, new);
        if known != Known::UNKNOWN && loader::single_threaded() != Some(true) {
            // Another thread may be about to write to the number, or look it up, and take it for the file before.
            fds::tell_unseen(new);
        }
    }
    result
}

hook! {
    unsafe fn dup2 | __dup2(old: c_int, new: c_int) -> c_int => my_dup2 {
        replace(old, new, || real!(dup2)(old, new))
    }
}

hook! {
    unsafe fn dup3(old: c_int, new: c_int, flags: c_int) -> c_int => my_dup3 {
        replace(old, new, || real!(dup3)(old, new, flags))
    }
}

hook! {
    unsafe fn fcntl | fcntl64 | __fcntl(fd: c_int, command: c_int, argument: usize) -> c_int => my_fcntl {
        let result = real!(fcntl)(fd, command, argument);
        if result >= 0 {
            match command as u32 {
                k::F_DUPFD | k::F_DUPFD_CLOEXEC => return duplicated(fd, result),
                // O_APPEND may have come or gone; what else is known stays true.
                k::F_SETFL => fds::set_appends(fd, argument as u32 & k::O_APPEND != 0),
                _ => {}
            }
        }
        result
    }
}

unsafe extern "C" {
    fn fileno(stream: *mut c_void) -> c_int;
    fn __fpending(stream: *mut c_void) -> usize;
    fn __fpurge(stream: *mut c_void);
}

/// Whether what a stream has written, and what is in its buffer, fits its volume's quota. The writing itself passes no hook, so
/// this is where its program hears of it.
///
/// # Safety
/// `stream` must be one, or null.
unsafe fn fits(stream: *mut c_void) -> Result<(), Errno> {
    if stream.is_null() || !control::some_has_quota() {
        return Ok(());
    }
    // SAFETY: as above.
    let (fd, pending) = unsafe { (fileno(stream), __fpending(stream)) };
    if streams::has(fd) { quota::streamed(fd, pending) } else { Ok(()) }
}

hook! {
    unsafe fn fflush | _IO_fflush(stream: *mut c_void) -> c_int => my_fflush {
        match fits(stream) {
            Ok(()) => real!(fflush)(stream),
            Err(errno) => fail(errno),
        }
    }
}

hook! {
    unsafe fn fflush_unlocked(stream: *mut c_void) -> c_int => my_fflush_unlocked {
        match fits(stream) {
            Ok(()) => real!(fflush_unlocked)(stream),
            Err(errno) => fail(errno),
        }
    }
}

hook! {
    unsafe fn fclose | _IO_fclose(stream: *mut c_void) -> c_int => my_fclose {
        let fits = fits(stream);
        if fits.is_err() {
            __fpurge(stream);
        }
        let known = if stream.is_null() { fds::forget(-1) } else { fds::forget(fileno(stream)) };
        if !stream.is_null() {
            streams::remove(fileno(stream));
        }
        // What is still buffered is written now, before the end is told.
        let result = real!(fclose)(stream);
        closed(known);
        match fits {
            Err(errno) if result == 0 => fail(errno),
            _ => result,
        }
    }
}

hook! {
    /// Which descriptors these are only libc knows: whatever is still open is looked up again.
    unsafe fn fcloseall() -> c_int => my_fcloseall {
        let result = real!(fcloseall)();
        fds::forget_range(0, u32::MAX, |_| ());
        streams::remove_all();
        result
    }
}

hook! {
    unsafe fn pidfd_getfd(process: c_int, fd: c_int, flags: u32) -> c_int => my_pidfd_getfd {
        let got = real!(pidfd_getfd)(process, fd, flags);
        fds::forget(got);
        new(got)
    }
}

hook! {
    unsafe fn pclose(stream: *mut c_void) -> c_int => my_pclose {
        if !stream.is_null() {
            fds::forget(fileno(stream));
        }
        real!(pclose)(stream)
    }
}

/// Forgets every descriptor that a message brought.
///
/// # Safety
/// `message` must be what recvmsg filled in.
unsafe fn forget_received(message: *const Message) {
    const SOL_SOCKET: c_int = 1;
    const SCM_RIGHTS: c_int = 1;
    // SAFETY: as above.
    let Some(message) = (unsafe { message.as_ref() }) else { return };
    let (mut at, mut left) = (message.control, message.control_len);
    while !at.is_null() && left >= size_of::<ControlHeader>() {
        // SAFETY: a whole header lies within the control data.
        let header = unsafe { at.cast::<ControlHeader>().read_unaligned() };
        if header.len < size_of::<ControlHeader>() || header.len > left {
            return;
        }
        if header.level == SOL_SOCKET && header.kind == SCM_RIGHTS {
            let data = at.wrapping_byte_add(size_of::<ControlHeader>()).cast::<c_int>();
            for i in 0..(header.len - size_of::<ControlHeader>()) / size_of::<c_int>() {
                // SAFETY: within the header's length, which was checked.
                let fd = unsafe { data.add(i).read_unaligned() };
                fds::forget(fd);
                if streams::has(fd) && fds::leave(fd).is_err() {
                    // The call that received it has succeeded.
                    fds::withhold(fd);
                }
            }
        }
        let step = header.len.next_multiple_of(size_of::<usize>());
        if step >= left {
            return;
        }
        at = at.wrapping_byte_add(step);
        left -= step;
    }
}

/// msghdr.
#[repr(C)]
pub struct Message {
    /// The other side's address.
    pub name: *mut c_void,
    /// Its length in bytes.
    pub name_len: u32,
    /// The data.
    pub vectors: *mut c_void,
    /// How many vectors.
    pub vector_count: usize,
    /// Descriptors and the like.
    pub control: *mut c_void,
    /// Its length in bytes.
    pub control_len: usize,
    /// What recvmsg(2) says of it.
    pub flags: c_int,
}

#[repr(C)]
struct ControlHeader {
    len: usize,
    level: c_int,
    kind: c_int,
}

/// mmsghdr.
#[repr(C)]
pub struct MultiMessage {
    /// The message.
    pub header: Message,
    /// Bytes that were sent or received.
    pub len: u32,
}

hook! {
    unsafe fn recvmsg(socket: c_int, message: *mut Message, flags: c_int) -> isize => my_recvmsg {
        if sys::leads_nowhere(message) {
            // By the kernel: musl's looks into it.
            return answer(sys::raw(k::__NR_recvmsg as usize, socket as usize, message as usize, flags as usize, 0, 0, 0));
        }
        let capacity = (*message).name_len;
        let result = real!(recvmsg)(socket, message, flags);
        if result >= 0 && let Some(message) = message.as_mut() {
            if message.control_len != 0 {
                forget_received(message);
            }
            turn_sender(message, capacity);
        }
        result
    }
}

hook! {
    unsafe fn recvmmsg(socket: c_int, messages: *mut MultiMessage, count: u32, flags: c_int, timeout: *mut c_void)
        -> c_int => my_recvmmsg {
        // Senders of further messages keep the names that the kernel gives them.
        let mut capacities = [0u32; 64];
        for (at, capacity) in capacities.iter_mut().enumerate().take(if sys::leads_nowhere(messages) { 0 } else { count as usize }) {
            *capacity = (*messages.add(at)).header.name_len;
        }
        let result = real!(recvmmsg)(socket, messages, count, flags, timeout);
        for at in 0..result.max(0) as usize {
            let message = &mut (*messages.add(at)).header;
            forget_received(message);
            turn_sender(message, capacities.get(at).copied().unwrap_or(0));
        }
        result
    }
}
