//! What SlateDB asks of the object store while it opens a database, one thing after another, is known beforehand: here it is
//! asked for side by side, and SlateDB gets the answers when it comes for them. It must not decide anything: whatever is not
//! as expected goes to the store itself, and from then on everything does.
//!
//! Why an answer that is a little old does no harm:
//! - Numbered manifests and WAL objects are written once and never changed.
//! - The list of manifests, and what was not in the WAL, are as old as if the store had been slow. That a claim builds upon
//!   the newest manifest is found out by its own PUT, which fails where there is a newer one, and by the boundary that
//!   is read **after** it, which tells of a newer one that was collected already. That nobody writes to the WAL behind the
//!   fence is found out by the fence's own PUT. Where either fails, nothing that was read ahead is used any more.
//! - The fence is written once the claim is, as ever. Beside it, not after it, goes the look whether there is a newer manifest
//!   by now: whoever claims later has to fence the WAL at the same place, and only one of the two can.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt, Shared};
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, Error, Extensions, GetOptions, GetResult, GetResultPayload, ListResult,
    MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, Result,
};

/// Numbered manifests.
const MANIFESTS: &str = "meta/manifest";
/// Numbered WAL objects.
const WAL: &str = "meta/wal";
/// Up to which number manifests may have been collected.
const BOUNDARY: &str = "meta/gc/manifest.boundary";
/// Those that ask for the list of manifests: the writer, and who reads beside it.
const READERS: u8 = 2;
/// Looks at the boundary before a claim, at most: of the writer, and two or three of who reads beside it.
const EARLY_LOOKS: u8 = 4;
/// Looks at the boundary that follow a claim: of the claim, of the look for a newer manifest, of who reads beside it.
const LOOKS: u8 = 3;
/// Most WAL objects, and most bytes of them, that are kept for SlateDB to come for.
const WAL_OBJECTS: usize = 128;
const WAL_BYTES: u64 = 32 << 20;

/// A request under way, which many may wait for; `None` when it failed.
type Flight<T> = Shared<BoxFuture<'static, Option<T>>>;

/// Begins a request, which goes on however many wait for it.
fn begin<T: Clone + Send + Sync + 'static>(
    request: impl Future<Output = T> + Send + 'static,
) -> Shared<BoxFuture<'static, T>> {
    let flight = request.boxed().shared();
    tokio::spawn(flight.clone());
    flight
}

/// What is at a path.
#[derive(Clone)]
enum Found {
    Object(ObjectMeta, Bytes),
    Nothing,
}

async fn read(objects: Arc<dyn ObjectStore>, path: Path) -> Option<Found> {
    match objects.get(&path).await {
        Ok(result) => {
            let meta = result.meta.clone();
            Some(Found::Object(meta, result.bytes().await.ok()?))
        }
        Err(Error::NotFound { .. }) => Some(Found::Nothing),
        // Whoever needs it asks again, and hears why.
        Err(_) => None,
    }
}

/// Objects by their numbers.
type Listed = Arc<BTreeMap<u64, ObjectMeta>>;

/// The objects below `prefix` that are called as `called` calls their number.
async fn list(
    objects: Arc<dyn ObjectStore>,
    prefix: &'static str,
    called: fn(u64) -> Path,
) -> Result<Listed> {
    let listed: Vec<ObjectMeta> = objects.list(Some(&Path::from(prefix))).try_collect().await?;
    let numbered = listed.into_iter().filter_map(|object| Some((number(&object.location)?, object)));
    Ok(Arc::new(numbered.filter(|(number, object)| called(*number) == object.location).collect()))
}

/// The number in a name such as `00000000000000000007.sst`.
fn number(path: &Path) -> Option<u64> {
    path.filename()?.split('.').next()?.parse().ok()
}

fn manifest(number: u64) -> Path {
    Path::from(format!("{MANIFESTS}/{number:020}.manifest"))
}

fn wal(number: u64) -> Path {
    Path::from(format!("{WAL}/{number:020}.sst"))
}

