//! Which descriptors are those of stdio streams: what a stream reads and writes passes no hook, so whatever takes its number
//! (dup2, or close and open) is read and written unseen. Knows nothing of files.

use core::ffi::c_int;
use core::sync::atomic::{AtomicU64, Ordering};

/// Descriptors that are remembered; as many as a select(2) could ever hold and more than any program has streams.
const MAX: usize = 8192;

static STREAMS: [AtomicU64; MAX / 64] = [const { AtomicU64::new(0) }; MAX / 64];

#[inline(always)]
fn word(fd: c_int) -> Option<(&'static AtomicU64, u64)> {
    STREAMS.get(fd as usize / 64).map(|word| (word, 1 << (fd as u32 % 64)))
}

/// `fd` is a stream's from now on.
pub fn add(fd: c_int) {
    if let Some((word, bit)) = word(fd) {
        word.fetch_or(bit, Ordering::Relaxed);
    }
}

/// The stream of `fd` is closed; its number may be anybody's. (Closing the number alone leaves the stream.)
pub fn remove(fd: c_int) {
    if let Some((word, bit)) = word(fd)
        && word.load(Ordering::Relaxed) & bit != 0
    {
        word.fetch_and(!bit, Ordering::Relaxed);
    }
}

/// All streams are closed.
pub fn remove_all() {
    STREAMS.iter().for_each(|word| word.store(0, Ordering::Relaxed));
}

/// Whether a stream may read or write `fd` without being asked to.
#[inline(always)]
pub fn has(fd: c_int) -> bool {
    (0..3).contains(&fd) || word(fd).is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_one_until_it_is_closed() {
        assert!(has(0) && has(1) && has(2) && !has(-1) && !has(c_int::MAX));
        for fd in [63, 64, 8191] {
            assert!(!has(fd));
            add(fd);
            assert!(has(fd) && !has(fd - 1));
            remove(fd);
            assert!(!has(fd));
        }
        add(8192);
        add(-1);
        assert!(!has(8192) && !has(-1));
    }
}
