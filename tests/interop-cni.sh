#!/usr/bin/env bash
# Plugins of ours and of others in one network: cnitool, the specification's own tool, with our plugins, with Debian's, and
# with mixed ones; then Debian's plugins under gantry-cri. In a network namespace of its own.
# env: GANTRY_BIN_DIR (target/gantry/bin), CNITOOL (cnitool), CRICTL (crictl), REFERENCE (/usr/lib/cni); what is missing is
# left out, with a line that says so.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bin=${GANTRY_BIN_DIR:-$root/target/gantry/bin} crictl=${CRICTL:-crictl} cnitool=${CNITOOL:-cnitool} reference=${REFERENCE:-/usr/lib/cni}
if [ "${INTEROP_CNI:-}" != inside ]; then
  # cnitool remembers attachments in /var/lib/cni, whatever it is told.
  export INTEROP_CNI=inside
  exec unshare --mount --propagation private "$0" "$@"
fi
mkdir -p /var/lib/cni && mount -t tmpfs none /var/lib/cni || exit 1
work=$(mktemp -d /var/tmp/gantry-interop.XXXXXX) ns=gantry-cnitool-$$ daemon= serving= || exit 1
inside() { nsenter --net="/run/netns/$ns" "$@"; }
finish() {
  [ -z "$serving" ] || kill "$serving"
  [ -z "$daemon" ] || { kill "$daemon" 2>/dev/null; wait "$daemon" 2>/dev/null; }
  awk -v w="$work/" 'index($2, w)==1 {print $2}' /proc/self/mounts | sort -r | xargs -r umount
  for name in $(ip netns list | awk -v n="$ns" 'index($1, n)==1 {print $1}'); do ip netns delete "$name"; done
  rm -rf --one-file-system "$work"
}
# The kernel removes devices after DEL has answered.
left() { for _ in $(seq 100); do ip -n "$ns" -o link | grep -qE 'veth|bwp' || return 1; sleep 0.05; done; ip -n "$ns" -o link; }
fail() { echo "$what: $*"; [ ! -s "$work/log" ] || tail -n 20 "$work/log"; exit 1; }
ip netns add "$ns" && ip -n "$ns" link set lo up || exit 1
trap finish EXIT
# A route to nowhere: the host's address is then one that is not a pod's network's.
ip -n "$ns" link add up0 type bridge && ip -n "$ns" addr add 192.0.2.1/24 dev up0 && ip -n "$ns" link set up0 up
mkdir -p "$work"/{net.d,ours,mixed-ipam,mixed-main}
"$bin/gantry-cni" install "$work/ours" >/dev/null || exit 1
cp -r "$work/ours/." "$work/mixed-ipam" && cp -r "$work/ours/." "$work/mixed-main"
if [ -x "$reference/bridge" ]; then
  ln -sf "$reference/host-local" "$work/mixed-ipam/host-local"
  ln -sf "$reference/bridge" "$work/mixed-main/bridge" && ln -sf "$reference/portmap" "$work/mixed-main/portmap"
fi

list() { # version second-range: the conflist
  cat >"$work/net.d/10.conflist" <<END
{"cniVersion": "$1", "name": "interop", "plugins": [
  {"type": "bridge", "bridge": "interop0", "isGateway": true, "ipMasq": true, "hairpinMode": true, "mtu": 1400,
   "ipam": {"type": "host-local", "dataDir": "$work/ipam", "ranges": [[{"subnet": "10.66.0.0/24"}]$2],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}},
  {"type": "bandwidth", "capabilities": {"bandwidth": true}},
  {"type": "firewall"},
  {"type": "tuning", "sysctl": {"net.core.somaxconn": "555"}, "dataDir": "$work/tuning"}]}
END
}

tool() { # folder-of-plugins verb pod
  # Only one pod can have a port of the host.
  local port=8099; [ "$3" = a ] || port=8100
  inside env CNI_PATH="$1" NETCONFPATH="$work/net.d" CNI_IFNAME=eth0 \
    CAP_ARGS='{"portMappings": [{"hostPort": '$port', "containerPort": 80, "protocol": "tcp"}],
               "bandwidth": {"ingressRate": 80000000, "ingressBurst": 8000000, "egressRate": 80000000, "egressBurst": 8000000}}' \
    timeout 30 "$cnitool" "$2" interop "/run/netns/$ns-$3"
}

