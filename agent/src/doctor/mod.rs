//! What of a program or a libc the shim will see, and what not: analysis of ELF files and machine code, and trials. It
//! must not know volumes or the command line.

pub mod aside;
pub mod code;
pub mod coverage;
pub mod elf;
pub mod functions;
pub mod known;
pub mod libc;
pub mod load;
pub mod machine;
pub mod numbers;
pub mod program;
pub mod raw;
pub mod reach;
pub mod report;
pub mod script;
pub mod search;
pub mod selftest;

#[cfg(test)]
mod tests;
