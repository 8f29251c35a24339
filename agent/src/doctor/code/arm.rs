//! aarch64, whose instructions all have four bytes. The number of a system call is in x8 (syscall(2)). Encodings: Arm
//! Architecture Reference Manual, C4.1.

use super::constant::{Effect, Flow, Step};
use super::{Code, Facts, Traced, mask};

/// How far back decoding begins where the function's begin is not known, in bytes.
pub(super) const WINDOW: u64 = 256;
const SVC: u32 = 0xd400_0001;
/// The register of the number.
const NUMBER: usize = 8;
/// Registers that a call does not preserve: x0 to x18 (Procedure Call Standard for the Arm 64-bit Architecture, 6.1.1).
const AFTER_CALL: Effect = Effect::Lose((1 << 19) - 1);

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word))
}

pub(super) fn candidates(bytes: &[u8]) -> impl Iterator<Item = usize> {
    words(bytes).enumerate().filter(|(_, word)| *word == SVC).map(|(at, _)| at * 4)
}

/// The low `bits` of `value >> from`, with their sign.
fn signed(value: u32, from: u32, bits: u32) -> i64 {
    i64::from((value << (32 - from - bits)).cast_signed() >> (32 - bits))
}

fn away(pc: u64, by: i64) -> u64 {
    pc.wrapping_add_signed(by)
}

pub(super) fn facts(code: Code<'_>) -> Facts {
    let mut facts = Facts::default();
    // The page that the last adrp put into each register.
    let mut pages = [None; 32];
    for (pc, word) in (code.address..).step_by(4).zip(words(code.bytes)) {
        match flow(pc, word) {
            Flow::Jump(target) | Flow::Branch(target) => facts.jumps.push(target),
            Flow::Call(target) => facts.calls.push(target),
            Flow::Next | Flow::End => {}
        }
        addresses(pc, word, &mut pages, &mut facts);
    }
    if candidates(code.bytes).next().is_some() {
        let traced = traced(code);
        facts.traps = candidates(code.bytes).filter_map(|offset| traced.trap(offset / 4, NUMBER)).collect();
    }
    facts
}

/// Follows the registers through a function.
pub(super) fn traced(code: Code<'_>) -> Traced {
    /// Procedure Call Standard for the Arm 64-bit Architecture, 6.8.2.
    const ARGUMENTS: &[usize] = &[0, 1, 2, 3, 4, 5, 6, 7];
    let steps = (code.address..).step_by(4).zip(words(code.bytes)).map(|(pc, word)| Step {
        address: pc,
        effect: effect(word),
        flow: flow(pc, word),
    });
    Traced::new(steps.collect(), ARGUMENTS)
}

/// bl.
fn is_call(word: u32) -> bool {
    word >> 26 == 0b10_0101
}

fn flow(pc: u64, word: u32) -> Flow {
    match word {
        _ if is_call(word) => Flow::Call(away(pc, signed(word, 0, 26) * 4)),
        // b
        _ if word >> 26 == 0b00_0101 => Flow::Jump(away(pc, signed(word, 0, 26) * 4)),
        // b.cond, cbz, cbnz
        _ if word >> 24 == 0x54 || word >> 25 & 0x3f == 0b01_1010 => {
            Flow::Branch(away(pc, signed(word, 5, 19) * 4))
        }
        // tbz, tbnz
        _ if word >> 25 & 0x3f == 0b01_1011 => Flow::Branch(away(pc, signed(word, 5, 14) * 4)),
        // br, ret
        _ if word & 0xffff_fc1f == 0xd61f_0000 || word & 0xffff_fc1f == 0xd65f_0000 => Flow::End,
        // brk, udf
        _ if word & 0xffe0_001f == 0xd420_0000 || word >> 16 == 0 => Flow::End,
        _ => Flow::Next,
    }
}

