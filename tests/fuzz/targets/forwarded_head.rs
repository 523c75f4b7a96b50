//! Fuzzes `properties::forwarded_head`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| rateguard_fuzz::forwarded_head(bytes));
