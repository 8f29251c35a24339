//! stdio openers. What a stream reads and writes passes no hook: a file that one may write is told as such at once, and what
//! it may read is brought and stays.

use core::ffi::{CStr, c_char, c_int, c_void};

use storeshim_protocol::{Intent, OpenFlags};

use crate::gate;
use crate::hook::{fail, hook, real};
use crate::hooks::fd::{closed, my_close, my_fclose};
use crate::hooks::open::{Open, my_open, to_read, unled};
use crate::loader::{self, Real, get_errno};
use crate::names::{self, Entry};
use crate::place::{self, CWD};
use crate::sys::{self, PathBuf, k};
use crate::{absent, detour, fds};
use crate::{residency, streams, tell};

unsafe extern "C" {
    fn fileno(stream: *mut c_void) -> c_int;
}

/// The open(2) flags of a mode string, `None` where only libc knows what it means.
fn flags_of(mode: &[u8]) -> Option<u32> {
    let (first, rest) = mode.split_first()?;
    let plus = rest.iter().take_while(|c| **c != b',').any(|c| *c == b'+');
    let mut flags = match (first, plus) {
        (b'r', false) => k::O_RDONLY,
        (b'r', true) => k::O_RDWR,
        (b'w', false) => k::O_WRONLY | k::O_CREAT | k::O_TRUNC,
        (b'w', true) => k::O_RDWR | k::O_CREAT | k::O_TRUNC,
        (b'a', false) => k::O_WRONLY | k::O_CREAT | k::O_APPEND,
        (b'a', true) => k::O_RDWR | k::O_CREAT | k::O_APPEND,
        _ => return None,
    };
    for c in rest {
        match c {
            b'e' => flags |= k::O_CLOEXEC,
            b'x' => flags |= k::O_EXCL,
            // A character set.
            b',' => return None,
            _ => {}
        }
    }
    Some(flags)
}

/// Flags of a mode that the app handed, if it can be understood.
///
/// # Safety
/// `mode` must be null or a C string.
unsafe fn flags_at(mode: *const c_char) -> Option<u32> {
    // SAFETY: as above.
    (!mode.is_null()).then(|| unsafe { CStr::from_ptr(mode) }.to_bytes()).and_then(flags_of)
}

/// Remembers the descriptor of a stream, and tells that the file behind it may be written unseen if it may.
fn tell_unseen(fd: c_int, flags: u32) {
    streams::add(fd);
    if flags & k::O_ACCMODE == k::O_RDONLY || fd < 0 {
        return;
    }
    if let Some(file) = fds::found(fd) {
        tell::note(file.mount, &Intent::Opened { ino: file.ino, flags: unseen(flags) });
    }
}

fn unseen(flags: u32) -> OpenFlags {
    if flags & k::O_APPEND != 0 { OpenFlags::UNSEEN.with(OpenFlags::APPEND) } else { OpenFlags::UNSEEN }
}

/// What a stream that was just opened with `flags` may read or change is here from now on; it is closed where that fails.
///
/// # Safety
/// `stream` must be one, or null.
unsafe fn kept(stream: *mut c_void, flags: u32) -> *mut c_void {
    if stream.is_null() {
        return stream;
    }
    // SAFETY: as above.
    unsafe {
        match residency::keep(fileno(stream), flags) {
            Ok(()) => {
                streams::add(fileno(stream));
                stream
            }
            Err(errno) => {
                my_fclose(stream);
                fail(errno)
            }
        }
    }
}

/// A stream that writes to a descriptor which was opened for it.
///
/// # Safety
/// `mode` must be a C string.
unsafe fn stream_of(fd: c_int, mode: *const c_char, flags: u32) -> *mut c_void {
    if flags & (k::O_APPEND | k::O_ACCMODE) == k::O_APPEND | k::O_WRONLY && loader::is_glibc() {
        // Where glibc's fopen leaves it: programs ask ftell whether a file that they append to is a new one.
        let _ = sys::lseek(fd, 0, k::SEEK_END);
    }
    // An emptied file has nothing to be brought.
    let brought = if flags & k::O_TRUNC == 0 { residency::keep(fd, flags) } else { Ok(()) };
    let stream = match brought {
        // SAFETY: as above.
        Ok(()) => unsafe { fdopen::real()(fd, mode) },
        Err(errno) => fail(errno),
    };
    if stream.is_null() {
        closed(fds::forget(fd));
        sys::close(fd);
    } else {
        streams::add(fd);
    }
    stream
}

