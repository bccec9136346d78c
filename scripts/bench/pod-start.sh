#!/usr/bin/env bash
# How fast pods start and what the daemons weigh: create -> Running and create -> first log line for one pod after another
# and for a batch at once (image present), and memory (PSS) of each daemon idle and with the batch, and per monitor.
# Runs a node of its own in a network namespace; needs root and scripts/build.sh.
#
# usage: pod-start.sh [--output json]
# env:   SEQUENTIAL (20) pods one after another, BATCH (20) pods at once
set -uo pipefail
. "$(dirname "$0")/../lib.sh"
case ${1:-} in -h|--help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit ;; esac
need_root
ns=gantry-bench-$$
if [ -z "${BENCH_INSIDE:-}" ]; then
  work=$(mktemp -d /var/tmp/gantry-bench.XXXXXX) || exit 1
  ip netns add "$ns" && ip -n "$ns" link set lo up || die "cannot make a network namespace"
  export BENCH_INSIDE=1 GANTRY_STATE=$work/state GANTRY_RUN=$work/run GANTRY_BIN_DIR=$BIN_DIR GANTRY_NODE_NAME=bench
  nsenter --net="/run/netns/$ns" "$0" "$@"; code=$?
  nsenter --net="/run/netns/$ns" "$ROOT/scripts/down.sh" >"$work.down.log" 2>&1 || { cat "$work.down.log" >&2; code=1; }
  ip netns delete "$ns"; rm -rf --one-file-system "$work" "$work.down.log"
  exit $code
fi
. "$ROOT/scripts/node.sh"
write_node_config && start_apiserver && wait_for 30 apiserver api_ready && start_cri && wait_for 30 gantry-cri cri_ready &&
  start_kubelet && wait_for 60 node node_ready || die "the node does not come up" "$STATE/logs/kubelet.log"
rootfs=$(mktemp -d) && mkdir -p "$rootfs/bin" && cp "$BIN_DIR/gantry-demo" "$rootfs/bin/" &&
  "$BIN_DIR/gantry-cri" image build "$rootfs" --name gantry.local/demo:latest --entrypoint /bin/gantry-demo --output "$rootfs.tar" >/dev/null &&
  "$BIN_DIR/gantry-cri" --config "$STATE/cri.toml" image import "$rootfs.tar" >/dev/null || die "no demo image" "$STATE/logs/gantry-cri.log"
rm -rf "$rootfs" "$rootfs.tar"
kubectl config view --raw -o 'jsonpath={.users[0].user.client-certificate-data}' | base64 -d >"$STATE/bench.crt"
kubectl config view --raw -o 'jsonpath={.users[0].user.client-key-data}' | base64 -d >"$STATE/bench.key"
API_URL=$API_URL STATE=$STATE BIN_DIR=$BIN_DIR RUN=$RUN FORMAT=$([ "${1:-}" = --output ] && echo "${2:-}" || echo table) \
  exec python3 "$(dirname "$0")/pod_start.py"
