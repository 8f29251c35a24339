//! A store that misbehaves on demand, over memory. The fault model of the tests:
//! - a PUT is refused before it does anything, or is done and its answer is lost, or hangs for a while;
//! - a PUT is answered with a conflict although nothing conflicts (a server that is still busy with our first attempt);
//! - attributes are not supported, as in a directory, so that nothing tells our own object from another's;
//! - conditions are ignored, or checked without a lock; writing, deleting or everything is forbidden.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// What becomes of one PUT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing is done, an error is answered.
    Refuse,
    /// It is done, an error is answered.
    LoseAnswer,
    /// It is done after a while.
    Hang(Duration),
    /// Nothing is done, "exists already" is answered.
    FalseConflict,
}

/// Chooses the fault of a PUT.
type Plan = Box<dyn FnMut(&Path) -> Option<Fault> + Send>;

#[derive(Default)]
pub(crate) struct Faulty {
    pub(crate) inner: Arc<InMemory>,
    plan: Mutex<Option<Plan>>,
    pub(crate) ignore_conditions: AtomicBool,
    pub(crate) check_without_lock: AtomicBool,
    pub(crate) forbid_writes: AtomicBool,
    pub(crate) forbid_deletes: AtomicBool,
    pub(crate) forbid_reads: AtomicBool,
    pub(crate) no_bucket: AtomicBool,
    pub(crate) no_attributes: AtomicBool,
    /// The next GET of a path that begins so fails.
    pub(crate) refuse_get: Mutex<Option<&'static str>>,
    /// Milliseconds that every request takes.
    pub(crate) delay_ms: AtomicU64,
    /// What was asked while requests took time.
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// A request, from when on it was under way and until when.
struct Asked {
    what: String,
    began: Instant,
    ended: Instant,
}

/// How long a request takes while round trips are counted.
const TRIP: Duration = Duration::from_millis(250);

impl std::fmt::Debug for Faulty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Faulty")
    }
}

impl std::fmt::Display for Faulty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("faulty memory")
    }
}

impl Faulty {
    pub(crate) fn plan(&self, plan: impl FnMut(&Path) -> Option<Fault> + Send + 'static) {
        *self.plan.lock().unwrap() = Some(Box::new(plan));
    }

    pub(crate) fn behave(&self) {
        *self.plan.lock().unwrap() = None;
    }

    /// Does some work over a store that is far away; how many requests came one after another: no more than the time allows,
    /// and no more than the longest chain, of those that had an answer by then, in which each began after the one before
    /// had ended. They are printed. What has one of the names in `background` does not count.
    pub(crate) fn round_trips(&self, what: &str, background: &[&str], work: impl FnOnce()) -> usize {
        self.asked.lock().unwrap().clear();
        self.delay_ms.store(TRIP.as_millis() as u64, Ordering::Relaxed);
        let start = Instant::now();
        work();
        let took = start.elapsed();
        self.delay_ms.store(0, Ordering::Relaxed);
        let mut asked = std::mem::take(&mut *self.asked.lock().unwrap());
        asked.retain(|asked| !background.iter().any(|name| asked.what.contains(name)));
        asked.sort_by_key(|asked| asked.began);
        let mut trips: Vec<usize> = Vec::new();
        println!("{what}: {} ms", took.as_millis());
        for (at, one) in asked.iter().enumerate() {
            let before = asked.iter().zip(&trips).take(at).filter(|(other, _)| other.ended <= one.began);
            let trip = 1 + before.map(|(_, trip)| *trip).max().unwrap_or(0);
            let since = |moment: Instant| moment.saturating_duration_since(start).as_millis();
            println!("{trip:4} {:5}-{:<5} {}", since(one.began), since(one.ended), one.what);
            trips.push(trip);
        }
        let time = took.as_millis() / TRIP.as_millis();
        trips.into_iter().max().unwrap_or(0).min(usize::try_from(time).unwrap_or(usize::MAX))
    }

    /// A request on its way, for as long as requests take.
    fn travel(&self, what: String) -> impl Future<Output = ()> + Send + 'static {
        let delay = Duration::from_millis(self.delay_ms.load(Ordering::Relaxed));
        let asked = Arc::clone(&self.asked);
        async move {
            if delay.is_zero() {
                return;
            }
            let began = Instant::now();
            tokio::time::sleep(delay).await;
            asked.lock().unwrap().push(Asked { what, began, ended: Instant::now() });
        }
    }

    fn is(flag: &AtomicBool) -> bool {
        flag.load(Ordering::Relaxed)
    }
}

fn broken() -> Error {
    Error::Generic { store: "faulty", source: "503 SlowDown".into() }
}

fn denied(path: &Path) -> Error {
    Error::PermissionDenied { path: path.to_string(), source: "403 <Code>AccessDenied</Code>".into() }
}

fn no_bucket(path: &Path) -> Error {
    Error::NotFound { path: path.to_string(), source: "404 <Code>NoSuchBucket</Code>".into() }
}

fn conflict(path: &Path) -> Error {
    Error::AlreadyExists { path: path.to_string(), source: "409".into() }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, path: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        self.travel(format!("PUT {path}")).await;
        if Self::is(&self.no_bucket) {
            return Err(no_bucket(path));
        }
        if Self::is(&self.forbid_writes) {
            return Err(denied(path));
        }
        if Self::is(&self.no_attributes) && !options.attributes.is_empty() {
            return Err(Error::NotImplemented {
                operation: "attributes".into(),
                implementer: self.to_string(),
            });
        }
        if Self::is(&self.ignore_conditions) {
            options.mode = PutMode::Overwrite;
        }
        if Self::is(&self.check_without_lock) && options.mode == PutMode::Create {
            if self.inner.get_opts(path, GetOptions::default()).await.is_ok() {
                return Err(conflict(path));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            options.mode = PutMode::Overwrite;
        }
        let fault = self.plan.lock().unwrap().as_mut().and_then(|plan| plan(path));
        match fault {
            None => self.inner.put_opts(path, payload, options).await,
            Some(Fault::Refuse) => Err(broken()),
            Some(Fault::FalseConflict) => Err(conflict(path)),
            Some(Fault::LoseAnswer) => {
                let _ = self.inner.put_opts(path, payload, options).await;
                Err(broken())
            }
            Some(Fault::Hang(pause)) => {
                tokio::time::sleep(pause).await;
                self.inner.put_opts(path, payload, options).await
            }
        }
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let part = options.range.as_ref().map(|range| format!(" {range:?}")).unwrap_or_default();
        self.travel(format!("{} {path}{part}", if options.head { "HEAD" } else { "GET" })).await;
        if Self::is(&self.no_bucket) {
            return Err(no_bucket(path));
        }
        if Self::is(&self.forbid_reads) {
            return Err(denied(path));
        }
        if self.refuse_get.lock().unwrap().take_if(|start| path.as_ref().starts_with(*start)).is_some() {
            return Err(broken());
        }
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        if Self::is(&self.forbid_deletes) {
            return locations.map(|path| Err(denied(&path?))).boxed();
        }
        let (travel, inner) = (self.travel("DELETE".into()), Arc::clone(&self.inner));
        futures::stream::once(travel.map(move |()| inner.delete_stream(locations))).flatten().boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let listed = self.inner.list(prefix);
        let travel = self.travel(format!("LIST {}", prefix.map(ToString::to_string).unwrap_or_default()));
        futures::stream::once(travel.map(|()| listed)).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
