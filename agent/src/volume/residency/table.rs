//! The agent's side of the table that clients see: which cells have something absent, whose bitmaps are shown, and the
//! one word that says that nothing is absent at all. It must not know why anything comes or goes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use storeshim_protocol::residency::{CELLS, WORDS, cell_of, places_of};

use crate::session::ResidencyTable;
use crate::volume::index::Pieces;
use crate::volume::status::{Mutex, Shared};

/// Words of bitmaps that one file may take: a file beyond that (64 TiB) is asked for.
const WORDS_OF_A_FILE: usize = WORDS / 16;

/// What lacks something.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Lacking {
    /// A file, some of its bytes.
    Bytes,
    /// A directory, its entries.
    Names,
}

/// See the module.
pub struct Table {
    shown: Arc<ResidencyTable>,
    shared: Arc<Shared>,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Inodes of each cell that lack something. While [`Inner::early`] is there some are not counted yet, and a number may
    /// be below 0.
    absent: Vec<i32>,
    /// Inodes that are being written into, by cell.
    moving: HashMap<usize, u32>,
    /// Inodes that lack something, over all cells, and the files of them.
    total: i64,
    files: i64,
    slots: HashMap<u64, Slot>,
    /// Whose slot it is, by its place.
    taken: HashMap<usize, u64>,
    words: Words,
    clock: u64,
    /// Raised whenever something begins to be absent, or goes.
    losses: u64,
    /// The inodes that lacked something when the agent started are still being counted.
    early: Option<Early>,
    /// Directories may still be unpopulated whose number nobody knows.
    names_complete: bool,
    /// Something was evicted by this agent: nobody may be told any more that all is here.
    evicted: bool,
    complete: bool,
}

/// Clients know that an inode's times are not its own: each that asks for them waits until this is dropped.
pub struct Moving<'t> {
    table: &'t Table,
    ino: u64,
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.table.set_moving(self.ino, false);
    }
}

struct Slot {
    place: usize,
    pieces: u64,
    word: u32,
    used: u64,
}

/// What was absent at the start is counted while inodes come and go. Volume inodes.
#[derive(Default)]
struct Early {
    counted: HashSet<u64>,
    /// Absent since the start only.
    added: HashSet<u64>,
    /// Not counted yet, and not absent any more.
    gone: HashSet<u64>,
}

impl Table {
    /// Takes over the table, which clients of an earlier agent may have mapped: nothing that stands in it is believed, so
    /// everybody asks until [`Table::counted`].
    pub fn new(shown: Arc<ResidencyTable>, shared: Arc<Shared>) -> Self {
        shared.gate().set_complete(false);
        for cell in 0..CELLS as u64 {
            // Before the slots go, so that nobody finds the cell clear and stale bits behind it.
            shown.set_absent(cell);
            shown.set_moving(cell, false);
        }
        for slot in 0..storeshim_protocol::residency::SLOTS {
            shown.give(slot, 0, 0, 0);
        }
        let inner = Inner {
            absent: vec![0; CELLS],
            moving: HashMap::new(),
            total: 0,
            files: 0,
            slots: HashMap::new(),
            taken: HashMap::new(),
            words: Words::default(),
            clock: 0,
            losses: 0,
            early: Some(Early::default()),
            names_complete: false,
            evicted: false,
            complete: false,
        };
        Self { shown, shared, inner: Mutex::new(inner) }
    }

    /// Counts an inode that lacked something when the agent started.
    pub fn count_early(&self, inode: u64, ino: u64, what: Lacking) {
        let mut inner = self.inner.lock();
        if let Some(early) = &mut inner.early
            && !early.gone.remove(&inode)
            && !early.added.contains(&inode)
        {
            early.counted.insert(inode);
            inner.add(ino, what, 1);
        }
    }

    /// All that lacked something at the start are counted: what lacks nothing is shown.
    pub fn counted(&self) {
        let mut inner = self.inner.lock();
        if inner.early.take().is_some() {
            for (cell, count) in inner.absent.iter().enumerate() {
                if *count <= 0 {
                    self.shown.set_whole(cell as u64);
                }
            }
        }
        self.show_complete(&mut inner);
    }