/// The newest manifest of a list, and its bytes.
#[derive(Clone)]
struct Newest {
    listed: Listed,
    number: u64,
    found: Found,
}

/// How far SlateDB has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It reads what is there.
    Reading,
    /// It writes the manifest that makes it the writer.
    Claiming,
    /// It has: it fences the WAL, and reads it.
    Fencing,
}

/// What was asked for and not given out.
struct Plan {
    stage: Stage,
    newest: Flight<Newest>,
    lists: u8,
    boundary: Flight<Found>,
    looks: u8,
    wal: Flight<Listed>,
    /// The first WAL object that is not in the tree, as SlateDB looks for.
    replay_from: Option<u64>,
    bodies: HashMap<Path, Flight<Found>>,
    fence: Option<(Path, Flight<PutResult>)>,
    /// The fence, once it is written.
    fenced: Option<ObjectMeta>,
    next: Option<(Path, Flight<Found>)>,
}

/// The store for one opening, see the module. After [`Ahead::end`] it is the store that it was made of.
pub(super) struct Ahead {
    objects: Arc<dyn ObjectStore>,
    plan: Mutex<Option<Plan>>,
    over: AtomicBool,
    manifests: Shared<BoxFuture<'static, std::result::Result<Listed, Arc<Error>>>>,
}

impl Ahead {
    /// Begins to ask for what an opening needs. In a task of the runtime.
    pub(super) fn begin(objects: &Arc<dyn ObjectStore>) -> Self {
        let manifests =
            begin(list(Arc::clone(objects), MANIFESTS, manifest).map(|listed| listed.map_err(Arc::new)));
        let (listed, from) = (manifests.clone(), Arc::clone(objects));
        let newest = begin(async move {
            let listed = listed.await.ok()?;
            let number = *listed.last_key_value()?.0;
            let found = read(from, manifest(number)).await?;
            // It was collected meanwhile: the list is too old.
            matches!(found, Found::Object(..)).then_some(Newest { listed, number, found })
        });
        let plan = Plan {
            stage: Stage::Reading,
            newest,
            lists: READERS,
            boundary: begin(read(Arc::clone(objects), Path::from(BOUNDARY))),
            looks: EARLY_LOOKS,
            wal: begin(list(Arc::clone(objects), WAL, wal).map(std::result::Result::ok)),
            replay_from: None,
            bodies: HashMap::new(),
            fence: None,
            fenced: None,
            next: None,
        };
        Self {
            objects: Arc::clone(objects),
            plan: Mutex::new(Some(plan)),
            over: AtomicBool::new(false),
            manifests,
        }
    }

    /// Whether there are manifests.
    ///
    /// # Errors
    /// Of the store.
    pub(super) async fn has_manifests(&self) -> std::result::Result<bool, Arc<Error>> {
        Ok(!self.manifests.clone().await?.is_empty())
    }

