# Tests of a machine that is short of everything: n3 has 1 GiB of memory, and pods and images share a disk of 400 MiB.
# Sourced by run.sh. Its pods run busybox, whose shell can hold memory, fill disks and take its time at the end.
# shellcheck shell=bash

machines() { "$vm/up.sh" --nodes "${1:-3}" --memory 2048 --memory n3=1024 --extra-disks n3=1; }

# Four images that nothing uses, 30 MiB each when unpacked: made here, where it takes no time.
make_fillers() {
  local i
  mkdir -p "$work/filler"
  head -c 30M /dev/zero | tr '\0' x >"$work/filler/fill"
  for i in 1 2 3 4; do
    echo $i >"$work/filler/number"
    "$BIN_DIR/gantry-cri" image build "$work/filler" --name "gantry.local/filler:$i" --cmd /none --output "$work/filler-$i.tar"
  done
}

# Its pods have a namespace of their own, so that tests of the other machines do not see them.
ks() { timeout 180 kubectl "${kubectl[@]}" --namespace small "$@"; }

# A pod on n3: roomy NAME PRIORITY REQUESTS SCRIPT [RESTART-POLICY [GRACE]]    /m is of memory, /d of disk, /h the machine's /root/h
roomy() {
  cat <<Y
---
apiVersion: v1
kind: Pod
metadata: {name: $1, labels: {machine: n3}}
spec:
  nodeName: n3
  priority: $2
  terminationGracePeriodSeconds: ${6:-60}
  restartPolicy: ${5:-Always}
  volumes:
  - {name: m, emptyDir: {medium: Memory}}
  - {name: d, emptyDir: {}}
  - {name: h, hostPath: {path: /root/h, type: DirectoryOrCreate}}
  containers:
  - name: main
    image: gantry.local/tools:latest
    imagePullPolicy: Never
    args: [/bin/sh, -c, $(python3 -c 'import json, sys; print(json.dumps(sys.argv[1]))' "$4")]
    resources: {requests: {$3}}
    volumeMounts: [{name: m, mountPath: /m}, {name: d, mountPath: /d}, {name: h, mountPath: /h}]
Y
}
small_is_ready() { [ "$(ks get pod "$1" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}')" = True ]; }
# MiB of memory that the kubelet holds for available.
memory_left() { on n3 'awk "FNR == NR { if (\$1 == \"MemTotal:\") t = \$2 * 1024; next } { m[\$1] = \$2 } END { print int((t - m[\"anon\"] - m[\"file\"] + m[\"inactive_file\"]) / 1048576) }" /proc/meminfo /sys/fs/cgroup/memory.stat'; }
disk_left() { on n3 'df --output=avail -BM /srv | tail -n 1 | tr -dc 0-9'; }
disk_used() { on n3 'df --output=avail,size -B1 /srv | awk "NR == 2 { print 100 - int(\$1 * 100 / \$2) }"'; }
fillers() { on n3 'gantry-cri image ls' | grep -c gantry.local/filler || true; }
fillers_are() { local n; n=$(fillers); echo "$n fillers"; on n3 'df -BM /srv; gantry-cri image ls'; [ "$n" = "$1" ]; }
pod_is() { # NAME jsonpath VALUE
  local value; value=$(ks get pod "$1" -o "jsonpath={$2}"); echo "$1 $2: $value"; ks get pod "$1" -o yaml | tail -n 30; [ "$value" = "$3" ]
}
condition_is() { # TYPE STATUS REASON
  local value; value=$(k get node n3 -o "jsonpath={.status.conditions[?(@.type==\"$1\")]['status','reason']}"); echo "$1: $value"; [ "$value" = "$2 $3" ]
}
# Every state of a condition that is seen meanwhile, in $work/watch-TYPE.
watch_condition() {
  timeout 900 kubectl --kubeconfig "$work/kubeconfig" get node n3 --watch -o "jsonpath={.status.conditions[?(@.type==\"$1\")].status} {.status.conditions[?(@.type==\"$1\")].message}{\"\n\"}" >"$work/watch-$1" 2>/dev/null &
}
was() { grep -q "$2" "$work/watch-$1" || { cat "$work/watch-$1"; return 1; }; }
fill() { ks exec "$1" -- dd if=/dev/zero of="$2" bs=1M count="$3" 2>&1; }
# The pods that must live through all of it, with their containers.
steady() { ks get pods within important frugal asked -o 'jsonpath={range .items[*]}{.metadata.name}{" "}{.status.phase}{" "}{.status.containerStatuses[0].containerID}{" "}{.status.containerStatuses[0].restartCount}{"\n"}{end}'; }

