//! Plain ranged GETs, for benchmarks to compare with, of the objects below a prefix:
//!
//! `s3get ENDPOINT PREFIX all PART PARALLEL` gets every byte of them in ranges of PART bytes, PARALLEL at once, and prints
//! seconds and bytes; `s3get ENDPOINT PREFIX each SIZE COUNT` gets COUNT ranges of SIZE bytes one after another, spread over
//! the objects, and prints the seconds that one took. Credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.

use std::ops::Range;
use std::time::Instant;

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::aws::AmazonS3;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use storeshim_tests::s3::client;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [endpoint, prefix, how, size, count] = arguments.as_slice() else {
        anyhow::bail!("usage: s3get ENDPOINT PREFIX all|each SIZE COUNT");
    };
    let store = client(endpoint)?;
    let size: u64 = size.parse().context("SIZE is not a number of bytes")?;
    let count: usize = count.parse().context("COUNT is not a number")?;
    let objects: Vec<_> = store.list(Some(&Path::from(prefix.as_str()))).try_collect().await?;
    anyhow::ensure!(!objects.is_empty() && size > 0 && count > 0, "there is nothing below {prefix} to get");

    let started = Instant::now();
    match how.as_str() {
        "all" => {
            let ranges = objects.iter().flat_map(|object| {
                (0..object.size.div_ceil(size))
                    .map(|part| (&object.location, part * size..object.size.min((part + 1) * size)))
            });
            let got: Vec<u64> = stream::iter(ranges)
                .map(|(path, range)| get(&store, path, range))
                .buffer_unordered(count)
                .try_collect()
                .await?;
            println!("{} {}", started.elapsed().as_secs_f64(), got.iter().sum::<u64>());
        }
        "each" => {
            for (number, object) in objects.iter().cycle().take(count).enumerate() {
                let start = number as u64 * size % object.size.saturating_sub(size).max(1);
                get(&store, &object.location, start..object.size.min(start + size)).await?;
            }
            println!("{}", started.elapsed().as_secs_f64() / count as f64);
        }
        other => anyhow::bail!("{other}: neither all nor each"),
    }
    Ok(())
}

async fn get(store: &AmazonS3, path: &Path, range: Range<u64>) -> anyhow::Result<u64> {
    Ok(store.get_range(path, range).await?.len() as u64)
}