    /// From now on everything goes to the store itself.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
        *self.plan() = None;
    }

    fn plan(&self) -> MutexGuard<'_, Option<Plan>> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this PUT is the claim that is expected.
    fn is_claim(&self, path: &Path, options: &PutOptions) -> bool {
        let mut guard = self.plan();
        let Some(plan) = guard.as_mut() else { return false };
        let newest = plan.newest.peek().cloned().flatten();
        let claimed =
            newest.is_some_and(|newest| newest.number.checked_add(1).map(manifest).as_ref() == Some(path));
        if plan.stage != Stage::Reading || !claimed || options.mode != PutMode::Create {
            return false;
        }
        plan.stage = Stage::Claiming;
        self.read_wal(plan);
        true
    }

    /// Asks for the WAL objects that are not in the tree yet.
    fn read_wal(&self, plan: &mut Plan) {
        let (Some(from), Some(Some(listed))) = (plan.replay_from, plan.wal.peek().cloned()) else { return };
        let mut bytes = 0;
        for (_, object) in listed.range(from..).take(WAL_OBJECTS) {
            bytes += object.size;
            if bytes > WAL_BYTES {
                return;
            }
            if object.size > 0 {
                let path = object.location.clone();
                let body = begin(read(Arc::clone(&self.objects), path.clone()));
                plan.bodies.insert(path, body);
            }
        }
    }

    /// The claim is written: what follows it goes side by side.
    fn claimed(&self, path: &Path) {
        let mut guard = self.plan();
        let Some(plan) = guard.as_mut() else { return };
        plan.stage = Stage::Fencing;
        plan.boundary = begin(read(Arc::clone(&self.objects), Path::from(BOUNDARY)));
        plan.looks = LOOKS;
        if let Some(next) = number(path).and_then(|number| number.checked_add(1)).map(manifest) {
            plan.next = Some((next.clone(), begin(read(Arc::clone(&self.objects), next))));
        }
        if let (Some(from), Some(Some(listed))) = (plan.replay_from, plan.wal.peek()) {
            // There are no gaps in the WAL.
            let Some(free) = (from..=u64::MAX).find(|number| !listed.contains_key(number)) else { return };
            let (objects, path) = (Arc::clone(&self.objects), wal(free));
            let fence = begin({
                let path = path.clone();
                async move {
                    let options = PutOptions::from(PutMode::Create);
                    objects.put_opts(&path, PutPayload::new(), options).await.ok()
                }
            });
            plan.fence = Some((path, fence));
        }
    }

    /// The answer to a PUT of the fence, if it was written.
    async fn fence(&self, path: &Path, payload: &PutPayload, options: &PutOptions) -> Option<PutResult> {
        let fence = self.plan().as_mut().and_then(|plan| plan.fence.take())?;
        if fence.0 != *path || payload.content_length() > 0 || options.mode != PutMode::Create {
            self.end();
            return None;
        }
        let Some(written) = fence.1.await else {
            // Somebody else has written there, or it is not known.
            self.end();
            return None;
        };
        if let Some(plan) = self.plan().as_mut() {
            plan.fenced = Some(ObjectMeta {
                location: path.clone(),
                last_modified: Default::default(),
                size: 0,
                e_tag: written.e_tag.clone(),
                version: written.version.clone(),
            });
        }
        Some(written)
    }

    /// What was asked for at a path; `None` if nothing was.
    fn answer(&self, path: &Path, head: bool) -> Option<Answer> {
        let mut guard = self.plan();
        let plan = guard.as_mut()?;
        if path.as_ref().starts_with(WAL) {
            return plan.wal_object(path, head);
        }
        if head {
            return None;
        }
        if path.as_ref() == BOUNDARY {
            plan.looks = plan.looks.checked_sub(1)?;
            return Some(Answer::Flight(plan.boundary.clone()));
        }
        if plan.next.as_ref().is_some_and(|(next, _)| next == path) {
            return plan.next.take().map(|(_, flight)| Answer::Flight(flight));
        }
        let newest = plan.newest.peek().cloned().flatten()?;
        if manifest(newest.number) == *path {
            return Some(Answer::Known(newest.found));
        }
        // Who reads beside the writer looks once more, and is told what the list said.
        let next = newest.number.checked_add(1).map(manifest);
        (plan.stage != Stage::Fencing && next.as_ref() == Some(path)).then_some(Answer::Known(Found::Nothing))
    }
}

/// Something that is known, or is under way.
enum Answer {
    Known(Found),
    /// It is there, and how large; not what is in it.
    Head(ObjectMeta),
    Flight(Flight<Found>),
}

impl Plan {
    fn wal_object(&mut self, path: &Path, head: bool) -> Option<Answer> {
        if !head {
            return self.bodies.get(path).cloned().map(Answer::Flight);
        }
        let number = number(path)?;
        if self.stage == Stage::Reading {
            self.replay_from = Some(self.replay_from.map_or(number, |first| first.min(number)));
        }
        if let Some(fenced) = self.fenced.as_ref().filter(|fenced| fenced.location == *path) {
            return Some(Answer::Head(fenced.clone()));
        }
        // A list of many pages may take longer than asking.
        let listed = self.wal.peek().cloned().flatten()?;
        match listed.get(&number) {
            Some(object) => Some(Answer::Head(object.clone())),
            None if self.stage == Stage::Reading => Some(Answer::Known(Found::Nothing)),
            None => None,
        }
    }
}

