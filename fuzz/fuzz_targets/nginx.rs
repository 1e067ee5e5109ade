//! Inputs for [`certs::fuzzing::nginx`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| certs::fuzzing::nginx(input));
