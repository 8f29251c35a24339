//! The S3 verbs over the store: faults first, then the deed. It must not know sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use s3s::dto::*;
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};

use super::body::{self, Checksums, Digest, base64, hex};
use super::store::{Object as Stored, Store, Upload};
use super::{Counters, Knobs};

pub(super) struct Service {
    pub(super) store: Arc<Store>,
    pub(super) knobs: Arc<Knobs>,
    pub(super) counters: Arc<Counters>,
    pub(super) dice: AtomicU64,
}

/// What a request counts as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Put,
    Get,
    Head,
    List,
    Delete,
}

impl Service {
    /// 0..100, different at each call.
    fn roll(&self) -> u64 {
        let mut x = self.dice.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        x ^= x >> 33;
        x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
        x ^= x >> 33;
        x % 100
    }

    fn fault(&self, error: S3Error) -> S3Result<()> {
        self.counters.faults.fetch_add(1, Ordering::Relaxed);
        Err(error)
    }

    /// Counts a request, and makes it wait or fail as the knobs say.
    async fn enter(&self, kind: Kind) -> S3Result<()> {
        let counter = match kind {
            Kind::Put => &self.counters.puts,
            Kind::Get => &self.counters.gets,
            Kind::Head => &self.counters.heads,
            Kind::List => &self.counters.lists,
            Kind::Delete => &self.counters.deletes,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let delay = self.knobs.delay_ms.load(Ordering::Relaxed);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        while self.knobs.hang.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let roll = self.roll();
        let internal = self.knobs.internal_error_pct.load(Ordering::Relaxed);
        let slow_down = internal + self.knobs.slow_down_pct.load(Ordering::Relaxed);
        let too_many = slow_down + self.knobs.too_many_pct.load(Ordering::Relaxed);
        if roll < internal {
            return self.fault(s3_error!(InternalError));
        }
        if roll < slow_down {
            return self.fault(s3_error!(SlowDown));
        }
        if roll < too_many {
            let mut error = S3Error::new(S3ErrorCode::Custom("TooManyRequests".into()));
            error.set_status_code(http_status(429));
            return self.fault(error);
        }
        if matches!(kind, Kind::Put | Kind::Delete) && self.knobs.read_only.load(Ordering::Relaxed) {
            return self.fault(s3_error!(AccessDenied));
        }
        Ok(())
    }

    /// After a performed write: perhaps hides that it was performed.
    fn leave(&self) -> S3Result<()> {
        if self.roll() < self.knobs.ambiguous_pct.load(Ordering::Relaxed) {
            return self.fault(s3_error!(InternalError));
        }
        Ok(())
    }

    /// Reads a body, checks its announced MD5 and names it.
    async fn receive(
        &self,
        blob: Option<StreamingBlob>,
        length: Option<i64>,
        announced: Option<&String>,
    ) -> S3Result<(Bytes, Digest)> {
        let bytes = body::collect(blob, length).await?;
        self.counters.bytes_in.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if self.knobs.fast_etag.load(Ordering::Relaxed) {
            let mut digest = [0xfa; 16];
            let number = self.dice.fetch_add(1, Ordering::Relaxed);
            digest[8..].copy_from_slice(&number.to_be_bytes());
            return Ok((bytes, digest));
        }
        let digest = body::md5(&bytes);
        if announced.is_some_and(|announced| *announced != base64(&digest)) {
            return Err(s3_error!(BadDigest));
        }
        Ok((bytes, digest))
    }

    /// The conditions of a write, as far as the server keeps them.
    fn conditions<'a>(
        &self,
        matches: Option<&'a ETagCondition>,
        absent: Option<&'a ETagCondition>,
    ) -> (Option<&'a ETagCondition>, Option<&'a ETagCondition>) {
        (
            matches.filter(|_| !self.knobs.ignore_if_match.load(Ordering::Relaxed)),
            absent.filter(|_| !self.knobs.ignore_if_none_match.load(Ordering::Relaxed)),
        )
    }

    fn put(
        &self,
        bucket: &str,
        key: String,
        object: Stored,
        matches: Option<&ETagCondition>,
        absent: Option<&ETagCondition>,
    ) -> S3Result<()> {
        let (matches, absent) = self.conditions(matches, absent);
        self.store.put(bucket, key, object, matches, absent)?;
        self.leave()
    }
}

fn http_status(code: u16) -> http::StatusCode {
    http::StatusCode::from_u16(code).expect("a valid status")
}

fn done<T: Default>() -> S3Result<S3Response<T>> {
    Ok(S3Response::new(T::default()))
}

fn strong(etag: String) -> Option<ETag> {
    Some(ETag::Strong(etag))
}

