//! `cargo xtask bench`: one subcommand per table.

use anyhow::{Result, bail};
use clap::Args;

/// Arguments of `cargo xtask bench`.
#[derive(Args)]
pub struct Arguments {
    /// Which table.
    table: String,
}

/// A table's name and the function that measures and prints it.
type Table = (&'static str, fn() -> Result<()>);

/// All tables.
const TABLES: [Table; 0] = [];

pub fn main(arguments: &Arguments) -> Result<()> {
    match TABLES.iter().find(|(name, _)| *name == arguments.table) {
        Some((_, measure)) => measure(),
        None => {
            let names: Vec<&str> = TABLES.iter().map(|(name, _)| *name).collect();
            bail!("there is no table `{}`; there are: {}", arguments.table, names.join(", "))
        }
    }
}
