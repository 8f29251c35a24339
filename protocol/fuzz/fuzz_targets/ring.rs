//! A client's ring is whatever bytes the fuzzer thinks of.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| storeshim_protocol::hostile::ring(bytes));
