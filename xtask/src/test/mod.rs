//! `cargo xtask test`: everything that must hold, from the models of the protocol to whole programs on real servers. The tests
//! of this workspace come last, so that the last line is their summary.

pub mod needs;
mod worker;

use anyhow::{Context, Result};
use clap::Args;
use xshell::cmd;

use crate::{build, lint, workspace};

/// What `--full` makes of the campaigns, whose size is a variable of theirs.
const FULL: [(&str, &str); 6] = [
    ("STORESHIM_ROUNDS", "1000"),
    ("STORESHIM_KILLS", "100"),
    ("STORESHIM_RESTORES", "200"),
    ("STORESHIM_PROCESSES", "5000"),
    ("STORESHIM_FORKS", "10000"),
    ("STORESHIM_TORTURE_SECONDS", "300"),
];

/// Arguments of `cargo xtask test`.
#[derive(Args)]
pub struct Arguments {
    /// Only the tests whose name contains this; no lints, no models.
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Long campaigns instead of short ones.
    #[arg(long)]
    full: bool,
}

pub fn main(arguments: &Arguments) -> Result<()> {
    let sh = workspace::shell()?;
    needs::provide(&sh)?;
    let worker = worker::provide(&sh);
    if arguments.filter.is_none() {
        lint::main()?;
        if worker {
            worker::main(&sh)?;
        }
    }
    let target = workspace::target()?;
    if arguments.filter.is_none() {
        // A target folder of its own: the flag would rebuild everything, and the next build rebuild it back.
        let models = target.join("loom");
        cmd!(sh, "cargo test --quiet --locked --release --package storeshim-protocol --lib loom")
            .env("CARGO_TARGET_DIR", models)
            .env("RUSTFLAGS", "--cfg loom")
            .run()
            .context("the protocol's models do not hold")?;
    }
    let shim = build::shim(&sh)?;
    let images = build::tested_for_images(&sh)?;
    let filter = arguments.filter.iter();
    // The runner's own build makes the agent, too (its package has tests of the program), with the features that the
    // whole workspace asks of its dependencies: another build of it would compile most of them once more.
    let mut tests = cmd!(sh, "cargo nextest run --locked --workspace --profile ci {filter...}")
        .env("STORESHIM_BIN", target.join("debug").join("storeshim"))
        .env("STORESHIM_SHIM", shim)
        .env("STORESHIM_STATIC_BIN", images)
        .env("PATH", needs::path_with_tools()?);
    if arguments.full {
        tests = tests.envs(FULL);
    }
    // Ends with the runner's own summary.
    tests.run().context("there are failed tests above")
}
