//! Which constants the registers may hold at each step of a function: the number of a system call is put into its
//! register some way before the call, through other registers and on more than one path, or is an argument.

use std::collections::{BTreeSet, HashMap};

/// Registers of a machine, at most.
pub(super) const REGISTERS: usize = 32;
/// A register that may hold more values than this holds just anything.
const VALUES_MAX: usize = 6;

/// What a step does to the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// The register holds this afterwards.
    Set(usize, u32),
    /// The first register holds what the second one held.
    Copy(usize, usize),
    /// The registers with a bit here hold something unknown afterwards.
    Lose(u32),
}

impl Effect {
    /// Nothing happens.
    pub(super) const KEEP: Self = Self::Lose(0);
}

/// Where a step goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// To the next one.
    Next,
    /// To another function, and then to the next one.
    Call(u64),
    /// To this address.
    Jump(u64),
    /// To this address or the next one.
    Branch(u64),
    /// Away, or nobody knows where.
    End,
}

/// One instruction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// Its address.
    pub(super) address: u64,
    /// What it does to the registers.
    pub(super) effect: Effect,
    /// Where it goes.
    pub(super) flow: Flow,
}

/// What is known of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// No path has come by yet.
    Unreached,
    /// Anything.
    Any,
    /// What this register held when the function was entered.
    Entry(usize),
    /// One of the first few.
    One(u8, [u32; VALUES_MAX]),
}

impl Value {
    const fn one(value: u32) -> Self {
        let mut values = [0; VALUES_MAX];
        values[0] = value;
        Self::One(1, values)
    }

    /// The constants, none where they are not known.
    pub(super) fn constants(&self) -> &[u32] {
        match self {
            Self::One(len, values) => values.get(..usize::from(*len)).unwrap_or(&[]),
            _ => &[],
        }
    }

    fn join(self, other: Self) -> Self {
        match (self, other) {
            (known, Self::Unreached) | (Self::Unreached, known) => known,
            (a, b) if a == b => a,
            (Self::One(mut len, mut values), Self::One(..)) => {
                for value in other.constants() {
                    if values.iter().take(usize::from(len)).any(|known| known == value) {
                        continue;
                    }
                    let Some(free) = values.get_mut(usize::from(len)) else { return Self::Any };
                    *free = *value;
                    len += 1;
                }
                Self::One(len, values)
            }
            _ => Self::Any,
        }
    }
}

/// What is known of all registers.
pub(super) type State = [Value; REGISTERS];

fn apply(mut state: State, effect: Effect) -> State {
    match effect {
        Effect::Set(register, value) => set(&mut state, register, Value::one(value)),
        Effect::Copy(to, from) => {
            let value = state.get(from).copied().unwrap_or(Value::Any);
            set(&mut state, to, value);
        }
        Effect::Lose(mask) => {
            for (register, value) in state.iter_mut().enumerate() {
                if mask >> register & 1 == 1 {
                    *value = Value::Any;
                }
            }
        }
    }
    state
}

fn set(state: &mut State, register: usize, value: Value) {
    if let Some(slot) = state.get_mut(register) {
        *slot = value;
    }
}

/// What is known before each step. `steps` are in the order of their addresses; the first is where the function is
/// entered.
pub(super) fn states(steps: &[Step]) -> Vec<State> {
    let index: HashMap<u64, usize> = steps.iter().enumerate().map(|(at, step)| (step.address, at)).collect();
    let mut states = vec![[Value::Unreached; REGISTERS]; steps.len()];
    for start in 0..steps.len() {
        let Some(state) = states.get_mut(start) else { break };
        if state.first() != Some(&Value::Unreached) {
            continue;
        }
        // A place that no path seen here leads to is one that a table of jumps leads to: entered with anything.
        *state = match start {
            0 => std::array::from_fn(Value::Entry),
            _ => [Value::Any; REGISTERS],
        };
        spread(steps, &index, &mut states, start);
    }
    states
}

fn spread(steps: &[Step], index: &HashMap<u64, usize>, states: &mut [State], start: usize) {
    // In the order of the addresses, which is mostly that of the paths: each step is come to a few times only.
    let mut waiting = BTreeSet::from([start]);
    while let Some(at) = waiting.pop_first() {
        let (Some(step), Some(state)) = (steps.get(at), states.get(at)) else { continue };
        let after = apply(*state, step.effect);
        let far = |target: u64| index.get(&target).copied();
        let (next, other) = match step.flow {
            Flow::Next | Flow::Call(_) => (Some(at + 1), None),
            Flow::Jump(target) => (None, far(target)),
            Flow::Branch(target) => (Some(at + 1), far(target)),
            Flow::End => (None, None),
        };
        for to in next.into_iter().chain(other) {
            let Some(there) = states.get_mut(to) else { continue };
            let before = *there;
            for (value, more) in there.iter_mut().zip(after) {
                *value = value.join(more);
            }
            if *there != before {
                waiting.insert(to);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(address: u64, effect: Effect, flow: Flow) -> Step {
        Step { address, effect, flow }
    }

    #[test]
    fn values_of_all_paths_meet() {
        let steps = [
            step(0, Effect::Set(1, 257), Flow::Branch(2)),
            step(1, Effect::Set(1, 2), Flow::Next),
            step(2, Effect::Copy(0, 1), Flow::Next),
            step(3, Effect::Lose(0b10), Flow::Next),
            step(4, Effect::KEEP, Flow::End),
            step(5, Effect::KEEP, Flow::End),
        ];
        let states = states(&steps);
        assert_eq!(states[0][1], Value::Entry(1));
        assert_eq!(states[1][1].constants(), [257]);
        assert_eq!(states[2][1].constants(), [257, 2]);
        assert_eq!(states[4][0].constants(), [257, 2]);
        assert_eq!(states[4][1], Value::Any);
        assert_eq!(states[5][3], Value::Any);
    }

    #[test]
    fn loops_come_to_an_end() {
        let steps: Vec<Step> = (0..20)
            .map(|n| step(n, Effect::Set(0, u32::try_from(n).unwrap()), Flow::Branch((n * 7) % 20)))
            .collect();
        assert_eq!(states(&steps).len(), 20);
    }
}
