#!/usr/bin/env bash
# Runs a command in a machine: exec.sh NODE CMD...    Exit code and output are the command's.
set -uo pipefail
. "$(dirname "$0")/lib.sh"
case ${1:-} in ''|-h|--help) sed -n '2s/^# \{0,1\}//p' "$0"; exit ;; esac
vm_running "$1" || die "$1 does not run: scripts/vm/up.sh"
vm_ssh "$@"
