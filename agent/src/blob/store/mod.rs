//! A volume's backend: opened from a URL, probed, watched. Packs and metadata lie side by side under its prefix. It
//! must not know what the objects mean.

mod credentials;
mod error;
mod health;
mod local;
mod probe;
mod s3;
mod url;

use std::collections::HashMap;
use std::path::Path as FilePath;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::prefix::PrefixStore;
use tokio::runtime::Handle;

use self::health::Watched;
use self::local::LocalStore;
use self::url::Address;

pub(crate) use self::error::condense;
pub use self::error::{StoreError, explain};
pub use self::health::Health;
pub(crate) use self::health::{Counted, Kind};
pub(crate) use self::url::decode as decode_escapes;
pub use self::url::redact;

/// How a backend is spoken to.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// A request that fails for now is tried again with backoff and jitter for this long before it is an error.
    pub retry_timeout: Duration,
    /// A connection must stand within this.
    pub connect_timeout: Duration,
    /// A request without any answer for this long has failed (the time to send its body counts).
    pub read_timeout: Duration,
    /// Whether to probe the backend at opening; without it, an unsafe backend is not noticed.
    pub probe: bool,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            retry_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            // 16 MiB at 4 Mbit/s.
            read_timeout: Duration::from_secs(40),
            probe: true,
        }
    }
}

/// An open backend. Clones are the same backend.
#[derive(Clone, Debug)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    health: Arc<Health>,
    handle: Handle,
    shown: Arc<str>,
    directory: Option<Arc<FilePath>>,
}

/// The `memory:` backends of this process, so that a volume that is opened again finds its data.
static MEMORY: OnceLock<Mutex<HashMap<String, Arc<InMemory>>>> = OnceLock::new();

impl Store {
    /// Opens the backend at `url` and probes it. Blocking; from a plain thread only.
    ///
    /// - `file:///absolute/path`: a directory, made where it is missing;
    /// - `s3://bucket/prefix?endpoint=…&region=…`: credentials, region and endpoint come from the `AWS_*` environment
    ///   or the AWS shared files;
    /// - `memory:name`: memory of this process, for tests.
    ///
    /// # Errors
    /// [`StoreError`], each with what to do; never with a credential.
    pub fn open(url: &str, options: &StoreOptions) -> Result<Self, StoreError> {
        let shown = url::redact(url);
        let mut directory = None;
        let objects: Arc<dyn ObjectStore> = match Address::parse(url)? {
            Address::File(path) => {
                let store = LocalStore::open(&path).map_err(|error| {
                    StoreError::Refused(format!(
                        "cannot use the directory {} as a backend: {error}; make it a directory that this user can \
                         write",
                        path.display()
                    ))
                })?;
                let root = store.root().to_path_buf();
                super::runtime()
                    .map_err(StoreError::Unavailable)?
                    .spawn_blocking(move || LocalStore::sweep(&root));
                directory = Some(store.root().into());
                Arc::new(store)
            }
            Address::S3 { bucket, prefix, endpoint, region } => {
                let target = s3::Target { bucket: &bucket, endpoint, region, shown: &shown };
                let bucket = s3::build(&target, options)?;
                Arc::new(PrefixStore::new(bucket, prefix))
            }
            Address::Memory(name) => {
                let stores = MEMORY.get_or_init(Mutex::default);
                let mut stores = stores.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                Arc::clone(stores.entry(name).or_default()) as Arc<dyn ObjectStore>
            }
        };
        let store = Self { directory, ..Self::over(objects, &shown)? };
        if options.probe {
            store.handle.block_on(probe::probe(&store.objects, &store.shown))?;
        }
        Ok(store)
    }

    /// A backend over any object store, without a probe; `shown` names it in errors.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the I/O threads cannot be started.
    pub fn over(objects: Arc<dyn ObjectStore>, shown: &str) -> Result<Self, StoreError> {
        let handle = super::runtime().map_err(StoreError::Unavailable)?;
        let health = Arc::new(Health::default());
        let objects: Arc<dyn ObjectStore> = Arc::new(Watched::new(objects, Arc::clone(&health)));
        Ok(Self { objects, health, handle, shown: shown.into(), directory: None })
    }

    /// Probes the backend as [`Store::open`] does.
    ///
    /// # Errors
    /// What is wrong with it and what to do.
    pub fn probe(&self) -> Result<(), StoreError> {
        self.handle.block_on(self.probe_async())
    }

    /// As [`Store::probe`], for a task of the runtime.
    pub(crate) async fn probe_async(&self) -> Result<(), StoreError> {
        probe::probe(&self.objects, &self.shown).await
    }

    /// Counters and current trouble.
    #[must_use]
    pub fn health(&self) -> &Arc<Health> {
        &self.health
    }

    /// The URL as it may be shown: without secrets.
    #[must_use]
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// The directory of a `file://` backend.
    #[must_use]
    pub fn directory(&self) -> Option<&FilePath> {
        self.directory.as_deref()
    }

    /// The objects under the volume's prefix.
    #[must_use]
    pub fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.objects
    }

    /// The runtime that serves the backend.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

#[cfg(test)]
mod tests;
