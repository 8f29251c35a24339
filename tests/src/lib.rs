//! Harness for the end-to-end tests: a node that can be lost, a tree that can be compared, an S3 server and a
//! proxy that can be made to misbehave. It must not know the agent's insides: it drives programs, as a user does.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what fails in the harness is a failed test, and says so best where it happens"
)]

pub mod cold;
pub mod contents;
pub mod delay;
pub mod installed;
pub mod node;
pub mod pids;
pub mod programs;
pub mod proxy;
pub mod s3;
pub mod strace;
pub mod suites;
pub mod tls;
pub mod tree;
pub mod ways;
pub mod writer;
