#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cri_images::fuzzing::reference(data));
