//! Programs of ours that change a file in many ways (`programs/descriptors.c`, `programs/processes.c`): each way gets a
//! file, all run side by side, and every change must have been told by the time the last of them has ended. It must not
//! know the ways.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::node::{Node, Said, find};

/// Longest run of one way.
const LIMIT: Duration = Duration::from_secs(60);
/// Exit status of a way that this machine does not allow.
const SPARED: i32 = 77;
/// Ways that run at the same time.
const ABREAST: usize = 8;

/// What came of the ways.
#[derive(Debug)]
pub struct Outcome {
    /// How each failed that did.
    pub failures: Vec<String>,
    /// Why each was not tried that was not.
    pub spared: Vec<String>,
    /// Changes that only the audit found.
    pub missed: u64,
}

/// Runs every way that `program` lists, on files in the folder `name` of the volume, and audits the tree afterwards.
///
/// The agent of `node` must not audit by itself meanwhile.
#[track_caller]
pub fn run(node: &Node, program: &Path, name: &str) -> Outcome {
    let list = Command::new(program).arg("list").output().expect("it runs without the shim");
    let ways = String::from_utf8(list.stdout).expect("names are ASCII");
    let ways: Vec<&str> = ways.lines().collect();
    assert!(list.status.success() && ways.len() > 10, "{program:?} lists {ways:?}");
    let folder = node.prefix().join(name);
    let folder = folder.to_str().expect("paths of tests are UTF-8");
    node.sh(&format!(
        "mkdir {folder}; for way in {}; do echo before > {folder}/$way; : > {folder}/$way.old; done",
        ways.join(" ")
    ));
    node.flush();
    let before = missed(node);
    let mut outcome = Outcome { failures: Vec::new(), spared: Vec::new(), missed: 0 };
    for abreast in ways.chunks(ABREAST) {
        let said: Vec<Said> = std::thread::scope(|scope| {
            let start = |way: &&str| {
                let file = format!("{folder}/{way}");
                let way = (*way).to_owned();
                scope.spawn(move || one(node, program, &way, &file))
            };
            let started: Vec<_> = abreast.iter().map(start).collect();
            started.into_iter().map(|thread| thread.join().expect("it was waited for")).collect()
        });
        for (way, said) in abreast.iter().zip(said) {
            let file = node.tree().join(name).join(way);
            let text = fs::read_to_string(&file).unwrap_or_else(|error| format!("unreadable: {error}"));
            if said.code == SPARED {
                outcome.spared.push(said.err.trim().to_owned());
            } else if said.code != 0 || text != format!("before\n{way}\n") {
                outcome.failures.push(format!("{way}: status {}, {text:?}, {}", said.code, said.err.trim()));
            }
        }
    }
    node.flush();
    outcome.missed = missed(node) - before;
    outcome
}

fn one(node: &Node, program: &Path, way: &str, file: &str) -> Said {
    let mut command = node.app(program);
    command.arg(way).arg(file).stdout(Stdio::null());
    node.run_to_end(command, LIMIT)
}

/// Changes that only audits have found since the agent's start.
#[track_caller]
pub fn missed(node: &Node) -> u64 {
    find(&node.status(), "missed_changes").and_then(serde_json::Value::as_u64).unwrap_or(0)
}

/// What the agent's log says of changes that nobody told, with the names that their files have now.
pub fn untold(node: &Node) -> Vec<String> {
    let mut names = std::collections::HashMap::new();
    let listed =
        Command::new("find").arg(node.tree()).args(["-printf", "ino=%i %P\n"]).output().expect("find runs");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    names.extend(listed.lines().filter_map(|line| line.split_once(' ')));
    let log = node.log();
    let lines = log.lines().filter(|line| line.contains("no intent had told"));
    lines
        .map(|line| {
            let ino = line.split(' ').find(|word| word.starts_with("ino="));
            let now = ino.and_then(|ino| names.get(ino)).unwrap_or(&"gone");
            format!("{line} ({now})")
        })
        .collect()
}
