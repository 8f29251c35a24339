//! The Worker's own suite: formatting, types and lints, its tests on the real runtime, and what its deployment would send. It
//! must not know what they test.

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use super::needs;
use crate::workspace;

/// The scripts of `worker/package.json` that must end well, and what each checks.
const SCRIPTS: [(&str, &str); 3] = [
    ("check", "formatting, types or lints of the Worker are not in order"),
    ("test", "there are failed tests of the Worker above"),
    ("deploy:check", "the example's Worker could not be deployed"),
];

/// Installs what the suite needs; whether it is there. Where npm cannot be reached, everything on the runtime of Workers is
/// skipped, and says so.
pub fn provide(sh: &Shell) -> bool {
    match needs::provide_worker(sh) {
        Ok(()) => true,
        Err(error) => {
            eprintln!(
                "the Worker's suite, and all tests on the runtime of Workers, will be skipped: {error:#}"
            );
            false
        }
    }
}

/// Runs the suite.
pub fn main(sh: &Shell) -> Result<()> {
    let _in = sh.push_dir(workspace::root().join("worker"));
    for (script, wrong) in SCRIPTS {
        cmd!(sh, "npm run --silent {script}")
            .env("PATH", needs::path_with_tools()?)
            // Nobody is asked, and nothing told, by a test.
            .env("CI", "1")
            .env("WRANGLER_SEND_METRICS", "false")
            .run()
            .context(wrong)?;
    }
    Ok(())
}
