//! Sockets with a name in the file system: bound as other names are made, found as other paths are, and named by their
//! logical paths where the kernel names them.

use core::ffi::{CStr, c_char, c_int, c_void};

use storeshim_protocol::MAX_MOUNTS;

use super::fd::{Message, MultiMessage};
use crate::absent::{self, Change};
use crate::control;
use crate::hook::{Reply, answer, hook, real};
use crate::loader::get_errno;
use crate::names::change;
use crate::place::{self, CWD};
use crate::sys::{self, Answer, Errno, PathBuf, errno, k};

const AF_UNIX: u16 = 1;
/// Room for a name in an address, in bytes.
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
        if sys::leads_nowhere(bytes) {
            return None;
        }
        (bytes.cast::<u16>().read_unaligned(), core::slice::from_raw_parts(bytes.add(head), n))
    };
    let name = name.split(|byte| *byte == 0).next().filter(|name| !name.is_empty())?;
    path.push(name).ok().filter(|()| family == AF_UNIX)?;
    Some(path.c_str())
}

/// Calls `act` with an address that consists of `parts`.
fn with_name(parts: &[&[u8]], act: &dyn Fn(*const Address, u32) -> Answer) -> Answer {
    let mut address = Address { family: AF_UNIX, name: [0; NAME_MAX] };
    for (at, byte) in parts.iter().copied().flatten().enumerate() {
        // The last byte stays NUL.
        let place = address.name.get_mut(at).filter(|_| at + 1 < NAME_MAX);
        *place.ok_or(Errno::of(errno::ENAMETOOLONG))? = *byte;
    }
    act(&raw const address, size_of::<Address>() as u32)
}

/// Calls `act` with an address of `name` in `directory`, by a link in /proc to a descriptor of it. `marks` stands between.
fn by_link(
    dirfd: c_int,
    directory: *const c_char,
    marks: &[u8],
    name: &[u8],
    act: &dyn Fn(*const Address, u32) -> Answer,
) -> Answer {
    let flags = (k::O_PATH | k::O_DIRECTORY | k::O_CLOEXEC) as c_int;
    let fd = sys::openat(dirfd, directory, flags, 0)? as c_int;
    let link = sys::fd_link(fd);
    let link = link.split(|byte| *byte == 0).next().unwrap_or(&[]);
    let done = with_name(&[link, marks, name], act);
    sys::close(fd);
    done
}

/// How a link to a tree's root is spelled in an address, so that it can be told from a name of the app's: the first mount
/// has one of these, the second two.
const MARK: &[u8] = b"/.";
const MARKS: [u8; 2 * MAX_MOUNTS] = {
    let mut marks = [b'/'; 2 * MAX_MOUNTS];
    let mut at = 1;
    while at < marks.len() {
        marks[at] = b'.';
        at += 2;
    }
    marks
};

/// Calls `act` with the address of `path` below `dirfd`, which lies in `mount`. One that has no room for it gets a detour:
/// through the tree's root, by which it can be recognised later, or else through its own directory.
fn with_address(
    mount: Option<usize>,
    dirfd: c_int,
    path: &PathBuf,
    act: &dyn Fn(*const Address, u32) -> Answer,
) -> Answer {
    if path.bytes().len() < NAME_MAX && (dirfd == CWD || path.bytes().starts_with(b"/")) {
        return with_name(&[path.bytes()], act);
    }
    let mut directory = PathBuf::new();
    if let Some((index, tree)) = mount.and_then(|index| Some((index, control::table()?.get(index)?.tree())))
        && let Some(rest @ [b'/', ..]) = path.bytes().strip_prefix(tree)
        && let Some(marks) = MARKS.get(..(index + 1) * MARK.len())
    {
        directory.push(tree)?;
        match by_link(CWD, directory.c_str(), marks, rest, act) {
            Err(e) if e == Errno::of(errno::ENAMETOOLONG) => directory.clear(),
            done => return done,
        }
    }
    let (start, end) = crate::paths::last_component(path.bytes());
    let (head, name) =
        (path.bytes().get(..start).unwrap_or(&[]), path.bytes().get(start..end).unwrap_or(&[]));
    directory.push(if head.is_empty() { b"." } else { head })?;
    by_link(dirfd, directory.c_str(), b"/", name, act)
}

hook! {
    unsafe fn bind(socket: c_int, address: *const Address, length: u32) -> c_int => my_bind {
        let (mut path, mut room) = (PathBuf::new(), PathBuf::new());
        let Some(path) = path_of(address, length, &mut path) else { return real!(bind)(socket, address, length) };
        let mount = place::at(CWD, path, &mut room).ok().and_then(|place| place.mount);
        room.clear();
        // The path is in the room, so that a long one can be taken apart.
        let bound = change(Change::Create, CWD, path, &mut room, |dirfd, path| {
            let mut whole = PathBuf::new();
            whole.push(CStr::from_ptr(path).to_bytes())?;
            with_address(mount, dirfd, &whole, &|address, length| sys::bind(socket, address.cast(), length))
        });
        match bound {
            Ok(done) => answer(done),
            Err(_) => real!(bind)(socket, address, length),
        }
    }
}

