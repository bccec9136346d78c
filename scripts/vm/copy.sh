#!/usr/bin/env bash
# Copies files between here and a machine: copy.sh NODE FROM... TO    A machine's path is written vm:PATH.
set -uo pipefail
. "$(dirname "$0")/lib.sh"
case ${1:-} in ''|-h|--help) sed -n '2s/^# \{0,1\}//p' "$0"; exit ;; esac
vm_running "$1" || die "$1 does not run: scripts/vm/up.sh"
vm_scp "$@"
