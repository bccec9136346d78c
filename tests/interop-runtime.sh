#!/usr/bin/env bash
# Debian's podman and containerd (its runc shim) run containers with gantry-run in runc's place, and nothing is left after them.
# (Where the bounding set lacks CAP_SYS_RESOURCE, runc itself fails at the limits that podman asks for; gantry-run warns.)
# env: GANTRY_BIN_DIR (target/gantry/bin)
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bin=${GANTRY_BIN_DIR:-$root/target/gantry/bin}
name=runtime podman=()
. "$root/tests/interop.sh"
finish() {
  [ ${#podman[@]} = 0 ] || timeout 60 "${podman[@]}" rm -f -a -t 0 >/dev/null 2>&1
  clean
}
trap finish EXIT

rootfs "$work/image"
"$bin/gantry-cri" image build "$work/image" --name gantry.local/box:1 --entrypoint /bin/sh --output "$work/box.tar" >/dev/null || exit 1

if command -v podman >/dev/null; then
  printf '[engine]\nlock_type = "file"\nevents_logger = "none"\n[containers]\nlog_driver = "k8s-file"\n' >"$work/containers.conf"
  export CONTAINERS_CONF=$work/containers.conf
  podman=(podman --root "$work/p" --runroot "$work/pr" --tmpdir "$work/pt" --runtime "$bin/gantry-run" --cgroup-manager cgroupfs
    --storage-driver vfs)
  run=("${podman[@]}" run --rm --network none --cgroup-parent "/$group" --entrypoint '')
  box=gantry.local/box:1
  code "podman load" 0 "${podman[@]}" load -i "$work/box.tar"
  is "podman run" "hello" "${run[@]}" $box echo hello
  code "podman's exit code" 7 "${run[@]}" $box sh -c 'exit 7'
  code "a program that is not there" 127 "${run[@]}" $box /no/such
  is "podman run --user" 1000 "${run[@]}" --user 1000 --read-only $box id -u
  is "podman run -t" /dev/pts/0 "${run[@]}" -t $box tty
  is "podman run --uidmap" 100000 "${run[@]}" --uidmap 0:100000:65536 $box cat /proc/self/uid_map
  code "podman run -d" 0 "${podman[@]}" run -d --name a --network none --cgroup-parent "/$group" --memory 64m --pids-limit 50 \
    --health-cmd 'true' --health-interval disable --entrypoint '' $box sh -c 'echo started; trap "exit 3" TERM; sleep 1000 & wait'
  code "podman exec's exit code" 5 "${podman[@]}" exec a sh -c 'exit 5'
  is "podman exec" "inside" "${podman[@]}" exec -e A=inside a sh -c 'echo $A'
  is "podman logs" started "${podman[@]}" logs a
  code "podman healthcheck" 0 "${podman[@]}" healthcheck run a
  code "podman pause" 0 "${podman[@]}" pause a
  is "podman inspect" paused "${podman[@]}" inspect -f '{{.State.Status}}' a
  code "podman unpause" 0 "${podman[@]}" unpause a
  code "podman update" 0 "${podman[@]}" update --memory 48m a
  is "podman stats" MB "${podman[@]}" stats --no-stream a
  is "podman top" sleep "${podman[@]}" top a
  code "podman stop" 0 "${podman[@]}" stop -t 20 a
  is "the code of a stopped container" 3 "${podman[@]}" inspect -f '{{.State.ExitCode}}' a
  code "podman rm" 0 "${podman[@]}" rm a
  left=$(find /sys/fs/cgroup -type d -path "*/$group/*libpod-*" | head -n 3)
  [ -z "$left" ] || fail "podman's cgroups are left: $left"
else
  echo "podman is not here: left out"
fi

command -v containerd >/dev/null || { echo "containerd is not here: left out"; exit 0; }
printf 'version = 2\nroot = "%s"\nstate = "%s"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\n  address = "%s"\n' \
  "$work/root" "$work/state" "$work/c.sock" >"$work/config.toml"
containerd -c "$work/config.toml" >"$work/log" 2>&1 &
daemon=$!
ctr=(ctr -a "$work/c.sock")
for _ in $(seq 100); do "${ctr[@]}" version >/dev/null 2>&1 && break; sleep 0.2; done
code "ctr image import" 0 "${ctr[@]}" image import --snapshotter native "$work/box.tar"
ctr_run=("${ctr[@]}" run --snapshotter native --runc-binary "$bin/gantry-run" --runc-root "$work/runs" --cgroup "/$group/c")
is "ctr run" hello "${ctr_run[@]}" --rm gantry.local/box:1 one /bin/echo hello
code "ctr's exit code" 7 "${ctr_run[@]}" --rm gantry.local/box:1 two /bin/sh -c 'exit 7'
code "ctr run -d" 0 "${ctr_run[@]}" -d --memory-limit 67108864 gantry.local/box:1 three /bin/sh -c 'sleep 1000 & wait'
is "ctr task exec" inside "${ctr[@]}" task exec --exec-id e three /bin/echo inside
code "ctr task pause" 0 "${ctr[@]}" task pause three
is "ctr task ls" PAUSED "${ctr[@]}" task ls
code "ctr task resume" 0 "${ctr[@]}" task resume three
is "ctr task metrics" memory "${ctr[@]}" task metrics three
code "ctr task kill" 0 "${ctr[@]}" task kill -s SIGKILL three
for _ in $(seq 100); do "${ctr[@]}" task ls | grep -q 'three.*STOPPED' && break; sleep 0.1; done
code "ctr task rm" 0 "${ctr[@]}" task rm three
code "ctr container rm" 0 "${ctr[@]}" container rm three
left=$(containers_left "$work/runs/default")
[ -z "$left" ] || fail "containers are left: $left"
