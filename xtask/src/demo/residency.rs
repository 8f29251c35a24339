//! `cargo xtask demo residency`: a volume through a cache of an eighth of its size. The work is done by a test of `tests/`.

use anyhow::{Context, Result};
use clap::Args;
use xshell::cmd;

use crate::{build, workspace};

/// Arguments of `cargo xtask demo residency`.
#[derive(Args)]
pub struct Arguments {
    /// How many MiB of data.
    #[arg(long, value_name = "MIB")]
    size: Option<u32>,
}

pub fn main(arguments: &Arguments) -> Result<()> {
    let sh = workspace::shell()?;
    let built = build::named(&sh, true)?;
    let mut show = cmd!(
        sh,
        "cargo test --quiet --locked --workspace --test shows -- --ignored --exact --nocapture residency"
    )
    .env("STORESHIM_BIN", built.program)
    .env("STORESHIM_SHIM", built.shim);
    if let Some(size) = arguments.size {
        show = show.env("STORESHIM_SHOW_MIB", size.to_string());
    }
    show.quiet().run().context("it does not hold: see above")
}
