//! `storeshim doctor`: what it says of programs, of mounts that are well or not, and whether the shim covers the C libraries
//! at hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use storeshim_tests::node::{FileStore, Node, Said, Setup};
use storeshim_tests::programs::{self, Language, crate_dir, require, rustix};

const LIMIT: Duration = Duration::from_secs(100);

fn doctor(node: &Node, arguments: &[&str]) -> Said {
    let mut command = node.agent_command("doctor");
    command.args(arguments);
    node.run_to_end(command, LIMIT)
}

/// What it says of a program, without a trial of the mount.
fn of_program(program: &str) -> Said {
    let store = FileStore::new();
    doctor(&Node::new(Setup::identity(store.url())), &["--no-self-test", program])
}

#[track_caller]
fn says(said: &Said, code: i32, words: &[&str]) {
    assert_eq!(said.code, code, "{}{}", said.out, said.err);
    for word in words {
        assert!(said.out.contains(word), "no `{word}` in\n{}{}", said.out, said.err);
    }
    assert!(!said.out.contains('\x1b'), "colours without a terminal");
}

#[test]
fn ordinary_programs() {
    says(
        &of_program("/bin/ls"),
        0,
        &["[", "/bin/ls", "dynamic, glibc 2.", "the shim loads", "No trouble found."],
    );
    require("node");
    let node = of_program("node");
    says(&node, 0, &["it is /usr/bin/node", "the shim loads", "libc's syscall()"]);
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    fs::write(&script, "#!/usr/bin/env python3\n").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    says(
        &of_program(script.to_str().unwrap()),
        0,
        &["a script: ", "/usr/bin/env", "python3", "the shim loads"],
    );
}

#[test]
fn programs_that_the_shim_does_not_see() {
    let source = crate_dir().join("programs/fsync_writer.c");
    let plain = programs::built(Language::StaticC, &source);
    says(
        &of_program(plain.to_str().unwrap()),
        1,
        &["static: no dynamic loader", "placement = \"identity\"", "audit"],
    );
    let musl = programs::built(Language::MuslC, &source);
    says(&of_program(musl.to_str().unwrap()), 0, &["dynamic, musl 1.", "the shim loads"]);
    // Built without inlining, which hides the numbers: it cannot be told which calls they are, but that there are some.
    let raw = rustix(false);
    says(
        &of_program(raw.to_str().unwrap()),
        2,
        &["system calls past libc whose number cannot be told", "--net=sud"],
    );
    let through_libc = rustix(true);
    says(&of_program(through_libc.to_str().unwrap()), 0, &["no system calls past libc"]);
    says(&of_program("no-such-program"), 2, &["there is no no-such-program in PATH"]);
}

#[test]
fn a_mount_is_tried() {
    for setup in [Setup::identity as fn(String) -> Setup, Setup::translated] {
        let store = FileStore::new();
        let node = Node::started(setup(store.url()));
        let said = doctor(&node, &[]);
        let prefix = format!("Self-test of {}", node.prefix().display());
        says(
            &said,
            0,
            &[&prefix, "its heartbeat is", "unix socket", "lies in the tree", "no change that was not told"],
        );
        assert_eq!(fs::read_dir(node.tree()).unwrap().count(), 0, "something is left behind");
        let json: Value = serde_json::from_str(&doctor(&node, &["--json"]).succeeded()).unwrap();
        assert_eq!(json["status"], 0);
        let sections = json["sections"].as_array().unwrap();
        let trial =
            sections.iter().find(|section| section["title"].as_str().unwrap().starts_with("Self-test"));
        let findings = trial.unwrap()["findings"].as_array().unwrap();
        assert!(findings.iter().all(|finding| finding["severity"] == "good"), "{findings:?}");
    }
}

#[test]
fn without_an_agent_a_private_volume_is_tried() {
    let store = FileStore::new();
    let node = Node::new(Setup::identity(store.url()));
    let temporary = node.outside();
    let mut command = node.agent_command("doctor");
    command.env("TMPDIR", &temporary);
    let said = node.run_to_end(command, LIMIT);
    says(&said, 0, &["none is running here", "Self-test of ", "(translated)", "no change that was not told"]);
    assert_eq!(fs::read_dir(temporary).unwrap().count(), 0, "something is left behind");
}

/// The canary: a library that does nothing is no shim.
#[test]
fn a_shim_that_does_nothing_is_found() {
    let store = FileStore::new();
    let node = Node::started(Setup::translated(store.url()));
    let idle = node.outside().join("libidle.so");
    let made = std::process::Command::new("cc")
        .args(["-shared", "-nostdlib", "-x", "c", "/dev/null", "-o"])
        .arg(&idle)
        .status()
        .unwrap();
    assert!(made.success());
    let mut command = node.agent_command("doctor");
    command.env("STORESHIM_SHIM", &idle);
    says(&node.run_to_end(command, LIMIT), 1, &["hooks nothing", "create a directory: ", "not in the tree"]);
}

#[test]
fn a_stopped_agent_is_noticed() {
    let store = FileStore::new();
    let node = Node::started(Setup::identity(store.url()));
    let said = node.halted(|| doctor(&node, &["--no-self-test"]));
    assert_ne!(said.code, 0, "{}", said.out);
}

/// Every exported function of both C libraries that can reach a file is hooked, or left out for a reason; and what they do
/// not have but others do, as well.
#[test]
fn the_shim_covers_both_c_libraries() {
    let musl = PathBuf::from(format!("/lib/ld-musl-{}.so.1", std::env::consts::ARCH));
    require(musl.to_str().unwrap());
    let store = FileStore::new();
    let node = Node::new(Setup::identity(store.url()));
    let mut command = node.bare_command();
    command.args(["doctor", "--strict", "--libc"]).arg(glibc()).arg("--libc").arg(&musl);
    let said = node.run_to_end(command, LIMIT);
    says(&said, 0, &["glibc 2.", "musl 1.", "hooked / excluded / missing = ", " / 0\n"]);
}

/// The libc of this very test.
fn glibc() -> PathBuf {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let libc = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .find(|path| Path::new(path).file_name().is_some_and(|name| name == "libc.so.6"));
    libc.expect("the tests run on glibc").into()
}
