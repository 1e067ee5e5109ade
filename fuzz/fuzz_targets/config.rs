//! Inputs for [`certs::fuzzing::config`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| certs::fuzzing::config(input));
