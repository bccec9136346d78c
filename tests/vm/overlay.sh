# Tests of the overlay between machines: pods of both nodes reach each other, through restarts of whatever carries them.
# shellcheck shell=bash

web() { # NAME NODE: a pod that answers
  pod "$1" "$2" | sed 's|args: .*|args: [serve, "8080", /v]|'
}
# Each pod asks the other by its address.
see_each_other() {
  local a b
  a=$(k get pod w1 -o 'jsonpath={.status.podIP}') b=$(k get pod w2 -o 'jsonpath={.status.podIP}')
  [ -n "$a" ] && [ -n "$b" ] && [ "$(k exec w1 -- /bin/gantry-demo get "http://$b:8080/hostname")" = w2 ] &&
    [ "$(k exec w2 -- /bin/gantry-demo get "http://$a:8080/hostname")" = w1 ]
}

t_overlay() {
  local n
  for n in n1 n2; do
    on $n 'set -e
      mkdir -p /etc/kube-flannel
      echo "{\"Network\": \"10.244.0.0/16\", \"Backend\": {\"Type\": \"vxlan\"}}" >/etc/kube-flannel/net-conf.json
      echo "GANTRY_OVERLAY_ARGS=--kubeconfig=/etc/kubernetes/kubelet.conf --iface=eth1" >/etc/default/gantry-overlay
      cat >/etc/cni/net.d/10-gantry.conflist <<J
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
J
      systemctl enable --now gantry-overlay'
  done
  for n in n1 n2; do
    until_so 60 "the agent of $n is at work" on $n 'test -s /run/flannel/subnet.env && systemctl is-active gantry-overlay'
    [ "$(k get node $n -o 'jsonpath={.status.conditions[?(@.type=="NetworkUnavailable")].status}')" = False ] || fail "the network of $n is unavailable"
    k get node $n -o yaml | grep 'flannel.alpha.coreos.com/backend-type: vxlan'
  done
  { web w1 n1; web w2 n2; } | apply
  until_so 60 "w1 is Ready" pod_is_ready w1
  until_so 60 "w2 is Ready" pod_is_ready w2
  until_so 20 "pods of both nodes see each other" see_each_other
  on n1 'ip -d link show flannel.1 | grep "vxlan id 1"; ip route | grep "10.244.*flannel.1 .*onlink"'
  # Whatever carries them is killed, or taken away.
  on n2 'kill -9 $(systemctl show -P MainPID gantry-overlay)'
  until_so 30 "they do after the agent was killed" see_each_other
  on n2 'systemctl restart kubelet gantry-cri'
  until_so 30 "they do after the kubelet was restarted" see_each_other
  on n1 'ip link delete flannel.1'
  until_so 15 "they do after the device was deleted" see_each_other
  on n1 'ip route delete $(ip route | grep "flannel.1" | grep -m 1 -o "^10.244[^ ]*")'
  until_so 15 "they do after the route was deleted" see_each_other
}

# After the reboots of n1: the new pods of w1's place and the old one of n2.
t_overlay_later() {
  until_so 120 "pods of both nodes see each other after the reboots" see_each_other
}