hook! {
    unsafe fn fopen | fopen64 | _IO_fopen(path: *const c_char, mode: *const c_char) -> *mut c_void => my_fopen {
        let mut room = PathBuf::new();
        let Some(flags) = flags_at(mode) else {
            let stream = match place::at(CWD, path, &mut room) {
                Ok(place) => absent::found(place, || real!(fopen)(place.path, mode)),
                Err(errno) => return fail(errno),
            };
            if !stream.is_null() {
                // Looked up at once, which tells the file and its name where it may be written.
                let fd = fileno(stream);
                fds::forget(fd);
                streams::add(fd);
                let _ = fds::known(fd);
            }
            return kept(stream, k::O_RDWR);
        };
        if flags & !k::O_CLOEXEC == k::O_RDONLY {
            return match place::at(CWD, path, &mut room) {
                Ok(place) => {
                    let stream = absent::found(place, || real!(fopen)(place.path, mode));
                    if stream.is_null() {
                        return detour::by_link(place, |inside| my_fopen(inside, mode)).unwrap_or(stream);
                    }
                    to_read(place, fileno(stream), flags as c_int);
                    kept(stream, flags)
                }
                Err(errno) => fail(errno),
            };
        }
        let open = Open {
            flags: flags as c_int,
            extra: OpenFlags::UNSEEN,
            call: &|dirfd, path, flags| sys::openat(dirfd, path, flags | k::O_LARGEFILE as c_int, 0o666),
        };
        match open.run(CWD, path, &mut room) {
            Ok(Ok(fd)) => stream_of(fd as c_int, mode, flags),
            Ok(Err(errno)) => fail(errno),
            Err(place) => {
                if flags & k::O_CREAT != 0
                    && let Some(opened) = unled(place, flags as c_int, 0o666)
                {
                    return match opened {
                        Ok(fd) => stream_of(fd as c_int, mode, flags),
                        Err(errno) => fail(errno),
                    };
                }
                if flags & k::O_CREAT != 0 && let Err(errno) = absent::present(place) {
                    return fail(errno);
                }
                let stream = absent::found(place, || real!(fopen)(place.path, mode));
                if stream.is_null() {
                    return detour::by_link(place, |inside| my_fopen(inside, mode)).unwrap_or(stream);
                }
                let fd = fileno(stream);
                fds::forget(fd);
                // A link outside may have led into a mount.
                tell_unseen(fd, flags);
                kept(stream, flags)
            }
        }
    }
}

hook! {
    unsafe fn fdopen | _IO_fdopen(fd: c_int, mode: *const c_char) -> *mut c_void => my_fdopen {
        let flags = flags_at(mode);
        if let Err(errno) = residency::keep(fd, flags.unwrap_or(k::O_RDWR)) {
            return fail(errno);
        }
        let had = streams::has(fd);
        tell_unseen(fd, flags.unwrap_or(k::O_RDWR));
        let stream: *mut c_void = real!(fdopen)(fd, mode);
        if stream.is_null() && !had {
            streams::remove(fd);
        }
        stream
    }
}

hook! {
    unsafe fn freopen | freopen64(path: *const c_char, mode: *const c_char, stream: *mut c_void) -> *mut c_void
        => my_freopen {
        let flags = flags_at(mode).unwrap_or(k::O_RDWR | k::O_CREAT | k::O_TRUNC);
        let before = if stream.is_null() { -1 } else { fileno(stream) };
        let mut room = PathBuf::new();
        let place = place::owned(CWD, path, &mut room).and_then(|place| absent::present(place).map(|()| place));
        let place = match place {
            Ok(place) => place,
            Err(errno) => return fail(errno),
        };
        if place.mount.is_some_and(residency::is_partial) && flags & k::O_TRUNC != 0 && !opened_before(path, mode) {
            let errno = get_errno();
            my_fclose(stream);
            return fail(errno);
        }
        let known = fds::forget(before);
        streams::remove(before);
        let reopened = match place.mount {
            Some(index) if flags & (k::O_CREAT | k::O_TRUNC) != 0 && !may_block(place) => {
                let inside = match gate::enter(index, 0) {
                    Ok(inside) => inside,
                    Err(errno) => return fail(errno),
                };
                if let Some(entry) = Entry::find(index, place.dirfd, &mut room) {
                    inside.tell(&entry.intent(&room));
                }
                if let Ok(stat) = sys::stat_at(place.dirfd, room.c_str(), 0)
                    && flags & k::O_TRUNC != 0
                {
                    inside.tell_range(stat.st_ino, 0, u64::MAX);
                }
                real!(freopen)(room.c_str(), mode, stream)
            }
            _ => real!(freopen)(place.path, mode, stream),
        };
        closed(known);
        if !reopened.is_null() {
            let fd = fileno(reopened);
            fds::forget(fd);
            tell_unseen(fd, flags);
            if let Some(file) = fds::found(fd).filter(|_| flags & k::O_CREAT != 0) {
                names::tell_by_path(file.mount, fd);
            }
        }
        kept(reopened, flags)
    }
}

