//! `cargo xtask bench`: one subcommand per table. What is measured here is never a test: a busy machine must not
//! make anything fail.

mod core;
mod durable;
mod hooks;
mod residency;
mod rig;
mod small;
mod table;
mod turns;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Arguments of `cargo xtask bench`.
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    table: Table,
}

#[derive(Subcommand)]
enum Table {
    /// Calls, cuts, commits and memory, each against the same work without storeshim.
    Core(core::Arguments),
    /// Each family of library functions, in both placements and outside of every mount, against the same calls without
    /// storeshim.
    Hooks(hooks::Arguments),
    /// What it costs that not everything is on this disk: the first byte, whole files, small files, memory.
    Residency(residency::Arguments),
    /// Volumes in Durable Objects, beside an object that writes the same bytes.
    Do(durable::Arguments),
}

pub fn main(arguments: &Arguments) -> Result<()> {
    match &arguments.table {
        Table::Core(arguments) => core::main(arguments),
        Table::Hooks(arguments) => hooks::main(arguments),
        Table::Residency(arguments) => residency::main(arguments),
        Table::Do(arguments) => durable::main(arguments),
    }
}
