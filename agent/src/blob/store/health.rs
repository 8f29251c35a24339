//! What the backend answers, watched from below every user of it: counts of requests, and the trouble that is not
//! over yet. It must not retry, change or judge a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use crossbeam::utils::CachePadded;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

use super::error::explain;

/// A request that has been waiting this long is reported as trouble, although it may still succeed.
const SLOW: Duration = Duration::from_secs(10);

/// Requests are judged by kind: a backend that serves reads may refuse writes.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Read,
    Write,
}

/// What [`Health::count`] counts.
#[derive(Clone, Copy)]
pub(crate) enum Counted {
    /// Something was stored, of so many bytes.
    Put(u64),
    /// Something was read.
    Get,
    /// Records were listed.
    List,
    /// A pack was deleted.
    Delete,
    /// A connection or a request failed.
    Failure,
}

#[derive(Debug)]
struct Trouble {
    since: Instant,
    text: String,
}

/// Counters and current trouble of one backend.
#[derive(Debug, Default)]
pub struct Health {
    puts: CachePadded<AtomicU64>,
    gets: CachePadded<AtomicU64>,
    lists: AtomicU64,
    deletes: AtomicU64,
    put_bytes: AtomicU64,
    failures: AtomicU64,
    trouble: [std::sync::Mutex<Option<Trouble>>; 2],
}

