//! What becomes of files that lose their last name, and of what is known of them: who has one open keeps what he could read,
//! and nothing of it counts as absent once the volume has it no more. It must not know how data gets here, nor who removes
//! names.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::Residency;
use super::file::Locked;
use super::hydrate::Job;
use super::table::Lacking;
use crate::volume::VolumeError;
use crate::volume::index::Pieces;
use crate::volume::status::Mutex;
use crate::volume::tree::FileId;

type Result<T> = std::result::Result<T, VolumeError>;

/// How long a file without a name counts as in reach of who was just opening it.
const IN_REACH: Duration = Duration::from_secs(10);

/// Files that have lost their last name before their data was here: nobody seemed to have them open, or their data could not
/// be brought in time. Their cells go on saying that something is absent, so that who has one open all the same, or was just
/// opening it, asks, and hears that it is lost. A kernel number alone would not do: it is given out again, perhaps before the
/// cut that buries the file which had it.
#[derive(Default)]
pub struct Lost(Mutex<HashMap<u64, Gone>>);

impl Lost {
    /// How many there are.
    pub fn len(&self) -> u64 {
        self.0.lock().len() as u64
    }
}

/// Of a lost file, which is known by its kernel inode number.
struct Gone {
    id: FileId,
    /// Volume inode.
    inode: u64,
    since: Instant,
}

impl Residency {
    pub(super) fn error_of_lost(&self, ino: u64) -> VolumeError {
        VolumeError::Failed(format!(
            "the file with inode {ino} below {} has lost its name before its data was here, and is in nobody's hands that \
             the agent can see",
            self.tree.path().display()
        ))
    }

    /// Drops what is known of an inode that is gone: it lacks nothing any more.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn forget(&self, inode: u64, ino: u64) -> Result<()> {
        let mut locked = self.files.lock(inode);
        let absent = locked.absent(&self.index)?;
        self.forget_locked(&mut locked, ino, &absent)
    }

    /// The volume is about to lose inodes (and their kernel numbers), of which somebody may have opened one after it was asked
    /// whether anybody has: he keeps what he could read.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn rescue(&self, dying: &[(u64, u64)]) -> Result<()> {
        let mut lacking: HashMap<FileId, (u64, Pieces)> = HashMap::new();
        for (inode, _) in dying {
            let absent = self.files.lock(*inode).absent(&self.index)?;
            if let Some(seen) = self.index.seen(*inode)?.filter(|_| !absent.is_empty()) {
                lacking.insert(seen.id, (*inode, absent));
            }
        }
        if lacking.is_empty() {
            return Ok(());
        }
        let numbers: HashSet<u64> = lacking.keys().map(|id| id.ino).collect();
        let mut open = Vec::new();
        for held in self.held_by_programs().filter(|held| numbers.contains(&held.ino)) {
            // Another file may have the number by now.
            if let Some((_, stat)) = held.handle(self) {
                open.extend(lacking.remove_entry(&stat.id));
            }
        }
        for ino in numbers {
            if let Some((_, stat)) = self.waited_for(ino) {
                open.extend(lacking.remove_entry(&stat.id));
            }
        }
        for (_, (inode, pieces)) in open {
            self.shared.count("rescued_files", 1);
            // Said where it failed.
            let _ = self.bring(&[Job { inode, pieces }], true);
        }
        Ok(())
    }

    /// The volume is about to lose an inode: until [`Residency::buried`] nothing of it is absent, whatever the index says.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub fn bury(&self, inode: u64, ino: u64) -> Result<()> {
        let mut locked = self.files.lock(inode);
        let absent = locked.absent(&self.index)?;
        match self.index.seen(inode)?.filter(|_| !absent.is_empty()) {
            Some(seen) => {
                self.table.keep(inode, ino, Lacking::Bytes);
                self.table.forget(ino);
                let gone = Gone { id: seen.id, inode, since: Instant::now() };
                if let Some(before) = self.lost.0.lock().insert(ino, gone) {
                    // Its number would not have been given out again if anybody had it open.
                    self.table.whole(before.inode, ino, Lacking::Bytes);
                }
            }
            None => self.forget_locked(&mut locked, ino, &absent)?,
        }
        locked.state(&self.index)?.absent = Pieces::default();
        self.stage.release(inode);
        Ok(())
    }

    /// Whether the file of a kernel number went before its data was here.
    pub(super) fn is_lost(&self, ino: u64) -> bool {
        let lost = self.lost.0.lock().get(&ino).map(|gone| gone.id);
        // Where it cannot be told whether another file has the number by now, it is still this one that is asked for.
        lost.is_some_and(|id| self.held(ino).or_else(|| self.walk(ino)).is_none_or(|(_, stat)| stat.id == id))
    }

    /// Forgets lost files that nobody has open and that nobody can be about to open any more.
    pub(super) fn settle_lost(&self) {
        let is_old = |gone: &Gone| gone.since.elapsed() > IN_REACH;
        if !self.lost.0.lock().values().any(is_old) {
            return;
        }
        let open: HashSet<u64> = self.held_by_programs().map(|open| open.ino).collect();
        self.lost.0.lock().retain(|ino, gone| {
            let is_over = is_old(gone) && !open.contains(ino);
            if is_over {
                self.table.whole(gone.inode, *ino, Lacking::Bytes);
            } else if is_old(gone) {
                // Looked for again in a while.
                gone.since = Instant::now();
            }
            !is_over
        });
    }

    /// The index has lost them.
    pub fn buried(&self, inodes: impl Iterator<Item = u64>) {
        inodes.for_each(|inode| drop(self.files.lock(inode).forget()));
    }

    /// From these directories one has vanished that was not populated: they are about to be marked, and populated anew.
    pub fn vanished(&self, dirs: &[(u64, u64)]) {
        for (dir, ino) in dirs {
            tracing::warn!(
                dir = *ino,
                "a program without the shim has removed a directory that was not here yet, and took it for empty: it is made \
                 again"
            );
            self.shared.count("placeholders_made_again", 1);
            self.table.absent(*dir, *ino, Lacking::Names);
        }
    }

    /// As [`Residency::forget`], where the index may have forgotten it already.
    pub(super) fn forget_locked(&self, locked: &mut Locked<'_>, ino: u64, absent: &Pieces) -> Result<()> {
        let inode = locked.inode();
        if !absent.is_empty() {
            self.table.whole(inode, ino, Lacking::Bytes);
        } else if self.index.is_unpopulated(inode)? {
            self.table.whole(inode, ino, Lacking::Names);
        }
        self.table.forget(ino);
        // The number may stand for something by now that has a mark of its own.
        if self.index.kernel(ino)?.is_none_or(|kernel| kernel.inode == inode) {
            self.marks.forget(ino);
        }
        locked.forget();
        Ok(())
    }
}
