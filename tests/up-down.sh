#!/usr/bin/env bash
# scripts/up.sh brings a pod up, again on what is there; scripts/down.sh leaves nothing. In a network namespace of its own.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d /var/tmp/gantry-up.XXXXXX) || exit 1
ns=gantry-up-$$
ip netns add "$ns" && ip -n "$ns" link set lo up || exit 1
trap 'ip netns delete "$ns"; rm -rf --one-file-system "$work"' EXIT
export GANTRY_STATE=$work/state GANTRY_RUN=$work/run GANTRY_BIN_DIR=${GANTRY_BIN_DIR:-$root/target/gantry/bin}
look() {
  awk '{print "mount", $2}' /proc/self/mounts
  find /sys/fs/cgroup -type d 2>/dev/null | sed 's/^/cgroup /'
  nsenter --net="/run/netns/$ns" sh -c "ip -o link | cut -d: -f2 | sed 's/^/link/'; nft list ruleset"
  for p in /proc/[0-9]*; do case $(readlink "$p/exe") in "$GANTRY_BIN_DIR"/*) echo "process $p" ;; esac; done
  find "$work" -mindepth 1
}
before=$(look | sort)
for round in 1 2; do
  nsenter --net="/run/netns/$ns" "$root/scripts/up.sh" || { nsenter --net="/run/netns/$ns" "$root/scripts/down.sh"; exit 1; }
done
nsenter --net="/run/netns/$ns" "$root/scripts/down.sh" || exit 1
nsenter --net="/run/netns/$ns" "$root/scripts/down.sh" || exit 1
left=$(comm -13 <(echo "$before") <(look | sort))
[ -z "$left" ] || { echo "left on the host:"; echo "$left"; exit 1; }
