//! `cargo xtask lint`: formatting, compiler lints, and what neither of them sees.

mod tidy;

use anyhow::{Result, bail};
use xshell::cmd;

use crate::workspace;

pub fn main() -> Result<()> {
    let sh = workspace::shell()?;
    cmd!(sh, "cargo fmt --all -- --check").quiet().run()?;
    let findings = tidy::look(&sh)?;
    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        bail!("{} untidy places", findings.len());
    }
    cmd!(sh, "cargo clippy --quiet --locked --workspace --all-targets -- -D warnings").quiet().run()?;
    println!("lint: nothing found");
    Ok(())
}
