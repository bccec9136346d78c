#!/bin/sh
# Cargo's wrapper around rustc (RUSTC_WRAPPER): what is in this repository is compiled so that libFuzzer sees which branches an
# input takes, and compares with what; everything else as always, and so shared with the tests' build.
case ${CARGO_MANIFEST_DIR:-} in
"${0%/fuzz/rustc.sh}"/*)
  case " $* " in
  # Runs while building, without libFuzzer.
  *" --crate-name build_script_"*) ;;
  *" --crate-type lib "* | *" --crate-type bin "*)
    exec "$@" -C passes=sancov-module -C llvm-args=-sanitizer-coverage-level=4 \
      -C llvm-args=-sanitizer-coverage-inline-8bit-counters -C llvm-args=-sanitizer-coverage-pc-table \
      -C llvm-args=-sanitizer-coverage-trace-compares
    ;;
  esac
  ;;
esac
exec "$@"
