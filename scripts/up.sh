#!/usr/bin/env bash
# Brings up a one-node cluster on this machine and runs a pod on it: builds, starts apiserver, CRI daemon and kubelet in
# the background, makes a demo image without any registry, applies examples/hello.yaml and shows that it works.
# Run it again at any time: it goes on with what is there. scripts/down.sh removes everything.
#
# env: GANTRY_STATE (/var/lib/gantry-up), GANTRY_RUN (/run/gantry-up), GANTRY_NODE_NAME, GANTRY_API_PORT (6443),
#      GANTRY_KUBELET_PORT (10250), GANTRY_HEALTHZ_PORT (10248), GANTRY_BRIDGE (gantry0), GANTRY_POD_CIDR (10.88.0.0/16),
#      GANTRY_BIN_DIR (programs that are built already; nothing is compiled then)
set -uo pipefail
. "$(dirname "$0")/lib.sh"
. "$ROOT/scripts/node.sh"
case ${1:-} in -h|--help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit ;; '') ;; *) die "unknown argument $1 (see --help)" ;; esac

step "Requirements"
need_root
need_packages ca-certificates gcc libc6-dev iproute2
command -v kubectl >/dev/null || need_packages kubernetes-client
ip link show "$BRIDGE" >/dev/null 2>&1 && [ ! -d "$STATE" ] && die "a link named $BRIDGE exists already: set GANTRY_BRIDGE to another name"
good "ready"

step "Programs"
if [ -z "${GANTRY_BIN_DIR:-}" ]; then
  need_cargo
  note "building (the first time takes some minutes)"
  mkdir -p "$ROOT/target" && long "$ROOT/target/build.log" "$ROOT/scripts/build.sh"
fi
for p in gantry-apiserver gantry-cri kubelet gantry-run gantry-monitor gantry-cni gantry-demo; do
  [ -x "$BIN_DIR/$p" ] || die "$BIN_DIR/$p is missing: run scripts/build.sh"
done
good "$BIN_DIR"

step "Node"
write_node_config || die "cannot write the node's configuration below $STATE"
[ -s "$STATE/ip_forward" ] || put "$STATE/ip_forward" </proc/sys/net/ipv4/ip_forward
start_apiserver
wait_for 30 "the apiserver" api_ready || die "gantry-apiserver does not answer at $API_URL" "$STATE/logs/gantry-apiserver.log"
good "gantry-apiserver answers at $API_URL"
start_cri
wait_for 30 "the CRI daemon" cri_ready || die "gantry-cri does not answer at $CRI_SOCKET" "$STATE/logs/gantry-cri.log"
good "gantry-cri answers at $CRI_SOCKET"
start_kubelet || die "cannot make the kubelet's kubeconfig"
wait_for 60 "the node to be Ready" node_ready || die "node $NODE_NAME is not Ready" "$STATE/logs/kubelet.log"
kubectl get nodes -o wide | sed 's/^/    /'

step "Demo image"
if ! "$BIN_DIR/gantry-cri" --config "$STATE/cri.toml" image ls 2>/dev/null | grep -q 'gantry.local/demo'; then
  rootfs=$(mktemp -d) || die "no temporary folder"
  mkdir -p "$rootfs"/{bin,tmp,srv} && chmod 1777 "$rootfs/tmp" && cp "$BIN_DIR/gantry-demo" "$rootfs/bin/gantry-demo"
  archive=$(mktemp) || exit 1
  "$BIN_DIR/gantry-cri" image build "$rootfs" --name gantry.local/demo:latest --entrypoint /bin/gantry-demo \
    --env PATH=/bin --output "$archive" || die "cannot pack the demo image"
  "$BIN_DIR/gantry-cri" --config "$STATE/cri.toml" image import "$archive" || die "cannot import the demo image" "$STATE/logs/gantry-cri.log"
  rm -rf "$rootfs" "$archive"
fi
"$BIN_DIR/gantry-cri" --config "$STATE/cri.toml" image ls | sed 's/^/    /'

step "Pod"
validate=
kubectl version --client 2>/dev/null | grep -q 'Minor:"20"\|v1\.20\.' && validate=--validate=false
kubectl apply $validate -f "$ROOT/examples/hello.yaml" | sed 's/^/    /' || die "kubectl apply failed" "$STATE/logs/gantry-apiserver.log"
pod_ready() { [ "$(kubectl get pod hello -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}')" = True ]; }
if ! wait_for 60 "pod hello to be Ready" pod_ready; then
  kubectl describe pod hello | tail -n 15 | sed 's/^/    /'
  die "pod hello is not Ready" "$STATE/logs/kubelet.log"
fi
kubectl get pods -o wide | sed 's/^/    /'
ip=$(kubectl get pod hello -o 'jsonpath={.status.podIP}')
note "GET http://$ip:8080/config/greeting.txt"
"$BIN_DIR/gantry-demo" get "http://$ip:8080/config/greeting.txt" | sed 's/^/      /' || die "the pod does not answer at $ip:8080" "$STATE/logs/kubelet.log"
wait_for 10 "a line in the shared volume" "$BIN_DIR/gantry-demo" get "http://$ip:8080/shared/lines.txt"
note "GET http://$ip:8080/shared/lines.txt (written by the other container)"
"$BIN_DIR/gantry-demo" get "http://$ip:8080/shared/lines.txt" | tail -n 1 | sed 's/^/      /'
note "kubectl logs hello -c writer"
kubectl logs hello -c writer --tail=2 | sed 's/^/      /' || die "kubectl logs failed" "$STATE/logs/kubelet.log"
note "kubectl exec hello -c writer -- /bin/gantry-demo hostname"
kubectl exec hello -c writer -- /bin/gantry-demo hostname | sed 's/^/      /' || die "kubectl exec failed" "$STATE/logs/kubelet.log"

step "It works. Go on with"
cat <<EOF
    export KUBECONFIG=$KUBECONFIG
    kubectl get pods -A
    crictl --runtime-endpoint unix://$CRI_SOCKET ps      (where crictl is installed)
    logs: $STATE/logs/      remove everything: $ROOT/scripts/down.sh
EOF
