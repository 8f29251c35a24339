//! The cut: the tree as it stood at one instant. Rounds of freeze, drain and look: what is too much for a freeze is
//! looked at outside of it, and the next freeze looks only at what changed meanwhile, as a live migration copies
//! memory. In the last freeze, what can change without passing the gate (stdio, mappings) is looked at until two
//! looks in a row agree (double collect). It must not know what becomes of the look.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use storeshim_protocol::OpenFlags;
use storeshim_protocol::control::THROTTLE_BLOCK;

use super::audit;
use super::capture::{CaptureError, Piece, PieceSink};
use super::chunks::ChunkStore;
use super::dirty::{DirtySet, Names};
use super::look::{Context, Look};
use super::residency::file::Files;
use super::status::Shared;
use super::{Journal, VolumeError, index::Index, tree::Tree};

/// Freezes of one cut.
const ROUNDS: u32 = 6;
/// Freezes of one cut after which, where intents are lost in each of them, the whole tree is looked at in the last.
const ROUNDS_MAX: u32 = 2 * ROUNDS;
/// From this round on writers are held up, so that the last freeze has little to look at.
const CROWDED: u32 = 4;
/// Names and inodes from which a cut is made without waiting for the lag, and within a cut writers are held up: the
/// memory that a commit takes grows with them, by some KiB each.
pub const CROWD: u64 = 8_192;
/// What one freeze may look at, and the bytes that it may read: about a millisecond's worth.
const FREEZE_ENTRIES: u64 = 64;
const FREEZE_BYTES: u64 = 1 << 20;
const FREEZE_BYTES_MAX: u64 = 32 << 20;
/// How long a freeze may look before it gives up and another round is made.
const FREEZE_TIME: Duration = Duration::from_millis(100);
/// Looks of a double collect.
const COLLECTS: u32 = 6;

/// Inodes that may change without an intent, by kernel inode number, and how.
pub type Suspects = HashMap<u64, OpenFlags>;

/// What a cut is made with.
pub struct Cutter<'a, 's> {
    /// See the types.
    pub index: &'a Index,
    /// The tree.
    pub tree: &'a Tree,
    /// What is absent of files, and the inodes' locks.
    pub files: &'a Files,
    /// Where sessions put intents.
    pub sink: &'a std::sync::Mutex<DirtySet>,
    /// Counters, gate.
    pub shared: &'a Shared,
    /// Kept from cut to cut.
    pub suspects: &'s mut Suspects,
    /// What sessions wrote down of suspects that are not in the index yet.
    pub journal: &'a Journal,
}

/// Where a cut looks beyond what intents tell.
#[derive(Debug)]
pub enum Audit {
    /// Nowhere, unless something was lost.
    No,
    /// Everywhere.
    Everywhere,
    /// Where a background audit has found differences.
    Found(DirtySet),
    /// At files that are there before the volume is: a part of them at a time, since no state of the tree has been
    /// promised yet.
    Adopt,
}

/// Differences that one cut of an adoption takes.
const ADOPT: u64 = 20_000;

/// A finished cut.
pub struct Cut<'a> {
    /// The tree as it stood.
    pub look: Look<'a>,
    /// Bytes that intents told of.
    pub bytes: u64,
    /// When the oldest change was noticed.
    pub since: Option<Instant>,
    /// Wall clock of the instant.
    pub at: std::time::SystemTime,
    /// An adoption is not through yet.
    pub more: bool,
}

