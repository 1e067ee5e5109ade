//! Inputs for [`certs::fuzzing::import`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| certs::fuzzing::import(input));
