//! Brings what will probably be asked for next: of a file that is read from front to back a window that grows, of a directory
//! whose small files are read one after another the ones that follow. Who reads at random gets what he asks for. It must not
//! know how anything is brought.
//!
//! A reader who finds what was read ahead does not ask, so nobody would learn how far he is: the first piece of each window
//! is hidden from him when it comes. He asks for it, is answered at once, and the next window is on its way while he reads
//! the rest of this one.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, unbounded};
use storeshim_protocol::request::Pin;
use storeshim_protocol::residency::PIECE;

use super::Residency;
use super::file::RUN;
use super::find::Inode;
use super::hydrate::{Job, SMALL};
use super::momentum;
use crate::meta::records::{Location, PackId};
use crate::volume::VolumeError;
use crate::volume::index::Pieces;
use crate::volume::status::Mutex;

/// Pieces of the largest window: 32 MiB. Two are on their way or not read yet.
const WINDOW_MAX: u64 = 256;
/// A window is so many times the one before it, and the first one what was asked for: 32 MiB of 128 KiB take four questions.
const GROWTH: u64 = 4;
/// Files and directories that are remembered.
const STREAMS: usize = 4096;
/// Threads that bring things ahead, and runs that each of them takes at once.
pub const THREADS: usize = 6;
const TOGETHER: usize = 2;

/// A file that is read in large steps.
struct Stream {
    /// The piece after what was asked for last.
    next: u64,
    /// Pieces of the last window.
    window: u64,
    /// What is before this is here or on its way.
    frontier: u64,
    /// The piece that is not shown.
    hidden: Option<u64>,
    asked: Instant,
}

/// A directory whose small files are read.
struct Siblings {
    asked: u32,
    window: usize,
    /// What is still absent, in the order in which packs hold it; `None` until that is looked up.
    rest: Option<Vec<u64>>,
    at: Instant,
}

/// Work for later.
enum Work {
    Run(Job),
    /// As a reader would ask: kernel inode, first byte and one past the last.
    Hint(u64, u64, u64),
    Siblings(u64, u64),
}

/// See the module.
pub struct Ahead {
    streams: Mutex<HashMap<u64, Stream>>,
    dirs: Mutex<HashMap<u64, Siblings>>,
    queue: Sender<Work>,
    work: Receiver<Work>,
}

impl Default for Ahead {
    fn default() -> Self {
        let (queue, work) = unbounded();
        Self { streams: Mutex::new(HashMap::new()), dirs: Mutex::new(HashMap::new()), queue, work }
    }
}

/// Makes room for one more: the longer half of those that were not asked for goes.
fn prune<T>(map: &mut HashMap<u64, T>, at: impl Fn(&T) -> Instant) {
    if map.len() >= STREAMS {
        let mut times: Vec<Instant> = map.values().map(&at).collect();
        let middle = times.len() / 2;
        let (_, middle, _) = times.select_nth_unstable(middle);
        let middle = *middle;
        map.retain(|_, value| at(value) > middle);
    }
}

impl Residency {
    /// A range of pieces was asked for; `missed`: not all of it was here.
    pub(super) fn look_ahead(&self, found: &Inode, range: &Range<u64>, missed: bool) {
        if found.stat.size <= SMALL {
            if missed && let Err(error) = self.beside(found.inode) {
                tracing::debug!(%error, "nothing is read ahead");
            }
            return;
        }
        let pieces = found.stat.size.div_ceil(PIECE);
        let most = WINDOW_MAX.min(self.options.cache_size.unwrap_or(u64::MAX) / 8 / PIECE).max(1);
        let mut streams = self.ahead.streams.lock();
        prune(&mut streams, |stream| stream.asked);
        let now = Instant::now();
        let stream = streams.entry(found.inode).or_insert(Stream {
            next: 0,
            window: 0,
            frontier: 0,
            hidden: None,
            asked: now,
        });
        stream.asked = now;
        if range.end == stream.next {
            // Another reader of the same.
            return;
        }
        // What lies before the frontier was read without a question.
        let went_on = range.start <= stream.frontier.max(stream.next) && range.end > stream.next;
        stream.next = range.end;
        stream.hidden = stream.hidden.filter(|hidden| !range.contains(hidden));
        if !went_on {
            (stream.window, stream.frontier) = (0, range.end);
            return;
        }
        let mut at = stream.frontier.max(range.end);
        if at - range.end > stream.window {
            // He has not come to the last window yet, but waits for what is on its way.
            return;
        }
        stream.window = (stream.window.max(range.end - range.start).max(1) * GROWTH).min(most);
        let mut end = at + stream.window;
        if stream.window >= RUN {
            end = end.next_multiple_of(RUN);
        }
        let end = end.min(pieces);
        if at >= end {
            return;
        }
        (stream.frontier, stream.hidden) = (end, Some(at));
        drop(streams);
        while at < end {
            let next = ((at / RUN + 1) * RUN).min(end);
            // The receiver is ours.
            let _ =
                self.ahead.queue.send(Work::Run(Job { inode: found.inode, pieces: Pieces::of(at..next) }));
            at = next;
        }
    }

