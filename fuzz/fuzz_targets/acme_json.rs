//! Inputs for [`certs::fuzzing::acme_json`].
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| certs::fuzzing::acme_json(input));
