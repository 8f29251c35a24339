//! The commit pipeline: packs go up in parallel, metadata batches follow in strict order, acknowledgements last.
//! Cuts enter at one end while earlier ones are still on their way. It must not know the tree.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use rand::RngExt;

use super::VolumeError;
use super::index::Index;
use super::status::Shared;
use crate::blob::{Blob, BlobError};
use crate::meta::records::PackId;
use crate::meta::{Batch, Meta, MetaError};
use crate::session::Reply;

/// Cuts that may be on their way at once; one more waits, and with it the engine.
const DEPTH: usize = 4;
/// Bounds of the pause between two tries of an upload.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Somebody who waits for a commit.
pub enum Waiter {
    /// An fsync.
    Barrier(Box<dyn Reply>),
    /// `storeshim flush`, shutdown: gets the number of the commit that holds everything.
    Flush(Sender<Result<u64, VolumeError>>),
}

impl Waiter {
    /// Everything before is durable.
    pub fn done(self, seq: u64) {
        match self {
            Self::Barrier(reply) => reply.reply(0),
            // Whoever asked may have gone away.
            Self::Flush(to) => _ = to.send(Ok(seq)),
        }
    }

    /// It will not become durable.
    pub fn failed(self, error: &VolumeError) {
        match self {
            Self::Barrier(reply) => reply.reply(error.errno()),
            Self::Flush(to) => _ = to.send(Err(error.clone())),
        }
    }
}

/// An upload on its way.
pub type Ticket = Receiver<Result<(), VolumeError>>;

/// A cut on its way to the backend.
pub struct Job {
    /// Number of its commit.
    pub seq: u64,
    /// The commit's nonce.
    pub nonce: u128,
    /// Metadata; `None` where the cut found no change and only the waiters must be kept in order.
    pub batch: Option<Batch>,
    /// Packs that the batch refers to.
    pub uploads: Vec<Ticket>,
    /// Who waits for it.
    pub waiters: Vec<Waiter>,
    /// What could not be looked at: the waiters are told that their barrier failed.
    pub trouble: Option<VolumeError>,
    /// Packs that nothing refers to once it is durable.
    pub dead_packs: Vec<PackId>,
    /// Bytes that are at risk until it is durable.
    pub bytes: u64,
    /// Operations in its batch.
    pub operations: u64,
    /// When the oldest of its changes was noticed.
    pub since: Instant,
}

/// A pack to be stored, and who wants to know.
type Upload = (PackId, Bytes, Sender<Result<(), VolumeError>>);
/// What became of a submitted batch; `None` where there was none.
type Submitted = Option<Receiver<crate::meta::Result<()>>>;

/// Sends packs up, several at a time, each until it is stored.
pub struct Uploader {
    queue: Sender<Upload>,
}

impl Uploader {
    /// Starts `parallelism` uploading threads.
    pub fn start(blob: &Arc<dyn Blob>, shared: &Arc<Shared>, parallelism: usize) -> std::io::Result<Self> {
        let parallelism = parallelism.max(1);
        // Bounded: a look outside of a freeze waits here, so that packs in memory stay few.
        let (queue, jobs) = bounded::<Upload>(parallelism);
        for n in 0..parallelism {
            let (jobs, blob, shared) = (jobs.clone(), Arc::clone(blob), Arc::clone(shared));
            std::thread::Builder::new().name(format!("upload-{n}")).spawn(move || {
                for (id, bytes, done) in jobs {
                    // The cut may have been given up.
                    let _ = done.send(put(&*blob, &shared, &id, &bytes));
                }
            })?;
        }
        Ok(Self { queue })
    }

    /// Queues a pack; waits while too many are under way.
    pub fn send(&self, id: PackId, bytes: Bytes) -> Ticket {
        let (done, ticket) = bounded(1);
        if let Err(crossbeam::channel::SendError((_, _, done))) = self.queue.send((id, bytes, done)) {
            let _ = done.send(Err(VolumeError::closed()));
        }
        ticket
    }
}

fn put(blob: &dyn Blob, shared: &Shared, id: &PackId, bytes: &Bytes) -> Result<(), VolumeError> {
    let mut pause = RETRY.0;
    loop {
        if let Some(error) = shared.failure() {
            return Err(error);
        }
        match blob.put(id, bytes.clone()) {
            Ok(()) => {
                shared.backend_answers();
                shared.count("packs", 1);
                shared.count("pack_bytes", bytes.len() as u64);
                return Ok(());
            }
            Err(BlobError::Unavailable(why)) => shared.backend_refuses(&why),
            Err(BlobError::Fenced) => return Err(VolumeError::Fenced),
            Err(BlobError::Missing(why) | BlobError::Refused(why)) => return Err(VolumeError::Failed(why)),
        }
        std::thread::sleep(pause.mul_f64(rand::rng().random_range(0.5..1.5)));
        pause = (pause * 2).min(RETRY.1);
    }
}

