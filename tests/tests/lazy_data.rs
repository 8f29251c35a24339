//! Files that are not on this disk yet: on a node that has nothing of its volume, every way to read one gives its bytes, and
//! every way to change one changes what is there and keeps the rest, in the volume too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::atomic::Ordering;
use std::time::Duration;

use storeshim_tests::node::{Node, Setup};
use storeshim_tests::programs::{Language, built, crate_dir, require};
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

/// stdio reads past all hooks: what takes the number of a stream is brought, or does not take it.
fn what_takes_the_number_of_a_stream(language: Language) {
    const WAYS: [&str; 11] = [
        "close_and_open",
        "close_and_open_by_number",
        "close_and_openat2_by_number",
        "close_and_getfd_by_number",
        "read_and_append",
        "by_dup2",
        "by_dup3",
        "close_and_dup",
        "close_and_fcntl",
        "another_stream",
        "received",
    ];
    let server = S3Server::start();
    let mut node = Node::started(Setup::on_s3(&server).lazy().with("patience", "1s"));
    let program = built(language, &crate_dir().join("programs/redirected.c"));
    let run = |node: &Node, file: &str, way: &str| {
        let mut command = node.app(&program);
        command.arg(node.prefix().join(file)).arg(way);
        node.run_to_end(command, PATIENCE)
    };
    // Each of its own directory and too large to come with others.
    let file = |way: &str, n: u32| format!("{way}-{n}/file");
    for way in WAYS {
        node.sh(&format!(
            "for n in 1 2; do mkdir {way}-$n; head -c 5000000 /dev/urandom > {way}-$n/file; done"
        ));
    }
    let sums = WAYS.map(|way| [1, 2].map(|n| run(&node, &file(way, n), way).succeeded()));
    node.flush();
    node.lose();
    node.start();
    node.await_names();
    for (way, [right, _]) in WAYS.iter().zip(&sums) {
        assert_eq!(&run(&node, &file(way, 1), way).succeeded(), right, "{way}");
    }
    server.knobs().internal_error_pct.store(100, Ordering::Relaxed);
    for way in WAYS {
        let said = run(&node, &file(way, 2), way);
        assert_eq!(said.code, 2, "{way} of what cannot be brought: {said:?}");
    }
    server.knobs().heal();
    for (way, [_, right]) in WAYS.iter().zip(&sums) {
        assert_eq!(&run(&node, &file(way, 2), way).succeeded(), right, "{way}, later");
    }
}

#[test]
fn what_takes_the_number_of_a_stream_on_glibc() {
    what_takes_the_number_of_a_stream(Language::C);
}

#[test]
fn what_takes_the_number_of_a_stream_on_musl() {
    what_takes_the_number_of_a_stream(Language::MuslC);
}
