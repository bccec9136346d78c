#!/usr/bin/env bash
# How fast the CNI plugins are, against Debian's containernetworking-plugins in the same run, call by call in turn:
# medians of ADD and DEL in milliseconds and their ratio, without and with standing pods, and peak memory. For bridge ADD also
# what the kernel alone takes for the same requests, and what is left of ours without that and the start of a program.
# In a network namespace of its own; needs root and scripts/build.sh.
#
# usage: cni.sh [--output json]
# env:   ROUNDS (30), QUANTILE (0.5, the median; less on a machine with other work), STANDING ("100 1000") pods that stand in the
#        further parts; of the reference plugins at most 100 stand, whose rules grow with them;
#        REFERENCE (/usr/lib/cni) the folder of plugins to compare with; REALTIME (unset) anything: runs before the machine's
#        other work
set -uo pipefail
. "$(dirname "$0")/../lib.sh"
case ${1:-} in -h|--help) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit ;; esac
need_root
[ -z "${REALTIME:-}" ] || chrt -f -p 10 $$ || die "this machine gives no real-time priority"
need_packages containernetworking-plugins iptables iproute2
[ -x "$BIN_DIR/gantry-cni" ] || die "$BIN_DIR/gantry-cni is missing: run scripts/build.sh"
work=$(mktemp -d) ns=gantry-cnibench-$$ || exit 1
ip netns add "$ns" && ip -n "$ns" link set lo up || die "cannot make a network namespace"
trap 'for n in $(ip netns list | awk -v p="^$ns" "\$1 ~ p {print \$1}"); do ip netns delete "$n"; done; rm -rf "$work"' EXIT
"$BIN_DIR/gantry-cni" install "$work/bin" >/dev/null || die "cannot install the plugins"
FORMAT=$([ "${1:-}" = --output ] && echo "${2:-}" || echo table) PREFIX=$ns WORK=$work \
  nsenter --net="/run/netns/$ns" python3 "$(dirname "$0")/cni.py"
