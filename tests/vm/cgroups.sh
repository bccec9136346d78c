# Tests of control groups of version 2 under both drivers: through the OCI runtime alone, and through the whole node.
# shellcheck shell=bash

# A bundle whose program is a line of shell: bundle NODE DIR CGROUPS-PATH RESOURCES
bundle() {
  on "$1" "rm -rf $2 && mkdir -p $2/rootfs/bin $2/rootfs/huge && cp /bin/busybox $2/rootfs/bin/ && cat >$2/config.json" <<J
{"ociVersion": "1.2.0", "root": {"path": "rootfs"}, "hostname": "c",
 "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"], "noNewPrivileges": true,
  "args": ["/bin/busybox", "sh", "-c", "sleep 100000 & while :; do wait; done"], "capabilities": {"bounding": ["CAP_MKNOD", "CAP_SYS_ADMIN"],
   "effective": ["CAP_MKNOD", "CAP_SYS_ADMIN"], "permitted": ["CAP_MKNOD", "CAP_SYS_ADMIN"]}},
 "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
  {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
  {"destination": "/huge", "type": "hugetlbfs", "source": "hugetlbfs", "options": ["pagesize=2M"]},
  {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}],
 "linux": {"cgroupsPath": "$3", "resources": $4,
  "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}, {"type": "cgroup"}]}}
J
}

