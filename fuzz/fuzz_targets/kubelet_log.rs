#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kubelet_server::fuzzing::log(data));