fn effect(word: u32) -> Effect {
    let destination = (word & 0x1f) as usize;
    // movz wd/xd, #imm, lsl #0
    if word & 0x7fe0_0000 == 0x5280_0000 {
        return Effect::Set(destination, word >> 5 & 0xffff);
    }
    // mov wd/xd, wm/xm
    if word & 0x7fe0_ffe0 == 0x2a00_03e0 {
        return Effect::Copy(destination, (word >> 16 & 0x1f) as usize);
    }
    // bl, blr
    if is_call(word) || word & 0xffff_fc1f == 0xd63f_0000 {
        return AFTER_CALL;
    }
    if word == SVC {
        return Effect::Lose(1);
    }
    // Nearly all instructions that write a register name it in the lowest bits; stores and compares name others there,
    // and to lose too much does no harm. The second register of a pair and a base that is written back stand elsewhere.
    let load_or_store = word >> 27 & 1 == 1 && word >> 25 & 1 == 0;
    let others =
        if load_or_store { mask(&[(word >> 10 & 0x1f) as usize, (word >> 5 & 0x1f) as usize]) } else { 0 };
    let branch = word >> 26 & 0b111 == 0b101;
    if branch { Effect::KEEP } else { Effect::Lose(mask(&[destination]) | others) }
}

/// adr, and adrp with the add or ldr behind it.
fn addresses(pc: u64, word: u32, pages: &mut [Option<u64>; 32], facts: &mut Facts) {
    let destination = (word & 0x1f) as usize;
    let source = (word >> 5 & 0x1f) as usize;
    let base = pages.get(source).copied().flatten();
    let low = u64::from(word >> 10 & 0xfff);
    let mut page = None;
    match word {
        _ if word & 0x9f00_0000 == 0x9000_0000 => {
            let distance = signed(word, 5, 19) << 2 | i64::from(word >> 29 & 0b11);
            page = Some(away(pc & !0xfff, distance << 12));
        }
        _ if word & 0x9f00_0000 == 0x1000_0000 => {
            facts.takes.push(away(pc, signed(word, 5, 19) << 2 | i64::from(word >> 29 & 0b11)));
        }
        // add x, x, #imm
        _ if word & 0xffc0_0000 == 0x9100_0000 => {
            facts.takes.extend(base.map(|base| base.wrapping_add(low)));
        }
        // ldr x, [x, #imm]
        _ if word & 0xffc0_0000 == 0xf940_0000 => {
            facts.reads.extend(base.map(|base| base.wrapping_add(low << 3)));
        }
        _ => return,
    }
    if let Some(slot) = pages.get_mut(destination) {
        *slot = page;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Number, Trap};
    use super::*;

    fn facts_of(words: &[u32]) -> Facts {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        facts(Code { address: 0x10000, bytes: &bytes })
    }

    #[test]
    fn the_number_is_found() {
        // mov x8, #56; mov x1, x2; svc #0; ret
        let facts = facts_of(&[0xd280_0708, 0xaa02_03e1, SVC, 0xd65f_03c0]);
        assert_eq!(facts.traps, [Trap { address: 0x10008, number: Number::Known(vec![56]) }]);
        // mov w8, #35; bl; svc
        assert_eq!(facts_of(&[0x5280_0468, 0x9400_0001, SVC]).traps[0].number, Number::Unknown);
        // mov x8, x0; svc
        assert_eq!(facts_of(&[0xaa00_03e8, SVC]).traps[0].number, Number::Argument(0));
        // mov w8, #82; cbz x0, +2; mov w8, #83; svc
        let both = [0x5280_0a48, 0xb400_0040, 0x5280_0a68, SVC];
        assert_eq!(facts_of(&both).traps[0].number, Number::Known(vec![82, 83]));
        assert_eq!(candidates(&SVC.to_le_bytes()).collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn targets_and_addresses_are_found() {
        // bl +8; b -4; adrp x0, +0x1000; add x0, x0, #0x10; adrp x1, 0; ldr x1, [x1, #8]; adr x2, +4
        let facts = facts_of(&[
            0x9400_0002,
            0x17ff_ffff,
            0xb000_0000,
            0x9100_4000,
            0x9000_0001,
            0xf940_0421,
            0x1000_0022,
        ]);
        assert_eq!(facts.calls, [0x10008]);
        assert_eq!(facts.jumps, [0x10000]);
        assert_eq!(facts.takes, [0x11010, 0x1001c]);
        assert_eq!(facts.reads, [0x10008]);
    }
}
