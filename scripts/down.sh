#!/usr/bin/env bash
# Removes what scripts/up.sh made: pods, processes, mounts, namespaces, cgroups, links, nft rules and files. Build output
# and installed packages stay. Safe to run at any time, also after a crash or twice. env: as up.sh.
set -uo pipefail
. "$(dirname "$0")/lib.sh"
. "$ROOT/scripts/node.sh"
case ${1:-} in -h|--help) sed -n '2,3s/^# \{0,1\}//p' "$0"; exit ;; '') ;; *) die "unknown argument $1 (see --help)" ;; esac
step "Down"
need_root
[ -d "$STATE" ] || [ -d "$RUN" ] || { good "nothing to remove"; exit 0; }

stop_daemon kubelet
stop_daemon gantry-apiserver
if [ -s "$STATE/cri.toml" ]; then
  start_cri
  if wait_for 20 "the CRI daemon" cri_ready; then
    note "removing pods"
    remove_pods || note "some pods could not be removed (see $STATE/logs/gantry-cri.log)"
  fi
fi
stop_daemon gantry-cri
left=$(awk -v a="$STATE/" -v b="$RUN/" 'index($2, a)==1 || index($2, b)==1 {print $2}' /proc/self/mounts | sort -r)
for m in $left; do umount "$m" 2>/dev/null || umount -l "$m"; done
ip link delete "$BRIDGE" 2>/dev/null
# The pods' parent cgroups: rmdir takes only what is empty.
for top in /sys/fs/cgroup /sys/fs/cgroup/*; do
  [ ! -d "$top$CGROUP_ROOT/kubepods" ] || find "$top$CGROUP_ROOT/kubepods" -depth -type d -exec rmdir {} \; 2>/dev/null
done
[ ! -s "$STATE/ip_forward" ] || cat "$STATE/ip_forward" >/proc/sys/net/ipv4/ip_forward
if awk -v a="$STATE/" -v b="$RUN/" 'index($2, a)==1 || index($2, b)==1 {f=1} END {exit !f}' /proc/self/mounts; then
  die "something is still mounted below $STATE or $RUN: files are kept, run this again"
fi
rm -rf --one-file-system "$STATE" "$RUN" || die "cannot remove $STATE and $RUN"
good "nothing is left"
