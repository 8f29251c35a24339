//! What is known about names in a libc: which the shim hooks (read from the shim itself), which it leaves out and why, and
//! which families of functions it must know whatever the libc at hand has.

use std::collections::BTreeSet;
use std::path::Path;

use super::elf::{Elf, ElfError};

const EXCLUSIONS: &str = include_str!("exclusions.txt");
const FAMILIES: &str = include_str!("families.txt");

/// Names of functions that are left to libc for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exclusion {
    /// Names; `*` stands for any characters.
    pub patterns: Vec<&'static str>,
    /// Why.
    pub reason: &'static str,
    /// A use with a path in a translated mount goes unseen.
    pub loses: bool,
}

impl Exclusion {
    /// The pattern that a name fits.
    pub fn pattern_for(&self, name: &str) -> Option<&'static str> {
        self.patterns.iter().find(|pattern| fits(pattern, name)).copied()
    }
}

/// Everything that is excluded.
#[derive(Clone, Debug, Default)]
pub struct Exclusions {
    /// What is not hooked.
    pub left_out: Vec<Exclusion>,
    /// Where the analysis of a libc ends.
    pub dead_ends: Vec<Exclusion>,
}

impl Exclusions {
    /// The list that this program was built with.
    pub fn embedded() -> Self {
        Self::parse(EXCLUSIONS)
    }

    fn parse(text: &'static str) -> Self {
        let mut all = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((names, reason)) = line.split_once(" : ") else { continue };
            let (list, loses, names) = match (names.strip_prefix("stop "), names.strip_prefix("! ")) {
                (Some(names), _) => (&mut all.dead_ends, false, names),
                (None, Some(names)) => (&mut all.left_out, true, names),
                (None, None) => (&mut all.left_out, false, names),
            };
            let patterns = names.split_whitespace().collect();
            list.push(Exclusion { patterns, reason: reason.trim(), loses });
        }
        all
    }

    /// Why a name is not hooked.
    pub fn of(&self, name: &str) -> Option<&Exclusion> {
        self.left_out.iter().find(|exclusion| exclusion.pattern_for(name).is_some())
    }

    /// Those of `names` at which the analysis ends.
    pub fn dead_ends<'a>(&self, names: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
        let is_dead = |name: &&str| self.dead_ends.iter().any(|end| end.pattern_for(name).is_some());
        names.filter(is_dead).map(str::to_owned).collect()
    }
}

/// The names of all families.
pub fn families() -> BTreeSet<&'static str> {
    FAMILIES.lines().filter(|line| !line.starts_with('#')).flat_map(str::split_whitespace).collect()
}

/// The functions that stand in libc's place: the shim's own table of dynamic symbols.
///
/// # Errors
/// The shim cannot be read.
pub fn hooked(shim: &Path) -> Result<BTreeSet<String>, ElfError> {
    Ok(Elf::read(shim)?.exports.into_iter().map(|export| export.name).collect())
}

/// Whether a name fits a pattern.
pub(super) fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name.strip_prefix(head).is_some_and(|rest| {
            rest.char_indices()
                .map(|(at, _)| at)
                .chain([rest.len()])
                .any(|at| rest.get(at..).is_some_and(|rest| fits(tail, rest)))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit() {
        for (pattern, name, fit) in [
            ("open", "open", true),
            ("open", "open64", false),
            ("get*ent", "getpwent", true),
            ("get*ent", "getent", true),
            ("get*ent", "getpwent_r", false),
            ("*gettext", "dcgettext", true),
            ("__res*", "__res_init", true),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXcYb", false),
        ] {
            assert_eq!(fits(pattern, name), fit, "{pattern} {name}");
        }
    }

    #[test]
    fn the_embedded_list_is_well_formed() {
        for line in EXCLUSIONS.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            assert!(line.split_once(" : ").is_some_and(|(_, reason)| reason.len() > 4), "no reason: {line}");
        }
        let all = Exclusions::embedded();
        assert!(all.of("tmpfile").unwrap().loses && !all.of("isatty").unwrap().loses);
        assert!(all.of("open").is_none());
        assert!(families().contains("openat2") && families().len() > 250);
    }
}
