//! Bodies, checksums and ETags. It must not know buckets.

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use s3s::crypto::{Checksum as _, Md5};
use s3s::dto::{PutObjectInput, StreamingBlob};
use s3s::{S3Error, S3Result, TrailingHeaders, s3_error};

/// An MD5 sum, or what stands for one.
pub(super) type Digest = [u8; 16];

pub(super) fn md5(bytes: &[u8]) -> Digest {
    let mut hasher = Md5::new();
    hasher.update(bytes);
    hasher.finalize()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let at = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let word = at(0) << 16 | at(1) << 8 | at(2);
        for i in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * i) & 63) as usize];
            text.push(if i <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

/// Reads a whole body. A body that is shorter or longer than announced is an error: half a body must never
/// become an object.
pub(super) async fn collect(body: Option<StreamingBlob>, announced: Option<i64>) -> S3Result<Bytes> {
    let Some(mut body) = body else { return Ok(Bytes::new()) };
    let expected = announced.and_then(|length| usize::try_from(length).ok());
    let mut bytes = BytesMut::with_capacity(expected.unwrap_or(0).min(64 << 20));
    while let Some(piece) = body.next().await {
        match piece {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(error) => return Err(body_error(error)),
        }
    }
    if expected.is_some_and(|length| length != bytes.len()) {
        return Err(s3_error!(IncompleteBody));
    }
    Ok(bytes.freeze())
}

/// The signature check of a chunked body speaks through the stream; everything else is a broken connection.
fn body_error(error: s3s::StdError) -> S3Error {
    match error.downcast::<S3Error>() {
        Ok(error) => *error,
        Err(error) => S3Error::with_source(s3s::S3ErrorCode::IncompleteBody, error),
    }
}

/// The five checksums that S3 knows, as their base64 texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Checksums {
    pub(super) crc32: Option<String>,
    pub(super) crc32c: Option<String>,
    pub(super) sha1: Option<String>,
    pub(super) sha256: Option<String>,
    pub(super) crc64nvme: Option<String>,
}

impl Checksums {
    /// Those that the client announced, in headers or after the body.
    pub(super) fn announced(input: &PutObjectInput, trailing: Option<TrailingHeaders>) -> Self {
        let trailing = trailing.and_then(|headers| headers.take());
        let either = |name: &str, header: &Option<String>| {
            let after = trailing.as_ref().and_then(|headers| headers.get(name)?.to_str().ok());
            after.map(str::to_owned).or_else(|| header.clone())
        };
        Self {
            crc32: either("x-amz-checksum-crc32", &input.checksum_crc32),
            crc32c: either("x-amz-checksum-crc32c", &input.checksum_crc32c),
            sha1: either("x-amz-checksum-sha1", &input.checksum_sha1),
            sha256: either("x-amz-checksum-sha256", &input.checksum_sha256),
            crc64nvme: either("x-amz-checksum-crc64nvme", &input.checksum_crc64nvme),
        }
    }

    /// The same kinds, computed.
    pub(super) fn of(&self, bytes: &[u8]) -> Self {
        let mut hasher = s3s::checksum::ChecksumHasher {
            crc32: self.crc32.as_ref().map(|_| Default::default()),
            crc32c: self.crc32c.as_ref().map(|_| Default::default()),
            sha1: self.sha1.as_ref().map(|_| Default::default()),
            sha256: self.sha256.as_ref().map(|_| Default::default()),
            crc64nvme: self.crc64nvme.as_ref().map(|_| Default::default()),
        };
        hasher.update(bytes);
        let sums = hasher.finalize();
        Self {
            crc32: sums.checksum_crc32,
            crc32c: sums.checksum_crc32c,
            sha1: sums.checksum_sha1,
            sha256: sums.checksum_sha256,
            crc64nvme: sums.checksum_crc64nvme,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_pads() {
        for (plain, coded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
