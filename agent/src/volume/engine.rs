//! A volume at work: one thread that decides when to cut and hands every cut to the pipeline. It must not know how
//! a cut is made or a commit travels.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, UNIX_EPOCH};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use storeshim_protocol::request::Ask;
use storeshim_protocol::{MountState, OpenFlags};

use super::chunks::ChunkStore;
use super::commit::{Job, Pipeline, Uploader, Waiter};
use super::cut::{Audit, CROWD, Cut, Cutter, Sink, Suspects};
use super::index::{Changes, For, Index};
use super::loader::Loader;
use super::look::Trouble;
use super::open::{self, Local, Opened};
use super::plan::{self, Plan};
use super::residency::file::Files;
use super::residency::{Parts, Residency};
use super::status::{Mutex, Shared};
use super::tree::Tree;
use super::{
    DirtySet, Durability, Evicted, Journal, VolumeError, VolumeOptions, VolumeStatus, Warmed, Warmup, Watch,
    audit, verify,
};
use crate::blob::Blob;
use crate::meta::records::{self, PackId, Totals, key};
use crate::meta::{Batch, Head, Meta};
use crate::session::{IntentSink, Reply};

/// Differences that one background audit reports; the next one finds the rest.
const FINDINGS: u64 = 20_000;
/// Names and inodes from which writers are slowed, since they make them faster than they can be committed; from twice
/// as many they are blocked.
const CROWD_MAX: u64 = 2 * CROWD;
/// Metadata operations on their way, from which no cut is made for its age: their memory is bounded, too.
const OPERATIONS_MAX: u64 = 100_000;
/// How long a request waits for a cut that shows where an inode is.
const SETTLE: Duration = Duration::from_secs(2);
/// Between two looks at what the volume offers.
const SPACE_INTERVAL: Duration = Duration::from_millis(500);
/// How long a cut waits for room on this disk, where there is none to note it, and the pause between two looks. Who waits
/// for its commit is told then; the next one is tried after a while.
const ROOM: Duration = Duration::from_secs(2);
const ROOM_PAUSE: Duration = Duration::from_millis(20);
const ROOM_AGAIN: Duration = Duration::from_secs(1);
/// How often the engine looks at the dirty set's age and size.
const TICK: Duration = Duration::from_millis(25);

enum Command {
    Barrier(u64, Box<dyn Reply>),
    Flush(Sender<Result<u64, VolumeError>>),
    Found(DirtySet),
    /// Make a cut, and say when the index has it.
    Settle(Sender<()>),
    Stop(Sender<()>),
}

impl Command {
    /// Answers what the engine does not do any more. Without an error a barrier is not answered at all: it stands in
    /// its ring, and the next agent serves it.
    fn refuse(self, error: Option<&VolumeError>) {
        let closed = VolumeError::closed();
        match (self, error) {
            (Self::Barrier(_, reply), Some(error)) => Waiter::Barrier(reply).failed(error),
            (Self::Flush(to), error) => Waiter::Flush(to).failed(error.unwrap_or(&closed)),
            (Self::Barrier(..) | Self::Found(_) | Self::Settle(_) | Self::Stop(_), _) => {}
        }
    }
}

/// An open volume.
pub struct Volume {
    shared: Arc<Shared>,
    sink: Sink,
    commands: Sender<Command>,
    residency: Arc<Residency>,
    threads: Mutex<Option<Threads>>,
}

struct Threads {
    engine: JoinHandle<()>,
    /// The helpers end when this is dropped.
    end: Sender<()>,
    helpers: Vec<JoinHandle<()>>,
    /// Held only as long: the next agent opens the same one.
    index: Arc<Index>,
}

