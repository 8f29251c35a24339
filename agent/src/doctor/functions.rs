//! Where the functions of a file begin: what its tables and symbols say, and where its code goes. It must not know what
//! the functions do.

use std::collections::BTreeSet;

use super::code;
use super::elf::{Code, Elf};

/// Rows of a table of functions that are believed in.
const ROWS_MAX: usize = 4 << 20;

/// The functions of a file, in the order of their addresses.
#[derive(Debug)]
pub struct Functions {
    starts: Vec<u64>,
}

impl Functions {
    /// What tables and symbols say: enough for files whose functions all have unwind information.
    pub fn of(elf: &Elf) -> Self {
        let mut starts: BTreeSet<u64> = elf.exports.iter().map(|export| export.address).collect();
        starts.extend(unwind_table(elf).unwrap_or_default());
        starts.extend(elf.code().map(|code| code.address));
        starts.retain(|start| elf.is_code(*start));
        Self { starts: starts.into_iter().collect() }
    }

    /// The same, and where calls go: stubs for calls of other libraries have nothing else to tell them apart. In libraries
    /// without unwind information also which code has its address taken, and where tail calls go.
    pub fn searched(elf: &Elf) -> Self {
        let described = unwind_table(elf).map_or(0, |rows| rows.len());
        let mut this = Self::of(elf);
        let calls = elf.code().flat_map(|code| code::facts(elf.machine, code).calls);
        this.add(elf, calls.collect());
        // Few rows are those of hand-written code only.
        if described < elf.exports.len() / 2 {
            this.add(elf, elf.pointers().map(|(_, target)| target).collect());
            let strays = this.strays(elf);
            this.add(elf, strays);
        }
        this
    }

    fn add(&mut self, elf: &Elf, more: Vec<u64>) {
        self.starts.extend(more.into_iter().filter(|start| elf.is_code(*start)));
        self.starts.sort_unstable();
        self.starts.dedup();
    }

    /// Where jumps out of a function go that nobody calls: the functions of tail calls. They are aligned.
    fn strays(&self, elf: &Elf) -> Vec<u64> {
        const ALIGNMENT: u64 = 16;
        let mut strays = Vec::new();
        for function in 0..self.len() {
            let Some(code) = self.code(elf, function) else { continue };
            let own = code.address..code.address.wrapping_add(code.bytes.len() as u64);
            let jumps = code::facts(elf.machine, code).jumps;
            strays.extend(jumps.into_iter().filter(|to| !own.contains(to) && to.is_multiple_of(ALIGNMENT)));
        }
        strays
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Where a function begins.
    pub fn start(&self, function: usize) -> Option<u64> {
        self.starts.get(function).copied()
    }

    /// The function that an address lies in.
    pub fn containing(&self, address: u64) -> Option<usize> {
        self.starts.partition_point(|start| *start <= address).checked_sub(1)
    }

    /// The function that begins at an address.
    pub fn at(&self, address: u64) -> Option<usize> {
        self.starts.binary_search(&address).ok()
    }

    /// The instructions of a function, up to where the next one begins.
    pub fn code<'a>(&self, elf: &'a Elf, function: usize) -> Option<Code<'a>> {
        let start = *self.starts.get(function)?;
        let code = elf.code().find(|code| {
            start.checked_sub(code.address).is_some_and(|into| into < code.bytes.len() as u64)
        })?;
        let from = usize::try_from(start - code.address).ok()?;
        let end = self.starts.get(function + 1).and_then(|next| next.checked_sub(code.address));
        let to = end.and_then(|end| usize::try_from(end).ok()).unwrap_or(usize::MAX).min(code.bytes.len());
        Some(Code { address: start, bytes: code.bytes.get(from..to)? })
    }
}

/// The first column of `.eh_frame_hdr` (Linux Standard Base, "Exception Frame Header"), in its usual encoding.
fn unwind_table(elf: &Elf) -> Option<Vec<u64>> {
    /// Version 1; pointer to the frames: anything of four bytes; count: udata4; rows: pairs of datarel sdata4.
    const COUNT_AND_ROWS: [u8; 2] = [0x03, 0x3b];
    let header = elf.eh_frame_hdr()?;
    let head = elf.bytes_at(header, 12)?;
    if head.first() != Some(&1) || head.get(2..4)? != COUNT_AND_ROWS {
        return None;
    }
    let count = u32::from_le_bytes(head.get(8..12)?.try_into().ok()?) as usize;
    if count > ROWS_MAX {
        return None;
    }
    let rows = elf.bytes_at(header.checked_add(12)?, count.checked_mul(8)?)?;
    let row = |row: &[u8; 8]| {
        let [a, b, c, d, ..] = *row;
        header.wrapping_add_signed(i64::from(i32::from_le_bytes([a, b, c, d])))
    };
    Some(rows.as_chunks().0.iter().map(row).collect())
}
