//! Requests of clients, each on a thread of its own while it lasts: a client waits for one answer at a time, and one that
//! waits for the backend holds up nobody else. It must not know how a request travels.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, unbounded};
use storeshim_protocol::request::{Answer, Ask};
use storeshim_protocol::residency::PIECE;

use super::Residency;
use super::file::pieces_of;
use super::find::{Found, Inode};
use super::table::Lacking;
use crate::session::Reply;
use crate::volume::VolumeError;
use crate::volume::index::{self, Changes, Pieces};

/// Threads at most; more requests wait for one. (There are no more of them than threads of clients.)
const THREADS_MAX: usize = 64;
/// A thread without work ends after so long.
const IDLE: Duration = Duration::from_secs(10);

/// How often it is looked whether a file stays open, and the pause between two looks.
const OPEN_LOOKS: u32 = 10;
const OPEN_PAUSE: Duration = Duration::from_millis(2);

/// A question, and who wants the answer.
type Request = (Ask, Box<dyn Reply>);

/// See the module. `None` ends a thread.
pub struct Requests {
    queue: Sender<Option<Request>>,
    work: Receiver<Option<Request>>,
    threads: AtomicUsize,
    idle: AtomicUsize,
    /// Requests that are being answered.
    busy: AtomicUsize,
}

impl Default for Requests {
    fn default() -> Self {
        let (queue, work) = unbounded();
        Self {
            queue,
            work,
            threads: AtomicUsize::new(0),
            idle: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
        }
    }
}

