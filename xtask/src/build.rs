//! `cargo xtask build`: the agent, and the shim beside it; and the agent as images have it, linked statically.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
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

/// What makes a program that needs no loader and no library, for every image. Only the last step knows of it: libraries are
/// compiled as for any other program.
const STATICALLY: [&str; 2] = ["-C", "target-feature=+crt-static"];

/// Builds the agent as images have it.
pub fn for_images(sh: &Shell) -> Result<PathBuf> {
    const FLAGS: [&str; 2] = STATICALLY;
    cmd!(
        sh,
        "cargo rustc --quiet --locked --release --package storeshim-agent --bin storeshim -- {FLAGS...}"
    )
    .quiet()
    .run()?;
    // Under another name: the next build makes the other one again.
    let program = static_program("release")?;
    sh.copy_file(workspace::target()?.join("release/storeshim"), &program)?;
    Ok(program)
}

/// Links what the tests test as images have it: seconds, because it is compiled already, or will be needed soon.
pub fn tested_for_images(sh: &Shell) -> Result<PathBuf> {
    let built =
        cmd!(sh, "cargo test --quiet --locked --workspace --no-run --message-format json").quiet().read()?;
    let library = built
        .lines()
        .find_map(library_of_agent)
        .context("cargo does not say where the agent's library is")?;
    let libraries = library.parent().unwrap_or(Path::new("."));
    let program = static_program("debug")?;
    // The library is of a profile that unwinds, which a program that does not may use.
    let sure = ["-C", "panic=abort", "-C", "strip=debuginfo"];
    cmd!(
        sh,
        "rustc --edition 2024 --crate-name storeshim agent/src/main.rs -o {program} {STATICALLY...} {sure...}"
    )
    .arg("--extern")
    .arg(format!("storeshim_agent={}", library.display()))
    .arg("-L")
    .arg(format!("dependency={}", libraries.display()))
    .quiet()
    .run()
    .context("the agent cannot be linked statically, as images have it")?;
    Ok(program)
}

fn static_program(profile: &str) -> Result<PathBuf> {
    let folder = workspace::target()?.join("static").join(profile);
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder.join("storeshim"))
}

/// The library's file, if this message of cargo is of the agent's library.
fn library_of_agent(message: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    if message["reason"] != "compiler-artifact"
        || message["target"]["name"] != "storeshim_agent"
        || message["profile"]["test"] != false
    {
        return None;
    }
    let files = message["filenames"].as_array()?.iter().filter_map(|file| file.as_str());
    files.map(PathBuf::from).find(|file| file.extension().is_some_and(|kind| kind == "rlib"))
}
