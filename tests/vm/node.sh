# Tests of installation, services, two nodes and limits. Sourced by run.sh; each t_NAME runs in a subshell with set -e.
# shellcheck shell=bash

# What a package could leave on a machine.
machine_state() { # node
  on "$1" 'find /etc /opt /usr /var/lib /var/log/pods /run/gantry -xdev -not -path "/var/lib/dpkg/*" -not -path "/var/lib/systemd/*" -not -path "/etc/ssh/*" 2>/dev/null | sed "s/^/file /"
    ip -o link | cut -d: -f2 | sed "s/^/link/; s/@.*//"; nft list ruleset | grep "^table"; awk "{print \"mount\", \$2}" /proc/self/mounts
    find /sys/fs/cgroup -type d -name "*kubepods*" -o -type d -name "*gantry*"; ps -eo comm= | grep -E "gantry|kubelet" | sed "s/^/process /"'
}

t_install() {
  local node
  for node in n1 n2; do
    machine_state $node | sort -u >"$VM_STATE/before-$node"
    ! on $node 'command -v cargo rustc'
    on $node 'dpkg -i /root/gantry_0*.deb'
    on $node 'dpkg -s gantry | grep -q "^Status: install ok installed"'
  done
  on n1 'set -e; for u in gantry-apiserver gantry-cri kubelet; do systemctl cat $u.service >/dev/null; test -s /usr/share/man/man8/$u.8.gz; done
    bash -c ". /usr/share/bash-completion/completions/gantry-cri && complete -p gantry-cri"
    test -x /opt/cni/bin/bridge; /opt/cni/bin/bridge --version || gantry-cni --version
    gantry-cri --config /etc/gantry/cri.toml config check
    test "$(sysctl -n net.ipv4.ip_forward)" = 1; test -d /run/gantry
    systemd-analyze verify kubelet.service gantry-cri.service gantry-apiserver.service 2>&1 | grep -iE "unknown|invalid|fatal" && exit 1 || true'
}

t_start() {
  on n1 'systemctl enable --now gantry-apiserver gantry-cri kubelet'
  tunnel
  until_so 90 "n1 is Ready" node_is_ready n1
  on n1 'set -e; for u in gantry-apiserver gantry-cri kubelet; do systemctl status $u --no-pager | grep "Active: active (running)"; done
    journalctl -u kubelet --no-pager | grep -i "registered"; journalctl -u gantry-cri --no-pager | grep "/run/gantry/cri.sock"
    stat -f -c %T /sys/fs/cgroup | grep cgroup2fs'
  on n1 'gantry-cri image import /root/demo.tar'
  # What was never moved out of a unit would end with it.
  pod first n1 | apply
  until_so 60 "pod first is Ready" pod_is_ready first
  on n1 'for p in $(pidof gantry-monitor); do grep -q service /proc/$p/cgroup && exit 1; done; exit 0'
}

t_join() {
  on n1 'echo "GANTRY_APISERVER_ARGS=--bind-address=0.0.0.0 --tls-san=10.99.0.1" >/etc/default/gantry-apiserver
    systemctl restart gantry-apiserver
    /usr/lib/gantry/node-credentials --node n2 --server https://10.99.0.1:6443 --out /root/for-n2'
  tunnel
  rm -rf "$work/for-n2" && "$vm/copy.sh" n1 vm:/root/for-n2 "$work/for-n2"
  "$vm/copy.sh" n2 "$work/for-n2/kubelet.conf" vm:/etc/kubernetes/kubelet.conf
  "$vm/copy.sh" n2 "$work/for-n2/pki/ca.crt" vm:/etc/kubernetes/pki/ca.crt
  local n
  for n in 1 2; do
    on n$n "echo 'KUBELET_EXTRA_ARGS=--node-ip=10.99.0.$n' >/etc/default/kubelet; grep -q podPidsLimit /var/lib/kubelet/config.yaml || echo 'podPidsLimit: 512' >>/var/lib/kubelet/config.yaml"
  done
  on n1 'systemctl restart kubelet'
  # n2's groups are systemd's, n1's are files: both drivers see every later test.
  on n2 "sed -i '1a cgroup_driver = \"systemd\"' /etc/gantry/cri.toml"
  on n2 'systemctl enable --now gantry-cri kubelet; gantry-cri image import /root/demo.tar'
  until_so 90 "n1 is Ready" node_is_ready n1
  until_so 90 "n2 is Ready" node_is_ready n2
  k get nodes -o wide
  [ "$(k get node n2 -o 'jsonpath={.status.addresses[?(@.type=="InternalIP")].address}')" = 10.99.0.2 ] || fail "n2 has another address"
}

