//! Other people's test suites, run natively and in a volume: which there are, how one is run, and what must hold
//! afterwards. The verdict is never "no failures" but *the same results as natively*. It must not know what a suite
//! tests.

mod command;
mod compare;
mod report;
mod run;

use std::time::Duration;

pub use command::Asked;
pub use compare::{Difference, Known, Outcome, Results, compare};
pub use report::{Line, Report};
pub use run::{Options, Place, Run, prepare, run};

use crate::node::User;

/// A suite: a script of `tests/suites` and how it is run.
#[derive(Clone, Copy, Debug)]
pub struct Suite {
    /// Its name on the command line, in the table and in `differences.txt`.
    pub name: &'static str,
    /// The script in `tests/suites`, without its `.sh`.
    pub script: &'static str,
    /// Who runs it, and the agent.
    pub user: User,
    /// Settings of the mount, `(key, value)`.
    pub settings: &'static [(&'static str, &'static str)],
    /// How often everything is flushed meanwhile: an audit each time, so that an intent that is missing is found before
    /// a later one covers it.
    pub flushes: Option<Duration>,
    /// Longest run.
    pub limit: Duration,
}

/// A suite that root runs, flushed and committed all the time.
const BUSY: Suite = Suite {
    name: "",
    script: "",
    user: User::Current,
    settings: &[("max_lag", "100ms")],
    flushes: Some(Duration::from_millis(700)),
    limit: Duration::from_secs(1800),
};
/// A suite of large programs, whose commits are those of every day. It often leaves little behind: the audits meanwhile
/// see the most of it.
const LARGE: Suite =
    Suite { settings: &[], flushes: Some(Duration::from_secs(4)), limit: Duration::from_secs(7200), ..BUSY };

/// All of them. To add one: write `tests/suites/NAME.sh` after the model of `fsx.sh`, and a line here.
pub const SUITES: [Suite; 11] = [
    Suite { name: "pjdfstest", script: "pjdfstest", ..BUSY },
    Suite { name: "pjdfstest-user", script: "pjdfstest", user: User::Ordinary, ..BUSY },
    Suite { name: "fsx", script: "fsx", ..BUSY },
    Suite { name: "stress-ng", script: "stress-ng", ..BUSY },
    Suite { name: "coreutils", script: "coreutils", ..LARGE },
    Suite { name: "findutils", script: "findutils", ..LARGE },
    Suite { name: "cpython", script: "cpython", ..LARGE },
    Suite { name: "postgres", script: "postgres", ..LARGE },
    Suite { name: "sqlite", script: "sqlite", ..LARGE },
    Suite { name: "tools", script: "tools", ..LARGE },
    Suite { name: "users", script: "users", ..BUSY },
];

/// The suites of a name: that of one, or that of a script, which may be several.
pub fn named(name: &str) -> Vec<&'static Suite> {
    SUITES.iter().filter(|suite| suite.name == name || suite.script == name).collect()
}
