//! A directory as an object store that is as durable as it says. object_store's `LocalFileSystem` syncs a written
//! file and its directory; two gaps remain and are closed here: a directory that exists but whose own entry was never
//! synced (made by a concurrent call, or by an agent that was killed in between), and deletes.
//!
//! It has no attributes, so a conditional PUT whose answer was lost shows as a conflict. That happens only when
//! fsync(2) of the directory fails after the link was made; the agent then counts itself as fenced, which is safe.

use std::collections::HashSet;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

const NAME: &str = "file";

/// Objects as files under one directory.
#[derive(Debug)]
pub(super) struct LocalStore {
    inner: LocalFileSystem,
    root: PathBuf,
    /// Directories whose entries are known to be on disk up to the root.
    synced: Arc<Mutex<HashSet<PathBuf>>>,
}

impl LocalStore {
    /// Opens `root`, making it and its parents where they are missing.
    pub(super) fn open(root: &FilePath) -> std::result::Result<Self, std::io::Error> {
        make_durable(root, FilePath::new("/"))?;
        let root = std::fs::canonicalize(root)?;
        let inner = LocalFileSystem::new_with_prefix(&root).map_err(std::io::Error::other)?.with_fsync(true);
        Ok(Self { inner, root, synced: Arc::default() })
    }

    /// Before an object is written: its directory, durably.
    async fn prepare(&self, location: &Path) -> Result<()> {
        let file = self.inner.path_to_filesystem(location)?;
        let Some(directory) = file.parent().map(FilePath::to_path_buf) else { return Ok(()) };
        if self.synced.lock().is_ok_and(|synced| synced.contains(&directory)) {
            return Ok(());
        }
        let (root, target) = (self.root.clone(), directory.clone());
        blocking(move || make_durable(&target, &root)).await?;
        if let Ok(mut synced) = self.synced.lock() {
            synced.insert(directory);
        }
        Ok(())
    }
}

/// Makes `directory` and syncs it and every directory above it up to and including `top`.
fn make_durable(directory: &FilePath, top: &FilePath) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for each in directory.ancestors() {
        match File::open(each).and_then(|directory| directory.sync_all()) {
            // Above the root lie directories that may be closed to us or cannot be synced; they were there before.
            Err(error)
                if each != directory
                    && matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::InvalidInput) =>
            {
                return Ok(());
            }
            Err(error) => return Err(error),
            Ok(()) => {}
        }
        if each == top {
            break;
        }
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::Generic { store: NAME, source: Box::new(error) }),
        Err(error) => Err(Error::JoinError { source: error }),
    }
}

impl std::fmt::Display for LocalStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "directory {}", self.root.display())
    }
}

#[async_trait]
impl ObjectStore for LocalStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.prepare(location).await?;
        self.inner.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.prepare(location).await?;
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let inner = self.inner.clone();
        self.inner
            .delete_stream(locations)
            .then(move |result| {
                let file = result.as_ref().ok().and_then(|path| inner.path_to_filesystem(path).ok());
                async move {
                    let path = result?;
                    if let Some(directory) = file.and_then(|file| file.parent().map(FilePath::to_path_buf)) {
                        blocking(move || File::open(directory)?.sync_all()).await?;
                    }
                    Ok(path)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.prepare(to).await?;
        self.inner.copy_opts(from, to, options).await
    }
}
