//! Sockets with a name in the file system: bound as other names are made, found as other paths are.

use core::ffi::{c_char, c_int};

use crate::hook::{answer, fail, hook, real};
use crate::names::change;
use crate::place::{self, CWD};
use crate::sys::{self, Answer, Errno, PathBuf, errno, k};

const AF_UNIX: u16 = 1;
/// Longest name in an address, in bytes.
const NAME_MAX: usize = 108;

/// sockaddr_un.
#[repr(C)]
pub struct Address {
    family: u16,
    name: [u8; NAME_MAX],
}

/// The path that an address names, NUL-terminated; `None` for one of another kind.
///
/// # Safety
/// `address` must be null or have `length` bytes.
unsafe fn path_of(address: *const Address, length: u32, path: &mut PathBuf) -> Option<*const c_char> {
    let head = size_of::<u16>();
    let n = (length as usize).checked_sub(head)?.min(NAME_MAX);
    // SAFETY: as above; the family lies within the length, which was checked.
    let (family, name) = unsafe {
        let bytes = address.cast::<u8>();
        if bytes.is_null() {
            return None;
        }
        (bytes.cast::<u16>().read_unaligned(), core::slice::from_raw_parts(bytes.add(head), n))
    };
    let name = name.split(|byte| *byte == 0).next().filter(|name| !name.is_empty())?;
    path.push(name).ok().filter(|()| family == AF_UNIX)?;
    Some(path.c_str())
}

/// Calls `act` with the address of `path` below `dirfd`. One that has no room for it gets a detour through the directory's
/// descriptor.
fn with_address(dirfd: c_int, path: &PathBuf, act: impl Fn(*const Address, u32) -> Answer) -> Answer {
    let call = |parts: [&[u8]; 3]| {
        let mut address = Address { family: AF_UNIX, name: [0; NAME_MAX] };
        for (at, byte) in parts.into_iter().flatten().enumerate() {
            // The last byte stays NUL.
            let place = address.name.get_mut(at).filter(|_| at + 1 < NAME_MAX);
            *place.ok_or(Errno::of(errno::ENAMETOOLONG))? = *byte;
        }
        act(&raw const address, size_of::<Address>() as u32)
    };
    if path.bytes().len() < NAME_MAX && (dirfd == CWD || path.bytes().starts_with(b"/")) {
        return call([path.bytes(), b"", b""]);
    }
    let (start, end) = crate::paths::last_component(path.bytes());
    let (head, name) =
        (path.bytes().get(..start).unwrap_or(&[]), path.bytes().get(start..end).unwrap_or(&[]));
    let mut directory = PathBuf::new();
    directory.push(if head.is_empty() { b"." } else { head })?;
    let flags = (k::O_PATH | k::O_DIRECTORY | k::O_CLOEXEC) as c_int;
    let fd = sys::openat(dirfd, directory.c_str(), flags, 0)? as c_int;
    let link = sys::fd_link(fd);
    let link = link.split(|byte| *byte == 0).next().unwrap_or(&[]);
    let done = call([link, b"/", name]);
    sys::close(fd);
    done
}

hook! {
    unsafe fn bind(socket: c_int, address: *const Address, length: u32) -> c_int => my_bind {
        let (mut path, mut room) = (PathBuf::new(), PathBuf::new());
        let Some(path) = path_of(address, length, &mut path) else { return real!(bind)(socket, address, length) };
        // The path is in the room, so that a long one can be taken apart.
        let bound = change(CWD, path, &mut room, |dirfd, path| {
            let mut whole = PathBuf::new();
            whole.push(core::ffi::CStr::from_ptr(path).to_bytes())?;
            with_address(dirfd, &whole, |address, length| sys::bind(socket, address.cast(), length))
        });
        match bound {
            Ok(done) => answer(done),
            Err(_) => real!(bind)(socket, address, length),
        }
    }
}

hook! {
    unsafe fn connect(socket: c_int, address: *const Address, length: u32) -> c_int => my_connect {
        let (mut path, mut room) = (PathBuf::new(), PathBuf::new());
        let Some(path) = path_of(address, length, &mut path) else {
            return real!(connect)(socket, address, length);
        };
        match place::at(CWD, path, &mut room) {
            Ok(place) if core::ptr::eq(place.path, room.c_str()) => {
                let translated = with_address(place.dirfd, &room, |address, length| {
                    match real!(connect)(socket, address, length) {
                        0 => Ok(0),
                        _ => Err(crate::loader::get_errno()),
                    }
                });
                answer(translated)
            }
            Ok(_) => real!(connect)(socket, address, length),
            Err(errno) => fail(errno),
        }
    }
}
