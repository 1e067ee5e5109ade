//! Inputs for [`certs::fuzzing::pem`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| certs::fuzzing::pem(input));