t_small() {
  on n1 '/usr/lib/gantry/node-credentials --node n3 --server https://10.99.0.1:6443 --out /root/for-n3'
  rm -rf "$work/for-n3" && "$vm/copy.sh" n1 vm:/root/for-n3 "$work/for-n3"
  on n3 'set -e
    if ! mountpoint -q /srv; then
      mkfs.ext4 -q -F -m 0 /dev/vdb 400M
      echo "/dev/vdb /srv ext4 noatime 0 2" >>/etc/fstab; mount /srv
      for d in kubelet gantry; do
        mkdir -p /srv/$d /var/lib/$d
        echo "/srv/$d /var/lib/$d none bind,x-systemd.requires-mounts-for=/srv 0 0" >>/etc/fstab; mount /var/lib/$d
      done
    fi
    dpkg -i /root/gantry_0*.deb; mkdir -p /etc/kubernetes/pki
    echo "KUBELET_EXTRA_ARGS=--node-ip=10.99.0.3" >/etc/default/kubelet'
  "$vm/copy.sh" n3 "$work/for-n3/kubelet.conf" vm:/etc/kubernetes/kubelet.conf
  "$vm/copy.sh" n3 "$work/for-n3/pki/ca.crt" vm:/etc/kubernetes/pki/ca.crt
  on n3 'set -e
    systemctl enable --now gantry-cri kubelet
    mkdir -p /root/tools/bin /root/tools/tmp; cp /bin/busybox /root/tools/bin/
    for a in sh dd sleep date; do ln -sf busybox /root/tools/bin/$a; done
    gantry-cri image build /root/tools --name gantry.local/tools:latest --env PATH=/bin --output /root/tools.tar
    for i in /root/tools.tar /root/filler-*.tar; do gantry-cri image import $i; done'
  until_so 240 "n3 is Ready" node_is_ready n3
  k get namespace small || k create namespace small
  local stay='exec sleep 100000'
  { roomy within 0 'memory: 120Mi' "dd if=/dev/zero of=/m/fill bs=1M count=80; : >/h/within; $stay"
    roomy important 1000 '' "dd if=/dev/zero of=/m/fill bs=1M count=40; : >/h/important; $stay"
    roomy frugal 0 '' "$stay"
    roomy greedy 0 'memory: 10Mi' "$stay"
    roomy asked 0 'ephemeral-storage: 120Mi' "dd if=/dev/zero of=/d/fill bs=1M count=80; : >/h/asked; $stay"
    roomy eater 0 '' "$stay"
    roomy over 0 '' 'dd if=/dev/zero of=/fill bs=1M count=30' Never; } | ks apply --validate=false -f -
  local p
  for p in within important frugal greedy asked eater; do until_so 240 "$p is Ready" small_is_ready $p; done
  until_so 150 "over has ended" pod_is over .status.phase Succeeded
  until_so 150 "what they hold is held" on n3 'cd /root/h && ls within important asked'
}