impl Volume {
    /// Opens a volume and starts its engine: populates the tree where it must, shows the mount ready, audits. Intents
    /// come in through `sink` and `journal` from before this call. Blocking.
    pub fn open(
        options: VolumeOptions,
        local: Local,
        meta: Arc<dyn Meta>,
        blob: Arc<dyn Blob>,
        shared: Arc<Shared>,
        sink: Sink,
        journal: Arc<Journal>,
    ) -> Result<Arc<Self>, VolumeError> {
        let guard = super::residency::preaccess::take_over(&options);
        let Opened { index, tree, head, totals, adopt, doubtful } =
            open::open(&options, local, &meta, &*blob, &shared)?;
        if doubtful {
            verify::verify(&index, &tree, &shared)?;
        }
        let threads = |e: std::io::Error| VolumeError::Failed(format!("no thread could be started: {e}"));
        let (index, tree) = (Arc::new(index), Arc::new(tree));
        shared.files.store(i64::try_from(totals.files).unwrap_or(i64::MAX), Ordering::Relaxed);
        shared.inodes.store(totals.inodes, Ordering::Relaxed);
        *shared.quota.lock() = options.quota;
        shared.bytes.store(i64::try_from(totals.bytes).unwrap_or(i64::MAX), Ordering::Relaxed);
        shared.set_seq(head.map_or(0, |h| h.seq));
        let (commands, inbox) = unbounded();
        let known = index.suspects()?;
        let mut suspects = known.clone();
        for (ino, flags) in journal.entries() {
            suspects.entry(ino).or_default().0 |= flags.0;
        }
        index.set_suspects(&known, &suspects)?;
        journal.taken(&suspects);
        let (sweep, swept) = unbounded();
        let loader = Loader::new(&index, &blob, &shared, sweep)?;
        let mut engine = Engine {
            uploader: Arc::new(Uploader::start(&blob, &shared, options.upload_parallelism).map_err(threads)?),
            pipeline: Pipeline::start(meta, Arc::clone(&blob), Arc::clone(&index), Arc::clone(&shared))
                .map_err(threads)?,
            swept,
            totals,
            options,
            index,
            tree,
            shared: Arc::clone(&shared),
            sink: Arc::clone(&sink),
            files: Arc::default(),
            residency: None,
            suspects,
            released: Suspects::new(),
            journal,
            troubled: Vec::new(),
            seq: head.map_or(0, |h| h.seq),
            next_cut: Instant::now(),
            last_suspicion: Instant::now(),
        };
        if adopt {
            engine.adopt();
            if let Some(error) = shared.failure() {
                return Err(error);
            }
        }
        // What programs did while no agent looked: found by the first cut, which no barrier can overtake.
        sink.lock().unwrap_or_else(PoisonError::into_inner).look_everywhere("the agent has started");
        shared.show_space(blob.directory());
        let asked = commands.clone();
        let residency = Residency::start(Parts {
            index: Arc::clone(&engine.index),
            tree: Arc::clone(&engine.tree),
            blob: Arc::clone(&blob),
            shared: Arc::clone(&shared),
            options: engine.options.clone(),
            sink: Arc::clone(&sink),
            files: Arc::clone(&engine.files),
            settle: Box::new(move || {
                let (done, made) = bounded(1);
                asked.send(Command::Settle(done)).is_ok() && made.recv_timeout(SETTLE).is_ok()
            }),
            guard,
        })?;
        engine.residency = Some(Arc::clone(&residency));
        shared.set_ready();
        shared.gate().set_state(MountState::Ready);
        let index = Arc::clone(&engine.index);
        let (end, helpers) = engine.start_helpers(&blob, commands.clone(), loader).map_err(threads)?;
        let thread = std::thread::Builder::new()
            .name("volume".into())
            .spawn(move || engine.run(&inbox))
            .map_err(threads)?;
        let threads = Mutex::new(Some(Threads { engine: thread, end, helpers, index }));
        Ok(Arc::new(Self { shared, sink, commands, residency, threads }))
    }

    /// Answers a request of a client; see [`Ask`]. Never blocks. The inode of a barrier is looked at whether or not an
    /// intent named it.
    pub fn request(&self, ask: Ask, reply: Box<dyn Reply>) {
        match ask {
            Ask::Barrier { ino } => self.send(Command::Barrier(ino, reply)),
            ask => self.residency.request(ask, reply),
        }
    }

    /// Looks at the whole tree, commits, and waits until that is durable; the commit's number.
    pub fn flush(&self) -> Result<u64, VolumeError> {
        let (to, answer) = bounded(1);
        self.send(Command::Flush(to));
        answer.recv().unwrap_or_else(|_| Err(self.closed()))
    }

    /// Brings what is at `path`, relative to the root, to this disk. Blocking.
    pub fn warm(&self, path: &Path, how: Warmup, watch: &dyn Watch) -> Result<Warmed, VolumeError> {
        self.residency.warm(path, how, watch)
    }

