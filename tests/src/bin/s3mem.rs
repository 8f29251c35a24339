//! The in-memory S3 server as a process of its own, for benchmarks and for trying things by hand:
//! `s3mem ADDRESS ACCESS_KEY SECRET_KEY`, with S3MEM_DELAY_MS and S3MEM_FAST_ETAG=1 in the environment. It has one
//! bucket, `volumes`; others are made by CreateBucket. Each line on its standard input is answered by one with the
//! requests so far, `PUTS OTHERS BYTES_IN`.

use std::io::BufRead;
use std::sync::atomic::Ordering;

use anyhow::Context;
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
    if let Ok(delay) = std::env::var("S3MEM_DELAY_MS") {
        let delay = delay.parse().context("S3MEM_DELAY_MS is not a number of milliseconds")?;
        server.knobs().delay_ms.store(delay, Ordering::Relaxed);
    }
    server.knobs().fast_etag.store(std::env::var_os("S3MEM_FAST_ETAG").is_some(), Ordering::Relaxed);
    println!("listening on {}", server.endpoint());
    for line in std::io::stdin().lock().lines() {
        line.context("standard input")?;
        let counters = server.counters();
        let (puts, bytes_in) = (counters.puts(), counters.bytes_in.load(Ordering::Relaxed));
        println!("{puts} {} {bytes_in}", counters.all() - puts);
    }
    server.join();
    Ok(())
}
