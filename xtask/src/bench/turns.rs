//! Measuring by turns: several programs, asked for the same by turns, see the same machine, however busy it is. It must
//! not know what they are.

use std::process::Command;

use anyhow::Result;

use super::rig::{Talk, numbers};
use super::table::median;

/// Times of one call, in nanoseconds: for each round, one of each program.
#[derive(Default)]
pub struct Rounds(Vec<Vec<f64>>);

impl Rounds {
    /// Adds a round.
    pub fn add(&mut self, round: Vec<f64>) {
        self.0.push(round);
    }

    /// The middle of a program's times.
    pub fn middle(&self, program: usize) -> f64 {
        median(self.0.iter().filter_map(|round| round.get(program).copied()).collect())
    }

    /// The middle of the rounds' own ratios of a program's time to that of the first.
    pub fn ratio(&self, program: usize) -> f64 {
        let ratios = self.0.iter().filter_map(|round| Some(round.get(program)? / round.first()?));
        median(ratios.collect())
    }
}

/// Copies of the program `calls`, each in its own surroundings.
pub struct Turns {
    programs: Vec<Talk>,
    taken: usize,
}

impl Turns {
    /// Starts them.
    pub fn start(commands: impl IntoIterator<Item = Command>) -> Result<Self> {
        let programs = commands.into_iter().map(Talk::start).collect::<Result<_>>()?;
        Ok(Self { programs, taken: 0 })
    }

    /// One round of `count` calls: the CPU's time and the clock's of each program.
    pub fn take(&mut self, call: &str, count: u32, cpu: &mut Rounds, wall: &mut Rounds) -> Result<()> {
        let line = format!("{call} {count}");
        let all = self.programs.len();
        let mut times = vec![[0.0; 2]; all];
        for turn in 0..all {
            // Who goes first changes, too.
            let which = (self.taken + turn) % all;
            if let (Some(program), Some(time)) = (self.programs.get_mut(which), times.get_mut(which)) {
                *time = numbers(&program.ask(&line)?)?;
            }
        }
        self.taken += 1;
        cpu.add(times.iter().map(|[cpu, _]| *cpu).collect());
        wall.add(times.iter().map(|[_, wall]| *wall).collect());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_taken_round_by_round() {
        let mut rounds = Rounds::default();
        // The machine was three times as slow in the second round.
        for round in [[100.0, 110.0], [300.0, 330.0], [100.0, 120.0]] {
            rounds.add(round.to_vec());
        }
        assert_eq!(rounds.middle(0), 100.0);
        assert_eq!(rounds.middle(1), 120.0);
        assert!((rounds.ratio(1) - 1.1).abs() < 1e-9);
    }
}
