//! x86-64, decoded by iced-x86. The number of a system call is in eax (syscall(2)).

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use super::constant::{Effect, Flow, Step};
use super::{Code, Facts, Traced, mask};

/// The bytes of `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// How far back decoding begins where the function's begin is not known, in bytes.
const WINDOW: u64 = 96;

pub(super) fn candidates(bytes: &[u8]) -> impl Iterator<Item = usize> {
    bytes.windows(2).enumerate().filter(|(_, pair)| *pair == SYSCALL).map(|(at, _)| at)
}

/// Instructions overlap as one likes, but decoding falls into step after a few of them: the begin from which most
/// instructions lead up to the trap is taken.
pub(super) fn lead_in(code: Code<'_>, trap: u64) -> u64 {
    let lowest = trap.saturating_sub(WINDOW).max(code.address);
    (lowest..trap).find(|start| meets(code, *start, trap)).unwrap_or(trap)
}

fn meets(code: Code<'_>, start: u64, trap: u64) -> bool {
    let mut decoder = decoder(Code { address: start, bytes: rest(code, start) });
    let mut instruction = Instruction::default();
    while decoder.can_decode() && decoder.ip() < trap {
        decoder.decode_out(&mut instruction);
        if instruction.is_invalid() {
            return false;
        }
    }
    decoder.ip() == trap
}

fn rest(code: Code<'_>, start: u64) -> &[u8] {
    let into = usize::try_from(start.saturating_sub(code.address)).unwrap_or(usize::MAX);
    code.bytes.get(into..).unwrap_or(&[])
}

fn decoder(code: Code<'_>) -> Decoder<'_> {
    Decoder::with_ip(64, code.bytes, code.address, DecoderOptions::NONE)
}

pub(super) fn facts(code: Code<'_>) -> Facts {
    let mut facts = Facts::default();
    let mut decoder = decoder(code);
    let mut instruction = Instruction::default();
    let mut traps = false;
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        if let Some(target) = near_target(&instruction) {
            let is_call = instruction.mnemonic() == Mnemonic::Call;
            if is_call { &mut facts.calls } else { &mut facts.jumps }.push(target);
        }
        if instruction.is_ip_rel_memory_operand() {
            let address = instruction.ip_rel_memory_address();
            let list =
                if instruction.mnemonic() == Mnemonic::Lea { &mut facts.takes } else { &mut facts.reads };
            list.push(address);
        }
        traps |= instruction.mnemonic() == Mnemonic::Syscall;
    }
    if traps {
        let traced = traced(code);
        let is_trap = |at: &usize| traced.steps.get(*at).is_some_and(|step| step.effect == AFTER_SYSCALL);
        facts.traps = (0..traced.steps.len()).filter(is_trap).filter_map(|at| traced.trap(at, RAX)).collect();
    }
    facts
}

fn near_target(instruction: &Instruction) -> Option<u64> {
    (instruction.op0_kind() == OpKind::NearBranch64).then(|| instruction.near_branch_target())
}

// Numbers of registers, as instructions encode them.
const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSI: usize = 6;
const RDI: usize = 7;
const R8: usize = 8;
const R9: usize = 9;
const R10: usize = 10;
const R11: usize = 11;
/// System V ABI, AMD64 supplement, 3.2.3.
const ARGUMENTS: &[usize] = &[RDI, RSI, RDX, RCX, R8, R9];
/// What a call does not preserve; ibidem.
const AFTER_CALL: Effect = Effect::Lose(mask(&[RAX, RCX, RDX, RSI, RDI, R8, R9, R10, R11]));
/// What the kernel does not preserve.
const AFTER_SYSCALL: Effect = Effect::Lose(mask(&[RAX, RCX, R11]));

/// Follows the registers through a function.
pub(super) fn traced(code: Code<'_>) -> Traced {
    let mut steps = Vec::new();
    let mut decoder = decoder(code);
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        steps.push(Step {
            address: instruction.ip(),
            effect: effect(&instruction),
            flow: flow(&instruction),
        });
    }
    Traced::new(steps, ARGUMENTS)
}

