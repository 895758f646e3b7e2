//! Feeds the fuzzer's bytes to `targets::record`; nothing else.
#![no_main]

#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::record(data));