/// The ordered end of the pipeline.
pub struct Pipeline {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
    /// Dead packs that have been deleted: their notes in the metadata can go.
    pub deleted: Receiver<PackId>,
}

impl Pipeline {
    /// Starts the pipeline's threads.
    pub fn start(
        meta: Arc<dyn Meta>,
        blob: Arc<dyn Blob>,
        index: Arc<Index>,
        shared: Arc<Shared>,
    ) -> std::io::Result<Self> {
        let (jobs, queued) = bounded::<Job>(DEPTH);
        let (submitted, acks) = bounded::<(Job, Submitted)>(DEPTH);
        let (dead, garbage) = unbounded::<PackId>();
        let (gone, deleted) = unbounded::<PackId>();
        let spawn =
            |name: &str, f: Box<dyn FnOnce() + Send>| std::thread::Builder::new().name(name.into()).spawn(f);
        let submit = Arc::clone(&shared);
        let threads = vec![
            spawn("commit", Box::new(move || submit_all(&*meta, &submit, queued, &submitted)))?,
            spawn("acknowledge", {
                let shared = Arc::clone(&shared);
                Box::new(move || acknowledge_all(&index, &shared, acks, &dead))
            })?,
            spawn("garbage", Box::new(move || delete_all(&*blob, garbage, &gone)))?,
        ];
        Ok(Self { jobs: Some(jobs), threads, deleted })
    }

    /// Hands a cut over; waits while the pipeline is full.
    pub fn push(&self, job: Job, shared: &Shared) {
        shared.in_flight_bytes.fetch_add(job.bytes, Ordering::Relaxed);
        shared.in_flight_operations.fetch_add(job.operations, Ordering::Relaxed);
        shared.in_flight.lock().push_back(job.since);
        if let Some(jobs) = &self.jobs
            && let Err(crossbeam::channel::SendError(job)) = jobs.send(job)
        {
            let error = shared.failure().unwrap_or(VolumeError::closed());
            job.waiters.into_iter().for_each(|w| w.failed(&error));
        }
    }

    /// Lets what is on its way arrive, then ends the threads.
    pub fn finish(mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A thread that panicked has taken the process with it.
            let _ = thread.join();
        }
    }
}

fn submit_all(meta: &dyn Meta, shared: &Shared, jobs: Receiver<Job>, submitted: &Sender<(Job, Submitted)>) {
    for mut job in jobs {
        for ticket in std::mem::take(&mut job.uploads) {
            match ticket.recv() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => shared.fail(error),
                Err(_) => shared.fail(VolumeError::Failed("an upload was given up".into())),
            }
        }
        // After a failure nothing may become durable any more: later commits would not be prefixes.
        let answer = match (shared.failure(), job.batch.take()) {
            (None, Some(batch)) => Some(meta.submit(batch)),
            _ => None,
        };
        if submitted.send((job, answer)).is_err() {
            return;
        }
    }
}

fn acknowledge_all(index: &Index, shared: &Shared, acks: Receiver<(Job, Submitted)>, dead: &Sender<PackId>) {
    for (job, answer) in acks {
        if let Some(answer) = answer {
            match answer.recv() {
                Ok(Ok(())) => match index.confirm(job.seq, job.nonce) {
                    // What was before the cut stays noted, until the next start finds that it has become durable.
                    Ok(()) | Err(VolumeError::NoRoom(_)) => {
                        shared.committed(job.seq);
                        for id in &job.dead_packs {
                            // The thread that deletes ends after this one.
                            let _ = dead.send(*id);
                        }
                    }
                    Err(error) => shared.fail(error),
                },
                Ok(Err(MetaError::Fenced)) => shared.fail(VolumeError::Fenced),
                Ok(Err(error)) => shared.fail(VolumeError::Failed(error.to_string())),
                Err(_) => shared.fail(VolumeError::Failed("the metadata engine has stopped".into())),
            }
        }
        shared.in_flight_bytes.fetch_sub(job.bytes, Ordering::Relaxed);
        shared.in_flight_operations.fetch_sub(job.operations, Ordering::Relaxed);
        shared.in_flight.lock().pop_front();
        let error = shared.failure().or(job.trouble);
        for waiter in job.waiters {
            match &error {
                None => waiter.done(job.seq),
                Some(error) => waiter.failed(error),
            }
        }
    }
}

fn delete_all(blob: &dyn Blob, garbage: Receiver<PackId>, gone: &Sender<PackId>) {
    let mut later: VecDeque<PackId> = VecDeque::new();
    for id in garbage {
        later.push_back(id);
        while let Some(id) = later.pop_front() {
            match blob.delete(&id) {
                Ok(()) => _ = gone.send(id),
                // Its note stays in the metadata; the next start tries again.
                Err(error) => {
                    tracing::warn!(%error, "a pack without live data could not be deleted; it is tried again later");
                    later.push_back(id);
                    break;
                }
            }
        }
    }
}
