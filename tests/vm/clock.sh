# What becomes of pods when the clock of their machine is set a day ahead, and later right again, which is a day back. No
# container has a clock of its own that could be set, so that this needs a machine. n1 has the control plane and a node.
# A day is within the life of every certificate (a year, from five minutes before it was made), ahead as well as back; tokens
# of pods live for an hour and have to be renewed. Nothing is issued that would not be valid yet once the clock is right.
# Sourced by run.sh. Times are measured here, where no clock is set.
# shellcheck shell=bash

kc() { timeout 120 kubectl "${kubectl[@]}" --namespace clock "$@"; }

# A pod of busybox on n1: ticking NAME SCRIPT [GRACE [MORE-OF-THE-SPEC]]
ticking() {
  cat <<Y
---
apiVersion: v1
kind: Pod
metadata: {name: $1}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: ${3:-1}
  ${4:-}
  containers:
  - name: main
    image: gantry.local/clock:latest
    imagePullPolicy: Never
    args: [/bin/sh, -c, $(python3 -c 'import json, sys; print(json.dumps(sys.argv[1]))' "$2")]
Y
}

# The clock of n1 so many seconds from the right time, which is this machine's.
set_clock() { on n1 "date -s @$(($(date +%s) + $1))" >/dev/null; }
clock_field() { kc get pod "$1" -o "jsonpath={$2}"; } # POD PATH
clock_is() { local value; value=$(clock_field "$1" "$2"); echo "$1 $2: $value"; [ "$value" = "$3" ]; } # POD PATH VALUE
clock_ready() { clock_is "$1" '.status.conditions[?(@.type=="Ready")].status' True; }
clock_gone() { ! kc get pod "$1" 2>"$work/gone" && grep -q NotFound "$work/gone"; }
crashes() { clock_field crash .status.containerStatuses[0].restartCount; }
more_crashes() { local n; n=$(crashes); echo "restarted $n times, was $1"; [ "${n:-0}" -gt "$1" ]; }
waits_for_crash() { clock_is crash .status.containerStatuses[0].state.waiting.reason CrashLoopBackOff; }
# The apiserver knows who holds the token that the pod reads now.
token_counts() {
  local uid code; uid=$(clock_field steady .metadata.uid)
  code=$(on n1 "curl -sk -o /dev/null -w '%{http_code}' -H \"Authorization: Bearer \$(cat /var/lib/kubelet/pods/$uid/volumes/kubernetes.io~projected/*/token)\" https://127.0.0.1:6443/api/v1/namespaces/clock/pods")
  echo "answer $code"; case $code in 200|403) ;; *) false ;; esac
}
steady_pod() { clock_field steady '.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount'; }

# A pod whose end takes its whole grace period of 20 s while the clock is set: jump_while_stopping POD SECONDS
jump_while_stopping() {
  local begun=$SECONDS took
  kc delete pod "$1" --wait=false
  until_so 15 "$1 is ending" on n1 "grep -q TERM /root/clock/$1"
  set_clock "$2"
  sleep 6
  [ $((SECONDS - begun)) -ge 19 ] || kc get pod "$1" || fail "$1 went at once when the clock was set"
  until_so 90 "$1 is gone" clock_gone "$1"
  took=$((SECONDS - begun))
  [ $took -ge 19 ] || fail "$1 had 20 s and was gone after $took s"
}

t_clock() {
  local before steady crashed watcher script
  before=$(containers)
  # Whatever fails, the other tests get a clock that is right.
  trap 'set_clock 0' EXIT
  set_clock 0
  on n1 'set -e; mkdir -p /root/clock/root/bin /root/clock/root/tmp; cp /bin/busybox /root/clock/root/bin/
    for a in sh sleep; do ln -sf busybox /root/clock/root/bin/$a; done
    gantry-cri image build /root/clock/root --name gantry.local/clock:latest --env PATH=/bin --output /root/clock/image.tar
    gantry-cri image import /root/clock/image.tar'
  k get namespace clock || k create namespace clock
  # Says when it is told to end, and ends only when it is killed.
  script='trap "echo TERM >/h/$NAME" TERM; while :; do sleep 0.2; done'
  { ticking steady 'n=0; while :; do echo $n; n=$((n+1)); sleep 0.2; done'
    ticking limited 'exec sleep 100000' 1 'activeDeadlineSeconds: 3600'
    ticking crash 'sleep 1; exit 3'
    for p in ahead back; do
      ticking $p "NAME=$p; $script" 20 'volumes: [{name: h, hostPath: {path: /root/clock}}]'
      echo '    volumeMounts: [{name: h, mountPath: /h}]'
    done; } | kc apply --validate=false -f -
  local p
  for p in steady limited ahead back; do until_so 120 "$p is Ready" clock_ready $p; done
  until_so 120 "crash waits for its restart" waits_for_crash
  steady=$(steady_pod)
  timeout 900 kubectl --kubeconfig "$work/kubeconfig" get node n1 --watch -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}{"\n"}' >"$work/watch-clock" 2>/dev/null &
  watcher=$!

  echo "a day ahead"
  jump_while_stopping ahead 86400
  until_so 60 "exec works" kc exec steady -- /bin/sh -c true
  until_so 120 "the token of the pod is renewed" token_counts
  clock_is limited .status.phase Running || fail "a pod with an hour to go was ended"
  # What died in the meantime died in the future, once the clock is right.
  until_so 120 "crash waits for its restart" waits_for_crash
  crashed=$(crashes)

  echo "a day back"
  jump_while_stopping back 0
  # Its back-off is at most five minutes; the time at which it died is a day ahead.
  until_so 420 "crash is restarted" more_crashes "$crashed"
  until_so 60 "exec works" kc exec steady -- /bin/sh -c true
  until_so 120 "the token of the pod is renewed" token_counts
  clock_is limited .status.phase Running || fail "a pod with an hour to go was ended"
  kill $watcher 2>/dev/null || true
  ! grep -E 'False|Unknown' "$work/watch-clock" || fail "n1 was not Ready meanwhile"

  echo "daemons that begin anew find records of the future"
  on n1 'for unit in kubelet gantry-cri; do
    old=$(systemctl show -P MainPID $unit); kill -9 $old
    for i in $(seq 300); do new=$(systemctl show -P MainPID $unit); [ $new != 0 ] && [ $new != $old ] && systemctl is-active -q $unit && continue 2; sleep 0.1; done; exit 1
  done'
  until_so 120 "n1 is Ready" node_is_ready n1
  until_so 120 "n2 is Ready" node_is_ready n2
  until_so 60 "steady is Ready" clock_ready steady
  [ "$(steady_pod)" = "$steady" ] || { echo "was $steady"; steady_pod; fail "a pod that had nothing to do with it was restarted"; }
  diff <(echo "$before") <(containers) || fail "containers restarted"
  kc logs steady >"$work/steady"
  awk '$1 != NR - 1 { print "line " NR " is " $1; exit 1 } END { print NR " lines" }' "$work/steady" || fail "a line of the log is missing, or there twice"
  kc delete pod --all --timeout=100s
  k delete namespace clock --wait=false
  on n1 'gantry-cri image rm gantry.local/clock:latest; rm -rf /root/clock'
  addresses_agree n1
}
