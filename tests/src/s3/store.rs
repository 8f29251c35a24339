//! Buckets, objects and uploads. One lock, so that a conditional write is one step. It must not know HTTP.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Bound, Range};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use s3s::dto::{CommonPrefix, ETag, ETagCondition, Metadata, Object as Listed, Timestamp};
use s3s::{S3Result, s3_error};

use super::body::{Checksums, Digest};

#[derive(Clone)]
pub(super) struct Object {
    pub(super) pieces: Vec<Bytes>,
    pub(super) length: u64,
    pub(super) etag: String,
    pub(super) modified: Timestamp,
    pub(super) metadata: Option<Metadata>,
    pub(super) content_type: Option<String>,
    pub(super) checksums: Checksums,
}

impl Object {
    /// The bytes of `range`, in pieces.
    pub(super) fn slice(&self, range: Range<u64>) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        let mut start = 0;
        for piece in &self.pieces {
            let end = start + piece.len() as u64;
            if end > range.start && start < range.end {
                let from = (range.start.max(start) - start) as usize;
                let to = (range.end.min(end) - start) as usize;
                pieces.push(piece.slice(from..to));
            }
            start = end;
        }
        pieces
    }

    /// Conditions of a read.
    pub(super) fn check(
        &self,
        matches: &Option<ETagCondition>,
        differs: &Option<ETagCondition>,
    ) -> S3Result<()> {
        if let Some(etag) = matches.as_ref().and_then(ETagCondition::as_etag)
            && etag.value() != self.etag
        {
            return Err(s3_error!(PreconditionFailed));
        }
        if let Some(condition) = differs
            && (condition.is_any() || condition.as_etag().is_some_and(|etag| etag.value() == self.etag))
        {
            return Err(s3_error!(NotModified));
        }
        Ok(())
    }
}

pub(super) struct Upload {
    pub(super) bucket: String,
    pub(super) key: String,
    pub(super) metadata: Option<Metadata>,
    pub(super) content_type: Option<String>,
    pub(super) parts: BTreeMap<i32, (Bytes, Digest)>,
}

type Bucket = BTreeMap<String, Object>;

#[derive(Default)]
pub(super) struct Store {
    buckets: Mutex<HashMap<String, Bucket>>,
    uploads: Mutex<HashMap<String, Upload>>,
}

/// One page of a listing.
pub(super) struct Page {
    pub(super) objects: Vec<Listed>,
    pub(super) prefixes: Vec<CommonPrefix>,
    /// Where the next page begins; `None` at the end.
    pub(super) next: Option<String>,
}

impl Store {
    fn buckets(&self) -> MutexGuard<'_, HashMap<String, Bucket>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn uploads(&self) -> MutexGuard<'_, HashMap<String, Upload>> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn create_bucket(&self, bucket: &str) {
        self.buckets().entry(bucket.to_owned()).or_default();
    }

    pub(super) fn delete_bucket(&self, bucket: &str) {
        self.buckets().remove(bucket);
    }

    pub(super) fn has_bucket(&self, bucket: &str) -> bool {
        self.buckets().contains_key(bucket)
    }

    pub(super) fn bucket_names(&self) -> Vec<String> {
        self.buckets().keys().cloned().collect()
    }

    pub(super) fn keys(&self, bucket: &str) -> Vec<(String, u64)> {
        let buckets = self.buckets();
        let objects = buckets.get(bucket).into_iter().flatten();
        objects.map(|(key, object)| (key.clone(), object.length)).collect()
    }

    /// Stores an object if the conditions hold; check and store are one step.
    pub(super) fn put(
        &self,
        bucket: &str,
        key: String,
        object: Object,
        matches: Option<&ETagCondition>,
        absent: Option<&ETagCondition>,
    ) -> S3Result<()> {
        let mut buckets = self.buckets();
        let objects = buckets.get_mut(bucket).ok_or_else(|| s3_error!(NoSuchBucket))?;
        let current = objects.get(&key);
        if let Some(condition) = absent {
            if !condition.is_any() {
                return Err(s3_error!(NotImplemented));
            }
            if current.is_some() {
                return Err(s3_error!(PreconditionFailed));
            }
        }
        if let Some(condition) = matches {
            let current = current.ok_or_else(|| s3_error!(NoSuchKey))?;
            if condition.as_etag().is_some_and(|etag| etag.value() != current.etag) {
                return Err(s3_error!(PreconditionFailed));
            }
        }
        objects.insert(key, object);
        Ok(())
    }

    /// Stores an object that was there before the server.
    pub(super) fn load(&self, bucket: &str, key: String, bytes: Bytes) {
        let mut buckets = self.buckets();
        let objects = buckets.entry(bucket.to_owned()).or_default();
        let object = Object {
            length: bytes.len() as u64,
            pieces: vec![bytes],
            // Any that it never had; one loaded before is replaced.
            etag: format!("{:032x}", objects.len()),
            modified: SystemTime::now().into(),
            metadata: None,
            content_type: None,
            checksums: Checksums::default(),
        };
        objects.insert(key, object);
    }

