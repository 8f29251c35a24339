//! Small files that are not here, read by an archiver, beside one GET after another.

use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use super::volumes::Volumes;
use super::{Bench, LAZY, far};
use crate::bench::rig::{PREFIX, numbers, run, timed};
use crate::bench::table::{Row, Table, Target, Unit, median};

/// How many times as fast as one GET at a time.
const TIMES_MIN: f64 = 20.0;
/// What a GET gets: about the size of a compressed file.
const SIZE: usize = 1024;
/// GETs that are made, and files; as many as there are in the volume would take long and say the same.
const GETS: u64 = 500;

/// Seconds in which this disk makes so many files of such a size: no tree that does not have them can be faster.
fn makes(bench: &Bench<'_>) -> Result<f64> {
    let dir = bench.rig.native()?;
    let began = Instant::now();
    for number in 0..GETS {
        std::fs::write(dir.join(number.to_string()), [b'x'; SIZE])?;
    }
    Ok(began.elapsed().as_secs_f64())
}

pub fn small_files(bench: &Bench<'_>, table: &mut Table) -> Result<()> {
    let files = bench.volumes.small_count();
    let rounds = if bench.quick { 2 } else { 5 };
    // Elsewhere than in a privileged container there is no other guard than leases.
    let ways = bench.distances.iter().flat_map(|distance| [(*distance, ""), (*distance, ",guard=leases")]);
    for (distance, guard) in ways {
        let mut s3 = bench.volumes.small(distance)?;
        let (mut plain, mut storeshim, mut requests) = (Vec::new(), Vec::new(), Vec::new());
        let mut native = Vec::new();
        for _ in 0..rounds {
            let mut gets = bench.rig.plain_gets();
            gets.args([&s3.endpoint, &Volumes::packs(), "each"]).args([SIZE.to_string(), GETS.to_string()]);
            let [seconds] = numbers(&run(&mut gets)?)?;
            plain.push(seconds * files as f64 * 1e9);

            let agent = bench.rig.agent(&bench.volumes.url(&s3), &format!("{LAZY}{guard}"))?;
            let before: f64 = s3.requests()?.iter().sum();
            let mut tar = Command::new("sh");
            // To a pipe: an archiver that writes to /dev/null does not read.
            tar.args(["-c", "tar cf - -C \"$1\" . | cat > /dev/null", "sh", PREFIX]);
            storeshim.push(timed(&mut agent.shows(tar))? * 1e9);
            requests.push(s3.requests()?.iter().sum::<f64>() - before);
            native.push(makes(bench)? * files as f64 / GETS as f64 * 1e9);
        }
        let (plain, storeshim) = (median(plain), median(storeshim));
        let times = plain / storeshim;
        let by = if guard.is_empty() { "" } else { ", leases" };
        let what = format!("cold tar of {files} small files, {}{by}", far(distance));
        table.push(Row::compared(&what, Unit::Time, plain, storeshim, times).wants(
            Target::AtLeast(TIMES_MIN),
            Unit::Times,
            times,
        ));
        let native = Unit::Time.text(median(native));
        table.note(format!(
            "{what}: {:.0} requests; to make {files} files takes the disk alone {native} (each round made {GETS})",
            median(requests)
        ));
    }
    table.note(format!(
        "cold tar: `tar c` to a pipe on a node with an empty disk, beside as many GETs of {SIZE} bytes one after another (of \
         which {GETS} were made); ratio = how many times as fast; medians of {rounds} rounds"
    ));
    Ok(())
}
