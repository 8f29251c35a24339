//! stdio openers. What a stream writes passes no hook, so a file that one may write is told as such at once.

use core::ffi::{CStr, c_char, c_int, c_void};

use storeshim_protocol::{Intent, OpenFlags};

use crate::fds;
use crate::gate;
use crate::hook::{fail, hook, path_hook, real};
use crate::hooks::fd::closed;
use crate::hooks::open::Open;
use crate::names::{self, Entry};
use crate::place::{self, CWD};
use crate::sys::{self, PathBuf, k};
use crate::tell;

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

/// Tells that the file behind a stream's descriptor may be written unseen.
fn tell_unseen(fd: c_int, flags: u32) {
    if flags & k::O_ACCMODE == k::O_RDONLY || fd < 0 {
        return;
    }
    if let Some(file) = fds::file(fd) {
        tell::note(file.mount, &Intent::Opened { ino: file.ino, flags: unseen(flags) });
    }
}

fn unseen(flags: u32) -> OpenFlags {
    if flags & k::O_APPEND != 0 { OpenFlags::UNSEEN.with(OpenFlags::APPEND) } else { OpenFlags::UNSEEN }
}

hook! {
    unsafe fn fopen | fopen64 | _IO_fopen(path: *const c_char, mode: *const c_char) -> *mut c_void => my_fopen {
        let mut room = PathBuf::new();
        let Some(flags) = flags_at(mode) else {
            return match place::at(CWD, path, &mut room) {
                Ok(place) => real!(fopen)(place.path, mode),
                Err(errno) => fail(errno),
            };
        };
        let open = Open {
            flags: flags as c_int,
            extra: OpenFlags::UNSEEN,
            call: |dirfd, path, flags| sys::openat(dirfd, path, flags | k::O_LARGEFILE as c_int, 0o666),
        };
        match open.run(CWD, path, &mut room) {
            Ok(Ok(fd)) => {
                let stream = fdopen::real()(fd as c_int, mode);
                if stream.is_null() {
                    closed(fds::forget(fd as c_int));
                    sys::close(fd as c_int);
                }
                stream
            }
            Ok(Err(errno)) => fail(errno),
            Err(place) => {
                let stream = real!(fopen)(place.path, mode);
                if !stream.is_null() {
                    let fd = fileno(stream);
                    fds::forget(fd);
                    // A link outside may have led into a mount.
                    tell_unseen(fd, flags);
                }
                stream
            }
        }
    }
}

hook! {
    unsafe fn fdopen | _IO_fdopen(fd: c_int, mode: *const c_char) -> *mut c_void => my_fdopen {
        if let Some(flags) = flags_at(mode) {
            tell_unseen(fd, flags);
        }
        real!(fdopen)(fd, mode)
    }
}

hook! {
    unsafe fn freopen | freopen64(path: *const c_char, mode: *const c_char, stream: *mut c_void) -> *mut c_void
        => my_freopen {
        let flags = flags_at(mode).unwrap_or(k::O_RDWR | k::O_CREAT | k::O_TRUNC);
        let before = if stream.is_null() { -1 } else { fileno(stream) };
        let mut room = PathBuf::new();
        let place = match place::owned(CWD, path, &mut room) {
            Ok(place) => place,
            Err(errno) => return fail(errno),
        };
        let known = fds::forget(before);
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
            if let Some(file) = fds::file(fd).filter(|_| flags & k::O_CREAT != 0) {
                names::tell_by_path(file.mount, fd);
            }
        }
        reopened
    }
}

/// Whether opening the place may wait for somebody: a FIFO.
fn may_block(place: place::Place) -> bool {
    sys::stat_at(place.dirfd, place.path, 0).is_ok_and(|stat| !sys::is_regular(&stat))
}

path_hook! { fn setmntent(path, mode: *const c_char) -> *mut c_void => my_setmntent }
path_hook! { fn __setmntent(path, mode: *const c_char) -> *mut c_void => my_setmntent_old }

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
