//! Keeps programs that do not ask from absent files by fanotify(7): each file of which something is absent is marked, and each
//! directory that is not populated, before anybody can meet them; who opens or reads them waits until what he needs is here. It
//! must not know who holds the group while no agent runs.
//!
//! A mark is there before bytes go, and goes after they have come, under the inode's lock, or while [`Kept`] says that it is to
//! stay. What is marked needlessly costs a question; what were marked too late would read as zeros.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use serde::{Deserialize, Serialize};
use storeshim_protocol::request::{Answer, Ask, Pin};
use storeshim_protocol::residency::PIECE;

use super::Residency;
use super::find::Inode;
use super::pin::Pinned;
use crate::guard::fanotify::Marked;
use crate::guard::{self, Access, Guard};
use crate::meta::records::ROOT_INODE;
use crate::session::Reply;
use crate::volume::index::Absent;
use crate::volume::status::Mutex;
use crate::volume::tree::cstring;
use crate::volume::{Guarding, VolumeError, VolumeOptions};

/// How often something is brought that has gone again before its reader came.
const TRIES: u32 = 20;

/// How programs that do not ask are kept from what is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guarded {
    /// Not at all, or nothing has been absent yet.
    #[default]
    None,
    /// By leases.
    Leases,
    /// By fanotify: who opens one waits.
    Open,
    /// By fanotify: who opens or reads one waits.
    PreAccess,
}

impl Guarded {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Leases => "leases",
            Self::Open => "open",
            Self::PreAccess => "pre-access",
        }
    }
}

fn has_marks(policy: Guarding) -> bool {
    matches!(policy, Guarding::Auto | Guarding::PreAccess)
}

/// Takes over what an agent before this one has left on guard. To be called before anything of the tree is opened, which
/// would wait for us.
pub fn take_over(options: &VolumeOptions) -> Option<Guard> {
    if !has_marks(options.guard) {
        guard::dismiss(&options.state);
        return None;
    }
    Guard::take_over(&options.state).unwrap_or_else(|error| {
        tracing::warn!(%error, "what another agent has left on guard cannot be taken over");
        None
    })
}

/// See the module.
pub struct Marks {
    policy: Guarding,
    /// Something may be absent while programs run.
    on: AtomicBool,
    guard: OnceLock<Option<Guard>>,
    /// What a group that is made later is served with.
    served: OnceLock<(Weak<Residency>, Arc<File>)>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// By kernel inode number.
    files: HashSet<u64>,
    /// Those of them whose bytes are guarded, too.
    bytes: HashSet<u64>,
    dirs: HashSet<u64>,
    /// Volume inodes whose marks are to stay, and for how many that is.
    kept: HashMap<u64, u32>,
    /// Volume inodes whose marks may not be needed any more.
    doubtful: HashSet<u64>,
}

/// While this lives, the mark of a file is not taken away.
pub struct Kept {
    marks: Arc<Marks>,
    inode: u64,
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut inner = self.marks.inner.lock();
        if let Some(count) = inner.kept.get_mut(&self.inode) {
            *count -= 1;
            if *count == 0 {
                inner.kept.remove(&self.inode);
            }
        }
        inner.doubtful.insert(self.inode);
    }
}

impl Marks {
    /// Those that were `taken` over, or none yet. `on`: something may be absent while programs run.
    pub fn new(policy: Guarding, on: bool, taken: Option<Guard>) -> Arc<Self> {
        let mut inner = Inner::default();
        let guard = OnceLock::new();
        let on = on || taken.is_some();
        if let Some(taken) = taken {
            // Where they cannot be listed, they are made once more.
            for (ino, what) in taken.group().marks().unwrap_or_default() {
                inner.set(ino, what);
            }
            // It is set here only.
            let _ = guard.set(Some(taken));
        }
        Arc::new(Self {
            policy,
            on: AtomicBool::new(on),
            guard,
            served: OnceLock::new(),
            inner: Mutex::new(inner),
        })
    }

    /// From now on something may be absent while programs run.
    pub fn begin(&self) {
        self.on.store(true, Ordering::Release);
    }

