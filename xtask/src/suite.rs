//! `cargo xtask suite`: other people's test suites, natively and in volumes, side by side. The work is done by
//! a test of `tests/`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use xshell::cmd;

use crate::{build, workspace};

/// Arguments of `cargo xtask suite`.
#[derive(Args)]
pub struct Arguments {
    /// A subset that takes seconds: what `cargo xtask test` runs.
    #[arg(long)]
    quick: bool,
    /// In volumes, with a cache of a tenth of the suite's data, evicted all the time.
    #[arg(long)]
    cache_tenth: bool,
    /// Only natively.
    #[arg(long)]
    native_only: bool,
    /// Only these cases, as the suite itself takes them.
    #[arg(long, value_name = "CASES")]
    only: Option<String>,
    /// Besides natively, only here: translated, identity, or broken, which is natively over a library that does
    /// things wrong.
    #[arg(long, value_name = "PLACE")]
    place: Option<String>,
    /// Leave the nodes' directories behind and say where.
    #[arg(long)]
    keep: bool,
    /// Suites; without any, all of them.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

pub fn main(arguments: &Arguments) -> Result<()> {
    let sh = workspace::shell()?;
    let shim = build::shim(&sh)?;
    let mut words: Vec<&str> = Vec::new();
    let flags = [
        (arguments.quick, "--quick"),
        (arguments.cache_tenth, "--cache-tenth"),
        (arguments.native_only, "--native-only"),
    ];
    for (is, flag) in flags {
        words.extend(is.then_some(flag));
    }
    for (value, flag) in [(&arguments.only, "--only"), (&arguments.place, "--place")] {
        words.extend(value.iter().flat_map(|value| [flag, value]));
    }
    words.extend(arguments.names.iter().map(String::as_str));
    // A test, since the harness tells by panics what is wrong. Those of the agent have its program built, with the
    // features that the whole workspace asks of its dependencies.
    cmd!(sh, "cargo test --quiet --locked --workspace --test suites --test command_line --no-run").run()?;
    let or_set = |name: &str, path: PathBuf| std::env::var_os(name).unwrap_or(path.into());
    let mut suites = cmd!(
        sh,
        "cargo test --quiet --locked --workspace --test suites -- --ignored --exact --nocapture whole"
    )
    .env("STORESHIM_SUITE", words.join("\n"))
    .env("STORESHIM_BIN", or_set("STORESHIM_BIN", workspace::target()?.join("debug/storeshim")))
    .env("STORESHIM_SHIM", or_set("STORESHIM_SHIM", shim));
    if arguments.keep {
        suites = suites.env("STORESHIM_E2E_KEEP", "1");
    }
    suites.quiet().run().context("not all is as it must be: see the table above")
}
