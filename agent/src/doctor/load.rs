//! Whether the shim gets into a program: its own loader is asked to load both, without running any code of the program.
//! A library that cannot be preloaded is only a warning of the loader, so that this has to be looked for.

use std::path::Path;
use std::process::{Command, Stdio};

/// What the loader said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loading {
    /// It has loaded the shim.
    Loaded,
    /// It goes on without: its words.
    Refused(String),
    /// It could not be asked: why.
    Unclear(String),
}

/// Asks the loader at `interpreter` to load `program` with `shim` (`--list`: ld.so(8); musl has it, too).
pub fn try_loading(interpreter: &Path, program: &Path, shim: &Path) -> Loading {
    let asked = Command::new(interpreter)
        .arg("--list")
        .arg(program)
        .env("LD_PRELOAD", shim)
        .stdin(Stdio::null())
        .output();
    let output = match asked {
        Ok(output) => output,
        Err(error) => {
            return Loading::Unclear(format!("{} does not run here: {error}", interpreter.display()));
        }
    };
    let listed = String::from_utf8_lossy(&output.stdout);
    let words = String::from_utf8_lossy(&output.stderr);
    let shim = shim.to_string_lossy();
    if listed.lines().any(|line| line.split_whitespace().any(|word| *word == *shim)) {
        return Loading::Loaded;
    }
    let words = words.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    match words {
        "" if output.status.success() => {
            Loading::Refused("the loader has left it out without a word".to_owned())
        }
        "" => Loading::Unclear(format!("the loader failed: {}", output.status)),
        words => Loading::Refused(words.to_owned()),
    }
}
