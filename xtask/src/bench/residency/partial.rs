//! Reads of what is here of a file of which not all is here.

use std::fs::File;
use std::io::Read;

use anyhow::{Result, ensure};

use super::{Bench, LAZY};
use crate::bench::rig::PREFIX;
use crate::bench::table::{Row, Table, Target, Unit};
use crate::bench::turns::{Rounds, Turns};

/// Of native.
const RATIO_MAX: f64 = 1.1;
/// Bytes from the file's beginning that are read.
const BYTES: u64 = 1 << 20;
/// A call, its name in the table, how often it is made in a round.
const CALLS: [(&str, &str, u32); 2] = [
    ("pread", "pread 4 KiB, warm, of a file that is partly here", 20_000),
    ("read", "read 4 KiB, warm, of a file that is partly here", 20_000),
];

pub fn warm_reads(bench: &Bench<'_>, table: &mut Table) -> Result<()> {
    let s3 = bench.volumes.big(0)?;
    let agent = bench.rig.agent(&bench.volumes.url(&s3), LAZY)?;
    let native = bench.rig.native()?.join("file");
    std::io::copy(&mut File::open("/dev/urandom")?.take(BYTES), &mut File::create(&native)?)?;
    let cpu = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) - 1;
    let reads = |file: String| {
        let mut reads = bench.rig.program("reads");
        reads.args([file, BYTES.to_string(), cpu.to_string()]);
        reads
    };
    let mut turns =
        Turns::start([reads(native.display().to_string()), agent.shows(reads(format!("{PREFIX}/big")))])?;
    let rounds = if bench.quick { 15 } else { 101 };
    let mut cpu: [Rounds; CALLS.len()] = Default::default();
    let mut wall: [Rounds; CALLS.len()] = Default::default();
    for _ in 0..rounds {
        for (((call, _, count), cpu), wall) in CALLS.iter().zip(&mut cpu).zip(&mut wall) {
            turns.take(call, *count, cpu, wall)?;
        }
    }
    let here = agent.residency("resident_bytes")?;
    let all = bench.volumes.big_bytes() as f64;
    ensure!(here < all, "all of the file is here: this measures nothing");
    for (((_, what, _), cpu), wall) in CALLS.iter().zip(&cpu).zip(&wall) {
        let ratio = cpu.ratio(1);
        table.push(Row::compared(what, Unit::Time, cpu.middle(0), cpu.middle(1), ratio).wants(
            Target::AtMost(RATIO_MAX),
            Unit::Times,
            ratio,
        ));
        table.note(format!("{what}: {:.2}× by the clock", wall.ratio(1)));
    }
    table.note(format!(
        "partly here: the thread's CPU time per call; medians of {rounds} rounds by turns; {:.0} of {:.0} MiB were here",
        here / 1_048_576.0,
        all / 1_048_576.0
    ));
    Ok(())
}
