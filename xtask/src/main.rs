//! The one developer entry point: `cargo xtask <command>`.

mod bench;
mod build;
mod coverage;
mod demo;
mod image;
mod lint;
mod run;
mod suite;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

/// Build, run, test and measure storeshim.
#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Command {
    /// Build the agent and the shim.
    Build(build::Arguments),
    /// Build, then run a program in /storage on a store below the target folder.
    Run(run::Arguments),
    /// Install what the tests need, then run everything.
    Test(test::Arguments),
    /// Check formatting, lints and tidiness.
    Lint,
    /// Run other people's test suites, natively and in volumes.
    Suite(suite::Arguments),
    /// Check that every function of the C libraries that can reach a file is hooked or left out for a reason.
    Coverage,
    /// Show what a release can do, and check it.
    Demo(demo::Arguments),
    /// Go through the steps of docker/Dockerfile without a container engine, and say how large what it adds is.
    Image,
    /// Measure.
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Build(arguments) => build::main(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Run(arguments) => run::main(&arguments),
        Command::Test(arguments) => test::main(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Lint => lint::main().map(|()| ExitCode::SUCCESS),
        Command::Suite(arguments) => suite::main(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Coverage => coverage::main().map(|()| ExitCode::SUCCESS),
        Command::Demo(arguments) => demo::main(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Image => image::main().map(|()| ExitCode::SUCCESS),
        Command::Bench(arguments) => bench::main(&arguments).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