    /// Drops from this disk what is at `path`, relative to the root, and need not be there. Blocking.
    pub fn evict(&self, path: &Path, watch: &dyn Watch) -> Result<Evicted, VolumeError> {
        self.residency.evict_path(path, watch)
    }

    /// Cheap, at any time.
    pub fn status(&self) -> VolumeStatus {
        let dirty = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        VolumeStatus {
            residency: self.residency.status(),
            ..self.shared.status(dirty.bytes, dirty.entries(), dirty.since)
        }
    }

    /// Commits what is dirty, waits for it and ends the engine. Blocking; waits for as long as the backend only
    /// refuses for now.
    pub fn shutdown(&self) {
        self.residency.stop();
        if self.shared.failure().is_some()
            && let Some(threads) = &*self.threads.lock()
        {
            // No cut is made any more; one that waits for the backend need not.
            threads.index.close_loading();
        }
        let (done, ended) = bounded(1);
        self.send(Command::Stop(done));
        // An engine that has ended already answers by hanging up.
        let _ = ended.recv();
        if let Some(Threads { engine, end, helpers, index }) = self.threads.lock().take() {
            index.close_loading();
            drop(end);
            for thread in helpers.into_iter().chain([engine]) {
                // A thread that panicked has taken the process with it.
                let _ = thread.join();
            }
        }
    }

    fn send(&self, command: Command) {
        if let Err(crossbeam::channel::SendError(command)) = self.commands.send(command) {
            command.refuse(self.shared.failure().as_ref());
        }
    }

    fn closed(&self) -> VolumeError {
        self.shared.failure().unwrap_or_else(VolumeError::closed)
    }
}

fn is_over(ended: &Receiver<()>, wait: Duration) -> bool {
    !matches!(ended.recv_timeout(wait), Err(RecvTimeoutError::Timeout))
}