    /// The group, if there is one or can be one.
    fn guard(&self, state: &std::path::Path) -> Option<&Guard> {
        if let Some(guard) = self.guard.get() {
            return guard.as_ref();
        }
        if !has_marks(self.policy) || !self.on.load(Ordering::Acquire) {
            return None;
        }
        let made = self.guard.get_or_init(|| match Guard::create(state) {
            Ok(guard) => {
                self.serve(&guard);
                Some(guard)
            }
            Err(error) => {
                // Most containers have no CAP_SYS_ADMIN; who has it would rather have marks.
                if error.raw_os_error() == Some(libc::ENOSPC) {
                    tracing::warn!(
                        %error,
                        "absent files are guarded by leases, since there are no fanotify marks left: raise \
                         fs.fanotify.max_user_marks and start the agent again"
                    );
                } else {
                    tracing::info!(%error, "absent files are guarded by leases: fanotify cannot be had");
                }
                None
            }
        });
        made.as_ref()
    }

    fn serve(&self, guard: &Guard) {
        let Some((residency, table)) = self.served.get() else { return };
        let control = residency.upgrade().map_or(0, |residency| residency.shared.gate().hooked().control);
        let residency = residency.clone();
        let handler = move |access: Access| {
            if let Some(residency) = residency.upgrade() {
                residency.guarded_access(access);
            }
        };
        guard.serve(Arc::clone(table), control, Box::new(handler));
    }

    fn present(&self) -> Option<&Guard> {
        self.guard.get().and_then(Option::as_ref)
    }

    /// How absent files are guarded.
    pub fn guarded(&self) -> Guarded {
        match (self.present(), self.policy) {
            (Some(guard), Guarding::PreAccess) if guard.has_ranges() => Guarded::PreAccess,
            (Some(_), _) => Guarded::Open,
            (None, Guarding::Off) => Guarded::None,
            (None, _) if !self.on.load(Ordering::Acquire) => Guarded::None,
            // It is made with the first mark.
            (None, policy) if has_marks(policy) && self.guard.get().is_none() => Guarded::None,
            (None, _) => Guarded::Leases,
        }
    }

    /// Whether a kernel inode is marked.
    pub fn has(&self, ino: u64) -> bool {
        let inner = self.inner.lock();
        inner.files.contains(&ino) || inner.dirs.contains(&ino)
    }

    /// Files that are marked.
    pub fn held(&self) -> u64 {
        self.inner.lock().files.len() as u64
    }

    /// A kernel inode is gone, and its mark with it.
    pub fn forget(&self, ino: u64) {
        let mut inner = self.inner.lock();
        inner.files.remove(&ino);
        inner.bytes.remove(&ino);
        inner.dirs.remove(&ino);
    }

    /// What is to be waited for of a file of `size` bytes, where at most `most` come whole.
    fn kind(&self, guard: &Guard, size: u64, most: u64) -> Marked {
        let ranges = guard.has_ranges() && (self.policy == Guarding::PreAccess || size > most);
        if ranges { Marked::Bytes } else { Marked::File }
    }

    /// Whether a kernel inode is not marked as it should be.
    fn lacks(&self, ino: u64) -> bool {
        let inner = self.inner.lock();
        let strict = self.policy == Guarding::PreAccess && self.present().is_some_and(Guard::has_ranges);
        !inner.dirs.contains(&ino) && !if strict { &inner.bytes } else { &inner.files }.contains(&ino)
    }

    /// A mark may not be needed any more: a volume inode.
    pub fn doubt(&self, inode: u64) {
        if self.present().is_some() {
            self.inner.lock().doubtful.insert(inode);
        }
    }

    /// Takes the mark from an inode of which nothing is absent any more. Its lock is held.
    pub fn whole(&self, inode: u64, ino: u64, handle: BorrowedFd<'_>, what: Marked) {
        let Some(guard) = self.present() else { return };
        let mut inner = self.inner.lock();
        if inner.kept.contains_key(&inode) {
            return;
        }
        let (what, marked) = match what {
            Marked::Dir => (what, inner.dirs.remove(&ino)),
            Marked::File | Marked::Bytes if inner.bytes.remove(&ino) => {
                (Marked::Bytes, inner.files.remove(&ino))
            }
            Marked::File | Marked::Bytes => (Marked::File, inner.files.remove(&ino)),
        };
        if marked {
            // What stays costs a question each time, and is removed with the inode.
            let _ = guard.group().unmark_handle(handle, what);
        }
    }

