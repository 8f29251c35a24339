//! The agent's memory at a million files.

use anyhow::Result;

use crate::bench::rig::{PREFIX, Rig, timed};
use crate::bench::table::{Row, Table, Target, Unit};

const FILES: &str = "1000000";
/// Bytes.
const MEMORY_MAX: f64 = 300.0 * 1024.0 * 1024.0;

pub fn memory(rig: &Rig, table: &mut Table) -> Result<()> {
    let s3 = rig.s3()?;
    let mut agent = rig.agent(&s3.url("million"), "")?;
    let mut load = rig.program("load");
    load.args(["files", PREFIX, FILES]);
    let making = timed(&mut agent.shows(load))?;
    let flushing = agent.flush()?;
    let [_, made] = agent.memory()?;
    agent.stop()?;

    let started = std::time::Instant::now();
    agent.start()?;
    agent.flush()?;
    let restarting = started.elapsed().as_secs_f64();
    let [_, restarted] = agent.memory()?;
    for (what, bytes) in [
        ("agent's memory while a million files are made, peak", made),
        ("agent's memory after a restart and an audit of them, peak", restarted),
    ] {
        table.push(Row::alone(what, Unit::Bytes, bytes).wants(Target::Below(MEMORY_MAX), Unit::Bytes, bytes));
    }
    table.note(format!(
        "a million files: made in {making:.0} s, in the backend {flushing:.0} s later; restart, audit and flush \
         {restarting:.0} s; memory is VmHWM"
    ));
    Ok(())
}
