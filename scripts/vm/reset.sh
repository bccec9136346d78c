#!/usr/bin/env bash
# Resets a machine as its reset button would (nothing is flushed), and waits until it is back: reset.sh NODE
set -uo pipefail
. "$(dirname "$0")/lib.sh"
case ${1:-} in ''|-h|--help) sed -n '2s/^# \{0,1\}//p' "$0"; exit ;; esac
node=$1
vm_running "$node" || die "$node does not run: scripts/vm/up.sh"
before=$(vm_ssh "$node" cat /proc/sys/kernel/random/boot_id) || die "$node does not answer"
vm_ssh "$node" -O exit 2>/dev/null
python3 - "$VM_STATE/$node/monitor.sock" <<'PY' || die "QEMU's monitor of $node does not answer"
import socket, sys
s = socket.socket(socket.AF_UNIX); s.settimeout(60); s.connect(sys.argv[1])
# The monitor reads a command only after its prompt, and drops one whose sender hangs up before the next prompt.
def prompt():
    said = b""
    while not said.endswith(b"(qemu) "):
        more = s.recv(4096)
        if not more: sys.exit("the monitor hung up")
        said += more
prompt(); s.sendall(b"system_reset\n"); prompt()
PY
rm -f "$VM_STATE/$node/ssh"
back() { local now; now=$(vm_ssh "$node" cat /proc/sys/kernel/random/boot_id) && [ "$now" != "$before" ]; }
wait_for 240 "$node to boot again" back || die "$node did not come back" "$VM_STATE/$node/console.log"
