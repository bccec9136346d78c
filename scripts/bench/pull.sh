#!/usr/bin/env bash
# How fast an image comes from a registry on this machine: gantry-cri, containerd and podman in turns, beside what the shell's
# own tools need for the same (curl | sha256sum and tar, two layers at a time), and how much memory one big layer takes.
# In a network namespace of its own; needs root and scripts/build.sh.
#
# usage: pull.sh [--output json]
# env:   SIZE (1024) MiB of the image unpacked, LAYERS (10), ROUNDS (3), BIG (2048) MiB of the one big layer (0 leaves it out),
#        CONTAINERD=0 and PODMAN=0 leave those out, BENCH_DIR (/var/tmp) where some six times SIZE and twice BIG are free
set -uo pipefail
. "$(dirname "$0")/../lib.sh"
case ${1:-} in -h|--help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit ;; esac
need_root
format=table
[ "${1:-}" != --output ] || format=${2:-table}
[ -x "$BIN_DIR/gantry-cri" ] || die "$BIN_DIR/gantry-cri is missing: run scripts/build.sh"
need_packages docker-registry curl python3
[ "${CONTAINERD:-1}" = 0 ] || need_packages containerd
[ "${PODMAN:-1}" = 0 ] || need_packages podman
work=$(mktemp -d "${BENCH_DIR:-/var/tmp}/gantry-pullbench.XXXXXX") ns=gantry-pullbench-$$ pids=() || exit 1
finish() {
  local pid
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null; done
  awk -v w="$work/" 'index($2, w)==1 {print $2}' /proc/self/mounts | sort -r | xargs -r umount
  ip netns delete "$ns"
  rm -rf --one-file-system "$work"
}
ip netns add "$ns" && ip -n "$ns" link set lo up || die "cannot make a network namespace"
trap finish EXIT
inside() { nsenter --net="/run/netns/$ns" "$@"; }
registry=127.0.0.1:5000 container_root=$work/containers

say() { step_name=$1; [ "$format" != table ] || step "$1"; }
say "make the images"
# Layers of this machine's own programs and libraries: what images are made of, compressed as well as they are.
fill() { # folder MiB
  python3 - "$1" "$2" <<'END'
import os, sys
target, want, have, n = sys.argv[1], int(sys.argv[2]) << 20, 0, 0
sources = []
for top in ("/usr/lib", "/usr/bin", "/usr/share"):
    for base, _, files in sorted(os.walk(top)):
        sources += [os.path.join(base, f) for f in sorted(files)]
salt = hash(target)
start = (salt * 7919) % max(1, len(sources))
while have < want:
    path = sources[(start + n) % len(sources)]
    n += 1
    try:
        if os.path.islink(path) or not os.path.isfile(path) or os.path.getsize(path) > want - have + (1 << 20):
            if n > 3 * len(sources): break
            continue
        with open(path, "rb") as f: data = f.read()
    except OSError:
        continue
    folder = os.path.join(target, "d%d" % (n // 200))
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "f%d" % n), "wb") as f: f.write(data)
    have += len(data)
END
}
layer() { # number MiB: $work/layers/N.tar.gz with its digests beside it
  local dir=$work/layers/$1
  mkdir -p "$dir/fs" && PYTHONHASHSEED=$1 fill "$dir/fs" "$2" || return 1
  tar -C "$dir/fs" --sort=name -cf - . | tee >(sha256sum | cut -d' ' -f1 >"$dir/diff") | gzip -5 >"$dir/tgz" || return 1
  sha256sum "$dir/tgz" | cut -d' ' -f1 >"$dir/digest"
  rm -rf "$dir/fs"
}
upload() { # file digest
  local place
  place=$(inside curl -sS -X POST -D - -o /dev/null "http://$registry/v2/bench/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
  inside curl -sSf -X PUT -H 'Content-Type: application/octet-stream' -T "$1" "$place&digest=sha256:$2" -o /dev/null
}
publish() { # tag layer...
  local tag=$1 n layers='' diffs='' config; shift
  for n in "$@"; do
    upload "$work/layers/$n/tgz" "$(cat "$work/layers/$n/digest")" || return 1
    layers+="${layers:+,}{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",\"digest\":\"sha256:$(cat "$work/layers/$n/digest")\",\"size\":$(stat -c %s "$work/layers/$n/tgz")}"
    diffs+="${diffs:+,}\"sha256:$(cat "$work/layers/$n/diff")\""
  done
  printf '{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[%s]}}' "$diffs" >"$work/config.json"
  config=$(sha256sum "$work/config.json" | cut -d' ' -f1)
  upload "$work/config.json" "$config" || return 1
  printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%s},"layers":[%s]}' \
    "$config" "$(stat -c %s "$work/config.json")" "$layers" >"$work/manifest.json"
  inside curl -sSf -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' --data-binary "@$work/manifest.json" \
    "http://$registry/v2/bench/manifests/$tag" -o /dev/null
}
cat >"$work/registry.yml" <<END
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: $registry}
END
inside docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
pids+=($!)
wait_for 30 "the registry" inside curl -sf "http://$registry/v2/" || die "the registry does not start" "$work/registry.log"
count=${LAYERS:-10} each=$((${SIZE:-1024} / ${LAYERS:-10}))
for n in $(seq "$count"); do layer "$n" "$each" >&2 || die "cannot make layer $n"; done
# shellcheck disable=SC2046
publish main $(seq "$count") || die "cannot upload the image" "$work/registry.log"

