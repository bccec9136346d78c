#!/bin/sh
# As a normal user: containers with the own id alone and with those that /etc/subuid lends, without and with limits, whose
# cgroups the user's systemd makes. usage: rootless.sh GANTRY-RUN
set -u
run=$1 work=$(mktemp -d) me=$(id -u) mine=$(id -g)
export XDG_RUNTIME_DIR=/run/user/$me
lent_uid=$(awk -F: -v user="$(id -un)" '$1 == user {print $2; exit}' /etc/subuid)
lent_gid=$(awk -F: -v user="$(id -un)" '$1 == user {print $2; exit}' /etc/subgid)
fail() { echo "FAILED: $*"; exit 1; }
finish() { for c in one many limited; do "$run" --root "$work/state" delete --force $c >/dev/null 2>&1; done; rm -rf "$work"; }
trap finish EXIT
chmod 755 "$work"

# bundle NAME UID-MAPS GID-MAPS RESOURCES
bundle() {
  mkdir -p "$work/$1/rootfs/bin" && cp /bin/busybox "$work/$1/rootfs/bin/"
  cat >"$work/$1/config.json" <<J
{"ociVersion": "1.2.0", "root": {"path": "rootfs"}, "hostname": "$1",
 "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"], "noNewPrivileges": true,
  "args": ["/bin/busybox", "sh", "-c", "sleep 1000 & while :; do wait; done"],
  "capabilities": {"bounding": ["CAP_SETUID", "CAP_SETGID", "CAP_CHOWN"], "effective": ["CAP_SETUID", "CAP_SETGID", "CAP_CHOWN"], "permitted": ["CAP_SETUID", "CAP_SETGID", "CAP_CHOWN"]}},
 "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
  {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}],
 "hooks": {"startContainer": [{"path": "/bin/busybox", "args": ["sleep", "0.5"]}]},
 "linux": {"uidMappings": $2, "gidMappings": $3, "resources": $4,
  "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}, {"type": "user"}, {"type": "cgroup"}]}}
J
}
start() { # name options...
  name=$1; shift
  "$run" --root "$work/state" "$@" run --detach --bundle "$work/$name" $name </dev/null >"$work/log" 2>&1 || fail "run $name: $(cat "$work/log")"
}
inside() { name=$1; shift; "$run" --root "$work/state" exec $name /bin/busybox "$@"; }
pid_of() { "$run" --root "$work/state" state $1 | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p'; }
# end NAME: killed, deleted, and nothing of it is left
end() {
  pid=$(pid_of $1); [ -n "$pid" ] || fail "$1 has no process"
  "$run" --root "$work/state" kill $1 KILL || fail "kill $1"
  for i in $(seq 150); do "$run" --root "$work/state" state $1 | grep -q stopped && break; sleep 0.2; done
  "$run" --root "$work/state" delete $1 || fail "delete $1"
  [ ! -e /proc/$pid ] || fail "$1 lives on"
  [ -z "$(ls "$work/state" | grep -v '~')" ] || fail "left: $(ls "$work/state")"
}
own="[{\"containerID\": 0, \"hostID\": $me, \"size\": 1}]" own_group="[{\"containerID\": 0, \"hostID\": $mine, \"size\": 1}]"
lent="[{\"containerID\": 0, \"hostID\": $me, \"size\": 1}, {\"containerID\": 1, \"hostID\": $lent_uid, \"size\": 65536}]"
lent_group="[{\"containerID\": 0, \"hostID\": $mine, \"size\": 1}, {\"containerID\": 1, \"hostID\": $lent_gid, \"size\": 65536}]"

bundle one "$own" "$own_group" '{}'
start one # Its hook still runs: until it is done, nobody but root may look into the container's process.
[ "$(inside one id -u)" = 0 ] || fail "one: exec runs as $(inside one id -u)"
[ "$(inside one hostname)" = one ] || fail "one: another host name"
end one; echo "the own id: ok"

bundle many "$lent" "$lent_group" '{}'
start many
[ "$(inside many cat /proc/self/uid_map | wc -l)" = 2 ] || fail "many: $(inside many cat /proc/self/uid_map)"
[ "$("$run" --root "$work/state" exec --user 33:34 many /bin/busybox id | cut -d' ' -f1,2)" = "uid=33 gid=34" ] || fail "many: exec as another user"
inside many touch /made && inside many chown 5:6 /made || fail "many: chown"
[ "$(stat -c %u:%g "$work/many/rootfs/made")" = $((lent_uid + 4)):$((lent_gid + 5)) ] || fail "many: $(stat -c %u:%g "$work/many/rootfs/made")"
inside many rm /made
end many; echo "ids of /etc/subuid: ok"

bundle limited "$lent" "$lent_group" '{"memory": {"limit": 67108864}, "pids": {"limit": 20}, "cpu": {"shares": 512, "quota": 50000, "period": 100000}}'
start limited --systemd-cgroup
group=/sys/fs/cgroup$(sed 's/^0:://' /proc/$(pid_of limited)/cgroup)
case $group in /sys/fs/cgroup/user.slice/user-$me.slice/user@$me.service/*) ;; *) fail "limited: in $group" ;; esac
see() { [ "$(cat "$group/$1")" = "$2" ] || fail "$1 is $(cat "$group/$1"), not $2"; }
see memory.max 67108864; see pids.max 20; see cpu.max "50000 100000"; see cpu.weight 59
"$run" --root "$work/state" --systemd-cgroup update --memory 33554432 --pids-limit 12 limited || fail "update"
see memory.max 33554432; see pids.max 12
systemctl --user show -P TasksMax "$(basename "$group")" | grep -qx 12 || fail "the user's systemd does not know of the update"
inside limited sh -c 'for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do /bin/busybox sleep 2 & done; wait' 2>&1 | grep -qi fork || fail "more processes than the limit"
inside limited sh -c 'tail /dev/zero' >/dev/null 2>&1
grep -q '^oom_kill [1-9]' "$group/memory.events" || fail "the limit of memory does not hold: $(cat "$group/memory.events")"
end limited
[ ! -e "$group" ] || fail "$group is left"
[ -z "$(systemctl --user list-units --all --no-legend 'gantry-*')" ] || fail "a unit is left"
echo "limits by the user's systemd: ok"
