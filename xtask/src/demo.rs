//! `cargo xtask demo`: what a release shows, as a report. The work is done by a test of `tests/`.

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use xshell::cmd;

use crate::{build, workspace};

/// Arguments of `cargo xtask demo`.
#[derive(Args)]
pub struct Arguments {
    /// What to show.
    what: Show,
    /// How many MiB of data, where that is a question.
    #[arg(long, value_name = "MIB")]
    size: Option<u32>,
}

/// What there is to show.
#[derive(Clone, Copy, ValueEnum)]
enum Show {
    /// 2 GiB through a cache of 256 MiB: git fsck, SQLite's integrity check, a checksum of every file.
    Residency,
}

pub fn main(arguments: &Arguments) -> Result<()> {
    let name = match arguments.what {
        Show::Residency => "residency",
    };
    let sh = workspace::shell()?;
    let built = build::build(&sh, true)?;
    let mut show = cmd!(
        sh,
        "cargo test --quiet --locked --workspace --test shows -- --ignored --exact --nocapture {name}"
    )
    .env("STORESHIM_BIN", built.program)
    .env("STORESHIM_SHIM", built.shim);
    if let Some(size) = arguments.size {
        show = show.env("STORESHIM_SHOW_MIB", size.to_string());
    }
    show.quiet().run().context("it does not hold: see above")
}
