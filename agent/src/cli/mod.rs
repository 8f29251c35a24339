//! The command line. It turns arguments into settings and questions to an agent, and answers into text and exit
//! statuses; it must not know volumes.

mod agent;
mod doctor;
mod flush;
mod guard;
mod paths;
mod progress;
mod run;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{
    AbsolutePath, Config, ConfigError, Layer, LogFormat, LogLayer, LogLevel, MountLayer, Span, Surroundings,
};
use crate::http::ClientError;

/// Any program gets a persistent directory: real files on the local disk, committed to an object store.
#[derive(Parser)]
#[command(name = "storeshim", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve mounts in the foreground until SIGTERM.
    Agent(agent::Arguments),
    /// Run a program with its mounts, starting an agent where none runs.
    Run(run::Arguments),
    /// Show what the agent does and what is not in the backend yet.
    Status(status::Arguments),
    /// Bring everything into the backend now, and wait for it.
    Flush(flush::Arguments),
    /// Bring files and directories to this disk now.
    Warmup(paths::Warmup),
    /// Drop from this disk what is in the backend and nobody uses.
    Evict(paths::Evict),
    /// Say what the shim will see of a program, and try a mount.
    Doctor(doctor::Arguments),
    /// The agent's process that holds what guards absent files.
    #[command(hide = true)]
    Guard(guard::Arguments),
}

/// Flags that stand for settings. They win over the environment, which wins over the file.
#[derive(Args, Clone, Debug, Default)]
struct Settings {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory shared with the apps: rings and socket.
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Directory of the agent's state and of translated trees.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Show a volume at a prefix: /storage=s3://bucket/path[,durability=local…]. Can be given again.
    #[arg(long = "mount", value_name = "PREFIX=URL[,KEY=VALUE…]", value_parser = mount_flag)]
    mounts: Vec<MountFlag>,
    /// How long an ending agent waits for a backend that makes no progress, as in 60s.
    #[arg(long, value_name = "DURATION")]
    drain_timeout: Option<Span>,
    /// What is logged: error, warn, info, debug, trace, or a tracing filter.
    #[arg(long, value_name = "LEVEL", value_parser = |text: &str| LogLevel::try_from(text.to_owned()))]
    log_level: Option<LogLevel>,
    /// How it is logged: human or json.
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

/// A `--mount` as it was given, with its meaning.
#[derive(Clone, Debug)]
struct MountFlag {
    spec: String,
    layer: MountLayer,
}

fn mount_flag(spec: &str) -> Result<MountFlag, String> {
    MountLayer::from_spec(spec).map(|layer| MountFlag { spec: spec.to_owned(), layer })
}

impl Settings {
    fn load(&self) -> Result<Config, ConfigError> {
        self.load_in(&Surroundings::of_process())
    }

    fn load_in(&self, around: &Surroundings<'_>) -> Result<Config, ConfigError> {
        let absolute = |path: &Option<PathBuf>| match path {
            None => Ok(None),
            Some(path) => std::path::absolute(path)
                .map(|path| Some(AbsolutePath(path)))
                .map_err(|error| ConfigError(format!("`{}` is not a path: {error}", path.display()))),
        };
        let flags = Layer {
            run_dir: absolute(&self.run_dir)?,
            state_dir: absolute(&self.state_dir)?,
            drain_timeout: self.drain_timeout,
            log: LogLayer { level: self.log_level.clone(), format: self.log_format },
            mount: self.mounts.iter().map(|mount| mount.layer.clone()).collect(),
        };
        Config::load(self.config.as_deref(), flags, around)
    }
}

/// Why a command ends badly: what is printed, and the exit status.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    message: String,
    status: u8,
}

/// Something went wrong.
const FAILED: u8 = 1;
/// The command line, the environment or the configuration file is wrong.
const USAGE: u8 = 2;
/// There is no agent to ask.
const NO_AGENT: u8 = 3;
/// The agent ended with changes that are not in the backend.
const UNDRAINED: u8 = 4;

impl Failure {
    fn new(status: u8, message: impl ToString) -> Self {
        Self { message: message.to_string(), status }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(USAGE, error)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let status = if matches!(error, ClientError::NoAgent(_)) { NO_AGENT } else { FAILED };
        Self::new(status, error)
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    #[cfg(target_env = "gnu")]
    few_heaps();
    let result = match Cli::parse().command {
        Command::Agent(arguments) => agent::main(&arguments).map(|()| 0),
        Command::Run(arguments) => run::main(&arguments),
        Command::Status(arguments) => status::main(&arguments),
        Command::Flush(arguments) => flush::main(&arguments).map(|()| 0),
        Command::Warmup(arguments) => paths::warmup(&arguments),
        Command::Evict(arguments) => paths::evict(&arguments),
        Command::Doctor(arguments) => doctor::main(&arguments),
        Command::Guard(arguments) => guard::main(&arguments).map(|()| 0),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            eprintln!("storeshim: {}", failure.message);
            ExitCode::from(failure.status)
        }
    }
}

/// glibc gives its threads up to eight heaps for each CPU, and each keeps what it once had: with a million names that is a third
/// of the agent's memory (mallopt(3)). What threads allocate often comes from caches of their own.
#[cfg(target_env = "gnu")]
fn few_heaps() {
    // SAFETY: no other thread runs yet. Where it fails, memory is all that it costs.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
}

#[cfg(test)]
mod tests;
