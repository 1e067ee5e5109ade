//! Inputs for [`certs::fuzzing::haproxy`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| certs::fuzzing::haproxy(input));
