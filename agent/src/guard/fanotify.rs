//! A group of fanotify(7) by which programs wait before they open a marked inode, or reach its bytes (FAN_PRE_ACCESS, Linux
//! 6.14). Who waits goes on when he is answered, or when the last descriptor of the group is closed. It must not know which
//! inodes are marked, nor what is answered.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// fanotify(7); not in libc yet.
const FAN_PRE_ACCESS: u64 = 0x0010_0000;
const FAN_EVENT_INFO_TYPE_RANGE: u8 = 6;
const FAN_ERRNO_SHIFT: u32 = 24;
/// `struct fanotify_event_metadata`, and `struct fanotify_event_info_range` behind it, in bytes.
const METADATA: usize = 24;
const RANGE: usize = 24;

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marked {
    /// The opening of a file.
    File,
    /// The opening of a file, and each access to its bytes.
    Bytes,
    /// The opening of a directory.
    Dir,
}

impl Marked {
    fn mask(self) -> u64 {
        match self {
            Self::File => libc::FAN_OPEN_PERM,
            Self::Bytes => FAN_PRE_ACCESS | libc::FAN_OPEN_PERM,
            Self::Dir => libc::FAN_OPEN_PERM | libc::FAN_ONDIR,
        }
    }
}

/// Somebody waits.
#[derive(Debug)]
pub struct Event {
    /// The inode, open for reading; nothing that is done through it waits. Its number is what the answer names: see
    /// [`Group::let_go`].
    pub file: OwnedFd,
    /// The process that waits; 0 where it is not in this pid namespace.
    pub pid: i32,
    /// The bytes that are reached; `None`: it is being opened.
    pub range: Option<(u64, u64)>,
}

/// See the module. Whoever holds a duplicate of its descriptor keeps the others waiting.
#[derive(Debug)]
pub struct Group(File);