t_remote() {
  { pod a1 n1; pod a2 n2; } | apply
  until_so 60 "a1 is Ready" pod_is_ready a1
  until_so 60 "a2 is Ready" pod_is_ready a2
  local p
  for p in a1 a2; do
    [ "$(k exec $p -- /bin/gantry-demo hostname)" = $p ] || fail "exec in $p answers something else"
    until_so 20 "$p has logs" has_logs $p
  done
  addresses_agree n1 && addresses_agree n2
}
has_logs() { [ "$(k logs "$1" | wc -l)" -gt 0 ]; }

t_limits() {
  apply <<'Y'
apiVersion: v1
kind: Pod
metadata: {name: limited}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: gantry.local/demo:latest
    imagePullPolicy: Never
    args: [sleep, "100000"]
    resources:
      requests: {cpu: "1", memory: 32Mi}
      limits: {cpu: "1500m", memory: 64Mi}
Y
  until_so 60 "pod limited is Ready" pod_is_ready limited
  on n1 'set -e
    pid=$(ps -eo pid,args | awk "\$2 ~ /gantry-demo\$/ && \$3 == \"sleep\" && \$4 == 100000 {print \$1; exit}"); test -n "$pid"
    group=/sys/fs/cgroup$(sed "s/^0:://" /proc/$pid/cgroup); pod=$(dirname $group); echo "group $group"
    see() { echo "$1: $(cat $1), expected $2"; test "$(cat $1)" = "$2"; }
    see $group/memory.max 67108864; see $group/cpu.max "150000 100000"; see $group/cpu.weight 100; see $group/memory.oom.group 1
    see $pod/memory.max 67108864; see $pod/cpu.max "150000 100000"; see $pod/cpu.weight 100; see $pod/pids.max 512
    case $group in /sys/fs/cgroup/kubepods*) ;; *) exit 1 ;; esac'
}

t_oom() {
  apply <<'Y'
apiVersion: v1
kind: Pod
metadata: {name: hungry}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  containers:
  - {name: calm, image: "gantry.local/demo:latest", imagePullPolicy: Never, args: [sleep, "5000"]}
  - name: hog
    image: gantry.local/demo:latest
    imagePullPolicy: Never
    args: [hog, "200"]
    resources: {limits: {memory: 32Mi}}
Y
  until_so 90 "the container was killed and restarted" was_oom_killed
  [ "$(k get pod hungry -o 'jsonpath={.status.containerStatuses[?(@.name=="calm")].restartCount}')" = 0 ] || fail "the neighbour restarted"
  k delete pod hungry --wait=true --timeout=60s
}
was_oom_killed() {
  k get pod hungry -o 'jsonpath={.status.containerStatuses[?(@.name=="hog")]}' | grep '"reason":"OOMKilled"' | grep '"exitCode":137' &&
    [ "$(k get pod hungry -o 'jsonpath={.status.containerStatuses[?(@.name=="hog")].restartCount}')" -ge 1 ]
}

t_apparmor() {
  on n1 'grep -q "^gantry-default (enforce)" /sys/kernel/security/apparmor/profiles
    printf "profile vm-test flags=(attach_disconnected) {\n  file,\n  network,\n  capability,\n  signal,\n  deny /v/secret* w,\n}\n" >/root/vm-test && apparmor_parser -r /root/vm-test'
  confined() { # name profile-type profile
    pod "$1" n1 | sed "s|^  containers:|  securityContext: {appArmorProfile: {type: $2${3:+, localhostProfile: $3}}}\n&|"
  }
  { pod plain n1; confined free Unconfined; confined mine Localhost vm-test; confined lost Localhost not-there; } | apply
  local p
  for p in plain free mine; do until_so 60 "$p is Ready" pod_is_ready $p; done
  [ "$(k exec plain -- /bin/gantry-demo cat /proc/1/attr/current)" = "gantry-default (enforce)" ] || fail "plain has another profile"
  [ "$(k exec free -- /bin/gantry-demo cat /proc/1/attr/current)" = unconfined ] || fail "free is confined"
  [ "$(k exec mine -- /bin/gantry-demo cat /proc/1/attr/current)" = "vm-test (enforce)" ] || fail "mine has another profile"
  # A process that enters later is confined too.
  ! timeout 20 kubectl "${kubectl[@]}" exec mine -- /bin/gantry-demo write /v/secret 1 || fail "the profile did not hold exec"
  until_so 60 "the missing profile is told" tells_missing_profile
  k delete pod plain free mine lost --wait=true --timeout=60s
}
tells_missing_profile() { k get pod lost -o yaml | grep 'not-there" is not loaded\|not-there.* is not loaded'; }