attach() { # folder version second-range: two pods come, reach each other and are reached, are looked at, and go; the second one twice
  local folder=$1 version=$2 address
  list "$version" "$3"
  for pod in a b; do
    ip netns add "$ns-$pod" && ip -n "$ns-$pod" link set lo up || fail "no namespace"
    tool "$folder" add "$pod" >"$work/result" || fail "add $pod: $(cat "$work/result")"
    # The reference portmap's CHECK (1.1) looks for rules of IPv6 also where the pod has none.
    [ "$version" = 0.3.1 ] || [ "$(readlink "$folder/portmap")" != gantry-cni ] || tool "$folder" check "$pod" >"$work/result" || fail "check $pod: $(cat "$work/result")"
    [ "$pod" = b ] || { ip netns exec "$ns-a" "$bin/gantry-demo" serve 80 /bin >/dev/null & serving=$!; }
    [ "$pod" = b ] || for _ in $(seq 100); do inside "$bin/gantry-demo" get http://192.0.2.1:8099/healthz >/dev/null 2>&1 && break; sleep 0.1; done
    [ "$pod" = b ] || inside "$bin/gantry-demo" get http://192.0.2.1:8099/healthz >/dev/null || fail "the host port does not lead to the pod"
    address=$(ip -n "$ns-$pod" -4 -o addr show eth0 | awk '{print $4}')
    [ "${address#10.66.0.}" != "$address" ] && [ "${address#*/}" = 24 ] || fail "$pod has address $address"
    ip -n "$ns-$pod" link show eth0 | grep -q 'mtu 1400' || fail "mtu"
    [ "$(ip netns exec "$ns-$pod" sysctl -n net.core.somaxconn)" = 555 ] || fail "sysctl"
  done
  ip netns exec "$ns-b" "$bin/gantry-demo" get http://10.66.0.2/healthz >/dev/null || fail "pods do not reach each other"
  kill "$serving"; wait "$serving" 2>/dev/null; serving=
  tool "$folder" del a >"$work/result" || fail "del a: $(cat "$work/result")"
  ip netns delete "$ns-b"
  ip netns add "$ns-b" # another of the same name: what the attachment had is gone already
  for _ in 1 2; do tool "$folder" del b >"$work/result" || fail "del b: $(cat "$work/result")"; done
  ! ls "$work/ipam/interop" | grep -E '^(10\.|fd66)' || fail "an address is still taken"
  ! left || fail "a device is left"
  ip netns delete "$ns-a"; ip netns delete "$ns-b"
  ip -n "$ns" link delete interop0; rm -rf "$work/ipam"
}

