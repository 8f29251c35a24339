//! Plain PUTs, for benchmarks to compare with: `s3put ENDPOINT FILE PART PARALLEL` stores a file as objects of PART
//! bytes, PARALLEL at once, and prints the seconds that took; with PARALLEL 0 one after another, and it prints the p50
//! and p99 of a PUT in nanoseconds. Credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStoreExt;
use object_store::aws::AmazonS3;
use object_store::path::Path;
use storeshim_tests::s3::client;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [endpoint, file, part, parallel] = arguments.as_slice() else {
        anyhow::bail!("usage: s3put ENDPOINT FILE PART PARALLEL");
    };
    let store = client(endpoint)?;
    let file = Arc::new(std::fs::File::open(file).with_context(|| file.clone())?);
    let part: u64 = part.parse().context("PART is not a number of bytes")?;
    let parallel: usize = parallel.parse().context("PARALLEL is not a number")?;
    let parts = file.metadata()?.len().div_ceil(part.max(1));

    let started = Instant::now();
    let mut took: Vec<u128> = stream::iter(0..parts)
        .map(|number| put(&store, Arc::clone(&file), number, part))
        .buffer_unordered(parallel.max(1))
        .try_collect()
        .await?;
    if parallel > 0 {
        println!("{}", started.elapsed().as_secs_f64());
    } else {
        took.sort_unstable();
        let at = |percent: usize| took.get(took.len() * percent / 100).copied().unwrap_or(0);
        println!("{} {}", at(50), at(99));
    }
    Ok(())
}

/// Stores one part of `size` bytes; the nanoseconds of its PUT alone.
async fn put(store: &AmazonS3, file: Arc<std::fs::File>, number: u64, size: u64) -> anyhow::Result<u128> {
    let bytes = tokio::task::spawn_blocking(move || {
        let offset = number * size;
        let size = size.min(file.metadata()?.len().saturating_sub(offset));
        let mut bytes = vec![0; usize::try_from(size).map_err(std::io::Error::other)?];
        file.read_exact_at(&mut bytes, offset).map(|()| bytes)
    })
    .await??;
    let started = Instant::now();
    store.put(&Path::from(format!("plain/{number}")), bytes.into()).await?;
    Ok(started.elapsed().as_nanos())
}
