//! Ten thousand small files out of an archive: the time, and what it costs at the object store.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::bench::rig::{PREFIX, Rig, run, timed};
use crate::bench::small;
use crate::bench::table::{Row, Table, Target, Unit, median};

const FILES: u64 = 10_000;
/// PUTs for a hundred files.
const PUTS_MAX: f64 = 1.0;

pub fn untar(rig: &Rig, quick: bool, table: &mut Table) -> Result<()> {
    let mut s3 = rig.s3()?;
    let agent = rig.agent(&s3.url("untar"), "")?;
    let native_dir = rig.native()?;
    let rounds = if quick { 2 } else { 5 };
    let (mut native, mut storeshim) = (Vec::new(), Vec::new());
    let (mut flushes, mut puts, mut others) = (Vec::new(), Vec::new(), Vec::new());
    agent.flush()?;
    for round in 0..rounds {
        let archive = archive(rig, round)?;
        let dir = native_dir.join(round.to_string());
        fs::create_dir(&dir)?;
        native.push(timed(Command::new("tar").arg("xf").arg(&archive).arg("-C").arg(dir))? * 1e9);

        fs::create_dir(agent.tree().join(round.to_string()))?;
        agent.flush()?;
        let [puts_before, others_before] = s3.requests()?;
        let mut tar = Command::new("tar");
        tar.arg("xf").arg(&archive).args(["-C", &format!("{PREFIX}/{round}")]);
        storeshim.push(timed(&mut agent.shows(tar))? * 1e9);
        flushes.push(agent.flush()?);
        let [puts_after, others_after] = s3.requests()?;
        puts.push(puts_after - puts_before);
        others.push(others_after - others_before);
    }
    let puts = median(puts);
    let per_hundred = puts / FILES as f64 * 100.0;
    table.push(Row::alone("untar of 10,000 files: PUTs per 100 files", Unit::Number, per_hundred).wants(
        Target::AtMost(PUTS_MAX),
        Unit::Number,
        per_hundred,
    ));
    let ratio = median(native.iter().zip(&storeshim).map(|(native, storeshim)| storeshim / native).collect());
    let (native, storeshim) = (median(native), median(storeshim));
    table.push(Row::compared("untar of 10,000 files: time", Unit::Time, native, storeshim, ratio));
    table.note(format!(
        "untar: {puts:.0} PUTs and {:.0} other requests until `flush` returned, {:.2} s after tar had ended; median of \
         {rounds} rounds by turns, by the clock, with the agent at work beside tar",
        median(others),
        median(flushes)
    ));
    Ok(())
}

/// An archive of small files, which are others in each round.
fn archive(rig: &Rig, round: u64) -> Result<PathBuf> {
    let (source, archive) = (rig.home("source"), rig.home("source.tar"));
    small::files(&source, FILES, round)?;
    run(Command::new("tar").arg("cf").arg(&archive).arg("-C").arg(&source).arg("."))?;
    fs::remove_dir_all(source)?;
    Ok(archive)
}
