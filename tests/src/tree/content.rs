//! The content of a file as a list of block hashes, so that a difference can be placed and a file of many
//! gigabytes of holes costs nothing. It must not know snapshots.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes per hash.
const BLOCK: u64 = 64 << 10;

/// What is in a file.
#[derive(Clone, PartialEq, Eq)]
pub struct Content {
    /// Length in bytes.
    pub size: u64,
    /// One hash per 64 KiB; 0 for a block of zeros, be it a hole or written.
    blocks: Vec<u64>,
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.size)
    }
}

impl Content {
    /// Reads a file, holes excepted.
    pub fn of(path: &Path) -> Self {
        Self::read(path).unwrap_or_else(|error| panic!("read {path:?}: {error}"))
    }

    fn read(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        let mut blocks = vec![0; usize::try_from(size.div_ceil(BLOCK)).expect("a 64-bit machine")];
        let mut buffer = vec![0; BLOCK as usize];
        let mut offset = 0;
        while let Some(data) = next_data(&file, offset)? {
            // The file may grow while we look (only ever when a test looks at a live tree).
            if data >= size {
                break;
            }
            let start = data / BLOCK * BLOCK;
            let length = BLOCK.min(size - start) as usize;
            file.read_exact_at(&mut buffer[..length], start)?;
            blocks[(start / BLOCK) as usize] = hash(&buffer[..length]);
            offset = start + BLOCK;
        }
        Ok(Self { size, blocks })
    }

    /// In what `new` differs from this, for people.
    pub(super) fn diff(&self, new: &Self) -> Option<String> {
        if self.size != new.size {
            return Some(format!("size {} became {}", self.size, new.size));
        }
        let differing = self.blocks.iter().zip(&new.blocks).enumerate().filter(|(_, (old, new))| old != new);
        let differing: Vec<(usize, &u64)> = differing.map(|(index, (_, new))| (index, new)).collect();
        let (first, hash) = differing.first()?;
        let zeros = if **hash == 0 { ", which are zeros now" } else { "" };
        Some(format!(
            "content differs in {} of {} blocks, first within bytes {}..{}{zeros}",
            differing.len(),
            self.blocks.len(),
            *first as u64 * BLOCK,
            ((*first as u64 + 1) * BLOCK).min(self.size),
        ))
    }
}

/// The first offset from `from` on that is not in a hole; `None` at the end.
fn next_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    let from = i64::try_from(from).expect("a file offset");
    // SAFETY: only moves the offset of our own open file.
    match unsafe { libc::lseek(file.as_raw_fd(), from, libc::SEEK_DATA) } {
        -1 => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
        offset => Ok(u64::try_from(offset).ok()),
    }
}

fn hash(bytes: &[u8]) -> u64 {
    if bytes.iter().all(|byte| *byte == 0) {
        return 0;
    }
    let hash = blake3::hash(bytes);
    let (word, _) = hash.as_bytes().split_first_chunk().expect("32 bytes");
    // 0 stands for zeros.
    u64::from_le_bytes(*word) | 1
}
