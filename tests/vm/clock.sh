#!/usr/bin/env bash
# What a jump of the clock does to gantry-cri: in a machine of its own (no container has a clock that can be set), the date goes a
# day ahead and two days back while pods run, a stop waits out its time and a command has a limit. Nothing may end early or
# late.
#
# usage: clock.sh [--keep]     --keep: leave the machine running
# env:   GANTRY_BIN_DIR  programs (target/gantry/bin, from scripts/build.sh); CRICTL; GANTRY_VM_STATE  its folder
set -uo pipefail
case ${1:-} in -h|--help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit ;; esac
export GANTRY_VM_STATE=${GANTRY_VM_STATE:-/var/tmp/gantry-clock-vm}
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/vm/lib.sh"
need_root
crictl=${CRICTL:-$(command -v crictl)}
[ -x "$crictl" ] || die "there is no crictl (set CRICTL)"
for p in gantry-cri gantry-monitor gantry-run gantry-cni; do [ -x "$BIN_DIR/$p" ] || die "$BIN_DIR/$p is missing: run scripts/build.sh"; done
work=$(mktemp -d) || exit 1
finish() { [ "${1:-}" = --keep ] || "$ROOT/scripts/vm/down.sh" n1 >/dev/null 2>&1; rm -rf "$work"; }
trap 'finish "$@"' EXIT
mkdir -p "$work/bin" "$work/rootfs/bin" && cp "$BIN_DIR"/gantry-{cri,monitor,run,cni} "$work/bin/" && cp "$crictl" "$work/bin/crictl" || exit 1
cp /bin/busybox "$work/rootfs/bin/busybox" && ln -s busybox "$work/rootfs/bin/sh" || die "busybox-static is missing"
"$BIN_DIR/gantry-cri" image build "$work/rootfs" --name gantry.local/clock:1 --cmd /bin/sh --output "$work/image.tar" >/dev/null || die "cannot make the image"
"$ROOT/scripts/vm/up.sh" --nodes 1 --memory 1024 || exit 1
cat >"$work/inside.sh" <<'INSIDE'
set -eu
fail() { echo "FAILED: $*"; tail -n 30 /root/clock/log; exit 1; }
cd /root/clock; export PATH=/root/clock/bin:$PATH
c() { crictl --runtime-endpoint unix:///root/clock/cri.sock --timeout 60s "$@" 2>>/root/clock/crictl.log; }
up() { cut -d' ' -f1 /proc/uptime | cut -d. -f1; }
jump() { date -s "@$(($(date +%s) + $1))" >/dev/null; }
mkdir -p net.d cni logs; bin/gantry-cni install cni >/dev/null
echo '{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"bridge","bridge":"clock0","ipam":{"type":"host-local","dataDir":"/root/clock/ipam","ranges":[[{"subnet":"10.66.0.0/24"}]]}}]}' >net.d/10.conflist
printf 'socket="/root/clock/cri.sock"\nroot="/root/clock/root"\nstate="/run/clock/cri"\nruntime_root="/run/clock/run"\ncni_conf_dir="/root/clock/net.d"\ncni_bin_dirs=["/root/clock/cni"]\nnri_socket=""\nstreaming_idle_seconds=600\n' >cri.toml
gantry-cri --config cri.toml >log 2>&1 </dev/null & daemon=$!
trap 'kill $daemon' EXIT
for i in $(seq 100); do gantry-cri --config cri.toml image ls >/dev/null 2>&1 && break; sleep 0.3; done
gantry-cri --config cri.toml image import image.tar >/dev/null
pod() { # name script
  echo '{"metadata":{"name":"'$1'","namespace":"x","uid":"'$1'","attempt":0},"log_directory":"/root/clock/logs/'$1'","linux":{}}' >$1.pod
  echo '{"metadata":{"name":"'$1'"},"image":{"image":"gantry.local/clock:1"},"command":["/bin/sh","-c","'"$2"'"],"log_path":"c.log","linux":{}}' >$1.json
  c run --no-pull $1.json $1.pod
}
state() { c inspect --output go-template --template '{{.status.state}}' $1; }
steady=$(pod steady 'n=0; while :; do echo $n; n=$((n+1)); /bin/busybox sleep 0.2; done')
c stats $steady >/dev/null
for step in 86400 -172800 86400; do
  # Ends only when it is killed: its time to end is ten seconds, whatever the clock says meanwhile.
  slow=$(pod "slow$((step + 200000))" 'trap : TERM; while :; do /bin/busybox sleep 0.1; done')
  begun=$(up)
  (c stop --timeout 10 $slow >/dev/null; up >stopped) & stopping=$!
  (c exec --sync --timeout 12 $steady /bin/busybox sleep 100 >/dev/null 2>&1; up >cut) & cutting=$!
  sleep 3
  jump $step
  sleep 2
  [ "$(state $slow)" = CONTAINER_RUNNING ] || fail "step $step: a stop with 10 s left killed at once"
  wait $stopping; wait $cutting
  took=$(($(cat stopped) - begun))
  [ $took -ge 9 ] && [ $took -le 40 ] || fail "step $step: the stop of 10 s took $took s"
  took=$(($(cat cut) - begun))
  [ $took -ge 11 ] && [ $took -le 45 ] || fail "step $step: the command of 12 s was ended after $took s"
  [ "$(state $slow)" = CONTAINER_EXITED ] || fail "step $step: it is not ended"
  c rm $slow >/dev/null || fail "step $step: it is not removed"
  [ "$(state $steady)" = CONTAINER_RUNNING ] || fail "step $step: a running container is not running"
  kill -9 $daemon; gantry-cri --config cri.toml >>log 2>&1 </dev/null & daemon=$!
  for i in $(seq 100); do c version >/dev/null && break; sleep 0.3; done
  [ "$(state $steady)" = CONTAINER_RUNNING ] || fail "step $step: it does not outlive the daemon"
  c stats --output json $steady | grep -q '"value": "-' && fail "step $step: a negative figure"
  echo "step $step: fine"
done
for p in $(c pods -q); do c stopp $p >/dev/null; c rmp $p >/dev/null; done
cat logs/steady/c.log | cut -d' ' -f4 | sort -n | awk '{ if ($1 != n) { print "line " n " is missing or twice"; exit 1 } n++ } END { print n " lines" }' || fail "the log"
[ "$(gantry-cri --config cri.toml fsck)" = "nothing found" ] || fail "something is left"
echo "all fine"
INSIDE
vm_ssh n1 'rm -rf /root/clock; mkdir /root/clock'
vm_scp n1 "$work/bin" "$work/image.tar" "$work/inside.sh" vm:/root/clock/ || die "cannot copy to the machine"
step "Jumps"
vm_ssh_limit=420 vm_ssh n1 'bash /root/clock/inside.sh' | sed 's/^/    /'
[ "${PIPESTATUS[0]}" = 0 ] || die "the clock matters"
good "no jump of the clock does harm"