    /// Something of an inode is not here from now on: to be called once when that begins, before it can be missed, and before the
    /// index says so: who counts what is absent there would count it as well.
    pub fn absent(&self, inode: u64, ino: u64, what: Lacking) {
        let mut inner = self.inner.lock();
        inner.losses += 1;
        if let Some(early) = &mut inner.early {
            early.added.insert(inode);
        }
        inner.add(ino, what, 1);
        self.shown.set_absent(ino);
        // A bitmap says that it is whole, or is left by a file that had the number before.
        self.free(&mut inner, ino);
        self.show_complete(&mut inner);
    }

    /// Nothing of an inode is missing any more, or it is gone: to be called once for each [`Table::absent`].
    pub fn whole(&self, inode: u64, ino: u64, what: Lacking) {
        let mut inner = self.inner.lock();
        if let Some(early) = &mut inner.early
            && !early.counted.remove(&inode)
        {
            // The counting may still meet it.
            early.gone.insert(inode);
            if !early.added.remove(&inode) {
                return;
            }
        }
        inner.add(ino, what, -1);
        if inner.early.is_none() && inner.absent.get(cell_of(ino)).is_some_and(|count| *count <= 0) {
            self.shown.set_whole(ino);
        }
        self.show_complete(&mut inner);
    }

    /// An inode that lacks something is about to be lost, and counts until [`Table::whole`], although those who count what lacked
    /// something at the start may not meet it any more.
    pub fn keep(&self, inode: u64, ino: u64, what: Lacking) {
        let mut inner = self.inner.lock();
        let is_new = |early: &mut Early| !early.counted.contains(&inode) && early.added.insert(inode);
        if inner.early.as_mut().is_some_and(is_new) {
            inner.add(ino, what, 1);
        }
    }

    /// Whether clients need not look at the table at all.
    pub fn is_complete(&self) -> bool {
        self.inner.lock().complete
    }

    /// Whether all names of the volume are in the tree.
    pub fn has_all_names(&self) -> bool {
        self.inner.lock().names_complete
    }

    /// Inodes that lack something.
    pub fn absentees(&self) -> u64 {
        self.inner.lock().total.max(0) as u64
    }

    /// Files that lack something.
    pub fn absent_files(&self) -> u64 {
        self.inner.lock().files.max(0) as u64
    }

    /// All names of the volume are in the tree.
    pub fn names_are_complete(&self) {
        let mut inner = self.inner.lock();
        inner.names_complete = true;
        self.shared.gate().show_names_complete();
        self.show_complete(&mut inner);
    }