fn flow(instruction: &Instruction) -> Flow {
    use Mnemonic as M;
    match (instruction.mnemonic(), near_target(instruction)) {
        (M::Call, Some(target)) => Flow::Call(target),
        (M::Jmp, Some(target)) => Flow::Jump(target),
        (_, Some(target)) => Flow::Branch(target),
        (M::Jmp | M::Ret | M::Retf | M::Iretq | M::Ud0 | M::Ud1 | M::Ud2 | M::Hlt | M::Int3, None) => {
            Flow::End
        }
        _ => Flow::Next,
    }
}

/// The register's number, whatever part of it is meant.
fn number(register: Register) -> Option<usize> {
    use Register as R;
    let from = |first: R, number: usize| Some((register as usize).checked_sub(first as usize)? + number);
    match register {
        R::AL | R::CL | R::DL | R::BL => from(R::AL, 0),
        R::AH | R::CH | R::DH | R::BH => from(R::AH, 0),
        _ if (R::SPL..=R::R15L).contains(&register) => from(R::SPL, 4),
        _ if (R::AX..=R::R15W).contains(&register) => from(R::AX, 0),
        _ if (R::EAX..=R::R15D).contains(&register) => from(R::EAX, 0),
        _ if (R::RAX..=R::R15).contains(&register) => from(R::RAX, 0),
        _ => None,
    }
}

/// Writes of 32 bits clear the others (Intel SDM 1, 3.4.1.1).
fn is_whole(register: Register) -> bool {
    (Register::EAX..=Register::R15).contains(&register)
}

fn effect(instruction: &Instruction) -> Effect {
    use Mnemonic as M;
    let (first, second) = (instruction.op0_register(), instruction.op1_register());
    let named = number(first);
    let also = number(second).map_or(0, |register| mask(&[register]));
    let lose = |more: u32| Effect::Lose(named.map_or(0, |register| mask(&[register])) | more);
    match (instruction.mnemonic(), named) {
        (M::Call, _) => AFTER_CALL,
        (M::Syscall, _) => AFTER_SYSCALL,
        (M::Mov, Some(register)) if is_whole(first) => {
            if is_immediate(instruction.op1_kind()) {
                let value = u32::try_from(instruction.immediate(1));
                return value.map_or(lose(0), |value| Effect::Set(register, value));
            }
            match number(second) {
                Some(from) if is_whole(second) => Effect::Copy(register, from),
                _ => lose(0),
            }
        }
        (M::Xor | M::Sub, Some(register)) if is_whole(first) && first == second => Effect::Set(register, 0),
        (M::Cmp | M::Test | M::Push | M::Bt | M::Nop | M::Jmp, _) => Effect::KEEP,
        (M::Xchg | M::Xadd | M::Mulx, _) => lose(also),
        (mnemonic, _) => lose(implied(mnemonic)),
    }
}

/// Registers that an instruction writes though they are none of its operands.
fn implied(mnemonic: Mnemonic) -> u32 {
    use Mnemonic as M;
    match mnemonic {
        M::Mul | M::Imul | M::Div | M::Idiv | M::Cwd | M::Cdq | M::Cqo | M::Cmpxchg => mask(&[RAX, RDX]),
        M::Rdtsc | M::Rdpmc | M::Xgetbv | M::Rdpkru | M::Cmpxchg8b | M::Cmpxchg16b => mask(&[RAX, RDX]),
        M::Cbw | M::Cwde | M::Cdqe | M::Lahf | M::In => mask(&[RAX]),
        M::Cpuid | M::Rdtscp => mask(&[RAX, RBX, RCX, RDX]),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => mask(&[RAX, RSI, RCX]),
        M::Movsb | M::Movsw | M::Movsq | M::Stosb | M::Stosw | M::Stosd | M::Stosq => mask(&[RSI, RDI, RCX]),
        M::Cmpsb | M::Cmpsw | M::Cmpsq | M::Scasb | M::Scasw | M::Scasd | M::Scasq => mask(&[RSI, RDI, RCX]),
        M::Movsd | M::Cmpsd => mask(&[RSI, RDI, RCX]),
        M::Loop | M::Loope | M::Loopne => mask(&[RCX]),
        M::Leave => mask(&[5]),
        _ => 0,
    }
}

fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate32 | OpKind::Immediate64 | OpKind::Immediate32to64 | OpKind::Immediate8to32
    )
}

#[cfg(test)]
mod tests {
    use super::super::{Number, Trap};
    use super::*;

    fn known(address: u64, number: u32) -> Trap {
        Trap { address, number: Number::Known(vec![number]) }
    }

    fn facts_of(bytes: &[u8]) -> Facts {
        facts(Code { address: 0x1000, bytes })
    }

    #[test]
    fn the_number_is_found_behind_other_work() {
        // mov eax, 257; xor r10d, r10d; mov rdi, rsi; syscall; ret
        let code = [0xb8, 1, 1, 0, 0, 0x45, 0x31, 0xd2, 0x48, 0x89, 0xf7, 0x0f, 0x05, 0xc3];
        assert_eq!(facts_of(&code).traps, [known(0x100b, 257)]);
        // mov rax, rdi; syscall
        assert_eq!(facts_of(&[0x48, 0x89, 0xf8, 0x0f, 0x05]).traps[0].number, Number::Argument(0));
        // xor eax, eax; syscall; syscall
        let code = [0x31, 0xc0, 0x0f, 0x05, 0x0f, 0x05];
        let numbers: Vec<_> = facts_of(&code).traps.into_iter().map(|trap| trap.number).collect();
        assert_eq!(numbers, [Number::Known(vec![0]), Number::Unknown]);
        // mov r9d, 40; xchg eax, [rdi]; mov rax, r9; syscall
        let code = [0x41, 0xb9, 40, 0, 0, 0, 0x87, 0x07, 0x4c, 0x89, 0xc8, 0x0f, 0x05];
        assert_eq!(facts_of(&code).traps, [known(0x100b, 40)]);
    }

    #[test]
    fn both_sides_of_a_branch_count() {
        // mov eax, 82; test edi, edi; je +5; mov eax, 316; syscall
        let code = [0xb8, 82, 0, 0, 0, 0x85, 0xff, 0x74, 5, 0xb8, 0x3c, 1, 0, 0, 0x0f, 0x05];
        assert_eq!(facts_of(&code).traps[0].number, Number::Known(vec![82, 316]));
    }

    #[test]
    fn targets_and_addresses_are_found() {
        // call +0x10; lea rdi, [rip+0x20]; call [rip+0x30]; jmp -0x18
        let code = [
            0xe8, 0x10, 0, 0, 0, 0x48, 0x8d, 0x3d, 0x20, 0, 0, 0, 0xff, 0x15, 0x30, 0, 0, 0, 0xe9, 0xe8,
            0xff, 0xff, 0xff,
        ];
        let facts = facts_of(&code);
        assert_eq!(facts.calls, [0x1015]);
        assert_eq!(facts.jumps, [0xfff]);
        assert_eq!(facts.takes, [0x102c]);
        assert_eq!(facts.reads, [0x1042]);
    }

    #[test]
    fn what_is_passed_on_is_known() {
        // mov edi, 257; call +0; mov rsi, rdi; jmp +0
        let code = [0xbf, 1, 1, 0, 0, 0xe8, 0, 0, 0, 0, 0x48, 0x89, 0xfe, 0xe9, 0, 0, 0, 0];
        let passings = traced(Code { address: 0, bytes: &code }).passings(&|_| true);
        let first = passings.first().unwrap();
        assert_eq!(first.callee, 10);
        assert_eq!(first.arguments[..2], [Number::Known(vec![257]), Number::Argument(1)]);
        assert_eq!(passings[1].arguments[1], Number::Unknown);
    }

    #[test]
    fn decoding_falls_into_step() {
        // An unknown begin: three bytes of another instruction, then mov eax, 2; syscall.
        let bytes = [0x89, 0xf8, 0xc3, 0xb8, 2, 0, 0, 0, 0x0f, 0x05];
        let code = Code { address: 0x1000, bytes: &bytes };
        let start = lead_in(code, 0x1008);
        let facts = facts(Code { address: start, bytes: rest(code, start) });
        assert_eq!(facts.traps, [known(0x1008, 2)]);
    }
}
