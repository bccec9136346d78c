#!/usr/bin/env bash
# Debian's dockerd runs containers with gantry-run in runc's place, its network's hooks included, and nothing is left after it.
# The daemon lives in a network namespace and folders of its own.
# env: GANTRY_BIN_DIR (target/gantry/bin)  DOCKER  a folder with docker.io's programs (default: those in PATH)  RUNTIME (gantry-run)
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
runtime=${RUNTIME:-${GANTRY_BIN_DIR:-$root/target/gantry/bin}/gantry-run}
[ -z "${DOCKER:-}" ] || PATH=$DOCKER:$PATH
name=docker own_run=
. "$root/tests/interop.sh"
docker() { timeout 60 docker -H "unix://$work/d.sock" --config "$work/config" "$@"; }
[ -e /run/docker ] || own_run=1
finish() {
  [ -z "$daemon" ] || docker rm -f gantry-a gantry-b >/dev/null 2>&1
  clean
  ip netns del "$group" 2>/dev/null
  # Where it looks for plugins is not to be had elsewhere.
  [ -z "$own_run" ] || find /run/docker -depth -type d -empty -delete 2>/dev/null
}
trap finish EXIT

mkdir -p "$work/config"
rootfs "$work/image" ip test
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
code "docker import" 0 docker import "$work/box.tar" $box
is "docker info" "Default Runtime: gantry" docker info
is "docker run" hello docker "${run[@]}" $box echo hello
code "the exit code" 7 docker "${run[@]}" $box sh -c 'exit 7'
code "a program that is not there" 127 docker "${run[@]}" $box /no/such
is "docker run --user --read-only" 1000 docker "${run[@]}" --user 1000 --read-only $box id -u
is "docker run -t" /dev/pts/0 docker "${run[@]}" -t $box tty
is "the network that a hook puts in" "inet 172." docker "${run[@]}" $box ip addr show eth0
is "docker run --init" docker-init docker "${run[@]}" --init $box cat /proc/1/comm
is "docker run --tmpfs" tmpfs docker "${run[@]}" --tmpfs /t:size=1m $box grep ' /t ' /proc/mounts
is "the limit of memory that is asked for" 67108864 docker "${run[@]}" --memory 64m $box sh -c 'cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max'
code "docker run -d" 0 docker run -d --name gantry-a --memory 64m --pids-limit 50 --health-cmd 'test -e /healthy' --health-interval 1s --health-retries 1 \
  --entrypoint '' $box sh -c 'echo started; trap "exit 3" TERM; sleep 1000 & wait'
code "the exit code of docker exec" 5 docker exec gantry-a sh -c 'exit 5'
is "docker exec" inside docker exec -e A=inside gantry-a sh -c 'echo $A'
is "docker logs" started docker logs gantry-a
code "a file for the health check" 0 docker exec gantry-a sh -c 'echo >/healthy'
for _ in $(seq 100); do case $(docker inspect -f '{{.State.Health.Status}}' gantry-a) in healthy) break ;; esac; sleep 0.2; done
is "the health check" healthy docker inspect -f '{{.State.Health.Status}}' gantry-a
code "docker pause" 0 docker pause gantry-a
is "docker inspect" paused docker inspect -f '{{.State.Status}}' gantry-a
code "docker unpause" 0 docker unpause gantry-a
code "docker update" 0 docker update --memory 48m --memory-swap 48m gantry-a
is "docker stats" "48MiB" docker stats --no-stream gantry-a
is "docker top" sleep docker top gantry-a
code "docker kill -s" 0 docker kill -s WINCH gantry-a
code "docker restart" 0 docker restart -t 20 gantry-a
is "the restarted container" running docker inspect -f '{{.State.Status}}' gantry-a
code "docker stop" 0 docker stop -t 20 gantry-a
is "the code of a stopped container" 3 docker inspect -f '{{.State.ExitCode}}' gantry-a
code "docker rm" 0 docker rm gantry-a
code "a container that runs out of memory" 137 docker run --name gantry-b --memory 16m --memory-swap 16m --entrypoint '' $box \
  sh -c 'a=x; while :; do a=$a$a; done'
is "why it ended" true docker inspect -f '{{.State.OOMKilled}}' gantry-b
code "docker rm of it" 0 docker rm gantry-b
left=$(find /sys/fs/cgroup -mindepth 2 -type d -path "*/$group/*" | head -n 3)
[ -z "$left" ] || fail "cgroups are left: $left"
left=$(containers_left "$work/exec"/runtime-*/moby)
[ -z "$left" ] || fail "states are left: $left"
