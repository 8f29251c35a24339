//! `cargo xtask coverage`: whether the shim covers the C libraries at hand. The work is done by `storeshim doctor --libc`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use xshell::cmd;

use crate::test::needs;
use crate::{build, workspace};

pub fn main() -> Result<()> {
    let sh = workspace::shell()?;
    let (glibc, musl) = (glibc()?, musl());
    needs::provide_one(&sh, &musl, "musl")?;
    let build::Built { program, shim } = build::build(&sh, false)?;
    cmd!(sh, "{program} doctor --strict --libc {glibc} --libc {musl}")
        .env("STORESHIM_SHIM", shim)
        .quiet()
        .run()
        .context("the shim does not cover the C libraries: hook what is missing, or give a reason in exclusions.txt")
}

/// The libc that this very program runs on.
fn glibc() -> Result<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let libc = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| {
        let name = Path::new(path).file_name().unwrap_or_default().to_string_lossy();
        name == "libc.so.6" || name.starts_with("libc-2.")
    });
    match libc {
        Some(path) => Ok(PathBuf::from(path)),
        None => bail!("this program runs on another libc than glibc: run it where glibc is"),
    }
}

/// The place that musl's loader has by convention.
fn musl() -> String {
    format!("/lib/ld-musl-{}.so.1", std::env::consts::ARCH)
}
