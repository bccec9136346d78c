# Starts and stops the three daemons of one node in a state folder. Sourced by up.sh, down.sh and the benchmarks.
# shellcheck shell=bash
#
# Everything that the node makes lies below $STATE (what survives) and $RUN (sockets, volatile state):
#   STATE/apiserver  store, certificates, admin.kubeconfig      STATE/cri      images, snapshots, sandboxes
#   STATE/kubelet    pods' volumes, kubelet's certificates      STATE/pod-logs containers' logs
#   STATE/cni        network configuration, plugins, addresses  STATE/logs     one log per daemon

STATE=${GANTRY_STATE:-/var/lib/gantry-up}
RUN=${GANTRY_RUN:-/run/gantry-up}
NODE_NAME=${GANTRY_NODE_NAME:-$(hostname | tr 'A-Z' 'a-z')}
API_PORT=${GANTRY_API_PORT:-6443}
# The machine is not the node's alone: the kubelet leaves the kernel's settings as they are.
export GANTRY_KERNEL_SETTINGS=keep
KUBELET_PORT=${GANTRY_KUBELET_PORT:-10250}
HEALTHZ_PORT=${GANTRY_HEALTHZ_PORT:-10248}
BRIDGE=${GANTRY_BRIDGE:-gantry0}
POD_CIDR=${GANTRY_POD_CIDR:-10.88.0.0/16}
CGROUP_ROOT=${GANTRY_CGROUP_ROOT:-/}
# Who runs pods: gantry-cri, or containerd (Debian's, with runc), as interop tests want it.
RUNTIME=${GANTRY_RUNTIME:-gantry-cri}
# Folder of CNI plugins; ours are installed there unless it is set to another one (such as Debian's /usr/lib/cni).
CNI_BIN=${GANTRY_CNI_BIN:-$STATE/cni/bin}
API_URL=https://127.0.0.1:$API_PORT
CRI_SOCKET=$RUN/cri.sock
export KUBECONFIG=$STATE/apiserver/admin.kubeconfig

# Writes a file whole or not at all: put FILE <<EOF
put() { mkdir -p "$(dirname "$1")" && cat >"$1.tmp" && mv "$1.tmp" "$1"; }

