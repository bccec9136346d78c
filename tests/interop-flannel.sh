#!/usr/bin/env bash
# A cluster of two nodes, one with gantry-overlay and one with flannel's own flanneld: each programs the other, and pods of
# both reach each other. Real apiserver, nodes in network namespaces of their own, joined by an underlay.
# env: GANTRY_BIN_DIR (target/gantry/bin), FLANNELD (flanneld)
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bin=${GANTRY_BIN_DIR:-$root/target/gantry/bin} flanneld=${FLANNELD:-flanneld} ns=gantry-flannel-$$
if [ "${INTEROP_FLANNEL:-}" != inside ]; then
  # flanneld writes where it always does.
  export INTEROP_FLANNEL=inside
  exec unshare --mount --propagation private "$0" "$@"
fi
work=$(mktemp -d /var/tmp/gantry-flannel.XXXXXX) || exit 1
pids=()
mkdir -p /run/flannel "$work/run" && mount --bind "$work/run" /run/flannel || exit 1
finish() {
  [ ${#pids[@]} = 0 ] || { kill "${pids[@]}" 2>/dev/null; wait "${pids[@]}"; }
  for n in switch ours theirs; do ip netns delete "$ns-$n"; done
  umount /run/flannel && rmdir /run/flannel 2>/dev/null
  rm -rf --one-file-system "$work"
}
trap finish EXIT
fail() { echo "$*"; tail -n 15 "$work"/*.log; exit 1; }
within() { # SECONDS WHAT COMMAND...
  local end=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >"$work/out" 2>&1; do
    [ $SECONDS -lt $end ] || fail "$what: not in time: $(cat "$work/out")"
    sleep 0.2
  done
}
on() { local n=$1; shift; nsenter --net="/run/netns/$ns-$n" "$@"; }
agent() { local n=$1; shift; nsenter --net="/run/netns/$ns-$n" "$@" & pids+=($!); }
k() { on ours kubectl --kubeconfig "$work/api/admin.kubeconfig" "$@"; }

# Two nodes at one switch, each with a bridge for pods and one pod on it. node NAME NUMBER
ip netns add "$ns-switch" && ip -n "$ns-switch" link add sw type bridge && ip -n "$ns-switch" link set sw up || exit 1
node() {
  ip netns add "$ns-$1" && ip -n "$ns-$1" link set lo up &&
    ip -n "$ns-$1" link add eth0 type veth peer name "p$2" netns "$ns-switch" && ip -n "$ns-switch" link set "p$2" master sw up &&
    ip -n "$ns-$1" addr add "192.0.2.$2/24" dev eth0 && ip -n "$ns-$1" link set eth0 up && ip -n "$ns-$1" route add default via 192.0.2.254 &&
    on "$1" sysctl -qw net.ipv4.ip_forward=1
}
# The pod's address is the bridge's: what arrives there has come through the tunnel. pods NODE
pods() {
  local net; net=$(k get node "$1" -o 'jsonpath={.spec.podCIDR}')
  echo "${net%.*}"
}
node ours 1 && node theirs 2 || exit 1

agent ours "$bin/gantry-apiserver" --data-dir "$work/api" --bind-address 192.0.2.1 --tls-san 192.0.2.1 >"$work/api.log" 2>&1
within 30 "the apiserver answers" k get --raw /readyz
for n in ours theirs; do
  # flanneld dies of a node without annotations; kubelets always write this one.
  printf 'apiVersion: v1\nkind: Node\nmetadata: {name: %s, annotations: {volumes.kubernetes.io/controller-managed-attach-detach: "true"}}\n' $n | k create -f - >/dev/null || fail "node $n"
done
for n in ours theirs; do within 30 "$n has a pod network" test -n "$(k get node $n -o 'jsonpath={.spec.podCIDR}')"; done
echo '{"Network": "10.244.0.0/16", "EnableNFTables": false, "Backend": {"Type": "vxlan"}}' >"$work/net-conf.json"
agent ours "$bin/gantry-overlay" --kubeconfig "$work/api/admin.kubeconfig" --node-name ours --net-config-path "$work/net-conf.json" \
  --subnet-file "$work/ours.env" --ip-masq >"$work/ours.log" 2>&1
agent theirs env NODE_NAME=theirs POD_NAME=flannel POD_NAMESPACE=kube-flannel "$flanneld" --kube-subnet-mgr --kubeconfig-file "$work/api/admin.kubeconfig" \
  --net-config-path "$work/net-conf.json" --subnet-file "$work/theirs.env" --ip-masq >"$work/theirs.log" 2>&1
within 60 "gantry-overlay has written its network" test -s "$work/ours.env"
within 60 "flanneld has written its network" test -s "$work/theirs.env"
for n in ours theirs; do
  on $n ip link add pods type bridge && on $n ip link set pods up && on $n ip addr add "$(pods $n).1/24" dev pods || fail "pods of $n"
done
within 30 "our pods reach theirs" on ours ping -c 1 -W 1 -I "$(pods ours).1" "$(pods theirs).1"
within 30 "their pods reach ours" on theirs ping -c 1 -W 1 -I "$(pods theirs).1" "$(pods ours).1"
through=$(ip -n "$ns-theirs" -s link show flannel.1 | awk '/RX:/ {getline; print $2}')
[ "$through" -gt 0 ] || fail "nothing came through flannel.1"
for key in backend-type backend-data public-ip kube-subnet-manager; do
  for n in ours theirs; do
    [ -n "$(k get node $n -o "jsonpath={.metadata.annotations.flannel\.alpha\.coreos\.com/$key}")" ] || fail "$n has no annotation $key"
  done
done
# Both write the same keys of the subnet file.
diff <(cut -d= -f1 "$work/ours.env" | sort) <(cut -d= -f1 "$work/theirs.env" | sort) || fail "subnet.env differs"
# A node that leaves is forgotten by the other, whichever it is.
k delete node theirs >/dev/null
within 20 "we forget their node" bash -c "! nsenter --net=/run/netns/$ns-ours ip route | grep -q flannel.1"
echo "a node of ours and one of flannel's reach each other"
