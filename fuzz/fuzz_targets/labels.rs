//! Inputs for [`certs::fuzzing::labels`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| certs::fuzzing::labels(input));
