//! Which files must stay although nobody asks for them: they are read where no hook sees it. Who opens a file so while
//! something may be absent says so ([`Pin`]), and that lasts until nobody has the file open. Who opened it while
//! nothing was absent, or while another agent served, did not have to, or told somebody who is dead: such files count as
//! pinned until they have been met closed once. It must not know how files are evicted.

use std::collections::{HashMap, HashSet};

use storeshim_protocol::request::Pin;

use super::openers::Openers;
use crate::volume::status::Mutex;

/// Seconds for which a pin holds at least where whoever asked for it is not seen: he opens the file only then.
pub const LEAST: u32 = 10;

/// A pin that holds. Seconds are those of [`super::file::Files::now`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// When it was asked for last.
    asked: u32,
    /// When it was asked for last by somebody who had yet to open the file.
    coming: Option<u32>,
}

impl Pinned {
    /// What somebody asks for in the second `now`.
    pub fn by(pin: Pin, now: u32) -> Option<Self> {
        match pin {
            Pin::No => None,
            Pin::Open => Some(Self { asked: now, coming: None }),
            Pin::Soon => Some(Self { asked: now, coming: Some(now) }),
        }
    }

    /// Two pins of one file.
    pub fn both(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(one), Some(other)) => {
                Some(Self { asked: one.asked.max(other.asked), coming: one.coming.max(other.coming) })
            }
            (one, other) => one.or(other),
        }
    }

    /// Whether it has ended for a file that nobody has open: `sure`, where the kernel says so in this moment, and not a look
    /// at who has what open.
    pub fn is_over(self, now: u32, sure: bool) -> bool {
        let unseen = if sure { self.coming } else { Some(self.asked) };
        unseen.is_none_or(|since| now.saturating_sub(since) >= LEAST)
    }
}

/// Files that somebody may read without asking, since before we were asked. By kernel inode number. See the module.
#[derive(Default)]
pub struct Unsure(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    open: HashSet<u64>,
    /// All but these, which were met closed since. `None`: all are known.
    all_but: Option<HashSet<u64>>,
}

impl Unsure {
    /// Nothing was asked for up to now: what is open is in doubt.
    pub fn doubt(&self, openers: &Openers) {
        let mut inner = self.0.lock();
        inner.open.extend(openers.all());
        inner.all_but = openers.is_blind().then(HashSet::new);
    }

    /// A file was met closed: who opens it from now on asks.
    pub fn met_closed(&self, ino: u64) {
        let mut inner = self.0.lock();
        inner.open.remove(&ino);
        if let Some(known) = &mut inner.all_but {
            known.insert(ino);
        }
    }

    /// Whether a file that somebody has open may be read without asking.
    pub fn may_be_pinned(&self, ino: u64) -> bool {
        let inner = self.0.lock();
        inner.open.contains(&ino) || inner.all_but.as_ref().is_some_and(|known| !known.contains(&ino))
    }
}

/// What was asked to stay while the last cut did not know it: it lacked nothing then, but may be evicted once a commit has it.
/// By kernel inode number. (A number that is given out again pins another file, until that is met closed.)
#[derive(Default)]
pub struct Early(Mutex<HashMap<u64, Pinned>>);

/// Files of which that is remembered before those are looked for that nobody has open any more.
const EARLY: usize = 4096;

impl Early {
    /// A file is to stay: to be said before the index is asked whether it knows it. `open`: the files that somebody has
    /// open, or nothing where that cannot be told.
    pub fn pin(&self, ino: u64, pin: Pin, now: u32, open: impl FnOnce() -> Option<HashSet<u64>>) {
        let mut early = self.0.lock();
        if let Some(both) = Pinned::both(early.get(&ino).copied(), Pinned::by(pin, now)) {
            early.insert(ino, both);
        }
        if early.len() > EARLY
            && early.len().is_power_of_two()
            && let Some(open) = open()
        {
            early.retain(|ino, pinned| !pinned.is_over(now, false) || open.contains(ino));
        }
    }

    /// Whoever keeps what is known of a file knows of it now: what was asked for, if anything was.
    pub fn take(&self, ino: u64) -> Option<Pinned> {
        self.0.lock().remove(&ino)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_early_is_remembered_while_somebody_may_have_it_open() {
        let early = Early::default();
        for ino in 0..8192 {
            early.pin(ino, Pin::Open, 100, || None);
        }
        assert_eq!(early.take(5), Pinned::by(Pin::Open, 100));
        assert_eq!(early.take(5), None);
        for ino in 10_000..18_193 {
            early.pin(ino, Pin::Soon, 100 + LEAST, || Some(HashSet::from([6])));
        }
        assert_eq!(early.take(6), Pinned::by(Pin::Open, 100), "it is open");
        assert_eq!(early.take(7), None);
        assert_eq!(early.take(10_000), Pinned::by(Pin::Soon, 100 + LEAST), "it may be about to be opened");
    }

    #[test]
    fn a_pin_ends_with_its_last_descriptor_unless_one_is_yet_to_come() {
        let over = |pinned: Option<Pinned>, now, sure| pinned.unwrap().is_over(now, sure);
        let (open, soon) = (Pinned::by(Pin::Open, 100), Pinned::by(Pin::Soon, 103));
        assert_eq!(Pinned::by(Pin::No, 100), None);
        assert!(over(open, 100, true) && !over(open, 100, false) && over(open, 100 + LEAST, false));
        assert!(!over(soon, 103, true) && over(soon, 103 + LEAST, true));
        let later = Pinned::by(Pin::Open, 105);
        for both in [Pinned::both(soon, later), Pinned::both(later, soon)] {
            assert!(
                !over(both, 105, true) && over(both, 103 + LEAST, true) && !over(both, 103 + LEAST, false)
            );
        }
        assert_eq!(Pinned::both(None, open), open);
    }

    #[test]
    fn what_was_open_before_is_in_doubt_until_it_is_met_closed() {
        let unsure = Unsure::default();
        assert!(!unsure.may_be_pinned(5));
        unsure.doubt(&Openers::made_up(&[5], false));
        assert!(unsure.may_be_pinned(5) && !unsure.may_be_pinned(6));
        unsure.met_closed(5);
        assert!(!unsure.may_be_pinned(5));
        unsure.doubt(&Openers::made_up(&[], true));
        assert!(unsure.may_be_pinned(5) && unsure.may_be_pinned(6));
        unsure.met_closed(6);
        assert!(unsure.may_be_pinned(5) && !unsure.may_be_pinned(6));
    }
}
