//! Whether the shim covers a libc: every exported function that can reach a path, change a file or move a descriptor is
//! hooked or left out for a reason. It must not know what hooks do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::elf::{Elf, ElfError};
use super::known::{self, Exclusions};
use super::libc::Libc;
use super::numbers;
use super::reach::{self, Reach};

/// Longest way to a system call that is told.
const WAY_MAX: usize = 6;

/// A function that is neither hooked nor left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// Its name.
    pub name: String,
    /// What it reaches, and how; or that it belongs to the families that must be known.
    pub why: String,
}

/// How one libc is covered.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The libc with its version.
    pub libc: String,
    /// Where it is; none for the families of names.
    pub path: Option<PathBuf>,
    /// Exported functions.
    pub exported: usize,
    /// Of those that count: in libc's place.
    pub hooked: BTreeSet<String>,
    /// Left to libc for a reason.
    pub excluded: BTreeSet<String>,
    /// Neither.
    pub missing: Vec<Missing>,
}

/// How all that were looked at are covered.
#[derive(Clone, Debug, Serialize)]
pub struct Coverage {
    /// One per libc, and one for the families.
    pub rows: Vec<Row>,
    /// Exclusions that fit nothing: old, or misspelt.
    pub stale: Vec<String>,
    /// Exclusions of what is hooked.
    pub contradictions: Vec<String>,
}

impl Coverage {
    /// Compares what `shim` hooks with each of `libcs`.
    ///
    /// # Errors
    /// One of the files cannot be read.
    pub fn of(shim: &Path, libcs: &[PathBuf]) -> Result<Self, ElfError> {
        let hooked = known::hooked(shim)?;
        let exclusions = Exclusions::embedded();
        let families = known::families();
        let mut rows = Vec::new();
        // Every name that counts anywhere, and every name that there is.
        let mut names: BTreeSet<String> = families.iter().map(|name| (*name).to_owned()).collect();
        let mut all = names.clone();
        for path in libcs {
            let elf = Elf::read(path)?;
            let (row, exported) = row(&elf, &hooked, &exclusions, &families);
            names.extend(row.hooked.iter().chain(&row.excluded).cloned());
            all.extend(exported);
            rows.push(row);
        }
        let absent = families.iter().filter(|name| {
            rows.iter().all(|row: &Row| !row.hooked.contains(**name) && !row.excluded.contains(**name))
                && rows.iter().all(|row| row.missing.iter().all(|missing| missing.name != **name))
        });
        let mut other = Row::new("elsewhere".to_owned(), None);
        for name in absent {
            other.add(name, &hooked, &exclusions, || "programs built for another libc use it".to_owned());
        }
        other.exported = other.hooked.len() + other.excluded.len() + other.missing.len();
        rows.push(other);
        let patterns = exclusions.left_out.iter().flat_map(|one| one.patterns.iter().map(move |p| (one, *p)));
        let matches =
            |pattern: &str, names: &BTreeSet<String>| names.iter().any(|name| known::fits(pattern, name));
        let stale =
            patterns.clone().filter(|(_, pattern)| !matches(pattern, &names)).map(|(_, pattern)| pattern);
        let ends = exclusions.dead_ends.iter().flat_map(|end| &end.patterns).copied();
        let stale = stale.chain(ends.filter(|pattern| !matches(pattern, &all)));
        let contradictions = patterns.filter_map(|(_, pattern)| {
            let name = hooked.iter().find(|name| known::fits(pattern, name))?;
            Some(if pattern == name { name.clone() } else { format!("{name} (by {pattern})") })
        });
        let stale = stale.map(str::to_owned).collect();
        let contradictions = contradictions.collect();
        Ok(Self { rows, stale, contradictions })
    }

    /// How many names are hooked, excluded and missing, each counted once.
    pub fn totals(&self) -> (usize, usize, usize) {
        let count =
            |pick: fn(&Row) -> Vec<&str>| self.rows.iter().flat_map(pick).collect::<BTreeSet<_>>().len();
        (
            count(|row| row.hooked.iter().map(String::as_str).collect()),
            count(|row| row.excluded.iter().map(String::as_str).collect()),
            count(|row| row.missing.iter().map(|missing| missing.name.as_str()).collect()),
        )
    }
}

impl Row {
    fn new(libc: String, path: Option<PathBuf>) -> Self {
        Self {
            libc,
            path,
            exported: 0,
            hooked: BTreeSet::new(),
            excluded: BTreeSet::new(),
            missing: Vec::new(),
        }
    }

    fn add(
        &mut self,
        name: &str,
        hooked: &BTreeSet<String>,
        exclusions: &Exclusions,
        why: impl FnOnce() -> String,
    ) {
        if hooked.contains(name) {
            self.hooked.insert(name.to_owned());
        } else if exclusions.of(name).is_some() {
            self.excluded.insert(name.to_owned());
        } else {
            self.missing.push(Missing { name: name.to_owned(), why: why() });
        }
    }
}

fn row(
    elf: &Elf,
    hooked: &BTreeSet<String>,
    exclusions: &Exclusions,
    families: &BTreeSet<&str>,
) -> (Row, Vec<String>) {
    let names = elf.exports.iter().map(|export| export.name.as_str());
    let reach = reach::reach(elf, &exclusions.dead_ends(names));
    let mut row = Row::new(Libc::of(elf).to_string(), Some(elf.path.clone()));
    row.exported = reach.exports.len();
    let calls: BTreeMap<u32, &'static str> = (0..numbers::LIMIT)
        .filter_map(|number| Some((number, numbers::call(elf.machine, number)?.name)))
        .collect();
    for (name, reached) in &reach.exports {
        let matter: Vec<u32> = reached.iter().filter(|number| calls.contains_key(number)).collect();
        let family = families.contains(name.as_str());
        // What is hooked counts as such even where the way to the kernel goes through a table.
        if !matter.is_empty() || family || hooked.contains(name) {
            row.add(name, hooked, exclusions, || way(&reach, name, &matter, &calls));
        }
    }
    (row, reach.exports.into_keys().collect())
}

fn way(reach: &Reach, name: &str, matter: &[u32], calls: &BTreeMap<u32, &'static str>) -> String {
    let Some(number) = matter.first() else { return "it belongs to a family that must be known".to_owned() };
    let names: Vec<&str> = matter.iter().filter_map(|number| calls.get(number).copied()).collect();
    let mut way = reach.way(name, *number);
    way.truncate(WAY_MAX);
    format!("reaches {} ({})", names.join(", "), way.join(" > "))
}
