#!/usr/bin/env bash
# What a kubelet is judged by, each beside its target: pods one after another with others in the background, pods at a
# steady rate, a full node from cold, what the daemons take with all its pods idle (probes every 10 s), and how long the
# kubelet takes from its start to a Ready node. Runs a node of its own in a network namespace; needs root and scripts/build.sh.
# Waits for and keeps out whoever else holds the lock /tmp/node-test.lock: figures beside another node's tests are worth nothing.
#
# usage: kubelet.sh [--output json]
# env:   PODS (110) pods of a full node, BACKGROUND (50), SEQUENTIAL (50), RATED (100) pods at RATE (5) a second,
#        IDLE (60) seconds of watching, STARTS (5) starts of the kubelet
set -uo pipefail
. "$(dirname "$0")/node.sh"
case ${1:-} in -h|--help) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit ;; esac
LOCK=/tmp/node-test.lock
# A daemon that inherited it would hold it when this is over, so flock keeps it to itself.
[ -n "${BENCH_LOCKED:-}" ] || BENCH_LOCKED=1 exec flock -o -w 1800 "$LOCK" "$0" "$@"
own_node "$@"
start_node "maxPods: 600\n"
FORMAT=$([ "${1:-}" = --output ] && echo "${2:-}" || echo table) exec python3 "$(dirname "$0")/kubelet.py"
