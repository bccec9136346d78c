#!/usr/bin/env bash
# How fast pods start and what the daemons weigh: create -> Running and create -> first log line for one pod after another
# and for a batch at once (image present), and memory (PSS) of each daemon idle and with the batch, and per monitor.
# Runs a node of its own in a network namespace; needs root and scripts/build.sh.
#
# usage: pod-start.sh [--output json]
# env:   SEQUENTIAL (20) pods one after another, BATCH (20) pods at once
set -uo pipefail
. "$(dirname "$0")/node.sh"
case ${1:-} in -h|--help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit ;; esac
own_node "$@"
start_node
FORMAT=$([ "${1:-}" = --output ] && echo "${2:-}" || echo table) exec python3 "$(dirname "$0")/pod_start.py"