impl<'a> Cutter<'a, '_> {
    /// Makes a cut. On an error nothing is lost: what was to be looked at is looked at by the next one.
    pub fn cut(&mut self, audit: Audit, store: &mut ChunkStore<'_>) -> Result<Cut<'a>, VolumeError> {
        let mut told = Told::default();
        match self.rounds(audit, store, &mut told) {
            Ok(cut) => Ok(cut),
            Err(error) => {
                let mut sink = self.sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                sink.everywhere.get_or_insert_with(|| "a cut failed".into());
                sink.since.get_or_insert_with(Instant::now);
                Err(match error {
                    CaptureError::Store(error) => error,
                    CaptureError::Io(e) => VolumeError::Failed(format!(
                        "the tree {} cannot be read: {e}; check the disk, then start the agent again",
                        self.tree.path().display()
                    )),
                    CaptureError::TooMuch => VolumeError::Failed("a cut did not end".into()),
                })
            }
        }
    }

    fn rounds(
        &mut self,
        audit: Audit,
        store: &mut ChunkStore<'_>,
        told: &mut Told,
    ) -> Result<Cut<'a>, CaptureError> {
        let mut look = Look::new(Context { index: self.index, tree: self.tree, files: self.files })?;
        let mut everywhere = matches!(audit, Audit::Everywhere | Audit::Adopt);
        let limit = if matches!(audit, Audit::Adopt) { ADOPT } else { u64::MAX };
        look.shallow = matches!(audit, Audit::Adopt);
        let mut more = false;
        // What is found after something was lost, or while no agent ran, nobody was there to tell.
        let mut blamed = !matches!(audit, Audit::Adopt);
        let mut found = if let Audit::Found(found) = audit { Some(found) } else { None };
        let (mut bytes, mut since) = (0u64, None::<Instant>);
        let (mut round, mut entries) = (0, 0u64);
        let at = loop {
            round += 1;
            if (round == CROWDED || entries >= 2 * CROWD) && !self.shared.crowded.load(Ordering::Relaxed) {
                // They write faster than we read: the throttle is open again after the cut.
                self.shared.crowded.store(true, Ordering::Relaxed);
                self.shared.gate().set_throttle(THROTTLE_BLOCK);
            }
            self.warm()?;
            let closed = Instant::now();
            let mut fresh = DirtySet::default();
            let frozen = self.shared.gate().freeze(&mut fresh);
            let at = std::time::SystemTime::now();
            let mut work =
                std::mem::take(&mut *self.sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
            work.merge(fresh);
            // Before the gate opens: what is being looked at must not go away.
            self.shared.unsettled.taking(&work);
            bytes = bytes.saturating_add(work.bytes);
            self.shared.cutting_bytes.fetch_add(work.bytes, Ordering::Relaxed);
            since = since.into_iter().chain(work.since).min();
            self.note(&work)?;
            entries += work.entries();
            self.shared.unsettled.told(work.entries());
            told.add(&work);
            if let Some(why) = work.everywhere.take() {
                tracing::info!(%why, "looking at the whole tree");
                (everywhere, blamed) = (true, false);
            }
            // What was lost is looked for outside of a freeze, in a round more; where that has no end, inside.
            let last = round >= if everywhere { ROUNDS_MAX } else { ROUNDS };
            if let Some(mut found) = found.take() {
                // Hooked writers at work: the ranges that they told are all that there is.
                for (ino, dirty) in &mut found.inodes {
                    dirty.untold &= work.inodes.get(ino).is_none_or(|told| told.ranges.is_empty());
                }
                self.shared.unsettled.taking(&found);
                told.found(&found);
                work.merge(found);
            }
            told.suspects.extend(self.suspects.keys());
            for (ino, flags) in self.suspects.iter() {
                work.add_inode(*ino).opened = Some(*flags);
            }
            self.shared.unsettled.taking(&work);
            if everywhere {
                self.shared.unsettled.taking_all();
            }
            let mapped = self.mapped_bytes()?;
            let small = !everywhere
                && mapped <= FREEZE_BYTES_MAX
                && work.entries() <= FREEZE_ENTRIES
                && work.bytes <= FREEZE_BYTES;
            let frozen = if small || last {
                Some(frozen)
            } else {
                drop(frozen);
                self.shared.paused(closed.elapsed());
                None
            };
            if std::mem::take(&mut everywhere) {
                let findings =
                    audit::scan(self.index, self.tree, limit, &mut || self.shared.failure().is_none())?;
                more = findings.more;
                told.found(&findings.dirty);
                work.merge(findings.dirty);
                self.shared.count("audits", 1);
            }
            let Some(frozen) = frozen else {
                look.take(&work, store)?;
                continue;
            };
            let limit = if last { None } else { Some(frozen.deadline().min(closed + FREEZE_TIME)) };
            look.deadline = limit;
            let mut keep = Keep { room: if last { u64::MAX } else { FREEZE_BYTES_MAX } };
            let looked = look.take(&work, &mut keep).and_then(|()| self.double_collect(&mut look, &mut keep));
            look.deadline = None;
            let expired = Instant::now() >= frozen.deadline();
            drop(frozen);
            self.shared.paused(closed.elapsed());
            match looked {
                Ok(()) if !expired => break at,
                Ok(()) if last => {
                    self.shared.count("cuts_past_the_deadline", 1);
                    tracing::warn!(
                        "a cut took longer than writers wait: its files may stand at slightly different instants"
                    );
                    break at;
                }
                // Looked at again, without hurry, before the next freeze.
                Ok(()) | Err(CaptureError::TooMuch) => look.take(&work, store)?,
                Err(error) => return Err(error),
            }
        };
        if blamed {
            let missed = told.missed(&look)?;
            self.shared.count("missed_changes", missed.len() as u64);
            for (ino, name) in missed.iter().take(10) {
                let name = String::from_utf8_lossy(name);
                let what = match look.known(*ino)? {
                    Some(inode) if name.is_empty() => look.difference(inode)?,
                    _ => "a name".into(),
                };
                tracing::warn!(
                    ino,
                    %name,
                    %what,
                    "the audit found a change that no intent had told: by a program without the shim, or by system calls \
                     of its own in a hooked one (ask `storeshim doctor PROGRAM`; `storeshim run --net=sud` catches them)"
                );
            }
        }
        self.settle(&mut look, told)?;
        Ok(Cut { look, bytes, since, at, more })
    }

    /// Has the records here that the look compares with, as far as is known before the gate is closed: writers should not
    /// wait for the backend.
    fn warm(&self) -> Result<(), VolumeError> {
        if self.index.is_loaded() {
            return Ok(());
        }
        let dirty: Vec<u64> = {
            let sink = self.sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            sink.inodes.keys().chain(self.suspects.keys()).copied().collect()
        };
        let mut inodes = Vec::with_capacity(dirty.len());
        for ino in dirty {
            inodes.extend(self.index.kernel(ino)?.map(|kernel| kernel.inode));
        }
        self.index.load_inodes(&inodes, None)?;
        self.index.load_blocks(&inodes, None)
    }

    /// Remembers who may go on writing unseen; on the disk too, for an agent that takes over.
    fn note(&mut self, work: &DirtySet) -> Result<(), VolumeError> {
        let unseen = |f: &OpenFlags| f.has(OpenFlags::UNSEEN) || f.has(OpenFlags::MAPPED);
        let before = self.suspects.clone();
        for (ino, dirty) in &work.inodes {
            if let Some(flags) = dirty.opened.filter(unseen) {
                let known = self.suspects.entry(*ino).or_insert(flags);
                // Appends only while every opener appends.
                let append = known.0 & flags.0 & OpenFlags::APPEND.0;
                *known = OpenFlags((known.0 | flags.0) & !OpenFlags::APPEND.0 | append);
            }
        }
        if before != *self.suspects {
            let noted = self.index.set_suspects(&before, self.suspects);
            if let Err(error) = noted {
                // The next cut is to note them: it is told of them once more.
                *self.suspects = before;
                let mut sink = self.sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                for (ino, dirty) in &work.inodes {
                    if let Some(flags) = dirty.opened {
                        let opened = sink.add_inode(*ino).opened.get_or_insert_default();
                        *opened = opened.with(flags);
                    }
                }
                return Err(error);
            }
        }
        self.journal.taken(self.suspects);
        for who in &work.stragglers {
            self.shared.count("stragglers", 1);
            tracing::warn!(%who, "a call was still inside the gate when the cut went on");
        }
        Ok(())
    }

    /// Bytes of files that are mapped for writing: all of them are read by every look.
    fn mapped_bytes(&self) -> Result<u64, VolumeError> {
        let mut bytes = 0u64;
        for (ino, _) in self.suspects.iter().filter(|(_, flags)| flags.has(OpenFlags::MAPPED)) {
            if let Some(kernel) = self.index.kernel(*ino)? {
                bytes = bytes.saturating_add(self.index.seen(kernel.inode)?.map_or(0, |seen| seen.size));
            }
        }
        Ok(bytes)
    }

    fn double_collect(&self, look: &mut Look<'_>, keep: &mut Keep) -> Result<(), CaptureError> {
        if self.suspects.is_empty() {
            return Ok(());
        }
        for _ in 0..COLLECTS {
            if !look.changed_again(self.suspects, keep)? {
                return Ok(());
            }
        }
        self.shared.count("unsettled_cuts", 1);
        let names: Vec<u64> = self.suspects.keys().copied().take(5).collect();
        tracing::warn!(inodes = ?names, "files went on changing during a cut, through stdio or mappings");
        Ok(())
    }

    /// Lets go of suspects that nobody can write to any more, where a look after that has found them unchanged.
    fn settle(&mut self, look: &mut Look<'_>, told: &Told) -> Result<(), CaptureError> {
        let mut released = Vec::new();
        for (ino, flags) in self.suspects.iter() {
            // Changed in this cut: perhaps again after it. The next cut asks.
            let mut quiet = true;
            for inode in look.all_known(*ino)? {
                quiet &= !look.differs(inode)?;
            }
            if quiet && !told.inodes.contains(ino) {
                // Where the kernel does not tell of mappings, one is taken to stand while any program does.
                let unsure = flags.has(OpenFlags::MAPPED) && !self.tree.leases_see_mappings();
                let held =
                    if unsure { !self.shared.gate().attached().is_empty() } else { look.has_writers(*ino)? };
                if !held {
                    released.push(*ino);
                }
            }
        }
        for ino in look.missed()? {
            self.sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner).add_inode(ino).untold = true;
        }
        // A writer may have written and gone between the look and the question: one more look, then they are free.
        for ino in released {
            let flags = self.suspects.remove(&ino).unwrap_or_default();
            let mut sink = self.sink.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let dirty = sink.add_inode(ino);
            // What a look has seen while he was at work may be the time of a write, and not yet what it wrote.
            dirty.silent = flags.has(OpenFlags::MAPPED) || !flags.has(OpenFlags::APPEND);
            dirty.untold = true;
            sink.since.get_or_insert_with(Instant::now);
        }
        Ok(())
    }
}

