//! `cargo xtask demo`: what a release can do, shown and checked. Each demonstration is a module.

mod residency;
mod visits;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Arguments of `cargo xtask demo`.
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    which: Which,
}

#[derive(Subcommand)]
enum Which {
    /// 2 GiB through a cache of 256 MiB: git fsck, SQLite's integrity check, a checksum of every file.
    Residency(residency::Arguments),
    /// A visit counter in a Cloudflare Container, played on this machine.
    Visits(visits::Arguments),
}

pub fn main(arguments: &Arguments) -> Result<()> {
    match &arguments.which {
        Which::Residency(arguments) => residency::main(arguments),
        Which::Visits(arguments) => visits::main(arguments),
    }
}
