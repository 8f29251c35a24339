//! Who reads small files one after another, directory after directory, and how far what is brought may be ahead of him. It must
//! not know how anything is brought.
//!
//! Files that come together with their names are never asked for, so nobody would learn how far the reader is: one in so many
//! is left out. He asks for it, and what was allowed to be ahead of him is allowed anew.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::volume::status::Mutex;

/// Windows of small files: the first, and the largest.
pub const FILES: (usize, usize) = (8, 1024);
/// Bytes of small files that are brought together.
pub const BYTES: u64 = 16 << 20;
/// Who went on so shortly before goes on.
const LASTS: Duration = Duration::from_secs(2);
/// Of a window so many files are left out, and so many of these are remembered.
const PARTS: usize = 4;
const REMEMBERED: usize = 64;
/// Who has just touched a directory is about to show what he wants in it: nothing else is brought for so long.
const GRACE: Duration = Duration::from_millis(250);
/// Who has asked for so many directories and for no file wants names.
const NAMES: u32 = 3;

/// See the module.
#[derive(Default)]
pub struct Momentum(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    going: Option<Going>,
    /// Inodes of the last files that were left out.
    left_out: VecDeque<u64>,
    /// When a directory was asked for last, and how many were since a file was.
    names: Option<(Instant, u32)>,
}

/// Files are read one after another.
struct Going {
    at: Instant,
    window: usize,
    /// Files and bytes that may still come before he shows up again.
    files: usize,
    bytes: u64,
    /// Files that came since one was left out.
    since: usize,
}

impl Inner {
    fn going(&mut self) -> Option<&mut Going> {
        self.going.as_mut().filter(|going| going.at.elapsed() < LASTS)
    }
}

impl Going {
    /// Whether a file may come now. Where it is left out only to show where the reader is, that is noted.
    fn takes(&mut self, size: u64, leave_out: impl FnOnce()) -> bool {
        if self.files == 0 || self.bytes < size {
            return false;
        }
        if self.since >= (self.window / PARTS).max(FILES.0) {
            self.since = 0;
            leave_out();
            return false;
        }
        self.since += 1;
        self.files -= 1;
        self.bytes -= size;
        true
    }
}

impl Momentum {
    /// The window that who goes through files has now; `None` where nobody does.
    pub fn window(&self) -> Option<usize> {
        self.0.lock().going().map(|going| going.window)
    }

    /// A small file was asked for after others: `window` more may come.
    pub fn goes_on(&self, window: usize) {
        let mut inner = self.0.lock();
        let since = inner.going().map_or(0, |going| going.since);
        inner.going = Some(Going { at: Instant::now(), window, files: window, bytes: BYTES, since });
    }

    /// A file was asked for.
    pub fn file_asked(&self) {
        let mut inner = self.0.lock();
        inner.names = inner.names.map(|(at, _)| (at, 0));
    }

    /// The entries of a directory were asked for.
    pub fn names_asked(&self) {
        let mut inner = self.0.lock();
        let run = inner.names.map_or(0, |(_, run)| run);
        inner.names = Some((Instant::now(), run.saturating_add(1)));
    }

    /// Somebody is about to ask for his first names.
    pub fn somebody_comes(&self) {
        self.0.lock().names = Some((Instant::now(), 0));
    }

    /// Whether directories that nobody waits for are to be populated now: not while it is about to show whether their files are
    /// wanted with them, nor while who wants them is too far behind.
    pub fn lets_names_come(&self) -> bool {
        let mut inner = self.0.lock();
        match inner.going() {
            Some(going) => going.files > 0 && going.bytes > 0,
            None => inner.names.is_none_or(|(at, run)| run >= NAMES || at.elapsed() >= GRACE),
        }
    }

    /// Keeps of some files, inodes and sizes, those that are to come together with their names. `asked`: somebody waits for these
    /// names.
    pub fn choose(&self, files: &mut Vec<(u64, u64)>, asked: bool) {
        let mut inner = self.0.lock();
        let Inner { left_out, .. } = &mut *inner;
        let mut left_out = std::mem::take(left_out);
        match inner.going() {
            None => files.clear(),
            Some(going) => {
                if asked {
                    (going.files, going.bytes) = (going.window, BYTES);
                }
                files.retain(|(inode, size)| going.takes(*size, || left_out.push_back(*inode)));
            }
        }
        let old = left_out.len().saturating_sub(REMEMBERED);
        left_out.drain(..old);
        inner.left_out = left_out;
    }

    /// Whether a file was left out so that it be asked for.
    pub fn was_left_out(&self, inode: u64) -> bool {
        let mut inner = self.0.lock();
        let at = inner.left_out.iter().position(|left_out| *left_out == inode);
        at.is_some_and(|at| inner.left_out.remove(at).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(momentum: &Momentum, files: u64, asked: bool) -> Vec<u64> {
        let mut files: Vec<(u64, u64)> = (0..files).map(|inode| (inode, 100)).collect();
        momentum.choose(&mut files, asked);
        files.into_iter().map(|(inode, _)| inode).collect()
    }

    #[test]
    fn files_come_with_their_names_only_behind_a_reader_who_goes_on() {
        let momentum = Momentum::default();
        assert_eq!(chosen(&momentum, 100, true).len(), 0, "nobody has read anything");
        momentum.goes_on(64);
        assert_eq!(chosen(&momentum, 1000, false).len(), 64, "no farther ahead than the window");
        assert_eq!(chosen(&momentum, 1000, false).len(), 0);
        assert!(!momentum.lets_names_come(), "he is too far behind");
        assert!(chosen(&momentum, 10, true).len() >= 9, "what somebody waits for shows where he is");
    }

    #[test]
    fn one_in_so_many_is_left_out_and_shows_how_far_the_reader_is() {
        let momentum = Momentum::default();
        momentum.goes_on(128);
        let chosen = chosen(&momentum, 100, false);
        let left_out: Vec<u64> = (0..100).filter(|inode| !chosen.contains(inode)).collect();
        assert_eq!(left_out, [32, 65, 98]);
        assert!(momentum.was_left_out(65) && !momentum.was_left_out(65) && !momentum.was_left_out(5));
    }

    #[test]
    fn a_window_of_large_files_is_short() {
        let momentum = Momentum::default();
        momentum.goes_on(1024);
        let mut files = vec![(1, BYTES / 2), (2, BYTES / 2), (3, 1)];
        momentum.choose(&mut files, false);
        assert_eq!(files, [(1, BYTES / 2), (2, BYTES / 2)]);
    }

    #[test]
    fn names_wait_for_who_has_just_come() {
        let momentum = Momentum::default();
        assert!(momentum.lets_names_come());
        momentum.names_asked();
        assert!(!momentum.lets_names_come());
        (0..NAMES).for_each(|_| momentum.names_asked());
        assert!(momentum.lets_names_come(), "it is names that he wants");
        momentum.file_asked();
        momentum.names_asked();
        assert!(!momentum.lets_names_come());
    }
}
