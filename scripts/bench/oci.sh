#!/usr/bin/env bash
# Measures gantry-run beside the crun and runc of this machine, in one run.
#   scripts/bench/oci.sh [--rounds N] [--kinds plain full] [--wide N] [--mounts N] [--output table|json]
# GANTRY_RUN names the program (default: the static small build of scripts/build.sh).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
[ "$(id -u)" = 0 ] || { echo "skipped: measuring runtimes needs root" >&2; exit 77; }
program=${GANTRY_RUN:-}
for candidate in "$top/target/x86_64-unknown-linux-gnu/small/gantry-run" "$top/target/small/gantry-run"; do
  [ -n "$program" ] || { [ -x "$candidate" ] && program=$candidate; } || true
done
[ -n "$program" ] || { echo "no gantry-run: build it with scripts/build.sh or set GANTRY_RUN" >&2; exit 1; }
exec python3 "$here/oci.py" --gantry "$program" "$@"
