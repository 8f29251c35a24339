//! `cargo xtask bench do`: what a volume in a Durable Object costs beside an object that writes the same bytes into rows, on the
//! real runtime, for each way in which agent and object come together.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use clap::Args;
use storeshim_workerd::{Class, Runtime, TOKEN, Worker, free_port, missing, package};

use super::rig::{PREFIX, Rig, numbers, run};
use super::table::{Row, Table, Target, Unit, median};

/// Part of the throughput of plain writes that a commit must reach.
const THROUGHPUT_MIN: f64 = 0.7;
/// What an fsync may take, as a multiple of one plain write.
const FSYNC_MAX: f64 = 1.0;
/// Bytes that are written at once, as large as a pack.
const PART: usize = 16 << 20;

/// Arguments of `cargo xtask bench do`.
#[derive(Args)]
pub struct Arguments {
    /// Fewer rounds.
    #[arg(long)]
    quick: bool,
    /// Measure in this directory, on its file system.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// How agent and Durable Object come together.
#[derive(Clone, Copy)]
enum Way {
    Dialled,
    WebSocket,
}

impl Way {
    const ALL: [(Self, &str); 2] = [(Self::Dialled, "dial-in"), (Self::WebSocket, "WebSocket and HTTP")];

    fn url(self, runtime: &Runtime, id: &str) -> Result<String> {
        Ok(match self {
            Self::Dialled => {
                let port = free_port()?;
                runtime.get(&format!("/test/{id}/dial?port={port}"))?;
                format!("do://listen:{port}?bind=127.0.0.1")
            }
            Self::WebSocket => format!("do+ws://{TOKEN}@{}/container/{id}", runtime.authority()),
        })
    }
}

pub fn main(arguments: &Arguments) -> Result<()> {
    if let Some(why) = missing() {
        bail!("{why}");
    }
    let rig = Rig::of_hooks(arguments.dir.as_deref())?;
    let mut table = Table::new(&["what", "plain object", "storeshim", "ratio"]);
    let plain_entry = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bench/programs/plain-worker.js");
    let class = |name, binding| Class { name, binding, container: false };
    let plain_classes = [class("Plain", "PLAIN")];
    let entry = package().join("test/worker/index.ts");
    let classes = [class("DialedVolume", "DIALED"), class("StorageObject", "PLAIN")];
    for (way, name) in Way::ALL {
        eprintln!("{name}");
        let plain = Worker { entry: &plain_entry, classes: &plain_classes, engine: None };
        let plain = Runtime::start(&plain, Some(&rig.home("plain-disk")))?;
        let worker = Worker { entry: &entry, classes: &classes, engine: None };
        let runtime = Runtime::start(&worker, Some(&rig.home("disk")))?;
        fsync(&rig, &plain, &way.url(&runtime, "fsync")?, name, arguments.quick, &mut table)?;
        throughput(&rig, &plain, &way.url(&runtime, "throughput")?, name, arguments.quick, &mut table)?;
        for disk in ["plain-disk", "disk"] {
            fs::remove_dir_all(rig.home(disk))?;
        }
    }
    println!("{table}");
    Ok(())
}

fn put(plain: &Runtime, bytes: &[u8]) -> Result<f64> {
    let began = Instant::now();
    let (status, _) = plain.ask("PUT", "/", bytes)?;
    ensure!(status == 200, "the plain object answers {status}");
    Ok(began.elapsed().as_secs_f64())
}

fn fsync(rig: &Rig, plain: &Runtime, url: &str, name: &str, quick: bool, table: &mut Table) -> Result<()> {
    let count = if quick { 100 } else { 400 };
    let agent = rig.agent(url, "")?;
    let mut times = (0..count).map(|_| put(plain, &[7; 4096])).collect::<Result<Vec<_>>>()?;
    times.sort_by(f64::total_cmp);
    let at = |pct: usize| times.get(count * pct / 100).copied().unwrap_or_default() * 1e9;
    let mut load = rig.program("load");
    load.args(["fsync", PREFIX, &count.to_string()]);
    let [p50, p99] = numbers(&run(&mut agent.shows(load))?)?;
    for (pct, put, fsync) in [("p50", at(50), p50), ("p99", at(99), p99)] {
        let what = format!("fsync of a 4 KiB write, {name}, {pct}");
        let row = Row::compared(&what, Unit::Time, put, fsync, fsync / put);
        table.push(row.wants(Target::AtMost(FSYNC_MAX), Unit::Times, fsync / put));
    }
    Ok(())
}

fn throughput(
    rig: &Rig,
    plain: &Runtime,
    url: &str,
    name: &str,
    quick: bool,
    table: &mut Table,
) -> Result<()> {
    let bytes: usize = if quick { 64 << 20 } else { 256 << 20 };
    let agent = rig.agent(url, "")?;
    let file = rig.home("data");
    let (mut slow, mut fast, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..if quick { 3 } else { 5 } {
        let mut data = vec![0; bytes];
        File::open("/dev/urandom")?.read_exact(&mut data)?;
        fs::write(&file, &data)?;
        File::open(&file)?.sync_all()?;
        let mut seconds = 0.0;
        for part in data.chunks(PART) {
            seconds += put(plain, part)?;
        }
        let one = bytes as f64 / seconds;
        drop(data);
        // A rename by a program without the shim: the data is there at once, and nothing but `flush` finds it.
        let inside = agent.tree().join("data");
        fs::rename(&file, &inside)?;
        let other = bytes as f64 / agent.flush()?;
        fs::remove_file(inside)?;
        agent.flush()?;
        slow.push(one);
        fast.push(other);
        ratios.push(other / one);
    }
    let ratio = median(ratios);
    let what = format!("commit throughput, {name}");
    table.push(Row::compared(&what, Unit::Rate, median(slow), median(fast), ratio).wants(
        Target::AtLeast(THROUGHPUT_MIN),
        Unit::Times,
        ratio,
    ));
    Ok(())
}
