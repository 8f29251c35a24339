//! How soon an empty node shows the first byte of a volume of very many files, and what the agent's memory comes to once it
//! knows all their names.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Bench, LAZY, far};
use crate::bench::rig::{PREFIX, timed};
use crate::bench::table::{Row, Table, Target, Unit, median};

/// Round trips, and nanoseconds besides, until the first byte.
const TRIPS: f64 = 5.0;
const BESIDES: f64 = 200e6;
/// Bytes of the agent's memory per million files.
const MEMORY_MAX: f64 = 300.0 * 1024.0 * 1024.0;
/// Longest wait for all names.
const NAMES: Duration = Duration::from_secs(1800);

pub fn first_byte(bench: &Bench<'_>, table: &mut Table) -> Result<()> {
    let files = bench.volumes.file_count();
    let rounds = if bench.quick { 3 } else { 5 };
    for &distance in &bench.distances {
        let mut s3 = bench.volumes.files(distance)?;
        let url = bench.volumes.url(&s3);
        let (mut all, mut ready, mut read, mut requests) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for round in 0..rounds {
            // Another file each time, in the middle of the volume.
            let number = files / 2 + round * 1003;
            let file = format!("{PREFIX}/{}/file-{number}", number / 1000);
            let before: f64 = s3.requests()?.iter().sum();
            all.push(from_nothing(bench, &url, &file)?);
            requests.push(s3.requests()?.iter().sum::<f64>() - before);

            let began = Instant::now();
            let agent = bench.rig.agent(&url, LAZY)?;
            ready.push(began.elapsed().as_secs_f64() * 1e9);
            let mut cat = Command::new("cat");
            cat.arg(&file);
            read.push(timed(&mut agent.shows(cat))? * 1e9);
        }
        let limit = TRIPS * distance as f64 * 1e6 + BESIDES;
        let what = format!("first byte of {files} files, {}", far(distance));
        let whole = median(all);
        table.push(Row::alone(&what, Unit::Time, whole).wants(Target::AtMost(limit), Unit::Time, whole));
        table.note(format!(
            "{what}: from the start of `storeshim run -- cat FILE` with an empty disk until cat's first byte, agent and all; \
             median of {rounds}. Until it ended there were {:.0} requests. In two steps: the mount was ready {:.0} ms after \
             the agent's start (seen every 20 ms), and cat then took {:.0} ms",
            median(requests),
            median(ready) / 1e6,
            median(read) / 1e6
        ));
    }
    memory(bench, table)
}

/// `storeshim run` with nothing on this disk; nanoseconds until the program's first byte.
fn from_nothing(bench: &Bench<'_>, url: &str, file: &str) -> Result<f64> {
    let mut cat = Command::new("cat");
    cat.arg(file);
    let mut command = bench.rig.runs_alone(&format!("{url}{LAZY}"), &cat)?;
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let began = Instant::now();
    let mut child = command.spawn().context("storeshim run")?;
    let mut byte = [0];
    let got = child.stdout.as_mut().context("a pipe was asked for")?.read(&mut byte)?;
    let took = began.elapsed().as_secs_f64() * 1e9;
    let status = child.wait_with_output()?.status;
    ensure!(got == 1 && status.success(), "storeshim run -- cat {file}: {status}");
    bench.rig.await_idle()?;
    Ok(took)
}

fn memory(bench: &Bench<'_>, table: &mut Table) -> Result<()> {
    let files = bench.volumes.file_count();
    let s3 = bench.volumes.files(0)?;
    let began = Instant::now();
    let agent = bench.rig.agent(&bench.volumes.url(&s3), LAZY)?;
    while agent.residency("names_complete")? == 0.0 {
        ensure!(began.elapsed() < NAMES, "the names are not complete after {NAMES:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let took = began.elapsed();
    let [now, peak] = agent.memory()?;
    let per_million = peak / files as f64 * 1e6;
    let what = "agent's memory per million files, names complete, peak";
    // What it needs without any files is not divided by their number.
    let judged = if files < 1_000_000 { peak } else { per_million };
    table.push(Row::alone(what, Unit::Bytes, judged).wants(Target::Below(MEMORY_MAX), Unit::Bytes, judged));
    table.note(format!(
        "memory: VmHWM with {files} files; {:.0} MiB at the end. All names were in the tree {:.0} s after the agent's start",
        now / 1_048_576.0,
        took.as_secs_f64()
    ));
    Ok(())
}
