#!/usr/bin/env bash
# Tests the Debian package on machines with systemd and cgroup v2: installation, services, two nodes, limits, restarts,
# crashes, reboots, upgrade, purge; with --small also what takes longer: what a machine does that runs out of memory or
# disk, or is switched off (n3), and whose clock is set (n1). The machines are scripts/vm's n1, n2 and, small, n3: new at
# the start and gone at the end.
#
# usage: run.sh [--keep] [--small] [TEST...]     --keep: leave the machines running; --small: with n3, its tests and clock
#        run.sh --again [--small] TEST...        on the machines that --keep left, as they are
# env:   GANTRY_BIN_DIR  programs to package (target/gantry/bin, from scripts/build.sh)
set -uo pipefail
keep= again= small= only=()
while [ $# -gt 0 ]; do
  case $1 in -h|--help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit ;; --keep) keep=1 ;; --again) keep=1 again=1 ;; --small) small=1 ;; *) only+=("$1") ;; esac
  shift
done
declare -A needs_all=()
[ -n "$again" ] || needs_all=([install]=1 [start]=1 [join]=1)
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$(dirname "${BASH_SOURCE[0]}")/node.sh"
. "$(dirname "${BASH_SOURCE[0]}")/life.sh"
. "$(dirname "${BASH_SOURCE[0]}")/cgroups.sh"
. "$(dirname "${BASH_SOURCE[0]}")/overlay.sh"
. "$(dirname "${BASH_SOURCE[0]}")/runtime.sh"
. "$(dirname "${BASH_SOURCE[0]}")/small.sh"
. "$(dirname "${BASH_SOURCE[0]}")/clock.sh"
finish() { [ -n "$keep" ] || "$vm/down.sh" n1 n2 n3 >/dev/null 2>&1; rm -rf "$work"; }
trap finish EXIT
trap 'exit 130' INT TERM

need_root
command -v kubectl >/dev/null || need_packages kubernetes-client
need_packages python3
main() {
  if [ -z "$again" ]; then
    step "Package"
    deb=$(OUT=$work "$ROOT/scripts/package.sh") || die "the package could not be built"
    next=$(OUT=$work "$ROOT/scripts/package.sh" --version 99.0.0) || die "the package could not be built"
    archive=$work/demo.tar
    rootfs=$work/rootfs
    mkdir -p "$rootfs"/{bin,tmp,v} && cp "$BIN_DIR/gantry-demo" "$rootfs/bin/" && chmod 1777 "$rootfs/tmp"
    "$BIN_DIR/gantry-cri" image build "$rootfs" --name gantry.local/demo:latest --entrypoint /bin/gantry-demo --env PATH=/bin --output "$archive" >"$work/image.log" 2>&1 ||
      die "cannot pack the demo image" "$work/image.log"
    [ -z "$small" ] || make_fillers >>"$work/image.log" 2>&1 || die "cannot pack images to fill a disk with" "$work/image.log"
    good "$deb"
    "$vm/down.sh" n1 n2 n3 >/dev/null 2>&1
    machines $((2 + ${small:-0})) || exit 1
    for node in n1 n2; do "$vm/copy.sh" $node "$deb" "$next" "$archive" vm:/root/ || die "cannot copy to $node"; done
    [ -z "$small" ] || "$vm/copy.sh" n3 "$deb" "$work"/filler-?.tar vm:/root/ || die "cannot copy to n3"
  fi

  step "Tests"
  try runtime "the OCI runtime's own suite, with cgroups of files and of systemd, under AppArmor"
  try rootless "a normal user's containers: the own id, those of /etc/subuid, limits by the user's systemd"
  try install "the package installs on a clean machine and brings units, configuration, man pages, completions"
  try start "the quick start: start the services, the node is Ready, status and journal tell so"
  tunnel || die "the apiserver of n1 cannot be reached" "$VM_STATE/n1/console.log"
  try join "a second machine joins with credentials made on the first"
  try remote "pods run on both nodes; logs and exec reach the remote one"
  try limits "limits of cpu, memory and processes stand in the cgroup's files"
  if [ -n "$small" ]; then
    try small "a small machine joins"
    try evict "memory and disk that run short: garbage goes first, then the right pod with its reason, and no other"
    try shutdown "a machine that is switched off: pods end in the order of their priority, and tell so before it is off"
  fi
  try oom "a container over its memory limit is OOMKilled and restarted, its neighbour is not"
  try controllers "every controller of cgroup v2 limits a container of gantry-run"
  try units "so it does when systemd makes the cgroup, which a reload and an early end leave right"
  try memory "memory QoS: what a container may use freely and what is left to it stands in its groups"
  try systemd "a node under the systemd driver: slices, scopes, limits, OOM kills, restarts, removal"
  [ -z "$small" ] || try boot "the machine that was switched off: new pods run, ended ones stay ended, the other kind of grace period"
  try restart "systemctl restart of kubelet and gantry-cri restarts no container"
  try kill "kill -9 of kubelet and gantry-cri restarts no container, readiness and Events stay calm"
  try watchdog "a daemon that hangs is restarted by the watchdog"
  [ -z "$small" ] || try clock "a clock that is set a day ahead and back: nothing ends early or late, and nothing waits for a day"
  try apparmor "containers run under the package's profile, or the one that they ask for if it is loaded"
  try overlay "pods of both nodes see each other through the overlay, whatever of it is killed or deleted"
  try reboot "a reboot with 20 pods: all come back, no address is lost"
  try reset "a hard reset with 20 pods: all come back, no address is lost"
  try overlay_later "pods of both nodes see each other after the reboots"
  try upgrade "an upgrade of the package keeps pods running"
  try purge "removal ends the pods, purge leaves nothing"

  step "Result"
  [ "$failed" = 0 ] || note "failed: ${failures[*]}"
  echo "$passed passed, $failed failed"
  [ "$failed" = 0 ]
}

# In one piece, so that a change of this file while it runs changes nothing.
main; exit
