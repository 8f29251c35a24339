//! The one task that commits: it writes batches in the order of their submission, groups them into WAL objects, and
//! opens the database again when SlateDB has closed it. It must not answer a batch before it is durable.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use crossbeam::channel::Sender;
use futures::future::{BoxFuture, FutureExt};
use slatedb::config::{CloseOptions, FlushOptions, FlushType};
use slatedb::{CloseReason, Db, ErrorKind, WriteBatch};
use tokio::sync::mpsc;

use super::{MARKER, Shared, lock, open};
use crate::meta::{Batch, MetaError, Result, check_record};

/// After this many WAL objects the memtable is flushed, so that opening after a crash replays no more than these.
const REPLAY_LIMIT: u64 = 512;

/// A database that is found damaged after having been opened this many times without a commit will not get better.
const HOPELESS: u32 = 8;

/// A batch on its way.
pub(super) struct Submitted {
    ops: Vec<(Bytes, Option<Bytes>)>,
    answer: Sender<Result<()>>,
}

impl Submitted {
    /// Takes a batch over; refuses one that can never be stored.
    pub(super) fn new(batch: Batch, answer: Sender<Result<()>>) -> Result<Self> {
        batch.ops.iter().try_for_each(|(key, value)| check_record(key, value.as_ref()))?;
        let ops = batch.ops.into_iter().map(|(key, value)| (Bytes::from(key), value)).collect();
        Ok(Self { ops, answer })
    }

    fn answer(self, result: Result<()>) {
        // Whoever does not wait for its answer does not want it.
        let _ = self.answer.send(result);
    }
}

/// A batch that was written but is not known to be durable.
struct Pending {
    number: u64,
    batch: Submitted,
}

/// A flush under way: which batches it covers.
type Flush = BoxFuture<'static, (u64, std::result::Result<(), slatedb::Error>)>;

