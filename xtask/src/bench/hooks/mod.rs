//! `cargo xtask bench hooks`: what a call costs with the library in front of libc, for every family of functions, in both
//! placements and outside of every mount.

mod families;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use super::rig::Rig;
use super::table::{Row, Table, Target, Unit};
use super::turns::{Rounds, Turns};
use families::{FAMILIES, Operation};

/// Arguments of `cargo xtask bench hooks`.
#[derive(Args)]
pub struct Arguments {
    /// Fewer rounds.
    #[arg(long)]
    quick: bool,
    /// Only the families, or single operations, whose name contains this.
    #[arg(long, value_name = "FAMILY")]
    only: Option<String>,
    /// Directory to work below, on the file system that is measured; the target folder if none is given.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// No commit falls into the measurement, and an fsync is the kernel's.
const SETTINGS: &str = ",durability=local,max_lag=1h";

/// Columns between the operation and the target. The programs are asked in this order.
const HEAD: [&str; 6] = ["operation", "native", "empty library", "identity", "translated", "outside"];

/// One operation and what it took so far.
struct Measured {
    operation: &'static Operation,
    cpu: Rounds,
    wall: Rounds,
}

pub fn main(arguments: &Arguments) -> Result<()> {
    let mut families: Vec<(&str, Vec<Measured>)> = FAMILIES
        .iter()
        .map(|(family, operations)| (*family, chosen(family, operations, arguments.only.as_deref())))
        .filter(|(_, operations)| !operations.is_empty())
        .collect();
    if families.is_empty() {
        bail!("no family or operation has such a name; families: {}", families::names());
    }
    let rig = Rig::of_hooks(arguments.dir.as_deref())?;
    let identity = rig.identical_agent(SETTINGS)?;
    let translated = rig.agent(&rig.directory_store()?, SETTINGS)?;
    let (native, again, away) = (rig.native()?, rig.beside("twin")?, rig.beside("away")?);
    // A process has luck with its addresses or not: many processes, few rounds each.
    let (sittings, rounds) = if arguments.quick { (3, 7) } else { (9, 15) };
    for sitting in 1..=sittings {
        eprintln!("sitting {sitting} of {sittings}");
        let mut turns = Turns::start([
            rig.calls(&native),
            rig.with_empty_library(rig.calls(&again)),
            identity.shows(rig.calls(identity.prefix())),
            translated.shows(rig.calls(translated.prefix())),
            translated.shows(rig.calls(&away)),
        ])?;
        for _ in 0..rounds {
            for one in families.iter_mut().flat_map(|(_, operations)| operations) {
                turns.take(one.operation.call, one.operation.count, &mut one.cpu, &mut one.wall)?;
            }
        }
    }
    let mut table = Table::new(&HEAD);
    for (family, operations) in &families {
        table.push(Row::of(std::iter::once(format!("**{family}**")).chain(vec![String::new(); 5]).collect()));
        for one in operations {
            table.push(row(one));
        }
    }
    table.note(format!(
        "ns per call: CPU time of the thread and of the processes that it waited for; medians of {sittings} × {rounds} \
         rounds, ratio = median of the rounds' ratios to native. `empty library`: another one preloaded, which does nothing"
    ));
    println!("{table}");
    Ok(())
}

fn chosen(family: &str, operations: &'static [Operation], only: Option<&str>) -> Vec<Measured> {
    let wanted = |one: &&Operation| only.is_none_or(|only| family.contains(only) || one.call == only);
    let measured = |operation| Measured { operation, cpu: Rounds::default(), wall: Rounds::default() };
    operations.iter().filter(wanted).map(measured).collect()
}

fn row(one: &Measured) -> Row {
    let time = Unit::Time.text(one.cpu.middle(0));
    let ratios: Vec<f64> = (1..HEAD.len() - 1).map(|program| one.cpu.ratio(program)).collect();
    let mut cells = vec![one.operation.what.to_owned(), time];
    for (program, ratio) in (1..).zip(&ratios) {
        let ratio = Unit::Times.text(*ratio);
        // This one's time says no more than its ratio.
        cells.push(if program == 1 {
            ratio
        } else {
            format!("{} {ratio}", Unit::Time.text(one.cpu.middle(program)))
        });
    }
    let worst = ratios.iter().skip(1).copied().fold(0.0, f64::max);
    // As it is written: 1.104 is no miss.
    let worst = (worst * 100.0).round() / 100.0;
    Row::of(cells).wants(Target::AtMost(one.operation.target), Unit::Times, worst)
}
