//! `storeshim guard`: the process beside an agent that holds what guards absent files. Agents start it.

use std::path::PathBuf;

use clap::Args;

use super::{FAILED, Failure};
use crate::guard::supervisor;

/// Arguments of `storeshim guard`.
#[derive(Args)]
pub(super) struct Arguments {
    /// Directory of its socket, which is standard output.
    state: PathBuf,
    /// Numbers of events that the agent knows of.
    reserved: Vec<i32>,
}

pub(super) fn main(arguments: &Arguments) -> Result<(), Failure> {
    supervisor::run(&arguments.state, &arguments.reserved).map_err(|error| Failure::new(FAILED, error))
}
