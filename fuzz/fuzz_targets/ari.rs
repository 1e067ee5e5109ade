//! Inputs for [`certs::fuzzing::ari`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| certs::fuzzing::ari(input));
