//! `cargo xtask run`: a program in /storage, on a store, state and run directory below the target folder. Needs no
//! root and no setting.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Args;

use crate::{build, workspace};

/// Where the volume is shown.
const PREFIX: &str = "/storage";
/// Longest path of a run directory whose socket the kernel still takes.
const RUN_DIR_MAX: usize = 90;

/// Arguments of `cargo xtask run`.
#[derive(Args)]
pub struct Arguments {
    /// Build the agent optimised.
    #[arg(long)]
    release: bool,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    command: Vec<std::ffi::OsString>,
}

pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let built = build::build(&workspace::shell()?, arguments.release)?;
    let home = workspace::target()?.join("storeshim");
    let mut mount = std::ffi::OsString::from(format!("{PREFIX}=file://"));
    mount.push(home.join("store"));
    let status = Command::new(built.program)
        .env("STORESHIM_SHIM", built.shim)
        .arg("run")
        .arg("--run-dir")
        .arg(run_dir(&home))
        .arg("--state-dir")
        .arg(home.join("state"))
        .arg("--mount")
        .arg(mount)
        .args(["--chdir", PREFIX, "--"])
        .args(&arguments.command)
        .status()
        .context("cannot start storeshim")?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

/// Below the target folder, unless that is too deep for a socket.
fn run_dir(home: &Path) -> PathBuf {
    let near = home.join("run");
    if near.as_os_str().len() <= RUN_DIR_MAX {
        return near;
    }
    // Different for each checkout, the same at each call.
    let sum =
        home.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
            (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    PathBuf::from(format!("/dev/shm/storeshim-{sum:016x}"))
}
