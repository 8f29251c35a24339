//! What the Worker may ask of a volume's files, and how the answers go over the wire. Who finds the files is
//! the volume's business.

use super::wire::messages::{self, FileRequest, Nonce, Stat};
use super::wire::{Code, Result, WireError};

/// Bytes that one read or one part of a write may have.
pub const LARGEST_PART: usize = 1 << 20;
/// Entries of one page of a directory.
pub const LARGEST_PAGE: usize = 1000;

/// A part of a file that is being written.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Names the parts of one write.
    pub nonce: Nonce,
    /// The last one: all of the write is made durable before it is answered.
    pub last: bool,
    /// The parts are the whole new file, put in the old one's place at the last one; else written into it.
    pub replace: bool,
    /// Missing directories are made.
    pub parents: bool,
    /// Permission bits of a new file.
    pub mode: u32,
    /// Where the part belongs.
    pub offset: u64,
    /// The part.
    pub bytes: &'a [u8],
}

/// Names and what they stand for.
pub type Entries = Vec<(Vec<u8>, Stat)>;

/// The files of a volume, as its programs see them. Paths are relative to its root, without `.`, `..` or empty names, and
/// lead nowhere else, whatever symbolic links there are. Blocking; errors are of [`Code::File`], or `Unavailable`.
pub trait Files: Send + Sync {
    /// Where programs see the volume.
    fn prefix(&self) -> &[u8];
    /// stat(2), or lstat(2) without `follow`.
    fn stat(&self, path: &[u8], follow: bool) -> Result<Stat>;
    /// Up to `length` bytes from `offset` on; fewer only at the file's end.
    fn read(&self, path: &[u8], offset: u64, length: usize) -> Result<(Stat, Vec<u8>)>;
    /// Names behind `after` in byte order, `most` at most, with their own stats; and whether there are more.
    fn list(&self, path: &[u8], after: &[u8], most: usize) -> Result<(bool, Entries)>;
    /// Takes a part of a write.
    fn write(&self, path: &[u8], part: &Part<'_>) -> Result<Stat>;
    /// Removes a name, durably.
    fn unlink(&self, path: &[u8], recursive: bool) -> Result<()>;
}

/// An error of a file operation; the sentence begins with the errno's name.
#[must_use]
pub fn file_error(errno: i32, what: &str) -> WireError {
    let name = nix::errno::Errno::from_raw(errno);
    let errno = u16::try_from(errno).unwrap_or_default();
    WireError { code: Code::File, errno, message: format!("{name:?}: {what}") }
}

/// Refuses what is no path of a file in a volume.
///
/// # Errors
/// `EINVAL`.
pub fn check_path(path: &[u8]) -> Result<()> {
    let bad = |name: &[u8]| name.is_empty() || name == b"." || name == b".." || name.contains(&0);
    if !path.is_empty() && path.split(|byte| *byte == b'/').any(bad) {
        let shown = String::from_utf8_lossy(path);
        return Err(file_error(
            libc::EINVAL,
            &format!("'{shown}' is no path of a file in a volume; leave out . and .."),
        ));
    }
    Ok(())
}

impl dyn Files {
    /// Answers a request of the Worker.
    pub(super) fn serve(&self, request: FileRequest) -> Result<Vec<u8>> {
        match request {
            FileRequest::Stat { follow, path } => {
                check_path(&path)?;
                Ok(self.stat(&path, follow)?.encode(&[]))
            }
            FileRequest::Read { offset, length, path } => {
                check_path(&path)?;
                let (stat, bytes) = self.read(&path, offset, (length as usize).min(LARGEST_PART))?;
                Ok(stat.encode(&bytes))
            }
            FileRequest::List { max, after, path } => {
                check_path(&path)?;
                let (more, entries) = self.list(&path, &after, (max as usize).clamp(1, LARGEST_PAGE))?;
                Ok(messages::encode_list(more, &entries))
            }
            FileRequest::Write { nonce, flags, mode, offset, path, bytes } => {
                check_path(&path)?;
                let is = |flag: u32| flags & flag != 0;
                let part = Part {
                    nonce,
                    last: is(messages::WRITE_LAST),
                    replace: is(messages::WRITE_REPLACE),
                    parents: is(messages::WRITE_PARENTS),
                    mode: mode & 0o7777,
                    offset,
                    bytes: &bytes,
                };
                Ok(self.write(&path, &part)?.encode(&[]))
            }
            FileRequest::Unlink { recursive, path } => {
                check_path(&path)?;
                self.unlink(&path, recursive)?;
                Ok(Vec::new())
            }
        }
    }
}