impl Residency {
    /// Answers a request that is no barrier. Never blocks.
    pub fn request(self: &Arc<Self>, ask: Ask, reply: Box<dyn Reply>) {
        // The receiver is ours. After the end a request stands in its ring, and the next agent serves it.
        let _ = self.requests.queue.send(Some((ask, reply)));
        let queued = self.requests.work.len();
        if queued > self.requests.idle.load(Ordering::Relaxed)
            && self.requests.threads.load(Ordering::Relaxed) < THREADS_MAX
        {
            self.requests.threads.fetch_add(1, Ordering::Relaxed);
            let own = Arc::clone(self);
            let started = std::thread::Builder::new().name("request".into()).spawn(move || own.serve());
            if started.is_err() {
                // Those that are there, or the next ones, come to it.
                self.requests.threads.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Whether somebody waits for an answer.
    pub(super) fn requests_under_way(&self) -> bool {
        self.requests.busy.load(Ordering::Acquire) > 0
    }

    fn serve(self: Arc<Self>) {
        loop {
            self.requests.idle.fetch_add(1, Ordering::Relaxed);
            let next = self.requests.work.recv_timeout(IDLE);
            self.requests.idle.fetch_sub(1, Ordering::Relaxed);
            match next {
                Ok(Some((ask, reply))) => {
                    self.requests.busy.fetch_add(1, Ordering::AcqRel);
                    if !self.is_closed() {
                        self.answer(ask, reply);
                    }
                    self.requests.busy.fetch_sub(1, Ordering::AcqRel);
                }
                Ok(None) | Err(_) => break,
            }
        }
        self.requests.threads.fetch_sub(1, Ordering::AcqRel);
        // One may have come between the last look and the end.
        if let Ok(Some((ask, reply))) = self.requests.work.try_recv() {
            self.request(ask, reply);
        }
    }

    /// Ends the threads, and waits for that.
    pub(super) fn end_requests(&self) {
        while self.requests.threads.load(Ordering::Acquire) > 0 {
            // The receiver is ours.
            let _ = self.requests.queue.send(None);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn answer(self: &Arc<Self>, ask: Ask, reply: Box<dyn Reply>) {
        let answered = match ask {
            Ask::Populate { ino } => self.populate(ino).map(|()| self.note_populated(ino)).map(|()| Ok(0)),
            Ask::Find { ino, names } => self.descend(ino, names.iter()).map(|()| Ok(0)),
            Ask::Hydrate { ino, start, end, pin } => self.hydrate(ino, start, end, pin).map(|()| Ok(0)),
            Ask::Hint { ino, start, end } => {
                self.hint(ino, start, end);
                Ok(Ok(0))
            }
            Ask::Resize { ino, size } => self.resize(ino, size).map(|()| Ok(0)),
            Ask::Unlink { ino } => self.unlinking(ino).map(|()| Ok(0)),
            Ask::Open { ino } => self.let_in(ino).map(|()| Ok(0)),
            Ask::Seek { ino, start, hole } => self.seek(ino, start, hole),
            Ask::Blocks { ino } => self.blocks(ino),
            Ask::Room { .. } | Ask::Grow { .. } | Ask::Streamed { .. } => {
                return self.ask_for_room(ask, reply);
            }
            Ask::Barrier { .. } => Ok(Err(libc::EINVAL)),
        };
        if self.is_closed() {
            // What failed for that reason stands in its ring, and the next agent serves it.
            return;
        }
        reply.answer(match answered {
            Ok(Ok(value)) => Answer { errno: 0, value },
            Ok(Err(errno)) => Answer { errno, value: 0 },
            Err(error) => {
                tracing::warn!(?ask, %error, "a request has failed");
                // That this disk is full is nothing that a reader has to do with.
                let errno = if matches!(error, VolumeError::NoRoom(_)) { libc::EIO } else { error.errno() };
                Answer { errno, value: 0 }
            }
        });
    }

    /// A file is about to be cut or grown to `size`. What is to be cut off is not brought any more, and the piece that will
    /// be the last one is here. Whoever asked makes the same call after it.
    fn resize(&self, ino: u64, size: u64) -> Result<(), VolumeError> {
        let Found::Here(found) = self.find(ino)? else { return Ok(()) };
        if !found.stat.is_file() {
            return Ok(());
        }
        let last = size / PIECE;
        if !size.is_multiple_of(PIECE) && size < found.stat.size {
            self.bring_pieces(found.inode, &Pieces::of(last..last + 1), true)?;
        }
        let failed = |e: std::io::Error| {
            VolumeError::Failed(format!("the file with inode {ino} cannot be resized: {e}; mend the disk"))
        };
        let mut locked = self.files.lock(found.inode);
        let absent = locked.state(&self.index)?.absent.clone();
        let mut rest = absent.clone();
        rest.remove(size.div_ceil(PIECE)..u64::MAX);
        if rest == absent {
            return Ok(());
        }
        if self.tree.stat(std::os::fd::AsFd::as_fd(&found.handle)).map_err(failed)?.size > size {
            match self.lend_guard(ino) {
                Some(file) => file.set_len(size),
                None => {
                    found.open(self, libc::O_WRONLY | libc::O_NONBLOCK).and_then(|file| file.set_len(size))
                }
            }
            .map_err(failed)?;
        }
        self.keep_absent(&mut locked, ino, &absent, rest)
    }

    /// Remembers that a file lacks less than before, and shows it.
    pub(super) fn keep_absent(
        &self,
        locked: &mut super::file::Locked<'_>,
        ino: u64,
        before: &Pieces,
        rest: Pieces,
    ) -> Result<(), VolumeError> {
        let mut changes = Changes::new();
        index::set_absent(&mut changes, locked.inode(), &rest)?;
        self.index.apply_local(&changes)?;
        let is_whole = rest.is_empty();
        for range in before.iter() {
            let mut here = Pieces::of(range.clone());
            rest.within(range).for_each(|part| here.remove(part));
            here.iter().for_each(|part| self.table.came(ino, part.start, part.end));
        }
        locked.state(&self.index)?.absent = rest;
        if is_whole && !before.is_empty() {
            self.table.whole(locked.inode(), ino, Lacking::Bytes);
            self.marks.doubt(locked.inode());
        }
        Ok(())
    }

    /// The last name of a file may be about to go, while somebody has it open: he keeps what he could read.
    fn unlinking(&self, ino: u64) -> Result<(), VolumeError> {
        let Found::Here(found) = self.find(ino)? else { return Ok(()) };
        if !found.stat.is_file() || found.stat.links > 1 {
            return Ok(());
        }
        let absent = self.files.lock(found.inode).absent(&self.index)?;
        if !absent.is_empty() && self.stays_open(&found)? {
            self.bring_pieces(found.inode, &pieces_of(found.stat.size), true)?;
        }
        self.keep_for_later(&found)
    }

    /// As [`Residency::is_open`], of who has it open for more than a moment: the kernel opens a file that somebody opens for who
    /// listens to fanotify(7) as well, be it the agent that has looked at it.
    fn stays_open(&self, found: &Inode) -> Result<bool, VolumeError> {
        for _ in 0..OPEN_LOOKS {
            if !self.is_open(found)? {
                return Ok(false);
            }
            std::thread::sleep(OPEN_PAUSE);
        }
        self.is_open(found)
    }

    /// Whether anybody else has a file open (fcntl(2): a write lease is refused then).
    pub(super) fn is_open(&self, found: &Inode) -> Result<bool, VolumeError> {
        let _locked = self.files.lock(found.inode);
        if self.lend_guard(found.stat.id.ino).is_some() {
            return Ok(self.guards.waited_for(found.stat.id.ino).is_some());
        }
        // Where it cannot be opened nobody is sure.
        let Ok(file) = found.open(self, libc::O_RDONLY | libc::O_NONBLOCK) else { return Ok(true) };
        Ok(!self.tree.nobody_else(&file))
    }

    /// A file whose last name in the tree goes may have another one in a directory that is not populated yet: its data is
    /// kept for that.
    fn keep_for_later(&self, found: &Inode) -> Result<(), VolumeError> {
        let _links = self.populating.links();
        let names = self.index.links(found.inode)?.len() as u64;
        let Some(record) = self.index.inode(found.inode)? else { return Ok(()) };
        if u64::from(record.links) > names
            && let Err(error) = self.stage.keep(found.handle.as_fd(), found.inode)
        {
            tracing::warn!(%error, inode = found.inode, "a file that has another name cannot be kept for it");
        }
        Ok(())
    }
}
