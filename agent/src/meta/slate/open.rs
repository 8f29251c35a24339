//! Opening a volume: is there one under the prefix, is it ours, which version; and SlateDB's settings. It must not
//! write into a prefix that holds somebody else's objects.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use futures::{FutureExt, TryStreamExt};
use object_store::ObjectStore;
use slatedb::config::{
    CompactionWorkerOptions, CompactorOptions, DbReaderOptions, GarbageCollectorDirectoryOptions,
    GarbageCollectorOptions, ScanOptions, Settings,
};
use slatedb::db_cache::DbCache;
use slatedb::{
    CacheTarget, CloseReason, CompactorBuilder, Db, DbCacheManagerOps, DbReader, DbReaderMode, ErrorKind,
};
use tokio::sync::{mpsc, oneshot};

use super::ahead::Ahead;
use super::writer::Writer;
use super::{Shared, SlateMeta, read_options};
use crate::blob::{Store, explain};
use crate::meta::cache::Cache;
use crate::meta::records::{self, FORMAT_VERSION, Format};
use crate::meta::{Meta, MetaError, Result};

/// Where SlateDB lives under the volume's prefix.
const ROOT: &str = "meta";
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
/// Bytes of indexes and filters that an opening reads.
const INDEX_BYTES: u64 = 8 << 20;
/// Names in the root that it reads, and bytes of them at once.
const ENTRIES: usize = 1000;
const ENTRIES_BYTES: usize = 256 << 10;
/// Longest wait for what is only read so that it is in memory.
const WARM_PATIENCE: Duration = Duration::from_secs(2);
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
    let ahead = Arc::new(Ahead::begin(store.objects()));
    let probe = probe().boxed_local().shared();
    let begun = Mutex::new(None);
    let begin = async {
        let listed = ahead.has_manifests().await;
        if !matches!(listed, Ok(true)) {
            // What is wrong with the store says more than what it then does.
            probe.clone().await?;
            listed.map_err(|error| cannot_list(store, &error))?;
            holds_nothing(store).await?;
            return begin_volume(store, None).await;
        }
        let meta = begin_volume(store, Some(&ahead)).await?;
        *begun.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&meta));
        Ok(meta)
    };
    // The first error ends both: a store that refuses what the probe tries would keep the opening trying for long.
    let error = match tokio::try_join!(probe.clone(), begin) {
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

/// Makes a volume, or opens the one that `ahead` has found.
async fn begin_volume(store: &Store, ahead: Option<&Arc<Ahead>>) -> Result<Arc<dyn Meta>> {
    let cache: Arc<dyn DbCache> = Arc::new(Cache::new(CACHE_BYTES));
    let db = match ahead {
        None => build_with(Arc::clone(store.objects()), cache, None).await,
        Some(ahead) => {
            let objects = Arc::clone(ahead) as Arc<dyn ObjectStore>;
            let (warm, is_warm) = oneshot::channel();
            tokio::spawn(self::warm(Arc::clone(&objects), Arc::clone(&cache), warm));
            let (db, _) = tokio::join!(build_with(objects, cache, None), is_warm);
            ahead.end();
            db
        }
    };
    let db = db.map_err(|error| open_error(store, &error))?;
    let shared =
        Arc::new(Shared { store: store.clone(), db: RwLock::new(db.clone()), fatal: Mutex::new(None) });
    if let Err(error) = check_format(&shared, &db, ahead.is_some()).await {
        let _ = db.close().await;
        return Err(error);
    }
    let (queue, submitted) = mpsc::unbounded_channel();
    let ended = tokio::spawn(Writer::new(Arc::clone(&shared), submitted).run());
    Ok(Arc::new(SlateMeta { shared, queue: Mutex::new(Some(queue)), ended: Mutex::new(Some(ended)) }))
}

/// Reads what is read of every volume first, beside the claim of the epoch, so that it is in the cache then: what it finds is of
/// objects that never change, and is shown to nobody. Hangs up `is_warm` once an opening has all that it needs. An error comes
/// again when it matters.
async fn warm(objects: Arc<dyn ObjectStore>, cache: Arc<dyn DbCache>, is_warm: oneshot::Sender<()>) {
    let options = DbReaderOptions {
        manifest_poll_interval: NEVER,
        skip_wal_replay: true,
        object_store_max_retries: Some(0),
        ..DbReaderOptions::default()
    };
    let reader = DbReader::builder(ROOT, objects)
        .with_reader_mode(DbReaderMode::FollowLatest)
        .with_options(options)
        .with_db_cache(cache, 0)
        .build();
    let Ok(Ok(reader)) = tokio::time::timeout(WARM_PATIENCE, reader).await else { return };
    let first = async {
        let (format, head, totals) = (records::key::format(), records::key::head(), records::key::totals());
        let root = records::key::inode(records::ROOT_INODE);
        let _ = tokio::join!(reader.get(&format), reader.get(&head), reader.get(&totals), reader.get(&root));
        drop(is_warm);
    };
    let read = async {
        warm_indexes(&reader).await;
        tokio::join!(first, warm_entries(&reader));
    };
    let _ = tokio::time::timeout(WARM_PATIENCE, read).await;
    let _ = reader.close().await;
}

/// Where in the tables keys are: of all tables, as far as they may be kept; the youngest first.
async fn warm_indexes(reader: &DbReader) {
    let (manifest, mut bytes) = (reader.manifest(), 0);
    let few = manifest.all_sst_views().map(|view| &view.sst).take_while(|sst| {
        bytes += sst.info.index_len + sst.info.filter_len;
        bytes <= INDEX_BYTES
    });
    // Several targets of one call come one after another.
    let reads = few.flat_map(|sst| {
        [&[CacheTarget::Index], &[CacheTarget::Filters]].map(|target| reader.warm_sst(sst.id, target))
    });
    futures::future::join_all(reads).await;
}

/// The names in the root.
async fn warm_entries(reader: &DbReader) {
    let root = records::key::dentries_of(records::ROOT_INODE);
    let options = ScanOptions::default().with_cache_blocks(true).with_read_ahead_bytes(ENTRIES_BYTES);
    let Ok(mut names) = reader.scan_prefix_with_options(&root, .., &options).await else { return };
    for _ in 0..ENTRIES {
        let Ok(Some(_)) = names.next().await else { return };
    }
}

fn cannot_list(store: &Store, error: &object_store::Error) -> MetaError {
    MetaError::Unavailable(format!("cannot list the objects in '{}': {}", store.shown(), explain(error)))
}

/// Refuses a prefix without a volume that holds something else.
async fn holds_nothing(store: &Store) -> Result<()> {
    let objects = store.objects().list(None);
    let mut foreign = Box::pin(objects.try_filter(|object| {
        let harmless = HARMLESS.iter().any(|name| object.location.as_ref().starts_with(name));
        std::future::ready(!harmless)
    }));
    match foreign.try_next().await.map_err(|error| cannot_list(store, &error))? {
        None => Ok(()),
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
    build_with(Arc::clone(store.objects()), Arc::new(Cache::new(CACHE_BYTES)), epoch).await
}

/// As [`build`], over these objects and with this cache.
pub(super) async fn build_with(
    objects: Arc<dyn ObjectStore>,
    cache: Arc<dyn DbCache>,
    epoch: Option<u64>,
) -> std::result::Result<Db, slatedb::Error> {
    let mut builder = Db::builder(ROOT, objects).with_settings(settings()).with_db_cache(cache, 0);
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
