#!/usr/bin/env bash
# How fast an image comes from a registry on this machine: gantry-cri, containerd and podman in turns, beside what the shell's
# own tools need for the same (curl | sha256sum and gzip | tar, two layers at a time), what each costs in processor time, and
# how much memory one big layer takes. All on loopback of a network namespace of its own; needs root and scripts/build.sh.
#
# usage: pull.sh [--output json]
# env:   SIZE (1024) MiB of the image unpacked, LAYERS (10), ROUNDS (3), BIG (2048) MiB of the one big layer (0 leaves it out),
#        CONTAINERD=0 and PODMAN=0 leave those out, BENCH_DIR (/var/tmp) where some three times SIZE and twice BIG are free
set -uo pipefail
. "$(dirname "$0")/../lib.sh"
case ${1:-} in -h|--help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit ;; esac
need_root
format=table
[ "${1:-}" != --output ] || format=${2:-table}
case $format in table|json) ;; *) die "--output is table or json, not $format" ;; esac
# What is said on the way does not belong to the JSON.
exec 3>&1
[ "$format" = table ] || exec >&2
[ -x "$BIN_DIR/gantry-cri" ] || die "$BIN_DIR/gantry-cri is missing: run scripts/build.sh"
need_packages docker-registry curl python3
[ "${CONTAINERD:-1}" = 0 ] || need_packages containerd
[ "${PODMAN:-1}" = 0 ] || need_packages podman
size=${SIZE:-1024} count=${LAYERS:-10} big=${BIG:-2048}
work=$(mktemp -d "${BENCH_DIR:-/var/tmp}/gantry-pullbench.XXXXXX") ns=gantry-pullbench-$$ pids=() || exit 1
# Podman wants a short path here.
podman_run=$(mktemp -d /run/gpb.XXXXXX) || exit 1
finish() {
  local pid
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null; done
  awk -v w="$work/" -v r="$podman_run/" 'index($2, w)==1 || index($2, r)==1 {print $2}' /proc/self/mounts | sort -r | xargs -r umount
  ip netns delete "$ns"
  rm -rf --one-file-system "$work" "$podman_run"
}
trap finish EXIT
trap 'exit 130' INT TERM
ip netns add "$ns" && ip -n "$ns" link set lo up || die "cannot make a network namespace"
registry=127.0.0.1:5000 tools_dir=$work/tools
# Replaces the shell it runs in, so that the id of a background job is the program's.
inside() { exec nsenter --net="/run/netns/$ns" "$@"; }

step "make an image of $size MiB in $count layers"
cat >"$work/registry.yml" <<END
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: $registry}
END
inside docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
pids+=($!)
up() { (inside curl -sf "http://$registry/v2/"); }
wait_for 60 "the registry" up || die "the registry does not start" "$work/registry.log"
publish() { (inside python3 "$(dirname "$0")/pull_image.py" "$registry" bench "$@") 2>"$work/publish.log"; }
publish main "$count" "$size" "$work" >"$work/layers" || die "cannot make the image" "$work/publish.log"
note "$(awk '{ s += $2 } END { printf "%d MiB compressed", s / 1048576 }' "$work/layers")"

mkdir -p "$work/net.d"
cat >"$work/cri.toml" <<END
socket = "$work/cri.sock"
root = "$work/cri"
state = "$work/cri-state"
runtime_root = "$work/run"
cni_conf_dir = "$work/net.d"
nri_socket = ""
END
declare -A daemon
inside "$BIN_DIR/gantry-cri" --config "$work/cri.toml" >"$work/cri.log" 2>&1 &
pids+=($!) daemon[gantry]=$!
ours() { (inside "$BIN_DIR/gantry-cri" --config "$work/cri.toml" image "$@"); }
wait_for 60 gantry-cri ours ls || die "gantry-cri does not start" "$work/cri.log"
who=(tools gantry)
if [ "${CONTAINERD:-1}" != 0 ]; then
  cat >"$work/containerd.toml" <<END
version = 2
root = "$work/containerd"
state = "$work/containerd-state"
[grpc]
  address = "$work/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  disable_apparmor = true
END
  inside containerd -c "$work/containerd.toml" >"$work/containerd.log" 2>&1 &
  pids+=($!) daemon[containerd]=$!
  wait_for 60 containerd ctr -a "$work/containerd.sock" version || die "containerd does not start" "$work/containerd.log"
  who+=(containerd)
fi
if [ "${PODMAN:-1}" != 0 ]; then who+=(podman); fi
by_podman() { (inside podman --root "$work/podman" --runroot "$podman_run" --storage-driver overlay "$@"); }

