//! `storeshim status`: the agent's status for people, or as JSON.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{FAILED, Failure, Settings};
use crate::config::{Age, Bytes};
use crate::http::Client;
use crate::mounts::{AgentStatus, MountStatus};

/// Arguments of `storeshim status`.
#[derive(Args)]
pub(super) struct Arguments {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The agent's run directory.
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Print everything as JSON.
    #[arg(long)]
    json: bool,
}

/// 0 where every mount is served, else 1: good as a health check.
pub(super) fn main(arguments: &Arguments) -> Result<u8, Failure> {
    let settings = Settings {
        config: arguments.config.clone(),
        run_dir: arguments.run_dir.clone(),
        ..Settings::default()
    };
    let status = Client::new(&settings.load()?.run_dir).status()?;
    if arguments.json {
        let json = serde_json::to_string_pretty(&status).map_err(|error| Failure::new(FAILED, error))?;
        println!("{json}");
    } else {
        print!("{}", table(&status));
    }
    let served = |mount: &MountStatus| matches!(mount.volume.state.as_str(), "ready" | "restoring");
    Ok(if status.mounts.iter().all(served) { 0 } else { FAILED })
}

/// The status as a table with remarks below each mount.
fn table(status: &AgentStatus) -> String {
    let head = ["MOUNT", "STATE", "NOT IN BACKEND", "COMMIT", "FILES", "SIZE", "VOLUME"].map(str::to_owned);
    let rows: Vec<[String; 7]> = std::iter::once(head).chain(status.mounts.iter().map(row)).collect();
    let mut widths = [0; 7];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = format!(
        "agent {} on {}, version {}, up {}, {} attached{}\n",
        status.pid,
        status.run_dir.display(),
        status.version,
        Age(Duration::from_millis(status.uptime_ms)),
        match status.sessions.len() {
            1 => "1 process".to_owned(),
            n => format!("{n} processes"),
        },
        if status.stopping { ", about to end" } else { "" }
    );
    let notes = std::iter::once(Vec::new()).chain(status.mounts.iter().map(remarks));
    for (row, notes) in rows.iter().zip(notes) {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{}", cells.join("  ").trim_end());
        for note in notes {
            let _ = writeln!(out, "    {note}");
        }
    }
    if !status.past_libc.is_empty() {
        let _ = writeln!(
            out,
            "system calls past libc: start these with `storeshim run --net=sud`, or their changes wait for the audit"
        );
        for program in &status.past_libc {
            let _ = writeln!(out, "    {program}");
        }
    }
    out
}

fn row(mount: &MountStatus) -> [String; 7] {
    let volume = &mount.volume;
    let at_risk = match volume.dirty_entries {
        0 => "nothing".to_owned(),
        _ => {
            format!("{}, {} old", Bytes(volume.dirty_bytes), Age(Duration::from_millis(volume.dirty_age_ms)))
        }
    };
    [
        mount.prefix.clone(),
        volume.state.clone(),
        at_risk,
        volume.seq.to_string(),
        volume.files.to_string(),
        Bytes(volume.bytes).to_string(),
        mount.url.clone(),
    ]
}

/// What else must be known about a mount.
fn remarks(mount: &MountStatus) -> Vec<String> {
    let volume = &mount.volume;
    let mut notes = Vec::new();
    notes.extend(volume.reason.as_ref().map(|reason| format!("why: {reason}")));
    notes.extend(volume.backend_error.as_ref().map(|error| format!("backend: {error}")));
    if let Some(progress) = &volume.progress {
        notes.push(format!(
            "{}: {} of {}",
            progress.activity,
            Bytes(progress.bytes_done),
            Bytes(progress.bytes_total)
        ));
    }
    if !volume.foreign.is_empty() {
        notes.push(format!("programs without the shim: {}", volume.foreign.join(", ")));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::{mount_status, status};

    #[test]
    fn the_table_tells_what_is_at_risk_and_why() {
        let mut mounts = vec![mount_status("/storage"), mount_status("/d")];
        let volume = &mut mounts[1].volume;
        volume.state = "fenced".into();
        volume.reason = Some("another agent has taken over this volume".into());
        volume.backend_error = Some("connection refused".into());
        (volume.dirty_entries, volume.dirty_bytes, volume.dirty_age_ms) = (3, 12 << 20, 3250);
        volume.foreign = vec!["17 busybox".into()];
        let expected = "\
agent 7 on /run/x, version 0.1.0, up 2.5s, 0 processes attached
MOUNT     STATE   NOT IN BACKEND      COMMIT  FILES  SIZE  VOLUME
/storage  ready   nothing             0       0      0 B   s3://bucket/storage
/d        fenced  12.0 MiB, 3.2s old  0       0      0 B   s3://bucket/d
    why: another agent has taken over this volume
    backend: connection refused
    programs without the shim: 17 busybox
";
        let mut status = status(mounts);
        assert_eq!(table(&status), expected);
        status.past_libc = vec!["9 mv: renameat (in /bin/mv)".into()];
        let told = "\
system calls past libc: start these with `storeshim run --net=sud`, or their changes wait for the audit
    9 mv: renameat (in /bin/mv)
";
        assert_eq!(table(&status), format!("{expected}{told}"));
    }
}
