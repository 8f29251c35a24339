//! What the shim adds to a call and to the start of a process.

use std::path::Path;

use anyhow::Result;

use crate::bench::rig::{Rig, numbers, run};
use crate::bench::table::{Row, Table, Target, Unit};
use crate::bench::turns::{Rounds, Turns};

/// A call: its name in the program `calls`, its name in the table, how often it is made in a round, and its target.
const CALLS: [(&str, &str, u32, f64); 5] = [
    ("pread", "pread 4 KiB, warm", 20_000, 1.10),
    ("pwrite", "pwrite 4 KiB", 20_000, 1.10),
    ("open", "open + close", 20_000, 1.40),
    ("stat", "stat", 20_000, 1.10),
    ("create", "create + write 4 KiB + close + unlink", 200, 1.25),
];
/// Target of a spawn.
const SPAWN: f64 = 1.08;

fn row(measured: &Rounds, what: &str, target: Option<f64>) -> Row {
    let ratio = measured.ratio(1);
    let row = Row::compared(what, Unit::Time, measured.middle(0), measured.middle(1), ratio);
    match target {
        Some(target) => row.wants(Target::AtMost(target), Unit::Times, ratio),
        None => row,
    }
}

pub fn calls(rig: &Rig, quick: bool, table: &mut Table) -> Result<()> {
    let agent = rig.agent(&rig.directory_store()?, "")?;
    let native = rig.calls(&rig.native()?);
    let storeshim = agent.runs(&rig.calls(agent.prefix()));
    let mut turns = Turns::start([native, storeshim])?;

    let rounds = if quick { 15 } else { 101 };
    let mut cpu: [Rounds; CALLS.len()] = Default::default();
    let mut wall: [Rounds; CALLS.len()] = Default::default();
    for _ in 0..rounds {
        for (((call, _, count, _), cpu), wall) in CALLS.iter().zip(&mut cpu).zip(&mut wall) {
            turns.take(call, *count, cpu, wall)?;
        }
    }
    let by_clock: Vec<String> = CALLS
        .iter()
        .zip(&wall)
        .map(|((call, ..), rounds)| format!("{call} {:.2}×", rounds.ratio(1)))
        .collect();
    for ((_, what, _, target), rounds) in CALLS.iter().zip(&cpu) {
        table.push(row(rounds, what, Some(*target)));
    }
    table.note(format!(
        "calls: the thread's CPU time per call; medians of {rounds} rounds, ratio = median of the rounds' ratios. By the \
         clock, with whatever else ran: {}",
        by_clock.join(", ")
    ));
    Ok(())
}

pub fn spawn(rig: &Rig, quick: bool, table: &mut Table) -> Result<()> {
    let _agent = rig.agent(&rig.directory_store()?, "")?;
    let rounds: u32 = if quick { 15 } else { 41 };
    let file = rig.home("output");
    for (what, output, target) in [
        ("spawn of /bin/true, shim loaded and unused", Path::new("/dev/null"), Some(SPAWN)),
        ("the same, output to a file outside of the mount", file.as_path(), None),
    ] {
        let mut command = rig.program("spawn");
        command.args([&rounds.to_string(), "50"]).arg(output);
        for (name, value) in rig.environment() {
            command.arg(format!("{name}={}", value.display()));
        }
        let mut measured = Rounds::default();
        for line in run(&mut command)?.lines() {
            measured.add(numbers::<2>(line)?.to_vec());
        }
        table.push(row(&measured, what, target));
    }
    table.note(format!(
        "spawn: by the clock; {rounds} rounds of 50 spawns of each kind by turns, median of the rounds' medians"
    ));
    Ok(())
}
