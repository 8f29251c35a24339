//! The dirty set: what the intents say may have changed since the last cut. It only collects; whether anything did
//! change is found out by looking (`look`).

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use storeshim_protocol::{Intent, OpenFlags};

use crate::session::IntentSink;

/// Directory entries to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    /// These.
    Some(HashSet<Box<[u8]>>),
    /// Any of the directory.
    All,
}

/// Byte ranges, sorted and merged; beyond a bound they become one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Ranges kept apart; more are merged into the span of all.
    const MOST: usize = 4096;

    /// Adds `start..end`.
    pub fn add(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let first = self.0.partition_point(|(_, e)| *e < start);
        let after = self.0.partition_point(|(s, _)| *s <= end);
        let touched = self.0.get(first..after).unwrap_or(&[]);
        let low = touched.first().map_or(start, |(s, _)| start.min(*s));
        let high = touched.last().map_or(end, |(_, e)| end.max(*e));
        self.0.splice(first..after.max(first), [(low, high)]);
        if self.0.len() > Self::MOST
            && let (Some(a), Some(b)) = (self.0.first(), self.0.last())
        {
            self.0 = vec![(a.0, b.1)];
        }
    }

    /// The ranges in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().copied()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What may have changed of an inode.
#[derive(Clone, Debug, Default)]
pub struct DirtyInode {
    /// Bytes that hooked calls said they would write.
    pub ranges: Ranges,
    /// It was opened for writing, with these flags together.
    pub opened: Option<OpenFlags>,
    /// A descriptor that could write was closed.
    pub closed: bool,
    /// An audit found it changed: nothing is known of how.
    pub untold: bool,
    /// Its data may have changed without any time of it changing (a store to a page that was dirty already).
    pub silent: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct DirtySet {
    /// Entries by kernel inode number of their directory.
    pub names: HashMap<u64, Names>,
    /// Inodes by kernel inode number.
    pub inodes: HashMap<u64, DirtyInode>,
    /// Why everything must be looked at, if so.
    pub everywhere: Option<String>,
    /// When the oldest of these changes was noticed.
    pub since: Option<Instant>,
    /// Bytes that were told to be written.
    pub bytes: u64,
    /// Threads that did not leave the gate in time, for the log.
    pub stragglers: Vec<String>,
}

impl DirtySet {
    /// Whether there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.inodes.is_empty() && self.everywhere.is_none()
    }

    /// Names and inodes to look at.
    pub fn entries(&self) -> u64 {
        let names: usize =
            self.names.values().map(|n| if let Names::Some(s) = n { s.len() } else { 1 }).sum();
        (names + self.inodes.len()) as u64
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: DirtySet) {
        for (dir, names) in other.names {
            match names {
                Names::All => drop(self.names.insert(dir, Names::All)),
                Names::Some(set) => set.into_iter().for_each(|n| self.add_name(dir, &n)),
            }
        }
        for (ino, dirty) in other.inodes {
            let mine = self.inodes.entry(ino).or_default();
            dirty.ranges.iter().for_each(|(start, end)| mine.ranges.add(start, end));
            if let Some(flags) = dirty.opened {
                mine.opened = Some(mine.opened.map_or(flags, |f| join(f, flags)));
            }
            mine.closed |= dirty.closed;
            mine.untold |= dirty.untold;
            mine.silent |= dirty.silent;
        }
        self.everywhere = self.everywhere.take().or(other.everywhere);
        self.since = match (self.since, other.since) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.stragglers.extend(other.stragglers);
    }

    /// Adds an entry of a directory; an empty name is all of them.
    pub fn add_name(&mut self, dir: u64, name: &[u8]) {
        let names = self.names.entry(dir).or_insert_with(|| Names::Some(HashSet::new()));
        if name.is_empty() {
            *names = Names::All;
        } else if let Names::Some(set) = names
            && !set.contains(name)
        {
            set.insert(name.into());
        }
    }

    /// Marks an inode for a look at its attributes and, where these have changed, its data.
    pub fn add_inode(&mut self, ino: u64) -> &mut DirtyInode {
        self.inodes.entry(ino).or_default()
    }
}

/// Flags of two openers: writes are appends only where both say so; everything else adds up.
fn join(a: OpenFlags, b: OpenFlags) -> OpenFlags {
    let append = a.0 & b.0 & OpenFlags::APPEND.0;
    OpenFlags((a.0 | b.0) & !OpenFlags::APPEND.0 | append)
}

impl IntentSink for DirtySet {
    fn intent(&mut self, intent: Intent<'_>) {
        self.since.get_or_insert_with(Instant::now);
        match intent {
            Intent::Opened { ino, flags } => {
                let inode = self.add_inode(ino);
                inode.opened = Some(inode.opened.map_or(flags, |f| join(f, flags)));
            }
            Intent::Written { ino, offset, length } => {
                self.add_inode(ino).ranges.add(offset, offset.saturating_add(length));
                if length != u64::MAX {
                    self.bytes = self.bytes.saturating_add(length);
                }
            }
            Intent::Attributes { ino } => drop(self.add_inode(ino)),
            Intent::Closed { ino } => self.add_inode(ino).closed = true,
            Intent::Name { dir, name } => self.add_name(dir, name),
        }
    }

    fn look_everywhere(&mut self, why: &str) {
        self.since.get_or_insert_with(Instant::now);
        self.everywhere.get_or_insert_with(|| why.to_owned());
    }

    fn straggler(&mut self, subject: u64, who: &str) {
        self.stragglers.push(format!("{who} (inode {subject})"));
        self.since.get_or_insert_with(Instant::now);
        if subject != 0 {
            // Whatever the call is, its subject is a file or a directory: look at both ways.
            self.add_inode(subject).ranges.add(0, u64::MAX);
            self.add_name(subject, b"");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranges_cover_exactly_what_was_added(adds in prop::collection::vec((0u64..200, 1u64..40), 0..30)) {
            let mut ranges = Ranges::default();
            let mut model = [false; 256];
            for (start, len) in adds {
                ranges.add(start, start + len);
                (start..start + len).for_each(|i| model[i as usize] = true);
            }
            let mut covered = [false; 256];
            let mut last = None;
            for (start, end) in ranges.iter() {
                prop_assert!(start < end && last.is_none_or(|l| l < start));
                last = Some(end);
                (start..end).for_each(|i| covered[i as usize] = true);
            }
            prop_assert_eq!(model, covered);
        }
    }

    #[test]
    fn append_holds_only_while_all_openers_append() {
        let mut set = DirtySet::default();
        let both = OpenFlags::UNSEEN.with(OpenFlags::APPEND);
        set.intent(Intent::Opened { ino: 1, flags: both });
        assert_eq!(set.inodes[&1].opened, Some(both));
        set.intent(Intent::Opened { ino: 1, flags: OpenFlags::UNSEEN });
        assert_eq!(set.inodes[&1].opened, Some(OpenFlags::UNSEEN));
    }
}
