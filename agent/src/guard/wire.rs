//! What the agent and the guard of a mount tell each other: one message is one packet (unix(7), SOCK_SEQPACKET), and may carry a
//! descriptor. It must not know what is done about it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Raised with every change of what the two say or mean: a guard of another version is replaced.
pub const VERSION: u32 = 1;
/// Bytes of a message at most.
const MESSAGE_MAX: usize = 128;

/// Somebody waits at a marked inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// What the answer names.
    pub id: RawFd,
    /// Kernel inode number.
    pub ino: u64,
    /// It is a directory.
    pub is_dir: bool,
    /// The bytes that are reached; `None`: it is being opened.
    pub range: Option<(u64, u64)>,
    /// The process; 0 where that cannot be told.
    pub pid: i32,
}

/// What the guard says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAgent {
    /// The first message, with the group's descriptor.
    Hello {
        /// [`VERSION`].
        version: u32,
    },
    /// To be answered.
    Access(Access),
}

/// What the agent says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGuard {
    /// Nobody waits any more: ends. What waits fails.
    Quit,
    /// With the descriptor of the residency table.
    Table {
        /// Inode number of the control page, which every program under the shim has mapped.
        control: u64,
    },
    /// The answer to an access.
    Answer {
        /// Of which one.
        id: RawFd,
        /// 0, or it fails.
        errno: i32,
    },
}

/// One end of a connection.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl From<OwnedFd> for Socket {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl Socket {
    /// The descriptor, to wait for.
    pub fn fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.0)
    }

    /// Sends a message, with a descriptor or none. Never waits.
    ///
    /// # Errors
    /// EAGAIN where the other end has much to read; EPIPE where there is none.
    pub fn send(&self, message: &impl Serialize, with: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut bytes = [0; MESSAGE_MAX];
        let bytes = postcard::to_slice(message, &mut bytes).map_err(io::Error::other)?;
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let mut control = Control::default();
        // SAFETY: integers and null pointers, for which zeros are valid.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        (header.msg_iov, header.msg_iovlen) = (&raw mut part, 1);
        if let Some(fd) = with {
            control.fill(fd.as_raw_fd());
            header.msg_control = (&raw mut control).cast();
            header.msg_controllen = size_of::<Control>() as _;
        }
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: everything that the header points to lives across the call.
        let sent = unsafe { libc::sendmsg(self.0.as_raw_fd(), &raw const header, flags) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits for a message; `None` when the other end has gone.
    ///
    /// # Errors
    /// Where it cannot be read or is none.
    pub fn receive<M: DeserializeOwned>(&self) -> io::Result<Option<(M, Option<OwnedFd>)>> {
        let mut bytes = [0u8; MESSAGE_MAX];
        let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let mut control = Control::default();
        // SAFETY: integers and null pointers, for which zeros are valid.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        (header.msg_iov, header.msg_iovlen) = (&raw mut part, 1);
        header.msg_control = (&raw mut control).cast();
        header.msg_controllen = size_of::<Control>() as _;
        let got = loop {
            // SAFETY: everything that the header points to lives across the call.
            let got = unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
            match got {
                -1 => {
                    let error = io::Error::last_os_error();
                    match error.kind() {
                        io::ErrorKind::Interrupted => {}
                        io::ErrorKind::ConnectionReset => return Ok(None),
                        _ => return Err(error),
                    }
                }
                got => break got as usize,
            }
        };
        let fd = control.take(header.msg_controllen as usize);
        match bytes.get(..got).filter(|bytes| !bytes.is_empty()) {
            None => Ok(None),
            Some(bytes) => Ok(Some((postcard::from_bytes(bytes).map_err(io::Error::other)?, fd))),
        }
    }

    /// Ends the connection: the other end, and who waits at this one, hears of it.
    pub fn hang_up(&self) {
        // SAFETY: no memory is passed. It may have ended already.
        unsafe { libc::shutdown(self.0.as_raw_fd(), libc::SHUT_RDWR) };
    }

    /// Process and user at the other end (SO_PEERCRED).
    ///
    /// # Errors
    /// Those of getsockopt(2).
    pub fn peer(&self) -> io::Result<(i32, u32)> {
        let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
        let mut len = size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: `peer` is as large as is said, and lives across the call.
        let done = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut peer).cast(),
                &raw mut len,
            )
        };
        if done == 0 { Ok((peer.pid, peer.uid)) } else { Err(io::Error::last_os_error()) }
    }
}

/// Room for one descriptor beside a message: `struct cmsghdr`, and what it carries (cmsg(3)).
#[repr(C)]
#[derive(Default)]
struct Control {
    len: usize,
    level: libc::c_int,
    kind: libc::c_int,
    fd: RawFd,
    padding: u32,
}