    pub(super) fn get(&self, bucket: &str, key: &str) -> S3Result<Object> {
        let buckets = self.buckets();
        let objects = buckets.get(bucket).ok_or_else(|| s3_error!(NoSuchBucket))?;
        objects.get(key).cloned().ok_or_else(|| s3_error!(NoSuchKey))
    }

    pub(super) fn delete(&self, bucket: &str, key: &str, matches: Option<&ETagCondition>) -> S3Result<()> {
        let mut buckets = self.buckets();
        let objects = buckets.get_mut(bucket).ok_or_else(|| s3_error!(NoSuchBucket))?;
        if let Some(etag) = matches.and_then(ETagCondition::as_etag)
            && objects.get(key).is_none_or(|object| object.etag != etag.value())
        {
            return Err(s3_error!(PreconditionFailed));
        }
        objects.remove(key);
        Ok(())
    }

    /// Lists at most `limit` keys and common prefixes after `after`.
    pub(super) fn list(
        &self,
        bucket: &str,
        prefix: &str,
        delimiter: Option<&str>,
        after: Option<&str>,
        limit: usize,
    ) -> S3Result<Page> {
        let buckets = self.buckets();
        let objects = buckets.get(bucket).ok_or_else(|| s3_error!(NoSuchBucket))?;
        let mut page = Page { objects: Vec::new(), prefixes: Vec::new(), next: None };
        let mut last = None;
        let mut from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after.to_owned()),
            _ => Bound::Included(prefix.to_owned()),
        };
        loop {
            let next = objects.range::<String, _>((from.clone(), Bound::Unbounded)).next();
            let Some((key, object)) = next.filter(|(key, _)| key.starts_with(prefix)) else {
                return Ok(page);
            };
            let common = delimiter.and_then(|delimiter| {
                let end = prefix.len() + key[prefix.len()..].find(delimiter)? + delimiter.len();
                Some(key[..end].to_owned())
            });
            let past = |common: &str| Bound::Excluded(format!("{common}\u{10ffff}"));
            if let (Some(common), Some(after)) = (&common, after)
                && after.starts_with(common.as_str())
            {
                from = past(common);
                continue;
            }
            if page.objects.len() + page.prefixes.len() >= limit {
                page.next = last;
                return Ok(page);
            }
            match common {
                Some(common) => {
                    from = past(&common);
                    last = Some(common.clone());
                    page.prefixes.push(CommonPrefix { prefix: Some(common) });
                }
                None => {
                    from = Bound::Excluded(key.clone());
                    last = Some(key.clone());
                    page.objects.push(Listed {
                        key: Some(key.clone()),
                        size: Some(object.length as i64),
                        e_tag: Some(ETag::Strong(object.etag.clone())),
                        last_modified: Some(object.modified.clone()),
                        ..Default::default()
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(text: &str, etag: &str) -> Object {
        let (first, second) = text.split_at(text.len() / 2);
        Object {
            pieces: vec![first.to_owned().into(), second.to_owned().into()],
            length: text.len() as u64,
            etag: etag.into(),
            modified: SystemTime::now().into(),
            metadata: None,
            content_type: None,
            checksums: Checksums::default(),
        }
    }

    fn store(keys: &[&str]) -> Store {
        let store = Store::default();
        store.create_bucket("b");
        for key in keys {
            store.put("b", (*key).to_owned(), object("0123456789", "1"), None, None).unwrap();
        }
        store
    }

    #[test]
    fn conditional_writes_hold() {
        let store = store(&["k"]);
        let any = ETagCondition::Any;
        assert!(store.put("b", "k".into(), object("x", "2"), None, Some(&any)).is_err());
        assert!(store.put("b", "new".into(), object("x", "2"), None, Some(&any)).is_ok());
        let stale = ETagCondition::ETag(ETag::Strong("0".into()));
        let fresh = ETagCondition::ETag(ETag::Strong("1".into()));
        assert!(store.put("b", "k".into(), object("x", "2"), Some(&stale), None).is_err());
        assert!(store.put("b", "k".into(), object("x", "2"), Some(&fresh), None).is_ok());
        assert!(store.put("b", "k".into(), object("x", "3"), Some(&fresh), None).is_err());
    }

    #[test]
    fn slices_cross_pieces() {
        let object = object("0123456789", "1");
        for (range, text) in [(0..10, "0123456789"), (3..7, "3456"), (4..5, "4"), (5..6, "5"), (9..10, "9")] {
            assert_eq!(object.slice(range).concat(), text.as_bytes());
        }
    }

    #[test]
    fn listings_page_through_prefixes_and_keys() {
        let store = store(&["a/1", "a/2", "b", "c/d/1", "c/e", "d"]);
        let mut names = Vec::new();
        let mut after = None;
        loop {
            let page = store.list("b", "", Some("/"), after.as_deref(), 2).unwrap();
            names.extend(page.prefixes.into_iter().filter_map(|common| common.prefix));
            names.extend(page.objects.into_iter().filter_map(|object| object.key));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        names.sort();
        assert_eq!(names, ["a/", "b", "c/", "d"]);
        let page = store.list("b", "c/", None, None, 1000).unwrap();
        assert_eq!(page.objects.len(), 2);
    }
}
