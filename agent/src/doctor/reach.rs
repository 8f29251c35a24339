//! Which functions of a library can come to which system calls: its call graph, by direct calls and jumps, by pointers
//! that the loader fills, and by code whose address is taken, alone or in a table. It over-approximates: who takes the
//! address of a function may call it. Calls through pointers that are kept elsewhere (FILE's own tables) are not followed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::code::{self, Facts, Number};
use super::elf::{Elf, Export};
use super::functions::Functions;
use super::numbers::LIMIT;

/// Longest table of functions that is followed.
const TABLE_MAX: u64 = 64;

/// A set of system call numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers([u64; LIMIT as usize / 64]);

impl Numbers {
    fn add(&mut self, number: u32) {
        if let Some(word) = self.0.get_mut(number as usize / 64) {
            *word |= 1 << (number % 64);
        }
    }

    /// Adds all of `other`; whether that made a difference.
    fn join(&mut self, other: &Self) -> bool {
        let before = *self;
        for (word, more) in self.0.iter_mut().zip(other.0) {
            *word |= more;
        }
        *self != before
    }

    /// The numbers, smallest first.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        (0..LIMIT).filter(|number| {
            self.0.get(*number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
        })
    }
}

/// What the exported functions of a library can come to.
#[derive(Debug)]
pub struct Reach {
    /// By name; names of one function, and versions of one name, each with what any of them reaches.
    pub exports: BTreeMap<String, Numbers>,
    /// System call instructions whose number cannot be told.
    pub unknown: usize,
    functions: Functions,
    /// What each function makes itself.
    own: Vec<Numbers>,
    callers: Vec<Vec<usize>>,
    entries: BTreeMap<String, usize>,
    names: BTreeMap<usize, String>,
}

impl Reach {
    /// The shortest way from an exported function to a system call: names of functions, `?` and an address for one without
    /// a name. Empty where there is none.
    pub fn way(&self, name: &str, number: u32) -> Vec<String> {
        let Some(&start) = self.entries.get(name) else { return Vec::new() };
        // From the calls back to the function: callers are what is known.
        let makes = |own: &Numbers| own.iter().any(|made| made == number);
        let mut next: BTreeMap<usize, usize> = BTreeMap::new();
        let mut waiting: VecDeque<usize> =
            self.own.iter().enumerate().filter(|(_, own)| makes(own)).map(|(function, _)| function).collect();
        next.extend(waiting.iter().map(|function| (*function, *function)));
        while let Some(function) = waiting.pop_front() {
            if function == start {
                break;
            }
            for caller in self.callers.get(function).into_iter().flatten() {
                next.entry(*caller).or_insert_with(|| {
                    waiting.push_back(*caller);
                    function
                });
            }
        }
        let mut way = Vec::new();
        let mut at = start;
        while let Some(&then) = next.get(&at) {
            way.push(self.name(at));
            if then == at {
                break;
            }
            at = then;
        }
        way
    }

    fn name(&self, function: usize) -> String {
        match self.names.get(&function) {
            Some(name) => name.clone(),
            None => format!("?{:x}", self.functions.start(function).unwrap_or(0)),
        }
    }
}

