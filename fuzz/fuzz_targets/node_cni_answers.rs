#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cri::fuzzing::cni_answers(data));
