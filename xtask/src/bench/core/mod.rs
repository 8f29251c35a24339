//! `cargo xtask bench core`: what storeshim costs. Everything is compared with native work of the same run, done by
//! turns with it, since the machine is never quiet.

mod calls;
mod commits;
mod cuts;
mod memory;
mod untar;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::rig::Rig;
use super::table::{Row, Table, Target, Unit};

/// Bytes that the library must stay below.
const LIBRARY_MAX: f64 = 200.0 * 1024.0;

/// Arguments of `cargo xtask bench core`.
#[derive(Args)]
pub struct Arguments {
    /// Fewer rounds and less data.
    #[arg(long)]
    quick: bool,
    /// The agent's memory at a million files, too; takes many minutes.
    #[arg(long)]
    million: bool,
    /// Only the parts whose name contains this: calls, spawn, library, cuts, untar, commits, fsync, memory.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Directory to work below, on the file system that is measured; the target folder if none is given.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// A part's name and the function that measures it.
type Part = (&'static str, fn(&Rig, bool, &mut Table) -> Result<()>);

const PARTS: [Part; 7] = [
    ("calls", calls::calls),
    ("spawn", calls::spawn),
    ("library", library),
    ("cuts", cuts::cuts),
    ("untar", untar::untar),
    ("commits", commits::throughput),
    ("fsync", commits::fsync),
];

pub fn main(arguments: &Arguments) -> Result<()> {
    let rig = Rig::set_up(arguments.dir.as_deref())?;
    let mut table = Table::default();
    let chosen = |name: &str| arguments.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    for (name, measure) in PARTS.into_iter().filter(|(name, _)| chosen(name)) {
        eprintln!("{name}");
        measure(&rig, arguments.quick, &mut table)?;
    }
    if arguments.million && chosen("memory") {
        eprintln!("memory");
        memory::memory(&rig, &mut table)?;
    }
    println!("{table}");
    Ok(())
}

fn library(rig: &Rig, _quick: bool, table: &mut Table) -> Result<()> {
    let bytes = rig.shim.metadata()?.len() as f64;
    table.push(Row::alone("size of libstoreshim.so", Unit::Bytes, bytes).wants(
        Target::Below(LIBRARY_MAX),
        Unit::Bytes,
        bytes,
    ));
    Ok(())
}