/// Follows every function of `elf`. What the functions named in `dead_ends` do does not count, neither for them nor for
/// their callers; the same holds for what they alone call directly and nobody exports: their own helpers.
pub fn reach(elf: &Elf, dead_ends: &BTreeSet<String>) -> Reach {
    let functions = Functions::searched(elf);
    let facts: Vec<Facts> = (0..functions.len())
        .map(|function| functions.code(elf, function).map(|code| code::facts(elf.machine, code)))
        .map(Option::unwrap_or_default)
        .collect();
    let dead = dead_functions(elf, &functions, &facts, dead_ends);
    let mut numbers: Vec<Numbers> = vec![Numbers::default(); functions.len()];
    let mut callers: Vec<Vec<usize>> = vec![Vec::new(); functions.len()];
    let mut unknown = 0;
    for (function, facts) in facts.iter().enumerate() {
        if dead.contains(&function) {
            continue;
        }
        for trap in &facts.traps {
            unknown += usize::from(trap.number == Number::Unknown);
            if let (Number::Known(known), Some(own)) = (&trap.number, numbers.get_mut(function)) {
                known.iter().for_each(|number| own.add(*number));
            }
        }
        for target in targets(elf, facts) {
            let callee = functions.containing(target).filter(|callee| *callee != function);
            if let Some(callers) = callee.and_then(|callee| callers.get_mut(callee)) {
                callers.push(function);
            }
        }
    }
    for (function, number) in passed_numbers(elf, &functions, &facts, &callers) {
        if let Some(own) = numbers.get_mut(function).filter(|_| !dead.contains(&function)) {
            own.add(number);
        }
    }
    let own = numbers.clone();
    let mut waiting: Vec<usize> = (0..functions.len()).collect();
    while let Some(function) = waiting.pop() {
        let Some(own) = numbers.get(function).copied() else { continue };
        for caller in callers.get(function).into_iter().flatten() {
            if numbers.get_mut(*caller).is_some_and(|theirs| theirs.join(&own)) {
                waiting.push(*caller);
            }
        }
    }
    let mut exports: BTreeMap<String, Numbers> = BTreeMap::new();
    for export in &elf.exports {
        let own = functions.at(export.address).and_then(|function| numbers.get(function).copied());
        exports.entry(export.name.clone()).or_default().join(&own.unwrap_or_default());
    }
    let at = |export: &Export| Some((functions.at(export.address)?, export.name.clone()));
    let names: BTreeMap<usize, String> = elf.exports.iter().filter_map(at).collect();
    let entries = elf.exports.iter().filter_map(at).map(|(function, name)| (name, function)).collect();
    Reach { exports, unknown, functions, own, callers, entries, names }
}

/// System calls that functions make through others, which get the number as an argument: musl makes all that can be
/// cancelled in this way.
fn passed_numbers(
    elf: &Elf,
    functions: &Functions,
    facts: &[Facts],
    callers: &[Vec<usize>],
) -> Vec<(usize, u32)> {
    let mut passed = Vec::new();
    // Function and place of the argument that is a number.
    let mut makers: BTreeSet<(usize, usize)> = BTreeSet::new();
    for (function, facts) in facts.iter().enumerate() {
        makers.extend(facts.traps.iter().filter_map(|trap| match trap.number {
            Number::Argument(place) => Some((function, place)),
            _ => None,
        }));
    }
    let mut waiting: Vec<(usize, usize)> = makers.iter().copied().collect();
    while let Some((maker, place)) = waiting.pop() {
        for caller in callers.get(maker).into_iter().flatten() {
            let Some(code) = functions.code(elf, *caller) else { continue };
            let to_maker = |callee: u64| functions.at(callee) == Some(maker);
            for passing in code::passings(elf.machine, code, &to_maker) {
                match passing.arguments.get(place) {
                    Some(Number::Known(known)) => {
                        passed.extend(known.iter().map(|number| (*caller, *number)));
                    }
                    Some(Number::Argument(place)) if makers.insert((*caller, *place)) => {
                        waiting.push((*caller, *place));
                    }
                    _ => {}
                }
            }
        }
    }
    passed
}

/// Code that a function may come to.
fn targets(elf: &Elf, facts: &Facts) -> Vec<u64> {
    let mut targets: Vec<u64> = facts.calls.iter().chain(&facts.jumps).copied().collect();
    let mut taken = facts.takes.clone();
    taken.extend(facts.reads.iter().filter_map(|place| elf.pointer_at(*place)));
    for address in taken {
        if elf.is_code(address) {
            targets.push(address);
            continue;
        }
        let table = (0..TABLE_MAX).map_while(|row| elf.pointer_at(address.wrapping_add(row * 8)));
        targets.extend(table.take_while(|target| elf.is_code(*target)));
    }
    targets
}

fn dead_functions(
    elf: &Elf,
    functions: &Functions,
    facts: &[Facts],
    dead_ends: &BTreeSet<String>,
) -> BTreeSet<usize> {
    let exported: BTreeSet<usize> =
        elf.exports.iter().filter_map(|export| functions.at(export.address)).collect();
    let named = elf.exports.iter().filter(|export| dead_ends.contains(&export.name));
    let mut dead: BTreeSet<usize> = named.filter_map(|export| functions.at(export.address)).collect();
    let helpers: Vec<usize> = dead
        .iter()
        .filter_map(|function| facts.get(*function))
        .flat_map(|facts| facts.calls.iter().chain(&facts.jumps))
        .filter_map(|target| functions.at(*target))
        .filter(|callee| !exported.contains(callee))
        .collect();
    dead.extend(helpers);
    dead
}
