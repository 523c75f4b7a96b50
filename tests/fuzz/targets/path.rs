//! Fuzzes `properties::path`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rateguard_fuzz::path(bytes));
