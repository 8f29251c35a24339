//! A pid namespace of its own for a whole test: the agent then sees every process there is, which it does not where the machine's
//! first one lets nobody look into it, and may evict what they have open. It must not know what is tested.

use std::process::{Command, Stdio};

/// Set inside of one.
const INSIDE: &str = "STORESHIM_E2E_OWN_PIDS";

/// Where the calling test goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pids {
    /// In a namespace of its own.
    Own,
    /// Among all processes of the machine: no other can be made here.
    Shared,
    /// Nowhere: it has succeeded in a namespace of its own.
    Done,
}

/// Runs the test `name` of this program once more in a pid namespace of its own, where one can be made, and fails where that
/// fails. To be called first; the test returns for [`Pids::Done`].
#[track_caller]
pub fn own(name: &str) -> Pids {
    if std::env::var_os(INSIDE).is_some() {
        return Pids::Own;
    }
    let unshared = || {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"]).stdin(Stdio::null());
        command
    };
    if !unshared().arg("true").output().is_ok_and(|output| output.status.success()) {
        eprintln!("no pid namespace can be made here (it takes CAP_SYS_ADMIN)");
        return Pids::Shared;
    }
    let mut again = unshared();
    again.arg(std::env::current_exe().expect("a program")).args(["--exact", name, "--nocapture"]);
    let status = again.env(INSIDE, "1").status().expect("it ran a moment ago");
    assert!(status.success(), "{name} fails in a pid namespace of its own: {status}");
    Pids::Done
}
