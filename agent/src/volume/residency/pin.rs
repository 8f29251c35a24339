//! Which files must stay although nobody asks for them: they are read where no hook sees it. Who opens a file so while
//! something may be absent says so (`Hydrate` with `pin`), and that lasts until nobody has the file open. Who opened it while
//! nothing was absent, or while another agent served, did not have to, or told somebody who is dead: such files count as
//! pinned until they have been met closed once. It must not know how files are evicted.

use std::collections::HashSet;

use super::openers::Openers;
use crate::volume::status::Mutex;

/// Seconds for which a pin holds at least: who asked for it opens the file only then.
pub const LEAST: u32 = 10;

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

#[cfg(test)]
mod tests {
    use super::*;

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
