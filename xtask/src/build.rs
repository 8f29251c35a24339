//! `cargo xtask build`: the agent, and the shim beside it.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use xshell::{Shell, cmd};

use crate::workspace;

/// Arguments of `cargo xtask build`.
#[derive(Args)]
pub struct Arguments {
    /// Optimise the agent, too.
    #[arg(long)]
    pub release: bool,
}

/// What was built.
pub struct Built {
    /// The program `storeshim`.
    pub program: PathBuf,
    /// The library `libstoreshim.so`.
    pub shim: PathBuf,
}

pub fn main(arguments: &Arguments) -> Result<()> {
    let built = build(&workspace::shell()?, arguments.release)?;
    println!("{}\n{}", built.program.display(), built.shim.display());
    Ok(())
}

/// Builds both. The shim is always optimised: it runs inside of every call of the app. The agent's own code is only
/// for `release`; its dependencies are in any case.
pub fn build(sh: &Shell, release: bool) -> Result<Built> {
    let shim = shim(sh)?;
    // As the tests build it: the features that the whole workspace asks of its dependencies, which so are compiled once. What is
    // released has its own only.
    let selected: &[&str] = if release {
        &["--release", "--package", "storeshim-agent"]
    } else {
        &["--workspace", "--bin", "storeshim"]
    };
    cmd!(sh, "cargo build --quiet --locked {selected...}").quiet().run()?;
    let folder = if release { "release" } else { "debug" };
    Ok(Built { program: workspace::target()?.join(folder).join("storeshim"), shim })
}

/// What `STORESHIM_BIN` and `STORESHIM_SHIM` name, as for the tests; built where they name nothing.
pub fn named(sh: &Shell, release: bool) -> Result<Built> {
    let named = |name| std::env::var_os(name).map(PathBuf::from);
    match (named("STORESHIM_BIN"), named("STORESHIM_SHIM")) {
        (Some(program), Some(shim)) => Ok(Built { program, shim }),
        _ => build(sh, release),
    }
}

/// Builds the shim alone.
pub fn shim(sh: &Shell) -> Result<PathBuf> {
    cmd!(sh, "cargo build --quiet --locked --release --package storeshim-shim").quiet().run()?;
    Ok(workspace::target()?.join("release/libstoreshim.so"))
}