    /// Ends it: nobody waits any more.
    pub fn end(&self) {
        if let Some(guard) = self.present() {
            guard.end();
        }
    }
}

impl Inner {
    fn set(&mut self, ino: u64, what: Marked) {
        match what {
            Marked::File => self.files.insert(ino),
            Marked::Bytes => self.bytes.insert(ino) | self.files.insert(ino),
            Marked::Dir => self.dirs.insert(ino),
        };
    }
}

impl Residency {
    /// Has what was left on guard served by us.
    pub(super) fn serve_marks(self: &Arc<Self>, table: Arc<File>) {
        // It is set once.
        let _ = self.marks.served.set((Arc::downgrade(self), table));
        if let Some(guard) = self.marks.present() {
            self.marks.serve(guard);
        }
    }

    /// Marks what is on the stage under `name`, and not in the tree yet: a file of `size` bytes, or a directory. Whether it is.
    pub(super) fn mark_staged(&self, name: &str, ino: u64, size: Option<u64>) -> bool {
        let Some(guard) = self.marks.guard(&self.options.state) else { return false };
        let what = size.map_or(Marked::Dir, |size| self.marks.kind(guard, size, self.whole_most()));
        let marked =
            cstring(name.as_bytes()).and_then(|name| guard.group().mark(self.stage.dir(), &name, what));
        self.note_mark(ino, what, marked)
    }

    /// Marks a file, which may be so already; whether it is.
    fn mark(&self, found: &Inode) -> bool {
        let Some(guard) = self.marks.guard(&self.options.state) else { return false };
        let what = match found.stat.is_file() {
            true => self.marks.kind(guard, found.stat.size, self.whole_most()),
            false => Marked::Dir,
        };
        let ino = found.stat.id.ino;
        let marked = guard.group().mark_handle(found.handle.as_fd(), what);
        // A lease would have the kernel wait for us where it opens the file for an event.
        let marked = self.note_mark(ino, what, marked);
        if marked {
            self.guards.drop_guard(ino);
        }
        marked
    }

    fn note_mark(&self, ino: u64, what: Marked, marked: std::io::Result<()>) -> bool {
        match marked {
            Ok(()) => self.marks.inner.lock().set(ino, what),
            Err(error) => {
                self.shared.count("unmarked_files", 1);
                tracing::debug!(ino, %error, "an absent file cannot be marked, and is guarded by a lease if by anything");
                return false;
            }
        }
        true
    }

    /// Marks a file that is about to lose something, and keeps the mark.
    pub(super) fn keep_mark(&self, found: &Inode) -> Option<Kept> {
        self.marks.guard(&self.options.state)?;
        *self.marks.inner.lock().kept.entry(found.inode).or_default() += 1;
        let kept = Kept { marks: Arc::clone(&self.marks), inode: found.inode };
        self.mark(found).then_some(kept)
    }

    /// Marks what is absent already and was not marked by an agent before us.
    ///
    /// # Errors
    /// Where the index cannot be read.
    pub(super) fn mark_known(&self) -> Result<(), VolumeError> {
        let mut unmarked = Vec::new();
        self.index.absentees(|absentee| {
            // The root is opened before a group is taken over.
            if absentee.ino.is_some_and(|ino| self.marks.lacks(ino)) && absentee.inode != ROOT_INODE {
                unmarked.push((absentee.inode, matches!(absentee.what, Absent::Entries)));
            }
            Ok(())
        })?;
        for (inode, is_dir) in unmarked {
            if self.is_closed() || self.marks.guard(&self.options.state).is_none() {
                break;
            }
            let Some(found) = self.at_its_place(inode)? else { continue };
            let locked = self.files.lock(inode);
            let absent = if is_dir {
                self.index.is_unpopulated(inode)?
            } else {
                !locked.absent(&self.index)?.is_empty()
            };
            if absent {
                self.mark(&found);
            }
        }
        Ok(())
    }

