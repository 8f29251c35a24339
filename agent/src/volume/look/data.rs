//! How much of a file's data a look reads: what was told, what was appended, or all of it. It must not know names.

use storeshim_protocol::OpenFlags;

use super::{Known, Look, Result};
use crate::volume::capture::{self, Captured, PieceSink};
use crate::volume::dirty::DirtyInode;
use crate::volume::index::{Doubt, Seen};
use crate::volume::tree::Stat;

/// Nanoseconds for which a writer whom no gate holds may be between the time that he sets and the data that he writes: he may have
/// lost the CPU.
pub const UNGATED_NS: i64 = 2_000_000_000;

impl Look<'_> {
    pub(super) fn capture(
        &self,
        known: &Known<'_, '_>,
        file: &std::fs::File,
        stat: &Stat,
        before: Option<Seen>,
        dirty: &DirtyInode,
        sink: &mut dyn PieceSink,
    ) -> Result<Captured> {
        let Some(seen) = before else {
            return capture::tail(file, 0, stat.size, known, sink);
        };
        let flags = dirty.opened.unwrap_or_default();
        let unseen = flags.has(OpenFlags::UNSEEN) || flags.has(OpenFlags::MAPPED);
        // Of two sizes within one cut the data beyond the smaller is new.
        let shrunk = stat.size < seen.size;
        if !unseen && !dirty.untold && !dirty.ranges.is_empty() {
            let mut ranges = dirty.ranges.clone();
            ranges.add(seen.size.min(stat.size), stat.size);
            return capture::ranges(file, stat.size, &ranges, known, sink);
        }
        // A rename, a link or a chmod moves ctime alone; so does who writes and then sets mtime back, but that one has
        // opened the file, or no intent tells of anything at all.
        let moved = seen.doubt == Doubt::Attributes;
        let written = stat.ctime != seen.ctime && (dirty.opened.is_some() || dirty.untold)
            || moved && dirty.opened.is_some();
        // A look between an intent and its write, outside a freeze, has seen the times that the write set and not what it
        // wrote: what was told is looked at whatever the times say.
        let told = !dirty.ranges.is_empty();
        // Where the agent has moved the times itself, what was seen is what it left; what was committed shows the rest.
        let record = if moved { self.cx.index.inode(known.inode)? } else { None };
        let (size, mtime) = record.map_or((seen.size, seen.mtime), |record| (record.size, record.mtime));
        let data_changed = stat.size != size
            || stat.mtime != mtime
            || written
            || seen.doubt == Doubt::Racy
            || dirty.silent
            || told;
        if !data_changed && !flags.has(OpenFlags::MAPPED) {
            return Ok(Captured::default());
        }
        if unseen
            && !dirty.untold
            && flags.has(OpenFlags::APPEND)
            && !flags.has(OpenFlags::MAPPED)
            && !shrunk
            && seen.doubt != Doubt::Racy
        {
            let from = dirty.ranges.iter().next().map_or(seen.size, |(start, _)| start.min(seen.size));
            return capture::tail(file, from.min(stat.size), stat.size, known, sink);
        }
        capture::compare(file, stat.size, known, sink)
    }
}