#[async_trait::async_trait]
impl S3 for Service {
    async fn create_bucket(
        &self,
        r: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        self.store.create_bucket(&r.input.bucket);
        done()
    }

    async fn delete_bucket(
        &self,
        r: S3Request<DeleteBucketInput>,
    ) -> S3Result<S3Response<DeleteBucketOutput>> {
        self.store.delete_bucket(&r.input.bucket);
        done()
    }

    async fn head_bucket(&self, r: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        self.enter(Kind::Head).await?;
        if self.store.has_bucket(&r.input.bucket) { done() } else { Err(s3_error!(NoSuchBucket)) }
    }

    async fn list_buckets(&self, _: S3Request<ListBucketsInput>) -> S3Result<S3Response<ListBucketsOutput>> {
        let bucket = |name| Bucket {
            name: Some(name),
            creation_date: Some(SystemTime::now().into()),
            ..Default::default()
        };
        let buckets = self.store.bucket_names().into_iter().map(bucket).collect();
        Ok(S3Response::new(ListBucketsOutput { buckets: Some(buckets), ..Default::default() }))
    }

    async fn get_bucket_location(
        &self,
        _: S3Request<GetBucketLocationInput>,
    ) -> S3Result<S3Response<GetBucketLocationOutput>> {
        done()
    }

    async fn put_object(&self, r: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        self.enter(Kind::Put).await?;
        let mut i = r.input;
        let (bytes, digest) = self.receive(i.body.take(), i.content_length, i.content_md5.as_ref()).await?;
        let announced = Checksums::announced(&i, r.trailing_headers);
        let checksums = announced.of(&bytes);
        if announced != checksums {
            return Err(s3_error!(BadDigest));
        }
        let etag = hex(&digest);
        let object = Stored {
            length: bytes.len() as u64,
            pieces: vec![bytes],
            etag: etag.clone(),
            modified: SystemTime::now().into(),
            metadata: i.metadata,
            content_type: i.content_type,
            checksums: checksums.clone(),
        };
        self.put(&i.bucket, i.key, object, i.if_match.as_ref(), i.if_none_match.as_ref())?;
        Ok(S3Response::new(PutObjectOutput {
            e_tag: strong(etag),
            checksum_crc32: checksums.crc32,
            checksum_crc32c: checksums.crc32c,
            checksum_sha1: checksums.sha1,
            checksum_sha256: checksums.sha256,
            checksum_crc64nvme: checksums.crc64nvme,
            ..Default::default()
        }))
    }

    async fn get_object(&self, r: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        self.enter(Kind::Get).await?;
        let i = r.input;
        let object = self.store.get(&i.bucket, &i.key)?;
        object.check(&i.if_match, &i.if_none_match)?;
        let (range, content_range) = match i.range {
            None => (0..object.length, None),
            Some(range) => {
                let range = range.check(object.length)?;
                let header = format!("bytes {}-{}/{}", range.start, range.end - 1, object.length);
                (range.start..range.end, Some(header))
            }
        };
        let length = range.end - range.start;
        self.counters.bytes_out.fetch_add(length, Ordering::Relaxed);
        let pieces = object.slice(range).into_iter().map(Ok::<_, std::io::Error>);
        let sums = if content_range.is_none() { object.checksums } else { Checksums::default() };
        Ok(S3Response::new(GetObjectOutput {
            body: Some(StreamingBlob::wrap(futures::stream::iter(pieces))),
            content_length: Some(length as i64),
            content_range,
            e_tag: strong(object.etag),
            last_modified: Some(object.modified),
            metadata: object.metadata,
            content_type: object.content_type,
            accept_ranges: Some("bytes".into()),
            checksum_crc32: sums.crc32,
            checksum_crc32c: sums.crc32c,
            checksum_sha1: sums.sha1,
            checksum_sha256: sums.sha256,
            checksum_crc64nvme: sums.crc64nvme,
            ..Default::default()
        }))
    }

    async fn head_object(&self, r: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        self.enter(Kind::Head).await?;
        let i = r.input;
        let object = self.store.get(&i.bucket, &i.key)?;
        object.check(&i.if_match, &i.if_none_match)?;
        Ok(S3Response::new(HeadObjectOutput {
            content_length: Some(object.length as i64),
            e_tag: strong(object.etag),
            last_modified: Some(object.modified),
            metadata: object.metadata,
            content_type: object.content_type,
            accept_ranges: Some("bytes".into()),
            checksum_crc32: object.checksums.crc32,
            checksum_crc32c: object.checksums.crc32c,
            checksum_sha1: object.checksums.sha1,
            checksum_sha256: object.checksums.sha256,
            checksum_crc64nvme: object.checksums.crc64nvme,
            ..Default::default()
        }))
    }

