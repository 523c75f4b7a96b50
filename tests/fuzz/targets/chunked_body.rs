//! Fuzzes `properties::chunked_body`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rateguard_fuzz::chunked_body(bytes));
