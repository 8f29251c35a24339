//! Whose turn it is with a directory that is not populated: one at a time brings entries of it. Who waits for a single one while
//! all of them come says so, and gets it soon. It must not know how entries are brought.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// See the module.
#[derive(Default)]
pub struct Populating {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Held while entries of inodes with several names are staged and placed: who makes the second name of one must find
    /// the first in the tree, not on its way there. And who keeps such an inode for a name that is to come keeps it until that
    /// has come.
    links: Mutex<()>,
}

#[derive(Default)]
struct Inner {
    /// By volume inode.
    dirs: HashMap<u64, Holder>,
    turns: u64,
}

/// Who has the turn of a directory.
struct Holder {
    turn: u64,
    /// Names that somebody waits for.
    wanted: HashSet<Vec<u8>>,
}

/// The turn of a directory, until it is dropped.
pub struct Turn<'a> {
    populating: &'a Populating,
    dir: u64,
}

impl Inner {
    /// Takes the turn of a directory, or says who has it.
    fn take(&mut self, dir: u64) -> Result<(), &mut Holder> {
        self.turns += 1;
        match self.dirs.entry(dir) {
            Entry::Vacant(free) => {
                free.insert(Holder { turn: self.turns, wanted: HashSet::new() });
                Ok(())
            }
            Entry::Occupied(taken) => Err(taken.into_mut()),
        }
    }
}

impl Populating {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// While this is held no inode with several names is on its way to one of them.
    pub fn links(&self) -> MutexGuard<'_, ()> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn of a directory.
    pub fn turn(&self, dir: u64) -> Turn<'_> {
        let mut inner = self.inner();
        while inner.take(dir).is_err() {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        Turn { populating: self, dir }
    }

    /// The same; `None` once somebody else has brought the entry `name`, or there is none of that name.
    pub fn turn_unless_found(&self, dir: u64, name: &[u8]) -> Option<Turn<'_>> {
        let mut inner = self.inner();
        loop {
            let turn = match inner.take(dir) {
                Ok(()) => return Some(Turn { populating: self, dir }),
                Err(holder) => {
                    holder.wanted.insert(name.to_vec());
                    holder.turn
                }
            };
            while let Some(holder) = inner.dirs.get(&dir).filter(|holder| holder.turn == turn) {
                if !holder.wanted.contains(name) {
                    return None;
                }
                inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Turn<'_> {
    /// Names that somebody waits for.
    pub fn wanted(&self) -> HashSet<Vec<u8>> {
        self.populating.inner().dirs.get(&self.dir).map(|holder| holder.wanted.clone()).unwrap_or_default()
    }

    /// Whoever waits for one of these names need not any more.
    pub fn are_found(&self, names: &HashSet<Vec<u8>>) {
        if let (false, Some(holder)) = (names.is_empty(), self.populating.inner().dirs.get_mut(&self.dir)) {
            holder.wanted.retain(|name| !names.contains(name));
            self.populating.changed.notify_all();
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.populating.inner().dirs.remove(&self.dir);
        self.populating.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_waits_for_a_name_goes_on_when_it_has_come() {
        let populating = Populating::default();
        let turn = populating.turn(7);
        assert!(populating.turn_unless_found(8, b"a").is_some(), "another directory is free");
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| populating.turn_unless_found(7, b"a").is_none());
            let waits_on = scope.spawn(|| populating.turn_unless_found(7, b"b").is_some());
            while turn.wanted().len() < 2 {
                std::thread::yield_now();
            }
            turn.are_found(&HashSet::from([b"a".to_vec()]));
            assert!(waits.join().unwrap());
            assert_eq!(turn.wanted(), HashSet::from([b"b".to_vec()]));
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waits_on.is_finished());
            drop(turn);
            assert!(waits_on.join().unwrap(), "who had the turn has not brought it");
        });
    }

    #[test]
    fn a_turn_says_nothing_of_names_that_another_one_was_asked_for() {
        let populating = Populating::default();
        let turn = populating.turn(7);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| populating.turn_unless_found(7, b"a").is_some());
            while turn.wanted().is_empty() {
                std::thread::yield_now();
            }
            // As if somebody had been faster between the two turns.
            {
                let mut inner = populating.inner();
                inner.turns += 1;
                let turn = inner.turns;
                inner.dirs.insert(7, Holder { turn, wanted: HashSet::new() });
                populating.changed.notify_all();
            }
            while turn.wanted().is_empty() {
                std::thread::yield_now();
            }
            drop(turn);
            assert!(waits.join().unwrap());
        });
    }
}
