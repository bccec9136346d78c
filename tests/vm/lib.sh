# Shared by the machine tests: running them in order, asking the cluster, waiting. Sourced by run.sh.
# shellcheck shell=bash

. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/vm/lib.sh"
vm=$ROOT/scripts/vm
work=$(mktemp -d) || exit 1
passed=0 failed=0 failures=()

# A command on a machine: on NODE COMMAND. Five minutes are a hang.
on() { vm_ssh_limit=300 vm_ssh "$@"; }

# A test fails where this says so; the reason is the last thing that is read.
fail() { echo "FAILED: $*"; exit 1; }

# Runs one test in a subshell, so that its failure ends only itself: try NAME WHAT
try() {
  local name=$1 what=$2 start=$SECONDS log=$work/$1.log
  [ ${#only[@]} = 0 ] || case " ${only[*]} " in *" $name "*) ;; *) [ "${needs_all[$name]:-}" ] || return 0 ;; esac
  # Not in the condition itself: there the shell ignores "set -e", and only the last command of a test could fail it.
  (set -e; "t_$name") >"$log" 2>&1
  if [ $? = 0 ]; then
    passed=$((passed + 1)); good "test $name: $what ... ok ($((SECONDS - start)) s)"
  else
    failed=$((failed + 1)); failures+=("$name")
    printf '    %stest %s: %s ... FAILED%s (%d s)\n' "$red" "$name" "$what" "$plain" $((SECONDS - start))
    tail -n 25 "$log" | sed 's/^/    | /'
    save "$name" "$log"
  fi
}

# What a person needs to find the reason later: journals, consoles, the cluster's objects.
save() { # name log
  local dir=$VM_STATE/failed/$1 node
  mkdir -p "$dir" && cp "$2" "$dir/log"
  for node in $(vm_nodes); do
    cp "$VM_STATE/$node/console.log" "$dir/$node.console" 2>/dev/null
    timeout 30 "$vm/exec.sh" "$node" 'journalctl -b --no-pager -n 3000' >"$dir/$node.journal" 2>&1
    timeout 30 "$vm/exec.sh" "$node" 'gantry-cri fsck; ls /var/lib/cni/networks/gantry; mount; ip -br link; systemd-cgls --no-pager' >"$dir/$node.state" 2>&1
  done
  timeout 30 kubectl "${kubectl[@]}" get nodes,pods,events -A -o yaml >"$dir/objects.yaml" 2>&1
  note "journals and state: $dir"
}

# kubectl runs here, through the machine's own channel: n1's port 6443 is a port of the loopback here.
api_port=
kubectl=()
tunnel() {
  [ -n "$api_port" ] || api_port=$(python3 -c 'import socket; s=socket.socket(); s.bind(("127.0.0.1",0)); print(s.getsockname()[1])')
  on n1 true && { on n1 -O cancel -L "127.0.0.1:$api_port:127.0.0.1:6443" >/dev/null 2>&1; on n1 -O forward -L "127.0.0.1:$api_port:127.0.0.1:6443" >/dev/null; }
  on n1 cat /var/lib/gantry/apiserver/admin.kubeconfig | sed "s|https://[^\"]*:6443|https://127.0.0.1:$api_port|" >"$work/kubeconfig"
  kubectl=(--kubeconfig "$work/kubeconfig" --request-timeout=20s --cache-dir "$work/kube-cache")
  [ -s "$work/kubeconfig" ]
}
k() { timeout 120 kubectl "${kubectl[@]}" "$@"; }
apply() { k apply --validate=false -f -; }

# until SECONDS WHAT COMMAND...: fails with what was still so
until_so() {
  local limit=$1 what=$2 end=$((SECONDS + $1)); shift 2
  until "$@" >"$work/until" 2>&1; do
    [ $SECONDS -lt $end ] || { cat "$work/until"; fail "after $limit s still not: $what"; }
    sleep 0.5
  done
}
node_is_ready() { [ "$(k get node "$1" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}')" = True ]; }
pod_is_ready() { [ "$(k get pod "$1" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}')" = True ]; }
ready_pods() { k get pods -o 'jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}' | grep -c True; }
pods_are_ready() { [ "$(ready_pods)" = "$1" ]; }

# Every container's name, id and count of restarts: the same text means that nothing restarted.
containers() {
  k get pods -o 'jsonpath={range .items[*]}{.metadata.name}{" "}{range .status.containerStatuses[*]}{.containerID}{" "}{.restartCount}{end}{"\n"}{end}' | sort
}
events() { k get events -o 'jsonpath={range .items[*]}{.reason}{" "}{.involvedObject.name}{" "}{.count}{"\n"}{end}' | sort; }

# A pod that sleeps: pod NAME NODE
pod() {
  cat <<Y
---
apiVersion: v1
kind: Pod
metadata: {name: $1, labels: {of: tests}}
spec:
  nodeName: $2
  terminationGracePeriodSeconds: 1
  volumes: [{name: v, emptyDir: {medium: Memory}}]
  containers:
  - name: main
    image: gantry.local/demo:latest
    imagePullPolicy: Never
    args: [write, /v/lines, "2"]
    volumeMounts: [{name: v, mountPath: /v}]
Y
}

# Addresses that host-local holds on a node, and those that its running pods have. They must be the same.
addresses_agree() { # node
  local held used
  held=$(on "$1" 'ls /var/lib/cni/networks/*/ | grep -E "^[0-9]+\.[0-9.]+$" | sort')
  used=$(k get pods -A --field-selector "spec.nodeName=$1" -o 'jsonpath={range .items[*]}{.spec.hostNetwork}{" "}{.status.podIP}{"\n"}{end}' | awk '$1 != "true" {print $NF}' | sort)
  [ "$held" = "$used" ] || { echo "held:"; echo "$held"; echo "used:"; echo "$used"; return 1; }
}