    /// The agent writes into an inode, or moves its times, until the returned value is dropped.
    pub fn moving(&self, ino: u64) -> Moving<'_> {
        self.set_moving(ino, true);
        Moving { table: self, ino }
    }

    fn set_moving(&self, ino: u64, moving: bool) {
        let mut inner = self.inner.lock();
        let count = inner.moving.entry(cell_of(ino)).or_default();
        *count = if moving { *count + 1 } else { count.saturating_sub(1) };
        let any = *count > 0;
        if !any {
            inner.moving.remove(&cell_of(ino));
        }
        self.shown.set_moving(ino, any);
    }

    /// Shows which of a file's `pieces` pieces are here: gives it a bitmap, or brings the one that it has up to date. A
    /// directory that is populated may have one of one piece. (Nothing follows where there is no room: clients ask.)
    pub fn show(&self, ino: u64, pieces: u64, absent: &Pieces) {
        let mut inner = self.inner.lock();
        inner.clock += 1;
        let clock = inner.clock;
        if inner.complete || pieces == 0 {
            return;
        }
        match inner.slots.get_mut(&ino) {
            Some(slot) if slot.pieces >= pieces => {
                slot.used = clock;
                let pieces = slot.pieces;
                self.set_bits(ino, 0, pieces, absent);
            }
            _ => {
                self.free(&mut inner, ino);
                if self.give(&mut inner, ino, pieces) {
                    self.set_bits(ino, 0, pieces, absent);
                }
            }
        }
    }

    /// What [`Table::show_new`] is to be called with, taken before the index is asked whether it knows a file.
    pub fn losses(&self) -> u64 {
        self.inner.lock().losses
    }

    /// Gives a file a bitmap that was wholly here when [`Table::losses`] said `since`: not where anything has gone since, for
    /// it may be this one, or one that has its number now.
    pub fn show_new(&self, ino: u64, since: u64) {
        let mut inner = self.inner.lock();
        inner.clock += 1;
        if inner.losses == since
            && !inner.complete
            && !inner.slots.contains_key(&ino)
            && self.give(&mut inner, ino, 1)
        {
            self.set_bits(ino, 0, 1, &Pieces::default());
        }
    }

    /// Pieces of a file have come; to be called when their bytes are there.
    pub fn came(&self, ino: u64, start: u64, end: u64) {
        let mut inner = self.inner.lock();
        inner.clock += 1;
        let clock = inner.clock;
        if let Some(slot) = inner.slots.get_mut(&ino) {
            slot.used = clock;
            for piece in start..end.min(slot.pieces) {
                self.shown.set_piece(ino, piece, true);
            }
        }
    }

    /// From now on something may be evicted, and clients look at the table. To be called before the first eviction, and
    /// any number of times.
    pub fn evictions_begin(&self) {
        let mut inner = self.inner.lock();
        inner.evicted = true;
        self.show_complete(&mut inner);
    }

    /// Pieces of a file are about to go: to be called before their bytes do, and after [`Table::evictions_begin`]. Stands
    /// beside [`Table::absent`], which is called where the file was whole.
    pub fn going(&self, ino: u64, start: u64, end: u64) {
        let mut inner = self.inner.lock();
        inner.losses += 1;
        self.shown.set_absent(ino);
        match inner.slots.get(&ino) {
            // What lies beyond the bitmap counts as here.
            Some(slot) if end > slot.pieces => self.free(&mut inner, ino),
            Some(_) => (start..end).for_each(|piece| {
                self.shown.set_piece(ino, piece, false);
            }),
            None => {}
        }
        // Last: with the new version nobody may find a piece that is still shown.
        self.shown.evicting(ino);
    }

    /// Takes a file's bitmap back, if it has one.
    pub fn forget(&self, ino: u64) {
        let mut inner = self.inner.lock();
        self.free(&mut inner, ino);
    }

    fn set_bits(&self, ino: u64, start: u64, end: u64, absent: &Pieces) {
        let mut here = Pieces::of(start..end);
        absent.within(start..end).for_each(|range| here.remove(range));
        for piece in absent.within(start..end).flatten() {
            self.shown.set_piece(ino, piece, false);
        }
        for piece in here.iter().flatten() {
            self.shown.set_piece(ino, piece, true);
        }
    }

    fn give(&self, inner: &mut Inner, ino: u64, pieces: u64) -> bool {
        let words = usize::try_from(pieces.div_ceil(64)).unwrap_or(usize::MAX);
        if words > WORDS_OF_A_FILE {
            return false;
        }
        // A free place, or that of the file which was asked for longest ago.
        let used =
            |place: &usize| inner.taken.get(place).and_then(|ino| inner.slots.get(ino)).map_or(0, |s| s.used);
        let Some(place) = places_of(ino).min_by_key(used) else { return false };
        if let Some(other) = inner.taken.get(&place).copied() {
            self.free(inner, other);
        }
        let word = loop {
            if let Some(word) = inner.words.take(words) {
                break word;
            }
            // Rare: bitmaps of files of terabytes have filled it.
            let Some(oldest) = inner.slots.iter().min_by_key(|(_, slot)| slot.used).map(|(ino, _)| *ino)
            else {
                return false;
            };
            self.free(inner, oldest);
        };
        if !self.shown.give(place, ino, pieces, word) {
            inner.words.give_back(word, words);
            return false;
        }
        inner.taken.insert(place, ino);
        let used = inner.clock;
        inner.slots.insert(ino, Slot { place, pieces, word, used });
        true
    }

    fn free(&self, inner: &mut Inner, ino: u64) {
        if let Some(slot) = inner.slots.remove(&ino) {
            inner.taken.remove(&slot.place);
            self.shown.give(slot.place, 0, 0, 0);
            inner.words.give_back(slot.word, slot.pieces.div_ceil(64) as usize);
        }
    }

    fn show_complete(&self, inner: &mut Inner) {
        let complete = inner.early.is_none() && inner.names_complete && inner.total <= 0 && !inner.evicted;
        if complete != inner.complete {
            inner.complete = complete;
            self.shared.gate().set_complete(complete);
        }
    }
}

impl Inner {
    fn add(&mut self, ino: u64, what: Lacking, change: i32) {
        self.total += i64::from(change);
        if what == Lacking::Bytes {
            self.files += i64::from(change);
        }
        if let Some(count) = self.absent.get_mut(cell_of(ino)) {
            *count = count.saturating_add(change);
        }
    }
}

