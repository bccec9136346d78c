#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cri::fuzzing::nri_frames(data));