/// What intents told in this cut, to know what the audit alone has found.
#[derive(Default)]
pub struct Told {
    names: HashMap<u64, Names>,
    inodes: HashSet<u64>,
    /// Those that may have changed without being told, and were looked at for that.
    suspects: HashSet<u64>,
    /// What an audit named: kernel inode and name; an empty name is the inode itself.
    found: HashSet<(u64, Vec<u8>)>,
}

impl Told {
    fn add(&mut self, work: &DirtySet) {
        let mut all = DirtySet { names: std::mem::take(&mut self.names), ..DirtySet::default() };
        all.merge(DirtySet { names: work.names.clone(), ..DirtySet::default() });
        self.names = all.names;
        self.inodes.extend(work.inodes.keys());
    }

    fn found(&mut self, findings: &DirtySet) {
        for (dir, names) in &findings.names {
            if let Names::Some(names) = names {
                self.found.extend(names.iter().map(|name| (*dir, name.to_vec())));
            }
        }
        self.found.extend(findings.inodes.keys().map(|ino| (*ino, Vec::new())));
    }

    /// What an audit named, no intent told, and the look found changed indeed. Told is also what happened to a file with
    /// one of its names (its other names share its times), and what a suspect may do at any time.
    fn missed(&self, look: &Look<'_>) -> Result<Vec<&(u64, Vec<u8>)>, VolumeError> {
        let mut missed = Vec::new();
        let mut by_name = None;
        for finding in &self.found {
            let (ino, name) = finding;
            let told = match self.names.get(ino) {
                Some(Names::Some(names)) => name.is_empty() || names.contains(name.as_slice()),
                Some(Names::All) => true,
                None => name.is_empty() && (self.inodes.contains(ino) || self.suspects.contains(ino)),
            };
            let Some(inode) = look.known(*ino)?.filter(|_| !told) else { continue };
            let (changed, told) = if name.is_empty() {
                (look.differs_surely(inode)?, look.was_meant_in(inode))
            } else {
                (look.dentries.contains_key(&(inode, name.clone())), look.was_meant(inode, name))
            };
            if !changed || told {
                continue;
            }
            if by_name.is_none() {
                by_name = Some(self.behind_names(look)?);
            }
            if !name.is_empty() || by_name.as_ref().is_none_or(|inodes| !inodes.contains(&inode)) {
                missed.push(finding);
            }
        }
        Ok(missed)
    }

    /// The volume inodes that the told names stood for before the cut, or stand for now.
    fn behind_names(&self, look: &Look<'_>) -> Result<HashSet<u64>, VolumeError> {
        let mut inodes = HashSet::new();
        for (ino, names) in &self.names {
            for dir in look.all_known(*ino)? {
                match names {
                    Names::Some(names) => {
                        for name in names {
                            inodes.extend(look.behind(dir, name)?);
                        }
                    }
                    Names::All => inodes.extend(look.all_behind(dir)?),
                }
            }
        }
        Ok(inodes)
    }
}

/// Keeps what a freeze reads in memory.
struct Keep {
    room: u64,
}

impl PieceSink for Keep {
    fn piece(&mut self, bytes: Vec<u8>) -> Result<Piece, CaptureError> {
        self.room = self.room.checked_sub(bytes.len() as u64).ok_or(CaptureError::TooMuch)?;
        Ok(Piece::Raw(bytes))
    }
}

/// The dirty set behind a lock, for the engine.
pub type Sink = std::sync::Arc<std::sync::Mutex<DirtySet>>;
