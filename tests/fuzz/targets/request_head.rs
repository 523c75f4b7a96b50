//! Fuzzes `properties::request_head`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rateguard_fuzz::request_head(bytes));
