//! A large file that is not here, read from its beginning to its end, beside plain GETs of the same packs.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::volumes::Volumes;
use super::{Bench, LAZY, far};
use crate::bench::rig::{PREFIX, numbers, run, timed};
use crate::bench::table::{Row, Table, Target, Unit, median};

/// Part of the throughput of plain GETs.
const THROUGHPUT_MIN: f64 = 0.9;
/// What plain GETs get at a time, and how many of them.
const PART: u64 = 4 << 20;
const PARALLEL: u64 = 16;

/// Has the kernel hold as much free memory as `bytes` of a file take twice. A virtual machine gives memory that is free back to
/// its host, and who is the first to touch it again waits for the host, several times as long as for the copy: the page cache
/// for us, and nobody for the plain reader, who uses the same few pages again and again.
fn wake_memory(dir: &Path, bytes: u64) -> Result<()> {
    let path = dir.join("wake");
    let mut file = File::create(&path)?;
    for _ in 0..bytes.div_ceil(PART) * 2 {
        file.write_all(&[1; PART as usize])?;
    }
    std::fs::remove_file(&path)?;
    Ok(())
}

pub fn sequential(bench: &Bench<'_>, table: &mut Table) -> Result<()> {
    let bytes = bench.volumes.big_bytes() as f64;
    let rounds = if bench.quick { 2 } else { 5 };
    for &distance in &bench.distances {
        let s3 = bench.volumes.big(distance)?;
        let (mut plain, mut storeshim, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..rounds {
            let plain_gets = || -> Result<f64> {
                let mut gets = bench.rig.plain_gets();
                gets.args([&s3.endpoint, &Volumes::packs(), "all"])
                    .args([PART, PARALLEL].map(|n| n.to_string()));
                let [seconds, got] = numbers(&run(&mut gets)?)?;
                ensure!(got >= bytes, "the packs have {got} bytes");
                Ok(got / seconds)
            };
            let cold = || -> Result<f64> {
                wake_memory(&bench.rig.native()?, bench.volumes.big_bytes())?;
                let agent = bench.rig.agent(&bench.volumes.url(&s3), LAZY)?;
                let mut dd = Command::new("dd");
                dd.arg(format!("if={PREFIX}/big")).args(["of=/dev/null", "bs=1M", "status=none"]);
                Ok(bytes / timed(&mut agent.shows(dd))?)
            };
            let (one, other) = if round % 2 == 0 {
                let one = plain_gets()?;
                (one, cold()?)
            } else {
                let other = cold()?;
                (plain_gets()?, other)
            };
            plain.push(one);
            storeshim.push(other);
            ratios.push(other / one);
        }
        let (plain, storeshim, ratio) = (median(plain), median(storeshim), median(ratios));
        let what =
            format!("cold sequential read of {} MiB, {}", bench.volumes.big_bytes() >> 20, far(distance));
        table.push(Row::compared(&what, Unit::Rate, plain, storeshim, ratio).wants(
            Target::AtLeast(THROUGHPUT_MIN),
            Unit::Times,
            ratio,
        ));
    }
    table.note(format!(
        "cold sequential read: dd of 1 MiB blocks on a node with an empty disk, beside {PARALLEL} parallel ranged GETs of \
         {} MiB of the same packs, which are thrown away; medians of {rounds} rounds by turns. The server shares the CPUs",
        PART >> 20
    ));
    Ok(())
}