    async fn copy_object(&self, r: S3Request<CopyObjectInput>) -> S3Result<S3Response<CopyObjectOutput>> {
        self.enter(Kind::Put).await?;
        let i = r.input;
        let CopySource::Bucket { bucket, key, .. } = &i.copy_source else {
            return Err(s3_error!(NotImplemented));
        };
        let mut object = self.store.get(bucket, key)?;
        object.modified = SystemTime::now().into();
        if i.metadata_directive.as_ref().is_some_and(|directive| directive.as_str() == "REPLACE") {
            object.metadata = i.metadata;
            object.content_type = i.content_type;
        }
        let (etag, modified) = (object.etag.clone(), object.modified.clone());
        let absent = r.headers.contains_key("if-none-match").then_some(ETagCondition::Any);
        self.put(&i.bucket, i.key, object, None, absent.as_ref())?;
        Ok(S3Response::new(CopyObjectOutput {
            copy_object_result: Some(CopyObjectResult {
                e_tag: strong(etag),
                last_modified: Some(modified),
                ..Default::default()
            }),
            ..Default::default()
        }))
    }

    async fn delete_object(
        &self,
        r: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.enter(Kind::Delete).await?;
        let i = r.input;
        let (matches, _) = self.conditions(i.if_match.as_ref(), None);
        self.store.delete(&i.bucket, &i.key, matches)?;
        self.leave()?;
        done()
    }

    async fn delete_objects(
        &self,
        r: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        self.enter(Kind::Delete).await?;
        let i = r.input;
        let mut deleted = Vec::new();
        for object in i.delete.objects {
            self.store.delete(&i.bucket, &object.key, None)?;
            deleted.push(DeletedObject { key: Some(object.key), ..Default::default() });
        }
        self.leave()?;
        Ok(S3Response::new(DeleteObjectsOutput { deleted: Some(deleted), ..Default::default() }))
    }

    async fn list_objects_v2(
        &self,
        r: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.enter(Kind::List).await?;
        let i = r.input;
        let limit = i.max_keys.unwrap_or(1000).clamp(0, 1000);
        let page = self.store.list(
            &i.bucket,
            i.prefix.as_deref().unwrap_or(""),
            i.delimiter.as_deref(),
            i.continuation_token.as_deref().or(i.start_after.as_deref()),
            limit as usize,
        )?;
        Ok(S3Response::new(ListObjectsV2Output {
            key_count: Some((page.objects.len() + page.prefixes.len()) as i32),
            max_keys: Some(limit),
            is_truncated: Some(page.next.is_some()),
            contents: Some(page.objects),
            common_prefixes: Some(page.prefixes),
            next_continuation_token: page.next,
            continuation_token: i.continuation_token,
            name: Some(i.bucket),
            prefix: i.prefix,
            delimiter: i.delimiter,
            ..Default::default()
        }))
    }

    async fn list_objects(&self, r: S3Request<ListObjectsInput>) -> S3Result<S3Response<ListObjectsOutput>> {
        self.enter(Kind::List).await?;
        let i = r.input;
        let limit = i.max_keys.unwrap_or(1000).clamp(0, 1000);
        let page = self.store.list(
            &i.bucket,
            i.prefix.as_deref().unwrap_or(""),
            i.delimiter.as_deref(),
            i.marker.as_deref(),
            limit as usize,
        )?;
        Ok(S3Response::new(ListObjectsOutput {
            max_keys: Some(limit),
            is_truncated: Some(page.next.is_some()),
            contents: Some(page.objects),
            common_prefixes: Some(page.prefixes),
            next_marker: page.next,
            name: Some(i.bucket),
            prefix: i.prefix,
            marker: i.marker,
            delimiter: i.delimiter,
            ..Default::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        r: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        self.enter(Kind::Put).await?;
        let i = r.input;
        let id = format!("upload-{:016x}", self.dice.fetch_add(1, Ordering::Relaxed));
        let upload = Upload {
            bucket: i.bucket.clone(),
            key: i.key.clone(),
            metadata: i.metadata,
            content_type: i.content_type,
            parts: Default::default(),
        };
        self.store.uploads().insert(id.clone(), upload);
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(i.bucket),
            key: Some(i.key),
            upload_id: Some(id),
            ..Default::default()
        }))
    }