/// Whether opening the place may wait for somebody: a FIFO.
fn may_block(place: place::Place) -> bool {
    sys::stat_at(place.dirfd, place.path, 0).is_ok_and(|stat| !sys::is_regular(&stat))
}

hook! {
    unsafe fn vdprintf(fd: c_int, format: *const c_char, arguments: *mut c_void) -> c_int => my_vdprintf {
        match fds::leave(fd) {
            Ok(()) => real!(vdprintf)(fd, format, arguments),
            Err(errno) => fail(errno),
        }
    }
}

hook! {
    unsafe fn __vdprintf_chk(fd: c_int, flag: c_int, format: *const c_char, arguments: *mut c_void) -> c_int
        => my_vdprintf_chk {
        match fds::leave(fd) {
            Ok(()) => real!(__vdprintf_chk)(fd, flag, format, arguments),
            Err(errno) => fail(errno),
        }
    }
}

static DPRINTF: Real = Real::new();
static DPRINTF_CHK: Real = Real::new();

/// What is to be called where a descriptor was told, and what it prints to was brought; else what fails in its stead.
fn told(fd: c_int, address: impl FnOnce() -> usize) -> usize {
    match fds::leave(fd) {
        Ok(()) => address(),
        Err(errno) => {
            let _: c_int = fail(errno);
            refused as extern "C" fn() -> c_int as usize
        }
    }
}

/// A dprintf that has failed; errno says why.
extern "C" fn refused() -> c_int {
    -1
}

/// Tells for dprintf; the real one's address.
extern "C" fn telling_dprintf(fd: c_int) -> usize {
    told(fd, || DPRINTF.address(c"dprintf"))
}

/// Tells for the fortified dprintf; the real one's address.
extern "C" fn telling_dprintf_chk(fd: c_int) -> usize {
    told(fd, || DPRINTF_CHK.address(c"__dprintf_chk"))
}

/// A variadic function that is told of and then jumped to with all its arguments, the floating ones too.
macro_rules! passed_on {
    ($name:ident, $telling:ident) => {
        /// Exported in libc's place.
        ///
        /// # Safety
        /// The contract of the C function.
        #[cfg(all(not(test), target_arch = "x86_64"))]
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                "push rax", "push rdi", "push rsi", "push rdx", "push rcx", "push r8", "push r9",
                "sub rsp, 128",
                "movaps [rsp], xmm0", "movaps [rsp + 16], xmm1", "movaps [rsp + 32], xmm2",
                "movaps [rsp + 48], xmm3", "movaps [rsp + 64], xmm4", "movaps [rsp + 80], xmm5",
                "movaps [rsp + 96], xmm6", "movaps [rsp + 112], xmm7",
                "call {telling}",
                "mov r11, rax",
                "movaps xmm0, [rsp]", "movaps xmm1, [rsp + 16]", "movaps xmm2, [rsp + 32]",
                "movaps xmm3, [rsp + 48]", "movaps xmm4, [rsp + 64]", "movaps xmm5, [rsp + 80]",
                "movaps xmm6, [rsp + 96]", "movaps xmm7, [rsp + 112]",
                "add rsp, 128",
                "pop r9", "pop r8", "pop rcx", "pop rdx", "pop rsi", "pop rdi", "pop rax",
                "jmp r11",
                telling = sym $telling)
        }

        /// Exported in libc's place.
        ///
        /// # Safety
        /// The contract of the C function.
        #[cfg(all(not(test), target_arch = "aarch64"))]
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                "stp x29, x30, [sp, #-208]!",
                "stp x0, x1, [sp, #16]", "stp x2, x3, [sp, #32]", "stp x4, x5, [sp, #48]", "stp x6, x7, [sp, #64]",
                "stp q0, q1, [sp, #80]", "stp q2, q3, [sp, #112]", "stp q4, q5, [sp, #144]",
                "stp q6, q7, [sp, #176]",
                "bl {telling}",
                "mov x16, x0",
                "ldp x0, x1, [sp, #16]", "ldp x2, x3, [sp, #32]", "ldp x4, x5, [sp, #48]", "ldp x6, x7, [sp, #64]",
                "ldp q0, q1, [sp, #80]", "ldp q2, q3, [sp, #112]", "ldp q4, q5, [sp, #144]",
                "ldp q6, q7, [sp, #176]",
                "ldp x29, x30, [sp], #208",
                "br x16",
                telling = sym $telling)
        }
    };
}

