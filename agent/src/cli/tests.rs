use super::*;
use crate::mounts::{AgentStatus, MountStatus};
use crate::volume::{Durability, VolumeStatus};

/// A mount that is well.
pub(crate) fn mount_status(prefix: &str) -> MountStatus {
    MountStatus {
        prefix: prefix.to_owned(),
        tree: format!("/trees{prefix}").into(),
        identity: false,
        url: format!("s3://bucket{prefix}"),
        durability: Durability::Remote,
        volume: VolumeStatus { state: "ready".into(), ..VolumeStatus::default() },
    }
}

/// An agent with these mounts.
pub(crate) fn status(mounts: Vec<MountStatus>) -> AgentStatus {
    AgentStatus {
        pid: 7,
        version: "0.1.0".into(),
        uptime_ms: 2500,
        run_dir: "/run/x".into(),
        stopping: false,
        holds: 0,
        mounts,
        sessions: Vec::new(),
        past_libc: Vec::new(),
    }
}

fn settings(line: &[&str]) -> Result<Settings, clap::Error> {
    let full = ["storeshim", "agent"].iter().chain(line);
    Cli::try_parse_from(full).map(|cli| match cli.command {
        Command::Agent(arguments) => arguments.settings,
        _ => Settings::default(),
    })
}

#[test]
fn the_command_line_is_consistent() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

#[test]
fn flags_become_settings() {
    let around = Surroundings { uid: 0, env: &|_| None };
    let line = ["--run-dir", "rel", "--mount", "/s=s3://b", "--mount", "/t=s3://c,max_lag=3s"];
    let config = settings(&line).unwrap().load_in(&around).unwrap();
    assert_eq!(config.run_dir, std::env::current_dir().unwrap().join("rel"));
    assert_eq!(config.mounts.len(), 2);
    assert_eq!(config.mounts[1].max_lag.as_secs(), 3);
}

#[test]
fn a_wrong_flag_is_named() {
    for (line, word) in [
        (["--mount", "/storage"], "has no URL"),
        (["--mount", "/s=s3://b,colour=red"], "colour"),
        (["--drain-timeout", "60"], "not a duration"),
        (["--log-format", "xml"], "not a log format"),
        (["--log-level", "a=b=c"], "not a log level"),
    ] {
        let error = settings(&line).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains(line[0]), "{error}");
    }
}

#[test]
fn run_takes_the_program_as_it_is() {
    let parse = |line: &[&str]| {
        Cli::try_parse_from(["storeshim", "run"].iter().chain(line)).map(|cli| match cli.command {
            Command::Run(arguments) => arguments.command,
            _ => Vec::new(),
        })
    };
    assert_eq!(parse(&["--", "sh", "-c", "x"]).unwrap(), ["sh", "-c", "x"]);
    assert_eq!(parse(&["ls", "--mount", "-l"]).unwrap(), ["ls", "--mount", "-l"]);
    assert!(parse(&[]).is_err());
    assert!(parse(&["--colour", "ls"]).is_err());
}
