//! The one developer entry point.
fn main() {}
