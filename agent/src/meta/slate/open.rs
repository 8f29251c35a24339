//! Opening a volume: is there one under the prefix, is it ours, which version; and SlateDB's settings. It must not
//! write into a prefix that holds somebody else's objects.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures::TryStreamExt;
use object_store::path::Path;
use slatedb::config::{
    CompactionWorkerOptions, CompactorOptions, GarbageCollectorDirectoryOptions, GarbageCollectorOptions,
    Settings,
};
use slatedb::db_cache::DbCache;
use slatedb::{CloseReason, CompactorBuilder, Db, ErrorKind};
use tokio::sync::{mpsc, oneshot};

use super::writer::Writer;
use super::{Shared, SlateMeta, read_options};
use crate::blob::{Store, explain};
use crate::meta::cache::Cache;
use crate::meta::records::{self, FORMAT_VERSION, Format};
use crate::meta::{Meta, MetaError, Result};

/// Where SlateDB lives under the volume's prefix.
const ROOT: &str = "meta";
/// SlateDB's first object, without which there is no volume.
const MANIFESTS: &str = "meta/manifest";
/// Names that may lie under the prefix of a volume that does not exist yet.
const HARMLESS: [&str; 2] = ["probe/", "lost+found/"];
/// Blocks, indexes and filters kept in memory, bytes.
const CACHE_BYTES: usize = 48 << 20;
/// SlateDB must never give a manifest update up: a half-done claim of the epoch would look like another agent's.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// Before compaction begins, or begins again after an error.
const COMPACTION_PAUSE: Duration = Duration::from_secs(5);
/// Opening is given up after this, for the caller to say so and try again.
const OPEN_PATIENCE: Duration = Duration::from_secs(120);
/// Longest wait for the closing of a volume whose store turned out to be of no use.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// Opens the volume in `store` as its writer, which fences whoever had it open before; makes the volume when there is
/// nothing under the prefix. Blocking; from a plain thread only.
///
/// # Errors
/// `Refused` when the prefix holds foreign objects; `Damaged` when the volume is incomplete or of another version;
/// `Unavailable` when the backend does not answer.
pub fn open(store: &Store) -> Result<Arc<dyn Meta>> {
    open_checked(store, async || Ok(()))
}

/// As [`open`], for a store that was not probed: a volume that is there is opened while the store is probed, a new one is
/// made after that.
///
/// # Errors
/// As [`open`], and those of [`Store::probe`].
pub fn open_and_probe(store: &Store) -> Result<Arc<dyn Meta>> {
    open_checked(store, async || store.probe_async().await.map_err(MetaError::from))
}

fn open_checked(store: &Store, probe: impl AsyncFnOnce() -> Result<()>) -> Result<Arc<dyn Meta>> {
    store.handle().block_on(async {
        tokio::time::timeout(OPEN_PATIENCE, open_volume(store, probe)).await.unwrap_or_else(|_| {
            Err(MetaError::Unavailable(format!(
                "the volume in '{}' could not be opened for {} s: {}",
                store.shown(),
                OPEN_PATIENCE.as_secs(),
                store.health().last_error().unwrap_or_else(|| "no answer".into())
            )))
        })
    })
}

async fn open_volume(store: &Store, probe: impl AsyncFnOnce() -> Result<()>) -> Result<Arc<dyn Meta>> {
    let existing = holds_volume(store).await;
    if !matches!(existing, Ok(true)) {
        // What is wrong with the store says more than what it then does.
        probe().await?;
        return begin_volume(store, existing?).await;
    }
    let begun = Mutex::new(None);
    let begin = async {
        let meta = begin_volume(store, true).await?;
        *begun.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&meta));
        Ok(meta)
    };
    // The first error ends both: a store that refuses what the probe tries would keep the opening trying for long.
    let error = match tokio::try_join!(probe(), begin) {
        Ok(((), meta)) => return Ok(meta),
        Err(error) => error,
    };
    if let Some(meta) = begun.into_inner().unwrap_or_else(PoisonError::into_inner) {
        // Closing blocks, and may not end where the store does not answer. The next opening fences what is left.
        let closed = store.handle().spawn_blocking(move || meta.close());
        let _ = tokio::time::timeout(CLOSE_PATIENCE, closed).await;
    }
    Err(error)
}