t_evict() {
  local memory disk used soft hard room before over
  memory=$(memory_left) disk=$(disk_left) used=$(disk_used)
  # With room for what the daemons take meanwhile; the fillers are two thirds of the garbage that there is.
  soft=$((memory - 80)) hard=$((memory - 300)) room=$((disk - 20))
  echo "memory $memory MiB, disk $disk MiB, used $used %; thresholds: memory $soft and $hard MiB, disk $room MiB"
  before=$(steady) over=$(ks get pod over -o 'jsonpath={.status.containerStatuses[0].containerID}')
  { cat <<Y; on n3 cat /usr/share/gantry/kubelet-config.yaml; } | on n3 'cat >/var/lib/kubelet/config.yaml; systemctl restart kubelet'
imageGCHighThresholdPercent: $((used - 1))
imageGCLowThresholdPercent: $((used - 12))
evictionHard: {memory.available: ${hard}Mi, nodefs.available: ${room}Mi}
evictionSoft: {memory.available: ${soft}Mi}
evictionSoftGracePeriod: {memory.available: 10m}
evictionPressureTransitionPeriod: 5s
shutdownGracePeriodByPodPriority:
- {priority: 0, shutdownGracePeriodSeconds: 60}
- {priority: 1000, shutdownGracePeriodSeconds: 60}
- {priority: 100000, shutdownGracePeriodSeconds: 60}
Y
  # The disk of images is fuller than the high threshold: as many go as the low one asks for.
  until_so 150 "images were collected down to the low threshold" fillers_are 2
  until_so 150 "n3 is Ready" condition_is Ready True KubeletReady
  watch_condition MemoryPressure; watch_condition DiskPressure

  echo "-- a soft threshold of memory is crossed"
  fill greedy /m/some 190
  until_so 150 "n3 has MemoryPressure" condition_is MemoryPressure True KubeletHasInsufficientMemory
  { roomy late 0 '' 'exec sleep 100000'; roomy asking 0 'memory: 1Mi' 'exec sleep 100000'; } | ks apply --validate=false -f -
  until_so 150 "a BestEffort pod is refused" pod_is late '.status.phase} {.status.reason} {.status.message' 'Failed Evicted Pod was rejected: The node had condition: [MemoryPressure]. '
  until_so 150 "one that asks for memory is not" small_is_ready asking

  echo "-- the hard one, and garbage fills the disk"
  fill eater /fill 110
  fill greedy /m/more 220 || true
  until_so 200 "greedy is evicted" pod_is greedy '.status.phase} {.status.reason' 'Failed Evicted'
  ks get pod greedy -o 'jsonpath={.status.message}' | tee /dev/stderr |
    grep -E "^The node was low on resource: memory\. Threshold quantity: ${hard}Mi, available: [0-9]+Ki\. Container main was using [0-9]+Ki, request is 10Mi, has larger consumption of memory\. $"
  until_so 150 "unused images and dead containers are gone" fillers_are 0
  until_so 150 "the dead container is gone" no_container "${over#*://}"
  until_so 150 "memory is well again" condition_is MemoryPressure False KubeletHasSufficientMemory
  until_so 150 "the disk is well again" condition_is DiskPressure False KubeletHasNoDiskPressure
  [ "$(ks get pod eater -o 'jsonpath={.status.phase}')" = Running ] || fail "a pod went although garbage was enough"
  until_so 60 "DiskPressure was told" was DiskPressure '^True'

  echo "-- a pod fills the disk"
  fill eater /more 110
  until_so 200 "eater is evicted" pod_is eater '.status.phase} {.status.reason' 'Failed Evicted'
  ks get pod eater -o 'jsonpath={.status.message}' | tee /dev/stderr |
    grep -E "^The node was low on resource: ephemeral-storage\. Threshold quantity: ${room}Mi, available: [0-9]+Ki\. Container main was using [0-9]+Ki, request is 0, has larger consumption of ephemeral-storage\. $"
  until_so 150 "the disk is well again" condition_is DiskPressure False KubeletHasNoDiskPressure

  diff <(echo "$before") <(steady) || fail "a pod went that should not have"
  k get events -A -o 'jsonpath={range .items[*]}{.reason} {.involvedObject.name} {.message}{"\n"}{end}' >"$work/events"
  local line
  for line in '^EvictionThresholdMet n3 Attempting to reclaim memory' '^EvictionThresholdMet n3 Attempting to reclaim ephemeral-storage' '^Evicted greedy The node was low' '^Evicted eater The node was low' '^NodeHasDiskPressure n3'; do
    grep -q "$line" "$work/events" || { cat "$work/events"; fail "no Event $line"; }
  done
}
no_container() { ! on n3 "gantry-cri explain $1"; }

