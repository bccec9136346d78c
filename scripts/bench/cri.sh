#!/usr/bin/env bash
# How fast a CRI daemon makes and removes pods, call by call through its API, one after another and several at once, how fast
# it answers status calls while pods stand, and what it weighs: gantry-cri, Debian's containerd beside it, and others.
# In a network namespace of its own; needs root and scripts/build.sh.
#
# usage: cri.sh [--output json] [NAME=SOCKET ...]   more daemons that run already (IMAGE must be in their stores)
# env:   ROUNDS (50), PARALLEL (5), STANDING (20; 500 shows status calls on a full node), CONTAINERD=0 leaves it out, CRI_BENCH the built driver,
#        IMAGE (gantry.local/bench:1) image of the containers for further daemons, BENCH_DIR (/var/tmp) where state is kept
set -uo pipefail
. "$(dirname "$0")/../lib.sh"
case ${1:-} in -h|--help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit ;; esac
need_root
format=table
[ "${1:-}" != --output ] || { format=${2:-table}; shift 2; }
for p in gantry-cri gantry-monitor gantry-run gantry-cni gantry-demo; do
  [ -x "$BIN_DIR/$p" ] || die "$BIN_DIR/$p is missing: run scripts/build.sh"
done
driver=${CRI_BENCH:-}
if [ -z "$driver" ]; then
  need_cargo
  (cd "$ROOT" && cargo build --locked --release -p cri --example cri-bench) >&2 || die "the driver does not build"
  driver=${CARGO_TARGET_DIR:-$ROOT/target}/release/examples/cri-bench
fi
work=$(mktemp -d "${BENCH_DIR:-/var/tmp}/gantry-cribench.XXXXXX") ns=gantry-cribench-$$ image=${IMAGE:-gantry.local/bench:1} pids=() || exit 1
finish() {
  local pid
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null; done
  awk -v w="$work/" 'index($2, w)==1 {print $2}' /proc/self/mounts | sort -r | xargs -r umount
  find /sys/fs/cgroup -depth -type d -path '*/gantry-bench-*' -exec rmdir {} + 2>/dev/null
  ip netns delete "$ns"
  rm -rf --one-file-system "$work"
}
network() { # folder name subnet
  mkdir -p "$work/$1.d"
  cat >"$work/$1.d/10.conflist" <<END
{"cniVersion": "1.0.0", "name": "$2", "plugins": [
  {"type": "bridge", "bridge": "$2", "isGateway": true, "ipMasq": true, "ipam": {"type": "host-local", "dataDir": "$work/$1.ipam",
   "ranges": [[{"subnet": "$3"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
END
}
ip netns add "$ns" && ip -n "$ns" link set lo up || die "cannot make a network namespace"
trap finish EXIT
# Daemons keep their volatile state in /run, which is in memory on every distribution but not in every container.
mkdir "$work/volatile" && mount -t tmpfs -o mode=755 volatile "$work/volatile" || die "cannot mount a tmpfs"
mkdir -p "$work/image/bin" && cp "$BIN_DIR/gantry-demo" "$work/image/bin/demo"
"$BIN_DIR/gantry-cri" image build "$work/image" --name gantry.local/bench:1 --entrypoint /bin/demo --cmd sleep --cmd 100000 \
  --output "$work/image.tar" >/dev/null || die "cannot make the image"
targets=()

network gantry gantry0 10.66.0.0/16
"$BIN_DIR/gantry-cni" install "$work/plugins" >/dev/null || die "cannot install the plugins"
cat >"$work/cri.toml" <<END
socket = "$work/cri.sock"
root = "$work/cri"
state = "$work/volatile/cri"
runtime_root = "$work/volatile/run"
cni_conf_dir = "$work/gantry.d"
cni_bin_dirs = ["$work/plugins"]
nri_socket = ""
END
nsenter --net="/run/netns/$ns" "$BIN_DIR/gantry-cri" --config "$work/cri.toml" >"$work/cri.log" 2>&1 &
pids+=($!)
wait_for 30 gantry-cri "$BIN_DIR/gantry-cri" --config "$work/cri.toml" image import "$work/image.tar" ||
  die "gantry-cri does not start" "$work/cri.log"
targets+=(--target "gantry=$work/cri.sock")

if [ "${CONTAINERD:-1}" != 0 ]; then
  need_packages containerd runc containernetworking-plugins iptables
  network containerd ctrd0 10.67.0.0/16
  cat >"$work/containerd.toml" <<END
version = 2
root = "$work/containerd"
state = "$work/volatile/containerd"
[grpc]
  address = "$work/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "gantry.local/bench:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$work/containerd.d"
END
  nsenter --net="/run/netns/$ns" containerd -c "$work/containerd.toml" >"$work/containerd.log" 2>&1 &
  pids+=($!)
  wait_for 30 containerd ctr -a "$work/containerd.sock" version || die "containerd does not start" "$work/containerd.log"
  ctr -a "$work/containerd.sock" -n k8s.io images import "$work/image.tar" >/dev/null ||
    die "containerd does not take the image" "$work/containerd.log"
  wait_for 30 "containerd's network" sh -c "ctr -a '$work/containerd.sock' plugins ls | grep -q 'cri.*ok'"
  targets+=(--target "containerd=$work/containerd.sock")
fi
for other in "$@"; do targets+=(--target "$other"); done
nsenter --net="/run/netns/$ns" "$driver" "${targets[@]}" --image "$image" --rounds "${ROUNDS:-50}" --parallel "${PARALLEL:-5}" \
  --standing "${STANDING:-20}" --output "$format" || die "measuring failed" "$work/cri.log"