async fn begin_volume(store: &Store, existing: bool) -> Result<Arc<dyn Meta>> {
    let db = build(store, None).await.map_err(|error| open_error(store, &error))?;
    let shared =
        Arc::new(Shared { store: store.clone(), db: RwLock::new(db.clone()), fatal: Mutex::new(None) });
    let (checked, ()) = tokio::join!(check_format(&shared, &db, existing), warm(&db));
    if let Err(error) = checked {
        let _ = db.close().await;
        return Err(error);
    }
    let (queue, submitted) = mpsc::unbounded_channel();
    let ended = tokio::spawn(Writer::new(Arc::clone(&shared), submitted).run());
    Ok(Arc::new(SlateMeta { shared, queue: Mutex::new(Some(queue)), ended: Mutex::new(Some(ended)) }))
}

/// Reads what is read of every volume next, so that it is in memory then.
async fn warm(db: &Db) {
    let (options, root) = (read_options(), records::key::inode(records::ROOT_INODE));
    let (head, totals) = (records::key::head(), records::key::totals());
    // An error comes again when it matters.
    let _ = tokio::join!(
        db.get_with_options(&head, &options),
        db.get_with_options(&totals, &options),
        db.get_with_options(&root, &options)
    );
}

/// Whether a volume is there; an error when something else is.
async fn holds_volume(store: &Store) -> Result<bool> {
    let cannot_list = |error: &object_store::Error| {
        MetaError::Unavailable(format!("cannot list the objects in '{}': {}", store.shown(), explain(error)))
    };
    let first = |prefix: Option<Path>| {
        let objects = store.objects().list(prefix.as_ref());
        let mut foreign = Box::pin(objects.try_filter(|object| {
            let harmless = HARMLESS.iter().any(|name| object.location.as_ref().starts_with(name));
            std::future::ready(!harmless)
        }));
        async move { foreign.try_next().await }
    };
    if first(Some(Path::from(MANIFESTS))).await.map_err(|error| cannot_list(&error))?.is_some() {
        return Ok(true);
    }
    match first(None).await.map_err(|error| cannot_list(&error))? {
        None => Ok(false),
        Some(object) if object.location.as_ref().starts_with("packs/") => Err(MetaError::Damaged(format!(
            "'{}' holds packs of a volume ({}) but no metadata; restore the objects under {ROOT}/ from a copy, or choose \
             another prefix",
            store.shown(),
            object.location
        ))),
        Some(object) => Err(MetaError::Refused(format!(
            "'{}' holds objects that are not of a volume ({}); choose an empty prefix, such as a new directory below it",
            store.shown(),
            object.location
        ))),
    }
}

/// Checks the volume's [`Format`]; writes it into a new volume.
async fn check_format(shared: &Shared, db: &Db, existing: bool) -> Result<()> {
    let judge = |error: slatedb::Error| shared.judge(&error);
    let shown = shared.store.shown();
    let key = records::key::format();
    if let Some(value) = db.get_with_options(&key, &read_options()).await.map_err(judge)? {
        let format: Format = records::decode(&key, &value)?;
        if format.version == FORMAT_VERSION {
            return Ok(());
        }
        return Err(MetaError::Damaged(format!(
            "the volume in '{shown}' has format version {}, this agent knows version {FORMAT_VERSION}; use the agent that \
             wrote it",
            format.version
        )));
    }
    // A volume without a format is one whose creation was interrupted; then it has no other record either.
    let mut records = super::begin(db, b"", None).await.map_err(judge)?;
    if let Some(record) = records.next().await.map_err(judge)? {
        return Err(MetaError::Damaged(format!(
            "the database in '{shown}' is not a volume (its first key is {:?}); choose an empty prefix",
            String::from_utf8_lossy(&record.key)
        )));
    }
    let format = Format { version: FORMAT_VERSION, volume_id: rand::random() };
    let written = db.put(key, records::encode(&format)?).await.map_err(judge)?;
    db.flush().await.map_err(judge)?;
    written.await_durable().await.map_err(judge)?;
    tracing::info!(
        backend = shown,
        volume_id = format!("{:032x}", format.volume_id),
        existing,
        "made a new volume"
    );
    Ok(())
}