if command -v "$cnitool" >/dev/null; then
  for version in 0.3.1 0.4.0 1.0.0 1.1.0; do
    what="cnitool, our plugins, $version"
    attach "$work/ours" "$version" ', [{"subnet": "fd66::/64"}]'
    [ -z "$(inside nft list ruleset)" ] || fail "rules are left: $(inside nft list ruleset)"
  done
  what="cnitool, our plugins"
  list 1.1.0 ""
  tool "$work/ours" status x || fail "status"
  # An attachment whose namespace and runtime are gone: GC frees what it had.
  ip netns add "$ns-a" && tool "$work/ours" add a >/dev/null && ip netns delete "$ns-a" && rm -rf /var/lib/cni/results || fail "add"
  tool "$work/ours" gc x || fail "gc"
  [ -z "$(inside nft list ruleset)" ] && ! ls "$work/ipam/interop" | grep -E '^(10\.|fd66)' || fail "GC leaves something: $(inside nft list ruleset)"
  ip -n "$ns" link delete interop0; rm -rf "$work/ipam"
  echo "cnitool works with our plugins"
  if [ -x "$reference/bridge" ]; then
    for folder in "$reference" "$work/mixed-ipam" "$work/mixed-main"; do
      what="cnitool, $(basename "$folder")"
      attach "$folder" 1.0.0 ', [{"subnet": "fd66::/64"}]'
    done
    # A node that changes from the reference plugins to ours, with a pod that stays meanwhile, and back.
    what="taking over"
    list 1.0.0 ""
    for pod in a b; do ip netns add "$ns-$pod"; done
    tool "$reference" add a >/dev/null && tool "$work/ours" add b >"$work/result" || fail "add: $(cat "$work/result")"
    ! grep -q '10.66.0.2/' "$work/result" || fail "an address that is taken was given again"
    tool "$work/ours" del a || fail "del a"
    for _ in $(seq 100); do [ "$(ip -n "$ns" -o link | grep -cE 'veth|bwp')" -gt 2 ] || break; sleep 0.05; done
    [ "$(ip -n "$ns" -o link | grep -cE 'veth|bwp')" = 2 ] || fail "a device of the reference plugins is left"
    tool "$reference" del b || fail "del b"
    # The reference plugin knows only devices of its own name.
    ip -n "$ns" link delete "$(ip -n "$ns" -o link | grep -oE 'bwp[0-9a-f]+' | head -n 1)"
    ! ls "$work/ipam/interop" | grep -E '^(10\.|fd66)' || fail "an address is still taken"
    ! left || fail "a device is left"
    for pod in a b; do ip netns delete "$ns-$pod"; done
    ip -n "$ns" link delete interop0; rm -rf "$work/ipam"
    echo "cnitool works with the reference plugins, and with ours among them"
  else
    echo "skipped: reference plugins: $reference has none"
  fi
else
  echo "skipped: cnitool: there is none"
fi

what="reference plugins under gantry-cri"
# Rules of a reference portmap whose pod another plugin removed are left.
! command -v iptables >/dev/null || inside iptables -t nat -F
if ! { [ -x "$reference/bridge" ] && command -v "$crictl" >/dev/null; }; then echo "skipped: $what: crictl or plugins are missing"; exit; fi
cri() { inside "$crictl" -r "unix://$work/c.sock" -i "unix://$work/c.sock" -t 60s "$@"; }
cat >"$work/net.d/10.conflist" <<END
{"cniVersion": "1.0.0", "name": "interop", "plugins": [
  {"type": "bridge", "bridge": "interop0", "isGateway": true, "ipMasq": true, "ipam": {"type": "host-local", "dataDir": "$work/ipam",
   "ranges": [[{"subnet": "10.66.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}, {"type": "bandwidth", "capabilities": {"bandwidth": true}}]}
END
cat >"$work/cri.toml" <<END
socket = "$work/c.sock"
root = "$work/root"
state = "$work/state"
runtime_root = "$work/run"
cni_conf_dir = "$work/net.d"
cni_bin_dirs = ["$reference"]
END
PATH="$bin:$PATH" nsenter --net="/run/netns/$ns" "$bin/gantry-cri" --config "$work/cri.toml" >"$work/log" 2>&1 &
daemon=$!
for _ in $(seq 100); do cri version >/dev/null 2>&1 && break; sleep 0.1; done
pod() { printf '{"metadata": {"name": "%s", "namespace": "d", "uid": "%s"}, "log_directory": "%s", "port_mappings": [%s], "linux": {}}' "$1" "$1" "$work" "$2" >"$work/pod.json"; cri runp "$work/pod.json"; }
first=$(pod one '{"container_port": 80, "host_port": 8099}') || fail "no pod"
second=$(pod two '') || fail "no second pod"
address=$(cri inspectp -o go-template --template '{{.status.network.ip}}' "$first")
[ "${address#10.66.0.}" != "$address" ] || fail "the pod's address is $address"
ls "$work/ipam/interop" | grep -q "^$address\$" || fail "the reference plugin did not give $address"
inside iptables-save -t nat | grep -q 'dport 8099' || inside nft list ruleset | grep -q 8099 || fail "no rule for the host port"
for id in "$first" "$second"; do { cri stopp "$id" && cri rmp "$id"; } >/dev/null || fail "pod $id cannot be removed"; done
! ls "$work/ipam/interop" | grep '^10\.' || fail "an address is still taken"
! inside iptables-save -t nat | grep -q 'dport 8099' || fail "the host port's rule is left: $(inside iptables-save -t nat)"
echo "the reference plugins work under gantry-cri"
