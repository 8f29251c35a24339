//! `cargo xtask bench residency`: what it costs that not everything is on this disk. Each part begins with a node that has
//! nothing, against our S3 server, near and far: the far one is behind a proxy that adds to each round trip.

mod first;
mod many;
mod partial;
mod volumes;
mod whole;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::rig::Rig;
use super::table::Table;
use volumes::Volumes;

/// Settings of the mounts that are measured.
const LAZY: &str = ",hydrate=on-read";
/// What is added to a round trip, in milliseconds.
const DISTANCES: [u64; 2] = [0, 20];

/// Arguments of `cargo xtask bench residency`.
#[derive(Args)]
pub struct Arguments {
    /// Fewer rounds, a tenth of the files, a quarter of the bytes.
    #[arg(long)]
    quick: bool,
    /// Only the parts whose name contains this: first, whole, many, partial.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Only this distance: 0 or 20 milliseconds.
    #[arg(long, value_name = "MS")]
    distance: Option<u64>,
    /// Make the volumes anew that an earlier run has left below the target folder.
    #[arg(long)]
    fresh: bool,
    /// Directory to work below, on the file system that is measured; the target folder if none is given.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// What the parts need to know.
struct Bench<'a> {
    rig: &'a Rig,
    volumes: Volumes<'a>,
    quick: bool,
    /// Milliseconds.
    distances: Vec<u64>,
}

/// A part's name and the function that measures it.
type Part = (&'static str, fn(&Bench<'_>, &mut Table) -> Result<()>);

const PARTS: [Part; 4] = [
    ("first", first::first_byte),
    ("whole", whole::sequential),
    ("many", many::small_files),
    ("partial", partial::warm_reads),
];

pub fn main(arguments: &Arguments) -> Result<()> {
    let rig = Rig::set_up(arguments.dir.as_deref())?;
    let bench = Bench {
        rig: &rig,
        volumes: Volumes::new(&rig, arguments.quick, arguments.fresh)?,
        quick: arguments.quick,
        distances: arguments.distance.map_or(DISTANCES.to_vec(), |distance| vec![distance]),
    };
    let mut table = Table::new(&["what", "plain", "storeshim", "ratio"]);
    let chosen = |name: &str| arguments.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    for (name, measure) in PARTS.into_iter().filter(|(name, _)| chosen(name)) {
        eprintln!("{name}");
        measure(&bench, &mut table)?;
    }
    println!("{table}");
    Ok(())
}

/// How a distance is written.
fn far(distance: u64) -> String {
    format!("{distance} ms away")
}
