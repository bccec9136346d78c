#!/usr/bin/env bash
# Builds the release programs into target/gantry/bin.
#
# The daemons (gantry-apiserver, gantry-cri, kubelet, gantry-overlay) are ordinary release builds. gantry-run, gantry-monitor,
# gantry-cni and the demo program are static and small: they start once per container or live once per pod.
# env: JOBS  parallel compilations (default: all cores)
set -euo pipefail
. "$(dirname "$0")/lib.sh"
need_cargo
cd "$ROOT"
jobs=${JOBS:-$(nproc)}
host=$(rustc -vV | sed -n 's/^host: //p')
target=${CARGO_TARGET_DIR:-$ROOT/target}
flags_var=CARGO_TARGET_$(printf %s "$host" | tr 'a-z-' 'A-Z_')_RUSTFLAGS

cargo build --locked --release -j "$jobs" -p cri -p kubelet -p apiserver -p gantry-overlay
# Beside being static: relocations in their packed form, no unwinding tables.
link="-C link-arg=-Wl,-z,pack-relative-relocs -C link-arg=-Wl,--no-eh-frame-hdr -C link-arg=-Wl,-T,scripts/small.ld"
env "$flags_var=-C target-feature=+crt-static $link" \
  cargo build --locked --profile small --target "$host" -j "$jobs" -p runtime -p gantry-monitor -p cni-plugins -p gantry-demo

mkdir -p "$ROOT/target/gantry/bin"
# A profile that changes one package loses its `strip` for that one.
for p in gantry-apiserver gantry-cri kubelet gantry-overlay; do install -s -m 755 "$target/release/$p" "$ROOT/target/gantry/bin/$p"; done
for p in gantry-run gantry-monitor gantry-cni gantry-demo; do install -s -m 755 "$target/$host/small/$p" "$ROOT/target/gantry/bin/$p"; done
(cd "$ROOT/target/gantry/bin" && ls -l --block-size=K | awk 'NR>1 {printf "%8s  %s\n", $5, $9}')