/// Calls `act` with the address, or with that of the file which it names where that is called otherwise on disk.
///
/// # Safety
/// `address` must be null or have `length` bytes.
#[inline(always)]
unsafe fn to_address<R: Reply>(
    address: *const Address,
    length: u32,
    act: impl Fn(*const Address, u32) -> R,
) -> R {
    // Most sockets have no path: they are not kept waiting.
    // SAFETY: as above.
    let family = |address: *const Address| unsafe { address.cast::<u16>().read_unaligned() };
    if sys::leads_nowhere(address) || length < 3 || family(address) != AF_UNIX {
        return act(address, length);
    }
    let word = |address: *const Address, length: u32| replied(act(address, length).word());
    // SAFETY: as above.
    answer(unsafe { translated(address, length, &word) })
}

/// What a function of libc answered.
fn replied(word: usize) -> Answer {
    if word == usize::MAX || word == u32::MAX as usize { Err(get_errno()) } else { Ok(word) }
}

/// # Safety
/// As [`to_address`].
#[inline(never)]
unsafe fn translated(
    address: *const Address,
    length: u32,
    act: &dyn Fn(*const Address, u32) -> Answer,
) -> Answer {
    let (mut path, mut room) = (PathBuf::new(), PathBuf::new());
    // SAFETY: as above.
    let Some(path) = (unsafe { path_of(address, length, &mut path) }) else { return act(address, length) };
    match place::at(CWD, path, &mut room) {
        Ok(place) if core::ptr::eq(place.path, room.c_str()) => {
            absent::reached(place, || with_address(place.mount, place.dirfd, &room, act))
        }
        Ok(place) => absent::reached(place, || act(address, length)),
        Err(errno) => Err(errno),
    }
}

hook! {
    unsafe fn connect | __connect(socket: c_int, address: *const Address, length: u32) -> c_int => my_connect {
        to_address(address, length, |address, length| real!(connect)(socket, address, length))
    }
}

hook! {
    unsafe fn sendto(socket: c_int, data: *const c_void, n: usize, flags: c_int, address: *const Address, length: u32)
        -> isize => my_sendto {
        to_address(address, length, |address, length| real!(sendto)(socket, data, n, flags, address, length))
    }
}

hook! {
    unsafe fn sendmsg(socket: c_int, message: *const Message, flags: c_int) -> isize => my_sendmsg {
        if sys::leads_nowhere(message) {
            // By the kernel: musl's looks into it.
            return answer(sys::raw(k::__NR_sendmsg as usize, socket as usize, message as usize, flags as usize, 0, 0, 0));
        }
        if (*message).name.is_null() {
            return real!(sendmsg)(socket, message, flags);
        }
        let given = &*message;
        to_address(given.name.cast_const().cast(), given.name_len, |address, length| {
            let sent = Message { name: address.cast_mut().cast(), name_len: length, ..*given };
            real!(sendmsg)(socket, &raw const sent, flags)
        })
    }
}

hook! {
    unsafe fn sendmmsg(socket: c_int, messages: *mut MultiMessage, count: u32, flags: c_int) -> c_int => my_sendmmsg {
        let translates = control::table().is_some_and(|table| table.translates);
        if !translates || sys::leads_nowhere(messages) || (*messages).header.name.is_null() {
            return real!(sendmmsg)(socket, messages, count, flags);
        }
        // One by one, as the kernel does it: the first failure ends it, and counts where nothing was sent.
        for at in 0..count as usize {
            let each = &mut *messages.add(at);
            match my_sendmsg(socket, &raw const each.header, flags) {
                -1 if at == 0 => return -1,
                -1 => return at as c_int,
                sent => each.len = sent as u32,
            }
        }
        count as c_int
    }
}

/// The logical name for one that a socket was bound to, in `out`; `None` where it is to stay.
fn turned<'o>(name: &[u8], out: &'o mut PathBuf) -> Option<&'o [u8]> {
    let Some(link) = name.strip_prefix(b"/proc/self/fd/") else { return place::turned(name, out) };
    let mut rest = link.get(link.iter().position(|byte| !byte.is_ascii_digit())?..)?;
    let mut index = None;
    while let Some(more @ [b'/', ..]) = rest.strip_prefix(MARK) {
        rest = more;
        index = Some(index.map_or(0, |index: usize| index + 1));
    }
    let entry = control::table()?.get(index?).filter(|entry| !entry.identity)?;
    crate::paths::join(out, entry.prefix(), rest).ok()?;
    Some(out.bytes())
}