/// Free words of bitmaps: runs by their first word, neighbours merged.
struct Words(BTreeMap<u32, usize>);

impl Default for Words {
    fn default() -> Self {
        Self(BTreeMap::from([(0, WORDS)]))
    }
}

impl Words {
    fn take(&mut self, count: usize) -> Option<u32> {
        let (at, len) = self.0.iter().find(|(_, len)| **len >= count).map(|(at, len)| (*at, *len))?;
        self.0.remove(&at);
        if len > count {
            self.0.insert(at + count as u32, len - count);
        }
        Some(at)
    }

    fn give_back(&mut self, at: u32, count: usize) {
        let (mut at, mut len) = (at, count);
        if let Some((before, n)) = self.0.range(..at).next_back().map(|(b, n)| (*b, *n))
            && before as usize + n == at as usize
        {
            self.0.remove(&before);
            (at, len) = (before, n + len);
        }
        if let Some(n) = self.0.remove(&(at + len as u32)) {
            len += n;
        }
        self.0.insert(at, len);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use storeshim_protocol::residency::{PIECE, REACH};

    use super::*;
    use crate::volume::tests::idle_gate;

    fn table() -> (Table, Arc<ResidencyTable>) {
        let shown = Arc::new(ResidencyTable::anonymous().unwrap());
        let table = Table::new(Arc::clone(&shown), Shared::new(idle_gate()));
        (table, shown)
    }

    #[test]
    fn a_cell_is_whole_when_its_last_inode_is() {
        let (table, shown) = table();
        table.count_early(5, 77, Lacking::Bytes);
        assert!(shown.whole(8).is_none(), "nothing is believed before all are counted");
        table.counted();
        assert!(shown.whole(8).is_some() && shown.whole(77).is_none());
        table.absent(6, 77 + CELLS as u64, Lacking::Bytes);
        table.whole(5, 77, Lacking::Bytes);
        assert!(shown.whole(77).is_none(), "another one of the cell lacks something");
        table.whole(6, 77 + CELLS as u64, Lacking::Bytes);
        assert!(shown.whole(77).is_some());
    }

    #[test]
    fn what_changes_while_the_absent_are_counted_is_counted_once() {
        let (table, shown) = table();
        table.count_early(5, 77, Lacking::Bytes);
        table.whole(5, 77, Lacking::Bytes);
        table.whole(9, 99, Lacking::Bytes);
        table.absent(9, 99, Lacking::Bytes);
        table.whole(9, 99, Lacking::Bytes);
        table.count_early(9, 99, Lacking::Bytes);
        table.absent(20, 100, Lacking::Bytes);
        table.absent(21, 101, Lacking::Bytes);
        table.whole(21, 101, Lacking::Bytes);
        // What began while they were counted is met by the counting, too; also when it is over.
        table.count_early(20, 100, Lacking::Bytes);
        table.count_early(21, 101, Lacking::Bytes);
        table.absent(22, 102, Lacking::Bytes);
        table.count_early(22, 102, Lacking::Bytes);
        table.whole(22, 102, Lacking::Bytes);
        // Removed, and not to be met any more.
        table.keep(40, 100, Lacking::Bytes);
        table.keep(20, 100, Lacking::Bytes);
        table.count_early(30, 103, Lacking::Names);
        table.absent(31, 104, Lacking::Names);
        table.count_early(31, 104, Lacking::Names);
        table.counted();
        // A directory that was found, and one that has begun to lack names.
        assert_eq!((table.absentees(), table.absent_files()), (4, 2));
        table.whole(40, 100, Lacking::Bytes);
        table.whole(30, 103, Lacking::Names);
        table.whole(31, 104, Lacking::Names);
        assert!(shown.whole(77).is_some() && shown.whole(99).is_some() && shown.whole(100).is_none());
        assert!(shown.whole(101).is_some() && shown.whole(102).is_some());
        table.whole(20, 100, Lacking::Bytes);
        assert!(table.absentees() == 0 && table.absent_files() == 0 && shown.whole(100).is_some());
    }

    #[test]
    fn completeness_comes_once_all_is_here_and_ends_with_the_first_eviction() {
        let (table, _) = table();
        table.counted();
        assert!(!table.is_complete(), "names may be missing");
        table.absent(1, 7, Lacking::Bytes);
        table.names_are_complete();
        assert!(!table.is_complete());
        table.whole(1, 7, Lacking::Bytes);
        assert!(table.is_complete());
        table.evictions_begin();
        assert!(!table.is_complete());
        table.counted();
        assert!(!table.is_complete(), "for good");
    }

    #[test]
    fn a_full_neighbourhood_gives_the_place_of_whom_nobody_asked_for() {
        let (table, shown) = table();
        table.counted();
        let first = places_of(7).next().unwrap();
        let crowd: Vec<u64> =
            (1..5_000_000).filter(|ino| places_of(*ino).next() == Some(first)).take(REACH + 1).collect();
        assert_eq!(crowd.len(), REACH + 1);
        for ino in &crowd {
            table.absent(*ino, *ino, Lacking::Bytes);
            table.show(*ino, 1, &Pieces::default());
        }
        assert!(shown.check(crowd[0], 0, PIECE).is_none(), "the first one had to go");
        assert!(crowd[1..].iter().all(|ino| shown.check(*ino, 0, PIECE).is_some()));
    }

    #[test]
    fn what_goes_is_hidden_also_where_no_bit_stands_for_it() {
        let (table, shown) = table();
        table.counted();
        table.evictions_begin();
        table.absent(1, 7, Lacking::Bytes);
        table.show(7, 2, &Pieces::of(0..1));
        assert!(shown.check(7, 0, PIECE).is_none() && shown.check(7, PIECE, 9 * PIECE).is_some());
        let stamp = shown.check(7, PIECE, 9 * PIECE).unwrap();
        table.going(7, 5, 6);
        assert!(!shown.still(stamp) && shown.check(7, PIECE, 9 * PIECE).is_none());
    }

    #[test]
    fn a_number_that_stands_for_another_file_shows_nothing_of_the_former() {
        let (table, shown) = table();
        table.counted();
        table.absent(1, 7, Lacking::Bytes);
        table.show(7, 3, &Pieces::default());
        assert!(shown.check(7, 0, PIECE).is_some());
        table.absent(2, 7, Lacking::Bytes);
        assert!(shown.check(7, 0, PIECE).is_none(), "what is made under its number has nothing yet");
    }

    #[test]
    fn what_was_new_is_not_shown_when_anything_has_gone_since() {
        let (table, shown) = table();
        table.counted();
        table.absent(1, 7 + CELLS as u64, Lacking::Bytes);
        let since = table.losses();
        table.show_new(7, since);
        assert!(shown.check(7, 0, 9 * PIECE).is_some());
        let since = table.losses();
        table.absent(2, 7, Lacking::Bytes);
        table.show_new(7, since);
        assert!(shown.check(7, 0, PIECE).is_none(), "it was evicted between the look at the index and this");
        let since = table.losses();
        table.going(7, 0, 1);
        table.show_new(7, since);
        assert!(shown.check(7, 0, PIECE).is_none());
    }

    #[test]
    fn two_writers_of_one_cell_end_one_after_another() {
        let (table, shown) = table();
        let one = table.moving(7);
        let other = table.moving(7 + CELLS as u64);
        drop(one);
        assert!(shown.is_moving(7));
        drop(other);
        assert!(!shown.is_moving(7));
    }

    /// Else each stat(2) of it would wait, for as long as the agent lives.
    #[test]
    fn nothing_moves_any_more_when_its_writer_has_failed() {
        let (table, shown) = table();
        let fails = || -> Result<(), std::io::Error> {
            let _moving = table.moving(7);
            assert!(shown.is_moving(7));
            Err(std::io::ErrorKind::Other.into())
        };
        assert!(fails().is_err());
        assert!(!shown.is_moving(7));
    }

    proptest! {
        #[test]
        fn words_are_lent_once_and_come_back(sizes in prop::collection::vec((1_usize..3000, any::<bool>()), 1..200)) {
            let mut words = Words::default();
            let mut lent: Vec<(u32, usize)> = Vec::new();
            for (size, give) in sizes {
                if give && !lent.is_empty() {
                    let (at, len) = lent.swap_remove(size % lent.len());
                    words.give_back(at, len);
                } else if let Some(at) = words.take(size) {
                    prop_assert!(lent.iter().all(|(a, l)| at as usize + size <= *a as usize || *a as usize + l <= at as usize));
                    lent.push((at, size));
                }
            }
            lent.into_iter().for_each(|(at, len)| words.give_back(at, len));
            prop_assert_eq!(words.0, BTreeMap::from([(0, WORDS)]));
        }
    }
}