    async fn upload_part(&self, r: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        self.enter(Kind::Put).await?;
        let mut i = r.input;
        let (bytes, digest) = self.receive(i.body.take(), i.content_length, i.content_md5.as_ref()).await?;
        let mut uploads = self.store.uploads();
        let upload = uploads.get_mut(&i.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        upload.parts.insert(i.part_number, (bytes, digest));
        Ok(S3Response::new(UploadPartOutput { e_tag: strong(hex(&digest)), ..Default::default() }))
    }

    async fn upload_part_copy(
        &self,
        r: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        self.enter(Kind::Put).await?;
        let i = r.input;
        let CopySource::Bucket { bucket, key, .. } = &i.copy_source else {
            return Err(s3_error!(NotImplemented));
        };
        let object = self.store.get(bucket, key)?;
        let range = match i.copy_source_range.as_deref() {
            None => 0..object.length,
            Some(text) => {
                let bounds = text.strip_prefix("bytes=").and_then(|bounds| bounds.split_once('-'));
                let (first, last) = bounds.ok_or_else(|| s3_error!(InvalidRange))?;
                let first = first.parse::<u64>().map_err(|_| s3_error!(InvalidRange))?;
                let last = last.parse::<u64>().map_err(|_| s3_error!(InvalidRange))?;
                first..last + 1
            }
        };
        if range.start > range.end || range.end > object.length {
            return Err(s3_error!(InvalidRange));
        }
        let bytes = Bytes::from(object.slice(range).concat());
        let digest = body::md5(&bytes);
        let mut uploads = self.store.uploads();
        let upload = uploads.get_mut(&i.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        upload.parts.insert(i.part_number, (bytes, digest));
        Ok(S3Response::new(UploadPartCopyOutput {
            copy_part_result: Some(CopyPartResult {
                e_tag: strong(hex(&digest)),
                last_modified: Some(SystemTime::now().into()),
                ..Default::default()
            }),
            ..Default::default()
        }))
    }

    async fn list_parts(&self, r: S3Request<ListPartsInput>) -> S3Result<S3Response<ListPartsOutput>> {
        let i = r.input;
        let uploads = self.store.uploads();
        let upload = uploads.get(&i.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
        let part = |(number, (bytes, digest)): (&i32, &(Bytes, Digest))| Part {
            part_number: Some(*number),
            size: Some(bytes.len() as i64),
            e_tag: strong(hex(digest)),
            ..Default::default()
        };
        Ok(S3Response::new(ListPartsOutput {
            parts: Some(upload.parts.iter().map(part).collect()),
            bucket: Some(i.bucket),
            key: Some(i.key),
            upload_id: Some(i.upload_id),
            is_truncated: Some(false),
            ..Default::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        r: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        self.enter(Kind::Put).await?;
        let i = r.input;
        let wanted = i.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let object = {
            let uploads = self.store.uploads();
            let upload = uploads.get(&i.upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?;
            assemble(upload, &wanted)?
        };
        let etag = object.etag.clone();
        self.put(&i.bucket, i.key.clone(), object, i.if_match.as_ref(), i.if_none_match.as_ref())?;
        self.store.uploads().remove(&i.upload_id);
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(i.bucket),
            key: Some(i.key),
            e_tag: strong(etag),
            ..Default::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        r: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.store.uploads().remove(&r.input.upload_id);
        done()
    }

    async fn list_multipart_uploads(
        &self,
        r: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let bucket = r.input.bucket;
        let uploads = self.store.uploads();
        let ours = uploads.iter().filter(|(_, upload)| upload.bucket == bucket);
        let listed = ours.map(|(id, upload)| MultipartUpload {
            key: Some(upload.key.clone()),
            upload_id: Some(id.clone()),
            ..Default::default()
        });
        Ok(S3Response::new(ListMultipartUploadsOutput {
            uploads: Some(listed.collect()),
            bucket: Some(bucket),
            is_truncated: Some(false),
            ..Default::default()
        }))
    }
}

/// The object of a finished upload. S3's rules: every named part is there with its ETag, and only the last one
/// may be smaller than 5 MiB.
fn assemble(upload: &Upload, wanted: &[CompletedPart]) -> S3Result<Stored> {
    let (mut pieces, mut length, mut digests) = (Vec::new(), 0, Vec::new());
    for (index, want) in wanted.iter().enumerate() {
        let number = want.part_number.unwrap_or(0);
        let (bytes, digest) = upload.parts.get(&number).ok_or_else(|| s3_error!(InvalidPart))?;
        if want.e_tag.as_ref().is_some_and(|etag| etag.value() != hex(digest)) {
            return Err(s3_error!(InvalidPart));
        }
        if index + 1 < wanted.len() && bytes.len() < 5 << 20 {
            return Err(s3_error!(EntityTooSmall));
        }
        length += bytes.len() as u64;
        pieces.push(bytes.clone());
        digests.extend_from_slice(digest);
    }
    Ok(Stored {
        pieces,
        length,
        etag: format!("{}-{}", hex(&body::md5(&digests)), wanted.len()),
        modified: SystemTime::now().into(),
        metadata: upload.metadata.clone(),
        content_type: upload.content_type.clone(),
        checksums: Checksums::default(),
    })
}
