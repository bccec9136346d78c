# A node of its own for a benchmark: in a network namespace, its files in a temporary folder, taken down at the end. Sourced.
# shellcheck shell=bash
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

# Runs the calling script again inside a namespace of its own and cleans up after it: own_node "$@"
own_node() {
  need_root
  [ -z "${BENCH_INSIDE:-}" ] || return 0
  local ns=gantry-bench-$$ work code
  work=$(mktemp -d /var/tmp/gantry-bench.XXXXXX) || exit 1
  ip netns add "$ns" && ip -n "$ns" link set lo up || die "cannot make a network namespace"
  export BENCH_INSIDE=1 GANTRY_STATE=$work/state GANTRY_RUN=$work/run GANTRY_BIN_DIR=$BIN_DIR GANTRY_NODE_NAME=bench
  nsenter --net="/run/netns/$ns" "$0" "$@"; code=$?
  nsenter --net="/run/netns/$ns" "$ROOT/scripts/down.sh" >"$work.down.log" 2>&1 || { cat "$work.down.log" >&2; code=1; }
  ip netns delete "$ns"; rm -rf --one-file-system "$work" "$work.down.log"
  exit $code
}

# Starts the daemons, imports the demo image and writes down what a client of the API needs. Extra kubelet settings: $1
start_node() {
  . "$ROOT/scripts/node.sh"
  write_node_config && printf '%b' "${1:-}" >>"$STATE/kubelet.yaml" &&
    start_apiserver && wait_for 30 apiserver api_ready && start_cri && wait_for 30 gantry-cri cri_ready &&
    start_kubelet && wait_for 60 node node_ready || die "the node does not come up" "$STATE/logs/kubelet.log"
  local rootfs; rootfs=$(mktemp -d) && mkdir -p "$rootfs/bin" && cp "$BIN_DIR/gantry-demo" "$rootfs/bin/" &&
    "$BIN_DIR/gantry-cri" image build "$rootfs" --name gantry.local/demo:latest --entrypoint /bin/gantry-demo --output "$rootfs.tar" >/dev/null &&
    import_image "$rootfs.tar" >/dev/null || die "no demo image" "$STATE/logs/gantry-cri.log"
  rm -rf "$rootfs" "$rootfs.tar"
  kubectl config view --raw -o 'jsonpath={.users[0].user.client-certificate-data}' | base64 -d >"$STATE/bench.crt"
  kubectl config view --raw -o 'jsonpath={.users[0].user.client-key-data}' | base64 -d >"$STATE/bench.key"
  export API_URL STATE BIN_DIR RUN NODE_NAME ROOT
}
