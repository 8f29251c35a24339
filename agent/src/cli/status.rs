//! `storeshim status`: the agent's status for people, or as JSON.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{FAILED, Failure, Settings};
use crate::config::{Age, Bytes};
use crate::http::Client;
use crate::mounts::{AgentStatus, MountStatus};
use crate::volume::{VolumeStatus, residency};

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
    notes.extend(residency(volume));
    notes.extend(over_quota(volume));
    if !volume.foreign.is_empty() {
        notes.push(format!("programs without the shim: {}", volume.foreign.join(", ")));
    }
    notes
}

/// By how much a volume exceeds its quota: it does not grow until that is mended.
fn over_quota(volume: &VolumeStatus) -> Option<String> {
    let (bytes, inodes) = (volume.residency.over_quota_bytes, volume.residency.over_quota_inodes);
    let by =
        [(bytes > 0).then(|| Bytes(bytes).to_string()), (inodes > 0).then(|| format!("{inodes} inodes"))];
    let by: Vec<String> = by.into_iter().flatten().collect();
    (!by.is_empty()).then(|| format!("over its quota by {}: nothing may be added", by.join(" and ")))
}

/// What of a volume is on this disk: nothing is said before the volume is open.
fn residency(volume: &VolumeStatus) -> Vec<String> {
    let here = &volume.residency;
    if *here == residency::Status::default() {
        return Vec::new();
    }
    let mut notes = vec![format!(
        "on this disk: {} of {}, {} of {} files; cache {}; names {}; guard: {}",
        Bytes(here.resident_bytes),
        Bytes(volume.bytes),
        here.resident_files,
        volume.files,
        Bytes(here.cache_size),
        if here.names_complete { "complete" } else { "not complete yet" },
        here.guard.words()
    )];
    let mut more = Vec::new();
    if here.asked > 0 {
        let hits = here.asked_hits as f64 / here.asked as f64 * 100.0;
        more.push(format!("{} reads asked, {hits:.1} % of them for what was here", here.asked));
    }
    for (count, what) in [(here.queued_pieces, "pieces queued"), (here.unguarded_files, "files unguarded")] {
        more.extend((count > 0).then(|| format!("{count} {what}")));
    }
    more.extend((here.pinned_bytes > 0).then(|| format!("{} pinned", Bytes(here.pinned_bytes))));
    notes.extend((!more.is_empty()).then(|| more.join("; ")));
    notes.extend(here.eviction_error.as_ref().map(|why| format!("nothing can be evicted: {why}")));
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

    #[test]
    fn a_volume_over_its_quota_is_said_to_be() {
        let mut mount = mount_status("/storage");
        let here = &mut mount.volume.residency;
        (here.over_quota_bytes, here.over_quota_inodes) = (3 << 20, 2);
        assert_eq!(
            remarks(&mount).last().unwrap(),
            "over its quota by 3.0 MiB and 2 inodes: nothing may be added"
        );
        mount.volume.residency.over_quota_bytes = 0;
        assert_eq!(over_quota(&mount.volume).unwrap(), "over its quota by 2 inodes: nothing may be added");
    }

    #[test]
    fn the_table_tells_what_is_on_this_disk() {
        let mut mount = mount_status("/storage");
        (mount.volume.files, mount.volume.bytes) = (40, 8 << 30);
        mount.volume.residency = residency::Status {
            resident_bytes: 1 << 30,
            resident_files: 4,
            cache_size: 2 << 30,
            ..residency::Status::default()
        };
        let first = "on this disk: 1.0 GiB of 8.0 GiB, 4 of 40 files; cache 2.0 GiB; names not complete yet; guard: none";
        assert_eq!(remarks(&mount), [first]);
        let here = &mut mount.volume.residency;
        (here.names_complete, here.asked, here.asked_hits) = (true, 8, 7);
        here.guard = residency::preaccess::Guarded::PreAccess;
        (here.queued_pieces, here.pinned_bytes, here.unguarded_files) = (3, 4096, 2);
        let notes = remarks(&mount);
        assert!(notes[0].ends_with("names complete; guard: pre-access"), "{notes:?}");
        assert_eq!(
            notes[1],
            "8 reads asked, 87.5 % of them for what was here; 3 pieces queued; 2 files unguarded; 4.0 KiB pinned"
        );
    }
}