/// As the store itself would answer.
fn result_of(found: Found, path: &Path, options: &GetOptions) -> Result<GetResult> {
    match found {
        Found::Object(meta, bytes) => {
            options.check_preconditions(&meta)?;
            let range = match &options.range {
                Some(range) => range
                    .as_range(meta.size)
                    .map_err(|error| Error::Generic { store: "ahead", source: Box::new(error) })?,
                None => 0..meta.size,
            };
            let part = match (usize::try_from(range.start), usize::try_from(range.end)) {
                (Ok(start), Ok(end)) if start <= end && end <= bytes.len() => bytes.slice(start..end),
                _ => {
                    return Err(Error::Generic { store: "ahead", source: "a body of another length".into() });
                }
            };
            Ok(got(meta, range, part))
        }
        Found::Nothing => Err(Error::NotFound { path: path.to_string(), source: "it is not there".into() }),
    }
}

fn got(meta: ObjectMeta, range: std::ops::Range<u64>, bytes: Bytes) -> GetResult {
    let payload = GetResultPayload::Stream(futures::stream::once(async move { Ok(bytes) }).boxed());
    GetResult { payload, meta, range, attributes: Attributes::new(), extensions: Extensions::new() }
}

impl std::fmt::Debug for Ahead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.objects.fmt(f)
    }
}

impl std::fmt::Display for Ahead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&self.objects, f)
    }
}

#[async_trait]
impl ObjectStore for Ahead {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if self.over.load(Ordering::Acquire) {
            return self.objects.put_opts(path, payload, options).await;
        }
        if self.is_claim(path, &options) {
            let claimed = self.objects.put_opts(path, payload, options).await;
            match &claimed {
                Ok(_) => self.claimed(path),
                // There is a newer manifest, or it is not known what has become of ours.
                Err(_) => self.end(),
            }
            return claimed;
        }
        if let Some(written) = self.fence(path, &payload, &options).await {
            return Ok(written);
        }
        let reading = self.plan().as_ref().is_some_and(|plan| plan.stage == Stage::Reading);
        if reading && [MANIFESTS, WAL].iter().any(|prefix| path.as_ref().starts_with(prefix)) {
            // A claim or a fence that was not expected, because something could not be read ahead: what was says nothing of
            // what is there after it.
            self.end();
        }
        self.objects.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        if !self.over.load(Ordering::Acquire) {
            let found = match self.answer(path, options.head) {
                Some(Answer::Head(meta)) => return Ok(got(meta.clone(), 0..meta.size, Bytes::new())),
                Some(Answer::Known(found)) => Some(found),
                Some(Answer::Flight(flight)) => flight.await,
                None => None,
            };
            if let Some(found) = found {
                return result_of(found, path, &options);
            }
        }
        self.objects.get_opts(path, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.objects.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let newest = self.plan().as_mut().and_then(|plan| {
            let asked = prefix.is_some_and(|prefix| prefix.as_ref() == MANIFESTS);
            let may = asked && plan.stage == Stage::Reading && plan.lists > 0;
            plan.lists -= u8::from(may);
            may.then(|| plan.newest.clone())
        });
        let Some(newest) = newest else { return self.objects.list(prefix) };
        let (objects, prefix) = (Arc::clone(&self.objects), prefix.cloned());
        let answer = async move {
            match newest.await {
                Some(newest) => {
                    let listed: Vec<_> = newest.listed.values().cloned().map(Ok).collect();
                    futures::stream::iter(listed).boxed()
                }
                None => objects.list(prefix.as_ref()),
            }
        };
        futures::stream::once(answer).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}
