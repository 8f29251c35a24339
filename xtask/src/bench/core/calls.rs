//! What the shim adds to a call and to the start of a process.

use std::path::Path;

use anyhow::Result;

use crate::bench::rig::{PREFIX, Rig, Talk, numbers, run};
use crate::bench::table::{Row, Table, Target, Unit, median};

/// A call: its name in `calls.c`, its name in the table, how often it is made in a round, and its target.
const CALLS: [(&str, &str, u32, f64); 5] = [
    ("pread", "pread 4 KiB, warm", 20_000, 1.10),
    ("pwrite", "pwrite 4 KiB", 20_000, 1.10),
    ("open", "open + close", 20_000, 1.40),
    ("stat", "stat", 20_000, 1.10),
    ("create", "create + write 4 KiB + close + unlink", 2_000, 1.25),
];
/// Target of a spawn.
const SPAWN: f64 = 1.08;

/// Times of one call, in nanoseconds, one of each per round.
#[derive(Default)]
struct Rounds {
    native: Vec<f64>,
    storeshim: Vec<f64>,
}

impl Rounds {
    fn add(&mut self, native: f64, storeshim: f64) {
        self.native.push(native);
        self.storeshim.push(storeshim);
    }

    /// The middle of the rounds' own ratios.
    fn ratio(&self) -> f64 {
        median(
            self.native.iter().zip(&self.storeshim).map(|(native, storeshim)| storeshim / native).collect(),
        )
    }

    fn row(self, what: &str, target: Option<f64>) -> Row {
        let ratio = self.ratio();
        let row = Row::compared(what, Unit::Time, median(self.native), median(self.storeshim), ratio);
        match target {
            Some(target) => row.wants(Target::AtMost(target), Unit::Times, ratio),
            None => row,
        }
    }
}

pub fn calls(rig: &Rig, quick: bool, table: &mut Table) -> Result<()> {
    let agent = rig.agent(&rig.directory_store()?, "")?;
    let mut native = rig.program("calls");
    native.arg(rig.native()?);
    let mut storeshim = rig.program("calls");
    storeshim.arg(PREFIX);
    let mut native = Talk::start(native)?;
    let mut storeshim = Talk::start(agent.runs(&storeshim))?;

    let rounds = if quick { 15 } else { 101 };
    let mut cpu: [Rounds; CALLS.len()] = Default::default();
    let mut wall: [Rounds; CALLS.len()] = Default::default();
    for round in 0..rounds {
        for (((call, _, count, _), cpu), wall) in CALLS.iter().zip(&mut cpu).zip(&mut wall) {
            let line = format!("{call} {count}");
            // Who goes first changes, too.
            let (native, storeshim) = if round % 2 == 0 {
                let native = native.ask(&line)?;
                (native, storeshim.ask(&line)?)
            } else {
                let storeshim = storeshim.ask(&line)?;
                (native.ask(&line)?, storeshim)
            };
            let ([native_cpu, native_wall], [cpu_ns, wall_ns]) = (numbers(&native)?, numbers(&storeshim)?);
            cpu.add(native_cpu, cpu_ns);
            wall.add(native_wall, wall_ns);
        }
    }
    let by_clock: Vec<String> = CALLS
        .iter()
        .zip(&wall)
        .map(|((call, ..), rounds)| format!("{call} {:.2}×", rounds.ratio()))
        .collect();
    for ((_, what, _, target), rounds) in CALLS.iter().zip(cpu) {
        table.push(rounds.row(what, Some(*target)));
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
            let [native, storeshim] = numbers(line)?;
            measured.add(native, storeshim);
        }
        table.push(measured.row(what, target));
    }
    table.note(format!(
        "spawn: by the clock; {rounds} rounds of 50 spawns of each kind by turns, median of the rounds' medians"
    ));
    Ok(())
}