/// Audits the tree again and again, slowly, and sends what it finds to the engine: no cut waits for it.
fn audit_in_background(
    index: &Index,
    tree: &Tree,
    shared: &Shared,
    interval: Duration,
    ended: &Receiver<()>,
    commands: &Sender<Command>,
) {
    while !is_over(ended, interval) {
        let mut pace = audit::Pace::new();
        let scanned = audit::scan(index, tree, FINDINGS, &mut || {
            pace.tick();
            shared.failure().is_none() && !is_over(ended, Duration::ZERO)
        });
        shared.count("audits", 1);
        *shared.foreign.lock() = audit::foreign(tree.path(), tree.dev(), &shared.gate().attached());
        match scanned {
            Ok(findings) if !findings.dirty.is_empty() => {
                if commands.send(Command::Found(findings.dirty)).is_err() {
                    return;
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "a background audit was given up"),
        }
    }
}

struct Engine {
    options: VolumeOptions,
    index: Arc<Index>,
    tree: Arc<Tree>,
    shared: Arc<Shared>,
    sink: Sink,
    uploader: Arc<Uploader>,
    pipeline: Pipeline,
    /// What is absent of files, and the inodes' locks.
    files: Arc<Files>,
    /// There as soon as anything can be absent.
    residency: Option<Arc<Residency>>,
    suspects: Suspects,
    /// Those that the last cut has let go.
    released: Suspects,
    journal: Arc<Journal>,
    /// What could not be read: no barrier succeeds until they can.
    troubled: Vec<Trouble>,
    /// Packs of earlier agents that have been deleted.
    swept: Receiver<PackId>,
    /// What the volume holds after the last cut.
    totals: Totals,
    seq: u64,
    next_cut: Instant,
    last_suspicion: Instant,
}

impl Engine {
    fn run(mut self, inbox: &Receiver<Command>) {
        // A lease that is broken while we hold it raises SIGIO, which would kill a process that does not care.
        // SAFETY: ignoring a signal touches no memory.
        unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
        let mut stop = None;
        while stop.is_none() {
            let mut waiters = Vec::new();
            let (mut audit, mut settled) = (Audit::No, Vec::new());
            match inbox.recv_timeout(TICK) {
                Ok(first) => {
                    for command in std::iter::once(first).chain(inbox.try_iter()) {
                        match (command, &mut audit) {
                            (Command::Barrier(ino, reply), _) => {
                                waiters.push(Waiter::Barrier(reply));
                                if ino != 0 {
                                    let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
                                    sink.add_inode(ino).opened.get_or_insert_default();
                                }
                            }
                            (Command::Flush(to), _) => {
                                waiters.push(Waiter::Flush(to));
                                // Covers whatever a background audit has found.
                                audit = Audit::Everywhere;
                            }
                            (Command::Found(more), Audit::Found(found)) => found.merge(more),
                            (Command::Found(found), Audit::No) => audit = Audit::Found(found),
                            (Command::Found(_), _) => {}
                            (Command::Settle(done), _) => settled.push(done),
                            (Command::Stop(done), _) => stop = Some(done),
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if let Some(error) = self.shared.failure() {
                waiters.into_iter().for_each(|w| w.failed(&error));
                continue;
            }
            let asked = !matches!(audit, Audit::No);
            let asked = asked || !settled.is_empty() || stop.is_some();
            if asked || !waiters.is_empty() || self.is_due(Instant::now()) {
                self.cut(waiters, audit);
            }
            // Whoever asked may have given up.
            settled.into_iter().for_each(|done| _ = done.send(()));
        }
        self.close(inbox);
        if let Some(done) = stop {
            let _ = done.send(());
        }
    }

    /// Whether the dirty set is old enough for a cut of its own.
    fn is_due(&mut self, now: Instant) -> bool {
        if now < self.next_cut {
            return false;
        }
        let (since, entries) = {
            let dirty = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
            (dirty.since, dirty.entries())
        };
        if self.shared.in_flight_operations.load(Ordering::Relaxed) >= OPERATIONS_MAX {
            return false;
        }
        if entries >= CROWD {
            return true;
        }
        // Half of the promise is for the way to the backend.
        let lag = self.options.max_lag / 2;
        if since.is_some_and(|t| now.duration_since(t) >= lag) {
            return true;
        }
        let suspicious = !self.suspects.is_empty() && now.duration_since(self.last_suspicion) >= lag;
        if suspicious {
            self.last_suspicion = now;
        }
        suspicious
    }

    /// Starts the auditor, the throttle and what shows the space that is left. They end when the returned sender is dropped.
    fn start_helpers(
        &self,
        blob: &Arc<dyn Blob>,
        commands: Sender<Command>,
        loader: Loader,
    ) -> std::io::Result<(Sender<()>, Vec<JoinHandle<()>>)> {
        let (end, ended) = bounded::<()>(0);
        let (index, tree, shared) =
            (Arc::clone(&self.index), Arc::clone(&self.tree), Arc::clone(&self.shared));
        let (interval, ended_too, ended_last) = (self.options.audit_interval, ended.clone(), ended.clone());
        let ended_loading = ended.clone();
        let auditor = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || audit_in_background(&index, &tree, &shared, interval, &ended, &commands))?;
        let (sink, shared, limit) =
            (Arc::clone(&self.sink), Arc::clone(&self.shared), self.options.dirty_limit);
        let throttle = std::thread::Builder::new().name("throttle".into()).spawn(move || {
            while !is_over(&ended_too, TICK) {
                let (bytes, entries) = {
                    let dirty = sink.lock().unwrap_or_else(PoisonError::into_inner);
                    (dirty.bytes, dirty.entries())
                };
                shared.gate().set_throttle(shared.throttle_at(bytes, limit, entries, CROWD_MAX));
            }
            shared.gate().set_throttle(0);
        })?;
        // A thread of its own, since a directory on a network may take its time to answer.
        let (shared, blob) = (Arc::clone(&self.shared), Arc::clone(blob));
        let space = std::thread::Builder::new().name("space".into()).spawn(move || {
            while !is_over(&ended_last, SPACE_INTERVAL) {
                shared.show_space(blob.directory());
            }
        })?;
        let loader =
            std::thread::Builder::new().name("load".into()).spawn(move || loader.run(&ended_loading))?;
        Ok((end, vec![auditor, throttle, space, loader]))
    }

    /// Takes in the files that were there before the volume was.
    fn adopt(&mut self) {
        while self.cut(Vec::new(), Audit::Adopt) {}
    }

    /// Makes a cut and sends it on its way; whether an adoption has more to take in.
    fn cut(&mut self, waiters: Vec<Waiter>, audit: Audit) -> bool {
        let may_wait = !matches!(audit, Audit::Adopt);
        if may_wait && let Err(error) = self.await_room() {
            if let Audit::Found(found) = audit {
                self.sink.lock().unwrap_or_else(PoisonError::into_inner).merge(found);
            }
            self.put_off(&error, waiters);
            return false;
        }
        let started = Instant::now();
        let (mut more, mut late) = (false, false);
        match self.try_cut(waiters, audit) {
            Ok(cut) => more = cut,
            Err((error @ VolumeError::NoRoom(_), waiters)) if may_wait => {
                // Before what it took counts as settled.
                let why = "this disk was full";
                self.sink.lock().unwrap_or_else(PoisonError::into_inner).look_everywhere(why);
                self.put_off(&error, waiters);
                late = true;
            }
            Err((error, waiters)) => {
                self.shared.fail(error.clone());
                waiters.into_iter().for_each(|w| w.failed(&error));
            }
        }
        self.shared.cut_ended();
        self.shared.unsettled.cut_ended(self.troubled.iter().map(|trouble| trouble.ino).collect());
        if !late {
            // At least as much rest as work, and never so much that the promised lag is lost to it.
            self.next_cut = Instant::now() + started.elapsed().min(self.options.max_lag / 2);
        }
        more
    }

    /// Waits until what a cut finds can be noted: meanwhile what can go is evicted.
    fn await_room(&self) -> Result<(), VolumeError> {
        let until = Instant::now() + ROOM;
        loop {
            match self.index.provide(0, For::Room) {
                Err(_) if Instant::now() < until && self.shared.failure().is_none() => {
                    std::thread::sleep(ROOM_PAUSE);
                }
                answer => return answer,
            }
        }
    }

    /// There is no room for a cut: another one is made later, and nothing that it would have found is forgotten.
    fn put_off(&mut self, error: &VolumeError, waiters: Vec<Waiter>) {
        self.shared.count("cuts_put_off", 1);
        let trouble = self.shared.trouble.lock().replace(error.to_string());
        if trouble.is_none() {
            tracing::warn!(%error, "changes wait to be committed");
        }
        waiters.into_iter().for_each(|w| w.failed(error));
        self.next_cut = Instant::now() + ROOM_AGAIN;
    }

    fn try_cut(&mut self, waiters: Vec<Waiter>, audit: Audit) -> Result<bool, (VolumeError, Vec<Waiter>)> {
        if !self.troubled.is_empty() {
            let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
            for Trouble { ino, name, .. } in self.troubled.drain(..) {
                if ino != 0 {
                    sink.add_inode(ino).untold = true;
                    sink.add_name(ino, b"");
                }
                if let Some((dir, name)) = name {
                    sink.add_name(dir, &name);
                }
            }
        }
        let (index, uploader, files) =
            (Arc::clone(&self.index), Arc::clone(&self.uploader), Arc::clone(&self.files));
        let _cutting = index.cutting();
        let mut chunks = ChunkStore::new(&index, &uploader);
        let suspects = self.suspects.clone();
        let cut = Cutter {
            index: &index,
            tree: &self.tree,
            files: &files,
            sink: &self.sink,
            shared: &self.shared,
            suspects: &mut self.suspects,
            journal: &self.journal,
        }
        .cut(audit, &mut chunks);
        let Cut { mut look, bytes, since, at, more } = match cut {
            Ok(cut) => cut,
            Err(error) => return Err((error, waiters)),
        };
        // Those that were let go are looked at once more, by the next cut: until then an agent to come is to know them, too.
        let mut kept = std::mem::take(&mut self.released);
        kept.extend(&suspects);
        self.released = suspects.into_iter().filter(|(ino, _)| !self.suspects.contains_key(ino)).collect();
        let mut still = self.released.clone();
        still.extend(&self.suspects);
        let trouble = std::mem::take(&mut look.trouble);
        let first = trouble.first().map(|t| VolumeError::Failed(t.why.clone()));
        self.troubled = trouble;
        let trouble = first;
        if let Some(error) = &trouble {
            tracing::error!(%error, "a change cannot be committed");
        }
        *self.shared.trouble.lock() = trouble.as_ref().map(ToString::to_string);
        match plan::plan(&index, look, &mut chunks) {
            Ok(plan) => self.commit(plan, &mut chunks, waiters, trouble, bytes, since, at)?,
            Err(error) => return Err((error, waiters)),
        }
        // Once the index has what was found of them.
        if let Err(error) = index.set_suspects(&kept, &still) {
            self.released.extend(kept);
            return Err((error, Vec::new()));
        }
        Ok(more)
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of a cut, once")]
    fn commit(
        &mut self,
        mut plan: Plan,
        chunks: &mut ChunkStore<'_>,
        waiters: Vec<Waiter>,
        trouble: Option<VolumeError>,
        bytes: u64,
        since: Option<Instant>,
        at: std::time::SystemTime,
    ) -> Result<(), (VolumeError, Vec<Waiter>)> {
        let changes_nothing = plan.is_empty();
        for id in self.pipeline.deleted.try_iter().chain(self.swept.try_iter()) {
            plan.changes.insert(key::garbage(&id), None);
        }
        if changes_nothing && !plan.is_empty() {
            // A commit of what the backend has lost, and nothing else.
            self.shared.count("sweeps", 1);
        }
        let mut job = Job {
            seq: self.seq,
            nonce: 0,
            batch: None,
            uploads: chunks.take_uploads(),
            waiters,
            trouble,
            dead_packs: std::mem::take(&mut plan.dead_packs),
            bytes: bytes.max(chunks.stored),
            operations: 0,
            since: since.unwrap_or_else(Instant::now),
        };
        if plan.is_empty() {
            if let Err(error) = self.take_over(&plan, |changes| self.index.apply_seen(changes)) {
                return Err((error, job.waiters));
            }
            // Kept in order behind the commits that are on their way, whose changes they may wait for.
            if !job.waiters.is_empty() {
                job.bytes = 0;
                self.pipeline.push(job, &self.shared);
            }
            return Ok(());
        }
        (job.seq, job.nonce) = (self.seq + 1, rand::random());
        let prepared = self.prepare(&mut plan, job.seq, job.nonce, at);
        match prepared {
            Ok((batch, totals)) => {
                self.shared.inodes.store(totals.inodes, Ordering::Relaxed);
                self.totals = totals;
                job.operations = batch.ops.len() as u64;
                job.batch = Some(batch);
            }
            Err(error) => return Err((error, job.waiters)),
        }
        self.seq = job.seq;
        self.shared.files.fetch_add(plan.files, Ordering::Relaxed);
        self.shared.bytes.fetch_add(plan.bytes, Ordering::Relaxed);
        self.pipeline.push(job, &self.shared);
        Ok(())
    }

    fn prepare(
        &self,
        plan: &mut Plan,
        seq: u64,
        nonce: u128,
        at: std::time::SystemTime,
    ) -> Result<(Batch, Totals), VolumeError> {
        let totals = plan.count(self.totals)?;
        let cut_at_ns = at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        let mut ops = plan.operations();
        ops.push((key::head(), Some(records::encode(&Head { seq, nonce, cut_at_ns })?)));
        self.shared.unsettled.commit(seq, plan.inodes());
        // Before the backend moves, so that an agent that starts after us knows its own commit.
        self.take_over(plan, |changes| self.index.apply(seq, nonce, changes))?;
        if self.options.durability == Durability::Local {
            self.index.sync()?;
        }
        Ok((Batch { ops }, totals))
    }

    /// Has the index take over a plan, and with it whoever keeps what is absent of its inodes.
    fn take_over(
        &self,
        plan: &Plan,
        apply: impl FnOnce(&Changes) -> Result<(), VolumeError>,
    ) -> Result<(), VolumeError> {
        let Some(residency) = &self.residency else { return apply(&plan.changes) };
        residency.rescue(&plan.dead)?;
        for (inode, ino) in &plan.dead {
            residency.bury(*inode, *ino)?;
        }
        residency.vanished(&plan.vanished);
        apply(&plan.changes)?;
        residency.buried(plan.dead.iter().map(|(inode, _)| *inode));
        Ok(())
    }

    /// The last cut, then the pipeline's end; a clean mark where everything is on the disk.
    fn close(mut self, inbox: &Receiver<Command>) {
        if self.shared.failure().is_none() {
            self.cut(Vec::new(), Audit::No);
        }
        self.pipeline.finish();
        let error = self.shared.failure();
        if error.is_none() && !self.suspects.values().any(|f| f.has(OpenFlags::MAPPED)) {
            let synced = nix::unistd::syncfs(self.tree.root()).is_ok();
            if synced {
                // Without the mark the next start is only more careful.
                let _ = self.index.change_base(|base| base.clean = true);
            }
        }
        inbox.try_iter().for_each(|command| command.refuse(error.as_ref()));
    }
}