impl From<OwnedFd> for Group {
    fn from(fd: OwnedFd) -> Self {
        Self(File::from(fd))
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Group {
    /// A group without marks. How many it may have says /proc/sys/fs/fanotify/max_user_marks.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN.
    pub fn new() -> io::Result<Self> {
        // A queue that overflows would let its events pass.
        let flags = libc::FAN_CLASS_PRE_CONTENT | libc::FAN_CLOEXEC | libc::FAN_UNLIMITED_QUEUE;
        let files = libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC;
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::fanotify_init(flags, files as u32) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor.
        Ok(Self::from(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// From now on who opens this inode, or gets at its bytes by a descriptor that he opens from now on, waits. Any number of
    /// times.
    ///
    /// # Errors
    /// EINVAL and EOPNOTSUPP where kernel or filesystem do not do this, ENOSPC where there are too many marks.
    pub fn mark(&self, dir: BorrowedFd<'_>, name: &CStr, what: Marked) -> io::Result<()> {
        self.change(libc::FAN_MARK_ADD | libc::FAN_MARK_DONT_FOLLOW, what, dir.as_raw_fd(), name)
    }

    /// As [`Group::mark`], of an inode that is open in whatever way.
    ///
    /// # Errors
    /// As there.
    pub fn mark_handle(&self, handle: BorrowedFd<'_>, what: Marked) -> io::Result<()> {
        self.change(libc::FAN_MARK_ADD, what, libc::AT_FDCWD, &link_of(handle)?)
    }

    /// Nobody waits for this inode any more.
    ///
    /// # Errors
    /// ENOENT where it was not marked.
    pub fn unmark_handle(&self, handle: BorrowedFd<'_>, what: Marked) -> io::Result<()> {
        self.change(libc::FAN_MARK_REMOVE, what, libc::AT_FDCWD, &link_of(handle)?)
    }

    /// Removes all marks: nobody begins to wait any more.
    ///
    /// # Errors
    /// Those of fanotify_mark(2).
    pub fn unmark_all(&self) -> io::Result<()> {
        self.change(libc::FAN_MARK_FLUSH, Marked::File, libc::AT_FDCWD, c".")
    }

    /// Lets everybody fail who waits, where nobody else takes events or answers them any more: what is not taken yet, and what
    /// was taken, by numbers below `most` that are not in `known`.
    pub fn fail_rest(&self, most: RawFd, known: &[RawFd], untaken: bool) {
        for id in (0..most).filter(|id| !known.contains(id)) {
            // Most are nobody's.
            let _ = self.answer(id, libc::EIO);
        }
        // SAFETY: no memory is passed.
        if untaken && unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } == 0 {
            while let Ok(events) = self.wait() {
                for event in events {
                    let _ = self.answer(event.file.as_raw_fd(), libc::EIO);
                }
            }
        }
    }

    fn change(&self, flags: libc::c_uint, what: Marked, dir: RawFd, name: &CStr) -> io::Result<()> {
        let mask = if flags == libc::FAN_MARK_FLUSH { 0 } else { what.mask() };
        // SAFETY: a C string.
        let done = unsafe { libc::fanotify_mark(self.0.as_raw_fd(), flags, mask, dir, name.as_ptr()) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The inodes that are marked, by their numbers.
    ///
    /// # Errors
    /// Where /proc is not mounted.
    pub fn marks(&self) -> io::Result<Vec<(u64, Marked)>> {
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.0.as_raw_fd()))?;
        Ok(marks_in(&text))
    }

    /// Waits for events.
    ///
    /// # Errors
    /// Those of read(2): EMFILE where one could not be opened, which is denied then.
    pub fn wait(&self) -> io::Result<Vec<Event>> {
        // So small that several threads share what comes at once.
        let mut buffer = [0; 4 * METADATA];
        let len = (&self.0).read(&mut buffer)?;
        let mut events = Vec::new();
        let mut rest = buffer.get(..len).unwrap_or_default();
        while let Some((event, after)) = parse(rest) {
            events.extend(event.fd.map(|fd| Event {
                // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
                file: unsafe { OwnedFd::from_raw_fd(fd) },
                pid: event.pid,
                range: event.range,
            }));
            rest = after;
        }
        Ok(events)
    }

    /// Lets the inode of an event's descriptor go and keeps its number, which the answer names: who asks who has the file open, right
    /// behind the answer perhaps, does not find this process.
    ///
    /// # Errors
    /// Those of dup2(2); it is open still.
    pub fn let_go(&self, file: &mut OwnedFd) -> io::Result<()> {
        Ok(nix::unistd::dup3(&self.0, file, nix::fcntl::OFlag::O_CLOEXEC)?)
    }

    /// Answers an event: 0 lets the access happen, EIO makes it fail.
    ///
    /// # Errors
    /// ENOENT where nobody waits for it any more.
    pub fn answer(&self, id: RawFd, errno: i32) -> io::Result<()> {
        if errno == 0 {
            return self.respond(id, libc::FAN_ALLOW);
        }
        // The kernel takes a few only: what is wrong says the log. An older one has its own.
        match self.respond(id, libc::FAN_DENY | (libc::EIO as u32) << FAN_ERRNO_SHIFT) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.respond(id, libc::FAN_DENY),
            other => other,
        }
    }

    fn respond(&self, id: RawFd, word: u32) -> io::Result<()> {
        let mut response = [0; 8];
        response[..4].copy_from_slice(&id.to_ne_bytes());
        response[4..].copy_from_slice(&word.to_ne_bytes());
        (&self.0).write_all(&response)
    }
}

fn link_of(handle: BorrowedFd<'_>) -> io::Result<std::ffi::CString> {
    Ok(std::ffi::CString::new(format!("/proc/self/fd/{}", handle.as_raw_fd()))?)
}

/// An event as it stands in the buffer.
#[derive(Debug, PartialEq, Eq)]
struct Raw {
    /// `None`: it is none that can be answered.
    fd: Option<RawFd>,
    pid: i32,
    range: Option<(u64, u64)>,
}

/// The first event of a buffer, and what is behind it.
fn parse(bytes: &[u8]) -> Option<(Raw, &[u8])> {
    let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let len = word(0)? as usize;
    if len < METADATA || len > bytes.len() {
        return None;
    }
    let (mask, fd, pid) = (long(8)?, word(16)? as i32, word(20)? as i32);
    let ranged = len >= METADATA + RANGE && bytes.get(METADATA) == Some(&FAN_EVENT_INFO_TYPE_RANGE);
    let range = match (mask & FAN_PRE_ACCESS != 0, ranged) {
        (false, _) => None,
        // The offset, and how many bytes; truncation names its place alone.
        (true, true) => {
            let (start, count) = (long(METADATA + 8)?, long(METADATA + 16)?);
            Some((start, start.saturating_add(count.max(1))))
        }
        (true, false) => Some((0, u64::MAX)),
    };
    Some((Raw { fd: (fd >= 0).then_some(fd), pid, range }, bytes.get(len..)?))
}

fn marks_in(text: &str) -> Vec<(u64, Marked)> {
    let mut marks = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("fanotify ino:")) {
        let field = |name: &str| {
            let value = line.split_ascii_whitespace().find_map(|field| field.strip_prefix(name))?;
            u64::from_str_radix(value, 16).ok()
        };
        if let (Some(ino), Some(mask)) = (field("ino:"), field("mask:")) {
            let what = match (mask & libc::FAN_ONDIR != 0, mask & FAN_PRE_ACCESS != 0) {
                (true, _) => Marked::Dir,
                (false, true) => Marked::Bytes,
                (false, false) => Marked::File,
            };
            marks.push((ino, what));
        }
    }
    marks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(mask: u64, fd: i32, range: Option<(u64, u64)>) -> Vec<u8> {
        let len = METADATA + range.map_or(0, |_| RANGE);
        let mut bytes = (len as u32).to_ne_bytes().to_vec();
        bytes.extend([3, 0, METADATA as u8, 0]);
        bytes.extend(mask.to_ne_bytes());
        bytes.extend(fd.to_ne_bytes());
        bytes.extend(77i32.to_ne_bytes());
        if let Some((at, count)) = range {
            bytes.extend([FAN_EVENT_INFO_TYPE_RANGE, 0, RANGE as u8, 0, 0, 0, 0, 0]);
            bytes.extend(at.to_ne_bytes());
            bytes.extend(count.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn events_say_which_bytes_are_reached() {
        let mut bytes = event(FAN_PRE_ACCESS, 9, Some((4096, 8192)));
        bytes.extend(event(libc::FAN_OPEN_PERM, 10, None));
        bytes.extend(event(FAN_PRE_ACCESS, -1, Some((5, 0))));
        let (first, rest) = parse(&bytes).unwrap();
        assert_eq!(first, Raw { fd: Some(9), pid: 77, range: Some((4096, 12288)) });
        let (second, rest) = parse(rest).unwrap();
        assert_eq!(second, Raw { fd: Some(10), pid: 77, range: None });
        assert_eq!(parse(rest).unwrap().0, Raw { fd: None, pid: 77, range: Some((5, 6)) });
        assert!(parse(&bytes[..20]).is_none() && parse(&[]).is_none());
    }

    #[test]
    fn the_kernel_lists_the_marks() {
        let text = "pos:\t0\nfanotify flags:9 event-flags:88000\n\
                    fanotify ino:9b2832 sdev:fe00000 mflags:0 mask:40010000 ignored_mask:0 fhandle-bytes:8\n\
                    fanotify ino:a sdev:fe00000 mflags:0 mask:110000 ignored_mask:0\n\
                    fanotify ino:b sdev:fe00000 mflags:0 mask:10000 ignored_mask:0\n";
        assert_eq!(marks_in(text), [(0x9b2832, Marked::Dir), (10, Marked::Bytes), (11, Marked::File)]);
    }
}