pub(super) struct Writer {
    shared: Arc<Shared>,
    queue: mpsc::UnboundedReceiver<Submitted>,
    pending: VecDeque<Pending>,
    /// Random per opening; leads the marker.
    nonce: u128,
    /// Number of the last batch written, from 1.
    written: u64,
    /// Number of the last batch that was answered.
    answered: u64,
    /// The epoch at which the database was opened last.
    epoch: u64,
    flushes: u64,
    /// Times that the database was opened again since a commit became durable.
    reopened: u32,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, queue: mpsc::UnboundedReceiver<Submitted>) -> Self {
        let epoch = shared.db().manifest().writer_epoch();
        let nonce = rand::random();
        Self {
            shared,
            queue,
            pending: VecDeque::new(),
            nonce,
            written: 0,
            answered: 0,
            epoch,
            flushes: 0,
            reopened: 0,
        }
    }

    /// Serves the queue until it is closed, then closes the database.
    pub(super) async fn run(mut self) -> Result<()> {
        let (end, ended) = tokio::sync::oneshot::channel();
        let compacting = tokio::spawn(open::compact(self.shared.store.clone(), ended));
        let result = self.run_until_closed().await;
        drop(end);
        // It ends soon, and nothing that it does is waited for.
        drop(compacting);
        result
    }

    async fn run_until_closed(&mut self) -> Result<()> {
        match self.serve().await {
            Ok(()) => {
                let result = self.shut().await;
                // Readers that are still there get an answer instead of waiting for a reopening.
                lock(&self.shared.fatal).get_or_insert_with(super::closed);
                result
            }
            Err(error) => {
                tracing::error!(backend = self.shared.store.shown(), "no further commits: {error}");
                *lock(&self.shared.fatal) = Some(error.clone());
                for pending in self.pending.drain(..) {
                    pending.batch.answer(Err(error.clone()));
                }
                // From here on submit() finds the queue closed and answers by itself.
                self.queue.close();
                while let Some(batch) = self.queue.recv().await {
                    batch.answer(Err(error.clone()));
                }
                retire(self.shared.db());
                Err(error)
            }
        }
    }

    async fn serve(&mut self) -> Result<()> {
        let mut flush: Option<Flush> = None;
        let mut open = true;
        let mut status = self.shared.db().subscribe();
        loop {
            if flush.is_none() && !self.pending.is_empty() {
                flush = Some(self.flush());
            }
            if !open && self.pending.is_empty() {
                return Ok(());
            }
            let trouble = tokio::select! {
                // Arrivals first: they ride in the next WAL object.
                biased;
                batch = self.queue.recv(), if open => match batch {
                    Some(batch) => self.write(batch).await.err(),
                    None => { open = false; None }
                },
                (through, result) = poll(&mut flush) => {
                    flush = None;
                    match result {
                        Ok(()) => { self.acknowledge(through); None }
                        Err(error) => Some(error),
                    }
                }
                error = closed(&mut status) => Some(error),
            };
            if let Some(error) = trouble {
                flush = None;
                self.recover(&error).await?;
                status = self.shared.db().subscribe();
            }
        }
    }

    /// Writes a batch into SlateDB's memory; it is durable after the next flush.
    async fn write(&mut self, batch: Submitted) -> std::result::Result<(), slatedb::Error> {
        self.written += 1;
        let ops = self.encode(self.written, &batch);
        // It is ours to finish from here on, whatever becomes of this attempt.
        self.pending.push_back(Pending { number: self.written, batch });
        self.shared.db().write(ops).await.map(|_| ())
    }

    fn encode(&self, number: u64, batch: &Submitted) -> WriteBatch {
        let mut ops = WriteBatch::new();
        for (key, value) in &batch.ops {
            match value {
                Some(value) => ops.put_bytes(key.clone(), value.clone()),
                None => ops.delete(key),
            }
        }
        let mut marker = Vec::with_capacity(24);
        marker.extend_from_slice(&self.nonce.to_be_bytes());
        marker.extend_from_slice(&number.to_be_bytes());
        ops.put(MARKER, marker);
        ops
    }

    fn flush(&mut self) -> Flush {
        let db = self.shared.db();
        let through = self.written;
        self.flushes += 1;
        if self.flushes.is_multiple_of(REPLAY_LIMIT) {
            let db = db.clone();
            // In the background; when it fails, the database is closed and the next write finds out.
            tokio::spawn(async move {
                let _ = db.flush_with_options(FlushOptions { flush_type: FlushType::MemTable }).await;
            });
        }
        async move {
            let result = db.flush_with_options(FlushOptions { flush_type: FlushType::Wal }).await;
            (through, result)
        }
        .boxed()
    }

    fn acknowledge(&mut self, through: u64) {
        while self.pending.front().is_some_and(|pending| pending.number <= through) {
            if let Some(pending) = self.pending.pop_front() {
                self.answered = pending.number;
                self.reopened = 0;
                pending.batch.answer(Ok(()));
            }
        }
    }

    /// Opens the database again at the epoch that we hold, finds out which batches are durable and writes the others
    /// once more.
    async fn recover(&mut self, error: &slatedb::Error) -> Result<()> {
        let mut reason = self.shared.judge(error);
        loop {
            if self.reopened >= HOPELESS && matches!(reason, MetaError::Damaged(_)) {
                return Err(reason);
            }
            tracing::warn!(
                backend = self.shared.store.shown(),
                pending = self.pending.len(),
                "the metadata was closed ({reason}); opening it again"
            );
            retire(self.shared.db());
            pause(self.reopened).await;
            self.reopened += 1;
            match self.reopen().await {
                Ok(()) => return Ok(()),
                Err(error @ MetaError::Unavailable(_)) => reason = error,
                Err(error) => return Err(error),
            }
        }
    }

    async fn reopen(&mut self) -> Result<()> {
        // Fails as fenced if the epoch is no longer ours, also when a fence was only suspected before.
        let db = open::build(&self.shared.store, Some(self.epoch))
            .await
            .map_err(|error| self.shared.judge(&error))?;
        self.epoch = db.manifest().writer_epoch();
        *self.shared.db.write().unwrap_or_else(PoisonError::into_inner) = db.clone();
        let shared = Arc::clone(&self.shared);
        let judge = |error: slatedb::Error| match shared.judge(&error) {
            // Closed again at once, by whatever: the next attempt will tell.
            MetaError::Fenced => MetaError::Unavailable(error.to_string()),
            other => other,
        };
        let marker = db.get_with_options(MARKER, &super::read_options()).await.map_err(judge)?;
        let durable = match marker.as_deref().and_then(decode_marker) {
            Some((nonce, number)) if nonce == self.nonce => number,
            // None of ours has ever become durable, which fits only if none was acknowledged.
            _ if self.answered == 0 => 0,
            _ => return Err(MetaError::Fenced),
        };
        if durable < self.answered || durable > self.written {
            return Err(super::damaged(
                self.shared.store.shown(),
                &format!(
                    "commit {durable} is the last one stored, {} was acknowledged, {} was written",
                    self.answered, self.written
                ),
            ));
        }
        self.acknowledge(durable);
        for pending in &self.pending {
            db.write(self.encode(pending.number, &pending.batch)).await.map_err(judge)?;
        }
        Ok(())
    }

    /// Everything is durable: moves the WAL into the tree, so that the next opening has nothing to replay.
    async fn shut(&mut self) -> Result<()> {
        match self.shared.db().close().await {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::Closed(CloseReason::Clean) => Ok(()),
            // Nothing is lost by it: what was submitted is durable in the WAL.
            Err(error) => Err(self.shared.judge(&error)),
        }
    }
}

/// The marker's nonce and batch number.
fn decode_marker(bytes: &[u8]) -> Option<(u128, u64)> {
    let (nonce, number) = bytes.split_at_checked(16)?;
    Some((u128::from_be_bytes(nonce.try_into().ok()?), u64::from_be_bytes(number.try_into().ok()?)))
}

/// The flush under way, or never.
async fn poll(flush: &mut Option<Flush>) -> (u64, std::result::Result<(), slatedb::Error>) {
    match flush {
        Some(flush) => flush.await,
        None => std::future::pending().await,
    }
}

/// Waits until the database is closed by itself, such as by another agent that opens the volume.
async fn closed(status: &mut tokio::sync::watch::Receiver<slatedb::DbStatus>) -> slatedb::Error {
    let reason = match status.wait_for(|status| status.close_reason.is_some()).await {
        Ok(status) => status.close_reason.unwrap_or(CloseReason::Clean),
        Err(_) => CloseReason::Clean,
    };
    slatedb::Error::closed("the database was closed".into(), reason)
}

/// Gives the resources of a closed database back, in the background: its tasks may still wait for the backend.
fn retire(db: Db) {
    tokio::spawn(async move {
        let _ = db.close_with_options(CloseOptions::default().with_flush_type(None)).await;
    });
}

/// Waits before another attempt: not at all at first, then longer and longer, with jitter.
async fn pause(attempts: u32) {
    if attempts > 0 {
        let longest = Duration::from_millis(50) * (1 << attempts.min(10));
        tokio::time::sleep(longest.min(Duration::from_secs(30)).mul_f64(rand::random_range(0.5..1.0))).await;
    }
}