fetch_layer() { # digest: what the shell's tools do with one layer
  local dir=$tools_dir/$1 sum
  mkdir -p "$dir/fs" && mkfifo "$dir/pipe" || return 1
  sha256sum <"$dir/pipe" >"$dir/sum" & sum=$!
  curl -sf "http://$registry/v2/bench/blobs/sha256:$1" | tee "$dir/pipe" | gzip -dc | tar -x --numeric-owner -C "$dir/fs" || return 1
  wait "$sum" && grep -q "^$1 " "$dir/sum"
}
fetch_all() { cut -d' ' -f1 "$work/layers" | xargs -P 2 -I{} bash -c 'set -o pipefail; fetch_layer {}'; }
export -f fetch_layer fetch_all
export registry tools_dir work
get() { # who: pulls once
  case $1 in
    tools) (inside bash -c fetch_all) ;;
    gantry) ours pull "$registry/bench:main" ;;
    containerd) (inside ctr -a "$work/containerd.sock" -n bench images pull --plain-http "$registry/bench:main") ;;
    podman) by_podman pull -q --tls-verify=false "$registry/bench:main" ;;
  esac
}
drop() { # who: forgets what it pulled
  case $1 in
    tools) rm -rf "$tools_dir" ;;
    gantry) ours rm "$registry/bench:main" ;;
    containerd) ctr -a "$work/containerd.sock" -n bench images rm --sync "$registry/bench:main" ;;
    podman) by_podman rmi -f "$registry/bench:main" ;;
  esac
}
spent() { # who: milliseconds of processor time that its daemon and what that waited for have used
  [ -n "${daemon[$1]:-}" ] || { echo 0; return; }
  sed 's/.*) //' "/proc/${daemon[$1]}/stat" | awk -v hz="$(getconf CLK_TCK)" '{ print int(($12 + $13 + $14 + $15) * 1000 / hz) }'
}
step "pull in turns"
TIMEFORMAT='%3R %3U %3S'
for round in $(seq "${ROUNDS:-3}"); do
  for one in "${who[@]}"; do
    # What others left to be written is not this one's to wait for.
    sync -f "$work"
    before=$(spent "$one")
    { time get "$one" >"$work/$one.out" 2>&1 || touch "$work/failed"; } 2>"$work/time"
    [ ! -e "$work/failed" ] || die "$one cannot pull" "$work/$one.out"
    read -r took cpu < <(awk -v d="$(($(spent "$one") - before))" '{ print int($1 * 1000), int(($2 + $3) * 1000 + d) }' "$work/time")
    echo "$one $took $cpu" >>"$work/times"
    note "round $round: $one $took ms, $cpu ms of processor time"
    drop "$one" >"$work/$one.out" 2>&1 || die "$one cannot remove the image" "$work/$one.out"
  done
done

memory=null
if [ "$big" != 0 ]; then
  step "one layer of $big MiB"
  publish big 1 "$big" "$work" one-file >/dev/null || die "cannot make the big layer" "$work/publish.log"
  field() { awk -v f="$1:" '$1==f {print $2}' "/proc/${daemon[gantry]}/status"; }
  echo 5 >"/proc/${daemon[gantry]}/clear_refs"
  before=$(field VmRSS)
  ours pull "$registry/bench:big" >"$work/big.out" 2>&1 || die "the big layer cannot be pulled" "$work/big.out"
  memory=$(($(field VmHWM) - before))
fi
python3 - "$work/times" "$memory" "$format" "$size" "$big" >&3 <<'END'
import json, statistics, sys
path, memory, form, size, big = sys.argv[1:]
rows = {}
for line in open(path):
    name, took, cpu = line.split()
    rows.setdefault(name, []).append((int(took), int(cpu)))
tools = [took for took, _ in rows["tools"]]
out = []
for name, runs in rows.items():
    took, cpu = [t for t, _ in runs], [c for _, c in runs]
    # Against the tools in the same round: what else the machine did then was beside both.
    ratio = statistics.median(t / own for t, own in zip(tools, took))
    out.append({"name": name, "ms": took, "median_ms": statistics.median(took), "cpu_ms": cpu,
                "median_cpu_ms": statistics.median(cpu), "speed_of_tools": round(ratio, 2)})
memory = None if memory == "null" else int(memory)
if form == "json":
    print(json.dumps({"mib": int(size), "pulls": out, "big_layer_mib": int(big), "big_layer_rss_kib": memory}, indent=1))
else:
    print("\n%-12s %10s %10s %9s %12s  %s" % ("", "median ms", "min ms", "MiB/s", "processor ms", "speed (tools = 1)"))
    for r in out:
        speed = int(size) * 1000 / max(1, r["median_ms"])
        print("%-12s %10d %10d %9.0f %12d  %.2f" % (r["name"], r["median_ms"], min(r["ms"]), speed, r["median_cpu_ms"], r["speed_of_tools"]))
    if memory is not None:
        print("\nmost memory above idle during a layer of %s MiB: %.1f MiB" % (big, memory / 1024))
END