/// Room for any address.
#[repr(C, align(8))]
struct AnyAddress([u8; 128]);

/// Calls `act` with room for an address and gives the app what it finds there, with a logical name.
///
/// # Safety
/// `address` must be null or have `*length` bytes.
#[inline(always)]
unsafe fn from_address<R: Reply>(
    address: *mut Address,
    length: *mut u32,
    act: impl Fn(*mut Address, *mut u32) -> R,
) -> R {
    if sys::leads_nowhere(address)
        || sys::leads_nowhere(length)
        || !control::table().is_some_and(|table| table.translates)
    {
        return act(address, length);
    }
    // SAFETY: as above.
    answer(unsafe { found(address, length, &|address, length| replied(act(address, length).word())) })
}

/// # Safety
/// As [`from_address`], without null.
#[inline(never)]
unsafe fn found(
    address: *mut Address,
    length: *mut u32,
    act: &dyn Fn(*mut Address, *mut u32) -> Answer,
) -> Answer {
    let mut found = AnyAddress([0; 128]);
    let mut n = size_of::<AnyAddress>() as u32;
    let done = act((&raw mut found).cast(), &raw mut n)?;
    // SAFETY: the kernel has filled it; the app's room is as the caller vouches.
    unsafe {
        let capacity = length.read();
        core::ptr::copy_nonoverlapping(found.0.as_ptr(), address.cast(), n.min(capacity) as usize);
        length.write(n);
        give_logical((&raw const found).cast(), n, address, capacity, length);
    }
    Ok(done)
}

/// Replaces an address of a tree by its logical one, as far as there is room.
///
/// # Safety
/// `found` must have `n` bytes and `address` room for `capacity`; `length` must be valid.
unsafe fn give_logical(
    found: *const Address,
    n: u32,
    address: *mut Address,
    capacity: u32,
    length: *mut u32,
) {
    let (mut path, mut room) = (PathBuf::new(), PathBuf::new());
    // SAFETY: as above; the last byte of the room is left out, as the kernel does.
    unsafe {
        if path_of(found, n, &mut path).is_none() {
            return;
        }
        let Some(name) = turned(path.bytes(), &mut room) else { return };
        let head = size_of::<u16>();
        let whole = head + name.len() + 1;
        let fits = (capacity as usize).saturating_sub(head);
        let to = address.cast::<u8>().add(head);
        core::ptr::copy_nonoverlapping(name.as_ptr(), to, name.len().min(fits));
        if name.len() < fits {
            to.add(name.len()).write(0);
        }
        length.write(whole as u32);
    }
}

/// Turns the sender's name in a message round, for which the app had `capacity` bytes.
///
/// # Safety
/// `message` must be what recvmsg(2) filled in.
pub unsafe fn turn_sender(message: &mut Message, capacity: u32) {
    if sys::leads_nowhere(message.name)
        || message.name_len < 3
        || !control::table().is_some_and(|table| table.translates)
    {
        return;
    }
    let n = message.name_len.min(capacity);
    // SAFETY: as above.
    unsafe {
        give_logical(message.name.cast(), n, message.name.cast(), capacity, &raw mut message.name_len);
    }
}

hook! {
    unsafe fn accept(socket: c_int, address: *mut Address, length: *mut u32) -> c_int => my_accept {
        from_address(address, length, |address, length| real!(accept)(socket, address, length))
    }
}

hook! {
    unsafe fn accept4(socket: c_int, address: *mut Address, length: *mut u32, flags: c_int) -> c_int => my_accept4 {
        from_address(address, length, |address, length| real!(accept4)(socket, address, length, flags))
    }
}

hook! {
    unsafe fn getsockname(socket: c_int, address: *mut Address, length: *mut u32) -> c_int => my_getsockname {
        from_address(address, length, |address, length| real!(getsockname)(socket, address, length))
    }
}

hook! {
    unsafe fn getpeername(socket: c_int, address: *mut Address, length: *mut u32) -> c_int => my_getpeername {
        from_address(address, length, |address, length| real!(getpeername)(socket, address, length))
    }
}

hook! {
    unsafe fn recvfrom(socket: c_int, data: *mut c_void, n: usize, flags: c_int, address: *mut Address,
        length: *mut u32) -> isize => my_recvfrom {
        from_address(address, length, |address, length| real!(recvfrom)(socket, data, n, flags, address, length))
    }
}

hook! {
    unsafe fn __recvfrom_chk(socket: c_int, data: *mut c_void, n: usize, room: usize, flags: c_int,
        address: *mut Address, length: *mut u32) -> isize => my_recvfrom_chk {
        from_address(address, length, |address, length| {
            real!(__recvfrom_chk)(socket, data, n, room, flags, address, length)
        })
    }
}
