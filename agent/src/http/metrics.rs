//! The status as Prometheus text.

use std::fmt::Write;

use crate::mounts::{AgentStatus, MountStatus};

/// A gauge or counter per mount.
struct Metric {
    name: &'static str,
    help: &'static str,
    value: fn(&MountStatus) -> f64,
}

const GAUGES: [Metric; 18] = [
    Metric { name: "up", help: "1 while the mount is ready", value: |m| flag(m.volume.state == "ready") },
    Metric {
        name: "dirty_bytes",
        help: "Bytes of changes that are not in the backend",
        value: |m| m.volume.dirty_bytes as f64,
    },
    Metric {
        name: "dirty_entries",
        help: "Names and inodes with changes that are not in the backend",
        value: |m| m.volume.dirty_entries as f64,
    },
    Metric {
        name: "dirty_age_seconds",
        help: "Age of the oldest change that is not in the backend",
        value: |m| m.volume.dirty_age_ms as f64 / 1e3,
    },
    Metric { name: "commit_seq", help: "Number of the last durable commit", value: |m| m.volume.seq as f64 },
    Metric { name: "files", help: "Regular files in the volume", value: |m| m.volume.files as f64 },
    Metric { name: "file_bytes", help: "Bytes in regular files", value: |m| m.volume.bytes as f64 },
    Metric {
        name: "backend_trouble",
        help: "1 while the backend does not answer as it should",
        value: |m| flag(m.volume.backend_error.is_some()),
    },
    Metric {
        name: "foreign_programs",
        help: "Programs in the tree without the shim, as the last audit saw them",
        value: |m| m.volume.foreign.len() as f64,
    },
    Metric {
        name: "names_complete",
        help: "1 once all names of the volume are in the tree",
        value: |m| flag(m.volume.residency.names_complete),
    },
    Metric {
        name: "resident_bytes",
        help: "Bytes of file data on this disk",
        value: |m| m.volume.residency.resident_bytes as f64,
    },
    Metric {
        name: "resident_files",
        help: "Regular files that are wholly on this disk",
        value: |m| m.volume.residency.resident_files as f64,
    },
    Metric {
        name: "cache_bytes",
        help: "Bytes of file data that may be on this disk",
        value: |m| m.volume.residency.cache_size as f64,
    },
    Metric {
        name: "pinned_bytes",
        help: "Bytes that cannot be evicted now: mapped, executing, open through stdio",
        value: |m| m.volume.residency.pinned_bytes as f64,
    },
    Metric {
        name: "hydration_queue_pieces",
        help: "Pieces that somebody waits for or that are read ahead",
        value: |m| m.volume.residency.queued_pieces as f64,
    },
    Metric {
        name: "unguarded_files",
        help: "Files that a program without the shim could open before their data is here",
        value: |m| m.volume.residency.unguarded_files as f64,
    },
    Metric {
        name: "over_quota_bytes",
        help: "Bytes by which the volume exceeds its quota",
        value: |m| m.volume.residency.over_quota_bytes as f64,
    },
    Metric {
        name: "over_quota_inodes",
        help: "Inodes by which the volume exceeds its quota",
        value: |m| m.volume.residency.over_quota_inodes as f64,
    },
];

const COUNTERS: [Metric; 2] = [
    Metric {
        name: "asked_total",
        help: "Reads that asked the agent whether their data is here, since the agent's start",
        value: |m| m.volume.residency.asked as f64,
    },
    Metric {
        name: "asked_hits_total",
        help: "Those of them whose data was here, since the agent's start",
        value: |m| m.volume.residency.asked_hits as f64,
    },
];

fn flag(set: bool) -> f64 {
    if set { 1.0 } else { 0.0 }
}

/// Renders everything that the status says in numbers; all names begin with `storeshim_`.
pub fn render(status: &AgentStatus) -> String {
    let mut out = String::new();
    gauge(&mut out, "uptime_seconds", "Time since the agent started", status.uptime_ms as f64 / 1e3);
    gauge(&mut out, "sessions", "Attached processes", status.sessions.len() as f64);
    let past_libc = "Programs named since the agent's start because they make system calls past libc";
    gauge(&mut out, "past_libc_programs", past_libc, status.past_libc.len() as f64);
    let gauges = GAUGES.iter().map(|metric| (metric, "gauge"));
    for (metric, kind) in gauges.chain(COUNTERS.iter().map(|metric| (metric, "counter"))) {
        header(&mut out, metric.name, metric.help, kind);
        for mount in &status.mounts {
            sample(&mut out, metric.name, mount, "", (metric.value)(mount));
        }
    }
    header(&mut out, "cut_pause_seconds", "Pause of writers in the last cuts", "gauge");
    for mount in &status.mounts {
        for (quantile, micros) in ["0.5", "0.99", "1"].iter().zip(mount.volume.cut_pause_us) {
            let label = format!(",quantile=\"{quantile}\"");
            sample(&mut out, "cut_pause_seconds", mount, &label, micros as f64 / 1e6);
        }
    }
    let mut counters: Vec<&str> =
        status.mounts.iter().flat_map(|mount| mount.volume.counters.keys().map(String::as_str)).collect();
    counters.sort_unstable();
    counters.dedup();
    for counter in counters {
        let name = format!("{counter}_total");
        header(&mut out, &name, "Since the agent's start", "counter");
        for mount in &status.mounts {
            if let Some(count) = mount.volume.counters.get(counter) {
                sample(&mut out, &name, mount, "", *count as f64);
            }
        }
    }
    out
}

// Writing to a String cannot fail; the results below say nothing.

fn header(out: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(out, "# HELP storeshim_{name} {help}.\n# TYPE storeshim_{name} {kind}");
}

fn gauge(out: &mut String, name: &str, help: &str, value: f64) {
    header(out, name, help, "gauge");
    let _ = writeln!(out, "storeshim_{name} {value}");
}

fn sample(out: &mut String, name: &str, mount: &MountStatus, labels: &str, value: f64) {
    let prefix = mount.prefix.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let _ = writeln!(out, "storeshim_{name}{{mount=\"{prefix}\"{labels}}} {value}");
}