    /// Shows pieces that have come, but for the one by which a reader is to tell how far he is.
    pub(super) fn came(&self, inode: u64, ino: u64, range: &Range<u64>) {
        let hidden = self.ahead.streams.lock().get(&inode).and_then(|stream| stream.hidden);
        match hidden.filter(|hidden| range.contains(hidden)) {
            Some(hidden) => {
                self.table.came(ino, range.start, hidden);
                self.table.came(ino, hidden + 1, range.end);
            }
            None => self.table.came(ino, range.start, range.end),
        }
    }

    /// Bytes of a file will be read soon.
    pub(super) fn hint(&self, ino: u64, start: u64, end: u64) {
        // The receiver is ours.
        let _ = self.ahead.queue.send(Work::Hint(ino, start, end));
    }

    /// A small file was asked for: perhaps those beside it are, too.
    fn beside(&self, inode: u64) -> Result<(), VolumeError> {
        self.momentum.file_asked();
        let Some((dir, _)) = self.index.links(inode)?.into_iter().next() else { return Ok(()) };
        let now = Instant::now();
        let momentum = self.momentum.window();
        let mut dirs = self.ahead.dirs.lock();
        prune(&mut dirs, |siblings| siblings.at);
        let siblings = dirs.entry(dir).or_insert(Siblings {
            asked: 0,
            window: momentum.unwrap_or(momentum::FILES.0) / 2,
            rest: None,
            at: now,
        });
        siblings.at = now;
        siblings.asked += 1;
        if let (true, Some(window)) = (self.momentum.was_left_out(inode), momentum) {
            siblings.window = siblings.window.max(window);
        }
        if siblings.asked == 1 && momentum.is_none() {
            return Ok(());
        }
        siblings.window = (siblings.window * 2).clamp(momentum::FILES.0, momentum::FILES.1);
        self.momentum.goes_on(siblings.window);
        // The receiver is ours.
        let _ = self.ahead.queue.send(Work::Siblings(dir, inode));
        Ok(())
    }

    /// Brings the next window of a directory's small files; `after` is the one that was asked for.
    fn bring_siblings(&self, dir: u64, after: u64) -> Result<(), VolumeError> {
        let known =
            self.ahead.dirs.lock().get_mut(&dir).map(|siblings| (siblings.rest.take(), siblings.window));
        let Some((rest, window)) = known else { return Ok(()) };
        let mut rest = match rest {
            Some(rest) => rest,
            None => self.absent_in(dir, after)?,
        };
        let (mut jobs, mut bytes, mut taken) = (Vec::new(), 0, 0);
        for inode in &rest {
            if jobs.len() >= window || bytes >= momentum::BYTES {
                break;
            }
            taken += 1;
            let pieces = self.files.lock(*inode).absent(&self.index)?;
            if !pieces.is_empty() {
                bytes += pieces.count() * PIECE;
                jobs.push(Job { inode: *inode, pieces });
            }
        }
        rest.drain(..taken);
        if let Some(siblings) = self.ahead.dirs.lock().get_mut(&dir) {
            siblings.rest = Some(rest);
        }
        self.bring(&jobs, false)
    }

    /// Small files of a directory that are absent, as packs hold them, those behind `after` first.
    fn absent_in(&self, dir: u64, after: u64) -> Result<Vec<u64>, VolumeError> {
        let mut inodes = Vec::new();
        for (_, inode) in self.index.children(dir)? {
            let small = self.index.seen(inode)?.is_some_and(|seen| seen.size <= SMALL);
            if small && self.index.absent(inode)?.is_some() {
                inodes.push(inode);
            }
        }
        self.index.load_files(&inodes, self.until())?;
        let mut placed: Vec<((PackId, u32), u64)> = Vec::with_capacity(inodes.len());
        for inode in inodes {
            placed.push((self.place_of(inode)?, inode));
        }
        placed.sort_unstable();
        let first = placed.iter().position(|(_, inode)| *inode == after).map_or(0, |at| at + 1);
        let behind = first.min(placed.len());
        placed.rotate_left(behind);
        Ok(placed.into_iter().map(|(_, inode)| inode).filter(|inode| *inode != after).collect())
    }

    /// Where a file's data begins.
    fn place_of(&self, inode: u64) -> Result<(PackId, u32), VolumeError> {
        let first = self.index.block(inode, 0)?.and_then(|block| block.extents.into_iter().next());
        let chunk = first.map(|extent| self.index.chunk(&extent.chunk)).transpose()?.flatten();
        Ok(match chunk.map(|chunk| chunk.location) {
            Some(Location::Pack { pack, offset }) => (pack, offset),
            _ => Default::default(),
        })
    }

    /// One of the threads that bring things ahead, until the volume is closed.
    pub(super) fn run_ahead(self: &Arc<Self>) {
        while !self.is_closed() {
            let Ok(first) = self.ahead.work.recv_timeout(Duration::from_millis(200)) else { continue };
            let mut jobs = Vec::new();
            let mut take = |work| {
                match work {
                    Work::Run(job) => jobs.push(job),
                    // Said where it failed.
                    Work::Hint(ino, start, end) => _ = self.hydrate(ino, start, end, Pin::No),
                    Work::Siblings(dir, after) => _ = self.bring_siblings(dir, after),
                }
                jobs.len() < TOGETHER
            };
            if take(first) {
                let _ = self.ahead.work.try_iter().take(TOGETHER).all(&mut take);
            }
            // Said where it failed; whoever reads it asks, and gets the error.
            let _ = self.bring(&jobs, false);
        }
    }
}
