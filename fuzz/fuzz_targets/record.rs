//! Inputs for [`certs::fuzzing::record`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| certs::fuzzing::record(input));
