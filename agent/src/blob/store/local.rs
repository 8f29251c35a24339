//! A directory as an object store that is as durable as it says. object_store's `LocalFileSystem` syncs a written
//! file and its directory; three gaps remain and are closed here: a directory that exists but whose own entry was never
//! synced (made by a concurrent call, or by an agent that was killed in between), deletes, and the replacement of an object of
//! a known version, by which SlateDB's collector of garbage says how far it is.
//!
//! It has no attributes, so a conditional PUT whose answer was lost shows as a conflict: when fsync(2) of the directory
//! fails after the link was made. `meta` finds its own commits in it; an epoch claimed that way counts as another
//! agent's, which is safe.

use std::collections::HashSet;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UpdateVersion,
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

    /// Removes what an agent left that was killed while it wrote: files `name#1`, which no reader ever sees. Only old
    /// ones, so that another agent's write is not disturbed. For a thread of its own: it looks at every object.
    pub(super) fn sweep(root: &FilePath) {
        for part in ["meta", "packs", "probe"] {
            sweep(&root.join(part));
        }
    }

    /// Where the objects are.
    pub(super) fn root(&self) -> &FilePath {
        &self.root
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

    /// Replaces an object that still has this version. A lock on its directory orders those who do (flock(2)); nobody
    /// writes such an object in another way once it is there.
    async fn update(
        &self,
        location: &Path,
        payload: PutPayload,
        version: &UpdateVersion,
    ) -> Result<PutResult> {
        let file = self.inner.path_to_filesystem(location)?;
        let _locked = blocking(move || {
            let directory = File::open(file.parent().unwrap_or(FilePath::new("/")))?;
            directory.lock()?;
            Ok(directory)
        })
        .await?;
        let there = self.inner.head(location).await?;
        if there.e_tag != version.e_tag {
            return Err(Error::Precondition {
                path: location.to_string(),
                source: format!("its version is {:?}, not {:?}", there.e_tag, version.e_tag).into(),
            });
        }
        self.inner.put_opts(location, payload, PutMode::Overwrite.into()).await
    }
}

/// Staged files that are older than this belong to nobody.
const ABANDONED: Duration = Duration::from_secs(3600);

fn sweep(directory: &FilePath) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        let old = meta.modified().is_ok_and(|time| time.elapsed().is_ok_and(|age| age > ABANDONED));
        if meta.is_dir() {
            sweep(&entry.path());
        } else if old && is_staged(entry.file_name().as_encoded_bytes()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Whether `LocalFileSystem` made this name for a file that it was still writing.
fn is_staged(name: &[u8]) -> bool {
    let mut parts = name.rsplitn(2, |byte| *byte == b'#');
    let digits = parts.next().unwrap_or_default();
    parts.next().is_some() && !digits.is_empty() && digits.iter().all(u8::is_ascii_digit)
}

/// Makes `directory` and syncs it and every directory above it up to and including `top`.
fn make_durable(directory: &FilePath, top: &FilePath) -> std::io::Result<()> {
    // Packs hold what private files contain, so nobody else may look into a directory that we make.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
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
        if let PutMode::Update(version) = &options.mode {
            return self.update(location, payload, version).await;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_else_can_read_what_is_stored() {
        use std::os::unix::fs::PermissionsExt;
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().join("a/b");
        let store = LocalStore::open(&root).unwrap();
        let path = Path::from("packs/ab/x");
        crate::blob::runtime().unwrap().block_on(store.put(&path, "secret".into())).unwrap();
        for directory in ["", "packs", "packs/ab"] {
            let mode = std::fs::metadata(root.join(directory)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{directory}");
        }
    }

    #[test]
    fn only_the_version_that_is_known_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        let store = LocalStore::open(root.path()).unwrap();
        let path = Path::from("meta/gc/boundary");
        crate::blob::runtime().unwrap().block_on(async {
            let update = |version: &PutResult, bytes: &'static str| {
                let version = UpdateVersion { e_tag: version.e_tag.clone(), version: None };
                store.put_opts(&path, bytes.into(), PutMode::Update(version).into())
            };
            let first = store.put(&path, "first".into()).await.unwrap();
            let second = update(&first, "the second").await.unwrap();
            let late = update(&first, "late").await;
            assert!(matches!(late, Err(Error::Precondition { .. })), "{late:?}");
            update(&second, "3rd").await.unwrap();
            let there = store.get(&path).await.unwrap().bytes().await.unwrap();
            assert_eq!(there, "3rd");
            store.delete(&path).await.unwrap();
            let gone = update(&second, "nowhere").await;
            assert!(matches!(gone, Err(Error::NotFound { .. })), "{gone:?}");
        });
    }

    #[test]
    fn only_old_staged_files_of_ours_are_swept() {
        let root = tempfile::tempdir().unwrap();
        let long_ago = std::time::SystemTime::now() - 2 * ABANDONED;
        let make = |name: &str, old: bool| {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let file = File::create(&path).unwrap();
            if old {
                file.set_modified(long_ago).unwrap();
            }
            path
        };
        let gone = make("packs/ab/abcd#12", true);
        let kept = [
            make("packs/ab/abcd", true),
            make("packs/ab/ef#1", false),
            make("meta/wal/1.sst#", true),
            make("meta/#x", true),
            make("other/y#1", true),
        ];
        LocalStore::sweep(root.path());
        assert!(!gone.exists());
        assert!(kept.iter().all(|path| path.exists()));
    }
}
