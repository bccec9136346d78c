#!/usr/bin/env bash
# Ends the machines that up.sh started and removes their disks. The image stays.
# usage: down.sh [--keep-disks] [NODE...]
set -uo pipefail
. "$(dirname "$0")/lib.sh"
keep=
case ${1:-} in -h|--help) sed -n '2,3s/^# \{0,1\}//p' "$0"; exit ;; --keep-disks) keep=1; shift ;; esac
for node in ${*:-$(vm_nodes)}; do
  if vm_running "$node"; then
    pid=$(cat "$VM_STATE/$node/pid")
    kill "$pid" 2>/dev/null
    for _ in $(seq 50); do vm_running "$node" || break; sleep 0.1; done
    ! vm_running "$node" || kill -9 "$pid" 2>/dev/null
  fi
  if [ -n "$keep" ]; then rm -f "$VM_STATE/$node"/{pid,port,ssh,*.sock}; else rm -rf --one-file-system "${VM_STATE:?}/$node"; fi
  good "$node is gone"
done