write_node_config() {
  mkdir -p "$STATE"/{apiserver,cri,kubelet,pod-logs,manifests,cni,logs} "$RUN"
  # Not to be listed, but the root of a pod with user ids of its own goes through both to its files.
  chmod 711 "$STATE" "$RUN"; chmod 700 "$STATE"/{apiserver,pod-logs,logs}
  [ -n "${GANTRY_CNI_BIN:-}" ] || "$BIN_DIR/gantry-cni" install "$CNI_BIN" >/dev/null || return 1
  put "$STATE/cni/net.d/10-gantry.conflist" <<EOF
{
  "cniVersion": "$([ "$RUNTIME" = containerd ] && echo 1.0.0 || echo 1.1.0)",
  "name": "gantry",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "$BRIDGE",
      "isGateway": true,
      "ipMasq": true,
      "hairpinMode": true,
      "ipam": {
        "type": "host-local",
        "dataDir": "$STATE/cni/networks",
        "ranges": [[{"subnet": "$POD_CIDR"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
EOF
  put "$STATE/cri.toml" <<EOF
socket = "$CRI_SOCKET"
root = "$STATE/cri"
state = "$RUN/cri"
runtime_root = "$RUN/run"
cni_conf_dir = "$STATE/cni/net.d"
cni_bin_dirs = ["$CNI_BIN"]
nri_socket = "$RUN/nri.sock"
EOF
  [ "$RUNTIME" != containerd ] || put "$STATE/containerd.toml" <<EOF
version = 2
root = "$STATE/cri"
state = "$RUN/cri"
[grpc]
  address = "$CRI_SOCKET"
[plugins."io.containerd.internal.v1.opt"]
  path = "$STATE/cri-opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "gantry.local/pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$CNI_BIN"
    conf_dir = "$STATE/cni/net.d"
EOF
  # A node to try things on: how full its disk is, is its owner's affair; pods go only when nothing is left.
  put "$STATE/kubelet.yaml" <<EOF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
staticPodPath: $STATE/manifests
podLogsDir: $STATE/pod-logs
containerRuntimeEndpoint: unix://$CRI_SOCKET
address: 127.0.0.1
port: $KUBELET_PORT
healthzPort: $HEALTHZ_PORT
cgroupDriver: cgroupfs
cgroupRoot: $CGROUP_ROOT
clusterDomain: cluster.local
failSwapOn: false
evictionHard: {memory.available: 100Mi, nodefs.available: 200Mi, nodefs.inodesFree: 1%, imagefs.available: 200Mi}
imageGCHighThresholdPercent: 100
authentication:
  anonymous:
    enabled: false
  x509:
    clientCAFile: $STATE/apiserver/pki/ca.crt
authorization:
  mode: Webhook
EOF
}

# daemon NAME PROGRAM ARGS...: starts it unless it runs already; its pid is kept so that only it is ever ended
daemon() {
  local name=$1; shift
  if running "$name"; then return 0; fi
  setsid "$@" >>"$STATE/logs/$name.log" 2>&1 </dev/null &
  printf '%s %s\n' $! "$(start_time $!)" >"$RUN/$name.pid"
}

start_time() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

running() { # the process that we started, not another that got its number
  local pid started
  [ -s "$RUN/$1.pid" ] && read -r pid started <"$RUN/$1.pid" && [ "$(start_time "$pid")" = "$started" ]
}

start_apiserver() {
  daemon gantry-apiserver "$BIN_DIR/gantry-apiserver" --data-dir "$STATE/apiserver" \
    --bind-address 127.0.0.1 --secure-port "$API_PORT"
}
start_cri() {
  case $RUNTIME in
  containerd) daemon gantry-cri containerd --config "$STATE/containerd.toml" ;;
  *) daemon gantry-cri "$BIN_DIR/gantry-cri" --config "$STATE/cri.toml" ;;
  esac
}
start_kubelet() {
  [ -s "$STATE/kubelet.kubeconfig" ] || "$BIN_DIR/gantry-apiserver" kubeconfig --data-dir "$STATE/apiserver" \
    --user "system:node:$NODE_NAME" --group system:nodes --server "$API_URL" --out "$STATE/kubelet.kubeconfig" || return 1
  daemon kubelet "$BIN_DIR/kubelet" --config "$STATE/kubelet.yaml" --kubeconfig "$STATE/kubelet.kubeconfig" \
    --root-dir "$STATE/kubelet" --cert-dir "$STATE/kubelet/pki" --hostname-override "$NODE_NAME" --node-ip "${GANTRY_NODE_IP:-127.0.0.1}" ${GANTRY_KUBELET_ARGS:-}
}

api_ready() { [ -s "$KUBECONFIG" ] && kubectl --request-timeout=2s get --raw /readyz; }
cri_ready() {
  case $RUNTIME in
  containerd) ctr -a "$CRI_SOCKET" version ;;
  *) [ -S "$CRI_SOCKET" ] && "$BIN_DIR/gantry-cri" --config "$STATE/cri.toml" image ls ;;
  esac
}
import_image() { # archive
  case $RUNTIME in
  containerd) ctr -a "$CRI_SOCKET" -n k8s.io images import "$1" ;;
  *) "$BIN_DIR/gantry-cri" --config "$STATE/cri.toml" image import "$1" ;;
  esac
}
remove_pods() {
  case $RUNTIME in
  containerd) "${CRICTL:-crictl}" -r "unix://$CRI_SOCKET" -i "unix://$CRI_SOCKET" -t 60s rmp -a -f ;;
  *) "$BIN_DIR/gantry-cri" --config "$STATE/cri.toml" pods rm --all ;;
  esac
}
node_ready() { [ "$(kubectl get node "$NODE_NAME" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}' 2>/dev/null)" = True ]; }

# stop NAME SECONDS: SIGTERM, then SIGKILL when it does not end in time
stop_daemon() {
  local name=$1 limit=${2:-10} pid end
  running "$name" || { rm -f "$RUN/$name.pid"; return 0; }
  read -r pid _ <"$RUN/$name.pid"
  kill "$pid" 2>/dev/null
  end=$((SECONDS + limit))
  while running "$name" && [ $SECONDS -lt $end ]; do sleep 0.1; done
  ! running "$name" || kill -9 "$pid" 2>/dev/null
  rm -f "$RUN/$name.pid"
}