# A pod that tells on the machine's disk when it is asked to end and when it has, and takes SECONDS for it: slow NAME PRIORITY SECONDS
slow() { roomy "$1" "$2" '' "trap 'echo $1 asked >>/h/ends; sleep $3; echo $1 ended >>/h/ends; exit 0' TERM; while :; do sleep 1; done"; }
off() { ! vm_running n3; }
# Switches n3 off as a person does, and waits until it is.
switch_off() {
  watch_condition Ready
  on n3 'systemd-inhibit --list --no-pager; systemd-inhibit --list --no-pager | grep -E "kubelet.*shutdown.*delay"'
  on n3 'systemctl poweroff' || true
  until_so 300 "n3 is off" off
  rm -f "$VM_STATE/n3/ssh"
}
told_the_end() { # NAME: what the apiserver has of a pod that ended with its machine
  local text; text=$(ks get pod "$1" -o 'jsonpath={.status.phase} {.status.reason} {.status.message} {.status.conditions[?(@.type=="DisruptionTarget")].reason}')
  [ "$text" = "Failed Terminated Pod was terminated in response to imminent node shutdown. TerminationByKubelet" ] || { ks get pod "$1" -o yaml; fail "$1: $text"; }
}
exit_code() { ks get pod "$1" -o 'jsonpath={.status.containerStatuses[0].state.terminated.exitCode}'; }
finished() { ks get pod "$1" -o 'jsonpath={.status.containerStatuses[0].state.terminated.finishedAt}'; }

t_shutdown() {
  ks delete pod -l machine=n3 --wait=true --timeout=150s
  until_so 150 "n3 has memory" condition_is MemoryPressure False KubeletHasSufficientMemory
  until_so 150 "n3 has room" condition_is DiskPressure False KubeletHasNoDiskPressure
  { slow low 10 2; slow mid 1500 2; slow high 100000 1
    roomy deaf 0 '' "trap '' TERM; while :; do sleep 1; done" Always 4; } | ks apply --validate=false -f -
  local p
  for p in low mid high deaf; do until_so 200 "$p is Ready" small_is_ready $p; done
  switch_off
  # The machine is off: what is known now has arrived before.
  for p in low mid high deaf; do told_the_end $p; done
  [ "$(exit_code low) $(exit_code mid) $(exit_code high) $(exit_code deaf)" = "0 0 0 137" ] || fail "exit codes: $(exit_code low) $(exit_code mid) $(exit_code high) $(exit_code deaf)"
  printf '%s\n' "$(finished low)" "$(finished mid)" "$(finished high)" | sort -C || fail "pods did not end in the order of their priority"
  condition_is Ready False KubeletNotReady || fail "n3 is not told to be NotReady"
  was Ready 'node is shutting down' || fail "the reason is missing"
  # It boots while other tests run.
  (machines >"$VM_STATE/again.log" 2>&1 &)
}

t_boot() {
  until_so 240 "n3 boots again" on n3 true
  until_so 240 "n3 is Ready" condition_is Ready True KubeletReady
  on n3 'cat /root/h/ends'
  [ "$(on n3 cat /root/h/ends | xargs)" = "low asked low ended mid asked mid ended high asked high ended" ] || fail "pods were not asked in the order of their priority"
  local p
  for p in low mid high deaf; do told_the_end $p; done
  # The same with the two plain settings: 60 s for pods, then 60 s for critical ones. A slow machine needs them.
  on n3 'rm /root/h/ends; sed -i "/^shutdownGracePeriodByPodPriority/,/^- .*100000/d" /var/lib/kubelet/config.yaml
    printf "shutdownGracePeriod: 2m\nshutdownGracePeriodCriticalPods: 1m\n" >>/var/lib/kubelet/config.yaml; systemctl restart kubelet'
  ks delete pod -l machine=n3 --wait=true --timeout=150s
  { slow plain 1000 2; slow critical 2000000000 2; } | ks apply --validate=false -f -
  for p in plain critical; do until_so 200 "$p is Ready" small_is_ready $p; done
  switch_off
  for p in plain critical; do told_the_end $p; [ "$(exit_code $p)" = 0 ] || fail "$p ended with $(exit_code $p)"; done
  [[ ! "$(finished plain)" > "$(finished critical)" ]] || fail "the critical pod ended first"
  ks delete pod -l machine=n3 --wait=false
  k delete node n3
}
