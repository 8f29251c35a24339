//! What a stretch of machine code does that matters here: where it goes, which addresses it takes, which system calls it
//! makes. It must not know files or names.

mod arm;
mod constant;
mod x86;

use super::elf::{Code, Machine};

use constant::{REGISTERS, State, Step, Value};

/// What a system call instruction gets as its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Number {
    /// One of these.
    Known(Vec<u32>),
    /// The function's argument in this place, counted from 0.
    Argument(usize),
    /// That cannot be told from the code.
    Unknown,
}

/// A system call instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trap {
    /// Its address.
    pub address: u64,
    /// Its number.
    pub number: Number,
}

/// A call of a function that makes system calls for others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passing {
    /// Address of the function that is called.
    pub callee: u64,
    /// What it gets in each place for an argument.
    pub arguments: Vec<Number>,
}

/// What a function does that matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Targets of direct calls.
    pub calls: Vec<u64>,
    /// Targets of direct jumps, those inside of it among them.
    pub jumps: Vec<u64>,
    /// Addresses that it computes relative to its own: of code, of tables, of variables.
    pub takes: Vec<u64>,
    /// Addresses of words that it reads or calls through.
    pub reads: Vec<u64>,
    /// Its system calls.
    pub traps: Vec<Trap>,
}

/// What can be known of a function's system calls only by following its registers.
struct Traced {
    steps: Vec<Step>,
    states: Vec<State>,
    /// Where arguments are, by number of register.
    arguments: &'static [usize],
}

impl Traced {
    fn new(steps: Vec<Step>, arguments: &'static [usize]) -> Self {
        let states = constant::states(&steps);
        Self { steps, states, arguments }
    }

    fn number(&self, at: usize, register: usize) -> Number {
        let value = self.states.get(at).and_then(|state| state.get(register));
        match value {
            Some(Value::Entry(register)) => self
                .arguments
                .iter()
                .position(|argument| argument == register)
                .map_or(Number::Unknown, Number::Argument),
            Some(value) if !value.constants().is_empty() => Number::Known(value.constants().to_vec()),
            _ => Number::Unknown,
        }
    }

    fn trap(&self, at: usize, register: usize) -> Option<Trap> {
        Some(Trap { address: self.steps.get(at)?.address, number: self.number(at, register) })
    }

    fn passings(&self, to: &dyn Fn(u64) -> bool) -> Vec<Passing> {
        let callee = |step: &Step| match step.flow {
            constant::Flow::Call(target) | constant::Flow::Jump(target) | constant::Flow::Branch(target) => {
                Some(target)
            }
            constant::Flow::Next | constant::Flow::End => None,
        };
        let calls = self.steps.iter().enumerate().filter_map(|(at, step)| Some((at, callee(step)?)));
        calls
            .filter(|(_, callee)| to(*callee))
            .map(|(at, callee)| Passing {
                callee,
                arguments: self.arguments.iter().map(|register| self.number(at, *register)).collect(),
            })
            .collect()
    }
}

/// The calls in a function of those for which `to` says yes, with what they get.
pub fn passings(machine: Machine, code: Code<'_>, to: &dyn Fn(u64) -> bool) -> Vec<Passing> {
    match machine {
        Machine::X86_64 => x86::traced(code).passings(to),
        Machine::Aarch64 => arm::traced(code).passings(to),
        Machine::Other(_) => Vec::new(),
    }
}

/// A bit for each of these registers.
const fn mask(registers: &[usize]) -> u32 {
    let mut mask = 0;
    let mut at = 0;
    while at < registers.len() {
        mask |= 1 << (registers[at] % REGISTERS);
        at += 1;
    }
    mask
}

/// Decodes one function, or any other stretch that begins with an instruction.
pub fn facts(machine: Machine, code: Code<'_>) -> Facts {
    match machine {
        Machine::X86_64 => x86::facts(code),
        Machine::Aarch64 => arm::facts(code),
        Machine::Other(_) => Facts::default(),
    }
}

/// Addresses in `code` whose bytes look like a system call instruction. On x86-64 some of them may be parts of others.
pub fn trap_candidates(machine: Machine, code: Code<'_>) -> Vec<u64> {
    let at = |offset: usize| code.address.wrapping_add(offset as u64);
    match machine {
        Machine::X86_64 => x86::candidates(code.bytes).map(at).collect(),
        Machine::Aarch64 => arm::candidates(code.bytes).map(at).collect(),
        Machine::Other(_) => Vec::new(),
    }
}

/// Bytes of a system call instruction.
pub fn trap_size(machine: Machine) -> usize {
    if machine == Machine::X86_64 { 2 } else { 4 }
}

/// Where decoding may begin so that the instruction at `trap` is met, if nothing says where its function begins.
pub fn lead_in(machine: Machine, code: Code<'_>, trap: u64) -> u64 {
    match machine {
        Machine::X86_64 => x86::lead_in(code, trap),
        Machine::Aarch64 => trap.saturating_sub(arm::WINDOW).max(code.address),
        Machine::Other(_) => trap,
    }
}