const HEADER: usize = std::mem::offset_of!(Control, fd);

impl Control {
    fn fill(&mut self, fd: RawFd) {
        (self.len, self.level, self.kind) = (HEADER + size_of::<RawFd>(), libc::SOL_SOCKET, libc::SCM_RIGHTS);
        self.fd = fd;
    }

    fn take(&self, len: usize) -> Option<OwnedFd> {
        let has_fd = len >= HEADER + size_of::<RawFd>()
            && self.len == HEADER + size_of::<RawFd>()
            && (self.level, self.kind) == (libc::SOL_SOCKET, libc::SCM_RIGHTS);
        // SAFETY: the kernel has just given us this descriptor.
        has_fd.then(|| unsafe { OwnedFd::from_raw_fd(self.fd) })
    }
}

/// A socket at which connections are waited for.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl From<OwnedFd> for Listener {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<Listener> for OwnedFd {
    fn from(listener: Listener) -> Self {
        listener.0
    }
}

impl Listener {
    /// The descriptor, to wait for.
    pub fn fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.0)
    }

    /// Listens at a name of a directory, which nobody has.
    ///
    /// # Errors
    /// Those of bind(2).
    pub fn bind(dir: BorrowedFd<'_>, name: &str) -> io::Result<Self> {
        let socket = socket()?;
        let (address, len) = address(dir, name)?;
        // SAFETY: the address is as long as is said; the other call passes no memory.
        let bound = unsafe {
            libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) == 0
                && libc::listen(socket.as_raw_fd(), 8) == 0
        };
        if bound { Ok(Self(socket)) } else { Err(io::Error::last_os_error()) }
    }

    /// The next connection.
    ///
    /// # Errors
    /// Those of accept(2).
    pub fn accept(&self) -> io::Result<Socket> {
        let null = std::ptr::null_mut();
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::accept4(self.0.as_raw_fd(), null, std::ptr::null_mut(), libc::SOCK_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor.
        Ok(Socket(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

/// Connects to who listens at a name of a directory.
///
/// # Errors
/// ENOENT or ECONNREFUSED where nobody does.
pub fn connect(dir: BorrowedFd<'_>, name: &str) -> io::Result<Socket> {
    let socket = socket()?;
    let (address, len) = address(dir, name)?;
    // SAFETY: the address is as long as is said.
    let done = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if done == 0 { Ok(Socket(socket)) } else { Err(io::Error::last_os_error()) }
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// By way of the directory's descriptor: a path may be longer than an address.
fn address(dir: BorrowedFd<'_>, name: &str) -> io::Result<(libc::sockaddr_un, libc::socklen_t)> {
    let path = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
    // SAFETY: integers, for which zeros are valid.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    if path.len() >= address.sun_path.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in address.sun_path.iter_mut().zip(path.bytes()) {
        *to = from as libc::c_char;
    }
    Ok((address, size_of::<libc::sockaddr_un>() as libc::socklen_t))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn messages_carry_descriptors_between_processes_of_one_user() {
        let dir = tempfile::tempdir().unwrap();
        let handle = std::fs::File::open(dir.path()).unwrap();
        assert!(connect(handle.as_fd(), "s").is_err());
        let listener = Listener::bind(handle.as_fd(), "s").unwrap();
        let near = connect(handle.as_fd(), "s").unwrap();
        let far = listener.accept().unwrap();
        let own = (std::process::id() as i32, nix::unistd::getuid().as_raw());
        assert_eq!(far.peer().unwrap(), own);
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"text", 0).unwrap();
        near.send(&ToGuard::Table { control: u64::MAX }, Some(file.as_fd())).unwrap();
        near.send(&ToGuard::Answer { id: 7, errno: 5 }, None).unwrap();
        let (first, fd) = far.receive::<ToGuard>().unwrap().unwrap();
        assert_eq!(first, ToGuard::Table { control: u64::MAX });
        assert_eq!(std::fs::File::from(fd.unwrap()).metadata().unwrap().len(), 4);
        let (second, fd) = far.receive::<ToGuard>().unwrap().unwrap();
        assert!(second == ToGuard::Answer { id: 7, errno: 5 } && fd.is_none());
        let access = Access { id: 1, ino: u64::MAX, is_dir: true, range: Some((u64::MAX, u64::MAX)), pid: 1 };
        far.send(&ToAgent::Access(access), None).unwrap();
        assert_eq!(near.receive::<ToAgent>().unwrap().unwrap().0, ToAgent::Access(access));
        drop(near);
        assert!(far.receive::<ToGuard>().unwrap().is_none());
        assert!(far.send(&ToAgent::Hello { version: VERSION }, None).is_err());
    }
}
