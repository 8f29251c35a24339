//! How fast data reaches the object store: much of it at once, and a little with an fsync behind it.

use std::fs::{self, File};
use std::io::Read;

use anyhow::Result;

use crate::bench::rig::{PREFIX, Rig, numbers, run};
use crate::bench::table::{Row, Table, Target, Unit, median};

/// Part of the throughput of plain PUTs that a commit must reach.
const THROUGHPUT_MIN: f64 = 0.8;
/// What plain PUTs are made of: as large as a pack, as many as the agent has on their way.
const PART: &str = "16777216";
const PARALLEL: &str = "8";
/// Small writes that are fsynced.
const FSYNCS: usize = 400;

pub fn throughput(rig: &Rig, quick: bool, table: &mut Table) -> Result<()> {
    let bytes: u64 = if quick { 512 << 20 } else { 1 << 30 };
    let s3 = rig.s3()?;
    let agent = rig.agent(&s3.url("throughput"), "")?;
    let file = rig.home("data");
    let (mut plain, mut storeshim, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let rounds = if quick { 3 } else { 5 };
    for round in 0..rounds {
        incompressible(&file, bytes)?;
        let plain_puts = || -> Result<f64> {
            let [seconds] =
                numbers(&run(rig.plain_puts().arg(&s3.endpoint).arg(&file).args([PART, PARALLEL]))?)?;
            Ok(bytes as f64 / seconds)
        };
        let commit = || -> Result<f64> {
            // A rename by a program without the shim: the data is there at once, and nothing but `flush` finds it.
            let inside = agent.tree().join("data");
            fs::rename(&file, &inside)?;
            let seconds = agent.flush()?;
            fs::rename(&inside, &file)?;
            Ok(bytes as f64 / seconds)
        };
        let (one, other) = if round % 2 == 0 {
            let one = plain_puts()?;
            (one, commit()?)
        } else {
            let other = commit()?;
            (plain_puts()?, other)
        };
        plain.push(one);
        storeshim.push(other);
        ratios.push(other / one);
        // The packs die before the next round, so that the server's memory is that of one round.
        agent.flush()?;
    }
    let ratio = median(ratios);
    let (plain, storeshim) = (median(plain), median(storeshim));
    table.push(
        Row::compared("commit throughput, beside plain PUTs", Unit::Rate, plain, storeshim, ratio).wants(
            Target::AtLeast(THROUGHPUT_MIN),
            Unit::Times,
            ratio,
        ),
    );
    let [_, peak] = agent.memory()?;
    table.note(format!(
        "commit throughput: {} MiB of random bytes, from the rename into the tree until `flush` returned, beside 8 \
         parallel PUTs of 16 MiB; medians of {rounds} rounds by turns; the agent's memory reached {:.0} MiB",
        bytes >> 20,
        peak / 1_048_576.0
    ));
    Ok(())
}

/// A file of random bytes on the tree's file system, written back, in the page cache.
fn incompressible(path: &std::path::Path, bytes: u64) -> Result<()> {
    let mut file = File::create(path)?;
    std::io::copy(&mut File::open("/dev/urandom")?.take(bytes), &mut file)?;
    file.sync_all()?;
    Ok(())
}

pub fn fsync(rig: &Rig, quick: bool, table: &mut Table) -> Result<()> {
    let s3 = rig.s3()?;
    let agent = rig.agent(&s3.url("fsync"), "")?;
    let count = if quick { FSYNCS / 4 } else { FSYNCS };
    let file = rig.home("data");
    incompressible(&file, count as u64 * 4096)?;
    let [put50, put99] = numbers(&run(rig.plain_puts().arg(&s3.endpoint).arg(&file).args(["4096", "0"]))?)?;
    let mut load = rig.program("load");
    load.args(["fsync", PREFIX, &count.to_string()]);
    let [p50, p99] = numbers(&run(&mut agent.shows(load))?)?;
    for (what, put, fsync) in [
        ("fsync of a 4 KiB write, beside a 4 KiB PUT, p50", put50, p50),
        ("fsync of a 4 KiB write, beside a 4 KiB PUT, p99", put99, p99),
    ] {
        table.push(Row::compared(what, Unit::Time, put, fsync, fsync / put));
    }
    Ok(())
}
