//! The record writer on a node: started, watched, verified. What it writes is known to `programs/fsync_writer.c` only.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::node::{App, Node, Said};
use crate::programs::compiled;

/// A running writer of acknowledged records.
pub struct Writer {
    app: App,
    acks: PathBuf,
}

fn acks_of(node: &Node, name: &str) -> PathBuf {
    node.outside().join(format!("{name}.acks"))
}

impl Writer {
    /// Makes the directory `name` in the volume and starts writing there. Acknowledgements go to a file outside of it.
    #[track_caller]
    pub fn start(node: &Node, name: &str) -> Self {
        Self::start_on(node, name, &compiled("fsync_writer"))
    }

    /// The same by another build of the program.
    #[track_caller]
    pub fn start_on(node: &Node, name: &str, program: &Path) -> Self {
        node.sh(&format!("mkdir {name}"));
        let acks = acks_of(node, name);
        let mut command = node.app(program);
        command.arg("run").arg(node.prefix().join(name)).arg(&acks);
        Self { app: node.spawn(command), acks }
    }

    /// Acknowledged records so far.
    pub fn acknowledged(&self) -> usize {
        fs::read(&self.acks).unwrap_or_default().iter().filter(|byte| **byte == b'\n').count()
    }

    /// Waits until `more` records have been acknowledged from now on.
    #[track_caller]
    pub fn advances(&mut self, more: usize, limit: Duration) {
        let (start, deadline) = (self.acknowledged(), Instant::now() + limit);
        while self.acknowledged() < start + more {
            self.app.assert_running();
            assert!(
                Instant::now() < deadline,
                "{} of {more} records acknowledged in {limit:?}",
                self.acknowledged() - start
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The process.
    pub fn app(&mut self) -> &mut App {
        &mut self.app
    }

    /// Ends it in good order; the test fails where any call of it ever failed.
    #[track_caller]
    pub fn finish(self) {
        self.app.finish();
    }
}

/// Rounds of: write and note each acknowledgement, lose the machine at a random moment, restore, verify all rounds of
/// this volume. Every tenth round begins a new volume (`node`, by its number), so that both the first and the later epochs
/// are tried. `lose` takes the machine away and brings it back, in the round of that number.
#[track_caller]
pub fn fsync_campaign(
    rounds: u32,
    mut node: impl FnMut(u32) -> Node,
    mut lose: impl FnMut(&mut Node, u32, Writer),
) {
    let mut acknowledged = 0;
    for volume in 0..rounds.div_ceil(10) {
        let mut node = node(volume);
        for round in 0..10.min(rounds - volume * 10) {
            let writer = Writer::start(&node, &format!("round{round}"));
            std::thread::sleep(Duration::from_millis(rand::random_range(20..350)));
            lose(&mut node, volume * 10 + round, writer);
            for earlier in 0..round {
                verify(&node, &format!("round{earlier}"));
            }
            acknowledged += verify(&node, &format!("round{round}"));
        }
    }
    println!("{acknowledged} acknowledged records in {rounds} rounds");
    assert!(acknowledged > u64::from(rounds), "hardly anything was ever acknowledged: {acknowledged}");
}

/// Checks the records in the tree (without the shim) against what was acknowledged; returns how many that were.
#[track_caller]
pub fn verify(node: &Node, name: &str) -> u64 {
    let acks = acks_of(node, name);
    if fs::metadata(&acks).map_or(0, |metadata| metadata.len()) == 0 {
        return 0; // Then nothing has to be there, not even the directory.
    }
    let mut command = Command::new(compiled("fsync_writer"));
    command.arg("verify").arg(node.tree().join(name)).arg(acks);
    let count = Said::from(command.output().expect("it is compiled")).succeeded();
    count.trim().parse().expect("a number")
}
