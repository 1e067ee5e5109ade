//! Inputs for [`certs::fuzzing::http1`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| certs::fuzzing::http1(input));
