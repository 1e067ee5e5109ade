//! Inputs for [`certs::fuzzing::path`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| certs::fuzzing::path(input));
