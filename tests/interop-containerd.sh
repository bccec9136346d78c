#!/usr/bin/env bash
# Debian's containerd calls our CNI plugins: a pod gets an address and a host port, and nothing is left after it.
# In a network namespace of its own. env: GANTRY_BIN_DIR (target/gantry/bin), CRICTL (crictl)
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bin=${GANTRY_BIN_DIR:-$root/target/gantry/bin} crictl=${CRICTL:-crictl}
work=$(mktemp -d /var/tmp/gantry-interop.XXXXXX) ns=gantry-interop-$$ daemon= || exit 1
inside() { nsenter --net="/run/netns/$ns" "$@"; }
cri() { inside "$crictl" -r "unix://$work/c.sock" -i "unix://$work/c.sock" -t 60s "$@"; }
finish() {
  [ -z "$daemon" ] || { kill "$daemon" 2>/dev/null; wait "$daemon" 2>/dev/null; }
  awk -v w="$work/" 'index($2, w)==1 {print $2}' /proc/self/mounts | sort -r | xargs -r umount
  ip netns delete "$ns"
  find /sys/fs/cgroup -depth -type d -path "*/$ns*" -exec rmdir {} \; 2>/dev/null
  rm -rf --one-file-system "$work"
}
fail() { echo "$*"; tail -n 20 "$work/log"; exit 1; }
ip netns add "$ns" && ip -n "$ns" link set lo up || exit 1
trap finish EXIT
mkdir -p "$work"/{net.d,image/bin}
cat >"$work/config.toml" <<END
version = 2
root = "$work/root"
state = "$work/state"
[grpc]
  address = "$work/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "gantry.local/pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$work/bin"
    conf_dir = "$work/net.d"
END
cat >"$work/net.d/10.conflist" <<END
{"cniVersion": "1.0.0", "name": "interop", "plugins": [
  {"type": "bridge", "bridge": "interop0", "isGateway": true, "ipMasq": true, "ipam": {"type": "host-local", "dataDir": "$work/ipam",
   "ranges": [[{"subnet": "10.66.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
END
"$bin/gantry-cni" install "$work/bin" >/dev/null || exit 1
cp "$bin/gantry-demo" "$work/image/bin/pause"
"$bin/gantry-cri" image build "$work/image" --name gantry.local/pause:1 --entrypoint /bin/pause --cmd serve --cmd 80 --cmd /bin \
  --output "$work/pause.tar" >/dev/null || exit 1
nsenter --net="/run/netns/$ns" containerd -c "$work/config.toml" >"$work/log" 2>&1 &
daemon=$!
for _ in $(seq 100); do ctr -a "$work/c.sock" version >/dev/null 2>&1 && break; sleep 0.2; done
ctr -a "$work/c.sock" -n k8s.io images import "$work/pause.tar" >/dev/null || fail "containerd does not take the image"
echo '{"metadata": {"name": "p", "namespace": "d", "uid": "u1"}, "port_mappings": [{"container_port": 80, "host_port": 8099}], "linux": {"cgroup_parent": "/'"$ns"'"}}' >"$work/pod.json"
id=$(cri runp "$work/pod.json") || fail "no pod"
for _ in $(seq 50); do inside "$bin/gantry-demo" get http://127.0.0.1:8099/healthz >/dev/null 2>&1 && break; sleep 0.1; done
inside "$bin/gantry-demo" get http://127.0.0.1:8099/healthz || fail "the host port does not lead to the pod"
{ cri stopp "$id" && cri rmp "$id"; } || fail "the pod cannot be removed"
[ -z "$(inside nft list ruleset)" ] || fail "rules are left: $(inside nft list ruleset)"
! ls "$work/ipam/interop" | grep '^10\.' || fail "an address is still taken"
