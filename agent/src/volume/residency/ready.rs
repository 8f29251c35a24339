//! What can be found out of a file before the gate is closed for its eviction: whether somebody reads it, has it open, and asks
//! before he reads. It must not know how anything is taken away.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use storeshim_protocol::residency::PIECE;

use super::cache::{forget_cached, is_cached};
use super::evict::{Gone, Stays};
use super::file::{RUN, bytes_in, pieces_of};
use super::lease::{self, Alone};
use super::lru::{Offer, Run, Verdict};
use super::openers::Openers;
use super::preaccess::Kept;
use super::{Residency, find};
use crate::volume::VolumeError;
use crate::volume::index::Pieces;

/// For how long others' hands on a file are waited for.
const SOON: Duration = Duration::from_millis(20);

/// A look at who has what open is worth this long for a file that is open and was not among them.
const NEWS: Duration = Duration::from_millis(50);

/// In whose hands a file is, as a lease tells.
pub(super) enum Hands {
    /// Who opens it waits.
    Nobody,
    Somebody,
    /// This filesystem or user gets no leases.
    Unknown,
}

impl From<&Alone<'_>> for Hands {
    fn from(alone: &Alone<'_>) -> Self {
        match alone {
            Alone::Yes(_) => Self::Nobody,
            Alone::No => Self::Somebody,
            Alone::Unknown => Self::Unknown,
        }
    }
}

/// A file of which something may go.
pub struct Ready {
    /// The file.
    pub found: find::Inode,
    /// Which of its runs.
    pub runs: Vec<u64>,
    /// Why it does not go, if it does not.
    pub stays: Option<Stays>,
    /// Somebody has it open, who asks before he reads.
    pub open: bool,
    /// Who opens it without asking waits for the agent.
    pub kept: Option<Kept>,
}

impl Residency {
    /// Whether a run was not read since it was offered last.
    pub(super) fn may_go(&self, offer: &Offer) -> Result<bool, VolumeError> {
        let Run { inode, run } = offer.run;
        let Some(found) = self.at_its_place(inode)? else { return Ok(true) };
        // Nobody need wait for a lease of ours meanwhile.
        let _locked = self.files.lock(inode);
        let Ok(file) = self.open_to_look(&found) else { return Ok(true) };
        let (start, len) = (run * RUN * PIECE, RUN * PIECE);
        let end = found.stat.size.min(start + len);
        if !is_cached(&file, start, end.saturating_sub(start)) {
            return Ok(true);
        }
        forget_cached(file.as_fd(), start, len);
        let verdict = if offer.tried { Verdict::Used } else { Verdict::Tried };
        self.cache.policy.lock().judge(offer.run, verdict, end.saturating_sub(start));
        Ok(false)
    }

    /// The inode in the tree, where the last cut saw it.
    pub(super) fn at_its_place(&self, inode: u64) -> Result<Option<find::Inode>, VolumeError> {
        let Some(seen) = self.index.seen(inode)? else { return Ok(None) };
        let Some(kernel) = self.index.kernel(seen.id.ino)?.filter(|kernel| kernel.inode == inode) else {
            return Ok(None);
        };
        self.at_its_names(&kernel)
    }

    /// The file whose runs may go, marked: who opens it from now on is waited for. `None`: nothing of it is in the tree.
    pub(super) fn place(&self, inode: u64, runs: Vec<u64>) -> Result<Option<Ready>, VolumeError> {
        let Some(found) = self.at_its_place(inode)?.filter(|found| found.stat.is_file()) else {
            return Ok(None);
        };
        let kept = self.keep_mark(&found);
        Ok(Some(Ready { found, runs, stays: None, open: false, kept }))
    }

    /// What can be found out of a file before the gate is closed; `marked` is when all were that are.
    pub(super) fn make_ready(&self, mut ready: Ready, marked: Instant) -> Ready {
        let since = ready.kept.as_ref().map(|_| marked);
        let ino = ready.found.stat.id.ino;
        (ready.open, ready.stays) = match self.hands(&ready.found) {
            Ok(Hands::Nobody) => (false, None),
            Ok(Hands::Somebody) => match self.in_use(ino, false, since) {
                // Who had it open a moment ago, the agent itself perhaps, is gone by now.
                Some(Stays::Unknown) if self.is_let_go_soon(&ready.found) => (false, None),
                stays => (true, stays),
            },
            Ok(Hands::Unknown) => (true, self.in_use(ino, true, since)),
            // Somebody else's lease, or it is gone.
            Err(_) => (false, Some(Stays::Moving)),
        };
        ready
    }

    /// Whether somebody has a file open. Under its lock, since a lease keeps also who brings data from opening it.
    fn hands(&self, found: &find::Inode) -> io::Result<Hands> {
        let ino = found.stat.id.ino;
        let locked = self.files.lock(found.inode);
        let hands = match self.lend_guard(ino) {
            Some(file) if lease::is_breaking(&file) => return Err(io::ErrorKind::WouldBlock.into()),
            // Or there would be no guard.
            Some(_) => Hands::Nobody,
            None => {
                let until = Instant::now() + SOON;
                let file = found.open_until(self, libc::O_RDONLY | libc::O_NONBLOCK, until)?;
                Hands::from(&lease::alone(file.as_fd()))
            }
        };
        drop(locked);
        if matches!(hands, Hands::Nobody) {
            self.cache.unsure.met_closed(ino);
        }
        Ok(hands)
    }

    /// Whether a file is in nobody's hands any more in some milliseconds.
    fn is_let_go_soon(&self, found: &find::Inode) -> bool {
        let until = Instant::now() + SOON;
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
            if matches!(self.hands(found), Ok(Hands::Nobody)) {
                return true;
            }
        }
        false
    }

    /// Whether a file that somebody has open, or may have where no lease tells, must stay.
    /// From `since` on nobody begins to use it unseen.
    fn in_use(&self, ino: u64, no_leases: bool, since: Option<Instant>) -> Option<Stays> {
        let mut openers = self.cache.openers.lock();
        // It is open now, and was not when we looked: who reads files one after another has it again.
        let is_news = !no_leases && !openers.is_blind() && openers.of(ino).is_none();
        let news = Instant::now().checked_sub(NEWS).filter(|_| is_news);
        if since.max(news).is_some_and(|since| openers.is_older(since)) {
            *openers = Openers::look(self.tree.dev(), self.shared.gate());
        }
        let openers = openers.fresh(self.tree.dev(), self.shared.gate());
        match openers.of(ino) {
            Some(of) if of.mapped => Some(Stays::Pinned),
            Some(of) if of.unhooked => Some(Stays::Unhooked),
            Some(_) if self.cache.unsure.may_be_pinned(ino) => Some(Stays::Pinned),
            Some(_) => None,
            None if no_leases && !openers.is_blind() => None,
            None => Some(Stays::Unknown),
        }
    }
}

impl Ready {
    /// What came of it where it stays.
    pub fn stay(&self, why: Stays) -> Gone {
        let size = self.found.stat.size;
        let bytes = bytes_in(&self.pieces(pieces_of(size).end(), &Pieces::default()), size);
        Gone::stays(why, bytes)
    }

    /// The pieces of the runs of a file of `all` pieces, without `absent`.
    pub fn pieces(&self, all: u64, absent: &Pieces) -> Pieces {
        let mut pieces = Pieces::default();
        for run in &self.runs {
            pieces.add((run * RUN).min(all)..((run + 1) * RUN).min(all));
        }
        absent.iter().for_each(|range| pieces.remove(range));
        pieces
    }
}
