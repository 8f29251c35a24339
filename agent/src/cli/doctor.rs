//! `storeshim doctor`: what the shim will see of a program, of this machine, and of a libc.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::Args;

use super::run::{find_shim, physical};
use super::{FAILED, Failure, Settings};
use crate::doctor::coverage::{Coverage, Row};
use crate::doctor::program::{self, Nets};
use crate::doctor::report::Report;
use crate::doctor::{aside, machine, selftest};

/// Arguments of `storeshim doctor`.
#[derive(Args)]
pub(super) struct Arguments {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The agent's run directory.
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Print everything as JSON.
    #[arg(long)]
    json: bool,
    /// Leave the self-test out.
    #[arg(long)]
    no_self_test: bool,
    /// Look at a C library instead: which of its functions the shim does not cover. Can be given again.
    #[arg(long = "libc", value_name = "PATH", conflicts_with = "command")]
    libcs: Vec<PathBuf>,
    /// With --libc: fail on entries of the list of exclusions that match nothing in these libraries, too.
    #[arg(long, requires = "libcs", hide = true)]
    strict: bool,
    /// The self-test's own part, which runs under the shim.
    #[arg(long = selftest::STEPS_FLAG.trim_start_matches('-'), value_name = "DIR", hide = true)]
    self_test_in: Option<PathBuf>,
    /// The agent's question about a program, which is standard input.
    #[arg(long = aside::FLAG.trim_start_matches('-'), hide = true)]
    past_libc: bool,
    /// The program, and its arguments, which are not looked at.
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// 0 where all is well, 1 where something is lost, 2 where it cannot be told.
pub(super) fn main(arguments: &Arguments) -> Result<u8, Failure> {
    if let Some(dir) = &arguments.self_test_in {
        return selftest::steps::run(dir).map(|()| 0).map_err(|error| Failure::new(FAILED, error));
    }
    if arguments.past_libc {
        let answer = aside::answer().map_err(|error| Failure::new(FAILED, error))?;
        println!("{answer}");
        return Ok(0);
    }
    let shim = find_shim();
    if !arguments.libcs.is_empty() {
        return coverage(arguments, &shim?);
    }
    let settings = Settings {
        config: arguments.config.clone(),
        run_dir: arguments.run_dir.clone(),
        ..Settings::default()
    };
    let run_dir = settings.load()?.run_dir;
    let mut report = Report::default();
    let (kernel, sud) = machine::kernel();
    let (agent, status) = machine::agent(&run_dir);
    if let Some(command) = arguments.command.first() {
        let shim = shim.as_deref().ok();
        // This process has no shim: what lies below a mount is found in its tree.
        let mounts = status.as_ref().map_or(&[][..], |status| &status.mounts);
        let place = physical(mounts, Path::new(command));
        report.sections.push(program::examine(place.as_os_str(), shim, Nets { sud }));
    }
    report.sections.push(machine::shim(shim.as_deref().map_err(|failure| failure.message.as_str())));
    report.sections.push(kernel);
    report.sections.push(agent);
    if let (Ok(shim), false) = (&shim, arguments.no_self_test) {
        let own = std::env::current_exe().map_err(|error| Failure::new(FAILED, error))?;
        report.sections.extend(selftest::run(&own, shim, &run_dir, status.as_ref()));
    }
    if arguments.json {
        print_json(&serde_json::json!({ "status": report.status(), "sections": report.sections }))?;
    } else {
        print!("{}", report.text(colours()));
    }
    Ok(report.status())
}

/// On a terminal, unless somebody asks for none (no-color.org).
fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(value).map_err(|error| Failure::new(FAILED, error))?;
    println!("{json}");
    Ok(())
}

fn coverage(arguments: &Arguments, shim: &Path) -> Result<u8, Failure> {
    let coverage = Coverage::of(shim, &arguments.libcs).map_err(|error| Failure::new(FAILED, error))?;
    let (.., missing) = coverage.totals();
    if arguments.json {
        print_json(&coverage)?;
    } else {
        print!("{}", table(&coverage, arguments.strict));
    }
    let wrong = !coverage.contradictions.is_empty() || arguments.strict && !coverage.stale.is_empty();
    Ok(u8::from(missing > 0 || wrong))
}

/// The table of `cargo xtask coverage`; its last line is the sum.
fn table(coverage: &Coverage, strict: bool) -> String {
    let head = ["libc", "exported", "hooked", "excluded", "missing"].map(str::to_owned);
    let row = |row: &Row| {
        let counts = [row.exported, row.hooked.len(), row.excluded.len(), row.missing.len()];
        let [exported, hooked, excluded, missing] = counts.map(|count| count.to_string());
        [row.libc.clone(), exported, hooked, excluded, missing]
    };
    let rows: Vec<[String; 5]> = std::iter::once(head).chain(coverage.rows.iter().map(row)).collect();
    let first = rows.iter().map(|[libc, ..]| libc.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for [libc, exported, hooked, excluded, missing] in rows {
        out += &format!("{libc:<first$}  {exported:>8}  {hooked:>8}  {excluded:>8}  {missing:>8}\n");
    }
    out.push('\n');
    for row in &coverage.rows {
        for missing in &row.missing {
            out += &format!("missing: {} of {}: {}\n", missing.name, row.libc, missing.why);
        }
    }
    for name in &coverage.contradictions {
        out += &format!("excluded, but hooked: {name}\n");
    }
    for pattern in coverage.stale.iter().filter(|_| strict) {
        out += &format!("excluded, but in none of them: {pattern}\n");
    }
    let (hooked, excluded, missing) = coverage.totals();
    out += &format!("hooked / excluded / missing = {hooked} / {excluded} / {missing}\n");
    out
}