# Every controller: its file has the limit, and the limit holds. controllers NAME OPTION CGROUPS-PATH FOLDER
controllers() {
  local name=$1 option=$2 folder=/sys/fs/cgroup$4
  on n1 "gantry-run delete --force $name 2>/dev/null || true"
  bundle n1 /root/$name "$3" '{"cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0"},
    "memory": {"limit": 67108864, "swap": 67108864, "reservation": 33554432}, "pids": {"limit": 12},
    "hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}],
    "blockIO": {"throttleWriteBpsDevice": [{"major": 254, "minor": 0, "rate": 1048576}]},
    "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"},
      {"allow": true, "type": "c", "major": 10, "minor": 237, "access": "rm"}],
    "unified": {"memory.high": "60000000"}}'
  on n1 "set -e
    run() { gantry-run $option \"\$@\"; }
    inside() { run exec $name /bin/busybox sh -c \"\$1\"; }
    see() { echo \"\$1: \$(cat $folder/\$1), expected \$2\"; test \"\$(cat $folder/\$1)\" = \"\$2\"; }
    limits() { see cpu.weight 59; see cpu.max '50000 100000'; see cpuset.cpus 0; see memory.max 67108864; see memory.low 33554432
      see memory.swap.max 0; see memory.high 59998208; see pids.max 12; see hugetlb.2MB.max 4194304
      grep 'wbps=1048576' $folder/io.max; }
    run run --detach --bundle /root/$name $name </dev/null >/root/$name.log 2>&1 || { cat /root/$name.log; exit 1; }
    limits
    grep -qx \"0::${folder#/sys/fs/cgroup}\" /proc/\$(run state $name | sed -n 's/.*\"pid\": \\([0-9]*\\).*/\\1/p')/cgroup
    # The number of processes.
    inside 'for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do /bin/busybox sleep 2 & done; wait' 2>&1 | grep -i fork
    for i in \$(seq 100); do test \$(cat $folder/pids.current) -le 2 && break; sleep 0.2; done
    test \$(sed -n 's/^max //p' $folder/pids.events) -gt 0
    # Devices: every node may be made; what is listed opens as far as it may, what is not does not open.
    modprobe loop
    inside 'mknod /listed c 10 237; mknod /kmsg c 1 11; : </listed; cat /dev/null; echo >/dev/null'
    inside ': >/listed' && exit 1
    inside ': </kmsg' && exit 1
    # Huge pages.
    echo 8 >/proc/sys/vm/nr_hugepages
    inside 'fallocate -l 4194304 /huge/fits'
    inside 'rm /huge/fits; fallocate -l 8388608 /huge/toomuch' && exit 1
    test \$(sed -n 's/^max //p' $folder/hugetlb.2MB.events) -gt 0
    inside 'rm -f /huge/*'; echo 0 >/proc/sys/vm/nr_hugepages
    # Block I/O: 3 MiB at 1 MiB a second.
    before=\$(cut -d. -f1 /proc/uptime); inside 'dd if=/dev/zero of=/file bs=64k count=48 conv=fsync' ; after=\$(cut -d. -f1 /proc/uptime)
    echo \"3 MiB in \$((after - before)) s\"; test \$((after - before)) -ge 2
    # A change, and what the driver's own reload makes of it.
    run update --pids-limit 40 --memory 96M --memory-swap 96M --cpu-share 1024 $name
    see pids.max 40; see memory.max 100663296; see cpu.weight 100
    systemctl daemon-reload
    see pids.max 40; see memory.max 100663296; see cpu.weight 100; see cpu.max '50000 100000'; see cpuset.cpus 0; see memory.low 33554432
    inside ': </listed'
    inside ': </kmsg' && exit 1
    run pause $name; see cgroup.freeze 1; run state $name | grep paused; run resume $name"
}
t_controllers() {
  controllers byfiles '' /byfiles /byfiles
  on n1 'set -e; gantry-run delete --force byfiles; test ! -e /sys/fs/cgroup/byfiles'
}

t_units() {
  controllers byunits --systemd-cgroup machine.slice:gantry:byunits /machine.slice/gantry-byunits.scope
  on n1 'set -e
    show() { systemctl show -P "$1" gantry-byunits.scope; }
    test "$(show ActiveState)" = active; test "$(show TasksMax)" = 40; test "$(show MemoryMax)" = 100663296; test "$(show CPUWeight)" = 100
    test "$(show DevicePolicy)" = strict; test "$(show Delegate)" = yes; test "$(show Slice)" = machine.slice
    # A second of the same name is refused and harms nothing.
    ! gantry-run --systemd-cgroup run --detach --bundle /root/byunits other </dev/null >/root/log 2>&1; grep -i exist /root/log
    test "$(show ActiveState)" = active
    # Killed for want of memory: the unit is failed until the container is deleted.
    echo "{\"unified\": {\"memory.high\": \"max\"}}" | gantry-run --systemd-cgroup update --resources - byunits
    test "$(cat /sys/fs/cgroup/machine.slice/gantry-byunits.scope/memory.high)" = max
    gantry-run exec byunits /bin/busybox sh -c "tail /dev/zero" || true
    grep -v " 0" /sys/fs/cgroup/machine.slice/gantry-byunits.scope/memory.events | grep oom_kill
    gantry-run kill --all byunits KILL || true
    for i in $(seq 50); do gantry-run state byunits | grep -q stopped && break; sleep 0.1; done
    gantry-run delete byunits
    test ! -e /sys/fs/cgroup/machine.slice/gantry-byunits.scope
    ! systemctl list-units --all --no-legend | grep byunits
    # The name is free again.
    gantry-run --systemd-cgroup run --detach --bundle /root/byunits byunits </dev/null >/root/log 2>&1 || { cat /root/log; exit 1; }
    gantry-run delete --force byunits
    test ! -e /sys/fs/cgroup/machine.slice/gantry-byunits.scope
    # What is no unit is told.
    sed -i "s|machine.slice:gantry:byunits|/just/a/path|" /root/byunits/config.json
    ! gantry-run --systemd-cgroup run --detach --bundle /root/byunits wrong </dev/null >/root/log 2>&1; grep SLICE:PREFIX:NAME /root/log
    test -z "$(gantry-run list -q)"'
}

# Memory that a container may use freely, and that the kernel leaves to it, stand in the groups of container, pod and class.
t_memory() {
  on n1 'set -e; cp /var/lib/kubelet/config.yaml /root/config.yaml
    printf "featureGates: {MemoryQoS: true}\nmemoryReservationPolicy: TieredReservation\n" >>/var/lib/kubelet/config.yaml
    systemctl restart kubelet'
  apply <<'Y'
apiVersion: v1
kind: Pod
metadata: {name: soft}
spec:
  nodeName: n1
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: gantry.local/demo:latest
    imagePullPolicy: Never
    args: [sleep, "200000"]
    resources: {requests: {memory: 32Mi}, limits: {memory: 64Mi}}
Y
  until_so 60 "pod soft is Ready" pod_is_ready soft
  on n1 'set -e
    pid=$(ps -eo pid,args | awk "\$2 ~ /gantry-demo\$/ && \$3 == \"sleep\" && \$4 == 200000 {print \$1; exit}"); test -n "$pid"
    group=/sys/fs/cgroup$(sed "s/^0:://" /proc/$pid/cgroup); pod=$(dirname $group); class=$(dirname $pod); echo "group $group"
    see() { echo "$1: $(cat $1), expected $2"; test "$(cat $1)" = "$2"; }
    # 32Mi and 0.9 of the room up to 64Mi, in whole pages.
    see $group/memory.high 63750144; see $group/memory.max 67108864
    see $group/memory.low 33554432; see $pod/memory.low 33554432; see $group/memory.min 0
    # What pods ask for together is looked at every 30 s.
    for i in $(seq 60); do test "$(cat $class/memory.low)" -ge 33554432 && break; sleep 1; done
    echo "$class: $(cat $class/memory.low)"; test "$(cat $class/memory.low)" -ge 33554432'
  k delete pod soft --wait=true --timeout=60s
  on n1 'set -e; cp /root/config.yaml /var/lib/kubelet/config.yaml; systemctl restart kubelet'
  until_so 60 "n1 is Ready" node_is_ready n1
}

# n2's daemons use systemd since it joined.
t_systemd() {
  apply <<'Y'
apiVersion: v1
kind: Pod
metadata: {name: sliced}
spec:
  nodeName: n2
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: gantry.local/demo:latest
    imagePullPolicy: Never
    args: [sleep, "300000"]
    resources:
      requests: {cpu: "1", memory: 32Mi}
      limits: {cpu: "1500m", memory: 64Mi}
  - {name: hog, image: "gantry.local/demo:latest", imagePullPolicy: Never, args: [hog, "200"], resources: {limits: {memory: 32Mi}}}
Y
  until_so 90 "hog was killed and restarted" sliced_was_killed
  on n2 'set -e
    pid=$(ps -eo pid,args | awk "\$2 ~ /gantry-demo\$/ && \$3 == \"sleep\" && \$4 == 300000 {print \$1; exit}"); test -n "$pid"
    path=$(sed "s/^0:://" /proc/$pid/cgroup); group=/sys/fs/cgroup$path; pod=$(dirname $group); echo "group $group"
    echo $path | grep -E "^/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod[0-9a-f_]+.slice/cri-gantry-[0-9a-f]+.scope$"
    see() { echo "$1: $(cat $1), expected $2"; test "$(cat $1)" = "$2"; }
    limits() { see $group/memory.max 67108864; see $group/cpu.max "150000 100000"; see $group/cpu.weight 100
      see $pod/pids.max 512; see $pod/cpu.weight 100; }
    # systemd 252 has no property of a scope for memory.oom.group and clears it whenever it applies the others.
    limits; see $group/memory.oom.group 1; systemctl daemon-reload; limits
    systemctl status $(basename $pod) --no-pager | grep "Kubernetes pod default/sliced"
    gantry-cri --config /etc/gantry/cri.toml config check
    before=$pid; systemctl restart kubelet gantry-cri; sleep 3; test -d /proc/$before'
  until_so 60 "n2 is Ready" node_is_ready n2
  local uid; uid=$(k get pod sliced -o 'jsonpath={.metadata.uid}')
  k delete pod sliced --wait=true --timeout=90s
  on n2 "test -z \"\$(find /sys/fs/cgroup -name '*${uid//-/_}*')\"; ! systemctl list-units --all --no-legend | grep ${uid//-/_}"
}
sliced_was_killed() {
  k get pod sliced -o 'jsonpath={.status.containerStatuses[?(@.name=="hog")]}' | grep '"reason":"OOMKilled"' &&
    [ "$(k get pod sliced -o 'jsonpath={.status.containerStatuses[?(@.name=="hog")].restartCount}')" -ge 1 ] &&
    [ "$(k get pod sliced -o 'jsonpath={.status.containerStatuses[?(@.name=="main")].restartCount}')" = 0 ]
}