    /// Takes away the marks that are not needed any more.
    pub(super) fn tidy_marks(&self) {
        let doubtful = std::mem::take(&mut self.marks.inner.lock().doubtful);
        for inode in doubtful {
            let Ok(Some(found)) = self.at_its_place(inode) else { continue };
            let Some(locked) = self.files.try_lock(inode) else {
                self.marks.doubt(inode);
                continue;
            };
            if found.stat.is_file() && locked.absent(&self.index).is_ok_and(|absent| absent.is_empty()) {
                self.marks.whole(inode, found.stat.id.ino, found.handle.as_fd(), Marked::File);
            }
        }
    }

    /// Somebody waits at what is marked.
    fn guarded_access(self: &Arc<Self>, access: Access) {
        self.shared.count("guarded_accesses", 1);
        let whole = (0, u64::MAX);
        let (start, end) = match access.range {
            Some(range) => range,
            None if access.is_dir => whole,
            None => match self.pin_large(access.ino) {
                Ok(true) => return self.answer_access(access, 0),
                Ok(false) => whole,
                Err(_) => return self.answer_access(access, libc::EIO),
            },
        };
        let served = Served { residency: Arc::downgrade(self), access, start, end, tries: 0 };
        served.ask(self);
    }

    /// Bytes that come whole when a file is opened: half of the cache.
    fn whole_most(&self) -> u64 {
        self.cache.size() / 2
    }

    /// What is larger does not come whole when it is opened, if its bytes are guarded: whether a file is. It stays as it is until
    /// it is closed, and what is absent of it comes as it is read.
    fn pin_large(&self, ino: u64) -> Result<bool, VolumeError> {
        let Some(kernel) = self.index.kernel(ino)? else { return Ok(false) };
        let size = self.index.seen(kernel.inode)?.map_or(0, |seen| seen.size);
        if size <= self.whole_most() || !self.marks.inner.lock().bytes.contains(&ino) {
            return Ok(false);
        }
        let pinned = Pinned::by(Pin::Open, self.files.now());
        self.files.lock(kernel.inode).state(&self.index)?.pin(pinned);
        Ok(true)
    }

    fn answer_access(&self, access: Access, errno: i32) {
        if errno != 0 {
            self.shared.count("guarded_failures", 1);
        }
        if let Some(guard) = self.marks.present() {
            guard.answer(access.id, errno);
        }
    }

    /// Whether what somebody waits for is here.
    fn is_here(&self, access: &Access, start: u64, end: u64) -> Result<bool, VolumeError> {
        let Some(kernel) = self.index.kernel(access.ino)? else { return Ok(!self.is_lost(access.ino)) };
        if access.is_dir {
            return Ok(!self.index.is_unpopulated(kernel.inode)?);
        }
        let absent = self.files.lock(kernel.inode).absent(&self.index)?;
        Ok(absent.within(start / PIECE..end.div_ceil(PIECE)).next().is_none())
    }
}

/// Lets an access happen once its bytes are here.
struct Served {
    residency: Weak<Residency>,
    access: Access,
    start: u64,
    end: u64,
    tries: u32,
}

impl Served {
    fn ask(self, residency: &Arc<Residency>) {
        let (ino, start, end) = (self.access.ino, self.start, self.end);
        let ask = if self.access.is_dir {
            Ask::Populate { ino }
        } else {
            // Who opens it waits within open(2), and counts as having it open where there are leases.
            Ask::Hydrate { ino, start, end, pin: Pin::open_if(self.access.range.is_none()) }
        };
        residency.request(ask, Box::new(self));
    }
}

impl Reply for Served {
    fn answer(mut self: Box<Self>, answer: Answer) {
        // What is not answered waits for the next agent.
        let Some(residency) = self.residency.upgrade() else { return };
        let here =
            answer.errno == 0 && residency.is_here(&self.access, self.start, self.end).unwrap_or(false);
        self.tries += 1;
        if here {
            residency.answer_access(self.access, 0);
        } else if answer.errno == 0 && self.tries < TRIES {
            self.ask(&residency);
        } else {
            residency.answer_access(self.access, libc::EIO);
        }
    }
}
