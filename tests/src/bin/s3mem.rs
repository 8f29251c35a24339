//! The in-memory S3 server as a process of its own, for benchmarks and for trying things by hand:
//! `s3mem ADDRESS ACCESS_KEY SECRET_KEY`. It has one bucket, `volumes`; others are made by CreateBucket. In the environment:
//!
//! | variable | |
//! |---|---|
//! | `S3MEM_DELAY_MS` | Each request waits that long. |
//! | `S3MEM_FAST_ETAG=1` | No MD5 sums. |
//! | `S3MEM_LOAD=PREFIX=DIR` | The files of DIR are there from the start, as objects below PREFIX. |
//! | `S3MEM_DISTANCE_MS` | The address that it prints is that of a proxy that adds so much to a round trip. |
//!
//! Each line on its standard input is answered by one with the requests so far, `PUTS OTHERS BYTES_IN`.

use std::io::BufRead;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use storeshim_tests::delay::Distance;
use storeshim_tests::s3::S3Server;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(access_key), Some(secret_key)) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        anyhow::bail!("usage: s3mem ADDRESS ACCESS_KEY SECRET_KEY");
    };
    let server = S3Server::start_at(&address, &access_key, &secret_key)
        .with_context(|| format!("cannot listen on {address}"))?;
    if let Some(delay) = milliseconds("S3MEM_DELAY_MS")? {
        server.knobs().delay_ms.store(delay, Ordering::Relaxed);
    }
    server.knobs().fast_etag.store(std::env::var_os("S3MEM_FAST_ETAG").is_some(), Ordering::Relaxed);
    if let Ok(load) = std::env::var("S3MEM_LOAD") {
        let (prefix, dir) = load.split_once('=').context("S3MEM_LOAD is not PREFIX=DIR")?;
        server.load(prefix, Path::new(dir)).with_context(|| dir.to_owned())?;
    }
    let distance = match milliseconds("S3MEM_DISTANCE_MS")?.filter(|round_trip| *round_trip > 0) {
        Some(round_trip) => Some(Distance::start(server.address(), Duration::from_millis(round_trip))?),
        None => None,
    };
    let address = distance.as_ref().map_or(server.address(), Distance::address);
    println!("listening on http://{address}");
    for line in std::io::stdin().lock().lines() {
        line.context("standard input")?;
        let counters = server.counters();
        let (puts, bytes_in) = (counters.puts(), counters.bytes_in.load(Ordering::Relaxed));
        println!("{puts} {} {bytes_in}", counters.all() - puts);
    }
    server.join();
    Ok(())
}

fn milliseconds(variable: &str) -> anyhow::Result<Option<u64>> {
    let value = std::env::var(variable).ok();
    let parsed = value
        .map(|value| value.parse().with_context(|| format!("{variable} is not a number of milliseconds")));
    parsed.transpose()
}