mkdir -p "$work/net.d"
cat >"$work/cri.toml" <<END
socket = "$work/cri.sock"
root = "$work/cri"
state = "$work/cri-state"
runtime_root = "$work/run"
cni_conf_dir = "$work/net.d"
nri_socket = ""
END
inside "$BIN_DIR/gantry-cri" --config "$work/cri.toml" >"$work/cri.log" 2>&1 &
gantry=$!
pids+=("$gantry")
ours() { inside "$BIN_DIR/gantry-cri" --config "$work/cri.toml" image "$@"; }
wait_for 30 gantry-cri ours ls || die "gantry-cri does not start" "$work/cri.log"
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
  pids+=($!)
  wait_for 30 containerd ctr -a "$work/containerd.sock" version || die "containerd does not start" "$work/containerd.log"
  who+=(containerd)
fi
if [ "${PODMAN:-1}" != 0 ]; then who+=(podman); fi
by_podman() { inside podman --root "$work/podman" --runroot "$work/podman-run" --storage-driver overlay "$@"; }

fetch_layer() { # digest: what the shell's tools do with one layer
  mkdir -p "$container_root/$1"
  inside curl -sf "http://$registry/v2/bench/blobs/sha256:$1" | tee >(sha256sum >"$container_root/$1.sum") |
    tar -xz --numeric-owner -C "$container_root/$1"
}
get() { # who: pulls once
  case $1 in
    tools)
      export -f fetch_layer inside; export registry container_root ns
      mkdir -p "$container_root"
      for n in $(seq "$count"); do cat "$work/layers/$n/digest"; done | xargs -P 2 -n 1 bash -c 'fetch_layer "$1"' _ ;;
    gantry) ours pull "$registry/bench:main" ;;
    containerd) inside ctr -a "$work/containerd.sock" -n k8s.io images pull --plain-http "$registry/bench:main" ;;
    podman) by_podman pull -q --tls-verify=false "$registry/bench:main" ;;
  esac
}
drop() { # who: forgets what it pulled
  case $1 in
    tools) rm -rf "$container_root" ;;
    gantry) ours rm "$registry/bench:main" ;;
    containerd) ctr -a "$work/containerd.sock" -n k8s.io images rm --sync "$registry/bench:main" ;;
    podman) by_podman rmi -f "$registry/bench:main" ;;
  esac
}
say "pull in turns"
declare -A times
for round in $(seq "${ROUNDS:-3}"); do
  for one in "${who[@]}"; do
    sync -f "$work"
    begin=$(date +%s%N)
    get "$one" >"$work/$one.out" 2>&1 || die "$one cannot pull" "$work/$one.out"
    took=$((($(date +%s%N) - begin) / 1000000))
    times[$one]+="$took "
    [ "$format" != table ] || note "round $round: $one $took ms"
    drop "$one" >"$work/$one.out" 2>&1 || die "$one cannot remove the image" "$work/$one.out"
  done
done

memory=null
if [ "${BIG:-2048}" != 0 ]; then
  say "one layer of ${BIG:-2048} MiB"
  mkdir -p "$work/layers/big/fs"
  # Half of it noise, so that neither side of the decompression is small.
  head -c "$((${BIG:-2048} / 2))M" /dev/urandom >"$work/layers/big/fs/noise" && head -c "$((${BIG:-2048} / 2))M" /dev/zero >"$work/layers/big/fs/zero"
  tar -C "$work/layers/big/fs" -cf - . | tee >(sha256sum | cut -d' ' -f1 >"$work/layers/big/diff") | gzip -1 >"$work/layers/big/tgz"
  sha256sum "$work/layers/big/tgz" | cut -d' ' -f1 >"$work/layers/big/digest"
  rm -rf "$work/layers/big/fs"
  publish big big || die "cannot upload the big layer" "$work/registry.log"
  field() { awk -v f="$1:" '$1==f {print $2}' "/proc/$gantry/status"; }
  echo 5 >"/proc/$gantry/clear_refs"
  before=$(field VmRSS)
  ours pull "$registry/bench:big" >"$work/big.out" 2>&1 || die "the big layer cannot be pulled" "$work/big.out"
  memory=$(($(field VmHWM) - before))
  [ "$format" != table ] || note "gantry-cri's memory rises by $((memory / 1024)) MiB at most"
fi
for one in "${who[@]}"; do echo "$one ${times[$one]}"; done | python3 -c '
import json, statistics, sys
memory, form = sys.argv[1], sys.argv[2]
rows = {l.split()[0]: [int(n) for n in l.split()[1:]] for l in sys.stdin}
tools = statistics.median(rows["tools"])
out = [{"name": n, "ms": t, "median_ms": statistics.median(t), "of_tools": round(tools / statistics.median(t), 2)} for n, t in rows.items()]
if form == "json":
    print(json.dumps({"pulls": out, "big_layer_rss_kib": None if memory == "null" else int(memory)}, indent=1))
else:
    print("\n%-12s %10s %10s   speed beside curl | sha256sum, tar" % ("", "median ms", "min ms"))
    for r in out: print("%-12s %10d %10d   %.2f" % (r["name"], r["median_ms"], min(r["ms"]), r["of_tools"]))
    if memory != "null": print("\nmost memory above idle during a layer of %s MiB: %.1f MiB" % (sys.argv[3], int(memory) / 1024))
' "$memory" "$format" "${BIG:-2048}"
