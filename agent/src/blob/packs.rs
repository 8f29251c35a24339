//! Packs as objects: `packs/<first 2 hex digits>/<32 hex digits>` under the volume's prefix. It must not look into a
//! pack.

use std::ops::Range;
use std::path::Path as FilePath;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{Error, GetOptions, GetResultPayload, ObjectStore, ObjectStoreExt, PutPayload};

use super::buffer::Buffer;
use super::store::{Store, explain};
use super::{Blob, BlobError, Result};
use crate::meta::records::PackId;

/// The object that holds a pack. The leading digits spread packs over directories.
fn location(id: &PackId) -> Path {
    let name = id.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let directory = name.get(..2).unwrap_or_default();
    Path::from(format!("packs/{directory}/{name}"))
}

/// Reads `range` of an object.
async fn read(objects: &dyn ObjectStore, path: &Path, range: Range<u64>) -> object_store::Result<Bytes> {
    let answer = objects.get_opts(path, GetOptions::new().with_range(Some(range))).await?;
    let len = answer.range.end.saturating_sub(answer.range.start);
    match answer.payload {
        GetResultPayload::Stream(mut parts) => {
            let mut buffer = Buffer::for_bytes(len as usize);
            while let Some(part) = parts.try_next().await? {
                buffer.extend(&part);
            }
            Ok(buffer.freeze())
        }
        GetResultPayload::File(..) => answer.bytes().await,
    }
}

impl Store {
    fn failure(&self, what: &str, path: &Path, error: &Error) -> BlobError {
        let sentence = format!("cannot {what} {path} in '{}': {}", self.shown(), explain(error));
        match error {
            Error::NotFound { .. } => BlobError::Missing(sentence),
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                BlobError::Refused(format!("{sentence}; check the credentials and permissions of the agent"))
            }
            _ => BlobError::Unavailable(sentence),
        }
    }
}

impl Blob for Store {
    fn put(&self, id: &PackId, bytes: Bytes) -> Result<()> {
        let path = location(id);
        // One plain PUT: a pack is at most 16 MiB, its name is random and its bytes never change, so sending it again
        // is harmless.
        let request = self.objects().put(&path, PutPayload::from_bytes(bytes));
        self.handle().block_on(request).map(|_| ()).map_err(|error| {
            match self.failure("write", &path, &error) {
                // The bucket itself has gone, which may be put right while the agent runs.
                BlobError::Missing(sentence) => BlobError::Unavailable(sentence),
                other => other,
            }
        })
    }

    fn get(&self, id: &PackId, range: Range<u64>) -> Result<Bytes> {
        let path = location(id);
        let wanted = range.end.saturating_sub(range.start);
        if wanted == 0 {
            return Ok(Bytes::new());
        }
        // Among the I/O threads, where the connection lives: waking this one for each part that arrives costs more than the part.
        let (objects, from, part) = (Arc::clone(self.objects()), path.clone(), range.clone());
        let reading = self.handle().spawn(async move { read(&*objects, &from, part).await });
        let read = match self.handle().block_on(reading) {
            Ok(read) => read,
            Err(_) => return Err(BlobError::Unavailable("the I/O threads have ended".into())),
        };
        let bytes = match read {
            Ok(bytes) => bytes,
            // A range that begins past the end is an error of its own kind in each store, so ask for the size.
            Err(error) => {
                let size = self.handle().block_on(self.objects().head(&path)).map(|meta| meta.size);
                return Err(match size {
                    Ok(size) if size < range.end => short(&path, &range, size),
                    _ => self.failure("read", &path, &error),
                });
            }
        };
        if bytes.len() as u64 != wanted {
            return Err(short(&path, &range, range.start + bytes.len() as u64));
        }
        Ok(bytes)
    }

    fn delete(&self, id: &PackId) -> Result<()> {
        let path = location(id);
        match self.handle().block_on(self.objects().delete(&path)) {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failure("delete", &path, &error)),
        }
    }

    fn directory(&self) -> Option<&FilePath> {
        Self::directory(self)
    }
}

fn short(path: &Path, range: &Range<u64>, size: u64) -> BlobError {
    BlobError::Missing(format!(
        "the pack {path} is truncated: it has {size} bytes where bytes {} to {} are needed; restore the object from a \
         copy of the backend",
        range.start, range.end
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::StoreOptions;

    #[test]
    fn a_pack_is_stored_read_by_range_and_deleted() {
        let directory = tempfile::tempdir().unwrap();
        for url in ["memory:packs".to_owned(), format!("file://{}/deep/er", directory.path().display())] {
            let store = Store::open(&url, &StoreOptions::default()).unwrap();
            let id = [0xab; 16];
            assert!(matches!(store.get(&id, 0..1), Err(BlobError::Missing(_))));
            store.put(&id, Bytes::from_static(b"0123456789")).unwrap();
            store.put(&id, Bytes::from_static(b"0123456789")).unwrap();
            assert_eq!(store.get(&id, 2..5).unwrap(), Bytes::from_static(b"234"));
            assert_eq!(store.get(&id, 5..5).unwrap(), Bytes::new());
            for range in [5..11, 10..12, 100..101] {
                assert!(
                    matches!(store.get(&id, range), Err(BlobError::Missing(text)) if text.contains("truncated"))
                );
            }
            store.delete(&id).unwrap();
            store.delete(&id).unwrap();
            assert!(matches!(store.get(&id, 0..1), Err(BlobError::Missing(_))));
        }
        let name = "ab".repeat(16);
        assert_eq!(location(&[0xab; 16]).as_ref(), format!("packs/ab/{name}"));
    }
}
