//! The `storeshim` binary: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    storeshim_agent::cli::main()
}