impl Health {
    /// The trouble that is not over yet, for people: what failed, since when. `None` while all is well.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        // Writes first: what cannot be written is what is at risk.
        [Kind::Write, Kind::Read].into_iter().find_map(|kind| {
            let slot = self.slot(kind).lock().ok()?;
            let trouble = slot.as_ref()?;
            Some(format!("{} (for {} s)", trouble.text, trouble.since.elapsed().as_secs()))
        })
    }

    /// Requests since the start, by name: `puts`, `gets`, `lists`, `deletes`, `put_bytes`, `backend_failures`.
    #[must_use]
    pub fn counters(&self) -> [(&'static str, u64); 6] {
        [
            ("puts", self.puts.load(Ordering::Relaxed)),
            ("gets", self.gets.load(Ordering::Relaxed)),
            ("lists", self.lists.load(Ordering::Relaxed)),
            ("deletes", self.deletes.load(Ordering::Relaxed)),
            ("put_bytes", self.put_bytes.load(Ordering::Relaxed)),
            ("backend_failures", self.failures.load(Ordering::Relaxed)),
        ]
    }

    /// Counts a request that did not go through an object store: one of a Durable Object.
    pub(crate) fn count(&self, op: Counted) {
        let counter = match op {
            Counted::Put(bytes) => {
                self.put_bytes.fetch_add(bytes, Ordering::Relaxed);
                &*self.puts
            }
            Counted::Get => &*self.gets,
            Counted::List => &self.lists,
            Counted::Delete => &self.deletes,
            Counted::Failure => &self.failures,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn slot(&self, kind: Kind) -> &std::sync::Mutex<Option<Trouble>> {
        let [read, write] = &self.trouble;
        match kind {
            Kind::Read => read,
            Kind::Write => write,
        }
    }

    /// A request of this kind was answered.
    pub(crate) fn well(&self, kind: Kind) {
        if let Ok(mut slot) = self.slot(kind).lock()
            && let Some(trouble) = slot.take()
        {
            tracing::info!(after_s = trouble.since.elapsed().as_secs(), "the backend answers again");
        }
    }

    /// There is trouble with requests of this kind.
    pub(crate) fn ill(&self, kind: Kind, text: String) {
        let Ok(mut slot) = self.slot(kind).lock() else { return };
        match slot.as_mut() {
            Some(trouble) => trouble.text = text,
            None => {
                tracing::warn!("{text}; trying again until it answers");
                *slot = Some(Trouble { since: Instant::now(), text });
            }
        }
    }

    fn note<T>(&self, kind: Kind, what: &str, path: &str, result: &Result<T>) {
        match result {
            Err(error) if is_trouble(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                self.ill(kind, format!("the backend refuses to {what} {path}: {}", explain(error)));
            }
            // "Not there" and "exists already" are answers of a backend that is well.
            _ => self.well(kind),
        }
    }

    /// Runs one request; while it waits for long, says so.
    async fn watch<T>(
        &self,
        kind: Kind,
        what: &str,
        path: &str,
        request: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let mut request = std::pin::pin!(request);
        let result = match tokio::time::timeout(SLOW, &mut request).await {
            Ok(result) => result,
            Err(_) => {
                self.ill(
                    kind,
                    format!(
                        "the backend has not answered a request to {what} {path} for {} s",
                        SLOW.as_secs()
                    ),
                );
                request.await
            }
        };
        self.note(kind, what, path, &result);
        result
    }
}

fn is_trouble(error: &Error) -> bool {
    !matches!(
        error,
        Error::NotFound { .. }
            | Error::AlreadyExists { .. }
            | Error::Precondition { .. }
            | Error::NotModified { .. }
            | Error::NotSupported { .. }
            | Error::NotImplemented { .. }
    )
}

/// An object store whose requests are counted and watched.
#[derive(Debug)]
pub(super) struct Watched {
    inner: Arc<dyn ObjectStore>,
    health: Arc<Health>,
}

impl Watched {
    pub(super) fn new(inner: Arc<dyn ObjectStore>, health: Arc<Health>) -> Self {
        Self { inner, health }
    }
}

impl std::fmt::Display for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl ObjectStore for Watched {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.health.puts.fetch_add(1, Ordering::Relaxed);
        let len = payload.content_length() as u64;
        let request = self.inner.put_opts(path, payload, options);
        let result = self.health.watch(Kind::Write, "write", path.as_ref(), request).await;
        if result.is_ok() {
            self.health.put_bytes.fetch_add(len, Ordering::Relaxed);
        }
        result
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.health.puts.fetch_add(1, Ordering::Relaxed);
        let request = self.inner.put_multipart_opts(path, options);
        let inner = self.health.watch(Kind::Write, "write", path.as_ref(), request).await?;
        Ok(Box::new(WatchedUpload { inner, path: path.clone(), health: Arc::clone(&self.health) }))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.health.gets.fetch_add(1, Ordering::Relaxed);
        let request = self.inner.get_opts(path, options);
        self.health.watch(Kind::Read, "read", path.as_ref(), request).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let health = Arc::clone(&self.health);
        self.inner
            .delete_stream(locations)
            .inspect(move |result| {
                health.deletes.fetch_add(1, Ordering::Relaxed);
                let path = result.as_ref().map(Path::as_ref).unwrap_or("objects");
                health.note(Kind::Write, "delete", path, result);
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.health.lists.fetch_add(1, Ordering::Relaxed);
        let health = Arc::clone(&self.health);
        let name = prefix.map(ToString::to_string).unwrap_or_default();
        self.inner
            .list(prefix)
            .inspect(move |result| {
                if result.is_err() {
                    health.note(Kind::Read, "list", &name, result);
                }
            })
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.health.lists.fetch_add(1, Ordering::Relaxed);
        let name = prefix.map(ToString::to_string).unwrap_or_default();
        self.health.watch(Kind::Read, "list", &name, self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.health.puts.fetch_add(1, Ordering::Relaxed);
        let request = self.inner.copy_opts(from, to, options);
        self.health.watch(Kind::Write, "copy to", to.as_ref(), request).await
    }
}

#[derive(Debug)]
struct WatchedUpload {
    inner: Box<dyn MultipartUpload>,
    path: Path,
    health: Arc<Health>,
}

#[async_trait]
impl MultipartUpload for WatchedUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let health = Arc::clone(&self.health);
        let path = self.path.clone();
        let len = data.content_length() as u64;
        let part = self.inner.put_part(data);
        Box::pin(async move {
            health.puts.fetch_add(1, Ordering::Relaxed);
            let result = health.watch(Kind::Write, "write", path.as_ref(), part).await;
            if result.is_ok() {
                health.put_bytes.fetch_add(len, Ordering::Relaxed);
            }
            result
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.health.puts.fetch_add(1, Ordering::Relaxed);
        self.health.watch(Kind::Write, "write", self.path.as_ref(), self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}