fn open_error(store: &Store, error: &slatedb::Error) -> MetaError {
    let said = crate::blob::condense(&error.to_string());
    match error.kind() {
        ErrorKind::Closed(_) => MetaError::Fenced,
        ErrorKind::Data | ErrorKind::Invalid => super::damaged(store.shown(), &said),
        _ => MetaError::Unavailable(format!(
            "the volume in '{}' cannot be opened for now: {said}",
            store.shown()
        )),
    }
}

/// Opens SlateDB as the writer; with `epoch`, only if that is still the current one.
pub(super) async fn build(store: &Store, epoch: Option<u64>) -> std::result::Result<Db, slatedb::Error> {
    let cache: Arc<dyn DbCache> = Arc::new(Cache::new(CACHE_BYTES));
    let mut builder =
        Db::builder(ROOT, Arc::clone(store.objects())).with_settings(settings()).with_db_cache(cache, 0);
    if let Some(epoch) = epoch {
        builder = builder.with_expected_epoch(epoch);
    }
    builder.build().await
}

/// Few requests, bounded memory; the writer asks for each flush itself.
fn settings() -> Settings {
    let rarely = |minutes: u64, age: u64| {
        Some(GarbageCollectorDirectoryOptions {
            interval: Some(Duration::from_secs(minutes * 60)),
            min_age: Duration::from_secs(age * 60),
            dry_run: false,
        })
    };
    Settings {
        // A net below the writer's own flushes: back-pressure must never wait for a flush that nobody asked for.
        flush_interval: Some(Duration::from_secs(1)),
        // How soon an idle agent learns that it was fenced; one that commits learns it from the WAL at once.
        manifest_poll_interval: Duration::from_secs(5),
        manifest_update_timeout: NEVER,
        l0_sst_size_bytes: 16 << 20,
        max_unflushed_bytes: 48 << 20,
        l0_max_ssts: 32,
        l0_max_ssts_per_key: 32,
        l0_flush_parallelism: 1,
        // By a task of its own: an opening need not wait for its claim. See `compact`.
        compactor_options: None,
        garbage_collector_options: Some(GarbageCollectorOptions {
            manifest_options: rarely(10, 5),
            wal_options: rarely(10, 5),
            // A fence must outlive every stalled writer, so it stays; it is an empty object per opening.
            wal_fence_options: None,
            compacted_options: rarely(30, 30),
            compactions_options: rarely(30, 30),
            ..GarbageCollectorOptions::default()
        }),
        object_store_max_retries: None,
        ..Settings::default()
    }
}

fn compaction() -> CompactorOptions {
    CompactorOptions {
        poll_interval: Duration::from_secs(5),
        manifest_update_timeout: NEVER,
        max_concurrent_compactions: 1,
        commit_compacted_interval: Duration::from_secs(5),
        worker: Some(CompactionWorkerOptions {
            max_concurrent_compactions: 1,
            compactions_poll_interval: Duration::from_secs(5),
            max_sst_size: 32 << 20,
            // Per source of a compaction, of which there may be dozens: this bounds its memory.
            max_fetch_tasks: 1,
            bytes_to_fetch: 512 << 10,
            max_subcompactions: 1,
            ..CompactionWorkerOptions::default()
        }),
        ..CompactorOptions::default()
    }
}

/// Merges what commits leave behind, until `ended` hangs up or another agent does it.
pub(super) async fn compact(store: Store, mut ended: oneshot::Receiver<()>) {
    loop {
        tokio::select! {
            _ = &mut ended => return,
            () = tokio::time::sleep(COMPACTION_PAUSE) => {}
        }
        let compactor =
            CompactorBuilder::new(ROOT, Arc::clone(store.objects())).with_options(compaction()).build();
        let error = tokio::select! {
            _ = &mut ended => {
                // What it has not finished is begun again by the next one.
                let _ = compactor.stop().await;
                return;
            }
            result = compactor.run() => result.err(),
        };
        match error {
            Some(error) if error.kind() == ErrorKind::Closed(CloseReason::Fenced) => return,
            Some(error) => {
                let said = crate::blob::condense(&error.to_string());
                tracing::warn!(backend = store.shown(), "the metadata is not compacted for now: {said}");
            }
            None => {}
        }
    }
}
