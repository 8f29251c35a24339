//! The `storeshim` binary.
fn main() {}
