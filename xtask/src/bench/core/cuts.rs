//! How long a cut keeps writers waiting.

use anyhow::Result;

use crate::bench::rig::{PREFIX, Rig, numbers, run};
use crate::bench::table::{Row, Table, Target, Unit};

/// Longest p50 with saturating writers, and longest pause with many dirty names, in nanoseconds.
const WRITERS_MAX: f64 = 1e6;
const NAMES_MAX: f64 = 50e6;
/// Writers, and dirty names.
const WRITERS: &str = "8";
const NAMES: &str = "10000";

pub fn cuts(rig: &Rig, quick: bool, table: &mut Table) -> Result<()> {
    let store = rig.directory_store()?;
    {
        // Several cuts per second, for percentiles that mean something.
        let agent = rig.agent(&store, ",max_lag=200ms")?;
        let seconds = if quick { "5" } else { "20" };
        let mut load = rig.program("load");
        load.args(["writers", PREFIX, WRITERS, seconds]);
        let [writes] = numbers(&run(&mut agent.shows(load))?)?;
        let [p50, p99, longest] = agent.pauses()?;
        let commits = agent.counter("commits")?;
        table.push(Row::alone("cut pause, 8 saturating writers, p50", Unit::Time, p50).wants(
            Target::Below(WRITERS_MAX),
            Unit::Time,
            p50,
        ));
        table.push(Row::alone("cut pause, 8 saturating writers, p99", Unit::Time, p99));
        table.note(format!(
            "cut pause, 8 writers: longest {:.2} ms; {commits:.0} commits while they made {writes:.0} writes per \
             second; stragglers {:.0}",
            longest / 1e6,
            agent.counter("stragglers")?
        ));
    }
    // No cut but the one that the program asks for.
    let agent = rig.agent(&rig.directory_store()?, ",max_lag=10m")?;
    let before = agent.counter("commits")?;
    let mut load = rig.program("load");
    load.args(["names", PREFIX, NAMES]);
    run(&mut agent.shows(load))?;
    let [_, _, longest] = agent.pauses()?;
    let commits = agent.counter("commits")? - before;
    table.push(Row::alone("cut pause, 10,000 dirty names, longest", Unit::Time, longest).wants(
        Target::Below(NAMES_MAX),
        Unit::Time,
        longest,
    ));
    table.note(format!("cut pause, 10,000 dirty names: taken in {commits:.0} commits"));
    Ok(())
}
