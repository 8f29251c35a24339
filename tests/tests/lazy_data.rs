//! Files that are not on this disk yet: on a node that has nothing of its volume, every way to read one gives its bytes, and
//! every way to change one changes what is there and keeps the rest, in the volume too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::atomic::Ordering;
use std::time::Duration;

use storeshim_tests::node::{Node, Setup};
use storeshim_tests::programs::{crate_dir, require};
use storeshim_tests::s3::{BUCKET, S3Server};

/// How long the store takes for each answer, in milliseconds.
const FAR: u64 = 20;
/// Longest run of the script.
const PATIENCE: Duration = Duration::from_secs(240);

/// Runs one part of the script.
#[track_caller]
fn run(node: &Node, part: &str) {
    require("python3");
    let script = std::fs::read_to_string(crate_dir().join("programs/scripts/lazy_data.py")).unwrap();
    let mut command = node.app("/usr/bin/python3");
    command.args(["-c", &script, part]).env("OUTSIDE", node.outside());
    let said = node.run_to_end(command, PATIENCE).succeeded();
    assert!(said.ends_with("all is right\n"), "{part}: {said}\n--- agent\n{}", node.log());
}

fn every_way(server: &S3Server, setup: Setup) {
    let mut node = Node::started(setup);
    run(&node, "fill");
    node.flush();
    node.lose();
    server.knobs().delay_ms.store(FAR, Ordering::Relaxed);
    node.start();
    run(&node, "check");
    node.flush();
    server.knobs().delay_ms.store(0, Ordering::Relaxed);
    node.lose();
    node.start();
    run(&node, "after");
}

#[test]
fn translated() {
    let server = S3Server::start();
    let url = format!("s3://{BUCKET}/volume");
    every_way(&server, Setup::translated(url).with_s3(&server.endpoint()).lazy());
}

#[test]
fn identity() {
    let server = S3Server::start();
    every_way(&server, Setup::on_s3(&server).lazy());
}

/// The second net catches what makes its system calls itself.
#[test]
fn by_the_net() {
    let server = S3Server::start();
    let mut node = Node::started(Setup::on_s3(&server).lazy());
    node.sh("head -c 3000000 /dev/urandom > a; head -c 3000000 /dev/urandom > b");
    let sums = node.sh("md5sum a b");
    node.flush();
    node.lose();
    node.start();
    let mut command = node.app("/bin/sh");
    command.args(["-c", "cd \"$STORAGE\"; md5sum a b"]).env("STORESHIM_NET", "sud");
    assert_eq!(node.run_to_end(command, PATIENCE).succeeded(), sums);
}