passed_on!(dprintf, telling_dprintf);
passed_on!(__dprintf_chk, telling_dprintf_chk);

/// Opens, as `mode` says, what libc is about to open without a hook: what that creates or empties is told. `false`, with
/// errno set, where it cannot be opened.
///
/// # Safety
/// `path` and `mode` must be C strings or null.
unsafe fn opened_before(path: *const c_char, mode: *const c_char) -> bool {
    // SAFETY: as above.
    let Some(flags) = (unsafe { flags_at(mode) }) else { return true };
    if flags & (k::O_CREAT | k::O_TRUNC) == 0 {
        return true;
    }
    // SAFETY: as above.
    let fd = unsafe { my_open(path, flags as c_int, 0o666) };
    if fd >= 0 {
        // SAFETY: it was opened just now.
        unsafe { my_close(fd) };
    }
    fd >= 0
}

hook! {
    unsafe fn setmntent | __setmntent(path: *const c_char, mode: *const c_char) -> *mut c_void => my_setmntent {
        let mut room = PathBuf::new();
        let place = match place::at(CWD, path, &mut room) {
            Ok(place) => place,
            Err(errno) => return fail(errno),
        };
        if place.mount.is_some() && !opened_before(path, mode) {
            return core::ptr::null_mut();
        }
        let stream = absent::found(place, || real!(setmntent)(place.path, mode));
        if !stream.is_null() {
            fds::forget(fileno(stream));
            tell_unseen(fileno(stream), flags_at(mode).unwrap_or(k::O_RDWR));
        }
        kept(stream, flags_at(mode).unwrap_or(k::O_RDWR))
    }
}

hook! {
    unsafe fn endmntent | __endmntent(stream: *mut c_void) -> c_int => my_endmntent {
        let fd = if stream.is_null() { -1 } else { fileno(stream) };
        let known = fds::forget(fd);
        streams::remove(fd);
        // libc closes it past our fclose.
        let result = real!(endmntent)(stream);
        closed(known);
        result
    }
}

hook! {
    /// What fopen of very old programs calls.
    unsafe fn _IO_file_fopen(stream: *mut c_void, path: *const c_char, mode: *const c_char, narrow: c_int) -> *mut c_void
        => my_io_file_fopen {
        let mut room = PathBuf::new();
        let place = match place::at(CWD, path, &mut room) {
            Ok(place) => place,
            Err(errno) => return fail(errno),
        };
        if place.mount.is_some() && !opened_before(path, mode) {
            return core::ptr::null_mut();
        }
        let opened = absent::found(place, || real!(_IO_file_fopen)(stream, place.path, mode, narrow));
        if !opened.is_null() {
            fds::forget(fileno(opened));
            tell_unseen(fileno(opened), flags_at(mode).unwrap_or(k::O_RDWR));
        }
        kept(opened, flags_at(mode).unwrap_or(k::O_RDWR))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_mean_what_the_standard_says() {
        assert_eq!(flags_of(b"r"), Some(k::O_RDONLY));
        assert_eq!(flags_of(b"rb+"), Some(k::O_RDWR));
        assert_eq!(flags_of(b"r+b"), Some(k::O_RDWR));
        assert_eq!(flags_of(b"w"), Some(k::O_WRONLY | k::O_CREAT | k::O_TRUNC));
        assert_eq!(flags_of(b"wx"), Some(k::O_WRONLY | k::O_CREAT | k::O_TRUNC | k::O_EXCL));
        assert_eq!(flags_of(b"a+e"), Some(k::O_RDWR | k::O_CREAT | k::O_APPEND | k::O_CLOEXEC));
        assert_eq!(flags_of(b"r,ccs=UTF-8"), None);
        assert_eq!(flags_of(b"q"), None);
        assert_eq!(flags_of(b""), None);
    }
}
