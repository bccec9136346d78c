#!/usr/bin/env bash
# Debian's dockerd runs containers with gantry-run in runc's place, its network's hooks included, and nothing is left after it.
# The daemon lives in a network namespace and folders of its own.
# env: GANTRY_BIN_DIR (target/gantry/bin)  DOCKER  a folder with docker.io's programs (default: those in PATH)  RUNTIME (gantry-run)
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
runtime=${RUNTIME:-${GANTRY_BIN_DIR:-$root/target/gantry/bin}/gantry-run}
[ -z "${DOCKER:-}" ] || PATH=$DOCKER:$PATH
work=$(mktemp -d /var/tmp/gantry-docker.XXXXXX) group=gantry-docker-$$ daemon= own_run= || exit 1
docker() { timeout 60 docker -H "unix://$work/d.sock" --config "$work/config" "$@"; }
[ -e /run/docker ] || own_run=1
finish() {
  if [ -n "$daemon" ]; then
    docker rm -f gantry-a gantry-b >/dev/null 2>&1
    kill "$daemon" 2>/dev/null; wait "$daemon" 2>/dev/null
  fi
  ip netns del "$group" 2>/dev/null
  # Where it looks for plugins is not to be had elsewhere.
  [ -z "$own_run" ] || find /run/docker -depth -type d -empty -delete 2>/dev/null
  awk -v w="$work/" 'index($2, w)==1 {print $2}' /proc/self/mounts | sort -r | xargs -r umount
  for _ in $(seq 50); do
    find /sys/fs/cgroup -depth -type d -path "*/$group*" -exec rmdir {} + 2>/dev/null
    [ -n "$(find /sys/fs/cgroup -type d -path "*/$group*" 2>/dev/null | head -n 1)" ] || break
    sleep 0.2
  done
  rm -rf --one-file-system "$work"
}
trap finish EXIT
fail() { echo "$*"; tail -n 30 "$work/log" 2>/dev/null; exit 1; }
# is WHAT WANT CMD...: a command's output, its errors with it, must have WANT in it.
is() { local what=$1 want=$2 got; shift 2; got=$(docker "$@" 2>&1); case $got in *"$want"*) ;; *) fail "$what: wants $want, got: $got" ;; esac; }
code() { local what=$1 want=$2; shift 2; docker "$@" >"$work/out" 2>&1; local got=$?; [ "$got" = "$want" ] || fail "$what: exit $got, not $want: $(cat "$work/out")"; }

mkdir -p "$work/image/bin" "$work/image/etc" "$work/config"
cp /bin/busybox "$work/image/bin/busybox"
for word in sh sleep echo cat id tty grep true ip test; do ln -s busybox "$work/image/bin/$word"; done
echo "root:x:0:0::/:/bin/sh" >"$work/image/etc/passwd"
tar -C "$work/image" -cf "$work/box.tar" . || exit 1

printf '{"runtimes": {"gantry": {"path": "%s"}}, "default-runtime": "gantry"}\n' "$runtime" >"$work/daemon.json"
ip netns add "$group" && ip -n "$group" link set lo up || exit 1
nsenter --net="/run/netns/$group" dockerd --config-file "$work/daemon.json" -H "unix://$work/d.sock" --group root --data-root "$work/data" \
  --exec-root "$work/exec" --pidfile "$work/pid" --storage-driver vfs --iptables=false --ip-forward=false --ip-masq=false \
  --cgroup-parent "/$group" --exec-opt native.cgroupdriver=cgroupfs >"$work/log" 2>&1 &
daemon=$!
for _ in $(seq 300); do docker info >/dev/null 2>&1 && break; kill -0 "$daemon" 2>/dev/null || fail "dockerd does not start"; sleep 0.2; done

box=gantry.local/box:1
run=(run --rm --entrypoint '')
code "docker import" 0 import "$work/box.tar" $box
is "docker info" "Default Runtime: gantry" info
is "docker run" hello "${run[@]}" $box echo hello
code "the exit code" 7 "${run[@]}" $box sh -c 'exit 7'
code "a program that is not there" 127 "${run[@]}" $box /no/such
is "docker run --user --read-only" 1000 "${run[@]}" --user 1000 --read-only $box id -u
is "docker run -t" /dev/pts/0 "${run[@]}" -t $box tty
is "the network that a hook puts in" "inet 172." "${run[@]}" $box ip addr show eth0
is "docker run --init" docker-init "${run[@]}" --init $box cat /proc/1/comm
is "docker run --tmpfs" tmpfs "${run[@]}" --tmpfs /t:size=1m $box grep ' /t ' /proc/mounts
is "the limit of memory that is asked for" 67108864 "${run[@]}" --memory 64m $box sh -c 'cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max'
code "docker run -d" 0 run -d --name gantry-a --memory 64m --pids-limit 50 --health-cmd 'test -e /healthy' --health-interval 1s --health-retries 1 \
  --entrypoint '' $box sh -c 'echo started; trap "exit 3" TERM; sleep 1000 & wait'
code "the exit code of docker exec" 5 exec gantry-a sh -c 'exit 5'
is "docker exec" inside exec -e A=inside gantry-a sh -c 'echo $A'
is "docker logs" started logs gantry-a
code "a file for the health check" 0 exec gantry-a sh -c 'echo >/healthy'
for _ in $(seq 100); do case $(docker inspect -f '{{.State.Health.Status}}' gantry-a) in healthy) break ;; esac; sleep 0.2; done
is "the health check" healthy inspect -f '{{.State.Health.Status}}' gantry-a
code "docker pause" 0 pause gantry-a
is "docker inspect" paused inspect -f '{{.State.Status}}' gantry-a
code "docker unpause" 0 unpause gantry-a
code "docker update" 0 update --memory 48m --memory-swap 48m gantry-a
is "docker stats" "48MiB" stats --no-stream gantry-a
is "docker top" sleep top gantry-a
code "docker kill -s" 0 kill -s WINCH gantry-a
code "docker restart" 0 restart -t 20 gantry-a
is "the restarted container" running inspect -f '{{.State.Status}}' gantry-a
code "docker stop" 0 stop -t 20 gantry-a
is "the code of a stopped container" 3 inspect -f '{{.State.ExitCode}}' gantry-a
code "docker rm" 0 rm gantry-a
code "a container that runs out of memory" 137 run --name gantry-b --memory 16m --memory-swap 16m --entrypoint '' $box \
  sh -c 'a=x; while :; do a=$a$a; done'
is "why it ended" true inspect -f '{{.State.OOMKilled}}' gantry-b
code "docker rm of it" 0 rm gantry-b
left=$(find /sys/fs/cgroup -mindepth 2 -type d -path "*/$group/*" | head -n 3)
[ -z "$left" ] || fail "cgroups are left: $left"
# What gantry-run keeps for itself is no container.
left=$(ls -A "$work/exec"/runtime-*/moby 2>/dev/null | grep -vxF -e .kdevtmpfs~ -e .seccomp~)
[ -z "$left" ] || fail "states are left: $left"
