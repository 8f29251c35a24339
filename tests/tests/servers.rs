//! The servers that the other tests rely on, tried with a client that is not ours: what they keep, and what they break.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;

use storeshim_tests::installed::{Foreign, python_with_boto3};
use storeshim_tests::node::Said;
use storeshim_tests::programs::crate_dir;
use storeshim_tests::proxy::Proxy;
use storeshim_tests::s3::{ACCESS_KEY, BUCKET, S3Server, SECRET_KEY};

fn client(endpoint: &str, access: &str, secret: &str, what: &str) -> Said {
    let mut command = Command::new(python_with_boto3());
    command.arg(crate_dir().join("programs/scripts/s3_client.py"));
    command.args([endpoint, BUCKET, access, secret, what]);
    command.output().unwrap().into()
}

fn winners(endpoint: &str, access: &str, secret: &str) -> u32 {
    client(endpoint, access, secret, "race").succeeded().trim().parse().unwrap()
}

#[test]
fn our_server_is_an_s3_server() {
    let server = S3Server::start();
    client(&server.endpoint(), ACCESS_KEY, SECRET_KEY, "full").succeeded();
    assert!(server.counters().puts() >= 50 && server.counters().all() > server.counters().puts());
}

#[test]
fn our_server_through_the_proxy() {
    let server = S3Server::start();
    let proxy = Proxy::start(server.address());
    client(&proxy.endpoint(), ACCESS_KEY, SECRET_KEY, "full").succeeded();
}

#[test]
fn our_server_breaks_as_told() {
    let server = S3Server::start();
    let race = || winners(&server.endpoint(), ACCESS_KEY, SECRET_KEY);
    server.knobs().read_only.store(true, Relaxed);
    assert_eq!(race(), 0);
    server.knobs().heal();
    server.knobs().too_many_pct.store(100, Relaxed);
    assert_eq!(race(), 0);
    server.knobs().heal();
    server.knobs().ambiguous_pct.store(100, Relaxed);
    assert_eq!(race(), 0, "every answer is an error");
    assert_eq!(server.keys().len(), 1, "and yet one was performed");
    server.knobs().heal();
    server.knobs().ignore_if_none_match.store(true, Relaxed);
    assert_eq!(race(), 20);
}

#[test]
fn s3rver_ignores_conditional_writes() {
    assert_eq!(winners(&Foreign::s3rver().endpoint(), "S3RVER", "S3RVER"), 20);
}

#[test]
fn rclone_ignores_conditional_writes() {
    assert!(winners(&Foreign::rclone().endpoint(), ACCESS_KEY, SECRET_KEY) > 1);
}

#[test]
fn moto_keeps_conditional_writes() {
    assert_eq!(winners(&Foreign::moto().endpoint(), ACCESS_KEY, SECRET_KEY), 1);
}
